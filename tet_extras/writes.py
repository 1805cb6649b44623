"""How a pair's value is written: what the scripts are given, and when they are run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tet_core.drafts import MAX_AHEAD_MS
from tet_core.pairs import Pair
from tet_core.stored import Announcement, Image, Keys, Patch
from tet_core.times import CLOCK_TOLERANCE_MS, SECOND_MS, Timeframe, iso_time

from .scripts import PATCH_SCRIPT, STAMP_SCRIPT, WRITE_SCRIPT, sha1_of


class Write(NamedTuple):
    """A script to be run, of which server follows from the first key; ``upload`` is to be there before."""

    script: str
    keys: Sequence[str]
    arguments: Sequence[bytes | str | int]
    upload: bytes | None = None


class Believed(NamedTuple):
    """Up to when the times of a stored value are believed, in ms: its last_update, and those of candles."""

    update_ms: int
    candle_ms: int

    @classmethod
    def at(cls, now_ms: int) -> Believed:
        """Those at a time of the exchange's clock."""
        return cls(now_ms + MAX_AHEAD_MS, now_ms + CLOCK_TOLERANCE_MS)


class Settings(Protocol):
    """Until when values are kept; both may change."""

    @property
    def kline_ttl(self) -> int:
        """Seconds."""

    @property
    def timestamp_ttl(self) -> int:
        """Seconds."""


class Writes:
    """Makes the writes of values and timestamps, which expire as the settings say.

    In a cluster a pair's keys are on two nodes: the value is written alone, then its timestamp, so that who
    trusts the timestamp never reads an older value.
    """

    def __init__(self, keys: Keys, settings: Settings, *, in_cluster: bool) -> None:
        self._keys = keys
        self._settings = settings
        self.in_cluster = in_cluster

    @property
    def _value_ms(self) -> int:
        return self._settings.kline_ttl * SECOND_MS

    @property
    def _stamp_ms(self) -> int:
        return self._settings.timestamp_ttl * SECOND_MS

    def whole(
        self, pair: Pair, image: Image, news: Announcement, unsound: bytes, believed: Believed
    ) -> Write:
        """A value whole, and its timestamp; ``unsound`` is the end of one that gives way though newer."""
        series, good = image.series, iso_time(image.dated_ms)
        candles = iso_time(series.closed_end_ms) + iso_time(series.opens[image.end - 1])
        latest = iso_time(believed.update_ms), iso_time(believed.candle_ms)
        age = (candles, good, *latest, series.timeframe.name, unsound)
        stamp = (good, self._stamp_ms, self._keys.updates, news.text)
        keys = self._of(pair, series.timeframe)
        return Write(WRITE_SCRIPT, keys, (*age, self._value_ms, *stamp), image.whole())

    def patch(self, pair: Pair, patch: Patch, news: Announcement) -> Write:
        """What changed of a value, and its timestamp."""
        held = (sha1_of(patch.held), sha1_of(patch.whole) if patch.whole else "")
        numbers = (
            *(patch.leaving_at, patch.kept_at, patch.coming_at, patch.coming_end, patch.coming_from),
            *(patch.fields_at, patch.fields_from, patch.blanks, self._value_ms, self._stamp_ms),
        )
        texts = (patch.coming, patch.fields, self._keys.updates, news.head, news.rest)
        keys = self._of(pair, patch.image.series.timeframe)
        return Write(PATCH_SCRIPT, keys, (*held, " ".join(map(str, numbers)), *texts))

    def stamp(self, pair: Pair, image: Image, news: Announcement, believed: Believed) -> Write:
        """In a cluster, the timestamp of a value that is written."""
        good = iso_time(image.dated_ms)
        channel = (self._keys.updates, news.text)
        key = self._keys.timestamp(image.series.timeframe, pair)
        return Write(STAMP_SCRIPT, [key], (good, iso_time(believed.update_ms), self._stamp_ms, *channel))

    def both_keys(self, pair: Pair, timeframe: Timeframe) -> list[str]:
        """A pair's keys: its value's, its timestamp's."""
        return [self._keys.kline(timeframe, pair), self._keys.timestamp(timeframe, pair)]

    def _of(self, pair: Pair, timeframe: Timeframe) -> list[str]:
        keys = self.both_keys(pair, timeframe)
        return keys[:1] if self.in_cluster else keys
