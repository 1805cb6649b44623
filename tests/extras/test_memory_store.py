"""The embedded store within the process, over real sockets, beside what a Valkey answers."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import jsonschema
import pytest
import redis
from rig import PROGRAM, expected_candles, started, stored, unused_port

from tet_core.snapshot import Snapshot, as_json
from tet_core.times import parse_iso_time
from tet_extras import memory_store, merged
from tet_extras.memory_store import NOTE, MemoryStore

pytestmark = pytest.mark.skipif(not memory_store.is_available(), reason="no fakeredis with lupa")

SCRIPT = """redis.call('SET', KEYS[1], ARGV[1])
return {redis.call('STRLEN', KEYS[1]), ARGV[2], redis.sha1hex(ARGV[1])}"""


@pytest.fixture
def store(tmp_path):
    """A running one."""
    running = MemoryStore(tmp_path / "data", lambda *said, **facts: None, [unused_port()])
    running.start()
    yield running
    running.stop()


def url_of(store):
    """Its address."""
    return f"redis://127.0.0.1:{store.port}"


def asked(url):
    """What a client is answered to all kinds of commands, the last of them a wrong one."""
    long = "x" * 3_000_000
    with redis.Redis.from_url(url, decode_responses=True) as client, client.pipeline() as pipe:
        pipe.set("a", long, px=60_000).get("a").getrange("a", -3, -1).setrange("a", 2, "yy").strlen("a")
        pipe.eval(SCRIPT, 1, "b", long, "é").get("b").rename("b", "c").exists("b", "c").delete("a", "c")
        pipe.sadd("s", "1").smembers("s").srem("s", "1").get("none").publish("nobody", "x").pttl("none")
        answers = pipe.execute()
        with pytest.raises(redis.ResponseError) as caught:
            client.execute_command("GET")
    return [*answers, str(caught.value).lower()]


def test_it_answers_as_valkey_does(store, redis_url):
    """Values of megabytes, scripts, sets and errors."""
    assert asked(url_of(store)) == asked(redis_url)


def test_a_subscriber_hears_what_another_client_publishes(store):
    """At once, and without having to say something first."""
    with redis.Redis(port=store.port) as client, client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("news")
        listener.get_message(timeout=5)
        with redis.Redis(port=store.port) as other:
            for number in range(100):
                other.publish("news", f"{number} " + "x" * 10_000)
        heard = [listener.get_message(timeout=5) for _ in range(100)]
    assert [int(each["data"].split()[0]) for each in heard] == list(range(100))


def test_many_clients_write_at_once(store):
    """Each increment counts."""

    def count():
        with redis.Redis(port=store.port) as client:
            for _ in range(100):
                client.incr("counter")

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with redis.Redis(port=store.port) as client:
        assert client.get("counter") == b"800"


def test_two_on_one_folder_or_port(store, tmp_path):
    """Neither the folder nor the port of another one is taken; afterwards both can be."""
    second = MemoryStore(store.folder, lambda *said, **facts: None, [unused_port()])
    with pytest.raises(BlockingIOError, match="another service uses this folder"):
        second.start()
    second.stop()
    free = unused_port()
    third = MemoryStore(tmp_path / "third", lambda *said, **facts: None, [store.port, free])
    third.start()
    assert third.port == free
    third.stop()
    port = store.port
    store.stop()
    again = MemoryStore(store.folder, lambda *said, **facts: None, [port])
    again.start()
    assert again.port == port
    again.stop()


def test_the_service_fills_it_and_says_that_it_keeps_nothing(store, exchange):
    """Right candles, and a field of the status, which fits its schema, that of one and of many members."""
    with started(exchange, url_of(store)) as rig, redis.Redis(port=store.port, db=1) as reader:
        rig.refresh()
        value = stored(reader)
        first_ms = parse_iso_time(value["data_start"])
        assert value["candles"] == expected_candles(exchange, "BTCUSDT", "15m", first_ms)
        status = json.loads(reader.get("tet:system:status"))
    assert status["store"] == NOTE
    schema = json.loads((PROGRAM.parent / "tests" / "schemas" / "status.json").read_text())
    jsonschema.validate(status, schema)
    one = Snapshot.of(status)
    assert one.store == NOTE
    other = replace(one, store=None)
    assert merged.merged({"a": other, "b": one}, {}).store == NOTE
    assert "store" not in as_json(merged.merged({"a": other}, {}))
    store.stop()
    assert memory_store.note() is None
