// One streaming request: POST /generate, answered by server-sent events.

/** An answer that is not a picture; `status` is HTTP's, `retry` seconds if the service told. */
export class Refusal extends Error {
  constructor(problem, status, retry) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.status = status;
    this.retry = retry;
  }
}

/** Yields {name, data} of every event; raises Refusal. */
export async function* generate(fields, { signal, key } = {}) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch("generate", { method: "POST", headers, signal, body: JSON.stringify(fields) });
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Refusal(problem, response.status, Number(response.headers.get("Retry-After")) || 0);
  }
  for await (const event of events(response.body)) {
    if (event.name === "error") throw new Refusal(event.data, event.data.status, 0);
    yield event;
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
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
