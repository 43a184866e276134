// What the requests of this page took, and what the service says of itself.

import { $, element, pause } from "./dom.js";
import { ask, currentKey, reason } from "./service.js";

const KEPT = 40; // latencies a model in the picture
const LINES = 4; // ways of drawing a line in page.css
const IDLE = 2, BUSY = 0.5; // seconds between two looks at the service's numbers
const WITH_KEY = 2.5; // times as long, because each look counts against the key's quota
const latencies = new Map(); // milliseconds by model
let last = null; // the numbers before
let began = null; // those before the work that goes on, or that was the last
let busy = { rate: "–", rows: "–" }; // of that work
let turn = 0; // of watch(): a new one ends the one before
let elsewhere = false; // /metrics has a port of its own

/** Add a latency in ms to the picture and the numbers. */
export function record(model, milliseconds) {
  const list = latencies.get(model) ?? [];
  latencies.set(model, [...list, milliseconds].slice(-KEPT));
  const top = Math.max(...[...latencies.values()].flat());
  const entries = [...latencies.entries()].sort(); // by name, so that a model keeps its colour
  $("spark-top").textContent = Math.round(top);
  $("spark").replaceChildren(...entries.map(([, values], index) => line(values, top, index)));
  $("own").replaceChildren(...entries.map(([name, values], index) => element("p", {},
    element("i", { className: `swatch line-${index % LINES}` }), `${name}: ${summary(values)}`)));
}

function line(values, top, index) {
  const x = (i) => (values.length > 1 ? (i / (values.length - 1)) * 236 + 2 : 2), y = (value) => 46 - (value / top) * 42;
  const points = values.map((value, i) => `${x(i)},${y(value)}`);
  if (values.length === 1) points.push(`238,${y(values[0])}`);
  const node = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  node.setAttribute("class", `line-${index % LINES}`);
  node.setAttribute("points", points.join(" "));
  return node;
}

function summary(values) {
  const sorted = [...values].sort((a, b) => a - b), middle = (sorted.length - 1) / 2;
  const median = (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
  const [last, half, slowest] = [values.at(-1), median, sorted.at(-1)].map(Math.round);
  return values.length === 1 ? `${last}` : `last ${last} · median ${half} · slowest ${slowest} of ${values.length}`;
}

/** Samples of a Prometheus exposition: [{name, labels, value}]. */
function parse(text) {
  const row = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
  return text.split("\n").map((one) => one.match(row)).filter(Boolean).map(([, name, labels, value]) => ({
    name, value: Number(value),
    labels: Object.fromEntries([...(labels || "").matchAll(/(\w+)="([^"]*)"/g)].map(([, key, content]) => [key, content])),
  }));
}

const per = (totals, what, unit) => ((totals[what] - began[what]) / (totals[unit] - began[unit])).toFixed(1);

function show(samples) {
  const now = performance.now() / 1000;
  const sum = (name, keep = () => true) => samples.filter((s) => s.name === name && keep(s.labels)).reduce((t, s) => t + s.value, 0);
  const totals = { now, images: sum("diffusion_images_total"), rows: sum("diffusion_step_rows_sum"), steps: sum("diffusion_step_rows_count") };
  const before = last && last.steps <= totals.steps ? last : totals; // counters start anew with the service
  const works = totals.steps > before.steps;
  if (!works) began = totals;
  else busy = { rate: per(totals, "images", "now"), rows: per(totals, "rows", "steps") };
  last = totals;
  const since = works ? "" : ", last busy";
  const models = new Set(samples.filter((s) => s.name === "diffusion_running_slots").map((s) => s.labels.model));
  const tiles = [
    ["images so far", totals.images],
    [`images/s${since}`, busy.rate],
    [`rows a step${since}`, busy.rows],
    ["waiting", sum("diffusion_queue_depth")],
    ...[...models].map((model) => [`${model} running`, sum("diffusion_running_slots", (l) => l.model === model)]),
  ];
  const meaning = document.querySelector("dt[data-for=rows] + dd").textContent;
  $("server").replaceChildren(...tiles.map(([text, value]) => element("div", { title: text.startsWith("rows a step") ? meaning : "" },
    element("b", { textContent: value }), element("span", { textContent: text }))));
}

/**
 * Read /metrics while the page is looked at, more often while it draws. Without an answer the numbers go, and come
 * back with the service; where /metrics has a port of its own, there are none and this page's own fill the strip.
 */
export async function watch(busy) {
  const mine = ++turn;
  while (mine === turn && !elsewhere) {
    let wait = (busy ? BUSY : IDLE) * (currentKey() ? WITH_KEY : 1);
    if (!document.hidden) {
      try {
        const text = await (await ask("metrics", { priority: "high" })).text();
        if (mine !== turn) return;
        show(parse(text));
        $("server").hidden = false;
        $("metrics-link").hidden = Boolean(currentKey()); // a link sends no key
      } catch (error) {
        if (mine !== turn) return;
        last = null;
        elsewhere = error.status === 404;
        $("server").hidden = elsewhere || error.status === 401;
        $("metrics-link").hidden = true;
        if ($("server").hidden) return;
        $("server").replaceChildren(element("p", { className: "numbers", textContent: `${reason(error)}.` }));
        wait = error.retry || IDLE;
      }
    }
    await pause(wait);
  }
}
