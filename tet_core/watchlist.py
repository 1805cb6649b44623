"""The watchlist: the feeds that are kept fresh here, and the symbols that are invalid."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from tet_core.errors import SymbolError, say, some_of
from tet_core.feeds import Feed
from tet_core.pairs import Expansion, Listing, Pair, is_wildcard, plain_symbol, resolve_symbols
from tet_core.sessions import ALWAYS_OPEN, Hours
from tet_core.shares import Selection
from tet_core.times import NEVER_MS, TIMEFRAMES, Timeframe


class Settings(Protocol):
    """The settings that decide which feeds there are."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """Pairs and wildcards."""

    @property
    def has_wildcards(self) -> bool:
        """Whether only the exchange knows which pairs are meant."""

    @property
    def max_symbols(self) -> int:
        """How many pairs wildcards may bring."""

    @property
    def timeframe(self) -> tuple[Timeframe, ...]:
        """All timeframes in which each pair is kept."""

    @property
    def data_days(self) -> int:
        """How far a window goes back."""

    @property
    def takes_part(self) -> bool:
        """Whether other members keep pairs, too."""


class Watchlist:
    """The feeds to keep fresh, and the symbols that are invalid now: unknown, halted or delisted.

    Among several members it has those feeds whose pairs are this one's. Changed by replacing what is there,
    under `_lock`; any thread may iterate over it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._owns: Callable[[str, str], bool] = lambda pair, timeframe: True
        self.feeds: dict[tuple[Pair, Timeframe], Feed] = {}
        self.pairs: tuple[Pair, ...] = ()  # those of other members, too
        self._by_symbol: dict[str, Pair] = {}
        self._left_out: Sequence[str] = ()
        self._asked_for: tuple[str, ...] = ()  # the SYMBOLS that the pairs are of
        self.invalid: dict[str, str] = {}  # symbols as configured, and why

    def __iter__(self) -> Iterator[Feed]:
        return iter(tuple(self.feeds.values()))

    def __len__(self) -> int:
        return len(self.feeds)

    def find(self, symbol: str, timeframe: str) -> Feed:
        """The feed of a pair (BTC/USDT, BTC_USDT or BTCUSDT) in a timeframe. Raises LookupError."""
        pair, kept = self._by_symbol.get(plain_symbol(symbol)), TIMEFRAMES.get(timeframe)
        if pair and kept and (feed := self.feeds.get((pair, kept))):
            return feed
        if pair and kept in self._settings.timeframe and self._settings.takes_part:
            return self._made(pair, kept)  # another member's: Redis has its candles
        raise LookupError(f"{symbol} is not kept in {timeframe}")

    def __contains__(self, feed: Feed) -> bool:
        return self.feeds.get((feed.pair, feed.timeframe)) is feed

    def due_ms(self) -> int:
        """When a feed is due next; never, without feeds."""
        return min((feed.freshness.due_ms for feed in self), default=NEVER_MS)

    def selection(self) -> Selection:
        """What this instance is to keep, if it were alone: before the exchange was asked, as configured."""
        settings = self._settings
        named = [name for name in settings.symbols if not is_wildcard(name)]
        pairs = [pair.name for pair in self.pairs] or named
        return Selection.of(settings.symbols, pairs, [timeframe.name for timeframe in settings.timeframe])

    def own(self, owns: Callable[[str, str], bool]) -> None:
        """Have the feeds that this instance owns, and drop the others: their new owner reads them back."""
        with self._lock:
            self._owns = owns
            self._arrange()

    def _made(self, pair: Pair, timeframe: Timeframe) -> Feed:
        return Feed(pair, timeframe, timeframe.candles_in_days(self._settings.data_days))

    def _arrange(self) -> None:
        names = {plain_symbol(pair.name): pair for pair in self.pairs}
        self._by_symbol = names | {plain_symbol(pair.symbol): pair for pair in self.pairs}
        self.feeds = {
            (pair, timeframe): self.feeds.get((pair, timeframe)) or self._made(pair, timeframe)
            for timeframe in self._settings.timeframe
            for pair in self.pairs
            if self._owns(pair.name, timeframe.name)
        }

    def update(
        self, listings: Mapping[str, Listing], meant: Expansion, hours: Mapping[str, Hours] | None = None
    ) -> None:
        """Drop what no longer trades, take back what does again; feeds that stay keep their candles.

        ``hours`` are those of the markets that stocks and metals follow, as far as they were asked for.
        """
        pairs, invalid = resolve_symbols(meant.names, listings)
        invalid |= dict.fromkeys(meant.unmatched, "no pair that trades fits")
        self._say_what_changed(set(pairs), meant.left_out)
        for name, reason in invalid.items():
            if self.invalid.get(name) != reason:
                say(logging.WARNING, "symbol invalid, rechecked hourly", symbol=name, reason=reason)
        for name in self.invalid.keys() - invalid.keys():
            say(logging.INFO, "symbol trades again", symbol=name)
        with self._lock:
            self.invalid, self.pairs = invalid, tuple(pairs)
            self._arrange()
        if hours:
            follows = {each.pair: each.underlying for each in listings.values() if each.is_tradifi}
            for feed in self:
                feed.follows_hours(hours.get(follows.get(feed.pair, ""), ALWAYS_OPEN))

    def _say_what_changed(self, pairs: set[Pair], left_out: Sequence[str]) -> None:
        """Log which pairs wildcards, or new settings, bring and no longer bring; what MAX_SYMBOLS cuts."""
        asked_for, self._asked_for = self._asked_for, self._settings.symbols
        if not self._settings.has_wildcards and asked_for in ((), self._asked_for):
            return
        before = set(self.pairs)
        for event, which in (("pairs joined", pairs - before), ("pairs left", before - pairs)):
            if which:
                say(logging.INFO, event, count=len(which), pairs=some_of(sorted(pair.name for pair in which)))
        if left_out and left_out != self._left_out:
            facts = {"max_symbols": self._settings.max_symbols, "count": len(left_out)}
            say(logging.WARNING, "pairs left out by MAX_SYMBOLS", **facts, pairs=some_of(left_out))
        self._left_out = left_out

    def drop_unknown(self) -> None:
        """Drop the feeds whose symbol Binance has called unknown in this cycle."""
        unknown = {feed.pair.symbol: feed.failure for feed in self if isinstance(feed.error, SymbolError)}
        for name in self._settings.symbols:
            if reason := unknown.get(name.replace("/", "")):
                say(logging.WARNING, "symbol invalid, rechecked hourly", symbol=name, reason=reason)
                self.invalid = self.invalid | {name: reason}
        if unknown:
            self._say_what_changed(
                {pair for pair in self.pairs if pair.symbol not in unknown}, self._left_out
            )
            with self._lock:
                self.pairs = tuple(pair for pair in self.pairs if pair.symbol not in unknown)
                self._arrange()
