// The chart of one pair: candles and volume on a canvas; zoom, pan, crosshair.

import { Candles } from "./candles.js";
import { MONTHS, gridOf, lengthOf, monthOpen, put, putChange, shortTime, volume } from "./format.js";

const $ = (id) => document.getElementById(id);
const OPEN = 0, HIGH = 1, LOW = 2, CLOSE = 3, VOLUME = 4;
const FIELDS = ["open", "high", "low", "close", "volume"];
const DAY_MS = 864e5;
const AXIS_HEIGHT = 26, MARGIN_SLOTS = 4, TICK_GAP = 92, MAX_WIDTH = 60, VOLUME_SHARE = 0.17;
const TIME_UNITS = [1e3, 5e3, 15e3, 3e4, 6e4, 3e5, 9e5, 18e5, 36e5, 72e5, 144e5, 216e5, 432e5];
const DAY_UNITS = [1, 2, 4, 7, 14];
const MONTH_UNITS = [1, 3, 6, 12, 24, 60];

export class ChartView {
  symbol = "";
  timeframe = "";
  candles = null;
  #feed;
  #actions;
  #canvas = $("chart");
  #context = this.#canvas.getContext("2d");
  #size = { width: 0, height: 0 };
  #right = 0; // the slot at the right edge
  #width = 8; // of a candle, in pixels
  #cross = null; // where the pointer is
  #pointers = new Map();
  #frame = 0;
  #colours = {};
  #hatch = null;

  constructor(feed, actions) {
    this.#feed = feed;
    this.#actions = actions;
    new ResizeObserver(() => this.#resize()).observe($("plot"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.#colours = {}; this.#redraw(); });
    this.#listen();
    $("previous").addEventListener("click", () => actions.step(-1));
    $("following").addEventListener("click", () => actions.step(1));
    $("zoom-in").addEventListener("click", () => this.#zoom(1.4, this.#plotWidth));
    $("zoom-out").addEventListener("click", () => this.#zoom(1 / 1.4, this.#plotWidth));
    $("zoom-all").addEventListener("click", () => this.#showAll());
    $("zoom-reset").addEventListener("click", () => this.#reset());
  }

  /** Show a pair; its candles are asked for. */
  show(symbol, timeframe) {
    const row = this.#feed.row(symbol, timeframe);
    if (this.symbol === symbol && this.timeframe === timeframe) return this.#quote(row);
    this.symbol = symbol;
    this.timeframe = timeframe;
    this.#cross = null;
    put($("chart-name"), symbol);
    this.#quote(row);
    this.#fresh(new Candles(symbol, timeframe));
    return undefined;
  }

  hide() {
    this.symbol = this.timeframe = "";
    this.candles = null;
  }

  async #fresh(candles) {
    this.candles = candles;
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

  #say(words) {
    put($("chart-nothing"), words);
    $("chart-nothing").hidden = !words;
  }

  /** Take over what has changed. */
  update(rows, all) {
    const row = rows.find((each) => each.symbol === this.symbol && each.timeframe === this.timeframe);
    if (!row) return;
    this.#quote(row);
    const candles = this.candles;
    if (!candles || candles.isAsking) return;
    const follows = candles.length && this.#right > candles.slots.at(-1);
    const newest = candles.slots.at(-1);
    this.#try(candles, async () => {
      await (all ? candles.load() : candles.refresh());
      if (this.candles !== candles || !candles.length) return;
      if (newest === undefined) this.#reset();
      else if (follows) this.#right += candles.slots.at(-1) - newest;
    });
  }

  #quote(row) {
    put($("chart-price"), row?.price ?? "–");
    putChange($("chart-day"), row?.change_24h, " 24 h");
    const wanted = row?.completeness ? Math.round(row.candles / row.completeness) : 0;
    putChange($("chart-window"), row?.change_window, wanted ? ` ${lengthOf(wanted * gridOf(row.timeframe).step)}` : "");
    const why = !row || row.state === "fresh" ? "" : `${row.state}${row.updated ? ` since ${shortTime(row.updated)} UTC` : ""}${row.reason ? `: ${row.reason}` : ""}`;
    put($("chart-why"), why && why[0].toUpperCase() + why.slice(1));
    this.#redraw();
  }

  // What is seen

  get #plotWidth() {
    return Math.max(50, this.#size.width - this.#axisWidth);
  }

  get #axisWidth() {
    const longest = this.candles?.rows.at(-1)?.[4] ?? "";
    return Math.max(60, 20 + 7.7 * longest.length);
  }

  get #plotHeight() {
    return Math.max(50, this.#size.height - AXIS_HEIGHT);
  }

  #x(slot) {
    return this.#plotWidth - (this.#right - slot) * this.#width;
  }

  #slotAt(x) {
    return this.#right - (this.#plotWidth - x) / this.#width;
  }

  #reset() {
    const { candles } = this;
    if (!candles?.length) return;
    const wanted = Math.max(20, Math.min(this.#plotWidth / 7.5, candles.length + MARGIN_SLOTS));
    this.#width = Math.min(24, this.#plotWidth / wanted);
    this.#right = candles.slots.at(-1) + 1 + MARGIN_SLOTS;
    this.#redraw();
  }

  async #showAll() {
    const { candles } = this;
    for (let tries = 0; candles && !candles.whole && tries < 6; tries++) await this.#try(candles, () => candles.load(true));
    if (!candles?.length || this.candles !== candles) return;
    this.#right = candles.slots.at(-1) + 2;
    this.#width = this.#plotWidth / (this.#right - candles.slots[0] + 1);
    this.#redraw();
  }

  #zoom(factor, x) {
    const { candles } = this;
    if (!candles?.length) return;
    const least = this.#plotWidth / (candles.slots.at(-1) - candles.slots[0] + 12);
    const slot = this.#slotAt(x);
    this.#width = Math.min(MAX_WIDTH, Math.max(Math.min(least, 3), this.#width * factor));
    this.#right = slot + (this.#plotWidth - x) / this.#width;
    this.#clamp();
  }

  #pan(slots) {
    this.#right += slots;
    this.#clamp();
  }

  /** Some candles stay in sight; older ones are asked for when the oldest come into it. */
  #clamp() {
    const { candles } = this;
    if (!candles?.length) return;
    const first = candles.slots[0], last = candles.slots.at(-1), wide = this.#plotWidth / this.#width;
    this.#right = Math.max(first + Math.min(10, wide), Math.min(last + 1 + Math.max(MARGIN_SLOTS, wide * 0.8), this.#right));
    if (!candles.whole && !candles.isAsking && this.#right - wide < first + 50) this.#try(candles, () => candles.load(true));
    this.#redraw();
  }

  // Pointer and keys

  #listen() {
    const canvas = this.#canvas, at = (event) => ({ x: event.offsetX, y: event.offsetY });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const scale = event.deltaMode === 1 ? 16 : 1;
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        this.#pan(((event.deltaX || event.deltaY) * scale) / this.#width);
      } else {
        this.#zoom(Math.exp(-event.deltaY * scale * 0.0016), Math.min(this.#plotWidth, event.offsetX));
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
      this.#pan((from.x - to.x) / this.#width);
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
    const tenth = this.#plotWidth / this.#width / 10;
    const act = {
      ArrowLeft: () => (event.shiftKey ? this.#pan(-tenth) : this.#actions.step(-1)),
      ArrowRight: () => (event.shiftKey ? this.#pan(tenth) : this.#actions.step(1)),
      ArrowUp: () => this.#zoom(1.25, this.#plotWidth),
      ArrowDown: () => this.#zoom(0.8, this.#plotWidth),
      "+": () => this.#zoom(1.25, this.#plotWidth),
      "-": () => this.#zoom(0.8, this.#plotWidth),
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
    const at = this.#cross ? candles.place(Math.floor(this.#slotAt(this.#cross.x))) + steps : candles.length - 1;
    const index = Math.max(0, Math.min(candles.length - 1, at));
    const slot = candles.slots[index] + 0.5;
    if (this.#x(slot) < 0) this.#pan((this.#x(slot) - 40) / this.#width);
    if (this.#x(slot) > this.#plotWidth) this.#pan((this.#x(slot) - this.#plotWidth + 40) / this.#width);
    this.#cross = { x: this.#x(slot), y: this.#scale?.y(candles.bars[index][CLOSE]) ?? 0 };
    $("readout").setAttribute("aria-live", "polite");
    this.#redraw();
  }

  // Drawing

  #scale = null;

  #resize() {
    const { clientWidth: width, clientHeight: height } = $("plot");
    if (!width || !height) return;
    const before = this.#size.width, ratio = devicePixelRatio || 1;
    this.#size = { width, height };
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
    if (!before) this.#reset();
    this.#draw(); // at once: a new size has cleared it
  }

  #redraw() {
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #colour(name) {
    return (this.#colours[name] ??= getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const context = this.#context, { width, height } = this.#size, { candles } = this;
    if (!width || $("chart-view").hidden) return;
    const ratio = this.#canvas.width / width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!candles?.length) return this.#readOut(-1);
    const from = Math.max(0, candles.place(Math.floor(this.#slotAt(0))) - 1);
    const to = Math.min(candles.length, candles.place(Math.ceil(this.#right)) + 1);
    this.#scale = this.#scaleOf(from, to);
    this.#drawTimes();
    this.#drawPrices();
    context.save();
    context.beginPath();
    context.rect(0, 0, this.#plotWidth, this.#plotHeight);
    context.clip();
    this.#drawGaps(from, to);
    if (this.#width < 2) this.#drawColumns(from, to);
    else for (let index = from; index < to; index++) this.#drawCandle(index);
    context.restore();
    this.#drawLast();
    const index = this.#drawCross();
    this.#canvas.setAttribute("aria-label", `Candles of ${this.symbol}, ${this.timeframe}: ${candles.length} from ${shortTime(candles.rows[0][0])} to ${shortTime(candles.rows.at(-1)[0])} UTC, last price ${candles.rows.at(-1)[4]}`);
    return this.#readOut(index);
  }

  /** Which price is where: what is in sight fills the height above the volume. */
  #scaleOf(from, to) {
    let low = Infinity, high = -Infinity, most = 0;
    for (let index = from; index < to; index++) {
      const bar = this.candles.bars[index];
      if (bar[LOW] < low) low = bar[LOW];
      if (bar[HIGH] > high) high = bar[HIGH];
      if (bar[VOLUME] > most) most = bar[VOLUME];
    }
    if (low > high) [low, high] = [this.candles.bars.at(-1)[LOW], this.candles.bars.at(-1)[HIGH]];
    const room = (high - low) * 0.06 || high * 0.01;
    low -= room;
    high += room;
    const height = this.#plotHeight * (1 - VOLUME_SHARE), top = 8;
    return {
      low, high, most,
      y: (price) => top + ((high - price) / (high - low)) * (height - top),
      price: (y) => high - ((y - top) / (height - top)) * (high - low),
      volume: (amount) => (most ? (amount / most) * this.#plotHeight * VOLUME_SHARE * 0.85 : 0),
    };
  }

  #drawPrices() {
    const context = this.#context, { low, high, y } = this.#scale;
    const rough = ((high - low) * 46) / this.#plotHeight, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
    const decimals = Math.min(12, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
    context.font = `12px ${this.#font}`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const last = y(this.candles.bars.at(-1)[CLOSE]);
    for (let tick = Math.ceil(low / step); tick * step <= high; tick++) {
      const at = Math.round(y(tick * step)) + 0.5;
      if (at < 6 || at > this.#plotHeight - 6) continue;
      this.#line(0, at, this.#plotWidth, at, this.#colour("line"));
      if (Math.abs(at - last) < 16) continue; // the last price's label is there
      context.fillStyle = this.#colour("muted");
      context.fillText((tick * step).toFixed(decimals), this.#plotWidth + 8, at);
    }
    this.#line(this.#plotWidth + 0.5, 0, this.#plotWidth + 0.5, this.#plotHeight, this.#colour("line-strong"));
    this.#line(0, this.#plotHeight + 0.5, this.#size.width, this.#plotHeight + 0.5, this.#colour("line-strong"));
    context.fillText(volume(this.#scale.most), this.#plotWidth + 8, Math.max(y(low) + 8, this.#plotHeight - this.#scale.volume(this.#scale.most)));
  }

  get #font() {
    return (this.#colours.font ??= getComputedStyle(document.body).fontFamily);
  }

  #line(x1, y1, x2, y2, colour, dash = []) {
    const context = this.#context;
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.setLineDash(dash);
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
    context.setLineDash([]);
  }

  /** The moments to mark: [ms, label, how much it matters: 0 hours, 1 a day or month, 2 a month or year]. */
  #timeTicks() {
    const { grid } = this.candles, start = grid.time(this.#slotAt(0)), end = grid.time(this.#right);
    const perPixel = grid.step / this.#width, least = perPixel * TICK_GAP;
    const unit = TIME_UNITS.find((each) => each >= least && each >= grid.step);
    const ticks = [];
    if (unit) {
      for (let at = Math.ceil(start / unit) * unit; at <= end; at += unit) {
        const date = new Date(at), text = date.toISOString();
        if (at % DAY_MS === 0) ticks.push([at, `${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]}`, 1]);
        else ticks.push([at, unit < 6e4 ? text.slice(11, 19) : text.slice(11, 16), 0]);
      }
      return ticks;
    }
    const days = DAY_UNITS.find((each) => each * DAY_MS >= least);
    const date = new Date(start);
    const months = MONTH_UNITS.find((each) => each * 30 * DAY_MS >= least) ?? 120;
    for (let month = date.getUTCFullYear() * 12 + date.getUTCMonth(); monthOpen(month) <= end; month++) {
      if (!days && month % months) continue;
      const first = new Date(monthOpen(month)), isYear = month % 12 === 0;
      if (+first >= start) ticks.push([+first, isYear ? String(first.getUTCFullYear()) : MONTHS[month % 12], isYear || days ? 2 : 1]);
      const length = new Date(monthOpen(month + 1, 0)).getUTCDate();
      for (let day = 1 + days; day <= length + 1 - days / 2; day += days) {
        const at = monthOpen(month, day);
        if (at >= start && at <= end) ticks.push([at, days < 4 ? `${day} ${MONTHS[month % 12]}` : String(day), 0]);
      }
    }
    return ticks;
  }

  #drawTimes() {
    const context = this.#context, { grid } = this.candles;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [ms, label, weight] of this.#timeTicks()) {
      const x = Math.round(this.#x(grid.slot(ms))) + 0.5;
      if (x < 0 || x > this.#plotWidth) continue;
      this.#line(x, 0, x, this.#plotHeight, this.#colour(weight ? "line-strong" : "line"), weight ? [] : [2, 3]);
      context.font = `${weight ? "600 " : ""}12px ${this.#font}`;
      context.fillStyle = this.#colour(weight ? "ink" : "muted");
      const half = context.measureText(label).width / 2;
      if (x > half && x + half < this.#plotWidth) context.fillText(label, x, this.#plotHeight + AXIS_HEIGHT / 2 + 1);
    }
  }

  /** Where the exchange has no candles: hatched, from the one before to the one after. */
  #drawGaps(from, to) {
    const context = this.#context, { slots } = this.candles;
    for (let index = Math.max(1, from); index < to; index++) {
      if (slots[index] - slots[index - 1] <= 1) continue;
      const x = this.#x(slots[index - 1] + 1), wide = Math.max(1, this.#x(slots[index]) - x);
      context.fillStyle = this.#hatching();
      context.fillRect(x, 0, wide, this.#plotHeight);
      const label = "no candles", font = `11px ${this.#font}`;
      context.font = font;
      if (wide < context.measureText(label).width + 10) continue;
      context.fillStyle = this.#colour("muted");
      context.textAlign = "center";
      context.fillText(label, x + wide / 2, 18);
    }
  }

  #hatching() {
    if (this.#hatch?.colour === this.#colour("line-strong")) return this.#hatch.pattern;
    const tile = document.createElement("canvas"), colour = this.#colour("line-strong");
    tile.width = tile.height = 8;
    const context = tile.getContext("2d");
    context.strokeStyle = colour;
    context.beginPath();
    for (const offset of [-8, 0, 8]) {
      context.moveTo(offset - 1, 9);
      context.lineTo(offset + 9, -1);
    }
    context.stroke();
    this.#hatch = { colour, pattern: this.#context.createPattern(tile, "repeat") };
    return this.#hatch.pattern;
  }

  #drawCandle(index) {
    const context = this.#context, { y } = this.#scale, bar = this.candles.bars[index];
    const left = this.#x(this.candles.slots[index]), centre = Math.round(left + this.#width / 2 - 0.5) + 0.5;
    const half = Math.max(0.5, Math.floor((this.#width * 0.72) / 2));
    const colour = this.#colour(bar[CLOSE] >= bar[OPEN] ? "up" : "down");
    const tall = this.#scale.volume(bar[VOLUME]);
    context.fillStyle = colour;
    context.globalAlpha = 0.28;
    context.fillRect(centre - half, this.#plotHeight - tall, half * 2, tall);
    context.globalAlpha = 1;
    const top = y(Math.max(bar[OPEN], bar[CLOSE])), bottom = y(Math.min(bar[OPEN], bar[CLOSE]));
    if (this.candles.isForming(index)) { // hollow and dashed: it may still change
      const box = [Math.round(centre - half - 0.5) + 0.5, Math.round(top) + 0.5, Math.max(1, half * 2), Math.max(1, Math.round(bottom - top))];
      this.#line(centre, y(bar[HIGH]), centre, box[1], colour, [2, 2]);
      this.#line(centre, box[1] + box[3], centre, y(bar[LOW]), colour, [2, 2]);
      context.strokeStyle = colour;
      context.setLineDash([3, 2]);
      context.strokeRect(...box);
      context.setLineDash([]);
      return;
    }
    this.#line(centre, y(bar[HIGH]), centre, y(bar[LOW]), colour);
    context.fillRect(centre - half, top, half * 2, Math.max(1, bottom - top));
  }

  /** Where a candle is narrower than two pixels: each column of pixels has the extremes of its candles. */
  #drawColumns(from, to) {
    const context = this.#context, { y } = this.#scale, { bars, slots } = this.candles;
    for (let index = from; index < to; ) {
      const x = Math.floor(this.#x(slots[index] + 0.5));
      let low = Infinity, high = -Infinity, most = 0;
      const first = bars[index][OPEN];
      let last = first;
      for (; index < to && Math.floor(this.#x(slots[index] + 0.5)) === x; index++) {
        const bar = bars[index];
        low = Math.min(low, bar[LOW]);
        high = Math.max(high, bar[HIGH]);
        most = Math.max(most, bar[VOLUME]);
        last = bar[CLOSE];
      }
      context.fillStyle = this.#colour(last >= first ? "up" : "down");
      context.fillRect(x, y(high), 1, Math.max(1, y(low) - y(high)));
      const tall = this.#scale.volume(most);
      context.globalAlpha = 0.28;
      context.fillRect(x, this.#plotHeight - tall, 1, tall);
      context.globalAlpha = 1;
    }
  }

  /** A label at the price axis. */
  #tag(text, y, ground, ink) {
    const context = this.#context;
    context.font = `600 12px ${this.#font}`;
    context.fillStyle = ground;
    context.fillRect(this.#plotWidth + 1, y - 10, this.#axisWidth - 1, 20);
    context.fillStyle = ink;
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(text, this.#plotWidth + 8, y + 0.5);
  }

  #drawLast() {
    const bar = this.candles.bars.at(-1), y = Math.round(this.#scale.y(bar[CLOSE])) + 0.5;
    if (y < 0 || y > this.#plotHeight) return;
    const colour = this.#colour(bar[CLOSE] >= bar[OPEN] ? "up" : "down");
    this.#line(0, y, this.#plotWidth, y, colour, [1, 3]);
    this.#tag(this.candles.rows.at(-1)[4], Math.min(this.#plotHeight - 10, Math.max(10, y)), colour, this.#colour("surface"));
  }

  /** The crosshair; returns the candle it is on: -1 is none, NaN a gap. */
  #drawCross() {
    const { candles } = this, context = this.#context;
    if (!this.#cross || this.#cross.x > this.#plotWidth) return -1;
    const slot = Math.floor(this.#slotAt(this.#cross.x)), x = Math.round(this.#x(slot + 0.5) - 0.5) + 0.5;
    const ink = this.#colour("muted"), y = Math.round(this.#cross.y) + 0.5;
    this.#line(x, 0, x, this.#plotHeight, ink, [4, 3]);
    if (y < this.#plotHeight) this.#line(0, y, this.#plotWidth, y, ink, [4, 3]);
    if (y < this.#plotHeight * (1 - VOLUME_SHARE)) this.#tag(this.#scale.price(y).toFixed(candles.decimals), Math.max(10, y), this.#colour("ink"), this.#colour("surface"));
    const index = candles.place(slot), found = candles.slots[index] === slot;
    const label = shortTime(new Date(candles.grid.time(slot)).toISOString().replace(/\.\d+/, ""));
    context.font = `600 12px ${this.#font}`;
    const wide = context.measureText(label).width + 16, left = Math.max(0, Math.min(this.#plotWidth - wide, x - wide / 2));
    context.fillStyle = this.#colour("ink");
    context.fillRect(left, this.#plotHeight + 1, wide, AXIS_HEIGHT - 4);
    context.fillStyle = this.#colour("surface");
    context.textAlign = "center";
    context.fillText(label, left + wide / 2, this.#plotHeight + AXIS_HEIGHT / 2);
    if (found) return index;
    return index > 0 && index < candles.length ? NaN : -1;
  }

  /** The line above the chart: the candle under the crosshair, else the newest; with the exchange's own texts. */
  #readOut(at) {
    const { candles } = this, parts = $("readout"), part = (name) => parts.querySelector(`[data-of=${name}]`);
    const index = at === -1 ? (candles?.length ?? 0) - 1 : at;
    const row = candles?.rows[index];
    put(part("time"), row ? shortTime(row[0]) : "–");
    FIELDS.forEach((name, place) => put(part(name), row ? row[place + 1] : "–"));
    putChange(part("change"), row ? candles.bars[index][CLOSE] / candles.bars[index][OPEN] - 1 : null);
    put(part("state"), Number.isNaN(at) ? "no candle at the exchange" : row && candles.isForming(index) ? "forming" : "");
  }
}
