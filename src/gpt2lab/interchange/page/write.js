// The view in which models write: one prompt, and a column for each model that is chosen.

import { $, make, number, size } from "./dom.js";
import { pieces } from "./text.js";

const FRAME = 40; // milliseconds: laying out a text that grows takes time that the model could use

// What the person chose; what is left empty is left out.
export function options() {
  const value = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    tokens: value("tokens") ?? 1000, temperature: value("temperature"), top_k: value("top_k"), top_p: value("top_p"),
    min_p: value("min_p"), repetition_penalty: value("repetition_penalty") || undefined,
    seed: value("seed") ?? anySeed(), stop: $("stop_at").value || undefined,
  };
}

const anySeed = () => Math.floor(Math.random() * 2 ** 32);

export function writeView(columns) {
  const shown = new Set(columns.slice(0, 2));
  const chosen = () => columns.filter((column) => shown.has(column));
  const texts = () => chosen().filter((column) => column.branch);
  const articles = new Map(columns.map((column, index) => [column, article(column, index, columns.length > 1)]));

  function choose(column, on) {
    if (on) shown.add(column);
    else shown.delete(column);
    $("columns").replaceChildren(...chosen().map((each) => articles.get(each)));
    tell();
  }

  function tell() { // which buttons can be used, and in words what happens
    const writing = columns.some((column) => column.writing);
    $("start").disabled = writing || chosen().length === 0;
    $("stop").disabled = !writing;
    $("continue").disabled = writing || texts().length === 0;
    $("regenerate").disabled = writing || !texts().some((column) => column.branch.from < column.branch.tokens.length);
    $("status").textContent = said();
  }

  function said() {
    if (columns.some((column) => column.writing)) return "writing · Escape stops";
    const failed = chosen().filter((column) => column.error), errors = new Set(failed.map((column) => column.error));
    if (errors.size === 1) return failed[0].error;
    if (errors.size > 1) return failed.map((column) => `${column.about.name}: ${column.error}`).join(" · ");
    if (chosen().length === 0) return "choose a model";
    return summary(texts().map((column) => column.figures).filter(Boolean));
  }

  const write = () => {
    const asked = options();
    for (const column of chosen()) column.write($("prompt").value, asked);
  };
  $("start").onclick = write;
  $("stop").onclick = () => columns.forEach((column) => column.stop());
  $("continue").onclick = () => {
    const asked = options();
    for (const column of texts()) column.goOn(asked);
  };
  $("regenerate").onclick = () => {
    const asked = { ...options(), seed: anySeed() };
    for (const column of texts()) column.regenerate(asked);
  };
  for (const column of columns) {
    column.watch((what) => what === "state" && tell());
    const box = make("input", { type: "checkbox", onchange: (event) => choose(column, event.target.checked) });
    box.checked = shown.has(column);
    $("models").append(make("label", {}, box, column.about.name));
  }
  $("models").hidden = columns.length < 2;
  $("prompt").value = columns[0].about.prompt.trim();
  $("columns").replaceChildren(...chosen().map((column) => articles.get(column)));
  tell();
  return { write };
}

function summary(figures) {
  if (figures.length === 0) return "ready · Ctrl+Enter writes, Escape stops";
  const tokens = figures.reduce((sum, each) => sum + each.tokens, 0);
  return `${number(tokens)} tokens · seed ${figures[0].seed}`;
}

// A model's text as it comes, with its figures.
function article(column, index, named) {
  const { name, cache_bytes } = column.about, id = index ? `text-${index + 1}` : "text";
  const text = make("div", { id, class: "text", role: "region", tabindex: "0", "aria-label": `What ${name} writes` });
  const figures = make("p", { class: "figures" });
  const taken = () => {
    $("prompt").value = column.branch.text;
    $("prompt").focus();
  };
  const edit = make("button", { type: "button", onclick: taken }, "Edit");
  const copy = make("button", { type: "button", onclick: () => copied(text) }, "Copy");
  let written, decoder; // while the model writes, plain text is added, which is quick
  let fresh = "", timer = 0; // what was written since then

  function added() {
    written.appendData(fresh);
    [fresh, timer] = ["", 0];
    tell();
  }

  function drawn() {
    fresh = "";
    const { tokens, given } = column.branch;
    decoder = new TextDecoder();
    const prompt = pieces(tokens.slice(0, given), decoder).join("");
    const others = pieces(tokens.slice(given), decoder).join("");
    written = new Text(column.writing ? others : others + decoder.decode());
    text.replaceChildren(make("span", { class: "prompt" }, prompt), written);
  }

  function tell() {
    edit.disabled = copy.disabled = !column.branch || column.writing;
    const { tokens, seconds, first } = column.figures ?? {};
    const latency = number(1000 * first, first < 0.01 ? 1 : 0);
    const speed = tokens ? `${number(tokens / seconds)} tokens/s · ${latency} ms to the first · ` : "";
    figures.textContent = `${speed}cache ${size(cache_bytes)}`;
  }

  column.watch((what, _, tokens) => {
    if (what === "text") drawn();
    if (what === "tokens") {
      fresh += pieces(tokens, decoder).join("");
      timer ||= setTimeout(added, FRAME);
    } else tell();
  });
  tell();
  const heading = named ? [make("h2", {}, name)] : [];
  const buttons = make("div", { class: "buttons small" }, edit, copy);
  return make("article", { class: "column" }, make("header", {}, ...heading, figures, buttons), text);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text.textContent);
    $("status").textContent = "copied";
  } catch {
    getSelection().selectAllChildren(text);
    $("status").textContent = "selected; copy it with the keyboard";
  }
}
