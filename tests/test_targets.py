"""Each target of the Makefile, in its shortest form."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from rig import NOON_MS, PROGRAM, eventually

ROOT = PROGRAM.parent
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.* ## ", MAKEFILE, re.M))

#: Run elsewhere: CI runs the first four, tests/test_build.py the build.
ELSEWHERE = {"dev-setup", "check", "test", "test-cluster", "build"}
MEASURE = {
    "soak": "CYCLES=3",
    "bench": "PAIRS=2",
    "bench-freshness": "MINUTES=0.02",
    "bench-patches": "PATCHES=500",
    "bench-page": "SECONDS=1",
    "bench-live": "PAIRS=2 SECONDS=1",
    "bench-scaling": "QUICK=1",
}
SAYS = {
    "soak": "differ from the exchange: none",
    "bench": "this service       2",
    "bench-freshness": "25 pairs, 1m candles",
    "bench-patches": "500 patches",
    "bench-page": "100 clients",
    "bench-live": "CPU per message",
    "bench-scaling": "3,700 x 15 intervals polling",
}
SERVE = {"run": "cycle updated=1", "run-dev": "cycle updated=1", "demo": "Ctrl-C ends it"}
DOCKER = {"container-test", "docker-build", "docker-run", "docker-stop", "docker-logs"}


def make(in_checkout, *arguments):
    """Run make to its end."""
    return subprocess.run(["make", *arguments], capture_output=True, check=False, timeout=120, **in_checkout)


class Made:
    """A target that runs until Ctrl-C, in the background; its output is in a file."""

    def __init__(self, in_checkout, target):
        self.output = in_checkout["cwd"] / f"{target}.log"
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                ["make", target], stdout=stream, stderr=stream, start_new_session=True, **in_checkout
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def says(self, text):
        """Whether it has printed that by now."""
        return text in self.output.read_text()

    def interrupt(self):
        """Ctrl-C goes to make and to what it runs."""
        os.killpg(self.process.pid, signal.SIGINT)


@pytest.fixture(autouse=True)
def _config(request):
    """The targets read config.txt."""
    if "checkout" in request.fixturenames:
        folder = request.getfixturevalue("checkout")
        (folder / "config.txt").write_text("PUBLIC_DATA=true\n")


def test_every_target_is_tried():
    """A new one needs a line here."""
    assert ELSEWHERE | set(MEASURE) | set(SERVE) | DOCKER | {"help", "health", "clean"} == TARGETS


def test_help_lists_each_target_in_80_columns(in_checkout):
    """It is also what make alone shows."""
    done = make(in_checkout)
    assert {line.split()[0] for line in done.stdout.splitlines()} == TARGETS
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert make(in_checkout, "help").stdout == done.stdout


@pytest.mark.parametrize("target", sorted(SERVE))
def test_what_serves_runs_until_ctrl_c(in_checkout, target):
    """With config.txt, or the demo with nothing."""
    with Made(in_checkout, target) as made:
        eventually(lambda: made.says(SERVE[target]), 60)
        made.interrupt()
        made.process.wait(10)
    assert "Traceback" not in made.output.read_text()
    if target != "demo":
        assert re.search(r"INFO +stopped", made.output.read_text())
    assert ("DEBUG" in made.output.read_text()) == (target == "run-dev")


def test_health_looks_at_the_running_service(in_checkout, exchange):
    """Its exit code is that of the health check."""
    exchange.clock.advance(time.time() - NOON_MS / 1000)
    exchange.clock.resume()
    assert make(in_checkout, "health").returncode == 2, "make's own code for a failed recipe"
    with Made(in_checkout, "run") as made:
        eventually(lambda: made.says("cycle updated=1"), 60)
        done = make(in_checkout, "health")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="they read /proc")
@pytest.mark.parametrize("target", sorted(MEASURE))
def test_what_measures_has_a_short_form(in_checkout, target):
    """In so short a time no candle closes, an error of bench-freshness; the results in bench/ stay."""
    before = {path: path.stat().st_mtime for path in (in_checkout["cwd"] / "bench").iterdir()}
    done = make(in_checkout, target, *MEASURE[target].split())
    assert SAYS[target] in done.stdout
    assert done.returncode == 0 or "no candle closed meanwhile" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
    changed = {path for path, moment in before.items() if path.stat().st_mtime != moment}
    assert {path.name for path in changed} <= {"__pycache__"}


@pytest.mark.parametrize("target", sorted(DOCKER))
def test_the_docker_targets_name_files_that_are_there(in_checkout, target):
    """Docker itself is not needed by the tests."""
    done = make(in_checkout, "--dry-run", target)
    assert done.returncode == 0
    (named,) = re.findall(r"(?:--file|python\S*) (\S+)", done.stdout)
    assert (ROOT / named).exists()


def test_clean_leaves_the_sources(in_checkout):
    """It removes what was made, and nothing else."""
    folder = in_checkout["cwd"]
    sources = {path for path in folder.rglob("*") if path.is_file() and ".venv" not in path.parts}
    for made in ("build/x", "dist/x", ".pytest_cache/x", "tests/__pycache__/x", "tet.egg-info/x"):
        (folder / made).parent.mkdir(exist_ok=True)
        (folder / made).touch()
    assert make(in_checkout, "clean").returncode == 0
    left = {path for path in folder.rglob("*") if path.is_file()}
    assert {path for path in sources if "__pycache__" not in path.parts} == left
    assert (ROOT / ".venv").exists(), "the link is removed, not what it leads to"
