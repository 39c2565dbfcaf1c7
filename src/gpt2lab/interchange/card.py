"""The model card of an exported folder: what the model is, how good it is, and how to use it."""

import warnings
from dataclasses import replace
from pathlib import Path

from gpt2lab.config import switches_on
from gpt2lab.errors import InputError
from gpt2lab.evaluation.runs import RunEvaluation, evaluate_run
from gpt2lab.model import GPT2
from gpt2lab.runs.settings import Weights, Which


def measured(
    run: Path, which: Which, attention: str | type | None, weights: Weights | None = None
) -> RunEvaluation | None:
    """The evaluation of a run on the test part of its text; None, with a note, where that cannot be had."""
    if not (run / "config.yaml").exists():
        return None
    try:
        found = evaluate_run(run, split="test", contexts=(), checkpoint=which, attention=attention, weights=weights)
    except InputError as error:
        warnings.warn(f"the loss is not told: {error}", stacklevel=3)
        return None
    return replace(found, text=Path(found.text).name)  # where it lies on this machine is nobody's business


def model_card(model: GPT2, kind: str, found: RunEvaluation | None) -> str:
    """The text of README.md."""
    c = model.config
    on = ", ".join(f"`{name}={value}`" for name, value in switches_on(c, c.num_heads).items())
    on = on or "none: it is the original GPT-2"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [gpt2, gpt2lab]",
        "---",
        f"# {kind}, made with gpt2lab",
        "",
        f"A GPT-2 of {model.num_parameters():,} parameters: {c.num_layers} layers, {c.embed_dim} wide, {c.num_heads} "
        f"heads, a context of {c.max_seq_len} tokens, {c.vocab_size:,} token ids. Switches: {on}.",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'write = pipeline("text-generation", "THIS FOLDER")',
        'print(write("It was", max_new_tokens=200, do_sample=True, temperature=0.8)[0]["generated_text"])',
        "```",
    ]
    if found is not None:
        one = found.trained
        lines += [
            "",
            f"Measured on {found.text} (the whole of it, {one.tokens:,} tokens, each predicted once, at the context of "
            "the training):",
            "",
            "| nats/token | perplexity | bits/character | bits/byte | accuracy |",
            "|---|---|---|---|---|",
            f"| {one.loss:.4f} | {one.perplexity:.3f} | {one.bits_per_character:.4f} | {one.bits_per_byte:.4f} | "
            f"{one.accuracy:.2%} |",
        ]
    return "\n".join(lines) + "\n"
