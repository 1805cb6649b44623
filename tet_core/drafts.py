"""What is to be written of a feed, and how it stands to what somebody else has written."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from tet_core.errors import StoredValueError
from tet_core.feeds import Feed
from tet_core.series import Series, contradictions
from tet_core.stored import (
    Announcement,
    Image,
    Patch,
    announce,
    make_image,
    make_patch,
    proof_interval_ms,
)
from tet_core.times import CLOCK_TOLERANCE_MS, SECOND_MS, iso_time

AGE_BYTES = 512  # of a value's end: its age, as the script looks at it
#: A value in Redis that was updated later than this from now is not believed: somebody's clock was wrong.
MAX_AHEAD_MS = 60 * SECOND_MS


class Draft(NamedTuple):
    """What is to be written of a feed: its candles and how far readers know them, what Redis has of it.

    ``good_ms`` is what the value's last_update is to be.
    """

    feed: Feed
    series: Series
    old: Image | None
    fetched_ms: int
    good_ms: int
    known_end_ms: int
    by_stream: bool


class Settings(Protocol):
    """The settings that count here; they may change while the service runs."""

    @property
    def audit_hours(self) -> float:
        """In how long all is compared once; 0: never."""

    @property
    def closed_only(self) -> bool:
        """Whether the forming candle is left out."""


class Drafts(NamedTuple):
    """Makes drafts, images and patches by the settings; ``mark`` gives marks that no other value has."""

    settings: Settings
    mark: Callable[[], bytes]

    def of(self, feed: Feed, now_ms: int) -> Draft | None:
        """What is to be written of a feed now; None where there is no candle to store."""
        with feed.lock:
            series, dated_ms = feed.series, feed.dated_ms
            if series is None or not series.stored_count(self.settings.closed_only):
                return None
            good_ms = max(feed.fetched_ms, dated_ms * (dated_ms <= now_ms + MAX_AHEAD_MS))
            known = feed.stored_end_ms, feed.by_stream
            return Draft(feed, series, feed.image, feed.fetched_ms, good_ms, *known)

    def image(self, draft: Draft, good_ms: int) -> Image:
        """How it is stored, with that last_update."""
        return make_image(draft.series, draft.feed.wanted, good_ms, self.settings.closed_only, self.mark())

    def patch(self, draft: Draft, old: Image) -> tuple[Patch, Announcement] | None:
        """How to turn what Redis has into this; None where it is to be written whole."""
        proof_ms = proof_interval_ms(draft.feed.name, self.settings.audit_hours)
        patch = make_patch(old, self.image(draft, draft.good_ms), proof_ms)
        return (patch, announce(draft.feed.pair, patch.image, patch, draft.known_end_ms)) if patch else None


class Theirs(NamedTuple):
    """What somebody else has written to a feed's key.

    ``unsound`` is the end of a value that is damaged, or of another configuration: it may be written over.
    """

    unsound: bytes = b""
    is_newer: bool = False


def compared(image: Image, value: bytes, read: Callable[[bytes], Image], now_ms: int) -> Theirs:
    """What somebody else has written in place of an image. Raises StoredValueError: other closed candles."""
    try:
        theirs = read(value)
    except StoredValueError:
        return Theirs(value[-AGE_BYTES:])
    if found := contradictions(image.series, theirs.series):
        at = iso_time(found[0].open_ms)
        raise StoredValueError(f"{len(found)} closed candles differ, such as that of {at}")
    is_believed = theirs.dated_ms <= now_ms + MAX_AHEAD_MS and theirs.age[0] <= now_ms + CLOCK_TOLERANCE_MS
    return Theirs(is_newer=is_believed and theirs.age > image.age)
