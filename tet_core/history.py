"""Candles that have a successor: many, and kept small. Old ones are packed, those at both ends are plain.

A window slides: candles come at its end and leave at its front, and all between them stays for days. zlib
makes a fifth of that, in 0.06 ms for a pack, once in as many closes.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter, is_
from typing import NamedTuple

PACK = 64  # candles: larger packs are no smaller for each of them
LEVEL = 4  # of zlib: a tenth less than 1 makes, for 0.7 ms more when 2,880 candles are packed
PLAIN_FRONT = 8  # candles at the front that are plain at least: what leaves next
PLAIN_END = 16  # at the end: what REST repeats, and what a patch may change


class Run(NamedTuple):
    """Candles side by side: when they open, in ms, and their entries."""

    opens: array[int] = array("q")
    entries: tuple[str, ...] = ()

    def part(self, start: int, end: int | None) -> Run:
        """Those from one index to another, exclusive."""
        return Run(self.opens[start:end], self.entries[start:end])

    def with_more(self, other: Run) -> Run:
        """These and others behind them."""
        if not self.entries:
            return other
        return Run(self.opens + other.opens, self.entries + other.entries)


NOTHING = Run()


class Pack(NamedTuple):
    """`PACK` candles: when they open, how many bytes their joined entries have, and these, compressed."""

    opens: Sequence[int]
    size: int
    packed: bytes

    def joined(self) -> bytes:
        """The entries, joined by commas."""
        return zlib.decompress(self.packed)

    def run(self) -> Run:
        """The candles, plain."""
        entries = self.joined().decode().replace("},", "}\n").split("\n")
        return Run(array("q", self.opens), tuple(entries))


SIZE = attrgetter("size")


def _pack(run: Run) -> Pack:
    """Pack candles; where none is missing between them, a range has their open times."""
    text = ",".join(run.entries).encode()
    first, second = run.opens[:2]
    regular = range(first, run.opens[-1] + 1, second - first)
    is_regular = len(regular) == PACK and all(map(int.__eq__, regular, run.opens))
    return Pack(regular if is_regular else run.opens, len(text), zlib.compress(text, LEVEL))


@dataclass(frozen=True, slots=True)
class History:
    """The candles: a plain front, packs, a plain end. Immutable: what does not change is shared."""

    front: Run = NOTHING
    packs: tuple[Pack, ...] = ()
    end: Run = NOTHING

    def count(self) -> int:
        """How many there are."""
        return len(self.front.opens) + PACK * len(self.packs) + len(self.end.opens)

    def mark(self) -> int:
        """A number that others do not have, by all that these candles are."""
        return hash((self.front.entries, tuple(pack.packed for pack in self.packs), self.end.entries))

    def open_at(self, index: int) -> int:
        """When the candle opens that stands there, from 0 on."""
        if index < (front := len(self.front.opens)):
            return self.front.opens[index]
        number, place = divmod(index - front, PACK)
        if number < len(self.packs):
            return self.packs[number].opens[place]
        return self.end.opens[index - front - PACK * len(self.packs)]

    def pack_at(self, index: int) -> tuple[Pack, int] | None:
        """The pack that the candle stands in, and where in that; None where it is plain."""
        number, place = divmod(index - len(self.front.opens), PACK)
        return (self.packs[number], place) if 0 <= number < len(self.packs) else None

    def index(self, open_ms: int) -> int:
        """Where the candle that opens then stands, or would stand."""
        front, packed = self.front.opens, len(self.packs)
        if front and open_ms <= front[-1]:
            return bisect_left(front, open_ms)
        if packed and open_ms <= self.packs[-1].opens[-1]:
            number = bisect_left(self.packs, open_ms, key=lambda pack: pack.opens[-1])
            return len(front) + number * PACK + bisect_left(self.packs[number].opens, open_ms)
        return len(front) + packed * PACK + bisect_left(self.end.opens, open_ms)

    def part(self, start: int, end: int) -> History:
        """Those from ``start`` to ``end``, exclusive; a pack of which some are left out is plain."""
        before, packed = len(self.front.opens), PACK * len(self.packs)
        if (at := start - before - packed) >= 0:  # what changes with each message, and is asked for most
            return History(end=self.end.part(at, max(at, end - before - packed)))
        first, stop = (min(max(0, at - before), packed) for at in (start, max(start, end)))
        whole = self.packs[-(-first // PACK) : stop // PACK]
        front = self.front.part(start, max(start, end))
        last = self.end.part(max(0, start - before - packed), max(0, end - before - packed))
        if first // PACK == stop // PACK and first % PACK:  # both within one pack
            at = first - first % PACK
            return History(self.packs[first // PACK].run().part(first - at, stop - at))
        if first % PACK:
            front = self.packs[first // PACK].run().part(first % PACK, None)
        if stop % PACK:
            last = self.packs[stop // PACK].run().part(0, stop % PACK)
        return History(front, whole, last)

    def runs(self) -> Iterator[Run]:
        """The candles, plain; a pack is unpacked when it is its turn."""
        yield self.front
        yield from (pack.run() for pack in self.packs)
        yield self.end

    def texts(self) -> Iterator[bytes]:
        """The joined entries, in pieces that are to be joined by commas."""
        if self.front.entries:
            yield ",".join(self.front.entries).encode()
        yield from (pack.joined() for pack in self.packs)
        if self.end.entries:
            yield ",".join(self.end.entries).encode()

    def size(self) -> int:
        """How many bytes the joined entries have."""
        plain = sum(map(len, self.front.entries)) + sum(map(len, self.end.entries))
        packed: int = sum(map(SIZE, self.packs)) - len(self.packs) * (PACK - 1)
        return plain + packed + max(0, self.count() - 1)

    def with_more(self, run: Run) -> History:
        """These and others behind them; what is old by then is packed."""
        front, packs, end = self.front, list(self.packs), self.end.with_more(run)
        while len(end.opens) >= PACK + PLAIN_END:
            packs.append(_pack(end.part(0, PACK)))
            end = end.part(PACK, None)
        while packs and len(front.opens) < PLAIN_FRONT:
            front = front.with_more(packs.pop(0).run())
        return History(front, tuple(packs), end)


def alike(one: History, other: History) -> bool:
    """Whether two have the same candles; packs that they share are not unpacked."""
    if (lead := len(one.front.entries) - len(other.front.entries)) < 0:
        return alike(other, one)
    number, rest = divmod(lead, PACK)
    shared = one.packs[: len(other.packs) - number]
    if rest or not all(map(is_, shared, other.packs[number:])):
        shared = ()
    return _flat(one, 0, len(shared)) == _flat(other, number * bool(shared), len(shared))


def _flat(history: History, first: int, count: int) -> list[str]:
    """The entries, without those of so many packs."""
    left = replace(history, packs=history.packs[:first] + history.packs[first + count :])
    return list(chain.from_iterable(run.entries for run in left.runs()))


NO_CANDLES = History()
