"""What runs there are, how far they have come, and how good they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2lab.config import switches_on
from gpt2lab.errors import InputError
from gpt2lab.runs.folder import best_of, checkpoints_of, read_state
from gpt2lab.runs.settings import ModelSettings, RunSettings, spell_attention


@dataclass(frozen=True)
class RunSummary:
    """What can be told of a run without loading its model.

    Attributes:
        folder: of the run.
        switches: those that the original GPT-2 has not on, as flags have them.
        context_size: in tokens.
        text: the text, or the name of a corpus.
        step: of the last checkpoint.
        best_step: of the checkpoint with the lowest validation loss.
        validation_loss: of that checkpoint, nats per token, an estimate; None if it was not measured.
    """

    folder: Path
    switches: dict[str, Any]
    context_size: int
    text: str
    step: int
    best_step: int
    validation_loss: float | None


def runs_below(folder: str | Path) -> Iterator[RunSummary | InputError]:
    """The runs in a folder and its subfolders, by name; for one that is damaged, what is wrong with it.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; `gpt2lab train` puts runs into ./runs")
    for run in sorted({checkpoint.parents[1] for checkpoint in folder.rglob("checkpoints/step-*")}):
        try:
            yield _summary(run)
        except InputError as error:
            yield error


def _summary(run: Path) -> RunSummary:
    settings = RunSettings.read(run / "config.yaml")
    found = checkpoints_of(run)
    best = read_state(best_of(found))
    return summary_of(run, settings, read_state(found[-1]).step, best.step, best.validation_loss)


def summary_of(
    run: Path, settings: RunSettings, step: int, best_step: int = 0, validation_loss: float | None = None
) -> RunSummary:
    """What settings tell of a run, with how far it has come."""
    return RunSummary(
        folder=run,
        switches=_switches(settings.model),
        context_size=settings.model.context_size,
        text=settings.data.text or settings.data.corpus or "shakespeare",
        step=step,
        best_step=best_step,
        validation_loss=validation_loss,
    )


def _switches(model: ModelSettings) -> dict[str, Any]:
    own = {} if model.attention is None else {"attention": spell_attention(model.attention)}
    return switches_on(model, model.num_heads) | own
