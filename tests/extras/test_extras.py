"""What stands beside the module: it knows nothing of it, and is loaded only when it is wanted."""

from __future__ import annotations

import ast
import gzip
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from rig import PROGRAM, Running, clean_environment, eventually, started, unused_port

from tet_extras.simulated_binance import DEFAULT_PAIRS, Market, SimulatedBinance, SimulatedClock

MEMORY_MB = 62


def test_every_extra_is_named_in_the_package():
    """Its docstring says what each is for; that of a room what is in the room."""
    for package in (PROGRAM.parent / "tet_extras").rglob("__init__.py"):
        folder = package.parent
        text = ast.get_docstring(ast.parse(package.read_text()))
        named = {name for line in re.findall(r"^\* (.*?):", text, re.M) for name in re.findall(r"\w+", line)}
        rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
        assert named == {path.stem for path in folder.glob("*.py")} - {"__init__"} | rooms


def test_help_loads_no_front_door():
    """Neither an optional part nor a library that only the running service needs."""
    code = "import sys, tet_data_service as t; t.main(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROGRAM.parent,
        env=clean_environment(),
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "tet_extras.process" in loaded
    doors = {f"tet_extras.{name}" for name in ("simulated_binance", "embedded", "report", "web", "transport")}
    assert not loaded & (doors | {"httpx", "redis", "prometheus_client", "dotenv"})


def memory_mb(pid):
    """The resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024 / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_25_pairs_of_a_month_fit_into_62_mb(redis_url, tmp_path):
    """As a script, after the first cycle and a second one: Python keeps no syntax tree of the module."""
    pairs = DEFAULT_PAIRS[:25]
    with SimulatedBinance(market=Market.random_walk(pairs), clock=SimulatedClock()) as exchange:
        arguments = ["--public", f"--symbols={','.join(pairs)}", f"--base-url={exchange.url}"]
        arguments += [f"--redis={redis_url}", "--interval=1", "--requests-per-sec=100"]
        log = tmp_path / "log.txt"
        with log.open("w") as stream:
            command = [sys.executable, str(PROGRAM), *arguments]
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, cwd=PROGRAM.parent, env=clean_environment()
            )
        try:
            eventually(lambda: log.read_text().count("cycle updated=") >= 3, 60)
            held_mb = memory_mb(process.pid)
            process.send_signal(signal.SIGTERM)
            assert process.wait(8) == 0
        finally:
            process.kill()
            process.wait()
    assert 20 < held_mb <= MEMORY_MB


@pytest.mark.cold
def test_a_script_keeps_its_arguments_and_options(exchange, redis_url, tmp_path):
    """Started as a script from another folder, with options of Python: they hold for what it becomes."""
    arguments = ("--public", "--days=1", "--symbols=BTC/USDT", f"--base-url={exchange.url}")
    with Running(tmp_path, *arguments, f"--redis={redis_url}") as running:
        eventually(lambda: running.says("cycle updated=1"))
        line = Path(f"/proc/{running.process.pid}/cmdline").read_text().split("\0")
    assert "-c" in line
    assert line[-6:-1] == [*arguments, f"--redis={redis_url}"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", str(PROGRAM), "--no-such-flag"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=clean_environment(),
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: tet_data_service.py")


# HTTP


@pytest.fixture
def served(exchange, redis_url):
    """The address of a service that serves HTTP."""
    address = f"127.0.0.1:{unused_port()}"
    with started(exchange, redis_url, HTTP_ADDR=address) as rig:
        rig.refresh()
        yield f"http://{address}"


def ask(url, method="GET", **headers):
    """A reply with its headers and body."""
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.headers, reply.read()


def test_a_scrape_by_head_has_no_body(served):
    """As for any other page."""
    assert ask(f"{served}/metrics", "HEAD")[1] == b""


def test_a_scrape_may_be_compressed(served):
    """For a client that takes gzip."""
    headers, body = ask(f"{served}/metrics", **{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert b"tet_ready 1.0" in gzip.decompress(body)


def test_a_scrape_may_be_openmetrics(served):
    """For a client that prefers it."""
    headers, body = ask(f"{served}/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.skipif(sys.platform != "linux", reason="prometheus-client reads /proc")
def test_the_process_metrics_that_dashboards_know_are_served(served):
    """CPU, memory and open files, under the names of every Prometheus client."""
    body = ask(f"{served}/metrics")[1].decode()
    assert float(re.search(r"^process_resident_memory_bytes (\S+)", body, re.M)[1]) > 20e6
    assert "process_cpu_seconds_total" in body


def test_a_query_changes_nothing(served):
    """Some monitors add one."""
    assert ask(f"{served}/health?verbose=1")[1] == ask(f"{served}/health")[1]
