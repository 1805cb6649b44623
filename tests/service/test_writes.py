"""The guarded write: what goes over the wire, and what a reader finds whatever happened to the value."""

from __future__ import annotations

import json
import threading

import pytest
import redis
from rig import KEY, Rig, eventually, expected_candles, is_true, own_server, started, stored, url_of
from samples import HOUR, MINUTE, NOON_MS

import tet_data_service as tet
from tet_extras.scripts import sha_of
from tet_extras.simulated_binance import SimulatedClock

TF = tet.TIMEFRAMES["15m"]
STEP = TF.step_ms
START = TF.floor(NOON_MS)
TIMESTAMP_KEY = "tet:timestamp:15m:BTC_USDT"


def later(rig, seconds):
    """Let time pass at the exchange, and update what is due then."""
    rig.exchange.clock.advance(seconds)
    rig.refresh()


def received_bytes(reader):
    """What Redis has received since it was started."""
    return reader.info("stats")["total_net_input_bytes"]


# On the wire


def test_a_refresh_sends_a_patch(exchange, redis_url, reader):
    """1 KB and the status, instead of 400 KB; the value is the exchange's all the same."""
    with started(exchange, redis_url, DATA_DAYS=30) as rig:
        rig.refresh()
        for _ in range(2):
            before = received_bytes(reader)
            later(rig, 3 * MINUTE)
            assert received_bytes(reader) - before < 4_000
            assert is_true(exchange, stored(reader))
            assert stored(reader)["last_update"] == reader.get(TIMESTAMP_KEY)


def test_the_blanks_behind_a_patch_are_no_damage(exchange, redis_url, reader):
    """--status reads on, as every reader of JSON does."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        reader.set(KEY, reader.get(KEY) + " " * 7)
        report = tet.read_report(rig.config, rig.store, NOON_MS)
    assert [(row.state, row.candles) for row in report.rows] == [("fresh", 192)]


def test_a_restarted_service_goes_on_with_patches(exchange, redis_url, reader):
    """What was read back is known byte for byte."""
    with started(exchange, redis_url, DATA_DAYS=30) as rig:
        rig.refresh()
    with started(exchange, redis_url, DATA_DAYS=30) as rig:
        before = received_bytes(reader)
        later(rig, MINUTE)
        assert received_bytes(reader) - before < 4_000
    assert is_true(exchange, stored(reader))


def truth_of(exchange):
    """The candles of the window, as the exchange has them now."""
    first_ms = TF.shift(TF.floor(exchange.clock.now_ms()), -192)
    candles = expected_candles(exchange, "BTCUSDT", "15m", first_ms)
    return dict(list(candles.items())[-192:])


def test_a_reader_never_sees_a_mixture(exchange, redis_url):
    """One that polls as fast as it can, while patches and whole writes alternate."""
    seen, stop = set(), threading.Event()

    def poll():
        with redis.Redis.from_url(redis_url, db=1) as client:
            while not stop.is_set():
                seen.add(client.get(KEY))

    with started(exchange, redis_url) as rig:
        rig.refresh()
        pollers = [threading.Thread(target=poll) for _ in range(2)]
        for poller in pollers:
            poller.start()
        truths = []
        for _ in range(40):
            truths.append(truth_of(exchange))
            later(rig, 5 * MINUTE)
        truths.append(truth_of(exchange))
        stop.set()
        for poller in pollers:
            poller.join()
    assert len(seen) > 5
    for value in seen:
        document = json.loads(value)
        candles = json.loads(document["ohlcv_data"])
        assert len(candles) == document["candle_count"] == 192
        assert list(candles)[-1] == document["last_candle_time"]
        assert candles in truths, "what the exchange had at no time"


HARM = {
    "deleted": lambda client, value: client.delete(KEY),
    "expired": lambda client, value: client.pexpire(KEY, 1),
    "cut": lambda client, value: client.set(KEY, value.rstrip()[:-20]),
    "of the same length": lambda client, value: client.set(KEY, "x" * len(value)),
    "another front of the same length": lambda client, value: client.set(KEY, value[20:] + value[:20]),
    "an older value": lambda client, value: client.set(KEY, value.replace("T12:07:30Z", "T11:07:30Z")),
}


@pytest.mark.parametrize("harm", HARM)
def test_whatever_was_done_to_a_value_the_next_update_writes_it_whole(exchange, redis_url, reader, harm):
    """A patch is for the value it was made for, and for no other."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        HARM[harm](reader, reader.get(KEY))
        eventually(lambda: harm != "expired" or not reader.exists(KEY))
        later(rig, MINUTE)
        assert rig.feeds[0].failure == ""
    assert is_true(exchange, stored(reader))
    assert reader.ttl(KEY) > 86_000


@pytest.mark.parametrize("harm", HARM)
def test_the_same_between_a_fetch_and_its_write(exchange, redis_url, reader, harm):
    """The value changes while the exchange is asked."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        save = rig.store.save

        def save_late(*arguments):
            rig.store.save = save
            HARM[harm](reader, reader.get(KEY))
            eventually(lambda: harm != "expired" or not reader.exists(KEY))
            return save(*arguments)

        rig.store.save = save_late
        later(rig, MINUTE)
        assert rig.feeds[0].failure == ""
    assert is_true(exchange, stored(reader))


@pytest.mark.parametrize("key", [KEY, TIMESTAMP_KEY])
def test_a_list_in_place_of_a_value_is_left_alone(exchange, redis_url, reader, key):
    """It is another program's, whenever it came; neither key is written then."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        reader.delete(key)
        reader.rpush(key, "precious")
        others = reader.get(KEY if key == TIMESTAMP_KEY else TIMESTAMP_KEY)
        later(rig, MINUTE)
        assert f"Redis key {key} holds a list of another program" in rig.feeds[0].failure
        assert isinstance(rig.feeds[0].error, tet.TakenError)
    assert reader.lrange(key, 0, -1) == ["precious"]
    assert reader.get(KEY if key == TIMESTAMP_KEY else TIMESTAMP_KEY) == others
    assert reader.keys("tet:upload:*") == []


# Two instances


def test_an_instance_that_slept_does_not_write_over_a_newer_value(exchange, redis_url, reader, caplog):
    """It takes over what is there, and goes on from it with one request."""
    with started(exchange, redis_url) as slow, started(exchange, redis_url) as quick:
        slow.refresh()
        slow_feed = slow.feeds[0]
        exchange.clock.advance(MINUTE)
        slow.binance.sync_clock()
        began = slow_feed.series
        for page in slow.service.fetcher.pages(slow_feed, began, True):
            slow_feed.fetched(page, page.answer.candles, began, slow.clock.now_ms())
        later(quick, HOUR)
        newer = reader.get(KEY)
        slow.binance.sync_clock()
        caplog.set_level("INFO", tet.LOGGER)
        slow.service.writer.write(slow_feed)
        assert reader.get(KEY) == newer
        assert reader.keys("tet:upload:*") == []
        assert "redis has a newer value, restoring it" in caplog.messages
        assert tet.iso_time(slow_feed.series.opens[-1]) == stored(reader)["last_candle_time"]
        exchange.clear()
        later(slow, MINUTE)
        assert len(exchange.asked("klines")) == 1
    assert is_true(exchange, stored(reader))


def test_what_was_buffered_is_as_old_as_when_it_was_fetched(exchange, redis_url, reader):
    """An instance that was cut off from Redis flushes nothing over what another has written since."""
    with started(exchange, redis_url) as cut_off, started(exchange, redis_url) as other:
        cut_off.refresh()
        cut_off.feeds[0].not_written()
        later(other, HOUR)
        newer = reader.get(KEY)
        cut_off.binance.sync_clock()
        cut_off.service.tell_redis()
        assert reader.get(KEY) == newer
        assert not cut_off.feeds[0].buffered


def test_a_newer_value_that_cannot_be_restored_leaves_it_buffered(exchange, redis_url, reader):
    """Redis goes away between its refusal and the look at what it has: nothing counts as done."""
    with started(exchange, redis_url) as slow, started(exchange, redis_url) as fast:
        slow.refresh()
        feed, load, loaded = slow.feeds[0], slow.store.load, []
        later(fast, HOUR)
        newer = reader.get(KEY)

        def load_once(*keys):
            loaded.append(keys)
            if len(loaded) == 2:  # the first one compares
                raise tet.StoreError("Redis is away")
            return load(*keys)

        slow.store.load = load_once
        slow.binance.sync_clock()
        with pytest.raises(tet.StoreError, match="away"):
            slow.service.writer.write(feed)
        assert feed.buffered
        assert slow.service.writer.write(feed)
        assert reader.get(KEY) == newer
        assert feed.series.opens[-1] == fast.feeds[0].series.opens[-1]


def test_what_is_flushed_has_the_time_of_its_fetch(exchange, redis_url, reader):
    """However much later Redis takes it."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        rig.feeds[0].not_written()
        exchange.clock.advance(HOUR)
        rig.binance.sync_clock()
        rig.service.tell_redis()
    assert stored(reader)["last_update"] == reader.get(TIMESTAMP_KEY) == "2026-01-15T12:07:30Z"


@pytest.mark.parametrize(("ahead_seconds", "believed"), [(30, True), (90, False)])
def test_a_time_from_the_future_blocks_no_pair(exchange, redis_url, reader, ahead_seconds, believed):
    """More than a minute ahead of the exchange somebody's clock was wrong."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        future = tet.iso_time(NOON_MS + 1000 + ahead_seconds * 1000)
        reader.set(KEY, reader.get(KEY).replace("2026-01-15T12:07:30Z", future))
        later(rig, 1)
        assert (stored(reader)["last_update"] == future) is believed
        assert rig.feeds[0].failure == ""
        later(rig, 2 * MINUTE)
        assert stored(reader)["last_update"] == tet.iso_time(exchange.clock.now_ms())


def test_another_timeframe_or_a_damaged_value_is_not_newer(exchange, redis_url, reader):
    """Whatever time stands in it."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        future = tet.iso_time(NOON_MS + 30_000)
        reader.set(KEY, reader.get(KEY).replace("2026-01-15T12:07:30Z", future).replace('"15m"', '"1h"'))
        later(rig, 1)
        assert stored(reader)["timeframe"] == "15m"
        reader.set(KEY, reader.get(KEY).replace("2026-01-15T12:07:31Z", future).rstrip()[:-3])
        later(rig, 1)
    assert is_true(exchange, stored(reader))


# The server


def test_a_server_that_forgot_the_script_is_given_it_again(exchange, redis_url, reader):
    """SCRIPT FLUSH while running."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        for forget in (lambda: None, rig.feeds[0].not_written, rig.service.write_status):
            reader.script_flush()
            forget()
            later(rig, MINUTE)
            assert rig.feeds[0].failure == ""
    assert stored(reader)["last_update"] == "2026-01-15T12:10:30Z"
    assert reader.exists("tet:system:status")


def test_a_refusal_of_redis_is_told_without_the_value(exchange, tmp_path):
    """Full: the reason begins with Redis' own words."""
    with own_server(tmp_path) as (server, client), started(exchange, url_of(server)) as rig:
        client.config_set("maxmemory", "1mb")
        rig.refresh()
        assert rig.feeds[0].failure.startswith("Redis refuses: command not allowed when used memory")
        assert not client.exists(KEY)


def test_an_upload_that_did_not_arrive_changes_nothing(exchange, redis_url, reader):
    """Redis took the script, and not the value before it: full, or evicting."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        before = reader.get(KEY)
        with redis.Redis.from_url(redis_url, db=1) as client:
            whole = ["", "", "", "", "", "", 1000]
            answer = client.evalsha(sha_of(tet.WRITE_SCRIPT), 2, KEY, "tet:upload:none", *whole)
        assert answer == [b"lost"]
        assert reader.get(KEY) == before
        assert reader.ttl(KEY) > 86_000


def test_a_server_that_was_restarted_is_written_whole(exchange, tmp_path):
    """Empty, without the script, or with an older copy after a failover."""
    with own_server(tmp_path) as (server, client), started(exchange, url_of(server)) as rig:
        rig.refresh()
        older = client.get(KEY)
        later(rig, MINUTE)
        client.flushall()
        client.script_flush()
        client.set(KEY, older)
        later(rig, MINUTE)
        assert is_true(exchange, stored(client))
        assert client.ttl(KEY) > 86_000


def test_a_server_that_runs_no_scripts_is_an_error_at_the_start(exchange, tmp_path):
    """It names what is missing."""
    with own_server(tmp_path) as (server, client):
        commands = ["+@all", "-@scripting"]
        client.acl_setuser("tet", enabled=True, passwords=["+pw"], commands=commands, keys=["*"])
        given = {"REDIS_USERNAME": "tet", "REDIS_PASSWORD": "pw"}
        with Rig(exchange, url_of(server), **given) as rig:
            with pytest.raises(tet.StoreError, match=r"give this user .* \+evalsha \+script\|load"):
                rig.store.prepare()


def test_the_append_only_file_grows_by_the_patch(exchange, tmp_path):
    """3 KB a refresh at the most, of a value of 400 KB."""
    exchange.clock = SimulatedClock(NOON_MS)
    exchange.clock.freeze()
    with own_server(tmp_path) as (server, client), started(exchange, url_of(server), DATA_DAYS=30) as rig:
        client.config_set("appendonly", "yes")
        rig.refresh()
        eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
        before = client.info("persistence")["aof_current_size"]
        for _ in range(2):
            exchange.clock.advance(MINUTE)
            rig.binance.sync_clock()
            rig.service.updates.update(rig.feeds[0])
        assert 500 < client.info("persistence")["aof_current_size"] - before < 6_000
