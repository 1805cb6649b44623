"""The metrics that /metrics gives Prometheus: what each is, and from where its value comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from tet_core.snapshot import Snapshot

from .answers import Content, Sources, accepts

OPENMETRICS = "application/openmetrics-text"

#: What happens to candles, each a counter of the status.
CANDLES = ("received", "closed", "audited", "corrected")

#: Histograms by what is observed: the metric, its help and its buckets in seconds.
HISTOGRAMS = {
    "request": (
        "tet_request_duration_seconds",
        "Time a request to Binance took.",
        (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    ),
    "cycle": (
        "tet_cycle_duration_seconds",
        "Time an update cycle took.",
        (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    ),
    "candle_delay": (
        "tet_candle_delay_seconds",
        "Time from a candle's close to its being in Redis.",
        (1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10, 15, 30, 60),
    ),
    "stream_delay": (
        "tet_stream_delay_seconds",
        "The same, of closes that were streamed.",
        (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 4, 10),
    ),
}


def seconds(text: str | None) -> float | None:
    """A time of the status as seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp() if text else None


def pause_left(status: Snapshot) -> float:
    """Seconds that a pause lasts from when the status was made; 0 when there is none."""
    return max(0.0, (seconds(status.paused_until) or 0.0) - (seconds(status.written) or 0.0))


#: Gauges: the metric, its help, and its value from the status; None is left out.
GAUGES: tuple[tuple[str, str, Callable[[Snapshot], float | None]], ...] = (
    ("tet_active_symbols", "Symbols that are kept fresh.", lambda s: s.active_symbols),
    ("tet_invalid_symbols", "Symbols that are invalid.", lambda s: len(s.invalid_symbols)),
    ("tet_failing_updates", "Feeds whose last update failed.", lambda s: len(s.failed_symbols)),
    ("tet_unsaved_updates", "Feeds that are buffered.", lambda s: s.unsaved),
    ("tet_update_interval_seconds", "Interval in force.", lambda s: s.update_interval_seconds),
    ("tet_oldest_data_age_seconds", "Longest time since a good update.", lambda s: s.data_freshness_max),
    ("tet_completeness_min_ratio", "Lowest data_completeness.", lambda s: s.completeness_min),
    ("tet_used_weight", "Request weight used in this minute.", lambda s: s.used_weight),
    ("tet_weight_limit", "Request weight allowed in a minute.", lambda s: s.weight_limit),
    ("tet_pause_seconds", "What is left of a pause.", pause_left),
    ("tet_clock_skew_seconds", "Local clock minus exchange time.", lambda s: s.clock_skew_ms / 1e3),
    ("tet_memory_bytes", "Resident memory.", lambda s: s.memory_mb and s.memory_mb * 1e6),
    ("tet_threads", "Threads alive.", lambda s: threading.active_count()),
    ("tet_uptime_seconds", "Time since the start.", lambda s: s.uptime_seconds),
    (
        "tet_stream_connections",
        "Open connections to streams.",
        lambda s: s.live.connections if s.live else None,
    ),
    ("tet_streams", "Streams subscribed to.", lambda s: s.live.streams if s.live else None),
    (
        "tet_stream_message_age_seconds",
        "Since data came last.",
        lambda s: s.live.last_message_age_seconds if s.live else None,
    ),
    (
        "tet_stream_closes_proven_ratio",
        "Share of streams' closes that REST has repeated.",
        lambda s: s.stream_closes_proven_share,
    ),
    ("tet_stream_queue", "Messages waiting.", lambda s: s.live.queue if s.live else None),
    (
        "tet_last_cycle_timestamp_seconds",
        "When the least recently tried feed was tried.",
        lambda s: seconds(s.last_full_scan),
    ),
)

#: Counters: the metric, its help, its label, and from the status the counts by label value.
COUNTERS: tuple[tuple[str, str, str, Callable[[Snapshot], Mapping[str, float]]], ...] = (
    (
        "tet_updates_total",
        "Updates.",
        "outcome",
        lambda s: {"written": s.updates_written, "failed": s.updates_failed},
    ),
    ("tet_requests_total", "Requests to Binance.", "status", lambda s: s.requests_by_status),
    ("tet_request_errors_total", "Failed attempts.", "kind", lambda s: s.request_errors),
    (
        "tet_candles_total",
        "Candles received, closed, audited, and corrected after they had closed.",
        "outcome",
        lambda s: {name: getattr(s, f"candles_{name}") for name in CANDLES},
    ),
    (
        "tet_stream_messages_total",
        "Messages of streams.",
        "outcome",
        lambda s: s.live.messages_by_outcome if s.live else {},
    ),
    (
        "tet_stream_reconnects_total",
        "Connections to streams that were lost or renewed.",
        "reason",
        lambda s: s.live.reconnects if s.live else {},
    ),
)


class Exposition:
    """The metrics. What is in ``sources`` is called at each scrape; any thread may observe."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._registry = registry = prometheus.CollectorRegistry()
        registry.register(self)
        prometheus.ProcessCollector(registry=registry)
        self._histograms = {
            name: prometheus.Histogram(metric, text, buckets=buckets, registry=registry)
            for name, (metric, text, buckets) in HISTOGRAMS.items()
        }

    def observe(self, name: str, seconds: float) -> None:
        """Add to one of the histograms."""
        self._histograms[name].observe(seconds)

    def content(self, accepted: str) -> Content:
        """The metrics in the format that a client prefers.

        `choose_encoder` never sees what the client wrote: it raises at some, and repeats some in the type.
        """
        encode, kind = choose_encoder(OPENMETRICS if accepts(accepted, OPENMETRICS) else "")
        return Content(kind, encode(self._registry))

    def collect(self) -> Iterator[Any]:
        """The metrics that are read at a scrape; prometheus_client calls this."""
        status, health = self._sources.status(), self._sources.health()
        yield GaugeMetricFamily("tet_live", "Whether the main loop lives.", float(health.live))
        yield GaugeMetricFamily("tet_ready", "Whether all data is fresh.", float(health.ready))
        for name, text, read in GAUGES:
            if (value := read(status)) is not None:
                yield GaugeMetricFamily(name, text, value)
        for name, text, label, counts in COUNTERS:
            counter = CounterMetricFamily(name, text, labels=[label])
            for key, count in counts(status).items():
                counter.add_metric([key], count)
            yield counter
        build = GaugeMetricFamily("tet_build_info", "The version that runs.", labels=["version"])
        build.add_metric([status.version], 1)
        yield build
        feeds = GaugeMetricFamily("tet_feeds", "Feeds by who keeps them fresh.", labels=["link"])
        for link, count in vars(status.live.feeds).items() if status.live else ():
            feeds.add_metric([link], count)
        yield feeds
        if self._sources.showing.settings.metrics_per_symbol:
            text, labels = "Time since the last good update.", ["symbol", "timeframe"]
            ages = GaugeMetricFamily("tet_symbol_data_age_seconds", text, labels=labels)
            for symbol, timeframe, age in self._sources.showing.ages():
                ages.add_metric([symbol, timeframe], age)
            yield ages
