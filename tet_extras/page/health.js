// The line that says whether all is well, or why not; and the figures of the service beside its name.

import { clock, put, span } from "./format.js";

const $ = (id) => document.getElementById(id);
const SOME = 5;

const some = (names) => names.slice(0, SOME).join(", ") + (names.length > SOME ? ` and ${names.length - SOME} more` : "");

/** Failures as sentences: one for each reason, however many pairs and timeframes share it. */
function failures(entries, timeframes) {
  const byReason = new Map();
  for (const [name, reason] of Object.entries(entries ?? {})) {
    byReason.set(reason, [...(byReason.get(reason) ?? []), name]);
  }
  return [...byReason].map(([reason, names]) => `${series(names, timeframes)}: ${reason}`);
}

/** "BTC/USDT 15m", "BTC/USDT 1h" as "BTC/USDT in 15m, 1h"; where there is one timeframe alone it goes without saying. */
function series(names, timeframes) {
  const cut = names.map((name) => /^(.*) (\S+)$/.exec(name)?.slice(1) ?? [name, ""]);
  const pairs = [...new Set(cut.map(([pair]) => pair))], failing = [...new Set(cut.map(([, timeframe]) => timeframe))];
  if (names.length !== pairs.length * failing.length) return some(names);
  return some(pairs) + (timeframes.length > 1 ? ` in ${failing.join(", ")}` : "");
}

/** What the line says: a state, a verdict, a detail and the problems, all in words. */
export function judge(feed) {
  const status = feed.status;
  if (feed.link === "lost") {
    const since = feed.lostAt.toISOString();
    const detail = feed.refusal || `since ${since.slice(11, 19)} UTC. What you see is from then; trying again.`;
    return { state: "lost", verdict: "No connection to the service", detail, problems: [] };
  }
  if (!status) return { state: "connecting", verdict: "Connecting to the service", detail: "", problems: [] };
  const { live, ready, reasons } = status.health;
  const failed = failures(status.failed_symbols, status.timeframes);
  const invalid = failures(status.invalid_symbols, []).map((text) => `Not kept: ${text}`);
  const paused = status.state === "paused" ? `Paused until ${clock(status.paused_until)} UTC: ${status.pause_reason}` : "";
  const waiting = status.waiting_for ? `Waiting for ${status.waiting_for}` : "";
  const unsaved = status.unsaved ? `${status.unsaved} updates wait in memory for Redis to take them` : "";
  const known = reasons.filter((text) => text !== status.waiting_for && !(paused && text === status.pause_reason));
  const problems = [waiting, paused, ...known, unsaved, ...failed, ...(status.warnings ?? []), ...invalid].filter(Boolean);
  const many = status.timeframes.length > 1 ? ` in ${status.timeframes.length} timeframes` : "";
  const pairs = `${status.active_symbols} ${status.active_symbols === 1 ? "pair" : "pairs"}${many}`;
  if (status.state === "starting" && !status.cycles) {
    return { state: "caution", verdict: waiting ? "Starting" : "Filling", detail: waiting ? "" : "The window is fetched; pairs appear as they are complete.", problems };
  }
  if (!live) return { state: "bad", verdict: "Not working", detail: "", problems };
  if (!ready) return { state: "bad", verdict: "Not healthy", detail: "", problems };
  const others = problems.length - invalid.length;
  if (others) return { state: "caution", verdict: paused ? "Paused" : "Fresh, but not all is well", detail: paused ? "The data is still fresh." : "", problems };
  const oldest = status.data_freshness_max === null ? "" : `, oldest update ${span(status.data_freshness_max)} ago`;
  return { state: "good", verdict: "Healthy", detail: `${pairs} fresh${oldest}`, problems };
}

/** Show all of it; the page's title says it too, for those who look at another tab. */
export function showHealth(feed) {
  const found = judge(feed);
  document.body.dataset.link = feed.link;
  $("health").dataset.state = found.state;
  put($("verdict"), found.verdict);
  put($("detail"), found.detail);
  showList($("problems"), found.problems);
  const words = { connecting: "Connecting", live: "Live updates", polling: "Asking every 5 s", lost: "Not connected" };
  $("link").dataset.state = feed.link;
  put($("link").lastElementChild, words[feed.link]);
  if (feed.status) showFacts(feed.status, feed.now());
  return found;
}

function showList(list, texts) {
  while (list.children.length > texts.length) list.lastChild.remove();
  while (list.children.length < texts.length) list.append(document.createElement("li"));
  texts.forEach((text, index) => put(list.children[index], text));
}

/** How the data comes, in words: by the exchange's streams, with how many of the feeds are not followed now. */
function sourceOf(status) {
  const feeds = status.live?.feeds;
  if (!feeds) return "polling";
  const words = [["live", feeds.live], ["catching up", feeds.catching_up], ["blind", feeds.blind]];
  const told = words.filter(([, count]) => count).map(([word, count]) => `${count} ${word}`);
  return feeds.live && told.length === 1 ? "stream" : told.join(", ") || "stream";
}

/** Who keeps a series fresh, where the service follows streams; in the words of --status. */
export function linkOf(status, symbol, timeframe) {
  if (!status?.live) return "";
  const name = `${symbol} ${timeframe}`;
  if (status.live.blind?.includes(name)) return "polled";
  return status.live.catching_up?.includes(name) ? "catching up" : "live";
}

/** The members of a group: a name each, and the state where that is not running. */
function membersOf(status) {
  const members = status.members ?? [];
  return some(members.map(({ id, state }) => (state === "running" ? id : `${id} (${state})`)));
}

function showFacts(status, now) {
  put($("version"), status.version);
  put($("uptime"), span(status.uptime_seconds));
  const share = status.weight_limit ? status.used_weight / status.weight_limit : 0;
  const meter = $("weight");
  meter.firstElementChild.style.width = `${Math.min(100, share * 100)}%`;
  meter.dataset.state = share > 0.8 ? "near" : "";
  meter.setAttribute("aria-valuemax", status.weight_limit);
  meter.setAttribute("aria-valuenow", status.used_weight);
  put($("weight-text"), `${status.used_weight} of ${status.weight_limit}`);
  const left = status.next_cycle ? (Date.parse(status.next_cycle) - now) / 1000 : null;
  put($("next"), left === null ? "–" : left > 0 ? `in ${span(left)}` : "now");
  $("next").parentElement.title = `Every ${status.update_interval_seconds} s: ${status.update_interval_reason}`;
  put($("source"), sourceOf(status));
  const members = membersOf(status);
  $("members").parentElement.hidden = !members;
  put($("members"), members);
  const told = ({ id, state, active_symbols: pairs, data_freshness_max: oldest }) =>
    `${id}: ${state}, ${pairs} pairs, oldest update ${span(oldest ?? 0)} ago`;
  $("members").title = (status.members ?? []).map(told).join("\n");
}
