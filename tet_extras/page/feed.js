// What the service sends: its status and the rows of the table, by server-sent events, else by asking.

const POLL_MS = 5000;
const SILENCE_MS = 13000; // the service sends its status every 5 s
const EVENTS_AGAIN_MS = 60000;

/** The data of the page. `link` is connecting, live, polling or lost; `rows` has each row by symbol and timeframe. */
export class Feed extends EventTarget {
  rows = new Map();
  status = null;
  link = "connecting";
  refusal = "";
  lostAt = null;
  #source = null;
  #offset = 0; // the exchange's time minus ours
  #heard = 0; // by the monotonic clock
  #poll = 0;
  #version = null;
  #changed = new Map(); // rows that are to be shown with the next frame
  #isAll = false;
  #showing = false;

  start() {
    this.#load().catch(() => {}); // at once; what changes until there are events comes with the next one
    this.#open();
    setInterval(() => this.#watch(), 1000);
  }

  /** The exchange's time in ms. */
  now() {
    return Date.now() + this.#offset;
  }

  /** The rows of a timeframe, as they came: in the order of the settings. */
  of(timeframe) {
    return [...this.rows.values()].filter((row) => row.timeframe === timeframe);
  }

  row(symbol, timeframe) {
    return this.rows.get(`${symbol} ${timeframe}`);
  }

  #open() {
    this.#source?.close();
    this.#heard = performance.now();
    const source = (this.#source = new EventSource("/events"));
    source.onopen = () => this.#load().catch(() => {}); // rows that change from here on are sent
    source.onerror = () => {
      if (source !== this.#source) return;
      if (source.readyState === EventSource.CLOSED) this.#ask(); // refused, not only unreachable
      else this.#lose();
    };
    source.addEventListener("status", (event) => {
      this.#heard = performance.now();
      this.#link("live");
      this.#tellStatus(JSON.parse(event.data));
    });
    source.addEventListener("rows", (event) => {
      this.#heard = performance.now();
      this.#tellRows(JSON.parse(event.data), false);
    });
  }

  /** Ask, again and again, while there are no events; these are tried again now and then. */
  #ask() {
    if (this.#poll) return;
    const began = performance.now();
    const ask = async () => {
      try {
        await this.#load();
        this.#heard = performance.now();
        this.#link("polling");
      } catch {
        this.#lose();
      }
      if (performance.now() - began > EVENTS_AGAIN_MS) {
        this.#poll = 0;
        this.#open();
      } else {
        this.#poll = setTimeout(ask, POLL_MS);
      }
    };
    this.#poll = setTimeout(ask, 0);
  }

  async #load() {
    const [status, rows] = await Promise.all(["/api/status", "/api/pairs"].map((path) => this.#get(path)));
    this.#tellStatus(status);
    this.#tellRows(rows, true);
  }

  async #get(path) {
    const reply = await fetch(path);
    this.refusal = reply.ok ? "" : (await reply.text()).trim();
    if (!reply.ok) throw new Error(this.refusal);
    return reply.json();
  }

  #tellStatus(status) {
    if (this.#version && this.#version !== status.version) location.reload(); // another script belongs to it
    this.#version = status.version;
    this.#offset = Date.parse(status.written) - Date.now();
    this.status = status;
    this.dispatchEvent(new Event("status"));
    const kept = new Set(status.symbols), before = this.rows.size;
    for (const [key, row] of this.rows) if (!kept.has(row.symbol)) this.rows.delete(key);
    if (this.rows.size < before) this.#announce([...this.rows.values()], true);
  }

  #tellRows(rows, all) {
    if (all) this.rows.clear();
    for (const row of rows) this.rows.set(`${row.symbol} ${row.timeframe}`, row);
    this.#announce(rows, all);
  }

  /** What has changed is shown together, once a frame: also what comes several times before that. */
  #announce(rows, all) {
    if (all) this.#changed.clear();
    for (const row of rows) this.#changed.set(`${row.symbol} ${row.timeframe}`, row);
    this.#isAll ||= all;
    if (this.#showing) return;
    this.#showing = true;
    if (document.hidden) setTimeout(() => this.#show(), 1000); // a hidden page has no frames
    else requestAnimationFrame(() => this.#show());
  }

  #show() {
    const rows = this.#isAll ? [...this.rows.values()] : [...this.#changed.values()], all = this.#isAll;
    this.#changed.clear();
    this.#isAll = this.#showing = false;
    this.dispatchEvent(new CustomEvent("rows", { detail: { rows, all } }));
  }

  #watch() {
    if (!this.#poll && performance.now() - this.#heard > SILENCE_MS) {
      this.#lose();
      this.#open(); // a connection that has died without a word
    }
    this.dispatchEvent(new Event("tick"));
  }

  #lose() {
    if (this.link !== "lost") this.lostAt = new Date();
    this.#link("lost");
  }

  #link(link) {
    if (this.link === link) return;
    this.link = link;
    this.dispatchEvent(new Event("link"));
  }
}
