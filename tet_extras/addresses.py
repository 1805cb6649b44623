"""Addresses in settings: of the exchange, of Redis, and to listen on. Pure."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

EMBEDDED = "embedded"

_REDIS_QUERY = re.compile(r"((db|ssl_ca_certs|ssl_certfile|ssl_keyfile)=[^&]*(&|$))*")


class Refusal(ValueError):
    """A setting's value is not allowed, for a reason fit to be shown: Python's own may quote a password."""


def split_address(text: str) -> SplitResult:
    """The parts of a URL whose host and port can be. Raises ValueError, as all here do."""
    parts = urlsplit(text)
    host, port = parts.hostname or "", parts.port
    if not re.fullmatch(r"[\w.-]+|[0-9a-f:.]+", host) or port == 0 or re.search(r"[\s\x00-\x1f]", text):
        raise ValueError("no such host or port")
    return parts


def base_url(text: str) -> str:
    """The address of an exchange: http or https, without a slash at the end."""
    return _url(text, ("http", "https"))


def _url(text: str, schemes: tuple[str, ...]) -> str:
    parts = split_address(text)
    if parts.username is not None or parts.password is not None:
        raise Refusal("a user name or password in it")
    if parts.scheme not in schemes or parts.query or parts.fragment:
        raise ValueError(f"not an address of {' or '.join(schemes)}")
    return text.rstrip("/")


def stream_url(text: str) -> str:
    """The address of an exchange's streams: ws or wss, without a slash at the end."""
    return _url(text, ("ws", "wss"))


def redis_addresses(text: str) -> str:
    """The addresses of one or several nodes, comma-separated, as URLs, or `EMBEDDED`; see `redis_nodes`."""
    try:
        return redis_address(text)
    except ValueError:
        parts = [part.strip() for part in text.split(",")]
        if len(parts) == 1:
            raise
    found = [redis_address(part) for part in parts]
    if any(not url.startswith(("redis://", "rediss://")) for url in found):
        raise ValueError("several addresses, of which one is no node's")
    return ",".join(found)


def redis_nodes(addresses: str) -> list[str]:
    """The URLs in what `redis_addresses` gives."""
    return re.split(r",(?=rediss?://)", addresses)


def redis_address(text: str) -> str:
    """The address of a Redis as a URL, or `EMBEDDED`."""
    if text.lower() == EMBEDDED:
        return EMBEDDED
    if "://" not in text:
        parts = split_address(f"redis://{text}")
        if parts.path or parts.query or parts.fragment or "@" in text:
            raise ValueError("not host:port")
        return f"redis://{host_and_port(str(parts.hostname), parts.port or 6379)}"
    parts = urlsplit(text)
    if not _REDIS_QUERY.fullmatch(parts.query) or parts.fragment:
        raise Refusal("after the ? may stand db, ssl_ca_certs, ssl_certfile, ssl_keyfile; no password")
    if parts.scheme == "unix" and parts.path and not parts.hostname and not re.search(r"\s", text):
        return text
    path = split_address(text).path
    if parts.scheme not in ("redis", "rediss") or not re.fullmatch(r"(/[0-9]*)?", path):
        raise ValueError("not a URL of Redis")
    return text


def listen_address(text: str) -> tuple[str, int]:
    """A host and port to listen on."""
    if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):[0-9]{1,5}", text):
        raise ValueError("not host:port")
    parts = split_address(f"//{text}")
    return str(parts.hostname), int(parts.port or 0)


def host_and_port(host: str, port: int) -> str:
    """Both as one text; IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def page_url(host: str, port: int) -> str:
    """Where a browser on this machine finds what is served on that host and port."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (read, not listened on)
    return f"http://{host_and_port(host, port)}/"


def without_password(address: str) -> str:
    """The address with everything masked that may be a password, however odd it looks."""
    masked = [
        re.sub(r"^(\w+://|//)?([^:@/]*:)?.*@", r"\1\2***@", url, flags=re.S) for url in redis_nodes(address)
    ]
    return ",".join(masked)


def is_loopback(host: str) -> bool:
    """Whether the host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_within(url: str, domains: tuple[str, ...]) -> bool:
    """Whether the host is one of these domains, or in it."""
    host = urlsplit(url).hostname or ""
    return any(f".{host}".endswith(f".{domain}") for domain in domains)


def is_private(url: str) -> bool:
    """Whether a request there stays unread on its way: TLS, or this machine itself."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")
