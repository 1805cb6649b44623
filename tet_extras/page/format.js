// How figures are written. Prices stay the texts they come as; numbers made of them are only for drawing.

const STEPS = { s: 1e3, m: 6e4, h: 36e5, d: 864e5, w: 6048e5, M: 2629746e3 };
/** When a month opens: months are numbered from the year 0. */
export const monthOpen = (month, day = 1) => Date.UTC(2000, month - 24000, day);

const FIRST_MONDAY_MS = 4 * 864e5;
export const MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");

/** A timeframe's candles as numbers along its grid: where a moment stands there, and when a number opens. */
export function gridOf(timeframe) {
  const step = parseInt(timeframe, 10) * STEPS[timeframe.slice(-1)];
  if (timeframe.endsWith("M")) {
    return {
      step,
      slot: (ms) => {
        const date = new Date(ms);
        const month = date.getUTCFullYear() * 12 + date.getUTCMonth();
        const open = monthOpen(month), close = monthOpen(month + 1);
        return month + Math.min(1, Math.max(0, (ms - open) / (close - open) || 0));
      },
      time: (slot) => monthOpen(Math.floor(slot)),
    };
  }
  const origin = timeframe.endsWith("w") ? FIRST_MONDAY_MS : 0;
  return { step, slot: (ms) => (ms - origin) / step, time: (slot) => origin + Math.floor(slot) * step };
}

/** 0.0123 as "+1.23%"; a minus sign is one. */
export function percent(share) {
  if (share === null || share === undefined) return "–";
  const text = Math.abs(share * 100).toFixed(2);
  return (text === "0.00" ? "" : share > 0 ? "+" : "−") + text + "%";
}

/** Which way a share goes, as it is written: up, down, or "" for neither. */
export function wayOf(share) {
  if (share === null || share === undefined || Math.abs(share * 100) < 0.005) return "";
  return share > 0 ? "up" : "down";
}

/** A span for people: 42 s, 12 min, 3 h 5 min, 2 d 4 h. */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const days = Math.floor(whole / 86400), hours = Math.floor(whole / 3600) % 24, minutes = Math.floor(whole / 60) % 60;
  if (days) return `${days} d ${hours} h`;
  if (whole >= 3600) return `${hours} h ${minutes} min`;
  return whole >= 120 ? `${minutes} min` : `${whole} s`;
}

/** A length of candles in one word: 30 d, 12 h. */
export function lengthOf(ms) {
  return ms >= 2 * 864e5 ? `${Math.round(ms / 864e5)} d` : ms >= 2 * 36e5 ? `${Math.round(ms / 36e5)} h` : `${Math.round(ms / 6e4)} min`;
}

/** 2026-01-15T12:00:00Z as "15 Jan 12:00", with seconds where they are not nought. */
export function shortTime(text) {
  if (!text) return "–";
  return `${+text.slice(8, 10)} ${MONTHS[text.slice(5, 7) - 1]} ${clock(text)}`;
}

/** The time of day. */
export function clock(text) {
  return text.slice(17, 19) === "00" ? text.slice(11, 16) : text.slice(11, 19);
}

/** A completeness, cut, so that 100% means all. */
export function completeness(share) {
  return share === null ? "–" : (Math.floor(share * 1e4) / 100).toFixed(share === 1 ? 0 : 2) + "%";
}

/** How many decimals a text has. */
export const decimalsOf = (text) => (text.includes(".") ? text.length - 1 - text.indexOf(".") : 0);

/** 1234567.5 as "1,234,567.5"; the text is the number, exactly. */
export function grouped(text) {
  const [whole, ...rest] = text.split(".");
  return [whole.replace(/\B(?=(\d{3})+$)/g, ","), ...rest].join(".");
}

/** A price with all the decimals of its pair: "3432.9" as "3,432.90". What is there is never cut. */
export function price(text, decimals = 0) {
  if (text === null || text === undefined) return "–";
  const lacking = decimals - decimalsOf(text);
  return grouped(lacking > 0 ? text + (text.includes(".") ? "" : ".") + "0".repeat(lacking) : text);
}

/** What is left of a candle: 4:07, 1:04:07, 2 d 4 h. */
export function left(ms) {
  const whole = Math.max(0, Math.ceil(ms / 1000)), two = (number) => String(number).padStart(2, "0");
  if (whole >= 2 * 86400) return span(whole);
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return `${hours ? `${hours}:${two(minutes)}` : minutes}:${two(whole % 60)}`;
}

/** A volume in short: 1.2K, 3.4M. */
export function volume(number) {
  if (number === null || number === undefined) return "–";
  for (const [size, sign] of [[1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
    if (number >= size) return (number / size).toFixed(number >= 100 * size ? 0 : number >= 10 * size ? 1 : 2) + sign;
  }
  return number >= 100 ? number.toFixed(0) : String(+number.toPrecision(3));
}

/** BTC/USDT as it stands in an address. */
export const keyOf = (symbol) => symbol.replace("/", "_");

/** Where the chart of a pair is. */
export const chartPath = (symbol, timeframe) => `/chart/${encodeURIComponent(keyOf(symbol))}/${encodeURIComponent(timeframe)}`;

/** Put a text where it is not there already: nothing is drawn anew that did not change. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A change beside its arrow. */
export function putChange(element, share, suffix = "") {
  put(element, percent(share) + suffix);
  const way = wayOf(share);
  if (element.dataset.way !== way) {
    element.dataset.way = way;
    element.classList.toggle("up", way === "up");
    element.classList.toggle("down", way === "down");
  }
}
