"""The README, config.example and the module's docstring say what is so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rig import PROGRAM, clean_environment, run_program, started

import tet_data_service as tet

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
    if option.name not in ("SYMBOLS", "BINANCE_BASE_URL"):
        assert default == (option.default or "")


def test_the_settings_table_has_nothing_else():
    """No row of the table names a setting that does not exist."""
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE)) == {o.name for o in tet.OPTIONS}


@pytest.mark.parametrize("option", tet.OPTIONS, ids=lambda option: option.name)
def test_the_example_file_shows_each_default(option):
    """config.example has each setting once: keys as placeholders, others commented out at their default."""
    (line,) = re.findall(rf"^#?{option.name}=.*$", EXAMPLE, re.MULTILINE)
    if option.name.endswith("_KEY"):
        assert tet._PLACEHOLDER.fullmatch(line.partition("=")[2])
    else:
        assert line == f"#{option.name}={option.default or ''}"


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


def test_every_flag_in_the_readme_exists():
    """No command in the README has a flag that the programs do not know."""
    known = run_program("--help").stdout
    simulator = [sys.executable, str(ROOT / "simulated_binance.py"), "--help"]
    known += subprocess.run(simulator, capture_output=True, text=True, check=True).stdout
    shell = "\n".join(blocks("sh"))
    assert {flag for flag in re.findall(r"--[a-z-]+", shell) if flag not in known} == set()


def test_every_make_target_in_the_readme_exists():
    """The make commands of the README are in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for line in re.findall(r"^make (.*)$", README, re.MULTILINE) for word in line.split()}
    assert named
    assert named <= targets


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
