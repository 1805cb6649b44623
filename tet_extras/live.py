"""The connections to the exchange's kline streams, for LIVE: subscriptions, frames, silence, renewal.

Transport only: what a message may change is decided by whom it is delivered to. Sources of the rules are
Binance's documentation of its WebSocket streams, and reports of what goes wrong with them.

A *line* is a set of streams that share a connection. Each connection has a thread that receives, and hands
over; the main thread starts connections, looks after them at each `Streams.tick`, and ends them. An
acknowledged subscription proves nothing, only data does: so each connection carries a *canary*, a stream
that has something to say each second, subscribed last. A connection is renewed before the exchange ends
it: the new one delivers before the old one is closed.
"""

from __future__ import annotations

import json
import logging
import random
import socket
import ssl as ssl_module
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from .addresses import is_private
from .figures import Tally
from .transport import proxy_for

STREAMS_PER_LINE = 250  # of 1,024 that are allowed: what one failure costs is smaller
SUBSCRIBE_BYTES = 4000  # from 4,096 on a SUBSCRIBE is not answered (binance-connector-rust#27)
SEND_SECONDS = 0.25  # between two messages of ours: 5 a second are allowed, strictly; pongs count too
LOOK_SECONDS = 1.0  # how often a connection that receives nothing looks whether it is to end
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 15.0
LIFETIME_SECONDS = 23 * 3600.0  # the exchange ends a connection after 24 hours
LAG_WINDOW_SECONDS = 10.0
MAX_LAG_SECONDS = 5.0  # above the least that a connection has shown
ATTEMPTS, ATTEMPTS_SECONDS = 100, 300.0  # 300 are allowed for an address, which others may share
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS, REFUSED_RETRY_SECONDS = 1.0, 60.0, 60.0
QUEUED_FRAMES = 1000  # received and not yet taken over; when full, the connection stops to read
MAX_FRAME_BYTES = 1 << 20


class Message(NamedTuple):
    """What a stream tells of a candle.

    ``row`` is what a row of REST's klines begins with: open time, open, high, low, close, volume and close
    time, unchecked. ``line`` is the number of the line that it came by.
    """

    stream: str
    event_ms: int
    row: tuple[object, ...]
    closed: bool
    line: int


def kline_stream(symbol: str, interval: str) -> str:
    """The name of a stream: BTCUSDT and 15m are ``btcusdt@kline_15m``."""
    return f"{symbol.lower()}@kline_{interval}"


def canary_stream(market: str, symbol: str) -> str:
    """A stream that has something to say each second, whatever is traded."""
    return f"{symbol.lower()}@{'markPrice@1s' if market == 'usdm' else 'kline_1s'}"


def parse_kline(data: Any, line: int) -> Message | None:
    """The message in an event; None for events of other kinds. Raises ValueError for what is no event."""
    try:
        if data["e"] != "kline":
            return None
        k = data["k"]
        row = (k["t"], k["o"], k["h"], k["l"], k["c"], k["v"], k["T"])
        stream, event_ms, closed = kline_stream(k["s"], k["i"]), data["E"], k["x"]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no event: {error!r:.80}") from error
    if type(event_ms) is not int or type(closed) is not bool:
        raise ValueError("no event: E and x do not fit")
    return Message(stream, event_ms, row, closed, line)


class Commands:
    """The SUBSCRIBE and UNSUBSCRIBE messages that a connection has still to send. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, str]] = deque()  # method and stream
        self._number = 0

    def add(self, method: str, streams: Iterable[str]) -> None:
        """Send that soon."""
        with self._lock:
            self._waiting.extend((method, stream) for stream in streams)

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self) -> str:
        """The next message: streams of one method, of at most `SUBSCRIBE_BYTES`. There must be one."""
        with self._lock:
            self._number += 1
            method = self._waiting[0][0]
            streams: list[str] = []
            size = len(json.dumps({"method": method, "params": [], "id": self._number}))
            while self._waiting and self._waiting[0][0] == method:
                size += len(self._waiting[0][1]) + 3  # quotes and comma
                if size > SUBSCRIBE_BYTES and streams:
                    break
                streams.append(self._waiting.popleft()[1])
            message = {"method": method, "params": streams, "id": self._number}
            return json.dumps(message, separators=(",", ":"))


class Lag:
    """How far behind its events a connection is. Its thread adds; others read. Seconds.

    What counts is growth: the least lag of a window against the least that was ever seen, so that a wrong
    clock does not matter. A connection that falls behind stays behind (dev.binance.vision/t/5652).
    """

    def __init__(self) -> None:
        self._best = self._window_best = float("inf")
        self._window_ends = 0.0
        self.growth_seconds = 0.0

    def add(self, lag_seconds: float, now_seconds: float) -> None:
        """Take one message's lag into account; ``now_seconds`` is monotonic."""
        self._best = min(self._best, lag_seconds)
        self._window_best = min(self._window_best, lag_seconds)
        if now_seconds >= self._window_ends:
            self.growth_seconds = self._window_best - self._best
            self._window_best, self._window_ends = float("inf"), now_seconds + LAG_WINDOW_SECONDS


class Context(NamedTuple):
    """What all connections share: the address, the canary, whom messages go to, and the clocks.

    ``now_ms`` gives exchange time, ``monotonic`` seconds that only grow.
    """

    url: str
    canary: str
    deliver: Callable[[Message], None]
    now_ms: Callable[[], float]
    monotonic: Callable[[], float]
    ssl: ssl_module.SSLContext | None
    proxy: str | None


class Connection:
    """One connection, from its handshake to its end, on a thread of its own.

    Its thread sets the fields that tell how it goes; the main thread reads them and may call `end`, `shut`
    and `change`. Each field is replaced in one step.
    """

    def __init__(self, line: int, streams: Iterable[str], context: Context) -> None:
        self._line = line
        self._context = context
        self._commands = Commands()
        self._commands.add("SUBSCRIBE", [each for each in streams if each != context.canary])
        self._commands.add("SUBSCRIBE", [context.canary])  # last
        self._send_at_seconds = 0.0
        self._ending = threading.Event()
        self._ws: ClientConnection | None = None
        self._thread = threading.Thread(target=self._run, name=f"stream-{line}", daemon=True)
        self.lifetime_seconds = LIFETIME_SECONDS * random.uniform(0.9, 1.0)  # no two share a birthday
        self.born_seconds = self._context.monotonic()
        self.data_seconds = self.born_seconds  # when data came last
        self.open = False
        self.delivering = False  # the canary was heard: all that was subscribed before is served
        self.is_leaving = False  # the exchange has said that it will end this connection
        self.ended_by = ""  # why it has ended; empty while it has not
        self.messages = 0
        self.bad_frames = 0
        self.lag = Lag()

    def start(self) -> None:
        """Connect, subscribe and receive."""
        self._thread.start()

    def is_old(self, now_seconds: float) -> bool:
        """Whether it is to be renewed: by its age, or since the exchange has said so."""
        return self.is_leaving or now_seconds - self.born_seconds > self.lifetime_seconds

    def change(self, method: str, streams: Iterable[str]) -> None:
        """SUBSCRIBE to streams, or UNSUBSCRIBE; the canary stays."""
        self._commands.add(method, [each for each in streams if each != self._context.canary])

    def end(self) -> None:
        """Close it in an orderly way, soon."""
        self._ending.set()

    def shut(self, reason: str) -> None:
        """Cut it off now, whatever hangs: the socket is shut down before the library closes it.

        Once closed, a thread that hangs in the middle of a TLS record would stay there for ever.
        """
        self.ended_by = self.ended_by or reason
        self._ending.set()
        if self._ws:
            with suppress(OSError):
                socket.socket.shutdown(self._ws.socket, socket.SHUT_RDWR)

    def _run(self) -> None:
        reason = "closed"
        try:
            self._converse()
        except ConnectionClosed as error:
            reason = f"closed by the exchange ({error.rcvd.code})" if error.rcvd else "connection lost"
        except (OSError, WebSocketException, httpx.InvalidURL, ImportError) as error:
            reason = f"connection lost: {_words(error)}" if self.open else f"refused: {_words(error)}"
        except Exception:
            logging.getLogger("tet").exception("internal error")
            reason = "internal error"
        self.ended_by = self.ended_by or reason

    def _converse(self) -> None:
        context = self._context
        with connect(
            context.url,
            ssl=context.ssl,
            proxy=context.proxy,
            compression=None,
            open_timeout=CONNECT_SECONDS,
            close_timeout=1,
            ping_interval=None,  # pings prove nothing; silence is watched by `Streams`
            max_queue=QUEUED_FRAMES,
            max_size=MAX_FRAME_BYTES,
        ) as ws:
            self._ws = ws
            self.data_seconds = self._context.monotonic()
            self.open = True
            while not self._ending.is_set():
                wait_seconds = self._send_next(ws)
                with suppress(TimeoutError):
                    self._take(ws.recv(timeout=wait_seconds, decode=False))

    def _send_next(self, ws: ClientConnection) -> float:
        """Send the next command if it is its time; returns how long to receive until the next look."""
        if not self._commands:
            return LOOK_SECONDS
        left_seconds = self._send_at_seconds - self._context.monotonic()
        if left_seconds > 0:
            return left_seconds
        ws.send(self._commands.next())
        self._send_at_seconds = self._context.monotonic() + SEND_SECONDS
        return SEND_SECONDS

    def _take(self, frame: bytes | str) -> None:
        """Hand over what a frame has; a damaged one is counted, and is missed where it would have counted."""
        try:
            content = json.loads(frame)
            data = content.get("data", content)
            if data.get("e") == "serverShutdown":
                self.is_leaving = True
            if "id" in content:  # acknowledged, or refused: only data proves anything
                return
            message = parse_kline(data, self._line)
        except (ValueError, AttributeError, RecursionError):
            self.bad_frames += 1
            return
        now_seconds = self._context.monotonic()
        self.data_seconds, self.messages = now_seconds, self.messages + 1
        self.delivering = self.delivering or content.get("stream") == self._context.canary
        if message:
            self.lag.add((self._context.now_ms() - message.event_ms) / 1000, now_seconds)
            self._context.deliver(message)


def _words(error: Exception) -> str:
    """What an error says, or what it is."""
    if isinstance(error, InvalidStatus):
        return f"HTTP {error.response.status_code}"
    return str(error) or type(error).__name__


class Line:
    """Streams that share a connection, that connection, and the one that is to take its place."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.streams: dict[str, None] = {}
        self.current: Connection | None = None
        self.successor: Connection | None = None
        self.failures = 0
        self.retry_at_seconds = 0.0

    def connections(self) -> Iterator[Connection]:
        """Those there are, up to two."""
        yield from (each for each in (self.current, self.successor) if each)

    def change(self, method: str, streams: Iterable[str]) -> None:
        """SUBSCRIBE to streams, or UNSUBSCRIBE, without a reconnect."""
        for stream in (names := list(streams)):
            self.streams[stream] = None
            if method == "UNSUBSCRIBE":
                del self.streams[stream]
        for connection in self.connections():
            connection.change(method, names)

    def is_due_for_renewal(self, now_seconds: float) -> bool:
        """Whether a successor is to be connected now."""
        is_free = self.current and not self.successor and now_seconds >= self.retry_at_seconds
        return bool(is_free and self.current and self.current.is_old(now_seconds))

    def failed(self, now_seconds: float, refused: bool) -> None:
        """Wait before the next attempt: doubling, with jitter."""
        self.failures += 1
        seconds = min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(self.failures - 1, 10))
        if refused:
            seconds = max(seconds, min(REFUSED_RETRY_SECONDS, 5.0 * self.failures))
        self.retry_at_seconds = now_seconds + seconds * random.uniform(0.5, 1.0)


class Lost(NamedTuple):
    """A connection that was lost: the streams that it had, why, and whether it ever delivered."""

    streams: tuple[str, ...]
    reason: str
    was_delivering: bool


def _tls_context() -> ssl_module.SSLContext:
    """Certificates are verified as for REST, but TLS 1.3 is not spoken.

    The library reads in one thread and writes in another. While TLS 1.3's session tickets arrive, right
    after the handshake, 11 of 1,000 connections came to nothing so, and none with TLS 1.2 (websockets 17.2).
    """
    context = httpx.create_ssl_context()
    context.maximum_version = ssl_module.TLSVersion.TLSv1_2
    return context


class Streams:
    """All lines: which streams they carry, and how they are. The main thread owns it.

    ``deliver`` is called from the connections' threads with each message; ``now_ms`` gives exchange time, and
    ``monotonic`` seconds that only grow.
    """

    def __init__(
        self,
        url: str,
        deliver: Callable[[Message], None],
        now_ms: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        logging.getLogger("websockets").setLevel(logging.ERROR)
        address = f"{url}/stream"
        is_secure = urlsplit(address).scheme == "wss"
        ssl = _tls_context() if is_secure else None
        proxy = proxy_for(address.replace("ws", "http", 1)) if is_secure or not is_private(url) else None
        self._context = Context(address, "", deliver, now_ms, monotonic, ssl, proxy)
        self._lines: list[Line] = []
        self._attempts: deque[float] = deque(maxlen=ATTEMPTS)
        self._past_messages = self._past_bad_frames = 0  # of connections that are gone
        self._rate: deque[tuple[float, int]] = deque(maxlen=11)  # when, and the messages by then
        self.reconnects = Tally()  # by reason

    def keep(self, wanted: Iterable[str], canary: str) -> None:
        """Carry these streams and no others: subscribes and unsubscribes without a reconnect.

        A new canary is that of new connections; those of one that has left will be silent, and replaced.
        """
        names = dict.fromkeys(wanted)
        self._context = self._context._replace(canary=canary)
        for line in self._lines:
            if gone := line.streams.keys() - names.keys():
                line.change("UNSUBSCRIBE", gone)
        carried = {stream for line in self._lines for stream in line.streams}
        new = [stream for stream in names if stream not in carried]
        needed = -(-len(names) // STREAMS_PER_LINE)
        while len(self._lines) < needed:
            self._lines.append(Line(len(self._lines)))
        shares: dict[int, list[str]] = {line.number: [] for line in self._lines}
        for stream in new:
            least = min(self._lines, key=lambda line: len(line.streams) + len(shares[line.number]))
            shares[least.number].append(stream)
        for line in self._lines:
            if shares[line.number]:
                line.change("SUBSCRIBE", shares[line.number])

    def tick(self, was_late: bool) -> list[Lost]:
        """Look after every line; returns the connections that were lost. To be called each second.

        After one that ``was_late`` silence counts for nothing yet: nobody has listened.
        """
        now_seconds = self._context.monotonic()
        self._rate.append((now_seconds, self.messages))
        if not was_late:
            for connection in self._connections():
                self._shut_if_dead(connection, now_seconds)
        lost = [found for line in self._lines if (found := self._look_after(line, now_seconds))]
        for line in self._lines:  # before any renewal: attempts are limited
            if line.streams and not line.current and now_seconds >= line.retry_at_seconds:
                line.current = self._connected(line, now_seconds)
        for line in self._lines:
            if line.is_due_for_renewal(now_seconds):
                line.successor = self._connected(line, now_seconds)
        return lost

    def _look_after(self, line: Line, now_seconds: float) -> Lost | None:
        """Part with what is dead, and let a successor that delivers take over."""
        lost = None
        if line.current and line.current.ended_by:
            lost = self._lose(line, line.current, now_seconds)
            line.current, line.successor = line.successor, None
        if line.successor:
            self._renew(line, line.successor, now_seconds)
        elif line.current and line.current.delivering and not line.current.is_old(now_seconds):
            line.failures = 0
        if not line.streams:
            self._empty(line)
        return lost

    def _empty(self, line: Line) -> None:
        """Close the connections of a line whose streams have all left."""
        for connection in line.connections():
            connection.end()
            self._retire(connection)
        line.current = line.successor = None

    @staticmethod
    def _shut_if_dead(connection: Connection, now_seconds: float) -> None:
        """Silence, the canary's included, or a growing lag."""
        if now_seconds - connection.data_seconds > SILENCE_SECONDS:
            connection.shut("silence")
        elif connection.lag.growth_seconds > MAX_LAG_SECONDS:
            connection.shut("growing lag")

    def _lose(self, line: Line, connection: Connection, now_seconds: float) -> Lost:
        connection.shut(connection.ended_by)
        self._retire(connection)
        line.failed(now_seconds, not connection.open)
        reason = connection.ended_by if connection.open else "refused"
        self.reconnects.add(reason.partition(":")[0].partition(" (")[0])
        return Lost(tuple(line.streams), connection.ended_by, connection.delivering)

    def _renew(self, line: Line, successor: Connection, now_seconds: float) -> None:
        """Let the successor take over as soon as it delivers: no message is missed."""
        if successor.ended_by:
            self._retire(successor)
            line.failed(now_seconds, not successor.open)
            line.successor = None
        elif successor.delivering and line.current:
            self.reconnects.add("shutdown" if line.current.is_leaving else "age")
            line.current.end()
            self._retire(line.current)
            line.current, line.successor = successor, None

    def _retire(self, connection: Connection) -> None:
        self._past_messages += connection.messages
        self._past_bad_frames += connection.bad_frames

    def _connected(self, line: Line, now_seconds: float) -> Connection | None:
        """A new connection for a line; None when there were too many attempts lately."""
        if len(self._attempts) == ATTEMPTS and now_seconds - self._attempts[0] < ATTEMPTS_SECONDS:
            return None
        self._attempts.append(now_seconds)
        connection = Connection(line.number, line.streams, self._context)
        connection.start()
        return connection

    def reconnect(self, line_number: int, reason: str) -> None:
        """Cut a line's connection: the next tick finds it lost, and connects anew."""
        if connection := self._lines[line_number].current:
            connection.shut(reason)

    def stop(self) -> None:
        """Cut all connections."""
        for line in self._lines:
            for connection in line.connections():
                connection.shut("stopped")

    def _connections(self) -> list[Connection]:
        return [connection for line in self._lines for connection in line.connections()]

    @property
    def messages(self) -> int:
        """Messages received so far."""
        return self._past_messages + sum(connection.messages for connection in self._connections())

    @property
    def are_delivering(self) -> bool:
        """Whether data comes by each line."""
        lines = [line for line in self._lines if line.streams]
        return bool(lines) and all(line.current and line.current.delivering for line in lines)

    def figures(self) -> dict[str, object]:
        """How the connections are, for the status."""
        open_ones = [connection for connection in self._connections() if connection.open]
        (began, before), (ended, now) = (self._rate[0], self._rate[-1]) if self._rate else ((0.0, 0),) * 2
        newest = max((connection.data_seconds for connection in open_ones), default=None)
        return {
            "connections": len(open_ones),
            "streams": sum(len(line.streams) for line in self._lines),
            "messages": self.messages,
            "messages_per_second": round((now - before) / (ended - began), 1) if ended > began else 0.0,
            "bad_frames": self._past_bad_frames + sum(each.bad_frames for each in self._connections()),
            "last_message_age_seconds": None
            if newest is None
            else round(self._context.monotonic() - newest, 1),
            "reconnects": self.reconnects.counts(),
        }
