"""Figures of the service: counts, delays, memory, what it will cost. No figure decides anything."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

HOUR_MS = 3_600_000


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

    def percentiles(self, now_ms: int) -> dict[str, float | int | None]:
        """How many closes there were in the last day, and the p50, p95 and p99 of their delays in seconds."""
        with self._lock:
            hours = [counts for hour, counts in self._by_hour.items() if hour > now_ms // HOUR_MS - 24]
            tenths = sum(hours, Counter())
        ordered, total = sorted(tenths), tenths.total()
        within = list(accumulate(tenths[tenth] for tenth in ordered))
        found: dict[str, float | int | None] = {"closes": total}
        for share in (50, 95, 99):  # the smallest delay that so many percent of the closes do not exceed
            place = bisect_left(within, -(-share * total // 100))
            found[f"p{share}"] = ordered[place] / 10 if total else None
        return found


def some_of(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def resident_mb() -> float | None:
    """The memory this process holds in MB, None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, AttributeError):
        return None


class Estimate(NamedTuple):
    """What a configuration costs: requests and bytes per hour, and memory for the candles."""

    requests: int
    bytes_from_binance: int
    bytes_to_redis: int
    candles_bytes: int

    def facts(self) -> dict[str, float]:
        """The same for a log line, with units in the names."""
        return {
            "requests_per_hour": self.requests,
            "from_binance_mb_per_hour": round(self.bytes_from_binance / 1e6, 1),
            "to_redis_mb_per_hour": round(self.bytes_to_redis / 1e6),
            "candles_mb": round(self.candles_bytes / 1e6, 1),
        }


def estimate(
    pairs: int, timeframes: Iterable[tuple[int, int]], interval_seconds: int, refetched: int
) -> Estimate:
    """The hourly cost in steady state at the base interval.

    ``timeframes`` has the length of a candle in ms and the number kept, for each. Sizes are those of
    typical replies: 70 bytes a row after gzip and 500 for the reply around them; a stored candle takes 145,
    a patch 1,200. A value is written whole at each close, and once an hour.
    """
    requests = to_redis = candles = 0
    for step_ms, held in timeframes:
        closes = pairs * 3_600_000 / step_ms
        updates = max(pairs * 3600 / interval_seconds, closes)
        whole = min(updates, max(pairs, closes))
        requests += round(updates)
        to_redis += round(whole * held * 145 + (updates - whole) * 1200)
        candles += pairs * held * 155
    return Estimate(requests, requests * (500 + 70 * (refetched + 1)), to_redis, candles)
