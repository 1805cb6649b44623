// The table's columns: what stands in each, and which of them there is room for.

import { completeness, percent, price, shortTime, volume } from "./format.js";

/** The words for a row's state: what was never fetched and did not fail is being filled. */
export const stateOf = (row) => (row.state === "missing" && !row.reason ? "filling" : row.state);
export const STATES = ["stale", "missing", "failing", "filling", "closed", "fresh"];

/**
 * Key, heading, how to compare, whether the first click puts the greatest on top, the text by which the width is
 * measured, and what the heading means. A text that changes its length by itself has its longest form here.
 */
export const COLUMNS = [
  ["name", "Pair", (row) => row.symbol, false, (row) => row.symbol],
  ["price", "Last price", (row) => Number(row.price), true, (row) => price(row.price, row.decimals)],
  ["day", "24 h", (row) => row.change_24h, true, (row) => `▲ ${percent(row.change_24h)}`, "Change in 24 hours"],
  ["window", "Window", (row) => row.change_window, true, (row) => `▲ ${percent(row.change_window)}`, "Change over all that is kept"],
  ["spark", "Course", null, false, () => "0".repeat(11), "Closes over all that is kept"],
  ["high", "24 h high", (row) => Number(row.high_24h ?? NaN), true, (row) => price(row.high_24h, row.decimals)],
  ["low", "24 h low", (row) => Number(row.low_24h ?? NaN), true, (row) => price(row.low_24h, row.decimals)],
  ["volume", "24 h volume", (row) => row.volume_24h, true, () => "999.9M", "In the quote currency, at the mean price of each candle"],
  ["newest", "Newest candle", (row) => row.newest ?? "", true, (row) => shortTime(row.newest).replace(/^\d /, "00 ")],
  ["age", "Age", (row) => (row.updated ? -Date.parse(row.updated) : Infinity), true, () => "23 h 59 min", "Since the last good update"],
  ["complete", "Complete", (row) => row.completeness, false, (row) => completeness(row.completeness)],
  ["state", "State", (row) => STATES.indexOf(stateOf(row)), false, () => "✓ fresh · catching up"],
];
/** What goes first where there is no room. */
const LEAST_FIRST = ["low", "high", "volume", "newest", "complete", "window", "spark", "age", "day"];
const PADDING = 26, MOST = { name: 230 }, HEAD_SLACK = 18;
const PHONE = matchMedia("(max-width: 720px)");

/** Widths by what the columns hold: no figure is ever cut, the less important ones go first. They only grow. */
export class Fitting {
  #table;
  #longest = new Map(); // by key: the longest text so far
  #widths = new Map();
  #shown = "";
  #left = new Set(); // columns that are left out, whatever room there is
  #pen = document.createElement("canvas").getContext("2d");

  constructor(table) {
    this.#table = table;
    new ResizeObserver(() => this.fit()).observe(table.parentElement);
    PHONE.addEventListener("change", () => this.fit());
  }

  /** Forget what was there: another timeframe is shown. */
  reset() {
    this.#longest.clear();
    this.#widths.clear();
  }

  /** Leave a column out, or show it again: it says what another one does. */
  leave(key, isLeft) {
    if (this.#left.has(key) === isLeft) return;
    if (isLeft) this.#left.add(key);
    else this.#left.delete(key);
    this.fit();
  }

  /** Take over what rows hold. */
  note(rows) {
    let grew = false;
    for (const row of rows) {
      for (const [key, , , , textOf] of COLUMNS) {
        const text = textOf(row);
        if (text.length <= (this.#longest.get(key)?.length ?? 0)) continue;
        this.#longest.set(key, text);
        this.#widths.delete(key);
        grew = true;
      }
    }
    if (grew) this.fit();
  }

  #width(key, heading) {
    if (this.#widths.has(key)) return this.#widths.get(key);
    const family = getComputedStyle(document.body).fontFamily;
    this.#pen.font = `${key === "name" ? 600 : 500} 14px ${family}`;
    const text = this.#pen.measureText((this.#longest.get(key) ?? "").replace(/\d/g, "0")).width;
    this.#pen.font = `600 12px ${family}`;
    const head = this.#pen.measureText(heading).width + HEAD_SLACK;
    const width = Math.ceil(Math.max(Math.min(text, MOST[key] ?? Infinity), head)) + PADDING;
    this.#widths.set(key, width);
    return width;
  }

  /** Show the columns that there is room for. */
  fit() {
    const room = this.#table.parentElement.clientWidth - 42;
    if (room <= 0) return;
    const widths = new Map(COLUMNS.map(([key, heading]) => [key, this.#width(key, heading)]));
    const hidden = new Set(this.#left);
    let sum = [...widths].reduce((all, [key, width]) => all + (hidden.has(key) ? 0 : width), 0);
    for (const key of LEAST_FIRST.filter((key) => !hidden.has(key))) {
      if (sum <= room) break;
      hidden.add(key);
      sum -= widths.get(key);
    }
    const wanted = [room, PHONE.matches, ...widths.values(), ...this.#left].join();
    if (wanted === this.#shown) return;
    this.#shown = wanted;
    const spare = Math.max(0, room - sum), taken = { spark: Math.min(120, spare * 0.3), state: Math.min(160, spare * 0.35) };
    for (const key of widths.keys()) this.#table.classList.toggle(`no-${key}`, hidden.has(key) && !PHONE.matches);
    const columns = [...widths].filter(([key]) => !hidden.has(key)).map(([key, width]) => Math.floor(width + (taken[key] ?? 0)));
    this.#table.style.setProperty("--columns", columns.map((width) => `minmax(${width}px, ${width}fr)`).join(" "));
    this.#table.style.setProperty("--figures", `${Math.max(widths.get("price"), widths.get("day")) - PADDING + 6}px`);
  }
}
