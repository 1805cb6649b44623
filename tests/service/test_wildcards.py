"""Wildcards in SYMBOLS: which pairs they mean, who joins and leaves, and what they cost."""

from __future__ import annotations

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import run_program, started

import tet_data_service as tet
from tet_core.pairs import meant_symbol
from tet_extras.simulated_binance import Listing, Market, SimulatedBinance

NAMES = ("BTC/USDT", "ETH/USDT", "USDC/USDT", "ETH/BTC", "BNB/BTC", "BTCUP/USDT", "DOGE/USDC")
SYMBOL_OF = {name: name.replace("/", "") for name in NAMES}
LISTINGS = {symbol: tet.Listing(symbol, "TRADING", *name.split("/")) for name, symbol in SYMBOL_OF.items()}
VOLUMES = {symbol: float(rank) for rank, symbol in enumerate(SYMBOL_OF.values())}


def meant(symbols, most=1000, listings=None):
    """What the symbols, as a user writes them, mean."""
    wanted = tet.symbol_names(symbols)
    return tet.expand_symbols(wanted, LISTINGS if listings is None else listings, VOLUMES, most)


@pytest.mark.parametrize(
    ("symbols", "names"),
    [
        ("*/USDT", ["BTC/USDT", "ETH/USDT", "USDC/USDT", "BTCUP/USDT"]),
        ("*/USDT,!USDC/USDT", ["BTC/USDT", "ETH/USDT", "BTCUP/USDT"]),
        ("*/usdt !USDCUSDT", ["BTC/USDT", "ETH/USDT", "BTCUP/USDT"]),
        ("eth-*", ["ETH/USDT", "ETH/BTC"]),
        ("*/*,!*/USDT", ["ETH/BTC", "BNB/BTC", "DOGE/USDC"]),
        ("@top2/USDT", ["BTCUP/USDT", "USDC/USDT"]),
        ("@top2/USDT,!USDC/USDT", ["BTCUP/USDT", "ETH/USDT"]),
        ("@TOP1/BTC,DOGEUSDC", ["DOGEUSDC", "BNB/BTC"]),
        ("BTCUSDT,@top9/USDT", ["BTCUSDT", "BTCUP/USDT", "USDC/USDT", "ETH/USDT"]),
        ("GONE/USDT,*/BTC", ["GONE/USDT", "ETH/BTC", "BNB/BTC"]),
        ("BTC/USDT,ETH/USDT,!ETH/USDT", ["BTC/USDT"]),
    ],
)
def test_what_wildcards_mean(symbols, names):
    """Names first, then what the wildcards bring; each pair once; exclusions count for all."""
    assert meant(symbols) == (names, [], [])


def test_a_wildcard_that_no_pair_fits_is_named():
    """It is no reason to serve none of the others."""
    assert meant("*/EUR,*/BTC") == (["ETH/BTC", "BNB/BTC"], [], ["*/EUR"])


def test_what_does_not_trade_or_is_no_pair_is_not_meant():
    """A halted pair; a delivery future, whose name is more than base and quote."""
    more = {
        "XUSDT": tet.Listing("XUSDT", "BREAK", "X", "USDT"),
        "BTCUSDT_260327": tet.Listing("BTCUSDT_260327", "TRADING", "BTC", "USDT"),
    }
    assert meant("*/USDT", listings=more).names == []


@given(st.integers(1, 9), st.booleans())
def test_max_symbols_bounds_what_wildcards_bring(most, named):
    """What is left out is named; what was named is never left out."""
    names, left_out, _ = meant("DOGE/USDC,BNB/BTC,*/*" if named else "*/*", most)
    assert len(names) == min(len(NAMES), max(most, 2 if named else 0))
    assert sorted(names + left_out) == sorted(NAMES)


def test_without_wildcards_max_symbols_leaves_nothing_out():
    """Whoever names 2,000 pairs gets them."""
    assert meant(",".join(NAMES), most=3).left_out == []


# In the service


@pytest.fixture
def wide():
    """An exchange with these pairs."""
    with SimulatedBinance(market=Market.random_walk(NAMES)) as exchange:
        exchange.clock.freeze()
        yield exchange


def names_of(rig):
    """The pairs that a service works on."""
    return [feed.pair.name for feed in rig.feeds]


def test_who_is_listed_joins_within_the_hour_and_who_is_delisted_leaves(wide, redis_url, reader, caplog):
    """With a line each; the candles of those that stay are kept."""
    caplog.set_level(logging.INFO, tet.LOGGER)
    with started(wide, redis_url, SYMBOLS="*/BTC,!BNB/BTC") as rig:
        rig.refresh()
        kept = rig.feeds[0]
        wide.market.symbols["SOLBTC"] = Listing("SOL", "BTC")
        rig.an_hour_later()
        assert names_of(rig) == ["ETH/BTC", "SOL/BTC"]
        assert rig.feeds[0] is kept
        assert reader.exists("tet:kline:15m:SOL_BTC")
        del wide.market.symbols["SOLBTC"]
        rig.an_hour_later()
        assert names_of(rig) == ["ETH/BTC"]
    events = [
        (record.message, record.facts["pairs"])
        for record in caplog.records
        if record.message.startswith("pairs")
    ]
    assert events == [("pairs joined", "ETH/BTC"), ("pairs joined", "SOL/BTC"), ("pairs left", "SOL/BTC")]


def test_a_pair_called_unknown_between_two_looks_leaves(wide, redis_url, caplog):
    """With a line; the others are not affected."""
    caplog.set_level(logging.INFO, tet.LOGGER)
    with started(wide, redis_url, SYMBOLS="*/BTC") as rig:
        rig.refresh()
        del wide.market.symbols["BNBBTC"]
        rig.refresh()
        assert names_of(rig) == ["ETH/BTC"]
        assert rig.feeds[0].failure == ""
    assert "pairs left" in caplog.messages


def test_the_top_is_by_volume_and_costs_its_weight(wide, redis_url):
    """ticker/24hr is asked once, with the weight that it has, and again after an hour."""
    for rank, name in enumerate(NAMES):
        wide.market.symbols[SYMBOL_OF[name]].day_volume = float(rank)
    with started(wide, redis_url, SYMBOLS="@top2/USDT") as rig:
        assert names_of(rig) == ["BTCUP/USDT", "USDC/USDT"]
        (request,) = wide.asked("ticker/24hr")
        assert request.weight == tet.MARKETS["spot"].tickers_weight == 80
        assert rig.binance.gate.used_weight() == wide.used_weight
        wide.market.symbols["BTCUSDT"].day_volume = 99.0
        rig.an_hour_later()
        assert names_of(rig) == ["BTC/USDT", "BTCUP/USDT"]


def test_the_top_of_usdm_costs_40(wide, redis_url):
    """Its own path and weight."""
    with started(wide, redis_url, SYMBOLS="@top1/USDT", BINANCE_MARKET="usdm") as rig:
        (request,) = wide.asked("/fapi/v1/ticker/24hr")
        assert request.weight == tet.MARKETS["usdm"].tickers_weight == 40
        assert len(rig.feeds) == 1


def test_what_max_symbols_leaves_out_is_said_once(wide, redis_url, caplog):
    """And again only when it is something else."""
    with started(wide, redis_url, SYMBOLS="*/USDT", MAX_SYMBOLS=3) as rig:
        rig.an_hour_later()
        assert len(rig.feeds) == 3
    (said,) = [record for record in caplog.records if record.message == "pairs left out by MAX_SYMBOLS"]
    assert said.facts == {"max_symbols": 3, "count": 1, "pairs": "BTCUP/USDT"}


# The command line


def check_config(exchange, **given):
    """What --check-config says."""
    return run_program(
        "--public", "--check-config", f"--base-url={exchange.url}", REDIS_ADDR="127.0.0.1:1", **given
    )


def test_check_config_says_what_a_wildcard_means_and_costs(wide):
    """Pairs, weight, memory and bytes per hour; the figures are the estimate's. Nothing else is started."""
    done = check_config(wide, SYMBOLS="*/USDT,*/EUR", MAX_SYMBOLS="3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "SYMBOLS means 3 pairs now: BTC/USDT, ETH/USDT, USDC/USDT" in done.stdout
    assert "MAX_SYMBOLS 3 leaves out 1: BTCUP/USDT" in done.stdout
    assert "not served: */EUR: no pair that trades fits" in done.stdout
    # 20 updates an hour of 3 pairs, of weight 2; 3 pages of weight 2 for each
    assert "weight: 2 of 6,000 per minute; 18 for the first fill" in done.stdout
    assert "requests: 60 per hour" in done.stdout
    assert re.search(r"memory: 0\.[345] MB for candles \(MEMORY_LIMIT_MB 500\)", done.stdout)
    assert re.search(r"bytes per hour: 0\.1 MB from Binance, 0\.1 MB to Redis", done.stdout)
    assert [request.path.rpartition("/")[2] for request in wide.requests] == ["exchangeInfo"]


def test_check_config_says_what_names_mean_and_cost(wide):
    """For names the same as for wildcards; what the exchange does not have brings what was probably meant."""
    done = check_config(wide, SYMBOLS="btcusdt,ETH/USDTT,USDT/BTC,ETHUSDD,XBT/USDT,NO/USDT")
    assert (done.returncode, done.stderr) == (0, "")
    assert "SYMBOLS means 1 pairs now: BTC/USDT" in done.stdout
    assert "weight: 1 of 6,000 per minute; 6 for the first fill" in done.stdout
    for name, near in (
        ("ETH/USDTT", "; did you mean ETH/USDT?"),
        ("USDT/BTC", "; did you mean BTC/USDT?"),
        ("ETHUSDD", "; did you mean ETH/USDT?"),
        ("XBT/USDT", "; did you mean BTC/USDT?"),
        ("NO/USDT", ""),
    ):
        assert f"not served: {name}: unknown to Binance{near}\n" in done.stdout
    assert [request.path.rpartition("/")[2] for request in wide.requests] == ["exchangeInfo"]


def test_check_config_of_names_needs_no_exchange(free_port):
    """One line says that it could not be asked; the cost follows from the names alone, and all is well."""
    url = f"http://127.0.0.1:{free_port}"
    done = run_program("--public", "--check-config", f"--base-url={url}", "--symbols=BTC/USDT,ETH/USDT")
    assert (done.returncode, done.stderr) == (0, "")
    refused = f"{url} does not answer: connection refused (BINANCE_BASE_URL)"
    assert f"SYMBOLS: the exchange could not be asked which of them trade: {refused}\n" in done.stdout
    assert "SYMBOLS means 2 pairs now: BTC/USDT, ETH/USDT" in done.stdout
    assert "weight: 1 of 6,000 per minute; 12 for the first fill" in done.stdout


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BTC/USDTT", "BTC/USDT"),
        ("BTC/USD", "BTC/USDT"),
        ("BTCC/USDT", "BTC/USDT"),
        ("USDT/ETH", "ETH/USDT"),
        ("BTCUSDTT", "BTC/USDT"),
        ("DOGUSDT", "DOGE/USDT"),
        ("NO/USDT", ""),
        ("NOUSDT", ""),
        ("ZZZ", ""),
        ("BTC/EUR", ""),
    ],
)
def test_what_was_probably_meant(name, meant):
    """A slip in the base or the quote, both the other way round; of several the first that is as near."""
    pairs = [("ETH", "BTC"), ("BTC", "USDT"), ("ETH", "USDT"), ("BTT", "USDT"), ("DOGE", "USDT")]
    assert meant_symbol(name, pairs) == meant


def test_the_log_says_what_was_probably_meant(wide, redis_url):
    """Where a symbol is set aside."""
    given = (f"--base-url={wide.url}", f"--redis={redis_url}", "--days=1", "--symbols=BTC/USDTT,ETH/USDT")
    done = run_program("--public", "--once", *given)
    assert done.returncode == 0
    assert 'symbol=BTC/USDTT reason="unknown to Binance; did you mean BTC/USDT?"' in done.stderr


def test_check_config_says_when_the_exchange_cannot_be_asked(wide):
    """Exit code 1, and the setting is named."""
    wide.faults.always("500", path="exchangeInfo")
    done = check_config(wide, SYMBOLS="*/USDT")
    assert done.returncode == 1
    assert "error: SYMBOLS: the exchange could not be asked which pairs are meant" in done.stderr


def test_status_and_health_know_wildcards(wide, redis_url):
    """--status shows the pairs that the service has found."""
    with started(wide, redis_url, SYMBOLS="*/BTC") as rig:
        rig.refresh()
        done = run_program("--status", f"--redis={redis_url}", "--symbols=*/BTC", "--max-age=86400")
        assert done.stdout.count(" fresh") == 2, done.stdout
        done = run_program(
            "--public", "--health-check", f"--redis={redis_url}", f"--base-url={wide.url}", "--symbols=*/BTC"
        )
        assert re.search("symbols +2 trade", done.stdout), done.stdout


def test_the_demo_knows_wildcards(tmp_path):
    """The simulated market has the default pairs then."""
    done = run_program("--demo", "--once", "--symbols=@top2/USDT,!BTC/USDT", "--days=1", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" fresh") == 2
