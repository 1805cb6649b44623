"""LIVE: what is streamed, and what is left out; every closed candle is the exchange's all the same.

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
from rig import (
    FastClock,
    Rig,
    Running,
    eventually,
    expected_candles,
    in_background,
    own_server,
    stored,
    unused_port,
    url_of,
)

import tet_data_service as tet
from tet_core.feeds import Provenance
from tet_core.snapshot import FeedsByLink
from tet_core.times import parse_iso_time
from tet_extras.messages import Message
from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock
from tet_extras.subscriptions import kline_stream

SPEED = 20  # a minute's candle takes 3 s
NAMES = [f"P{number:02d}/USDT" for number in range(6)]
START_MS = 1_768_478_850_000  # 2026-01-15T12:07:30Z
TF = tet.TIMEFRAMES["1m"]


def stream_of(feed):
    """The name of its stream."""
    return kline_stream(feed.pair.symbol, feed.timeframe.name)


@pytest.fixture
def exchange():
    """A simulated exchange, in the middle of a minute, whose time runs SPEED times as fast."""
    clock = SimulatedClock(START_MS, speed=SPEED)
    with SimulatedBinance(market=Market.random_walk(NAMES), clock=clock) as simulated:
        yield simulated


@pytest.fixture
def slower_exchange():
    """The same, whose time runs a third as fast: for what is to be done within a minute of it."""
    clock = SimulatedClock(START_MS, speed=SPEED / 3)
    with SimulatedBinance(market=Market.random_walk(NAMES), clock=clock) as simulated:
        yield simulated


class Watcher:
    """A reader that looks a hundred times a second, and notes where a value went back or is not whole.

    As fast as it can would be no more often: what it decodes it would decode again and again.
    """

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
        texts: dict[str, bytes] = {}
        with redis.Redis.from_url(redis_url, db=1) as client:
            while not self._stop.wait(0.01):
                for key, text in zip(keys, client.mget([f"tet:kline:{key}" for key in keys]), strict=True):
                    self.looks += bool(text)
                    if not text or text == texts.get(key):
                        continue
                    texts[key] = text
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


@contextmanager
def living(exchange, redis_url, speed=SPEED, **given):
    """A service that runs with LIVE, its pairs filled, whose time runs as fast as the exchange's."""
    given = {
        "SYMBOLS": ",".join(NAMES),
        "TIMEFRAME": "1m",
        "DATA_DAYS": 1,
        "LIVE": "true",
        "BINANCE_STREAM_URL": exchange.stream_url,
        "UPDATE_INTERVAL": 60,
        "API_REQUESTS_PER_SEC": 50,
    } | given
    with Rig(exchange, redis_url, FastClock(speed), **given) as rig:
        runner = in_background(rig.service.run)
        try:
            eventually(lambda: all(feed.updated_ms for feed in rig.feeds) and rig.feeds)
            yield rig
        finally:
            rig.clock.stop()
            runner.join()


def links(rig):
    """How many feeds are live, catching up, blind."""
    return rig.service.live.figures().feeds


def all_live(rig):
    """Whether streams keep all feeds fresh."""
    return links(rig).live == len(rig.feeds)


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
            first_ms = parse_iso_time(value["data_start"])
            truth = expected_candles(exchange, name.replace("/", ""), timeframe, first_ms)
            closed = {at: each for at, each in value["candles"].items() if at < value["data_end"]}
            begun = {at: each for at, each in truth.items() if at < value["data_end"]}
            if closed != begun:
                wrong.append(name)
    return wrong


def behind_ms(exchange, redis_url):
    """How far the oldest value's end is behind the exchange's last close."""
    with redis.Redis.from_url(redis_url, db=1, decode_responses=True) as client:
        ends = [parse_iso_time(stored(client, f"1m:{name.replace('/', '_')}")["data_end"]) for name in NAMES]
    return exchange.clock.now_ms() // 60_000 * 60_000 - min(ends)


KEYS = [f"1m:{name.replace('/', '_')}" for name in NAMES]


def test_streams_keep_all_feeds_fresh(exchange, redis_url):
    """Closes come by stream, at once; REST is asked for proof alone; nobody sees a value go back."""
    given = {"UPDATE_INTERVAL": 180, "PROOF_WEIGHT_SHARE": 0}
    with living(exchange, redis_url, **given) as rig, Watcher(redis_url, KEYS) as watcher:
        eventually(lambda: all_live(rig))
        exchange.clear()
        closes_pass(exchange, 2)
        status = rig.service.status.snapshot().live
        assert differing(exchange, redis_url) == []
        assert behind_ms(exchange, redis_url) == 0
        assert len(exchange.asked("klines")) < len(NAMES), "polling would have asked twelve times"
    assert status.closes_by_stream_share > 0.5
    assert status.connections == 1
    assert status.streams == len(NAMES)
    assert watcher.looks > 50
    assert watcher.wrong == []


def rest_closes(live):
    """How many closes REST has brought."""
    return live.close_to_redis_by_source.rest.closes


def outcome(name):
    """How many messages ended so."""
    return lambda live: live.messages_by_outcome.get(name, 0)


def reconnects(reason):
    """How many reconnects there were for that reason."""
    return lambda live: live.reconnects.get(reason, 0)


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
    ("garbage", {}, lambda live: live.bad_frames),
    ("bad_candle", {}, outcome("damaged")),
    ("misnamed", {"match": lambda name: name.startswith("p0")}, outcome("damaged")),
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
        eventually(lambda: shows(rig.service.status.snapshot().live))
        closes_pass(exchange, 2)
        assert differing(exchange, redis_url) == []
        assert behind_ms(exchange, redis_url) == 0
        exchange.streams.faults.clear()
        eventually(lambda: all_live(rig), 40)
        assert len(rig.service.inbox) < 100
    assert watcher.wrong == []


@pytest.mark.parametrize("kind", ["early_close", "numbers", "shifted"])
def test_an_odd_candle_is_the_same_by_stream_and_by_rest(exchange, redis_url, reader, kind):
    """Cut short or written otherwise it counts; off the grid it is a gap, and the pair is live again."""
    with living(exchange, redis_url) as rig, Watcher(redis_url, KEYS) as watcher:
        eventually(lambda: all_live(rig))
        odd_ms = (exchange.clock.now_ms() // 60_000 + 1) * 60_000
        exchange.market.edit(NAMES[0].replace("/", ""), "1m", odd_ms, kind)
        closes_pass(exchange, 3)
        eventually(lambda: all_live(rig), 40)
        value = stored(reader, KEYS[0])
        assert (tet.iso_time(odd_ms) in value["candles"]) == (kind != "shifted")
        assert differing(exchange, redis_url) == ([] if kind != "shifted" else NAMES[:1])
        assert behind_ms(exchange, redis_url) == 0
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
        assert links(rig) == FeedsByLink(live=0, catching_up=0, blind=len(NAMES))
        assert differing(exchange, redis_url) == []
        assert behind_ms(exchange, redis_url) == 0
        said = [message for message in caplog.messages if "streams unreachable" in message]
        assert said == ["streams unreachable, polling as without LIVE, will retry"]
        exchange.streams.faults.clear()
        eventually(lambda: all_live(rig), 60)
        eventually(lambda: "streams reachable again" in caplog.messages)
        exchange.streams.faults.always("refused")
        exchange.streams.cut()
        eventually(lambda: links(rig).blind == len(NAMES), 2)
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
    """What is streamed meanwhile is in Redis when that is back; what they keep fresh stays so."""
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
        assert links(rig).live == len(NAMES)


def test_a_redis_that_is_emptied_or_evicts_is_filled_again(exchange, tmp_path):
    """What streams keep fresh is found missing, too; the cause is named, and all is there when it is over."""
    with own_server(tmp_path) as (server, client), living(exchange, url_of(server)) as rig:
        eventually(lambda: all_live(rig))
        client.flushall()
        closes_pass(exchange, 1)
        eventually(lambda: len(client.keys("tet:kline:*")) == len(NAMES))
        assert differing(exchange, url_of(server)) == []
        assert rig.store.notices.texts == []
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 400_000)
        eventually(lambda: rig.service.writer.losses.evicting)
        eventually(lambda: any("Redis evicts" in text for text in rig.service.status.health().reasons))
        client.config_set("maxmemory", 0)
        eventually(lambda: not rig.service.writer.losses.evicting)
        eventually(lambda: len(client.keys("tet:kline:*")) == len(NAMES))
        closes_pass(exchange, 1)
        assert differing(exchange, url_of(server)) == []
        assert behind_ms(exchange, url_of(server)) == 0
        assert links(rig).live == len(NAMES)


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
        assert rig.service.status.snapshot().candles_corrected == 1
    (said,) = [record.facts for record in caplog.records if record.message == "candle corrected by binance"]
    assert said["feed"] == "P00/USDT 1m"
    assert '"close":"77777.5"' in said["sent"]
    assert '"close"' in said["held"] != said["sent"]


def test_a_wrong_close_is_corrected_within_a_minute(slower_exchange, redis_url, caplog):
    """Long before the regular proof: each close is proven, spread, and never while REST may lag."""
    exchange = slower_exchange
    exchange.close_lag_seconds = 8
    with living(exchange, redis_url, SPEED / 3, UPDATE_INTERVAL=600, MAX_DATA_AGE=3000) as rig:
        eventually(lambda: all_live(rig))
        exchange.streams.faults.always("wrong_close", match=lambda name: name.startswith("p02"))
        closes_pass(exchange, 1)
        exchange.streams.faults.clear()
        exchange.clear()
        border_ms = exchange.clock.now_ms() // 60_000 * 60_000
        assert differing(exchange, redis_url) == ["P02/USDT"]
        eventually(partial(is_past, exchange, border_ms + 54_500))
        status = rig.service.status.snapshot()
        assert differing(exchange, redis_url) == []
        asked = [request.at_ms % 60_000 for request in exchange.asked("klines")]
        assert min(asked) >= 15_000
        assert max(asked) - min(asked) > 20_000, "spread over the minute"
        assert len(asked) >= len(NAMES)
        assert status.stream_closes_proven_share == 1
        assert status.stream_closes_proven == status.stream_closes
        assert status.oldest_unproven_close is None
    said = [record.facts for record in caplog.records if record.message == "candle corrected by binance"]
    assert {each["feed"] for each in said} == {"P02/USDT 1m"}


@pytest.mark.parametrize("why", ["paused", "off"])
def test_no_proof_is_asked_for_while_it_may_not(exchange, redis_url, why):
    """While the exchange has us wait, or without weight for it; the status says since when."""
    given = {"UPDATE_INTERVAL": 600, "MAX_DATA_AGE": 3000, "PROOF_WEIGHT_SHARE": 0 if why == "off" else 0.1}
    with living(exchange, redis_url, **given) as rig:
        eventually(lambda: all_live(rig))
        closes_pass(exchange, 1)
        if why == "paused":
            rig.binance.gate.pause(3600, "a test")
        exchange.clear()
        closes_pass(exchange, 2)
        assert exchange.asked("klines") == []
        status = rig.service.status.snapshot()
        assert status.stream_closes_proven_share < 1
        assert parse_iso_time(status.oldest_unproven_close) < exchange.clock.now_ms() - 60_000


def test_names_that_are_not_ascii_are_served(redis_url):
    """A SUBSCRIBE is counted in bytes, as it is sent; the exchange reads no longer one than 4,095."""
    names = [f"币安人生全都{number:02d}/USDT" for number in range(30)]
    clock = SimulatedClock(START_MS, speed=SPEED)
    with SimulatedBinance(market=Market.random_walk(names), clock=clock) as exchange:
        given = {"SYMBOLS": ",".join(names), "TIMEFRAME": "1m,3m,5m", "API_REQUESTS_PER_SEC": 100}
        with living(exchange, redis_url, **given) as rig:
            eventually(lambda: all_live(rig), 40)
            received = [each for connection in exchange.streams.connections for each in connection.received]
            sent = [each.text.encode() for each in received if each.kind == "text"]
            assert max(map(len, sent)) <= 4000
            assert not any(b"\\u" in each for each in sent)
            assert rig.service.live.figures().subscribed_again == 0


@pytest.mark.parametrize(
    ("kind", "times"), [("ignored", 2), ("rejected", 1), ("unserved", 1), ("unserved", 3)]
)
def test_streams_that_never_spoke_are_subscribed_to_again(exchange, redis_url, kind, times):
    """Whatever is wrong with one name, the others are served, and it, too, when that passes."""
    exchange.streams.faults.add(kind, match=lambda name: name.startswith("p04usdt@"), times=times)
    with living(exchange, redis_url) as rig:
        eventually(lambda: all_live(rig), 40)
        figures = rig.service.live.figures()
        assert figures.silent == 0
        assert kind == "rejected" or figures.subscribed_again
        assert figures.reconnects == {}


@pytest.mark.parametrize("kind", ["ignored", "rejected", "unserved", "misnamed"])
def test_a_stream_that_is_never_served_is_polled_alone(exchange, redis_url, kind):
    """The status names it, its candles are the exchange's, and all others are live."""
    exchange.streams.faults.always(kind, match=lambda name: name.startswith("p04usdt@"))
    with living(exchange, redis_url) as rig:
        eventually(lambda: links(rig).live == len(NAMES) - 1, 60)
        closes_pass(exchange, 2)
        figures = rig.service.live.figures()
        assert figures.feeds.live == len(NAMES) - 1
        assert figures.blind == ["P04/USDT 1m"]
        assert figures.silent == 1
        assert figures.refused == (kind == "rejected")
        assert differing(exchange, redis_url) == []


def test_a_newer_value_of_another_instance_is_gone_on_from(exchange, redis_url, reader):
    """Its candles count once REST has repeated them: at once, not with the next proof."""
    with living(exchange, redis_url) as rig:
        eventually(lambda: all_live(rig))
        feed = next(feed for feed in rig.feeds if feed.pair.base == "P00")

        def taken_up():
            later = tet.iso_time(exchange.clock.now_ms() + 50_000)  # in a second by this clock it is old
            value = reader.get("tet:kline:1m:P00_USDT")
            value = re.sub('"last_update":"[^"]+"', f'"last_update":"{later}"', value)
            reader.set("tet:kline:1m:P00_USDT", value)
            return any(feed.provenance is Provenance.RESTORED or time.sleep(0.01) for _ in range(100))

        eventually(taken_up)
        eventually(lambda: feed.provenance is Provenance.CONFIRMED and all_live(rig), 5)
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
            shares = [{stream_of(feed) for feed in rig.feeds} for rig in (one, two)]
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
    with living(exchange, redis_url, UPDATE_INTERVAL=600, PROOF_WEIGHT_SHARE=0) as rig:
        eventually(lambda: all_live(rig))
        closes_pass(exchange, 1)
        due, held = rig.service.updates.due_in_seconds, threading.Event()

        def held_up():
            if not held.is_set() and exchange.clock.now_ms() % 60_000 > 58_000:
                eventually(partial(is_past, exchange, exchange.clock.now_ms() // 60_000 * 60_000 + 67_000))
                held.set()
            return due()

        rig.service.updates.due_in_seconds = held_up
        exchange.clear()
        assert held.wait(30)
        closes_pass(exchange, 0)
        assert rig.service.live.figures().reconnects == {}
        assert behind_ms(exchange, redis_url) == 0
        assert exchange.asked("klines") == []


def test_an_event_from_the_future_silences_nobody(exchange, redis_url):
    """It is damaged; what comes after it counts."""
    with living(exchange, redis_url) as rig:
        eventually(lambda: all_live(rig))
        feed = rig.feeds[0]
        message = Message(stream_of(feed), exchange.clock.now_ms() + 10**9, (), False, 0)
        rig.service.inbox.deliver(message)
        eventually(lambda: rig.service.counts.messages.counts().get("damaged"))
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
        assert rig.service.live.figures().feeds.blind == len(NAMES)
    said = [message for message in caplog.messages if "stream" in message]
    assert said == ["streams unreachable, polling as without LIVE, will retry"]


def test_symbols_that_leave_and_join_are_followed(exchange, redis_url):
    """By the same connection."""
    listing = exchange.market.symbols["P03USDT"]
    with living(exchange, redis_url) as rig:
        eventually(lambda: all_live(rig))
        for status, count in (("BREAK", len(NAMES) - 1), ("TRADING", len(NAMES))):
            listing.status = status
            rig.service.symbols.due_ms = 0
            eventually(partial(has_feeds, rig, count))
            eventually(lambda: all_live(rig), 40)
        assert len(exchange.streams.attempts) == 1
        assert {name for each in exchange.streams.open_connections for name in each.names} >= set(
            rig.service.live._followed
        )


def test_usd_m_futures_have_streams_of_their_own(exchange, redis_url):
    """With another canary, by /market, four times a second. A night of half of them cuts no connection."""
    for symbol in ("P00USDT", "P01USDT", "P02USDT"):
        listing = exchange.market.symbols[symbol]
        listing.contract, listing.underlying = "TRADIFI_PERPETUAL", "EQUITY"
    exchange.close_session("EQUITY", START_MS + 90_000, START_MS + 3_600_000)
    given = {"BINANCE_MARKET": "usdm", "BINANCE_STREAM_URL": f"{exchange.stream_url}/market"}
    with living(exchange, redis_url, **given) as rig:
        eventually(lambda: all_live(rig))
        closes_pass(exchange, 3)
        assert differing(exchange, redis_url) == []
        status = rig.service.status.snapshot()
        assert status.live.closes_by_stream_share > 0.5
        assert sorted(status.closed_until) == ["P00/USDT 1m", "P01/USDT 1m", "P02/USDT 1m"]
        assert status.failed_symbols == {}
        (connection,) = exchange.streams.connections
        assert "p00usdt@markPrice@1s" in connection.names
        assert len(exchange.streams.attempts) == 1


def test_a_quiet_pair_is_asked_for_before_it_is_stale(exchange, redis_url):
    """Between closes its stream says nothing: what nobody speaks of is looked at."""
    exchange.streams.quiet.update(name.replace("/", "") for name in NAMES)
    with living(exchange, redis_url, TIMEFRAME="3m", MAX_DATA_AGE=80, UPDATE_INTERVAL=80) as rig:
        eventually(lambda: all_live(rig))  # since the close at 12:09, the next one is 180 s later
        oldest = 0.0
        for _ in range(14):
            eventually(partial(is_past, exchange, exchange.clock.now_ms() + 10_000))
            oldest = max(oldest, rig.service.status.snapshot().data_freshness_max)
        assert links(rig).live == len(NAMES)
        assert 30 < oldest < 75


def test_above_the_memory_limit_it_polls(exchange, redis_url, caplog):
    """What is not in memory cannot be followed: it is said, with the setting that helps."""
    with living(exchange, redis_url, MEMORY_LIMIT_MB=50) as rig:
        eventually(lambda: any("polling instead of LIVE" in message for message in caplog.messages))
        closes_pass(exchange, 1)
        assert links(rig).blind == len(NAMES)
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
            eventually(lambda: closed_candle_announced(updates), 30)
            running.process.terminate()
            began = time.monotonic()
            assert running.process.wait(10) == 0
            assert time.monotonic() - began < 5
    for name in ("P00_USDT", "P01_USDT"):
        value = stored(reader, f"1m:{name}")
        truth = expected_candles(
            before_a_close, name.replace("_", ""), "1m", parse_iso_time(value["data_start"])
        )
        closed = {at: each for at, each in value["candles"].items() if at < value["data_end"]}
        assert closed.items() <= truth.items()


def closed_candle_announced(updates):
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
                before_a_close, name.replace("_", ""), "1m", parse_iso_time(value["data_start"])
            )
            closed = {at: each for at, each in value["candles"].items() if at < value["data_end"]}
            assert closed.items() <= truth.items()


def current_value(reader, name, now_ms):
    """The value, if it reaches the last close."""
    value = stored(reader, f"1m:{name}")
    return value if parse_iso_time(value["data_end"]) >= now_ms // 60_000 * 60_000 else None


def test_all_fields_come_by_streams_too(exchange, redis_url, reader):
    """With FIELDS=all a close that was streamed has every number of the exchange's row."""
    with living(exchange, redis_url, FIELDS="all", SYMBOLS=NAMES[0]) as rig:
        eventually(lambda: all_live(rig))
        exchange.faults.always("500")  # from now on there are streams alone
        closes_pass(exchange, 1)
        value = stored(reader, "1m:P00_USDT")
        rows = exchange.klines("P00USDT", "1m", limit=10)
    row = [row for row in rows if tet.iso_time(row[0]) < value["data_end"]][-1]
    candle = value["candles"][tet.iso_time(row[0])]
    assert row[0] + 60_000 > START_MS
    assert [float(text) for text in candle.values()] == [float(row[n]) for n in (1, 2, 3, 4, 5, 7, 8, 9, 10)]
