// One streaming request: POST /generate, answered by server-sent events.

import { Refusal, ask, lost, patiently } from "./service.js";

const PREVIEWS = 64; // the most the API sends of a picture

/**
 * Draw; the request may ask for fewer previews. onEvent is told of every event, onWait of every wait for a busy service.
 * Returns the milliseconds that the accepted request took. Raises Refusal.
 */
export function generate(request, { signal, onEvent, onWait }) {
  const options = {
    method: "POST", signal, headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify({ preview: PREVIEWS, ...request }),
  };
  return patiently(async () => {
    const started = performance.now();
    let completed = false;
    for await (const event of events((await ask("generate", options)).body)) {
      if (event.name === "error") throw new Refusal(event.data, event.data.status);
      completed = event.name.endsWith("completed");
      onEvent(event);
    }
    if (!completed) throw new Refusal({ detail: "The service broke off its answer" });
    return performance.now() - started;
  }, signal, onWait);
}

export const source = (data) => `data:image/png;base64,${data.b64_json}`;

/** {name, data} of every event of a body. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw lost(error);
    });
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").map((line) => line.match(/^(event|data): (.*)$/)).filter(Boolean);
      const fields = Object.fromEntries(lines.map(([, name, content]) => [name, content]));
      if (fields.data) yield { name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
