"""Nothing becomes stale because of something else: another pair's backfill, a request that hangs, LIVE."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import pytest
from rig import (
    FastClock,
    Running,
    eventually,
    expected_candles,
    in_background,
    own_server,
    run_cycles,
    run_program,
    started,
    stored,
    url_of,
)

import tet_data_service as tet
from tet_core.times import parse_iso_time
from tet_extras.audit import AUDIT_ATTEMPTS
from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock
from tet_extras.streams import Connection

START_MS = 1_768_482_450_000  # 2026-01-15T13:07:30Z: a busy hour, and no close of 15m for minutes


@pytest.fixture
def real_time():
    """An exchange in real time, its clock in the middle of a 15m candle."""
    market = Market.random_walk(["BTC/USDT", "ETH/USDT"])
    with SimulatedBinance(market=market, clock=SimulatedClock(START_MS)) as simulated:
        yield simulated


def arguments_for(exchange, redis_url, *more, symbols="BTC/USDT", timeframe="15m"):
    """The program without keys, at this exchange."""
    given = ["--public", f"--base-url={exchange.url}", f"--redis={redis_url}", f"--symbols={symbols}"]
    return [*given, f"--timeframe={timeframe}", "--days=1", "--requests-per-sec=100", *more]


class Updates:
    """Another program that hears of each update: when, by pair and timeframe."""

    def __init__(self, reader):
        self.times: dict[str, list[float]] = {}
        self._stop = threading.Event()
        self._channel = reader.pubsub(ignore_subscribe_messages=True)
        self._channel.subscribe("tet:updates")
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._channel.close()

    def _listen(self):
        while not self._stop.is_set():
            if message := self._channel.get_message(timeout=0.1):
                news = json.loads(message["data"])
                name = f"{news['symbol']} {news['timeframe']}"
                self.times.setdefault(name, []).append(time.monotonic())

    def count(self, name):
        """How many updates there were of a feed."""
        return len(self.times.get(name, ()))

    def longest_gap(self, name):
        """The most seconds between two of them."""
        return max((after - before for before, after in pairwise(self.times[name])), default=0.0)


# Another pair's backfill


def test_a_backfill_does_not_hold_up_another_timeframe(real_time, redis_url, reader, tmp_path):
    """One pair, one request a second, six pages of 1m: 15m is written in each interval meanwhile."""
    given = ["--interval=2", "--max-age=5", "--requests-per-sec=1", "--days=4", "--concurrent=1"]
    arguments = arguments_for(real_time, redis_url, *given, timeframe="15m,1m")
    with Updates(reader) as updates, Running(tmp_path, *arguments):
        eventually(lambda: updates.count("BTC/USDT 1m"), 40)
        assert updates.count("BTC/USDT 15m") >= 4
        assert updates.longest_gap("BTC/USDT 15m") < 5
        value = stored(reader, "1m:BTC_USDT")
    assert value["candle_count"] == 4 * 1440
    assert len(real_time.asked("klines")) < 40


def test_what_is_there_stays_fresh_while_400_pairs_come(redis_url, reader, tmp_path):
    """A pair of five seconds' patience beside hundreds of backfills, at a rate that takes them long."""
    names = [f"P{number:03d}/USDT" for number in range(400)]
    with SimulatedBinance(market=Market.random_walk(names), clock=SimulatedClock(START_MS)) as exchange:
        first = arguments_for(exchange, redis_url, "--once", symbols="P399/USDT", timeframe="1m")
        assert run_program(*first).returncode == 0
        given = ["--interval=2", "--max-age=5", "--requests-per-sec=40"]
        arguments = arguments_for(exchange, redis_url, *given, symbols=",".join(names), timeframe="1m")
        with Updates(reader) as updates, Running(tmp_path, *arguments) as running:
            eventually(lambda: updates.count("P399/USDT 1m") >= 6, 40)
            assert len(updates.times) < 350, "the others were not all there yet"
            assert updates.longest_gap("P399/USDT 1m") < 4.5
            assert not running.says("cycle "), "the first cycle lasts"
            assert exchange.refused_429 == 0


def test_once_ends_when_all_are_there(real_time, redis_url, reader):
    """However short the interval is: nobody waits for who is due again."""
    given = ["--once", "--interval=1", "--requests-per-sec=4", "--days=4"]
    done = run_program(*arguments_for(real_time, redis_url, *given, timeframe="1m,15m"))
    assert done.returncode == 0, done.stderr
    assert stored(reader, "1m:BTC_USDT")["candle_count"] == 4 * 1440
    assert stored(reader)["candle_count"] == 4 * 96


# A request that hangs


def test_an_audit_that_hangs_holds_up_nobody(real_time, redis_url, reader, tmp_path):
    """No page of it is answered: each interval has its update, with a single request at once, too."""
    real_time.faults.stall_seconds = 60
    for _ in range(20):
        real_time.faults.add("stall", match=lambda params: "endTime" in params)
    given = ["--interval=3", "--concurrent=1"]
    environment = {"AUDIT_HOURS": "0.0003", "INCREMENTAL_CANDLES": "2"}
    with (
        Updates(reader) as updates,
        Running(tmp_path, *arguments_for(real_time, redis_url, *given), **environment) as running,
    ):
        eventually(lambda: asked_for_windows(real_time), 20)
        began = updates.count("BTC/USDT 15m")
        eventually(lambda: updates.count("BTC/USDT 15m") >= began + 3, 13)
        assert updates.longest_gap("BTC/USDT 15m") < 4.5
        assert len(asked_for_windows(real_time)) <= 2, "one of a kind at a time"
        running.process.terminate()
        assert running.process.wait(8) == 0, "a stop does not wait for it"


def asked_for_windows(exchange):
    """The requests of an audit."""
    return [request for request in exchange.asked() if "endTime" in request.params]


@pytest.mark.parametrize("path", ["time", "exchangeInfo"])
def test_a_look_that_hangs_holds_up_nobody(real_time, redis_url, path):
    """The clock's, or that at the symbols: updates go on, and it is not asked for again meanwhile."""
    with started(real_time, redis_url, UPDATE_INTERVAL=1, CONCURRENT_REQUESTS=1) as rig:
        rig.service.cycle()
        real_time.faults.always("stall", path=path)
        rig.clock.synced_at = None
        rig.service.symbols.due_ms = 0
        real_time.clear()
        runner = in_background(lambda: run_cycles(rig.service))
        eventually(lambda: len(real_time.asked("klines")) >= 4, 8)
        assert len(real_time.asked(path)) == 1
        rig.clock.stop()
        runner.join()


def test_a_pair_whose_requests_hang_holds_up_no_other(real_time, redis_url, reader, tmp_path):
    """Not even where one worker would do."""
    arguments = arguments_for(real_time, redis_url, "--interval=2", symbols="BTC/USDT,ETH/USDT")
    with Updates(reader) as updates, Running(tmp_path, *arguments):
        eventually(lambda: updates.count("ETH/USDT 15m") and updates.count("BTC/USDT 15m"))
        real_time.faults.stall_seconds = 60
        for _ in range(9):
            real_time.faults.add("stall", match=lambda params: params["symbol"] == "BTCUSDT")
        before = updates.count("ETH/USDT 15m")
        eventually(lambda: updates.count("ETH/USDT 15m") >= before + 4, 12)
        assert updates.longest_gap("ETH/USDT 15m") < 4.5


# --verify


@pytest.mark.parametrize("given", ["--group=g", "--shard=1/1", "--egress=e"])
def test_verify_ends_for_members_too(real_time, redis_url, reader, given):
    """As a guest: it has nothing of the pairs, and shares the rate of the address while it is there."""
    arguments = arguments_for(real_time, redis_url, given)
    assert run_program(*arguments, "--once").returncode == 0
    done = run_program(*arguments, "--verify", timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" requests: no difference\n")
    assert reader.keys("tet:member:{tet}*") in ([], ["tet:member:{tet}"]) or not any(
        '"left":false' in (reader.get(key) or "") for key in reader.keys("tet:member:{tet}:*")
    )


def test_verify_takes_no_pairs_of_a_group_that_runs(real_time, redis_url, reader, tmp_path):
    """Its member goes on with all of them."""
    names = [f"P{number}/USDT" for number in range(8)]
    real_time.market = Market.random_walk(names)
    arguments = arguments_for(real_time, redis_url, "--group=g", "--interval=2", symbols=",".join(names))
    with Updates(reader) as updates, Running(tmp_path, *arguments):
        eventually(lambda: len(updates.times) == 8, 30)
        done = run_program(*arguments, "--verify", timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " of 8 values compared" in done.stdout
        assert max(map(updates.longest_gap, updates.times)) < 6


@pytest.mark.parametrize("how", ["hash", "newer"])
def test_a_repair_that_redis_refuses_is_not_called_written(real_time, redis_url, reader, how):
    """The key is another program's; or holds what is dated ahead, and then the repair is dated so, too."""
    arguments = arguments_for(real_time, redis_url, symbols="BTC/USDT,ETH/USDT")
    assert run_program(*arguments, "--once").returncode == 0
    key = "tet:kline:15m:BTC_USDT"
    if how == "hash":
        reader.delete(key)
        reader.hset(key, "a", "b")
    else:
        value = reader.get(key)
        at = value.index('\\"volume\\":\\"') + len('\\"volume\\":\\"')
        value = value[:at] + "9" + value[at:].replace('"last_update":"2026', '"last_update":"2027')
        reader.set(key, value)
    done = run_program(*arguments, "--verify", "--repair")
    assert done.returncode == 1
    if how == "hash":
        assert "written as the exchange has them" not in done.stdout
        assert "BTC/USDT 15m: not compared: Redis key tet:kline:15m:BTC_USDT holds a hash" in done.stdout
        assert done.stdout.endswith("1 could not be compared\n")
    else:
        value = stored(reader)
        truth = expected_candles(real_time, "BTCUSDT", "15m", parse_iso_time(value["data_start"]))
        closed = {at for at in truth if at < value["data_end"]}
        is_repaired = all(value["candles"][at] == truth[at] for at in closed)
        assert is_repaired is ("written as the exchange has them" in done.stdout)


def test_a_backfill_that_fails_is_no_repair(real_time, redis_url, reader):
    """The exchange does not answer for the pair whose value is gone."""
    arguments = arguments_for(real_time, redis_url, symbols="BTC/USDT,ETH/USDT")
    assert run_program(*arguments, "--once").returncode == 0
    reader.delete("tet:kline:15m:BTC_USDT")
    for _ in range(3):
        real_time.faults.add("500", match=lambda params: params["symbol"] == "BTCUSDT")
    done = run_program(*arguments, "--verify", "--repair")
    assert done.returncode == 1
    assert "BTC/USDT 15m: not repaired: Binance answers HTTP 500" in done.stdout
    assert done.stdout.endswith("1 values are wrong; 0 written as the exchange has them, 1 not repaired\n")
    assert "of 2 values compared" in done.stdout


# LIVE


@contextmanager
def living(exchange, redis_url, **given):
    """A service that runs with LIVE, in this process."""
    given = {"LIVE": "true", "BINANCE_STREAM_URL": exchange.stream_url, "UPDATE_INTERVAL": 1} | given
    with started(exchange, redis_url, FastClock(1), TIMEFRAME="1m", **given) as rig:
        runner = in_background(lambda: run_cycles(rig.service))
        try:
            yield rig
        finally:
            rig.clock.stop()
            runner.join()


def no_more_threads(*_):
    """As the system says where a limit of threads is met."""
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("where", ["a message", "a tick"])
def test_an_unexpected_error_ends_live_and_not_the_service(real_time, redis_url, caplog, monkeypatch, where):
    """It is logged with its traceback, the status says so, and polling goes on."""
    with living(real_time, redis_url) as rig:
        live = rig.service.live
        eventually(lambda: live.figures().feeds.live)
        if where == "a message":
            live._writers.writer = None
        else:
            monkeypatch.setattr(Connection, "start", no_more_threads)
            real_time.streams.cut()
        eventually(lambda: any("LIVE has stopped" in message for message in caplog.messages))
        real_time.clear()
        eventually(lambda: len(real_time.asked("klines")) >= 2, 10)
        assert any("LIVE has stopped" in text for text in rig.service.status.snapshot().warnings)
    (record,) = [each for each in caplog.records if "LIVE has stopped" in each.message]
    assert record.exc_info


# The audit


def test_a_page_that_fails_is_audited_all_the_same(real_time, redis_url):
    """Its window is not given up for the turn; only a page that fails again and again is, with a warning."""
    given = {"SYMBOLS": "BTC/USDT,ETH/USDT", "DATA_DAYS": 15}
    with started(real_time, redis_url, **given) as rig:
        rig.service.cycle()
        rig.binance.attempts = 1
        real_time.clear()
        real_time.faults.add("500")
        for _ in range(5):
            try:
                rig.service.audit.step(rig.feeds)
            except tet.ExchangeError:
                continue
        asked = [(each.params["symbol"], each.params["startTime"]) for each in real_time.asked()]
        assert asked[0] == asked[1]
        assert [symbol for symbol, _ in asked] == ["BTCUSDT"] * 3 + ["ETHUSDT"] * 2
        assert rig.service.counts.candles.counts()["audited"] == 2 * 1440


def test_a_page_that_always_fails_is_passed_over(real_time, redis_url, caplog):
    """And named."""
    with started(real_time, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.service.cycle()
        rig.binance.attempts = 1
        real_time.clear()
        for _ in range(AUDIT_ATTEMPTS):
            real_time.faults.add("500")
        steps = [partial(rig.service.audit.step, rig.feeds)] * (AUDIT_ATTEMPTS + 1)
        for step in steps[:-1]:
            with pytest.raises(tet.ExchangeError):
                step()
        steps[-1]()
        assert real_time.asked()[-1].params["symbol"] == "ETHUSDT"
    assert "part of a window could not be audited" in caplog.messages


# A Redis that hangs


def test_the_main_thread_never_waits_for_redis(real_time, tmp_path):
    """While Redis is frozen it ticks each second: workers wait, with the status, a member's key, a candle."""
    given = {"SYMBOLS": "BTC/USDT", "UPDATE_INTERVAL": 1, "GROUP": "g", "DATA_DAYS": 1}
    with own_server(tmp_path) as (server, client), started(real_time, url_of(server), **given) as rig:
        pid, progress, silences = client.info("server")["process_id"], rig.service.progress, []
        runner = in_background(lambda: run_cycles(rig.service))
        eventually(lambda: rig.service.counts.cycles >= 2)
        os.kill(pid, signal.SIGSTOP)
        try:
            until = time.monotonic() + 4
            while time.monotonic() < until:
                silences.append(rig.clock.monotonic() - progress.heartbeat_seconds)
                time.sleep(0.02)
        finally:
            os.kill(pid, signal.SIGCONT)
        cycles = rig.service.counts.cycles
        eventually(lambda: rig.service.counts.cycles > cycles + 1)
        rig.clock.stop()
        runner.join()
    assert max(silences) < 2.5
