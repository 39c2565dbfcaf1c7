"""``gpt2lab evaluate``."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.progress import Progress, TaskID
from rich.table import Table

from gpt2lab.cli.settings import DataSettings, console, data_settings_of, errors, load_attention
from gpt2lab.cli.text import Split, Text
from gpt2lab.errors import InputError
from gpt2lab.evaluation import Evaluation, estimate_loss, evaluate
from gpt2lab.hardware import choose_device
from gpt2lab.plots import new_plot, save_plot
from gpt2lab.training import load
from gpt2lab.training.runs import Which


def evaluate_command(
    runs: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    split: Split = "validation",
    text: str | None = None,
    contexts: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    checkpoint: Which = "best",
    attention: str | None = None,
    device: str = "auto",
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
    plot: Path | None = None,
) -> int:
    """Measure one or more runs on a whole split: loss, perplexity, bits per character and byte, accuracy.

    Also for contexts a quarter, half, two and four times as long as in training, where the positions allow it, and by
    nanoGPT's protocol (the mean of 200 random batches, which is an estimate).

    Parameters
    ----------
    runs
        Run folders, measured side by side.
    split
        Part of each run's own text: train, validation or test.
    text
        Another text instead: a file, a folder or a glob, of text or of shards.
    contexts
        Context sizes to measure besides the trained one; default: 1/4, 1/2, 2 and 4 times as long.
    checkpoint
        Which one: best (lowest validation loss) or last.
    attention
        Your own mechanism, "file.py:ClassName", for runs that were trained with it.
    device
        auto, cpu, cuda or mps.
    json_output
        Print JSON instead of a table, with the loss at every position of the context.
    plot
        Draw the loss by position into this SVG file.
    """
    if plot is not None and not plot.parent.is_dir():
        raise InputError(f"--plot {plot}: there is no folder {plot.parent}")
    results: dict[str, dict[str, Any]] = {}
    for run in runs:
        try:
            model, tokenizer = load(run, attention=load_attention(attention), checkpoint=checkpoint)
        except InputError as error:
            raise InputError(f"{run}: {error}") from None
        model.to(choose_device(device))
        if text is None:
            source = Text.open(data_settings_of(run), tokenizer)
            tokens, name = source.tokens(split), f"{source.corpus.name}, {split} part"
        else:
            source = Text.open(DataSettings(text=text), tokenizer)
            tokens, name = source.tokens(), source.corpus.name
        trained = model.config.max_seq_len
        if contexts is None:
            longest = trained if model.config.position == "learned" else len(tokens) - 1
            usual = (trained // 4, trained // 2, 2 * trained, 4 * trained)
            sizes = [trained, *(c for c in usual if 1 <= c <= longest)]
        else:
            sizes = [trained, *(c for c in contexts if c != trained)]
        with Progress(transient=True, console=errors, disable=not errors.is_terminal) as progress:
            tasks = [progress.add_task(f"{run}, context {c}", total=len(tokens) - 1) for c in sizes]
            main, *others = [
                evaluate(model, tokens, tokenizer, c, partial(_show, progress, task))
                for c, task in zip(sizes, tasks, strict=True)
            ]
            estimate = estimate_loss(model, tokens)
        by_context = sorted([main, *others], key=lambda e: e.context_size)
        results[str(run)] = {
            "text": name,
            "parameters": model.num_parameters(),
            **dataclasses.asdict(main),
            "estimated_loss": estimate,
            "contexts": {e.context_size: _scores(e) for e in by_context},
        }
    if json_output:
        print(json.dumps(results, indent=2))
    else:
        _print_tables(results)
    if plot is not None:
        _plot_positions({run: result["loss_by_position"] for run, result in results.items()}, plot)
        if not json_output:
            console.print(f"loss by position: {plot}")
    return 0


def _show(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


def _scores(evaluation: Evaluation) -> dict[str, float]:
    return {
        name: value
        for name, value in dataclasses.asdict(evaluation).items()
        if name not in ("context_size", "loss_by_position")
    }


def _print_tables(results: dict[str, dict[str, Any]]) -> None:
    texts = {result["text"] for result in results.values()}
    table = Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title=f"loss on {', '.join(sorted(texts))}",
        title_justify="left",
    )
    table.add_column("run", overflow="fold")
    for column in ("context", "nats/token", "perplexity", "bits/char", "bits/byte", "accuracy"):
        table.add_column(column, justify="right", no_wrap=True)
    for run, result in results.items():
        for context, scores in result["contexts"].items():
            trained = context == result["context_size"]
            table.add_row(
                Path(run).name if trained else "",
                f"{context}",
                f"{scores['loss']:.4f}",
                f"{scores['perplexity']:.3f}",
                f"{scores['bits_per_character']:.4f}",
                f"{scores['bits_per_byte']:.4f}",
                f"{scores['accuracy']:.2%}",
                style="bold" if trained else "dim",
            )
    console.print(table)
    for run, result in results.items():
        console.print(
            f"{run}: {result['parameters']:,} parameters, {result['tokens']:,} tokens predicted once "
            f"each; 200 random batches, nanoGPT's protocol, estimate {result['estimated_loss']:.4f}",
            highlight=False,
        )


def _plot_positions(curves: dict[str, list[float]], path: Path) -> None:
    figure, axes = new_plot("tokens of context", "loss, nats per token", xscale="log")
    for name, losses in curves.items():
        axes.plot(range(1, len(losses) + 1), losses, label=name)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    save_plot(figure, path)
