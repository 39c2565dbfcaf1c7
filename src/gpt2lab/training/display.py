"""How a terminal shows a training: one live line, and plain ones that stay."""

import datetime
import itertools
import operator
import time
from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console

from gpt2lab.progress import plain_console
from gpt2lab.runs.records import Record, TrainingProgress

WIDE = 110  # columns of a terminal in which a bar has room besides everything else


class TerminalDisplay:
    """One live line in a terminal, and a plain one at every validation (without any: every tenth of the run).

    Args:
        console: where it is shown; None: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or plain_console()
        self.validation = "–"
        self.unprinted: list[Record] = []  # the last that was printed, and those since
        self.wide = self.console.width >= WIDE
        self.began: tuple[int, float] | None = None  # step and time of what was told first
        wide = (progress.BarColumn(bar_width=16), progress.TimeElapsedColumn()) if self.wide else ()
        self.live = progress.Progress(
            progress.TextColumn("step {task.completed}/{task.total}"),
            *wide,
            progress.TimeRemainingColumn(),
            progress.TextColumn("left"),
            progress.TextColumn("{task.description}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.live.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def __call__(self, told: TrainingProgress) -> None:
        """Show what a training tells."""
        self.live.update(self.task, completed=told.step, total=told.steps)
        self.began = self.began or (told.step, time.monotonic())
        if told.message:
            self.console.out(told.message, highlight=False)
        if (record := told.record) is None:
            return
        measured = "validation_loss" in record
        if measured:
            self.validation = _number(record["validation_loss"])
        self.live.update(self.task, description=self._line(record, record["tokens_per_second"], self.wide))
        self.unprinted.append(record)
        tenth = max(10, told.steps // 100 * 10)  # records come every 10 steps
        unmeasured = self.validation == "–" and not self.console.is_terminal and told.step % tenth == 0
        if measured or unmeasured or told.step == told.steps:
            line = self._line(record, self._mean_speed()) + self._time_left(told)
            self.console.out(f"step {told.step:>6}/{told.steps} · {line}", highlight=False)

    def _line(self, record: Record, speed: float, wide: bool = True) -> str:
        share = record.get("peak_share", 0.0) * speed / record["tokens_per_second"] if wide and speed else 0.0
        return f"loss {_number(record['loss'])} · val {self.validation} · {speed:,.0f} tok/s" + (
            f" · {share:.0%} of peak" if 0 < share <= 1 else ""
        )

    def _time_left(self, told: TrainingProgress) -> str:
        """For a file or a pipe, where no live line tells it."""
        first, start = self.began or (0, 0.0)
        if self.console.is_terminal or not first < told.step < told.steps:
            return ""
        seconds = (time.monotonic() - start) * (told.steps - told.step) / (told.step - first)
        return f" · {datetime.timedelta(seconds=round(seconds))} left"

    def _mean_speed(self) -> float:
        """Tokens per second since the last line that was printed, of which this forgets."""
        tokens = [later["tokens"] - one["tokens"] for one, later in itertools.pairwise(self.unprinted)]
        speeds = [record["tokens_per_second"] for record in self.unprinted[1:]]
        seconds = sum(map(operator.truediv, tokens, speeds))
        last = self.unprinted[-1]
        self.unprinted = [last]
        return sum(tokens) / seconds if seconds else last["tokens_per_second"]


def _number(loss: float | None) -> str:
    return "nan" if loss is None else f"{loss:.3f}"
