"""One status of several members': the object under tet:system:status where instances share the pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Status = Mapping[str, Any]
Values = Sequence[Any]

STATES = (
    "paused",
    "running",
    "starting",
    "finished",
    "stopped",
)  # the first that any is in counts


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


def _delays(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All closes, and the worst member's delays: percentiles cannot be added up."""
    shares = {name: _none(max)([value.get(name) for value in values]) for name in ("p50", "p95", "p99")}
    return {"closes": sum(value.get("closes", 0) for value in values), **shares}


def _state(values: Values) -> str:
    return next((state for state in STATES if state in values), "starting")


def _furthest(values: Values) -> Any:
    return max(values, key=abs)


#: How a field of all is made of the members': totals, the worst of ages, or what one of them says.
HOW: dict[str, Callable[[Values], Any]] = {
    **dict.fromkeys(("state",), _state),
    **dict.fromkeys(("version", "market", "ttl_seconds"), _first),
    **dict.fromkeys(("timeframes", "symbols", "warnings"), _union),
    **dict.fromkeys(("invalid_symbols", "failed_symbols"), _joined),
    **dict.fromkeys(("requests_by_status", "request_errors"), _counted),
    "close_to_redis_seconds": _delays,
    "clock_skew_ms": _furthest,
    **dict.fromkeys(
        ("active_symbols successful_updates failed_updates updates_written updates_failed candles_received "
         "candles_closed requests unsaved never_updated").split(), sum),
    "memory_mb": _none(lambda values: round(sum(values), 1)),
    **dict.fromkeys(("written", "uptime_seconds", "update_duration_seconds", "cycles", "used_weight"), max),
    **dict.fromkeys(("update_interval_seconds", "update_interval_reason"), max),
    **dict.fromkeys(("data_freshness_max", "paused_until", "pause_reason"), _none(max)),
    **dict.fromkeys(("last_full_scan", "next_cycle", "completeness_min", "weight_limit"), _none(min)),
    "waiting_for": _none(_first),
}  # fmt: skip
#: What is told of each member.
TOLD = ("state", "active_symbols", "data_freshness_max", "requests", "used_weight", "memory_mb", "written")


def merged(statuses: Mapping[str, Status], entries: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    """The members' statuses, one or more, by id, as one; ``entries`` has each one's group and egress."""
    found = list(statuses.values())
    status: dict[str, Any] = {name: how([each[name] for each in found]) for name, how in HOW.items()}
    status["data_freshness_avg"] = _mean_age(found)
    status["members"] = [
        {"id": member, **entries.get(member, {}), **{name: each[name] for name in TOLD}}
        for member, each in sorted(statuses.items())
    ]
    return status


def _mean_age(found: Iterable[Status]) -> float | None:
    """The mean age over all feeds that were updated, wherever they are."""
    ages = [(each["data_freshness_avg"], _updated(each)) for each in found if _updated(each)]
    return (
        round(sum(age * feeds for age, feeds in ages) / sum(feeds for _, feeds in ages), 1) if ages else None
    )


def _updated(status: Status) -> int:
    """How many feeds of a member were updated."""
    if status["data_freshness_avg"] is None:
        return 0
    return max(0, len(status["symbols"]) * len(status["timeframes"]) - int(status["never_updated"]))


def is_whole(status: object) -> bool:
    """Whether an entry has all that is merged: another version's may not."""
    return isinstance(status, dict) and HOW.keys() | {"data_freshness_avg"} <= status.keys()
