"""The simulated exchange keeps its promises; asked over real HTTP, with its clock in our hand."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from decimal import Decimal

import httpx
import pytest

from tet_extras import simulated_binance
from tet_extras.simulated_binance import (
    ALL_FAULTS,
    FAULTS,
    INTERVALS,
    Listing,
    Market,
    SimulatedBinance,
    SimulatedClock,
)

NOON_MS = 1_767_268_800_000  # Thursday, 2026-01-01 12:00 UTC
MINUTE_MS = 60_000
QUARTER_MS = 15 * MINUTE_MS
DAY_MS = 86_400_000
KLINES = "/api/v3/klines"
BTC_15M = {"symbol": "BTCUSDT", "interval": "15m"}


@pytest.fixture
def exchange():
    """A running exchange whose time stands still five minutes into a 15m candle."""
    clock = SimulatedClock(NOON_MS + 5 * MINUTE_MS)
    clock.freeze()
    with SimulatedBinance(clock=clock) as running:
        yield running


@pytest.fixture
def client(exchange):
    """A client of the running exchange."""
    # Without verify=False each client would load the system's certificates first.
    with httpx.Client(base_url=exchange.url, verify=False, trust_env=False) as connected:
        yield connected


def klines(client, path=KLINES, **params):
    """The klines of a good reply, BTCUSDT 15m unless asked otherwise."""
    reply = client.get(path, params=BTC_15M | params)
    assert reply.status_code == 200, reply.text
    return reply.json()


def refusal(reply):
    """Status and code of a refusal."""
    return reply.status_code, reply.json()["code"]


def open_times(rows):
    """What names the klines."""
    return [row[0] for row in rows]


# ----------------------------------------------------------------------------------------------
# The exchange's time
# ----------------------------------------------------------------------------------------------


def test_a_frozen_clock_moves_only_by_hand():
    """advance() and set() move a frozen clock, and nothing else does."""
    clock = SimulatedClock(NOON_MS)
    clock.freeze()
    clock.set(NOON_MS)
    clock.advance(1.5)
    assert clock.now_ms() == NOON_MS + 1500
    clock.set(NOON_MS)
    assert clock.now_ms() == NOON_MS


def test_a_running_clock_keeps_its_speed():
    """At a high speed a moment of ours is long for the exchange."""
    clock = SimulatedClock(NOON_MS, speed=1e9)
    first = clock.now_ms()
    assert clock.now_ms() > first >= NOON_MS
    clock.freeze()
    stopped = clock.now_ms()
    assert clock.now_ms() == stopped
    clock.resume()
    assert clock.now_ms() >= stopped


def test_the_clock_starts_at_the_real_time():
    """Without a start it is now."""
    assert abs(SimulatedClock().now_ms() - time.time() * 1000) < 5000


# ----------------------------------------------------------------------------------------------
# Intervals and the invented market
# ----------------------------------------------------------------------------------------------


def test_weeks_open_on_monday_and_months_on_the_first(exchange, client):
    """Neither has the grid of the epoch."""
    week, month = klines(client, interval="1w")[-1], klines(client, interval="1M")[-1]
    assert week[0] == 1_766_966_400_000  # Monday, 2025-12-29
    assert month[0] == 1_767_225_600_000  # 2026-01-01
    assert month[6] == 1_769_904_000_000 - 1  # 2026-02-01


@pytest.mark.parametrize("interval", INTERVALS)
def test_candles_follow_each_other_without_gaps(exchange, interval):
    """In every interval a candle begins where the one before it ends."""
    rows = exchange.klines("BTCUSDT", interval, limit=300)
    assert len(rows) == 300
    assert all(row[6] + 1 == later[0] for row, later in itertools.pairwise(rows))
    assert rows[-1][0] <= exchange.clock.now_ms() <= rows[-1][6]


@pytest.mark.parametrize("symbol", Market.random_walk().symbols)
def test_invented_candles_are_sound(exchange, symbol):
    """Twelve fields as Binance sends them, prices that fit together, volume above zero."""
    for row in exchange.klines(symbol, "15m", limit=100):
        first, high, low, last, volume = (Decimal(text) for text in row[1:6])
        assert 0 < low <= min(first, last) <= max(first, last) <= high
        assert volume > 0
        assert [type(value) for value in row] == [int, *[str] * 5, int, str, int, *[str] * 3]
        assert all(len(text.partition(".")[2]) == 8 for text in [*row[1:6], row[7], *row[9:11]])


def test_each_candle_opens_where_the_last_one_closed(exchange):
    """The price is one path, whatever the interval."""
    rows = exchange.klines("ETHUSDT", "15m", limit=50)
    assert all(row[4] == later[1] for row, later in itertools.pairwise(rows))
    minutes = exchange.klines("ETHUSDT", "1m", start_ms=rows[0][0], limit=1)
    assert minutes[0][1] == rows[0][1]


def test_the_same_time_gives_the_same_candles_in_any_process(exchange):
    """Candles depend on symbol and time only, not on the process that works them out."""
    program = (
        "import json, simulated_binance as s;"
        f"clock = s.SimulatedClock({exchange.clock.now_ms()}); clock.freeze();"
        "print(json.dumps(s.SimulatedBinance(clock=clock).klines('SOLUSDT', '1h')))"
    )
    folder = simulated_binance.__file__.rpartition("/")[0]
    other = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True)
    assert json.loads(other.stdout) == exchange.klines("SOLUSDT", "1h")


def test_closed_candles_stay_as_time_goes_on(exchange):
    """A day later the closed candles of today are the same."""
    closed = exchange.klines("BTCUSDT", "15m", limit=100)[:-1]
    exchange.clock.advance(86_400)
    assert exchange.klines("BTCUSDT", "15m", start_ms=closed[0][0], limit=99) == closed


def test_prices_are_of_many_sizes():
    """BTC is near 100000, others far below 1, and none is zero."""
    simulated = SimulatedBinance(clock=SimulatedClock(NOON_MS))
    prices = [Decimal(simulated.klines(name, "1d")[-1][4]) for name in simulated.market.symbols]
    assert 80_000 < prices[0] < 125_000
    assert 0 < min(prices) < Decimal("0.1")


def test_the_forming_candle_grows_into_the_closed_one(exchange, client):
    """Its volume never shrinks, and in its last millisecond it is what stays."""
    exchange.clock.set(NOON_MS)
    volumes = []
    for _ in range(90):
        volumes.append(Decimal(klines(client, limit=1)[0][5]))
        exchange.clock.advance(10)
    assert volumes == sorted(volumes)
    assert volumes[0] > 0
    exchange.clock.set(NOON_MS + QUARTER_MS - 1)
    last_moment = klines(client, limit=1)[0]
    exchange.clock.advance(0.001)
    closed, forming = klines(client, limit=2)
    assert closed == last_moment
    assert forming[0] == NOON_MS + QUARTER_MS


# ----------------------------------------------------------------------------------------------
# Listings
# ----------------------------------------------------------------------------------------------


def test_a_symbol_has_candles_from_its_listing_to_its_delisting(exchange, client):
    """None opens before the listing, nor at or after the delisting."""
    listing = exchange.market.symbols["BTCUSDT"]
    listing.listed_ms = NOON_MS - 8 * QUARTER_MS
    listing.delisted_ms = NOON_MS - 4 * QUARTER_MS
    times = [NOON_MS - back * QUARTER_MS for back in (8, 7, 6, 5)]
    assert open_times(klines(client)) == times
    assert open_times(klines(client, startTime=0)) == times


def test_a_halt_is_a_gap(exchange, client):
    """Candles of a halt are missing, and the newest `limit` ones reach further back."""
    halt = (NOON_MS - 2 * QUARTER_MS, NOON_MS)
    exchange.market.symbols["BTCUSDT"].halts.append(halt)
    wanted = [NOON_MS - back * QUARTER_MS for back in (4, 3, 0)]
    assert open_times(klines(client, limit=3)) == wanted
    assert open_times(klines(client, startTime=wanted[0], limit=3)) == wanted


def test_a_candle_can_be_corrected_afterwards(exchange, client):
    """An override replaces the five values of one candle of one interval."""
    values = ["1.5", "2", "1", "1.75", "10"]
    open_ms = NOON_MS - QUARTER_MS
    exchange.market.symbols["BTCUSDT"].overrides["15m", open_ms] = values
    row = klines(client, startTime=open_ms, limit=1)[0]
    assert row[1:6] == ["1.50000000", "2.00000000", "1.00000000", "1.75000000", "10.00000000"]
    assert klines(client, interval="30m", limit=1)[0][1] != "1.50000000"


def test_a_symbol_can_be_listed_while_the_exchange_runs(exchange, client):
    """A new listing has candles at once."""
    exchange.market.symbols["NEWEUR"] = Listing("NEW", "EUR", listed_ms=NOON_MS)
    assert len(klines(client, symbol="NEWEUR")) == 1


# ----------------------------------------------------------------------------------------------
# Recorded candles
# ----------------------------------------------------------------------------------------------

# Four hours of two symbols in whole quarters; the seventh candle of ENA is missing.
RECORDED = [
    (symbol, number, f"{base + number}", f"{base + number + 2}.5", f"{base + number - 1}.25")
    for symbol, base in (("BTCUSDT", 100), ("ENAFDUSD", 500))
    for number in range(16)
    if (symbol, number) != ("ENAFDUSD", 6)
]


@pytest.fixture
def recorded(tmp_path):
    """A frozen exchange that serves the recorded candles, five minutes into the newest one."""
    lines = ["symbol,open_time,open,high,low,close,volume"]
    for symbol, number, first, high, low in RECORDED:
        open_ms = 1_600_000_200_000 + number * QUARTER_MS
        lines.append(f"{symbol},{open_ms},{first},{high},{low},{first}.75,{number + 1}.1")
    file = tmp_path / "candles.csv.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    clock = SimulatedClock(NOON_MS + 5 * MINUTE_MS)
    clock.freeze()
    with SimulatedBinance(market=Market.from_csv(file, clock.now_ms()), clock=clock) as running:
        yield running


def test_a_recording_is_moved_to_now(recorded):
    """Its newest candle is forming, nothing comes before its first, and values are the file's."""
    rows = recorded.klines("BTCUSDT", "15m", start_ms=0)
    assert open_times(rows) == [NOON_MS - back * QUARTER_MS for back in range(15, -1, -1)]
    assert rows[0][1:6] == [
        "100.00000000",
        "102.50000000",
        "99.25000000",
        "100.75000000",
        "1.10000000",
    ]
    assert recorded.market.symbols["ENAFDUSD"].base == "ENA"


def test_a_gap_of_the_recording_stays(recorded):
    """The missing candle is missing."""
    rows = recorded.klines("ENAFDUSD", "15m")
    assert len(rows) == 15
    assert NOON_MS - 9 * QUARTER_MS not in open_times(rows)


def test_a_recording_repeats_after_its_newest_candle(recorded):
    """A candle after the last comes the first one again."""
    first = recorded.klines("BTCUSDT", "15m", start_ms=0)[0]
    recorded.clock.set(NOON_MS + 2 * QUARTER_MS)
    again = recorded.klines("BTCUSDT", "15m", limit=2)[0]
    assert again[0] == NOON_MS + QUARTER_MS
    assert again[1:6] == first[1:6]


def test_the_recorded_forming_candle_grows_to_the_files_values(recorded):
    """Volume, high and low only widen, every state is sound, the end is the file's candle."""
    recorded.clock.set(NOON_MS)
    states = []
    for _ in range(90):
        states.append([Decimal(v) for v in recorded.klines("BTCUSDT", "15m", limit=1)[0][1:6]])
        recorded.clock.advance(10)
    for before, after in itertools.pairwise(states):
        assert after[1] >= before[1]
        assert after[2] <= before[2]
        assert after[4] >= before[4]
    assert all(low <= min(o, c) <= max(o, c) <= high for o, high, low, c, _ in states)
    closed = recorded.klines("BTCUSDT", "15m", limit=2)[0]
    assert closed[1:6] == [
        "115.00000000",
        "117.50000000",
        "114.25000000",
        "115.75000000",
        "16.10000000",
    ]


def test_larger_intervals_are_put_together_exactly(recorded):
    """An hour is its four quarters: first open, highest, lowest, last close, sum of volumes."""
    hour = recorded.klines("BTCUSDT", "1h", start_ms=NOON_MS - 4 * QUARTER_MS, limit=1)[0]
    quarters = recorded.klines("BTCUSDT", "15m", start_ms=hour[0], limit=4)
    assert (hour[0], hour[6]) == (quarters[0][0], quarters[-1][6])
    assert (hour[1], hour[4]) == (quarters[0][1], quarters[-1][4])
    assert hour[2] == max((row[2] for row in quarters), key=Decimal)
    assert hour[3] == min((row[3] for row in quarters), key=Decimal)
    assert Decimal(hour[5]) == sum(Decimal(row[5]) for row in quarters)


def test_smaller_intervals_than_recorded_are_refused(recorded):
    """There is nothing to make them of."""
    reply = httpx.get(recorded.url + KLINES, params=BTC_15M | {"interval": "5m"}, trust_env=False)
    assert refusal(reply) == (400, -1120)


def test_a_file_without_a_step_is_refused(tmp_path):
    """One candle says nothing of the interval."""
    file = tmp_path / "one.csv"
    file.write_text("symbol,open_time,open,high,low,close,volume\nBTCUSDT,0,1,1,1,1,1\n")
    with pytest.raises(ValueError, match="step"):
        Market.from_csv(file, NOON_MS)


# ----------------------------------------------------------------------------------------------
# Endpoints
# ----------------------------------------------------------------------------------------------


def test_ping_and_time_answer(exchange, client):
    """Both markets answer, with the exchange's time."""
    assert client.get("/api/v3/ping").json() == {}
    assert client.get("/fapi/v1/time").json() == {"serverTime": exchange.clock.now_ms()}
    assert client.get("/api/v3/ping").headers["date"] == "Thu, 01 Jan 2026 12:05:00 GMT"


def test_an_unknown_path_is_a_page_of_html(client):
    """A wrong address is not answered in JSON."""
    reply = client.get("/api/v3/nonsense")
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "text/html"


def test_exchange_info_tells_symbols_and_limits(exchange, client):
    """Status, assets and the budget in force can be read from it."""
    exchange.market.symbols["FTMUSDT"].status = "BREAK"
    facts = client.get("/api/v3/exchangeInfo").json()
    assert facts["rateLimits"][0]["rateLimitType"] == "REQUEST_WEIGHT"
    assert facts["rateLimits"][0]["limit"] == 6000
    symbols = {symbol["symbol"]: symbol for symbol in facts["symbols"]}
    assert len(symbols) == 25
    assert symbols["FTMUSDT"]["status"] == "BREAK"
    assert (symbols["BTCUSDT"]["baseAsset"], symbols["BTCUSDT"]["quoteAsset"]) == ("BTC", "USDT")


def test_exchange_info_can_be_narrowed_but_not_to_unknown_names(client):
    """One unknown name fails the whole call."""
    names = {"symbols": '["BTCUSDT","ETHUSDT"]', "showPermissionSets": "false"}
    facts = client.get("/api/v3/exchangeInfo", params=names).json()
    assert [symbol["symbol"] for symbol in facts["symbols"]] == ["BTCUSDT", "ETHUSDT"]
    for params in ({"symbols": '["BTCUSDT","NOUSDT"]'}, {"symbol": "NOUSDT"}):
        assert refusal(client.get("/api/v3/exchangeInfo", params=params)) == (400, -1121)


def test_klines_give_the_oldest_from_a_start_and_the_newest_without(client):
    """A start makes them run forwards; an end alone, backwards from it."""
    start_ms = NOON_MS - 100 * QUARTER_MS
    forwards = klines(client, startTime=start_ms, limit=3)
    assert open_times(forwards) == [start_ms + number * QUARTER_MS for number in range(3)]
    assert open_times(klines(client, limit=2)) == [NOON_MS - QUARTER_MS, NOON_MS]
    backwards = klines(client, endTime=start_ms, limit=2)
    assert open_times(backwards) == [start_ms - QUARTER_MS, start_ms]


def test_both_ends_are_inclusive_and_mean_open_times(client):
    """A candle that opens at an end belongs to it; one millisecond further it does not."""
    ends = {"startTime": NOON_MS - 2 * QUARTER_MS, "endTime": NOON_MS - QUARTER_MS}
    assert open_times(klines(client, **ends)) == list(ends.values())
    inside = {"startTime": ends["startTime"] + 1, "endTime": ends["endTime"] - 1}
    assert klines(client, **inside) == []
    assert klines(client, startTime=NOON_MS + DAY_MS) == []


def test_klines_limits(client):
    """500 unless asked, at most 1000, 1500 for futures."""
    assert len(klines(client)) == 500
    assert len(klines(client, limit=5000)) == 1000
    assert len(klines(client, "/fapi/v1/klines", limit=5000)) == 1500


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"symbol": ""}, -1102),
        ({"interval": ""}, -1102),
        ({"interval": "15M"}, -1120),
        ({"symbol": "NOUSDT"}, -1121),
        ({"limit": "0"}, -1100),
        ({"limit": "many"}, -1100),
        ({"startTime": "-1"}, -1100),
    ],
)
def test_bad_klines_parameters_are_refused(client, change, code):
    """Each mistake has Binance's code."""
    assert refusal(client.get(KLINES, params=BTC_15M | change)) == (400, code)


def test_futures_have_no_seconds(client):
    """1s is an interval of the spot market only."""
    seconds = BTC_15M | {"interval": "1s"}
    assert refusal(client.get("/fapi/v1/klines", params=seconds)) == (400, -1120)
    assert client.get(KLINES, params=seconds).status_code == 200


def test_the_oracle_says_what_the_endpoint_answers(exchange, client):
    """klines() in process and over HTTP are the same."""
    start_ms = NOON_MS - 700 * QUARTER_MS
    assert exchange.klines("BTCUSDT", "15m", start_ms, limit=9999) == klines(
        client, startTime=start_ms, limit=9999
    )


def test_answers_are_stale_for_a_while_after_a_close(exchange, client):
    """The old, unfinished candle is the newest until the lag is over; the oracle knows better."""
    exchange.close_lag_seconds = 3
    exchange.clock.set(NOON_MS - 1500)
    unfinished = klines(client, limit=1)
    exchange.clock.set(NOON_MS + 2999)
    assert klines(client, limit=1) == unfinished
    assert exchange.klines("BTCUSDT", "15m", limit=1)[0][0] == NOON_MS
    exchange.clock.set(NOON_MS + 3000)
    finished, forming = klines(client, limit=2)
    assert forming[0] == NOON_MS
    assert finished[:2] == unfinished[0][:2]
    assert finished != unfinished[0]


# ----------------------------------------------------------------------------------------------
# The signed endpoint
# ----------------------------------------------------------------------------------------------


def restrictions(client, timestamp_ms, *, secret="sim-secret", key="sim-key", extra=""):
    """Ask what a key may do, signed as Binance wants it."""
    query = f"timestamp={timestamp_ms}{extra}"
    signature = hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()
    return client.get(
        f"/sapi/v1/account/apiRestrictions?{query}&signature={signature}",
        headers={"X-MBX-APIKEY": key},
    )


def test_a_good_signature_is_told_what_the_key_may_do(exchange, client):
    """Reading only, unless a test gives it more."""
    reply = restrictions(client, exchange.clock.now_ms()).json()
    assert [name for name, allowed in reply.items() if allowed is True] == ["enableReading"]
    exchange.permissions["enableWithdrawals"] = True
    assert restrictions(client, exchange.clock.now_ms()).json()["enableWithdrawals"] is True


def test_a_wrong_key_or_signature_is_refused(exchange, client):
    """Each with its own code."""
    now_ms = exchange.clock.now_ms()
    assert refusal(restrictions(client, now_ms, key="other")) == (401, -2015)
    assert refusal(restrictions(client, now_ms, secret="other")) == (400, -1022)
    assert refusal(restrictions(client, "")) == (400, -1102)


@pytest.mark.parametrize(
    ("offset_ms", "extra", "status"),
    [
        (999, "", 200),
        (1000, "", 400),
        (-5000, "", 200),
        (-5001, "", 400),
        (-5001, "&recvWindow=6000", 200),
        (-101, "&recvWindow=100", 400),
    ],
)
def test_the_timestamp_must_be_fresh(exchange, client, offset_ms, extra, status):
    """Less than a second ahead, and not older than recvWindow."""
    reply = restrictions(client, exchange.clock.now_ms() + offset_ms, extra=extra)
    assert reply.status_code == status
    assert status == 200 or reply.json()["code"] == -1021


# ----------------------------------------------------------------------------------------------
# Weight, 429 and 418
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "weight"),
    [
        ("/api/v3/ping", 1),
        ("/api/v3/ticker/24hr?type=MINI", 80),
        ("/api/v3/ticker/24hr?symbol=BTCUSDT", 2),
        ("/fapi/v1/ticker/24hr", 40),
        ("/fapi/v1/ticker/24hr?symbol=BTCUSDT", 1),
        ("/api/v3/time", 1),
        ("/api/v3/exchangeInfo", 20),
        ("/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=1000", 2),
        ("/api/v3/klines?symbol=NOUSDT&interval=1m", 2),
        ("/fapi/v1/exchangeInfo", 1),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=99", 1),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=499", 2),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1m", 5),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=1001", 10),
    ],
)
def test_each_request_has_its_weight(exchange, client, path, weight):
    """The header, the log and the exchange agree on it, also for an error."""
    assert client.get(path).headers["x-mbx-used-weight-1m"] == str(weight)
    assert exchange.used_weight == exchange.requests[-1].weight == weight


def test_the_counter_falls_to_zero_with_the_minute(exchange, client):
    """It counts wall-clock minutes of exchange time, and what others use."""
    client.get("/api/v3/exchangeInfo")
    exchange.extra_weight = 100
    assert client.get("/api/v3/ping").headers["x-mbx-used-weight-1m"] == "121"
    exchange.clock.advance(60)
    exchange.extra_weight = lambda: 7
    assert client.get("/api/v3/ping").headers["x-mbx-used-weight-1m"] == "8"


def test_over_the_limit_is_429_until_the_minute_turns(exchange, client):
    """Retry-After says when, and a refused request uses nothing."""
    exchange.weight_limit = 3
    klines(client)
    exchange.clock.advance(12.5)
    reply = client.get(KLINES, params=BTC_15M)
    assert refusal(reply) == (429, -1003)
    assert "current limit is 3 request weight per 1 MINUTE" in reply.json()["msg"]
    assert reply.headers["retry-after"] == "48"
    assert reply.headers["x-mbx-used-weight-1m"] == "2"
    assert exchange.refused_429 == 1
    exchange.clock.advance(47.5)
    assert klines(client)


def test_futures_have_their_own_budget(exchange, client):
    """2400 unless the test gives a limit."""
    exchange.extra_weight = 2400
    assert client.get("/api/v3/ping").status_code == 200
    assert client.get("/fapi/v1/ping").status_code == 429
    exchange.weight_limit = 3000
    assert client.get("/fapi/v1/ping").status_code == 200


def test_asking_on_after_429_is_a_ban_and_each_ban_is_longer(exchange, client):
    """Ten more refusals are forgiven; then 120 s, then 240 s."""
    exchange.weight_limit = 0
    for seconds in (120, 240):
        statuses = [client.get("/api/v3/ping").status_code for _ in range(11)]
        assert statuses == [429] * 11
        banned = client.get("/api/v3/ping")
        assert refusal(banned) == (418, -1003)
        assert banned.headers["retry-after"] == str(seconds)
        until_ms = exchange.clock.now_ms() + seconds * 1000
        assert f"IP banned until {until_ms}." in banned.json()["msg"]
        exchange.clock.advance(seconds)
    assert exchange.refused_418 == 2


def test_a_ban_refuses_everything_until_it_is_over(exchange, client):
    """Whatever is asked, also with budget left."""
    exchange.ban(30)
    assert client.get("/api/v3/ping").status_code == 418
    assert client.get("/api/v3/nonsense").status_code == 418
    exchange.clock.advance(29.999)
    assert client.get("/api/v3/ping").headers["retry-after"] == "1"
    exchange.clock.advance(0.001)
    assert client.get("/api/v3/ping").status_code == 200


# ----------------------------------------------------------------------------------------------
# Faults
# ----------------------------------------------------------------------------------------------


def spoilt(exchange, client, kind, **params):
    """The reply to a klines request of seven candles with this fault."""
    exchange.faults.add(kind)
    asked = BTC_15M | {"startTime": NOON_MS - 6 * QUARTER_MS} | params
    reply = client.get(KLINES, params=asked)
    assert exchange.requests[-1].fault == kind
    return reply


def is_sound(rows, start_ms=NOON_MS - 6 * QUARTER_MS):
    """What a careful client checks before it believes klines."""
    times = open_times(rows)
    values = [[Decimal(text) for text in row[1:6]] for row in rows if len(row) == 12]
    return (
        len(values) == len(rows) > 0
        and times == sorted(set(times))
        and all(time_ms >= start_ms and time_ms % QUARTER_MS == 0 for time_ms in times)
        and all(0 < low <= min(o, c) <= max(o, c) <= high for o, high, low, c, _ in values)
    )


@pytest.mark.parametrize(
    ("kind", "status", "content", "text"),
    [
        ("500", 500, "json", "-1000"),
        ("503_html", 503, "html", "<html>"),
        ("504_empty", 504, "json", ""),
        ("html_200", 200, "html", "<html>"),
        ("429", 429, "json", "-1003"),
        ("418", 418, "json", "banned until"),
        ("403_html", 403, "html", "<html>"),
        ("451", 451, "json", "restricted location"),
        ("object", 200, "json", "{"),
        ("empty_list", 200, "json", "[]"),
    ],
)
def test_faults_that_replace_the_reply(exchange, client, kind, status, content, text):
    """Status, kind of body and weight are those of the trouble they play."""
    reply = spoilt(exchange, client, kind)
    assert reply.status_code == status
    assert content in reply.headers["content-type"]
    assert text in reply.text
    assert bool(reply.text) == bool(text)
    assert exchange.used_weight == 2


def test_retry_after_of_the_faults_can_be_chosen(exchange, client):
    """By default the rest of the minute and the first ban; else what the test needs."""
    assert spoilt(exchange, client, "429").headers["retry-after"] == "60"
    assert spoilt(exchange, client, "418").headers["retry-after"] == "120"
    exchange.faults.retry_after_seconds = 2
    assert spoilt(exchange, client, "429").headers["retry-after"] == "2"
    assert spoilt(exchange, client, "418").headers["retry-after"] == "2"
    assert klines(client)  # a fault bans nobody


@pytest.mark.parametrize(
    ("kind", "shows"),
    [
        ("missing_fields", lambda rows: any(len(row) == 6 for row in rows)),
        ("nulls", lambda rows: any(row[1] is None for row in rows)),
        ("nan", lambda rows: any(row[4] == "NaN" for row in rows)),
        ("negative", lambda rows: any(row[3].startswith("-") for row in rows)),
        ("high_below_low", lambda rows: any(Decimal(row[2]) < Decimal(row[3]) for row in rows)),
        ("unsorted", lambda rows: open_times(rows) != sorted(open_times(rows))),
        ("duplicates", lambda rows: len(rows) == 8 and len(set(open_times(rows))) == 7),
        ("off_grid", lambda rows: any(row[0] % QUARTER_MS for row in rows)),
        ("outside", lambda rows: rows[0][0] == NOON_MS - 7 * QUARTER_MS),
    ],
)
def test_faults_that_damage_a_row(exchange, client, kind, shows):
    """One row is spoilt as the name says; what is left of the true reply is true."""
    rows = spoilt(exchange, client, kind).json()
    assert shows(rows)
    true_rows = exchange.klines("BTCUSDT", "15m", NOON_MS - 6 * QUARTER_MS)
    assert is_sound(true_rows)
    assert sum(row in rows for row in true_rows) >= 6


@pytest.mark.parametrize("kind", ["unsorted", "outside"])
def test_too_few_rows_to_damage_give_an_object(exchange, client, kind):
    """One row has no order, and nothing is outside where no start was asked for."""
    exchange.faults.add(kind)
    reply = client.get(KLINES, params=BTC_15M | {"limit": 1})
    assert isinstance(reply.json(), dict)


def test_a_reset_breaks_the_connection(exchange, client):
    """The client sees RST, not an orderly end."""
    with pytest.raises(httpx.ReadError, match=r"(?i)reset"):
        spoilt(exchange, client, "reset")
    assert exchange.requests[-1].status == 0
    assert klines(client)


def test_a_short_body_ends_before_its_length(exchange, client):
    """Less arrives than the head promised."""
    with pytest.raises(httpx.RemoteProtocolError, match="peer closed"):
        spoilt(exchange, client, "cut_short")


def test_a_stall_answers_nothing_and_does_not_hold_up_the_end(exchange, client):
    """The client runs into its timeout; stop() does not wait for the stall."""
    arrived = threading.Event()
    exchange.faults.add("stall")
    exchange.faults.add("stall", match=lambda params: arrived.set() is None)
    with pytest.raises(httpx.ReadTimeout):
        client.get(KLINES, params=BTC_15M, timeout=0.05)
    with socket.create_connection(("127.0.0.1", exchange.port)) as waiting:
        waiting.sendall(b"GET /api/v3/klines?symbol=BTCUSDT&interval=1m HTTP/1.1\r\n\r\n")
        assert arrived.wait(5)
        began = time.monotonic()
        exchange.stop()
        assert time.monotonic() - began < 2
        assert waiting.recv(1) == b""


def test_a_redirect_leads_to_another_host(exchange, client):
    """A client that follows it has left the exchange."""
    reply = spoilt(exchange, client, "redirect")
    assert reply.status_code == 302
    assert reply.headers["location"] == "http://127.0.0.2:1/"


def test_an_oversize_body_is_valid_json_of_17_megabytes(exchange, client):
    """It comes in chunks, so its length is not known before."""
    reply = spoilt(exchange, client, "oversize")
    assert "content-length" not in reply.headers
    assert len(reply.content) > 17_000_000
    assert isinstance(reply.json(), list)


@pytest.mark.parametrize("kind", ["dribble", "dribble_head"])
def test_a_dribble_comes_byte_by_byte(exchange, client, kind):
    """The whole true reply arrives, if one has the patience: its body, or its headers too."""
    exchange.faults.dribble_seconds = 0
    assert is_sound(spoilt(exchange, client, kind).json())
    exchange.faults.dribble_seconds = 60
    exchange.faults.add(kind)
    with pytest.raises(httpx.ReadTimeout):
        client.get(KLINES, params=BTC_15M, timeout=0.05)


def test_faults_come_in_the_order_they_were_added_and_end(exchange, client):
    """A fault is for so many requests, of the path and the parameters it was added for."""
    exchange.faults.add("500", times=2, match=lambda params: params["symbol"] == "ETHUSDT")
    exchange.faults.add("503_html", path="ping")
    assert klines(client)
    statuses = [client.get(KLINES, params=BTC_15M | {"symbol": "ETHUSDT"}) for _ in range(3)]
    assert [reply.status_code for reply in statuses] == [500, 500, 200]
    assert client.get("/api/v3/ping").status_code == 503


def test_always_lasts_until_clear(exchange, client):
    """A fault with a number goes before one without."""
    exchange.faults.always("500", path="")
    exchange.faults.add("504_empty", path="ping")
    statuses = [client.get("/api/v3/ping").status_code for _ in range(3)]
    assert statuses == [504, 500, 500]
    exchange.faults.clear()
    assert client.get("/api/v3/ping").status_code == 200


def test_a_mix_is_seeded_and_of_the_rate_asked_for(exchange):
    """The same seed gives the same faults, about as many as the rate says, of every kind."""
    drawn = []
    for _ in range(2):
        exchange.faults.mix(0.3, seed=7)
        drawn.append([exchange.faults.pick(KLINES, {}) for _ in range(2000)])
    assert drawn[0] == drawn[1]
    assert 0.25 < sum(map(bool, drawn[0])) / 2000 < 0.35
    assert set(drawn[0]) - {""} == set(ALL_FAULTS) < set(FAULTS)
    assert exchange.faults.pick("/api/v3/ping", {}) == ""


def test_an_unknown_fault_is_refused(exchange):
    """A misspelt fault would make a test pass for nothing."""
    with pytest.raises(ValueError, match="no such fault"):
        exchange.faults.add("resett")


# ----------------------------------------------------------------------------------------------
# Connections and the request log
# ----------------------------------------------------------------------------------------------


def test_requests_are_written_down(exchange, client):
    """Who asked what, when, and what became of it."""
    klines(client, limit=7)
    client.get("/api/v3/time", headers={"User-Agent": "test/1"})
    first, second = exchange.requests
    assert (first.method, first.path, first.params["limit"]) == ("GET", KLINES, "7")
    assert (first.status, first.weight, first.rows, first.fault) == (200, 2, 7, "")
    assert first.at_ms == exchange.clock.now_ms()
    assert first.at_monotonic <= second.at_monotonic
    assert second.headers["user-agent"] == "test/1"
    assert exchange.asked() == [first]
    exchange.clear()
    assert exchange.requests == []


def test_a_connection_is_kept_for_many_requests(exchange, client):
    """Connections and bytes are counted, for benchmarks."""
    for _ in range(5):
        client.get("/api/v3/ping")
    assert (exchange.connections, exchange.open_connections) == (1, 1)
    before = exchange.bytes_sent
    client.get(KLINES, params=BTC_15M, headers={"Accept-Encoding": "identity"})
    assert exchange.bytes_sent - before > 60_000


def test_large_bodies_are_compressed_if_the_client_wants_it(exchange, client):
    """And only then; small ones never are."""
    large = client.get(KLINES, params=BTC_15M)
    assert large.headers["content-encoding"] == "gzip"
    assert int(large.headers["content-length"]) < len(large.content) / 2
    assert "content-encoding" not in client.get("/api/v3/ping").headers
    plain = client.get(KLINES, params=BTC_15M, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == large.content


def test_it_can_be_stopped_and_started_at_the_same_address(exchange, client):
    """A stop closes every connection; an outage is two lines of a test."""
    assert klines(client)
    address = exchange.url
    exchange.stop()
    assert exchange.open_connections == 0
    with pytest.raises(httpx.ConnectError):
        client.get("/api/v3/ping")
    exchange.start()
    assert exchange.url == address
    assert client.get("/api/v3/ping").status_code == 200


def test_latency_comes_before_each_reply(exchange, client):
    """A reply takes at least as long as that."""
    exchange.latency_seconds = 0.05
    began = time.monotonic()
    client.get("/api/v3/ping")
    assert time.monotonic() - began >= 0.05


# ----------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_it_listens_and_ends_well(number):
    """One line when it is ready, and exit 0 after a signal."""
    command = [sys.executable, simulated_binance.__file__, "--port", "0", "--symbols", "BTC/USDT"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert "simulated market" in line
        url = line.split()[-1]
        symbols = httpx.get(url + "/api/v3/exchangeInfo", trust_env=False).json()["symbols"]
        assert [symbol["symbol"] for symbol in symbols] == ["BTCUSDT"]
        process.send_signal(number)
        assert process.stdout.read() == ""
        assert process.wait(timeout=10) == 0


def test_a_missing_file_is_one_clear_line():
    """Exit 2 and the reason, no traceback."""
    command = [sys.executable, simulated_binance.__file__, "--candles", "no-such-file.csv"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "no-such-file.csv" in ended.stderr
    assert "Traceback" not in ended.stderr
