// A drawing by hand, which each model of the group finishes.

import { $, counted, element, notice } from "./dom.js";
import { group, request } from "./form.js";
import { count, erase, pictures, place, prepare } from "./pen.js";
import { reason } from "./service.js";
import { generate, source } from "./stream.js";
import { record } from "./strip.js";

let shape = []; // of the pictures on the canvas: channels, height, width
const takers = () => group().filter((model) => `${model.image_shape}` === `${shape}`);

/** Offer a canvas to the models of the group; a drawing stays where it fits them. */
export function offerCanvas() {
  const [first] = group(), [channels, height, width] = first.image_shape, possible = [1, 3].includes(channels);
  $("desk").hidden = !possible;
  $("no-desk").hidden = possible;
  $("no-desk").textContent = `Pictures of ${first.name} have ${channels} channels, and no file holds such a picture.`;
  if (!possible) return;
  if (`${shape}` !== `${first.image_shape}`) prepare(width, height);
  shape = first.image_shape;
  const shown = [...$("finished").children].map((node) => node.dataset.by);
  if (`${shown}` !== `${takers().map((model) => model.name)}`) $("finished").replaceChildren(...takers().map(frame));
}

/** For what a model will make of the drawing. */
function frame({ name }) {
  const node = element("figure", {}, element("div", { className: "frame" }, element("img", { alt: "" })),
    element("figcaption", {}, element("b", { textContent: name }), " ", element("span")));
  node.dataset.by = name;
  node.firstChild.style.aspectRatio = `${shape[2]} / ${shape[1]}`;
  return node;
}

/** What a model is asked for. */
function asked(model) {
  const { image, mask } = pictures(), how = $("keep").checked ? { mask } : { strength: Number($("strength").value) };
  const body = { ...request(model), image, ...how };
  if ($("unnamed").checked) for (const name of ["class", "guidance"]) delete body[name]; // guidance leads to a class
  return body;
}

/** A sentence if there is nothing to finish. */
export function lacks() {
  const { drawn, free } = count();
  if (drawn === 0) return "Draw something first, or take a picture.";
  return $("keep").checked && free === 0 ? "Erase a part of the picture first: the models fill in what is empty." : "";
}

/** Let every model finish the drawing; returns how each of them ended, as Promise.allSettled does. */
export function finish(signal) {
  const frames = takers().map(frame);
  $("finished").replaceChildren(...frames);
  return Promise.allSettled(takers().map((model, place) => finishBy(model, frames[place], signal)));
}

async function finishBy(model, node, signal) {
  const image = node.querySelector("img"), text = node.querySelector("span");
  text.textContent = "waiting";
  try {
    const onEvent = ({ data }) => {
      Object.assign(image, { src: source(data), alt: `your drawing, finished by ${model.name}` });
      text.textContent = data.step ? `step ${data.step} of ${data.steps}` : counted(data.steps, "step");
    };
    const took = await generate(asked(model), { signal, onEvent, onWait: (words) => (text.textContent = words) });
    record(model.name, took);
    return took;
  } catch (error) {
    text.textContent = signal.aborted ? "stopped" : reason(error);
    throw error;
  }
}

function take(address) {
  const image = new Image();
  image.addEventListener("load", () => place(image));
  image.addEventListener("error", () => notice("This file is no picture that the browser can read."));
  image.src = address;
}

function howChanged() {
  $("strength").disabled = $("keep").checked;
  $("strength-value").textContent = $("strength").value;
}

$("erase").addEventListener("click", erase);
$("take").addEventListener("click", () => {
  const drawn = document.querySelector(".card img[src]");
  if (drawn) take(drawn.src);
  else notice("There is no picture above yet.");
});
$("file").addEventListener("change", () => {
  const reader = new FileReader();
  reader.addEventListener("load", () => take(reader.result)); // as a data URL: the page may show no other
  if ($("file").files[0]) reader.readAsDataURL($("file").files[0]);
  $("file").value = "";
});
$("drawing").addEventListener("input", howChanged);
howChanged();
