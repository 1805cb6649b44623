"""Patches: what of a stored value is written, and that no history of them loses a byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import NOON_MS

from tet_core.candles import make_candles
from tet_core.series import Series
from tet_core.stored import FIELDS_ROOM, FRONT, allocated, make_image, make_patch, read_stored_value
from tet_core.times import TIMEFRAMES, iso_time

TF = TIMEFRAMES["15m"]
STEP = TF.step_ms
START = TF.floor(NOON_MS)


def candles_of(volumes):
    """Candles by number: their volumes."""
    opens = [START + number * STEP for number in sorted(volumes)]
    ohlcv = [["1"] * len(opens)] * 4 + [[str(volumes[number]) for number in sorted(volumes)]]
    return make_candles(opens, map(iso_time, opens), ohlcv)


def series_of(volumes, is_closed=False):
    """A series of them."""
    return Series(TF).merge(candles_of(volumes), is_closed, 1000)


def applied(value, patch):
    """What the script makes of a value."""
    leaving = value[patch.leaving_at : patch.kept_at]
    stale, last = value[patch.coming_at : patch.coming_end], value[patch.fields_at :]
    assert leaving + stale + last == patch.held
    kept = value[patch.kept_at : patch.coming_at]
    if patch.blanks >= 0:
        return FRONT + kept + patch.coming + b" " * patch.blanks + patch.fields
    writes = [
        (patch.leaving_at, b" " * len(leaving)),
        (patch.coming_from, patch.coming),
        (patch.fields_from, patch.fields),
    ]
    for at, text in writes:
        value = value[:at] + text + value[at + len(text) :]
    return value


def without_blanks(value):
    """A value as one that has none."""
    return value.replace(b" ", b"")


STATES = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 30), st.integers(1, 10**9), min_size=1, max_size=4),
        st.booleans(),
        st.integers(0, 3000),
    ),
    min_size=2,
    max_size=12,
)


@settings(max_examples=300)
@given(STATES, st.integers(1, 40), st.booleans())
def test_any_history_of_patches_ends_as_the_value_written_whole(states, wanted, closed_only):
    """Byte for byte but for the blanks; and no patch in place changes a value's length."""
    candles, image, value, now_ms = {0: 1}, None, b"", NOON_MS
    for changed, newest_is_closed, seconds in states:
        candles |= changed
        now_ms += seconds * 1000
        series = series_of(candles, newest_is_closed)
        if not series.stored_count(closed_only):
            continue
        new = make_image(series, wanted, now_ms, closed_only)
        patch = make_patch(image, new) if image else None
        if patch:
            before, value, image = value, applied(value, patch), patch.image
            assert patch.blanks >= 0 or len(value) == len(before)
        else:
            value, image = new.whole(), new
        assert value == image.whole()
        assert without_blanks(value) == without_blanks(new.whole())
        json.loads(json.loads(value)["ohlcv_data"])
        back = read_stored_value(value, TF, wanted, 1 << 50)
        assert back.is_ours
        assert back[3:7] + back[8:11] == image[3:7] + image[8:11]


def image_of(candles, minutes=0, wanted=50):
    """The image of candles by number, so many minutes after noon."""
    return make_image(series_of(candles), wanted, NOON_MS + minutes * 60_000, False)


FIFTY = dict.fromkeys(range(50), 1)


def test_only_what_is_behind_the_last_unchanged_candle_is_patched():
    """The volume of the newest of fifty candles, and a digit of last_update; compared is more."""
    old = image_of(FIFTY)
    patch = make_patch(old, image_of(FIFTY | {49: 12}, 1))
    assert patch.leaving_at == patch.kept_at
    assert patch.held.startswith(b',\\"2026-01-16T00:15:00Z\\"')
    assert patch.held.count(b"open") == 1
    assert patch.coming == b'2\\"}}'
    assert patch.fields == b"8", "of 12:08:30 in place of 12:07:30"


@pytest.mark.parametrize("steps", [1, 4, 40])
def test_the_window_slides_in_place(steps):
    """Blanks take the place of what leaves; however long it was away, as long as there is room."""
    old = image_of(FIFTY)
    new = image_of(dict.fromkeys(range(steps, 50 + steps), 1))
    patch = make_patch(old, new)
    assert patch, "as a patch"
    value = applied(old.whole(), patch)
    assert (patch.blanks >= 0) is (steps == 40)
    assert without_blanks(value) == without_blanks(new.whole())
    assert value.startswith(FRONT + (b'\\"' if steps == 40 else b" " * (patch.kept_at - patch.leaving_at)))


@pytest.mark.parametrize(
    ("why", "new"),
    [
        ("a candle far back was corrected", FIFTY | {20: 5}),
        ("an older one has come", FIFTY | {-1: 1}),
        ("no candle stays", dict.fromkeys(range(50, 100), 1)),
    ],
)
def test_otherwise_the_value_is_written_whole(why, new):
    """What a patch could not say."""
    assert make_patch(image_of(FIFTY), image_of(new, 1, 60)) is None, why


def test_more_than_fits_a_script_is_written_whole():
    """After a long pause."""
    old = make_image(series_of(dict.fromkeys(range(10), 1)), 1000, NOON_MS, False)
    series = old.series.merge(many := candles_of(dict.fromkeys(range(10, 900), 1)), False, 1000)
    assert len(many) == 890
    assert make_patch(old, make_image(series, 1000, NOON_MS, False)) is None


def test_a_value_of_any_length_leaves_the_allocator_little_to_spare():
    """Its four sizes between two powers of two would take up to a quarter more."""
    for length in (9_000, 17_000, 62_000, 262_000, 300_000, 375_000, 409_000, 2_000_000, 6_000_000):
        fields = b"x" * (length - 40_000) if length > 50_000 else b"x" * 300
        image = image_of(FIFTY)._replace(fields=fields).with_room()
        assert allocated(len(image.whole())) <= 1.125 * len(image.whole())
        assert len(image.whole()) <= 1.12 * (
            len(image_of(FIFTY)._replace(fields=fields).whole()) + FIELDS_ROOM
        )
