"""The audit: whole windows compared with the exchange, now and then by the service, or by --verify."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tet_core.candles import Answer, Candles, newest_of
from tet_core.errors import ExchangeError, Stopped, TetError, say
from tet_core.feeds import Feed, Provenance
from tet_core.listeners import Listener
from tet_core.proofs import FREE_WEIGHT_SHARE
from tet_core.protocols import Clock, Gate
from tet_core.series import MAX_LAG_MS, Correction, Series, differences
from tet_core.times import HOUR_MS, SECOND_MS, Timeframe, iso_time

from . import updates
from .figures import Tally

REPAIRS = 2  # attempts: a service that runs may have written meanwhile
AUDIT_ATTEMPTS = 5  # at a page, then the audit goes on with the next one
AUDIT_SLACK_MS = 2 * SECOND_MS  # no page is asked for so shortly before feeds are due


class Settings(Protocol):
    """The settings that say what is compared, and how often."""

    @property
    def audit_hours(self) -> float:
        """In which all windows are compared once; 0 is never."""


class Fetcher(updates.Fetcher, Protocol):
    """Who asks the exchange for whole windows, too."""

    @property
    def page_rows(self) -> int:
        """How many candles a reply has at most."""

    def page_end_ms(self, timeframe: Timeframe, first_ms: int) -> int:
        """The open time up to which one request may ask."""

    def window(self, feed: Feed, first_ms: int, last_ms: int) -> Iterator[tuple[int, Answer]]:
        """The candles that open from one time to another, page by page, with each one's first open time."""


@dataclass(eq=False)
class Audit:
    """Compares the whole window of each feed with the exchange once in AUDIT_HOURS, a page at a time.

    A page is asked for only when nothing is due and weight is free. What differs is corrected. The worker
    that compares a page owns it, and the main thread while none does.
    """

    settings: Settings
    clock: Clock
    gate: Gate
    fetcher: Fetcher
    writer: updates.Writer
    candles: Tally
    listener: Listener

    def __post_init__(self) -> None:
        self._feed: Feed | None = None  # the one that is compared now
        self._next_ms, self._last_ms = 0, -1  # open times: where its next page begins, and its window ends
        self._failures = 0  # of that page, in a row
        self._is_partial = False  # a page of it was left out
        self._queue: deque[Feed] = deque()  # what comes after it
        self._due_ms = 0  # exchange time

    def is_due(self, feeds: Sequence[Feed], next_ms: int) -> bool:
        """Whether to compare a page now; the next feeds are due at ``next_ms``."""
        if not self.settings.audit_hours or not feeds or self.gate.pause_left_seconds():
            return False
        now_ms = self.clock.now_ms()
        self._due_ms = self._due_ms or now_ms + self._step_ms(feeds)
        is_free = self.gate.used_weight() <= self.gate.weight_limit * FREE_WEIGHT_SHARE
        return now_ms >= self._due_ms and now_ms + AUDIT_SLACK_MS < next_ms and is_free

    def _step_ms(self, feeds: Sequence[Feed]) -> int:
        """The time from one page to the next, so that all are done in AUDIT_HOURS."""
        pages = sum(-(-feed.wanted // self.fetcher.page_rows) for feed in feeds)
        return round(self.settings.audit_hours * HOUR_MS / pages)

    def step(self, feeds: Sequence[Feed]) -> None:
        """Compare a page. Raises what `Binance.klines` does, and StoreError: that page is asked for again."""
        self._due_ms = self.clock.now_ms() + self._step_ms(feeds)
        if self._feed not in feeds or self._next_ms > self._last_ms:
            self._begin(feeds)
        feed = self._feed
        if not feed or self._next_ms > self._last_ms:
            return
        try:
            first_ms, answer = next(self.fetcher.window(feed, self._next_ms, self._last_ms))
        except ExchangeError as error:
            self._failures += 1
            if self._failures >= AUDIT_ATTEMPTS:
                event = "part of a window could not be audited"
                say(logging.WARNING, event, feed=feed.name, first=iso_time(self._next_ms), reason=str(error))
                self._go_on(feed)
                self._is_partial = True
            raise
        self._go_on(feed)
        self._compare(feed, first_ms, answer)
        if self._next_ms > self._last_ms and not self._is_partial:
            feed.evidence.note_proof("audit", self.clock.now_ms(), whole=True)

    def _begin(self, feeds: Sequence[Feed]) -> None:
        """Turn to the next feed; one that is not up to date has no pages, nor one without a closed candle."""
        self._queue = deque(feed for feed in self._queue if feed in feeds) or deque(feeds)
        feed = self._feed = self._queue.popleft()
        series, self._next_ms, self._last_ms, self._is_partial = feed.series, 0, -1, False
        if series and feed.provenance is Provenance.CONFIRMED:
            self._next_ms = series.opens[0]
            self._last_ms = feed.timeframe.shift(series.closed_end_ms, -1)

    def _go_on(self, feed: Feed) -> None:
        """Turn to the next page."""
        self._next_ms = feed.timeframe.close_of(self.fetcher.page_end_ms(feed.timeframe, self._next_ms))
        self._failures = 0

    def _compare(self, feed: Feed, first_ms: int, answer: Answer) -> None:
        self.candles.add("audited", len(answer.candles))
        series = feed.series  # once: a writer may find it disputed meanwhile
        if not series or not answer.candles:
            return
        first_ms = max(first_ms, series.opens[0])  # the window may have moved on
        candles = {open_ms: entry for open_ms, entry in answer.candles.items() if open_ms >= first_ms}
        end_ms = feed.timeframe.close_of(newest_of(answer.candles))
        found = differences(series, candles, first_ms, min(end_ms, answer.asked_ms - MAX_LAG_MS))
        found = [each for each in found if each.sent]  # the exchange takes no candle back
        if found:
            self.listener.corrected(feed, found)
            feed.corrected(found, self.clock.now_ms())
            self.writer.write(feed)


class Verdict(NamedTuple):
    """What --verify found of a feed: how many closed candles were compared, what differs, what is wrong.

    ``failure`` says why it could not be compared, or not be repaired.
    """

    candles: int = 0
    found: Sequence[Correction] = ()
    problem: str = ""
    failure: str = ""


class Truth(NamedTuple):
    """What the exchange has of a window's closed candles; what ended after ``end_ms`` may lag in it."""

    candles: Candles
    first_ms: int
    end_ms: int

    def differences(self, feed: Feed) -> list[Correction]:
        """Where a feed has other candles, or none."""
        return differences(feed.series, self.candles, self.first_ms, self.end_ms) if feed.series else []


def true_window(feed: Feed, series: Series, fetcher: Fetcher) -> Truth:
    """Fetch the closed candles of a feed's window. Raises what `Binance.klines` does."""
    last_ms = feed.timeframe.shift(series.closed_end_ms, -1)
    first_ms = min(series.opens[0], feed.timeframe.shift(series.opens[-1], 1 - feed.wanted))
    candles: Candles = {}
    asked_ms = 0
    for _, answer in fetcher.window(feed, first_ms, last_ms):
        candles |= answer.candles
        asked_ms = answer.asked_ms
    return Truth(candles, first_ms, asked_ms - MAX_LAG_MS)


def verify_feed(feed: Feed, fetcher: Fetcher, writer: updates.Writer, repair_ms: int) -> Verdict:
    """Compare a feed's value in Redis with the exchange; with a time to ``repair_ms``, write what that has.

    What fails ends with this feed, as the verdict's failure. Raises Stopped.
    """
    verdict, truth = Verdict(), None
    try:
        writer.restore(feed, any_prices=True)  # the exchange says whether they are its own
        if feed.series:
            truth = true_window(feed, feed.series, fetcher)
            verdict = Verdict(len(truth.candles), truth.differences(feed))
        else:
            verdict = Verdict(problem="no sound value in Redis")
        for _ in range(REPAIRS if repair_ms and (verdict.found or verdict.problem) else 0):
            if feed.series and truth:
                feed.corrected(truth.differences(feed), repair_ms)
            else:
                for page in fetcher.pages(feed, None, False):
                    feed.fetched(page, page.answer.candles, None, repair_ms)
            writer.write(feed)
            writer.restore(feed, any_prices=True)  # what is there, whoever has written it
            if feed.series and not (truth and truth.differences(feed)):
                return verdict
        wrong = repair_ms and (verdict.found or verdict.problem)
        return verdict._replace(failure="not repaired: Redis has another value by now") if wrong else verdict
    except Stopped:
        raise
    except TetError as error:
        what = "not repaired" if verdict.found or verdict.problem else "not compared"
        return verdict._replace(failure=f"{what}: {error}")
