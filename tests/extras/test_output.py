"""Where output goes: stdout and stderr that are closed, full or of a narrow encoding, and the log file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rig import PROGRAM, Running, clean_environment, eventually, run_program, stored

from tet_extras.simulated_binance import Market, SimulatedBinance

pytestmark = [
    pytest.mark.cold,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc and /dev/full are Linux's"),
]

CHINESE = "比特/USDT"
#: What may have become of the descriptors, as the shell writes it.
WAYS = (">&-", "0<&- >&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | true")
#: What the program is asked for, and how it ends; in this order, since the first fills Redis.
COMMANDS = (
    (["--once"], 0),
    (["--status", "--json"], 0),
    (["--health-check", "--json"], 1),  # the clock of this exchange stands
    (["--verify"], 0),
    (["--check-config"], 0),
    (["--version"], 0),
    (["--days=0"], 2),
)


@pytest.fixture
def arguments(redis_url):
    """Settings of a service with a pair whose name is not ASCII; the exchange's time stands still."""
    with SimulatedBinance(market=Market.random_walk(["BTC/USDT", CHINESE])) as exchange:
        exchange.clock.freeze()
        exchange.clock.advance(-3600)  # which --health-check finds
        addresses = (f"--base-url={exchange.url}", f"--redis={redis_url}")
        yield "--public", "--days=1", "--requests-per-sec=100", f"--symbols=BTC/USDT,{CHINESE}", *addresses


def begin(way, *arguments, **environment):
    """Start the program with its output as ``way`` says; its exit code is the last line of stderr's copy."""
    script = f'{{ "$@"; echo $? >&9; }} {way}' if "|" in way else f'"$@" {way}; echo $? >&9'
    return subprocess.Popen(
        ["bash", "-c", f"exec 9>&2; {script}", "sh", sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(**environment),
    )


def end(process):
    """Its exit code, and all that it wrote."""
    out, err = process.communicate(timeout=60)
    *lines, code = err.decode().splitlines()
    return int(code), out.decode() + "\n".join(lines)


def test_the_exit_code_says_how_it_went_whoever_reads(arguments):
    """Each command ends as documented with stdout or stderr closed, full, or a pipe that nobody reads."""
    for number, (command, expected) in enumerate(COMMANDS):
        ways = WAYS if number == 0 else (WAYS[number % 4],)  # each start costs most of a second
        for way, process in [(way, begin(way, *arguments, *command)) for way in ways]:
            code, said = end(process)
            assert code == expected, (command, way, said)
            assert "Traceback" not in said, (command, way)
            assert "Exception" not in said, (command, way)


@pytest.mark.parametrize("way", ["2>&-", "0<&- >&- 2>&-", "2>/dev/full", "2> >(true)"])
def test_the_service_runs_on_without_stderr(arguments, redis_url, reader, way):
    """It fills, goes on, and ends with 0 when it is asked to; no socket of its own takes stderr's number."""
    process = begin(f"{way} & echo $! >&9; wait $!", *arguments, "--interval=1")
    pid = int(process.stderr.readline())
    try:
        eventually(lambda: reader.exists("tet:kline:15m:BTC_USDT"))
        written = stored(reader)["last_update"]
        numbers = [Path(f"/proc/{pid}/fd/{number}").readlink() for number in range(3)]
        assert not any("socket" in str(target) for target in numbers)
        eventually(lambda: stored(reader)["last_update"] > written)
    finally:
        os.kill(pid, signal.SIGTERM)
    assert end(process)[0] == 0


def test_watch_ends_when_nobody_reads(arguments):
    """``--status --watch | head -1`` does not stay for ever."""
    process = begin("| head -1", *arguments, "--status", "--watch")
    code, said = end(process)
    assert code == 1  # there is no status yet
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("encoding", "commands"),
    [
        ("ascii", (["--once"], ["--status"], ["--status", "--json"], ["--check-config"])),
        ("cp1252", (["--once"],)),
        ("cp437", (["--check-config"],)),
    ],
)
def test_what_an_encoding_lacks_is_replaced(arguments, encoding, commands):
    """Of a pair's name in a Windows code page: a question mark each, in every output, and no error."""
    for command in commands:
        done = begin("", *arguments, *command, PYTHONIOENCODING=encoding)
        out, err = done.communicate(timeout=60)
        *lines, code = err.decode(encoding).splitlines()
        assert int(code) == 0, lines
        said = out.decode(encoding) + "\n".join(lines)
        assert "??/USDT" in said, said
        assert CHINESE not in said


def test_a_pair_is_understood_in_the_c_locale(arguments, reader):
    """Where Python takes the command line and the environment for ASCII, their UTF-8 is read all the same."""
    c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run_program(*arguments, "--once", timeout=60, **c).returncode == 0
    assert reader.exists("tet:kline:15m:比特_USDT")
    assert (
        run_program(*arguments[:-3], *arguments[-2:], "--once", timeout=60, SYMBOLS=CHINESE, **c).returncode
        == 0
    )


# The log file


def lines_of(path):
    """The lines of a log, none while it is not there."""
    return path.read_text().splitlines() if path.exists() else []


def test_a_log_file_that_is_moved_or_removed_is_begun_anew(arguments, tmp_path):
    """logrotate moves it, somebody removes its folder: it goes on in a new file, or on stderr meanwhile."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = folder / "tet.log"
    given = (*arguments, "--interval=1", "--log-level=debug", f"--log-file={log}")
    with Running(tmp_path, *given) as running:
        eventually(lambda: "update feed" in "".join(lines_of(log)))
        log.rename(folder / "moved.log")
        eventually(lambda: lines_of(log))
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        eventually(lambda: running.says("cannot be written"))
        folder.mkdir()
        eventually(lambda: lines_of(log))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 0
    assert lines_of(log)[-1].endswith("stopped")
    assert running.log.read_text().count("cannot be written") == 1
    assert not running.says("Traceback")


def test_a_log_file_that_cannot_be_rotated_grows(tmp_path, capsys):
    """What stands in the way of its backup is said once, and no line is lost."""
    import logging

    from tet_extras.logs import LogFile

    (tmp_path / "tet.log.1").mkdir()
    handler = LogFile(tmp_path / "tet.log", maxBytes=100, backupCount=1, encoding="utf-8")
    for number in range(20):
        handler.emit(logging.LogRecord("tet", logging.INFO, "", 0, f"line {number:020}", None, None))
    handler.close()
    assert len((tmp_path / "tet.log").read_text().splitlines()) == 20
    assert capsys.readouterr().err.count("cannot be rotated") == 1
