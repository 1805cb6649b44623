"""Candles that a TET Data Service keeps in Redis, as DataFrames, for programs that read.

One file that needs nothing but redis-py: install it with the service, or copy it. pandas, polars and numpy
are imported only when a frame of theirs is asked for.

    from tet_reader import Reader

    reader = Reader("redis://localhost:6379/1")          # or a redis.Redis or RedisCluster of yours
    frame = reader.candles("BTC/USDT", "15m")            # closed candles, a pandas DataFrame
    for pair, timeframe, frame in reader.follow(["BTC/USDT", "ETH/USDT"], "15m"):
        ...                                              # at each close

`AsyncReader` has the same names, to be awaited. What a reader has read it keeps: read again, only the end of
a value crosses the network, as long as the value proves that all before it is as it was. Threads may share a
reader. Every time is UTC; seconds and ms say so in their names.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import re
import sys
import time
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache, partial
from importlib import import_module
from inspect import isawaitable
from itertools import chain
from operator import lt
from typing import Any, NamedTuple, Self, TypedDict, TypeVar, Unpack

import redis
import redis.asyncio

__all__ = ["AsyncReader", "Candle", "Damaged", "Missing", "ReadError", "Reader", "Stale"]

DEFAULT_URL = "redis://localhost:6379/1"
OHLCV = ("open", "high", "low", "close", "volume")
CHUNK = 8  # values that are asked for in one message: several MB, a few hundred kB where the ends do
#: A value's candles are written anew from here on, counted from the newest; before it only when it is written
#: whole. The service patches the last 8.
CHANGING = 10
BULK = 100  # candles, from which on numpy reads them faster, if the program has it loaded
PLACES = 16  # digits of the numbers that it reads
END_BYTES = 512  # at a value's end, with all of its fields
SILENT_SECONDS = 30.0  # without a message, after which the channel is asked whether it lives
LOST_SECONDS = 10.0  # without an answer to that, after which it is subscribed to again
RETRY_SECONDS = 1.0  # between two attempts at that
LOOK_SECONDS = 1.0  # within which a follower sees that its reader was closed
STATUS_SECONDS = 60.0  # after which a status that is written every few seconds is an old one

#: A connection that another thread closes may end as any of these.
CONNECTION_ERRORS = (redis.RedisError, OSError, ValueError)

logger = logging.getLogger("tet_reader")


class ReadError(Exception):
    """What a reader raises of its own; errors of Redis are redis-py's."""


class Missing(ReadError):
    """The pair is not kept. ``nearest`` is the pair of that timeframe that is, and may be meant, or empty."""

    def __init__(self, text: str, nearest: str = "") -> None:
        super().__init__(text)
        self.nearest = nearest


class Stale(ReadError):
    """The data is older than ``max_age``; ``age_seconds`` is its age, ``cause`` what the status says."""

    def __init__(self, text: str, age_seconds: float, cause: str) -> None:
        super().__init__(text)
        self.age_seconds, self.cause = age_seconds, cause


class Damaged(ReadError):
    """The value is none that the service writes; it fetches such a pair anew by itself."""


class Candle(NamedTuple):
    """A candle of the engine ``list``; prices and volume are floats, with ``exact`` Decimals.

    ``filled`` is True where ``fill`` put it into a hole.
    """

    time: datetime
    open: Any
    high: Any
    low: Any
    close: Any
    volume: Any
    filled: bool = False


# ------------------------------------------------------------------------------
# Times


@lru_cache(maxsize=4096)
def _day(text: str) -> int:
    """A day such as 20260115 in seconds since the epoch."""
    days = date(int(text[:4]), int(text[4:6]), int(text[6:])) - date(1970, 1, 1)
    return days.days * 86_400


class _Moments(dict[str, int]):
    """Times such as 20260115120000 in ms since the epoch. Pairs share them, so that most are looked up."""

    def __missing__(self, text: str) -> int:
        if len(text) != 14:
            raise ValueError(f"not a time: {text!r:.40}")
        if len(self) > 200_000:
            self.clear()
        seconds = int(text[8:10]) * 3600 + int(text[10:12]) * 60 + int(text[12:])
        self[text] = moment = (_day(text[:8]) + seconds) * 1000
        return moment


_MOMENTS = _Moments()
_STEP_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def _ms(text: str) -> int:
    """The ms since the epoch of a time such as ``2026-01-15T12:00:00Z``."""
    return _MOMENTS[re.sub(r"\D", "", text)]


def _shift(open_ms: int, timeframe: str, steps: int) -> int:
    """The open time of the candle that many steps later (earlier when negative)."""
    if timeframe[-1] == "M":
        moment = datetime.fromtimestamp(open_ms / 1000, UTC)
        year, month = divmod(moment.year * 12 + moment.month - 1 + steps, 12)
        return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * 1000
    return open_ms + steps * int(timeframe[:-1]) * _STEP_SECONDS[timeframe[-1]] * 1000


# ------------------------------------------------------------------------------
# The stored value: bytes in, candles out


class _Held(NamedTuple):
    """What a reader has of a pair: its candles, and where in the value their end stands.

    ``opens`` are ms, ascending; ``values`` has all of the first of ``names``, then all of the second, and
    so on: a view of floats, or a list of Decimals. ``order`` says which of two is the newer: data_end,
    last_candle_time, last_update, as the value has them. The entry of the candle that opens at ``from_ms``
    begins at byte ``offset``, for as long as the value carries ``mark``; an empty one proves nothing.
    ``by_read`` is False where an announcement told it.
    """

    opens: array[int]
    values: Any
    names: tuple[str, ...]
    order: tuple[str, str, str]
    timeframe: str
    window: int
    mark: str
    offset: int
    from_ms: int
    by_read: bool

    @property
    def data_end(self) -> str:
        """The end, exclusive, of the newest closed candle."""
        return self.order[0]

    @property
    def updated_ms(self) -> int:
        """When the service has last seen that this is so."""
        return _ms(self.order[2])

    def joined(self, start: int, stop: int, opens: array[int], values: Any) -> _Held:
        """The candles from ``start`` to ``stop``, exclusive, and others behind them."""
        own, others = len(self.opens), len(opens)
        parts = []
        for number in range(len(self.names)):
            parts.append(self.values[number * own + start : number * own + stop])
            parts.append(values[number * others : (number + 1) * others])
        return self._replace(opens=self.opens[start:stop] + opens, values=_joined(parts))


def _joined(parts: Sequence[Any]) -> Any:
    """Parts of columns in one: lists of Decimals, or views of floats."""
    if isinstance(parts[0], list):
        return list(chain.from_iterable(parts))
    return memoryview(b"".join(parts)).cast("d")


#: How an entry looks without its digits and points: the strings are within a string.
_ENTRY = re.compile(rb'\\"--T::Z\\":\{(?:\\"\w+\\":(?:\\"\\")?[,}])+')
_NAME = re.compile(rb'\\"(\w+)\\":')
_DIGITS = b"0123456789."
_BLANKS = bytes.maketrans(b'",', b"  ")
_NO_NUMBER = bytes(sorted(set(range(256)) - set(_DIGITS + b'", ')))
_ONE_BLANK = bytes.maketrans(b",{", b"  ")  # there is one of these between two numbers
_NO_DIGIT = bytes(sorted(set(range(256)) - set(_DIGITS + b",{")))
_DAMAGED = "a candle is damaged or in the wrong place"
_FRONT = re.compile(rb'\{"ohlcv_data":"\{ *')
_UPDATED = re.compile(rb'"last_update": *"([^"]+)"')


def _numbers(texts: Sequence[str], names: int, exact: bool) -> Any:
    """Columns of numbers from candles of texts, each a time and so many values."""
    if exact:
        return [Decimal(text) for column in range(1, names + 1) for text in texts[column :: names + 1]]
    return memoryview(
        array("d", [float(text) for column in range(1, names + 1) for text in texts[column :: names + 1]])
    )


def _entries(text: bytes, exact: bool) -> tuple[tuple[str, ...], array[int], Any]:
    """Names, open times (ms) and values of entries, joined by commas. Raises ValueError if they are not.

    Without digits all entries look the same: one comparison checks the shape of all.
    """
    unit = text[: text.find(b"}") + 1].translate(None, _DIGITS)
    shape = text.translate(None, _DIGITS)
    count = (len(shape) + 1) // (len(unit) + 1)
    if not _ENTRY.fullmatch(unit) or shape != b",".join([unit] * count):
        raise ValueError("the candles are not as the service writes them")
    names = tuple(name.decode() for name in _NAME.findall(unit))
    numpy = None if exact or count < BULK else sys.modules.get("numpy")
    if numpy:
        return names, *_in_bulk(numpy, text, count, len(names) + 1)
    texts = text.translate(_BLANKS, _NO_NUMBER).decode().split()
    times = texts[:: len(names) + 1]
    if len(texts) != count * (len(names) + 1) or not all(map(lt, times, times[1:])):
        raise ValueError(_DAMAGED)
    return names, array("q", map(_MOMENTS.__getitem__, times)), _numbers(texts, len(names), exact)


def _in_bulk(numpy: Any, text: bytes, count: int, width: int) -> tuple[array[int], Any]:
    """The same of many entries of the right shape, by numpy: each is so many numbers, the time first.

    A number's digits make a whole number, which a float holds up to 2**53; so it does a power of ten up to
    10**22: their quotient is rounded once, as `float` rounds. Longer ones are left to `float`.
    """
    flat = text.translate(_ONE_BLANK, _NO_DIGIT)
    chars = numpy.frombuffer(b"0" * PLACES + flat.translate(None, b".") + b" ", "u1")
    ends = numpy.flatnonzero(chars == ord(" "))
    lengths = numpy.diff(ends, prepend=PLACES - 1) - 1
    points = numpy.flatnonzero(numpy.frombuffer(flat, "u1") == ord("."))
    points += PLACES - numpy.arange(len(points))  # where the digit behind it stands in chars
    owners = numpy.searchsorted(ends, points)
    decimals = numpy.zeros(len(ends), "i8")
    decimals[owners] = ends[owners] - points
    if len(ends) != count * width or not lengths.all() or not (numpy.diff(owners) > 0).all():
        raise ValueError(_DAMAGED)
    whole = _whole_numbers(numpy, chars, ends, lengths)
    values = whole / 10.0 ** numpy.arange(PLACES + 1)[numpy.minimum(decimals, PLACES)]
    long = numpy.flatnonzero((lengths > PLACES) | (whole >= 2**53))
    if len(long):
        texts = flat.split(b" ")
        values[long] = [float(texts[number]) for number in long]
    if (lengths[::width] != len("20260115120000")).any() or decimals[::width].any():
        raise ValueError("a time is none")
    columns = values.reshape(count, width)[:, 1:].T
    return _opens(numpy, whole[::width].astype("i8")), memoryview(columns.tobytes()).cast("d")


def _whole_numbers(numpy: Any, chars: Any, ends: Any, lengths: Any) -> Any:
    """The last `PLACES` digits before each of the ends as a whole number, no more of them than its length."""
    windows = numpy.lib.stride_tricks.sliding_window_view(chars, PLACES)[ends - PLACES]
    own = numpy.tri(PLACES + 1, PLACES, -1, "u1")[:, ::-1]  # a row for each length
    found = (windows - ord("0")) * own[numpy.minimum(lengths, PLACES)]
    for kind, unit in (("u1", 10), ("u2", 10**2), ("u4", 10**4), ("u8", 10**8)):  # neighbours into one
        found = found.astype(kind)
        found = found[:, ::2] * found.dtype.type(unit) + found[:, 1::2]
    return found[:, 0]


def _opens(numpy: Any, times: Any) -> array[int]:
    """Times such as 20260115120000 in ms since the epoch. Raises ValueError where they do not ascend."""
    if not (numpy.diff(times) > 0).all():
        raise ValueError(_DAMAGED)
    days, clock = numpy.divmod(times, 10**6)
    first = numpy.flatnonzero(numpy.diff(days, prepend=-1))
    midnights = numpy.repeat([_day(str(day)) for day in days[first]], numpy.diff(first, append=len(days)))
    seconds = clock // 10_000 * 3600 + clock // 100 % 100 * 60 + clock % 100
    return array("q", ((midnights + seconds) * 1000).tobytes())


class _Parts(NamedTuple):
    """A value, or its end: the text of its entries, its fields, and where the entries begin.

    ``mark`` are the blanks and tabs before the fields: others when a value is written whole.
    """

    entries: bytes
    fields: Mapping[str, Any]
    begin: int
    mark: str


def _order(fields: Mapping[str, Any]) -> tuple[str, str, str]:
    """Which of two states is the newer, by a value's fields or an announcement's."""
    return fields["data_end"], fields["last_candle_time"], fields["last_update"]


def _parts(text: bytes, whole: bool) -> _Parts:
    """Cut a value, or its end from the beginning of an entry on. Raises ValueError if it is neither."""
    end = text.rindex(b"}", 0, text.rindex(b"}"))  # of the candles: the fields have no other brace
    front = _FRONT.match(text) if whole else None
    if whole and not front:
        raise ValueError("not a value of the service")
    begin = front.end() if front else 0
    rest = text[text.index(b'"', end) + 2 :]
    mark = rest[: rest.index(b'"')].decode()
    return _Parts(text[begin:end].rstrip(b" "), json.loads(b"{" + rest), begin, mark)


def _canonical(value: bytes) -> bytes:
    """A value whose JSON is written otherwise, as the service writes it. Raises ValueError if it is none."""
    fields = json.loads(value)
    candles = json.loads(fields.pop("ohlcv_data"))
    inner = json.dumps(candles, separators=(",", ":"))
    return json.dumps({"ohlcv_data": inner} | fields, separators=(",", ":")).encode()


def _held_whole(value: bytes, exact: bool) -> _Held:
    """What a whole value holds. Raises Damaged."""
    try:
        try:
            return _from_parts(_parts(value, whole=True), exact)
        except ValueError:
            return _from_parts(_parts(_canonical(value), whole=True), exact)._replace(mark="")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"the value cannot be read: {error}") from error


def _from_parts(parts: _Parts, exact: bool) -> _Held:
    names, opens, values = _entries(parts.entries, exact)
    fields = parts.fields
    if len(opens) != fields["candle_count"] or opens[-1] != _ms(fields["last_candle_time"]):
        raise ValueError("its fields do not fit its candles")
    first = max(0, len(opens) - CHANGING)
    offset = parts.begin + _entry_at(parts.entries, len(opens) - first)
    window = round(len(opens) / fields["data_completeness"])
    return _Held(
        opens,
        values,
        names,
        _order(parts.fields),
        fields["timeframe"],
        window,
        parts.mark,
        offset,
        opens[first],
        True,
    )


def _entry_at(entries: bytes, count: int) -> int:
    """Where the last ``count`` entries begin."""
    at = len(entries)
    for _ in range(count):
        at = entries.rfind(b"}", 0, at - 1)
    return at + 2 if at >= 0 else 0


def _continued(held: _Held, end: bytes, exact: bool) -> _Held | None:
    """What is held, continued by the end of the value as it is now; None where that proves nothing.

    It does when the value carries the same mark, so that it was not written whole since; when at the place
    that was remembered the same candle begins; and when the count of all candles comes out.
    """
    try:
        parts = _parts(end, whole=False)
        if not held.mark or parts.mark != held.mark:
            return None
        names, opens, values = _entries(parts.entries, exact)
        start = bisect_left(held.opens, _ms(parts.fields["data_start"]))
        stop = bisect_left(held.opens, held.from_ms)
        counted = max(0, stop - start) + len(opens)
        if opens[0] != held.from_ms or names != held.names or counted != parts.fields["candle_count"]:
            return None
    except (ValueError, KeyError):
        return None
    first = max(0, len(opens) - CHANGING)
    return held.joined(start, stop, opens, values)._replace(
        order=_order(parts.fields),
        offset=held.offset + _entry_at(parts.entries, len(opens) - first),
        from_ms=opens[first],
        by_read=True,
    )


# ------------------------------------------------------------------------------
# Announcements


def _told(data: bytes | str) -> dict[str, Any] | None:
    """Read an announcement; None for what is none. An older service leaves out all but the first four."""
    try:
        said = json.loads(data)
        known = {name: said[name] for name in ("symbol", "timeframe", "last_candle_time", "candle_closed")}
        return {"last_update": "", "data_end": "", **said, **known}
    except (ValueError, KeyError, TypeError):
        return None


def _applied(held: _Held, told: Mapping[str, Any], exact: bool) -> _Held | None:
    """What is held with what an announcement adds; None where it does not continue what is held."""
    read_as_late = held.by_read and told["last_update"] == held.order[2]  # may have this already, and more
    if told.get("follows") != held.order[2] or read_as_late:
        return None
    try:
        opens, values = _laid_over(held, told["candles"], Decimal if exact else float)
        first_ms = _shift(_ms(told["last_candle_time"]), held.timeframe, 1 - held.window)
        start = bisect_left(held.opens, _ms(told["data_start"]) if "data_start" in told else first_ms)
        stop = max(start, bisect_left(held.opens, opens[0]))
        after = held.joined(start, stop, opens, values if exact else memoryview(array("d", values)))
    except (ValueError, ArithmeticError, LookupError, TypeError):
        return None
    if told.get("candle_count", len(after.opens)) != len(after.opens):
        return None
    return after._replace(order=_order(told), by_read=False)


def _laid_over(
    held: _Held, rows: Sequence[Sequence[str]], number: Callable[[Any], Any]
) -> tuple[array[int], list[Any]]:
    """Open times and columns of rows as /api/candles has them, and of what is held between and behind."""
    changed: dict[int, Sequence[Any]] = {_ms(row[0]): row for row in rows}
    own, columns = len(held.opens), range(1, len(held.names) + 1)
    if {len(row) for row in rows} != {len(held.names) + 1}:
        raise ValueError("other fields than those held")
    for at in range(bisect_left(held.opens, min(changed)), own):
        changed.setdefault(held.opens[at], ["", *held.values[at::own]])
    ordered = [changed[open_ms] for open_ms in sorted(changed)]
    values = [number(row[column]) for column in columns for row in ordered]
    return array("q", sorted(changed)), values


# ------------------------------------------------------------------------------
# Frames


class How(TypedDict, total=False):
    """How candles are to be shown: the keywords of ``candles`` and ``follow``."""

    closed: bool  # closed candles alone, so by default; else the forming one, too
    last: int | None  # so many of the newest; else all that are kept
    fill: bool  # a grid without holes, and a column ``filled`` that says which candles the exchange has not
    exact: bool  # Decimals, the exchange's values as they are; else floats
    engine: str  # pandas, polars, numpy (a structured array) or list (of `Candle`)


class _View(NamedTuple):
    """The same, complete."""

    closed: bool = True
    last: int | None = None
    fill: bool = False
    exact: bool = False
    engine: str = "pandas"

    def checked(self) -> _View:
        """Itself. Raises ValueError for what makes no sense."""
        if self.engine not in _ENGINES:
            raise ValueError(f"engine must be one of {', '.join(_ENGINES)}, not {self.engine!r}")
        if self.last is not None and self.last < 1:
            raise ValueError(f"last must be 1 or more, not {self.last}")
        return self


class _Table(NamedTuple):
    """Candles to be shown: open times in ms, and the columns by name."""

    opens: array[int]
    columns: dict[str, Any]


def _table(held: _Held, view: _View) -> _Table:
    own = len(held.opens)
    stop = bisect_left(held.opens, _ms(held.data_end)) if view.closed else own
    start = max(0, stop - view.last) if view.last is not None and not view.fill else 0
    cut = {
        name: held.values[number * own + start : number * own + stop]
        for number, name in enumerate(held.names)
    }
    table = _Table(held.opens[start:stop], cut)
    return _filled(table, held.timeframe, view.last) if view.fill else table


def _filled(table: _Table, timeframe: str, last: int | None) -> _Table:
    """The same on a grid without holes: where there was no trade, the close goes on, and volume is 0."""
    opens, sources = array("q"), list[int]()
    for number, open_ms in enumerate(table.opens):
        while opens and (gap_ms := _shift(opens[-1], timeframe, 1)) < open_ms:
            opens.append(gap_ms)
            sources.append(-1)
        opens.append(open_ms)
        sources.append(number)
    first = 0 if last is None else max(0, len(opens) - last)
    columns = {name: _column_filled(name, table.columns, sources)[first:] for name in table.columns}
    return _Table(opens[first:], columns | {"filled": [number < 0 for number in sources[first:]]})


def _column_filled(name: str, columns: Mapping[str, Any], sources: Sequence[int]) -> Any:
    column, goes_on, before = columns[name], name in OHLCV[:4], 0
    filled, nothing = list[Any](), type(column[0])(0) if column else 0
    for number in sources:
        before = number if number >= 0 else before
        filled.append(column[number] if number >= 0 else columns["close"][before] if goes_on else nothing)
    return filled if isinstance(column, list) else memoryview(array("d", filled))


@lru_cache(maxsize=8)
def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'{name} is not installed: pip install {name}, or engine="list"') from error


@lru_cache(maxsize=64)
def _pandas_columns(names: tuple[str, ...]) -> Any:
    """The columns' index, of which each frame gets a copy: to make one takes longer than the frame."""
    return _imported("pandas").Index(names)


@lru_cache(maxsize=4)
def _pandas_times(opens: bytes) -> Any:
    """The index of these open times, which all pairs of a timeframe share; each frame gets a copy."""
    pandas, numpy = _imported("pandas"), _imported("numpy")
    times = numpy.frombuffer(opens, "M8[ms]").astype("M8[ns]")
    times.flags.writeable = False
    return pandas.DatetimeIndex(times, tz="UTC", name="time")


def _pandas(table: _Table, exact: bool) -> Any:
    pandas, numpy = _imported("pandas"), _imported("numpy")
    index = _pandas_times(table.opens.tobytes()).view()
    columns = dict(table.columns)
    filled = columns.pop("filled", None)
    if exact:
        frame = pandas.DataFrame({name: pandas.Series(each, dtype=object) for name, each in columns.items()})
        frame.index = index
    else:
        block = numpy.frombuffer(bytearray().join(columns.values())).reshape(len(columns), -1)
        names = _pandas_columns(tuple(columns)).view()
        frame = pandas.DataFrame(block.T, index=index, columns=names, copy=False)
    if filled is not None:
        frame["filled"] = filled
    return frame


def _polars(table: _Table, exact: bool) -> Any:
    polars = _imported("polars")
    times = polars.Series("time", table.opens, dtype=polars.Int64).cast(polars.Datetime("ms", "UTC"))
    kind = polars.Float64
    if exact:
        places = [-int(each.as_tuple().exponent) for name in OHLCV for each in table.columns[name]]
        kind = polars.Decimal(38, max([0, *places]))
    own = {"filled": polars.Boolean}
    rest = [polars.Series(name, each, dtype=own.get(name, kind)) for name, each in table.columns.items()]
    return polars.DataFrame([times, *rest])


def _numpy(table: _Table, exact: bool) -> Any:
    numpy = _imported("numpy")
    kinds = {name: "?" if name == "filled" else "O" if exact else "f8" for name in table.columns}
    rows = numpy.empty(len(table.opens), [("time", "M8[ms]"), *kinds.items()])
    rows["time"] = numpy.frombuffer(table.opens, "M8[ms]")
    for name, column in table.columns.items():
        rows[name] = column
    return rows


def _list(table: _Table, exact: bool) -> list[Candle]:  # noqa: ARG001 (as the others)
    times = (datetime.fromtimestamp(open_ms / 1000, UTC) for open_ms in table.opens)
    names = [name for name in Candle._fields if name in table.columns]
    return list(map(Candle, times, *(table.columns[name] for name in names)))


_ENGINES: dict[str, Callable[[_Table, bool], Any]] = {
    "pandas": _pandas,
    "polars": _polars,
    "numpy": _numpy,
    "list": _list,
}


def _frame(held: _Held, view: _View) -> Any:
    return _ENGINES[view.engine](_table(held, view), view.exact)


# ------------------------------------------------------------------------------
# What to ask, and what follows from the answers


T = TypeVar("T")
Feed = tuple[str, str]  # a pair and a timeframe
#: Each step is something to be called, and in asyncio awaited, or a `_Given`; what comes of it is sent back.
Steps = Generator[Any, Any, T]


class _Given(NamedTuple):
    """What who follows is given, or what steps have ended with."""

    value: Any


def _feed(pair: str, timeframe: str) -> Feed:
    if not re.fullmatch(r"[1-9]\d*[smhdwM]", timeframe):
        raise ValueError(f"a timeframe is written as Binance does, such as 15m, not {timeframe!r}")
    return re.sub(r"[-_]", "/", pair.strip().upper()), timeframe


def _bytes(reply: Any) -> bytes:
    """A reply as it was sent, also from a client that decodes them."""
    return reply.encode() if isinstance(reply, str) else reply or b""


def _chunks(feeds: Sequence[Feed]) -> Iterator[Sequence[Feed]]:
    """So many at a time as are asked for in one message."""
    return (feeds[at : at + CHUNK] for at in range(0, len(feeds), CHUNK))


class _Core:
    """What a reader asks and concludes; `Reader` and `AsyncReader` carry out its steps.

    ``kept`` has what was read or told, by feed and exactness. Whoever replaces it has seen a state of Redis:
    of two threads either may be last, and what comes next is proven by Redis' value again.
    """

    def __init__(self, client: Any, prefix: str, clock: Callable[[], float]) -> None:
        self.client, self.prefix, self.clock = client, prefix, clock
        self.kept: dict[tuple[Feed, bool], _Held] = {}
        self.closed = False

    def key(self, feed: Feed) -> str:
        """The key of a feed's value."""
        return f"{self.prefix}:kline:{feed[1]}:{feed[0].replace('/', '_')}"

    def ask(self, commands: Sequence[tuple[Any, ...]]) -> Steps[list[Any]]:
        """Send commands at once; returns the replies."""
        if len(commands) == 1:
            return [(yield partial(self.client.execute_command, *commands[0]))]
        pipe = self.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return list((yield pipe.execute))

    def read(self, feeds: Iterable[Feed], exact: bool) -> Steps[dict[Feed, _Held | Damaged | None]]:
        """The state of feeds now, None for what is not kept: by the end of the value where that will do."""
        found: dict[Feed, _Held | Damaged | None] = {}
        known = {feed: held for feed in feeds if (held := self.kept.get((feed, exact))) and held.mark}
        for chunk in _chunks(list(known)):
            asked = [("GETRANGE", self.key(feed), known[feed].offset, -1) for feed in chunk]
            for feed, end in zip(chunk, (yield from self.ask(asked)), strict=True):
                if after := _continued(known[feed], _bytes(end), exact):
                    found[feed] = self.kept[feed, exact] = after
        for chunk in _chunks([feed for feed in feeds if feed not in found]):
            values = yield from self.ask([("GET", self.key(feed)) for feed in chunk])
            found |= {
                feed: self._taken(feed, _bytes(value), exact)
                for feed, value in zip(chunk, values, strict=True)
            }
        return found

    def _taken(self, feed: Feed, value: bytes, exact: bool) -> _Held | Damaged | None:
        """Remember a whole value."""
        self.kept.pop((feed, exact), None)
        if not value:
            return None
        try:
            held = self.kept[feed, exact] = _held_whole(value, exact)
        except Damaged as error:
            return Damaged(f"{' '.join(feed)}: {error}")
        return held

    def candles(self, feeds: Sequence[Feed], view: _View, max_age: float | None) -> Steps[list[Any]]:
        """Frames of feeds. Raises Missing, Stale and Damaged."""
        frames = []
        found = yield from self.read(feeds, view.exact)
        for feed in feeds:
            held = found[feed]
            if not isinstance(held, _Held):
                raise held or (yield from self.missing(feed))
            age = self.clock() - held.updated_ms / 1000
            if max_age is not None and age > max_age:
                cause = _cause((yield from self.status()), feed, self.clock())
                text = f"{' '.join(feed)} is {age:.0f} s old, more than {max_age:g} s: {cause}"
                raise Stale(text, age, cause)
            frames.append(_frame(held, view))
        return frames

    def age(self, feed: Feed) -> Steps[float]:
        """Seconds since a feed's last good update. Raises Missing and Damaged."""
        (end,) = yield from self.ask([("GETRANGE", self.key(feed), -END_BYTES, -1)])
        if not end:
            raise (yield from self.missing(feed))
        found = _UPDATED.search(_bytes(end))
        if not found:
            raise Damaged(f"{' '.join(feed)}: the value has no last_update")
        return self.clock() - _ms(found[1].decode()) / 1000

    def pairs(self, timeframe: str | None) -> Steps[list[str]]:
        """The pairs that are kept in a timeframe, or in any."""
        prefix = re.sub(r"([\[\]*?\\])", r"\\\1", self.prefix)
        pattern = f"{prefix}:kline:{timeframe or '*'}:*"
        keys = yield partial(self.client.scan_iter, match=pattern, count=1000)
        return sorted({_bytes(key).decode().rpartition(":")[2].replace("_", "/", 1) for key in keys})

    def status(self) -> Steps[dict[str, Any] | None]:
        """The service's status, None where there is none. Raises Damaged."""
        (reply,) = yield from self.ask([("GET", f"{self.prefix}:system:status")])
        try:
            return dict(json.loads(reply)) if reply else None
        except ValueError as error:
            raise Damaged(f"the status cannot be read: {error}") from error

    def gaps(self, feed: Feed) -> Steps[list[dict[str, Any]]]:
        """What the status says of a feed's gaps. Raises Missing where there is no status, and Damaged."""
        status = yield from self.status()
        if status is None:
            raise Missing("there is no status of a service, which would tell of gaps")
        return list((status.get("gaps") or {}).get(" ".join(feed), ()))

    def missing(self, feed: Feed) -> Steps[Missing]:
        """The error for a feed that is not kept."""
        names: list[str] = []
        with suppress(redis.RedisError):  # this user may not look
            names = yield from self.pairs(feed[1])
        symbols = {name.replace("/", ""): name for name in names}
        near = difflib.get_close_matches(feed[0].replace("/", ""), symbols, 1)
        text = f"{' '.join(feed)} is not kept (there is no {self.key(feed)})"
        if not names:
            text += ", nor is any other pair seen there: is it the right database, prefix and timeframe?"
        nearest = symbols[near[0]] if near else ""
        return Missing(text + (f"; did you mean {nearest}?" if near else ""), nearest)


class _Following:
    """What `follow` has shown, and what it has to show: a frame for each feed that is newer than that.

    ``ready`` are feeds that have changed, in order; a frame is made when it is given, of the newest state.
    """

    def __init__(self, core: _Core, feeds: Iterable[Feed], view: _View) -> None:
        self.core, self.view = core, view
        self.feeds = dict.fromkeys(feeds)
        self.shown: dict[Feed, tuple[str, ...]] = {}
        self.ready: dict[Feed, None] = {}
        self.channel: Any = None
        self.lost = False

    def run(self, sleep: Callable[[float], Any]) -> Steps[Any]:
        """Give frames until the reader is closed. Before it has begun, any error ends it."""
        while not self.core.closed:
            try:
                self.channel = self.core.client.pubsub()
                yield partial(self.channel.subscribe, f"{self.core.prefix}:updates")
                yield from self._listen()
            except CONNECTION_ERRORS as error:
                if self.core.closed:
                    break
                if not self.shown or isinstance(error, ValueError):
                    raise
                if not self.lost:
                    logger.warning("the channel is lost, subscribing again until that works: %s", error)
                self.lost = True
                with suppress(*CONNECTION_ERRORS):
                    yield self.close
                yield partial(sleep, RETRY_SECONDS)

    def close(self) -> Any:
        """Listen no longer; in asyncio to be awaited."""
        return getattr(self.channel, "aclose", self.channel.close)()

    def _listen(self) -> Steps[None]:
        """Take what the channel says and give frames, until it is lost: that raises an error of Redis."""
        is_asked, idle = False, 0.0
        while not self.core.closed:
            bound = LOST_SECONDS if is_asked else SILENT_SECONDS
            wait = 0.0 if self.ready else min(LOOK_SECONDS, bound)
            messages: list[Mapping[str, Any]] = []
            while message := (yield partial(self.channel.get_message, timeout=0.0 if messages else wait)):
                messages.append(message)
            if messages:
                is_asked, idle = False, 0.0
                yield from self._read(self._take(messages))
            if self.ready:
                yield from self._give(next(iter(self.ready)))
                continue
            idle += wait
            if idle >= bound and is_asked:
                raise redis.ConnectionError("the channel does not answer")
            if idle >= bound:
                is_asked, idle = True, 0.0
                yield self.channel.ping

    def _take(self, messages: Iterable[Mapping[str, Any]]) -> list[Feed]:
        """Apply announcements; returns the feeds that are to be read. Those are all after a subscription."""
        unread: dict[Feed, None] = {}
        for message in messages:
            if message["type"] == "subscribe":
                unread, self.lost = dict(self.feeds), False
            told = _told(message["data"]) if message["type"] == "message" else None
            feed = (told["symbol"], told["timeframe"]) if told else ("", "")
            if told and feed in self.feeds and feed not in unread and not self._apply(feed, told):
                unread[feed] = None
        return list(unread)

    def _apply(self, feed: Feed, told: Mapping[str, Any]) -> bool:
        """Continue what is held by an announcement; whether all that it tells is held then."""
        held = self.core.kept.get((feed, self.view.exact))
        if not held:
            return False
        if not told["last_update"]:  # of an older service, which does not say what changed
            is_news = told["candle_closed"] or told["last_candle_time"] > held.order[1]
            return self.view.closed and not is_news
        if _order(told) < held.order:
            return True
        after = _applied(held, told, self.view.exact)
        if after:
            self.core.kept[feed, self.view.exact] = after
            self.ready[feed] = None
        return after is not None

    def _read(self, feeds: Sequence[Feed]) -> Steps[None]:
        """Read feeds. What is there at the start is where following begins."""
        begins = not self.shown
        for feed, held in (yield from self.core.read(feeds, self.view.exact)).items():
            if begins and held is None:
                raise (yield from self.core.missing(feed))
            if begins:
                self.shown[feed] = self._state(held) if isinstance(held, _Held) else ()
            elif isinstance(held, _Held):
                self.ready[feed] = None

    def _state(self, held: _Held) -> tuple[str, ...]:
        """What has to grow for a frame to be news."""
        return held.order[:1] if self.view.closed else held.order

    def _give(self, feed: Feed) -> Steps[None]:
        """Give the frame of a feed that is ready, if it is newer than what was shown."""
        del self.ready[feed]
        held = self.core.kept.get((feed, self.view.exact))
        if held and (state := self._state(held)) > self.shown[feed]:
            self.shown[feed] = state
            yield _Given((*feed, _frame(held, self.view)))


def _cause(status: Mapping[str, Any] | None, feed: Feed, now: float) -> str:
    """Why a feed's data is old, as far as the status tells."""
    if not status:
        return "there is no status of a service"
    with suppress(KeyError, ValueError, TypeError):
        if now - _ms(status["written"]) / 1000 > STATUS_SECONDS:
            return f"the service has written no status since {status['written']}"
    failed = {**(status.get("invalid_symbols") or {}), **(status.get("failed_symbols") or {})}
    told = {
        f"paused until {status.get('paused_until')}": status.get("pause_reason"),
        "waiting for": status.get("waiting_for"),
        "failed": failed.get(" ".join(feed)) or failed.get(feed[0]),
        "warning": "; ".join(status.get("warnings") or ()),
    }
    causes = [f"{what}: {reason}" for what, reason in told.items() if reason]
    return ", ".join(causes) or f"the service is {status.get('state')} and names no cause"


# ------------------------------------------------------------------------------
# The readers


def _after(steps: Steps[Any], reply: Any, error: BaseException | None = None) -> Any:
    """The step after one that returned this, or raised it."""
    try:
        return steps.throw(error) if error else steps.send(reply)
    except StopIteration as end:
        return _Given(end.value)


class _Base:
    """What both readers have: a client, and the steps of each call."""

    _connect: Callable[[str], Any]

    def __init__(
        self,
        source: Any = DEFAULT_URL,
        *,
        prefix: str = "tet",
        engine: str = "pandas",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``source`` is a URL, or a client of redis-py's, which stays yours to close.

        ``prefix`` is the service's REDIS_PREFIX, ``engine`` what frames are made of unless a call says
        otherwise, ``clock`` tells seconds since the epoch, for ages.
        """
        self._owned = type(self)._connect(source) if isinstance(source, str) else None
        self._engine = _View(engine=engine).checked().engine
        self.client = self._owned or source
        self._core = _Core(self.client, prefix, clock)

    def _view(self, how: How) -> _View:
        view = _View(**{"engine": self._engine, **how}).checked()  # type: ignore[arg-type]
        if view.engine != "list":
            _imported(view.engine)  # before anything is read
        return view

    def _candles(self, pair: str, timeframe: str, max_age: float | None, how: How) -> Steps[Any]:
        return (yield from self._core.candles([_feed(pair, timeframe)], self._view(how), max_age))[0]

    def _frames(
        self, pairs: Iterable[str], timeframe: str, max_age: float | None, how: How
    ) -> Steps[dict[str, Any]]:
        feeds = {pair: _feed(pair, timeframe) for pair in pairs}
        asked = list(dict.fromkeys(feeds.values()))
        found = dict(
            zip(asked, (yield from self._core.candles(asked, self._view(how), max_age)), strict=True)
        )
        return {pair: found[feed] for pair, feed in feeds.items()}

    def _following(self, pairs: str | Iterable[str], timeframe: str | Iterable[str], how: How) -> _Following:
        pairs = [pairs] if isinstance(pairs, str) else pairs
        timeframes = [timeframe] if isinstance(timeframe, str) else list(timeframe)
        feeds = [_feed(pair, each) for pair in pairs for each in timeframes]
        return _Following(self._core, feeds, self._view(how))


class Reader(_Base):
    """Reads candles, and follows them. Threads may share one; a context manager closes it."""

    _connect = staticmethod(redis.Redis.from_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End who follows, within a second, and close the connections that were opened here."""
        self._core.closed = True
        if self._owned:
            self._owned.close()

    def candles(
        self, pair: str, timeframe: str = "15m", *, max_age: float | None = None, **how: Unpack[How]
    ) -> Any:
        """The candles of a pair, oldest first: a DataFrame by default, see `How`.

        Raises Missing for a pair that is not kept, Stale when the last good update is more than ``max_age``
        seconds ago, Damaged, and redis-py's errors.
        """
        return self._run(self._candles(pair, timeframe, max_age, how))

    def frames(
        self,
        pairs: Iterable[str],
        timeframe: str = "15m",
        *,
        max_age: float | None = None,
        **how: Unpack[How],
    ) -> dict[str, Any]:
        """The candles of several pairs, by pair, read at once; else as `candles`."""
        return self._run(self._frames(pairs, timeframe, max_age, how))

    def pairs(self, timeframe: str | None = "15m") -> list[str]:
        """The pairs that are kept in a timeframe; with None in any."""
        return self._run(self._core.pairs(timeframe))

    def status(self) -> dict[str, Any] | None:
        """The service's status; None where there is none."""
        return self._run(self._core.status())

    def age(self, pair: str, timeframe: str = "15m") -> float:
        """Seconds since a pair's last good update. Raises Missing and Damaged."""
        return self._run(self._core.age(_feed(pair, timeframe)))

    def gaps(self, pair: str, timeframe: str = "15m") -> list[dict[str, Any]]:
        """Where the window lacks candles, as the status tells: of many the newest, the oldest of them first.

        ``first`` and ``last`` are open times, ``candles`` says how many, ``known_since`` since when that is
        known, ``reason`` why: halted (the exchange was asked twice), session closed, listed later. Raises
        Missing where there is no status, and Damaged.
        """
        return self._run(self._core.gaps(_feed(pair, timeframe)))

    def follow(
        self, pairs: str | Iterable[str], timeframe: str | Iterable[str] = "15m", **how: Unpack[How]
    ) -> Iterator[tuple[str, str, Any]]:
        """Pair, timeframe and frame at each close from now on; with ``closed=False`` at each change.

        What was missed while Redis was away is told, a close once and as it is then; who is slow gets the
        newest state, not a backlog. Raises Missing at the start, and redis-py's errors until it has begun.
        """
        following = self._following(pairs, timeframe, how)
        steps = following.run(time.sleep)
        try:
            while given := self._run(steps):
                yield given
        finally:
            with suppress(*CONNECTION_ERRORS, AttributeError):
                following.close()

    def _run(self, steps: Steps[T]) -> T:
        """Carry out steps up to one that gives something, or the end."""
        step = _after(steps, None)
        while not isinstance(step, _Given):
            reply: Any = None
            error: Exception | None = None
            try:
                reply = step()
            except (AttributeError, *CONNECTION_ERRORS) as raised:
                if self._core.closed:  # whatever redis-py makes of what another thread has closed
                    error = redis.ConnectionError("the reader is closed")
                elif isinstance(raised, AttributeError):
                    raise
                else:
                    error = raised
            step = _after(steps, reply, error)
        return step.value  # type: ignore[no-any-return]


class AsyncReader(_Base):
    """The same to be awaited, over a client of redis.asyncio: see `Reader` for each name."""

    _connect = staticmethod(redis.asyncio.Redis.from_url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Reader.close`."""
        self._core.closed = True
        if self._owned:
            await self._owned.aclose()

    async def candles(
        self, pair: str, timeframe: str = "15m", *, max_age: float | None = None, **how: Unpack[How]
    ) -> Any:
        """As `Reader.candles`."""
        return await self._run(self._candles(pair, timeframe, max_age, how))

    async def frames(
        self,
        pairs: Iterable[str],
        timeframe: str = "15m",
        *,
        max_age: float | None = None,
        **how: Unpack[How],
    ) -> dict[str, Any]:
        """As `Reader.frames`."""
        return await self._run(self._frames(pairs, timeframe, max_age, how))

    async def pairs(self, timeframe: str | None = "15m") -> list[str]:
        """As `Reader.pairs`."""
        return await self._run(self._core.pairs(timeframe))

    async def status(self) -> dict[str, Any] | None:
        """As `Reader.status`."""
        return await self._run(self._core.status())

    async def age(self, pair: str, timeframe: str = "15m") -> float:
        """As `Reader.age`."""
        return await self._run(self._core.age(_feed(pair, timeframe)))

    async def gaps(self, pair: str, timeframe: str = "15m") -> list[dict[str, Any]]:
        """As `Reader.gaps`."""
        return await self._run(self._core.gaps(_feed(pair, timeframe)))

    async def follow(
        self, pairs: str | Iterable[str], timeframe: str | Iterable[str] = "15m", **how: Unpack[How]
    ) -> AsyncIterator[tuple[str, str, Any]]:
        """As `Reader.follow`."""
        following = self._following(pairs, timeframe, how)
        steps = following.run(asyncio.sleep)
        try:
            while given := await self._run(steps):
                yield given
        finally:
            with suppress(*CONNECTION_ERRORS, AttributeError):
                await following.close()

    async def _run(self, steps: Steps[T]) -> T:
        """As `Reader`'s."""
        step = _after(steps, None)
        while not isinstance(step, _Given):
            reply, error = None, None
            try:
                reply = step()
                if isawaitable(reply):
                    reply = await reply
                elif isinstance(reply, AsyncIterator):
                    reply = [each async for each in reply]
            except CONNECTION_ERRORS as raised:
                error = raised
            step = _after(steps, reply, error)
        return step.value  # type: ignore[no-any-return]
