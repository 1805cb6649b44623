"""The claim: what a service's values are made of, as a key in Redis, so that no other kind overwrites them.

It is set and renewed by one script, so that of two services that start at once one is first, and expires
within seconds when nobody renews it: after a crash an operator who has changed a setting waits no longer. Who
is alike renews it, too, which is how two that keep the same pairs learn of each other.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from tet_core.errors import ClaimedError, RightsError, StoreError, TakenError, say
from tet_core.markets import MARKETS
from tet_core.pairs import is_wildcard
from tet_core.protocols import Clock

from . import addresses
from .notices import Notices

FORMAT = 1  # of the stored value; a setting that changes values is added to them where it is not the default
CLAIM_MS = 15_000  # after which a claim that nobody renews is gone
RENEW_SECONDS = 4.0
VALID_SECONDS = 12.0  # a claim that was renewed so long ago is still there
LOOK_SECONDS = 2.0  # how long a look at somebody else's claim counts
WAIT_SECONDS = 0.5  # between two looks, at the start
MOST_NAMES = 200  # pairs that a claim lists; with more only the number is said

#: Binance's hosts whose prices are other ones; every other address leads to the real market.
OTHER_MARKETS = ("binance.us", *(
    str(urlsplit(host.rest).hostname)
    for market in MARKETS.values() for place, host in market.hosts.items() if place in ("testnet", "demo")
))  # fmt: skip
SETTINGS = {"market": "BINANCE_MARKET", "format": "the values' format"}


def values_of(
    market: str, base_url: str, data_days: int, closed_only: bool, fields: str
) -> dict[str, object]:
    """What the values are made of: two services of which one of these differs cannot share keys."""
    others = [host for host in OTHER_MARKETS if addresses.is_within(base_url, (host,))]
    market = f"{market} of {others[0]}" if others and market != "us" else market
    values = {"format": FORMAT, "market": market, "data_days": data_days, "closed_only": closed_only}
    return values | ({} if fields == "ohlcv" else {"fields": fields})


def writer_of(shares: str, timeframes: Sequence[str], symbols: Sequence[str]) -> dict[str, object]:
    """Who writes: an id that no other process has, and the pairs it keeps where they are few.

    ``shares`` says how it divides the pairs with others, if it does.
    """
    host, pid = socket.gethostname(), os.getpid()
    return {
        "id": f"{host}-{pid}-{os.urandom(4).hex()}",
        "host": host,
        "pid": pid,
        "shares": shares,
        **_kept(timeframes, symbols),
    }


def _kept(timeframes: Sequence[str], symbols: Sequence[str]) -> dict[str, object]:
    known = len(symbols) <= MOST_NAMES and not any(map(is_wildcard, symbols))
    names = [name.replace("/", "") for name in symbols] if known else None
    return {"timeframes": list(timeframes), "symbols": names}


class Claim:
    """This service's claim. ``ask`` runs the script with what the claim says and its expiry in ms.

    The main thread takes, renews and gives it up; any thread may check it before it writes. Each field is
    replaced in one step.
    """

    def __init__(
        self,
        ask: Callable[[str, str, int], list[str]],
        clock: Clock,
        notices: Notices,
        values: Mapping[str, object],
        writer: Mapping[str, object],
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._notices = notices
        self._values = values
        self._writer = writer
        self._looking = threading.Lock()
        self._is_taken = False
        self._looked_seconds = self._renewed_seconds = float("-inf")  # monotonic
        self._other_seconds = float("-inf")  # monotonic: when another one was seen that writes the same
        self._refused: ClaimedError | None = None

    @property
    def id(self) -> str:
        """What no other writer is called."""
        return str(self._writer["id"])

    def keeps(self, timeframes: Sequence[str], symbols: Sequence[str]) -> None:
        """This service keeps these pairs from now on."""
        self._writer = {**self._writer, **_kept(timeframes, symbols)}

    def take(self) -> None:
        """Claim the values for the first time; waits for as long as somebody else's claim may be left over.

        Raises ClaimedError where one that is set differently is alive, StoreError, Stopped.
        """
        self._is_taken, last_ms = True, -1
        while True:
            left_ms = self._look()
            if not self._refused:
                return
            if left_ms < 0 or 0 <= last_ms < left_ms:  # it does not expire, or was renewed
                self._is_taken = False
                raise self._refused
            if last_ms < 0:
                say(logging.WARNING, "waiting whether a service that is set differently is still there",
                    seconds=round(left_ms / 1000), reason=str(self._refused))  # fmt: skip
            last_ms = left_ms
            self._clock.sleep(WAIT_SECONDS)

    def renew(self) -> None:
        """Renew it when it is time."""
        if self._is_taken and self._clock.monotonic() >= self._looked_seconds + RENEW_SECONDS:
            with suppress(StoreError):  # who writes meets it, too
                self._look()

    def check(self) -> None:
        """See that nobody has claimed the values otherwise. Raises ClaimedError, StoreError."""
        valid_seconds = VALID_SECONDS if self._is_taken and not self._refused else LOOK_SECONDS
        if self._clock.monotonic() >= self._looked_seconds + valid_seconds:
            self._look()
        if self._refused:
            raise self._refused

    def leave(self) -> None:
        """Give it up at the end, unless others renew it."""
        seen_seconds = self._clock.monotonic() - self._other_seconds
        if self._is_taken and not self._refused and seen_seconds > CLAIM_MS / 1000:
            with suppress(StoreError):
                self._run(-1)
        self._is_taken = False

    def _run(self, expiry_ms: int) -> list[str]:
        front = f'{{"values":{_json(self._values)},'
        return self._ask(front, f'"by":{_json(self._writer)}}}', expiry_ms)

    def _look(self) -> int:
        """Look at the claim, and renew it if it is ours; returns in how many ms another's expires."""
        with self._looking:  # what one has renewed is not to be the other one's stranger
            return self._looked()

    def _looked(self) -> int:
        looked_seconds, is_taken = self._clock.monotonic(), self._is_taken  # once: it may be taken meanwhile
        try:
            answer, held, *left = self._run(CLAIM_MS if is_taken else 0)
            if answer == "taken":
                raise TakenError(held, left[0])
        except (TakenError, RightsError) as error:
            self._looked_seconds, self._refused = looked_seconds, None
            self._notices.note("claim", f"not seen whether others write here: {error}")
            return 0
        self._looked_seconds, renewed_seconds = looked_seconds, self._renewed_seconds
        if answer == "differs":
            self._refused = ClaimedError(_difference(held, self._values))
            if renewed_seconds > 0:  # in mid-run
                self._notices.note("claim", str(self._refused), is_serious=True)
            return int(left[0])
        if self._refused:
            self._refused = None
            if self._notices.clear("claim"):
                say(logging.INFO, "no service that is set differently is left; writing again")
        if is_taken:
            self._renewed_seconds = looked_seconds
            if looked_seconds - renewed_seconds < CLAIM_MS / 1000:
                self._note_other(held, looked_seconds)
        return 0

    def _note_other(self, held: str, now_seconds: float) -> None:
        """Say when another one that is alike has renewed the claim since this one did."""
        by = _part(held, "by")
        if by.get("id") not in (None, self._writer["id"]):
            self._other_seconds = now_seconds
            if _share(by, self._writer):
                who = f"{by.get('host')}, process {by.get('pid')}"
                self._notices.note(
                    "twin",
                    f"another service keeps the same pairs: {who}; start both with the same GROUP to share "
                    "them, or with another REDIS_PREFIX or REDIS_DB to keep them apart",
                )
        elif now_seconds - self._other_seconds > 2 * CLAIM_MS / 1000:
            self._notices.clear("twin")


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _part(held: str, name: str) -> dict[str, Any]:
    """A part of a claim's text; empty where there is no sound one."""
    with suppress(ValueError, AttributeError):
        found = json.loads(held).get(name)
        return found if isinstance(found, dict) else {}
    return {}


def _share(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two writers keep some of the same pairs without dividing them."""
    if one.get("shares") and one.get("shares") == other.get("shares"):
        return False
    if not {*one.get("timeframes", ())} & {*other.get("timeframes", ())}:
        return False
    mine, theirs = one.get("symbols"), other.get("symbols")
    return mine is None or theirs is None or bool({*mine} & {*theirs})


def _difference(held: str, mine: Mapping[str, object]) -> str:
    """In words: what differs, whose it is, and what helps."""
    theirs, by = _part(held, "values"), _part(held, "by")
    differing = [name for name in {**mine, **theirs} if theirs.get(name) != mine.get(name)]
    what = ", ".join(
        f"{SETTINGS.get(name, name.upper())} {_word(theirs.get(name))} (here {_word(mine.get(name))})"
        for name in differing
    )
    who = f"{by.get('host', 'an unknown host')}, process {by.get('pid', 'unknown')}"
    return (
        f"another service keeps other values under these keys: {what}; it runs on {who}: set another "
        "REDIS_PREFIX or REDIS_DB, or the same settings, or stop that one"
    )


def _word(value: object) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
