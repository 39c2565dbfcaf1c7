"""``gpt2lab evaluate``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console, errors, print_json
from gpt2lab.errors import InputError
from gpt2lab.evaluation.settings import EvaluateSettings, HarnessSettings
from gpt2lab.options import options_of, part
from gpt2lab.plots import name_in_plot, new_plot, save_plot
from gpt2lab.progress import shown

if TYPE_CHECKING:
    from gpt2lab.evaluation.runs import RunEvaluation


@with_flags({"Measure": EvaluateSettings, "Harness": HarnessSettings})
def evaluate(
    runs: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
    plot: Path | None = None,
    harness: bool = False,
    options: object = None,
) -> int:
    """Measure one or more runs on a whole split: loss, perplexity, bits per character and byte, accuracy.

    Also for contexts a quarter, half, two and four times as long as in training, where the positions allow it, and by
    nanoGPT's protocol (the mean of 200 random batches, which is an estimate).

    Parameters
    ----------
    runs
        Run folders, measured side by side.
    json_output
        Print JSON instead of a table, with the loss at every position of the context.
    plot
        Draw the loss by position into this SVG file.
    harness
        Measure tasks of EleutherAI's lm-evaluation-harness instead (--tasks).
    """
    from gpt2lab.evaluation.runs import evaluate_run

    asked = given(options)
    other = EvaluateSettings if harness else HarnessSettings
    mine = options_of(HarnessSettings if harness else EvaluateSettings)
    if wrong := [name for name in part(asked, other) if name not in mine]:
        flag = f"--{wrong[0].replace('_', '-')}"
        raise InputError(f"{flag} does not go with --harness" if harness else f"{flag} is an option of --harness")
    if harness:
        return _with_harness(runs, asked, json_output)
    if plot is not None and not plot.parent.is_dir():
        raise InputError(f"--plot {plot}: there is no folder {plot.parent}")
    with shown(errors) as progress:
        results = {str(run): evaluate_run(run, progress=progress, **asked) for run in runs}
    if json_output:
        print_json({run: found.to_dict() for run, found in results.items()})
    else:
        print_tables(results)
    if plot is not None:
        _plot_positions({run: found.trained.loss_by_position for run, found in results.items()}, plot)
        if not json_output:
            console.print(f"loss by position: {plot}")
    return 0


def _with_harness(runs: list[Path], asked: dict[str, Any], json_output: bool) -> int:
    from gpt2lab.evaluation.harness import harness

    results = {str(run): harness(run, **asked) for run in runs}
    if json_output:
        print_json(results)
        return 0
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for column in ("run", "task", "measure", "value", "standard error"):
        table.add_column(column, overflow="fold")
    for run, tasks in results.items():
        for task, measures in tasks.items():
            for name, value in measures.items():
                measure, _, kind = name.partition(",")
                if isinstance(value, float) and not measure.endswith("_stderr"):
                    error = measures.get(f"{measure}_stderr,{kind}")
                    table.add_row(
                        run, task, measure, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else ""
                    )
    console.print(table)
    return 0


def print_tables(results: Mapping[str, "RunEvaluation"]) -> None:
    """A table with a line for every run and context."""
    texts = {result.text for result in results.values()}
    table = Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title=f"loss on {', '.join(sorted(texts))}",
        title_justify="left",
    )
    names = [Path(run).name for run in results]
    table.add_column("run", overflow="fold")
    for column in ("context", "nats/token", "perplexity", "bits/char", "bits/byte", "accuracy"):
        table.add_column(column, justify="right", no_wrap=True)
    for run, result in results.items():
        for one in result.contexts:
            trained = one.context_size == result.trained.context_size
            table.add_row(
                "" if not trained else Path(run).name if names.count(Path(run).name) == 1 else run,
                f"{one.context_size}",
                f"{one.loss:.4f}",
                f"{one.perplexity:.3f}",
                f"{one.bits_per_character:.4f}",
                f"{one.bits_per_byte:.4f}",
                f"{one.accuracy:.2%}",
                style="bold" if trained else "dim",
            )
    console.print(table)
    for run, result in results.items():
        console.print(
            f"{run}: {result.parameters:,} parameters, {result.trained.tokens:,} tokens predicted once "
            f"each; 200 random batches, nanoGPT's protocol, estimate {result.estimated_loss:.4f}",
        )
        if result.rounding is not None:
            console.print(
                f"{run}: rounding the weights costs {result.rounding:.4f} nats per token of the trained context"
            )


def _plot_positions(curves: dict[str, list[float]], path: Path) -> None:
    figure, axes = new_plot("tokens of context", "loss, nats per token", xscale="log")
    for name, losses in curves.items():
        axes.plot(range(1, len(losses) + 1), losses, label=name_in_plot(name))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    save_plot(figure, path)
