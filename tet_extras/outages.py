"""Outages: which servers of Redis cannot be reached, why, and when each is tried again."""

from __future__ import annotations

import threading
from typing import NamedTuple

from tet_core.errors import StoreError
from tet_core.protocols import Clock


class Outages:
    """Which servers cannot be reached, why, and when each is tried again.

    After a failed connection the next one waits, doubling; until then every call fails at once, so that
    workers do not queue up for time-outs. Any thread may use it; `_lock` guards each change.
    """

    class Outage(NamedTuple):
        """Of one server: how often in a row no connection could be had, until when to wait, and why."""

        failures: int
        retry_at_seconds: float  # monotonic
        reason: str

    def __init__(self, clock: Clock, most_seconds: float) -> None:
        self._clock = clock
        self._most_seconds = most_seconds
        self._lock = threading.Lock()
        self._away: dict[str, Outages.Outage] = {}

    def __bool__(self) -> bool:
        return bool(self._away)

    def check(self, node: str) -> None:
        """Raise StoreError while that server is not to be tried."""
        if (outage := self._away.get(node)) and outage.retry_at_seconds > self._clock.monotonic():
            raise StoreError(outage.reason)

    def note(self, node: str, reason: str) -> bool:
        """A server could not be reached. Returns whether that is news."""
        with self._lock:
            first, failures = not self._away, self._away[node].failures + 1 if node in self._away else 1
            wait_seconds = min(self._most_seconds, 0.5 * 2.0 ** min(failures, 10))
            self._away[node] = self.Outage(failures, self._clock.monotonic() + wait_seconds, reason)
        return first

    def over(self, node: str, nodes: set[str]) -> bool:
        """A server answered; of all ``nodes`` only those count. Returns whether none is away any more."""
        with self._lock:
            was_away = bool(self._away)
            self._away = {name: kept for name, kept in self._away.items() if name != node and name in nodes}
            return was_away and not self._away

    @property
    def reason(self) -> str:
        """Why a server is away; empty when none is."""
        return next((outage.reason for outage in tuple(self._away.values())), "")

    def retry_seconds(self, nodes: int) -> float:
        """How long until a connection is tried; 0 while one of so many servers is well."""
        ends = [outage.retry_at_seconds for outage in tuple(self._away.values())]
        return max(0.0, min(ends) - self._clock.monotonic()) if ends and len(ends) >= nodes else 0.0
