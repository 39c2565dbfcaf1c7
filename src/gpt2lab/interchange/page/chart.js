// Line pictures with axes, as SVG that is drawn here.

import { draw, number } from "./dom.js";

const LEFT = 46, RIGHT = 22, TOP = 10, BOTTOM = 40;

function ticks(low, high, most) { // round numbers in between, as people read them
  const rough = (high - low || 1) / most, ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= rough), found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step)
    found.push([value, short(value, step)]);
  return found;
}

function powers(low, high) { // the same of a logarithmic scale
  const found = [];
  for (let power = Math.floor(low); power <= high; power++)
    for (const each of [1, 2, 5]) found.push([power + Math.log10(each), short(each * 10 ** power, 10 ** power)]);
  return found.filter(([value]) => value >= low && value <= high);
}

function short(value, step) {
  if (value >= 1e6) return `${number(value / 1e6, step < 1e6 ? 1 : 0)}M`;
  if (value >= 1e4) return `${number(value / 1e3, step < 1e3 ? 1 : 0)}k`;
  return number(value, Math.max(0, -Math.floor(Math.log10(step))));
}

// An empty picture: axes with round numbers and labels; `logarithmic`: x is a logarithm. Returns it with its scales.
export function axes({ width, height, x, y, logarithmic, xLabel, yLabel, label }) {
  const inner = { right: width - RIGHT, bottom: height - BOTTOM };
  const atX = (value) => LEFT + ((value - x[0]) / (x[1] - x[0] || 1)) * (inner.right - LEFT);
  const atY = (value) => inner.bottom - ((value - y[0]) / (y[1] - y[0] || 1)) * (inner.bottom - TOP);
  const across = logarithmic ? powers(...x) : ticks(...x, Math.max(2, Math.floor(width / 90)));
  const name = (text, x, y, more) => draw("text", { x, y, ...more }, text), centre = { "text-anchor": "middle" };
  const middle = (TOP + inner.bottom) / 2;
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    ...ticks(...y, 5).flatMap(([value, text]) => [
      draw("line", { class: "grid", x1: LEFT, x2: inner.right, y1: atY(value), y2: atY(value) }),
      name(text, LEFT - 6, atY(value) + 4, { "text-anchor": "end" }),
    ]),
    ...across.map(([value, text]) => name(text, atX(value), inner.bottom + 16, centre)),
    draw("line", { class: "axis", x1: LEFT, x2: inner.right, y1: inner.bottom, y2: inner.bottom }),
    name(xLabel, (LEFT + inner.right) / 2, height - 6, centre),
    name(yLabel, 12, middle, { ...centre, transform: `rotate(-90 12 ${middle})` }));
  const line = (d, kind) => svg.append(draw("path", { class: kind, d }));
  const point = (cx, cy, kind) => svg.append(draw("circle", { class: kind, cx, cy, r: 4 }));
  return { svg, atX, atY, line, point };
}

export const path = (points, { atX, atY }) =>
  points.map(([x, y], index) => `${index ? "L" : "M"}${atX(x).toFixed(1)} ${atY(y).toFixed(1)}`).join("");

// A bar for each token, or for a few in a row where there are more than the picture has room for, and the mean.
export function lossChart(tokens, mean, space) {
  const width = Math.max(300, space), room = width - LEFT - RIGHT;
  const losses = tokens.map(({ logprob }) => (logprob === null ? null : -logprob));
  const each = Math.ceil(losses.length / Math.floor(room / 3)), bars = [];
  for (let place = 0; place < losses.length; place += each) {
    const some = losses.slice(place, place + each).filter((loss) => loss !== null);
    if (some.length) bars.push([place + each / 2, some.reduce((a, b) => a + b) / some.length]);
  }
  const heights = bars.map(([, loss]) => loss), most = Math.max(...heights);
  const label = `Loss by position, ${number(Math.min(...heights), 2)} to ${number(most, 2)} nats; mean ${number(mean, 2)}`;
  const yLabel = each > 1 ? `nats, means of ${each}` : "nats", x = [0, losses.length];
  const picture = axes({ width, height: 200, x, y: [0, most], xLabel: "position of the token", yLabel, label });
  const thick = Math.min(14, Math.max(1, (0.7 * each * room) / losses.length));
  const d = bars.map(([at, loss]) => path([[at, 0], [at, loss]], picture)).join("");
  picture.svg.append(draw("path", { class: "bars", "stroke-width": thick, d }));
  picture.line(path([[0, mean], [losses.length, mean]], picture), "mean");
  return picture.svg;
}
