// The table of pairs: a row each, sorted by a click, filtered as you type, one timeframe at a time.

import { chartPath, completeness, gridOf, lengthOf, put, putChange, shortTime, span, wayOf } from "./format.js";
import { linkOf } from "./health.js";

const $ = (id) => document.getElementById(id);
const STATES = ["stale", "missing", "failing", "fresh"];
const text = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

/** The columns: key, heading, how to compare, and whether the first click puts the greatest on top. */
const COLUMNS = [
  ["name", "Pair", (row) => row.symbol, false],
  ["price", "Last price", (row) => Number(row.price), true],
  ["day", "24 h", (row) => row.change_24h, true],
  ["window", "Window", (row) => row.change_window, true],
  ["spark", "", null, false],
  ["newest", "Newest candle", (row) => row.newest ?? "", true],
  ["age", "Age", (row) => (row.updated ? -Date.parse(row.updated) : Infinity), true],
  ["complete", "Complete", (row) => row.completeness, false],
  ["state", "State", (row) => STATES.indexOf(row.state), false],
];

export class TableView {
  timeframe = "";
  #feed;
  #entries = new Map(); // by symbol: the elements of its row, and what they show
  #order = []; // the symbols as they stand
  #sort = "";
  #descending = false;
  #onScreen;

  constructor(feed, open) {
    this.#feed = feed;
    this.#onScreen = new IntersectionObserver((seen) => {
      for (const { target, isIntersecting } of seen) {
        const entry = this.#entries.get(target.dataset.symbol);
        if (entry) entry.seen = isIntersecting;
        if (entry && isIntersecting) this.#drawSpark(entry);
      }
    }, { rootMargin: "300px" });
    this.#makeHead();
    $("filter").addEventListener("input", () => this.arrange());
    const body = $("pairs").tBodies[0];
    body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (!row || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      open(row.dataset.symbol, this.timeframe);
    });
    body.addEventListener("keydown", (event) => this.#moveFocus(event));
    $("filter").addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") this.#moveFocus(event);
      if (event.key === "Escape") { $("filter").value = ""; this.arrange(); $("filter").blur(); }
      if (event.key === "Enter" && this.#order.length) open(this.#order[0], this.timeframe);
    });
  }

  /** The symbols in the order in which they are shown. */
  get symbols() {
    return this.#order;
  }

  #makeHead() {
    const head = $("pairs").tHead.rows[0];
    for (const [key, heading, valueOf, greatestFirst] of COLUMNS) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.className = `c-${key}`;
      cell.dataset.key = key;
      if (valueOf) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = heading;
        button.addEventListener("click", () => this.#sortBy(key, greatestFirst));
        cell.append(button);
        for (const descending of [greatestFirst, !greatestFirst]) {
          $("sort-by").append(new Option(`${heading} ${descending ? "↓" : "↑"}`, `${descending ? "-" : ""}${key}`));
        }
      } else {
        const unseen = document.createElement("span");
        unseen.className = "unseen";
        unseen.textContent = "Course over the window";
        cell.append(unseen);
      }
      head.append(cell);
    }
    $("sort-by").prepend(new Option("Sort: as set", ""));
    $("sort-by").value = "";
    $("sort-by").addEventListener("change", () => {
      const [, sign, key] = /^(-?)(.*)$/.exec($("sort-by").value);
      this.#setSort(key, sign === "-");
    });
  }

  /** A click sorts, a second one the other way round, a third one goes back to the order of the settings. */
  #sortBy(key, greatestFirst) {
    if (this.#sort !== key) this.#setSort(key, greatestFirst);
    else if (this.#descending === greatestFirst) this.#setSort(key, !greatestFirst);
    else this.#setSort("", false);
  }

  #setSort(key, descending) {
    this.#sort = key;
    this.#descending = descending;
    for (const cell of $("pairs").tHead.rows[0].cells) {
      if (cell.dataset.key === key) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    $("sort-by").value = key ? `${descending ? "-" : ""}${key}` : "";
    this.arrange();
  }

  /** Show another timeframe. */
  show(timeframe) {
    this.timeframe = timeframe;
    this.update(this.#feed.of(timeframe), true);
  }

  /** Take over rows that have changed; `all` says that there are no others. */
  update(rows, all) {
    const mine = rows.filter((row) => row.timeframe === this.timeframe);
    if (all) {
      const kept = new Set(mine.map((row) => row.symbol));
      for (const [symbol, entry] of this.#entries) if (!kept.has(symbol)) this.#drop(symbol, entry);
    }
    for (const row of mine) this.#fill(this.#entries.get(row.symbol) ?? this.#make(row.symbol), row);
    if (all || mine.length) this.arrange();
  }

  #make(symbol) {
    const element = $("row").content.firstElementChild.cloneNode(true);
    const part = (name) => element.querySelector(name);
    element.dataset.symbol = symbol;
    const cut = symbol.includes("/") ? symbol.lastIndexOf("/") : symbol.length;
    part("a").textContent = symbol.slice(0, cut);
    const currency = document.createElement("span");
    currency.className = "quote-currency";
    currency.textContent = symbol.slice(cut);
    part("a").append(currency);
    const cells = Object.fromEntries(["price", "day", "window", "spark", "newest", "age", "complete", "state"].map((name) => [name, part(`.${name}`)]));
    const entry = { element, link: part("a"), cells, row: null, seen: false, drawn: "" };
    this.#entries.set(symbol, entry);
    this.#onScreen.observe(element);
    return entry;
  }

  #drop(symbol, entry) {
    this.#onScreen.unobserve(entry.element);
    entry.element.remove();
    this.#entries.delete(symbol);
  }

  #fill(entry, row) {
    const { cells, element } = entry, before = entry.row;
    entry.row = row;
    entry.link.setAttribute("href", chartPath(row.symbol, row.timeframe));
    if (element.dataset.state !== row.state) element.dataset.state = row.state;
    put(cells.price, row.price ?? "–");
    if (before?.price && row.price && before.price !== row.price && before.timeframe === row.timeframe) {
      this.#tick(cells.price, Number(row.price) > Number(before.price) ? "up" : "down");
    }
    putChange(cells.day, row.change_24h);
    putChange(cells.window, row.change_window);
    put(cells.newest, shortTime(row.newest));
    put(cells.complete, row.updated ? completeness(row.completeness) : "–");
    cells.complete.toggleAttribute("data-short", Boolean(row.updated) && row.completeness < 1);
    put(cells.state.firstElementChild, row.state);
    this.#showState(entry);
    this.#showAge(entry);
    if (entry.seen) this.#drawSpark(entry);
  }

  /** The reason, or who keeps the pair fresh; this is in the status. */
  #showState({ cells, row }) {
    const words = row.reason || linkOf(this.#feed.status, row.symbol, row.timeframe);
    put(cells.state.lastElementChild, words);
    if (cells.state.title !== words) cells.state.title = words;
  }

  #tick(cell, way) {
    delete cell.dataset.tick;
    void cell.offsetWidth; // so that the animation starts anew
    cell.dataset.tick = way;
  }

  #showAge(entry) {
    const updated = entry.row.updated;
    put(entry.cells.age, updated ? span((this.#feed.now() - Date.parse(updated)) / 1000) : "–");
  }

  #drawSpark(entry) {
    const { spark, change_window: change, symbol } = entry.row;
    const drawn = spark.join();
    entry.cells.spark.dataset.way = wayOf(change);
    if (entry.drawn === drawn) return;
    entry.drawn = drawn;
    const wide = 120 / Math.max(1, spark.length - 1);
    const points = spark.map((height, index) => `${(index * wide).toFixed(1)} ${(26 - height * 0.24).toFixed(1)}`);
    entry.cells.spark.querySelector("path").setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
    entry.cells.spark.firstElementChild.setAttribute("aria-label", `Course of ${symbol} over the window`);
  }

  /** Once a second: ages grow, and links may have changed. */
  tick() {
    for (const entry of this.#entries.values()) {
      this.#showAge(entry);
      this.#showState(entry);
    }
  }

  /** Put the rows in order, those that the filter leaves; only what is out of place is moved. */
  arrange() {
    const words = $("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const rows = this.#feed.of(this.timeframe);
    const fits = (row) => words.every((word) => row.symbol.toLowerCase().includes(word) || row.symbol.replace("/", "").toLowerCase().includes(word) || row.state.startsWith(word));
    const shown = rows.filter(fits);
    const column = COLUMNS.find(([key]) => key === this.#sort);
    if (column) shown.sort((a, b) => compare(column[2](a), column[2](b), this.#descending) || text(a.symbol, b.symbol));
    this.#order = shown.map((row) => row.symbol);
    const body = $("pairs").tBodies[0];
    const kept = new Set(this.#order);
    for (const [symbol, entry] of this.#entries) if (!kept.has(symbol) && entry.element.isConnected) entry.element.remove();
    let next = body.firstElementChild;
    for (const symbol of this.#order) {
      const { element } = this.#entries.get(symbol);
      if (element === next) next = next.nextElementSibling;
      else body.insertBefore(element, next);
    }
    this.#showCounts(rows);
    this.#showWindow(rows);
    $("pairs").hidden = !shown.length;
    $("nothing").hidden = Boolean(shown.length);
    put($("nothing"), rows.length ? "No pair fits the filter." : this.#feed.status ? "No pair is kept yet." : "");
  }

  #showCounts(rows) {
    const counts = STATES.map((state) => [state, rows.filter((row) => row.state === state).length]);
    const wanted = [["", rows.length], ...counts.filter(([, count]) => count)];
    const place = $("counts");
    const described = wanted.map(([state, count]) => `${count} ${state || (rows.length === 1 ? "pair" : "pairs")}`);
    if (place.dataset.shown === described.join()) return;
    place.dataset.shown = described.join();
    place.replaceChildren(...wanted.map(([state, count], index) => {
      const button = document.createElement("button");
      const number = document.createElement("b");
      number.textContent = count;
      button.type = "button";
      button.dataset.of = state;
      button.append(number, ` ${described[index].split(" ")[1]}`);
      button.addEventListener("click", () => { $("filter").value = state; this.arrange(); });
      return button;
    }));
  }

  /** The heading says how long the window is. */
  #showWindow(rows) {
    const row = rows.find((each) => each.completeness > 0);
    if (!row) return;
    const wanted = Math.round(row.candles / row.completeness);
    put($("pairs").tHead.querySelector("[data-key=window] button"), lengthOf(wanted * gridOf(this.timeframe).step));
  }

  #moveFocus(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12 }[event.key];
    if (!steps) return;
    event.preventDefault();
    const links = [...$("pairs").tBodies[0].querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    if (at + steps < 0 && steps === -1) $("filter").focus();
    else links[Math.max(0, Math.min(links.length - 1, at + steps))]?.focus();
  }

  /** Put the focus on a pair, as one finds it again after its chart. */
  focus(symbol) {
    this.#entries.get(symbol)?.link.focus({ preventScroll: false });
  }
}

function compare(a, b, descending) {
  const none = (value) => value === null || value === undefined || Number.isNaN(value);
  if (none(a) || none(b)) return none(a) - none(b); // what has no value comes last, either way
  return (a < b ? -1 : a > b ? 1 : 0) * (descending ? -1 : 1);
}
