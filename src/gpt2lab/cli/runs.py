"""``gpt2lab runs``."""

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpt2lab.cli.screen import console, errors, print_json
from gpt2lab.errors import InputError


def runs(
    folder: Path = Path("runs"), /, *, json_output: Annotated[bool, Parameter(name="--json", negative=())] = False
) -> int:
    """List the runs in a folder and its subfolders: what was trained, how far, and the loss of the best checkpoint.

    The loss is the estimate that the training made for itself. `gpt2lab evaluate RUN [RUN …]` measures runs exactly,
    and side by side.

    Parameters
    ----------
    folder
        Where to look.
    json_output
        Print JSON.
    """
    from gpt2lab.runs.listing import runs_below

    found = [*runs_below(folder)]
    whole = [run for run in found if not isinstance(run, InputError)]
    if json_output:
        print_json([dataclasses.asdict(run) | {"folder": str(run.folder)} for run in whole])
    elif whole:
        table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        table.add_column(f"run in {folder}", overflow="fold")
        table.add_column("switches", overflow="fold")
        for column in ("context", "steps", "best at", "loss (estimate)"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("text", overflow="fold")
        for run in whole:
            loss = "–" if run.validation_loss is None else f"{run.validation_loss:.4f}"
            sizes = (f"{run.context_size:,}", f"{run.step:,}", f"{run.best_step:,}")
            name = str(run.folder.relative_to(folder.expanduser()))
            switches = ", ".join(f"{switch}={value}" for switch, value in run.switches.items())
            table.add_row(name, switches or "none", *sizes, loss, Path(run.text).name)
        console.print(table)
    elif not found:
        console.print(f"{folder} holds no runs")
    for damaged in found:
        if isinstance(damaged, InputError):
            errors.print(f"left out: {damaged}")
    return 0
