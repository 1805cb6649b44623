"""What --demo adds to the service: a simulated market, settings for it, and its words."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click

from tet_core.pairs import is_wildcard

from .addresses import EMBEDDED, page_url
from .process import keep_port
from .settings_file import find_config_file
from .simulated_binance import DEFAULT_PAIRS, Market, SimulatedBinance

PAGE_PORTS = range(8080, 8180)  # the first free one is taken
DEMO_PAGE = "Look at it in a browser: {url}\n"
DEMO_BEFORE = """\
This is a demo. The market is simulated: no price here is real.
Everything runs on this machine: an exchange, a Redis server, and the service."""
DEMO_AFTER = """
Look at it in a browser, {url}
or from another terminal, in the same folder:
  {status}
  curl "{candles}"

It keeps running and keeps the candles fresh; Ctrl-C ends it."""
#: What --status has to be given, too, where the demo was.
STATUS_FLAGS = {
    "SYMBOLS": "--symbols",
    "TIMEFRAME": "--timeframe",
    "REDIS_DB": "--redis-db",
    "REDIS_PREFIX": "--redis-prefix",
    "MAX_DATA_AGE": "--max-age",
}


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
        if with_page and "HTTP_ADDR" not in flags:
            settings["HTTP_ADDR"] = keep_free_port()
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


def keep_free_port() -> str:
    """An address with the first of `PAGE_PORTS` that nobody listens on; it is kept for the page."""
    from .web.server import listen

    for port in PAGE_PORTS:
        with suppress(OSError):
            keep_port(listen(("127.0.0.1", port)))
            return f"127.0.0.1:{port}"
    return f"127.0.0.1:{PAGE_PORTS[0]}"  # the service says what is wrong with it


def own_command() -> list[str]:
    """How this program was started, as words that start it again in the same folder."""
    if started_as := os.environ.get("TET_STARTED_AS"):  # by run.sh or run.bat
        is_program = os.name == "nt" or os.access(started_as, os.X_OK)
        return [_as_reached(started_as)] if is_program else ["sh", started_as]
    program = sys.argv[0]
    if program.endswith((".py", ".pyz")):
        return [_as_reached(sys.executable), _from_here(program)]
    return [_as_reached(program)]


def _as_reached(program: str) -> str:
    """A program by its name where a shell finds it by that, else by its path."""
    name = Path(program).name
    if (found := shutil.which(name)) and (program == name or found == str(Path(program).absolute())):
        return name
    path = _from_here(program)
    return path if os.path.dirname(path) else os.path.join(".", path)  # noqa: PTH118, PTH120


def _from_here(path: str) -> str:
    """A path as seen from this folder, where it is below it."""
    with suppress(ValueError, OSError):  # there may be no working directory any more
        return str(Path(path).absolute().relative_to(Path.cwd()))
    return path


def as_typed(words: Sequence[str]) -> str:
    """A command line as this system's shell reads it."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def text_after(config: Any, flags: Mapping[str, str]) -> str:
    """How to look at the data: commands that work when they are pasted.

    ``config`` is the service's, ``flags`` what the demo was given, by name of the setting.
    """
    url, redis = page_url(*config.http_addr), flags.get("REDIS_ADDR", EMBEDDED)
    if redis == EMBEDDED:
        redis = f"127.0.0.1:{urlsplit(config.redis_addr).port}"
    given = [f"--redis={redis}"]
    given += [f"{flag}={flags[name]}" for name, flag in STATUS_FLAGS.items() if name in flags]
    if find_config_file(None):  # else it would go by that
        given.append(f"--config={os.devnull}")
    symbol = next((name for name in config.symbols if "/" in name and not is_wildcard(name)), "BTC/USDT")
    return DEMO_AFTER.format(
        url=url,
        status=as_typed([*own_command(), "--public", *given, "--status", "--watch"]),
        candles=f"{url}api/candles?symbol={quote(symbol)}&timeframe={config.timeframe[0].name}&limit=3",
    )
