"""Many writes in one round trip, and the threads that make them of what is to be written at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tet_core.errors import StoreError
from tet_core.pairs import Pair
from tet_core.stored import Announcement, Patch
from tet_core.times import Timeframe

from .scripts import sha_of
from .workers import STOP_SECONDS
from .writes import Believed, Write, Writes

if TYPE_CHECKING:
    from .claims import Claim
    from .servers import Servers

T = TypeVar("T")

MOST_AT_ONCE = 64  # writes in a round trip: some 100 kB at a close
ON_THE_WAY = 2  # round trips of a route: one is made ready while another one is out
MOST_ROUTES = 9  # a cluster of three nodes has as many, from a value's to its timestamp's


def run_together(servers: Servers, writes: Sequence[Write]) -> list[Any]:
    """Run scripts without uploads in one round trip; an answer may be an error of redis-py's."""
    from redis.exceptions import NoScriptError

    commands = [
        ("EVALSHA", sha_of(write.script), len(write.keys), *write.keys, *write.arguments) for write in writes
    ]
    answers = servers.together(commands)
    unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    for script in {writes[place].script for place in unknown}:
        servers.load(script)
    again = servers.together([commands[place] for place in unknown]) if unknown else []
    for place, answer in zip(unknown, again, strict=True):  # those alone: the others are done
        answers[place] = answer
    return answers


class Store(Protocol):
    """What is needed of the store."""

    @property
    def claim(self) -> Claim:
        """Who may write."""

    @property
    def believed(self) -> Believed:
        """Up to when the times of a stored value are believed."""

    def understood(self, words: list[str]) -> list[str]:
        """The words of an answer to a write. Raises StoreError."""

    def refused(self, error: Exception, key: str) -> StoreError:
        """What an error of redis-py's means."""


class Pipeline:
    """Writes many patches in one round trip, all of the same servers; an answer may be a StoreError.

    ``answering`` gives the servers for a call about a key. Any thread may use it.
    """

    def __init__(
        self,
        store: Store,
        writes: Writes,
        answering: Callable[[str], AbstractContextManager[Servers]],
        node_of: Callable[[str], str],
    ) -> None:
        self._store = store
        self._writes = writes
        self._answering = answering
        self._node_of = node_of

    def route(self, pair: Pair, timeframe: Timeframe) -> str:
        """What names the servers that have a pair's keys: in a cluster two."""
        return " ".join(map(self._node_of, self._writes.both_keys(pair, timeframe)))

    def patch(self, patches: Sequence[tuple[Pair, Patch, Announcement]]) -> list[list[str] | StoreError]:
        """The answers; in a cluster the timestamps follow, in a second round trip."""
        answers = self._run([self._writes.patch(*each) for each in patches])
        if not self._writes.in_cluster:
            return answers
        done = [place for place, answer in enumerate(answers) if answer == ["written"]]
        written, believed = [patches[place] for place in done], self._store.believed
        stamps = [self._writes.stamp(pair, patch.image, news, believed) for pair, patch, news in written]
        for place, answer in zip(done, self._run(stamps), strict=True):
            answers[place] = answer if isinstance(answer, StoreError) else answers[place]
        return answers

    def _run(self, writes: Sequence[Write]) -> list[list[str] | StoreError]:
        if not writes:
            return []
        try:
            self._store.claim.check()
            with self._answering(key := writes[0].keys[0]) as servers:
                answers = run_together(servers, writes)
        except StoreError as error:
            return [error for _ in writes]
        return [self._understood(answer, key) for answer in answers]

    def _understood(self, answer: Any, key: str) -> list[str] | StoreError:
        if isinstance(answer, Exception):
            return self._store.refused(answer, key)
        try:
            return self._store.understood([part.decode() for part in answer])
        except StoreError as error:
            return error


class Route(Generic[T]):
    """What waits for one server, or the two of a pair's keys, and how many threads are at it."""

    def __init__(self) -> None:
        self.waiting: deque[T] = deque()
        self.threads = 0


class Queues(Generic[T]):
    """Threads that write what waits, as much of a route at once as there is; a slow one delays itself alone.

    Any thread may add; ``act`` is called with what has waited. `_lock` guards the routes.
    """

    def __init__(self, act: Callable[[Sequence[T]], None]) -> None:
        self._act = act
        self._pool = ThreadPoolExecutor(ON_THE_WAY * MOST_ROUTES, thread_name_prefix="writer")
        self._routes: dict[str, Route[T]] = {}
        self._lock = threading.Lock()
        self._out: set[Future[None]] = set()

    def add(self, name: str, what: T) -> None:
        """Let it be written as soon as a thread of its route is free."""
        with self._lock:
            route = self._routes.setdefault(name, Route())
            route.waiting.append(what)
            if route.threads == ON_THE_WAY:
                return
            route.threads += 1
        self._out.add(future := self._pool.submit(self._work, route))
        future.add_done_callback(self._out.discard)

    def _work(self, route: Route[T]) -> None:
        """Write until nothing waits."""
        while True:
            with self._lock:
                batch = [route.waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(route.waiting)))]
                if not batch:
                    route.threads -= 1
                    return
            self._act(batch)

    def stop(self) -> None:
        """Let what waits be written, within bounds."""
        self._pool.shutdown(wait=False)
        wait(tuple(self._out), STOP_SECONDS / 2)
