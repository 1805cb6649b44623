"""Why a gap is a gap, and since when it is known."""

from __future__ import annotations

import pytest
from samples import NOON_MS, OHLCV

from tet_core.gaps import HALTED, LISTED_LATER, SESSION_CLOSED, Evidence, Gap, gaps_of
from tet_core.series import Series
from tet_core.sessions import ALWAYS_OPEN, Hours
from tet_core.times import TIMEFRAMES, iso_time

STEP = 900_000
FIRST = NOON_MS // STEP * STEP
TF = TIMEFRAMES["15m"]


def series_of(*places):
    """A series with candles at these places of the grid."""
    values = ",".join(f'\\"{name}\\":\\"1\\"' for name in OHLCV)
    entry = f'\\"{{}}\\":{{{{{values}}}}}'
    candles = {FIRST + place * STEP: entry.format(iso_time(FIRST + place * STEP)) for place in places}
    return Series(TF).merge(candles, True, 1000)


def gap(first, last):
    """A gap between two places."""
    return Gap(FIRST + first * STEP, FIRST + last * STEP)


@pytest.mark.parametrize(
    ("places", "keep", "gaps"),
    [
        ([0, 1, 2], 3, []),
        ([0, 2, 3, 6], 7, [gap(1, 1), gap(4, 5)]),
        ([4, 5], 6, [gap(0, 3)]),
        ([4, 6], 7, [gap(0, 3), gap(5, 5)]),
        ([0, 1], 2, []),
    ],
)
def test_a_gap_is_what_a_window_lacks(places, keep, gaps):
    """Also before its first candle."""
    assert list(gaps_of(series_of(*places), keep)) == gaps


def test_a_gap_is_known_since_it_was_seen_first():
    """Though the window moves over it; and each has its reason."""
    evidence = Evidence()
    evidence.note(series_of(2, 3, 6, 8), 9, 1000)
    evidence.note(series_of(2, 3, 6, 8, 9, 11), 11, 2000)
    hours = Hours(((FIRST + 4 * STEP, FIRST + 6 * STEP),))
    found = evidence.gaps(series_of(2, 3, 6, 8, 9, 11), hours)
    assert [(each.first, each.candles, each.reason) for each in found] == [
        (iso_time(FIRST + STEP), 1, LISTED_LATER),
        (iso_time(FIRST + 4 * STEP), 2, SESSION_CLOSED),
        (iso_time(FIRST + 7 * STEP), 1, HALTED),
        (iso_time(FIRST + 10 * STEP), 1, HALTED),
    ]
    assert [each.known_since for each in found] == [iso_time(1000)] * 3 + [iso_time(2000)]
    evidence.note(series_of(*range(12)), 12, 3000)
    assert evidence.gaps(series_of(*range(12)), ALWAYS_OPEN) == []
