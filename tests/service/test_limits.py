"""The exchange's limits: how long a request has to wait, in numbers and at the gate."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tet_data_service as tet
from tet_extras import figures

NOW_MS = 1_768_478_850_000  # 2026-01-15T12:07:30Z, the middle of a minute
MINUTE_MS = 60_000
RATES = st.sampled_from([0.05, 0.5, 1.0, 2.5, 15.0, 100.0])


def turns(rate, arrivals):
    """When each of the requests that arrive then may go out."""
    bucket = tet.TokenBucket(rate, arrivals[0])
    return [at + bucket.reserve(at) for at in arrivals]


# The token bucket


@given(RATES, st.lists(st.floats(0, 5), min_size=1, max_size=60))
def test_no_window_holds_more_than_the_rate_and_one_burst(rate, pauses):
    """Between any two turns lie at most rate x seconds + burst requests, however they arrive."""
    arrivals = [sum(pauses[:i]) for i in range(1, len(pauses) + 1)]
    times = turns(rate, arrivals)
    burst = max(1.0, rate)
    for i, first in enumerate(times):
        for count, last in enumerate(times[i:], 1):
            assert count <= rate * (last - first) + burst + 1e-6


@given(RATES, st.lists(st.floats(0, 5), min_size=1, max_size=60))
def test_turns_come_in_the_order_of_arrival_and_never_early(rate, pauses):
    """Nobody goes out before he arrives, or before one who came earlier."""
    arrivals = [sum(pauses[:i]) for i in range(1, len(pauses) + 1)]
    times = turns(rate, arrivals)
    assert all(turn >= at for turn, at in zip(times, arrivals, strict=True))
    assert all(b - a > -1e-6 for a, b in pairwise(times))


@pytest.mark.parametrize("rate", [0.5, 1, 2.5, 15, 100])
def test_the_full_rate_is_kept_over_a_long_run(rate):
    """Requests that wait in line go out at the rate, none of it lost, after one burst."""
    times = turns(rate, [100.0] * 10_000)
    assert 0 <= times[-1] - 100 - (10_000 - max(1, rate)) / rate + 1e-6 < tet.RELEASE_SECONDS


@pytest.mark.parametrize("rate", [0.5, 1, 15, 100])
def test_each_waits_for_his_own_turn_and_loses_nothing(rate):
    """A single client that waits before each request reaches the full rate too."""
    bucket, now = tet.TokenBucket(rate, 50.0), 50.0
    for _ in range(5000):
        now += bucket.reserve(now)
    assert 0 <= now - 50 - (5000 - max(1, rate)) / rate + 1e-6 < tet.RELEASE_SECONDS


@pytest.mark.parametrize(("rate", "together"), [(2, 1), (8, 2), (100, 25)])
def test_who_has_to_wait_goes_out_with_others(rate, together):
    """Slots come in groups, unless the rate is so low that each group would have one or none."""
    waiting = Counter(round(turn, 6) for turn in turns(rate, [0.0] * 10 * rate)[rate:])
    assert set(waiting.values()) == {together}


@pytest.mark.parametrize(("rate", "at_once"), [(0.1, 1), (1, 1), (2.5, 2), (15, 15), (100, 100)])
def test_a_burst_is_one_second_worth(rate, at_once):
    """At the start, and after any time of rest, as many go at once as a second allows, at least one."""
    bucket = tet.TokenBucket(rate, 0.0)
    for start in (0.0, 1000.0, 1_000_000.0):
        waits = [bucket.reserve(start) for _ in range(at_once + 1)]
        assert waits[:-1] == [0.0] * at_once
        assert 0 <= waits[-1] - (at_once + 1 - max(1, rate)) / rate + 1e-6 < tet.RELEASE_SECONDS


def test_a_clock_that_steps_back_earns_nothing():
    """Time that seems to go back neither gives tokens nor takes any."""
    bucket = tet.TokenBucket(1, 100.0)
    assert bucket.reserve(100.0) == 0
    assert bucket.reserve(40.0) == 1


# The weight of a minute


@pytest.mark.parametrize(
    ("used", "weight", "waits"),
    [
        (5398, 2, False),
        (5399, 2, True),
        (5380, 20, False),
        (5381, 20, True),
        (5400, 0, False),
        (9999, 1, True),
    ],
)
def test_nine_tenths_of_the_limit_may_be_used(used, weight, waits):
    """A request goes out when it keeps the minute within 90 % of the limit, else it waits."""
    budget = tet.WeightBudget(6000)
    budget.spend(used, NOW_MS)
    assert (budget.wait_ms(weight, NOW_MS) > 0) is waits


@pytest.mark.parametrize("second", [1, 30, 59])
def test_the_wait_ends_with_the_minute(second):
    """Who has to wait goes on just after the exchange's next minute begins."""
    budget = tet.WeightBudget(100)
    now_ms = NOW_MS // MINUTE_MS * MINUTE_MS + second * 1000
    budget.spend(90, now_ms)
    turn_ms = now_ms + budget.wait_ms(1, now_ms)
    assert MINUTE_MS <= turn_ms - NOW_MS // MINUTE_MS * MINUTE_MS <= MINUTE_MS + 1000
    assert budget.wait_ms(1, turn_ms - 1) == 1
    assert budget.wait_ms(1, turn_ms) == 0


def test_a_new_minute_begins_with_nothing_used():
    """The count begins anew, with the requests of the new minute."""
    budget = tet.WeightBudget(100)
    budget.spend(90, NOW_MS)
    budget.spend(3, NOW_MS + MINUTE_MS)
    assert budget.used == 3


def test_the_weight_of_a_minute_adds_up():
    """Requests of one minute are summed."""
    budget = tet.WeightBudget(100)
    for second in (0, 10, 29):
        budget.spend(20, NOW_MS + second * 1000)
    assert budget.used == 60


@pytest.mark.parametrize(("theirs", "used"), [(70, 70), (10, 40), (0, 40)])
def test_the_count_of_the_exchange_only_raises_ours(theirs, used):
    """What others behind the same address have used counts; a late, lower count takes nothing back."""
    budget = tet.WeightBudget(100)
    budget.spend(40, NOW_MS)
    budget.learn(theirs, NOW_MS, NOW_MS + 500)
    assert budget.used == used


def test_a_count_from_the_minute_before_is_ignored():
    """The answer to a request of an old minute says nothing about the new one."""
    budget = tet.WeightBudget(100)
    budget.spend(5, NOW_MS)
    budget.learn(90, NOW_MS, NOW_MS + MINUTE_MS)
    assert budget.used == 0


@given(weight=st.integers(0, 10_000), limit=st.integers(0, 6000))
def test_the_first_request_of_a_minute_is_always_allowed(weight, limit):
    """A request heavier than the whole limit does not wait for ever."""
    budget = tet.WeightBudget(limit)
    assert budget.wait_ms(weight, NOW_MS) == 0


def test_a_clock_set_back_into_the_minute_before_forgets_nothing():
    """When the exchange's time turns out a little earlier, what was used stays counted."""
    budget = tet.WeightBudget(100)
    budget.spend(90, NOW_MS)
    assert budget.wait_ms(1, NOW_MS - MINUTE_MS) > 0
    assert budget.used == 90


# Backoff


@pytest.mark.parametrize(("attempt", "most"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (100_000, 8)])
def test_the_backoff_doubles_up_to_eight_seconds(attempt, most):
    """With the worst luck each wait is twice the one before, up to the cap; with half of it half."""
    assert tet.backoff_seconds(attempt, 1.0) == most
    assert tet.backoff_seconds(attempt, 0.5) == most / 2
    assert tet.backoff_seconds(attempt, 0.0) == 0


# The gates


class HandClock(tet.Clock):
    """A clock that stands still but for waits, which take no time; things may happen at set times."""

    def __init__(self):
        self.seconds = 1000.0
        self.plans = []
        super().__init__()
        self.sync(NOW_MS, self.seconds, self.seconds)

    def monotonic(self):
        """Where the hand stands."""
        return self.seconds

    def sleep(self, seconds):
        """Move the hand on, and let happen what was planned on the way."""
        self.check()
        end = self.seconds + seconds
        while self.plans and self.plans[0][0] <= end:
            self.seconds, act = self.plans.pop(0)
            act()
            self.check()
        self.seconds = max(end, self.seconds)

    def plan(self, after_seconds, act):
        """Let something happen while somebody waits."""
        self.plans.append((self.seconds + after_seconds, act))


@pytest.fixture
def clock():
    """A clock that is moved by waiting."""
    return HandClock()


@pytest.fixture
def gate(clock):
    """Gates for ten requests a second and a weight of a hundred a minute."""
    return tet.RequestGate(clock, 10, 100)


@pytest.fixture
def other():
    """Another thread, which does what it is given and no more."""
    with ThreadPoolExecutor(1) as thread:
        yield lambda act, *arguments: thread.submit(act, *arguments).result(10)


def test_open_gates_let_a_burst_pass_and_then_keep_the_rate(clock, gate):
    """Ten go at once, and twenty more take two seconds."""
    for _ in range(10):
        gate.enter(1)
    assert clock.seconds == 1000
    for _ in range(20):
        gate.enter(1)
    assert clock.seconds == pytest.approx(1002)
    assert gate.used_weight() == 30


def test_used_up_weight_waits_for_the_next_minute(clock, gate):
    """The request that would exceed the budget goes out in the new minute, and is counted there."""
    gate.enter(90)
    gate.enter(2)
    assert 1030 <= clock.seconds <= 1031
    assert gate.used_weight() == 2


def test_a_pause_holds_everybody(clock, gate, other):
    """No thread gets through before the pause is over."""
    gate.pause(60, "429")
    other(gate.enter, 1)
    assert clock.seconds == pytest.approx(1060)
    other(gate.leave, True)
    gate.pause(60, "429")
    gate.enter(1)
    assert clock.seconds == pytest.approx(1120)


def test_after_a_pause_one_goes_first_and_the_rest_follow_when_it_came_through(clock, gate, other):
    """The second thread waits until the first one's request was served."""
    gate.pause(60, "429")
    other(gate.enter, 1)
    clock.plan(5, lambda: other(gate.leave, True))
    gate.enter(1)
    assert 1065 <= clock.seconds <= 1066


def test_the_first_one_may_go_on_alone(clock, gate):
    """The thread that goes first does not wait for itself when it tries again."""
    gate.pause(60, "429")
    gate.enter(1)
    gate.enter(1)
    assert clock.seconds == pytest.approx(1060)


def test_when_the_first_one_failed_another_goes_alone(clock, gate, other):
    """A request that did not come through opens nothing: the next one is alone again."""
    gate.pause(60, "429")
    gate.enter(1)
    gate.leave(False)
    other(gate.enter, 1)
    clock.plan(5, lambda: other(gate.leave, True))
    gate.enter(1)
    assert 1065 <= clock.seconds <= 1066


def test_after_a_success_nobody_waits_any_more(clock, gate, other):
    """The gates are open for all, and the pause is forgotten."""
    gate.pause(60, "429")
    gate.enter(1)
    gate.leave(True)
    for _ in range(4):
        other(gate.enter, 1)
    assert clock.seconds == pytest.approx(1060)
    assert (gate.paused_until_ms, gate.pause_reason) == (0, "")


def test_an_answer_from_before_the_pause_does_not_end_it(clock, gate, other):
    """A request that was under way when the pause began, and is served, opens nothing."""
    other(gate.enter, 1)
    gate.pause(60, "429")
    other(gate.leave, True)
    assert gate.pause_reason == "429"
    gate.enter(1)
    assert clock.seconds == pytest.approx(1060)


def test_a_pause_that_begins_while_a_request_waits_for_its_turn_holds_it_too(clock, gate):
    """Who has passed the pause and waits for a token does not go out into the next pause."""
    for _ in range(10):
        gate.enter(1)
    clock.plan(0.05, lambda: gate.pause(30, "429"))
    gate.enter(1)
    assert clock.seconds >= 1030.05
    assert clock.plans == []


def test_a_pause_made_longer_while_waiting_is_kept(clock, gate):
    """A thread that waits for the end of a pause finds it moved and waits on."""
    gate.pause(10, "429")
    clock.plan(5, lambda: gate.pause(60, "418"))
    gate.enter(1)
    assert clock.seconds == pytest.approx(1065)


def test_a_shorter_pause_does_not_cut_a_longer_one(clock, gate):
    """The later end counts, with its reason."""
    gate.pause(60, "418")
    gate.pause(5, "429")
    assert (gate.paused_until_ms, gate.pause_reason) == (NOW_MS + 60_000, "418")
    gate.enter(1)
    assert clock.seconds == pytest.approx(1060)


@pytest.mark.parametrize(("second", "news"), [(60, False), (60.5, False), (61.5, True), (5, False)])
def test_only_a_longer_pause_is_news(gate, second, news):
    """The same 429 met by twelve threads is logged once."""
    assert gate.pause(60, "429") is True
    assert gate.pause(second, "429") is news


def test_a_stop_ends_the_wait_for_a_pause(clock, gate):
    """A thread held by a pause is let go by a stop, without a request."""
    gate.pause(3600, "418")
    clock.plan(1, clock.stop)
    with pytest.raises(tet.Stopped):
        gate.enter(1)
    assert clock.seconds == pytest.approx(1001)
    assert gate.used_weight() == 0


def test_nothing_passes_after_a_stop(clock, gate):
    """Open gates are no way out either once a stop was asked for."""
    clock.stop()
    with pytest.raises(tet.Stopped):
        gate.enter(1)


def test_no_weight_is_lost_when_workers_send_and_learn_at_once(monkeypatch):
    """Every request that went out counts, though an old count comes back in the same moment."""
    gate = tet.RequestGate(RealTimeOfOneMinute(), 1e9, 10**9)
    monkeypatch.setattr(tet, "max", lambda *values: slowly(max(*values)), raising=False)

    def work():
        for _ in range(20):
            gate.enter(1)
            gate.learn(0, NOW_MS)
            gate.leave(True)

    run_in_threads(work)
    assert gate.used_weight() == 4 * 20


def test_no_count_is_lost_when_workers_count_at_once():
    """Requests and errors are summed over all threads."""

    class SlowName(str):
        def __hash__(self):
            return slowly(super().__hash__())

    tally = figures.Tally()
    run_in_threads(lambda: [tally.add(SlowName("200")) for _ in range(20)])
    assert tally.counts() == {"200": 4 * 20}
    assert tally.total() == 4 * 20


class RealTimeOfOneMinute(tet.Clock):
    """A clock that runs, but whose exchange time stays within one minute."""

    def now_ms(self):
        """The same moment always."""
        return NOW_MS


def slowly(value):
    """The value, after a moment in which other threads run."""
    time.sleep(0.001)
    return value


def run_in_threads(work):
    """Let four threads do the same, to its end."""
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work) for _ in range(4)]:
            done.result()


# The clock


def test_a_real_wait_ends_at_once_with_a_stop():
    """A stop is noticed before a wait, however long it would be."""
    clock = tet.Clock()
    clock.sleep(0)
    clock.stop()
    for seconds in (0, -1, 3600):
        with pytest.raises(tet.Stopped):
            clock.sleep(seconds)


def test_exchange_time_runs_on_from_the_middle_of_the_question(clock):
    """The exchange's answer holds for the middle of the trip, and time goes on from there."""
    clock.sync(NOW_MS, 1000.0, 1002.0)
    assert clock.at(1001.0) == NOW_MS
    clock.sleep(11)
    assert clock.now_ms() == NOW_MS + 10_000


@pytest.mark.parametrize(("after_seconds", "doubtful"), [(3599, False), (3601, True)])
def test_the_time_is_asked_for_again_after_an_hour(after_seconds, doubtful):
    """A clock never set is doubtful, and so is one set an hour ago."""
    clock = tet.Clock()
    assert clock.is_doubtful()
    asked = clock.monotonic() - after_seconds
    clock.sync(NOW_MS, asked, asked)
    assert clock.is_doubtful() is doubtful
