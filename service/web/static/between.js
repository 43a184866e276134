// Pictures from one class or seed to another, a row a model; or away from a class.

import { $, counted, element } from "./dom.js";
import { group, request } from "./form.js";
import { reason } from "./service.js";
import { generate, source } from "./stream.js";
import { record } from "./strip.js";

const PICTURES = 6, PREVIEWS = 8; // of a row; of each picture
const FIELDS = { class_to: "class-to", seed_to: "seed-to", negative_class: "away-from" };

/** Offer the classes of the group; what was chosen stays where it is still offered. */
export function offerClasses() {
  const names = group()[0].class_names;
  for (const id of ["class-to", "away-from"]) {
    const node = $(id), before = node.value;
    node.replaceChildren(new Option(id === "class-to" ? "the same" : "none", ""), ...names.map((name) => new Option(name)));
    node.value = names.includes(before) ? before : "";
  }
}

/** What the form says, by the names of the API. */
function chosen() {
  const given = Object.entries(FIELDS).map(([name, id]) => [name, $(id).value]).filter(([, value]) => value !== "");
  return Object.fromEntries(given.map(([name, value]) => [name, name === "seed_to" ? Number(value) : value]));
}

/** A sentence if there is no way to draw. */
export const unclear = () => (Object.keys(chosen()).length ? "" : "Choose another class or seed, or a class to lead away from.");

/** Let every model draw its row; returns how each of them ended, as Promise.allSettled does. */
export function drawRows(signal) {
  const rows = group().map(row);
  $("rows").replaceChildren(...rows);
  return Promise.allSettled(group().map((model, place) => drawRow(model, rows[place], signal)));
}

function row({ name }) {
  const images = Array.from({ length: PICTURES }, () => element("img", { alt: "" }));
  return element("figure", {}, element("figcaption", {}, element("b", { textContent: name }), " ", element("span")),
    element("div", { className: "row" }, ...images));
}

async function drawRow(model, node, signal) {
  const images = node.querySelectorAll("img"), text = node.querySelector("span");
  text.textContent = "waiting";
  try {
    const onEvent = ({ data }) => {
      Object.assign(images[data.image_index], { src: source(data), alt: `picture ${data.image_index + 1} by ${model.name}` });
      text.textContent = data.step ? `step ${data.step} of ${data.steps}` : counted(data.steps, "step");
    };
    const asked = { ...request(model), ...chosen(), n: PICTURES, preview: PREVIEWS };
    const took = await generate(asked, { signal, onEvent, onWait: (words) => (text.textContent = words) });
    record(model.name, took);
    return took;
  } catch (error) {
    text.textContent = signal.aborted ? "stopped" : reason(error);
    throw error;
  }
}
