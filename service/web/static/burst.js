// Many requests that agree in nothing: those of one model still share their steps.

import { $, element } from "./dom.js";
import { fileName } from "./cards.js";
import { randomSeed } from "./form.js";
import { clear, leave, light, sum } from "./forwards.js";
import { reason } from "./service.js";
import { generate, source } from "./stream.js";
import { record } from "./strip.js";

const pick = (list) => list[Math.floor(Math.random() * list.length)];

/** Requests at a time. Over HTTP/1.1 a browser opens 6 connections to a host; one stays free for the server's numbers. */
export const lanes = () => (/^h[23]/.test(performance.getEntriesByType("navigation")[0].nextHopProtocol) ? 48 : 5);

/** Send so many requests; returns how each of them ended, as Promise.allSettled does. */
export async function burst(models, size, signal) {
  $("burst-grid").replaceChildren();
  clear(models);
  // Model by model: of 5 requests at a time, those of two models would share half as many forwards.
  const requests = models.flatMap((model, place) => invent(model, Math.floor((size + place) / models.length)));
  const waiting = requests.map((request) => prepare(request, signal)), ends = [];
  const lane = async () => {
    while (waiting.length) ends.push(...(await Promise.allSettled([waiting.shift()()])));
  };
  await Promise.all(Array.from({ length: lanes() }, lane));
  sum();
  return ends;
}

/** So many requests of a model, the longest first: a long one at the end would have its forwards to itself. */
function invent(model, many) {
  const one = () => ({
    model: model.name, class: pick(model.class_names), seed: randomSeed(), steps: pick([6, 9, 12, 16, 20]),
    sampler: pick(model.samplers), guidance: pick([1, 1.5, 3]),
  });
  return Array.from({ length: many }, one).sort((a, b) => b.steps - a.steps);
}

/** Add a tile; returns the function that draws into it. */
function prepare(request, signal) {
  const image = element("img", { className: "tile-image", alt: "" }), text = element("span", { textContent: "waiting" });
  const tile = element("button", { type: "button", className: "tile", disabled: true }, element("span", { className: "box" }, image),
    element("b", { textContent: `${request.model}: ${request.class}` }),
    ...[request.sampler, `${request.steps} steps`, `guidance ${request.guidance}`].map((line) => element("small", { textContent: line })), text);
  tile.addEventListener("click", () => showDetails(request, image.src, text.textContent));
  $("burst-grid").append(tile);
  return () => drawTile(request, tile, image, text, signal);
}

async function drawTile(request, tile, image, text, signal) {
  const say = (words) => (text.textContent = words);
  try {
    signal.throwIfAborted();
    const onEvent = ({ data }) => {
      image.src = source(data);
      light(request, data);
      say(data.step ? `step ${data.step}` : "");
    };
    const took = await generate(request, { signal, onEvent, onWait: say });
    record(request.model, took);
    say(`${Math.round(took)} ms`);
    tile.classList.add("done");
  } catch (error) {
    image.removeAttribute("src");
    leave(request);
    say(signal.aborted ? "stopped" : reason(error));
    tile.classList.add("failed");
    throw error;
  } finally {
    tile.disabled = false;
  }
}

/** Open a tile: its picture in large, its settings as a link to this page. */
function showDetails(request, picture, text) {
  const { model, class: label, ...settings } = request;
  $("details-title").textContent = `${model}: ${label}`;
  $("details-text").textContent = [...Object.entries(settings).map(([name, value]) => `${name} ${value}`), text].join(" · ");
  const image = document.querySelector("#details img");
  Object.assign(image, { alt: picture && `${label}, drawn by ${model}` });
  if (picture) image.src = picture;
  else image.removeAttribute("src");
  $("details-use").href = `#${new URLSearchParams(request)}`;
  Object.assign($("details-save"), { href: picture, download: fileName(request), hidden: !picture });
  $("details").showModal();
}
