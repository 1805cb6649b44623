"""What --verify says: what differs, what it skips, for how long it waits, and a summary."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from tet_core.errors import LOGGER
from tet_core.odd_rows import BELIEVED, LEFT_OUT
from tet_core.protocols import Gate
from tet_core.times import iso_time

from .report import ago, no_report

#: Events of the log that say of a feed what is not compared, or otherwise than it stands, in words.
NAMED = {
    LEFT_OUT: "{at}: skipped, an odd row: {reason}",
    BELIEVED: "{at}: an odd row, believed: {reason}",
    "more odd rows": "{rows} more odd rows",
    "stored value not usable, backfilling": "the value in Redis is not usable: {reason}",
}


class _Named(logging.Handler):
    """Prints the events that are `NAMED`; what else is logged is the service's."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it, if it is one of those."""
        if words := NAMED.get(record.getMessage()):
            facts = getattr(record, "facts", {})
            click.echo(f"{facts.get('feed')}: {words.format_map(facts)}")


@contextmanager
def naming_what_is_odd() -> Iterator[None]:
    """Print what is odd about a feed for as long as the block lasts."""
    handler = _Named(logging.WARNING)
    logging.getLogger(LOGGER).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(LOGGER).removeHandler(handler)


def show_skipped(invalid: Mapping[str, str], left_out: Sequence[str], max_symbols: int) -> None:
    """Say what --verify does not look at: what the exchange does not trade, and what is one too many."""
    for name, reason in invalid.items():
        click.echo(f"{name}: skipped: {reason}")
    if left_out:
        click.echo(f"skipped, beyond MAX_SYMBOLS {max_symbols}: {', '.join(left_out)}")


def with_waits_shown(gate: Gate, look: Callable[[], None]) -> Callable[[], None]:
    """What to call each second in place of ``look``: it says, too, how long a pause is waited out."""
    shown_ms = 0

    def tick() -> None:
        nonlocal shown_ms
        look()
        if (left_seconds := gate.pause_left_seconds()) and gate.paused_until_ms != shown_ms:
            shown_ms = gate.paused_until_ms
            click.echo(f"waiting for {ago(left_seconds)}: {gate.pause_reason}", err=True)

    return tick


def show_verdict(name: str, verdict: Any) -> None:
    """Print what --verify found of a feed (candles, found, problem, failure), if anything is wrong."""
    for text in filter(None, (verdict.problem, verdict.failure)):
        click.echo(f"{name}: {text}")
    for each in verdict.found:
        click.echo(f"{name} {iso_time(each.open_ms)}")
        for where, entry in (("redis", each.held), ("binance", each.sent)):
            click.echo(f"  {where:<8} {_plain(entry) or 'no candle'}")


def show_pause(seconds: float, reason: str, *, as_json: bool) -> None:
    """Say that nothing was asked, and until when nothing may be."""
    problem = f"not asked: a pause of {ago(seconds)} more is on: {reason}"
    click.echo(no_report("verify", problem) if as_json else problem, err=not as_json)


def show_all(
    verdicts: Mapping[str, Any], skipped: Mapping[str, str], requests: int, *, repair: bool, as_json: bool
) -> bool:
    """Print the summary, or all as JSON; returns whether all is well."""
    found = list(verdicts.values())
    is_well = bool(found) and not any(each.found or each.problem or each.failure for each in found)
    if as_json:
        click.echo(verdicts_json(verdicts, skipped, requests, is_well=is_well))
    else:
        click.echo(verdicts_text(found, requests, repair=repair))
    return is_well


def verdicts_json(
    verdicts: Mapping[str, Any], skipped: Mapping[str, str], requests: int, *, is_well: bool
) -> str:
    """All of it as one JSON object, by the feed's name; candles as they are stored."""
    values = {
        name: {
            "candles": verdict.candles,
            "problem": verdict.problem or None,
            "failure": verdict.failure or None,
            "differs": [
                {"open": iso_time(each.open_ms), "redis": _candle(each.held), "binance": _candle(each.sent)}
                for each in verdict.found
            ],
        }
        for name, verdict in verdicts.items()
    }
    found = {"well": is_well, "requests": requests, "skipped": dict(skipped), "values": values}
    return json.dumps(found, indent=2, ensure_ascii=False)


def _candle(entry: str) -> dict[str, str] | None:
    """A candle's entry as an object; None where there is none."""
    _, _, values = entry.replace("\\", "").partition(":{")
    found: dict[str, str] | None = json.loads("{" + values) if values else None
    return found


def _plain(entry: str) -> str:
    """A candle's entry as people read it: ``open 1, high 2, low 1, close 2, volume 5``."""
    _, _, values = entry.replace("\\", "").partition(":{")
    return values.rstrip("}").replace('"', "").replace(":", " ").replace(",", ", ")


def verdicts_text(verdicts: Sequence[Any], requests: int, *, repair: bool) -> str:
    """The summary of --verify."""
    candles = sum(verdict.candles for verdict in verdicts)
    wrong = [verdict for verdict in verdicts if verdict.found or verdict.problem]
    not_compared = sum(bool(verdict.failure) for verdict in verdicts if verdict not in wrong)
    text = f"{candles:,} closed candles of {len(verdicts)} values compared in {requests} requests: "
    parts = [f"{not_compared} could not be compared"] if not_compared else []
    if wrong:
        found = sum(len(verdict.found) for verdict in wrong)
        repaired = sum(not verdict.failure for verdict in wrong)
        parts.append(f"{found} differ, {len(wrong)} values are wrong")
        if not repair:
            parts.append("--verify --repair mends them")
        elif repaired == len(wrong):
            parts.append("written as the exchange has them")
        else:
            parts.append(f"{repaired} written as the exchange has them, {len(wrong) - repaired} not repaired")
    elif not verdicts:
        parts.append("there is no symbol to look at")
    return text + ("; ".join(parts) or "no difference")
