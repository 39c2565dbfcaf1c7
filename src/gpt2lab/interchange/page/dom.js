// What all views need: elements, numbers as people read them. A text is always set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") node[name] = value;
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export const make = (tag, properties = {}, ...children) => filled(document.createElement(tag), properties, children);

export const draw = (tag, properties = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

export const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${number(100 * share, share < 0.1 ? 1 : 0)} %`);

export const size = (bytes) =>
  bytes < 1e3 ? `${bytes} bytes` : bytes < 1e6 ? `${number(bytes / 1e3)} kB` : `${number(bytes / 1e6, 1)} MB`;

// A few tokens as one can see them: spaces and line breaks too, and bytes that are no whole character.
export function spelled(bytes) {
  const text = new TextDecoder().decode(Uint8Array.from(bytes));
  if (bytes.length === 0) return "∅";
  if (text.includes("\ufffd")) return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
}

// A box beside what the mouse points at; null takes it away.
export function tip(target, ...content) {
  const box = $("tip");
  box.hidden = target === null;
  if (box.hidden) return;
  box.replaceChildren(...content);
  const { left, bottom, top } = target.getBoundingClientRect(), under = bottom + box.offsetHeight + 8 < innerHeight;
  box.style.setProperty("left", `${Math.max(4, Math.min(left, innerWidth - box.offsetWidth - 12))}px`);
  box.style.setProperty("top", `${under ? bottom + 6 : top - box.offsetHeight - 6}px`);
}
