"""Another process that reads Redis: when does it have each pair's closed candle?

Started by itself, so that neither the service nor the benchmark shares its time:

    python reader.py PORT AHEAD_MS

It prints a line for each value in which it finds a candle closed that it was told of by ``tet:updates``: how
old the close was by the exchange's clock, in seconds. AHEAD_MS is that clock's lead over the local one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import common  # noqa: F401 (puts the project on the path)
import redis

from tet_core.times import parse_iso_time

END = re.compile(rb'"data_end":"([^"]+)"')


class ClosesReader:
    """That process, and the delays that it has told."""

    def __init__(self, port: int, ahead_ms: int) -> None:
        command = [sys.executable, __file__, str(port), str(ahead_ms)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout  # noqa: S101 (it is a pipe)
        self._process.stdout.readline()  # it has subscribed

    def __enter__(self) -> ClosesReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self, count: int, seconds: float) -> list[float]:
        """The delays of so many closes, ascending; fewer when they do not come in time."""
        timer = time.monotonic() + seconds
        delays: list[float] = []
        assert self._process.stdout  # noqa: S101 (it is a pipe)
        while len(delays) < count:
            line = self._process.stdout.readline()
            if line.strip() != "-":
                delays.append(float(line))
            if time.monotonic() > timer:
                break
        return sorted(delays)


def main() -> None:
    """Read until killed; a line with a dash each second says that it lives."""
    port, ahead_ms = int(sys.argv[1]), int(sys.argv[2])
    with redis.Redis(port=port, db=1) as client, client.pubsub(ignore_subscribe_messages=True) as updates:
        updates.subscribe("tet:updates")
        updates.get_message(timeout=5)
        print("-", flush=True)
        told_at = time.monotonic()
        while True:
            message = updates.get_message(timeout=1.0)
            if time.monotonic() - told_at > 1:
                told_at = time.monotonic()
                print("-", flush=True)
            if not message or not (told := json.loads(message["data"]))["candle_closed"]:
                continue
            key = f"tet:kline:{told['timeframe']}:{told['symbol'].replace('/', '_')}"
            found = END.search(client.getrange(key, -400, -1))
            if found:
                delay_ms = time.time() * 1000 + ahead_ms - parse_iso_time(found[1].decode())
                print(f"{delay_ms / 1000:.4f}", flush=True)


if __name__ == "__main__":
    main()
