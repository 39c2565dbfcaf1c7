// The view in which one looks at a text: how surprising each token was, what it could have been, and its branches.

import { $, make, number, percent, spelled, tip } from "./dom.js";
import { lossChart } from "./chart.js";
import { sight } from "./sight.js";
import { mean, pieces, seen } from "./text.js";
import { options } from "./write.js";

const LEVELS = [0.1, 0.5, 1, 2, 3, 4.5, 6]; // nats; each begins a darker shade
const SHOWN = 4000; // spans are slow where there are many: of a longer text the end is shown first
const level = (surprise) => LEVELS.filter((least) => surprise >= least).length;

export function lookView(columns) {
  let column = columns[0], chosen = null, first = 0, decoder, visible = false;
  const attention = make("div", { class: "attention" }); // what it shows stays until an answer takes its place
  const list = $("pieces"), span = (place) => list.children[place - first];

  function drawn() {
    const branch = column.branch, tokens = branch?.tokens ?? [];
    if (chosen !== null && chosen >= tokens.length) chosen = null;
    first = Math.max(0, tokens.length - SHOWN);
    list.replaceChildren();
    decoder = new TextDecoder();
    pieces(tokens.slice(0, first), decoder);
    added(tokens.slice(first), first);
    shade(null);
    $("look-empty").hidden = tokens.length > 0;
    $("look-found").hidden = tokens.length === 0;
    $("look-long").textContent = first ? `The last ${number(SHOWN)} of ${number(tokens.length)} tokens are shown.` : "";
    finished();
  }

  function added(tokens, place) {
    list.append(...pieces(tokens, decoder).map((text, index) => tokenSpan(column.branch, place + index, text)));
  }

  function finished() { // what is drawn when no tokens come any more
    const { branch } = column;
    $("look-stop").hidden = !column.writing;
    $("branches").replaceChildren(...column.branches.map((each, index) => branchItem(column, each, index)));
    $("branching").hidden = column.branches.length < 2;
    if (branch && !column.writing) $("loss").replaceChildren(...lossFigure(branch.tokens, $("loss").clientWidth));
    told();
  }

  function choose(place) {
    chosen = place;
    told();
    span(place)?.scrollIntoView({ block: "nearest" });
  }

  function told() { // all that is drawn of the chosen token
    const view = chosen === null ? null : seen(column.branch, chosen, column.about);
    for (const [index, node] of [...list.children].entries()) marked(node, first + index, view, chosen);
    if (chosen === null) {
      list.removeAttribute("aria-activedescendant");
      $("token").replaceChildren(make("p", { class: "quiet" }, "Choose a token: with the mouse, a tap, or the arrow keys."));
    } else {
      list.setAttribute("aria-activedescendant", `token-${chosen}`);
      $("token").replaceChildren(...alternatives(column, chosen), ...sight(column, chosen, view, attention, shade));
    }
  }

  function shade(weights) { // the text by one head's attention; null: by surprise again
    for (const [index, node] of [...list.children].entries()) {
      const weight = weights?.[weights.length - 1 - chosen + first + index];
      if (weights && weight !== undefined) node.dataset.weight = Math.min(6, Math.ceil(6 * Math.sqrt(weight)));
      else delete node.dataset.weight;
      node.classList.toggle("unshaded", weights !== null);
    }
    $("legend").replaceChildren(...(weights ? ["Attention of the chosen head; click it again to see surprise."] : legend()));
  }

  const placeOf = (event) => {
    const node = event.target.closest("[role=option]");
    return node && Number(node.id.slice("token-".length));
  };
  list.onclick = (event) => {
    const place = placeOf(event);
    if (place !== null) choose(place);
  };
  list.onfocus = () => { // by the keyboard
    if (chosen === null && list.matches(":focus-visible")) choose(column.branch.tokens.length - 1);
  };
  list.onkeydown = (event) => {
    const last = list.children.length - 1 + first, lines = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const moved = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: first, End: last }[event.key];
    const place = moved ?? (lines && below(list.children, chosen - first, lines) + first);
    if (place === undefined) return;
    event.preventDefault();
    choose(Math.max(first, Math.min(last, place)));
  };
  list.onpointerover = (event) => {
    const place = event.pointerType === "mouse" ? placeOf(event) : null; // a finger chooses
    if (place === null) tip(null);
    else pointed(event.target, column.branch.tokens[place]);
  };
  list.onpointerleave = () => tip(null);
  $("look-at").onchange = (event) => {
    [column, chosen] = [columns[event.target.value], null];
    drawn();
  };
  $("look-at").append(...columns.map((each, index) => make("option", { value: String(index) }, each.about.name)));
  $("look-which").hidden = columns.length < 2;
  $("look-stop").onclick = () => column.stop();
  $("read").onclick = async () => {
    chosen = null;
    await column.read($("pasted").value);
    $("status").textContent = column.error || `${number(column.branch.tokens.length)} tokens were read`;
  };
  $("pasted").oninput = () => ($("read").disabled = $("pasted").value === "");
  for (const each of columns)
    each.watch((what, from, tokens) => {
      if (!visible || from !== column) return;
      if (what === "text") drawn();
      if (what === "tokens") added(tokens, column.branch.tokens.length - tokens.length);
      if (what === "state") finished();
    });
  return (on) => { // spans are made only when they are looked at: writing is quicker without
    visible = on;
    if (on && !column.branch) {
      column = columns.find((each) => each.branch) ?? column;
      $("look-at").value = columns.indexOf(column);
    }
    if (on) drawn();
  };
}

function tokenSpan(branch, place, text) {
  const token = branch.tokens[place];
  const node = make("span", { role: "option", id: `token-${place}`, "aria-selected": "false" }, text);
  if (token.logprob !== null) node.dataset.surprise = level(-token.logprob);
  if (place < branch.given) node.classList.add("prompt");
  if (text.trim() === "") {
    node.setAttribute("aria-label", spelled(token.bytes));
    if (text === "" || text.includes("\n")) node.dataset.sign = spelled(token.bytes); // what is no sign gets one
  }
  return node;
}

// The window's edges and the cone are drawn on the text.
function marked(node, place, view, chosen) {
  const inside = view !== null && place <= chosen;
  node.setAttribute("aria-selected", String(place === chosen));
  node.classList.toggle("within", inside && place >= Math.min(...view.firsts));
  node.classList.toggle("reaches", inside && place >= view.reach && place < Math.min(...view.firsts));
  node.classList.toggle("edge", inside && view.edges.has(place));
  node.classList.toggle("cone", inside && place === view.reach && place > view.start);
  node.classList.toggle("cut", inside && place === view.start && place > 0);
}

function below(nodes, from, lines) { // the nearest token of the next line, or with -1 of the one before
  const here = nodes[from]?.getClientRects()[0];
  let best = from, least = Infinity;
  for (const [index, node] of [...nodes].entries()) {
    const box = node.getClientRects()[0], down = lines * (box?.top - here?.top);
    const far = 100 * down + Math.abs(box?.left - here?.left);
    if (down > 4 && far < least) [best, least] = [index, far];
  }
  return best;
}

// What a token could have been; a click takes an alternative and writes on behind it.
function alternatives(column, place) {
  const token = column.branch.tokens[place], predicted = token.logprob !== null;
  const likely = percent(Math.exp(token.logprob));
  const surprise = predicted && `surprise ${number(-token.logprob, 2)} nats, probability ${likely}`;
  const heading = [
    make("h2", {}, "Token ", make("q", {}, spelled(token.bytes))),
    make("p", { class: "quiet" }, [`at place ${number(place)}`, `id ${token.id}`, surprise].filter(Boolean).join(" · ")),
  ];
  if (!predicted) return [...heading, make("p", {}, "Nothing comes before it, so nothing predicted it.")];
  const others = token.top.some(({ id }) => id === token.id) ? token.top : [...token.top, token];
  const items = others.map((other) => {
    const taken = other.id === token.id, share = Math.exp(other.logprob), bar = make("span", { class: "bar" });
    bar.style.setProperty("--share", share);
    return make("li", {}, make("button", {
      type: "button", disabled: taken || column.writing, "aria-current": taken && "true",
      onclick: () => {
        column.fork(place, other, options());
        $("pieces").focus(); // the keyboard goes on in the text
      },
    }, bar, make("span", { class: "sign" }, spelled(other.bytes)), make("span", {}, percent(share))));
  });
  const note = "The probabilities are the model's own: at temperature 1, before any filter. "
    + "Click one to branch the text there.";
  return [
    ...heading, make("h3", {}, "It could have been"), make("ol", { class: "alternatives" }, ...items),
    make("p", { class: "quiet" }, note),
  ];
}

function pointed(node, token) {
  const sign = ({ bytes }, said) => [make("span", { class: "sign" }, spelled(bytes)), ` ${said}`];
  const lines = token.top.map((other) => make("li", {}, ...sign(other, percent(Math.exp(other.logprob)))));
  const said = token.logprob === null ? "not predicted" : `${number(-token.logprob, 2)} nats`;
  tip(node, make("p", {}, ...sign(token, said)), make("ul", {}, ...lines));
}

// The branches of a text, each under the one that it leaves; the shown one is marked.
function branchItem(column, branch, index) {
  const { parent, at, tokens, options: how } = branch;
  const depth = (one) => (column.branches.includes(one.parent) ? 1 + depth(one.parent) : 0);
  const said = tokens.slice(at, at + 24).map((token) => spelled(token.bytes)).join("");
  const where = parent ? `leaves at ${number(at)}` : "the first";
  const button = make("button", {
    type: "button", disabled: column.writing, "aria-current": branch === column.branch && "true",
    "aria-label": `Branch ${index + 1}, ${where}: ${said}`,
    onclick: () => {
      column.show(branch);
      $("branches").children[index].firstChild.focus(); // the list was made anew
    },
  }, make("span", { class: "sign" }, said),
  make("small", {}, `${where} · ${number(tokens.length)} tokens${how ? ` · seed ${how.seed}` : ""}`));
  button.style.setProperty("--depth", depth(branch));
  return make("li", {}, button);
}

function legend() {
  const shades = [0, ...LEVELS].map((least, index) => {
    const node = make("span", {}, String(least));
    node.dataset.surprise = index;
    return node;
  });
  return ["Surprise in nats: ", ...shades];
}

function lossFigure(tokens, width) {
  const loss = mean(tokens);
  if (!Number.isFinite(loss)) return [];
  const said = `Mean loss ${number(loss, 4)} nats per token, perplexity ${number(Math.exp(loss), 2)}, at temperature 1.`;
  return [make("h2", {}, "Loss by position"), make("p", { id: "loss-mean" }, said), lossChart(tokens, loss, width)];
}
