"""What a row of the options table is: a setting's names, its type, its help; parsers for some types."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import click

from .addresses import Refusal


class Parsed(NamedTuple):
    """A type of setting with a parser of ours: ``name`` for --help, and in words what is ``allowed``.

    ``parse`` raises ValueError for what is not.
    """

    name: str
    allowed: str
    parse: Callable[[str], Any]


@dataclass(frozen=True)
class Option:
    """A row of the options table: a setting's names, default, type and help.

    ``default`` is text, parsed like any other; None means unset.
    """

    name: str
    flag: str | None
    default: str | None
    type: Any  # one of click's, or Parsed
    help: str
    secret: bool = False

    def parse(self, text: str) -> Any:
        """The value that the text stands for. Raises ValueError for what is not allowed."""
        if isinstance(self.type, Parsed):
            return self.type.parse(text)
        if isinstance(self.type, click.IntRange | click.FloatRange) and not re.fullmatch("[0-9.e+-]+", text):
            raise ValueError("not a plain number")  # Python also reads 1_000, nan and other scripts' digits
        try:
            return self.type.convert(text, None, None)
        except click.UsageError as error:
            raise ValueError(error.message) from None

    @property
    def allowed(self) -> str:
        """In words, what is allowed."""
        match self.type:
            case click.IntRange():
                return f"a whole number, {self.type.min} to {self.type.max}"
            case click.FloatRange():
                return f"a number, {self.type.min:g} to {self.type.max:g}"
            case click.Choice():
                return " or ".join(self.type.choices)
            case Parsed():
                return self.type.allowed
        return "true or false"

    @property
    def metavar(self) -> str:
        """What stands for the value in --help."""
        match self.type:
            case click.Choice():
                return f"[{'|'.join(self.type.choices)}]"
            case click.types.BoolParamType():
                return "[BOOL]"
        return str(self.type.name).removesuffix(" range").upper()


def listed(text: str) -> list[str]:
    """The parts of a text, between commas or blanks, each once."""
    return list(dict.fromkeys(part for part in re.split(r"[,\s]+", text) if part))


_ASSET = r"[^\W_]{1,30}"
_SYMBOL = re.compile(
    rf"!?{_ASSET}(?:[/_-]{_ASSET})?|!?(?:\*[/_-]{_ASSET}|{_ASSET}[/_-]\*|\*[/_-]\*)|@top[1-9][0-9]{{0,3}}[/_-]{_ASSET}",
    re.IGNORECASE,
)


def symbol_names(text: str) -> tuple[str, ...]:
    """Symbols as configured: upper case, a slash where there is a separator. Raises Refusal."""
    names = [re.sub(r"[_-]", "/", name.upper()).replace("@TOP", "@top") for name in listed(text)]
    wrong = [name for name in listed(text) if not _SYMBOL.fullmatch(name)]
    if wrong or all(name.startswith("!") for name in names):
        raise Refusal(f"not a pair: {', '.join(wrong)}" if wrong else "no pair")
    return tuple(dict.fromkeys(names))


def is_wildcard(name: str) -> bool:
    """Whether a symbol as configured stands for more or less than one pair."""
    return name[0] in "!@" or "*" in name


def member_name(text: str) -> str:
    """A name that may be part of a key. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text):
        raise ValueError
    return text


def shard(text: str) -> tuple[int, int]:
    """Which share of how many: ``2/5``. Raises ValueError."""
    match = re.fullmatch("([1-9][0-9]{0,3})/([1-9][0-9]{0,3})", text)
    number, shards = map(int, match.groups() if match else (0, 0))
    if not 1 <= number <= shards <= 1000:
        raise ValueError
    return number, shards


def api_key(text: str) -> str:
    """A key, checked. Raises ValueError."""
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError
    return text
