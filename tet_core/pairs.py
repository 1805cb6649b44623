"""Pairs: their names, and which of the exchange's symbols the configured ones mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tet_core.markets import status_words

SAME_ASSET = 0.6  # how alike two assets are at least, one of which may be a slip of the other
SAME_SYMBOL = 0.85  # the same of whole symbols, which share their quote


class Pair(NamedTuple):
    """A trading pair: ``name`` for people, ``key`` in Redis keys, ``symbol`` at the exchange.

    ``listed_as`` is that symbol where it is another than base and quote.
    """

    base: str
    quote: str
    listed_as: str = ""

    @property
    def name(self) -> str:
        """BTC/USDT"""
        return f"{self.base}/{self.quote}"

    @property
    def key(self) -> str:
        """BTC_USDT"""
        return f"{self.base}_{self.quote}"

    @property
    def symbol(self) -> str:
        """BTCUSDT, or BTCUSD_PERP"""
        return self.listed_as or f"{self.base}{self.quote}"


def plain_symbol(name: str) -> str:
    """A pair's name or symbol, however it is written: BTC/USDT, BTC_USDT and BTC-USDT are BTCUSDT."""
    return name.translate({ord("/"): None, ord("_"): None, ord("-"): None})


def is_wildcard(name: str) -> bool:
    """Whether a symbol as configured stands for more or less than one pair."""
    return name[0] in "!@" or "*" in name


#: What comes behind a wildcard that means stocks and metals, not crypto: ``*/USDT:tradifi``.
TRADIFI = ":tradifi"
PERPETUAL, TRADIFI_PERPETUAL = "PERPETUAL", "TRADIFI_PERPETUAL"


class Listing(NamedTuple):
    """A symbol as exchangeInfo has it; ``contract`` and ``underlying`` are those of futures."""

    symbol: str
    status: str
    base: str
    quote: str
    contract: str = ""
    underlying: str = ""

    @property
    def name(self) -> str:
        """By what a pair is found: base and quote without a slash; of what is no pair, the symbol.

        A contract that is delivered has its symbol alone.
        """
        is_pair = self.contract in (PERPETUAL, TRADIFI_PERPETUAL)
        return f"{self.base}{self.quote}" if is_pair else self.symbol

    @property
    def is_tradifi(self) -> bool:
        """Whether it follows a market with sessions: stocks, metals."""
        return self.contract == TRADIFI_PERPETUAL

    @property
    def is_wild(self) -> bool:
        """Whether a wildcard may mean it: a pair that trades now, of a kind that is known."""
        is_known = self.contract in ("", PERPETUAL, TRADIFI_PERPETUAL)
        return self.status == "TRADING" and is_known and self.name == f"{self.base}{self.quote}"

    @property
    def pair(self) -> Pair:
        """The pair that it lists."""
        symbol = self.symbol if self.symbol != f"{self.base}{self.quote}" else ""
        return Pair(self.base, self.quote, symbol)


def resolve_symbols(
    wanted: Iterable[str], listings: Mapping[str, Listing]
) -> tuple[dict[Pair, None], dict[str, str]]:
    """Sort the wanted symbols by exchangeInfo: pairs that trade, in order, and the others with the reason.

    ``listings`` are by `Listing.name`. A name without a slash is split where the exchange splits it.
    """
    pairs: dict[Pair, None] = {}
    invalid: dict[str, str] = {}
    for name in wanted:
        listing = listings.get(name.replace("/", ""))
        if listing is None:
            trading = ((each.base, each.quote) for each in listings.values() if each.status == "TRADING")
            near = meant_symbol(name, trading)
            invalid[name] = "unknown to Binance" + (f"; did you mean {near}?" if near else "")
        elif listing.status != "TRADING":
            invalid[name] = f"not trading: {status_words(listing.status)}"
        else:
            pairs[listing.pair] = None
    return pairs, invalid


def meant_symbol(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The pair (``BTC/USDT``) that a symbol nearly is; of several the first; empty where there is none.

    Where the base or the quote is right the other is looked at alone: of BTC/USDTT most of the text is
    right in any pair against USDT.
    """
    base, slash, quote = name.partition("/")
    whole, in_base, in_quote = (difflib.SequenceMatcher(b=text) for text in (base + quote, base, quote))
    best, best_ratio = "", 0.0
    for each in pairs:
        if slash and each == (quote, base):
            return "/".join(each)
        if not slash:
            matcher, text, least = whole, "".join(each), SAME_SYMBOL
        elif each[0] == base:
            matcher, text, least = in_quote, each[1], SAME_ASSET
        elif each[1] == quote:
            matcher, text, least = in_base, each[0], SAME_ASSET
        else:
            continue
        matcher.set_seq1(text)
        least = max(least, best_ratio)
        if matcher.real_quick_ratio() >= least and matcher.quick_ratio() >= least:
            ratio = matcher.ratio()
            if ratio > best_ratio and ratio >= least:
                best, best_ratio = "/".join(each), ratio
    return best


class Expansion(NamedTuple):
    """Which symbols are meant by those configured: names for `resolve_symbols`, and what does not fit.

    ``left_out`` are the names beyond MAX_SYMBOLS, ``unmatched`` the wildcards that no pair fits.
    """

    names: list[str]
    left_out: list[str]
    unmatched: list[str]


def expand_symbols(
    wanted: Sequence[str], listings: Mapping[str, Listing], volumes: Mapping[str, float], most: int
) -> Expansion:
    """Replace wildcards by the pairs that trade; ``volumes`` are those of a day by symbol, for ``@top``.

    Names come first, then what wildcards bring, each in the exchange's order, or by volume. What is
    excluded by ``!`` does not count among the top. A wildcard means crypto, or what follows a market with
    sessions if it says so, and never contracts that are delivered.
    """
    rules = [name[1:] for name in wanted if name.startswith("!")]
    trading = {f"{each.base}/{each.quote}": each for each in listings.values() if each.is_wild}
    pairs = [name for name in trading if not any(_fits(name, rule) for rule in rules)]
    found = [
        name for name in wanted if not is_wildcard(name) and not any(_fits(name, rule) for rule in rules)
    ]
    unmatched = []
    for wildcard in (name for name in wanted if is_wildcard(name) and not name.startswith("!")):
        rule, is_tradifi = wildcard.removesuffix(TRADIFI), wildcard.endswith(TRADIFI)
        kind = [name for name in pairs if trading[name].is_tradifi == is_tradifi]
        top, _, quote = rule.partition("/")
        if top.startswith("@"):
            matches = [name for name in kind if _fits(name, f"*/{quote}")]
            matches.sort(key=lambda name: -volumes.get(trading[name].symbol, 0.0))
            matches = matches[: int(top.removeprefix("@top"))]
        else:
            matches = [name for name in kind if _fits(name, rule)]
        found += matches
        unmatched += [] if matches else [wildcard]
    ordered: dict[str, str] = {}  # one spelt twice is one
    for name in found:
        ordered.setdefault(name.replace("/", ""), name)
    names = list(ordered.values())
    most = max(most, sum(not is_wildcard(name) for name in wanted))
    return Expansion(names[:most], names[most:], unmatched)


def _fits(name: str, rule: str) -> bool:
    """Whether a pair is meant by a name or by a wildcard such as ``*/USDT``."""
    if "*" not in rule:
        return name.replace("/", "") == rule.replace("/", "")
    return all(part in ("*", own) for part, own in zip(rule.split("/"), name.split("/"), strict=False))
