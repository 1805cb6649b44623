"""Which symbols there are: looked up at the start, each hour, and when the settings ask for others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tet_core.protocols import Clock
from tet_core.times import HOUR_MS, MINUTE_MS
from tet_core.watchlist import Settings, Watchlist


class Symbols:
    """Has the watchlist as the exchange's symbols are. A worker may look up; all else is the main thread's.

    ``ask`` asks the exchange, and gives what `Watchlist.update` takes.
    """

    def __init__(
        self, settings: Settings, clock: Clock, watchlist: Watchlist, ask: Callable[[], Iterable[Any]]
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._watchlist = watchlist
        self._ask = ask
        self._sought: object = None  # the settings that they were looked up for
        self.due_ms = 0  # exchange time

    def _wanted(self) -> object:
        """The settings that decide which feeds there are."""
        return self._settings.symbols, self._settings.max_symbols, self._settings.timeframe

    def are_due(self) -> bool:
        """Whether to look them up now; if that fails, again in a minute."""
        now_ms = self._clock.now_ms()
        if now_ms < self.due_ms:
            return False
        self.due_ms = now_ms + MINUTE_MS
        return True

    def look_up(self) -> Iterable[Any]:
        """Ask which there are."""
        self._sought = self._wanted()
        return self._ask()

    def take(self, found: Iterable[Any]) -> None:
        """Adjust the watchlist to which trade; not to what is wanted no more: then they are due at once."""
        if self._sought == self._wanted():
            self._watchlist.update(*found)
            self.due_ms = self._clock.now_ms() + HOUR_MS
        else:
            self.due_ms = 0
