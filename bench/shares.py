"""Where the CPU of a steady refresh goes: `python bench/bench.py --profile`.

The service runs in this process, its worker's work done in the main thread, under `Sampler`. The limit of
requests per second is off: its even beat would let the ticks meet the same moments again and again. What the
real program adds, threads that wake each other and its work between cycles, is the table's steady refresh
less the figure here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from common import ROOT
from sampler import Sampler

sys.path.insert(0, str(ROOT / "tests"))

import rig

import tet_data_service as tet
from tet_extras import workers

CYCLES = 40


class Inline:
    """In place of the pool of worker threads: does the work at once, in the thread that asks."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, act: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Do it; returns what a pool would, but that an error is raised here: there is none to be."""
        future: Future[Any] = Future()
        future.set_result(act(*arguments))
        return future

    def shutdown(self, *_: object, **__: object) -> None:
        """Nothing is to be ended."""


class Unlimited(tet.TokenBucket):
    """In place of the token bucket: there is always a token."""

    def reserve(self, now_seconds: float) -> float:
        """How long to wait for one."""
        return 0.0 * now_seconds


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
    """The shares as a table."""
    print(f"\n{title}: {cpu_ms:.2f} ms of CPU per pair")
    print(f"({sampler.owners.total()} samples by a timer that counts CPU time: bench/sampler.py)\n")
    print(*sampler.lines(cpu_ms), sep="\n")
