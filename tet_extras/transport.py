"""The connections to the exchange: pooled, by the environment's proxy, each reply bounded as a whole.

And in words what is wrong with one: which address or proxy, and the setting that names it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from .addresses import is_private, shown_address
from .proxies import Proxy, proxy_for


class Timed:
    """A way to open connections, or a connection, of httpcore's, whose reads end with the request's deadline.

    httpx bounds each read alone: a server that sends a byte of its headers every 9 s would hold a worker
    for ever. A connection is read by the thread whose request it serves, so the deadline is that thread's.
    """

    def __init__(self, wrapped: Any, deadline: threading.local) -> None:
        self._wrapped = wrapped
        self._deadline = deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def connect_tcp(self, *arguments: Any, **named: Any) -> Timed:
        """Open a connection: to the proxy, where there is one."""
        self._deadline.is_connecting = True
        connection = self._wrapped.connect_tcp(*arguments, **named)
        self._deadline.is_connecting = False
        return Timed(connection, self._deadline)

    def start_tls(self, *arguments: Any, **named: Any) -> Timed:
        """The same connection, encrypted."""
        return Timed(self._wrapped.start_tls(*arguments, **named), self._deadline)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what comes first: some bytes, the time-out of one read, or the deadline of the request."""
        left = max(0.001, self._deadline.at_seconds - time.monotonic())  # 0 would mean not to wait at all
        return bytes(self._wrapped.read(max_bytes, left if timeout is None else min(timeout, left)))


class Transport(httpx.HTTPTransport):
    """httpx's transport, which bounds each reply by the request's extension ``reply_seconds``.

    This is what lies below httpx's client, whose cookies, redirects and logins are of no use here and a
    third of what a request costs.
    """

    def __init__(self, base_url: str, connections: int, *, no_proxy: bool) -> None:
        logging.getLogger("httpcore").setLevel(logging.WARNING)
        self._proxy: Proxy | None = None if no_proxy else proxy_for(base_url)
        super().__init__(
            limits=httpx.Limits(
                max_connections=connections + 1, max_keepalive_connections=connections, keepalive_expiry=30.0
            ),
            proxy=self._proxy.url if self._proxy else None,
        )
        self._deadline = threading.local()
        pool: Any = self._pool  # the seam that httpx leaves closed; a test holds it open
        pool._network_backend = Timed(pool._network_backend, self._deadline)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the reply's body is read by the same thread."""
        self._deadline.at_seconds = time.monotonic() + request.extensions["reply_seconds"]
        self._deadline.is_connecting = False
        return super().handle_request(request)

    def words(self, error: Exception, url: str) -> str:
        """What is wrong with the request to ``url`` that this thread has just made."""
        is_connecting, reason = self._deadline.is_connecting, reason_of(error)
        if self._proxy and (is_connecting or isinstance(error, httpx.ProxyError)):
            how = "does not answer" if is_connecting else "refuses"
            return f"{self._proxy} {how}: {reason} ({self._proxy.variable})"
        how = "does not answer" if is_connecting or isinstance(error, httpx.TimeoutException) else "fails"
        through = f" through {self._proxy} ({self._proxy.variable})" if self._proxy else ""
        address = shown_address("/".join(url.split("/")[:3]))
        return f"{address} {how}{through}: {reason} (BINANCE_BASE_URL)"


def stream_proxy(url: str) -> Proxy | None:
    """The proxy for streams: none for plain ones to this machine. Raises Refusal."""
    is_secure = urlsplit(url).scheme == "wss"
    return proxy_for(url.replace("ws", "http", 1)) if is_secure or not is_private(url) else None


def reason_of(error: Exception) -> str:
    """What an error of a connection says, in words: ``connection refused``."""
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "timed out"
    text = re.sub(r"^\[(Errno|WinError) -?[0-9]+\] ", "", str(error)).rstrip(".") or type(error).__name__
    text = text if text[1:2].isupper() else text[:1].lower() + text[1:]
    if "CERTIFICATE_VERIFY_FAILED" in text:
        text += "; the authority of a proxy that opens TLS goes into SSL_CERT_FILE"
    return text
