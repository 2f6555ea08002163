// Shows the snapshots of /dashboard/events; docs/dashboard.md has their shape. Data become text nodes and numbers only.

import { Plot } from "./plot.js";

const EVENTS = new URL("events", import.meta.url);
const STALE_MS = 3500, DEAD_MS = 10_000, RETRY_MS = [500, 1000, 2000, 5000];
const PHASES = ["waiting", "prefill", "transfer", "decode"];
const KEY = "tandem-api-key";
const SHORTEST = 25; // points of a plot, even where the gateway is younger

const at = (id) => document.getElementById(id);
const plots = [
  plot("Requests/s", [["done", "c1"], ["failed", "bad"]], ["requests_per_s", "errors_per_s"], (v) => short(v), 1),
  plot("Output tokens/s", [["", "c3"]], ["tokens_per_s"], (v) => short(v), 10),
  plot("TTFT", [["p50", "c1"], ["p95", "c2"]], ["ttft_p50_ms", "ttft_p95_ms"], duration, 1),
  plot("ITL", [["p50", "c1"], ["p95", "c2"]], ["itl_p50_ms", "itl_p95_ms"], duration, 1),
];

// ------------------------------------------------------------------ text

function short(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(value < 10 ? 2 : 1);
}

function duration(ms) {
  if (ms === 0) return "0";
  if (ms < 1000) return `${ms.toPrecision(ms < 100 ? 2 : 3)} ms`;
  return ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : age(ms);
}

function age(ms) {
  const s = Math.floor(ms / 1000);
  if (s < 60) return ms < 10_000 ? `${(ms / 1000).toFixed(1)} s` : `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} m ${String(s % 60).padStart(2, "0")} s`;
  return s < 86_400 ? `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} m` : `${Math.floor(s / 86_400)} d`;
}

function rate(bytes) {
  if (bytes === null) return "–";
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(2)} GB/s`;
  if (bytes >= 1e6) return `${(bytes / 1e6).toFixed(1)} MB/s`;
  return bytes >= 1e3 ? `${(bytes / 1e3).toFixed(0)} kB/s` : `${bytes.toFixed(0)} B/s`;
}

const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");
const count = (value) => (value === null ? "–" : String(value));

// ------------------------------------------------------------------ elements

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "vars") for (const [key, given] of Object.entries(value)) element.style.setProperty(key, given);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Makes `old` look like `fresh` by the least change, so that a marked text stays marked and an open trace open.
function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.dataset?.id !== fresh.dataset?.id) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  const kept = (name) => name === "open";
  for (const { name } of [...old.attributes]) if (!kept(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes)
    if (!kept(name) && name !== "style" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.style.cssText !== fresh.style.cssText) old.style.cssText = fresh.style.cssText;
  fill(old, [...fresh.childNodes]);
}

function fill(host, fresh) {
  const old = [...host.childNodes];
  fresh.forEach((node, place) => (old[place] ? morph(old[place], node) : host.append(node)));
  for (const node of old.slice(fresh.length)) node.remove();
}

function plot(title, lines, names, shown, least) {
  const host = at("plots").appendChild(h("figure"));
  const drawn = new Plot(host, { title, lines: lines.map(([label, cls]) => ({ label, cls })), shown, least });
  return (series) => {
    const known = series.requests_per_s.findIndex((value) => value !== null);
    const from = Math.min(Math.max(known, 0), series.requests_per_s.length - SHORTEST);
    drawn.draw(names.map((name) => series[name].slice(from)), series.bucket_s);
  };
}

// columns: [title, class]. rows: arrays of cells, each a text or a node; their `state` colours them.
function table(columns, rows, nothing) {
  if (!rows.length) return h("p", { class: "nothing" }, nothing);
  const head = h("tr", null, ...columns.map(([title, cls]) => h("th", { scope: "col", class: cls }, title)));
  const body = rows.map((cells) =>
    h("tr", { class: cells.state ?? "" }, ...cells.map((cell, place) => {
      const [title, cls] = columns[place];
      return h("td", { class: cell === "–" ? `${cls} none` : cls, "data-title": title }, cell);
    })),
  );
  return h("table", null, h("thead", null, head), h("tbody", null, ...body));
}

const pill = (state, text = state) => h("span", { class: `pill ${state}` }, text);

// ------------------------------------------------------------------ sections

function facts({ gateway, workers, rooms }) {
  const lost = workers.filter((worker) => worker.state === "lost").length;
  const open = rooms.prefill + rooms.transfer + rooms.decode;
  document.title = lost ? `(${lost} lost) Tandem` : "Tandem";
  return [
    gateway.missing ? pill("lost", gateway.missing) : pill("ready"),
    ...(gateway.silent ? [pill("lost", `${gateway.silent} of its processes silent`)] : []),
    ...(gateway.bootstrap ? [] : [pill("draining", "bootstrap out of reach")]),
    ...(lost ? [pill("lost", lost === 1 ? "1 worker lost" : `${lost} workers lost`)] : []),
    h("span", null, h("b", null, String(gateway.sequences)), ` of ${gateway.max_sequences} places taken`),
    h("span", null, h("b", null, String(open)), open === 1 ? " room" : " rooms"),
    h("span", { class: "dim" }, gateway.models.join(", ") || "no model"),
    h("span", { class: "dim" }, `up ${age(gateway.uptime_s * 1000)}`),
  ];
}

const WORKER_COLUMNS = [
  ["Worker", "name"], ["State", "state"], ["KV pages used", "bar"], ["Running", "num"], ["Queued", "num"],
  ["In flight", "num"], ["KV rate", "num"], ["Ended well", "num"], ["Failed", "num fail"], ["Heard", "num"],
  ["Incarnation", "num dim"],
];

function workers(rows) {
  const unified = rows.some((row) => row.role === "unified") ? ["unified"] : [];
  return ["prefill", "decode", ...unified].flatMap((role) => {
    const mine = rows.filter((row) => row.role === role);
    const cells = mine.map((row) => Object.assign([
      h("b", null, row.id), pill(row.state), pages(row.pages), count(row.running), count(row.queued),
      String(row.in_flight), rate(row.kv_bytes_per_s), count(row.succeeded), failures(row),
      row.heard_ms === null ? "never" : `${age(row.heard_ms)} ago`, row.incarnation,
    ], { state: row.state }));
    return [h("h3", { class: role }, role), table(WORKER_COLUMNS, cells, `No ${role} worker is known.`)];
  });
}

function pages(pool) {
  if (!pool) return "–";
  const share = (number) => `${(100 * number) / Math.max(1, pool.total)}%`;
  return h("span", { class: "pool", title: `${pool.used} used (${pool.granted} granted), ${pool.cached} cached, ${pool.free} free` },
    h("span", { class: "track" },
      h("i", { class: "used", vars: { width: share(pool.used) } }),
      h("i", { class: "cached", vars: { width: share(pool.cached) } })),
    h("span", { class: "of" }, `${pool.used} / ${pool.total}`));
}

function failures(row) {
  if (!row.failed) return count(row.failed);
  const sums = row.checksum_failures ? ` (${row.checksum_failures} checksum)` : "";
  return h("span", { class: "alarm" }, `${row.failed}${sums}`);
}

function rooms(seen) {
  const total = PHASES.reduce((sum, phase) => sum + seen[phase], 0);
  const bar = PHASES.map((phase) => h("i", { class: phase, vars: { "flex-grow": String(seen[phase]) } }));
  const legend = PHASES.map((phase) => h("span", { class: `key ${phase}` }, `${phase} `, h("b", null, String(seen[phase]))));
  const oldest = seen.oldest.map((room) => [
    age(room.age_ms), h("span", { class: `key ${room.phase}` }, room.phase), h("code", null, room.request_id),
    String(room.attempt), room.prefill === room.decode ? room.decode : `${room.prefill} → ${room.decode}`,
  ]);
  const columns = [["Age", "num"], ["Phase", "state"], ["Request", "id"], ["Attempt", "num"], ["Workers", ""]];
  return [
    h("div", { class: total ? "track phases" : "track phases empty" }, ...bar),
    h("p", { class: "legend" }, ...legend),
    table(columns, oldest, "No room is open."),
  ];
}

function links(rows) {
  const cells = rows.map((row) => [`${row.prefill} → ${row.decode}`, row.provider, rate(row.bytes_per_s)]);
  return [table([["Link", "name"], ["Provider", ""], ["KV rate", "num"]], cells, "No link is open.")];
}

function errors(rows) {
  const cells = rows.map((row) => [
    clock(row.time_ms), h("span", { class: "alarm" }, row.reason), row.text, h("code", null, row.request_id), row.endpoint,
  ]);
  const columns = [["Time", "num"], ["Reason", "name"], ["What", "wide"], ["Request", "id"], ["Endpoint", ""]];
  return [table(columns, cells, "No request has failed.")];
}

function traces(found) {
  return found.map((trace, place) => {
    const failed = trace.spans.some((span) => span.status !== "ok");
    const head = h("summary", null, h("code", null, trace.request_id), ` ${duration(trace.duration_ms)} `,
      failed ? pill("lost", "failed") : "", h("span", { class: "dim" }, ` ${trace.spans.length} spans`));
    const whole = { "data-id": trace.request_id, class: "trace", ...(place === 0 ? { open: "" } : {}) };
    return h("details", whole, head, h("div", { class: "fall" }, ...trace.spans.flatMap((span) => bar(trace, span))));
  });
}

function bar(trace, span) {
  let depth = 0;
  for (let parent = span.parent; parent !== null && depth < 8; parent = trace.spans[parent]?.parent ?? null) depth += 1;
  const percent = (ms) => `${Math.min(100, Math.max(0, (100 * ms) / Math.max(trace.duration_ms, 1e-6)))}%`;
  const told = Object.entries(span.attributes).map(([name, value]) => `${name}=${value}`).join(" ");
  const cls = `${/^(gateway|prefill|decode|unified)/.exec(span.service)?.[0] ?? "other"}${span.status === "ok" ? "" : " broken"}`;
  return [
    h("span", { class: "step", vars: { "padding-left": `${depth * 10}px` }, title: told },
      span.name, " ", h("span", { class: "dim" }, span.service),
      ...(span.status === "ok" ? [] : [" ", h("span", { class: "alarm" }, span.status)])),
    h("span", { class: "lane", title: `from ${duration(span.offset_ms)} to ${duration(span.offset_ms + span.duration_ms)}` },
      h("i", { class: cls, vars: { left: percent(span.offset_ms), width: percent(span.duration_ms) } })),
    h("span", { class: "num", title: told }, duration(span.duration_ms)),
    h("span", { class: span.status === "ok" ? "facts dim" : "facts alarm", title: told }, span.facts),
  ];
}

let heardAt = 0;

function show(snapshot) {
  heardAt = performance.now();
  at("board").hidden = false;
  fill(at("facts"), facts(snapshot));
  for (const draw of plots) draw(snapshot.series);
  fill(at("workers"), workers(snapshot.workers));
  fill(at("rooms"), rooms(snapshot.rooms));
  fill(at("links"), links(snapshot.links));
  fill(at("errors"), errors(snapshot.errors));
  // Under load each second brings others: what somebody reads stays.
  if (!at("traces").matches(":hover")) fill(at("traces"), traces(snapshot.traces));
  at("traces").parentNode.hidden = !snapshot.traces.length;
  say("live", clock(snapshot.time_ms));
}

function say(state, text) {
  at("live").className = state;
  at("live").textContent = text;
  document.body.classList.toggle("stale", state === "stale");
}

// ------------------------------------------------------------------ stream

let ending = new AbortController();

// Reads one stream to its end. Returns what to do next: "again", "key" or "wait".
async function follow() {
  const key = sessionStorage.getItem(KEY);
  ending = new AbortController();
  const response = await fetch(EVENTS, {
    headers: key ? { Authorization: `Bearer ${key}` } : {},
    cache: "no-store",
    signal: ending.signal,
  });
  if (response.status === 401) return key ? "wrong key" : "key";
  if (!response.ok) {
    say("stale", (await response.json()).error.message);
    return "wait";
  }
  heardAt = performance.now();
  let rest = "";
  for await (const text of chunks(response.body.pipeThrough(new TextDecoderStream()))) {
    const events = (rest + text).split("\n\n");
    rest = events.pop();
    const last = events.findLast((event) => event.startsWith("event: snapshot\ndata: "));
    if (last) show(JSON.parse(last.slice("event: snapshot\ndata: ".length)));
  }
  return "again";
}

async function* chunks(stream) {
  const reader = stream.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

function askForKey(wrong) {
  at("board").hidden = true;
  at("key").hidden = false;
  at("key-wrong").textContent = wrong ? "The gateway does not know this key." : "";
  at("key-text").focus();
  say("stale", "a key is needed");
  return new Promise((resolve) => {
    at("key").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, at("key-text").value.trim());
      at("key-text").value = "";
      at("key").hidden = true;
      resolve();
    };
  });
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const seen = () =>
  document.hidden
    ? new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }))
    : Promise.resolve();

async function run() {
  for (let tries = 0; ; tries += 1) {
    await seen();
    const before = heardAt;
    const next = await follow().catch((error) => {
      if (error instanceof SyntaxError || error instanceof ReferenceError) throw error;
      return "again";
    });
    if (next === "key" || next === "wrong key") await askForKey(next === "wrong key");
    else {
      if (heardAt !== before) tries = 0;
      if (next === "again" && !document.hidden) say("stale", "connection lost, trying again");
      await pause(RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]);
    }
  }
}

// Nobody looks at a hidden tab, so it takes no viewer's place; and a stream that says nothing is given up.
document.addEventListener("visibilitychange", () => document.hidden && ending.abort());
setInterval(() => {
  const silent = performance.now() - heardAt;
  if (at("live").className !== "live" || silent < STALE_MS) return;
  say("stale", `no news for ${age(silent)}`);
}, 500);
setInterval(() => heardAt && performance.now() - heardAt > DEAD_MS && ending.abort(), 1000);

run();
