"""The series: the candles of one pair and timeframe, and how replies and streams change them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from tet_core.candles import Answer, Candles, entry_volume, newest_of
from tet_core.history import NO_CANDLES, History, Run, alike
from tet_core.times import SECOND_MS, Timeframe

#: A reply from later than this after a close cannot be a lagging one any more.
MAX_LAG_MS = 15 * SECOND_MS


class Opens(Sequence[int]):
    """When the candles of a series open, in ms: ascending strictly, on the grid."""

    def __init__(self, series: Series) -> None:
        self._series = series

    def __len__(self) -> int:
        return len(self._series)

    def __getitem__(self, index: Any) -> Any:
        count = len(self._series)
        if index in (-1, count - 1) and count:
            return self._series.newest_ms
        if not -count <= index < count:
            raise IndexError(index)
        return self._series.older.open_at(index % count)


@dataclass(frozen=True)
class Series:
    """The candles of one pair and timeframe, kept as the entries that the stored value is spliced from.

    Immutable: a change makes a new series, at the cost of the candles that changed; all else is shared.
    Invariants: ``older`` has all candles but the newest, which opens at ``newest_ms`` and has the entry
    ``newest``, empty where there is no candle; ``newest_is_closed`` says that it is closed for certain. All
    older ones are closed: each has a successor.
    """

    timeframe: Timeframe
    older: History = NO_CANDLES
    newest_ms: int = 0
    newest: str = ""
    newest_is_closed: bool = False

    def __len__(self) -> int:
        return self.older.count() + bool(self.newest)

    def __bool__(self) -> bool:
        return bool(self.newest)

    @property
    def opens(self) -> Opens:
        """When they open."""
        return Opens(self)

    @property
    def closed_end_ms(self) -> int:
        """The end, exclusive, of the newest closed candle; where there is none, the oldest open time."""
        if self.newest_is_closed:
            return self.timeframe.close_of(self.newest_ms)
        count = self.older.count()
        return self.timeframe.close_of(self.older.open_at(count - 1)) if count else self.newest_ms

    def stored_count(self, closed_only: bool) -> int:
        """How many of the candles may be stored: all, or those that are closed."""
        return self.index(self.closed_end_ms) if closed_only else len(self)

    def index(self, open_ms: int) -> int:
        """Where the candle that opens then stands, or would stand."""
        if self.newest and open_ms >= self.newest_ms:
            return len(self) - (open_ms == self.newest_ms)
        return self.older.index(open_ms)

    def entry(self, index: int) -> str:
        """The entry of one candle. For a loop: `entries`; this may unpack many anew for each."""
        if index == len(self) - 1:
            return self.newest
        return next(self.entries(index, index + 1))[1]

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, str]]:
        """Open times (ms) and entries from index ``start`` to ``end``, exclusive."""
        last = self.older.count()
        end = len(self) if end is None else end
        for run in self.older.part(start, min(end, last)).runs():
            yield from zip(run.opens, run.entries, strict=True)
        if start <= last < min(end, len(self)):
            yield self.newest_ms, self.newest

    def size(self, start: int, end: int) -> int:
        """How many bytes `joined` has."""
        last = self.older.count()
        size = self.older.part(start, min(end, last)).size()
        if not start <= last < end:
            return size
        return size + len(self.newest) + (start < last)

    def joined(self, start: int, end: int) -> bytes:
        """The entries from index ``start`` to ``end``, exclusive, joined by commas."""
        last = self.older.count()
        texts = list(self.older.part(start, min(end, last)).texts())
        return b",".join([*texts, self.newest.encode()] if start <= last < end else texts)

    def agrees(self, other: Series, start: int, other_start: int, count: int) -> bool:
        """Whether so many older candles are alike: from ``start``, and in another from ``other_start`` on."""
        if self.older is other.older and start == other_start:
            return True
        mine = self.older.part(start, start + count)
        return alike(mine, other.older.part(other_start, other_start + count))

    def merge(self, candles: Candles, newest_is_closed: bool, keep: int) -> Series:
        """Lay fresh candles over these and keep ``keep`` steps of the grid and the forming candle.

        So the window is full with and without the forming one. Candles that only this series has
        stay: the exchange never takes one back.
        """
        cut = self.index(next(iter(candles)))
        if cut < len(self):
            held = dict(self.entries(cut))
            merged = sorted((held | candles).items())
            closed = islice(held.items(), len(held) - 1)
            changes = (
                n for n, (before, after) in enumerate(zip(closed, merged, strict=False)) if before != after
            )
            same = next(changes, len(held) - 1)  # what does not change is not copied
            cut, candles = cut + same, dict(merged[same:])
        newest_ms, last = newest_of(candles), self.older.count()
        window_end = newest_ms if newest_is_closed else self.timeframe.shift(newest_ms, -1)
        oldest_ms = self.timeframe.shift(window_end, 1 - keep)
        fresh = [(open_ms, entry) for open_ms, entry in candles.items() if oldest_ms <= open_ms < newest_ms]
        drop = min(cut, self.index(oldest_ms))
        older = self.older
        if cut > last and self.newest_ms >= oldest_ms:
            fresh.insert(0, (self.newest_ms, self.newest))
        if drop or cut < last:
            older = older.part(drop, min(cut, last))
        if fresh or drop:
            opens, entries = zip(*fresh, strict=True) if fresh else ((), ())
            older = older.with_more(Run(array("q", opens), tuple(entries)))
        return Series(self.timeframe, older, newest_ms, candles[newest_ms], newest_is_closed)


def absorb(series: Series, candles: Candles, asked_ms: int, keep: int) -> Series:
    """Lay a reply, asked for at ``asked_ms`` (exchange time), over what is held.

    For some seconds after a close Binance's REST servers may answer with the old, unfinished candle.
    So the newest candle of a reply is closed only when the reply was asked for too long after the
    close to be a lagging one and repeats what is held. And an answer older than what is held does
    not undo it: candles only get newer, and the volume of a forming candle only grows.
    """
    if not candles:
        return series
    newest_ms, held_ms = newest_of(candles), series.opens[-1] if series else 0
    if newest_ms < held_ms:
        # All but its newest have a successor in it and are closed; of the newest we hold a better state.
        older = {open_ms: entry for open_ms, entry in candles.items() if open_ms < newest_ms}
        return series.merge(older, series.newest_is_closed, keep) if older else series
    is_closed = False
    if newest_ms == held_ms:
        newest, held = candles[newest_ms], series.entry(len(series) - 1)
        is_closed = series.newest_is_closed
        if asked_ms >= series.timeframe.close_of(held_ms) + MAX_LAG_MS:
            is_closed = is_closed or newest == held
        elif entry_volume(newest) < entry_volume(held):
            candles = candles | {held_ms: held}
    return series.merge(candles, is_closed, keep)


def follow(series: Series, candles: Candles, is_closed: bool, keep: int) -> Series | None:
    """Lay a stream's candle over a series that it continues without a gap.

    ``candles`` has one, ``is_closed`` says that the exchange has sent it as final. Returns the series as it
    was where the candle is nothing new, and None where REST has to be asked: a gap, a predecessor that was
    not sent as final, an older candle, or a contradiction to what is final. Never backwards: the volume of
    a forming candle only grows.
    """
    (open_ms, entry), *_ = candles.items()
    newest_ms, timeframe = series.opens[-1], series.timeframe
    if open_ms > newest_ms:
        continues = series.newest_is_closed and open_ms == timeframe.close_of(newest_ms)
        return series.merge(candles, is_closed, keep) if continues else None
    held = series.newest
    if open_ms < newest_ms:
        index = series.index(open_ms)
        if series.opens[index] != open_ms:
            return None
        held = series.entry(index)
    grown = entry_volume(entry) - entry_volume(held)
    if open_ms < newest_ms or series.newest_is_closed:
        is_old_news = entry == held or (grown <= 0 and not is_closed)
        return series if is_old_news else None
    if is_closed:
        return series.merge(candles, is_closed, keep) if grown >= 0 else None
    if grown < 0 or entry == held:
        return series
    return Series(timeframe, series.older, newest_ms, entry)


def is_lagging(series: Series, now_ms: int) -> bool:
    """Whether the newest candle has ended and is not known to be closed: it is to be asked for again."""
    return not series.newest_is_closed and now_ms >= series.timeframe.close_of(series.opens[-1])


class Correction(NamedTuple):
    """A closed candle that the exchange has otherwise than it is held: both entries, empty for none."""

    open_ms: int
    held: str
    sent: str


def corrections(series: Series, answer: Answer) -> list[Correction]:
    """Where a reply has another value for a candle held as closed; its own newest may be unfinished."""
    if not series or not answer.candles:
        return []
    candles, timeframe = answer.candles, series.timeframe
    newest_ms = newest_of(candles)
    is_final = answer.asked_ms >= timeframe.close_of(newest_ms) + MAX_LAG_MS
    closed = series.entries(series.index(next(iter(candles))), series.stored_count(closed_only=True))
    found = (Correction(at, held, candles[at]) for at, held in closed if at in candles)
    return [each for each in found if each.held != each.sent and (is_final or each.open_ms < newest_ms)]


def missing_opens(series: Series, candles: Candles, first_ms: int) -> list[int]:
    """Open times that a reply, asked for from ``first_ms``, leaves out for the first time.

    A candle missing before the newest of the series was asked for twice already: the exchange has none.
    """
    timeframe = series.timeframe
    if not candles or len(candles) == timeframe.count(first_ms, newest_of(candles)):
        return []
    known = range(0)
    if series:
        end = timeframe.number(series.opens[-1]) + series.newest_is_closed
        known = range(timeframe.number(series.opens[0]), end)
    return [
        open_ms
        for open_ms in timeframe.opens(first_ms, newest_of(candles))
        if open_ms not in candles and timeframe.number(open_ms) not in known
    ]


def differences(series: Series, candles: Candles, first_ms: int, end_ms: int) -> list[Correction]:
    """Where closed candles are not the exchange's: those from an open time on that ended by ``end_ms``."""
    end_ms = series.timeframe.floor(min(end_ms, series.closed_end_ms))
    held = dict(series.entries(series.index(first_ms), series.index(end_ms)))
    sent = {open_ms: entry for open_ms, entry in candles.items() if open_ms < end_ms}
    opens = sorted(held.keys() | sent.keys())
    found = (Correction(open_ms, held.get(open_ms, ""), sent.get(open_ms, "")) for open_ms in opens)
    return [each for each in found if each.held != each.sent]


def contradictions(series: Series, other: Series) -> list[Correction]:
    """Where another series, of the same window or a part of it, has other closed candles."""
    first_ms = max(other.opens[0], series.opens[0])
    shared = dict(other.entries(other.index(first_ms)))
    return differences(series, shared, first_ms, other.closed_end_ms)
