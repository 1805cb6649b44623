"""Binance's markets: where each is found, what its requests weigh, and what it has otherwise than spot.

Sources: the exchange's REST documentation, and for the hosts its own connectors. A limit counts only until
exchangeInfo has the true one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tet_core.times import DAY_MS, SECOND_MS, Timeframe

MOST_AT_ONCE_MS = 199 * DAY_MS  # from one open time to another, where the exchange bounds it


class Host(NamedTuple):
    """Where a market is found: REST, streams, and who says what a key may do; empty is nobody."""

    rest: str
    streams: str
    account: str = ""


class Market(NamedTuple):
    """What differs between Binance's markets.

    ``hosts`` are by place: ``main``, ``public`` (needs no key), ``testnet`` and ``demo``. ``budget`` names
    the limit of weight that a market has, or shares. ``klines_weights`` are the most rows of a request, and
    what it weighs then. ``close_patience_ms`` is how long after a candle's end its stream is waited for.
    """

    prefix: str
    budget: str
    hosts: Mapping[str, Host]
    weight_limit: int
    page_rows: int
    klines_weights: Mapping[int, int]
    info_weight: int
    info_query: Mapping[str, str]
    tickers_weight: int
    tickers_query: Mapping[str, str]
    close_patience_ms: int = 4 * SECOND_MS
    is_futures: bool = False
    volume_field: int = 5  # of a row of klines: the volume in the base asset
    #: Of a start time alone the exchange sends the newest rows of 200 days, not the oldest.
    is_newest_first: bool = False

    def page_end_ms(self, timeframe: Timeframe, first_ms: int, rows: int) -> int:
        """The open time up to which so many rows may be asked for at once."""
        end_ms = timeframe.shift(first_ms, rows - 1)
        return min(end_ms, timeframe.floor(first_ms + MOST_AT_ONCE_MS)) if self.is_newest_first else end_ms

    def klines_weight(self, limit: int) -> int:
        """The weight of a klines request for that many rows."""
        weights = self.klines_weights
        return next((weights[rows] for rows in weights if limit <= rows), weights[max(weights)])

    def canary_of(self, symbol: str) -> str:
        """A stream that has something to say each second, whatever is traded."""
        return f"{symbol.lower()}@{'markPrice@1s' if self.is_futures else 'kline_1s'}"

    @property
    def stream_volume(self) -> str:
        """The field of a stream's candle with the volume in the base asset."""
        return "v" if self.volume_field == 5 else "q"


_API = "https://api.binance.com"
_USDM = Market(
    prefix="/fapi/v1",
    budget="usdm",
    # Klines come by /market alone: the bare address acknowledges them and stays silent.
    hosts={
        "main": Host("https://fapi.binance.com", "wss://fstream.binance.com/market", _API),
        "testnet": Host("https://testnet.binancefuture.com", "wss://fstream.binancefuture.com/market"),
        "demo": Host("https://demo-fapi.binance.com", "wss://demo-fstream.binance.com/market"),
    },
    weight_limit=2400,
    page_rows=499,  # which weigh 2, the least weight per row of all page sizes
    klines_weights={99: 1, 499: 2, 1000: 5, 1500: 10},
    info_weight=1,
    info_query={},
    tickers_weight=40,
    tickers_query={},
    # Candles without trades were seen to close up to 3.1 s late, by a timer, it seems.
    close_patience_ms=10 * SECOND_MS,
    is_futures=True,
)

MARKETS = {
    "spot": Market(
        prefix="/api/v3",
        budget="spot",
        hosts={
            "main": Host(_API, "wss://stream.binance.com:9443", _API),
            "public": Host("https://data-api.binance.vision", "wss://data-stream.binance.vision"),
            "testnet": Host("https://testnet.binance.vision", "wss://stream.testnet.binance.vision"),
            "demo": Host("https://demo-api.binance.com", "wss://demo-stream.binance.com:9443"),
        },
        weight_limit=6000,
        page_rows=1000,
        klines_weights={1000: 2},
        info_weight=20,
        info_query={"showPermissionSets": "false"},
        tickers_weight=80,
        tickers_query={"type": "MINI"},
    ),
    "usdm": _USDM,
    "coinm": _USDM._replace(  # of whose budget it is, too, since 2026-06-30
        prefix="/dapi/v1",
        hosts={
            "main": Host("https://dapi.binance.com", "wss://dstream.binance.com/market", _API),
            "testnet": Host("https://testnet.binancefuture.com", "wss://dstream.binancefuture.com/market"),
            "demo": Host("https://demo-dapi.binance.com", "wss://demo-dstream.binance.com/market"),
        },
        volume_field=7,  # field 5 counts contracts
        is_newest_first=True,
    ),
    "us": Market(
        prefix="/api/v3",
        budget="us",
        hosts={"main": Host("https://api.binance.us", "wss://stream.binance.us:9443")},
        weight_limit=1200,
        page_rows=1000,
        klines_weights={1000: 1},
        info_weight=10,
        info_query={},
        tickers_weight=40,
        tickers_query={},
    ),
}

#: Only ``TRADING`` makes new candles. What the others mean, of spot and of futures; one that is not here, or
#: new, does not trade either.
STATUSES = {
    "BREAK": "trading is suspended",
    "HALT": "trading is halted",
    "CANCEL_ONLY": "orders can be cancelled only",
    "PRE_TRADING": "it is not open yet",
    "POST_TRADING": "it has closed",
    "END_OF_DAY": "its day is over",
    "AUCTION_MATCH": "it is in an auction",
    "PENDING_TRADING": "it is not open yet",
    "PRE_DELIVERING": "it is about to be delivered",
    "DELIVERING": "it is being delivered",
    "DELIVERED": "it was delivered",
    "PRE_SETTLE": "it is about to be settled",
    "SETTLING": "it is being settled",
    "CLOSE": "it was closed",
    "TRADING_HALT": "trading is halted",
    "TRADING_CANCEL_ONLY": "orders can be cancelled only",
}


def status_words(status: str) -> str:
    """What a status other than ``TRADING`` means, with its name."""
    return f"{STATUSES.get(status, 'not a status that is known here')} ({status or 'no status'})"


def host_of(market: str, *, public: bool, testnet: bool, demo: bool) -> Host | None:
    """Where a market is found with these settings; None where it has no such place."""
    hosts = MARKETS[market].hosts
    if testnet or demo:
        return hosts.get("testnet" if testnet else "demo")
    return hosts.get("public", hosts["main"]) if public else hosts["main"]


def place_of(base_url: str) -> str:
    """Which place an address of Binance's is, as in `Market.hosts`; empty where it is none of these."""
    places = (each for market in MARKETS.values() for each in market.hosts.items())
    return next((place for place, host in places if host.rest == base_url), "")


def budget_of(market: str, base_url: str) -> str:
    """The name of the limit of weight that requests to an address count for."""
    budget, place = MARKETS[market].budget, place_of(base_url)
    return f"{budget}-{place}" if place in ("testnet", "demo") else budget


def account_of(market: str, base_url: str) -> str:
    """Who says what a key may do: spot's own address for the others, too; empty is nobody.

    An address that is none of Binance's is taken to lead to all that there is.
    """
    if not place_of(base_url):
        return base_url
    return next((host.account for host in MARKETS[market].hosts.values() if host.rest == base_url), "")
