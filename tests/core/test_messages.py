"""What a stream's message may change of a series."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tet_core.candles import Candles, entry_volume, make_candles
from tet_core.series import Series, follow
from tet_core.times import TIMEFRAMES, iso_time

TF = TIMEFRAMES["1m"]
START = 1_768_478_820_000
STEP = TF.step_ms
KEEP = 20


def candle(number, volume, price="1"):
    """One candle, as a message or a reply brings it."""
    open_ms = START + number * STEP
    columns = [[price]] * 4 + [[str(volume)]]
    return make_candles([open_ms], [iso_time(open_ms)], columns)


def series_of(*volumes, is_closed=False):
    """A series of candles with these volumes."""
    candles: Candles = {}
    for number, volume in enumerate(volumes):
        candles |= candle(number, volume)
    return Series(TF).merge(candles, is_closed, KEEP)


def volumes(series):
    """The volumes of a series, the oldest first."""
    return [entry_volume(series.entry(place)) for place in range(len(series))]


CASES = [
    ("the forming candle moves on", False, (1, 5, False), [9, 5], False),
    ("it is sent as final", False, (1, 5, True), [9, 5], True),
    ("final as it was", False, (1, 2, True), [9, 2], True),
    ("the next candle follows a final one", True, (2, 1, False), [9, 2, 1], False),
    ("the next candle, final at once", True, (2, 1, True), [9, 2, 1], True),
    ("sent before", False, (1, 2, False), [9, 2], False),
    ("a state that was overtaken", False, (1, 1, False), [9, 2], False),
    ("a state from before the close", True, (1, 1, False), [9, 2], True),
    ("a close sent twice", True, (1, 2, True), [9, 2], True),
    ("an old close sent twice", False, (0, 9, True), [9, 2], False),
    ("a state of an old candle", False, (0, 8, False), [9, 2], False),
    ("the next candle, its predecessor not sent as final", False, (2, 1, False), None, None),
    ("a gap", True, (3, 1, False), None, None),
    ("a gap after a forming candle", False, (4, 1, True), None, None),
    ("less than what is held, as final", False, (1, 1, True), None, None),
    ("otherwise than what is final", True, (1, 3, True), None, None),
    ("more than what is final", True, (1, 3, False), None, None),
    ("otherwise than an old one", False, (0, 8, True), None, None),
    ("from before the window", False, (-5, 8, True), None, None),
]


@pytest.mark.parametrize(("why", "held_is_closed", "sent", "expected", "is_closed"), CASES)
def test_a_message_continues_a_series_or_rest_is_asked(why, held_is_closed, sent, expected, is_closed):
    """Where REST has to be asked, nothing changes."""
    number, volume, closed = sent
    series = follow(series_of(9, 2, is_closed=held_is_closed), candle(number, volume), closed, KEEP)
    assert (series and volumes(series)) == expected, why
    if series:
        assert series.newest_is_closed is is_closed


@given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 3)), max_size=60), st.randoms())
def test_no_order_of_true_messages_makes_a_wrong_candle(lost_or_moved, chance):
    """Doubled, swapped, or lost: what is held as closed is what the exchange has."""
    sent = [(number, volume, volume == 4) for number in range(12) for volume in range(5)]
    for place, what in lost_or_moved:
        place = min(place, len(sent) - 1)
        if what == 0 and len(sent) > 1:
            del sent[place]
        elif what == 1:
            sent.insert(chance.randrange(len(sent)), sent[place])
        else:
            sent.insert(max(0, place - what), sent.pop(place))
    series = series_of(1)
    for number, volume, closed in sent:
        after = follow(series, candle(number, volume + 1), closed, KEEP)
        if after:
            assert after.closed_end_ms >= series.closed_end_ms
            assert after.opens[-1] >= series.opens[-1]
            series = after
        closed_volumes = volumes(series)[: series.stored_count(closed_only=True)]
        assert closed_volumes == [5.0] * len(closed_volumes)
