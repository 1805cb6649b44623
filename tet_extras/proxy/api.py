"""The exchange's own paths on our address, and answers in its own shape."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tet_extras.web.answers import JSON, Content, to_json

from .forwarding import Exchange, Forwarder
from .paths import Refusal, parse
from .window import Candles, Klines, Settings, Window

PREFIXES = ("/api/v1/", "/api/v3/", "/fapi/", "/dapi/", "/sapi/")
__all__ = ["BinanceApi", "Exchange"]
ELSEWHERE = "not served here: of another market, or signed, which goes to the exchange itself"


class BinanceApi:
    """Answers what bots ask, on the event loop: an application beside the page's, without its layers."""

    def __init__(self, settings: Settings, exchange: Exchange, candles: Candles) -> None:
        self._exchange = exchange
        self._forwarder = Forwarder(exchange, settings.proxy_weight_share)
        self._klines = Klines(Window(candles, settings), exchange.prefix, exchange.now_ms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer any call; those of other markets and of accounts are shown where to turn to."""
        try:
            response = await self._answer(Request(scope))
        except Refusal as refusal:
            response = self._refused(refusal)
        await response(scope, receive, send)

    @staticmethod
    def has(path: str) -> bool:
        """Whether a path is one of them."""
        return path.startswith(PREFIXES)

    async def _answer(self, request: Request) -> Response:
        market, _, name = request.scope["path"].partition(f"{self._exchange.prefix}/")
        if market or not name or request.method not in ("GET", "HEAD"):
            raise Refusal(404, -1002, ELSEWHERE)
        if name == "ping":
            return self._told(request, 200, Content(JSON, b"{}"))
        if name == "time":
            return self._told(request, 200, Content(JSON, to_json({"serverTime": self._exchange.now_ms()})))
        asked = parse(self._exchange.prefix, name, request.query_params.multi_items())
        if name == "klines" and (content := await self._klines.answer(asked)):
            return self._told(request, 200, content)
        answer = await self._forwarder.answer(asked)
        return self._told(request, answer.status, answer.content)

    def _told(self, request: Request, status: int, content: Content) -> Response:
        """A body with the weight used, by which bots pace themselves."""
        response = content.response(request)
        if status != 200:
            response = Response(content.body, status, media_type=JSON)
        response.headers["X-MBX-USED-WEIGHT-1M"] = str(self._exchange.gate.used_weight())
        return response

    def _refused(self, refusal: Refusal) -> Response:
        headers = {"X-MBX-USED-WEIGHT-1M": str(self._exchange.gate.used_weight())}
        if refusal.retry_after_seconds:
            headers["Retry-After"] = str(refusal.retry_after_seconds)
        body = to_json({"code": refusal.code, "msg": str(refusal)})
        return Response(body, refusal.status, headers, media_type=JSON)
