"""How much of us a client of HTTP may take, at each stage; uvicorn reads, parses and sends.

`MAX_WAITING` may be sending their request, within `CLIENT_SECONDS`, and not more than `HEAD_BYTES` of the
guard's; `MAX_ANSWERS` are answered at a time, followers of /events included; `MAX_TAKING` may be taking a
large body, within `SEND_SECONDS`. Where one more would be too many, the one that takes longest goes: a client
that means it takes milliseconds. /health is answered beside all of them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tet_core.errors import LOGGER

CLIENT_SECONDS = 5  # for a request's line and headers; between two requests
SEND_SECONDS = 30.0  # for an answer; for an event
MAX_WAITING = 256
MAX_ANSWERS = 384
MAX_TAKING = 128
TAKING_BYTES = 16_000_000  # of bodies that are being taken; what several take counts once
UNSENT_BYTES = 16_384  # to a client, above which nothing more is written
COMPLAINT_SECONDS = 60.0  # without a failure, after which the next one is logged again
RETRY_SECONDS = 1.0  # asyncio's own, after a client could not be accepted
BURST_SECONDS = 0.5  # in which it reports one failure many times
FULL = PlainTextResponse("too many are being answered\n", 503, {"Retry-After": "1"})
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def most_connections() -> int:
    """How many connections clients may have: half of what the process may open, the rest is the service's."""
    try:
        import resource
    except ImportError:  # not on Windows, where select() takes 512
        return MAX_WAITING + MAX_TAKING
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, allowed // 2) if allowed != resource.RLIM_INFINITY else 1 << 16


class Bounds:
    """The clients at each stage, the oldest first. All is done on the event loop."""

    def __init__(self) -> None:
        self.most = most_connections()
        self._most_taking = min(MAX_TAKING, max(1, self.most // 4))
        self._asking: dict[Connection, asyncio.TimerHandle] = {}
        self._taking: dict[Connection, bytes] = {}
        self._failed_at = self._complained_at = float("-inf")  # monotonic

    def asks(self, client: Connection, seconds: float) -> None:
        """A client may send a request, for so long."""
        self.asked(client)
        if len(self._asking) >= MAX_WAITING:
            self.drop_oldest()
        self._asking[client] = client.loop.call_later(seconds, client.cut)

    def asked(self, client: Connection) -> None:
        """It has sent one, or is gone."""
        if timer := self._asking.pop(client, None):
            timer.cancel()

    def drop_oldest(self) -> bool:
        """Cut the client that has been sending its request longest. False: there is none."""
        for client in self._asking:
            self.asked(client)
            client.cut()
            return True
        return False

    @contextmanager
    def taking(self, client: Connection, body: bytes) -> Iterator[None]:
        """A client takes a large body within the block. Where it is too much, who is at it longest is cut."""
        self._taking[client] = body
        timer = client.loop.call_later(SEND_SECONDS, client.cut)
        while len(self._taking) > 1 and self._take_too_much():
            oldest = next(iter(self._taking))
            del self._taking[oldest]
            oldest.cut()
        try:
            yield
        finally:
            timer.cancel()
            self._taking.pop(client, None)

    def _take_too_much(self) -> bool:
        bodies = {id(body): len(body) for body in self._taking.values()}
        return len(self._taking) > self._most_taking or sum(bodies.values()) > TAKING_BYTES

    def failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Hear from the event loop what went wrong in it."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in NO_ROOM or "socket" not in context:
            logging.getLogger(LOGGER).error(
                "internal error", exc_info=error or RuntimeError(context["message"])
            )
        elif (now := time.monotonic()) - self._failed_at > BURST_SECONDS:
            if now - self._failed_at < 3 * RETRY_SECONDS:  # it fails again; at first nobody may have come
                self._make_room(error, now)
            self._failed_at = now

    def _make_room(self, error: OSError, now: float) -> None:
        """No client can be accepted, for want of file descriptors or memory; asyncio tries again."""
        self.drop_oldest()
        if now - self._complained_at >= COMPLAINT_SECONDS:
            remedy = "raise the limit of open files (ulimit -n, LimitNOFILE)"
            facts = {"error": error.strerror, "remedy": remedy}
            logging.getLogger(LOGGER).warning("HTTP clients cannot be accepted", extra={"facts": facts})
        self._complained_at = now


class Connection(H11Protocol):
    """A client's connection as uvicorn serves it, within bounds; the application finds it in the scope."""

    def __init__(self, bounds: Bounds, **given: Any) -> None:
        super().__init__(**given)
        self._bounds = bounds
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def app(self) -> Any:
        """What answers, for uvicorn. Kept here it would refer to us, and all would wait for a collection."""
        return self._answer

    @app.setter
    def app(self, site: Any) -> None:
        self._site = site

    def cut(self) -> None:
        """End it at once; what was not sent is lost."""
        self.transport.abort()

    @contextmanager
    def taking(self, body: bytes) -> Iterator[None]:
        """The client is sent a large body within the block."""
        with self._bounds.taking(self, body):
            yield

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered, if there is room."""
        self._bounds.asked(self)
        has_room = len(self.tasks) <= MAX_ANSWERS or scope["path"].startswith("/health")
        await (self._site if has_room else FULL)({**scope, "connection": self}, receive, send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It is there: called by asyncio, as all that follow."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(UNSENT_BYTES)
        if len(self.connections) > self._bounds.most and not self._bounds.drop_oldest():
            self.cut()
        else:
            self._bounds.asks(self, CLIENT_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        super().connection_lost(exc)
        self._bounds.asked(self)
        self._goes_on()

    def on_response_complete(self) -> None:
        """All is written, if not sent; the next request may come."""
        super().on_response_complete()
        unsent = self.transport.get_write_buffer_size()
        self._bounds.asks(self, SEND_SECONDS if unsent else CLIENT_SECONDS)

    def pause_writing(self) -> None:
        """The client does not take what is written: it may not do so for ever."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(SEND_SECONDS, self.cut)

    def resume_writing(self) -> None:
        """It has taken most of it."""
        super().resume_writing()
        self._goes_on()

    def _goes_on(self) -> None:
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None
