"""Candles: the entries of the stored value, made of what Binance sends or Redis holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from operator import le, lt
from typing import Any, NamedTuple, NoReturn

from tet_core.times import Timeframe, iso_time

#: Checked candles, oldest first: the open time in ms, and the entry in ``ohlcv_data``. That is written as
#: it stands in the stored value, quotes escaped, because it goes into a JSON string there:
#: ``\"2024-01-01T12:00:00Z\":{\"open\":\"108150\",...}``.
Candles = dict[int, str]


def newest_of(candles: Candles) -> int:
    """The open time of the newest of candles, one or more."""
    return next(reversed(candles))


# A row is checked, cut and trimmed in one pass: a third of the work of decoding JSON and looking at each
# value. What does not fit is one more row, whose groups are empty, of all that is left. Characters are
# repeated possessively, so that nothing is tried over and over; groups are not, since Python before 3.11.5
# gets that wrong (CPython issue 106052).
_TIME = "[1-9][0-9]{0,13}+"
_WHOLE = "(?:0|[1-9][0-9]{0,29}+)"
#: A decimal as Binance sends it; its group leaves out the zeros at the end, which mean nothing.
_SENT = rf'"({_WHOLE}(?:\.(?=[0-9]{{1,30}}+")(?:0*+[1-9]++)+|(?=(?:\.0{{1,30}}+)?")))[.0]*+"'
#: A decimal as it is stored.
_KEPT = rf'"({_WHOLE}(?:\.(?=[0-9]{{1,30}}+")(?:0*+[1-9]++)+)?)"'
_SENT_COUNT = "(0|[1-9][0-9]{0,29}+)"
_UNREAD = '"[0-9.]++"'
_UNREAD_ALL = f"{_UNREAD},(?:0|[1-9][0-9]*+),{_UNREAD},{_UNREAD}"


class Fields(NamedTuple):
    """Which of a kline's numbers are kept: their names in an entry, and a row that has them, sent and kept.

    This is the one place that knows them: all else takes as many as there are. The groups of ``sent`` are the
    open time, five decimals, the close time, and the other numbers; those of ``kept`` the time and all.
    """

    names: tuple[str, ...]
    sent: re.Pattern[str]
    kept: re.Pattern[str]


def _fields(names: str, behind: str) -> Fields:
    """Fields by their names, and how what follows the close time is read."""
    kept = ",".join(f'"{name}":{_KEPT}' for name in names.split())
    prices = ",".join([_SENT] * 5)
    return Fields(
        tuple(names.split()),
        re.compile(rf"\[({_TIME}),{prices},({_TIME}),{behind},{_UNREAD}\](?:,(?=\[)|\]\Z)|(?s:.+)"),
        re.compile(rf'"([0-9TZ:-]{{20}})":{{{kept}}}(?:,(?=")|}}\Z)|(?s:.+)'),
    )


_OHLCV = "open high low close volume"
_MORE = "quote_volume trades taker_buy_volume taker_buy_quote_volume"
OHLCV = _fields(_OHLCV, _UNREAD_ALL)
ALL = _fields(f"{_OHLCV} {_MORE}", f"{_SENT},{_SENT_COUNT},{_SENT},{_SENT}")
#: By what FIELDS calls them.
FIELDS = {"ohlcv": OHLCV, "all": ALL}
VOLUME, TAKER_BUY_VOLUME = ALL.names.index("volume"), ALL.names.index("taker_buy_volume")

_VOLUME = '\\"volume\\":\\"'

Rows = Sequence[tuple[str, ...]]


def find_rows(row: re.Pattern[str], opening: str, text: str) -> Rows:
    """Cut a text into its rows. Raises ValueError unless it consists of them, one or more."""
    rows = row.findall(text, 1) if text.startswith(opening) else []
    if rows and rows[-1][0]:
        return rows
    left = next((match[0] for match in row.finditer(text, 1) if not match[1]), text)
    raise ValueError(f"not a candle: {left:.100}")


def check_values(columns: Sequence[Sequence[str]]) -> None:
    """Raise ValueError unless prices are > 0, low <= open and close <= high, in columns of stored decimals.

    Where there are all fields, takers cannot have bought more than the volume. Decimals are compared as
    floats, which is safe, since rounding never turns an order around.
    """
    if len(columns) > TAKER_BUY_VOLUME:
        taken, volumes = (map(float, columns[which]) for which in (TAKER_BUY_VOLUME, VOLUME))
        if not all(map(le, taken, volumes)):
            raise ValueError("takers bought more than the volume")
    first, highest, lowest, last = (list(map(float, column)) for column in columns[:4])
    bounds = ((lowest, first), (first, highest), (lowest, last), (last, highest))
    if "0" in columns[2] or not all(all(map(le, lower, upper)) for lower, upper in bounds):
        raise ValueError("impossible prices")


def make_candles(opens_ms: Sequence[int], times: Iterable[str], columns: Sequence[Sequence[str]]) -> Candles:
    """Make candles, one or more, of their open times, these as texts, and a column for each field.

    Its decimals are as they are stored, see `check_values`.
    """
    entries = [
        rf"\"{at}\":{{\"open\":\"{first}\",\"high\":\"{highest}\",\"low\":\"{lowest}\","
        rf"\"close\":\"{last}\",\"volume\":\"{volume}\"}}"
        for at, first, highest, lowest, last, volume in zip(times, *columns[:5], strict=True)
    ]
    if len(columns) > 5:
        more = ",".join(rf"\"{name}\":\"%s\"" for name in ALL.names[5:])
        behind = (more % row for row in zip(*columns[5:], strict=True))
        entries = [f"{entry[:-1]},{rest}}}" for entry, rest in zip(entries, behind, strict=True)]
    return dict(zip(opens_ms, entries, strict=True))


def rows_of(entries: str) -> list[list[str]]:
    """Joined entries as rows: time, open, high, low, close, volume…, all text; as /api/candles has them."""
    text = entries.replace('\\"', '"')
    return [[at, *candle.values()] for at, candle in json.loads(f"{{{text}}}").items()]


def differing(old: bytes, new: bytes) -> tuple[int, bytes]:
    """From where on a text is another one of the same length, and what is otherwise there."""
    lead = _alike(old, new)
    return lead, new[lead : len(new) - _alike(old[lead:][::-1], new[lead:][::-1])]


def _alike(old: bytes, new: bytes) -> int:
    """How many bytes two texts begin with that are the same."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if old[low:middle] == new[low:middle] else (low, middle - 1)
    return low


def entry_volume(entry: str) -> float:
    """The volume in a candle's entry, for comparing two states of one forming candle."""
    begin = entry.index(_VOLUME) + len(_VOLUME)
    return float(entry[begin : entry.index("\\", begin)])


def decode_json(
    body: bytes | str,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
    number: Callable[[str], Any] | None = None,
) -> Any:
    """Decode JSON from outside; ``number`` makes what is wanted of a number's text.

    Raises ValueError for whatever is not strict JSON.
    """
    try:
        return json.loads(
            body, object_hook=object_hook, parse_int=number, parse_float=number, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def check_opens(timeframe: Timeframe, opens_ms: Sequence[int]) -> None:
    """Raise ValueError unless candles may open at these times, in this order."""
    if not timeframe.opens_at(opens_ms):
        raise ValueError(f"off the {timeframe.name} grid, such as {iso_time(opens_ms[0])}")
    if not all(map(lt, opens_ms, opens_ms[1:])):
        raise ValueError("candles out of order")


class Answer(NamedTuple):
    """Checked candles, and the exchange time at which they were asked for.

    ``rows`` is how many rows the reply had, those that were left out included, and ``reached_ms`` the open
    time on the grid up to which it goes.
    """

    candles: Candles
    asked_ms: int
    rows: int = 0
    reached_ms: int = 0
