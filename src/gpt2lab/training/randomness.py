"""The global random generators: Python's, numpy's and torch's. All that draws from them can be repeated."""

import contextlib
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gpt2lab.errors import InputError
from gpt2lab.training.processes import num_processes, rank

CPU, GPU, NUMPY, PYTHON = "cpu", "cuda", "numpy", "python"


def seed_generators(seed: int) -> None:
    """Begin all of them anew."""
    torch.manual_seed(seed)
    _seed_pythons(seed)


def _seed_pythons(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextlib.contextmanager
def drawing(*of: int) -> Iterator[None]:
    """What is drawn inside, on the CPU, follows from these numbers alone, and changes nothing that is drawn later."""
    seed = int(np.random.SeedSequence([number % 2**64 for number in of]).generate_state(1, np.uint64)[0])
    pythons, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        _seed_pythons(seed)
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)


def generator_states() -> dict[str, Tensor]:
    """The states in every process: ``cpu/0``, ``numpy/0``, ``python/0``, ``cpu/1``, … and ``cuda/0``, … of its GPU."""
    numpys: Any = np.random.get_state()
    mine = {
        CPU: torch.get_rng_state(),
        NUMPY: _as_tensor([part.tolist() if isinstance(part, np.ndarray) else part for part in numpys]),
        PYTHON: _as_tensor(random.getstate()),
    }
    if torch.cuda.is_available():
        mine[GPU] = torch.cuda.get_rng_state()
    mine = {f"{name}/{rank()}": state for name, state in mine.items()}
    if num_processes() == 1:
        return mine
    everyones: list[dict[str, Tensor]] = [{}] * num_processes()
    dist.all_gather_object(everyones, mine)
    return {name: state for one in everyones for name, state in one.items()}


def restore_generators(states: dict[str, Tensor], step: int) -> None:
    """Go on as :func:`generator_states` has it; a process, or a generator, that is not there begins anew at that step.

    Raises:
        InputError: a state is damaged.
    """
    seed_generators((step << 20) + rank())
    here = {name: states[f"{name}/{rank()}"] for name in (CPU, GPU, NUMPY, PYTHON) if f"{name}/{rank()}" in states}
    try:
        if CPU in here:
            torch.set_rng_state(here[CPU])
        if GPU in here and torch.cuda.is_available():
            torch.cuda.set_rng_state(here[GPU])
        if NUMPY in here:
            np.random.set_state(tuple(_from_tensor(here[NUMPY])))
        if PYTHON in here:
            version, internal, gauss = _from_tensor(here[PYTHON])
            random.setstate((version, tuple(internal), gauss))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"the state of a random generator is damaged: {error}") from None


def _as_tensor(state: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)


def _from_tensor(state: Tensor) -> Any:
    return json.loads(bytes(state.tolist()))
