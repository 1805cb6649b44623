"""The README, config.example and the module's docstring say what is so."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rig import PROGRAM, clean_environment, eventually, run_program, started, unused_port

import tet_data_service as tet
from tet_extras.settings_file import PLACEHOLDER

ROOT = PROGRAM.parent
README = (ROOT / "README.md").read_text()
EXAMPLE = (ROOT / "config.example").read_text()


def blocks(language):
    """The README's code blocks in that language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("option", tet.OPTIONS, ids=lambda option: option.name)
def test_the_settings_table_has_each_option_as_it_is(option):
    """Name, flag, default and help in the README are those of the options table."""
    (row,) = re.findall(rf"^\| `{option.name}` \|(.*)\|$", README, re.MULTILINE)
    flag, default, text = (cell.strip().strip("`") for cell in row.split("|"))
    assert flag == (option.flag or "")
    assert text == option.help
    if option.name not in ("SYMBOLS", "BINANCE_BASE_URL", "BINANCE_STREAM_URL"):
        assert default == (option.default or "")


def test_the_settings_table_has_nothing_else():
    """No row of the table names a setting that does not exist."""
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE)) == {o.name for o in tet.OPTIONS}


@pytest.mark.parametrize("option", tet.OPTIONS, ids=lambda option: option.name)
def test_the_example_file_shows_each_default(option):
    """config.example has each setting once: keys as placeholders, others commented out at their default."""
    (line,) = re.findall(rf"^#?{option.name}=.*$", EXAMPLE, re.MULTILINE)
    if option.name.endswith("_KEY"):
        assert PLACEHOLDER.fullmatch(line.partition("=")[2])
    else:
        assert line == f"#{option.name}={option.default or ''}"
    comment = (
        EXAMPLE.partition(f"\n{line}\n")[0].rpartition("=")[2].partition("\n")[2]
    )  # since the last setting
    words = " ".join(part.removeprefix("# ") for part in comment.splitlines())
    flag = f" ({option.flag})" if option.flag else ""
    assert words.endswith(f"{option.help}{flag} Allowed: {option.allowed}.")


def test_the_example_file_works_when_keys_are_not_wanted(tmp_path):
    """A copy of config.example with PUBLIC_DATA set is a sound configuration."""
    config = tmp_path / "config.txt"
    config.write_text(EXAMPLE.replace("#PUBLIC_DATA=false", "PUBLIC_DATA=true"))
    done = run_program(f"--config={config}", "--check-config")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_example_file_as_it_is_asks_for_keys(tmp_path):
    """The placeholders count as missing, and the message tells of both ways out."""
    done = run_program(f"--config={ROOT / 'config.example'}", "--check-config")
    assert done.returncode == 2
    assert "BINANCE_API_KEY: missing; set it, or run without keys" in done.stderr


#: Run elsewhere: CI runs the first three, tests/test_build.py the build.
RUN_ELSEWHERE = {"make dev-setup", "make check", "make test", "./build.sh"}


def shell_blocks():
    """The README's shell commands, block by block, without those that are run elsewhere."""
    texts = [textwrap.dedent(text) for text in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)]
    kept = ([line for line in text.strip().splitlines() if line not in RUN_ELSEWHERE] for text in texts)
    return [lines for lines in kept if lines]


def test_the_demo_command_runs(in_checkout, tmp_path):
    """The first command of the README, as it stands, until Ctrl-C."""
    assert shell_blocks()[0] == ["./run.sh --demo"]
    with (tmp_path / "demo.txt").open("w+") as screen:
        demo = subprocess.Popen(["./run.sh", "--demo"], stdout=screen, stderr=screen, **in_checkout)
        eventually(lambda: "Ctrl-C ends it" in (tmp_path / "demo.txt").read_text(), 60)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(10) == 0


def test_the_commands_for_real_run(in_checkout, checkout):
    """config.txt, its check, and the service under nohup."""
    write, start = shell_blocks()[1:3]
    done = subprocess.run(["bash", "-ec", "\n".join(write)], capture_output=True, check=False, **in_checkout)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^PUBLIC_DATA +true +config.txt line \d+$", done.stdout, re.M)
    script = "\n".join([*start, "echo $!"])
    shell = subprocess.run(["bash", "-ec", script], stdout=subprocess.PIPE, check=True, **in_checkout)
    eventually(lambda: "cycle updated=1" in (checkout / "tet.log").read_text(), 60)
    os.kill(int(shell.stdout), signal.SIGTERM)
    eventually(lambda: "INFO    stopped" in (checkout / "tet.log").read_text())


def test_the_commands_for_developers_run(in_checkout):
    """The source against the simulated exchange, by hand."""
    (lines,) = shell_blocks()[3:]
    script = "\n".join(["trap 'kill $(jobs -p)' EXIT", *lines]).replace("9100", str(unused_port()))
    script = script.replace("&\n", "& sleep 1\n")  # as long as it takes to type the next line
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=False, **in_checkout)
    assert "cycle updated=1 failed=0" in done.stderr, done.stderr


def test_every_flag_in_the_readme_exists():
    """No flag in the README is unknown to the programs."""
    known = run_program("--help").stdout
    simulator = [sys.executable, str(ROOT / "tet_extras" / "simulated_binance.py"), "--help"]
    known += subprocess.run(simulator, capture_output=True, text=True, check=True).stdout
    of_others = {"--file", "--build", "--detach"}  # docker's
    assert {
        flag for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", README) if flag not in known
    } <= of_others


def test_every_file_in_the_readme_exists():
    """What the README names in deploy/, and its scripts, are there."""
    names = set(re.findall(r"deploy/[\w.-]+\w|\b(?:run|build)\.(?:sh|bat)|config\.example", README))
    assert len(names) > 7
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_make_target_in_the_readme_exists():
    """The make commands of the README are in the Makefile, and each target has its line of help."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.* ## ", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)\b", README)) - {"a", "both"}
    assert len(named) > 4
    assert named <= targets
    assert targets >= set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())


def test_the_javascript_example_runs_as_printed(exchange, redis_url, tmp_path):
    """The example reads what the service wrote, and prints the newest closed candle."""
    if not shutil.which("npm"):
        pytest.skip("needs Node.js with npm")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "redis@5"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=90, check=False).returncode:
        pytest.skip("the package redis cannot be had from npm here")
    with started(exchange, redis_url) as rig:
        rig.refresh()
    (example,) = blocks("js")
    script = tmp_path / "example.mjs"
    script.write_text(example.replace("{ database: 1 }", f'{{ url: "{redis_url}", database: 1 }}'))
    done = subprocess.run(["node", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2026-01-15T11:45:00Z" in done.stdout


def test_the_pandas_example_runs_as_printed(exchange, redis_url, tmp_path):
    """The example reads what the service wrote, and prints closed candles only."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
    (example,) = blocks("python")
    port = redis_url.rpartition(":")[2]
    script = tmp_path / "example.py"
    script.write_text(example.replace("redis.Redis(db=1)", f"redis.Redis(port={port}, db=1)"))
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", str(script)],
        capture_output=True,
        text=True,
        env=clean_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("2026-01-15 11:45:00+00:00")


def test_pandas_gets_a_numeric_frame_in_utc(exchange, redis_url, reader):
    """read_json gives float columns and a UTC index, as the contract promises."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
    frame = pd.read_json(
        StringIO(json.loads(reader.get("tet:kline:15m:BTC_USDT"))["ohlcv_data"]), orient="index"
    )
    assert list(frame.columns) == ["open", "high", "low", "close", "volume"]
    assert {dtype.kind for dtype in frame.dtypes} == {"f"}
    assert str(frame.index.tz) == "UTC"
    assert len(frame) == 192


def test_the_docstring_names_the_keys_and_fields_that_are_written(exchange, redis_url, reader):
    """The module's docstring is the data contract: every key and field in Redis is in it."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
    patterns = re.findall(r"``(tet:[^`]*)``", tet.__doc__)
    known = {re.sub(r"\\\{\w+\\\}", ".+", re.escape(pattern)) for pattern in patterns}
    for key in reader.scan_iter():
        assert any(re.fullmatch(pattern, key) for pattern in known), key
    for name in json.loads(reader.get("tet:kline:15m:BTC_USDT")):
        assert f"``{name}``" in tet.__doc__


def test_the_version_stands_once():
    """The packaging takes the version from the module."""
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert run_program("--version").stdout == f"tet-data-service {tet.__version__}\n"


def test_help_and_version_need_no_network_library():
    """--help is quick: it imports neither httpx nor redis."""
    code = "import sys, tet_data_service; sys.exit(any(m in sys.modules for m in ('httpx', 'redis')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(ROOT), check=False).returncode == 0


def test_what_contributing_names_is_there():
    """Its files exist, its names are in the sources, and its commands are the README's."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    sources = "".join(path.read_text() for path in ROOT.glob("*/*.py")) + PROGRAM.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"(?<!`)`([^`\n]+)`", text):
        if name.startswith("make "):
            assert all(f"\n{target}:" in makefile for target in name.split()[1:]), name
        elif "/" in name or name.endswith((".md", ".toml", ".example")):
            assert (ROOT / name).exists(), name
        elif not name.startswith("git "):
            assert name.rpartition(".")[2] in sources, name
    assert re.findall(r"```sh\n(.*?)```", text, re.S)[0] in README


def test_the_module_keeps_its_shape():
    """5,200 lines in chapters under 500, classes with one job, functions short enough to see at once."""
    source = PROGRAM.read_text()
    assert source.count("\n") <= 5200
    chapters = re.split(r"^# -{78}\n(?=# \w)", source, flags=re.M)
    assert len(chapters) > 15
    assert max(chapter.count("\n") for chapter in chapters) <= 500
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            most = 250 if isinstance(node, ast.ClassDef) else 60
            assert node.end_lineno - node.lineno < most, node.name
