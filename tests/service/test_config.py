"""The configuration: where settings come from, what is refused in which words, and what is never shown."""

from __future__ import annotations

import dataclasses
import errno
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rig import run_program

import tet_data_service as tet
from tet_extras.options import is_path_at_fault
from tet_extras.report import config_table

PUBLIC = {"PUBLIC_DATA": "true"}
KEYS = {"BINANCE_API_KEY": "key-0f1e2d", "BINANCE_SECRET_KEY": "secret-9a8b7c"}
OPTIONS = {option.name: option for option in tet.OPTIONS}

#: Three right values for each setting, no two neighbours alike: for the flag, the environment, the file.
RIGHT = {
    "BINANCE_API_KEY": ("key-a", "key-b", "key-c"),
    "BINANCE_SECRET_KEY": ("secret-a", "secret-b", "secret-c"),
    "PUBLIC_DATA": ("true", "false", "yes"),
    "BINANCE_BASE_URL": ("https://a.example", "https://b.example", "https://c.example"),
    "BINANCE_MARKET": ("usdm", "spot", "us"),
    "BINANCE_TESTNET": ("true", "false", "true"),
    "BINANCE_DEMO_MODE": ("true", "false", "true"),
    "LIVE": ("true", "false", "true"),
    "BINANCE_STREAM_URL": ("wss://a.example", "wss://b.example", "ws://c.example"),
    "LIVE_WRITE_SECONDS": ("0", "1", "2.5"),
    "PROOF_WEIGHT_SHARE": ("0", "0.1", "0.5"),
    "REDIS_ADDR": ("a:1", "b:2", "c:3"),
    "REDIS_MODE": ("SINGLE", "single", "Single"),
    "REDIS_SENTINEL_MASTER": ("one", "two", "three"),
    "REDIS_USERNAME": ("anna", "bert", "carl"),
    "REDIS_PASSWORD": ("pw-a", "pw-b", "pw-c"),
    "API_REQUESTS_PER_SEC": ("2.5", "3.5", "4.5"),
    "TIMEFRAME": ("1h", "4h", "1d"),
    "SYMBOLS": ("A/USDT", "*/USDT", "@Top9/usdt,!c_usdt"),
    "GROUP": ("one", "two", "three"),
    "REDIS_PREFIX": ("spot", "u-2", "a.b"),
    "SHARD": ("1/2", "2/2", "3/5"),
    "EGRESS": ("one", "two", "three"),
    "CLOSED_ONLY": ("true", "false", "true"),
    "FIELDS": ("all", "ohlcv", "ALL"),
    "BINANCE_PROXY": ("true", "false", "true"),
    "PROXY_WEIGHT_SHARE": ("0", "0.1", "0.8"),
    "METRICS_PER_SYMBOL": ("true", "false", "true"),
    "WATCH_CONFIG": ("true", "false", "true"),
    "MAX_FAILURE_RATE": ("0.2", "0.3", "0.4"),
    "MEMORY_LIMIT_MB": ("51", "52", "53"),
    "ADAPTIVE_INTERVAL": ("false", "true", "false"),
    "MARKET_HOURS_OPTIMIZATION": ("false", "true", "false"),
    "ERROR_BACKOFF_MULTIPLIER": ("2", "3", "4"),
    "SUCCESS_RECOVERY_RATE": ("0.2", "0.3", "0.4"),
    "OFF_PEAK_MULTIPLIER": ("3", "4", "5"),
    "LOG_LEVEL": ("debug", "error", "warning"),
    "LOG_FORMAT": ("json", "text", "json"),
    "LOG_FILE": ("a.log", "b.log", "c.log"),
    "DATA_DIR": ("a", "b", "c"),
    "HTTP_ADDR": ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
    "HTTP_TOKEN": ("token-a", "token-b", "token-c"),
}
WHOLE_NUMBERS = ("11", "12", "13")

DEFAULTS = {
    "binance_api_key": None,
    "binance_secret_key": None,
    "binance_market": "spot",
    "binance_testnet": False,
    "binance_demo_mode": False,
    "live": False,
    "live_write_seconds": 5,
    "audit_hours": 24,
    "redis_addr": "redis://localhost:6379",
    "redis_mode": "single",
    "redis_sentinel_master": None,
    "redis_username": None,
    "redis_password": None,
    "redis_db": 1,
    "update_interval": 180,
    "concurrent_requests": 12,
    "max_data_age": 540,
    "api_requests_per_sec": 15,
    "timeframe": (tet.TIMEFRAMES["15m"],),
    "data_days": 30,
    "max_symbols": 1000,
    "group": None,
    "shard": None,
    "egress": None,
    "incremental_candles": 6,
    "batch_size": 15,
    "closed_only": False,
    "kline_ttl": 86_400,
    "timestamp_ttl": 7200,
    "status_ttl": 7200,
    "max_update_time": 30,
    "max_failure_rate": 0.1,
    "memory_limit_mb": 500,
    "adaptive_interval": True,
    "market_hours_optimization": True,
    "error_backoff_multiplier": 1.5,
    "success_recovery_rate": 0.9,
    "off_peak_multiplier": 2.0,
    "log_level": "info",
    "log_format": "text",
    "log_file": None,
    "http_addr": None,
    "http_token": None,
}

#: For settings that are numbers: the least and the most that is allowed, and what lies just outside.
RANGES = {
    "REDIS_DB": ("0", "9999", "-1", "10000"),
    "UPDATE_INTERVAL": ("1", "86400", "0", "86401"),
    "CONCURRENT_REQUESTS": ("1", "100", "0", "101"),
    "MAX_DATA_AGE": ("1", "86400", "0", "86401"),
    "API_REQUESTS_PER_SEC": ("0.01", "100", "0.009", "100.1"),
    "DATA_DAYS": ("1", "3650", "0", "3651"),
    "INCREMENTAL_CANDLES": ("1", "400", "0", "401"),
    "BATCH_SIZE": ("1", "1000", "0", "1001"),
    "MAX_SYMBOLS": ("1", "10000", "0", "10001"),
    "KLINE_TTL": ("1", "31536000", "0", "31536001"),
    "TIMESTAMP_TTL": ("1", "31536000", "0", "31536001"),
    "STATUS_TTL": ("1", "31536000", "0", "31536001"),
    "MAX_UPDATE_TIME": ("1", "86400", "0", "86401"),
    "MAX_FAILURE_RATE": ("0", "1", "-0.1", "1.01"),
    "MEMORY_LIMIT_MB": ("50", "1000000", "49", "1000001"),
    "LOG_MAX_MB": ("1", "10000", "0", "10001"),
    "LOG_BACKUPS": ("0", "100", "-1", "101"),
    "ERROR_BACKOFF_MULTIPLIER": ("1", "10", "0.99", "10.1"),
    "SUCCESS_RECOVERY_RATE": ("0.01", "1", "0", "1.1"),
    "OFF_PEAK_MULTIPLIER": ("1", "10", "0.99", "10.1"),
}
WHOLE = [name for name, texts in RANGES.items() if "." not in "".join(texts)]

NOT_TRUTH = ("maybe", "2", "truee")
WRONG = {
    "BINANCE_API_KEY": ("two words", "schlüssel"),
    "BINANCE_SECRET_KEY": ("two words", "schlüssel"),
    "PUBLIC_DATA": NOT_TRUTH,
    "BINANCE_BASE_URL": (
        "api.binance.com",
        "ftp://h",
        "https://",
        "https://h:99999",
        "https://a..b",
    ),
    "BINANCE_MARKET": ("margin", "spot,usdm"),
    "BINANCE_TESTNET": NOT_TRUTH,
    "BINANCE_DEMO_MODE": NOT_TRUTH,
    "LIVE": NOT_TRUTH,
    "BINANCE_STREAM_URL": ("stream.binance.com", "https://h", "wss://", "wss://h:99999"),
    "LIVE_WRITE_SECONDS": ("-1", "3601", "nan", "soon"),
    "PROOF_WEIGHT_SHARE": ("-0.1", "0.6", "nan", "some"),
    "AUDIT_HOURS": ("-1", "8761", "nan", "daily"),
    "REDIS_ADDR": (
        *(":6379", "h/1", "h:70000", "redis://h:70000", "http://h", "redis://", "unix://", "::1"),
        *("a:1,", "a:1,b/1", "a:1,embedded", "a:1,unix:///s", "a..b:1", f"redis://{'x' * 64}.example"),
    ),
    "REDIS_MODE": ("replica", "single,cluster"),
    "TIMEFRAME": ("15", "2m", "15m,7m", ",", "1Y"),
    "SYMBOLS": (
        *(",", "BTC/", "BTC//USDT", "BTC/USDT/X", "BTC.USDT", "A" * 31),
        *(
            "*",
            "BTC*",
            "B*/USDT",
            "!USDC/USDT",
            "@top/USDT",
            "@top0/USDT",
            "@top100",
            "@low9/USDT",
            "!@top9/USDT",
        ),
    ),
    "GROUP": ("two words", "a:b", "{a}", "x" * 65),
    "SHARD": ("0/5", "6/5", "2", "2/1001", "1/0", "-1/5"),
    "EGRESS": ("two words", "a:b"),
    "REDIS_PREFIX": ("two words", "a:b", "a{b}", "x" * 65),
    "CLOSED_ONLY": NOT_TRUTH,
    "FIELDS": ("ohlc", "volume", "everything"),
    "BINANCE_PROXY": NOT_TRUTH,
    "PROXY_WEIGHT_SHARE": ("-0.1", "0.9", "nan", "some"),
    "METRICS_PER_SYMBOL": NOT_TRUTH,
    "WATCH_CONFIG": NOT_TRUTH,
    "ADAPTIVE_INTERVAL": NOT_TRUTH,
    "MARKET_HOURS_OPTIMIZATION": NOT_TRUTH,
    "LOG_LEVEL": ("loud", "inf"),
    "LOG_FORMAT": ("xml",),
    "HTTP_ADDR": ("8080", "h", ":8080", "h:", "h:99999", "h:1/x"),
    "HTTP_TOKEN": ("two words", "schlüssel"),
    **{name: (*outside, "abc", "nan", "1_0", "٥") for name, (_, _, *outside) in RANGES.items()},
}
ANYTHING = {"REDIS_SENTINEL_MASTER", "REDIS_USERNAME", "REDIS_PASSWORD", "LOG_FILE", "DATA_DIR"}


def table_of(resolved):
    """What --check-config shows."""
    names = [option.name for option in tet.OPTIONS]
    return config_table((name, tet.shown(name, resolved.config), resolved.origins[name]) for name in names)


def resolve(flags=(), file=None, **environment):
    """Resolve from flags, the environment and the text of a config.txt that only its owner may read."""
    return tet.resolve_config(dict(flags), environment, file and written(file))


def public(flags=(), file=None, **environment):
    """As `resolve`, without keys."""
    return resolve(flags, file, **(PUBLIC | environment))


def problems(flags=(), file=None, **environment):
    """What is wrong with these settings; without keys unless they say otherwise."""
    with pytest.raises(tet.ConfigError) as caught:
        public(flags, file, **environment)
    return caught.value.problems


def written(text, mode=0o600):
    """A config.txt in the working directory."""
    path = Path("config.txt")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def everything_shown(resolved):
    """All that is ever put before people of a configuration."""
    lines = [tet.shown(name, resolved.config) for name in OPTIONS]
    return "\n".join([*lines, *resolved.warnings, table_of(resolved)])


# Precedence


@pytest.mark.parametrize("name", OPTIONS)
def test_flag_before_environment_before_file_before_default(name):
    """For each setting the strongest source that gives a value wins, and the origin says which."""
    option = OPTIONS[name]
    for_flag, for_environment, for_file = RIGHT.get(name, WHOLE_NUMBERS)
    others = {**PUBLIC, **KEYS}
    others.pop(name, None)
    in_environment = {**others, name: for_environment}
    expected = [(for_flag, f"flag {option.flag}"), (for_environment, "environment")]
    expected += [(for_file, "config.txt line 1")]
    for first, (text, origin) in enumerate(expected):
        flags = {name: for_flag} if first == 0 else {}
        environment = in_environment if first <= 1 else others
        resolved = resolve(flags, f"{name}={for_file}", **environment)
        assert getattr(resolved.config, name.lower()) == option.parse(text)
        assert resolved.origins[name] == origin


@pytest.mark.parametrize("name", [*DEFAULTS, "symbols"])
def test_the_defaults_are_those_promised(name):
    """Without a word from anybody each setting has its promised default."""
    resolved = public()
    assert getattr(resolved.config, name) == (DEFAULTS | {"symbols": tet.DEFAULT_SYMBOLS})[name]
    assert resolved.origins[name.upper()] == "default"
    assert resolved.warnings == ()


def test_the_default_symbols_are_25_pairs_against_usdt():
    """The default pairs are 25 different ones, from BTC to MKR."""
    symbols = public().config.symbols
    assert len(set(symbols)) == 25
    assert all(symbol.endswith("/USDT") for symbol in symbols)
    assert (symbols[0], symbols[-1]) == ("BTC/USDT", "MKR/USDT")


def test_an_empty_text_counts_as_not_given():
    """An empty flag or variable, or one of blanks only, leaves the decision to the next source."""
    resolved = public({"REDIS_DB": ""}, "REDIS_DB=7", REDIS_DB="  ")
    assert (resolved.config.redis_db, resolved.origins["REDIS_DB"]) == (7, "config.txt line 1")


def test_blanks_around_a_value_do_not_count():
    """A value may be surrounded by blanks."""
    assert public(DATA_DAYS=" 7 ").config.data_days == 7


def test_config_has_a_field_for_each_option():
    """The fields of Config are the names of the options table, in its order."""
    fields = [field.name.upper() for field in dataclasses.fields(tet.Config)]
    assert fields == [*OPTIONS]


def test_no_password_has_a_flag():
    """What has no flag on purpose has none: flags show in the process list."""
    assert OPTIONS["REDIS_PASSWORD"].flag is OPTIONS["REDIS_USERNAME"].flag is None


# Bad values


def test_every_option_that_can_be_wrong_is_in_the_table():
    """The table of wrong values covers each setting but those that take any text."""
    assert WRONG.keys() | ANYTHING == OPTIONS.keys()


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in WRONG for text in WRONG[name]])
@pytest.mark.parametrize("source", ["flag", "environment", "file"])
def test_a_bad_value_is_refused_with_name_origin_and_what_is_allowed(name, text, source):
    """There is one problem, and it names the setting, where the value came from, it, and the remedy."""
    option = OPTIONS[name]
    flags = {name: text} if source == "flag" else {}
    environment = {name: text} if source == "environment" else {}
    file = f'# A comment\n{name}="{text}"\n' if source == "file" else None
    said = problems({**PUBLIC, **flags}, file, **environment) if name != "PUBLIC_DATA" else None
    if said is None:
        with pytest.raises(tet.ConfigError) as caught:
            resolve(flags, file, **environment)
        said = caught.value.problems
    origin = {"flag": f"flag {option.flag}", "environment": "environment", "file": "config.txt line 2"}
    found = "a value that cannot be shown" if option.secret else repr(text)
    assert len(said) == 1
    assert said[0].startswith(f"{name} ({origin[source]}): found {found}")
    assert said[0].endswith(f"; allowed: {option.allowed}")


@pytest.mark.parametrize("name", RANGES)
def test_the_ends_of_a_range_belong_to_it(name):
    """The least and the most that is allowed are taken."""
    for text in RANGES[name][:2]:
        given = {"TIMEFRAME": "1d", "API_REQUESTS_PER_SEC": "1"} | {name: text}
        assert getattr(public(**given).config, name.lower()) == float(text)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_has_no_fraction(name):
    """Where a whole number is wanted, 50.5 is refused."""
    assert len(problems(**{name: "50.5"})) == 1


@pytest.mark.parametrize("name", [name for name in OPTIONS if WRONG.get(name) is NOT_TRUTH])
@pytest.mark.parametrize(
    ("words", "value"), [("true yes on 1 TRUE Yes", True), ("false no off 0 FALSE No", False)]
)
def test_the_words_for_true_and_false(name, words, value):
    """True and false may be said in the usual words, in any case."""
    for word in words.split():
        config = resolve(**KEYS, **{name: word}).config
        assert getattr(config, name.lower()) is value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("BINANCE_MARKET", "USDM", "usdm"), ("LOG_LEVEL", "Debug", "debug"), ("LOG_FORMAT", "JSON", "json")],
)
def test_a_choice_may_be_written_in_any_case(name, text, value):
    """Choices do not depend on the case."""
    assert getattr(public(**{name: text}).config, name.lower()) == value


def test_all_problems_are_told_at_once():
    """A problem in each source, one between settings and a line that is no setting: all are listed."""
    said = problems(
        {"REDIS_DB": "x"}, "DATA_DAYS=0\nwhat is this\nTIMEFRAME=1s", BINANCE_MARKET="usdm", LOG_LEVEL="loud"
    )
    starts = [problem.split(":")[0] for problem in said]
    assert starts == [
        "config.txt line 2",
        "REDIS_DB (flag --redis-db)",
        "DATA_DAYS (config.txt line 1)",
        "LOG_LEVEL (environment)",
        "TIMEFRAME (config.txt line 3)",
    ]


# Keys


@pytest.mark.parametrize("given", [{}, {"PUBLIC_DATA": "false"}])
def test_keys_are_required_without_public_data(given):
    """Without keys and without --public both keys are reported missing, with the way out."""
    with pytest.raises(tet.ConfigError) as caught:
        resolve(**given)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [*KEYS]
    assert all("missing" in problem and "--public" in problem for problem in caught.value.problems)


@pytest.mark.parametrize("name", KEYS)
def test_one_key_without_the_other_is_not_enough(name):
    """The one that is missing is named, and only that."""
    with pytest.raises(tet.ConfigError) as caught:
        resolve(**{other: text for other, text in KEYS.items() if other != name})
    assert [problem.split(":")[0] for problem in caught.value.problems] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "your_api_key_here",
        "YOUR-SECRET",
        "<key>",
        "[your key]",
        "changeme",
        "change_me",
        "xxx",
        "XXXXXXXX",
        "***",
        "...",
        "TODO",
    ],
)
def test_a_placeholder_counts_as_missing(text):
    """A key left as the example file has it is missing, in every source; the next source is asked."""
    with pytest.raises(tet.ConfigError, match="BINANCE_API_KEY: missing"):
        resolve(**KEYS | {"BINANCE_API_KEY": text})
    resolved = resolve({"BINANCE_API_KEY": text}, "BINANCE_API_KEY=real", **KEYS | {"BINANCE_API_KEY": text})
    assert resolved.config.binance_api_key == "real"


@pytest.mark.parametrize("text", ["xx", "myyour_key", "a<b>", "todo1", "x-xxx"])
def test_what_only_resembles_a_placeholder_is_a_key(text):
    """A key that merely contains such a word is taken."""
    assert resolve(**KEYS | {"BINANCE_API_KEY": text}).config.binance_api_key == text


def test_a_placeholder_elsewhere_is_a_value():
    """Only secrets know placeholders."""
    assert public(LOG_FILE="xxx").config.log_file == "xxx"


@pytest.mark.parametrize(
    ("given", "expected"),
    [(KEYS, True), (KEYS | PUBLIC, False), (PUBLIC, False)],
    ids=["keys", "both", "none"],
)
def test_keys_are_used_only_without_public_data(given, expected):
    """Signed calls are made only with both keys and without --public."""
    assert resolve(**given).config.has_keys is expected


# Secrets


def test_no_secret_is_shown_of_a_good_configuration():
    """Neither the table nor a single setting nor a warning gives a key or password away."""
    given = KEYS | {"REDIS_PASSWORD": "pw-111"}
    resolved = resolve({**given, "REDIS_ADDR": "redis://anna:pw-222@h:1"}, KLINE_TTL="1")
    shown = everything_shown(resolved)
    for secret in (*KEYS.values(), "pw-111", "pw-222"):
        assert secret not in shown
    assert "redis://***@h:1" in shown


def test_no_secret_is_told_in_a_problem():
    """Keys and passwords that are wrong, or stand on a line that is wrong, are not repeated."""
    given = {"BINANCE_API_KEY": "k-111 x", "BINANCE_SECRET_KEY": "s-222 x", "REDIS_ADDR": "u:p-333@h"}
    said = problems({}, "REDIS_PASSWORD p-444\nBINANCE_API_KEY: k-555\nKEY_API=k-666", **given)
    assert len(said) == 5
    assert not any(secret in " ".join(said) for secret in ("111", "222", "333", "444", "555", "666"))


def test_a_missing_secret_shows_as_not_set():
    """The table shows whether a secret is set."""
    config = public(REDIS_PASSWORD="pw").config
    assert tet.shown("REDIS_PASSWORD", config) == "***"
    assert tet.shown("BINANCE_API_KEY", config) == "not set"


def test_config_knows_its_secrets_longest_first():
    """All secrets are listed for the log to blot out, the longest first, the one in the URL included."""
    config = resolve(**KEYS, REDIS_PASSWORD="pw", REDIS_ADDR="redis://u:pw-in-url@h").config
    assert config.secrets == ("secret-9a8b7c", "key-0f1e2d", "pw-in-url", "pw")


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        ({"BINANCE_API_KEY": "k"}, "--api-key shows in the process list; BINANCE_API_KEY"),
        ({"BINANCE_SECRET_KEY": "k"}, "--secret-key shows in the process list; BINANCE_SECRET_KEY"),
        ({"REDIS_ADDR": "redis://:pw@h"}, "--redis shows its password"),
    ],
)
def test_a_secret_in_a_flag_is_warned_of(flags, warned):
    """A secret on the command line is taken, with one warning that names the safer way."""
    (warning,) = public(flags).warnings
    assert warning.startswith(warned)
    assert "safer" in warning
    assert public(**flags).warnings == ()


# Addresses


NODES = "a:1,redis://u:pw-333@b:2"


def test_several_nodes_are_taken_and_their_passwords_are_masked():
    """Comma-separated, each as host:port or URL."""
    config = public(REDIS_ADDR=NODES, REDIS_MODE="cluster", REDIS_DB="0").config
    assert config.redis_addr == "redis://a:1,redis://u:pw-333@b:2"
    assert config.secrets == ("pw-333",)
    assert tet.shown("REDIS_ADDR", config) == "redis://a:1,redis://***@b:2"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"REDIS_ADDR": NODES},
            "REDIS_ADDR (environment): found 2 nodes; allowed with REDIS_MODE=single: one",
        ),
        (
            {"REDIS_MODE": "cluster"},
            "REDIS_DB (default): found database 1; allowed with REDIS_MODE=cluster: 0",
        ),
        ({"REDIS_MODE": "cluster", "REDIS_DB": "0", "REDIS_ADDR": "redis://h/2"}, "REDIS_ADDR (environment)"),
        ({"REDIS_MODE": "sentinel"}, "REDIS_SENTINEL_MASTER: missing; set it"),
        (
            {"REDIS_MODE": "cluster", "REDIS_DB": "0", "REDIS_ADDR": "embedded"},
            "REDIS_ADDR (environment): found 'embedded'; allowed with REDIS_MODE=cluster: host:port",
        ),
        (
            {"REDIS_MODE": "sentinel", "REDIS_SENTINEL_MASTER": "m", "REDIS_ADDR": "unix:///s"},
            "REDIS_ADDR (environment): found 'unix:///s'; allowed with REDIS_MODE=sentinel: host:port",
        ),
    ],
)
def test_what_does_not_fit_the_mode_of_redis_is_refused(given, problem):
    """One problem, which says what is allowed."""
    (said,) = problems(**given)
    assert said.startswith(problem)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({}, "https://api.binance.com"),
        ({"PUBLIC_DATA": "true"}, "https://data-api.binance.vision"),
        ({"BINANCE_MARKET": "usdm"}, "https://fapi.binance.com"),
        ({"BINANCE_MARKET": "usdm", "PUBLIC_DATA": "true"}, "https://fapi.binance.com"),
        ({"BINANCE_MARKET": "coinm", "SYMBOLS": "*/USD"}, "https://dapi.binance.com"),
        ({"BINANCE_MARKET": "us"}, "https://api.binance.us"),
        ({"BINANCE_TESTNET": "true", "PUBLIC_DATA": "true"}, "https://testnet.binance.vision"),
        ({"BINANCE_MARKET": "usdm", "BINANCE_DEMO_MODE": "true"}, "https://demo-fapi.binance.com"),
        ({"BINANCE_BASE_URL": "https://h:8/x/", "PUBLIC_DATA": "true"}, "https://h:8/x"),
        ({"BINANCE_BASE_URL": "https://[::1]:8"}, "https://[::1]:8"),
    ],
)
def test_the_address_of_the_exchange(given, address):
    """By default it is that of the market, for spot without keys that of public data."""
    assert resolve(**KEYS | given).config.binance_base_url == address


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"BINANCE_TESTNET": "true", "BINANCE_DEMO_MODE": "true"},
            "BINANCE_DEMO_MODE (flag --demo-mode): allowed without BINANCE_TESTNET only",
        ),
        (
            {"BINANCE_MARKET": "us", "BINANCE_TESTNET": "true"},
            "BINANCE_TESTNET (flag --testnet): us has none; allowed with spot or usdm or coinm",
        ),
        (
            {"BINANCE_MARKET": "coinm"},
            "SYMBOLS: missing; coinm has none of the default pairs; its own are BTC/USD and the like: */USD",
        ),
        (
            {"BINANCE_MARKET": "coinm", "SYMBOLS": "*/USD", "FIELDS": "all"},
            "FIELDS (flag --fields): allowed with BINANCE_MARKET=coinm: ohlcv; its rows have others",
        ),
        (
            {"BINANCE_MARKET": "coinm", "SYMBOLS": "*/USD", "BINANCE_PROXY": "true"},
            "BINANCE_PROXY (flag --proxy): allowed with BINANCE_MARKET spot, usdm or us",
        ),
        (
            {"BINANCE_MARKET": "coinm", "SYMBOLS": "*/USD", "TIMEFRAME": "1s", "DATA_DAYS": "1"},
            "TIMEFRAME (flag --timeframe): found '1s'; allowed with coinm: from 1m up",
        ),
    ],
)
def test_what_a_market_has_not_is_said(given, said):
    """Before anything starts."""
    assert problems(given) == (said,)


@pytest.mark.parametrize("host", ["api.binance.com", "192.168.1.1", "127.0.0.1.example", "localhost.example"])
def test_keys_do_not_travel_in_the_clear(host):
    """Plain http to another machine is refused with keys, and fine without."""
    address = f"http://{host}:8080"
    with pytest.raises(tet.ConfigError) as caught:
        resolve(**KEYS, BINANCE_BASE_URL=address)
    (problem,) = caught.value.problems
    assert problem.startswith(f"BINANCE_BASE_URL (environment): found '{address}'; allowed: https")
    assert resolve(**KEYS, **PUBLIC, BINANCE_BASE_URL=address).config.binance_base_url == address


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_plain_http_to_this_machine_is_allowed_with_keys(host):
    """What does not leave the machine need not be encrypted."""
    assert resolve(**KEYS, BINANCE_BASE_URL=f"http://{host}:8080").config.has_keys


@pytest.mark.parametrize("address", ["https://anna:pw-1@h", "https://anna:p/w-1@h", "http://:pw-1@h"])
def test_an_exchange_address_has_no_password(address):
    """A password in it is refused, and not repeated."""
    (problem,) = problems(BINANCE_BASE_URL=address)
    assert "w-1" not in problem


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("cache", "redis://cache:6379"),
        ("cache:7000", "redis://cache:7000"),
        ("127.0.0.1:7000", "redis://127.0.0.1:7000"),
        ("[::1]:6379", "redis://[::1]:6379"),
        ("[fe80::1]", "redis://[fe80::1]:6379"),
        ("redis://cache", "redis://cache"),
        ("redis://anna:pw@cache:7000/3", "redis://anna:pw@cache:7000/3"),
        ("rediss://cache:7000", "rediss://cache:7000"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_the_forms_of_a_redis_address(text, address):
    """A host, with or without a port, becomes a URL; a URL stays as it is."""
    assert public(REDIS_ADDR=text).config.redis_addr == address


def test_embedded_is_no_host():
    """The word, in any case, asks for a server of our own."""
    assert public(REDIS_ADDR="Embedded").config.redis_addr == tet.EMBEDDED


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("redis://:pw-1@h", "redis://***@h"),
        ("redis://anna:pw-1@h:7000/2", "redis://***@h:7000/2"),
        ("redis://anna:p@w-1@h", "redis://***@h"),
        ("redis://anna:p:w-1@h", "redis://***@h"),
        ("redis://pw-1:@h", "redis://***@h"),
        ("rediss://anna:p%40w-1@h?ssl_ca_certs=/etc/ca.pem", "rediss://***@h?***"),
        ("unix://anna:pw-1@/run/redis.sock", "unix://***@/run/redis.sock"),
        ("redis://h:7000", "redis://h:7000"),
        ("rediss://[::1]:7000/2?ssl_ca_certs=/etc/ca.pem", "rediss://[::1]:7000/2?ssl_ca_certs=/etc/ca.pem"),
        ("unix:///run/tet/redis.sock?db=2", "unix:///run/tet/redis.sock?db=2"),
    ],
)
def test_user_and_password_in_a_redis_address_are_masked(address, masked):
    """The host is shown; the password never, nor what stands before it, which may be a token."""
    resolved = public(REDIS_ADDR=address)
    assert tet.shown("REDIS_ADDR", resolved.config) == masked
    assert "w-1" not in everything_shown(resolved)
    assert all("w-1" in secret for secret in resolved.config.secrets if "pw-1:" not in address)


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("anna:pw-1@h", "***@h"),
        (":pw-1@h:7000", "***@h:7000"),
        ("anna:p/w-1@h", "***"),
        ("redis://:p/w-1@h", "redis://***"),
        ("redis://:p#w-1@h", "redis://***"),
        ("http://anna:pw-1@h", "http://***@h"),
        ("redis://anna:pw-1@", "redis://***@"),
        ("redis://h?password=pw-1", "redis://h?***"),
        ("redis://h:7000/2?username=anna&password=pw-1", "redis://h:7000/2?***"),
        ("redis://h?password=p@w-1", "redis://***"),
        ("redis://h?password=p,w-1", "redis://h?***"),
        ("redis://a:1,redis://b:2?password=pw-1", "redis://a:1,redis://b:2?***"),
        ("redis://h?password=p@w-1,redis://b", "redis://***,redis://b"),
        ("unix:///run/redis.sock?password=pw-1", "unix:///run/redis.sock?***"),
        ("redis://h:pw-1", "redis://***"),
        ("redis://h/pw-1", "redis://h/***"),
        ("h?pw-1", "h?***"),
        ("h:1#pw-1", "h:1#***"),
        ("redis:pw-1", "***"),
    ],
)
def test_the_password_in_a_wrong_redis_address_is_masked(address, masked):
    """A problem repeats of the address what can be no password."""
    (problem,) = problems(REDIS_ADDR=address)
    assert f"found '{masked}'" in problem
    assert "w-1" not in problem


@pytest.mark.parametrize(
    ("name", "text", "masked"),
    [
        ("BINANCE_BASE_URL", "https://pw-1:x@h", "https://***@h"),
        ("BINANCE_BASE_URL", "https://h/api?token=pw-1", "https://h/api?***"),
        ("BINANCE_STREAM_URL", "wss://h/pw-1/ws/btcusdt@kline_1m", "wss://***"),
        ("BINANCE_STREAM_URL", "wss://h?token=pw-1", "wss://h?***"),
        ("DATA_DAYS", "redis://:pw-1@h", "redis://***@h"),
        ("SYMBOLS", "https://h?token=pw-1", "https://h?***"),
    ],
)
def test_a_token_in_a_wrong_address_is_masked(name, text, masked):
    """Wherever an address stands, no more of it is repeated than where it leads."""
    (problem,) = problems(**{name: text})
    assert f"found '{masked}'" in problem
    assert "pw-1" not in problem


def test_a_token_in_the_path_of_an_address_is_not_shown():
    """A gateway may have its token there; which path it is nobody needs to see."""
    resolved = public(BINANCE_BASE_URL="https://gateway.example/pw-1/x", BINANCE_STREAM_URL="wss://h/pw-1")
    assert "https://gateway.example/***" in everything_shown(resolved)
    assert "pw-1" not in everything_shown(resolved)
    (problem,) = problems(BINANCE_BASE_URL="http://h/pw-1", PUBLIC_DATA="false", **KEYS)
    assert "found 'http://h/***'" in problem


@pytest.mark.parametrize(("text", "address"), [("0.0.0.0:80", ("0.0.0.0", 80)), ("[::1]:80", ("::1", 80))])
def test_a_listen_address_is_a_host_and_a_port(text, address):
    """HTTP_ADDR is taken apart; off loopback a warning says who can read it."""
    resolved = public(HTTP_ADDR=text)
    assert resolved.config.http_addr == address
    on_loopback = address[0] in ("127.0.0.1", "::1", "localhost")
    assert [warning.split()[0] for warning in resolved.warnings] == ([] if on_loopback else ["HTTP_ADDR"])


# Symbols and timeframes


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("BTC/USDT,ETH/USDT", ("BTC/USDT", "ETH/USDT")),
        ("btc-usdt, eth_usdt", ("BTC/USDT", "ETH/USDT")),
        ("BTCUSDT ethusdt", ("BTCUSDT", "ETHUSDT")),
        ("BTC/USDT,btc_usdt,BTC-USDT", ("BTC/USDT",)),
        (" ,BTC/USDT,,1000SATS/USDT, ", ("BTC/USDT", "1000SATS/USDT")),
        ("A" * 30, ("A" * 30,)),
    ],
)
def test_the_spellings_of_a_pair(text, symbols):
    """Slash, dash, underscore or nothing, any case, commas or blanks; doubles count once."""
    assert public(SYMBOLS=text).config.symbols == symbols


def test_each_wrong_pair_is_named():
    """The problem names the wrong pairs and leaves out the right ones."""
    (problem,) = problems(SYMBOLS="BTC/USDT,ETH//USDT,X.Y")
    assert "(not a pair: ETH//USDT, X.Y)" in problem


@pytest.mark.parametrize("name", tet.TIMEFRAMES)
def test_every_interval_of_binance_is_a_timeframe(name):
    """Each interval is taken under its own name."""
    (timeframe,) = public(TIMEFRAME=name, DATA_DAYS="1").config.timeframe
    assert timeframe.name == name


def test_timeframes_are_case_sensitive_and_keep_their_order():
    """1M is a month and 1m a minute; several are kept as given, doubles once."""
    timeframes = public(TIMEFRAME="1M, 1m,15m 1M").config.timeframe
    assert [timeframe.name for timeframe in timeframes] == ["1M", "1m", "15m"]
    assert timeframes[0].step_ms > 28 * timeframes[1].step_ms * 1440


@pytest.mark.parametrize(
    ("text", "meant"), [("15min", "15m"), ("1hour", "1h"), ("30M", "30m"), ("1week", "1w"), ("1h,1day", "1d")]
)
def test_a_mistyped_timeframe_brings_a_hint(text, meant):
    """The nearest right name is offered."""
    (problem,) = problems(TIMEFRAME=text)
    assert f"did you mean {meant}?" in problem


def test_usdm_has_no_candles_of_a_second():
    """1s is refused on USD-M futures, also among others, and 1m is not."""
    (problem,) = problems({"TIMEFRAME": "1m,1s"}, BINANCE_MARKET="usdm", DATA_DAYS="1")
    assert problem == "TIMEFRAME (flag --timeframe): found '1s'; allowed with usdm: from 1m up"
    assert public(TIMEFRAME="1m", BINANCE_MARKET="usdm").config.binance_market == "usdm"


@pytest.mark.parametrize(
    ("timeframe", "days", "fits"),
    [("1s", 11, True), ("1s", 12, False), ("1m", 694, True), ("1m", 695, False)],
)
def test_a_window_of_more_than_a_million_candles_is_refused(timeframe, days, fits):
    """What Redis could not hold is refused, naming the timeframe at fault."""
    given = {"TIMEFRAME": f"1d,{timeframe}", "DATA_DAYS": str(days)}
    if fits:
        assert public(**given).config.data_days == days
    else:
        (problem,) = problems(**given)
        assert problem.startswith(f"DATA_DAYS (environment): found {days} days of {timeframe}; allowed:")


# Cautions


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ({"UPDATE_INTERVAL": "541"}, ["UPDATE_INTERVAL 541 s is above MAX_DATA_AGE 540 s"]),
        ({"UPDATE_INTERVAL": "540"}, []),
        ({"KLINE_TTL": "539"}, ["KLINE_TTL 539 s is below MAX_DATA_AGE 540 s"]),
        ({"KLINE_TTL": "540"}, []),
        ({"REDIS_ADDR": "embedded", "REDIS_PASSWORD": "x"}, ["REDIS_PASSWORD is not used"]),
        ({"REDIS_ADDR": "embedded"}, []),
        ({"REDIS_PASSWORD": "x"}, []),
        ({"BINANCE_PROXY": "true", "FIELDS": "all"}, ["BINANCE_PROXY does nothing without HTTP_ADDR"]),
    ],
)
def test_settings_that_work_against_each_other_are_warned_of(given, warned):
    """What is allowed but hardly meant brings a warning that names both settings."""
    warnings = public(**given).warnings
    assert len(warnings) == len(warned)
    assert all(warning.startswith(text) for warning, text in zip(warnings, warned, strict=True))


# The config file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("REDIS_PASSWORD=secret # a comment", "secret"),
        ("REDIS_PASSWORD=sec#ret", "sec#ret"),
        ("REDIS_PASSWORD='sec # ret' # a comment", "sec # ret"),
        ('REDIS_PASSWORD="sec # ret"', "sec # ret"),
        ("REDIS_PASSWORD = secret", "secret"),
        ("export REDIS_PASSWORD=secret", "secret"),
        ("REDIS_PASSWORD=$ecret${HOME}$HOME", "$ecret${HOME}$HOME"),
        ('REDIS_PASSWORD="${HOME}"', "${HOME}"),
        ("REDIS_PASSWORD=a=b", "a=b"),
        ("\ufeffREDIS_PASSWORD=secret", "secret"),
        ("# first\r\nREDIS_PASSWORD=secret\r\nREDIS_DB=3\r\n", "secret"),
        ("REDIS_PASSWORD=geheim-ß", "geheim-ß"),
        ("REDIS_PASSWORD=one\nREDIS_PASSWORD=two", "two"),
        ("REDIS_PASSWORD=", None),
    ],
)
def test_the_syntax_of_the_file(text, value):
    """Comments, quotes, export, a byte order mark and CRLF are understood; a dollar is a dollar."""
    assert public(file=text).config.redis_password == value


@pytest.mark.parametrize(
    ("before", "line"),
    [
        ("", 1),
        ("\n\n", 3),
        ("# one\n\n  # two\n", 4),
        ("REDIS_DB=1 # one\n", 2),
        ('SYMBOLS="BTC/USDT,\nETH/USDT" # two lines\n\n', 4),
        ("\r\n# one\r\n", 3),
        ("NO_SUCH_NAME=1\n", 2),
    ],
)
def test_a_problem_names_the_line(before, line):
    """The line is the one the setting stands on, whatever stands before it."""
    (problem,) = problems({}, f"{before}DATA_DAYS=0\n")
    assert problem.startswith(f"DATA_DAYS (config.txt line {line}):")


@pytest.mark.parametrize(
    "line", ["REDIS_DB", "REDIS_DB 5", "REDIS_DB: 5", "=5", 'REDIS_DB="5', "[redis]", "two words=5"]
)
def test_a_line_that_is_no_setting_is_a_problem(line):
    """It is named by its line, with what a setting looks like."""
    said = problems({}, f"# one\n{line}\n")
    assert said == ("config.txt line 2: not a setting; allowed: NAME=value, or a comment after #",)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("UPDATE_INTERVALL", "; did you mean UPDATE_INTERVAL?"),
        ("redis_addr", "; did you mean REDIS_ADDR?"),
        ("API_KEY", "; did you mean BINANCE_API_KEY?"),
        ("binance_api_secret", "; did you mean BINANCE_SECRET_KEY?"),
        ("QQQQ", ""),
    ],
)
def test_an_unknown_name_is_a_warning_with_the_nearest_known_one(name, hint):
    """A stranger in the file does not stop anything, and a typo is found."""
    warnings = public(file=f"\n{name}=1").warnings
    assert warnings == (f"config.txt line 2: unknown setting {name}{hint}",)


def test_an_unknown_name_in_the_environment_is_no_business_of_ours():
    """The environment is full of other programs' names; with public data no key is missed either."""
    assert public(UPDATE_INTERVALL="1", API_KEY="k", SECRET_KEY="s", PORT="80", INTERVAL="5m").warnings == ()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BINANCE_API_SECRET", "BINANCE_SECRET_KEY"),
        ("BINANCE_SECRET", "BINANCE_SECRET_KEY"),
        ("BINANCE_KEY", "BINANCE_API_KEY"),
        ("REDIS_HOST", "REDIS_ADDR=host:port"),
        ("REDIS_PORT", "REDIS_ADDR=host:port"),
        ("REDIS_URL", "REDIS_ADDR=redis://host:port"),
        ("REDIS_URI", "REDIS_ADDR=redis://host:port"),
        ("REDIS_PASS", "REDIS_PASSWORD"),
        ("REDIS_USER", "REDIS_USERNAME"),
        ("REDIS_DATABASE", "REDIS_DB"),
    ],
)
def test_a_name_that_every_other_program_has_brings_the_right_hint(name, meant):
    """In the file and, where ours is not set, in the environment; what it holds is not repeated."""
    (warning,) = public(file=f"{name}=geheim").warnings
    assert warning == f"config.txt line 1: unknown setting {name}; did you mean {meant}?"
    (warning,) = public(**{name: "geheim"}).warnings
    assert warning == f"environment: unknown setting {name}; did you mean {meant}?"
    setting = meant.partition("=")[0]
    assert public(**{name: "geheim", setting: RIGHT.get(setting, WHOLE_NUMBERS)[0]}).warnings == ()
    assert public(**{name: ""}).warnings == ()


@pytest.mark.parametrize(
    ("name", "meant"), [("API_KEY", "BINANCE_API_KEY"), ("SECRET_KEY", "BINANCE_SECRET_KEY")]
)
def test_a_missing_key_under_another_name_is_found(name, meant):
    """Where keys are wanted and missing, the environment is searched for what others call them."""
    with pytest.raises(tet.ConfigError) as caught:
        resolve(**{name: "geheim"})
    assert caught.value.warnings == (f"environment: unknown setting {name}; did you mean {meant}?",)
    assert any(problem.startswith(f"{meant}: missing") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("name", "meant"), [("PAIRS", "SYMBOLS"), ("INTERVAL", "TIMEFRAME"), ("port", "HTTP_ADDR")]
)
def test_a_common_name_in_the_file_brings_the_right_hint(name, meant):
    """What says too little to be looked for in the environment."""
    (warning,) = public(file=f"{name}=1").warnings
    assert f"unknown setting {name}; did you mean {meant}" in warning


# Quotes, backslashes and homes


@pytest.mark.parametrize("text", ['"{}"', "'{}'", ' "{}" ', '"{}" # a comment'])
@pytest.mark.parametrize(
    ("name", "value"),
    [("BINANCE_API_KEY", "key-a"), ("REDIS_PASSWORD", "p'w"), ("SYMBOLS", "BTC/USDT"), ("DATA_DAYS", "7")],
)
def test_quotes_that_nobody_took_off_are_taken_off(name, value, text):
    """``docker run --env-file`` leaves them on, and comments behind them; one warning names the settings."""
    value = value.replace("'", "") if text.startswith("'") else value
    resolved = resolve(**KEYS | {name: text.format(value)})
    assert tet.shown(name, resolved.config) == (value if not OPTIONS[name].secret else "***")
    assert getattr(resolved.config, name.lower()) == OPTIONS[name].parse(value)
    assert resolved.warnings == (
        f"environment: {name} stood in quotes, which were taken off; write it without",
    )


def test_quotes_of_a_web_page_are_taken_off_in_every_source():
    """Which no reader of dotenv files knows."""
    for given in (
        {"file": "REDIS_DB=\u201c7\u201d"},
        {"REDIS_DB": "\u20187\u2019"},
        {"flags": {"REDIS_DB": "\u201c7\u201d"}},
    ):
        resolved = public(**given)
        assert resolved.config.redis_db == 7
        assert "REDIS_DB stood in quotes, which were taken off" in resolved.warnings[0]


def test_quotes_around_nothing_or_a_placeholder_are_nothing():
    """An empty value stays empty, and a placeholder one."""
    with pytest.raises(tet.ConfigError, match="BINANCE_API_KEY: missing"):
        resolve(**KEYS | {"BINANCE_API_KEY": '"your_api_key"'})
    assert public(REDIS_PASSWORD='""').config.redis_password is None


@pytest.mark.parametrize("text", ["\"'pw'\"", "'\"pw\"'"])
def test_quotes_in_quotes_are_part_of_the_value(text):
    """Who really has a password in quotes gives it in a second pair, in the file and in the environment."""
    assert public(REDIS_PASSWORD=text).config.redis_password == text[1:-1]
    assert public(file=f"REDIS_PASSWORD={text}").config.redis_password == text[1:-1]


@pytest.mark.parametrize("text", ['"pw', 'pw"', "p'w'w", '"a" and "b"'])
def test_other_quotes_stay(text):
    """Only a pair around the whole value is taken off."""
    assert public(REDIS_PASSWORD=text).config.redis_password == text


@pytest.mark.parametrize("name", ["LOG_FILE", "DATA_DIR"])
def test_a_path_may_begin_at_home(name, monkeypatch):
    """``~`` is expanded, where there is such a home."""
    monkeypatch.setenv("HOME", "/home/anna")
    assert getattr(public(**{name: "~/x/tet"}).config, name.lower()) == "/home/anna/x/tet"
    (problem,) = problems(**{name: "~nobody-of-that-name/tet"})
    assert problem.startswith(
        f"{name} (environment): found '~nobody-of-that-name/tet' (there is no such home"
    )
    assert getattr(public(**{name: "a~b"}).config, name.lower()) == "a~b"


@pytest.mark.parametrize("name", ["LOG_FILE", "DATA_DIR"])
def test_a_path_whose_backslashes_became_control_characters_is_refused(name):
    """In double quotes a Windows path loses them; in single quotes, or without, it does not."""
    windows = "C:\\new\\table\\tet"
    (problem,) = problems(file=f'{name}="{windows}"')
    assert "control characters in it: backslashes in double quotes" in problem
    assert "single quotes" in problem
    for right in (f"{name}='{windows}'", f"{name}={windows}", f'{name}="C:/new/table/tet"'):
        assert getattr(public(file=right).config, name.lower()).replace("/", "\\") == windows


def test_backslashes_that_became_control_characters_elsewhere_are_warned_of():
    """A password may have a tab in it, yet hardly one that stands there as a backslash and a t."""
    resolved = public(file='REDIS_PASSWORD="a\\tb"')
    assert resolved.config.redis_password == "a\tb"
    assert resolved.warnings == (
        "config.txt line 1: backslashes in REDIS_PASSWORD have become control characters, as double quotes "
        "do; write it in single quotes",
    )
    assert public(file="REDIS_PASSWORD='a\\tb'").warnings == ()
    assert public(file='SYMBOLS="BTC/USDT,\nETH/USDT"').warnings == ()


# Addresses with a path, and contracts


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("BINANCE_BASE_URL", "https://api.binance.com/api/v3", "leave out /api/v3"),
        ("BINANCE_BASE_URL", "https://api.binance.com/api/v3/", "leave out /api/v3"),
        ("BINANCE_BASE_URL", "https://api.binance.com/api", "leave out the path"),
        ("BINANCE_BASE_URL", "https://fapi.binance.com/fapi/v1/klines", "leave out /fapi/v1"),
        ("BINANCE_BASE_URL", "https://gateway.example/x/api/v3", "leave out /api/v3"),
        ("BINANCE_BASE_URL", "https://api.binance.com/api/v3/klines?symbol=BTCUSDT", "leave out /api/v3"),
        ("BINANCE_STREAM_URL", "wss://stream.binance.com:9443/ws", "leave out /ws"),
        ("BINANCE_STREAM_URL", "wss://stream.binance.com:9443/stream/", "leave out /stream"),
        ("BINANCE_STREAM_URL", "wss://fstream.binance.com/market/ws", "leave out /ws"),
        ("BINANCE_STREAM_URL", "wss://stream.binance.com/stream?streams=a@b", "leave out /stream"),
    ],
)
def test_a_path_that_the_service_adds_itself_is_refused(name, text, said):
    """As the exchange's documentation has it; the sentence says what to leave out."""
    (problem,) = problems(**{name: text})
    assert said in problem


def test_a_path_of_a_gateway_is_kept():
    """What is not the exchange's own path is somebody's; slashes at the end do not count."""
    assert public(BINANCE_BASE_URL="https://h/x/api/").config.binance_base_url == "https://h/x/api"
    assert (
        public(BINANCE_BASE_URL="https://api.binance.com/").config.binance_base_url
        == "https://api.binance.com"
    )
    config = public(BINANCE_STREAM_URL="wss://fstream.binance.com/market/").config
    assert config.binance_stream_url == "wss://fstream.binance.com/market"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("BTCUSDT_251226", "BTCUSDT_251226 is a delivery contract"),
        ("btcusdt-251226", "btcusdt-251226 is a delivery contract"),
        ("BTC/USDT_251226", "is a delivery contract"),
        ("BTCUSD_PERP", "is a perpetual contract"),
        ("BTC-USDT-SWAP", "is a perpetual contract"),
        ("BTC/USDT:USDT", "BTC/USDT:USDT is ccxt's name of a perpetual contract"),
        ("BTC/USDT:USDT-251226", "is a contract with a date"),
        ("BTC-251226-100000-C", "is an option"),
        ("BTCUSDT.P", "is TradingView's name"),
        ("BINANCE:BTCUSDT", "is TradingView's name"),
    ],
)
def test_a_contract_is_named_as_what_it_is(text, said):
    """Beside a pair that is right, with what is kept instead."""
    (problem,) = problems(SYMBOLS=f"ETH/USDT,{text}")
    assert said in problem
    assert "BINANCE_MARKET=usdm" in problem or "BTCUSDT" in problem


def test_a_name_set_twice_is_warned_of():
    """The later line counts, and the warning names it."""
    resolved = public(file="REDIS_DB=2\nREDIS_DB=3")
    assert resolved.config.redis_db == 3
    assert resolved.warnings == ("config.txt line 2: REDIS_DB is set again; this line counts",)


@pytest.mark.parametrize(
    ("text", "mode", "warned"),
    [
        ("REDIS_PASSWORD=pw", 0o644, True),
        ("REDIS_PASSWORD=pw", 0o640, True),
        ("BINANCE_API_KEY=k", 0o604, True),
        ("REDIS_PASSWORD=pw", 0o600, False),
        ("REDIS_PASSWORD=pw", 0o400, False),
        ("REDIS_DB=3", 0o644, False),
    ],
)
def test_a_secret_that_others_may_read_is_warned_of(text, mode, warned):
    """A file with a secret is for its owner alone; the warning has the command that mends it."""
    warnings = tet.resolve_config(PUBLIC, {}, written(text, mode)).warnings
    assert ["chmod 600 config.txt" in warning for warning in warnings] == [True] * warned


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.txt", "No such file or directory"),
        (".", "Is a directory"),
        ("latin1.txt", "it is not UTF-8 text"),
        ("utf-16.txt", "it is UTF-16, or no text; save it as UTF-8"),
        ("utf-16-le.txt", "it is UTF-16, or no text; save it as UTF-8"),
        ("utf-16-be.txt", "it is UTF-16, or no text; save it as UTF-8"),
        ("\0", "embedded null byte"),
        ("/dev/zero", "it has more than 1 MB"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(path, reason):
    """A missing file, a directory and what is no text are named as such."""
    Path("latin1.txt").write_bytes("REDIS_PASSWORD=geheim-ß".encode("latin-1"))
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        Path(f"{encoding}.txt").write_text("REDIS_DB=3\n", encoding=encoding)
    with pytest.raises(tet.ConfigError) as caught:
        tet.resolve_config(PUBLIC, {}, Path(path))
    assert caught.value.problems == (f"--config {path}: cannot be read: {reason}",)


@pytest.mark.parametrize(
    ("present", "given", "expected"),
    [
        ((), None, None),
        ((".env",), None, ".env"),
        ((".env", "config.txt"), None, "config.txt"),
        (("config.txt",), "other.txt", "other.txt"),
    ],
)
def test_which_file_is_read(present, given, expected):
    """The one asked for, else config.txt, else .env, else none."""
    for name in present:
        Path(name).touch()
    assert tet.find_config_file(given) == (expected and Path(expected))


# The table


def test_the_table_has_a_row_for_each_setting_within_80_columns():
    """Each setting has its row, in order, with value and origin; long lists are wrapped."""
    resolved = public({"REDIS_DB": "3"}, "\nSYMBOLS=" + ",".join(tet.DEFAULT_SYMBOLS[:9]), DATA_DAYS="7")
    lines = table_of(resolved).splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == [*OPTIONS]
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["REDIS_DB"] == ["3", "flag", "--redis-db"]
    assert rows["DATA_DAYS"] == ["7", "environment"]
    assert rows["TIMEFRAME"] == ["15m", "default"]
    assert rows["SYMBOLS"][-3:] == ["config.txt", "line", "2"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("TIMEFRAME", "15m, 1h", "15m,1h"),
        ("SYMBOLS", "BTC/USDT ETH/USDT", "BTC/USDT,ETH/USDT"),
        ("CLOSED_ONLY", "yes", "true"),
        ("ADAPTIVE_INTERVAL", "off", "false"),
        ("HTTP_ADDR", "127.0.0.1:80", "127.0.0.1:80"),
        ("API_REQUESTS_PER_SEC", "2.50", "2.5"),
        ("LOG_FILE", "", "not set"),
        ("REDIS_ADDR", "cache", "redis://cache:6379"),
    ],
)
def test_a_setting_is_shown_as_it_could_be_written(name, text, expected):
    """Shown values read like settings, not like Python."""
    assert tet.shown(name, public(**{name: text}).config) == expected


# The command line


NOBODY = "--base-url=http://127.0.0.1:9"  # for --check-config, which asks the exchange
UNASKED = "SYMBOLS: the exchange could not be asked"


def run(*arguments):
    """Run the command in this process; its output holds what goes to stderr too."""
    return CliRunner().invoke(tet.main, arguments)


def test_help_names_every_flag():
    """--help ends with 0 and has each flag and of the defaults."""
    result = run("--help")
    assert result.exit_code == 0
    flags = [option.flag for option in tet.OPTIONS if option.flag]
    words = result.output.split()
    assert [
        flag for flag in [*flags, "--config", "--once", "--check-config", "--version"] if flag not in words
    ] == []
    assert "[localhost:6379]" in words


def test_version_is_the_module_version():
    """--version prints the name and the version."""
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"tet-data-service {tet.__version__}\n")


def test_check_config_shows_the_settings_in_force():
    """--check-config ends with 0 and prints the table, and nothing is started."""
    result = run("--public", "--redis-db=3", NOBODY, "--check-config")
    assert result.exit_code == 0
    flags = {"PUBLIC_DATA": "true", "REDIS_DB": "3", "BINANCE_BASE_URL": "http://127.0.0.1:9"}
    assert result.output.startswith(f"{table_of(resolve(flags))}\n\n{UNASKED}")


def test_check_config_prints_warnings():
    """Warnings follow the table."""
    path = written("REDIS_DBB=3")
    result = run("--public", f"--config={path}", NOBODY, "--check-config")
    assert result.exit_code == 0
    assert "warning: config.txt line 1: unknown setting REDIS_DBB; did you mean REDIS_DB?" in result.output


def test_check_config_refuses_what_a_start_would():
    """--check-config ends with 2 where a start would, without the table."""
    result = run("--check-config")
    assert result.exit_code == 2
    assert "error: BINANCE_API_KEY: missing" in result.output
    assert "UPDATE_INTERVAL  " not in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--public"], "true"),
        (["--public=true"], "true"),
        (["--public=false"], "false"),
        (["--public=no"], "false"),
        ([], "true"),
    ],
)
def test_a_switch_may_have_a_value(arguments, expected):
    """A switch alone means true, and a value after = can take back what the file says."""
    written("PUBLIC_DATA=true\nBINANCE_API_KEY=k\nBINANCE_SECRET_KEY=s")
    result = run(*arguments, NOBODY, "--check-config")
    rows = [line.split() for line in result.output.splitlines() if line]
    assert [row[1] for row in rows if row[0] == "PUBLIC_DATA"] == [expected]


@pytest.mark.parametrize("argument", ["--publik", "--redis-password=x", "stray", "--config"])
def test_a_wrong_command_line_ends_with_2(argument):
    """An unknown flag, a stray word and a flag without its value are usage errors."""
    result = run("--public", "--check-config", argument)
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_a_mistyped_flag_brings_a_hint():
    """The nearest flag is offered."""
    assert "--interval" in run("--public", "--intervall=3").output


@pytest.mark.parametrize("source", ["config.txt", ".env", "environment"])
def test_the_program_reads_its_settings_from(source, monkeypatch):
    """The default files and the environment are read without being asked for."""
    if source == "environment":
        monkeypatch.setenv("DATA_DAYS", "7")
    else:
        Path(source).write_text("DATA_DAYS=7\n")
    table = run("--public", NOBODY, "--check-config").output
    (row,) = [line.split() for line in table.splitlines() if line.startswith("DATA_DAYS")]
    assert row == ["DATA_DAYS", "7", *([source] if source == "environment" else [source, "line", "1"])]


def test_a_bad_start_tells_all_problems_and_starts_nothing(exchange, redis_url, reader):
    """Exit 2, each problem on stderr on a line of its own, nothing on stdout, no request and no key."""
    addresses = [f"--base-url={exchange.url}", f"--redis={redis_url}"]
    result = run_program("--public", "--days=0", "--interval=x", *addresses, LOG_LEVEL="loud")
    lines = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (2, "")
    assert [line.split(" (")[0] for line in lines[:-1]] == [
        "error: UPDATE_INTERVAL",
        "error: DATA_DAYS",
        "error: LOG_LEVEL",
    ]
    assert lines[-1] == "Nothing was started. --help lists the settings."
    assert (exchange.requests, reader.keys()) == ([], [])


def test_a_log_file_that_cannot_be_written_ends_with_2():
    """The log file is part of the settings: one in a directory that is not there is refused."""
    result = run("--public", "--log-file=no/such/directory/tet.log")
    assert result.exit_code == 2
    assert "error: LOG_FILE: no/such/directory/tet.log: No such file or directory" in result.output


def path_in(folder, fault):
    """A path in that folder that no file and no folder can have."""
    (folder / "file").touch()
    (folder / "loop").symlink_to(folder / "loop")
    names = {"below a file": "file/x", "too long": "x" * 300, "a loop": "loop/x", "in /proc": "/proc/no/such"}
    return str(folder / names[fault])


@pytest.mark.parametrize("fault", ["below a file", "too long", "a loop", "in /proc"])
@pytest.mark.parametrize("name", ["LOG_FILE", "DATA_DIR"])
def test_a_path_that_cannot_be_ends_with_2(name, fault, exchange, redis_url, tmp_path):
    """Of the log file as of the data folder: the setting is named, nothing is asked, no traceback."""
    given = {name: path_in(tmp_path, fault), "REDIS_ADDR": "embedded" if name == "DATA_DIR" else redis_url}
    done = run_program("--public", "--once", f"--base-url={exchange.url}", **given)
    assert done.returncode == 2
    assert re.search(rf"{name}:? {re.escape(given[name])}: \w", done.stderr)
    assert "Traceback" not in done.stderr
    assert exchange.requests == []


def test_what_the_machine_lacks_is_no_fault_of_a_path():
    """A service manager is to start it again: a full disk may have room later."""
    lacks = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM)
    assert not any(is_path_at_fault(OSError(number, "")) for number in lacks)
    assert is_path_at_fault(FileNotFoundError(errno.ENOENT, ""))


def test_every_flag_is_spelt_with_dashes_and_lower_case():
    """Flags look alike, and no two options share one."""
    flags = [option.flag for option in tet.OPTIONS if option.flag]
    assert len(flags) == len(set(flags))
    assert all(flag.startswith("--") and flag == flag.lower() and "_" not in flag for flag in flags)
