"""LIVE: what streams tell, and what they leave out; every closed candle is the exchange's all the same.

The exchange's time is months away from this machine's, and runs SPEED times as fast: nothing may go by the
local clock.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import redis
from rig import FastClock, Rig, Running, eventually, expected_candles, in_background, stored, unused_port
from test_store import own_server, url_of

import tet_data_service as tet
from tet_extras.live import Message
from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock

SPEED = 20  # a minute's candle takes 3 s
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
                    state = (
                        value["last_update"],
                        value["data_end"],
                        newest,
                        float(candles[newest]["volume"]),
                    )
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
            eventually(lambda: all(feed.updated_ms for feed in rig.feeds) and rig.feeds)
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


def has_more_connections(exchange, before):
    """Whether there have been more connections than before."""
    return len(exchange.streams.connections) > before


def has_feeds(rig, count):
    """Whether there are so many feeds."""
    return len(rig.feeds) == count


def is_past(exchange, at_ms):
    """Whether the exchange's time has come there."""
    return exchange.clock.now_ms() > at_ms


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
        ends = [
            tet.parse_iso_time(stored(client, f"1m:{name.replace('/', '_')}")["data_end"]) for name in NAMES
        ]
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


def rest_closes(live):
    """How many closes REST told."""
    return live["close_to_redis_by_source"]["rest"]["closes"]


def outcome(name):
    """How many messages ended so."""
    return lambda live: live["messages_by_outcome"].get(name, 0)


def reconnects(reason):
    """How many reconnects there were for that reason."""
    return lambda live: live["reconnects"].get(reason, 0)


#: The fault, how it is set, and the figure of the status that shows that it was there.
FAULTS = [
    ("silent", {}, reconnects("silence")),
    ("lag", {}, reconnects("growing lag")),
    ("silent_streams", {"match": lambda name: name < "p03"}, reconnects("closes missing")),
    ("unserved", {}, reconnects("silence")),
    ("no_close", {}, rest_closes),
    ("late_close", {"late_seconds": 3}, outcome("refused")),
    ("late_close", {"late_seconds": 25}, rest_closes),
    ("doubled", {}, outcome("accepted")),
    ("reordered", {}, outcome("accepted")),
    ("garbage", {}, lambda live: live["bad_frames"]),
    ("bad_candle", {}, outcome("damaged")),
    ("burst", {}, outcome("accepted")),
    ("cut_at_close", {}, reconnects("connection lost")),
    ("refused", {}, reconnects("refused")),
]


@pytest.mark.parametrize(
    ("kind", "how", "shows"), FAULTS, ids=[f"{row[0]}{place}" for place, row in enumerate(FAULTS)]
)
def test_whatever_streams_do_closed_candles_are_the_exchanges(exchange, redis_url, kind, how, shows):
    """While the fault lasts, too; afterwards all feeds are live again."""
    how = dict(how)
    exchange.streams.faults.late_seconds = how.pop("late_seconds", 0)
    with living(exchange, redis_url) as rig, Watcher(redis_url, KEYS) as watcher:
        eventually(lambda: all_live(rig))
        exchange.streams.faults.always(kind, **how)
        if kind in ("unserved", "refused"):
            exchange.streams.cut()
        eventually(lambda: shows(rig.service.status.fields()["live"]))
        closes_pass(exchange, 2)
        assert differing(exchange, redis_url) == []
        assert behind_ms(exchange, redis_url) == 0
        exchange.streams.faults.clear()
        eventually(lambda: all_live(rig), 40)
        assert len(rig.service.live._inbox) < 100
    assert watcher.wrong == []


def test_all_faults_mixed_for_minutes(exchange, redis_url):
    """Each message, close, connection and handshake has a chance to go wrong."""
    kinds = [kind for kind, *_ in FAULTS if kind != "burst"]
    with living(exchange, redis_url) as rig, Watcher(redis_url, KEYS) as watcher:
        eventually(lambda: all_live(rig))
        exchange.streams.faults.mix(0.05, kinds)
        exchange.faults.mix(0.05)
        exchange.faults.stall_seconds = 0.1
        closes_pass(exchange, 5)
        exchange.streams.faults.clear()
        exchange.faults.clear()
        eventually(lambda: all_live(rig), 40)
        closes_pass(exchange, 1)
        assert differing(exchange, redis_url) == []
        assert behind_ms(exchange, redis_url) == 0
    assert watcher.wrong == []


def test_unreachable_from_the_start_is_polling(exchange, redis_url, caplog):
    """It is said once; when streams can be reached, they take over."""
    caplog.set_level("INFO", tet.LOGGER)
    exchange.streams.faults.always("refused")
    with living(exchange, redis_url) as rig:
        closes_pass(exchange, 2)
        assert links(rig) == {"live": 0, "catching_up": 0, "blind": len(NAMES)}
        assert differing(exchange, redis_url) == []
        assert behind_ms(exchange, redis_url) == 0
        said = [message for message in caplog.messages if "streams unreachable" in message]
        assert said == ["streams unreachable, polling as without LIVE, will retry"]
        exchange.streams.faults.clear()
        eventually(lambda: all_live(rig), 60)
        assert "streams reachable again" in caplog.messages
        exchange.streams.faults.always("refused")
        exchange.streams.cut()
        eventually(lambda: links(rig)["blind"] == len(NAMES), 2)
        closes_pass(exchange, 1)
        assert behind_ms(exchange, redis_url) == 0


def test_a_reconnect_costs_one_request_for_each_feed(exchange, redis_url):
    """Of which what was missed is made good; then streams have them again, forty times in a row."""
    with living(exchange, redis_url) as rig, Watcher(redis_url, KEYS) as watcher:
        eventually(lambda: all_live(rig))
        exchange.clear()
        for _ in range(40):
            before = len(exchange.streams.connections)
            exchange.streams.cut()
            eventually(partial(has_more_connections, exchange, before))
            eventually(lambda: rig.service.live._streams.are_delivering)
        eventually(lambda: all_live(rig), 40)
        assert len(exchange.asked("klines")) <= 2 * 41 * len(NAMES)
        closes_pass(exchange, 1)
        assert differing(exchange, redis_url) == []
    assert watcher.wrong == []


def test_a_minute_without_redis_loses_nothing(exchange, tmp_path):
    """What streams tell meanwhile is in Redis when that is back; what they keep fresh stays so."""
    port = unused_port()
    with ExitStack() as servers:
        with own_server(tmp_path, port) as (server, _):
            rig = servers.enter_context(living(exchange, url_of(server)))
            eventually(lambda: all_live(rig))
        closes_pass(exchange, 1)
        assert sum(feed.buffered for feed in rig.feeds) == len(NAMES)
        again, client = servers.enter_context(own_server(tmp_path, port))
        eventually(lambda: client.dbsize() > 2 * len(NAMES))
        closes_pass(exchange, 1)
        assert differing(exchange, url_of(again)) == []
        assert behind_ms(exchange, url_of(again)) == 0
        assert links(rig)["live"] == len(NAMES)


def test_a_ban_by_rest_does_not_stop_streams(exchange, redis_url):
    """Closes come as before while no request may be sent."""
    with living(exchange, redis_url) as rig:
        eventually(lambda: all_live(rig))
        exchange.ban(3600)
        rig.binance.gate.pause(3600, "a test")
        exchange.clear()
        closes_pass(exchange, 2)
        assert exchange.requests == []
        assert differing(exchange, redis_url) == []
        assert behind_ms(exchange, redis_url) == 0


def test_proof_by_rest_corrects_what_was_told_as_final(exchange, redis_url, caplog):
    """The exchange's REST has the last word: both values are logged, and the difference is counted."""
    with living(exchange, redis_url, UPDATE_INTERVAL=6) as rig:
        eventually(lambda: all_live(rig))
        closes_pass(exchange, 1)
        open_ms = (exchange.clock.now_ms() // 60_000 - 1) * 60_000
        exchange.market.correct("P00USDT", "1m", open_ms, "77777.5")
        feed = next(feed for feed in rig.feeds if feed.pair.base == "P00")
        eventually(lambda: "77777.5" in feed.series.entry(feed.series.index(open_ms)))
        eventually(lambda: differing(exchange, redis_url) == [])
        assert rig.service.status.fields()["candles_corrected"] == 1
    (said,) = [record.facts for record in caplog.records if record.message == "candle corrected by binance"]
    assert said["feed"] == "P00/USDT 1m"
    assert '"close":"77777.5"' in said["sent"]
    assert '"close"' in said["held"] != said["sent"]


def test_a_newer_value_of_another_instance_is_gone_on_from(exchange, redis_url, reader):
    """Its candles count once REST has repeated them: at once, not with the next proof."""
    with living(exchange, redis_url) as rig:
        eventually(lambda: all_live(rig))
        later = tet.iso_time(exchange.clock.now_ms() + 40_000)
        value = reader.get("tet:kline:1m:P00_USDT")
        reader.set(
            "tet:kline:1m:P00_USDT", re.sub('"last_update":"[^"]+"', f'"last_update":"{later}"', value)
        )
        feed = next(feed for feed in rig.feeds if feed.pair.base == "P00")
        eventually(lambda: feed.known is tet.Known.RESTORED)
        eventually(lambda: feed.known is tet.Known.CONFIRMED and all_live(rig), 5)
        closes_pass(exchange, 1)
        assert differing(exchange, redis_url) == []


def test_two_instances_keep_what_either_lets_go(exchange, redis_url):
    """On the same pairs, without a group: each goes on from what the other wrote, and alone after it."""
    with living(exchange, redis_url, UPDATE_INTERVAL=600) as one:
        eventually(lambda: all_live(one))
        with living(exchange, redis_url, UPDATE_INTERVAL=600) as two:
            eventually(lambda: all_live(two))
            closes_pass(exchange, 1)
        closes_pass(exchange, 1)
        eventually(lambda: behind_ms(exchange, redis_url) == 0, 5)
        eventually(lambda: all_live(one))
        assert differing(exchange, redis_url) == []


def test_members_of_a_group_listen_to_what_they_own(exchange, redis_url):
    """Each subscribes to its share; one that leaves is replaced, with a request or two for each pair."""
    with living(exchange, redis_url, GROUP="g") as one, Watcher(redis_url, KEYS) as watcher:
        eventually(lambda: all_live(one))
        with living(exchange, redis_url, GROUP="g") as two:
            eventually(lambda: len(one.feeds) + len(two.feeds) == len(NAMES))
            eventually(lambda: all_live(one) and all_live(two) and two.feeds)
            shares = [{feed.stream.name for feed in rig.feeds} for rig in (one, two)]
            assert shares[0].isdisjoint(shares[1])
            eventually(lambda: heard_by(exchange) == sorted(map(sorted, shares)))
            closes_pass(exchange, 1)
            exchange.clear()
        eventually(lambda: len(one.feeds) == len(NAMES) and all_live(one))
        assert len(exchange.asked("klines")) <= 2 * len(shares[1])
        closes_pass(exchange, 1)
        assert differing(exchange, redis_url) == []
        assert behind_ms(exchange, redis_url) == 0
    assert watcher.wrong == []


def heard_by(exchange):
    """What each open connection carries, without the canaries."""
    carried = [
        [name for name in each.names if "kline_1s" not in name] for each in exchange.streams.open_connections
    ]
    return sorted(map(sorted, carried))


def test_other_candles_in_redis_are_settled_at_once(exchange, redis_url, reader, caplog):
    """The exchange judges, with the next write, not with the next proof."""
    with living(exchange, redis_url, UPDATE_INTERVAL=600) as rig:
        eventually(lambda: all_live(rig))
        key = "tet:kline:1m:P00_USDT"
        value = reader.get(key)
        at = value.index('\\"volume\\":\\"') + len('\\"volume\\":\\"')
        reader.set(key, value[:at] + "9" + value[at:])
        eventually(lambda: "redis has other candles, backfilling" in caplog.messages)
        eventually(lambda: differing(exchange, redis_url) == [], 5)
        eventually(lambda: all_live(rig), 5)


def test_a_main_thread_that_was_held_up_blames_no_connection(exchange, redis_url):
    """Closes wait in the inbox meanwhile: they are taken before anything is missed."""
    with living(exchange, redis_url, UPDATE_INTERVAL=600) as rig:
        eventually(lambda: all_live(rig))
        closes_pass(exchange, 1)
        flush, held = rig.service.writer.flush, threading.Event()

        def held_up(feeds):
            if not held.is_set() and exchange.clock.now_ms() % 60_000 > 58_000:
                eventually(partial(is_past, exchange, exchange.clock.now_ms() // 60_000 * 60_000 + 67_000))
                held.set()
            flush(feeds)

        rig.service.writer.flush = held_up
        exchange.clear()
        assert held.wait(30)
        closes_pass(exchange, 0)
        assert rig.service.live.figures()["reconnects"] == {}
        assert behind_ms(exchange, redis_url) == 0
        assert exchange.asked("klines") == []


def test_an_event_from_the_future_silences_nobody(exchange, redis_url):
    """It is damaged; what comes after it counts."""
    with living(exchange, redis_url) as rig:
        eventually(lambda: all_live(rig))
        feed = rig.feeds[0]
        message = Message(feed.stream.name, exchange.clock.now_ms() + 10**9, (), False, 0)
        rig.service.live._inbox.deliver(message)
        eventually(lambda: rig.service.status.messages.counts().get("damaged"))
        eventually(lambda: all_live(rig))


def test_what_streams_told_since_the_last_proof_is_proven(exchange, redis_url):
    """However many candles that are, in one request."""
    with living(exchange, redis_url, UPDATE_INTERVAL=60, INCREMENTAL_CANDLES=2) as rig:
        eventually(lambda: all_live(rig))
        exchange.clear()
        request = eventually(lambda: exchange.asked("klines"), 60)[0]
        since_ms = exchange.clock.now_ms() - int(request.params["startTime"])
        assert since_ms > 120_000 or int(request.params["limit"]) > 3


def test_acknowledged_and_never_served_is_unreachable(exchange, redis_url, caplog):
    """As USD-M's retired addresses are: it is said once, however often it is tried."""
    exchange.streams.faults.always("unserved")
    with living(exchange, redis_url) as rig:
        eventually(lambda: len(exchange.streams.attempts) >= 3, 40)
        assert rig.service.live.figures()["feeds"]["blind"] == len(NAMES)
    said = [message for message in caplog.messages if "stream" in message]
    assert said == ["streams unreachable, polling as without LIVE, will retry"]


def test_symbols_that_leave_and_join_are_followed(exchange, redis_url):
    """By the same connection."""
    listing = exchange.market.symbols["P03USDT"]
    with living(exchange, redis_url) as rig:
        eventually(lambda: all_live(rig))
        for status, count in (("BREAK", len(NAMES) - 1), ("TRADING", len(NAMES))):
            listing.status = status
            rig.service._symbols_due_ms = 0
            eventually(partial(has_feeds, rig, count))
            eventually(lambda: all_live(rig), 40)
        assert len(exchange.streams.attempts) == 1
        assert {name for each in exchange.streams.open_connections for name in each.names} >= set(
            rig.service.live._feeds
        )


def test_usd_m_futures_have_streams_of_their_own(exchange, redis_url):
    """With another canary, by /market, four times a second."""
    given = {"BINANCE_MARKET": "usdm", "BINANCE_STREAM_URL": f"{exchange.stream_url}/market"}
    with living(exchange, redis_url, **given) as rig:
        eventually(lambda: all_live(rig))
        closes_pass(exchange, 1)
        assert differing(exchange, redis_url) == []
        assert rig.service.status.fields()["live"]["closes_by_stream_share"] > 0.5
        (connection,) = exchange.streams.connections
        assert "p00usdt@markPrice@1s" in connection.names


def test_a_quiet_pair_is_asked_for_before_it_is_stale(exchange, redis_url):
    """Between closes its stream says nothing: what nobody speaks of is looked at."""
    exchange.streams.quiet.update(name.replace("/", "") for name in NAMES)
    with living(exchange, redis_url, TIMEFRAME="3m", MAX_DATA_AGE=80, UPDATE_INTERVAL=80) as rig:
        eventually(lambda: all_live(rig))  # since the close at 12:09, the next one is 180 s later
        oldest = 0.0
        for _ in range(14):
            eventually(partial(is_past, exchange, exchange.clock.now_ms() + 10_000))
            oldest = max(oldest, rig.service.status.fields()["data_freshness_max"])
        assert links(rig)["live"] == len(NAMES)
        assert 30 < oldest < 75


def test_above_the_memory_limit_it_polls(exchange, redis_url, caplog):
    """What is not in memory cannot be followed: it is said, with the setting that helps."""
    with living(exchange, redis_url, MEMORY_LIMIT_MB=50) as rig:
        eventually(lambda: any("polling instead of LIVE" in message for message in caplog.messages))
        closes_pass(exchange, 1)
        assert links(rig)["blind"] == len(NAMES)
        assert differing(exchange, redis_url) == []
        eventually(lambda: not exchange.streams.open_connections)


# The program


def arguments_for(exchange, redis_url):
    """The program with LIVE, for two pairs."""
    return [
        "--public",
        "--live",
        "--symbols=P00/USDT,P01/USDT",
        "--timeframe=1m",
        "--days=1",
        f"--base-url={exchange.url}",
        f"--stream-url={exchange.stream_url}",
        f"--redis={redis_url}",
    ]


@pytest.fixture
def before_a_close():
    """An exchange in real time, some seconds before a minute closes."""
    with SimulatedBinance(
        market=Market.random_walk(NAMES[:2]), clock=SimulatedClock(START_MS + 20_000)
    ) as simulated:
        yield simulated


def test_a_stop_in_the_middle_of_a_close_is_prompt_and_whole(before_a_close, redis_url, tmp_path, reader):
    """SIGTERM as the first close is announced: exit code 0 within 5 s, and each value is sound."""
    with reader.pubsub(ignore_subscribe_messages=True) as updates:
        updates.subscribe("tet:updates")
        with Running(tmp_path, *arguments_for(before_a_close, redis_url)) as running:
            eventually(lambda: closed_candle_told(updates), 30)
            running.process.terminate()
            began = time.monotonic()
            assert running.process.wait(10) == 0
            assert time.monotonic() - began < 5
    for name in ("P00_USDT", "P01_USDT"):
        value = stored(reader, f"1m:{name}")
        truth = expected_candles(
            before_a_close, name.replace("_", ""), "1m", tet.parse_iso_time(value["data_start"])
        )
        closed = {at: each for at, each in value["candles"].items() if at < value["data_end"]}
        assert closed.items() <= truth.items()


def closed_candle_told(updates):
    """Whether an update with a closed candle has been announced."""
    message = updates.get_message(timeout=0.1)
    return bool(message) and json.loads(message["data"])["candle_closed"]


@pytest.mark.timeout(120)
def test_a_program_that_was_frozen_catches_up(before_a_close, redis_url, tmp_path, reader):
    """SIGSTOP for longer than a connection may be silent: each candle is made good."""
    with Running(tmp_path, *arguments_for(before_a_close, redis_url)) as running:
        eventually(lambda: reader.exists("tet:kline:1m:P00_USDT", "tet:kline:1m:P01_USDT") == 2, 30)
        running.process.send_signal(signal.SIGSTOP)
        time.sleep(18)
        running.process.send_signal(signal.SIGCONT)
        eventually(lambda: stored(reader, "1m:P01_USDT")["data_end"] >= "2026-01-15T12:08:00Z", 30)
        now = before_a_close.clock.now_ms()
        for name in ("P00_USDT", "P01_USDT"):
            value = eventually(partial(current_value, reader, name, now))
            truth = expected_candles(
                before_a_close, name.replace("_", ""), "1m", tet.parse_iso_time(value["data_start"])
            )
            closed = {at: each for at, each in value["candles"].items() if at < value["data_end"]}
            assert closed.items() <= truth.items()


def current_value(reader, name, now_ms):
    """The value, if it reaches the last close."""
    value = stored(reader, f"1m:{name}")
    return value if tet.parse_iso_time(value["data_end"]) >= now_ms // 60_000 * 60_000 else None
