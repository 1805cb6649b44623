"""The status: the service's figures, and how they are shown in Redis, in the log, and by /health."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tet_core.errors import say, some_of
from tet_core.feeds import Feed
from tet_core.intervals import Interval
from tet_core.proofs import proven_figures
from tet_core.protocols import Clock, Gate
from tet_core.snapshot import (
    DataFigures,
    DelaysBySource,
    EvidenceFigures,
    ExchangeFigures,
    Filling,
    Health,
    LiveFigures,
    Snapshot,
    StreamFigures,
    UpdateFigures,
)
from tet_core.times import SECOND_MS, Timeframe, iso_or_none, iso_time
from tet_core.watchlist import Watchlist

from . import memory_store
from .counts import MAX_REASONS, Counts, Progress
from .figures import Tally, percentiles, resident_mb
from .filling import progress_of
from .notices import Notices
from .reload import Reload

HEARTBEAT_SECONDS = 60.0  # the main loop ticks every second


class Settings(Protocol):
    """The settings that the status shows, or judges by."""

    @property
    def binance_market(self) -> str:
        """Spot, or usdm."""

    @property
    def timeframe(self) -> tuple[Timeframe, ...]:
        """All timeframes."""

    @property
    def status_ttl(self) -> int:
        """Seconds."""

    @property
    def max_data_age(self) -> int:
        """Seconds."""

    @property
    def max_update_time(self) -> int:
        """Seconds that a cycle may take."""

    @property
    def max_failure_rate(self) -> float:
        """Share of updates that may fail."""


class Binance(Protocol):
    """What was asked of the exchange."""

    requests: Tally
    errors: Tally

    @property
    def gate(self) -> Gate:
        """What every request passes."""


class Outages(Protocol):
    """Which servers of Redis are away."""

    @property
    def reason(self) -> str:
        """Why one is away; empty when none is."""


class Store(Protocol):
    """How Redis is."""

    notices: Notices

    @property
    def outages(self) -> Outages:
        """Which servers are away."""


def report_failures(feeds: Iterable[Feed]) -> None:
    """A warning for each reason, however many feeds share it."""
    reasons: dict[str, list[str]] = {}
    for feed in feeds:
        if feed.error:
            reasons.setdefault(feed.failure, []).append(feed.name)
    for reason, names in list(reasons.items())[:MAX_REASONS]:
        say(
            logging.WARNING,
            "update failed",
            count=len(names),
            feeds=some_of(names),
            reason=reason,
        )
    if len(reasons) > MAX_REASONS:
        say(logging.WARNING, "update failed for more reasons", count=len(reasons) - MAX_REASONS)


def filling_of(feeds: Collection[Feed], cycles: int, now_ms: int) -> Filling | None:
    """How far the feeds are filled that never were; one whose fetch failed is not being filled."""
    waiting = sum(not (feed.updated_ms or feed.error) for feed in feeds)
    asked_ms = [] if cycles else [feed.asked_ms for feed in feeds if feed.asked_ms]
    return progress_of(len(feeds), waiting, asked_ms, now_ms)


MOST_FEEDS, MOST_GAPS = 200, 50  # of which gaps and proofs are shown, and gaps of each, the newest


def evidence_of(feeds: Sequence[Feed], now_ms: int) -> EvidenceFigures:
    """What feeds lack and why, and when REST has proven what; of so many that the status stays small."""
    with_gaps = {feed.name: feed for feed in feeds if feed.evidence.known_ms}
    gaps = {
        name: feed.evidence.gaps(series, feed.hours)[-MOST_GAPS:]
        for name, feed in list(with_gaps.items())[:MOST_FEEDS]
        if (series := feed.series)
    }
    oldest = [feed.evidence.window_ms for feed in feeds]
    closed = {feed.name: feed.closed_until_ms(now_ms) for feed in feeds}
    return EvidenceFigures(
        closed_until={name: iso_time(until_ms) for name, until_ms in closed.items() if until_ms},
        gaps=gaps,
        gaps_total=sum(len(feed.evidence.known_ms) for feed in feeds),
        proven={feed.name: feed.evidence.proven() for feed in feeds[:MOST_FEEDS]},
        oldest_window_proof=iso_or_none(min(oldest, default=0)),
    )


def freshness_of(feeds: Sequence[Feed], now_ms: int) -> DataFigures:
    """How old the data is: the status' part that readers look at first."""
    ages = [(now_ms - feed.updated_ms) / SECOND_MS for feed in feeds if feed.updated_ms]
    return DataFigures(
        data_freshness_avg=round(sum(ages) / len(ages), 1) if ages else None,
        data_freshness_max=round(max(ages), 1) if ages else None,
        never_updated=len(feeds) - len(ages),
        completeness_min=min((feed.completeness for feed in feeds if feed.updated_ms), default=None),
        unsaved=sum(feed.buffered for feed in feeds),
    )


@dataclass(eq=False)
class Status:
    """How the service is, as others see it: the status object, the log, /health. Any thread may ask.

    ``streams`` gives their figures, with LIVE. The exchange may be ``simulated``, as in the demo.
    """

    settings: Settings
    clock: Clock
    version: str
    counts: Counts
    progress: Progress
    binance: Binance
    store: Store
    watchlist: Watchlist
    interval: Interval
    streams: Callable[[], StreamFigures | None]
    simulated: bool = False
    reload: Reload | None = None  # what reads the settings again

    def __post_init__(self) -> None:
        self._started = self.clock.monotonic()

    def _warnings(self) -> Iterator[str]:
        """What the last cycle says against the configured bounds."""
        settings, counts = self.settings, self.counts
        updates = counts.last_written + counts.last_failed
        if counts.cycle_seconds > settings.max_update_time and counts.cycles > 1:
            seconds = round(counts.cycle_seconds, 1)
            yield f"a cycle took {seconds} s, more than MAX_UPDATE_TIME {settings.max_update_time} s"
        if updates and counts.last_failed / updates > settings.max_failure_rate:
            share = f"{counts.last_failed} of {updates} updates failed"
            yield f"{share}, more than MAX_FAILURE_RATE {settings.max_failure_rate:g}"

    # The log

    def report(self, done: Collection[Feed], regular: int, requests: int, *, planned: bool) -> None:
        """Log a line for a cycle, one for each reason of failure, and what is out of bounds."""
        report_failures(feed for feed in done if feed in self.watchlist)
        if not regular:
            say(logging.DEBUG, "asked again after a close", feeds=len(done), requests=requests)
            return
        gate, next_ms = self.binance.gate, self._next_cycle_ms()
        names, closes = ("stream", "rest") if self.streams() is not None else (), self.counts.recent_closes
        closes_by = {f"closes_by_{name}": n for name, n in zip(names, closes.take(*names), strict=True)}
        say(
            logging.INFO,
            "cycle",
            updated=self.counts.last_written,
            failed=self.counts.last_failed,
            seconds=round(self.counts.cycle_seconds, 2),
            requests=requests,
            **closes_by,
            weight=gate.used_weight(),
            weight_limit=gate.weight_limit,
            next=iso_time(next_ms) if next_ms and planned else "none",
        )
        for warning in self._warnings():
            say(logging.WARNING, warning)

    def report_once(self) -> bool:
        """Log what failed with ``--once``; returns whether all went well."""
        failed = [feed.name for feed in self.watchlist if feed.error]
        if not self.watchlist.pairs:
            say(logging.ERROR, "no symbol is left to update", invalid=", ".join(self.watchlist.invalid))
        elif failed:
            say(logging.ERROR, "not all updated", failed=", ".join(failed))
        return bool(self.watchlist.pairs) and not failed

    # The status object

    def snapshot(self) -> Snapshot:
        """All figures at this moment."""
        feeds, now_ms, memory = list(self.watchlist), self.clock.now_ms(), resident_mb()
        paused = self.progress.state == "running" and self.binance.gate.pause_left_seconds() > 0
        return Snapshot(
            **vars(self._exchange()),
            **vars(proven_figures([(feed.closes, feed.timeframe) for feed in feeds], now_ms)),
            **vars(evidence_of(feeds, now_ms)),
            **vars(freshness_of(feeds, now_ms)),
            **vars(self._updates(feeds, now_ms)),
            state="paused" if paused else self.progress.state,
            version=self.version,
            written=iso_time(now_ms),
            ttl_seconds=self.settings.status_ttl,
            uptime_seconds=round(self.clock.monotonic() - self._started),
            market=self.settings.binance_market,
            timeframes=[timeframe.name for timeframe in self.settings.timeframe],
            symbols=list(dict.fromkeys(feed.pair.name for feed in feeds)),
            active_symbols=len({feed.pair for feed in feeds}),
            invalid_symbols=dict(self.watchlist.invalid),
            failed_symbols={feed.name: feed.failure for feed in feeds if feed.error},
            waiting_for=self.progress.waiting_for or None,
            clock_skew_ms=round(self.progress.clock_offset_ms),
            warnings=[*self._warnings(), *self.store.notices.texts],
            memory_mb=round(memory, 1) if memory is not None else None,
            simulated=self.simulated,
            live=self._live(now_ms),
            filling=filling_of(feeds, self.counts.cycles, now_ms),
            settings=self.reload.outcome if self.reload else None,
            store=memory_store.note(),
        )

    def _updates(self, feeds: Sequence[Feed], now_ms: int) -> UpdateFigures:
        """What REST was asked for, and what came of it."""
        counts, candles, updates = self.counts, self.counts.candles.counts(), self.counts.updates.counts()
        return UpdateFigures(
            last_full_scan=iso_or_none(min((f.tried_ms for f in feeds if f.tried_ms), default=0)),
            successful_updates=counts.last_written,
            failed_updates=counts.last_failed,
            update_duration_seconds=round(counts.cycle_seconds, 3),
            update_interval_seconds=round(self.interval.seconds(now_ms), 1),
            update_interval_reason=self.interval.reason(now_ms),
            next_cycle=iso_or_none(self._next_cycle_ms()),
            cycles=counts.cycles,
            updates_written=updates.get("written", 0),
            updates_failed=updates.get("failed", 0),
            candles_received=candles.get("received", 0),
            candles_closed=candles.get("closed", 0),
            candles_corrected=candles.get("corrected", 0),
            candles_audited=candles.get("audited", 0),
            close_to_redis_seconds=percentiles(
                counts.stream_delays.counts(now_ms) + counts.rest_delays.counts(now_ms)
            ),
        )

    def _live(self, now_ms: int) -> LiveFigures | None:
        """How the streams are; None without LIVE."""
        if (figures := self.streams()) is None:
            return None
        both = self.counts.stream_delays, self.counts.rest_delays
        stream, rest = (percentiles(delays.counts(now_ms)) for delays in both)
        closes = stream.closes + rest.closes
        return LiveFigures(
            **vars(figures),
            messages_by_outcome=self.counts.messages.counts(),
            close_to_redis_by_source=DelaysBySource(stream, rest),
            closes_by_stream_share=round(stream.closes / closes, 4) if closes else None,
        )

    def _next_cycle_ms(self) -> int:
        """When the next feed is due by its interval or a close, to the second; now where that is over."""
        due_ms = min((f.freshness.regular_ms for f in self.watchlist if f.freshness.regular_ms), default=0)
        return -(-max(due_ms, self.clock.now_ms()) // SECOND_MS) * SECOND_MS if due_ms else 0

    def _exchange(self) -> ExchangeFigures:
        """What was asked of the exchange, and its limits."""
        gate, binance = self.binance.gate, self.binance
        return ExchangeFigures(
            paused_until=iso_or_none(gate.paused_until_ms),
            pause_reason=gate.pause_reason or None,
            used_weight=gate.used_weight(),
            weight_limit=gate.weight_limit,
            requests=binance.requests.total(),
            requests_by_status=binance.requests.counts(),
            request_errors=binance.errors.counts(),
        )

    # /health and /metrics

    def health(self) -> Health:
        """Whether the main loop lives and the data is fresh, with the reasons where not: for /health."""
        settings, now_ms, feeds = self.settings, self.clock.now_ms(), list(self.watchlist)
        reasons = []
        silent_seconds = self.clock.monotonic() - self.progress.heartbeat_seconds
        if not (live := silent_seconds < HEARTBEAT_SECONDS):
            reasons.append(f"no heartbeat of the main loop for {silent_seconds:.0f} s")
        oldest_ms = now_ms - settings.max_data_age * SECOND_MS
        stale = [feed.name for feed in feeds if 0 < feed.updated_ms < oldest_ms]
        never = [feed.name for feed in feeds if not feed.updated_ms and feed.error]
        filling, unreachable = filling_of(feeds, self.counts.cycles, now_ms), self.store.outages.reason
        serious = self.store.notices.reasons
        ready = bool(self.watchlist.pairs) and not (stale or never or filling or unreachable or serious)
        if not ready:  # the causes first
            causes = (self.progress.waiting_for, unreachable, *serious, self.binance.gate.pause_reason)
            reasons += [text for i, text in enumerate(causes) if text and text not in " ".join(causes[:i])]
        named = {f"older than {settings.max_data_age} s": stale, "never fetched": never}
        reasons += [f"{w}: {len(n)} of {len(feeds)} ({some_of(n)})" for w, n in named.items() if n]
        reasons += [filling.words()] if filling else []
        if not feeds and not self.watchlist.pairs and not self.progress.waiting_for:
            reasons.append("no symbol to update")
        return Health(live, ready, reasons, self.streams())
