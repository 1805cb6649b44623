"""Closed candles as they close, for those who follow ``/events?candles=BTC/USDT:15m,…``."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from tet_core.errors import StoreError
from tet_core.pairs import plain_symbol

from .answers import Refused, candle_rows, to_json
from .pairs import Shown

MOST_FEEDS = 100  # that one client may follow

Feed = tuple[str, str]  # a symbol as the exchange writes it, and a timeframe


def parse_feeds(text: str, kept: Sequence[str]) -> frozenset[Feed]:
    """The feeds that a query names, such as ``BTC/USDT:15m``; ``kept`` are the timeframes. Raises Refused."""
    feeds = set()
    for name in text.split(","):
        symbol, _, timeframe = name.partition(":")
        if not symbol or timeframe not in kept:
            allowed = f"a pair and one of {', '.join(kept)}, such as BTC/USDT:{kept[0]}"
            raise Refused(400, f"candles cannot have {name!r:.40}; allowed is {allowed}")
        feeds.add((plain_symbol(symbol.upper()), timeframe))
    if len(feeds) > MOST_FEEDS:
        raise Refused(400, f"candles has {len(feeds)} pairs; allowed are {MOST_FEEDS}")
    return frozenset(feeds)


class Closes:
    """Says what has closed since it was last asked. Called from threads that may wait for Redis.

    `_seen` has, by feed, what was last looked at, a series or when an evicted one was updated, and where the
    closed candles ended then.
    """

    def __init__(self, shown: Callable[[], Iterable[Shown]]) -> None:
        self._shown = shown
        self._seen: dict[Feed, tuple[object, int]] = {}
        self._lock = threading.Lock()

    def begin(self, feeds: Collection[Feed]) -> None:
        """From now on these are followed. Raises Refused for what is not kept."""
        with self._lock:
            found = {feed for feed, _ in self._each(feeds)}
            if missing := sorted(set(feeds) - found):
                raise Refused(404, f"{missing[0][0]!r:.60} is not kept here; /api/pairs has what is")
            for _ in self._changes(feeds):
                pass

    def since(self, feeds: Collection[Feed]) -> list[tuple[Feed, str]]:
        """What has closed of feeds since they were asked for last: feed and event text, a JSON object."""
        with self._lock:
            self._seen = {feed: seen for feed, seen in self._seen.items() if feed in feeds}
            return list(self._changes(feeds))

    def _each(self, feeds: Collection[Feed]) -> Iterator[tuple[Feed, Shown]]:
        wanted = set(feeds)
        for shown in self._shown():
            feed = plain_symbol(shown.symbol), shown.timeframe
            if feed in wanted:
                yield feed, shown

    def _changes(self, feeds: Collection[Feed]) -> Iterator[tuple[Feed, str]]:
        for feed, shown in self._each(feeds):
            before, end_ms = self._seen.get(feed, ("", -1))  # of one that is new nothing is said
            look = weakref.ref(shown.series) if shown.series is not None else shown.updated
            if look is None or look is before or (isinstance(look, str) and look == before):
                continue
            try:
                image = shown.candles()
            except StoreError:
                continue
            now_ms = image.series.closed_end_ms if image else end_ms
            self._seen[feed] = look, now_ms
            if image and 0 <= end_ms < now_ms:
                rows = candle_rows(image, len(image.series), closed=True, start_ms=end_ms)
                said = {"symbol": shown.symbol, "timeframe": shown.timeframe, "candles": rows}
                yield feed, to_json(said).decode()
