"""What people would write instead of the service, started by the benchmark in an environment of its own.

    python peers.py NAME EXCHANGE_URL REDIS_PORT REDIS_DB AHEAD_MS PASSES PAIRS

Each is a plain loop over the pairs that stores the same value as the service under the same key.
The first pass is the cold one. A line is printed before it and after each pass, like the service's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import redis

STEP_MS = 15 * 60_000
CANDLES = 2880
PAGE_ROWS = 1000
REFETCH = 6  # stored candles that the loop for new rows asks for again, as the service does

Fetch = Callable[[str, int], list[list[Any]]]  # symbol and first open time -> at most PAGE_ROWS rows


def iso_time(at_ms: int) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def trimmed(value: str | float) -> str:
    """A decimal without trailing zeros; ccxt gives floats, the others the exchange's own text."""
    text = value if isinstance(value, str) else repr(value)
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def entries(rows: Iterable[list[Any]]) -> dict[str, dict[str, str]]:
    """Candles by open time, as the stored value has them."""
    names = ("open", "high", "low", "close", "volume")
    return {iso_time(row[0]): dict(zip(names, map(trimmed, row[1:6]), strict=True)) for row in rows}


def stored_value(candles: dict[str, dict[str, str]], now_ms: int) -> str:
    """The stored value, serialised with the standard library: the candles, then the object around them."""
    opens = list(candles)
    end_ms = now_ms // STEP_MS * STEP_MS
    return json.dumps(
        {
            "ohlcv_data": json.dumps(candles, separators=(",", ":")),
            "last_candle_time": opens[-1],
            "last_update": iso_time(now_ms),
            "data_start": opens[0],
            "data_end": iso_time(end_ms),
            "data_completeness": min(1.0, len(opens) / CANDLES),
            "candle_count": len(opens),
            "timeframe": "15m",
            "data_age_seconds": (now_ms - end_ms) // 1000,
        },
        separators=(",", ":"),
    )


def paged(fetch: Fetch, pair: str, first_ms: int) -> list[list[Any]]:
    """All rows from an open time to now, page by page."""
    rows: list[list[Any]] = []
    while True:
        page = fetch(pair, first_ms)
        rows += page
        if len(page) < PAGE_ROWS:
            return rows
        first_ms = page[-1][0] + 1


def with_httpx(url: str) -> Fetch:
    """Pages over httpx and the standard json, on one kept-alive connection."""
    import httpx

    client = httpx.Client(base_url=url)

    def fetch(pair: str, first_ms: int) -> list[list[Any]]:
        params: dict[str, Any] = {
            "symbol": pair.replace("/", ""),
            "interval": "15m",
            "startTime": first_ms,
            "limit": PAGE_ROWS,
        }
        reply = client.get("/api/v3/klines", params=params)
        reply.raise_for_status()
        return list(reply.json())

    return fetch


def with_ccxt(url: str) -> Fetch:
    """Pages of fetch_ohlcv. Its own rate limit is off, so that no time is spent waiting for it."""
    import ccxt

    options = {"defaultType": "spot", "fetchMarkets": {"types": ["spot"]}, "fetchCurrencies": False}
    client = ccxt.binance({"enableRateLimit": False, "options": options})
    client.urls["api"]["public"] = f"{url}/api/v3"
    client.load_markets()

    def fetch(pair: str, first_ms: int) -> list[list[Any]]:
        return list(client.fetch_ohlcv(pair, "15m", since=first_ms, limit=PAGE_ROWS))

    return fetch


def with_python_binance(url: str) -> Fetch:
    """Pages of get_klines; get_historical_klines would ask once more per pair, and sleep in between."""
    from binance.client import Client

    client = Client(ping=False)
    client.API_URL = f"{url}/api"

    def fetch(pair: str, first_ms: int) -> list[list[Any]]:
        symbol = pair.replace("/", "")
        return list(client.get_klines(symbol=symbol, interval="15m", startTime=first_ms, limit=PAGE_ROWS))

    return fetch


PEERS = {
    "httpx loop": with_httpx,
    "loop, new rows": with_httpx,
    "ccxt": with_ccxt,
    "python-binance": with_python_binance,
}


def main() -> None:
    """Do the passes asked for."""
    name, url, port, db, ahead_ms, passes, pairs = sys.argv[1:]
    fetch = PEERS[name](url)
    client = redis.Redis(port=int(port), db=int(db))
    held: dict[str, dict[str, dict[str, str]]] = {}
    print("estimate none", flush=True)
    for _ in range(int(passes)):
        began = time.monotonic()
        for pair in pairs.split(","):
            now_ms = time.time_ns() // 1_000_000 + int(ahead_ms)
            newest_ms = now_ms // STEP_MS * STEP_MS
            known = held.get(pair, {})
            first_ms = newest_ms - (REFETCH if known else CANDLES - 1) * STEP_MS
            candles = known | entries(paged(fetch, pair, first_ms))
            candles = dict(list(candles.items())[-CANDLES:])
            if name == "loop, new rows":
                held[pair] = candles
            key = f"tet:kline:15m:{pair.replace('/', '_')}"
            client.set(key, stored_value(candles, now_ms), ex=86_400)
        seconds = time.monotonic() - began
        print(f"cycle updated={pairs.count(',') + 1} failed=0 seconds={seconds:.3f}", flush=True)
    sys.stdin.readline()  # stay until the figures are read


if __name__ == "__main__":
    main()
