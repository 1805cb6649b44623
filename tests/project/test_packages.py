"""The deb and the rpm: made, installed under another root, started, removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rig import PROGRAM, clean_environment

ROOT = PROGRAM.parent
NAME = "tet-data-service"


@pytest.fixture
def made(tmp_path):
    """What makes a package of that kind, of a stand-in for the binary: it starts the source."""

    def make(kind):
        binary = tmp_path / "binary"
        binary.write_text(f'#!/bin/sh\nexec {sys.executable} {PROGRAM} "$@"\n')
        command = [sys.executable, ROOT / "deploy" / "linux_packages.py", binary, kind]
        environment = os.environ | {"OUT": str(tmp_path / "out")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return Path(done.stdout.splitlines()[-1])

    return make


def starts(root):
    """The installed program says its version, and finds the installed settings sound."""
    program, config = root / "usr/bin" / NAME, root / "etc" / NAME / "config.txt"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{NAME} ")
    environment = clean_environment(ALL_PROXY="http://127.0.0.1:9")
    done = subprocess.run(
        [program, f"--config={config}", "--check-config"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    unit = (root / "usr/lib/systemd/system" / f"{NAME}.service").read_text()
    assert f"ExecStart=/usr/bin/{NAME} --config=/etc/{NAME}/config.txt" in unit
    assert "ExecReload=" in unit


@pytest.mark.skipif(not (shutil.which("dpkg-deb") and shutil.which("fakeroot")), reason="no dpkg here")
def test_the_deb_is_installed_and_removed(made, tmp_path):
    """Settings that were edited survive an upgrade and the removal; nothing else is left."""
    package, root = made("deb"), tmp_path / "root"
    (root / "var/lib/dpkg").mkdir(parents=True)
    for name in ("status", "available"):
        (root / "var/lib/dpkg" / name).touch()

    def dpkg(*arguments):
        command = ["fakeroot", "dpkg", "--force-script-chrootless", "--force-not-root", "--log=/dev/null"]
        done = subprocess.run(
            [*command, f"--root={root}", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    dpkg("--install", str(package))
    starts(root)
    config = root / "etc" / NAME / "config.txt"
    config.write_text(config.read_text() + "SYMBOLS=BTC/USDT\n")
    dpkg("--install", str(package))
    assert config.read_text().endswith("SYMBOLS=BTC/USDT\n")
    dpkg("--remove", NAME)
    assert not (root / "usr/bin" / NAME).exists()
    assert config.exists()
    dpkg("--purge", NAME)
    assert not config.exists()


@pytest.mark.skipif(not shutil.which("rpmbuild"), reason="no rpmbuild here")
def test_the_rpm_is_installed_and_removed(made, tmp_path):
    """Likewise; rpm keeps edited settings beside."""
    package, root = made("rpm"), tmp_path / "root"

    def rpm(*arguments):
        command = ["fakeroot", "rpm", f"--root={root}", "--dbpath=/db", "--nodeps", "--noscripts"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    listed = subprocess.run(["rpm", "-qp", "--scripts", package], capture_output=True, text=True, check=True)
    assert f"systemctl disable --now {NAME}.service" in listed.stdout
    root.mkdir()
    rpm("--install", "--ignorearch", str(package))
    starts(root)
    rpm("--erase", NAME)
    assert not (root / "usr/bin" / NAME).exists()
