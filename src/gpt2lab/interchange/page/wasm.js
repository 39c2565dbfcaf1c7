// The engine of the exported file: the model computes in this page, as WebAssembly, a few milliseconds at a time.

import { Tokenizer } from "./tokenizer.js";
import { choose, likeliest, logSum, random } from "./sampling.js";

const ALTERNATIVES = 5, BREATH = 12; // milliseconds

// Lets the page breathe: a message to oneself comes sooner than any timer.
const channel = new MessageChannel(), waiting = [];
channel.port1.onmessage = () => waiting.shift()();
const breath = () => new Promise((resolve) => { waiting.push(resolve); channel.port2.postMessage(0); });

export class WasmEngine {
  #model;
  #program; // the exports of the WebAssembly instance
  #turn; // where it reads the cosines and sines of a position
  #read = []; // the ids whose keys and values are in its cache
  #free = Promise.resolve(); // when nobody uses the cache

  constructor(model, program) {
    [this.about, this.#model, this.#program] = [model.about, model, program];
    this.tokenizer = new Tokenizer(model.tokens, model.merges);
    this.#turn = program.room(4 * Math.max(1, model.rotary));
  }

  static async unpacked(model, code, weights) {
    const { instance: { exports } } = await WebAssembly.instantiate(code);
    const put = (content) => {
      const place = exports.room(content.byteLength);
      if (place === 0) throw new Error("There is not enough memory for this model.");
      new Uint8Array(exports.memory.buffer, place, content.byteLength).set(new Uint8Array(content.buffer));
      return place;
    };
    exports.begin(put(Int32Array.from(model.settings)), model.epsilon, put(weights));
    return new WasmEngine(model, exports);
  }

  // Writes on from a prompt, a text or ids, and yields lists of tokens. With `echo` the first list is the prompt's. The
  // page itself watches for the text at which it stops.
  async *write({ prompt, echo, tokens, seed, ...how }, signal) {
    const ids = this.#ids(prompt), { endless, context } = this.about, cut = endless ? 0 : Math.max(0, ids.length - context);
    if (echo) yield await this.read(ids, signal);
    const seen = new Set(ids), noise = random(seed);
    const next = (logits) => {
      const id = choose(logits, seen, how, noise);
      seen.add(id);
      return id;
    };
    yield* this.#go(ids.slice(cut), next, tokens, signal);
  }

  // The tokens of a text as if they had been written; nothing predicted the first one.
  async read(prompt, signal) {
    const ids = this.#ids(prompt), told = [this.#token(ids[0])], next = (_, count) => ids[count + 1];
    for await (const tokens of this.#go(ids.slice(0, 1), next, ids.length - 1, signal)) told.push(...tokens);
    return told;
  }

  // For each layer, how the last of the ids looks at those that it sees, from the oldest to itself: a row for each head.
  async attention(ids) {
    const { endless, context, windows, heads } = this.about;
    const reach = windows.reduce((sum, window) => sum + window - 1, 1); // no more can reach a token of an endless model
    const freed = await this.#alone();
    try {
      await this.#behind(ids.slice(-(endless ? reach : context)), performance.now());
      return windows.map((window, layer) => {
        const seen = Math.min(window ?? context, this.#read.length);
        const all = new Float32Array(this.#program.memory.buffer, this.#program.attention(layer), heads * seen);
        const row = (_, head) => Array.from(all.subarray(head * seen, (head + 1) * seen));
        return { weights: Array.from({ length: heads }, row) };
      });
    } finally {
      freed();
    }
  }

  #ids(prompt) {
    return typeof prompt === "string" ? this.tokenizer.encode(prompt) : prompt;
  }

  #token(id, logits = null, sum = 0) {
    const one = (id) => ({ id, bytes: this.tokenizer.bytes[id], logprob: logits ? logits[id] - sum : null });
    return { ...one(id), top: logits ? likeliest(logits, ALTERNATIVES).map(one) : [] };
  }

  // Goes on from a history with what `next` chooses. A full context loses its older half, and the rest is read again.
  async *#go(history, next, count, signal) {
    const { endless, context } = this.about, freed = await this.#alone();
    try {
      history = [...history];
      for (let done = 0; done < count && !signal?.aborted; await breath()) {
        const tokens = [], end = performance.now() + (done ? BREATH : 0); // the first one is told at once
        do {
          if (!endless && history.length > context) history = history.slice(-((context + 1) >> 1));
          const behindOne = done && this.#read.length + 1 === history.length;
          const logits = behindOne ? this.#step(history.at(-1)) : await this.#behind(history, end, signal);
          const id = next(logits, done++);
          tokens.push(this.#token(id, logits, logSum(logits)));
          history.push(id);
        } while (done < count && performance.now() < end);
        yield tokens;
      }
    } finally {
      freed();
    }
  }

  async #alone() { // waits for the cache; who has it calls what this returns
    const before = this.#free;
    let freed;
    this.#free = new Promise((resolve) => (freed = resolve));
    await before;
    return freed;
  }

  // Logits behind ids, of which the cache may have the first ones. A ring cannot go back, since it has overwritten them.
  async #behind(ids, end, signal) {
    let kept = 0;
    while (kept < ids.length - 1 && ids[kept] === this.#read[kept]) kept++;
    if (kept < this.#read.length - 1 && this.about.windows.some((window) => window !== null)) kept = 0;
    this.#read.length = Math.min(kept, this.#read.length);
    let logits;
    for (const id of ids.slice(kept)) {
      if (performance.now() > end + BREATH) {
        await breath();
        signal?.throwIfAborted();
        end = performance.now();
      }
      logits = this.#step(id);
    }
    return logits;
  }

  #step(id) {
    const { rotary, theta, settings } = this.#model, half = rotary / 2, { buffer } = this.#program.memory;
    const turns = new Float32Array(buffer, this.#turn, rotary), position = this.#read.push(id) - 1;
    for (let i = 0; i < half; i++) {
      const angle = position * theta ** (-2 * i / rotary);
      [turns[i], turns[half + i]] = [Math.cos(angle), Math.sin(angle)];
    }
    return new Float32Array(buffer, this.#program.step(id, position, this.#turn), settings[0]);
  }
}
