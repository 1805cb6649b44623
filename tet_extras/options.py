"""What a row of the options table is: a setting's names, its type, its help; parsers for some types."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import click

from tet_core.pairs import TRADIFI

from .addresses import Refusal, shown_address


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

    def shown(self, text: str) -> str:
        """A text of this setting as it may be shown; what may be an address without what may be secret."""
        if self.secret:
            return "***"
        may_be_address = "://" in text or ("@" in text and self.metavar != "PAIRS")  # @top100/USDT
        return shown_address(text) if may_be_address or self.is_address else text

    @property
    def is_address(self) -> bool:
        """Whether it names a server."""
        return self.metavar in ("URL", "ADDRESS")

    def problem(self, text: str, origin: str, error: ValueError) -> str:
        """What is wrong with the text: the setting, its origin, what was found and what is allowed."""
        found = "a value that cannot be shown" if self.secret else repr(self.shown(text))
        may_repeat = "://" in text and not self.is_address  # what the error quotes of an address
        note = f" ({error})" if isinstance(error, Refusal) and not may_repeat else ""
        return f"{self.name} ({origin}): found {found}{note}; allowed: {self.allowed}"

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


def file_path(text: str) -> str:
    """The path of a file or folder; ``~`` is the user's home. Raises Refusal."""
    if re.search(r"[\x00-\x1f]", text):
        raise Refusal(
            "control characters in it: backslashes in double quotes are read as such; write the path in "
            "single quotes, or with / for each backslash"
        )
    found = os.path.expanduser(text)  # noqa: PTH111 (which raises no error where there is no home)
    if found.startswith("~"):
        raise Refusal("there is no such home folder")
    return found


#: What does not get better by waiting: the path is wrong, or may not be used.
_PATH_FAULTS = frozenset(
    (
        *(errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS),
    )
)


def is_path_at_fault(error: OSError) -> bool:
    """Whether another path would help; else the machine lacks something, such as room on its disk."""
    return error.errno in _PATH_FAULTS


_ASSET = r"[^\W_]{1,30}"
_WILDCARD = rf"(?:\*[/_-]{_ASSET}|{_ASSET}[/_-]\*|\*[/_-]\*)"
_TOP = rf"@top[1-9][0-9]{{0,3}}[/_-]{_ASSET}"
_SYMBOL = re.compile(
    rf"!?{_ASSET}(?:[/_-]{_ASSET})?|!{_WILDCARD}|(?:{_WILDCARD}|{_TOP})(?:{TRADIFI})?", re.IGNORECASE
)
_USDM = "of futures the perpetual ones are kept, as BTC/USDT with BINANCE_MARKET=usdm, BTC/USD with coinm"
#: What is no pair, though it is written like one or nearly so, and what it is.
_CONTRACTS = tuple(
    (re.compile(pattern, re.IGNORECASE), meaning)
    for pattern, meaning in (
        (
            rf"{_ASSET}[/_-]?{_ASSET}[/_:-]{_ASSET}-[0-9]{{6}}(-[0-9.]+-[CP])?",
            f"a contract with a date; {_USDM}",
        ),
        (rf"{_ASSET}([/_-]{_ASSET})?[_-][0-9]{{6}}", f"a delivery contract; {_USDM}"),
        (rf"{_ASSET}-[0-9]{{6}}-[0-9.]+-[CP]", f"an option; {_USDM}"),
        (rf"{_ASSET}[/_-]{_ASSET}:{_ASSET}", f"ccxt's name of a perpetual contract; {_USDM}"),
        (rf"{_ASSET}([/_-]{_ASSET})?[_-](PERP|SWAP)", f"a perpetual contract; {_USDM}"),
        (rf"{_ASSET}USDT?\.P|BINANCE:{_ASSET}(\.P)?", "TradingView's name; write the pair alone, as BTCUSDT"),
    )
)


def _as_letters(name: str) -> str:
    """A name with a letter for each mark and symbol, such as a vowel sign or an emoji, beyond ASCII."""
    kinds = ((each, unicodedata.category(each)[0]) for each in name)
    return "".join("x" if each > "\x7f" and kind in "MS" else each for each, kind in kinds)


def symbol_names(text: str) -> tuple[str, ...]:
    """Symbols as configured: upper case, a slash where there is a separator. Raises Refusal."""
    given = listed(text)
    names = [re.sub(r"[_-]", "/", name.upper()).replace("@TOP", "@top") for name in given]
    names = [name.replace(TRADIFI.upper(), TRADIFI) for name in names]
    contracts = [
        f"{name} is {meaning}"
        for name in given
        if (meaning := next((meaning for rule, meaning in _CONTRACTS if rule.fullmatch(name)), ""))
    ]
    if contracts:
        raise Refusal("; ".join(contracts))
    wrong = [name for name in given if not _SYMBOL.fullmatch(_as_letters(name))]
    if wrong or all(name.startswith("!") for name in names):
        raise Refusal(f"not a pair: {', '.join(wrong)}" if wrong else "no pair")
    return tuple(dict.fromkeys(names))


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


def with_flags(options: Iterable[Option], command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each option that has one."""
    for option in reversed(tuple(options)):
        if option.flag:
            default = f" [{option.default}]" if option.default and len(option.default) < 30 else ""
            # A switch may stand alone, or take a word: --public=false undoes the file's true.
            alone: dict[str, Any] = {"flag_value": "true"} if option.type is click.BOOL else {}
            command = click.option(
                option.flag,
                option.name,
                metavar=option.metavar,
                help=f"{option.help}{default}",
                is_flag=False,
                **alone,
            )(command)
    return command
