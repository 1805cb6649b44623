"""Trading sessions: when the markets are closed that stocks and metals of USD-M futures follow.

The exchange announces a week at a time, from yesterday on. What it does not say counts as open: a pair is
asked for then as any other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from tet_core.candles import decode_json
from tet_core.errors import BadReply

CLOSED = "NO_TRADING"


class Hours(NamedTuple):
    """When a market is closed: begin and end (exclusive) of each time, ms, in order and apart."""

    closed: tuple[tuple[int, int], ...] = ()

    def closed_until_ms(self, at_ms: int) -> int:
        """Until when it is closed at a moment; 0 where it is open, or not known."""
        place = bisect_right(self.closed, (at_ms, 1 << 62)) - 1
        return self.closed[place][1] if place >= 0 and at_ms < self.closed[place][1] else 0

    def are_closed(self, first_ms: int, end_ms: int) -> bool:
        """Whether it is closed all the time from one moment to another, exclusive."""
        return end_ms <= self.closed_until_ms(first_ms)

    def union(self, other: Hours) -> Hours:
        """Both together: what was announced before stays known."""
        return Hours(tuple(_merged(sorted({*self.closed, *other.closed}))))


ALWAYS_OPEN = Hours()


def _merged(times: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Times in order, those joined that touch or overlap."""
    found: list[tuple[int, int]] = []
    for begin, end in times:
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def parse_schedule(body: bytes) -> dict[str, Hours]:
    """The hours of each market (EQUITY, COMMODITY …), from a tradingSchedule reply. Raises BadReply.

    A session that is odd says nothing.
    """
    try:
        markets = decode_json(body)["marketSchedules"]
        return {str(name): Hours(tuple(_closed(market))) for name, market in markets.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadReply(f"the tradingSchedule reply is damaged: {error!r:.200}") from error


def _closed(market: Mapping[str, Any]) -> list[tuple[int, int]]:
    times = []
    for session in market["sessions"]:
        with suppress(KeyError, TypeError):
            begin, end = session["startTime"], session["endTime"]
            if session["type"] == CLOSED and type(begin) is type(end) is int and 0 < begin < end < 2**47:
                times.append((begin, end))
    return _merged(sorted(times))
