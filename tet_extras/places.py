"""Where the market is found that the settings ask for, and what it has not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tet_core.markets import MARKETS, Host, host_of, place_of

from . import addresses


def with_host(values: dict[str, Any]) -> None:
    """Fill in the addresses of the market, where they were not given.

    The streams stay empty where BINANCE_BASE_URL is not Binance's, or another market's: candles of two
    would be mixed.
    """
    names = ("public_data", "binance_testnet", "binance_demo_mode")
    public, testnet, demo = (bool(values[name]) for name in names)
    market, given = values["binance_market"], values["binance_base_url"]
    host = host_of(market, public=public, testnet=testnet, demo=demo)
    if given:
        is_another = bool(place_of(given)) or not addresses.is_within(
            given, ("binance.com", "binance.vision")
        )
        same = (each for each in MARKETS[market].hosts.values() if each.rest == given)
        host = next(same, Host(given, "" if is_another or not host else host.streams))
    if host:
        values["binance_base_url"] = host.rest
        values["binance_stream_url"] = values["binance_stream_url"] or host.streams


def market_conflicts(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """What a market has not: the pairs by default, a testnet, demo trading."""
    if values.get("binance_market") == "coinm" and values.get("fields") == "all":
        yield f"FIELDS ({origins['FIELDS']}): allowed with BINANCE_MARKET=coinm: ohlcv; its rows have others"
    if values.get("binance_market") == "coinm" and values.get("binance_proxy"):
        yield f"BINANCE_PROXY ({origins['BINANCE_PROXY']}): allowed with BINANCE_MARKET spot, usdm or us"
    if values.get("binance_market") == "coinm" and origins["SYMBOLS"] == "default":
        yield "SYMBOLS: missing; coinm has none of the default pairs; its own are BTC/USD and the like: */USD"
    places = [name for name in ("BINANCE_TESTNET", "BINANCE_DEMO_MODE") if values.get(name.lower())]
    if len(places) > 1:
        yield f"BINANCE_DEMO_MODE ({origins['BINANCE_DEMO_MODE']}): allowed without BINANCE_TESTNET only"
    elif (market := values.get("binance_market")) and places:
        place = "testnet" if places == ["BINANCE_TESTNET"] else "demo"
        if place not in MARKETS[market].hosts:
            having = " or ".join(name for name, each in MARKETS.items() if place in each.hosts)
            yield f"{places[0]} ({origins[places[0]]}): {market} has none; allowed with {having}"
