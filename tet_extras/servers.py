"""How Redis is reached: one server, the master that sentinels name, or a cluster's nodes. Transport only.

What is sent, and what its answers mean, is the caller's. Errors are redis-py's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

#: What says that no server takes the command now, whatever the command is.
AWAY = (redis.ConnectionError, redis.TimeoutError, OSError, RedisClusterException, ClusterDownError)
#: What says that another node may take it, or this one a little later.
REDIRECTED = (AskError, TryAgainError, ClusterDownError)
ASKING = ("ASKING",)
MAX_SENTINELS = 32
REDIRECT_WAITS = (0.0, 0.0, 0.05, 0.2)  # seconds, before each attempt

Command = Sequence[Any]


class OneServer:
    """One server, or the master that sentinels name: wherever that is, it has all keys."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def node_of(self, _key: str) -> str:
        """Which server has the key: there is one."""
        return ""

    def nodes(self) -> set[str]:
        """The servers that take writes."""
        return {""}

    def load(self, script: str, _key: str | None = None) -> None:
        """Give the script to every server, or to the one that has the key."""
        self._client.script_load(script)

    def together(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one round trip; an answer may be an error."""
        if len(commands) == 1:
            return [self._client.execute_command(*commands[0])]
        with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return list(pipe.execute(raise_on_error=False))

    def info(self, _key: str) -> dict[str, Any]:
        """What the server says of itself."""
        return dict(self._client.info())

    def ping(self) -> None:
        """See whether it answers."""
        self._client.ping()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


class Cluster:
    """A cluster: each key on the node of its slot. Any thread may use it; `_lock` is for connecting.

    redis-py knows the layout and keeps the connections. Its own cluster pipeline follows redirections, too,
    but after a timeout it sends each command again by itself, whether or not the server has run it, and goes
    on behind one that failed: with a frozen master four timeouts in place of one. So commands go to a node
    as they would to a single server, and again to where they are redirected; a timeout ends the call.
    """

    def __init__(self, nodes: Sequence[str], **settings: Any) -> None:
        self._nodes = nodes
        self._settings = settings
        self._lock = threading.Lock()
        self._connected: RedisCluster | None = None
        self._named: dict[str, ClusterNode] = {}

    def _client(self) -> RedisCluster:
        """The client, which reads the cluster's layout when it is made."""
        with self._lock:
            if self._connected is None:
                others = [ClusterNode(url["host"], url["port"]) for url in map(parse_url, self._nodes[1:])]
                self._connected = RedisCluster(
                    url=self._nodes[0],
                    startup_nodes=others,
                    dynamic_startup_nodes=False,  # names outlive the addresses behind them; see _refresh
                    require_full_coverage=False,  # while one shard has no master, the others go on
                    retry=Retry(NoBackoff(), 1),
                    **self._settings,
                )
                self._named = dict(self._connected.nodes_manager.startup_nodes)
            return self._connected

    def node_of(self, key: str) -> str:
        """Which node has the key, as far as is known."""
        if self._connected is None:
            return ""
        try:
            return str(self._connected.get_node_from_key(key).name)
        except SlotNotCoveredError:
            return "none"

    def nodes(self) -> set[str]:
        """The masters, as far as is known."""
        return {node.name for node in self._connected.get_primaries()} if self._connected else {""}

    def load(self, script: str, key: str | None = None) -> None:
        """Give the script to every master, or to the one that has the key."""
        client = self._client()
        for node in [client.get_node_from_key(key)] if key else client.get_primaries():
            client.get_redis_connection(node).script_load(script)

    def together(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands, each of one slot, in one round trip to each node; an answer may be an error."""
        client = self._client()
        places: dict[Any, list[int]] = {}
        for place, command in enumerate(commands):
            places.setdefault(client.get_node_from_key(_key_of(command)), []).append(place)
        answers: list[Any] = [None] * len(commands)
        for node, here in places.items():
            found = self._at_node(client, node, [commands[place] for place in here])
            for place, answer in zip(here, found, strict=True):
                answers[place] = answer
        return answers

    def _at_node(self, client: RedisCluster, node: Any, commands: Sequence[Command]) -> list[Any]:
        """Send commands to a node; where one is redirected, all of each slot again, in order."""
        try:
            answers = OneServer(client.get_redis_connection(node)).together(commands)
        except redis.TimeoutError:
            self._refresh(client)
            raise
        except (redis.ConnectionError, *REDIRECTED) as error:
            answers = [error]
        if not any(isinstance(answer, (redis.ConnectionError, *REDIRECTED)) for answer in answers):
            return answers
        slots: dict[int, list[Command]] = {}
        for command in commands:
            slots.setdefault(client.keyslot(_key_of(command)), []).append(command)
        return [answer for some in slots.values() for answer in self._redirected(client, some)]

    def _redirected(self, client: RedisCluster, commands: Sequence[Command]) -> list[Any]:
        """Send commands of one slot to where it is now, and follow it while it moves."""
        asked: Any = None
        answers: list[Any] = []
        for wait_seconds in REDIRECT_WAITS:
            time.sleep(wait_seconds)
            if not asked:
                self._refresh(client)
            node = asked or client.get_node_from_key(_key_of(commands[0]))
            sent = [part for command in commands for part in ([ASKING, command] if asked else [command])]
            answers = list(map(_raised, OneServer(client.get_redis_connection(node)).together(sent)))
            answers = answers[1::2] if asked else answers
            wrong = next((answer for answer in answers if isinstance(answer, REDIRECTED)), None)
            if wrong is None:
                break
            is_ask = isinstance(wrong, AskError) and not isinstance(wrong, MovedError)
            asked = client.get_node(getattr(wrong, "host", ""), getattr(wrong, "port", 0)) if is_ask else None
        return answers

    def _refresh(self, client: RedisCluster) -> None:
        """Read the layout again, from the nodes named or learnt last; where none answers it is kept."""
        learnt = {node.name: node for node in client.get_nodes()}
        client.nodes_manager.startup_nodes = self._named | learnt
        with suppress(RedisClusterException):
            client.nodes_manager.initialize()

    def info(self, key: str) -> dict[str, Any]:
        """What the node that has the key says of itself."""
        client = self._client()
        return dict(client.get_redis_connection(client.get_node_from_key(key)).info())

    def ping(self) -> None:
        """See whether each master answers."""
        client = self._client()
        for node in client.get_primaries():
            client.get_redis_connection(node).ping()

    def close(self) -> None:
        """Close all connections."""
        if self._connected:
            self._connected.close()


def _raised(answer: Any) -> Any:
    """The answer, unless the connection failed."""
    if isinstance(answer, redis.ConnectionError | redis.TimeoutError):
        raise answer
    return answer


def _key_of(command: Command) -> str:
    """The key of a command, or the first key of a script."""
    return str(command[3] if command[0] == "EVALSHA" else command[1])


class Sentinels(Sentinel):
    """Sentinels that are named, and those they know of, which are asked when the named ones are gone."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Where the master is. Raises MasterNotFoundError."""
        found: tuple[str, int] = super().discover_master(service_name)
        with suppress(redis.RedisError):
            self._learn(self.sentinels[0].sentinel_sentinels(service_name))  # who answered is first
        return found

    def _learn(self, others: Any) -> None:
        """Take over who else is there."""
        known = [each.connection_pool.connection_kwargs for each in self.sentinels]
        places = {(each["host"], each["port"]) for each in known}
        for other in others:
            if (place := (other["ip"], other["port"])) not in places and len(self.sentinels) < MAX_SENTINELS:
                self.sentinels.append(redis.Redis(*place, **self.sentinel_kwargs))


Servers = OneServer | Cluster


def connect(mode: str, nodes: Sequence[str], master: str | None, database: int, **settings: Any) -> Servers:
    """The servers behind these URLs. ``settings`` are redis-py's, for those that have the data.

    In mode ``sentinel`` the URLs are the sentinels', and so are user and password in them; TLS is for both.
    No connection is made yet.
    """
    if mode == "cluster":
        return Cluster(nodes, **settings)
    retry = Retry(NoBackoff(), 1)  # a connection that idled too long may be gone; a second one is not
    if mode == "single":
        return OneServer(redis.Redis.from_url(nodes[0], db=database, retry=retry, **settings))
    places = [parse_url(url) for url in nodes]
    tls = _tls(places[0])
    timeouts = {name: value for name, value in settings.items() if name.startswith("socket_")}
    login = {name: places[0][name] for name in ("username", "password") if name in places[0]}
    sentinel = Sentinels(
        _hosts(places),
        sentinel_kwargs={
            **timeouts,
            **tls,
            **login,
            "protocol": settings["protocol"],
            "retry": Retry(NoBackoff(), 0),
        },
        retry=retry,
        db=database,
        **tls,
        **settings,
    )
    return OneServer(sentinel.master_for(master))


def _hosts(places: Iterable[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(place["host"], place.get("port", 26379)) for place in places]


def _tls(place: dict[str, Any]) -> dict[str, Any]:
    """The settings of TLS in a parsed URL."""
    names = [name for name in place if name.startswith("ssl_")]
    return {"ssl": True, **{name: place[name] for name in names}} if "connection_class" in place else {}
