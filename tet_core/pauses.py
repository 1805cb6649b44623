"""Pauses: which replies of the exchange mean that nothing may be sent for a while, and for how long.

Sources: Binance's REST documentation for 429, 418, 403 and the error codes; AWS WAF's for its 202 and 405
(``x-amzn-waf-action``) and Cloudflare's for ``cf-mitigated``, since either may stand before an exchange.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC
from typing import NamedTuple

from tet_core.candles import decode_json
from tet_core.times import SECOND_MS


class Pause(NamedTuple):
    """How long to send nothing where the reply does not say, what to log, and why."""

    seconds: float
    event: str
    reason: str


#: The kinds of pauses, by the HTTP status that each usually comes with.
PAUSES = {
    429: Pause(60.0, "rate limited by binance, pausing", "too many requests ({})"),
    418: Pause(120.0, "banned by binance, pausing", "this address is banned ({})"),
    403: Pause(60.0, "refused by binance, pausing", "refused by Binance's firewall ({})"),  # doubles
    451: Pause(
        300.0,
        "refused by binance, pausing",
        "Binance does not serve this region ({}); set BINANCE_BASE_URL to one that it serves, such as "
        "https://data-api.binance.vision with --public, or reach it through a proxy (HTTPS_PROXY)",
    ),
}
MAX_PAUSE_403_SECONDS = 3600.0
MAX_PAUSE_SECONDS = 7 * 24 * 3600.0
#: Statuses with which a firewall answers a plain GET of a path that the exchange has.
FIREWALL_STATUSES = frozenset({202, 403, 405})
FIREWALL_HEADERS = ("x-amzn-waf-action", "cf-mitigated")
#: TOO_MANY_REQUESTS, SERVER_BUSY ("try again in a few minutes"), TOO_MANY_ORDERS, TOO_MANY_CONNECTIONS.
PAUSE_CODES = frozenset({-1003, -1008, -1015, -1034})
MAX_REFUSAL_BYTES = 4096  # a refusal is short; what is longer is data
_BANNED_UNTIL = re.compile(rb"banned until ([0-9]{13})(?![0-9])", re.IGNORECASE)
_CODE = re.compile("-?[0-9]{1,9}")


class Refusal(NamedTuple):
    """The exchange's error: its code, None for none, and its message."""

    code: int | None
    message: str


def read_refusal(body: bytes) -> Refusal:
    """The error that a body holds, whatever its HTTP status."""
    if len(body) <= MAX_REFUSAL_BYTES and body.lstrip().startswith(b"{"):
        with suppress(ValueError):
            error = decode_json(body)
            if isinstance(error.get("code"), int | str) and _CODE.fullmatch(str(error["code"])):
                message = str(error.get("msg", ""))[:160].encode(errors="replace").decode()
                return Refusal(int(error["code"]), message)
    return Refusal(None, "")


def pause_kind(status: int, headers: Mapping[str, str], body: bytes) -> int | None:
    """Which of `PAUSES` a reply means; None for none. ``headers`` have lower-case names.

    What the body says counts under any status, and before it: proxies and firewalls change the status.
    """
    if status == 451:
        return 451
    short = len(body) <= MAX_REFUSAL_BYTES or status != 200
    if status == 418 or (short and _BANNED_UNTIL.search(body, 0, MAX_REFUSAL_BYTES)):
        return 418
    if status == 429 or read_refusal(body).code in PAUSE_CODES:
        return 429
    is_page = status == 200 and body[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")
    is_firewall = status in FIREWALL_STATUSES or any(name in headers for name in FIREWALL_HEADERS)
    return 403 if is_firewall or is_page else None


def pause_reason(kind: int, status: int, body: bytes) -> str:
    """Why there is a pause, in words: with the HTTP status that came, and the code where it decided."""
    code = read_refusal(body).code
    shown = f"HTTP {status}, code {code}" if code in PAUSE_CODES and status != kind else f"HTTP {status}"
    return PAUSES[kind].reason.format(shown)


def pause_seconds(kind: int, retry_after: str | None, body: bytes, now_ms: int, repeat: int) -> float:
    """How long to send nothing, for a kind of `PAUSES`.

    ``retry_after`` is the header (seconds, or an HTTP date) and counts as does "banned until" in the body,
    whichever is later; a firewall's and a region's pauses are no shorter than their own, the firewall's an
    hour at most. ``repeat`` is how many refusals by the firewall came right before this one.
    """
    default = PAUSES[kind].seconds
    asked = _header_seconds(retry_after or "", now_ms)
    if banned := _BANNED_UNTIL.search(body, 0, MAX_REFUSAL_BYTES):
        asked = max(asked, (int(banned[1]) - now_ms) / SECOND_MS)
    if kind == 403:
        return min(MAX_PAUSE_403_SECONDS, max(default * 2.0 ** min(repeat, 10), asked))
    if kind == 451:
        return default
    return min(MAX_PAUSE_SECONDS, max(1.0, asked)) if asked > 0 else default


def _header_seconds(text: str, now_ms: int) -> float:
    """The seconds of a Retry-After; 0 for what is none, or past."""
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    at_ms = http_date_ms(text)
    return max(0.0, (at_ms - now_ms) / SECOND_MS) if at_ms else 0.0


def http_date_ms(text: str) -> int | None:
    """The ms since the epoch of a date in a header; None for what is no date."""
    from email.utils import parsedate_to_datetime  # slow to import, and seldom needed

    with suppress(ValueError, TypeError, OverflowError, IndexError):
        moment = parsedate_to_datetime(text[:64])
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()) * SECOND_MS
    return None
