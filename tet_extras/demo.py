"""What --demo adds to the service: a simulated market, settings for it, and its words."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .addresses import page_url
from .options import is_wildcard
from .simulated_binance import DEFAULT_PAIRS, Market, SimulatedBinance

PAGE_PORTS = range(8080, 8180)  # the first free one is taken
DEMO_PAGE = "Look at it in a browser: {url}\n"
DEMO_BEFORE = """\
This is a demo. The market is simulated: no price here is real.
Everything runs on this machine: an exchange, a Redis server, and the service."""
DEMO_AFTER = """
Look at it in a browser, {url}
or from another terminal:
  redis-cli -p {port} -n 1 get tet:kline:15m:BTC_USDT
  python -c "import redis; print(redis.Redis(port={port}, db=1).get('tet:system:status'))"
  {program} --public --redis=127.0.0.1:{port} --status --watch

It keeps running and keeps the candles fresh; Ctrl-C ends it."""


@contextmanager
def simulated(
    flags: Mapping[str, str], resolve: Callable[[Mapping[str, str]], Any], *, with_page: bool
) -> Iterator[Any]:
    """The settings of a service with an exchange and a folder that are gone afterwards.

    ``flags`` come on top; ``resolve`` makes a configuration of settings by name.
    """
    with tempfile.TemporaryDirectory(prefix="tet-demo-", ignore_cleanup_errors=True) as folder:
        settings = {"PUBLIC_DATA": "true", "API_REQUESTS_PER_SEC": "50", "LOG_LEVEL": "warning"}
        settings |= {"REDIS_ADDR": "embedded", "DATA_DIR": folder}
        if with_page:
            settings["HTTP_ADDR"] = f"127.0.0.1:{free_port()}"
        settings |= flags
        symbols = resolve(settings).symbols
        names = [name for name in symbols if "/" in name and not is_wildcard(name)]
        names += DEFAULT_PAIRS if any(map(is_wildcard, symbols)) else ()
        with SimulatedBinance(market=Market.random_walk(names)) as exchange:
            urls = {"BINANCE_BASE_URL": exchange.url, "BINANCE_STREAM_URL": exchange.stream_url}
            config = resolve({"LIVE": "true", **settings, **urls})
            if config.http_addr:
                click.echo(DEMO_PAGE.format(url=page_url(*config.http_addr)))
            click.echo(DEMO_BEFORE)
            yield config


def free_port() -> int:
    """The first of `PAGE_PORTS` that nobody listens on."""
    for port in PAGE_PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    return PAGE_PORTS[0]  # the service says what is wrong with it


def text_after(port: int | None, http_addr: tuple[str, int]) -> str:
    """How to look at the data."""
    return DEMO_AFTER.format(port=port, url=page_url(*http_addr), program=Path(sys.argv[0]).name)
