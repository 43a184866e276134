// The page: one request a model from the same noise, and bursts that show how requests share steps.

import { generate, Refusal } from "./stream.js";
import { record, watch } from "./strip.js";

const $ = (id) => document.getElementById(id);
const PREVIEWS = 64;
let models = [], running = null; // running: an AbortController

const randomSeed = () => Math.floor(Math.random() * 2 ** 32);
const chosenClass = () => document.querySelector("#classes input:checked")?.value;
const source = (data) => `data:image/png;base64,${data.b64_json}`;

function fields(model) {
  return {
    model, class: chosenClass(), seed: Number($("seed").value), steps: Number($("steps").value),
    sampler: $("sampler").value, guidance: Number($("guidance").value),
  };
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

/** A refusal in words; asks for a key where one is needed. */
function explain(error) {
  if (error.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
  return error.retry ? `${error.message} (again in ${error.retry} s)` : error.message;
}

/** Run one request; onEvent is told of every picture. Returns the milliseconds it took. */
async function run(request, signal, onEvent) {
  const started = performance.now();
  const key = sessionStorage.getItem("key");
  for await (const event of generate({ ...request, preview: PREVIEWS }, { signal, key })) onEvent(event);
  const took = performance.now() - started;
  record(took);
  return took;
}

function card(model) {
  const node = $("model-card").content.firstElementChild.cloneNode(true);
  const at = (selector) => node.querySelector(selector);
  node.dataset.model = model.name;
  at(".name").textContent = model.name;
  at(".badge").hidden = model.device !== "simulated";
  at(".facts").textContent = `${model.architecture} · ${(model.parameters / 1e6).toFixed(1)} M parameters · ${model.device}, ${model.dtype}`;
  [at("img").width, at("img").height] = [model.image_shape[2], model.image_shape[1]];
  return node;
}

async function denoise(model, node, signal) {
  const at = (selector) => node.querySelector(selector), image = at("img"), state = at(".state");
  const request = fields(model.name);
  state.className = "state";
  state.textContent = "waiting";
  at(".download").hidden = true;
  at("progress").value = 0;
  image.removeAttribute("src");
  try {
    const took = await run(request, signal, ({ name, data }) => {
      image.src = source(data);
      at("progress").value = (data.step ?? data.steps) / data.steps;
      if (name.endsWith("partial_image")) {
        state.textContent = `step ${data.step} of ${data.steps}`;
        return;
      }
      image.alt = `${request.class}, drawn by ${model.name}`;
      const { queue, denoise } = data.timings;
      state.textContent = `${data.steps} steps · queue ${(queue * 1000).toFixed(0)} ms · denoise ${(denoise * 1000).toFixed(0)} ms`;
      Object.assign(at(".download"), { href: image.src, download: `${model.name}-${request.class}-${request.seed}.png`, hidden: false });
    });
    node.dataset.done = String(request.seed);
    return took;
  } catch (error) {
    if (error.name === "AbortError") state.textContent = "stopped";
    else {
      state.textContent = explain(error);
      state.className = "state bad";
    }
    throw error;
  }
}

async function start(work) {
  running?.abort();
  const mine = (running = new AbortController());
  $("stop").disabled = false;
  try {
    await work(mine.signal);
  } finally {
    if (running === mine) $("stop").disabled = true;
  }
}

async function all() {
  if (!$("controls").reportValidity()) return;
  remember();
  $("burst-grid").hidden = true;
  $("models").hidden = false;
  say("denoising …");
  await start(async (signal) => {
    const ends = await Promise.allSettled(models.map((model) => denoise(model, document.querySelector(`[data-model="${CSS.escape(model.name)}"]`), signal)));
    const failed = ends.filter((end) => end.status === "rejected");
    if (signal.aborted) return;
    say(failed.length ? `${failed.length} of ${ends.length} refused` : `done in ${Math.round(Math.max(...ends.map((end) => end.value)))} ms`, failed.length > 0);
  });
}

const pick = (list) => list[Math.floor(Math.random() * list.length)];

/** Requests that agree in nothing, at once: they still share their steps. */
async function burst() {
  const size = Math.min(48, Math.max(1, Number($("burst-size").value) || 16));
  const grid = $("burst-grid");
  grid.hidden = false;
  $("models").hidden = true;
  grid.replaceChildren();
  say(`${size} requests, no two alike …`);
  const started = performance.now();
  await start(async (signal) => {
    const ends = await Promise.allSettled(Array.from({ length: size }, () => one(grid, signal)));
    if (signal.aborted) return say("stopped");
    const failed = ends.filter((end) => end.status === "rejected").length;
    say(`${size - failed} pictures in ${Math.round(performance.now() - started)} ms` + (failed ? `, ${failed} refused` : ""), failed > 0);
  });
}

async function one(grid, signal) {
  const model = pick(models);
  const request = {
    model: model.name, class: pick(model.class_names), seed: randomSeed(), steps: pick([5, 8, 12, 20, 30]),
    sampler: pick(model.samplers), guidance: pick([1, 1.5, 3]),
  };
  const tile = document.createElement("div"), box = document.createElement("div"), image = new Image(), text = document.createElement("small");
  tile.className = "tile";
  box.className = "box";
  image.className = "tile-image";
  image.alt = `${request.class}, drawn by ${model.name}`;
  tile.title = `${model.name}, class ${request.class}, ${request.steps} steps, ${request.sampler}, guidance ${request.guidance}`;
  text.textContent = `${model.name} ${request.sampler} ${request.steps}`;
  box.append(image);
  tile.append(box, text);
  grid.append(tile);
  try {
    await run(request, signal, ({ data }) => (image.src = source(data)));
    tile.classList.add("done");
  } catch (error) {
    tile.classList.add("failed");
    if (error instanceof Refusal) tile.title = explain(error);
    throw error;
  }
}

/** The choice lives in the address, so that a link draws the same picture. */
function remember() {
  const { model, ...choice } = fields("");
  history.replaceState(null, "", `#${new URLSearchParams(choice)}`);
  $("steps-value").textContent = choice.steps;
  $("guidance-value").textContent = choice.guidance === 1 ? "1 (off)" : choice.guidance;
  const query = new URLSearchParams({ model: models[0]?.name ?? "", ...choice });
  $("curl").textContent = `curl -X POST '${location.origin}${location.pathname}generate?${query}' -o picture.png`;
}

function recall() {
  const choice = new URLSearchParams(location.hash.slice(1));
  for (const name of ["seed", "steps", "sampler", "guidance"]) if (choice.has(name)) $(name).value = choice.get(name);
  const label = choice.get("class");
  const wanted = [...document.querySelectorAll("#classes input")].find((input) => input.value === label);
  if (wanted) wanted.checked = true;
}

function classButton(name, index) {
  const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
  Object.assign(input, { type: "radio", name: "class", value: name, checked: index === 3 });
  text.textContent = name;
  label.append(input, text);
  return label;
}

/** What all models have in common. */
const common = (lists) => lists.reduce((kept, list) => kept.filter((item) => list.includes(item)));

async function main() {
  const key = sessionStorage.getItem("key");
  const response = await fetch("models", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (!response.ok) {
    say(explain(new Refusal(await response.json().catch(() => ({})), response.status, 0)), true);
    return;
  }
  ({ models } = await response.json());
  const defaults = models[0].defaults;
  $("classes").replaceChildren(...common(models.map((model) => model.class_names)).map(classButton));
  if (!chosenClass()) document.querySelector("#classes input").checked = true;
  $("sampler").replaceChildren(...common(models.map((model) => model.samplers)).map((name) => new Option(name)));
  $("models").replaceChildren(...models.map(card));
  Object.assign($("steps"), { value: defaults.steps });
  Object.assign($("guidance"), { value: defaults.guidance });
  $("sampler").value = defaults.sampler;
  $("seed").value = randomSeed();
  recall();
  remember();
  all();
}

$("controls").addEventListener("submit", (event) => (event.preventDefault(), models.length ? all() : main()));
$("controls").addEventListener("input", remember);
$("dice").addEventListener("click", () => (($("seed").value = randomSeed()), all()));
$("stop").addEventListener("click", () => (running?.abort(), say("stopped")));
$("burst").addEventListener("click", burst);
$("copy").addEventListener("click", () => navigator.clipboard?.writeText($("curl").textContent));
$("key").addEventListener("change", () => (sessionStorage.setItem("key", $("key").value), main()));
addEventListener("hashchange", () => (recall(), remember()));
main();
watch();
