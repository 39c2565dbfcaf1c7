// What a chosen token can see and does see: sentences, the cone, the ring of each kind of layer, each head's attention.

import { draw, make, number, percent, spelled, tip } from "./dom.js";

const LABELS = 24; // slots whose tokens are written beside the ring
const listed = (layers) => `${layers.length > 1 ? "Layers" : "Layer"} ${layers.map((layer) => layer + 1).join(", ")}`;

export function sight(column, place, view, attention, shade) {
  const { about, branch } = column;
  const kinds = new Map(); // layers by their window
  about.windows.forEach((window, layer) => kinds.set(window, [...(kinds.get(window) ?? []), layer]));
  const position = place - view.start;
  const rings = [...kinds].map(([window, layers]) => {
    const picture = window === null ? row(position, about.context) : ring(branch, place, view.start, window);
    return make("figure", {}, picture, ringCaption(window, layers, position, about));
  });
  if (about.looks) shown(column, place, view, attention, shade);
  else attention.replaceChildren(make("p", {}, "How this model attends cannot be shown."));
  return [
    make("h3", {}, "What it can see"), ...sentences(place, view, kinds, about), cone(place, view),
    make("h3", {}, "Where its keys and values lie"), make("div", { class: "rings" }, ...rings),
    make("h3", {}, "What it does see"), attention,
  ];
}

function sentences(place, view, kinds, about) {
  const by = [...kinds].map(([window, layers]) => {
    const count = place - Math.max(view.start, window === null ? 0 : place - window + 1) + 1;
    const all = window === null || count < window;
    if (count === 1) return `${listed(layers)}: only itself.`;
    if (all) return `${listed(layers)}: all ${number(count)} tokens up to itself.`;
    return `${listed(layers)}: the ${number(count)} latest tokens, itself included.`;
  });
  const reach = place - view.reach + 1;
  if (about.windows.length > 1) by.push(`Through all ${about.windows.length} layers, ${number(reach)} tokens can reach it.`);
  if (view.start > 0)
    by.push(`The context of ${number(about.context)} tokens was full: the model has dropped the ${number(view.start)} `
      + "tokens before the double line, and has read the others again.");
  const marks = "On the text: underlined is what it sees, and a bar is a window's edge; dotted is what reaches it besides, "
    + "through several layers.";
  return [...by.map((said) => make("p", {}, said)), make("p", { class: "quiet" }, marks)];
}

// Rows are layers, the last one on top; each bar is what reaches the token from there on.
function cone(place, view) {
  const rows = [place, ...view.cone], span = Math.max(1, place - view.reach), high = 22, right = 208, wide = 130;
  const bars = rows.flatMap((from, index) => {
    const y = index * high, length = 6 + (wide * (place - from)) / span, below = rows.length - index;
    const name = index === 0 ? "output" : index === rows.length - 1 ? "tokens" : `below layer ${below}`;
    return [
      draw("rect", { x: right - length, y: y + 4, width: length, height: high - 8, rx: 2 }),
      draw("text", { x: right + 8, y: y + 15 }, `${number(place - from + 1)} · ${name}`),
      draw("text", { x: right - length - 6, y: y + 15, "text-anchor": "end" }, index ? `−${number(place - from)}` : ""),
    ];
  });
  const label = `What reaches it, layer by layer: ${view.cone.map((from) => place - from + 1).join(", ")}`;
  const viewBox = `0 0 340 ${rows.length * high}`;
  return draw("svg", { class: "layers", viewBox, role: "img", "aria-label": label }, ...bars);
}

// The slots in which keys and values lie, the older the fainter; the next token overwrites the oldest.
function ring(branch, place, start, slots) {
  const position = place - start, gap = slots > 1 ? Math.min(0.06, slots / 400) : 0.001, parts = [];
  const at = (slot, radius) => {
    const turn = (2 * Math.PI * slot) / slots - Math.PI / 2;
    return [100 + radius * Math.cos(turn), 100 + radius * Math.sin(turn)].map((value) => value.toFixed(2));
  };
  const long = slots === 1 ? 1 : 0; // an arc of more than half a turn
  for (let slot = 0; slot < slots; slot++) {
    const back = (((position - slot) % slots) + slots) % slots, [from, to] = [slot + gap, slot + 1 - gap];
    const kind = back > position ? "empty" : back === 0 ? "newest" : back === slots - 1 ? "oldest" : "held";
    const d = `M${at(from, 62)}A62 62 0 ${long} 1 ${at(to, 62)}L${at(to, 44)}A44 44 0 ${long} 0 ${at(from, 44)}Z`;
    parts.push(draw("path", { d, class: kind, "fill-opacity": back ? (0.75 - (0.6 * back) / slots).toFixed(2) : 1 }));
    if (slots > LABELS || kind === "empty") continue;
    const [x, y] = at(slot + 0.5, 76);
    parts.push(draw("text", { x, y, class: kind }, spelled(branch.tokens[place - back].bytes).slice(0, 5)));
  }
  const middle = [`${position} mod ${slots}`, `= slot ${position % slots}`];
  parts.push(...middle.map((said, line) => draw("text", { x: 100, y: 92 + 18 * line, class: "middle" }, said)));
  return draw("svg", { class: "ring", viewBox: "0 0 200 200", role: "img", "aria-label": middle.join(" ") }, ...parts);
}

// Without a window every token has a slot of its own, up to the context.
function row(position, context) {
  const name = `${number(position + 1)} of ${number(context)} slots are taken`;
  return draw("svg", { class: "row", viewBox: "0 0 200 16", role: "img", "aria-label": name },
    draw("rect", { class: "empty", x: 0.5, y: 0.5, width: 199, height: 15, rx: 2 }),
    draw("rect", { x: 0, y: 0, width: (200 * (position + 1)) / context, height: 16, rx: 2 }));
}

function ringCaption(window, layers, position, about) {
  const taken = `no window: ${number(position + 1)} of ${number(about.context)} slots are taken; nothing is overwritten`;
  const next = position + 1 < window ? "some are empty yet"
    : `the next token overwrites slot ${(position + 1) % window}, the oldest`;
  const said = window === null ? taken : `a ring of ${number(window)} ${window === 1 ? "slot" : "slots"}; ${next}`;
  return make("figcaption", {}, `${listed(layers)}: ${said}.`);
}

const PAUSE = 50; // milliseconds: who runs through the text with a key held down asks for nothing
let last = 0; // an answer that comes after another token was chosen is thrown away
let pressed = null; // the head that shades the text

async function shown(column, place, view, box, shade) {
  const { about, branch, engine } = column, mine = ++last;
  if (column.writing) {
    box.replaceChildren(make("p", {}, "This is shown when the writing has ended."));
    return;
  }
  await new Promise((resolve) => setTimeout(resolve, PAUSE));
  if (mine !== last) return;
  let layers;
  try {
    layers = await engine.attention(branch.ids.slice(view.start, place + 1));
  } catch (error) {
    box.replaceChildren(make("p", {}, error.message));
  }
  if (mine !== last || !layers) return;
  const shared = about.kv_heads < about.heads ? " Heads of one colour share a key/value head." : "";
  shade(null);
  const how = `A row is a query head, a column a token, the oldest left; a stronger colour is more attention.${shared} `
    + "Click a head to shade the text by it. With what this token sees, the model predicts the next one.";
  box.replaceChildren(make("p", { class: "quiet" }, how),
    ...layers.map(({ weights }, layer) => make("details", { open: layer < 4 },
      make("summary", {}, `Layer ${layer + 1}`, make("small", {}, layerKind(about, layer))),
      ...weights.map((row, head) => headRow(column, place, layer, head, row, shade)))),
  );
  for (const canvas of box.querySelectorAll("canvas")) painted(canvas);
}

function layerKind(about, layer) {
  const window = about.windows[layer], positions = { rope: "RoPE", learned: "learned positions", none: "no positions" };
  return ` ${window === null ? "no window" : `window ${number(window)}`} · ${positions[about.positions[layer]]}`;
}

// One head: its colour is its key/value head's, its cells are the weights, and in words where it looks most.
function headRow(column, place, layer, head, weights, shade) {
  const { about, branch } = column, group = Math.floor(head / (about.heads / about.kv_heads)), id = `${layer}.${head}`;
  const said = (index) => `${spelled(branch.tokens[place - weights.length + 1 + index].bytes)} ${percent(weights[index])}`;
  const rest = Math.max(0, 1 - weights.reduce((a, b) => a + b)), sink = about.sinks ? ` · sink ${percent(rest)}` : "";
  const most = said(weights.indexOf(Math.max(...weights))) + sink;
  const canvas = make("canvas", { width: weights.length, height: 1, class: `kv-${group % 8}` });
  canvas.onpointermove = ({ offsetX }) => {
    const index = Math.floor((offsetX / canvas.clientWidth) * weights.length);
    tip(canvas, said(Math.max(0, Math.min(weights.length - 1, index))));
  };
  canvas.onpointerleave = () => tip(null);
  canvas.weights = weights;
  const onclick = (event) => {
    pressed = pressed === id ? null : id;
    for (const each of document.querySelectorAll(".head"))
      each.setAttribute("aria-pressed", String(pressed !== null && each === event.currentTarget));
    shade(pressed && weights);
  };
  if (pressed === id) shade(weights);
  return make("button", {
    type: "button", class: about.sinks ? "head sinks" : "head", "aria-pressed": String(pressed === id), onclick,
    "aria-label": `Layer ${layer + 1}, head ${head + 1}, key/value head ${group + 1}: most at ${most}`,
  }, make("span", { class: `chip kv-${group % 8}` }), String(head + 1), canvas, make("span", { class: "most" }, most));
}

function painted(canvas) { // a pixel for each token; the square root lets one see small weights too
  const brush = canvas.getContext("2d");
  brush.fillStyle = getComputedStyle(canvas).color;
  canvas.weights.forEach((weight, place) => {
    brush.globalAlpha = Math.sqrt(weight);
    brush.fillRect(place, 0, 1, 1);
  });
}
