// Draws the chart on its canvas: candles, volume, grid and labels, as the axes say.

import { AXIS_HEIGHT } from "./axes.js";
import { MONTHS, grouped, monthOpen, price, shortTime, volume } from "./format.js";

const OPEN = 0, HIGH = 1, LOW = 2, CLOSE = 3, VOLUME = 4;
const DAY_MS = 864e5, TICK_GAP = 92;
const TIME_UNITS = [1e3, 5e3, 15e3, 3e4, 6e4, 3e5, 9e5, 18e5, 36e5, 72e5, 144e5, 216e5, 432e5];
const DAY_UNITS = [1, 2, 4, 7, 14];
const MONTH_UNITS = [1, 3, 6, 12, 24, 60];

export class Painter {
  scale = null;
  #context;
  #axes;
  #colours = {};
  #hatch = null;

  constructor(canvas, axes) {
    this.#context = canvas.getContext("2d");
    this.#axes = axes;
  }

  /** Ask for the colours anew: the scheme has changed. */
  forget() {
    this.#colours = {};
  }

  #colour(name) {
    return (this.#colours[name] ??= getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  }

  get #font() {
    return (this.#colours.font ??= getComputedStyle(document.body).fontFamily);
  }

  clear() {
    const { width, height } = this.#axes.size, ratio = this.#context.canvas.width / width;
    this.#context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#context.clearRect(0, 0, width, height);
  }

  /** All but the crosshair. */
  draw(unit) {
    const { candles, right, plotWidth, plotHeight, width } = this.#axes, context = this.#context;
    const from = Math.max(0, candles.place(Math.floor(this.#axes.slotAt(0))) - 1);
    const to = Math.min(candles.length, candles.place(Math.ceil(right)) + 1);
    this.scale = this.#axes.scale(from, to);
    this.#drawTimes();
    this.#drawPrices();
    this.#drawPane(unit);
    context.save();
    context.beginPath();
    context.rect(0, 0, plotWidth, plotHeight);
    context.clip();
    this.#drawGaps(from, to);
    if (width < 2) this.#drawColumns(from, to);
    else for (let index = from; index < to; index++) this.#drawCandle(index);
    context.restore();
    this.#drawLast();
  }

  #drawPrices() {
    const context = this.#context, { paneTop, plotWidth, plotHeight, size, candles } = this.#axes, { low, high, y } = this.scale;
    const rough = ((high - low) * 46) / plotHeight, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
    const decimals = Math.min(12, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
    context.font = `12px ${this.#font}`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const last = y(candles.bars.at(-1)[CLOSE]);
    for (let tick = Math.ceil(low / step); tick * step <= high; tick++) {
      const at = Math.round(y(tick * step)) + 0.5;
      if (at < 6 || at > paneTop - 6) continue;
      this.#line(0, at, plotWidth, at, this.#colour("line"));
      if (Math.abs(at - last) < 16) continue; // the last price's label is there
      context.fillStyle = this.#colour("muted");
      context.fillText(grouped((tick * step).toFixed(decimals)), plotWidth + 8, at);
    }
    this.#line(plotWidth + 0.5, 0, plotWidth + 0.5, plotHeight, this.#colour("line-strong"));
    this.#line(0, plotHeight + 0.5, size.width, plotHeight + 0.5, this.#colour("line-strong"));
  }

  /** The volume has a pane of its own, with its name and its greatest in sight. */
  #drawPane(unit) {
    const context = this.#context, { paneTop, size, plotHeight, plotWidth } = this.#axes, { most } = this.scale;
    this.#line(0, paneTop + 0.5, size.width, paneTop + 0.5, this.#colour("line-strong"));
    context.font = `11px ${this.#font}`;
    context.fillStyle = this.#colour("muted");
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(unit ? `Volume, ${unit}` : "Volume", 8, paneTop + 9);
    context.fillText(volume(most), plotWidth + 8, Math.max(paneTop + 9, plotHeight - this.scale.volume(most)));
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
    const { grid } = this.#axes.candles, start = grid.time(this.#axes.slotAt(0)), end = grid.time(this.#axes.right);
    const perPixel = grid.step / this.#axes.width, least = perPixel * TICK_GAP;
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
    const context = this.#context, { grid } = this.#axes.candles;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [ms, label, weight] of this.#timeTicks()) {
      const x = Math.round(this.#axes.x(grid.slot(ms))) + 0.5;
      if (x < 0 || x > this.#axes.plotWidth) continue;
      this.#line(x, 0, x, this.#axes.plotHeight, this.#colour(weight ? "line-strong" : "line"), weight ? [] : [2, 3]);
      context.font = `${weight ? "600 " : ""}12px ${this.#font}`;
      context.fillStyle = this.#colour(weight ? "ink" : "muted");
      const half = context.measureText(label).width / 2;
      if (x > half && x + half < this.#axes.plotWidth) context.fillText(label, x, this.#axes.plotHeight + AXIS_HEIGHT / 2 + 1);
    }
  }

  /** Where the exchange has no candles: hatched, from the one before to the one after. */
  #drawGaps(from, to) {
    const context = this.#context, { slots } = this.#axes.candles;
    for (let index = Math.max(1, from); index < to; index++) {
      if (slots[index] - slots[index - 1] <= 1) continue;
      const x = this.#axes.x(slots[index - 1] + 1), wide = Math.max(1, this.#axes.x(slots[index]) - x);
      context.fillStyle = this.#hatching();
      context.fillRect(x, 0, wide, this.#axes.plotHeight);
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
    const context = this.#context, { y } = this.scale, bar = this.#axes.candles.bars[index];
    const left = this.#axes.x(this.#axes.candles.slots[index]), centre = Math.round(left + this.#axes.width / 2 - 0.5) + 0.5;
    const half = Math.max(0.5, Math.floor((this.#axes.width * 0.72) / 2));
    const colour = this.#colour(bar[CLOSE] >= bar[OPEN] ? "up" : "down");
    const tall = this.scale.volume(bar[VOLUME]);
    context.fillStyle = colour;
    context.globalAlpha = 0.28;
    context.fillRect(centre - half, this.#axes.plotHeight - tall, half * 2, tall);
    context.globalAlpha = 1;
    const top = y(Math.max(bar[OPEN], bar[CLOSE])), bottom = y(Math.min(bar[OPEN], bar[CLOSE]));
    if (this.#axes.candles.isForming(index)) { // hollow and dashed: it may still change
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
    const context = this.#context, { y } = this.scale, { bars, slots } = this.#axes.candles;
    for (let index = from; index < to; ) {
      const x = Math.floor(this.#axes.x(slots[index] + 0.5));
      let low = Infinity, high = -Infinity, most = 0;
      const first = bars[index][OPEN];
      let last = first;
      for (; index < to && Math.floor(this.#axes.x(slots[index] + 0.5)) === x; index++) {
        const bar = bars[index];
        low = Math.min(low, bar[LOW]);
        high = Math.max(high, bar[HIGH]);
        most = Math.max(most, bar[VOLUME]);
        last = bar[CLOSE];
      }
      context.fillStyle = this.#colour(last >= first ? "up" : "down");
      context.fillRect(x, y(high), 1, Math.max(1, y(low) - y(high)));
      const tall = this.scale.volume(most);
      context.globalAlpha = 0.28;
      context.fillRect(x, this.#axes.plotHeight - tall, 1, tall);
      context.globalAlpha = 1;
    }
  }

  /** A label at the price axis. */
  #tag(text, y, ground, ink) {
    const context = this.#context;
    context.font = `600 12px ${this.#font}`;
    context.fillStyle = ground;
    context.fillRect(this.#axes.plotWidth + 1, y - 10, this.#axes.axisWidth - 1, 20);
    context.fillStyle = ink;
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(text, this.#axes.plotWidth + 8, y + 0.5);
  }

  #drawLast() {
    const { candles, plotWidth, paneTop } = this.#axes, bar = candles.bars.at(-1), y = Math.round(this.scale.y(bar[CLOSE])) + 0.5;
    if (y < 0 || y > paneTop) return;
    const colour = this.#colour(bar[CLOSE] >= bar[OPEN] ? "up" : "down");
    this.#line(0, y, plotWidth, y, colour, [1, 3]);
    this.#tag(price(candles.rows.at(-1)[4], candles.decimals), Math.max(10, y), colour, this.#colour("surface"));
  }

  /** The crosshair, with its labels; `close` is the price it is on, where it was put on a candle. */
  drawCross(cross, close) {
    const context = this.#context, { plotWidth, plotHeight, paneTop, candles } = this.#axes;
    const slot = Math.floor(this.#axes.slotAt(cross.x)), x = Math.round(this.#axes.x(slot + 0.5) - 0.5) + 0.5;
    const ink = this.#colour("muted"), y = Math.round(close === undefined ? cross.y : this.scale.y(Number(close))) + 0.5;
    this.#line(x, 0, x, plotHeight, ink, [4, 3]);
    if (y < plotHeight) this.#line(0, y, plotWidth, y, ink, [4, 3]);
    const label = price(close ?? this.scale.price(y).toFixed(candles.decimals), candles.decimals);
    if (y < paneTop) this.#tag(label, Math.max(10, y), this.#colour("ink"), this.#colour("surface"));
    const time = shortTime(new Date(candles.grid.time(slot)).toISOString().replace(/\.\d+/, ""));
    context.font = `600 12px ${this.#font}`;
    const wide = context.measureText(time).width + 16, left = Math.max(0, Math.min(plotWidth - wide, x - wide / 2));
    context.fillStyle = this.#colour("ink");
    context.fillRect(left, plotHeight + 1, wide, AXIS_HEIGHT - 4);
    context.fillStyle = this.#colour("surface");
    context.textAlign = "center";
    context.fillText(time, left + wide / 2, plotHeight + AXIS_HEIGHT / 2);
    return y < paneTop ? label : "";
  }
}
