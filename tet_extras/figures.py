"""Figures of the service: counts, delays, memory, what it will cost. No figure decides anything."""

from __future__ import annotations

import os
import sys
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

from tet_core.candles import Fields
from tet_core.errors import some_of
from tet_core.snapshot import Delays
from tet_core.times import HOUR_MS, SECOND_MS, Timeframe


class Tally:
    """Counts by name. Any thread may add; `_lock` makes each addition and each reading whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, count: int = 1) -> None:
        """Count so many more under that name."""
        with self._lock:
            self._counts[name] += count

    def counts(self) -> dict[str, int]:
        """The counts so far, by name."""
        with self._lock:
            return dict(self._counts)

    def take(self, *names: str) -> list[int]:
        """The counts of these names, which begin anew."""
        with self._lock:
            return [self._counts.pop(name, 0) for name in names]

    def total(self) -> int:
        """All counts together."""
        return sum(self.counts().values())


class DayOfDelays:
    """Seconds from a candle's close to its being in Redis, over the last day, to a tenth of a second.

    Counted by hour, so that it stays small however many candles close. `_lock` guards the counts.
    """

    def __init__(self) -> None:
        self._by_hour: dict[int, Counter[int]] = {}
        self._lock = threading.Lock()

    def add(self, seconds: float, now_ms: int) -> None:
        """Note one delay."""
        hour = now_ms // HOUR_MS
        with self._lock:
            self._by_hour.setdefault(hour, Counter())[round(seconds * 10)] += 1
            for old in [known for known in self._by_hour if known <= hour - 24]:
                del self._by_hour[old]

    def counts(self, now_ms: int) -> Counter[int]:
        """How often there was which delay in the last day, in tenths of a second."""
        with self._lock:
            hours = [counts for hour, counts in self._by_hour.items() if hour > now_ms // HOUR_MS - 24]
            return sum(hours, Counter())


def percentiles(tenths: Counter[int]) -> Delays:
    """How many closes there were, and the p50, p95 and p99 of their delays in seconds."""
    ordered, total = sorted(tenths), tenths.total()
    within = list(accumulate(tenths[tenth] for tenth in ordered))
    if not total:
        return Delays(0, None, None, None)
    # The smallest delay that so many percent of the closes do not exceed.
    places = (bisect_left(within, -(-share * total // 100)) for share in (50, 95, 99))
    return Delays(total, *(ordered[place] / 10 for place in places))


def lacks_text(member: str, feeds: Sequence[str]) -> str:
    """What a member of a group lacks of what the others keep, in words; no feeds: it does not say."""
    if not feeds:
        return f"GROUP: {member} does not say which pairs it has (an older release); others keep them, too"
    which = f"{len(feeds)} of the group's pairs: {some_of(feeds)}"
    return f"GROUP: {member} lacks {which}; set SYMBOLS and TIMEFRAME alike, or another GROUP"


def resident_mb() -> float | None:
    """The memory this process holds in MB, None where the system does not say."""
    if sys.platform == "win32":
        from . import windows

        held = windows.resident_bytes()
        return held / 1e6 if held else None
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, AttributeError):
        return None


PLAIN = 150  # candles of a series that are not packed: see `tet_core.history`


class Estimate(NamedTuple):
    """What a configuration costs: requests and bytes per hour, the candles in Redis and in memory."""

    requests: int
    bytes_from_binance: int
    bytes_to_redis: int
    stored_bytes: int
    candles_bytes: int

    def facts(self) -> dict[str, float]:
        """The same for a log line, with units in the names."""
        return {
            "requests_per_hour": self.requests,
            "from_binance_mb_per_hour": round(self.bytes_from_binance / 1e6, 1),
            "to_redis_mb_per_hour": round(self.bytes_to_redis / 1e6, 1),
            "candles_mb": round(self.candles_bytes / 1e6, 1),
        }


class Settings(Protocol):
    """The settings that the costs follow from."""

    @property
    def timeframe(self) -> tuple[Timeframe, ...]:
        """All timeframes."""

    @property
    def data_days(self) -> int:
        """How long the window is."""

    @property
    def update_interval(self) -> int:
        """Seconds."""

    @property
    def incremental_candles(self) -> int:
        """How many candles are fetched again with each update."""

    @property
    def kept_fields(self) -> Fields:
        """What is kept of a candle."""


def estimate(pairs: int, settings: Settings) -> Estimate:
    """The hourly cost in steady state at the base interval.

    Sizes are those of typical replies and values: 70 bytes a row after gzip and 500 for the reply around
    them; a stored candle of five fields takes 155, each more 38, and a write, of a close or not, 1,200. In
    memory the last candles, some `PLAIN` of them, take 165 bytes more than the packed ones, which take 35.
    """
    requests = stored = candles = 0
    more = len(settings.kept_fields.names) - 5
    for timeframe in settings.timeframe:
        held = timeframe.candles_in_days(settings.data_days)
        requests += round(pairs * HOUR_MS / min(settings.update_interval * SECOND_MS, timeframe.step_ms))
        stored += pairs * held * (155 + 38 * more)
        candles += pairs * (held * (35 + 9 * more) + min(held, PLAIN) * (165 + 29 * more))
    from_binance = requests * (570 + 70 * settings.incremental_candles)
    return Estimate(requests, from_binance, requests * 1200, stored, candles)
