"""Whose code runs: of the main thread by a timer of CPU time, of others by a thread that looks often.

The innermost frame of a file we know tells whose time it was. That costs nothing between two looks, and so
does not distort as a tracing profiler would.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

TICK_SECONDS = 0.001  # the kernel makes it its own tick, where that is longer
LOOK_SECONDS = 0.002
PACKAGES = {
    "httpx": "httpx (with httpcore, h11)",
    "httpcore": "httpx (with httpcore, h11)",
    "redis": "redis",
    "uvicorn": "uvicorn (with h11)",
    "starlette": "starlette (with anyio)",
    "anyio": "starlette (with anyio)",
    "asyncio": "asyncio",
}
OWN = {"tet_data_service.py": "tet_data_service", "tet_core": "tet_core", "tet_extras": "tet_extras"}
REST = "the rest"
#: What a thread is in that waits, by file and function.
WAITING = {("selectors.py", "select"), ("queue.py", "get"), ("threading.py", "wait")}
ROOT = Path(__file__).resolve().parent.parent
MOST_PLACES = 10  # of an owner that are shown
LEAST_SHARE = 0.01  # of all, of one that is


class Sampler:
    """Counts, at each tick of the process's CPU time, whose code runs in the main thread, which starts it."""

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
        if frame:
            self.count(frame)

    def count(self, frame: FrameType) -> None:
        """Count what is run now."""
        owner, place = owner_of(frame)
        self.owners[owner] += 1
        self.places[owner, place] += 1

    def lines(self, cpu_ms: float = 0.0) -> Iterator[str]:
        """The shares as a table: owners, and the places of each that took most; of so much CPU, if given."""

        def line(name: str, count: int) -> str:
            share = count / self.owners.total()
            return f"{name:<48}{share:>7.1%}" + (f"{share * cpu_ms:>8.2f} ms" if cpu_ms else "")

        for owner, count in self.owners.most_common():
            yield line(owner, count)
            places = [(number, place) for (name, place), number in self.places.items() if name == owner]
            for number, place in sorted(places, reverse=True)[:MOST_PLACES]:
                if number >= LEAST_SHARE * self.owners.total():
                    yield line(f"    {place[:43]}", number)


class ThreadSampler(Sampler):
    """Counts what threads run whose names match, seen by a thread of its own, until the process ends.

    Python interrupts the main thread alone, and that as late as it wakes up.
    """

    def __init__(self, threads: str) -> None:
        super().__init__()
        self._threads = re.compile(threads)

    def start(self) -> None:
        """Begin; who waits for the interpreter is to get it soon, for what it sees is else what has ended."""
        sys.setswitchinterval(1e-6)
        threading.Thread(target=self._look, name="sampler", daemon=True).start()

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            frames = sys._current_frames()
            for thread in threading.enumerate():
                frame = frames.get(thread.ident or 0)
                if frame and self._threads.match(thread.name) and not _is_waiting(frame):
                    self.count(frame)


def _is_waiting(frame: FrameType) -> bool:
    return (Path(frame.f_code.co_filename).name, frame.f_code.co_name) in WAITING


def owner_of(innermost: FrameType) -> tuple[str, str]:
    """Whose time it is, and the function of theirs that runs or has called what runs."""
    frame: FrameType | None = innermost
    while frame:
        path, function = Path(frame.f_code.co_filename), frame.f_code.co_qualname
        package = next((part for part in reversed(path.parts[:-1]) if part in PACKAGES), "")
        if package:
            return PACKAGES[package], f"{package}: {function}"
        if path.is_relative_to(ROOT) and (part := path.relative_to(ROOT).parts[0]) in OWN:
            return OWN[part], f"{path.stem}: {function}"
        frame = frame.f_back
    return REST, innermost.f_code.co_qualname
