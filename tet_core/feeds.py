"""Feeds: a pair in a timeframe each, what is known of its candles, and of Redis' copy of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from tet_core.candles import Answer, Candles
from tet_core.errors import ExchangeError, StoreError, TetError
from tet_core.freshness import Answered, Freshness, Link
from tet_core.gaps import Evidence
from tet_core.pairs import Pair
from tet_core.proofs import Closes
from tet_core.series import Correction, Series, absorb, follow, is_lagging
from tet_core.sessions import ALWAYS_OPEN, Hours
from tet_core.stored import Image
from tet_core.times import Timeframe


class Provenance(Enum):
    """What is known of the candles that a feed has in memory."""

    UNREAD = "Redis was not asked for them yet"
    NOTHING = "Redis has no sound value: the whole window is to be backfilled"
    RESTORED = "they are from Redis, and the exchange has not repeated any yet"
    CONFIRMED = "the exchange has sent or repeated them"


class Page(NamedTuple):
    """How far a fetch has come with one more reply.

    ``answer`` is the reply, and ``series`` what is held with it, ``up_to_date`` when that reaches the
    present; from ``exhausted_ms`` on the exchange had nothing, asked twice.
    """

    answer: Answer
    series: Series
    exhausted_ms: int
    up_to_date: bool


@dataclass(eq=False)
class Feed:
    """One pair in one timeframe: its candles, how far they are known, and Redis' copy of them.

    A worker updates it, one at a time, and meanwhile the main thread may lay a stream's candles over it, and
    a writer may write it: it changes in methods that are named for what happened, under `lock`, which nobody
    holds for long; `writing` is held from reading the series to having written it, and taken first. Times
    are exchange time in ms, 0 is never.
    """

    pair: Pair
    timeframe: Timeframe
    wanted: int  # N: how many candles its window has
    provenance: Provenance = Provenance.UNREAD
    series: Series | None = None  # up to date when fetched: what may be stored
    partial: Series | None = None  # what a backfill had when it broke off: the next one resumes there
    exhausted_ms: int = 0  # see `Page`
    lagging: bool = False  # see `Page`
    image: Image | None = None  # what Redis has, as far as is known; None: the next write is whole
    buffered: bool = False  # a write failed, or Redis lost it: it is flushed as soon as Redis answers
    stored_end_ms: int = 0  # end of the newest closed candle that readers know of
    dated_ms: int = 0  # the last_update that readers know of: the next one is no earlier
    by_stream: bool = False  # whether the newest close was streamed
    next_close_ms: int = 0  # the end of the oldest candle that is not known to be closed
    completeness: float = 0.0
    fetched_ms: int = 0
    asked_ms: int = 0  # when REST was asked last: what was streamed since then is to be proven
    closes: Closes = field(default_factory=Closes)  # that were streamed
    updated_ms: int = 0  # when what was written last was fetched
    tried_ms: int = 0
    error: TetError | None = None  # of the last update
    hours: Hours = ALWAYS_OPEN  # of the market that it follows
    evidence: Evidence = field(default_factory=Evidence)  # of its gaps, and what REST has proven
    freshness: Freshness = field(init=False)  # the main thread's alone
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    writing: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __post_init__(self) -> None:
        self.freshness = Freshness(self.name, self.timeframe)

    @property
    def name(self) -> str:
        """BTC/USDT 15m"""
        return f"{self.pair.name} {self.timeframe.name}"

    @property
    def fetch_failed(self) -> bool:
        """Whether the exchange did not give what the last update asked for."""
        return isinstance(self.error, ExchangeError)

    @property
    def answer(self) -> Answered:
        """What has come of the last update."""
        return Answered(self.asked_ms, self.lagging, self.error is not None, self.fetch_failed)

    @property
    def failure(self) -> str:
        """Why the last update failed; empty when it did not."""
        return str(self.error or "")

    def closed_until_ms(self, now_ms: int) -> int:
        """Until when the market that it follows is closed, if the exchange has no candle of now; else 0."""
        has_candle = self.series and self.timeframe.close_of(self.series.opens[-1]) > now_ms
        return 0 if has_candle else self.hours.closed_until_ms(now_ms)

    @property
    def expects_close(self) -> bool:
        """Whether the close of its candle is to be streamed: not while its market is closed."""
        return not self.hours.closed_until_ms(self.next_close_ms - 1)

    def restored(self, image: Image | None) -> None:
        """Redis was asked: it had these candles, or no sound ones."""
        with self.lock:
            self.provenance = Provenance.RESTORED if image else Provenance.NOTHING
            if image:
                self.image, self.buffered, self.partial = image if image.is_ours else None, False, None
                self.series, self.stored_end_ms = image.series, image.series.closed_end_ms
                self.dated_ms, self.completeness = image.dated_ms, image.completeness
                self.fetched_ms = self.updated_ms = min(image.dated_ms, image.proven_ms)

    def fetched(self, page: Page, sent: Candles, before: Series | None, now_ms: int) -> None:
        """The exchange has sent a page. Only an up-to-date series becomes what may be stored.

        ``before`` is the series when the fetch began. What was streamed since then stays: what the fetch has
        ``sent`` so far, by all its pages, is laid over that.
        """
        with self.lock:
            moved_on = self.series is not before
            if moved_on and self.provenance is not Provenance.CONFIRMED:
                return  # restored, disputed or evicted meanwhile: this was laid over what is gone
            self.exhausted_ms = page.exhausted_ms
            if not page.up_to_date:
                self.partial = None if moved_on else page.series
                return
            series = (
                absorb(self.series, sent, page.answer.asked_ms, self.wanted)
                if moved_on and self.series
                else page.series
            )
            self._advance(series, now_ms, by_stream=False)
            by = "proof" if self.freshness.link is Link.LIVE else "poll" if before else "backfill"
            self.evidence.note_proof(by, now_ms, whole=before is None)
            if before and self.provenance is Provenance.RESTORED:  # what was missing when it was written
                self.evidence.note(before, self.wanted, self.updated_ms)
            self.evidence.note(series, self.wanted, now_ms)
            self.provenance, self.partial, self.asked_ms = Provenance.CONFIRMED, None, page.answer.asked_ms
            self.lagging = is_lagging(series, page.answer.asked_ms)
            if sent:
                self.closes.prove(self.timeframe, next(iter(sent)), page.answer.asked_ms)

    def streamed(self, candles: Candles, is_closed: bool, now_ms: int) -> bool:
        """Its stream has sent a candle. Returns whether that counts: if not, REST has to be asked."""
        with self.lock:
            if not self.series or self.provenance is not Provenance.CONFIRMED:
                return False
            series = follow(self.series, candles, is_closed, self.wanted)
            if series:
                if series.closed_end_ms > self.series.closed_end_ms:
                    self.closes.note(series.closed_end_ms)
                self._advance(series, now_ms, by_stream=True)
                self.partial = None
            return series is not None

    @property
    def unproven_ms(self) -> int:
        """When the oldest candle opened whose close REST has not repeated since it was streamed."""
        oldest_ms = self.closes.first_ms - 1 if self.closes.waiting else self.asked_ms
        return min(self.asked_ms, self.timeframe.floor(oldest_ms))

    def corrected(self, found: Iterable[Correction], now_ms: int) -> None:
        """An audit has found what the exchange has otherwise: it is as the exchange has it now."""
        with self.lock:
            if not self.series:
                return
            candles = dict(self.series.entries())
            candles |= {each.open_ms: each.sent for each in found}
            candles = {open_ms: entry for open_ms, entry in sorted(candles.items()) if entry}
            series = Series(self.timeframe).merge(candles, self.series.newest_is_closed, self.wanted)
            self._advance(series, now_ms, by_stream=False)

    def disputed(self) -> None:
        """Redis has other closed candles than these: the exchange is to decide, by a backfill."""
        with self.lock:
            self.series, self.partial, self.image = None, None, None
            self.provenance, self.buffered = Provenance.NOTHING, False

    def _advance(self, series: Series, now_ms: int, *, by_stream: bool) -> None:
        newest_end_ms = self.timeframe.close_of(series.opens[-1])
        if self.series and series.closed_end_ms > self.series.closed_end_ms:
            self.by_stream = by_stream
        is_closed = series.newest_is_closed
        self.next_close_ms = self.timeframe.close_of(newest_end_ms) if is_closed else newest_end_ms
        self.series, self.fetched_ms = series, max(self.fetched_ms, now_ms)

    def written(self, image: Image, fetched_ms: int) -> None:
        """Redis has the series now that was fetched then, as that image."""
        with self.lock:
            self.image, self.buffered, self.completeness = image, False, image.completeness
            self.updated_ms, self.stored_end_ms = fetched_ms, image.series.closed_end_ms
            self.dated_ms = image.dated_ms

    def not_written(self) -> None:
        """Redis did not take the series, or has lost it; without a series there is nothing to flush."""
        with self.lock:
            self.image, self.buffered = None, self.series is not None

    def has_nothing_to_write(self) -> None:
        """It is so new that it has no candle to store, as the settings are: nothing is buffered."""
        with self.lock:
            self.buffered = False

    def follows_hours(self, hours: Hours) -> None:
        """The market that it follows is closed at these times, too."""
        with self.lock:
            self.hours = self.hours.union(hours)

    def evicted(self) -> None:
        """The candles are no longer in memory, if Redis has them as they are."""
        with self.lock:
            if self.image and self.image.series is self.series:
                self.series, self.provenance, self.image = None, Provenance.UNREAD, None

    def flushed(self) -> None:
        """What was buffered is written; the error of a fetch since stays."""
        with self.lock:
            if isinstance(self.error, StoreError):
                self.error = None

    def tried(self, error: TetError | None, now_ms: int) -> None:
        """An update is done, well or with an error."""
        with self.lock:
            self.error, self.tried_ms = error, now_ms
