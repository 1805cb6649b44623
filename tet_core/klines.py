"""Klines: a reply's rows checked and made into candles, and what becomes of a row that is odd.

A reply of usual rows is checked by columns. Else each row is looked at by itself; what is found, and what
becomes of it:

* A candle at once: a close time before the end of its step (cut short by an outage; Binance keeps such
  candles for ever); decimals in any notation that is exact, JSON numbers included.
* Left out: what opens off the grid. Binance keeps such rows, too; for readers it is a gap.
* A candle if the exchange repeats it: a close time beyond its step or before its open, fields missing behind
  the volume, prices out of order or zero, rows out of order, twice, or more of them than asked for.
* Left out if the exchange repeats it: no open time, no decimals (NaN, null, negative, too long), an open time
  that was not asked for, such as one in the future.
* Never used: a body that is no list of rows.

Who decides on odd rows is passed in, see ``odd_rows``; without that they make the reply a bad one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from tet_core.candles import (
    ALL,
    OHLCV,
    Candles,
    Fields,
    Rows,
    check_opens,
    check_values,
    decode_json,
    find_rows,
    make_candles,
)
from tet_core.errors import BadReply
from tet_core.times import Timeframe, iso_time

MAX_ROWS = 5000  # that are looked at one by one; the exchange sends 1,500 at most
VOLUME = 5  # the field of a row that has it, in the base asset; on COIN-M another one has
#: Of a row: open time, open, high, low, close, volume, close time, those of `ALL` behind the volume, and one
#: that is never read.
SENT_FIELDS = 12
MAX_DIGITS = 30  # before the point, and behind it
_TIME = re.compile("[1-9][0-9]{0,13}")
_DECIMAL = re.compile(r"([+-]?)([0-9]{0,64})(?:\.([0-9]{0,64}))?(?:[eE]([+-]?[0-9]{1,9}))?")


class OddRow(NamedTuple):
    """A row that is not as usual: when it opens (ms; 0 where it does not say), why, and its JSON text.

    ``values`` has its decimals if it may be a candle, else nothing.
    """

    open_ms: int
    reason: str
    values: tuple[str, ...] = ()
    off_grid: bool = False
    text: str = ""


class OddReply(BadReply):
    """A reply has odd rows on which nothing is decided yet. ``rows`` has one or more."""

    def __init__(self, rows: Sequence[OddRow]) -> None:
        super().__init__(f"the klines reply is damaged: {rows[0].reason}: {rows[0].text:.100}")
        self.rows = tuple(rows)
        self.takes_time = not all(row.off_grid for row in rows)  # until it is decided


#: Decides on the odd rows of a reply: returns those that are candles; the others are left out.
Judge = Callable[[Sequence[OddRow]], Collection[OddRow]]


def refuse(rows: Sequence[OddRow]) -> Collection[OddRow]:
    """Believe no odd row. Raises OddReply."""
    raise OddReply(rows)


def parse_klines(
    body: bytes,
    timeframe: Timeframe,
    first_ms: int,
    last_ms: int,
    limit: int,
    judge: Judge = refuse,
    volume: int = VOLUME,
    kept: Fields = OHLCV,
) -> Candles:
    """Check a klines reply as a whole and return its candles, with the fields that are kept.

    ``first_ms`` and ``last_ms`` are the open times that may be in it, ``limit`` the most rows. The
    rows' layout is Binance's (open time, open, high, low, close, volume, close time, and five more), but for
    the field that has the ``volume``.
    Raises BadReply for what is no list of rows, and what ``judge`` does where a row is odd.
    """
    try:
        text = body.decode()
        with suppress(ValueError):
            rows = find_rows(kept.sent, "[", text) if volume == VOLUME else ()
            if 0 < len(rows) <= limit:
                return _check_rows(rows, timeframe, first_ms, last_ms)
        return _look_at_each(text, timeframe, first_ms, last_ms, limit, judge, volume, kept)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"the klines reply is damaged: {error}") from error


# A reply of usual rows


def _check_rows(rows: Rows, timeframe: Timeframe, first_ms: int, last_ms: int) -> Candles:
    """Check rows, one or more, by columns, less work than one by one. Raises ValueError."""
    opens, *columns = zip(*rows, strict=True)
    closes = columns.pop(5)
    opens_ms, times = _row_times(timeframe, opens, closes)
    if opens_ms[0] < first_ms or opens_ms[-1] > last_ms:
        raise ValueError("a candle outside the requested range")
    check_values(columns)
    return make_candles(opens_ms, times, columns)


@lru_cache(maxsize=4)  # the pairs' pages begin and end at the same times
def _row_times(
    timeframe: Timeframe, opens: tuple[str, ...], closes: tuple[str, ...]
) -> tuple[Sequence[int], Sequence[str]]:
    """The open times of rows, in ms and as they are kept; close times are a candle's last ms, or earlier."""
    opens_ms, closes_ms = list(map(int, opens)), list(map(int, closes))
    check_opens(timeframe, opens_ms)
    if not timeframe.closes_at(opens_ms, closes_ms):
        for open_ms, close_ms in zip(opens_ms, closes_ms, strict=True):
            if reason := _wrong_close(timeframe, open_ms, close_ms):
                raise ValueError(reason)
    return opens_ms, list(map(iso_time, opens_ms))


def _wrong_close(timeframe: Timeframe, open_ms: int, close_ms: int) -> str:
    """Why a candle that opens then cannot close then; empty where it can."""
    if close_ms < open_ms:
        return "ends before it opens"
    return "ends after its time" if close_ms >= timeframe.close_of(open_ms) else ""


# Each row by itself


class _Number(str):
    """A number in JSON, as it was written."""


def _look_at_each(
    text: str,
    timeframe: Timeframe,
    first_ms: int,
    last_ms: int,
    limit: int,
    judge: Judge,
    volume: int,
    kept: Fields,
) -> Candles:
    """Take the usual rows, and of the odd ones those that ``judge`` returns. Raises ValueError."""
    rows = decode_json(text, number=_Number)
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise ValueError(f"not a list of klines: {text:.100}")
    good: dict[int, tuple[str, ...]] = {}
    odd: list[OddRow] = []
    for place, row in enumerate(rows):
        looked = _look_at(row, timeframe, volume, kept)
        at_ms = timeframe.floor(looked.open_ms) if looked.off_grid else looked.open_ms
        if looked.open_ms and not first_ms <= at_ms <= last_ms:
            looked = OddRow(looked.open_ms, "outside the requested range")
        elif not looked.reason and place >= limit:
            looked = looked._replace(reason="more rows than asked for")
        elif not looked.reason and good and looked.open_ms <= next(reversed(good)):
            looked = looked._replace(reason="candles out of order")
        if looked.reason:
            odd.append(looked._replace(text=_text_of(row)))
        else:
            good[looked.open_ms] = looked.values
    if odd:
        good |= {row.open_ms: row.values for row in judge(odd) if row.values}
    if not good:
        return {}
    opens_ms = sorted(good)
    columns = list(zip(*map(good.__getitem__, opens_ms), strict=True))
    return make_candles(opens_ms, map(iso_time, opens_ms), columns)


def _look_at(row: object, timeframe: Timeframe, volume: int, kept: Fields) -> OddRow:
    """What there is to say of a row; without a reason it is as usual."""
    fields = row if isinstance(row, list) else []
    if not fields or not (open_ms := _time_of(fields[0])):
        return OddRow(0, "not a candle, it does not say when it opens")
    if timeframe.floor(open_ms) != open_ms:
        return OddRow(open_ms, f"off the {timeframe.name} grid", off_grid=True)
    try:
        values = tuple(map(plain_decimal, [*fields[1:5], *fields[volume : volume + 1]]))
        if len(values) < 5:
            raise ValueError("it lacks prices")
        if kept is ALL:
            values += _numbers_behind(fields)
    except ValueError as error:
        return OddRow(open_ms, f"not a candle, {error}")
    return OddRow(open_ms, next(_oddities(fields, values, open_ms, timeframe), ""), values)


def _numbers_behind(fields: Sequence[object]) -> tuple[str, ...]:
    """What stands behind the close time, as it is stored. Raises ValueError."""
    numbers = tuple(map(plain_decimal, fields[7:11]))
    if len(numbers) < 4:
        raise ValueError("it lacks numbers behind the close time")
    if "." in numbers[1]:
        raise ValueError("the number of trades is not whole")
    return numbers


def _text_of(row: object) -> str:
    fields = row if isinstance(row, list) else [row]
    text = ",".join(each if isinstance(each, _Number) else json.dumps(each) for each in fields)
    return f"[{text}]" if isinstance(row, list) else text


def _oddities(
    fields: Sequence[object], values: Sequence[str], open_ms: int, timeframe: Timeframe
) -> Iterator[str]:
    """What is odd of a row on the grid that has its decimals."""
    if len(fields) < SENT_FIELDS:
        yield f"{len(fields)} fields in place of {SENT_FIELDS}"
    elif not (close_ms := _time_of(fields[6])):
        yield "no close time"
    elif reason := _wrong_close(timeframe, open_ms, close_ms):
        yield reason
    try:
        check_values([[decimal] for decimal in values])
    except ValueError as error:
        yield str(error)


def _time_of(value: object) -> int:
    """A time in ms; 0 for what is none."""
    return int(value) if isinstance(value, _Number) and _TIME.fullmatch(value) else 0


def plain_decimal(value: object) -> str:
    """A decimal as it is stored: exact, in plain notation, without zeros that mean nothing.

    ``value`` is a text, or a number of JSON as it was written. Raises ValueError for what is no decimal of at
    most 30 digits before and 30 behind the point, or negative.
    """
    found = _DECIMAL.fullmatch(value) if isinstance(value, str) and len(value) <= 140 else None
    if not found or not (digits := found[2] + (found[3] or "")):
        raise ValueError("a decimal is none")
    point = len(found[2]) + int(found[4] or 0)  # so many digits before it
    significant = digits.lstrip("0")
    point -= len(digits) - len(significant)
    significant = significant.rstrip("0")
    if not significant:
        return "0"
    if found[1] == "-":
        raise ValueError("a decimal is negative")
    if point > MAX_DIGITS or len(significant) - point > MAX_DIGITS:
        raise ValueError("a decimal has too many digits")
    if point <= 0:
        return f"0.{'0' * -point}{significant}"
    whole, decimals = significant[:point].ljust(point, "0"), significant[point:]
    return f"{whole}.{decimals}" if decimals else whole
