"""Real clients of the exchange, each asked for the same at several addresses: a program of its own.

``bots.py SPOT-ADDRESS,USDM-ADDRESS…`` prints what each client was told at each pair of addresses, as JSON.
Clients live in a process of their own: what they import warns, and is large.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import ccxt
from binance.client import Client
from binance.spot import Spot

SINCE_MS = 1_768_400_000_000  # within two days of the tests' noon
LONG_AGO_MS = SINCE_MS - 20 * 86_400_000
OPTIONS = {"fetchMarkets": {"types": ["spot"]}, "fetchCurrencies": False}

Answers = Iterator[tuple[str, Callable[[], Any]]]


def ccxt_spot(url: str) -> Answers:
    """The library under freqtrade and many others."""
    client = ccxt.binance({"enableRateLimit": False, "options": OPTIONS})
    client.urls["api"]["public"] = f"{url}/api/v3"
    yield "load_markets", lambda: sorted(client.load_markets())
    yield "fetch_ohlcv", lambda: client.fetch_ohlcv("BTC/USDT", "15m", limit=100)
    yield "fetch_ohlcv since", lambda: client.fetch_ohlcv("BTC/USDT", "15m", since=SINCE_MS, limit=20)
    yield "fetch_ohlcv long ago", lambda: client.fetch_ohlcv("ETH/USDT", "15m", since=LONG_AGO_MS, limit=5)
    yield "fetch_tickers", lambda: sorted(client.fetch_tickers())
    yield "fetch_order_book", lambda: client.fetch_order_book("BTC/USDT", limit=5)


def ccxt_usdm(url: str) -> Answers:
    """The same for futures."""
    client = ccxt.binanceusdm({"enableRateLimit": False, "options": {"fetchCurrencies": False}})
    client.urls["api"] |= {"fapiPublic": f"{url}/fapi/v1", "fapiPublicV2": f"{url}/fapi/v2"}
    yield "load_markets", lambda: sorted(client.load_markets())
    yield "fetch_ohlcv", lambda: client.fetch_ohlcv("BTC/USDT:USDT", "15m", limit=100)
    yield "fetch_ohlcv since", lambda: client.fetch_ohlcv("BTC/USDT:USDT", "15m", since=SINCE_MS, limit=9)


def python_binance(url: str) -> Answers:
    """The most used one, by its class attribute; it pings when it is made."""
    Client.API_URL = f"{url}/api"
    client = Client()
    yield "get_klines", lambda: client.get_klines(symbol="BTCUSDT", interval="15m", limit=50)
    yield (
        "get_historical_klines",
        lambda: client.get_historical_klines("BTCUSDT", "15m", SINCE_MS, SINCE_MS + 50 * 900_000),
    )
    yield "get_symbol_info", lambda: client.get_symbol_info("ETHUSDT")


def connector(url: str) -> Answers:
    """The exchange's own."""
    client = Spot(base_url=url)
    yield "klines", lambda: client.klines("BTCUSDT", "15m", limit=10)
    yield "klines in µs", lambda: client.klines("BTCUSDT", "15m", startTime=SINCE_MS * 1000, limit=3)
    yield "ticker_price", lambda: client.ticker_price("BTCUSDT")
    yield "unknown", lambda: client.klines("NOPEUSDT", "15m")


def answer(ask: Callable[[], Any]) -> Any:
    """What it gives, or how it fails."""
    try:
        return ask()
    except Exception as error:
        return (
            f"{type(error).__name__} {getattr(error, 'error_code', '')} {getattr(error, 'status_code', '')}"
        )


def main() -> None:
    """Ask all of them at each pair of addresses."""
    told = []
    for pair in sys.argv[1:]:
        spot, usdm = pair.split(",")
        found = {}
        for client, url in (
            (ccxt_spot, spot),
            (ccxt_usdm, usdm),
            (python_binance, spot),
            (connector, spot),
        ):
            for name, ask in client(url):
                found[f"{client.__name__} {name}"] = answer(ask)
        told.append(found)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
