"""What strangers send to HTTP_ADDR: bounded, read in linear time, and in nobody's way. The real process."""

from __future__ import annotations

import random
import re
import resource
import signal
import socket
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from rig import Running, eventually, unused_port

from tet_extras.simulated_binance import Market, SimulatedBinance
from tet_extras.web.guard import HEAD_BYTES
from tet_extras.web.server import THREADS

PROMPT_SECONDS = 0.2
CPU_SECONDS = 0.1
MOST_GROWTH_MB = 20
MOST_THREADS = THREADS + 15
HALF = b"GET /health HTTP/1.1\r\nHost: local"


class Besieged:
    """A service whose page is open to strangers: what it says, and what it costs."""

    def __init__(self, process, port):
        self.process, self.port = process, port
        self.pid = process.process.pid

    def connect(self, sent=b"", receive_buffer=None):
        """A client that has sent that, and waits."""
        client = socket.socket()
        client.settimeout(10)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.port))
        client.sendall(sent)
        return client

    def ask(self, sent):
        """The whole answer to that; none to a client that is cut off before."""
        found = bytearray()
        with self.connect() as client:
            try:
                client.sendall(sent)
                while data := client.recv(65536):
                    found += data
            except ConnectionError:  # what was sent is more than is read; the answer came before that
                pass
        return bytes(found)

    def health_seconds(self):
        """How long /health takes."""
        began = time.monotonic()
        reply = self.ask(request("/health"))
        assert reply.startswith(b"HTTP/1.1 200"), reply[:100]
        return time.monotonic() - began

    def memory_mb(self):
        """What the process holds."""
        return int(re.search(r"VmRSS:\s+(\d+)", self._proc("status"))[1]) / 1000

    def threads(self):
        """How many threads it has."""
        return int(re.search(r"Threads:\s+(\d+)", self._proc("status"))[1])

    def cpu_seconds(self):
        """The CPU time it has used."""
        return time.clock_gettime((~self.pid << 3) | 2)

    def _proc(self, name):
        return Path(f"/proc/{self.pid}/{name}").read_text()


def request(target, *headers, host="localhost", method="GET"):
    """A request as a client sends it."""
    lines = (f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", "")
    return "\r\n".join(lines).encode("latin-1")


def padded(size):
    """A request whose head has so many bytes."""
    return request("/health", "X: " + "y" * (size - len(request("/health", "X: "))))


@contextmanager
def besieged(folder):
    """The program with a Redis of its own, ten pairs, after its first cycle."""
    port = unused_port()
    names = [f"P{number}/USDT" for number in range(10)]
    with SimulatedBinance(market=Market.random_walk(names)) as exchange:
        arguments = ["--public", f"--symbols={','.join(names)}", f"--base-url={exchange.url}"]
        arguments += ["--redis=embedded", f"--http=127.0.0.1:{port}", "--requests-per-sec=50"]
        with Running(folder, *arguments, DATA_DIR=str(folder)) as process:
            try:
                eventually(lambda: process.says("cycle updated=10"), 60)
                service = Besieged(process, port)
                for target in ("/api/pairs", "/metrics", "/api/candles?symbol=P0USDT", "/health"):
                    service.ask(request(target))
                yield service
                assert "internal error" not in process.log.read_text()
            finally:
                process.process.terminate()
                process.process.wait(20)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One for all, since each is as well afterwards as before."""
    with besieged(tmp_path_factory.mktemp("strangers")) as service:
        yield service


BLANKS = " " * 16_000

#: What is sent, and the status of the answer.
HOSTILE = {
    "a list of blanks": (request("/page/main.js", f"If-None-Match: a{BLANKS}b"), 200),
    "folded blanks": (
        request("/page/main.js", "If-None-Match: a\r\n" + (" " * 160 + "\r\n") * 90 + " b"),
        200,
    ),
    "blanks beyond all bounds": (request("/page/main.js", f"If-None-Match: a{BLANKS * 20}b"), 400),
    "tags": (request("/page/main.js", "If-None-Match: " + "W/,\t" * 4000), 200),
    "a weight without end": (
        request("/metrics", "Accept-Encoding: gzip;q=0." + "1" * 15_000 + "\r\n x"),
        200,
    ),
    "parameters": (request("/metrics", "Accept-Encoding: " + " ;" * 8000), 200),
    "a version that is none": (request("/metrics", "Accept: text/plain;version=x"), 200),
    "another": (request("/metrics", "Accept: application/openmetrics-text;version=1." + "9" * 9000), 200),
    "a version with a header in it": (
        request("/metrics", "Accept: application/openmetrics-text;version=2.0\r\n X-Evil: 1"),
        200,
    ),
    "cookies": (request("/api/status", "Cookie: " + "tet_token=a; " * 1200), 200),
    "a cookie that is no text": (request("/api/status", "Cookie: tet_token=\xff\xe9"), 200),
    "a token that is no text": (request("/api/status", "Authorization: Bearer \xff\x00" + "x" * 9000), 400),
    "a long host": (request("/health", host="a" * 16_000), 403),
    "a host of colons": (request("/health", host=f"[{':' * 16_000}]"), 403),
    "a host that is split": (request("/health", host="localhost@evil.example"), 403),
    "two hosts": (request("/health", "Host: evil.example"), 400),
    "a host behind a line that is none": (b"GET /health HTTP/1.1\r\nx\r\nHost: evil.example\r\n\r\n", 400),
    "many headers": (request("/health", *["a: b"] * 5000), 431),
    "folded lines": (request("/health", "a: b" + "\r\n c" * 3000), 200),
    "ranges": (request("/page/main.js", "Range: bytes=" + "0-1," * 4000), 200),
    "a large head": (padded(HEAD_BYTES - 100), 200),
    "one that is too large": (padded(HEAD_BYTES + 100), 431),
    "one in two parts": (padded(300_000), 400),
    "a long address": (request("/" + "x" * 100_000), 431),
    "parameters without end": (request("/api/candles?" + "&a=b" * 3900), 400),
    "a symbol of escapes": (request("/api/candles?symbol=" + "%ff" * 5000), 404),
    "a symbol of per cent": (request("/api/candles?symbol=" + "%" * 15_000), 404),
    "a symbol that grows": (request("/api/candles?symbol=" + "%C5%89" * 2500), 404),
    "a limit that is no number": (request("/api/candles?symbol=P0USDT&limit=" + "9" * 15_000), 400),
    "a limit of other digits": (request("/api/candles?symbol=P0USDT&limit=%D9%A1"), 400),
    "half a pair of surrogates": (request("/api/candles?symbol=%ED%A0%80"), 404),
    "a path that leads out": (request("/page/" + "../" * 4000 + "etc/passwd"), 404),
    "a path of escapes": (request("/" + "%41" * 5000), 404),
    "a method without end": (request("/", method="G" * 16_000), 405),
    "a method that is no text": (request("/", method="\xff\x00"), 400),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
    "a version of other digits": (b"GET / HTTP/\xb2.\xb9\r\n\r\n", 400),
    "an upgrade": (request("/health", "Connection: Upgrade", "Upgrade: h2c"), 200),
    "a hundred at once": (request("/health") * 100, 200),
    "a body": (request("/health", "Content-Length: 200000", method="POST") + b"x" * 200_000, 405),
    "a body in chunks": (
        request("/health", "Transfer-Encoding: chunked", method="PUT") + b"fffffff\r\n" + b"x" * 200_000,
        405,
    ),
    "a body that is expected": (request("/", "Expect: 100-continue", "Content-Length: 9", method="PUT"), 405),
    "zeros": (b"\0" * 50_000, 400),
    "empty lines": (b"\r\n" * 20_000, 400),
    "lines without a return": (b"GET /health HTTP/1.1\nHost: localhost\nConnection: close\n\n", 200),
    "noise": (random.Random(1).randbytes(50_000), 400),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_costs_next_to_nothing(service, name):
    """It is answered at once, with a status that fits, and so is who comes next."""
    sent, status = HOSTILE[name]
    cpu_before = service.cpu_seconds()
    reply = service.ask(sent)
    assert reply.startswith(b"HTTP/1.1 %d " % status), reply[:200]
    assert b"\r\nX-Evil" not in reply
    assert (b"content-security-policy" in reply) is not reply.endswith(b"Invalid HTTP request received.")
    assert service.cpu_seconds() - cpu_before < CPU_SECONDS
    assert service.health_seconds() < PROMPT_SECONDS


def never_reading(service, target):
    """A client that asks and takes nothing."""
    return service.connect(request(target), receive_buffer=2048)


def candles(number):
    """An address whose answer is large, and another one for each number."""
    return f"/api/candles?symbol=P{number % 10}USDT&limit={2880 - number}"


#: Clients by what they are: how many, and one of them.
CROWDS = {
    "half-open": (2000, lambda service, number: service.connect(HALF)),
    "silent": (2000, lambda service, number: service.connect()),
    "with a head that never ends": (600, lambda service, number: service.connect(b"GET /" + b"x" * 16_000)),
    "dripping": (300, lambda service, number: service.connect(HALF)),
    "followers that never read": (200, lambda service, number: never_reading(service, "/events")),
    "askers that never read": (150, lambda service, number: never_reading(service, candles(number))),
}


@pytest.mark.parametrize("name", CROWDS)
def test_health_answers_beside(service, name, open_files):
    """Within 0.2 s, while memory and threads stay bounded."""
    count, client = CROWDS[name]
    memory_before = service.memory_mb()
    with ExitStack() as crowd:
        clients = [crowd.enter_context(client(service, number)) for number in range(count)]
        service.health_seconds()  # what has come meanwhile is taken in first
        for _ in range(8):
            if name == "dripping":
                drip(clients)
            assert service.health_seconds() < PROMPT_SECONDS
            assert service.memory_mb() - memory_before < MOST_GROWTH_MB
            assert service.threads() < MOST_THREADS
            time.sleep(0.05)  # beside them for a while
    eventually(lambda: service.threads() < 20)


def drip(clients):
    """A byte from each that is still there."""
    for client in clients:
        try:
            client.send(b"x")
        except OSError:
            client.close()


@pytest.fixture
def open_files():
    """This process may open as many files as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this process may not open enough files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_asked_for_is_not_kept_as_it_was_written(service):
    """Hundreds of long symbols and hosts, each another one, and memory is as it was."""

    def ask(numbers):
        for number in numbers:
            dashes = "-" * (7000 + number)
            reply = service.ask(request(f"/api/candles?limit=1&symbol=P{dashes}0USDT"))
            assert reply.startswith(b"HTTP/1.1 200")
            service.ask(request("/health", host=f"{number}" + "h" * 15_000))

    ask(range(100))  # what the first ones bring into memory stays
    memory_before = service.memory_mb()
    ask(range(100, 700))
    assert service.memory_mb() - memory_before < 5, "kept as written, it would be 13 MB"


def test_without_file_descriptors_it_waits_and_recovers(service):
    """No busy loop, one warning, no client left out thereafter."""
    before = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
    in_use = len(list(Path(f"/proc/{service.pid}/fd").iterdir()))
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (in_use + 4, before[1]))
    with ExitStack() as crowd:
        try:
            followers = [crowd.enter_context(service.connect(request("/events"))) for _ in range(4)]
            assert all(follower.recv(1) for follower in followers)

            def refused():
                crowd.enter_context(service.connect())  # some that were in use may be free by now
                return service.process.says("HTTP clients cannot be accepted")

            eventually(refused)
            cpu_before = service.cpu_seconds()
            time.sleep(1.5)  # a stretch of time is what is judged
            assert service.cpu_seconds() - cpu_before < 0.6
        finally:
            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, before)
        assert service.health_seconds() < 2
    assert service.process.log.read_text().count("HTTP clients cannot be accepted") == 1
    assert service.health_seconds() < PROMPT_SECONDS


def test_it_stops_promptly_beside_all_of_them(tmp_path, open_files):
    """SIGTERM, with a crowd of each kind there."""
    with besieged(tmp_path) as service, ExitStack() as crowd:
        for _, client in CROWDS.values():
            for number in range(60):
                crowd.enter_context(client(service, number))
        began = time.monotonic()
        service.process.process.send_signal(signal.SIGTERM)
        assert service.process.process.wait(20) == 0
        assert time.monotonic() - began < 3
