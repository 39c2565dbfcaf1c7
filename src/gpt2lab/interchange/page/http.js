// The engine of the server's page: the model computes there, and its tokens come as server-sent events.

const fragment = new URLSearchParams(location.hash.slice(1));
const key = fragment.get("key"); // the server printed it; it is kept in memory only
if (key !== null) history.replaceState(null, "", location.pathname);

async function asked(path, body, signal) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && { "Content-Type": "application/json" }) };
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (answer.ok) return answer;
  if (answer.status === 401) throw new Error("Open the address that the server has printed: it ends in its key.");
  const told = await answer.json().catch(() => ({}));
  const wait = answer.headers.get("Retry-After");
  const message = told.error?.message ?? `The server answers ${answer.status}.`;
  throw new Error(wait ? `${message} Try again in ${wait} s.` : message);
}

export const found = async (path) => (await asked(path)).json();

export async function engines() {
  return (await found("/v1/models")).data.map((model) => new HttpEngine(model));
}

const MOST = 4096; // latest ids that a text goes on from: the server does not take more than 8,192

class HttpEngine {
  #id;

  constructor({ id, about }) {
    [this.about, this.#id] = [about, id];
  }

  // Writes on from a prompt, a text or ids, and yields lists of tokens. With `echo` the first list is the prompt's.
  async *write({ tokens, prompt, ...options }, signal) {
    const latest = Array.isArray(prompt) ? prompt.slice(-MOST) : prompt;
    const body = { ...this.#body({ ...options, prompt: latest }), max_tokens: tokens, stream: true };
    for await (const event of events(await asked("/v1/completions", body, signal))) {
      if (event.error) throw new Error(event.error.message);
      const details = event.choices[0]?.details ?? [];
      if (details.length) yield details;
    }
  }

  // The tokens of a text as if they had been written.
  async read(prompt, signal) {
    const body = { ...this.#body({ prompt, echo: true }), max_tokens: 0, stream: false };
    return (await (await asked("/v1/completions", body, signal)).json()).choices[0].details;
  }

  // For each layer, how the last of the ids looks at those that it sees, from the oldest to itself: a row for each head.
  async attention(ids) {
    return (await (await asked("/attention", { model: this.#id, ids })).json()).layers;
  }

  #body(options) { // what the person left empty is undefined, which JSON leaves out
    return { model: this.#id, logprobs: 5, details: true, ...options };
  }
}

async function* events(answer) {
  let text = "";
  const decoder = new TextDecoder(), reader = answer.body.getReader(); // Safari's streams are not iterable
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (text += decoder.decode(value, { stream: true })).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      if (part.startsWith("data:")) yield JSON.parse(data);
    }
  }
}
