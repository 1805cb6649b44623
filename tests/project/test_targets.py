"""Each target of the Makefile, in its shortest form."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
from rig import PROGRAM, InSession, eventually
from samples import NOON_MS

ROOT = PROGRAM.parent
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.* ## ", MAKEFILE, re.M))

#: Run elsewhere: CI runs the first three, test_build.py the build, test_packages.py its part, and
#: Windows' wants Wine.
ELSEWHERE = {"dev-setup", "check", "test", "test-again", "test-cluster", "build", "packages"}
ELSEWHERE |= {"windows", "windows-test"}
MEASURE = {
    "soak": "CYCLES=3",
    "soak-reader": "SECONDS=1",
    "soak-bots": "SECONDS=3",
    "bench": "PAIRS=2",
    "bench-freshness": "MINUTES=0.02",
    "bench-closes": "QUICK=1",
    "bench-memory": "PAIRS=3 MINUTES=0.1",
    "bench-patches": "PATCHES=500",
    "bench-page": "SECONDS=1",
    "bench-proxy": "SECONDS=1",
    "bench-browser": "PAIRS=5 SECONDS=1",
    "bench-live": "PAIRS=2 SECONDS=1",
    "bench-reader": "PAIRS=2",
    "bench-scaling": "QUICK=1",
}
SAYS = {
    "soak": "differ from the exchange: none",
    "soak-reader": "wrong: nothing",
    "soak-bots": "wrong: nothing",
    "bench": "this service       2",
    "bench-freshness": "25 pairs, 1m candles",
    "bench-closes": "one write",
    "bench-memory": "of each pair, MB",
    "bench-patches": "500 patches",
    "bench-page": "100 clients",
    "bench-proxy": "the same bots at the exchange",
    "bench-browser": "live pairs    first   loaded",
    "bench-live": "CPU per message",
    "bench-reader": "2 pairs followed through a close",
    "bench-scaling": "3,700 x 15 intervals polling",
}
SERVE = {"run": "cycle updated=1", "run-dev": "cycle updated=1", "demo": "Ctrl-C ends it"}
DOCKER = {"container-test", "docker-build", "docker-run", "docker-stop", "docker-logs"}


def make(in_checkout, *arguments):
    """Run make to its end."""
    return subprocess.run(["make", *arguments], capture_output=True, check=False, timeout=120, **in_checkout)


def serving(in_checkout, target):
    """A target that runs until Ctrl-C, in the background."""
    return InSession(in_checkout["cwd"] / f"{target}.log", ["make", target], **in_checkout)


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


@pytest.mark.timeout(400)  # which the environment that run.sh makes may take
@pytest.mark.usefixtures("ready_to_run")
@pytest.mark.parametrize("target", sorted(SERVE))
def test_what_serves_runs_until_ctrl_c(in_checkout, target):
    """With config.txt, or the demo with nothing."""
    with serving(in_checkout, target) as made:
        eventually(lambda: made.says(SERVE[target]), 60)
        made.interrupt()
        made.process.wait(10)
    assert "Traceback" not in made.log.read_text()
    if target != "demo":
        assert re.search(r"INFO +stopped", made.log.read_text())
    assert ("DEBUG" in made.log.read_text()) == (target == "run-dev")


def test_health_looks_at_the_running_service(in_checkout, exchange):
    """Its exit code is that of the health check."""
    exchange.clock.advance(time.time() - NOON_MS / 1000)
    exchange.clock.resume()
    assert make(in_checkout, "health").returncode == 2, "make's own code for a failed recipe"
    with serving(in_checkout, "run") as made:
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
