"""``gpt2lab generate``."""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console, errors
from gpt2lab.generation.sampling import Sampling
from gpt2lab.generation.settings import TEMPERATURE, GenerateSettings


@with_flags({"Text": GenerateSettings, "Sampling": Sampling}, defaults={"temperature": str(TEMPERATURE)})
def generate(
    run: Path,
    /,
    *,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
    options: object = None,
) -> int:
    """Write text with a trained model, shown as it is written. Ctrl-C ends it, and what is there stays.

    Parameters
    ----------
    run
        Run folder.
    json_output
        Print prompt and texts as JSON at the end instead.
    """
    from gpt2lab.generation.runs import Writing

    interrupted = False
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: errors.print(f"\\[note: {message}]", style="dim")
        writing = Writing(run, **given(options))
        live = not json_output and writing.asked.num_samples == 1
        if live:
            print(writing.prompt, end="", flush=True)
        try:
            for pieces in writing:
                if live:
                    print(pieces[0], end="", flush=True)
        except KeyboardInterrupt:
            interrupted = True
    written = writing.written
    if json_output:
        told = {"prompt": written.prompt, "texts": written.texts, "seconds": written.seconds}
        print(json.dumps(told, ensure_ascii=False, indent=2))
    elif live:
        print()
    else:
        for number, text in enumerate(written.texts, 1):
            console.rule(f"{number} of {len(written.texts)}")
            print(written.prompt + text)
    if not json_output and sys.stderr.isatty():
        count = written.tokens * len(written.texts)
        each = 1000 * written.seconds / max(1, count)
        errors.print(f"{count} tokens in {written.seconds:.1f} s, {each:.2f} ms each", style="dim")
    return 130 if interrupted else 0
