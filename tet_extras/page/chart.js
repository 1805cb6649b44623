// The chart of one pair: candles and volume on a canvas; zoom, pan, crosshair.

import { Axes } from "./axes.js";
import { Candles } from "./candles.js";
import { chartPath, gridOf, grouped, keyOf, left, lengthOf, price, put, putChange, shortTime } from "./format.js";
import { Painter } from "./paint.js";

const $ = (id) => document.getElementById(id);
const OPEN = 0, CLOSE = 3;
const FIELDS = ["open", "high", "low", "close", "volume"];
const MORE = { quote: 6, trades: 7, taker: 8 }; // where a row of FIELDS=all has them

export class ChartView {
  symbol = "";
  timeframe = "";
  candles = null;
  #feed;
  #actions;
  #canvas = $("chart");
  #axes = new Axes();
  #painter = new Painter(this.#canvas, this.#axes);
  #cross = null; // where the pointer is, or the candle that a key has chosen
  #pointers = new Map();
  #frame = 0;

  constructor(feed, actions) {
    this.#feed = feed;
    this.#actions = actions;
    new ResizeObserver(() => this.#resize()).observe($("plot"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.#painter.forget(); this.#redraw(); });
    this.#listen();
    $("previous").addEventListener("click", () => actions.step(-1));
    $("following").addEventListener("click", () => actions.step(1));
    $("zoom-in").addEventListener("click", () => this.#zoom(1.4, this.#axes.plotWidth));
    $("zoom-out").addEventListener("click", () => this.#zoom(1 / 1.4, this.#axes.plotWidth));
    $("zoom-all").addEventListener("click", () => this.#showAll());
    $("zoom-reset").addEventListener("click", () => this.#reset());
  }

  /** Show a pair; its candles are asked for. */
  show(symbol, timeframe) {
    const row = this.#feed.row(symbol, timeframe);
    if (this.symbol === symbol && this.timeframe === timeframe) return this.#quote(row);
    this.#take(symbol, timeframe);
    this.#quote(row);
    const query = new URLSearchParams({ symbol, timeframe, limit: 1e6, format: "csv" });
    $("csv").href = `/api/candles?${query}`;
    $("csv").download = `${keyOf(symbol)}-${timeframe}.csv`;
    $("csv").hidden = false;
    delete $("chart-view").dataset.none;
    this.#fresh(new Candles(symbol, timeframe));
    return undefined;
  }

  /** Say that this chart cannot be had, and offer what there is instead: a symbol's other timeframes, the table. */
  refuse(symbol, timeframe, words, timeframes) {
    this.#take(symbol, timeframe);
    this.#quote(undefined);
    this.candles = this.#axes.candles = null;
    $("csv").hidden = true;
    $("chart-view").dataset.none = "";
    this.#redraw();
    const there = timeframes.map((name) => [`${symbol} ${name}`, chartPath(symbol, name)]);
    this.#say(words, [...there, ["All pairs", "/"]]);
  }

  #take(symbol, timeframe) {
    this.symbol = symbol;
    this.timeframe = timeframe;
    this.#cross = null;
    put($("chart-name"), symbol);
  }

  hide() {
    this.symbol = this.timeframe = "";
    this.candles = this.#axes.candles = null;
  }

  async #fresh(candles) {
    this.candles = this.#axes.candles = candles;
    this.#redraw();
    this.#say("");
    const later = setTimeout(() => this.candles === candles && !candles.length && this.#say("Loading candles"), 300);
    await this.#try(candles, () => candles.load());
    clearTimeout(later);
    if (this.candles === candles) this.#reset();
  }

  /** Do what asks for candles, and say what went wrong; an answer that came too late is dropped. */
  async #try(candles, act) {
    try {
      await act();
      if (this.candles !== candles) return;
      this.#say(candles.length ? "" : "There are no candles of this pair yet.");
    } catch (error) {
      if (this.candles !== candles || candles.length) return;
      this.#say(error.status ? error.message : "The candles cannot be had: no connection to the service.");
    }
    this.#redraw();
  }

  #say(words, links = []) {
    const anchors = links.map(([name, path]) => {
      const anchor = document.createElement("a");
      anchor.href = path;
      anchor.textContent = name;
      return anchor;
    });
    $("chart-nothing").replaceChildren(words, ...anchors);
    $("chart-nothing").hidden = !words;
  }

  /** Take over what has changed. */
  update(rows, all) {
    const row = rows.find((each) => each.symbol === this.symbol && each.timeframe === this.timeframe);
    if (!row) return;
    this.#quote(row);
    const candles = this.candles;
    if (!candles || candles.isAsking) return;
    const follows = candles.length && this.#axes.right > candles.slots.at(-1);
    const newest = candles.slots.at(-1);
    this.#try(candles, async () => {
      await (all ? candles.load() : candles.refresh());
      if (this.candles !== candles || !candles.length) return;
      if (newest === undefined) this.#reset();
      else if (follows) this.#axes.right += candles.slots.at(-1) - newest;
    });
  }

  #quote(row) {
    put($("chart-price"), price(row?.price, row?.decimals));
    putChange($("chart-day"), row?.change_24h, " 24 h");
    const wanted = row?.completeness ? Math.round(row.candles / row.completeness) : 0;
    putChange($("chart-window"), row?.change_window, wanted ? ` ${lengthOf(wanted * gridOf(row.timeframe).step)}` : "");
    const why = !row || row.state === "fresh" ? "" : row.state === "closed" ? row.reason : `${row.state}${row.updated ? ` since ${shortTime(row.updated)} UTC` : ""}${row.reason ? `: ${row.reason}` : ""}`;
    put($("chart-why"), why && why[0].toUpperCase() + why.slice(1));
    this.tick();
    this.#redraw();
  }

  /** Once a second: how long until the candle closes. */
  tick() {
    const row = this.symbol ? this.#feed.row(this.symbol, this.timeframe) : null;
    if (!row) return put($("chart-close"), "");
    const grid = gridOf(this.timeframe), now = this.#feed.now();
    return put($("chart-close"), `closes in ${left(grid.time(Math.floor(grid.slot(now)) + 1) - now)}`);
  }

  // What is seen

  #reset() {
    if (!this.candles?.length) return;
    this.#axes.reset();
    this.#redraw();
  }

  async #showAll() {
    const { candles } = this;
    for (let tries = 0; candles && !candles.whole && tries < 6; tries++) await this.#try(candles, () => candles.load(true));
    if (!candles?.length || this.candles !== candles) return;
    this.#axes.all();
    this.#redraw();
  }

  #zoom(factor, x) {
    if (!this.candles?.length) return;
    this.#axes.zoom(factor, x);
    this.#loadOlder();
  }

  #pan(slots) {
    if (!this.candles?.length) return;
    this.#axes.pan(slots);
    this.#loadOlder();
  }

  /** Older candles are asked for when the oldest come into sight. */
  #loadOlder() {
    const { candles } = this, { right, wide } = this.#axes;
    if (!candles.whole && !candles.isAsking && right - wide < candles.slots[0] + 50) this.#try(candles, () => candles.load(true));
    this.#redraw();
  }

  // Pointer and keys

  #listen() {
    const canvas = this.#canvas, at = (event) => ({ x: event.offsetX, y: event.offsetY });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const scale = event.deltaMode === 1 ? 16 : 1;
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        this.#pan(((event.deltaX || event.deltaY) * scale) / this.#axes.width);
      } else {
        this.#zoom(Math.exp(-event.deltaY * scale * 0.0016), Math.min(this.#axes.plotWidth, event.offsetX));
      }
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, at(event));
      if (event.pointerType !== "mouse") this.#cross = at(event);
      this.#redraw();
    });
    canvas.addEventListener("pointermove", (event) => this.#move(event.pointerId, at(event), event.pointerType));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        this.#pointers.delete(event.pointerId);
        $("plot").classList.remove("dragging");
      });
    }
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.#cross = null;
      this.#redraw();
    });
    canvas.addEventListener("dblclick", () => this.#reset());
  }

  #move(id, to, kind) {
    const from = this.#pointers.get(id);
    if (from && this.#pointers.size === 1) {
      this.#pan((from.x - to.x) / this.#axes.width);
      if (Math.abs(from.x - to.x) > 2) $("plot").classList.add("dragging");
    } else if (from && this.#pointers.size === 2) {
      const other = [...this.#pointers].find(([each]) => each !== id)[1];
      const before = Math.abs(from.x - other.x), after = Math.abs(to.x - other.x);
      if (before > 8 && after > 8) this.#zoom(after / before, (to.x + other.x) / 2);
    }
    if (from) this.#pointers.set(id, to);
    if (kind === "mouse" || this.#pointers.size === 1) this.#cross = to;
    this.#redraw();
  }

  /** What a key does; the hint below the chart says so too. */
  key(event) {
    const tenth = this.#axes.wide / 10;
    const act = {
      ArrowLeft: () => (event.shiftKey ? this.#pan(-tenth) : this.#actions.step(-1)),
      ArrowRight: () => (event.shiftKey ? this.#pan(tenth) : this.#actions.step(1)),
      ArrowUp: () => this.#zoom(1.25, this.#axes.plotWidth),
      ArrowDown: () => this.#zoom(0.8, this.#axes.plotWidth),
      "+": () => this.#zoom(1.25, this.#axes.plotWidth),
      "-": () => this.#zoom(0.8, this.#axes.plotWidth),
      ",": () => this.#stepCross(-1),
      ".": () => this.#stepCross(1),
      Home: () => this.#reset(),
      Escape: () => this.#actions.leave(),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** Put the crosshair on the candle before or after the one that it is on. */
  #stepCross(steps) {
    const { candles } = this;
    if (!candles?.length) return;
    const at = this.#cross ? candles.place(this.#crossSlot()) + steps : candles.length - 1;
    const index = Math.max(0, Math.min(candles.length - 1, at));
    const slot = candles.slots[index] + 0.5, axes = this.#axes;
    if (axes.x(slot) < 0) this.#pan((axes.x(slot) - 40) / axes.width);
    if (axes.x(slot) > axes.plotWidth) this.#pan((axes.x(slot) - axes.plotWidth + 40) / axes.width);
    this.#cross = { slot: candles.slots[index] };
    $("readout").setAttribute("aria-live", "polite");
    this.#redraw();
  }

  // Drawing

  #resize() {
    const { clientWidth: width, clientHeight: height } = $("plot");
    if (!width || !height) return;
    const before = this.#axes.size.width, ratio = devicePixelRatio || 1;
    this.#axes.size = { width, height };
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
    if (!before) this.#reset();
    this.#draw(); // at once: a new size has cleared it
  }

  #redraw() {
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const { candles } = this, axes = this.#axes;
    if (!axes.size.width || !axes.size.height || $("chart-view").hidden) return;
    this.#painter.clear();
    if (!candles?.length) {
      this.#readOut(-1);
      return;
    }
    const newest = price(candles.rows.at(-1)[4], candles.decimals);
    axes.labelLength = newest.length;
    const cut = this.symbol.lastIndexOf("/");
    this.#painter.draw(cut > 0 ? this.symbol.slice(0, cut) : "");
    this.#canvas.setAttribute("aria-label", `Candles of ${this.symbol}, ${this.timeframe}: ${candles.length} from ${shortTime(candles.rows[0][0])} to ${shortTime(candles.rows.at(-1)[0])} UTC, last price ${newest}`);
    this.#readOut(this.#drawCross());
  }

  /** The slot that the crosshair is on: the pointer's, or that of the candle which a key has chosen. */
  #crossSlot() {
    return this.#cross.slot ?? Math.floor(this.#axes.slotAt(this.#cross.x));
  }

  /** The crosshair; returns the candle it is on: -1 is none, NaN a gap. */
  #drawCross() {
    const { candles } = this, axes = this.#axes;
    this.#canvas.dataset.label = "";
    if (!this.#cross || this.#cross.x > axes.plotWidth) return -1;
    const slot = this.#crossSlot(), index = candles.place(slot), isThere = candles.slots[index] === slot;
    const isChosen = this.#cross.slot !== undefined && isThere;
    const at = isChosen ? { x: axes.x(slot + 0.5) } : this.#cross;
    this.#canvas.dataset.label = this.#painter.drawCross(at, isChosen ? candles.rows[index][4] : undefined);
    if (isThere) return index;
    return index > 0 && index < candles.length ? NaN : -1;
  }

  /** The line above the chart: the candle under the crosshair, else the newest. */
  #readOut(at) {
    const { candles } = this, parts = $("readout"), part = (name) => parts.querySelector(`[data-of=${name}]`);
    const index = at === -1 ? (candles?.length ?? 0) - 1 : at;
    const row = candles?.rows[index];
    put(part("time"), row ? shortTime(row[0]) : "–");
    FIELDS.forEach((name, place) => {
      const text = row?.[place + 1];
      put(part(name), !row ? "–" : name === "volume" ? grouped(text) : price(text, candles.decimals));
    });
    const hasMore = Boolean(candles?.rows.at(-1)?.[6]);
    for (const [name, place] of Object.entries(MORE)) {
      part(name).parentElement.hidden = !hasMore;
      put(part(name), row?.[place] ? grouped(row[place]) : "–");
    }
    putChange(part("change"), row ? candles.bars[index][CLOSE] / candles.bars[index][OPEN] - 1 : null);
    put(part("state"), Number.isNaN(at) ? "no candle at the exchange" : row && candles.isForming(index) ? "forming" : "");
  }
}
