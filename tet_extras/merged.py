"""One status of several members': the object under tet:system:status where instances share the pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from tet_core.snapshot import Delays, DelaysBySource, FeedsByLink, Filling, LiveFigures, Member, Snapshot

Values = Sequence[Any]
Figures = TypeVar("Figures")

#: The first that any is in counts.
STATES = ("paused", "running", "starting", "finished", "stopped")


def _none(how: Callable[[Values], Any]) -> Callable[[Values], Any]:
    """The same, without the values that are None; None when no other is left."""
    return lambda values: how(known) if (known := [value for value in values if value is not None]) else None


def _first(values: Values) -> Any:
    return values[0]


def _union(values: Iterable[Iterable[Any]]) -> list[Any]:
    return list(dict.fromkeys(each for value in values for each in value))


def _joined(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: each for value in values for name, each in value.items()}


def _counted(values: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sum((Counter(value) for value in values), Counter[str]()))


def _state(values: Values) -> str:
    return next((state for state in STATES if state in values), "starting")


def _furthest(values: Values) -> Any:
    return max(values, key=abs)


def _unless_never(values: Values) -> Any:
    return None if None in values else min(values)


def _of_each(kind: type[Figures], how: Callable[[Values], Any] | None = None) -> Callable[[Values], Figures]:
    """Figures of figures: each of their fields of all, by that, else as `HOW` says."""

    def together(values: Values) -> Figures:
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: (how or HOW[name])([getattr(each, name) for each in values]) for name in names})

    return together


#: How a field of all is made of the members': totals, the worst of ages, or what one of them says.
HOW: dict[str, Callable[[Values], Any]] = {
    "state": _state,
    **dict.fromkeys("version market ttl_seconds".split(), _first),
    **dict.fromkeys("timeframes symbols warnings blind catching_up".split(), _union),
    **dict.fromkeys("invalid_symbols failed_symbols gaps proven closed_until".split(), _joined),
    **dict.fromkeys("requests_by_status request_errors reconnects messages_by_outcome".split(), _counted),
    "clock_skew_ms": _furthest,
    **dict.fromkeys(
        ("active_symbols successful_updates failed_updates updates_written updates_failed candles_received "
         "candles_closed candles_corrected candles_audited requests unsaved never_updated gaps_total "
         "stream_closes stream_closes_proven connections streams messages silent refused subscribed_again "
         "bad_frames queue").split(), sum),
    **dict.fromkeys(
        ("written uptime_seconds update_duration_seconds update_interval_seconds cycles "
         "used_weight").split(), max),
    **dict.fromkeys("data_freshness_max paused_until last_message_age_seconds".split(), _none(max)),
    **dict.fromkeys(
        ("last_full_scan next_cycle completeness_min weight_limit stream_closes_proven_share "
         "oldest_unproven_close").split(), _none(min)),
    "oldest_window_proof": _unless_never,
    **dict.fromkeys(("waiting_for", "store"), _none(_first)),
    # What follows from others, in `merged` and `_live`.
    **dict.fromkeys("pause_reason update_interval_reason data_freshness_avg members".split(), _first),
    "closes_by_stream_share": _first,
    "memory_mb": _none(lambda values: round(sum(values), 1)),
    "messages_per_second": lambda values: round(sum(values), 1),
    "simulated": any,
    "settings": lambda values: None,
    # All closes, and the worst member's delays: percentiles cannot be added up.
    "closes": sum, **dict.fromkeys(("p50", "p95", "p99"), _none(max)),
    "close_to_redis_seconds": lambda values: _of_each(Delays)(values),
    "close_to_redis_by_source": _of_each(DelaysBySource, _of_each(Delays)),
    "feeds": _of_each(FeedsByLink, sum),
    "filling": _none(lambda values: Filling(
        sum(each.filled for each in values), sum(each.of for each in values),
        _none(max)([each.seconds_left for each in values]))),
    "live": _none(lambda values: _live(values)),
}  # fmt: skip


def _live(values: Sequence[LiveFigures]) -> LiveFigures:
    """What the streams of all do, and which share of all closes they have brought."""
    live = _of_each(LiveFigures)(values)
    stream, rest = live.close_to_redis_by_source.stream.closes, live.close_to_redis_by_source.rest.closes
    share = round(stream / (stream + rest), 4) if stream + rest else None
    return replace(live, closes_by_stream_share=share)


def merged(statuses: Mapping[str, Snapshot], entries: Mapping[str, Mapping[str, str]]) -> Snapshot:
    """The members' statuses, one or more, by id, as one; ``entries`` has each one's group and egress."""
    found = list(statuses.values())
    status = _of_each(Snapshot)(found)
    of_pause = next(each for each in found if each.paused_until == status.paused_until)
    slowest = max(found, key=lambda each: each.update_interval_seconds)
    return replace(
        status,
        pause_reason=of_pause.pause_reason,
        update_interval_reason=slowest.update_interval_reason,
        data_freshness_avg=_mean_age(found),
        members=[_member(member, each, entries.get(member, {})) for member, each in sorted(statuses.items())],
    )


def _member(member: str, status: Snapshot, entry: Mapping[str, str]) -> Member:
    """What is shown of each member."""
    return Member(
        id=member,
        group=entry.get("group", ""),
        egress=entry.get("egress", ""),
        state=status.state,
        active_symbols=status.active_symbols,
        data_freshness_max=status.data_freshness_max,
        requests=status.requests,
        used_weight=status.used_weight,
        memory_mb=status.memory_mb,
        written=status.written,
    )


def _mean_age(found: Iterable[Snapshot]) -> float | None:
    """The mean age over all feeds that were updated, wherever they are."""
    ages = [(each.data_freshness_avg or 0.0, _updated(each)) for each in found if _updated(each)]
    return (
        round(sum(age * feeds for age, feeds in ages) / sum(feeds for _, feeds in ages), 1) if ages else None
    )


def _updated(status: Snapshot) -> int:
    """How many feeds of a member were updated."""
    if status.data_freshness_avg is None:
        return 0
    return max(0, len(status.symbols) * len(status.timeframes) - status.never_updated)
