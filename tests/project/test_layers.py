"""The storeys: who may import whom, and how large a part may be. The sizes may only go down."""

from __future__ import annotations

import ast
import re
import sys

import pytest
from rig import PROGRAM

ROOT = PROGRAM.parent
CORE = sorted((ROOT / "tet_core").glob("*.py"))
EXTRAS = sorted((ROOT / "tet_extras").rglob("*.py"))
READER = ROOT / "tet_reader.py"
TESTS_OF_CORE = [ROOT / "tests" / "samples.py", *sorted((ROOT / "tests" / "core").glob("*.py"))]
#: What the core, and a test of it, does without.
REACHING_OUT = {"socket", "ssl", "http", "urllib", "subprocess", "threading", "asyncio", "os"}
EVERY = [PROGRAM, *CORE, *EXTRAS, READER]
MODULE_LINES = 2900
FILE_LINES = 450
READER_LINES = 1110  # one file, so that it can be copied
LOCKED = ("feeds", "watchlist")  # what they hold is read by any thread
SIMULATED = ("simulated_binance", "simulated_streams")
CLASS_LINES = 200
FUNCTION_LINES = 50


def imported(path):
    """The modules that a file imports, anywhere in it; relative ones by their full name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            within = f"{path.parent.name}." if node.level else ""
            names |= (
                {f"{within}{node.module}"} if node.module else {within + each.name for each in node.names}
            )
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_imports_itself_and_the_standard_library(path):
    """And of that nothing that reaches out: no socket, no process, no thread; two files have locks."""
    packages = {name.partition(".")[0] for name in imported(path)} - {"tet_core"}
    packages -= {"threading"} if path.stem in LOCKED else set()
    assert packages <= sys.stdlib_module_names
    assert not packages & {*REACHING_OUT, "time"}


@pytest.mark.parametrize("path", TESTS_OF_CORE, ids=lambda path: path.stem)
def test_the_tests_of_the_core_need_it_alone(path):
    """Neither the module nor an extra, no server and no process: they are done in seconds."""
    packages = {name.partition(".")[0] for name in imported(path)}
    assert packages <= sys.stdlib_module_names | {"tet_core", "samples", "pytest", "hypothesis"}
    assert not packages & REACHING_OUT


def test_imports_within_the_core_go_down():
    """Each file needs only what its docstring names before it."""
    text = ast.get_docstring(ast.parse((ROOT / "tet_core" / "__init__.py").read_text()))
    order = re.findall(r"^\* ``(\w+)``", text, re.M)
    assert set(order) == {path.stem for path in CORE} - {"__init__"}
    for place, name in enumerate(order):
        needs = {each.removeprefix("tet_core.") for each in imported(ROOT / "tet_core" / f"{name}.py")}
        assert needs & set(order) <= set(order[:place]), name


@pytest.mark.parametrize("path", EXTRAS, ids=lambda path: path.stem)
def test_no_extra_imports_the_module(path):
    """A second copy of it would be loaded, whose errors are other classes."""
    assert not [name for name in imported(path) if name.startswith("tet_data_service")]


def test_the_reader_needs_redis_alone():
    """It is copied to where nothing else of ours is."""
    assert {name.partition(".")[0] for name in imported(READER)} - sys.stdlib_module_names == {"redis"}


def defined(path):
    """What a file defines: functions, classes and constants, and what these have as ``Class.name``."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            named = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {node.name} | {f"{node.name}.{each.name}" for each in named}
        elif isinstance(node, ast.Assign):
            names |= {each.id for each in node.targets if isinstance(each, ast.Name)}
    return names


def test_the_walks_through_the_rooms_name_what_is_there():
    """Each name of a walk in docs/design.md is one of the file that it is said to be in."""
    steps = re.findall(r"^- `([\w/]+\.py)`: (.*)$", (ROOT / "docs" / "design.md").read_text(), re.M)
    assert len(steps) > 50
    for file, names in steps:
        assert set(re.findall("`([^`]+)`", names)) <= defined(ROOT / file), file


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_every_part_keeps_its_shape(path):
    """Files, classes with one job, and functions short enough to see at once."""
    source = path.read_text()
    if path.stem not in SIMULATED:
        bounds = {PROGRAM: MODULE_LINES, READER: READER_LINES}
        assert source.count("\n") <= bounds.get(path, FILE_LINES)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and path.stem not in SIMULATED:
            assert node.end_lineno - node.lineno < CLASS_LINES, node.name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_every_public_method_says_what_for(path):
    """But setters, whose property does, and those of `Listeners`, which hand on what `Listener` describes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name != "Listeners":
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
                    is_setter = any(ast.unparse(mark).endswith(".setter") for mark in each.decorator_list)
                    assert is_setter or ast.get_docstring(each), f"{node.name}.{each.name}"


def test_the_module_is_cut_into_chapters():
    """Each is short enough to be a thought."""
    chapters = re.split(r"^# -{78}\n(?=# \w)", PROGRAM.read_text(), flags=re.M)
    assert len(chapters) > 12
    assert max(chapter.count("\n") for chapter in chapters) <= 500
