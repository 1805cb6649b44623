"""What a close costs: a value in which the window slides, beside one written whole: `make bench-closes`.

    python bench/closes.py                       # 100 pairs of 1m candles, 5 closes each; some 25 minutes
    python bench/closes.py --pairs 25 --closes 1 # a few minutes
    python bench/closes.py --quick               # single writes alone

First single writes, by the service's own functions, see `bench/writes.py`. Then the service as a process,
polling and with LIVE, as it is and altered so that it writes the value whole at each close, as it did before:
what Redis and its append-only file receive in a minute. A whole run also writes `bench/closes.txt`, and ends
with exit code 1 when a goal is missed. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import redis
from common import ROOT, Exchange, serving
from writes import CANDLES, WAYS, Used, Written, keep_all, written

import bench
from tet_core.stored import ROOM_SHARE

PAIRS, CLOSES = 100, 5
WRITES = 150  # of each way: in fewer closes than let a value be laid out anew
DAYS = 2  # of 1m candles: 2,880, as 30 of 15m
RATE = 50.0  # requests a second
MINUTE_MS = 60_000
MODES = ("polling", "live")
LAID_ANEW = ROOM_SHARE / CANDLES  # of the closes
#: To be reached: bytes of a close, of a pair and minute; how many times less CPU than a value written whole.
MOST_CLOSE_BYTES, MOST_MINUTE_BYTES, LEAST_RATIO = 2_000, 10_000, 3.0


class Minute(NamedTuple):
    """The bytes of a minute with a close, for each pair: what Redis receives, and what its file does."""

    received: float
    aof: float


def measure(pairs: int, closes: int, mode: str, altered: tuple[str, ...]) -> Minute:
    """Run the service so through so many closes."""
    names = [f"P{number:04d}/USDT" for number in range(pairs)]
    flags = ["--symbols=" + ",".join(names), "--timeframe=1m", f"--days={DAYS}"]
    flags += [f"--requests-per-sec={RATE:g}", f"--live={str(mode == 'live').lower()}"]
    given = {"MEMORY_LIMIT_MB": "20000", "MARKET_HOURS_OPTIMIZATION": "false", "AUDIT_HOURS": "0"}
    fill = 20 + pairs * 4 / RATE
    with (
        Exchange(names, "1m", CANDLES, 0) as exchange,
        serving(exchange, *flags, seconds=fill, altered=altered, **given) as service,
        redis.Redis(port=service.port) as client,
    ):
        keep_all(client)
        found = list(_minutes(exchange, client, closes))
    return Minute(*(statistics.median(each) / pairs for each in zip(*found, strict=True)))


def _minutes(exchange: Exchange, client: redis.Redis, closes: int) -> Iterator[Minute]:
    """What each minute costs from one close to just before the next one, of all pairs; not the first."""

    def until(at_ms: float) -> None:
        time.sleep(max(0.0, (at_ms - exchange.ahead_ms) / 1000 - time.time()))

    now_ms = time.time() * 1000 + exchange.ahead_ms
    close_ms = (now_ms // MINUTE_MS + 2) * MINUTE_MS
    until(close_ms - 500)
    before = Used.by(client)
    for _ in range(closes):
        close_ms += MINUTE_MS
        until(close_ms - 500)
        after = Used.by(client)
        yield Minute(after.received - before.received, after.aof - before.aof)
        before = after


def write_lines(found: Mapping[str, Written]) -> Iterator[str]:
    """The table of single writes."""
    yield f"{'one write':<24}{'CPU ms':>9}{'Redis ms':>10}{'kB sent':>10}{'kB of AOF':>11}"
    for way, cost in found.items():
        yield (
            f"{way:<24}{cost.cpu_ms:>9.3f}{cost.redis_ms:>10.3f}"
            f"{cost.bytes / 1000:>10.2f}{cost.aof_bytes / 1000:>11.2f}"
        )


def minute_lines(found: Mapping[tuple[str, str], Minute]) -> Iterator[str]:
    """The table of minutes."""
    yield f"{'a pair, a minute':<43}{'kB sent':>10}{'kB of AOF':>11}"
    for (mode, way), cost in found.items():
        sent, aof = cost.received / 1000, cost.aof / 1000
        yield f"{mode + ', ' + way:<43}{sent:>10.2f}{aof:>11.2f}"


def goals(
    writes: Mapping[str, Written], minutes: Mapping[tuple[str, str], Minute]
) -> Iterator[tuple[str, bool]]:
    """What was to be reached, with what was found; and whether it was."""
    slide = writes["slide"]
    for what, size in (("a close", slide.bytes), ("its part of the append-only file", slide.aof_bytes)):
        yield f"{what}: {size / 1000:.2f} kB, at most {MOST_CLOSE_BYTES / 1000:g}", size <= MOST_CLOSE_BYTES
    ratio = writes["whole"].cpu_ms / slide.cpu_ms
    yield f"CPU of a write: {ratio:.1f} times less than whole, {LEAST_RATIO:g} at least", ratio >= LEAST_RATIO
    for mode in dict.fromkeys(mode for mode, _ in minutes):
        cost = minutes[mode, "slide"]
        for what, size in (("sent", cost.received), ("of the append-only file", cost.aof)):
            words = f"{mode}, a pair's minute {what}: {size / 1000:.2f} kB"
            yield f"{words}, at most {MOST_MINUTE_BYTES / 1000:g}", size <= MOST_MINUTE_BYTES


NOTES = """\
A value of {candles:,} candles. A write of its own is by the service's functions, without what comes before
it; a refresh changes the newest candle, a close ends it and opens the next one. Once in some 180 closes Redis
lays the value out anew, by itself; its append-only file and its replicas have that whole, which is
{laid:.1f} kB more for a close in the mean, and not in the table.

Minutes are medians of {closes}, of {pairs} pairs of 1m candles: all that Redis receives, the status too,
divided among the pairs; with LIVE a forming candle is written every 5 s.
"""


def main() -> int:
    """Measure, print, and write the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="What a close costs, beside a value written whole.")
    parser.add_argument("--pairs", type=int, help=f"{PAIRS} unless given")
    parser.add_argument("--closes", type=int, help=f"{CLOSES} unless given")
    parser.add_argument("--quick", action="store_true", help="single writes alone")
    options = parser.parse_args()
    pairs, closes = options.pairs or PAIRS, options.closes or CLOSES
    is_whole_run = not (options.pairs or options.closes or options.quick)
    writes = {way: written(way, WRITES if is_whole_run else 40) for way in WAYS}
    minutes = {}
    for mode in MODES[: 0 if options.quick else None]:
        for way, altered in (("slide", ()), ("whole", ("whole",))):
            print(f"# {pairs} pairs, {mode}, {way}", file=sys.stderr, flush=True)
            minutes[mode, way] = measure(pairs, closes, mode, altered)
    reached = list(goals(writes, minutes))
    laid = writes["whole"].aof_bytes * LAID_ANEW / 1000
    notes = NOTES.format(candles=CANDLES, laid=laid, closes=closes, pairs=pairs)
    lines = ["What a close costs: the window slides in the value, or the value is written whole", ""]
    lines += [f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}", ""]
    lines += [*write_lines(writes), "", *minute_lines(minutes), ""]
    lines += [f"{'reached' if is_reached else 'MISSED '}  {words}" for words, is_reached in reached]
    text = "\n".join([*lines, "", *bench.wrapped(notes)]) + "\n"
    print(text, end="")
    if not is_whole_run:
        return 0
    (ROOT / "bench" / "closes.txt").write_text(text)
    return int(not all(is_reached for _, is_reached in reached))


if __name__ == "__main__":
    sys.exit(main())
