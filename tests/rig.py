"""What the tests share: settings, a service wired to real servers, the running program, and readers."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, Self, TypeVar

import redis

import tet_data_service as tet
from tet_extras.simulated_binance import SimulatedBinance

PROGRAM = Path(tet.__file__)
T = TypeVar("T")
OHLCV = ("open", "high", "low", "close", "volume")
NOON_MS = 1_768_478_850_000  # 2026-01-15T12:07:30Z, the middle of a 15m candle
MINUTE, HOUR, DAY = 60, 3600, 86_400


def settings(**given: object) -> tet.Config:
    """A configuration from settings by name, e.g. ``SYMBOLS="BTC/USDT"``; public data by default."""
    flags = {name: str(value) for name, value in ({"PUBLIC_DATA": "true"} | given).items()}
    return tet.resolve_config(flags, {}, None).config


class Rig:
    """A service in this process, wired to a simulated exchange and a Redis over real sockets."""

    def __init__(
        self, exchange: SimulatedBinance, redis_url: str, clock: tet.Clock | None = None, /, **given: object
    ) -> None:
        given = {"API_REQUESTS_PER_SEC": 100, "SYMBOLS": "BTC/USDT", "DATA_DAYS": 2} | given
        self.exchange = exchange
        self.config = settings(BINANCE_BASE_URL=exchange.url, REDIS_ADDR=redis_url, **given)
        self.clock = clock or tet.Clock()
        self.http = tet.connect_http(self.config)
        self.binance = tet.Binance(self.config, self.clock, self.http)
        self.store = tet.Store(self.config, self.clock, tet.connect_redis(self.config))
        self.service = tet.Service(self.config, self.clock, self.binance, self.store, once=False)
        self._ending = ExitStack()
        self._ending.enter_context(tet.serving_http(self.config, self.service.status))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.service.finish()
        self._ending.close()
        self.http.close()

    def refresh(self) -> None:
        """One cycle over all feeds, at the exchange's present time."""
        self.binance.sync_clock()
        for feed in self.feeds:
            feed.due = tet.Due()
        self.service.cycle()
        self.service.catch_up()

    def an_hour_later(self) -> None:
        """Let an hour pass at the exchange, look at the symbols as the idle service does, and refresh."""
        self.exchange.clock.advance(HOUR + 1)
        self.binance.sync_clock()
        self.service.idle()
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
    """What ``ohlcv_data`` must hold from an open time on, told by the exchange itself."""
    candles = {}
    while rows := exchange.klines(symbol, interval, start_ms=first_ms, limit=1000):
        for row in rows:
            values = [format(Decimal(text).normalize(), "f") for text in row[1:6]]
            candles[tet.iso_time(row[0])] = dict(zip(OHLCV, values, strict=True))
        first_ms = rows[-1][0] + 1
    return candles


def run_program(*arguments: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, with nothing of this environment that could configure it."""
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=clean_environment(**environment),
        check=False,
    )


class Running:
    """The program in the background; its log is in ``log``."""

    url = ""  # of its HTTP, where a test has it serve that

    def __init__(self, tmp_path: Path, *arguments: str, **environment: str) -> None:
        self.log = tmp_path / "log.txt"
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), *arguments],
                stdout=stream,
                stderr=stream,
                env=clean_environment(**environment),
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def says(self, text: str) -> bool:
        """Whether the log has that text by now."""
        return text in self.log.read_text()


def clean_environment(**given: str) -> dict[str, str]:
    """This environment without the program's settings and without proxies, and with what is given."""
    names = {option.name for option in tet.OPTIONS}
    kept = {
        name: text for name, text in os.environ.items() if name not in names and "proxy" not in name.lower()
    }
    return kept | given


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


def eventually(check: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll until the check gives something true, and return that; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {check}"
        time.sleep(0.02)
    return result
