// From text to ids and from ids to bytes, as the model's tokenizer in Python has it.

// Byte-level letters, as GPT-2's vocabulary has them: printable ones stand for themselves, others from U+0100 on.
const byteOf = new Map();
for (let byte = 0, other = 256; byte < 256; byte++) {
  const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  byteOf.set(String.fromCharCode(printable ? byte : other++), byte);
}
const letterOf = [...byteOf].reduce((all, [letter, byte]) => ((all[byte] = letter), all), []);
const letters = (text) => Array.from(new TextEncoder().encode(text), (byte) => letterOf[byte]);

const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

export class Tokenizer {
  #idOf;
  #ranks;

  constructor(tokens, merges) {
    this.bytes = tokens.map((token) => Array.from(token, (letter) => byteOf.get(letter)));
    this.#idOf = new Map(tokens.map((token, id) => [token, id]).filter(([token]) => token !== ""));
    this.#ranks = merges && new Map(merges.map((pair, rank) => [pair, rank]));
  }

  // Of a text's characters, or of its words, whose letters are merged as the tokenizer learned it.
  encode(text) {
    if (this.#ranks) return (text.match(WORDS) || []).flatMap((word) => this.#merged(letters(word)));
    const characters = Array.from(text, (one) => [one, this.#idOf.get(letters(one).join(""))]);
    const unknown = new Set(characters.filter(([, id]) => id === undefined).map(([one]) => one));
    if (unknown.size) throw new Error(`The model does not know ${[...unknown].join(" ")}`);
    return characters.map(([, id]) => id);
  }

  #merged(parts) {
    for (;;) {
      let best = Infinity, place = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.#ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) return parts.map((part) => this.#idOf.get(part));
      const [left, right] = [parts[place], parts[place + 1]];
      for (let i = 0; i + 1 < parts.length; i++)
        if (parts[i] === left && parts[i + 1] === right) parts.splice(i, 2, left + right);
    }
  }
}
