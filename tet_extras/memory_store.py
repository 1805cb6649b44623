"""A Redis server within this process, for REDIS_ADDR=embedded where no Valkey runs, as on Windows.

The server is fakeredis, which runs scripts in Lua; what it holds is gone when the service ends.
"""

from __future__ import annotations

import importlib.util
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from .process import claim_port, take_file
from .scripts import sha1_of

if TYPE_CHECKING:
    from fakeredis import TcpFakeServer

NOTE = "kept in memory; filled again at each start"
POLL_SECONDS = 0.02  # until a subscriber is sent what was published


def note() -> str | None:
    """What the status says of where the data is kept: nothing but where that is this process."""
    return NOTE if _running else None


def is_available() -> bool:
    """Whether what it needs is installed."""
    return all(importlib.util.find_spec(name) for name in ("fakeredis", "lupa"))


class Conversation:
    """What one client says and is answered, over fakeredis' own handler.

    That handler polls a socket in a way that on Windows leaves a subscriber without news until it speaks
    itself, and elsewhere cuts a long reply to a slow reader short.
    """

    server: Any
    writer: Any
    connection: socket.socket
    current_client: Any

    def setup(self) -> None:
        """Get ready; a reply may be longer than what the socket takes at once."""
        super().setup()  # type: ignore[misc]
        self.connection.setblocking(True)

    def handle(self) -> None:
        """Pass on what comes, and send the replies and what was published meanwhile."""
        from redis import ConnectionError as Gone  # not loaded for --help

        with suppress(OSError, Gone):
            while not self.server.is_ending.is_set():
                while self.current_client.can_read():
                    self.writer.dump(self._reply())
                if select.select([self.connection], [], [], POLL_SECONDS)[0]:
                    if not (sent := self.connection.recv(1 << 16)):
                        return
                    self.current_client.get_socket().sendall(sent)

    def _reply(self) -> object:
        from redis import RedisError

        try:
            return self.current_client.read_response()
        except RedisError as error:  # the reply is an error: the client's to read
            return error


class MemoryStore:
    """The server, on loopback, in threads of this process. Only the thread that started it stops it.

    ``log`` is called with a level of logging, an event and its facts.
    """

    was_killed = False  # it ends when it is told to

    def __init__(self, folder: Path, log: Callable[..., None], ports: Iterable[int]) -> None:
        self.folder = folder
        self.port = 0
        self._log = log
        self._ports = ports
        self._server: TcpFakeServer | None = None
        self._lock: IO[bytes] | None = None

    def start(self) -> None:
        """Take the folder, listen on the first free port, and leave a note of it there. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (self.folder / "lock").open("wb")
        _take(self._lock)
        self._server = next(filter(None, map(_listen, self._ports)), None)
        if not self._server:
            raise OSError(0, "no free port for the embedded server")
        self.port = self._server.server_address[1]
        (self.folder / "port").write_text(str(self.port), encoding="ascii")
        threading.Thread(target=self._server.serve_forever, name="embedded", daemon=True).start()
        _running.add(self)
        self._log(logging.WARNING, "embedded server", address=f"127.0.0.1:{self.port}", data=NOTE)

    def stop(self) -> None:
        """End it; what it holds is gone."""
        _running.discard(self)
        if self._server:
            self._server.is_ending.set()  # type: ignore[attr-defined]
            self._server.shutdown()
            self._server.socket.close()
            self._server = None
        if self._lock:
            self._lock.close()


_running: set[MemoryStore] = set()  # of this process


def _take(lock: IO[bytes]) -> None:
    """Take the folder's lock. Raises BlockingIOError where another service has it."""
    try:
        take_file(lock)
    except BlockingIOError as error:
        text = "another service uses this folder; stop it, or choose another --data-dir"
        raise BlockingIOError(error.errno, text) from error


def _lend_digest(server: Any) -> None:
    """Give scripts `redis.sha1hex`, which fakeredis leaves out."""
    from fakeredis import FakeRedis

    FakeRedis(server=server).eval("return 1", 0)  # it has its Lua from now on
    server._lua_runtime.globals()[b"redis"][b"sha1hex"] = lambda text: sha1_of(text).encode()


def _listen(port: int) -> TcpFakeServer | None:
    """A server on that port of loopback; None where another program has it."""
    from fakeredis import TcpFakeServer

    logging.getLogger("fakeredis").setLevel(logging.ERROR)
    server = TcpFakeServer(("127.0.0.1", port), bind_and_activate=False)
    _lend_digest(server.fake_server)
    handler = server.RequestHandlerClass
    server.RequestHandlerClass = type("Client", (Conversation, cast("type", handler)), {})
    server.is_ending = threading.Event()  # type: ignore[attr-defined]
    server.daemon_threads = True
    server.allow_reuse_address = False
    claim_port(server.socket)
    try:
        server.server_bind()
        server.server_activate()
    except OSError:
        server.server_close()
        return None
    return server
