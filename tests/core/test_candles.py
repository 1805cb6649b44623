"""Candles and the series: what comes from outside is checked, and what is stored is spliced right.

Odd rows, and when they are believed, are in test_klines.py.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from contextlib import suppress
from decimal import Decimal
from itertools import accumulate, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from samples import OHLCV, kline

from tet_core.candles import FIELDS, Answer, make_candles, newest_of
from tet_core.errors import BadReply, StoredValueError
from tet_core.feeds import Feed
from tet_core.klines import parse_klines
from tet_core.pairs import Pair
from tet_core.series import MAX_LAG_MS, Series, absorb, corrections, differences, is_lagging, missing_opens
from tet_core.stored import make_image, read_stored_value
from tet_core.times import TIMEFRAMES, iso_time, parse_iso_time

TF = TIMEFRAMES["15m"]
STEP = 900_000
START = 1_768_478_400_000  # 2026-01-15T12:00:00Z


def parse(rows, first=START, last=START + 100 * STEP, limit=1000):
    """The candles of a reply with these rows."""
    return parse_klines(json.dumps(rows).encode(), TF, first, last, limit)


def entry(*ohlcv):
    """What is kept of a candle with these five texts, as the exchange sends them."""
    return parse([kline(START, *ohlcv)])[START]


def candles_from(numbers, price="1"):
    """Candles at these positions of the grid, all at one price."""
    numbers = list(numbers)
    return candles_at(
        [START + n * STEP for n in numbers], [[price] * len(numbers)] * 4 + [list(map(str, numbers))]
    )


def candles_at(opens_ms, ohlcv):
    """Candles of these columns."""
    return make_candles(opens_ms, map(iso_time, opens_ms), ohlcv)


# One candle


PRICES = st.one_of(
    st.decimals(min_value=Decimal("0.01"), max_value=Decimal(2000), places=2),
    st.sampled_from(list(map(Decimal, ("9.99", "10", "99.99", "100", "100.01", "1000")))),
)


@given(st.lists(st.tuples(PRICES, PRICES, PRICES, PRICES), min_size=1, max_size=4), st.booleans())
def test_prices_are_compared_as_numbers(rows, sorted_ones):
    """A row counts exactly when its low is the lowest and its high the highest, by value, not by text."""
    if sorted_ones:  # most of what is drawn at random is no candle
        rows = [(row[1], max(row), min(row), row[2]) for row in rows]
    sent = [kline(START + n * STEP, *(format(price, "f") for price in row)) for n, row in enumerate(rows)]
    if all(
        low == min(open_, high, low, close) and high == max(open_, high, low, close)
        for open_, high, low, close in rows
    ):
        assert len(parse(sent)) == len(rows)
    else:
        with pytest.raises(BadReply, match="impossible prices"):
            parse(sent)


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("108150.00000000", "108150"),
        ("0.00001000", "0.00001"),
        ("100", "100"),
        ("1200", "1200"),
        ("0.10", "0.1"),
        ("10.00100", "10.001"),
        ("123456789012345678.123456789", "123456789012345678.123456789"),
    ],
)
def test_a_decimal_keeps_its_value_and_loses_its_trailing_zeros(sent, stored):
    """The stored text is the exchange's exact value."""
    kept = entry(*[sent] * 5).replace("\\", "")
    assert json.loads("{" + kept + "}") == {"2026-01-15T12:00:00Z": dict.fromkeys(OHLCV, stored)}


@given(st.decimals(min_value=Decimal("1e-8"), max_value=Decimal("1e12"), places=8))
def test_any_price_is_stored_exactly(price):
    """No price changes its value on the way into the stored text."""
    assert Decimal(entry(*[format(price, "f")] * 5).split('\\"')[5]) == price


@pytest.mark.parametrize(
    "bad",
    [
        {"low": "5"},
        {"high": "2.5"},
        {"open_": "0"},
        {"close": "-3"},
        {"volume": "-1"},
        {"open_": "NaN"},
        {"high": "Infinity"},
        {"high": " 5"},
        {"high": "5 6"},
        {"high": "5.0."},
        {"high": "5.0.0"},
        {"high": "5.50.0"},
        {"high": "00"},
        {"high": "5." + "1" * 31},
        {"volume": "1." + "0" * 30 + "1"},
        {"high": "100", "low": "10", "open_": "99", "close": "9"},
        {"high": ".5"},
        {"high": "1_000"},
        {"high": "٥"},
        {"high": ""},
        {"high": "."},
        {"high": "e5"},
        {"high": "1e"},
        {"high": "5e31"},
        {"high": "1e999999999"},
        {"volume": "1e-999999999"},
        {"volume": "1e-31"},
        {"volume": "-1E-8"},
        {"volume": "--0"},
        {"volume": "0x0"},
        {"volume": [0]},
        {"high": None},
        {"high": True},
        {"open_ms": START + 1},
        {"open_ms": str(START)},
        {"open_ms": float(START)},
        {"open_ms": -STEP},
        {"open_ms": 10**30},
        {"close_ms": START + STEP},
        {"close_ms": None, "open_ms": None},
    ],
    ids=str,
)
def test_a_bad_row_rejects_the_whole_reply(bad):
    """One impossible or damaged row among good ones: nothing of the reply is used."""
    row = kline()
    for name, value in bad.items():
        row[["open_ms", "open_", "high", "low", "close", "volume", "close_ms"].index(name)] = value
    with pytest.raises(BadReply):
        parse([kline(START), row, kline(START + 2 * STEP)] if "open_ms" in bad else [row], first=0)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([kline(START + STEP), kline(START)], "unsorted"),
        ([kline(START), kline(START)], "twice the same"),
        ([kline(START - STEP)], "older than asked"),
        ([kline(START + 101 * STEP)], "from the future"),
        ([kline(START + n * STEP) for n in range(5)], "more than asked"),
        ([kline()[:11]], "too short"),
        ([{}], "no row"),
        ({}, "no list"),
        (None, "nothing"),
    ],
)
def test_a_reply_that_was_not_asked_for_is_refused(rows, why):
    """Order, range, number and shape must be as asked."""
    with pytest.raises(BadReply):
        parse(rows, limit=4)


@pytest.mark.parametrize(
    "body", [b"", b"[[", b"<html>", b"\xff\xfe", b"[NaN]", b"[" * 100_000, b"null", b"1" * 5000]
)
def test_a_body_that_is_no_json_is_a_bad_reply(body):
    """Whatever stands in the body, the error is the project's own."""
    with pytest.raises(BadReply):
        parse_klines(body, TF, 0, START, 10)


def test_good_rows_become_candles():
    """A true reply is taken whole, oldest first."""
    rows = [kline(START), kline(START + STEP)]
    assert list(parse(rows)) == [START, START + STEP]
    compact = json.dumps(rows, separators=(",", ":")).encode()
    assert parse_klines(compact, TF, START, START + STEP, 2) == parse(rows)


def test_monthly_klines_end_with_their_month():
    """A month's close time is the next month's open time less a millisecond."""
    month = TIMEFRAMES["1M"]
    open_ms = parse_iso_time("2024-02-01T00:00:00Z")
    end_ms = parse_iso_time("2024-03-01T00:00:00Z") - 1
    body = json.dumps([kline(open_ms, close_ms=end_ms)]).encode()
    assert list(parse_klines(body, month, open_ms, end_ms, 1)) == [open_ms]


@pytest.mark.parametrize("row", [row for each in FIELDS.values() for row in (each.sent, each.kept)])
def test_no_group_is_repeated_possessively(row):
    """Python 3.11.0 to 3.11.4 find wrong groups there, and this Python may be a newer one."""
    assert not re.search(r"\)([*+?]|{[0-9,]+})\+", row.pattern)


@pytest.mark.parametrize(
    "decimal", ["1" * 30 + "x", "1." + "1" * 10_000 + "x", "1." + "01" * 5_000, "0" * 10_000]
)
def test_damage_takes_no_time(decimal):
    """However long a wrong decimal is, it is not tried over and over."""
    with pytest.raises(BadReply, match="not a candle"):
        parse([kline(volume=decimal)] * 10)


# The series


POSITIONS = st.lists(st.integers(0, 60), min_size=1, max_size=40, unique=True).map(sorted)


def naive_value(candles, wanted, now_ms, final, closed_only):
    """The stored value by way of json.dumps: what the spliced bytes must equal."""
    newest = max(candles)
    oldest = newest - (wanted - final) * STEP  # a window of final candles, and the forming one
    candles = {t: c for t, c in candles.items() if t >= oldest}
    end_ms = newest + STEP if final else max((t for t in candles if t < newest), default=newest - STEP) + STEP
    kept = {t: c for t, c in sorted(candles.items()) if not closed_only or t < end_ms}
    last = max(kept)
    kept = {t: c for t, c in kept.items() if t > last - wanted * STEP}
    rest = {
        "last_candle_time": iso_time(last),
        "last_update": iso_time(now_ms),
        "data_start": iso_time(min(kept)),
        "data_end": iso_time(end_ms),
        "data_completeness": len(kept) / wanted,
        "candle_count": len(kept),
        "timeframe": "15m",
        "data_age_seconds": (now_ms - end_ms) // 1000,
    }
    inner = json.dumps({iso_time(t): c for t, c in kept.items()}, separators=(",", ":"))
    return json.dumps({"ohlcv_data": inner, **rest}, separators=(",", ":")).encode()


@given(
    batches=st.lists(st.tuples(POSITIONS, st.sampled_from(["1", "2.5", "70000"])), min_size=1, max_size=6),
    wanted=st.integers(1, 50),
    final=st.booleans(),
    closed_only=st.booleans(),
)
def test_the_spliced_value_equals_a_serialised_one(batches, wanted, final, closed_only):
    """For any merges the stored bytes are those that json.dumps would give."""
    series, naive = Series(TF), {}
    for positions, price in batches:
        series = series.merge(candles_from(positions, price), final, wanted)
        for n in positions:
            naive[START + n * STEP] = dict(zip(OHLCV, [price] * 4 + [str(n)], strict=True))
    now_ms = START + 1000 * STEP
    if closed_only and not final and len(series) < 2:
        with pytest.raises(StoredValueError):
            make_image(series, wanted, now_ms, closed_only).whole()
        return
    got = make_image(series, wanted, now_ms, closed_only).whole().replace(b" ", b"")
    assert got == naive_value(naive, wanted, now_ms, final, closed_only)


@given(positions=POSITIONS, final=st.booleans(), closed_only=st.booleans())
def test_a_stored_value_reads_back(positions, final, closed_only):
    """What was written is read back with the same candles and the same end of what is closed."""
    series = Series(TF).merge(candles_from(positions), final, 100)
    now_ms = START + 100 * STEP
    if closed_only and not final and len(series) < 2:
        return
    value = make_image(series, 100, now_ms, closed_only).whole()
    back = read_stored_value(value, TF, 100, now_ms)
    assert back.dated_ms == now_ms
    assert back.is_ours
    assert not read_stored_value(b'{"more":1,' + value[1:], TF, 100, now_ms).is_ours
    assert make_image(back.series, 100, now_ms, closed_only).whole() == value


@given(POSITIONS, POSITIONS)
def test_a_merge_leaves_the_old_series_alone(first, second):
    """A series never changes: a failed write loses nothing."""
    series = Series(TF).merge(candles_from(first), False, 100)
    before = (series, list(series.entries()))
    series.merge(candles_from(second, "2"), True, 3)
    assert (series, list(series.entries())) == before


def test_a_forming_candle_that_moves_on_shares_all_else():
    """It costs no copy of the bytes, and no memory."""
    series = Series(TF).merge(candles_from(range(50)), False, 100)
    repeated = candles_from(range(44, 49)) | candles_from([49], "7")
    for candles in (candles_from([49], "7"), repeated):
        later = series.merge(candles, False, 100)
        assert later.older is series.older
        assert later.entry(49) == candles[START + 49 * STEP] != series.entry(49)


def bytes_of(history, known):
    """What it takes of memory, all that it is made of, without what is known already."""
    found = [history, history.packs, *history.packs]
    found += [part for pack in history.packs for part in (pack.opens, pack.packed)]
    found += [each for run in (history.front, history.end) for each in (run, *run, *run.entries)]
    new = {id(each): each for each in found if id(each) not in known}
    known |= new
    return sum(map(sys.getsizeof, new.values()))


def test_the_memory_of_a_month_is_below_the_target():
    """2880 candles of real size take less than 0.15 MB, and a few kB more for each close not yet written."""
    chance = random.Random(1)
    walk = list(accumulate((chance.gauss(0, 60) for _ in range(2880)), initial=108_000))
    ohlcv = [
        [f"{at:.2f}" for at in walk[:-1]],
        [f"{max(at) + chance.expovariate(1 / 40):.2f}" for at in pairwise(walk)],
        [f"{min(at) - chance.expovariate(1 / 40):.2f}" for at in pairwise(walk)],
        [f"{at:.2f}" for at in walk[1:]],
        [f"{chance.lognormvariate(3, 1):.5f}" for _ in range(2880)],
    ]
    candles = candles_at([START + n * STEP for n in range(2880)], ohlcv)
    series, known = Series(TF).merge(candles, False, 2880), dict[int, object]()
    assert bytes_of(series.older, known) < 150_000
    for number in range(2880, 2890):
        series = series.merge(candles_from([number]), False, 2880)
        assert bytes_of(series.older, known) < 9_000


BATCH = st.tuples(st.integers(0, 700), st.integers(1, 200), st.integers(1, 9))
LONG = st.lists(BATCH, min_size=1, max_size=8)


@given(LONG, st.integers(1, 500), st.booleans())
def test_a_long_series_is_as_a_plain_one(batches, keep, final):
    """Packed or not, wherever candles come, change and leave."""
    series, naive = Series(TF), dict[int, str]()
    for first, count, price in batches:
        candles = candles_from(range(first, first + count), str(price))
        series = series.merge(candles, final, keep)
        naive |= candles
        newest = max(naive)
        naive = {at: naive[at] for at in sorted(naive) if at >= newest - (keep - final) * STEP}
        assert dict(series.entries()) == naive
        assert list(series.opens) == list(naive)
        assert len(series) == len(naive)
        assert len(series.older.front.opens) >= 8 or not series.older.packs
        assert len(series.older.end.opens) < 128
        for start, end in ((0, len(naive)), (1, len(naive) - 1), (len(naive) // 3, len(naive) // 2)):
            joined = ",".join(list(naive.values())[start:end]).encode()
            assert series.joined(start, end) == joined
            assert series.size(start, end) == len(joined)
        for place, (open_ms, entry) in list(enumerate(naive.items()))[:: max(1, len(naive) // 7)]:
            assert series.index(open_ms) == place
            assert series.index(open_ms + 1) == place + 1
            assert series.entry(place) == entry
        again = Series(TF).merge(naive, final, keep)
        part = max(0, len(naive) - 3)
        assert series.agrees(again, 2, 2, max(0, part - 2))
        if part > 4:
            other = again.merge(candles_at([list(naive)[part // 2]], [["77"]] * 5), final, keep)
            assert not series.agrees(other, 1, 1, part - 1)


# Replies laid over what is held


def held(final=False):
    """A series of five candles with volumes 0 to 4."""
    return Series(TF).merge(candles_from(range(5)), final, 100)


def test_a_successor_makes_a_candle_final():
    """The newest candle's predecessor is closed for certain."""
    assert held().closed_end_ms == START + 4 * STEP


def test_an_unfinished_candle_stays_unfinished_until_the_exchange_shows_more():
    """Seconds after the close, the same candle again proves nothing: the server may lag."""
    end_ms = START + 5 * STEP
    series = absorb(held(), candles_from([4]), end_ms + 9_000, 100)
    assert series.closed_end_ms == START + 4 * STEP
    assert is_lagging(series, end_ms + 9_000)


def test_a_candle_repeated_long_after_its_close_is_final():
    """When nothing lags any more and the candle is the same, there is no successor to wait for: a halt."""
    end_ms = START + 5 * STEP
    series = absorb(held(), candles_from([4]), end_ms + MAX_LAG_MS, 100)
    assert series.closed_end_ms == end_ms
    assert not is_lagging(series, end_ms + 20_000)


def test_a_candle_that_still_changes_after_its_close_is_not_final():
    """It must be repeated unchanged."""
    late_ms = START + 5 * STEP + MAX_LAG_MS
    assert absorb(held(), candles_from([4], "9"), late_ms, 100).closed_end_ms == START + 4 * STEP


def test_an_answer_older_than_what_is_held_undoes_nothing():
    """A lagging server's reply, without our newest candle, leaves that and its predecessor as they are."""
    series = absorb(held(), candles_from([2, 3], "9"), START + 4 * STEP + 1_000, 100)
    assert series.opens[-1] == START + 4 * STEP
    assert series.entry(3) == held().entry(3)
    assert series.entry(2) == candles_from([2], "9")[START + 2 * STEP]


def test_a_forming_candle_never_shrinks():
    """Of two states of the forming candle the one with more volume is the newer."""
    at = START + 4 * STEP
    less = candles_at([at], [["1"]] * 4 + [["3.5"]])
    assert absorb(held(), less, at + 60_000, 100).entry(4) == held().entry(4)
    more = candles_at([at], [["1"]] * 4 + [["4.5"]])
    assert absorb(held(), more, at + 60_000, 100).entry(4) == more[at]


def test_missing_candles_are_news_only_once():
    """What a reply leaves out is asked for again, but not what was missing inside the series before."""
    gappy = candles_from([0, 1, 4, 5])
    assert missing_opens(Series(TF), gappy, START) == [START + 2 * STEP, START + 3 * STEP]
    series = Series(TF).merge(gappy, False, 100)
    assert missing_opens(series, gappy, START) == []
    later = candles_from([4, 5, 7])
    assert missing_opens(series, later, START + 4 * STEP) == [START + 6 * STEP]


@pytest.mark.parametrize(("is_closed", "missing"), [(False, [START + 5 * STEP]), (True, [])])
def test_a_forming_candle_that_a_reply_skips_is_asked_for_again(is_closed, missing):
    """Half of it must not pass for a closed one because its successor is there."""
    series = Series(TF).merge(candles_from([3, 4, 5]), is_closed, 100)
    assert missing_opens(series, candles_from([3, 4, 6]), START + 3 * STEP) == missing


# Stored values from outside


def value_with(**changes):
    """A sound stored value of five candles but for these fields."""
    value = json.loads(make_image(held(), 5, START + 5 * STEP, False).whole())
    return json.dumps(value | changes).encode()


CANDLES = json.loads(json.loads(value_with())["ohlcv_data"])


@pytest.mark.parametrize(
    "changes",
    [
        {"ohlcv_data": "{}"},
        {"ohlcv_data": "[]"},
        {"ohlcv_data": {}},
        {"ohlcv_data": json.dumps(dict(list(CANDLES.items())[::-1]))},
        {"ohlcv_data": json.dumps(dict(list(CANDLES.items())[:-1]))},
        {"ohlcv_data": json.dumps(CANDLES).replace('"open": "1"', '"open": "x"', 1)},
        {"ohlcv_data": json.dumps(CANDLES).replace('"open": "1"', '"open": 1', 1)},
        {"ohlcv_data": json.dumps(CANDLES).replace("12:15:00Z", "12:16:00Z", 1)},
        {"ohlcv_data": json.dumps(CANDLES).replace("12:15:00Z", "12:00:00Z", 1)},
        {"last_candle_time": "2026-01-15T12:00:00Z"},
        {"data_end": "soon"},
        {"data_end": "2027-01-15T12:00:00Z"},
        {"last_update": None},
        {"candle_count": 4},
        {"data_completeness": 0},
        {"data_completeness": 0.5},
        {"data_completeness": "1"},
        {"timeframe": "1h"},
    ],
    ids=str,
)
def test_a_damaged_value_is_not_taken_up(changes):
    """Whatever does not fit together is fetched anew."""
    with pytest.raises(StoredValueError):
        read_stored_value(value_with(**changes), TF, 5, START + 5 * STEP)


def test_a_candle_from_the_future_is_not_taken_up():
    """A value that is ahead of the exchange would stop all updates: it is fetched anew."""
    with pytest.raises(StoredValueError, match="future"):
        read_stored_value(value_with(), TF, 5, START + 4 * STEP - 1)


def test_a_forming_candle_is_not_taken_up_as_closed():
    """Its end is right, and not there yet: readers would take what still changes for what is."""
    value, end_ms = value_with(data_end=iso_time(START + 5 * STEP)), START + 5 * STEP
    assert read_stored_value(value, TF, 5, end_ms).series.newest_is_closed
    with pytest.raises(StoredValueError, match="calls a candle closed"):
        read_stored_value(value, TF, 5, end_ms - 1)


# Reading many entries


@given(POSITIONS, st.integers(0, 45), st.integers(0, 45))
def test_entries_are_each_entry_in_turn(positions, start, end):
    """From any place to any other, the newest included."""
    series = Series(TF).merge(candles_from(positions), False, 100)
    count = len(series)
    expected = [(series.opens[n], series.entry(n)) for n in range(count)]
    assert list(series.entries(start, end)) == expected[start:end]
    assert list(series.entries()) == expected


def seconds_of(act):
    """The least processor time of three runs."""

    def once():
        began = time.process_time()
        act()
        return time.process_time() - began

    return min(once() for _ in range(3))


@pytest.mark.parametrize("what", ["differences", "merge", "corrections", "corrected"])
def test_what_looks_at_all_candles_takes_linear_time(what):
    """Ten times the candles take about ten times as long, not a hundred times: 30 days of 1m are 43,200."""

    def seconds(count):
        candles = candles_from(range(count))
        series = Series(TF).merge(candles, True, count)
        feed = Feed(Pair("BTC", "USDT"), TF, count, series=series)
        answer = Answer(candles, newest_of(candles) + 2 * STEP)
        acts = {
            "differences": lambda: differences(series, candles, 0, answer.asked_ms),
            "merge": lambda: series.merge(dict(candles), True, count),
            "corrections": lambda: corrections(series, answer),
            "corrected": lambda: feed.corrected([], answer.asked_ms),
        }
        return seconds_of(acts[what])

    assert seconds(20_000) < 40 * seconds(2_000)


# Damage: what is taken is what a JSON parser makes of it


@st.composite
def damaged(draw, text):
    """The text with one character left out, put in, or changed."""
    at = draw(st.integers(0, len(text)))
    return (
        text[:at] + draw(st.sampled_from(["", *'0159.,:"[]{}-ex \\'])) + text[at + draw(st.integers(0, 1)) :]
    )


def naive_entries(candles):
    """The entries of candles (ISO time to five texts) by way of json.dumps."""
    texts = (
        json.dumps({at: dict(zip(OHLCV, row, strict=True))}, separators=(",", ":")) for at, row in candles
    )
    return [json.dumps(text[1:-1])[1:-1] for text in texts]


def trimmed(text):
    """A decimal, in whatever notation, written out without the zeros at its end."""
    plain = format(Decimal(text), "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


ROWS = [kline(START + n * STEP, "9.90", "10.00", "9.50", f"9.{n}", "1050.10000000") for n in range(5, 8)]


@given(damaged(json.dumps(ROWS, separators=(",", ":"))))
def test_a_reply_with_one_character_wrong_is_refused_or_means_what_it_says(text):
    """Nothing is skipped between the rows or in them, and no value is cut or changed."""
    with suppress(BadReply):
        candles = parse_klines(text.encode(), TF, START, START + 10 * STEP, 3)
        rows = json.loads(text)
        assert list(candles) == [row[0] for row in rows]
        expected = naive_entries((iso_time(row[0]), map(trimmed, row[1:6])) for row in rows)
        assert list(candles.values()) == expected


@given(damaged(json.loads(value_with())["ohlcv_data"]))
def test_stored_candles_with_one_character_wrong_are_refused_or_mean_what_they_say(text):
    """The same for what is read back from Redis."""
    with suppress(StoredValueError):
        stored = read_stored_value(value_with(ohlcv_data=text), TF, 5, START + 5 * STEP)
        kept = json.loads(text)
        series = stored.series
        expected = naive_entries((at, [candle[name] for name in OHLCV]) for at, candle in kept.items())
        assert [series.entry(n) for n in range(len(series))] == expected


# Fuzzing: no input raises anything but the project's own error

JSONISH = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8) | st.just(START),
    lambda inner: st.lists(inner, max_size=13) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=40,
)


@given(st.binary(max_size=200) | JSONISH.map(lambda value: json.dumps(value).encode()))
def test_no_reply_raises_anything_but_a_bad_reply(body):
    """parse_klines faces the outside."""
    with suppress(BadReply):
        parse_klines(body, TF, 0, 2**50, 1000)


@given(st.binary(max_size=200) | JSONISH.map(lambda value: json.dumps(value).encode()))
def test_no_stored_bytes_raise_anything_but_the_stored_value_error(value):
    """read_stored_value faces the outside."""
    with suppress(StoredValueError):
        read_stored_value(value, TF, 5, 2**50)


@given(
    field=st.sampled_from(["ohlcv_data", "last_candle_time", "last_update", "data_end", "data_completeness"]),
    junk=JSONISH | JSONISH.map(json.dumps),
)
@example(field="ohlcv_data", junk="")
def test_no_field_raises_anything_but_the_stored_value_error(field, junk):
    """A value that is right but for one field is refused or read, never more."""
    with suppress(StoredValueError):
        read_stored_value(value_with(**{field: junk}), TF, 5, START + 5 * STEP)
