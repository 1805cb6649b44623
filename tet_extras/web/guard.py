"""Who may ask, and what keeps the page safe: the method, the name asked for, the token, the headers.

All is read-only. Where there is a token, all but /health and the page's own files asks for it. Listening on
loopback, only names of this machine are answered to: else a web page could have its own name point here and
read what is served (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from typing import Protocol
from urllib.parse import parse_qsl, quote, urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tet_core.errors import LOGGER
from tet_extras.addresses import is_loopback

from .answers import HTML, JSON, Refused, header_text, to_json

SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache, private",  # to be asked about each time, which an ETag makes cheap
}
SAFE_HEADERS = [(name.lower().encode(), text.encode()) for name, text in SAFE.items()]

REFUSAL = "this is not the token"
HOST_REFUSAL = (
    "this name is not answered to: listening on loopback without HTTP_TOKEN, the service answers only to "
    "localhost and 127.0.0.1. A proxy before it has to send that (nginx: proxy_set_header Host localhost; "
    "Caddy: header_up Host localhost); with HTTP_TOKEN set, any name is answered to"
)
HEAD_BYTES = 16_384  # of a request: its line and its headers
COOKIE = "tet_token"
COOKIE_SECONDS = 30 * 86_400
#: What needs no token: the page's files have nothing of ours in them, and probes get a status code.
OPEN = re.compile(r"/page/.*|/health(/live|/ready)?")


class Bots(Protocol):
    """An application for programs that take us for the exchange."""

    def has(self, path: str) -> bool:
        """Whether a path is one of the exchange's."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""


class Guard:
    """Lets those through to ``app`` who may ask; ``locked`` is the page that asks a browser for the token.

    ``scope["has_token"]`` says to the application whether the token was given, or none is needed. Paths that
    ``bots`` has are answered by that: they are refused as the exchange does it, other methods than GET are
    for it to refuse, and the token may stand before the path, since bots send no headers.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        on_loopback: bool,
        locked: bytes,
        bots: Bots | None,
    ) -> None:
        self._app = app
        self._token = (token or "").encode()
        # The cookie is not the token itself: what listens on other ports of this machine sees cookies, too.
        self._cookie = hmac.new(self._token, b"cookie", hashlib.sha256).hexdigest()
        self._on_loopback = on_loopback
        self._locked_page = locked
        self._bots = bots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer any request: uvicorn calls this. An error within is logged, and ends in 500."""
        has_begun = False

        async def safely(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = [*message["headers"], *SAFE_HEADERS]
            await send(message)

        try:
            await self._let_through(scope)(scope, receive, safely)
        except Exception:
            logging.getLogger(LOGGER).exception("internal error")
            if not has_begun:
                await PlainTextResponse("internal error; see the log\n", 500)(scope, receive, safely)

    def _let_through(self, scope: Scope) -> ASGIApp:
        """The application, or what is answered to those who may not ask it."""
        request = Request(scope)
        try:
            self._check(request)
        except Refused as refused:
            if self._is_for_bots(scope["path"]):
                return refused.response(JSON, to_json({"code": -1002, "msg": str(refused)}))
            if refused.status != 401 or HTML not in request.headers.get("accept", ""):
                return refused.response()
            note = b'<p role="alert">This is not the token.</p>' if str(refused) == REFUSAL else b""
            return refused.response(HTML, self._locked_page.replace(b"<!--refusal-->", note))
        return self._bots if self._bots and self._is_for_bots(scope["path"]) else self._app

    def _is_for_bots(self, path: str) -> bool:
        return self._bots is not None and self._bots.has(path)

    def _check(self, request: Request) -> None:
        """Whether that may be asked. Raises Refused."""
        head = (len(name) + len(text) + 4 for name, text in request.scope["headers"])
        if sum(head) + len(request.scope["path"]) + len(request.scope["query_string"]) > HEAD_BYTES:
            raise Refused(431, f"a request line and its headers may have {HEAD_BYTES} bytes")
        has_token = self._take_token(request.scope)
        if request.method not in ("GET", "HEAD") and not self._is_for_bots(request.scope["path"]):
            raise Refused(405, "only GET and HEAD are answered", Allow="GET, HEAD")
        self._check_host(request.headers.get("host"))
        request.scope["has_token"] = has_token or self._check_token(request)
        if not request.scope["has_token"] and not OPEN.fullmatch(request.scope["path"]):
            raise self._locked("a token is needed: HTTP_TOKEN of the service's settings")

    def _take_token(self, scope: Scope) -> bool:
        """Take the token out of a path for bots, ``/t/TOKEN/api/v3/…``; whether it was there, and ours."""
        found = re.fullmatch(r"/t/([^/]+)(/.*)", scope["path"])
        if not found or not self._is_for_bots(found[2]):
            return False
        scope["path"] = found[2]
        return self._is_token(found[1])

    def _check_host(self, host: str | None) -> None:
        if not self._on_loopback or self._token or host is None:
            return
        found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::[0-9]*)?", host.lower())
        if not found or not is_loopback(found[1] or found[2]):
            raise Refused(403, HOST_REFUSAL)

    def _check_token(self, request: Request) -> bool:
        """Whether the request carries the token, or none is needed. Sends ``?token=`` away, with a cookie."""
        if not self._token:
            return True
        query = dict(parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True))
        if "token" in query:
            if not self._is_token(query.pop("token")):
                raise self._locked(REFUSAL)
            path = quote(f"/{request.scope['path'].lstrip('/')}")
            cookie = f"{COOKIE}={self._cookie}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict"
            location = path + (f"?{urlencode(query)}" if query else "")
            raise Refused(303, "", Location=location, Set_Cookie=cookie)
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        cookies = header_text(request.headers, "cookie").split(";")
        return self._has_cookie(cookies) or (scheme.lower() == "bearer" and self._is_token(given.strip()))

    def _has_cookie(self, cookies: list[str]) -> bool:
        found = (cookie.strip().partition("=") for cookie in cookies)
        return any(
            hmac.compare_digest(text.encode(), self._cookie.encode())
            for name, _, text in found
            if name == COOKIE
        )

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._token)

    @staticmethod
    def _locked(sentence: str) -> Refused:
        return Refused(401, sentence, WWW_Authenticate='Bearer realm="tet-data-service"')
