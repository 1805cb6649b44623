"""The writer and the fetcher between a Redis and an exchange that fail in turns."""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress

import pytest
import redis
from rig import (
    KEY,
    Rig,
    Running,
    another_market,
    eventually,
    expected_candles,
    is_true,
    own_server,
    started,
    stored,
    unused_port,
    url_of,
)
from samples import HOUR

import tet_data_service as tet
from tet_core.times import parse_iso_time
from tet_extras.simulated_binance import SimulatedBinance


def test_a_wrong_password_is_no_silent_redis(exchange, tmp_path):
    """The program's log says that the login is refused and what to check, not that nothing answers."""
    with own_server(tmp_path) as (server, client):
        client.config_set("requirepass", "right-pw-456")
        arguments = (
            "--public",
            "--symbols=BTC/USDT",
            f"--base-url={exchange.url}",
            f"--redis={url_of(server)}",
        )
        with Running(tmp_path, *arguments, REDIS_PASSWORD="wrong-pw-123") as running:
            eventually(lambda: running.says("waiting for redis"))
            log = running.log.read_text()
    assert "refuses the login" in log
    assert "check REDIS_USERNAME and REDIS_PASSWORD" in log
    assert "does not answer" not in log
    assert "pw-" not in log


def test_a_key_that_became_another_programs_while_redis_was_away_is_left_alone(exchange, redis_url, reader):
    """What was ours before is not any more: the update fails, the feed is buffered."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        rig.redis_is_away(0.001)
        reader.delete(KEY)
        reader.rpush(KEY, "precious")
        exchange.clock.advance(HOUR)
        rig.binance.sync_clock()
        rig.service.updates.update(rig.feeds[0])
        assert rig.feeds[0].buffered
    assert reader.lrange(KEY, 0, -1) == ["precious"]


def test_an_outage_at_the_start_of_a_cycle_does_not_silence_the_status(exchange, redis_url, reader):
    """When Redis answers again the status and a pause are written, whatever the workers wait for."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        rig.redis_is_away(0.05)
        rig.binance.gate.pause(3600, "banned")
        rig.service.bulletin.paused()
        assert not reader.exists("tet:system:pause")
        eventually(lambda: not rig.store.retry_seconds)
        rig.service.tell_redis()
        assert json.loads(reader.get("tet:system:status"))["state"] == "paused"
        assert reader.pttl("tet:system:pause") > 3_500_000


def test_what_changes_while_the_status_is_made_makes_it_due_again(exchange, redis_url):
    """A worker's pause is in the status a second later, not after a quarter of a minute."""
    with started(exchange, redis_url) as rig:
        snapshot = rig.service.status.snapshot

        def snapshot_and_a_pause():
            found = snapshot()
            rig.binance.gate.pause(60, "rate limited")
            rig.service.bulletin.paused()
            return found

        rig.service.bulletin.write_status(snapshot_and_a_pause, rig.feeds)
        assert rig.service.bulletin.is_due()


def test_the_main_thread_ticks_while_candles_are_restored(exchange, redis_url):
    """However long it takes to read millions of candles, the service is seen to live."""
    with Rig(exchange, redis_url) as rig:
        load, beats = rig.store.load, []

        def slowly(*place):
            beats.append(rig.service.progress.heartbeat_seconds)
            time.sleep(1.3)
            beats.append(rig.service.progress.heartbeat_seconds)
            return load(*place)

        rig.store.load = slowly
        rig.service.start()
        assert beats[1] > beats[0]


def test_what_was_restored_counts_as_complete_before_it_is_written(exchange, redis_url):
    """A ban right after a restart is no reason to report that candles are missing."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
    with started(exchange, redis_url) as rig:
        assert rig.service.status.snapshot().completeness_min == 1.0


def test_a_flush_replaces_an_older_value_of_the_same_length(exchange, redis_url, reader):
    """Redis that comes back with an old state gets the new one whole: a length proves nothing then."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        truth = reader.get(KEY)
        rig.feeds[0].not_written()
        reader.set(KEY, truth.replace('\\"volume\\":\\"', '\\"volume\\":\\"', 1).replace("2026", "2025", 1))
        assert reader.strlen(KEY) == len(truth)
        rig.service.tell_redis()
        assert not rig.feeds[0].buffered
        assert is_true(exchange, stored(reader))


def test_a_fetch_that_breaks_off_trusts_redis_no_more_than_before(exchange, redis_url, reader, caplog):
    """Candles of another market, contradicted by a first reply, do not get in when the rest fails."""
    with SimulatedBinance(market=another_market(), clock=exchange.clock) as other:
        with started(other, redis_url) as rig:
            rig.refresh()
    with started(exchange, redis_url) as rig:
        asked = len(exchange.asked())
        exchange.faults.add("redirect", times=9, match=lambda params: len(exchange.asked()) > asked)
        rig.refresh()
        assert rig.feeds[0].failure
        exchange.faults.clear()
        rig.refresh()
        assert rig.feeds[0].failure == ""
    value = stored(reader)
    first_ms = parse_iso_time(value["data_start"])
    assert value["candles"] == expected_candles(exchange, "BTCUSDT", "15m", first_ms)
    assert caplog.messages.count("stored candles are of another market, backfilling") == 2


def test_deferred_writes_name_what_they_are(exchange, tmp_path, caplog):
    """An operator who asks for the debug log finds what waits for Redis."""
    caplog.set_level(logging.DEBUG, tet.LOGGER)
    with own_server(tmp_path) as (server, _), started(exchange, url_of(server)) as rig:
        rig.refresh()
        with redis.Redis(port=server.port) as client, suppress(redis.RedisError):
            client.shutdown(nosave=True)
        rig.service.write_status()
    deferred = [record.facts["what"] for record in caplog.records if "deferred" in record.message]
    assert "status" in deferred


def test_an_unreachable_redis_is_in_the_log_in_the_words_of_operators(exchange, caplog):
    """``grep unreachable`` finds it, once."""
    with Rig(exchange, f"redis://127.0.0.1:{unused_port()}") as rig:
        for _ in range(2):
            with pytest.raises(tet.StoreError, match="is Redis running there"):
                rig.store.prepare()
    assert caplog.messages.count("redis unreachable, buffering updates in memory") == 1
