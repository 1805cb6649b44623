"""What an operator sees: --status, --health-check, /health, /metrics, and the log file."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
from referencing import Registry, Resource
from rig import PROGRAM, FastClock, Running, eventually, run_program, started, unused_port
from samples import HOUR, MINUTE

import tet_data_service as tet
from tet_core.snapshot import Delays
from tet_extras import figures
from tet_extras.report import ago
from tet_extras.web import bounds

SCHEMAS = PROGRAM.parent / "tests" / "schemas"
DEPLOY = PROGRAM.parent / "deploy"
PAIRS = "--symbols=BTC/USDT,ETH/USDT"


def assert_fits(document, schema_name):
    """The document is as its schema in tests/schemas says."""
    texts = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    resources = ((name, Resource.from_contents(schema)) for name, schema in texts.items())
    registry = Registry().with_resources(resources)
    Draft202012Validator(texts[schema_name], registry=registry).validate(document)


@pytest.fixture
def look(exchange, redis_url):
    """Run the program against the test's servers with these arguments."""
    return partial(
        run_program, "--public", "--days=2", PAIRS, f"--base-url={exchange.url}", f"--redis={redis_url}"
    )


def serving(exchange, redis_url, tmp_path, *more):
    """The program with HTTP on, and its address in ``url``."""
    address = f"127.0.0.1:{unused_port()}"
    arguments = ("--public", "--days=2", PAIRS, f"--base-url={exchange.url}", f"--redis={redis_url}")
    process = Running(tmp_path, *arguments, f"--http={address}", "--max-age=60", *more)
    process.url = f"http://{address}"
    return process


@pytest.fixture
def running(exchange, redis_url, tmp_path):
    """The service in the background with HTTP on, after its first fill."""
    with serving(exchange, redis_url, tmp_path) as process:
        eventually(lambda: process.says("cycle updated=2"))
        yield process


@pytest.fixture
def live(exchange, redis_url, tmp_path):
    """The same with LIVE, its two feeds kept fresh by streams."""
    exchange.clock.resume()
    more = ("--live", f"--stream-url={exchange.stream_url}")
    with serving(exchange, redis_url, tmp_path, *more) as process:
        eventually(lambda: process.says("cycle updated=2"))
        eventually(lambda: 'tet_feeds{link="live"} 2.0' in get(f"{process.url}/metrics")[1])
        yield process


def get(url):
    """Status and body of a GET, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


# With LIVE


def test_the_status_of_live_feeds_says_so(live, look, reader):
    """In the table, in a sentence of 80 columns, in the object in Redis, by its schema, and as metrics."""
    eventually(lambda: '"live":2' in (reader.get("tet:system:status") or ""), 30)
    done = look("--status")
    assert done.returncode == 0, done.stdout
    assert "live 2, catching up 0, polled 0; 1 connections, 2 streams" in done.stdout.replace("\n", " ")
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith(("BTC", "ETH"))] == [
        "live"
    ] * 2
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert_fits(json.loads(reader.get("tet:system:status")), "status.json")
    health = json.loads(get(f"{live.url}/health")[1])
    assert_fits(health, "health.json")
    assert health["streams"]["feeds"] == {"live": 2, "catching_up": 0, "blind": 0}
    metrics = get(f"{live.url}/metrics")[1]
    assert re.search(r'tet_stream_messages_total{outcome="accepted"} [1-9]', metrics)


# --status


def test_status_of_a_running_service_is_good(running, look):
    """All fresh: exit code 0, a header and a row for each pair, within 80 columns."""
    done = look("--status")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"tet-data-service {tet.__version__}: running, up ")
    assert re.search(r"^BTC/USDT +192 +100\.00%  01-15 12:00 +\d+ s +[0-9.]+  fresh$", done.stdout, re.M)
    assert max(map(len, lines)) <= 80


def test_status_says_where_the_page_is(look):
    """With HTTP_ADDR set; what listens everywhere is found on this machine."""
    assert "\npage http://127.0.0.1:8080/\n" in f"\n{look('--status', '--http=127.0.0.1:8080').stdout}"
    assert "page http://127.0.0.1:8080/\n" in look("--status", "--http=0.0.0.0:8080").stdout
    assert "page http" not in look("--status").stdout


def test_status_shows_the_last_price(running, look, exchange):
    """The price is the newest candle's close."""
    rows = json.loads(look("--status", "--json").stdout)["data"]
    newest = exchange.klines("BTCUSDT", "15m", limit=1)[0]
    assert float(rows[0]["last_price"]) == float(newest[4])
    assert rows[0]["newest"] == tet.iso_time(newest[0])


def test_status_as_json_fits_its_schema(running, look, reader):
    """--json prints one object, and so does the status key."""
    found = json.loads(look("--status", "--json").stdout)
    assert_fits(found, "report.json")
    assert found["healthy"] is True
    assert_fits(json.loads(reader.get("tet:system:status")), "status.json")


def test_status_without_a_service_is_bad(look, redis_url):
    """Nothing in Redis: exit code 1, and every pair is missing."""
    done = look("--status")
    assert done.returncode == 1
    assert "no status in Redis: the service is not running" in done.stdout
    assert "2 of 2 missing: BTC/USDT, ETH/USDT" in done.stdout


def test_status_after_once_is_good_while_the_data_is_fresh(look):
    """A cron job that ran a single cycle is no silent service."""
    look("--once")
    done = look("--status")
    assert (done.returncode, "finished" in done.stdout) == (0, True)


def test_status_after_a_stop_is_bad(exchange, redis_url, look):
    """A service that was stopped keeps nothing fresh."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
    done = look("--status")
    assert done.returncode == 1
    assert re.search(r"! the service was stopped \d s ago", done.stdout)


def test_status_names_what_is_stale(exchange, redis_url, look, reader):
    """Older than MAX_DATA_AGE by the exchange's time: exit code 1 and the state of the row."""
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
        exchange.faults.add("500", times=99, match=lambda params: params["symbol"] == "ETHUSDT")
        exchange.clock.advance(HOUR)
        rig.refresh()
    done = look("--status")
    assert done.returncode == 1
    assert "1 of 2 older than 540 s: ETH/USDT" in done.stdout
    assert re.search(r"^ETH/USDT .* 1 h 0 min .* stale$", done.stdout, re.M)
    assert re.search(r"^BTC/USDT .* fresh$", done.stdout, re.M)
    assert "failed: ETH/USDT 15m: Binance answers HTTP 500" in done.stdout


def test_status_looks_at_the_symbols_asked_for(running, look):
    """A pair that the service does not keep is missing, whatever the others are."""
    done = look("--status", "--symbols=BTC/USDT,FOO/USDT")
    assert done.returncode == 1
    assert "1 of 2 missing: FOO/USDT" in done.stdout


def test_status_needs_no_keys(redis_url):
    """It reads Redis alone."""
    done = run_program(f"--redis={redis_url}", "--status")
    assert (done.returncode, "BINANCE_API_KEY" in done.stderr) == (1, False)


def test_status_tells_a_foreign_value_from_ours(running, look, reader):
    """A value that is damaged, or of another type, is named and not taken for data."""
    reader.set("tet:kline:15m:BTC_USDT", "hello")
    reader.delete("tet:kline:15m:ETH_USDT")
    reader.lpush("tet:kline:15m:ETH_USDT", "hello")
    done = look("--status")
    assert done.returncode == 1
    assert "! 2 of 2 damaged or another program's: BTC/USDT, ETH/USDT\n" in done.stdout


def test_status_knows_a_value_with_blanks_behind_it(running, look, reader):
    """As a patch may leave them."""
    key = "tet:kline:15m:BTC_USDT"
    reader.set(key, reader.get(key) + "   ")
    assert "not ours" not in look("--status").stdout


def test_status_without_redis_says_so(look, free_port):
    """No Redis: exit code 1 and the remedy."""
    done = look("--status", f"--redis=127.0.0.1:{free_port}")
    assert done.returncode == 1
    assert "REDIS_ADDR" in done.stdout


def test_watch_looks_again_and_again(running, redis_url, tmp_path):
    """--watch repeats the report until it is interrupted."""
    folder = tmp_path / "watch"
    folder.mkdir()
    with Running(
        folder, "--public", "--days=2", PAIRS, f"--redis={redis_url}", "--status", "--watch"
    ) as watching:
        eventually(lambda: watching.log.read_text().count("BTC/USDT") >= 2)


# --health-check


def test_a_healthy_service_passes_every_check(running, look, exchange):
    """Exit code 0 but for the simulated exchange's time, at a cost of at most 25 weight."""
    exchange.clear()
    done = look("--health-check")
    checks = dict(re.findall(r"^(?:ok  |FAIL) (\w+) +(.*)$", done.stdout, re.M))
    assert checks.keys() == {"redis", "binance", "clock", "symbols", "data"}
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAIL")] == ["clock"]
    assert sum(request.weight for request in exchange.requests) <= 25
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_health_is_good_when_all_is(redis_url, tmp_path):
    """With an exchange whose time is right every line is ok, and the exit code 0."""
    from tet_extras.simulated_binance import Market, SimulatedBinance

    with SimulatedBinance(market=Market.random_walk(["BTC/USDT"])) as exchange:
        servers = (f"--base-url={exchange.url}", f"--redis={redis_url}", "--symbols=BTC/USDT")
        keys: dict[str, Any] = {"BINANCE_API_KEY": "sim-key", "BINANCE_SECRET_KEY": "sim-secret"}
        assert run_program(*servers, "--once", "--days=1", **keys).returncode == 0
        done = run_program(*servers, "--health-check", **keys)
        assert done.returncode == 0, done.stdout
        assert "ok   keys     the API key is valid and may only read" in done.stdout
        found = json.loads(run_program(*servers, "--health-check", "--json", **keys).stdout)
    assert found["healthy"] is True
    assert_fits(found, "health_check.json")


def test_health_names_what_is_wrong(look, exchange):
    """Unknown symbols, missing data and an exchange that fails are each a line, and the exit code 1."""
    done = look("--health-check", "--symbols=BTC/USDT,NO/USDT")
    assert done.returncode == 1
    assert "NO/USDT: unknown to Binance" in done.stdout
    exchange.faults.always("500", path="time")
    found = json.loads(look("--health-check", "--json").stdout)
    assert_fits(found, "health_check.json")
    found = {check["name"]: check["ok"] for check in found["checks"]}
    assert found == {"redis": True, "binance": False, "data": False}


def test_health_does_not_ask_into_a_ban(look, exchange, reader, redis_url):
    """While a pause is on, the check says so and sends nothing."""
    with started(exchange, redis_url) as rig:
        rig.binance.gate.pause(100, "this address is banned (HTTP 418)")
        rig.service.bulletin.paused()
    exchange.clear()
    done = look("--health-check")
    assert done.returncode == 1
    assert re.search(r"FAIL binance +not asked: a pause of \d+ s more is on", done.stdout)
    assert exchange.requests == []


def test_health_as_json_is_json_whatever_redis_says(look, exchange, redis_url, reader, tmp_path):
    """A key of another program where the pause would be, a value, or no embedded server at all."""
    reader.rpush("tet:system:pause", "x")
    for name in ("15m:BTC_USDT", "15m:ETH_USDT"):
        reader.rpush(f"tet:kline:{name}", "x")
    done = look("--health-check", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert not checks["redis"]["ok"]
    assert "Redis key tet:system:pause holds a list of another program" in checks["redis"]["found"]
    assert "binance" in checks
    assert "Traceback" not in done.stderr
    reader.delete("tet:system:pause")
    reader.rpush("tet:system:status", "x")
    done = look("--health-check", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert not checks["data"]["ok"]
    assert "tet:system:status holds a list" in checks["data"]["found"]


@pytest.mark.parametrize("what", ["--status", "--health-check"])
def test_without_an_embedded_server_json_is_json(tmp_path, what):
    """The folder on which none has run is named, in JSON and in words."""
    given = ("--public", what, "--redis=embedded", f"--data-dir={tmp_path / 'never'}")
    done = run_program(*given, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["healthy"], done.stderr) == (1, False, "")
    assert "no embedded server has run on DATA_DIR" in done.stdout
    if what == "--status":
        assert_fits(found, "report.json")
    assert "no embedded server has run on DATA_DIR" in run_program(*given).stderr


def test_a_misconfigured_check_ends_with_2():
    """Wrong settings are exit code 2 here too."""
    assert run_program("--public", "--health-check", "--days=0").returncode == 2
    assert run_program("--public", "--status", "--days=0").returncode == 2
    assert run_program("--public", "--json").returncode == 2


# /health


def test_health_over_http(running):
    """Alive and fresh: 200, and both halves too."""
    for path in ("/health", "/health/live", "/health/ready"):
        status, body = get(running.url + path)
        assert status == 200
        assert_fits(json.loads(body), "health.json")
    assert get(running.url + "/elsewhere")[0] == 404


def test_health_over_http_tells_of_stale_data(exchange, redis_url):
    """No fresh data: 503 with the reason, while the loop is alive."""
    address = f"127.0.0.1:{unused_port()}"
    with started(exchange, redis_url, HTTP_ADDR=address) as rig:
        assert get(f"http://{address}/health")[0] == 503  # nothing fetched yet
        rig.refresh()
        assert get(f"http://{address}/health/ready")[0] == 200
        exchange.faults.always("500")
        exchange.clock.advance(HOUR)
        rig.refresh()
        status, body = get(f"http://{address}/health")
        assert (status, json.loads(body)["reasons"]) == (503, ["older than 540 s: 1 of 1 (BTC/USDT 15m)"])
        assert get(f"http://{address}/health/ready")[0] == 503


def test_health_over_http_tells_of_a_redis_that_is_gone(exchange, redis_url):
    """What readers cannot read is not ready, however fresh it was."""
    address = f"127.0.0.1:{unused_port()}"
    with started(exchange, redis_url, HTTP_ADDR=address) as rig:
        rig.refresh()
        assert get(f"http://{address}/health")[0] == 200
        rig.store._unreachable("", OSError("gone"))
        status, body = get(f"http://{address}/health")
    assert status == 503
    assert "does not answer" in json.loads(body)["reasons"][0]


def test_health_can_be_asked_by_head(running):
    """Uptime monitors ask with HEAD."""
    request = urllib.request.Request(f"{running.url}/health", method="HEAD")
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert (reply.status, reply.read()) == (200, b"")


def test_health_over_http_tells_of_a_dead_loop(exchange, redis_url):
    """A main loop that does not beat is a 503 on /health/live."""
    address = f"127.0.0.1:{unused_port()}"
    with started(exchange, redis_url, FastClock(1000), HTTP_ADDR=address) as rig:
        rig.service.tick()
        assert get(f"http://{address}/health/live")[0] == 200
        eventually(lambda: get(f"http://{address}/health/live")[0] == 503)


def test_an_address_in_use_is_an_error_that_names_the_setting(exchange, redis_url):
    """HTTP_ADDR that another program has: exit code 1, since it may be free later; nothing is fetched."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_program(
            "--public", f"--base-url={exchange.url}", f"--redis={redis_url}", f"--http={address}"
        )
    assert done.returncode == 1
    assert f"cannot bind HTTP_ADDR {address}: Address already in use" in done.stderr
    assert exchange.requests == []


def test_slow_clients_cannot_hold_the_service_up(exchange, redis_url, monkeypatch):
    """Clients that say nothing are cut off; when there are too many, others are turned away, then served."""
    monkeypatch.setattr(bounds, "CLIENT_SECONDS", 0.5)
    port = unused_port()
    with started(exchange, redis_url, HTTP_ADDR=f"127.0.0.1:{port}") as rig:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        rig.refresh()
        assert rig.feeds[0].failure == ""
        eventually(lambda: answers(f"http://127.0.0.1:{port}/health"))
        for client in idle:
            client.close()


def answers(url):
    """Whether the address gives any HTTP answer."""
    try:
        return get(url)[0]
    except OSError:
        return None


# /metrics


def scrape(url):
    """The samples of a scrape, by name and labels, as Prometheus' own parser reads them."""
    families = text_string_to_metric_families(get(f"{url}/metrics")[1])
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_a_scrape_tells_what_happened(running, exchange):
    """Counters, gauges and histograms have the values of what was done."""
    samples = scrape(running.url)
    assert samples["tet_updates_total", "written"] == 2
    assert samples["tet_requests_total", "200"] == len(exchange.requests)
    assert samples["tet_request_duration_seconds_count",] == len(exchange.requests)
    assert (
        samples["tet_candles_total", "received"] == 2 * 194 - 1
        or samples["tet_candles_total", "received"] > 380
    )
    assert samples["tet_ready",] == samples["tet_live",] == 1
    assert samples["tet_completeness_min_ratio",] == 1
    assert samples["tet_weight_limit",] == 6000
    assert samples["tet_used_weight",] == exchange.used_weight
    assert samples["tet_build_info", tet.__version__] == 1
    assert 0 <= samples["tet_oldest_data_age_seconds",] < 60


def test_names_follow_prometheus(running):
    """Base units, _total on counters, help on everything, no label without a bound."""
    families = list(text_string_to_metric_families(get(f"{running.url}/metrics")[1]))
    for family in families:
        assert family.name.startswith(("tet_", "process_"))
        assert family.documentation
        assert not re.search(r"_(ms|milliseconds|mb|percent|minutes)$", family.name)
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    assert labels == {"outcome", "status", "kind", "le", "version"} - ({"kind"} - labels)


def test_per_symbol_metrics_are_asked_for(exchange, redis_url):
    """METRICS_PER_SYMBOL adds one series a pair, and only then."""
    address = f"127.0.0.1:{unused_port()}"
    given = {"HTTP_ADDR": address, "METRICS_PER_SYMBOL": "true"}
    with started(exchange, redis_url, **given) as rig:
        rig.refresh()
        assert ("tet_symbol_data_age_seconds", "BTC/USDT", "15m") in scrape(f"http://{address}")


def test_a_pause_and_a_close_are_measured(exchange, redis_url, reader):
    """A pause shows what is left of it; a close shows how long it took to Redis, in metrics and status."""
    address = f"127.0.0.1:{unused_port()}"
    with started(exchange, redis_url, HTTP_ADDR=address) as rig:
        rig.refresh()
        exchange.clock.advance(8 * MINUTE)
        rig.refresh()
        rig.binance.gate.pause(50, "a test")
        samples = scrape(f"http://{address}")
        found = json.loads(reader.get("tet:system:status"))["close_to_redis_seconds"]
    assert 45 < samples["tet_pause_seconds",] <= 50
    assert samples["tet_candle_delay_seconds_count",] == samples["tet_candles_total", "closed"] == 1
    assert found["closes"] == 1
    assert found["p50"] == found["p99"] == pytest.approx(30, abs=2)  # 12:15:30 by the exchange's clock


def names_in(expressions):
    """The metric names in PromQL expressions."""
    return {name for text in expressions for name in re.findall(r"\btet_[a-z_]+", text)}


def test_dashboard_and_alerts_name_only_what_is_served(live):
    """Every metric in deploy/ is in a live scrape."""
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    shown = names_in(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    alerted = names_in(rule["expr"] for rule in rules)
    text = get(f"{live.url}/metrics")[1]
    served = {name.split("{")[0] for name in re.findall(r"^(tet_[^ ]+)", text, re.M)}
    served |= {name for _, name in re.findall(r"^# (HELP|TYPE) (tet_\w+)", text, re.M)}
    assert shown
    assert alerted
    assert shown | alerted <= served | {"tet_stream_closes_proven_ratio"}  # a minute after a close


def test_the_docs_name_every_metric(live):
    """The table of docs/operating.md has the metrics that are served, and no other."""
    families = {f.name for f in text_string_to_metric_families(get(f"{live.url}/metrics")[1])}
    families = {name for name in families if not name.endswith("_created")}
    page = (PROGRAM.parent / "docs" / "operating.md").read_text()
    listed = {name.removesuffix("_total") for name in re.findall(r"`(tet_(?!extras|data)\w+)", page)}
    # these have samples only once there is something to show
    families = {name for name in families if not name.startswith("process_")}  # prometheus-client's own
    assert families <= listed
    assert listed - families <= {
        "tet_symbol_data_age_seconds",
        "tet_request_errors",
        "tet_stream_closes_proven_ratio",
    }


# Delays


def test_percentiles_of_a_day():
    """Of a hundred delays the p50, p95 and p99 are the 50th, 95th and 99th; older ones are forgotten."""
    day = figures.DayOfDelays()
    for tenth in range(1, 101):
        day.add(tenth / 10, 0)
    assert figures.percentiles(day.counts(0)) == Delays(100, 5.0, 9.5, 9.9)
    day.add(0.3, 24 * HOUR * 1000)
    assert figures.percentiles(day.counts(24 * HOUR * 1000)) == Delays(1, 0.3, 0.3, 0.3)
    assert figures.percentiles(Counter()) == Delays(0, None, None, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (3599, "59 min"),
        (3900, "1 h 5 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_spans_have_units(seconds, text):
    """Ages are shown as people say them."""
    assert ago(seconds) == text


# The log


def test_a_failure_of_many_is_one_line(exchange, redis_url, caplog):
    """The same reason for many pairs is logged once a cycle, with the count."""
    from tet_extras.simulated_binance import DEFAULT_PAIRS, Market

    exchange.market = Market.random_walk(DEFAULT_PAIRS)
    with started(exchange, redis_url, FastClock(100), SYMBOLS=",".join(DEFAULT_PAIRS)) as rig:
        exchange.faults.always("500")
        rig.refresh()
    failures = [record for record in caplog.records if record.message == "update failed"]
    assert [record.facts["count"] for record in failures] == [len(DEFAULT_PAIRS)]


def test_the_log_file_rotates(tmp_path, exchange, redis_url):
    """At its size the file is set aside, and only so many are kept."""
    log = tmp_path / "tet.log"
    log.write_text("x" * 1_000_000)
    environment: dict[str, Any] = {"LOG_MAX_MB": "1", "LOG_BACKUPS": "1"}
    arguments = ("--public", "--once", "--days=1", "--symbols=BTC/USDT", f"--base-url={exchange.url}")
    run_program(*arguments, f"--redis={redis_url}", f"--log-file={log}", **environment)
    assert (tmp_path / "tet.log.1").read_text().startswith("xxx")
    assert "cycle updated=1" in log.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_stops_the_log_file_and_not_the_service(exchange, redis_url, reader):
    """The service goes on, says so once on stderr, and logs there."""
    arguments = ("--public", "--once", "--days=1", "--symbols=BTC/USDT", f"--base-url={exchange.url}")
    done = run_program(*arguments, f"--redis={redis_url}", "--log-file=/dev/full")
    assert done.returncode == 0
    assert done.stderr.count("LOG_FILE /dev/full cannot be written") == 1
    assert "No space left" in done.stderr
    assert "cycle updated=1" in done.stderr
    assert reader.exists("tet:kline:15m:BTC_USDT")
