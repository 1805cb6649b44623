"""What do bots cost that take this service for the exchange? Started by `make bench-proxy`.

Starts a Valkey server, the simulated exchange and the service as processes of their own: 25 pairs of a month
of 15m candles with all fields. Then 50 bots, each over a connection of its own, ask for 1,000 candles of each
pair every 15 s, for SECONDS (30 unless given): the service's CPU, how long an answer took, and what the
exchange was asked beyond the service's own updates. Then one bot asks for two candles, 2,000 times. Exit code
1 when one was not answered, when the bots cost the exchange a request or this process more than 10 % of a
core, or an answer of two candles more than 1 ms of CPU; in less than 15 s the CPU does not count, the window
is of 11 days, and the one bot asks 100 times.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from contextlib import suppress

from common import Exchange, cpu_seconds, memory_mb, serving, unused_port

import tet_data_service as tet

BOTS, ROUND_SECONDS, LIMIT = 50, 15.0, 1000
SMALL_ANSWERS = 2000
INTERVAL_SECONDS = 60  # between the service's own updates, after each of which answers are made anew
MOST_SHARE, MOST_MS = 0.10, 1.0
SECONDS_TO_JUDGE = 15
START_SECONDS = 60
WEIGHT, WEIGHT_LIMIT = 2, 6000  # of a klines request on spot; of the exchange, a minute


class Bot:
    """A client that keeps its connection, as the libraries do; latencies in seconds, None for a failure."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.latencies: list[float | None] = []

    async def connect(self) -> None:
        """Open the connection."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, name: str, limit: int) -> bytes:
        """Candles of a pair, not unpacked: that would be the bot's cost."""
        began = time.monotonic()
        symbol = name.replace("/", "")
        target = f"/api/v3/klines?symbol={symbol}&interval=15m&limit={limit}"
        head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: gzip\r\n\r\n"
        body = b""
        with suppress(OSError, asyncio.IncompleteReadError, AttributeError):
            self._writer.write(head.encode())
            reply = await self._reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", reply)[1])  # type: ignore[index]
            body = await self._reader.readexactly(length)
            good = reply.startswith(b"HTTP/1.1 200")
            self.latencies.append(time.monotonic() - began if good else None)
            return body
        self.latencies.append(None)
        await self.connect()  # the service ends a connection that is idle for long
        return body

    async def run(self, until: float, offset: float) -> None:
        """Every 15 s all pairs, one after the other."""
        await asyncio.sleep(offset)
        while (began := time.monotonic()) < until:
            await self.connect()
            for name in tet.DEFAULT_SYMBOLS:
                await self.ask(name, LIMIT)
            self._writer.close()
            await asyncio.sleep(max(0.0, min(until, began + ROUND_SECONDS) - time.monotonic()))


async def all_bots(port: int, seconds: float) -> list[float | None]:
    """Fifty of them, spread over a round."""
    until = time.monotonic() + seconds
    bots = [Bot(port) for _ in range(BOTS)]
    await asyncio.gather(
        *(bot.run(until, min(seconds, ROUND_SECONDS) * n / BOTS) for n, bot in enumerate(bots))
    )
    await asyncio.sleep(max(0.0, until - time.monotonic()))
    return [latency for bot in bots for latency in bot.latencies]


async def two_candles(port: int, times: int) -> list[float | None]:
    """One bot that asks for two, so many times."""
    bot = Bot(port)
    await bot.connect()
    for number in range(times):
        await bot.ask(tet.DEFAULT_SYMBOLS[number % len(tet.DEFAULT_SYMBOLS)], 2)
    return bot.latencies


def spread(latencies: list[float | None]) -> str:
    """Median and 99th percentile."""
    times = sorted(each for each in latencies if each is not None)
    return f"p50 {times[len(times) // 2] * 1000:.1f} ms, p99 {times[len(times) * 99 // 100] * 1000:.1f} ms"


def measure(port: int, pid: int, exchange: Exchange, seconds: float) -> bool:
    """Measure and print; whether all is within bounds."""
    quiet_cpu, began = cpu_seconds(pid), time.monotonic()
    time.sleep(min(seconds, 10.0))
    quiet = (cpu_seconds(pid) - quiet_cpu) / (time.monotonic() - began)
    cpu, began, asked = cpu_seconds(pid), time.monotonic(), exchange.counters()["klines"]
    latencies = asyncio.run(all_bots(port, seconds))
    share = (cpu_seconds(pid) - cpu) / (time.monotonic() - began)
    beyond = exchange.counters()["klines"] - asked
    failed = latencies.count(None)
    print(f"{BOTS} bots, {len(tet.DEFAULT_SYMBOLS)} pairs each, limit={LIMIT}, every {ROUND_SECONDS:g} s")
    print(f"  {len(latencies)} answers, {failed} failed; {spread(latencies)}")
    print(f"  CPU {share:.1%} of a core, {share - quiet:.1%} more than without; {memory_mb(pid)[1]:.0f} MB")
    # A round of updates, and where a candle closes meanwhile, another one and who is asked again.
    own = len(tet.DEFAULT_SYMBOLS) * (3 + round(seconds / INTERVAL_SECONDS))
    print(f"  klines asked of the exchange meanwhile: {beyond}; by the updates alone {own} at most")
    cpu = cpu_seconds(pid)
    small = asyncio.run(two_candles(port, SMALL_ANSWERS if seconds >= SECONDS_TO_JUDGE else 100))
    each_ms = (cpu_seconds(pid) - cpu) / len(small) * 1000
    print(f"limit=2: {each_ms:.2f} ms of CPU an answer; {small.count(None)} failed; {spread(small)}")
    weight = round(BOTS * len(tet.DEFAULT_SYMBOLS) * 60 / ROUND_SECONDS * WEIGHT)
    print(f"the same bots at the exchange: a weight of {weight} a minute, of which it allows {WEIGHT_LIMIT}")
    is_cheap = share - quiet <= MOST_SHARE and each_ms <= MOST_MS
    return not failed and beyond <= own and not small.count(None) and (is_cheap or seconds < SECONDS_TO_JUDGE)


def main() -> int:
    """Start all, measure and print; returns the exit code."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    days = 30 if seconds >= SECONDS_TO_JUDGE else 11  # which are a bit more than LIMIT
    port = unused_port()
    flags = [
        f"--days={days}",
        f"--interval={INTERVAL_SECONDS}",
        "--requests-per-sec=25",
        "--fields=all",
        "--proxy",
    ]
    with (
        Exchange(list(tet.DEFAULT_SYMBOLS), "15m", days * 96 + 10, 60) as exchange,
        serving(exchange, *flags, f"--http=127.0.0.1:{port}", seconds=START_SECONDS) as service,
    ):
        return 0 if measure(port, service.process.pid, exchange, seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
