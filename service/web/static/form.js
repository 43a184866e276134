// The form. Models with the same class list form a group; one group is drawn at a time.

import { $, element, nearest } from "./dom.js";
import { currentKey } from "./service.js";

const STANDS_FOR = ["steps", "sampler", "guidance"]; // what a quality sets
const SETTINGS = ["quality", ...STANDS_FOR];
const FIRST = { steps: 16, sampler: "ddim" }; // of a first visit: the models' own 1 to 4 steps are over at once
const OWN = "own"; // the quality that the form shows while settings take its place
const LINK = ["model", "class", "seed", ...SETTINGS];
let groups = []; // lists of models
let chosen = {}; // those of SETTINGS that were set; each model has defaults of its own for the others

export const group = () => groups[Number($("group").value)];
export const randomSeed = () => Math.floor(Math.random() * 2 ** 32);
const classInputs = () => [...document.querySelectorAll("#classes input")];
const chosenClass = () => document.querySelector("#classes input:checked").value;
const samplers = () => group().reduce((kept, model) => kept.filter((name) => model.samplers.includes(name)), group()[0].samplers);

/** What the form asks of a model, by the names of the API. */
export const request = (model) => ({ model: model.name, class: chosenClass(), seed: Number($("seed").value), ...chosen });

/** Offer these models; what was chosen before stays where it is still offered. */
export function fill(models) {
  const lists = new Map();
  for (const model of models) {
    const classes = JSON.stringify(model.class_names);
    lists.set(classes, [...(lists.get(classes) ?? []), model]);
  }
  groups = [...lists.values()];
  $("group").replaceChildren(...groups.map((list, index) => new Option(list.map((model) => model.name).join(", "), index)));
  $("group-field").hidden = groups.length === 1;
  $("turns").hidden = models.length === 1;
  $("seed").value ||= randomSeed();
  showGroup(0);
}

/** Show the classes and samplers of a group. */
export function showGroup(index) {
  const before = document.querySelector("#classes input:checked")?.value;
  $("group").value = index;
  const names = group()[0].class_names;
  const wanted = names.includes(before) ? before : names[3] ?? names[0];
  const longest = Math.max(...names.map((name) => name.length));
  $("classes").style.setProperty("--widest", longest);
  $("classes").replaceChildren(...names.map((name) => element("label", {},
    element("input", { type: "radio", name: "class", value: name, checked: name === wanted }), element("span", { textContent: name }))));
  $("quality").replaceChildren(new Option("default", ""), new Option("draft"), new Option("best"), new Option("as set here", OWN));
  $("sampler").replaceChildren(new Option("", ""), ...samplers().map((name) => new Option(name)));
  if (!samplers().includes(chosen.sampler)) delete chosen.sampler;
  show();
}

/** What each of the group's models takes for a setting by default, or at the chosen quality. */
const ofEach = (name) => group().map((model) => model.qualities[chosen.quality ?? "default"][name]);

/** What the service takes for a setting that was not chosen: "1.5 (default)", or "dit 1.5, unet 1.4". */
function usual(name) {
  if (name === "steps" && chosen.sampler && ofEach("sampler").some((own) => own !== chosen.sampler)) return `as usual for ${chosen.sampler}`;
  const values = ofEach(name);
  if (new Set(values).size === 1) return `${values[0]} (${chosen.quality ?? "default"})`;
  return group().map((model, index) => `${model.name} ${values[index]}`).join(", ");
}

/** A chosen guidance in words: that it is off, or needs a second row where the network's own range has ended. */
function guided(given) {
  const beyond = group().some(({ guidance_range: range }) => range && (given < range[0] || given > range[1]));
  return given === 1 ? "1 (off)" : beyond ? `${given} (a second row each step)` : `${given}`;
}

function show() {
  for (const name of ["steps", "guidance"]) {
    const given = chosen[name];
    const text = given === undefined ? usual(name) : name === "guidance" ? guided(given) : `${given}`;
    $(name).classList.toggle("unset", given === undefined); // the thumb can stand at the value of one model only
    $(name).value = given ?? group()[0].qualities[chosen.quality ?? "default"][name];
    $(name).setAttribute("aria-valuetext", text);
    $(`${name}-value`).textContent = text;
  }
  $("sampler").options[0].text = usual("sampler");
  const own = STANDS_FOR.some((name) => name in chosen);
  $("quality").querySelector(`[value=${OWN}]`).hidden = !own;
  $("quality").value = own ? OWN : chosen.quality ?? "";
  $("sampler").value = chosen.sampler ?? "";
  $("defaults").disabled = Object.keys(chosen).length === 0;
}

/** Take over what the reader changed. */
export function change(input) {
  if (input.id === "group") showGroup(Number(input.value));
  else if (SETTINGS.includes(input.id)) {
    for (const name of input.id === "quality" ? STANDS_FOR : ["quality"]) delete chosen[name];
    if (input.value === "") delete chosen[input.id];
    else chosen[input.id] = input.type === "range" ? Number(input.value) : input.value;
    show();
  }
  remember();
}

export function reset() {
  chosen = {};
  show();
  remember();
}

/** The choice lives in the address, so that a link draws the same pictures; the key never does. */
export function remember() {
  if (!$("controls").checkValidity()) return;
  const { model, ...choice } = request(group()[0]);
  history.replaceState(null, "", `#${new URLSearchParams(groups.length > 1 ? { model, ...choice } : choice)}`);
  const header = currentKey() ? ' -H "Authorization: Bearer $API_KEY"' : "";
  const address = (asked) => `${location.origin}${location.pathname}generate?${new URLSearchParams(asked)}`;
  $("curl").textContent = group().map((one) => `curl -X POST${header} '${address(request(one))}' -o ${one.name}.png`).join("\n");
}

/** Set the form as the address has it; returns a sentence for everything in it that cannot be had. */
export function recall() {
  const link = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (Object.keys(link).length === 0) {
    chosen = samplers().includes(FIRST.sampler) ? { ...FIRST } : {};
    show();
    return [];
  }
  const sentences = Object.keys(link).filter((name) => !LINK.includes(name)).map((name) => `${quoted(name)}: there is no such setting.`);
  sentences.push(recallClass(link), recallSeed(link));
  chosen = {};
  for (const name of ["steps", "guidance"]) sentences.push(recallNumber(name, link[name]));
  if (samplers().includes(link.sampler)) chosen.sampler = link.sampler;
  else if (link.sampler) sentences.push(`Sampler: there is no ${quoted(link.sampler)} here; the default is used.`);
  const alone = !STANDS_FOR.some((name) => name in chosen);
  if (alone && ["draft", "best"].includes(link.quality)) chosen.quality = link.quality;
  else if (link.quality && link.quality !== "default") sentences.push(`Quality: ${quoted(link.quality)} is no quality, or stands beside settings; it is left out.`);
  show();
  return sentences.filter(Boolean);
}

const quoted = (text) => `“${text.slice(0, 40)}”`;

function recallClass(link) {
  const named = groups.findIndex((models) => models.some((model) => model.name === link.model));
  const knows = groups.findIndex((models) => models[0].class_names.includes(link.class));
  if (named >= 0 || knows >= 0) showGroup(named >= 0 ? named : knows);
  const input = classInputs().find((one) => one.value === link.class);
  if (input) input.checked = true;
  const noModel = link.model !== undefined && named < 0 ? `Model: there is no ${quoted(link.model)} here. ` : "";
  return noModel + (link.class === undefined || input ? "" : `Class: there is no ${quoted(link.class)} here; ${quoted(chosenClass())} is used.`);
}

function recallSeed(link) {
  if (link.seed === undefined) return "";
  const [seed, sentence] = nearest($("seed"), link.seed);
  $("seed").value = Number.isNaN(seed) ? randomSeed() : seed;
  return sentence && `Seed: ${sentence}; ${$("seed").value} is used.`;
}

function recallNumber(name, text) {
  if (text === undefined) return "";
  const [value, sentence] = nearest($(name), text);
  if (!Number.isNaN(value)) chosen[name] = value;
  return sentence && `${name[0].toUpperCase()}${name.slice(1)}: ${sentence}; ${chosen[name] ?? "the default"} is used.`;
}
