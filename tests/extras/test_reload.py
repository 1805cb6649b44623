"""Settings that change while the service runs: by SIGHUP, or when the config file has changed."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from rig import PROGRAM, Running, clean_environment, eventually, expected_candles, settings, stored
from samples import NOON_MS

import tet_data_service as tet
from tet_core.times import iso_time, parse_iso_time
from tet_extras.logs import LogFormatter
from tet_extras.notices import Notices
from tet_extras.reload import IN_PLACE, Reload, in_force
from tet_extras.simulated_binance import Market, SimulatedBinance

NAMES = [f"P{number:02d}/USDT" for number in range(8)]
LATER = {
    *("binance_base_url", "binance_market", "binance_testnet", "binance_demo_mode", "binance_stream_url"),
    *(
        "live",
        "fields",
        "group",
        "shard",
        "egress",
        "data_days",
        "closed_only",
        "watch_config",
        "metrics_per_symbol",
    ),
    *("redis_addr", "redis_mode", "redis_sentinel_master", "redis_username", "redis_password", "redis_db"),
    *("binance_proxy", "proxy_weight_share", "redis_prefix", "data_dir", "http_addr", "http_token"),
    *("log_format", "log_file", "log_max_mb", "log_backups", "fields"),
}


def test_each_setting_is_applied_in_place_or_named():
    """A new one has to be decided on."""
    names = {option.name.lower() for option in tet.OPTIONS}
    assert names >= IN_PLACE
    assert names - IN_PLACE == LATER


class StandingClock(tet.Clock):
    """A clock that a test moves."""

    seconds = 0.0

    def monotonic(self):
        """What the test says."""
        return self.seconds


def reading(path, **flags):
    """Settings read from a file, and who reads them again."""

    def resolve():
        return tet.resolve_config({"PUBLIC_DATA": "true"} | flags, os.environ, path)

    config = resolve().config
    clock = StandingClock()
    return in_force(config), Reload(clock, config, resolve, tet._conflicts, path), clock


def test_what_is_wrong_with_what_stays_leaves_all_as_it_was(tmp_path, caplog):
    """A timeframe that the new market would have, and the one that stays has not; and the next good file."""
    path = tmp_path / "config.txt"
    path.write_text("BINANCE_MARKET=usdm\nTIMEFRAME=1m\nDATA_DAYS=1\n")
    config, reload, _ = reading(path)
    notices = Notices()
    assert reload.look(config, notices) is None
    path.write_text("BINANCE_MARKET=spot\nTIMEFRAME=1s\nDATA_DAYS=1\nKLINE_TTL=99999\n")
    reload.ask("SIGHUP")
    assert reload.look(config, notices) == frozenset()
    (problem,) = reload.outcome.problems
    assert problem == f"TIMEFRAME ({path} line 2): found '1s'; allowed with usdm: from 1m up"
    assert notices.texts == [f"the settings were not taken over: {problem}"]
    assert (config.kline_ttl, config.timeframe[0].name) == (86400, "1m")
    path.write_text("BINANCE_MARKET=spot\nTIMEFRAME=5m\nDATA_DAYS=2\nKLINE_TTL=99999\n")
    reload.ask("SIGHUP")
    assert reload.look(config, notices) == {"timeframe", "kline_ttl"}
    assert (config.kline_ttl, config.timeframe[0].name, config.data_days) == (99999, "5m", 1)
    assert config.binance_market == "usdm"
    assert reload.outcome.need_restart == [
        "BINANCE_BASE_URL",
        "BINANCE_MARKET",
        "BINANCE_STREAM_URL",
        "DATA_DAYS",
    ]
    assert notices.texts == []
    assert reload.outcome.problems == []


def test_a_watched_file_is_read_once_it_is_whole(tmp_path):
    """Not while somebody writes it, nor while it is gone; each change once."""
    path = tmp_path / "config.txt"
    path.write_text("SYMBOLS=BTC/USDT\n")
    config, reload, clock = reading(path)
    notices = Notices()

    def look():
        clock.seconds += 2.1
        return reload.look(config, notices)

    assert not look()
    path.write_text("SYM")  # half of it
    assert not look()
    path.write_text("SYMBOLS=ETH/USDT\n")
    assert not look()
    assert look() == {"symbols"}
    assert not look()
    path.unlink()
    assert not look()
    assert not look()
    path.with_suffix(".new").write_text("SYMBOLS=BTC/USDT\n")
    path.with_suffix(".new").replace(path)
    assert not look()
    assert look() == {"symbols"}
    assert reload.outcome.by == "--watch-config"
    path.write_text("SYMBOLS=,\nNO=1\n")
    look()
    look()
    assert config.symbols == ("BTC/USDT",)
    assert len(reload.outcome.problems) == 1


def test_what_is_applied_counts_at_once_wherever_it_is_read(redis_url, monkeypatch):
    """The rate, the interval, what Redis needs, and which secrets the log hides."""
    given: dict[str, object] = {"BINANCE_BASE_URL": "http://127.0.0.1:9", "REDIS_ADDR": redis_url}
    given |= {"SYMBOLS": "BTC/USDT", "DATA_DAYS": 30, "TIMEFRAME": "1m", "MARKET_HOURS_OPTIMIZATION": "false"}
    config: Any = in_force(settings(**given))
    formatter = LogFormatter("text", ())
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    monkeypatch.setattr(logging.getLogger("tet"), "handlers", [handler])
    with tet.connect_http(config) as http:
        service = tet.assemble(config, tet.Clock(), http, once=False)

        def needed():
            service.writer.losses.full("a value")
            (text,) = service.store.notices.texts
            service.writer.losses.written("a value")
            return int(re.search(r"need about (\d+) MB", text)[1])

        assert needed() < 20
        given |= {"SYMBOLS": ",".join(NAMES), "UPDATE_INTERVAL": 77, "API_REQUESTS_PER_SEC": 3}
        given |= {"AUDIT_HOURS": 1, "PUBLIC_DATA": "false", "BINANCE_API_KEY": "a" * 64}
        config.config = settings(**given, BINANCE_SECRET_KEY="b" * 64)
        tet.apply_settings(service, frozenset({"symbols", "binance_api_key"}))
        assert needed() > 20
        assert service.binance.gate.rate == 3
        assert service.interval.seconds(NOON_MS) == 77
        assert service.symbols.due_ms == 0
    record = logging.LogRecord("tet", logging.INFO, "", 0, f"{'a' * 64} {'b' * 64}", (), None)
    assert formatter.format(record).endswith(" *** ***")


@pytest.fixture
def exchange():
    """A simulated exchange whose time goes by."""
    with SimulatedBinance(market=Market.random_walk(NAMES)) as simulated:
        yield simulated


def status_at(port):
    """The status that HTTP serves; {} while it does not."""
    with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/api/status") as answer:
        return json.load(answer)
    return {}


def check_what_was_filled(exchange):
    """Three new pairs in two timeframes, two old ones in one, and nothing else anew."""
    asked = [(each.params["symbol"], each.params["interval"]) for each in exchange.asked("klines")]
    filled = {each for each in asked if int(each[0][1:3]) >= 4 or each[1] == "1h"}
    assert len(filled) == 8
    big = [each for each in exchange.asked("klines") if int(each.params["limit"]) > 50]
    assert {(each.params["symbol"], each.params["interval"]) for each in big} <= {
        (symbol, interval) for symbol, interval in filled if interval == "15m"
    }


def check_what_is_said(shown, written, now_ms):
    """Of the settings that were read again, over HTTP and in Redis."""
    assert written["settings"] == shown["settings"]
    assert shown["settings"]["by"] == "SIGHUP"
    assert shown["settings"]["need_restart"] == ["REDIS_DB"]
    assert shown["timeframes"] == ["15m"]
    assert abs(parse_iso_time(shown["settings"]["read"]) - now_ms) < 60_000


def check_that_a_pipe_is_refused(service, path):
    """In place of the config file: nobody writes to it, and nobody waits for that."""
    path.unlink()
    os.mkfifo(path)
    service.process.send_signal(signal.SIGHUP)
    eventually(lambda: service.says("which is read at the start alone"))
    path.unlink()


def check_closed_candles(exchange, value):
    """Those of a value of P03/USDT are the exchange's."""
    truth = expected_candles(exchange, "P03USDT", "15m", parse_iso_time(value["data_start"]))
    closed = {at: each for at, each in value["candles"].items() if at < value["data_end"]}
    assert closed == {at: truth[at] for at in closed}


def test_a_service_takes_new_pairs_and_lets_old_ones_go(exchange, redis_url, reader, tmp_path, free_port):
    """By SIGHUP, while it listens to streams: who stays is neither filled nor connected again.

    A mistake changes nothing; a key is masked from then on; a restart is named; the status has it all.
    """
    path = tmp_path / "config.txt"
    fixed = f"LIVE=true\nDATA_DAYS=1\nBINANCE_STREAM_URL={exchange.stream_url}\n"
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    fixed += f"HTTP_ADDR=127.0.0.1:{free_port}\nBINANCE_BASE_URL={exchange.url}\n"
    fixed += f"REDIS_ADDR={redis_url}\nAPI_REQUESTS_PER_SEC=50\n"

    def become(process, symbols, more="PUBLIC_DATA=true\n"):
        path.write_text(f"{fixed}SYMBOLS={','.join(symbols)}\n{more}")
        process.send_signal(signal.SIGHUP)

    status = partial(status_at, free_port)
    path.write_text(f"{fixed}SYMBOLS={','.join(NAMES[:4])}\nPUBLIC_DATA=true\n")
    with Running(tmp_path, f"--config={path}", CREDENTIALS_DIRECTORY=str(secrets)) as service:
        eventually(lambda: (status().get("live") or {}).get("feeds", {}).get("live") == 4)
        exchange.clear()
        become(service.process, NAMES[2:7], "TIMEFRAME=15m,1h\nPUBLIC_DATA=true\n")
        eventually(lambda: len(reader.keys("tet:kline:1h:*")) == 5)
        eventually(
            lambda: reader.exists(*[f"tet:kline:15m:{name.replace('/', '_')}" for name in NAMES[2:7]]) == 5
        )
        check_what_was_filled(exchange)
        become(service.process, NAMES, "TIMEFRAME=7m\nLOG_LEVEL=loud\nPUBLIC_DATA=true\n")
        eventually(lambda: service.says("settings not taken over"))
        log = service.log.read_text()
        assert log.count("settings not taken over, all stays as it was") == 2
        check_that_a_pipe_is_refused(service, path)
        (secrets / "binance_api_key").write_text(f"{exchange.api_key}\n")
        (secrets / "binance_secret_key").write_text(f"{exchange.secret_key}\n")
        become(service.process, NAMES[3:], "REDIS_DB=2\nLOG_LEVEL=debug\n")
        eventually(lambda: service.says("settings that need a restart"))
        eventually(lambda: status().get("symbols") == NAMES[3:])
        eventually(lambda: status()["live"]["feeds"]["live"] == 5)
        check_what_is_said(status(), json.loads(reader.get("tet:system:status")), exchange.clock.now_ms())
        assert len(exchange.streams.attempts) == 1
        eventually(lambda: service.says("the API key is valid and may only read"))
        assert exchange.asked("apiRestrictions")
        kept = [name.replace("/", "") for name in NAMES[3:]]
        eventually(lambda: json.loads(reader.get("tet:system:claim"))["by"]["symbols"] == kept)
        eventually(lambda: service.says("DEBUG"))
        assert "pairs joined count=3" in service.log.read_text()
        check_closed_candles(exchange, stored(reader, "15m:P03_USDT"))
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(10) == 0
        assert iso_time(exchange.clock.now_ms())[:4] in service.log.read_text()


def test_a_terminal_that_is_gone_still_ends_it(exchange, redis_url, tmp_path):
    """SIGHUP of a terminal that was closed: nobody is left who could have meant the settings."""
    main, terminal = pty.openpty()
    arguments = ("--public", f"--base-url={exchange.url}", f"--redis={redis_url}", "--symbols=P00/USDT")
    log = tmp_path / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments, "--days=1"],
            stdin=terminal,
            stdout=stream,
            stderr=stream,
            env=clean_environment(),
        )
    try:
        eventually(lambda: "cycle" in log.read_text())
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "settings read again" in log.read_text())
        os.close(terminal)
        os.close(main)
        process.send_signal(signal.SIGHUP)
        assert process.wait(10) == 0
    finally:
        process.kill()
    assert "stopping signal=SIGHUP" in Path(log).read_text()
