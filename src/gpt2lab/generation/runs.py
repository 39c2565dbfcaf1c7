"""Writing with a run: what ``gpt2lab generate`` does."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from gpt2lab.errors import InputError
from gpt2lab.generation.generate import generate as generate_ids
from gpt2lab.generation.generate import stream
from gpt2lab.generation.sampling import Sampling
from gpt2lab.generation.text import Decoder
from gpt2lab.hardware import choose_device
from gpt2lab.model import GPT2
from gpt2lab.options import given_options
from gpt2lab.runs.folder import Which, load
from gpt2lab.runs.mechanisms import load_attention


@dataclass(frozen=True)
class Written:
    """What a run wrote.

    Attributes:
        prompt: what it went on from.
        texts: the continuations.
        tokens: how many tokens each of them has.
        seconds: of writing, without loading.
    """

    prompt: str
    texts: list[str]
    tokens: int
    seconds: float


def generate_from_run(
    run: str | Path,
    *,
    prompt: str | None = None,
    tokens: int = 500,
    num_samples: int = 1,
    checkpoint: Which = "best",
    attention: str | type | None = None,
    device: str = "auto",
    show: Callable[[str], None] | None = None,
    **sampling: Any,
) -> Written:
    """Write text with a trained model, as ``gpt2lab generate`` does.

    Ctrl-C ends the writing; what has been written comes back.

    Args:
        run: run folder.
        prompt: text to go on from; None: a line break.
        tokens: how many tokens to write.
        num_samples: how many texts, all from the same prompt.
        checkpoint: "best" (lowest validation loss) or "last".
        attention: your own mechanism, a class or "file.py:ClassName", for a run that was trained with it.
        device: "auto", "cpu", "cuda" or "mps".
        show: called with the prompt, and then with each piece of the first text as it is written.
        **sampling: fields of :class:`gpt2lab.Sampling`; a temperature of 0.8 unless given.

    Raises:
        InputError: no such run, a prompt that is empty or that the tokenizer cannot write, settings out of range.
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
    settings = Sampling(**given_options((Sampling,), {"temperature": 0.8} | sampling))
    if show is not None:
        show(prompt)
    written: list[Tensor] = []
    decoder = Decoder(tokenizer)
    started = time.perf_counter()
    try:
        for token in stream(model, [torch.from_numpy(ids)] * num_samples, tokens, settings):
            written.append(token)
            if show is not None:
                show(decoder.add(int(token[0])))
    except KeyboardInterrupt:
        pass  # what has been written stays
    seconds = time.perf_counter() - started
    texts = [tokenizer.decode([int(token[row]) for token in written]) for row in range(num_samples)]
    return Written(prompt, texts, len(written), seconds)


@overload
def generate(model: GPT2, ids: Tensor, num_tokens: int, **sampling: Any) -> Tensor: ...
@overload
def generate(
    model: str | Path,
    *,
    prompt: str | None = None,
    tokens: int = 500,
    num_samples: int = 1,
    checkpoint: Which = "best",
    attention: str | type | None = None,
    device: str = "auto",
    show: Callable[[str], None] | None = None,
    **sampling: Any,
) -> Written: ...
def generate(model: GPT2 | str | Path, *arguments: Any, **options: Any) -> Tensor | Written:
    """Continue ids with a model (:func:`gpt2lab.generation.generate.generate`), or a prompt with a run's folder
    (:func:`generate_from_run`).
    """
    if isinstance(model, GPT2):
        return generate_ids(model, *arguments, **options)
    return generate_from_run(model, *arguments, **options)
