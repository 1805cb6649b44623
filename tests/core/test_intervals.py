"""How long an interval is, when candles are due again, and when they are proven."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tet_core.intervals import Interval, next_due_ms, next_proof_ms
from tet_core.times import HOUR_MS, TIMEFRAMES, parse_iso_time


class Settings(NamedTuple):
    """Those that decide it."""

    update_interval: int
    max_data_age: int
    off_peak_multiplier: float
    error_backoff_multiplier: float
    success_recovery_rate: float
    market_hours_optimization: bool
    adaptive_interval: bool


TIMES = st.integers(0, 23).map(lambda hour: hour * HOUR_MS)
RATES = st.lists(st.floats(0, 1), max_size=60)
SETTINGS = st.builds(
    Settings,
    update_interval=st.integers(1, 86_400),
    max_data_age=st.integers(1, 86_400),
    off_peak_multiplier=st.floats(1, 10),
    error_backoff_multiplier=st.floats(1, 10),
    success_recovery_rate=st.floats(0.01, 1),
    market_hours_optimization=st.booleans(),
    adaptive_interval=st.booleans(),
)


@given(SETTINGS, RATES, TIMES)
def test_the_interval_keeps_its_bounds(settings, rates, now_ms):
    """Never above max age, and never below min(60, base) where max age allows that."""
    interval = Interval(settings)
    for rate in rates:
        interval.cycle_ended(rate)
    seconds = interval.seconds(now_ms)
    assert seconds <= settings.max_data_age
    assert seconds >= min(60, settings.update_interval, settings.max_data_age)


@given(SETTINGS, st.lists(st.tuples(TIMES, st.floats(0, 1)), max_size=50), TIMES)
def test_the_interval_does_not_compound(settings, past, now_ms):
    """To be asked leaves no trace: after the same failures it is as long."""
    asked, other = Interval(settings), Interval(settings)
    for each_ms, rate in past:
        asked.seconds(each_ms)
        asked.cycle_ended(rate)
        other.cycle_ended(rate)
    assert asked.seconds(now_ms) == other.seconds(now_ms)


@given(SETTINGS, RATES)
def test_the_error_factor_keeps_its_bounds(settings, rates):
    """From one to what max age allows, whatever happens; one where failures do not count."""
    interval = Interval(settings)
    for rate in rates:
        interval.cycle_ended(rate)
        assert 1 <= interval.error_factor <= max(1, settings.max_data_age / settings.update_interval)
        assert settings.adaptive_interval or interval.error_factor == 1


@pytest.mark.parametrize(
    ("name", "started", "interval", "due"),
    [
        ("15m", "2026-01-15T12:00:10Z", 180, "2026-01-15T12:03:10Z"),
        ("15m", "2026-01-15T12:13:00Z", 180, "2026-01-15T12:15:01Z"),
        ("15m", "2026-01-15T12:12:00Z", 180, "2026-01-15T12:15:00Z"),
        ("15m", "2026-01-15T12:12:01Z", 180, "2026-01-15T12:15:01Z"),
        ("15m", "2026-01-15T12:14:59Z", 540, "2026-01-15T12:15:01Z"),
        ("15m", "2026-01-15T12:15:00Z", 1800, "2026-01-15T12:30:01Z"),
        ("1m", "2026-01-15T12:00:10Z", 180, "2026-01-15T12:01:01Z"),
        ("1m", "2026-01-15T12:00:10Z", 5, "2026-01-15T12:00:15Z"),
        ("1m", "2026-01-15T12:00:10Z", 0.5, "2026-01-15T12:00:10.500Z"),
        ("1h", "2026-01-15T23:59:00Z", 180, "2026-01-16T00:00:01Z"),
        ("1w", "2026-01-18T23:59:00Z", 180, "2026-01-19T00:00:01Z"),
        ("1w", "2026-01-15T12:00:00Z", 540, "2026-01-15T12:09:00Z"),
        ("1M", "2026-01-31T23:59:00Z", 180, "2026-02-01T00:00:01Z"),
        ("1M", "2028-02-28T23:59:00Z", 180, "2028-02-29T00:02:00Z"),
        ("1M", "2026-12-31T23:59:30Z", 86_400, "2027-01-01T00:00:01Z"),
    ],
)
def test_the_next_update_is_due(name, started, interval, due):
    """At the end of the interval, or a second after the next close where that is earlier."""
    half_ms = 500 * due.endswith(".500Z")
    due_ms = next_due_ms(parse_iso_time(started), interval, TIMEFRAMES[name])
    assert due_ms == parse_iso_time(due.replace(".500", "")) + half_ms


@given(st.sampled_from([*TIMEFRAMES.values()]), st.integers(0, 4_000_000_000_000), st.floats(0.001, 86_400))
def test_no_close_is_slept_through(timeframe, started_ms, interval):
    """The next update is later than this one, no later than the interval and a second after the close."""
    due_ms = next_due_ms(started_ms, interval, timeframe)
    assert started_ms < due_ms <= started_ms + interval * 1000 + 1
    assert due_ms <= timeframe.close_of(timeframe.floor(started_ms)) + 1000


@given(st.integers(0, 10**13), st.floats(1, 1080))
def test_every_feed_is_proven_once_in_ten_intervals(now_ms, interval_seconds):
    """And each interval has its share of them."""
    at_ms = next_proof_ms("BTC/USDT 15m", now_ms, interval_seconds)
    interval_ms = round(interval_seconds * 1000)
    assert now_ms < at_ms <= now_ms + 10 * interval_ms + 1
    assert next_proof_ms("BTC/USDT 15m", at_ms, interval_seconds) - at_ms == 10 * interval_ms
    turns = {next_proof_ms(f"P{number}/USDT 15m", now_ms, interval_seconds) for number in range(200)}
    assert len(turns) == 10
