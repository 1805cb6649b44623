"""--export: candles as a file, from Redis alone."""

from __future__ import annotations

import csv
import json
from decimal import Decimal

import pytest
from rig import run_program, started, stored
from samples import OHLCV

COLUMNS = ["time", *OHLCV]


def exported(redis_url, *arguments, **environment):
    """The program, with that Redis, and an exchange that nobody reaches."""
    given = {
        "REDIS_ADDR": redis_url,
        "BINANCE_BASE_URL": "http://127.0.0.1:9",
        "SYMBOLS": "BTC/USDT,ETH/USDT",
    }
    return run_program(*arguments, **(given | environment))


def test_the_closed_candles_are_written_as_they_are(exchange, redis_url, reader, tmp_path):
    """As CSV, as JSON a line and as Parquet, to stdout or a file that appears whole."""
    parquet = pytest.importorskip("pyarrow.parquet")
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
    value = stored(reader)
    rows = [[at, *candle.values()] for at, candle in value["candles"].items() if at < value["data_end"]]
    assert len(rows) == 191
    for name in ("btc-usdt", "BTCUSDT"):
        done = exported(redis_url, f"--export={name}")
        assert (done.returncode, done.stderr) == (0, "")
        assert list(csv.reader(done.stdout.splitlines())) == [COLUMNS, *rows]
    lines = tmp_path / "candles.ndjson"
    done = exported(redis_url, "--export=BTC/USDT", "--format=ndjson", f"--output={lines}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [list(json.loads(line).values()) for line in lines.read_text().splitlines()] == rows
    table = tmp_path / "candles.parquet"
    done = exported(redis_url, "--export=BTC/USDT", "--format=parquet", f"--output={table}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = parquet.read_table(table).to_pylist()
    assert [f"{row['time']:%Y-%m-%dT%H:%M:%SZ}" for row in found] == [row[0] for row in rows]
    assert [[Decimal(repr(row[name])) for name in OHLCV] for row in found] == [
        [Decimal(text) for text in row[1:]] for row in rows
    ]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["candles.ndjson", "candles.parquet"]


def test_what_cannot_be_exported_is_said(exchange, redis_url, reader, tmp_path):
    """In one line, with what would help; nothing is written."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "pyarrow.py").write_text("raise ImportError")
    file = f"--output={tmp_path}/x"
    cases = [
        (("--export=BTC/USDC",), {}, 1, "error: BTC/USDC 15m is not kept; did you mean BTC/USDT?\n"),
        (("--export=BTC/USDT", "--timeframe=1h"), {}, 1, "error: BTC/USDT 1h is not kept"),
        (
            ("--export=BTC/USDT", "--format=parquet", file),
            {"PYTHONPATH": str(tmp_path / "hidden")},
            1,
            "error: parquet needs pyarrow: pip install pyarrow; csv and ndjson need nothing\n",
        ),
        (("--export=BTC/USDT", f"--output={tmp_path}/no/x"), {}, 1, "cannot be written: No such file"),
        (("--export=BTC/USDT", "--timeframe=15m,1h"), {}, 2, "name it with --timeframe"),
        (("--export=BTC/USDT", "--format=parquet"), {}, 2, "needs --output=FILE"),
        (("--status", file), {}, 2, "--format and --output go with --export"),
    ]
    for arguments, environment, code, text in cases:
        done = exported(redis_url, *arguments, **environment)
        assert (done.returncode, done.stdout) == (code, ""), done
        assert text in done.stderr, done.stderr
    reader.set("tet:kline:15m:BTC_USDT", "{}")
    done = exported(redis_url, "--export=BTC/USDT")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the stored value cannot be read" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["hidden"]
