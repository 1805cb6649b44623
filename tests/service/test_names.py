"""Names that are not ASCII, from the setting to whoever reads: the real program, LIVE, in the C locale."""

from __future__ import annotations

import json
import re
import signal
import unicodedata
from contextlib import suppress
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from rig import Running, eventually, expected_candles, run_program, stored

import tet_data_service as tet
from tet_core.times import parse_iso_time
from tet_extras.simulated_binance import Market, SimulatedBinance

#: Chinese; the spot testnet's; letters with vowel signs; with an accent of its own; an emoji.
NAMES = ["币安人生/USDT", "这是测试币456/USDT", "हिन्दी/USDT", "Cafe\u0301/USDT".upper(), "🚀/USDT"]
C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("text", [*NAMES, "币安人生USDT", "币安人生_usdt", "*/币安"])
def test_a_name_of_any_letters_is_a_pair(text):
    """As it is spelt."""
    assert tet.symbol_names(f"BTC/USDT,{text}")[1] == text.upper().replace("_", "/")


@pytest.mark.parametrize("text", ["币安,。/USDT", "币安人生/USDT，BTC/USDT", "币 安/US/DT", "\u202e币/U.S"])
def test_what_is_no_name_is_refused(text):
    """Marks of punctuation, and what is not seen."""
    with pytest.raises(ValueError, match="not a pair"):
        tet.symbol_names(text)


def columns(text):
    """How many columns a terminal gives a text."""
    marks = [unicodedata.category(each) == "Mn" for each in text]
    wide = [unicodedata.east_asian_width(each) in "WF" for each in text]
    return len(text) - sum(marks) + sum(wide)


def asked(port, path, **query):
    """What the service answers to a browser, which percent-encodes."""
    asked = "&".join(f"{name}={quote(text, safe='')}" for name, text in query.items())
    with urlopen(f"http://127.0.0.1:{port}{quote(path)}?{asked}") as answer:
        return answer.read().decode()


def live_feeds(port):
    """How many feeds streams keep fresh by now."""
    with suppress(OSError):
        return (json.loads(asked(port, "/api/status")).get("live") or {}).get("feeds", {}).get("live")
    return 0


def are_announced(channel):
    """Whether Redis has announced them all."""
    heard = set()

    def look():
        message = channel.get_message(timeout=1)
        heard.update([json.loads(message["data"])["symbol"]] if message else [])
        return heard >= set(NAMES)

    eventually(look)
    return True


def check_candles(exchange, reader, port, name):
    """Redis, the chart's address and the CSV have them."""
    key, symbol = name.replace("/", "_"), name.replace("/", "")
    value = stored(reader, f"15m:{key}")
    truth = expected_candles(exchange, symbol, "15m", parse_iso_time(value["data_start"]))
    closed = {at: each for at, each in value["candles"].items() if at < value["data_end"]}
    assert closed == {at: truth[at] for at in closed}
    assert "<title>" in asked(port, f"/chart/{key}/15m")
    assert len(asked(port, "/api/candles", symbol=name, format="csv", limit="3").splitlines()) == 4
    assert asked(port, "/api/candles", symbol=symbol, limit="1") != "[]"


def check_terminal(config, count):
    """In UTF-8 columns stand in line; in the C locale nothing stops."""
    in_utf_8 = run_program(f"--config={config}", "--status", PYTHONIOENCODING="utf-8")
    in_c = run_program(f"--config={config}", "--status", timeout=60, **C_LOCALE)
    assert (in_utf_8.returncode, in_c.returncode) == (0, 0), in_c.stdout + in_c.stderr
    rows = [line for line in in_utf_8.stdout.splitlines() if re.search(r"/USDT +\d+ .*%", line)]
    assert len(rows) == count
    assert len({columns(line[: line.index("%")]) for line in rows}) == 1
    assert in_c.stdout.count("/USDT ") >= count
    assert "????/USDT" in in_c.stdout
    shown = run_program(f"--config={config}", "--check-config", timeout=60, **C_LOCALE)
    assert shown.returncode == 0, shown.stderr


def test_such_names_reach_every_reader(redis_url, reader, tmp_path, free_port):
    """REST, streams, Redis, announcements, chart, CSV, metrics and --status have them as they are.

    In the C locale, where a terminal cannot show them, too; nothing stops, and columns stand in line.
    """
    listed = [*NAMES, "BTC/USDT"]
    config = tmp_path / "config.txt"
    with SimulatedBinance(market=Market.random_walk(listed)) as exchange:
        exchange.streams.encodes_names = True
        servers = f"BINANCE_BASE_URL={exchange.url}\nBINANCE_STREAM_URL={exchange.stream_url}\n"
        servers += f"REDIS_ADDR={redis_url}\nHTTP_ADDR=127.0.0.1:{free_port}\nMETRICS_PER_SYMBOL=true\n"
        given = f"PUBLIC_DATA=true\nLIVE=true\nDATA_DAYS=1\n{servers}SYMBOLS={','.join(listed)}\n"
        config.write_text(given, encoding="utf-8")
        with (
            reader.pubsub(ignore_subscribe_messages=True) as channel,
            Running(tmp_path, f"--config={config}", **C_LOCALE) as service,
        ):
            channel.subscribe("tet:updates")
            eventually(lambda: live_feeds(free_port) == len(listed))
            assert json.loads(asked(free_port, "/api/status"))["symbols"] == listed
            symbols = {name.replace("/", "") for name in listed}
            assert {each.params["symbol"] for each in exchange.asked("klines")} == symbols
            assert are_announced(channel)
            for name in NAMES:
                check_candles(exchange, reader, free_port, name)
            pairs = json.loads(asked(free_port, "/api/pairs"))
            assert [row["symbol"] for row in pairs] == listed
            metrics = asked(free_port, "/metrics")
            for name in NAMES:
                assert f'symbol="{name}"' in metrics, metrics[-2000:]
            check_terminal(config, len(listed))
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(10) == 0
            assert "Traceback" not in service.log.read_text()
