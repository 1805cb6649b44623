"""What do those cost who look at the page or ask /api? Started by `make bench-page`.

Starts a Valkey server, the simulated exchange and the service as processes of their own: 25 pairs of a
month of 15m candles, a cycle every few seconds. Then a hundred clients ask once a second for SECONDS (20
unless given), each time over a new connection, and are compared with nobody: the service's CPU, how long
an answer took, and how long the service's own cycles took meanwhile. Where they cost more than 5 % of a core
it says for what, by asking for the dearest once more under a profiler; not in less than 10 s for each line,
which say little: the window is of 2 days then. Exit code 1 when one was not answered.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from common import Exchange, Serving, cpu_seconds, serving, unused_port

import tet_data_service as tet

CLIENTS = 100
PROFILED_FROM = 0.05  # of a core
SECONDS_TO_PROFILE = 10
START_SECONDS = 60
START_CYCLES = 4


PAIRS = [f"/api/candles?symbol={name}&limit=500" for name in tet.DEFAULT_SYMBOLS]
#: What is asked for: paths, whether with the last answer's tag, and over how many seconds clients spread.
WANTED = {
    "status": (["/api/status"], False, 1.0),
    "table": (["/api/pairs"], False, 1.0),
    "candles": (PAIRS, False, 1.0),
    "candles, ETag": (PAIRS, True, 1.0),
    "candles, at once": (PAIRS, False, 0.0),
}
Client = Callable[[float], Coroutine[Any, Any, Any]]


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


def measure(name: str, service: Serving, seconds: float, clients: Sequence[Client]) -> Phase:
    """Let the clients do that for so long."""
    pid = service.process.pid
    cycles_before, cpu_before, began = len(service.cycles()), cpu_seconds(pid), time.monotonic()

    async def all_of_them() -> list[list[float | None]]:
        found = await asyncio.gather(*(client(began + seconds) for client in clients))
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
        return list(found)

    latencies = [latency for found in asyncio.run(all_of_them()) for latency in found]
    share = (cpu_seconds(pid) - cpu_before) / (time.monotonic() - began)
    good = [latency for latency in latencies if latency is not None]
    cycles = service.cycles()[cycles_before:]
    return Phase(name, len(latencies), len(latencies) - len(good), share, good, cycles)


def asking(port: int, name: str) -> list[Client]:
    """A hundred who ask for one of `WANTED`."""
    paths, with_tag, spread = WANTED[name]
    return [
        lambda until, n=n: ask_each_second(  # type: ignore[misc]
            port, paths[n % len(paths)], until, spread * n / CLIENTS, with_tag
        )
        for n in range(CLIENTS)
    ]


def phases(port: int, service: Serving, seconds: float) -> list[Phase]:
    """Nobody, then a hundred who ask for one thing, then for another."""
    found = [measure("nobody", service, seconds, [])]
    found += [measure(name, service, seconds, asking(port, name)) for name in WANTED]
    followers = [lambda until: follow(port, until) for _ in range(CLIENTS)]
    return [*found, measure("/events", service, seconds, followers)]


def show(found: list[Phase]) -> None:
    """Print the table."""
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


@contextmanager
def started(exchange: Exchange, days: int, port: int, *altered: str) -> Iterator[Serving]:
    """The service with its page, a few cycles old."""
    arguments = [f"--symbols={','.join(tet.DEFAULT_SYMBOLS)}", f"--days={days}", "--interval=2"]
    arguments += ["--requests-per-sec=25", f"--http=127.0.0.1:{port}"]
    with serving(exchange, *arguments, seconds=START_SECONDS, altered=altered) as service:
        service.wait_for(START_CYCLES, START_SECONDS)
        yield service


def profile(exchange: Exchange, days: int, seconds: float, name: str) -> str:
    """What the threads that serve do while a hundred ask for that."""
    port = unused_port()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "profile"
        with started(exchange, days, port, f"profile={out}") as service:
            measure(name, service, seconds, asking(port, name))
        return out.read_text()


def main() -> int:
    """Measure and print; returns the exit code."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    days, port = 30 if seconds >= SECONDS_TO_PROFILE else 2, unused_port()
    with Exchange(list(tet.DEFAULT_SYMBOLS), "15m", days * 96 + 10, 60) as exchange:
        with started(exchange, days, port) as service:
            found = phases(port, service, seconds)
        print(f"{CLIENTS} clients, each asking once a second; 25 pairs of {days * 96} candles; ", end="")
        print(f"{seconds:g} s for each line")
        print("CPU is of one core; more is what it is above nobody; ", end="")
        print("cycle is how long the service's updates took\n")
        show(found)
        dearest = max((phase for phase in found if phase.name in WANTED), key=lambda phase: phase.share)
        if dearest.share - found[0].share > PROFILED_FROM and seconds >= SECONDS_TO_PROFILE:
            print(f"\nMore than {PROFILED_FROM:.0%} of a core. What the threads that serve do ", end="")
            print(f"for {dearest.name!r}:\n")
            print(profile(exchange, days, seconds, dearest.name), end="")
    return int(any(phase.failed for phase in found))


if __name__ == "__main__":
    sys.exit(main())
