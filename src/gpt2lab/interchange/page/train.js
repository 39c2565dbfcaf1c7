// The view of the runs of a folder: their curves, a sample of each checkpoint, reports. While a run trains it is asked
// for again every few seconds.

import { $, make, number } from "./dom.js";
import { axes, path } from "./chart.js";

const PAUSE = 3000; // milliseconds
const UNITS = { tokens: "tokens read", step: "steps", seconds: "seconds of training" };

export function trainView(found) {
  const records = new Map(), shown = new Set(); // by the id of a run
  let runs = [], timer = null;

  async function asked() { // what runs there are, and the records of those that are shown
    try {
      const all = await found("/runs");
      runs = all.runs;
      listed(all);
      for (const run of runs.filter(({ id, training }) => (shown.has(id) || sampled() === id) && (training || !records.has(id))))
        records.set(run.id, await found(`/runs/${run.id}`));
      curves();
      sample();
      if (timer !== null) timer = setTimeout(asked, PAUSE);
    } catch (error) {
      $("status").textContent = error.message;
      if (timer !== null) timer = setTimeout(asked, 3 * PAUSE);
    }
  }

  const sampled = () => Number($("sample-run").value);

  function listed({ reports }) {
    $("train-empty").hidden = runs.length > 0;
    $("train-found").hidden = runs.length === 0;
    const known = new Map([...$("runs").querySelectorAll("label")].map((node) => [Number(node.dataset.run), node]));
    for (const [index, run] of runs.entries()) {
      if (!known.has(run.id)) {
        if (known.size + index < 4) shown.add(run.id);
        const node = runBox(run, index);
        $("runs").append(node);
        known.set(run.id, node);
        $("sample-run").append(make("option", { value: String(run.id) }, run.name));
      }
      known.get(run.id).querySelector("small").textContent = described(run);
    }
    $("reports-empty").hidden = reports.length > 0;
    $("reports").replaceChildren(...reports.map(({ id, name }) =>
      make("li", {}, make("a", { href: `/reports/${id}`, target: "_blank", rel: "noopener" }, name))));
  }

  function runBox(run, index) {
    const box = make("input", { type: "checkbox", onchange: (event) => {
      if (event.target.checked) shown.add(run.id);
      else shown.delete(run.id);
      again();
    } });
    box.checked = shown.has(run.id);
    return make("label", { "data-run": run.id }, box, make("span", { class: `chip kv-${index % 8}` }), make("span", {}, run.name), make("small", {}));
  }

  function curves() {
    const across = $("train-across").value, logarithmic = $("train-scale").value === "log";
    const lines = runs.map((run, index) => [run, index]).filter(([{ id }]) => shown.has(id) && records.has(id)).map(([run, index]) => {
      const points = records.get(run.id).records.filter((one) => one[across] > 0);
      const at = (name) => points.filter((one) => one[name] != null).map((one) => [one[across], one[name]]);
      return { name: run.name, index, training: at("loss"), validation: at("validation_loss") };
    });
    const all = lines.flatMap(({ training, validation }) => [...training, ...validation]);
    $("curves").replaceChildren(all.length ? picture(lines, all, UNITS[across], logarithmic) : make("p", {}, "Choose a run that has been measured."));
  }

  function picture(lines, all, unit, logarithmic) {
    const scale = logarithmic ? Math.log10 : (value) => value;
    const range = (place) => all.reduce(([low, high], point) => [Math.min(low, point[place]), Math.max(high, point[place])], [Infinity, -Infinity]);
    const x = range(0).map(scale), y = range(1), width = Math.max(300, $("curves").clientWidth);
    const label = `Loss curves of ${lines.map(({ name }) => name).join(", ")}`;
    const drawn = axes({ width, height: width < 500 ? 260 : 380, x: logarithmic ? x : [0, x[1]], y, powers: logarithmic, xLabel: unit, yLabel: "loss, nats per token", label });
    const scaled = { atX: (value) => drawn.atX(scale(value)), atY: drawn.atY };
    for (const { index, training, validation } of lines) {
      drawn.line(path(training, scaled), `kv-${index % 8} faint`);
      drawn.line(path(validation, scaled), `kv-${index % 8}`);
      for (const point of validation.slice(-1)) drawn.point(scaled.atX(point[0]), scaled.atY(point[1]), `kv-${index % 8}`);
    }
    return make("figure", { class: "wide" }, drawn.svg, make("figcaption", {}, "Faint: the training batches. Strong: validation."));
  }

  function sample() {
    const samples = records.get(sampled())?.samples ?? [], slider = $("sample-step");
    const atEnd = slider.value === slider.max;
    slider.max = Math.max(0, samples.length - 1);
    slider.disabled = samples.length < 2;
    if (atEnd) slider.value = slider.max;
    const one = samples[slider.value];
    $("sample-told").textContent = one ? `Step ${number(one.step)}, sample ${Number(slider.value) + 1} of ${samples.length}` : "This run has written no sample yet.";
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

function described({ switches, context_size, step, validation_loss, training }) {
  const on = Object.entries(switches).map(([name, value]) => `${name} ${value}`).join(", ") || "the original";
  const loss = validation_loss == null ? "" : ` · validation ${number(validation_loss, 3)}`;
  return `${on}, context ${number(context_size)} · step ${number(step)}${loss}${training ? " · training" : ""}`;
}
