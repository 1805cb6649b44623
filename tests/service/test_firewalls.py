"""On the real program: replies that mean a pause, and what else of the exchange's may be odd."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from rig import FastClock, Running, eventually, in_background, run_program, started, stored
from samples import CHALLENGE, TOO_MANY, banned

from tet_core.feeds import Provenance

PAUSING = [
    ("202, empty", 202, "", {"x_amzn_waf_action": "challenge"}, "refused by binance, pausing"),
    ("405, a page", 405, CHALLENGE, {"x_amzn_waf_action": "captcha"}, "refused by binance, pausing"),
    ("200, a page", 200, CHALLENGE, {}, "refused by binance, pausing"),
    ("503, Cloudflare's challenge", 503, CHALLENGE, {"cf_mitigated": "challenge"}, "refused by binance"),
    ("200, -1003", 200, TOO_MANY, {}, "rate limited by binance, pausing"),
    ("400, -1003", 400, TOO_MANY, {"Retry_After": "a while"}, "rate limited by binance, pausing"),
    ("400, -1034", 400, '{"code":-1034,"msg":"Too many connections."}', {}, "rate limited by binance"),
    ("200, banned until", 200, None, {}, "banned by binance, pausing"),
    ("403, banned until", 403, None, {}, "banned by binance, pausing"),
    ("503, banned until", 503, None, {"Retry_After": "-1"}, "banned by binance, pausing"),
]


@pytest.mark.parametrize(
    ("why", "status", "body", "headers", "event"), PAUSING, ids=lambda each: str(each)[:20]
)
def test_the_program_stops_asking(exchange, redis_url, tmp_path, why, status, body, headers, event):
    """One request, one warning, and the pause in Redis; not a request a second."""
    body = banned(300, exchange.clock.now_ms()) if body is None else body
    exchange.faults.define("refusal", status, body, **headers)
    exchange.faults.always("refusal", path="")
    arguments = ["--public", "--symbols=BTC/USDT", f"--base-url={exchange.url}", f"--redis={redis_url}"]
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says(event))
        time.sleep(1.2)  # nothing happens, which no event shows
        assert len(exchange.requests) == 1
        assert f"HTTP {status}" in program.log.read_text()


def test_a_firewall_in_mid_run_holds_all_and_the_data_comes_after_it(exchange, redis_url, reader):
    """The first pause is a minute; what was missed is fetched when the firewall opens."""
    exchange.clock.resume()
    with started(exchange, redis_url, FastClock(60), SYMBOLS="BTC/USDT,ETH/USDT,DOGE/USDT") as rig:
        exchange.faults.define("waf", 202, x_amzn_waf_action="challenge")
        exchange.faults.add("waf", path="", times=1)
        exchange.clear()
        rig.refresh()
        assert not any(feed.failure for feed in rig.feeds)
    assert stored(reader)["candle_count"] == 192
    refused, after = exchange.requests[0], exchange.requests[1]
    assert (after.at_monotonic - refused.at_monotonic) * 60 >= 59


# Who comes after a pause


def test_a_503_to_the_first_one_after_a_pause_lets_nobody_through(exchange, redis_url):
    """It was not served: they go one at a time until one is."""
    exchange.latency_seconds = 0.05
    pairs = "BTC/USDT,ETH/USDT,DOGE/USDT"
    with started(exchange, redis_url, SYMBOLS=pairs, CONCURRENT_REQUESTS=3) as rig:
        exchange.faults.always("503_html")
        exchange.clear()
        rig.binance.gate.pause(0.2, "a test")
        worker = in_background(rig.service.cycle)
        eventually(lambda: len(exchange.asked()) >= 5)
        exchange.faults.clear()
        worker.join()
        assert not any(feed.failure for feed in rig.feeds if feed.provenance is Provenance.CONFIRMED)
    times = sorted(request.at_monotonic for request in exchange.asked() if request.status == 503)
    assert len(times) >= 5
    assert all(after - before > 0.04 for before, after in pairwise(times))


def test_how_long_a_refusal_took_says_nothing_of_the_way(exchange, redis_url):
    """Only a reply that was served does, so a fast 503 or 400 makes no worker superfluous."""
    exchange.latency_seconds = 0.1
    with started(exchange, redis_url) as rig:
        exchange.latency_seconds = 0
        for kind in ("503_html", "500", "lone_surrogate"):
            exchange.faults.add(kind, times=3)
            rig.service.updates.update(rig.feeds[0])
            assert rig.feeds[0].failure
        assert rig.binance.best_latency_seconds > 0.09


# Odd answers to other questions


def one_cycle(exchange, redis_url, *more):
    """The program, once."""
    given_ = ["--public", "--symbols=BTC/USDT", "--days=1", f"--base-url={exchange.url}"]
    return run_program(*given_, f"--redis={redis_url}", "--once", *more)


ODD_SYMBOLS: list[object] = [
    None,
    7,
    "BTCUSDT",
    [],
    {},
    {"symbol": None, "baseAsset": "A", "quoteAsset": "B"},
] + [{"symbol": "ABUSDT", "status": odd, "baseAsset": ["A"], "quoteAsset": {"B": 1}} for odd in [None, 5]]


def test_the_program_bears_an_odd_exchange_info(exchange, redis_url, reader):
    """No limits, and one entry of each odd kind among the symbols."""

    def edit(info):
        del info["rateLimits"]
        return info | {"symbols": ODD_SYMBOLS + info["symbols"]}

    exchange.edits["exchangeInfo"] = edit
    done = one_cycle(exchange, redis_url)
    assert done.returncode == 0, done.stderr
    assert stored(reader)["candle_count"] == 96


def test_one_odd_ticker_costs_no_other_pair_its_place(exchange, redis_url, reader):
    """Among the pairs by volume."""
    exchange.edits["24hr"] = lambda tickers: [{"symbol": "ETHUSDT", "quoteVolume": None}, None, *tickers[:1]]
    done = run_program(
        *("--public", "--symbols=@top1/USDT", "--days=1", f"--base-url={exchange.url}"),
        *(f"--redis={redis_url}", "--once"),
    )
    assert done.returncode == 0, done.stderr
    assert reader.keys("tet:kline:*") == ["tet:kline:15m:BTC_USDT"]
