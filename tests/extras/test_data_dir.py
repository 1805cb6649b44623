"""DATA_DIR as people leave it behind: links, folders that may not be written, data of another release."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

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

from tet_extras.embedded import EmbeddedServer

pytestmark = [
    pytest.mark.cold,
    pytest.mark.skipif(os.name != "posix", reason="the embedded server needs a POSIX system"),
]


@pytest.mark.parametrize("kind", ["to nowhere", "to itself", "read-only"])
def test_a_folder_that_cannot_be_used_is_a_sentence(unprivileged, tmp_path, kind):
    """Which one, and what is wrong with it; exit code 2."""
    folder = tmp_path / "data"
    if kind == "read-only":
        folder.mkdir(mode=0o500)
        reason = "Permission denied"
    else:
        folder.symlink_to(folder if kind == "to itself" else tmp_path / "is" / "none")
        reason = "a symbolic link that leads nowhere"
    done = subprocess.run(
        [*unprivileged, sys.executable, str(PROGRAM), "--public", "--once", "--redis=embedded",
         f"--data-dir={folder}"],
        env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"DATA_DIR {folder}: {reason}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["a newer release's", "a file", "behind a link"])
def test_data_of_another_kind_is_set_aside_or_used(tmp_path, kind):
    """What the server cannot load is a cache: kept in ``damaged``, said once, and begun anew."""
    folder, said = tmp_path / "data", []

    def log(level, event, **facts):
        said.append((event, facts))

    def started():
        server = EmbeddedServer(folder, 256, log, [unused_port()])
        server.start()
        return server, redis.Redis(port=server.port)

    server, client = started()
    client.set("tet:x", "1")
    server.stop()
    if kind == "a newer release's":
        base = next((folder / "appendonlydir").glob("*.base.rdb"))
        base.write_bytes(base.read_bytes()[:5] + b"9999" + base.read_bytes()[9:])
    elif kind == "a file":
        (folder / "appendonlydir").rename(tmp_path / "old")
        (folder / "appendonlydir").write_text("x")
    else:
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    said.clear()
    server, client = started()
    try:
        assert client.set("tet:y", "2")
        if kind == "behind a link":
            assert client.get("tet:x") == b"1"
            assert [event for event, _ in said] == ["embedded server"]
        else:
            assert client.get("tet:x") is None
            (facts,) = [facts for event, facts in said if "beginning anew" in event]
            assert facts["reason"]
            assert (folder / "damaged" / "appendonlydir").exists()
    finally:
        client.close()
        server.stop()


def test_a_server_that_is_frozen_ends_with_the_service(arguments, tmp_path):
    """It answers nothing and heeds no SIGTERM: the stop takes its bounded time, then it is killed."""
    folder = tmp_path / "data"
    with Running(tmp_path, *arguments) as program:
        eventually(lambda: program.says("cycle updated=1"))
        os.kill(int(eventually(partial(server_on, folder))), signal.SIGSTOP)
        program.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert program.process.wait(15) == 0
        assert time.monotonic() - began < 8
    eventually(lambda: not servers_on(folder), 30)
    assert run_program(*arguments, "--once").returncode == 0
