"""The connections to the exchange: pooled, by the environment's proxy, each reply bounded as a whole."""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx


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
        """Open a connection."""
        return Timed(self._wrapped.connect_tcp(*arguments, **named), self._deadline)

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
        super().__init__(
            limits=httpx.Limits(
                max_connections=connections + 1, max_keepalive_connections=connections, keepalive_expiry=30.0
            ),
            proxy=None if no_proxy else proxy_for(base_url),
        )
        self._deadline = threading.local()
        pool: Any = self._pool  # the seam that httpx leaves closed; a test holds it open
        pool._network_backend = Timed(pool._network_backend, self._deadline)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the reply's body is read by the same thread."""
        self._deadline.at_seconds = time.monotonic() + request.extensions["reply_seconds"]
        return super().handle_request(request)


def proxy_for(base_url: str) -> str | None:
    """The proxy that the environment names for an address."""
    address, proxies = urlsplit(base_url), getproxies()
    for entry in re.split(r"[\s,]+", proxies.get("no", "")):
        scheme, _, name = entry.rpartition("://")  # as curl and httpx allow it: https://internal.example
        if entry == "*" or (scheme in (address.scheme, "all") and _is_within(address, name.rstrip("/"))):
            return None
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(address.netloc) or proxy_bypass(address.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_within(address: SplitResult, name: str) -> bool:
    """Whether an entry of NO_PROXY, without its scheme, names the host (and port) or a domain around it."""
    within = f".{address.hostname}".endswith(f".{name.lstrip('*.')}")
    return within or name in (address.hostname, address.netloc)
