"""FIELDS=all: what the exchange says of a candle besides, from REST and streams, exact like the rest."""

from __future__ import annotations

import csv
import io
import json
import logging
import urllib.request

import pytest
from rig import Rig, run_program, started, stored, unused_port
from samples import MORE, NOON_MS, full_kline, parse_full

import tet_data_service as tet
from tet_core.candles import ALL
from tet_core.errors import BadReply
from tet_core.klines import parse_klines
from tet_extras import streams
from tet_extras.live import parse_stream_row
from tet_reader import Reader

TF = tet.TIMEFRAMES["15m"]


def test_a_message_of_a_stream_is_the_same_candle():
    """Which has the same numbers under names of its own; one without them is refused."""
    row = full_kline()
    names = ("t", "o", "h", "l", "c", "v", "T", "q", "n", "V", "Q")
    k = dict(zip(names, row, strict=False)) | {"s": "BTCUSDT", "i": "15m", "x": False}
    message = streams.parse_kline({"e": "kline", "E": NOON_MS, "s": "BTCUSDT", "k": k}, 0)
    assert parse_stream_row(message, TF, NOON_MS, ALL) == parse_full(row)
    del k["n"]
    message = streams.parse_kline({"e": "kline", "E": NOON_MS, "s": "BTCUSDT", "k": k}, 0)
    with pytest.raises(BadReply):
        parse_stream_row(message, TF, NOON_MS, ALL)
    assert parse_stream_row(message, TF, NOON_MS) == parse_klines(
        json.dumps([row]).encode(), TF, 0, NOON_MS, 1
    )


def sent(exchange, interval="15m", count=1000):
    """What the exchange has of the four, by open time."""
    rows = exchange.klines("BTCUSDT", interval, limit=count)
    return {tet.iso_time(row[0]): [float(row[which]) for which in (7, 8, 9, 10)] for row in rows}


def programs_know_them(exchange, redis_url, reader, value):
    """The reader, ``--export`` and ``--verify`` have all fields; the last finds one that is wrong."""
    rows = [[at, *each.values()] for at, each in value["candles"].items() if at < value["data_end"]]
    with Reader(f"{redis_url}/1") as ours:
        frame = ours.candles("BTC/USDT")
    assert tuple(frame.columns) == ALL.names
    assert frame.to_numpy().tolist() == [[float(text) for text in row[1:]] for row in rows]
    given = ["--public", "--symbols=BTC/USDT", "--days=1", "--fields=all", f"--redis={redis_url}"]
    given.append(f"--base-url={exchange.url}")
    done = run_program(*given, "--export=BTC/USDT")
    assert [*csv.reader(done.stdout.splitlines())] == [["time", *ALL.names], *rows]
    assert run_program(*given, "--verify").returncode == 0
    right = rows[40][ALL.names.index("taker_buy_volume") + 1]
    whole = reader.get("tet:kline:15m:BTC_USDT")
    reader.set("tet:kline:15m:BTC_USDT", whole.replace(right, "0".ljust(len(right), "0"), 1))
    done = run_program(*given, "--verify")
    assert done.returncode == 1
    assert rows[40][0] in done.stdout, done.stdout
    reader.set("tet:kline:15m:BTC_USDT", whole)


def test_all_fields_are_kept_and_served(exchange, redis_url, reader, caplog):
    """In Redis, on /api/candles, on the page's table; another setting makes the window be fetched anew."""
    with started(exchange, redis_url, DATA_DAYS=1) as rig:
        rig.refresh()
    settings = {"DATA_DAYS": 1, "FIELDS": "all", "HTTP_ADDR": f"127.0.0.1:{unused_port()}"}
    caplog.set_level(logging.WARNING)
    with started(exchange, redis_url, **settings) as rig:
        rig.refresh()
        lines = [record for record in caplog.records if record.msg == "stored value not usable, backfilling"]
        assert [each.facts["reason"] for each in lines] == ["it was written with other FIELDS"]
        candles = stored(reader)["candles"]
        assert len(candles) == 96
        expected = sent(exchange)
        for at, candle in candles.items():
            assert tuple(candle) == ALL.names
            assert [float(candle[name]) for name in MORE] == expected[at]
        exchange.clock.advance(900)
        rig.refresh()
        newest = stored(reader)
        assert (
            float(newest["candles"][newest["last_candle_time"]]["trades"])
            == [*sent(exchange).values()][-1][1]
        )
        address = f"http://127.0.0.1:{rig.config.http_addr[1]}"
        with urllib.request.urlopen(f"{address}/api/candles?symbol=BTCUSDT&format=csv&limit=3") as reply:
            head, *rows = csv.reader(io.TextIOWrapper(reply))
        assert head == ["time", *ALL.names]
        assert rows == [[at, *each.values()] for at, each in list(newest["candles"].items())[-3:]]
        with urllib.request.urlopen(f"{address}/api/pairs") as reply:
            (row,) = json.load(reply)
        highs = [float(each["high"]) for each in newest["candles"].values()]
        assert float(row["high_24h"]) == max(highs)
    programs_know_them(exchange, redis_url, reader, newest)
    caplog.clear()
    with Rig(exchange, redis_url, DATA_DAYS=1, FIELDS="all") as again:
        exchange.clear()
        again.service.start()
        assert again.feeds[0].series
        assert not [record for record in caplog.records if "not usable" in record.msg]
