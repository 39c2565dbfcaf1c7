// The page: its tabs, the keys, and the facts of every model.

import { $, make } from "./dom.js";
import { Column } from "./column.js";
import { lookView } from "./look.js";
import { writeView } from "./write.js";

// With what a view does when it is shown or hidden, by its id.
export function opened(engines, others = {}) {
  const columns = engines.map((engine) => new Column(engine));
  const { write } = writeView(columns);
  const views = { look: lookView(columns), ...others };
  $("facts").replaceChildren(...engines.map(({ about }) => facts(about, engines.length > 1)));

  const tabs = [...document.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const each of tabs) {
      const id = each.getAttribute("aria-controls"), on = each === tab;
      each.setAttribute("aria-selected", String(on));
      each.tabIndex = on ? 0 : -1;
      $(id).hidden = !on;
      views[id]?.(on);
    }
  };
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
  document.onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("write").hidden && !$("start").disabled) write();
    if (event.key === "Escape") for (const column of columns) column.stop();
  };
  globalThis.gpt2lab = { engines, columns }; // for the browser's console
}

function facts(about, named) {
  const row = ([label, value]) => make("tr", {}, make("th", { scope: "row" }, label), make("td", {}, value));
  const heading = named ? [make("h2", {}, about.name), make("p", { class: "quiet" }, about.summary)] : [];
  return make("section", {}, ...heading, make("table", {}, make("tbody", {}, ...about.facts.map(row))));
}
