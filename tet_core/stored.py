"""The stored value: its keys, how it is made of a series, patched, and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import takewhile
from typing import NamedTuple
from zlib import crc32

from tet_core.candles import (
    FIELDS,
    OHLCV,
    Candles,
    Fields,
    check_opens,
    check_values,
    decode_json,
    differing,
    find_rows,
    make_candles,
    newest_of,
    rows_of,
)
from tet_core.errors import StoredValueError
from tet_core.pairs import Pair
from tet_core.series import Series
from tet_core.times import HOUR_MS, NEVER_MS, SECOND_MS, Timeframe, iso_time, parse_iso_time

DEFAULT_PREFIX = "tet"
COMPACT = json.JSONEncoder(separators=(",", ":")).encode


class Keys(NamedTuple):
    """What this service's keys and its channel are called: all begin with REDIS_PREFIX, but the pause."""

    prefix: str = DEFAULT_PREFIX

    def kline(self, timeframe: Timeframe, pair: Pair) -> str:
        """The key of a pair's candles."""
        return f"{self.prefix}:kline:{timeframe.name}:{pair.key}"

    def timestamp(self, timeframe: Timeframe, pair: Pair) -> str:
        """The key of a pair's time of the last good update."""
        return f"{self.prefix}:timestamp:{timeframe.name}:{pair.key}"

    @property
    def status(self) -> str:
        """The key of the status object."""
        return f"{self.prefix}:system:status"

    @property
    def claim(self) -> str:
        """The key that says what the values are made of, and who writes them."""
        return f"{self.prefix}:system:claim"

    @property
    def health(self) -> str:
        """The key by which a health check sees whether Redis takes writes."""
        return f"{self.prefix}:system:health"

    @property
    def members(self) -> str:
        """The key of the set of members; all of theirs are in one slot of a cluster, for one script."""
        return f"{self.prefix}:member:{{tet}}"

    @property
    def updates(self) -> str:
        """The channel on which updates are announced."""
        return f"{self.prefix}:updates"

    def selection(self, digest: str) -> str:
        """The key of what members of a group are set to keep, by its digest."""
        return f"{self.prefix}:selection:{digest}"

    def member_status(self, member: str) -> str:
        """The key of a member's own status."""
        return f"{self.prefix}:status:{member}"

    def upload(self, key: str, name: str) -> str:
        """The key of one upload of a value for another key, in a cluster on the node of that."""
        return f"{self.prefix}:upload:{{{key}}}:{name}"


def pause_key(market: str, egress: str | None) -> str:
    """The key of a pause. It is the address's, so that services of every prefix share it."""
    key = "tet:system:pause" if market == "spot" else f"tet:system:pause@{market}"
    return f"{key}:{egress}" if egress else key


#: How every stored value begins; its candles follow, with blanks before and behind them.
FRONT = b'{"ohlcv_data":"{'
#: Blanks behind the candles, for the window to slide into: as many as a 16th of the candles takes, so that a
#: value of 2,880 is laid out anew once in 180 closes or more, for 6 % more to read.
ROOM_SHARE = 16
LEAST_ROOM = 8  # candles
FIELDS_ROOM = 32  # blanks behind the fields, which get a few digits longer now and then
MOST_ALLOCATED = 1.12  # times a value's length may be its memory in Redis
ALLOCATED_ASIDE = 12  # bytes of a string's memory that are not its own
PATCHED_CANDLES = 8  # at the end, that may have changed for a patch; the others are compared as one
#: Where a value's mark stands in its fields: 48 blanks and tabs before the first of them, others in each
#: value that is written whole. JSON skips them, so that the contract's fields stay as they are; nothing else
#: would show a reader that a window has not slid, but was corrected in the middle.
MARK_BITS = 48
MARK = slice(len('",'), len('",') + MARK_BITS)
MOST_PATCHED = 1 << 16  # bytes of candles that come at once: more are cheaper as an upload


def allocated(length: int) -> int:
    """How many bytes jemalloc, Redis' allocator, takes for a string: a power of two has four sizes."""
    needed = length + ALLOCATED_ASIDE
    step = 1 << max(0, (needed - 1).bit_length() - 3)
    return -(-needed // step) * step


class Image(NamedTuple):
    """A value in Redis: which candles of a series it has, the blanks around them, and the fields behind.

    It is `FRONT`, ``before`` blanks, the candles, a brace, ``behind`` blanks, ``fields`` with the object's
    end, and ``filling`` blanks. ``size`` is how many bytes the candles have, ``completeness`` the share of
    those wanted, at most 1, ``dated_ms`` its last_update. ``proven_ms`` is when all of it was known to be in
    Redis: written whole, read back and found sound, or compared. Among values of the same last_update,
    ``recent_ms`` is when the oldest candle opened that has changed since the first of them. One that was
    read back ``is_ours`` if every byte is as this service writes it: else it cannot be patched.
    """

    series: Series
    start: int
    end: int
    size: int
    completeness: float
    fields: bytes
    dated_ms: int
    proven_ms: int
    before: int = 0
    behind: int = 0
    filling: int = 0
    recent_ms: int = NEVER_MS
    is_ours: bool = True

    @property
    def age(self) -> tuple[int, int, int]:
        """What is later of a newer value: the end of its closed candles, its newest one, its update."""
        return self.series.closed_end_ms, self.series.opens[self.end - 1], self.dated_ms

    @property
    def candles_at(self) -> int:
        """Where in the value the candles begin."""
        return len(FRONT) + self.before

    @property
    def candles_end(self) -> int:
        """Where they end."""
        return self.candles_at + self.size

    @property
    def fields_at(self) -> int:
        """Where the fields begin."""
        return self.candles_end + 1 + self.behind

    @property
    def end_of_value(self) -> bytes:
        """The fields, and the blanks behind them."""
        return self.fields + b" " * self.filling

    def whole(self) -> bytes:
        """The value: the JSON object under ``tet:kline:…``, see the module's docstring."""
        candles, blanks = self.series.joined(self.start, self.end), b" " * self.behind
        return b"".join((FRONT, b" " * self.before, candles, b"}", blanks, self.end_of_value))

    def candles_from(self, index: int) -> bytes:
        """What follows the candles before an index, one or more, up to the blanks."""
        candles = self.series.joined(index, self.end)
        return b"".join((b"," if candles else b"", candles, b"}"))

    def marked_as(self, old: Image) -> Image:
        """The same with another one's mark, if both have any: it is that value, patched."""
        if self.fields[MARK].strip(b" \t") or old.fields[MARK].strip(b" \t"):
            return self
        parts = self.fields[: MARK.start], old.fields[MARK], self.fields[MARK.stop :]
        return self._replace(fields=b"".join(parts))

    def with_room(self) -> Image:
        """The same with fresh blanks, as many more as leave Redis' allocator little to spare."""
        count = self.end - self.start
        room = max(LEAST_ROOM, count // ROOM_SHARE) * (self.size // count + 1)
        length = len(FRONT) + self.size + 1 + room + len(self.fields) + FIELDS_ROOM
        room += max(0, math.ceil(allocated(length) / MOST_ALLOCATED) - length)
        return self._replace(before=0, behind=room, filling=FIELDS_ROOM)


def mark_of(number: int) -> bytes:
    """The mark for a number of `MARK_BITS` bits."""
    return f"{number:0{MARK_BITS}b}".translate({ord("0"): " ", ord("1"): "\t"}).encode()


def make_image(series: Series, wanted: int, now_ms: int, closed_only: bool, mark: bytes = b"") -> Image:
    """How a series is stored. ``wanted`` is N, ``now_ms`` the time of the update.

    ``mark`` is one that no other value has, for the case that it is written whole.

    Raises StoredValueError when there is no candle to store, which with ``closed_only`` is so until the
    first one has closed.
    """
    end_ms = series.closed_end_ms
    end = series.stored_count(closed_only)
    if end == 0:
        raise StoredValueError("no closed candle yet")
    start = series.index(series.timeframe.shift(series.opens[end - 1], 1 - wanted))
    share = min(1.0, (end - start) / wanted)
    rest = {
        "last_candle_time": iso_time(series.opens[end - 1]),
        "last_update": iso_time(now_ms),
        "data_start": iso_time(series.opens[start]),
        "data_end": iso_time(end_ms),
        "data_completeness": share,
        "candle_count": end - start,
        "timeframe": series.timeframe.name,
        "data_age_seconds": max(0, now_ms // SECOND_MS - end_ms // SECOND_MS),
    }
    fields = b'",' + mark + COMPACT(rest).encode()[1:]
    size = series.size(start, end)
    return Image(series, start, end, size, share, fields, now_ms, now_ms).with_room()


def proof_interval_ms(name: str, audit_hours: float) -> int:
    """After how long Redis is to compare all of a feed's value: half of these hours at least, or of a day.

    Not all feeds at once: what they are called spreads them.
    """
    return round((audit_hours or 24) * HOUR_MS * (1 + crc32(name.encode()) / (1 << 32)) / 2)


class Patch(NamedTuple):
    """What turns one stored value into another in Redis, at three places, without the candles between them.

    From ``leaving_at`` to ``kept_at`` are the candles that leave: blanks take their place. From ``coming_at``
    to ``coming_end`` is what may have changed at the end of the candles, from ``fields_at`` on are fields;
    ``held`` is what the three hold before. ``coming`` goes to ``coming_from``, ``fields`` to ``fields_from``:
    what differs, and no length changes. Where there are too few blanks for that, the value is laid out anew:
    what is kept and all of ``coming`` moves to the front, then ``blanks`` follow, which are -1 otherwise.

    ``image`` is what is stored thereafter. Its candles from the index ``changed`` on are not all as in the
    value before, whose last_update is ``follows_ms``. ``whole`` is that value, where Redis is to compare all
    of it, and empty otherwise.
    """

    image: Image
    held: bytes
    leaving_at: int
    kept_at: int
    coming_at: int
    coming_end: int
    coming_from: int
    coming: bytes
    fields_at: int
    fields_from: int
    fields: bytes
    blanks: int
    changed: int
    follows_ms: int
    whole: bytes


def make_patch(old: Image, new: Image, proof_ms: int = NEVER_MS) -> Patch | None:
    """How to store ``new`` where ``old`` is; None where it is to be written whole.

    That is where no candle stays, where an older one has come or changed, and where very many are new. After
    ``proof_ms`` Redis is to compare all of the value.
    """
    held, series = old.series, new.series
    kept = held.index(series.opens[new.start])
    if not old.start <= kept < old.end or held.opens[kept] != series.opens[new.start]:
        return None
    shared = min(old.end - kept, new.end - new.start)
    same = max(0, shared - PATCHED_CANDLES)
    if not series.agrees(held, new.start, kept, same):
        return None
    before, after = held.entries(kept + same, old.end), series.entries(new.start + same, new.end)
    alike = (one == other for one, other in zip(before, after, strict=False))
    same += sum(takewhile(bool, alike))
    coming = new.candles_from(new.start + same)
    if not same or len(coming) > MOST_PATCHED:
        return None
    prove = new.proven_ms - old.proven_ms >= proof_ms
    return _patch(old, new.marked_as(old), kept, same, coming, prove)


def _patch(old: Image, new: Image, kept: int, same: int, coming: bytes, prove: bool) -> Patch:
    """The patch that keeps so many candles from the old index ``kept`` on, and lets others come."""
    stale, last = old.candles_from(kept + same), old.end_of_value
    coming_at = old.candles_end + 1 - len(stale)
    leaving = old.series.joined(old.start, kept) + b"," if kept > old.start else b""
    room = len(stale) + old.behind - len(coming)
    filling = len(last) - len(new.fields)
    fits, written, otherwise = room >= 0 and filling >= 0, (0, coming), (0, new.end_of_value)
    if fits:
        new = new._replace(before=old.before + len(leaving), behind=room, filling=filling)
        stale = stale.ljust(len(coming))
        written = differing(stale, coming.ljust(len(stale)))
        otherwise = differing(last, new.end_of_value)
    first = new.start + same
    changed_ms = min(new.series.opens[first] if first < new.end else NEVER_MS, old.recent_ms)
    is_same_second = new.dated_ms // SECOND_MS == old.dated_ms // SECOND_MS
    new = new._replace(
        recent_ms=changed_ms if is_same_second else NEVER_MS,
        proven_ms=new.proven_ms if prove else old.proven_ms,
    )
    return Patch(
        new,
        leaving + stale + last,
        old.candles_at,
        old.candles_at + len(leaving),
        coming_at,
        coming_at + len(stale),
        coming_at + written[0],
        written[1],
        old.fields_at,
        old.fields_at + otherwise[0],
        otherwise[1],
        -1 if fits else new.behind,
        max(new.start, new.series.index(changed_ms)),
        old.dated_ms,
        old.whole() if prove else b"",
    )


class Announcement(NamedTuple):
    """What is published of a write: a JSON object, in three parts of which the value has the second."""

    head: bytes
    fields: bytes
    rest: bytes

    @property
    def text(self) -> bytes:
        """All of it."""
        return b"".join(self)


def announce(pair: Pair, image: Image, patch: Patch | None, known_end_ms: int) -> Announcement:
    """What is published of a write that leaves ``image`` in Redis; see the module's docstring.

    ``known_end_ms`` is the end of the newest closed candle that readers knew of; 0 is none.
    """
    closed = image.series.closed_end_ms > known_end_ms > 0
    head = COMPACT({"symbol": pair.name, "candle_closed": closed})
    rest = "}"
    if patch:
        rows = rows_of(image.series.joined(patch.changed, image.end).decode())
        news = {"follows": iso_time(patch.follows_ms), "candles": rows}
        rest = "," + COMPACT(news)[1:]
    return Announcement(head[:-1].encode() + b",", image.fields[2:-1].lstrip(), rest.encode())


def read_stored_value(
    value: bytes,
    timeframe: Timeframe,
    wanted: int,
    now_ms: int,
    any_prices: bool = False,
    kept: Fields = OHLCV,
) -> Image:
    """Read back what was stored, trusting nothing; with ``any_prices`` also prices out of order.

    Those the exchange is believed only after it has repeated them: they are to be fetched again.

    Raises StoredValueError when it is not sound, was written for another timeframe or number of days or with
    other fields, or holds a candle from after ``now_ms`` (exchange time).
    """
    try:
        stored = decode_json(value)
        if not isinstance(stored, dict) or not isinstance(stored.get("ohlcv_data"), str):
            raise ValueError("not an object with ohlcv_data")
        checked = _stored_candles(stored["ohlcv_data"], timeframe, any_prices, kept)
        newest_ms = newest_of(checked)
        if newest_ms > now_ms:
            raise ValueError(f"a candle from the future: {iso_time(newest_ms)}")
        if parse_iso_time(stored.get("last_candle_time")) != newest_ms:
            raise ValueError("last_candle_time is not the newest candle's")
        _check_configuration(stored, len(checked), timeframe, wanted)
        end_ms = parse_iso_time(stored.get("data_end"))
        is_closed = end_ms > newest_ms
        if is_closed and not end_ms == timeframe.close_of(newest_ms) <= now_ms:
            raise ValueError("data_end calls a candle closed that is not")
        dated_ms = parse_iso_time(stored.get("last_update"))
        series = Series(timeframe).merge(checked, is_closed, wanted)
        if len(series) < len(checked):
            raise ValueError("candles from before its window")
        share = min(1.0, len(series) / wanted)
        count = len(series)
        blank = Image(series, 0, count, series.size(0, count), share, b"", dated_ms, now_ms)
        image = _image_of(value, stored["ohlcv_data"], blank)
        return image._replace(is_ours=image.whole() == value)
    except (ValueError, RecursionError, OverflowError) as error:
        raise StoredValueError(str(error)) from error


def _image_of(value: bytes, text: str, image: Image) -> Image:
    """The image of a value that was read back, with ``text`` in it, if it is as this service writes it."""
    before = len(text) - 1 - len(text[1:].lstrip(" "))
    behind = len(text) - len(text.rstrip(" "))
    image = image._replace(before=before, behind=behind)
    last = value[image.fields_at :]
    fields = last.rstrip(b" ")
    return image._replace(fields=fields, filling=len(last) - len(fields))


def _stored_candles(text: str, timeframe: Timeframe, any_prices: bool, kept: Fields) -> Candles:
    """The candles in ``ohlcv_data``, which must be as this service writes them."""
    entries = text[:1] + text[1:].strip(" ")
    first = (other.kept.match(entries, 1) for other in FIELDS.values() if other is not kept)
    if any(row and row[1] for row in first):
        raise ValueError("it was written with other FIELDS")
    times, *columns = zip(*find_rows(kept.kept, "{", entries), strict=True)
    opens_ms = list(map(parse_iso_time, times))
    check_opens(timeframe, opens_ms)
    if not any_prices:
        check_values(columns)
    return make_candles(opens_ms, times, columns)


def _check_configuration(stored: Mapping[str, object], count: int, timeframe: Timeframe, wanted: int) -> None:
    """A value gives its N by candle_count / data_completeness; a full one by its count alone."""
    share = stored.get("data_completeness")
    if stored.get("timeframe") != timeframe.name or stored.get("candle_count") != count:
        raise ValueError("timeframe or candle_count do not fit")
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"data_completeness cannot be {share!r:.40}")
    if round(count / share) != wanted:
        raise ValueError(f"it was written for {round(count / share)} candles, not {wanted}")
