"""The README, docs/, config.example and the module's docstring say what is so."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rig import PROGRAM, clean_environment, eventually, run_program, started, stored, unused_port
from samples import MINUTE

import tet_data_service as tet
from tet_extras.settings_file import PLACEHOLDER

ROOT = PROGRAM.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
}
EVERYTHING = "\n".join(PAGES.values())
SETTINGS = PAGES["docs/settings.md"]
EXAMPLE = (ROOT / "config.example").read_text()


def blocks(language, page):
    """The code blocks of a page in that language, without indentation."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)
    return [textwrap.dedent(text) for text in found]


def test_the_readme_is_one_page():
    """What does not fit belongs into docs/."""
    assert len(README.splitlines()) <= 120


def anchors(text):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    """Files and pictures are there, seen from the page that names them; so are the headings."""
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if not re.match(r"https?://|mailto:", target):
            path, _, heading = target.partition("#")
            there = (ROOT / name).parent / path if path else ROOT / name
            assert there.exists(), target
            assert not heading or heading in anchors(there.read_text()), target


def test_every_page_is_linked_from_the_readme():
    """Nothing is written that nobody finds."""
    assert [name for name in PAGES if name != "README.md" and f"]({name})" not in README] == []


@pytest.mark.parametrize("option", tet.OPTIONS, ids=lambda option: option.name)
def test_the_settings_table_has_each_option_as_it_is(option):
    """Name, flag, default and help in docs/settings.md are those of the options table."""
    (row,) = re.findall(rf"^\| `{option.name}` \|(.*)\|$", SETTINGS, re.MULTILINE)
    flag, default, text = (cell.strip().strip("`") for cell in row.split("|"))
    assert flag == (option.flag or "")
    assert text == option.help
    if option.name not in ("SYMBOLS", "BINANCE_BASE_URL", "BINANCE_STREAM_URL"):
        assert default == (option.default or "")


def test_the_settings_table_has_nothing_else():
    """No row of the table names a setting that does not exist."""
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", EVERYTHING, re.MULTILINE)) == {o.name for o in tet.OPTIONS}


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
    """The placeholders count as missing, and the message names both ways out."""
    done = run_program(f"--config={ROOT / 'config.example'}", "--check-config")
    assert done.returncode == 2
    assert "BINANCE_API_KEY: missing; set it, or run without keys" in done.stderr


#: Run elsewhere: CI runs the first three, tests/project/test_build.py the build.
RUN_ELSEWHERE = {"make dev-setup", "make check", "make test", "./build.sh"}


def shell_blocks(page):
    """The shell commands of a page, block by block, without those that are run elsewhere."""
    texts = blocks("sh", page)
    kept = ([line for line in text.strip().splitlines() if line not in RUN_ELSEWHERE] for text in texts)
    return [lines for lines in kept if lines]


@pytest.mark.timeout(400)  # which the environment that run.sh makes may take
@pytest.mark.usefixtures("ready_to_run")
def test_the_demo_command_runs(in_checkout, tmp_path):
    """The first command of the README, as it stands, until Ctrl-C."""
    assert shell_blocks("README.md")[0] == ["./run.sh --demo"]
    with (tmp_path / "demo.txt").open("w+") as screen:
        demo = subprocess.Popen(["./run.sh", "--demo"], stdout=screen, stderr=screen, **in_checkout)
        eventually(lambda: "Ctrl-C ends it" in (tmp_path / "demo.txt").read_text(), 60)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(10) == 0


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ready_to_run")
def test_the_commands_for_real_run(in_checkout, checkout):
    """config.txt, its check, and the service under nohup."""
    write, start = shell_blocks("README.md")[1:]
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
    (lines,) = shell_blocks("CONTRIBUTING.md")
    script = "\n".join(["trap 'kill $(jobs -p)' EXIT", *lines]).replace("9100", str(unused_port()))
    script = script.replace("&\n", "& sleep 1\n")  # as long as it takes to type the next line
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=False, **in_checkout)
    assert "cycle updated=1 failed=0" in done.stderr, done.stderr


def test_every_flag_in_the_docs_exists():
    """No flag in a page is unknown to the programs."""
    known = run_program("--help").stdout
    simulator = [sys.executable, str(ROOT / "tet_extras" / "simulated_binance.py"), "--help"]
    known += subprocess.run(simulator, capture_output=True, text=True, check=True).stdout
    of_others = {"--file", "--build", "--detach", "--tags", "--line-buffered"}  # of docker, git, grep
    of_others |= {"--dry-run"}  # of freqtrade
    assert {
        flag for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", EVERYTHING) if flag not in known
    } <= of_others


def test_every_file_in_the_docs_exists():
    """What the pages name in deploy/, and its scripts, are there."""
    names = set(
        re.findall(
            r"deploy/[\w.-]+\w|\b(?:run|build)\.(?:sh|bat)|config\.example|bench/[\w.-]+\w", EVERYTHING
        )
    )
    assert len(names) > 7
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_make_target_in_the_docs_exists():
    """The make commands of the pages are in the Makefile, and each target has its line of help."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.* ## ", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)\b", EVERYTHING, re.M)) - {"a"}
    assert len(named) > 4
    assert named <= targets
    assert targets >= set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())


@contextmanager
def lines_of(command, folder):
    """A program that prints for ever: a function for its next line."""
    process = subprocess.Popen(
        command, cwd=folder, env=clean_environment(PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process.stdout.readline
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(line, text):
    """The next line that has a text; the test's time-out bounds it."""
    while text not in (said := line()):
        assert said, "it has ended"
    return said


def closes(exchange, rig, line, reader):
    """What it says of the newest closed candle, and of the next one, when that closes."""
    assert until(line, "11:45:00")
    eventually(lambda: reader.pubsub_numsub("tet:updates")[0][1])
    time.sleep(0.2)  # who follows reads what is there, first
    exchange.clock.advance(15 * MINUTE)
    rig.refresh()
    assert until(line, "12:00:00")


def test_the_javascript_example_runs_as_printed(exchange, redis_url, reader, tmp_path):
    """It prints the newest closed candle that the service wrote, and the next one when it closes."""
    if not shutil.which("npm"):
        pytest.skip("needs Node.js with npm")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "redis@5"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=90, check=False).returncode:
        pytest.skip("the package redis cannot be had from npm here")
    (example,) = blocks("js", "docs/reading.md")
    script = tmp_path / "example.mjs"
    script.write_text(example.replace("{ database: 1 }", f'{{ url: "{redis_url}", database: 1 }}'))
    with started(exchange, redis_url) as rig:
        rig.refresh()
        with lines_of(["node", script], tmp_path) as line:
            closes(exchange, rig, line, reader)


@pytest.mark.parametrize("page", ["README.md", "docs/reading.md"])
def test_the_readers_example_runs_as_printed(exchange, redis_url, reader, tmp_path, page):
    """It prints the newest closed candles, and the next one when it closes."""
    script = tmp_path / "example.py"
    script.write_text(blocks("python", page)[0].replace("redis://localhost:6379", redis_url))
    with started(exchange, redis_url) as rig:
        rig.refresh()
        with lines_of([sys.executable, script], tmp_path) as line:
            closes(exchange, rig, line, reader)


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.stem)
def test_the_examples_tell_what_pandas_says(path, exchange, redis_url, reader):
    """Of a pair that is above and of one that is below, whether they cross at this close."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT,DOGE/USDT") as rig:
        rig.refresh()
        with lines_of([sys.executable, path, f"{redis_url}/1"], ROOT) as line:
            eventually(lambda: reader.pubsub_numsub("tet:updates")[0][1])
            time.sleep(0.2)
            exchange.clock.advance(15 * MINUTE)
            rig.refresh()
            said = [line() for _ in range(3)]
    for name in ("BTC", "ETH", "DOGE"):
        (text,) = [each for each in said if f" {name}/USDT 15m " in each]
        value = json.loads(reader.get(f"tet:kline:15m:{name}_USDT"))
        frame = pd.read_json(StringIO(value["ohlcv_data"]), orient="index")
        closes = frame[frame.index < value["data_end"]]["close"]
        above = closes.rolling(20).mean() > closes.rolling(50).mean()
        assert text.startswith("2026-01-15 12:00:00+00:00 ")
        assert ("above" in text) == above.iloc[-1]
        assert text.endswith(f"crossed={above.iloc[-1] != above.iloc[-2]}\n")


def test_the_pandas_example_runs_as_printed(exchange, redis_url, tmp_path):
    """The example reads what the service wrote, and prints closed candles only."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
    example = blocks("python", "docs/reading.md")[1]
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


def test_the_shells_example_runs_as_printed(exchange, redis_url, tmp_path):
    """By redis-cli and jq, the newest closed candles."""
    if not (shutil.which("redis-cli") and shutil.which("jq")):
        pytest.skip("needs redis-cli and jq")
    with started(exchange, redis_url) as rig:
        rig.refresh()
    (example,) = blocks("sh", "docs/reading.md")
    read, _, follow = example.rpartition("redis-cli")
    assert "SUBSCRIBE tet:updates" in follow
    read = read.replace("redis-cli", f"redis-cli -p {redis_url.rpartition(':')[2]}")
    done = subprocess.run(["sh", "-c", read], capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        f"2026-01-15T11:{minute}:00Z" for minute in (15, 30, 45)
    ]


def test_the_go_example_runs_as_printed(exchange, redis_url, reader, tmp_path):
    """It prints each close with what the announcement carries."""
    if not shutil.which("go"):
        pytest.skip("needs Go")
    (example,) = blocks("go", "docs/reading.md")
    source = tmp_path / "example.go"
    source.write_text(example.replace("localhost:6379", redis_url.removeprefix("redis://")))
    built = ["go", "build", "-o", str(tmp_path / "example"), str(source)]
    subprocess.run(built, cwd=tmp_path, check=True, env=clean_environment(GOPROXY="off"), timeout=90)
    with started(exchange, redis_url) as rig:
        rig.refresh()
        with lines_of([tmp_path / "example"], tmp_path) as line:
            eventually(lambda: reader.pubsub_numsub("tet:updates")[0][1])
            exchange.clock.advance(15 * MINUTE)
            rig.refresh()
            said = line()
    assert said.startswith("BTC/USDT 15m closed at 2026-01-15T12:15:00Z [[")
    assert stored(reader)["candles"]["2026-01-15T12:00:00Z"]["close"] in said


def test_the_rust_example_runs_as_printed(exchange, redis_url, reader, tmp_path):
    """It prints the closed candles. Debian's crates, where they are, need no network."""
    crates = Path("/usr/share/cargo/registry")
    if not (shutil.which("cargo") and list(crates.glob("serde_json-*"))):
        pytest.skip("needs cargo and Debian's librust-serde-json-dev")
    (example,) = blocks("rust", "docs/reading.md")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/main.rs").write_text(
        example.replace("localhost:6379", redis_url.removeprefix("redis://"))
    )
    package = '[package]\nname = "example"\nversion = "0.1.0"\nedition = "2021"\n'
    (tmp_path / "Cargo.toml").write_text(f'{package}[dependencies]\nserde_json = "1"\n')
    (tmp_path / ".cargo").mkdir()
    sources = '[source.crates-io]\nreplace-with = "debian"\n[source.debian]\n'
    (tmp_path / ".cargo/config.toml").write_text(f'{sources}directory = "{crates}"\n')
    with started(exchange, redis_url) as rig:
        rig.refresh()
    run = ["cargo", "run", "--quiet", "--offline"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    value = stored(reader)
    closed = [(at, candle["close"]) for at, candle in value["candles"].items() if at < value["data_end"]]
    assert done.stdout.splitlines() == [f'{at} "{close}"' for at, close in closed]


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


@pytest.mark.cold
def test_the_version_stands_once():
    """The packaging takes the version from the module."""
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert run_program("--version").stdout == f"tet-data-service {tet.__version__}\n"


def test_help_and_version_need_no_network_library():
    """--help is quick: it imports neither httpx nor redis."""
    code = "import sys, tet_data_service; sys.exit(any(m in sys.modules for m in ('httpx', 'redis')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(ROOT), check=False).returncode == 0


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/design.md"])
def test_what_is_said_of_the_code_is_there(page):
    """Files exist, names are in the sources, and commands are the README's."""
    text = (ROOT / page).read_text()
    sources = "".join(
        path.read_text()
        for path in (PROGRAM, *ROOT.glob("*/*.py"), *ROOT.glob("tet_*/*/*.py"), *ROOT.glob("tests/*/*.py"))
    )
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"(?<!`)`([^`\n]+)`", text):
        if name.startswith("make "):
            targets = [word for word in name.split()[1:] if "=" not in word]
            assert all(f"\n{target}:" in makefile for target in targets), name
        elif variable := re.fullmatch(r"([A-Z]+)=\w+", name):
            assert f"$({variable[1]})" in makefile or f"$(if $({variable[1]})" in makefile, name
        elif name.startswith("--"):
            pass  # test_every_flag_in_the_docs_exists
        elif "/" in name or name.endswith((".md", ".toml", ".example")):
            assert (ROOT / name).exists(), name
        elif not name.startswith("git "):
            assert name.rpartition(".")[2] in sources, name
    assert all(block in README for block in re.findall(r"```sh\n(.*?)```", text, re.S)[:1])
