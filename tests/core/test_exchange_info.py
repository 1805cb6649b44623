"""What the exchange says of itself: limits, volumes by symbol."""

from __future__ import annotations

import json

import pytest

from tet_core.errors import BadReply
from tet_core.exchange_info import parse_exchange_info, parse_volumes

RULE: dict[str, object] = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE"}
ODD_LIMITS: list[object] = [
    None,
    {},
    "6000",
    [None, 5, "x", {}],
    [RULE | {"limit": odd} for odd in (0, -1, None, "x")],
    [{"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 0, "limit": 50}],
    [{"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "limit": 1}],
]


def info_of(**changes):
    """An exchangeInfo reply."""
    symbol = {"symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT"}
    return json.dumps({"rateLimits": [], "symbols": [symbol]} | changes).encode()


@pytest.mark.parametrize("limits", ODD_LIMITS, ids=str)
def test_odd_rate_limits_leave_the_limit_as_it_was(limits):
    """The one that is known from the documentation."""
    assert parse_exchange_info(info_of(rateLimits=limits)).weight_limit is None


def test_the_limit_is_that_of_a_minute():
    """Also where it is given for several, and the least of those that are given."""
    rule = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 5, "limit": 5000}
    limits = [None, rule, rule | {"intervalNum": 1, "limit": "6000"}]
    assert parse_exchange_info(info_of(rateLimits=limits)).weight_limit == 1000


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'[{"symbol":"A"}]', b'[{"symbol":"A","quoteVolume":"NaN"}]', b"[1]", b'[{"a":NaN}]']
)
def test_a_damaged_ticker_reply_is_refused(body):
    """Nothing of it counts."""
    with pytest.raises(BadReply):
        parse_volumes(body)
