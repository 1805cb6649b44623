"""From a candle's close to another process's eyes, by polling and with LIVE. Started by `make bench-live`.

    python bench/live.py                  # 25 to 3000 pairs, both ways; about 45 minutes
    python bench/live.py --pairs 25       # with so many pairs alone; a few minutes

For each number of pairs and each way: the simulated exchange, a Valkey server, the service with 30 days of
15m candles, and a reader are started. The exchange's time is such that a candle closes some time after the
first fill. Before the close a steady stretch is measured: CPU, memory, requests, messages. At the close the
reader notes when it had each pair's closed candle. A whole run also writes `bench/live.txt` and
`bench/live.svg`. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import redis
from chart import draw_delays
from common import ROOT, Exchange, Serving, cpu_seconds, forget_peak, memory_mb, serving
from reader import ClosesReader

import tet_data_service as tet
from tet_core.candles import make_candles
from tet_core.feeds import Provenance
from tet_extras.live import parse_stream_row
from tet_extras.messages import parse_kline
from tet_extras.simulated_binance import INTERVALS, Market
from tet_extras.simulated_streams import kline_event

SIZES = (25, 100, 500, 1000, 3000)
CANDLES = 2880
STEADY_SECONDS = 60.0
INTERVAL_SECONDS = 30  # so that the stretch has two updates by polling
#: That a first fill may take, and then some.
FILL_SECONDS = {5: 4, 25: 15, 100: 20, 500: 60, 1000: 150, 3000: 330}
AFTER_CLOSE_SECONDS = 75.0  # that the last closed candle may take
WAYS = ("polling", "live")
RATE = 50.0  # requests per second: the limit of weight, not that of a small machine


@dataclass
class Result:
    """One number of pairs, one way."""

    pairs: int
    way: str
    delays: list[float]  # seconds from close to the reader, ascending
    cpu_share: float  # of one core, in the steady stretch
    close_cpu_seconds: float  # of the service, from the close to the last candle
    memory_mb: float
    peak_mb: float  # at the close
    requests: float  # per pair and hour, in the steady stretch
    messages: float  # per second, from the exchange
    queue: int  # the longest the inbox was seen


def fill_seconds(pairs: int) -> int:
    """How long a first fill of so many pairs may take."""
    return next((seconds for size, seconds in FILL_SECONDS.items() if pairs <= size), 600)


def measure(pairs: int, way: str, steady_seconds: float) -> Result:
    """Run the service so, through a steady stretch and a close."""
    names = [f"P{number:04d}/USDT" for number in range(pairs)]
    lead_seconds = fill_seconds(pairs) + steady_seconds + 6
    flags = ["--symbols=" + ",".join(names), f"--requests-per-sec={RATE:g}"]
    flags += [f"--live={str(way == 'live').lower()}", f"--interval={INTERVAL_SECONDS}"]
    given = {"MEMORY_LIMIT_MB": "20000", "MARKET_HOURS_OPTIMIZATION": "false", "AUDIT_HOURS": "0"}
    with (
        Exchange(names, "15m", CANDLES, 900 - lead_seconds) as exchange,
        serving(exchange, *flags, seconds=fill_seconds(pairs), **given) as service,
    ):
        return _observe(service, exchange, pairs, way, steady_seconds)


def _observe(service: Serving, exchange: Exchange, pairs: int, way: str, steady_seconds: float) -> Result:
    """Measure the steady stretch, then the close."""
    process, port = service.process, service.port
    with redis.Redis(port=port, db=1) as client, ClosesReader(port, exchange.ahead_ms) as reader:
        close_ms = _next_close_ms(exchange)
        time.sleep(max(0.0, _seconds_until(exchange, close_ms) - steady_seconds - 5))
        before, cpu, began = exchange.counters(), cpu_seconds(process.pid), time.monotonic()
        time.sleep(max(1.0, _seconds_until(exchange, close_ms) - 3))
        after, spent, seconds = (
            exchange.counters(),
            cpu_seconds(process.pid) - cpu,
            time.monotonic() - began,
        )
        now_mb = memory_mb(process.pid)[1]
        time.sleep(max(0.0, _seconds_until(exchange, close_ms)))
        forget_peak(process.pid)
        cpu = cpu_seconds(process.pid)
        delays = reader.wait(pairs, AFTER_CLOSE_SECONDS if pairs < 1000 else 4 * AFTER_CLOSE_SECONDS)
        status = tet.decode_json(client.get("tet:system:status") or b"{}")
        return Result(
            pairs,
            way,
            delays,
            spent / seconds,
            cpu_seconds(process.pid) - cpu,
            now_mb,
            memory_mb(process.pid)[0],
            (after["klines"] - before["klines"]) / pairs * 3600 / seconds,
            (after["events"] - before["events"]) / seconds,
            (status.get("live") or {}).get("queue", 0),
        )


def _next_close_ms(exchange: Exchange) -> int:
    step_ms = tet.TIMEFRAMES["15m"].step_ms
    return int((time.time() * 1000 + exchange.ahead_ms) // step_ms + 1) * step_ms


def _seconds_until(exchange: Exchange, at_ms: int) -> float:
    return (at_ms - time.time() * 1000 - exchange.ahead_ms) / 1000


def message_cost() -> Iterator[tuple[str, float]]:
    """Microseconds of CPU for each step of a message: decode, check, splice into 30 days of candles."""
    timeframe, interval = tet.TIMEFRAMES["15m"], INTERVALS["15m"]
    market, now_ms = Market.random_walk(["BTC/USDT"]), timeframe.floor(1_768_478_850_000) + 60_000
    opens = [timeframe.shift(timeframe.floor(now_ms), -number) for number in range(CANDLES, 0, -1)]
    ohlcv = [["108150.12"] * CANDLES] * 4 + [["129.34341"] * CANDLES]
    feed = tet.Feed(tet.Pair("BTC", "USDT"), timeframe, CANDLES)
    closed = tet.Series(timeframe).merge(make_candles(opens, map(tet.iso_time, opens), ohlcv), True, CANDLES)
    feed.series, feed.provenance = closed, Provenance.CONFIRMED
    frames = []
    for number in range(500):
        at_ms = now_ms + number * 1000
        (row,) = market.rows(
            "BTCUSDT", interval, now_ms=at_ms, start_ms=timeframe.floor(at_ms), end_ms=None, limit=1
        )
        frames.append(kline_event("BTCUSDT", "15m", row, at_ms, closed=False))
    last_ms = now_ms + 10**7
    messages = [parse_kline(tet.decode_json(frame), 0) for frame in frames]
    candles = [parse_stream_row(message, timeframe, last_ms) for message in messages if message]
    steps = {
        "decode": lambda place: parse_kline(tet.decode_json(frames[place]), 0),
        "check": lambda place: parse_stream_row(messages[place], timeframe, last_ms),
        "splice": lambda place: feed.streamed(candles[place], False, now_ms),
    }
    for name, step in steps.items():
        began = time.process_time()
        for place in range(500):
            step(place)
        yield name, (time.process_time() - began) / 500 * 1e6


def percentile(delays: list[float], share: float) -> float:
    """The smallest delay that so many of the delays do not exceed; infinite when there is none."""
    return delays[min(len(delays) - 1, int(len(delays) * share))] if delays else float("inf")


def table(results: list[Result]) -> Iterator[str]:
    """A line for each number of pairs and way, in 80 columns."""
    over = f"{'close to readable, s':>24}{'steady':>8}{'at close':>9}{'memory MB':>12}"
    yield f"{'':15}{over}{'REST':>7}{'msg':>5}"
    heads = f"{'p50':>8}{'p99':>8}{'last':>8}{'CPU':>8}{'CPU s':>9}{'':>6}{'close':>6}{'/pair h':>7}{'/s':>5}"
    yield f"{'pairs':>5} {'way':<9}{heads}"
    for each in results:
        missing = f"  {each.pairs - len(each.delays)} missing" if len(each.delays) < each.pairs else ""
        last = each.delays[-1] if each.delays else float("inf")
        yield (
            f"{each.pairs:>5} {each.way:<9}{percentile(each.delays, 0.5):>8.2f}"
            f"{percentile(each.delays, 0.99):>8.2f}{last:>8.2f}{each.cpu_share:>8.1%}"
            f"{each.close_cpu_seconds:>9.2f}{each.memory_mb:>6.0f}{each.peak_mb:>6.0f}{each.requests:>7.1f}{each.messages:>5.0f}{missing}"
        )


NOTES = """\
The exchange is simulated and local: no latency, no TLS; it tells a close 10 to
60 ms after it, and a forming candle every 2 s. Close to readable is measured by
another process, which is told by tet:updates and then reads the value's end. 30
days of 15m candles, {rate:g} requests a second at most, UPDATE_INTERVAL={interval},
LIVE_WRITE_SECONDS=5, all else default. CPU is user and system time of the
service, as a share of one core, before the close; REST is how many klines
requests a pair costs in an hour, measured over {steady:g} s or so."""


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description="From a close to another process's eyes: polling and LIVE.")
    parser.add_argument("--pairs", type=int, help="with so many pairs alone")
    parser.add_argument("--steady", type=float, default=STEADY_SECONDS, help="seconds before the close (60)")
    options = parser.parse_args()
    results = []
    for pairs in [options.pairs] if options.pairs else SIZES:
        for way in WAYS:
            print(f"# {pairs} pairs, {way}", file=sys.stderr, flush=True)
            results.append(measure(pairs, way, options.steady))
            print(list(table(results[-1:]))[-1], file=sys.stderr, flush=True)
    costs = list(message_cost())
    lines = ["From a candle's close to readable in Redis: polling, and LIVE", ""]
    system = f"{platform.system()} {platform.release()}"
    lines += [f"{os.cpu_count()} cores, {system}, Python {platform.python_version()}"]
    lines += ["", *table(results), ""]
    for pairs in dict.fromkeys(each.pairs for each in results):
        polling, live = (each for each in results if each.pairs == pairs)
        kilobytes = (live.memory_mb - polling.memory_mb) * 1000 / pairs
        lines.append(f"{pairs} pairs: LIVE takes {kilobytes:.0f} kB more memory per pair than polling.")
    total = sum(cost for _, cost in costs)
    parts = ", ".join(f"{name} {cost:.0f}" for name, cost in costs)
    lines += ["", f"CPU per message, without its write: {total:.0f} us ({parts})", "", ""]
    text = "\n".join(lines) + NOTES.format(rate=RATE, steady=options.steady, interval=INTERVAL_SECONDS) + "\n"
    print(text)
    if not options.pairs:
        (ROOT / "bench" / "live.txt").write_text(text)
        rows = [
            (each.pairs, each.way, percentile(each.delays, 0.5), percentile(each.delays, 0.99))
            for each in results
        ]
        (ROOT / "bench" / "live.svg").write_text(draw_delays(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
