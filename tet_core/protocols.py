"""What parts are given by others that they may not import: the clock, and the gate."""

from __future__ import annotations

import queue
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """The exchange's time, and waiting that a stop cuts short. Thread-safe."""

    def monotonic(self) -> float:
        """Seconds that only ever grow, for measuring."""

    def now_ms(self) -> int:
        """Exchange time in ms since the epoch, as well as it is known."""

    def take(self, waiting: queue.SimpleQueue[T], seconds: float) -> T | None:
        """The next of what waits in a queue, or comes within so long; None when nothing does."""

    def is_stopped(self) -> bool:
        """Whether a stop was asked for."""

    def check(self) -> None:
        """Raise Stopped when a stop was asked for."""

    def sleep(self, seconds: float) -> None:
        """Wait; raise Stopped as soon as a stop is asked for."""


class Gate(Protocol):
    """What every request to the exchange passes: its pause, its weight, its rate. Thread-safe."""

    rate: float  # requests per second
    weight_limit: int  # per minute
    paused_until_ms: int  # exchange time; 0 is not paused
    pause_reason: str

    def pause(self, seconds: float, reason: str) -> bool:
        """Admit nothing for so long; returns whether that is new."""

    def pause_left_seconds(self) -> float:
        """How long the pause lasts from now; 0 when there is none."""

    def lease(self, begin_seconds: float, end_seconds: float) -> None:
        """Admit requests between these two monotonic moments only."""

    def used_weight(self) -> int:
        """The weight used in this minute, as far as it is known."""
