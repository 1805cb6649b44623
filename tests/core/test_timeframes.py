"""Times and timeframes: text and back, and the grid on which candles open."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tet_core.times import TIMEFRAMES, iso_time, parse_iso_time

DAY_MS = 86_400_000
#: Moments in ms from 1970 to 2100, more than any candle or clock will have.
MOMENTS = st.integers(0, 4_102_444_800_000)
EACH = st.sampled_from([*TIMEFRAMES.values()])
STEPS = st.integers(0, 900)


def ms(text):
    """The ms of a time written 2024-01-31 or 2024-01-31T12:00:00, by the standard library."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


# Text


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_704_110_400_000, "2024-01-01T12:00:00Z"),
        (1_704_110_400_999, "2024-01-01T12:00:00Z"),
        (1_709_251_199_000, "2024-02-29T23:59:59Z"),
        (-1, "1969-12-31T23:59:59Z"),
    ],
)
def test_a_time_is_written_in_utc_with_whole_seconds(at_ms, text):
    """The text is RFC 3339 with Z; parts of a second are cut."""
    assert iso_time(at_ms) == text


@given(MOMENTS)
def test_a_time_survives_the_round_trip(at_ms):
    """What is written reads back as the same second, and as the standard library reads it."""
    text = iso_time(at_ms)
    assert parse_iso_time(text) == at_ms // 1000 * 1000
    assert datetime.fromisoformat(text) == datetime.fromtimestamp(at_ms // 1000, UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2024-01-01",
        "2024-01-01T12:00:00",
        "2024-01-01T12:00:00z",
        "2024-01-01 12:00:00Z",
        "2024-01-01T12:00Z",
        "2024-01-01T12:00:00.000Z",
        "2024-01-01T12:00:00+00:00",
        "2024-01-01T12:00:00Z ",
        "2024-01-01T12:00:00Z\n",
        "x2024-01-01T12:00:00Z",
        "2024-02-30T12:00:00Z",
        "2023-02-29T12:00:00Z",
        "2024-13-01T12:00:00Z",
        "2024-01-01T24:00:00Z",
        "2024-01-01T12:00:60Z",
        "٢٠٢٤-01-01T12:00:00Z",
        1_704_110_400_000,
        None,
        b"2024-01-01T12:00:00Z",
    ],
)
def test_what_is_no_time_of_ours_is_refused(text):
    """Only the one form is read, and only for moments that exist."""
    with pytest.raises(ValueError, match=r"."):
        parse_iso_time(text)


def test_a_refused_text_is_repeated_in_short():
    """The message shows the form wanted and the beginning of what was found, not a megabyte of it."""
    with pytest.raises(ValueError, match="2024-01-01T12:00:00Z: 'xxxx") as caught:
        parse_iso_time("x" * 1_000_000)
    assert len(str(caught.value)) < 100


# The grid


@given(EACH, MOMENTS)
def test_a_candle_holds_its_moment(timeframe, at_ms):
    """The moment lies at or after the open time of its candle, and before the close."""
    open_ms = timeframe.floor(at_ms)
    assert open_ms <= at_ms < timeframe.close_of(open_ms)


@given(EACH, MOMENTS)
def test_an_open_time_is_its_own_floor(timeframe, at_ms):
    """A candle begins with its open time, and the ms before belongs to the one before."""
    open_ms = timeframe.floor(at_ms)
    assert timeframe.floor(open_ms) == open_ms
    assert timeframe.floor(open_ms - 1) == timeframe.shift(open_ms, -1)
    assert timeframe.floor(timeframe.close_of(open_ms)) == timeframe.close_of(open_ms)


@given(EACH, MOMENTS, STEPS)
def test_a_shift_and_back_changes_nothing(timeframe, at_ms, steps):
    """Shifting is undone by the opposite shift, and counting agrees with it."""
    open_ms = timeframe.floor(at_ms)
    there = timeframe.shift(open_ms, steps)
    assert timeframe.shift(there, -steps) == open_ms
    assert timeframe.count(open_ms, there) == steps + 1


@given(EACH, MOMENTS, st.integers(0, 40))
def test_the_opens_are_one_candle_apart(timeframe, at_ms, steps):
    """From first to last, both included, each open time is the close of the candle before."""
    first_ms = timeframe.floor(at_ms)
    opens = [*timeframe.opens(first_ms, timeframe.shift(first_ms, steps))]
    assert opens[0] == first_ms
    assert len(opens) == steps + 1 == timeframe.count(opens[0], opens[-1])
    assert [timeframe.close_of(open_ms) for open_ms in opens[:-1]] == opens[1:]


@given(EACH, MOMENTS, st.integers(0, 400 * DAY_MS))
def test_counting_takes_any_moment_of_a_candle(timeframe, at_ms, later_ms):
    """Moments within candles count as their open times do."""
    exactly = timeframe.count(timeframe.floor(at_ms), timeframe.floor(at_ms + later_ms))
    assert timeframe.count(at_ms, at_ms + later_ms) == exactly


def test_there_are_no_opens_backwards():
    """From a candle to an earlier one there is nothing."""
    timeframe = TIMEFRAMES["1h"]
    assert [*timeframe.opens(7_200_000, 0)] == []
    assert timeframe.count(7_200_000, 3_600_000) == 0


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("1s", 1),
        ("1m", 60),
        ("3m", 180),
        ("5m", 300),
        ("15m", 900),
        ("30m", 1800),
        ("1h", 3600),
        ("2h", 7200),
        ("4h", 14_400),
        ("6h", 21_600),
        ("8h", 28_800),
        ("12h", 43_200),
        ("1d", 86_400),
        ("3d", 259_200),
        ("1w", 604_800),
    ],
)
def test_a_candle_is_as_long_as_its_name_says(name, seconds):
    """Each fixed interval of Binance has its length."""
    timeframe = TIMEFRAMES[name]
    open_ms = timeframe.floor(1_768_478_850_123)
    assert timeframe.close_of(open_ms) - open_ms == timeframe.step_ms == seconds * 1000


@pytest.mark.parametrize("name", sorted(TIMEFRAMES.keys() - {"3d", "1w", "1M"}))
def test_short_candles_begin_at_midnight(name):
    """Candles of up to a day are aligned to the day in UTC."""
    midnight = ms("2026-01-15")
    assert TIMEFRAMES[name].floor(midnight) == midnight


def test_the_names_are_those_of_binance():
    """All sixteen intervals, from the shortest to the longest."""
    assert [*TIMEFRAMES] == "1s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M".split()


@given(MOMENTS)
def test_a_week_begins_on_monday(at_ms):
    """Every week opens on a Monday at midnight."""
    opened = datetime.fromtimestamp(TIMEFRAMES["1w"].floor(at_ms) / 1000, UTC)
    assert (opened.weekday(), opened.hour, opened.minute, opened.second) == (0, 0, 0, 0)


@given(MOMENTS)
def test_three_days_are_counted_from_the_epoch(at_ms):
    """Binance's three days are a multiple of three days away from 1970-01-01."""
    assert TIMEFRAMES["3d"].floor(at_ms) % (3 * DAY_MS) == 0


@given(MOMENTS)
def test_a_month_begins_on_the_first(at_ms):
    """A month opens on the first at midnight, in the month of the moment."""
    moment = datetime.fromtimestamp(at_ms // 1000, UTC)
    first = datetime(moment.year, moment.month, 1, tzinfo=UTC)
    assert TIMEFRAMES["1M"].floor(at_ms) == first.timestamp() * 1000


@pytest.mark.parametrize(
    ("opened", "closed", "days"),
    [
        ("2024-02-01", "2024-03-01", 29),
        ("2023-02-01", "2023-03-01", 28),
        ("2000-02-01", "2000-03-01", 29),
        ("2100-02-01", "2100-03-01", 28),
        ("2024-04-01", "2024-05-01", 30),
        ("2024-12-01", "2025-01-01", 31),
    ],
)
def test_a_month_is_as_long_as_the_calendar_says(opened, closed, days):
    """Leap years and the turn of the year included."""
    month = TIMEFRAMES["1M"]
    assert month.close_of(ms(opened)) == ms(closed) == ms(opened) + days * DAY_MS


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, "2024-04-01"), (-1, "2024-02-01"), (12, "2025-03-01"), (-3, "2023-12-01"), (-39, "2020-12-01")],
)
def test_months_are_shifted_along_the_calendar(steps, expected):
    """A shift by months crosses years either way."""
    assert TIMEFRAMES["1M"].shift(ms("2024-03-01"), steps) == ms(expected)


def test_a_year_has_twelve_months():
    """The opens of a year are the firsts of its months."""
    opens = TIMEFRAMES["1M"].opens(ms("2024-01-01"), ms("2024-12-31"))
    assert [*opens] == [ms(f"2024-{month:02d}-01") for month in range(1, 13)]


@pytest.mark.parametrize("name", TIMEFRAMES)
def test_only_months_are_monthly(name):
    """1M is the calendar's, 1m and all others have a step of their own."""
    assert TIMEFRAMES[name].monthly is (name == "1M")


# How many candles a number of days holds


@pytest.mark.parametrize(
    ("days", "name", "candles"),
    [
        (30, "1m", 43_200),
        (30, "3m", 14_400),
        (30, "5m", 8640),
        (30, "15m", 2880),
        (30, "30m", 1440),
        (30, "1h", 720),
        (30, "2h", 360),
        (30, "4h", 180),
        (30, "6h", 120),
        (30, "8h", 90),
        (30, "12h", 60),
        (30, "1d", 30),
        (30, "3d", 10),
        (30, "1w", 5),
        (30, "1M", 1),
        (31, "1M", 2),
        (365, "1M", 12),
        (366, "1M", 13),
        (1, "1s", 86_400),
        (1, "1d", 1),
        (1, "3d", 1),
        (4, "3d", 2),
        (7, "1w", 1),
        (8, "1w", 2),
        (1, "1M", 1),
    ],
)
def test_how_many_candles_a_number_of_days_holds(days, name, candles):
    """As many as it takes to cover the days, rounded up."""
    assert TIMEFRAMES[name].candles_in_days(days) == candles


@given(st.sampled_from([name for name in TIMEFRAMES if name != "1M"]), st.integers(1, 3650))
def test_the_candles_cover_the_days_and_no_candle_more(name, days):
    """N candles are at least the days long, N - 1 are not."""
    timeframe = TIMEFRAMES[name]
    wanted = timedelta(days=days) / timedelta(milliseconds=timeframe.step_ms)
    assert wanted <= timeframe.candles_in_days(days) < wanted + 1
