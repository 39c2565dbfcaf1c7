// Line pictures with axes, as SVG that is drawn here.

import { draw, number } from "./dom.js";

const LEFT = 46, RIGHT = 22, TOP = 10, BOTTOM = 40;

export function ticks(low, high, most) { // round numbers in between
  const rough = (high - low || 1) / most, ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return { step, found };
}

const short = (value, step) =>
  value >= 1e6 ? `${number(value / 1e6, step < 1e6 ? 1 : 0)}M` : value >= 1e4 ? `${number(value / 1e3, step < 1e3 ? 1 : 0)}k`
    : number(value, Math.max(0, -Math.floor(Math.log10(step))));

// An empty picture: axes with round numbers and labels; `powers`: x is the power of ten. Returns it with its scales.
export function axes({ width, height, x, y, powers, xLabel, yLabel, label }) {
  const inner = { right: width - RIGHT, bottom: height - BOTTOM };
  const atX = (value) => LEFT + ((value - x[0]) / (x[1] - x[0] || 1)) * (inner.right - LEFT);
  const atY = (value) => inner.bottom - ((value - y[0]) / (y[1] - y[0] || 1)) * (inner.bottom - TOP);
  const across = ticks(...x, Math.max(2, Math.floor(width / 90))), up = ticks(...y, 5);
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    ...up.found.flatMap((value) => [
      draw("line", { class: "grid", x1: LEFT, x2: inner.right, y1: atY(value), y2: atY(value) }),
      draw("text", { x: LEFT - 6, y: atY(value) + 4, "text-anchor": "end" }, short(value, up.step)),
    ]),
    ...across.found.map((value) => draw("text", { x: atX(value), y: inner.bottom + 16, "text-anchor": "middle" }, powers ? short(10 ** value, 10 ** value) : short(value, across.step))),
    draw("line", { class: "axis", x1: LEFT, x2: inner.right, y1: inner.bottom, y2: inner.bottom }),
    draw("text", { x: (LEFT + inner.right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel),
    draw("text", { x: 12, y: (TOP + inner.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(TOP + inner.bottom) / 2})` }, yLabel));
  const line = (d, kind) => svg.append(draw("path", { class: kind, d }));
  const point = (cx, cy, kind) => svg.append(draw("circle", { class: kind, cx, cy, r: 4 }));
  return { svg, atX, atY, line, point };
}

export const path = (points, { atX, atY }) =>
  points.map(([x, y], index) => `${index ? "L" : "M"}${atX(x).toFixed(1)} ${atY(y).toFixed(1)}`).join("");

// A bar for each token, or for a few in a row where there are more than the picture has room for, and the mean.
export function lossChart(tokens, mean, width) {
  const losses = tokens.map((token) => (token.logprob === null ? null : -token.logprob));
  const each = Math.ceil(losses.length / Math.max(100, Math.floor((width - LEFT - RIGHT) / 3)));
  const bars = [];
  for (let place = 0; place < losses.length; place += each) {
    const some = losses.slice(place, place + each).filter((loss) => loss !== null);
    if (some.length) bars.push([place + each / 2, some.reduce((a, b) => a + b) / some.length]);
  }
  const most = Math.max(...bars.map(([, loss]) => loss)), what = each > 1 ? `nats, means of ${each}` : "nats";
  const label = `Loss by position, from ${number(Math.min(...bars.map(([, loss]) => loss)), 2)} to ${number(most, 2)} nats; mean ${number(mean, 2)}`;
  const picture = axes({ width: Math.max(300, width), height: 200, x: [0, losses.length], y: [0, most], xLabel: "position of the token", yLabel: what, label });
  const { svg, atX, atY } = picture, thick = Math.max(1, (0.7 * each * (width - LEFT - RIGHT)) / losses.length);
  svg.append(draw("path", { class: "bars", "stroke-width": Math.min(14, thick), d: bars.map(([x, loss]) => `M${atX(x).toFixed(1)} ${atY(0)}V${atY(loss).toFixed(1)}`).join("") }),
    draw("path", { class: "mean", d: path([[0, mean], [losses.length, mean]], picture) }));
  return svg;
}
