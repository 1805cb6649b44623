"""What a stream connection asks for: SUBSCRIBE messages, their answers, and streams that never speak.

An acknowledgement proves nothing: a message that is too long, or a name that the exchange does not like, is
acknowledged or ignored, and its streams stay silent without a word. So what was subscribed to and has not
spoken, while others of its connection do, is subscribed to again, in smaller and smaller messages, in the
end one by one, so that no name can spoil another's chance. That costs nothing but the message. A message
without an answer, and one that is refused, is sent again in two halves.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from tet_core.errors import say, some_of

SUBSCRIBE_BYTES = 4000  # from 4,096 on a SUBSCRIBE is not answered (binance-connector-rust#27)
ANSWER_SECONDS = 5.0  # then a message counts as ignored
#: By which parts of those that never spoke are subscribed to again: a quarter of them at once, and so on.
AGAIN_PARTS = (4, 16, 1000)
FIRST_AGAIN_SECONDS, MAX_AGAIN_SECONDS = 15.0, 600.0


def kline_stream(symbol: str, interval: str) -> str:
    """The name of a stream: BTCUSDT and 15m are ``btcusdt@kline_15m``."""
    return f"{symbol.lower()}@kline_{interval}"


def message_bytes(method: str, streams: list[str], number: int) -> bytes:
    """A message as it is sent: UTF-8, in which a name that is not ASCII has no escapes."""
    message = {"method": method, "params": streams, "id": number}
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


class Subscriptions:
    """What one connection has still to ask for, and which of its streams have not spoken yet.

    Any thread may add; the connection's own does all else. Seconds are monotonic.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, tuple[str, ...]]] = deque()  # method, and streams of one message
        self._sent: dict[int, tuple[str, tuple[str, ...]]] = {}  # by id: what was not answered yet
        self._sent_seconds: dict[int, float] = {}  # and since when
        self._silent: dict[str, None] = {}
        self._number = 0
        self._rounds = 0  # of asking again
        self._again_at_seconds: float | None = None
        self._was_refused = False
        self.again = 0  # streams that were subscribed to again
        self.refused: set[str] = set()  # streams that the exchange refuses with an error, each alone

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def silent(self) -> tuple[str, ...]:
        """The streams that were subscribed to and have not spoken."""
        with self._lock:
            return tuple(self._silent)

    def add(self, method: str, streams: Iterable[str], parts: int = 1) -> None:
        """Send that soon, in at least so many ``parts`` if there are as many streams."""
        with self._lock:
            names = list(streams)
            for name in names:
                self._silent.pop(name, None)
                if method == "SUBSCRIBE":
                    self._silent[name] = None
            most = max(1, -(-len(names) // parts))
            self._waiting.extend((method, part) for part in _parts(method, names, most))

    def next(self, now_seconds: float) -> str:
        """The next message. There must be one."""
        with self._lock:
            self._number += 1
            method, streams = self._sent[self._number] = self._waiting.popleft()
            self._sent_seconds[self._number] = now_seconds
            return message_bytes(method, list(streams), self._number).decode()

    def heard(self, stream: str) -> None:
        """A stream has spoken."""
        if stream in self._silent:
            with self._lock:
                self._silent.pop(stream, None)

    def missed(self, stream: str) -> None:
        """A stream has left something out: it counts as one that has not spoken."""
        with self._lock:
            self._silent[stream] = None

    def answered(self, answer: Mapping[str, Any]) -> None:
        """A message was answered; where the exchange refuses it, its streams are asked for in two halves."""
        number = answer.get("id")
        number = number if isinstance(number, int) else -1  # an id of ours, else nothing that was sent
        sent, _ = self._sent.pop(number, None), self._sent_seconds.pop(number, None)
        if "error" not in answer and "code" not in answer:
            return
        method, streams = sent or ("", ())
        if not self._was_refused:
            self._was_refused = True
            error = answer.get("error", answer)
            reason = str(error.get("msg", "") if isinstance(error, dict) else error)
            reason = reason[:160].encode("ascii", "replace").decode()
            event = "streams refused by binance, asking for fewer at once"
            say(logging.WARNING, event, streams=len(streams), reason=reason)
        if len(streams) == 1:
            self.refused |= set(streams) if method == "SUBSCRIBE" else set()
        elif streams:
            self.add(method, streams, 2)

    def ask_again(self, now_seconds: float) -> None:
        """Subscribe again to what has not spoken, when it is time. To be called once others do speak."""
        self._split_what_was_ignored(now_seconds)
        if self._again_at_seconds is None:
            self._again_at_seconds = now_seconds + FIRST_AGAIN_SECONDS
        if self._waiting or now_seconds < self._again_at_seconds:
            return
        if not (silent := self.silent):
            self._rounds, self._again_at_seconds = 0, now_seconds + FIRST_AGAIN_SECONDS
            return
        parts = AGAIN_PARTS[min(self._rounds, len(AGAIN_PARTS) - 1)]
        if self._rounds == len(AGAIN_PARTS):
            event = "streams that never spoke are polled, subscribing again to each"
            say(logging.INFO, event, count=len(silent), streams=some_of(silent))
        self._rounds += 1
        self.again += len(silent)
        self.add("SUBSCRIBE", silent, parts)
        wait_seconds = min(MAX_AGAIN_SECONDS, FIRST_AGAIN_SECONDS * 2.0 ** min(self._rounds, 10))
        self._again_at_seconds = now_seconds + wait_seconds

    def _split_what_was_ignored(self, now_seconds: float) -> None:
        """Send again, in two halves, what had no answer; but for the streams that speak all the same."""
        for number, sent_seconds in list(self._sent_seconds.items()):
            if now_seconds - sent_seconds > ANSWER_SECONDS:
                del self._sent_seconds[number]
                method, streams = self._sent.pop(number)
                silent = [stream for stream in streams if stream in self._silent]
                if method == "SUBSCRIBE" and len(streams) > 1 and silent:
                    self.again += len(silent)
                    self.add(method, silent, 2)


def _parts(method: str, names: Iterable[str], most: int) -> list[tuple[str, ...]]:
    """The names in as few messages as their size allows, counted in bytes as they are sent."""
    empty = len(message_bytes(method, [], 10**9))
    parts: list[list[str]] = []
    size = 0
    for name in names:
        more = len(message_bytes("", [name], 0)) - len(message_bytes("", [], 0)) + 1  # and a comma
        if not parts or len(parts[-1]) >= most or size + more > SUBSCRIBE_BYTES:
            parts.append([])
            size = empty
        parts[-1].append(name)
        size += more
    return [tuple(part) for part in parts]
