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
  const waiting = Array.from({ length: size }, () => prepare(pick(models), signal)), ends = [];
  const lane = async () => {
    while (waiting.length) ends.push(...(await Promise.allSettled([waiting.shift()()])));
  };
  await Promise.all(Array.from({ length: lanes() }, lane));
  sum();
  return ends;
}

/** Add a tile; returns the function that draws into it. */
function prepare(model, signal) {
  const request = {
    model: model.name, class: pick(model.class_names), seed: randomSeed(), steps: pick([5, 8, 12, 20, 30]),
    sampler: pick(model.samplers), guidance: pick([1, 1.5, 3]),
  };
  const image = element("img", { className: "tile-image", alt: "" }), text = element("span", { textContent: "waiting" });
  const tile = element("button", { type: "button", className: "tile", disabled: true }, element("span", { className: "box" }, image),
    element("b", { textContent: `${model.name}: ${request.class}` }),
    element("small", { textContent: `${request.sampler}, ${request.steps} steps, guidance ${request.guidance}` }), text);
  tile.addEventListener("click", () => look(request, image.src, text.textContent));
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
function look(request, picture, text) {
  const { model, class: label, ...settings } = request;
  $("look-title").textContent = `${model}: ${label}`;
  $("look-text").textContent = [...Object.entries(settings).map(([name, value]) => `${name} ${value}`), text].join(" · ");
  const image = document.querySelector("#look img");
  Object.assign(image, { alt: picture && `${label}, drawn by ${model}` });
  if (picture) image.src = picture;
  else image.removeAttribute("src");
  $("look-use").href = `#${new URLSearchParams(request)}`;
  Object.assign($("look-save"), { href: picture, download: fileName(request), hidden: !picture });
  $("look").showModal();
}
