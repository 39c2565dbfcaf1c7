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

// The next id: a penalty, the temperature, then the filters, each on what the ones before left.
export function choose(logits, seen, options, noise) {
  const { temperature = 1, top_k = Infinity, top_p = 1, min_p = 0, repetition_penalty: penalty = 1 } = options;
  const scores = Float64Array.from(logits);
  if (penalty !== 1) for (const id of seen) scores[id] = scores[id] > 0 ? scores[id] / penalty : scores[id] * penalty;
  let best = 0;
  for (let id = 1; id < scores.length; id++) if (scores[id] > scores[best]) best = id;
  if (!Number.isFinite(scores[best])) throw new Error("The model's numbers are not finite.");
  if (temperature < 2 ** -126) return best;
  const weights = scores.map((score) => Math.exp((score - scores[best]) / temperature)); // the likeliest has 1
  const drop = (condition) => weights.forEach((weight, id) => { if (condition(weight, id)) weights[id] = 0; });
  const total = () => weights.reduce((a, b) => a + b);
  if (top_k < scores.length || top_p < 1) {
    const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a]);
    if (top_k < scores.length) drop((_, id) => scores[id] < scores[order[top_k - 1]]);
    if (top_p < 1) {
      const enough = top_p * total();
      let before = 0; // what the likelier ones hold together
      for (const id of order) {
        const weight = weights[id];
        if (before >= enough) weights[id] = 0;
        before += weight;
      }
    }
  }
  if (min_p > 0) drop((weight) => weight < min_p);
  let left = noise() * total();
  for (let id = 0; id < weights.length; id++) if ((left -= weights[id]) < 0) return id;
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
