"""Who keeps a feed fresh, its stream or REST, and when and why REST is due: a state machine.

It hears what has happened, and when; it knows no clock, no thread, no request. Nothing else decides when
REST is asked for a feed. Without LIVE a feed is polled for ever.

=============  ===========================  ==========================  ==========================
What happened  polled                       catching up                 live
=============  ===========================  ==========================  ==========================
created        NEW, at once
asked          nothing is due until the answer, but for what happens meanwhile, which stays due then
answered       INTERVAL; LAGGING after      INTERVAL; LAGGING after     PROOF; INTERVAL after a
               1, 1, 2, 3, 4 s if it lags   1, 1, 2, 3, 4 s if it lags  failure
streamed       -> live once REST answered   -> live, likewise           (it has spoken)
               all up to the last miss
missed         -> catching up; MISSED as    MISSED after 1, 1, 2, 3,    -> catching up; MISSED a
               when catching up             4, 4, ... s, if sooner      second after the last answer
stream lost    (nothing new)                -> polled; LOST, at once    -> polled; LOST, at once
close missed                                                            as missed
silent                                                                  SILENT, at once
=============  ===========================  ==========================  ==========================

What always holds (tests/core/test_freshness_model.py):

* While REST is not asked, something is due, and never later than the interval's end, or the proof, allows.
* A feed is live only if REST was asked after the last time that something may have been missed, has answered,
  and its stream has spoken since.
* What happens while REST is on its way is not forgotten when the answer comes: it may have left that out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from tet_core.intervals import next_due_ms, next_proof_ms
from tet_core.times import NEVER_MS, SECOND_MS, Timeframe

#: Feeds are asked for again after each reply that still lacks the successor of the candle that has ended:
#: the exchange's REST servers may lag 2 to 10 s behind a close.
REASK_SECONDS = (1.0, 1.0, 2.0, 3.0, 4.0)


class Link(Enum):
    """Who keeps a feed fresh."""

    POLLED = "REST, in each interval: its stream says nothing, or is not listened to"
    CATCHING_UP = "its stream speaks, and REST has to be asked for what it left out"
    LIVE = "its stream; REST proves it now and then"


class Why(Enum):
    """Why REST is due."""

    NEW = "it was never asked for here"
    INTERVAL = "the interval is over, or a candle has closed"
    LAGGING = "a candle has ended that REST did not show as closed"
    MISSED = "its stream has left something out"
    LOST = "its stream was lost"
    SILENT = "nothing was heard of it for long"
    PROOF = "what was streamed is to be proven"


URGENT = frozenset({Why.NEW, Why.MISSED, Why.LOST, Why.SILENT})


class Due(NamedTuple):
    """When REST is due, exchange time in ms, and why."""

    at_ms: int
    why: Why


class Asked(NamedTuple):
    """What REST is asked for by: before others, if it is urgent; regular, if the interval was over."""

    is_urgent: bool
    is_regular: bool


class Answered(NamedTuple):
    """What has come of asking REST: whether a candle lags in its answer, and what failed.

    What happened before ``asked_ms`` is in the answer. Redis may have failed although the fetch did not.
    """

    asked_ms: int
    lags: bool = False
    failed: bool = False
    fetch_failed: bool = False


@dataclass
class Freshness:
    """The state machine of one feed; see the table above. Times are exchange time in ms, 0 is never.

    The main thread alone calls it, others may read. ``interval_seconds`` is the update interval in force.
    """

    name: str  # of the feed: proofs are spread by it
    timeframe: Timeframe
    link: Link = Link.POLLED
    due: Due | None = field(default=Due(0, Why.NEW))  # None while REST is asked, and nothing else is due
    regular_ms: int = 0  # the end of the interval, or the next proof: due no later
    _asked_ms: int = 0
    _answered: Answered = field(default=Answered(0))
    _answered_ms: int = 0
    _again: int = 0  # how often it was asked again before the regular time
    _missed_ms: int = 0  # what REST has sent before may lack something
    _event_ms: int = 0  # of the newest message that counted
    _heard_ms: int = 0  # when its stream, or REST, was heard last

    @property
    def due_ms(self) -> int:
        """When REST is due; never, while it is on its way and nothing has happened since."""
        return self.due.at_ms if self.due else NEVER_MS

    @property
    def is_early(self) -> bool:
        """Whether REST is due before the interval's end."""
        return self.due_ms < self.regular_ms

    def knows(self, event_ms: int, is_closed: bool) -> bool:
        """Whether that was streamed before: by the connection that this one replaces, say."""
        return event_ms < self._event_ms or (event_ms == self._event_ms and not is_closed)

    # What happens

    def asked(self, now_ms: int) -> Asked:
        """REST is asked, or waits for its turn to be."""
        is_urgent = self.due is not None and self.due.why in URGENT
        is_urgent = is_urgent or (self.is_early and self.link is Link.CATCHING_UP)
        asked = Asked(is_urgent, self.regular_ms <= now_ms)
        self._asked_ms, self.due = now_ms, None
        return asked

    def answered(self, answer: Answered, interval_seconds: float, now_ms: int) -> Due:
        """REST has answered, well or not. What has happened meanwhile stays due."""
        self._answered, self._answered_ms, self._heard_ms = answer, now_ms, now_ms
        if self.due:
            return self.due
        if self.regular_ms <= self._asked_ms:
            self._plan(self._asked_ms, interval_seconds)
        elif answer.failed:  # a proof that was asked for early
            at_ms = next_due_ms(self._asked_ms, interval_seconds, self.timeframe)
            self.regular_ms = min(self.regular_ms, at_ms)
        self.due = Due(self.regular_ms, self._regular_why)
        is_to_repeat = answer.lags and not answer.failed and self.link is not Link.LIVE
        if is_to_repeat and self._again < len(REASK_SECONDS):
            self._hurry(now_ms, Why.LAGGING)
        return self.due

    def streamed(self, event_ms: int, interval_seconds: float, now_ms: int) -> None:
        """Its stream has sent what continues its candles."""
        self._event_ms, self._heard_ms = event_ms, now_ms
        has_all = self._answered.asked_ms > self._missed_ms and not self._answered.fetch_failed
        if self.link is not Link.LIVE and has_all:
            self.link = Link.LIVE
            self._plan(now_ms, interval_seconds)
            self.due = Due(self.regular_ms, self._regular_why)

    def missed(self, has_candles: bool, interval_seconds: float, now_ms: int) -> None:
        """Its stream has sent what does not continue its candles, or nothing in time: REST has to be asked.

        Without candles to continue it is due by REST anyway.
        """
        if self.link is Link.LIVE:
            self.link, self._missed_ms, self.due = Link.CATCHING_UP, now_ms, None
            self._plan(now_ms, interval_seconds)
            self._hurry(now_ms, Why.MISSED)
        elif has_candles:
            self.link = Link.CATCHING_UP
            if self.due:
                self._hurry(now_ms, Why.MISSED)

    def lost(self, interval_seconds: float, now_ms: int) -> None:
        """Nobody listens to its stream any more, for now."""
        if self.link is not Link.POLLED:
            self.link, self._missed_ms, self._event_ms = Link.POLLED, now_ms, 0
            self._plan(now_ms, interval_seconds)
            self.due = Due(now_ms, Why.LOST)

    def has_missed_close(self, end_ms: int, patience_ms: int, now_ms: int) -> bool:
        """Whether the close of the candle that ended at ``end_ms`` should have been streamed by now."""
        return self.link is Link.LIVE and now_ms > end_ms + patience_ms

    def waited(self, quiet_ms: int, now_ms: int) -> None:
        """Time has passed: a live feed of which nothing was heard for so long is to be asked for."""
        is_silent = self.link is Link.LIVE and self._heard_ms + quiet_ms < now_ms
        if is_silent and self.due and now_ms < self.due.at_ms:
            self.due = Due(now_ms, Why.SILENT)

    # When REST is due

    @property
    def _regular_why(self) -> Why:
        return Why.PROOF if self.link is Link.LIVE and not self._answered.failed else Why.INTERVAL

    def _plan(self, from_ms: int, interval_seconds: float) -> None:
        """Set the regular time: a live feed's is for proof, unless REST or Redis has failed."""
        self._again = 0
        if self._regular_why is Why.PROOF:
            self.regular_ms = next_proof_ms(self.name, from_ms, interval_seconds)
        else:
            self.regular_ms = next_due_ms(from_ms, interval_seconds, self.timeframe)

    def _hurry(self, now_ms: int, why: Why) -> None:
        """Have REST due as soon as may be after the last answer, unless it is due sooner."""
        wait_seconds = REASK_SECONDS[min(self._again, len(REASK_SECONDS) - 1)]
        again_ms = max(now_ms, self._answered_ms + round(wait_seconds * SECOND_MS))
        if again_ms < self.due_ms:
            self.due = Due(again_ms, why)
            self._again += 1
