"""Feeds and their states, and the watchlist."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import NOON_MS

from tet_core.candles import Answer, Candles, entry_volume, make_candles
from tet_core.errors import StoreError, SymbolError, TransientError
from tet_core.feeds import Feed, Page, Provenance
from tet_core.pairs import Listing, Pair, expand_symbols
from tet_core.series import Series, absorb
from tet_core.stored import make_image
from tet_core.times import TIMEFRAMES, Timeframe, iso_time
from tet_core.watchlist import Watchlist

TF = TIMEFRAMES["15m"]
STEP = TF.step_ms
START = TF.floor(NOON_MS)


def series_of(volume="1", count=3):
    """A series of so many candles of that volume."""
    opens = [START + n * STEP for n in range(count)]
    ohlcv = [["1"] * count] * 4 + [[volume] * count]
    return Series(TF).merge(make_candles(opens, map(iso_time, opens), ohlcv), False, 100)


def page_of(volume="1", up_to_date=True, exhausted_ms=0, asked_ms=0):
    """A page that a fetch has come to."""
    series = series_of(volume)
    candles = {open_ms: series.entry(place) for place, open_ms in enumerate(series.opens)}
    return Page(Answer(candles, asked_ms), series, exhausted_ms, up_to_date)


def fetch(feed, page, before=None):
    """Let a feed have fetched a page, by a fetch that began with what it had, or with that series."""
    feed.fetched(page, page.answer.candles, before or feed.series, NOON_MS)


def new_feed(pair=("BTC", "USDT"), **given):
    """A feed as the watchlist makes it."""
    return Feed(Pair(*pair), TF, 100, **given)


def image_of(volume="1"):
    """How that series is stored."""
    return make_image(series_of(volume), 100, NOON_MS, False)


def stored_at(written_ms):
    """What Redis had, written then."""
    return image_of()._replace(completeness=0.5, dated_ms=written_ms)


@pytest.fixture
def feed():
    """A feed whose candles are in memory and in Redis."""
    feed = new_feed()
    feed.restored(None)
    fetch(feed, page_of())
    feed.written(make_image(feed.series, 100, NOON_MS, False), NOON_MS)
    return feed


# States


def test_a_value_that_is_not_as_we_write_it_is_restored_and_next_written_whole():
    """Its candles count; a patch would not fit it. One from the future was updated now."""
    feed = new_feed()
    feed.restored(stored_at(NOON_MS + 5_000)._replace(is_ours=False))
    assert (feed.series, feed.image, feed.updated_ms) == (series_of(), None, NOON_MS)


def test_what_redis_has_is_restored_and_not_confirmed():
    """Its candles and times are taken over; the exchange has still to repeat them."""
    feed = new_feed()
    feed.restored(stored_at(1_000))
    assert (feed.provenance, feed.image) == (Provenance.RESTORED, stored_at(1_000))
    assert feed.completeness == 0.5
    assert (feed.fetched_ms, feed.updated_ms) == (1_000, 1_000)
    assert feed.stored_end_ms == START + 2 * STEP


def test_where_redis_has_nothing_a_backfill_is_due():
    """The feed knows that it has asked."""
    feed = new_feed()
    feed.restored(None)
    assert (feed.provenance, feed.series) == (Provenance.NOTHING, None)


def test_a_page_of_many_is_kept_aside():
    """Only the complete series may be stored; the next fetch goes on from the partial one."""
    feed = new_feed()
    feed.restored(None)
    fetch(feed, page_of(up_to_date=False, exhausted_ms=7))
    assert (feed.provenance, feed.series, feed.exhausted_ms) == (Provenance.NOTHING, None, 7)
    assert feed.partial
    assert feed.fetched_ms == 0
    fetch(feed, page_of(asked_ms=START + 3 * STEP))
    assert feed.partial is None
    assert (len(feed.series), feed.lagging, feed.fetched_ms) == (3, True, NOON_MS)
    assert feed.provenance is Provenance.CONFIRMED


def test_what_was_written_is_known(feed):
    """Readers know its end, and its age counts from the fetch."""
    assert (feed.image, feed.buffered, feed.completeness) == (image_of(), False, 0.03)
    assert (feed.updated_ms, feed.stored_end_ms) == (NOON_MS, START + 2 * STEP)


def test_what_was_not_written_is_buffered_until_it_is(feed):
    """Whatever is fetched meanwhile; and it is written whole, for who knows what Redis has."""
    feed.not_written()
    fetch(feed, page_of())
    assert (feed.buffered, feed.image) == (True, None)
    feed.written(image_of(), NOON_MS)
    assert not feed.buffered


def test_without_candles_there_is_nothing_to_buffer():
    """A feed that was never fetched is not flushed."""
    feed = new_feed()
    feed.not_written()
    assert not feed.buffered


def test_a_newer_value_takes_the_place_of_what_is_buffered(feed):
    """Another instance has written it; the exchange has still to repeat it here."""
    feed.not_written()
    feed.restored(stored_at(NOON_MS - 5))
    assert (feed.buffered, feed.provenance, feed.updated_ms) == (False, Provenance.RESTORED, NOON_MS - 5)


def test_what_was_evicted_is_read_back(feed):
    """The next update asks Redis."""
    feed.evicted()
    assert (feed.provenance, feed.series, feed.image) == (Provenance.UNREAD, None, None)


def test_an_error_is_told_by_its_text(feed):
    """And is gone after a good update."""
    feed.tried(StoreError("Redis is full"), 5)
    assert (feed.failure, feed.tried_ms) == ("Redis is full", 5)
    feed.tried(None, 6)
    assert (feed.failure, feed.tried_ms) == ("", 6)


def candle_of(number, volume):
    """One candle, by number."""
    open_ms = START + number * STEP
    return make_candles([open_ms], [iso_time(open_ms)], [["1"]] * 4 + [[volume]])


def volumes_of(series):
    """The volumes of a series."""
    return [entry_volume(series.entry(place)) for place in range(len(series))]


def test_what_a_stream_told_during_a_fetch_stays(feed):
    """The page is laid over it: what it has of older candles counts, what it has of newer ones is older."""
    before = feed.series
    assert feed.streamed(candle_of(2, "5"), True, NOON_MS + 5)
    assert feed.streamed(candle_of(3, "7"), False, NOON_MS + 9)
    fetch(feed, page_of("3"), before)
    assert volumes_of(feed.series) == [3, 3, 5, 7]
    assert (feed.fetched_ms, feed.by_stream) == (NOON_MS + 9, True)


def test_a_stream_counts_only_when_the_exchange_has_confirmed_what_is_held():
    """Candles read back from Redis may be another market's."""
    feed = new_feed()
    assert not feed.streamed(candle_of(2, "5"), False, NOON_MS)
    feed.restored(stored_at(1_000))
    assert not feed.streamed(candle_of(2, "5"), False, NOON_MS)
    fetch(feed, page_of())
    assert feed.streamed(candle_of(2, "5"), False, NOON_MS)
    assert feed.next_close_ms == START + 3 * STEP
    assert feed.streamed(candle_of(2, "5"), True, NOON_MS)
    assert feed.next_close_ms == START + 4 * STEP


def confirmed_feed(*volumes):
    """A feed whose candles, with these volumes, the exchange has confirmed; the newest one is forming."""
    feed = new_feed()
    candles: Candles = {}
    for number, volume in enumerate(volumes):
        candles |= candle_of(number, volume)
    series = Series(TF).merge(candles, False, 100)
    feed.fetched(Page(Answer(candles, NOON_MS), series, 0, True), candles, None, NOON_MS)
    return feed


def page_over(held, candles, up_to_date, asked_ms=START):
    """The page that a fetch makes of what is held and a reply."""
    series = absorb(held, candles, asked_ms, 100)
    return Page(Answer(candles, asked_ms), series, 0, up_to_date)


def test_what_several_pages_bring_beside_a_stream_has_no_hole():
    """The stream closes a candle between two pages: all that both have brought is laid over it."""
    feed = confirmed_feed("9", "2")
    before = feed.series
    first = candle_of(1, "5") | candle_of(2, "5") | candle_of(3, "5")
    page = page_over(before, first, up_to_date=False)
    feed.fetched(page, first, before, NOON_MS)
    assert feed.streamed(candle_of(1, "5"), True, NOON_MS)
    second = candle_of(4, "5") | candle_of(5, "1")
    page = page_over(page.series, second, up_to_date=True)
    feed.fetched(page, first | second, before, NOON_MS)
    assert volumes_of(feed.series) == [9, 5, 5, 5, 5, 1]


def test_what_a_fetch_left_half_done_does_not_undo_what_was_streamed():
    """Its second page failed; the next fetch begins with what was streamed since."""
    feed = confirmed_feed("9", "2")
    page = page_over(feed.series, candle_of(1, "5") | candle_of(2, "5"), up_to_date=False)
    feed.fetched(page, page.answer.candles, feed.series, NOON_MS)
    assert feed.partial
    assert feed.streamed(candle_of(1, "5"), True, NOON_MS)
    assert feed.streamed(candle_of(2, "5"), True, NOON_MS)
    assert feed.partial is None


def test_a_fetch_does_not_bring_back_what_was_disputed():
    """Redis has other candles, as a writer saw while a worker was on its way: all is fetched anew."""
    feed = confirmed_feed("9", "2")
    before = feed.series
    feed.disputed()
    sent = candle_of(1, "3")
    feed.fetched(page_over(before, sent, up_to_date=True), sent, before, NOON_MS)
    assert (feed.series, feed.provenance) == (None, Provenance.NOTHING)


EVENTS = st.lists(
    st.sampled_from(["page", "same", "changed", "written", "not written", "evicted", "restored", "none"])
)


@given(EVENTS)
def test_no_history_leads_to_a_state_that_cannot_be(events):
    """The states fit each other after whatever may happen to a feed, in whatever order."""
    feed = new_feed()
    for event in events:
        before = feed.series
        match event:
            case "page":
                fetch(feed, page_of("3", up_to_date=False))
                assert feed.series is before
            case "same" | "changed":
                fetch(feed, page_of("1" if event == "same" else "2"))
                assert feed.partial is None
            case "written" if feed.series:
                feed.written(make_image(feed.series, 100, NOON_MS, False), NOON_MS)
            case "not written":
                feed.not_written()
            case "evicted":
                has_it = feed.image is not None and feed.image.series is before
                feed.evicted()
                assert feed.series is (None if has_it else before)
            case "restored" | "none" if feed.provenance is Provenance.UNREAD:
                feed.restored(stored_at(1) if event == "restored" else None)
        assert feed.series is None or feed.provenance is not Provenance.UNREAD
        assert feed.series or not (feed.buffered or feed.image)
        assert not (feed.buffered and feed.image)


# The watchlist


@dataclass(frozen=True)
class Wanted:
    """Settings of the watchlist."""

    symbols: tuple[str, ...] = ("BTC/USDT", "ETH/USDT")
    timeframe: tuple[Timeframe, ...] = (TF,)
    has_wildcards: bool = False
    max_symbols: int = 1000
    takes_part: bool = False
    data_days: int = 2


def listings(*names, status="TRADING"):
    """What exchangeInfo says of these."""
    return {f"{base}USDT": Listing(f"{base}USDT", status, base, "USDT") for base in names}


def of_two(there):
    """What the exchange has, and which of it two configured symbols mean."""
    return there, expand_symbols(["BTC/USDT", "ETH/USDT"], there, {}, 1000)


def test_a_feed_that_stays_keeps_its_candles():
    """Only what stopped trading goes, with the reason; what returns is new."""
    watchlist = Watchlist(Wanted())
    watchlist.update(*of_two(listings("BTC", "ETH")))
    btc = next(iter(watchlist))
    assert btc.wanted == TF.candles_in_days(Wanted.data_days) == 192
    watchlist.update(*of_two(listings("BTC") | listings("ETH", status="BREAK")))
    assert list(watchlist) == [btc]
    assert watchlist.invalid == {"ETH/USDT": "not trading: trading is suspended (BREAK)"}
    watchlist.update(*of_two(listings("BTC", "ETH")))
    assert len(watchlist) == 2
    assert watchlist.invalid == {}


def test_a_symbol_called_unknown_is_dropped_in_all_timeframes():
    """Other failures are not: they may pass."""
    watchlist = Watchlist(Wanted(("BTCUSDT", "ETH/USDT"), (TF, TIMEFRAMES["1h"])))
    watchlist.update(*of_two(listings("BTC", "ETH")))
    btc, eth = list(watchlist)[:2]
    btc.tried(SymbolError("unknown to Binance"), 1)
    eth.tried(TransientError("no answer"), 1)
    watchlist.drop_unknown()
    assert {feed.pair.name for feed in watchlist} == {"ETH/USDT"}
    assert watchlist.invalid == {"BTCUSDT": "unknown to Binance"}, "as it was configured"
