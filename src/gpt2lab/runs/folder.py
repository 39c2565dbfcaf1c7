"""Run folders: what a training leaves behind, and how it goes on from there.

    runs/demo/
        config.yaml              every setting of the run, enough to repeat it
        tokenizer.json
        metrics.jsonl            one record a line
        loss.svg, samples.txt
        checkpoints/
            step-00000500/       model.safetensors, config.json, optimizer.safetensors, random.safetensors, state.json,
            step-00001500/       and manifest.json: the size and hash of each of them

A checkpoint is complete or absent (:mod:`gpt2lab.training.checkpoint` writes them). Which one is the last and
which the best is read off the checkpoints themselves, so no pointer can disagree with them. It is the same whatever
number of processes wrote it, and any number can go on from it.
"""

import contextlib
import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

from gpt2lab.data import Tokenizer, load_tokenizer
from gpt2lab.data.text import Text
from gpt2lab.errors import InputError
from gpt2lab.manifests import MANIFEST, verify_files
from gpt2lab.model import GPT2
from gpt2lab.model.attention import Mechanism
from gpt2lab.model.saving import CONFIG, TOKENIZER
from gpt2lab.reading import read_json
from gpt2lab.runs.settings import DataSettings, Which

# The files of a checkpoint that a model is read from, and the one that tells how good it is.
WEIGHTS = ("config.json", "model.safetensors", "state.json")


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint knows of its run besides the tensors.

    Attributes:
        step, tokens, seconds: how far it has come.
        validation_loss: an estimate for these very weights, nats per token; None if it was not measured.
        losses: of the steps since the last record, nats per token.
        skipped: how many steps were left out because their gradients were not finite.
        healthy: whether the weights are finite, and the loss has not exploded.
    """

    step: int
    tokens: int
    seconds: float
    validation_loss: float | None
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    healthy: bool = True


def read_state(folder: Path) -> TrainingState:
    """State of a checkpoint folder."""
    return read_json(TrainingState, folder / "state.json")


def verify_checkpoint(folder: Path, files: Collection[str] | None = None) -> None:
    """Compare sizes and SHA-256 of a checkpoint's files with its manifest.

    Args:
        folder: of the checkpoint.
        files: those that are going to be read, and so have to be looked at; None: all.

    Raises:
        InputError: something is missing, cut short, changed, or too much, or there is no manifest.
    """
    try:
        listed = verify_files(folder, files)
    except OSError as error:
        raise InputError(f"the checkpoint {folder} is damaged: {error}") from None
    if not listed:
        raise InputError(
            f"the checkpoint {folder} has lost its {MANIFEST}, so nothing tells whether the rest is as it was written"
        )


def find_checkpoint(run: str | Path, which: Which = "best", files: Collection[str] | None = None) -> Path:
    """Folder of the last or the best checkpoint of a run (best: lowest validation loss; the last if none has one).

    One that is damaged is passed over with a warning, for the one before it or the next best. With ``files`` only
    those are looked at, such as :data:`WEIGHTS`, because hashing the whole of a checkpoint takes its time. A folder
    that :meth:`gpt2lab.GPT2.save` wrote is its own only checkpoint.

    Raises:
        InputError: the run does not exist, or has no checkpoint that is whole.
    """
    if which not in get_args(Which):
        raise InputError(f"checkpoint is {which!r}; it has to be one of {', '.join(get_args(Which))}")
    run = Path(run)
    found = checkpoints_of(run)
    if not found:
        if (run / CONFIG).is_file():
            return run
        if run.is_file():
            raise InputError(f"{run} is a file, not the folder of a run")
        wrong = "holds no checkpoint" if run.is_dir() else "does not exist"
        if below := [str(folder) for folder in sorted(run.glob("*")) if checkpoints_of(folder)]:
            raise InputError(f"{run} is not the folder of a run, but these are: {', '.join(below[:10])}")
        raise InputError(
            f"the run folder {run} {wrong}; `gpt2lab train --out {run}` makes one, and `gpt2lab import` brings one in"
        )
    damaged = InputError("")
    while found:
        candidate = found[-1] if which == "last" else best_of(found)
        try:
            verify_checkpoint(candidate, files)
        except InputError as error:
            damaged = error
            found.remove(candidate)
            if found:
                warnings.warn(f"{error}; an earlier checkpoint is used in its place", stacklevel=2)
        else:
            return candidate
    raise damaged


def best_of(checkpoints: list[Path]) -> Path:
    """The one with the lowest validation loss that can be read, or else the last that is healthy, or else the last."""
    measured: dict[Path, float] = {}
    for folder in checkpoints:
        with contextlib.suppress(InputError):
            loss = read_state(folder).validation_loss
            if loss is not None:
                measured[folder] = loss
    if measured:
        return min(reversed(measured), key=measured.__getitem__)
    return last_healthy(checkpoints) or checkpoints[-1]


def last_healthy(checkpoints: list[Path]) -> Path | None:
    """The last one from which a training had not come to grief yet, if there is one."""
    for folder in reversed(checkpoints):
        with contextlib.suppress(InputError):
            if read_state(folder).healthy:
                return folder
    return None


def load(run: str | Path, *, attention: Mechanism | None = None, checkpoint: Which = "best") -> tuple[GPT2, Tokenizer]:
    """Model and tokenizer of a run, ready to evaluate or generate. Nothing in the folder is executed.

    Args:
        run: folder of a run; or one that ``model.save(folder, tokenizer)`` wrote.
        attention: the user's mechanism, if the run has one.
        checkpoint: the best, by validation loss, or the last.

    Raises:
        InputError: something is missing or damaged.
    """
    model = GPT2.load(find_checkpoint(run, checkpoint, WEIGHTS), attention=attention)
    path = Path(run) / TOKENIZER
    if not path.exists():
        raise InputError(
            f"{path} is missing; tokenizer.save({str(path)!r}) or model.save({str(run)!r}, tokenizer) writes it"
        )
    return model.eval(), load_tokenizer(path)


def open_text(data: DataSettings, tokenizer: Tokenizer | None = None) -> Text:
    """The text that settings name, with the tokenizer of a run, or with one that is fitted on it."""
    options = asdict(data) | ({} if tokenizer is None else {"tokenizer": tokenizer})
    del options["documents"]  # which is found out
    return Text.open(**options)


def checkpoints_of(run: Path) -> list[Path]:
    """Folders of all complete checkpoints, the latest last. (An empty one is none: some copying made it.)"""
    return sorted(folder for folder in (run / "checkpoints").glob("step-*") if any(folder.iterdir()))
