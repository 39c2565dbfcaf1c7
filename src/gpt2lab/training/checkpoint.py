"""Run folders: what a training leaves behind, and how it goes on from there.

    runs/demo/
        config.yaml              every setting of the run, enough to repeat it
        tokenizer.json
        metrics.jsonl            one record a line
        loss.svg, samples.txt
        checkpoints/
            step-00000500/       model.safetensors, config.json, optimizer.safetensors, state.json
            step-00001500/

A checkpoint is complete or absent: it is written under another name, flushed, and renamed. Which one is the last and
which the best is read off the checkpoints themselves, so no pointer can disagree with them.
"""

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.optim import AdamW, Optimizer

from gpt2lab.config import InputError
from gpt2lab.data import Tokenizer, load_tokenizer
from gpt2lab.model import GPT2
from gpt2lab.model.attention import Mechanism
from gpt2lab.training.optimizers import Muon

Which = Literal["best", "last"]

# What each optimiser remembers of a parameter.
SLOTS: dict[type[Optimizer], tuple[str, ...]] = {AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum",)}


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint knows of its run besides the tensors.

    ``validation_loss`` is an estimate for these very weights, nats per token; None if it was not measured.
    """

    step: int
    tokens: int
    seconds: float
    validation_loss: float | None


def save_checkpoint(run: Path, model: GPT2, optimizers: list[Optimizer], state: TrainingState) -> Path:
    """Write a checkpoint, and delete those that are neither the last nor the best any more."""
    final = run / "checkpoints" / f"step-{state.step:08d}"
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.partial")
    for remains in final.parent.glob(".step-*"):  # of a crash
        shutil.rmtree(remains, ignore_errors=True)
    model.save(partial)
    tensors = optimizer_tensors(model, optimizers) | {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    safetensors.torch.save_file(tensors, partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    for path in (*partial.iterdir(), partial):
        _flush(path)
    _remove(final)
    partial.rename(final)
    _flush(final.parent)
    kept = {find_checkpoint(run, "last"), find_checkpoint(run, "best")}
    for old in checkpoints_of(run):
        if old not in kept:
            _remove(old)
    return final


def restore_training(folder: Path, model: GPT2, optimizers: list[Optimizer]) -> TrainingState:
    """Bring model, optimisers and random generators back to where a checkpoint left them."""
    state = read_state(folder)
    device = model.final_norm.weight.device
    loaded = GPT2.load(folder, attention=model.mechanism_class)
    if loaded.config != model.config:
        raise InputError(f"the checkpoint {folder} is of another architecture: {loaded.config}, not {model.config}")
    model.load_state_dict(loaded.state_dict())
    try:
        tensors = safetensors.torch.load_file(folder / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / 'optimizer.safetensors'} is missing or damaged: {error}") from None
    names = _names(model)
    places = {
        f"{slot}/{names[parameter]}": (optimizer.state[parameter], slot)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        for slot in SLOTS[type(optimizer)]
    }
    rng, cuda_rng = tensors.pop("rng/cpu", None), tensors.pop("rng/cuda", None)
    if rng is None or not set(tensors) <= set(places):
        raise InputError(
            f"{folder / 'optimizer.safetensors'} was not written by these optimisers; go on with the --optimizer that "
            "the run was begun with"
        )
    for key, tensor in tensors.items():
        slots, slot = places[key]
        slots[slot] = tensor.to(device)
    torch.set_rng_state(rng)
    if cuda_rng is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda_rng)
    return state


def optimizer_tensors(model: GPT2, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Everything that the optimisers remember, as ``slot/parameter name``: tensor."""
    names = _names(model)
    return {
        f"{slot}/{names[parameter]}": value
        for optimizer in optimizers
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def read_state(folder: Path) -> TrainingState:
    """State of a checkpoint folder."""
    try:
        return TrainingState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder / 'state.json'} is missing or damaged: {error}") from None


def find_checkpoint(run: str | Path, which: Which = "best") -> Path:
    """Folder of the last or the best checkpoint of a run (best: lowest validation loss; the last if none has one).

    Raises:
        InputError: the run does not exist or has no checkpoint.
    """
    run = Path(run)
    found = checkpoints_of(run)
    if not found:
        if run.is_file():
            raise InputError(f"{run} is a file, not the folder of a run")
        wrong = "holds no checkpoint" if run.is_dir() else "does not exist"
        if below := [str(folder) for folder in sorted(run.glob("*")) if checkpoints_of(folder)]:
            raise InputError(f"{run} is not the folder of a run, but these are: {', '.join(below[:10])}")
        raise InputError(f"the run folder {run} {wrong}; `gpt2lab train --out {run}` makes one")
    if which == "last":
        return found[-1]
    losses = {folder: read_state(folder).validation_loss for folder in found}
    measured = {folder: loss for folder, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return min(reversed(measured), key=measured.__getitem__) if measured else found[-1]


def load(run: str | Path, *, attention: Mechanism | None = None, checkpoint: Which = "best") -> tuple[GPT2, Tokenizer]:
    """Model and tokenizer of a run, ready to evaluate or generate. Nothing in the folder is executed.

    Args:
        run: folder of a run.
        attention: the user's mechanism, if the run has one.
        checkpoint: the best, by validation loss, or the last.

    Raises:
        InputError: something is missing or damaged.
    """
    model = GPT2.load(find_checkpoint(run, checkpoint), attention=attention)
    return model.eval(), load_tokenizer(Path(run) / "tokenizer.json")


def checkpoints_of(run: Path) -> list[Path]:
    """Folders of all complete checkpoints, the latest last."""
    return sorted((run / "checkpoints").glob("step-*"))


def _names(model: GPT2) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _remove(folder: Path) -> None:
    """Delete a checkpoint such that a crash on the way leaves it complete or hidden."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.doomed")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
