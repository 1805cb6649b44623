"""How long an update interval is, and when candles are due again by it. Pure: times are passed in."""

from __future__ import annotations

import zlib
from typing import Protocol

from tet_core.times import HOUR_MS, SECOND_MS, Timeframe

AFTER_CLOSE_MS = 1 * SECOND_MS  # feeds are due this long after a close
PROOF_INTERVALS = 10  # a live feed is asked for by REST once in so many update intervals
#: Hours (UTC) in which most trading happens; outside of them OFF_PEAK_MULTIPLIER applies.
PEAK_HOURS_UTC = frozenset({7, 8, 9, 13, 14, 15, 21, 22})
FAILURES_GROW_ABOVE = 0.20
FAILURES_SHRINK_BELOW = 0.05


class Settings(Protocol):
    """The settings that decide it."""

    @property
    def update_interval(self) -> int:
        """Seconds."""

    @property
    def max_data_age(self) -> int:
        """Seconds."""

    @property
    def market_hours_optimization(self) -> bool:
        """Whether hours count in which little is traded."""

    @property
    def adaptive_interval(self) -> bool:
        """Whether failures count."""

    @property
    def off_peak_multiplier(self) -> float:
        """The interval's factor in those hours."""

    @property
    def error_backoff_multiplier(self) -> float:
        """Its growth after a failing cycle."""

    @property
    def success_recovery_rate(self) -> float:
        """Its shrinking after a good one."""


class Interval:
    """How long the update interval is, by the settings in force. The main thread's; others may read.

    It is always computed from the base, so that nothing compounds.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.error_factor = 1.0

    def cycle_ended(self, failure_rate: float) -> None:
        """Grow or shrink the error factor by the share that failed; from 1 to what max age allows."""
        settings, factor = self._settings, self.error_factor
        if failure_rate > FAILURES_GROW_ABOVE and settings.adaptive_interval:
            factor *= settings.error_backoff_multiplier
        elif failure_rate < FAILURES_SHRINK_BELOW:
            factor *= settings.success_recovery_rate
        self.error_factor = max(1.0, min(factor, settings.max_data_age / settings.update_interval))

    def _hour_factor(self, now_ms: int) -> float:
        is_peak = now_ms // HOUR_MS % 24 in PEAK_HOURS_UTC
        counts = self._settings.market_hours_optimization and not is_peak
        return self._settings.off_peak_multiplier if counts else 1.0

    def seconds(self, now_ms: int) -> float:
        """How long it is in this hour."""
        base_seconds = self._settings.update_interval
        seconds = base_seconds * self._hour_factor(now_ms) * self.error_factor
        return min(self._settings.max_data_age, max(min(60.0, base_seconds), seconds))

    def reason(self, now_ms: int) -> str:
        """Why it is so long, in words."""
        parts, hour_factor = [f"base {self._settings.update_interval:g} s"], self._hour_factor(now_ms)
        if hour_factor != 1:
            parts.append(f"x {hour_factor:g} off-peak")
        if self.error_factor > 1:
            parts.append(f"x {self.error_factor:.2f} after failures")
        return " ".join(parts) + f", at most {self._settings.max_data_age:g} s"


def next_due_ms(started_ms: int, interval_seconds: float, timeframe: Timeframe) -> int:
    """When candles last asked for at ``started_ms`` are due again: the earlier of the interval's end
    and a second after the next close.
    """
    close_ms = timeframe.close_of(timeframe.floor(started_ms)) + AFTER_CLOSE_MS
    return min(started_ms + round(interval_seconds * SECOND_MS), close_ms)


def next_proof_ms(name: str, now_ms: int, interval_seconds: float) -> int:
    """When a live feed is proven by REST: in every tenth interval, a tenth of the feeds in each."""
    interval_ms = round(interval_seconds * SECOND_MS)
    number = (now_ms - interval_ms // 2) // interval_ms + 1
    turn = zlib.crc32(name.encode()) % PROOF_INTERVALS
    # In the middle of an interval: at its borders candles close.
    return (number + (turn - number) % PROOF_INTERVALS) * interval_ms + interval_ms // 2
