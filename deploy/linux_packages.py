"""Makes a deb and an rpm of the Linux binary: ``linux_packages.py BINARY [deb|rpm]``, in OUT or dist/.

Both hold the binary, the unit, and settings in /etc/tet-data-service that are kept when they were edited.
Nothing is started or enabled by installing; removing stops it. dpkg-deb makes the deb, rpmbuild the rpm.
"""

# ruff: noqa: S607 (it starts git, dpkg-deb and rpmbuild, with arguments of its own)

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "tet-data-service"
ABOUT = "Binance candles, kept fresh in Redis"
#: How Debian and Red Hat call a machine.
ARCHITECTURES = {"x86_64": ("amd64", "x86_64"), "aarch64": ("arm64", "aarch64")}

HAS_SYSTEMD = "if [ -d /run/systemd/system ]; then"
AFTER_INSTALL = f"""{HAS_SYSTEMD}
    systemctl daemon-reload || true
    systemctl try-restart {NAME}.service || true
fi
"""
BEFORE_REMOVAL = f"""{HAS_SYSTEMD}
    systemctl disable --now {NAME}.service || true
fi
"""
AFTER_REMOVAL = f"{HAS_SYSTEMD} systemctl daemon-reload || true; fi\n"

CONTROL = """\
Package: {name}
Version: {version}
Architecture: {architecture}
Maintainer: TET Data Service
Installed-Size: {kilobytes}
Section: database
Priority: optional
Suggests: redis-server | valkey-server
Description: {about}
 One program that keeps the last 30 days of Binance candles of every pair it is
 told fresh in Redis. Settings: /etc/tet-data-service/config.txt.
"""
SPEC = """\
Name: {name}
Version: {version}
Release: 1
Summary: {about}
License: unspecified
AutoReqProv: no
%global __os_install_post %{{nil}}
%description
One program that keeps the last 30 days of Binance candles of every pair it is
told fresh in Redis. Settings: /etc/tet-data-service/config.txt.
%install
cp -a {tree}/. %{{buildroot}}
%post
{after_install}%preun
if [ "$1" = 0 ]; then
{before_removal}fi
%postun
{after_removal}%files
%attr(755, root, root) /usr/bin/{name}
%attr(644, root, root) /usr/lib/systemd/system/{name}.service
%config(noreplace) %attr(644, root, root) /etc/{name}/config.txt
%doc %attr(644, root, root) /usr/share/doc/{name}/*
"""


def version() -> str:
    """The program's version."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "tet_data_service.py").read_text(), re.M)
    return found[1] if found else "0"


def settings() -> str:
    """config.example, with what makes it start as it is: without keys."""
    text = (ROOT / "config.example").read_text()
    return re.sub(r"^(BINANCE_\w+_KEY=)", r"#\1", text, flags=re.M).replace(
        "#PUBLIC_DATA=false", "PUBLIC_DATA=true", 1
    )


def stage(binary: Path, tree: Path) -> None:
    """Lay the files out as they are to be installed."""
    unit = (ROOT / "deploy" / f"{NAME}.service").read_text()
    unit = unit[unit.index("[Unit]") :].replace("/usr/local/bin/", "/usr/bin/")
    texts = {f"usr/lib/systemd/system/{NAME}.service": unit, f"etc/{NAME}/config.txt": settings()}
    for name in ("README.md", "CHANGELOG.md", "LICENSE"):
        if (ROOT / name).exists():
            texts[f"usr/share/doc/{NAME}/{name}"] = (ROOT / name).read_text()
    for name, text in texts.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    target = tree / "usr" / "bin" / NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(binary, target)
    target.chmod(0o755)


def make_deb(binary: Path, out: Path, architecture: str) -> Path:
    """Make the deb; returns its path."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        tree.chmod(0o755)
        stage(binary, tree)
        kilobytes = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) // 1024
        control = tree / "DEBIAN"
        control.mkdir()
        facts = {"name": NAME, "version": version(), "about": ABOUT}
        (control / "control").write_text(
            CONTROL.format(**facts, architecture=architecture, kilobytes=kilobytes)
        )
        (control / "conffiles").write_text(f"/etc/{NAME}/config.txt\n")
        removing = f'if [ "$1" = remove ]; then\n{BEFORE_REMOVAL}fi\n'
        for name, text in (("postinst", AFTER_INSTALL), ("prerm", removing), ("postrm", AFTER_REMOVAL)):
            (control / name).write_text(f"#!/bin/sh\nset -e\n{text}")
            (control / name).chmod(0o755)
        made = out / f"{NAME}_{version()}_{architecture}.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", folder, str(made)], check=True)
    return made


def make_rpm(binary: Path, out: Path, architecture: str) -> Path:
    """Make the rpm; returns its path."""
    with tempfile.TemporaryDirectory() as folder:
        tree, spec = Path(folder) / "tree", Path(folder) / f"{NAME}.spec"
        stage(binary, tree)
        scripts = {
            "after_install": AFTER_INSTALL,
            "before_removal": BEFORE_REMOVAL,
            "after_removal": AFTER_REMOVAL,
        }
        facts = {"name": NAME, "version": version(), "about": ABOUT}
        spec.write_text(SPEC.format(**facts, **scripts, tree=tree))
        defined = [f"--define=_topdir {folder}/top", f"--define=_rpmdir {folder}/made"]
        command = ["rpmbuild", "-bb", "--quiet", f"--target={architecture}-linux", *defined, str(spec)]
        subprocess.run(command, check=True)
        (made,) = Path(folder).rglob("*.rpm")
        return Path(shutil.copy(made, out))


def main() -> int:
    """Make what the command line asks for."""
    binary, kinds = Path(sys.argv[1]), sys.argv[2:] or ["deb", "rpm"]
    out = Path(os.environ.get("OUT", ROOT / "dist"))
    out.mkdir(parents=True, exist_ok=True)
    of_debian, of_red_hat = ARCHITECTURES[platform.machine()]
    for kind in kinds:
        made = make_deb(binary, out, of_debian) if kind == "deb" else make_rpm(binary, out, of_red_hat)
        print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
