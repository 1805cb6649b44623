"""What happened lately: the log's lines that an operator looks for, kept for the page and /api/events."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tet_extras.logs import LogFormatter

KEPT = 50
MAX_CHARACTERS = 2_000  # of a fact
#: Lines at level info that come with every cycle, or once at the start to say what was set.
ROUTINE = frozenset({"cycle", "settings", "estimate"})


class RecentEvents(logging.Handler):
    """Keeps the last `KEPT` events: all warnings and errors, and what is logged at level info and no routine.

    Each is the log's own line in its JSON form, so secrets are redacted. What comes again with the same facts
    is one event, with ``times`` and ``last``. Any thread may log and read: the handler's lock guards both.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(LogFormatter("json", secrets))
        self._events: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record, if it is one that is looked for; logging calls this with the lock held."""
        if record.levelno < logging.WARNING and record.msg in ROUTINE:
            return
        line = json.loads(self.format(record))
        line = {key: fact[:MAX_CHARACTERS] if isinstance(fact, str) else fact for key, fact in line.items()}
        when = line.pop("time")
        key = json.dumps(line, sort_keys=True)
        before = self._events.pop(key, None)
        again = {"times": before.get("times", 1) + 1, "last": when} if before else {}
        self._events[key] = {"time": before["time"] if before else when, **line, **again}
        if len(self._events) > KEPT:
            self._events.popitem(last=False)

    def latest(self) -> list[dict[str, Any]]:
        """The events, the newest first: time, level, event and its facts."""
        self.acquire()
        try:
            return list(self._events.values())[::-1]
        finally:
            self.release()


@contextmanager
def kept(logger: str, secrets: Sequence[str]) -> Iterator[RecentEvents]:
    """The events of a logger, from now on and for as long as the block lasts."""
    recent = RecentEvents(secrets)
    logging.getLogger(logger).addHandler(recent)
    try:
        yield recent
    finally:
        logging.getLogger(logger).removeHandler(recent)
