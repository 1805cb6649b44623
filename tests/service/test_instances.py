"""Several services on one Redis that do not divide the pairs: what readers see, and who may write at all."""

from __future__ import annotations

import json
import re
import signal
import threading
import time

import pytest
import redis
from conftest import PAIRS
from rig import KEY, Rig, Running, eventually, is_true, run_program, settings, started, stored
from samples import MINUTE, NOON_MS

import tet_data_service as tet
from tet_extras import claims
from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock

CLAIM = "tet:system:claim"
AGE = ("data_end", "last_candle_time", "last_update")


class Watch:
    """A reader that polls a key as fast as it can, and what it has seen go back."""

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url, key
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self.seen: list[dict[str, str]] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        latest = None
        with redis.Redis.from_url(self._url, db=1) as client:
            while not self._stop.wait(0.005):
                value = client.get(self._key)
                if value and value != latest:
                    latest, decoded = value, json.loads(value)
                    found = {name: decoded[name] for name in AGE}
                    if not self.seen or self.seen[-1] != found:
                        self.seen.append(found)

    def went_back(self) -> list[tuple[dict[str, str], dict[str, str]]]:
        """Each step by which one of the three became older."""
        steps = zip(self.seen, self.seen[1:], strict=False)
        return [step for step in steps if any(step[1][name] < step[0][name] for name in AGE)]


@pytest.fixture
def lagging(exchange):
    """The same market by a REST server that rolls over 6 s after a close."""
    with SimulatedBinance(market=exchange.market, clock=exchange.clock) as other:
        other.close_lag_seconds = 6.0
        yield other


# Older never over newer


def test_a_reader_beside_a_lagging_instance_sees_nothing_go_back(redis_url, tmp_path):
    """Two programs over a close, the second at an exchange that rolls over 6 s late."""
    close_ms = NOON_MS - NOON_MS % 60_000
    market, clock = Market.random_walk(PAIRS), SimulatedClock(close_ms - 12_000)
    given = ("--public", "--symbols=BTC/USDT", "--timeframe=1m", "--days=1", "--interval=1")
    with (
        SimulatedBinance(market=market, clock=clock) as prompt,
        SimulatedBinance(market=market, clock=clock) as late,
    ):
        late.close_lag_seconds = 6.0
        (tmp_path / "b").mkdir()
        first = Running(tmp_path, *given, f"--base-url={prompt.url}", f"--redis={redis_url}")
        second = Running(tmp_path / "b", *given, f"--base-url={late.url}", f"--redis={redis_url}")
        with first, second, Watch(redis_url, "tet:kline:1m:BTC_USDT") as watch:
            eventually(lambda: clock.now_ms() > close_ms + 8_000)
            assert second.says("redis has a newer value")
    ends = {each["data_end"] for each in watch.seen}
    assert tet.iso_time(close_ms) in ends
    assert len(ends) == 2
    assert watch.went_back() == []


def test_the_same_at_many_closes(exchange, lagging, redis_url):
    """In turns, at whatever second after a close; in the end the value is the exchange's."""
    with Watch(redis_url, KEY) as watch, started(exchange, redis_url) as prompt:
        with started(lagging, redis_url) as late:
            for seconds in (440, 12, 1, 1, 1, 1, 880, 17, 2, 2, 2, 890, 4, 3, 9):
                exchange.clock.advance(seconds)
                for rig in (prompt, late):
                    rig.binance.sync_clock()
                    rig.service.updates.update(rig.feeds[0])
                    assert rig.feeds[0].failure == ""
    with redis.Redis.from_url(redis_url, db=1) as reader:
        assert is_true(exchange, stored(reader))
    assert len(watch.seen) > 6
    assert watch.went_back() == []


def test_a_newer_candle_of_an_older_clock_keeps_the_later_date(exchange, lagging, redis_url, reader):
    """The lagging instance's clock is ahead: its date stays until the other's own is later."""
    with (
        started(exchange, redis_url) as prompt,
        started(lagging, redis_url) as late,
        Watch(redis_url, KEY) as watch,
    ):
        exchange.clock.advance(7 * MINUTE + 32)  # 2 s after the close at 12:15
        late.binance.sync_clock()
        late.clock._ahead_ms += 20_000
        late.service.updates.update(late.feeds[0])
        ahead = stored(reader)
        assert ahead["last_update"] == "2026-01-15T12:15:22Z"
        assert ahead["data_end"] == "2026-01-15T12:00:00Z"
        prompt.refresh()
        value = stored(reader)
        assert (value["last_update"], value["data_end"]) == (ahead["last_update"], "2026-01-15T12:15:00Z")
        assert reader.get("tet:timestamp:15m:BTC_USDT") == ahead["last_update"]
        exchange.clock.advance(60)
        prompt.refresh()
        assert stored(reader)["last_update"] == "2026-01-15T12:16:02Z"
    assert watch.went_back() == []


def test_what_was_restored_from_ahead_keeps_its_date(exchange, redis_url, reader):
    """A value 8 s ahead of the clock is gone on from, and dated so until the clock is there."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
    ahead = tet.iso_time(NOON_MS + 8_000)
    reader.set(KEY, reader.get(KEY).replace("2026-01-15T12:07:30Z", ahead))
    with started(exchange, redis_url) as rig, Watch(redis_url, KEY) as watch:
        for seconds in (1, 2, 3):
            exchange.clock.advance(seconds)
            rig.refresh()
            assert stored(reader)["last_update"] == reader.get("tet:timestamp:15m:BTC_USDT") == ahead
        exchange.clock.advance(5)
        rig.refresh()
        assert stored(reader)["last_update"] == "2026-01-15T12:07:41Z"
    assert watch.went_back() == []


@pytest.mark.parametrize("field", ["data_end", "last_candle_time"])
def test_a_candle_from_the_future_blocks_no_pair(exchange, redis_url, reader, field):
    """Somebody's clock was wrong by a day: what is there is written over at once."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        value = json.loads(reader.get(KEY))
        value[field] = "2026-01-16T12:00:00Z"
        reader.set(KEY, json.dumps(value, separators=(",", ":")))
        exchange.clock.advance(1)
        rig.refresh()
        assert rig.feeds[0].failure == ""
    assert is_true(exchange, stored(reader))


def test_a_newer_value_that_is_damaged_blocks_no_pair(exchange, redis_url, reader):
    """Its end says that it is newer, its candles are not sound: one backfill, and it is written over."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        text = reader.get(KEY).replace('"data_end":"2026-01-15T12:00', '"data_end":"2026-01-15T12:05')
        reader.set(KEY, text.replace('\\"open\\":\\"', '\\"open\\":\\"-', 1))
        exchange.clock.advance(1)
        exchange.clear()
        rig.refresh()
        assert rig.feeds[0].failure == ""
        assert len(exchange.asked("klines")) <= 2
    assert is_true(exchange, stored(reader))


def test_closed_only_comes_into_force_at_once(exchange, redis_url, reader):
    """Its newest candle is older than that of before, by the operator's wish."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
    with started(exchange, redis_url, CLOSED_ONLY="true") as rig:
        rig.refresh()
        assert rig.feeds[0].failure == ""
    assert stored(reader)["last_candle_time"] == "2026-01-15T11:45:00Z"


def test_a_correction_gets_through_in_the_same_second(exchange, redis_url, reader):
    """The same window, the same date, other candles: as the exchange has them now."""
    with started(exchange, redis_url) as other, started(exchange, redis_url) as rig:
        other.refresh()
        rig.refresh()
        truth = reader.get(KEY)
        reader.set(KEY, truth.replace('\\"volume\\":\\"', '\\"volume\\":\\"9', 1))
        rig.refresh()
        rig.refresh()
        assert is_true(exchange, stored(reader))


def test_instances_that_disagree_do_not_fetch_for_ever(exchange, lagging, redis_url, reader):
    """The other's newer value has a wrong closed candle: one backfill an update, until it can be written."""
    with started(lagging, redis_url) as late, started(exchange, redis_url) as prompt:
        late.refresh()
        exchange.clock.advance(7 * MINUTE + 32)
        prompt.refresh()
        reader.set(KEY, reader.get(KEY).replace('\\"volume\\":\\"', '\\"volume\\":\\"9', 1))
        lagging.clear()
        late.binance.sync_clock()
        late.service.updates.update(late.feeds[0])
        assert len(lagging.asked("klines")) <= 2
        assert stored(reader)["data_end"] == "2026-01-15T12:15:00Z"
        exchange.clock.advance(10)
        late.refresh()
        assert is_true(exchange, stored(reader))


# Uploads


def test_uploads_of_two_instances_never_meet(exchange, redis_url, reader):
    """Each has a key of its own: what one uploads the other's script cannot put into place."""
    with started(exchange, redis_url) as one, started(exchange, redis_url) as other:
        uploads: list[str] = []
        for rig in (one, other):
            send = rig.store._servers.together

            def watching(commands, send=send):
                uploads.extend(command[1] for command in commands if command[0] == "SET")
                return send(commands)

            rig.store._servers.together = watching
        for rig in (one, other):
            rig.refresh()
            rig.feeds[0].not_written()
            rig.refresh()
        assert len(uploads) == len(set(uploads)) > 6
        assert all(name.startswith("tet:upload:{tet:") for name in uploads)
        assert reader.keys("tet:upload:*") == []


def test_a_script_whose_upload_is_gone_leaves_the_value(exchange, redis_url, reader):
    """Evicted or expired before it was in place: that is said, and nothing changes."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        before = reader.get(KEY)
        send = rig.store._servers.together

        def losing(commands):
            return send([command for command in commands if command[0] != "SET"] or commands)

        rig.feeds[0].not_written()
        rig.store._servers.together = losing
        with pytest.raises(tet.StoreError, match="dropped a value"):
            rig.service.writer.write(rig.feeds[0])
        rig.store._servers.together = send
        assert rig.feeds[0].buffered
    assert reader.get(KEY) == before


# Claims


def program(exchange, redis_url, *given):
    """The arguments of a service for one pair and a day."""
    return (
        "--public",
        "--symbols=BTC/USDT",
        "--days=1",
        f"--base-url={exchange.url}",
        f"--redis={redis_url}",
        *given,
    )


def test_a_service_that_differs_does_not_start(exchange, redis_url, reader, tmp_path):
    """It ends with 1, says what differs, whose it is and what helps, and has written nothing."""
    with Running(tmp_path, *program(exchange, redis_url)) as running:
        eventually(lambda: reader.exists(KEY))
        for flag, what in (("--days=2", "DATA_DAYS 1 (here 2)"), ("--market=usdm", "spot (here usdm)")):
            result = run_program(*program(exchange, redis_url, flag))
            assert result.returncode == 1
            assert what in result.stderr
            assert f"process {running.process.pid}" in result.stderr
            assert "REDIS_PREFIX" in result.stderr
        status = json.loads(reader.get("tet:system:status"))
        assert status["state"] == "running"
    assert stored(reader)["candle_count"] == 96


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"DATA_DAYS": 2}, "DATA_DAYS 1 (here 2)"),
        ({"CLOSED_ONLY": "true"}, "CLOSED_ONLY false (here true)"),
        ({"FIELDS": "all"}, "FIELDS not set (here all)"),
        ({"BINANCE_MARKET": "usdm"}, "BINANCE_MARKET spot (here usdm)"),
        ({"DATA_DAYS": 2, "GROUP": "g"}, "DATA_DAYS 1 (here 2)"),
        ({"BINANCE_BASE_URL": "https://testnet.binance.vision"}, "spot of testnet.binance.vision)"),
    ],
)
def test_what_differs_is_named(exchange, redis_url, given, what):
    """Whatever a service's values are made of."""
    with started(exchange, redis_url, DATA_DAYS=1):
        config = settings(**({"REDIS_ADDR": redis_url, "DATA_DAYS": 1} | given))
        store = tet.Store(config, tet.Clock(), tet.connect_redis(config))
        with pytest.raises(tet.ClaimedError, match=re.escape(what)):
            store.try_write()
        store.close()


def test_other_pairs_and_timeframes_are_no_difference(exchange, redis_url, reader):
    """They have keys of their own; nobody is warned of them."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT") as one:
        with (
            started(exchange, redis_url, SYMBOLS="ETH/USDT") as other,
            started(exchange, redis_url, TIMEFRAME="1h") as third,
        ):
            for rig in (one, other, third, one, other, third):
                rig.refresh()
                look(rig)
                assert rig.feeds[0].failure == ""
                assert rig.store.notices.texts == []
    assert len(reader.keys("tet:kline:*")) == 3


def look(rig):
    """Have a service look at its claim now."""
    rig.store.claim._looked_seconds -= claims.RENEW_SECONDS
    rig.store.claim.renew()


def test_a_stopped_service_leaves_no_claim(exchange, redis_url, reader, tmp_path):
    """A setting is changed, and it starts at once."""
    with Running(tmp_path, *program(exchange, redis_url)) as running:
        eventually(lambda: reader.exists(KEY))
        held = json.loads(reader.get(CLAIM))
        assert held["values"] == {"format": 1, "market": "spot", "data_days": 1, "closed_only": False}
        assert held["by"]["pid"] == running.process.pid
        assert 0 < reader.pttl(CLAIM) <= claims.CLAIM_MS
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
    assert not reader.exists(CLAIM)
    assert run_program(*program(exchange, redis_url, "--days=2", "--once")).returncode == 0
    assert not reader.exists(CLAIM)


def test_after_a_crash_a_changed_setting_waits_for_seconds(exchange, redis_url, reader, tmp_path, caplog):
    """The claim expires, since nobody renews it; until then the start waits and says so."""
    with Running(tmp_path, *program(exchange, redis_url)) as running:
        eventually(lambda: reader.exists(KEY))
        running.process.kill()
        running.process.wait()
    with Rig(exchange, redis_url, DATA_DAYS=2) as rig:
        assert reader.pexpire(CLAIM, 1_500)  # as if most of its time had passed
        rig.service.start()
        rig.refresh()
    assert "waiting whether a service that is set differently is still there" in caplog.messages
    assert stored(reader)["candle_count"] == 192


def test_of_two_that_start_at_once_one_is_first(exchange, redis_url, reader):
    """However many try at the same moment, all writers are of one kind."""
    rigs = [Rig(exchange, redis_url, DATA_DAYS=days) for days in (1, 2, 1, 2)]
    refused = []

    def claim(rig):
        try:
            rig.store.claim.take()
        except tet.ClaimedError:
            refused.append(rig.config.data_days)

    threads = [threading.Thread(target=claim, args=(rig,)) for rig in rigs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        for rig in rigs:
            rig.store.claim.renew()
        time.sleep(0.1)
    assert len(refused) == 2
    assert len(set(refused)) == 1
    assert json.loads(reader.get(CLAIM))["values"]["data_days"] == 3 - refused[0]
    for rig in rigs:
        with rig:
            pass


def test_another_claim_in_mid_run_stops_all_writing_until_it_is_gone(exchange, redis_url, reader, caplog):
    """Redis was lost and came back as another service's: nothing is written over that."""
    caplog.set_level("INFO", tet.LOGGER)
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        theirs = json.loads(reader.get(CLAIM))
        theirs["values"]["data_days"] = 7
        reader.flushall()
        reader.set(CLAIM, json.dumps(theirs, separators=(",", ":")))
        look(rig)
        exchange.clock.advance(MINUTE)
        rig.refresh()
        assert "DATA_DAYS 7 (here 2)" in rig.feeds[0].failure
        assert all(feed.buffered for feed in rig.feeds)
        health = rig.service.status.health()
        assert not health.ready
        assert "DATA_DAYS 7 (here 2)" in str(health.reasons)
        rig.service.write_status()
        assert reader.keys("*") == [CLAIM]
        reader.delete(CLAIM)
        rig.store.claim._looked_seconds -= claims.VALID_SECONDS
        rig.service.tell_redis()
        assert stored(reader)["candle_count"] == 192
        assert rig.service.status.health().ready
        assert json.loads(reader.get(CLAIM))["values"]["data_days"] == 2
    assert "no service that is set differently is left; writing again" in caplog.messages


def test_a_service_that_was_frozen_looks_before_it_writes(exchange, redis_url, reader):
    """Its claim has expired meanwhile, and another one is there: not a byte is written."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        theirs = reader.get(CLAIM).replace('"data_days":2', '"data_days":5')
        reader.set(CLAIM, theirs)
        before = reader.get(KEY)
        rig.store.claim._looked_seconds -= claims.VALID_SECONDS
        rig.feeds[0].not_written()
        with pytest.raises(tet.ClaimedError, match="DATA_DAYS 5"):
            rig.service.writer.write(rig.feeds[0])
        assert rig.feeds[0].buffered
        assert reader.get(KEY) == before
        assert reader.get(CLAIM) == theirs


@pytest.mark.parametrize("found", ["", "x", "{}", '{"by":{}}', "null"])
def test_a_damaged_claim_is_written_over(exchange, redis_url, reader, found):
    """And one that is missing, as a service of before has none."""
    reader.set(CLAIM, found)
    with started(exchange, redis_url) as rig:
        rig.refresh()
        assert json.loads(reader.get(CLAIM))["values"]["market"] == "spot"
    assert is_true(exchange, stored(reader))


def test_another_programs_type_under_the_claim_is_left_alone(exchange, redis_url, reader, caplog):
    """It is named, and the pairs are kept all the same."""
    reader.rpush(CLAIM, "precious")
    with started(exchange, redis_url) as rig:
        rig.refresh()
    assert is_true(exchange, stored(reader))
    assert reader.lrange(CLAIM, 0, -1) == ["precious"]
    assert sum(f"Redis key {CLAIM} holds a list" in message for message in caplog.messages) == 1


def test_a_repair_by_other_settings_is_refused(exchange, redis_url, reader, tmp_path):
    """--verify may look, but not write."""
    with Running(tmp_path, *program(exchange, redis_url)):
        eventually(lambda: reader.exists(KEY))
        before = reader.get(KEY)
        result = run_program(*program(exchange, redis_url, "--days=2", "--verify", "--repair"))
        assert result.returncode == 1
        assert stored(reader)["candle_count"] == json.loads(before)["candle_count"]
        alike = run_program(*program(exchange, redis_url, "--verify", "--repair"))
        assert alike.returncode == 0


def test_a_second_one_that_is_alike_is_said_once_in_both(exchange, redis_url, reader, caplog):
    """With its pid and the remedy, in log and status; members of a group are no strangers."""
    with started(exchange, redis_url) as one, started(exchange, redis_url) as other:
        for rig in (one, other) * 3:
            look(rig)
            rig.service.write_status()
        assert sum("another service keeps the same pairs" in text for text in caplog.messages) == 2
        (warning,) = json.loads(reader.get("tet:system:status"))["warnings"]
        assert f"process {json.loads(reader.get(CLAIM))['by']['pid']}" in warning
        assert "GROUP" in warning
        assert other.service.status.health().ready is False  # it has no data yet
    assert not reader.exists(CLAIM) or reader.pttl(CLAIM) <= claims.CLAIM_MS


def test_members_of_a_group_are_no_strangers(exchange, redis_url, caplog):
    """Nor are shards of as many."""
    for given in ({"GROUP": "g"}, {"SHARD": "1/2"}):
        with started(exchange, redis_url, **given) as one, started(exchange, redis_url, **given) as other:
            for rig in (one, other) * 2:
                look(rig)
        assert not [text for text in caplog.messages if "another service" in text]


# Prefixes


def test_two_markets_share_a_database_by_prefixes(exchange, redis_url, reader, tmp_path):
    """Each with keys and a channel of its own, and its own --status, --health-check and --verify."""
    spot = program(exchange, redis_url, "--once")
    futures = (*spot, "--market=usdm", "--redis-prefix=usdm")
    with redis.Redis.from_url(redis_url) as client, client.pubsub() as heard:
        heard.subscribe("usdm:updates")
        assert run_program(*spot).returncode == 0
        assert run_program(*futures).returncode == 0
        news = eventually(lambda: heard.get_message(ignore_subscribe_messages=True))
        assert json.loads(news["data"])["symbol"] == "BTC/USDT"
    kinds = {key.partition(":")[0] for key in reader.keys("*")}
    assert kinds == {"tet", "usdm"}
    assert set(reader.keys("usdm:*")) == {
        "usdm:kline:15m:BTC_USDT",
        "usdm:timestamp:15m:BTC_USDT",
        "usdm:system:status",
    }
    for command in ("--status", "--verify"):
        result = run_program(*futures[:-3], *futures[-2:], command)
        assert result.returncode == 0, result.stdout + result.stderr
        reader.rename("usdm:kline:15m:BTC_USDT", "aside")
        assert run_program(*futures[:-3], *futures[-2:], command).returncode == 1
        reader.rename("aside", "usdm:kline:15m:BTC_USDT")


def test_a_pause_is_the_addresses_whatever_the_prefix(exchange, redis_url, reader):
    """A ban that one has met holds the other; that of another market is another."""
    with started(exchange, redis_url, REDIS_PREFIX="a") as rig:
        rig.binance.gate.pause(60, "banned")
        rig.service.bulletin.paused()
    with Rig(exchange, redis_url, REDIS_PREFIX="b") as rig:
        rig.service.bulletin.restore_pause()
        assert rig.binance.gate.pause_left_seconds() > 50
    assert reader.keys("*:pause*") == ["tet:system:pause"]
    with Rig(exchange, redis_url, BINANCE_MARKET="usdm", REDIS_PREFIX="c") as rig:
        rig.service.bulletin.restore_pause()
        assert not rig.binance.gate.pause_left_seconds()
        rig.binance.gate.pause(9, "too many requests")
        rig.service.bulletin.paused()
    assert reader.pttl("tet:system:pause") > 40_000
    assert 0 < reader.pttl("tet:system:pause@usdm") <= 9_000


def test_in_a_cluster_a_prefix_is_the_only_way(cluster, exchange):
    """Two services that differ, side by side on the one database."""
    given = {"REDIS_MODE": "cluster", "REDIS_DB": 0}
    with started(exchange, cluster.addresses, **given) as one:
        with Rig(exchange, cluster.addresses, DATA_DAYS=1, **given) as refused:
            with pytest.raises(tet.ClaimedError):
                refused.store.try_write()
        with started(exchange, cluster.addresses, DATA_DAYS=1, REDIS_PREFIX="short", **given) as other:
            for rig in (one, other):
                rig.refresh()
                assert rig.feeds[0].failure == ""
    with cluster.reader() as client:
        assert json.loads(client.get("short:kline:15m:BTC_USDT"))["candle_count"] == 96
        assert json.loads(client.get(KEY))["candle_count"] == 192
        assert client.keys("*upload*") == []
