"""The store against real Valkey servers that go away, fill up, refuse, or hold somebody else's data."""

from __future__ import annotations

import json
import logging
import re
import threading

import pytest
from rig import (
    KEY,
    PROGRAM,
    FastClock,
    Rig,
    due_now,
    eventually,
    in_background,
    is_true,
    own_server,
    started,
    stored,
    unused_port,
    url_of,
)
from samples import HOUR, MINUTE

import tet_data_service as tet
from tet_extras.workers import BESIDE

# Redis goes away


def test_a_minute_without_redis_loses_nothing(exchange, tmp_path, caplog):
    """What is fetched meanwhile is kept and written when Redis is back, without waiting for a cycle."""
    caplog.set_level(logging.INFO, tet.LOGGER)
    port = unused_port()
    with own_server(tmp_path, port) as (server, client):
        rig = Rig(exchange, url_of(server), FastClock(20))
        rig.service.start()
        rig.refresh()
    exchange.clock.advance(HOUR)
    rig.refresh()
    assert "does not answer" in rig.feeds[0].failure
    assert "is Redis running there? (REDIS_ADDR)" in rig.feeds[0].failure
    fetched = len(exchange.asked())
    with rig, own_server(tmp_path, port) as (_, client):
        in_background(lambda: rig.service.workers.wait(60))
        eventually(lambda: client.exists(KEY))
        assert len(exchange.asked()) == fetched
        assert stored(client)["last_candle_time"] == "2026-01-15T13:00:00Z"
        assert is_true(exchange, stored(client))
        eventually(lambda: rig.feeds[0].failure == "")
        rig.clock.stop()
    said = [text for text in caplog.messages if text.startswith(("redis", "buffered"))]
    assert said[:3] == [
        "redis unreachable, buffering updates in memory",
        "redis reachable again",
        "buffered updates flushed",
    ]


def test_an_absent_redis_is_not_hammered(exchange, tmp_path):
    """After a failed connection the next attempts wait longer and longer, and calls fail at once."""
    with own_server(tmp_path) as (server, _):
        rig = Rig(exchange, url_of(server))
        rig.service.start()
    with rig:
        waits = []
        for _ in range(4):
            outages = rig.store.outages._away
            rig.store.outages._away = {
                node: kept._replace(retry_at_seconds=0.0) for node, kept in outages.items()
            }
            with pytest.raises(tet.StoreError):
                rig.store.prepare()
            waits.append(rig.store.retry_seconds)
    assert waits == pytest.approx([1, 2, 4, 8], rel=0.1)


def test_a_redis_that_lost_everything_gets_it_again(exchange, redis_url, reader):
    """Restarted empty: the next status notices, and all values are written from memory."""
    with started(exchange, redis_url, FastClock(20), SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        before = stored(reader)["candles"]
        fetched = len(exchange.asked())
        reader.flushall()
        in_background(lambda: rig.service.workers.wait(60))
        eventually(lambda: reader.exists(KEY, "tet:kline:15m:ETH_USDT") == 2)
        rig.clock.stop()
    assert stored(reader)["candles"] == before
    assert len(exchange.asked()) == fetched


# Redis refuses


def test_a_full_redis_keeps_the_old_value_and_gets_the_new_one_later(exchange, tmp_path, caplog):
    """Out of memory is said with what helps; when there is room, the candles fetched meanwhile arrive."""
    caplog.set_level(logging.INFO, tet.LOGGER)
    with own_server(tmp_path) as (server, client), started(exchange, url_of(server), FastClock(20)) as rig:
        rig.refresh()
        before = client.get(KEY)
        client.config_set("maxmemory", "1mb")
        client.config_set("maxmemory-policy", "noeviction")
        exchange.clock.advance(HOUR)
        rig.refresh()
        assert "raise Redis' maxmemory" in rig.feeds[0].failure
        assert client.get(KEY) == before
        client.config_set("maxmemory", "0")
        in_background(lambda: rig.service.workers.wait(60))
        eventually(lambda: client.get(KEY) != before)
        rig.clock.stop()
        assert is_true(exchange, stored(client))
    assert "buffered updates flushed" in caplog.messages


def test_a_replica_is_not_written_and_said_to_be_one(exchange, tmp_path):
    """READONLY names the remedy; when the server is a primary again, the data arrives."""
    with own_server(tmp_path) as (server, client), started(exchange, url_of(server), FastClock(20)) as rig:
        client.replicaof("127.0.0.1", unused_port())
        rig.refresh()
        assert "REDIS_ADDR must name the primary" in rig.feeds[0].failure
        client.replicaof("NO", "ONE")
        rig.refresh()
        assert is_true(exchange, stored(client))


@pytest.mark.parametrize(
    ("password", "remedy"),
    [("wrong-pw-123", "check REDIS_USERNAME and REDIS_PASSWORD"), ("", "set REDIS_PASSWORD")],
)
def test_a_wrong_password_is_named_and_never_shown(exchange, tmp_path, password, remedy):
    """The error names the setting to mend and has no password in it."""
    with own_server(tmp_path) as (server, client):
        client.config_set("requirepass", "right-pw-456")
        given = {"REDIS_PASSWORD": password} if password else {}
        with Rig(exchange, url_of(server), **given) as rig, pytest.raises(tet.StoreError) as raised:
            rig.store.prepare()
    assert remedy in str(raised.value)
    assert "pw-" not in str(raised.value)


def test_the_right_password_lets_in(exchange, tmp_path):
    """REDIS_PASSWORD is used."""
    with own_server(tmp_path) as (server, client):
        client.config_set("requirepass", "right-pw-456")
        with started(exchange, url_of(server), REDIS_PASSWORD="right-pw-456") as rig:
            rig.refresh()
        assert is_true(exchange, stored(client))


def test_a_database_that_does_not_exist_is_said(exchange, redis_url):
    """REDIS_DB beyond what the server has is an error that names it."""
    with Rig(exchange, redis_url, REDIS_DB=4711) as rig, pytest.raises(tet.StoreError, match="REDIS_DB"):
        rig.store.prepare()


def test_the_rights_that_the_docs_give_are_enough(exchange, tmp_path):
    """The line creates a user who may do nothing else, and can run the service."""
    with own_server(tmp_path) as (server, client):
        (line,) = re.findall(r"`(ACL SETUSER [^`]+)`", (PROGRAM.parent / "docs" / "operating.md").read_text())
        client.execute_command(*line.replace("PASSWORD", "tet-pw").split())
        given = {"REDIS_USERNAME": "tet", "REDIS_PASSWORD": "tet-pw"}
        with started(exchange, url_of(server), **given) as rig:
            rig.binance.gate.pause(0.5, "a test")
            rig.service.bulletin.paused()
            rig.refresh()
            assert rig.feeds[0].failure == ""
        assert client.exists(KEY, "tet:timestamp:15m:BTC_USDT", "tet:system:status") == 3
        assert json.loads(client.get("tet:system:status"))["state"] == "stopped"


def test_a_user_without_rights_is_told_which_to_give(exchange, tmp_path):
    """NOPERM names what to allow."""
    with own_server(tmp_path) as (server, client):
        client.acl_setuser("tet", enabled=True, passwords=["+pw"], commands=["-@all", "+ping", "+select"])
        given = {"REDIS_USERNAME": "tet", "REDIS_PASSWORD": "pw"}
        refused = pytest.raises(tet.StoreError, match=r"give this user ~tet:\* &tet:updates")
        with Rig(exchange, url_of(server), **given) as rig, refused:
            rig.store.load(KEY)


# What stands under the keys


@pytest.mark.parametrize("key", [KEY, "tet:timestamp:15m:BTC_USDT"])
def test_another_programs_type_is_never_written_over(exchange, redis_url, reader, key):
    """A list under one of our keys stays, is named, and the other pairs go on; once gone, ours arrives."""
    reader.rpush(key, "precious")
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        failure = json.loads(reader.get("tet:system:status"))["failed_symbols"]["BTC/USDT 15m"]
        assert failure.startswith(f"Redis key {key} holds a list of another program")
        assert reader.lrange(key, 0, -1) == ["precious"]
        assert reader.exists("tet:kline:15m:ETH_USDT")
        reader.rename(key, "elsewhere")
        rig.refresh()
        assert stored(reader)["candle_count"] == 192


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('\\"open\\":\\"', '\\"open\\":\\"-', 1),
        lambda text: "0.5",
        lambda text: "",
        lambda text: text.replace('"candle_count":192', '"candle_count":191'),
    ],
)
def test_a_damaged_value_is_fetched_anew(exchange, redis_url, reader, caplog, damage):
    """What someone else damaged while the service was away is noticed, said, and replaced by the whole."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
    reader.set(KEY, damage(reader.get(KEY)))
    exchange.clear()
    with started(exchange, redis_url) as rig:
        rig.refresh()
    assert "stored value not usable, backfilling" in caplog.messages
    assert [int(request.params["limit"]) for request in exchange.asked()] == [194]
    assert is_true(exchange, stored(reader))


def test_damage_in_mid_run_is_gone_after_the_next_update(exchange, redis_url, reader):
    """The series in memory is what counts."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        reader.set(KEY, "garbage")
        exchange.clear()
        rig.refresh()
    assert is_true(exchange, stored(reader))
    assert len(exchange.asked()) == 1


@pytest.mark.parametrize("key", ["tet:system:status", "tet:system:pause"])
def test_another_programs_system_key_is_left_alone_and_named(exchange, redis_url, reader, caplog, key):
    """The service works without its status or pause key when something else stands there."""
    reader.rpush(key, "precious")
    with started(exchange, redis_url) as rig:
        rig.refresh()
        rig.binance.gate.pause(0.2, "a test")
        rig.service.bulletin.paused()
    assert reader.lrange(key, 0, -1) == ["precious"]
    assert stored(reader)["candle_count"] == 192
    logged = [record.message for record in caplog.records if "another program" in record.message]
    assert logged == [
        f"Redis key {key} holds a list of another program; rename or delete it, or choose another REDIS_DB "
        "or REDIS_PREFIX"
    ]


def test_another_programs_key_that_came_during_an_outage_is_left_alone(exchange, redis_url, reader):
    """What was fetched meanwhile is not written over it."""
    with started(exchange, redis_url) as rig:
        reader.rpush(KEY, "precious")
        due_now(rig.feeds[0])
        rig.redis_is_away(0.001)
        rig.service.updates.update(rig.feeds[0])
        assert rig.feeds[0].error
    assert reader.lrange(KEY, 0, -1) == ["precious"]


def test_a_broken_off_fill_is_not_written_when_redis_was_emptied(exchange, redis_url, reader):
    """Two pages of three are not what a reader shall see, whatever happens to Redis."""
    with started(exchange, redis_url, FastClock(50), DATA_DAYS=30) as rig:
        exchange.faults.add("500", times=3, match=lambda params: int(params["limit"]) < 1000)
        rig.refresh()
        reader.flushall()
        rig.service.workers.wait(40)
        assert not reader.exists(KEY)
        rig.refresh()
    assert stored(reader)["candle_count"] == 2880


def test_redis_is_served_while_the_exchange_has_banned_us(exchange, redis_url, reader):
    """During a pause in mid-cycle, what Redis lost is written again, and the pause is kept again too."""
    with started(exchange, redis_url, FastClock(50)) as rig:
        rig.refresh()
        before = stored(reader)["candles"]
        exchange.faults.retry_after_seconds = 400
        exchange.faults.add("418")
        worker = in_background(rig.refresh)
        eventually(lambda: reader.exists("tet:system:pause"))
        reader.flushall()
        eventually(lambda: reader.exists(KEY, "tet:system:pause") == 2)
        assert stored(reader)["candles"] == before
        rig.clock.stop()
        worker.join()


def test_one_feed_that_cannot_be_written_does_not_hold_up_the_others(exchange, redis_url, reader):
    """After Redis was emptied all that can be written is, whatever stands under one of the keys."""
    with started(exchange, redis_url, FastClock(50), SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        reader.flushall()
        reader.rpush(KEY, "precious")
        in_background(lambda: rig.service.workers.wait(60))
        eventually(lambda: reader.exists("tet:kline:15m:ETH_USDT"))
        rig.clock.stop()
    assert reader.lrange(KEY, 0, -1) == ["precious"]


# Bounds


def test_above_the_memory_limit_candles_are_let_go_and_read_again(exchange, redis_url, reader, caplog):
    """The series live in Redis then; updates go on as before, and it is said once."""
    with started(exchange, redis_url, MEMORY_LIMIT_MB=50) as rig:
        for _ in range(3):
            rig.refresh()
            exchange.clock.advance(10 * MINUTE)
        assert [feed.series for feed in rig.feeds] == [None]
    assert sum("MEMORY_LIMIT_MB" in message for message in caplog.messages) == 1
    assert [int(request.params["limit"]) for request in exchange.asked()] == [194, 8, 7]
    assert stored(reader)["candle_count"] == 192


def test_a_slow_cycle_and_many_failures_are_said(exchange, redis_url, reader, caplog):
    """MAX_UPDATE_TIME and MAX_FAILURE_RATE show in the log and in the status."""
    with started(exchange, redis_url, FastClock(50), MAX_UPDATE_TIME=1) as rig:
        rig.refresh()
        exchange.faults.always("500")
        exchange.latency_seconds = 0.03
        rig.refresh()
        shown = json.loads(reader.get("tet:system:status"))["warnings"]
    assert any("MAX_UPDATE_TIME 1 s" in warning for warning in shown)
    assert any("1 of 1 updates failed, more than MAX_FAILURE_RATE 0.1" in warning for warning in shown)
    assert set(shown) <= set(caplog.messages)


def test_threads_and_connections_stay_bounded(exchange, redis_url):
    """However many cycles run: as many as asked for, and those beside the updates."""
    before = set(threading.enumerate())
    with started(exchange, redis_url, CONCURRENT_REQUESTS=3, SYMBOLS="BTC/USDT,ETH/USDT,DOGE/USDT") as rig:
        rig.binance.gate._bucket.rate = 1e6
        for _ in range(50):
            rig.refresh()
        ours = [thread.name for thread in set(threading.enumerate()) - before]
        ours = [name for name in ours if "process_request_thread" not in name]  # those are the exchange's
        assert len(ours) <= 3 + BESIDE, ours
        assert exchange.connections <= 3 + BESIDE
