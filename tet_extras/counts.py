"""Counts: what has happened so far, for the status; and what of it the log says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from tet_core.errors import say
from tet_core.feeds import Feed
from tet_core.listeners import Listener
from tet_core.protocols import Clock
from tet_core.series import Correction
from tet_core.times import MAX_CLOCK_OFFSET_MS, SECOND_MS

from .figures import DayOfDelays, Tally

MAX_REASONS = 10  # of a kind that are logged one by one


@dataclass(eq=False)
class Progress:
    """Where the service is. The main thread sets it; others read."""

    state: str = "starting"
    waiting_for: str = ""
    heartbeat_seconds: float = 0.0  # monotonic: when the main loop ticked last
    clock_offset_ms: float = 0.0

    def clock_synced(self, offset_ms: float) -> None:
        """Note by how much the local clock is ahead of the exchange's, with a warning when that is new."""
        before_ms, self.clock_offset_ms = self.clock_offset_ms, offset_ms
        if abs(offset_ms) > MAX_CLOCK_OFFSET_MS and abs(offset_ms - before_ms) > MAX_CLOCK_OFFSET_MS:
            word = "ahead of" if offset_ms > 0 else "behind"
            event = f"local clock is {word} Binance's; using exchange time"
            say(logging.WARNING, event, offset_seconds=round(offset_ms / SECOND_MS, 1))


@dataclass(eq=False)
class Counts(Listener):
    """Tallies that any thread adds to, and the figures of the last cycle, which are the main thread's."""

    clock: Clock
    candles: Tally = field(default_factory=Tally)  # received, closed, corrected, audited
    updates: Tally = field(default_factory=Tally)  # written, failed
    messages: Tally = field(default_factory=Tally)  # of streams: accepted, refused, damaged
    stream_delays: DayOfDelays = field(default_factory=DayOfDelays)  # of closes that were streamed
    rest_delays: DayOfDelays = field(default_factory=DayOfDelays)  # of those that REST has brought
    recent_closes: Tally = field(default_factory=Tally)  # stream, rest: since the last cycle's line
    cycles: int = 0
    last_written: int = 0  # updates in the last cycle, and those that failed
    last_failed: int = 0
    cycle_seconds: float = 0.0

    def closed(self, delay_seconds: float, by_stream: bool) -> None:
        """Count a candle that closed while the service was there."""
        self.candles.add("closed")
        self.recent_closes.add("stream" if by_stream else "rest")
        delays = self.stream_delays if by_stream else self.rest_delays
        delays.add(delay_seconds, self.clock.now_ms())

    def corrected(self, feed: Feed, found: Sequence[Correction]) -> None:
        """Count closed candles that the exchange has otherwise by now, and log both values."""
        self.candles.add("corrected", len(found))
        for each in found[:MAX_REASONS]:
            held, sent = (text.replace("\\", "") for text in (each.held, each.sent))
            say(logging.WARNING, "candle corrected by binance", feed=feed.name, held=held, sent=sent)
        if len(found) > MAX_REASONS:
            more = len(found) - MAX_REASONS
            say(logging.WARNING, "more candles corrected by binance", feed=feed.name, count=more)

    def cycle_ended(self, updates: int, failed: int, seconds: float) -> None:
        """Count a cycle."""
        self.cycles += 1
        self.last_failed, self.last_written, self.cycle_seconds = failed, updates - failed, seconds
        self.updates.add("failed", failed)
        self.updates.add("written", updates - failed)
