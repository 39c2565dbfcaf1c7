// One model's text on the page: it is written, stopped, continued, branched and restored here.

import { Branch } from "./text.js";

export class Column {
  branches = [];
  branch = null; // the one that is shown
  figures = null; // of the last writing
  error = "";
  #stopper = null;
  #watchers = [];

  constructor(engine) {
    [this.engine, this.about] = [engine, engine.about];
  }

  get writing() {
    return this.#stopper !== null;
  }

  // Hears "state" (it begins or ends), "text" (all of it changed) and "tokens" (some were added).
  watch(watcher) {
    this.#watchers.push(watcher);
  }

  write(prompt, options) {
    const same = prompt !== "" && prompt === this.branch?.text; // then its ids stay what they are
    return this.#run(new Branch(), options, same ? this.branch.ids : prompt || this.about.prompt);
  }

  goOn(options) {
    return this.#run(this.branch, options);
  }

  regenerate(options) {
    return this.#run(new Branch(this.branch, this.branch.from), options);
  }

  // Keeps what stands before a place, puts an alternative there, and writes on as the text was written.
  fork(place, { id, bytes, logprob }, options) {
    const branch = new Branch(this.branch, place), { top } = this.branch.tokens[place];
    branch.add([{ id, bytes, logprob, top }], this.about);
    return this.#run(branch, { ...(this.branch.options ?? options), seed: options.seed });
  }

  read(text) {
    return this.#guarded(async (signal) => {
      const branch = new Branch();
      branch.begin(await this.engine.read(text, signal), this.about);
      this.branches = [];
      this.figures = null;
      this.show(branch);
    });
  }

  show(branch) {
    if (!this.branches.includes(branch)) this.branches.push(branch);
    this.branch = branch;
    this.#tell("text");
  }

  stop() {
    this.#stopper?.abort();
  }

  #tell(what, tokens) {
    for (const watcher of this.#watchers) watcher(what, this, tokens);
  }

  // With a prompt the branch is a new text, which takes the place of the old one when its first tokens are there.
  #run(branch, options, prompt = null) {
    return this.#guarded(async (signal) => {
      const { stop } = options, begun = performance.now();
      const figures = { seed: options.seed, tokens: 0, first: 0, seconds: 0 };
      branch.options = options;
      if (prompt === null) this.#begin(branch, [], figures);
      // What goes on has noise of its own: that of the beginning would soon write the beginning again.
      const seed = options.seed + (prompt === null ? branch.ids.length : 0);
      const written = this.engine.write({ ...options, seed, prompt: prompt ?? branch.ids, echo: prompt !== null }, signal);
      for await (const tokens of written) {
        if (prompt !== null) {
          this.branches = [];
          this.#begin(branch, tokens, figures);
          prompt = null;
          continue;
        }
        figures.seconds = (performance.now() - begun) / 1000;
        figures.first ||= figures.seconds;
        figures.tokens += tokens.length;
        branch.add(tokens, this.about);
        if (stop && branch.endsAt(stop, tokens.length)) break;
        this.#tell("tokens", tokens);
      }
    });
  }

  #begin(branch, prompt, figures) {
    branch.begin(prompt, this.about);
    this.figures = figures;
    this.show(branch);
  }

  async #guarded(work) {
    if (this.writing) return;
    const stopper = (this.#stopper = new AbortController());
    this.error = "";
    this.#tell("state");
    try {
      await work(stopper.signal);
    } catch (error) {
      if (!stopper.signal.aborted) this.error = error.message;
    }
    stopper.abort();
    this.#stopper = null;
    if (this.branch) this.#tell("text");
    this.#tell("state");
  }
}
