"""What build.sh makes: the binary and the zipapp, built once and run as their users run them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest
from rig import PROGRAM, InSession, clean_environment, eventually, expected_candles, made_once, stored
from samples import NOON_MS

import tet_data_service as tet
from tet_core.times import parse_iso_time
from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock

pytestmark = pytest.mark.timeout(400)

ROOT = PROGRAM.parent
SYSTEM = platform.system().lower()
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
BINARY = f"tet-data-service-{SYSTEM}-{MACHINE}"
ZIPAPP = "tet-data-service.pyz"
SHORT = ("--public", "--days=2", "--requests-per-sec=100", "--symbols=BTC/USDT")


def pythons():
    """Every Python of this machine that runs, one of each minor version: the file by its whole version."""
    names = [shutil.which(f"python3.{minor}") for minor in range(8, 20)]
    files = [sys.executable, "/usr/bin/python3", *filter(None, names)]
    files += map(str, Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python3"))
    found: dict[str, str] = {}
    minors = set()
    for file in files:
        show = [file, "-c", "import platform; print(platform.python_version())"]
        if Path(file).exists():
            done = subprocess.run(show, capture_output=True, text=True, check=False)
            minor = done.stdout.rpartition(".")[0]
            if done.returncode == 0 and minor not in minors:
                minors.add(minor)
                found[done.stdout.strip()] = file
    return dict(sorted(found.items(), key=lambda item: [int(part) for part in item[0].split(".")[:2]]))


def is_old(version):
    """Whether the service does not run on this Python."""
    return int(version.split(".")[1]) < 11


PYTHONS = pythons()
NEW = [version for version in PYTHONS if not is_old(version)]
OLD = [version for version in PYTHONS if is_old(version)]
PRODUCTS = ["binary", platform.python_version()]
EVERY_PRODUCT = ["binary", *NEW]


# The build, which all workers share


def build(out, *arguments, **environment):
    """Run build.sh, which must succeed."""
    environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable} | environment
    command = [ROOT / "build.sh", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder with all that build.sh makes, and a second zipapp in the folder ``again``."""

    def make(out):
        build(out)
        build(out / "again", "zipapp", BUILD_PYTHON=str(ROOT / "build" / "venv" / "bin" / "python"))

    return made_once(tmp_path_factory, "built", make)


def command_of(product, built):
    """How to start a product: the binary, or the zipapp on that version of Python."""
    return [built / BINARY] if product == "binary" else [PYTHONS[product], built / ZIPAPP]


def run(product, built, *arguments, **environment):
    """Run a product to its end."""
    command = [*command_of(product, built), *arguments]
    given = clean_environment(**environment)
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=given, check=False)


def git(*arguments):
    """What git says, or nothing."""
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


# What was built


def test_two_builds_give_the_same_zipapp(built):
    """Byte by byte."""
    assert (built / ZIPAPP).read_bytes() == (built / "again" / ZIPAPP).read_bytes()


def test_the_sizes_are_within_their_targets(built):
    """The binary, with a whole Valkey server in it, has 14 MB at most; the zipapp is small."""
    assert b"valkey-server\0" in (built / BINARY).read_bytes()
    assert (built / BINARY).stat().st_size <= 14_000_000
    assert (built / ZIPAPP).stat().st_size <= 2_000_000


def test_the_sums_are_right(built):
    """SHA256SUMS has each product, as sha256sum --check wants it."""
    lines = (built / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    products = {name: (built / name).read_bytes() for name in (BINARY, ZIPAPP)}
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in products.items()}


def test_the_zipapp_is_for_every_platform(built):
    """It has nothing compiled, nothing of pip's, fixed times, and the licences of what it brings."""
    with zipfile.ZipFile(built / ZIPAPP) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    assert names == sorted(names)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert [name for name in names if re.search(r"\.(so|pyd|dll|dylib|exe|pyc)$|dist-info", name)] == []
    assert {"tet_data_service.py", "tet_extras/simulated_binance.py", "certifi/cacert.pem"} <= set(names)
    assert "tet_extras/page/index.html" in names
    for package in ("certifi", "click", "httpx", "redis"):
        assert any(name.startswith(f"licenses/{package}/") for name in names)


def test_the_zipapp_starts_by_itself(built):
    """It is executable, and its first line finds a Python."""
    assert os.access(built / ZIPAPP, os.X_OK)
    assert (built / ZIPAPP).read_bytes().startswith(b"#!/usr/bin/env python3\n")


# Runs on everything


@pytest.mark.parametrize("product", PRODUCTS)
def test_version_names_the_commit(built, product):
    """--version has the version, the commit and its date."""
    done = run(product, built, "--version")
    if commit := git("rev-parse", "--short=7", "HEAD"):
        day = time.strftime("%Y-%m-%d", time.gmtime(int(git("log", "-1", "--format=%ct"))))
        pattern = rf"tet-data-service {re.escape(tet.__version__)} \({commit}(-dirty)?, built {day}\)\n"
    else:
        pattern = rf"tet-data-service {re.escape(tet.__version__)}\n"
    assert re.fullmatch(pattern, done.stdout), done


@pytest.mark.parametrize("product", PRODUCTS)
def test_help_and_a_bad_option(built, product):
    """--help lists the settings; an unknown option and a bad value exit with 2."""
    done = run(product, built, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(option.flag in done.stdout for option in tet.OPTIONS if option.flag)
    assert run(product, built, "--public", "--interval=x", "--once").returncode == 2


@pytest.mark.parametrize("product", EVERY_PRODUCT)
def test_once_fills(built, product, exchange, redis_url, reader):
    """A real update of a real store, with the exchange's exact candles."""
    done = run(product, built, f"--base-url={exchange.url}", f"--redis={redis_url}", "--once", *SHORT)
    assert done.returncode == 0, done.stderr
    value = stored(reader)
    first_ms = parse_iso_time(value["data_start"])
    assert value["candles"] == expected_candles(exchange, "BTCUSDT", "15m", first_ms)


@pytest.mark.parametrize("product", EVERY_PRODUCT)
def test_tls_finds_its_certificates(built, product, free_port):
    """An https address gets as far as the connection: the bundled certificates could be loaded."""
    address = f"https://127.0.0.1:{free_port}"
    done = run(product, built, f"--base-url={address}", "--redis=127.0.0.1:1", "--once", *SHORT)
    assert done.returncode == 1
    assert "is Redis running there? (REDIS_ADDR)" in done.stderr


@pytest.mark.skipif(not OLD, reason="no Python older than 3.11 here")
@pytest.mark.parametrize("version", OLD)
def test_an_older_python_is_told_plainly(built, version):
    """The zipapp says which Python it needs and which it got."""
    done = subprocess.run([PYTHONS[version], built / ZIPAPP], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("tet-data-service needs Python 3.11 or newer; ")
    assert len(done.stderr.splitlines()) == 1


def cpu_of(start):
    """The CPU, in seconds, of what a call starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_binary_starts_quickly(built):
    """--version costs some 2.4 times what a Python does that imports click and httpx, in turn with it."""
    libraries = [sys.executable, "-I", "-c", "import click, httpx"]
    seconds = [
        (
            cpu_of(lambda: run("binary", built, "--version")),
            cpu_of(lambda: subprocess.run(libraries, check=True)),
        )
        for _ in range(5)
    ]
    ours, theirs = map(min, zip(*seconds, strict=True))
    assert ours <= 3.5 * theirs


# As a service


def in_background(product, built, tmp_path, *arguments):
    """A product in the background."""
    environment = clean_environment(TMPDIR=str(tmp_path))  # a killed binary leaves its files there
    return InSession(tmp_path / "log.txt", [*command_of(product, built), *arguments], env=environment)


@pytest.mark.parametrize("product", PRODUCTS)
def test_it_carries_the_page_and_ends_well(built, product, exchange, redis_url, tmp_path, free_port):
    """Every file of the page is served from within it, as it is in the source; one SIGTERM ends it with 0."""
    arguments = (
        f"--base-url={exchange.url}",
        f"--redis={redis_url}",
        f"--http=127.0.0.1:{free_port}",
        *SHORT,
    )
    with in_background(product, built, tmp_path, *arguments) as running:
        eventually(lambda: running.says("cycle updated=1"))
        for path in (ROOT / "tet_extras" / "page").iterdir():
            with urllib.request.urlopen(
                f"http://127.0.0.1:{free_port}/page/{path.name}", timeout=10
            ) as reply:
                assert reply.read() == path.read_bytes()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 0
        assert running.says("stopped")


@pytest.mark.parametrize("product", PRODUCTS)
def test_live_hears_streams(built, product, exchange, redis_url, reader, tmp_path):
    """The library is in there, whole: a stream keeps the pair fresh, and the stop is prompt."""
    exchange.clock.resume()
    arguments = ["--live", f"--base-url={exchange.url}", f"--stream-url={exchange.stream_url}"]
    with in_background(product, built, tmp_path, *arguments, f"--redis={redis_url}", *SHORT) as running:
        eventually(lambda: live_feeds(reader) == 1, 30)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 0


def live_feeds(reader):
    """How many feeds the status says are live."""
    status = json.loads(reader.get("tet:system:status") or "{}")
    return (status.get("live") or {"feeds": {"live": 0}})["feeds"]["live"]


@pytest.mark.parametrize("product", PRODUCTS)
def test_ctrl_c_ends_it_well(built, product, exchange, redis_url, tmp_path):
    """A terminal sends SIGINT to the binary's launcher and to the service: that is one wish, not two."""
    arguments = (f"--base-url={exchange.url}", f"--redis={redis_url}", *SHORT)
    with in_background(product, built, tmp_path, *arguments) as running:
        eventually(lambda: running.says("cycle updated=1"))
        running.interrupt()
        assert running.process.wait(5) == 0
        assert running.says("stopped")


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_config_file_works(built, product, exchange, redis_url, reader, tmp_path):
    """--config=config.txt, with everything in the file."""
    config = tmp_path / "config.txt"
    config.write_text(
        f"PUBLIC_DATA=true\nBINANCE_BASE_URL={exchange.url}\nREDIS_ADDR={redis_url}\n"
        "SYMBOLS=ETH/USDT # one is enough\nDATA_DAYS=1\n"
    )
    done = run(product, built, "--config=config.txt", "--once")
    assert done.returncode == 0, done.stderr
    assert stored(reader, "15m:ETH_USDT")["candle_count"] == 96


@pytest.mark.parametrize("product", PRODUCTS)
def test_nohup_survives_its_shell(built, product, exchange, redis_url, tmp_path):
    """Started with nohup … & from a shell that ends and hangs up, it goes on, and stops when asked."""
    log = tmp_path / "service.log"
    words = [*command_of(product, built), f"--base-url={exchange.url}", f"--redis={redis_url}"]
    words += [*SHORT, "--interval=1"]
    script = 'nohup "$@" >service.log 2>&1 & echo $!'
    command = ["sh", "-c", script, "sh", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=clean_environment(), start_new_session=True
    ) as shell:
        service = int(shell.communicate(timeout=10)[0])
    try:
        eventually(lambda: "cycle updated=1" in log.read_text())
        os.killpg(shell.pid, signal.SIGHUP)
        exchange.clear()
        eventually(lambda: exchange.asked(), 30)
        assert "stopping" not in log.read_text()
    finally:
        os.kill(service, signal.SIGTERM)
    eventually(lambda: "stopped" in log.read_text())


@pytest.mark.skipif(SYSTEM != "linux", reason="only Linux lets a child know that its parent died")
def test_no_service_outlives_its_launcher(built, exchange, redis_url, tmp_path):
    """SIGKILL to the process that was started ends the service behind it too."""
    arguments = (f"--base-url={exchange.url}", f"--redis={redis_url}", *SHORT)
    with in_background("binary", built, tmp_path, *arguments) as running:
        eventually(lambda: running.says("cycle updated=1"))
        running.process.kill()
        eventually(lambda: running.says("stopped"))


@pytest.mark.skipif(SYSTEM != "linux", reason="reads /proc")
def test_the_binary_holds_25_pairs_in_60_mb(built, redis_url, tmp_path):
    """The default pairs, a month of 15m candles each: what the service's own process takes."""
    clock = SimulatedClock(NOON_MS)
    clock.freeze()
    with SimulatedBinance(market=Market.random_walk(tet.DEFAULT_SYMBOLS), clock=clock) as exchange:
        arguments = (f"--base-url={exchange.url}", f"--redis={redis_url}", "--public", "--interval=5")
        with in_background("binary", built, tmp_path, *arguments) as running:
            eventually(lambda: running.log.read_text().count("cycle updated=25") >= 3, 90)
            assert resident_mb(child_of(running.process.pid)) <= 60


def child_of(pid):
    """The only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def resident_mb(pid):
    """The memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# The demo


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_demo_shows_what_landed(built, product):
    """--demo --once needs nothing, says that its market is simulated, and shows all 25 pairs."""
    done = run(product, built, "--demo", "--once")
    assert done.returncode == 0, done.stderr
    assert "simulated" in done.stdout + done.stderr
    assert all(symbol in done.stdout for symbol in tet.DEFAULT_SYMBOLS)


def test_the_binary_runs_its_own_server(built, exchange, tmp_path):
    """--redis=embedded works with nothing installed."""
    arguments = ("--redis=embedded", f"--data-dir={tmp_path / 'data'}", f"--base-url={exchange.url}")
    done = run("binary", built, *arguments, "--once", *SHORT, PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
