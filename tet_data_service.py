#!/usr/bin/env python3
"""TET Data Service: the last 30 days of Binance candles, kept fresh in Redis.

One process, or several that share the pairs, reads the candles (klines) of every configured pair and
timeframe from Binance's public REST interface, and with LIVE from its streams, and keeps them in Redis,
complete and current, for analysis programs to read.

What readers find (every time is UTC, RFC 3339, whole seconds, ``Z``; ``BTC/USDT`` is ``BTC_USDT``):

``tet:kline:{timeframe}:{SYMBOL}``
    A JSON object, expiring after ``KLINE_TTL``:

    * ``ohlcv_data``: a JSON *string* that holds an object from candle open time to ``{"open", "high",
      "low", "close", "volume"}``, each a decimal string, the exchange's value with trailing zeros
      cut; oldest first, no duplicates, on the timeframe's grid, at most N candles.
    * ``last_candle_time``, ``last_update``, ``data_start``: open time of the newest candle, time of the
      last good update, open time of the oldest candle. Blanks may follow the object.
    * ``data_end``: the end (exclusive) of the newest candle known to be closed. A candle that opens
      at ``data_end`` or later is still forming.
    * ``data_completeness``: ``candle_count`` / N, at most 1; N is how many candles of the timeframe
      ``DATA_DAYS`` hold, rounded up.
    * ``candle_count``, ``timeframe``, ``data_age_seconds`` (``last_update`` - ``data_end``, >= 0).

``tet:timestamp:{timeframe}:{SYMBOL}``
    Time of the last good update, expiring after ``TIMESTAMP_TTL``; written with the value above in
    one step.

``tet:system:status``
    A JSON object with the service's state and metrics, expiring after ``STATUS_TTL``.

``tet:status:{id}``
    Only with GROUP, SHARD or EGRESS: a member's own status. ``tet:system:status`` is made of all of them
    then, with a list ``members``.

``tet:system:pause``, ``tet:system:pause:{egress}``
    Only while rate limited or banned by the exchange: until when, and why.

``tet:system:health``
    For a second, while ``--health-check`` sees whether Redis takes writes.

``tet:member:{tet}``, ``tet:member:{tet}:{id}``
    Only with GROUP, SHARD or EGRESS: who shares the pairs and the rate, renewed every 2 s.

``tet:upload:{key}``
    For a moment, a whole value on its way to that key: what is written is renamed to its place in one step.

Each update is announced on the channel ``tet:updates`` as a JSON object: ``symbol``, ``timeframe``,
``last_candle_time`` and ``candle_closed`` (whether a candle has closed since the last write).

Words. *Feed*: one pair in one timeframe. *Series*: its candles in memory, as the bytes to be stored.
*Window*: the N candles that are kept, the lookback window. *Backfill*: to fetch a window from its start.
*Ended*: a candle's time is over; *closed*: its values will not change any more, too; *lagging*: ended and
not seen closed yet. *Confirmed*: candles read back from Redis that the exchange has repeated. *Image*: what
Redis has of a feed. *Patch*: to write the end of a value where its front stays. *Buffered*: kept in memory
because Redis did not take it, or has lost it; *flushed* when it does. *Evicted*: dropped from memory, since
Redis has it. *Weight*: what a request costs of the exchange's limit. *Gate*: what every request passes.
*Pause*: rate limited, banned or refused; *probe*: the one request that goes first after a pause.
*Stream*: what the exchange tells of a feed over a WebSocket; *line*: the streams that share a connection.
*Live*: kept fresh by its stream; *catching up*: REST has to tell what its stream left out; *blind*: its
stream says nothing, so that it is polled. *Proof*: to ask REST for the last candles of a live feed; *audit*:
to compare a whole window with the exchange; *correction*: a closed candle that the exchange has otherwise.
*Invalid*: a symbol unknown, halted or delisted. *Member*: one of several instances that share the pairs or
a rate. *Lease*: for how long a member may send requests. *Clock offset*: local time minus exchange time.
*Heartbeat*: the main loop's, each second.

The module reads from top to bottom; chapters, and where they are tested (tests/test_….py):

* units, keys, errors, logging; options and configuration (config, readme)
* the pure core, which knows no network, no Redis and no clock: timeframes (timeframes), candles and
  series (candles), the exchange's limits (limits), pairs, feeds and their schedule (policy, feeds,
  wildcards), shares (members)
* the edges: the clock and the gate (limits), Binance (faults, security), Redis (store, servers)
* what joins them: the fetcher (service, faults), the writer (writer, writes), members (members, cluster),
  the inbox and the workers (streams), live (streams, live), the audit (audit), the service, which opens with
  its theory of operation (service, program), the status and what is served (monitoring, web, page)
* what people start: --status, --health-check and --verify (monitoring, audit), the command line (program)

What stands around it is in ``tet_extras``: front doors that are loaded only when a setting asks for them,
and what every process needs. Nothing there decides which candle reaches Redis, or when.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import json
import logging
import math
import os
import queue
import random
import re
import socket
import sys
import threading
import time
import zlib
from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache, partial
from heapq import heappop, heappush
from itertools import count, islice
from operator import le, lt, sub
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar
from urllib.parse import unquote, urlencode, urlsplit

import click

from tet_extras import addresses, figures, process
from tet_extras.addresses import EMBEDDED, Refusal, without_password
from tet_extras.figures import some_of
from tet_extras.options import (
    Option,
    Parsed,
    api_key,
    is_wildcard,
    listed,
    member_name,
    shard,
    symbol_names,
)
from tet_extras.remedies import with_remedy
from tet_extras.settings_file import (
    Setting,
    SettingsFile,
    find_config_file,
    is_given,
    read_credential,
    read_settings_file,
)

if TYPE_CHECKING:  # each costs time and memory, which those who do not need it need not pay
    import httpx

    from tet_extras.live import Message, Streams
    from tet_extras.report import Report
    from tet_extras.servers import Servers

__version__ = "1.0.0"

T = TypeVar("T")
Texts = Mapping[str, str]
Params = Mapping[str, object]

# ------------------------------------------------------------------------------
# Units, keys and exit codes
# ------------------------------------------------------------------------------

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

STATUS_KEY = "tet:system:status"
PAUSE_KEY = "tet:system:pause"
HEALTH_KEY = "tet:system:health"
MEMBERS_KEY = "tet:member:{tet}"  # all in one slot of a cluster, so that one script sees them all
MEMBER_STATUS_KEY = "tet:status:{id}"
UPLOAD_KEY = "tet:upload:{{{key}}}"  # in a cluster on the node of that key
UPDATES_CHANNEL = "tet:updates"

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


# ------------------------------------------------------------------------------
# Errors
#
#   TetError
#     ConfigError         the settings are wrong: say all of it, exit 2
#     Stopped             a stop was asked for while waiting
#     ExchangeError       Binance did not give what was asked
#       TransientError    passing trouble: try again
#         BadReply        ... the reply was damaged or impossible
#         PauseError      ... and nothing may be sent for a while
#       SymbolError       no such symbol: skip it, check hourly
#       RefusedError      trying again will not help
#     StoreError          Redis did not take or give what was asked: keep the data, try later
#     StoredValueError    what Redis holds is no sound value of ours: fetch anew
# ------------------------------------------------------------------------------


class TetError(Exception):
    """The root of all errors this program raises on purpose."""


class ConfigError(TetError):
    """The settings are wrong. ``problems`` has one line for each problem."""

    def __init__(self, problems: Sequence[str], warnings: Sequence[str] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)


class Stopped(TetError):
    """A stop was asked for while a thread waited."""


class ExchangeError(TetError):
    """Binance did not give what was asked."""


class TransientError(ExchangeError):
    """Passing trouble on the way to Binance or at Binance: the same request may work later."""


class BadReply(TransientError):
    """The reply is damaged, or says what cannot be. Nothing of it is used."""


class PauseError(TransientError):
    """Rate limited, banned or refused by Binance; the request gate is paused already when this is raised."""


class SymbolError(ExchangeError):
    """Binance does not know the symbol (-1121)."""


class RefusedError(ExchangeError):
    """Binance refuses the request, and would again."""


class StoreError(TetError):
    """Redis cannot be reached, or refuses. The message ends with the remedy."""


class TakenError(StoreError):
    """A key of ours holds what another program has put there: nothing is written."""

    def __init__(self, key: str, kind: str) -> None:
        remedy = "rename or delete it, or choose another REDIS_DB"
        super().__init__(f"Redis key {key} holds a {kind} of another program; {remedy}")


class StoredValueError(TetError):
    """What Redis holds under a key is not a sound value of this service and configuration."""


# ------------------------------------------------------------------------------
# Logging
# ------------------------------------------------------------------------------

LOGGER = "tet"


def say(level: int, event: str, **facts: object) -> None:
    """Log an event with its facts; how they look is the formatter's business."""
    logging.getLogger(LOGGER).log(level, event, extra={"facts": facts})


def start_logging(config: Config) -> None:
    """Send the program's events to stderr, or to the log file, in the style asked for. Raises ConfigError."""
    from tet_extras.logs import make_handler

    size, backups = config.log_max_mb, config.log_backups
    try:
        handler = make_handler(config.log_format, config.secrets, config.log_file, size, backups)
    except OSError as error:
        raise ConfigError([f"LOG_FILE: {config.log_file}: {error.strerror}"]) from error
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(config.log_level.upper())


# ------------------------------------------------------------------------------
# Times and timeframes (pure)
# ------------------------------------------------------------------------------

MEAN_MONTH_MS = 2_629_746 * SECOND_MS  # a twelfth of the mean Gregorian year


@lru_cache(maxsize=512)
def _iso_date(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")


def iso_time(at_ms: int) -> str:
    """A time in ms since the epoch as RFC 3339 in UTC, whole seconds: ``2024-01-01T12:00:00Z``."""
    day, second = divmod(at_ms // SECOND_MS, 86_400)
    return f"{_iso_date(day)}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z"


_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def parse_iso_time(text: object) -> int:
    """The ms since the epoch of a time as `iso_time` writes it. Raises ValueError for anything else."""
    if not isinstance(text, str):
        raise ValueError(f"not a UTC time such as 2024-01-01T12:00:00Z: {text!r:.40}")
    return _parse_iso_text(text)


@lru_cache(maxsize=4096)
def _parse_iso_text(text: str) -> int:
    if not _ISO_TIME.fullmatch(text):
        raise ValueError(f"not a UTC time such as 2024-01-01T12:00:00Z: {text!r:.40}")
    return int(datetime.fromisoformat(text).timestamp()) * SECOND_MS


@dataclass(frozen=True)
class Timeframe:
    """A candle length and its grid: which candle holds a moment, and where the next one opens.

    ``name`` is Binance's, case-sensitive. ``step_ms`` is the length (the mean one for months) and
    ``origin_ms`` where the grid is anchored: weeks begin on Monday. Candles are numbered along the
    grid, so that counting works for months as for minutes.
    """

    name: str
    step_ms: int
    origin_ms: int = 0

    @property
    def monthly(self) -> bool:
        """Whether candles are calendar months, which have no common step."""
        return self.name == "1M"

    def number(self, at_ms: int) -> int:
        """The number of the candle that holds the moment."""
        if self.monthly:
            moment = datetime.fromtimestamp(at_ms // SECOND_MS, UTC)
            return moment.year * 12 + moment.month - 1
        return (at_ms - self.origin_ms) // self.step_ms

    def open_of(self, number: int) -> int:
        """The open time, in ms, of the candle with that number."""
        if self.monthly:
            year, month = divmod(number, 12)
            return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * SECOND_MS
        return self.origin_ms + number * self.step_ms

    def floor(self, at_ms: int) -> int:
        """The open time of the candle that holds the moment."""
        return self.open_of(self.number(at_ms))

    def shift(self, open_ms: int, steps: int) -> int:
        """The open time of the candle that many steps later (earlier when negative)."""
        return self.open_of(self.number(open_ms) + steps)

    def close_of(self, open_ms: int) -> int:
        """The end, exclusive, of the candle that opens then: the open time of its successor."""
        return self.shift(open_ms, 1)

    def opens_at(self, opens_ms: Sequence[int]) -> bool:
        """Whether candles open at all of these times. The steps between them are few different ones."""
        if self.monthly:
            return all(self.floor(open_ms) == open_ms for open_ms in opens_ms)
        steps = {opens_ms[0] - self.origin_ms, *map(sub, opens_ms[1:], opens_ms)}
        return not any(step % self.step_ms for step in steps)

    def closes_at(self, opens_ms: Sequence[int], closes_ms: Sequence[int]) -> bool:
        """Whether candles that open then have these close times, Binance's: their last ms."""
        if self.monthly:
            return list(map(self.close_of, opens_ms)) == [close_ms + 1 for close_ms in closes_ms]
        return set(map(sub, closes_ms, opens_ms)) == {self.step_ms - 1}

    def count(self, first_ms: int, last_ms: int) -> int:
        """How many candles open from the one at ``first_ms`` to the one at ``last_ms``, both included."""
        return self.number(last_ms) - self.number(first_ms) + 1

    def opens(self, first_ms: int, last_ms: int) -> Iterator[int]:
        """The open times from ``first_ms`` to ``last_ms``, both included."""
        return map(self.open_of, range(self.number(first_ms), self.number(last_ms) + 1))

    def candles_in_days(self, days: int) -> int:
        """N: how many candles hold that many days, rounded up, at least 1."""
        return max(1, -(-days * DAY_MS // self.step_ms))


#: Every interval of Binance. The epoch was a Thursday: its first Monday came four days later.
TIMEFRAMES = {
    timeframe.name: timeframe
    for timeframe in (
        Timeframe("1s", SECOND_MS),
        *(Timeframe(f"{n}m", n * MINUTE_MS) for n in (1, 3, 5, 15, 30)),
        *(Timeframe(f"{n}h", n * HOUR_MS) for n in (1, 2, 4, 6, 8, 12)),
        *(Timeframe(f"{n}d", n * DAY_MS) for n in (1, 3)),
        Timeframe("1w", 7 * DAY_MS, origin_ms=4 * DAY_MS),
        Timeframe("1M", MEAN_MONTH_MS),
    )
}


# ------------------------------------------------------------------------------
# Options and configuration
# ------------------------------------------------------------------------------

BASES = """BTC ETH BNB XRP ADA SOL DOGE DOT UNI LINK AVAX MEME PUMP
    PEOPLE BOME ARB MATIC FTM SAND AXS NEAR ALGO XLM LIT MKR"""
DEFAULT_SYMBOLS = tuple(f"{base}/USDT" for base in BASES.split())
MAX_CANDLES = 1_000_000  # a stored value of about 150 MB; Redis ends at 512 MB


def _timeframes(text: str) -> tuple[Timeframe, ...]:
    names = listed(text)
    for name in names:
        if name not in TIMEFRAMES:
            near = [known for known in TIMEFRAMES if known.lower() == name.lower()]
            near = near or difflib.get_close_matches(name, TIMEFRAMES, 1, 0.4)
            raise Refusal(f"no timeframe {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    if not names:
        raise ValueError
    return tuple(TIMEFRAMES[name] for name in names)


WHOLE, NUMBER, BOOL = click.IntRange, click.FloatRange, click.BOOL
SECONDS_OF_DAY, SECONDS_OF_YEAR = click.IntRange(1, 86_400), click.IntRange(1, 31_536_000)
TEXT, PATH = Parsed("TEXT", "text", str), Parsed("PATH", "a path", str)
KEY = Parsed("KEY", "printable characters without spaces", api_key)
URL = Parsed("URL", "an http or https address", addresses.base_url)
STREAM_URL = Parsed("URL", "a ws or wss address", addresses.stream_url)
REDIS = Parsed(
    "ADDRESS", "host:port, a redis://, rediss:// or unix:// URL, or embedded", addresses.redis_addresses
)
REDIS_MODES = click.Choice(("single", "cluster", "sentinel"), case_sensitive=False)
PAIRS = Parsed("PAIRS", "pairs such as BTC/USDT,ETH/USDT", symbol_names)
FRAMES = Parsed("TIMEFRAMES", f"one or several of {' '.join(TIMEFRAMES)}", _timeframes)
MARKET_NAME = click.Choice(("spot", "usdm"), case_sensitive=False)
LEVEL = click.Choice(("debug", "info", "warning", "error"), case_sensitive=False)
STYLE = click.Choice(("text", "json"), case_sensitive=False)
NAME = Parsed("NAME", "letters, digits, _, . and -, at most 64", member_name)
SHARE = Parsed("K/N", "one share of several, 1/1 to 1000/1000, such as 2/5", shard)
LISTEN = Parsed("HOST:PORT", "host:port, such as 127.0.0.1:8080", addresses.listen_address)

OPTIONS = (
    Option("BINANCE_API_KEY", "--api-key", None, KEY,
           "API key; needs no permission but reading. Safer in the environment or the file.", secret=True),
    Option("BINANCE_SECRET_KEY", "--secret-key", None, KEY,
           "The key's secret. Safer in the environment or the file.", secret=True),
    Option("PUBLIC_DATA", "--public", "false", BOOL, "Run without keys: candles are public."),
    Option("BINANCE_BASE_URL", "--base-url", None, URL,
           "The exchange's address; by default that of the market, with --public that of public data."),
    Option("BINANCE_MARKET", "--market", "spot", MARKET_NAME, "spot, or usdm: USD-M futures."),
    Option("LIVE", "--live", "false", BOOL,
           "Listen to the exchange's streams: closes within a second, proven by REST."),
    Option("BINANCE_STREAM_URL", "--stream-url", None, STREAM_URL,
           "The address of the streams; by default that of the market, with --public that of public data."),
    Option("LIVE_WRITE_SECONDS", None, "5", NUMBER(0, 3600),
           "Seconds between two writes of a forming candle with LIVE; 0 is at every change."),
    Option("AUDIT_HOURS", None, "24", NUMBER(0, 8760),
           "Hours in which the whole window of each pair is compared with the exchange; 0 is off."),
    Option("REDIS_ADDR", "--redis", "localhost:6379", REDIS,
           "Redis: host:port, a redis://, rediss:// or unix:// URL, or embedded: a server of our own."),
    Option("REDIS_MODE", "--redis-mode", "single", REDIS_MODES,
           "single; cluster or sentinel: REDIS_ADDR then has one or several nodes, comma-separated."),
    Option("REDIS_SENTINEL_MASTER", None, None, TEXT, "The name by which the sentinels know the master."),
    Option("REDIS_USERNAME", None, None, TEXT, "Redis user; no flag, since flags show in ps."),
    Option("REDIS_PASSWORD", None, None, TEXT,
           "Redis password; no flag, since flags show in ps.", secret=True),
    Option("DATA_DIR", "--data-dir", None, PATH,
           "Where the embedded server keeps its data; by default the user's data folder."),
    Option("REDIS_DB", "--redis-db", "1", WHOLE(0, 9999), "Redis database."),
    Option("UPDATE_INTERVAL", "--interval", "180", SECONDS_OF_DAY,
           "Seconds between updates; a close of a candle brings one earlier."),
    Option("CONCURRENT_REQUESTS", "--concurrent", "12", WHOLE(1, 100),
           "Requests in flight at once, at most."),
    Option("MAX_DATA_AGE", "--max-age", "540", SECONDS_OF_DAY,
           "Seconds after which data counts as stale; the interval never grows beyond it."),
    Option("API_REQUESTS_PER_SEC", "--requests-per-sec", "15", NUMBER(0.01, 100),
           "Requests to the exchange per second, at most."),
    Option("TIMEFRAME", "--timeframe", "15m", FRAMES,
           "Candle lengths, comma-separated, as Binance writes them."),
    Option("SYMBOLS", "--symbols", ",".join(DEFAULT_SYMBOLS), PAIRS,
           "Pairs, comma-separated: BTC/USDT, BTC-USDT or BTCUSDT; or */USDT, !USDC/USDT, @top100/USDT."),
    Option("MAX_SYMBOLS", "--max-symbols", "1000", WHOLE(1, 10_000),
           "Pairs at most that wildcards may bring."),
    Option("GROUP", "--group", None, NAME,
           "Divide the pairs among all instances that are started with this name."),
    Option("SHARD", "--shard", None, SHARE, "Keep one share of the pairs, such as 2/5: the second of five."),
    Option("EGRESS", "--egress", None, NAME,
           "Name of the address requests leave by; its instances divide the rate. One for all by default."),
    Option("DATA_DAYS", "--days", "30", WHOLE(1, 3650), "Days of candles to keep."),
    Option("INCREMENTAL_CANDLES", None, "6", WHOLE(1, 400), "Stored candles that an update fetches again."),
    Option("BATCH_SIZE", None, "15", WHOLE(1, 1000),
           "Updates in progress at once, at most; the smaller of this and CONCURRENT_REQUESTS counts."),
    Option("CLOSED_ONLY", "--closed-only", "false", BOOL, "Leave the forming candle out."),
    Option("KLINE_TTL", None, "86400", SECONDS_OF_YEAR, "Seconds until the candles expire."),
    Option("TIMESTAMP_TTL", None, "7200", SECONDS_OF_YEAR, "Seconds until an update time expires."),
    Option("STATUS_TTL", None, "7200", SECONDS_OF_YEAR, "Seconds until the status expires."),
    Option("MAX_UPDATE_TIME", None, "30", SECONDS_OF_DAY, "Seconds after which a cycle counts as slow."),
    Option("MAX_FAILURE_RATE", None, "0.1", NUMBER(0, 1),
           "Share of failed updates above which a cycle counts as failing."),
    Option("MEMORY_LIMIT_MB", None, "500", WHOLE(50, 1_000_000),
           "Above this, candles are evicted from memory after each update and reloaded from Redis."),
    Option("ADAPTIVE_INTERVAL", None, "true", BOOL, "Update less often while updates fail."),
    Option("MARKET_HOURS_OPTIMIZATION", None, "true", BOOL, "Update less often outside of the peak hours."),
    Option("ERROR_BACKOFF_MULTIPLIER", None, "1.5", NUMBER(1, 10),
           "The interval grows by this after a failing cycle."),
    Option("SUCCESS_RECOVERY_RATE", None, "0.9", NUMBER(0.01, 1),
           "The growth shrinks by this after a good cycle."),
    Option("OFF_PEAK_MULTIPLIER", None, "2.0", NUMBER(1, 10),
           "The interval is multiplied by this outside of the peak hours."),
    Option("LOG_LEVEL", "--log-level", "info", LEVEL, "How much to log."),
    Option("LOG_FORMAT", "--log-format", "text", STYLE, "text for people, json for programs."),
    Option("LOG_FILE", "--log-file", None, PATH, "Log to this file, not to stderr."),
    Option("LOG_MAX_MB", None, "10", WHOLE(1, 10_000), "Size at which the log file is rotated."),
    Option("LOG_BACKUPS", None, "5", WHOLE(0, 100), "Rotated log files to keep."),
    Option("HTTP_ADDR", "--http", None, LISTEN,
           "Serve the page, /api, /health and /metrics (Prometheus) there; off by default."),
    Option("HTTP_TOKEN", None, None, KEY,
           "What the page, /api and /metrics ask for; no flag, since flags show in ps.", secret=True),
    Option("METRICS_PER_SYMBOL", None, "false", BOOL, "Let /metrics have the data's age for each symbol."),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The settings in force, each checked: one field per row of `OPTIONS`, named in lower case."""

    binance_api_key: str | None
    binance_secret_key: str | None
    public_data: bool
    binance_base_url: str
    binance_market: str
    live: bool
    binance_stream_url: str
    live_write_seconds: float
    audit_hours: float
    redis_addr: str
    redis_mode: str
    redis_sentinel_master: str | None
    redis_username: str | None
    redis_password: str | None
    data_dir: str | None
    redis_db: int
    update_interval: int
    concurrent_requests: int
    max_data_age: int
    api_requests_per_sec: float
    timeframe: tuple[Timeframe, ...]
    symbols: tuple[str, ...]
    max_symbols: int
    group: str | None
    shard: tuple[int, int] | None
    egress: str | None
    data_days: int
    incremental_candles: int
    batch_size: int
    closed_only: bool
    kline_ttl: int
    timestamp_ttl: int
    status_ttl: int
    max_update_time: int
    max_failure_rate: float
    memory_limit_mb: int
    adaptive_interval: bool
    market_hours_optimization: bool
    error_backoff_multiplier: float
    success_recovery_rate: float
    off_peak_multiplier: float
    log_level: str
    log_format: str
    log_file: str | None
    log_max_mb: int
    log_backups: int
    http_addr: tuple[str, int] | None
    http_token: str | None
    metrics_per_symbol: bool

    @property
    def has_keys(self) -> bool:
        """Whether signed calls can and may be made."""
        return bool(self.binance_api_key and self.binance_secret_key and not self.public_data)

    @property
    def has_wildcards(self) -> bool:
        """Whether only the exchange knows which pairs are meant."""
        return any(map(is_wildcard, self.symbols))

    @property
    def most_symbols(self) -> int:
        """How many pairs there may be."""
        return self.max_symbols if self.has_wildcards else len(self.symbols)

    @property
    def takes_part(self) -> bool:
        """Whether this instance is a member among others, with whom it shares pairs, a rate, or both."""
        return bool(self.group or self.shard or self.egress)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every text that must never be shown, the longest first."""
        found = {self.binance_api_key, self.binance_secret_key, self.redis_password, self.http_token}
        for url in addresses.redis_nodes(self.redis_addr):
            in_url = urlsplit(url).password or ""
            found |= {in_url, unquote(in_url)}
        return tuple(sorted((text for text in found if text), key=len, reverse=True))


@dataclass(frozen=True)
class Resolved:
    """The outcome of resolving the configuration: the settings, where each came from, and warnings."""

    config: Config
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def resolve_config(flags: Texts, environment: Texts, config_file: Path | None) -> Resolved:
    """Join flags, environment, config file and defaults, in this order of precedence, and check all.

    Secrets may also stand in files of ``CREDENTIALS_DIRECTORY``, right behind the environment.

    ``flags`` and ``environment`` map option names to text; an empty text counts as not given, and so
    does a placeholder where a secret belongs. Raises ConfigError naming every problem at once.
    """
    from_file, problems, warnings = SettingsFile({}, [], [])
    if config_file is not None:
        from_file, problems, warnings = _read_config_file(config_file)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option in OPTIONS:
        setting = _pick(option, flags, environment, from_file)
        origins[option.name] = setting.origin if setting else "default"
        try:
            values[option.name.lower()] = option.parse(setting.text) if setting else None
        except ValueError as error:
            problems.append(_problem(option, setting, error))
    if not problems:
        values["binance_base_url"] = values["binance_base_url"] or _default_base_url(values)
        values["binance_stream_url"] = values["binance_stream_url"] or _default_stream_url(values)
    problems += _conflicts(values, origins)
    if problems:
        raise ConfigError(problems, warnings)
    config = Config(**values)
    return Resolved(config, origins, (*warnings, *_cautions(config, origins)))


def _read_config_file(path: Path) -> SettingsFile:
    """What the file says. When it cannot be read, what it would have said is not missing: ConfigError."""
    secrets = [option.name for option in OPTIONS if option.secret]
    try:
        return read_settings_file(path, [option.name for option in OPTIONS], secrets)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([f"--config {path}: cannot be read: {reason}"]) from error


def _pick(
    option: Option, flags: Texts, environment: Texts, from_file: Mapping[str, Setting]
) -> Setting | None:
    candidates = (
        Setting(flags.get(option.name) or "", f"flag {option.flag}"),
        Setting(environment.get(option.name) or "", "environment"),
        Setting(read_credential(option.name, environment) if option.secret else "", "CREDENTIALS_DIRECTORY"),
        from_file.get(option.name) or Setting("", ""),
        Setting(option.default or "", "default"),
    )
    for setting in candidates:
        text = setting.text.strip()
        if is_given(text) if option.secret else text:
            return Setting(text, setting.origin)
    return None


def _problem(option: Option, setting: Setting | None, error: ValueError) -> str:
    origin, text = (setting.origin, setting.text) if setting else ("default", "")
    text = text if option.type is PAIRS else without_password(text)  # which takes @top for a host
    found = "a value that cannot be shown" if option.secret else repr(text)
    note = f" ({error})" if isinstance(error, Refusal) else ""
    return f"{option.name} ({origin}): found {found}{note}; allowed: {option.allowed}"


def _default_base_url(values: Mapping[str, Any]) -> str:
    if values["binance_market"] == "usdm":
        return "https://fapi.binance.com"
    return "https://data-api.binance.vision" if values["public_data"] else "https://api.binance.com"


def _default_stream_url(values: Mapping[str, Any]) -> str:
    """The streams of the market; empty where BINANCE_BASE_URL is not Binance's, whose streams are unknown.

    USD-M klines come by ``/market`` alone: the bare address acknowledges them and stays silent.
    """
    if not addresses.is_within(values["binance_base_url"], ("binance.com", "binance.vision")):
        return ""
    if values["binance_market"] == "usdm":
        return "wss://fstream.binance.com/market"
    return "wss://data-stream.binance.vision" if values["public_data"] else "wss://stream.binance.com:9443"


def _conflicts(values: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """What is wrong between settings that are each right alone; looks only at those that parsed."""
    problems = []
    if values.get("public_data") is False:
        for name in ("BINANCE_API_KEY", "BINANCE_SECRET_KEY"):
            if name.lower() in values and values[name.lower()] is None:
                problems.append(f"{name}: missing; set it, or run without keys: --public or PUBLIC_DATA=true")
        base_url = values.get("binance_base_url")
        if base_url and values.get("binance_api_key") and not addresses.is_private(base_url):
            problems.append(
                f"BINANCE_BASE_URL ({origins['BINANCE_BASE_URL']}): found {base_url!r}; allowed: https, "
                "since keys would travel in the clear (plain http to this machine only, or with --public)"
            )
    if values.get("live") and values.get("binance_stream_url") == "":
        problems.append(
            "BINANCE_STREAM_URL: missing; LIVE needs the address of the streams where BINANCE_BASE_URL "
            f"({origins['BINANCE_BASE_URL']}) is not Binance's own"
        )
    if values.get("group") and values.get("shard"):
        problems.append(
            f"SHARD ({origins['SHARD']}): allowed without GROUP only, which divides the pairs itself"
        )
    timeframes = values.get("timeframe") or ()
    if values.get("binance_market") == "usdm" and any(t.name == "1s" for t in timeframes):
        problems.append(f"TIMEFRAME ({origins['TIMEFRAME']}): found '1s'; allowed with usdm: from 1m up")
    for timeframe in timeframes:
        if values.get("data_days") and timeframe.candles_in_days(values["data_days"]) > MAX_CANDLES:
            problems.append(
                f"DATA_DAYS ({origins['DATA_DAYS']}): found {values['data_days']} days of {timeframe.name}; "
                f"allowed: at most {MAX_CANDLES} candles a pair"
            )
    return problems + list(_store_conflicts(values, origins))


def _store_conflicts(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """What REDIS_ADDR and REDIS_DB may not be in a mode; with settings that did not parse nothing is said."""
    mode, address, database = (values.get(name) for name in ("redis_mode", "redis_addr", "redis_db"))
    if not mode or not address or database is None:
        return
    nodes, found = addresses.redis_nodes(address), f"REDIS_ADDR ({origins['REDIS_ADDR']}): found "
    if mode == "single" and len(nodes) > 1:
        yield f"{found}{len(nodes)} nodes; allowed with REDIS_MODE=single: one; cluster or sentinel?"
    if mode != "single" and urlsplit(nodes[0]).scheme not in ("redis", "rediss"):
        yield f"{found}{address!r}; allowed with REDIS_MODE={mode}: host:port, a redis:// or rediss:// URL"
        return
    if mode == "sentinel" and not values.get("redis_sentinel_master"):
        yield "REDIS_SENTINEL_MASTER: missing; set it to the name by which the sentinels know the master"
    path = urlsplit(nodes[0]).path.strip("/")
    if mode == "cluster" and (path or str(database)) != "0":
        where = "REDIS_ADDR" if path else "REDIS_DB"
        found = f"{where} ({origins[where]}): found database {path or database}"
        yield f"{found}; allowed with REDIS_MODE=cluster: 0, the only one there; set REDIS_DB=0"


def _cautions(config: Config, origins: Mapping[str, str]) -> list[str]:
    """What is allowed but worth a warning."""
    cautions = [
        f"{option.flag} shows in the process list; {option.name} in the environment or the file is safer"
        for option in OPTIONS
        if option.secret and option.flag and origins[option.name].startswith("flag")
    ]
    if origins["REDIS_ADDR"].startswith("flag") and "@" in config.redis_addr:
        cautions.append("--redis shows its password in the process list; REDIS_PASSWORD is safer")
    if config.update_interval > config.max_data_age:
        cautions.append(
            f"UPDATE_INTERVAL {config.update_interval} s is above MAX_DATA_AGE {config.max_data_age} s, "
            "which is what counts"
        )
    if config.kline_ttl < config.max_data_age:
        cautions.append(
            f"KLINE_TTL {config.kline_ttl} s is below MAX_DATA_AGE {config.max_data_age} s: candles may "
            "expire between two updates"
        )
    if config.http_addr and not addresses.is_loopback(config.http_addr[0]) and not config.http_token:
        cautions.append(
            "HTTP_ADDR is not on loopback: anybody who reaches it reads all of it; set HTTP_TOKEN"
        )
    return cautions


def shown(name: str, config: Config) -> str:
    """The setting as text fit for a log or a screen: secrets masked, lists joined."""
    value = getattr(config, name.lower())
    if any(option.name == name and option.secret for option in OPTIONS):
        return "not set" if value is None else "***"
    if name == "HTTP_ADDR" and value:
        return addresses.host_and_port(*value)
    if name == "SHARD" and value:
        return f"{value[0]}/{value[1]}"
    if name == "TIMEFRAME":
        return ",".join(timeframe.name for timeframe in value)
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "not set" if value is None else without_password(str(value))


# ------------------------------------------------------------------------------
# Candles (pure): from what Binance sends to what is stored
# ------------------------------------------------------------------------------

#: Checked candles, oldest first: the open time in ms, and the entry in ``ohlcv_data``. That is written as
#: it stands in the stored value, quotes escaped, because it goes into a JSON string there:
#: ``\"2024-01-01T12:00:00Z\":{\"open\":\"108150\",...}``.
Candles = dict[int, str]


def newest_of(candles: Candles) -> int:
    """The open time of the newest of candles, one or more."""
    return next(reversed(candles))


# A row is checked, cut and trimmed in one pass: a third of the work of decoding JSON and looking at each
# value. What does not fit is one more row, whose groups are empty, of all that is left. Characters are
# repeated possessively, so that nothing is tried over and over; groups are not, since Python before 3.11.5
# gets that wrong (CPython issue 106052).
_TIME = "[1-9][0-9]{0,13}+"
_WHOLE = "(?:0|[1-9][0-9]{0,29}+)"
#: A decimal as Binance sends it; its group leaves out the zeros at the end, which mean nothing.
_SENT = rf'"({_WHOLE}(?:\.(?=[0-9]{{1,30}}+")(?:0*+[1-9]++)+|(?=(?:\.0{{1,30}}+)?")))[.0]*+"'
#: A decimal as it is stored.
_KEPT = rf'"({_WHOLE}(?:\.(?=[0-9]{{1,30}}+")(?:0*+[1-9]++)+)?)"'
_UNREAD = '"[0-9.]++",(?:0|[1-9][0-9]*+),"[0-9.]++","[0-9.]++","[0-9.]++"'
SENT_ROW = re.compile(
    rf"\[({_TIME}),{_SENT},{_SENT},{_SENT},{_SENT},{_SENT},({_TIME}),{_UNREAD}\](?:,(?=\[)|\]\Z)|(?s:.+)"
)
KEPT_ROW = re.compile(
    rf'"([0-9TZ:-]{{20}})":{{"open":{_KEPT},"high":{_KEPT},"low":{_KEPT},"close":{_KEPT},"volume":{_KEPT}}}'
    r'(?:,(?=")|}\Z)|(?s:.+)'
)

Rows = Sequence[tuple[str, ...]]


def find_rows(row: re.Pattern[str], opening: str, text: str) -> Rows:
    """Cut a text into its rows. Raises ValueError unless it consists of them, one or more."""
    rows = row.findall(text, 1) if text.startswith(opening) else []
    if rows and rows[-1][0]:
        return rows
    left = next((match[0] for match in row.finditer(text, 1) if not match[1]), text)
    raise ValueError(f"not a candle: {left:.100}")


def make_candles(opens_ms: Sequence[int], times: Iterable[str], ohlcv: Sequence[Sequence[str]]) -> Candles:
    """Make candles, one or more, of their open times, these as texts, and five columns of decimals.

    Raises ValueError unless prices are > 0, low <= open and close <= high; its text shows the first candle.
    Prices are compared as floats, which is safe, since rounding never turns an order around; they stay text.
    """
    first, highest, lowest, last = (list(map(float, column)) for column in ohlcv[:4])
    bounds = ((lowest, first), (first, highest), (lowest, last), (last, highest))
    if "0" in ohlcv[2] or not all(all(map(le, lower, upper)) for lower, upper in bounds):
        shown = [column[0] for column in ohlcv[:4]]
        raise ValueError(f"impossible prices: open, high, low, close are {shown}")
    entries = [
        rf"\"{at}\":{{\"open\":\"{first}\",\"high\":\"{highest}\",\"low\":\"{lowest}\","
        rf"\"close\":\"{last}\",\"volume\":\"{volume}\"}}"
        for at, first, highest, lowest, last, volume in zip(times, *ohlcv, strict=True)
    ]
    return dict(zip(opens_ms, entries, strict=True))


def entry_volume(entry: str) -> float:
    """The volume in a candle's entry, for comparing two states of one forming candle."""
    return float(entry[entry.rindex(':\\"') + 3 : entry.rindex('\\"')])


def decode_json(body: bytes | str, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Decode JSON from outside. Raises ValueError for whatever is not strict JSON."""
    try:
        return json.loads(body, object_hook=object_hook, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def parse_klines(body: bytes, timeframe: Timeframe, first_ms: int, last_ms: int, limit: int) -> Candles:
    """Check a klines reply as a whole and return its candles.

    ``first_ms`` and ``last_ms`` are the open times that may be in it, ``limit`` the most rows. The
    rows' layout is Binance's (open time, open, high, low, close, volume, close time, and five more).
    Raises BadReply when anything in it is not as it must be: one bad row rejects the whole reply.
    """
    try:
        rows = _sent_rows(body.decode())
        if len(rows) > limit:
            raise ValueError(f"more than {limit} rows")
        try:
            return _check_rows(rows, timeframe, first_ms, last_ms)
        except ValueError:
            for row in rows:  # the wrong one says what is wrong
                _check_rows([row], timeframe, first_ms, last_ms)
            raise
    except (ValueError, RecursionError) as error:
        raise BadReply(f"the klines reply is damaged: {error}") from error


def parse_stream_row(message: Message, timeframe: Timeframe, last_ms: int) -> Candles:
    """Check the candle of a stream's message as one of REST: it is made a row of klines.

    Raises BadReply, as well for a candle told as closed that has not ended before ``last_ms``.
    """
    if not all(type(text) is str for text in message.row[1:6]):
        raise BadReply("prices and volume have to be texts")
    row = '[[{},"{}","{}","{}","{}","{}",{},"0",0,"0","0","0"]]'.format(*message.row)
    candles = parse_klines(row.encode(errors="replace"), timeframe, 0, last_ms, 1)
    if message.closed and timeframe.close_of(newest_of(candles)) > last_ms:
        raise BadReply("a candle that has not ended is told as closed")
    return candles


def _sent_rows(text: str) -> Rows:
    """The rows of a reply; written otherwise than by Binance, with spaces or more fields, they count too."""
    with suppress(ValueError):
        return find_rows(SENT_ROW, "[", text)
    rows, unread = decode_json(text), ("0", 0, "0", "0", "0")
    fields = 7 + len(unread)
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) >= fields for row in rows):
        raise ValueError("not a list of klines")
    plain = json.dumps([[*row[:7], *unread] for row in rows], separators=(",", ":"))
    return find_rows(SENT_ROW, "[", plain) if rows else []


def _check_rows(rows: Rows, timeframe: Timeframe, first_ms: int, last_ms: int) -> Candles:
    """Check rows by columns, less work than one by one; the text of a ValueError shows the first row."""
    if not rows:
        return {}
    opens, *ohlcv, closes = zip(*rows, strict=True)
    opens_ms, times = _row_times(timeframe, opens, closes)
    if opens_ms[0] < first_ms or opens_ms[-1] > last_ms:
        raise ValueError(f"candle outside the requested range, at {opens_ms[0]}")
    return make_candles(opens_ms, times, ohlcv)


@lru_cache(maxsize=4)  # the pairs' pages begin and end at the same times
def _row_times(
    timeframe: Timeframe, opens: tuple[str, ...], closes: tuple[str, ...]
) -> tuple[Sequence[int], Sequence[str]]:
    """The open times of rows, in ms and as they are kept; close times are Binance's: a candle's last ms."""
    opens_ms, closes_ms = list(map(int, opens)), list(map(int, closes))
    _check_opens(timeframe, opens_ms)
    if not timeframe.closes_at(opens_ms, closes_ms):
        raise ValueError(f"no candle of {timeframe.name}: {opens_ms[0]} to {closes_ms[0]}")
    return opens_ms, list(map(iso_time, opens_ms))


def _check_opens(timeframe: Timeframe, opens_ms: Sequence[int]) -> None:
    if not timeframe.opens_at(opens_ms):
        raise ValueError(f"off the {timeframe.name} grid, such as {iso_time(opens_ms[0])}")
    if not all(map(lt, opens_ms, opens_ms[1:])):
        raise ValueError("candles out of order")


# ------------------------------------------------------------------------------
# The series (pure): the candles of one pair and timeframe, and the value they are stored as
# ------------------------------------------------------------------------------

#: A reply from later than this after a close cannot be a lagging one any more.
MAX_LAG_MS = 15 * SECOND_MS
#: How every stored value begins; its candles follow.
FRONT = b'{"ohlcv_data":"{'
MAX_FILLING = 32  # blanks that a patched value may end in
WHOLE_AGAIN_MS = HOUR_MS  # that heals what no comparison of its end shows
PATCHED_CANDLES = 8  # at the end, that may have changed for a patch; the others are compared as one


@dataclass(frozen=True)
class Series:
    """The candles of one pair and timeframe, kept as the bytes that the stored value is spliced from.

    Immutable: a change makes a new series, at the cost of the candles that changed. Where only the newest
    did, as it does while it forms, all else is shared; else the bytes are copied. Invariants: ``opens`` (ms)
    ascend strictly on the grid; ``body`` is the entries of all candles but the newest, joined by commas, and
    ``lengths`` their lengths; ``newest`` is the entry of the newest, and ``newest_is_closed`` says that it is
    closed for certain. All older ones are closed: each has a successor.
    """

    timeframe: Timeframe
    opens: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("H"))
    body: bytes = b""
    newest: bytes = b""
    newest_is_closed: bool = False

    def __len__(self) -> int:
        return len(self.opens)

    @property
    def closed_end_ms(self) -> int:
        """The end, exclusive, of the newest closed candle; where there is none, the oldest open time."""
        newest_ms = self.opens[-1]
        if self.newest_is_closed:
            return self.timeframe.close_of(newest_ms)
        return self.timeframe.close_of(self.opens[-2]) if len(self) > 1 else newest_ms

    def stored_count(self, closed_only: bool) -> int:
        """How many of the candles may be stored: all, or those that are closed."""
        return self.index(self.closed_end_ms) if closed_only else len(self)

    def index(self, open_ms: int) -> int:
        """Where the candle that opens then stands, or would stand."""
        return bisect_left(self.opens, open_ms)

    def entry(self, index: int) -> str:
        """The entry of one candle."""
        if index == len(self) - 1:
            return self.newest.decode()
        start = self.position(index)
        return self.body[start : start + self.lengths[index]].decode()

    def position(self, index: int) -> int:
        """Where in ``body`` the entry begins, added up from the nearer end; past it for the newest."""
        count = len(self.lengths)
        if index > count // 2:
            return len(self.body) + 1 - sum(self.lengths[index:]) - (count - index)
        return sum(self.lengths[:index]) + index

    def joined(self, start: int, end: int) -> bytes:
        """The entries from index ``start`` to ``end``, exclusive, joined by commas."""
        last = len(self) - 1
        if start == 0 and end == last:
            return self.body
        older = self.body[self.position(start) : self.position(min(end, last)) - 1] if start < last else b""
        if start >= end or end <= last:
            return older
        return b",".join((older, self.newest)) if older else self.newest

    def merge(self, candles: Candles, newest_is_closed: bool, keep: int) -> Series:
        """Lay fresh candles over these and keep ``keep`` steps of the grid and the forming candle.

        So the window is full with and without the forming one. Candles that only this series has
        stay: the exchange never takes one back.
        """
        cut = self.index(next(iter(candles)))
        if cut < len(self):
            held = {self.opens[i]: self.entry(i) for i in range(cut, len(self))}
            candles = dict(sorted((held | candles).items()))
            for open_ms in self.opens[cut:-1]:  # what does not change is not copied
                if next(iter(candles)) != open_ms or candles[open_ms] != held[open_ms]:
                    break
                del candles[open_ms]
                cut += 1
        opens = self.opens[:cut] + array("q", candles)
        newest_ms = opens[-1]
        window_end = newest_ms if newest_is_closed else self.timeframe.shift(newest_ms, -1)
        drop = bisect_left(opens, self.timeframe.shift(window_end, 1 - keep))
        *older, newest = candles.values()
        if not older and not drop and cut == len(self) - 1:
            return replace(self, newest=newest.encode(), newest_is_closed=newest_is_closed)
        kept = self.joined(drop, cut) if drop < cut else b""
        fresh = ",".join(islice(older, max(0, drop - cut), None)).encode()
        lengths = self.lengths[:cut]
        if cut == len(self) > 0:
            lengths.append(len(self.newest))
        lengths.extend(map(len, older))
        body = b",".join((kept, fresh)) if kept and fresh else kept or fresh
        return Series(self.timeframe, opens[drop:], lengths[drop:], body, newest.encode(), newest_is_closed)


def absorb(series: Series, candles: Candles, asked_ms: int, keep: int) -> Series:
    """Lay a reply, asked for at ``asked_ms`` (exchange time), over what is held.

    For some seconds after a close Binance's REST servers may answer with the old, unfinished candle.
    So the newest candle of a reply is closed only when the reply was asked for too long after the
    close to be a lagging one and repeats what is held. And an answer older than what is held does
    not undo it: candles only get newer, and the volume of a forming candle only grows.
    """
    if not candles:
        return series
    newest_ms, held_ms = newest_of(candles), series.opens[-1] if series else 0
    if newest_ms < held_ms:
        # All but its newest have a successor in it and are closed; of the newest we hold a better state.
        older = {open_ms: entry for open_ms, entry in candles.items() if open_ms < newest_ms}
        return series.merge(older, series.newest_is_closed, keep) if older else series
    is_closed = False
    if newest_ms == held_ms:
        newest, held = candles[newest_ms], series.entry(len(series) - 1)
        is_closed = series.newest_is_closed
        if asked_ms >= series.timeframe.close_of(held_ms) + MAX_LAG_MS:
            is_closed = is_closed or newest == held
        elif entry_volume(newest) < entry_volume(held):
            candles = candles | {held_ms: held}
    return series.merge(candles, is_closed, keep)


def follow(series: Series, candles: Candles, is_closed: bool, keep: int) -> Series | None:
    """Lay a stream's candle over a series that it continues without a gap.

    ``candles`` has one, ``is_closed`` says that the exchange has told it as final. Returns the series as it
    was where the candle tells nothing new, and None where REST has to tell: a gap, a predecessor that was
    not told as final, an older candle, or a contradiction to what is final. Never backwards: the volume of
    a forming candle only grows.
    """
    (open_ms, entry), *_ = candles.items()
    newest_ms, timeframe = series.opens[-1], series.timeframe
    if open_ms > newest_ms:
        continues = series.newest_is_closed and open_ms == timeframe.close_of(newest_ms)
        return series.merge(candles, is_closed, keep) if continues else None
    index = series.index(open_ms)
    if series.opens[index] != open_ms:
        return None
    held = series.entry(index)
    grown = entry_volume(entry) - entry_volume(held)
    if open_ms < newest_ms or series.newest_is_closed:
        is_old_news = entry == held or (grown <= 0 and not is_closed)
        return series if is_old_news else None
    if grown < 0:
        return None if is_closed else series
    return series.merge(candles, is_closed, keep) if is_closed or entry != held else series


def is_lagging(series: Series, now_ms: int) -> bool:
    """Whether the newest candle has ended and is not known to be closed: it is to be asked for again."""
    return not series.newest_is_closed and now_ms >= series.timeframe.close_of(series.opens[-1])


class Correction(NamedTuple):
    """A closed candle that the exchange has otherwise than it is held: both entries, empty for none."""

    open_ms: int
    held: str
    sent: str


def corrections(series: Series, answer: Answer) -> list[Correction]:
    """Where a reply has another value for a candle held as closed; its own newest may be unfinished."""
    if not series or not answer.candles:
        return []
    candles, timeframe = answer.candles, series.timeframe
    newest_ms = newest_of(candles)
    is_final = answer.asked_ms >= timeframe.close_of(newest_ms) + MAX_LAG_MS
    closed = series.opens[series.index(next(iter(candles))) : series.stored_count(closed_only=True)]
    found = (Correction(at, series.entry(series.index(at)), candles[at]) for at in closed if at in candles)
    return [each for each in found if each.held != each.sent and (is_final or each.open_ms < newest_ms)]


def missing_opens(series: Series, candles: Candles, first_ms: int) -> list[int]:
    """Open times that a reply, asked for from ``first_ms``, leaves out for the first time.

    A candle missing before the newest of the series was asked for twice already: the exchange has none.
    """
    timeframe = series.timeframe
    if not candles or len(candles) == timeframe.count(first_ms, newest_of(candles)):
        return []
    known = range(0)
    if series:
        end = timeframe.number(series.opens[-1]) + series.newest_is_closed
        known = range(timeframe.number(series.opens[0]), end)
    return [
        open_ms
        for open_ms in timeframe.opens(first_ms, newest_of(candles))
        if open_ms not in candles and timeframe.number(open_ms) not in known
    ]


def differences(series: Series, candles: Candles, first_ms: int, end_ms: int) -> list[Correction]:
    """Where closed candles are not the exchange's: those from an open time on that ended by ``end_ms``."""
    end_ms = series.timeframe.floor(min(end_ms, series.closed_end_ms))
    held = {series.opens[i]: series.entry(i) for i in range(series.index(first_ms), series.index(end_ms))}
    sent = {open_ms: entry for open_ms, entry in candles.items() if open_ms < end_ms}
    opens = sorted(held.keys() | sent.keys())
    found = (Correction(open_ms, held.get(open_ms, ""), sent.get(open_ms, "")) for open_ms in opens)
    return [each for each in found if each.held != each.sent]


class Answer(NamedTuple):
    """Checked candles, and the exchange time at which they were asked for."""

    candles: Candles
    asked_ms: int


class Image(NamedTuple):
    """A stored value: which candles of a series it has, and the fields behind them.

    ``completeness`` is the share of the candles wanted, at most 1; ``tail`` is all that follows the
    candles, blanks at the end included; ``whole_ms`` is when the value was last written whole, or read
    back and found sound.
    """

    series: Series
    start: int
    end: int
    completeness: float
    tail: bytes
    whole_ms: int

    def whole(self) -> bytes:
        """The value: the JSON object under ``tet:kline:…``, see the module's docstring."""
        return b"".join((FRONT, self.series.joined(self.start, self.end), self.tail))

    def behind(self, count: int) -> bytes:
        """What follows the first ``count`` candles, one or more."""
        rest = self.series.joined(self.start + count, self.end)
        return b"".join((b"," if rest else b"", rest, self.tail))


def make_image(series: Series, wanted: int, now_ms: int, closed_only: bool) -> Image:
    """How a series is stored. ``wanted`` is N, ``now_ms`` the time of the update.

    Raises StoredValueError when there is no candle to store, which with ``closed_only`` is so until the
    first one has closed.
    """
    end_ms = series.closed_end_ms
    end = series.stored_count(closed_only)
    if end == 0:
        raise StoredValueError("no closed candle yet")
    start = series.index(series.timeframe.shift(series.opens[end - 1], 1 - wanted))
    share = min(1.0, (end - start) / wanted)
    rest = {
        "last_candle_time": iso_time(series.opens[end - 1]),
        "last_update": iso_time(now_ms),
        "data_start": iso_time(series.opens[start]),
        "data_end": iso_time(end_ms),
        "data_completeness": share,
        "candle_count": end - start,
        "timeframe": series.timeframe.name,
        "data_age_seconds": max(0, now_ms // SECOND_MS - end_ms // SECOND_MS),
    }
    tail = b'}",' + json.dumps(rest, separators=(",", ":")).encode()[1:]
    return Image(series, start, end, share, tail, now_ms)


class Patch(NamedTuple):
    """What turns one stored value into another: from ``offset`` on, ``expected`` becomes ``new``.

    ``new`` is no shorter: JSON allows blanks after the object. ``image`` is what is stored thereafter.
    """

    offset: int
    expected: bytes
    new: bytes
    image: Image


def make_patch(old: Image, new: Image) -> Patch | None:
    """How to store ``new`` where ``old`` is by writing its end alone; None where it is to be written whole.

    That is where the oldest candle is another one, where one changed that is not among the newest, where
    too many blanks would be left, and once an hour.
    """
    shared = min(old.end - old.start, new.end - new.start)
    same = max(0, shared - PATCHED_CANDLES)
    front = old.series.joined(old.start, old.start + same)
    shares = old.series.body is new.series.body and old.start == new.start
    same_front = shares or new.series.body.startswith(front, new.series.position(new.start))
    if not same_front or new.whole_ms - old.whole_ms >= WHOLE_AGAIN_MS:
        return None
    while same < shared and old.series.entry(old.start + same) == new.series.entry(new.start + same):
        same += 1
    expected, behind = old.behind(same), new.behind(same)
    filling = max(0, len(expected) - len(behind))
    if not same or filling > MAX_FILLING:
        return None
    blanks = b" " * filling
    offset = len(FRONT) + len(old.series.joined(old.start, old.start + same))
    return Patch(
        offset, expected, behind + blanks, new._replace(tail=new.tail + blanks, whole_ms=old.whole_ms)
    )


class Stored(NamedTuple):
    """What a stored value holds: the candles, when it was written (ms), its completeness, and its image.

    There is no image of a value that was not written as this service does: it cannot be patched.
    """

    series: Series
    written_ms: int
    completeness: float
    image: Image | None


def read_stored_value(value: bytes, timeframe: Timeframe, wanted: int, now_ms: int) -> Stored:
    """Read back what was stored, trusting nothing.

    Raises StoredValueError when it is not sound, was written for another timeframe or number of days,
    or holds a candle from after ``now_ms`` (exchange time).
    """
    try:
        stored = decode_json(value)
        if not isinstance(stored, dict) or not isinstance(stored.get("ohlcv_data"), str):
            raise ValueError("not an object with ohlcv_data")
        checked = _stored_candles(stored["ohlcv_data"], timeframe)
        newest_ms = newest_of(checked)
        if newest_ms > now_ms:
            raise ValueError(f"a candle from the future: {iso_time(newest_ms)}")
        if parse_iso_time(stored.get("last_candle_time")) != newest_ms:
            raise ValueError("last_candle_time is not the newest candle's")
        _check_configuration(stored, len(checked), timeframe, wanted)
        is_closed = parse_iso_time(stored.get("data_end")) > newest_ms
        written_ms = min(parse_iso_time(stored.get("last_update")), now_ms)
        series = Series(timeframe).merge(checked, is_closed, wanted)
        if len(series) < len(checked):
            raise ValueError("candles from before its window")
        tail = value[len(FRONT) + len(series.joined(0, len(series))) :]
        share = min(1.0, len(series) / wanted)
        image = Image(series, 0, len(series), share, tail, now_ms)
        return Stored(series, written_ms, share, image if image.whole() == value else None)
    except (ValueError, RecursionError, OverflowError) as error:
        raise StoredValueError(str(error)) from error


def _stored_candles(text: str, timeframe: Timeframe) -> Candles:
    """The candles in ``ohlcv_data``, which must be as this service writes them."""
    times, *ohlcv = zip(*find_rows(KEPT_ROW, "{", text), strict=True)
    opens_ms = list(map(parse_iso_time, times))
    _check_opens(timeframe, opens_ms)
    return make_candles(opens_ms, times, ohlcv)


def _check_configuration(stored: Mapping[str, object], count: int, timeframe: Timeframe, wanted: int) -> None:
    """A value gives its N by candle_count / data_completeness; a full one by its count alone."""
    share = stored.get("data_completeness")
    if stored.get("timeframe") != timeframe.name or stored.get("candle_count") != count:
        raise ValueError("timeframe or candle_count do not fit")
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"data_completeness cannot be {share!r:.40}")
    if round(count / share) != wanted:
        raise ValueError(f"it was written for {round(count / share)} candles, not {wanted}")


# ------------------------------------------------------------------------------
# The exchange's limits (pure): how long a request has to wait
# ------------------------------------------------------------------------------

RELEASE_SECONDS = 0.25
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 8.0
WEIGHT_SHARE = 0.9  # of the exchange's limit, the rest is slack for what we cannot see coming
MINUTE_END_SLACK_MS = 250  # our idea of the exchange's minute may be a little early


class TokenBucket:
    """Bounds requests per second: ``rate`` tokens a second, a burst of one second's worth.

    `reserve` gives each caller a slot of its own, so nobody wakes up to find the token gone. Delayed
    requests are released in groups every `RELEASE_SECONDS`: one wake-up of the processor for each group,
    not each request. One by one a refresh costs 13 % more (25 pairs, 15 a second). Times are monotonic
    seconds, passed in.
    """

    def __init__(self, rate: float, now_seconds: float) -> None:
        self.rate = rate
        self.burst = self._tokens = max(1.0, rate)
        self._at_seconds = now_seconds
        self.set_rate(rate, now_seconds)

    def set_rate(self, rate: float, now_seconds: float) -> None:
        """Have so many tokens a second from now on; what was reserved stays."""
        self._earn(now_seconds)
        self.rate, self.burst = rate, max(1.0, rate)
        self._release_seconds = RELEASE_SECONDS if rate * RELEASE_SECONDS >= 2 else 0.0  # of no use for one
        self._tokens = min(self.burst, self._tokens)

    def _earn(self, now_seconds: float) -> None:
        earned = (now_seconds - self._at_seconds) * self.rate
        self._tokens = min(self.burst, self._tokens + max(0.0, earned))
        self._at_seconds = now_seconds

    def reserve(self, now_seconds: float) -> float:
        """Take the next token and return how many seconds from now it may be used."""
        self._earn(now_seconds)
        self._tokens -= 1
        slot_seconds = now_seconds - min(0.0, self._tokens) / self.rate
        if self._release_seconds and self._tokens < 0:
            slot_seconds = math.ceil(slot_seconds / self._release_seconds) * self._release_seconds
        return slot_seconds - now_seconds


class WeightBudget:
    """Bounds the weight per minute of exchange time, which Binance counts for each IP address.

    Every request is counted when it goes out; the count in a reply (``X-MBX-USED-WEIGHT-1M``) raises
    ours where other programs behind the same address have used some.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._minute = 0

    def wait_ms(self, weight: int, now_ms: int) -> int:
        """How long to wait before a request of that weight may go out: 0 is at once."""
        self._turn(now_ms)
        if self.used == 0 or self.used + weight <= self.limit * WEIGHT_SHARE:
            return 0
        return (self._minute + 1) * MINUTE_MS + MINUTE_END_SLACK_MS - now_ms

    def used_at(self, now_ms: int) -> int:
        """The weight used in the minute that it is now."""
        self._turn(now_ms)
        return self.used

    def spend(self, weight: int, now_ms: int) -> None:
        """Count a request that goes out now."""
        self._turn(now_ms)
        self.used += weight

    def learn(self, used: int, sent_ms: int, now_ms: int) -> None:
        """Take over the exchange's own count, unless the minute has turned since the request went out."""
        self._turn(now_ms)
        if self._minute_of(sent_ms) == self._minute:
            self.used = max(self.used, used)

    def _turn(self, now_ms: int) -> None:
        minute = self._minute_of(now_ms)
        if minute > self._minute:
            self.used = 0
        self._minute = minute  # also back, when the clock was corrected: then what was used still counts

    @staticmethod
    def _minute_of(at_ms: int) -> int:
        return (at_ms - MINUTE_END_SLACK_MS) // MINUTE_MS


class Pause(NamedTuple):
    """How long to send nothing after an HTTP status, where the reply does not say, and why."""

    seconds: float
    reason: str


PAUSES = {
    429: Pause(60.0, "too many requests (HTTP 429)"),
    418: Pause(120.0, "this address is banned (HTTP 418)"),
    403: Pause(60.0, "refused by Binance's firewall (HTTP 403)"),  # doubles with each repeat
    451: Pause(
        300.0,
        "Binance does not serve this region (HTTP 451); set BINANCE_BASE_URL to one that it serves, such as "
        "https://data-api.binance.vision with --public, or reach it through a proxy (HTTPS_PROXY)",
    ),
}
MAX_PAUSE_403_SECONDS = 3600.0
MAX_PAUSE_SECONDS = 7 * 24 * 3600.0
_BANNED_UNTIL = re.compile(rb"banned until ([0-9]{13})")


def pause_seconds(status: int, retry_after: str | None, body: bytes, now_ms: int, repeat: int) -> float:
    """How long to send nothing after a 429, 418, 403 or 451.

    ``retry_after`` is the header (seconds) and counts for 429 and 418, as does a time in the body of
    a 418, whichever is later; ``repeat`` is how many 403 came right before this one.
    """
    default = PAUSES[status].seconds
    if status == 451:
        return default
    if status == 403:
        return min(MAX_PAUSE_403_SECONDS, default * 2.0 ** min(repeat, 10))
    asked = float(retry_after) if retry_after and re.fullmatch(r"[0-9]{1,9}", retry_after) else 0.0
    if banned := _BANNED_UNTIL.search(body):
        asked = max(asked, (int(banned[1]) - now_ms) / SECOND_MS)
    return min(MAX_PAUSE_SECONDS, max(1.0, asked)) if asked > 0 else default


def backoff_seconds(attempt: int, jitter: float) -> float:
    """The wait after a failed attempt (1, 2, ...): exponential with full ``jitter``, in [0, 1)."""
    return jitter * min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(attempt, 10))


def workers_needed(rate: float, latency_seconds: float, most: int) -> int:
    """How many requests must be in flight to keep ``rate`` per second (Little's law), with slack.

    Always to use the ``most`` allowed costs a third more CPU for each refresh and 10 MB (25 pairs, 15 a
    second): threads that wake only to wait for their turn.
    """
    return min(most, max(1, math.ceil(rate * latency_seconds * 1.5)))


# ------------------------------------------------------------------------------
# Pairs, feeds and their schedule (no I/O, no clock)
# ------------------------------------------------------------------------------

#: Feeds are due this long after a close, and again after each reply that still lacks the successor of
#: the candle that has ended: the exchange's REST servers may lag 2 to 10 s behind a close.
AFTER_CLOSE_MS = 1 * SECOND_MS
REASK_SECONDS = (1.0, 1.0, 2.0, 3.0, 4.0)
PROOF_INTERVALS = 10  # a live feed is asked for by REST once in so many update intervals
#: Hours (UTC) in which most trading happens; outside of them OFF_PEAK_MULTIPLIER applies.
PEAK_HOURS_UTC = frozenset({7, 8, 9, 13, 14, 15, 21, 22})
FAILURES_GROW_ABOVE = 0.20
FAILURES_SHRINK_BELOW = 0.05


class Pair(NamedTuple):
    """A trading pair: ``name`` for people, ``key`` in Redis keys, ``symbol`` at the exchange."""

    base: str
    quote: str

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
        """BTCUSDT"""
        return f"{self.base}{self.quote}"


def kline_key(timeframe: Timeframe, pair: Pair) -> str:
    """The key of a pair's candles."""
    return f"tet:kline:{timeframe.name}:{pair.key}"


def timestamp_key(timeframe: Timeframe, pair: Pair) -> str:
    """The key of a pair's time of the last good update."""
    return f"tet:timestamp:{timeframe.name}:{pair.key}"


class Listing(NamedTuple):
    """A symbol as exchangeInfo has it."""

    symbol: str
    status: str
    base: str
    quote: str


def resolve_symbols(
    wanted: Iterable[str], listings: Mapping[str, Listing]
) -> tuple[dict[Pair, None], dict[str, str]]:
    """Sort the wanted symbols by exchangeInfo: pairs that trade, in order, and the others with the reason.

    A name without a slash is split where the exchange splits it.
    """
    pairs: dict[Pair, None] = {}
    invalid: dict[str, str] = {}
    for name in wanted:
        listing = listings.get(name.replace("/", ""))
        if listing is None:
            invalid[name] = "unknown to Binance"
        elif listing.status != "TRADING":
            invalid[name] = f"not trading ({listing.status})"
        else:
            pairs[Pair(listing.base, listing.quote)] = None
    return pairs, invalid


class Meant(NamedTuple):
    """Which symbols are meant by those configured: names for `resolve_symbols`, and what does not fit.

    ``left_out`` are the names beyond MAX_SYMBOLS, ``unmatched`` the wildcards that no pair fits.
    """

    names: list[str]
    left_out: list[str]
    unmatched: list[str]


def expand_symbols(
    wanted: Sequence[str], listings: Mapping[str, Listing], volumes: Mapping[str, float], most: int
) -> Meant:
    """Replace wildcards by the pairs that trade; ``volumes`` are those of a day by symbol, for ``@top``.

    Names come first, then what wildcards bring, each in the exchange's order, or by volume. What is
    excluded by ``!`` does not count among the top.
    """
    rules = [name[1:] for name in wanted if name.startswith("!")]
    trading = {
        f"{each.base}/{each.quote}": each.symbol
        for each in listings.values()
        if each.status == "TRADING" and each.symbol == each.base + each.quote  # delivery futures are not
    }
    pairs = [name for name in trading if not any(_fits(name, rule) for rule in rules)]
    found = [
        name for name in wanted if not is_wildcard(name) and not any(_fits(name, rule) for rule in rules)
    ]
    unmatched = []
    for wildcard in (name for name in wanted if is_wildcard(name) and not name.startswith("!")):
        top, _, quote = wildcard.partition("/")
        if top.startswith("@"):
            matches = [name for name in pairs if _fits(name, f"*/{quote}")]
            matches.sort(key=lambda name: -volumes.get(trading[name], 0.0))
            matches = matches[: int(top.removeprefix("@top"))]
        else:
            matches = [name for name in pairs if _fits(name, wildcard)]
        found += matches
        unmatched += [] if matches else [wildcard]
    ordered: dict[str, str] = {}  # one spelt twice is one
    for name in found:
        ordered.setdefault(name.replace("/", ""), name)
    names = list(ordered.values())
    most = max(most, sum(not is_wildcard(name) for name in wanted))
    return Meant(names[:most], names[most:], unmatched)


def _fits(name: str, rule: str) -> bool:
    """Whether a pair is meant by a name or by a wildcard such as ``*/USDT``."""
    if "*" not in rule:
        return name.replace("/", "") == rule.replace("/", "")
    return all(part in ("*", own) for part, own in zip(rule.split("/"), name.split("/"), strict=False))


class Link(Enum):
    """Who keeps a feed fresh."""

    BLIND = "its stream says nothing: REST, as without LIVE"
    CATCHING_UP = "its stream speaks, and REST has to tell what it left out"
    LIVE = "its stream; REST proves it now and then"


class Known(Enum):
    """What is known of the candles that a feed has in memory."""

    UNREAD = "Redis was not asked for them yet"
    NOTHING = "Redis has no sound value: the whole window is to be backfilled"
    RESTORED = "they are from Redis, and the exchange has not repeated any yet"
    CONFIRMED = "the exchange has sent or repeated them"


@dataclass
class Due:
    """When a feed is due next, exchange time in ms; 0 is at once. The main thread alone changes it."""

    regular_ms: int = 0
    next_ms: int = 0  # the same, or earlier: to ask again for a candle that lags behind its close
    reasks: int = 0


@dataclass
class Stream:
    """What is known of a feed's stream, with LIVE. The main thread alone changes it.

    What REST told before ``owed_ms`` does not count for being LIVE again: something may have been missed.
    """

    name: str = ""  # as the exchange calls it
    link: Link = Link.BLIND
    line: int = 0  # that its newest message came by
    event_ms: int = 0  # of the newest message that counted, exchange time
    owed_ms: int = 0
    write_at_seconds: float = 0.0  # monotonic: a forming candle is not written before
    is_paced: bool = False  # it waits for that time
    is_queued: bool = False  # a writer is to write it; the writer clears this


class Page(NamedTuple):
    """How far a fetch has come with one more reply.

    ``answer`` is the reply, and ``series`` what is held with it, ``up_to_date`` when that reaches the
    present; from ``exhausted_ms`` on the exchange had nothing, asked twice.
    """

    answer: Answer
    series: Series
    exhausted_ms: int
    up_to_date: bool


@dataclass(eq=False)
class Feed:
    """One pair in one timeframe: its candles, how far they are known, and Redis' copy of them.

    A worker updates it, one at a time, and meanwhile the main thread may lay a stream's candles over it, and
    a writer may write it: it changes in methods that are named for what happened, under `lock`, which nobody
    holds for long; `writing` is held from reading the series to having written it, and taken first. Times
    are exchange time in ms, 0 is never.
    """

    pair: Pair
    timeframe: Timeframe
    known: Known = Known.UNREAD
    series: Series | None = None  # up to date when fetched: what may be stored
    partial: Series | None = None  # what a backfill had when it broke off: the next one resumes there
    exhausted_ms: int = 0  # see `Page`
    lagging: bool = False  # see `Page`
    image: Image | None = None  # what Redis has, as far as is known; None: the next write is whole
    buffered: bool = False  # a write failed, or Redis lost it: it is flushed as soon as Redis answers
    stored_end_ms: int = 0  # end of the newest closed candle that readers know of
    by_stream: bool = False  # who told of the newest closed candle
    next_close_ms: int = 0  # the end of the oldest candle that is not known to be closed
    completeness: float = 0.0
    fetched_ms: int = 0
    asked_ms: int = 0  # when REST was asked last: what streams have told since then is to be proven
    updated_ms: int = 0  # when what was written last was fetched
    tried_ms: int = 0
    error: TetError | None = None  # of the last update
    due: Due = field(default_factory=Due)
    stream: Stream = field(default_factory=lambda: Stream())
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    writing: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def name(self) -> str:
        """BTC/USDT 15m"""
        return f"{self.pair.name} {self.timeframe.name}"

    @property
    def fetch_failed(self) -> bool:
        """Whether the exchange did not give what the last update asked for."""
        return isinstance(self.error, ExchangeError)

    @property
    def failure(self) -> str:
        """Why the last update failed; empty when it did not."""
        return str(self.error or "")

    def restored(self, stored: Stored | None) -> None:
        """Redis was asked: it had these candles, or no sound ones."""
        with self.lock:
            self.known = Known.RESTORED if stored else Known.NOTHING
            if stored:
                self.image, self.buffered, self.partial = stored.image, False, None
                self.series, self.stored_end_ms = stored.series, stored.series.closed_end_ms
                self.fetched_ms = self.updated_ms = stored.written_ms
                self.completeness = stored.completeness

    def fetched(self, page: Page, began: Series | None, keep: int, now_ms: int) -> None:
        """The exchange has sent a page. Only an up-to-date series becomes what may be stored.

        ``began`` is the series when the fetch began. What a stream has told since then stays: all that the
        fetch has brought, which is in the page's answer then, is laid over that.
        """
        with self.lock:
            moved_on = self.series is not began
            if moved_on and self.known is not Known.CONFIRMED:
                return  # restored, disputed or evicted meanwhile: this was laid over what is gone
            self.exhausted_ms = page.exhausted_ms
            if not page.up_to_date:
                self.partial = None if moved_on else page.series
                return
            series = absorb(self.series, *page.answer, keep) if moved_on and self.series else page.series
            self._advance(series, now_ms, by_stream=False)
            self.known, self.partial, self.asked_ms = Known.CONFIRMED, None, page.answer.asked_ms
            self.lagging = is_lagging(series, page.answer.asked_ms)

    def told(self, candles: Candles, is_closed: bool, keep: int, now_ms: int) -> bool:
        """Its stream has told a candle. Returns whether that counts: if not, REST has to tell."""
        with self.lock:
            if not self.series or self.known is not Known.CONFIRMED:
                return False
            series = follow(self.series, candles, is_closed, keep)
            if series:
                self._advance(series, now_ms, by_stream=True)
                self.partial = None
            return series is not None

    def corrected(self, found: Iterable[Correction], keep: int, now_ms: int) -> None:
        """An audit has found what the exchange has otherwise: it is as the exchange has it now."""
        with self.lock:
            if not self.series:
                return
            candles = {open_ms: self.series.entry(i) for i, open_ms in enumerate(self.series.opens)}
            candles |= {each.open_ms: each.sent for each in found}
            candles = {open_ms: entry for open_ms, entry in sorted(candles.items()) if entry}
            series = Series(self.timeframe).merge(candles, self.series.newest_is_closed, keep)
            self._advance(series, now_ms, by_stream=False)

    def disputed(self) -> None:
        """Redis has other closed candles than these: the exchange is to decide, by a backfill."""
        with self.lock:
            self.series, self.partial, self.image = None, None, None
            self.known, self.buffered = Known.NOTHING, False

    def _advance(self, series: Series, now_ms: int, *, by_stream: bool) -> None:
        newest_end_ms = self.timeframe.close_of(series.opens[-1])
        if self.series and series.closed_end_ms > self.series.closed_end_ms:
            self.by_stream = by_stream
        is_closed = series.newest_is_closed
        self.next_close_ms = self.timeframe.close_of(newest_end_ms) if is_closed else newest_end_ms
        self.series, self.fetched_ms = series, max(self.fetched_ms, now_ms)

    def written(self, image: Image, fetched_ms: int) -> None:
        """Redis has the series now that was fetched then, as that image."""
        with self.lock:
            self.image, self.buffered, self.completeness = image, False, image.completeness
            self.updated_ms, self.stored_end_ms = fetched_ms, image.series.closed_end_ms

    def not_written(self) -> None:
        """Redis did not take the series, or has lost it; without a series there is nothing to flush."""
        with self.lock:
            self.image, self.buffered = None, self.series is not None

    def evicted(self) -> None:
        """The candles are in Redis and no longer in memory."""
        with self.lock:
            self.series, self.known, self.image = None, Known.UNREAD, None

    def flushed(self) -> None:
        """What was buffered is written; the error of a fetch since stays."""
        with self.lock:
            if isinstance(self.error, StoreError):
                self.error = None

    def tried(self, error: TetError | None, now_ms: int) -> None:
        """An update is done, well or with an error."""
        with self.lock:
            self.error, self.tried_ms = error, now_ms


@dataclass(frozen=True)
class IntervalPolicy:
    """How long an update interval is, from the settings of the same names. Seconds."""

    base_seconds: float
    max_age_seconds: float
    off_peak: float
    error_growth: float
    recovery: float

    @classmethod
    def of(cls, config: Config) -> IntervalPolicy:
        """The policy that the settings ask for."""
        return cls(
            config.update_interval,
            config.max_data_age,
            config.off_peak_multiplier if config.market_hours_optimization else 1.0,
            config.error_backoff_multiplier if config.adaptive_interval else 1.0,
            config.success_recovery_rate,
        )

    def next_error_factor(self, factor: float, failure_rate: float) -> float:
        """The error factor after a cycle: grown, shrunk or as it was; from 1 to what max age allows."""
        if failure_rate > FAILURES_GROW_ABOVE:
            factor *= self.error_growth
        elif failure_rate < FAILURES_SHRINK_BELOW:
            factor *= self.recovery
        return max(1.0, min(factor, self.max_age_seconds / self.base_seconds))

    def interval_seconds(self, hour_utc: int, error_factor: float) -> float:
        """The interval in force, always computed from the base: nothing compounds."""
        peak = hour_utc in PEAK_HOURS_UTC
        seconds = self.base_seconds * (1.0 if peak else self.off_peak) * error_factor
        return min(self.max_age_seconds, max(min(60.0, self.base_seconds), seconds))

    def reason(self, hour_utc: int, error_factor: float) -> str:
        """Why the interval is what it is, in words."""
        parts = [f"base {self.base_seconds:g} s"]
        if hour_utc not in PEAK_HOURS_UTC and self.off_peak != 1:
            parts.append(f"x {self.off_peak:g} off-peak")
        if error_factor > 1:
            parts.append(f"x {error_factor:.2f} after failures")
        return " ".join(parts) + f", at most {self.max_age_seconds:g} s"


def next_due_ms(started_ms: int, interval_seconds: float, timeframe: Timeframe) -> int:
    """When candles last asked for at ``started_ms`` are due again: the earlier of the interval's end
    and a second after the next close.
    """
    close_ms = timeframe.close_of(timeframe.floor(started_ms)) + AFTER_CLOSE_MS
    return min(started_ms + round(interval_seconds * SECOND_MS), close_ms)


def next_proof_ms(name: str, now_ms: int, interval_seconds: float) -> int:
    """When a live feed is proven by REST: in every tenth interval, a tenth of the feeds in each."""
    interval_ms = round(interval_seconds * SECOND_MS)
    number = (now_ms - interval_ms // 2) // interval_ms + 1
    turn = zlib.crc32(name.encode()) % PROOF_INTERVALS
    # In the middle of an interval: at its borders candles close.
    return (number + (turn - number) % PROOF_INTERVALS) * interval_ms + interval_ms // 2


class Schedule:
    """Who is due, in which order, and when to ask again. Times are passed in; the main thread owns it."""

    def __init__(self, policy: IntervalPolicy) -> None:
        self._policy = policy
        self._error_factor = 1.0
        self.interval_seconds = 0.0
        self.interval_reason = ""

    def due(self, feeds: Iterable[Feed], now_ms: int) -> list[Feed]:
        """The feeds that are due, the stalest first."""
        return sorted((feed for feed in feeds if feed.due.next_ms <= now_ms), key=lambda f: f.updated_ms)

    def urgent(self, feeds: Iterable[Feed], asked: Mapping[str, Due], now_ms: int) -> list[Feed]:
        """The feeds that have become due at once since a cycle has ``asked`` for its own: they come next.

        Those are another member's that have become ours, and those that a stream has left something out of.
        """
        due = (feed for feed in feeds if feed.due.next_ms <= now_ms and feed.name not in asked)
        return [feed for feed in due if not feed.due.regular_ms or feed.due.next_ms < feed.due.regular_ms]

    def cycle_ended(self, failure_rate: float) -> None:
        """Learn from the share of updates that failed in a cycle."""
        self._error_factor = self._policy.next_error_factor(self._error_factor, failure_rate)

    def regular_ms(self, feed: Feed, from_ms: int) -> int:
        """When a feed is due after ``from_ms``: by the interval and the closes; a live one for proof."""
        hour = from_ms // HOUR_MS % 24
        self.interval_seconds = self._policy.interval_seconds(hour, self._error_factor)
        self.interval_reason = self._policy.reason(hour, self._error_factor)
        if feed.stream.link is Link.LIVE and not feed.error:
            return next_proof_ms(feed.name, from_ms, self.interval_seconds)
        return next_due_ms(from_ms, self.interval_seconds, feed.timeframe)

    def plan(self, due: Iterable[Feed], regular: Iterable[Feed], started_ms: int, now_ms: int) -> None:
        """Set when feeds that were due at ``started_ms`` are due again; soon, where a candle lags behind."""
        for feed in regular:
            feed.due = Due(self.regular_ms(feed, started_ms))
        for feed in due:
            feed.due.next_ms = feed.due.regular_ms
            lags = feed.lagging and not feed.error and feed.stream.link is not Link.LIVE
            if lags and feed.due.reasks < len(REASK_SECONDS):
                soon_ms = now_ms + round(REASK_SECONDS[feed.due.reasks] * SECOND_MS)
                feed.due.next_ms = min(feed.due.regular_ms, soon_ms)
                feed.due.reasks += 1


# ------------------------------------------------------------------------------
# Shares (pure): who of several members owns which pair
# ------------------------------------------------------------------------------

MISSED_SECONDS = 6.0  # after which a member has missed what happened
ABSENT_SECONDS = 3.0  # a key deleted by hand is there again after 2 s: its member was not gone


def owner_of(pair: str, members: Iterable[str]) -> str:
    """The member, of one or more, that owns a pair: rendezvous hashing.

    Each pair ranks the members in an order of its own, and the first one owns it. So who joins takes its
    share from all, and who leaves gives its share to all; no other pair moves. All instances compute the
    same, whatever the order in which they know the members.
    """
    return max(members, key=lambda member: (_rank(pair, member), member))


def _rank(pair: str, member: str) -> bytes:
    return hashlib.blake2b(f"{member}\0{pair}".encode(), digest_size=8).digest()


class Entry(NamedTuple):
    """What a member says of itself: its group and address, and whether it has just left."""

    group: str
    egress: str
    left: bool


def parse_entry(text: str) -> Entry | None:
    """A member's entry; None for what is not one, which another program or version may have put there."""
    with suppress(ValueError, KeyError, TypeError):
        entry = decode_json(text)
        return Entry(str(entry["group"]), str(entry["egress"]), bool(entry["left"]))
    return None


class Roster:
    """Who is there: all members on this Redis, and when each was seen last. Times are passed in.

    Who leaves is gone at once; who is absent, after `ABSENT_SECONDS`.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Entry, float]] = {}
        self._looked_seconds = 0.0

    def note(self, entries: Texts, joined: bool, now_seconds: float) -> tuple[set[str], set[str]]:
        """Take over who is there now. Returns who has come, and who is gone.

        Who has just ``joined``, or lost its own key, or has not looked for long, has missed what happened:
        for it the others may be back any moment, too, and are absent only from now on.
        """
        before = set(self._seen)
        if joined or now_seconds - self._looked_seconds > MISSED_SECONDS:
            self._seen = {member: (entry, now_seconds) for member, (entry, _) in self._seen.items()}
        for member, text in entries.items():
            if (entry := parse_entry(text)) and not entry.left:
                self._seen[member] = (entry, now_seconds)
            else:
                self._seen.pop(member, None)
        self._looked_seconds, since = now_seconds, now_seconds - ABSENT_SECONDS
        self._seen = {member: seen for member, seen in self._seen.items() if seen[1] >= since}
        return set(self._seen) - before, before - set(self._seen)

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        return iter([(member, entry) for member, (entry, _) in sorted(self._seen.items())])

    def of_group(self, group: str) -> list[str]:
        """The members that divide the pairs of a group."""
        return sorted(member for member, (entry, _) in self._seen.items() if entry.group == group)

    def behind(self, egress: str) -> int:
        """How many members, of all groups, send requests by an address."""
        return sum(entry.egress == egress for entry, _ in self._seen.values())


# ------------------------------------------------------------------------------
# The exchange's clock, and the gate that every request passes
# ------------------------------------------------------------------------------

#: An offset of the local clock worth a log line, and a jump of it worth asking for the time again.
MAX_CLOCK_OFFSET_MS = 1 * SECOND_MS
#: How far the exchange clock kept here may be off before a candle counts as one from the future.
CLOCK_TOLERANCE_MS = 2 * SECOND_MS
LEASE_POLL_SECONDS = 0.25  # how often a thread looks whether a lease was renewed
PROBE_POLL_SECONDS = 0.1  # how often a thread looks whether another one's probe was served


class Clock:
    """The exchange's time, and waiting that a stop cuts short.

    Exchange time runs on the monotonic clock from the last answer to ``/time``, so a step of the
    local clock does not move it; before the first answer it is the local time. Thread-safe.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._ahead_ms = self._local_ms() - self.monotonic() * SECOND_MS
        self._local_ahead_ms = self._ahead_ms
        self.synced_at: float | None = None
        self.on_stop: Callable[[], None] = lambda: None  # wakes who waits elsewhere

    def monotonic(self) -> float:
        """Seconds that only ever grow, for measuring."""
        return time.monotonic()

    def _local_ms(self) -> float:
        return time.time() * SECOND_MS

    def now_ms(self) -> int:
        """Exchange time in ms since the epoch, as well as it is known."""
        return self.at(self.monotonic())

    def at(self, monotonic_seconds: float) -> int:
        """Exchange time, in ms, at a monotonic moment."""
        return int(monotonic_seconds * SECOND_MS + self._ahead_ms)

    def sync(self, server_ms: int, sent: float, received: float) -> float:
        """Take over the exchange's time, received between two monotonic moments.

        Returns the clock offset in ms: local time minus exchange time.
        """
        self._ahead_ms = server_ms - (sent + received) / 2 * SECOND_MS
        self._local_ahead_ms = self._local_ms() - self.monotonic() * SECOND_MS
        self.synced_at = received
        return self._local_ahead_ms - self._ahead_ms

    def is_doubtful(self) -> bool:
        """Whether to ask for the time again: never asked, an hour ago, or the local clock has jumped.

        A jump against the monotonic clock also shows that the machine was suspended.
        """
        if self.synced_at is None or self.monotonic() - self.synced_at > 3600:
            return True
        jumped = self._local_ms() - self.monotonic() * SECOND_MS - self._local_ahead_ms
        return abs(jumped) > MAX_CLOCK_OFFSET_MS

    def stop(self) -> None:
        """Make every wait end, now and from now on."""
        self._stop.set()
        self.on_stop()

    def take(self, waiting: queue.SimpleQueue[T], seconds: float) -> T | None:
        """The next of what waits in a queue, or comes within so long; None when nothing does."""
        with suppress(queue.Empty):
            return waiting.get(timeout=max(0.0, seconds))
        return None

    def is_stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raise Stopped when a stop was asked for."""
        if self.is_stopped():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait; raise Stopped as soon as a stop is asked for."""
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise Stopped


class RequestGate:
    """Admits every request to Binance, retries and checks included: flowing, paused, probing, flowing.

    Three limits in one: a pause that the exchange asked for, the weight left in this minute, and the
    token bucket; for a member of several a fourth: a lease, see `Membership`. When a pause is over the gate
    is probing: it admits one request alone (the probe), and the others once the exchange has served one. Any
    thread may use it; `_lock` guards every change.
    """

    def __init__(self, clock: Clock, rate: float, weight_limit: int) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._bucket = TokenBucket(rate, clock.monotonic())
        self._budget = WeightBudget(weight_limit)
        self._resume_seconds = 0.0  # monotonic: the end of the pause
        self._lease_seconds = (0.0, math.inf)  # monotonic: from when until when requests are allowed
        self._probing = False
        self._probe_thread: int | None = None
        self.paused_until_ms = 0
        self.pause_reason = ""

    @contextmanager
    def admit(self, weight: int) -> Iterator[None]:
        """Wait until a request of that weight may go out, and send it in the block. Raises Stopped.

        A request whose block ends without an exception was served.
        """
        self.enter(weight)
        served = False
        try:
            yield
            served = True
        finally:
            self.leave(served)

    def enter(self, weight: int) -> None:
        """Wait until a request of that weight may go out, and count it. Raises Stopped."""
        counted = False
        while True:
            with self._lock:
                if delay := self._pause_or_probe_seconds():
                    counted = False  # a pause may last longer than the minute it was counted in
                elif counted:
                    return
                elif not (delay := self._budget.wait_ms(weight, self._clock.now_ms()) / SECOND_MS):
                    self._budget.spend(weight, self._clock.now_ms())
                    delay = self._bucket.reserve(self._clock.monotonic())
                    counted = True
            self._clock.sleep(delay)

    def _pause_or_probe_seconds(self) -> float:
        """How long to wait for the pause or another thread's probe; 0 makes the caller the probe, if any."""
        now_seconds, (begin, end) = self._clock.monotonic(), self._lease_seconds
        left = max(self._resume_seconds, begin) - now_seconds
        if left > 0:
            return left
        if now_seconds > end:
            return LEASE_POLL_SECONDS
        if self._probing:
            if self._probe_thread not in (None, threading.get_ident()):
                return PROBE_POLL_SECONDS
            self._probe_thread = threading.get_ident()
        return 0.0

    def leave(self, served: bool) -> None:
        """End a request that had entered; one that was served ends the probing."""
        with self._lock:
            if self._probe_thread == threading.get_ident():
                self._probe_thread = None
            if served and self._clock.monotonic() >= self._resume_seconds:
                self._probing, self.paused_until_ms, self.pause_reason = False, 0, ""

    def pause(self, seconds: float, reason: str) -> bool:
        """Admit nothing for so long. Returns whether that is new: a longer pause than before."""
        with self._lock:
            until = self._clock.monotonic() + seconds
            is_new = until > self._resume_seconds + 1
            if until > self._resume_seconds:
                self._resume_seconds = until
                self.paused_until_ms = self._clock.now_ms() + round(seconds * SECOND_MS)
                self.pause_reason = reason
            self._probing = True
            return is_new

    def lease(self, begin_seconds: float, end_seconds: float) -> None:
        """Admit requests between these two monotonic moments only."""
        with self._lock:
            self._lease_seconds = (begin_seconds, end_seconds)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self._bucket.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        with self._lock:
            self._bucket.set_rate(rate, self._clock.monotonic())

    def pause_left_seconds(self) -> float:
        """How long the pause lasts from now; 0 when there is none."""
        return max(0.0, self._resume_seconds - self._clock.monotonic())

    def learn(self, used: int, sent_ms: int) -> None:
        """Take over the exchange's own count of used weight from a reply to a request sent at ``sent_ms``."""
        with self._lock:
            self._budget.learn(used, sent_ms, self._clock.now_ms())

    def used_weight(self) -> int:
        """The weight used in this minute, as far as it is known."""
        with self._lock:
            return self._budget.used_at(self._clock.now_ms())

    @property
    def weight_limit(self) -> int:
        """The exchange's limit of weight per minute."""
        return self._budget.limit

    @weight_limit.setter
    def weight_limit(self, limit: int) -> None:
        with self._lock:
            self._budget.limit = limit


# ------------------------------------------------------------------------------
# Binance (edge)
# ------------------------------------------------------------------------------

ATTEMPTS = 3
CLOCK_SAMPLES = 3
SLOW_SAMPLE_SECONDS = 1.0
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
REPLY_SECONDS = 20.0
MAX_REPLY_BYTES = 16 * 1024 * 1024


class Market(NamedTuple):
    """What differs between Binance's markets: paths, page size, weights (source: its REST documentation)."""

    prefix: str
    page_rows: int
    info_weight: int
    info_query: Mapping[str, str]
    tickers_weight: int
    tickers_query: Mapping[str, str]
    weight_limit: int  # until exchangeInfo is read

    def klines_weight(self, limit: int) -> int:
        """The weight of a klines request for that many rows."""
        if self.prefix == "/api/v3":
            return 2
        return 1 if limit < 100 else 2 if limit < 500 else 5 if limit <= 1000 else 10


#: On USD-M futures 499 rows weigh 2, the least weight per row of all page sizes.
MARKETS = {
    "spot": Market("/api/v3", 1000, 20, {"showPermissionSets": "false"}, 80, {"type": "MINI"}, 6000),
    "usdm": Market("/fapi/v1", 499, 1, {}, 40, {}, 2400),
}
TRADING_PERMISSIONS = (
    "enableSpotAndMarginTrading enableMargin enableFutures enableVanillaOptions enablePortfolioMarginTrading "
    "enableFixApiTrade enableWithdrawals enableInternalTransfer permitsUniversalTransfer"
).split()
HTTP_HEADERS = {"User-Agent": f"tet-data-service/{__version__}", "Accept": "*/*", "Accept-Encoding": "gzip"}
HTTP_TIMEOUTS = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS, "pool": None}
PASSING_CODES = frozenset({-1000, -1001, -1003, -1007, -1021})


class ExchangeInfo(NamedTuple):
    """The exchange's symbols by name, and its limit of weight per minute (None when it gives none)."""

    listings: Mapping[str, Listing]
    weight_limit: int | None


def parse_exchange_info(body: bytes) -> ExchangeInfo:
    """Check an exchangeInfo reply. Raises BadReply. All but what is needed is dropped while decoding."""
    try:
        info = decode_json(body, object_hook=_thin_listing)
        listings = [entry for entry in info["symbols"] if isinstance(entry, Listing)]
        if not listings:
            raise ValueError("no symbols")
        limits = [
            int(limit["limit"])
            for limit in info["rateLimits"]
            if limit["rateLimitType"] == "REQUEST_WEIGHT" and limit["interval"] == "MINUTE"
        ]
        return ExchangeInfo({listing.symbol: listing for listing in listings}, min(limits, default=None))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadReply(f"the exchangeInfo reply is damaged: {error!r:.200}") from error


def _thin_listing(entry: dict[str, Any]) -> object:
    if "baseAsset" in entry and "quoteAsset" in entry:
        listing = Listing(*(entry.get(name, "") for name in ("symbol", "status", "baseAsset", "quoteAsset")))
        return listing if all(type(name) is str and name.isprintable() for name in listing) else None
    return None if "filterType" in entry else entry


def parse_volumes(body: bytes) -> dict[str, float]:
    """The quote volume of a day by symbol, from a ticker/24hr reply. Raises BadReply."""
    try:
        tickers = decode_json(body)
        if not isinstance(tickers, list):
            raise ValueError("not a list")
        volumes = {str(ticker["symbol"]): float(ticker["quoteVolume"]) for ticker in tickers}
        if not all(map(math.isfinite, volumes.values())):
            raise ValueError("a volume that is no number")
        return volumes
    except (ValueError, KeyError, TypeError) as error:
        raise BadReply(f"the ticker/24hr reply is damaged: {error!r:.200}") from error


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        reply = decode_json(body)
    except ValueError as error:
        raise BadReply(f"the reply is not JSON: {error}") from error
    if not isinstance(reply, dict):
        raise BadReply("the reply is not an object")
    return reply


class Reply(NamedTuple):
    """An HTTP reply, read whole; ``sent`` and ``received`` are monotonic seconds."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent: float
    received: float


class Binance:
    """Reads one market of Binance. Every request passes the gate.

    All methods raise TransientError after the last attempt, SymbolError, RefusedError or Stopped.
    ``on_pause`` is called when the gate has been paused; ``on_request`` after each request with how many
    seconds it took. Workers share it: the gate and the tallies have locks of their own, `_lock` guards
    the fields below it, and `_parsing` lets one thread parse at a time.
    """

    def __init__(self, config: Config, clock: Clock, http: httpx.HTTPTransport) -> None:
        self.market = MARKETS[config.binance_market]
        self.gate = RequestGate(clock, config.api_requests_per_sec, self.market.weight_limit)
        self.on_pause: Callable[[], None] = lambda: None
        self.on_request: Callable[[float], None] = lambda seconds: None
        self.attempts = ATTEMPTS
        self.requests = figures.Tally()  # by HTTP status, or "no answer"
        self.errors = figures.Tally()  # failed attempts, by kind
        self._config = config
        self._clock = clock
        self._http = http
        self._lock = threading.Lock()
        self._firewall_refusals = 0  # 403 in a row, of which those in flight together are one
        self._refused_seconds = 0.0  # monotonic: the last of them
        self._latest_seconds: deque[float] = deque(maxlen=20)  # of requests that were served
        self._parsing = threading.Lock()  # Python runs no two at once anyway; each holds a page of objects

    @property
    def best_latency_seconds(self) -> float:
        """The quickest of the latest replies: a slow one may have waited for us."""
        with self._lock:
            return min(self._latest_seconds, default=0.0)

    def sync_clock(self) -> float:
        """Ask for the exchange's time and set the clock. Returns the clock offset in ms.

        Half of the time a reply took is how wrong it may be: a slow one is asked for again.
        """

        def parse(reply: Reply) -> tuple[float, int, Reply]:
            server_ms = _parse_object(reply.body).get("serverTime")
            if type(server_ms) is not int or not 0 < server_ms < 2**47:
                raise BadReply(f"serverTime cannot be {server_ms!r:.40}")
            return reply.received - reply.sent, server_ms, reply

        samples = []
        for _ in range(CLOCK_SAMPLES):
            samples.append(self._get(f"{self.market.prefix}/time", {}, 1, parse))
            if samples[-1][0] < SLOW_SAMPLE_SECONDS:
                break
        _, server_ms, reply = min(samples, key=lambda sample: sample[0])
        return self._clock.sync(server_ms, reply.sent, reply.received)

    def exchange_info(self) -> ExchangeInfo:
        """Ask for all symbols and the limits, and take the weight limit over."""
        path = f"{self.market.prefix}/exchangeInfo"
        weight, query = self.market.info_weight, self.market.info_query
        info = self._get(path, query, weight, lambda reply: parse_exchange_info(reply.body))
        if info.weight_limit:
            self.gate.weight_limit = info.weight_limit
        return info

    def day_volumes(self) -> dict[str, float]:
        """Ask for the quote volume of the last 24 hours of every symbol."""
        path, market = f"{self.market.prefix}/ticker/24hr", self.market
        return self._get(path, market.tickers_query, market.tickers_weight, lambda r: parse_volumes(r.body))

    def look_up(self, config: Config) -> tuple[Mapping[str, Listing], Meant]:
        """Ask which symbols there are, and which of them are meant."""
        listings = self.exchange_info().listings
        volumes = self.day_volumes() if any(name.startswith("@") for name in config.symbols) else {}
        return listings, expand_symbols(config.symbols, listings, volumes, config.max_symbols)

    def klines(
        self,
        symbol: str,
        timeframe: Timeframe,
        first_ms: int,
        limit: int,
        last_ms: int | None = None,
        nonempty: bool = False,
    ) -> Answer:
        """Ask for candles that open from ``first_ms`` on, up to ``last_ms`` or the forming one.

        With ``nonempty`` there must be one, and an empty reply is a bad one.
        """
        params = {"symbol": symbol, "interval": timeframe.name, "startTime": first_ms, "limit": limit}
        if last_ms is not None:
            params["endTime"] = last_ms

        def parse(reply: Reply) -> Answer:
            newest_ms = self._clock.now_ms() + CLOCK_TOLERANCE_MS if last_ms is None else last_ms
            candles = parse_klines(reply.body, timeframe, first_ms, newest_ms, limit)
            if nonempty and not candles:
                raise BadReply("the klines reply has no candle where there must be some")
            return Answer(candles, self._clock.at(reply.sent))

        return self._get(f"{self.market.prefix}/klines", params, self.market.klines_weight(limit), parse)

    def key_permissions(self) -> dict[str, Any]:
        """Ask what the API key may do: a signed call, the only one that carries the key."""
        path = "/sapi/v1/account/apiRestrictions"
        return self._get(path, {}, 1, lambda reply: _parse_object(reply.body), signed=True)

    def _get(
        self, path: str, params: Params, weight: int, parse: Callable[[Reply], T], signed: bool = False
    ) -> T:
        """Ask, check and parse, up to `attempts` times; a pause in between is waited out at the gate."""
        for attempt in range(1, self.attempts + 1):
            try:
                reply = self._ask(path, params, weight, signed)
                with self._parsing:
                    return parse(reply)
            except TransientError as error:
                say(logging.DEBUG, "request failed", path=path, attempt=attempt, reason=str(error))
                self.errors.add(type(error).__name__)
                if attempt == self.attempts:
                    raise
                if not isinstance(error, PauseError):
                    self._clock.sleep(backoff_seconds(attempt, random.random()))
        raise AssertionError("unreachable")

    def _ask(self, path: str, params: Params, weight: int, signed: bool) -> Reply:
        """Send one request through the gate: a good reply, or the fitting error."""
        with self.gate.admit(weight):
            url = f"{self._config.binance_base_url}{path}?{urlencode(params)}".rstrip("?")
            reply = self._counted(*self._signed(path, params) if signed else (url, {}))
            used = reply.headers.get("x-mbx-used-weight-1m", "")
            if re.fullmatch("[0-9]{1,9}", used):
                self.gate.learn(int(used), self._clock.at(reply.sent))
            if reply.status in PAUSES:
                raise self._paused(reply)
        with self._lock:
            self._firewall_refusals = 0
            self._latest_seconds.append(reply.received - reply.sent)
        if reply.status != 200:
            raise _error_of(reply)
        return reply

    def _counted(self, url: str, headers: dict[str, str]) -> Reply:
        """Send one request, and count it and how long it took, whatever comes of it."""
        status, began = "no answer", self._clock.monotonic()
        try:
            reply = self._send(url, headers)
            status = str(reply.status)
            return reply
        finally:
            self.requests.add(status)
            self.on_request(self._clock.monotonic() - began)

    def _signed(self, path: str, params: Params) -> tuple[str, dict[str, str]]:
        """The address and headers of a signed request (HMAC-SHA256 over the query, appended last)."""
        config, base = self._config, self._config.binance_base_url
        if base == "https://fapi.binance.com":  # account endpoints live with the spot market
            base = "https://api.binance.com"
        query = urlencode({**params, "recvWindow": 5000, "timestamp": self._clock.now_ms()})
        secret = (config.binance_secret_key or "").encode()
        signature = hmac.new(secret, query.encode(), hashlib.sha256).hexdigest()
        return f"{base}{path}?{query}&signature={signature}", {"X-MBX-APIKEY": config.binance_api_key or ""}

    def _send(self, url: str, headers: dict[str, str]) -> Reply:
        import httpx

        sent = self._clock.monotonic()
        try:
            limits = {"timeout": HTTP_TIMEOUTS, "reply_seconds": REPLY_SECONDS}
            request = httpx.Request("GET", url, headers=HTTP_HEADERS | headers, extensions=limits)
            with closing(self._http.handle_request(request)) as response:
                body = self._read(response)
                return Reply(response.status_code, response.headers, body, sent, self._clock.monotonic())
        except httpx.TimeoutException as error:
            raise TransientError(f"no answer from Binance in time ({type(error).__name__})") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise TransientError(f"the way to Binance failed: {error or type(error).__name__}") from error

    def _read(self, response: httpx.Response) -> bytes:
        """The body, bounded in size."""
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_REPLY_BYTES:
                raise BadReply(f"a reply of more than {MAX_REPLY_BYTES >> 20} MB is refused")
        return bytes(body)

    def _paused(self, reply: Reply) -> PauseError:
        """Pause the gate as the reply asks, and the error that says so."""
        with self._lock:
            if reply.status == 403 and reply.sent > self._refused_seconds:
                self._firewall_refusals += 1
                self._refused_seconds = reply.received
            repeat = max(0, self._firewall_refusals - 1)
        retry_after, now_ms = reply.headers.get("retry-after"), self._clock.now_ms()
        seconds = pause_seconds(reply.status, retry_after, reply.body, now_ms, repeat)
        reason = PAUSES[reply.status].reason
        if self.gate.pause(seconds, reason):
            event = "banned" if reply.status == 418 else "rate limited" if reply.status == 429 else "refused"
            event = f"{event} by binance, pausing"
            say(logging.WARNING, event, status=reply.status, seconds=round(seconds), reason=reason)
            self.on_pause()
        return PauseError(reason)


def _error_of(reply: Reply) -> ExchangeError:
    """The error that a reply other than 200 stands for (codes: Binance's error documentation)."""
    try:
        refusal = _parse_object(reply.body)
    except BadReply:
        refusal = {}
    code, text = refusal.get("code"), f"HTTP {reply.status}"
    if type(code) is int:
        message = str(refusal.get("msg", ""))[:160].encode(errors="replace").decode()
        text += f", code {code}: {message}"
    if code == -1121:
        return SymbolError("unknown to Binance")
    if 300 <= reply.status < 400:
        return RefusedError(f"a redirect is not followed ({text}); is BINANCE_BASE_URL right?")
    if reply.status >= 500 or code in PASSING_CODES or reply.status == 408:
        return TransientError(f"Binance answers {text}")
    return RefusedError(f"Binance refuses: {text}")


def connect_http(config: Config) -> httpx.HTTPTransport:
    """The connections to Binance: kept alive, at most one per worker, TLS verified, no redirects.

    Raises ConfigError when what the environment says of certificates or proxies cannot be used.
    """
    import httpx

    from tet_extras.transport import Transport

    base_url = config.binance_base_url
    # Plain http is for this machine alone when there are keys: no proxy may come in between.
    local = urlsplit(base_url).scheme == "http" and addresses.is_private(base_url)
    try:
        return Transport(base_url, config.concurrent_requests, no_proxy=local)
    except (OSError, ImportError, ValueError, httpx.InvalidURL) as error:
        names = "SSL_CERT_FILE, SSL_CERT_DIR or a proxy variable such as HTTPS_PROXY"
        problem = f"{names} (environment): cannot be used: {without_password(str(error))}"
        raise ConfigError([problem]) from error


# ------------------------------------------------------------------------------
# Redis (edge)
# ------------------------------------------------------------------------------

STORE_SECONDS = 5.0
MAX_STORE_BACKOFF_SECONDS = 30.0
#: The same where another server takes the place of one that fails, or another member, within seconds.
MAX_FAILOVER_BACKOFF_SECONDS = 4.0


#: The one way by which anything is written, in one step: no reader sees half of it. A whole value is uploaded
#: under a key of its own and renamed here: to pass it through Lua cost Redis five times as much.
WRITE_SCRIPT = """
-- KEYS: the value's key; then the timestamp's, if both are on one server; then, if whole, the upload's.
-- ARGV: 1 age: last_update, data_end and last_candle_time of the value offered; '' for a value without
--       2 the latest last_update that is believed   3 timeframe   4 offset of a patch, -1: it is whole
--       5 what a patch replaces   6 with what   7 expiry in ms
--       8 the timestamp   9 its expiry in ms   10 channel   11 announcement
local offset, found = tonumber(ARGV[4]), nil
local upload = offset < 0 and table.remove(KEYS)
local function refuse(...)
  if upload then redis.call('DEL', upload) end
  return {...}
end
for _, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'string' and kind ~= 'none' then return refuse('taken', key, kind) end
  found = found or kind
end
local same = not upload and redis.call('GETRANGE', KEYS[1], offset, -1) == ARGV[5]
if not same and ARGV[1] ~= '' then
  -- The end of a value of ours has its age. A damaged one may be written over.
  local tail = redis.call('GETRANGE', KEYS[1], -512, -1)
  local fields = string.sub(tail, string.find(tail, '"last_candle_time"', 1, true) or #tail)
  local newest, update, closed, frame = string.match(fields, '^"last_candle_time":"([^"]+)",' ..
    '"last_update":"([^"]+)","data_start":"[^"]+","data_end":"([^"]+)","data_completeness":[^,]+,' ..
    '"candle_count":%d+,"timeframe":"([^"]+)","data_age_seconds":%d+} *$')
  if update and frame == ARGV[3] and update <= ARGV[2] and update .. closed .. newest > ARGV[1] then
    return refuse('newer')
  end
end
if upload then
  redis.call('RENAME', upload, KEYS[1])
elseif same then
  redis.call('SETRANGE', KEYS[1], offset, ARGV[6])
else
  return {'whole'}
end
redis.call('PEXPIRE', KEYS[1], ARGV[7])
if KEYS[2] then
  redis.call('SET', KEYS[2], ARGV[8], 'PX', ARGV[9])
  redis.call('PUBLISH', ARGV[10], ARGV[11])
end
return {found == 'none' and 'created' or 'written'}
"""
#: In a cluster a pair's keys are on different nodes: once its value is written, this writes the timestamp.
STAMP_SCRIPT = """
-- KEYS: the timestamp's. ARGV: 1 it   2 the latest that is believed   3 its expiry in ms
--       4 channel   5 announcement
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' and kind ~= 'none' then return {'taken', KEYS[1], kind} end
local held = redis.call('GET', KEYS[1])
if held and held > ARGV[1] and held <= ARGV[2] then return {'newer'} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return {'written'}
"""
#: How a member of several says that it is there, and who else is.
MEMBER_SCRIPT = """
-- KEYS: the set of members' ids; the member's own. ARGV: 1 its id   2 its entry   3 expiry in ms
local had = redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3], 'GET')
redis.call('SADD', KEYS[1], ARGV[1])
local found = {had and 'renewed' or 'joined'}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local entry = redis.call('GET', KEYS[1] .. ':' .. id)
  if entry then
    table.insert(found, id)
    table.insert(found, entry)
  else
    redis.call('SREM', KEYS[1], id)
  end
end
return found
"""
UPLOAD_MS = 30 * SECOND_MS  # an upload that was not renamed is gone after so long
#: A value in Redis that was updated later than this from now is not believed: somebody's clock was wrong.
MAX_AHEAD_MS = 60 * SECOND_MS

#: How many bytes from the end of a stored value hold its fields and its newest candle, and then some.
TAIL_BYTES = 1200


def _unless_error(answers: list[Any]) -> list[Any]:
    """The answers of a pipeline; the first error among them is raised, without the command in its text."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


class Outages:
    """Which servers cannot be reached, why, and when each is tried again.

    After a failed connection the next one waits, doubling; until then every call fails at once, so that
    workers do not queue up for time-outs. Any thread may use it; `_lock` guards each change.
    """

    class Outage(NamedTuple):
        """Of one server: how often in a row no connection could be had, until when to wait, and why."""

        failures: int
        retry_at_seconds: float  # monotonic
        reason: str

    def __init__(self, clock: Clock, most_seconds: float) -> None:
        self._clock = clock
        self._most_seconds = most_seconds
        self._lock = threading.Lock()
        self._away: dict[str, Outages.Outage] = {}

    def __bool__(self) -> bool:
        return bool(self._away)

    def check(self, node: str) -> None:
        """Raise StoreError while that server is not to be tried."""
        if (outage := self._away.get(node)) and outage.retry_at_seconds > self._clock.monotonic():
            raise StoreError(outage.reason)

    def note(self, node: str, reason: str) -> bool:
        """A server could not be reached. Returns whether that is news."""
        with self._lock:
            first, failures = not self._away, self._away[node].failures + 1 if node in self._away else 1
            wait_seconds = min(self._most_seconds, 0.5 * 2.0 ** min(failures, 10))
            self._away[node] = self.Outage(failures, self._clock.monotonic() + wait_seconds, reason)
        return first

    def over(self, node: str, nodes: set[str]) -> bool:
        """A server answered; of all ``nodes`` only those count. Returns whether none is away any more."""
        with self._lock:
            was_away = bool(self._away)
            self._away = {name: kept for name, kept in self._away.items() if name != node and name in nodes}
            return was_away and not self._away

    @property
    def reason(self) -> str:
        """Why a server is away; empty when none is."""
        return next((outage.reason for outage in tuple(self._away.values())), "")

    def retry_seconds(self, nodes: int) -> float:
        """How long until a connection is tried; 0 while one of so many servers is well."""
        ends = [outage.retry_at_seconds for outage in tuple(self._away.values())]
        return max(0.0, min(ends) - self._clock.monotonic()) if ends and len(ends) >= nodes else 0.0


class Store:
    """Keeps values in Redis.

    All that is written goes through `WRITE_SCRIPT`, in a cluster a timestamp through `STAMP_SCRIPT`. All
    methods raise StoreError. Any thread may use it.
    """

    def __init__(self, config: Config, clock: Clock, servers: Servers) -> None:
        self._config = config
        self._clock = clock
        self._servers = servers
        self._in_cluster = config.redis_mode == "cluster"
        alone = config.redis_mode == "single" and not config.takes_part
        self.outages = Outages(clock, MAX_STORE_BACKOFF_SECONDS if alone else MAX_FAILOVER_BACKOFF_SECONDS)
        self._pause_key = f"{PAUSE_KEY}:{config.egress}" if config.egress else PAUSE_KEY

    @contextmanager
    def _answering(self, key: str = "") -> Iterator[Servers]:
        """The servers, for one call about a key: errors become StoreError; failed connections are noted."""
        import redis

        from tet_extras.servers import AWAY

        node = self._servers.node_of(key)
        self.outages.check(node)
        try:
            yield self._servers
        except AWAY as error:
            raise self._unreachable(node, error) from error
        except redis.RedisError as error:
            raise StoreError(with_remedy("Redis refuses", error)) from error
        if self.outages and self.outages.over(node, self._servers.nodes()):
            say(logging.INFO, "redis reachable again")

    def _unreachable(self, node: str, error: Exception) -> StoreError:
        """Note that no connection could be had; a wrong password is none either, and is reported as such."""
        import redis

        error = error.__cause__ if isinstance(error.__cause__, redis.AuthenticationError) else error
        refused = isinstance(error, redis.AuthenticationError)
        where = node or without_password(self._config.redis_addr)
        reason = with_remedy(
            f"Redis at {where} {'refuses the login' if refused else 'does not answer'}", error
        )
        if self.outages.note(node, reason):
            event = "redis refuses the login" if refused else "redis unreachable"
            say(logging.WARNING, f"{event}, buffering updates in memory", reason=reason)
        return StoreError(reason)

    @property
    def retry_seconds(self) -> float:
        """How long until the next connection is tried; 0 when nothing is wrong, or something else works."""
        return self.outages.retry_seconds(len(self._servers.nodes())) if self.outages else 0.0

    def prepare(self) -> None:
        """See whether Redis answers, lets us in, and runs the scripts by which all is written."""
        with self._answering() as servers:
            servers.ping()
            for script in (WRITE_SCRIPT, STAMP_SCRIPT) if self._in_cluster else (WRITE_SCRIPT,):
                servers.load(script)

    def run(
        self, script: str, keys: Sequence[str], *arguments: bytes | str | int, upload: object = None
    ) -> str:
        """Run a script on one server: its answer's first word. Raises TakenError, too."""
        answer, *details = self._ask(script, keys, *arguments, upload=upload)
        if answer == "taken":
            raise TakenError(*details)
        return answer

    def _ask(
        self, script: str, keys: Sequence[str], *arguments: bytes | str | int, upload: object = None
    ) -> list[str]:
        """Run a script on one server: the words of its answer.

        A value to ``upload`` goes there first, in the same round trip, under a key that is the script's last.
        """
        import redis

        commands: list[Sequence[Any]] = []
        if upload is not None:
            keys = [*keys, UPLOAD_KEY.format(key=keys[0])]
            commands.append(("SET", keys[-1], upload, "PX", UPLOAD_MS))
        commands.append(("EVALSHA", _sha_of(script), len(keys), *keys, *arguments))
        with self._answering(keys[0]) as servers:
            try:
                answers = _unless_error(servers.together(commands))[-1]
            except redis.exceptions.NoScriptError:  # the server was restarted, or was a replica before
                servers.load(script, keys[0])
                answers = _unless_error(servers.together(commands))[-1]
        return [part.decode() for part in answers]

    def renew_member(self, member: str, entry: Mapping[str, object], expiry_ms: int) -> tuple[bool, Texts]:
        """Say that a member is there. Returns whether its key was gone, and the entries of all by id."""
        keys = [MEMBERS_KEY, f"{MEMBERS_KEY}:{member}"]
        answer, *found = self._ask(MEMBER_SCRIPT, keys, member, json.dumps(entry), expiry_ms)
        return answer == "joined", dict(zip(found[::2], found[1::2], strict=True))

    def _write_plain(self, key: str, text: str, expiry_seconds: float) -> str:
        """Write a text with an expiry."""
        expiry_ms = max(1, round(expiry_seconds * SECOND_MS))
        return self.run(WRITE_SCRIPT, [key], "", "", "", -1, "", "", expiry_ms, upload=text)

    def save(
        self, pair: Pair, image: Image, patch: Patch | None, good_ms: int, announcement: Mapping[str, object]
    ) -> str:
        """Write a pair's value, whole or as a patch, and its timestamp, and announce it: one round trip.

        In a cluster it is two, the value before the timestamp, so that who trusts the timestamp never reads
        an older value. ``good_ms`` is the time of the last good update, exchange time. Returns "created" or
        "written"; or "newer" where Redis has a newer value, and "whole" where it has not what the patch is
        for: nothing is written then.
        """
        series, timeframe, config = image.series, image.series.timeframe, self._config
        age = "".join(map(iso_time, (good_ms, series.closed_end_ms, series.opens[image.end - 1])))
        latest = iso_time(self._clock.now_ms() + MAX_AHEAD_MS)
        offset, expected, new = patch[:3] if patch else (-1, b"", b"")
        value_key, stamp_key = kline_key(timeframe, pair), timestamp_key(timeframe, pair)
        stamp = (iso_time(good_ms), config.timestamp_ttl * SECOND_MS)
        news = (UPDATES_CHANNEL, json.dumps(announcement, separators=(",", ":")))
        answer = self.run(
            WRITE_SCRIPT,
            [value_key] if self._in_cluster else [value_key, stamp_key],
            *(age, latest, timeframe.name, offset, expected, new, config.kline_ttl * SECOND_MS),
            *(*stamp, *news),
            upload=None if patch else image.whole(),
        )
        if self._in_cluster and answer in ("created", "written"):
            self.run(STAMP_SCRIPT, [stamp_key], stamp[0], latest, stamp[1], *news)
        return answer

    def save_status(self, status: Mapping[str, object]) -> bool:
        """Write the status key. Returns whether there was one before: if not, Redis may have been emptied."""
        text = json.dumps(status, separators=(",", ":"))
        return self._write_plain(STATUS_KEY, text, self._config.status_ttl) == "written"

    def save_member_status(self, member: str, status: Mapping[str, object]) -> bool:
        """Write a member's own status. Returns whether there was one before."""
        text = json.dumps(status, separators=(",", ":"))
        return (
            self._write_plain(MEMBER_STATUS_KEY.format(id=member), text, self._config.status_ttl) == "written"
        )

    def load_member_statuses(self, members: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What members have written of themselves, of those that have."""
        found = {}
        for member in members:
            text, _ = self.load(MEMBER_STATUS_KEY.format(id=member))
            with suppress(BadReply):
                found[member] = _parse_object(text or b"")
        return found

    def load_status(self) -> tuple[dict[str, Any], float] | None:
        """The status, and how many seconds ago it was written; None when there is none.

        Its age follows from its expiry, so that nobody's clock matters.
        """
        text, left_ms = self.load(STATUS_KEY)
        try:
            status = _parse_object(text or b"")
            return status, max(0.0, float(status["ttl_seconds"]) - left_ms / SECOND_MS)
        except (BadReply, KeyError, TypeError, ValueError):
            return None

    def load(self, key: str) -> tuple[bytes | None, int]:
        """A value, None where there is none, and in how many ms it expires. Raises TakenError, too."""
        with self._answering(key) as servers:
            answers = servers.together([("TYPE", key), ("GET", key), ("PTTL", key)])
            if isinstance(answers[0], bytes) and answers[0] not in (b"string", b"none"):
                raise TakenError(key, answers[0].decode())
            _, value, left_ms = _unless_error(answers)
        return value, left_ms

    def load_tails(self, feeds: Sequence[tuple[Pair, Timeframe]]) -> list[tuple[bytes | Exception, object]]:
        """Each value's last `TAIL_BYTES`, empty where there is none, and timestamp; in one round trip."""
        commands: list[Sequence[Any]] = []
        for pair, timeframe in feeds:
            commands.append(("GETRANGE", kline_key(timeframe, pair), -TAIL_BYTES, -1))
            commands.append(("GET", timestamp_key(timeframe, pair)))
        with self._answering() as servers:
            found = servers.together(commands)
        return list(zip(found[::2], found[1::2], strict=True))

    def try_write(self) -> None:
        """See whether Redis takes writes, with a key that is gone a second later."""
        self._write_plain(HEALTH_KEY, "written by a health check", 1.0)

    def save_pause(self, until_ms: int, seconds: float, reason: str) -> None:
        """Keep a pause for as long as it lasts, so that a restart honours it."""
        base_url = self._config.binance_base_url
        text = json.dumps({"until": iso_time(until_ms), "reason": reason, "base_url": base_url})
        self._write_plain(self._pause_key, text, seconds)

    def load_pause(self) -> tuple[float, str] | None:
        """The pause that is still on for this exchange address: seconds left, and the reason.

        What is left follows from the key's expiry, which no local clock can get wrong.
        """
        text, left_ms = self.load(self._pause_key)
        try:
            pause = _parse_object(text or b"")
        except BadReply:
            return None
        if pause.get("base_url") != self._config.binance_base_url or left_ms <= 0:
            return None
        return left_ms / SECOND_MS, str(pause.get("reason", ""))[:200]

    def close(self) -> None:
        """Close all connections."""
        self._servers.close()


@lru_cache(maxsize=8)
def _sha_of(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def connect_redis(config: Config) -> Servers:
    """The way to Redis. What the URL says of user, password and database wins over the other settings."""
    from tet_extras import servers

    return servers.connect(
        config.redis_mode,
        addresses.redis_nodes(config.redis_addr),
        config.redis_sentinel_master,
        config.redis_db,
        username=config.redis_username,
        password=config.redis_password,
        protocol=2,  # spoken by every Redis there is
        socket_timeout=STORE_SECONDS,
        socket_connect_timeout=STORE_SECONDS,
    )


# ------------------------------------------------------------------------------
# The fetcher: from the exchange to a series
# ------------------------------------------------------------------------------


def first_open_to_ask(series: Series, keep: int, refetch: int, now_ms: int) -> int:
    """Where an update begins: ``refetch`` candles back in what is held, or the start of the window.

    The window starts one candle early, for the case that the newest one is not there yet.
    """
    timeframe = series.timeframe
    window_ms = timeframe.shift(timeframe.floor(now_ms), -keep)
    return max(window_ms, series.opens[-min(refetch, len(series))]) if series else window_ms


class Fetcher:
    """Fetches the candles of one pair and timeframe: its pages, its gaps. Values in, values out.

    Nothing changes in it, so that any thread may use it.
    """

    def __init__(self, config: Config, clock: Clock, binance: Binance) -> None:
        self._config = config
        self._clock = clock
        self._binance = binance

    @property
    def page_rows(self) -> int:
        """The most candles that one request asks for."""
        return self._binance.market.page_rows

    def pages(
        self,
        pair: Pair,
        timeframe: Timeframe,
        held: Series | None,
        confirmed: bool,
        exhausted_ms: int,
        proven_ms: int = 0,
    ) -> Iterator[Page]:
        """Fetch what is new since ``held``, page by page, oldest first; the last page is up to date.

        What closed since ``proven_ms`` is fetched again, to prove what streams have told; 0 is nothing.
        Where the exchange contradicts what was not ``confirmed`` before, all is fetched from the window's
        start. Raises what `Binance.klines` does.
        """
        keep = timeframe.candles_in_days(self._config.data_days)
        start_ms = self._clock.now_ms()
        series = held or Series(timeframe)
        if series and series.opens[-1] < timeframe.shift(timeframe.floor(start_ms), -keep):
            series = Series(timeframe)  # absent for longer than the window
        refetch = self._config.incremental_candles if confirmed else max(2, self._config.incremental_candles)
        if proven_ms:
            unproven = timeframe.count(timeframe.floor(proven_ms), timeframe.floor(start_ms)) + 1
            refetch = max(refetch, min(unproven, self.page_rows // 2))
        first_ms = first_open_to_ask(series, keep, refetch, start_ms)
        answer, now_open_ms, full = self._ask(pair, timeframe, first_ms, nonempty=True)
        if not confirmed and corrections(series, answer):
            feed = f"{pair.name} {timeframe.name}"
            say(logging.WARNING, "stored candles are of another market, backfilling", feed=feed)
            series = Series(timeframe)
            first_ms = first_open_to_ask(series, keep, 0, start_ms)
            answer, now_open_ms, full = self._ask(pair, timeframe, first_ms, nonempty=True)
        while True:
            candles = self._with_gaps_filled(pair, series, answer.candles, first_ms)
            series = absorb(series, candles, answer.asked_ms, keep)
            first_ms = timeframe.close_of(newest_of(candles)) if candles else first_ms
            up_to_date = first_ms > now_open_ms
            if not up_to_date and not full:
                # Only the forming candle may be missing without a question: the exchange lags behind a
                # close. What else is missing at the end is asked for once more, and noted.
                up_to_date = first_ms in (exhausted_ms, now_open_ms)
                exhausted_ms = first_ms
            yield Page(Answer(candles, answer.asked_ms), series, exhausted_ms, up_to_date)
            if up_to_date:
                return
            answer, now_open_ms, full = self._ask(pair, timeframe, first_ms)

    def _ask(
        self, pair: Pair, timeframe: Timeframe, first_ms: int, nonempty: bool = False
    ) -> tuple[Answer, int, bool]:
        """Ask for the next page. Returns also the open time of the present, and whether the page is full.

        The first page must have a candle: one that was there before, or those at the window's start.
        """
        now_open_ms = timeframe.floor(self._clock.now_ms())
        rows = max(1, timeframe.count(first_ms, now_open_ms) + 1)  # one more: a candle may close
        limit = min(self.page_rows, rows)
        answer = self._binance.klines(pair.symbol, timeframe, first_ms, limit, nonempty=nonempty)
        return answer, now_open_ms, len(answer.candles) >= limit

    def window(
        self, pair: Pair, timeframe: Timeframe, first_ms: int, last_ms: int
    ) -> Iterator[tuple[int, Answer]]:
        """Fetch closed candles from one open time to another, by pages: where each begins, and the answer.

        What ended less than `MAX_LAG_MS` before it was asked for may be unfinished in it.
        """
        while first_ms <= last_ms:
            rows = min(self.page_rows, timeframe.count(first_ms, last_ms))
            end_ms = timeframe.shift(first_ms, rows - 1)
            answer = self._binance.klines(pair.symbol, timeframe, first_ms, rows, end_ms)
            yield first_ms, answer
            first_ms = timeframe.close_of(end_ms)

    def _with_gaps_filled(self, pair: Pair, series: Series, candles: Candles, first_ms: int) -> Candles:
        """Ask once more for candles that a reply leaves out; what stays out is the exchange's own gap."""
        missing = missing_opens(series, candles, first_ms)
        if not missing:
            return candles
        timeframe, found = series.timeframe, dict(candles)
        while missing:
            limit = min(self.page_rows, timeframe.count(missing[0], missing[-1]))
            answer = self._binance.klines(pair.symbol, timeframe, missing[0], limit, missing[-1])
            found = answer.candles | found  # another server may lag behind the first one
            reached_ms = newest_of(answer.candles) if len(answer.candles) == limit else missing[-1]
            missing = [open_ms for open_ms in missing if open_ms > reached_ms]
        return dict(sorted(found.items()))


# ------------------------------------------------------------------------------
# The writer: from a series to Redis
# ------------------------------------------------------------------------------

FLUSH_AGAIN_SECONDS = 10.0
FLUSH_SECONDS = 1.0  # then the next tick goes on
STATUS_SECONDS = 15.0


class Writer:
    """What goes to Redis, and when: candles, what is buffered, what Redis has lost, pause and status.

    Nothing is written under a key of another program, nor over a newer value: Redis sees to that. Any thread
    may write a feed, which is `Feed.writing` meanwhile, and workers the pause; all else is the main thread's,
    or a worker's that it waits for. A field that both change is set in one step.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        store: Store,
        gate: RequestGate,
        on_close: Callable[[float, bool], None],
    ) -> None:
        self._config = config
        self._clock = clock
        self._store = store
        self._gate = gate
        self._on_close = on_close
        self.on_written: Callable[[Mapping[str, object]], None] = lambda announcement: None
        self._warned: set[str] = set()  # what cannot be written, since its key is another program's
        self._flush_at_seconds = 0.0  # monotonic
        self._status_at_seconds = 0.0  # monotonic
        self._wrote_status = False
        self.publish: Callable[[Mapping[str, object]], bool] = store.save_status  # says whether one was there
        self.evicting = False
        self._pause_saved = True

    # Reading back

    def restore(self, feed: Feed) -> None:
        """Read back what Redis holds, if it is sound and of this configuration. Raises StoreError."""
        value = self._store.load(kline_key(feed.timeframe, feed.pair))[0]
        try:
            feed.restored(None if value is None else self._read_back(feed, value))
        except StoredValueError as error:
            say(logging.WARNING, "stored value not usable, backfilling", feed=feed.name, reason=str(error))
            feed.restored(None)

    def restore_all(self, feeds: Collection[Feed]) -> None:
        """Read back what Redis holds, as far as it answers: the cycle tries again. Raises Stopped."""
        started = self._clock.monotonic()
        for feed in feeds:
            self._clock.check()
            try:
                self.restore(feed)
            except StoreError as error:
                feed.tried(error, 0)  # logged by the cycle
        restored = sum(1 for feed in feeds if feed.series)
        facts = {"restored": restored, "to_backfill": len(feeds) - restored}
        say(logging.INFO, "restored from redis", **facts, seconds=round(self._clock.monotonic() - started, 2))

    def _read_back(self, feed: Feed, value: bytes) -> Stored:
        """What a value holds. Raises StoredValueError."""
        wanted, closed_only = feed.timeframe.candles_in_days(self._config.data_days), self._config.closed_only
        newest_ms = self._clock.now_ms() + CLOCK_TOLERANCE_MS
        stored = read_stored_value(value, feed.timeframe, wanted, newest_ms)
        if closed_only and not stored.series.newest_is_closed:
            raise StoredValueError("written without CLOSED_ONLY: one closed candle short of the window")
        return stored

    def restore_pause(self) -> None:
        """Honour a pause from before the restart. Raises StoreError."""
        try:
            pause = self._store.load_pause()
        except TakenError as error:
            return self._deferred("pause", error)
        if pause:
            seconds, reason = pause
            self._gate.pause(seconds, reason)
            event = "restored a pause from before the restart"
            say(logging.WARNING, event, seconds=round(seconds), reason=reason)
        return None

    # Candles

    def write(self, feed: Feed) -> None:
        """Write a feed's candles and announce them. Raises StoreError; the feed is buffered then."""
        with feed.writing:
            with feed.lock:
                series, fetched_ms, old, by_stream = feed.series, feed.fetched_ms, feed.image, feed.by_stream
            if series is None or not (count := series.stored_count(self._config.closed_only)):
                return None  # a pair so new that no candle has closed yet
            end_ms, known_end_ms = series.closed_end_ms, feed.stored_end_ms
            announcement = {
                "symbol": feed.pair.name,
                "timeframe": feed.timeframe.name,
                "last_candle_time": iso_time(series.opens[count - 1]),
                "candle_closed": end_ms > known_end_ms > 0,
            }
            try:
                image = self._put(feed, old, series, fetched_ms, announcement)
            except StoreError:
                feed.not_written()
                raise
            except StoredValueError as error:
                say(
                    logging.WARNING, "redis has other candles, backfilling", feed=feed.name, reason=str(error)
                )
                return feed.disputed()
            if image is None:  # another instance was faster: go on from what it wrote
                say(logging.INFO, "redis has a newer value, restoring it", feed=feed.name)
                return self.restore(feed)
            feed.written(image, fetched_ms)
            self.on_written(announcement)
            if known_end_ms and end_ms == feed.timeframe.close_of(known_end_ms):
                self._on_close((self._clock.now_ms() - end_ms) / SECOND_MS, by_stream)
            if self.evicting:
                feed.evicted()
            return None

    def _put(
        self,
        feed: Feed,
        old: Image | None,
        series: Series,
        fetched_ms: int,
        announcement: Mapping[str, object],
    ) -> Image | None:
        """Write what changed, or the value whole; returns what Redis has then, None if that is newer.

        Raises StoredValueError where somebody else has written other closed candles.
        """
        pair, wanted = feed.pair, series.timeframe.candles_in_days(self._config.data_days)
        image = make_image(series, wanted, fetched_ms, self._config.closed_only)
        patch, answer = make_patch(old, image) if old else None, "whole"
        if patch:
            answer = self._store.save(pair, image, patch, fetched_ms, announcement)
            image = patch.image if answer != "whole" else image
            if answer == "whole":
                self._compare(feed, series)
        if answer == "whole":
            answer = self._store.save(pair, image, None, fetched_ms, announcement)
        return None if answer == "newer" else image

    def _compare(self, feed: Feed, series: Series) -> None:
        """See whether what somebody else has written has the same closed candles. Raises StoredValueError."""
        value = self._store.load(kline_key(feed.timeframe, feed.pair))[0]
        try:
            theirs = self._read_back(feed, value or b"").series
        except StoredValueError:
            return  # gone or damaged: it is written over
        first_ms = max(theirs.opens[0], series.opens[0])
        held = {open_ms: theirs.entry(place) for place, open_ms in enumerate(theirs.opens)}
        shared = {open_ms: entry for open_ms, entry in held.items() if open_ms >= first_ms}
        if found := differences(series, shared, first_ms, theirs.closed_end_ms):
            at = iso_time(found[0].open_ms)
            raise StoredValueError(f"{len(found)} closed candles differ, such as that of {at}")

    def flush(self, feeds: Iterable[Feed]) -> None:
        """Write what is buffered, without waiting for the next cycle. Raises Stopped."""
        if not self._pause_saved and not self._store.retry_seconds and self._gate.pause_left_seconds():
            self.save_pause()
        buffered = [feed for feed in feeds if feed.buffered]
        if not buffered or self._store.retry_seconds or self._clock.monotonic() < self._flush_at_seconds:
            return
        began = self._clock.monotonic()
        self._flush_at_seconds = began + FLUSH_AGAIN_SECONDS
        flushed = 0
        for tried, feed in enumerate(buffered):
            self._clock.check()
            if self._clock.monotonic() > began + FLUSH_SECONDS:
                self._flush_at_seconds = 0.0  # the main thread has more to do
                buffered = buffered[:tried]
                break
            try:
                self.write(feed)
                flushed += 1
                feed.flushed()
            except StoreError as error:
                say(logging.DEBUG, "deferred, will retry", what=feed.name, reason=str(error))
        if flushed:
            say(logging.INFO, "buffered updates flushed", flushed=flushed)
            self._status_at_seconds = 0.0
        if flushed == len(buffered):
            self._flush_at_seconds = 0.0

    def limit_memory(self, feeds: Iterable[Feed]) -> None:
        """Above the memory limit, hold candles only while they are worked on: Redis has them."""
        used_mb = figures.resident_mb()
        if self.evicting or used_mb is None or used_mb <= self._config.memory_limit_mb:
            return
        self.evicting = True
        event = "above MEMORY_LIMIT_MB: evicting candles after each update, reloading them from Redis"
        say(logging.WARNING, event, memory_mb=round(used_mb), limit_mb=self._config.memory_limit_mb)
        for feed in feeds:
            if not feed.buffered:
                feed.evicted()

    # Pause and status

    def save_pause(self) -> None:
        """Keep the gate's pause for as long as it lasts, so that a restart honours it."""
        gate, self._pause_saved = self._gate, True
        try:
            if self._config.takes_part and (held := self._store.load_pause()):
                gate.pause(*held)  # another member's may be longer
            self._store.save_pause(gate.paused_until_ms, gate.pause_left_seconds(), gate.pause_reason)
        except StoreError as error:
            self._pause_saved = isinstance(error, TakenError)
            self._deferred("pause", error)
        self._status_at_seconds = 0.0  # so that the next tick shows it

    def status_is_due(self) -> bool:
        """Whether the status is to be written again: regularly, or at once."""
        return self._clock.monotonic() - self._status_at_seconds >= STATUS_SECONDS

    def write_status(self, fields: Callable[[], Mapping[str, object]], feeds: Iterable[Feed]) -> None:
        """Write the status; where the last one is gone, all else is, and is to be written again."""
        self._status_at_seconds = (
            self._clock.monotonic()
        )  # first: what changes from here on makes it due again
        try:
            existed = self.publish(fields())
        except StoreError as error:
            return self._deferred("status", error)
        if not existed and self._wrote_status and self._config.status_ttl > 4 * STATUS_SECONDS:
            say(logging.WARNING, "redis has lost what was stored; writing it again")
            for feed in feeds:
                feed.not_written()
            if self._gate.pause_left_seconds():
                self.save_pause()
        self._wrote_status = True
        return None

    def _deferred(self, what: str, error: StoreError) -> None:
        """Log a write that failed; another program's key is worth a warning, once."""
        if isinstance(error, TakenError) and what not in self._warned:
            self._warned.add(what)
            return say(logging.WARNING, str(error))
        return say(logging.DEBUG, "deferred, will retry", what=what, reason=str(error))


# ------------------------------------------------------------------------------
# Members: several instances that share the pairs, and the rate of their address
#
# Each member renews a key of its own every 2 s; Redis lets it expire after 10 s, so that nobody's clock
# matters. Whoever renews is told who else is there, and computes alone who owns which pair (`owner_of`) and
# its part of the rate. They agree as soon as all have looked: within 2 s of a change, and a tick.
#
# A member may send requests for as long as its lease lasts, 8 s from a renewal: it is over before the
# others can think it gone. One that was frozen, or cut off from Redis, finds its lease over when it wakes up,
# and renews before it goes on. One that is new, or whose key is gone, waits `JOIN_SECONDS` first: until the
# others have seen it, let go of what it owns now, and slowed down. What it still writes of before, the script
# refuses if it is older than what is there.
# ------------------------------------------------------------------------------

TICK_SECONDS = 1.0  # of the main thread
RENEW_SECONDS = 2.0
MEMBER_MS = 10 * SECOND_MS
LEASE_SECONDS = 8.0
JOIN_SECONDS = 4.0


class Membership:
    """This instance among others: it renews its key, and learns from who is there what it owns.

    Without GROUP, SHARD and EGRESS it does nothing. The main thread's alone, but `join`.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        store: Store,
        gate: RequestGate,
        own: Callable[[Callable[[Pair], bool]], None],
    ) -> None:
        self._config = config
        self._clock = clock
        self._store = store
        self._gate = gate
        self._own = own
        self._roster = Roster()
        self._owners: tuple[str, ...] = ()
        self.told: Sequence[Mapping[str, object]] = ()  # what the status last said of each member
        self._look_at_seconds = math.inf  # monotonic: the next look; not before it has joined
        self._asks_from_seconds = 0.0  # monotonic
        self._lapsed = False
        self.id = f"{socket.gethostname()}-{os.urandom(4).hex()}"
        if config.takes_part:
            gate.lease(0.0, 0.0)

    def join(self) -> None:
        """Be there, for the first time. Raises StoreError."""
        if self._config.takes_part:
            self._renew()
            say(
                logging.INFO,
                "joined",
                member=self.id,
                members=len(self._owners),
                rate=round(self._gate.rate, 2),
            )

    def look(self) -> None:
        """Renew and see who is there, when it is time."""
        now_seconds = self._clock.monotonic()
        if now_seconds < self._look_at_seconds:
            return
        if now_seconds > self._look_at_seconds + LEASE_SECONDS - RENEW_SECONDS and not self._lapsed:
            self._lapsed = True
            say(logging.WARNING, "membership lapsed, sending nothing until it is renewed", member=self.id)
        try:
            self._renew()
        except StoreError as error:
            say(logging.DEBUG, "deferred, will retry", what="membership", reason=str(error))

    def _renew(self) -> None:
        """Renew the key and the lease, and take over what follows from who is there. Raises StoreError."""
        config, now_seconds = self._config, self._clock.monotonic()
        gone, entries = self._store.renew_member(self.id, self._entry(), MEMBER_MS)
        come, left = self._roster.note(entries, gone, now_seconds)
        if gone:
            self._asks_from_seconds = self._clock.monotonic() + JOIN_SECONDS
        if self._lapsed:
            self._lapsed = False
            say(logging.INFO, "membership renewed", member=self.id)
        for event, members in (("member came", come - {self.id}), ("member gone", left)):
            for member in sorted(members):
                say(logging.INFO, event, member=member)
        self._honour_pause()
        self._gate.rate = config.api_requests_per_sec / max(1, self._roster.behind(config.egress or ""))
        self._share()
        self._gate.lease(self._asks_from_seconds, now_seconds + LEASE_SECONDS)
        self._look_at_seconds = now_seconds + RENEW_SECONDS - TICK_SECONDS / 2  # the tick nearest to it

    def _entry(self, left: bool = False) -> dict[str, object]:
        return Entry(self._config.group or "", self._config.egress or "", left)._asdict()

    def _share(self) -> None:
        """Own what follows from who is there, where that has changed."""
        me, owners = self.id, tuple(self._roster.of_group(self._config.group or ""))
        if self._config.shard:
            number, shards = self._config.shard
            me, owners = str(number), tuple(map(str, range(1, shards + 1)))
        if owners != self._owners and (self._config.group or self._config.shard):
            self._own(lambda pair: owner_of(pair.name, owners) == me)
        self._owners = owners

    def _honour_pause(self) -> None:
        """Send nothing while any member behind the same address has met a pause. Raises StoreError."""
        with suppress(TakenError):
            pause = self._store.load_pause()
            if pause and self._gate.pause(*pause):
                event = "honouring a pause that another member has met"
                say(logging.WARNING, event, seconds=round(pause[0]), reason=pause[1])

    def publish(self, status: Mapping[str, object]) -> bool:
        """Write this instance's status, and that of all members made of theirs. Raises StoreError.

        Returns whether there was one of this instance before: if not, Redis may have been emptied.
        """
        if not self._config.takes_part:
            return self._store.save_status(status)
        from tet_extras.merged import is_whole, merged

        existed = self._store.save_member_status(self.id, status)
        entries = {member: {"group": entry.group, "egress": entry.egress} for member, entry in self._roster}
        found = self._store.load_member_statuses(entries.keys() - {self.id})
        found = {member: each for member, each in found.items() if is_whole(each)}
        if self._look_at_seconds < math.inf or not found:  # it has not left, or was the last one
            found[self.id] = dict(status)
        together = merged(found, entries)
        self.told = together["members"]
        self._store.save_status(together)
        return existed

    def leave(self) -> None:
        """Say that this member is gone, so that the others need not wait for its key to expire."""
        if self._look_at_seconds < math.inf:
            self._look_at_seconds = math.inf
            with suppress(StoreError):
                self._store.renew_member(self.id, self._entry(left=True), MEMBER_MS)


# ------------------------------------------------------------------------------
# The main thread's inbox, and the workers
# ------------------------------------------------------------------------------

TICK_SECONDS = 1.0
STOP_SECONDS = 3.0  # for what is in flight, and up to a tick until the main thread looks


class Inbox:
    """What the main thread waits for: messages of streams, work that is finished, a stop.

    Any thread may put something in; the main thread takes. Of each stream only the newest forming candle
    waits, so that it stays short; closes wait, all of them. `_lock` guards `_forming`, the cells of the
    queue whose message may still be replaced.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[list[Message]] = queue.SimpleQueue()
        self._forming: dict[str, list[Message]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._queue.qsize()

    def wake(self, *_: object) -> None:
        """Let the main thread look around: something is finished, or a stop was asked for."""
        self._queue.put([])

    def deliver(self, message: Message) -> None:
        """Put a stream's message in. A close takes the place of what its candle was before."""
        with self._lock:
            if message.closed:
                self._forming.pop(message.stream, []).clear()
                self._queue.put([message])
            elif cell := self._forming.get(message.stream):
                if message.event_ms > cell[0].event_ms:
                    cell[0] = message
            else:
                self._forming[message.stream] = cell = [message]
                self._queue.put(cell)

    def take(self, clock: Clock, seconds: float) -> Message | None:
        """The next message; None after a wake-up, for one that was overtaken, and when nothing comes."""
        cell = clock.take(self._queue, seconds)
        with self._lock:
            message = cell.pop() if cell else None
            if message and self._forming.get(message.stream) is cell:
                del self._forming[message.stream]
        return message


class Workers:
    """The threads that ask the exchange, and how the main thread waits: taking messages, and ticking.

    The main thread owns it. ``take`` is called with each message, ``tick`` at least each second.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        inbox: Inbox,
        take: Callable[[Message], None],
        tick: Callable[[], None],
    ) -> None:
        self._config = config
        self._clock = clock
        self._inbox = inbox
        self._take = take
        self._tick = tick
        self._tick_at_seconds = 0.0  # monotonic
        self._pool = ThreadPoolExecutor(config.concurrent_requests, thread_name_prefix="worker")
        self._running: set[Future[None]] = set()

    def wait(self, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
        """Wait for so long, or until that is done. Raises Stopped."""
        until = self._clock.monotonic() + seconds
        while not done() and (left := until - (now := self._clock.monotonic())) > 0:
            self._take_next(max(0.0, min(left, self._tick_at_seconds - now)))
            self._clock.check()
            if self._clock.monotonic() >= self._tick_at_seconds:
                for _ in range(len(self._inbox)):  # what has come is not to be missed by who looks now
                    self._take_next(0.0)
                self._tick_at_seconds = self._clock.monotonic() + TICK_SECONDS
                self._tick()

    def _take_next(self, seconds: float) -> None:
        if message := self._inbox.take(self._clock, seconds):
            self._take(message)

    def _start(self, act: Callable[[], None]) -> Future[None]:
        future = self._pool.submit(act)
        self._running.add(future)
        future.add_done_callback(self._inbox.wake)
        return future

    def do(self, act: Callable[[], None]) -> None:
        """Let a worker do what may take long, such as waiting out a ban, and wait for it."""
        future = self._start(act)
        while not future.done():
            self.wait(TICK_SECONDS, future.done)
        self._running.discard(future)
        future.result()

    def work_through(
        self, waiting: deque[Feed], act: Callable[[Feed], None], needed: Callable[[], int]
    ) -> Iterator[int]:
        """Let workers do that with each feed, ``needed`` of them; yields how many feeds they have taken.

        Each takes one feed after the other. Whether more workers are needed is seen each second.
        """
        work = partial(self._work, waiting, act)
        while True:
            for _ in range(min(needed() - len(self._running), len(waiting))):
                self._start(work)
            if not self._running:
                return
            before = len(waiting)
            self.wait(TICK_SECONDS, lambda: all(future.done() for future in self._running))
            self._running = {future for future in self._running if not future.done()}
            yield before - len(waiting)

    def _work(self, feeds: deque[Feed], act: Callable[[Feed], None]) -> None:
        """Take one feed after the other until none is left, or a stop is asked for."""
        with suppress(IndexError, Stopped):
            while not self._clock.is_stopped():
                act(feeds.popleft())

    def stop(self) -> None:
        """Let what is in flight end, within bounds."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait(self._running, STOP_SECONDS)


# ------------------------------------------------------------------------------
# Live: what streams tell, and what REST has to
# ------------------------------------------------------------------------------

WRITERS = 4  # threads that write what streams have told, so that the main thread never waits for Redis
#: Exchange time from a candle's close to when it is missed. On USD-M candles without trades were seen to
#: close up to 3.1 s late, by a timer, it seems.
CLOSE_PATIENCE_MS = {"spot": 4 * SECOND_MS, "usdm": 10 * SECOND_MS}
#: What the status says of streams that nobody listens to.
NO_STREAMS = {"connections": 0, "streams": 0, "messages": 0, "messages_per_second": 0.0}
LATE_SECONDS = 2.5  # from one tick to the next: then this process was held up, and judges nobody
DEAD_SHARE = 0.2  # of a line's live feeds, missing a close at once: the connection is dead


class Live:
    """Listens to the exchange's streams: which feeds they keep fresh, and which REST has to.

    The main thread owns it; writers write feeds. It does nothing until it is started.
    """

    def __init__(
        self, config: Config, clock: Clock, inbox: Inbox, writer: Writer, schedule: Schedule, status: Status
    ) -> None:
        self._config = config
        self._clock = clock
        self._inbox = inbox
        self._writer = writer
        self._schedule = schedule
        self._status = status
        self._streams: Streams | None = None
        self._feeds: dict[str, Feed] = {}  # by the name of their stream
        self._watched: object = None  # what the watchlist had when they were made
        self._paced: list[tuple[float, int, Feed]] = []  # a heap: when to write, and what
        self._numbers = count()
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="writer")
        self._writing: set[Future[None]] = set()
        self._unreachable = False
        self._tick_seconds = clock.monotonic()

    def start(self, watchlist: Watchlist) -> None:
        """Connect to the streams of all feeds."""
        from tet_extras.live import Streams

        url, clock, deliver = self._config.binance_stream_url, self._clock, self._inbox.deliver
        self._streams = Streams(url, deliver, clock.now_ms, clock.monotonic)
        self.tick(watchlist)

    def take(self, message: Message) -> None:
        """Let a message change the forming candle, or close it; or nothing, and REST is asked."""
        feed = self._feeds.get(message.stream)
        if not feed:
            return None  # a canary's, or of a symbol that has left
        stream, now_ms = feed.stream, self._clock.now_ms()
        stream.line = message.line
        if message.event_ms < stream.event_ms or (message.event_ms == stream.event_ms and not message.closed):
            return None  # told before: by the connection that this one replaces, say
        try:
            if message.event_ms > now_ms + CLOCK_TOLERANCE_MS:
                raise BadReply("an event from the future")
            candles = parse_stream_row(message, feed.timeframe, now_ms + CLOCK_TOLERANCE_MS)
        except BadReply as error:
            self._status.messages.add("damaged")
            say(logging.DEBUG, "message damaged", feed=feed.name, reason=str(error))
            return self._doubt(feed)
        keep = feed.timeframe.candles_in_days(self._config.data_days)
        if not feed.told(candles, message.closed, keep, now_ms):
            self._status.messages.add("refused")
            return self._doubt(feed)
        self._status.messages.add("accepted")
        stream.event_ms = message.event_ms
        if stream.link is not Link.LIVE and feed.tried_ms > stream.owed_ms and not feed.fetch_failed:
            self._go_live(feed, now_ms)
        return self._queue(feed) if message.closed else self._pace(feed)

    def _go_live(self, feed: Feed, now_ms: int) -> None:
        """Its stream speaks, and REST has told what came before: from now on REST is for proof."""
        feed.stream.link = Link.LIVE
        proof_ms = self._schedule.regular_ms(feed, now_ms)
        feed.due = Due(proof_ms, proof_ms)

    def _doubt(self, feed: Feed) -> None:
        """Let REST tell at once; as it is asked again and again, with growing waits."""
        if feed.known is not Known.CONFIRMED and feed.stream.link is not Link.LIVE:
            return  # it is due by REST anyway
        now_ms, due = self._clock.now_ms(), feed.due
        if feed.stream.link is Link.LIVE:
            feed.stream.owed_ms = now_ms
            due = Due(next_due_ms(now_ms, self._schedule.interval_seconds, feed.timeframe), sys.maxsize)
        feed.stream.link = Link.CATCHING_UP
        wait_seconds = REASK_SECONDS[min(due.reasks, len(REASK_SECONDS) - 1)]
        again_ms = max(now_ms, feed.tried_ms + round(wait_seconds * SECOND_MS))
        if again_ms < due.next_ms:
            feed.due = Due(due.regular_ms, again_ms, due.reasks + 1)

    # Writing

    def _queue(self, feed: Feed) -> None:
        """Let a writer write the feed as soon as one is free."""
        feed.stream.write_at_seconds = self._clock.monotonic() + self._config.live_write_seconds
        if not feed.stream.is_queued and self._streams:
            feed.stream.is_queued = True
            self._writing.add(future := self._writers.submit(self._write, feed))
            future.add_done_callback(self._writing.discard)

    def _write(self, feed: Feed) -> None:
        feed.stream.is_queued = False  # first: what is told from here on is to be written again
        try:
            self._writer.write(feed)
            feed.flushed()
        except StoreError as error:  # it is buffered
            feed.tried(error, feed.tried_ms)
        except Exception:
            logging.getLogger(LOGGER).exception("internal error")

    def _pace(self, feed: Feed) -> None:
        """Write a forming candle LIVE_WRITE_SECONDS after the last write, with what is told until then."""
        now_seconds, stream = self._clock.monotonic(), feed.stream
        if not stream.is_paced:
            stream.is_paced = True
            heappush(self._paced, (max(now_seconds, stream.write_at_seconds), next(self._numbers), feed))
        self._queue_paced(now_seconds)

    def _queue_paced(self, now_seconds: float) -> None:
        while self._paced and self._paced[0][0] <= now_seconds:
            feed = heappop(self._paced)[2]
            feed.stream.is_paced = False
            if self._feeds.get(feed.stream.name) is not feed:
                continue  # it has left
            if feed.stream.write_at_seconds <= now_seconds:
                self._queue(feed)
            else:
                self._pace(feed)  # a close was written meanwhile

    # What is not said

    def tick(self, watchlist: Watchlist) -> None:
        """Look after the connections, and notice what was not told. To be called each second."""
        if not self._streams:
            return
        if self._writer.evicting:
            event = "polling instead of LIVE: what is evicted cannot be followed; raise MEMORY_LIMIT_MB"
            say(logging.WARNING, event)
            self.stop()
            return
        if watchlist.feeds is not self._watched:
            self._watch(watchlist)
        before_seconds, self._tick_seconds = self._tick_seconds, self._clock.monotonic()
        was_late = self._tick_seconds - before_seconds > LATE_SECONDS
        for lost in self._streams.tick(was_late):
            self._lose(lost.streams, lost.reason, lost.was_delivering)
        if self._unreachable and self._streams.are_delivering:
            self._unreachable = False
            say(logging.INFO, "streams reachable again")
        if not was_late:  # else what is missing may still be on its way through this process
            self._notice_silence()
        self._queue_paced(self._clock.monotonic())

    def _watch(self, watchlist: Watchlist) -> None:
        """Subscribe to the streams of what is on the watchlist now, and to no others."""
        from tet_extras.live import canary_stream, kline_stream

        self._watched = watchlist.feeds
        for feed in watchlist:
            feed.stream.name = kline_stream(feed.pair.symbol, feed.timeframe.name)
        self._feeds = {feed.stream.name: feed for feed in watchlist}
        symbols = [feed.pair.symbol for feed in watchlist]
        symbol = "BTCUSDT" if "BTCUSDT" in symbols or not symbols else symbols[0]
        if self._streams:
            self._streams.keep(self._feeds, canary_stream(self._config.binance_market, symbol))

    def _lose(self, streams: Sequence[str], reason: str, was_delivering: bool) -> None:
        """A connection was lost: what it carried is blind, and REST is to tell what is missed."""
        if was_delivering:
            say(logging.WARNING, "stream connection lost, reconnecting", streams=len(streams), reason=reason)
        elif not self._unreachable:
            self._unreachable = True
            event = "streams unreachable, polling as without LIVE, will retry"
            remedy = "is BINANCE_STREAM_URL right, and a firewall or proxy (HTTPS_PROXY) in between?"
            say(logging.WARNING, event, reason=reason, remedy=remedy)
        for feed in [self._feeds[name] for name in streams if name in self._feeds]:
            self._blind(feed)

    def _blind(self, feed: Feed) -> None:
        if feed.stream.link is Link.BLIND:
            return
        now_ms = self._clock.now_ms()
        feed.stream.link, feed.stream.owed_ms, feed.stream.event_ms = Link.BLIND, now_ms, 0
        feed.due = Due(self._schedule.regular_ms(feed, now_ms), now_ms)

    def _notice_silence(self) -> None:
        """Ask REST where a close was not told in time, or nothing for long; many on one line: it is dead."""
        now_ms = self._clock.now_ms()
        patience_ms = CLOSE_PATIENCE_MS[self._config.binance_market]
        quiet_ms = self._config.max_data_age * SECOND_MS // 2
        missed, live = Counter[int](), Counter[int]()
        for feed in self._feeds.values():
            if feed.stream.link is not Link.LIVE:
                continue
            live[feed.stream.line] += 1
            if now_ms > feed.next_close_ms + patience_ms:
                missed[feed.stream.line] += 1
                self._doubt(feed)
            elif max(feed.fetched_ms, feed.tried_ms) + quiet_ms < now_ms < feed.due.next_ms:
                feed.due = Due(feed.due.regular_ms, now_ms)
        for line, number in missed.items():
            say(logging.DEBUG, "closes not told, asking REST", line=line, feeds=number)
            if number >= max(2, live[line] * DEAD_SHARE) and self._streams:
                self._streams.reconnect(line, "closes missing")

    def stop(self) -> None:
        """Listen no more; what a writer has been given is written, within bounds."""
        if self._streams:
            self._streams.stop()
            self._streams = None
        for feed in self._feeds.values():
            self._blind(feed)
        self._writers.shutdown(wait=False)
        wait(tuple(self._writing), STOP_SECONDS / 2)

    def figures(self) -> dict[str, object] | None:
        """How the streams are, for the status; None where they were not started."""
        if self._watched is None:
            return None
        links = {
            link: [feed.name for feed in self._feeds.values() if feed.stream.link is link] for link in Link
        }
        told = self._streams.figures() if self._streams else NO_STREAMS
        return {
            **told,
            "queue": len(self._inbox),
            "feeds": {link.name.lower(): len(names) for link, names in links.items()},
            "blind": links[Link.BLIND],
            "catching_up": links[Link.CATCHING_UP],
        }


# ------------------------------------------------------------------------------
# The audit: whole windows compared with the exchange
# ------------------------------------------------------------------------------

AUDIT_WEIGHT_SHARE = 0.5  # of the exchange's limit: while more is used, the audit waits
AUDIT_SLACK_MS = 2 * SECOND_MS  # no page is asked for so shortly before feeds are due


class Audit:
    """Compares the whole window of each feed with the exchange once in AUDIT_HOURS, a page at a time.

    A page is asked for only when nothing is due and weight is free. What differs is corrected. The main
    thread owns it, or the worker that it waits for.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        gate: RequestGate,
        fetcher: Fetcher,
        writer: Writer,
        status: Status,
    ) -> None:
        self._config = config
        self._clock = clock
        self._gate = gate
        self._fetcher = fetcher
        self._writer = writer
        self._status = status
        self._feed: Feed | None = None  # the one that is compared now
        self._pages: Iterator[tuple[int, Answer]] = iter(())
        self._queue: deque[Feed] = deque()  # what comes after it
        self._due_ms = 0  # exchange time

    def is_due(self, feeds: Sequence[Feed], next_ms: int) -> bool:
        """Whether to compare a page now; the next feeds are due at ``next_ms``."""
        if not self._config.audit_hours or not feeds or self._gate.pause_left_seconds():
            return False
        now_ms = self._clock.now_ms()
        self._due_ms = self._due_ms or now_ms + self._step_ms(feeds)
        is_free = self._gate.used_weight() <= self._gate.weight_limit * AUDIT_WEIGHT_SHARE
        return now_ms >= self._due_ms and now_ms + AUDIT_SLACK_MS < next_ms and is_free

    def _step_ms(self, feeds: Sequence[Feed]) -> int:
        """The time from one page to the next, so that all are done in AUDIT_HOURS."""
        candles = (feed.timeframe.candles_in_days(self._config.data_days) for feed in feeds)
        pages = sum(-(-each // self._fetcher.page_rows) for each in candles)
        return round(self._config.audit_hours * HOUR_MS / pages)

    def step(self, feeds: Sequence[Feed]) -> None:
        """Compare a page. Raises what `Binance.klines` does, and StoreError."""
        self._due_ms = self._clock.now_ms() + self._step_ms(feeds)
        page = next(self._pages, None)
        if page is None:
            self._begin(feeds)
            page = next(self._pages, None)
        if page and self._feed and self._feed in feeds:  # else it has left meanwhile
            self._compare(self._feed, *page)

    def _begin(self, feeds: Sequence[Feed]) -> None:
        """Turn to the next feed; one that is not up to date has no pages, nor one without a closed candle."""
        self._queue = self._queue or deque(feeds)
        self._feed, self._pages = self._queue.popleft(), iter(())
        feed, series = self._feed, self._feed.series
        if series and feed.known is Known.CONFIRMED:
            newest_ms = feed.timeframe.shift(series.closed_end_ms, -1)
            self._pages = self._fetcher.window(feed.pair, feed.timeframe, series.opens[0], newest_ms)

    def _compare(self, feed: Feed, first_ms: int, answer: Answer) -> None:
        self._status.candles.add("audited", len(answer.candles))
        if not feed.series or not answer.candles:
            return
        first_ms = max(first_ms, feed.series.opens[0])  # the window may have moved on
        candles = {open_ms: entry for open_ms, entry in answer.candles.items() if open_ms >= first_ms}
        end_ms = feed.timeframe.close_of(newest_of(answer.candles))
        found = differences(feed.series, candles, first_ms, min(end_ms, answer.asked_ms - MAX_LAG_MS))
        found = [each for each in found if each.sent]  # the exchange takes no candle back
        if found:
            keep = feed.timeframe.candles_in_days(self._config.data_days)
            self._status.corrected(feed, found)
            feed.corrected(found, keep, self._clock.now_ms())
            self._writer.write(feed)


class Verdict(NamedTuple):
    """What --verify found of a feed: how many closed candles were compared, what differs, what is wrong."""

    candles: int
    found: Sequence[Correction]
    problem: str


def verify_feed(feed: Feed, fetcher: Fetcher, writer: Writer, keep: int, repair_ms: int) -> Verdict:
    """Compare a feed's value in Redis with the exchange; with a time to ``repair_ms``, write what that has.

    ``keep`` is N. Raises ExchangeError and StoreError.
    """
    writer.restore(feed)
    if not feed.series:
        return Verdict(0, (), "no sound value in Redis")
    series = feed.series
    last_ms = feed.timeframe.shift(series.closed_end_ms, -1)
    first_ms = min(series.opens[0], feed.timeframe.shift(series.opens[-1], 1 - keep))
    candles: Candles = {}
    asked_ms = 0
    for _, answer in fetcher.window(feed.pair, feed.timeframe, first_ms, last_ms):
        candles |= answer.candles
        asked_ms = answer.asked_ms
    found = differences(series, candles, first_ms, asked_ms - MAX_LAG_MS)
    if repair_ms and found:
        feed.corrected(found, keep, repair_ms)
        writer.write(feed)
    return Verdict(len(candles), found, "")


# ------------------------------------------------------------------------------
# The service: joins the edges and the heart
#
# Theory of operation
#
# Threads. The main thread starts up, schedules, waits and reports. Workers, at most CONCURRENT_REQUESTS of
# them, update feeds, and do whatever may take long, such as waiting out a ban, so that the main thread can
# tick: each second it looks for a stop, sends the heartbeat, looks after the streams, flushes what is
# buffered, every 2 s renews a member's key and, every 15 s, writes the status. While it waits, it takes from
# its inbox: messages of streams, and wake-ups. With LIVE, a thread for each connection receives, and 4
# writers write what was told. In tet_extras, a thread waits for signals, one minds the embedded server, and
# others serve HTTP: they read the status and the feeds.
#
# Who owns what. Values (Config, Series, Candles, Page, Pair, Timeframe) do not change once they are made, and
# go anywhere. Other state has one owner, or a lock:
#
#     Feed           its lock: the candles and Redis' copy of them. A worker has a feed for one update;
#                    meanwhile the main thread may lay a stream's candle over it: the page is laid over that.
#                    Who writes it holds `writing`. `due` and `stream` are the main thread's alone
#     Watchlist, Schedule, Service, Status, Writer, Live, Workers, Audit
#                    the main thread, or the one worker that it waits for (Workers.do); others read.
#                    But a feed is written by any thread, and a pause saved by the worker that met it
#     Inbox          its lock: the forming candles that wait to be taken
#     Membership     the main thread, or the worker that joins while it waits; it changes the gate's rate and
#                    lease, and the watchlist, which has a lock for it
#     RequestGate    its lock: the pause, the lease, the weight of this minute, the token bucket
#     Binance, Outages, Tally, DayOfDelays
#                    a lock each, held for a few lines; Binance's second one lets one worker parse at a time
#     Clock          set by one thread at a time, read by all: each field is replaced in one step
#
# A feed's `writing` is taken before its lock, and that while one of the others is taken, never the other
# way round. The main thread takes no lock that is held while somebody waits for Redis or the exchange,
# but when it flushes.
#
# The life of a candle. A second after it has ended its feed is due (Schedule.due). A worker takes the feed,
# reads its candles back from Redis if it has none in memory (Writer.restore), and asks the exchange for a
# page (Fetcher.pages), through the gate (RequestGate.admit), over a connection (Binance.klines). The reply
# is cut into rows and checked, one bad row rejecting it all (parse_klines); the candles are laid over the
# series (absorb). When the page reaches the present, the series becomes the feed's (Feed.fetched), and one
# script writes it with its timestamp, whole or as a patch (Writer.write, make_patch). If Redis fails, the
# feed is buffered, and flushed as soon as Redis answers (Writer.flush). If the exchange fails, what Redis has
# stays as it is, and the next cycle resumes there.
#
# With LIVE a candle comes by its stream, too. Its message is received (tet_extras.live), put into the inbox,
# where forming candles coalesce (Inbox.deliver), checked as a row of REST (parse_stream_row), and laid over
# the series if it continues that without a gap (follow, Feed.told). A close is written at once, a forming
# candle every LIVE_WRITE_SECONDS (Live._pace). What does not continue the series, and what is not told in
# time, makes the feed due by REST at once (Live._doubt, Live._notice_silence); what is told is proven by
# REST in every tenth interval. A feed whose stream is silent is polled as without LIVE (Link).
#
# Three words. A candle has *ended* when its time is over by the exchange's clock. It is *closed* once its
# values will not change any more: a reply shows its successor, or repeats it unchanged long after its end,
# or its stream tells it as final.
# In between it is *lagging*, and asked for again after 1, 1, 2, 3 and 4 s. What was read back from Redis is
# *confirmed* once the exchange has repeated some of it.
# ------------------------------------------------------------------------------

SYMBOL_CHECK_MS = HOUR_MS


class Watchlist:
    """The feeds to keep fresh, and the symbols that are invalid now: unknown, halted or delisted.

    Among several members it has those feeds whose pairs are this one's. Changed by replacing what is there,
    under `_lock`; any thread may iterate over it.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._owns: Callable[[Pair], bool] = lambda pair: True
        self.feeds: dict[tuple[Pair, Timeframe], Feed] = {}
        self.pairs: tuple[Pair, ...] = ()  # those of other members, too
        self._left_out: Sequence[str] = ()
        self.invalid: dict[str, str] = {}  # symbols as configured, and why

    def __iter__(self) -> Iterator[Feed]:
        return iter(tuple(self.feeds.values()))

    def __len__(self) -> int:
        return len(self.feeds)

    def find(self, symbol: str, timeframe: str) -> Feed:
        """The feed of a pair (BTC/USDT, BTC_USDT or BTCUSDT) in a timeframe. Raises LookupError."""
        name = symbol.translate({ord("/"): None, ord("_"): None, ord("-"): None})
        for feed in self:
            if (feed.pair.symbol, feed.timeframe.name) == (name, timeframe):
                return feed
        for pair in self.pairs if self._config.takes_part else ():  # another member's: Redis has its candles
            if pair.symbol == name and timeframe in {each.name for each in self._config.timeframe}:
                return Feed(pair, TIMEFRAMES[timeframe])
        raise LookupError(f"{symbol} is not kept in {timeframe}")

    def __contains__(self, feed: Feed) -> bool:
        return self.feeds.get((feed.pair, feed.timeframe)) is feed

    def due_ms(self) -> int:
        """When a feed is due next; never, without feeds."""
        return min((feed.due.next_ms for feed in self), default=1 << 62)

    def own(self, owns: Callable[[Pair], bool]) -> None:
        """Have the pairs that this instance owns, and drop the others: their new owner reads them back."""
        with self._lock:
            self._owns = owns
            self._arrange()

    def _arrange(self) -> None:
        owned = tuple(filter(self._owns, self.pairs))
        self.feeds = {
            (pair, timeframe): self.feeds.get((pair, timeframe)) or Feed(pair, timeframe)
            for timeframe in self._config.timeframe
            for pair in owned
        }

    def update(self, listings: Mapping[str, Listing], meant: Meant) -> None:
        """Drop what no longer trades, take back what does again; feeds that stay keep their candles."""
        pairs, invalid = resolve_symbols(meant.names, listings)
        invalid |= dict.fromkeys(meant.unmatched, "no pair that trades fits")
        self._say_what_changed(set(pairs), meant.left_out)
        for name, reason in invalid.items():
            if self.invalid.get(name) != reason:
                say(logging.WARNING, "symbol invalid, rechecked hourly", symbol=name, reason=reason)
        for name in self.invalid.keys() - invalid.keys():
            say(logging.INFO, "symbol trades again", symbol=name)
        with self._lock:
            self.invalid, self.pairs = invalid, tuple(pairs)
            self._arrange()

    def _say_what_changed(self, pairs: set[Pair], left_out: Sequence[str]) -> None:
        """Log which pairs wildcards bring and no longer bring, and what MAX_SYMBOLS leaves out."""
        if not self._config.has_wildcards:
            return
        before = set(self.pairs)
        for event, which in (("pairs joined", pairs - before), ("pairs left", before - pairs)):
            if which:
                say(logging.INFO, event, count=len(which), pairs=some_of(sorted(pair.name for pair in which)))
        if left_out and left_out != self._left_out:
            facts = {"max_symbols": self._config.max_symbols, "count": len(left_out)}
            say(logging.WARNING, "pairs left out by MAX_SYMBOLS", **facts, pairs=some_of(left_out))
        self._left_out = left_out

    def drop_unknown(self) -> None:
        """Drop the feeds whose symbol Binance has called unknown in this cycle."""
        unknown = {feed.pair.symbol: feed.failure for feed in self if isinstance(feed.error, SymbolError)}
        for name in self._config.symbols:
            if reason := unknown.get(name.replace("/", "")):
                say(logging.WARNING, "symbol invalid, rechecked hourly", symbol=name, reason=reason)
                self.invalid = self.invalid | {name: reason}
        if unknown:
            self._say_what_changed(
                {pair for pair in self.pairs if pair.symbol not in unknown}, self._left_out
            )
            with self._lock:
                self.pairs = tuple(pair for pair in self.pairs if pair.symbol not in unknown)
                self._arrange()


def _may_draw(config: Config) -> bool:
    """Whether a progress bar would not stand among lines of the log."""
    return not config.log_file and config.log_format == "text" and config.log_level != "debug"


class Service:
    """Keeps the candles of all configured pairs fresh, until it is stopped, or once. Edges are passed in."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        binance: Binance,
        store: Store,
        *,
        once: bool,
        on_filled: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._binance = binance
        self._store = store
        self._once = once
        self._on_filled = on_filled
        self._symbols_due_ms = 0
        self._sync_again_seconds = 0.0  # monotonic
        inbox = Inbox()
        clock.on_stop = inbox.wake
        self.watchlist = Watchlist(config)
        self.members = Membership(config, clock, store, binance.gate, self.watchlist.own)
        self.schedule = Schedule(IntervalPolicy.of(config))
        self.status = Status(config, clock, binance, store, self.watchlist, self.schedule)
        self.fetcher = Fetcher(config, clock, binance)
        self.writer = Writer(config, clock, store, binance.gate, self.status.candle_closed)
        self.writer.publish = self.members.publish
        self.status.showing.members = lambda: self.members.told
        self.live = Live(config, clock, inbox, self.writer, self.schedule, self.status)
        self.audit = Audit(config, clock, binance.gate, self.fetcher, self.writer, self.status)
        self.status.live = self.live.figures
        self.workers = Workers(config, clock, inbox, self.live.take, self.tick)
        binance.on_pause = self.writer.save_pause
        self.writer.on_written = lambda announcement: self.status.on_written(announcement)
        binance.on_request = lambda seconds: self.status.observe("request", seconds)

    def run(self) -> int:
        """Do the work; returns the exit code. A stop asked for is a good end, but not of ``once``."""
        try:
            process.notify_systemd("READY=1")
            self.start()
            self.cycle(first=True)
            if self._once:
                self.catch_up()
            self._on_filled()
            while not self._once:
                self.idle()
                self.cycle()
            return EXIT_OK if self.status.report_once() else EXIT_FAILED
        except Stopped:
            return EXIT_FAILED if self._once else EXIT_OK
        finally:
            self.finish()

    # Start

    def start(self) -> None:
        """See that Redis and Binance answer, and find out what there is to do."""
        self._until_it_works("redis", self._store.prepare)
        config, address = self._config, without_password(self._config.redis_addr)
        say(logging.INFO, "connected to redis", address=address, db=config.redis_db)
        self._until_it_works("redis", self.writer.restore_pause)
        self._until_it_works("redis", self.members.join)
        self._until_it_works("binance", self._sync_clock)
        offset_ms = round(self.status.clock_offset_ms)
        say(logging.INFO, "connected to binance", url=config.binance_base_url, clock_offset_ms=offset_ms)
        self._until_it_works("binance", self._check_symbols)
        if config.live and not self._once:
            self.live.start(self.watchlist)
        self.workers.do(partial(log_api_key, config, self._binance))
        self.workers.do(partial(self.writer.restore_all, list(self.watchlist)))
        say(logging.INFO, "estimate", **estimate(len({f.pair for f in self.watchlist}), config).facts())

    def _until_it_works(self, dependency: str, act: Callable[[], None]) -> None:
        """Do what needs Redis or Binance, again and again until it works; once only with ``once``."""
        delay = 1.0
        while True:
            try:
                self.workers.do(act)
            except (ExchangeError, StoreError) as error:
                if self._once:
                    raise
                say(logging.WARNING, f"waiting for {dependency}", retry_seconds=delay, reason=str(error))
                self.status.waiting_for = f"{dependency}: {error}"
                self.workers.wait(
                    max(delay, self._store.retry_seconds if isinstance(error, StoreError) else 0.0)
                )
            else:
                self.status.waiting_for = ""
                return
            delay = min(MAX_STORE_BACKOFF_SECONDS, delay * 2)

    def _sync_clock(self) -> None:
        self.status.clock_synced(self._binance.sync_clock())

    def _check_symbols(self) -> None:
        """Ask which symbols trade, and adjust the watchlist."""
        self.watchlist.update(*self._binance.look_up(self._config))
        self._symbols_due_ms = self._clock.now_ms() + SYMBOL_CHECK_MS

    # Cycles

    def cycle(self, first: bool = False) -> None:
        """Update the feeds that are due, the stalest first; what lags behind a close is due again soon."""
        started, started_ms = self._clock.monotonic(), self._clock.now_ms()
        requests_before = self._binance.requests.total()
        self.status.state = "running"
        due = self.schedule.due(self.watchlist, started_ms)
        asked = {feed.name: feed.due for feed in due}
        with process.progress_bar(len(due) if first and _may_draw(self._config) else 0, "Backfill") as step:
            waiting = deque(due)
            for taken in self.workers.work_through(waiting, self.update, self._workers_needed):
                step(taken)
                urgent = self.schedule.urgent(self.watchlist, asked, self._clock.now_ms())
                waiting.extendleft(urgent)
                due += urgent
                asked |= {feed.name: feed.due for feed in urgent}
        self.watchlist.drop_unknown()
        due = [feed for feed in due if feed in self.watchlist]
        regular = [feed for feed in due if asked[feed.name].regular_ms <= started_ms]
        if regular:
            failure_rate = self.status.cycle_ended(regular, self._clock.monotonic() - started)
            self.schedule.cycle_ended(failure_rate)
        # What became due otherwise meanwhile stays so: a stream has told, or was lost.
        unchanged = [feed for feed in due if feed.due is asked[feed.name]]
        planned = [feed for feed in unchanged if feed.due.regular_ms <= started_ms]
        self.schedule.plan(unchanged, planned, started_ms, self._clock.now_ms())
        requests = self._binance.requests.total() - requests_before
        self.status.report(due, regular, requests, planned=not self._once)
        if regular:
            self.writer.limit_memory(self.watchlist)
            self.write_status()

    def catch_up(self) -> None:
        """Ask again, as often as planned, for candles that are lagging."""
        while any(feed.due.next_ms < feed.due.regular_ms for feed in self.watchlist):
            self.idle()
            self.cycle()

    def _workers_needed(self) -> int:
        """No more than keep the exchange busy at our rate."""
        config = self._config
        most = min(config.concurrent_requests, config.batch_size)
        return workers_needed(self._binance.gate.rate, self._binance.best_latency_seconds, most)

    def update(self, feed: Feed) -> None:
        """Bring one feed up to date. Every failure ends here, as its error; only Stopped is raised."""
        error: TetError | None = None
        if feed not in self.watchlist:
            return  # it has become another member's, or has left
        try:
            if feed.known is Known.UNREAD:
                self.writer.restore(feed)
            began, confirmed = feed.series, feed.known is Known.CONFIRMED
            keep = feed.timeframe.candles_in_days(self._config.data_days)
            held = feed.partial or began
            proven_ms = feed.asked_ms if feed.stream.link is Link.LIVE else 0
            pages = self.fetcher.pages(
                feed.pair, feed.timeframe, held, confirmed, feed.exhausted_ms, proven_ms
            )
            sent: Candles = {}  # by all pages, where a stream may move the series on meanwhile
            for page in pages:
                self.status.candles.add("received", len(page.answer.candles))
                if confirmed and began:
                    self.status.corrected(feed, corrections(began, page.answer))
                    sent |= page.answer.candles
                    page = page._replace(answer=page.answer._replace(candles=sent))
                feed.fetched(page, began, keep, self._clock.now_ms())
            self.writer.write(feed)
            if feed.known is Known.NOTHING:  # disputed: Redis has other candles
                self.update(feed)
                return
        except Stopped:
            raise
        except TetError as caught:
            error = caught
        except Exception as caught:
            logging.getLogger(LOGGER).exception("internal error")
            error = TetError(f"internal error: {type(caught).__name__}")
        feed.tried(error, self._clock.now_ms())
        say(logging.DEBUG, "update", feed=feed.name, candles=len(feed.series or ()), failure=error or "none")

    # Between cycles

    def idle(self) -> None:
        """Wait until something is due, and look at the symbols when it is their time."""
        self._sync_doubtful_clock()
        while (left_ms := min(self._symbols_due_ms, self.watchlist.due_ms()) - self._clock.now_ms()) > 0:
            self.workers.wait(min(TICK_SECONDS, left_ms / SECOND_MS))
            self._sync_doubtful_clock()
            feeds = list(self.watchlist)
            if self.audit.is_due(feeds, self.watchlist.due_ms()):
                self._try("audit", partial(self.audit.step, feeds))
        if self._clock.now_ms() >= self._symbols_due_ms:
            self._symbols_due_ms = self._clock.now_ms() + MINUTE_MS  # if it fails; else an hour
            self._try("symbols", self._check_symbols)

    def _sync_doubtful_clock(self) -> None:
        if self._clock.is_doubtful() and self._clock.monotonic() >= self._sync_again_seconds:
            self._sync_again_seconds = self._clock.monotonic() + 60
            self._try("clock", self._sync_clock)

    def _try(self, what: str, act: Callable[[], None]) -> None:
        """Let a worker do what may fail without harm, since it is done again."""
        try:
            self.workers.do(act)
        except (ExchangeError, StoreError) as error:
            say(logging.DEBUG, "deferred, will retry", what=what, reason=str(error))

    def tick(self) -> None:
        """What cannot wait for a cycle's end: a stop, the heartbeat, the status, what is buffered."""
        self._clock.check()
        process.notify_systemd("WATCHDOG=1")
        self.status.heartbeat_seconds = self._clock.monotonic()
        self.members.look()
        self.live.tick(self.watchlist)
        if self.writer.status_is_due():
            self.write_status()
        self.writer.flush(self.watchlist)
        if self.writer.status_is_due():  # it has changed
            self.write_status()

    def write_status(self) -> None:
        """Write the status now."""
        self.writer.write_status(self.status.fields, self.watchlist)

    def finish(self) -> None:
        """Let what is in flight end, within bounds, and write the last status."""
        process.notify_systemd("STOPPING=1")
        self._clock.stop()
        self.live.stop()
        self.workers.stop()
        self.members.leave()
        self.status.state = "finished" if self._once and self.status.cycles else "stopped"
        self.write_status()
        self._store.close()
        say(logging.INFO, "stopped")


# ------------------------------------------------------------------------------
# Status: the figures, the status object, and what HTTP serves of them
# ------------------------------------------------------------------------------

HEARTBEAT_SECONDS = 60.0  # the main loop ticks every second
MAX_REASONS = 10  # of failures, logged for each cycle


def estimate(pairs: int, config: Config) -> figures.Estimate:
    """The hourly cost in steady state at the base interval, from the configuration alone."""
    timeframes = [(each.step_ms, each.candles_in_days(config.data_days)) for each in config.timeframe]
    return figures.estimate(pairs, timeframes, config.update_interval, config.incremental_candles)


class Status:
    """The service's figures, and how they are shown: the status object, the log, /health and the metrics.

    The main thread changes the fields; workers add to the tallies, and HTTP threads read. ``observe`` adds
    to a histogram, ``on_written`` hears of each write; both do nothing until something serves them.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        binance: Binance,
        store: Store,
        watchlist: Watchlist,
        schedule: Schedule,
    ) -> None:
        self._config = config
        self._clock = clock
        self._binance = binance
        self._store = store
        self._watchlist = watchlist
        self._schedule = schedule
        self._started = clock.monotonic()
        self.showing = Showing(config, clock, store, watchlist)
        self.observe: Callable[[str, float], None] = lambda name, seconds: None
        self.on_written: Callable[[Mapping[str, object]], None] = lambda announcement: None
        self.state = "starting"
        self.waiting_for = ""
        self.heartbeat_seconds = 0.0  # monotonic
        self.clock_offset_ms = 0.0
        self.cycles = 0
        self.candles = figures.Tally()  # received, closed
        self.updates = figures.Tally()  # written, failed
        self.close_delays = figures.DayOfDelays()
        self.delays_by_source = {"stream": figures.DayOfDelays(), "rest": figures.DayOfDelays()}
        self.messages = figures.Tally()  # of streams: accepted, refused, damaged
        self.live: Callable[[], dict[str, object] | None] = lambda: None
        self._written = self._failed = 0  # in the last cycle
        self._duration_seconds = 0.0
        self._warnings: tuple[str, ...] = ()

    # What happened

    def clock_synced(self, offset_ms: float) -> None:
        """Note by how much the local clock is ahead of the exchange's, with a warning when that is new."""
        before_ms, self.clock_offset_ms = self.clock_offset_ms, offset_ms
        if abs(offset_ms) > MAX_CLOCK_OFFSET_MS and abs(offset_ms - before_ms) > MAX_CLOCK_OFFSET_MS:
            word = "ahead of" if offset_ms > 0 else "behind"
            event = f"local clock is {word} Binance's; using exchange time"
            say(logging.WARNING, event, offset_seconds=round(offset_ms / SECOND_MS, 1))

    def candle_closed(self, delay_seconds: float, by_stream: bool) -> None:
        """Count a candle that closed while the service was there, told by a stream or by REST."""
        self.candles.add("closed")
        for delays in (self.close_delays, self.delays_by_source["stream" if by_stream else "rest"]):
            delays.add(delay_seconds, self._clock.now_ms())
        self.observe("candle_delay", delay_seconds)
        if by_stream:
            self.observe("stream_delay", delay_seconds)

    def corrected(self, feed: Feed, found: Sequence[Correction]) -> None:
        """Count closed candles that the exchange has otherwise by now, and log both values."""
        self.candles.add("corrected", len(found))
        for each in found[:MAX_REASONS]:
            held, sent = (text.replace("\\", "") for text in (each.held, each.sent))
            say(logging.WARNING, "candle corrected by binance", feed=feed.name, held=held, sent=sent)
        if len(found) > MAX_REASONS:
            more = len(found) - MAX_REASONS
            say(logging.WARNING, "more candles corrected by binance", feed=feed.name, count=more)

    def cycle_ended(self, feeds: Sequence[Feed], seconds: float) -> float:
        """Count a cycle over these feeds, one or more; returns the share that failed."""
        self._duration_seconds = seconds
        self._failed = sum(1 for feed in feeds if feed.error)
        self._written = len(feeds) - self._failed
        self.cycles += 1
        self.updates.add("failed", self._failed)
        self.updates.add("written", self._written)
        self._warnings = tuple(self._out_of_bounds(len(feeds)))
        self.observe("cycle", seconds)
        return self._failed / len(feeds)

    def _out_of_bounds(self, updates: int) -> Iterator[str]:
        """What the last cycle, of so many updates, says against the configured bounds."""
        config = self._config
        if self._duration_seconds > config.max_update_time and self.cycles > 1:
            seconds = round(self._duration_seconds, 1)
            yield f"a cycle took {seconds} s, more than MAX_UPDATE_TIME {config.max_update_time} s"
        if self._failed / updates > config.max_failure_rate:
            share = f"{self._failed} of {updates} updates failed"
            yield f"{share}, more than MAX_FAILURE_RATE {config.max_failure_rate:g}"

    # The log

    def report(self, due: Sequence[Feed], regular: Sequence[Feed], requests: int, *, planned: bool) -> None:
        """Log a line for a cycle, one for each reason of failure, and what is out of bounds."""
        self._report_failures(due)
        if not regular:
            say(logging.DEBUG, "asked again after a close", feeds=len(due), requests=requests)
            return
        gate, next_ms = self._binance.gate, self._next_cycle_ms()
        say(
            logging.INFO,
            "cycle",
            updated=self._written,
            failed=self._failed,
            seconds=round(self._duration_seconds, 2),
            requests=requests,
            weight=f"{gate.used_weight()}/{gate.weight_limit}",
            next=iso_time(next_ms) if next_ms and planned else "none",
        )
        for warning in self._warnings:
            say(logging.WARNING, warning)

    def report_once(self) -> bool:
        """Log what failed with ``--once``; returns whether all went well."""
        failed = [feed.name for feed in self._watchlist if feed.error]
        if not self._watchlist.pairs:
            say(logging.ERROR, "no symbol is left to update", invalid=", ".join(self._watchlist.invalid))
        elif failed:
            say(logging.ERROR, "not all updated", failed=", ".join(failed))
        return bool(self._watchlist.pairs) and not failed

    @staticmethod
    def _report_failures(feeds: Iterable[Feed]) -> None:
        """A warning for each reason, however many feeds share it."""
        reasons: dict[str, list[str]] = {}
        for feed in feeds:
            if feed.error:
                reasons.setdefault(feed.failure, []).append(feed.name)
        for reason, names in list(reasons.items())[:MAX_REASONS]:
            say(
                logging.WARNING,
                "update failed",
                count=len(names),
                feeds=some_of(names),
                reason=reason,
            )
        if len(reasons) > MAX_REASONS:
            say(logging.WARNING, "update failed for more reasons", count=len(reasons) - MAX_REASONS)

    # The status object

    def fields(self) -> dict[str, object]:
        """The object under ``tet:system:status``."""
        feeds, now_ms = list(self._watchlist), self._clock.now_ms()
        memory = figures.resident_mb()
        paused = self.state == "running" and self._binance.gate.pause_left_seconds() > 0
        candles, updates = self.candles.counts(), self.updates.counts()
        return {
            "state": "paused" if paused else self.state,
            "version": __version__,
            "written": iso_time(now_ms),
            "ttl_seconds": self._config.status_ttl,
            "uptime_seconds": round(self._clock.monotonic() - self._started),
            "market": self._config.binance_market,
            "timeframes": [timeframe.name for timeframe in self._config.timeframe],
            "symbols": list(dict.fromkeys(feed.pair.name for feed in feeds)),
            "last_full_scan": _iso_or_none(min((f.tried_ms for f in feeds if f.tried_ms), default=0)),
            "active_symbols": len({feed.pair for feed in feeds}),
            "successful_updates": self._written,
            "failed_updates": self._failed,
            "update_duration_seconds": round(self._duration_seconds, 3),
            "update_interval_seconds": round(self._schedule.interval_seconds, 1),
            "update_interval_reason": self._schedule.interval_reason,
            "next_cycle": _iso_or_none(self._next_cycle_ms()),
            "cycles": self.cycles,
            "updates_written": updates.get("written", 0),
            "updates_failed": updates.get("failed", 0),
            "candles_received": candles.get("received", 0),
            "candles_closed": candles.get("closed", 0),
            "candles_corrected": candles.get("corrected", 0),
            "candles_audited": candles.get("audited", 0),
            "waiting_for": self.waiting_for or None,
            "clock_skew_ms": round(self.clock_offset_ms),
            "invalid_symbols": self._watchlist.invalid,
            "failed_symbols": {feed.name: feed.failure for feed in feeds if feed.error},
            "warnings": list(self._warnings),
            "close_to_redis_seconds": self.close_delays.percentiles(now_ms),
            "memory_mb": round(memory, 1) if memory is not None else None,
            "live": self._live(now_ms),
            **self._freshness(feeds, now_ms),
            **self._spent(),
        }

    def _live(self, now_ms: int) -> dict[str, object] | None:
        """The status' part about streams; None without LIVE."""
        if (figures := self.live()) is None:
            return None
        delays = {name: each.percentiles(now_ms) for name, each in self.delays_by_source.items()}
        stream, rest = (int(each["closes"] or 0) for each in delays.values())
        share = round(stream / (stream + rest), 4) if stream + rest else None
        told = {"messages_by_outcome": self.messages.counts(), "close_to_redis_by_source": delays}
        return figures | told | {"closes_by_stream_share": share}

    def _next_cycle_ms(self) -> int:
        return min((feed.due.regular_ms for feed in self._watchlist if feed.due.regular_ms), default=0)

    @staticmethod
    def _freshness(feeds: Sequence[Feed], now_ms: int) -> dict[str, object]:
        """How old the data is: the status' part that readers look at first."""
        ages = [(now_ms - feed.updated_ms) / SECOND_MS for feed in feeds if feed.updated_ms]
        return {
            "data_freshness_avg": round(sum(ages) / len(ages), 1) if ages else None,
            "data_freshness_max": round(max(ages), 1) if ages else None,
            "never_updated": len(feeds) - len(ages),
            "completeness_min": min((feed.completeness for feed in feeds if feed.updated_ms), default=None),
            "unsaved": sum(feed.buffered for feed in feeds),
        }

    def _spent(self) -> dict[str, object]:
        """What was asked of the exchange, and its limits: the status' part about requests."""
        gate, binance = self._binance.gate, self._binance
        return {
            "paused_until": _iso_or_none(gate.paused_until_ms),
            "pause_reason": gate.pause_reason or None,
            "used_weight": gate.used_weight(),
            "weight_limit": gate.weight_limit,
            "requests": binance.requests.total(),
            "requests_by_status": binance.requests.counts(),
            "request_errors": binance.errors.counts(),
        }

    # /health and /metrics

    def health(self) -> dict[str, object]:
        """Whether the main loop lives and the data is fresh, with the reasons where not: for /health."""
        config, now_ms, feeds = self._config, self._clock.now_ms(), list(self._watchlist)
        reasons = []
        silent_seconds = self._clock.monotonic() - self.heartbeat_seconds
        if not (live := silent_seconds < HEARTBEAT_SECONDS):
            reasons.append(f"no heartbeat of the main loop for {silent_seconds:.0f} s")
        stale = [feed.name for feed in feeds if now_ms - feed.updated_ms > config.max_data_age * SECOND_MS]
        if stale:
            which = f"{len(stale)} of {len(feeds)} ({some_of(stale)})"
            reasons.append(f"older than {config.max_data_age} s: {which}")
            reasons += filter(None, (self.waiting_for, self._binance.gate.pause_reason))
        if not feeds and not self._watchlist.pairs:
            reasons.append(self.waiting_for or "no symbol to update")
        if unreachable := self._store.outages.reason:
            reasons.append(unreachable)
        ready = bool(self._watchlist.pairs) and not stale and not unreachable
        streams = {"streams": found} if (found := self.live()) else {}
        return {"live": live, "ready": ready, "reasons": reasons, **streams}


class Shown(NamedTuple):
    """A feed as the page shows it: fresh, stale, failing or missing, and why; its candles, if in memory."""

    symbol: str
    timeframe: str
    state: str
    reason: str
    updated: str | None
    series: Series | None


class Showing:
    """The feeds and their candles, for what HTTP serves. Nothing changes in it; HTTP threads read."""

    def __init__(self, config: Config, clock: Clock, store: Store, watchlist: Watchlist) -> None:
        self._config = config
        self._clock = clock
        self._store = store
        self._watchlist = watchlist
        self.members: Callable[[], Sequence[Mapping[str, object]]] = lambda: ()

    def feeds(self) -> Iterator[Shown]:
        """Each feed as the page's table shows it; costs no look at its candles."""
        now_ms = self._clock.now_ms()
        for feed in self._watchlist:
            updated_ms, failure, state = feed.updated_ms, feed.failure, "fresh"
            if not updated_ms:
                state = "missing"
            elif now_ms - updated_ms > self._config.max_data_age * SECOND_MS:
                state = "stale"
            elif failure:
                state = "failing"
            updated = _iso_or_none(updated_ms)
            yield Shown(feed.pair.name, feed.timeframe.name, state, failure, updated, feed.series)

    def ages(self) -> Iterator[tuple[str, str, float]]:
        """Symbol, timeframe and seconds since the last good update, for those that had one."""
        now_ms = self._clock.now_ms()
        for feed in self._watchlist:
            if feed.updated_ms:
                yield feed.pair.name, feed.timeframe.name, (now_ms - feed.updated_ms) / SECOND_MS

    def candles_of(self, symbol: str, timeframe: str) -> Image | None:
        """A feed's candles as they are stored, or will be once Redis takes them; None where there are none.

        They come from memory, else from Redis. Raises LookupError for what is not kept here, StoreError.
        """
        feed = self._watchlist.find(symbol, timeframe)
        wanted, series = feed.timeframe.candles_in_days(self._config.data_days), feed.series
        try:
            if series is not None:
                return make_image(series, wanted, feed.fetched_ms, self._config.closed_only)
            value = self._store.load(kline_key(feed.timeframe, feed.pair))[0]
            now_ms = self._clock.now_ms() + CLOCK_TOLERANCE_MS
            return read_stored_value(value, feed.timeframe, wanted, now_ms).image if value else None
        except StoredValueError:
            return None  # not one closed candle yet, or damaged: it is fetched anew


def _iso_or_none(at_ms: int) -> str | None:
    return iso_time(at_ms) if at_ms else None


@contextmanager
def serving_http(config: Config, status: Status) -> Iterator[None]:
    """Serve HTTP where HTTP_ADDR says, if it does. Raises TetError when it cannot bind."""
    if not config.http_addr:
        yield
        return
    from tet_extras import answers, web

    showing = status.showing
    ages = showing.ages if config.metrics_per_symbol else None
    frames = tuple(timeframe.name for timeframe in config.timeframe)

    def fields() -> dict[str, object]:
        members = showing.members()
        return status.fields() | ({"members": members} if members else {})

    sources = answers.Sources(
        fields, status.health, frames, showing.feeds, showing.candles_of, ages, StoreError
    )
    with web.serving(config.http_addr, config.http_token, sources, TetError) as server:
        status.observe, status.on_written = server.observe, server.written
        url = addresses.page_url(config.http_addr[0], server.port)
        say(logging.INFO, "serving the page, /api, /health and /metrics", url=url)
        yield


# ------------------------------------------------------------------------------
# --status, --health-check and --verify
# ------------------------------------------------------------------------------


def read_report(config: Config, store: Store, local_ms: int) -> Report:
    """Look at Redis alone. Ages are measured by exchange time where a status has it, else by ``local_ms``.

    Raises StoreError.
    """
    from tet_extras.report import configured_pairs, make_report

    status, status_age_seconds = store.load_status() or ({}, None)
    names = configured_pairs(config.symbols, status)
    feeds = [(Pair(*name.split("/")), timeframe) for timeframe in config.timeframe for name in names]
    found = zip(feeds, store.load_tails(feeds), strict=True)
    tails = [(pair.name, timeframe.name, *values) for (pair, timeframe), values in found]
    return make_report(status, status_age_seconds, tails, local_ms / SECOND_MS, config.max_data_age)


def show_status(config: Config, store: Store, *, as_json: bool) -> int:
    """``--status``: print the report; 0 when all is well, else 1."""
    from tet_extras.report import Report, report_json, report_text

    try:
        report = read_report(config, store, int(time.time() * SECOND_MS))
    except StoreError as error:
        report = Report({}, None, [], [str(error)])
    page = addresses.page_url(*config.http_addr) if config.http_addr else ""
    click.echo(report_json(report) if as_json else report_text(report, page))
    return EXIT_FAILED if report.problems else EXIT_OK


class Check(NamedTuple):
    """One line of ``--health-check``: what was looked at, whether it is well, and what was found."""

    name: str
    ok: bool
    found: str


def check_health(config: Config, clock: Clock, binance: Binance, store: Store) -> Iterator[Check]:
    """Look at Redis, Binance, the keys, the symbols and the data's age; costs 22 of the exchange's weight."""
    from tet_extras.report import ago

    store_check = _check_store(store)
    yield store_check
    pause = store.load_pause() if store_check.ok else None
    if pause:
        yield Check("binance", False, f"not asked: a pause of {ago(pause[0])} more is on: {pause[1]}")
    else:
        yield from _check_binance(config, clock, binance)
    if store_check.ok:
        report = read_report(config, store, clock.now_ms())
        ages = [row.age_seconds for row in report.rows if row.age_seconds is not None]
        found = "; ".join(report.problems) or f"oldest update {ago(max(ages))} ago"
        yield Check("data", not report.problems, found)


def _check_store(store: Store) -> Check:
    try:
        store.prepare()
        store.try_write()
    except StoreError as error:
        return Check("redis", False, str(error))
    return Check("redis", True, "answers and takes writes")


def _check_binance(config: Config, clock: Clock, binance: Binance) -> Iterator[Check]:
    try:
        began = clock.monotonic()
        offset_ms = binance.sync_clock()
        latency_ms = round((clock.monotonic() - began) * SECOND_MS)
        listings, meant = binance.look_up(config)
        gate = binance.gate
        found = f"answers in {latency_ms} ms, weight {gate.used_weight()} of {gate.weight_limit}"
        yield Check("binance", True, found)
        found = f"the local clock is {offset_ms / SECOND_MS:+.1f} s against the exchange's"
        yield Check("clock", abs(offset_ms) <= MAX_CLOCK_OFFSET_MS, found)
        pairs, invalid = resolve_symbols(meant.names, listings)
        reasons = "".join(f"; {name}: {reason}" for name, reason in invalid.items())
        yield Check("symbols", bool(pairs) and not invalid, f"{len(pairs)} trade{reasons}")
    except ExchangeError as error:
        yield Check("binance", False, str(error))
        return
    if config.has_keys:
        yield check_api_key(binance)


def check_api_key(binance: Binance) -> Check:
    """Whether the API key works and may no more than read. Makes one signed call."""
    try:
        permissions = binance.key_permissions()
    except RefusedError as error:
        return Check("keys", False, f"binance rejects the API key: {error}")
    except ExchangeError as error:
        return Check("keys", False, f"the API key could not be verified: {error}")
    excess = [name for name in TRADING_PERMISSIONS if permissions.get(name) is True]
    if excess:
        advice = "make one that may not trade or withdraw"
        return Check("keys", False, f"the API key may do more than read; {advice}: {', '.join(excess)}")
    return Check("keys", True, "the API key is valid and may only read")


def log_api_key(config: Config, binance: Binance) -> None:
    """Log whether the API key works. Candles are public, so a bad key is an error, but not fatal."""
    if config.has_keys:
        check = check_api_key(binance)
        say(logging.INFO if check.ok else logging.ERROR, check.found)


def verify(config: Config, clock: Clock, binance: Binance, store: Store, *, repair: bool) -> int:
    """``--verify``: compare every value with the exchange and print what differs; 0 when nothing does.

    With ``repair`` what differs is written as the exchange has it. Raises ExchangeError and StoreError.
    """
    from tet_extras.report import ago, show_verdict, verdicts_text

    store.prepare()
    if pause := store.load_pause():
        click.echo(f"not asked: a pause of {ago(pause[0])} more is on: {pause[1]}", err=True)
        return EXIT_FAILED
    service = Service(config, clock, binance, store, once=True)
    binance.sync_clock()
    service.watchlist.update(*binance.look_up(config))
    feeds, verdicts = list(service.watchlist), []
    with process.progress_bar(len(feeds), "Verify") as step:
        for feed in feeds:
            keep = feed.timeframe.candles_in_days(config.data_days)
            repair_ms = clock.now_ms() if repair else 0
            verdict = verify_feed(feed, service.fetcher, service.writer, keep, repair_ms)
            if repair and verdict.problem:
                service.update(feed)
            verdicts.append(verdict)
            show_verdict(feed.name, verdict, iso_time)
            step(1)
    click.echo(verdicts_text(verdicts, binance.requests.total(), repair=repair))
    is_well = bool(verdicts) and not any(verdict.found or verdict.problem for verdict in verdicts)
    return EXIT_OK if is_well else EXIT_FAILED


def show_health(config: Config, clock: Clock, binance: Binance, store: Store, *, as_json: bool) -> int:
    """``--health-check``: print a line for each check as it is done; 0 when all is well, else 1."""
    from tet_extras.report import show_checks

    binance.attempts = 1
    checks = check_health(config, clock, binance, store)
    return EXIT_OK if show_checks(checks, as_json=as_json) else EXIT_FAILED


# ------------------------------------------------------------------------------
# The command line
# ------------------------------------------------------------------------------

WATCH_SECONDS = 2.0


@contextmanager
def with_redis(config: Config) -> Iterator[Config]:
    """The settings with an address to connect to: for ``embedded`` that of a server started for as long.

    Raises StoreError when that server cannot be started.
    """
    if config.redis_addr != EMBEDDED:
        yield config
        return
    from tet_extras import embedded

    memory_mb = 256 + 3 * (estimate(config.most_symbols, config).candles_bytes // 1_000_000)
    with embedded.running(config.data_dir, memory_mb, say, StoreError) as port:
        yield _at_port(config, port)


def find_embedded(config: Config) -> Config:
    """The settings with the address of the embedded server that runs now. Raises StoreError."""
    if config.redis_addr != EMBEDDED:
        return config
    from tet_extras import embedded

    return _at_port(config, embedded.running_port(config.data_dir, StoreError))


def _at_port(config: Config, port: int) -> Config:
    return replace(config, redis_addr=f"redis://127.0.0.1:{port}", redis_username=None, redis_password=None)


def demo(flags: Mapping[str, str], *, once: bool) -> int:
    """``--demo``: a simulated exchange, an embedded server in a folder that goes again, and the service."""
    from tet_extras.demo import simulated, text_after
    from tet_extras.report import report_text

    def show(config: Config, store: Store, clock: Clock, once: bool) -> None:
        click.echo(f"\n{report_text(read_report(config, store, clock.now_ms()))}")
        if not once and config.http_addr:
            click.echo(text_after(urlsplit(config.redis_addr).port, config.http_addr))

    def resolve(settings: Texts) -> Config:
        return resolve_config(settings, {}, None).config

    with simulated(flags, resolve, with_page=not once) as config:
        start_logging(config)
        return serve(config, once=once, on_filled=show)


def serve(config: Config, *, once: bool, on_filled: Callable[..., None] = lambda *facts: None) -> int:
    """Run the service with these settings; returns the exit code."""
    clock = Clock()

    def stop(signal_name: str) -> None:
        say(logging.INFO, "stopping", signal=signal_name)
        clock.stop()

    process.tune_memory()
    process.stop_on_signals(stop, EXIT_FAILED if once else EXIT_OK)
    say(logging.INFO, "tet-data-service", version=__version__)
    say(logging.INFO, "settings", **{option.name.lower(): shown(option.name, config) for option in OPTIONS})
    try:
        with connect_http(config) as http, with_redis(config) as config:
            store = Store(config, clock, connect_redis(config))
            filled = partial(on_filled, config, store, clock, once)
            service = Service(config, clock, Binance(config, clock, http), store, once=once, on_filled=filled)
            with serving_http(config, service.status):
                return service.run()
    except ConfigError as error:
        say(logging.ERROR, "startup failed", reason=str(error))
        return EXIT_USAGE
    except TetError as error:
        say(logging.ERROR, "fatal error", reason=str(error))
        return EXIT_FAILED


def look(config: Config, what: str, *, as_json: bool, watch: bool, repair: bool) -> int:
    """``--status``, ``--health-check`` or ``--verify``; returns the exit code."""
    clock = Clock()
    config = find_embedded(config)
    store = Store(config, clock, connect_redis(config))
    if what != "status":
        with connect_http(config) as http:
            binance = Binance(config, clock, http)
            if what == "verify":
                return verify(config, clock, binance, store, repair=repair)
            return show_health(config, clock, binance, store, as_json=as_json)
    if not watch:
        return show_status(config, store, as_json=as_json)
    code = EXIT_FAILED
    with suppress(KeyboardInterrupt):
        while True:
            click.clear()
            code = show_status(config, store, as_json=as_json)
            time.sleep(WATCH_SECONDS)
    return code


def show_config(resolved: Resolved) -> int:
    """``--check-config``: print the settings in force and where each is from; warnings go to stderr."""
    from tet_extras.report import config_table

    rows = [(o.name, shown(o.name, resolved.config), resolved.origins[o.name]) for o in OPTIONS]
    click.echo(config_table(rows))
    code = EXIT_OK
    if resolved.config.has_wildcards:
        code = show_wildcards(resolved.config)
    for warning in resolved.warnings:
        click.echo(f"warning: {warning}", err=True)
    return code


def show_wildcards(config: Config) -> int:
    """Say which pairs wildcards mean now, and what they cost; asks the exchange which there are."""
    from tet_extras.report import cost_text

    clock = Clock()
    try:
        with connect_http(config) as http:
            binance = Binance(config, clock, http)
            binance.attempts = 1
            listings, meant = binance.look_up(config)
    except ExchangeError as error:
        click.echo(
            f"error: SYMBOLS: the exchange could not be asked which pairs are meant: {error}", err=True
        )
        return EXIT_FAILED
    pairs, invalid = resolve_symbols(meant.names, listings)
    names = [pair.name for pair in pairs]
    invalid |= dict.fromkeys(meant.unmatched, "no pair that trades fits")
    cost, market = estimate(len(names), config), binance.market
    weights = market.klines_weight(config.incremental_candles + 1), market.klines_weight(market.page_rows)
    pages = sum(-(-each.candles_in_days(config.data_days) // market.page_rows) for each in config.timeframe)
    weight = (cost.requests * weights[0] / 60, binance.gate.weight_limit, len(names) * pages * weights[1])
    left_out = (meant.left_out, config.max_symbols)
    click.echo(cost_text(names, left_out, invalid, cost, weight, config.memory_limit_mb))
    return EXIT_OK


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command a flag for each row of `OPTIONS` that has one."""
    for option in reversed(OPTIONS):
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


@click.command(
    cls=process.GroupedCommand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""Every setting can also stand in the environment or the config file (dotenv syntax), under the
    name that config.example and the README give; a flag wins over the environment, and that over the
    file. Exit codes: 0 good, 1 something failed, 2 wrong settings.""",
)
@click.option("--config", "config_file", metavar="FILE", help="Config file [config.txt, else .env].")
@_with_options
@click.option(
    "--demo", "as_demo", is_flag=True, help="Try it: a simulated market, no keys, no network, no Redis."
)
@click.option("--once", is_flag=True, help="Update everything once and end: 0 if all went well, else 1.")
@click.option("--status", "look_at", flag_value="status", help="Show what Redis holds and how fresh: 0 or 1.")
@click.option(
    "--health-check", "look_at", flag_value="health", help="Check Redis, Binance, keys, data: 0 or 1."
)
@click.option("--verify", "look_at", flag_value="verify", help="Compare all with the exchange: 0 or 1.")
@click.option("--repair", is_flag=True, help="With --verify: write the exchange's values.")
@click.option("--check-config", is_flag=True, help="Show the settings in force and where each is from.")
@click.option("--json", "as_json", is_flag=True, help="With --status or --health-check: as JSON.")
@click.option("--watch", is_flag=True, help="With --status: again and again, until Ctrl-C.")
@click.version_option(process.version_text(__version__), message="tet-data-service %(version)s")
def main(
    config_file: str | None,
    as_demo: bool,
    once: bool,
    look_at: str | None,
    check_config: bool,
    as_json: bool,
    watch: bool,
    repair: bool,
    **flags: str | None,
) -> None:
    """Keep the last 30 days of Binance candles fresh in Redis.

    \b
    Examples:
      tet-data-service --demo                            a simulated market, to try it
      tet-data-service --public                          25 pairs, local Redis, no keys
      tet-data-service --config=config.txt               as config.txt says
      tet-data-service --public --once --symbols=BTC/USDT --timeframe=15m,1h
      tet-data-service --public --status --watch         what is there, and how fresh
    """
    if (as_json and look_at not in ("status", "health")) or (watch and look_at != "status"):
        raise click.UsageError("--json goes with --status or --health-check, --watch with --status")
    if repair and look_at != "verify":
        raise click.UsageError("--repair goes with --verify")
    given = {name: text for name, text in flags.items() if text is not None}
    if look_at == "status":
        given["PUBLIC_DATA"] = "true"  # it reads Redis alone: no key is needed
    try:
        if as_demo:
            process.end_process(demo(given, once=once))
        resolved = resolve_config(given, os.environ, find_config_file(config_file))
        if check_config:
            sys.exit(show_config(resolved))
        if look_at:
            sys.exit(look(resolved.config, look_at, as_json=as_json, watch=watch, repair=repair))
        start_logging(resolved.config)
    except ConfigError as error:
        lines = [f"error: {problem}" for problem in error.problems]
        lines += [f"warning: {warning}" for warning in error.warnings]
        click.echo("\n".join([*lines, "Nothing was started. --help lists the settings."]), err=True)
        sys.exit(EXIT_USAGE)
    except TetError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_FAILED)
    for warning in resolved.warnings:
        say(logging.WARNING, warning)
    process.end_process(serve(resolved.config, once=once))


if __name__ == "__main__":
    if __spec__ is None:  # a script, not python -m
        process.run_imported("tet_data_service", "main")
    main()
