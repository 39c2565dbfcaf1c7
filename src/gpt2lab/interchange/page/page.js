"use strict";
// The page of a model: unpacks it, turns a prompt into ids, and writes, a few milliseconds at a time.

const $ = (id) => document.getElementById(id);
const model = JSON.parse($("model").textContent);
const bytes = (id) => Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));

// Byte-level letters, as GPT-2's vocabulary has them: printable ones stand for themselves, others from U+0100 on.
const byteOf = new Map();
for (let byte = 0, other = 256; byte < 256; byte++) {
  const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  byteOf.set(String.fromCharCode(printable ? byte : other++), byte);
}
const letterOf = [...byteOf].reduce((all, [letter, byte]) => ((all[byte] = letter), all), []);
const spelled = model.tokens.map((token) => Uint8Array.from(token, (letter) => byteOf.get(letter)));
const idOf = new Map(model.tokens.map((token, id) => [token, id]).filter(([token]) => token !== ""));
const letters = (text) => Array.from(new TextEncoder().encode(text), (byte) => letterOf[byte]);

// Ids of a text: of its characters, or of its words, whose letters are merged as the tokenizer learned it.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
const ranks = model.merges && new Map(model.merges.map((pair, rank) => [pair, rank]));

function encode(text) {
  if (!ranks) {
    const characters = Array.from(text);
    const unknown = characters.filter((one) => !idOf.has(letters(one).join("")));
    if (unknown.length) throw new Error(`The model does not know ${[...new Set(unknown)].join(" ")}`);
    return characters.map((one) => idOf.get(letters(one).join("")));
  }
  return (text.match(WORDS) || []).flatMap((word) => {
    const parts = letters(word);
    for (;;) {
      let best = Infinity, place = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) return parts.map((part) => idOf.get(part));
      const [left, right] = [parts[place], parts[place + 1]];
      for (let i = 0; i + 1 < parts.length; i++)
        if (parts[i] === left && parts[i + 1] === right) parts.splice(i, 2, left + right);
    }
  });
}

let engine, turn; // the WebAssembly instance's exports; where it reads the turns of a position

async function unpack() {
  const { instance } = await WebAssembly.instantiate(bytes("engine"));
  engine = instance.exports;
  const put = (content) => {
    const place = engine.room(content.byteLength);
    if (place === 0) throw new Error("There is not enough memory for this model.");
    new Uint8Array(engine.memory.buffer, place, content.byteLength).set(new Uint8Array(content.buffer));
    return place;
  };
  engine.begin(put(Int32Array.from(model.settings)), model.epsilon, put(bytes("weights")));
  turn = engine.room(4 * Math.max(1, model.rotary));
}

function step(id, position) { // logits behind a token
  const half = model.rotary / 2, turns = new Float32Array(engine.memory.buffer, turn, model.rotary);
  for (let i = 0; i < half; i++) {
    const angle = position * model.theta ** (-2 * i / model.rotary);
    [turns[i], turns[half + i]] = [Math.cos(angle), Math.sin(angle)];
  }
  return new Float32Array(engine.memory.buffer, engine.step(id, position, turn), model.settings[0]);
}

class Text { // ids, and how far the engine has read them
  constructor(ids) {
    this.history = [...ids];
    this.position = 0;
    this.seen = new Set(ids);
  }

  next() { // logits behind all of them; a full context loses its older half, and the rest is read again
    if (!model.endless && this.history.length > model.context) {
      this.history = this.history.slice(-((model.context + 1) >> 1));
      this.position = 0;
    }
    let logits;
    while (this.position < this.history.length) logits = step(this.history[this.position], this.position++);
    return logits;
  }

  add(id) {
    this.history.push(id);
    this.seen.add(id);
  }
}

function random(seed) { // mulberry32, twice for 53 bits
  let state = seed >>> 0;
  const bits = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
  return () => ((bits() >>> 5) * 67108864 + (bits() >>> 6)) / 9007199254740992;
}

function choose(raw, seen, options, noise) {
  let scores = Float64Array.from(raw), best = 0;
  if (options.repetition_penalty !== 1)
    for (const id of seen) scores[id] = scores[id] > 0 ? scores[id] / options.repetition_penalty : scores[id] * options.repetition_penalty;
  for (let id = 1; id < scores.length; id++) if (scores[id] > scores[best]) best = id;
  if (!Number.isFinite(scores[best])) throw new Error("The model's numbers are not finite.");
  if (options.temperature < 2 ** -126) return best;
  let kept = Array.from(scores.keys());
  if (options.top_k < kept.length || options.top_p < 1) kept.sort((a, b) => scores[b] - scores[a]);
  if (options.top_k < kept.length) kept = kept.filter((id) => scores[id] >= scores[kept[options.top_k - 1]]);
  let weights = kept.map((id) => Math.exp((scores[id] - scores[best]) / options.temperature));
  if (options.top_p < 1) {
    const total = weights.reduce((a, b) => a + b), enough = [];
    for (let i = 0, before = 0; i < kept.length && before < options.top_p * total; before += weights[i++]) enough.push(i);
    [kept, weights] = [enough.map((i) => kept[i]), enough.map((i) => weights[i])];
  }
  weights = weights.map((weight) => (weight < options.min_p ? 0 : weight)); // the likeliest has 1
  let left = noise() * weights.reduce((a, b) => a + b);
  for (let i = 0; i < kept.length; i++) if ((left -= weights[i]) < 0) return kept[i];
  return best;
}

let text = null, writing = false;
const channel = new MessageChannel();
const breath = () => new Promise((resolve) => { channel.port1.onmessage = resolve; channel.port2.postMessage(0); });

function asked() {
  const number = (id, usual) => ($(id).value === "" ? usual : Number($(id).value));
  return {
    tokens: number("tokens", 1000), temperature: number("temperature", 0.8), top_k: Math.max(1, number("top_k", Infinity)),
    top_p: number("top_p", 1), min_p: number("min_p", 0), repetition_penalty: number("repetition_penalty", 1) || 1,
    seed: number("seed", Math.floor(Math.random() * 2 ** 32)), stop_at: $("stop_at").value,
  };
}

async function write(fresh) {
  const options = asked(), noise = random(options.seed), output = $("text");
  if (fresh) {
    const ids = encode($("prompt").value || model.prompt);
    text = new Text(ids);
    const shown = document.createElement("span");
    shown.className = "prompt";
    shown.textContent = $("prompt").value;
    output.replaceChildren(shown);
  }
  const written = output.appendChild(document.createTextNode(""));
  const decoder = new TextDecoder();
  const begun = performance.now();
  let count = 0;
  const tell = () => {
    const seconds = (performance.now() - begun) / 1000;
    $("status").textContent =
      `${count.toLocaleString("en")} tokens · ${Math.round(count / seconds).toLocaleString("en")} tokens/s · seed ${options.seed}`;
  };
  while (writing && count < options.tokens) {
    const end = performance.now() + 12;
    let new_ = "", stopped = false;
    while (!stopped && count < options.tokens && performance.now() < end) {
      const id = choose(text.next(), text.seen, options, noise);
      text.add(id);
      count++;
      new_ += decoder.decode(spelled[id] || new Uint8Array(), { stream: true });
      stopped = options.stop_at !== "" && (written.data.slice(-options.stop_at.length) + new_).includes(options.stop_at);
    }
    written.appendData(new_);
    if (stopped) {
      written.data = written.data.slice(0, written.data.indexOf(options.stop_at));
      break;
    }
    tell();
    await breath();
  }
  written.appendData(decoder.decode());
  tell();
}

async function run(fresh) {
  if (writing) return;
  writing = true;
  for (const [id, off] of [["start", true], ["stop", false], ["continue", true], ["copy", true]]) $(id).disabled = off;
  try {
    await write(fresh);
  } catch (error) {
    $("status").textContent = error.message;
  }
  writing = false;
  for (const id of ["start", "stop", "continue", "copy"]) $(id).disabled = id === "stop" || (id !== "start" && !text);
}

const tabs = [...document.querySelectorAll("[role=tab]")];
function select(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = each !== tab;
  }
}
for (const tab of tabs) {
  tab.onclick = () => select(tab);
  tab.onkeydown = (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const other = tabs[(tabs.indexOf(tab) + move + tabs.length) % tabs.length];
    select(other);
    other.focus();
  };
}
$("prompt").value = model.prompt.trim();
$("start").onclick = () => run(true);
$("continue").onclick = () => run(false);
$("stop").onclick = () => (writing = false);
$("copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText($("text").textContent);
    $("status").textContent = "copied";
  } catch {
    getSelection().selectAllChildren($("text"));
    $("status").textContent = "selected; copy it with the keyboard";
  }
};
document.onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(true);
  if (event.key === "Escape") writing = false;
};
unpack().then(
  () => { $("start").disabled = false; $("status").textContent = "ready · Ctrl+Enter writes, Escape stops"; },
  (error) => ($("status").textContent = `This browser cannot run the model: ${error.message}`),
);
