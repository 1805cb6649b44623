"""How the log looks and where it goes, for LOG_FORMAT and LOG_FILE."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from tet_core.errors import LOGGER

ROTATE_AGAIN_SECONDS = 60.0


class LogFormatter(logging.Formatter):
    """One line per event, for people or as a JSON object; times in UTC, secrets redacted.

    A record's ``facts``, a dict, are written as ``name=value``, or as fields of the object.
    """

    def __init__(self, style: str, secrets: Sequence[str]) -> None:
        super().__init__()
        self._json = style == "json"
        self._secrets = tuple(secrets)

    def redact_too(self, secrets: Sequence[str]) -> None:
        """Redact these as well, from now on."""
        self._secrets = tuple(sorted({*self._secrets, *secrets}, key=len, reverse=True))

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line (a traceback follows on lines of its own in text style)."""
        facts = {name: self._redacted(value) for name, value in getattr(record, "facts", {}).items()}
        when = datetime.fromtimestamp(int(record.created), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = self._without_secrets(record.getMessage())  # before quoting can hide them
        trace = self._without_secrets(self.formatException(record.exc_info)) if record.exc_info else ""
        if self._json:
            line = {"time": when, "level": record.levelname.lower(), "event": event, **facts}
            return json.dumps(line | ({"traceback": trace} if trace else {}), ensure_ascii=False)
        words = "".join(f" {name}={_as_word(value)}" for name, value in facts.items())
        text = f"{when} {record.levelname:<7} {event}{words}"
        return f"{text}\n{trace}" if trace else text

    def _redacted(self, value: object) -> object:
        """The value without secrets."""
        return value if isinstance(value, int | float | None) else self._without_secrets(str(value))

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _as_word(value: object) -> str:
    """The value as one word, quoted where it is not: so a line can be taken apart again."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text, ensure_ascii=False)


class LogFile(logging.handlers.RotatingFileHandler):
    """A log file that is rotated when it is full, and begun anew when somebody has removed or moved it.

    When it cannot be written, its records go to stderr, which hears why, once. When it cannot be rotated it
    goes on growing.
    """

    _reported = False
    _cannot_rotate = False
    _rotate_at_seconds = 0.0  # monotonic

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; what cannot be written goes to stderr instead."""
        self._failed = False
        if self.stream and self._is_gone(self.stream.fileno()):
            with suppress(OSError):
                self.stream.close()
            self.stream = None  # logging opens it again
        super().emit(record)
        self._reported = self._reported and self._failed

    def _is_gone(self, descriptor: int) -> bool:
        """Whether what is written there would be found by nobody."""
        try:
            return not os.path.samestat(os.fstat(descriptor), Path(self.baseFilename).stat())
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Go on: a full disk must not stop the service."""
        self._failed = True
        if not self._reported:
            self._reported = True
            error = sys.exc_info()[1]
            print(f"LOG_FILE {self.baseFilename} cannot be written ({error}); logging here", file=sys.stderr)
        print(self.format(record), file=sys.stderr)

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 (logging's name)
        """Whether it is full; where it could not be rotated, that is asked again in a minute."""
        return time.monotonic() >= self._rotate_at_seconds and bool(super().shouldRollover(record))

    def doRollover(self) -> None:  # noqa: N802 (logging's name)
        """Rotate; the first failure is reported on stderr. Raises OSError when the file cannot be opened."""
        try:
            super().doRollover()
            self._cannot_rotate = False
        except OSError as error:
            if not self._cannot_rotate:
                print(f"LOG_FILE {self.baseFilename} cannot be rotated ({error}); it grows", file=sys.stderr)
            self._cannot_rotate = True
            self._rotate_at_seconds = time.monotonic() + ROTATE_AGAIN_SECONDS
            self.stream = self.stream or self._open()


def apply(level: str, secrets: Sequence[str]) -> None:
    """Log at that level, and without these secrets, from now on, wherever events go."""
    root, ours = logging.getLogger(), logging.getLogger(LOGGER)
    for handler in root.handlers:
        handler.setLevel(level.upper())
    ours.setLevel(min(logging.INFO, logging.getLevelNamesMapping()[level.upper()]))  # /api/events has info
    for handler in (*root.handlers, *ours.handlers):
        if isinstance(handler.formatter, LogFormatter):
            handler.formatter.redact_too(secrets)


def make_handler(
    style: str, secrets: Sequence[str], file: str | None, max_mb: int, backups: int
) -> logging.Handler:
    """A handler for stderr, or for the log file. Raises OSError when that cannot be opened."""
    handler: logging.Handler = logging.StreamHandler()
    if file:
        handler = LogFile(
            file,
            maxBytes=max_mb * 1_000_000,
            backupCount=backups,
            encoding="utf-8",
            errors="backslashreplace",
        )
    handler.setFormatter(LogFormatter(style, secrets))
    return handler
