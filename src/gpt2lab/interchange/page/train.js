// The view of the runs of a folder: their curves, a sample of each checkpoint, reports. While a run trains it is asked
// for again every few seconds.

import { $, make, number } from "./dom.js";
import { axes, path } from "./chart.js";

const PAUSE = 3000, LONG_PAUSE = 15000; // milliseconds, while a run trains and while none does
const SHOWN_FIRST = 4;
const UNITS = { tokens: "tokens read", step: "steps", seconds: "seconds of training" };

export function trainView(found) {
  const records = new Map(), shown = new Set(); // by the id of a run
  let runs = [], timer = null;

  async function asked() { // what runs there are, and the records of those that are shown
    try {
      const all = await found("/runs");
      runs = all.runs;
      listed(all);
      const wanted = runs.filter(({ id }) => shown.has(id) || sampled() === id);
      for (const { id, step } of wanted.filter(({ id, step, training }) => training || records.get(id)?.step !== step))
        records.set(id, { ...(await found(`/runs/${id}`)), step });
      curves();
      sample();
    } catch (error) {
      $("status").textContent = error.message;
    }
    if (timer !== null) timer = setTimeout(asked, runs.some(({ training }) => training) ? PAUSE : LONG_PAUSE);
  }

  const sampled = () => Number($("sample-run").value);

  function listed({ reports }) {
    $("train-empty").hidden = runs.length > 0;
    $("train-found").hidden = runs.length === 0;
    const known = new Map([...$("runs").querySelectorAll("label")].map((node) => [Number(node.dataset.run), node]));
    for (const run of runs) {
      if (!known.has(run.id)) {
        if (known.size < SHOWN_FIRST) shown.add(run.id);
        known.set(run.id, runBox(run));
        $("runs").append(known.get(run.id));
        $("sample-run").append(make("option", { value: String(run.id) }, run.name));
      }
      known.get(run.id).querySelector("small").textContent = described(run);
    }
    $("reports-empty").hidden = reports.length > 0;
    $("reports").replaceChildren(...reports.map(({ address, name }) =>
      make("li", {}, make("a", { href: address, target: "_blank", rel: "noopener" }, name))));
  }

  function runBox(run) {
    const box = make("input", { type: "checkbox", onchange: (event) => {
      if (event.target.checked) shown.add(run.id);
      else shown.delete(run.id);
      again();
    } });
    box.checked = shown.has(run.id);
    const chip = make("span", { class: `chip ${colour(run)}` });
    return make("label", { "data-run": run.id }, box, chip, make("span", {}, run.name), make("small", {}));
  }

  function curves() {
    const across = $("train-across").value, logarithmic = $("train-scale").value === "log";
    const lines = runs.filter(({ id }) => shown.has(id) && records.has(id)).map((run) => {
      const points = records.get(run.id).records.filter((one) => one[across] > 0);
      const at = (name) => points.filter((one) => one[name] != null).map((one) => [one[across], one[name]]);
      return { run, training: at("loss"), validation: at("validation_loss") };
    });
    const all = lines.flatMap(({ training, validation }) => [...training, ...validation]);
    const none = () => make("p", {}, "Choose a run that has been measured.");
    $("curves").replaceChildren(all.length ? picture(lines, all, UNITS[across], logarithmic) : none());
  }

  function picture(lines, all, unit, logarithmic) {
    const scale = logarithmic ? Math.log10 : (value) => value;
    const extent = (place) => {
      const values = all.map((point) => point[place]).sort((a, b) => a - b);
      return [values[0], values.at(-1)];
    };
    const x = extent(0).map(scale), width = Math.max(300, $("curves").clientWidth), height = width < 500 ? 260 : 380;
    const drawn = axes({
      width, height, x: logarithmic ? x : [0, x[1]], y: extent(1), logarithmic, xLabel: unit, yLabel: "loss, nats per token",
      label: `Loss curves of ${lines.map(({ run }) => run.name).join(", ")}`,
    });
    const scaled = { atX: (value) => drawn.atX(scale(value)), atY: drawn.atY };
    for (const { run, training, validation } of lines) {
      drawn.line(path(training, scaled), `${colour(run)} faint`);
      drawn.line(path(validation, scaled), colour(run));
      for (const [x, y] of validation.slice(-1)) drawn.point(scaled.atX(x), scaled.atY(y), colour(run));
    }
    const caption = "Faint: the training batches. Strong: validation.";
    return make("figure", {}, drawn.svg, make("figcaption", {}, caption));
  }

  function sample() {
    const samples = records.get(sampled())?.samples ?? [], slider = $("sample-step");
    const atEnd = slider.value === slider.max;
    slider.max = Math.max(0, samples.length - 1);
    slider.disabled = samples.length < 2;
    if (atEnd) slider.value = slider.max;
    const one = samples[slider.value];
    const which = one && `Step ${number(one.step)}, sample ${Number(slider.value) + 1} of ${samples.length}`;
    $("sample-told").textContent = which ?? "This run has written no sample yet.";
    slider.setAttribute("aria-valuetext", $("sample-told").textContent);
    $("sample").textContent = one?.text ?? "";
    $("sample").hidden = !one;
  }

  const again = () => { clearTimeout(timer); asked(); };
  $("train-across").onchange = $("train-scale").onchange = curves;
  $("sample-run").onchange = again;
  $("sample-step").oninput = sample;
  return (on) => { // nothing is asked while nobody looks
    clearTimeout(timer);
    timer = on ? 0 : null;
    if (on) asked();
  };
}

const colour = ({ id }) => `kv-${id % 8}`; // a run keeps it when others come

function described({ switches, context_size, step, validation_loss, training }) {
  const on = Object.entries(switches).map(([name, value]) => `${name} ${value}`).join(", ") || "the original";
  const loss = validation_loss == null ? "" : ` · validation ${number(validation_loss, 3)}`;
  return `${on}, context ${number(context_size)} · step ${number(step)}${loss}${training ? " · training" : ""}`;
}
