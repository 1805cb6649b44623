"""Who of several members keeps which pair fresh. Each computes it alone, and all come to the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from tet_core.candles import decode_json

Texts = Mapping[str, str]

MISSED_SECONDS = 6.0  # after which a member has missed what happened
ABSENT_SECONDS = 3.0  # a key deleted by hand is there again after 2 s: its member was not gone


def owner_of(pair: str, members: Iterable[str]) -> str:
    """The member, of one or more, that owns a pair: rendezvous hashing.

    Each pair ranks the members in an order of its own, and the first one owns it. So who joins takes its
    share from all, and who leaves gives its share to all; no other pair moves. All instances compute the
    same, whatever the order in which they know the members.
    """
    return max(members, key=lambda member: (_rank(pair, member), member))


def _rank(pair: str, member: str) -> bytes:
    return hashlib.blake2b(f"{member}\0{pair}".encode(), digest_size=8).digest()


class Entry(NamedTuple):
    """What a member says of itself: group, address, whether it has just left, its selection's digest."""

    group: str
    egress: str
    left: bool
    selection: str = ""  # none from a member of a release before selections


def parse_entry(text: str) -> Entry | None:
    """A member's entry; None for what is not one, which another program or version may have put there."""
    with suppress(ValueError, KeyError, TypeError):
        entry = decode_json(text)
        return Entry(
            str(entry["group"]), str(entry["egress"]), bool(entry["left"]), str(entry.get("selection", ""))
        )
    return None


class Roster:
    """Who is there: all members on this Redis, and when each was seen last. Times are passed in.

    Who leaves is gone at once; who is absent, after `ABSENT_SECONDS`.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Entry, float]] = {}
        self._looked_seconds = 0.0

    def note(self, entries: Texts, joined: bool, now_seconds: float) -> tuple[set[str], set[str]]:
        """Take over who is there now. Returns who has come, and who is gone.

        Who has just ``joined``, or lost its own key, or has not looked for long, has missed what happened:
        for it the others may be back any moment, too, and are absent only from now on.
        """
        before = set(self._seen)
        if joined or now_seconds - self._looked_seconds > MISSED_SECONDS:
            self._seen = {member: (entry, now_seconds) for member, (entry, _) in self._seen.items()}
        for member, text in entries.items():
            if (entry := parse_entry(text)) and not entry.left:
                self._seen[member] = (entry, now_seconds)
            else:
                self._seen.pop(member, None)
        self._looked_seconds, since = now_seconds, now_seconds - ABSENT_SECONDS
        self._seen = {member: seen for member, seen in self._seen.items() if seen[1] >= since}
        return set(self._seen) - before, before - set(self._seen)

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        return iter([(member, entry) for member, (entry, _) in sorted(self._seen.items())])

    def of_group(self, group: str) -> list[str]:
        """The members that divide the pairs of a group."""
        return sorted(member for member, (entry, _) in self._seen.items() if entry.group == group)

    def selections(self, group: str) -> dict[str, str]:
        """The digest of what each member of a group has."""
        entries = [(member, entry) for member, (entry, _) in sorted(self._seen.items())]
        return {member: entry.selection for member, entry in entries if entry.group == group}

    def count_sharing(self, egress: str) -> int:
        """How many members, of all groups, send requests by an address."""
        return sum(entry.egress == egress for entry, _ in self._seen.values())


class Selection(NamedTuple):
    """What a member is set to keep: the symbols as configured, the pairs they mean now, the timeframes.

    Each is sorted. Wildcards are resolved hourly, so the pairs of members that are set alike may differ.
    """

    symbols: tuple[str, ...]
    pairs: tuple[str, ...]
    timeframes: tuple[str, ...]

    @classmethod
    def of(cls, symbols: Iterable[str], pairs: Iterable[str], timeframes: Iterable[str]) -> Selection:
        """Of names in any order, with or without a slash."""
        return cls(*(tuple(sorted(set(names))) for names in (symbols, pairs, timeframes)))

    def text(self) -> str:
        """As it stands in Redis."""
        return json.dumps(self._asdict(), separators=(",", ":"))

    @property
    def digest(self) -> str:
        """A name for it, by which others notice that theirs differs."""
        return hashlib.blake2b(self.text().encode(), digest_size=8).hexdigest()

    def feeds(self) -> frozenset[tuple[str, str]]:
        """Pair, without a slash, and timeframe of all that it has."""
        return frozenset((pair.replace("/", ""), frame) for pair in self.pairs for frame in self.timeframes)

    def is_set_like(self, other: Selection) -> bool:
        """Whether the settings are the same, however wildcards were resolved."""
        names = [{name.replace("/", "") for name in each.symbols} for each in (self, other)]
        return names[0] == names[1] and self.timeframes == other.timeframes


def parse_selection(text: str | bytes) -> Selection | None:
    """A member's selection; None for what is not one."""
    with suppress(ValueError, KeyError, TypeError):
        found = decode_json(text)
        return Selection.of(*(map(str, found[name]) for name in Selection._fields))
    return None


def sharing(me: str, members: Mapping[str, Selection | None]) -> Callable[[str, str], bool]:
    """Whether I own a pair in a timeframe: decided among the members that have it.

    Of whom it is not known what it has, nothing is expected: a pair that two keep costs requests, one that
    nobody keeps costs its readers. I am asked for what I have only.
    """
    feeds = {member: selection.feeds() for member, selection in members.items() if selection}
    others = sorted(feeds.keys() - {me})
    owner = lru_cache(maxsize=None)(owner_of)  # mostly the same for all timeframes of a pair

    def owns(pair: str, timeframe: str) -> bool:
        feed = (pair.replace("/", ""), timeframe)
        return owner(pair, (me, *(other for other in others if feed in feeds[other]))) == me

    return owns


def lacking(members: Mapping[str, Selection | None]) -> dict[str, list[str]]:
    """What each member lacks of what others of its group keep, where they are not set alike.

    Feeds are named as BTC/USDT 15m; the list is empty for a member of whom it is not known what it has.
    """
    known = {member: selection for member, selection in members.items() if selection}
    found: dict[str, list[str]] = {member: [] for member in members.keys() - known.keys()}
    first = next(iter(known.values()), None)
    if first is None or all(first.is_set_like(each) for each in known.values()):
        return found
    names = {pair.replace("/", ""): pair for each in known.values() for pair in each.pairs}
    every = frozenset().union(*(each.feeds() for each in known.values()))
    for member, selection in known.items():
        if lacks := sorted(every - selection.feeds()):
            found[member] = [f"{names[pair]} {frame}" for pair, frame in lacks]
    return found
