"""tet_reader.py beside the real service: what it shows is the exchange's, and what it reads is little."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from decimal import Decimal
from queue import SimpleQueue
from typing import Any

import numpy
import pytest
import redis
import redis.asyncio
import soak_reader
from hypothesis import given
from hypothesis import strategies as st
from rig import PROGRAM, clean_environment, eventually, expected_candles, started
from samples import MINUTE, NOON_MS, OHLCV

import tet_reader
from tet_core.stored import mark_of
from tet_core.times import iso_time
from tet_reader import AsyncReader, Candle, Damaged, Missing, Reader, Stale

KEY = "tet:kline:15m:BTC_USDT"
STEP_MS = 900_000
NEWEST_MS = NOON_MS // STEP_MS * STEP_MS  # it is forming
QUARTER = 15 * MINUTE


@pytest.fixture
def ours(redis_url):
    """A reader with the exchange's clock, which stands still."""
    with Reader(f"{redis_url}/1", clock=lambda: NOON_MS / 1000 + 30) as reader:
        yield reader


def truth(exchange, count=10_000, symbol="BTCUSDT", closed=True):
    """The exchange's newest candles of a window of two days, oldest first: time and exact values."""
    candles = expected_candles(exchange, symbol, "15m", exchange.clock.now_ms() - 3 * 86_400_000)
    end = iso_time(exchange.clock.now_ms() // STEP_MS * STEP_MS)
    rows: list[Any] = [(at, *map(Decimal, candle.values())) for at, candle in candles.items()]
    first = iso_time(exchange.clock.now_ms() // STEP_MS * STEP_MS - 191 * STEP_MS)
    return [row for row in rows if row[0] >= first and (not closed or row[0] < end)][-count:]


def rows_of(frame):
    """A frame of the engine list with exact values, as `truth` has it."""
    return [(each.time.strftime("%Y-%m-%dT%H:%M:%SZ"), *each[1:6]) for each in frame]


def exactly(reader, pair="BTC/USDT", **how):
    """What a reader shows, as `truth` has it."""
    return rows_of(reader.candles(pair, engine="list", exact=True, **how))


# Frames


def test_every_engine_shows_the_exchanges_candles(exchange, redis_url, ours):
    """Closed ones alone by default, in UTC, the exchange's values; the newest so many; the forming one."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
    closed = truth(exchange)
    assert len(closed) == 191
    frame = ours.candles("BTC/USDT", "15m")
    assert list(frame.columns) == list(OHLCV)
    assert {str(kind) for kind in frame.dtypes} == {"float64"}
    assert str(frame.index.tz) == "UTC"
    assert [iso_time(int(at.timestamp() * 1000)) for at in frame.index] == [row[0] for row in closed]
    assert frame.to_numpy().tolist() == [[float(value) for value in row[1:]] for row in closed]
    frame.iloc[:] = 0.0  # a frame is the caller's own
    assert ours.candles("BTC/USDT").iloc[-1, 0] == float(closed[-1][1])
    rows = ours.candles("BTC/USDT", engine="numpy", last=3)
    assert rows["time"].astype("i8").tolist() == [NEWEST_MS - n * STEP_MS for n in (3, 2, 1)]
    assert rows["close"].tolist() == [float(row[4]) for row in closed[-3:]]
    assert rows["close"].dtype == numpy.float64
    assert exactly(ours) == closed
    assert exactly(ours, closed=False) == truth(exchange, 192, closed=False)
    assert exactly(ours, closed=False, last=1) == truth(exchange, 1, closed=False)
    assert isinstance(ours.candles("btc-usdt", engine="list", last=1)[0], Candle)
    decimals = ours.candles("BTC/USDT", exact=True, last=2)
    assert [tuple(row) for row in decimals.itertuples(index=False)] == [row[1:] for row in closed[-2:]]
    assert str(ours.candles("BTC/USDT", engine="numpy", exact=True)["low"][-1]) == str(closed[-1][3])


def test_several_pairs_are_read_at_once(exchange, redis_url, ours):
    """By the names they were asked for; in one go, whole ones and ends alike."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT,DOGE/USDT") as rig:
        rig.refresh()
    names = {"DOGE/USDT": "DOGEUSDT", "btc-usdt": "BTCUSDT", "BTC/USDT": "BTCUSDT", "ETH/USDT": "ETHUSDT"}
    assert exactly(ours, "ETH/USDT") == truth(exchange, symbol="ETHUSDT")
    for whole, ends in ((2, 1), (0, 3)):
        with reads_made(ours.client, whole, ends):
            frames = ours.frames(names, engine="list", exact=True)
        assert list(frames) == list(names)
        for name, symbol in names.items():
            assert rows_of(frames[name]) == truth(exchange, symbol=symbol)
    assert ours.frames([]) == {}
    with pytest.raises(Missing, match="XYZ/USDT"):
        ours.frames(["BTC/USDT", "XYZ/USDT"])
    with pytest.raises(Stale, match="ETH/USDT 15m is"):
        ours.frames(["ETH/USDT"], max_age=20)


#: Numbers up to the last digit: as many as an exchange ever told, more than a float holds, and odd ones.
NUMBERS = st.one_of(
    st.decimals(0, 10**9, places=8, allow_nan=False).map(lambda value: f"{value:f}"),
    st.from_regex(r"[0-9]{1,25}(\.[0-9]{0,25})?|\.[0-9]{1,20}", fullmatch=True),
    st.integers(2**53 - 2, 2**53 + 2).map(str),
)


@given(st.lists(st.lists(NUMBERS, min_size=5, max_size=5), min_size=1, max_size=8), st.integers(0, 200_000))
def test_numpy_reads_the_same_to_the_last_digit(rows, first):
    """Many candles at once as one by one."""
    rows = (rows * tet_reader.BULK)[: tet_reader.BULK]
    text = ",".join(
        f'\\"{iso_time((first + 10 * at) * STEP_MS)}\\":{{'
        + ",".join(f'\\"{name}\\":\\"{value}\\"' for name, value in zip(OHLCV, row, strict=True))
        + "}"
        for at, row in enumerate(rows)
    ).encode()
    _, opens, values = tet_reader._entries(text, False)
    assert list(opens) == [(first + 10 * at) * STEP_MS for at in range(len(rows))]
    assert values.tolist() == [float(row[column]) for column in range(5) for row in rows]


def test_polars(exchange, redis_url, ours):
    """Times in UTC, floats or decimals."""
    polars = pytest.importorskip("polars")
    with started(exchange, redis_url) as rig:
        rig.refresh()
    closed = truth(exchange)
    frame = ours.candles("BTC/USDT", engine="polars")
    assert frame.schema["time"] == polars.Datetime("ms", "UTC")
    assert frame["close"].to_list() == [float(row[4]) for row in closed]
    exact = ours.candles("BTC/USDT", engine="polars", exact=True, last=2)
    assert exact["volume"].to_list() == [row[5] for row in closed[-2:]]
    assert ours.candles("BTC/USDT", engine="polars", fill=True)["filled"].to_list() == [False] * 191


def test_fill_gives_a_grid_without_holes(exchange, redis_url, ours):
    """The last close goes on, without volume, and is marked; none of it is there by default."""
    gap_ms = NEWEST_MS - 20 * STEP_MS
    exchange.market.symbols["BTCUSDT"].halts.append((gap_ms, gap_ms + 3 * STEP_MS))
    with pytest.raises(Missing, match="no status"):
        ours.gaps("BTC/USDT")
    with started(exchange, redis_url) as rig:
        rig.refresh()
        rig.service.write_status()
    (gap,) = ours.gaps("btc-usdt")
    assert (gap["first"], gap["candles"]) == (iso_time(gap_ms), 3)
    assert gap["known_since"].startswith("2026-01-15T12:07")
    assert "asked twice" in gap["reason"]
    assert ours.gaps("ETH/USDT") == []
    assert exactly(ours) == truth(exchange)
    frame = ours.candles("BTC/USDT", fill=True)
    assert set(numpy.diff(frame.index)) == {numpy.timedelta64(15, "m")}
    hole = frame[frame["filled"]]
    assert [int(at.timestamp() * 1000) for at in hole.index] == [gap_ms + n * STEP_MS for n in range(3)]
    before = frame["close"].iloc[frame.index.get_loc(hole.index[0]) - 1]
    assert hole[["open", "high", "low", "close"]].to_numpy().tolist() == [[before] * 4] * 3
    assert hole["volume"].tolist() == [0.0] * 3
    assert frame[~frame["filled"]].drop(columns="filled").equals(ours.candles("BTC/USDT"))
    last = ours.candles("BTC/USDT", fill=True, last=19, exact=True, engine="list")
    assert [each.filled for each in last] == [True, True] + [False] * 17
    assert last[0].close == Decimal(str(before))
    assert last[0].volume == Decimal(0)


@pytest.mark.parametrize("timeframe", ["1M", "1w", "3d", "1s"])
def test_grids_of_every_kind_are_filled(timeframe):
    """Months have no common length."""
    opens = {
        "1M": ("2025-11-01", "2025-12-01", "2026-01-01", "2026-02-01"),
        "1w": ("2025-12-22", "2025-12-29", "2026-01-05", "2026-01-12"),
        "3d": ("2026-01-01", "2026-01-04", "2026-01-07", "2026-01-10"),
        "1s": ("2026-01-01T00:00:00", "2026-01-01T00:00:01", "2026-01-01T00:00:02", "2026-01-01T00:00:03"),
    }[timeframe]
    times = [f"{at if 'T' in at else at + 'T00:00:00'}Z" for at in opens]
    held = tet_reader._held_whole(value_of([times[0], times[3]], timeframe=timeframe), False)
    view = tet_reader._View(closed=False, fill=True, engine="list")
    assert [each[0] for each in rows_of(tet_reader._frame(held, view))] == times


# What is said when there is nothing to show


def test_what_is_missing_stale_or_wrong_is_said(exchange, redis_url, ours):
    """With the pair that may be meant, and with the cause; nothing old is handed out."""
    with pytest.raises(Missing, match="nor is any other pair seen there"):
        ours.candles("BTC/USDT")
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        rig.service.write_status()
        assert ours.pairs() == ours.pairs(None) == ["BTC/USDT", "ETH/USDT"]
        assert ours.pairs("1h") == []
        assert ours.status()["state"] == "running"
        assert 25 <= ours.age("ETH/USDT") <= 30  # the exchange's clock stands, ours does not quite
        assert len(ours.candles("BTC/USDT", max_age=30)) == 191
        for wrong in ("BTCUSDT", "BTC/USD", "BTC/USDTT"):
            with pytest.raises(Missing, match=r"did you mean BTC/USDT\?") as missing:
                ours.candles(wrong)
            assert missing.value.nearest == "BTC/USDT"
        with pytest.raises(Missing, match="XYZ/EUR 15m is not kept"):
            ours.age("XYZ/EUR")
        with pytest.raises(Stale, match=r"BTC/USDT 15m is \d+ s old, more than 20 s: the service is running"):
            ours.candles("BTC/USDT", max_age=20)
        rig.binance.gate.pause(600, "banned by a test")
        rig.service.write_status()
        with pytest.raises(Stale) as stale:
            ours.candles("BTC/USDT", max_age=20)
        assert 25 <= stale.value.age_seconds <= 30
        assert "banned by a test" in stale.value.cause
    late = Reader(f"{redis_url}/1", clock=lambda: NOON_MS / 1000 + 3600)
    with pytest.raises(Stale, match=r"no status since 2026-01-15T12:07:3\dZ"):
        late.candles("BTC/USDT", max_age=60)
    ours.client.delete("tet:system:status")
    with pytest.raises(Stale, match="there is no status of a service"):
        late.candles("BTC/USDT", max_age=60)
    late.close()
    senseless: list[dict[str, Any]] = [
        {"engine": "excel"},
        {"last": 0},
        {"timeframe": "15"},
        {"colour": "red"},
    ]
    for how in senseless:
        with pytest.raises((ValueError, TypeError), match=r"must be|timeframe is written|colour"):
            ours.candles("BTC/USDT", **how)


def test_another_prefix_and_clients_of_ones_own(exchange, redis_url):
    """REDIS_PREFIX; a client that decodes replies is as good, and stays open."""
    with started(exchange, redis_url, REDIS_PREFIX="other[1]".replace("[1]", "-1")) as rig:
        rig.refresh()
    with redis.Redis.from_url(redis_url, db=1, decode_responses=True) as client:
        with Reader(client, prefix="other-1") as reader:
            assert reader.pairs() == ["BTC/USDT"]
            assert exactly(reader) == exactly(reader) == truth(exchange)
            assert reader.age("BTC/USDT") > 0
            assert reader.status()["state"] == "stopped"
        assert client.ping()


# The stored value, in each form that it may have


def value_of(times, timeframe="15m", front=0, inner=0, outer=0, behind=0, mark=b"", end=None, **other):
    """A stored value of candles at these times, with so many blanks in each place."""
    entries = [
        f'\\"{at}\\":{{' + ",".join(f'\\"{name}\\":\\"{number}.5\\"' for name in OHLCV) + "}"
        for number, at in enumerate(times, 1)
    ]
    fields = {
        "last_candle_time": times[-1],
        "last_update": "2026-01-15T12:00:00Z",
        "data_start": times[0],
        "data_end": end or times[-1],
        "data_completeness": 1.0,
        "candle_count": len(times),
        "timeframe": timeframe,
        "data_age_seconds": 0,
    } | other
    rest = json.dumps(fields, separators=(",", ":"))[1:]
    blanks = [" " * count for count in (front, inner, outer, behind)]
    candles = f'{{"ohlcv_data":"{{{blanks[0]}{",".join(entries)}{blanks[1]}}}{blanks[2]}",'
    text = candles + mark.decode() + rest + blanks[3]
    return text.encode()


TIMES = [iso_time(NEWEST_MS - n * STEP_MS) for n in range(29, -1, -1)]
FORMS: dict[str, dict[str, Any]] = {
    "as of old": {},
    "patched": {"behind": 32},
    "slid": {"front": 4096, "outer": 20_000, "behind": 7},
    "blanks before the brace": {"front": 140, "inner": 300, "mark": mark_of(5)},
}


@pytest.mark.parametrize("form", [*FORMS, "JSON of another hand"])
def test_every_form_of_the_value_is_read(form, redis_url, ours):
    """Blanks stand where JSON lets them; another hand may write the JSON otherwise."""
    value = value_of(TIMES, **FORMS.get(form, {}))
    assert json.loads(json.loads(value)["ohlcv_data"])  # it is JSON
    if form not in FORMS:
        said = json.loads(value)
        said["ohlcv_data"] = json.dumps(json.loads(said["ohlcv_data"]), indent=1)
        value = json.dumps(said, indent=2)
    ours.client.set(KEY, value)
    for _ in range(2):
        frame = ours.candles("BTC/USDT", engine="list")
        assert [each[0] for each in rows_of(frame)] == TIMES[:-1]  # data_end is where the newest opens
        assert [each.open for each in frame] == [number + 0.5 for number in range(1, 30)]
        assert {each.open == each.volume for each in frame} == {True}
    assert ours.age("BTC/USDT") == 480


def test_fields_beside_ohlcv_are_columns(redis_url, ours):
    """Whatever an entry has, in its order; announcements bring them, too."""
    value = value_of(TIMES, end="2026-01-15T12:15:00Z", mark=mark_of(5))
    more = value.replace(b'\\"volume\\"', b'\\"volume\\":\\"0.25\\",\\"trades\\"')
    ours.client.set(KEY, more)
    frame = ours.candles("BTC/USDT")
    assert list(frame.columns) == [*OHLCV, "trades"]
    assert set(frame["volume"]) == {0.25}
    assert frame["trades"].tolist() == [number + 0.5 for number in range(1, 31)]
    follower = Follower(ours, "BTC/USDT")
    subscribers(ours.client, 1)
    news = {"symbol": "BTC/USDT", "timeframe": "15m", "last_candle_time": "2026-01-15T12:15:00Z"}
    news |= {"last_update": "2026-01-15T12:30:01Z", "data_end": "2026-01-15T12:30:00Z"}
    news |= {"follows": "2026-01-15T12:00:00Z", "data_start": TIMES[0]}
    rows = [["2026-01-15T12:15:00Z", "9", "9", "9", "9", "8", "7"]]
    ours.client.publish("tet:updates", json.dumps(news | {"candle_closed": True, "candles": rows}))
    frame = follower.next()[2]
    assert frame.iloc[-1].tolist() == [9, 9, 9, 9, 8, 7]
    assert frame["trades"].tolist()[:-1] == [number + 0.5 for number in range(1, 31)]


DAMAGE = {
    "cut short": lambda value: value[:-40],
    "cut in the middle": lambda value: value[:500] + value[900:],
    "a digit lost from a time": lambda value: value.replace(b"2026-01-15T09:00:00Z", b"2026-01-15T09:00:0Z"),
    "a point too many": lambda value: value.replace(b"17.5", b"1.7.5", 1),
    "a time with a point": lambda value: value.replace(b"T09:00:00Z", b"T09:00:0.0Z", 1),
    "a number that is none": lambda value: value.replace(b"17.5", b"1..5", 1),
    "an exponent": lambda value: value.replace(b"17.5", b"1E-8", 1),
    "a value left out": lambda value: value.replace(b'\\"17.5\\"', b'\\"\\"', 1),
    "candles exchanged": lambda value: (
        value.replace(b"T09:00", b"T0X:00", 1)
        .replace(b"T09:15", b"T09:00", 1)
        .replace(b"T0X:00", b"T09:15", 1)
    ),
    "a candle less": lambda value: value.replace(b'"candle_count":30', b'"candle_count":29'),
    "no candles": lambda value: json.dumps(json.loads(value) | {"ohlcv_data": "{}"}).encode(),
    "no field": lambda value: value.replace(b'"data_end"', b'"date_end"'),
    "not JSON": lambda value: b"hello",
    "another JSON": lambda value: b'[{"ohlcv_data":"{}"}]',
}


@pytest.mark.parametrize("bulk", [1, 10_000])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_value_is_never_shown(kind, bulk, redis_url, ours, monkeypatch):
    """It is an error that names the pair, whether numpy reads it or not."""
    monkeypatch.setattr(tet_reader, "BULK", bulk)
    value = value_of(TIMES)
    ours.client.set(KEY, DAMAGE[kind](value))
    with pytest.raises(Damaged, match="BTC/USDT 15m"):
        ours.candles("BTC/USDT")
    ours.client.set(KEY, value)
    assert len(ours.candles("BTC/USDT")) == 29


# What is kept


def reads(client):
    """How often whole values and ends of values have been read."""
    stats = client.info("commandstats")
    return [stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("get", "getrange")]


@contextmanager
def reads_made(client, whole, ends):
    """What is read meanwhile: so many whole values, so many ends."""
    before = reads(client)
    yield
    assert [after - was for after, was in zip(reads(client), before, strict=True)] == [whole, ends]


def test_only_the_end_is_read_again(exchange, redis_url, ours):
    """While time goes on; whole again where the service has laid it out anew or written it whole."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        with reads_made(ours.client, 1, 0):
            assert exactly(ours) == truth(exchange)
        for minutes in (1, 15, 15, 75):  # forming, closes, and several at once
            exchange.clock.advance(minutes * MINUTE)
            rig.refresh()
            with reads_made(ours.client, 0, 1):
                assert exactly(ours) == truth(exchange)
        assert exactly(ours, closed=False) == truth(exchange, 192, closed=False)
        exchange.clock.advance(15 * QUARTER)  # more than there is room for: the value is laid out anew
        rig.refresh()
        with reads_made(ours.client, 1, 1):
            assert exactly(ours) == truth(exchange)
        # far back, and nothing else: no time passes, the length stays, the end is the same
        middle_ms = exchange.clock.now_ms() // STEP_MS * STEP_MS - 90 * STEP_MS
        was = exactly(ours)[-90]
        close = str(was[4] + Decimal("0.01"))[: len(str(was[4]))]
        exchange.market.correct("BTCUSDT", "15m", middle_ms, close)
        length = ours.client.strlen(KEY)
        rig.service.audit.step(rig.feeds)
        assert ours.client.strlen(KEY) == length
        with reads_made(ours.client, 1, 1):
            assert exactly(ours) == truth(exchange)
        assert exactly(ours)[-90] != was


def test_another_hands_value_is_read_whole(redis_url, ours):
    """Without a mark, or with another one, nothing held is believed, though the end is the same."""
    for mark in (b"", mark_of(5)):
        value = value_of(TIMES, mark=mark)
        for text, before in ((value, None), (value.replace(b'\\"7.5', b'\\"9.5'), mark)):
            if before:  # the same length, the same end, another value
                text = text.replace(mark, mark_of(6))
            ours.client.set(KEY, text)
            shown = [each.open for each in ours.candles("BTC/USDT", engine="list")]
            assert shown[6] == (7.5 if text is value else 9.5)


# Following


class Follower:
    """A thread that follows until its reader is closed, and what it was given."""

    def __init__(self, reader, *what, **how):
        self.given, self.reader = SimpleQueue[Any](), reader
        self.begun = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(what, how), daemon=True)
        self.thread.start()

    def _run(self, what, how):
        for each in self.reader.follow(*what, **how):
            self.given.put(each)

    def next(self, seconds=10):
        """The next pair, timeframe and frame."""
        return self.given.get(timeout=seconds)


def subscribers(client, count, channel="tet:updates"):
    """Wait until so many listen to the channel."""
    eventually(lambda: client.pubsub_numsub(channel) == [(channel.encode(), count)])
    time.sleep(0.05)  # they read what is there, then


def now_at(exchange, rig, seconds):
    """Let so much time pass at the exchange, and refresh."""
    exchange.clock.advance(seconds)
    rig.refresh()


def test_following_gives_each_close(exchange, redis_url, ours):
    """From the start on, the newest state, each close once; with closed=False each change."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        closes = Follower(ours, ["BTC/USDT", "ETH/USDT"], "15m", engine="list", exact=True)
        changes = Follower(ours, "BTC/USDT", closed=False, engine="list", exact=True, last=5)
        subscribers(ours.client, 2)
        now_at(exchange, rig, 2 * MINUTE)  # nothing closes
        pair, timeframe, frame = changes.next()
        assert (pair, timeframe, rows_of(frame)) == ("BTC/USDT", "15m", truth(exchange, 5, closed=False))
        for _ in range(3):
            now_at(exchange, rig, QUARTER)
            given = {pair: frame for pair, _, frame in (closes.next(), closes.next())}
            assert rows_of(given["BTC/USDT"]) == truth(exchange)
            assert rows_of(given["ETH/USDT"]) == truth(exchange, symbol="ETHUSDT")
            assert rows_of(changes.next()[2]) == truth(exchange, 5, closed=False)
        assert closes.given.empty()
        assert exactly(ours) == truth(exchange)  # reading goes on from what was followed


@pytest.mark.parametrize("told", ["another", "nothing", "no JSON", "of old"])
def test_an_announcement_that_does_not_continue_is_checked(told, exchange, redis_url, ours):
    """One of them was missed, or another hand wrote it: what is in Redis counts."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        follower = Follower(ours, "BTC/USDT", closed=False, engine="list", exact=True)
        subscribers(ours.client, 1)
        said = {"symbol": "BTC/USDT", "timeframe": "15m", "last_candle_time": iso_time(NEWEST_MS)}
        news = said | {"candle_closed": True, "last_update": "2026-01-15T12:09:00Z"}
        news |= {"data_end": iso_time(NEWEST_MS), "follows": "2026-01-15T12:07:29Z"}
        news["candles"] = [[iso_time(NEWEST_MS), "1", "1", "1", "1", "1"]]
        kinds = {
            "another": news,
            "nothing": news | {"follows": None},
            "of old": said | {"candle_closed": True},
        }
        ours.client.publish("tet:updates", json.dumps(kinds.get(told, "[")))
        now_at(exchange, rig, MINUTE)
        assert rows_of(follower.next()[2]) == truth(exchange, 192, closed=False)
        assert follower.given.empty()


def test_a_slow_follower_sees_the_newest_state(exchange, redis_url, ours):
    """Three closes while it was busy are one frame, not three."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        given = ours.follow("BTC/USDT", engine="list", exact=True)
        busy = threading.Thread(target=lambda: next(given))  # to the first close
        busy.start()
        subscribers(ours.client, 1)
        now_at(exchange, rig, QUARTER)
        busy.join(10)
        for _ in range(3):
            now_at(exchange, rig, QUARTER)
        assert rows_of(next(given)[2]) == truth(exchange)
        now_at(exchange, rig, QUARTER)
        assert rows_of(next(given)[2]) == truth(exchange)
        given.close()
        eventually(lambda: ours.client.pubsub_numsub("tet:updates")[0][1] == 0)  # nobody listens any more


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_what_was_missed_is_read(how, exchange, redis_url, ours, monkeypatch):
    """Redis ends the connection, or forgets the subscription: what closed meanwhile is given."""
    monkeypatch.setattr(tet_reader, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(tet_reader, "LOST_SECONDS", 0.2)
    monkeypatch.setattr(tet_reader, "RETRY_SECONDS", 0.1)
    with started(exchange, redis_url) as rig:
        rig.refresh()
        follower = Follower(ours, "BTC/USDT", engine="list", exact=True)
        subscribers(ours.client, 1)
        if how == "killed":
            with ours.client.pipeline() as pipe:
                pipe.client_kill_filter(_type="pubsub")
                pipe.execute()
            now_at(exchange, rig, QUARTER)
        else:  # paused writes and messages: nothing is heard, and no error seen
            ours.client.execute_command("CLIENT", "PAUSE", "400", "ALL")
            now_at(exchange, rig, QUARTER)
        assert rows_of(follower.next()[2]) == truth(exchange)
        subscribers(ours.client, 1)
        now_at(exchange, rig, QUARTER)
        assert rows_of(follower.next()[2]) == truth(exchange)
        assert follower.given.empty()


def test_a_flushed_redis_is_read_again(exchange, redis_url, ours):
    """What is gone is missing; when the service has written it again, reading and following go on."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        follower = Follower(ours, "BTC/USDT", engine="list", exact=True)
        subscribers(ours.client, 1)
        assert exactly(ours) == truth(exchange)
        ours.client.flushall()
        with pytest.raises(Missing):
            ours.candles("BTC/USDT")
        exchange.market.correct("BTCUSDT", "15m", NEWEST_MS - 90 * STEP_MS, "77777.5")
        rig.service.audit.step(rig.feeds)
        rig.service.audit.step(rig.feeds)
        now_at(exchange, rig, QUARTER)
        assert rows_of(follower.next()[2]) == truth(exchange)
        assert exactly(ours) == truth(exchange)


def test_threads_share_a_reader(exchange, redis_url, ours):
    """While candles close, each frame of each thread is the exchange's, and none goes back."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        wrong, done = list[Any](), threading.Event()

        def read():
            newest = ""
            while not done.is_set():
                rows = exactly(ours)
                # what closes grows by time alone: all that was ever shown is in the last truth
                if rows[-1][0] < newest or len(rows) != 191:
                    wrong.append(rows[-1])
                newest = rows[-1][0]
                seen.append((newest, rows[-1]))

        seen: list[Any] = []
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            now_at(exchange, rig, QUARTER)
        done.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len({moment for moment, _ in seen}) >= 2
        assert {row for _, row in seen} <= set(truth(exchange))


def test_nothing_wrong_is_shown_whatever_goes_wrong():
    """The short form of `make soak-reader`: what is read and followed is the exchange's."""
    work = soak_reader.run(2.5)
    assert work.wrong == []
    assert work.seen["read"] > 10
    assert work.seen["followed"] > 2


# The asyncio twin


def test_the_asyncio_twin_has_the_same_names(exchange, redis_url):
    """And shows the same, over a client of its own or of the caller's."""
    public = {name for name in dir(Reader) if not name.startswith("_")}
    assert {name for name in dir(AsyncReader) if not name.startswith("_")} == public
    with started(exchange, redis_url) as rig:
        rig.refresh()
        rig.service.write_status()

        async def use():
            async with AsyncReader(f"{redis_url}/1", engine="list", clock=lambda: NOON_MS / 1000) as reader:
                assert rows_of(await reader.candles("BTC/USDT", exact=True)) == truth(exchange)
                assert rows_of(await reader.candles("BTC/USDT", exact=True)) == truth(exchange)
                assert await reader.pairs() == ["BTC/USDT"]
                assert abs(await reader.age("BTC/USDT")) <= 5
                assert (await reader.status())["state"] == "running"
                with pytest.raises(Missing, match=r"mean BTC/USDT\?"):
                    await reader.candles("BTC/USDC")
                given = []
                async for each in reader.follow("BTC/USDT", exact=True):
                    given.append(each)
                    break
                return given

        async def both():
            following = asyncio.create_task(use())
            with redis.Redis.from_url(redis_url, db=1) as client:
                while not client.pubsub_numsub("tet:updates")[0][1]:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(now_at, exchange, rig, QUARTER)
            return await following

        ((pair, timeframe, frame),) = asyncio.run(both())
        assert (pair, timeframe, rows_of(frame)) == ("BTC/USDT", "15m", truth(exchange))


# One file


def test_it_is_one_file_that_needs_redis_alone(exchange, redis_url, tmp_path):
    """Copied elsewhere it works, also where neither pandas nor anything of ours is."""
    shutil.copy(PROGRAM.parent / "tet_reader.py", tmp_path)
    with started(exchange, redis_url) as rig:
        rig.refresh()
    code = f"""if True:
        import sys
        sys.modules.update(dict.fromkeys(("pandas", "numpy", "polars", "tet_core", "tet_extras")))
        from tet_reader import Reader
        reader = Reader({redis_url + "/1"!r}, engine="list")
        print(reader.candles("BTC/USDT", last=1)[0].close)
        try:
            reader.candles("BTC/USDT", engine="pandas")
        except ImportError as error:
            print(error)"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    price, error = done.stdout.splitlines()
    assert float(price) == float(truth(exchange, 1)[0][4])
    assert error == 'pandas is not installed: pip install pandas, or engine="list"'
