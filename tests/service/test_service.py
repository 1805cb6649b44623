"""The service in this process, against the simulated exchange and a real Valkey."""

from __future__ import annotations

import json
import threading
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rig import (
    FastClock,
    Rig,
    another_market,
    due_now,
    eventually,
    expected_candles,
    in_background,
    run_cycles,
    started,
    stored,
)
from samples import DAY, HOUR, MINUTE, NOON_MS

import tet_data_service as tet
from tet_core.freshness import Due, Why
from tet_core.times import parse_iso_time
from tet_extras.simulated_binance import SimulatedBinance, SimulatedClock


def limits(exchange):
    """The row limits of the klines requests since the log was cleared."""
    return [int(request.params["limit"]) for request in exchange.asked()]


# Cold start


def test_cold_start_stores_the_whole_window(exchange, redis_url, reader):
    """After one cycle each pair has every candle of the window, equal to the exchange's."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT", DATA_DAYS=30) as rig:
        rig.refresh()
    for pair in ("BTC_USDT", "ETH_USDT"):
        value = stored(reader, f"15m:{pair}")
        first_ms = parse_iso_time(value["data_start"])
        assert value["candles"] == expected_candles(exchange, pair.replace("_", ""), "15m", first_ms)
        assert len(value["candles"]) == value["candle_count"] == 2880
        assert value["data_completeness"] == 1


def test_cold_start_pages_oldest_first(exchange, redis_url):
    """A month of 15m candles is three requests, each beginning where the one before ended."""
    with started(exchange, redis_url, DATA_DAYS=30) as rig:
        rig.refresh()
    starts = [int(request.params["startTime"]) for request in exchange.asked()]
    assert limits(exchange) == [1000, 1000, 882]
    assert [b - a for a, b in pairwise(starts)] == [1000 * 900_000] * 2


def test_the_fields_say_what_the_contract_promises(exchange, redis_url, reader):
    """Each field of the stored value, its order, the two expiries, and the timestamp beside it."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
    value = stored(reader)
    assert [*value][:-1] == [
        "ohlcv_data",
        "last_candle_time",
        "last_update",
        "data_start",
        "data_end",
        "data_completeness",
        "candle_count",
        "timeframe",
        "data_age_seconds",
    ]
    assert value["last_candle_time"] == [*value["candles"]][-1] == "2026-01-15T12:00:00Z"
    assert value["data_start"] == next(iter(value["candles"])) == "2026-01-13T12:15:00Z"
    assert value["data_end"] == "2026-01-15T12:00:00Z"
    assert 450 <= value["data_age_seconds"] <= 452
    assert value["timeframe"] == "15m"
    assert reader.get("tet:timestamp:15m:BTC_USDT") == value["last_update"]
    assert 86_390 < reader.ttl("tet:kline:15m:BTC_USDT") <= 86_400
    assert 7_190 < reader.ttl("tet:timestamp:15m:BTC_USDT") <= 7_200


def test_closed_only_leaves_the_forming_candle_out(exchange, redis_url, reader):
    """With CLOSED_ONLY the value ends with the newest closed candle and still has N candles."""
    with started(exchange, redis_url, CLOSED_ONLY="true") as rig:
        rig.refresh()
    value = stored(reader)
    assert value["last_candle_time"] == "2026-01-15T11:45:00Z"
    assert value["data_end"] == "2026-01-15T12:00:00Z"
    assert (value["candle_count"], value["data_completeness"]) == (192, 1)


# Increments, restarts, absences


def test_an_update_fetches_only_what_is_new(exchange, redis_url, reader):
    """The next cycle makes one small request, and the history stays whole."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        exchange.clear()
        exchange.clock.advance(5 * MINUTE)
        rig.refresh()
    assert limits(exchange) == [7]
    assert stored(reader)["candle_count"] == 192


@pytest.mark.parametrize(
    ("absence_seconds", "asked"),
    [
        pytest.param(0, [7], id="none"),
        pytest.param(10 * MINUTE, [8], id="ten minutes, over a close"),
        pytest.param(DAY, [7 + 96], id="a day"),
        pytest.param(60 * DAY, [1000, 1000, 882], id="two months, longer than the window"),
    ],
)
def test_a_restart_fetches_what_was_missed(exchange, redis_url, reader, absence_seconds, asked):
    """A new process goes on from what Redis holds, however long it was away."""
    with started(exchange, redis_url, DATA_DAYS=30) as rig:
        rig.refresh()
    exchange.clear()
    exchange.clock.advance(absence_seconds)
    with started(exchange, redis_url, DATA_DAYS=30) as rig:
        rig.refresh()
    assert limits(exchange) == asked
    value = stored(reader)
    first_ms = parse_iso_time(value["data_start"])
    assert value["candles"] == expected_candles(exchange, "BTCUSDT", "15m", first_ms)
    assert value["candle_count"] == 2880


def test_another_number_of_days_is_fetched_anew(exchange, redis_url, reader):
    """A value written for two days is not taken for three."""
    for days in (2, 3):
        with started(exchange, redis_url, DATA_DAYS=days) as rig:
            rig.refresh()
    assert stored(reader)["candle_count"] == 3 * 96


def test_a_changed_candle_is_corrected(exchange, redis_url, reader):
    """What the exchange changes within the candles fetched again is changed in Redis too."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        changed = NOON_MS // 900_000 * 900_000 - 3 * 900_000
        values = ["7.5", "9", "7", "8", "1"]
        exchange.market.symbols["BTCUSDT"].overrides["15m", changed] = [f"{float(v):.8f}" for v in values]
        rig.refresh()
    assert list(stored(reader)["candles"][tet.iso_time(changed)].values()) == values


@pytest.mark.parametrize("refetch", [1, 6])
def test_candles_of_another_market_are_not_taken_over(exchange, redis_url, reader, caplog, refetch):
    """What another exchange or a demo left under the same keys is noticed at once, and replaced."""
    with SimulatedBinance(market=another_market(), clock=exchange.clock) as other:
        with started(other, redis_url) as rig:
            rig.refresh()
    assert not is_of(exchange, stored(reader))
    with started(exchange, redis_url, INCREMENTAL_CANDLES=refetch) as rig:
        rig.refresh()
    assert is_of(exchange, stored(reader))
    assert "stored candles are of another market, backfilling" in caplog.messages


def is_of(exchange, value):
    """Whether the stored candles are this exchange's."""
    first_ms = parse_iso_time(value["data_start"])
    return value["candles"] == expected_candles(exchange, "BTCUSDT", "15m", first_ms)


def test_the_stalest_feed_comes_first(exchange, redis_url):
    """Of those that are due; the others are left out, and whose stream was lost comes before all."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT", TIMEFRAME="15m,1h,4h") as rig:
        rig.refresh()
        later, *feeds = rig.feeds
        for feed, updated_ms in zip(feeds, (30, 10, 20, 5, 40), strict=True):
            feed.freshness.due, feed.updated_ms = Due(0, Why.INTERVAL), updated_ms
        feeds[4].freshness.due = Due(0, Why.LOST)
        updates = rig.service.updates
        updates.ask()
        taken = [updates.work.take() for _ in feeds]
        assert taken == [feeds[4], feeds[3], feeds[1], feeds[2], feeds[0]]
        assert not updates.work
        assert later not in updates.asked


def test_a_clock_that_is_behind_at_a_close_does_no_harm(exchange, redis_url, reader):
    """When the exchange already has a candle that ours does not expect yet, the update just takes it."""
    close_ms = NOON_MS // 900_000 * 900_000 + 900_000
    with started(exchange, redis_url) as rig:
        rig.refresh()
        exchange.clock.set(close_ms - 500)
        rig.binance.sync_clock()
        exchange.clock.set(close_ms + 200)
        exchange.clear()
        due_now(rig.feeds[0])
        rig.service.cycle()
        assert rig.feeds[0].failure == ""
    assert limits(exchange) == [7]
    assert stored(reader)["last_candle_time"] == tet.iso_time(close_ms)


def test_turning_closed_only_on_shortens_nothing(exchange, redis_url, reader):
    """A value with the forming candle has one closed candle less: that one is fetched too."""
    for closed_only in ("false", "true"):
        with started(exchange, redis_url, CLOSED_ONLY=closed_only) as rig:
            rig.refresh()
        assert stored(reader)["candle_count"] == 192


def test_a_new_pair_without_a_closed_candle_is_no_failure(exchange, redis_url, reader):
    """With CLOSED_ONLY a pair listed minutes ago waits for its first close."""
    exchange.market.symbols["BTCUSDT"].listed_ms = NOON_MS // 900_000 * 900_000
    with started(exchange, redis_url, CLOSED_ONLY="true") as rig:
        rig.refresh()
        assert rig.feeds[0].failure == ""
        assert not reader.exists("tet:kline:15m:BTC_USDT")
        exchange.clock.advance(15 * MINUTE)
        rig.refresh()
    assert stored(reader)["candle_count"] == 1


def test_a_pair_listed_two_days_ago(exchange, redis_url, reader):
    """In a window of 30 days it has two days of candles, and is not asked for more each cycle."""
    exchange.market.symbols["BTCUSDT"].listed_ms = NOON_MS - 2 * DAY * 1000
    with started(exchange, redis_url, DATA_DAYS=30) as rig:
        rig.refresh()
        exchange.clear()
        rig.refresh()
    assert limits(exchange) == [7]
    assert stored(reader)["candle_count"] == 192
    assert stored(reader)["data_completeness"] == pytest.approx(192 / 2880)


def test_an_hourly_look_that_fails_is_tried_again_a_minute_later(exchange, redis_url):
    """With no symbol left and the exchange refusing, the service does not ask in a tight loop."""
    exchange.clock = SimulatedClock(NOON_MS, speed=600)
    with started(exchange, redis_url, FastClock(600), SYMBOLS="NO/USDT") as rig:
        rig.service.cycle()
        exchange.faults.always("redirect", path="exchangeInfo")
        exchange.clear()
        runner = in_background(lambda: run_cycles(rig.service))
        eventually(lambda: exchange.clock.now_ms() > NOON_MS + 2 * HOUR * 1000)
        rig.clock.stop()
        runner.join()
    assert 30 <= len(exchange.asked("exchangeInfo")) <= 75


def test_after_a_suspend_the_time_is_asked_for_at_once(exchange, redis_url):
    """When the local clock has jumped ahead, the service does not sleep on: it fetches what it missed."""

    class WakingClock(tet.Clock):
        jump_ms = 0.0

        def _local_ms(self):
            return super()._local_ms() + self.jump_ms

    clock = WakingClock()
    with started(exchange, redis_url, clock) as rig:
        rig.refresh()
        exchange.clear()
        runner = in_background(lambda: run_cycles(rig.service))
        exchange.clock.advance(2 * HOUR)
        clock.jump_ms = 2 * HOUR * 1000.0
        eventually(lambda: exchange.asked("klines"))
        rig.clock.stop()
        runner.join()
    assert exchange.asked("time")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([1, 30, 5 * MINUTE, 20 * MINUTE, 7 * HOUR, 3 * DAY])),
        st.tuples(st.just("restart"), st.sampled_from([0, 40 * MINUTE, DAY, 5 * DAY])),
        st.tuples(st.just("halt"), st.sampled_from([20 * MINUTE, 6 * HOUR])),
    ),
    max_size=6,
)


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_any_history_ends_as_a_fresh_full_fetch_would(exchange, redis_url, reader, steps):
    """After any updates, restarts, absences and halts, Redis holds what a first fetch would store."""
    listing = exchange.market.symbols["BTCUSDT"]
    listing.halts.clear()
    reader.flushall()
    exchange.clock.set(NOON_MS)
    rig = Rig(exchange, redis_url)
    rig.service.start()
    for what, seconds in steps:
        if what == "halt":
            now_ms = exchange.clock.now_ms()
            listing.halts.append((now_ms, now_ms + seconds * 1000))
            seconds += HOUR
        exchange.clock.advance(seconds)
        if what == "restart":
            rig.__exit__()
            rig = Rig(exchange, redis_url)
            rig.service.start()
        rig.refresh()
    rig.refresh()
    rig.__exit__()
    by_steps = stored(reader)
    reader.flushall()
    with started(exchange, redis_url) as fresh:
        fresh.refresh()
    afresh = stored(reader)
    assert by_steps["candles"] == afresh["candles"]
    for name in ("data_start", "data_end", "candle_count", "data_completeness", "last_candle_time"):
        assert by_steps[name] == afresh[name]


# After a close


@pytest.mark.parametrize("lag_seconds", [0, 3, 8])
def test_a_lagging_server_never_passes_an_old_candle_off_as_closed(exchange, redis_url, reader, lag_seconds):
    """The candle that has just closed is final in Redis, and no reader ever saw it closed and unfinished."""
    closing = NOON_MS // 900_000 * 900_000
    exchange.clock = SimulatedClock(closing + 880_000, speed=5)
    exchange.close_lag_seconds = lag_seconds
    with started(exchange, redis_url, FastClock(5)) as rig:
        rig.refresh()
        assert parse_iso_time(stored(reader)["data_end"]) == closing
        exchange.clock.set(closing + 901_000)
        rig.refresh()
        value = stored(reader)
    assert parse_iso_time(value["data_end"]) == closing + 900_000
    final = expected_candles(exchange, "BTCUSDT", "15m", closing)
    assert value["candles"][tet.iso_time(closing)] == final[tet.iso_time(closing)]


# Timeframes and markets


@pytest.mark.parametrize("name", tet.TIMEFRAMES)
def test_every_timeframe_fills_its_window(exchange, redis_url, reader, name):
    """Each of Binance's intervals has its N candles, weeks and months on their calendar."""
    days = {"1s": 1, "1w": 90, "1M": 400}.get(name, 5)
    with started(exchange, redis_url, TIMEFRAME=name, DATA_DAYS=days) as rig:
        rig.refresh()
    value = stored(reader, f"{name}:BTC_USDT")
    first_ms = parse_iso_time(value["data_start"])
    assert value["candles"] == expected_candles(exchange, "BTCUSDT", name, first_ms)
    assert value["candle_count"] == tet.TIMEFRAMES[name].candles_in_days(days)
    assert value["data_completeness"] == 1


def test_several_timeframes_live_side_by_side(exchange, redis_url, reader):
    """Each timeframe of a pair has its own two keys."""
    with started(exchange, redis_url, TIMEFRAME="15m,1h,1d", DATA_DAYS=10) as rig:
        rig.refresh()
    counts = {name: stored(reader, f"{name}:BTC_USDT")["candle_count"] for name in ("15m", "1h", "1d")}
    assert counts == {"15m": 960, "1h": 240, "1d": 10}
    assert len(reader.keys("tet:timestamp:*")) == 3


def test_usdm_uses_its_own_paths_and_the_cheapest_page(exchange, redis_url, reader):
    """USD-M futures are read under /fapi/v1 in pages of 499 rows, which weigh 2."""
    with started(exchange, redis_url, BINANCE_MARKET="usdm", DATA_DAYS=30) as rig:
        rig.refresh()
    assert limits(exchange) == [499] * 5 + [387]
    assert {request.path for request in exchange.asked()} == {"/fapi/v1/klines"}
    assert {request.weight for request in exchange.asked()} == {2}
    assert stored(reader)["candle_count"] == 2880


# Gaps


def test_a_gap_is_asked_for_once_more_and_then_respected(exchange, redis_url, reader):
    """A halt of six hours costs one more request, once, and shows in the completeness."""
    halt = (NOON_MS - 12 * HOUR * 1000, NOON_MS - 6 * HOUR * 1000)
    exchange.market.symbols["BTCUSDT"].halts.append(halt)
    with started(exchange, redis_url) as rig:
        rig.refresh()
        assert limits(exchange) == [194, 24]
        exchange.clear()
        for _ in range(3):
            rig.refresh()
    assert limits(exchange) == [7, 7, 7]
    assert stored(reader)["candle_count"] == 192 - 24
    assert stored(reader)["data_completeness"] == pytest.approx((192 - 24) / 192)


def test_a_new_listing_has_the_candles_there_are(exchange, redis_url, reader):
    """A symbol listed six hours ago is stored from its first candle on."""
    exchange.market.symbols["BTCUSDT"].listed_ms = NOON_MS - 6 * HOUR * 1000
    with started(exchange, redis_url) as rig:
        rig.refresh()
        exchange.clear()
        rig.refresh()
    assert stored(reader)["data_start"] == "2026-01-15T06:15:00Z"
    assert limits(exchange) == [7]


# Symbols


def test_symbols_that_do_not_trade_are_set_aside(exchange, redis_url, reader):
    """Unknown and halted symbols are named with the reason, and the others go on."""
    exchange.market.symbols["ETHUSDT"].status = "BREAK"
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT,NO/USDT") as rig:
        rig.refresh()
    status = json.loads(reader.get("tet:system:status"))
    assert status["invalid_symbols"] == {
        "ETH/USDT": "not trading: trading is suspended (BREAK)",
        "NO/USDT": "unknown to Binance",
    }
    assert status["active_symbols"] == 1
    assert reader.keys("tet:kline:*") == ["tet:kline:15m:BTC_USDT"]


def test_a_symbol_that_returns_is_taken_up_again(exchange, redis_url, reader):
    """The hourly look at the symbols takes back what trades again, with what was missed."""
    exchange.market.symbols["ETHUSDT"].status = "BREAK"
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        exchange.market.symbols["ETHUSDT"].status = "TRADING"
        rig.an_hour_later()
    assert stored(reader, "15m:ETH_USDT")["candle_count"] == 192


def test_one_name_spelt_twice_is_one_pair(exchange, redis_url):
    """BTC/USDT, btc-usdt and BTCUSDT are the same pair, split where the exchange splits it."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,btc-usdt,BTCUSDT,ethusdt") as rig:
        assert [feed.pair.name for feed in rig.feeds] == ["BTC/USDT", "ETH/USDT"]


# Updates that change nothing


def touched(reader, key="15m:BTC_USDT"):
    """The stored bytes, their time to live in ms, and the timestamp."""
    value = f"tet:kline:{key}"
    return reader.get(value), reader.pttl(value), reader.get(f"tet:timestamp:{key}")


def test_an_update_that_changes_no_candle_writes_only_the_times_and_the_expiry(exchange, redis_url, reader):
    """Few bytes go to Redis, and the value lives as long as if it were written anew."""
    with started(exchange, redis_url, CLOSED_ONLY="true") as rig:
        rig.refresh()
        before = touched(reader)
        reader.pexpire("tet:kline:15m:BTC_USDT", 5000)
        exchange.clock.advance(3 * MINUTE)
        rig.binance.sync_clock()
        received = reader.info("stats")["total_net_input_bytes"]
        rig.refresh()
        assert reader.info("stats")["total_net_input_bytes"] - received < 4_000, "of 27,000, and the status"
        after = touched(reader)
        assert json.loads(after[0])["ohlcv_data"] == json.loads(before[0])["ohlcv_data"]
        assert json.loads(after[0])["last_update"] == after[2] == "2026-01-15T12:10:30Z"
        assert json.loads(after[0])["data_age_seconds"] == 630
        assert after[1] > 5000
        assert after[2] > before[2]
        exchange.clock.advance(15 * MINUTE)
        rig.binance.sync_clock()
        rig.refresh()
        assert stored(reader)["last_candle_time"] > json.loads(before[0])["last_candle_time"]


@pytest.mark.parametrize("harm", ["delete", "cut"])
def test_a_value_that_is_not_as_it_was_written_is_written_whole(exchange, redis_url, reader, harm):
    """Lost, or shortened by other hands: an update that changes no candle mends it."""
    with started(exchange, redis_url, CLOSED_ONLY="true") as rig:
        rig.refresh()
        before = stored(reader)["candles"]
        key = "tet:kline:15m:BTC_USDT"
        reader.delete(key) if harm == "delete" else reader.set(key, reader.get(key)[:-20])
        exchange.clock.advance(MINUTE)
        rig.binance.sync_clock()
        rig.refresh()
        assert stored(reader)["candles"] == before


# Announcements and status


def test_a_write_is_announced(exchange, redis_url, reader):
    """Subscribers hear of each write, and whether a candle has closed since the last one."""
    with reader.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe("tet:updates")
        with started(exchange, redis_url) as rig:
            rig.refresh()
            exchange.clock.advance(15 * MINUTE)
            rig.refresh()
            rig.refresh()
        heard = []
        eventually(lambda: heard.append(channel.get_message()) or sum(map(bool, heard)) == 3)
    news = [json.loads(message["data"]) for message in heard if message]
    assert [message["candle_closed"] for message in news] == [False, True, False]
    assert news[1]["symbol"] == "BTC/USDT"
    assert news[1]["timeframe"] == "15m"
    assert news[1]["last_candle_time"] == "2026-01-15T12:15:00Z"


def test_the_status_has_what_the_contract_names(exchange, redis_url, reader):
    """The status key holds at least the promised fields, and expires."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        status = json.loads(reader.get("tet:system:status"))
    assert status["state"] == "running"
    assert (status["active_symbols"], status["successful_updates"], status["failed_updates"]) == (2, 2, 0)
    assert status["last_full_scan"].startswith("2026-01-15T12:07:")
    assert 0 <= status["data_freshness_avg"] < 5
    assert status["update_duration_seconds"] > 0
    assert status["weight_limit"] == 6000
    assert 0 < reader.ttl("tet:system:status") <= 7200
    assert json.loads(reader.get("tet:system:status"))["state"] == "stopped"


def test_a_fast_clock_runs_cycles_at_the_closes(exchange, redis_url, reader):
    """The running service begins a cycle a second after each close, whatever its interval is."""
    exchange.clock = SimulatedClock(NOON_MS, speed=10)
    given = {"TIMEFRAME": "1m", "UPDATE_INTERVAL": 540, "DATA_DAYS": 1}
    with Rig(exchange, redis_url, FastClock(10), **given) as rig:
        runner = threading.Thread(target=rig.service.run)
        runner.start()
        eventually(lambda: len(exchange.asked()) >= 6, 40)
        rig.clock.stop()
        runner.join(5)
    seconds = [request.at_ms // 1000 % 60 for request in exchange.asked()[3:]]
    assert all(second <= 5 for second in seconds), seconds  # a busy machine's 50 ms are half a second here
