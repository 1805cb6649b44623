// The candles of one pair: asked for, kept as numbers for drawing beside the texts they came as.

import { decimalsOf, gridOf } from "./format.js";

const FIRST_LIMIT = 3000;
const TAIL_LIMIT = 60;

export class Candles {
  rows = []; // time, open, high, low, close, volume as texts, oldest first
  slots = []; // where each stands on the timeframe's grid
  bars = []; // the five numbers of each
  closedEnd = Infinity; // a candle that opens then, or later, is still forming
  whole = false; // there are no older ones
  decimals = 0; // of the prices: the most that were seen
  #limit = FIRST_LIMIT;
  #asking = null;

  constructor(symbol, timeframe) {
    this.symbol = symbol;
    this.timeframe = timeframe;
    this.grid = gridOf(timeframe);
  }

  get length() {
    return this.rows.length;
  }

  isForming(index) {
    return Date.parse(this.rows[index][0]) >= this.closedEnd;
  }

  /** The place of the candle that stands at a slot, or would: the first one at or after it. */
  place(slot) {
    let low = 0, high = this.slots.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.slots[middle] < slot) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Ask for all, or for four times as many as before. */
  load(more = false) {
    if (more) this.#limit = Math.min(1e6, this.#limit * 4);
    const limit = this.#limit;
    return this.#once(async () => {
      const rows = await this.#ask(limit);
      this.#take(rows, 0);
      this.whole = rows.length < limit;
    });
  }

  get isAsking() {
    return this.#asking !== null;
  }

  /** Ask for the newest ones, and lay them over what is held. */
  async refresh() {
    if (!this.rows.length) return this.load();
    const rows = await this.#ask(TAIL_LIMIT);
    if (!rows.length) return undefined;
    const cut = this.rows.findIndex((row) => row[0] === rows[0][0]);
    if (cut < 0) return this.load(); // away for too long
    return this.#take(rows, cut);
  }

  #once(act) {
    this.#asking ??= act().finally(() => { this.#asking = null; });
    return this.#asking;
  }

  async #ask(limit) {
    const query = new URLSearchParams({ symbol: this.symbol, timeframe: this.timeframe, limit });
    const reply = await fetch(`/api/candles?${query}`);
    if (!reply.ok) {
      const error = new Error((await reply.text()).trim());
      error.status = reply.status;
      throw error;
    }
    const rows = await reply.json();
    this.closedEnd = Date.parse(reply.headers.get("X-Data-End")) || Infinity;
    return rows;
  }

  #take(rows, cut) {
    this.rows.length = this.slots.length = this.bars.length = cut;
    for (const row of rows) {
      this.rows.push(row);
      this.slots.push(Math.floor(this.grid.slot(Date.parse(row[0]))));
      this.bars.push([+row[1], +row[2], +row[3], +row[4], +row[5]]);
    }
    for (const row of rows) for (let field = 1; field < 5; field++) this.decimals = Math.max(this.decimals, decimalsOf(row[field]));
  }
}
