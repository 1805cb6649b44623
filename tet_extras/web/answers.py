"""What is answered over HTTP: bodies with their types and tags. Here is no socket and no thread."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from importlib import resources
from typing import Any, NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tet_core.candles import ALL, OHLCV, rows_of
from tet_core.snapshot import Health, Snapshot
from tet_core.stored import Image
from tet_core.times import iso_time

from .showing import Showing

HTML, TEXT, JSON, CSV = "text/html", "text/plain", "application/json", "text/csv"
NDJSON = "application/x-ndjson"
FORMATS = ("json", "csv", "ndjson")
FILE_KINDS = {".html": HTML, ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
DEFAULT_LIMIT = 500
MAX_LIMIT = 1_000_000
MOST_CANDLES = 150_000  # of several symbols in one answer: some 12 MB
GZIP_FROM_BYTES = 500
GZIP_LEVEL = 1  # a third of the CPU of 5, for a body of candles that is a tenth larger
PIECE_BYTES = 32_768  # of a body, sent at once


class Refused(Exception):
    """What was asked for is not given: an HTTP status, and a sentence that says why and what would help."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}

    def response(self, kind: str = TEXT, body: bytes | None = None) -> Response:
        """The sentence as an answer, or another body in its place."""
        found = f"{self}\n".encode(errors="replace") if body is None else body
        return Response(found, self.status, self.headers, media_type=kind)


@dataclass(frozen=True)
class Sources:
    """What is served; all is asked from the server's threads.

    ``status`` gives the figures of the status, ``health`` whether the service is live and ready, and the
    reasons where not; ``happened`` the last events, as the log has them.
    """

    status: Callable[[], Snapshot]
    health: Callable[[], Health]
    showing: Showing
    happened: Callable[[], Sequence[Mapping[str, Any]]] = tuple


class Pieces(Response):
    """An answer that is sent in pieces, as the client takes them: it is held once, however many take it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; its connection, which is in ``scope``, bounds how long that may take."""
        whole = memoryview(self.body)
        if len(whole) <= PIECE_BYTES or scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with scope["connection"].taking(self.body):
            for start in range(0, len(whole), PIECE_BYTES):
                end = start + PIECE_BYTES
                piece = {"body": whole[start:end], "more_body": end < len(whole)}
                await send({"type": "http.response.body", **piece})


@dataclass(frozen=True)
class Content:
    """A body with its type and tag; compressed once, when somebody takes it so.

    Starlette's GZipMiddleware would compress it for each client again, and takes ``gzip;q=0`` for a yes.
    """

    kind: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def tag(self) -> str:
        """The ETag, weak since the compressed body has the same."""
        return f'W/"{hashlib.sha256(self.body).hexdigest()[:20]}"'

    @property
    def size(self) -> int:
        """Its bytes in memory, both ways."""
        return len(self.body) + len(self.__dict__.get("compressed", b""))

    @cached_property
    def compressed(self) -> bytes:
        """The body for those who take gzip."""
        return gzip.compress(self.body, GZIP_LEVEL, mtime=0)

    def response(self, request: Request) -> Response:
        """The whole answer, or 304 for a client that has it."""
        headers = {"ETag": self.tag, "Vary": "Accept-Encoding", **self.headers}
        tags = header_text(request.headers, "if-none-match").split(",")
        known = {tag.strip().removeprefix("W/") for tag in tags}
        if not known.isdisjoint((self.tag.removeprefix("W/"), "*")):  # weakly: RFC 9110, 13.1.2
            return Response(None, 304, headers)
        body = self.body
        if len(body) >= GZIP_FROM_BYTES and accepts(header_text(request.headers, "accept-encoding"), "gzip"):
            body, headers = self.compressed, {**headers, "Content-Encoding": "gzip"}
        return Pieces(body, headers=headers, media_type=self.kind)


def header_text(headers: Headers, name: str) -> str:
    """A header's text; of one that is given several times the texts are a list (RFC 9110, 5.3)."""
    return ", ".join(headers.getlist(name))


def accepts(header: str, name: str) -> bool:
    """Whether an Accept or Accept-Encoding has that name, or ``*``, with a weight above 0."""
    found: dict[str, bool] = {}
    for entry in header.lower().split(","):
        which, *parameters = (part.strip() for part in entry.split(";"))
        weights = (text.removeprefix("q=").strip() for text in parameters if text.startswith("q="))
        found[which] = next(weights, "1").strip("0.") != ""
    return found.get(name, found.get("*", False))


def to_json(found: object) -> bytes:
    """Compact JSON."""
    return json.dumps(found, separators=(",", ":")).encode()


def page_files() -> dict[str, Content]:
    """The page's files by name, from wherever this package is: a folder, the zipapp, the binary."""
    folder = resources.files("tet_extras") / "page"
    files = [entry for entry in folder.iterdir() if "." in entry.name]
    return {
        entry.name: Content(FILE_KINDS[f".{entry.name.rpartition('.')[2]}"], entry.read_bytes())
        for entry in files
    }


# Candles


class Asked(NamedTuple):
    """What /api/candles was asked for: candles that open from ``start_ms`` to ``end_ms``, both included.

    With a start the first ones from there, else the newest, ``limit`` of them for each symbol.
    """

    symbols: tuple[str, ...]
    timeframe: str
    limit: int
    closed: bool
    format: str
    start_ms: int | None
    end_ms: int | None


def parse_candles_query(query: Iterable[tuple[str, str]], kept: Sequence[str]) -> Asked:
    """What the query's parameters ask for; ``kept`` are the timeframes that there are. Raises Refused."""
    allowed = {
        "symbol": "",
        "timeframe": "",
        "limit": str(DEFAULT_LIMIT),
        "closed": "false",
        "format": "json",
        "startTime": "",
        "endTime": "",
    }
    given: dict[str, str] = {}
    for name, text in query:
        if name not in allowed:
            raise Refused(400, f"there is no parameter {name!r:.40}; there are {', '.join(allowed)}")
        if name in given:
            raise Refused(400, f"{name} is given twice")
        given[name] = text
    values = allowed | given
    symbols = tuple(dict.fromkeys(values["symbol"].upper().split(",")))
    if not all(symbols):
        raise Refused(400, "symbol is missing, such as symbol=BTC/USDT")
    if (timeframe := values["timeframe"] or kept[0]) not in kept:
        raise Refused(400, f"timeframe cannot be {timeframe!r:.40}; kept are {', '.join(kept)}")
    if not re.fullmatch("[1-9][0-9]{0,6}", values["limit"]) or int(values["limit"]) > MAX_LIMIT:
        raise Refused(400, f"limit cannot be {values['limit']!r:.40}; allowed is 1 to {MAX_LIMIT}")
    limit = int(values["limit"])
    if len(symbols) > 1 and len(symbols) * limit > MOST_CANDLES:
        most = MOST_CANDLES // len(symbols)
        raise Refused(400, f"{len(symbols)} symbols times limit are too many candles; limit may be {most}")
    for name, choices in (("closed", ("true", "false")), ("format", FORMATS)):
        if values[name] not in choices:
            raise Refused(400, f"{name} cannot be {values[name]!r:.40}; allowed is {' or '.join(choices)}")
    times = [_time_asked(name, values[name]) for name in ("startTime", "endTime")]
    return Asked(symbols, timeframe, limit, values["closed"] == "true", values["format"], *times)


def _time_asked(name: str, text: str) -> int | None:
    """A time in ms since the epoch, or RFC 3339; None where none is given. Raises Refused."""
    if re.fullmatch("[0-9]{1,15}", text):
        return int(text)
    try:
        moment = datetime.fromisoformat(text) if text else None
        if moment is not None and (moment.tzinfo is None or len(text) < len("2026-01-15T12:00Z")):
            raise ValueError(text)
    except ValueError:
        example = "1768478400000 or 2026-01-15T12:00:00Z"
        raise Refused(400, f"{name} cannot be {text!r:.40}; allowed is a time such as {example}") from None
    return round(moment.timestamp() * 1000) if moment else None


def candle_rows(
    image: Image, limit: int, closed: bool, start_ms: int | None = None, end_ms: int | None = None
) -> list[list[str]]:
    """The candles of a stored value, as `Asked` has it, oldest first: time, open and so on, all text."""
    series, start, end = image.series, image.start, image.end
    if closed:
        end = min(end, series.index(series.closed_end_ms))
    if end_ms is not None:
        end = min(end, series.index(end_ms + 1))
    if start_ms is None:
        start = max(start, end - limit)
    else:
        start = max(start, series.index(start_ms))
        end = min(end, start + limit)
    return rows_of(series.joined(start, end).decode()) if start < end else []


def candles_content(images: Mapping[str, Image | None], asked: Asked) -> Content:
    """The answer: rows by symbol; a header says where the closed candles end, of several the earliest."""
    how = (asked.limit, asked.closed, asked.start_ms, asked.end_ms)
    rows = {name: candle_rows(image, *how) if image else [] for name, image in images.items()}
    ends = [image.series.closed_end_ms for image in images.values() if image]
    headers = {"X-Data-End": iso_time(min(ends))} if ends else {}
    several = len(images) > 1
    if asked.format == "json":
        return Content(JSON, to_json(rows if several else next(iter(rows.values()))), headers)
    first = next((each[0] for each in rows.values() if each), ())
    names = ALL.names[: len(first) - 1] if first else OHLCV.names
    columns = [*(["symbol"] if several else []), "time", *names]
    lines = [[name, *row] if several else row for name, each in rows.items() for row in each]
    if asked.format == "ndjson":
        body = b"".join(to_json(dict(zip(columns, line, strict=True))) + b"\n" for line in lines)
        return Content(NDJSON, body, headers)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([columns, *lines])
    return Content(CSV, text.getvalue().encode(), headers)
