"""What --status, --health-check and --check-config show: text of 80 columns, or JSON."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Any, NamedTuple

import click

from .figures import Estimate, some_of
from .options import is_wildcard

MAX_STATUS_AGE_SECONDS = 60.0  # it is written every 15 s: after so long the service counts as gone

_TAIL = re.compile(
    r'\\"close\\":\\"([0-9.]+)\\",\\"volume\\":\\"[0-9.]+\\"}}",("last_candle_time":.*}) *$'
)  # blanks: of a patch


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


def configured_pairs(symbols: Iterable[str], status: Mapping[str, Any]) -> list[str]:
    """The symbols as pairs, as the status spells them, without those that are invalid."""
    known = {name.replace("/", ""): name for name in status.get("symbols") or ()}
    invalid = status.get("invalid_symbols") or {}
    names = list(symbols)
    if any(map(is_wildcard, names)):  # only the service knows which pairs they stand for
        return list(known.values())
    names = [known.get(name.replace("/", ""), name) for name in names if name not in invalid]
    return [name for name in dict.fromkeys(names) if "/" in name]


@dataclass(frozen=True)
class Report:
    """The service's own status and its age, a row per pair and timeframe, and what is not well."""

    status: Mapping[str, Any]
    status_age_seconds: float | None
    rows: Sequence[Row]
    problems: Sequence[str]


def make_report(
    status: Mapping[str, Any],
    status_age_seconds: float | None,
    tails: Iterable[tuple[str, str, bytes | Exception, object]],
    local_seconds: float,
    max_age_seconds: int,
) -> Report:
    """Judge what was found.

    ``status`` is empty and its age None where there is none. ``tails`` has symbol, timeframe, the end of
    the stored value (empty where there is none) and the timestamp's value of each pair and timeframe. Ages
    are measured by exchange time where the status has it, else by ``local_seconds``.
    """
    now_seconds = local_seconds
    if isinstance(status.get("written"), str):
        now_seconds = seconds_of(status["written"]) + (status_age_seconds or 0)
    failed, links = status.get("failed_symbols") or {}, _links(status)
    rows = [_row(*tail, now_seconds, max_age_seconds, failed, links) for tail in tails]
    problems = list(_problems_in(status, status_age_seconds, rows, max_age_seconds))
    return Report(status, status_age_seconds, rows, problems)


def _links(status: Mapping[str, Any]) -> dict[str, str]:
    """With LIVE, for each pair and timeframe: live, catching up by REST, or polled (its stream is blind)."""
    live = status.get("live")
    if not live:
        return {}
    frames = status.get("timeframes") or ()
    names = {f"{symbol} {frame}": "live" for symbol in status.get("symbols") or () for frame in frames}
    names |= dict.fromkeys(live.get("catching_up", ()), "catching up")
    return names | dict.fromkeys(live.get("blind", ()), "polled")


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
    status: Mapping[str, Any], status_age_seconds: float | None, rows: Sequence[Row], max_age_seconds: int
) -> Iterator[str]:
    if status_age_seconds is None:
        yield "no status in Redis: the service is not running, or uses another REDIS_ADDR or REDIS_DB"
    elif status.get("state") == "stopped":
        yield f"the service was stopped {ago(status_age_seconds)} ago"
    elif status_age_seconds > MAX_STATUS_AGE_SECONDS and status.get("state") != "finished":
        yield f"no status from the service for {ago(status_age_seconds)}"
    for state, meaning in (("stale", f"older than {max_age_seconds} s"), ("missing", "missing")):
        names = [row.symbol for row in rows if row.state == state]
        if names:
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            yield f"{len(names)} of {len(rows)} {meaning}: {some}"
    for row in rows:
        if row.state == "not ours":
            yield f"{row.symbol} {row.timeframe}: the value is damaged or another program's"
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
    lines = [*_header_lines(report.status, report.status_age_seconds)]
    if page:
        lines.append(f"page {page}")
    for problem in report.problems:
        lines += textwrap.wrap(f"! {problem}", 80, subsequent_indent="  ")
    for name in dict.fromkeys(row.timeframe for row in report.rows):
        lines += ["", f"{name:<15} CANDLES COMPLETE  NEWEST (UTC)       AGE     LAST PRICE STATE"]
        lines += [_row_line(row) for row in report.rows if row.timeframe == name]
    return "\n".join(lines)


def _row_line(row: Row) -> str:
    age = "" if row.age_seconds is None else ago(row.age_seconds)
    newest = row.newest[5:16].replace("T", " ")
    share = math.floor(row.completeness * 10_000) / 100  # so that 100 % means all
    return (
        f"{row.symbol:<14.14} {row.candles:>8} {share:>7.2f}%  {newest:<12} {age:>10} "
        f"{row.last_price:>14.14} {row.state}"
    )


def _header_lines(status: Mapping[str, Any], status_age_seconds: float | None) -> Iterator[str]:
    """What the status key says, in sentences; nothing when there is none."""
    if status_age_seconds is None:
        return
    of: Callable[[str], Any] = status.get
    yield (
        f"tet-data-service {of('version')}: {of('state')}, up {ago(of('uptime_seconds') or 0)}, "
        f"status of {ago(status_age_seconds)} ago"
    )
    yield from textwrap.wrap(
        f"interval {of('update_interval_seconds')} s ({of('update_interval_reason')}), "
        f"next cycle {of('next_cycle') or 'not planned'}",
        80,
    )
    yield (
        f"weight {of('used_weight')} of {of('weight_limit')}, requests {of('requests')}, "
        f"failed attempts {sum((of('request_errors') or {}).values())}, memory {of('memory_mb')} MB"
    )
    if of("live"):
        yield from textwrap.wrap(_streams_line(of("live")), 80)
    delays = of("close_to_redis_seconds") or {}
    if delays.get("closes"):
        shares = ", ".join(f"{name} {delays.get(name)} s" for name in ("p50", "p95", "p99"))
        yield f"from close to Redis: {shares} ({delays['closes']} closes in a day)"
    for member in of("members") or ():
        yield textwrap.shorten(
            f"member {member.get('id')}: {member.get('state')}, {member.get('active_symbols')} pairs, "
            f"oldest update {ago(member.get('data_freshness_max') or 0)} ago, "
            f"requests {member.get('requests')}",
            80,
        )
    if of("paused_until"):
        yield from textwrap.wrap(f"paused until {of('paused_until')}: {of('pause_reason')}", 80)
    if of("waiting_for"):
        yield from textwrap.wrap(f"waiting for {of('waiting_for')}", 80)
    for title, entries in (("invalid", of("invalid_symbols")), ("failed", of("failed_symbols"))):
        for name, reason in (entries or {}).items():
            yield from textwrap.wrap(f"{title}: {name}: {reason}", 80, subsequent_indent="  ")


def _streams_line(live: Mapping[str, Any]) -> str:
    """How the streams are, in a sentence."""
    feeds, reconnects = live["feeds"], sum(live.get("reconnects", {}).values())
    share = live.get("closes_by_stream_share")
    by_stream = "" if share is None else f", {share:.1%} of closes by stream"
    silence = live.get("last_message_age_seconds")
    heard = "nothing heard" if silence is None else f"last message {ago(silence)} ago"
    return (
        f"live {feeds['live']}, catching up {feeds['catching_up']}, blind {feeds['blind']}; "
        f"{live['connections']} connections, {live['streams']} streams, "
        f"{live['messages_per_second']} messages/s, {heard}, {reconnects} reconnects{by_stream}"
    )


def report_json(report: Report) -> str:
    """The report as one JSON object."""
    found = {
        "healthy": not report.problems,
        "problems": list(report.problems),
        "silent_seconds": report.status_age_seconds,
        "status": dict(report.status) or None,
        "data": [row._asdict() for row in report.rows],
    }
    return json.dumps(found, indent=2, ensure_ascii=False)


def show_checks(checks: Iterable[Any], *, as_json: bool) -> bool:
    """Print a line for each check (name, ok, found) as it is done, or all as JSON; whether all are well."""
    done = []
    for check in checks:
        done.append(check)
        if not as_json:
            wrapped = textwrap.wrap(check.found, 66)
            click.echo(f"{'ok  ' if check.ok else 'FAIL'} {check.name:<8} {wrapped[0]}")
            for line in wrapped[1:]:
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
    """What wildcards mean: which pairs, and what they cost in weight, memory and bytes per hour.

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
        f"memory: {cost.candles_bytes / 1e6:,.0f} MB for candles (MEMORY_LIMIT_MB {memory_limit_mb})",
        f"bytes per hour: {cost.bytes_from_binance / 1e6:,.1f} MB from Binance, "
        f"{cost.bytes_to_redis / 1e6:,.0f} MB to Redis",
    ]
    return "\n".join(line for text in lines for line in textwrap.wrap(text, 80) or [""])


def config_table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Settings as a table of name, value and origin, 80 columns wide."""
    lines = []
    for name, value, origin in rows:
        cells = ([name], textwrap.wrap(value.replace(",", ", "), 30), textwrap.wrap(origin, 23))
        lines += [f"{a:<25} {b:<30} {c}".rstrip() for a, b, c in zip_longest(*cells, fillvalue="")]
    return "\n".join(lines)


def show_verdict(name: str, verdict: Any, iso_time: Callable[[int], str]) -> None:
    """Print what --verify found of a feed (candles, found, problem), if anything is wrong."""
    if verdict.problem:
        click.echo(f"{name}: {verdict.problem}")
    for each in verdict.found:
        click.echo(f"{name} {iso_time(each.open_ms)}")
        for where, entry in (("redis", each.held), ("binance", each.sent)):
            click.echo(f"  {where:<8} {_plain(entry) or 'no candle'}")


def _plain(entry: str) -> str:
    """A candle's entry as people read it: ``open 1, high 2, low 1, close 2, volume 5``."""
    _, _, values = entry.replace("\\", "").partition(":{")
    return values.rstrip("}").replace('"', "").replace(":", " ").replace(",", ", ")


def verdicts_text(verdicts: Sequence[Any], requests: int, *, repair: bool) -> str:
    """The summary of --verify."""
    candles = sum(verdict.candles for verdict in verdicts)
    differing = [verdict for verdict in verdicts if verdict.found or verdict.problem]
    found = sum(len(verdict.found) for verdict in verdicts)
    text = f"{candles:,} closed candles of {len(verdicts)} values compared in {requests} requests: "
    if not differing:
        return text + ("no difference" if verdicts else "there is no symbol to look at")
    text += f"{found} differ, {len(differing)} values are wrong"
    return text + ("; written as the exchange has them" if repair else "; --verify --repair mends them")
