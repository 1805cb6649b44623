"""LIVE: what streams tell, and what they leave out; every closed candle is the exchange's all the same."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from rig import FastClock, Rig, eventually, expected_candles, in_background, stored

import tet_data_service as tet
from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock

SPEED = 10  # a minute's candle takes 6 s
NAMES = [f"P{number:02d}/USDT" for number in range(6)]
START_MS = 1_768_478_850_000  # 2026-01-15T12:07:30Z
TF = tet.TIMEFRAMES["1m"]


@pytest.fixture
def exchange():
    """A simulated exchange, in the middle of a minute, whose time runs SPEED times as fast."""
    clock = SimulatedClock(START_MS, speed=SPEED)
    with SimulatedBinance(market=Market.random_walk(NAMES), clock=clock) as simulated:
        yield simulated


class Watcher:
    """A reader that polls as fast as it can, and notes where a value went back or is not whole."""

    def __init__(self, redis_url: str, keys: list[str]) -> None:
        self.wrong: list[str] = []
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(redis_url, keys))

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self, redis_url: str, keys: list[str]) -> None:
        latest: dict[str, tuple] = {}
        with redis.Redis.from_url(redis_url, db=1) as client:
            while not self._stop.is_set():
                for key in keys:
                    text = client.get(f"tet:kline:{key}")
                    if not text:
                        continue
                    value = json.loads(text)
                    candles = json.loads(value["ohlcv_data"])
                    newest = value["last_candle_time"]
                    closed = {at: candle for at, candle in candles.items() if at < value["data_end"]}
                    state = (value["last_update"], value["data_end"], newest, float(candles[newest]["volume"]))
                    before = latest.get(key)
                    if before and not (state[1:] >= before[0][1:] and state[0] >= before[0][0]):
                        self.wrong.append(f"{key} went from {before[0]} to {state}")
                    if before and any(closed.get(at, candle) != candle for at, candle in before[1].items()):
                        self.wrong.append(f"{key}: a closed candle has changed")
                    latest[key] = state, closed
                    self.looks += 1


@contextmanager
def living(exchange, redis_url, **given):
    """A service that runs with LIVE, its pairs filled."""
    given = {
        "SYMBOLS": ",".join(NAMES),
        "TIMEFRAME": "1m",
        "DATA_DAYS": 1,
        "LIVE": "true",
        "BINANCE_STREAM_URL": exchange.stream_url,
        "UPDATE_INTERVAL": 60,
        "API_REQUESTS_PER_SEC": 50,
    } | given
    with Rig(exchange, redis_url, FastClock(SPEED), **given) as rig:
        runner = in_background(rig.service.run)
        try:
            eventually(lambda: all(feed.image for feed in rig.feeds) and rig.feeds)
            yield rig
        finally:
            rig.clock.stop()
            runner.join()


def links(rig):
    """How many feeds are live, catching up, blind."""
    return rig.service.live.figures()["feeds"]


def all_live(rig):
    """Whether streams keep all feeds fresh."""
    return links(rig)["live"] == len(rig.feeds)


def closes_pass(exchange, count):
    """Wait until so many more minutes have closed, and a little."""
    goal_ms = (exchange.clock.now_ms() // 60_000 + count) * 60_000 + 6_000
    eventually(lambda: exchange.clock.now_ms() > goal_ms, 60)


def differing(exchange, redis_url, timeframe="1m"):
    """The feeds whose closed candles in Redis are not the exchange's, or lack the newest one."""
    wrong = []
    with redis.Redis.from_url(redis_url, db=1, decode_responses=True) as client:
        for name in NAMES:
            value = stored(client, f"{timeframe}:{name.replace('/', '_')}")
            first_ms = tet.parse_iso_time(value["data_start"])
            truth = expected_candles(exchange, name.replace("/", ""), timeframe, first_ms)
            closed = {at: each for at, each in value["candles"].items() if at < value["data_end"]}
            begun = {at: each for at, each in truth.items() if at < value["data_end"]}
            if closed != begun:
                wrong.append(name)
    return wrong


def behind_ms(exchange, redis_url):
    """How far the oldest value's end is behind the exchange's last close."""
    with redis.Redis.from_url(redis_url, db=1, decode_responses=True) as client:
        ends = [tet.parse_iso_time(stored(client, f"1m:{name.replace('/', '_')}")["data_end"]) for name in NAMES]
    return exchange.clock.now_ms() // 60_000 * 60_000 - min(ends)


KEYS = [f"1m:{name.replace('/', '_')}" for name in NAMES]


def test_streams_keep_all_feeds_fresh(exchange, redis_url):
    """Closes come by stream, at once; REST is asked for proof alone; nobody sees a value go back."""
    with living(exchange, redis_url, UPDATE_INTERVAL=180) as rig, Watcher(redis_url, KEYS) as watcher:
        eventually(lambda: all_live(rig))
        exchange.clear()
        closes_pass(exchange, 2)
        status = rig.service.status.fields()["live"]
        assert differing(exchange, redis_url) == []
        assert behind_ms(exchange, redis_url) == 0
        assert len(exchange.asked("klines")) < len(NAMES), "polling would have asked twelve times"
    assert status["closes_by_stream_share"] > 0.5
    assert status["connections"] == 1
    assert status["streams"] == len(NAMES)
    assert watcher.looks > 50
    assert watcher.wrong == []


FAULTS = [
    ("silent", {}),
    ("lag", {}),
    ("silent_streams", {"match": lambda name: name < "p03"}),
    ("unserved", {}),
    ("no_close", {}),
    ("late_close", {"late_seconds": 3}),
    ("late_close", {"late_seconds": 25}),
    ("doubled", {}),
    ("reordered", {}),
    ("garbage", {}),
    ("bad_candle", {}),
    ("burst", {}),
    ("cut_at_close", {}),
    ("refused", {}),
]


@pytest.mark.parametrize(("kind", "how"), FAULTS)
def test_whatever_streams_do_closed_candles_are_the_exchanges(exchange, redis_url, kind, how):
    """While the fault lasts, too; afterwards all feeds are live again."""
    how = dict(how)
    exchange.streams.faults.late_seconds = how.pop("late_seconds", 0)
    exchange.streams.faults.burst_messages = 100
    with living(exchange, redis_url) as rig, Watcher(redis_url, KEYS) as watcher:
        eventually(lambda: all_live(rig))
        exchange.streams.faults.always(kind, **how)
        if kind in ("unserved", "refused"):
            exchange.streams.cut()
        closes_pass(exchange, 3)
        assert differing(exchange, redis_url) == []
        assert behind_ms(exchange, redis_url) == 0
        exchange.streams.faults.clear()
        eventually(lambda: all_live(rig), 40)
    assert watcher.wrong == []
