"""A stream's message, the inbox, and the transport of streams."""

from __future__ import annotations

import json
import queue
import ssl
import sys
import threading
from contextlib import closing
from itertools import pairwise

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from rig import FastClock, eventually, settings
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

import tet_data_service as tet
from tet_core.klines import parse_klines
from tet_extras import messages, streams, subscriptions
from tet_extras.live import parse_stream_row
from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock
from tet_extras.simulated_streams import StallingRelay
from tet_extras.subscriptions import Subscriptions, kline_stream

TF = tet.TIMEFRAMES["1m"]
START = 1_768_478_820_000
STEP = TF.step_ms


# A message


def message_of(**given):
    """A message about the minute at START, as the transport hands it over."""
    k = {"t": START, "T": START + STEP - 1, "s": "BTCUSDT", "i": "1m", "x": False}
    k |= {"o": "1.50", "h": "2.00", "l": "1.00", "c": "1.20", "v": "3.0"} | given
    return messages.parse_kline({"e": "kline", "E": START + 5, "s": "BTCUSDT", "k": k}, 0)


def test_a_message_is_checked_as_a_row_of_rest():
    """And becomes the same candle."""
    body = f'[[{START},"1.50","2.00","1.00","1.20","3.0",{START + STEP - 1},"0",0,"0","0","0"]]'
    expected = parse_klines(body.encode(), TF, START, START, 1)
    assert parse_stream_row(message_of(), TF, START) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"o": "0"},
        {"h": "1.4"},
        {"v": "-1"},
        {"v": "NaN"},
        {"c": None},
        {"c": 1.2},
        {"c": '1.2","9'},
        {"t": START + 1},
        {"t": True},
        {"t": START + STEP},
        {"T": START + STEP},
        {"T": str(START)},
        {"x": True},
    ],
)
def test_what_cannot_be_is_no_candle(given):
    """By REST's rules; nor is a candle from the future, or a close before the end."""
    with pytest.raises(tet.BadReply):
        parse_stream_row(message_of(**given), TF, START + 1000)


@pytest.mark.parametrize("data", [None, 7, [], {}, {"e": "kline"}, {"e": "kline", "k": 5, "E": 1}])
def test_what_is_no_event_is_refused(data):
    """The frame counts as damaged."""
    with pytest.raises(ValueError, match="no event"):
        messages.parse_kline(data, 0)
    assert messages.parse_kline({"e": "markPriceUpdate"}, 0) is None


@pytest.mark.parametrize(
    ("came_by", "s", "k_s", "i", "is_true"),
    [
        ("btcusdt@kline_1m", "BTCUSDT", "BTCUSDT", "1m", True),
        ("BTCUSDT@kline_1m", "btcusdt", "BTCUSDT", "1m", True),
        (None, "BTCUSDT", "btcusdt", "1m", True),
        ("btcusdt@kline_1m", "BTCUSDT", "ETHUSDT", "1m", False),
        ("btcusdt@kline_1m", "ETHUSDT", "ETHUSDT", "1m", False),
        ("btcusdt@kline_1m", "ETHUSDT", "BTCUSDT", "1m", False),
        ("btcusdt@kline_1m", "BTCUSDT", "BTCUSDT", "1M", False),
        ("btcusdt@kline_1M", "BTCUSDT", "BTCUSDT", "1m", False),
        ("btcusdt@kline_1m@+08:00", "BTCUSDT", "BTCUSDT", "1m", False),
        ("btcusdt@aggTrade", "BTCUSDT", "BTCUSDT", "1m", False),
        (None, "BTCUSDT", "ETHUSDT", "1m", False),
    ],
)
def test_a_message_counts_for_the_stream_that_all_of_it_names(came_by, s, k_s, i, is_true):
    """Else it is damaged, and counts so for that which it came by."""
    k = {"t": START, "T": START + STEP - 1, "s": k_s, "i": i, "x": True, "o": "1", "h": "1", "l": "1"}
    data = {"e": "kline", "E": START + 5, "s": s, "k": k | {"c": "1", "v": "1"}}
    message = messages.parse_kline(data, 0, came_by)
    assert bool(message.row) is is_true
    assert not message.closed or is_true
    came_by = came_by or f"btcusdt@kline_{i}"
    assert message.stream.partition("@")[2] == came_by.partition("@")[2]
    assert message.stream.startswith("btcusdt@")


@pytest.mark.parametrize("came_by", [7, ["btcusdt@kline_1m"], {}])
def test_what_comes_by_no_stream_is_refused(came_by):
    """The frame counts as damaged."""
    k = {"t": 1, "T": 2, "s": "A", "i": "1m", "x": True, "o": "1", "h": "1", "l": "1", "c": "1", "v": "1"}
    with pytest.raises(ValueError, match="no event"):
        messages.parse_kline({"e": "kline", "E": 5, "s": "A", "k": k}, 0, came_by)


# The inbox


def deliver(inbox, *sent):
    """Put messages in: stream, event time, whether it is a close."""
    for stream, event_ms, closed in sent:
        inbox.deliver(messages.Message(stream, event_ms, (), closed, 0))


def taken(inbox):
    """All that waits, in order."""
    clock, found = tet.Clock(), []
    while len(inbox):
        if message := inbox.take(clock, 0):
            found.append((message.stream, message.event_ms, message.closed))
    return found


def test_forming_candles_coalesce_and_closes_never():
    """The newest wins; a close comes before what follows it, and after it nothing older."""
    inbox = tet.Inbox()
    deliver(inbox, ("a", 1, False), ("b", 1, False), ("a", 2, False), ("a", 1, False))
    deliver(inbox, ("a", 3, True), ("a", 4, False), ("a", 5, True), ("a", 6, False), ("a", 7, False))
    assert taken(inbox) == [("b", 1, False), ("a", 3, True), ("a", 5, True), ("a", 7, False)]
    inbox.wake()
    assert taken(inbox) == []
    deliver(inbox, ("a", 9, False), ("a", 8, False))  # by two connections
    assert taken(inbox) == [("a", 9, False)]


def test_a_close_that_comes_as_its_candle_is_taken_harms_nobody(monkeypatch):
    """Threads are switched as often as can be."""
    inbox, clock, ended = tet.Inbox(), tet.Clock(), threading.Event()
    before = sys.getswitchinterval()

    def send():
        for number in range(4000):
            deliver(inbox, ("a", 2 * number, False), ("a", 2 * number + 1, True))
        ended.set()

    sys.setswitchinterval(1e-6)
    try:
        thread = threading.Thread(target=send)
        thread.start()
        closes = 0
        while len(inbox) or not ended.is_set():
            message = inbox.take(clock, 0.01)
            closes += bool(message and message.closed)
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert closes == 4000


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans())))
def test_each_streams_messages_stay_in_order(steps):
    """Whatever is taken in between."""
    inbox, found, sent = tet.Inbox(), [], []
    for event_ms, (stream, closed, take) in enumerate(steps):
        sent.append((stream, event_ms, closed))
        deliver(inbox, sent[-1])
        if take and (message := inbox.take(tet.Clock(), 0)):
            found.append((message.stream, message.event_ms, message.closed))
    found += taken(inbox)
    for stream in "abc":
        mine = [each for each in found if each[0] == stream]
        assert mine == sorted(mine)
        assert [each for each in mine if each[2]] == [each for each in sent if each[0] == stream and each[2]]
        newest = [each for each in sent if each[0] == stream][-1:]
        assert not newest or mine[-1:] == newest


# The transport's parts


def test_names_go_out_in_messages_that_the_exchange_answers():
    """Under 4,000 bytes each, one method at a time, in order, all of them."""
    commands, names = Subscriptions(), [f"symbol{number:05d}usdt@kline_15m" for number in range(1000)]
    commands.add("SUBSCRIBE", names)
    commands.add("UNSUBSCRIBE", names[:2])
    sent = []
    while commands:
        sent.append(commands.next(0))
    assert max(map(len, sent)) <= 4000
    decoded = [json.loads(text) for text in sent]
    assert [name for each in decoded if each["method"] == "SUBSCRIBE" for name in each["params"]] == names
    assert decoded[-1]["params"] == names[:2]
    assert [each["id"] for each in decoded] == list(range(1, len(sent) + 1))
    assert len(sent) <= 12


@given(st.lists(st.text(min_size=1, max_size=40), unique=True, max_size=400))
def test_no_message_is_longer_in_bytes_than_the_exchange_reads(names):
    """Whatever the names are made of; each goes out once."""
    wanted, sent, subscriptions_ = [f"{name}@kline_15m" for name in names], [], Subscriptions()
    subscriptions_.add("SUBSCRIBE", wanted)
    while subscriptions_:
        sent.append(subscriptions_.next(0))
    assert max((len(text.encode()) for text in sent), default=0) <= 4000
    names = [name for text in sent for name in json.loads(text)["params"]]
    assert [name.encode(errors="replace") for name in names] == [
        name.encode(errors="replace") for name in wanted
    ]


def test_a_message_that_is_refused_is_sent_in_halves():
    """Down to the one name that is refused alone; in both shapes of an error."""
    subscriptions_, names = Subscriptions(), [f"s{number}@kline_1m" for number in range(100)]
    subscriptions_.add("SUBSCRIBE", names)
    served, sent = set(), 0
    while subscriptions_:
        message, sent = json.loads(subscriptions_.next(0)), sent + 1
        error = {"code": 2, "msg": "Invalid request: invalid stream"}
        if names[70] not in message["params"]:
            served |= set(message["params"])
            subscriptions_.answered({"result": None, "id": message["id"]})
        elif sent % 2:
            subscriptions_.answered({"error": error, "id": message["id"]})
        else:
            subscriptions_.answered({**error, "id": message["id"]})
    assert served == set(names) - {names[70]}
    assert subscriptions_.refused == {names[70]}
    assert sent < 20
    unknown: object
    for unknown in (None, "x", 10**6, []):
        subscriptions_.answered({"error": error, "id": unknown})
    subscriptions_.answered(error)
    assert not subscriptions_


def test_silent_streams_are_asked_for_one_by_one_in_the_end():
    """In four messages after 15 s, in sixteen, then each alone, less and less often; who speaks is left."""
    subscriptions_, names = Subscriptions(), [f"s{number}@kline_1m" for number in range(40)]
    subscriptions_.add("SUBSCRIBE", names)
    rounds = []
    for second in range(2000):
        subscriptions_.ask_again(second)
        sizes = []
        while subscriptions_:
            message = json.loads(subscriptions_.next(second))
            subscriptions_.answered({"result": None, "id": message["id"]})
            sizes.append(len(message["params"]))
        if sizes:
            rounds.append((second, sizes))
            subscriptions_.heard(names[len(rounds)])
    assert [at for at, _ in rounds[:6]] == [0, 15, 45, 105, 225, 465]
    assert [sizes for _, sizes in rounds[:4]] == [[40], [10, 10, 10, 9], [3] * 12 + [2], [1] * 37]
    assert rounds[-1][0] - rounds[-2][0] == 600
    subscriptions_.add("UNSUBSCRIBE", names)
    assert subscriptions_.silent == ()


def test_a_message_without_an_answer_is_sent_in_halves():
    """Within seconds; what speaks without an answer is left alone."""
    subscriptions_, names = Subscriptions(), [f"s{number}@kline_1m" for number in range(100)]
    subscriptions_.add("SUBSCRIBE", names)
    bad, second = set(names[70:72]), 0
    while set(subscriptions_.silent) != bad and second < 60:
        second += 1
        subscriptions_.ask_again(second)
        while subscriptions_:
            message = json.loads(subscriptions_.next(second))
            if not bad & set(message["params"]):
                for name in message["params"]:
                    subscriptions_.heard(name)
                if second % 2:
                    subscriptions_.answered({"result": None, "id": message["id"]})
    assert second < 50


def test_a_lag_counts_when_it_grows():
    """Whatever the clocks say: only against the least that was seen."""
    lag = messages.Lag()
    for second in range(40):
        lag.add(3600.0 + (second % 3), second)
    assert lag.growth_seconds == 0
    for second in range(40, 65):
        lag.add(3600.0 + (second - 40) / 2, second)
    assert lag.growth_seconds > 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "wss://data-stream.binance.vision"),
        ({"BINANCE_MARKET": "usdm"}, "wss://fstream.binance.com/market"),
        ({"BINANCE_BASE_URL": "https://api4.binance.com"}, "wss://data-stream.binance.vision"),
        ({"BINANCE_MARKET": "coinm", "SYMBOLS": "*/USD"}, "wss://dstream.binance.com/market"),
        ({"BINANCE_MARKET": "us"}, "wss://stream.binance.us:9443"),
        ({"BINANCE_TESTNET": "true"}, "wss://stream.testnet.binance.vision"),
        ({"BINANCE_BASE_URL": "https://testnet.binance.vision"}, "wss://stream.testnet.binance.vision"),
        ({"BINANCE_BASE_URL": "https://demo-fapi.binance.com"}, ""),
        ({"BINANCE_BASE_URL": "https://api.binance.us"}, ""),
        ({"BINANCE_STREAM_URL": "wss://proxy.example/x/"}, "wss://proxy.example/x"),
        ({"BINANCE_BASE_URL": "https://binance.com.evil.example"}, ""),
    ],
)
def test_the_streams_are_those_of_the_market(given, expected):
    """Those of an exchange that is not Binance's own are not guessed."""
    assert settings(**given).binance_stream_url == expected


def test_live_beside_another_exchange_needs_its_streams():
    """Else candles of two exchanges would be mixed."""
    with pytest.raises(tet.ConfigError, match="BINANCE_STREAM_URL: missing"):
        settings(LIVE="true", BINANCE_BASE_URL="http://127.0.0.1:1")
    with_keys = {"PUBLIC_DATA": "false", "BINANCE_API_KEY": "a", "BINANCE_SECRET_KEY": "b"}
    assert settings(**with_keys).binance_stream_url == "wss://stream.binance.com:9443"


# Connections, to the simulated exchange


NAMES = [f"P{number:03d}/USDT" for number in range(300)]
STREAMS = [kline_stream(name.replace("/", ""), "1m") for name in NAMES]


@pytest.fixture
def exchange():
    """An exchange with many pairs, in real time."""
    with SimulatedBinance(market=Market.random_walk(NAMES)) as simulated:
        yield simulated


@pytest.fixture
def fast_exchange():
    """The same, whose time runs 20 times as fast."""
    clock = SimulatedClock(speed=20)
    with SimulatedBinance(market=Market.random_walk(NAMES), clock=clock) as simulated:
        yield simulated


class Listener:
    """Streams, looked after by the test, and what they have delivered."""

    def __init__(self, url, canary="p000usdt@kline_1s", speed=1.0):
        self.canary = canary
        self.messages: queue.SimpleQueue[messages.Message] = queue.SimpleQueue()
        self.lost = []
        self.clock = FastClock(speed)
        now_ms = tet.Clock().now_ms
        self.streams = streams.Streams(url, self.messages.put, now_ms, self.clock.monotonic)

    def keep(self, streams):
        """Carry these streams."""
        self.streams.keep(streams, self.canary)

    def close(self):
        """Cut all connections."""
        self.streams.stop()

    def tick(self):
        """Look after the connections; returns whether data comes."""
        self.lost += self.streams.tick(False)
        return self.streams.are_delivering

    def heard(self):
        """The streams that something was heard of since the last call."""
        found = set()
        while not self.messages.empty():
            found.add(self.messages.get().stream)
        return found


def ticking(listener, check, seconds=20):
    """Look after the connections until that is so."""
    return eventually(lambda: listener.tick() is not None and check(), seconds)


def all_served(listener):
    """Listen until something was heard of each stream."""
    heard = set()
    ticking(listener, lambda: heard.update(listener.heard()) or heard >= set(STREAMS))


def test_streams_spread_over_lines_and_are_all_served(exchange):
    """Two connections of 150 each, for 300, and each has its canary."""
    with closing(Listener(exchange.stream_url)) as listener:
        listener.keep(STREAMS)
        all_served(listener)
        assert [len(each.names) for each in exchange.streams.open_connections] == [151, 151]
        assert listener.streams.figures().streams == 300


def test_subscriptions_keep_to_the_exchanges_limits(exchange, monkeypatch):
    """No message of ours is longer than it answers, or sooner than it allows, also with many at once."""
    monkeypatch.setattr(streams, "STREAMS_PER_LINE", 300)
    monkeypatch.setattr(subscriptions, "SUBSCRIBE_BYTES", 800)
    with closing(Listener(exchange.stream_url)) as listener:
        listener.keep(STREAMS)
        all_served(listener)
        (connection,) = exchange.streams.connections
        sent = [each for each in connection.received if each.kind == "text"]
        assert len(sent) >= 7
        times = [each.at_monotonic for each in sent]
        assert min(after - before for before, after in pairwise(times)) > 0.2
        assert max(len(each.text) for each in sent) <= 800
        assert connection.close_reason == ""


def test_data_that_comes_while_a_connection_closes_leaves_no_traceback(exchange, caplog):
    """The library logs one then; the connection is lost for a reason, and there is another."""
    with closing(Listener(exchange.stream_url)) as listener:
        listener.keep(STREAMS[:1])
        ticking(listener, lambda: listener.heard())
        (bundle,) = listener.streams._bundles
        ws = bundle.current._ws
        with ws.protocol_mutex:
            ws.protocol.receive_eof()  # as its close() does when it has waited long enough
        ticking(listener, lambda: listener.lost)
        assert not ws.recv_events_thread.is_alive()
        listener.heard()
        ticking(listener, lambda: listener.heard())
    assert not [record for record in caplog.records if record.exc_info]


def test_streams_join_and_leave_without_a_reconnect(exchange):
    """By SUBSCRIBE and UNSUBSCRIBE on the connection that is there."""
    with closing(Listener(exchange.stream_url)) as listener:
        listener.keep(STREAMS[:20])
        ticking(listener, lambda: listener.streams.are_delivering)
        listener.keep(STREAMS[10:25])
        names = {*STREAMS[10:25], "p000usdt@kline_1s"}
        (connection,) = exchange.streams.connections
        ticking(listener, lambda: set(connection.names) == names)
        heard = set()
        ticking(listener, lambda: heard.update(listener.heard()) or heard >= set(STREAMS[20:25]))
        assert len(exchange.streams.attempts) == 1
        assert listener.lost == []
        listener.keep([])
        ticking(listener, lambda: not exchange.streams.open_connections)
        listener.keep(STREAMS[:5])
        ticking(listener, lambda: listener.streams.are_delivering)
        assert listener.lost == []


def test_a_canary_that_leaves_is_replaced(fast_exchange):
    """Its connection falls silent; the next one has another."""
    exchange = fast_exchange
    with closing(Listener(exchange.stream_url, speed=20)) as listener:
        listener.keep(STREAMS[:5])
        ticking(listener, lambda: listener.streams.are_delivering)
        exchange.market.symbols["P000USDT"].status = "BREAK"
        del exchange.market.symbols["P000USDT"]
        exchange.streams.quiet.update(f"P{number:03d}USDT" for number in range(5))
        listener.canary = "p007usdt@kline_1s"
        listener.keep(STREAMS[1:5])
        ticking(listener, lambda: listener.lost)
        ticking(listener, lambda: listener.streams.are_delivering)
        assert "p007usdt@kline_1s" in exchange.streams.open_connections[0].names


def test_a_connection_is_renewed_before_it_ends(exchange, monkeypatch):
    """The new one delivers before the old one is closed: nothing is lost meanwhile."""
    monkeypatch.setattr(streams, "LIFETIME_SECONDS", 3.0)
    with closing(Listener(exchange.stream_url)) as listener:
        listener.keep(STREAMS[:5])
        ticking(listener, lambda: listener.streams.reconnects.counts().get("age", 0) >= 2)
        first, second = exchange.streams.connections[:2]
        assert listener.lost == []
        assert first.close_reason
        assert second.messages_sent > 2


def test_a_connection_stays_until_its_successor_delivers(fast_exchange):
    """One that is acknowledged, and silent, takes nothing over; it is tried again."""
    exchange = fast_exchange
    with closing(Listener(exchange.stream_url, speed=20)) as listener:
        listener.keep(STREAMS[:5])
        ticking(listener, lambda: listener.streams.are_delivering)
        exchange.streams.faults.always("unserved")
        exchange.streams.announce_shutdown()
        ticking(listener, lambda: len(exchange.streams.attempts) >= 4)
        assert listener.lost == []
        assert exchange.streams.connections[0].close_reason == ""
        assert listener.streams.are_delivering


def test_a_renewal_that_is_refused_is_not_hammered(fast_exchange, monkeypatch):
    """The connection goes on meanwhile; attempts wait longer and longer."""
    exchange = fast_exchange
    monkeypatch.setattr(streams, "LIFETIME_SECONDS", 1.0)
    with closing(Listener(exchange.stream_url, speed=20)) as listener:
        listener.keep(STREAMS[:5])
        ticking(listener, lambda: listener.streams.are_delivering)
        exchange.streams.faults.always("refused")
        before, began = len(exchange.streams.attempts), listener.clock.monotonic()
        ticking(listener, lambda: listener.clock.monotonic() - began > 60)
        assert 3 <= len(exchange.streams.attempts) - before <= 12
        assert listener.lost == []


def test_the_canary_is_subscribed_last_and_stays(exchange):
    """Also where it is one of the streams, and that one leaves."""
    with closing(Listener(exchange.stream_url, canary=STREAMS[0])) as listener:
        listener.keep(STREAMS[:3])
        ticking(listener, lambda: listener.streams.are_delivering)
        (connection,) = exchange.streams.connections
        sent = [json.loads(each.text) for each in connection.received if each.kind == "text"]
        assert [name for each in sent for name in each["params"]] == [*STREAMS[1:3], STREAMS[0]]
        listener.keep(STREAMS[1:2])
        ticking(listener, lambda: set(connection.names) == {STREAMS[0], STREAMS[1]})


def test_an_announced_end_is_preceded_by_a_new_connection(exchange):
    """serverShutdown: when the exchange then cuts the old one, the new one has taken over."""
    with closing(Listener(exchange.stream_url)) as listener:
        listener.keep(STREAMS[:5])
        ticking(listener, lambda: listener.streams.are_delivering)
        exchange.streams.announce_shutdown()
        ticking(listener, lambda: listener.streams.reconnects.counts() == {"shutdown": 1})
        assert listener.lost == []
        assert len(exchange.streams.attempts) == 2


def test_reconnects_wait_longer_and_longer_and_are_bounded(exchange):
    """Refused again and again, no more attempts are made than the exchange allows, by far."""
    exchange.streams.faults.always("refused")
    with closing(Listener(exchange.stream_url, speed=100)) as listener:
        listener.keep(STREAMS)  # two connections
        began = listener.clock.monotonic()
        ticking(listener, lambda: listener.clock.monotonic() - began > 300)
        assert 6 <= len(exchange.streams.attempts) <= 30
        assert {lost.reason for lost in listener.lost} == {"refused: HTTP 503"}
        assert not any(lost.was_delivering for lost in listener.lost)


def test_a_crowd_of_lines_keeps_to_the_allowed_attempts(exchange, monkeypatch):
    """However many connections are refused, all attempts of five minutes together are bounded."""
    monkeypatch.setattr(streams, "STREAMS_PER_LINE", 5)
    exchange.streams.faults.always("refused")
    with closing(Listener(exchange.stream_url, speed=100)) as listener:
        listener.keep(STREAMS)  # sixty connections
        began = listener.clock.monotonic()
        ticking(listener, lambda: listener.clock.monotonic() - began > 250)
        assert 60 <= len(exchange.streams.attempts) <= streams.ATTEMPTS


def test_silence_ends_a_connection_and_a_line_in_use_comes_back(fast_exchange):
    """Open, answering pings, and saying nothing for 15 s: it is cut, and connected anew."""
    exchange = fast_exchange
    with closing(Listener(exchange.stream_url, speed=20)) as listener:
        listener.keep(STREAMS[:5])
        ticking(listener, lambda: listener.streams.are_delivering)
        exchange.streams.faults.add("silent")
        ticking(listener, lambda: listener.lost)
        assert listener.lost[0].reason == "silence"
        assert set(listener.lost[0].streams) == set(STREAMS[:5])
        ticking(listener, lambda: listener.streams.are_delivering)


def test_retired_addresses_are_told_by_their_silence(exchange):
    """USD-M's bare address acknowledges klines, and never delivers one."""
    exchange.streams.retired_futures_urls = True
    with closing(Listener(exchange.stream_url, canary="p000usdt@markPrice@1s", speed=20)) as listener:
        listener.keep(STREAMS[:5])
        ticking(listener, lambda: listener.lost)
        assert listener.lost[0].reason == "silence"
    with closing(Listener(f"{exchange.stream_url}/market", canary="p000usdt@markPrice@1s")) as listener:
        listener.keep(STREAMS[:5])
        ticking(listener, lambda: listener.streams.are_delivering and listener.heard())


# TLS


@pytest.fixture
def over_tls(monkeypatch, tmp_path):
    """An exchange behind TLS and a relay that can stall, whose certificate this environment trusts."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.num_tickets = 0  # else the library loses 1 % of its connections by TLS 1.3
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    market, clock = Market.random_walk(NAMES[:5]), SimulatedClock(speed=20)
    with SimulatedBinance(market=market, clock=clock, ssl_context=context) as exchange:
        with StallingRelay(exchange.port) as relay:
            yield exchange, relay


def test_a_stall_inside_a_tls_record_is_cut(over_tls):
    """The watchdog shuts the socket down, and the thread that hung in it ends."""
    exchange, relay = over_tls
    with closing(Listener(relay.stream_url, speed=20)) as listener:
        listener.keep(STREAMS[:5])
        ticking(listener, lambda: listener.streams.are_delivering)
        listener.lost.clear()  # a machine that is slow while they connect is silent, too
        hung = [thread for thread in threading.enumerate() if thread.name.startswith("stream-")]
        stalled = exchange.streams.connections[-1]
        relay.stall()
        ticking(listener, lambda: listener.lost)
        assert listener.lost[0].reason == "silence"
        ticking(listener, lambda: not any(thread.is_alive() for thread in hung))
        eventually(lambda: stalled.close_reason)
        assert stalled.close_reason == "the client left", "the socket was shut down, and nothing waited for"
        ticking(listener, lambda: listener.streams.are_delivering)


def test_the_library_ends_a_stall_inside_a_tls_record_by_itself(over_tls, monkeypatch):
    """Versions 17.3 and 17.4 hang there for ever: as long as later ones do, pyproject.toml caps them."""
    context = ssl.create_default_context()
    _, relay = over_tls
    url = f"{relay.stream_url}/stream?streams=p000usdt@kline_1s"
    ended = threading.Event()

    def receive():
        with pytest.raises(ConnectionClosedError):  # noqa: PT012 (the loop is what ends)
            with connect(url, ssl=context, ping_interval=1, ping_timeout=1, close_timeout=1) as socket:
                while True:
                    try:
                        socket.recv(timeout=1)
                    except TimeoutError:
                        continue
                    relay.stall()
        ended.set()

    threading.Thread(target=receive, daemon=True).start()
    assert ended.wait(15)
