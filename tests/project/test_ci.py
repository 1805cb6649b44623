"""What CI does with tests that fail: few are run again, alone; what fails twice is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from rig import PROGRAM, clean_environment

ROOT = PROGRAM.parent
MAKEFILE = """
check: ; @true
test: ; @{python} -m pytest -q -p conftest test_it.py
test-again: ; @{python} -m pytest -q -p conftest --last-failed --last-failed-no-failures=none test_it.py
"""
#: A test that fails the first time, and one that does each time.
TESTS = """
import pathlib, pytest
@pytest.mark.parametrize("number", range({late}))
def test_late(number):
    first = pathlib.Path(__file__).with_name(f"seen{{number}}")
    was_there = first.exists()
    first.touch()
    assert was_there
@pytest.mark.parametrize("number", range({wrong}))
def test_wrong(number):
    assert not number + 1
"""


@pytest.fixture
def run_ci(tmp_path):
    """Run .ci/run in a project with such tests; returns the process that has ended."""
    for folder in (".ci", "tests", ".venv/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    shutil.copy(ROOT / "tests" / "failed.py", tmp_path / "tests" / "failed.py")
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    for name in ("chromium", "wine", "apt-get"):  # nothing is to be installed
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "Makefile").write_text(MAKEFILE.format(python=sys.executable))
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = clean_environment(PATH=path, PYTHONPATH=f"{ROOT / 'tests'}{os.pathsep}{ROOT}")

    def run(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "test_it.py").write_text(text)
        return subprocess.run(
            [str(tmp_path / ".ci" / "run")], env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_a_few_that_pass_alone_are_named(run_ci):
    """The run counts; who reads it sees which they were."""
    done = run_ci(TESTS.format(late=5, wrong=0))
    assert done.returncode == 0, done.stdout + done.stderr
    again, passes = done.stderr.split("FAILED BESIDE OTHERS, run again alone:")[1].split("passes alone:")
    assert again.count("test_late") == passes.count("test_late") == 5


@pytest.mark.parametrize(
    "text",
    [
        TESTS.format(late=0, wrong=1),
        TESTS.format(late=2, wrong=1),
        TESTS.format(late=6, wrong=0),
        TESTS.format(late=1, wrong=0) + "\ndef test_end():\n    pytest.exit('not whole', returncode=3)\n",
        "not python",
    ],
    ids=["wrong", "one of them wrong", "many", "cut short", "not collected"],
)
def test_all_else_fails(run_ci, text):
    """Wrong twice, too many at once, or nobody knows whether all tests were run."""
    assert run_ci(text).returncode != 0


def test_all_pass_at_once(run_ci):
    """Nothing is run again."""
    done = run_ci("def test_it(): pass\n")
    assert done.returncode == 0
    assert "BESIDE" not in done.stderr
