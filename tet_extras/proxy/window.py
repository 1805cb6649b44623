"""Klines from the window, as the exchange would answer: what it holds costs no request.

What it does not hold is left to be forwarded: older candles, other pairs and intervals, and what may be wrong
in a question, since the exchange says best what. Nothing old is given as new: just after a close an answer
waits for the window, and beyond MAX_DATA_AGE there is none.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from starlette.concurrency import run_in_threadpool

from tet_core.candles import ALL, Fields
from tet_core.errors import StoreError
from tet_core.series import Series
from tet_core.stored import Image
from tet_core.times import SECOND_MS, Timeframe
from tet_extras.web.answers import JSON, Content

from .kept import Kept
from .paths import Asked, Refusal

DEFAULT_LIMIT = 500
MOST_ROWS = {"/api/v3": 1000, "/fapi/v1": 1500}
MICROSECONDS_FROM = 10**14  # such a time is in µs, as spot takes them, too
DECIMALS = 8  # of every number on spot
SETTLED_MS = 10 * SECOND_MS  # after a close an update shows whether there is a newer candle
CLOSE_SECONDS = 5.0  # that an answer waits for the window after a close
LOOK_SECONDS = 0.1
KEPT_ANSWERS = 1000
KEPT_BYTES = 16_000_000
ENTRY_STEP = 4 * len(ALL.names) + 2  # quotes in an entry: between its values lie four


class Candles(Protocol):
    """The stored values that the service holds, by symbol and timeframe, None where there is none yet.

    Both raise LookupError for what is not kept.
    """

    def in_memory(self, symbol: str, timeframe: str) -> Image | None:
        """At once; None also where Redis would have to be asked."""

    def candles_of(self, symbol: str, timeframe: str) -> Image | None:
        """From memory or Redis."""


class Settings(Protocol):
    """The settings that are read here."""

    @property
    def timeframe(self) -> tuple[Timeframe, ...]:
        """Those that are kept."""

    @property
    def kept_fields(self) -> Fields:
        """The fields that are kept."""

    @property
    def max_data_age(self) -> int:
        """Seconds."""

    @property
    def proxy_weight_share(self) -> float:
        """Of the exchange's limit, for bots."""


class Window(NamedTuple):
    """What the service holds; ``candles`` raise StoreError when they cannot be had now."""

    candles: Candles
    settings: Settings


class Span(NamedTuple):
    """Which candles are asked for: open times (ms) from ``first_ms`` to ``last_ms``, inclusive, if given."""

    first_ms: int | None
    last_ms: int | None
    limit: int


def span_of(params: Mapping[str, str], most_rows: int, takes_microseconds: bool) -> Span | None:
    """What the parameters ask for; None where the exchange is to say what is wrong with them."""
    numbers: dict[str, int] = {}
    for name in ("startTime", "endTime", "limit"):
        if name in params:
            if not re.fullmatch("[0-9]{1,17}", params[name]):
                return None
            numbers[name] = int(params[name])
    if takes_microseconds:
        for name in numbers.keys() - {"limit"}:
            numbers[name] //= 1000 if numbers[name] >= MICROSECONDS_FROM else 1
    first_ms, last_ms = numbers.get("startTime"), numbers.get("endTime")
    limit = numbers.get("limit", DEFAULT_LIMIT)
    if limit < 1 or params.get("timeZone", "0") != "0":
        return None
    if first_ms is not None and last_ms is not None and first_ms > last_ms:
        return None
    return Span(first_ms, last_ms, min(limit, most_rows))


def held(image: Image, span: Span) -> tuple[int, int] | None:
    """Which candles of a stored value are the answer, by their indexes; None if not all are in it."""
    series = image.series
    if span.first_ms is not None and span.first_ms < series.opens[image.start]:
        return None
    end = len(series) if span.last_ms is None else series.index(span.last_ms + 1)
    if span.first_ms is None:
        start = end - span.limit
        return (start, end) if start >= image.start else None
    start = series.index(span.first_ms)
    return start, min(max(start, end), start + span.limit)


def is_behind(image: Image, now_ms: int) -> bool:
    """Whether the exchange may have a newer candle, or another state of one that has ended."""
    series = image.series
    end_ms = series.timeframe.close_of(series.opens[-1])
    return now_ms >= end_ms and not (series.newest_is_closed and image.dated_ms >= end_ms + SETTLED_MS)


def rows_text(series: Series, start: int, end: int, decimals: int) -> str:
    """Candles as the exchange writes them: rows of 12 fields; ``decimals`` of 0 is as many as needed."""
    if start >= end:
        return "[]"
    opens, entries = zip(*series.entries(start, end), strict=True)
    parts = ",".join(entries).split('\\"')
    columns = [parts[5 + 4 * which :: ENTRY_STEP] for which in range(len(ALL.names))]
    trades = columns.pop(ALL.names.index("trades"))
    if decimals:
        columns = [[_padded(text, decimals) for text in column] for column in columns]
    close_of = series.timeframe.close_of
    rows = (
        f'[{at},"{first}","{highest}","{lowest}","{last}","{volume}",{close_of(at) - 1},"{quote}",{count},'
        f'"{taken}","{taken_quote}","0"]'
        for at, count, first, highest, lowest, last, volume, quote, taken, taken_quote in zip(
            opens, trades, *columns, strict=True
        )
    )
    return f"[{','.join(rows)}]"


def _padded(text: str, decimals: int) -> str:
    whole, _, rest = text.partition(".")
    return f"{whole}.{rest:0<{decimals}}"


class Klines:
    """Answers klines from the window, one answer for all who ask the same of the same candles."""

    def __init__(self, window: Window, prefix: str, now_ms: Callable[[], int]) -> None:
        self._window = window
        self._most_rows = MOST_ROWS[prefix]
        self._is_spot = prefix == "/api/v3"
        self._now_ms = now_ms
        self._kept: Kept[tuple[str, str, Span], tuple[Any, Content]] = Kept(KEPT_ANSWERS, KEPT_BYTES)

    async def answer(self, asked: Asked) -> Content | None:
        """The answer; None for what the window does not hold. Raises Refusal, with 503."""
        window, params = self._window, dict(asked.params)
        if window.settings.kept_fields is not ALL:
            raise Refusal(503, -1001, "Candles are served here with FIELDS=all only: set it, and restart.")
        symbol, interval = params.get("symbol", ""), params.get("interval", "")
        span = span_of(params, self._most_rows, self._is_spot)
        if (
            span is None
            or not any(interval == each.name for each in window.settings.timeframe)
            or not re.fullmatch(r"\w+", symbol)
        ):
            return None
        if "_" in symbol:  # what is written so here is another pair there
            return None
        image = await self._image(symbol, interval)
        if image is None or (found := held(image, span)) is None:
            return None
        key, made_of = (symbol, interval, span), weakref.ref(image.series)
        kept = self._kept.get(key)
        if kept is None or kept[0] is not made_of:
            text = await run_in_threadpool(rows_text, image.series, *found, DECIMALS if self._is_spot else 0)
            kept = made_of, Content(JSON, text.encode())
            self._kept.put(key, kept, len(kept[1].body))
        return kept[1]

    async def _image(self, symbol: str, interval: str) -> Image | None:
        """The pair's candles as they are now; None where it is not kept, or the window stays behind."""
        deadline = asyncio.get_running_loop().time() + CLOSE_SECONDS
        while True:
            try:
                image = self._window.candles.in_memory(symbol, interval)
                if image is None:
                    image = await run_in_threadpool(self._window.candles.candles_of, symbol, interval)
            except LookupError:
                return None
            except StoreError as error:
                raise Refusal(503, -1001, f"The candles cannot be had now: {error}", 5) from None
            now_ms = self._now_ms()
            if image is None:
                raise Refusal(503, -1001, "The candles of this pair are being fetched.", 5)
            age_seconds = (now_ms - image.dated_ms) / SECOND_MS
            if age_seconds > self._window.settings.max_data_age:
                words = f"The candles are {age_seconds:.0f} s old, more than MAX_DATA_AGE."
                raise Refusal(503, -1001, words, 5)
            if not is_behind(image, now_ms):
                return image
            if asyncio.get_running_loop().time() > deadline:
                return None
            await asyncio.sleep(LOOK_SECONDS)
