"""Proofs: what REST has repeated of what was streamed, and when it is asked for the rest. Pure."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tet_core.proofs import Closes, Proof, Proofs, proven_figures
from tet_core.series import MAX_LAG_MS
from tet_core.times import TIMEFRAMES, iso_time

MINUTE_MS = 60_000
START_MS = 1_768_478_820_000  # a minute's border
TF = TIMEFRAMES["1m"]


def streamed(*minutes):
    """The closes of these minutes, as they were streamed."""
    closes = Closes()
    for minute in minutes:
        closes.note(START_MS + minute * MINUTE_MS)
    return closes


@given(st.integers(1, 50), st.integers(0, 60), st.integers(-MAX_LAG_MS, 3 * MAX_LAG_MS), st.integers(0, 60))
def test_what_a_reply_repeats_is_proven_and_no_more(count, asked_minute, after_ms, first_minute):
    """Each close whose candle the reply has, if it had ended long enough before; each once."""
    closes = streamed(*range(1, count + 1))
    asked_ms = START_MS + asked_minute * MINUTE_MS + after_ms
    first_open_ms = START_MS + first_minute * MINUTE_MS
    closes.prove(TF, first_open_ms, asked_ms)
    ends = [START_MS + minute * MINUTE_MS for minute in range(1, count + 1)]
    old = [end for end in ends if end <= asked_ms - MAX_LAG_MS]
    assert closes.waiting == len(ends) - len(old)
    assert closes.proven == len([end for end in old if end > first_open_ms])
    assert not closes.waiting or closes.first_ms == ends[len(old)]
    before = closes.proven
    closes.prove(TF, first_open_ms, asked_ms)
    assert closes.proven == before


def test_the_figures_say_what_should_be_proven_by_now():
    """A minute is allowed; what was left to the audit stays missing in the share."""
    closes, later = streamed(1, 2, 3), streamed(3)
    now_ms = START_MS + 3 * MINUTE_MS + 30_000
    figures = proven_figures([(closes, TF), (later, TF)], now_ms)
    assert figures.stream_closes == 4
    assert figures.stream_closes_proven_share == 0
    assert figures.oldest_unproven_close == iso_time(START_MS + MINUTE_MS)
    closes.prove(TF, START_MS + MINUTE_MS, now_ms)
    figures = proven_figures([(closes, TF), (later, TF)], now_ms)
    assert figures.stream_closes_proven == 2
    assert figures.stream_closes_proven_share == pytest.approx(2 / 3, abs=1e-3)
    assert figures.oldest_unproven_close == iso_time(START_MS + 3 * MINUTE_MS)
    assert proven_figures([], now_ms).stream_closes_proven_share is None


class Exchange:
    """Feeds whose minutes close all at once, and proofs that are asked for as they may be."""

    def __init__(self, feeds, limit=6000, share=0.1, weight=2, rate=15.0):
        self.closes = {number: Closes() for number in range(feeds)}
        self.facts = (weight, limit * share, rate)
        self.proofs: Proofs[int] = Proofs()
        self.asked: list[tuple[int, int]] = []

    def run(self, minutes):
        """Look ten times a second for so many minutes."""
        for now_ms in range(START_MS, START_MS + minutes * MINUTE_MS, 100):
            if now_ms % MINUTE_MS == 0:
                for closes in self.closes.values():
                    closes.note(now_ms)
            if self.proofs.wait_ms(now_ms):
                continue
            waiting = [Proof(who, each.first_ms) for who, each in self.closes.items() if each.waiting]
            who = self.proofs.next(waiting, now_ms, *self.facts)
            if who is not None:
                self.asked.append((now_ms, who))
                self.closes[who].prove(TF, START_MS - MINUTE_MS, now_ms)

    def in_minute(self, minute):
        """When proofs were asked for in a minute, ms from its border."""
        begin = START_MS + minute * MINUTE_MS
        return [at_ms - begin for at_ms, _ in self.asked if begin <= at_ms < begin + MINUTE_MS]


@pytest.mark.parametrize("feeds", [1, 25, 200])
def test_each_close_is_proven_within_a_minute(feeds):
    """Spread over it, and never while REST may lag."""
    exchange = Exchange(feeds)
    exchange.run(5)
    for minute in range(5):
        times = exchange.in_minute(minute)
        assert len(times) == feeds
        assert min(times) >= MAX_LAG_MS
        assert feeds == 1 or max(times) - min(times) > 25_000
    assert all(closes.proven == 5 for closes in exchange.closes.values())


@pytest.mark.parametrize(
    ("given", "most"),
    [({}, 300), ({"limit": 2400, "weight": 1}, 240), ({"rate": 1.0}, 30), ({"share": 0}, 0)],
)
def test_beyond_the_weight_they_are_proven_in_turn(given, most):
    """500 pairs of 1m: never more than the share of the limit, or half of the rate; none is left out."""
    exchange = Exchange(500, **given)
    exchange.run(6)
    counts = [len(exchange.in_minute(minute)) for minute in range(6)]
    assert max(counts) <= most
    assert min(counts) >= most * 0.7
    if most > 200:
        turns = Counter(who for _, who in exchange.asked)
        assert len(turns) == 500
        assert max(turns.values()) - min(turns.values()) <= 1
