"""What is answered at which address: a table of routes, and a function for each.

======================  ====================================================================================
``/``, ``/chart/…``     the page; its files under ``/page/``
``/events``             what changes, as server-sent events: ``rows`` of the table, ``status``, ``candles``
``/api/status``         the status object, with what /health says as ``health``
``/api/pairs``          the rows of the table
``/api/candles``        the candles of a pair, as JSON or CSV
``/api/events``         what happened lately, the newest first
``/health``, ``/metrics``  for monitoring
======================  ====================================================================================

``/health`` is 200 when the service lives and its data is fresh, else 503, with the reasons as JSON;
``/health/live`` and ``/health/ready`` are each half of it.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import OrderedDict
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from tet_core.errors import StoreError
from tet_core.pairs import plain_symbol
from tet_core.snapshot import Health, as_json
from tet_core.stored import Image

from .answers import (
    JSON,
    Asked,
    Content,
    Refused,
    Sources,
    candles_content,
    header_text,
    page_files,
    parse_candles_query,
    to_json,
)
from .closes import Closes, parse_feeds
from .guard import Bots, Guard
from .metrics import Exposition
from .news import News
from .pairs import Table

STATUS_SECONDS = 0.5  # so old may an answered status be: a hundred who ask are answered by one look
URGENT = "state paused_until waiting_for invalid_symbols failed_symbols unsaved members".split()
KEPT_BYTES = 8_000_000  # of answers with candles, made once for each write
KEPT_ANSWERS = 256
NO_SUCH_ADDRESS = "there is /, /api/status, /api/pairs, /api/candles, /api/events, /health, /metrics"


class Site:
    """Answers requests, on the event loop; what takes time, or waits for Redis, on a thread of a pool."""

    def __init__(self, sources: Sources, table: Table, metrics: Exposition) -> None:
        self._sources = sources
        self._table = table
        self._metrics = metrics
        self._closes = Closes(sources.showing.feeds)
        self.news = News(table, self.status_now, self._closes)
        self.files = page_files()
        self._making = asyncio.Lock()  # of candles, one answer at a time: each takes some MB meanwhile
        self._kept: OrderedDict[Asked, tuple[Any, Content]] = OrderedDict()
        self._pairs = (-1, Content(JSON, b"[]"))
        self._status, self._status_at_seconds = ("", b""), float("-inf")

    def application(self, token: str | None, on_loopback: bool, bots: Bots | None = None) -> Guard:
        """All of it, as what uvicorn serves."""
        routes: list[BaseRoute] = [
            Route("/", self.page),
            Route("/chart/{rest:path}", self.page),
            Route("/page/{name}", self.file),
            Route("/events", self.events),
            Route("/api/status", self.status),
            Route("/api/pairs", self.pairs),
            Route("/api/candles", self.candles),
            Route("/api/events", self.happened),
            Route("/health", self.health),
            Route("/health/live", self.health),
            Route("/health/ready", self.health),
            Route("/metrics", self.metrics),
        ]
        app = Starlette(routes=routes, exception_handlers={Refused: _refusal, 404: _unknown})
        app.router.redirect_slashes = False
        return Guard(app, token, on_loopback, self.files["locked.html"].body, bots)

    async def page(self, request: Request) -> Response:
        """The page; its script finds in the address what to show."""
        return self.files["index.html"].response(request)

    async def file(self, request: Request) -> Response:
        """A file of the page. StaticFiles serves a folder only, and in the zipapp there is none."""
        name = request.path_params["name"]
        if name not in self.files:
            raise Refused(404, "there is no such file")
        return self.files[name].response(request)

    async def health(self, request: Request) -> Response:
        """200 when all is well, or the half that was asked for is; else 503. Strangers get nothing more."""
        health = self._sources.health()
        halves = {"/health/live": health.live, "/health/ready": health.ready}
        good = halves.get(request.scope["path"], health.live and health.ready)
        if not request.scope["has_token"]:
            health = Health(health.live, health.ready, [])
        return Response(to_json(as_json(health)), 200 if good else 503, media_type=JSON)

    def metrics(self, request: Request) -> Response:
        """What Prometheus asks for."""
        return self._metrics.content(header_text(request.headers, "accept")).response(request)

    async def events(self, request: Request) -> Response:
        """News, until the client goes away or the service stops."""
        headers = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(None, 200, headers)
        if not self.news.has_room:
            raise Refused(503, "too many follow /events", Retry_After="30")
        if not (text := request.query_params.get("candles", "")):
            return StreamingResponse(self.news.follow(), 200, headers)
        feeds = parse_feeds(text, self._sources.showing.timeframes())
        await run_in_threadpool(self._closes.begin, feeds)
        return StreamingResponse(self.news.follow(feeds), 200, headers)

    async def status(self, request: Request) -> Response:
        """The status object, and what /health says."""
        return Content(JSON, self.status_now()[1]).response(request)

    def status_now(self) -> tuple[str, bytes]:
        """What of the status is worth sending at once, and all as JSON; as old as STATUS_SECONDS at most."""
        if time.monotonic() - self._status_at_seconds >= STATUS_SECONDS:
            status, health = self._sources.status(), self._sources.health()
            links = status.live.feeds if status.live else None
            urgent = repr(as_json([links, health, *(getattr(status, name) for name in URGENT)]))
            whole = to_json({**as_json(status), "health": as_json(health)})
            self._status, self._status_at_seconds = (urgent, whole), time.monotonic()
        return self._status

    def pairs(self, request: Request) -> Response:
        """The rows of the table, made into an answer once for each change."""
        version, rows = self._table.since(0)
        kept_version, content = self._pairs
        if version != kept_version:
            content = Content(JSON, rows.encode())
            self._pairs = version, content
        return content.response(request)

    async def happened(self, request: Request) -> Response:
        """What happened lately."""
        return Content(JSON, to_json(self._sources.happened())).response(request)

    async def candles(self, request: Request) -> Response:
        """The candles of a pair, made into an answer once for each write."""
        asked = parse_candles_query(request.query_params.multi_items(), self._sources.showing.timeframes())
        async with self._making:
            return await run_in_threadpool(lambda: self._candles(asked).response(request))

    def _candles(self, asked: Asked) -> Content:
        images = {symbol: self._image(symbol, asked.timeframe) for symbol in asked.symbols}
        # By what it is, not as it was written: what is kept does not grow with a client's fancy.
        most = max(image.end - image.start if image else 0 for image in images.values())
        asked = asked._replace(limit=min(asked.limit, most))
        if len(images) == 1:
            asked = asked._replace(symbols=tuple(map(plain_symbol, asked.symbols)))
        # by reference, which keeps no old candles in memory
        made_of = [weakref.ref(image.series) if image else None for image in images.values()]
        kept = self._kept.get(asked)
        if kept is None or any(each is not now for each, now in zip(kept[0], made_of, strict=True)):
            kept = made_of, candles_content(images, asked)
            self._keep(asked, *kept)
        return kept[1]

    def _image(self, symbol: str, timeframe: str) -> Image | None:
        """A symbol's stored value. Raises Refused."""
        try:
            return self._sources.showing.candles_of(symbol, timeframe)
        except LookupError:
            raise Refused(404, f"{symbol!r:.60} is not kept here; /api/pairs has what is") from None
        except StoreError as error:
            raise Refused(503, str(error), Retry_After="5") from error

    def _keep(self, asked: Asked, made_of: object, content: Content) -> None:
        """Keep an answer, and drop the oldest ones beyond `KEPT_BYTES` and `KEPT_ANSWERS`."""
        self._kept.pop(asked, None)
        self._kept[asked] = (made_of, content)
        while len(self._kept) > KEPT_ANSWERS or self._kept_bytes() > KEPT_BYTES:
            self._kept.popitem(last=False)

    def _kept_bytes(self) -> int:
        return sum(content.size for _, content in self._kept.values())


async def _refusal(_: Request, refused: Exception) -> Response:
    if not isinstance(refused, Refused):
        raise TypeError(refused)
    return refused.response()


async def _unknown(_: Request, __: Exception) -> Response:
    return Refused(404, NO_SUCH_ADDRESS).response()
