"""Proofs: which of the streamed closes REST has repeated, and when REST is asked for the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from tet_core.series import MAX_LAG_MS
from tet_core.snapshot import ProofFigures
from tet_core.times import MINUTE_MS, SECOND_MS, Timeframe, iso_or_none

T = TypeVar("T")

#: Proofs are spread over this part of each minute: before it REST may lag behind the close at its border.
FIRST_MS, LAST_MS = MAX_LAG_MS, 55 * SECOND_MS
RATE_SHARE = 0.5  # of the requests per second, at most
FREE_WEIGHT_SHARE = 0.5  # of the exchange's limit: while more is used, audit and proofs wait


@dataclass
class Closes:
    """The closes of a feed that were streamed, and how far REST has repeated them. Exchange time, ms.

    What waits to be proven is one run on the timeframe's grid, from the candle that ended at ``first_ms`` to
    the one that ended at ``last_ms``: so it stays small, however long REST cannot be asked.
    """

    streamed: int = 0
    proven: int = 0
    waiting: int = 0
    first_ms: int = 0
    last_ms: int = 0

    def note(self, end_ms: int) -> None:
        """The close was streamed of the candle that ended then."""
        self.streamed += 1
        self.first_ms = self.first_ms if self.waiting else end_ms
        self.waiting, self.last_ms = self.waiting + 1, end_ms

    def prove(self, timeframe: Timeframe, first_open_ms: int, asked_ms: int) -> None:
        """REST was asked then, and has sent the candles from an open time on; what it may lag in waits on.

        What ended before that open time is not proven, and left to the audit.
        """
        end_ms = asked_ms - MAX_LAG_MS
        if not self.waiting or end_ms < self.first_ms:
            return
        left = self.ended_after(timeframe, end_ms)
        self.proven += max(0, self.ended_after(timeframe, first_open_ms) - left)
        self.waiting, self.first_ms = left, timeframe.close_of(timeframe.floor(end_ms))

    def ended_after(self, timeframe: Timeframe, at_ms: int) -> int:
        """How many of those that wait have ended after that moment."""
        if at_ms < self.first_ms:
            return self.waiting
        return max(0, min(self.waiting - 1, timeframe.number(self.last_ms) - timeframe.number(at_ms)))

    def young(self, timeframe: Timeframe, now_ms: int) -> int:
        """How many of those that wait need not be proven yet: a minute is allowed."""
        return self.ended_after(timeframe, now_ms - MINUTE_MS)


def proven_figures(closes: Sequence[tuple[Closes, Timeframe]], now_ms: int) -> ProofFigures:
    """How far REST has repeated what was streamed, for the status; the last minute's may wait."""
    streamed, proven = sum(each.streamed for each, _ in closes), sum(each.proven for each, _ in closes)
    due = streamed - sum(each.young(timeframe, now_ms) for each, timeframe in closes)
    oldest_ms = min((each.first_ms for each, _ in closes if each.waiting), default=0)
    return ProofFigures(
        stream_closes=streamed,
        stream_closes_proven=proven,
        stream_closes_proven_share=round(min(1.0, proven / due), 4) if due else None,
        oldest_unproven_close=iso_or_none(oldest_ms),
    )


class Proof(NamedTuple, Generic[T]):
    """Who can be proven, and since when one of its closes waits for that."""

    who: T
    first_ms: int


class Proofs(Generic[T]):
    """When the next proof is to be asked for, and whose. Exchange time in ms, passed in.

    They are spread over each minute, and never take more than the weight that is allowed for them: beyond
    it, whose close waits longest is next. Several closes of one feed are proven by one request.
    """

    def __init__(self) -> None:
        self._next_ms = 0

    def wait_ms(self, now_ms: int) -> int:
        """How long not to look for the next one."""
        since_ms = now_ms % MINUTE_MS
        return max(0, self._next_ms - now_ms, FIRST_MS - since_ms)

    def next(
        self, waiting: Iterable[Proof[T]], now_ms: int, weight: int, allowed: float, rate: float
    ) -> T | None:
        """Who is to be proven now, if anybody: each has ``weight``, of so much ``allowed`` in a minute.

        ``rate`` is how many requests may be sent in a second, by all.
        """
        if self.wait_ms(now_ms):
            return None
        ready = [each for each in waiting if each.first_ms + MAX_LAG_MS <= now_ms]
        if not ready or allowed < weight:
            self._next_ms = now_ms + SECOND_MS
            return None
        left_ms = max(0, LAST_MS - now_ms % MINUTE_MS)
        by_weight_ms = (MINUTE_MS - FIRST_MS) * weight / allowed
        by_rate_ms = SECOND_MS / (rate * RATE_SHARE)
        self._next_ms = now_ms + round(max(left_ms / len(ready), by_weight_ms, by_rate_ms))
        return min(ready, key=lambda each: each.first_ms).who
