// From logits to a token: what may be chosen, the choice, and what the model itself thought.

export function random(seed) { // mulberry32, twice for 53 bits
  let state = seed >>> 0;
  const bits = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
  return () => ((bits() >>> 5) * 67108864 + (bits() >>> 6)) / 9007199254740992;
}

export function choose(raw, seen, options, noise) {
  const { temperature = 1, top_k = Infinity, top_p = 1, min_p = 0, repetition_penalty = 1 } = options;
  const scores = Float64Array.from(raw);
  let best = 0;
  if (repetition_penalty !== 1)
    for (const id of seen) scores[id] = scores[id] > 0 ? scores[id] / repetition_penalty : scores[id] * repetition_penalty;
  for (let id = 1; id < scores.length; id++) if (scores[id] > scores[best]) best = id;
  if (!Number.isFinite(scores[best])) throw new Error("The model's numbers are not finite.");
  if (temperature < 2 ** -126) return best;
  let kept = Array.from(scores.keys());
  if (top_k < kept.length || top_p < 1) kept.sort((a, b) => scores[b] - scores[a]);
  if (top_k < kept.length) kept = kept.filter((id) => scores[id] >= scores[kept[top_k - 1]]);
  let weights = kept.map((id) => Math.exp((scores[id] - scores[best]) / temperature));
  if (top_p < 1) {
    const total = weights.reduce((a, b) => a + b), enough = [];
    for (let i = 0, before = 0; i < kept.length && before < top_p * total; before += weights[i++]) enough.push(i);
    [kept, weights] = [enough.map((i) => kept[i]), enough.map((i) => weights[i])];
  }
  weights = weights.map((weight) => (weight < min_p ? 0 : weight)); // the likeliest has 1
  let left = noise() * weights.reduce((a, b) => a + b);
  for (let i = 0; i < kept.length; i++) if ((left -= weights[i]) < 0) return kept[i];
  return best;
}

// The likeliest ids, the likeliest first: one pass, since a vocabulary may be long.
export function likeliest(logits, count) {
  const best = [];
  for (let id = 0; id < logits.length; id++) {
    let place = best.length;
    if (place === count && !(logits[id] > logits[best[count - 1]])) continue;
    while (place > 0 && logits[id] > logits[best[place - 1]]) place--;
    best.splice(place, 0, id);
    if (best.length > count) best.pop();
  }
  return best;
}

// What log-probabilities have to be subtracted from: the logarithm of the sum of all exponentials.
export function logSum(logits) {
  let most = -Infinity, sum = 0;
  for (let id = 0; id < logits.length; id++) if (logits[id] > most) most = logits[id];
  for (let id = 0; id < logits.length; id++) sum += Math.exp(logits[id] - most);
  return most + Math.log(sum);
}
