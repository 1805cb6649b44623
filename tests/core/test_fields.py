"""FIELDS=all: a row is kept exactly."""

from __future__ import annotations

import json

import pytest
from samples import MORE, NOON_MS, OPEN_MS, full_kline, parse_full

from tet_core.candles import ALL, entry_volume
from tet_core.errors import BadReply
from tet_core.klines import parse_klines
from tet_core.times import TIMEFRAMES

TF = TIMEFRAMES["15m"]


def test_a_row_is_kept_exactly():
    """Behind the volume, trailing zeros cut, whichever way the row is written; the volume is still found."""
    entry = parse_full(full_kline())[OPEN_MS]
    candle = json.loads(f"{{{entry}}}".replace('\\"', '"'))["2026-01-15T12:00:00Z"]
    assert tuple(candle) == ALL.names
    assert [candle[name] for name in ("volume", *MORE)] == ["5.5", "12.5", "7", "5.5", "0"]
    assert parse_full(full_kline(quote=12.5, taken="55e-1"))[OPEN_MS] == entry, "each row by itself"
    assert entry_volume(entry) == 5.5


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"taken": "5.50000001"}, "takers bought more"),
        ({"taken": "-1"}, "negative"),
        ({"trades": "1.5"}, "whole"),
        ({"trades": None}, "decimal"),
        ({"quote": "NaN"}, "decimal"),
    ],
)
def test_a_row_that_cannot_be_is_refused(given, word):
    """As one with impossible prices is; with FIELDS=ohlcv nobody looks at these."""
    with pytest.raises(BadReply, match=word):
        parse_full(full_kline(**given))
    body = json.dumps([full_kline(taken="99")]).encode()
    assert len(parse_klines(body, TF, 0, NOON_MS, 10)) == 1
