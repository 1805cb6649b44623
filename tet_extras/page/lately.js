// What happened lately: the log's lines that an operator looks for, the newest first.

import { put, shortTime } from "./format.js";

const $ = (id) => document.getElementById(id);
const KNOWN = new Set(["time", "level", "event", "times", "last", "traceback"]);

/** The facts of an event, as the log writes them. */
const factsOf = (event) => Object.entries(event).filter(([name]) => !KNOWN.has(name)).map(([name, fact]) => `${name}: ${fact}`).join(", ");

/** A time with its seconds, also where they are nought. */
function written(text) {
  const short = shortTime(text);
  return text.slice(17, 19) === "00" ? `${short}:00` : short;
}

function line(event) {
  const item = document.createElement("li"), time = document.createElement("time"), words = document.createElement("b");
  item.dataset.level = event.level;
  time.dateTime = event.last ?? event.time;
  time.textContent = written(event.last ?? event.time);
  words.textContent = event.event;
  const often = event.times ? `${event.times} times since ${written(event.time)}` : "";
  item.append(time, words, ` ${[factsOf(event), often].filter(Boolean).join("; ")}`);
  return item;
}

/** Keeps the list of events as the service has it: asked for when the status comes. */
export class Lately {
  #tag = "";
  #isAsking = false;

  /** Ask, and show what is new. */
  async look() {
    if (this.#isAsking || document.hidden) return;
    this.#isAsking = true;
    try {
      const reply = await fetch("/api/events");
      if (reply.ok) this.#show(await reply.text());
    } catch {
      // the line above says that there is no connection
    } finally {
      this.#isAsking = false;
    }
  }

  #show(text) {
    if (text === this.#tag) return;
    this.#tag = text;
    const events = JSON.parse(text), newest = events[0];
    if (!newest) return;
    put($("lately-newest"), `${written(newest.last ?? newest.time)} ${newest.event}`);
    $("lately-newest").dataset.level = newest.level;
    put($("lately-count"), String(events.length));
    $("events").replaceChildren(...events.map(line));
  }
}
