"""``gpt2lab generate``."""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Group, Parameter

from gpt2lab.cli.settings import console, errors, load_attention
from gpt2lab.data import Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.generation import Sampling, stream
from gpt2lab.hardware import choose_device
from gpt2lab.training import load
from gpt2lab.training.runs import Which


def generate_command(
    run: Path,
    /,
    *,
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    tokens: int = 500,
    num_samples: int = 1,
    sampling: Annotated[Sampling, Parameter(name="*", group=Group("Sampling"))] = Sampling(temperature=0.8),  # noqa: B008
    checkpoint: Which = "best",
    attention: str | None = None,
    device: str = "auto",
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Write text with a trained model, shown as it is written.

    Parameters
    ----------
    run
        Run folder.
    prompt
        Text to go on from; default: a line break.
    tokens
        How many tokens to write.
    num_samples
        How many texts, all from the same prompt.
    checkpoint
        Which one: best (lowest validation loss) or last.
    attention
        Your own mechanism, "file.py:ClassName", for a run that was trained with it.
    device
        auto, cpu, cuda or mps.
    json_output
        Print prompt and texts as JSON at the end instead.
    """
    if min(tokens, num_samples) < 1:
        raise InputError(f"--tokens {tokens} --num-samples {num_samples}: both have to be 1 or more")
    model, tokenizer = load(run, attention=load_attention(attention), checkpoint=checkpoint)
    model.to(choose_device(device))
    if prompt is None:
        prompt = "\n" if "\n" in getattr(tokenizer, "stoi", "\n") else tokenizer.decode([0])
    ids = tokenizer.encode(prompt)
    if len(ids) == 0:
        raise InputError("--prompt is empty; give at least one character, such as a line break")
    live = not json_output and num_samples == 1
    if live:
        print(prompt, end="", flush=True)
    written: list[torch.Tensor] = []
    decoder = _Decoder(tokenizer)
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: errors.print(f"\\[note: {message}]", style="dim")
            for token in stream(model, [torch.from_numpy(ids)] * num_samples, tokens, sampling):
                written.append(token)
                if live:
                    print(decoder.add(int(token[0])), end="", flush=True)
    except KeyboardInterrupt:
        pass  # what has been written stays
    seconds = time.perf_counter() - started
    texts = [tokenizer.decode([int(token[row]) for token in written]) for row in range(num_samples)]
    if json_output:
        print(json.dumps({"prompt": prompt, "texts": texts, "seconds": seconds}, ensure_ascii=False, indent=2))
        return 0
    if live:
        print()
    else:
        for number, text in enumerate(texts, 1):
            console.rule(f"{number} of {num_samples}")
            print(prompt + text)
    if sys.stderr.isatty():
        count = len(written) * num_samples
        errors.print(f"{count} tokens in {seconds:.1f} s, {1000 * seconds / max(1, count):.2f} ms each", style="dim")
    return 0 if len(written) == tokens else 130


class _Decoder:
    """Text of one id after the other; a character that several ids spell appears with the last of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pending: list[int] = []

    def add(self, token: int) -> str:
        self.pending.append(token)
        text = self.tokenizer.decode(self.pending)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self.pending) < 4:
            return ""
        self.pending.clear()
        return text
