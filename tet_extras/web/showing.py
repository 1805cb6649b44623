"""The feeds and their candles, for what HTTP serves. Nothing changes in here; threads of HTTP read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tet_core.errors import StoredValueError
from tet_core.feeds import Feed
from tet_core.protocols import Clock
from tet_core.series import Series
from tet_core.stored import Image, make_image
from tet_core.times import SECOND_MS, Timeframe, iso_time
from tet_core.watchlist import Watchlist

from .pairs import Shown


class Settings(Protocol):
    """The settings that it goes by."""

    @property
    def max_data_age(self) -> int:
        """Seconds."""

    @property
    def timeframe(self) -> tuple[Timeframe, ...]:
        """All timeframes."""

    @property
    def closed_only(self) -> bool:
        """Whether forming candles are left out."""

    @property
    def metrics_per_symbol(self) -> bool:
        """Whether /metrics has each feed's age."""


@dataclass(frozen=True)
class Showing:
    """What is kept, as it is shown; ``load`` reads a feed's candles back, and may raise StoreError."""

    settings: Settings
    clock: Clock
    watchlist: Watchlist
    load: Callable[[Feed], Image | None]

    def timeframes(self) -> list[str]:
        """The timeframes in which pairs are kept."""
        return [timeframe.name for timeframe in self.settings.timeframe]

    def feeds(self) -> Iterator[Shown]:
        """Each feed as the page's table shows it; costs no look at its candles."""
        now_ms = self.clock.now_ms()
        for feed in self.watchlist:
            updated_ms, failure, state = feed.updated_ms, feed.failure, "fresh"
            if not updated_ms:
                state = "missing"
            elif now_ms - updated_ms > self.settings.max_data_age * SECOND_MS:
                state = "stale"
            elif failure:
                state = "failing"
            elif until_ms := feed.closed_until_ms(now_ms):
                state, failure = "closed", f"session closed until {iso_time(until_ms)}"
            updated = iso_time(updated_ms) if updated_ms else None
            candles = partial(self._candles, feed)
            yield Shown(feed.pair.name, feed.timeframe.name, state, failure, updated, feed.series, candles)

    def ages(self) -> Iterator[tuple[str, str, float]]:
        """Symbol, timeframe and seconds since the last good update, for those that had one."""
        now_ms = self.clock.now_ms()
        for feed in self.watchlist:
            if feed.updated_ms:
                yield feed.pair.name, feed.timeframe.name, (now_ms - feed.updated_ms) / SECOND_MS

    def candles_of(self, symbol: str, timeframe: str) -> Image | None:
        """A feed's candles as they are stored, or will be once Redis takes them; None where there are none.

        They come from memory, else from Redis. Raises LookupError for what is not kept here, StoreError.
        """
        return self._candles(self.watchlist.find(symbol, timeframe))

    def in_memory(self, symbol: str, timeframe: str) -> Image | None:
        """The same without a look at Redis: None also where it would have them."""
        feed = self.watchlist.find(symbol, timeframe)
        series = feed.series
        return self._image(feed, series) if series is not None else None

    def _candles(self, feed: Feed) -> Image | None:
        series = feed.series
        try:
            return self._image(feed, series) if series is not None else self.load(feed)
        except StoredValueError:
            return None  # damaged: it is fetched anew

    def _image(self, feed: Feed, series: Series) -> Image | None:
        image = feed.image  # what Redis has is the same as soon as it is written, and is made already
        if image and image.series is series and image.dated_ms == feed.fetched_ms:
            return image
        try:
            return make_image(series, feed.wanted, feed.fetched_ms, self.settings.closed_only)
        except StoredValueError:
            return None  # not one closed candle yet
