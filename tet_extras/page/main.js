// The page: which of its two views the address asks for, and what both share.

import { ChartView } from "./chart.js";
import { Feed } from "./feed.js";
import { chartPath, keyOf, put } from "./format.js";
import { showHealth } from "./health.js";
import { TableView } from "./table.js";

const $ = (id) => document.getElementById(id);
const feed = new Feed();
const table = new TableView(feed, (symbol, timeframe) => go(chartPath(symbol, timeframe)));
const chart = new ChartView(feed, { step: stepPair, leave: () => go(tablePath()), change: (timeframe) => go(chartPath(chart.symbol, timeframe), true) });
let left = ""; // the pair whose chart was left last

const tablePath = () => `/?timeframe=${encodeURIComponent(table.timeframe)}`;

function go(path, replace = false) {
  history[replace ? "replaceState" : "pushState"](null, "", path);
  route();
}

/** The symbol that an address means: BTC_USDT is BTC/USDT. */
function symbolOf(key) {
  for (const row of feed.rows.values()) if (keyOf(row.symbol) === key || row.symbol === key) return row.symbol;
  return key.replace("_", "/");
}

/** Show what the address asks for. */
function route() {
  if (!feed.status) return;
  const parts = location.pathname.split("/").slice(1).map(decodeURIComponent);
  const timeframes = feed.status.timeframes;
  const isChart = parts[0] === "chart";
  const asked = isChart ? parts[2] : new URLSearchParams(location.search).get("timeframe");
  const timeframe = timeframes.includes(asked) ? asked : timeframes[0];
  document.body.dataset.view = isChart ? "chart" : "table";
  $("table-view").hidden = isChart;
  $("chart-view").hidden = !isChart;
  showTabs($("timeframes"), timeframes, timeframe, (name) => { table.timeframe = name; go(tablePath(), true); });
  showTabs($("chart-timeframes"), timeframes, timeframe, (name) => go(chartPath(chart.symbol, name), true));
  if (table.timeframe !== timeframe || !isChart) table.show(timeframe);
  if (isChart) {
    chart.show(symbolOf(parts[1] ?? ""), timeframe);
    left = chart.symbol;
  } else {
    chart.hide();
    if (left) table.focus(left);
    left = "";
  }
  title();
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

function title() {
  const found = showHealth(feed);
  const sign = found.state === "good" || found.state === "connecting" ? "" : `${found.verdict} · `;
  const name = $("chart-view").hidden ? "" : `${feed.row(chart.symbol, chart.timeframe)?.price ?? ""} ${chart.symbol} ${chart.timeframe} · `;
  put(document.querySelector("title"), `${sign}${name}TET Data Service`);
}

let timeframes = "";
feed.addEventListener("status", () => {
  const told = feed.status.timeframes.join();
  if (told !== timeframes) {
    timeframes = told;
    route();
  }
  title();
});
feed.addEventListener("rows", ({ detail }) => {
  table.update(detail.rows, detail.all);
  if (!$("chart-view").hidden) {
    const symbol = symbolOf(chart.symbol.replace("/", "_"));
    if (symbol !== chart.symbol) route();
    chart.update(detail.rows, detail.all);
  }
  title();
});
feed.addEventListener("link", title);
feed.addEventListener("tick", () => { table.tick(); title(); });
addEventListener("popstate", route);
document.querySelector(".brand").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(tablePath());
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
