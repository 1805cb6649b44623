"""The rows of the page's table: one for each pair and timeframe, worked out only while somebody looks.

What is shown of a pair's candles is worked out again when these have changed, once for all who look.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tet_core.errors import StoreError
from tet_core.series import Series
from tet_core.stored import Image
from tet_core.times import DAY_MS, iso_time

MOST_CANDLES_A_DAY = 1_440  # those of 1s candles are too many to be looked at
SPARK_POINTS = 60  # at most
SPARK_HEIGHT = 100
ENCODE = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps makes one for each row
REFRESH_SECONDS = 0.25  # how often all pairs are looked at, at most, however many people look


def values_of(entry: str) -> tuple[str, ...]:
    """Open, high, low, close, volume… of a candle's entry, which is JSON with its quotes escaped."""
    return tuple(entry.split('\\"')[5::4])


class Extremes(NamedTuple):
    """High, low and the volume in the quote asset of some candles."""

    high: str
    low: str
    volume: float

    @classmethod
    def look(cls, text: str) -> Extremes:
        """Those of joined entries. Volume counts at the mean of a candle's four prices."""
        parts = text.split('\\"')
        step = len(text[: text.index("}")].split('\\"')) - 1  # that an entry falls into at its quotes
        opens, highs, lows, closes, volumes = (parts[5 + 4 * which :: step] for which in range(5))
        rows = zip(volumes, opens, highs, lows, closes, strict=True)
        volume = sum(float(row[0]) * sum(map(float, row[1:])) / 4 for row in rows)
        return cls(max(highs, key=float), min(lows, key=float), volume)

    def joined(self, other: Extremes) -> Extremes:
        """Both together."""
        high, low = max(self.high, other.high, key=float), min(self.low, other.low, key=float)
        return Extremes(high, low, self.volume + other.volume)


class Point(NamedTuple):
    """What is looked at in a candle: its open and close, and the most decimals of its prices."""

    open: float
    close: float
    decimals: int

    @classmethod
    def of(cls, values: Sequence[str]) -> Point:
        """That of a candle's values."""
        decimals = max(len(text.partition(".")[2]) for text in values[:4])
        return cls(float(values[0]), float(values[3]), decimals)


class Looked(NamedTuple):
    """What was seen of the candles of a row but the newest one; ``mark`` says which these were.

    ``first`` and ``yesterday`` are opens, None where the newest candle has it, or none. ``points`` has what
    was seen of packed candles, by the pack and the place in it: a window that has moved on has most of its
    packs still.
    """

    mark: tuple[int, ...]
    first: float | None
    yesterday: float | None
    has_day: bool
    closes: Sequence[float]
    decimals: int
    day: Extremes | None
    points: Mapping[tuple[bytes, int], Point]

    @classmethod
    def look(cls, image: Image, mark: tuple[int, ...], seen: Mapping[tuple[bytes, int], Point]) -> Looked:
        """Look at them; at what was ``seen`` before not again."""
        series, start, last = image.series, image.start, image.end - 1
        opens, step_ms = series.opens, series.timeframe.step_ms
        day = bisect_right(opens, opens[last] - DAY_MS, start, last)
        has_day = step_ms < DAY_MS and opens[start] <= opens[last] - DAY_MS + step_ms
        spark = _spark_places(series, start, last)
        points, kept = _points(series, {place for place in (start, day, *spark) if place < last}, seen)
        closes = tuple(points[place].close for place in spark)
        return cls(
            mark,
            points[start].open if start in points else None,
            points[day].open if day in points else None,
            has_day,
            closes,
            max((points[place].decimals for place in spark), default=0),
            _day_of(series, day, last) if has_day else None,
            kept,
        )


def _points(
    series: Series, places: Iterable[int], seen: Mapping[tuple[bytes, int], Point]
) -> tuple[dict[int, Point], dict[tuple[bytes, int], Point]]:
    """What is to be looked at in candles, by their places, and the same of packed ones, to be remembered."""
    points, kept = {}, {}
    unpacked: tuple[bytes, Sequence[str]] = (b"", ())
    for place in sorted(places):
        if not (packed := series.older.pack_at(place)):
            points[place] = Point.of(values_of(series.entry(place)))
            continue
        pack, number = packed
        if not (point := seen.get((pack.packed, number))):
            if unpacked[0] is not pack.packed:
                unpacked = pack.packed, pack.run().entries
            point = Point.of(values_of(unpacked[1][number]))
        points[place] = kept[pack.packed, number] = point
    return points, kept


def _day_of(series: Series, day: int, last: int) -> Extremes | None:
    """The extremes of a day's closed candles, from ``day`` to ``last``, where there are not too many."""
    if not day < last < day + MOST_CANDLES_A_DAY:
        return None
    return Extremes.look(series.joined(day, last).decode())


def _spark_places(series: Series, start: int, last: int) -> list[int]:
    """Evenly spaced places of the sparkline; the candles there stay the same while the window moves on."""
    stride = max(1, -(-(last - start) // (SPARK_POINTS - 1)))
    first = start + -series.timeframe.number(series.opens[start]) % stride
    return list(range(first, last, stride))


def summary(image: Image, before: Looked | None = None, decimals: int = 0) -> tuple[dict[str, Any], Looked]:
    """What a row says of its candles, and what was looked at; ``image`` is a value of one candle or more.

    ``price`` is the newest candle's close, exact. Changes are shares: over the window from its first open,
    over 24 hours from the open of the oldest candle that opened less than that before the newest one did;
    None where the candles do not reach back so far, or are days long, and so are high, low and the volume in
    the quote asset of these 24 hours. ``spark`` has closes, from 0 to 100. ``decimals`` is how many prices of
    the pair have: the most that were seen, so that they do not change with each price. What was looked at
    ``before`` is not looked at again: where the newest candle alone has changed, that is all that costs.
    """
    series, start, end = image.series, image.start, image.end
    newest_ms, entry = series.opens[end - 1], series.entry(end - 1)
    mark = (series.older.mark(), start, end, newest_ms)
    known = before if before and before.mark == mark else None
    known = known or Looked.look(image, mark, before.points if before else {})
    values = values_of(entry)
    newest = Point.of(values)
    closes = (*known.closes, newest.close)
    low, height = min(closes), max(closes) - min(closes)
    first, yesterday = (newest.open if at is None else at for at in (known.first, known.yesterday))
    whole = known.day.joined(Extremes.look(entry)) if known.day else None
    return {
        "price": values[3],
        "decimals": max(decimals, known.decimals, newest.decimals),
        "change_24h": round(newest.close / yesterday - 1, 6) if known.has_day else None,
        "change_window": round(newest.close / first - 1, 6),
        "high_24h": whole.high if whole else None,
        "low_24h": whole.low if whole else None,
        "volume_24h": float(f"{whole.volume:.6g}") if whole else None,
        "newest": iso_time(newest_ms),
        "data_end": iso_time(series.closed_end_ms),
        "candles": end - start,
        "completeness": image.completeness,
        "spark": [round((close - low) / (height or 1) * SPARK_HEIGHT) for close in closes],
    }, known


NOTHING: Mapping[str, Any] = dict.fromkeys(
    "price change_24h change_window high_24h low_24h volume_24h newest data_end".split(), None
) | {"decimals": 0, "candles": 0, "completeness": 0.0, "spark": []}


class Shown(NamedTuple):
    """A feed as the table shows it: fresh, stale, failing or missing, and why; its candles, if in memory.

    ``candles`` gives them as they are stored, from wherever they are, None where there are none.
    """

    symbol: str
    timeframe: str
    state: str
    reason: str
    updated: str | None
    series: Series | None
    candles: Callable[[], Image | None]


class _Row(NamedTuple):
    """A row as text, what it was made of, and the table's version when it changed last."""

    facts: tuple[Any, ...]
    summary: Mapping[str, Any]
    text: str
    version: int
    looked: Looked | None = None


class _Seen(NamedTuple):
    """The rows as they were seen last; what is said of them is made once for all who ask for the same."""

    version: int
    rows: dict[tuple[str, str], _Row]
    texts: dict[int, str]

    def since(self, version: int) -> tuple[int, str]:
        """As `Table.since`."""
        if version not in self.texts:
            texts = [row.text for row in self.rows.values() if row.version > version]
            self.texts[version] = f"[{','.join(texts)}]"
        return self.version, self.texts[version]


class Table:
    """The rows, each as JSON, with a version that grows with each change.

    ``shown`` gives the feeds, their state, and a way to their candles, which raises StoreError where these
    cannot be had now. Any thread may ask. One looks at the pairs, under `_looking`, which may take long where
    candles come from Redis; meanwhile others get what was seen before, but at first, when there is none.
    """

    def __init__(self, shown: Callable[[], Iterable[Shown]]) -> None:
        self._shown = shown
        self._looking = threading.Lock()
        self._looked_at_seconds = float("-inf")  # monotonic
        self._seen = _Seen(0, {}, {})

    def since(self, version: int) -> tuple[int, str]:
        """The table's version, and the rows that changed after ``version`` as a JSON array; 0 gives all."""
        if self._is_due() and self._looking.acquire(blocking=not self._seen.rows):
            try:
                if self._is_due():  # still, after another thread's look
                    self._look()
            finally:
                self._looking.release()
        return self._seen.since(version)

    def _is_due(self) -> bool:
        return time.monotonic() - self._looked_at_seconds >= REFRESH_SECONDS

    def _look(self) -> None:
        """Look at all feeds, and make the rows anew that are not as they were."""
        before, rows = self._seen, {}
        for feed in self._shown():
            key = (feed.symbol, feed.timeframe)
            rows[key] = self._row(feed, before.rows.get(key), before.version + 1)
        version = max((row.version for row in rows.values()), default=0)
        self._seen = _Seen(max(version, before.version), rows, {})
        self._looked_at_seconds = time.monotonic()

    def _row(self, feed: Shown, before: _Row | None, version: int) -> _Row:
        # A reference that does not keep the candles in memory; evicted ones change with the time of update.
        candles = feed.updated if feed.series is None else weakref.ref(feed.series)
        facts = (candles, feed.state, feed.reason, feed.updated)
        if before and before.facts == facts:
            return before
        found, looked = (before.summary, before.looked) if before else (NOTHING, None)
        if not before or before.facts[0] != candles:
            try:
                image, known = feed.candles(), (looked, found["decimals"])
                found, looked = summary(image, *known) if image else (NOTHING, None)
            except StoreError:
                facts = (None, *facts[1:])  # so it is tried again
        own = {name: getattr(feed, name) for name in ("symbol", "timeframe", "state", "reason", "updated")}
        text = ENCODE(own | dict(found))
        version = before.version if before and before.text == text else version
        return _Row(facts, found, text, version, looked)
