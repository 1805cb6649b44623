"""What reading costs: tet_reader.py beside what people write themselves. Started by `make bench-reader`.

    python bench/reading.py               # 500 pairs; some three minutes
    python bench/reading.py --pairs 25

The simulated exchange, a Valkey server and the service with LIVE and 30 days of 15m candles are started. When
all is there, each way of reading reads; then another process follows all pairs through a close. A run with
500 pairs also writes `bench/reader.txt`. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import redis
from common import ROOT, Exchange, cpu_seconds, serving
from reader import ClosesReader

from tet_reader import Reader

CANDLES = 2880
STEP_MS = 900_000
AHEAD_SECONDS = 14.0  # before the close, for all that is done once
PAIR_SECONDS = 0.28  # for a pair's first fill, and for all ways of reading it
START_SECONDS = 60.0
NAME = "reading"  # of the connections that are measured


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--follow", metavar="PORT", type=int, help="be the process that follows")
    options = parser.parse_args()
    if options.follow:
        follow(options.follow, options.pairs)
        return
    with running(names_of(options.pairs)) as (exchange, port):
        lines = [*reads(port, names_of(options.pairs)), "", *followed(exchange, port, options.pairs)]
    text = "\n".join([*heading(options.pairs), *lines]) + "\n"
    print(text)
    if options.pairs == 500:
        (ROOT / "bench" / "reader.txt").write_text(text)


def names_of(pairs: int) -> list[str]:
    """Names of so many pairs."""
    return [f"P{number:04d}/USDT" for number in range(pairs)]


def heading(pairs: int) -> Iterator[str]:
    """What was measured, and where."""
    yield f"What reading costs: {pairs} pairs, {CANDLES} candles of 15m each"
    yield ""
    yield f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    yield f"pandas {pd.__version__}, redis-py {redis.__version__}, orjson {orjson.__version__}"
    yield ""


@contextmanager
def running(names: list[str]) -> Iterator[tuple[Exchange, int]]:
    """The exchange and the service, all candles there, a while before a close; the port of Redis."""
    ahead = AHEAD_SECONDS + PAIR_SECONDS * len(names)
    with Exchange(names, "15m", CANDLES, 900 - ahead) as exchange:
        flags = ["--symbols=" + ",".join(names), "--requests-per-sec=50"]
        flags += ["--live=true", f"--stream-url={exchange.stream_url}"]
        settings = {"MEMORY_LIMIT_MB": "20000", "AUDIT_HOURS": "0"}
        with serving(exchange, *flags, seconds=START_SECONDS + ahead, **settings) as service:
            yield exchange, service.port


def sent(client: redis.Redis) -> int:
    """Bytes that Redis has sent over the connections that are measured."""
    return sum(int(each["tot-net-out"]) for each in client.client_list() if each["name"] == NAME)


def reads(port: int, names: list[str]) -> Iterator[str]:
    """The table of reads: milliseconds of CPU, of time, and kB for each pair."""
    yield f"{'one pair':<34}{'CPU ms':>8}{'p50 ms':>8}{'kB':>8}"
    with redis.Redis(port=port, db=1) as watcher:
        client = redis.Redis(port=port, db=1, client_name=NAME)
        reader = Reader(client)

        def snippet(name: str) -> Any:
            value = json.loads(client.get(f"tet:kline:15m:{name.replace('/', '_')}"))
            candles = pd.read_json(StringIO(value["ohlcv_data"]), orient="index")
            return candles[candles.index < value["data_end"]]

        def parsed(loads: Callable[[Any], Any], name: str) -> Any:
            value = loads(client.get(f"tet:kline:15m:{name.replace('/', '_')}"))
            return loads(value["ohlcv_data"])

        ways: dict[str, Callable[[str], Any]] = {
            "pandas.read_json, the old snippet": snippet,
            "json twice, no floats, no frame": lambda name: parsed(json.loads, name),
            "orjson twice, no floats, no frame": lambda name: parsed(orjson.loads, name),
            "tet_reader, first read": reader.candles,
            "tet_reader, read again": reader.candles,
        }
        before = resident_mb()
        for title, read in ways.items():
            if title.endswith("first read"):
                before = resident_mb()
            count = len(names) if title.startswith("tet_reader") else min(60, len(names))
            yield measured(title, read, names[:count], watcher, count)
            if title.endswith("first read"):
                kept = (resident_mb() - before) / len(names)
        yield measured("tet_reader, all again at once", reader.frames, [names], watcher, len(names))
        yield ""
        yield f"kept by the reader: {kept:.2f} MB for each pair"
        client.close()


def measured(
    title: str, read: Callable[[Any], Any], asked: Sequence[Any], watcher: redis.Redis, pairs: int
) -> str:
    """A row: the means over so many pairs, and the median of the time."""
    times, bytes_before, cpu = list[float](), sent(watcher), time.process_time()
    for each in asked:
        began = time.perf_counter()
        read(each)
        times.append(time.perf_counter() - began)
    spent = (time.process_time() - cpu) / pairs
    kilobytes = (sent(watcher) - bytes_before) / pairs / 1000
    median = statistics.median(times) * len(asked) / pairs
    return f"{title:<34}{spent * 1000:>8.2f}{median * 1000:>8.2f}{kilobytes:>8.1f}"


def resident_mb() -> float:
    """What this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def followed(exchange: Exchange, port: int, pairs: int) -> Iterator[str]:
    """The rows of a close that another process follows."""
    command = [sys.executable, __file__, f"--follow={port}", f"--pairs={pairs}"]
    with (
        redis.Redis(port=port, db=1) as watcher,
        ClosesReader(port, exchange.ahead_ms) as closes,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout  # noqa: S101 (it is a pipe)
        close_ms = (int(time.time() * 1000) + exchange.ahead_ms) // STEP_MS * STEP_MS + STEP_MS
        left = (close_ms - exchange.ahead_ms) / 1000 - time.time()
        if left > STEP_MS / 2000:
            process.kill()
            raise RuntimeError("the close came before all was there: this machine is busy")
        time.sleep(max(0.0, left - 2))
        cpu, before = cpu_seconds(process.pid), sent(watcher)
        readable = closes.wait(pairs, 900)
        ready = (float(process.stdout.readline()) + exchange.ahead_ms - close_ms) / 1000
        cpu, after = cpu_seconds(process.pid) - cpu, sent(watcher)
        process.communicate("")
    yield f"{pairs} pairs followed through a close, with LIVE, from 2 s before it on:"
    yield f"  last candle readable in Redis  {readable[-1]:6.2f} s after the close"
    yield f"  last of all frames given       {ready:6.2f} s after the close"
    yield f"  CPU of the reader              {cpu:6.2f} s"
    yield f"  sent to the reader             {(after - before) / 1e6:6.2f} MB"


def follow(port: int, pairs: int) -> None:
    """Follow all pairs through the next close; print when all frames were given, in ms since the epoch."""
    reader = Reader(redis.Redis(port=port, db=1, client_name=NAME))
    frames = reader.follow(names_of(pairs))
    for _ in range(pairs):
        next(frames)
    print(time.time() * 1000, flush=True)
    sys.stdin.read()  # until what it cost was looked at


if __name__ == "__main__":
    main()
