"""The window slides in place: what a close costs, what its announcement says, and what ends a slide."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import redis
from rig import (
    KEY,
    eventually,
    expected_candles,
    is_true,
    own_server,
    received,
    redis_server,
    run_program,
    started,
    stored,
    unused_port,
    url_of,
)
from samples import DAY, MINUTE, NOON_MS

import tet_data_service as tet
from tet_core import stored as stored_value
from tet_core.times import parse_iso_time
from tet_extras import memory_store
from tet_extras.pipelines import Queues
from tet_extras.scripts import PATCH_SCRIPT, sha_of
from tet_extras.simulated_binance import Market

STEP = 15 * MINUTE
OHLCV = ("open", "high", "low", "close", "volume")


class Follower:
    """A reader that reads a value only when an announcement says no more, and applies all others."""

    def __init__(self, client, key=KEY):
        self._client, self._key = client, key
        self._channel = client.pubsub(ignore_subscribe_messages=True)
        self._channel.subscribe("tet:updates")
        self._channel.get_message(timeout=5)
        self.fields, self.candles, self.reads, self.heard = {}, {}, 0, []

    def hear(self):
        """Apply what has been announced; one that does not follow what is held is an error."""
        while message := self._channel.get_message(timeout=0.2):
            self.apply(json.loads(message["data"]))

    def apply(self, news):
        """Apply one announcement."""
        self.heard.append(news)
        if "follows" not in news:
            assert "candles" not in news
            self.reads += 1
            self.fields = json.loads(self._client.get(self._key))
            self.candles = json.loads(self.fields.pop("ohlcv_data"))
            return
        assert news["follows"] == self.fields["last_update"]
        self.candles |= {at: dict(zip(OHLCV, values, strict=True)) for at, *values in news["candles"]}
        self.candles = {at: each for at, each in self.candles.items() if at >= news["data_start"]}
        self.fields = {name: news[name] for name in self.fields}

    def is_right(self):
        """Whether that gave what Redis has, to the order of candles and fields."""
        value = json.loads(self._client.get(self._key))
        candles = json.loads(value.pop("ohlcv_data"))
        return (list(candles.items()), value) == (list(self.candles.items()), self.fields)


def slide(rig, seconds=STEP):
    """Let time pass at the exchange, and update."""
    rig.exchange.clock.advance(seconds)
    rig.refresh()


def renames(client):
    """How many whole values, and other texts, Redis has taken."""
    return client.info("commandstats").get("cmdstat_rename", {"calls": 0})["calls"]


def laid_anew(rig):
    """A list that has of each patch whether it lays the value out anew."""
    patch, anew = rig.store.patch, []
    rig.store.patch = lambda *arguments: anew.append(arguments[1].blanks >= 0) or patch(*arguments)
    return anew


def writing_whole(rig):
    """A list that grows with each value that is written whole."""
    save, whole = rig.store.save, []
    rig.store.save = lambda *arguments: whole.append(arguments) or save(*arguments)
    return whole


@contextmanager
def server(kind, tmp_path):
    """A server of that kind: its address, and a client."""
    if kind == "valkey":
        with own_server(tmp_path) as (running, client):
            yield url_of(running), client
    elif kind == "redis":
        with redis_server(tmp_path) as (port, client):
            yield f"redis://127.0.0.1:{port}", client
    else:
        if not memory_store.is_available():
            pytest.skip("no fakeredis with lupa")
        running = memory_store.MemoryStore(tmp_path, lambda *said, **facts: None, [unused_port()])
        running.start()
        with redis.Redis(port=running.port, db=1, decode_responses=True) as client:
            yield f"redis://127.0.0.1:{running.port}", client
        running.stop()


@pytest.mark.parametrize("kind", ["valkey", "redis", "memory"])
def test_a_close_sends_what_changed(exchange, tmp_path, kind):
    """2 kB on the wire and no more memory, of a value of 400 kB; a follower needs no read."""
    with server(kind, tmp_path) as (url, client), started(exchange, url, DATA_DAYS=30) as rig:
        follower = Follower(client)
        rig.refresh()
        follower.hear()
        whole, length, has_figures = writing_whole(rig), client.strlen(KEY), kind != "memory"
        if has_figures:
            held = client.memory_usage(KEY)
            client.config_resetstat()
        for _ in range(4):
            slide(rig)
        follower.hear()
        assert follower.is_right()
        assert is_true(exchange, stored(client))
        assert client.get(KEY).startswith('{"ohlcv_data":"{    ')
        assert (len(whole), follower.reads, client.strlen(KEY)) == (0, 1, length)
        assert sum(news["candle_closed"] for news in follower.heard) == 4
        if has_figures:
            calls = client.info("commandstats")["cmdstat_setrange"]["calls"]
            statuses, sent = renames(client), received(client)
            assert 12 <= calls <= 2 * len(follower.heard) + 4
            assert sent < 2_000 * (len(follower.heard) - 1) + 4_000 * statuses
            assert client.memory_usage(KEY) == held <= 1.15 * length


def ever_later(rig, kind):
    """Months are of different lengths."""
    slide(rig, 31 * DAY if kind == "months" else STEP)


CASES: dict[str, tuple[dict[str, Any], Callable[[Market], object]]] = {
    "plain": ({}, lambda market: None),
    "younger than the window": (
        {},
        lambda market: setattr(market.symbols["BTCUSDT"], "listed_ms", NOON_MS - 30 * STEP * 1000),
    ),
    "gaps at the front": (
        {},
        lambda market: market.symbols["BTCUSDT"].halts.extend(
            (NOON_MS - number * STEP * 1000, NOON_MS - (number - 2) * STEP * 1000)
            for number in (170, 180, 185, 188)
        ),
    ),
    "closed only": ({"CLOSED_ONLY": "true"}, lambda market: None),
    "months": ({"TIMEFRAME": "1M", "DATA_DAYS": 1500}, lambda market: None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_window_slides_until_the_blanks_are_used_up_and_on(exchange, redis_url, reader, case):
    """Then the server lays the value out anew: no candle crosses the network, no follower reads."""
    given, prepare = CASES[case]
    prepare(exchange.market)
    timeframe = given.get("TIMEFRAME", "15m")
    key = f"tet:kline:{timeframe}:BTC_USDT"
    with started(exchange, redis_url, **given) as rig:
        follower = Follower(reader, key)
        rig.refresh()
        follower.hear()
        whole, anew = writing_whole(rig), laid_anew(rig)
        for _ in range(26):
            ever_later(rig, case)
        follower.hear()
        value = stored(reader, key.removeprefix("tet:kline:"))
        truth = expected_candles(exchange, "BTCUSDT", timeframe, parse_iso_time(value["data_start"]))
        if case == "closed only":
            truth = {at: truth[at] for at in truth if at < value["data_end"]}
        assert value["candles"] == truth
        assert follower.is_right()
        assert (len(whole), follower.reads) == (0, 1)
        assert 1 <= sum(anew) <= 5
        assert len([news for news in follower.heard if news["candle_closed"]]) >= 25


def test_several_candles_leave_at_once_after_a_pause(exchange, redis_url, reader):
    """Ten in one patch, and again after a restart from what Redis has."""
    for _ in range(2):
        with started(exchange, redis_url) as rig:
            rig.refresh()
            follower, whole = Follower(reader), writing_whole(rig)
            follower.apply({})
            slide(rig, 10 * STEP)
            follower.hear()
            assert follower.is_right()
            assert len(follower.heard[1]["candles"]) == 11
            assert whole == []
        assert is_true(exchange, stored(reader))


def test_a_candle_corrected_in_the_middle_is_written_whole_and_announced_so(exchange, redis_url, reader):
    """A follower reads then; the next close slides again."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        follower = Follower(reader)
        follower.apply({})
        old_ms = tet.TIMEFRAMES["15m"].floor(NOON_MS) - 100 * STEP * 1000
        exchange.market.correct("BTCUSDT", "15m", old_ms, "77777.5")
        for _ in range(2):
            rig.service.audit.step(rig.feeds)
        follower.hear()
        assert follower.is_right()
        assert follower.reads == 2
        slide(rig)
        follower.hear()
        assert follower.is_right()
        assert follower.reads == 2
    assert is_true(exchange, stored(reader))


def test_an_announcement_is_as_the_api_tells_candles(exchange, redis_url, reader):
    """All that a value says of itself, what it follows, and rows of text as in /api/candles."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        before = stored(reader)
        follower = Follower(reader)
        follower.apply({})
        slide(rig)
        follower.hear()
        value = stored(reader)
        news = follower.heard[1]
        image = rig.feeds[0].image
    assert news == {
        "symbol": "BTC/USDT",
        "candle_closed": True,
        **{name: value[name] for name in value if name not in ("ohlcv_data", "candles")},
        "follows": before["last_update"],
        "candles": [[at, *value["candles"][at].values()] for at in list(value["candles"])[-2:]],
    }
    from tet_extras.web.answers import candle_rows

    assert news["candles"] == candle_rows(image, 2, closed=False)


def test_two_writes_in_a_second_are_two_steps_or_one(exchange, redis_url, reader):
    """Who has missed the first of them cannot know: the second one says what both have changed."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        followers = Follower(reader), Follower(reader)
        for follower in followers:
            follower.apply({})
        slide(rig)
        for number, close in ((1, "101.5"), (0, "102.5")):  # the older candle second
            slide(rig, 0)
            opens = exchange.clock.now_ms() // (STEP * 1000) * STEP * 1000 - number * STEP * 1000
            exchange.market.correct("BTCUSDT", "15m", opens, close)
        slide(rig, 0)
        slide(rig, 1)
        followers[0].hear()
        heard = followers[0].heard[1:]
        assert [news["last_update"] for news in heard].count(heard[0]["last_update"]) >= 3
        missed = next(n for n, news in enumerate(heard) if "101.5" in str(news["candles"]))
        for news in heard[:missed] + heard[missed + 1 :]:
            followers[1].apply(news)
        assert followers[0].is_right()
        assert followers[1].is_right()


# What ends a slide


def test_a_value_of_the_release_before_is_read_back_and_given_blanks(exchange, redis_url, reader):
    """Without a backfill, and without sending it."""
    with started(exchange, redis_url, DATA_DAYS=30) as rig:
        rig.refresh()
        reader.set(KEY, re.sub("[ \\t]+", "", reader.get(KEY)))
    with started(exchange, redis_url, DATA_DAYS=30) as rig:
        whole, asked, length = writing_whole(rig), len(exchange.asked("klines")), reader.strlen(KEY)
        slide(rig)
        assert len(exchange.asked("klines")) == asked + 1
        assert whole == []
        assert reader.strlen(KEY) > length + 10_000
        slide(rig)
        assert reader.get(KEY).startswith('{"ohlcv_data":"{    ')
    assert is_true(exchange, stored(reader))


@pytest.mark.parametrize("room_share", [2, 10**6])
def test_another_process_goes_on_from_a_value_with_other_blanks(
    exchange, redis_url, reader, monkeypatch, room_share
):
    """More or fewer than it would lay out: it slides within those. Who wrote it first finds that out."""
    program = ("--public", f"--base-url={exchange.url}", f"--redis={redis_url}", "--symbols=BTC/USDT")
    with started(exchange, redis_url, DATA_DAYS=2) as rig:
        with monkeypatch.context() as patched:
            patched.setattr(stored_value, "ROOM_SHARE", room_share)
            rig.refresh()
        length, behind = reader.strlen(KEY), blanks_behind(reader)
        whole = writing_whole(rig)
        for number in range(1, 4):
            exchange.clock.advance(STEP)
            done = run_program(*program, "--days=2", "--once")
            assert done.returncode == 0, done.stderr
            assert "restored=1" in done.stderr
            assert is_true(exchange, stored(reader))
            assert re.match(r'\{"ohlcv_data":"\{ {100}', reader.get(KEY)), "the front has slid"
            assert reader.strlen(KEY) == length
            assert blanks_behind(reader) < behind, number
        slide(rig)
        assert len(whole) == 1, "in memory it had what was there four closes ago"
        assert is_true(exchange, stored(reader))
        slide(rig)
        assert len(whole) == 1
    assert is_true(exchange, stored(reader))


def blanks_behind(client):
    """How many blanks there are behind the candles."""
    return len(re.search(r'( *)",[ \t]*"last_candle_time', client.get(KEY))[1])


DAMAGE = {
    "a digit": lambda value: re.sub(r'(?s)^(.{9000}.*?volume\\":\\"\d)\d', r"\g<1>7", value, count=1),
    "a blank": lambda value: re.sub(r'  (",\s+"last_candle)', r"x \1", value),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_in_the_middle_is_found_by_the_digest(exchange, redis_url, reader, damage):
    """Patches go on, as they do not look there; once in AUDIT_HOURS, as it is now, all is compared."""

    def is_sound():
        return "x" not in reader.get(KEY) and is_true(exchange, stored(reader))

    with started(exchange, redis_url, AUDIT_HOURS=0) as rig:
        rig.refresh()
        slide(rig)
        rig.config.config = replace(rig.config.config, audit_hours=2)  # as after SIGHUP
        value = reader.get(KEY)
        harmed = DAMAGE[damage](value)
        assert harmed != value
        assert len(harmed) == len(value)
        reader.set(KEY, harmed)
        slide(rig)
        assert not is_sound()
        for _ in range(8):
            slide(rig)
        assert is_sound()
        whole = writing_whole(rig)
        for _ in range(9):
            slide(rig)
        assert whole == [], "what was compared and is sound is not sent"


def test_an_older_copy_after_a_failover_is_not_slid(exchange, redis_url, reader):
    """Nor after SCRIPT FLUSH is anything written twice."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        older = reader.get(KEY)
        slide(rig)
        reader.script_flush()
        reader.set(KEY, older)
        whole = writing_whole(rig)
        slide(rig)
        assert len(whole) == 1
        assert is_true(exchange, stored(reader))
        reader.script_flush()
        slide(rig)
        assert len(whole) == 1
    assert is_true(exchange, stored(reader))
    assert reader.ttl(KEY) > 86_000


def test_two_instances_take_turns_at_one_value(exchange, redis_url, reader):
    """Each finds that the other was there; neither sends what the other has, nor writes over it."""
    with started(exchange, redis_url) as one, started(exchange, redis_url) as other:
        for rig in (one, other):
            rig.refresh()
        for rig in (one, other, other, one):
            slide(rig, STEP + 1)
            assert is_true(exchange, stored(reader))
            assert rig.feeds[0].failure == ""


def test_the_whole_is_compared_by_the_server_and_written_to_nobody(exchange, tmp_path):
    """A patch of another value changes nothing, whatever of it is wrong."""
    with own_server(tmp_path) as (running, client), started(exchange, url_of(running)) as rig:
        rig.refresh()
        feed, before = rig.feeds[0], client.get(KEY)
        exchange.clock.advance(STEP)
        run, sent = rig.store.run, []
        rig.store.run = lambda write: sent.append(write) or run(write)
        rig.refresh()
        script, keys, arguments, _ = next(write for write in sent if write[0] == PATCH_SCRIPT)
        assert feed.failure == ""
        with redis.Redis(port=running.port, db=1) as raw:
            for place, wrong, more in ((0, "0" * 40, ""), (1, "0" * 40, ""), (1, "", " ")):
                raw.set(KEY, before + more)
                tried = [*arguments[:place], wrong, *arguments[place + 1 :]]
                assert raw.evalsha(sha_of(script), len(keys), *keys, *tried) == [b"whole"]
                assert client.get(KEY) == before + more
            raw.delete(KEY)
            assert raw.evalsha(sha_of(script), len(keys), *keys, *arguments) == [b"gone"]
            raw.set(KEY, before)
            assert raw.evalsha(sha_of(script), len(keys), *keys, *arguments) == [b"written"]
            assert eventually(lambda: is_true(exchange, stored(client)))


def test_status_shows_the_last_price_behind_any_blanks(exchange, redis_url, reader):
    """Of a value that has just been laid out, and of one that has slid."""
    with started(exchange, redis_url, DATA_DAYS=30) as rig:
        for _ in range(2):
            slide(rig)
            report = tet.read_report(rig.config, rig.store, exchange.clock.now_ms())
            newest = list(stored(reader)["candles"].values())[-1]
            assert [(row.state, row.last_price) for row in report.rows] == [("fresh", newest["close"])]


# Many closes at once


def close_all(exchange, rigs):
    """Let a candle of each feed close, as it is streamed."""
    exchange.clock.advance(STEP)
    for rig in rigs:
        rig.binance.sync_clock()
        for feed in rig.feeds:
            symbol = feed.pair.symbol
            first_ms = feed.series.closed_end_ms
            candles = dict(rig.service.fetcher.window(feed, first_ms, first_ms))
            assert feed.streamed(candles[first_ms].candles, True, rig.clock.now_ms()), symbol


def test_closes_of_the_same_moment_share_a_round_trip(exchange, redis_url, reader):
    """Also after SCRIPT FLUSH; what is not as it was is written on its own, and alone fails alone."""
    given = {"SYMBOLS": "BTC/USDT,ETH/USDT,DOGE/USDT"}
    keys = [f"tet:kline:15m:{name}_USDT" for name in ("BTC", "ETH", "DOGE")]
    with started(exchange, redis_url, **given) as rig:
        rig.refresh()
        writer, sent = rig.service.writer, []
        ask = rig.store._ask
        rig.store._ask = lambda *words, **more: sent.append(words) or ask(*words, **more)
        assert len({writer.route(feed) for feed in rig.feeds}) == 1
        for harm in (lambda: None, reader.script_flush):
            close_all(exchange, [rig])
            harm()
            writer.write_all(rig.feeds)
            assert sent == [], "but together"
            ends = {stored(reader, key.removeprefix("tet:kline:"))["data_end"] for key in keys}
            assert ends == {tet.iso_time(exchange.clock.now_ms() // 900_000 * 900_000)}
            assert [feed.failure for feed in rig.feeds] == [""] * 3
        close_all(exchange, [rig])
        reader.delete(keys[0], keys[1])
        reader.rpush(keys[1], "precious")
        writer.write_all(rig.feeds)
        assert [bool(feed.failure) for feed in rig.feeds] == [False, True, False]
        assert reader.lrange(keys[1], 0, -1) == ["precious"]
        for key, symbol in ((keys[0], "BTCUSDT"), (keys[2], "DOGEUSDT")):
            value = stored(reader, key.removeprefix("tet:kline:"))
            first_ms = parse_iso_time(value["data_start"])
            truth = expected_candles(exchange, symbol, "15m", first_ms)
            assert value["candles"] == {at: truth[at] for at in value["candles"]}
            assert value["data_end"] == tet.iso_time(exchange.clock.now_ms() // 900_000 * 900_000)


def test_a_slow_route_delays_itself_alone():
    """While all threads of one wait, another one's are free; what waits meanwhile goes at once."""
    gate, written = threading.Event(), []

    def write(batch):
        if batch[0].startswith("slow"):
            gate.wait(20)
        written.append(batch)

    queues = Queues(write)
    for number in range(100):
        queues.add("slow", f"slow{number}")
    for number in range(10):
        queues.add("quick", f"quick{number}")
    eventually(lambda: sum(map(len, written)) == 10)
    gate.set()
    eventually(lambda: sum(map(len, written)) == 110)
    queues.stop()
    assert max(map(len, written)) == 64
    assert len(written) < 18
