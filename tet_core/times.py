"""Times and timeframes: units, RFC 3339, and the grid on which candles stand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import sub

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
NEVER_MS = 1 << 62  # later than anything

MEAN_MONTH_MS = 2_629_746 * SECOND_MS  # a twelfth of the mean Gregorian year


@lru_cache(maxsize=512)
def _iso_date(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")


#: An offset of the local clock worth a log line, and a jump of it worth asking for the time again.
MAX_CLOCK_OFFSET_MS = 1 * SECOND_MS
#: How far the exchange clock kept here may be off before a candle counts as one from the future.
CLOCK_TOLERANCE_MS = 2 * SECOND_MS


def iso_time(at_ms: int) -> str:
    """A time in ms since the epoch as RFC 3339 in UTC, whole seconds: ``2024-01-01T12:00:00Z``."""
    day, second = divmod(at_ms // SECOND_MS, 86_400)
    return f"{_iso_date(day)}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z"


def iso_or_none(at_ms: int) -> str | None:
    """The same; None for 0, which is never."""
    return iso_time(at_ms) if at_ms else None


_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def parse_iso_time(text: object) -> int:
    """The ms since the epoch of a time as `iso_time` writes it. Raises ValueError for anything else."""
    if not isinstance(text, str):
        raise ValueError(f"not a UTC time such as 2024-01-01T12:00:00Z: {text!r:.40}")
    return _parse_iso_text(text)


@lru_cache(maxsize=4096)
def _parse_iso_text(text: str) -> int:
    if not _ISO_TIME.fullmatch(text):
        raise ValueError(f"not a UTC time such as 2024-01-01T12:00:00Z: {text!r:.40}")
    return int(datetime.fromisoformat(text).timestamp()) * SECOND_MS


@dataclass(frozen=True)
class Timeframe:
    """A candle length and its grid: which candle holds a moment, and where the next one opens.

    ``name`` is Binance's, case-sensitive. ``step_ms`` is the length (the mean one for months) and
    ``origin_ms`` where the grid is anchored: weeks begin on Monday. Candles are numbered along the
    grid, so that counting works for months as for minutes.
    """

    name: str
    step_ms: int
    origin_ms: int = 0

    @property
    def monthly(self) -> bool:
        """Whether candles are calendar months, which have no common step."""
        return self.name == "1M"

    def number(self, at_ms: int) -> int:
        """The number of the candle that holds the moment."""
        if self.monthly:
            moment = datetime.fromtimestamp(at_ms // SECOND_MS, UTC)
            return moment.year * 12 + moment.month - 1
        return (at_ms - self.origin_ms) // self.step_ms

    def open_of(self, number: int) -> int:
        """The open time, in ms, of the candle with that number."""
        if self.monthly:
            year, month = divmod(number, 12)
            return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * SECOND_MS
        return self.origin_ms + number * self.step_ms

    def floor(self, at_ms: int) -> int:
        """The open time of the candle that holds the moment."""
        return self.open_of(self.number(at_ms))

    def shift(self, open_ms: int, steps: int) -> int:
        """The open time of the candle that many steps later (earlier when negative)."""
        return self.open_of(self.number(open_ms) + steps)

    def close_of(self, open_ms: int) -> int:
        """The end, exclusive, of the candle that opens then: the open time of its successor."""
        return self.shift(open_ms, 1)

    def opens_at(self, opens_ms: Sequence[int]) -> bool:
        """Whether candles open at all of these times. The steps between them are few different ones."""
        if self.monthly:
            return all(self.floor(open_ms) == open_ms for open_ms in opens_ms)
        steps = {opens_ms[0] - self.origin_ms, *map(sub, opens_ms[1:], opens_ms)}
        return not any(step % self.step_ms for step in steps)

    def closes_at(self, opens_ms: Sequence[int], closes_ms: Sequence[int]) -> bool:
        """Whether candles that open then have these close times, Binance's: their last ms."""
        if self.monthly:
            return list(map(self.close_of, opens_ms)) == [close_ms + 1 for close_ms in closes_ms]
        return set(map(sub, closes_ms, opens_ms)) == {self.step_ms - 1}

    def count(self, first_ms: int, last_ms: int) -> int:
        """How many candles open from the one at ``first_ms`` to the one at ``last_ms``, both included."""
        return self.number(last_ms) - self.number(first_ms) + 1

    def opens(self, first_ms: int, last_ms: int) -> Iterator[int]:
        """The open times from ``first_ms`` to ``last_ms``, both included."""
        return map(self.open_of, range(self.number(first_ms), self.number(last_ms) + 1))

    def candles_in_days(self, days: int) -> int:
        """N: how many candles hold that many days, rounded up, at least 1."""
        return max(1, -(-days * DAY_MS // self.step_ms))


#: Every interval of Binance. The epoch was a Thursday: its first Monday came four days later.
TIMEFRAMES = {
    timeframe.name: timeframe
    for timeframe in (
        Timeframe("1s", SECOND_MS),
        *(Timeframe(f"{n}m", n * MINUTE_MS) for n in (1, 3, 5, 15, 30)),
        *(Timeframe(f"{n}h", n * HOUR_MS) for n in (1, 2, 4, 6, 8, 12)),
        *(Timeframe(f"{n}d", n * DAY_MS) for n in (1, 3)),
        Timeframe("1w", 7 * DAY_MS, origin_ms=4 * DAY_MS),
        Timeframe("1M", MEAN_MONTH_MS),
    )
}
