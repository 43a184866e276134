// One card a model: its picture while it is drawn.

import { $, counted, element } from "./dom.js";
import { ask, reason } from "./service.js";
import { generate, source } from "./stream.js";
import { record } from "./strip.js";

const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }); // 5.5M
const cards = () => [...document.querySelectorAll(".card")];

export function showCards(models) {
  const shown = cards().map((node) => node.dataset.model).join("\n");
  if (shown !== models.map((model) => model.name).join("\n")) $("models").replaceChildren(...models.map(card));
}

function card(model) {
  const node = $("model-card").content.firstElementChild.cloneNode(true);
  const at = (selector) => node.querySelector(selector);
  node.dataset.model = model.name;
  at(".name").textContent = model.name;
  at(".badge").hidden = model.device !== "simulated";
  const size = model.device === "simulated" ? "" : `${COMPACT.format(model.parameters)} parameters · `;
  const kind = model.architecture === model.name ? "" : `${model.architecture} · `;
  at(".facts").textContent = `${kind}${size}${model.device}, ${model.dtype}`;
  [at("img").width, at("img").height] = [model.image_shape[2], model.image_shape[1]];
  return node;
}

/**
 * Draw into a model's card; returns the milliseconds and the film of it, for player.js. Raises as generate does, after
 * the card has said why.
 */
export async function draw(model, request, signal) {
  const node = cards().find((one) => one.dataset.model === model.name);
  const at = (selector) => node.querySelector(selector), image = at("img");
  const state = (text, bad = false) => {
    at(".state").textContent = text;
    at(".state").classList.toggle("bad", bad);
  };
  node.dataset.asked = JSON.stringify(request);
  node.classList.remove("stale");
  state("waiting");
  at(".saving").hidden = true;
  at("progress").value = 0;
  image.removeAttribute("src");
  let frames = [];
  try {
    const onEvent = ({ name, data }) => {
      image.src = source(data);
      frames.push({ step: data.step ?? data.steps, src: image.src });
      image.alt = `${request.class}, drawn by ${model.name}`;
      at("progress").value = (data.step ?? data.steps) / data.steps;
      if (name.endsWith("partial_image")) return state(`step ${data.step} of ${data.steps}`);
      const { queue, denoise } = data.timings;
      state(`${counted(data.steps, "step")} in ${milliseconds(denoise)}${queue < 0.001 ? "" : ` · ${milliseconds(queue)} queued`}`);
      Object.assign(at(".download"), { href: image.src, download: fileName(request) });
      at(".animation").onclick = () => saveAnimation(request).catch((error) => state(reason(error), true));
      at(".saving").hidden = false;
    };
    const onWait = (words) => {
      frames = []; // of an attempt that the service broke off
      state(words);
    };
    const took = await generate(request, { signal, onEvent, onWait });
    record(model.name, took);
    node.dataset.done = request.seed;
    return { took, film: { name: model.name, steps: frames.at(-1).step, frames, image } };
  } catch (error) {
    if (signal.aborted) state("stopped");
    else state(reason(error), true);
    throw error;
  }
}

const milliseconds = (seconds) => `${Math.round(seconds * 1000)}\u00a0ms`;

export const fileName = (request) => `${request.model}-${request.class}-${request.seed}.png`;

/** The same drawing again, as an animation that the service makes. Raises Refusal. */
async function saveAnimation(request) {
  const headers = { "Content-Type": "application/json" }, body = JSON.stringify({ ...request, format: "apng" });
  const answer = await ask("generate", { method: "POST", headers, body });
  const href = URL.createObjectURL(await answer.blob());
  element("a", { href, download: fileName(request).replace(".png", "-animation.png") }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000); // the browser may ask its reader first
}

/** Dim the pictures of other settings than the form's; returns whether there are any. */
export function markStale(request, models) {
  const wanted = new Map(models.map((model) => [model.name, JSON.stringify(request(model))]));
  for (const node of cards()) node.classList.toggle("stale", Boolean(node.dataset.asked) && node.dataset.asked !== wanted.get(node.dataset.model));
  return cards().some((node) => node.classList.contains("stale"));
}
