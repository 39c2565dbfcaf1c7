"""Run folders: what a training leaves behind, and how it goes on from there.

    runs/demo/
        config.yaml              every setting of the run, enough to repeat it
        tokenizer.json
        metrics.jsonl            one record a line
        loss.svg, samples.txt
        checkpoints/
            step-00000500/       model.safetensors, config.json, optimizer.safetensors, random.safetensors, state.json,
            step-00001500/       and manifest.json: the size and hash of each of them

A checkpoint is complete or absent: it is written under another name, flushed, and renamed. Which one is the last and
which the best is read off the checkpoints themselves, so no pointer can disagree with them. It is the same whatever
number of processes wrote it, and any number can go on from it.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import AdamW, Optimizer

from gpt2lab.config import InputError
from gpt2lab.data import Tokenizer, load_tokenizer
from gpt2lab.model import GPT2
from gpt2lab.model.attention import Mechanism
from gpt2lab.model.gpt2 import read_config
from gpt2lab.training.distributed import as_shard, copy_share, num_processes, rank
from gpt2lab.training.optimizers import Muon

Which = Literal["best", "last"]
Tensors = dict[str, Tensor]

MANIFEST = "manifest.json"

# What each optimiser remembers of a parameter.
SLOTS: dict[type[Optimizer], tuple[str, ...]] = {AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum",)}


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint knows of its run besides the tensors.

    Attributes:
        step, tokens, seconds: how far it has come.
        validation_loss: an estimate for these very weights, nats per token; None if it was not measured.
        losses: of the steps since the last record, nats per token.
        skipped: how many steps were left out because their gradients were not finite.
    """

    step: int
    tokens: int
    seconds: float
    validation_loss: float | None
    losses: list[float] = field(default_factory=list)
    skipped: int = 0


@dataclass(frozen=True)
class Snapshot:
    """All tensors of a training at one moment: parameters, what the optimisers remember, random generators."""

    weights: Tensors
    optimizer: Tensors
    random: Tensors

    @classmethod
    def of(cls, model: GPT2, optimizers: list[Optimizer]) -> "Snapshot":
        """The tensors themselves, not copies; every process has to ask for it at once."""
        return cls(model.state_dict(), optimizer_tensors(model, optimizers), _random_states())

    def copy(self) -> "Snapshot":
        """Copies in main memory, which training does not change."""
        weights, remembered = (
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for tensors in (self.weights, self.optimizer)
        )
        return Snapshot(weights, remembered, self.random)


def save_checkpoint(
    run: Path,
    model: GPT2,
    snapshot: Snapshot,
    state: TrainingState,
    keep: int = 2,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write a checkpoint, and delete those that are neither among the latest nor the best any more.

    All processes call it together; the first one writes what all of them have, and each its own shards.

    Args:
        run: the run folder.
        model: whose configuration is written.
        snapshot: the tensors.
        state: how far the training has come.
        keep: how many of the latest checkpoints stay.
        group: through which the processes talk while they write; None: the usual one.

    Raises:
        OSError: it cannot be written, in any of the processes; what was there before is still there.
    """
    final = run / "checkpoints" / f"step-{state.step:08d}"
    partial = final.with_name(f".{final.name}.partial")

    def begin() -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        for remains in final.parent.glob(".step-*"):  # of a crash
            shutil.rmtree(remains, ignore_errors=True)
        model.save_description(partial)
        safetensors.torch.save_file(snapshot.random, partial / "random.safetensors")
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")

    def finish() -> None:
        files = sorted(partial.iterdir())
        described = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}
        (partial / MANIFEST).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        for path in (*files, partial / MANIFEST, partial):
            _flush(path)
        _remove(final)
        partial.rename(final)
        _flush(final.parent)
        found = checkpoints_of(run)
        going_on = found[: found.index(final) + 1]  # later ones are of a history that was given up
        kept = {*going_on[-keep:], _best_of(going_on)}
        for old in found:
            if old not in kept:
                _remove(old)

    try:
        _on_the_first(begin, group)
        _write_tensors(snapshot.weights, partial / "model.safetensors", group)
        _write_tensors(snapshot.optimizer, partial / "optimizer.safetensors", group)
        _on_the_first(finish, group)
    except OSError:
        if rank() == 0:  # make room again
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


class CheckpointWriter:
    """Writes the checkpoints of a training, at once or while it goes on.

    Args:
        model: what is trained.
        keep: how many of the latest checkpoints stay.
        in_background: whether :meth:`save` only copies the tensors and a thread writes them.
        timeout: seconds after which a process that does not answer is given up.
    """

    def __init__(self, model: GPT2, keep: int, in_background: bool, timeout: float) -> None:
        self.model = model
        self.keep = keep
        self.thread = ThreadPoolExecutor(1) if in_background else None
        self.pending: Future[Path] | None = None
        # Of its own, because the processes talk through the usual group while a thread writes.
        self.group: dist.ProcessGroup | None = None
        if num_processes() > 1:
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def save(self, run: Path, optimizers: list[Optimizer], state: TrainingState) -> None:
        """Write a checkpoint, or begin to.

        Raises:
            OSError: it cannot be written.
        """
        snapshot = Snapshot.of(self.model, optimizers)
        if self.thread is None:
            save_checkpoint(run, self.model, snapshot, state, self.keep, self.group)
        else:
            arguments = (run, self.model, snapshot.copy(), state, self.keep, self.group)
            self.pending = self.thread.submit(save_checkpoint, *arguments)

    def wait(self) -> None:
        """Until the one before is written.

        Raises:
            OSError: it could not be.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()


def _write_tensors(tensors: Tensors, path: Path, group: dist.ProcessGroup | None) -> None:
    """One safetensors file of whole tensors, from the shards of all processes or from the first one's own."""
    if all(as_shard(tensor) is None for tensor in tensors.values()):
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        _on_the_first(lambda: safetensors.torch.save_file(whole, path, metadata={"format": "pt"}), group)
        return
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    shards = path.with_suffix(".shards")
    # Putting shards together loses tensors without a dimension, such as AdamW's count of steps.
    state = {name: tensor[None] if tensor.dim() == 0 else tensor for name, tensor in tensors.items()}
    writer = HuggingFaceStorageWriter(str(shards), save_distributed=True, enable_consolidation=True)
    try:
        save(state, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        failures = [failure for failure, _ in error.failures.values()]
        if not all(isinstance(failure, OSError | SafetensorError) for failure in failures):
            raise
        raise OSError("; ".join(map(str, failures))) from None

    def name_it() -> None:
        (whole,) = shards.glob("model-*.safetensors")
        whole.rename(path)
        shutil.rmtree(shards)

    _on_the_first(name_it, group)


def _on_the_first(act: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Do something in the first process while the others wait, and fail in all of them if it fails."""
    failure: OSError | None = None
    if rank() == 0:
        try:
            act()
        except OSError as error:
            failure = error
        except SafetensorError as error:  # which is how a full disk is told there
            failure = OSError(str(error))
    if num_processes() > 1:
        told = [None if failure is None else str(failure)]
        dist.broadcast_object_list(told, 0, group)
        if told[0] is not None and failure is None:
            failure = OSError(told[0])
    if failure is not None:
        raise failure


def _random_states() -> Tensors:
    """State of the random generators of every process: ``cpu/0``, ``cpu/1``, … and the same of its GPU."""
    mine = {f"cpu/{rank()}": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine[f"cuda/{rank()}"] = torch.cuda.get_rng_state()
    if num_processes() == 1:
        return mine
    everyones: list[Tensors] = [{}] * num_processes()
    dist.all_gather_object(everyones, mine)
    return {name: tensor for one in everyones for name, tensor in one.items()}


def restore_training(folder: Path, model: GPT2, optimizers: list[Optimizer]) -> TrainingState:
    """Bring model, optimisers and random generators back to where a checkpoint left them.

    Shards take their part of the whole tensors. A process that the checkpoint does not know begins random numbers of
    its own.

    Raises:
        InputError: a file is missing or damaged, or the checkpoint is of another architecture or optimiser.
    """
    state = read_state(folder)
    if (config := read_config(folder)) != model.config:
        there, here = config.to_dict(), model.config.to_dict()
        differing = ", ".join(f"{name} {there[name]}, not {here[name]}" for name in there if there[name] != here[name])
        raise InputError(f"the checkpoint {folder} is of another architecture: {differing}")
    with torch.no_grad():
        weights = model.state_dict()
        with _reading(folder / "model.safetensors") as file:
            for name, tensor in weights.items():
                copy_share(file.get_tensor(name), tensor)
        places = _places(model, optimizers)
        with _reading(folder / "optimizer.safetensors") as file:
            stored = set(file.keys())
            if not stored <= set(places):
                raise InputError(
                    f"{folder / 'optimizer.safetensors'} was not written by these optimisers; go on with the "
                    "--optimizer that the run was begun with"
                )
            for name in stored:
                value, (slots, slot, parameter) = file.get_tensor(name), places[name]
                if slot == "step":
                    slots[slot] = value.reshape(()).to(parameter.device)
                else:
                    slots[slot] = torch.zeros_like(parameter)
                    copy_share(value, slots[slot])
    with _reading(folder / "random.safetensors") as file:
        if f"cpu/{rank()}" in file.keys():  # noqa: SIM118
            torch.set_rng_state(file.get_tensor(f"cpu/{rank()}"))
        else:
            torch.manual_seed((state.step << 20) + rank())
        if f"cuda/{rank()}" in file.keys() and torch.cuda.is_available():  # noqa: SIM118
            torch.cuda.set_rng_state(file.get_tensor(f"cuda/{rank()}"))
    return state


def optimizer_tensors(model: GPT2, optimizers: list[Optimizer]) -> Tensors:
    """Everything that the optimisers remember, as ``slot/parameter name``: tensor."""
    places = _places(model, optimizers)
    return {name: slots[slot] for name, (slots, slot, _) in places.items() if slot in slots}


def _places(model: GPT2, optimizers: list[Optimizer]) -> dict[str, tuple[Tensors, str, Tensor]]:
    """Where each thing that an optimiser remembers of a parameter lies: its dictionary, its slot, the parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{slot}/{names[parameter]}": (optimizer.state[parameter], slot, parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        for slot in SLOTS[type(optimizer)]
    }


def read_state(folder: Path) -> TrainingState:
    """State of a checkpoint folder."""
    try:
        return TrainingState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder / 'state.json'} is missing or damaged: {error}") from None


def verify_checkpoint(folder: Path) -> None:
    """Compare sizes and SHA-256 of a checkpoint's files with its manifest (older checkpoints have none).

    Raises:
        InputError: something is missing, cut short, changed, or too much.
    """
    if not (folder / MANIFEST).exists():
        return
    try:
        described = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name in {*described, *(path.name for path in folder.iterdir())} - {MANIFEST}:
            path = folder / name
            if described[name] != {"bytes": path.stat().st_size, "sha256": _sha256(path)}:
                raise InputError(f"{path} is damaged: it is not what was written")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"the checkpoint {folder} is damaged: {type(error).__name__}: {error}") from None


def find_checkpoint(run: str | Path, which: Which = "best") -> Path:
    """Folder of the last or the best checkpoint of a run (best: lowest validation loss; the last if none has one).

    One that is damaged is passed over with a warning, for the one before it or the next best.

    Raises:
        InputError: the run does not exist, or has no checkpoint that is whole.
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
    damaged = InputError("")
    while found:
        candidate = found[-1] if which == "last" else _best_of(found)
        try:
            verify_checkpoint(candidate)
        except InputError as error:
            damaged = error
            found.remove(candidate)
            if found:
                warnings.warn(f"{error}; an earlier checkpoint is used in its place", stacklevel=2)
        else:
            return candidate
    raise damaged


def _best_of(checkpoints: list[Path]) -> Path:
    """The one with the lowest validation loss that can be read, or else the last."""
    measured: dict[Path, float] = {}
    for folder in checkpoints:
        with contextlib.suppress(InputError):
            loss = read_state(folder).validation_loss
            if loss is not None and math.isfinite(loss):
                measured[folder] = loss
    return min(reversed(measured), key=measured.__getitem__) if measured else checkpoints[-1]


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


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
