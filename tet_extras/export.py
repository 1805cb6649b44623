"""--export: the closed candles of a pair as a file, read from Redis alone."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import click

from tet_core.errors import StoredValueError, TetError
from tet_core.times import parse_iso_time

FORMATS = ("csv", "ndjson", "parquet")
Row = Sequence[str]


class Wanted(NamedTuple):
    """What is to be exported: a pair, the format, and the file; "-" is stdout."""

    pair: str
    format: str
    output: str


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of an export."""
    for option in (
        click.option("--output", metavar="FILE", help="With --export: where to; stdout by default."),
        click.option(
            "--format", "file_format", type=click.Choice(FORMATS), help="With --export: csv by default."
        ),
        click.option("--export", "exported", metavar="PAIR", help="Write a pair's closed candles: 0 or 1."),
    ):
        command = option(command)
    return command


def taken(flags: dict[str, str | None]) -> Wanted | None:
    """Take the flags of an export out of all flags; None where none is wanted."""
    pair, file_format, output = (flags.pop(name) for name in ("exported", "file_format", "output"))
    if pair is None:
        if file_format or output:
            raise click.UsageError("--format and --output go with --export")
        return None
    wanted = Wanted(
        pair.strip().upper().replace("-", "/").replace("_", "/"), file_format or "csv", output or "-"
    )
    if wanted.format == "parquet" and wanted.output == "-":
        raise click.UsageError("--format=parquet needs --output=FILE")
    return wanted


def closed_rows(value: bytes) -> list[Row]:
    """The names of the columns, then a stored value's closed candles, as text, oldest first.

    Raises StoredValueError when it is none.
    """
    try:
        stored = json.loads(value)
        candles = json.loads(stored["ohlcv_data"])
        names = list(next(iter(candles.values()), {}))
        closed = [[at, *candle.values()] for at, candle in candles.items() if at < stored["data_end"]]
        return [["time", *names], *closed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoredValueError(f"the stored value cannot be read: {error}") from error


def write(rows: Sequence[Row], wanted: Wanted) -> None:
    """Write rows, of which the first names the columns; a file appears whole or not at all.

    Raises TetError.
    """
    body = _parquet(rows) if wanted.format == "parquet" else _text(rows, wanted.format).encode()
    if wanted.output == "-":
        sys.stdout.write(body.decode())
        return
    path = Path(wanted.output)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(body)
        part.replace(path)
    except OSError as error:
        raise TetError(f"{path} cannot be written: {error.strerror}") from error


def _text(rows: Sequence[Row], file_format: str) -> str:
    """Exact values: csv with a header, or a JSON object a line."""
    if file_format == "ndjson":
        lines = (json.dumps(dict(zip(rows[0], row, strict=True)), separators=(",", ":")) for row in rows[1:])
        return "".join(f"{line}\n" for line in lines)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _parquet(rows: Sequence[Row]) -> bytes:
    """Times in UTC and floats. Raises TetError where pyarrow is not installed."""
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        hint = "pip install pyarrow" + (
            ", and run the zipapp or the source" if hasattr(sys, "frozen") else ""
        )
        raise TetError(f"parquet needs pyarrow: {hint}; csv and ndjson need nothing") from None
    times = [parse_iso_time(row[0]) for row in rows[1:]]
    columns: dict[str, Any] = {"time": pyarrow.array(times, pyarrow.timestamp("ms", "UTC"))}
    for number, name in enumerate(rows[0][1:], 1):
        columns[name] = pyarrow.array([float(row[number]) for row in rows[1:]], pyarrow.float64())
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()
