"""What the exchange lists: replies of exchangeInfo and ticker/24hr, checked and thinned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from tet_core.candles import decode_json
from tet_core.errors import BadReply
from tet_core.pairs import Listing


class ExchangeInfo(NamedTuple):
    """The exchange's symbols by `Listing.name`, and its limit of weight per minute (None when none)."""

    listings: Mapping[str, Listing]
    weight_limit: int | None


def parse_exchange_info(body: bytes) -> ExchangeInfo:
    """Check an exchangeInfo reply. Raises BadReply. All but what is needed is dropped while decoding."""
    try:
        info = decode_json(body, object_hook=_thin_listing)
        listings = [entry for entry in info["symbols"] if isinstance(entry, Listing)]
        if not listings:
            raise ValueError("no symbols")
        limits = list(_weight_limits(info.get("rateLimits")))
        return ExchangeInfo({listing.name: listing for listing in listings}, min(limits, default=None))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadReply(f"the exchangeInfo reply is damaged: {error!r:.200}") from error


def _weight_limits(limits: object) -> Iterator[int]:
    """The limits of weight per minute; what cannot be one says nothing, and the limit stays as it was."""
    for limit in limits if isinstance(limits, list) else ():
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            number, minutes = int(limit["limit"]), int(limit.get("intervalNum", 1))
            of_minutes = limit["rateLimitType"] == "REQUEST_WEIGHT" and limit["interval"] == "MINUTE"
            if of_minutes and number > 0 and minutes > 0:
                yield max(1, number // minutes)


def _thin_listing(entry: dict[str, Any]) -> object:
    """A listing in place of a symbol's object; one that is odd costs itself only."""
    if "baseAsset" in entry and "quoteAsset" in entry:
        status = "status" if "status" in entry else "contractStatus"  # the latter on COIN-M
        of_futures = (entry.get(name) or "" for name in ("contractType", "underlyingType"))
        fields = (entry.get(name, "") for name in ("symbol", status, "baseAsset", "quoteAsset"))
        listing = Listing(*fields, *of_futures)
        return listing if all(type(name) is str and name.isprintable() for name in listing) else None
    return None if "filterType" in entry else entry


def parse_volumes(body: bytes) -> dict[str, float]:
    """The quote volume of a day by symbol, from a ticker/24hr reply. Raises BadReply."""
    try:
        tickers = decode_json(body)
        if not isinstance(tickers, list):
            raise ValueError("not a list")
        volumes = {}
        for ticker in tickers:
            with suppress(ValueError, KeyError, TypeError):  # one that is odd costs its own rank only
                volumes[str(ticker["symbol"])] = _quote_volume(ticker)
        volumes = {symbol: volume for symbol, volume in volumes.items() if math.isfinite(volume)}
        if not volumes:
            raise ValueError("no volumes")
        return volumes
    except ValueError as error:
        raise BadReply(f"the ticker/24hr reply is damaged: {error!r:.200}") from error


def _quote_volume(ticker: Mapping[str, Any]) -> float:
    """In the quote asset; COIN-M gives the base volume and the mean price."""
    if "quoteVolume" in ticker:
        return float(ticker["quoteVolume"])
    return float(ticker["baseVolume"]) * float(ticker["weightedAvgPrice"])
