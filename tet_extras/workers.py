"""The main thread's inbox, how it waits, and the threads that ask the exchange meanwhile."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tet_core.errors import LOGGER, ExchangeError, Stopped, StoreError, say
from tet_core.protocols import Clock
from tet_core.turns import Turns

if TYPE_CHECKING:
    from .messages import Message

T = TypeVar("T")

TICK_SECONDS = 1.0  # of the main thread
STOP_SECONDS = 3.0  # for what is in flight, and up to a tick until the main thread looks
BESIDE = 4  # what may be out beside the updates: the clock, the symbols, a page of the audit, Redis


class Inbox:
    """What the main thread waits for: messages of streams, work that is finished, a stop.

    Any thread may put something in; the main thread takes. Of each stream only the newest forming candle
    waits, so that it stays short; closes wait, all of them. `_lock` guards `_forming`, the slots of the
    queue whose message may still be replaced.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[list[Message]] = queue.SimpleQueue()
        self._forming: dict[str, list[Message]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._queue.qsize()

    def wake(self, *_: object) -> None:
        """Let the main thread look around: something is finished, or a stop was asked for."""
        self._queue.put([])

    def deliver(self, message: Message) -> None:
        """Put a stream's message in. A close takes the place of what its candle was before."""
        with self._lock:
            if message.closed:
                self._forming.pop(message.stream, []).clear()
                self._queue.put([message])
            elif slot := self._forming.get(message.stream):
                if message.event_ms > slot[0].event_ms:
                    slot[0] = message
            else:
                self._forming[message.stream] = slot = [message]
                self._queue.put(slot)

    def take(self, clock: Clock, seconds: float) -> Message | None:
        """The next message; None after a wake-up, for one that was overtaken, and when nothing comes."""
        slot = clock.take(self._queue, seconds)
        with self._lock:
            message = slot.pop() if slot else None
            if message and self._forming.get(message.stream) is slot:
                del self._forming[message.stream]
        return message


class Work(Generic[T]):
    """What waits for a worker, and what workers have finished. Any thread may use it, by its lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: Turns[T] = Turns()
        self._finished: list[T] = []

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, who: T, place: tuple[int, int] | None) -> None:
        """Let it wait for its turn; see `Turns.add`."""
        with self._lock:
            self._turns.add(who, place)

    def take(self) -> T | None:
        """Whoever is next; None when nobody waits."""
        with self._lock:
            return self._turns.take()

    def is_to_give_way(self) -> bool:
        """Whether who has more than a page to fetch is to let others go first."""
        return self._turns.has_refreshes

    def done(self, who: T, whole: bool) -> None:
        """It is finished; or, if not as a ``whole``, it waits for another turn."""
        with self._lock:
            if whole:
                self._finished.append(who)
            else:
                self._turns.give_way(who)

    def finished(self) -> list[T]:
        """What was finished since the last call."""
        with self._lock:
            finished, self._finished = self._finished, []
        return finished


@dataclass(eq=False)
class Workers:
    """The threads that ask the exchange, and how the main thread waits: taking messages, and ticking.

    The main thread owns it. ``take`` is called with each message, ``tick`` at least each second. There are
    ``most`` threads for updates, and some for what is done beside them.
    """

    most: int
    clock: Clock
    inbox: Inbox
    take: Callable[[Message], None]
    tick: Callable[[], None]

    def __post_init__(self) -> None:
        self._tick_at_seconds = 0.0  # monotonic
        self._pool = ThreadPoolExecutor(self.most + BESIDE, thread_name_prefix="worker")
        self._running: set[Future[Any]] = set()
        self._beside: dict[str, tuple[Future[Any], Callable[[Any], None]]] = {}  # by kind: one of each

    def wait(self, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
        """Wait for so long, or until that is done. Raises Stopped."""
        until = self.clock.monotonic() + seconds
        while not done() and (left := until - (now := self.clock.monotonic())) > 0:
            self._take_next(max(0.0, min(left, self._tick_at_seconds - now)))
            self.clock.check()
            self._settle()
            if self.clock.monotonic() >= self._tick_at_seconds:
                for _ in range(len(self.inbox)):  # what has come is not to be missed by who looks now
                    self._take_next(0.0)
                self._tick_at_seconds = self.clock.monotonic() + TICK_SECONDS
                self.tick()

    def _take_next(self, seconds: float) -> None:
        if message := self.inbox.take(self.clock, seconds):
            self.take(message)

    def _start(self, act: Callable[[], T]) -> Future[T]:
        future = self._pool.submit(act)
        future.add_done_callback(self.inbox.wake)
        return future

    def do(self, act: Callable[[], T]) -> T:
        """Let a worker do what may take long, such as waiting out a ban, and wait for it."""
        self._running.add(future := self._start(act))
        while not future.done():
            self.wait(TICK_SECONDS, future.done)
        self._running.discard(future)
        return future.result()

    # Beside everything else

    def begin(self, what: str, ask: Callable[[], T], then: Callable[[T], None]) -> None:
        """Let a worker ask what may fail without harm, and the main thread take the answer when it comes.

        Nothing waits for it, and nothing is begun while one of its kind is out.
        """
        if what not in self._beside:
            self._beside[what] = self._start(ask), then

    def is_out(self, what: str) -> bool:
        """Whether one of that kind has not been answered yet."""
        return what in self._beside

    def _settle(self) -> None:
        """Take the answers that have come."""
        for what, (future, then) in list(self._beside.items()):
            if future.done():
                del self._beside[what]
                try:
                    then(future.result())
                except Stopped:
                    raise
                except (ExchangeError, StoreError) as error:
                    say(logging.DEBUG, "deferred, will retry", what=what, reason=str(error))
                except Exception:
                    logging.getLogger(LOGGER).exception("internal error", extra={"facts": {"what": what}})

    # Updates

    def engage(self, work: Work[T], act: Callable[[T], bool], needed: int) -> None:
        """Let ``needed`` workers do that with what waits, at most; each takes one after the other.

        ``act`` says whether it is done with it, or gives way.
        """
        self._running = {future for future in self._running if not future.done()}
        for _ in range(min(min(needed, self.most) - len(self._running), len(work))):
            self._running.add(self._start(lambda: self._work(work, act)))

    def are_idle(self) -> bool:
        """Whether every worker that was engaged has found nothing more to do."""
        return all(future.done() for future in self._running)

    def _work(self, work: Work[T], act: Callable[[T], bool]) -> None:
        """Take one after the other until none is left, or a stop is asked for."""
        with suppress(Stopped):
            while not self.clock.is_stopped() and (who := work.take()) is not None:
                work.done(who, act(who))

    def stop(self) -> None:
        """Let what is in flight end, within bounds."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait([*self._running, *(future for future, _ in self._beside.values())], STOP_SECONDS)
