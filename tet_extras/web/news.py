"""What /events sends those who follow it: rows of the table that changed, the status, and closed candles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from starlette.concurrency import run_in_threadpool

from .closes import Closes, Feed
from .pairs import Table

STATUS_SECONDS = 5.0  # so often the status is sent in any case: who hears nothing for longer has lost us
WAIT_SECONDS = 1.0  # for a write; then it is seen what else has changed
GATHER_SECONDS = 0.25  # after a write: in a cycle there are many
MOST_GATHER_SECONDS = 1.0  # where there are so many rows that a look takes long, a tenth of the time at most
MAX_FOLLOWERS = 128
MOST_UNTAKEN = 64  # events that wait for a follower; who takes none of them is let go


def event(name: str, text: str) -> bytes:
    """A server-sent event. The text is JSON, which has no line ends."""
    return f"event: {name}\ndata: {text}\n\n".encode()


class News:
    """Tells what changes to all that follow: one task looks, while there is anybody, and gives each the same.

    ``status_now`` gives what of the status is worth sending at once, and all of it as JSON. Any thread may
    `wake`; all else is done on the event loop.
    """

    def __init__(self, table: Table, status_now: Callable[[], tuple[str, bytes]], closes: Closes) -> None:
        self._table = table
        self._closes = closes
        self._status_now = status_now
        self.most = MAX_FOLLOWERS
        self._followers: dict[asyncio.Queue[bytes], frozenset[Feed]] = {}  # and whose candles they want
        self._loop: asyncio.AbstractEventLoop | None = None  # while there are followers
        self._changed = asyncio.Event()
        self._has_begun = asyncio.Event()
        self._teller: asyncio.Task[None] | None = None
        self._is_stopping = False

    @property
    def has_room(self) -> bool:
        """Whether one more may follow."""
        return len(self._followers) < self.most

    def wake(self) -> None:
        """Something was written. Costs little, since it is on a worker's way."""
        loop = self._loop
        if loop and not self._changed.is_set():
            with suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(self._changed.set)

    def stop(self) -> None:
        """End all that follow."""
        self._is_stopping = True
        self._has_begun.set()
        for follower in list(self._followers):
            self._let_go(follower)

    async def follow(self, feeds: frozenset[Feed] = frozenset()) -> AsyncIterator[bytes]:
        """Events from now on, with candles of ``feeds`` as they close.

        What was before is to be asked for once the first one has come.
        """
        if not self.has_room:  # any more: others asked in the same moment
            return
        follower: asyncio.Queue[bytes] = asyncio.Queue(MOST_UNTAKEN)
        self._followers[follower] = feeds
        try:
            if self._teller is None:
                self._loop = asyncio.get_running_loop()
                self._teller = asyncio.create_task(self._tell())
            await self._has_begun.wait()
            yield event("status", self._status_now()[1].decode())
            while not self._is_stopping and (news := await follower.get()):
                yield news
        finally:
            self._followers.pop(follower, None)

    async def _tell(self) -> None:
        """Look at what has changed, and send it, until nobody follows."""
        try:
            version, urgent_before, told_at = 0, "", float("-inf")
            version, _ = await run_in_threadpool(self._table.since, version)
            self._has_begun.set()
            while self._followers and not self._is_stopping:
                self._changed.clear()
                urgent, status = self._status_now()
                if urgent != urgent_before or time.monotonic() - told_at >= STATUS_SECONDS:
                    urgent_before, told_at = urgent, time.monotonic()
                    self._give(event("status", status.decode()))
                began = time.monotonic()
                since, (version, rows) = version, await run_in_threadpool(self._table.since, version)
                looked_seconds = time.monotonic() - began
                if version > since:
                    self._give(event("rows", rows))
                if wanted := frozenset[Feed]().union(*self._followers.values()):
                    for feed, text in await run_in_threadpool(self._closes.since, wanted):
                        self._give(event("candles", text), feed)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), WAIT_SECONDS)
                await asyncio.sleep(max(GATHER_SECONDS, min(MOST_GATHER_SECONDS, 9 * looked_seconds)))
        finally:
            self._teller = self._loop = None
            if not self._is_stopping:
                self._has_begun.clear()
            for follower in list(self._followers):
                self._let_go(follower)

    def _give(self, news: bytes, feed: Feed | None = None) -> None:
        """Give an event to all, or to those who want candles of a feed."""
        for follower, feeds in list(self._followers.items()):
            if feed and feed not in feeds:
                continue
            if follower.full():
                self._let_go(follower)
            else:
                follower.put_nowait(news)

    def _let_go(self, follower: asyncio.Queue[bytes]) -> None:
        """End one: nothing, in place of an event, does."""
        self._followers.pop(follower, None)
        if follower.full():
            follower.get_nowait()
        follower.put_nowait(b"")
