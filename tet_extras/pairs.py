"""The rows of the page's table: one for each pair and timeframe, worked out only while somebody looks.

What is shown of a pair's candles is worked out again when these have changed, once for all who look.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, NamedTuple

DAY_MS = 86_400_000
SPARK_POINTS = 60
SPARK_HEIGHT = 100
REFRESH_SECONDS = 0.25  # how often all pairs are looked at, at most, however many people look


def iso_time(at_ms: int) -> str:
    """A time in ms since the epoch as the service writes them: 2024-01-01T12:00:00Z."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def values_of(entry: str) -> tuple[str, ...]:
    """Open, high, low, close and volume of a candle's entry, which is JSON with its quotes escaped."""
    return tuple(entry.split('\\"')[5::4])


def summary(image: Any) -> dict[str, Any]:
    """What a row says of its candles: ``image`` is a stored value, one candle or more.

    ``price`` is the newest candle's close, exact. Changes are shares: over the window from its first open,
    over 24 hours from the open of the oldest candle that opened less than that before the newest one did;
    None where the candles do not reach back so far, or are days long. ``spark`` has closes, from 0 to 100.
    """
    series, start, end = image.series, image.start, image.end
    opens, step_ms = series.opens, series.timeframe.step_ms
    ends = list(accumulate(length + 1 for length in series.lengths))

    def value(index: int, which: int) -> str:
        if index == len(opens) - 1:
            return values_of(series.newest.decode())[which]
        entry = series.body[ends[index] - series.lengths[index] - 1 : ends[index] - 1]
        return values_of(entry.decode())[which]

    price = value(end - 1, 3)
    day = bisect_right(opens, opens[end - 1] - DAY_MS, start, end)
    has_day = step_ms < DAY_MS and opens[start] <= opens[end - 1] - DAY_MS + step_ms
    count = min(SPARK_POINTS, end - start)
    places = [end - 1 - (count - 1 - i) * (end - start - 1) // max(1, count - 1) for i in range(count)]
    closes = [float(value(place, 3)) for place in places]
    low, height = min(closes), max(closes) - min(closes)
    return {
        "price": price,
        "change_24h": round(float(price) / float(value(day, 0)) - 1, 6) if has_day else None,
        "change_window": round(float(price) / float(value(start, 0)) - 1, 6),
        "newest": iso_time(opens[end - 1]),
        "data_end": iso_time(series.closed_end_ms),
        "candles": end - start,
        "completeness": image.completeness,
        "spark": [round((close - low) / (height or 1) * SPARK_HEIGHT) for close in closes],
    }


NOTHING: Mapping[str, Any] = dict.fromkeys(
    ("price", "change_24h", "change_window", "newest", "data_end"), None
) | {"candles": 0, "completeness": 0.0, "spark": []}


class _Row(NamedTuple):
    """A row as text, what it was made of, and the table's version when it changed last."""

    facts: tuple[Any, ...]
    summary: Mapping[str, Any]
    text: str
    version: int


class Table:
    """The rows, each as JSON, with a version that grows with each change.

    ``shown`` gives the feeds and their state, ``candles_of`` the candles of one, which raises ``failed``
    where they cannot be had now. Any thread may ask; `_lock` is held while pairs are looked at.
    """

    def __init__(
        self,
        shown: Callable[[], Iterable[Any]],
        candles_of: Callable[[str, str], Any],
        failed: type[Exception],
    ) -> None:
        self._shown = shown
        self._candles_of = candles_of
        self._failed = failed
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], _Row] = {}
        self._looked_at_seconds = 0.0  # monotonic
        self._version = 0

    def since(self, version: int) -> tuple[int, str]:
        """The table's version, and the rows that changed after ``version`` as a JSON array; 0 gives all."""
        with self._lock:
            if time.monotonic() - self._looked_at_seconds >= REFRESH_SECONDS:
                self._refresh()
                self._looked_at_seconds = time.monotonic()
            texts = [row.text for row in self._rows.values() if row.version > version]
            return self._version, f"[{','.join(texts)}]"

    def _refresh(self) -> None:
        """Look at all feeds, and make the rows anew that are not as they were."""
        version, rows = self._version + 1, {}
        for feed in self._shown():
            key = (feed.symbol, feed.timeframe)
            rows[key] = row = self._row(feed, self._rows.get(key), version)
            self._version = max(self._version, row.version)
        self._rows = rows

    def _row(self, feed: Any, before: _Row | None, version: int) -> _Row:
        # A reference that does not keep the candles in memory; evicted ones change with the time of update.
        candles = feed.updated if feed.series is None else weakref.ref(feed.series)
        facts = (candles, feed.state, feed.reason, feed.updated)
        if before and before.facts == facts:
            return before
        found = before.summary if before else NOTHING
        if not before or before.facts[0] != candles:
            try:
                image = self._candles_of(feed.symbol, feed.timeframe)
                found = summary(image) if image else NOTHING
            except (self._failed, LookupError):
                facts = (None, *facts[1:])  # so it is tried again
        own = {name: getattr(feed, name) for name in ("symbol", "timeframe", "state", "reason", "updated")}
        text = json.dumps(own | dict(found), separators=(",", ":"))
        return _Row(facts, found, text, before.version if before and before.text == text else version)
