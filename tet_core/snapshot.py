"""The snapshot: the service's figures at one moment; the status, its text and the metrics follow from them.

Fields are named as in the JSON under ``tet:system:status``, whose readers know the names: they stay, others
may be added. Times are text, as there. What Redis has may be of another release: `Snapshot.of` reads of it
what this one knows, and nothing (0, "", None, no entries) for what is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

# What nobody compares has no __eq__ and no __repr__: to make them was a quarter of what this file costs
# at the start.

#: What is left out of the JSON where there is none of it; all else is null then.
OPTIONAL = {"store", "members", "streams"}


@dataclass(frozen=True)
class Delays:
    """From a candle's close to its being in Redis: how many closes in a day, and percentiles, in seconds."""

    closes: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, eq=False, repr=False)
class DelaysBySource:
    """The same of closes that were streamed, or that REST has brought."""

    stream: Delays
    rest: Delays


@dataclass(frozen=True)
class KnownGap:
    """A stretch of a window without candles: open times of the first and last, since when known, and why."""

    first: str
    last: str
    candles: int
    known_since: str
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Proven:
    """When REST has repeated a feed's whole window, and its newest candles, and for whom it was asked."""

    window: str | None
    window_by: str | None
    newest: str | None
    newest_by: str | None


@dataclass(frozen=True)
class FeedsByLink:
    """How many feeds are kept fresh by their stream, are caught up by REST, or polled (``blind``)."""

    live: int
    catching_up: int
    blind: int


@dataclass(frozen=True, eq=False, repr=False)
class ConnectionFigures:
    """How the connections to streams are."""

    connections: int
    streams: int
    messages: int
    messages_per_second: float
    silent: int
    refused: int
    subscribed_again: int
    bad_frames: int
    last_message_age_seconds: float | None
    reconnects: dict[str, int]


@dataclass(frozen=True, eq=False, repr=False)
class StreamFigures(ConnectionFigures):
    """Besides, what keeps the feeds fresh; ``blind`` and ``catching_up`` name those that REST does."""

    queue: int
    feeds: FeedsByLink
    blind: list[str]
    catching_up: list[str]


@dataclass(frozen=True, eq=False, repr=False)
class LiveFigures(StreamFigures):
    """Besides, what the messages did, and how soon closes were in Redis: the status' part with LIVE."""

    messages_by_outcome: dict[str, int]
    close_to_redis_by_source: DelaysBySource
    closes_by_stream_share: float | None


@dataclass(frozen=True)
class Filling:
    """So many of the feeds have candles; ``seconds_left`` is None while nobody knows."""

    filled: int
    of: int
    seconds_left: int | None

    def words(self) -> str:
        """For /health: filling, 75 of 150, some 20 s left."""
        left = f", some {self.seconds_left} s left" if self.seconds_left else ""
        return f"filling, {self.filled} of {self.of}{left}"


@dataclass(frozen=True, eq=False, repr=False)
class SettingsRead:
    """When the settings were read again and by what, what was wrong, and what needs a restart."""

    read: str | None
    by: str | None
    problems: list[str]
    need_restart: list[str]


@dataclass(frozen=True, eq=False, repr=False)
class Member:
    """One of several instances, in the status of all."""

    id: str
    group: str
    egress: str
    state: str
    active_symbols: int
    data_freshness_max: float | None
    requests: int
    used_weight: int
    memory_mb: float | None
    written: str


@dataclass(frozen=True, eq=False, repr=False)
class UpdateFigures:
    """What REST was asked for, what came of it, and when it is asked again."""

    last_full_scan: str | None
    successful_updates: int
    failed_updates: int
    update_duration_seconds: float
    update_interval_seconds: float
    update_interval_reason: str
    next_cycle: str | None
    cycles: int
    updates_written: int
    updates_failed: int
    candles_received: int
    candles_closed: int
    candles_corrected: int
    candles_audited: int
    close_to_redis_seconds: Delays


@dataclass(frozen=True, eq=False, repr=False)
class DataFigures:
    """How old the data is, and what of it is not in Redis. Ages are in seconds."""

    data_freshness_avg: float | None
    data_freshness_max: float | None
    never_updated: int
    completeness_min: float | None
    unsaved: int


@dataclass(frozen=True, eq=False, repr=False)
class EvidenceFigures:
    """What feeds lack and why, and when REST has proven what."""

    closed_until: dict[str, str]
    gaps: dict[str, list[KnownGap]]
    gaps_total: int
    proven: dict[str, Proven]
    oldest_window_proof: str | None


@dataclass(frozen=True, eq=False, repr=False)
class ProofFigures:
    """How far REST has repeated what was streamed."""

    stream_closes: int
    stream_closes_proven: int
    stream_closes_proven_share: float | None
    oldest_unproven_close: str | None


@dataclass(frozen=True, eq=False, repr=False)
class ExchangeFigures:
    """What was asked of the exchange, and its limits."""

    paused_until: str | None
    pause_reason: str | None
    used_weight: int
    weight_limit: int
    requests: int
    requests_by_status: dict[str, int]
    request_errors: dict[str, int]


@dataclass(frozen=True, eq=False, repr=False)
class Snapshot(ExchangeFigures, ProofFigures, EvidenceFigures, DataFigures, UpdateFigures):
    """All figures of the service, or of all members together."""

    state: str
    version: str
    written: str
    ttl_seconds: int
    uptime_seconds: int
    market: str
    timeframes: list[str]
    symbols: list[str]
    active_symbols: int
    invalid_symbols: dict[str, str]
    failed_symbols: dict[str, str]
    waiting_for: str | None
    clock_skew_ms: int
    warnings: list[str]
    memory_mb: float | None
    simulated: bool
    live: LiveFigures | None
    filling: Filling | None
    settings: SettingsRead | None
    store: str | None = None
    members: list[Member] | None = None

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> Snapshot:
        """What Redis has as the status, of this release or another one."""
        snapshot: Snapshot = _read(cls, status)
        return snapshot


@dataclass(frozen=True, eq=False, repr=False)
class Health:
    """Whether the main loop lives and the data is fresh, and why not: what /health says."""

    live: bool
    ready: bool
    reasons: list[str]
    streams: StreamFigures | None = None


def as_json(value: object) -> Any:
    """Figures as plain objects and lists, in the order of their fields."""
    if is_dataclass(value):
        found = vars(value).items()
        return {name: as_json(each) for name, each in found if each is not None or name not in OPTIONAL}
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, list | tuple) else value


@cache
def _kinds(figures: type) -> dict[str, Any]:
    return get_type_hints(figures)


def _read(kind: Any, found: Any) -> Any:
    """What was found as a value of that kind. Raises TypeError."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is UnionType:  # all of ours are of something or None
        return None if found is None else _read(inner[0], found)
    if is_dataclass(origin):
        given = {name: _nothing(each) for name, each in _kinds(kind).items()}
        for name in given.keys() & _checked(found, Mapping).keys():
            with suppress(TypeError):
                given[name] = _read(_kinds(kind)[name], found[name])
        return kind(**given)
    if origin is dict:
        return {name: _read(inner[1], each) for name, each in _checked(found, dict).items()}
    if origin is list:
        return [_read(inner[0], each) for each in _checked(found, list)]
    return _checked(found, int | float if kind is float else kind)


def _checked(found: Any, kind: Any) -> Any:
    if not isinstance(found, kind):
        raise TypeError
    return found


def _nothing(kind: Any) -> Any:
    origin = get_origin(kind) or kind
    return None if origin is UnionType else _read(kind, {}) if is_dataclass(origin) else origin()
