// A text as tokens: its branches, and what each of its tokens can see.

// One way in which a text goes on: its tokens, and for each where the context began when the model read it.
export class Branch {
  constructor(parent = null, at = 0) { // what stands before `at` is the parent's
    [this.parent, this.at] = [parent, at];
    this.tokens = parent ? parent.tokens.slice(0, at) : [];
    this.starts = parent ? parent.starts.slice(0, at) : [];
    this.from = at; // the first token that was written the last time
    this.given = parent ? Math.min(at, parent.given) : 0; // how many the person gave
  }

  get ids() {
    return this.tokens.map((token) => token.id);
  }

  get text() {
    return pieces(this.tokens).join("");
  }

  // A prompt is read token by token, as if it had been written, and then its latest tokens as one, if there are more
  // than the context holds. Then writing begins.
  begin(prompt, about) {
    this.add(prompt, about);
    const length = this.from = this.tokens.length;
    if (prompt.length) this.given = length;
    if (length) this.starts[length - 1] = about.endless ? 0 : Math.max(0, length - about.context);
  }

  // When the context is full the model drops its older half and reads the rest again.
  add(tokens, { endless, context }) {
    for (const token of tokens) {
      const length = this.tokens.push(token), start = this.starts.at(-1) ?? 0;
      this.starts.push(endless || length - start <= context ? start : length - ((context + 1) >> 1));
    }
  }

  // Ends the text before a stop text, if one of the newest tokens completes it; says whether it did.
  endsAt(stop, newest) {
    const letters = (bytes) => String.fromCharCode(...bytes), wanted = letters(new TextEncoder().encode(stop));
    let kept = Math.max(this.from, this.tokens.length - newest - wanted.length);
    let place = this.tokens.slice(kept).map((token) => letters(token.bytes)).join("").indexOf(wanted);
    if (place < 0) return false;
    while ((place -= this.tokens[kept].bytes.length) >= 0) kept++;
    this.tokens.length = this.starts.length = kept;
    return true;
  }
}

// The text of each token; a character that several tokens spell belongs to the last of them.
export function pieces(tokens, decoder = new TextDecoder()) {
  return tokens.map((token) => decoder.decode(Uint8Array.from(token.bytes), { stream: true }));
}

export function mean(tokens) { // nats per token, of those that something predicted
  const scored = tokens.filter((token) => token.logprob !== null);
  return scored.reduce((sum, token) => sum - token.logprob, 0) / scored.length;
}

// What the token at a place can see: by layer the first token, and the first one that reaches it through all layers.
export function seen(branch, place, about) {
  const start = branch.starts[place], latest = (window) => Math.max(start, window === null ? start : place - window + 1);
  const firsts = about.windows.map(latest);
  let reach = place;
  const cone = about.windows.map((window) => (reach = window === null ? start : Math.max(start, reach - window + 1)));
  const edges = about.windows.filter((window) => window !== null && place - window + 1 > start).map(latest);
  return { start, firsts, cone, reach, edges: new Set(edges) };
}
