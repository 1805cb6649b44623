"""deploy/ for Prometheus and Grafana: alert rules, scrape job and dashboard, by the real thing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rig import PROGRAM, FastClock, Rig, eventually, in_background, unused_port

from tet_extras.simulated_binance import Market, SimulatedBinance, SimulatedClock

DEPLOY = PROGRAM.parent / "deploy"
RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
SPEED = 20  # a minute takes 3 s
START_MS = 1_768_478_850_000  # 2026-01-15T12:07:30Z
NAMES = ("BTC/USDT", "ETH/USDT")
TOKEN = "a-token-of-sixteen"

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed (Debian: apt-get install prometheus)",
)

#: For each alert, series a minute apart (promtool's notation) where it is quiet, and where it fires; for how
#: many minutes they last, and how many instances it fires for. Labels are added to each: job, instance.
A, B = '{job="candles",instance="a"}', '{job="candles",instance="b"}'
WELL = {f"tet_live{A}": "1x120", f"up{A}": "1x120", 'up{job="node",instance="n"}': "0x120"}


def _labelled(name: str, **labels: str) -> str:
    more = "".join(f',{label}="{value}"' for label, value in labels.items())
    return f"{name}{A[:-1]}{more}}}"


def _updates(written: str, failed: str) -> dict[str, str]:
    return {
        _labelled("tet_updates_total", outcome="written"): written,
        _labelled("tet_updates_total", outcome="failed"): failed,
    }


def _feeds(**links: str) -> dict[str, str]:
    return {_labelled("tet_feeds", link=link): values for link, values in links.items()}


def _delays(within_a_minute: str, all_: str) -> dict[str, str]:
    return {
        _labelled("tet_candle_delay_seconds_bucket", le="60.0"): within_a_minute,
        _labelled("tet_candle_delay_seconds_bucket", le="+Inf"): all_,
        f"tet_candle_delay_seconds_count{A}": all_,
    }


CASES: dict[str, list[tuple[str, dict[str, str], int]]] = {
    "TetDataServiceSilent": [
        ("well, whatever the job is called, and beside a job that is down", WELL, 0),
        ("never there", {f"up{A}": "0x120"}, 1),
        ("nobody asks it", {'up{job="node",instance="n"}': "1x120"}, 1),
        ("its only instance died", {f"tet_live{A}": "1x60 stale", f"up{A}": "1x60 0x60"}, 1),
        ("one of two died", {**WELL, f"tet_live{B}": "1x60 stale", f"up{B}": "1x60 0x60"}, 1),
        ("one of two was taken away", {**WELL, f"tet_live{B}": "1x60 stale", f"up{B}": "1x60 stale"}, 0),
        ("the main loop stopped", {f"tet_live{A}": "1x60 0x60", f"up{A}": "1x120"}, 1),
    ],
    "TetDataStale": [
        ("well", {f"tet_ready{A}": "1x120"}, 0),
        ("a fill of five minutes", {f"tet_ready{A}": "1x112 0x5 1x3"}, 0),
        ("stale", {f"tet_ready{A}": "1x60 0x60"}, 1),
    ],
    "TetBanned": [
        ("well", {f"tet_pause_seconds{A}": "0x120"}, 0),
        ("banned", {f"tet_pause_seconds{A}": "0x117 300-60x2"}, 1),
    ],
    "TetUpdatesFailing": [
        ("well", _updates("0+10x120", "0x120"), 0),
        ("one in twenty", _updates("0+19x120", "0+1x120"), 0),
        ("one in five", _updates("0+8x120", "0+2x120"), 1),
        ("all", _updates("0x120", "0+10x120"), 1),
    ],
    "TetRedisRefuses": [
        ("well", {f"tet_unsaved_updates{A}": "0x120"}, 0),
        ("a restart of Redis", {f"tet_unsaved_updates{A}": "0x116 25x2 0x2"}, 0),
        ("refused", {f"tet_unsaved_updates{A}": "0x110 25x10"}, 1),
    ],
    "TetCandlesLate": [
        ("no closes", _delays("0x120", "0x120"), 0),
        ("5 of 1,000 late", _delays("0+995x120", "0+1000x120"), 0),
        ("one in twenty late", _delays("0+950x120", "0+1000x120"), 1),
    ],
    "TetFeedsPolled": [
        ("live", _feeds(live="9x120", blind="0x120"), 0),
        ("polled", _feeds(live="6x120", blind="3x120"), 1),
    ],
    "TetCandlesCorrected": [
        ("well", {_labelled("tet_candles_total", outcome="corrected"): "3x120"}, 0),
        ("one more", {_labelled("tet_candles_total", outcome="corrected"): "3x60 4x60"}, 1),
    ],
}  # fmt: skip


def test_each_alert_has_its_cases():
    """Each alert is shown quiet and firing."""
    assert [rule["alert"] for rule in RULES] == list(CASES)
    for cases in CASES.values():
        assert {bool(fires) for _, _, fires in cases} == {False, True}


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_is_to(alert, tmp_path):
    """Quiet where all is well, firing where it is not: promtool goes through two hours in no time."""
    rule = next(rule for rule in RULES if rule["alert"] == alert)
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [rule]}]}))
    tests = [
        {
            "interval": "1m",
            "name": name,
            "input_series": [{"series": each, "values": values} for each, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                    "eval_time": "119m",
                    "exp_samples": [{"labels": "{}", "value": fires}],
                }
            ],
        }
        for name, series, fires in CASES[alert]
    ]
    file = tmp_path / "test.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests})
    )
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_files_as_they_are():
    """scrape.yml is a configuration that names the rules beside it."""
    for kind, file in (("config", "scrape.yml"), ("rules", "alerts.yml")):
        command = ["promtool", "check", kind, str(DEPLOY / file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A real one, which scrapes by deploy/scrape.yml, with deploy/alerts.yml, ten times as often as there."""

    def __init__(self, folder: Path, target: str) -> None:
        port = unused_port()
        self._url = f"http://127.0.0.1:{port}/api/v1"
        (folder / "token").write_text(TOKEN)
        rules = re.sub(r"for: \d+m", "for: 1s", (DEPLOY / "alerts.yml").read_text())
        (folder / "alerts.yml").write_text(rules)
        scrape = (DEPLOY / "scrape.yml").read_text()
        for before, after in (
            ("# authorization:", "authorization:"),
            (
                "#   credentials_file: /etc/prometheus/tet-http-token",
                f"  credentials_file: {folder / 'token'}",
            ),
            ("127.0.0.1:8080", target),
            ("scrape_interval: 15s", "scrape_interval: 500ms"),
            ("job_name: tet-data-service", "job_name: any"),
        ):
            assert scrape.count(before) == 1
            scrape = scrape.replace(before, after)
        (folder / "prometheus.yml").write_text(f"global: {{evaluation_interval: 500ms}}\n{scrape}")
        with (folder / "prometheus.log").open("w") as log:
            self._process = subprocess.Popen(
                ["prometheus", f"--config.file={folder / 'prometheus.yml'}", "--log.level=warn",
                 f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
                stdout=log, stderr=log, cwd=folder,
            )  # fmt: skip
        eventually(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.query("vector(1)"))
        except OSError:
            return False

    def _get(self, path: str) -> dict:
        with urllib.request.urlopen(f"{self._url}/{path}", timeout=10) as reply:
            return json.load(reply)["data"]

    def query(self, expression: str) -> list:
        """The series of an instant query now."""
        return self._get("query?" + urllib.parse.urlencode({"query": expression}))["result"]

    def rules(self) -> list[dict]:
        """Each rule with its state, and how its evaluation went."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        """The alerts that fire."""
        return {rule["name"] for rule in self.rules() if rule["state"] == "firing"}

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def rig(redis_url) -> Iterator[Rig]:
    """A service with LIVE and a token, whose time runs SPEED times as fast, as its exchange's does."""
    clock = SimulatedClock(START_MS, speed=SPEED)
    with SimulatedBinance(market=Market.random_walk(NAMES), clock=clock) as exchange:
        given = {
            "SYMBOLS": ",".join(NAMES), "TIMEFRAME": "1m", "DATA_DAYS": 1, "UPDATE_INTERVAL": 60,
            "LIVE": "true", "BINANCE_STREAM_URL": exchange.stream_url,
            "HTTP_ADDR": f"127.0.0.1:{unused_port()}", "HTTP_TOKEN": TOKEN,
        }  # fmt: skip
        exchange.faults.add("500")
        with Rig(exchange, redis_url, FastClock(SPEED), **given) as rig:
            runner = in_background(rig.service.run)
            try:
                eventually(lambda: rig.feeds and all(feed.updated_ms for feed in rig.feeds))
                yield rig
            finally:
                rig.clock.stop()
                runner.join()


def expressions() -> list[str]:
    """What the dashboard's panels and variables ask for, all instances chosen."""
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert all('instance=~"$instance"' in each for each in asked)
    return [each.replace("$instance", ".*") for each in asked]


def test_a_real_prometheus_has_what_the_dashboard_shows(rig, tmp_path):
    """Each expression of the dashboard finds series; an alert fires only once the service is gone."""
    prometheus = Prometheus(tmp_path, "{}:{}".format(*rig.config.http_addr))
    try:
        eventually(lambda: prometheus.query("tet_live"))
        rig.exchange.streams.cut()
        left = set(expressions())
        assert len(left) > 30

        def all_found() -> bool:
            left.difference_update({each for each in left if prometheus.query(each)})
            return not left

        try:
            eventually(all_found)
        except AssertionError:
            raise AssertionError(f"no series: {left}") from None
        rules = prometheus.rules()
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        assert [rule["name"] for rule in rules] == list(CASES)
        eventually(lambda: not prometheus.firing())  # streams were cut a moment ago
        rig.stop_serving()
        eventually(lambda: "TetDataServiceSilent" in prometheus.firing())
    finally:
        prometheus.stop()


def test_a_state_is_told_by_word_and_colour():
    """Not live is red and says so; the version is its name; instances can be chosen."""
    panels = {panel["title"]: panel for panel in DASHBOARD["panels"]}
    for title, word in (("Main loop", "Stopped"), ("Data", "Not ready")):
        defaults = panels[title]["fieldConfig"]["defaults"]
        assert defaults["mappings"][0]["options"]["0"] | {"index": 0} == {
            "text": word, "color": "red", "index": 0,
        }  # fmt: skip
        assert [step["color"] for step in defaults["thresholds"]["steps"]] == ["red", "green"]
    assert panels["Version"]["options"]["textMode"] == "name"
    assert panels["Version"]["targets"][0]["legendFormat"] == "{{version}}"
    chosen = {each["name"]: each for each in DASHBOARD["templating"]["list"]}["instance"]
    assert (chosen["multi"], chosen["includeAll"]) == (True, True)
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert all(x + width <= 24 for x, _, width, _ in places)
    assert len({place[:2] for place in places}) == len(places)


def test_the_dashboard_is_of_grafanas_classic_model():
    """Panels have ids of their own and a place of their own in 24 columns; all ask the chosen data source."""
    assert {"title", "uid", "schemaVersion", "version", "time", "templating", "panels"} <= set(DASHBOARD)
    assert len(DASHBOARD["uid"]) <= 40
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        x, y, wide, high = (panel["gridPos"][name] for name in "xywh")
        assert x >= 0
        assert x + wide <= 24
        places = {(column, row) for column in range(x, x + wide) for row in range(y, y + high)}
        assert not taken & places, panel["title"]
        taken |= places
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        marks = [target["refId"] for target in panel["targets"]]
        assert len(set(marks)) == len(marks)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert [each["type"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "query"]
