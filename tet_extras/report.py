"""What --status, --health-check and --check-config show: text of 80 columns, or JSON."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Any, NamedTuple

import click

from tet_core.errors import some_of
from tet_core.pairs import is_wildcard
from tet_core.snapshot import KnownGap, LiveFigures, SettingsRead, Snapshot

from .figures import Estimate
from .terminal import coloured, filled, table, wrapped

MOST_GAPS = 5  # feeds whose gaps are shown
MAX_STATUS_AGE_SECONDS = 60.0  # it is written every 15 s: after so long the service counts as gone

_TAIL = re.compile(
    r'\\"close\\":\\"([0-9.]+)\\",\\"volume\\":\\"[0-9.]+\\"[^}]*}} *",'
    r'[ \t]*("last_candle_time":.*}) *$'
)  # blanks: room for what comes


#: States of a row that make a report one of problems, in words; {} is MAX_DATA_AGE.
_MEANINGS = {
    "stale": "older than {} s",
    "missing": "missing",
    "not ours": "damaged or another program's",
}


class Row(NamedTuple):
    """What is to be said of one pair in one timeframe."""

    symbol: str
    timeframe: str
    candles: int
    completeness: float
    newest: str
    age_seconds: float | None
    last_price: str
    state: str


def configured_pairs(symbols: Iterable[str], status: Snapshot | None) -> list[str]:
    """The symbols as pairs, as the status spells them, without those that are invalid."""
    known = {name.replace("/", ""): name for name in (status.symbols if status else ())}
    invalid = status.invalid_symbols if status else {}
    names = list(symbols)
    if any(map(is_wildcard, names)):  # only the service knows which pairs they stand for
        return list(known.values())
    names = [known.get(name.replace("/", ""), name) for name in names if name not in invalid]
    return [name for name in dict.fromkeys(names) if "/" in name]


@dataclass(frozen=True)
class Report:
    """The service's own status and its age, a row per pair and timeframe, and what is not well.

    ``found`` is the status as Redis has it: of another release it may have more.
    """

    found: Mapping[str, Any]
    status: Snapshot | None
    status_age_seconds: float
    rows: Sequence[Row]
    problems: Sequence[str]


def make_report(
    found: tuple[Mapping[str, Any], float] | None,
    tails: Iterable[tuple[str, str, bytes | Exception, object]],
    local_seconds: float,
    max_age_seconds: int,
) -> Report:
    """Judge what was found.

    ``found`` is the status and its age in seconds, None where there is none. ``tails`` has symbol, timeframe,
    the end of the stored value (empty where there is none) and the timestamp's value of each pair and
    timeframe. Ages are measured by exchange time where the status has it, else by ``local_seconds``.
    """
    texts, status_age_seconds = found or ({}, 0.0)
    status = Snapshot.of(texts) if found else None
    now_seconds, failed, links = local_seconds, {}, {}
    if status:
        failed = status.failed_symbols
        links = _links(status) | dict.fromkeys(status.closed_until, "closed")
        if status.written:
            now_seconds = seconds_of(status.written) + status_age_seconds
    rows = [_row(*tail, now_seconds, max_age_seconds, failed, links) for tail in tails]
    problems = list(_problems_in(status, status_age_seconds, rows, max_age_seconds))
    return Report(texts, status, status_age_seconds, rows, problems)


def _links(status: Snapshot) -> dict[str, str]:
    """With LIVE, for each pair and timeframe: live, catching up by REST, or polled (its stream is blind)."""
    if not status.live:
        return {}
    names = {f"{symbol} {frame}": "live" for symbol in status.symbols for frame in status.timeframes}
    names |= dict.fromkeys(status.live.catching_up, "catching up")
    return names | dict.fromkeys(status.live.blind, "polled")


def seconds_of(text: str) -> float:
    """A time such as 2024-01-01T12:00:00Z in seconds since the epoch. Raises ValueError."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()


def _row(
    symbol: str,
    timeframe: str,
    tail: bytes | Exception,
    timestamp: object,
    now_seconds: float,
    max_age_seconds: int,
    failed: Mapping[str, str],
    links: Mapping[str, str],
) -> Row:
    """Read a value's end alone, so that a glance at 500 pairs need not read 200 MB."""
    match = _TAIL.search(tail.decode(errors="replace")) if isinstance(tail, bytes) else None
    try:
        fields = json.loads("{" + match[2]) if match else {}
        updated_seconds = seconds_of(fields["last_update"])
        facts = fields["candle_count"], fields["data_completeness"], fields["last_candle_time"]
    except (ValueError, KeyError, TypeError):
        return Row(symbol, timeframe, 0, 0.0, "", None, "", "missing" if tail == b"" else "not ours")
    if isinstance(timestamp, bytes):  # it counts; the value may have been written before or after
        with suppress(ValueError):
            updated_seconds = seconds_of(timestamp.decode(errors="replace"))
    age_seconds = max(0.0, now_seconds - updated_seconds)
    name = f"{symbol} {timeframe}"
    state = "stale" if age_seconds > max_age_seconds else "failing" if name in failed else links.get(name, "")
    return Row(symbol, timeframe, *facts, age_seconds, match[1] if match else "", state or "fresh")


def _problems_in(
    status: Snapshot | None, status_age_seconds: float, rows: Sequence[Row], max_age_seconds: int
) -> Iterator[str]:
    if not status:
        yield (
            "no status in Redis: the service is not running, or uses another REDIS_ADDR, REDIS_DB or "
            "REDIS_PREFIX"
        )
    elif status.state == "stopped":
        yield f"the service was stopped {ago(status_age_seconds)} ago"
    elif status_age_seconds > MAX_STATUS_AGE_SECONDS and status.state != "finished":
        yield f"no status from the service for {ago(status_age_seconds)}"
    several = len({row.timeframe for row in rows}) > 1
    for state, meaning in _MEANINGS.items():
        names = [
            f"{row.symbol} {row.timeframe}" if several else row.symbol for row in rows if row.state == state
        ]
        if names:
            yield f"{len(names)} of {len(rows)} {meaning.format(max_age_seconds)}: {some_of(names)}"
    if not rows:
        yield "there is no symbol to look at"


def ago(seconds: float) -> str:
    """A time span for people: ``42 s``, ``12 min``, ``3 h 5 min``, ``2 d 4 h``."""
    whole = round(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if whole >= 3600:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if whole >= 120 else f"{whole} s"


def report_text(report: Report, page: str = "") -> str:
    """The report as text of 80 columns: what is not well, the service, and a table per timeframe.

    ``page`` is where a browser finds the same, if that is served.
    """
    lines = [line for text in _header(report) for line in wrapped(text, "  ")]
    if page:
        lines.append(f"page {page}")
    for problem in report.problems:
        first, *others = wrapped(f"! {problem}", "  ")
        lines += [f"{coloured('!')}{first[1:]}", *others]
    for name in dict.fromkeys(row.timeframe for row in report.rows):
        heads = (name, ">CANDLES", ">COMPLETE", "NEWEST (UTC)", ">     AGE", ">LAST PRICE", "STATE")
        rows = [_cells(row) for row in report.rows if row.timeframe == name]
        lines += ["", *table(heads, rows, optional=("NEWEST (UTC)", ">COMPLETE", ">CANDLES"))]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    age = "" if row.age_seconds is None else ago(row.age_seconds)
    newest = row.newest[5:16].replace("T", " ")
    share = math.floor(row.completeness * 10_000) / 100  # so that 100 % means all
    return [row.symbol, str(row.candles), f"{share:.2f}%", newest, age, row.last_price, row.state]


def _header(report: Report) -> Iterator[str]:
    """What the status key says, in sentences; nothing when there is none."""
    if not (status := report.status):
        return
    yield (
        f"tet-data-service {status.version}: {status.state}, up {ago(status.uptime_seconds)}, "
        f"status of {ago(report.status_age_seconds)} ago"
    )
    yield (
        f"interval {status.update_interval_seconds} s ({status.update_interval_reason}), "
        f"next cycle {status.next_cycle or 'not planned'}"
    )
    yield (
        f"weight {status.used_weight} of {status.weight_limit}, requests {status.requests}, "
        f"failed attempts {sum(status.request_errors.values())}, memory {status.memory_mb} MB"
    )
    if status.store:
        yield f"the data is {status.store}"
    if status.live:
        yield _streams_line(status.live)
    if status.stream_closes_proven_share is not None:
        share, oldest = status.stream_closes_proven_share, status.oldest_unproven_close or "none"
        yield f"closes of streams proven by REST: {share:.1%}, oldest unproven: {oldest}"
    if (delays := status.close_to_redis_seconds).closes:
        shares = f"p50 {delays.p50} s, p95 {delays.p95} s, p99 {delays.p99} s"
        yield f"from close to Redis: {shares} ({delays.closes} closes in a day)"
    for member in status.members or ():
        yield (
            f"member {member.id}: {member.state}, {member.active_symbols} pairs, "
            f"oldest update {ago(member.data_freshness_max or 0)} ago, requests {member.requests}"
        )
    if status.settings and status.settings.read:
        yield _settings_line(status.settings)
    yield from _troubles(status)


def _troubles(status: Snapshot) -> Iterator[str]:
    """What the service itself says is not as it should be; what many pairs share in one sentence."""
    if status.filling:
        yield status.filling.words()
    if status.paused_until:
        yield f"paused until {status.paused_until}: {status.pause_reason}"
    if status.waiting_for:
        yield f"waiting for {status.waiting_for}"
    for warning in status.warnings:
        yield f"warning: {warning}"
    yield from _gap_lines(status.gaps)
    closed = {name: f"session closed until {until}" for name, until in status.closed_until.items()}
    found = (("closed", closed), ("invalid", status.invalid_symbols), ("failed", status.failed_symbols))
    for title, entries in found:
        names: dict[str, list[str]] = {}
        for name, reason in entries.items():
            names.setdefault(reason, []).append(name)
        for reason, those in names.items():
            yield f"{title}: {some_of(those)}{f' ({len(those)})' if len(those) > 5 else ''}: {reason}"


def _gap_lines(gaps: Mapping[str, Sequence[KnownGap]]) -> Iterator[str]:
    """The newest gap of each feed, of the first few; all are in the JSON."""
    for name, found in list(gaps.items())[:MOST_GAPS]:
        newest, others = found[-1], f", {len(found) - 1} more" if len(found) > 1 else ""
        yield (
            f"gap: {name} from {newest.first}, {newest.candles} candles, known since "
            f"{newest.known_since}: {newest.reason}{others}"
        )
    if len(gaps) > MOST_GAPS:
        yield f"gap: {len(gaps) - MOST_GAPS} more have some, see --status --json"


def _settings_line(settings: SettingsRead) -> str:
    """When the settings were read again, and what came of it."""
    problems, later = settings.problems, settings.need_restart
    outcome = f", not taken over: {'; '.join(problems)}" if problems else ""
    waiting = f"; with a restart: {', '.join(later)}" if later else ""
    return f"settings read again {settings.read} ({settings.by}){outcome}{waiting}"


def _streams_line(live: LiveFigures) -> str:
    """How the streams are, in a sentence."""
    share, silence = live.closes_by_stream_share, live.last_message_age_seconds
    by_stream = "" if share is None else f", {share:.1%} of closes by stream"
    heard = "nothing heard" if silence is None else f"last message {ago(silence)} ago"
    return (
        f"live {live.feeds.live}, catching up {live.feeds.catching_up}, polled {live.feeds.blind}; "
        f"{live.connections} connections, {live.streams} streams, {live.messages_per_second} messages/s, "
        f"{heard}, {sum(live.reconnects.values())} reconnects{by_stream}"
    )


def report_json(report: Report) -> str:
    """The report as one JSON object."""
    found = {
        "healthy": not report.problems,
        "problems": list(report.problems),
        "silent_seconds": report.status_age_seconds if report.status else None,
        "status": dict(report.found) or None,
        "data": [row._asdict() for row in report.rows],
    }
    return json.dumps(found, indent=2, ensure_ascii=False)


def no_report(what: str, problem: str) -> str:
    """What --status or --health-check (``health``) says as JSON where it could not even begin to look."""
    if what == "status":
        return report_json(Report({}, None, 0.0, [], [problem]))
    if what == "verify":
        return json.dumps({"well": False, "problem": problem}, indent=2, ensure_ascii=False)
    checks = [{"name": "redis", "ok": False, "found": problem}]
    return json.dumps({"healthy": False, "checks": checks}, indent=2, ensure_ascii=False)


def show_checks(checks: Iterable[Any], *, as_json: bool) -> bool:
    """Print a line for each check (name, ok, found) as it is done, or all as JSON; whether all are well."""
    done = []
    for check in checks:
        done.append(check)
        if not as_json:
            first, *others = textwrap.wrap(check.found, 66)
            click.echo(f"{coloured('ok  ' if check.ok else 'FAIL')} {check.name:<8} {first}")
            for line in others:
                click.echo(f"{'':<13} {line}")
    healthy = all(check.ok for check in done)
    if as_json:
        found = {"healthy": healthy, "checks": [check._asdict() for check in done]}
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    return healthy


def cost_text(
    names: Sequence[str],
    left_out: tuple[Sequence[str], int],
    invalid: Mapping[str, str],
    cost: Estimate,
    weight: tuple[float, int, int],
    memory_limit_mb: int,
) -> str:
    """What SYMBOLS means: which pairs, and what they cost in weight, memory and bytes per hour.

    ``left_out`` has the names beyond MAX_SYMBOLS and that, ``weight`` what a minute costs in steady state,
    the exchange's limit, and what the first fill costs.
    """
    beyond, most = left_out
    lines = ["", f"SYMBOLS means {len(names)} pairs now: {some_of(names)}"]
    if beyond:
        lines.append(f"MAX_SYMBOLS {most} leaves out {len(beyond)}: {some_of(beyond)}")
    lines += [f"not served: {name}: {reason}" for name, reason in invalid.items()]
    lines += [
        f"weight: {weight[0]:,.0f} of {weight[1]:,} per minute; {weight[2]:,} for the first fill",
        f"requests: {cost.requests:,} per hour, {cost.requests / 3600:.1f} per second",
        f"memory: {cost.candles_bytes / 1e6:,.1f} MB for candles (MEMORY_LIMIT_MB {memory_limit_mb})",
        f"bytes per hour: {cost.bytes_from_binance / 1e6:,.1f} MB from Binance, "
        f"{cost.bytes_to_redis / 1e6:,.1f} MB to Redis",
    ]
    return "\n".join(line for text in lines for line in wrapped(text) or [""])


def config_table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Settings as a table of name, value and origin, 80 columns wide."""
    lines = []
    for name, value, origin in rows:
        values = wrapped(value.replace(",", ", "), width=30)
        cells = ([name], values, wrapped(origin, width=23))
        lines += [f"{a:<25} {filled(b, 30)} {c}".rstrip() for a, b, c in zip_longest(*cells, fillvalue="")]
    return "\n".join(lines)
