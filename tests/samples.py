"""What tests of any storey share, and is pure: times, and rows and refusals as the exchange sends them."""

from __future__ import annotations

import json
from typing import Any

from tet_core.candles import ALL, Candles
from tet_core.klines import parse_klines
from tet_core.times import TIMEFRAMES

OHLCV = ("open", "high", "low", "close", "volume")
NOON_MS = 1_768_478_850_000  # 2026-01-15T12:07:30Z, the middle of a 15m candle
OPEN_MS = NOON_MS // 900_000 * 900_000  # when that candle opens
MINUTE, HOUR, DAY = 60, 3600, 86_400
MORE = ("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")  # with FIELDS=all
CHALLENGE = "<!DOCTYPE html><html><title>Just a moment...</title></html>"
TOO_MANY = '{"code":-1003,"msg":"Too many requests."}'


def kline(
    open_ms: Any = OPEN_MS,
    open_: Any = "2",
    high: Any = "4.50",
    low: Any = "1.0",
    close: Any = "3",
    volume: Any = "0.00000000",
    close_ms: Any = None,
) -> list[Any]:
    """A 15m row as Binance sends it, by default that of noon."""
    end = open_ms + 900_000 - 1 if close_ms is None else close_ms
    return [open_ms, open_, high, low, close, volume, end, "1", 5, "1", "1", "0"]


def full_kline(**given: Any) -> list[Any]:
    """The same with values of its own behind the volume."""
    row = kline(volume="5.50000000")
    values = {"quote": "12.50000000", "trades": 7, "taken": "5.50000000", "taken_quote": "0.00000000"} | given
    row[7:11] = values.values()
    return row


def parse_full(*rows: list[Any]) -> Candles:
    """The candles of a reply of such rows, all fields kept."""
    body = json.dumps(rows, separators=(",", ":")).encode()
    return parse_klines(body, TIMEFRAMES["15m"], 0, NOON_MS, 10, kept=ALL)


def banned(seconds: float, now_ms: int = NOON_MS) -> str:
    """The body of a ban that lasts so long."""
    until_ms = now_ms + seconds * 1000
    return json.dumps(
        {"code": -1003, "msg": f"Way too much request weight used; IP banned until {until_ms}."}
    )
