"""What --demo adds to the service: a simulated market, settings for it, and its words."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .options import is_wildcard
from .simulated_binance import DEFAULT_PAIRS, Market, SimulatedBinance

DEMO_BEFORE = """\
This is a demo. The market is simulated: no price here is real.
Everything runs on this machine: an exchange, a Redis server, and the service."""
DEMO_AFTER = """
Look at it from another terminal:
  redis-cli -p {port} -n 1 get tet:kline:15m:BTC_USDT
  python -c "import redis; print(redis.Redis(port={port}, db=1).get('tet:system:status'))"
  {program} --public --redis=127.0.0.1:{port} --status --watch

It keeps running and keeps the candles fresh; Ctrl-C ends it."""


@contextmanager
def simulated(flags: Mapping[str, str], resolve: Callable[[Mapping[str, str]], Any]) -> Iterator[Any]:
    """The settings of a service with an exchange and a folder that are gone afterwards.

    ``flags`` come on top; ``resolve`` makes a configuration of settings by name.
    """
    with tempfile.TemporaryDirectory(prefix="tet-demo-", ignore_cleanup_errors=True) as folder:
        settings = {"PUBLIC_DATA": "true", "API_REQUESTS_PER_SEC": "50", "LOG_LEVEL": "warning"}
        settings |= {"REDIS_ADDR": "embedded", "DATA_DIR": folder, **flags}
        symbols = resolve(settings).symbols
        names = [name for name in symbols if "/" in name and not is_wildcard(name)]
        names += DEFAULT_PAIRS if any(map(is_wildcard, symbols)) else ()
        with SimulatedBinance(market=Market.random_walk(names)) as exchange:
            config = resolve({**settings, "BINANCE_BASE_URL": exchange.url})
            click.echo(DEMO_BEFORE)
            yield config


def text_after(port: int | None) -> str:
    """How to look at the data."""
    return DEMO_AFTER.format(port=port, program=Path(sys.argv[0]).name)
