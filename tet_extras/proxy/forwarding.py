"""Asking the exchange on behalf of bots: shared, bounded, and through the gate that every request passes."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple, Protocol

import anyio
import anyio.to_thread

from tet_core.errors import PauseError, Stopped, TetError
from tet_core.times import MINUTE_MS, SECOND_MS
from tet_extras.web.answers import JSON, Content

from .kept import Kept
from .paths import Asked, Refusal

SHARED_SECONDS = 1.0  # so long an answer is given to all who ask the same
LISTING_SECONDS = 5.0  # exchangeInfo, which is large, and weighs much
REFUSED_SECONDS = 60.0  # the same for what the exchange refuses, such as unknown symbols
FIELDS = 12  # of a kline
AMOUNTS = (5, 7, 8, 9, 10)  # of its fields: volumes, and the number of trades
KEPT_ANSWERS = 2000
KEPT_BYTES = 16_000_000  # questions and answers; what is compressed of these comes on top, at most as much
AT_ONCE = 4  # requests under way: they share the rate with the window's own, which they may not crowd out
MOST_WAITING = 64
WAIT_SECONDS = 15.0  # that a bot is kept waiting
GATE_SHARE = 0.8  # of the exchange's limit, by whomever it is used: the rest is the window's alone


class Reply(Protocol):
    """A reply of the exchange."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def body(self) -> bytes:
        """The body, not compressed."""


class Gate(Protocol):
    """What the gate says of itself."""

    weight_limit: int
    pause_reason: str

    def pause_left_seconds(self) -> float:
        """How long nothing may be sent."""

    def used_weight(self) -> int:
        """The weight used in this minute."""


class Exchange(NamedTuple):
    """What the service has of the exchange.

    ``ask`` sends one request through the gate, by path, parameters and weight, from any thread, and gives
    the reply whatever it says: it raises PauseError, another TetError, or Stopped. ``now_ms`` is its time.
    """

    prefix: str
    gate: Gate
    ask: Callable[[str, Mapping[str, object], int], Reply]
    now_ms: Callable[[], int]


class Answer(NamedTuple):
    """What is answered, and until when (monotonic) it is to whoever asks the same."""

    status: int
    content: Content
    until_seconds: float


def are_candles(body: bytes) -> bool:
    """Whether a reply has candles, each with all fields and possible prices, oldest first, none twice."""
    try:
        rows = json.loads(body)
        opens = [row[0] for row in rows]
        prices = [[float(text) for text in row[1:5]] for row in rows]
        amounts = [float(row[column]) for row in rows for column in AMOUNTS]
    except (ValueError, TypeError, LookupError):
        return False
    return (
        all(len(row) == FIELDS for row in rows)
        and all(earlier < later for earlier, later in pairwise(opens))
        and all(0 <= amount < math.inf for amount in amounts)
        and all(0 < low <= first <= high and low <= last <= high for first, high, low, last in prices)
    )


class Forwarder:
    """Asks the exchange what the window does not hold, once for all who ask the same. All on the event loop.

    ``share`` of the exchange's limit of weight per minute is what bots may use together.
    """

    def __init__(self, exchange: Exchange, share: float) -> None:
        self._exchange = exchange
        self._share = share
        self._kept: Kept[Asked, Answer] = Kept(KEPT_ANSWERS, KEPT_BYTES)
        self._under_way: dict[Asked, asyncio.Task[Answer]] = {}
        self._at_once = anyio.CapacityLimiter(AT_ONCE)
        self._minute, self._spent = 0, 0

    async def answer(self, asked: Asked) -> Answer:
        """The exchange's answer, as old as it may be. Raises Refusal."""
        kept = self._kept.get(asked)
        if kept and kept.until_seconds > time.monotonic():
            return kept
        task = self._under_way.get(asked)
        if task is None:
            self._spend(asked.weight)
            task = asyncio.create_task(self._ask(asked))
            self._under_way[asked] = task
            task.add_done_callback(lambda done: self._ended(asked, done))
        try:
            return await asyncio.wait_for(asyncio.shield(task), WAIT_SECONDS)
        except TimeoutError:
            raise Refusal(503, -1007, "Timeout waiting for response from backend server.", 1) from None

    def _ended(self, asked: Asked, done: asyncio.Task[Answer]) -> None:
        del self._under_way[asked]
        if not done.cancelled():
            done.exception()  # raised for those who waited, if any is left

    def _spend(self, weight: int) -> None:
        """Count a request, if bots may send one now. Raises Refusal with 429."""
        gate, now_ms = self._exchange.gate, self._exchange.now_ms()
        self._refuse_while_paused()
        if len(self._under_way) >= MOST_WAITING:
            raise Refusal(429, -1003, "Too many requests wait for the exchange.", 1)
        if now_ms // MINUTE_MS != self._minute:
            self._minute, self._spent = now_ms // MINUTE_MS, 0
        limit = gate.weight_limit
        if self._spent + weight > limit * self._share or gate.used_weight() + weight > limit * GATE_SHARE:
            left = math.ceil((MINUTE_MS - now_ms % MINUTE_MS) / SECOND_MS) + 1
            raise Refusal(429, -1003, "Too much request weight used by bots: PROXY_WEIGHT_SHARE.", left)
        self._spent += weight

    def _refuse_while_paused(self) -> None:
        gate = self._exchange.gate
        if (left := gate.pause_left_seconds()) > 0:
            words = f"Nothing is sent to the exchange for now: {gate.pause_reason or 'it asked for a pause'}."
            raise Refusal(429, -1003, words, math.ceil(left))

    async def _ask(self, asked: Asked) -> Answer:
        arguments = (asked.path, dict(asked.params), asked.weight)
        try:
            reply = await anyio.to_thread.run_sync(self._exchange.ask, *arguments, limiter=self._at_once)
        except PauseError:
            self._refuse_while_paused()
            raise Refusal(429, -1003, "Too many requests.", 1) from None
        except (TetError, Stopped) as error:
            raise Refusal(503, -1001, f"Internal error; the exchange does not answer: {error}", 1) from None
        if reply.body.lstrip()[:1] not in (b"{", b"["):
            raise Refusal(503, -1001, f"Internal error; HTTP {reply.status} came with no JSON.", 1)
        if reply.status == 200 and asked.path.endswith("/klines") and not are_candles(reply.body):
            raise Refusal(503, -1001, "Internal error; what came are no candles.", 1)
        answer = Answer(reply.status, Content(JSON, bytes(reply.body)), self._until(asked, reply.status))
        self._keep(asked, answer)
        return answer

    @staticmethod
    def _until(asked: Asked, status: int) -> float:
        seconds = LISTING_SECONDS if asked.path.endswith("/exchangeInfo") else SHARED_SECONDS
        return time.monotonic() + (seconds if status == 200 else REFUSED_SECONDS)

    def _keep(self, asked: Asked, answer: Answer) -> None:
        """Keep an answer, and drop those whose time is over."""
        now = time.monotonic()
        self._kept.drop_if(lambda kept: kept.until_seconds <= now)
        self._kept.put(asked, answer, len(asked.query) + len(answer.content.body))
