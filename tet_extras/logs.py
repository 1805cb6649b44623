"""How the log looks and where it goes, for LOG_FORMAT and LOG_FILE."""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime


class LogFormatter(logging.Formatter):
    """One line per event, for people or as a JSON object; times in UTC, secrets redacted.

    A record's ``facts``, a dict, are written as ``name=value``, or as fields of the object.
    """

    def __init__(self, style: str, secrets: Sequence[str]) -> None:
        super().__init__()
        self._json = style == "json"
        self._secrets = secrets

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
    text = str(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text, ensure_ascii=False)


class LogFile(logging.handlers.RotatingFileHandler):
    """A log file that is rotated when it is full. When it cannot be written, stderr hears of it, once."""

    _reported = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; what cannot be written goes to stderr instead."""
        self._failed = False
        super().emit(record)
        self._reported = self._reported and self._failed

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Go on: a full disk must not stop the service."""
        self._failed = True
        if not self._reported:
            self._reported = True
            error = sys.exc_info()[1]
            print(f"LOG_FILE {self.baseFilename} cannot be written ({error}); logging here", file=sys.stderr)
        print(self.format(record), file=sys.stderr)


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
