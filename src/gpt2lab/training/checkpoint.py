"""Checkpoints: everything that a training needs to go on, written whole or not at all.

Each is written under another name, flushed, and renamed; by one process or, of shards, by all of them together. Any
number of processes goes on from any of them.

What is restored owns its memory. (A view of the mapped file would change when the file is overwritten, end the process
when it is cut, and lie at any address: where memory is not aligned, kernels round differently.)
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from gpt2lab.errors import InputError
from gpt2lab.files import flush
from gpt2lab.manifests import list_all
from gpt2lab.model import GPT2
from gpt2lab.model.saving import read_config, save_tensors
from gpt2lab.reading import regular_file
from gpt2lab.runs.folder import TrainingState, best_of, checkpoints_of, last_healthy, read_state
from gpt2lab.training.optimizers import AdamW, Muon
from gpt2lab.training.processes import num_processes, on_the_first, rank
from gpt2lab.training.randomness import generator_states, restore_generators
from gpt2lab.training.sharding import as_shard, copy_share

Tensors = dict[str, Tensor]

# What each optimiser remembers of a parameter.
SLOTS: dict[type[Optimizer], tuple[str, ...]] = {AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum",)}


@dataclass(frozen=True)
class Snapshot:
    """All tensors of a training at one moment: parameters, what the optimisers remember, random generators."""

    weights: Tensors
    optimizer: Tensors
    random: Tensors

    @classmethod
    def of(cls, model: GPT2, optimizers: Sequence[Optimizer]) -> "Snapshot":
        """The tensors themselves, not copies; every process has to ask for it at once."""
        return cls(model.weights(), optimizer_tensors(model, optimizers), generator_states())

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
        clear_remains(run)
        partial.mkdir()
        for name, content in model.description().items():
            (partial / name).write_bytes(content)
        save_tensors(snapshot.random, partial / "random.safetensors")
        (partial / "state.json").write_text(
            json.dumps(asdict(state), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )

    def finish() -> None:
        list_all(partial)
        for path in (*partial.iterdir(), partial):
            flush(path)
        _remove(final)
        partial.rename(final)
        flush(final.parent)
        _clear_away(run, keep, final)

    try:
        on_the_first(begin, group)
        _write_tensors(snapshot.weights, partial / "model.safetensors", group)
        _write_tensors(snapshot.optimizer, partial / "optimizer.safetensors", group)
        on_the_first(finish, group)
    except OSError:
        if rank() == 0:  # make room again
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def _clear_away(run: Path, keep: int, last: Path) -> None:
    """Delete the checkpoints that are neither among the latest nor the best nor the last healthy one; and those after
    the last one, which are of a history that was given up."""
    found = checkpoints_of(run)
    going_on = found[: found.index(last) + 1]
    kept = {*going_on[-keep:], best_of(going_on), last_healthy(going_on)}
    for old in found:
        if old not in kept:
            _remove(old)


def clear_remains(run: Path) -> None:
    """Delete what a crash has left of writing and deleting."""
    for remains in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(remains, ignore_errors=True)


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

    def save(self, run: Path, optimizers: Sequence[Optimizer], state: TrainingState) -> None:
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
        on_the_first(lambda: save_tensors(tensors, path), group)
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

    on_the_first(name_it, group)


def restore_training(folder: Path, model: GPT2, optimizers: Sequence[Optimizer]) -> TrainingState:
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
        weights = model.weights()
        with _reading(folder / "model.safetensors") as file:
            if others := {*file.names} ^ {*weights}:
                raise InputError(f"{file.path} is of another model: {min(others)} is in only one of both")
            for name, tensor in weights.items():
                copy_share(file.tensor_like(name, tensor), tensor)
        places = _places(model, optimizers)
        with _reading(folder / "optimizer.safetensors") as file:
            stored = {*file.names}
            # A user's mechanism may have parameters without a gradient; without targets, there was no step at all.
            missing = {*places} - stored if stored and model.mechanism_class is None else set()
            if missing or not stored <= {*places}:
                raise InputError(
                    f"{file.path} was not written by these optimisers; go on with the --optimizer that the run was "
                    "begun with"
                )
            for name in stored:
                slots, slot, parameter = places[name]
                if slot == "step":
                    count = file.get_tensor(name).reshape(-1)
                    if count.shape != (1,) or count.dtype != torch.float32:
                        raise InputError(f"{file.path} is damaged: {name} is no count of steps")
                    slots[slot] = count[0].to(parameter.device, copy=True)  # a view of the file else
                else:
                    slots[slot] = torch.zeros_like(parameter)
                    copy_share(file.tensor_like(name, parameter), slots[slot])
    with _reading(folder / "random.safetensors") as file:
        restore_generators({name: file.get_tensor(name) for name in file.names}, state.step)
    return state


def optimizer_tensors(model: GPT2, optimizers: Sequence[Optimizer]) -> Tensors:
    """Everything that the optimisers remember, as ``slot/parameter name``: tensor."""
    places = _places(model, optimizers)
    return {name: slots[slot] for name, (slots, slot, _) in places.items() if slot in slots}


def _places(model: GPT2, optimizers: Sequence[Optimizer]) -> dict[str, tuple[Tensors, str, Tensor]]:
    """Where each thing that an optimiser remembers of a parameter lies: its dictionary, its slot, the parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{slot}/{names[parameter]}": (optimizer.state[parameter], slot, parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        for slot in SLOTS[type(optimizer)]
    }


class _Tensors:
    """The tensors of an open safetensors file, which are views of it."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self.names: list[str] = file.keys()
        self.get_tensor: Callable[[str], Tensor] = file.get_tensor

    def tensor_like(self, name: str, expected: Tensor) -> Tensor:
        """One that has to have the shape and the precision of another (shapes that broadcast would be copied, too).

        Raises:
            InputError: they differ.
        """
        found = self.get_tensor(name)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            kinds = (f"{tuple(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in (found, expected))
            raise InputError(f"{self.path} is of another model: {name} is {', not '.join(kinds)}")
        return found


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[_Tensors]:
    regular_file(path)
    try:
        with safe_open(path, "pt") as file:
            yield _Tensors(path, file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from None


def _remove(folder: Path) -> None:
    """Delete a checkpoint such that a crash on the way leaves it complete or hidden."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.doomed")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
