"""The Windows binary and the batch files under Wine, against a real Valkey: `make windows` runs this.

Here Wine's programs share loopback and files with this machine. docs/platforms.md has what Wine cannot show.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import pytest
import redis
from rig import clean_environment, eventually, expected_candles, stored

import tet_data_service as tet
from tet_core.times import parse_iso_time
from tet_extras.memory_store import NOTE
from tet_extras.simulated_binance import Market, SimulatedBinance

pytestmark = pytest.mark.windows

ROOT = Path(tet.__file__).parent
BINARY = ROOT / "dist" / "tet-data-service-windows-amd64.exe"
MAX_MB = 13
SHORT = ("--public", "--days=2", "--symbols=BTC/USDT")


def load_wine():
    """The module that makes Wine's Python."""
    spec = importlib.util.spec_from_file_location("wine", ROOT / "deploy" / "windows" / "wine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wine = load_wine()


@pytest.fixture(scope="module", autouse=True)
def _wine():
    """One program runs all the time: else Wine's own services start with a test's, and hold its pipes."""
    assert BINARY.is_file(), "make windows builds it first"
    with waiting():
        yield


def python():
    """Wine's Python, as Windows names it."""
    return windows_path(wine.folder() / "python.exe")


def windows_path(path):
    """How a Windows program names one of our files."""
    return "Z:" + str(path).replace("/", "\\")


def windows_environment(**given):
    """Wine's environment, without settings of the program."""
    own = {name: text for name, text in wine.environment().items() if name.startswith("WINE")}
    return clean_environment(**own, **given)


def run(*command, timeout=60, cwd=None, encoding="utf-8", **environment):
    """Run a Windows program to its end, with pipes for its streams."""
    return subprocess.run(
        ["wine", *map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
        encoding=encoding,
        errors="replace",
        cwd=cwd,
        env=windows_environment(**environment),
        check=False,
    )


def flags(exchange, redis_url):
    """The flags of a service on the test's servers."""
    return (
        f"--base-url={exchange.url}",
        f"--stream-url={exchange.stream_url}",
        f"--redis={redis_url}",
        *SHORT,
    )


class Background:
    """The binary in the background; its log is a file that it writes itself."""

    def __init__(self, folder, *arguments, program=BINARY, **environment):
        self.log = folder / "tet.log"
        command = ["wine", str(program), *arguments, f"--log-file={windows_path(self.log)}"]
        with (folder / "output.txt").open("w") as output:
            self._reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output)
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._reader.stdin, stderr=self._reader.stdin,
            env=windows_environment(**environment),
        )  # fmt: skip
        self._reader.stdin.close()
        self._output = folder / "output.txt"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._reader.wait(20)  # until the last process that writes there is gone

    def says(self, text):
        """Whether the log has that text by now."""
        return self.log.exists() and text in self.log.read_text("utf-8")

    @property
    def output(self):
        """What it has printed."""
        return self._output.read_text("utf-8", "replace")


def assert_right(exchange, reader, symbol="BTC/USDT"):
    """The stored candles are the exchange's, to the last digit."""
    value = stored(reader, f"15m:{symbol.replace('/', '_')}")
    first_ms = parse_iso_time(value["data_start"])
    assert value["candles"] == expected_candles(exchange, symbol.replace("/", ""), "15m", first_ms)


# What it is


def test_its_size_and_version():
    """It stays small, and says which version it is."""
    assert BINARY.stat().st_size / 1e6 < MAX_MB
    done = run(BINARY, "--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"tet-data-service {tet.__version__}"), done


def test_settings_that_are_right(exchange):
    """--check-config lists them with where each is from, the pairs that are meant, and what they cost."""
    done = run(BINARY, *SHORT, "--check-config", f"--base-url={exchange.url}", DATA_DAYS="7")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "SYMBOLS BTC/USDT flag --symbols" in lines
    assert "DATA_DAYS 2 flag --days" in lines
    assert any(line.startswith("requests: 20 per hour") for line in lines), done.stdout


def test_help_and_wrong_settings():
    """--help has every flag; wrong settings are listed, each with its name, and end with 2."""
    done = run(BINARY, "--help")
    assert done.returncode == 0
    assert all(option.flag in done.stdout for option in tet.OPTIONS if option.flag)
    assert run(BINARY, "--nonsense").returncode == 2
    done = run(BINARY, "--public", "--interval=x", "--days=0", "--once", LOG_LEVEL="loud")
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("--interval", "--days", "LOG_LEVEL")), done.stderr


# The store within the process


def test_the_demo():
    """The first command of the README: 25 pairs, all of their candles, and that they are gone afterwards."""
    done = run(BINARY, "--demo", "--once", "--log-level=info")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"2880 +100\.00%", done.stdout)) == 25
    assert f"the data is {NOTE}" in done.stdout
    assert NOTE in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_two_on_one_folder(exchange, tmp_path):
    """The second one is told to take another; --status of the first one says where the data is kept."""
    data = f"--data-dir={windows_path(tmp_path / 'data')}"
    arguments = (f"--base-url={exchange.url}", "--redis=embedded", data, *SHORT)
    with Background(tmp_path, *arguments) as running:
        eventually(lambda: running.says("cycle updated=1"), 30)
        second = run(BINARY, *arguments, "--once")
        assert second.returncode == 1
        assert "another service uses this folder" in second.stderr, second.stderr
        status = run(BINARY, "--redis=embedded", data, *SHORT, "--status", "--json")
        assert json.loads(status.stdout)["status"]["store"] == NOTE, status


# Against a real Valkey


def test_once_and_its_checks(exchange, redis_url, reader):
    """Values are right, and --status, --health-check and --verify agree."""
    exchange.clock.resume()
    exchange.clock.set(round(time.time() * 1000))
    arguments = flags(exchange, redis_url)
    done = run(BINARY, *arguments, "--once")
    assert done.returncode == 0, done.stderr
    assert is_right(exchange, reader, "BTC/USDT")
    for check in ("--status", "--health-check", "--verify"):
        done = run(BINARY, *arguments, check)
        assert done.returncode == 0, (check, done)
        assert max(map(len, done.stdout.splitlines())) <= 80
    assert run(BINARY, "--redis=127.0.0.1:1", *SHORT, "--status").returncode == 1


def live(redis_url, folder, pairs, seconds, port):
    """LIVE with the page; every value is compared, then the figures."""
    names = [f"P{number:02}/USDT" for number in range(pairs)]
    with (
        SimulatedBinance(market=Market.random_walk(names)) as exchange,
        redis.Redis.from_url(redis_url, db=1, decode_responses=True) as reader,
        Background(
            folder, *flags(exchange, redis_url), f"--symbols={','.join(names)}", "--live",
            f"--http=127.0.0.1:{port}",
        ) as running,
    ):  # fmt: skip

        def status():
            return json.loads(reader.get("tet:system:status") or "{}")

        eventually(lambda: ((status().get("live") or {}).get("feeds") or {}).get("live") == pairs, 60)
        time.sleep(seconds)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as reply:
            assert b"<html" in reply.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as reply:
            assert reply.status == 200
        assert 20 < status()["memory_mb"] < 200
        assert status()["failed_symbols"] == {}
        assert not running.says("ERROR")
        exchange.clock.freeze()
        for name in names:
            eventually(partial(is_right, exchange, reader, name), 30)


def is_right(exchange, reader, name):
    """Whether the closed candles are the exchange's; the open one may change yet."""
    value = stored(reader, f"15m:{name.replace('/', '_')}")
    first_ms = parse_iso_time(value["data_start"])
    expected = expected_candles(exchange, name.replace("/", ""), "15m", first_ms)
    held = value["candles"]
    newest = max(expected)
    return {**held, newest: 0} == {**expected, newest: 0}


def test_live_with_the_page(redis_url, tmp_path, free_port):
    """Streams keep three pairs fresh, the page is served, and memory is measured."""
    live(redis_url, tmp_path, 3, 2, free_port)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_live_for_two_minutes(redis_url, tmp_path, free_port):
    """The same for 25 pairs, and two minutes."""
    live(redis_url, tmp_path, 25, 120, free_port)


def test_two_on_one_port(exchange, redis_url, tmp_path, free_port):
    """The second one says that the port is taken: Windows would let two programs have it."""
    arguments = (*flags(exchange, redis_url), f"--http=127.0.0.1:{free_port}")
    with Background(tmp_path, *arguments) as running:
        eventually(lambda: running.says("cycle updated=1"), 30)
        second = run(BINARY, *arguments, "--once")
    assert second.returncode == 1, second
    assert "HTTP_ADDR" in second.stderr, second.stderr


def test_the_memory_limit_means_something(exchange, redis_url, tmp_path, reader):
    """Candles are evicted above it, as on the other systems."""
    with Background(tmp_path, *flags(exchange, redis_url), MEMORY_LIMIT_MB="50", DATA_DAYS="30") as running:
        eventually(lambda: running.says("cycle updated=1"), 30)
        status = json.loads(reader.get("tet:system:status"))
        assert 50 < status["memory_mb"] < 100
        eventually(lambda: running.says("above MEMORY_LIMIT_MB"), 10)


# Files


def config_of(exchange, redis_url, folder):
    """A config file's text, with a log in a folder whose name has blanks."""
    (folder / "my logs").mkdir(exist_ok=True)
    return (
        f"PUBLIC_DATA=true\r\nSYMBOLS=BTC/USDT\r\nDATA_DAYS=2\r\nBINANCE_BASE_URL={exchange.url}\r\n"
        f"REDIS_ADDR={redis_url}\r\nLOG_FILE={windows_path(folder / 'my logs' / 'new tet.log')}\r\n"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_config_file_of_notepad(exchange, redis_url, reader, tmp_path, encoding):
    """CRLF, a BOM, backslashes and blanks in paths, and a name that is not ASCII."""
    config = tmp_path / "meine Börse.txt"
    config.write_text(config_of(exchange, redis_url, tmp_path), encoding, newline="")
    done = run(BINARY, f"--config={windows_path(config)}", "--once")
    assert done.returncode == 0, done.stderr
    assert_right(exchange, reader)
    assert "cycle updated=1" in (tmp_path / "my logs" / "new tet.log").read_text("utf-8")


def test_a_config_file_in_utf_16(exchange, redis_url, tmp_path):
    """The error says what it is, and what to do."""
    config = tmp_path / "config.txt"
    config.write_text(config_of(exchange, redis_url, tmp_path), "utf-16", newline="")
    done = run(BINARY, f"--config={windows_path(config)}", "--once")
    assert done.returncode == 2
    assert "UTF-16" in done.stderr
    assert "UTF-8" in done.stderr


@pytest.mark.parametrize("code_page", [437, 1252, 65001])
def test_names_in_code_pages(tmp_path, code_page):
    """Whatever chcp says, a pipe gets the system's own code page: what that lacks is a question mark."""
    batch = tmp_path / "try.bat"
    batch.write_text(
        f'@chcp {code_page} >nul\n@"{windows_path(BINARY)}" "--config=%NAME%" --once\n', newline="\r\n"
    )
    name = windows_path(tmp_path / "Börse € 交易.txt")
    done = run("cmd", "/c", windows_path(batch), encoding="cp1252", NAME=name, LC_ALL="C.UTF-8")
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"error: --config {name.replace('交易', '??')}: cannot be read"), done


@contextmanager
def waiting(*held_open):
    """A Windows program that has these files open until the block ends."""
    script = "import sys, time; files = [*map(open, sys.argv[1:])]; print('up', flush=True); time.sleep(900)"
    command = ["wine", python(), "-c", script, *map(windows_path, held_open)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=windows_environment(),
    ) as holder:
        assert any(b"up" in line for line in holder.stdout)
        yield
        holder.kill()


@pytest.mark.parametrize("held", [False, True])
def test_the_log_is_rotated(exchange, redis_url, tmp_path, held):
    """It is, while it is open; where another program has it open, too, it grows, and nothing is lost."""
    log = tmp_path / "tet.log"
    log.write_text("before\n" * 142_857, newline="")  # 1 MB but one byte
    arguments = (*flags(exchange, redis_url), f"--log-file={windows_path(log)}", "--once")
    with waiting(log) if held else nullcontext():
        done = run(BINARY, *arguments, LOG_MAX_MB="1")
    assert done.returncode == 0, done.stderr
    assert "cycle updated=1" in log.read_text()
    assert log.read_text().startswith("before") == held
    assert ("cannot be rotated" in done.stderr) == held, done.stderr
    assert (tmp_path / "tet.log.1").exists() != held


# The end


def in_a_console(*command, timeout=60):
    """Run a Windows program with a console, which Wine makes of a terminal; gives what wait says."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("wine", ["wine", *command], windows_environment())
    with suppress(OSError):  # a terminal's way to say that all is read
        while os.read(terminal, 65536):
            pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("key", ["ctrl-c", "kill"])
def test_the_end(exchange, redis_url, reader, tmp_path, key):
    """Ctrl-C in its console ends it well; without its launcher it ends, too. The data is kept."""
    log, result = tmp_path / "tet.log", tmp_path / "result.txt"
    command = (windows_path(BINARY), *flags(exchange, redis_url), f"--log-file={windows_path(log)}")
    script = windows_path(ROOT / "tests" / "windows_console.py")
    in_a_console(python(), script, key, "cycle updated=1", windows_path(log), windows_path(result), *command)
    assert result.read_text() == {"ctrl-c": "0", "kill": "1"}[key]
    eventually(lambda: "stopping" in log.read_text(), 10)
    if key == "ctrl-c":
        assert "stopped" in log.read_text()
    assert_right(exchange, reader)
    assert run(*command, "--once").returncode == 0


def test_taskkill(exchange, redis_url, reader, tmp_path):
    """All of it ends at once; the values are whole, and the next start goes on from them."""
    program = Path(shutil.copy(BINARY, tmp_path / "to-kill.exe"))
    with Background(tmp_path, *flags(exchange, redis_url), program=program) as running:
        eventually(lambda: running.says("cycle updated=1"), 30)
        assert run("taskkill", "/F", "/IM", program.name).returncode == 0
        running.process.wait(20)
    assert_right(exchange, reader)
    done = run(BINARY, *flags(exchange, redis_url), "--once", "--log-level=info")
    assert done.returncode == 0
    assert "to_backfill=0" in done.stderr, done.stderr


# The batch files


@pytest.fixture
def downloaded(tmp_path):
    """A folder with the batch files; its name has what cmd would take for its own."""
    folder = tmp_path / "R & D (new) ^x !a!"
    folder.mkdir()
    for name in ("run.bat", "build.bat", "config.example"):
        shutil.copy(ROOT / name, folder)
    return folder


def batch(folder, name, *arguments, **environment):
    """Run a batch file there, by its whole path."""
    return run("cmd", "/c", name, *arguments, cwd=folder, **environment)


def test_run_bat_starts_the_binary(downloaded):
    """From beside it, else from dist; its exit code is handed on."""
    (downloaded / "dist").mkdir()
    shutil.copy(BINARY, downloaded / "dist")
    done = batch(downloaded, "run.bat", "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "tet-data-service"), done
    assert f"dist\\{BINARY.name}" in done.stderr
    assert "recognize" not in done.stderr
    assert batch(downloaded, "run.bat", "--nonsense").returncode == 2
    assert batch(downloaded, "run.bat", *SHORT, "--redis=127.0.0.1:1", "--once").returncode == 1
    shutil.copy(BINARY, downloaded)
    done = batch(downloaded, "run.bat", "--version", PROCESSOR_ARCHITECTURE="ARM64")
    assert done.returncode == 0
    assert f"dist\\{BINARY.name}" not in done.stderr


def test_run_bat_makes_a_config_file(downloaded, exchange, redis_url, reader):
    """The first start makes it and ends with 2; the next one runs with it."""
    shutil.copy(BINARY, downloaded)
    done = batch(downloaded, "run.bat")
    assert done.returncode == 2
    assert "BINANCE_API_KEY" in done.stderr
    assert "recognize" not in done.stderr
    assert (downloaded / "config.txt").read_bytes() == (ROOT / "config.example").read_bytes()
    (downloaded / "config.txt").write_text("PUBLIC_DATA=true\nDATA_DAYS=nonsense\nREDIS_ADDR=127.0.0.1:1\n")
    done = batch(downloaded, "run.bat")
    assert done.returncode == 2
    assert "config.txt" in done.stderr


def test_run_bat_starts_the_zipapp(downloaded):
    """Where there is no binary, with the Python that PYTHON names."""
    build = [sys.executable, str(ROOT / "deploy" / "build.py"), "zipapp"]
    subprocess.run(build, env=os.environ | {"OUT": str(downloaded)}, check=True, capture_output=True)
    done = batch(downloaded, "run.bat", "--version", PYTHON=python())
    assert (done.returncode, done.stdout.split()[0]) == (0, "tet-data-service"), done
    assert batch(downloaded, "run.bat", "--nonsense", PYTHON=python()).returncode == 2
    alone = run(python(), "-S", windows_path(downloaded / "tet-data-service.pyz"), "--demo", "--once")
    assert alone.returncode == 1
    assert "pip install fakeredis[lua]" in alone.stderr, alone
    done = batch(downloaded, "run.bat", "--version")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr


def test_run_bat_and_build_bat_without_a_product(downloaded):
    """The source wants a Python; build.py's exit code is handed on."""
    for name in ("run.bat", "build.bat"):
        done = batch(downloaded, name, "--version")
        assert done.returncode == 1
        assert f"{name}: Python 3.11 or newer is needed" in done.stderr
    (downloaded / "deploy").mkdir()
    (downloaded / "deploy" / "build.py").write_text("import sys; sys.exit(sys.argv[1] == 'venv' or 7)")
    assert batch(downloaded, "build.bat", "zipapp", PYTHON=python()).returncode == 7
    assert batch(downloaded, "run.bat", "--version", PYTHON=python()).returncode == 1


def test_run_bat_starts_the_source(downloaded):
    """With the environment that build.py makes; its exit code is handed on."""
    (downloaded / "deploy").mkdir()
    makes = "import pathlib, shutil, sys\nhome = pathlib.Path(sys.argv[2]) / 'Scripts'\n"
    makes += "home.mkdir(parents=True)\n"
    makes += "shutil.copy(sys.executable, home)\n[shutil.copy(path, home) for path in "
    makes += "pathlib.Path(sys.executable).parent.glob('*.dll')]\n"
    (downloaded / "deploy" / "build.py").write_text(makes)
    (downloaded / "tet_data_service.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(5)\n")
    home = windows_path(wine.folder())
    done = batch(downloaded, "run.bat", "--symbols=BTC/USDT", PYTHON=python(), PYTHONHOME=home)
    assert done.returncode == 5, done
    assert "['--symbols=BTC/USDT']" in done.stdout
