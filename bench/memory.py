"""What a pair takes in memory, an hour after the start and at a close: started by `make bench-memory`.

    python bench/memory.py                          # 500 and 1000 pairs, an hour there; some 20 minutes
    python bench/memory.py --pairs 50 --minutes 20  # with so many pairs alone, for so long there

Polling and with LIVE. Time passes SPEED times as fast at the exchange and in the service, which is a process
of its own, with 30 days of 15m candles of each pair. What the process takes itself is what one with two
pairs takes after as long a time. The most that it has held since the first fill is the moment of a close, or
more. A whole run also writes `bench/memory.txt`, and ends with exit code 1 when a goal is missed. For Linux.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import redis
from common import ROOT, Exchange, forget_peak, memory_mb, serving

import bench
import tet_data_service as tet

SIZES, FEW, MINUTES = (500, 1000), 2, 60.0
SPEED = 20.0
CANDLES = 2880
MODES = ("polling", "live")
MOST_MB = 0.15  # of a pair, beyond the process itself
FILL_SECONDS = 400  # the longest that a first fill may take, by our clock


class Held(NamedTuple):
    """What the process has in memory, in MB: after the first fill, in the end, and at most in between."""

    filled: float
    later: float
    peak: float
    closes: int  # that were written since the fill


def measure(pairs: int, mode: str, minutes: float) -> Held:
    """Run the service so for so long, by the exchange's clock."""
    names = [f"P{number:04d}/USDT" for number in range(pairs)]
    flags = ["--symbols=" + ",".join(names), "--requests-per-sec=15"]
    flags += [f"--live={str(mode == 'live').lower()}"]
    # Forming candles are told and written as often as at the usual speed, by our clock.
    given = {"MEMORY_LIMIT_MB": "20000", "MARKET_HOURS_OPTIMIZATION": "false"}
    given |= {"LIVE_WRITE_SECONDS": str(round(5 * SPEED))}
    with (
        Exchange(names, "15m", CANDLES, 0, SPEED) as exchange,
        serving(exchange, *flags, seconds=FILL_SECONDS, altered=[f"speed={SPEED}"], **given) as service,
        redis.Redis(port=service.port, db=1) as client,
    ):
        pid = service.process.pid
        filled = memory_mb(pid)[1]
        forget_peak(pid)
        time.sleep(minutes * 60 / SPEED)
        peak, later = memory_mb(pid)
        status = tet.decode_json(client.get("tet:system:status") or b"{}")
        return Held(filled, later, peak, status["close_to_redis_seconds"]["closes"])


def table(found: Mapping[tuple[str, int], Held]) -> Iterator[str]:
    """A line for each mode and number of pairs: MB of the process, and beyond it of each pair."""
    yield f"{'':17}{'process, MB':>24}{'of each pair, MB':>24}"
    yield f"{'':17}{'filled':>8}{'later':>8}{'peak':>8}{'filled':>8}{'later':>8}{'peak':>8}{'closes':>8}"
    for (mode, pairs), held in found.items():
        whole = "".join(f"{each:>8.0f}" for each in held[:3])
        own = "".join(f"{each:>8.3f}" for each in per_pair(found, mode, pairs)) if pairs > FEW else " " * 24
        yield f"{mode:<9}{pairs:>6}  {whole}{own}{held.closes:>8}"


def per_pair(found: Mapping[tuple[str, int], Held], mode: str, pairs: int) -> list[float]:
    """What each pair takes beyond the process with few."""
    few, many = found[mode, FEW], found[mode, pairs]
    return [(one - other) / (pairs - FEW) for one, other in zip(many[:3], few[:3], strict=True)]


NOTES = """\
{candles} candles of 15m of each pair; filled is after the first fill, later {minutes:g} minutes after it,
peak the most in between, with so many closes written. Time passes {speed:g} times as fast. A pair is to take
{most} MB at most, later and at the peak.
"""


def main() -> int:
    """Measure, print, and write the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="What a pair takes in memory, an hour after the start.")
    parser.add_argument("--pairs", type=int, help="with so many pairs alone")
    parser.add_argument("--minutes", type=float, help=f"{MINUTES:g} unless given")
    options = parser.parse_args()
    minutes = options.minutes or MINUTES
    found = {}
    for mode in MODES:
        for pairs in (FEW, *([options.pairs] if options.pairs else SIZES)):
            print(f"# {pairs} pairs, {mode}", file=sys.stderr, flush=True)
            found[mode, pairs] = measure(pairs, mode, minutes)
    notes = NOTES.format(candles=CANDLES, minutes=minutes, speed=SPEED, most=MOST_MB)
    lines = ["What a pair takes in memory, an hour after the start and at a close", ""]
    lines += [f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}", ""]
    lines += [*table(found), "", *bench.wrapped(notes)]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.pairs or options.minutes:
        return 0
    (ROOT / "bench" / "memory.txt").write_text(text)
    most = max(max(per_pair(found, mode, pairs)[1:]) for mode, pairs in found if pairs > FEW)
    return int(most > MOST_MB)


if __name__ == "__main__":
    sys.exit(main())
