"""Who keeps a feed fresh, and when REST is due: the table, and a model that holds whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from samples import NOON_MS

from tet_core.freshness import REASK_SECONDS, URGENT, Answered, Freshness, Link, Why
from tet_core.times import SECOND_MS, TIMEFRAMES

TF = TIMEFRAMES["15m"]
INTERVAL_SECONDS = 180.0
PROOF_MS = round(11 * INTERVAL_SECONDS * SECOND_MS)  # in every tenth interval, in the middle of one
PATIENCE_MS, QUIET_MS = 4_000, 270_000


class Happening:
    """A freshness, and what happens to it at times of its own."""

    def __init__(self):
        self.freshness = Freshness("BTC/USDT 15m", TF)
        self.now_ms = NOON_MS

    def ask(self, lags=False, failed=False, fetch_failed=False, seconds=0.2):
        """REST is asked, and answers after so long; returns when and why it is due again, in seconds."""
        asked_ms = self.now_ms
        asked = self.freshness.asked(asked_ms)
        self.now_ms += round(seconds * SECOND_MS)
        answer = Answered(asked_ms, lags, failed or fetch_failed, fetch_failed)
        due = self.freshness.answered(answer, INTERVAL_SECONDS, self.now_ms)
        return asked, (due.at_ms - self.now_ms) / SECOND_MS, due.why

    def stream(self):
        """Its stream sends what fits."""
        self.freshness.streamed(self.now_ms, INTERVAL_SECONDS, self.now_ms)

    def miss(self):
        """Its stream sends what does not."""
        self.freshness.missed(True, INTERVAL_SECONDS, self.now_ms)

    @property
    def due(self):
        """When, in seconds from now, and why."""
        due = self.freshness.due
        return due and ((due.at_ms - self.now_ms) / SECOND_MS, due.why)


@pytest.fixture
def feed():
    """One that is new."""
    return Happening()


@pytest.fixture
def live(feed):
    """One that is live."""
    feed.ask()
    feed.stream()
    assert feed.freshness.link is Link.LIVE
    return feed


def test_a_new_feed_is_due_at_once_and_before_others(feed):
    """Then in the interval, or a second after the close."""
    assert feed.freshness.due == (0, Why.NEW)
    asked, seconds, why = feed.ask()
    assert (asked.is_urgent, asked.is_regular) == (True, True)
    assert (round(seconds, 1), why) == (179.8, Why.INTERVAL)
    feed.now_ms = TF.close_of(TF.floor(NOON_MS)) - 20_000
    assert feed.ask()[1:] == (pytest.approx(20.8), Why.INTERVAL)


def test_a_lagging_candle_is_asked_for_again_soon_and_not_for_ever(feed):
    """After 1, 1, 2, 3 and 4 s; then in the next interval. Nobody else has to wait for that."""
    waits = []
    for _ in range(6):
        asked, seconds, why = feed.ask(lags=True)
        waits.append((seconds, why))
        feed.now_ms += round(seconds * SECOND_MS)
    assert waits[:5] == [(seconds, Why.LAGGING) for seconds in REASK_SECONDS]
    assert waits[5][0] > 150
    assert waits[5][1] is Why.INTERVAL
    assert (asked.is_urgent, asked.is_regular) == (False, False)


def test_a_failed_feed_is_not_asked_again_early(feed):
    """It waits for the interval, which keeps the exchange's trouble small."""
    assert feed.ask(lags=True, failed=True)[2] is Why.INTERVAL


@pytest.mark.parametrize("failed", [False, True])
def test_it_is_live_when_its_stream_speaks_and_rest_has_answered(feed, failed):
    """Then REST is for proof alone; not so while the exchange fails."""
    feed.stream()
    assert feed.freshness.link is Link.POLLED, "REST has not answered yet"
    feed.ask(fetch_failed=failed)
    feed.stream()
    assert feed.freshness.link is (Link.POLLED if failed else Link.LIVE)
    assert feed.due[1] is (Why.INTERVAL if failed else Why.PROOF)


def test_what_does_not_fit_lets_rest_be_asked(live):
    """A second after its last answer, urgently, again and again; it is live once REST was asked since."""
    live.miss()
    assert live.freshness.link is Link.CATCHING_UP
    assert live.due == (1.0, Why.MISSED)
    live.stream()
    assert live.freshness.link is Link.CATCHING_UP, "what was missed is not there yet"
    live.now_ms += 1_000
    assert live.ask()[0].is_urgent
    live.stream()
    assert live.freshness.link is Link.LIVE


def test_misses_of_a_stream_that_never_fits_do_not_flood_the_exchange(live):
    """The waits grow to 4 s."""
    waits = []
    for _ in range(7):
        live.miss()
        waits.append(live.due[0])
        live.now_ms += round(live.due[0] * SECOND_MS)
        live.ask()
    assert waits == [1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0]


def test_a_miss_while_rest_is_asked_is_not_forgotten(live):
    """Its answer may have been on its way before."""
    live.now_ms += 60_000
    live.freshness.asked(asked_ms := live.now_ms)
    live.now_ms += 100
    live.miss()
    due = live.freshness.answered(Answered(asked_ms), INTERVAL_SECONDS, live.now_ms)
    assert (due.at_ms, due.why) == (live.now_ms, Why.MISSED)
    live.stream()
    assert live.freshness.link is Link.CATCHING_UP


def test_a_live_feed_whose_proof_fails_is_asked_for_in_the_next_interval(live):
    """Not with its next proof, half an hour later; that is when it was to be proven early, too."""
    live.now_ms += 30_000
    assert live.ask(fetch_failed=True)[1] < INTERVAL_SECONDS
    assert live.freshness.link is Link.LIVE


def test_without_candles_a_miss_changes_nothing(feed):
    """They are fetched in any case."""
    feed.freshness.missed(False, INTERVAL_SECONDS, feed.now_ms)
    assert (feed.freshness.link, feed.freshness.due) == (Link.POLLED, (0, Why.NEW))


def test_a_lost_stream_is_polled_at_once(live):
    """And then in each interval; what is streamed anew does not count before REST was asked."""
    live.now_ms += 5_000
    live.freshness.lost(INTERVAL_SECONDS, live.now_ms)
    assert (live.freshness.link, live.due) == (Link.POLLED, (0.0, Why.LOST))
    live.stream()
    assert live.freshness.link is Link.POLLED
    live.miss()
    assert live.due == (0.0, Why.LOST), "no later than it was"
    assert live.ask()[0].is_urgent


def test_silence_is_asked_about_and_a_close_is_missed(live):
    """A close by its end and some patience; anything at all by half of MAX_DATA_AGE."""
    freshness, end_ms = live.freshness, live.now_ms + 1_000
    assert not freshness.has_missed_close(end_ms, PATIENCE_MS, end_ms + PATIENCE_MS)
    assert freshness.has_missed_close(end_ms, PATIENCE_MS, end_ms + PATIENCE_MS + 1)
    freshness.waited(QUIET_MS, live.now_ms + QUIET_MS)
    assert live.due[1] is Why.PROOF
    live.now_ms += QUIET_MS + 1
    freshness.waited(QUIET_MS, live.now_ms)
    assert live.due == (0.0, Why.SILENT)


def test_what_was_streamed_before_is_known(live):
    """By the connection that this one replaces; a close comes with the same time as what it closes."""
    event_ms = live.now_ms
    assert live.freshness.knows(event_ms - 1, True)
    assert live.freshness.knows(event_ms, False)
    assert not live.freshness.knows(event_ms, True)


class Model(RuleBasedStateMachine):
    """Anything may happen at any time; what is expected follows from a list of it."""

    def __init__(self):
        super().__init__()
        self.freshness = Freshness("BTC/USDT 15m", TF)
        self.now_ms = NOON_MS
        self.asked_ms = None  # while REST is on its way
        self.counted_ms = self.missed_ms = self.answered_ms = 0
        self.fetch_failed = False
        self.has_happened = False  # since REST was asked
        self.tried_again = 0  # early, since the last regular time

    @rule(ms=st.integers(1, 400_000))
    def time_passes(self, ms):
        """Until what is due, at most: it is asked for in time."""
        if self.freshness.due and self.asked_ms is None:
            ms = max(0, min(ms, self.freshness.due_ms - self.now_ms))
        self.now_ms += ms
        before = self.freshness.due_ms
        self.freshness.waited(QUIET_MS, self.now_ms)
        assert self.freshness.due_ms <= before

    @precondition(lambda self: self.asked_ms is None)
    @rule(early=st.booleans())
    def is_asked(self, early):
        """When it is due, or earlier for proof."""
        if self.freshness.due_ms <= self.now_ms or (early and self.freshness.link is Link.LIVE):
            why = self.freshness.due.why
            asked = self.freshness.asked(self.now_ms)
            assert asked.is_urgent >= (why in URGENT)
            self.asked_ms, self.has_happened = self.now_ms, False

    @precondition(lambda self: self.asked_ms is not None)
    @rule(lags=st.booleans(), failure=st.sampled_from(["", "", "redis", "exchange"]))
    def answers(self, lags, failure):
        """With what has come of it."""
        link = self.freshness.link
        asked_ms = self.counted_ms if failure == "exchange" else self.asked_ms
        answer = Answered(asked_ms, lags, bool(failure), failure == "exchange")
        due = self.freshness.answered(answer, INTERVAL_SECONDS, self.now_ms)
        self.counted_ms, self.answered_ms, self.fetch_failed = asked_ms, self.now_ms, failure == "exchange"
        assert self.freshness.link is link, "that is for its stream to change"
        if due.why is Why.LAGGING:
            assert lags
            assert not failure
            assert link is not Link.LIVE
            assert self.now_ms + 1_000 <= due.at_ms <= self.now_ms + 4_000
        elif not self.has_happened:
            assert due.why is (Why.PROOF if link is Link.LIVE and not failure else Why.INTERVAL) or (
                due.at_ms == self.freshness.regular_ms
            )
        self.asked_ms = None

    @rule()
    def streams(self):
        """It is live then, if nothing can be missing."""
        was_live = self.freshness.link is Link.LIVE
        self.freshness.streamed(self.now_ms, INTERVAL_SECONDS, self.now_ms)
        is_whole = self.counted_ms > self.missed_ms and not self.fetch_failed
        assert (self.freshness.link is Link.LIVE) == (was_live or is_whole)
        self.has_happened |= not was_live and is_whole

    @rule(has_candles=st.booleans())
    def misses(self, has_candles):
        """REST is due within seconds of its last answer, and no later than before."""
        link, before_ms = self.freshness.link, self.freshness.due_ms
        self.freshness.missed(has_candles, INTERVAL_SECONDS, self.now_ms)
        if link is Link.LIVE:
            self.missed_ms, self.has_happened = self.now_ms, True
            assert self.freshness.due_ms <= max(self.now_ms, self.answered_ms + 1_000)
        else:
            assert self.freshness.due_ms <= before_ms
            if has_candles and self.asked_ms is None:
                assert self.freshness.due_ms <= max(self.now_ms, self.answered_ms + 4_000)
        assert self.freshness.link is not Link.LIVE

    @rule()
    def is_lost(self):
        """REST is due at once, unless it was polled before."""
        if self.freshness.link is not Link.POLLED:
            self.missed_ms, self.has_happened = self.now_ms, True
            self.freshness.lost(INTERVAL_SECONDS, self.now_ms)
            assert self.freshness.due == (self.now_ms, Why.LOST)
        self.freshness.lost(INTERVAL_SECONDS, self.now_ms)
        assert self.freshness.link is Link.POLLED

    @invariant()
    def something_is_due(self):
        """While REST is not asked, and not too late; while it is, only what has happened since."""
        freshness = self.freshness
        if self.asked_ms is None:
            assert freshness.due
            allowed_ms = PROOF_MS if freshness.regular_ms and freshness.due.why is Why.PROOF else 180_000
            assert freshness.due.at_ms <= max(self.now_ms, self.answered_ms) + allowed_ms
        elif not self.has_happened:
            assert freshness.due is None

    @invariant()
    def live_means_that_nothing_is_missing(self):
        """REST was asked after the last miss, and has answered."""
        if self.freshness.link is Link.LIVE:
            assert self.counted_ms > self.missed_ms


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
