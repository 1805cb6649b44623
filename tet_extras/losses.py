"""What Redis loses of what was stored: said why, and not written again and again.

Once, it is written again at once: somebody has emptied Redis, or it was restarted without its data. Twice in
a row the cause is looked for. One that evicts cannot keep what it is given: all that is written again pushes
out something else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tet_core.errors import StoreError, say
from tet_core.protocols import Clock

from .notices import Notices

SAME_SECONDS = 20.0  # what is found lost so soon after the first was lost with it
FORGET_SECONDS = 900.0  # after so long without a loss the next one is the first again
UNEXPLAINED = 3  # losses in a row that are worth a warning though nothing is evicted
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 60.0, 600.0

REMEDY = "raise maxmemory, set maxmemory-policy noeviction, or keep fewer pairs or days"


def needed_bytes(candles_bytes: int) -> int:
    """About how much memory Redis needs for values of that size: its allocator rounds them up."""
    return candles_bytes * 6 // 5 + 2_000_000


def memory_of(info: Mapping[str, Any], needed: int) -> str:
    """In words, what INFO says of the memory, and what is needed."""
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    return (
        f"maxmemory {limit / 1e6:.1f} MB, maxmemory-policy {info.get('maxmemory_policy')}, "
        f"{used / 1e6:.1f} MB used; the configured pairs need about {needed / 1e6:.0f} MB"
    )


def evicts(info: Mapping[str, Any]) -> bool:
    """Whether a server with this INFO drops keys when its memory is full."""
    policy = info.get("maxmemory_policy", "noeviction")
    return int(info.get("maxmemory", 0)) > 0 and policy != "noeviction"


def caution(look: Callable[[], Mapping[str, Any]], needed: int) -> tuple[bool, str]:
    """For a health check: whether the configured pairs fit, and what to add of the memory, if anything."""
    try:
        info = look()
    except StoreError:  # a user without the right to ask
        return True, ""
    limit = int(info.get("maxmemory", 0))
    if limit == 0 or (limit > 2 * needed and not evicts(info)):
        return True, ""
    fits, what = limit >= needed, memory_of(info, needed)
    if evicts(info):
        return fits, f"; it may evict candles: {what}; {REMEDY}"
    return fits, "" if fits else f"; it will be full: {what}; raise maxmemory, or keep fewer pairs or days"


class Losses:
    """What was lost, how often in a row, and when a value may be written again. Any thread may use it."""

    def __init__(
        self,
        look: Callable[[str], Mapping[str, Any]],
        clock: Clock,
        notices: Notices,
        needed: Callable[[], int],
    ) -> None:
        self._look = look
        self._clock = clock
        self._notices = notices
        self._needed = needed  # bytes, by the settings in force
        self._lock = threading.Lock()
        self._key = ""  # whose server is asked
        self._count = 0  # in a row
        self._first_seconds = self._last_seconds = float("-inf")  # monotonic
        self._evicted_keys = 0  # by the server's count, at the first loss
        self._limit: object = None  # maxmemory, when it was found to evict
        self._rewritten: dict[str, float] = {}
        self._refused: dict[str, float] = {}  # for want of memory, and when
        self.evicting = ""  # why values are missing; empty while none is evicted

    def note(self, key: str) -> bool:
        """What was stored under a key is gone. Returns whether that is a loss of its own."""
        now_seconds = self._clock.monotonic()
        with self._lock:
            if now_seconds - self._first_seconds < SAME_SECONDS:
                return False
            in_a_row = now_seconds - self._last_seconds < FORGET_SECONDS
            self._count = self._count + 1 if in_a_row else 1
            self._first_seconds = self._last_seconds = now_seconds
            self._key = key
        if self._count == 1:
            say(logging.WARNING, "redis has lost what was stored; writing it again")
            info = self._info()
            self._evicted_keys = int(info.get("evicted_keys", 0)) if info else 0
        else:
            self._explain()
        return True

    def _explain(self) -> None:
        """Say why things are lost, as far as the server says."""
        info = self._info()
        if info is None:
            cause = "Redis loses what was stored, and this user may not ask why (+info): does it evict?"
            self._found_evicting(f"{cause} {REMEDY}", None)
        elif evicts(info) and int(info.get("evicted_keys", 0)) > self._evicted_keys:
            text = f"Redis evicts what was stored: {memory_of(info, self._needed())}; {REMEDY}"
            self._found_evicting(text, info.get("maxmemory"))
        elif self._count >= UNEXPLAINED:
            self._notices.note(
                "losses",
                "Redis loses what was stored again and again, and does not evict: does somebody empty it, or "
                "is it restarted without its data?",
            )

    def _found_evicting(self, text: str, limit: object) -> None:
        if not self.evicting:
            self._rewritten = {}
        self._limit, self.evicting = limit, text
        self._notices.note("losses", text, is_serious=True)

    def may_rewrite(self, name: str) -> bool:
        """Whether a value that is missing may be written: while Redis evicts, seldom, and ever more so."""
        if not self.evicting:
            return True
        now_seconds = self._clock.monotonic()
        wait_seconds = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(self._count - 2, 10))
        with self._lock:
            if now_seconds - self._rewritten.setdefault(name, now_seconds) < wait_seconds:
                return False
            self._rewritten[name] = now_seconds
        return True

    def look_again(self) -> None:
        """While it evicts or is full, see whether that is over. Raises nothing."""
        if not self._count and not self.evicting:
            return
        over = self._clock.monotonic() - self._last_seconds > FORGET_SECONDS
        if self.evicting and not over:
            info = self._info()
            over = info is not None and (not evicts(info) or info.get("maxmemory") != self._limit)
        if over:
            self._count, self.evicting, self._first_seconds = 0, "", float("-inf")
            if self._notices.clear("losses"):
                say(logging.INFO, "redis has room, or keeps what is stored, again")

    def full(self, name: str) -> None:
        """Redis has refused this value for want of memory."""
        self._refused = self._refused | {name: self._clock.monotonic()}
        if self._notices.has("full"):
            return
        info = self._info()
        what = memory_of(info, self._needed()) if info else "this user may not ask how full (+info)"
        text = f"Redis is full: {what}; raise maxmemory, or keep fewer pairs or days"
        self._notices.note("full", text, is_serious=True)

    def written(self, name: str) -> None:
        """Redis has taken this value: it is no longer full once it has taken all that it had refused."""
        if self._refused:
            recent_seconds = self._clock.monotonic() - FORGET_SECONDS
            held = {each: at for each, at in self._refused.items() if each != name and at > recent_seconds}
            self._refused = held
            if not held:
                self._notices.clear("full")

    def _info(self) -> Mapping[str, Any] | None:
        try:
            return self._look(self._key)
        except StoreError:
            return None
