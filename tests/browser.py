"""A real browser for the tests of the page: headless Chromium, driven by Playwright."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager
from decimal import Decimal
from urllib.parse import urlsplit

import pytest
from rig import started, unused_port
from samples import MINUTE

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the dev extras")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

#: What the line above the chart shows.
READ_OUT = """() => {
    const parts = [...document.querySelectorAll("#readout dd")];
    return Object.fromEntries(parts.map(part => [part.dataset.of, part.textContent]));
}"""


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests."""
    os.environ.pop("DISPLAY", None)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """A page of the browser; what its console said, and which hosts it asked, is kept."""

    def __init__(self, context, address):
        self.page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.address = address
        self.said: list[str] = []
        self.expected: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def expect(self, words):
        """What Chromium reports with these words, whenever it does: the test makes it happen."""
        self.expected.append(words)

    def wrong(self):
        """The errors and warnings in its console that nobody expects."""
        wrong = [line for line in self.said if re.match("error|warning", line)]
        return [line for line in wrong if not any(words in line for words in self.expected)]

    def open(self, path="/"):
        """Go there; wait until the page has its data."""
        self.page.goto(f"http://{self.address}{path}")
        self.page.wait_for_selector("#link[data-state=live]")
        self.page.wait_for_selector("#pairs tbody tr", state="attached")
        return self

    def text(self, selector):
        """What is written there."""
        return self.page.locator(selector).inner_text()

    def shows(self, selector, words):
        """Wait until that is written there."""
        playwright.expect(self.page.locator(selector)).to_contain_text(words, timeout=15_000)

    def symbols(self):
        """The pairs in the table, as they stand."""
        return self.page.locator("#pairs tbody th a").all_inner_texts()

    def cell(self, symbol, name):
        """The selector of a cell."""
        return f'#pairs tr[data-symbol="{symbol}"] td.{name}'

    def readout(self):
        """The candle that the line above the chart shows."""
        return self.page.evaluate(READ_OUT)

    def point(self, x, y=200):
        """Put the pointer into the chart; returns what is read there."""
        box = self.page.locator("#chart").bounding_box()
        self.page.mouse.move(box["x"] + x, box["y"] + y)
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        return self.readout()

    def candles(self, symbol="BTC/USDT", timeframe="15m"):
        """What the API has, by the time as the chart writes it."""
        path = f"/api/candles?symbol={symbol}&timeframe={timeframe}&limit=100000"
        rows = self.page.evaluate("path => fetch(path).then(reply => reply.json())", path)
        return {written(row[0]): row[1:] for row in rows}


def number(text):
    """A price as the page writes it, 12,345.60, as a number."""
    return float(text.replace(",", ""))


def plain(texts):
    """Candles' texts without separators and without the zeros that fill them up."""
    return [format(Decimal(text.replace(",", "")).normalize(), "f") for text in texts]


def written(time):
    """2026-01-05T12:00:00Z as the page has it."""
    months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
    return f"{int(time[8:10])} {months[int(time[5:7]) - 1]} {time[11:16]}"


@pytest.fixture
def browse(chromium):
    """Open a tab for a service; in the end its console has no unexpected error, and it asked nobody else."""
    tabs = []

    def open_tab(rig, **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        tabs.append((context, Tab(context, "{}:{}".format(*rig.config.http_addr))))
        return tabs[-1][1]

    yield open_tab
    for context, tab in tabs:
        context.close()
        assert not tab.wrong()
        assert tab.hosts == {tab.address}


@contextmanager
def serving(exchange, redis_url, pairs="BTC/USDT,ETH/USDT,DOGE/USDT", **given):
    """A service with the page, after its first cycle."""
    address = f"127.0.0.1:{unused_port()}"
    with started(exchange, redis_url, **({"HTTP_ADDR": address, "SYMBOLS": pairs} | given)) as rig:
        rig.refresh()
        yield rig


@pytest.fixture
def served(exchange, redis_url):
    """Three pairs of two days."""
    with serving(exchange, redis_url) as rig:
        yield rig


def later(rig, minutes=1):
    """Let time pass at the exchange, and refresh."""
    rig.exchange.clock.advance(minutes * MINUTE)
    rig.refresh()
