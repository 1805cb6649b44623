"""Listeners: what happens in the service, and who wants to hear of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tet_core.errors import LOGGER
from tet_core.feeds import Feed
from tet_core.series import Correction


class Listener:
    """Hears of what happens; each method does nothing unless it is overridden.

    It is called by the thread in which that happens, and is to be quick.
    """

    def requested(self, seconds: float) -> None:
        """A request to the exchange took so long, whatever came of it."""

    def paused(self) -> None:
        """The exchange has asked for a pause that is new: the gate admits nothing."""

    def written(self) -> None:
        """Redis has taken a feed's candles."""

    def closed(self, delay_seconds: float, by_stream: bool) -> None:
        """A candle that closed a while ago is in Redis; it was streamed, or REST has brought it."""

    def corrected(self, feed: Feed, found: Sequence[Correction]) -> None:
        """The exchange has closed candles otherwise than they were held."""

    def cycle_ended(self, updates: int, failed: int, seconds: float) -> None:
        """A cycle of so many regular updates, one or more, is done."""


class Listeners(Listener):
    """Passes on what happens to all that listen. One that fails is logged, and hurts nobody."""

    def __init__(self) -> None:
        self._all: tuple[Listener, ...] = ()

    def add(self, listener: Listener) -> None:
        """From now on that one hears, too."""
        self._all = (*self._all, listener)

    def _each(self, call: Callable[[Listener], None]) -> None:
        for listener in self._all:
            try:
                call(listener)
            except Exception:
                logging.getLogger(LOGGER).exception("internal error")

    def requested(self, seconds: float) -> None:
        """See `Listener`; so the others."""
        self._each(lambda each: each.requested(seconds))

    def paused(self) -> None:  # noqa: D102
        self._each(lambda each: each.paused())

    def written(self) -> None:  # noqa: D102
        self._each(lambda each: each.written())

    def closed(self, delay_seconds: float, by_stream: bool) -> None:  # noqa: D102
        self._each(lambda each: each.closed(delay_seconds, by_stream))

    def corrected(self, feed: Feed, found: Sequence[Correction]) -> None:  # noqa: D102
        if found:
            self._each(lambda each: each.corrected(feed, found))

    def cycle_ended(self, updates: int, failed: int, seconds: float) -> None:  # noqa: D102
        self._each(lambda each: each.cycle_ended(updates, failed, seconds))
