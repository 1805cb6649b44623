"""What a terminal shows: 80 columns, colours, one line for what many share, commands that can be pasted."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from functools import partial

import pytest
from rig import PROGRAM, FastClock, Running, clean_environment, eventually, run_program, started, unused_port

import tet_data_service as tet
from tet_extras import demo
from tet_extras.report import Report, Row, report_text
from tet_extras.simulated_binance import DEFAULT_PAIRS, Market, SimulatedBinance
from tet_extras.terminal import columns, wrapped

PAIRS = "--symbols=BTC/USDT,ETH/USDT"


@pytest.fixture
def look(exchange, redis_url):
    """Run the program against the test's servers with these arguments."""
    given = ("--public", "--days=1", f"--base-url={exchange.url}", f"--redis={redis_url}")
    return partial(run_program, *given)


# Tables and lines


def shown(*rows):
    """The table of a report with these rows: symbol, newest price, state."""
    made = [
        Row(symbol, "1m", 43_200, 0.9999, "2026-01-15T12:07:00Z", 359_940.0, price, state)
        for symbol, price, state in rows
    ]
    return report_text(Report({}, None, 0.0, made, [])).splitlines()[1:]


@pytest.mark.parametrize(
    "rows",
    [
        [("BTC/USDT", "103519.39", "fresh")],
        [("1000000MOG/USDT", "0.000000001234567", "catching up")],
        [("1000CHEEMS/FDUSD", "1234567890.12345678", "catching up"), ("A/B", "1", "live")],
        [("币安人生/USDT", "0.18412", "not ours"), ("BTC/USDT", "103519.39", "polled")],
    ],
    ids=["plain", "long", "longer", "wide"],
)
def test_no_figure_is_cut_and_no_line_is_longer_than_80(rows):
    """Columns are as wide as what is in them, by what a terminal shows; the less important go first."""
    head, *lines = shown(*rows)
    assert max(map(columns, [head, *lines])) <= 80
    for line, row in zip(lines, rows, strict=True):
        assert all(text in line for text in row)
    ends = {columns(line[: line.index(row[1]) + len(row[1])]) for line, row in zip(lines, rows, strict=True)}
    assert ends == {columns(head[: head.index("PRICE") + 5])}  # which stand under each other


def test_wide_characters_are_counted_where_lines_are_broken():
    """Each takes two columns."""
    lines = wrapped("! 40 of 40 missing: " + ", ".join(["币安人生/USDT"] * 40), "  ")
    assert max(map(columns, lines)) <= 80
    assert min(map(columns, lines[:-1])) > 60
    assert "".join(lines).count("币安人生/USDT") == 40


def test_what_many_pairs_share_is_one_line(exchange, redis_url, look):
    """A reason that all have is said once, and values that others have put there are counted."""
    exchange.market = Market.random_walk(DEFAULT_PAIRS)
    with started(exchange, redis_url, FastClock(100), SYMBOLS=",".join([*DEFAULT_PAIRS, "NO/USDT"])) as rig:
        exchange.faults.always("500")
        rig.refresh()
    lines = look("--status", "--symbols=" + ",".join(DEFAULT_PAIRS)).stdout.splitlines()
    failed = [line for line in lines if "failed: " in line]
    assert failed == ["failed: BTC/USDT 15m, ETH/USDT 15m, BNB/USDT 15m, XRP/USDT 15m, ADA/USDT 15m,"]
    assert lines[lines.index(failed[0]) + 1].startswith(
        f"  ... ({len(DEFAULT_PAIRS)}): Binance answers HTTP 500"
    )
    assert "invalid: NO/USDT: unknown to Binance" in lines
    assert max(map(len, lines)) <= 80


# Colours


def on_a_terminal(*arguments, **environment):
    """What the program writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(**{"TERM": "xterm"} | environment),
    )
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # the other end is closed
        pass
    process.wait()
    os.close(ours)
    return text.decode()


def test_states_have_colours_on_a_terminal_for_who_wants_them(look, exchange, redis_url):
    """Not in a pipe, nor with NO_COLOR; the words are the same."""
    look("--once", PAIRS)
    given = ("--public", f"--redis={redis_url}", "--symbols=BTC/USDT,NO/USDT", "--status")
    screen = on_a_terminal(*given)
    assert "\x1b[32mfresh\x1b[0m" in screen
    assert "\x1b[31mmissing\x1b[0m" in screen
    assert "\x1b[31m!\x1b[0m 1 of 2 missing: NO/USDT" in screen
    plain = run_program(*given).stdout
    assert "\x1b" not in plain
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_a_terminal(*given, **environment)
    same = re.compile(r"\x1b\[\d*m|, up \d+ s|status of \d+ s ago|\d+ s ", re.ASCII)
    assert same.sub("", screen).split() == same.sub("", plain).split()


# No events of the service among what was asked for


@pytest.mark.parametrize("what", ["--status", "--health-check", "--verify"])
def test_what_people_look_with_logs_nothing(look, free_port, what):
    """Redis is away: that is what is printed, and no event of a service that runs."""
    done = look(what, PAIRS, f"--redis=127.0.0.1:{free_port}")
    assert done.returncode == 1
    assert "does not answer" in done.stdout + done.stderr
    assert "buffering" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == (what == "--verify")


def test_verify_names_what_it_skips(look, exchange):
    """What does not trade, what is one too many, and the rows that are no candles."""
    exchange.market = Market.random_walk(["BTC/USDT", "ETH/USDT", "DOGE/BTC"])
    open_ms = exchange.clock.now_ms() // 900_000 * 900_000 - 20 * 900_000
    exchange.market.edit("BTCUSDT", "15m", open_ms, "shifted")
    given = ("--symbols=*/USDT,GONE/USDT", "--requests-per-sec=100")
    look("--once", *given)
    done = look("--verify", *given)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GONE/USDT: skipped: unknown to Binance" in lines[0]
    at = tet.iso_time(open_ms)[:-5]  # some minutes behind it
    assert re.fullmatch(rf"BTC/USDT 15m: {at}\d:\d\dZ: skipped, an odd row: off the 15m grid", lines[1])
    assert lines[-1].endswith("no difference")
    assert done.stderr == ""
    fewer = look("--verify", "--symbols=*/USDT", MAX_SYMBOLS="1")
    assert "skipped, beyond MAX_SYMBOLS 1: ETH/USDT\n" in fewer.stdout


def test_verify_says_for_how_long_it_waits(look, exchange):
    """Rate limited in the middle of it: what it waits for is on stderr, once."""
    look("--once", PAIRS)
    exchange.faults.retry_after_seconds = 2
    exchange.faults.add("429")
    done = look("--verify", PAIRS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"waiting for \d+ s: .*429.*\n", done.stderr)


# The log


def test_the_log_has_what_differs_and_what_was_streamed(exchange, redis_url, tmp_path):
    """Settings other than the defaults, streams that are there, closes by source; numbers are numbers."""
    with SimulatedBinance(market=Market.random_walk(["BTC/USDT", "ETH/USDT"])) as exchange:
        given = ("--public", "--days=1", PAIRS, "--timeframe=1s", "--interval=2", "--log-format=json")
        servers = (
            f"--base-url={exchange.url}",
            f"--stream-url={exchange.stream_url}",
            f"--redis={redis_url}",
        )
        with Running(
            tmp_path, *given, *servers, "--live", AUDIT_HOURS="0", PROOF_WEIGHT_SHARE="0"
        ) as running:

            def events(name):
                lines = [line for line in running.log.read_text().splitlines() if line.endswith("}")]
                return [event for event in map(json.loads, lines) if event["event"] == name]

            eventually(lambda: sum(each["closes_by_stream"] for each in events("cycle")) > 2, 60)
    assert events("settings")[0].keys() - {"time", "level", "event"} == {
        *("public_data", "binance_base_url", "binance_stream_url", "redis_addr", "live", "audit_hours"),
        *("proof_weight_share", "data_days", "symbols", "timeframe", "update_interval", "log_format"),
    }
    assert events("settings")[0]["live"] is True
    assert events("settings")[0]["update_interval"] == 2
    assert [event["streams"] for event in events("streams connected")] == [2]
    for cycle in events("cycle"):
        numbers = [*"updated failed seconds requests weight weight_limit".split()]
        numbers += ["closes_by_stream", "closes_by_rest"]
        assert all(type(cycle[name]) in (int, float) for name in numbers)
        assert cycle["next"] >= cycle["time"]


# The demo's commands


def commands_of(text):
    """The lines that the demo prints to be pasted."""
    return [
        line.strip()
        for line in text.splitlines()
        if (line.startswith("  ") and "://" in line) or "--status" in line
    ]


@pytest.mark.parametrize("how", ["run.sh", "sh", "python"])
def test_what_the_demo_prints_works_when_it_is_pasted(checkout, tmp_path, how):
    """From where one stands, whatever config.txt there says, with what the demo was given."""
    (checkout / "config.txt").write_text("TIMEFRAME=4h\nREDIS_PREFIX=other\n")
    start = {
        "run.sh": ["./run.sh"],
        "sh": ["sh", "run.sh"],
        "python": [".venv/bin/python", "tet_data_service.py"],
    }[how]
    environment = clean_environment(HOME=str(tmp_path))
    screen = tmp_path / "screen.txt"
    with screen.open("w") as stream:
        given = ("--demo", "--days=1", PAIRS, "--timeframe=1m,15m", f"--http=127.0.0.1:{unused_port()}")
        running = subprocess.Popen(
            [*start, *given], stdout=stream, stderr=stream, cwd=checkout, env=environment
        )
    try:
        eventually(lambda: "Ctrl-C ends it" in screen.read_text() or running.poll() is not None, 90)
        assert running.poll() is None, screen.read_text()
        status, candles = re.findall(r"^  (\S.*)$", screen.read_text().split("terminal", 1)[1], re.M)
        assert status.startswith("./run.sh " if "run.sh" in start[-1] else shlex.join(start))
        done = subprocess.run(
            ["sh", "-c", status.replace(" --watch", "")],
            cwd=checkout, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(re.findall(r"^(?:BTC|ETH)/USDT .* (?:live|polled|catching up)$", done.stdout, re.M)) == 4
        done = subprocess.run(
            ["sh", "-c", candles], env=environment, capture_output=True, text=True, check=False
        )
        assert len(json.loads(done.stdout)) == 3
    finally:
        running.terminate()
        running.wait(20)


def test_a_program_is_called_as_it_is_found(tmp_path, monkeypatch):
    """A binary on the PATH by its name, one in this folder with ./, a zipapp by its Python."""
    folder = tmp_path / "a b"
    (folder / "bin").mkdir(parents=True)
    binary = folder / "bin" / "tet-data-service"
    binary.write_text("")
    binary.chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TET_STARTED_AS", raising=False)

    def called(program, **environment):
        monkeypatch.setattr(sys, "argv", [program])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return demo.as_typed(demo.own_command())

    assert called("bin/tet-data-service") == "bin/tet-data-service"
    assert called(str(binary)) == "bin/tet-data-service"
    assert called(f"{tmp_path}/elsewhere/tet") == f"{tmp_path}/elsewhere/tet"
    assert called(str(binary), PATH=f"{binary.parent}:/usr/bin:/bin") == "tet-data-service"
    monkeypatch.chdir(folder / "bin")
    assert called("tet-data-service", PATH="/usr/bin:/bin") == "./tet-data-service"
    monkeypatch.setattr(sys, "executable", "/usr/bin/env")
    assert called("tet-data-service.pyz") == "env tet-data-service.pyz"
    script = folder / "run.sh"
    script.write_text("")
    assert called("x.py", TET_STARTED_AS=str(script)) == f"sh '{script}'"
    script.chmod(0o755)
    assert called("x.py", TET_STARTED_AS=str(script)) == f"'{script}'"
