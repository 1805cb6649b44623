"""The audit and --verify: whole windows compared with the exchange, page by page."""

from __future__ import annotations

import pytest
from rig import KEY, FastClock, eventually, in_background, is_true, run_program, started, stored
from samples import NOON_MS

import tet_data_service as tet
import tet_extras.audit as audit_module
from tet_core.candles import newest_of
from tet_extras.audit import verify_feed

TF = tet.TIMEFRAMES["15m"]
OLD_MS = TF.shift(TF.floor(NOON_MS), -100)
START_OF_NEXT_MS = TF.shift(TF.floor(NOON_MS), 1)


def windows_asked(exchange):
    """The klines requests that name an end: those of an audit."""
    return [request for request in exchange.asked() if "endTime" in request.params]


# The audit


def test_a_window_is_compared_once_in_the_audit_hours(exchange, redis_url):
    """A page at a time, each feed's whole window, whatever else is done."""
    given = {"SYMBOLS": "BTC/USDT,ETH/USDT", "DATA_DAYS": 15, "AUDIT_HOURS": 0.02, "UPDATE_INTERVAL": 600}
    exchange.clock.resume()
    with started(exchange, redis_url, FastClock(20), **given) as rig:
        rig.refresh()
        runner = in_background(lambda: [rig.service.idle() for _ in range(3)])
        eventually(lambda: rig.service.counts.candles.counts().get("audited", 0) >= 2 * 1440)
        rig.clock.stop()
        runner.join()
        asked = windows_asked(exchange)
        assert [request.params["symbol"] for request in asked[:4]] == ["BTCUSDT"] * 2 + ["ETHUSDT"] * 2
        assert [int(request.params["limit"]) for request in asked[:2]] == [1000, 440]
        assert not rig.service.counts.candles.counts().get("corrected")


def audit(rig):
    """One whole turn of the audit over all feeds."""
    for _ in range(len(rig.feeds) * 2):
        rig.service.audit.step(rig.feeds)


def test_a_candle_corrected_far_back_is_found(exchange, redis_url, reader, caplog):
    """No update looks so far back; the audit writes the exchange's value, and says both."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        exchange.market.correct("BTCUSDT", "15m", OLD_MS, "77777.5")
        rig.refresh()
        assert not is_true(exchange, stored(reader))
        audit(rig)
        assert is_true(exchange, stored(reader))
        assert rig.service.status.snapshot().candles_corrected == 1
    (said,) = [record.facts for record in caplog.records if record.message == "candle corrected by binance"]
    assert said["feed"] == "BTC/USDT 15m"
    assert '"close":"77777.5"' in said["sent"]
    assert '"close":"77777.5"' not in said["held"]


def test_a_candle_the_exchange_has_by_now_is_added(exchange, redis_url, reader):
    """A halt that turned out to be none."""
    halts = exchange.market.symbols["BTCUSDT"].halts
    halts.append((OLD_MS, OLD_MS + 2 * TF.step_ms))
    with started(exchange, redis_url) as rig:
        rig.refresh()
        assert stored(reader)["candle_count"] == 190
        halts.clear()
        audit(rig)
        assert is_true(exchange, stored(reader))
        assert stored(reader)["candle_count"] == 192


def test_an_audit_does_not_judge_what_rest_may_not_have_yet(exchange, redis_url, reader):
    """A close that was streamed at once, and that REST's servers lag behind."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        exchange.clock.set(START_OF_NEXT_MS + 3000)
        rig.refresh()
        before = stored(reader)["candles"]
        exchange.close_lag_seconds = 10
        audit(rig)
        assert stored(reader)["candles"] == before
        done = run_program(*arguments_of(exchange, redis_url), "--symbols=BTC/USDT")
        assert done.returncode == 0, done.stdout


@pytest.mark.timeout(30)
def test_an_audit_of_a_new_listing_ends(exchange, redis_url):
    """It has no closed candle yet, nor has any other feed."""
    exchange.market.symbols["BTCUSDT"].listed_ms = tet.TIMEFRAMES["1w"].floor(NOON_MS)
    with started(exchange, redis_url, TIMEFRAME="1w") as rig:
        rig.refresh()
        assert len(rig.feeds[0].series) == 1
        audit(rig)


def test_an_audit_takes_no_candle_back(exchange, redis_url, reader):
    """What a reply leaves out stays: servers lag, and the exchange never takes one back."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        exchange.market.symbols["BTCUSDT"].halts.append((OLD_MS, OLD_MS + 2 * TF.step_ms))
        audit(rig)
        assert stored(reader)["candle_count"] == 192


@pytest.mark.parametrize("why", ["paused", "weight", "off", "soon due"])
def test_an_audit_waits_for_its_turn(exchange, redis_url, why):
    """While the exchange has us wait, half of the weight is used, or an update is about to begin."""
    given = {"AUDIT_HOURS": 0} if why == "off" else {"AUDIT_HOURS": 0.001}
    with started(exchange, redis_url, FastClock(100), **given) as rig:
        rig.refresh()
        later_ms = rig.clock.now_ms() + 3_600_000
        rig.service.audit.is_due(rig.feeds, later_ms)
        eventually(lambda: why == "off" or rig.service.audit.is_due(rig.feeds, later_ms))
        if why == "paused":
            rig.binance.gate.pause(3600, "a test")
        if why == "weight":
            rig.binance.gate.learn(3100, rig.clock.now_ms())
        next_ms = rig.clock.now_ms() + 1000 if why == "soon due" else rig.clock.now_ms() + 3_600_000
        assert not rig.service.audit.is_due(rig.feeds, next_ms)


# Who is right?


def test_other_closed_candles_in_redis_are_for_the_exchange_to_judge(exchange, redis_url, reader, caplog):
    """Somebody has written a sound value with another candle: the window is fetched anew."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        value = reader.get(KEY)
        at = value.index('\\"volume\\":\\"', value.index(tet.iso_time(OLD_MS))) + len('\\"volume\\":\\"')
        reader.set(KEY, value[:at] + "9" + value[at:])
        exchange.clock.advance(60)
        rig.refresh()
        assert "redis has other candles, backfilling" in caplog.messages
        assert is_true(exchange, stored(reader))
        assert rig.feeds[0].failure == ""


# --verify


def arguments_of(exchange, redis_url, *more):
    """The program with --verify, for two pairs of two days."""
    given = ["--public", "--symbols=BTC/USDT,ETH/USDT", "--days=2", f"--base-url={exchange.url}"]
    return [*given, f"--redis={redis_url}", "--verify", *more]


@pytest.fixture
def filled(exchange, redis_url):
    """Two pairs in Redis, as the exchange has them."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()


def test_verify_finds_nothing_where_all_is_well(exchange, redis_url, filled):
    """Exit code 0, and how much was compared."""
    done = run_program(*arguments_of(exchange, redis_url))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("382 closed candles of 2 values compared in ")
    assert done.stdout.endswith(" requests: no difference\n")


def test_verify_shows_each_difference_and_changes_nothing(exchange, redis_url, filled, reader):
    """Both values, exit code 1; with --repair the exchange's are written, and all is well."""
    exchange.market.correct("BTCUSDT", "15m", OLD_MS, "77777.5")
    before = reader.get(KEY)
    done = run_program(*arguments_of(exchange, redis_url))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == f"BTC/USDT 15m {tet.iso_time(OLD_MS)}"
    assert lines[1].startswith("  redis    open ")
    assert lines[2].startswith("  binance  open ")
    assert "close 77777.5, volume" in lines[2]
    assert lines[3].endswith(": 1 differ, 1 values are wrong; --verify --repair mends them")
    assert reader.get(KEY) == before
    done = run_program(*arguments_of(exchange, redis_url, "--repair"))
    assert done.returncode == 1
    assert done.stdout.endswith("1 differ, 1 values are wrong; written as the exchange has them\n")
    assert run_program(*arguments_of(exchange, redis_url)).returncode == 0
    assert is_true(exchange, stored(reader))


def test_verify_repairs_what_is_missing_damaged_or_invented(exchange, redis_url, filled, reader):
    """A value that is gone, and a candle that the exchange never had."""
    exchange.market.symbols["BTCUSDT"].halts.append((OLD_MS, OLD_MS + TF.step_ms))
    reader.delete("tet:kline:15m:ETH_USDT")
    done = run_program(*arguments_of(exchange, redis_url, "--repair"))
    assert done.returncode == 1
    assert "ETH/USDT 15m: no sound value in Redis" in done.stdout
    assert "  binance  no candle" in done.stdout
    assert stored(reader)["candle_count"] == 191
    assert stored(reader, "15m:ETH_USDT")["candle_count"] == 192
    assert run_program(*arguments_of(exchange, redis_url)).returncode == 0


def test_a_repair_outlives_a_service_that_runs(exchange, redis_url, reader):
    """It holds the old value in memory, and does not write it back."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        exchange.market.correct("BTCUSDT", "15m", OLD_MS, "77777.5")
        assert run_program(*arguments_of(exchange, redis_url, "--repair")).returncode == 1
        for _ in range(2):
            exchange.clock.advance(60)
            rig.refresh()
        assert is_true(exchange, stored(reader))


def test_verify_does_not_ask_into_a_pause(exchange, redis_url, filled, reader):
    """The pause of a service counts for it, too."""
    with started(exchange, redis_url) as rig:
        rig.binance.gate.pause(3630, "a test")
        rig.service.bulletin.paused()
    exchange.clear()
    done = run_program(*arguments_of(exchange, redis_url))
    assert done.returncode == 1
    assert "not asked: a pause of 1 h 0 min more is on: a test" in done.stderr
    assert exchange.requests == []


def test_repair_goes_with_verify():
    """Alone it is an error of usage."""
    done = run_program("--public", "--repair")
    assert done.returncode == 2
    assert "--repair goes with --verify" in done.stderr


# What others do meanwhile


def test_an_audit_outlives_a_writer_that_finds_the_feed_disputed(exchange, redis_url, reader, monkeypatch):
    """In the middle of a page's comparison: it goes by the candles it began with."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        feed = rig.feeds[0]

        def disputed_meanwhile(candles):
            feed.disputed()
            return newest_of(candles)

        monkeypatch.setattr(audit_module, "newest_of", disputed_meanwhile)
        rig.service.audit.step(rig.feeds)
        assert feed.series is None
        assert rig.service.counts.candles.counts()["audited"] > 100


def test_a_repair_that_somebody_else_writes_over_is_none(exchange, redis_url, reader):
    """What counts is what Redis has then: read back, after each of two attempts."""
    key = "tet:kline:15m:BTC_USDT"
    with started(exchange, redis_url) as rig:
        rig.refresh()
        value, writer, feed = reader.get(key), rig.service.writer, rig.feeds[0]
        at = value.index('\\"volume\\":\\"') + len('\\"volume\\":\\"')
        wrong = value[:at] + "9" + value[at:]
        reader.set(key, wrong)
        write = writer.write

        def write_beside_another(feed):
            written = write(feed)
            reader.set(key, wrong)
            return written

        writer.write = write_beside_another
        verdict = verify_feed(feed, rig.service.fetcher, writer, rig.clock.now_ms())
        assert len(verdict.found) == 1
        assert verdict.failure == "not repaired: Redis has another value by now"
        writer.write = write
        verdict = verify_feed(feed, rig.service.fetcher, writer, rig.clock.now_ms())
        assert (len(verdict.found), verdict.failure) == (1, "")
        assert is_true(exchange, stored(reader))
