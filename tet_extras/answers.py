"""What is answered over HTTP: a request in, a response out. Here is no socket and no thread.

======================  ====================================================================================
``/``, ``/chart/…``     the page; its files under ``/page/``
``/events``             what changes, as server-sent events: ``rows`` of the table, and the ``status``
``/api/status``         the status object, with what /health says as ``health``
``/api/pairs``          the rows of the table
``/api/candles``        the candles of a pair, as JSON or CSV
``/health``, ``/metrics``  for monitoring
======================  ====================================================================================

All is read-only. Where there is a token, all but /health and the page's own files asks for it. Listening on
loopback, only names of this machine are answered to: else a web page could have its own name point here and
read what is served (DNS rebinding).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import hmac
import io
import json
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from .addresses import is_loopback
from .pairs import Table, iso_time

HTML, TEXT, JSON, CSV = "text/html", "text/plain", "application/json", "text/csv"
FILE_KINDS = {".html": HTML, ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SAFE = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-cache, private"),  # to be asked about each time, which an ETag makes cheap
)

REFUSAL = "this is not the token"
COOKIE = "tet_token"
COOKIE_SECONDS = 30 * 86_400
DEFAULT_LIMIT = 500
MAX_LIMIT = 1_000_000
STATUS_SECONDS = 0.5  # so old may an answered status be: a hundred who ask are answered by one look
GZIP_FROM_BYTES = 500
URGENT = "state paused_until waiting_for invalid_symbols failed_symbols unsaved members health".split()
KEPT_BYTES = 8_000_000  # of answers with candles, made once for each write

Status = Mapping[str, Any]


class Request(NamedTuple):
    """What is asked: the path decoded, the query as it stands, the headers' names in lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = {}


class Response(NamedTuple):
    """What is answered. ``events`` in place of a body: it goes on until the client or the service ends."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    events: Iterator[bytes] | None = None


class Refused(Exception):
    """What was asked for is not given: an HTTP status, and a sentence that says why and what would help."""

    def __init__(self, status: int, sentence: str, *headers: tuple[str, str]) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


@dataclass(frozen=True)
class Sources:
    """What is served; all are called from the server's threads.

    ``status`` gives the object under tet:system:status, ``health`` whether the service is live and ready
    and the reasons where not; ``shown`` the feeds as the table shows them, which are kept in ``timeframes``;
    ``candles_of`` the stored value of a symbol in a timeframe, None where there is none yet: it raises
    LookupError for what is not kept, and ``failed`` when it cannot be had now. ``ages``, if wanted, gives
    symbol, timeframe and age in seconds.
    """

    status: Callable[[], Status]
    health: Callable[[], Mapping[str, Any]]
    timeframes: tuple[str, ...]
    shown: Callable[[], Iterable[Any]]
    candles_of: Callable[[str, str], Any]
    ages: Callable[[], Iterable[tuple[str, str, float]]] | None
    failed: type[Exception]


@dataclass(frozen=True)
class Content:
    """A body with its type and tag; compressed once, when somebody takes it so."""

    kind: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    @cached_property
    def tag(self) -> str:
        """The ETag, weak since the compressed body has the same."""
        return f'W/"{hashlib.sha256(self.body).hexdigest()[:20]}"'

    @cached_property
    def compressed(self) -> bytes:
        """The body for those who take gzip."""
        return gzip.compress(self.body, 5, mtime=0)

    def response(self, request: Request) -> Response:
        """The whole answer, or 304 for a client that has it."""
        kind = self.kind if "json" in self.kind else f"{self.kind}; charset=utf-8"
        headers = (("ETag", self.tag), ("Vary", "Accept-Encoding"), *self.headers)
        known = request.headers.get("if-none-match", "")
        if self.tag in re.split(r"\s*,\s*", known.strip()):
            return Response(304, headers)
        body, headers = self.body, (*headers, ("Content-Type", kind))
        if len(body) >= GZIP_FROM_BYTES and _takes_gzip(request):
            body, headers = self.compressed, (*headers, ("Content-Encoding", "gzip"))
        return Response(200, headers, body)


def _takes_gzip(request: Request) -> bool:
    entries = request.headers.get("accept-encoding", "").lower().split(",")
    return any(re.fullmatch(r"\s*(gzip|\*)\s*(;\s*q=(1|0?\.[0-9]*[1-9]).*)?", entry) for entry in entries)


def to_json(found: object) -> bytes:
    """Compact JSON."""
    return json.dumps(found, separators=(",", ":")).encode()


def page_files() -> dict[str, Content]:
    """The page's files by name, from wherever this package is: a folder, the zipapp, the binary."""
    folder = resources.files(__package__) / "page"
    files = [entry for entry in folder.iterdir() if "." in entry.name]
    return {
        entry.name: Content(FILE_KINDS[f".{entry.name.rpartition('.')[2]}"], entry.read_bytes())
        for entry in files
    }


# Candles


class Asked(NamedTuple):
    """What /api/candles was asked for."""

    symbol: str
    timeframe: str
    limit: int
    closed: bool
    format: str


def parse_candles_query(query: str, kept: Sequence[str]) -> Asked:
    """What the query asks for; ``kept`` are the timeframes that there are. Raises Refused with 400."""
    allowed = {
        "symbol": "",
        "timeframe": "",
        "limit": str(DEFAULT_LIMIT),
        "closed": "false",
        "format": "json",
    }
    given: dict[str, str] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in allowed:
            raise Refused(400, f"there is no parameter {name!r:.40}; there are {', '.join(allowed)}")
        if name in given:
            raise Refused(400, f"{name} is given twice")
        given[name] = text
    values = allowed | given
    if not values["symbol"]:
        raise Refused(400, "symbol is missing, such as symbol=BTC/USDT")
    if (timeframe := values["timeframe"] or kept[0]) not in kept:
        raise Refused(400, f"timeframe cannot be {timeframe!r:.40}; kept are {', '.join(kept)}")
    if not re.fullmatch("[1-9][0-9]{0,6}", values["limit"]) or int(values["limit"]) > MAX_LIMIT:
        raise Refused(400, f"limit cannot be {values['limit']!r:.40}; allowed is 1 to {MAX_LIMIT}")
    for name, choices in (("closed", ("true", "false")), ("format", ("json", "csv"))):
        if values[name] not in choices:
            raise Refused(400, f"{name} cannot be {values[name]!r:.40}; allowed is {' or '.join(choices)}")
    closed = values["closed"] == "true"
    return Asked(values["symbol"].upper(), timeframe, int(values["limit"]), closed, values["format"])


def candle_rows(image: Any, limit: int, closed: bool) -> list[list[str]]:
    """The newest candles of a stored value, oldest first: time, open, high, low, close, volume, all text."""
    series, end = image.series, image.end
    if closed:
        end = min(end, series.index(series.closed_end_ms))
    start = max(image.start, end - limit)
    text = series.joined(start, end).decode().replace('\\"', '"')
    return [[at, *candle.values()] for at, candle in json.loads(f"{{{text}}}").items()]


def candles_content(image: Any, asked: Asked) -> Content:
    """The answer: the rows, and in headers when they were updated and where the closed ones end."""
    rows = candle_rows(image, asked.limit, asked.closed) if image else []
    headers: tuple[tuple[str, str], ...] = ()
    if image:
        headers = (("X-Data-End", iso_time(image.series.closed_end_ms)),)
    if asked.format == "json":
        return Content(JSON, to_json(rows), headers)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(
        [["time", "open", "high", "low", "close", "volume"], *rows]
    )
    return Content(CSV, text.getvalue().encode(), headers)


# The site


class Site:
    """Answers requests. Any thread may ask; `_lock` guards what is kept of answers.

    ``metrics`` gives the metrics and their type for what a client accepts, ``events`` the news from now on.
    """

    def __init__(
        self,
        sources: Sources,
        table: Table,
        token: str | None,
        on_loopback: bool,
        metrics: Callable[[str], tuple[str, bytes]],
        events: Callable[[], Iterator[bytes]],
    ) -> None:
        self._sources = sources
        self._table = table
        self._token = (token or "").encode()
        # The cookie is not the token itself: what listens on other ports of this machine sees cookies, too.
        self._cookie = hmac.new(self._token, b"cookie", hashlib.sha256).hexdigest()
        self._on_loopback = on_loopback
        self._metrics = metrics
        self._events = events
        self._files = page_files()
        self._lock = threading.Lock()
        self._kept: OrderedDict[Asked, tuple[Any, Content]] = OrderedDict()
        self._pairs = (-1, Content(JSON, b"[]"))
        self._status, self._status_at_seconds = ("", b""), float("-inf")

    def answer(self, request: Request) -> Response:
        """The response to any request."""
        try:
            response = self._admitted(request)
        except Refused as refused:
            kind, body = TEXT, f"{refused}\n".encode(errors="replace")
            if refused.status == 401 and HTML in request.headers.get("accept", ""):
                note = b'<p role="alert">This is not the token.</p>' if str(refused) == REFUSAL else b""
                kind, body = HTML, self._files["locked.html"].body.replace(b"<!--refusal-->", note)
            headers = (("Content-Type", f"{kind}; charset=utf-8"), *refused.headers)
            response = Response(refused.status, headers, body)
        return response._replace(headers=(*response.headers, *SAFE))

    def _admitted(self, request: Request) -> Response:
        """The response to a request that may be answered. Raises Refused for others."""
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, "only GET and HEAD are answered", ("Allow", "GET, HEAD"))
        self._check_host(request.headers.get("host"))
        route = request.path if request.path in ROUTES else f"/{request.path.split('/')[1]}/"
        has_token = self._check_token(request)
        if not has_token and route not in OPEN:
            raise self._locked("a token is needed: HTTP_TOKEN of the service's settings")
        if route not in ROUTES:
            raise Refused(404, "there is /, /api/status, /api/pairs, /api/candles, /health and /metrics")
        return ROUTES[route](self, request)

    # Who may ask

    def _check_host(self, host: str | None) -> None:
        if not self._on_loopback or host is None:
            return
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not is_loopback(name):
            raise Refused(403, "this name is not answered to; ask for 127.0.0.1 or localhost")

    def _check_token(self, request: Request) -> bool:
        """Whether the request carries the token, or none is needed. Sends ``?token=`` away, with a cookie."""
        if not self._token:
            return True
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        if "token" in query:
            if not self._is_token(query.pop("token")):
                raise self._locked(REFUSAL)
            location = quote(f"/{request.path.lstrip('/')}") + (f"?{urlencode(query)}" if query else "")
            cookie = f"{COOKIE}={self._cookie}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict"
            raise Refused(303, "", ("Location", location), ("Set-Cookie", cookie))
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        cookies = re.findall(rf"(?:^|;\s*){COOKIE}=([0-9a-f]+)", request.headers.get("cookie", ""))
        has_cookie = any(hmac.compare_digest(cookie, self._cookie) for cookie in cookies)
        return has_cookie or (scheme.lower() == "bearer" and self._is_token(given.strip()))

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._token)

    @staticmethod
    def _locked(sentence: str) -> Refused:
        return Refused(401, sentence, ("WWW-Authenticate", 'Bearer realm="tet-data-service"'))

    # What is answered

    def page(self, request: Request) -> Response:
        """The page; its script finds in the address what to show."""
        return self._files["index.html"].response(request)

    def file(self, request: Request) -> Response:
        """A file of the page."""
        name = request.path.removeprefix("/page/")
        if name not in self._files:
            raise Refused(404, "there is no such file")
        return self._files[name].response(request)

    def health(self, request: Request) -> Response:
        """200 when all is well, or the half that was asked for is; else 503. Strangers get no reasons."""
        health = dict(self._sources.health())
        halves = {"/health/live": health["live"], "/health/ready": health["ready"]}
        good = halves.get(request.path, health["live"] and health["ready"])
        if not self._check_token(request):
            health["reasons"] = []
        return Response(200 if good else 503, (("Content-Type", JSON),), to_json(health))

    def metrics(self, request: Request) -> Response:
        """What Prometheus asks for."""
        kind, body = self._metrics(request.headers.get("accept", ""))
        headers: tuple[tuple[str, str], ...] = (("Content-Type", kind),)
        if _takes_gzip(request):
            headers, body = (*headers, ("Content-Encoding", "gzip")), gzip.compress(body, 5)
        return Response(200, headers, body)

    def events(self, request: Request) -> Response:
        """News, until the client goes away or the service stops."""
        headers = (("Content-Type", "text/event-stream"), ("X-Accel-Buffering", "no"))
        return Response(200, headers, events=self._events() if request.method == "GET" else None)

    def status(self, request: Request) -> Response:
        """The status object, and what /health says."""
        return Content(JSON, self.status_now()[1]).response(request)

    def status_now(self) -> tuple[str, bytes]:
        """What of the status is worth telling at once, and all as JSON; as old as STATUS_SECONDS at most."""
        with self._lock:
            if time.monotonic() - self._status_at_seconds >= STATUS_SECONDS:
                status = {**self._sources.status(), "health": self._sources.health()}
                links = (status.get("live") or {}).get("feeds")
                urgent = repr([links, *(status.get(name) for name in URGENT)])
                self._status, self._status_at_seconds = (urgent, to_json(status)), time.monotonic()
            return self._status

    def pairs(self, request: Request) -> Response:
        """The rows of the table, made into an answer once for each change."""
        version, rows = self._table.since(0)
        kept_version, content = self._pairs
        if version != kept_version:
            content = Content(JSON, rows.encode())
            self._pairs = version, content
        return content.response(request)

    def candles(self, request: Request) -> Response:
        """The candles of a pair, made into an answer once for each write."""
        asked = parse_candles_query(request.query, self._sources.timeframes)
        try:
            image = self._sources.candles_of(asked.symbol, asked.timeframe)
        except LookupError:
            raise Refused(404, f"{asked.symbol!r:.60} is not kept here; /api/pairs has what is") from None
        except self._sources.failed as error:
            raise Refused(503, str(error), ("Retry-After", "5")) from error
        made_of = weakref.ref(image.series) if image else None  # which keeps no old candles in memory
        kept = self._kept.get(asked)
        if kept is None or kept[0] is not made_of:
            kept = made_of, candles_content(image, asked)
            self._keep(asked, *kept)
        return kept[1].response(request)

    def _keep(self, asked: Asked, made_of: object, content: Content) -> None:
        """Keep an answer, and drop the oldest ones beyond `KEPT_BYTES`."""
        with self._lock:
            self._kept.pop(asked, None)
            self._kept[asked] = (made_of, content)
            while sum(len(content.body) for _, content in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)


#: What is answered, by path; those that end in a slash have all that begin so.
ROUTES: Mapping[str, Callable[[Site, Request], Response]] = {
    "/": Site.page,
    "/chart/": Site.page,
    "/page/": Site.file,
    "/events": Site.events,
    "/api/status": Site.status,
    "/api/pairs": Site.pairs,
    "/api/candles": Site.candles,
    "/health": Site.health,
    "/health/live": Site.health,
    "/health/ready": Site.health,
    "/metrics": Site.metrics,
}
#: What needs no token: the page's files have nothing of ours in them, and probes get a status code.
OPEN = frozenset({"/page/", "/health", "/health/live", "/health/ready"})
