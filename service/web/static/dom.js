// Small helpers that every part of the page uses.

const BEGINNING = 160; // pixels

export const $ = (id) => document.getElementById(id);

/** A new element with these properties and children. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Whether the reader wants nothing on the page to move by itself. */
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Scroll to what was asked for, unless its beginning is in view: on a phone it lies below the form. */
export function reveal(node) {
  const { top } = node.getBoundingClientRect();
  if (top < 0 || top + BEGINNING > innerHeight) $("status").scrollIntoView({ behavior: still() ? "auto" : "smooth" });
}

/** What happens now, in one line under the form. */
export function say(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

/** What was not taken as it was given; stays until the next change of the form. */
export function notice(...sentences) {
  $("notice").textContent = sentences.join(" ");
  $("notice").hidden = sentences.length === 0;
}

export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/** Copy a text and say so; where the browser does not allow it (as on plain http), say what to do. */
export async function copy(text, what, byHand) {
  try {
    await navigator.clipboard.writeText(text);
    notice(`${what} copied.`);
  } catch {
    notice(`The browser did not let the page copy. ${byHand}`);
  }
}

/** The number nearest to `text` that a number field allows (NaN if it is no number), and a sentence if they differ. */
export function nearest(input, text) {
  const given = text.trim() === "" ? NaN : Number(text), whole = input.step === "1";
  const value = Math.min(Number(input.max), Math.max(Number(input.min), whole ? Math.round(given) : given));
  const kind = whole ? "a whole number" : "a number";
  return [value, value === given ? "" : `${text.slice(0, 40) || "Nothing"} is not ${kind} from ${input.min} to ${input.max}`];
}

/** "1 step", "2 steps". */
export const counted = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
