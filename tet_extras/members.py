"""Members: several instances that share the pairs, and the rate of their address.

Each member renews a key of its own every 2 s; Redis lets it expire after 10 s, so that nobody's clock
matters. Whoever renews learns who else is there, and computes alone who owns which pair (`owner_of`) and
its part of the rate. They agree as soon as all have looked: within 2 s of a change, and a tick.

A member may send requests for as long as its lease lasts, 8 s from a renewal: it is over before the
others can think it gone. One that was frozen, or cut off from Redis, finds its lease over when it wakes up,
and renews before it goes on. One that is new, or whose key is gone, waits `JOIN_SECONDS` first: until the
others have seen it, let go of what it owns now, and slowed down. What it still writes of before, the script
refuses if it is older than what is there.

Members need not have the same pairs: each keeps its selection beside its entry, under the digest that the
entry names, and who owns a pair is decided among those that have it. So a rolling change of SYMBOLS, or
strangers who find themselves in one group, leave no pair to nobody; it is a warning of all, though.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from tet_core.errors import RightsError, StoreError, TakenError, say
from tet_core.protocols import Clock, Gate
from tet_core.shares import Entry, Roster, Selection, lacking, sharing
from tet_core.snapshot import Member, Snapshot, as_json
from tet_core.times import SECOND_MS
from tet_core.watchlist import Watchlist

from .figures import lacks_text
from .notices import Notices
from .workers import TICK_SECONDS

Texts = Mapping[str, str]

RENEW_SECONDS = 2.0
MEMBER_MS = 10 * SECOND_MS
SELECTION_SECONDS = 300.0  # for which a selection is kept in Redis; it is renewed five times as often
LEASE_SECONDS = 8.0
JOIN_SECONDS = 4.0


class Settings(Protocol):
    """The settings that say what is shared."""

    @property
    def group(self) -> str | None:
        """Whose members divide the pairs among themselves."""

    @property
    def shard(self) -> tuple[int, int] | None:
        """Which share of how many this one keeps."""

    @property
    def egress(self) -> str | None:
        """The address whose rate is divided."""

    @property
    def takes_part(self) -> bool:
        """Whether any of these is set."""

    @property
    def api_requests_per_sec(self) -> float:
        """What the members behind an address may send together."""


class Store(Protocol):
    """What members have in Redis. All methods raise StoreError."""

    notices: Notices

    def renew_member(self, member: str, entry: Mapping[str, object], expiry_ms: int) -> tuple[bool, Texts]:
        """Say that a member is there; returns whether its key was gone, and the entries of all by id."""

    def save_selection(self, selection: Selection, expiry_seconds: float) -> None:
        """Keep what a member has, for so long."""

    def load_selection(self, digest: str) -> Selection | None:
        """What a member has."""

    def load_pause(self) -> tuple[float, str] | None:
        """The pause of this address: seconds left, and why."""

    def save_status(self, status: Mapping[str, object], member: str = "") -> bool:
        """Write the status, or a member's own; returns whether there was one."""

    def load_member_statuses(self, members: Collection[str]) -> dict[str, dict[str, Any]]:
        """What members have written of themselves."""


@dataclass(eq=False)
class Membership:
    """This instance among others: it renews its key, and learns from who is there what it owns.

    Without GROUP, SHARD and EGRESS it does nothing. The main thread's alone, but `join`.
    """

    settings: Settings
    clock: Clock
    store: Store
    gate: Gate
    watchlist: Watchlist

    def __post_init__(self) -> None:
        self._roster = Roster()
        self._owners: Mapping[str, Selection | None] = {}
        self._saved = ("", 0.0)  # the digest of the selection kept in Redis, until when (monotonic)
        self._differences: tuple[str, ...] = ()  # which members lack what, as said in the notices
        self.in_status: Sequence[Member] = ()  # what the status last said of each member
        self._look_at_seconds = math.inf  # monotonic: the next look; not before it has joined
        self._asks_from_seconds = 0.0  # monotonic
        self._lapsed = False
        self.id = f"{socket.gethostname()}-{os.urandom(4).hex()}"
        if self.settings.takes_part:
            self.gate.lease(0.0, 0.0)

    def join(self) -> None:
        """Be there, for the first time. Raises StoreError."""
        if self.settings.takes_part:
            self._renew()
            say(
                logging.INFO,
                "joined",
                member=self.id,
                members=len(self._owners),
                rate=round(self.gate.rate, 2),
            )

    def renew(self) -> None:
        """Renew the key and see who is there, when it is time."""
        now_seconds = self.clock.monotonic()
        if now_seconds < self._look_at_seconds:
            return
        if now_seconds > self._look_at_seconds + LEASE_SECONDS - RENEW_SECONDS and not self._lapsed:
            self._lapsed = True
            say(logging.WARNING, "membership lapsed, sending nothing until it is renewed", member=self.id)
        try:
            self._renew()
        except StoreError as error:
            say(logging.DEBUG, "deferred, will retry", what="membership", reason=str(error))

    def _renew(self) -> None:
        """Renew the key and the lease, and take over what follows from who is there. Raises StoreError."""
        settings, now_seconds = self.settings, self.clock.monotonic()
        selection = self.watchlist.selection()
        self._save(selection, now_seconds)
        entry = self._entry()._replace(selection=selection.digest)
        gone, entries = self.store.renew_member(self.id, entry._asdict(), MEMBER_MS)
        if gone:
            self._saved = ("", 0.0)  # Redis may have lost that, too
        come, left = self._roster.note(entries, gone, now_seconds)
        if gone:
            self._asks_from_seconds = self.clock.monotonic() + JOIN_SECONDS
        if self._lapsed:
            self._lapsed = False
            say(logging.INFO, "membership renewed", member=self.id)
        for event, members in (("member came", come - {self.id}), ("member gone", left)):
            for member in sorted(members):
                say(logging.INFO, event, member=member)
        self._honour_pause()
        sharing_rate = max(1, self._roster.count_sharing(settings.egress or ""))
        self.gate.rate = settings.api_requests_per_sec / sharing_rate
        self._share(selection)
        self.gate.lease(self._asks_from_seconds, now_seconds + LEASE_SECONDS)
        self._look_at_seconds = now_seconds + RENEW_SECONDS - TICK_SECONDS / 2  # the tick nearest to it

    def _entry(self, left: bool = False) -> Entry:
        return Entry(self.settings.group or "", self.settings.egress or "", left)

    def _save(self, selection: Selection, now_seconds: float) -> None:
        """Have in Redis what this member has, before its entry names it. Raises StoreError."""
        digest, until_seconds = self._saved
        if self.settings.group and (digest != selection.digest or now_seconds > until_seconds):
            self.store.save_selection(selection, SELECTION_SECONDS)
            self._saved = (selection.digest, now_seconds + SELECTION_SECONDS / 5)

    def _share(self, selection: Selection) -> None:
        """Own what follows from who is there and what they have, where that has changed."""
        me, digests = self.id, self._roster.selections(self.settings.group or "")
        owners = self._selections(selection, digests)
        if self.settings.shard:
            number, shards = self.settings.shard
            me, owners = str(number), {str(each): selection for each in range(1, shards + 1)}
        if owners != self._owners and (self.settings.group or self.settings.shard):
            self.watchlist.own(sharing(me, owners))
            self._warn(lacking({name: each for name, each in owners.items() if each or not digests[name]}))
        self._owners = owners

    def _selections(self, own: Selection, digests: Texts) -> dict[str, Selection | None]:
        """What the members of the group have; None where that is not known. Each is read once."""
        if not self.settings.group:
            return dict.fromkeys(digests)
        known = {each.digest: each for each in self._owners.values() if each} | {own.digest: own}
        for digest in set(digests.values()) - known.keys() - {""}:
            with suppress(StoreError):
                if found := self.store.load_selection(digest):
                    known[digest] = found
        return {member: known.get(digest) for member, digest in digests.items()} | {self.id: own}

    def _warn(self, lacks: Mapping[str, Sequence[str]]) -> None:
        """Say which members lack what, once per change, and when all have the same again."""
        found = tuple(lacks_text(member, feeds) for member, feeds in sorted(lacks.items()))
        for text in {*self._differences} - {*found}:
            self.store.notices.clear(text)
        for text in found:
            self.store.notices.note(text, text)
        if self._differences and not found:
            say(logging.INFO, "members have the same pairs and timeframes again")
        self._differences = found

    def _honour_pause(self) -> None:
        """Send nothing while any member behind the same address has met a pause. Raises StoreError."""
        with suppress(TakenError, RightsError):
            pause = self.store.load_pause()
            if pause and self.gate.pause(*pause):
                event = "honouring a pause that another member has met"
                say(logging.WARNING, event, seconds=round(pause[0]), reason=pause[1])

    def publish(self, status: Snapshot) -> bool:
        """Write this instance's status, and that of all members made of theirs. Raises StoreError.

        Returns whether there was one of this instance before: if not, Redis may have been emptied.
        """
        if not self.settings.takes_part:
            return self.store.save_status(as_json(status))
        from .merged import merged

        existed = self.store.save_status(as_json(status), self.id)
        entries = {member: {"group": entry.group, "egress": entry.egress} for member, entry in self._roster}
        texts = self.store.load_member_statuses(entries.keys() - {self.id})
        found = {member: Snapshot.of(each) for member, each in texts.items() if "written" in each}
        if self._look_at_seconds < math.inf or not found:  # it has not left, or was the last one
            found[self.id] = status
        together = merged(found, entries)
        self.in_status = together.members or ()
        self.store.save_status(as_json(together))
        return existed

    def leave(self) -> None:
        """Say that this member is gone, so that the others need not wait for its key to expire."""
        if self._look_at_seconds < math.inf:
            self._look_at_seconds = math.inf
            with suppress(StoreError):
                self.store.renew_member(self.id, self._entry(left=True)._asdict(), MEMBER_MS)
