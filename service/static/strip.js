// What the requests of this page took, and what the server says of itself.

const KEPT = 40; // latencies in the sparkline
const POLL_MS = 2000;
const $ = (id) => document.getElementById(id);
const latencies = [];
let last = null; // the scrape before

/** Add a latency in ms to the sparkline. */
export function record(milliseconds) {
  latencies.push(milliseconds);
  if (latencies.length > KEPT) latencies.shift();
  const top = Math.max(...latencies);
  const points = latencies.map((value, i) => `${(i / Math.max(1, latencies.length - 1)) * 236 + 2},${46 - (value / top) * 42}`);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.length > 1 ? points.join(" ") : `2,4 238,4`);
  for (const [name, value] of [["fill", "none"], ["stroke", "currentColor"], ["stroke-width", "2"], ["vector-effect", "non-scaling-stroke"]])
    line.setAttribute(name, value);
  $("spark").replaceChildren(line);
  const sorted = [...latencies].sort((a, b) => a - b);
  const at = (q) => Math.round(sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]);
  $("own").textContent = `last ${Math.round(milliseconds)} · median ${at(0.5)} · p95 ${at(0.95)} (of ${latencies.length})`;
}

/** Samples of a Prometheus exposition: [{name, labels, value}]. */
function parse(text) {
  const line = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
  return text.split("\n").map((row) => row.match(line)).filter(Boolean).map(([, name, labels, value]) => ({
    name, value: Number(value),
    labels: Object.fromEntries([...(labels || "").matchAll(/(\w+)="([^"]*)"/g)].map(([, key, content]) => [key, content])),
  }));
}

function show(samples) {
  const now = performance.now() / 1000;
  const sum = (name, keep = () => true) => samples.filter((s) => s.name === name && keep(s.labels)).reduce((t, s) => t + s.value, 0);
  const totals = { now, images: sum("diffusion_images_total"), rows: sum("diffusion_step_rows_sum"), steps: sum("diffusion_step_rows_count") };
  const tiles = [];
  if (last) {
    const steps = totals.steps - last.steps;
    tiles.push(["images/s", ((totals.images - last.images) / (now - last.now)).toFixed(1)]);
    tiles.push(["rows a step", steps ? ((totals.rows - last.rows) / steps).toFixed(1) : "–"]);
  }
  last = totals;
  tiles.push(["waiting", sum("diffusion_queue_depth")]);
  const models = new Set(samples.filter((s) => s.name === "diffusion_running_slots").map((s) => s.labels.model));
  for (const model of models) tiles.push([`${model} running`, sum("diffusion_running_slots", (l) => l.model === model)]);
  $("server").replaceChildren(...tiles.map(([text, value]) => {
    const tile = document.createElement("div"), number = document.createElement("b"), label = document.createElement("span");
    number.textContent = value;
    label.textContent = text;
    tile.append(number, label);
    return tile;
  }));
}

/** Read /metrics while the page is looked at; it may live on another port, then there is nothing to show. */
export async function watch() {
  for (;;) {
    if (!document.hidden) {
      const response = await fetch("metrics").catch(() => null);
      if (!response?.ok && response?.status !== 503) return;
      show(parse(await response.text()));
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}
