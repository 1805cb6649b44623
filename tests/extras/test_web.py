"""What is answered over HTTP: pure answers without a socket, then the server with one."""

from __future__ import annotations

import asyncio
import csv
import gzip
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import closing, contextmanager, nullcontext, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from rig import PROGRAM, eventually, expected_candles, run_program, started, stored, unused_port
from samples import HOUR, MINUTE, OHLCV
from starlette.datastructures import Headers

import tet_data_service as tet
from tet_core.snapshot import FeedsByLink, StreamFigures
from tet_core.times import parse_iso_time
from tet_extras.simulated_binance import Market
from tet_extras.web import bounds, news, routes, server
from tet_extras.web.answers import Sources
from tet_extras.web.guard import Guard
from tet_extras.web.metrics import Exposition
from tet_extras.web.pairs import Table
from tet_extras.web.routes import Site

CANDLES = "symbol=BTC/USDT&timeframe=15m"


class Answers(NamedTuple):
    """What answers for a service, without a server: the site, and the application around it."""

    site: Site
    app: Guard


class Answered(NamedTuple):
    """A response, read whole."""

    status: int
    headers: Headers
    body: bytes


def site_of(rig, token=None, on_loopback=True):
    """What answers for a service, without a server."""
    status, showing = rig.service.status, tet.showing_of(rig.service)
    sources = Sources(status.snapshot, status.health, showing)
    site = Site(sources, Table(showing.feeds), Exposition(sources))
    return Answers(site, site.application(token, on_loopback))


def ask(site, path, query="", method="GET", **headers):
    """A response to a client that is gone once it has it."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.disconnect"}

    given = [(name.replace("_", "-").encode(), text.encode("latin-1")) for name, text in headers.items()]
    connection = SimpleNamespace(taking=lambda body: nullcontext())
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": given}
    asyncio.run(site.app({**scope, "connection": connection}, receive, send))
    body = b"".join(message["body"] for message in sent[1:])
    return Answered(sent[0]["status"], Headers(raw=sent[0]["headers"]), body)


def kept(site):
    """The answers with candles that are kept."""
    return [content for _, content in site.site._kept.values()]


@pytest.fixture
def rig(exchange, redis_url):
    """A service after its first cycle: two pairs of two days."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as started_rig:
        started_rig.refresh()
        yield started_rig


@pytest.fixture
def site(rig):
    """What answers for it."""
    return site_of(rig)


# /api/candles


def test_candles_are_those_of_redis(site, reader):
    """The newest rows, oldest first: time and the exact decimals, as strings."""
    rows = json.loads(ask(site, "/api/candles", f"{CANDLES}&limit=100").body)
    candles = list(stored(reader)["candles"].items())[-100:]
    assert rows == [[at, *(candle[name] for name in OHLCV)] for at, candle in candles]


def test_candles_are_500_unless_limit_says_otherwise(exchange, redis_url):
    """As many as there are, at most."""
    with started(exchange, redis_url, DATA_DAYS=10) as rig:
        rig.refresh()
        site = site_of(rig)
        assert len(json.loads(ask(site, "/api/candles", "symbol=BTCUSDT").body)) == 500
        assert len(json.loads(ask(site, "/api/candles", "symbol=btc_usdt&limit=1000000").body)) == 960


def test_closed_leaves_the_forming_candle_out(site, reader):
    """Those that open at data_end or later; the header says where that is."""
    response = ask(site, "/api/candles", f"{CANDLES}&closed=true")
    rows, value = json.loads(response.body), stored(reader)
    assert response.headers["X-Data-End"] == value["data_end"]
    assert [row[0] for row in rows] == [at for at in value["candles"] if at < value["data_end"]]
    with_forming = json.loads(ask(site, "/api/candles", CANDLES).body)
    assert with_forming[:-1] == rows


def test_closed_only_holds_here_too(exchange, redis_url, reader):
    """What is not stored is not served."""
    with started(exchange, redis_url, CLOSED_ONLY="true") as rig:
        rig.refresh()
        rows = json.loads(ask(site_of(rig), "/api/candles", CANDLES).body)
    assert [row[0] for row in rows] == list(stored(reader)["candles"])


def test_candles_as_csv(site):
    """A header and the same texts."""
    response = ask(site, "/api/candles", f"{CANDLES}&format=csv&limit=3")
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    head, *rows = csv.reader(io.StringIO(response.body.decode()))
    assert head == ["time", *OHLCV]
    assert rows == json.loads(ask(site, "/api/candles", f"{CANDLES}&limit=3").body)


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("", "symbol"),
        ("symbol=BTC/USDT&limit=0", "limit"),
        ("symbol=BTC/USDT&limit=1000001", "limit"),
        ("symbol=BTC/USDT&limit=-1", "limit"),
        ("symbol=BTC/USDT&limit=1e3", "limit"),
        ("symbol=BTC/USDT&limit=%D9%A3", "limit"),
        ("symbol=BTC/USDT&timeframe=7m", "15m"),
        ("symbol=BTC/USDT&closed=maybe", "true or false"),
        ("symbol=BTC/USDT&format=xml", "json or csv"),
        ("symbol=BTC/USDT&symbl=ETH/USDT", "symbl"),
        ("symbol=BTC/USDT&symbol=ETH/USDT", "twice"),
        ("symbol=BTC/USDT,", "symbol"),
        ("symbol=BTC/USDT,ETH/USDT&limit=75001", "limit may be 75000"),
        ("symbol=BTC/USDT&startTime=yesterday", "startTime"),
        ("symbol=BTC/USDT&startTime=2026-01-15T12:00:00", "startTime"),
        ("symbol=BTC/USDT&endTime=-1", "endTime"),
        ("symbol=BTC/USDT&endTime=2026-01-15", "endTime"),
    ],
)
def test_bad_input_is_400_with_a_sentence(site, query, word):
    """One that says what is wrong, or what is allowed."""
    response = ask(site, "/api/candles", query)
    assert response.status == 400
    assert word in response.body.decode()


def test_candles_of_a_time(site, reader):
    """From a time on the first ones, up to a time the newest; ms or RFC 3339, both included."""
    every = json.loads(ask(site, "/api/candles", CANDLES).body)
    times = [row[0] for row in every]
    ms = {at: parse_iso_time(at) for at in times}
    cases = {
        f"startTime={times[-9]}": every[-9:],
        f"startTime={ms[times[-9]]}": every[-9:],
        f"startTime={ms[times[-9]] + 1}": every[-8:],
        f"startTime={times[-9]}&limit=2": every[-9:-7],
        f"endTime={times[-9]}": every[:-8],
        f"endTime={ms[times[-9]] - 1}&limit=2": every[-11:-9],
        f"startTime={times[-9]}&endTime={times[-8]}": every[-9:-7],
        f"startTime={times[-2]}&closed=true": every[-2:-1],
        f"startTime={times[-9].replace('Z', '%2B00:00')}&limit=1": every[-9:-8],
        "startTime=2030-01-01T00:00:00Z": [],
        f"startTime={times[-1]}&endTime={times[0]}": [],
        "endTime=0": [],
        "startTime=0&limit=1": every[:1],
    }
    for query, rows in cases.items():
        assert json.loads(ask(site, "/api/candles", f"{CANDLES}&{query}").body) == rows, query


def test_several_symbols_at_once(site, reader):
    """An object by symbol, or rows and lines that say whose they are."""
    several = "symbol=BTC/USDT,eth_usdt&limit=2"
    rows = {
        name: json.loads(ask(site, "/api/candles", f"symbol={name}&limit=2").body)
        for name in ("BTC/USDT", "ETH_USDT")
    }
    response = ask(site, "/api/candles", several)
    assert json.loads(response.body) == rows
    ends = [stored(reader, f"15m:{name}_USDT")["data_end"] for name in ("BTC", "ETH")]
    assert response.headers["X-Data-End"] == min(ends)
    flat = [[name, *row] for name, each in rows.items() for row in each]
    text = ask(site, "/api/candles", f"{several}&format=csv").body.decode()
    assert list(csv.reader(io.StringIO(text))) == [["symbol", "time", *OHLCV], *flat]
    response = ask(site, "/api/candles", f"{several}&format=ndjson")
    assert response.headers["Content-Type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in response.body.decode().splitlines()]
    assert [list(line.values()) for line in lines] == flat
    one = ask(site, "/api/candles", "symbol=BTC/USDT&limit=2&format=ndjson").body.decode().splitlines()
    assert [list(json.loads(line)) for line in one] == [["time", *OHLCV]] * 2
    assert ask(site, "/api/candles", "symbol=BTC/USDT,XXX/USDT").status == 404


def test_an_unknown_pair_is_404(site):
    """With its name, whatever that is; the answer is text and nothing else."""
    response = ask(site, "/api/candles", "symbol=%3Cscript%3Ealert(1)%3C/script%3E")
    assert response.status == 404
    assert "<SCRIPT>" in response.body.decode()
    assert response.headers["Content-Type"].startswith("text/plain")
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_a_pair_without_candles_yet_has_none(exchange, redis_url):
    """It is kept, and nothing is there: an empty list."""
    with started(exchange, redis_url) as rig:
        assert ask(site_of(rig), "/api/candles", CANDLES).body == b"[]"


def test_what_was_evicted_comes_from_redis(exchange, redis_url, reader):
    """Above MEMORY_LIMIT_MB the candles are in Redis alone; without it they cannot be had."""
    with started(exchange, redis_url, MEMORY_LIMIT_MB=50) as rig:
        rig.refresh()
        rig.refresh()
        assert rig.feeds[0].series is None
        site = site_of(rig)
        rows = json.loads(ask(site, "/api/candles", CANDLES).body)
        assert [row[0] for row in rows] == list(stored(reader)["candles"])
        (row,) = json.loads(ask(site, "/api/pairs").body)
        assert row["price"] == rows[-1][4]
        rig.store._unreachable("", OSError("gone"))
        response = ask(site, "/api/candles", CANDLES)
        assert response.status == 503
        assert "does not answer" in response.body.decode()
        assert json.loads(ask(site, "/api/pairs").body)[0]["price"] == row["price"], "the last that was known"


def test_an_answer_is_made_once_for_each_write(rig, site):
    """Asked again it is the same; written again it is another one, with another tag."""
    first = ask(site, "/api/candles", CANDLES)
    (made,) = kept(site)
    assert ask(site, "/api/candles", CANDLES) == first
    assert kept(site)[0] is made
    rig.exchange.clock.advance(MINUTE)
    rig.refresh()
    second = ask(site, "/api/candles", CANDLES)
    assert second.headers["ETag"] != first.headers["ETag"]
    assert second.body != first.body


def test_an_answer_is_kept_by_what_it_is(site, monkeypatch):
    """However its symbol is written, and whatever limit is beyond what there is."""
    monkeypatch.setattr(routes, "KEPT_ANSWERS", 3)
    first = ask(site, "/api/candles", f"{CANDLES}&limit=1000")
    for query in ("symbol=btc-----usdt&limit=1000", "symbol=B/T_C-USDT&limit=999999", f"{CANDLES}&limit=193"):
        assert ask(site, "/api/candles", query).body == first.body
    assert len(kept(site)) == 1
    for limit in range(1, 9):
        ask(site, "/api/candles", f"{CANDLES}&limit={limit}")
    assert len(kept(site)) == 3


def test_what_is_kept_of_answers_is_bounded(site, monkeypatch):
    """The oldest goes first, and is made again when it is asked for."""
    monkeypatch.setattr(routes, "KEPT_BYTES", 20_000)
    first = ask(site, "/api/candles", f"{CANDLES}&limit=150")
    (made,) = kept(site)
    for limit in range(100, 110):
        ask(site, "/api/candles", f"{CANDLES}&limit={limit}")
    assert sum(len(content.body) for content in kept(site)) <= 20_000
    assert made not in kept(site)
    assert ask(site, "/api/candles", f"{CANDLES}&limit=150") == first


# ETag, gzip, methods


@pytest.mark.parametrize("path", ["/api/candles", "/api/pairs", "/api/status", "/", "/page/style.css"])
def test_who_has_it_gets_304(site, path):
    """Alone, among others, made strong by a proxy (they compare weakly: RFC 9110, 13.1.2), or not at all."""
    query = CANDLES if path == "/api/candles" else ""
    response = ask(site, path, query)
    tag = response.headers["ETag"]
    for known in (tag, f'"x", {tag}', tag.removeprefix("W/"), f'"x" ,{tag.removeprefix("W/")}', "*"):
        again = ask(site, path, query, if_none_match=known)
        assert (again.status, again.body) == (304, b"")
    assert ask(site, path, query, if_none_match='W/"x"').status == 200


@pytest.mark.parametrize(
    ("accepted", "is_compressed"),
    [
        *[(text, True) for text in ("gzip", "br, gzip;q=0.5", "*", "GZIP ; q=1", "br;q=0,*;q=0.001")],
        *[(text, False) for text in ("gzip;q=0", "br", "", "gzip; q=0.000, *", "xgzip", "gzip;q=")],
    ],
)
def test_who_takes_gzip_gets_it(site, accepted, is_compressed):
    """What is compressed is the same."""
    plain = ask(site, "/api/candles", CANDLES)
    response = ask(site, "/api/candles", CANDLES, accept_encoding=accepted)
    assert ("Content-Encoding" in response.headers) is is_compressed
    assert (gzip.decompress(response.body) if is_compressed else response.body) == plain.body
    assert response.headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_all_is_read_only(site, method):
    """Other methods are answered with which there are."""
    response = ask(site, "/", method=method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


def test_an_unknown_path_is_404(site):
    """In the API, among the page's files, and elsewhere."""
    for path in (
        "/x",
        "/api/x",
        "/page/x.js",
        "/page/../answers.py",
        "/page/%2e%2e/web.py",
        "//",
        "/health/x",
    ):
        assert ask(site, path).status == 404


# /api/status and /api/pairs


def test_the_status_is_that_of_redis_and_health(rig, site, reader):
    """The same fields, and what /health says."""
    found = json.loads(ask(site, "/api/status").body)
    health = found.pop("health")
    assert found.keys() == json.loads(reader.get("tet:system:status")).keys()
    assert health == {"live": True, "ready": True, "reasons": []}
    assert (found["symbols"], found["state"]) == (["BTC/USDT", "ETH/USDT"], "running")


def test_a_row_says_what_the_market_did(rig, site, exchange, reader):
    """Last price, changes over 24 hours and the window, closes for the sparkline, newest candle."""
    row = json.loads(ask(site, "/api/pairs").body)[0]
    value = stored(reader)
    candles = list(value["candles"].values())
    opens_ms = [parse_iso_time(at) for at in value["candles"]]
    (day,) = [
        i for i, at in enumerate(opens_ms) if at == opens_ms[-1] - 24 * HOUR * 1000 + 15 * MINUTE * 1000
    ]
    price = float(candles[-1]["close"])
    assert row["price"] == candles[-1]["close"]
    assert row["change_24h"] == pytest.approx(price / float(candles[day]["open"]) - 1, abs=1e-6)
    assert row["change_window"] == pytest.approx(price / float(candles[0]["open"]) - 1, abs=1e-6)
    assert (row["newest"], row["candles"], row["completeness"]) == (value["last_candle_time"], 192, 1.0)
    assert (row["state"], row["reason"], row["updated"]) == ("fresh", "", value["last_update"])
    assert (len(row["spark"]), min(row["spark"]), max(row["spark"])) == (48, 0, 100)


@pytest.mark.parametrize(("timeframe", "has_day"), [("1h", True), ("1d", False)])
def test_a_change_over_24_hours_needs_candles_shorter_than_that(exchange, redis_url, timeframe, has_day):
    """Of days it would be another span."""
    with started(exchange, redis_url, TIMEFRAME=timeframe, DATA_DAYS=3) as rig:
        rig.refresh()
        (row,) = json.loads(ask(site_of(rig), "/api/pairs").body)
    assert (row["change_24h"] is not None) is has_day
    assert row["change_window"] is not None


def test_a_row_has_the_state_and_the_reason(rig, site, exchange):
    """Failing while its data is young enough, then stale; the other pair stays fresh."""
    exchange.faults.add("500", times=99, match=lambda params: params["symbol"] == "ETHUSDT")
    rig.refresh()
    rows = eventually(
        lambda: [r for r in json.loads(ask(site, "/api/pairs").body) if r["state"] == "failing"]
    )
    assert rows[0]["symbol"] == "ETH/USDT"
    assert "HTTP 500" in rows[0]["reason"]
    exchange.clock.advance(HOUR)
    rig.refresh()
    states = eventually(lambda: _states(site, "stale"))
    assert states == {"BTC/USDT": "fresh", "ETH/USDT": "stale"}


def _states(site, wanted):
    states = {row["symbol"]: row["state"] for row in json.loads(ask(site, "/api/pairs").body)}
    return states if wanted in states.values() else None


def test_a_pair_without_data_is_missing(exchange, redis_url):
    """There is a row, with nothing in it."""
    with started(exchange, redis_url) as rig:
        (row,) = json.loads(ask(site_of(rig), "/api/pairs").body)
    assert (row["state"], row["price"], row["spark"]) == ("missing", None, [])


def test_a_row_is_worked_out_once_for_each_write(rig, monkeypatch):
    """Not while nothing changes, nor for the pairs that did not; and only when somebody asks."""
    asked: list[str] = []
    showing = tet.showing_of(rig.service)

    def looked_at(feed):
        asked.append(feed.symbol)
        return feed.candles()

    def feeds():
        for feed in showing.feeds():
            yield feed._replace(candles=partial(looked_at, feed))

    monkeypatch.setattr("tet_extras.web.pairs.REFRESH_SECONDS", 0.0)
    table = Table(feeds)
    version = table.since(0)[0]
    assert (table.since(version), asked) == ((version, "[]"), ["BTC/USDT", "ETH/USDT"])
    rig.exchange.clock.advance(MINUTE)
    rig.binance.sync_clock()
    rig.service.updates.update(rig.feeds[1])
    rig.service.updates.update(rig.feeds[1])
    assert asked == ["BTC/USDT", "ETH/USDT"]
    version, rows = table.since(version)
    assert [row["symbol"] for row in json.loads(rows)] == ["ETH/USDT"]
    assert asked == ["BTC/USDT", "ETH/USDT", "ETH/USDT"]
    rig.feeds[0].tried(tet.TransientError("a test"), 1)
    assert [row["state"] for row in json.loads(table.since(version)[1])] == ["failing"]
    assert asked == ["BTC/USDT", "ETH/USDT", "ETH/USDT"], "its candles are the same"


def test_who_looks_meanwhile_is_told_what_was_seen(rig, monkeypatch):
    """While one waits for Redis, say, others have the rows of before at once."""
    monkeypatch.setattr("tet_extras.web.pairs.REFRESH_SECONDS", 0.0)
    looking, goes_on = threading.Event(), threading.Event()
    showing = tet.showing_of(rig.service)

    def feeds():
        looking.set()
        assert goes_on.wait(20)
        yield from showing.feeds()

    table = Table(feeds)
    goes_on.set()
    seen = table.since(0)
    looking.clear()
    goes_on.clear()
    slow = threading.Thread(target=table.since, args=(0,))
    slow.start()
    assert looking.wait(20)
    assert table.since(0) == seen
    goes_on.set()
    slow.join(20)


def test_the_table_costs_no_search_for_each_row(rig, site, monkeypatch):
    """And a pair that is asked for by name is looked up, not searched for, however many there are."""
    monkeypatch.setattr(rig.service.watchlist, "find", None)
    assert all(row["price"] for row in json.loads(ask(site, "/api/pairs").body))
    many = tet.Watchlist(rig.config)
    many.pairs = tuple(tet.Pair(f"P{number}", "USDT") for number in range(4000))
    many.own(lambda pair, timeframe: True)
    began = time.thread_time()
    assert all(many.find(f"P{number}_USDT", "15m").pair.base == f"P{number}" for number in range(4000))
    assert time.thread_time() - began < 0.5


# Who may ask


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:80", "127.1.2.3", None]
)
def test_names_of_this_machine_are_answered_to(site, host):
    """On loopback; a client of old that gives none cannot be a browser."""
    assert ask(site, "/api/status", **({"host": host} if host else {})).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "[::1", "10.0.0.1"]
)
def test_another_name_is_refused_on_loopback(rig, site, host):
    """A web page whose name points here reads nothing; elsewhere names are the operator's business."""
    for path in ("/", "/api/status", "/metrics", "/health"):
        assert ask(site, path, host=host).status == 403
    assert ask(site_of(rig, on_loopback=False), "/api/status", host=host).status == 200


@pytest.mark.parametrize("host", ["evil.example", "candles.example:8443", "", "[::1", None])
def test_with_a_token_any_name_is_answered_to(rig, site, host):
    """A proxy may pass the name it was asked for; without the token nothing is shown all the same."""
    given = {"host": host} if host is not None else {}
    guarded = site_of(rig, token="t")
    assert ask(guarded, "/api/status", authorization="Bearer t", **given).status == 200
    assert ask(guarded, "/health/live", **given).status == 200
    assert ask(guarded, "/api/status", **given).status == 401


def test_the_refusal_of_a_name_says_what_a_proxy_has_to_send(site):
    """For nginx, for Caddy, and what else would help."""
    sentence = ask(site, "/", host="candles.example").body.decode()
    for words in ("proxy_set_header Host localhost", "header_up Host localhost", "HTTP_TOKEN"):
        assert words in sentence


def test_every_answer_keeps_the_page_safe(site):
    """No script but its own files, no frame, no guess at types; refusals too."""
    for path in ("/", "/page/style.css", "/api/status", "/nothing"):
        headers = ask(site, path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


LOCKED = ("/", "/chart/BTC_USDT/15m", "/events", "/api/status", "/api/pairs", "/api/candles", "/metrics")


@pytest.mark.parametrize("path", LOCKED)
def test_without_the_token_nothing_is_shown(rig, path):
    """Nor with another one."""
    site = site_of(rig, token="right-token")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": "tet_token=right-token"}):
        response = ask(site, path, **headers)
        assert response.status == 401
        assert "BTC" not in response.body.decode()
    assert ask(site, path, "token=wrong").status == 401
    assert ask(site, path, CANDLES, authorization="Bearer right-token").status in (200, 400)


def test_a_browser_is_shown_where_to_put_the_token(rig):
    """A page with a form, where it accepts one."""
    response = ask(site_of(rig, token="t"), "/", accept="text/html,*/*")
    assert response.status == 401
    assert b'name="token"' in response.body


def test_the_token_in_the_address_becomes_a_cookie(rig):
    """Sent on to the address without it; the cookie, which is not the token, opens the rest."""
    site = site_of(rig, token="right-token")
    response = ask(site, "/chart/BTC_USDT/15m", "token=right-token&x=1")
    assert (response.status, response.headers["Location"]) == (303, "/chart/BTC_USDT/15m?x=1")
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "right-token" not in cookie
    assert ask(site, "/api/status", cookie=f"other=1; {cookie.split(';')[0]}").status == 200


def test_sending_on_leads_nowhere_else(rig):
    """An address that begins with two slashes would be another machine's; line ends would be headers."""
    site = site_of(rig, token="t")
    assert ask(site, "//evil.example/x", "token=t").headers["Location"] == "/evil.example/x"
    assert "\n" not in ask(site, "/a\r\nX: y", "token=t").headers["Location"]


def test_probes_need_no_token_and_learn_no_reason(rig, exchange):
    """The code is what a probe wants; names of pairs are for those with the token."""
    exchange.clock.advance(HOUR)
    rig.binance.sync_clock()
    site = site_of(rig, token="t")
    for path, code in (("/health", 503), ("/health/live", 200), ("/health/ready", 503)):
        response = ask(site, path)
        assert response.status in (code, 503)
        assert json.loads(response.body)["reasons"] == []
        assert json.loads(ask(site, path, authorization="Bearer t").body)["reasons"]


def test_strangers_learn_nothing_but_the_two_halves(rig, exchange):
    """Whatever else /health has to say, such as which streams are blind, names what is kept here."""
    links = FeedsByLink(live=0, catching_up=0, blind=1)
    figures = StreamFigures(1, 1, 0, 0.0, 0, 0, 0, 0, None, {}, 0, links, ["BTC/USDT 15m"], [])
    rig.service.status.streams = lambda: figures
    exchange.clock.advance(HOUR)
    rig.binance.sync_clock()
    site = site_of(rig, token="t")
    for path in ("/health", "/health/live", "/health/ready"):
        found = json.loads(ask(site, path).body)
        assert found == {"live": found["live"], "ready": False, "reasons": []}
        assert b"BTC/USDT" in ask(site, path, authorization="Bearer t").body


def test_the_token_is_never_shown(exchange, redis_url, free_port, caplog):
    """Not by --check-config, nor in the log of the service."""
    done = run_program("--public", "--check-config", HTTP_TOKEN="secret-token")
    assert "secret-token" not in done.stdout + done.stderr
    assert "HTTP_TOKEN                ***" in done.stdout
    arguments = ("--public", "--once", "--days=1", "--symbols=BTC/USDT", "--log-level=debug")
    servers = (f"--base-url={exchange.url}", f"--redis={redis_url}", f"--http=127.0.0.1:{free_port}")
    done = run_program(*arguments, *servers, HTTP_TOKEN="secret-token")
    assert done.returncode == 0
    assert "secret-token" not in done.stdout + done.stderr
    assert f"serving the page, /api, /health and /metrics url=http://127.0.0.1:{free_port}/" in done.stderr


def test_off_loopback_a_token_ends_the_warning():
    """Without one, anybody reads it all."""
    done = run_program("--public", "--check-config", HTTP_ADDR="0.0.0.0:8080")
    assert "set HTTP_TOKEN" in done.stderr
    done = run_program("--public", "--check-config", HTTP_ADDR="0.0.0.0:8080", HTTP_TOKEN="t")
    assert done.stderr == ""


# Behind a proxy


def proxies():
    """How the docs have a proxy before the service: by its program, the lines that stand there."""
    text = (PROGRAM.parent / "docs" / "operating.md").read_text()
    return {name: re.findall(rf"```{name}\n(.*?)```", text, re.S)[0] for name in ("nginx", "caddy")}


@contextmanager
def proxied(name, text, folder, port):
    """A real proxy with that configuration before what listens on the port; its own port."""
    if not (program := shutil.which(name)):
        pytest.skip(f"{name} is not installed")
    front = unused_port()
    text = text.replace("8080", str(port)).replace("candles.example", f"http://:{front}")
    command = [program, "run", "--adapter=caddyfile", "--config", str(folder / "proxy.conf")]
    if name == "nginx":
        text = f"""daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}
            http {{ access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;
            fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
            server {{ listen 127.0.0.1:{front}; {text} }} }}"""
        command = [program, "-e", str(folder / "error.log"), "-c", str(folder / "proxy.conf")]
    else:
        text = f"{{\nadmin off\n}}\n{text}"
    (folder / "proxy.conf").write_text(text)
    environment = os.environ | {"HOME": str(folder)}
    with (folder / "proxy.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        eventually(lambda: process.poll() is not None or status_of(front, "/"))
        assert process.poll() is None, (folder / "proxy.log").read_text()
        yield front
    finally:
        process.terminate()
        process.wait(20)


def status_of(port, path, **headers):
    """The status of an answer on that port, as a browser asks that knows the machine by another name."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": "candles.example"} | headers)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_a_proxy_that_sends_localhost_needs_no_token(exchange, redis_url, tmp_path, name):
    """As the docs have it; one that passes the browser's own Host is refused."""
    port, text = unused_port(), proxies()[name]
    with started(exchange, redis_url, HTTP_ADDR=f"127.0.0.1:{port}") as rig:
        rig.refresh()
        with proxied(name, text, tmp_path, port) as front:
            assert status_of(front, "/api/status") == status_of(front, "/health/live") == 200
            follower = Follower(front)
            eventually(lambda: follower.heard("status"), 3)  # none of it waits in the proxy
            follower.socket.shutdown(socket.SHUT_RDWR)
            follower.thread.join(10)
        theirs = {"nginx": "$host", "caddy": "{host}"}[name]
        with proxied(name, text.replace("localhost", theirs), tmp_path, port) as front:
            assert status_of(front, "/health/live") == 403


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_a_proxy_may_pass_any_name_where_there_is_a_token(exchange, redis_url, tmp_path, name):
    """To the page, /api and the probes."""
    port = unused_port()
    theirs = proxies()[name].replace("localhost", {"nginx": "$host", "caddy": "{host}"}[name])
    with started(exchange, redis_url, HTTP_ADDR=f"127.0.0.1:{port}", HTTP_TOKEN="t") as rig:
        rig.refresh()
        with proxied(name, theirs, tmp_path, port) as front:
            assert status_of(front, "/api/status", Authorization="Bearer t") == 200
            assert (status_of(front, "/health/live"), status_of(front, "/api/status")) == (200, 401)


# With a socket


@pytest.fixture
def served(exchange, redis_url):
    """A service that serves HTTP, after its first cycle."""
    address = f"127.0.0.1:{unused_port()}"
    with started(exchange, redis_url, HTTP_ADDR=address, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        yield rig


def port_of(rig):
    """Where it listens."""
    return rig.config.http_addr[1]


def get(rig, path):
    """The body of an answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port_of(rig)}{path}", timeout=10) as reply:
        return reply.read()


def test_candles_over_http(served, exchange):
    """As the exchange has them."""
    rows = json.loads(get(served, "/api/candles?symbol=BTC%2FUSDT&timeframe=15m"))
    first_ms = parse_iso_time(rows[0][0])
    expected = expected_candles(exchange, "BTCUSDT", "15m", first_ms)
    assert {at: dict(zip(OHLCV, values, strict=True)) for at, *values in rows} == expected
    assert all(str(Decimal(text)) for _, *values in rows for text in values)


def test_a_request_that_is_none_does_no_harm(served):
    """Nonsense, a line without an end, an absolute address, a path without a slash."""
    for words in (
        b"\0\1\2\r\n\r\n",
        b"GET " + b"x" * 70_000,
        b"GET http://a/b HTTP/1.1\r\n\r\n",
        b"GET x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port_of(served)), timeout=10) as client:
            client.sendall(words)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    assert json.loads(get(served, "/api/status"))["state"] == "running"


class Follower:
    """A client of /events; what it heard is in ``events``."""

    def __init__(self, port, query=""):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self.connection.request("GET", f"/events{query}")
        self.socket = self.connection.sock
        self.reply = self.connection.getresponse()
        self.events = []
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self):
        name = ""
        with closing(self.connection), closing(self.reply), suppress(ConnectionResetError):
            for line in self.reply:
                field, _, text = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = text
                elif field == "data":
                    self.events.append((name, json.loads(text)))

    def heard(self, name):
        """What it heard under that name."""
        return [found for kind, found in self.events if kind == name]


def test_events_tell_of_each_write(served, exchange):
    """The status at once; then the rows that changed, and only those."""
    follower = Follower(port_of(served))
    assert follower.reply.getheader("Content-Type") == "text/event-stream"
    eventually(lambda: follower.heard("status"))
    assert follower.heard("rows") == []
    exchange.clock.advance(MINUTE)
    served.binance.sync_clock()
    served.service.updates.update(served.feeds[1])
    (row,) = eventually(lambda: follower.heard("rows"))[0]
    newest = exchange.klines("ETHUSDT", "15m", limit=1)[0]
    assert (row["symbol"], float(row["price"])) == ("ETH/USDT", float(newest[4]))


def has_heard(follower, count):
    """Whether it heard of so many closes."""
    return len(follower.heard("candles")) == count


def test_events_tell_closed_candles_to_who_asks(served, exchange):
    """Those that closed since, of the pairs that are named; nobody else hears of them."""
    port = port_of(served)
    both = Follower(port, "?candles=BTC/USDT:15m,eth-usdt:15m")
    one = Follower(port, "?candles=ETHUSDT:15m")
    other = Follower(port)
    for follower in (both, one, other):
        eventually(partial(follower.heard, "status"))
    exchange.clock.advance(MINUTE)  # nothing closes
    served.refresh()
    for closes in (1, 2):
        exchange.clock.advance(15 * MINUTE * closes)
        served.refresh()
        eventually(partial(has_heard, both, 2 * closes))
        heard = both.heard("candles")
        for said in heard[-2:]:
            query = f"symbol={said['symbol']}&timeframe=15m&closed=true&limit={closes}"
            assert said["timeframe"] == "15m"
            assert said["candles"] == json.loads(get(served, f"/api/candles?{query}"))
        assert {said["symbol"] for said in heard[-2:]} == {"BTC/USDT", "ETH/USDT"}
    eventually(partial(has_heard, one, 2))
    assert {said["symbol"] for said in one.heard("candles")} == {"ETH/USDT"}
    assert other.heard("candles") == []
    for query, status in (("BTC/USDT", 400), ("BTC/USDT:7m", 400), (":15m", 400), ("XXX/USDT:15m", 404)):
        assert status_of(port, f"/events?candles={query}", Host="localhost") == status, query


def test_events_tell_at_once_of_what_is_urgent(served):
    """A pause is in the status that follows within moments, not only in the next one due."""
    follower = Follower(port_of(served))
    eventually(lambda: follower.heard("status"))
    served.service.progress.state = "running"
    served.binance.gate.pause(100, "a test of pauses")
    found = eventually(lambda: [s for s in follower.heard("status") if s["pause_reason"]], 4)
    assert found[0]["state"] == "paused"


def test_no_answer_waits_for_an_acknowledgement():
    """Else a second piece of an answer comes 40 ms later: asyncio turns that off for sockets that say TCP."""
    with server.listen(("127.0.0.1", 0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_events_end_when_the_service_does(exchange, redis_url):
    """Followers are let go, and the threads end."""
    port = unused_port()
    with started(exchange, redis_url, HTTP_ADDR=f"127.0.0.1:{port}") as rig:
        rig.refresh()
        follower = Follower(port)
        eventually(lambda: follower.heard("status"))
    follower.thread.join(10)
    assert not follower.thread.is_alive()


def test_followers_do_not_take_the_room_of_others(exchange, redis_url, monkeypatch):
    """More of them than clients are allowed, and /health still answers; too many are refused."""
    monkeypatch.setattr(server, "THREADS", 2)
    monkeypatch.setattr(news, "MAX_FOLLOWERS", 5)
    port = unused_port()
    with started(exchange, redis_url, HTTP_ADDR=f"127.0.0.1:{port}") as rig:
        rig.refresh()
        followers = [Follower(port) for _ in range(5)]
        eventually(lambda: all(follower.heard("status") for follower in followers))
        assert json.loads(get(rig, "/health"))["ready"] is True
        assert Follower(port).reply.status == 503
        followers[0].socket.shutdown(socket.SHUT_RDWR)
        followers[0].thread.join(10)
        eventually(lambda: Follower(port).reply.status == 200)


def test_few_file_descriptors_are_shared(exchange, redis_url, monkeypatch):
    """Followers have half of the clients' share at most, so that a probe finds one."""
    monkeypatch.setattr(bounds, "most_connections", lambda: 6)
    port = unused_port()
    with started(exchange, redis_url, HTTP_ADDR=f"127.0.0.1:{port}") as rig:
        rig.refresh()
        assert [Follower(port).reply.status for _ in range(12)] == [200] * 3 + [503] * 9
        assert json.loads(get(rig, "/health"))["ready"] is True


def test_a_follower_outlives_the_time_of_a_request(exchange, redis_url, monkeypatch):
    """Others are cut off when their time is up."""
    monkeypatch.setattr(bounds, "CLIENT_SECONDS", 0.5)
    monkeypatch.setattr(bounds, "SEND_SECONDS", 0.5)
    monkeypatch.setattr("tet_extras.web.news.STATUS_SECONDS", 0.2)
    port = unused_port()
    with started(exchange, redis_url, HTTP_ADDR=f"127.0.0.1:{port}") as rig:
        rig.refresh()
        follower = Follower(port)
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
            assert silent.recv(1) == b""
        eventually(lambda: time.monotonic() - began > 1.5 and len(follower.heard("status")) > 2)


def test_a_slow_reader_is_let_go(exchange, redis_url, monkeypatch):
    """One that asks for much and takes nothing does not hold its thread for ever."""
    monkeypatch.setattr(bounds, "SEND_SECONDS", 0.5)
    exchange.market = Market.random_walk(["BTC/USDT"])
    port = unused_port()
    with started(exchange, redis_url, HTTP_ADDR=f"127.0.0.1:{port}", DATA_DAYS=30, TIMEFRAME="1m") as rig:
        rig.refresh()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            target = b"/api/candles?symbol=BTCUSDT&limit=1000000"
            client.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            began = time.monotonic()
            eventually(lambda: connections_of(port) == 1, 5)
            eventually(lambda: connections_of(port) == 0, 5)
            assert time.monotonic() - began > 0.3


def connections_of(port):
    """How many connections to that port of ours are open on the service's side."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(each[1].endswith(f":{port:04X}") and each[3] == "01" for each in lines)
