"""What a setting that is misspelt, or that other programs call otherwise, was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping

#: Names that other programs and their examples use, ours for the same, and how ours is written.
WELL_KNOWN = {
    **dict.fromkeys(
        ("BINANCE_API_SECRET", "BINANCE_SECRET", "BINANCE_SECRET_API_KEY", "BINANCE_API_SECRET_KEY"),
        "BINANCE_SECRET_KEY",
    ),
    **dict.fromkeys(("BINANCE_APISECRET", "BINANCE_PRIVATE_KEY"), "BINANCE_SECRET_KEY"),
    **dict.fromkeys(("API_SECRET", "API_SECRET_KEY", "SECRET_KEY", "APISECRET"), "BINANCE_SECRET_KEY"),
    **dict.fromkeys(("BINANCE_KEY", "BINANCE_APIKEY", "BINANCE_PUBLIC_KEY"), "BINANCE_API_KEY"),
    **dict.fromkeys(("API_KEY", "APIKEY"), "BINANCE_API_KEY"),
    **dict.fromkeys(("BINANCE_URL", "BINANCE_API_URL", "BINANCE_ENDPOINT"), "BINANCE_BASE_URL"),
    **dict.fromkeys(("BINANCE_WS_URL", "BINANCE_WEBSOCKET_URL"), "BINANCE_STREAM_URL"),
    **dict.fromkeys(("REDIS_HOST", "REDIS_PORT", "REDIS_HOSTNAME", "REDIS_SERVER"), "REDIS_ADDR=host:port"),
    **dict.fromkeys(("REDIS_ADDRESS", "REDIS_ENDPOINT"), "REDIS_ADDR=host:port"),
    **dict.fromkeys(("REDIS_URL", "REDIS_URI", "REDIS_DSN"), "REDIS_ADDR=redis://host:port"),
    **dict.fromkeys(("REDIS_SOCKET", "REDIS_UNIX_SOCKET"), "REDIS_ADDR=unix:///path"),
    **dict.fromkeys(("REDIS_PASS", "REDIS_PWD", "REDIS_AUTH", "REDISCLI_AUTH"), "REDIS_PASSWORD"),
    **dict.fromkeys(("REDIS_USER", "REDIS_LOGIN"), "REDIS_USERNAME"),
    **dict.fromkeys(("REDIS_DATABASE", "REDIS_DB_NUMBER", "REDIS_DB_INDEX"), "REDIS_DB"),
}
#: The same, of names that say too little to be looked for in the environment.
IN_FILE = {
    **dict.fromkeys(("SYMBOL", "PAIR", "PAIRS", "TRADING_PAIRS", "TICKERS"), "SYMBOLS"),
    **dict.fromkeys(("TIMEFRAMES", "INTERVAL", "KLINE_INTERVAL", "CANDLE_INTERVAL"), "TIMEFRAME"),
    **dict.fromkeys(("LOG_PATH", "LOGFILE", "LOG_DIR"), "LOG_FILE"),
    **dict.fromkeys(("LOGLEVEL", "LOGGING_LEVEL"), "LOG_LEVEL"),
    **dict.fromkeys(("PORT", "HTTP_PORT", "LISTEN"), "HTTP_ADDR=127.0.0.1:8080"),
    **dict.fromkeys(("BASE_URL", "API_URL", "TESTNET", "BINANCE_TESTNET"), "BINANCE_BASE_URL"),
    **dict.fromkeys(("DAYS", "LOOKBACK_DAYS", "HISTORY_DAYS"), "DATA_DAYS"),
}


def meant_setting(name: str, known: Collection[str]) -> str:
    """The setting that a name stands for elsewhere, or that it nearly is; empty where there is none."""
    name = name.upper()
    if alias := WELL_KNOWN.get(name) or IN_FILE.get(name):
        return alias
    return next(iter(difflib.get_close_matches(name, known, 1)), "")


def in_environment(environment: Mapping[str, str], given: Collection[str], *, public: bool) -> Iterator[str]:
    """A warning for each well-known name in the environment whose setting is not ``given``.

    Without keys (``public``) a key that does not name Binance is another program's.
    """
    for name in sorted(environment):
        meant = WELL_KNOWN.get(name.upper(), "")
        setting = meant.partition("=")[0]
        unneeded = public and setting.startswith("BINANCE_") and not name.upper().startswith("BINANCE_")
        if environment[name] and meant and setting not in given and not unneeded:
            yield f"environment: unknown setting {name}; did you mean {meant}?"
