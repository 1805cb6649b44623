"""The simulated exchange for the benchmarks, started by them: warmed up, and telling its counters.

    python exchange.py A/USDT,B/USDT TIMEFRAME CANDLES AFTER_SECONDS SPEED

Its time passes SPEED times as fast; streams tell forming candles every 2 s of ours all the same. It works out
every candle that will be asked for before it says that it is ready, so that inventing them is no part of what
is measured. For each line it reads it writes a line of counters, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tet_extras import simulated_streams
from tet_extras.simulated_binance import INTERVALS, Market, RandomWalk, SimulatedBinance, SimulatedClock


def warmed(names: list[str], interval_name: str, candles: int, now_ms: int) -> Market:
    """A market that has the last ``candles`` candles of every pair in its cache, and room for them all."""
    market, interval = Market.random_walk(names), INTERVALS[interval_name]
    walk = market.source
    assert isinstance(walk, RandomWalk)  # noqa: S101
    walk._chunk = lru_cache(maxsize=None)(walk._work_out_chunk)  # its own cache holds 1024 chunks
    first_ms = interval.open_ms(interval.index_at(now_ms) - candles)
    for symbol in market.symbols:
        market.rows(symbol, interval, now_ms=now_ms, start_ms=first_ms, end_ms=None, limit=candles + 1)
    return market


def counted(exchange: SimulatedBinance) -> dict[str, float]:
    """The exchange's counters; ``first_at`` is when the first request came, as time.monotonic() counts."""
    requests = exchange.requests
    return {
        "requests": len(requests),
        "klines": len(exchange.asked("klines")),
        "connections": exchange.connections,
        "bytes": exchange.bytes_sent,
        "events": exchange.streams.messages_sent,
        "first_at": requests[0].at_monotonic if requests else 0.0,
    }


def main() -> None:
    """Serve until the input ends or a signal comes."""
    names, interval_name, candles, after_seconds, speed = sys.argv[1:]
    local_ms = time.time_ns() // 1_000_000
    interval = INTERVALS[interval_name]
    start_ms = interval.open_ms(interval.index_at(local_ms)) + round(float(after_seconds) * 1000)
    began = time.monotonic()
    market = warmed(names.split(","), interval_name, int(candles), start_ms)
    local_ms = time.time_ns() // 1_000_000
    clock = SimulatedClock(start_ms=start_ms, speed=float(speed))
    simulated_streams.FORMING_MS[simulated_streams.SPOT] = round(2000 * float(speed))
    with SimulatedBinance(market=market, clock=clock, weight_limit=1_000_000) as exchange:
        ready = {"url": exchange.url, "stream_url": exchange.stream_url, "ahead_ms": start_ms - local_ms}
        print(json.dumps(ready | {"warm_seconds": time.monotonic() - began}), flush=True)
        for line in sys.stdin:
            print(json.dumps(counted(exchange)), flush=True)
            if line.strip() == "clear":
                exchange.clear()


if __name__ == "__main__":
    main()
