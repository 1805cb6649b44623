"""Serves the page, /api, /health and /metrics with uvicorn, on a thread of its own, for HTTP_ADDR."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import anyio.to_thread
import uvicorn

from tet_core.errors import LOGGER, TetError
from tet_core.listeners import Listener
from tet_extras.addresses import host_and_port, is_loopback
from tet_extras.process import claim_port, kept_port

from . import bounds
from .answers import Sources
from .bounds import Bounds, Connection
from .guard import HEAD_BYTES, Bots
from .metrics import Exposition
from .pairs import Table
from .routes import Site

LISTEN_BACKLOG = 1024
THREADS = 8  # that work out answers
STOP_SECONDS = 1  # for answers that are on their way when the service ends


def listen(address: tuple[str, int]) -> socket.socket:
    """A socket that listens there. Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # by which asyncio sets NODELAY
    try:
        claim_port(listener)
        listener.bind(address)
        listener.listen(LISTEN_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


class WebServer(Listener):
    """The HTTP server. What is in ``sources`` is called from its threads. Signals are left to the service."""

    def __init__(
        self, address: tuple[str, int], token: str | None, sources: Sources, bots: Bots | None = None
    ) -> None:
        self._address = address
        self._metrics = Exposition(sources)
        self._bounds = Bounds()
        site = Site(sources, Table(sources.showing.feeds), self._metrics)
        self._news = site.news
        self._news.most = min(self._news.most, max(1, self._bounds.most // 2))
        self._server = uvicorn.Server(
            uvicorn.Config(
                site.application(token, is_loopback(address[0]), bots),
                http=partial(Connection, self._bounds),  # type: ignore[arg-type]
                interface="asgi3",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=logging.CRITICAL,  # strangers write no log; errors of ours are logged by ourselves
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=[("Server", f"tet-data-service/{sources.status().version}")],
                backlog=LISTEN_BACKLOG,
                timeout_keep_alive=bounds.CLIENT_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS,
                h11_max_incomplete_event_size=HEAD_BYTES,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.port = 0

    def start(self) -> None:
        """Listen, on a thread of its own. Raises OSError when it cannot bind."""
        self._listener = kept_port(self._address) or listen(self._address)
        self.port = int(self._listener.getsockname()[1])
        self._thread.start()

    def stop(self) -> None:
        """Listen no more, and send nobody anything more."""
        self._server.should_exit = True
        if self._loop:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._news.stop)
        if self._thread.is_alive():
            self._thread.join(2 * STOP_SECONDS)

    def requested(self, seconds: float) -> None:
        """Add to a histogram; so the next two."""
        self._metrics.observe("request", seconds)

    def closed(self, delay_seconds: float, by_stream: bool) -> None:
        """See `Listener`."""
        self._metrics.observe("candle_delay", delay_seconds)
        if by_stream:
            self._metrics.observe("stream_delay", delay_seconds)

    def cycle_ended(self, updates: int, failed: int, seconds: float) -> None:
        """See `Listener`."""
        del updates, failed
        self._metrics.observe("cycle", seconds)

    def written(self) -> None:
        """Look for what is new; costs little, since it is on a worker's way."""
        self._news.wake()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve())
        except Exception:
            logging.getLogger(LOGGER).exception("internal error")

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._bounds.failed)
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await self._server.serve(sockets=[self._listener])
        for client in list(self._server.server_state.connections):
            client.transport.abort()
        await asyncio.sleep(0)  # in which they end


@contextmanager
def serving(
    address: tuple[str, int],
    token: str | None,
    sources: Sources,
    bots: Bots | None = None,
) -> Iterator[WebServer]:
    """Serve for as long as the block lasts. Raises TetError when the address cannot be bound."""
    server = WebServer(address, token, sources, bots)
    try:
        server.start()
    except OSError as error:
        raise TetError(f"cannot bind HTTP_ADDR {host_and_port(*address)}: {error.strerror}") from error
    try:
        yield server
    finally:
        server.stop()
