// The picture of shared steps: a strip a model, a column a forward, a cell for each request that took part in it.

import { $, counted, element } from "./dom.js";
import { source } from "./stream.js";

const KEPT = 200; // columns a model
const LATE = 1000; // a number that is lower by less is of the same engine: an event that another one overtook
const COLOURS = 7; // of samplers in page.css
let strips = new Map(); // by model
let samplers = []; // in the order of their first cell

/** Begin a new picture of these models. */
export function clear(models) {
  samplers = [];
  strips = new Map(models.map((model) => [model.name, strip(model.name)]));
  $("strips").replaceChildren(...[...strips.values()].map((one) => one.node));
  $("samplers").replaceChildren();
}

function strip(name) {
  const text = element("span", { textContent: "no forward yet" });
  const film = element("div", { className: "columns", tabIndex: 0 });
  film.setAttribute("role", "group");
  film.setAttribute("aria-label", `Forwards of ${name}`);
  const node = element("figure", {}, element("figcaption", {}, element("b", { textContent: name }), " ", text), film);
  return { node, text, film, columns: [], lanes: [], best: null };
}

/** Light the cell of an event: data is the event's. */
export function light(request, data) {
  const one = strips.get(request.model);
  if (!one || data.forward == null) return; // a service before this version numbers no forwards
  const column = columnOf(one, data.forward);
  let lane = one.lanes.indexOf(request);
  if (lane < 0) {
    lane = 0;
    while (one.lanes[lane] || column.cells.has(lane)) lane++; // whoever had it may have been in this forward, too
    one.lanes[lane] = request;
  }
  const step = data.step ?? data.steps;
  column.cells.set(lane, request);
  column.node.append(picture(request, data, step, lane));
  if (data.step === undefined) delete one.lanes[lane];
  tell(one, column);
}

/** A request that failed gives its lane back. */
export function leave(request) {
  const one = strips.get(request.model), lane = one?.lanes.indexOf(request) ?? -1;
  if (lane >= 0) delete one.lanes[lane];
}

function columnOf(one, forward) {
  const { columns, film } = one;
  const known = columns.findLast((column) => column.forward === forward);
  if (known) return known;
  let place = columns.length;
  while (place > 0 && columns[place - 1].forward > forward && columns[place - 1].forward - forward < LATE) place--;
  const column = { forward, cells: new Map(), node: element("div", { className: "column" }) };
  const follows = film.scrollLeft + film.clientWidth > film.scrollWidth - 40; // the reader has not scrolled back
  film.insertBefore(column.node, columns[place]?.node ?? null);
  columns.splice(place, 0, column);
  if (columns.length > KEPT) columns.shift().node.remove();
  if (follows) film.scrollLeft = film.scrollWidth;
  return column;
}

function picture(request, data, step, lane) {
  if (!samplers.includes(request.sampler)) nameSampler(request.sampler);
  const title = `${request.class}: ${request.sampler}, step ${step} of ${data.steps}, guidance ${request.guidance}`;
  const bar = element("i"), cell = element("span", { className: `cell ${colour(request.sampler)}`, title },
    element("img", { src: source(data), alt: "" }), bar);
  bar.style.width = `${(100 * step) / data.steps}%`;
  cell.style.gridRow = lane + 1;
  cell.classList.toggle("last", step === data.steps);
  return cell;
}

const colour = (sampler) => `colour-${samplers.indexOf(sampler) % COLOURS}`;

function nameSampler(sampler) {
  samplers.push(sampler);
  $("samplers").append(element("span", {}, element("i", { className: colour(sampler) }), sampler));
}

const kinds = (column) => new Set([...column.cells.values()].map((request) => request.sampler)).size;

const inWords = (column) => `${counted(column.cells.size, "request")} with ${counted(kinds(column), "sampler")}`;

/** Keep the forward that most requests shared, and say it. */
function tell(one, changed) {
  const better = changed.cells.size - (one.best?.cells.size ?? 0) || kinds(changed) - kinds(one.best);
  if (better > 0) one.best = changed;
  one.text.textContent = `now ${inWords(one.columns.at(-1))} in one forward · most so far ${inWords(one.best)}`;
}

/** Of the whole picture, when it is done: in words, and the place where most was shared. */
export function sum() {
  for (const one of strips.values()) {
    if (one.columns.length === 0) continue;
    const steps = one.columns.reduce((total, column) => total + column.cells.size, 0), most = one.best;
    one.text.textContent = `${counted(steps, "step")} in ${counted(one.columns.length, "forward")} · up to ${inWords(most)} in one`;
    one.film.scrollLeft = most.node.offsetLeft - one.film.offsetLeft - one.film.clientWidth / 2;
  }
}
