// Asking the service: the API key, refusals, and when to ask again.

import { pause } from "./dom.js";

const ATTEMPTS = 5; // of one request, the first one included
const LONGEST_WAIT = 30; // seconds; a longer Retry-After is left to the reader
const NO_ANSWER = "The service does not answer";

let key = "";
try {
  key = sessionStorage.getItem("key") ?? "";
} catch {
  // a browser without storage: the key lives as long as the page
}

export const currentKey = () => key;

/** Kept for this tab only, and never in the address. */
export function useKey(given) {
  key = given;
  try {
    sessionStorage.setItem("key", key);
  } catch {
    // as above
  }
}

/** An answer that is not what was asked for; `status` is HTTP's or 0 without an answer, `retry` seconds if told. */
export class Refusal extends Error {
  constructor(problem, status = 0, retry = 0) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    Object.assign(this, { status, retry, lost: status === 0 });
  }
}

/** A failed fetch in words; a stop by the reader stays what it is. */
export function lost(error) {
  return error.name === "AbortError" || error instanceof Refusal ? error : new Refusal({ detail: NO_ANSWER });
}

/** fetch() with the key. Raises Refusal. */
export async function ask(path, { headers = {}, ...options } = {}) {
  const authorization = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...options, headers: { ...headers, ...authorization } }).catch((error) => {
    throw lost(error);
  });
  if (answer.ok) return answer;
  if (answer.status === 502) throw new Refusal({ detail: NO_ANSWER }); // said by a proxy
  throw new Refusal(await answer.json().catch(() => ({})), answer.status, Number(answer.headers.get("Retry-After")) || 0);
}

export const reason = (error) => (error.retry ? `${error.message} (again in ${error.retry} s)` : error.message);

/** Do the work, and again when the service is busy (429 or 503 with Retry-After), a few times. */
export async function patiently(work, signal, onWait) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      const worthIt = [429, 503].includes(error.status) && error.retry > 0 && error.retry <= LONGEST_WAIT;
      if (!worthIt || attempt === ATTEMPTS) throw error;
      onWait(reason(error));
      await pause(error.retry * (1 + Math.random() / 4), signal); // not all of a burst at the same moment
    }
  }
}

/** Wait until the service is ready; `tell` is told why it is not. */
export async function untilReady(signal, tell) {
  for (;;) {
    const answer = await fetch("readyz", { signal }).catch((error) => {
      if (error.name === "AbortError") throw error;
    });
    if (answer && answer.status < 500) return;
    const health = answer?.status === 503 ? await answer.json().catch(() => ({})) : {};
    tell(health.reason ? `The service is not ready: ${health.reason}. The page goes on by itself.` : `${NO_ANSWER}. The page goes on when it does.`);
    await pause(Number(answer?.headers.get("Retry-After")) || 1, signal);
  }
}
