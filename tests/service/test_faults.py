"""Whatever the exchange does wrong, Redis ends up right, and no reader ever sees a step back."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from itertools import pairwise

import pytest
from rig import (
    FastClock,
    eventually,
    expected_candles,
    in_background,
    run_cycles,
    settings,
    started,
    stored,
    unused_port,
)
from samples import DAY, HOUR, MINUTE, NOON_MS

import tet_data_service as tet
from tet_core.times import parse_iso_time
from tet_extras.simulated_binance import ALL_FAULTS, DEFAULT_PAIRS, Market, SimulatedClock

STEP = 900_000


class Witness:
    """A reader that looks at a feed all the time and notes every value it has not seen before."""

    def __init__(self, client, key="tet:kline:15m:BTC_USDT"):
        self.values = []
        self._client, self._key = client, key
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(0.002):
            text = self._client.get(self._key)
            if text is not None and (not self.values or self.values[-1] != text):
                self.values.append(text)

    def assert_only_forward(self, exchange):
        """Each value was sound, none was shorter or older than the one before."""
        seen = [json.loads(text) for text in self.values]
        assert seen
        for value in seen:
            candles = json.loads(value["ohlcv_data"])
            closed = {time: candle for time, candle in candles.items() if time < value["data_end"]}
            truth = expected_candles(exchange, "BTCUSDT", "15m", parse_iso_time(value["data_start"]))
            assert closed.items() <= truth.items()
            assert list(candles) == sorted(candles)
            assert value["candle_count"] == len(candles)
        for before, after in pairwise(seen):
            assert after["candle_count"] >= before["candle_count"]
            for name in ("last_candle_time", "data_end", "last_update", "data_start"):
                assert after[name] >= before[name]


def patient(exchange, redis_url, **given):
    """A started rig on a clock so fast that back-off costs nothing."""
    return started(exchange, redis_url, FastClock(100), **given)


def as_the_exchange_has_it(exchange, value, symbol="BTCUSDT"):
    """Whether the stored value is what a faultless exchange would have given."""
    first_ms = parse_iso_time(value["data_start"])
    return value["candles"] == expected_candles(exchange, symbol, "15m", first_ms)


# Faults, one by one and mixed


@pytest.mark.parametrize("kind", ALL_FAULTS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_passing_fault_costs_retries_and_nothing_else(exchange, redis_url, reader, kind, times):
    """A fault that goes away within three attempts leaves the update whole, cold and incremental."""
    exchange.faults.stall_seconds = 0.3
    with patient(exchange, redis_url) as rig:
        for _ in range(2):
            exchange.faults.add(kind, times=times)
            rig.refresh()
            value = stored(reader)
            assert as_the_exchange_has_it(exchange, value)
            assert value["candle_count"] == 192
        assert [feed.failure for feed in rig.feeds] == [""]
    faulty = [request for request in exchange.asked() if request.fault]
    assert len(faulty) == 2 * times


@pytest.mark.parametrize("kind", [kind for kind in ALL_FAULTS if kind != "off_grid"])  # that is left out
def test_a_lasting_fault_leaves_the_stored_value_alone(exchange, redis_url, reader, kind):
    """While it lasts: three attempts a cycle, the reason in the status; after it, all that was missed."""
    exchange.faults.stall_seconds = 0.3
    with patient(exchange, redis_url) as rig:
        rig.refresh()
        before = reader.get("tet:kline:15m:BTC_USDT")
        exchange.clock.advance(HOUR)
        exchange.faults.always(kind)
        exchange.clear()
        rig.refresh()
        status = json.loads(reader.get("tet:system:status"))
        assert len(exchange.asked()) == tet.ATTEMPTS
        assert reader.get("tet:kline:15m:BTC_USDT") == before
        assert status["failed_symbols"]["BTC/USDT 15m"]
        exchange.faults.clear()
        rig.refresh()
        value = stored(reader)
    assert as_the_exchange_has_it(exchange, value)
    assert value["last_candle_time"] == "2026-01-15T13:00:00Z"


def test_faults_in_a_third_of_all_requests_never_show(exchange, redis_url, reader):
    """Over many cycles with mixed faults a reader sees nothing damaged, shorter or older."""
    exchange.faults.stall_seconds = 0.2
    exchange.faults.mix(0.3, seed=7)
    with patient(exchange, redis_url, DATA_DAYS=15) as rig, Witness(reader) as witness:
        for _ in range(40):
            rig.refresh()
            exchange.clock.advance(7 * MINUTE)
        exchange.faults.clear()
        rig.refresh()
    assert len({request.fault for request in exchange.asked()}) > 10
    witness.assert_only_forward(exchange)
    assert as_the_exchange_has_it(exchange, stored(reader))
    assert stored(reader)["candle_count"] == 1440


def test_a_failed_page_does_not_cost_the_pages_before_it(exchange, redis_url, reader):
    """A long fill that fails on its third page goes on there in the next cycle, and stores only the whole."""
    with patient(exchange, redis_url, DATA_DAYS=30) as rig:
        exchange.faults.add("500", times=3, match=lambda params: int(params["limit"]) < 1000)
        rig.refresh()
        assert not reader.exists("tet:kline:15m:BTC_USDT")
        exchange.clear()
        rig.refresh()
    assert [int(request.params["limit"]) for request in exchange.asked()] == [888]
    assert stored(reader)["candle_count"] == 2880


@pytest.mark.parametrize("kind", ["redirect", "oversize", "dribble", "dribble_head"])
def test_what_no_exchange_sends_is_refused(exchange, redis_url, reader, kind, monkeypatch):
    """A redirect elsewhere, more than 16 MB, and a reply that takes for ever end as a failure."""
    exchange.faults.dribble_seconds = 0.02
    monkeypatch.setattr(tet, "REPLY_SECONDS", 0.3)
    with started(exchange, redis_url, FastClock(100)) as rig:
        exchange.faults.always(kind)
        rig.refresh()
        reason = rig.feeds[0].failure
    slow = f"{exchange.url} does not answer: timed out (BINANCE_BASE_URL)"
    expected = {
        "redirect": "not followed",
        "oversize": "more than 16 MB",
        "dribble": slow,
        "dribble_head": slow,
    }
    assert expected[kind] in reason
    assert not reader.exists("tet:kline:15m:BTC_USDT")


# Limits


def test_a_low_budget_is_used_and_never_overdrawn(exchange, redis_url, reader):
    """With 28 pairs and a small budget the fill takes minutes, without one 429, using what there is."""
    names = [*DEFAULT_PAIRS, "AAA/USDT", "BBB/USDT", "CCC/USDT"][:28]
    exchange.market = Market.random_walk(names)
    exchange.clock = SimulatedClock(NOON_MS, speed=10)  # faster, a busy machine misses a minute's end
    exchange.weight_limit = 120
    given = {"SYMBOLS": ",".join(names), "DATA_DAYS": 60, "API_REQUESTS_PER_SEC": 15}
    with started(exchange, redis_url, FastClock(10), **given) as rig:
        rig.refresh()
    assert exchange.refused_429 == 0
    assert len(reader.keys("tet:kline:*")) == 28
    by_minute: dict[int, int] = {}
    for request in exchange.requests:
        minute = request.at_ms // 60_000
        by_minute[minute] = by_minute.get(minute, 0) + request.weight
    full = sorted(by_minute.items())[1:-1]  # the first began late, the last had little left
    assert full
    assert all(0.8 * 120 <= weight <= 120 for _, weight in full), by_minute


def test_other_programs_behind_the_address_are_counted(exchange, redis_url):
    """What the header says was used by others leaves less for us: no 429."""
    exchange.clock = SimulatedClock(NOON_MS, speed=40)
    exchange.weight_limit = 200
    exchange.extra_weight = 100
    names = ",".join(DEFAULT_PAIRS)
    exchange.market = Market.random_walk(DEFAULT_PAIRS)
    with started(
        exchange, redis_url, FastClock(40), SYMBOLS=names, DATA_DAYS=25, API_REQUESTS_PER_SEC=15
    ) as rig:
        rig.refresh()
        assert not any(feed.failure for feed in rig.feeds)
    assert exchange.refused_429 == 0


@pytest.mark.parametrize("kind", ["429", "418"])
def test_a_pause_stops_every_thread(exchange, redis_url, reader, kind):
    """After a 429 or 418 nothing at all is sent until Retry-After has passed; then one request goes first."""
    exchange.market = Market.random_walk(DEFAULT_PAIRS)
    exchange.latency_seconds = 0.05
    exchange.faults.retry_after_seconds = 2
    with started(exchange, redis_url, SYMBOLS=",".join(DEFAULT_PAIRS)) as rig:
        exchange.faults.add(kind)
        exchange.clear()
        rig.refresh()
        assert not any(feed.failure for feed in rig.feeds)
    refused = next(n for n, request in enumerate(exchange.requests) if request.fault == kind)
    answered = exchange.requests[refused].at_monotonic + 0.05
    times = [request.at_monotonic for request in exchange.requests]
    assert not [
        t for t in times if answered + 0.5 < t < answered + 1.9
    ]  # under way when it came, on a busy machine
    after = sorted(t for t in times if t > answered + 1.9)
    assert after[1] - after[0] > 0.04  # the others waited until the first had come through


def test_a_pause_is_shown_and_outlives_a_restart(exchange, redis_url, reader):
    """The pause is in the status and under its own key; a new process waits out what is left of it."""
    clock = FastClock(20)
    with started(exchange, redis_url, clock) as rig:
        exchange.faults.retry_after_seconds = 40
        exchange.faults.add("418")
        worker = in_background(rig.refresh)
        eventually(lambda: reader.exists("tet:system:pause"))
        status = eventually(lambda: paused_status(reader))
        clock.stop()
        worker.join()
    assert status["state"] == "paused"
    assert "banned" in status["pause_reason"]
    left_ms = reader.pttl("tet:system:pause")
    assert 30_000 < left_ms <= 40_000
    exchange.clear()
    began = time.monotonic()
    with started(exchange, redis_url, FastClock(20)) as rig:
        rig.refresh()
    assert (exchange.requests[0].at_monotonic - began) * 20 >= left_ms / 1000 - 5
    assert stored(reader)["candle_count"] == 192


def paused_status(reader):
    """The status once it has a pause."""
    status = json.loads(reader.get("tet:system:status") or "{}")
    return status if status.get("paused_until") else None


def test_a_403_pauses_longer_each_time(exchange, redis_url):
    """A firewall's refusal pauses 60 s, then 120 s, and ends as a failure that says so."""
    exchange.clock = SimulatedClock(NOON_MS, speed=60)
    with started(exchange, redis_url, FastClock(60)) as rig:
        exchange.faults.always("403_html")
        exchange.clear()
        rig.service.cycle()
        assert "firewall" in rig.feeds[0].failure
    times = [request.at_ms / 1000 for request in exchange.asked()]
    waits = [round(b - a) for a, b in pairwise(times)]
    assert [60 <= waits[0] < 100, 120 <= waits[1] < 160] == [True, True], waits


def test_403s_in_flight_together_are_one_refusal(exchange, redis_url):
    """Twelve workers are refused at once: the pause is that of the first refusal."""
    exchange.market = Market.random_walk(DEFAULT_PAIRS)
    with started(exchange, redis_url, SYMBOLS=",".join(DEFAULT_PAIRS)) as rig:
        rig.refresh()
        exchange.latency_seconds = 0.3
        exchange.faults.always("403_html")
        exchange.clear()
        workers = [in_background(partial(rig.service.updates.update, feed)) for feed in rig.feeds[:6]]
        eventually(lambda: len(exchange.asked("klines")) == 6)
        eventually(lambda: rig.binance.requests.counts().get("403") == 6)
        assert 50 < rig.binance.gate.pause_left_seconds() <= 61
        rig.clock.stop()
        for worker in workers:
            worker.join()


def test_a_message_that_is_no_text_ends_nothing(exchange, redis_url, reader):
    """A lone surrogate in a refusal cannot be written as UTF-8: status and log say the rest."""
    with started(exchange, redis_url) as rig:
        exchange.faults.add("lone_surrogate")
        rig.refresh()
        assert "Illegal character '?'." in rig.feeds[0].failure
        rig.service.write_status()
    failed = json.loads(reader.get("tet:system:status"))["failed_symbols"]
    assert failed == {"BTC/USDT 15m": "Binance refuses: HTTP 400, code -1100: Illegal character '?'."}


def test_a_451_says_what_helps_and_asks_every_five_minutes(exchange, redis_url, caplog):
    """A region that is not served: one message with the ways out, one attempt in five minutes."""
    exchange.market = Market.random_walk(DEFAULT_PAIRS)
    exchange.clock = SimulatedClock(NOON_MS, speed=300)
    with started(exchange, redis_url, FastClock(300), SYMBOLS=",".join(DEFAULT_PAIRS)) as rig:
        exchange.faults.always("451")
        exchange.clear()
        worker = in_background(rig.service.cycle)
        eventually(lambda: exchange.clock.now_ms() > NOON_MS + 1500_000)
        rig.clock.stop()
        worker.join()
    times = sorted(request.at_ms / 1000 for request in exchange.asked())
    later = [t for t in times if t > times[0] + 30]
    assert later
    assert all(b - a >= 299 for a, b in pairwise(later)), times
    logged = [record for record in caplog.records if record.message == "refused by binance, pausing"]
    assert "BINANCE_BASE_URL" in logged[0].facts["reason"]


@pytest.mark.parametrize("latency_seconds", [0.0, 0.05])
def test_the_first_requests_tell_how_far_away_the_exchange_is(exchange, redis_url, latency_seconds):
    """So a fill begins with as many workers as that takes, and no more."""
    exchange.latency_seconds = latency_seconds
    with started(exchange, redis_url) as rig:
        assert latency_seconds <= rig.binance.best_latency_seconds < latency_seconds + 0.1
        needed = tet.workers_needed(100, rig.binance.best_latency_seconds, 12)
        assert (needed > 1) == (latency_seconds > 0)


def test_an_exchange_that_refuses_at_once_is_not_taken_for_a_near_one():
    """Only what came through shows how long a request takes."""
    config = settings(BINANCE_BASE_URL=f"http://127.0.0.1:{unused_port()}", API_REQUESTS_PER_SEC=100)
    with tet.connect_http(config) as http:
        binance = tet.Binance(config, tet.Clock(), http)
        binance.attempts = 1
        with pytest.raises(tet.TransientError):
            binance.sync_clock()
    assert binance.best_latency_seconds == 0


def test_the_rate_is_kept_and_not_exceeded(exchange, redis_url):
    """With 50 ms of latency and 12 workers a long fill runs at the configured rate, and no faster."""
    rate = 20
    exchange.market = Market.random_walk(DEFAULT_PAIRS)
    exchange.latency_seconds = 0.05
    given = {"SYMBOLS": ",".join(DEFAULT_PAIRS), "DATA_DAYS": 5, "API_REQUESTS_PER_SEC": rate}
    with started(exchange, redis_url, TIMEFRAME="1h,2h,4h,6h,8h,12h,1d", **given) as rig:
        exchange.clear()
        rig.refresh()
    times = sorted(request.at_monotonic for request in exchange.asked())
    assert len(times) >= 7 * 25
    steady = times[rate:-12]  # without the burst, and without the end, where few have work left
    assert (len(steady) - 1) / (steady[-1] - steady[0]) >= 0.97 * rate
    for n, first in enumerate(times):
        assert sum(1 for t in times[n:] if t < first + 1) <= 2 * rate + 1


# Time


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_local_clock_an_hour_wrong_changes_nothing(exchange, redis_url, reader, hours):
    """The exchange's time decides what is forming, whatever the local clock says."""

    class WrongClock(tet.Clock):
        def _local_ms(self):
            return NOON_MS + hours * HOUR * 1000

    with started(exchange, redis_url, WrongClock()) as rig:
        rig.refresh()
    assert stored(reader)["last_update"].startswith("2026-01-15T12:07:")
    assert stored(reader)["data_end"] == "2026-01-15T12:00:00Z"


def test_a_local_clock_that_steps_back_stops_nothing(exchange, redis_url, reader):
    """Intervals are monotonic: cycles go on, and the time is asked for again."""

    class SteppingClock(FastClock):
        offset = 0.0

        def _local_ms(self):
            return super()._local_ms() + self.offset

    exchange.clock = SimulatedClock(NOON_MS, speed=60)
    clock = SteppingClock(60)
    with started(exchange, redis_url, clock, TIMEFRAME="1m", DATA_DAYS=1) as rig:
        runner = in_background(lambda: run_cycles(rig.service))
        eventually(lambda: len(exchange.asked()) > 3)
        clock.offset = -2 * HOUR * 1000.0
        exchange.clear()
        eventually(lambda: len(exchange.asked()) > 2)
        clock.stop()
        runner.join()
    assert exchange.asked("time")
    assert stored(reader, "1m:BTC_USDT")["data_age_seconds"] < 60


# Symbols


def test_a_symbol_delisted_in_mid_run_is_set_aside_at_the_hourly_look(exchange, redis_url, reader):
    """BREAK takes a symbol out of the cycles; what is stored of it stays until it expires."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        exchange.market.symbols["ETHUSDT"].status = "BREAK"
        rig.an_hour_later()
        assert [feed.pair.name for feed in rig.feeds] == ["BTC/USDT"]
    assert stored(reader, "15m:ETH_USDT")["candle_count"] == 192


def test_a_symbol_that_vanishes_is_set_aside_at_once(exchange, redis_url, reader):
    """-1121 is not retried: one request, then the others go on alone."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        del exchange.market.symbols["ETHUSDT"]
        exchange.clear()
        rig.refresh()
        rig.refresh()
    assert [request.params["symbol"] for request in exchange.asked()].count("ETHUSDT") == 1
    assert json.loads(reader.get("tet:system:status"))["invalid_symbols"] == {
        "ETH/USDT": "unknown to Binance"
    }


def test_a_running_halt_is_not_asked_about_for_ever(exchange, redis_url, reader):
    """While a symbol is halted each cycle makes one request; when it returns, the gap is asked for once."""
    exchange.market.symbols["BTCUSDT"].halts.append((NOON_MS - STEP, NOON_MS + 6 * HOUR * 1000))
    with patient(exchange, redis_url) as rig:
        rig.refresh()
        exchange.clock.advance(2 * HOUR)
        rig.refresh()
        rig.refresh()
        exchange.clear()
        rig.refresh()
        rig.refresh()
        assert len(exchange.asked()) == 2
        exchange.clock.advance(DAY // 3)
        exchange.clear()
        rig.refresh()
        rig.refresh()
        assert len(exchange.asked()) == 3
    assert as_the_exchange_has_it(exchange, stored(reader))
