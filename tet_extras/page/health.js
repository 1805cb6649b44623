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
  return [...byReason].map(([reason, names]) => ({ reason, sentence: `${series(names, timeframes)}: ${reason}` }));
}

/** "BTC/USDT 15m", "BTC/USDT 1h" as "BTC/USDT in 15m, 1h"; where there is one timeframe alone it goes without saying. */
function series(names, timeframes) {
  const cut = names.map((name) => /^(.*) (\S+)$/.exec(name)?.slice(1) ?? [name, ""]);
  const pairs = [...new Set(cut.map(([pair]) => pair))], failing = [...new Set(cut.map(([, timeframe]) => timeframe))];
  if (names.length !== pairs.length * failing.length) return some(names);
  return some(pairs) + (timeframes.length > 1 ? ` in ${failing.join(", ")}` : "");
}

/** Whether two sentences say the same, or one of them has the other in it. */
const isSame = (a, b) => a.includes(b) || b.includes(a);

/** Whether the line above says already why a row's update failed. */
export const isTold = (status, reason) => Boolean(status?.health.reasons.some((text) => isSame(text, reason)));

/** The sentences without those that another one has in it. */
const once = (texts) => texts.filter((text, index) => text && !texts.some((other, place) => other && (other === text ? place < index : other.includes(text))));

/** What is wrong, in sentences: each cause with what follows from it, then what else there is. */
function problemsOf(status, paused) {
  const isSymptom = (text) => /^(older than|never fetched)/.test(text);
  const reasons = status.health.reasons.filter((text) => !text.startsWith("filling") && text !== status.pause_reason);
  const waiting = status.waiting_for ? `Waiting for ${status.waiting_for}` : "";
  const causes = once([waiting, paused, ...reasons.filter((text) => !isSymptom(text))]);
  const failed = failures(status.failed_symbols, status.timeframes).filter(({ reason }) => !causes.some((cause) => isSame(cause, reason)));
  const unsaved = status.unsaved ? `${status.unsaved} updates wait in memory${causes.length ? "" : " for Redis to take them"}` : "";
  const warnings = (status.warnings ?? []).filter((text) => !causes.length || !text.includes("updates failed"));
  const symptoms = [unsaved, ...reasons.filter(isSymptom)].filter(Boolean);
  if (causes.length && symptoms.length) causes.push(`${causes.pop()}. Meanwhile ${symptoms.splice(0).join("; ")}`);
  return once([...causes, ...failed.map(({ sentence }) => sentence), ...symptoms, ...warnings]);
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
  const { live, ready } = status.health, { filling } = status;
  const invalid = failures(status.invalid_symbols, []).map(({ sentence }) => `Not kept: ${sentence}`);
  const paused = status.state === "paused" ? `Paused until ${clock(status.paused_until)} UTC: ${status.pause_reason}` : "";
  const found = problemsOf(status, paused), problems = [...found, ...invalid];
  const many = status.timeframes.length > 1 ? ` in ${status.timeframes.length} timeframes` : "";
  const pairs = `${status.active_symbols} ${status.active_symbols === 1 ? "pair" : "pairs"}${many}`;
  const is = (state, verdict, detail = "") => ({ state, verdict, detail, problems });
  if (!live) return is("bad", "Not working");
  if (filling && !found.length) {
    const left = filling.seconds_left ? `, some ${span(filling.seconds_left)} left` : "";
    return is("caution", "Filling", `${filling.filled} of ${filling.of}${left}`);
  }
  if (status.state === "starting" && !status.cycles) return is("caution", "Starting");
  if (paused && (ready || filling)) return is("caution", "Paused", ready ? "The data is still fresh." : "");
  if (!ready) return is("bad", "Not healthy", filling ? `Filling, ${filling.filled} of ${filling.of}` : "");
  if (found.length) return is("caution", "Fresh, but not all is well");
  const oldest = status.data_freshness_max === null ? "" : `, oldest update ${span(status.data_freshness_max)} ago`;
  return is("good", "Healthy", `${pairs} fresh${oldest}`);
}

/** Show all of it; the page's title says it too, for those who look at another tab. */
export function showHealth(feed) {
  const found = judge(feed);
  document.body.dataset.link = feed.link;
  $("health").dataset.state = $("problems").dataset.state = found.state;
  put($("verdict"), found.verdict);
  put($("detail"), found.detail);
  showList($("problems"), found.problems);
  const words = { connecting: "Connecting", live: "Live updates", polling: "Asking every 5 s", lost: "Not connected" };
  $("link").dataset.state = feed.link;
  put($("link").lastElementChild, words[feed.link]);
  $("simulated").hidden = !feed.status?.simulated;
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
  const words = [["live", feeds.live], ["catching up", feeds.catching_up], ["polled", feeds.blind]];
  const parts = words.filter(([, count]) => count).map(([word, count]) => `${count} ${word}`);
  return feeds.live && parts.length === 1 ? "stream" : parts.join(", ") || "stream";
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

/** The height of the line that stays in sight; the table's head stands below it. */
new ResizeObserver(() => {
  document.documentElement.style.setProperty("--stuck", `${$("health").offsetHeight}px`);
}).observe($("health"));

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
  $("settings").parentElement.hidden = !status.settings?.read;
  put($("settings"), status.settings?.read ? `read ${clock(status.settings.read)}` : "");
  const members = membersOf(status);
  $("members").parentElement.hidden = !members;
  put($("members"), members);
  const line = ({ id, state, active_symbols: pairs, data_freshness_max: oldest }) =>
    `${id}: ${state}, ${pairs} pairs, oldest update ${span(oldest ?? 0)} ago`;
  $("members").title = (status.members ?? []).map(line).join("\n");
}
