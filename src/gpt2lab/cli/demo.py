"""``gpt2lab demo``: what the project does, in one go."""

import shlex
import shutil
import sys
from pathlib import Path

from gpt2lab.cli.generate import generate
from gpt2lab.cli.report import tell
from gpt2lab.cli.screen import console, errors
from gpt2lab.progress import counted, shown

SEEDS = 3
CLAIM = "The modern variant predicts text that it has not seen better than the original GPT-2."


def demo(*, out: Path = Path("runs/demo"), max_steps: int = 700) -> int:
    """Train the modern variant and the original GPT-2 on Shakespeare, write some text, and tell which one is better.

    Each is trained three times, two trainings at a time. Interrupted, it goes on where it stopped when it is started
    again.

    Parameters
    ----------
    out
        Folder of the comparison.
    max_steps
        Steps of each training; 700 take about five minutes on two cores, for all of them together.
    """
    from gpt2lab.comparison.cells import is_finished
    from gpt2lab.comparison.run import compare
    from gpt2lab.training.metrics import plot_losses, read_metrics

    runs = {arm: out / "context-64" / arm / "seed-1" for arm in ("modern", "original")}
    has_written = False

    def write() -> None:
        nonlocal has_written
        has_written = True
        console.rule("what the first modern model writes")
        generate(runs["modern"])

    console.rule(f"training original and modern on Shakespeare, {SEEDS} times each, two at a time")
    with shown(console) as bar:

        def told(what: str, done: int, total: int) -> None:
            bar(what, done, total)
            if what == "cells" and done > 0:
                console.print(f"{done} of {counted(total, 'training')} done")
                if not has_written and is_finished(runs["modern"]):
                    write()

        try:
            found = compare(
                {"original": {}, "modern": {"variant": "modern"}},
                claims=[{"says": CLAIM, "arm": "modern", "measure": "test_loss"}],
                seeds=SEEDS,
                steps=max_steps,
                workers=2,
                threads=1,
                rounds=SEEDS,
                out=out,
                progress=told,
            )
        except KeyboardInterrupt:
            again = f"gpt2lab demo --out {shlex.quote(str(out))} --max-steps {max_steps}"
            errors.print(f"stopped; the demo goes on from there with the same command: {again}")
            return 130
    if found.failed:
        errors.print(f"{counted(len(found.failed), 'training')} failed: {dict(found.failed)}")
        return 1
    if not has_written and is_finished(runs["modern"]):
        write()
    plot_losses({arm: read_metrics(run / "metrics.jsonl") for arm, run in runs.items()}, out / "loss.svg")
    console.rule("what you have")
    if shutil.which("gpt2lab") is None:
        console.print(f"first   source {Path(sys.executable).parent / 'activate'}")
    console.print(
        f"run     {runs['modern']}  (and five more)\n"
        f"curves  {out / 'loss.svg'}\n"
        f"next    gpt2lab generate {runs['modern']} --prompt 'ROMEO:' --tokens 2000 --temperature 0.7\n"
        f"        gpt2lab train --text your.txt --variant modern --context-size 128\n"
        f"        gpt2lab compare --variants original,rope,swa --seeds 5 --steps 400 --out runs/switches\n"
        f"        gpt2lab train --help",
    )
    console.rule("which one predicts better?")
    tell(found, json_output=False)
    return 0
