"""Secrets stay inside, and nobody but the exchange is believed."""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import threading
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme
from rig import PROGRAM, Running, eventually, run_program, settings

import tet_data_service as tet
from tet_extras.logs import LogFormatter

SECRETS = ("key-7f3a91", "secret-91bc44", "redis-pw-55de")


class TimeOverTls(BaseHTTPRequestHandler):
    """An exchange that knows the time and nothing else."""

    def do_GET(self):
        """Answer every question with the time."""
        body = json.dumps({"serverTime": 1_768_478_850_000}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="module")
def authority():
    """A certificate authority that no system knows."""
    return trustme.CA()


@pytest.fixture
def tls_url(authority):
    """The address of a server on loopback whose certificate is from that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with HTTPServer(("127.0.0.1", 0), TimeOverTls) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def ask_the_time(url):
    """Ask as the service does, once."""
    config = settings(BINANCE_BASE_URL=url, API_REQUESTS_PER_SEC=100)
    with tet.connect_http(config) as http:
        return tet.Binance(config, tet.Clock(), http).sync_clock()


def test_a_certificate_nobody_vouches_for_is_refused(tls_url):
    """TLS is verified, always."""
    with pytest.raises(tet.TransientError, match="CERTIFICATE_VERIFY_FAILED"):
        ask_the_time(tls_url)


def test_ssl_cert_file_names_whom_to_trust(tls_url, authority, tmp_path, monkeypatch):
    """An operator behind a proxy of their own gives its authority in SSL_CERT_FILE."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert abs(ask_the_time(tls_url)) > 0


def test_nothing_turns_verification_off():
    """The module has no way to skip the check of certificates, and runs no shell and no eval."""
    source = PROGRAM.read_text()
    assert not re.search(
        r"verify\s*=|CERT_NONE|_create_unverified|shell=True|\beval\(|\bexec\(|pickle", source
    )


@pytest.mark.parametrize("level", ["debug", "info", "warning"])
@pytest.mark.parametrize("style", ["text", "json"])
def test_no_secret_is_told_whatever_goes_wrong(exchange, redis_url, reader, tmp_path, level, style):
    """With every kind of fault, wrong keys and a wrong password: no secret in log, status or error."""
    key, secret, password = SECRETS
    exchange.faults.stall_seconds = 0.1
    exchange.faults.mix(0.5, path="")
    config = tmp_path / "config.txt"
    config.write_text(f"BINANCE_API_KEY={key}\nBINANCE_SECRET_KEY={secret}\n")
    arguments = ["--once", f"--config={config}", f"--base-url={exchange.url}", "--symbols=BTC/USDT"]
    arguments += ["--days=2", f"--log-level={level}", f"--log-format={style}"]
    with_password = redis_url.replace("redis://", f"redis://:{password}@")
    said = run_program(*arguments, f"--redis={redis_url}").stderr
    said += run_program(*arguments, f"--redis={with_password}").stderr
    said += run_program(*arguments, f"--redis={redis_url}", REDIS_PASSWORD=password).stderr
    said += run_program(*arguments, f"--redis={with_password}", "--check-config").stdout
    said += "".join(reader.get(name) for name in reader.scan_iter())
    assert said
    assert not [text for text in SECRETS if text in said]


def test_a_traceback_has_no_secret_in_it():
    """Even an error whose own text quotes a secret is logged without it."""
    import logging

    formatter = LogFormatter("text", SECRETS)
    try:
        raise RuntimeError(f"it was {SECRETS[0]}")
    except RuntimeError as error:
        info = (RuntimeError, error, error.__traceback__)
    record = logging.LogRecord("tet", logging.ERROR, "", 0, "internal error", None, info)
    text = formatter.format(record)
    assert "it was ***" in text
    assert SECRETS[0] not in text


def test_the_process_list_shows_no_secret_of_ours(exchange, redis_url, tmp_path):
    """Secrets from the environment or the file do not get into the command line of the process."""
    environment = {"BINANCE_API_KEY": SECRETS[0], "BINANCE_SECRET_KEY": SECRETS[1]}
    with Running(tmp_path, f"--base-url={exchange.url}", f"--redis={redis_url}", **environment) as running:
        eventually(lambda: running.says("connected to redis"))
        line = Path(f"/proc/{running.process.pid}/cmdline").read_text()
    assert line
    assert not [text for text in SECRETS if text in line]


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_secret_with_quotes_in_it_is_redacted_too(style):
    """Quoting for the log must not hide a secret from the one who blots it out."""
    import logging

    secret = 'pa"ss\\w0rd'
    record = logging.LogRecord("tet", logging.INFO, "", 0, "event", None, None)
    record.facts = {"reason": f"the password {secret} is wrong", "count": 3}
    text = LogFormatter(style, [secret]).format(record)
    assert "pa" not in text.replace("password", "")
    assert "***" in text
    try:
        raise ValueError(f"not {secret}")
    except ValueError:
        record = logging.LogRecord("tet", logging.INFO, "", 0, f"event {secret}", None, sys.exc_info())
    text = LogFormatter(style, [secret]).format(record)
    assert text.count("***") == 2
    assert "w0rd" not in text  # unlike "word", in no path of a checkout


def test_no_proxy_sees_a_signed_call_to_this_machine(exchange, redis_url, monkeypatch):
    """Plain http with keys is for loopback alone, so a proxy from the environment is not used for it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    config = settings(
        BINANCE_BASE_URL=exchange.url, PUBLIC_DATA="false", BINANCE_API_KEY="k", BINANCE_SECRET_KEY="s"
    )
    with tet.connect_http(config) as http:
        tet.Binance(config, tet.Clock(), http).sync_clock()
    assert exchange.asked("time")


@pytest.fixture
def proxy_asked():
    """A proxy that refuses everything; yields its address, and what it was asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked = []

        def serve():
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        asked.append(connection.recv(4096).split(b"\r\n")[0])
                        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_used(proxy_asked, monkeypatch, name):
    """An operator behind a proxy names it as for any other program, with or without http:// before it."""
    address, asked = proxy_asked
    monkeypatch.setenv(name, address if name == "ALL_PROXY" else f"http://{address}")
    with pytest.raises(tet.TransientError, match="403"):
        ask_the_time("https://binance.invalid")
    assert set(asked) == {b"CONNECT binance.invalid:443 HTTP/1.1"}


@pytest.mark.parametrize(
    ("names", "url"),
    [
        ("example.org,127.0.0.1", "https://127.0.0.1:9"),
        ("example.org, *", "https://127.0.0.1:9"),
        ("127.0.0.1:9", "https://127.0.0.1:9"),
        ("::1", "https://[::1]:9"),
        ("https://127.0.0.1", "https://127.0.0.1:9"),
        ("example.org all://127.0.0.1:9/", "https://127.0.0.1:9"),
        ("https://*.localhost", "https://api.localhost:9"),
    ],
)
def test_no_proxy_names_what_is_reached_without_one(proxy_asked, monkeypatch, names, url):
    """NO_PROXY is heeded."""
    address, asked = proxy_asked
    monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
    monkeypatch.setenv("NO_PROXY", names)
    with pytest.raises(tet.TransientError):
        ask_the_time(url)
    assert not asked


@pytest.mark.parametrize("names", ["http://127.0.0.1", "https://127.0.0.2", "https://"])
def test_no_proxy_of_another_scheme_or_host_changes_nothing(proxy_asked, monkeypatch, names):
    """An entry with a scheme is for that scheme and that host alone."""
    address, asked = proxy_asked
    monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
    monkeypatch.setenv("NO_PROXY", names)
    with pytest.raises(tet.TransientError):
        ask_the_time("https://127.0.0.1:9")
    assert asked


@pytest.mark.parametrize(
    ("name", "proxy", "said"),
    [
        ("HTTPS_PROXY", "ftp://user:geheim@127.0.0.1:9", "found 'ftp://***@127.0.0.1:9'"),
        ("https_proxy", "http://user:geheim@127.0.0.1:none", "found 'http://***@***'"),
        ("HTTPS_PROXY", "http://user:geheim@127.0.0.1:99999", "found 'http://***@127.0.0.1:99999'"),
        ("HTTPS_PROXY", "http://user:ge/heim@127.0.0.1:9", "are written %2F %3F %23 %40"),
        ("HTTPS_PROXY", "http://user:ge heim@127.0.0.1:9", "found 'http://***@127.0.0.1:9'"),
        ("HTTPS_PROXY", "http://user:geheim@:3128", "found 'http://***@:3128'"),
        ("HTTPS_PROXY", "http://user:geheim@a..b:3128", "found 'http://***@a..b:3128'"),
        ("HTTPS_PROXY", "http://user:geheim%ff@h:3128", "found 'http://***@h:3128'"),
        ("ALL_PROXY", "socks://127.0.0.1:7890/", "SOCKS is not spoken here: set HTTPS_PROXY"),
        ("all_proxy", "socks5://user:geheim@127.0.0.1:7890", "SOCKS is not spoken here: set HTTPS_PROXY"),
        ("HTTPS_PROXY", "socks5h://geheim@h", "SOCKS is not spoken here: set HTTPS_PROXY"),
    ],
)
@pytest.mark.parametrize("live", ["false", "true"])
def test_a_proxy_that_cannot_be_used_is_a_clear_error(name, proxy, said, live, monkeypatch):
    """Before anything starts: the one variable that names it, and the remedy, but not its password."""
    monkeypatch.setenv(name, proxy)
    rest = (
        "http://127.0.0.1:9" if live == "true" else "https://binance.invalid"
    )  # a stream's proxy alone, too
    config = settings(BINANCE_BASE_URL=rest, LIVE=live, BINANCE_STREAM_URL="wss://binance.invalid")
    with pytest.raises(tet.ConfigError) as caught, tet.connect_http(config):
        pass
    assert str(caught.value).startswith(f"{name} (environment): found ")
    assert said in str(caught.value)
    assert not re.search("ge.?heim", str(caught.value))


def test_a_proxy_that_cannot_be_used_ends_the_program_with_2(redis_url):
    """No traceback, no word of libraries to be installed."""
    arguments = ("--public", "--once", f"--redis={redis_url}", "--base-url=https://127.0.0.1:9")
    done = run_program(*arguments, ALL_PROXY="socks://127.0.0.1:7890/")
    assert done.returncode == 2
    assert "ALL_PROXY (environment): found 'socks://127.0.0.1:7890/'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "pip" not in done.stderr
    assert "HTTP_PROXY" not in done.stderr


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "form", ["http://geheim@{}", "http://u:geheim@{}/geheim?x=geheim", "'u:gehe%69m@{}'"]
)
def test_a_proxy_that_fails_is_named_by_its_variable(proxy_asked, free_port, monkeypatch, name, form):
    """Whether it does not answer or refuses, with a user alone, a path, quotes: never with its secrets."""
    address, asked = proxy_asked
    for where, said in (
        (f"127.0.0.1:{free_port}", "does not answer: connection refused"),
        (address, "refuses: 403"),
    ):
        monkeypatch.setenv(name, form.format(where))
        with pytest.raises(tet.TransientError) as caught:
            ask_the_time("https://binance.invalid")
        assert str(caught.value).startswith(f"the proxy http://***@{where} {said}")
        assert str(caught.value).endswith(f"({name})")
        assert not re.search("geh", str(caught.value))
    assert asked


@pytest.mark.parametrize("form", ["http://geheim@{}", "http://u:geheim@{}/geheim"])
def test_a_streams_proxy_is_asked_and_its_secrets_are_not_shown(
    proxy_asked, exchange, redis_url, tmp_path, form
):
    """With LIVE, too, a token alone is a login, a path is left out, and the log has neither."""
    address, asked = proxy_asked
    arguments = ("--public", "--live", "--stream-url=wss://binance.invalid", "--symbols=BTC/USDT", "--days=1")
    servers = (f"--base-url={exchange.url}", f"--redis={redis_url}", "--log-level=debug")
    with Running(tmp_path, *arguments, *servers, HTTPS_PROXY=form.format(address)) as running:
        eventually(lambda: running.says(f"the proxy http://***@{address} refuses"))
    assert b"CONNECT binance.invalid:443 HTTP/1.1" in asked
    assert running.says("(HTTPS_PROXY)")
    assert not running.says("geheim")
    assert not running.says("Traceback")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:{}", "http://127.0.0.1:{} does not answer: connection refused (BINANCE_BASE_URL)"),
        ("https://binance.invalid", "https://binance.invalid does not answer: "),
        ("http://127.0.0.1:{}/geheim", "http://127.0.0.1:{} does not answer: connection refused"),
    ],
)
def test_an_exchange_that_does_not_answer_is_named_with_its_setting(url, said, free_port):
    """The address, in words what is wrong, and BINANCE_BASE_URL; no path, which may have a token in it."""
    with pytest.raises(tet.TransientError) as caught:
        ask_the_time(url.format(free_port))
    assert str(caught.value).startswith(said.format(free_port))
    assert str(caught.value).endswith("(BINANCE_BASE_URL)")
    assert "geheim" not in str(caught.value)


def test_a_token_in_the_exchanges_address_is_told_nowhere(exchange, redis_url, reader):
    """Neither in the log at its most talkative, nor in what is kept in Redis, a pause included."""
    given = (f"--base-url={exchange.url}/geheim", f"--redis={redis_url}", "--symbols=BTC/USDT")
    done = run_program("--public", "--once", "--log-level=debug", *given)
    said = done.stderr + run_program("--public", "--check-config", *given).stdout
    config = settings(BINANCE_BASE_URL=f"{exchange.url}/geheim", REDIS_ADDR=redis_url)
    with closing(tet.Store(config, tet.Clock(), tet.connect_redis(config))) as store:
        store.save_pause(10_000, 600, "banned")
        assert store.load_pause()
    said += "".join(reader.get(name) for name in reader.scan_iter())
    assert exchange.url in said
    assert "geheim" not in said


def test_a_certificate_file_that_is_not_there_is_a_clear_error(redis_url):
    """SSL_CERT_FILE that cannot be read: exit code 2 and its name, no traceback."""
    arguments = ("--public", "--once", f"--redis={redis_url}", "--base-url=https://127.0.0.1:9")
    done = run_program(*arguments, SSL_CERT_FILE="/nowhere/ca.pem")
    assert done.returncode == 2
    assert "SSL_CERT_FILE" in done.stderr
    assert "Traceback" not in done.stderr
