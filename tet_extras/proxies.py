"""The proxy that the environment names for an address, checked, for REST and for streams."""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from .addresses import Refusal, shown_address, split_address

_REMEDY = (
    "allowed: an http:// or https:// proxy as host:port or http://user:password@host:port, in which / ? # @ "
    "of a password are written %2F %3F %23 %40"
)
_NO_SOCKS = (
    "SOCKS is not spoken here: set HTTPS_PROXY to the HTTP port of your proxy, or NO_PROXY to the "
    "exchange's host, to go without"
)


class Proxy(NamedTuple):
    """A proxy: its URL as every library takes it, password included, and the variable that names it."""

    url: str
    variable: str

    def __str__(self) -> str:
        return f"the proxy {shown_address(self.url)}"


def proxy_for(url: str) -> Proxy | None:
    """The proxy that the environment names for an address, None without one.

    Raises Refusal, which names the variable, for one that cannot be used.
    """
    address, proxies = urlsplit(url), getproxies()
    for entry in re.split(r"[\s,]+", proxies.get("no", "")):
        scheme, _, name = entry.rpartition("://")  # as curl and httpx allow it: https://internal.example
        if entry == "*" or (scheme in (address.scheme, "all") and _is_within(address, name.rstrip("/"))):
            return None
    kind = address.scheme if proxies.get(address.scheme) else "all"
    text = proxies.get(kind, "").strip().strip("\"'")  # docker --env-file leaves quotes on
    if not text or proxy_bypass(address.netloc) or proxy_bypass(address.hostname or ""):
        return None
    return Proxy(_checked(text, _variable(kind)), _variable(kind))


def _variable(kind: str) -> str:
    """The name of the variable that `getproxies` takes a proxy from; lower case comes first there."""
    names = sorted((name for name in os.environ if name.lower() == f"{kind}_proxy"), reverse=True)
    return next(iter(names), "the system's proxy settings")


def _checked(text: str, variable: str) -> str:
    """The proxy's URL without a path, and with a password wherever there is a user: websockets wants both."""
    origin = " (environment)" if variable in os.environ else ""
    found = f"{variable}{origin}: found {shown_address(text)!r}"
    try:
        parts = split_address(text if "://" in text else f"http://{text}")
        unquote(parts.netloc, errors="strict")
    except ValueError:
        raise Refusal(f"{found}; {_REMEDY}") from None
    if parts.scheme.startswith("socks"):
        raise Refusal(f"{found}; {_NO_SOCKS}")
    if parts.scheme not in ("http", "https"):
        raise Refusal(f"{found}; {_REMEDY}")
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user}{':' * (bool(at) and ':' not in user)}{at}{host}"


def _is_within(address: SplitResult, name: str) -> bool:
    """Whether an entry of NO_PROXY, without its scheme, names the host (and port) or a domain around it."""
    within = f".{address.hostname}".endswith(f".{name.lstrip('*.')}")
    return within or name in (address.hostname, address.netloc)
