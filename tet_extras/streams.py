"""The connections to the exchange's kline streams, for LIVE: subscriptions, frames, silence, renewal.

Transport only: what a message may change is decided by whom it is delivered to. Sources of the rules are
Binance's documentation of its WebSocket streams, and reports of what goes wrong with them.

A *bundle* is a set of streams that share a connection. Each connection has a thread that receives, and hands
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
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
from websockets.exceptions import ConnectionClosed, InvalidStatus, ProxyError, WebSocketException
from websockets.sync.client import ClientConnection, connect

from tet_core.errors import LOGGER
from tet_core.snapshot import ConnectionFigures

from .addresses import shown_address
from .figures import Tally
from .messages import Lag, Message, parse_kline
from .proxies import Proxy
from .subscriptions import Subscriptions
from .transport import reason_of, stream_proxy

STREAMS_PER_LINE = 250  # of 1,024 that are allowed: what one failure costs is smaller
DECODER = json.JSONDecoder(parse_float=str)  # a price may be a number, and is not rounded
SEND_SECONDS = 0.25  # between two messages of ours: 5 a second are allowed, strictly; pongs count too
LOOK_SECONDS = 1.0  # how often a connection that receives nothing looks whether it is to end
CONNECT_SECONDS, SILENCE_SECONDS = 10.0, 15.0
LIFETIME_SECONDS = 23 * 3600.0  # the exchange ends a connection after 24 hours
MAX_LAG_SECONDS = 5.0  # above the least that a connection has shown
ATTEMPTS, ATTEMPTS_SECONDS = 100, 300.0  # 300 are allowed for an address, which others may share
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS, REFUSED_RETRY_SECONDS = 1.0, 60.0, 60.0
QUEUED_FRAMES = 1000  # received and not yet taken over; when full, the connection stops to read
MAX_FRAME_BYTES = 1 << 20


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
    proxy: Proxy | None
    volume: str  # the field of a candle that has it in the base asset


class Connection:
    """One connection, from its handshake to its end, on a thread of its own.

    Its thread sets the fields that say how it goes; the main thread reads them and may call `end`, `shut`
    and `change`. Each field is replaced in one step.
    """

    def __init__(self, bundle: int, streams: Iterable[str], context: Context) -> None:
        self._bundle = bundle
        self._context = context
        self.subscriptions = Subscriptions()
        self.subscriptions.add("SUBSCRIBE", [each for each in streams if each != context.canary])
        self.subscriptions.add("SUBSCRIBE", [context.canary])  # last
        self._send_at_seconds = 0.0
        self._ending = threading.Event()
        self._ws: ClientConnection | None = None
        self._thread = threading.Thread(target=self._run, name=f"stream-{bundle}", daemon=True)
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
        self.subscriptions.add(method, [each for each in streams if each != self._context.canary])

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
        except (OSError, WebSocketException) as error:
            lost = f"connection lost: {reason_of(error)}"
            reason = lost if self.open else f"refused: {_words(error, self._context)}"
        except Exception:
            logging.getLogger(LOGGER).exception("internal error")
            reason = "internal error"
        self.ended_by = self.ended_by or reason

    def _converse(self) -> None:
        context = self._context
        with connect(
            context.url,
            ssl=context.ssl,
            proxy=context.proxy.url if context.proxy else None,
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
        now_seconds = self._context.monotonic()
        if self.delivering:
            self.subscriptions.ask_again(now_seconds)
        if not self.subscriptions:
            return LOOK_SECONDS
        left_seconds = self._send_at_seconds - now_seconds
        if left_seconds > 0:
            return left_seconds
        ws.send(self.subscriptions.next(now_seconds))
        self._send_at_seconds = self._context.monotonic() + SEND_SECONDS
        return SEND_SECONDS

    def _take(self, frame: bytes | str) -> None:
        """Hand over what a frame has; a damaged one is counted, and is missed where it would have counted."""
        try:
            content = DECODER.decode(frame if isinstance(frame, str) else frame.decode())
            data = content.get("data", content)
            if data.get("e") == "serverShutdown":
                self.is_leaving = True
            if "id" in content or "code" in content:
                self.subscriptions.answered(content)
                return
            came_by = content.get("stream")
            message = parse_kline(data, self._bundle, came_by, self._context.volume)
        except (ValueError, AttributeError, RecursionError):
            self.bad_frames += 1
            return
        now_seconds = self._context.monotonic()
        self.messages += 1
        if message and not message.row:
            self._context.deliver(message)  # it proves nothing of this connection, and counts as damaged
            return
        self.data_seconds = now_seconds
        name = message.stream if message else came_by
        self.subscriptions.heard(name)
        self.delivering = self.delivering or name == self._context.canary
        if message:
            self.lag.add((self._context.now_ms() - message.event_ms) / 1000, now_seconds)
            self._context.deliver(message)


def _words(error: Exception, context: Context) -> str:
    """Why there is no connection: the status, or which address or proxy does not answer, and its setting."""
    if isinstance(error, InvalidStatus):
        return f"HTTP {error.response.status_code}"
    proxy = context.proxy
    is_unreachable = not isinstance(error, ssl_module.SSLError | WebSocketException)
    if proxy and (is_unreachable or isinstance(error, ProxyError)):
        how = "does not answer" if is_unreachable else "refuses"
        return f"{proxy} {how}: {reason_of(error)} ({proxy.variable})"
    how = "does not answer" if is_unreachable else "fails"
    return f"{shown_address(context.url)} {how}: {reason_of(error)} (BINANCE_STREAM_URL)"


class Bundle:
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
    """All bundles: which streams they carry, and how they are. The main thread owns it.

    ``deliver`` is called from the connections' threads with each message; ``now_ms`` gives exchange time, and
    ``monotonic`` seconds that only grow.
    """

    def __init__(
        self,
        url: str,
        deliver: Callable[[Message], None],
        now_ms: Callable[[], float],
        monotonic: Callable[[], float],
        volume: str = "v",
    ) -> None:
        # What fails there reaches us as an exception; it also logs a traceback for data that meets a close.
        logging.getLogger("websockets").setLevel(logging.CRITICAL)
        address = f"{url}/stream"
        ssl = _tls_context() if urlsplit(address).scheme == "wss" else None
        self._context = Context(address, "", deliver, now_ms, monotonic, ssl, stream_proxy(url), volume)
        self._bundles: list[Bundle] = []
        self._attempts: deque[float] = deque(maxlen=ATTEMPTS)
        self._past_messages = self._past_bad_frames = self._past_again = 0  # of connections that are gone
        self._rate: deque[tuple[float, int]] = deque(maxlen=11)  # when, and the messages by then
        self.reconnects = Tally()  # by reason

    def keep(self, wanted: Iterable[str], canary: str) -> None:
        """Carry these streams and no others: subscribes and unsubscribes without a reconnect.

        A new canary is that of new connections; those of one that has left will be silent, and replaced.
        """
        names = dict.fromkeys(wanted)
        self._context = self._context._replace(canary=canary)
        for bundle in self._bundles:
            if gone := bundle.streams.keys() - names.keys():
                bundle.change("UNSUBSCRIBE", gone)
        carried = {stream for bundle in self._bundles for stream in bundle.streams}
        new = [stream for stream in names if stream not in carried]
        needed = -(-len(names) // STREAMS_PER_LINE)
        while len(self._bundles) < needed:
            self._bundles.append(Bundle(len(self._bundles)))
        shares: dict[int, list[str]] = {bundle.number: [] for bundle in self._bundles}
        for stream in new:
            least = min(self._bundles, key=lambda bundle: len(bundle.streams) + len(shares[bundle.number]))
            shares[least.number].append(stream)
        for bundle in self._bundles:
            if shares[bundle.number]:
                bundle.change("SUBSCRIBE", shares[bundle.number])

    def tick(self, was_late: bool) -> list[Lost]:
        """Look after every bundle; returns the connections that were lost. To be called each second.

        After one that ``was_late`` silence counts for nothing yet: nobody has listened.
        """
        now_seconds = self._context.monotonic()
        self._rate.append((now_seconds, self.messages))
        if not was_late:
            for connection in self._connections():
                self._shut_if_dead(connection, now_seconds)
        lost = [found for bundle in self._bundles if (found := self._look_after(bundle, now_seconds))]
        for bundle in self._bundles:  # before any renewal: attempts are limited
            if bundle.streams and not bundle.current and now_seconds >= bundle.retry_at_seconds:
                bundle.current = self._connected(bundle, now_seconds)
        for bundle in self._bundles:
            if bundle.is_due_for_renewal(now_seconds):
                bundle.successor = self._connected(bundle, now_seconds)
        return lost

    def _look_after(self, bundle: Bundle, now_seconds: float) -> Lost | None:
        """Part with what is dead, and let a successor that delivers take over."""
        lost = None
        if bundle.current and bundle.current.ended_by:
            lost = self._lose(bundle, bundle.current, now_seconds)
            bundle.current, bundle.successor = bundle.successor, None
        if bundle.successor:
            self._renew(bundle, bundle.successor, now_seconds)
        elif bundle.current and bundle.current.delivering and not bundle.current.is_old(now_seconds):
            bundle.failures = 0
        if not bundle.streams:
            self._empty(bundle)
        return lost

    def _empty(self, bundle: Bundle) -> None:
        """Close the connections of a bundle whose streams have all left."""
        for connection in bundle.connections():
            connection.end()
            self._retire(connection)
        bundle.current = bundle.successor = None

    @staticmethod
    def _shut_if_dead(connection: Connection, now_seconds: float) -> None:
        """Silence, the canary's included, or a growing lag."""
        if now_seconds - connection.data_seconds > SILENCE_SECONDS:
            connection.shut("silence")
        elif connection.lag.growth_seconds > MAX_LAG_SECONDS:
            connection.shut("growing lag")

    def _lose(self, bundle: Bundle, connection: Connection, now_seconds: float) -> Lost:
        connection.shut(connection.ended_by)
        self._retire(connection)
        bundle.failed(now_seconds, not connection.open)
        reason = connection.ended_by if connection.open else "refused"
        self.reconnects.add(reason.partition(":")[0].partition(" (")[0])
        return Lost(tuple(bundle.streams), connection.ended_by, connection.delivering)

    def _renew(self, bundle: Bundle, successor: Connection, now_seconds: float) -> None:
        """Let the successor take over as soon as it delivers: no message is missed."""
        if successor.ended_by:
            self._retire(successor)
            bundle.failed(now_seconds, not successor.open)
            bundle.successor = None
        elif successor.delivering and bundle.current:
            self.reconnects.add("shutdown" if bundle.current.is_leaving else "age")
            bundle.current.end()
            self._retire(bundle.current)
            bundle.current, bundle.successor = successor, None

    def _retire(self, connection: Connection) -> None:
        self._past_messages += connection.messages
        self._past_bad_frames += connection.bad_frames
        self._past_again += connection.subscriptions.again

    def _connected(self, bundle: Bundle, now_seconds: float) -> Connection | None:
        """A new connection for a bundle; None when there were too many attempts lately."""
        if len(self._attempts) == ATTEMPTS and now_seconds - self._attempts[0] < ATTEMPTS_SECONDS:
            return None
        self._attempts.append(now_seconds)
        connection = Connection(bundle.number, bundle.streams, self._context)
        connection.start()
        return connection

    def reconnect(self, bundle: int, reason: str) -> None:
        """Cut a bundle's connection: the next tick finds it lost, and connects anew."""
        if connection := self._bundles[bundle].current:
            connection.shut(reason)

    def missed(self, bundle: int, stream: str) -> None:
        """A stream has left something out: unless it speaks, it is subscribed to again."""
        if connection := self._bundles[bundle].current:
            connection.subscriptions.missed(stream)

    def stop(self) -> None:
        """Cut all connections."""
        for bundle in self._bundles:
            for connection in bundle.connections():
                connection.shut("stopped")

    def _connections(self) -> list[Connection]:
        return [connection for bundle in self._bundles for connection in bundle.connections()]

    @property
    def messages(self) -> int:
        """Messages received so far."""
        return self._past_messages + sum(connection.messages for connection in self._connections())

    @property
    def are_delivering(self) -> bool:
        """Whether data comes by each bundle."""
        bundles = [bundle for bundle in self._bundles if bundle.streams]
        return bool(bundles) and all(bundle.current and bundle.current.delivering for bundle in bundles)

    def figures(self) -> ConnectionFigures:
        """How the connections are, for the status."""
        open_ones = [connection for connection in self._connections() if connection.open]
        (began, before), (ended, now) = (self._rate[0], self._rate[-1]) if self._rate else ((0.0, 0),) * 2
        newest = max((connection.data_seconds for connection in open_ones), default=None)
        return ConnectionFigures(
            connections=len(open_ones),
            streams=sum(len(bundle.streams) for bundle in self._bundles),
            messages=self.messages,
            messages_per_second=round((now - before) / (ended - began), 1) if ended > began else 0.0,
            silent=sum(len(connection.subscriptions.silent) for connection in open_ones),
            refused=sum(len(connection.subscriptions.refused) for connection in open_ones),
            subscribed_again=self._past_again + sum(each.subscriptions.again for each in self._connections()),
            bad_frames=self._past_bad_frames + sum(each.bad_frames for each in self._connections()),
            last_message_age_seconds=None if newest is None else round(self._context.monotonic() - newest, 1),
            reconnects=self.reconnects.counts(),
        )
