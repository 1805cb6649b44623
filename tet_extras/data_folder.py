"""The folder that the embedded server keeps its data in: where it is, and whose it is at a time."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import redis

from .options import is_path_at_fault
from .process import take_file

STOP_SECONDS = 5.0
SAVE_SECONDS = 4  # for what the server has to save at its end; then it is killed
DATA = ("appendonlydir", "dump.rdb")  # in the folder: what a server loads


class EmbeddedError(Exception):
    """The server cannot be started. The message names the setting and the remedy."""


class FolderError(EmbeddedError):
    """DATA_DIR is wrong: another folder would do."""


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
    folder = Path(data_dir) if data_dir else default_data_dir()
    with suppress(OSError):  # there may be no working directory any more
        folder = folder.absolute()
    return folder


def folder_error(folder: Path, error: OSError) -> EmbeddedError:
    """The error of a system call as one that names DATA_DIR, and the file in it where it is about one."""
    name = str(error.filename or folder)
    where = f" ({name})" if name != str(folder) else ""
    is_its = Path(name).is_relative_to(folder) or folder.is_relative_to(name)
    kind = FolderError if is_its and is_path_at_fault(error) else EmbeddedError
    return kind(f"DATA_DIR {folder}: {error.strerror}{where}")


class DataFolder:
    """Where the server keeps its data: taken by one process at a time, and by the server that works in it.

    ``log`` is called with a level of logging, an event and its facts.
    """

    def __init__(self, path: Path, log: Callable[..., None]) -> None:
        self.path = path
        self._log = log
        self._owner: IO[bytes] | None = None  # a lock of this process alone
        self._lock: IO[bytes] | None = None  # one that the server holds, too

    @property
    def lock(self) -> int:
        """The lock that the server is to hold as long as it lives, as a file descriptor."""
        assert self._lock, "the folder is taken first"  # noqa: S101
        return self._lock.fileno()

    def leave(self) -> None:
        """Let another process take it, once the server is gone."""
        for lock in filter(None, (self._lock, self._owner)):
            lock.close()

    def take(self) -> None:
        """Make it, and see that no other service and no server uses it. Raises EmbeddedError, OSError."""
        if self.path.is_symlink() and not self.path.exists():
            raise FolderError(f"DATA_DIR {self.path}: a symbolic link that leads nowhere")
        if self.path.exists() and not self.path.is_dir():
            raise FolderError(f"DATA_DIR {self.path}: Not a directory")
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        others = [name for name in DATA if (self.path / name).exists()]
        if others and not (self.path / "lock").exists():
            text = f"another program's data is there ({', '.join(others)}); choose another --data-dir"
            raise FolderError(f"DATA_DIR {self.path}: {text}")
        self._owner = (self.path / "service.lock").open("wb")
        self._lock = (self.path / "lock").open("wb")
        if not _taken(self._owner, STOP_SECONDS):
            text = "another service uses this folder; stop it, or choose another --data-dir"
            raise EmbeddedError(f"DATA_DIR {self.path}: {text}")
        if not _taken(self._lock, STOP_SECONDS):  # a server that is just ending gets the time to save
            self._end_left_behind(self._lock)

    def _end_left_behind(self, lock: IO[bytes]) -> None:
        """End a server whose service and keeper are gone. Raises EmbeddedError where that cannot be."""
        pid = self._pid_left_behind()
        if pid:
            self._log(logging.WARNING, "embedded server left behind, ending it", pid=pid)
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                if _taken(lock, SAVE_SECONDS):
                    return
        which = f"a server, pid {pid}," if pid else "another service or its server"
        text = f"{which} uses this folder; stop it, or choose another --data-dir"
        raise EmbeddedError(f"DATA_DIR {self.path}: {text}")

    def _pid_left_behind(self) -> int:
        """The server that works in the folder, by what it has written there, or says itself; 0 if none."""
        with suppress(OSError, ValueError):
            pid = int((self.path / "server.pid").read_text(encoding="ascii"))
            if self.path.samefile(f"/proc/{pid}/cwd"):
                return pid
        with suppress(OSError, ValueError, redis.RedisError):
            port = int((self.path / "port").read_text(encoding="ascii"))
            with redis.Redis(port=port, socket_timeout=1, protocol=2) as client:
                if self.path.samefile(client.config_get("dir")["dir"]):
                    return int(client.info("server")["process_id"])
        return 0


def _taken(lock: IO[bytes], seconds: float) -> bool:
    """Whether a lock could be taken within so long."""
    until = time.monotonic() + seconds
    while True:
        with suppress(BlockingIOError):
            take_file(lock)
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
