"""A simulated Binance: the exchange of this project's tests, demo and benchmarks.

It is a real HTTP server on loopback that speaks the part of Binance's REST interface a reader of
candles needs: ping, time, exchangeInfo and klines, of spot, USD-M and COIN-M futures and Binance.US,
trading sessions, and the signed question what an API key may do. Request weight, 429 and 418, stale
answers after a close, damaged bodies and broken connections are part of it. The kline streams on the
same port stand in `simulated_streams`. Its market is invented (a random walk that is the same in every
process) or a recording (a CSV file of real candles, moved to now). It asks nobody anything.

By hand, then point a client at the address it prints:

    python tet_extras/simulated_binance.py --port 9100
    python tet_extras/simulated_binance.py --port 9100 --candles candles.csv.gz --close-lag-seconds 3

In a test, with the exchange's time in your hand:

    clock = SimulatedClock(start_ms=1_767_225_600_000)
    clock.freeze()
    with SimulatedBinance(clock=clock) as exchange:
        exchange.faults.add("503_html", times=2)  # the next two klines requests fail
        ...                                       # run a client against exchange.url
        clock.advance(900)                        # a 15m candle closes
        assert exchange.asked("klines")[-1].status == 200
        truth = exchange.klines("BTCUSDT", "15m", limit=10)  # what a true answer holds now
        exchange.streams.cut()  # and every stream connection is gone

Words: a *kline* is the array of twelve fields Binance sends; its *open time* names it; the newest
one is *forming* until its interval is over. *Weight* is what a request costs of a minute's budget.
Every time is in milliseconds since 1970, UTC, unless its name says seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import hashlib
import hmac
import json
import math
import os
import random
import re
import select
import signal
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Decimal
from email.utils import formatdate
from fractions import Fraction
from functools import lru_cache
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

if not __package__:  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tet_extras.simulated_streams import Streams

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

SPOT_WEIGHT_LIMIT = 6000
FUTURES_WEIGHT_LIMIT = 2400  # one for USD-M and COIN-M
US_WEIGHT_LIMIT = 1200
COIN_SPAN_MS = 200 * DAY_MS  # from startTime to endTime, at most
USD_PER_CONTRACT = 100
ASKING_ON_ALLOWED = 10  # requests after a first 429 before the address is banned
LONGEST_BAN_SECONDS = 3 * 86_400
DEFAULT_RECV_WINDOW_MS = 5000
GZIP_FROM_BYTES = 1024
API_KEY, SECRET_KEY = "sim-key", "sim-secret"  # unless a test chooses others
# How far before the close a stale answer looks back, while close_lag_seconds lasts.
STALE_BY_MS = 1500
HANDSHAKE_SECONDS = 10.0  # for a client's part of TLS

JSON_TYPE = "application/json;charset=UTF-8"
HTML_TYPE = "text/html"

# Longest first, so that a stablecoin's name is not mistaken for a base that ends in its letters.
QUOTES = ("FDUSD", "USDT", "USDC", "BUSD", "TUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "BRL", "JPY")
DEFAULT_BASES = (
    "BTC ETH BNB XRP ADA SOL DOGE DOT UNI LINK AVAX MEME PUMP PEOPLE BOME ARB MATIC FTM SAND AXS "
    "NEAR ALGO XLM LIT MKR"
)
DEFAULT_PAIRS = tuple(f"{base}/USDT" for base in DEFAULT_BASES.split())

Kline = list[Any]


class BinanceError(Exception):
    """A refusal as Binance words it: HTTP status, code and message."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(f"{status} {code} {message}")
        self.status = status
        self.code = code
        self.message = message


# ----------------------------------------------------------------------------------------------
# The exchange's time
# ----------------------------------------------------------------------------------------------


class SimulatedClock:
    """The exchange's time: runs by itself, `speed` times as fast as ours, or stands still."""

    def __init__(self, start_ms: int | None = None, speed: float = 1.0) -> None:
        self._lock = threading.Lock()
        self._speed = speed
        self._frozen = False
        self._anchor_ms = float(time.time_ns() // 1_000_000 if start_ms is None else start_ms)
        self._anchor_seconds = time.monotonic()

    @property
    def speed(self) -> float:
        """Its seconds for one of ours, while it runs."""
        return self._speed

    def now_ms(self) -> int:
        """The exchange's time in milliseconds."""
        with self._lock:
            return self._read()

    def advance(self, seconds: float) -> None:
        """Move the time on by so many seconds, frozen or not."""
        with self._lock:
            self._anchor_ms += seconds * 1000

    def set(self, ms: int) -> None:
        """Make it this time."""
        with self._lock:
            self._anchor(ms)

    def freeze(self) -> None:
        """Let the time stand still; advance() and set() still move it."""
        with self._lock:
            self._anchor(self._read())
            self._frozen = True

    def resume(self) -> None:
        """Let the time run again from where it stands."""
        with self._lock:
            self._anchor(self._read())
            self._frozen = False

    def _read(self) -> int:
        if self._frozen:
            return int(self._anchor_ms)
        elapsed_seconds = time.monotonic() - self._anchor_seconds
        return int(self._anchor_ms + elapsed_seconds * 1000 * self._speed)

    def _anchor(self, ms: int) -> None:
        self._anchor_ms = float(ms)
        self._anchor_seconds = time.monotonic()


# ----------------------------------------------------------------------------------------------
# Intervals: where candles begin and end
# ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A grid of candles, numbered so that time and number convert both ways."""

    name: str
    step_ms: int  # 0 for calendar months
    origin_ms: int = 0

    def index_at(self, time_ms: int) -> int:
        """The number of the candle that holds this time."""
        if self.step_ms:
            return (time_ms - self.origin_ms) // self.step_ms
        moment = datetime.fromtimestamp(time_ms / 1000, UTC)
        return moment.year * 12 + moment.month - 1

    def open_ms(self, index: int) -> int:
        """The open time of a candle, which is also where the one before it ends."""
        if self.step_ms:
            return self.origin_ms + index * self.step_ms
        return int(datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1000

    def first_from(self, time_ms: int) -> int:
        """The number of the first candle that opens at this time or later."""
        index = self.index_at(time_ms)
        return index if self.open_ms(index) == time_ms else index + 1


def _intervals() -> dict[str, Interval]:
    units = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
    names = "1s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d"
    table = {name: Interval(name, int(name[:-1]) * units[name[-1]]) for name in names.split()}
    # The epoch was a Thursday; weeks open on Mondays.
    table["1w"] = Interval("1w", 7 * DAY_MS, origin_ms=4 * DAY_MS)
    table["1M"] = Interval("1M", 0)
    return table


INTERVALS = _intervals()

KLINE_JSON = '[%d,"%s","%s","%s","%s","%s",%d,"%s",%d,"%s","%s","0"]'


def _eight_decimals(number: str) -> str:
    whole, _, decimals = number.partition(".")
    return f"{whole}.{decimals:0<8}"


def _kline_json(interval: Interval, index: int, values: Sequence[str]) -> str:
    """A kline as JSON text; `values` are open, high, low, close and volume as decimal strings."""
    volume = Decimal(values[4])
    quote_volume = volume * Decimal(values[0])
    amounts = [f"{amount:.8f}" for amount in (quote_volume, volume / 2, quote_volume / 2)]
    prices_and_volume = [_eight_decimals(value) for value in values]
    open_ms, close_ms = interval.open_ms(index), interval.open_ms(index + 1) - 1
    trades = 1 + int(quote_volume / 1500)
    return KLINE_JSON % (open_ms, *prices_and_volume, close_ms, amounts[0], trades, *amounts[1:])


# ----------------------------------------------------------------------------------------------
# An invented market: value noise of six periods, a pure function of symbol and time
# ----------------------------------------------------------------------------------------------

NOISE_MASK = 8191
CHUNK = 256  # candles worked out and cached together
SAMPLES = 3  # prices looked at in a candle, besides its close
WALK_PERIODS_MS = (MINUTE_MS, 8 * MINUTE_MS, HOUR_MS, 8 * HOUR_MS, 3 * DAY_MS, 14 * DAY_MS)
# As in a random walk, the moves grow with the square root of the time they take.
WALK_OCTAVES = tuple((ms, 0.08 * math.sqrt(ms / (14 * DAY_MS))) for ms in WALK_PERIODS_MS)
TURNOVER_PER_MS = 2_000_000 / MINUTE_MS  # quote units traded; enough for a volume in every ms
FAMILIAR_PRICES = {"BTC": 100_000.0, "ETH": 3_500.0, "BNB": 900.0, "SOL": 180.0, "XRP": 2.2}
FAMILIAR_PRICES |= {"ADA": 0.55, "DOGE": 0.18, "DOT": 3.2, "UNI": 7.5, "LINK": 16.0, "AVAX": 18.0}
FAMILIAR_PRICES |= {"MEME": 0.0018, "PUMP": 0.0035, "PEOPLE": 0.013, "BOME": 0.0011, "ARB": 0.28}
FAMILIAR_PRICES |= {"MATIC": 0.38, "FTM": 0.7, "SAND": 0.21, "AXS": 1.4, "NEAR": 2.3, "ALGO": 0.18}
FAMILIAR_PRICES |= {"XLM": 0.28, "LIT": 0.8, "MKR": 1_600.0}
SIXTY_FOUR_BITS = (1 << 64) - 1


def splitmix64(number: int) -> int:
    """Mix an integer into 64 bits that look random: the same ones in every process."""
    mixed = (number + 0x9E3779B97F4A7C15) & SIXTY_FOUR_BITS
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & SIXTY_FOUR_BITS
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & SIXTY_FOUR_BITS
    return mixed ^ (mixed >> 31)


@lru_cache(maxsize=1)
def _noise() -> tuple[float, ...]:
    return tuple(splitmix64(number) / 2**63 - 1 for number in range(NOISE_MASK + 1))


class _Character(NamedTuple):
    """What makes one invented symbol another than the next."""

    shifts: tuple[int, ...]  # where in the noise each octave begins
    price: float
    template: str  # of its kline, with the decimals of its tick


@lru_cache(maxsize=4096)
def _character(symbol: str) -> _Character:
    seed = zlib.crc32(symbol.encode())
    base, quote = split_symbol(symbol)
    share = splitmix64(seed) / 2**64
    price = FAMILIAR_PRICES.get(base, 0.0) if "USD" in quote else 0.0
    price = price or 10 ** (share * 7.5 - 5)
    decimals = min(8, max(2, 4 - math.floor(math.log10(price))))
    tick = f"%.{decimals}f" + "0" * (8 - decimals)
    volume = "%.5f000"
    template = KLINE_JSON.replace("%s", "{}").format(*[tick] * 4, *[volume] * 4)
    shifts = tuple(splitmix64(seed + number) & NOISE_MASK for number in range(len(WALK_PERIODS_MS)))
    return _Character(shifts, price, template)


def walk_prices(symbol: str, times_ms: Sequence[int]) -> list[float]:
    """The invented prices of a symbol at these times, before rounding to its tick."""
    noise = _noise()
    character = _character(symbol)
    moves = [0.0] * len(times_ms)
    for (period_ms, amplitude), shift in zip(WALK_OCTAVES, character.shifts, strict=True):
        cell_end_ms = -math.inf
        left = change = 0.0
        for number, time_ms in enumerate(times_ms):
            if time_ms >= cell_end_ms:
                cell = time_ms // period_ms + shift
                cell_end_ms = (cell - shift + 1) * period_ms
                left = noise[cell & NOISE_MASK] * amplitude
                change = noise[(cell + 1) & NOISE_MASK] * amplitude - left
            ahead = (cell_end_ms - time_ms) / period_ms
            moves[number] += left + change * (1 - ahead) * (1 - ahead) * (1 + 2 * ahead)
    return [character.price * math.exp(move) for move in moves]


class RandomWalk:
    """Candles nobody traded, for any symbol and any time."""

    first_ms = 0

    def __init__(self) -> None:
        self._chunk = lru_cache(maxsize=1024)(self._work_out_chunk)

    def serves(self, interval: Interval) -> bool:
        """Every interval of Binance can be invented."""
        return interval.name in INTERVALS

    def closed(self, symbol: str, interval: Interval, first: int, last: int) -> list[str | None]:
        """The finished klines from number `first` to `last`, as JSON text."""
        rows: list[str | None] = []
        for number in range(first // CHUNK, last // CHUNK + 1):
            begin = number * CHUNK
            chunk = self._chunk(symbol, interval.name, number)
            rows += chunk[max(first - begin, 0) : last - begin + 1]
        return rows

    def forming(self, symbol: str, interval: Interval, index: int, until_ms: int) -> str | None:
        """The kline as it stands when the time is `until_ms`."""
        open_ms, end_ms = interval.open_ms(index), interval.open_ms(index + 1)
        times = [time_ms for time_ms in _sample_times(open_ms, end_ms) if time_ms < until_ms]
        prices = walk_prices(symbol, [*times, until_ms])
        return self._row(symbol, index, open_ms, end_ms, prices, until_ms - open_ms)

    def _work_out_chunk(self, symbol: str, interval_name: str, number: int) -> list[str]:
        interval = INTERVALS[interval_name]
        indexes = range(number * CHUNK, (number + 1) * CHUNK)
        opens = [interval.open_ms(index) for index in [*indexes, indexes.stop]]
        times: list[int] = []
        for open_ms, end_ms in pairwise(opens):
            times += _sample_times(open_ms, end_ms)
        prices = walk_prices(symbol, [*times, opens[-1]])
        rows = []
        for place, index in enumerate(indexes):
            open_ms, end_ms = opens[place], opens[place + 1]
            path = prices[place * SAMPLES : (place + 1) * SAMPLES + 1]
            rows.append(self._row(symbol, index, open_ms, end_ms, path, end_ms - open_ms))
        return rows

    def _row(
        self,
        symbol: str,
        index: int,
        open_ms: int,
        end_ms: int,
        path: Sequence[float],
        elapsed_ms: int,
    ) -> str:
        """A kline from the prices on its path; by `elapsed_ms` of it the volume has grown."""
        character = _character(symbol)
        bustle = 1 + 0.8 * _noise()[(index + character.shifts[0] * 7) & NOISE_MASK]
        turnover = TURNOVER_PER_MS * bustle * elapsed_ms
        volume = turnover / character.price
        quote_volume = volume * path[0]
        return character.template % (
            open_ms,
            path[0],
            max(path),
            min(path),
            path[-1],
            volume,
            end_ms - 1,
            quote_volume,
            1 + int(turnover / 1500),
            volume / 2,
            quote_volume / 2,
        )


def _sample_times(open_ms: int, end_ms: int) -> tuple[int, int, int]:
    third_ms = (end_ms - open_ms) // SAMPLES
    return open_ms, open_ms + third_ms, open_ms + 2 * third_ms


# ----------------------------------------------------------------------------------------------
# A recorded market: real candles from a file, moved to now and repeated
# ----------------------------------------------------------------------------------------------

Values = tuple[str, str, str, str, str]  # open, high, low, close, volume


class Recording:
    """Candles of a CSV file. Its newest one is forming at `now_ms`; after it the file repeats."""

    def __init__(self, path: str | Path, now_ms: int) -> None:
        rows = _read_csv(path)
        times = sorted({open_ms for candles in rows.values() for open_ms in candles})
        steps = [later - time_ms for time_ms, later in pairwise(times)]
        if not steps or DAY_MS % min(steps):
            raise ValueError(f"{path}: needs candles whose step divides a day")
        self.step_ms = min(steps)
        self._length = (times[-1] - times[0]) // self.step_ms + 1
        self._first_slot = now_ms // self.step_ms - self._length + 1
        self._candles = {
            symbol: {(open_ms - times[0]) // self.step_ms: row for open_ms, row in candles.items()}
            for symbol, candles in rows.items()
        }
        self._row = lru_cache(maxsize=100_000)(self._work_out_row)

    @property
    def first_ms(self) -> int:
        """Open time of the oldest candle."""
        return self._first_slot * self.step_ms

    @property
    def symbols(self) -> list[str]:
        """The names in the file."""
        return list(self._candles)

    def serves(self, interval: Interval) -> bool:
        """An interval can be put together from whole candles of the file, never from parts."""
        return (interval.step_ms or DAY_MS) % self.step_ms == 0

    def closed(self, symbol: str, interval: Interval, first: int, last: int) -> list[str | None]:
        """The finished klines from number `first` to `last`, as JSON text; None is a gap."""
        return [self._row(symbol, interval.name, index) for index in range(first, last + 1)]

    def forming(self, symbol: str, interval: Interval, index: int, until_ms: int) -> str | None:
        """The kline as it stands when the time is `until_ms`."""
        begin_ms, end_ms = interval.open_ms(index), interval.open_ms(index + 1)
        slots = range(begin_ms // self.step_ms, end_ms // self.step_ms)
        parts = [part for slot in slots if (part := self._slot(symbol, slot, until_ms))]
        return _kline_json(interval, index, _merged(parts)) if parts else None

    def _work_out_row(self, symbol: str, interval_name: str, index: int) -> str | None:
        interval = INTERVALS[interval_name]
        return self.forming(symbol, interval, index, interval.open_ms(index + 1))

    def _slot(self, symbol: str, slot: int, until_ms: int) -> Values | None:
        """One candle of the file's own step, as far as it has come."""
        elapsed_ms = until_ms - slot * self.step_ms
        if slot < self._first_slot or elapsed_ms <= 0:
            return None
        values = self._candles[symbol].get((slot - self._first_slot) % self._length)
        if values is None or elapsed_ms >= self.step_ms:
            return values
        return _part_of(values, Fraction(elapsed_ms, self.step_ms))


def _read_csv(path: str | Path) -> dict[str, dict[int, Values]]:
    opened = gzip.open if str(path).endswith(".gz") else open
    rows: dict[str, dict[int, Values]] = {}
    with opened(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            values = (row["open"], row["high"], row["low"], row["close"], row["volume"])
            rows.setdefault(row["symbol"], {})[int(row["open_time"])] = values
    return rows


def _merged(parts: Sequence[Values]) -> Values:
    """Several candles as one, exactly."""
    if len(parts) == 1:
        return parts[0]
    opens, highs, lows, closes, volumes = zip(*parts, strict=True)
    volume = sum((Decimal(number) for number in volumes), Decimal())
    return opens[0], max(highs, key=Decimal), min(lows, key=Decimal), closes[-1], f"{volume:f}"


def _part_of(values: Values, elapsed: Fraction) -> Values:
    """A candle when this share of its time is over: straight from open to one extreme, to the
    other, to the close."""
    start, high, low, close, volume = (Decimal(value) for value in values)
    corners = [start, low, high, close] if close >= start else [start, high, low, close]
    leg = min(int(elapsed * 3), 2)
    along = elapsed * 3 - leg
    share = Decimal(along.numerator) / along.denominator
    tick = min(start, high, low, close, key=_exponent)
    price = (corners[leg] + (corners[leg + 1] - corners[leg]) * share).quantize(tick)
    seen = [*corners[: leg + 1], price]
    grown = volume * elapsed.numerator / elapsed.denominator
    grown = grown.quantize(Decimal("1e-8"), rounding=ROUND_DOWN)
    return values[0], f"{max(seen):f}", f"{min(seen):f}", f"{price:f}", f"{grown:f}"


def _exponent(number: Decimal) -> int:
    return int(number.as_tuple().exponent)


# ----------------------------------------------------------------------------------------------
# The market: which symbols are listed, and their candles
# ----------------------------------------------------------------------------------------------


@dataclass
class Listing:
    """A symbol of the exchange. Change it while the exchange runs, and the next answer shows it."""

    base: str
    quote: str
    status: str = "TRADING"
    listed_ms: int = 0  # no candle opens before it
    delisted_ms: int | None = None  # no candle opens at or after it
    # Stretches without candles: none opens at or after the first time and before the second.
    halts: list[tuple[int, int]] = field(default_factory=list)
    # Corrected candles: (interval, open time) to open, high, low, close, volume as strings.
    overrides: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    # Rows that are served otherwise: (interval, open time on the grid) to what is made of the true row,
    # JSON text both; "" leaves it out. The row may name another time then.
    edits: dict[tuple[str, int], Callable[[str], str]] = field(default_factory=dict)
    day_volume: float | None = None  # in the quote asset, of 24 hours; None: invented
    contract: str = "PERPETUAL"  # of futures: its contractType
    underlying: str = "COIN"  # of futures: what it follows, such as EQUITY


def split_symbol(symbol: str) -> tuple[str, str]:
    """Base and quote of a name such as BTCUSDT."""
    for quote in QUOTES:
        if symbol.endswith(quote) and symbol != quote:
            return symbol[: -len(quote)], quote
    return symbol[:-3], symbol[-3:]


def is_coin_margined(symbol: str) -> bool:
    """Whether a symbol is one of COIN-M: BTCUSD_PERP, BTCUSD_260327."""
    return re.fullmatch(r".+USD_(PERP|[0-9]{6})", symbol) is not None


def coin_row(row: str) -> str:
    """A kline as COIN-M has it: contracts where others have the base volume, which stands in field 7."""
    kline = json.loads(row, parse_float=str)
    for base, quote in ((5, 7), (9, 10)):
        contracts = int(Decimal(kline[quote]) / USD_PER_CONTRACT)
        kline[base], kline[quote] = str(contracts), kline[base]
    return _row_text(kline)


def _opens_within(row: str, first_ms: int, last_ms: int) -> bool:
    open_ms = json.loads(row)[0]
    return not isinstance(open_ms, int) or first_ms <= open_ms <= last_ms


def _amended(listing: Listing, interval: Interval, index: int, row: str | None) -> str | None:
    """A kline as the listing's halts, overrides and edits leave it."""
    open_ms = interval.open_ms(index)
    if any(start <= open_ms < end for start, end in listing.halts):
        return None
    values = listing.overrides.get((interval.name, open_ms))
    row = _kline_json(interval, index, values) if values else row
    edit = listing.edits.get((interval.name, open_ms))
    return edit(row) if edit and row else row


class Market:
    """The symbols of an exchange, and where their candles come from."""

    def __init__(self, symbols: dict[str, Listing], source: RandomWalk | Recording) -> None:
        self.symbols = symbols
        self.source = source

    @classmethod
    def random_walk(cls, names: Iterable[str] = DEFAULT_PAIRS) -> Market:
        """An invented market of these pairs, written BTC/USDT."""
        pairs = [name.split("/") for name in names]
        return cls({base + quote: Listing(base, quote) for base, quote in pairs}, RandomWalk())

    @classmethod
    def from_csv(cls, path: str | Path, now_ms: int) -> Market:
        """A market of recorded candles (symbol, open_time in ms, open, high, low, close, volume).

        The file may be gzipped. It is moved whole steps in time, so that its newest candle is the
        one forming at `now_ms`, and it starts again from its first candle when it is used up.
        """
        recording = Recording(path, now_ms)
        listings = {symbol: Listing(*split_symbol(symbol)) for symbol in recording.symbols}
        return cls(listings, recording)

    def rows(
        self,
        symbol: str,
        interval: Interval,
        *,
        now_ms: int,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int = 500,
    ) -> list[str]:
        """Klines as JSON text: the oldest from `start_ms`, or without it the newest, ascending."""
        listing = self.symbols[symbol]
        ends = [now_ms, end_ms, None if listing.delisted_ms is None else listing.delisted_ms - 1]
        last_ms = min(end for end in ends if end is not None)
        first_ms = max(listing.listed_ms, self.source.first_ms, start_ms or 0)
        if first_ms > last_ms:
            return []
        first, last = interval.first_from(first_ms), interval.index_at(last_ms)
        found: list[str] = []
        while first <= last and len(found) < limit:
            wanted = limit - len(found)
            if start_ms is not None:
                stop = min(last, first + wanted - 1)
                found += self._between(symbol, interval, first, stop, now_ms)
                first = stop + 1
            else:
                begin = max(first, last - wanted + 1)
                found = self._between(symbol, interval, begin, last, now_ms) + found
                last = begin - 1
        if listing.edits:  # what opens at another time than its place on the grid
            found = [row for row in found if _opens_within(row, start_ms or 0, last_ms)]
        return found

    def row(self, symbol: str, interval_name: str, index: int, now_ms: int) -> str | None:
        """One kline as a stream sends it; None where nothing is traded."""
        listing, interval = self.symbols.get(symbol), INTERVALS[interval_name]
        open_ms = interval.open_ms(index)
        if listing is None or listing.status != "TRADING" or not self.source.serves(interval):
            return None
        if open_ms < max(listing.listed_ms, self.source.first_ms) or open_ms > now_ms:
            return None
        if listing.delisted_ms is not None and open_ms >= listing.delisted_ms:
            return None
        until_ms = min(now_ms + 1, interval.open_ms(index + 1))
        row = _amended(listing, interval, index, self.source.forming(symbol, interval, index, until_ms))
        return coin_row(row) if row and is_coin_margined(symbol) else row

    def price(self, symbol: str, now_ms: int) -> str | None:
        """The last price, for a stream; None where nothing is traded."""
        finest = next(interval for interval in INTERVALS.values() if self.source.serves(interval))
        row = self.row(symbol, finest.name, finest.index_at(now_ms), now_ms)
        return json.loads(row)[4] if row else None

    def correct(self, symbol: str, interval_name: str, open_ms: int, close: str) -> None:
        """From now on this candle has another close, as if the exchange had corrected it.

        What was streamed stays so. High and low follow where the close lies beyond them.
        """
        interval = INTERVALS[interval_name]
        index = interval.index_at(open_ms)
        row = self.row(symbol, interval_name, index, interval.open_ms(index + 1) - 1)
        if row is None:
            raise ValueError(f"{symbol} has no {interval_name} candle at {open_ms}")
        first, high, low, _, volume = json.loads(row)[1:6]
        values = [first, max(high, close, key=Decimal), min(low, close, key=Decimal), close, volume]
        self.symbols[symbol].overrides[interval_name, open_ms] = values

    def edit(self, symbol: str, interval_name: str, open_ms: int, kind: str) -> None:
        """From now on this candle is served as one of `ROW_FAULTS` makes it, always the same."""
        self.symbols[symbol].edits[interval_name, open_ms] = lambda row: _row_text(
            ROW_FAULTS[kind](json.loads(row))
        )

    def _between(
        self,
        symbol: str,
        interval: Interval,
        first: int,
        last: int,
        now_ms: int,
    ) -> list[str]:
        """The klines there are among these numbers, the forming one as it is at `now_ms`."""
        is_forming = interval.index_at(now_ms) == last
        rows = self.source.closed(symbol, interval, first, last - is_forming)
        if is_forming:
            # now_ms names a millisecond that has passed in full; so the last one of a candle
            # already shows what stays.
            rows.append(self.source.forming(symbol, interval, last, now_ms + 1))
        listing = self.symbols[symbol]
        if listing.halts or listing.overrides or listing.edits:
            numbered = enumerate(rows, first)
            rows = [_amended(listing, interval, index, row) for index, row in numbered]
        return [row for row in rows if row]


# ----------------------------------------------------------------------------------------------
# Faults: what goes wrong on purpose
# ----------------------------------------------------------------------------------------------

# The ones a careful client survives without waiting for minutes: what mix() draws from.
ALL_FAULTS = (
    *("500", "503_html", "504_empty", "reset", "cut_short", "stall", "html_200", "object"),
    *("empty_list", "missing_fields", "nulls", "nan", "negative", "high_below_low"),
    *("unsorted", "duplicates", "off_grid", "outside"),
)
FAULTS = (
    *(*ALL_FAULTS, "429", "418", "403_html", "451", "redirect", "oversize", "dribble", "dribble_head"),
    *("lone_surrogate", "early_close", "late_close", "shifted", "exponents", "numbers", "minus_zero"),
    *("close_above_high", "no_price"),
)

OVERSIZE_PIECE = b'"' + b"0" * 65_533 + b'",'
OVERSIZE_PIECES = 17 * 16  # of 64 KiB: 17 MiB


@dataclass
class _Planned:
    kind: str
    path: str
    times: float
    match: Callable[[dict[str, str]], bool] | None = None

    def concerns(self, path: str, params: dict[str, str]) -> bool:
        if self.times <= 0 or not path.endswith(self.path):
            return False
        return self.match is None or self.match(params)


class FaultPlan:
    """Which requests go wrong, and how. A path matches those that end with it; "" matches all."""

    def __init__(self) -> None:
        self.stall_seconds = 30.0
        self.dribble_seconds = 1.0  # between two bytes
        self.retry_after_seconds: int | None = None  # of the faults 429 and 418; None: as usual
        self.defined: dict[str, tuple[int, str, dict[str, str]]] = {}
        self._planned: list[_Planned] = []
        self._mix: tuple[float, tuple[str, ...], str] = (0.0, (), "")
        self._random = random.Random(1)

    def add(
        self,
        kind: str,
        *,
        path: str = "klines",
        times: float = 1,
        match: Callable[[dict[str, str]], bool] | None = None,
    ) -> None:
        """Spoil the next `times` requests, of those whose parameters `match` accepts."""
        self._check(kind)
        self._planned.append(_Planned(kind, path, times, match))

    def define(self, kind: str, status: int, body: str = "", **headers: str) -> None:
        """A fault of one's own: this reply; `_` in a header's name stands for `-`."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        self.defined[kind] = (status, body, named)

    def always(self, kind: str, *, path: str = "klines") -> None:
        """Spoil every such request until clear(); what was added with a number comes first."""
        self.add(kind, path=path, times=math.inf)

    def mix(
        self, rate: float, kinds: Sequence[str] = ALL_FAULTS, seed: int = 1, path: str = "klines"
    ) -> None:
        """Spoil this share (0 to 1) of the requests at random, with one of `kinds` each."""
        self._check(*kinds)
        self._random = random.Random(seed)
        self._mix = (rate, tuple(kinds), path)

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        self._planned = []
        self._mix = (0.0, (), "")

    def pick(self, path: str, params: dict[str, str]) -> str:
        """The fault for this request, used up by asking; "" for none."""
        for planned in sorted(self._planned, key=lambda planned: planned.times == math.inf):
            if planned.concerns(path, params):
                planned.times -= 1
                return planned.kind
        rate, kinds, ending = self._mix
        if rate and path.endswith(ending) and self._random.random() < rate:
            return self._random.choice(kinds)
        return ""

    def _check(self, *kinds: str) -> None:
        unknown = set(kinds) - set(FAULTS) - self.defined.keys()
        if unknown:
            raise ValueError(f"no such fault: {sorted(unknown)}; there are {FAULTS}")


ROW_FAULTS: dict[str, Callable[[Kline], Kline]] = {
    "missing_fields": lambda row: row[:6],
    "nulls": lambda row: [row[0], None, None, None, None, None, *row[6:]],
    "nan": lambda row: [*row[:4], "NaN", *row[5:]],
    "negative": lambda row: [*row[:3], f"-{row[3]}", *row[4:]],
    "high_below_low": lambda row: [*row[:2], f"{Decimal(row[3]) / 2:.8f}", *row[3:]],
    "off_grid": lambda row: [row[0] + 7, *row[1:6], row[6] + 7, *row[7:]],
    # What an exchange keeps of an outage: cut short, or begun anew within its time.
    "early_close": lambda row: [*row[:6], row[0] + (row[6] - row[0]) // 4, *row[7:]],
    "shifted": lambda row: [row[0] + (row[6] - row[0]) // 3, *row[1:6], row[6] + 1000, *row[7:]],
    "late_close": lambda row: [*row[:6], row[6] + 1000, *row[7:]],
    # The same values, written otherwise.
    "exponents": lambda row: [row[0], *(f"{Decimal(text):E}" for text in row[1:6]), *row[6:]],
    "numbers": lambda row: [row[0], *(_Raw(text) for text in row[1:6]), *row[6:]],
    "minus_zero": lambda row: [*row[:5], "-0.00000000", *row[6:]],
    # What no candle should be.
    "close_above_high": lambda row: [*row[:2], row[3], row[3], row[2], *row[5:]],
    "no_price": lambda row: [row[0], *["0.00000000"] * 5, *row[6:]],
}


class _Raw(str):
    """A text that stands in JSON as it is, without quotes."""


def _row_text(row: Kline) -> str:
    """A kline as JSON text; a `_Raw` stays what it is."""
    return f"[{','.join(str(each) if isinstance(each, _Raw) else json.dumps(each) for each in row)}]"


ORDER_FAULTS = ("unsorted", "duplicates", "outside")


def damaged(
    kind: str,
    klines: list[Kline],
    interval: Interval,
    start_ms: int | None,
) -> list[Kline] | None:
    """A true reply with one row spoilt, the middle one; None where it has too few rows for that."""
    middle = len(klines) // 2
    if not klines:
        return None
    if kind in ROW_FAULTS:
        return [*klines[:middle], ROW_FAULTS[kind](klines[middle]), *klines[middle + 1 :]]
    if kind == "duplicates":
        return [*klines[: middle + 1], *klines[middle:]]
    if kind == "unsorted" and middle:
        return [*klines[: middle - 1], klines[middle], klines[middle - 1], *klines[middle + 1 :]]
    if kind == "outside" and start_ms is not None:
        index = interval.index_at(start_ms) - 1
        early = [interval.open_ms(index), *klines[0][1:6], interval.open_ms(index + 1) - 1]
        return [early + klines[0][7:], *klines]
    return None


# ----------------------------------------------------------------------------------------------
# The exchange: endpoints, weight and bans
# ----------------------------------------------------------------------------------------------


class Request(NamedTuple):
    """A request the exchange received, and what became of it."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]  # lower-case names
    at_ms: int  # exchange time
    at_monotonic: float  # real seconds, as time.monotonic() counts them
    status: int  # 0 when no reply was sent
    weight: int  # what it used of the budget; a refused request uses nothing
    rows: int  # klines in the reply
    fault: str  # "" for none


class _Ask(NamedTuple):
    method: str
    path: str
    query: str
    params: dict[str, str]
    headers: dict[str, str]
    now_ms: int

    @property
    def is_futures(self) -> bool:
        return self.path.startswith(("/fapi/", "/dapi/"))

    @property
    def is_coin(self) -> bool:
        return self.path.startswith("/dapi/")

    def required(self, name: str) -> str:
        value = self.params.get(name)
        if not value:
            message = f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."
            raise BinanceError(400, -1102, message)
        return value

    def number(self, name: str, default: int | None = None) -> int | None:
        value = self.params.get(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdigit() and len(value) <= 20):
            message = f"Illegal characters found in parameter '{name}'; legal range is digits."
            raise BinanceError(400, -1100, message)
        return int(value)

    def moment_ms(self, name: str) -> int | None:
        """A time, which spot takes in microseconds, too."""
        value = self.number(name)
        return value // 1000 if value and value >= 10**14 and not self.is_futures else value


@dataclass
class _Reply:
    status: int = 200
    body: str = ""
    content_type: str = JSON_TYPE
    headers: dict[str, str] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    fault: str = ""


def _error(status: int, code: int, message: str, **headers: str) -> _Reply:
    body = json.dumps({"code": code, "msg": message})
    return _Reply(status, body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def _page(status: int, text: str) -> _Reply:
    return _Reply(status, f"<html><body><h1>{text}</h1></body></html>", HTML_TYPE)


def _klines_reply(rows: list[str]) -> _Reply:
    return _Reply(body=f"[{','.join(rows)}]", rows=rows)


def _klines_weight(ask: _Ask) -> int:
    if not ask.is_futures:
        return 2
    limit = ask.number("limit", 500) or 0
    return 1 if limit < 100 else 2 if limit < 500 else 5 if limit <= 1000 else 10


def _tickers_weight(ask: _Ask) -> int:
    if "symbol" in ask.params:
        return 1 if ask.is_futures else 2
    return 40 if ask.is_futures else 80


def _best_offers(_: str, price: str) -> dict[str, str]:
    bid, ask = (_eight_decimals(str(float(price) * factor)) for factor in (0.9999, 1.0001))
    return {"bidPrice": bid, "bidQty": "1.00000000", "askPrice": ask, "askQty": "1.00000000"}


WEIGHTS: dict[str, Callable[[_Ask], int]] = {
    "ping": lambda ask: 1,
    "time": lambda ask: 1,
    "exchangeInfo": lambda ask: 1 if ask.is_futures else 20,
    "klines": _klines_weight,
    "24hr": _tickers_weight,
    "price": lambda ask: 2 if "symbol" in ask.params else 4,
    "bookTicker": lambda ask: 2 if "symbol" in ask.params else 4,
    "depth": lambda ask: 5,
    "avgPrice": lambda ask: 2,
    "tradingSchedule": lambda ask: 5,
    "apiRestrictions": lambda ask: 1,
}
US_WEIGHTS = {"exchangeInfo": 10, "klines": 1, "24hr": 40}
NAMES = "ping time exchangeInfo klines depth ticker/24hr ticker/price ticker/bookTicker".split()
PATHS = {
    *(f"{prefix}/{name}" for prefix in ("/api/v3", "/fapi/v1", "/dapi/v1") for name in NAMES),
    "/api/v3/avgPrice",
    "/fapi/v1/tradingSchedule",
    "/sapi/v1/account/apiRestrictions",
}


#: What a key may do unless a test says otherwise.
READ_ONLY = {
    "ipRestrict": False,
    "createTime": 1_700_000_000_000,
    "enableReading": True,
    "enableSpotAndMarginTrading": False,
    "enableWithdrawals": False,
    "enableInternalTransfer": False,
    "enableMargin": False,
    "enableFutures": False,
    "permitsUniversalTransfer": False,
    "enableVanillaOptions": False,
}


class SimulatedBinance:
    """The exchange: start it with `with`, point a client at `url`, look at `requests` afterwards.

    `weight_limit` is the budget of a minute; for futures it is 2400, unless another than the usual
    one is given here. One counter serves all. `latency_seconds` passes before each reply. The keys
    are those that apiRestrictions accepts. With an `ssl_context` it speaks TLS, and `url` is https.
    With `us` it is Binance.US: other weights, and no parameters that only Binance itself knows.
    After stop(), start() serves again at the same port.
    """

    def __init__(
        self,
        *,
        market: Market | None = None,
        port: int = 0,
        weight_limit: int = SPOT_WEIGHT_LIMIT,
        latency_seconds: float = 0.0,
        api_key: str = API_KEY,
        secret_key: str = SECRET_KEY,
        clock: SimulatedClock | None = None,
        ssl_context: ssl.SSLContext | None = None,
        us: bool = False,
    ) -> None:
        self.market = market or Market.random_walk()
        self.us = us
        self.ssl_context = ssl_context
        self.clock = clock or SimulatedClock()
        self.port = port  # 0 until started: any free one
        self.weight_limit = US_WEIGHT_LIMIT if us else weight_limit
        self.latency_seconds = latency_seconds
        self.api_key = api_key
        self.secret_key = secret_key
        self.permissions: dict[str, Any] = dict(READ_ONLY)
        self.faults = FaultPlan()
        self.edits: dict[str, Callable[[Any], Any]] = {}  # of answers but klines, by name: exchangeInfo
        self.sessions: dict[str, list[dict[str, Any]]] = {}  # of tradingSchedule, by underlying
        self.close_lag_seconds = 0.0  # how long after a close klines answers are stale
        self.ban_seconds = 120.0  # of a first ban; each further one lasts twice as long
        self.extra_weight: int | Callable[[], int] = 0  # used by others behind the same address
        self.requests: list[Request] = []
        self.refused_429 = 0
        self.refused_418 = 0
        self.connections = 0  # accepted so far
        self.bytes_sent = 0  # heads and bodies, as written
        self._lock = threading.RLock()
        self._minute = -1
        self._used = 0
        self._refusals = 0  # in this minute
        self._banned_until_ms = 0
        self._bans = 0
        self._server: _Server | None = None
        self.streams = Streams(self, INTERVALS)

    # What a test or a benchmark uses.

    def __enter__(self) -> SimulatedBinance:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve on loopback, in daemon threads, until stop()."""
        self._server = _Server(self)
        self.port = self._server.server_address[1]
        self.streams.start()
        threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="simulated-binance", daemon=True
        ).start()

    def stop(self) -> None:
        """Close the port and every connection, whatever is going on there."""
        server, self._server = self._server, None
        self.streams.stop()
        if server:
            server.stop()

    @property
    def url(self) -> str:
        """The base URL, known once it is started."""
        return f"{'https' if self.ssl_context else 'http'}://127.0.0.1:{self.port}"

    @property
    def stream_url(self) -> str:
        """The base URL of the streams, without a path, known once it is started."""
        return f"{'wss' if self.ssl_context else 'ws'}://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections clients hold now."""
        return len(self._server.open_sockets) if self._server else 0

    @property
    def used_weight(self) -> int:
        """The weight used in this minute of exchange time, by others too."""
        with self._lock:
            self._turn_minute(self.clock.now_ms())
            return self._used + self._used_by_others()

    def clear(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self.requests.clear()

    def asked(self, path_ending: str = "klines") -> list[Request]:
        """The requests so far whose path ends so."""
        with self._lock:
            return [request for request in self.requests if request.path.endswith(path_ending)]

    def ban(self, seconds: float) -> None:
        """Answer everything with 418 for so many seconds of exchange time."""
        with self._lock:
            self._banned_until_ms = self.clock.now_ms() + int(seconds * 1000)

    def close_session(self, underlying: str, start_ms: int, end_ms: int, kind: str = "NO_TRADING") -> None:
        """Have no candles of what follows that market from one time to another, and say so."""
        sessions = self.sessions.setdefault(underlying, [])
        sessions.append({"startTime": start_ms, "endTime": end_ms, "type": kind})
        for listing in self.market.symbols.values():
            if listing.underlying == underlying:
                listing.halts.append((start_ms, end_ms))

    def klines(
        self,
        symbol: str,
        interval: str,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int = 500,
        page_limit: int = 1000,
    ) -> list[Kline]:
        """What a true and fresh answer would hold now: no HTTP, no weight, no faults, no lag."""
        rows = self.market.rows(
            symbol,
            INTERVALS[interval],
            now_ms=self.clock.now_ms(),
            start_ms=start_ms,
            end_ms=end_ms,
            limit=min(limit, page_limit),
        )
        return [json.loads(row, parse_float=str) for row in rows]  # a price is never rounded

    # How a request is answered.

    def respond(self, method: str, target: str, headers: dict[str, str]) -> _Reply:
        """Answer one request and write it down; `headers` have lower-case names."""
        path, _, query = target.partition("?")
        params = dict(parse_qsl(query, keep_blank_values=True))
        with self._lock:
            ask = _Ask(method, path, query, params, headers, self.clock.now_ms())
            self._turn_minute(ask.now_ms)
            used_before = self._used
            try:
                reply = self._admit(ask) or self._answer(ask)
            except BinanceError as error:
                reply = _error(error.status, error.code, error.message)
            self.refused_429 += reply.status == 429
            self.refused_418 += reply.status == 418
            weight = self._used - used_before
            reply.headers["Date"] = formatdate(ask.now_ms / 1000, usegmt=True)
            reply.headers["X-MBX-USED-WEIGHT-1M"] = str(self._used + self._used_by_others())
            outcome = (reply.status, weight, len(reply.rows), reply.fault)
            self.requests.append(
                Request(method, path, params, headers, ask.now_ms, time.monotonic(), *outcome)
            )
        return reply

    def _turn_minute(self, now_ms: int) -> None:
        minute = now_ms // MINUTE_MS
        if minute != self._minute:
            self._minute, self._used, self._refusals = minute, 0, 0

    def _used_by_others(self) -> int:
        return self.extra_weight() if callable(self.extra_weight) else self.extra_weight

    def _limit(self, ask: _Ask) -> int:
        if ask.is_futures and self.weight_limit == SPOT_WEIGHT_LIMIT:
            return FUTURES_WEIGHT_LIMIT
        return self.weight_limit

    def _admit(self, ask: _Ask) -> _Reply | None:
        """Count the request's weight; a reply if it is refused for it."""
        if ask.now_ms < self._banned_until_ms:
            return self._banned(ask, self._banned_until_ms)
        if ask.method != "GET" or ask.path not in PATHS:
            return _page(404, "404 Not Found")
        name = ask.path.rpartition("/")[2]
        weight = US_WEIGHTS.get(name, 1) if self.us else WEIGHTS[name](ask)
        if self._used + self._used_by_others() + weight <= self._limit(ask):
            self._used += weight
            return None
        self._refusals += 1
        if self._refusals <= 1 + ASKING_ON_ALLOWED:
            return self._too_much(ask)
        self.ban(min(self.ban_seconds * 2**self._bans, LONGEST_BAN_SECONDS))
        self._bans += 1
        return self._banned(ask, self._banned_until_ms)

    def _too_much(self, ask: _Ask, retry_after_seconds: int | None = None) -> _Reply:
        if retry_after_seconds is None:
            retry_after_seconds = math.ceil((MINUTE_MS - ask.now_ms % MINUTE_MS) / 1000)
        message = (
            f"Too much request weight used; current limit is {self._limit(ask)} request weight per"
            " 1 MINUTE. Please use WebSocket Streams for live updates to avoid polling the API."
        )
        return _error(429, -1003, message, Retry_After=str(retry_after_seconds))

    def _banned(self, ask: _Ask, until_ms: int) -> _Reply:
        message = (
            f"Way too much request weight used; IP banned until {until_ms}."
            " Please use WebSocket Streams for live updates to avoid bans."
        )
        left_seconds = max(1, math.ceil((until_ms - ask.now_ms) / 1000))
        return _error(418, -1003, message, Retry_After=str(left_seconds))

    def _true_answer(self, ask: _Ask) -> _Reply:
        name = ask.path.rpartition("/")[2]
        if name == "klines":
            return _klines_reply(self._klines_rows(ask))
        answers: dict[str, Callable[[_Ask], Any]] = {
            "ping": lambda ask: {},
            "time": lambda ask: {"serverTime": ask.now_ms},
            "exchangeInfo": self._exchange_info,
            "24hr": self._tickers,
            "price": lambda ask: self._each(ask, lambda symbol, price: {"price": price}),
            "bookTicker": lambda ask: self._each(ask, _best_offers),
            "depth": self._depth,
            "avgPrice": lambda ask: {"mins": 5, "price": self._price(ask), "closeTime": ask.now_ms},
            "tradingSchedule": self._trading_schedule,
            "apiRestrictions": self._api_restrictions,
        }
        answer = self.edits.get(name, lambda answer: answer)(answers[name](ask))
        return _Reply(body=json.dumps(answer, separators=(",", ":")))

    def _interval(self, ask: _Ask) -> Interval:
        interval = INTERVALS.get(ask.required("interval"))
        no_seconds = ask.is_futures and interval is INTERVALS["1s"]
        if interval is None or no_seconds or not self.market.source.serves(interval):
            raise BinanceError(400, -1120, "Invalid interval.")
        return interval

    def _klines_rows(self, ask: _Ask) -> list[str]:
        symbol, interval = ask.required("symbol"), self._interval(ask)
        if symbol not in self.market.symbols or is_coin_margined(symbol) != ask.is_coin:
            raise BinanceError(400, -1121, "Invalid symbol.")
        limit = ask.number("limit", 500) or 0
        if limit < 1:
            raise BinanceError(400, -1100, "Illegal characters found in parameter 'limit'.")
        limit = min(limit, 1500 if ask.is_futures else 1000)
        now_ms, start_ms = self._as_of_ms(interval, ask.now_ms), ask.moment_ms("startTime")
        end_ms = ask.moment_ms("endTime")
        if ask.is_coin:
            return self._newest_rows(symbol, interval, now_ms, start_ms, end_ms, limit)
        return self.market.rows(
            symbol, interval, now_ms=now_ms, start_ms=start_ms, end_ms=end_ms, limit=limit
        )

    def _newest_rows(
        self,
        symbol: str,
        interval: Interval,
        now_ms: int,
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
    ) -> list[str]:
        """As COIN-M answers: the newest rows between two times, which are 200 days apart at most."""
        if start_ms is not None and end_ms is not None and end_ms - start_ms > COIN_SPAN_MS:
            raise BinanceError(400, -1127, "More than 4800 hours between startTime and endTime.")
        span_end_ms = now_ms if start_ms is None else start_ms + COIN_SPAN_MS
        end_ms = min(now_ms, span_end_ms if end_ms is None else end_ms)
        rows = self.market.rows(symbol, interval, now_ms=now_ms, end_ms=end_ms, limit=limit)
        return [coin_row(row) for row in rows if json.loads(row)[0] >= (start_ms or 0)]

    def _as_of_ms(self, interval: Interval, now_ms: int) -> int:
        """The time a klines answer shows: a little before the close, for a while after it."""
        open_ms = interval.open_ms(interval.index_at(now_ms))
        stale = now_ms - open_ms < self.close_lag_seconds * 1000
        return open_ms - STALE_BY_MS if stale else now_ms

    def _exchange_info(self, ask: _Ask) -> dict[str, Any]:
        weight = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1}
        raw = {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5}
        return {
            "timezone": "UTC",
            "serverTime": ask.now_ms,
            "rateLimits": [weight | {"limit": self._limit(ask)}, raw | {"limit": 61_000}],
            "exchangeFilters": [],
            "symbols": [self._symbol_info(symbol, ask) for symbol in self._symbols_asked(ask)],
        }

    def _trading_schedule(self, ask: _Ask) -> dict[str, Any]:
        """When the markets that stocks and metals follow trade."""
        schedules = {name: {"sessions": sessions} for name, sessions in self.sessions.items()}
        return {"updateTime": ask.now_ms, "marketSchedules": schedules}

    def _symbols_asked(self, ask: _Ask) -> list[str]:
        if self.us and (unread := ask.params.keys() - {"symbol", "symbols"}):
            raise BinanceError(400, -1104, f"Not all sent parameters were read: {', '.join(unread)}.")
        every = [symbol for symbol in self.market.symbols if is_coin_margined(symbol) == ask.is_coin]
        symbols = [ask.params["symbol"]] if "symbol" in ask.params else every
        if "symbols" in ask.params:
            try:
                symbols = [str(symbol) for symbol in json.loads(ask.params["symbols"])]
            except (ValueError, TypeError):
                message = "Illegal characters found in parameter 'symbols'."
                raise BinanceError(400, -1100, message) from None
        if not set(symbols) <= self.market.symbols.keys():
            raise BinanceError(400, -1121, "Invalid symbol.")
        return symbols

    def _symbol_info(self, symbol: str, ask: _Ask) -> dict[str, Any]:
        listing = self.market.symbols[symbol]
        of_futures = {"contractType": listing.contract, "underlyingType": listing.underlying}
        of_futures["marginAsset"] = listing.base if ask.is_coin else listing.quote
        return (of_futures if ask.is_futures else {}) | {
            "symbol": symbol,
            "contractStatus" if ask.is_coin else "status": listing.status,
            "baseAsset": listing.base,
            "baseAssetPrecision": 8,
            "quoteAsset": listing.quote,
            "quotePrecision": 8,
            "orderTypes": ["LIMIT", "MARKET"],
            "isSpotTradingAllowed": True,
            "filters": [],
        }

    def _tickers(self, ask: _Ask) -> Any:
        """What was traded in a day; volumes are invented, and the same in every process."""
        tickers = [
            {
                "symbol": symbol,
                "openTime": ask.now_ms - DAY_MS,
                "closeTime": ask.now_ms,
                **(
                    {"baseVolume": volume, "weightedAvgPrice": "1"}
                    if ask.is_coin
                    else {"quoteVolume": volume}
                ),
            }
            for symbol in self._symbols_asked(ask)
            for volume in (f"{self._day_volume(symbol):.8f}",)
        ]
        return tickers[0] if "symbol" in ask.params else tickers

    def _each(self, ask: _Ask, facts: Callable[[str, str], dict[str, str]]) -> Any:
        """Something of each symbol that is asked for, by its price."""
        found = []
        for symbol in self._symbols_asked(ask):
            if price := self.market.price(symbol, ask.now_ms):
                found.append({"symbol": symbol, **facts(symbol, price)})
        return found[0] if "symbol" in ask.params else found

    def _price(self, ask: _Ask) -> str | None:
        ask.required("symbol")
        (symbol,) = self._symbols_asked(ask)
        return self.market.price(symbol, ask.now_ms)

    def _depth(self, ask: _Ask) -> dict[str, Any]:
        """An order book of one offer on each side."""
        offers = _best_offers("", self._price(ask) or "1")
        sides = {
            side: [[offers[f"{name}Price"], "1.00000000"]]
            for side, name in (("bids", "bid"), ("asks", "ask"))
        }
        return {"lastUpdateId": ask.now_ms, **sides}

    def _day_volume(self, symbol: str) -> float:
        listing = self.market.symbols[symbol]
        if listing.day_volume is not None:
            return listing.day_volume
        return float(1e4 + splitmix64(zlib.crc32(symbol.encode())) % 10**9)

    def _api_restrictions(self, ask: _Ask) -> dict[str, Any]:
        if ask.headers.get("x-mbx-apikey") != self.api_key:
            message = "Invalid API-key, IP, or permissions for action."
            raise BinanceError(401, -2015, message)
        signed, _, signature = ask.query.rpartition("&signature=")
        truth = hmac.new(self.secret_key.encode(), signed.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(truth.encode(), signature.encode()):
            raise BinanceError(400, -1022, "Signature for this request is not valid.")
        ask.required("timestamp")
        ahead_ms = (ask.number("timestamp") or 0) - ask.now_ms
        if ahead_ms >= 1000:
            message = "Timestamp for this request was 1000ms ahead of the server's time."
            raise BinanceError(400, -1021, message)
        if -ahead_ms > (ask.number("recvWindow", DEFAULT_RECV_WINDOW_MS) or 0):
            message = "Timestamp for this request is outside of the recvWindow."
            raise BinanceError(400, -1021, message)
        return self.permissions

    # How an answer is spoilt.

    def _answer(self, ask: _Ask) -> _Reply:
        kind = self.faults.pick(ask.path, ask.params)
        reply = self._instead(kind, ask) or self._true_answer(ask)
        if kind in ROW_FAULTS or kind in ORDER_FAULTS:
            reply = self._damaged(kind, ask, reply)
        reply.fault = kind
        return reply

    def _instead(self, kind: str, ask: _Ask) -> _Reply | None:
        """The reply that stands in for the true one, for those faults that need none."""
        retry_after = self.faults.retry_after_seconds
        ban_ms = int(1000 * (self.ban_seconds if retry_after is None else retry_after))
        region = "Service unavailable from a restricted location."
        replies: dict[str, Callable[[], _Reply]] = {
            "500": lambda: _error(500, -1000, "An unknown error occurred."),
            "503_html": lambda: _page(503, "503 Service Temporarily Unavailable"),
            "504_empty": lambda: _Reply(504),
            "reset": lambda: _Reply(0),
            "stall": lambda: _Reply(0),
            "html_200": lambda: _page(200, "Please wait"),
            "object": lambda: _Reply(body='{"unexpected":"object"}'),
            "empty_list": lambda: _Reply(body="[]"),
            "429": lambda: self._too_much(ask, retry_after),
            "418": lambda: self._banned(ask, ask.now_ms + ban_ms),
            "403_html": lambda: _page(403, "403 Forbidden"),
            "451": lambda: _error(451, 0, region),
            "lone_surrogate": lambda: _error(400, -1100, "Illegal character '\ud800'."),
            "redirect": lambda: _Reply(302, headers={"Location": "http://127.0.0.2:1/"}),
            "oversize": lambda: _Reply(headers={"Transfer-Encoding": "chunked"}),
        }
        if kind in self.faults.defined:
            status, body, headers = self.faults.defined[kind]
            return _Reply(status, body, HTML_TYPE if body.startswith("<") else JSON_TYPE, dict(headers))
        return replies[kind]() if kind in replies else None

    def _damaged(self, kind: str, ask: _Ask, reply: _Reply) -> _Reply:
        klines = None
        if reply.rows:
            rows = [json.loads(row) for row in reply.rows]
            klines = damaged(kind, rows, self._interval(ask), ask.number("startTime"))
        if klines is None:
            return _Reply(body='{"unexpected":"object"}')
        return _klines_reply([_row_text(row) for row in klines])


# ----------------------------------------------------------------------------------------------
# HTTP: connections, and how a reply is delivered
# ----------------------------------------------------------------------------------------------


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = os.name == "posix"  # on Windows two programs could then have one port
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, exchange: SimulatedBinance) -> None:
        self.exchange = exchange
        self.stopping = threading.Event()
        self.open_sockets: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__(("127.0.0.1", exchange.port), _Connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self.exchange.connections += 1
            self.open_sockets.add(request)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        context = self.exchange.ssl_context
        if context is None:
            super().finish_request(request, client_address)
            return
        with contextlib.suppress(OSError):  # the client's side of the handshake went wrong
            secured = context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
            with self._changed:
                self.open_sockets.add(secured)
            try:
                secured.settimeout(HANDSHAKE_SECONDS)
                secured.do_handshake()
                secured.settimeout(None)
                super().finish_request(secured, client_address)
            finally:
                self.shutdown_request(secured)

    def shutdown_request(self, request: Any) -> None:
        # Only close: the usual shutdown before it would send a FIN ahead of a wanted reset.
        request.close()
        with self._changed:
            self.open_sockets.discard(request)
            self._changed.notify_all()

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self._changed:
            for connection in self.open_sockets:
                with contextlib.suppress(OSError):
                    # The socket's own, where TLS is spoken: it waits for nobody.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self.open_sockets, timeout=2)


class _Connection(socketserver.StreamRequestHandler):
    """One client's connection. It reads requests itself: the standard library's way costs more
    than the rest of an answer."""

    server: _Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        # A client that goes away is no news.
        with contextlib.suppress(OSError):
            while self._serve_request():
                pass

    def _serve_request(self) -> bool:
        """Answer the next request; whether the connection stays open."""
        words = self.rfile.readline(65_536).decode("latin-1").split()
        if len(words) != 3:
            return False
        method, target, version = words
        headers = self._read_headers()
        self.rfile.read(int(headers.get("content-length") or 0))
        exchange = self.server.exchange
        if method == "GET" and exchange.streams.wants(target, headers):
            exchange.streams.serve(self.connection, target, headers)
            return False
        reply = exchange.respond(method, target, headers)
        if exchange.latency_seconds:
            self.server.stopping.wait(exchange.latency_seconds)
        stays = self._deliver(reply, "gzip" in headers.get("accept-encoding", ""))
        return stays and version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"

    def _read_headers(self) -> dict[str, str]:
        headers = {}
        while line := self.rfile.readline(65_536).decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return headers

    def _deliver(self, reply: _Reply, accepts_gzip: bool) -> bool:
        faults = self.server.exchange.faults
        match reply.fault:
            case "reset":
                # Closing with data unsent and no time to linger sends RST.
                no_linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
                return False
            case "stall":
                self._wait(faults.stall_seconds)
                return False
            case "oversize":
                self._send_oversize(_head(reply))
                return True
        head, body = _encoded(reply, accepts_gzip)
        if reply.fault == "cut_short":
            self._send(head + body[: len(body) // 2])
            return False
        if reply.fault in ("dribble", "dribble_head"):
            slow = body if reply.fault == "dribble" else head + body
            self._send((head + body)[: -len(slow)])
            for byte in slow:
                if not self._wait(faults.dribble_seconds):
                    return False
                self._send(bytes([byte]))
            return True
        self._send(head + body)
        return True

    def _send(self, octets: bytes) -> None:
        exchange = self.server.exchange
        with exchange._lock:
            exchange.bytes_sent += len(octets)
        self.connection.sendall(octets)

    def _send_oversize(self, head: bytes) -> None:
        self._send(head)
        for piece in (b"[", *[OVERSIZE_PIECE] * OVERSIZE_PIECES, b'""]', b""):
            self._send(b"%x\r\n%b\r\n" % (len(piece), piece))

    def _wait(self, seconds: float) -> bool:
        """Wait so long, or until the client goes or the server stops; whether all went well."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            readable = select.select([self.connection], [], [], min(left, 0.05))[0]
            if readable or self.server.stopping.is_set():
                return False
        return True


def _encoded(reply: _Reply, accepts_gzip: bool) -> tuple[bytes, bytes]:
    """Head and body as they go over the wire."""
    body = reply.body.encode()
    if accepts_gzip and len(body) > GZIP_FROM_BYTES:
        body = gzip.compress(body, compresslevel=1, mtime=0)
        reply.headers["Content-Encoding"] = "gzip"
    reply.headers["Content-Length"] = str(len(body))
    return _head(reply), body


PHRASES = {status.value: status.phrase for status in HTTPStatus}


def _head(reply: _Reply) -> bytes:
    headers = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    return (
        f"HTTP/1.1 {reply.status} {PHRASES.get(reply.status, 'Unknown')}\r\n"
        f"Content-Type: {reply.content_type}\r\n{headers}\r\n"
    ).encode("latin-1")


# ----------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A simulated Binance on loopback, for trying out.")
    parser.add_argument("--port", type=int, default=9100, help="port to listen on (9100)")
    parser.add_argument("--candles", metavar="FILE.csv.gz", help="candles to serve, moved to now")
    parser.add_argument("--symbols", help="the pairs listed, such as BTC/USDT,ETH/USDT")
    parser.add_argument("--weight-limit", type=int, default=SPOT_WEIGHT_LIMIT, help="per minute")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before each reply")
    parser.add_argument("--close-lag-seconds", type=float, default=0.0, help="stale after a close")
    parser.add_argument("--speed", type=float, default=1.0, help="of its time, against ours")
    return parser


def _market(candles: str | None, symbols: str | None, now_ms: int) -> Market:
    names = [name.strip() for name in symbols.split(",")] if symbols else None
    if not candles:
        return Market.random_walk(names or DEFAULT_PAIRS)
    market = Market.from_csv(candles, now_ms)
    if names:
        wanted = [name.replace("/", "") for name in names]
        market.symbols = {name: market.symbols[name] for name in wanted}
    return market


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM."""
    parser = _parser()
    options = parser.parse_args(arguments)
    clock = SimulatedClock(speed=options.speed)
    try:
        market = _market(options.candles, options.symbols, clock.now_ms())
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"cannot make a market of --candles and --symbols: {error}")
    exchange = SimulatedBinance(
        market=market,
        port=options.port,
        weight_limit=options.weight_limit,
        latency_seconds=options.latency_ms / 1000,
        clock=clock,
    )
    exchange.close_lag_seconds = options.close_lag_seconds
    for number in (signal.SIGINT, signal.SIGTERM):
        # Also where the parent shell had SIGINT ignored, as it does for jobs in the background.
        signal.signal(number, signal.default_int_handler)
    kind = "recorded candles, moved to now" if options.candles else "invented candles"
    try:
        with exchange:
            listed = len(market.symbols)
            print(f"simulated market ({kind}, {listed} symbols), streams at {exchange.stream_url},", end=" ")
            print(f"REST at {exchange.url}", flush=True)
            threading.Event().wait()
    except OSError as error:
        parser.error(f"cannot listen on port {options.port}: {error}")
    except KeyboardInterrupt:
        pass  # the signal that ends it
    return 0


if __name__ == "__main__":
    sys.exit(main())
