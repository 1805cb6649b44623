"""Real clients, as they are published: each is told by us what the exchange tells it."""

from __future__ import annotations

import json
import subprocess
import sys

from rig import PROGRAM, clean_environment, started, unused_port


def test_real_clients_are_told_what_the_exchange_tells(exchange, redis_url):
    """ccxt for spot and futures, python-binance, the connector: by changing an address, the token in it."""
    own = {"BINANCE_PROXY": "true", "FIELDS": "all", "SYMBOLS": "BTC/USDT,ETH/USDT", "HTTP_TOKEN": "token-1"}
    ports = unused_port(), unused_port()
    with (
        started(exchange, redis_url, HTTP_ADDR=f"127.0.0.1:{ports[0]}", **own) as spot,
        started(
            exchange,
            redis_url,
            HTTP_ADDR=f"127.0.0.1:{ports[1]}",
            REDIS_PREFIX="u",
            BINANCE_MARKET="usdm",
            **own,
        ) as usdm,
    ):
        spot.refresh()
        usdm.refresh()
        addresses = [f"http://127.0.0.1:{port}/t/token-1" for port in ports]
        exchange.clear()
        script = PROGRAM.parent / "tests" / "bots.py"
        command = [sys.executable, "-W", "ignore", str(script), ",".join(addresses)]
        ours, theirs = told_by([*command, f"{exchange.url},{exchange.url}"])
        through_us = [r for r in exchange.asked() if "tet-data-service" in r.headers.get("user-agent", "")]
        for name, answer in theirs.items():
            assert ours[name] == answer, name
            assert answer, name
            assert "rror" not in str(answer) or name == "connector unknown", answer
        assert "ClientError -1121 400" in theirs["connector unknown"]
        asked = {(each.params["symbol"], each.params.get("startTime", "")) for each in through_us}
        assert asked == {("ETHUSDT", "1766672000000"), ("BTCUSDT", "0"), ("NOPEUSDT", "")}, (
            "what we do not hold"
        )


def told_by(command):
    """What the clients were told at each address."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, env=clean_environment(), check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
