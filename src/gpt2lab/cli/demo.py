"""``gpt2lab demo``: what the project does, in one go."""

import shlex
import shutil
import sys
from pathlib import Path

from gpt2lab.cli.evaluate import print_tables
from gpt2lab.cli.generate import generate
from gpt2lab.cli.screen import console, errors
from gpt2lab.config import Variant
from gpt2lab.progress import shown

VARIANTS: tuple[Variant, ...] = ("modern", "original")


def demo(*, out: Path = Path("runs/demo"), max_steps: int = 2000) -> int:
    """Train the modern variant and the original GPT-2 on Shakespeare, measure both, and write some text.

    Interrupted, it goes on where it stopped when it is started again.

    Parameters
    ----------
    out
        Folder of the two runs.
    max_steps
        Steps of each training; 2000 take about three minutes on two cores.
    """
    from gpt2lab.evaluation.runs import evaluate_run
    from gpt2lab.runs.folder import checkpoints_of, find_checkpoint, read_state
    from gpt2lab.training.metrics import plot_losses, read_metrics
    from gpt2lab.training.run import ended, train

    for variant in VARIANTS:
        run = out / variant
        console.rule(f"training {variant}")
        begun = bool(checkpoints_of(run))
        if begun and read_state(find_checkpoint(run, "last", ("state.json",))).step >= max_steps:
            console.print(f"{run} is trained already")
            continue
        if begun:
            trained = train(resume=run, max_steps=max_steps)
        else:
            trained = train(variant=variant, out=run, max_steps=max_steps)
        print(ended(trained))
        if trained.stopped_by is not None:
            again = f"gpt2lab demo --out {shlex.quote(str(out))} --max-steps {max_steps}"
            errors.print(f"the demo goes on from there with the same command: {again}", highlight=False)
            return 128 + trained.stopped_by
    runs = [out / variant for variant in VARIANTS]
    plot = out / "loss.svg"
    plot_losses({run.name: read_metrics(run / "metrics.jsonl") for run in runs}, plot)
    console.rule("measuring both on the test part, which neither has seen")
    with shown(errors) as progress:
        print_tables({str(run): evaluate_run(run, split="test", contexts=(), progress=progress) for run in runs})
    console.rule("writing 500 characters")
    generate(runs[0])
    console.rule("what you have")
    if shutil.which("gpt2lab") is None:
        console.print(f"first        source {Path(sys.executable).parent / 'activate'}", highlight=False)
    console.print(
        f"run folder   {runs[0]}  (and {runs[1]})\n"
        f"loss curves  {plot}\n"
        f"next         gpt2lab generate {runs[0]} --prompt 'ROMEO:' --tokens 2000 --temperature 0.7\n"
        f"             gpt2lab evaluate {runs[0]} {runs[1]} --split test\n"
        f"             gpt2lab train --text your.txt --variant modern --context-size 128\n"
        f"             gpt2lab train --help",
        highlight=False,
    )
    return 0
