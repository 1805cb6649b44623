"""Processes of the program, forked from one that has imported all: a start costs 20 ms, not most of a second.

Each is a process of its own, with its own environment, folder, output and end; what it has not gone through
is Python's start and the imports. Whatever looks at those starts the program by ``subprocess``.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

IMPORTED = (
    "tet_data_service httpx redis uvicorn dotenv.parser tet_extras.servers tet_extras.transport "
    "tet_extras.streams tet_extras.web.server tet_extras.web.routes tet_extras.web.metrics tet_extras.report"
).split()
_mother: list[tuple[subprocess.Popen[bytes], socket.socket]] = []


class Forked:
    """A program that runs; has what the tests need of ``subprocess.Popen``."""

    is_wanted = sys.platform == "linux"

    def __init__(self, command: list[str], out: IO[Any], err: IO[Any], environment: dict[str, str]) -> None:
        self.returncode: int | None = None
        self._reply, theirs = socket.socketpair()
        with theirs:
            order = json.dumps([command, str(Path.cwd()), environment]).encode()
            fds = [out.fileno(), err.fileno(), theirs.fileno()]
            socket.send_fds(_mother_socket(), [order], fds)
        self.pid = int(self._reply.recv(20))

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns the exit code."""
        if self.returncode is None:
            if not select.select([self._reply], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._reply.recv(20))
            self._reply.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to stop."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def _mother_socket() -> socket.socket:
    """The way to the process that forks, which is started with the first of them."""
    if not _mother:
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            _mother.append((subprocess.Popen(command, pass_fds=[theirs.fileno()]), ours))
        atexit.register(_end)
    return _mother[0][1]


def _end() -> None:
    """Let the process that forks end."""
    process, ours = _mother[0]
    ours.close()
    process.wait()


def _serve(control: socket.socket) -> list[str]:
    """Fork for each order; returns in the new process, with the program's command line."""
    while True:
        order, fds, *_ = socket.recv_fds(control, 1 << 20, 3)
        while True:
            with suppress(ChildProcessError):
                if os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            break
        if not order:
            sys.exit()
        if not os.fork():
            control.close()
            command, folder, environment = json.loads(order)
            return _born(command, folder, environment, fds)
        for each in fds:
            os.close(each)


def _born(command: list[str], folder: str, environment: dict[str, str], fds: list[int]) -> list[str]:
    """Be two: who runs the program, and who waits to tell its exit code."""
    out, err, reply = fds
    pid = os.fork()
    if pid:
        os.close(out)
        os.close(err)
        with suppress(OSError):  # nobody waits
            os.write(reply, b"%20d" % pid)
            os.write(reply, b"%20d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for each in fds:
        os.close(each)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    return command


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    sys.argv = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.modules["tet_data_service"].main()
