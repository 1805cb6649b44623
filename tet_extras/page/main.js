// The page: which of its two views the address asks for, and what both share.

import { ChartView } from "./chart.js";
import { Feed } from "./feed.js";
import { chartPath, keyOf, price, put } from "./format.js";
import { showHealth } from "./health.js";
import { Lately } from "./lately.js";
import { TableView } from "./table.js";

const $ = (id) => document.getElementById(id);
const feed = new Feed();
const table = new TableView(feed, (symbol, timeframe) => go(chartPath(symbol, timeframe)));
const chart = new ChartView(feed, { step: stepPair, leave: () => go(tablePath()), change: (timeframe) => go(chartPath(chart.symbol, timeframe), true) });
const lately = new Lately();
let left = ""; // the pair whose chart was left last

const tablePath = () => `/?timeframe=${encodeURIComponent(table.timeframe)}`;

function go(path, replace = false) {
  history[replace ? "replaceState" : "pushState"](null, "", path);
  route();
}

/** The symbol that an address means: BTC_USDT is BTC/USDT. */
function symbolOf(key) {
  return feed.status.symbols.find((symbol) => keyOf(symbol) === key || symbol === key) ?? key.replace("_", "/");
}

/** Show what the address asks for. */
function route() {
  if (!feed.status) return;
  const parts = location.pathname.split("/").slice(1).map(decodeURIComponent);
  const timeframes = feed.status.timeframes;
  const isChart = parts[0] === "chart";
  const asked = isChart ? parts[2] : new URLSearchParams(location.search).get("timeframe");
  const isKept = timeframes.includes(asked), timeframe = isKept ? asked : timeframes[0];
  document.body.dataset.view = isChart ? "chart" : "table";
  $("table-view").hidden = isChart;
  $("chart-view").hidden = !isChart;
  showTabs($("timeframes"), timeframes, timeframe, (name) => { table.timeframe = name; go(tablePath(), true); });
  showTabs($("chart-timeframes"), timeframes, isChart && asked && !isKept ? "" : timeframe, (name) => go(chartPath(chart.symbol, name), true));
  if (table.timeframe !== timeframe || !isChart) table.show(timeframe);
  if (isChart) {
    showChart(symbolOf(parts[1] ?? ""), asked && !isKept ? asked : timeframe, isKept || !asked);
    left = chart.symbol;
  } else {
    chart.hide();
    if (left) table.focus(left);
    left = "";
  }
  title();
}

/** A chart, or why there is none and what there is instead. */
function showChart(symbol, timeframe, isKept) {
  const { symbols, timeframes, invalid_symbols: invalid } = feed.status;
  if (!symbols.includes(symbol)) chart.refuse(symbol, timeframe, `${symbol} is not kept here${invalid[symbol] ? `: ${invalid[symbol]}` : ""}.`, []);
  else if (!isKept) chart.refuse(symbol, timeframe, `${timeframe} is not kept here; there is`, timeframes);
  else chart.show(symbol, timeframe);
}

function showTabs(place, names, chosen, choose) {
  if (place.dataset.shown !== names.join()) {
    place.dataset.shown = names.join();
    place.replaceChildren(...names.map((name) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => choose(name));
      return button;
    }));
  }
  for (const button of place.children) button.setAttribute("aria-pressed", String(button.textContent === chosen));
}

/** To the pair that stands before or after this one in the table. */
function stepPair(steps) {
  const symbols = table.symbols.includes(chart.symbol) ? table.symbols : feed.of(chart.timeframe).map((row) => row.symbol);
  if (!symbols.length) return;
  const at = symbols.indexOf(chart.symbol);
  go(chartPath(symbols[(at + steps + symbols.length) % symbols.length], chart.timeframe), true);
}

const priceOf = (row) => (row ? price(row.price, row.decimals) : "");

function title() {
  const found = showHealth(feed);
  const sign = found.state === "good" || found.state === "connecting" ? "" : `${found.verdict} · `;
  const name = $("chart-view").hidden ? "" : `${priceOf(feed.row(chart.symbol, chart.timeframe))} ${chart.symbol} ${chart.timeframe} · `;
  put(document.querySelector("title"), `${sign}${name}TET Data Service`);
}

let kept = ""; // the timeframes and symbols that came last
feed.addEventListener("status", () => {
  const now = [feed.status.timeframes, feed.status.symbols].join();
  if (now !== kept) {
    kept = now;
    route();
  }
  title();
  lately.look();
});
feed.addEventListener("rows", ({ detail }) => {
  table.update(detail.rows, detail.all);
  if (!$("chart-view").hidden) chart.update(detail.rows, detail.all);
  title();
});
feed.addEventListener("link", title);
feed.addEventListener("tick", () => { table.tick(); chart.tick(); title(); });
addEventListener("popstate", route);
document.querySelector(".brand").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(tablePath());
});
$("chart-nothing").addEventListener("click", (event) => {
  const anchor = event.target.closest("a");
  if (!anchor || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(anchor.getAttribute("href"));
});
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  if (!$("chart-view").hidden) chart.key(event);
  else if (event.key === "/") {
    event.preventDefault();
    $("filter").focus();
    $("filter").select();
  } else if (event.key === "ArrowDown" && document.activeElement === document.body) {
    event.preventDefault();
    document.querySelector("#pairs tbody a")?.focus();
  }
});
title();
feed.start();
