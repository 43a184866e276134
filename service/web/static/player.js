// After a drawing: its previews again, with a slider, at any speed, and as a film of each model.

import { $, element } from "./dom.js";

const SHOWN = 8; // frames of a film
let films = []; // of the models that have ended: {name, steps, frames: [{step, src}], image}
let moments = []; // parts of the way, 0..1, at which some model has a frame
let milliseconds = 0; // that the drawing took
let timer = 0;

/** Nothing to play. */
export function close() {
  stop();
  films = [];
  $("player").hidden = true;
}

/** Offer the drawings of one run; image is where a model's frames are shown, took in ms. */
export function offer(drawn, took) {
  films = drawn;
  milliseconds = took;
  moments = [...new Set(films.flatMap((film) => film.frames.map((frame) => frame.step / film.steps)))].sort((a, b) => a - b);
  $("moment").max = moments.length - 1;
  $("films").replaceChildren(...films.map(film));
  $("player").hidden = films.length === 0;
  if (films.length) show(moments.length - 1);
}

/** So many of its frames as fit, evenly spread, the last one included. */
function film({ name, frames }) {
  const many = Math.min(SHOWN, frames.length);
  const shown = Array.from({ length: many }, (_, i) => frames[Math.round(((i + 1) * frames.length) / many) - 1]);
  return element("figure", {}, element("figcaption", { textContent: `${name}, ${many < frames.length ? `${many} of its ${frames.length} steps` : "every step"}` }), element("div", { className: "film" },
    ...shown.map((frame) => {
      const node = element("figure", {}, element("img", { src: frame.src, alt: "" }), element("figcaption", { textContent: frame.step }));
      node.dataset.step = frame.step;
      return node;
    })));
}

function show(index) {
  $("moment").value = index;
  const steps = films.map((film, place) => {
    const frame = film.frames.findLast((one) => one.step / film.steps <= moments[index]) ?? film.frames[0];
    film.image.src = frame.src;
    for (const node of $("films").children[place].querySelectorAll("[data-step]")) node.classList.toggle("now", Number(node.dataset.step) === frame.step);
    return `${film.name} step ${frame.step} of ${film.steps}`;
  });
  $("moment").setAttribute("aria-valuetext", steps.join(", "));
  $("moment-value").textContent = [...new Set(steps.map((text) => text.slice(text.indexOf("step"))))].length === 1 ? steps[0].slice(steps[0].indexOf("step")) : steps.join(" · ");
}

function stop() {
  clearInterval(timer);
  timer = 0;
  $("play").textContent = "Play";
}

/** From the start, or on from where the slider stands; all of it takes as long as the reader has chosen. */
export function play() {
  if (Number($("moment").value) === moments.length - 1) show(0);
  $("play").textContent = "Pause";
  timer = setInterval(() => {
    const next = Number($("moment").value) + 1;
    if (next < moments.length) show(next);
    if (next >= moments.length - 1) stop();
  }, (Number($("speed").value) || milliseconds) / moments.length);
}

$("play").addEventListener("click", () => (timer ? stop() : play()));
$("speed").addEventListener("change", () => timer && (stop(), play()));
$("moment").addEventListener("input", () => (stop(), show(Number($("moment").value))));
