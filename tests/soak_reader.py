"""A reader beside the service at 60 times the speed, while all goes wrong. Started by `make soak-reader`.

    PYTHONPATH=.:tests python tests/soak_reader.py 300       # for so many seconds; five hours there

Candles of 1m close once a second. Meanwhile the exchange corrects them, near the end and far back, and has
gaps; keys vanish or are evicted, connections are killed, Redis is flushed, or killed and started again, with
what it had or empty, and another instance takes over. Two threads read by one `Reader`: each frame is
compared with what a reader of two lines makes of the value just before and just after. A thread follows: each
candle that it is given must be the exchange's, as it is or was before it was corrected. In the end all must
be the exchange's. Ends with exit code 1 if anything was not.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import redis
from fleet import Server
from rig import FastClock, Rig, eventually, expected_candles, in_background, run_cycles
from samples import MINUTE

from tet_core.times import iso_time
from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock
from tet_reader import Missing, Reader

SPEED = 60
PAIRS = ("BTC/USDT", "ETH/USDT", "DOGE/USDT")
MINUTE_MS = MINUTE * 1000
STEP_SECONDS = 0.35  # between two mishaps
MISHAPS = (
    *("near", "far", "key", "near", "restart", "pubsub", "far", "clients", "near", "flush", "gap"),
    *("eviction", "near", "loss"),
)
Row = tuple[Any, ...]


def rows_of(frame: Any) -> list[Row]:
    """A frame of the engine list, exact, as rows."""
    return [(each.time.strftime("%Y-%m-%dT%H:%M:%SZ"), *each[1:6]) for each in frame]


def rows_in(value: bytes | str, closed: bool) -> list[Row]:
    """The reader of two lines."""
    said = json.loads(value)
    return [
        (at, *map(Decimal, candle.values()))
        for at, candle in json.loads(said["ohlcv_data"]).items()
        if not closed or at < said["data_end"]
    ]


class Truth:
    """What the exchange has, and what it had before it was corrected: allowed values by pair and time."""

    def __init__(self, exchange: SimulatedBinance) -> None:
        self._exchange = exchange
        self._lock = threading.Lock()
        self._allowed: dict[str, dict[str, set[Row]]] = {name: defaultdict(set) for name in PAIRS}

    def learn(self, name: str, first_ms: int) -> None:
        """Look what the exchange has from a time on."""
        candles = expected_candles(self._exchange, name.replace("/", ""), "1m", first_ms)
        with self._lock:
            for at, candle in candles.items():
                self._allowed[name][at].add((at, *map(Decimal, candle.values())))

    def correct(self, name: str, back: int) -> None:
        """Let the exchange correct the candle so many before the forming one."""
        open_ms = (self._exchange.clock.now_ms() // MINUTE_MS - back) * MINUTE_MS
        self.learn(name, open_ms)
        with suppress(ValueError):  # it has none: a gap
            symbol = name.replace("/", "")
            self._exchange.market.correct(symbol, "1m", open_ms, f"{random.randint(100, 999)}.5")
        self.learn(name, open_ms)

    def strangers(self, name: str, rows: list[Row]) -> list[Row]:
        """Rows that the exchange has, and had, otherwise."""
        unknown = [row for row in rows if row not in self._allowed[name][row[0]]]
        if unknown:
            first = time.strptime(unknown[0][0], "%Y-%m-%dT%H:%M:%SZ")
            self.learn(name, int((time.mktime(first) - time.timezone) * 1000))
        return [row for row in unknown if row not in self._allowed[name][row[0]]]


class Run:
    """One run: who reads, who follows, what was seen, and what was wrong."""

    def __init__(self, exchange: SimulatedBinance, server: Server) -> None:
        self.exchange, self.server, self.truth = exchange, server, Truth(exchange)
        url = f"redis://{server.address}"
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.done = threading.Event()
        self.reader = Reader(f"{url}/1", engine="list", clock=lambda: exchange.clock.now_ms() / 1000)
        self.client = redis.Redis.from_url(f"{url}/1")

    def guarded(self, act: Any) -> threading.Thread:
        """A thread whose failure is what was wrong."""

        def run() -> None:
            try:
                act()
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def read(self) -> None:
        """Compare frames with the values between which they were read."""
        while not self.done.is_set():
            name, closed = random.choice(PAIRS), random.random() < 0.5
            key = f"tet:kline:1m:{name.replace('/', '_')}"
            with suppress(redis.RedisError, Missing):
                before = self.client.get(key)
                rows = rows_of(self.reader.candles(name, "1m", exact=True, closed=closed))
                if before is None or before != self.client.get(key):
                    self.seen["between two writes"] += 1
                    continue
                self.seen["read"] += 1
                if rows != rows_in(before, closed):
                    self.wrong.append(f"{name} is read otherwise than it is")
            time.sleep(0.01)

    def follow(self) -> None:
        """Compare frames with the exchange's candles, and see that none closes twice or goes back."""
        newest = dict.fromkeys(PAIRS, "")
        for name, _, frame in self.reader.follow(PAIRS, "1m", exact=True):
            rows = rows_of(frame)
            self.seen["followed"] += 1
            if rows[-1][0] <= newest[name]:
                self.wrong.append(f"{name} goes back to {rows[-1][0]}")
            newest[name] = rows[-1][0]
            if rows[-1][0] >= iso_time(self.exchange.clock.now_ms() // MINUTE_MS * MINUTE_MS):
                self.wrong.append(f"{name} {rows[-1][0]} is given as closed, and is not")
            if strangers := self.truth.strangers(name, rows):
                self.wrong.append(f"{name} is followed with what the exchange never had: {strangers[0]}")

    def mishap(self, number: int) -> None:
        """The next thing that goes wrong."""
        name = PAIRS[number % len(PAIRS)]
        kind = MISHAPS[number % len(MISHAPS)]
        self.seen[f"mishap: {kind}"] += 1
        if kind == "near":
            self.truth.correct(name, 3)
        elif kind == "far":
            self.truth.correct(name, random.randint(20, 200))
        elif kind == "key":
            self.client.delete(f"tet:kline:1m:{name.replace('/', '_')}")
        elif kind == "flush":
            self.client.flushall()
        elif kind in ("restart", "loss"):
            self.server.kill()
            if kind == "loss":
                shutil.rmtree(self.server.folder / "appendonlydir")
            self.server.start()
        elif kind == "eviction":
            used = self.server.client.info("memory")["used_memory"]
            self.server.client.config_set("maxmemory-policy", "allkeys-random")
            self.server.client.config_set("maxmemory", used - 10_000)
            self.server.client.config_set("maxmemory", 0)
        elif kind == "gap":
            now_ms = self.exchange.clock.now_ms() // MINUTE_MS * MINUTE_MS
            self.exchange.market.symbols["DOGEUSDT"].halts.append(
                (now_ms + MINUTE_MS, now_ms + 3 * MINUTE_MS)
            )
        else:
            self.client.client_kill_filter(_type="pubsub" if kind == "pubsub" else "normal", skipme=True)

    def differences(self) -> list[str]:
        """Where what is read now is not what the exchange has."""
        found = []
        for name in PAIRS:
            rows = rows_of(self.reader.candles(name, "1m", exact=True))
            first_ms = self.exchange.clock.now_ms() // MINUTE_MS * MINUTE_MS - 1500 * MINUTE_MS
            candles = expected_candles(self.exchange, name.replace("/", ""), "1m", first_ms)
            true = {at: (at, *map(Decimal, candle.values())) for at, candle in candles.items()}
            found += [f"{name} {row} is {true.get(row[0])}" for row in rows if true.get(row[0]) != row]
        return found


def run(seconds: float) -> Run:
    """Let all go wrong for so long, then look whether it has settled."""
    clock = SimulatedClock(speed=SPEED)
    exchange = SimulatedBinance(market=Market.random_walk(PAIRS), clock=clock)
    given = {"SYMBOLS": ",".join(PAIRS), "TIMEFRAME": "1m", "DATA_DAYS": 1, "UPDATE_INTERVAL": 60}
    given |= {"LIVE": "true", "MARKET_HOURS_OPTIMIZATION": "false", "AUDIT_HOURS": 0.1}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = Server(Path(folder), "--appendonly", "yes")
        stack.callback(server.close)
        stack.enter_context(exchange)
        given["BINANCE_STREAM_URL"] = exchange.stream_url
        url = f"redis://{server.address}"
        work = Run(exchange, server)

        def service() -> tuple[Rig, threading.Thread]:
            rig = Rig(exchange, url, FastClock(SPEED), **given)
            rig.service.start()
            return rig, in_background(lambda: run_cycles(rig.service))

        running = [service()]
        eventually(lambda: len(work.reader.pairs("1m")) == len(PAIRS), 30)
        threads = [work.guarded(work.read), work.guarded(work.read), work.guarded(work.follow)]
        until, number = time.monotonic() + seconds, 0
        while time.monotonic() < until and not work.wrong:
            time.sleep(STEP_SECONDS)
            work.mishap(number)
            number += 1
            if number % 12 == 6:  # another one comes, and the first one goes
                running.append(service())
            elif number % 12 == 9:
                stop(*running.pop(0))
                work.seen["taken over"] += 1
        for each in running:
            stop(*each)
        with Rig(exchange, url, FastClock(SPEED), **given | {"LIVE": "false"}) as last:
            last.service.start()
            until = time.monotonic() + 30
            while audited(last) and (left := work.differences()) and time.monotonic() < until:
                time.sleep(0.1)
            work.wrong += left
        work.done.set()
        work.reader.close()
        for thread in threads:
            thread.join(10)
    return work


def audited(rig: Rig) -> bool:
    """Let a service look at all of its candles at once."""
    rig.refresh()
    for _ in range(len(rig.feeds) * 3):
        rig.service.audit.step(rig.feeds)
    return True


def stop(rig: Rig, runner: threading.Thread) -> None:
    """End a service."""
    rig.clock.stop()
    runner.join()
    rig.__exit__()


def main() -> int:
    """Run; returns the exit code."""
    work = run(float(sys.argv[1]) if len(sys.argv) > 1 else 300)
    for what, count in sorted(work.seen.items()):
        print(f"{count:>8}  {what}")
    print(f"wrong: {work.wrong[:5] or 'nothing'}")
    return 1 if work.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
