"""``gpt2lab generate``."""

import sys
import warnings
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console, errors, print_json
from gpt2lab.errors import printable
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
        notes: list[str] = []  # for the end, since the middle of a text is no place for them
        warnings.showwarning = lambda message, *_: notes.append(f"note: {message}")
        writing = Writing(run, **given(options))
        live = not json_output and writing.asked.num_samples == 1
        if live:
            print(_shown(writing.prompt), end="", flush=True)
        try:
            for pieces in writing:
                if live:
                    print(_shown(pieces[0]), end="", flush=True)
        except KeyboardInterrupt:
            interrupted = True
    written = writing.written
    if json_output:
        told = {"prompt": written.prompt, "texts": written.texts, "seconds": written.seconds}
        print_json(told)
    elif live:
        print()
    else:
        for number, text in enumerate(written.texts, 1):
            console.rule(f"{number} of {len(written.texts)}")
            print(_shown(written.prompt + text))
    for note in notes:
        errors.print(note, style="dim")
    if not json_output and sys.stderr.isatty():
        each = 1000 * written.seconds / max(1, written.tokens)
        several = len(written.texts) > 1
        what = f"{len(written.texts)} texts of up to {written.tokens} tokens" if several else f"{written.tokens} tokens"
        errors.print(
            f"{what} in {written.seconds:.1f} s, {each:.2f} ms {'a token of all' if several else 'each'}", style="dim"
        )
    return 130 if interrupted else 0


def _shown(text: str) -> str:
    """What a model has written, as it is for a file or a pipe; a terminal would obey the control characters in it."""
    return printable(text.replace("\r", ""), keep="\n\t") if sys.stdout.isatty() else text
