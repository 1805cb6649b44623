"""What the status says of gaps and proofs; --verify --json."""

from __future__ import annotations

import json

from rig import run_program, started
from samples import HOUR, NOON_MS

import tet_data_service as tet
from tet_core.gaps import HALTED, LISTED_LATER
from tet_core.snapshot import as_json
from tet_core.times import iso_time

STEP = 900_000
FIRST = NOON_MS // STEP * STEP
TF = tet.TIMEFRAMES["15m"]


def test_the_status_tells_gaps_and_proofs(exchange, redis_url, reader):
    """After a restart since the value was written that lacked them; the audit proves the whole window."""
    halt = (NOON_MS - 12 * HOUR * 1000, NOON_MS - 6 * HOUR * 1000)
    exchange.market.symbols["BTCUSDT"].halts.append(halt)
    exchange.market.symbols["ETHUSDT"].listed_ms = FIRST - 10 * STEP
    given = {"SYMBOLS": "BTC/USDT,ETH/USDT,DOGE/USDT", "AUDIT_HOURS": 1, "UPDATE_INTERVAL": 3600}
    with started(exchange, redis_url, **given) as rig:
        rig.refresh()
        written = exchange.clock.now_ms()
    exchange.clock.advance(60)
    with started(exchange, redis_url, **given) as rig:
        rig.refresh()
        status = rig.service.status.snapshot()
        ((of_btc,), (of_eth,)) = status.gaps["BTC/USDT 15m"], status.gaps["ETH/USDT 15m"]
        assert of_btc.candles == 24
        assert (of_btc.reason, of_eth.reason) == (HALTED, LISTED_LATER)
        assert of_btc.known_since == of_eth.known_since == iso_time(written)
        assert (status.gaps_total, set(status.gaps)) == (2, {"BTC/USDT 15m", "ETH/USDT 15m"})
        found = status.proven["DOGE/USDT 15m"]
        assert (found.newest_by, found.window, found.window_by) == ("poll", None, None)
        feeds = rig.feeds
        rig.service.audit.is_due(feeds, 1 << 62)
        for _ in feeds:
            rig.service.audit.step(feeds)
        status = rig.service.status.snapshot()
        found = status.proven["DOGE/USDT 15m"]
        assert (found.window_by, found.newest_by) == ("audit", "audit")
        assert found.window == status.oldest_window_proof
        rig.service.write_status()
        done = run_program("--status", f"--redis={redis_url}", "--max-age=86400", "--symbols=*/*")
        assert f"24 candles, known since {iso_time(written)}" in " ".join(done.stdout.split())
        done = run_program("--status", "--json", f"--redis={redis_url}", "--max-age=86400", "--symbols=*/*")
        assert json.loads(done.stdout)["status"]["gaps"]["BTC/USDT 15m"] == [as_json(of_btc)]


def test_verify_as_json(exchange, redis_url, reader):
    """What differs with both candles, what is skipped; JSON whatever happens, and the exit code."""
    arguments = ["--public", "--verify", "--json", f"--base-url={exchange.url}", f"--redis={redis_url}"]
    arguments += ("--days=2", "--symbols=BTC/USDT,ETH/USDT,NO/USDT", "--requests-per-sec=100")
    with started(exchange, redis_url, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.refresh()
    done = run_program(*arguments)
    found = json.loads(done.stdout)
    assert (done.returncode, found["well"], done.stderr) == (0, True, "")
    assert found["values"]["BTC/USDT 15m"] == {
        "candles": 191,
        "problem": None,
        "failure": None,
        "differs": [],
    }
    assert list(found["skipped"]) == ["NO/USDT"]
    wrong_ms = FIRST - 5 * STEP
    exchange.market.correct("BTCUSDT", "15m", wrong_ms, "1.5")
    done = run_program(*arguments)
    (differing,) = json.loads(done.stdout)["values"]["BTC/USDT 15m"]["differs"]
    assert (done.returncode, differing["open"]) == (1, iso_time(wrong_ms))
    assert differing["binance"]["close"] == "1.5" != differing["redis"]["close"]
    done = run_program(*arguments, "--redis=127.0.0.1:1")
    assert (done.returncode, json.loads(done.stdout)["well"]) == (1, False)
