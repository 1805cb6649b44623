"""Odd rows: when the exchange is believed although a row is not as usual.

One damaged reply must not change what is stored, and one odd row that the exchange keeps must not stop its
pair for good. So an odd row makes its reply a bad one, which is asked for again, until it has come in three
replies. A row off the grid is left out then. Any other has to come at three moments that lie apart, in
three different updates: it is believed if it was alike each time and may be a candle, else left out. After
three updates in a row that odd rows have made fail, no row can make another one fail: what is usual is
taken. A reply that has a row as usual begins it all anew.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tet_core.candles import OHLCV, Candles, Fields, newest_of
from tet_core.errors import say
from tet_core.klines import VOLUME, OddReply, OddRow, parse_klines
from tet_core.times import Timeframe, iso_time

REPLIES = 3
APART_SECONDS = 2.0
MAX_REMEMBERED = 5000  # rows of a feed; who sends more of them is looked at anew
WARNED_AT_ONCE = 20
BELIEVED, LEFT_OUT = "odd row believed", "odd row left out"

Key = tuple[int, str]


class Question(NamedTuple):
    """What was asked for: ``limit`` rows at most, open times from ``first_ms`` to ``last_ms``.

    ``volume`` is the field of a row that has it in the base asset.
    """

    feed: str
    timeframe: Timeframe
    first_ms: int
    last_ms: int
    limit: int
    volume: int = VOLUME


class Reading(NamedTuple):
    """The candles of a reply, how many rows it had, and the open time on the grid up to which it goes."""

    candles: Candles
    rows: int
    reached_ms: int


@dataclass
class _Seen:
    """How often an odd row has come: in how many replies, and in how many of the latest alike."""

    text: int  # its hash
    at_seconds: float  # monotonic: the newest reply that counted
    replies: int = 1
    alike: int = 1
    said: str = ""

    @classmethod
    def never(cls) -> _Seen:
        """It has not come yet."""
        return cls(0, float("-inf"), 0, 0)

    def again(self, text: int, at_seconds: float, apart_seconds: float) -> None:
        """It has come once more; that counts if it is long enough since it counted last."""
        if text != self.text:
            self.text, self.alike = text, 0
        if at_seconds > self.at_seconds and at_seconds - self.at_seconds >= apart_seconds:
            self.at_seconds = at_seconds
            self.replies += 1
            self.alike += 1


@dataclass
class _Feed:
    """The odd rows of a feed, and how many updates in a row they have made fail."""

    rows: dict[Key, _Seen] = field(default_factory=dict)
    failed: _Seen = field(default_factory=_Seen.never)


class OddRows:
    """What has come of odd rows, by feed; of rows the fields that are ``kept``. For one thread at a time."""

    def __init__(self, kept: Fields = OHLCV) -> None:
        self._kept = kept
        self._feeds: dict[str, _Feed] = {}

    def read(self, body: bytes, asked: Question, sent_seconds: float, moment_seconds: float) -> Reading:
        """The candles of a klines reply. Raises BadReply.

        Both times are monotonic: when the request was sent, and the moment that it counts for where
        replies have to come at different ones.
        """
        left_out: list[OddRow] = []

        def judge(rows: Sequence[OddRow]) -> Collection[OddRow]:
            believed = self._judge(asked.feed, rows, sent_seconds, moment_seconds)
            left_out.extend(row for row in rows if row not in believed)
            return believed

        timeframe, first_ms, last_ms = asked.timeframe, asked.first_ms, asked.last_ms
        candles = parse_klines(
            body, timeframe, first_ms, last_ms, asked.limit, judge, asked.volume, self._kept
        )
        opens_ms = [timeframe.floor(row.open_ms) for row in left_out]
        opens_ms = [open_ms for open_ms in opens_ms if first_ms <= open_ms <= last_ms]
        reached_ms = max(newest_of(candles) if candles else 0, *opens_ms, 0)
        if feed := self._feeds.get(asked.feed):
            _forget(feed, candles, left_out)
        return Reading(candles, len(candles) + len(left_out), reached_ms)

    def _judge(
        self, name: str, rows: Sequence[OddRow], sent_seconds: float, moment_seconds: float
    ) -> set[OddRow]:
        """Which of the odd rows of a reply are candles. Raises OddReply while that is not decided."""
        feed = self._feeds.setdefault(name, _Feed())
        if len(feed.rows) > MAX_REMEMBERED:
            feed.rows.clear()
        for row in rows:
            at_seconds, apart_seconds = (
                (sent_seconds, 0.0) if row.off_grid else (moment_seconds, APART_SECONDS)
            )
            seen = feed.rows.setdefault(_key(row), _Seen(hash(row.text), at_seconds))
            seen.again(hash(row.text), at_seconds, apart_seconds)
        if undecided := [row for row in rows if feed.rows[_key(row)].replies < REPLIES]:
            feed.failed.again(0, moment_seconds, APART_SECONDS)
            if feed.failed.replies < REPLIES:
                raise OddReply(undecided)
        believed = {row for row in rows if row.values and feed.rows[_key(row)].alike >= REPLIES}
        _warn(name, feed, rows, believed)
        return believed


def _key(row: OddRow) -> Key:
    return row.open_ms, row.reason if row.open_ms else row.text


def _warn(name: str, feed: _Feed, rows: Sequence[OddRow], believed: Collection[OddRow]) -> None:
    """Say what became of each row, once."""
    new = []
    for row in rows:
        event = BELIEVED if row in believed else LEFT_OUT
        if feed.rows[_key(row)].said != event:
            feed.rows[_key(row)].said = event
            new.append((event, row))
    for event, row in new[:WARNED_AT_ONCE]:
        at = iso_time(row.open_ms) if row.open_ms else "unknown"
        say(logging.WARNING, event, feed=name, at=at, reason=row.reason, row=row.text[:200])
    if len(new) > WARNED_AT_ONCE:
        say(logging.WARNING, "more odd rows", feed=name, rows=len(new) - WARNED_AT_ONCE)


def _forget(feed: _Feed, candles: Candles, left_out: Collection[OddRow]) -> None:
    """Begin anew where a row has come as usual, and nothing was in doubt any more."""
    if not any(feed.rows[_key(row)].replies < REPLIES for row in left_out):
        feed.failed = _Feed().failed
    feed.rows = {
        key: seen
        for key, seen in feed.rows.items()
        if key[0] not in candles or seen.said.endswith("believed")
    }
