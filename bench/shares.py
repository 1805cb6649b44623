"""Where the CPU of a steady refresh goes: `python bench/bench.py --profile`.

The service runs in this process, its worker's work done in the main thread. A timer that counts CPU
time, not waiting, interrupts it; the innermost frame of a file we know tells whose time it was. That
costs nothing between two ticks, and so does not distort as a tracing profiler would. The limit of
requests per second is off: its even beat would let the ticks meet the same moments again and again.
What the real
program adds, threads that wake each other and its work between cycles, is the table's steady refresh
less the figure here.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from common import ROOT

sys.path.insert(0, str(ROOT / "tests"))

import rig

import tet_data_service as tet
from tet_extras import workers

TICK_SECONDS = 0.001  # the kernel makes it its own tick, where that is longer
CYCLES = 40
FOLDERS = {
    "httpx": "httpx (with httpcore, h11)",
    "httpcore": "httpx (with httpcore, h11)",
    "h11": "httpx (with httpcore, h11)",
    "redis": "redis",
}
OWN, REST = "own code", "the rest"


class Inline:
    """In place of the pool of worker threads: does the work at once, in the thread that asks."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, act: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Do it; returns what a pool would."""
        future: Future[Any] = Future()
        try:
            future.set_result(act(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future

    def shutdown(self, *_: object, **__: object) -> None:
        """Nothing is to be ended."""


class Unlimited:
    """In place of the token bucket: there is always a token."""

    def __init__(self, *_: object) -> None:
        pass

    def reserve(self, _: float) -> float:
        """How long to wait for one."""
        return 0.0


class Sampler:
    """Counts, at each tick of the process's CPU time, whose code runs."""

    def __init__(self) -> None:
        self.owners: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Sampler:
        signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, TICK_SECONDS, TICK_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _tick(self, _: int, frame: FrameType | None) -> None:
        owner, place = _owner(frame)
        self.owners[owner] += 1
        self.places[owner, place] += 1


def _owner(frame: FrameType | None) -> tuple[str, str]:
    """Whose time it is, and the function of theirs that runs or has called what runs."""
    innermost = frame
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.name == "tet_data_service.py":
            return OWN, frame.f_code.co_qualname
        for folder, name in FOLDERS.items():
            if f"/site-packages/{folder}/" in str(path):
                return name, f"{folder}: {frame.f_code.co_qualname}"
        frame = frame.f_back
    return REST, innermost.f_code.co_qualname if innermost else "?"


def refresh(service: rig.Rig) -> None:
    """One steady cycle over all pairs."""
    for feed in service.feeds:
        rig.due_now(feed)
    service.service.cycle()


def show_shares(exchange_url: str, redis_port: int, names: list[str]) -> None:
    """Fill the pairs, refresh them `CYCLES` times, each under the sampler, and print the shares."""
    workers.ThreadPoolExecutor = Inline  # type: ignore[misc, assignment]
    tet.TokenBucket = Unlimited  # type: ignore[misc, assignment]
    exchange: Any = SimpleNamespace(url=exchange_url)
    given = {"DATA_DAYS": 30, "SYMBOLS": ",".join(names), "CONCURRENT_REQUESTS": 1}
    with rig.started(exchange, f"127.0.0.1:{redis_port}", **given) as service:
        for what, cycles in (("A cold fill", 1), ("A steady refresh", CYCLES)):
            with Sampler() as sampler:
                began = time.process_time()
                for _ in range(cycles):
                    refresh(service)
                cpu_ms = (time.process_time() - began) * 1000 / (cycles * len(names))
            _print(f"{what}, {len(names)} pairs x {cycles}, one thread", sampler, cpu_ms)


def _print(title: str, sampler: Sampler, cpu_ms: float) -> None:
    """The shares as a table: owners, and the places of each that took most."""
    ticks = sampler.owners.total()
    print(f"\n{title}: {cpu_ms:.2f} ms of CPU per pair")
    print(f"({ticks} samples by a timer that counts CPU time, see bench/shares.py)\n")
    for owner, count in sampler.owners.most_common():
        print(f"{owner:<48}{count / ticks:>7.1%}{count / ticks * cpu_ms:>8.2f} ms")
        places = [(number, place) for (name, place), number in sampler.places.items() if name == owner]
        for number, place in sorted(places, reverse=True)[:10]:
            if number / ticks >= 0.01:
                print(f"    {place[:43]:<44}{number / ticks:>7.1%}{number / ticks * cpu_ms:>8.2f} ms")
