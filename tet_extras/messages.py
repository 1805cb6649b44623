"""Messages of the exchange's streams: what one says of a candle, unchecked, and how late it comes."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote

from .subscriptions import kline_stream

LAG_WINDOW_SECONDS = 10.0


class Message(NamedTuple):
    """What a stream sends of a candle.

    ``row`` is what a row of REST's klines begins with: open time, open, high, low, close, volume and close
    time, unchecked; empty where it names another stream than that which it came by. ``bundle`` is the number
    of the bundle that it came by.
    """

    stream: str
    event_ms: int
    row: tuple[object, ...]
    closed: bool
    bundle: int


def parse_kline(data: Any, bundle: int, came_by: object = None, volume: str = "v") -> Message | None:
    """The message in an event; None for events of other kinds. Raises ValueError for what is no event.

    ``volume`` names the field that has it in the base asset.
    ``came_by`` is the stream that a combined connection says it came by. It counts only for the one symbol
    and interval that all of it names, in upper or lower case.
    """
    try:
        if data["e"] != "kline":
            return None
        k = data["k"]
        row: tuple[object, ...] = (k["t"], k["o"], k["h"], k["l"], k["c"], k[volume], k["T"])
        row += (k.get("q"), k.get("n"), k.get("V"), k.get("Q"))
        stream, event_ms, closed = kline_stream(k["s"], k["i"]), data["E"], k["x"]
        named = kline_stream(data["s"], k["i"])
        if came_by is not None:
            symbol, _, what = unquote(came_by).partition("@")  # type: ignore[arg-type]
            came_by = f"{symbol.lower()}@{what}"
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no event: {error!r:.80}") from error
    if type(event_ms) is not int or type(closed) is not bool:
        raise ValueError("no event: E and x do not fit")
    if stream != named or stream != (came_by or stream):
        return Message(str(came_by or named), event_ms, (), False, bundle)
    return Message(stream, event_ms, row, closed, bundle)


class Lag:
    """How far behind its events a connection is. Its thread adds; others read. Seconds.

    What counts is growth: the least lag of a window against the least that was ever seen, so that a wrong
    clock does not matter. A connection that falls behind stays behind (dev.binance.vision/t/5652).
    """

    def __init__(self) -> None:
        self._best = self._window_best = float("inf")
        self._window_ends = 0.0
        self.growth_seconds = 0.0

    def add(self, lag_seconds: float, now_seconds: float) -> None:
        """Take one message's lag into account; ``now_seconds`` is monotonic."""
        self._best = min(self._best, lag_seconds)
        self._window_best = min(self._window_best, lag_seconds)
        if now_seconds >= self._window_ends:
            self.growth_seconds = self._window_best - self._best
            self._window_best, self._window_ends = float("inf"), now_seconds + LAG_WINDOW_SECONDS
