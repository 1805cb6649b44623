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
      cut; oldest first, no duplicates, on the timeframe's grid, at most N candles. With ``FIELDS=all`` each
      has ``"quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume"`` behind these.
    * ``last_candle_time``, ``last_update``, ``data_start``: open time of the newest candle, time of the
      last good update, open time of the oldest candle.
    * ``data_end``: the end (exclusive) of the newest candle known to be closed. A candle that opens
      at ``data_end`` or later is still forming.
    * ``data_completeness``: ``candle_count`` / N, at most 1; N is how many candles of the timeframe
      ``DATA_DAYS`` hold, rounded up.
    * ``candle_count``, ``timeframe``, ``data_age_seconds`` (``last_update`` - ``data_end``, >= 0).

    The value keeps its length while the window slides in it: blanks, as JSON allows them, stand before the
    first candle, behind the last one (both within the string), and behind the object. The 48 blanks and tabs
    before ``last_candle_time`` are the value's mark: others when it has been written whole. While they stay,
    the candles but the newest 8 are as they were, each at its place, unless the value is laid out anew.

``tet:timestamp:{timeframe}:{SYMBOL}``
    Time of the last good update, expiring after ``TIMESTAMP_TTL``; written with the value above in
    one step.

``tet:system:status``
    A JSON object with the service's state and metrics, expiring after ``STATUS_TTL``.

``tet:status:{id}``
    Only with GROUP, SHARD or EGRESS: a member's own status. ``tet:system:status`` is made of all of them
    then, with a list ``members``.

``tet:system:claim``
    What the values are made of (market, ``DATA_DAYS``, ``CLOSED_ONLY``) and which process writes them, JSON,
    renewed every 4 s and expiring after 15: a service that is set differently does not start.

``tet:system:pause``, ``tet:system:pause:{egress}``; with another market ``tet:system:pause@{market}``
    Only while rate limited or banned by the exchange: until when, and why.

``tet:system:health``
    For a second, while ``--health-check`` sees whether Redis takes writes.

``tet:selection:{digest}``
    With GROUP: what members are set to keep, renewed every minute.

``tet:member:{tet}``, ``tet:member:{tet}:{id}``
    Only with GROUP, SHARD or EGRESS: who shares the pairs and the rate, renewed every 2 s.

``tet:upload:{key}:{id}``
    For a moment, a whole value on its way to that key, at most 30 s: what is written is renamed to its place
    in one step. Each upload has a key of its own.

With ``REDIS_PREFIX`` all begin with that in place of ``tet``, but the pause: it is the address's, and all
that leave by it honour it. A value never gives way to one whose ``data_end`` is earlier, then whose newest
candle is, then whose ``last_update`` is: readers see none of the three go back.

Each update is announced on the channel ``tet:updates`` as a JSON object: ``symbol``, ``candle_closed``
(whether a candle has closed since the last write) and the fields that the value has behind ``ohlcv_data``,
``timeframe``, ``last_candle_time``, ``last_update``, ``data_start``, ``data_end`` among them. So that who
listens needs no read, it also has, unless the value was written whole: ``follows``, the ``last_update`` of
the value that this one continues, and ``candles``, those that came or changed since, oldest first, each
``[time, open, high, low, close, volume]``, all text. Who holds the value of that ``last_update`` lays them
over it, and drops what opens before ``data_start``; who holds an older one, or hears no ``follows``, reads.

Words. *Feed*: one pair in one timeframe. *Series*: its candles in memory, as the bytes to be stored.
*Window*: the N candles that are kept, the lookback window. *Backfill*: to fetch a window from its start.
*Ended*: a candle's time is over; *closed*: its values will not change any more, too; *lagging*: ended and
not seen closed yet. *Confirmed*: candles read back from Redis that the exchange has repeated. *Image*: what
Redis has of a feed. *Patch*: to write in a value what changed of it. *Slide*: a patch by which candles
leave at the front and come at the end; *laid out anew*: moved within Redis, with fresh blanks. *Buffered*:
kept in memory because Redis did not take it, or has lost it; *flushed* when it does. *Evicted*: dropped
from memory, since Redis has it. *Weight*: what a request costs of the exchange's limit. *Gate*: what every
request passes.
*Pause*: rate limited, banned or refused; *probe*: the one request that goes first after a pause.
*Stream*: what the exchange sends of a feed over a WebSocket; *streamed*: come by it; *bundle*: the streams
that share a connection.
*Live*: kept fresh by its stream; *catching up*: REST is asked for what its stream left out; *polled*: kept
fresh by REST, since its stream says nothing (the status' field is called ``blind``). *Proof*: to ask REST for
the last candles of a live feed; *audit*: to compare a whole window with the exchange; *correction*: a closed
candle that the exchange has otherwise.
*Invalid*: a symbol unknown, halted or delisted. *Member*: one of several instances that share the pairs or
a rate. *Lease*: for how long a member may send requests. *Clock offset*: local time minus exchange time.
*Heartbeat*: the main loop's, each second.

Three storeys, and imports go down only. ``tet_core`` has the rules: it knows no network, no Redis and no
clock. ``tet_extras`` has a room for each capability: LIVE, members, the audit, the status, the web. This
module has what everything rests on, and joins them; docs/design.md has the map. It reads from top to bottom;
its chapters, and where they are tested (tests/…/test_….py):

* exit codes, logging; options and configuration (service/config, project/readme)
* what needs no network either: the exchange's limits (service/limits, core/pauses)
* the edges: the gate (service/limits), Binance (service/faults, service/security), Redis (service/store,
  service/instances, service/refusals, extras/servers)
* what joins them: the fetcher (service/service, service/faults), the writer (service/writer, service/writes),
  the service and how it is assembled (service/service, service/program), what is served (extras/monitoring,
  extras/web, extras/page)
* what people start: --status, --health-check and --verify (extras/monitoring, extras/audit), the command line
  (service/program)
"""

from __future__ import annotations

if __name__ == "__main__" and __spec__ is None:  # a script, not python -m: before all is imported for nothing
    from tet_extras.script import run_imported

    run_imported("tet_data_service", "main")

import difflib
import hashlib
import hmac
import json
import logging
import math
import os
import random
import re
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlencode, urlsplit

import click

from tet_core.candles import FIELDS, Answer, Candles, Fields, decode_json
from tet_core.drafts import Draft, Drafts, compared
from tet_core.errors import (
    LOGGER,
    BadReply,
    ClaimedError,
    ConfigError,
    ExchangeError,
    FullError,
    PauseError,
    RefusedError,
    Stopped,
    StoredValueError,
    StoreError,
    SymbolError,
    TakenError,
    TetError,
    TransientError,
    say,
)
from tet_core.exchange_info import ExchangeInfo, parse_exchange_info, parse_volumes
from tet_core.feeds import Feed, Page
from tet_core.freshness import Asked
from tet_core.intervals import Interval
from tet_core.klines import OddReply
from tet_core.listeners import Listener, Listeners
from tet_core.markets import MARKETS, account_of, budget_of
from tet_core.odd_rows import APART_SECONDS, OddRows, Question
from tet_core.pairs import (
    Expansion,
    Listing,
    Pair,
    expand_symbols,
    is_wildcard,
    meant_symbol,
    resolve_symbols,
)
from tet_core.pauses import (
    PAUSES,
    http_date_ms,
    pause_kind,
    pause_reason,
    pause_seconds,
    read_refusal,
)
from tet_core.series import (
    Series,
    absorb,
    corrections,
    missing_opens,
)
from tet_core.sessions import Hours, parse_schedule
from tet_core.shares import Selection, parse_selection
from tet_core.snapshot import Snapshot
from tet_core.stored import (
    MARK_BITS,
    Announcement,
    Image,
    Keys,
    Patch,
    announce,
    mark_of,
    pause_key,
    read_stored_value,
)
from tet_core.times import (
    CLOCK_TOLERANCE_MS,
    MAX_CLOCK_OFFSET_MS,
    MINUTE_MS,
    SECOND_MS,
    TIMEFRAMES,
    Timeframe,
    iso_time,
    parse_iso_time,
)
from tet_core.watchlist import Watchlist
from tet_extras import addresses, export, figures, hints, output, process
from tet_extras.addresses import EMBEDDED, Refusal, shown_address
from tet_extras.audit import Audit, Verdict, verify_feed
from tet_extras.bulletin import Bulletin
from tet_extras.claims import Claim, values_of, writer_of
from tet_extras.clock import Clock
from tet_extras.counts import Counts, Progress
from tet_extras.live import Live
from tet_extras.losses import Losses, caution, needed_bytes
from tet_extras.members import Membership
from tet_extras.notices import Notices
from tet_extras.options import (
    Option,
    Parsed,
    api_key,
    file_path,
    is_path_at_fault,
    listed,
    member_name,
    shard,
    symbol_names,
    with_flags,
)
from tet_extras.outages import Outages
from tet_extras.pipelines import Pipeline
from tet_extras.places import market_conflicts, with_host
from tet_extras.reload import Reload, in_force
from tet_extras.remedies import as_store_error, rights_of, with_remedy
from tet_extras.scripts import (
    CLAIM_SCRIPT,
    LOOK_SCRIPT,
    MEMBER_SCRIPT,
    PATCH_SCRIPT,
    STAMP_SCRIPT,
    WRITE_SCRIPT,
    sha_of,
)
from tet_extras.settings_file import (
    Setting,
    SettingsFile,
    UnreadableFileError,
    check_again,
    find_config_file,
    pick,
    quotes_taken_off,
    read_settings_file,
)
from tet_extras.status import Status
from tet_extras.symbols import Symbols
from tet_extras.updates import Updates
from tet_extras.workers import BESIDE, Inbox, Workers
from tet_extras.writes import Believed, Write, Writes

if TYPE_CHECKING:  # each costs time and memory, which those who do not need it need not pay
    import httpx

    from tet_extras.proxy.api import BinanceApi
    from tet_extras.report import Report
    from tet_extras.servers import Servers
    from tet_extras.transport import Transport
    from tet_extras.web.showing import Showing

__version__ = "1.0.0"

T = TypeVar("T")
Texts = Mapping[str, str]
Params = Mapping[str, object]

# ------------------------------------------------------------------------------
# Exit codes and logging
# ------------------------------------------------------------------------------


EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


def start_logging(config: Config) -> None:
    """Send the program's events to stderr, or to the log file, in the style asked for.

    Raises ConfigError where LOG_FILE is wrong, TetError where it cannot be opened for now.
    """
    from tet_extras.logs import apply, make_handler

    size, backups = config.log_max_mb, config.log_backups
    try:
        handler = make_handler(config.log_format, config.secrets, config.log_file, size, backups)
    except OSError as error:
        reason = f"LOG_FILE: {config.log_file}: {error.strerror}"
        raise (ConfigError([reason]) if is_path_at_fault(error) else TetError(reason)) from error
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    apply(config.log_level, config.secrets)


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


MOST_CONCURRENT = 100  # of CONCURRENT_REQUESTS
WHOLE, NUMBER, BOOL = click.IntRange, click.FloatRange, click.BOOL
SECONDS_OF_DAY, SECONDS_OF_YEAR = click.IntRange(1, 86_400), click.IntRange(1, 31_536_000)
TEXT, PATH = Parsed("TEXT", "text", str), Parsed("PATH", "a path", file_path)
KEY = Parsed("KEY", "printable characters without spaces", api_key)
URL = Parsed("URL", "an http or https address", addresses.base_url)
STREAM_URL = Parsed("URL", "a ws or wss address", addresses.stream_url)
REDIS = Parsed(
    "ADDRESS", "host:port, a redis://, rediss:// or unix:// URL, or embedded", addresses.redis_addresses
)
REDIS_MODES = click.Choice(("single", "cluster", "sentinel"), case_sensitive=False)
PAIRS = Parsed("PAIRS", "pairs such as BTC/USDT,ETH/USDT", symbol_names)
FRAMES = Parsed("TIMEFRAMES", f"one or several of {' '.join(TIMEFRAMES)}", _timeframes)
MARKET_NAME = click.Choice(tuple(MARKETS), case_sensitive=False)
FORM = click.Choice(tuple(FIELDS), case_sensitive=False)
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
    Option("BINANCE_MARKET", "--market", "spot", MARKET_NAME,
           "spot; usdm or coinm: USD-M or COIN-M futures; us: Binance.US."),
    Option("BINANCE_TESTNET", "--testnet", "false", BOOL, "Use the market's testnet, whose prices are play."),
    Option("BINANCE_DEMO_MODE", "--demo-mode", "false", BOOL,
           "Use the exchange's demo trading; for a simulated exchange on this machine, see --demo."),
    Option("LIVE", "--live", "false", BOOL,
           "Listen to the exchange's streams: closes within a second, proven by REST."),
    Option("BINANCE_STREAM_URL", "--stream-url", None, STREAM_URL,
           "The address of the streams; by default that of the market, with --public that of public data."),
    Option("LIVE_WRITE_SECONDS", None, "5", NUMBER(0, 3600),
           "Seconds between two writes of a forming candle with LIVE; 0 is at every change."),
    Option("PROOF_WEIGHT_SHARE", None, "0.1", NUMBER(0, 0.5),
           "Share of the exchange's limit of weight for proving closes of streams by REST within a minute."),
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
    Option("REDIS_PREFIX", "--redis-prefix", "tet", NAME,
           "What all keys and the channel begin with, so that two markets can share a database."),
    Option("UPDATE_INTERVAL", "--interval", "180", SECONDS_OF_DAY,
           "Seconds between updates; a close of a candle brings one earlier."),
    Option("CONCURRENT_REQUESTS", "--concurrent", "12", WHOLE(1, MOST_CONCURRENT),
           "Updates whose requests are in flight at once, at most."),
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
    Option("FIELDS", "--fields", "ohlcv", FORM,
           "ohlcv, or all: quote volume, number of trades and what takers bought, too."),
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
    Option("BINANCE_PROXY", "--proxy", "false", BOOL,
           "Serve the exchange's own public REST paths at HTTP_ADDR, for bots that are given its address."),
    Option("PROXY_WEIGHT_SHARE", None, "0.5", NUMBER(0, 0.8),
           "Share of the exchange's limit of weight that bots may use together."),
    Option("WATCH_CONFIG", "--watch-config", "false", BOOL,
           "Read the settings again when the config file has changed; SIGHUP does that in any case."),
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
    binance_testnet: bool
    binance_demo_mode: bool
    live: bool
    binance_stream_url: str
    live_write_seconds: float
    proof_weight_share: float
    audit_hours: float
    redis_addr: str
    redis_mode: str
    redis_sentinel_master: str | None
    redis_username: str | None
    redis_password: str | None
    data_dir: str | None
    redis_db: int
    redis_prefix: str
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
    fields: str
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
    binance_proxy: bool
    proxy_weight_share: float
    watch_config: bool
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
        return bool(self.group or self.shard) or self.egress is not None

    @property
    def kept_fields(self) -> Fields:
        """The fields of a candle that are kept."""
        return FIELDS[self.fields]

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
        try:
            from_file, problems, warnings = read_settings_file(config_file, OPTIONS)
        except UnreadableFileError as error:  # what it would have said is not missing
            raise ConfigError([str(error)]) from error
    values: dict[str, Any] = {}
    given: dict[str, Setting] = {}
    for option in OPTIONS:
        setting = pick(option, flags, environment, from_file) or Setting("", "default")
        given[option.name] = setting
        try:
            values[option.name.lower()] = option.parse(setting.text) if setting.text else None
        except ValueError as error:
            problems.append(option.problem(setting.text, setting.origin, error))
    origins = {name: setting.origin for name, setting in given.items()}
    warnings += quotes_taken_off(given)
    known = {name for name, origin in origins.items() if origin != "default"}
    warnings += hints.in_environment(environment, known, public=values.get("public_data") is True)
    if not problems:
        with_host(values)
    problems += _conflicts(values, origins)
    if problems:
        raise ConfigError(problems, warnings)
    config = Config(**values)
    return Resolved(config, origins, (*warnings, *_cautions(config, origins)))


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
                f"BINANCE_BASE_URL ({origins['BINANCE_BASE_URL']}): found {shown_address(base_url)!r}; "
                "allowed: https, since keys would travel in the clear (plain http to this machine only, "
                "or with --public)"
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
    problems += market_conflicts(values, origins)
    timeframes, market = values.get("timeframe") or (), values.get("binance_market") or "spot"
    if MARKETS[market].is_futures and any(t.name == "1s" for t in timeframes):
        problems.append(f"TIMEFRAME ({origins['TIMEFRAME']}): found '1s'; allowed with {market}: from 1m up")
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
    allowed = f"allowed with REDIS_MODE={mode}: host:port, a redis:// or rediss:// URL"
    if mode == "single" and len(nodes) > 1:
        yield f"{found}{len(nodes)} nodes; allowed with REDIS_MODE=single: one; cluster or sentinel?"
    if mode != "single" and urlsplit(nodes[0]).scheme not in ("redis", "rediss"):
        yield f"{found}{shown_address(address)!r}; {allowed}"
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
    if config.redis_addr == EMBEDDED and config.redis_password:
        cautions.append("REDIS_PASSWORD is not used: the embedded server has none, and is on loopback alone")
    if config.binance_proxy and not config.http_addr:
        cautions.append("BINANCE_PROXY does nothing without HTTP_ADDR, where it serves the exchange's paths")
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
    value, option = getattr(config, name.lower()), next(each for each in OPTIONS if each.name == name)
    if value is None:
        return "not set"
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
    return option.shown(str(value))


def differing(config: Config) -> dict[str, object]:
    """The settings that are not their defaults, for the log: numbers as such, all else as it is shown."""
    plain = {option.name: option.parse(option.default) if option.default else None for option in OPTIONS}
    values = vars(config)
    for name in ("BINANCE_STREAM_URL", "BINANCE_BASE_URL"):  # the streams' follows from the other one
        values = values | {name.lower(): None}
        with_host(usual := dict(values))
        plain[name] = usual[name.lower()]
    values = vars(config)
    found = {name: values[name.lower()] for name, default in plain.items() if values[name.lower()] != default}
    is_plain = {name: isinstance(value, bool | int | float) for name, value in found.items()}
    return {name.lower(): found[name] if is_plain[name] else shown(name, config) for name in found}


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
        self._at_seconds = now_seconds
        self._tokens = self.burst

    def set_rate(self, rate: float, now_seconds: float) -> None:
        """Have so many tokens a second from now on; what was reserved stays."""
        self._earn(now_seconds)
        self.rate = rate
        self._tokens = min(self.burst, self._tokens)

    @property
    def burst(self) -> float:
        """How many tokens there may be at once."""
        return max(1.0, self.rate)

    def _earn(self, now_seconds: float) -> None:
        earned = (now_seconds - self._at_seconds) * self.rate
        self._tokens = min(self.burst, self._tokens + max(0.0, earned))
        self._at_seconds = now_seconds

    def reserve(self, now_seconds: float) -> float:
        """Take the next token and return how many seconds from now it may be used."""
        self._earn(now_seconds)
        self._tokens -= 1
        slot_seconds = now_seconds - min(0.0, self._tokens) / self.rate
        if self._tokens < 0 and self.rate * RELEASE_SECONDS >= 2:  # a group of one saves nothing
            slot_seconds = math.ceil(slot_seconds / RELEASE_SECONDS) * RELEASE_SECONDS
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
# The gate that every request passes
# ------------------------------------------------------------------------------

LEASE_POLL_SECONDS = 0.25  # how often a thread looks whether a lease was renewed
PROBE_POLL_SECONDS = 0.1  # how often a thread looks whether another one's probe was served


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
HANGING_SECONDS = 1.0
MAX_REPLY_BYTES = 16 * 1024 * 1024
SCHEDULE_WEIGHT = 5


TRADING_PERMISSIONS = (
    "enableSpotAndMarginTrading enableMargin enableFutures enableVanillaOptions enablePortfolioMarginTrading "
    "enableFixApiTrade enableWithdrawals enableInternalTransfer permitsUniversalTransfer"
).split()
HTTP_HEADERS = {"User-Agent": f"tet-data-service/{__version__}", "Accept": "*/*", "Accept-Encoding": "gzip"}
HTTP_TIMEOUTS = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS, "pool": None}
PASSING_CODES = frozenset({-1000, -1001, -1006, -1007, -1016, -1021})


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        reply = decode_json(body)
    except ValueError as error:
        raise BadReply(f"the reply is not JSON: {error}") from error
    if not isinstance(reply, dict):
        raise BadReply("the reply is not an object")
    return reply


class Found(NamedTuple):
    """The exchange's symbols by `Listing.name`, which are meant, and the hours of the markets they follow."""

    listings: Mapping[str, Listing]
    meant: Expansion
    hours: Mapping[str, Hours]


class Reply(NamedTuple):
    """An HTTP reply, read whole; ``sent`` and ``received`` are monotonic seconds."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent: float
    received: float


class Requests:
    """Sends requests to one market of Binance: through the gate, counted, tried again.

    With ``settles_at_once``, for a run that ends, an odd row is decided on within one call. All methods raise
    TransientError after the last attempt, SymbolError, RefusedError or Stopped.
    Workers share it: the gate and the tallies have locks of their own, `_lock` guards the fields below it,
    and `_parsing` lets one thread parse at a time.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        http: Transport,
        listener: Listener | None = None,
        *,
        attempts: int = ATTEMPTS,
        settles_at_once: bool = False,
    ) -> None:
        self.market = MARKETS[config.binance_market]
        self.gate = RequestGate(clock, config.api_requests_per_sec, self.market.weight_limit)
        self._listener = listener or Listener()
        self.attempts = attempts
        self._settles_at_once = settles_at_once
        self.requests = figures.Tally()  # by HTTP status, or "no answer"
        self.errors = figures.Tally()  # failed attempts, by kind
        self._config = config
        self._clock = clock
        self._http = http
        self._lock = threading.Lock()
        self._firewall_refusals = 0  # 403 in a row, of which those in flight together are one
        self._refused_seconds = 0.0  # monotonic: the last of them
        self._latest_seconds: deque[float] = deque(maxlen=20)  # of requests that were served
        self._odd_rows = OddRows(config.kept_fields)
        self._sent_seconds: dict[int, float] = {}  # by thread, monotonic: when what is in flight was sent
        self._parsing = threading.Lock()  # Python runs no two at once anyway; each holds a page of objects

    @property
    def best_latency_seconds(self) -> float:
        """The quickest of the latest replies: a slow one may have waited for us."""
        with self._lock:
            return min(self._latest_seconds, default=0.0)

    def hanging(self) -> int:
        """How many requests wait for their answer for so long that others are not to wait for them."""
        since = self._clock.monotonic() - HANGING_SECONDS
        return sum(sent < since for sent in tuple(self._sent_seconds.values()))

    def _get(
        self, path: str, params: Params, weight: int, parse: Callable[[Reply], T], signed: bool = False
    ) -> T:
        """Ask, check and parse, up to `attempts` times; a pause in between is waited out at the gate."""
        for attempt in range(1, self.attempts + 1):
            try:
                reply = self._good_reply(path, params, weight, signed)
                with self._parsing:
                    return parse(reply)
            except TransientError as error:
                say(logging.DEBUG, "request failed", path=path, attempt=attempt, reason=str(error))
                self.errors.add(type(error).__name__)
                if attempt == self.attempts:
                    raise
                if not isinstance(error, PauseError):
                    seconds = backoff_seconds(attempt, random.random())
                    if isinstance(error, OddReply):  # off the grid it is left out, however soon it repeats
                        least = APART_SECONDS if self._settles_at_once else seconds
                        seconds = max(seconds, least) if error.takes_time else 0.0
                    self._clock.sleep(seconds)
        raise AssertionError("unreachable")

    def ask(self, path: str, params: Params, weight: int, signed: bool = False) -> Reply:
        """Send one through the gate: any reply. Raises PauseError, TransientError (5xx, too), Stopped."""
        with self.gate.admit(weight):
            url = f"{self._config.binance_base_url}{path}?{urlencode(params)}".rstrip("?")
            reply = self._counted(*self._signed(path, params) if signed else (url, {}))
            if re.fullmatch("[0-9]{1,9}", used := reply.headers.get("x-mbx-used-weight-1m", "")):
                self.gate.learn(int(used), self._clock.at(reply.sent))
            if kind := pause_kind(reply.status, reply.headers, reply.body):
                raise self._paused(reply, kind)
            if reply.status >= 500:
                raise _error_of(reply)  # not served: where it was a probe, the next one goes alone, too
        with self._lock:
            self._firewall_refusals = 0
            if reply.status == 200:
                self._latest_seconds.append(reply.received - reply.sent)
        return reply

    def _good_reply(self, path: str, params: Params, weight: int, signed: bool) -> Reply:
        """Send one request through the gate: a good reply, or the fitting error."""
        reply = self.ask(path, params, weight, signed)
        if reply.status != 200 or read_refusal(reply.body).code is not None:
            raise _error_of(reply)
        return reply

    def _counted(self, url: str, headers: dict[str, str]) -> Reply:
        """Send one request, and count it and how long it took, whatever comes of it."""
        status, began = "no answer", self._clock.monotonic()
        self._sent_seconds[threading.get_ident()] = began
        try:
            reply = self._send(url, headers)
            status = str(reply.status)
            return reply
        finally:
            del self._sent_seconds[threading.get_ident()]
            self.requests.add(status)
            self._listener.requested(self._clock.monotonic() - began)

    def _signed(self, path: str, params: Params) -> tuple[str, dict[str, str]]:
        """The address and headers of a signed request (HMAC-SHA256 over the query, appended last)."""
        config = self._config
        base = account_of(config.binance_market, config.binance_base_url)
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
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise TransientError(self._http.words(error, url)) from error

    def _read(self, response: httpx.Response) -> bytes:
        """The body, bounded in size."""
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_REPLY_BYTES:
                raise BadReply(f"a reply of more than {MAX_REPLY_BYTES >> 20} MB is refused")
        return bytes(body)

    def _paused(self, reply: Reply, kind: int) -> PauseError:
        """Pause the gate as the reply asks, and the error that says so."""
        with self._lock:
            if kind == 403 and reply.sent > self._refused_seconds:
                self._firewall_refusals += 1
                self._refused_seconds = reply.received
            repeat = max(0, self._firewall_refusals - 1)
        now_ms = self._clock.now_ms()
        if self._clock.synced_at is None:  # the local clock may be wrong
            now_ms = http_date_ms(reply.headers.get("date", "")) or now_ms
        seconds = pause_seconds(kind, reply.headers.get("retry-after"), reply.body, now_ms, repeat)
        reason = pause_reason(kind, reply.status, reply.body)
        if self.gate.pause(seconds, reason):
            say(
                logging.WARNING,
                PAUSES[kind].event,
                status=reply.status,
                seconds=round(seconds),
                reason=reason,
            )
            self._listener.paused()
        return PauseError(reason)


class Binance(Requests):
    """Reads one market of Binance. Methods raise what `Requests` does."""

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

    def trading_hours(self) -> Mapping[str, Hours]:
        """Ask when the markets are closed that stocks and metals follow."""
        path = f"{self.market.prefix}/tradingSchedule"
        return self._get(path, {}, SCHEDULE_WEIGHT, lambda reply: parse_schedule(reply.body))

    def klines(
        self,
        pair: Pair,
        timeframe: Timeframe,
        first_ms: int,
        limit: int,
        last_ms: int | None = None,
        nonempty: bool = False,
    ) -> Answer:
        """Ask for candles that open from ``first_ms`` on, up to ``last_ms`` or the forming one.

        With ``nonempty`` there must be one, and an empty reply is a bad one.
        """
        params = {"symbol": pair.symbol, "interval": timeframe.name, "startTime": first_ms, "limit": limit}
        market, wanted_ms = self.market, timeframe.floor(self._clock.now_ms()) if last_ms is None else last_ms
        if market.is_newest_first:
            last_ms = min(wanted_ms, market.page_end_ms(timeframe, first_ms, limit))
        if last_ms is not None:
            params["endTime"] = last_ms
        is_cut = last_ms is not None and last_ms < wanted_ms  # then it goes on behind it, whatever it has
        began, feed = self._clock.monotonic(), f"{pair.name} {timeframe.name}"

        def parse(reply: Reply) -> Answer:
            newest_ms = self._clock.now_ms() + CLOCK_TOLERANCE_MS if last_ms is None else last_ms
            asked = Question(feed, timeframe, first_ms, newest_ms, limit, market.volume_field)
            moment = reply.sent if self._settles_at_once else began
            read = self._odd_rows.read(reply.body, asked, reply.sent, moment)
            if nonempty and not read.rows and not is_cut:
                raise BadReply("the klines reply has no candle where there must be some")
            if is_cut and last_ms is not None:
                read = read._replace(rows=limit, reached_ms=last_ms)
            return Answer(read.candles, self._clock.at(reply.sent), read.rows, read.reached_ms)

        return self._get(f"{market.prefix}/klines", params, market.klines_weight(limit), parse)

    @property
    def can_ask_permissions(self) -> bool:
        """Whether there is an address that says what a key may do; a testnet has none."""
        return bool(account_of(self._config.binance_market, self._config.binance_base_url))

    def key_permissions(self) -> dict[str, Any]:
        """Ask what the API key may do: a signed call, the only one that carries the key."""
        path = "/sapi/v1/account/apiRestrictions"
        return self._get(path, {}, 1, lambda reply: _parse_object(reply.body), signed=True)


def look_up(binance: Binance, config: Config) -> Found:
    """Ask which symbols there are, which of them are meant, and when those trade that have sessions.

    Raises what `Binance` does, but where the sessions alone are not sent: then they count as always open.
    """
    listings = binance.exchange_info().listings
    volumes = binance.day_volumes() if any(name.startswith("@") for name in config.symbols) else {}
    meant = expand_symbols(config.symbols, listings, volumes, config.max_symbols)
    hours: Mapping[str, Hours] = {}
    named = (listings.get(name.replace("/", "")) for name in meant.names)
    if any(each and each.is_tradifi for each in named):
        try:
            hours = binance.trading_hours()
        except ExchangeError as error:
            say(logging.WARNING, "trading sessions unknown, taken for always open", reason=str(error))
    return Found(listings, meant, hours)


def _error_of(reply: Reply) -> ExchangeError:
    """The error that a reply other than 200 stands for (codes: Binance's error documentation)."""
    code, message = read_refusal(reply.body)
    text = f"HTTP {reply.status}" + ("" if code is None else f", code {code}: {message}")
    if code == -1121:
        return SymbolError("unknown to Binance")
    if 300 <= reply.status < 400:
        return RefusedError(f"a redirect is not followed ({text}); is BINANCE_BASE_URL right?")
    if reply.status >= 500 or reply.status < 300 or code in PASSING_CODES or reply.status == 408:
        return TransientError(f"Binance answers {text}")
    hint = "" if type(code) is int else "; is BINANCE_BASE_URL right?"
    return RefusedError(f"Binance refuses: {text}{hint}")


def connect_http(config: Config) -> Transport:
    """The connections to Binance: kept alive, at most one per thread that asks, TLS verified, no redirects.

    Raises ConfigError when what the environment says of certificates or proxies cannot be used.
    """
    from tet_extras.transport import Transport, stream_proxy

    base_url = config.binance_base_url
    # Plain http is for this machine alone when there are keys: no proxy may come in between.
    local = urlsplit(base_url).scheme == "http" and addresses.is_private(base_url)
    try:
        if config.live:
            stream_proxy(config.binance_stream_url)  # so that a bad one is reported before anything starts
        return Transport(base_url, MOST_CONCURRENT + BESIDE, no_proxy=local)
    except Refusal as error:
        raise ConfigError([str(error)]) from error
    except OSError as error:
        problem = f"SSL_CERT_FILE or SSL_CERT_DIR (environment): cannot be used: {error}"
        raise ConfigError([problem]) from error


# ------------------------------------------------------------------------------
# Redis (edge)
# ------------------------------------------------------------------------------

STORE_SECONDS = 5.0
MAX_STORE_BACKOFF_SECONDS = 30.0
#: The same where another server takes the place of one that fails, or another member, within seconds.
MAX_FAILOVER_BACKOFF_SECONDS = 4.0


UPLOAD_MS = 30 * SECOND_MS  # an upload that was not renamed is gone after so long

#: How many bytes from the end of a stored value hold its fields and its newest candle, and then some.
TAIL_BYTES = 1200


def _unless_error(answers: list[Any]) -> list[Any]:
    """The answers of a pipeline; the first error among them is raised, without the command in its text."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def claimed(config: Config) -> tuple[Mapping[str, object], Mapping[str, object]]:
    """What this service's values are made of, and who writes them."""
    shares = f"GROUP {config.group}" if config.group else ""
    if config.shard:
        shares = f"SHARD of {config.shard[1]}"
    timeframes = [timeframe.name for timeframe in config.timeframe]
    made_of = (config.binance_market, config.binance_base_url, config.data_days)
    return (
        values_of(*made_of, config.closed_only, config.fields),
        writer_of(shares, timeframes, config.symbols),
    )


def _objects(texts: Iterable[tuple[str, object]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and the JSON objects of those whose text is one."""
    for name, text in texts:
        with suppress(BadReply):
            yield name, _parse_object(text if isinstance(text, bytes) else b"")


class RedisCalls:
    """Asks Redis: what fails is a StoreError, and a server that is away is not asked for a while.

    All that is written goes through scripts. All methods raise StoreError. Any thread may use it.
    """

    def __init__(self, config: Config, clock: Clock, servers: Servers) -> None:
        self._config = config
        self._clock = clock
        self._servers = servers
        alone = config.redis_mode == "single" and not config.takes_part
        self.outages = Outages(clock, MAX_STORE_BACKOFF_SECONDS if alone else MAX_FAILOVER_BACKOFF_SECONDS)
        self.keys = Keys(config.redis_prefix)
        self._writes = Writes(self.keys, config, in_cluster=config.redis_mode == "cluster")
        self._pause_key = pause_key(budget_of(config.binance_market, config.binance_base_url), config.egress)
        in_url = urlsplit(addresses.redis_nodes(config.redis_addr)[0]).username  # a sentinel's is another one
        self._user = (config.redis_mode != "sentinel" and in_url) or config.redis_username
        self.notices = Notices()
        self.pipeline = Pipeline(self, self._writes, self._answering, servers.node_of)
        ask = partial(self._ask, CLAIM_SCRIPT, [self.keys.claim])
        self.claim = Claim(ask, clock, self.notices, *claimed(config))
        self._uploads = count()

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
            raise self.refused(error, key) from error
        if self.outages and self.outages.over(node, self._servers.nodes()):
            say(logging.INFO, "redis reachable again")

    def refused(self, error: Exception, key: str) -> StoreError:
        """What an error of redis-py's means."""
        return as_store_error(error, self._user, self.keys, key)

    def _unreachable(self, node: str, error: Exception) -> StoreError:
        """Note that no connection could be had; a wrong password is none either, and is reported as such."""
        import redis

        error = error.__cause__ if isinstance(error.__cause__, redis.AuthenticationError) else error
        refused = isinstance(error, redis.AuthenticationError)
        where = node or shown_address(self._config.redis_addr)
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

    @property
    def believed(self) -> Believed:
        """Up to when times are believed."""
        return Believed.at(self._clock.now_ms())

    def prepare(self) -> None:
        """See whether Redis answers, lets us in, and runs the scripts by which all is written."""
        with self._answering() as servers:
            servers.ping()
            for script in (WRITE_SCRIPT, PATCH_SCRIPT, STAMP_SCRIPT, CLAIM_SCRIPT):
                servers.load(script)

    def run(self, write: Write) -> list[str]:
        """Run a script by which something is written: the words of its answer.

        An announcement that was refused is said once; what is written is written. Raises TakenError, too,
        and ClaimedError.
        """
        self.claim.check()
        return self.understood(self._ask(write.script, write.keys, *write.arguments, upload=write.upload))

    def understood(self, words: list[str]) -> list[str]:
        """The words of an answer to a write."""
        answer, *details = words
        if answer == "taken":
            raise TakenError(*details)
        if answer == "lost":
            raise StoreError("Redis has dropped a value before it was in place: does it evict? (maxmemory)")
        if answer in ("created", "written") and details:
            reason = rights_of(details[0], self._user, self.keys)
            self.notices.note("announcements", f"updates are written, but not announced: {reason}")
        return words

    def _ask(
        self, script: str, keys: Sequence[str], *arguments: bytes | str | int, upload: object = None
    ) -> list[str]:
        """Run a script on one server: the words of its answer.

        A value to ``upload`` goes there first, in the same round trip, under a key that is the script's last.
        """
        import redis

        commands: list[Sequence[Any]] = []
        if upload is not None:
            name = (
                f"{self.claim.id}-{next(self._uploads)}"  # nobody else's, whoever writes that key meanwhile
            )
            keys = [*keys, self.keys.upload(keys[0], name)]
            commands.append(("SET", keys[-1], upload, "PX", UPLOAD_MS))
        commands.append(("EVALSHA", sha_of(script), len(keys), *keys, *arguments))
        with self._answering(keys[0]) as servers:
            try:
                answers = _unless_error(servers.together(commands))[-1]
            except redis.exceptions.NoScriptError:  # the server was restarted, or was a replica before
                servers.load(script, keys[0])
                answers = _unless_error(servers.together(commands))[-1]
            except redis.ResponseError:
                with suppress(redis.RedisError):  # full: what was uploaded takes the room of all else
                    servers.together([("DEL", keys[-1])] if upload is not None else [])
                raise
        return [part.decode() for part in answers]


class Store(RedisCalls):
    """Keeps values in Redis: candles, the status, the pause, what members say. See `RedisCalls`."""

    def renew_member(self, member: str, entry: Mapping[str, object], expiry_ms: int) -> tuple[bool, Texts]:
        """Say that a member is there. Returns whether its key was gone, and the entries of all by id."""
        keys = [self.keys.members, f"{self.keys.members}:{member}"]
        answer, *found = self._ask(MEMBER_SCRIPT, keys, member, json.dumps(entry), expiry_ms)
        return answer == "joined", dict(zip(found[::2], found[1::2], strict=True))

    def save_selection(self, selection: Selection, expiry_seconds: float) -> None:
        """Keep what members have under its digest, for the others to read; alike ones share it."""
        self._write_plain(self.keys.selection(selection.digest), selection.text(), expiry_seconds)

    def load_selection(self, digest: str) -> Selection | None:
        """What a member has, by its digest; None where that is not there."""
        return parse_selection(self.load(self.keys.selection(digest))[0] or b"")

    def _write_plain(self, key: str, text: str, expiry_seconds: float) -> str:
        """Write a text with an expiry."""
        expiry_ms = max(1, round(expiry_seconds * SECOND_MS))
        return self.run(Write(WRITE_SCRIPT, [key], [*[""] * 6, expiry_ms], text.encode()))[0]

    def save(self, pair: Pair, image: Image, news: Announcement, unsound: bytes = b"") -> list[str]:
        """Write a pair's value whole, and its timestamp, and announce it: one round trip, in a cluster two.

        ``unsound`` is the end of a value that may be written over though it is newer. Returns "created" or
        "written". Else nothing is written: "newer" where Redis has newer candles, or the same of a later
        update; "ahead" and its last_update, where older ones have a later one.
        """
        answer = self.run(self._writes.whole(pair, image, news, unsound, self.believed))
        return self._stamped(pair, image, news, answer)

    def patch(self, pair: Pair, patch: Patch, news: Announcement) -> list[str]:
        """Write what changed of a pair's value, as `save` does.

        Returns "written"; where Redis has not what the patch is for "whole", or "gone" where it has nothing.
        """
        return self._stamped(pair, patch.image, news, self.run(self._writes.patch(pair, patch, news)))

    def _stamped(self, pair: Pair, image: Image, news: Announcement, answer: list[str]) -> list[str]:
        """The answer, once the timestamp is written, which in a cluster is on another node."""
        if self._writes.in_cluster and answer[0] in ("created", "written"):
            self.run(self._writes.stamp(pair, image, news, self.believed))
        return answer

    def save_status(self, status: Mapping[str, object], member: str = "") -> bool:
        """Write the status, or a member's own. Returns whether there was one: else Redis may be emptied."""
        key = self.keys.member_status(member) if member else self.keys.status
        text = json.dumps(status, separators=(",", ":"))
        return self._write_plain(key, text, self._config.status_ttl) == "written"

    def load_member_statuses(self, members: Collection[str]) -> dict[str, dict[str, Any]]:
        """What members have written of themselves, of those that have; in one round trip."""
        commands = [("GET", self.keys.member_status(member)) for member in members]
        with self._answering() as servers:
            texts = servers.together(commands) if commands else []
        return dict(_objects(zip(members, texts, strict=True)))

    def load_status(self) -> tuple[dict[str, Any], float] | None:
        """The status, and how many seconds ago it was written; None when there is none.

        Its age follows from its expiry, so that nobody's clock matters.
        """
        text, left_ms = self.load(self.keys.status)
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
        """Each value's end, `TAIL_BYTES`, empty where there is none, and timestamp.

        Blanks are not counted: there is one where there are many.
        """
        commands: list[Sequence[Any]] = []
        script = sha_of(LOOK_SCRIPT)
        for pair, timeframe in feeds:
            commands.append(("EVALSHA", script, 1, self.keys.kline(timeframe, pair), TAIL_BYTES))
            commands.append(("GET", self.keys.timestamp(timeframe, pair)))
        with self._answering() as servers:
            servers.load(LOOK_SCRIPT)
            found = servers.together(commands)
        return list(zip(found[::2], found[1::2], strict=True))

    def info(self, key: str) -> Mapping[str, Any]:
        """What the server says of itself, in a cluster the one that has the key."""
        with self._answering(key) as servers:
            return servers.info(key)

    def try_write(self) -> None:
        """See whether Redis takes writes, with a key that is gone a second later."""
        self._write_plain(self.keys.health, "written by a health check", 1.0)

    def save_pause(self, until_ms: int, seconds: float, reason: str) -> None:
        """Keep a pause for as long as it lasts, so that a restart honours it."""
        base_url = shown_address(self._config.binance_base_url)
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
        if pause.get("base_url") != shown_address(self._config.binance_base_url) or left_ms <= 0:
            return None
        return left_ms / SECOND_MS, str(pause.get("reason", ""))[:200]

    def close(self) -> None:
        """Close all connections."""
        self._servers.close()


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


@dataclass(frozen=True)
class Fetcher:
    """Fetches the candles of a feed: its pages, its gaps. It reads the feed, and changes nothing.

    Any thread may use it.
    """

    config: Config
    clock: Clock
    binance: Binance

    @property
    def page_rows(self) -> int:
        """The most candles that one request asks for."""
        return self.binance.market.page_rows

    def page_end_ms(self, timeframe: Timeframe, first_ms: int) -> int:
        """The open time up to which one request may ask."""
        return self.binance.market.page_end_ms(timeframe, first_ms, self.page_rows)

    def pages(self, feed: Feed, held: Series | None, confirmed: bool, proven_ms: int = 0) -> Iterator[Page]:
        """Fetch what is new since ``held``, page by page, oldest first; the last page is up to date.

        What closed since ``proven_ms`` is fetched again, to prove what was streamed; 0 is nothing.
        Where the exchange contradicts what was not ``confirmed`` before, all is fetched from the window's
        start. What is missing while its market is closed is no gap. Raises what `Binance.klines` does.
        """
        timeframe, keep, exhausted_ms = feed.timeframe, feed.wanted, feed.exhausted_ms
        start_ms = self.clock.now_ms()
        series = held or Series(timeframe)
        if series and series.opens[-1] < timeframe.shift(timeframe.floor(start_ms), -keep):
            series = Series(timeframe)  # absent for longer than the window
        refetch = self.config.incremental_candles if confirmed else max(2, self.config.incremental_candles)
        if proven_ms:
            unproven = timeframe.count(timeframe.floor(proven_ms), timeframe.floor(start_ms)) + 1
            refetch = max(refetch, min(unproven, self.page_rows // 2))
        first_ms = first_open_to_ask(series, keep, refetch, start_ms)
        answer, now_open_ms, full = self._next_page(feed, first_ms, nonempty=True)
        if not confirmed and corrections(series, answer):
            say(logging.WARNING, "stored candles are of another market, backfilling", feed=feed.name)
            series = Series(timeframe)
            first_ms = first_open_to_ask(series, keep, 0, start_ms)
            answer, now_open_ms, full = self._next_page(feed, first_ms, nonempty=True)
        while True:
            candles = self._with_gaps_filled(feed, series, answer.candles, first_ms)
            series = absorb(series, candles, answer.asked_ms, keep)
            if answer.reached_ms >= first_ms:
                first_ms = timeframe.close_of(answer.reached_ms)
            up_to_date = first_ms > now_open_ms
            if not up_to_date and not full:
                # Only the forming candle may be missing without a question: the exchange lags behind a
                # close. What else is missing at the end is asked for once more, and noted.
                up_to_date = first_ms in (exhausted_ms, now_open_ms)
                exhausted_ms = first_ms
            if up_to_date and not series:
                raise BadReply("the exchange has no candle on the grid")
            yield Page(Answer(candles, answer.asked_ms), series, exhausted_ms, up_to_date)
            if up_to_date:
                return
            answer, now_open_ms, full = self._next_page(feed, first_ms)

    def _next_page(self, feed: Feed, first_ms: int, nonempty: bool = False) -> tuple[Answer, int, bool]:
        """Ask for the next page. Returns also the open time of the present, and whether the page is full.

        The first page must have a candle: one that was there before, or those at the window's start.
        """
        timeframe, now_open_ms = feed.timeframe, feed.timeframe.floor(self.clock.now_ms())
        rows = max(1, timeframe.count(first_ms, now_open_ms) + 1)  # one more: a candle may close
        limit = min(self.page_rows, rows)
        answer = self.binance.klines(feed.pair, timeframe, first_ms, limit, nonempty=nonempty)
        return answer, now_open_ms, answer.rows >= limit and answer.reached_ms >= first_ms

    def window(self, feed: Feed, first_ms: int, last_ms: int) -> Iterator[tuple[int, Answer]]:
        """Fetch closed candles from one open time to another, by pages: where each begins, and the answer.

        What ended less than `MAX_LAG_MS` before it was asked for may be unfinished in it.
        """
        timeframe = feed.timeframe
        while first_ms <= last_ms:
            end_ms = min(last_ms, self.page_end_ms(timeframe, first_ms))
            rows = timeframe.count(first_ms, end_ms)
            answer = self.binance.klines(feed.pair, timeframe, first_ms, rows, end_ms)
            yield first_ms, answer
            first_ms = timeframe.close_of(end_ms)

    def _with_gaps_filled(self, feed: Feed, series: Series, candles: Candles, first_ms: int) -> Candles:
        """Ask once more for candles that a reply leaves out; what stays out is the exchange's own gap."""
        timeframe, found = feed.timeframe, dict(candles)
        missing = [
            open_ms
            for open_ms in missing_opens(series, candles, first_ms)
            if not feed.hours.are_closed(open_ms, timeframe.close_of(open_ms))
        ]
        if not missing:
            return candles
        while missing:
            limit = min(self.page_rows, timeframe.count(missing[0], missing[-1]))
            answer = self.binance.klines(feed.pair, timeframe, missing[0], limit, missing[-1])
            found = answer.candles | found  # another server may lag behind the first one
            reached_ms = max(answer.reached_ms, missing[0]) if answer.rows >= limit else missing[-1]
            missing = [open_ms for open_ms in missing if open_ms > reached_ms]
        return dict(sorted(found.items()))


# ------------------------------------------------------------------------------
# The writer: from a series to Redis
# ------------------------------------------------------------------------------

FLUSH_AGAIN_SECONDS = 10.0
FLUSH_SECONDS = 1.0  # then the next look goes on: a member's key is to be renewed in between
PUT_TRIES = 5  # until a write suits what others write meanwhile


def memory_needed(config: Config) -> int:
    """About how many bytes Redis needs for the values of all configured pairs."""
    return needed_bytes(figures.estimate(config.most_symbols, config).stored_bytes)


def read_back(config: Config, clock: Clock, feed: Feed, value: bytes, any_prices: bool = False) -> Image:
    """What a value of Redis holds, if it is sound and of this configuration. Raises StoredValueError."""
    newest_ms = clock.now_ms() + CLOCK_TOLERANCE_MS
    image = read_stored_value(value, feed.timeframe, feed.wanted, newest_ms, any_prices, config.kept_fields)
    if config.closed_only and not image.series.newest_is_closed:
        raise StoredValueError("written without CLOSED_ONLY: one closed candle short of the window")
    return image


def fresh_mark() -> bytes:
    """A mark that no other value has."""
    return mark_of(secrets.randbits(MARK_BITS))


def has_expired(config: Config, clock: Clock, feed: Feed) -> bool:
    """Whether Redis may have dropped what was written last since its time was over."""
    return clock.now_ms() - feed.updated_ms > config.kline_ttl * 0.9 * SECOND_MS


@dataclass(eq=False)
class Writer:
    """Which candles go to Redis, and when: what is new, what is buffered, what Redis has lost.

    Nothing is written under a key of another program, nor over a newer value: Redis sees to that. Any thread
    may write a feed, which is `Feed.writing` meanwhile; all else is done by the one worker that tells Redis.
    A field that others change, too, is set in one step.
    """

    config: Config
    clock: Clock
    store: Store
    listener: Listener

    def __post_init__(self) -> None:
        self._flush_at_seconds = 0.0  # monotonic
        self.evicting = False
        self._drafts = Drafts(self.config, fresh_mark)
        self._read_back = partial(read_back, self.config, self.clock)
        self._has_expired = partial(has_expired, self.config, self.clock)
        needed = partial(memory_needed, self.config)
        self.losses = Losses(self.store.info, self.clock, self.store.notices, needed)

    def restore(self, feed: Feed, any_prices: bool = False) -> None:
        """Read back what Redis holds, if it is sound and of this configuration. Raises StoreError."""
        value = self._load(feed)
        try:
            feed.restored(None if value is None else self._read_back(feed, value, any_prices))
        except StoredValueError as error:
            say(logging.WARNING, "stored value not usable, backfilling", feed=feed.name, reason=str(error))
            feed.restored(None)

    def restore_all(self, feeds: Collection[Feed]) -> None:
        """Read back what Redis holds, as far as it answers: the cycle tries again. Raises Stopped."""
        started = self.clock.monotonic()
        for feed in feeds:
            self.clock.check()
            try:
                self.restore(feed)
            except StoreError as error:
                feed.tried(error, 0)  # logged by the cycle
        restored = sum(1 for feed in feeds if feed.series)
        facts = {"restored": restored, "to_backfill": len(feeds) - restored}
        say(logging.INFO, "restored from redis", **facts, seconds=round(self.clock.monotonic() - started, 2))

    def _load(self, feed: Feed) -> bytes | None:
        return self.store.load(self.store.keys.kline(feed.timeframe, feed.pair))[0]

    def write(self, feed: Feed) -> bool:
        """Write a feed's candles and announce them. Returns whether Redis has them, or newer ones, now.

        Not so while there is none to store, and where the exchange has to decide between these and what
        somebody else has written. Raises StoreError; the feed is buffered then.
        """
        with feed.writing:
            if not (draft := self._drafts.of(feed, self.clock.now_ms())):
                feed.has_nothing_to_write()
                return False
            try:
                image = self._put(draft)
                if image is None:  # another instance was faster: go on from what it wrote
                    say(logging.INFO, "redis has a newer value, restoring it", feed=feed.name)
                    self.restore(feed)
                    return feed.series is not None
            except StoreError as error:
                self._not_written(feed, error)
                raise
            except StoredValueError as error:
                say(
                    logging.WARNING, "redis has other candles, backfilling", feed=feed.name, reason=f"{error}"
                )
                feed.disputed()
                return False
            self._written(draft, image)
            return True

    def route(self, feed: Feed) -> str:
        """What names the servers that a feed's keys are on: who shares it may be written at once."""
        return self.store.pipeline.route(feed.pair, feed.timeframe)

    def write_all(self, feeds: Sequence[Feed]) -> None:
        """Write feeds of one route, patches in one round trip; what fails is its feed's error."""
        with ExitStack() as held:
            free = [feed for feed in feeds if feed.writing.acquire(blocking=False)]
            _ = [held.callback(feed.writing.release) for feed in free]
            others = [feed for feed in feeds if feed not in free] + self._patch_all(free)
        for feed in others:
            try:
                self.write(feed)
                feed.flushed()
            except StoreError as error:
                feed.tried(error, feed.tried_ms)

    def _patch_all(self, feeds: Sequence[Feed]) -> list[Feed]:
        """Write those that are known in Redis as patches; returns what is left to be written."""
        now_ms = self.clock.now_ms()
        drafts = [draft for feed in feeds if (draft := self._drafts.of(feed, now_ms))]
        made = [(draft, draft.old and self._drafts.patch(draft, draft.old)) for draft in drafts]
        patches = [(draft, patch) for draft, patch in made if patch]
        answers = self.store.pipeline.patch([(draft.feed.pair, *made) for draft, made in patches])
        done = set()
        for (draft, (patch, _)), answer in zip(patches, answers, strict=True):
            if isinstance(answer, StoreError):
                self._not_written(draft.feed, answer)
                draft.feed.tried(answer, draft.feed.tried_ms)
            elif answer[0] == "written":
                self._written(draft, patch.image)
                draft.feed.flushed()
            else:
                continue
            done.add(draft.feed)
        return [feed for feed in feeds if feed not in done]

    def _not_written(self, feed: Feed, error: StoreError) -> None:
        feed.not_written()
        if isinstance(error, FullError):
            self.losses.full(feed.name)

    def _written(self, draft: Draft, image: Image) -> None:
        """Redis has it."""
        feed, known_end_ms, end_ms = draft.feed, draft.known_end_ms, image.series.closed_end_ms
        feed.written(image, draft.fetched_ms)
        self.losses.written(feed.name)
        self.listener.written()
        if known_end_ms and end_ms == feed.timeframe.close_of(known_end_ms):
            self.listener.closed((self.clock.now_ms() - end_ms) / SECOND_MS, draft.by_stream)
        if self.evicting:
            feed.evicted()

    def _put(self, draft: Draft) -> Image | None:
        """Write what changed, or the value whole; returns what Redis has then, None if that is newer.

        Raises StoredValueError where somebody else has written other closed candles.
        """
        feed, old, good_ms, unsound = draft.feed, draft.old, draft.good_ms, b""
        for _ in range(PUT_TRIES):
            if old and (made := self._drafts.patch(draft, old)):
                image, (answer, *dated) = made[0].image, self.store.patch(feed.pair, *made)
            else:
                if not old and not self.losses.may_rewrite(feed.name):
                    raise StoreError(self.losses.evicting)
                image = self._drafts.image(draft, good_ms)
                news = announce(feed.pair, image, None, draft.known_end_ms)
                answer, *dated = self.store.save(feed.pair, image, news, unsound)
            if old and answer in ("created", "gone") and not self._has_expired(feed):
                self.losses.note(self.store.keys.kline(feed.timeframe, feed.pair))
            if answer in ("created", "written"):
                return image
            if answer == "ahead":  # readers have seen that time, if with older candles
                good_ms = parse_iso_time(dated[0])
                continue
            old = None
            if answer == "gone":
                continue
            read, found = (
                partial(self._read_back, feed, any_prices=True),
                self._load(feed) or b"",
            )
            theirs = compared(image, found, read, self.clock.now_ms())
            if theirs.is_newer or (answer == "newer" and (not theirs.unsound or feed.lagging)):
                return None
            unsound = theirs.unsound if answer == "newer" else b""
        return None

    def flush(self, feeds: Iterable[Feed]) -> int:
        """Write what is buffered, without waiting for the next cycle; returns how much. Raises Stopped."""
        buffered = [feed for feed in feeds if feed.buffered]
        if not buffered or self.store.retry_seconds or self.clock.monotonic() < self._flush_at_seconds:
            return 0
        began = self.clock.monotonic()
        self._flush_at_seconds = began + FLUSH_AGAIN_SECONDS
        flushed = 0
        for tried, feed in enumerate(buffered):
            self.clock.check()
            if self.clock.monotonic() > began + FLUSH_SECONDS:
                self._flush_at_seconds = 0.0  # there is more to be written
                buffered = buffered[:tried]
                break
            try:
                flushed += self.write(feed)
                feed.flushed()
            except StoreError as error:
                say(logging.DEBUG, "deferred, will retry", what=feed.name, reason=str(error))
                if isinstance(error, FullError):
                    break  # each try sends a value whole
        if flushed:
            say(logging.INFO, "buffered updates flushed", flushed=flushed)
        if flushed == len(buffered):
            self._flush_at_seconds = 0.0
        return flushed

    def limit_memory(self, feeds: Iterable[Feed]) -> None:
        """Above the memory limit, hold candles only while they are worked on: Redis has them."""
        used_mb = figures.resident_mb()
        if self.evicting or used_mb is None or used_mb <= self.config.memory_limit_mb:
            return
        self.evicting = True
        event = "above MEMORY_LIMIT_MB: evicting candles after each update, reloading them from Redis"
        say(logging.WARNING, event, memory_mb=round(used_mb), limit_mb=self.config.memory_limit_mb)
        for feed in feeds:
            feed.evicted()


# ------------------------------------------------------------------------------
# The service: joins the edges and the heart
#
# How its threads work together, and the life of a candle: docs/design.md.
# ------------------------------------------------------------------------------


def _may_draw(config: Config) -> bool:
    """Whether a progress bar would not stand among lines of the log."""
    return not config.log_file and config.log_format == "text" and config.log_level != "debug"


@dataclass(eq=False)
class Service:
    """Keeps the candles of all configured pairs fresh, until it is stopped, or once; see `assemble`."""

    config: Config
    clock: Clock
    listeners: Listeners
    inbox: Inbox
    binance: Binance
    store: Store
    watchlist: Watchlist
    members: Membership
    interval: Interval
    counts: Counts
    progress: Progress
    fetcher: Fetcher
    writer: Writer
    bulletin: Bulletin
    live: Live
    audit: Audit
    updates: Updates
    status: Status
    once: bool
    reload: Reload | None  # who reads the settings again

    def __post_init__(self) -> None:
        ask = partial(look_up, self.binance, self.config)
        self.symbols = Symbols(self.config, self.clock, self.watchlist, ask)
        self._sync_again_seconds = 0.0  # monotonic
        self.workers = Workers(MOST_CONCURRENT, self.clock, self.inbox, self.live.take, self.tick)

    def run(self, on_filled: Callable[[], None] = lambda: None) -> int:
        """Do the work; returns the exit code. A stop asked for is a good end, but not of ``once``."""
        try:
            process.notify_systemd("READY=1")
            self.start()
            self.cycle(first=True)
            if self.once:
                self.catch_up()
            self.workers.do(self.write_status)
            on_filled()
            while not self.once:
                self.idle()
                self.cycle()
            return EXIT_OK if self.status.report_once() else EXIT_FAILED
        except Stopped:
            return EXIT_FAILED if self.once else EXIT_OK
        finally:
            self.finish()

    # Start

    def start(self) -> None:
        """See that Redis and Binance answer, and find out what there is to do."""
        self._until_it_works("redis", self.store.prepare)
        config, address = self.config, shown_address(self.config.redis_addr)
        say(logging.INFO, "connected to redis", address=address, db=config.redis_db)
        self._until_it_works("redis", self.store.claim.take)
        self._until_it_works("redis", self.bulletin.restore_pause)
        self._until_it_works("redis", self.members.join)
        self._until_it_works("binance", lambda: self.progress.clock_synced(self.binance.sync_clock()))
        url = shown_address(config.binance_base_url)
        say(
            logging.INFO,
            "connected to binance",
            url=url,
            clock_offset_ms=round(self.progress.clock_offset_ms),
        )
        self._until_it_works("binance", lambda: self.symbols.take(self.symbols.look_up()))
        if config.live and not self.once:
            self.live.start(self.watchlist)
        self.workers.do(partial(log_api_key, config, self.binance))
        self.workers.do(partial(self.writer.restore_all, list(self.watchlist)))
        pairs = len({feed.pair for feed in self.watchlist})
        say(logging.INFO, "estimate", **figures.estimate(pairs, config).facts())

    def _until_it_works(self, dependency: str, act: Callable[[], None]) -> None:
        """Do what needs Redis or Binance, again and again until it works; once only with ``once``."""
        delay = 1.0
        while True:
            try:
                self.workers.do(act)
            except (ExchangeError, StoreError) as error:
                if self.once or isinstance(error, ClaimedError):
                    raise
                say(logging.WARNING, f"waiting for {dependency}", retry_seconds=delay, reason=str(error))
                self.progress.waiting_for = f"{dependency}: {error}"
                retry_seconds = self.store.retry_seconds if isinstance(error, StoreError) else 0.0
                self.workers.wait(max(delay, retry_seconds))
            else:
                self.progress.waiting_for = ""
                return
            delay = min(MAX_STORE_BACKOFF_SECONDS, delay * 2)

    # Cycles

    def cycle(self, first: bool = False) -> None:
        """Update what is due, the stalest first, until all that is due at the beginning is done.

        What becomes due meanwhile is updated, too. So a cycle goes from the first that is due to none, or,
        where something always is, until everybody has had a turn.
        """
        started, requests_before = self.clock.monotonic(), self.binance.requests.total()
        self.progress.state = "running"
        self.updates.ask()
        left, done = set(self.updates.asked), dict[Feed, Asked]()
        regular = failed = 0
        with process.progress_bar(len(left) if first and _may_draw(self.config) else 0, "Backfill") as step:
            while left:
                self._look_around()
                self.workers.engage(
                    self.updates.work, self.updates.update, engaged(self.config, self.binance)
                )
                self.workers.wait(self.updates.wait_seconds(), self.workers.are_idle)
                done |= (settled := self.updates.settle())
                step(len(left & settled.keys()))
                left -= settled.keys()
                for feed, asked in settled.items():
                    regular += asked.is_regular
                    failed += asked.is_regular and feed.error is not None
                self.updates.ask()
                self.updates.prove()
        self.watchlist.drop_unknown()
        if regular:
            self.interval.cycle_ended(failed / regular)
            self.listeners.cycle_ended(regular, failed, self.clock.monotonic() - started)
        requests = self.binance.requests.total() - requests_before
        self.status.report(done, regular, requests, planned=not self.once)
        if regular:
            self.writer.limit_memory(self.watchlist)
            self.bulletin.hurry()
            self.workers.begin("redis", self.write_status, lambda nothing: None)

    def catch_up(self) -> None:
        """Ask again, as often as planned, for candles that are lagging."""
        while any(feed.freshness.is_early for feed in self.watchlist):
            self.idle()
            self.cycle()

    # Between cycles

    def idle(self) -> None:
        """Wait until something is due, and compare windows with the exchange meanwhile."""
        self._look_around()
        while not self.updates.asked and self.updates.due_in_seconds():
            feeds = list(self.watchlist)
            if not self.workers.is_out("audit") and self.audit.is_due(feeds, self.watchlist.due_ms()):
                self.workers.begin("audit", partial(self.audit.step, feeds), lambda nothing: None)
            self.workers.wait(self.updates.wait_seconds())
            self._look_around()
            self.updates.prove()

    def _look_around(self) -> None:
        """Ask for the time and for the symbols when it is their time: beside the updates."""
        if self.clock.is_doubtful() and self.clock.monotonic() >= self._sync_again_seconds:
            self._sync_again_seconds = self.clock.monotonic() + 60
            self.workers.begin("clock", self.binance.sync_clock, self.progress.clock_synced)
        if not self.workers.is_out("symbols") and self.symbols.are_due():
            self.workers.begin("symbols", self.symbols.look_up, self.symbols.take)

    def tick(self) -> None:
        """What cannot wait for a cycle's end: a stop, the heartbeat, streams, what Redis is to have."""
        self.clock.check()
        process.notify_systemd("WATCHDOG=1")
        self.progress.heartbeat_seconds = self.clock.monotonic()
        read_settings_again(self)
        self.live.tick(self.watchlist)
        self.workers.begin("redis", self.tell_redis, lambda nothing: None)

    def tell_redis(self) -> None:
        """Renew what is to be renewed there, write the status when it is time, and flush what is buffered.

        A worker does it, one at a time: Redis may take its time, for which the main thread never waits.
        """
        self.members.renew()
        self.store.claim.renew()
        if self.bulletin.is_due():
            self.write_status()
        self.bulletin.flush()
        if self.writer.flush(self.watchlist):
            self.bulletin.hurry()
        self.clock.check()  # `finish` writes the last one
        if self.bulletin.is_due():  # it has changed
            self.write_status()

    def write_status(self) -> None:
        """Write the status now."""
        self.bulletin.write_status(self.status.snapshot, self.watchlist)

    def finish(self) -> None:
        """Let what is in flight end, within bounds, and write the last status."""
        process.notify_systemd("STOPPING=1")
        self.clock.stop()
        self.live.stop()
        self.workers.stop()
        self.members.leave()
        self.progress.state = "finished" if self.once and self.counts.cycles else "stopped"
        self.write_status()
        self.store.claim.leave()
        self.store.close()
        say(logging.INFO, "stopped")


def engaged(config: Config, binance: Binance) -> int:
    """How many workers: no more than keep the exchange busy at our rate, beside those whose request hangs."""
    most = min(config.concurrent_requests, config.batch_size)
    needed = workers_needed(binance.gate.rate, binance.best_latency_seconds, most)
    return min(most, needed + binance.hanging())


def read_settings_again(service: Service) -> None:
    """Go by the settings as they are now, if that was asked for."""
    changed = service.reload.look(service.config, service.store.notices) if service.reload else None
    if changed is not None:
        apply_settings(service, changed)
        service.bulletin.hurry()


def apply_settings(service: Service, changed: frozenset[str]) -> None:
    """Go by the settings that have changed; what reads them each time does so by itself."""
    from tet_extras.logs import apply

    config, binance = service.config, service.binance
    if changed & {"symbols", "max_symbols", "timeframe"}:
        service.symbols.due_ms = 0
        service.store.claim.keeps([timeframe.name for timeframe in config.timeframe], config.symbols)
    apply(config.log_level, config.secrets)
    if not config.takes_part:  # a member's rate is a part of it, which it works out again and again
        binance.gate.rate = config.api_requests_per_sec
    if changed & {"public_data", "binance_api_key", "binance_secret_key"}:
        service.workers.begin("key", partial(log_api_key, config, binance), lambda nothing: None)


def assemble(
    config: Config,
    clock: Clock,
    http: Transport,
    *,
    once: bool,
    simulated: bool = False,
    reload: Reload | None = None,
) -> Service:
    """Make every part of the service with all that it needs, and let those listen that want to."""
    listeners, counts, progress = Listeners(), Counts(clock), Progress()
    inbox, interval, watchlist = Inbox(), Interval(config), Watchlist(config)
    store = Store(config, clock, connect_redis(config))
    binance = Binance(config, clock, http, listeners, settles_at_once=once)
    gate = binance.gate
    members = Membership(config, clock, store, gate, watchlist)
    fetcher = Fetcher(config, clock, binance)
    writer = Writer(config, clock, store, listeners)
    bulletin = Bulletin(config, clock, store, gate, members, writer.losses)
    live = Live(config, clock, inbox, writer, interval, counts.messages, store.notices)
    audit = Audit(config, clock, gate, fetcher, writer, counts.candles, listeners)
    updates = Updates(
        config, clock, watchlist, fetcher, writer, interval, gate,
        binance.market.klines_weight, counts.candles, listeners,
    )  # fmt: skip
    status = Status(
        config, clock, __version__, counts, progress, binance, store, watchlist, interval,
        live.figures, simulated, reload,
    )  # fmt: skip
    for listener in (counts, bulletin):
        listeners.add(listener)
    clock.wakes(inbox.wake)
    return Service(
        config, clock, listeners, inbox, binance, store, watchlist, members, interval, counts, progress,
        fetcher, writer, bulletin, live, audit, updates, status, once, reload,
    )  # fmt: skip


# ------------------------------------------------------------------------------
# What HTTP serves of the status, the feeds and their candles
# ------------------------------------------------------------------------------


def showing_of(service: Service) -> Showing:
    """What HTTP serves of the feeds and their candles; those that memory lacks are read from Redis."""
    from tet_extras.web.showing import Showing

    config, clock, store = service.config, service.clock, service.store

    def load(feed: Feed) -> Image | None:
        value = store.load(store.keys.kline(feed.timeframe, feed.pair))[0]
        return read_back(config, clock, feed, value) if value else None

    return Showing(config, clock, service.watchlist, load)


def binance_api(service: Service, showing: Showing) -> BinanceApi:
    """What answers bots that take this service for the exchange."""
    from tet_extras.proxy import api

    binance, clock = service.binance, service.clock
    exchange = api.Exchange(binance.market.prefix, binance.gate, binance.ask, clock.now_ms)
    return api.BinanceApi(service.config, exchange, showing)


@contextmanager
def serving_http(service: Service) -> Iterator[None]:
    """Serve HTTP where HTTP_ADDR says, if it does. Raises TetError when it cannot bind."""
    config, status = service.config, service.status
    if not config.http_addr:
        yield
        return
    from tet_extras.web import answers, events, server

    showing = showing_of(service)

    def snapshot() -> Snapshot:
        return replace(status.snapshot(), members=list(service.members.in_status) or None)

    with events.kept(LOGGER, config.secrets) as recent:
        sources = answers.Sources(snapshot, status.health, showing, recent.latest)
        bots = binance_api(service, showing) if config.binance_proxy else None
        with server.serving(config.http_addr, config.http_token, sources, bots) as web:
            service.listeners.add(web)
            url = addresses.page_url(config.http_addr[0], web.port)
            say(logging.INFO, "serving the page, /api, /health and /metrics", url=url)
            yield


# ------------------------------------------------------------------------------
# What people start: --status, --health-check and --verify
# ------------------------------------------------------------------------------


def read_report(config: Config, store: Store, local_ms: int) -> Report:
    """Look at Redis alone. Ages are measured by exchange time where a status has it, else by ``local_ms``.

    An error of Redis is a problem in the report.
    """
    from tet_extras.report import Report, configured_pairs, make_report

    try:
        found = store.load_status()
        names = configured_pairs(config.symbols, Snapshot.of(found[0]) if found else None)
        feeds = [(Pair(*name.split("/")), timeframe) for timeframe in config.timeframe for name in names]
        values = zip(feeds, store.load_tails(feeds), strict=True)
    except StoreError as error:
        return Report({}, None, 0.0, [], [str(error)])
    tails = [(pair.name, timeframe.name, *tail) for (pair, timeframe), tail in values]
    return make_report(found, tails, local_ms / SECOND_MS, config.max_data_age)


def show_status(config: Config, store: Store, *, as_json: bool) -> int:
    """``--status``: print the report; 0 when all is well, else 1."""
    from tet_extras.report import report_json, report_text

    report = read_report(config, store, int(time.time() * SECOND_MS))
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

    store_check, pause = _check_store(config, store)
    yield store_check
    if pause:
        yield Check("binance", False, f"not asked: a pause of {ago(pause[0])} more is on: {pause[1]}")
    else:
        yield from _check_binance(config, clock, binance)
    if store_check.ok:
        report = read_report(config, store, clock.now_ms())
        ages = [row.age_seconds for row in report.rows if row.age_seconds is not None]
        found = "; ".join(report.problems) or f"oldest update {ago(max(ages))} ago"
        yield Check("data", not report.problems, found)


def _check_store(config: Config, store: Store) -> tuple[Check, tuple[float, str] | None]:
    """Whether Redis does what the service wants of it, and the pause that is kept there."""
    try:
        store.prepare()
        store.try_write()
        fits, memory = caution(partial(store.info, store.keys.status), memory_needed(config))
        return Check("redis", fits, f"answers and takes writes{memory}"), store.load_pause()
    except StoreError as error:
        return Check("redis", False, str(error)), None


def _check_binance(config: Config, clock: Clock, binance: Binance) -> Iterator[Check]:
    try:
        began = clock.monotonic()
        offset_ms = binance.sync_clock()
        latency_ms = round((clock.monotonic() - began) * SECOND_MS)
        listings, meant, _ = look_up(binance, config)
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
    """Whether the API key works and may no more than read. Makes one signed call, if anybody answers it."""
    if not binance.can_ask_permissions:
        return Check("keys", True, "what the API key may do cannot be asked here; candles do not need it")
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


def verify(
    config: Config, clock: Clock, binance: Binance, store: Store, *, repair: bool, as_json: bool
) -> int:
    """``--verify``: compare every value with the exchange and print what differs; 0 when nothing does.

    With ``repair`` what differs is written as the exchange has it. Raises ExchangeError and StoreError.
    """
    from tet_extras import verdicts as said

    store.prepare()
    if pause := store.load_pause():
        said.show_pause(*pause, as_json=as_json)
        return EXIT_FAILED
    if config.takes_part:  # as a guest: it owns its SHARD, or all pairs, and shares the rate of its address
        config = replace(config, group=None, egress=config.egress or "")
    inbox, watchlist = Inbox(), Watchlist(config)
    members = Membership(config, clock, store, binance.gate, watchlist)
    tick = said.with_waits_shown(binance.gate, members.renew)
    workers = Workers(1, clock, inbox, lambda message: None, tick)
    clock.wakes(inbox.wake)
    fetcher = Fetcher(config, clock, binance)
    writer = Writer(config, clock, store, Listener())

    def compare() -> list[Verdict]:
        members.join()
        binance.sync_clock()
        watchlist.update(*(found := look_up(binance, config)))
        if not as_json:
            said.show_skipped(watchlist.invalid, found.meant.left_out, config.max_symbols)
        verdicts = []
        with process.progress_bar(len(watchlist), "Verify") as step:
            for feed in watchlist:
                verdicts.append(verify_feed(feed, fetcher, writer, clock.now_ms() * repair))
                if not as_json:
                    said.show_verdict(feed.name, verdicts[-1])
                step(1)
        return verdicts

    try:
        with nullcontext() if as_json else said.naming_what_is_odd():
            verdicts = workers.do(compare)
    finally:
        clock.stop()
        workers.stop()
        members.leave()
    named = dict(zip((feed.name for feed in watchlist), verdicts, strict=True))
    facts = (named, watchlist.invalid, binance.requests.total())
    return EXIT_OK if said.show_all(*facts, repair=repair, as_json=as_json) else EXIT_FAILED


def show_health(config: Config, clock: Clock, binance: Binance, store: Store, *, as_json: bool) -> int:
    """``--health-check``: print a line for each check as it is done; 0 when all is well, else 1."""
    from tet_extras.report import show_checks

    checks = check_health(config, clock, binance, store)
    return EXIT_OK if show_checks(checks, as_json=as_json) else EXIT_FAILED


# ------------------------------------------------------------------------------
# The command line
# ------------------------------------------------------------------------------

WATCH_SECONDS = 2.0


@contextmanager
def with_redis(config: Config) -> Iterator[Config]:
    """The settings with an address to connect to: for ``embedded`` that of a server started for as long.

    Raises StoreError when that server cannot be started, ConfigError when DATA_DIR is the reason.
    """
    if config.redis_addr != EMBEDDED:
        yield config
        return
    from tet_extras import embedded

    memory_mb = 256 + 3 * (figures.estimate(config.most_symbols, config).stored_bytes // 1_000_000)
    with embedded.running(config.data_dir, memory_mb, say) as port:
        yield _at_port(config, port)


def find_embedded(config: Config) -> Config:
    """The settings with the address of the embedded server that runs now. Raises StoreError, ConfigError."""
    if config.redis_addr != EMBEDDED:
        return config
    from tet_extras import embedded

    return _at_port(config, embedded.running_port(config.data_dir))


def _at_port(config: Config, port: int) -> Config:
    return replace(config, redis_addr=f"redis://127.0.0.1:{port}", redis_username=None, redis_password=None)


def demo(flags: Mapping[str, str], *, once: bool) -> int:
    """``--demo``: a simulated exchange, an embedded server in a folder that goes again, and the service."""
    from tet_extras.demo import simulated, text_after
    from tet_extras.report import report_text

    def show(config: Config, store: Store, clock: Clock, once: bool) -> None:
        click.echo(f"\n{report_text(read_report(config, store, clock.now_ms()))}")
        if not once and config.http_addr:
            click.echo(text_after(config, flags))

    def resolve(settings: Texts) -> Config:
        return resolve_config(settings, {}, None).config

    with simulated(flags, resolve, with_page=not once) as config:
        start_logging(config)
        return serve(config, once=once, on_filled=show, simulated=True)


def serve(
    config: Config,
    *,
    once: bool,
    on_filled: Callable[..., None] = lambda *facts: None,
    simulated: bool = False,
    resolve: Callable[[], Resolved] | None = None,
    config_file: Path | None = None,
) -> int:
    """Run the service with these settings; returns the exit code. ``resolve`` reads them again."""
    clock = Clock()
    watched = config_file if config.watch_config else None
    reload = Reload(clock, config, resolve, _conflicts, watched) if resolve and not once else None

    def stop(signal_name: str) -> None:
        say(logging.INFO, "stopping", signal=signal_name)
        clock.stop()

    process.tune_memory()
    process.stop_on_signals(stop, EXIT_FAILED if once else EXIT_OK, reload.ask if reload else None)
    say(logging.INFO, "tet-data-service", version=__version__)
    say(logging.INFO, "settings", **differing(config))
    try:
        with connect_http(config) as http, with_redis(config) as config:
            config = in_force(config)
            service = assemble(config, clock, http, once=once, simulated=simulated, reload=reload)
            with serving_http(service):
                return service.run(partial(on_filled, config, service.store, clock, once))
    except ConfigError as error:
        say(logging.ERROR, "startup failed", reason=str(error))
        return EXIT_USAGE
    except TetError as error:
        say(logging.ERROR, "fatal error", reason=str(error))
        return EXIT_FAILED


def look(config: Config, what: str, *, as_json: bool, watch: bool, repair: bool) -> int:
    """``--status``, ``--health-check`` or ``--verify``; returns the exit code."""
    from tet_extras.report import no_report

    logging.getLogger(LOGGER).addHandler(logging.NullHandler())  # what is printed says what happened
    clock = Clock()
    try:
        config = find_embedded(config)
    except StoreError as error:
        if as_json:
            click.echo(no_report(what, str(error)))
            return EXIT_FAILED
        raise
    store = Store(config, clock, connect_redis(config))
    if what != "status":
        with connect_http(config) as http:
            verifies = what == "verify"
            attempts = ATTEMPTS if verifies else 1
            binance = Binance(config, clock, http, attempts=attempts, settles_at_once=verifies)
            if verifies:
                try:
                    return verify(config, clock, binance, store, repair=repair, as_json=as_json)
                except TetError as error:
                    if as_json:
                        click.echo(no_report(what, str(error)))
                        return EXIT_FAILED
                    raise
            return show_health(config, clock, binance, store, as_json=as_json)
    if not watch:
        return show_status(config, store, as_json=as_json)
    code = EXIT_FAILED
    with suppress(KeyboardInterrupt):
        while not output.reader_is_gone():
            click.clear()
            code = show_status(config, store, as_json=as_json)
            time.sleep(WATCH_SECONDS)
    return code


def export_candles(config: Config, wanted: export.Wanted) -> int:
    """``--export``: write a pair's closed candles as a file; returns the exit code. Raises TetError."""
    from tet_extras.report import configured_pairs

    if len(config.timeframe) > 1:
        raise click.UsageError("--export writes one timeframe: name it with --timeframe")
    (timeframe,) = config.timeframe
    logging.getLogger(LOGGER).addHandler(logging.NullHandler())  # what is printed says what happened
    config = find_embedded(config)
    store = Store(config, Clock(), connect_redis(config))
    found = store.load_status()
    status = Snapshot.of(found[0]) if found else None
    (name,) = configured_pairs([wanted.pair], status) or [wanted.pair]
    value = store.load(store.keys.kline(timeframe, Pair(*name.split("/"))))[0] if "/" in name else None
    if not value:
        near = meant_symbol(name, (Pair(*each.split("/"))[:2] for each in (status.symbols if status else ())))
        raise StoreError(f"{name} {timeframe.name} is not kept" + (f"; did you mean {near}?" if near else ""))
    export.write(export.closed_rows(value), wanted)
    return EXIT_OK


def show_config(resolved: Resolved) -> int:
    """``--check-config``: print the settings in force and where each is from; warnings go to stderr."""
    from tet_extras.report import config_table

    rows = [(o.name, shown(o.name, resolved.config), resolved.origins[o.name]) for o in OPTIONS]
    click.echo(config_table(rows))
    code = show_symbols(resolved.config)
    for warning in resolved.warnings:
        click.echo(f"warning: {warning}", err=True)
    return code


def show_problems(error: ConfigError) -> None:
    """Say what is wrong with the settings."""
    lines = [f"error: {problem}" for problem in error.problems]
    lines += [f"warning: {warning}" for warning in error.warnings]
    click.echo("\n".join([*lines, "Nothing was started. --help lists the settings."]), err=True)


def show_symbols(config: Config) -> int:
    """Say which pairs are meant now, and what they cost; asks the exchange which there are.

    Names that are no wildcards are taken for pairs where it cannot be asked.
    """
    from tet_extras.report import cost_text

    clock = Clock()
    try:
        with connect_http(config) as http:
            binance = Binance(config, clock, http, attempts=1)
            listings, meant, _ = look_up(binance, config)
        pairs, invalid = resolve_symbols(meant.names, listings)
        names = [pair.name for pair in pairs]
    except ExchangeError as error:
        if config.has_wildcards:
            problem = f"SYMBOLS: the exchange could not be asked which pairs are meant: {error}"
            click.echo(f"error: {problem}", err=True)
            return EXIT_FAILED
        click.echo(f"\nSYMBOLS: the exchange could not be asked which of them trade: {error}")
        names, invalid, meant = list(config.symbols), {}, Expansion([], [], [])
    invalid |= dict.fromkeys(meant.unmatched, "no pair that trades fits")
    cost, market = figures.estimate(len(names), config), binance.market
    weights = market.klines_weight(config.incremental_candles + 1), market.klines_weight(market.page_rows)
    pages = sum(-(-each.candles_in_days(config.data_days) // market.page_rows) for each in config.timeframe)
    weight = (cost.requests * weights[0] / 60, binance.gate.weight_limit, len(names) * pages * weights[1])
    left_out = (meant.left_out, config.max_symbols)
    click.echo(cost_text(names, left_out, invalid, cost, weight, config.memory_limit_mb))
    return EXIT_OK


def resolve_again(flags: Texts, environment: Texts, config_file: Path | None) -> Resolved:
    """The settings as they are now, for a service that runs. Raises ConfigError."""
    check_again(config_file)
    return resolve_config(flags, environment, config_file)


def _check_company(look_at: str | None, *, as_json: bool, watch: bool, repair: bool) -> None:
    if (as_json and look_at is None) or (watch and look_at != "status"):
        raise click.UsageError("--json goes with --status, --health-check or --verify, --watch with --status")
    if repair and look_at != "verify":
        raise click.UsageError("--repair goes with --verify")


@click.command(
    cls=process.GroupedCommand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""Every setting can also stand in the environment or the config file (dotenv syntax), under the
    name that config.example and the README give; a flag wins over the environment, and that over the
    file. Exit codes: 0 good, 1 something failed, 2 wrong settings.""",
)
@click.option("--config", "config_file", metavar="FILE", help="Config file [config.txt, else .env].")
@partial(with_flags, OPTIONS)
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
@export.with_flags
@click.option("--check-config", is_flag=True, help="Show the settings in force and where each is from.")
@click.option("--json", "as_json", is_flag=True, help="With --status, --health-check or --verify: as JSON.")
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
    _check_company(look_at, as_json=as_json, watch=watch, repair=repair)
    wanted = export.taken(flags)
    given = {name: text for name, text in flags.items() if text is not None}
    if look_at == "status" or wanted:
        given["PUBLIC_DATA"] = "true"  # it reads Redis alone: no key is needed
    try:
        if as_demo:
            process.end_process(demo(given, once=once))
        file = find_config_file(config_file)
        resolved = resolve_config(given, os.environ, file)
        if check_config:
            sys.exit(show_config(resolved))
        if wanted:
            sys.exit(export_candles(resolved.config, wanted))
        if look_at:
            sys.exit(look(resolved.config, look_at, as_json=as_json, watch=watch, repair=repair))
        start_logging(resolved.config)
    except ConfigError as error:
        show_problems(error)
        sys.exit(EXIT_USAGE)
    except TetError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_FAILED)
    for warning in resolved.warnings:
        say(logging.WARNING, warning)
    if group := resolved.config.group:  # tcsh sets a variable of that name by itself
        say(logging.INFO, "shares the pairs", group=group, **{"from": resolved.origins["GROUP"]})
    resolve = partial(resolve_again, given, os.environ, file)
    process.end_process(serve(resolved.config, once=once, resolve=resolve, config_file=file))


if __name__ == "__main__":
    main()
