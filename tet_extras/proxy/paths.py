"""Which of the exchange's calls pass, what may be asked with them, and what each weighs. Pure.

All are public and read-only. What is not in these tables is not sent to the exchange.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple
from urllib.parse import urlencode

Params = Mapping[str, str]

SYMBOL = re.compile(r"[\w.-]{1,50}")  # and no lower-case letter of ASCII
SYMBOL_RANGE = "'^[\\\\w\\\\-._&&[^a-z]]{1,50}$'"
#: What only a signed call has, or what a client adds to it: never passed on.
OF_ACCOUNTS = frozenset({"signature", "timestamp", "recvWindow", "apiKey"})


class Refusal(Exception):
    """What the exchange answers to such a question: an HTTP status, its own code, and its words."""

    def __init__(self, status: int, code: int, words: str, retry_after_seconds: int = 0) -> None:
        super().__init__(words)
        self.status, self.code, self.retry_after_seconds = status, code, retry_after_seconds


class Call(NamedTuple):
    """A call: the parameters it takes, and its weight by them."""

    params: frozenset[str]
    weight: Callable[[Params], int]


class Asked(NamedTuple):
    """A question to the exchange. The same one in other words is equal."""

    path: str
    params: tuple[tuple[str, str], ...]
    weight: int

    @property
    def query(self) -> str:
        """The parameters as they stand in an address."""
        return urlencode(self.params)


def _call(params: str, weight: int | Callable[[Params], int]) -> Call:
    return Call(frozenset(params.split()), weight if callable(weight) else lambda _: weight)


def _of_one(one: int, all_of_them: int) -> Callable[[Params], int]:
    """A call that weighs more when it asks for every symbol."""
    return lambda params: one if "symbol" in params else all_of_them


def _by_limit(default: int, *steps: tuple[int, int], above: int) -> Callable[[Params], int]:
    """A call that weighs by its limit: up to each of the steps so much."""

    def weight(params: Params) -> int:
        limit = params.get("limit", "")
        rows = int(limit) if re.fullmatch("[0-9]{1,6}", limit) else default
        return next((each for most, each in steps if rows <= most), above)

    return weight


def _of_day_tickers(params: Params) -> int:
    """Spot's ticker/24hr: by how many symbols are named."""
    named = 1 if "symbol" in params else params.get("symbols", "").count(",") + 1
    if not {"symbol", "symbols"} & params.keys() or named > 100:
        return 80
    return 2 if named <= 20 else 40


SPOT = {
    "exchangeInfo": _call("symbol symbols permissions showPermissionSets symbolStatus", 20),
    "klines": _call("symbol interval startTime endTime timeZone limit", 2),
    "depth": _call("symbol limit symbolStatus", _by_limit(100, (100, 5), (500, 25), (1000, 50), above=250)),
    "trades": _call("symbol limit", 25),
    "aggTrades": _call("symbol fromId startTime endTime limit", 4),
    "avgPrice": _call("symbol", 2),
    "ticker/24hr": _call("symbol symbols type symbolStatus", _of_day_tickers),
    "ticker/price": _call("symbol symbols symbolStatus", _of_one(2, 4)),
    "ticker/bookTicker": _call("symbol symbols symbolStatus", _of_one(2, 4)),
}
USDM = {
    "exchangeInfo": _call("", 1),
    "klines": _call(
        "symbol interval startTime endTime limit", _by_limit(500, (99, 1), (499, 2), (1000, 5), above=10)
    ),
    "depth": _call("symbol limit", _by_limit(500, (50, 2), (100, 5), (500, 10), above=20)),
    "trades": _call("symbol limit", 5),
    "aggTrades": _call("symbol fromId startTime endTime limit", 20),
    "ticker/24hr": _call("symbol", _of_one(1, 40)),
    "ticker/price": _call("symbol", _of_one(1, 2)),
    "ticker/bookTicker": _call("symbol", _of_one(2, 5)),
    "premiumIndex": _call("symbol", _of_one(1, 10)),
    "fundingRate": _call("symbol startTime endTime limit", 1),
}
#: The calls by the prefix of their paths.
CALLS: Mapping[str, Mapping[str, Call]] = {"/api/v3": SPOT, "/fapi/v1": USDM}


def parse(prefix: str, name: str, query: Iterable[tuple[str, str]]) -> Asked:
    """The question in a client's address. Raises Refusal, in the exchange's words where it has any."""
    call = CALLS[prefix].get(name)
    if call is None:
        public = ", ".join(("ping", "time", *CALLS[prefix]))
        raise Refusal(
            404, -1002, f"not served here: there is {public}; what is signed goes to the exchange itself"
        )
    params: dict[str, str] = {}
    sent = [(key, text) for key, text in query if key not in OF_ACCOUNTS]
    for key, text in sent:
        if key in params:
            raise Refusal(400, -1101, f"Duplicate values for parameter '{key:.40}'.")
        params[key] = text
    if unknown := params.keys() - call.params:
        read = len(params) - len(unknown)
        raise Refusal(
            400,
            -1104,
            f"Not all sent parameters were read; read '{read}' parameter(s) but was sent '{len(params)}'.",
        )
    symbol = params.get("symbol")
    if symbol is not None and (not SYMBOL.fullmatch(symbol) or re.search("[a-z]", symbol)):
        words = f"Illegal characters found in parameter 'symbol'; legal range is {SYMBOL_RANGE}."
        raise Refusal(400, -1100, words)
    return Asked(f"{prefix}/{name}", tuple(sorted(params.items())), call.weight(params))
