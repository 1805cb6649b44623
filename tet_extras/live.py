"""LIVE: what the exchange streams of candles, and what REST has to be asked for all the same."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tet_core.candles import OHLCV, Candles, Fields, newest_of
from tet_core.errors import LOGGER, BadReply, Stopped, say
from tet_core.feeds import Feed, Provenance
from tet_core.freshness import Link
from tet_core.intervals import Interval
from tet_core.klines import OddReply, parse_klines
from tet_core.markets import MARKETS
from tet_core.protocols import Clock
from tet_core.snapshot import ConnectionFigures, FeedsByLink, StreamFigures
from tet_core.times import CLOCK_TOLERANCE_MS, SECOND_MS, Timeframe
from tet_core.watchlist import Watchlist

from .figures import Tally
from .notices import Notices
from .pipelines import Queues
from .workers import Inbox

if TYPE_CHECKING:  # each costs time and memory, which those who do not need it need not pay
    from .messages import Message
    from .streams import Streams

#: What the status says of streams that nobody listens to.
NO_CONNECTIONS = ConnectionFigures(0, 0, 0, 0.0, 0, 0, 0, 0, None, {})
LATE_SECONDS = 2.5  # from one tick to the next: then this process was held up, and judges nobody
DEAD_SHARE = 0.2  # of a bundle's live feeds, missing a close at once: the connection is dead


class Settings(Protocol):
    """The settings that LIVE goes by."""

    @property
    def binance_market(self) -> str:
        """One of `MARKETS`."""

    @property
    def binance_stream_url(self) -> str:
        """The address of the streams."""

    @property
    def live_write_seconds(self) -> float:
        """Between two writes of a forming candle."""

    @property
    def max_data_age(self) -> int:
        """Seconds."""

    @property
    def kept_fields(self) -> Fields:
        """The fields of them that are kept."""


class Writer(Protocol):
    """Who writes feeds to Redis."""

    evicting: bool  # candles leave memory after each update

    def route(self, feed: Feed) -> str:
        """What names the servers that its keys are on."""

    def write_all(self, feeds: Sequence[Feed]) -> None:
        """Write feeds of one route; what fails is the feed's error."""


def parse_stream_row(message: Message, timeframe: Timeframe, last_ms: int, kept: Fields = OHLCV) -> Candles:
    """Check the candle of a stream's message as one of REST: it is made a row of klines.

    Raises BadReply, as well for a candle sent as closed that has not ended before ``last_ms``.
    """
    opens, *values = message.row[: 2 + len(kept.names)]
    closes = values.pop(5)
    if not type(opens) is type(closes) is int or not all(type(each) in (str, int) for each in values):
        raise BadReply("times have to be whole numbers, prices and volumes decimals")
    if any('"' in str(each) for each in values):
        raise BadReply("prices and volumes have to be decimals")
    more = values[5:] or ("0", 0, "0", "0")
    row = '[[{},"{}","{}","{}","{}","{}",{},"{}",{},"{}","{}","0"]]'.format(opens, *values[:5], closes, *more)
    candles = parse_klines(row.encode(errors="replace"), timeframe, 0, last_ms, 1, kept=kept)
    if message.closed and timeframe.close_of(newest_of(candles)) > last_ms:
        raise BadReply("a candle that has not ended is sent as closed")
    return candles


@dataclass(eq=False)
class Followed:
    """A feed whose stream is listened to, and how it is written."""

    feed: Feed
    bundle: int = 0  # that its newest message came by
    write_at_seconds: float = 0.0  # monotonic: a forming candle is not written before
    waits: bool = False  # for that time, with a forming candle
    is_queued: bool = False  # a writer is to write it; the writer clears this


@dataclass(eq=False)
class Writers:
    """Lets threads write what was streamed. The main thread queues; a feed is queued once."""

    settings: Settings
    clock: Clock
    writer: Writer

    def __post_init__(self) -> None:
        self._queues: Queues[Followed] = Queues(self._write)

    def queue(self, followed: Followed) -> None:
        """Let the feed be written as soon as a thread is free, with others that wait for the same server."""
        followed.write_at_seconds = self.clock.monotonic() + self.settings.live_write_seconds
        followed.waits = False
        if not followed.is_queued:
            followed.is_queued = True
            self._queues.add(self.writer.route(followed.feed), followed)

    def pace(self, followed: Followed) -> None:
        """Write a forming candle LIVE_WRITE_SECONDS after the last write, with what came until then."""
        followed.waits = True
        if followed.write_at_seconds <= self.clock.monotonic():
            self.queue(followed)

    def _write(self, batch: Sequence[Followed]) -> None:
        for followed in batch:
            followed.is_queued = False  # first: what is streamed from here on is to be written again
        try:
            self.writer.write_all([followed.feed for followed in batch])
        except Exception:
            logging.getLogger(LOGGER).exception("internal error")

    def stop(self) -> None:
        """Write what is queued, within bounds."""
        self._queues.stop()


@dataclass(eq=False)
class Live:
    """Listens to the exchange's streams, and reports to each feed's `Freshness` what they bring, or do not.

    The main thread owns it; writers write feeds. It does nothing until it is started.
    """

    settings: Settings
    clock: Clock
    inbox: Inbox
    writer: Writer
    interval: Interval
    messages: Tally
    notices: Notices

    def __post_init__(self) -> None:
        self._streams: Streams | None = None
        self._followed: dict[str, Followed] = {}  # by the name of their stream
        self._watched: object = None  # what the watchlist had when they were made
        self._writers = Writers(self.settings, self.clock, self.writer)
        self._unreachable = False
        self._connected = False  # all bundles deliver
        self._tick_seconds = self.clock.monotonic()

    def start(self, watchlist: Watchlist) -> None:
        """Connect to the streams of all feeds."""
        with self._only_live():
            from .streams import Streams

            url, clock, deliver = self.settings.binance_stream_url, self.clock, self.inbox.deliver
            self._market = MARKETS[self.settings.binance_market]
            self._streams = Streams(url, deliver, clock.now_ms, clock.monotonic, self._market.stream_volume)
            self._look_after(self._streams, watchlist)

    def take(self, message: Message) -> None:
        """Let a message change the forming candle, or close it; or nothing, and REST is asked."""
        with self._only_live():
            followed = self._followed.get(message.stream)
            if followed and self._streams:  # else it is a canary's, or of a symbol that has left
                self._take(followed, message)

    def tick(self, watchlist: Watchlist) -> None:
        """Look after the connections, and notice what was not streamed. To be called each second."""
        with self._only_live():
            if self._streams:
                self._look_after(self._streams, watchlist)

    @contextmanager
    def _only_live(self) -> Iterator[None]:
        """Let what nobody has foreseen end LIVE, and not the service, which polls from then on."""
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            failure = f"LIVE has stopped by an internal error ({type(error).__name__}), polling instead"
            logging.getLogger(LOGGER).exception(failure)
            self.notices.hold("live", failure)
            with suppress(Exception):
                self.stop()

    def _take(self, followed: Followed, message: Message) -> None:
        feed, now_ms = followed.feed, self.clock.now_ms()
        if not message.row:  # it names another stream: that counts for neither of them
            self.messages.add("damaged")
            if feed.freshness.link is Link.LIVE:
                self._ask_rest(feed)
            return
        followed.bundle = message.bundle
        if feed.freshness.knows(message.event_ms, message.closed):
            return
        last_ms = now_ms + CLOCK_TOLERANCE_MS
        try:
            if message.event_ms > last_ms:
                raise BadReply("an event from the future")
            candles = parse_stream_row(message, feed.timeframe, last_ms, self.settings.kept_fields)
        except BadReply as error:
            self.messages.add("damaged")
            say(logging.DEBUG, "message damaged", feed=feed.name, reason=str(error))
            if not (isinstance(error, OddReply) and error.rows[0].off_grid):
                self._ask_rest(feed)  # else REST leaves such a row out, too
            return
        if not feed.streamed(candles, message.closed, now_ms):
            self.messages.add("refused")
            self._ask_rest(feed)
            return
        self.messages.add("accepted")
        feed.freshness.streamed(message.event_ms, self.interval.seconds(now_ms), now_ms)
        if message.closed:
            self._writers.queue(followed)
        else:
            self._writers.pace(followed)

    def _ask_rest(self, feed: Feed) -> None:
        """Let REST be asked for what its stream does not say."""
        now_ms = self.clock.now_ms()
        has_candles = feed.provenance is Provenance.CONFIRMED
        feed.freshness.missed(has_candles, self.interval.seconds(now_ms), now_ms)

    # What is not streamed

    def _look_after(self, streams: Streams, watchlist: Watchlist) -> None:
        if self.writer.evicting:
            event = "polling instead of LIVE: what is evicted cannot be followed; raise MEMORY_LIMIT_MB"
            self.notices.note("live", event)
            self.stop()
            return
        if watchlist.feeds is not self._watched:
            self._watch(watchlist)
        before_seconds, self._tick_seconds = self._tick_seconds, self.clock.monotonic()
        was_late = self._tick_seconds - before_seconds > LATE_SECONDS
        for lost in streams.tick(was_late):
            self._lose(lost.streams, lost.reason, lost.was_delivering)
        if streams.are_delivering and not self._connected:
            event = "streams reachable again" if self._unreachable else "streams connected"
            connections = streams.figures().connections
            say(logging.INFO, event, connections=connections, streams=len(self._followed))
            self._connected, self._unreachable = True, False
        if not was_late:  # else what is missing may still be on its way through this process
            self._notice_silence(streams)
        for followed in self._followed.values():
            if followed.waits:
                self._writers.pace(followed)

    def _watch(self, watchlist: Watchlist) -> None:
        """Subscribe to the streams of what is on the watchlist now, and to no others."""
        from .subscriptions import kline_stream

        self._watched, before = watchlist.feeds, self._followed
        names = {kline_stream(feed.pair.symbol, feed.timeframe.name): feed for feed in watchlist}
        self._followed = {
            name: before[name] if name in before and before[name].feed is feed else Followed(feed)
            for name, feed in names.items()
        }
        symbols = [feed.pair.symbol for feed in watchlist]
        symbol = "BTCUSDT" if "BTCUSDT" in symbols or not symbols else symbols[0]
        if self._streams:
            self._streams.keep(self._followed, self._market.canary_of(symbol))

    def _lose(self, streams: Sequence[str], reason: str, was_delivering: bool) -> None:
        """A connection was lost: what it carried is polled, and REST is asked for what is missed."""
        self._connected = False
        if was_delivering:
            say(logging.WARNING, "stream connection lost, reconnecting", streams=len(streams), reason=reason)
        elif not self._unreachable:
            self._unreachable = True
            event = "streams unreachable, polling as without LIVE, will retry"
            remedy = "is BINANCE_STREAM_URL right, and a firewall or proxy (HTTPS_PROXY) in between?"
            say(logging.WARNING, event, reason=reason, remedy=remedy)
        self._poll(self._followed[name] for name in streams if name in self._followed)

    def _poll(self, lost: Iterable[Followed]) -> None:
        now_ms = self.clock.now_ms()
        for followed in lost:
            followed.feed.freshness.lost(self.interval.seconds(now_ms), now_ms)

    def _notice_silence(self, streams: Streams) -> None:
        """Ask REST where a close did not come in time, or nothing for long; many of a bundle: it is dead."""
        now_ms = self.clock.now_ms()
        patience_ms = self._market.close_patience_ms
        quiet_ms = self.settings.max_data_age * SECOND_MS // 2
        missed, live = Counter[int](), Counter[int]()
        for name, followed in self._followed.items():
            feed, freshness = followed.feed, followed.feed.freshness
            live[followed.bundle] += int(freshness.link is Link.LIVE)
            if feed.expects_close and freshness.has_missed_close(feed.next_close_ms, patience_ms, now_ms):
                missed[followed.bundle] += 1
                self._ask_rest(feed)
                streams.missed(followed.bundle, name)
            else:
                freshness.waited(quiet_ms, now_ms)
        for bundle, number in missed.items():
            say(logging.DEBUG, "closes missing, asking REST", bundle=bundle, feeds=number)
            if number >= max(2, live[bundle] * DEAD_SHARE):
                streams.reconnect(bundle, "closes missing")

    def stop(self) -> None:
        """Listen no more; what a writer has been given is written, within bounds."""
        streams, self._streams = self._streams, None
        self._poll(self._followed.values())  # first: whatever fails from here on, REST keeps them fresh
        if streams:
            streams.stop()
        self._writers.stop()

    def figures(self) -> StreamFigures | None:
        """How the streams are, for the status; None where they were not started."""
        if self._watched is None:
            return None
        feeds = [followed.feed for followed in self._followed.values()]
        links = {link: [feed.name for feed in feeds if feed.freshness.link is link] for link in Link}
        live, catching_up, polled = links[Link.LIVE], links[Link.CATCHING_UP], links[Link.POLLED]
        return StreamFigures(
            **vars(self._streams.figures() if self._streams else NO_CONNECTIONS),
            queue=len(self.inbox),
            feeds=FeedsByLink(len(live), len(catching_up), blind=len(polled)),
            blind=polled,
            catching_up=catching_up,
        )
