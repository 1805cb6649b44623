"""What is not as it should be though Redis answers: said once in the log, and shown in the status."""

from __future__ import annotations

import logging
from typing import NamedTuple

from tet_core.errors import say


class Notice(NamedTuple):
    """What is wrong and what helps; one that is serious makes the service not ready."""

    text: str
    is_serious: bool


class Notices:
    """The notices in force, by subject. Any thread may use it: each change replaces what is there."""

    def __init__(self) -> None:
        self._held: dict[str, Notice] = {}

    def note(self, subject: str, text: str, *, is_serious: bool = False) -> None:
        """Have this in force; it is logged when the subject is new."""
        if subject not in self._held:
            say(logging.WARNING, text)
        self.hold(subject, text, is_serious=is_serious)

    def hold(self, subject: str, text: str, *, is_serious: bool = False) -> None:
        """The same of what is logged otherwise."""
        self._held = self._held | {subject: Notice(text, is_serious)}

    def has(self, subject: str) -> bool:
        """Whether it is in force."""
        return subject in self._held

    def clear(self, subject: str) -> bool:
        """Have it no more. Returns whether it was in force."""
        was_there = subject in self._held
        self._held = {name: held for name, held in self._held.items() if name != subject}
        return was_there

    @property
    def texts(self) -> list[str]:
        """All, for the status' warnings."""
        return [notice.text for notice in self._held.values()]

    @property
    def reasons(self) -> list[str]:
        """Those for which the service is not ready."""
        return [notice.text for notice in self._held.values() if notice.is_serious]
