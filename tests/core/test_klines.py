"""Odd rows of the exchange: what is a candle, what is left out, and when the exchange is believed."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import NOON_MS, OHLCV, kline

from tet_core.errors import BadReply
from tet_core.klines import OddReply, parse_klines, plain_decimal
from tet_core.odd_rows import BELIEVED, LEFT_OUT, OddRows, Question
from tet_core.times import TIMEFRAMES

TF = TIMEFRAMES["15m"]
STEP = TF.step_ms
START = TF.floor(NOON_MS)
LAST = START + 100 * STEP


def body_of(*rows):
    """A reply with these rows: lists, or texts of JSON."""
    return f"[{','.join(row if isinstance(row, str) else json.dumps(row) for row in rows)}]".encode()


def parse(*rows, timeframe=TF, limit=1000):
    """The candles of a reply with these rows, no odd one believed."""
    return parse_klines(body_of(*rows), timeframe, 0, LAST, limit)


def values(entry):
    """The five decimals of an entry."""
    return next(iter(json.loads("{" + entry.replace("\\", "") + "}").values()))


# Decimals


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("1E-8", "0.00000001"),
        ("1e+3", "1000"),
        ("1.5e3", "1500"),
        ("1.2345E2", "123.45"),
        ("12345e-2", "123.45"),
        ("0.001e2", "0.1"),
        (".5", "0.5"),
        ("5.", "5"),
        ("+1", "1"),
        ("007.50", "7.5"),
        ("100", "100"),
        ("5." + "0" * 31, "5"),
        ("0" * 40 + "1", "1"),
        ("1" + "0" * 40 + "e-40", "1"),
        ("1e29", "1" + "0" * 29),
        ("1e-30", "0." + "0" * 29 + "1"),
        ("123456789012345678.123456789", "123456789012345678.123456789"),
        *((zero, "0") for zero in ("0E-8", "-0.00000000", "0e999999999", "-0", "0.", ".0", "00", "+0E+0")),
    ],
)
def test_a_decimal_in_any_exact_notation_is_what_it_is(sent, stored):
    """And stands in the stored value in plain notation, without zeros at its end."""
    assert plain_decimal(sent) == stored


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=10**28, places=8))
def test_each_notation_of_a_number_gives_the_same(number):
    """As Python writes it, with an exponent, with its zeros."""
    plain = plain_decimal(f"{number:f}")
    assert Decimal(plain) == number
    assert "e" not in plain.lower()
    assert plain_decimal(f"{number:E}") == plain_decimal(str(number)) == plain


NO_DECIMALS = """1e30 1E-999999 1e999999999 -1 -1E-8 . e5 1e + NaN Infinity 1_0 0x1 \u0665 1,5 --0""".split()


@pytest.mark.parametrize(
    "sent", [*NO_DECIMALS, "1" * 31, "0." + "1" * 31, "", "1 ", "0" * 10_000, None, True, 5, 1.5, ["1"]]
)
def test_what_is_no_decimal_of_a_candle_is_refused(sent):
    """Also one that nobody could store; without burning memory for its zeros."""
    with pytest.raises(ValueError, match="a decimal"):
        plain_decimal(sent)


def test_numbers_of_json_are_never_rounded():
    """0.1 + 0.2 is no concern of a price, and 30 digits stay 30."""
    decimals = "1E-8, 123456789012345678.123456789, 1e-8, 0.30000000000000004, 0e-8"
    row = f"[{START}, {decimals}, {START + 9}, 1, 1, 1, 1, 0]"
    texts = ["0.00000001", "123456789012345678.123456789", "0.00000001", "0.30000000000000004", "0"]
    assert values(parse(row)[START]) == dict(zip(OHLCV, texts, strict=True))


# Rows that are candles at once, and rows that are not


@pytest.mark.parametrize("close_ms", [START + STEP - 1, START + STEP - 2, START + 14_838, START])
def test_a_candle_that_was_cut_short_is_a_candle(close_ms):
    """Alone, and among others."""
    rows = [kline(START - STEP), kline(close_ms=close_ms), kline(START + STEP)]
    assert list(parse(*rows)) == [START - STEP, START, START + STEP]


def test_the_candle_of_2018_that_an_outage_cut_short():
    """1h of BTCUSDT, 2018-01-04, as Binance keeps it."""
    row = kline(1515034800000, close_ms=1515034814838)
    assert list(parse(row, timeframe=TIMEFRAMES["1h"])) == [1515034800000]


def test_a_month_may_be_cut_short():
    """It has no common step."""
    month = TIMEFRAMES["1M"]
    open_ms = month.floor(START)
    assert list(parse(kline(open_ms, close_ms=open_ms + 5), timeframe=month)) == [open_ms]
    with pytest.raises(OddReply, match="after its time"):
        parse(kline(open_ms, close_ms=month.close_of(open_ms)), timeframe=month)


ODD: dict[str, Any] = {
    "off the grid": kline(START + 7, close_ms=START + STEP + 6),
    "cut short off the grid": kline(START + 400_000, close_ms=START + 400_500),
    "ends late": kline(close_ms=START + STEP),
    "ends before it opens": kline(close_ms=START - 1),
    "high below close": kline(high="2.9"),
    "low above open": kline(low="2.1"),
    "no price": kline(START, "0", "0", "0", "0", "0"),
    "from the future": kline(LAST + STEP),
    "NaN": kline(close="NaN"),
    "null": kline(close=None),
    "negative": kline(low="-1"),
    "absurd": kline(volume="1e-999999"),
    "no close time": [*kline()[:6], None, *kline()[7:]],
    "cut off": kline()[:6],
    "three fields": kline()[:3],
    "no time": ["soon", *kline()[1:]],
    "a time in text": [str(START), *kline()[1:]],
    "a time in microseconds": kline(START * 1000, close_ms=START),
    "an object": '{"open": 5}',
    "a text": '"kline"',
    "null row": "null",
}
CANDLES = {"ends late", "ends before it opens", "high below close", "low above open", "no price"} | {
    "no close time",
    "cut off",
}


def question(limit=1000):
    """What is asked for here."""
    return Question("BTC/USDT 15m", TF, START - STEP, LAST, limit)


class Exchange:
    """Reads one reply after another, each in an update of its own, ten seconds after the one before."""

    def __init__(self):
        self.odd_rows = OddRows()
        self.seconds = 100.0

    def sends(self, *rows, limit=1000, after=10.0):
        """The open times of the candles in a reply; None for one that is not used."""
        self.seconds += after
        with suppress(BadReply):
            read = self.odd_rows.read(body_of(*rows), question(limit), self.seconds, self.seconds)
            return list(read.candles)
        return None


def among(row):
    """A page with an odd row among usual ones."""
    return [kline(START - STEP), row, kline(START + STEP)]


def said(caplog):
    """The warnings of odd rows."""
    return [record.message for record in caplog.records if record.message.startswith("odd row")]


@pytest.mark.parametrize("why", ODD)
def test_one_odd_row_stops_nothing_for_good(why, caplog):
    """Twice the reply is not used; the third time its other rows are, and this one if it may be a candle."""
    exchange, page = Exchange(), among(ODD[why])
    assert [exchange.sends(*page) for _ in range(2)] == [None, None]
    expected = [START - STEP, *([START] if why in CANDLES else []), START + STEP]
    for _ in range(3):
        assert exchange.sends(*page) == expected
    assert said(caplog) == [BELIEVED if why in CANDLES else LEFT_OUT]
    assert caplog.records[-1].facts["feed"] == "BTC/USDT 15m"


@pytest.mark.parametrize("why", ODD)
@pytest.mark.parametrize("place", ["first", "last", "alone"])
def test_wherever_it_stands(why, place):
    """At either end of a page, or with nothing else in it."""
    exchange, row = Exchange(), ODD[why]
    page = {"first": [row, kline(START + STEP)], "last": [kline(START - STEP), row], "alone": [row]}[place]
    assert [exchange.sends(*page) for _ in range(2)] == [None, None]
    assert (START in exchange.sends(*page)) == (why in CANDLES)


@pytest.mark.parametrize("why", [why for why, row in ODD.items() if row[0] == START])
def test_one_damaged_reply_changes_nothing(why, caplog):
    """Nor do many, as long as the row comes as usual in between."""
    exchange = Exchange()
    for _ in range(4):
        assert exchange.sends(*among(ODD[why])) is None
        assert exchange.sends(*among(kline())) == [START - STEP, START, START + STEP]
    assert said(caplog) == []


def test_replies_of_one_moment_are_one():
    """A damaged copy that is served for a second is not believed; what is off the grid is only left out."""
    exchange = Exchange()
    late = among(ODD["high below close"])
    assert [exchange.sends(*late, after=0.4) for _ in range(5)] == [None] * 5
    off = among(ODD["off the grid"])
    assert [exchange.sends(*off, after=0.4) for _ in range(3)][2] == [START - STEP, START + STEP]


def test_what_comes_otherwise_each_time_is_left_out_until_it_stays(caplog):
    """A forming candle changes; the others come meanwhile."""
    exchange = Exchange()
    pages = [among(kline(high="2.9", volume=str(n))) for n in range(5)]
    assert [exchange.sends(*page) for page in pages][2:] == [[START - STEP, START + STEP]] * 3
    assert [exchange.sends(*pages[-1]) for _ in range(3)][-1] == [START - STEP, START, START + STEP]
    assert said(caplog) == [LEFT_OUT, BELIEVED]


def test_an_exchange_whose_rows_are_all_odd_is_three_updates_behind_and_no_more():
    """One field less in each row: each new candle is odd for the first time, and holds nobody up."""
    exchange = Exchange()
    for newest in range(12):
        page = [kline(START + n * STEP)[:11] for n in range(newest)]
        got = exchange.sends(*page)
        assert got is None or len(got) >= newest - 3
        assert got is not None or newest < 4


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([kline(START + STEP), kline(START)], [START, START + STEP]),
        ([kline(START), kline(START)], [START]),
        ([kline(START), kline(START, volume="5.0")], [START]),
        ([kline(START - 2 * STEP), kline(START)], [START]),
        ([kline(START + n * STEP) for n in range(5)], [START + n * STEP for n in range(5)]),
    ],
)
def test_a_page_that_is_not_as_asked_is_sorted_out_when_it_repeats(rows, expected):
    """Order, range, number and doubles."""
    exchange = Exchange()
    assert [exchange.sends(*rows, limit=4) for _ in range(3)] == [None, None, expected]


@pytest.mark.parametrize("body", [b"{}", b"<html>", b"", b"[", b"null", b"[[1,2]", b"[1]]", b"\xff", b"5"])
def test_what_is_no_list_of_rows_is_never_used(body):
    """However often it comes."""
    odd_rows = OddRows()
    for n in range(9):
        with pytest.raises(BadReply):
            odd_rows.read(body, question(), n * 10.0, n * 10.0)


def test_a_reading_says_how_far_it_goes():
    """So that a page of nothing but odd rows is followed by the next one."""
    exchange = Exchange()
    body = body_of(*[kline(START + n * STEP + 7, close_ms=START) for n in range(4)])
    for n in range(3):
        with suppress(BadReply):
            read = exchange.odd_rows.read(body, question(), float(n), 0.0)
    assert read == ({}, 4, START + 3 * STEP)


def test_a_thousand_odd_rows_are_no_thousand_lines(caplog):
    """Twenty, and how many more there are; and looking at them takes no time."""
    exchange = Exchange()
    page = [kline(START + n * STEP + 7, close_ms=START) for n in range(99)]
    for _ in range(4):
        exchange.sends(*page)
    assert len(said(caplog)) == 20
    assert [record.facts["rows"] for record in caplog.records if record.message == "more odd rows"] == [79]


@given(
    st.lists(
        st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=5), st.lists), max_size=4
    )
)
def test_whatever_stands_in_a_row_the_fourth_reply_is_read(rows):
    """No row, however odd, makes a list of rows unusable for good."""
    exchange = Exchange()
    body = json.dumps([kline(), *rows])
    if "NaN" in body or "Infinity" in body:
        return  # no JSON
    for n in range(4):
        with suppress(BadReply):
            read = exchange.odd_rows.read(body.encode(), question(), n * 10.0, n * 10.0)
    assert START in read.candles
