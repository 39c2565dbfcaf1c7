"""Several processes that train one model: what each of them does, and what they have to agree on.

Started by ``torchrun`` (or ``gpt2lab train --processes N``), every process runs the same program. Each takes its rows
of a batch; gradients are averaged (DDP: Li et al. 2020, arXiv:2006.15704), or each keeps its share of the parameters,
their gradients and what the optimisers remember, too (FSDP2: Zhao et al. 2023, arXiv:2304.11277; ZeRO-3 of Rajbhandari
et al. 2020, arXiv:1910.02054). Alone, everything here does nothing.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.checkpoint_activation import checkpoint
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parallel import DistributedDataParallel

from gpt2lab.config import InputError, TrainingError
from gpt2lab.model import GPT2

if TYPE_CHECKING:
    from gpt2lab.training.config import TrainerConfig

Parallel = Literal["ddp", "fsdp"]


def rank() -> int:
    """Which of the processes this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def joined_processes(device: str, timeout: float) -> Iterator[None]:
    """Work together with the other processes that torchrun started; without torchrun, alone.

    Args:
        device: the option, such as "auto"; on CUDA every process of a machine takes a GPU of its own.
        timeout: seconds after which a process that does not answer is given up.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=timedelta(seconds=timeout))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def naming_lost_processes(patience: float = 30.0) -> Iterator[None]:
    """Turn the failure to hear from other processes into a sentence that says which ones.

    Args:
        patience: seconds in which the others have to say that they are still there.

    Raises:
        TrainingError: naming the processes that do not answer.
    """
    if num_processes() == 1:
        yield
        return
    roll_call = dist.new_group(backend="gloo")
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, dist.DistError):
            raise
        try:
            dist.monitored_barrier(roll_call, timedelta(seconds=patience), wait_all_ranks=True)
        except RuntimeError as silent:
            raise TrainingError(f"another process hangs or is gone: {str(silent).splitlines()[0]}") from error
        raise


def wrap(model: GPT2, config: "TrainerConfig", device: torch.device, precision: torch.dtype) -> nn.Module:
    """What computes the loss of a process's rows, such that ``backward`` leaves gradients averaged over all processes.

    Args:
        model: on the device, or on the meta device (FSDP): then it gets its initial weights here, the same as without.
            With FSDP its parameters become DTensors, in place.
        config: ``parallel``, ``activation_checkpointing`` and ``cpu_offload`` are read.
        device: where it runs.
        precision: of the matrix products; with FSDP and bfloat16 the blocks also travel in it, and their gradients are
            summed in float32. What is outside of the blocks, the rotary tables too, stays as it is.
    """
    if config.activation_checkpointing:
        for block in model.blocks:
            checkpoint(block)
    if num_processes() == 1:
        return model
    if config.parallel == "ddp":
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    narrow = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = narrow if precision == torch.bfloat16 else MixedPrecisionPolicy()
    where = CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy()
    for block in model.blocks:
        fully_shard(block, mp_policy=policy, offload_policy=where)
    fully_shard(model, offload_policy=where)
    if model.final_norm.weight.is_meta:
        model.to_empty(device="cpu" if config.cpu_offload else device)
        with torch.no_grad():
            for whole, parameter in zip(model.initial_weights(model.seed), model.parameters(), strict=True):
                if whole is not None:
                    copy_share(whole, parameter)
    return model


def copy_share(whole: Tensor, into: Tensor) -> None:
    """Write into a tensor of this process what it holds of a whole one."""
    if not isinstance(into, DTensor):
        into.copy_(whole)
        return
    held = into.to_local()
    rows = -(-len(whole) // num_processes())  # as fully_shard divides them: the last processes may get fewer, or none
    start = min(rank() * rows, len(whole))
    held.copy_(whole[start : start + len(held)])


def gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Whole tensors of those of which each process holds a share."""
    return [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def shared_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in every process, divided as another one is."""
    if not isinstance(like, DTensor):
        return whole
    replicated = DTensor.from_local(whole, like.device_mesh, [Replicate()], run_check=False)
    return replicated.redistribute(placements=like.placements)


def summed(*values: float) -> list[float]:
    """Numbers added up over all processes."""
    if num_processes() == 1:
        return list(values)
    together = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(together)
    return together.tolist()


def highest(*values: int) -> list[int]:
    """The highest of each number among all processes."""
    if num_processes() == 1:
        return list(values)
    together = torch.tensor(values)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return together.tolist()


def averaged(values: Sequence[Tensor]) -> list[float]:
    """Scalars, each averaged over all processes."""
    return [total / num_processes() for total in summed(*(value.item() for value in values))]


def own_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """This process's rows of a batch that every process has; one row without targets where there are fewer than
    processes, since all of them have to compute together."""
    mine = slice(rank(), None, num_processes())
    return (x[mine], y[mine]) if rank() < len(x) else (x[:1], torch.full_like(y[:1], -100))


def check_divides(batch_size: int) -> None:
    """Refuse a batch that cannot be divided evenly."""
    if batch_size % num_processes():
        raise InputError(
            f"a batch of {batch_size} windows cannot be divided among {num_processes()} processes; make --batch-size a "
            f"multiple of {num_processes()}"
        )
