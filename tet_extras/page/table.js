// The table of pairs: a row each, sorted by a click, filtered as you type, one timeframe at a time.

import { Blocks } from "./blocks.js";
import { COLUMNS, Fitting, STATES, stateOf } from "./columns.js";
import { chartPath, completeness, gridOf, lengthOf, price, put, putChange, shortTime, span, volume, wayOf } from "./format.js";
import { isTold, linkOf } from "./health.js";

const $ = (id) => document.getElementById(id);
const text = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const PARTS = COLUMNS.map(([key]) => key).filter((key) => key !== "name");
const ARRANGE_MS = 1000; // so often, at most, figures that change put rows in another order
const TICK_MS = 700; // for which a price that has changed shows which way

export class TableView {
  timeframe = "";
  #feed;
  #entries = new Map(); // by symbol: the elements of its row, and what they show
  #order = []; // the symbols as they stand
  #sort = "";
  #descending = false;
  #blocks = new Blocks($("pairs"), (element, isSeen) => this.#see(this.#entries.get(element.dataset.symbol), isSeen));
  #fitting = new Fitting($("pairs"));
  #spare = []; // cells that rows out of sight do not need
  #arranging = 0;
  #ticked = new Set(); // cells that show which way a price went
  #ticking = 0;

  constructor(feed, open) {
    this.#feed = feed;
    this.#makeHead();
    $("filter").addEventListener("input", () => this.arrange());
    const pairs = $("pairs");
    pairs.addEventListener("click", (event) => {
      const row = event.target.closest("tbody tr");
      if (!row || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      open(row.dataset.symbol, this.timeframe);
    });
    pairs.addEventListener("keydown", (event) => this.#moveFocus(event));
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
    for (const [key, heading, valueOf, greatestFirst, , meaning] of COLUMNS) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.role = "columnheader";
      cell.className = `c-${key}`;
      cell.dataset.key = key;
      if (meaning) cell.title = meaning;
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
        const words = document.createElement("span");
        words.textContent = heading;
        cell.append(words);
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
    if (this.timeframe !== timeframe) this.#fitting.reset();
    this.timeframe = timeframe;
    this.update(this.#feed.of(timeframe), true);
  }

  /** Take over rows that have changed; `all` says that there are no others. Rows out of sight are filled later. */
  update(rows, all) {
    const mine = rows.filter((row) => row.timeframe === this.timeframe);
    if (all) {
      const kept = new Set(mine.map((row) => row.symbol));
      for (const [symbol, entry] of this.#entries) if (!kept.has(symbol)) this.#drop(symbol, entry);
    }
    this.#fitting.note(mine);
    let isNew = all;
    for (const row of mine) {
      isNew ||= !this.#entries.has(row.symbol);
      const entry = this.#entries.get(row.symbol) ?? this.#make(row.symbol);
      entry.row = row;
      if (entry.isSeen) this.#fill(entry);
    }
    if (isNew) this.arrange();
    else if (mine.length) this.#arrangeLater();
  }

  /** Figures have changed: the order may, but not many times a second. */
  #arrangeLater() {
    this.#showCounts(this.#feed.of(this.timeframe));
    if (!this.#sort && !$("filter").value) return;
    this.#arranging ||= setTimeout(() => this.arrange(), ARRANGE_MS);
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
    const entry = { element, link: part("a"), cells: null, row: null, shown: null, isSeen: false, drawn: "" };
    entry.link.setAttribute("href", chartPath(symbol, this.timeframe));
    part("th").title = symbol;
    this.#entries.set(symbol, entry);
    return entry;
  }

  #drop(symbol, entry) {
    this.#see(entry, false);
    entry.element.remove();
    this.#entries.delete(symbol);
  }

  /** A row out of sight has its name alone: hundreds of rows cost little so. */
  #see(entry, isSeen) {
    if (!entry) return;
    entry.isSeen = isSeen;
    if (isSeen) return this.#fill(entry);
    if (entry.cells) this.#spare.push(entry.cells);
    for (const cell of Object.values(entry.cells ?? {})) cell.remove();
    entry.cells = entry.shown = null;
    entry.drawn = "";
  }

  #cells() {
    if (this.#spare.length) return this.#spare.pop();
    const made = [...$("cells").content.firstElementChild.cloneNode(true).cells];
    return Object.fromEntries(made.map((cell, place) => [PARTS[place], cell]));
  }

  /** Show a row's figures; where it shows them already nothing is touched. */
  #fill(entry) {
    const { element, row, shown: before } = entry;
    if (before === row) return;
    if (!entry.cells) {
      entry.cells = this.#cells();
      element.append(...Object.values(entry.cells));
    }
    const { cells } = entry;
    entry.shown = row;
    if (before?.timeframe !== row.timeframe) entry.link.setAttribute("href", chartPath(row.symbol, row.timeframe));
    const state = stateOf(row);
    if (element.dataset.state !== state) element.dataset.state = state;
    put(cells.price, price(row.price, row.decimals));
    if (before?.price && row.price && before.price !== row.price && before.timeframe === row.timeframe) {
      this.#tick(cells.price, Number(row.price) > Number(before.price) ? "up" : "down");
    }
    putChange(cells.day, row.change_24h);
    putChange(cells.window, row.change_window);
    put(cells.high, price(row.high_24h, row.decimals));
    put(cells.low, price(row.low_24h, row.decimals));
    put(cells.volume, volume(row.volume_24h));
    put(cells.newest, shortTime(row.newest));
    put(cells.complete, row.updated ? completeness(row.completeness) : "–");
    cells.complete.toggleAttribute("data-short", Boolean(row.updated) && row.completeness < 1);
    put(cells.state.firstElementChild, state);
    this.#showState(entry);
    this.#showAge(entry);
    this.#drawSpark(entry);
  }

  /** The reason, where it is the row's own, or who keeps the pair fresh; both are in the status. */
  #words(row) {
    const { status } = this.#feed, reason = row.reason && !isTold(status, row.reason) ? row.reason : "";
    return reason || linkOf(status, row.symbol, row.timeframe);
  }

  #showState({ cells, row }) {
    const words = this.#words(row);
    put(cells.state.lastElementChild, words);
    if (cells.state.title !== words) cells.state.title = words;
  }

  /** Mark which way a price went, for a moment; all that changed together are unmarked together. */
  #tick(cell, way) {
    cell.dataset.tick = way;
    this.#ticked.add(cell);
    this.#ticking ||= setTimeout(() => {
      for (const each of this.#ticked) delete each.dataset.tick;
      this.#ticked.clear();
      this.#ticking = 0;
    }, TICK_MS);
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
      if (!entry.cells) continue;
      this.#showAge(entry);
      this.#showState(entry);
    }
  }

  /** Whether a row has each word somewhere, as it is shown: in its name, its state, or what stands beside that. */
  #fits(row, words) {
    const name = row.symbol.toLowerCase(), shown = `${stateOf(row)} ${this.#words(row)}`.toLowerCase();
    return words.every((word) => name.includes(word) || name.replace("/", "").includes(word) || ` ${shown}`.includes(` ${word}`));
  }

  /** Put the rows in order, those that the filter leaves; only what is out of place is moved. */
  arrange() {
    clearTimeout(this.#arranging);
    this.#arranging = 0;
    const words = $("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const rows = this.#feed.of(this.timeframe);
    const shown = words.length ? rows.filter((row) => this.#fits(row, words)) : rows.slice();
    const column = COLUMNS.find(([key]) => key === this.#sort);
    if (column) shown.sort((a, b) => compare(column[2](a), column[2](b), this.#descending) || text(a.symbol, b.symbol));
    this.#order = shown.map((row) => row.symbol);
    this.#blocks.place(this.#order.map((symbol) => this.#entries.get(symbol).element));
    this.#showCounts(rows);
    this.#showWindow(rows);
    $("pairs").hidden = !shown.length;
    $("nothing").hidden = Boolean(shown.length);
    put($("nothing"), rows.length ? "No pair fits the filter." : this.#feed.status ? "No pair is kept yet." : "");
  }

  #showCounts(rows) {
    const counts = STATES.map((state) => [state, rows.filter((row) => stateOf(row) === state).length]);
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
    const length = lengthOf(Math.round(row.candles / row.completeness) * gridOf(this.timeframe).step);
    put($("pairs").tHead.querySelector("[data-key=window] button"), length);
    put($("pairs").tHead.querySelector("[data-key=spark] span"), `Course of ${length}`);
    this.#fitting.leave("window", length === $("pairs").tHead.querySelector("[data-key=day] button").textContent);
  }

  #moveFocus(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12 }[event.key];
    if (!steps) return;
    event.preventDefault();
    const links = [...$("pairs").querySelectorAll("tbody a")];
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
