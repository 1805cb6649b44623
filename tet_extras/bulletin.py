"""The bulletin: what Redis has of the service itself, its pause and its status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from tet_core.errors import RightsError, StoreError, TakenError, say
from tet_core.feeds import Feed
from tet_core.listeners import Listener
from tet_core.protocols import Clock, Gate
from tet_core.snapshot import Snapshot
from tet_core.stored import Keys

from .losses import Losses
from .members import Membership

STATUS_SECONDS = 15.0


class Settings(Protocol):
    """The settings that it goes by."""

    @property
    def takes_part(self) -> bool:
        """Whether other members share the pause."""

    @property
    def status_ttl(self) -> int:
        """Seconds."""


class Store(Protocol):
    """Where it is kept. Methods raise StoreError."""

    keys: Keys

    @property
    def retry_seconds(self) -> float:
        """How long until Redis is tried again; 0 when nothing is wrong."""

    def load_pause(self) -> tuple[float, str] | None:
        """The pause of this address: seconds left, and why."""

    def save_pause(self, until_ms: int, seconds: float, reason: str) -> None:
        """Keep a pause until it is over."""


@dataclass(eq=False)
class Bulletin(Listener):
    """Keeps the pause and the status in Redis; a status that is gone shows that all else is, too.

    The one worker's that tells Redis, but for `paused`, which is any worker's that has met the pause, and
    `hurry`: what several change is set in one step.
    """

    settings: Settings
    clock: Clock
    store: Store
    gate: Gate
    members: Membership
    losses: Losses
    _status_at_seconds: float = field(default=0.0, init=False)  # monotonic
    _wrote_status: bool = field(default=False, init=False)
    _lost_again: bool = field(default=False, init=False)
    _pause_saved: bool = field(default=True, init=False)
    _warned: set[str] = field(default_factory=set, init=False)  # what is another program's, or not allowed

    def restore_pause(self) -> None:
        """Honour a pause from before the restart. Raises StoreError."""
        try:
            pause = self.store.load_pause()
        except (TakenError, RightsError) as error:
            self._deferred("pause", error)
            return
        if pause:
            seconds, reason = pause
            self.gate.pause(seconds, reason)
            event = "restored a pause from before the restart"
            say(logging.WARNING, event, seconds=round(seconds), reason=reason)

    def paused(self) -> None:
        """Keep the gate's pause for as long as it lasts, so that a restart honours it."""
        gate, self._pause_saved = self.gate, True
        try:
            if self.settings.takes_part and (theirs := self.store.load_pause()):
                gate.pause(*theirs)  # another member's may be longer
            self.store.save_pause(gate.paused_until_ms, gate.pause_left_seconds(), gate.pause_reason)
        except StoreError as error:
            self._pause_saved = isinstance(error, TakenError | RightsError)
            self._deferred("pause", error)
        self.hurry()

    def hurry(self) -> None:
        """Have the status written again with the next look, or tick."""
        self._status_at_seconds = 0.0

    def flush(self) -> None:
        """Keep a pause that could not be kept before."""
        if not self._pause_saved and not self.store.retry_seconds and self.gate.pause_left_seconds():
            self.paused()

    def is_due(self) -> bool:
        """Whether the status is to be written again: regularly, or at once."""
        return self.clock.monotonic() - self._status_at_seconds >= STATUS_SECONDS

    def write_status(self, snapshot: Callable[[], Snapshot], feeds: Iterable[Feed]) -> None:
        """Write the status; where the last one is gone, all else is, and is to be written again."""
        self._status_at_seconds = self.clock.monotonic()  # first: what changes from now on makes it due
        try:
            existed = self.members.publish(snapshot())
        except StoreError as error:
            self._deferred("status", error)
            return
        lost = not existed and self._wrote_status and self.settings.status_ttl > 4 * STATUS_SECONDS
        if lost or self._lost_again:
            # So soon after the last loss: by the next status.
            self._lost_again = not self.losses.note(self.store.keys.status)
            for feed in () if self._lost_again or self.losses.evicting else feeds:
                feed.not_written()
            if self.gate.pause_left_seconds():
                self.paused()
        self.losses.look_again()
        self._wrote_status = True

    def _deferred(self, what: str, error: StoreError) -> None:
        """Log a write that failed; another program's key, or a right that is missing, is a warning, once."""
        if isinstance(error, TakenError | RightsError) and what not in self._warned:
            self._warned.add(what)
            say(logging.WARNING, str(error))
        else:
            say(logging.DEBUG, "deferred, will retry", what=what, reason=str(error))
