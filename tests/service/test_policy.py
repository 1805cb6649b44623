"""The update policy: how long an interval is, when candles are due again, and what it costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import settings

import tet_data_service as tet
from tet_core.candles import make_candles
from tet_core.intervals import Interval
from tet_core.times import HOUR_MS, parse_iso_time
from tet_extras.figures import Estimate, estimate

PEAK, OFF_PEAK = 14 * HOUR_MS, 3 * HOUR_MS
NOON_MS = parse_iso_time("2026-01-15T12:00:00Z")  # a Thursday


def interval_of(factor=1.0, **given):
    """The interval of the default settings and what is given, after failures that made that factor."""
    interval = Interval(settings(**given))
    interval.error_factor = factor
    return interval


def series(name, *opens):
    """A series with candles at these open times."""
    candles = make_candles(opens, map(tet.iso_time, opens), [["1"] * len(opens)] * 5)
    return tet.Series(tet.TIMEFRAMES[name]).merge(candles, False, 10_000)


# The interval in force


@pytest.mark.parametrize(
    ("given", "now_ms", "factor", "seconds"),
    [
        pytest.param({}, PEAK, 1, 180, id="peak"),
        pytest.param({}, OFF_PEAK, 1, 360, id="off-peak"),
        pytest.param({}, PEAK, 1.5, 270, id="peak, after failures"),
        pytest.param({}, PEAK, 100, 540, id="peak, no more than max age"),
        pytest.param({}, OFF_PEAK, 1.5, 540, id="off-peak, just max age"),
        pytest.param({}, OFF_PEAK, 1.4, 504, id="off-peak and failures multiply"),
        pytest.param({"OFF_PEAK_MULTIPLIER": 1}, OFF_PEAK, 1, 180, id="off-peak multiplier of one"),
        pytest.param({"OFF_PEAK_MULTIPLIER": 2.5}, OFF_PEAK, 1, 450, id="another off-peak multiplier"),
        pytest.param({"MARKET_HOURS_OPTIMIZATION": "no"}, OFF_PEAK, 1, 180, id="market hours off"),
        pytest.param({"MARKET_HOURS_OPTIMIZATION": "no"}, OFF_PEAK, 2, 360, id="market hours off, failures"),
        pytest.param({"UPDATE_INTERVAL": 900}, PEAK, 1, 540, id="base above max age"),
        pytest.param({"UPDATE_INTERVAL": 10}, PEAK, 1, 10, id="base below a minute"),
        pytest.param({"UPDATE_INTERVAL": 10}, OFF_PEAK, 1, 20, id="base below a minute, off-peak"),
        pytest.param({"UPDATE_INTERVAL": 60}, PEAK, 0.1, 60, id="never below a minute"),
        pytest.param({"UPDATE_INTERVAL": 300}, PEAK, 0.1, 60, id="never below a minute with a longer base"),
        pytest.param({"UPDATE_INTERVAL": 10}, PEAK, 0.1, 10, id="never below a short base"),
        pytest.param({"MAX_DATA_AGE": 30}, PEAK, 1, 30, id="max age below a minute"),
    ],
)
def test_the_interval_in_force(given, now_ms, factor, seconds):
    """Base x off-peak x error factor, within min(60, base) and max age; max age has the last word."""
    assert interval_of(factor, **given).seconds(now_ms) == pytest.approx(seconds)


@pytest.mark.parametrize("hour", range(24))
def test_the_busy_hours(hour):
    """Eight hours of the day are busy, and the interval is the base then."""
    busy = hour in (7, 8, 9, 13, 14, 15, 21, 22)
    assert interval_of().seconds(hour * HOUR_MS) == (180 if busy else 360)


def test_a_quiet_night_is_as_long_in_its_last_hour_as_in_its_first():
    """Off-peak hours in a row all have the same interval, and a day later it is the base again."""
    interval = interval_of(MAX_DATA_AGE=86_400)
    assert {interval.seconds(hour * HOUR_MS) for hour in range(7)} == {360}
    assert interval.seconds(24 * HOUR_MS + PEAK) == 180


# The error factor


@pytest.mark.parametrize(
    ("given", "factor", "failure_rate", "expected"),
    [
        pytest.param({}, 1, 0.21, 1.5, id="growth"),
        pytest.param({}, 1.5, 1, 2.25, id="growth again"),
        pytest.param({}, 2.9, 0.5, 3, id="growth ends where max age does"),
        pytest.param({}, 1.5, 0.20, 1.5, id="a fifth is not yet growth"),
        pytest.param({}, 1.5, 0.05, 1.5, id="a twentieth is not yet recovery"),
        pytest.param({}, 1.5, 0.049, 1.35, id="recovery"),
        pytest.param({}, 1.05, 0, 1, id="recovery ends at one"),
        pytest.param({}, 1, 0, 1, id="nothing to recover from"),
        pytest.param({"ADAPTIVE_INTERVAL": "no"}, 1, 1, 1, id="adaptive off"),
        pytest.param({"ERROR_BACKOFF_MULTIPLIER": 2}, 1, 1, 2, id="another growth"),
        pytest.param({"SUCCESS_RECOVERY_RATE": 0.5}, 3, 0, 1.5, id="another recovery"),
        pytest.param({"UPDATE_INTERVAL": 900}, 1, 1, 1, id="base above max age"),
    ],
)
def test_the_error_factor_after_a_cycle(given, factor, failure_rate, expected):
    """More than 20 % failures make it grow, fewer than 5 % let it shrink."""
    interval = interval_of(factor, **given)
    interval.cycle_ended(failure_rate)
    assert interval.error_factor == pytest.approx(expected)


def test_good_cycles_bring_the_base_back():
    """After the worst the factor is one again within a dozen good cycles."""
    interval = interval_of()
    for failure_rate in [1.0] * 50 + [0.0] * 12:
        interval.cycle_ended(failure_rate)
    assert interval.error_factor == 1


@pytest.mark.parametrize(
    ("now_ms", "factor", "words"),
    [
        (PEAK, 1, "base 180 s, at most 540 s"),
        (OFF_PEAK, 1, "base 180 s x 2 off-peak, at most 540 s"),
        (PEAK, 1.5, "base 180 s x 1.50 after failures, at most 540 s"),
        (OFF_PEAK, 1.5, "base 180 s x 2 off-peak x 1.50 after failures, at most 540 s"),
    ],
)
def test_the_reason_names_what_counts(now_ms, factor, words):
    """The words hold each factor that is not one."""
    assert interval_of(factor).reason(now_ms) == words


# When next


def test_failures_make_the_interval_longer():
    """As the status has it."""
    interval = Interval(settings())
    before = interval.seconds(NOON_MS)
    interval.cycle_ended(1.0)
    assert interval.seconds(NOON_MS) > before
    assert "after failures" in interval.reason(NOON_MS)


# Where an update begins


def test_without_candles_it_begins_with_the_window():
    """N candles before the forming one, which makes one more than N."""
    empty = tet.Series(tet.TIMEFRAMES["15m"])
    assert tet.first_open_to_ask(empty, 96, 6, NOON_MS + 1) == NOON_MS - 96 * 900_000


@pytest.mark.parametrize(("refetch", "back"), [(1, 0), (2, 1), (6, 5), (20, 9)])
def test_with_candles_it_begins_some_candles_back(refetch, back):
    """As many stored candles as configured are fetched again, at most all there are."""
    held = series("15m", *(NOON_MS - i * 900_000 for i in range(9, -1, -1)))
    assert tet.first_open_to_ask(held, 96, refetch, NOON_MS) == NOON_MS - back * 900_000


def test_gaps_do_not_count_as_candles():
    """Candles are counted as they are held: a gap among them reaches further back."""
    held = series("1h", NOON_MS - 10 * 3_600_000, NOON_MS - 3_600_000, NOON_MS)
    assert tet.first_open_to_ask(held, 96, 3, NOON_MS) == NOON_MS - 10 * 3_600_000


def test_after_a_long_absence_it_begins_with_the_window():
    """What lies before the window is not asked for."""
    held = series("15m", NOON_MS - 10 * 86_400_000)
    assert tet.first_open_to_ask(held, 96, 6, NOON_MS) == NOON_MS - 96 * 900_000


def test_the_window_of_months_follows_the_calendar():
    """Three months before January 2026 is October 2025."""
    empty = tet.Series(tet.TIMEFRAMES["1M"])
    assert tet.first_open_to_ask(empty, 3, 6, NOON_MS) == parse_iso_time("2025-10-01T00:00:00Z")


# What it costs


def test_the_cost_of_the_default_configuration():
    """25 pairs every 3 minutes are 500 requests an hour, with sizes to match."""
    cost = estimate(25, settings())
    assert cost.requests == 25 * 20
    assert cost.bytes_from_binance == 500 * (500 + 7 * 70)
    assert cost.bytes_to_redis == 500 * 1200, "a close costs what changed"
    assert cost.stored_bytes == 25 * 2880 * 155
    assert 3.0e6 < cost.candles_bytes < 3.5e6, "0.13 MB for each pair, packed"


@pytest.mark.parametrize(
    ("given", "grows"),
    [
        pytest.param({"UPDATE_INTERVAL": 90}, "requests bytes_from_binance bytes_to_redis", id="interval"),
        pytest.param({"DATA_DAYS": 60}, "stored_bytes candles_bytes", id="days"),
        pytest.param({"INCREMENTAL_CANDLES": 12}, "bytes_from_binance", id="refetched candles"),
        pytest.param({"TIMEFRAME": "15m,1h"}, " ".join(Estimate._fields), id="timeframes"),
        pytest.param({"TIMEFRAME": "1m"}, " ".join(Estimate._fields), id="shorter candles"),
    ],
)
def test_the_cost_grows_with_the_configuration(given, grows):
    """Each setting raises the costs it stands for, and no other."""
    before, after = estimate(25, settings()), estimate(25, settings(**given))
    grown = [name for name, a, b in zip(before._fields, before, after, strict=True) if b > a]
    assert " ".join(grown) == grows
    assert all(b >= a for a, b in zip(before, after, strict=True))


@given(st.integers(0, 400))
def test_each_pair_costs_the_same(pairs):
    """Costs are proportional to the number of pairs."""
    one, many = estimate(1, settings()), estimate(pairs, settings())
    assert [*many] == [pairs * each for each in one]


def test_closes_bring_updates_beyond_the_interval():
    """Candles of a minute are updated each minute, however long the interval is."""
    assert estimate(10, settings(TIMEFRAME="1m", UPDATE_INTERVAL=540)).requests == 600


@pytest.mark.parametrize(
    ("rate", "request_seconds", "workers"),
    [
        pytest.param(15, 0.005, 1, id="a near exchange keeps one busy"),
        pytest.param(15, 0.05, 2, id="50 ms"),
        pytest.param(15, 0.3, 7, id="far away"),
        pytest.param(15, 5, 12, id="never more than allowed"),
        pytest.param(0.01, 0.05, 1, id="never fewer than one"),
    ],
)
def test_as_many_workers_as_the_rate_needs(rate, request_seconds, workers):
    """Rate times latency is what must be under way, and half as much again for slack."""
    assert tet.workers_needed(rate, request_seconds, 12) == workers
