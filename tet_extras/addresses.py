"""Addresses in settings: of the exchange, of Redis, and to listen on. Pure."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

EMBEDDED = "embedded"

_REDIS_QUERY = re.compile(r"((db|ssl_ca_certs|ssl_certfile|ssl_keyfile)=[^&]*(&|$))*")
_HOST = r"(?:[\w.-]*|\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)(?::[0-9]{1,5})?"
_KNOWN_PATH = r"(?:/(?:[0-9]{1,4}|[sfdep]?api|v[1-9]|ws|stream|market|public|private)?)*"
_PLAIN = re.compile(
    rf"(?:(?:[A-Za-z][A-Za-z0-9+.-]*://|//)?{_HOST}{_KNOWN_PATH}|unix:///[^?#@]*)"
    r"(?:\?(?:(?:db=[0-9]+|ssl_[a-z_]+=[\w./~-]+)(?:&|$))*)?"
)
#: What is added to a base address, with the version, and to that of the streams.
_ADDED = {"http": r"/[sfdep]?api/v[0-9]+(?=/|$)", "ws": r"/(ws|stream)(?=/|$)"}
OF_BINANCE = ("binance.com", "binance.vision", "binance.us", "binancefuture.com")


class Refusal(ValueError):
    """A setting's value is not allowed, for a reason fit to be shown: Python's own may quote a password."""


def split_address(text: str) -> SplitResult:
    """The parts of a URL whose host and port can be. Raises ValueError, as all here do."""
    parts = urlsplit(text)
    host, port = parts.hostname or "", parts.port
    if not re.fullmatch(r"[\w.-]+|[0-9a-f:.]+", host) or port == 0 or re.search(r"[\s\x00-\x1f]", text):
        raise ValueError("no such host or port")
    host.encode("idna")  # an empty or overlong part of a name is a UnicodeError, which is a ValueError
    return parts


def base_url(text: str) -> str:
    """The address of an exchange: http or https, without a slash at the end."""
    return _url(text, ("http", "https"))


def _url(text: str, schemes: tuple[str, ...]) -> str:
    parts = split_address(text)
    if parts.username is not None or parts.password is not None:
        raise Refusal("a user name or password in it")
    if parts.scheme not in schemes:
        raise ValueError(f"not an address of {' or '.join(schemes)}")
    added = re.search(_ADDED[schemes[0]], parts.path)
    if added or (schemes[0] == "http" and parts.path.strip("/") and is_within(text, OF_BINANCE)):
        path = added[0] if added else "the path"
        raise Refusal(f"leave out {path} and what follows: the service adds the path itself")
    if parts.query or parts.fragment:
        raise ValueError("not a bare address")
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


def shown_address(text: str) -> str:
    """The address, or several with commas between them, as it may be shown, however odd it looks.

    Only what is an address stays: scheme, host, port, the path of a socket, a path that is well known, and
    what Redis may be given after a ``?``. All else may be a user, a password or a token, and is masked. By
    this way alone an address gets into a log, an error, the status or onto a screen.
    """
    if all(_PLAIN.fullmatch(part) for part in text.split(",")):
        return text
    return ",".join(map(_masked, re.split(r",(?=[a-z]+://)", text)))


def _masked(url: str) -> str:
    if _PLAIN.fullmatch(url):
        return url
    scheme, rest = re.fullmatch(r"([A-Za-z][\w+.-]*://|//)?(.*)", url, re.S).groups("")  # type: ignore[union-attr]
    user, at, place = rest.rpartition("@")
    if re.search("[/?#]", user):  # a password that was not encoded, or a path: nobody knows
        return f"{scheme}***"
    host, path, query = re.fullmatch(r"([^/?#]*)([^?#]*)(.*)", place, re.S).groups("")  # type: ignore[union-attr]
    host = host if re.fullmatch(_HOST, host) else "***"
    known = re.fullmatch(_KNOWN_PATH, path) or (scheme == "unix://" and not host)
    return f"{scheme}{'***@' if at else ''}{host}{path if known else '/***'}{query[:1] and query[0] + '***'}"


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
