"""The simulated exchange's kline streams: Binance's WebSocket interface, spot and USD-M futures.

It answers on the port of ``simulated_binance`` and takes its candles from the same market: a candle
streamed as closed equals the one in a klines reply. The WebSocket protocol (RFC 6455) is written out
below with the standard library alone, so that a client's own library is tried against another.

    with SimulatedBinance() as exchange:
        ...  # a client connects to exchange.stream_url + "/stream" and subscribes to btcusdt@kline_1m
        exchange.clock.advance(60)  # a 1m candle closes
        exchange.streams.cut()  # every stream connection is gone
        exchange.streams.connections[-1].close_reason  # and says why

Addresses: /ws, /ws/<name>/<name> and /stream, /stream?streams=<name>/<name> are spot's, the same under
/market are those of USD-M futures. A *name* is <symbol>@kline_<interval>, in lower case, or on USD-M
<symbol>@markPrice. Whatever else looks like a name is acknowledged and stays silent, as Binance does it.

Left out: microseconds (timeUnit), candles in other time zones (@kline_1d@+08:00), SET_PROPERTY, the ban
of addresses that go on sending too much, and USD-M's own pace of pings (3 and 10 minutes).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import heapq
import itertools
import json
import math
import random
import re
import selectors
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, quote

TICK_SECONDS = 0.005  # how often the exchange's time is looked at
CLOSING_SECONDS = 2.0  # how long a client may take to answer a close frame
FAILING_SECONDS = 0.2  # the same, after frames that could not be read
WATCH_SECONDS = 0.05  # between two looks at pings and lifetimes
SEND_BUFFER_BYTES = 262_144  # the system's, for each connection
EVENTS_AT_ONCE = 256  # made before what is queued goes out
MOST_CLOSES_STREAMED = 50  # of a stream, after a jump of the time
CLOSES_KEPT = 50  # of a stream, to be looked at
ATTEMPTS_MS = 300_000
LONGEST_TARGET = 8_000  # characters of path and query
LONGEST_MESSAGE = 65_536
MESSAGE_OVERHEAD = 8  # bytes of a client's frame that count towards the longest request

RETIRED, SPOT, FUTURES = "retired", "spot", "usdm"
FORMING_MS = {SPOT: 2000, FUTURES: 250}
SECONDS_FORMING_MS = 1000  # of 1s candles, which USD-M has not

NO_LINGER = struct.pack("ii", 1, 0)  # for SO_LINGER: closing sends RST


class Grid(Protocol):
    """Where the candles of an interval begin and end, by number."""

    def index_at(self, time_ms: int) -> int:
        """The number of the candle that holds this time."""

    def open_ms(self, index: int) -> int:
        """Where that candle begins."""


class Clock(Protocol):
    """The exchange's time."""

    @property
    def speed(self) -> float:
        """Its seconds for one of ours."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""


class Source(Protocol):
    """The market that REST serves too."""

    def row(self, symbol: str, interval_name: str, index: int, now_ms: int) -> str | None:
        """One kline as JSON text; None where nothing is traded."""

    def price(self, symbol: str, now_ms: int) -> str | None:
        """The last price."""


class Exchange(Protocol):
    """What the streams need of the exchange they belong to; both may be replaced while it runs."""

    @property
    def clock(self) -> Clock:
        """Its time."""

    @property
    def market(self) -> Source:
        """Its candles."""


# ----------------------------------------------------------------------------------------------
# The WebSocket protocol
# ----------------------------------------------------------------------------------------------

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
NORMAL, GOING_AWAY, PROTOCOL_ERROR, POLICY, TOO_LONG = 1000, 1001, 1002, 1008, 1009
KINDS = {TEXT: "text", CLOSE: "close", PING: "ping", PONG: "pong"}
ACCEPT_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class ProtocolError(Exception):
    """A client's frame breaks the protocol; `code` is that of the close frame it is answered with."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def accept_key(key: str) -> str:
    """What a server answers to a client's Sec-WebSocket-Key (RFC 6455, 4.2.2)."""
    digest = hashlib.sha1((key + ACCEPT_GUID).encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole message as a server's frame, which is not masked."""
    length = len(payload)
    if length < 126:
        return bytes((0x80 | opcode, length)) + payload
    if length < 65_536:
        return struct.pack("!BBH", 0x80 | opcode, 126, length) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, length) + payload


def close_frame(code: int, reason: str) -> bytes:
    """The frame that ends a connection."""
    return frame(CLOSE, struct.pack("!H", code) + reason.encode())


class Frames:
    """A client's frames, put together from what arrives."""

    def __init__(self) -> None:
        self._arrived = bytearray()
        self._parts = bytearray()  # of a message that has not ended

    def feed(self, octets: bytes) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of each message that is complete now; raises ProtocolError.

        Bytes count as text.
        """
        self._arrived += octets
        while (taken := self._take()) is not None:
            final, opcode, payload = taken
            if opcode >= CLOSE:
                yield opcode, payload
                continue
            self._parts += payload
            if len(self._parts) > LONGEST_MESSAGE:
                raise ProtocolError(TOO_LONG, "Message too long")
            if final:
                whole, self._parts = bytes(self._parts), bytearray()
                yield TEXT, whole

    def _take(self) -> tuple[bool, int, bytes] | None:
        """The next frame (whether it ends a message, opcode, payload), once all of it is there."""
        head = self._arrived
        if len(head) < 2:
            return None
        if head[0] & 0x70 or not head[1] & 0x80:
            raise ProtocolError(PROTOCOL_ERROR, "Frames of a client are masked and plain")
        length, begin = head[1] & 0x7F, 2
        if length >= 126:
            begin = 4 if length == 126 else 10
            length = int.from_bytes(head[2:begin])
        if length > LONGEST_MESSAGE:
            raise ProtocolError(TOO_LONG, "Message too long")
        end = begin + 4 + length
        if len(head) < end:
            return None
        payload = _unmasked(bytes(head[begin + 4 : end]), bytes(head[begin : begin + 4]))
        final, opcode = bool(head[0] & 0x80), head[0] & 0x0F
        del self._arrived[:end]
        return final, opcode, payload


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    length = len(payload)
    masks = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload) ^ int.from_bytes(masks)).to_bytes(length)


# ----------------------------------------------------------------------------------------------
# Names and events
# ----------------------------------------------------------------------------------------------

ADDRESS = re.compile(r"(/market|/public|/private|)/(ws|stream)(?:/(.*))?")
NAME = re.compile(r"![a-zA-Z]+(@\S+)?|[^@\s!]+@\S+")
MARK_PRICE_MS = {"markPrice": 3000, "markPrice@1s": 1000}

KLINE_EVENT = (
    '{"e":"kline","E":%d,"s":"%s","k":{"t":%s,"T":%s,"s":"%s","i":"%s","f":%s,"L":%s,"o":%s,"c":%s,'
    '"h":%s,"l":%s,"v":%s,"n":%s,"x":%s,"q":%s,"V":%s,"Q":%s,"B":%s}}'
)
MARK_PRICE_EVENT = '{"e":"markPriceUpdate","E":%d,"s":"%s","p":"%s"}'


def kline_event(symbol: str, interval: str, row: str, event_ms: int, closed: bool) -> str:
    """A kline's JSON text as the payload of an event; the values stay the same text."""
    # Splitting at the commas costs a fifth of parsing it: no value has one inside.
    open_ms, first, high, low, last, volume, end_ms, in_quote, trades, taker, taker_quote, ignore = row[
        1:-1
    ].split(",")
    count = int(trades)
    # Trades are numbered from the open time on; a candle without any has no numbers.
    ids = (open_ms, int(open_ms) + count - 1) if count else (-1, -1)
    values = (last, high, low, volume, trades, "true" if closed else "false", in_quote, taker, taker_quote)
    times = (open_ms, end_ms, symbol, interval)
    return KLINE_EVENT % (event_ms, symbol, *times, *ids, first, *values, ignore)


def wrapped(name: str, payload: str) -> str:
    """An event as a combined connection gets it."""
    return f'{{"stream":"{name}","data":{payload}}}'


class StreamedClose(NamedTuple):
    """A close that was sent to a stream's listeners."""

    open_ms: int  # names the candle
    event_ms: int  # exchange time, as in the event's E
    at_monotonic: float  # real seconds


class _Feed:
    """A stream somebody listens to, and when its next event is due."""

    def __init__(self, market: str, name: str, grid: Grid | None, settings: Streams, now_ms: int) -> None:
        self.market = market
        self.name = name
        self.symbol, _, what = name.partition("@")
        self.symbol = self.symbol.upper()
        self.interval = what.partition("_")[2]
        self.grid = grid  # None for the mark price
        self.listeners: dict[StreamConnection, None] = {}
        self.period_ms = FORMING_MS[market] if grid else MARK_PRICE_MS[what]
        if self.interval == "1s":
            self.period_ms = SECONDS_FORMING_MS
        self.held = ""  # an event that comes after the next one
        self.planned_ms: float = 0  # when the publisher looks at it next
        self._settings = settings
        self._hash = zlib.crc32(name.encode())
        self.closing = 0  # number of the candle whose close is streamed next
        self.close_due_ms: float = math.inf
        self.forming_due_ms: float = 0
        self.schedule(now_ms)

    @property
    def due_ms(self) -> float:
        """When something is to be streamed."""
        return min(self.close_due_ms, self.forming_due_ms)

    def schedule(self, now_ms: int) -> None:
        """Begin at this time, with what comes after it."""
        if self.grid:
            self.begin_candle(self.grid.index_at(now_ms - self._close_delay_ms()))
        self.put_off_forming(now_ms)

    def begin_candle(self, index: int) -> None:
        """Make this the candle whose close is streamed next."""
        if self.grid:
            self.closing = index
            self.close_due_ms = self.grid.open_ms(index + 1) + self._close_delay_ms()

    def put_off_forming(self, now_ms: float) -> None:
        """The stream's next turn after this time; the turns of all streams are spread."""
        self.forming_due_ms = now_ms + self.period_ms - (now_ms - self._hash) % self.period_ms

    def _close_delay_ms(self) -> int:
        return self._settings.close_delay_ms + self._hash // 8192 % (self._settings.close_spread_ms + 1)


# ----------------------------------------------------------------------------------------------
# Faults: what goes wrong on purpose
# ----------------------------------------------------------------------------------------------

OF_HANDSHAKES = ("refused",)
OF_CONNECTIONS = ("silent", "lag")
OF_STREAMS = ("silent_streams", "unserved")
OF_REQUESTS = ("ignored", "rejected")
OF_CLOSES = ("no_close", "late_close", "wrong_close")
OF_EVENTS = ("doubled", "reordered", "garbage", "bad_candle", "burst", "misnamed")
AT_BORDERS = ("cut_at_close",)
STREAM_FAULTS = (
    *(*OF_HANDSHAKES, *OF_CONNECTIONS, *OF_STREAMS, *OF_REQUESTS),
    *(*OF_CLOSES, *OF_EVENTS, *AT_BORDERS),
)


@dataclass
class _Planned:
    kind: str
    times: float
    match: Callable[[str], bool] | None


class StreamFaults:
    """What goes wrong with streams, and for which names.

    ==================  ===============================================================  ==============
    kind                what happens                                                     `times` counts
    ==================  ===============================================================  ==============
    ``refused``         a handshake is answered with `refused_status`, or RST if it is 0  handshakes
    ``silent``          a connection stays open, answers, and delivers nothing any more   connections
    ``lag``             a connection delivers everything late, with the old E, and later  connections
    ``silent_streams``  a stream of a connection is silent from now on                    streams
    ``unserved``        a SUBSCRIBE to a name is acknowledged, and that is all            streams
    ``ignored``         a SUBSCRIBE with a name gets no answer, and does nothing          messages
    ``rejected``        a SUBSCRIBE with a name is answered with an error                 messages
    ``no_close``        a close is not sent                                               closes
    ``wrong_close``     a close is sent with another price than REST has                  closes
    ``late_close``      a close is sent `late_seconds` late; forming events go on         closes
    ``doubled``         an event comes twice                                              events
    ``reordered``       an event comes after the next one of its stream                   events
    ``garbage``         a frame that is no JSON in place of an event                      events
    ``bad_candle``      an event whose high is below its low                              events
    ``misnamed``        an event names another symbol than the stream it comes by         events
    ``burst``           an event comes `burst_messages` times at once                     events
    ``cut_at_close``    a connection ends with RST between the closes of a border         connections
    ==================  ===============================================================  ==============

    `match` is asked with a stream's name: for a connection, with what it delivers; for a handshake,
    with path and query. What is silent or lags stays so until clear(), or until it ends.
    """

    def __init__(self) -> None:
        self.refused_status = 503
        self.late_seconds = 3.0
        self.lag_seconds = 5.0  # at first
        self.lag_growth = 0.5  # more seconds of it with each second
        self.burst_messages = 1000
        self.round = 1  # goes on with each clear(), which ends what began in an earlier one
        self._planned: list[_Planned] = []
        self._mix: tuple[float, tuple[str, ...]] = (0.0, ())
        self._random = random.Random(1)
        self._lock = threading.Lock()

    def add(self, kind: str, *, match: Callable[[str], bool] | None = None, times: float = 1) -> None:
        """Spoil the next `times` of what the kind counts, of those that `match` accepts."""
        self._check(kind)
        with self._lock:
            self._planned.append(_Planned(kind, times, match))

    def always(self, kind: str, *, match: Callable[[str], bool] | None = None) -> None:
        """Spoil all of them until clear(); what was added with a number comes first."""
        self.add(kind, match=match, times=math.inf)

    def mix(self, rate: float, kinds: Sequence[str] = STREAM_FAULTS, seed: int = 1) -> None:
        """Spoil this share (0 to 1) of what each of `kinds` counts, at random."""
        self._check(*kinds)
        with self._lock:
            self._random = random.Random(seed)
            self._mix = (rate, tuple(kinds))

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._planned = []
            self._mix = (0.0, ())
            self.round += 1

    @property
    def are_possible(self) -> bool:
        """Whether something may go wrong."""
        return bool(self._planned or self._mix[0])

    def pick(self, kinds: Sequence[str], name: str) -> str:
        """The fault among these kinds for this name, used up by asking; "" for none."""
        return self.planned(kinds, name) or self.mixed(kinds)

    def planned(self, kinds: Sequence[str], name: str) -> str:
        """One that was added."""
        with self._lock:
            for planned in sorted(self._planned, key=lambda planned: planned.times == math.inf):
                if planned.kind not in kinds or planned.times <= 0:
                    continue
                if planned.match is None or planned.match(name):
                    planned.times -= 1
                    return planned.kind
        return ""

    def mixed(self, kinds: Sequence[str]) -> str:
        """One of the mix."""
        with self._lock:
            rate, wanted = self._mix
            drawn = [kind for kind in wanted if kind in kinds]
            return self._random.choice(drawn) if drawn and self._random.random() < rate else ""

    def _check(self, *kinds: str) -> None:
        unknown = set(kinds) - set(STREAM_FAULTS)
        if unknown:
            raise ValueError(f"no such fault: {sorted(unknown)}; there are {STREAM_FAULTS}")


def impossible(payload: str) -> str:
    """A kline event whose high is below its low."""
    event = json.loads(payload)
    if "k" in event:
        event["k"]["h"] = f"{Decimal(event['k']['l']) / 2:.8f}"
    return _json(event)


def wrong(payload: str) -> str:
    """A kline event that could be true, but closes at its high."""
    event = json.loads(payload)
    event["k"]["c"] = event["k"]["h"] = f"{Decimal(event['k']['h']) * 2:.8f}"
    return _json(event)


def misnamed(payload: str) -> str:
    """A kline event that names another symbol than its stream does."""
    event = json.loads(payload)
    if "k" in event:
        event["s"] = event["k"]["s"] = f"{event['s']}X"
    return _json(event)


CHANGES = {"bad_candle": impossible, "misnamed": misnamed}


# ----------------------------------------------------------------------------------------------
# A client's connection
# ----------------------------------------------------------------------------------------------


class Received(NamedTuple):
    """A frame from a client."""

    at_monotonic: float  # real seconds
    kind: str  # text, ping, pong or close
    text: str


class Opening(NamedTuple):
    """What a handshake asks for, and the answer to it."""

    status: int  # 101 when it is accepted; 0 for none, only RST
    head: bytes
    path: str
    market: str
    combined: bool
    names: tuple[str, ...]


@dataclass
class _Lag:
    """A connection's events that wait, and since when it lags."""

    round: int  # of faults
    since_ms: int
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)  # due, frame


class StreamConnection:
    """One client's connection, open or ended.

    The thread that serves all connections changes it; others only look.
    """

    def __init__(self, opening: Opening, opened_ms: int, link: socket.socket) -> None:
        self.path = opening.path
        self.market = opening.market
        self.combined = opening.combined
        self.opened_ms = opened_ms
        self.opened_at = time.monotonic()
        self.closed_at: float | None = None
        self.close_reason = ""  # while it is open
        self.received: deque[Received] = deque(maxlen=10_000)
        self.messages_sent = 0
        self.bytes_sent = 0
        self.subscribed: dict[str, None] = {}
        self.link = link
        self.ended = threading.Event()
        self._out = bytearray()
        self._frames = Frames()
        self._recent: deque[float] = deque()  # when the client's latest frames came
        self._pings: dict[bytes, float] = {}  # unanswered, by payload
        self._pinged_at = self.opened_at
        # Since which round of faults it is silent, and streams of it are.
        self.silent_since = 0
        self.muted_since: dict[str, int] = {}
        self.lagging: _Lag | None = None
        self.border_ms = 0  # where a cut was last decided on

    @property
    def names(self) -> tuple[str, ...]:
        """What it is subscribed to."""
        return tuple(self.subscribed)

    @property
    def queued_bytes(self) -> int:
        """What waits for the client to read on."""
        return len(self._out)

    def receive(self) -> Iterator[tuple[int, bytes]]:
        """What came from the client; raises OSError when it is gone, or ProtocolError."""
        while True:
            try:
                octets = self.link.recv(LONGEST_MESSAGE)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not octets:
                raise ConnectionResetError("the client left")
            for opcode, payload in self._frames.feed(octets):
                text = payload.decode(errors="replace")
                self.received.append(Received(time.monotonic(), KINDS.get(opcode, "other"), text))
                yield opcode, payload

    def sends_too_often(self, allowed: int, within_seconds: float) -> bool:
        """Whether with the frame that just came there were more than `allowed` in this time."""
        now = time.monotonic()
        while self._recent and now - self._recent[0] >= within_seconds:
            self._recent.popleft()
        self._recent.append(now)
        return len(self._recent) > allowed

    def queue(self, octets: bytes, messages: int = 1) -> None:
        """Send this at the next flush."""
        self._out += octets
        self.messages_sent += messages

    def flush(self) -> None:
        """Send what is queued, as far as the system takes it; raises OSError when the client is gone."""
        while self._out:
            try:
                sent = self.link.send(self._out[:SEND_BUFFER_BYTES])
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            self.bytes_sent += sent
            del self._out[:sent]

    def ping(self, payload: bytes) -> None:
        """Ask the client whether it is there."""
        self._pinged_at = time.monotonic()
        self._pings.setdefault(payload, self._pinged_at)  # the same while the time stands still
        self.queue(frame(PING, payload), messages=0)

    def pong(self, payload: bytes) -> None:
        """The client's answer: counts for that ping and all before it, unless it answers none."""
        if payload in self._pings:
            until = self._pings[payload]
            self._pings = {text: at for text, at in self._pings.items() if at > until}

    def since_ping(self) -> float:
        """Seconds since the last ping."""
        return time.monotonic() - self._pinged_at

    def without_pong(self) -> float:
        """Seconds that the oldest unanswered ping has been waiting."""
        return time.monotonic() - min(self._pings.values()) if self._pings else 0.0


# ----------------------------------------------------------------------------------------------
# Which event is due, and who gets it
# ----------------------------------------------------------------------------------------------


class _Publisher:
    """Tells every stream's events in their order. Used by one thread alone."""

    def __init__(
        self, exchange: Exchange, intervals: Mapping[str, Grid], settings: Streams, delivery: _Delivery
    ) -> None:
        self._exchange = exchange
        self._intervals = intervals
        self._settings = settings
        self._delivery = delivery
        self._feeds: dict[tuple[str, str], _Feed] = {}
        self._agenda: list[tuple[float, int, Callable[[int], None]]] = []  # a heap: due, number, act
        self._numbers = itertools.count()
        self._seen_ms = 0

    def subscribe(self, connection: StreamConnection, name: str) -> None:
        """Send the stream's events to this connection from now on."""
        connection.subscribed[name] = None
        faults = self._settings.faults
        connection.muted_since.pop(name, None)  # who subscribes again may be served
        if faults.are_possible and faults.pick(OF_STREAMS, name):
            connection.muted_since[name] = faults.round
        key = (connection.market, name)
        feed = self._feeds.get(key) or self._new_feed(*key)
        if feed:
            feed.listeners[connection] = None

    def unsubscribe(self, connection: StreamConnection, name: str) -> None:
        """No longer."""
        connection.subscribed.pop(name, None)
        feed = self._feeds.get((connection.market, name))
        if feed:
            feed.listeners.pop(connection, None)
            if not feed.listeners:
                del self._feeds[connection.market, name]

    def forget(self, connection: StreamConnection) -> None:
        """A connection has ended; what it was subscribed to stays to be read."""
        names = dict(connection.subscribed)
        for name in names:
            self.unsubscribe(connection, name)
        connection.subscribed = names

    def publish(self, now_ms: int) -> bool:
        """Tell what is due, in its order, but not too much at once; whether there is more."""
        if now_ms < self._seen_ms:
            self._begin_again(now_ms)
        self._seen_ms = now_ms
        for _ in range(EVENTS_AT_ONCE):
            if not self._agenda or self._agenda[0][0] > now_ms:
                return False
            heapq.heappop(self._agenda)[2](now_ms)
        return True

    def at(self, due_ms: float, act: Callable[[int], None]) -> None:
        """Do this when that time has come."""
        heapq.heappush(self._agenda, (due_ms, next(self._numbers), act))

    def _new_feed(self, market: str, name: str) -> _Feed | None:
        symbol, _, what = name.partition("@")
        kind, _, interval = what.partition("_")
        is_kline = kind == "kline" and interval in self._intervals and (market, interval) != (FUTURES, "1s")
        is_mark = market == FUTURES and what in MARK_PRICE_MS
        if market == RETIRED or symbol != symbol.lower() or not (is_kline or is_mark):
            return None
        grid = self._intervals[interval] if is_kline else None
        feed = _Feed(market, name, grid, self._settings, self._exchange.clock.now_ms())
        self._feeds[market, name] = feed
        self._plan(feed, feed.due_ms)
        return feed

    def _begin_again(self, now_ms: int) -> None:
        """The time was set back."""
        self._agenda.clear()
        for feed in self._feeds.values():
            feed.schedule(now_ms)
            self._plan(feed, feed.due_ms)

    def _plan(self, feed: _Feed, due_ms: float) -> None:
        feed.planned_ms = due_ms
        self.at(due_ms, partial(self._tell, feed))

    def _tell(self, feed: _Feed, now_ms: int) -> None:
        """Tell the stream's next event, closes first, and plan the one after it."""
        if not feed.listeners:
            return
        if feed.close_due_ms <= now_ms:
            # After a jump of the time the closes of all streams come in the order they were due.
            if feed.planned_ms >= feed.close_due_ms:
                self._tell_close(feed, now_ms)
        elif feed.forming_due_ms <= now_ms:
            self._tell_forming(feed, now_ms)
        self._plan(feed, feed.close_due_ms if feed.close_due_ms <= now_ms else feed.due_ms)

    def _tell_close(self, feed: _Feed, now_ms: int) -> None:
        grid, due_ms = feed.grid, feed.close_due_ms
        if grid is None:
            return
        index = max(feed.closing, grid.index_at(now_ms) - MOST_CLOSES_STREAMED)
        feed.begin_candle(index + 1)
        faults = self._settings.faults
        kind = faults.pick(OF_CLOSES, feed.name) if faults.are_possible else ""
        if kind == "late_close":
            self.at(due_ms + faults.late_seconds * 1000, partial(self._close, feed, grid, index))
        elif kind != "no_close":
            self._close(feed, grid, index, now_ms, is_wrong=kind == "wrong_close")
        if faults.are_possible:
            self._plan_cuts(feed, grid.open_ms(index + 1))

    def _close(self, feed: _Feed, grid: Grid, index: int, now_ms: int, is_wrong: bool = False) -> None:
        open_ms, end_ms = grid.open_ms(index), grid.open_ms(index + 1)
        row = self._exchange.market.row(feed.symbol, feed.interval, index, end_ms)
        if row:
            payload = kline_event(feed.symbol, feed.interval, row, now_ms, closed=True)
            payload = wrong(payload) if is_wrong else payload
            self._delivery.close(feed, payload, StreamedClose(open_ms, now_ms, time.monotonic()))

    def _plan_cuts(self, feed: _Feed, border_ms: int) -> None:
        """Decide for those who listen whether they are cut off when half of this border's closes are sent."""
        faults, settings = self._settings.faults, self._settings
        for connection in feed.listeners:
            is_first = connection.border_ms != border_ms
            if faults.planned(AT_BORDERS, feed.name) or (is_first and faults.mixed(AT_BORDERS)):
                middle_ms = border_ms + settings.close_delay_ms + settings.close_spread_ms / 2
                self.at(middle_ms, partial(self._doom, connection))
            connection.border_ms = border_ms

    def _doom(self, connection: StreamConnection, _now_ms: int) -> None:
        self.forget(connection)
        self._delivery.doomed.append(connection)

    def _tell_forming(self, feed: _Feed, now_ms: int) -> None:
        feed.put_off_forming(now_ms)
        if feed.grid is None:
            price = self._exchange.market.price(feed.symbol, now_ms)
            if price:
                self._delivery.event(feed, MARK_PRICE_EVENT % (now_ms, feed.symbol, price))
            return
        index = feed.grid.index_at(now_ms)
        if index > feed.closing:
            feed.forming_due_ms = feed.close_due_ms  # the close of the candle before comes first
            return
        if feed.symbol in self._settings.quiet:
            return
        row = self._exchange.market.row(feed.symbol, feed.interval, index, now_ms)
        if row:
            payload = kline_event(feed.symbol, feed.interval, row, now_ms, closed=False)
            self._delivery.event(feed, payload)


class _Delivery:
    """Puts events into frames, once for all who listen, and queues them. Used by one thread alone."""

    def __init__(self, settings: Streams) -> None:
        self.touched: set[StreamConnection] = set()  # those with something queued
        self.doomed: list[StreamConnection] = []  # to be ended with RST
        self.sent: Counter[str] = Counter()  # events by name
        self.closes: dict[str, deque[StreamedClose]] = {}
        self._faults = settings.faults
        self._settings = settings
        self._late: set[StreamConnection] = set()  # those that lag

    def close(self, feed: _Feed, payload: str, close: StreamedClose) -> None:
        """Send a close."""
        self.closes.setdefault(feed.name, deque(maxlen=CLOSES_KEPT)).append(close)
        self.event(feed, payload)

    def event(self, feed: _Feed, payload: str) -> None:
        """Tell an event to all who listen, or what a fault makes of it."""
        self.sent[feed.name] += 1
        if not self._faults.are_possible and not feed.held:
            self._tell(feed, payload)
            return
        kind = self._faults.pick(OF_EVENTS, feed.name)
        if kind == "reordered" and not feed.held:
            feed.held = payload
            return
        held, feed.held = feed.held, ""
        if kind in CHANGES:
            payload = CHANGES[kind](payload)
        times = {"doubled": 2, "burst": self._faults.burst_messages}.get(kind, 1)
        for text in [payload] * times + [held] * bool(held):
            self._tell(feed, text, is_garbage=kind == "garbage")

    def release(self, now_ms: int) -> None:
        """Queue what lagging connections have kept long enough."""
        for connection in list(self._late):
            lag = connection.lagging
            if lag is None or connection.close_reason:
                self._late.discard(connection)
                continue
            is_over = lag.round != self._faults.round
            while lag.waiting and (is_over or lag.waiting[0][0] <= now_ms):
                connection.queue(lag.waiting.popleft()[1])
                self.touched.add(connection)
            if is_over:
                connection.lagging = None

    def _tell(self, feed: _Feed, payload: str, is_garbage: bool = False) -> None:
        octets = {False: b"", True: b""}  # by whether they are combined
        for connection in feed.listeners:
            if self._faults.are_possible and self._withholds(connection, feed.name):
                continue
            combined = connection.combined
            if not octets[combined]:
                name = quote(feed.name, safe="@_") if self._settings.encodes_names else feed.name
                text = wrapped(name, payload) if combined else payload
                octets[combined] = frame(TEXT, text[: len(text) // 2 if is_garbage else None].encode())
            self._send(connection, octets[combined])

    def _send(self, connection: StreamConnection, octets: bytes) -> None:
        lag = connection.lagging
        if lag:
            now_ms = self._settings.now_ms()
            lag_seconds = self._faults.lag_seconds
            lag_seconds += self._faults.lag_growth * (now_ms - lag.since_ms) / 1000
            lag.waiting.append((now_ms + lag_seconds * 1000, octets))
            return
        connection.queue(octets)
        self.touched.add(connection)

    def begin(self, connection: StreamConnection) -> None:
        """A connection has opened; with a mix of faults it may lag or be silent from the start."""
        self._spoil(connection, self._faults.mixed(OF_CONNECTIONS))

    def _spoil(self, connection: StreamConnection, kind: str) -> None:
        if kind == "silent":
            connection.silent_since = self._faults.round
        elif kind == "lag" and connection.lagging is None:
            connection.lagging = _Lag(self._faults.round, self._settings.now_ms())
            self._late.add(connection)

    def _withholds(self, connection: StreamConnection, name: str) -> bool:
        """Whether a fault keeps a stream's event from a connection."""
        faults = self._faults
        if connection.lagging is None and connection.silent_since != faults.round:
            self._spoil(connection, faults.planned(OF_CONNECTIONS, name))
        if connection.muted_since.get(name) != faults.round and faults.planned(("silent_streams",), name):
            connection.muted_since[name] = faults.round
        return faults.round in (connection.silent_since, connection.muted_since.get(name))


# ----------------------------------------------------------------------------------------------
# What clients ask for
# ----------------------------------------------------------------------------------------------


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Requests:
    """Answers SUBSCRIBE, UNSUBSCRIBE and LIST_SUBSCRIPTIONS. Used by one thread alone."""

    def __init__(self, publisher: _Publisher, settings: Streams) -> None:
        self._publisher = publisher
        self._settings = settings

    def answer(self, connection: StreamConnection, text: bytes) -> str | None:
        """The reply to a message; None where Binance is silent: to one that is too long."""
        if len(text) + MESSAGE_OVERHEAD > self._settings.request_bytes:
            return None
        try:
            asked = json.loads(text)
        except ValueError:
            return _json({"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"})
        number = asked.get("id") if isinstance(asked, dict) else None
        try:
            if (fault := self._fault(asked)) == "ignored":
                return None
            if fault:
                raise _Refused(2, INVALID_STREAM)
            return _json({"result": self._obey(connection, asked), "id": number})
        except _Refused as refusal:
            error = {"code": refusal.code, "msg": str(refusal)}
            # Both shapes are Binance's: the one of the protocol, and the one of streams.
            is_about_streams = str(refusal) in (TOO_MANY, INVALID_STREAM)
            return _json({"error": error, "id": number} if is_about_streams else {**error, "id": number})

    def _fault(self, asked: Any) -> str:
        """What goes wrong with a SUBSCRIBE, by one of its names."""
        faults = self._settings.faults
        if not faults.are_possible or not isinstance(asked, dict) or asked.get("method") != "SUBSCRIBE":
            return ""
        return next(filter(None, (faults.pick(OF_REQUESTS, str(name)) for name in asked["params"])), "")

    def _obey(self, connection: StreamConnection, asked: Any) -> list[str] | None:
        method, names = _checked(asked)
        if method == "LIST_SUBSCRIPTIONS":
            return list(connection.subscribed)
        if method == "UNSUBSCRIBE":
            for name in names:
                self._publisher.unsubscribe(connection, name)
            return None
        if len(connection.subscribed.keys() | set(names)) > self._settings.streams_per_connection:
            raise _Refused(4, TOO_MANY)
        for name in names:
            self._publisher.subscribe(connection, name)
        return None


TOO_MANY = "Too many subscriptions"
INVALID_STREAM = "Invalid request: invalid stream"
METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS")


def _checked(asked: Any) -> tuple[str, list[str]]:
    """Method and names of a request."""
    if not isinstance(asked, dict) or "method" not in asked:
        raise _Refused(2, "Invalid request: missing field `method` at line 1 column 1")
    number, names = asked.get("id"), asked.get("params", [])
    if not (number is None or isinstance(number, str) or (type(number) is int and number >= 0)):
        raise _Refused(2, "Invalid request: request ID must be an unsigned integer")
    if asked["method"] not in METHODS:
        variants = ", ".join(f"`{method}`" for method in METHODS)
        raise _Refused(2, f"Invalid request: unknown variant `{asked['method']}`, expected one of {variants}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _Refused(2, "Invalid request: property name must be a string")
    if not all(NAME.fullmatch(name) for name in names):
        raise _Refused(2, INVALID_STREAM)
    return asked["method"], names


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# ----------------------------------------------------------------------------------------------
# The thread that serves all connections
# ----------------------------------------------------------------------------------------------


class _Loop:
    """Reads, publishes and writes for all connections in one thread, so that none waits for another.

    Other threads hand over connections and acts; everything else belongs to the loop's own thread.
    """

    def __init__(self, streams: Streams, publisher: _Publisher, delivery: _Delivery) -> None:
        self._streams = streams
        self._publisher = publisher
        self._delivery = delivery
        self._requests = _Requests(publisher, streams)
        self._selector = selectors.DefaultSelector()
        # Until when the client may answer our close frame; 0: we have sent none.
        self._open: dict[StreamConnection, float] = {}
        self._acts: deque[Callable[[], None]] = deque()
        self._stopping = threading.Event()
        self._watched_at = 0.0
        self._bell, self._ear = socket.socketpair()
        for end in (self._bell, self._ear):
            end.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="simulated-streams", daemon=True)
        self._thread.start()

    # For other threads.

    def do(self, act: Callable[[], None]) -> None:
        """Let the thread do that, and wait until it has."""
        done = threading.Event()
        self._acts.extend((act, done.set))
        self._ring()
        while self._thread.is_alive() and not done.wait(0.05):
            pass

    def stop(self) -> None:
        """End the thread; the connections are dropped."""
        self._stopping.set()
        self._ring()
        self._thread.join()

    def add(self, connection: StreamConnection, names: Iterable[str]) -> None:
        """Serve this connection from now on."""
        self._acts.append(partial(self._begin, connection, names))
        self._ring()

    def cut(self) -> None:
        """Drop every connection, with RST."""
        for connection in list(self._open):
            self.drop(connection, "cut", reset=True)

    def send_to_all(self, name: str, payload: str) -> None:
        """Tell every connection an event that nobody subscribes to."""
        for connection in self._open:
            connection.queue(
                frame(TEXT, (wrapped(name, payload) if connection.combined else payload).encode())
            )
            self._delivery.touched.add(connection)

    # In its own thread.

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._turn()
        for connection in list(self._open):
            self.drop(connection, "stopped")
        self._selector.close()
        self._bell.close()
        self._ear.close()

    def _turn(self) -> None:
        now_ms = self._streams.now_ms()
        is_more = self._publisher.publish(now_ms)
        self._delivery.release(now_ms)
        self._end_doomed()
        for key, events in self._selector.select(0 if is_more else TICK_SECONDS if self._open else 1):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._ear.recv(4096)
            elif events & selectors.EVENT_READ:
                self._read(key.data)
            else:
                self._delivery.touched.add(key.data)
        while self._acts:
            self._acts.popleft()()
        if time.monotonic() - self._watched_at >= WATCH_SECONDS:
            self._watched_at = time.monotonic()
            for connection in list(self._open):
                self._watch(connection)
        self._flush()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._bell.send(b"!")

    def _begin(self, connection: StreamConnection, names: Iterable[str]) -> None:
        self._open[connection] = 0
        self._selector.register(connection.link, selectors.EVENT_READ, connection)
        self._delivery.begin(connection)
        for name in names:
            self._publisher.subscribe(connection, name)

    def _read(self, connection: StreamConnection) -> None:
        try:
            for opcode, payload in connection.receive():
                self._hear(connection, opcode, payload)
                if connection not in self._open:
                    return  # its socket is closed any moment, and the number may be another's
        except ProtocolError as error:
            self._close(connection, error.code, str(error), FAILING_SECONDS)
        except OSError:
            self.drop(connection, "the client left")

    def _hear(self, connection: StreamConnection, opcode: int, payload: bytes) -> None:
        """One frame of the client."""
        if opcode == CLOSE:
            if not self._open[connection]:
                connection.queue(frame(CLOSE, payload[:2]), messages=0)
                with contextlib.suppress(OSError):
                    connection.flush()
            self.drop(connection, "closed by the client")
            return
        if self._open[connection]:
            return
        second = 1 / self._streams.speed
        if connection.sends_too_often(self._streams.messages_per_second, second):
            self._close(connection, POLICY, "Too many requests")
        elif opcode == PING:
            connection.queue(frame(PONG, payload), messages=0)
        elif opcode == PONG:
            connection.pong(payload)
        else:
            reply = self._requests.answer(connection, payload)
            if reply:
                connection.queue(frame(TEXT, reply.encode()))
        self._delivery.touched.add(connection)

    def _watch(self, connection: StreamConnection) -> None:
        """Pings, and the ends of connections that have had their time."""
        settings, now_ms = self._streams, self._streams.now_ms()
        closing_until = self._open[connection]
        if closing_until:
            if time.monotonic() > closing_until:
                self.drop(connection, connection.close_reason)
        elif now_ms - connection.opened_ms >= settings.lifetime_seconds * 1000:
            self._close(connection, GOING_AWAY, "24 hours are over")
        elif connection.without_pong() * settings.speed > settings.patience_seconds:
            self._close(connection, POLICY, "Pong timeout")
        elif connection.since_ping() * settings.speed >= settings.ping_seconds:
            connection.ping(str(now_ms).encode())
            self._delivery.touched.add(connection)

    def _end_doomed(self) -> None:
        doomed, self._delivery.doomed = self._delivery.doomed, []
        for connection in doomed:
            with contextlib.suppress(OSError):
                connection.flush()
            self.drop(connection, "cut at a close", reset=True)

    def _flush(self) -> None:
        touched, self._delivery.touched = self._delivery.touched, set()
        for connection in touched & self._open.keys():
            try:
                connection.flush()
            except OSError:
                self.drop(connection, "the client left")
                continue
            if connection.queued_bytes > self._streams.queue_bytes:
                self.drop(connection, "too slow", reset=True)
                continue
            waits = selectors.EVENT_WRITE if connection.queued_bytes else 0
            if self._selector.get_key(connection.link).events != selectors.EVENT_READ | waits:
                self._selector.modify(connection.link, selectors.EVENT_READ | waits, connection)

    def _close(
        self, connection: StreamConnection, code: int, reason: str, patience_seconds: float = CLOSING_SECONDS
    ) -> None:
        """Send a close frame, and give the client some time to answer it."""
        if self._open.get(connection) == 0:
            self._open[connection] = time.monotonic() + patience_seconds
            connection.close_reason = reason
            self._publisher.forget(connection)
            connection.queue(close_frame(code, reason), messages=0)
            self._delivery.touched.add(connection)

    def drop(self, connection: StreamConnection, reason: str, reset: bool = False) -> None:
        """End a connection now; with RST if wanted."""
        if self._open.pop(connection, None) is None:
            return
        self._publisher.forget(connection)
        self._selector.unregister(connection.link)
        if reset:
            with contextlib.suppress(OSError):
                connection.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        connection.close_reason = connection.close_reason or reason
        connection.closed_at = time.monotonic()
        connection.ended.set()


# ----------------------------------------------------------------------------------------------
# The streams of an exchange
# ----------------------------------------------------------------------------------------------


class Streams:
    """What a test sets, does and reads; the exchange has it as `streams`.

    Limits count in the exchange's seconds, so a fast exchange allows more of ours. Only the lifetime
    and the number of attempts follow jumps of its time too.
    """

    def __init__(self, exchange: Exchange, intervals: Mapping[str, Grid]) -> None:
        self.messages_per_second = 5  # of a client, in any rolling second; pings and pongs count
        self.attempts_in_5_minutes = 300
        self.streams_per_connection = 1024
        self.request_bytes = 4096  # of a client's message on the wire; a longer one gets no answer
        self.ping_seconds = 20.0
        self.patience_seconds = 60.0  # for a pong
        self.lifetime_seconds = 86_400.0
        self.queue_bytes = 2_000_000  # for a slow client, beyond the system's buffers
        self.close_delay_ms = 10  # from a close to its event, at least
        self.encodes_names = False  # percent-encoded in events, where they are not ASCII
        self.close_spread_ms = 50  # by so much more, a different part of it for each stream
        self.quiet: set[str] = set()  # symbols without events between the closes
        self.retired_futures_urls = False  # /ws and /stream acknowledge everything and deliver nothing
        self.faults = StreamFaults()
        self.attempts: list[Attempt] = []
        self._exchange = exchange
        self._delivery = _Delivery(self)
        self._publisher = _Publisher(exchange, intervals, self, self._delivery)
        self._connections: list[StreamConnection] = []
        self._loop: _Loop | None = None
        self._lock = threading.Lock()  # of attempts, which come in threads of their own

    # What a test or a benchmark uses.

    @property
    def connections(self) -> list[StreamConnection]:
        """Every connection so far, the oldest first."""
        return list(self._connections)

    @property
    def open_connections(self) -> list[StreamConnection]:
        """Those that are open now."""
        return [connection for connection in self._connections if not connection.close_reason]

    @property
    def messages_sent(self) -> int:
        """Messages to all connections so far, replies included."""
        return sum(connection.messages_sent for connection in self.connections)

    def events_sent(self, name: str) -> int:
        """How many events of a stream were sent so far, however many listened."""
        return self._delivery.sent[name]

    def closes(self, name: str) -> list[StreamedClose]:
        """The latest closes of a stream that were sent."""
        return list(self._delivery.closes.get(name, ()))

    def cut(self) -> None:
        """Drop all connections now, with RST."""
        if self._loop:
            self._loop.do(self._loop.cut)

    def announce_shutdown(self) -> None:
        """Tell all connections that they will end soon; ending them is cut()'s."""
        if self._loop:
            event = f'{{"e":"serverShutdown","E":{self.now_ms()}}}'
            self._loop.do(partial(self._loop.send_to_all, "!serverShutdown", event))

    # What the server of the exchange uses.

    def start(self) -> None:
        """Begin to serve connections."""
        self._loop = _Loop(self, self._publisher, self._delivery)

    def stop(self) -> None:
        """Drop all connections, and serve none."""
        loop, self._loop = self._loop, None
        if loop:
            loop.stop()

    def now_ms(self) -> int:
        """The exchange's time."""
        return self._exchange.clock.now_ms()

    @property
    def speed(self) -> float:
        """The exchange's seconds for one of ours."""
        return self._exchange.clock.speed

    @staticmethod
    def wants(target: str, headers: Mapping[str, str]) -> bool:
        """Whether a request (headers with lower-case names) asks for a stream connection."""
        is_upgrade = headers.get("upgrade", "").lower() == "websocket"
        return is_upgrade and ADDRESS.fullmatch(target.partition("?")[0]) is not None

    def serve(self, link: socket.socket, target: str, headers: Mapping[str, str]) -> None:
        """Answer a handshake, and serve the connection to its end."""
        opening = self._opening(target, headers)
        if not opening.status:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            return
        link.sendall(opening.head)
        loop = self._loop
        if opening.status != 101 or loop is None:
            return
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        link.setblocking(False)
        connection = StreamConnection(opening, self.now_ms(), link)
        self._connections.append(connection)
        loop.add(connection, opening.names)
        while not connection.ended.wait(1):
            if loop is not self._loop:  # it was stopped before it knew of the connection
                connection.close_reason = connection.close_reason or "stopped"
                return

    def _opening(self, target: str, headers: Mapping[str, str]) -> Opening:
        path, _, query = target.partition("?")
        prefix, kind, tail = ADDRESS.fullmatch(path).groups()  # type: ignore[union-attr]
        listed = tail if kind == "ws" else "/".join(parse_qs(query).get("streams", []))
        names = tuple(name for name in (listed or "").split("/") if name)
        market = FUTURES if prefix == "/market" else RETIRED if self._is_silent(prefix) else SPOT
        status = self._admit(target, headers, names)
        head = _handshake(status, headers.get("sec-websocket-key", ""))
        with self._lock:
            self.attempts.append(Attempt(self.now_ms(), time.monotonic(), target, status))
        return Opening(status, head, path, market, kind == "stream", names)

    def _is_silent(self, prefix: str) -> bool:
        return bool(prefix) or self.retired_futures_urls

    def _admit(self, target: str, headers: Mapping[str, str], names: Sequence[str]) -> int:
        """The HTTP status of the answer to a handshake."""
        since_ms = self.now_ms() - ATTEMPTS_MS
        with self._lock:
            recent = sum(attempt.at_ms > since_ms for attempt in self.attempts)
        if recent >= self.attempts_in_5_minutes:
            return 429
        if len(target) > LONGEST_TARGET:
            return 414
        if self.faults.pick(OF_HANDSHAKES, target):
            return self.faults.refused_status
        version, key = headers.get("sec-websocket-version"), headers.get("sec-websocket-key")
        bad = version != "13" or not key or not all(NAME.fullmatch(name) for name in names)
        return 400 if bad or len(set(names)) > self.streams_per_connection else 101


class Attempt(NamedTuple):
    """A handshake, and how it was answered."""

    at_ms: int  # exchange time
    at_monotonic: float  # real seconds
    target: str  # path and query
    status: int  # 101 when it was accepted; 0 when it got only RST


def _handshake(status: int, key: str) -> bytes:
    """The answer to a handshake."""
    if status == 101:
        upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}"
    else:
        upgrade = "Connection: close\r\nContent-Length: 0"
    phrase = HTTPStatus(status).phrase if status else ""
    return f"HTTP/1.1 {status} {phrase}\r\n{upgrade}\r\n\r\n".encode()


# ----------------------------------------------------------------------------------------------
# A network that stalls
# ----------------------------------------------------------------------------------------------


class StallingRelay:
    """A TCP relay to a port of loopback that stops the server's flow in the middle of something.

    Used with `with`. A stall concerns the connections that are open when it is asked for; new ones
    pass. Both sides stay open, and what the client sends goes on to the server.
    """

    def __init__(self, target_port: int, *, secure: bool = True) -> None:
        self._secure = secure  # whether TLS is spoken, for the URLs
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.stalled = threading.Event()  # set once a connection's flow has stopped
        self._pipes: list[_Pipe] = []

    def __enter__(self) -> StallingRelay:
        threading.Thread(target=self._accept, name="stalling-relay", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """As the exchange's, by way of this relay."""
        return f"{'https' if self._secure else 'http'}://127.0.0.1:{self.port}"

    @property
    def stream_url(self) -> str:
        """As the exchange's, by way of this relay."""
        return f"{'wss' if self._secure else 'ws'}://127.0.0.1:{self.port}"

    def stall(self) -> None:
        """Let all but the last byte of what the server sends next go to the client, then nothing."""
        for pipe in list(self._pipes):
            pipe.flows.clear()

    def resume(self) -> None:
        """Let everything flow again, with nothing lost."""
        self.stalled.clear()
        for pipe in list(self._pipes):
            pipe.flows.set()

    def stop(self) -> None:
        """Close everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pipe in list(self._pipes):
            pipe.close()
        self.resume()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed by stop()
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target_port))
                except OSError:
                    client.close()
                    continue
                pipe = _Pipe(client, server, self.stalled)
                self._pipes = [*(old for old in self._pipes if not old.ended), pipe]
                pipe.start()


class _Pipe:
    """A client's connection and the one to the server, each carried on by a thread."""

    def __init__(self, client: socket.socket, server: socket.socket, stalled: threading.Event) -> None:
        self.flows = threading.Event()  # the server's half
        self.flows.set()
        self.ended = False
        self._client = client
        self._server = server
        self._stalled = stalled
        self._left = 2  # threads
        self._lock = threading.Lock()

    def start(self) -> None:
        """Carry on until one side ends."""
        for carry in (self._carry_to_server, self._carry_to_client):
            threading.Thread(target=self._run, args=(carry,), name="stalling-relay", daemon=True).start()

    def close(self) -> None:
        """End both sides; the threads then close them."""
        self.ended = True
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _run(self, carry: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            carry()
        self.close()
        with self._lock:
            self._left -= 1
        if not self._left:
            self._client.close()
            self._server.close()

    def _carry_to_server(self) -> None:
        while octets := self._client.recv(LONGEST_MESSAGE):
            self._server.sendall(octets)

    def _carry_to_client(self) -> None:
        while octets := self._server.recv(LONGEST_MESSAGE):
            if not self.flows.is_set():
                # Without its last byte it ends within a TLS record, or a frame.
                self._client.sendall(octets[:-1])
                octets = octets[-1:]
                self._stalled.set()
                while not (self.flows.wait(0.1) or self.ended):
                    pass
            self._client.sendall(octets)
