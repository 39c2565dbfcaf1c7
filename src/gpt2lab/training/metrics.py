"""What a training tells while it runs, and where it goes: a file of records, a plot, TensorBoard, wandb."""

import contextlib
import json
import math
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write
from gpt2lab.plots import name_in_plot, new_plot, save_plot, short_numbers
from gpt2lab.reading import MIB, loads, read_lines, typed
from gpt2lab.runs.folder import checkpoints_of, read_state
from gpt2lab.runs.records import Record

MOST_METRICS = 256 * MIB

Sink = Callable[[Record], None]


class MetricsFile:
    """Appends records to ``metrics.jsonl``; a resumed run first drops what came after its checkpoint.

    What cannot be written, to a disk that is full, is tried again with the next record.

    Attributes:
        last: the record up to which it was kept, if there is one.
    """

    def __init__(self, path: Path, resumed_step: int = 0) -> None:
        kept = [record for record in read_metrics(path) if record["step"] <= resumed_step]
        self.last = kept[-1] if kept else None
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write("".join(_line(record) for record in kept).encode())
        self.file = path.open("ab", buffering=0)
        self.unwritten = b""

    def __call__(self, record: Record) -> None:
        """Write one record."""
        self.unwritten += _line(record).encode()
        with contextlib.suppress(OSError):
            self.unwritten = self.unwritten[self.file.write(self.unwritten) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.file:
            if kind is None and self.unwritten:  # there is no next record
                self.file.write(self.unwritten)


def read_metrics(path: Path) -> list[Record]:
    """Records of a ``metrics.jsonl``.

    A line that is damaged is left out, with a warning; but the last one without, if a crash has cut it short.

    Raises:
        InputError: it is no regular file.
    """
    records: list[Record] = []
    if not path.exists():
        return records
    damaged: list[int] = []
    for number, line in enumerate(read_lines(path, MOST_METRICS), 1):
        try:
            records.append(typed(Record, loads(line), f"{path}, line {number}"))
        except ValueError:
            if line.endswith("\n"):
                damaged.append(number)
    if damaged:
        lines = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines, the first {damaged[0]}, are"
        warnings.warn(f"{path}: {lines} damaged and left out", stacklevel=2)
    return records


def exact_loss(run: Path) -> float | None:
    """The loss over all of the validation data that a finished training left, nats per token; None without such data.

    Raises:
        InputError: the training has not ended, or its loss was not finite. An estimate is never taken for it.
    """
    records, found = read_metrics(run / "metrics.jsonl"), checkpoints_of(run)
    ended = bool(records and found) and records[-1]["step"] == read_state(found[-1]).step
    exact = ended and records[-1].get("validation_is_estimate") is False
    if not exact and (not ended or any("validation_loss" in record for record in records)):
        raise InputError(f"{run} has not measured the loss at its end; gpt2lab train --resume {run} does")
    loss = records[-1].get("validation_loss")
    if exact and loss is None:
        raise InputError(f"the loss of {run} is not finite at its end: it diverged")
    return loss


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def tensorboard_sink(folder: Path, step: int = 0) -> Sink:
    """Records as TensorBoard scalars.

    Args:
        folder: where the event files are.
        step: the last step of what goes on. What was recorded after it, before a crash, is not shown.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs a package that is not installed; run: pip install tensorboard") from None

    writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(record: Record) -> None:
        for name, value in record.items():
            if value is not None:
                writer.add_scalar(name, value, record["step"])
        writer.flush()

    return write


def wandb_sink(project: str, folder: Path, settings: dict[str, Any]) -> Sink:
    """Records as a Weights & Biases run, which a run that goes on has kept the name of."""
    try:
        import wandb
    except ImportError:
        raise InputError("--wandb needs a package that is not installed; run: pip install wandb") from None

    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / ".wandb-run"
    if not kept.exists():
        kept.write_text(uuid.uuid4().hex, encoding="utf-8")
    name = kept.read_text(encoding="utf-8")
    run = wandb.init(project=project, dir=str(folder), config=settings, id=name, resume="allow")
    return lambda record: run.log(record, step=record["step"])


def plot_losses(runs: dict[str, list[Record]], path: Path) -> None:
    """Draw training and validation loss against tokens, one colour a run, as SVG.

    Args:
        runs: records by the name that the legend shows.
        path: the picture, replaced whole.
    """
    figure, axes = new_plot("tokens seen", "loss, nats per token")
    for index, (name, records) in enumerate(runs.items()):
        colour, shown = f"C{index}", name_in_plot(name)
        axes.plot(
            [r["tokens"] for r in records],
            [math.nan if r["loss"] is None else r["loss"] for r in records],
            color=colour,
            alpha=0.35,
            lw=1,
            label=f"{shown}, training",
        )
        measured = [(r["tokens"], loss) for r in records if (loss := r.get("validation_loss")) is not None]
        axes.plot(
            *zip(*measured, strict=True) if measured else ([], []),
            color=colour,
            marker="o",
            ms=4,
            label=f"{shown}, validation",
        )
    short_numbers(axes.xaxis)
    axes.legend(frameon=False)
    save_plot(figure, path)
