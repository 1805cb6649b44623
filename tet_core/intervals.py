"""How long an update interval is, and when candles are due again by it. Pure: times are passed in."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
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


@dataclass(frozen=True)
class IntervalPolicy:
    """How long an update interval is, from the settings of the same names. Seconds."""

    base_seconds: float
    max_age_seconds: float
    off_peak: float
    error_growth: float
    recovery: float

    @classmethod
    def of(cls, config: Settings) -> IntervalPolicy:
        """The policy that the settings ask for."""
        return cls(
            config.update_interval,
            config.max_data_age,
            config.off_peak_multiplier if config.market_hours_optimization else 1.0,
            config.error_backoff_multiplier if config.adaptive_interval else 1.0,
            config.success_recovery_rate,
        )

    def next_error_factor(self, factor: float, failure_rate: float) -> float:
        """The error factor after a cycle: grown, shrunk or as it was; from 1 to what max age allows."""
        if failure_rate > FAILURES_GROW_ABOVE:
            factor *= self.error_growth
        elif failure_rate < FAILURES_SHRINK_BELOW:
            factor *= self.recovery
        return max(1.0, min(factor, self.max_age_seconds / self.base_seconds))

    def interval_seconds(self, hour_utc: int, error_factor: float) -> float:
        """The interval in force, always computed from the base: nothing compounds."""
        peak = hour_utc in PEAK_HOURS_UTC
        seconds = self.base_seconds * (1.0 if peak else self.off_peak) * error_factor
        return min(self.max_age_seconds, max(min(60.0, self.base_seconds), seconds))

    def reason(self, hour_utc: int, error_factor: float) -> str:
        """Why the interval is what it is, in words."""
        parts = [f"base {self.base_seconds:g} s"]
        if hour_utc not in PEAK_HOURS_UTC and self.off_peak != 1:
            parts.append(f"x {self.off_peak:g} off-peak")
        if error_factor > 1:
            parts.append(f"x {error_factor:.2f} after failures")
        return " ".join(parts) + f", at most {self.max_age_seconds:g} s"


class Interval:
    """The update interval in force. The main thread's; others may read."""

    def __init__(self, settings: Settings) -> None:
        self._error_factor = 1.0
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Go by these settings from now on."""
        self._policy = IntervalPolicy.of(settings)

    def cycle_ended(self, failure_rate: float) -> None:
        """Learn from the share of updates that failed in a cycle."""
        self._error_factor = self._policy.next_error_factor(self._error_factor, failure_rate)

    def seconds(self, now_ms: int) -> float:
        """How long it is in this hour."""
        return self._policy.interval_seconds(now_ms // HOUR_MS % 24, self._error_factor)

    def reason(self, now_ms: int) -> str:
        """Why it is so long, in words."""
        return self._policy.reason(now_ms // HOUR_MS % 24, self._error_factor)


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
