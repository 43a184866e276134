// The picture of shared steps: a strip a model, a column a forward, a cell for each request that took part in it.

import { $, counted, element } from "./dom.js";
import { source } from "./stream.js";

const KEPT = 200; // columns a model
const LATE = 1000; // a number that is lower by less is of the same engine: an event that another one overtook
const COLOURS = 7; // of samplers in page.css
const KEYS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 };
let strips = new Map(); // by model
let samplers = []; // of all models, in the order of the service: the place of a sampler is its colour
let seen = new Set(); // samplers that have a cell

/** Begin a new picture of these models. */
export function clear(models) {
  samplers = [...new Set(models.flatMap((model) => model.samplers))];
  seen = new Set();
  strips = new Map(models.map((model) => [model.name, strip(model.name)]));
  $("strips").replaceChildren(...[...strips.values()].map((one) => one.node));
  $("samplers").replaceChildren();
}

function strip(name) {
  const text = element("span", { textContent: "no forward yet" });
  const film = element("div", { className: "columns", tabIndex: 0 });
  film.setAttribute("role", "group");
  film.setAttribute("aria-label", `Forwards of ${name}`);
  const said = element("p", { className: "facts" });
  said.setAttribute("role", "status");
  film.addEventListener("click", (event) => read(event.target.closest(".cell"), film, said));
  film.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    read(beside(film, event.key), film, said);
  });
  const node = element("figure", {}, element("figcaption", {}, element("b", { textContent: name }), " ", text), film, said);
  return { node, text, film, columns: [], lanes: [], best: null };
}

/** Say what a cell is, to those who have no mouse to rest on it. */
function read(cell, film, said) {
  if (!cell) return;
  film.querySelector(".read")?.classList.remove("read");
  cell.classList.add("read");
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  said.textContent = cell.title;
}

/** The cell that an arrow key leads to: of another forward in the same lane, or of another lane in the same forward. */
function beside(film, key) {
  const cells = [...film.querySelectorAll(".cell")], now = film.querySelector(".read"), lane = (cell) => Number(cell.style.gridRowStart);
  if (!now) return cells[0];
  const upright = key === "ArrowUp" || key === "ArrowDown";
  const line = upright ? [...now.parentNode.children].sort((a, b) => lane(a) - lane(b)) : cells.filter((cell) => lane(cell) === lane(now));
  return line[line.indexOf(now) + KEYS[key]];
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
  const follows = film.scrollTop + film.clientHeight > film.scrollHeight - 40; // the reader has not scrolled back
  film.insertBefore(column.node, columns[place]?.node ?? null);
  columns.splice(place, 0, column);
  if (columns.length > KEPT) columns.shift().node.remove();
  if (follows) film.scrollTop = film.scrollHeight;
  return column;
}

function picture(request, data, step, lane) {
  if (!seen.has(request.sampler)) nameSampler(request.sampler);
  const title = `${request.class}: ${request.sampler}, step ${step} of ${data.steps}, guidance ${request.guidance}`;
  const bar = element("i"), cell = element("span", { className: `cell ${colour(request.sampler)}`, title },
    element("img", { src: source(data), alt: title }), bar);
  bar.style.width = `${(100 * step) / data.steps}%`;
  cell.style.gridRow = lane + 1;
  cell.classList.toggle("last", step === data.steps);
  return cell;
}

const colour = (sampler) => `colour-${samplers.indexOf(sampler) % COLOURS}`;

function nameSampler(sampler) {
  seen.add(sampler);
  const shown = samplers.filter((name) => seen.has(name));
  $("samplers").replaceChildren(...shown.map((name) => element("span", {}, element("i", { className: colour(name) }), name)));
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
    one.film.scrollTop = most.node.offsetTop - one.film.offsetTop - one.film.clientHeight / 2;
  }
}
