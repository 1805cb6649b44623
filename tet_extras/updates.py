"""Updates: the feeds that are due, on their way through REST; each is planned again when it is done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tet_core.candles import Candles
from tet_core.errors import LOGGER, Stopped, TetError, say
from tet_core.feeds import Feed, Page, Provenance
from tet_core.freshness import Asked, Link
from tet_core.intervals import Interval
from tet_core.listeners import Listener
from tet_core.proofs import FREE_WEIGHT_SHARE, Proof, Proofs
from tet_core.protocols import Clock, Gate
from tet_core.series import Series, corrections
from tet_core.times import NEVER_MS, SECOND_MS
from tet_core.watchlist import Watchlist

from .figures import Tally
from .workers import TICK_SECONDS, Work

PROOF_LOOK_SECONDS = 0.1  # how often to look for closes to be proven


class Settings(Protocol):
    """The settings that say what is asked for."""

    @property
    def live(self) -> bool:
        """Whether streams are listened to, too."""

    @property
    def proof_weight_share(self) -> float:
        """Of the exchange's limit of weight, for proofs."""

    @property
    def api_requests_per_sec(self) -> float:
        """What the members behind an address may send together."""

    @property
    def incremental_candles(self) -> int:
        """How many stored candles are fetched again."""


class Fetcher(Protocol):
    """Who asks the exchange for candles. Methods raise ExchangeError and Stopped."""

    def pages(self, feed: Feed, held: Series | None, confirmed: bool, proven_ms: int = 0) -> Iterator[Page]:
        """What is new of a feed since a series, page by page."""


class Writer(Protocol):
    """Who has feeds in Redis. Methods raise StoreError."""

    def write(self, feed: Feed) -> bool:
        """Write a feed's candles."""

    def restore(self, feed: Feed, any_prices: bool = False) -> None:
        """Read back what Redis holds."""


@dataclass(eq=False)
class Updates:
    """The feeds that are due, on their way: each waits for a worker, and is planned again when it is done.

    So no feed waits for another one's backfill. The main thread owns it; `update` is what workers do.
    ``klines_weight`` says what a request for so many candles costs.
    """

    settings: Settings
    clock: Clock
    watchlist: Watchlist
    fetcher: Fetcher
    writer: Writer
    interval: Interval
    gate: Gate
    klines_weight: Callable[[int], int]
    candles: Tally
    listener: Listener

    def __post_init__(self) -> None:
        self._proofs: Proofs[Feed] = Proofs()
        self.work: Work[Feed] = Work()
        self.asked: dict[Feed, Asked] = {}

    def due_in_seconds(self) -> float:
        """The time until the next of those feeds is due that are not on their way."""
        due_ms = min((feed.freshness.due_ms for feed in self._waiting()), default=NEVER_MS)
        return max(0.0, (due_ms - self.clock.now_ms()) / SECOND_MS)

    def _waiting(self) -> Iterator[Feed]:
        return (feed for feed in self.watchlist if feed not in self.asked)

    def ask(self) -> None:
        """Let the feeds that have become due wait for a worker."""
        now_ms = self.clock.now_ms()
        for feed in [feed for feed in self._waiting() if feed.freshness.due_ms <= now_ms]:
            self._ask(feed, now_ms)

    def _ask(self, feed: Feed, now_ms: int) -> None:
        """Let a feed wait: the urgent before others, then the stalest; a backfill when none of them waits."""
        self.asked[feed] = asked = feed.freshness.asked(now_ms)
        is_backfill = feed.provenance is Provenance.NOTHING or feed.partial is not None
        self.work.add(feed, None if is_backfill else (0 if asked.is_urgent else 1, feed.updated_ms))

    def prove(self) -> None:
        """Let a live feed wait whose closes are to be proven by now, if nobody else waits."""
        if not self.settings.live or self.work or self._proofs.wait_ms(now_ms := self.clock.now_ms()):
            return
        gate, settings = self.gate, self.settings
        waiting = [
            Proof(feed, feed.closes.first_ms)
            for feed in self._waiting()
            if feed.freshness.link is Link.LIVE and feed.closes.waiting and not feed.error
        ]
        is_free = (
            gate.used_weight() <= gate.weight_limit * FREE_WEIGHT_SHARE and not gate.pause_left_seconds()
        )
        share = gate.rate / settings.api_requests_per_sec if is_free else 0.0  # of members behind an address
        allowed = share * settings.proof_weight_share * gate.weight_limit
        weight = self.klines_weight(2 * settings.incremental_candles + 2)
        if proven := self._proofs.next(waiting, now_ms, weight, allowed, gate.rate):
            self._ask(proven, now_ms)

    def wait_seconds(self) -> float:
        """How long to wait until there is something to ask for, a second at most."""
        wait_seconds = min(TICK_SECONDS, self.due_in_seconds())
        if self.settings.live:
            proof_seconds = self._proofs.wait_ms(self.clock.now_ms()) / SECOND_MS
            return min(wait_seconds, max(PROOF_LOOK_SECONDS, proof_seconds))
        return wait_seconds

    def settle(self) -> dict[Feed, Asked]:
        """Plan the feeds that are done, and return them with what they were asked for by."""
        now_ms = self.clock.now_ms()
        done = {feed: self.asked.pop(feed) for feed in self.work.finished()}
        for feed in done:
            feed.freshness.answered(feed.answer, self.interval.seconds(now_ms), now_ms)
        return done

    def update(self, feed: Feed, *, again: bool = True) -> bool:
        """Bring one feed up to date; returns whether that is done, or it gives way between two pages.

        ``again`` if it is disputed. Every failure ends here, as its error; only Stopped is raised.
        """
        error: TetError | None = None
        if feed not in self.watchlist:
            return True  # it has become another member's, or has left
        try:
            if feed.provenance is Provenance.UNREAD:
                self.writer.restore(feed)
            if not self._fetch(feed):
                return False
            self.writer.write(feed)
            if feed.provenance is Provenance.NOTHING and again:  # disputed: Redis has other candles
                return self.update(feed, again=False)
        except Stopped:
            raise
        except TetError as caught:
            error = caught
        except Exception as caught:
            logging.getLogger(LOGGER).exception("internal error")
            error = TetError(f"internal error: {type(caught).__name__}")
        feed.tried(error, self.clock.now_ms())
        say(logging.DEBUG, "update", feed=feed.name, candles=len(feed.series or ()), failure=error or "none")
        return True

    def _fetch(self, feed: Feed) -> bool:
        """Fetch what is new, page by page; returns whether it is up to date, or gives way to others."""
        before, confirmed = feed.series, feed.provenance is Provenance.CONFIRMED
        held = feed.partial or before
        is_streamed = feed.freshness.link is Link.LIVE or feed.closes.waiting
        proven_ms = feed.unproven_ms if is_streamed else 0
        sent: Candles = {}  # by all pages, where a stream may move the series on meanwhile; else by the last
        for page in self.fetcher.pages(feed, held, confirmed, proven_ms):
            self.candles.add("received", len(page.answer.candles))
            if confirmed and before:
                self.listener.corrected(feed, corrections(before, page.answer))
                sent |= page.answer.candles
            else:
                sent = page.answer.candles
            feed.fetched(page, sent, before, self.clock.now_ms())
            if not page.up_to_date and feed.partial and self.work.is_to_give_way():
                return False
        return True
