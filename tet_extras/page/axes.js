// Where the chart's candles stand: how wide they are, which is at the right edge, and how far one may go.

export const AXIS_HEIGHT = 26, MARGIN_SLOTS = 4, VOLUME_SHARE = 0.19;
const MAX_WIDTH = 60;

export class Axes {
  right = 0; // the slot at the right edge
  width = 8; // of a candle, in pixels
  size = { width: 0, height: 0 };
  candles = null;
  labelLength = 0; // of the longest price, in characters

  get plotWidth() {
    return Math.max(50, this.size.width - this.axisWidth);
  }

  get axisWidth() {
    return Math.max(60, 20 + 7.7 * this.labelLength);
  }

  get plotHeight() {
    return Math.max(50, this.size.height - AXIS_HEIGHT);
  }

  /** Where the pane of the volume begins. */
  get paneTop() {
    return Math.round(this.plotHeight * (1 - VOLUME_SHARE));
  }

  x(slot) {
    return this.plotWidth - (this.right - slot) * this.width;
  }

  slotAt(x) {
    return this.right - (this.plotWidth - x) / this.width;
  }

  /** How many slots are in sight. */
  get wide() {
    return this.plotWidth / this.width;
  }

  get #last() {
    return this.candles.slots.at(-1);
  }

  /** The newest candles at a readable width. */
  reset() {
    const wanted = Math.max(20, Math.min(this.plotWidth / 7.5, this.candles.length + MARGIN_SLOTS));
    this.width = Math.min(24, this.plotWidth / wanted);
    this.right = this.#last + 1 + MARGIN_SLOTS;
  }

  all() {
    this.right = this.#last + 2;
    this.width = this.plotWidth / (this.right - this.candles.slots[0] + 1);
  }

  /** Zoom at a place; the newest candle, where it is in sight, stays where it is when one zooms out. */
  zoom(factor, x) {
    const end = this.#last + 1, isSeen = this.right >= end && this.x(end) > 0;
    const slot = factor < 1 && isSeen ? end : this.slotAt(x), place = factor < 1 && isSeen ? this.x(end) : x;
    const least = this.plotWidth / (this.#last - this.candles.slots[0] + 12);
    this.width = Math.min(MAX_WIDTH, Math.max(Math.min(least, 3), this.width * factor));
    this.right = slot + (this.plotWidth - place) / this.width;
    this.clamp();
  }

  pan(slots) {
    this.right += slots;
    this.clamp();
  }

  /** Some candles stay in sight. */
  clamp() {
    const first = this.candles.slots[0], { wide } = this;
    this.right = Math.max(first + Math.min(10, wide), Math.min(this.#last + 1 + Math.max(MARGIN_SLOTS, wide * 0.8), this.right));
  }

  /** Which price is where: what is in sight, from one candle to another, fills the height above the volume. */
  scale(from, to) {
    let low = Infinity, high = -Infinity, most = 0;
    for (let index = from; index < to; index++) {
      const [, top, bottom, , amount] = this.candles.bars[index];
      if (bottom < low) low = bottom;
      if (top > high) high = top;
      if (amount > most) most = amount;
    }
    if (low > high) [, high, low] = this.candles.bars.at(-1);
    const room = (high - low) * 0.06 || high * 0.01;
    low -= room;
    high += room;
    const top = 8, height = this.paneTop - 4 - top, tall = this.plotHeight - this.paneTop - 16;
    return {
      low, high, most,
      y: (price) => top + ((high - price) / (high - low)) * height,
      price: (y) => high - ((y - top) / height) * (high - low),
      volume: (amount) => (most ? (amount / most) * Math.max(4, tall) : 0),
    };
  }
}
