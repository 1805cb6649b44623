"""Rows that the exchange keeps although they are odd: the real program, cold, running, and --verify."""

from __future__ import annotations

import json

import pytest
from rig import FastClock, Running, eventually, expected_candles, run_program, started, stored
from samples import DAY, HOUR, MINUTE, NOON_MS, OHLCV

import tet_data_service as tet
from tet_core.times import parse_iso_time
from tet_extras.simulated_binance import DEFAULT_PAIRS, Market

TF = tet.TIMEFRAMES["15m"]
OPEN_MS = TF.floor(NOON_MS)
OLD_MS = OPEN_MS - 11 * DAY * 1000


def arguments(exchange, redis_url, *more):
    """The program on this exchange and this Redis; BTC and ETH of 12 days, unless more says otherwise."""
    given = ("--public", "--symbols=BTC/USDT,ETH/USDT", f"--base-url={exchange.url}", f"--redis={redis_url}")
    return [*given, "--requests-per-sec=100", "--days=12", *more]


def warnings(text, event="odd row"):
    """The lines of a log that warn of odd rows."""
    return [line for line in text.splitlines() if event in line]


def truth(exchange, value, timeframe="15m"):
    """The exchange's own candles from where a value begins, without those that are off the grid."""
    frame = tet.TIMEFRAMES[timeframe]
    sent = expected_candles(exchange, "BTCUSDT", timeframe, parse_iso_time(value["data_start"]))
    at_ms = {at: parse_iso_time(at) for at in sent}
    return {at: candle for at, candle in sent.items() if frame.floor(at_ms[at]) == at_ms[at]}


AT_ONCE = ("early_close", "exponents", "numbers", "minus_zero")
BELIEVED = ("late_close", "close_above_high", "no_price", "missing_fields")
LEFT_OUT = ("shifted", "nulls", "negative", "nan")


@pytest.mark.parametrize("kinds", [AT_ONCE, BELIEVED, LEFT_OUT], ids=" ".join)
def test_odd_rows_of_11_days_ago_keep_no_pair_out_of_redis(exchange, redis_url, reader, kinds):
    """From an empty Redis, once; then --verify finds no difference; each says so once."""
    odd = {kind: TF.shift(OLD_MS, 2 * place) for place, kind in enumerate(kinds)}
    for kind, open_ms in odd.items():
        exchange.market.edit("BTCUSDT", "15m", open_ms, kind)
    done = run_program(*arguments(exchange, redis_url, "--once"))
    assert done.returncode == 0, done.stderr
    value, missing = stored(reader), 0 if kinds != LEFT_OUT else len(kinds)
    assert value["candle_count"] == 1152 - missing
    assert all((tet.iso_time(open_ms) in value["candles"]) == (not missing) for open_ms in odd.values())
    if kinds != LEFT_OUT:
        assert value["candles"] == truth(exchange, value)
    assert stored(reader, "15m:ETH_USDT")["candle_count"] == 1152
    for candle in value["candles"].values():
        assert not any("e" in candle[name].lower() for name in OHLCV)
    said = {AT_ONCE: "", BELIEVED: "odd row believed", LEFT_OUT: "odd row left out"}[kinds]
    found = warnings(done.stderr)
    assert len(found) == (len(kinds) if said else 0)
    assert all(said in line and "BTC/USDT 15m" in line for line in found)
    verified = run_program(*arguments(exchange, redis_url, "--verify"))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert verified.stdout.endswith("no difference\n")


@pytest.mark.parametrize("kind", ["early_close", "shifted", "exponents", "minus_zero"])
def test_a_pair_goes_on_past_an_odd_row(exchange, redis_url, reader, kind, caplog):
    """It forms, closes, and moves out of what is fetched again; nothing fails, one line at most."""
    with started(exchange, redis_url, FastClock(100)) as rig:
        rig.refresh()
        exchange.market.edit("BTCUSDT", "15m", OPEN_MS + TF.step_ms, kind)
        for _ in range(14):
            exchange.clock.advance(7 * MINUTE)
            rig.refresh()
            assert not rig.feeds[0].failure
        value = stored(reader)
        assert value["candles"] == truth(exchange, value)
        assert value["last_candle_time"] == tet.iso_time(TF.floor(exchange.clock.now_ms()))
        for _ in range(4):
            rig.service.audit.step(rig.feeds)
        assert not rig.service.counts.candles.counts().get("corrected")
    assert len([each for each in caplog.messages if each.startswith("odd row")]) == (kind == "shifted")


@pytest.mark.parametrize("kind", ["late_close", "close_above_high", "nulls"])
def test_a_running_service_believes_what_three_updates_have_found(exchange, redis_url, reader, kind, caplog):
    """The first two fail, and what is stored stays; then the row's neighbours count, and it, if it can."""
    with started(exchange, redis_url, FastClock(50)) as rig:
        rig.refresh()
        before = reader.get("tet:kline:15m:BTC_USDT")
        exchange.market.edit("BTCUSDT", "15m", OPEN_MS, kind)
        for _ in range(2):
            exchange.clock.advance(HOUR)
            rig.refresh()
            rig.clock.sleep(3)  # what comes at one moment counts once
            assert "the klines reply is damaged" in rig.feeds[0].failure
            assert reader.get("tet:kline:15m:BTC_USDT") == before
        exchange.clock.advance(HOUR)
        for _ in range(2):
            rig.refresh()
            assert not rig.feeds[0].failure
        value = stored(reader)
        assert value["last_candle_time"] == tet.iso_time(TF.floor(exchange.clock.now_ms()))
        if kind != "nulls":
            assert value["candles"] == truth(exchange, value)
    assert len([each for each in caplog.messages if each.startswith("odd row")]) == 1


def test_an_outage_makes_an_odd_row_for_all_pairs_at_once(exchange, redis_url, reader):
    """Cut short, and begun anew off the grid: all come, with a line each."""
    pairs = DEFAULT_PAIRS[:10]
    exchange.market = Market.random_walk(pairs)
    for symbol in exchange.market.symbols:
        exchange.market.edit(symbol, "15m", OLD_MS, "early_close")
        exchange.market.edit(symbol, "15m", OLD_MS + TF.step_ms, "shifted")
    done = run_program(*arguments(exchange, redis_url, f"--symbols={','.join(pairs)}", "--once"))
    assert done.returncode == 0, done.stderr
    assert len(reader.keys("tet:kline:*")) == 10
    assert len(warnings(done.stderr)) == 10
    assert exchange.refused_429 == 0


REAL = {
    1515034800000: '[1515034800000,"1","3","1","2","7.5",1515034814838,"1",1,"1","1","0"]',
    1518318000000: '[1518319694789,"1","3","1","2","7.5",1518321600999,"1",1,"1","1","0"]',
}


def test_the_rows_of_2018(exchange, redis_url, reader):
    """As Binance keeps them, 1h: one was cut short, one is off the grid."""
    exchange.clock.set(1518400000000)
    listing = exchange.market.symbols["BTCUSDT"]
    listing.edits = {("1h", open_ms): lambda _, row=row: row for open_ms, row in REAL.items()}
    done = run_program(*arguments(exchange, redis_url, "--timeframe=1h", "--days=60", "--once"))
    assert done.returncode == 0, done.stderr
    value = stored(reader, "1h:BTC_USDT")
    assert value["candle_count"] == 60 * 24 - 1
    assert value["candles"]["2018-01-04T03:00:00Z"] == dict(zip(OHLCV, "1 3 1 2 7.5".split(), strict=True))
    assert "2018-02-11T03:00:00Z" not in value["candles"]
    (said,) = warnings(done.stderr)
    assert "off the 1h grid" in said


def test_the_minute_that_ended_early_while_the_program_runs(exchange, redis_url, reader, tmp_path):
    """BTC goes on as ETH beside it does."""
    minute = tet.TIMEFRAMES["1m"]
    cut_ms = minute.floor(NOON_MS)
    exchange.market.edit("BTCUSDT", "1m", cut_ms, "early_close")
    exchange.clock.set(cut_ms + 52_000)
    exchange.clock.resume()
    with Running(tmp_path, *arguments(exchange, redis_url, "--timeframe=1m", "--days=1")) as program:
        eventually(lambda: reader.exists("tet:kline:1m:BTC_USDT"))
        eventually(lambda: stored(reader, "1m:BTC_USDT")["data_end"] == tet.iso_time(cut_ms + 60_000))
        assert tet.iso_time(cut_ms) in stored(reader, "1m:BTC_USDT")["candles"]
        assert not program.says("odd row")
        assert not program.says("damaged")


@pytest.mark.parametrize("kind", ["shifted", "close_above_high"])
def test_all_rows_of_a_window_may_be_odd(exchange, redis_url, reader, kind):
    """What there is of it is stored; where there is nothing, that is what is said, and the others come."""
    first_ms = TF.shift(OPEN_MS, -100)
    for n in range(102):
        exchange.market.edit("BTCUSDT", "15m", TF.shift(first_ms, n), kind)
    done = run_program(*arguments(exchange, redis_url, "--days=1", "--once"))
    assert stored(reader, "15m:ETH_USDT")["candle_count"] == 96
    if kind == "close_above_high":
        assert done.returncode == 0
        assert stored(reader)["candle_count"] == 96
    else:
        assert done.returncode == 1
        assert "BTC/USDT 15m" in done.stderr
        assert "no candle on the grid" in done.stderr
    assert len(exchange.asked()) < 20


def test_verify_names_the_pair_it_cannot_compare(exchange, redis_url, reader):
    """And goes on to the next one."""
    assert run_program(*arguments(exchange, redis_url, "--days=1", "--once")).returncode == 0
    exchange.faults.add("object", times=3, match=lambda params: params["symbol"] == "BTCUSDT")
    done = run_program(*arguments(exchange, redis_url, "--days=1", "--verify"))
    assert done.returncode == 1
    assert "BTC/USDT 15m: not compared: the klines reply is damaged" in done.stdout
    assert "95 closed candles of 2 values compared" in done.stdout


def test_a_believed_candle_is_told_once_after_a_restart(exchange, redis_url, reader):
    """What is stored is kept until the exchange has repeated it."""
    exchange.market.edit("BTCUSDT", "15m", OPEN_MS - TF.step_ms * 50, "close_above_high")
    for _ in range(2):
        done = run_program(*arguments(exchange, redis_url, "--days=1", "--once"))
        assert done.returncode == 0, done.stderr
        assert len(warnings(done.stderr, "odd row believed")) == 1
        value = stored(reader)
        assert value["candle_count"] == 96
        assert value["candles"] == truth(exchange, value)
    assert json.loads(reader.get("tet:system:status"))["failed_symbols"] == {}
