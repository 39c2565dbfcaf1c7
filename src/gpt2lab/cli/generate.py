"""``gpt2lab generate``."""

import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console, errors
from gpt2lab.generation import Sampling
from gpt2lab.generation.runs import generate_from_run
from gpt2lab.runs.folder import Which


@with_flags({"Sampling": Sampling}, defaults={"temperature": "0.8"})
def generate_command(
    run: Path,
    /,
    *,
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    tokens: int = 500,
    num_samples: int = 1,
    options: object = None,
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
    live = not json_output and num_samples == 1
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: errors.print(f"\\[note: {message}]", style="dim")
        written = generate_from_run(
            run,
            prompt=prompt,
            tokens=tokens,
            num_samples=num_samples,
            checkpoint=checkpoint,
            attention=attention,
            device=device,
            show=partial(print, end="", flush=True) if live else None,
            **given(options),
        )
    if json_output:
        told = {"prompt": written.prompt, "texts": written.texts, "seconds": written.seconds}
        print(json.dumps(told, ensure_ascii=False, indent=2))
        return 0
    if live:
        print()
    else:
        for number, text in enumerate(written.texts, 1):
            console.rule(f"{number} of {num_samples}")
            print(written.prompt + text)
    if sys.stderr.isatty():
        count = written.tokens * num_samples
        each = 1000 * written.seconds / max(1, count)
        errors.print(f"{count} tokens in {written.seconds:.1f} s, {each:.2f} ms each", style="dim")
    return 0 if written.tokens == tokens else 130
