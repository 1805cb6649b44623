"""Text on a terminal: how wide it is there, 80 columns, and colours for who wants them."""

from __future__ import annotations

import os
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

import click

WIDTH = 80
#: What a state, or a verdict, looks like; all else stays as it is.
COLOURS = {
    **dict.fromkeys(("fresh", "live", "ok", "running"), "green"),
    **dict.fromkeys(("failing", "polled", "catching up", "paused", "starting"), "yellow"),
    **dict.fromkeys(("stale", "missing", "not ours", "FAIL", "stopped", "!"), "red"),
}


def wants_colours() -> bool:
    """Whether stdout is a terminal whose reader has not refused colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(word: str) -> str:
    """A word in the colour of what it says, where colours are wanted."""
    colour = COLOURS.get(word.strip())
    return click.style(word, fg=colour) if colour and wants_colours() else word


def _spread(text: str) -> str:
    """The text with a filler behind each character that takes two columns, so that lengths are columns."""
    return "".join(f"{each}\0" if unicodedata.east_asian_width(each) in "WF" else each for each in text)


def columns(text: str) -> int:
    """How many columns a text takes; a mark stands on the letter before it."""
    return len(_spread(text)) - sum(unicodedata.category(each) in ("Mn", "Me") for each in text)


def wrapped(text: str, indent: str = "", width: int = WIDTH) -> list[str]:
    """Lines of at most 80 columns, or another ``width``; those behind the first begin with ``indent``."""
    lines = textwrap.wrap(_spread(text), width, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace("\0", "") for line in lines]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], optional: Sequence[str] = ()) -> list[str]:
    """Lines of a table as wide as what is in it; under a head that begins with ``>`` all stands at the right.

    Where it would be wider than 80 columns the gaps shrink, then those of its columns go that are
    ``optional``, the first named first; no cell is ever cut. The last one of each row is coloured.
    """
    cells = [[head.lstrip(">") for head in heads], *rows]
    kept, gap = list(range(len(heads))), "  "
    widths = [max(columns(row[place]) for row in cells) for place in kept]
    for head in ("", "", *optional):
        kept = [place for place in kept if heads[place] != head]
        if sum(widths[place] for place in kept) + len(gap) * (len(kept) - 1) <= WIDTH:
            break
        gap = " "
    lines = []
    for row in cells:
        *texts, last = [filled(row[place], widths[place], heads[place].startswith(">")) for place in kept]
        lines.append(gap.join([*texts, coloured(last.rstrip())]))
    return lines


def filled(text: str, width: int, at_right: bool = False) -> str:
    """The text with blanks before or behind it, so that it takes that many columns."""
    blanks = " " * (width - columns(text))
    return blanks + text if at_right else text + blanks
