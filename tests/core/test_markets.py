"""Binance's markets: which pair is listed as what, limits that are shared, sessions, statuses in words."""

from __future__ import annotations

import json

import pytest

from tet_core.errors import BadReply
from tet_core.markets import MARKETS, STATUSES, account_of, budget_of, status_words
from tet_core.pairs import Listing, resolve_symbols
from tet_core.sessions import Hours, parse_schedule

LISTINGS = {
    each.name: each
    for each in (
        Listing("BTCUSDT", "TRADING", "BTC", "USDT", "PERPETUAL", "COIN"),
        Listing("ETHUSDT", "SETTLING", "ETH", "USDT", "PERPETUAL", "COIN"),
        Listing("BTCUSDT_260327", "TRADING", "BTC", "USDT", "CURRENT_QUARTER", "COIN"),
        Listing("TSLAUSDT", "TRADING", "TSLA", "USDT", "TRADIFI_PERPETUAL", "EQUITY"),
        Listing("XAUUSDT", "TRADING", "XAU", "USDT", "TRADIFI_PERPETUAL", "COMMODITY"),
        Listing("NEWUSDT", "TRADING", "NEW", "USDT", "OF_A_KIND_TO_COME", ""),
        Listing("BTCUSD_PERP", "TRADING", "BTC", "USD", "PERPETUAL", "COIN"),
    )
}


def test_a_pair_asks_by_the_symbol_that_it_is_listed_as():
    """BTC/USD of COIN-M is BTCUSD_PERP; a status is said in words, and a new one is no error."""
    there = LISTINGS | {"ODDUSDT": Listing("ODDUSDT", "ON_THE_MOON", "ODD", "USDT")}
    pairs, invalid = resolve_symbols(["BTC/USD", "ETH/USDT", "ODD/USDT", "TSLAUSDT"], there)
    assert [(pair.name, pair.key, pair.symbol) for pair in pairs] == [
        ("BTC/USD", "BTC_USD", "BTCUSD_PERP"),
        ("TSLA/USDT", "TSLA_USDT", "TSLAUSDT"),
    ]
    assert invalid == {
        "ETH/USDT": "not trading: it is being settled (SETTLING)",
        "ODD/USDT": "not trading: not a status that is known here (ON_THE_MOON)",
    }
    assert "TRADING" not in STATUSES
    assert status_words("") == "not a status that is known here (no status)"


def test_a_limit_of_weight_is_that_of_all_that_share_it():
    """USD-M and COIN-M have one; a testnet has its own, and nobody there says what a key may do."""
    main = {name: market.hosts["main"].rest for name, market in MARKETS.items()}
    assert budget_of("usdm", main["usdm"]) == budget_of("coinm", main["coinm"]) == "usdm"
    assert budget_of("spot", "https://api4.binance.com") == budget_of("spot", main["spot"]) == "spot"
    assert budget_of("spot", "https://testnet.binance.vision") == "spot-testnet"
    assert account_of("coinm", main["coinm"]) == "https://api.binance.com"
    assert account_of("us", main["us"]) == account_of("spot", "https://testnet.binance.vision") == ""
    assert account_of("usdm", "http://127.0.0.1:9100") == "http://127.0.0.1:9100"


def test_hours_are_what_the_exchange_says_is_closed():
    """What touches is one; what is odd, or not said, is open."""
    sessions = [
        {"startTime": 300, "endTime": 400, "type": "NO_TRADING"},
        {"startTime": 100, "endTime": 200, "type": "NO_TRADING"},
        {"startTime": 200, "endTime": 250, "type": "NO_TRADING"},
        {"startTime": 250, "endTime": 300, "type": "OVERNIGHT"},
        {"startTime": "1", "endTime": 2, "type": "NO_TRADING"},
        {"type": "NO_TRADING"},
        None,
    ]
    body = json.dumps({"updateTime": 1, "marketSchedules": {"EQUITY": {"sessions": sessions}}})
    hours = parse_schedule(body.encode())["EQUITY"]
    assert hours == Hours(((100, 250), (300, 400)))
    found = {at: hours.closed_until_ms(at) for at in (99, 100, 249, 250, 299, 300, 399, 400)}
    assert found == {99: 0, 100: 250, 249: 250, 250: 0, 299: 0, 300: 400, 399: 400, 400: 0}
    assert hours.are_closed(100, 250)
    assert not hours.are_closed(100, 251)
    assert hours.union(Hours(((240, 260), (390, 500)))) == Hours(((100, 260), (300, 500)))


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"marketSchedules":[]}', b'{"marketSchedules":{"A":1}}', b"{}"]
)
def test_a_damaged_schedule_is_refused(body):
    """Nothing of it counts."""
    with pytest.raises(BadReply):
        parse_schedule(body)
