"""Settings that change while the service runs: read again on SIGHUP, or when the config file has changed.

They are checked as at the start, and with those that stay: what is wrong leaves all as it was. What can be
applied in place is; the rest is named, since it needs a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from tet_core.errors import ConfigError, TetError, say
from tet_core.protocols import Clock
from tet_core.snapshot import SettingsRead
from tet_core.times import iso_time

from .notices import Notices

C = TypeVar("C")

#: What is applied in place. Every other setting decides about connections, keys in Redis or stored values.
IN_PLACE = frozenset(
    (
        *("symbols", "max_symbols", "timeframe", "update_interval", "concurrent_requests", "max_data_age"),
        *("api_requests_per_sec", "incremental_candles", "batch_size", "live_write_seconds"),
        *("proof_weight_share", "audit_hours", "kline_ttl", "timestamp_ttl", "status_ttl"),
        *("max_update_time", "max_failure_rate", "memory_limit_mb", "adaptive_interval"),
        *("market_hours_optimization", "error_backoff_multiplier", "success_recovery_rate"),
        *("off_peak_multiplier", "log_level", "public_data", "binance_api_key", "binance_secret_key"),
    )
)
WATCH_SECONDS = 2.0  # between two looks at the file, which has to be the same in both: it may be half written
GONE = (0, 0, 0)

#: What shows that a file has changed: when it was written, its size, and which file it is.
Stamp = tuple[int, int, int]


class InForce:
    """Stands for the settings: what is read of it is in force now. ``config`` is replaced as a whole."""

    def __init__(self, config: object) -> None:
        self.config: Any = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def in_force(config: C) -> C:
    """The settings as they are in force, for who reads them again and again."""
    return cast(C, InForce(config))


def stamp_of(file: Path | None) -> Stamp:
    """The file as it is now; `GONE` where there is none, or nobody can see."""
    try:
        found = file.stat() if file else None
    except OSError:
        return GONE
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found else GONE


class Reload:
    """Reads the settings again. The main thread's alone, but `ask`.

    ``resolve`` gives them anew (``config``, ``origins`` and ``warnings``), ``check`` what is wrong between
    settings by name; ``file`` is watched, if it is one. Raises nothing.
    """

    def __init__(
        self,
        clock: Clock,
        given: Any,
        resolve: Callable[[], Any],
        check: Callable[[Mapping[str, Any], Mapping[str, str]], Sequence[str]],
        file: Path | None = None,
    ) -> None:
        self._clock = clock
        self._given = given  # as the settings were asked for: an embedded server's address is another one
        self._resolve = resolve
        self._check = check
        self._file = file
        self._asked_by = ""
        self._read_stamp = self._seen_stamp = stamp_of(file)
        self._look_at_seconds = 0.0  # monotonic
        self.outcome = SettingsRead(None, None, [], [])

    def ask(self, by: str) -> None:
        """Have them read again soon; any thread may ask."""
        self._asked_by = by

    def look(self, settings: Any, notices: Notices) -> frozenset[str] | None:
        """Read them again if that was asked for, or the file has changed; what was applied, by name.

        What is wrong is a notice until they are read again. Returns None where they were not read.
        """
        by, self._asked_by = self._asked_by or self._changed(), ""
        if not by:
            return None
        applied = self._read(settings, by)
        notices.clear("settings")
        if self.outcome.problems:
            problems = "; ".join(self.outcome.problems)
            notices.hold("settings", f"the settings were not taken over: {problems}")
        return applied

    def _changed(self) -> str:
        """Whether the file is another one than was read, and the same as at the last look."""
        if not self._file or self._clock.monotonic() < self._look_at_seconds:
            return ""
        self._look_at_seconds = self._clock.monotonic() + WATCH_SECONDS
        before, self._seen_stamp = self._seen_stamp, stamp_of(self._file)
        if self._seen_stamp in (self._read_stamp, GONE) or self._seen_stamp != before:
            return ""
        return "--watch-config"

    def _read(self, settings: InForce, by: str) -> frozenset[str]:
        self._read_stamp = self._seen_stamp = stamp_of(self._file)
        self.outcome = replace(self.outcome, read=iso_time(self._clock.now_ms()), by=by)
        try:
            resolved = self._resolve()
            names = [field.name for field in fields(self._given)]
            differing = [name for name in names if getattr(resolved.config, name) != self._of(name)]
            applied = frozenset(differing) & IN_PLACE
            mixed = replace(self._given, **{name: getattr(resolved.config, name) for name in applied})
            if problems := self._check(vars(mixed), resolved.origins):
                raise ConfigError(problems)
        except TetError as error:
            self._refuse(error, by)
            return frozenset()
        self._given = mixed
        settings.config = replace(settings.config, **{name: getattr(mixed, name) for name in applied})
        self._say(by, applied, [name.upper() for name in differing if name not in applied])
        for warning in resolved.warnings:
            say(logging.WARNING, warning)
        return applied

    def _of(self, name: str) -> object:
        return getattr(self._given, name)

    def _refuse(self, error: TetError, by: str) -> None:
        problems = list(error.problems) if isinstance(error, ConfigError) else [str(error)]
        for problem in problems:
            say(logging.ERROR, "settings not taken over, all stays as it was", by=by, problem=problem)
        self.outcome = replace(self.outcome, problems=problems)

    def _say(self, by: str, applied: frozenset[str], later: Sequence[str]) -> None:
        names = ",".join(sorted(name.upper() for name in applied))
        say(logging.INFO, "settings read again", by=by, applied=names or "none")
        if later:
            say(logging.WARNING, "settings that need a restart", names=",".join(later))
        self.outcome = replace(self.outcome, problems=[], need_restart=list(later))
