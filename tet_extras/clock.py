"""The clock: the exchange's time, and waiting that a stop cuts short."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from tet_core.errors import Stopped
from tet_core.times import MAX_CLOCK_OFFSET_MS, SECOND_MS

T = TypeVar("T")


class Clock:
    """The exchange's time, and waiting that a stop cuts short.

    Exchange time runs on the monotonic clock from the last answer to ``/time``, so a step of the
    local clock does not move it; before the first answer it is the local time. Thread-safe.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._ahead_ms = self._local_ms() - self.monotonic() * SECOND_MS
        self._local_ahead_ms = self._ahead_ms
        self.synced_at: float | None = None
        self._wake: tuple[Callable[[], None], ...] = ()

    def monotonic(self) -> float:
        """Seconds that only ever grow, for measuring."""
        return time.monotonic()

    def _local_ms(self) -> float:
        return time.time() * SECOND_MS

    def now_ms(self) -> int:
        """Exchange time in ms since the epoch, as well as it is known."""
        return self.at(self.monotonic())

    def at(self, monotonic_seconds: float) -> int:
        """Exchange time, in ms, at a monotonic moment."""
        return int(monotonic_seconds * SECOND_MS + self._ahead_ms)

    def sync(self, server_ms: int, sent: float, received: float) -> float:
        """Take over the exchange's time, received between two monotonic moments.

        Returns the clock offset in ms: local time minus exchange time.
        """
        self._ahead_ms = server_ms - (sent + received) / 2 * SECOND_MS
        self._local_ahead_ms = self._local_ms() - self.monotonic() * SECOND_MS
        self.synced_at = received
        return self._local_ahead_ms - self._ahead_ms

    def is_doubtful(self) -> bool:
        """Whether to ask for the time again: never asked, an hour ago, or the local clock has jumped.

        A jump against the monotonic clock also shows that the machine was suspended.
        """
        if self.synced_at is None or self.monotonic() - self.synced_at > 3600:
            return True
        jumped = self._local_ms() - self.monotonic() * SECOND_MS - self._local_ahead_ms
        return abs(jumped) > MAX_CLOCK_OFFSET_MS

    def wakes(self, wake: Callable[[], None]) -> None:
        """Wake who waits elsewhere, too, when a stop is asked for."""
        self._wake = (*self._wake, wake)

    def stop(self) -> None:
        """Make every wait end, now and from now on."""
        self._stop.set()
        for wake in self._wake:
            wake()

    def take(self, waiting: queue.SimpleQueue[T], seconds: float) -> T | None:
        """The next of what waits in a queue, or comes within so long; None when nothing does."""
        with suppress(queue.Empty):
            return waiting.get(timeout=max(0.0, seconds))
        return None

    def is_stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raise Stopped when a stop was asked for."""
        if self.is_stopped():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait; raise Stopped as soon as a stop is asked for."""
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise Stopped
