"""The exchange's own paths on the service's address: what bots are answered, and what they may cost."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from rig import eventually, started, unused_port
from samples import NOON_MS

from tet_extras.proxy.forwarding import KEPT_BYTES, Exchange, Forwarder
from tet_extras.proxy.kept import Kept
from tet_extras.proxy.paths import Refusal, parse

HOUR_AGO = f"startTime={NOON_MS - 3_600_000}"


class Answered:
    """What an address answers: status, headers and the body, decoded."""

    def __init__(self, url, method="GET", **headers):
        given = {name.replace("_", "-"): text for name, text in headers.items()}
        request = urllib.request.Request(url, method=method, headers=given)
        try:
            reply = urllib.request.urlopen(request, timeout=20)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            self.status, self.headers, text = reply.status, reply.headers, reply.read()
        self.body = json.loads(text)


@pytest.fixture
def proxied(exchange, redis_url):
    """A service that stands in for the exchange, after its first cycle; its own address is ``url``."""
    with stands_in(exchange, redis_url) as rig:
        yield rig


@contextmanager
def stands_in(exchange, redis_url, **settings):
    """The same, with other settings."""
    own = {"HTTP_ADDR": f"127.0.0.1:{unused_port()}", "BINANCE_PROXY": "true", "FIELDS": "all"}
    with started(exchange, redis_url, **own | settings) as rig:
        rig.refresh()
        yield rig


def ask(rig, target, method="GET", **headers):
    """What the service answers."""
    return Answered(f"http://127.0.0.1:{rig.config.http_addr[1]}{target}", method, **headers)


# What may be asked, and what it weighs


@pytest.mark.parametrize(
    ("prefix", "target", "weight"),
    [
        ("/api/v3", "exchangeInfo", 20),
        ("/api/v3", "klines?symbol=A&limit=1000", 2),
        ("/api/v3", "depth?symbol=A", 5),
        ("/api/v3", "depth?symbol=A&limit=5000", 250),
        ("/api/v3", "depth?symbol=A&limit=500", 25),
        ("/api/v3", "ticker/24hr", 80),
        ("/api/v3", "ticker/24hr?symbol=A", 2),
        ("/api/v3", 'ticker/24hr?symbols=["A","B"]', 2),
        ("/api/v3", f"ticker/24hr?symbols=[{','.join('A' * 21)}]", 40),
        ("/api/v3", "ticker/price", 4),
        ("/fapi/v1", "klines?symbol=A&limit=499", 2),
        ("/fapi/v1", "klines?symbol=A&limit=1500", 10),
        ("/fapi/v1", "klines?symbol=A&limit=x", 5),
        ("/fapi/v1", "ticker/24hr", 40),
        ("/fapi/v1", "premiumIndex?symbol=A", 1),
    ],
)
def test_a_question_weighs_what_the_exchange_says(prefix, target, weight):
    """By its parameters; the order in which they stand does not matter."""
    name, _, query = target.partition("?")
    params = [tuple(each.split("=", 1)) for each in query.split("&") if each]
    asked = parse(prefix, name, params)
    assert asked.weight == weight
    assert asked == parse(prefix, name, [*params[::-1], ("recvWindow", "5000"), ("signature", "x")])


@pytest.mark.parametrize(
    ("name", "query", "status", "code"),
    [
        ("klines", [("symbol", "A"), ("symbol", "B")], 400, -1101),
        ("klines", [("symbol", "A"), ("_", "1")], 400, -1104),
        ("klines", [("symbol", "btcusdt")], 400, -1100),
        ("klines", [("symbol", "A/B")], 400, -1100),
        ("klines", [("symbol", "A" * 51)], 400, -1100),
        ("klines", [("symbol", "")], 400, -1100),
        ("order", [], 404, -1002),
        ("account", [("signature", "x")], 404, -1002),
        ("../v3/klines", [], 404, -1002),
    ],
)
def test_what_cannot_be_asked_costs_no_request(name, query, status, code):
    """In the exchange's own words, where it has any."""
    with pytest.raises(Refusal) as caught:
        parse("/api/v3", name, query)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_a_symbol_may_have_other_letters():
    """As some of the exchange's have."""
    assert parse("/api/v3", "avgPrice", [("symbol", "币安人生USDT")]).query.startswith("symbol=%E5")


# What is answered

ALIKE = (
    "ping",
    "exchangeInfo",
    "exchangeInfo?symbol=ETHUSDT",
    'exchangeInfo?symbols=["BTCUSDT","ETHUSDT"]',
    "klines?symbol=BTCUSDT&interval=15m&limit=3",
    f"klines?symbol=DOGEUSDT&interval=1m&limit=7&{HOUR_AGO}",
    "ticker/price?symbol=BTCUSDT",
    "ticker/price",
    "ticker/24hr",
    "ticker/bookTicker?symbol=ETHUSDT",
    "depth?symbol=BTCUSDT&limit=5",
    "avgPrice?symbol=BTCUSDT",
    "klines?symbol=NOPE&interval=15m",
    "klines?symbol=BTCUSDT&interval=7m",
    "klines?symbol=BTCUSDT",
    "klines?interval=15m",
    "klines?symbol=BTCUSDT&interval=15m&limit=x",
    "ticker/24hr?symbol=NOPE",
)


def test_a_bot_is_told_what_the_exchange_tells(proxied, exchange):
    """Status and body, errors too; with the weight that the gate counts."""
    for target in ALIKE:
        ours, theirs = ask(proxied, f"/api/v3/{target}"), Answered(f"{exchange.url}/api/v3/{target}")
        assert (ours.status, ours.body) == (theirs.status, theirs.body), target
        assert ours.headers["Content-Type"].startswith("application/json")
    assert int(ours.headers["X-MBX-USED-WEIGHT-1M"]) == proxied.binance.gate.used_weight()
    assert ask(proxied, "/api/v3/time").body["serverTime"] == pytest.approx(exchange.clock.now_ms(), abs=2000)


def test_the_same_question_is_asked_once(proxied, exchange):
    """Within a second, in whatever order its parameters stand; what was refused, within a minute."""
    exchange.clear()
    for target in ("ticker/24hr?symbol=BTCUSDT&type=FULL", "ticker/24hr?type=FULL&symbol=BTCUSDT") * 3:
        assert ask(proxied, f"/api/v3/{target}").status == 200
    for _ in range(5):
        assert ask(proxied, "/api/v3/klines?symbol=NOPE&interval=15m").body["code"] == -1121
        assert ask(proxied, "/api/v3/ping").body == {}
        assert ask(proxied, "/api/v3/klines?symbol=BTCUSDT&interval=15m&_=1").body["code"] == -1104
    assert [request.status for request in exchange.requests] == [200, 400]


def test_nothing_of_a_bot_goes_to_the_exchange_but_its_question(proxied, exchange):
    """Neither its headers nor its key nor a signature; and nothing that is signed is asked at all."""
    exchange.clear()
    target = "/api/v3/ticker/price?symbol=BTCUSDT&timestamp=1&recvWindow=5000&signature=secret"
    assert ask(proxied, target, X_MBX_APIKEY="secret-key", Cookie="secret=1").status == 200
    (sent,) = exchange.requests
    assert sent.params == {"symbol": "BTCUSDT"}
    assert not [text for text in sent.headers.values() if "secret" in text]
    for path, method in (
        ("/api/v3/order", "POST"),
        ("/api/v3/order", "DELETE"),
        ("/api/v3/ticker/price", "POST"),
        ("/api/v3/account?timestamp=1&signature=x", "GET"),
        ("/sapi/v1/capital/config/getall", "GET"),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=15m", "GET"),
        ("/api/v1/klines?symbol=BTCUSDT&interval=15m", "GET"),
    ):
        answer = ask(proxied, path, method)
        assert answer.status == 404
        assert "exchange itself" in answer.body["msg"]
    assert len(exchange.requests) == 1
    assert ask(proxied, "/api/status").body["state"]


# What bots may cost


def test_while_the_exchange_wants_a_pause_bots_wait_too(proxied, exchange):
    """429 with the rest of the pause; nothing is sent. A ban that a bot meets stops all."""
    exchange.ban(90)
    answer = ask(proxied, "/api/v3/ticker/price?symbol=BTCUSDT")
    assert (answer.status, answer.body["code"]) == (429, -1003)
    assert 80 <= int(answer.headers["Retry-After"]) <= 90
    assert proxied.binance.gate.pause_left_seconds() > 80
    exchange.clear()
    answer = ask(proxied, "/api/v3/ticker/price?symbol=ETHUSDT")
    assert (answer.status, exchange.requests) == (429, [])
    assert "banned" in answer.body["msg"]


def test_what_the_exchange_fails_to_answer_is_503(proxied, exchange):
    """A bot tries again; it never gets a page of a proxy, or a stale answer."""
    exchange.faults.add("503_html", path="price", times=1)
    answer = ask(proxied, "/api/v3/ticker/price?symbol=BTCUSDT")
    assert (answer.status, answer.body["code"], answer.headers["Retry-After"]) == (503, -1001, "1")
    assert ask(proxied, "/api/v3/ticker/price?symbol=BTCUSDT").status == 200


@pytest.mark.parametrize(
    "fault", ["duplicates", "unsorted", "missing_fields", "nulls", "negative", "nan", "object"]
)
def test_candles_that_cannot_be_are_not_handed_on(proxied, exchange, fault):
    """Of what the window does not hold, too; the next answer is the exchange's."""
    target = f"/api/v3/klines?symbol=BTCUSDT&interval=1h&limit=20&startTime={NOON_MS - 90_000_000}"
    exchange.faults.add(fault)
    answer = ask(proxied, target)
    assert (answer.status, answer.body["code"], answer.headers["Retry-After"]) == (503, -1001, "1")
    assert ask(proxied, target).body == Answered(f"{exchange.url}{target}").body


def test_bots_have_a_share_of_the_weight(exchange, redis_url):
    """Of the exchange's limit: beyond it they are refused until the minute turns; the window goes on."""
    with stands_in(exchange, redis_url, PROXY_WEIGHT_SHARE=0.01) as rig:
        answer = ask(rig, "/api/v3/ticker/24hr")
        assert (answer.status, answer.body["code"]) == (429, -1003)
        assert "PROXY_WEIGHT_SHARE" in answer.body["msg"]
        assert 1 <= int(answer.headers["Retry-After"]) <= 61
        statuses = [ask(rig, f"/api/v3/depth?symbol=BTCUSDT&limit={n}").status for n in range(1, 15)]
        assert statuses == [200] * 12 + [429] * 2
        rig.refresh()
        assert rig.feeds[0].failure == ""
        exchange.clock.advance(60)
        rig.binance.sync_clock()
        assert ask(rig, "/api/v3/depth?symbol=BTCUSDT&limit=100").status == 200


class Reply(NamedTuple):
    """A reply of the exchange."""

    status: int
    body: bytes


class Exchanging:
    """The exchange as a function, and a gate that is always open."""

    weight_limit, pause_reason = 10**9, ""

    def __init__(self, answer):
        self.asked, self._answer = 0, answer

    def pause_left_seconds(self):
        """None."""
        return 0.0

    def used_weight(self):
        """None."""
        return 0

    def ask(self, _path, params, _weight):
        """What it answers to that."""
        self.asked += 1
        return self._answer(params)


BIG = b'{"symbols":"' + b"x" * 3_000_000 + b'"}'
#: Questions that many bots, or one that is broken, may ask within a minute; the answer to each; how many of
#: them are kept at most, and at least.
MANY: dict[str, tuple[list[Any], Reply, range]] = {
    "random symbols": (
        [("avgPrice", [("symbol", f"S{number}")]) for number in range(5000)],
        Reply(400, b'{"code":-1121,"msg":"Invalid symbol."}'),
        range(1900, 2001),
    ),
    "long parameters": (
        [("klines", [("symbol", "A"), ("startTime", f"{number:015000}")]) for number in range(1500)],
        Reply(400, b'{"code":-1100,"msg":"Illegal characters."}'),
        range(1000, 1070),
    ),
    "large answers": (
        [("exchangeInfo", [("symbol", f"S{number}")]) for number in range(12)],
        Reply(200, BIG),
        range(5, 6),
    ),
    "one that is too large": ([("exchangeInfo", [])], Reply(200, BIG * 6), range(0, 1)),
}


@pytest.mark.parametrize("what", MANY)
def test_what_is_kept_of_answers_has_bounds(what):
    """In number and in bytes, questions counted; the newest are kept, and given to whoever asks again."""
    questions, reply, kept = MANY[what]
    exchanging = Exchanging(lambda params: reply)
    exchange = Exchange("/api/v3", exchanging, exchanging.ask, lambda: NOON_MS)
    forwarder = Forwarder(exchange, 1.0)

    async def ask_all():
        for name, params in questions:
            answer = await forwarder.answer(parse("/api/v3", name, params))
            assert (answer.status, answer.content.body) == (reply.status, reply.body)

    asyncio.run(ask_all())
    assert len(forwarder._kept) in kept
    assert forwarder._kept.size <= KEPT_BYTES
    before = exchanging.asked
    questions = questions[-1:]
    asyncio.run(ask_all())
    assert exchanging.asked == before + (kept.start == 0)


def test_what_is_too_large_drops_no_other():
    """Nor does it stay."""
    kept: Kept[str, int] = Kept(most=10, most_bytes=100)
    kept.put("a", 1, 60)
    kept.put("b", 2, 101)
    assert (kept.get("a"), kept.get("b"), kept.size) == (1, None, 60)
    kept.put("a", 3, 40)
    kept.put("c", 4, 60)
    assert (kept.get("a"), kept.get("c"), kept.size) == (3, 4, 100)


# The token


def test_the_token_may_stand_before_the_path(exchange, redis_url):
    """For bots, which send no headers of ours; for nothing else, since addresses are remembered."""
    with stands_in(exchange, redis_url, HTTP_TOKEN="right-token") as rig:
        target = "/api/v3/ticker/price?symbol=BTCUSDT"
        assert ask(rig, f"/t/right-token{target}").status == 200
        assert ask(rig, target, Authorization="Bearer right-token").status == 200
        answer = ask(rig, target)
        assert (answer.status, answer.body["code"]) == (401, -1002)
        assert ask(rig, f"/t/wrong{target}").status == 401
        with pytest.raises(json.JSONDecodeError):
            ask(rig, "/t/right-token/api/status")


def test_without_the_setting_there_is_nothing(exchange, redis_url):
    """The exchange's paths are unknown ones."""
    with stands_in(exchange, redis_url, BINANCE_PROXY="false") as rig, pytest.raises(json.JSONDecodeError):
        ask(rig, "/api/v3/ping")


# Candles from the window


NOW = NOON_MS
STEP = 900_000
#: Questions that the window answers, and what they would cost the exchange.
OF_WINDOW = (
    "limit=3",
    "limit=1",
    "limit=192",
    "",  # 500 are not held: see below
    f"startTime={NOW - 7 * STEP}",
    f"startTime={NOW - 7 * STEP}&limit=2",
    f"startTime={NOW // STEP * STEP - 5 * STEP}&endTime={NOW // STEP * STEP - 2 * STEP}",
    f"startTime={NOW // STEP * STEP - 5 * STEP + 1}&endTime={NOW // STEP * STEP - 2 * STEP - 1}",
    f"endTime={NOW - 9 * STEP}&limit=5",
    f"startTime={(NOW - 7 * STEP) * 1000}&endTime={NOW * 1000}",
    f"startTime={NOW + STEP}",
    f"startTime={NOW - 7 * STEP}&limit=5000",
    f"startTime={NOW - 86_400_000}",
    f"endTime={NOW + 86_400_000}&limit=2&timeZone=0",
)
BEYOND = (
    "limit=193",
    f"startTime={NOW - 3 * 86_400_000}&limit=2",
    f"endTime={NOW - 3 * 86_400_000}&limit=2",
    "limit=3&timeZone=8",
    "limit=0",
    f"startTime={NOW}&endTime={NOW - STEP}",
    "limit=-1",
)


def test_what_the_window_holds_costs_no_request(proxied, exchange):
    """The exchange's own rows, field by field and type by type, the forming candle last."""
    for query in OF_WINDOW:
        target = f"/api/v3/klines?symbol=BTCUSDT&interval=15m&{query}".rstrip("&")
        exchange.clear()
        ours = ask(proxied, target)
        asked = len(exchange.requests)
        theirs = Answered(f"{exchange.url}{target}")
        if query:
            assert (ours.status, ours.body) == (200, theirs.body), query
        assert asked == (0 if query else 1), query
    for query in BEYOND:
        target = f"/api/v3/klines?symbol=BTCUSDT&interval=15m&{query}"
        exchange.clear()
        ours, asked = ask(proxied, target), len(exchange.requests)
        theirs = Answered(f"{exchange.url}{target}")
        assert (ours.status, ours.body, asked) == (theirs.status, theirs.body, 1), query


def test_after_a_close_an_answer_waits_for_the_window(proxied, exchange):
    """And asks the exchange where that takes long: no bot takes a candle for closed that was not."""
    target = "/api/v3/klines?symbol=BTCUSDT&interval=15m&limit=2"
    exchange.clock.advance(480)
    proxied.binance.sync_clock()
    exchange.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, proxied, target)
        eventually(lambda: ask(proxied, "/health/live").status == 200)  # it waits, others are answered
        assert not waiting.done()
        proxied.refresh()
        assert waiting.result().body == Answered(f"{exchange.url}{target}").body
    assert [
        request.params.get("limit") for request in exchange.asked() if request.params["limit"] == "2"
    ] == ["2"]


def test_nothing_old_is_told_as_new(exchange, redis_url, monkeypatch):
    """Beyond MAX_DATA_AGE there is no answer, nor before the window is filled; else the exchange is asked."""
    monkeypatch.setattr("tet_extras.proxy.window.CLOSE_SECONDS", 0.0)
    target = "/api/v3/klines?symbol=BTCUSDT&interval=15m&limit=2"
    with stands_in(exchange, redis_url, MAX_DATA_AGE=540) as rig:
        exchange.clock.advance(480)  # within it, but the candle has closed
        rig.binance.sync_clock()
        exchange.clear()
        assert ask(rig, target).body == Answered(f"{exchange.url}{target}").body
        assert [request.params["limit"] for request in exchange.asked()] == ["2", "2"]
        exchange.clock.advance(120)
        rig.binance.sync_clock()
        answer = ask(rig, target)
        assert (answer.status, answer.body["code"]) == (503, -1001)
        assert "MAX_DATA_AGE" in answer.body["msg"]
        assert int(answer.headers["Retry-After"]) > 0
    own = {"HTTP_ADDR": f"127.0.0.1:{unused_port()}", "BINANCE_PROXY": "true"}
    with started(exchange, redis_url, REDIS_PREFIX="b", FIELDS="all", **own) as rig:
        assert "being fetched" in ask(rig, target).body["msg"]
    with started(exchange, redis_url, REDIS_PREFIX="c", **own) as rig:
        answer = ask(rig, target)
        assert (answer.status, "FIELDS=all" in answer.body["msg"]) == (503, True)


def test_futures_have_the_same(exchange, redis_url):
    """Under their own paths, with up to 1,500 rows; decimals are exact, without zeros that mean nothing."""
    settings = {"BINANCE_MARKET": "usdm", "TIMEFRAME": "1m", "DATA_DAYS": 2}
    with stands_in(exchange, redis_url, **settings) as rig:
        exchange.clear()
        target = "/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=1600"
        ours, asked = ask(rig, target), len(exchange.requests)
        theirs = Answered(f"{exchange.url}{target}")
        assert (len(ours.body), asked) == (1500, 0)
        numbers = [[float(each) for each in row] for row in ours.body]
        assert numbers == [[float(each) for each in row] for row in theirs.body]
        assert [[type(each) for each in row] for row in ours.body[:2]] == [
            [type(e) for e in r] for r in theirs.body[:2]
        ]
        assert ask(rig, "/fapi/v1/order").status == 404
        answer = ask(rig, "/fapi/v1/premiumIndex")  # to which this exchange answers with a web page
        assert (answer.status, answer.body["code"]) == (503, -1001)
        assert ask(rig, "/api/v3/ping").status == 404
