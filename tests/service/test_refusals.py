"""A Redis that takes a value and drops it again, or lets its user write and not announce."""

from __future__ import annotations

import json
import re
import threading

import pytest
from rig import (
    KEY,
    FastClock,
    eventually,
    in_background,
    is_true,
    own_server,
    received,
    redis_server,
    run_program,
    started,
    stored,
    url_of,
)
from samples import MINUTE

from tet_core.errors import RightsError
from tet_extras import losses

MB = 1_000_000
THREE = "BTC/USDT,ETH/USDT,DOGE/USDT"
EVICTING = ("allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl")


def tighten(client, megabytes, policy):
    """Leave so much memory beyond what is used now."""
    client.config_set("maxmemory", client.info("memory")["used_memory"] + int(megabytes * MB))
    client.config_set("maxmemory-policy", policy)


# Eviction


@pytest.mark.parametrize("policy", EVICTING)
def test_a_redis_that_evicts_is_said_and_not_filled_for_ever(exchange, tmp_path, caplog, policy):
    """After the second loss in a row the cause is in log, status and /health, and the bytes end."""
    with own_server(tmp_path) as (server, client):
        with started(exchange, url_of(server), FastClock(40), SYMBOLS=THREE, DATA_DAYS=30) as rig:
            tighten(client, 0.9, policy)
            for _ in range(2):
                rig.refresh()
            cycles = threading.Event()

            def cycle():
                while not cycles.wait(0.2):
                    rig.service.tell_redis()
                    for feed in rig.feeds:
                        rig.service.updates.update(feed)

            worker = in_background(cycle)
            eventually(lambda: rig.service.writer.losses.evicting, 30)

            def reasons_shown():
                reasons = str(rig.service.status.health().reasons)
                return reasons if "Redis evicts" in reasons else ""  # it may be full in between

            reasons = eventually(reasons_shown)
            before = received(client)
            cycles.wait(1.5)  # a minute of the service's time
            assert received(client) - before < 2 * MB
            rig.service.write_status()
            assert not rig.service.status.health().ready
            client.config_set("maxmemory", "0")
            eventually(lambda: not rig.service.writer.losses.evicting)
            eventually(lambda: len(client.keys("tet:kline:*")) == 3)
            cycles.set()
            worker.join()
            rig.refresh()
            assert rig.service.status.health().ready
            assert is_true(exchange, stored(client))
    (said,) = [text for text in caplog.messages if text.startswith("Redis evicts")]
    assert f"maxmemory-policy {policy}" in said
    assert "the configured pairs need about" in said
    assert said in reasons


def test_what_a_person_deletes_once_is_written_at_once_and_no_alarm(exchange, tmp_path, caplog):
    """FLUSHALL, or a key, on a server that could evict and has not."""
    with own_server(tmp_path) as (server, client), started(exchange, url_of(server), SYMBOLS=THREE) as rig:
        tighten(client, 300, "allkeys-lru")
        rig.refresh()
        client.flushall()
        rig.service.write_status()
        rig.service.tell_redis()
        assert len(client.keys("tet:kline:*")) == 3
        client.delete(KEY)
        exchange.clock.advance(MINUTE)
        rig.refresh()
        assert is_true(exchange, stored(client))
        assert rig.store.notices.texts == []
        assert rig.service.status.health().ready
    assert caplog.messages.count("redis has lost what was stored; writing it again") == 1


def test_a_redis_that_is_full_says_how_much_it_needs(exchange, tmp_path, caplog):
    """noeviction with too little memory: once, with what helps; not ready until there is room."""
    given = {"DATA_DAYS": 30, "SYMBOLS": "BTC/USDT,ETH/USDT"}
    with own_server(tmp_path) as (server, client), started(exchange, url_of(server), **given) as rig:
        rig.refresh()
        tighten(client, 0.2, "noeviction")
        for _ in range(3):
            rig.feeds[0].not_written()  # so that it is written whole, and the other pair as a patch
            exchange.clock.advance(MINUTE)
            rig.refresh()
            assert [bool(feed.failure) for feed in rig.feeds] == [True, False]
            assert client.keys("tet:upload:*") == []
        (said,) = [text for text in caplog.messages if text.startswith("Redis is full")]
        assert "maxmemory-policy noeviction" in said
        assert "raise maxmemory, or keep fewer pairs or days" in said
        assert said in str(rig.service.status.health().reasons)
        client.config_set("maxmemory", "0")
        rig.refresh()
        assert rig.store.notices.texts == []
        assert rig.service.status.health().ready


@pytest.mark.parametrize(
    ("limit", "policy", "fits", "said"),
    [
        (0, "allkeys-lru", True, ""),
        (900, "noeviction", True, ""),
        (900, "volatile-lru", True, "; it may evict candles: maxmemory 900.0 MB"),
        (5, "allkeys-lru", False, "; it may evict candles: maxmemory 5.0 MB"),
        (5, "noeviction", False, "; it will be full: maxmemory 5.0 MB"),
    ],
)
def test_a_policy_that_may_evict_is_said_before_it_does(limit, policy, fits, said):
    """By --health-check, which fails only where the pairs cannot fit."""
    info = {"maxmemory": limit * MB, "maxmemory_policy": policy, "used_memory": MB}
    found = losses.caution(lambda: info, 15 * MB)
    assert found[0] is fits
    assert found[1].startswith(said)
    assert bool(found[1]) is bool(said)


def test_the_health_check_warns_of_eviction(exchange, tmp_path):
    """The program asks the server, and goes without where it may not."""
    with own_server(tmp_path) as (server, client):
        tighten(client, 100, "volatile-lru")
        arguments = ("--public", f"--base-url={exchange.url}", f"--redis={url_of(server)}", "--health-check")
        text = " ".join(run_program(*arguments).stdout.split())
        assert "ok redis answers and takes writes; it may evict candles" in text
        client.acl_setuser("tet", enabled=True, passwords=["+pw"], commands=["+@all", "-info"], keys=["*"])
        refused = run_program(*arguments, REDIS_USERNAME="tet", REDIS_PASSWORD="pw")
        text = " ".join(refused.stdout.split())
        assert "ok redis answers and takes writes ok binance" in text


# Rights


RULES = {
    "the channel": (["+@all"], ["*"], "ACL SETUSER tet &tet:updates"),
    "the command": (["+@all", "-publish"], ["*"], "+publish"),
}


def check_announcements(exchange, port, client, rules, remedy, caplog):
    """Written once, counted as written, and said once."""
    commands, keys, _ = rules
    channels = ["*"] if "-publish" in commands else []
    client.acl_setuser(
        "tet", enabled=True, passwords=["+pw"], commands=commands, keys=keys, channels=channels, reset=True
    )
    given = {"REDIS_USERNAME": "tet", "REDIS_PASSWORD": "pw", "SYMBOLS": THREE, "DATA_DAYS": 30}
    with started(exchange, f"redis://127.0.0.1:{port}", **given) as rig:
        rig.refresh()
        before = received(client)
        for _ in range(3):
            exchange.clock.advance(MINUTE)
            rig.refresh()
            assert [feed.failure for feed in rig.feeds] == [""] * 3
            assert not any(feed.buffered for feed in rig.feeds)
        assert received(client) - before < 60_000
        (warning,) = json.loads(client.get("tet:system:status"))["warnings"]
        assert warning.startswith("updates are written, but not announced")
        assert remedy in warning
        assert rig.service.status.health().ready
    assert is_true(exchange, stored(client))
    assert caplog.messages.count(warning) == 1


@pytest.mark.parametrize("which", RULES)
def test_an_announcement_that_is_refused_undoes_nothing(exchange, tmp_path, caplog, which):
    """In the words of Valkey."""
    with own_server(tmp_path) as (server, client):
        check_announcements(exchange, server.port, client, RULES[which], RULES[which][2], caplog)


@pytest.mark.parametrize("which", RULES)
def test_the_same_with_redis_7(exchange, tmp_path, caplog, which):
    """In the words of Redis."""
    with redis_server(tmp_path) as (port, client):
        check_announcements(exchange, port, client, RULES[which], RULES[which][2], caplog)


MISSING = [
    (["~tet:kline:*"], ["+@all"], "tet:timestamp:15m:BTC_USDT|tet:upload|tet:kline"),
    (["~*"], ["+@all", "-set"], r"\+set"),
    (["~*"], ["+@all", "-evalsha"], r"\+evalsha"),
    (["~*"], ["+@all", "-rename"], r"\+rename|in all give this user"),
]


@pytest.mark.parametrize("kind", ["valkey", "redis"])
@pytest.mark.parametrize(("keys", "commands", "named"), MISSING)
def test_a_right_that_is_missing_is_named(exchange, tmp_path, kind, keys, commands, named):
    """What Redis says, what to give, and all that is needed."""
    serving = redis_server(tmp_path) if kind == "redis" else own_server(tmp_path)
    with serving as (server, client):
        port = server if kind == "redis" else server.port
        client.execute_command("ACL", "SETUSER", "tet", "reset", "on", ">pw", "&*", *keys, *commands)
        given = {"REDIS_USERNAME": "tet", "REDIS_PASSWORD": "pw"}
        with started(exchange, f"redis://127.0.0.1:{port}", **given) as rig:
            rig.refresh()
            failure = rig.feeds[0].failure
            assert isinstance(rig.feeds[0].error, RightsError)
    assert re.search(named, failure)
    assert "in all give this user ~tet:* &tet:updates +ping" in failure


def test_a_status_and_a_pause_that_may_not_be_written_are_said_once(exchange, tmp_path, caplog):
    """The pairs are kept all the same."""
    with own_server(tmp_path) as (server, client):
        keys = ["~tet:kline:*", "~tet:timestamp:*", "~tet:upload:{tet:kline:*"]
        client.execute_command("ACL", "SETUSER", "tet", "reset", "on", ">pw", "&*", "+@all", *keys)
        given = {"REDIS_USERNAME": "tet", "REDIS_PASSWORD": "pw"}
        with started(exchange, url_of(server), **given) as rig:
            for _ in range(2):
                rig.refresh()
            rig.binance.gate.pause(0.2, "a test")
            rig.service.bulletin.paused()
            assert rig.feeds[0].failure == ""
        assert is_true(exchange, stored(client))
    for key in ("tet:system:status", "tet:system:pause"):
        assert sum(f"({key})" in text for text in caplog.messages) == 1, key
