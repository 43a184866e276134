// The page: one request for each model of a group, from the same seed, and bursts whose requests share steps.

import { drawRows, offerClasses, unclear } from "./between.js";
import { burst, lanes } from "./burst.js";
import { draw, markStale, showCards } from "./cards.js";
import { $, copy, nearest, notice, pause, reveal, say, still } from "./dom.js";
import { finish, lacks, offerCanvas } from "./drawing.js";
import { change, fill, group, randomSeed, recall, remember, request, reset } from "./form.js";
import { close, offer, play } from "./player.js";
import { ask, currentKey, reason, untilReady, useKey } from "./service.js";
import { watch } from "./strip.js";

const LOSSES = 3; // requests in a row without an answer, after which the page stops trying
const DEFAULT_BURST = 16;
const CHANGED = "The settings have changed: press Generate.";
let models = [];
let running = null; // an AbortController
let losses = 0;
let hinted = ""; // what the status line said last about the form
let first = location.hash === ""; // a visit without a link, which sees its drawing again, slowly

/** Do one thing at a time: what was at work is stopped. */
async function start(work) {
  running?.abort();
  const mine = (running = new AbortController());
  $("stop").disabled = false;
  try {
    await work(mine.signal);
  } catch (error) {
    if (mine.signal.aborted) return;
    say(error.message, true);
    throw error;
  } finally {
    if (running === mine) $("stop").disabled = true;
  }
}

function askForKey(sentence) {
  document.querySelector("main").classList.add("closed");
  $("key-reason").textContent = sentence;
  $("key-form").hidden = false;
  $("change-key").hidden = true;
  $("key").focus();
  say("");
}

/** Draw when the service is ready. */
async function open(signal) {
  if (!(await load(signal))) return;
  await untilReady(signal, say);
  await drawGroup(signal);
}

/** Ask for the models and fill the form; returns false where a key is needed first. */
async function load(signal) {
  let found = [];
  while (found.length === 0) {
    try {
      found = (await (await ask("models", { signal })).json()).models;
      if (found.length === 0) await untilReady(signal, say); // it still reads the checkpoints
    } catch (error) {
      if (signal.aborted) throw error;
      if (error.status === 401) {
        askForKey(currentKey() ? "The service does not know this key." : "This service asks for an API key. Whoever runs it can give you one.");
        return false;
      }
      say(`${reason(error)}. The page goes on by itself.`, true);
      await pause(error.retry || 2, signal);
    }
  }
  models = found;
  fill(models);
  notice(...recall());
  remember();
  showCards(group());
  document.querySelector("main").classList.remove("closed");
  $("key-form").hidden = true;
  $("change-key").hidden = !currentKey();
  $("models-link").hidden = Boolean(currentKey()); // a link sends no key
  watch(false);
  return true;
}

async function drawGroup(signal) {
  remember();
  showCards(group());
  offerCanvas();
  offerClasses();
  $("bursts").hidden = true;
  close();
  say("denoising …");
  const ends = await whileWatching(Promise.allSettled(group().map((model) => draw(model, request(model), signal))));
  if (signal.aborted) return;
  const failed = ends.filter((end) => end.status === "rejected");
  if (first && failed.some((end) => end.reason.status === 422)) { // as under a DIFFUSION_MAX_STEPS below 16
    first = false;
    reset();
    return drawGroup(signal);
  }
  const drawn = ends.filter((end) => end.status === "fulfilled").map((end) => end.value);
  const slowest = Math.max(...drawn.map((one) => one.took));
  offer(drawn.map((one) => one.film), slowest);
  say(failed.length ? `${failed.length} of ${ends.length} failed` : `done in ${Math.round(slowest)} ms`, failed.length > 0);
  stale();
  if (first && drawn.length && !still()) {
    say(`${$("status").textContent}; it plays again, slowly`);
    play();
  }
  first = false;
  if (await mend(failed, signal)) await open(signal);
}

async function drawBurst(signal) {
  const [nearby, sentence] = nearest($("burst-size"), $("burst-size").value);
  const size = nearby || DEFAULT_BURST;
  $("burst-size").value = size;
  notice(...(sentence ? [`Burst: ${sentence}; ${size} is used.`] : []));
  $("bursts").hidden = false;
  say(`${size} requests, no two alike, ${Math.min(size, lanes())} at a time, as the browser allows …`);
  const started = performance.now();
  const ends = await whileWatching(burst(models, size, signal));
  if (signal.aborted) return;
  const failed = ends.filter((end) => end.status === "rejected");
  const pictures = `${size - failed.length} pictures in ${Math.round(performance.now() - started)} ms`;
  say(failed.length ? `${pictures}, ${failed.length} failed` : pictures, failed.length > 0);
  if ((await mend(failed, signal)) && (await load(signal))) say("The service answers again.");
}

/** Pictures in a panel of their own, by every model of the group; lack is a sentence if something is missing for them. */
async function drawBelow(id, lack, work, signal) {
  $(id).textContent = lack;
  if (lack) return;
  say("denoising …");
  const ends = await whileWatching(work(signal));
  if (signal.aborted) return;
  const failed = ends.filter((end) => end.status === "rejected");
  say(failed.length ? `${failed.length} of ${ends.length} failed` : "finished", failed.length > 0);
  if ((await mend(failed, signal)) && (await load(signal))) say("The service answers again.");
}

/** The server's numbers come more often while this page draws. */
async function whileWatching(work) {
  watch(true);
  return work.finally(() => void watch(false)); // which never ends
}

/** After requests that failed: ask for a key, or wait for the service. Returns whether it was lost and is back. */
async function mend(failed, signal) {
  const errors = failed.map((end) => end.reason);
  if (errors.some((error) => error.status === 401)) askForKey("The service does not know this key.");
  if (!errors.some((error) => error.lost)) {
    losses = 0;
    return false;
  }
  if (++losses > LOSSES) return false;
  await untilReady(signal, (sentence) => say(sentence, true));
  return true;
}

/** Say if the form is not what was drawn, or cannot be. */
function stale() {
  const { validity, min, max } = $("seed");
  const changed = markStale(request, group()) ? CHANGED : "";
  const hint = validity.valid ? changed : `Seed: a whole number from ${min} to ${max} is needed.`;
  if (hint || $("status").textContent === hinted) say(hint, !validity.valid);
  hinted = hint;
}

function generate() {
  if (!$("controls").reportValidity()) return stale();
  first = false;
  start(drawGroup);
  reveal($("models"));
}

$("controls").addEventListener("submit", (event) => (event.preventDefault(), generate()));
$("controls").addEventListener("input", (event) => {
  if (event.target.id === "burst-size") return;
  notice();
  change(event.target);
  if (event.target.id === "group" && $("controls").checkValidity()) start(drawGroup);
  else stale();
});
$("burst-form").addEventListener("submit", (event) => (event.preventDefault(), start(drawBurst), reveal($("bursts"))));
$("desk").addEventListener("submit", (event) => (event.preventDefault(), start((signal) => drawBelow("lacking", lacks(), finish, signal))));
$("between-form").addEventListener("submit", (event) => (event.preventDefault(), start((signal) => drawBelow("unclear", unclear(), drawRows, signal))));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[!-~]+$/.test(key)) return askForKey("A key is made of letters, digits and signs, without blanks.");
  useKey(key);
  $("key").value = "";
  start(open);
});
$("dice").addEventListener("click", () => (($("seed").value = randomSeed()), generate()));
$("stop").addEventListener("click", () => (running?.abort(), say("stopped")));
$("defaults").addEventListener("click", () => (reset(), stale()));
$("share").addEventListener("click", () => copy(location.href, "Link", "Copy the link from the address bar."));
$("copy").addEventListener("click", () => copy($("curl").textContent, "Commands", "Select the text and copy it."));
$("change-key").addEventListener("click", () => (running?.abort(), askForKey("Which API key shall this page use?")));
$("details-use").addEventListener("click", () => $("details").close()); // the link is followed by hashchange
$("details-close").addEventListener("click", () => $("details").close());
addEventListener("hashchange", () => {
  $("details").close();
  if (models.length === 0) return;
  notice(...recall());
  generate();
});
for (const term of document.querySelectorAll("dt[data-for]")) {
  const label = document.querySelector(`label[for=${term.dataset.for}]`);
  if (label) label.title = term.nextElementSibling.textContent;
}
document.querySelector("main").hidden = false;
start(open);
