"""What /events tells those who follow it: rows of the table that changed, and the status."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from .pairs import Table

STATUS_SECONDS = 5.0  # so often the status is told in any case: who hears nothing for longer has lost us
WAIT_SECONDS = 1.0  # for a write; then it is seen what else has changed
GATHER_SECONDS = 0.25  # after a write: in a cycle there are many, and all that look are woken


def event(name: str, text: str) -> bytes:
    """A server-sent event. The text is JSON, which has no line ends."""
    return f"event: {name}\ndata: {text}\n\n".encode()


class News:
    """Tells what changes to all that follow, each on a thread of its own. `_changed` guards the count.

    ``status_now`` gives what of the status is worth telling at once, and all of it as JSON.
    """

    def __init__(self, table: Table, status_now: Callable[[], tuple[str, bytes]]) -> None:
        self._table = table
        self._status_now = status_now
        self._changed = threading.Condition()
        self._writes = 0
        self._stopping = threading.Event()

    def wake(self) -> None:
        """Something was written."""
        with self._changed:
            self._writes += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """End all that follow."""
        self._stopping.set()
        self.wake()

    def follow(self) -> Iterator[bytes]:
        """Events from now on: what was before is to be asked for once the first one has come."""
        version, urgent_before, told_at = self._table.since(0)[0], "", float("-inf")
        while not self._stopping.is_set():
            writes = self._writes
            urgent, status = self._status_now()
            if urgent != urgent_before or time.monotonic() - told_at >= STATUS_SECONDS:
                urgent_before, told_at = urgent, time.monotonic()
                yield event("status", status.decode())
            since, (version, rows) = version, self._table.since(version)
            if version > since:
                yield event("rows", rows)
            with self._changed:
                if self._writes == writes:
                    self._changed.wait(WAIT_SECONDS)
            self._stopping.wait(GATHER_SECONDS)
