# ruff: noqa: F811 (a fixture is imported, and then an argument)
"""What the page says of each state of the service, at every width: headless Chromium at a real service."""

from __future__ import annotations

import json
import logging
import re
from types import SimpleNamespace
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from browser import (  # noqa: F401 (fixtures)
    CHROMIUM,
    browse,
    chromium,
    later,
    plain,
    playwright,
    served,
    serving,
)
from rig import Running, eventually, settings, started, unused_port

import tet_data_service as tet
from tet_core.snapshot import FeedsByLink, StreamFigures
from tet_extras.live import NO_CONNECTIONS
from tet_extras.simulated_binance import DEFAULT_PAIRS, FAMILIAR_PRICES, Market
from tet_extras.web.events import KEPT

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]

WIDTHS = (320, 360, 390, 480, 600, 720, 721, 768, 800, 844, 900, 960, 1024, 1120, 1280, 1440, 1920)
#: Figures that are cut, and whether the page or the table sticks out.
CUT = """() => {
    const figures = "#pairs td:not(.spark, .state), .facts dd, .counts button, .readout dd, .quote span";
    const isSeen = e => e.offsetParent && e.clientWidth && getComputedStyle(e).display !== "inline";
    const seen = [...document.querySelectorAll(figures)].filter(isSeen);
    const cut = seen.filter(e => e.scrollWidth > e.clientWidth);
    const found = cut.map(e => `${e.className || e.id || e.dataset.of}: ${e.textContent}`);
    const room = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > room) found.push("the page");
    for (const e of document.querySelectorAll("#pairs, .readout, .tools"))
        if (e.offsetParent && e.getBoundingClientRect().right > room + 1) found.push(e.id || e.className);
    return found;
}"""


def texts(tab, selector):
    """What is written in each of them."""
    return tab.page.locator(selector).all_inner_texts()


def test_no_figure_is_cut_at_any_width(exchange, redis_url, browse):
    """Prices from a hundred thousand down to a millionth, and a changed width: columns go, figures stay."""
    exchange.market = Market.random_walk(["BTC/USDT", "BIG/IDR", "SMALL/BTC", "ETH/USDT", "1000SATS/USDT"])
    listing = exchange.market.symbols["BIGIDR"]
    now_ms = exchange.clock.now_ms()
    open_ms = now_ms - now_ms % 900_000
    listing.overrides[("15m", open_ms)] = [
        "1767891234.57",
        "1767891234.57",
        "1667891234.5",
        "1767891234.57",
        "9",
    ]
    with serving(exchange, redis_url, ",".join(["BTC/USDT", "BIG/IDR", "SMALL/BTC", "ETH/USDT"])) as rig:
        tab = browse(rig).open()
        assert tab.text(tab.cell("BIG/IDR", "price")) == "1,767,891,234.57"
        for path in ("/", "/chart/BIG_IDR/15m"):
            tab.open(path)
            for width in WIDTHS:
                tab.page.set_viewport_size({"width": width, "height": 800})
                tab.page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
                assert tab.page.evaluate(CUT) == [], (path, width)


def test_wide_screens_show_the_day(served, browse, exchange):
    """High, low and volume of 24 hours, of the exchange's own candles; a narrower one leaves them out."""
    tab = browse(served, viewport={"width": 1920, "height": 900}).open()
    rows = exchange.klines("BTCUSDT", "15m", limit=96)
    shown = [tab.text(tab.cell("BTC/USDT", name)).replace(",", "") for name in ("high", "low")]
    assert [float(text) for text in shown] == [max(float(r[2]) for r in rows), min(float(r[3]) for r in rows)]
    volume = sum(float(r[5]) * sum(map(float, r[1:5])) / 4 for r in rows)
    assert tab.text(tab.cell("BTC/USDT", "volume")) == f"{volume / 1e9:.2f}B"
    assert tab.text("th.c-spark") == "Course of 2 d"
    tab.page.set_viewport_size({"width": 1024, "height": 800})
    playwright.expect(tab.page.locator("th.c-high")).to_be_hidden()


def test_a_window_of_a_day_has_one_column_for_it(exchange, redis_url, browse):
    """Two of the same heading say the same; what is typed there and chosen is seen whole on a phone."""
    with serving(exchange, redis_url, DATA_DAYS=1) as rig:
        tab = browse(rig).open()
        assert texts(tab, "#pairs th:visible").count("24 h") == 1
        playwright.expect(tab.page.locator("th.c-complete")).to_be_visible()
        tab.page.set_viewport_size({"width": 390, "height": 800})
        select = tab.page.locator(".sort-by select")
        assert select.evaluate("each => each.scrollWidth <= each.clientWidth")


def test_decimals_stay(exchange, redis_url, browse):
    """A price that ends in a nought keeps it: all prices of a pair have as many decimals."""
    now_ms = exchange.clock.now_ms()
    open_ms = now_ms - now_ms % 900_000
    overrides = exchange.market.symbols["ETHUSDT"].overrides
    overrides[("15m", open_ms)] = ["3433.14", "3433.2", "3432", "3432.9", "5"]
    with serving(exchange, redis_url) as rig:
        tab = browse(rig).open()
        assert tab.text(tab.cell("ETH/USDT", "price")) == "3,432.90"
        tab.open("/chart/ETH_USDT/15m")
        tab.shows("#chart-price", "3,432.90")
        tab.shows("#readout [data-of=low]", "3,432.00")


def test_the_first_fill_is_no_outage(exchange, redis_url, browse):
    """Amber, how far it is and how long it takes; not ready for that reason, and nothing is called old."""
    address = f"127.0.0.1:{unused_port()}"
    with started(exchange, redis_url, HTTP_ADDR=address, SYMBOLS="BTC/USDT,ETH/USDT,DOGE/USDT") as rig:
        for feed in rig.feeds[:2]:
            rig.service.updates.update(feed)
            exchange.clock.advance(4)
            rig.binance.sync_clock()
        tab = browse(rig).open()
        tab.shows("#verdict", "Filling")
        tab.shows("#detail", re.compile(r"^2 of 3, some \d+0 s left$"))
        assert tab.page.locator("#health").get_attribute("data-state") == "caution"
        assert tab.text("#problems") == ""
        tab.shows(tab.cell("DOGE/USDT", "state"), "filling")
        health = rig.service.status.health()
        assert not health.ready
        assert re.fullmatch(r"filling, 2 of 3, some \d+0 s left", health.reasons[0])
        tab.page.locator("#filter").fill("filling")
        assert tab.symbols() == ["DOGE/USDT"]
        rig.refresh()
        tab.shows("#verdict", "Healthy")
        tab.page.close()  # before the service, whose end it would call an error


def test_what_cannot_be_fetched_is_not_being_filled(exchange, redis_url, browse):
    """A pair whose first fetch failed is named, with the reason."""
    exchange.faults.add("500", times=999, match=lambda params: params.get("symbol") == "ETHUSDT")
    address = f"127.0.0.1:{unused_port()}"
    with started(exchange, redis_url, HTTP_ADDR=address, SYMBOLS="BTC/USDT,ETH/USDT") as rig:
        rig.binance.attempts = 1
        rig.refresh()
        tab = browse(rig).open()
        tab.shows("#verdict", "Not healthy")
        tab.shows("#problems", "never fetched: 1 of 2 (ETH/USDT 15m)")
        tab.shows(tab.cell("ETH/USDT", "state"), "missing")
        tab.page.close()


def test_the_cause_stands_before_what_follows(served, browse):
    """Redis is away, for long: one sentence with the remedy, and what follows from it, each once."""
    tab = browse(served).open()
    reason = str(served.store._unreachable("", OSError("connection refused")))
    served.redis_is_away(600)
    served.store.outages._away[""] = served.store.outages._away[""]._replace(reason=reason)
    later(served, 30)
    tab.shows("#verdict", "Not healthy")
    tab.shows("#problems", "3 updates wait in memory")
    tab.shows("#problems", "older than 540 s: 3 of 3")
    assert len(texts(tab, "#problems li")) == 1
    told = tab.text("#problems")
    assert told.startswith("Redis at")
    assert told.count("does not answer") == 1
    assert "does not answer" not in tab.text("#pairs"), "the line above says so"
    dimmed = tab.page.locator(tab.cell("BTC/USDT", "price"))
    assert float(dimmed.evaluate("cell => getComputedStyle(cell).opacity")) < 0.7


def test_the_filter_finds_what_one_sees(served, browse, exchange):
    """States and reasons, as they stand in the row."""
    tab = browse(served).open()
    served.binance.attempts = 1
    exchange.faults.add("500", times=99, match=lambda params: params["symbol"] == "ETHUSDT")
    later(served, 60)
    tab.shows(tab.cell("ETH/USDT", "state"), "stale")
    for words, found in (("stale", ["ETH/USDT"]), ("http 500", ["ETH/USDT"]), ("fresh doge", ["DOGE/USDT"])):
        tab.page.locator("#filter").fill(words)
        assert tab.symbols() == found, words


def test_live_and_polled_are_found_by_these_words(served, browse):
    """With LIVE the rows and the line above say polled, and the filter knows both words."""
    blind = ["ETH/USDT 15m"]
    feeds = FeedsByLink(2, 0, blind=1)
    figures = StreamFigures(**vars(NO_CONNECTIONS), queue=0, feeds=feeds, blind=blind, catching_up=[])
    served.service.status.streams = lambda: figures
    tab = browse(served).open()
    tab.shows("#source", "2 live, 1 polled")
    tab.shows(tab.cell("ETH/USDT", "state"), "polled")
    for word, found in (("polled", blind), ("live", ["BTC/USDT 15m", "DOGE/USDT 15m"])):
        tab.page.locator("#filter").fill(word)
        assert [f"{symbol} 15m" for symbol in tab.symbols()] == found


def test_a_timeframe_that_is_not_kept_is_named(served, browse):
    """With what there is instead; an unknown pair leads to the table."""
    tab = browse(served).open("/chart/BTC_USDT/1h")
    tab.shows("#chart-nothing", "1h is not kept here")
    tab.page.get_by_role("link", name="BTC/USDT 15m").click()
    tab.shows("#readout [data-of=state]", "forming")
    tab.open("/chart/NO_SUCH/15m")
    tab.shows("#chart-nothing", "NO/SUCH is not kept here")
    tab.page.get_by_role("link", name="All pairs").click()
    assert len(tab.symbols()) == 3


def test_the_chart_counts_down_and_is_had_as_csv(served, browse):
    """How long until the close; all candles as a file; by keys the label is the candle's own close."""
    tab = browse(served).open("/chart/BTC_USDT/15m")
    tab.shows("#readout [data-of=state]", "forming")
    assert re.fullmatch(r"closes in 7:[0-3]\d", tab.text("#chart-close"))
    with tab.page.expect_download() as download:
        tab.page.locator("#csv").click()
    lines = download.value.path().read_text().splitlines()
    assert (download.value.suggested_filename, len(lines)) == ("BTC_USDT-15m.csv", 1 + len(tab.candles()))
    for _ in range(3):
        tab.page.keyboard.press(",")
    eventually(lambda: tab.page.locator("#chart").get_attribute("data-label"))
    assert tab.page.locator("#chart").get_attribute("data-label") == tab.readout()["close"]


def test_the_newest_candle_stays_where_it_is_when_one_zooms_out(served, browse):
    """Zooming out shows more of the past, wherever the pointer is."""
    tab = browse(served).open("/chart/BTC_USDT/15m")
    tab.shows("#readout [data-of=state]", "forming")
    newest = tab.readout()["time"]
    place = next(x for x in range(1170, 900, -2) if tab.point(x)["state"] == "forming")
    tab.point(300)
    tab.page.mouse.wheel(0, 300)
    eventually(lambda: tab.point(place - 2)["time"] in (newest, list(tab.candles())[-2]))


def test_the_legend_has_all_fields_where_they_are_kept(exchange, redis_url, browse):
    """Quote volume, trades and what takers bought, exact, at every width; of five fields there is no word."""
    with serving(exchange, redis_url, "BTC/USDT", FIELDS="all") as rig:
        tab = browse(rig).open("/chart/BTC_USDT/15m")
        tab.shows("#readout [data-of=state]", "forming")
        *_, newest = tab.candles().values()
        read = tab.readout()
        assert plain([read[name] for name in ("volume", "quote", "trades", "taker")]) == newest[4:8]
        for width in WIDTHS:
            tab.page.set_viewport_size({"width": width, "height": 800})
            tab.page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
            assert tab.page.evaluate(CUT) == [], width
            assert tab.page.locator("#readout [data-of=taker]").is_visible()


def test_five_fields_are_all_that_the_legend_has(served, browse):
    """Without FIELDS=all nothing is said of what is not kept."""
    tab = browse(served).open("/chart/BTC_USDT/15m")
    tab.shows("#readout [data-of=state]", "forming")
    playwright.expect(tab.page.locator("#readout [data-of=trades]")).to_be_hidden()


def test_a_pair_whose_name_is_not_ascii(exchange, redis_url, browse):
    """Found, opened by a click and by its address, and had as CSV under its own name."""
    name = "币安人生/USDT"
    exchange.market = Market.random_walk([name, "BTC/USDT"])
    with serving(exchange, redis_url, f"{name},BTC/USDT") as rig:
        tab = browse(rig).open()
        tab.page.locator("#filter").fill("币安")
        assert tab.symbols() == [name]
        tab.page.locator("#pairs tbody tr").click()
        address = f"http://{tab.address}/chart/{quote('币安人生_USDT')}/15m"
        for path in (None, f"/chart/{quote('币安人生_USDT')}/15m", "/chart/币安人生_USDT/15m"):
            if path:
                tab.open(path)
            tab.shows("#chart-name", name)
            tab.shows("#readout [data-of=state]", "forming")
            assert tab.page.url == address
        *_, newest = tab.candles(name).values()
        assert plain([tab.readout()["close"]]) == [newest[3]]
        with tab.page.expect_download() as begun:
            tab.page.get_by_text("CSV", exact=True).click()
        assert begun.value.suggested_filename == "币安人生_USDT-15m.csv"
        assert begun.value.path().read_text().splitlines()[-1].split(",")[4] == newest[3]


@pytest.mark.parametrize("path", ["/", "/chart/BTC_USDT/15m"])
def test_a_phone_on_its_side(served, browse, path):
    """The chart is whole in sight, and the line about health stays there while one scrolls."""
    tab = browse(served, viewport={"width": 844, "height": 390}, has_touch=True, is_mobile=True).open(path)
    assert tab.page.evaluate(CUT) == []
    if path != "/":
        box = tab.page.locator("#plot").bounding_box()
        assert box["height"] >= 170
        assert box["y"] + box["height"] <= 390
    tab.page.set_viewport_size({"width": 844, "height": 200})
    tab.page.evaluate("scrollTo(0, 400)")
    assert tab.page.evaluate("scrollY") > 0
    assert tab.page.locator("#health").bounding_box()["y"] == 0


def test_what_happened_lately(served, browse):
    """The log's own lines, the newest first, as text; the same again is one line with a count."""
    logging.getLogger("tet").setLevel(logging.INFO)
    for _ in range(3):
        tet.say(logging.WARNING, "redis unreachable <b>", reason="<img src=x>")
    tet.say(logging.INFO, "streams reachable again", lines=2)
    tet.say(logging.INFO, "cycle", updated=3)
    tab = browse(served).open()
    tab.shows("#lately-newest", "streams reachable again")
    tab.page.locator("#lately summary").click()
    lines = texts(tab, "#events li")
    assert "streams reachable again lines: 2" in lines[0]
    assert "redis unreachable <b> reason: <img src=x>; 3 times since" in lines[1]
    assert not [line for line in lines if "cycle" in line]
    for number in range(KEPT + 5):
        tet.say(logging.WARNING, "one more", number=number)
    events = tab.page.evaluate("fetch('/api/events').then(reply => reply.json())")
    assert [event["number"] for event in events] == list(range(KEPT + 4, 4, -1))


def test_events_keep_secrets_and_the_token(exchange, redis_url, browse):
    """Redacted as in the log; not for who has no token."""
    with serving(exchange, redis_url, HTTP_TOKEN="right-token") as rig:
        tet.say(logging.WARNING, "odd right-token", url="http://x?k=right-token")
        tab = browse(rig)
        tab.page.goto(f"http://{tab.address}/?token=right-token")
        events = tab.page.evaluate("fetch('/api/events').then(reply => reply.text())")
        assert "odd ***" in events
        assert "right-token" not in events
        stranger = browse(rig)
        stranger.expect("status of 401")
        assert stranger.page.goto(f"http://{tab.address}/api/events").status == 401


def test_the_demo_says_that_it_is_simulated(browse, tmp_path):
    """On the table and on a chart; its prices are near those of their coins; its events are there."""
    with Running(tmp_path, "--demo", "--symbols=BTC/USDT,AVAX/USDT,XLM/USDT") as demo:
        eventually(lambda: demo.says("Ctrl-C ends it"), 60)
        url = re.search(r"http://127[^/]+", demo.log.read_text())[0]
        where = settings(HTTP_ADDR=url.removeprefix("http://"))
        page = browse(SimpleNamespace(config=where))
        for path in ("/", "/chart/AVAX_USDT/15m"):
            page.open(path)
            playwright.expect(page.page.locator("#simulated")).to_be_visible()
        with urlopen(f"{url}/api/events") as reply:
            assert "connected to binance" in [event["event"] for event in json.load(reply)]
        page.page.goto("about:blank")
    assert set(FAMILIAR_PRICES) == {pair.split("/")[0] for pair in DEFAULT_PAIRS}
