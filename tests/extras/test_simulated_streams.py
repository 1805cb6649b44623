"""The simulated exchange's streams: Binance's rules, its limits, and what goes wrong on purpose.

The client is the websockets library, which shares no code with the server; REST is asked over HTTP.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress

import httpx
import pytest
import trustme
from rig import eventually
from samples import NOON_MS
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import connect

from tet_extras import simulated_binance
from tet_extras.simulated_binance import INTERVALS, Market, SimulatedBinance, SimulatedClock
from tet_extras.simulated_streams import OF_REQUESTS, STREAM_FAULTS, StallingRelay

MINUTE_MS = 60_000
BTC, ETH = "btcusdt@kline_1m", "ethusdt@kline_1m"
REST_PATHS = {"/stream": "/api/v3/klines", "/market/stream": "/fapi/v1/klines"}


@pytest.fixture(autouse=True)
def generous(exchange):
    """So many messages may be sent that a test can ask often; the tests of limits set them themselves."""
    exchange.streams.messages_per_second = 1000


@contextmanager
def connected(exchange, path="/stream", *names, **options):
    """A connection, subscribed to these names."""
    options = {"compression": None, "proxy": None, "ping_interval": None, "close_timeout": 1} | options
    with connect(options.pop("url", exchange.stream_url) + path, **options) as ws:
        if names:
            assert asked(ws, "SUBSCRIBE", *names) == {"result": None, "id": 1}
        yield ws


def asked(ws, method, *params, number=1):
    """Send a request, and return the next message: where nothing else is due, the reply."""
    ws.send(json.dumps({"method": method, "params": params, "id": number}))
    return json.loads(ws.recv(timeout=5))


def texts(ws):
    """All that has been sent by the exchange's present time.

    The reply to the second question comes from a turn that began after the clock was last set.
    """
    found = []
    for number in (901, 902):
        ws.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
        while not (text := ws.recv(timeout=5)).endswith(f'"id":{number}}}'):
            found.append(text)
    return found


def streamed(ws):
    """The events among them, of a combined connection."""
    return [json.loads(text)["data"] for text in texts(ws)]


def arriving(ws):
    """The events that come until a fifth of a second is silent."""
    events = []
    with suppress(TimeoutError):
        while True:
            events.append(json.loads(ws.recv(timeout=0.2))["data"])
    return events


def candles(events):
    """Open time and whether it is closed, of each event."""
    return [(event["k"]["t"], event["k"]["x"]) for event in events]


def closes(events):
    """Symbol and open time of the closes among the events."""
    return [(event["s"], event["k"]["t"]) for event in events if event["k"]["x"]]


def as_row(event):
    """The klines row that an event speaks of."""
    kline = event["k"]
    return [kline[name] for name in "tohlcvTqnVQB"]


def rest_row(exchange, symbol, interval, open_ms, path="/api/v3/klines"):
    """The same candle by REST."""
    params = {"symbol": symbol, "interval": interval, "startTime": open_ms, "limit": 1}
    reply = httpx.get(exchange.url + path, params=params, trust_env=False)
    assert reply.status_code == 200, reply.text
    return reply.json()[0]


def to_the_close(exchange, interval="1m", seconds_after=0.1):
    """Set the time shortly after the next close; the open time of the candle that ends there."""
    grid, now_ms = INTERVALS[interval], exchange.clock.now_ms()
    index = grid.index_at(now_ms)
    exchange.clock.set(grid.open_ms(index + 1) + int(seconds_after * 1000))
    return grid.open_ms(index)


def closed_with(ws):
    """Code and reason of the server's close frame, after everything before it was read."""
    for _ in range(10_000):
        try:
            ws.recv(timeout=5)
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else None
    raise AssertionError("it goes on and on")


class RawClient:
    """A client that does only what a test asks of it."""

    def __init__(self, exchange, path="/stream", receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(5)
        self.socket.connect(("127.0.0.1", exchange.port))
        key = base64.b64encode(os.urandom(16)).decode()
        headers = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        while self.file.readline().strip():
            pass

    def close(self):
        """Leave."""
        self.file.close()
        self.socket.close()

    def send(self, opcode, payload, masked=True):
        """A short frame."""
        head = bytes([0x80 | opcode, len(payload) | (0x80 if masked else 0)])
        self.socket.sendall(head + bytes(4 if masked else 0) + payload)

    def read(self):
        """Opcode and payload of the next frame, which is short too."""
        head = self.file.read(2)
        return head[0] & 15, self.file.read(head[1])

    def read_close(self):
        """Code and reason of the close frame that follows sooner or later."""
        for _ in range(1000):
            opcode, payload = self.read()
            if opcode == 8:
                return struct.unpack("!H", payload[:2])[0], payload[2:].decode()
        return None


# ----------------------------------------------------------------------------------------------
# The protocol
# ----------------------------------------------------------------------------------------------


def test_a_ping_is_answered_and_messages_may_come_in_pieces(exchange):
    """As RFC 6455 allows it."""
    with connected(exchange) as ws:
        assert ws.ping(b"there?").wait(5)
        ws.send(['{"method":"SUBSCR', f'IBE","params":["{BTC}"]', ',"id":7}'])
        assert json.loads(ws.recv(timeout=5)) == {"result": None, "id": 7}


def test_a_frame_without_a_mask_ends_the_connection(exchange):
    """Clients mask."""
    with closing(RawClient(exchange)) as client:
        client.send(1, b"{}", masked=False)
        assert client.read_close()[0] == 1002
        client.send(8, struct.pack("!H", 1002))
        eventually(lambda: exchange.streams.connections[0].closed_at)


@pytest.mark.parametrize("message", ["x" * 70_000, ["x" * 30_000] * 3], ids=["whole", "pieces"])
def test_a_message_without_end_is_refused(exchange, message):
    """It is not gathered in memory."""
    with connected(exchange) as ws:
        ws.send(message)
        assert closed_with(ws)[0] == 1009


def test_a_close_is_answered(exchange):
    """With the same code; afterwards it is written down who left."""
    with connected(exchange) as ws:
        ws.close(1000)
        assert ws.close_code == 1000
    (connection,) = exchange.streams.connections
    eventually(lambda: connection.close_reason == "closed by the client")
    assert exchange.streams.open_connections == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 404),
        ({"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}, 400),
        ({"Upgrade": "websocket", "Sec-WebSocket-Version": "8", "Sec-WebSocket-Key": "x"}, 400),
    ],
)
def test_no_handshake_no_connection(exchange, headers, status):
    """An ordinary request finds nothing there, a wrong handshake is refused."""
    assert httpx.get(exchange.url + "/stream", headers=headers, trust_env=False).status_code == status
    assert exchange.streams.connections == []


def test_long_replies_come_whole(exchange):
    """The three ways to write a frame's length, seen by another library."""
    exchange.streams.request_bytes = 100_000
    with connected(exchange) as ws:
        for count, length in ((1, 20), (10, 200), (900, 80_000)):
            names = [f"{'x' * 80}{number:04}@kline_1m" for number in range(count)]
            for begin in range(0, count, 300):
                asked(ws, "SUBSCRIBE", *names[begin : begin + 300])
            listed = asked(ws, "LIST_SUBSCRIPTIONS")["result"]
            assert listed == names
            assert len(json.dumps(listed)) > length


# ----------------------------------------------------------------------------------------------
# Events
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "interval"),
    [(path, name) for path in REST_PATHS for name in INTERVALS if (path, name) != ("/market/stream", "1s")],
)
def test_a_close_equals_rest(exchange, path, interval):
    """In every interval of both markets; after it the next candle follows."""
    exchange.streams.lifetime_seconds = 1e9  # a month passes
    with connected(exchange, path, f"btcusdt@kline_{interval}") as ws:
        open_ms = to_the_close(exchange, interval)
        last = next(event for event in streamed(ws) if candles([event]) == [(open_ms, True)])
        assert as_row(last) == rest_row(exchange, "BTCUSDT", interval, open_ms, REST_PATHS[path])
        exchange.clock.advance(2)
        after = streamed(ws)
    assert after[-1]["k"]["t"] >= last["k"]["T"] + 1
    assert as_row(after[-1]) == rest_row(exchange, "BTCUSDT", interval, after[-1]["k"]["t"], REST_PATHS[path])


def test_an_event_looks_as_documented(exchange):
    """Names in their order, numbers as REST's text."""
    with connected(exchange, "/stream", BTC) as ws:
        exchange.clock.advance(2)
        (text,) = texts(ws)
    message = json.loads(text)
    assert message["stream"] == BTC
    event, kline = message["data"], message["data"]["k"]
    assert list(event) == ["e", "E", "s", "k"]
    assert "".join(kline) == "tTsifLochlvnxqVQB"
    assert (event["e"], event["E"], event["s"]) == ("kline", NOON_MS + 2000, "BTCUSDT")
    assert (kline["s"], kline["i"], kline["x"]) == ("BTCUSDT", "1m", False)
    assert kline["L"] - kline["f"] + 1 == kline["n"] > 0


def test_raw_addresses_do_not_wrap(exchange):
    """/ws sends the event alone; names may stand in the address."""
    names = f"{BTC}/{ETH}"
    with (
        connected(exchange, f"/ws/{names}") as raw,
        connected(exchange, f"/stream?streams={names}") as wrapped,
    ):
        texts(raw), texts(wrapped)
        exchange.clock.advance(2)
        events, messages = [json.loads(text) for text in texts(raw)], texts(wrapped)
    assert events == [json.loads(message)["data"] for message in messages]
    assert {event["s"] for event in events} == {"BTCUSDT", "ETHUSDT"}
    assert exchange.streams.connections[0].names == (BTC, ETH)


@pytest.mark.parametrize(
    ("path", "name", "period_ms"),
    [
        ("/stream", "btcusdt@kline_15m", 2000),
        ("/stream", "btcusdt@kline_1s", 1000),
        ("/market/stream", "btcusdt@kline_15m", 250),
        ("/market/stream", "btcusdt@markPrice@1s", 1000),
        ("/market/stream", "btcusdt@markPrice", 3000),
    ],
)
def test_how_often_a_stream_tells(exchange, path, name, period_ms):
    """At its own turn of each period."""
    with connected(exchange, path, name) as ws:
        texts(ws)
        times = []
        for _ in range(3 * period_ms // 25):
            exchange.clock.advance(0.025)
            times += [event["E"] for event in streamed(ws) if not event.get("k", {}).get("x")]
    assert len(times) == 3
    assert {later - earlier for earlier, later in itertools.pairwise(times)} == {period_ms}


def test_the_turns_of_streams_are_spread(exchange):
    """Their events do not come all at once, nor do their closes."""
    names = [f"coin{number}usdt@kline_1m" for number in range(100)]
    exchange.market = Market.random_walk([f"COIN{number}/USDT" for number in range(100)])
    with connected(exchange) as ws:
        asked(ws, "SUBSCRIBE", *names)
        parts = []
        for _ in range(4):
            exchange.clock.advance(0.5)
            parts.append(len(streamed(ws)))
        assert sum(parts) == 100
        assert min(parts) > 10
        to_the_close(exchange, seconds_after=0.009)
        assert streamed(ws) == []  # the next candle waits for the close of the one before it
        parts = []
        for _ in range(2):
            exchange.clock.advance(0.026)
            events = streamed(ws)
            parts.append(len(closes(events)))
            assert len(events) == 2 * parts[-1]
        assert sum(parts) == 100
        assert min(parts) > 10


def test_the_mark_price_is_the_last_price(exchange):
    """The canary of USD-M."""
    with connected(exchange, "/market/stream", "btcusdt@markPrice@1s") as ws:
        exchange.clock.advance(1)
        (event,) = streamed(ws)
    price = rest_row(exchange, "BTCUSDT", "1m", NOON_MS - NOON_MS % MINUTE_MS)[4]
    assert event == {"e": "markPriceUpdate", "E": NOON_MS + 1000, "s": "BTCUSDT", "p": price}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/stream", "nosuchusdt@kline_1m"),
        ("/stream", "BTCUSDT@kline_1m"),
        ("/stream", "btcusdt@kline_7m"),
        ("/stream", "btcusdt@kline_1d@+08:00"),
        ("/stream", "btcusdt@markPrice@1s"),
        ("/market/stream", "btcusdt@kline_1s"),
        ("/public/stream", BTC),
        ("/private/stream", BTC),
    ],
)
def test_acknowledged_and_silent(exchange, path, name):
    """What is not served there is acknowledged like anything else."""
    with connected(exchange, path, name) as ws:
        to_the_close(exchange)
        assert streamed(ws) == []
        assert asked(ws, "LIST_SUBSCRIPTIONS")["result"] == [name]


def test_the_retired_addresses_of_usdm_are_silent(exchange):
    """They connect and acknowledge, and deliver no candle; those under /market do."""
    exchange.streams.retired_futures_urls = True
    with connected(exchange, "/stream", BTC) as old, connected(exchange, "/market/stream", BTC) as new:
        to_the_close(exchange)
        assert streamed(old) == []
        assert len(closes(streamed(new))) == 1


@pytest.mark.parametrize(("minutes", "expected"), [(3, 3), (70, 50)])
def test_after_a_jump_each_close_is_told_in_order(exchange, minutes, expected):
    """The last fifty at most, then the candle that is forming."""
    with connected(exchange, "/stream", BTC, ETH) as ws:
        exchange.clock.advance(60 * minutes)
        events = streamed(ws)
    first_ms = (NOON_MS // MINUTE_MS + minutes - expected) * MINUTE_MS
    for symbol in ("BTCUSDT", "ETHUSDT"):
        of_symbol = [event for event in events if event["s"] == symbol]
        times = [first_ms + number * MINUTE_MS for number in range(expected)]
        assert closes(of_symbol) == [(symbol, open_ms) for open_ms in times]
        assert candles(of_symbol)[-1] == (times[-1] + MINUTE_MS, False)


def test_who_comes_between_an_end_and_its_close_hears_the_close(exchange):
    """It is refusedme milliseconds after the candle has ended."""
    open_ms = to_the_close(exchange, seconds_after=0.005)
    with connected(exchange, "/stream", BTC) as ws:
        exchange.clock.advance(0.1)
        assert closes(streamed(ws)) == [("BTCUSDT", open_ms)]


def test_while_time_runs_candles_come_whole_and_in_order(exchange):
    """Each is streamed as forming and then closed once, and none before the close of the one before it."""
    exchange.clock = SimulatedClock(NOON_MS, speed=4)
    with connected(exchange, "/stream", "btcusdt@kline_1s") as ws:
        events = [json.loads(ws.recv(timeout=5))["data"] for _ in range(10)]
    assert candles(events) == sorted(candles(events))
    times = [open_ms for _, open_ms in closes(events)]
    assert times == list(range(times[0], times[0] + 1000 * len(times), 1000))
    assert len(times) > 3
    for event in events:
        if event["k"]["x"]:
            assert event["E"] - event["k"]["T"] > 10
            assert as_row(event) == rest_row(exchange, "BTCUSDT", "1s", event["k"]["t"])


def test_events_go_on_when_the_time_is_set_back(exchange):
    """From where it stands."""
    with connected(exchange, "/stream", BTC) as ws:
        to_the_close(exchange)
        streamed(ws)
        exchange.clock.set(NOON_MS)
        streamed(ws)
        open_ms = to_the_close(exchange)
        assert closes(streamed(ws)) == [("BTCUSDT", open_ms)]


def test_a_quiet_pair_only_closes(exchange):
    """Nothing is streamed between its closes."""
    exchange.streams.quiet.add("BTCUSDT")
    with connected(exchange, "/stream", BTC) as ws:
        exchange.clock.advance(10)
        assert streamed(ws) == []
        open_ms = to_the_close(exchange, seconds_after=5)
        assert candles(streamed(ws)) == [(open_ms, True)]


def test_where_nothing_is_traded_nothing_is_streamed(exchange):
    """During a halt, in a break, and before the first candle."""
    btc, eth, doge = (exchange.market.symbols[f"{base}USDT"] for base in ("BTC", "ETH", "DOGE"))
    btc.halts.append((NOON_MS - MINUTE_MS, NOON_MS + MINUTE_MS))
    eth.status = "BREAK"
    doge.listed_ms = NOON_MS + 3 * MINUTE_MS
    with connected(exchange, "/stream", BTC, ETH, "dogeusdt@kline_1m") as ws:
        exchange.clock.advance(10)
        to_the_close(exchange)
        assert streamed(ws) == []
        exchange.clock.advance(60)
        assert {event["s"] for event in streamed(ws)} == {"BTCUSDT"}


def test_a_recorded_market_is_told_too(exchange, tmp_path):
    """In the intervals it can be put together to; the mark price comes from its finest."""
    rows = [f"BTCUSDT,{number * 900_000},{100 + number},{200 + number},50,150,7" for number in range(8)]
    path = tmp_path / "candles.csv"
    path.write_text("\n".join(["symbol,open_time,open,high,low,close,volume", *rows]))
    exchange.market = Market.from_csv(path, NOON_MS)
    names = ("btcusdt@kline_15m", "btcusdt@kline_5m", "btcusdt@markPrice@1s")
    with connected(exchange, "/market/stream", *names) as ws:
        open_ms = to_the_close(exchange, "15m")
        events = streamed(ws)
    close = next(event for event in events if event["e"] == "kline" and event["k"]["x"])
    assert as_row(close) == rest_row(exchange, "BTCUSDT", "15m", open_ms)
    assert {event["k"]["i"] for event in events if "k" in event} == {"15m"}
    assert [event["e"] for event in events].count("markPriceUpdate") == 1


def test_rest_may_lag_behind_the_streams(exchange):
    """After a close klines are stale for a while where that is wanted; the streams are not."""
    exchange.close_lag_seconds = 5
    with connected(exchange, "/stream", BTC) as ws:
        open_ms = to_the_close(exchange)
        close = as_row(streamed(ws)[0])
    assert close[0] == open_ms
    assert rest_row(exchange, "BTCUSDT", "1m", open_ms) != close
    exchange.clock.advance(5)
    assert rest_row(exchange, "BTCUSDT", "1m", open_ms) == close


def test_a_candle_is_corrected_after_its_close_was_streamed(exchange):
    """REST has another close from then on; other candles stay."""
    with connected(exchange, "/stream", BTC) as ws:
        open_ms = to_the_close(exchange)
        close = as_row(streamed(ws)[0])
        exchange.market.correct("BTCUSDT", "1m", open_ms, "123.45")
        assert streamed(ws) == []
    corrected = rest_row(exchange, "BTCUSDT", "1m", open_ms)
    assert corrected[4] == corrected[3] == "123.45000000" != close[4]
    assert corrected[1:3] == close[1:3]
    with pytest.raises(ValueError, match="no 1m candle"):
        exchange.market.correct("NOSUCH", "1m", open_ms, "1")


# ----------------------------------------------------------------------------------------------
# Subscriptions
# ----------------------------------------------------------------------------------------------


def test_what_is_unsubscribed_stays_away(exchange):
    """And what is subscribed to can be listed."""
    with connected(exchange, "/stream", BTC, ETH) as ws, connected(exchange, "/stream", BTC) as other:
        assert asked(ws, "LIST_SUBSCRIPTIONS", number=3) == {"result": [BTC, ETH], "id": 3}
        assert asked(ws, "UNSUBSCRIBE", BTC, number="a") == {"result": None, "id": "a"}
        assert asked(ws, "LIST_SUBSCRIPTIONS")["result"] == [ETH]
        to_the_close(exchange)
        assert {event["s"] for event in streamed(ws)} == {"ETHUSDT"}
        assert {event["s"] for event in streamed(other)} == {"BTCUSDT"}


def test_subscribing_twice_delivers_once(exchange):
    """A second time changes nothing."""
    with connected(exchange, "/stream", BTC, BTC) as ws:
        asked(ws, "SUBSCRIBE", BTC)
        to_the_close(exchange)
        assert len(closes(streamed(ws))) == 1


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("no JSON", 3, "Invalid JSON"),
        ("[1]", 2, "missing field `method`"),
        ('{"method":"SUBSCRIBE","params":["btcusdt@kline_1m"],"id":-5}', 2, "request ID"),
        ('{"method":"DANCE","id":1}', 2, "unknown variant `DANCE`"),
        ('{"method":"SUBSCRIBE","params":[7],"id":1}', 2, "must be a string"),
        ('{"method":"SUBSCRIBE","params":["btcusdt"],"id":1}', 2, "invalid stream"),
    ],
)
def test_errors_come_in_two_shapes(exchange, text, code, words):
    """Those about streams have one of their own; the connection goes on."""
    with connected(exchange) as ws:
        ws.send(text)
        reply = json.loads(ws.recv(timeout=5))
        error = reply.get("error", reply)
        assert (error["code"], "error" in reply) == (code, "stream" in words)
        assert words in error["msg"]
        assert asked(ws, "LIST_SUBSCRIPTIONS")["result"] == []


# ----------------------------------------------------------------------------------------------
# Limits
# ----------------------------------------------------------------------------------------------


def test_a_request_may_have_4088_bytes(exchange):
    """A longer one gets no answer and has no effect."""
    with connected(exchange) as ws:
        for length, known in ((4088, [BTC]), (4089, [BTC])):
            name = BTC if length == 4088 else ETH
            text = json.dumps({"method": "SUBSCRIBE", "params": [name], "id": length})
            ws.send(text.ljust(length))
            replies = [json.loads(reply) for reply in texts(ws)]
            assert replies == ([{"result": None, "id": 4088}] if length == 4088 else [])
            assert asked(ws, "LIST_SUBSCRIPTIONS")["result"] == known


def test_a_connection_carries_1024_streams(exchange):
    """One more is refused, with everything that was asked for beside it."""
    exchange.streams.request_bytes = 100_000
    names = [f"coin{number}usdt@kline_1m" for number in range(1024)]
    with connected(exchange, "/stream", *names) as ws:
        reply = asked(ws, "SUBSCRIBE", names[0], BTC)
        assert reply == {"error": {"code": 4, "msg": "Too many subscriptions"}, "id": 1}
        assert asked(ws, "LIST_SUBSCRIPTIONS")["result"] == names


@pytest.mark.parametrize("kind", ["text", "ping", "pong"])
def test_a_client_sends_five_messages_a_second(exchange, kind):
    """Of whatever kind; with the sixth the connection is over."""
    exchange.streams.messages_per_second = 5
    with connected(exchange) as ws:
        for _ in range(5):
            asked(ws, "LIST_SUBSCRIPTIONS")
        {"text": lambda: ws.send("{}"), "ping": ws.ping, "pong": ws.pong}[kind]()
        assert closed_with(ws) == (1008, "Too many requests")
    (connection,) = exchange.streams.connections
    assert [frame.kind for frame in connection.received][:6] == ["text"] * 5 + [kind]


def test_the_second_of_the_limit_rolls(exchange):
    """It is the last one at any moment: a rest of half a second allows nothing."""
    exchange.streams.messages_per_second = 3
    exchange.clock = SimulatedClock(NOON_MS, speed=0.5)  # its second is two of ours
    with connected(exchange) as ws:
        for _ in range(2):
            for _ in range(3):
                asked(ws, "LIST_SUBSCRIPTIONS")
            last = time.monotonic()
            threading.Event().wait(2.05)
        asked(ws, "LIST_SUBSCRIPTIONS")
        assert time.monotonic() - last > 2
        for _ in range(2):
            asked(ws, "LIST_SUBSCRIPTIONS")
        threading.Event().wait(1.1)
        ws.send("{}")
        assert closed_with(ws) == (1008, "Too many requests")


def test_attempts_to_connect_are_counted(exchange):
    """For five minutes of the exchange's time, refused ones too; then there is 429."""
    exchange.streams.attempts_in_5_minutes = 3
    for _ in range(3):
        with connected(exchange):
            exchange.clock.advance(1)
    for _ in range(2):
        with pytest.raises(InvalidStatus) as caught, connected(exchange):
            pass
        assert caught.value.response.status_code == 429
    exchange.clock.advance(300)
    with connected(exchange):
        pass
    assert [attempt.status for attempt in exchange.streams.attempts] == [101] * 3 + [429] * 2 + [101]


@pytest.mark.parametrize(
    ("target", "status"),
    [("/stream?streams=" + "x" * 8000, 414), ("/ws/btcusdt", 400), ("/stream?streams=a@b/c", 400)],
)
def test_addresses_that_are_refused(exchange, target, status):
    """Too long ones, and those with names that are none."""
    with pytest.raises(InvalidStatus) as caught, connected(exchange, target):
        pass
    assert caught.value.response.status_code == status


def test_pings_are_answered_by_a_client_that_is_there(exchange):
    """With their payload; the connection lives on, however long."""
    exchange.streams.ping_seconds, exchange.streams.patience_seconds = 0.02, 0.5
    with connected(exchange) as ws:
        (connection,) = eventually(lambda: exchange.streams.connections)
        eventually(lambda: sum(frame.kind == "pong" for frame in connection.received) > 5)
        assert asked(ws, "LIST_SUBSCRIPTIONS")["result"] == []
    assert {frame.text for frame in connection.received if frame.kind == "pong"} == {str(NOON_MS)}


def test_without_its_pong_a_connection_is_cut(exchange):
    """Pongs with another payload do not count."""
    exchange.streams.ping_seconds, exchange.streams.patience_seconds = 0.05, 0.2
    with closing(RawClient(exchange)) as client:
        opcode, payload = client.read()
        assert (opcode, payload) == (9, str(NOON_MS).encode())
        client.send(10, b"something else")
        assert client.read_close() == (1008, "Pong timeout")
    (connection,) = exchange.streams.connections
    assert connection.close_reason == "Pong timeout"


def test_a_connection_ends_after_24_hours(exchange):
    """Of the exchange's time, with 1001."""
    with connected(exchange, "/stream", BTC) as ws:
        exchange.clock.advance(86_399)
        assert streamed(ws)
        exchange.clock.advance(1)
        assert closed_with(ws)[0] == 1001


def test_a_planned_end_is_announced(exchange):
    """To all connections, in the form that each has."""
    with connected(exchange) as wrapped, connected(exchange, "/ws") as raw:
        texts(wrapped), texts(raw)
        exchange.streams.announce_shutdown()
        event = {"e": "serverShutdown", "E": NOON_MS}
        assert json.loads(wrapped.recv(timeout=5)) == {"stream": "!serverShutdown", "data": event}
        assert json.loads(raw.recv(timeout=5)) == event


def test_a_client_that_does_not_read_is_cut_and_holds_up_nobody(exchange):
    """What is queued for it is bounded."""
    exchange.streams.queue_bytes = 100_000
    exchange.streams.faults.burst_messages = 20_000
    exchange.streams.faults.add("burst")
    with closing(RawClient(exchange, f"/stream?streams={BTC}", receive_buffer=4096)):
        (slow,) = eventually(lambda: exchange.streams.open_connections)
        with connected(exchange, "/stream", ETH) as other:
            exchange.clock.advance(2)
            eventually(lambda: slow.close_reason == "too slow")
            assert [event["s"] for event in streamed(other)] == ["ETHUSDT"]


# ----------------------------------------------------------------------------------------------
# Faults
# ----------------------------------------------------------------------------------------------


def test_unknown_faults_are_refused(exchange):
    """Whichever way they are asked for."""
    for ask in (exchange.streams.faults.add, exchange.streams.faults.always):
        with pytest.raises(ValueError, match="no such fault"):
            ask("gremlins")
    with pytest.raises(ValueError, match="no such fault"):
        exchange.streams.faults.mix(0.5, ("silent", "gremlins"))


def test_a_silent_connection_answers_and_delivers_nothing(exchange):
    """Until clear(); a connection after it is well, where only one was to be silent."""
    exchange.streams.faults.add("silent")
    with connected(exchange, "/stream", BTC) as first:
        exchange.clock.advance(2)
        assert streamed(first) == []
        assert first.ping().wait(5)
        with connected(exchange, "/stream", BTC) as second:
            to_the_close(exchange)
            assert streamed(first) == []
            assert len(closes(streamed(second))) == 1
            exchange.streams.faults.clear()
            to_the_close(exchange)
            assert len(closes(streamed(first))) == len(closes(streamed(second))) == 1


@pytest.mark.parametrize("kind", ["silent_streams", "unserved"])
def test_some_streams_of_a_connection_are_silent(exchange, kind):
    """Those that match; the next connection has them."""
    exchange.streams.faults.add(kind, match=lambda name: name.startswith("btc"))
    with connected(exchange, "/stream", BTC, ETH) as ws:
        to_the_close(exchange)
        assert {event["s"] for event in streamed(ws)} == {"ETHUSDT"}
        assert asked(ws, "LIST_SUBSCRIPTIONS")["result"] == [BTC, ETH]
        with connected(exchange, "/stream", BTC, ETH) as another:
            to_the_close(exchange)
            assert {event["s"] for event in streamed(another)} == {"BTCUSDT", "ETHUSDT"}
            assert {event["s"] for event in streamed(ws)} == {"ETHUSDT"}


def test_streams_fall_silent_that_were_not(exchange):
    """A stream that has delivered may stop."""
    with connected(exchange, "/stream", BTC, ETH) as ws:
        exchange.clock.advance(2)
        assert len(streamed(ws)) == 2
        exchange.streams.faults.always("silent_streams", match=lambda name: name == ETH)
        exchange.clock.advance(2)
        assert [event["s"] for event in streamed(ws)] == ["BTCUSDT"]


def test_a_close_is_missing(exchange):
    """So often as was asked for; the candles after it come."""
    exchange.streams.faults.add("no_close", match=lambda name: name == BTC, times=1)
    with connected(exchange, "/stream", BTC, ETH) as ws:
        first_ms = to_the_close(exchange)
        second_ms = to_the_close(exchange)
        seen = closes(streamed(ws))
    assert sorted(seen) == [("BTCUSDT", second_ms), ("ETHUSDT", first_ms), ("ETHUSDT", second_ms)]
    assert [told_close.open_ms for told_close in exchange.streams.closes(BTC)] == [second_ms]


def test_a_close_is_late(exchange):
    """The next candle's events come before it."""
    exchange.streams.faults.late_seconds = 5
    exchange.streams.faults.add("late_close")
    with connected(exchange, "/stream", BTC) as ws:
        open_ms = to_the_close(exchange, seconds_after=4.5)
        assert candles(streamed(ws)) == [(open_ms + MINUTE_MS, False)]
        exchange.clock.advance(1)
        late = next(event for event in streamed(ws) if event["k"]["x"])
    assert late["E"] == open_ms + MINUTE_MS + 5500
    assert as_row(late) == rest_row(exchange, "BTCUSDT", "1m", open_ms)


def test_events_are_doubled_or_swapped(exchange):
    """Two of the same in a row; or the second before the first."""
    faults = exchange.streams.faults
    with connected(exchange, "/stream", BTC) as ws:
        faults.add("doubled")
        exchange.clock.advance(2)
        first, second = streamed(ws)
        assert first == second
        faults.add("reordered")
        exchange.clock.advance(2)
        assert streamed(ws) == []
        exchange.clock.advance(2)
        times = [event["E"] for event in streamed(ws)]
        assert times == [NOON_MS + 6000, NOON_MS + 4000]


def test_a_frame_is_garbage_or_a_candle_impossible(exchange):
    """In place of an event."""
    faults = exchange.streams.faults
    with connected(exchange, "/stream", BTC) as ws:
        faults.add("garbage")
        exchange.clock.advance(2)
        (text,) = texts(ws)
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            json.loads(text)
        faults.add("bad_candle")
        exchange.clock.advance(2)
        (event,) = streamed(ws)
        assert float(event["k"]["h"]) < float(event["k"]["l"])
        exchange.clock.advance(2)
        (event,) = streamed(ws)
        assert float(event["k"]["h"]) >= float(event["k"]["l"])


def test_a_thousand_messages_at_once(exchange):
    """A burst of one event."""
    exchange.streams.faults.add("burst")
    with connected(exchange, "/stream", BTC) as ws:
        exchange.clock.advance(2)
        assert len(streamed(ws)) == 1000


def test_a_lagging_connection_falls_further_behind(exchange):
    """Everything comes late with its old time; clear() brings the rest at once."""
    faults = exchange.streams.faults
    faults.lag_seconds, faults.lag_growth = 5.0, 0.5
    faults.add("lag", match=lambda name: name == BTC)
    with connected(exchange, "/stream", BTC) as ws, connected(exchange, "/stream", ETH) as other:
        lags = []
        for _ in range(120):
            exchange.clock.advance(0.5)
            lags += [exchange.clock.now_ms() - event["E"] for event in streamed(ws)]
        assert lags[0] in (5000, 5500)
        assert lags == sorted(lags)
        assert lags[-1] > 15_000
        assert len(streamed(other)) > len(lags) + 5
        faults.clear()
        assert len(streamed(ws)) > 5


@pytest.mark.parametrize("is_first", [True, False])
def test_a_connection_is_cut_in_the_middle_of_the_closes(exchange, is_first):
    """With RST, when some are sent and some are not; the other connection is not concerned."""
    names = [f"coin{number}usdt@kline_1m" for number in range(60)]
    exchange.market = Market.random_walk([*(f"COIN{number}/USDT" for number in range(60)), "ETH/USDT"])
    exchange.streams.faults.add("cut_at_close", match=lambda stream: (stream in names) == is_first)
    with connected(exchange, "/stream", *names) as many, connected(exchange, "/stream", ETH) as one:
        to_the_close(exchange)
        assert closed_with(many if is_first else one) is None
        assert len(closes(streamed(one if is_first else many))) == (1 if is_first else 60)
    reasons = [connection.close_reason for connection in exchange.streams.connections]
    assert reasons.index("cut at a close") == (0 if is_first else 1)
    if is_first:
        assert 20 < sum(len(exchange.streams.closes(stream)) for stream in names) < 40


@pytest.mark.parametrize("status", [503, 0])
def test_handshakes_are_refused(exchange, status):
    """With a status, or with nothing at all."""
    exchange.streams.faults.refused_status = status
    exchange.streams.faults.add("refused", match=lambda target: target.startswith("/stream"))
    with pytest.raises((InvalidStatus, InvalidMessage, ConnectionError)) as caught, connected(exchange):
        pass
    assert isinstance(caught.value, InvalidStatus) == bool(status)
    with connected(exchange, "/stream", BTC) as ws:
        assert streamed(ws) == []
    assert [attempt.status for attempt in exchange.streams.attempts] == [status, 101]


def test_a_mix_spoils_a_share_and_is_the_same_each_time(exchange):
    """By its seed."""
    shares = []
    for _ in range(2):
        exchange.clock.set(NOON_MS)
        exchange.streams.faults.mix(0.3, ("no_close", "doubled"), seed=4)
        with connected(exchange, "/stream", BTC) as ws:
            exchange.clock.advance(60 * 40)
            shares.append(closes(streamed(ws)))
        exchange.streams.faults.clear()
    assert shares[0] == shares[1]
    assert 15 < len(set(shares[0])) < 40
    assert len(shares[0]) > len(set(shares[0]))


def test_every_fault_can_be_mixed(exchange):
    """And a client that comes back again and again hears of each close sooner or later."""
    faults = exchange.streams.faults
    faults.lag_seconds, faults.burst_messages = 1.0, 3
    kinds = [kind for kind in STREAM_FAULTS if kind not in OF_REQUESTS]  # this client waits for answers
    faults.mix(0.1, kinds, seed=2)
    heard = set()
    for _ in range(40):
        try:
            with connected(exchange, "/stream", BTC, ETH) as ws:
                for _ in range(4):
                    to_the_close(exchange)
                    for text in texts(ws):
                        heard.add(text)
        except (InvalidStatus, ConnectionClosed):
            continue
    whole = [text for text in heard if text.endswith("}}}")]
    assert len(whole) > 50
    assert len(whole) < len(heard)
    assert {attempt.status for attempt in exchange.streams.attempts} == {101, 503}
    assert "cut at a close" in {connection.close_reason for connection in exchange.streams.connections}


# ----------------------------------------------------------------------------------------------
# Outages, TLS, and a network that stalls
# ----------------------------------------------------------------------------------------------


def test_all_connections_can_be_cut(exchange):
    """With RST; a new one is served, and everything is written down."""
    with connected(exchange, "/stream", BTC) as ws, connected(exchange, "/ws", ETH) as other:
        exchange.streams.cut()
        assert closed_with(ws) is closed_with(other) is None
    with connected(exchange, "/stream", BTC) as ws:
        to_the_close(exchange)
        streamed(ws)
        first, second, third = exchange.streams.connections
        assert (first.close_reason, second.close_reason, third.close_reason) == ("cut", "cut", "")
        assert (first.path, first.names, second.path) == ("/stream", (BTC,), "/ws")
        assert first.opened_ms == NOON_MS
        assert first.opened_at < first.closed_at
        assert [frame.kind for frame in first.received] == ["text"]
        assert exchange.streams.open_connections == [third]
        assert exchange.streams.events_sent(BTC) == 2
        assert [first.messages_sent, second.messages_sent, third.messages_sent] == [1, 1, 5]
        assert exchange.streams.messages_sent == 7
        eventually(lambda: third.bytes_sent > 300)  # counted after they are sent


def test_a_stop_ends_the_streams_and_a_start_serves_them_again(exchange):
    """At the same address."""
    address = exchange.stream_url
    with connected(exchange, "/stream", BTC) as ws:
        exchange.stop()
        assert closed_with(ws) is None
    with pytest.raises(OSError, match="refused"), connected(exchange):
        pass
    exchange.start()
    assert exchange.stream_url == address
    with connected(exchange, "/stream", BTC) as ws:
        to_the_close(exchange)
        assert len(closes(streamed(ws))) == 1
    assert exchange.streams.connections[0].close_reason == "stopped"


@pytest.fixture
def tls():
    """Contexts of a server and of a client that trusts it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    # The client's library reads in one thread and writes in another. Where session tickets come just
    # then, OpenSSL lost one request in a hundred before it was sent.
    server.num_tickets = 0
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.fixture
def secure(tls):
    """An exchange that speaks TLS, its time standing still."""
    clock = SimulatedClock(NOON_MS)
    clock.freeze()
    with SimulatedBinance(clock=clock, ssl_context=tls[0]) as exchange:
        exchange.streams.messages_per_second = 1000
        yield exchange


def test_both_are_served_by_tls(secure, tls):
    """On one port; a client that speaks none is no harm."""
    assert (secure.url[:8], secure.stream_url[:6]) == ("https://", "wss://")
    with socket.create_connection(("127.0.0.1", secure.port)) as plain:
        plain.sendall(b"GET /api/v3/ping HTTP/1.1\r\n\r\n")
    with httpx.Client(base_url=secure.url, verify=tls[1], trust_env=False) as client:
        assert client.get("/api/v3/time").json() == {"serverTime": NOON_MS}
        with connected(secure, "/stream", BTC, ssl=tls[1]) as ws:
            open_ms = to_the_close(secure)
            assert closes(streamed(ws)) == [("BTCUSDT", open_ms)]
            secure.faults.add("reset", path="time")
            with pytest.raises(httpx.TransportError):
                client.get("/api/v3/time")
            secure.streams.cut()
            assert closed_with(ws) is None


@pytest.mark.parametrize("is_secure", [True, False])
def test_a_stall_leaves_both_sides_open(exchange, secure, tls, is_secure):
    """Within a record of TLS or a frame; what was held back comes when the network does."""
    served, trust = (secure, {"ssl": tls[1]}) if is_secure else (exchange, {})
    with StallingRelay(served.port, secure=is_secure) as relay:
        assert relay.url.startswith("https" if is_secure else "http:")
        with connected(served, "/stream", BTC, url=relay.stream_url, **trust) as ws:
            relay.stall()
            open_ms = to_the_close(served)
            assert relay.stalled.wait(5)
            whole = arriving(ws)
            with connected(served, "/stream", BTC, url=relay.stream_url, **trust) as another:
                assert streamed(another) == []
            assert not served.streams.connections[0].close_reason
            relay.resume()
            assert candles(whole + streamed(ws)) == [(open_ms, True), (open_ms + MINUTE_MS, False)]
            assert len(whole) < 2


def test_a_relay_passes_on_that_a_side_has_left(exchange):
    """Whichever."""
    with StallingRelay(exchange.port, secure=False) as relay:
        with connected(exchange, "/stream", BTC, url=relay.stream_url) as ws:
            exchange.streams.cut()
            assert closed_with(ws) is None
        with connected(exchange, "/stream", BTC, url=relay.stream_url) as ws:
            ws.socket.shutdown(socket.SHUT_RDWR)
            eventually(lambda: exchange.streams.connections[-1].close_reason == "the client left")


def test_a_thousand_streams_close_within_a_moment(exchange):
    """On several connections, in the order they are due, and nobody misses any."""
    exchange.market = Market.random_walk([f"COIN{number}/USDT" for number in range(1000)])
    exchange.streams.request_bytes = 100_000
    names = [f"coin{number}usdt@kline_15m" for number in range(1000)]
    with connected(exchange, "/stream", *names) as ws, connected(exchange, "/stream", *names) as other:
        open_ms = to_the_close(exchange, "15m")
        for client in (ws, other):
            seen: set[tuple[str, int]] = set()
            while len(seen) < 1000:
                event = json.loads(client.recv(timeout=5))["data"]
                if event["k"]["x"]:
                    seen.add((event["s"], event["k"]["t"]))
            assert seen == {(f"COIN{number}USDT", open_ms) for number in range(1000)}


def test_the_command_says_where_the_streams_are():
    """Beside the address of REST."""
    command = [
        sys.executable,
        simulated_binance.__file__,
        "--port",
        "0",
        "--symbols",
        "BTC/USDT",
        "--speed",
        "30",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split("streams at ")[1].split(",")[0]
        with connect(f"{address}/ws/{BTC}", compression=None, proxy=None) as ws:
            assert json.loads(ws.recv(timeout=5))["s"] == "BTCUSDT"
        process.terminate()
