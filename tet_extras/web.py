"""Serves the page, /api, /health and /metrics over HTTP, for HTTP_ADDR. What it answers is in `answers`.

``/health`` is 200 when the service lives and its data is fresh, else 503, with the reasons as JSON;
``/health/live`` and ``/health/ready`` are each half of it. ``/metrics`` is for Prometheus. A client is
served on a thread of its own, no more than `MAX_CLIENTS` at a time: it must have asked within
`CLIENT_SECONDS`, and taken the answer within `SEND_SECONDS`. Those who follow /events are counted apart.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import unquote

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from .addresses import host_and_port, is_loopback
from .answers import Request, Response, Site, Sources
from .news import News
from .pairs import Table

CLIENT_SECONDS = 5.0
SEND_SECONDS = 30.0
ROOM_SECONDS = 0.5  # for which a client waits when there are too many; then it is turned away
MAX_CLIENTS = 32
MAX_VIEWERS = 128

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
    """The HTTP server. What is in ``sources`` is called from its threads."""

    def __init__(self, address: tuple[str, int], token: str | None, sources: Sources) -> None:
        self._address = address
        self._sources = sources
        self._table = Table(sources.shown, sources.candles_of, sources.failed)
        on_loopback = is_loopback(address[0])
        self._site = Site(
            sources, self._table, token, on_loopback, self._exposition, lambda: self._news.follow()
        )
        self._news = News(self._table, self._site.status_now)
        self.port = 0
        self._server: _Server | None = None
        self._registry = registry = prometheus.CollectorRegistry()
        registry.register(self)
        prometheus.ProcessCollector(registry=registry)
        self._histograms = {
            name: prometheus.Histogram(metric, text, buckets=buckets, registry=registry)
            for name, (metric, text, buckets) in HISTOGRAMS.items()
        }

    def start(self) -> None:
        """Listen, on a thread of its own. Raises OSError when it cannot bind."""
        version = f"tet-data-service/{self._sources.status()['version']}"
        self._server = _Server(self._address, self._site, version)
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        """Listen no more, and tell nobody anything more."""
        self._news.stop()
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def observe(self, name: str, seconds: float) -> None:
        """Add to one of the histograms."""
        self._histograms[name].observe(seconds)

    def written(self, announcement: Mapping[str, object]) -> None:  # noqa: ARG002 (the table sees what it is)
        """Hear of a write; costs little, since it is on a worker's way."""
        self._news.wake()

    def _exposition(self, accepted: str) -> tuple[str, bytes]:
        """The metrics in the format that a client prefers, and its type."""
        encode, kind = choose_encoder(accepted)
        return kind, encode(self._registry)

    def collect(self) -> Iterator[Any]:
        """The metrics that are read at a scrape; prometheus_client calls this."""
        status, health = self._sources.status(), self._sources.health()
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
        if self._sources.ages:
            text, labels = "Time since the last good update.", ["symbol", "timeframe"]
            ages = GaugeMetricFamily("tet_symbol_data_age_seconds", text, labels=labels)
            for symbol, timeframe, age in self._sources.ages():
                ages.add_metric([symbol, timeframe], age)
            yield ages


@contextmanager
def serving(
    address: tuple[str, int], token: str | None, sources: Sources, failed: type[Exception]
) -> Iterator[WebServer]:
    """Serve for as long as the block lasts. Raises ``failed`` when the address cannot be bound."""
    server = WebServer(address, token, sources)
    try:
        server.start()
    except OSError as error:
        raise failed(f"cannot bind HTTP_ADDR {host_and_port(*address)}: {error.strerror}") from error
    try:
        yield server
    finally:
        server.stop()


class _Server(ThreadingMixIn, TCPServer):
    """A thread for each client. When there are too many, one waits a little, then is turned away.

    The thread that accepts them also cuts off who is too slow: a client that drips its request a byte at a
    time never meets the socket's time-out. `_deadlines` has each client's, monotonic, by its socket.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], site: Site, version: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.site = site
        self.version = version
        self._room = threading.BoundedSemaphore(MAX_CLIENTS)
        self._viewers = threading.BoundedSemaphore(MAX_VIEWERS)
        self._deadlines: dict[Any, float] = {}
        self._leave = threading.local()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a client, if there is room."""
        if self._room.acquire(timeout=ROOM_SECONDS):
            self._deadlines[request] = time.monotonic() + CLIENT_SECONDS
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a client, on its thread."""
        self._leave.room = self._room.release
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._deadlines.pop(request, None)
            self._leave.room()

    def asked(self, request: Any) -> None:
        """The client has asked; now it has its time to take the answer."""
        self._deadlines[request] = time.monotonic() + SEND_SECONDS
        request.settimeout(SEND_SECONDS)

    def follows(self, request: Any) -> bool:
        """Count the client among those that follow /events, for as long as it likes. False: too many do."""
        if not self._viewers.acquire(blocking=False):
            return False
        self._leave.room()
        self._leave.room = self._viewers.release
        self._deadlines.pop(request, None)
        request.settimeout(CLIENT_SECONDS)  # for each event
        return True

    def service_actions(self) -> None:
        """Cut off the clients whose time is up; the server's loop calls this twice a second."""
        for request, deadline in list(self._deadlines.items()):
            if time.monotonic() > deadline:
                self._deadlines.pop(request, None)
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    """One request of a client, and its answer."""

    server: _Server
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Take no longer for a request than a client may."""
        self.request.settimeout(CLIENT_SECONDS)
        super().setup()

    def do_GET(self) -> None:
        """Answer; also what is refused."""
        target = self.path if self.path.startswith("/") else f"/{self.path}"
        path, _, query = target.partition("?")
        headers = {name.lower(): text for name, text in self.headers.items()}
        self.server.asked(self.connection)
        try:
            response = self.server.site.answer(Request(self.command, unquote(path), query, headers))
        except Exception:
            logging.getLogger("tet").exception("internal error")
            response = Response(500, body=b"internal error; see the log\n")
        if response.events and not self.server.follows(self.connection):
            response = Response(503, (("Retry-After", "30"),), b"too many follow /events\n")
        self._send(response)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815 (http.server's)

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, text in response.headers:
            self.send_header(name, text)
        if response.events is None:
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD" and response.status != 304:
            self.wfile.write(response.body)
            for event in response.events or ():
                self.wfile.write(event)

    def version_string(self) -> str:
        """What the Server header says."""
        return self.server.version

    def log_message(self, format: str, *args: object) -> None:
        """Who asks is no news; and an address may hold a token."""
