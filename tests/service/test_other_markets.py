"""Contracts of futures and their sessions, COIN-M, Binance.US, as the service keeps them."""

from __future__ import annotations

import json

import pytest
from rig import expected_candles, run_program, settings, started, stored
from samples import HOUR, NOON_MS, kline

import tet_data_service as tet
from tet_core.klines import parse_klines
from tet_core.markets import MARKETS
from tet_extras.live import parse_stream_row
from tet_extras.simulated_binance import Listing, Market, SimulatedBinance, SimulatedClock
from tet_extras.simulated_streams import kline_event
from tet_extras.streams import parse_kline

HOUR_MS = HOUR * 1000
LISTINGS = {
    each.name: each
    for each in (
        tet.Listing("BTCUSDT", "TRADING", "BTC", "USDT", "PERPETUAL", "COIN"),
        tet.Listing("ETHUSDT", "SETTLING", "ETH", "USDT", "PERPETUAL", "COIN"),
        tet.Listing("BTCUSDT_260327", "TRADING", "BTC", "USDT", "CURRENT_QUARTER", "COIN"),
        tet.Listing("TSLAUSDT", "TRADING", "TSLA", "USDT", "TRADIFI_PERPETUAL", "EQUITY"),
        tet.Listing("XAUUSDT", "TRADING", "XAU", "USDT", "TRADIFI_PERPETUAL", "COMMODITY"),
        tet.Listing("NEWUSDT", "TRADING", "NEW", "USDT", "OF_A_KIND_TO_COME", ""),
        tet.Listing("BTCUSD_PERP", "TRADING", "BTC", "USD", "PERPETUAL", "COIN"),
    )
}


def frozen(market, **given):
    """An exchange whose time stands still."""
    clock = SimulatedClock(NOON_MS)
    clock.freeze()
    return SimulatedBinance(market=market, clock=clock, **given)


# Contracts and statuses


@pytest.mark.parametrize(
    ("symbols", "names"),
    [
        ("*/USDT", ["BTC/USDT"]),
        ("*/USDT:tradifi", ["TSLA/USDT", "XAU/USDT"]),
        ("*/usdt:TRADIFI,!XAU/USDT", ["TSLA/USDT"]),
        ("@top1/USDT:tradifi,@top9/USDT", ["XAU/USDT", "BTC/USDT"]),
        ("TSLA/USDT,*/USD", ["TSLA/USDT", "BTC/USD"]),
        ("NEWUSDT", ["NEWUSDT"]),
    ],
)
def test_a_wildcard_means_crypto_unless_it_says_otherwise(symbols, names):
    """Never a contract that is delivered, nor one of a kind that is not known; by name each works."""
    volumes = {"XAUUSDT": 2.0, "TSLAUSDT": 1.0}
    assert tet.expand_symbols(tet.symbol_names(symbols), LISTINGS, volumes, 99).names == names


@pytest.fixture
def stocks():
    """An exchange with crypto and a stock, whose night began an hour ago and ends in two."""
    market = Market.random_walk(["BTC/USDT", "TSLA/USDT"])
    market.symbols["TSLAUSDT"].contract = "TRADIFI_PERPETUAL"
    market.symbols["TSLAUSDT"].underlying = "EQUITY"
    with frozen(market) as exchange:
        now_ms = NOON_MS // HOUR_MS * HOUR_MS
        exchange.close_session("EQUITY", now_ms - HOUR_MS, now_ms + 2 * HOUR_MS)
        exchange.close_session("EQUITY", now_ms - 24 * HOUR_MS, now_ms - 18 * HOUR_MS)
        yield exchange


def test_a_stock_in_its_night_is_neither_stale_nor_failing_nor_asked_for_again(stocks, redis_url, reader):
    """The status says until when it is closed; its gap costs no request; in the morning it goes on."""
    given = {"BINANCE_MARKET": "usdm", "SYMBOLS": "TSLA/USDT,BTC/USDT"}
    with started(stocks, redis_url, **given) as rig:
        rig.refresh()
        (schedule,) = stocks.asked("tradingSchedule")
        assert schedule.weight == 5
        assert stocks.used_weight == rig.binance.gate.used_weight()
        asked = [request.params["symbol"] for request in stocks.asked()]
        assert (
            asked.count("TSLAUSDT") == asked.count("BTCUSDT") + 2
        )  # is that all, and will its last one stay?
        stocks.clear()
        for _ in range(3):
            stocks.clock.advance(900)
            rig.refresh()
        asked = [request.params["symbol"] for request in stocks.asked()]
        assert asked == ["TSLAUSDT", "BTCUSDT"] * 3 or asked == ["BTCUSDT", "TSLAUSDT"] * 3
        until = "2026-01-15T14:00:00Z"
        states = {shown.symbol: (shown.state, shown.reason) for shown in tet.showing_of(rig.service).feeds()}
        assert states == {
            "TSLA/USDT": ("closed", f"session closed until {until}"),
            "BTC/USDT": ("fresh", ""),
        }
        assert rig.service.status.snapshot().closed_until == {"TSLA/USDT 15m": until}
        rig.service.write_status()
        done = run_program("--status", f"--redis={redis_url}", "--max-age=86400", "--symbols=*/*")
        assert f"closed: TSLA/USDT 15m: session closed until {until}" in done.stdout
        assert [line.split()[-1] for line in done.stdout.splitlines() if "/USDT " in line[:10]][-2:] == [
            "closed",
            "fresh",
        ]
        stocks.clock.advance(2 * HOUR)
        rig.refresh()
        assert rig.service.status.snapshot().closed_until == {}
        first_ms = stocks.clock.now_ms() // 900_000 * 900_000 - 191 * 900_000
        want = expected_candles(stocks, "TSLAUSDT", "15m", first_ms)
        assert stored(reader, "15m:TSLA_USDT")["candles"] == want


def test_without_a_schedule_a_stock_is_kept_as_any_other(stocks, redis_url, caplog):
    """A testnet that does not know the question is no reason to stop."""
    stocks.faults.always("500", path="tradingSchedule")
    with started(stocks, redis_url, BINANCE_MARKET="usdm", SYMBOLS="*/USDT:tradifi") as rig:
        rig.refresh()
        assert [feed.failure for feed in rig.feeds] == [""]
    assert "trading sessions unknown, taken for always open" in caplog.messages


# COIN-M


def test_coinm_volumes_are_those_of_the_base_asset():
    """Of a row the field is read that has it; contracts are not stored."""
    row = kline(volume="17", close_ms=None)
    row[7] = "0.5"
    candles = parse_klines(json.dumps([row]).encode(), tet.TIMEFRAMES["15m"], 0, 1 << 45, 10, volume=7)
    assert [json.loads("{" + entry.replace("\\", "").partition("{")[2]) for entry in candles.values()] == [
        {"open": "2", "high": "4.5", "low": "1", "close": "3", "volume": "0.5"}
    ]


def test_a_stream_of_coinm_tells_the_same_candle(coins):
    """Its base volume stands where others have that of the quote asset."""
    index = coins.clock.now_ms() // 60_000 - 1
    row = coins.market.row("BTCUSD_PERP", "1m", index, (index + 1) * 60_000 - 1)
    event = json.loads(kline_event("BTCUSD_PERP", "1m", row, (index + 1) * 60_000, True))
    message = parse_kline(event, 1, "btcusd_perp@kline_1m", MARKETS["coinm"].stream_volume)
    candles = parse_stream_row(message, tet.TIMEFRAMES["1m"], coins.clock.now_ms())
    want = next(iter(expected_candles(coins, "BTCUSD_PERP", "1m", index * 60_000).values()))
    (entry,) = candles.values()
    assert json.loads("{" + entry.replace("\\", "").partition("{")[2]) == want


@pytest.fixture
def coins():
    """COIN-M with one pair that was halted for a week, and one listed a day ago."""
    market = Market.random_walk(["BTC/USDT"])
    market.symbols |= {
        "BTCUSD_PERP": Listing("BTC", "USD", halts=[(NOON_MS - 240 * HOUR_MS, NOON_MS - 48 * HOUR_MS)]),
        "ADAUSD_PERP": Listing("ADA", "USD", listed_ms=NOON_MS - 24 * HOUR_MS),
        "BTCUSD_260327": Listing("BTC", "USD", contract="CURRENT_QUARTER"),
    }
    with frozen(market) as exchange:
        yield exchange


def test_coinm_is_kept_page_by_page_though_it_sends_the_newest_rows_first(coins, redis_url, reader):
    """A page without a row, in a halt or before the listing, is not the end; weight is one with USD-M."""
    with started(coins, redis_url, BINANCE_MARKET="coinm", SYMBOLS="*/USD", DATA_DAYS=30) as rig:
        rig.refresh()
        assert {request.path for request in coins.asked()} == {"/dapi/v1/klines"}
        for symbol in ("BTCUSD_PERP", "ADAUSD_PERP"):
            first_ms = NOON_MS // 900_000 * 900_000 - 2879 * 900_000
            want = expected_candles(coins, symbol, "15m", first_ms)
            assert stored(reader, f"15m:{symbol.replace('USD_PERP', '_USD')}")["candles"] == want
        for name in ("BTC/USD", "BTC_USD", "BTCUSD_PERP"):
            assert rig.service.watchlist.find(name, "15m").pair.symbol == "BTCUSD_PERP"
        coins.clear()
        coins.clock.advance(900)
        rig.refresh()
        assert [request.params["limit"] for request in coins.asked()] == ["8", "8"]
        assert rig.binance.gate.used_weight() == coins.used_weight
        assert rig.binance.gate.weight_limit == 2400
        rig.binance.gate.pause(60, "too much")
        rig.service.bulletin.paused()
    assert reader.exists("tet:system:pause@usdm")
    done = run_program(
        *("--public", "--verify", "--market=coinm", f"--base-url={coins.url}", f"--redis={redis_url}"),
        *("--symbols=BTC/USD", "--days=30"),
    )
    assert "a pause of" in done.stderr


def test_coinm_asks_for_200_days_at_most(coins, redis_url, reader):
    """More than that between two times is refused there."""
    given = {"BINANCE_MARKET": "coinm", "SYMBOLS": "BTC/USD", "DATA_DAYS": 450, "TIMEFRAME": "1d"}
    with started(coins, redis_url, **given) as rig:
        rig.refresh()
        assert stored(reader, "1d:BTC_USD")["candle_count"] == 450 - 8
        assert len(coins.asked()) >= 3


# Binance.US


def test_us_is_asked_with_what_it_knows(redis_url, reader):
    """Its own limit and weights; a parameter that it does not know would be refused."""
    with frozen(Market.random_walk(["BTC/USDT", "ETH/USDT"]), us=True) as exchange:
        with started(exchange, redis_url, BINANCE_MARKET="us", SYMBOLS="@top1/USDT") as rig:
            rig.refresh()
            assert rig.binance.gate.weight_limit == 1200
            assert rig.binance.gate.used_weight() == exchange.used_weight
            assert len(rig.feeds) == 1


def test_a_key_is_not_called_bad_where_nobody_can_tell():
    """A testnet has no question for it."""
    keys = {"PUBLIC_DATA": "false", "BINANCE_API_KEY": "a", "BINANCE_SECRET_KEY": "b"}
    config = settings(BINANCE_TESTNET="true", **keys)
    with tet.connect_http(config) as http:
        check = tet.check_api_key(tet.Binance(config, tet.Clock(), http))
    assert check.ok
    assert "cannot be asked here" in check.found
