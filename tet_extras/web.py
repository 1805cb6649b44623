"""Serves /health and /metrics over HTTP, for HTTP_ADDR. It is handed callables.

``/health`` is 200 when the service lives and its data is fresh, else 503, with the reasons as JSON;
``/health/live`` and ``/health/ready`` are each half of it. ``/metrics`` is for Prometheus. A client is
served on a thread of its own, within `CLIENT_SECONDS`, and no more than `MAX_CLIENTS` at a time.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from .addresses import host_and_port

CLIENT_SECONDS = 5.0
MAX_CLIENTS = 16

Status = Mapping[str, Any]

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
        "The same, of closes that a stream has told.",
        (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 4, 10),
    ),
}


def seconds(text: str | None) -> float | None:
    """A time of the status as seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp() if text else None


def pause_left(status: Status) -> float:
    """Seconds that a pause lasts from when the status was made; 0 when there is none."""
    return max(0.0, (seconds(status["paused_until"]) or 0.0) - (seconds(status["written"]) or 0.0))


def live(status: Status, name: str) -> Any:
    """A figure of the streams; None without LIVE."""
    return (status.get("live") or {}).get(name)


#: Gauges: the metric, its help, and its value from the status; None is left out.
GAUGES: tuple[tuple[str, str, Callable[[Status], float | None]], ...] = (
    ("tet_active_symbols", "Symbols that are kept fresh.", lambda s: s["active_symbols"]),
    ("tet_invalid_symbols", "Symbols that are invalid.", lambda s: len(s["invalid_symbols"])),
    ("tet_failing_updates", "Feeds whose last update failed.", lambda s: len(s["failed_symbols"])),
    ("tet_unsaved_updates", "Feeds that are buffered.", lambda s: s["unsaved"]),
    ("tet_update_interval_seconds", "Interval in force.", lambda s: s["update_interval_seconds"]),
    ("tet_oldest_data_age_seconds", "Longest time since a good update.", lambda s: s["data_freshness_max"]),
    ("tet_completeness_min_ratio", "Lowest data_completeness.", lambda s: s["completeness_min"]),
    ("tet_used_weight", "Request weight used in this minute.", lambda s: s["used_weight"]),
    ("tet_weight_limit", "Request weight allowed in a minute.", lambda s: s["weight_limit"]),
    ("tet_pause_seconds", "What is left of a pause.", pause_left),
    ("tet_clock_skew_seconds", "Local clock minus exchange time.", lambda s: s["clock_skew_ms"] / 1e3),
    ("tet_memory_bytes", "Resident memory.", lambda s: s["memory_mb"] and s["memory_mb"] * 1e6),
    ("tet_threads", "Threads alive.", lambda s: threading.active_count()),
    ("tet_uptime_seconds", "Time since the start.", lambda s: s["uptime_seconds"]),
    ("tet_stream_connections", "Open connections to streams.", lambda s: live(s, "connections")),
    ("tet_streams", "Streams subscribed to.", lambda s: live(s, "streams")),
    (
        "tet_stream_message_age_seconds",
        "Since data came last.",
        lambda s: live(s, "last_message_age_seconds"),
    ),
    ("tet_stream_queue", "Messages waiting.", lambda s: live(s, "queue")),
    (
        "tet_last_cycle_timestamp_seconds",
        "When the least recently tried feed was tried.",
        lambda s: seconds(s["last_full_scan"]),
    ),
)

#: Counters: the metric, its help, its label, and from the status the counts by label value.
COUNTERS: tuple[tuple[str, str, str, Callable[[Status], Mapping[str, float]]], ...] = (
    (
        "tet_updates_total",
        "Updates.",
        "outcome",
        lambda s: {"written": s["updates_written"], "failed": s["updates_failed"]},
    ),
    ("tet_requests_total", "Requests to Binance.", "status", lambda s: s["requests_by_status"]),
    ("tet_request_errors_total", "Failed attempts.", "kind", lambda s: s["request_errors"]),
    (
        "tet_candles_total",
        "Candles received, closed, audited, and corrected after they had closed.",
        "outcome",
        lambda s: {name: s[f"candles_{name}"] for name in ("received", "closed", "audited", "corrected")},
    ),
    (
        "tet_stream_messages_total",
        "Messages of streams.",
        "outcome",
        lambda s: live(s, "messages_by_outcome") or {},
    ),
    (
        "tet_stream_reconnects_total",
        "Connections to streams that were lost or renewed.",
        "reason",
        lambda s: live(s, "reconnects") or {},
    ),
)


class WebServer:
    """The HTTP server. What it is handed is called at each request, from its threads.

    ``status`` gives the object under tet:system:status, ``health`` whether the service is live and ready
    and the reasons where not, and ``ages``, if wanted, symbol, timeframe and age in seconds of each feed.
    """

    def __init__(
        self,
        address: tuple[str, int],
        status: Callable[[], Status],
        health: Callable[[], Mapping[str, Any]],
        ages: Callable[[], Iterable[tuple[str, str, float]]] | None,
    ) -> None:
        self._address = address
        self._status = status
        self._health = health
        self._ages = ages
        self.port = 0
        self._server: WSGIServer | None = None
        registry = prometheus.CollectorRegistry()
        registry.register(self)
        prometheus.ProcessCollector(registry=registry)
        self._histograms = {
            name: prometheus.Histogram(metric, text, buckets=buckets, registry=registry)
            for name, (metric, text, buckets) in HISTOGRAMS.items()
        }
        self._metrics = prometheus.make_wsgi_app(registry)

    def start(self) -> None:
        """Listen, on a thread of its own. Raises OSError when it cannot bind."""
        self._server = _bounded_server(self._address, self._status()["version"])
        self._server.set_app(self._answer)
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()
        self.port = self._server.server_port

    def stop(self) -> None:
        """Listen no more."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def observe(self, name: str, seconds: float) -> None:
        """Add to one of the histograms."""
        self._histograms[name].observe(seconds)

    def collect(self) -> Iterator[Any]:
        """The metrics that are read at a scrape; prometheus_client calls this."""
        status, health = self._status(), self._health()
        yield GaugeMetricFamily("tet_live", "Whether the main loop lives.", float(health["live"]))
        yield GaugeMetricFamily("tet_ready", "Whether all data is fresh.", float(health["ready"]))
        for name, text, read in GAUGES:
            if (value := read(status)) is not None:
                yield GaugeMetricFamily(name, text, value)
        for name, text, label, counts in COUNTERS:
            counter = CounterMetricFamily(name, text, labels=[label])
            for key, count in counts(status).items():
                counter.add_metric([key], count)
            yield counter
        build = GaugeMetricFamily("tet_build_info", "The version that runs.", labels=["version"])
        build.add_metric([status["version"]], 1)
        yield build
        feeds = GaugeMetricFamily("tet_feeds", "Feeds by who keeps them fresh.", labels=["link"])
        for link, count in (live(status, "feeds") or {}).items():
            feeds.add_metric([link], count)
        yield feeds
        if self._ages:
            text, labels = "Time since the last good update.", ["symbol", "timeframe"]
            ages = GaugeMetricFamily("tet_symbol_data_age_seconds", text, labels=labels)
            for symbol, timeframe, age in self._ages():
                ages.add_metric([symbol, timeframe], age)
            yield ages

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The WSGI application."""
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            body = list(self._metrics(environ | {"REQUEST_METHOD": "GET"}, start_response))
        else:
            status, kind, text = self._respond(path)
            body = [text.encode()]
            start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body[0])))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else body

    def _respond(self, path: str) -> tuple[str, str, str]:
        """Status, content type and body for a path other than /metrics."""
        health = self._health()
        good = {
            "/health": health["live"] and health["ready"],
            "/health/live": health["live"],
            "/health/ready": health["ready"],
        }
        if path not in good:
            return "404 Not Found", "text/plain", "/health, /metrics\n"
        return "200 OK" if good[path] else "503 Service Unavailable", "application/json", json.dumps(health)


@contextmanager
def serving(
    address: tuple[str, int],
    status: Callable[[], Status],
    health: Callable[[], Mapping[str, Any]],
    ages: Callable[[], Iterable[tuple[str, str, float]]] | None,
    failed: type[Exception],
) -> Iterator[WebServer]:
    """Serve for as long as the block lasts. Raises ``failed`` when the address cannot be bound."""
    server = WebServer(address, status, health, ages)
    try:
        server.start()
    except OSError as error:
        raise failed(f"cannot bind HTTP_ADDR {host_and_port(*address)}: {error.strerror}") from error
    try:
        yield server
    finally:
        server.stop()


def _bounded_server(address: tuple[str, int], version: str) -> WSGIServer:
    """An HTTP server that turns clients away when it has so many, whatever those are doing."""
    room = threading.BoundedSemaphore(MAX_CLIENTS)

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET

        def process_request(self, request: Any, client_address: Any) -> None:
            if room.acquire(blocking=False):
                super().process_request(request, client_address)
            else:
                self.shutdown_request(request)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            # A client that drips its request a byte at a time never meets the socket's time-out.
            deadline = threading.Timer(CLIENT_SECONDS, self.shutdown_request, (request,))
            deadline.daemon = True
            deadline.start()
            try:
                super().process_request_thread(request, client_address)
            finally:
                deadline.cancel()
                room.release()

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away in the middle is no news."""

    class Handler(WSGIRequestHandler):
        timeout = CLIENT_SECONDS
        server_version = f"tet-data-service/{version}"
        sys_version = ""

        def log_message(self, format: str, *args: object) -> None:
            """Who scrapes is no news."""

    ServerHandler.server_software = f"tet-data-service/{version}"
    return Server(address, Handler)
