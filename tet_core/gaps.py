"""Gaps: stretches of a window without candles, since when each is known, and why; what REST has proven."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tet_core.series import Series
from tet_core.sessions import Hours
from tet_core.snapshot import KnownGap, Proven
from tet_core.times import iso_or_none, iso_time

LISTED_LATER = "listed later: the exchange has no candle before"
SESSION_CLOSED = "session closed"
HALTED = "halted, or not kept: the exchange, asked twice, has none"


class Gap(NamedTuple):
    """Candles that are missing one after the other: open times of the first and the last one, ms."""

    first_ms: int
    last_ms: int


def gaps_of(series: Series, keep: int) -> Iterator[Gap]:
    """Where a window of ``keep`` candles lacks some, the oldest first."""
    timeframe, opens = series.timeframe, series.opens
    window_ms = timeframe.shift(opens[-1], 1 - keep)
    if opens[0] > window_ms:
        yield Gap(window_ms, timeframe.shift(opens[0], -1))
    if len(opens) < timeframe.count(opens[0], opens[-1]):
        for before_ms, after_ms in pairwise(opens):
            if timeframe.close_of(before_ms) != after_ms:
                yield Gap(timeframe.close_of(before_ms), timeframe.shift(after_ms, -1))


@dataclass
class Evidence:
    """What is known of a feed beside its candles: its gaps, and when REST has proven what. Times are in ms.

    ``window_ms`` is when all of its window was compared with the exchange, or fetched, and ``newest_ms`` its
    newest candles alone; ``window_by`` and ``newest_by`` by whom: backfill, audit, poll, proof.
    """

    known_ms: dict[Gap, int] = field(default_factory=dict)  # gaps, and since when
    window_ms: int = 0
    window_by: str = ""
    newest_ms: int = 0
    newest_by: str = ""

    def note(self, series: Series, keep: int, now_ms: int) -> None:
        """The exchange, or Redis, has sent this series; a gap that is still there is known since it was seen.

        That of a window's beginning is the same though it moves.
        """
        found = list(gaps_of(series, keep))
        since = {gap.last_ms: known_ms for gap, known_ms in self.known_ms.items()}
        self.known_ms = {gap: since.get(gap.last_ms, now_ms) for gap in found}

    def note_proof(self, by: str, now_ms: int, *, whole: bool) -> None:
        """REST has sent the newest candles, or the whole window."""
        self.newest_ms, self.newest_by = now_ms, by
        if whole:
            self.window_ms, self.window_by = now_ms, by

    def gaps(self, series: Series, hours: Hours) -> list[KnownGap]:
        """The gaps as the status has them: from when to when, how many candles, since when known, and why."""
        count = series.timeframe.count
        return [
            KnownGap(
                first=iso_time(gap.first_ms),
                last=iso_time(gap.last_ms),
                candles=count(*gap),
                known_since=iso_time(known_ms),
                reason=_reason(gap, series, hours),
            )
            for gap, known_ms in self.known_ms.items()
        ]

    def proven(self) -> Proven:
        """When what was proven, and by whom, as the status has it."""
        return Proven(
            window=iso_or_none(self.window_ms),
            window_by=self.window_by or None,
            newest=iso_or_none(self.newest_ms),
            newest_by=self.newest_by or None,
        )


def _reason(gap: Gap, series: Series, hours: Hours) -> str:
    if gap.last_ms < series.opens[0]:
        return LISTED_LATER
    closed = hours.are_closed(gap.first_ms, series.timeframe.close_of(gap.last_ms))
    return SESSION_CLOSED if closed else HALTED
