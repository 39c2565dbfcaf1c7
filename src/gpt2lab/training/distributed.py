"""Several processes that train one model: what each of them does, and what they have to agree on.

Started by ``torchrun`` (or ``gpt2lab train --processes N``), every process runs the same program. Each takes its rows
of a batch; gradients are averaged (DDP: Li et al. 2020, arXiv:2006.15704), or each keeps its share of the parameters,
their gradients and what the optimisers remember, too (FSDP2: Zhao et al. 2023, arXiv:2304.11277; ZeRO-3 of Rajbhandari
et al. 2020, arXiv:1910.02054). Alone, everything here does nothing.
"""

import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from gpt2lab.errors import InputError, TrainingError
from gpt2lab.model import GPT2

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from gpt2lab.runs.settings import TrainerConfig

T = TypeVar("T")


def job() -> str:
    """What torchrun calls this job, the same after it started all processes anew; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if name == "none" else name


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
    on_cuda = torch.cuda.is_available() and device.startswith(("cuda", "auto"))
    if on_cuda:
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise InputError(
                f"there are {torch.cuda.device_count()} GPUs for more processes; start as many as there are GPUs, or "
                "take --device cpu"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    patience = timedelta(seconds=timeout)
    store, mine, number = next(rendezvous("env://", timeout=patience))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # After a restart the store still holds the addresses of processes that are gone (seen in torch 2.13). Agents of
        # several machines count their restarts apart; there a setting of torchrun makes a new store (docs/scaling.md).
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"start-{start}", store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=mine, world_size=number, timeout=patience)
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
        TrainingError: naming the processes that do not answer, or this one, if it is the one that fails.
    """
    if num_processes() == 1:
        yield
        return
    roll_call = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))
    try:
        yield
    except InputError as error:
        raise TrainingError(f"process {rank()} cannot go on: {error}") from error
    except TrainingError:
        raise
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
        precision: of the matrix products; with FSDP and bfloat16 the blocks' matrices also travel in it, and their
            gradients are summed in float32. LayerNorms, what is outside of the blocks, and the rotary tables stay as
            they are.
    """
    if config.activation_checkpointing:
        from torch.distributed._composable.checkpoint_activation import checkpoint

        for block in model.blocks:
            checkpoint(block)
    if num_processes() == 1:
        return model
    if config.parallel == "ddp":
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    narrow = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = narrow if precision == torch.bfloat16 else MixedPrecisionPolicy()
    where = CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy()
    mesh = init_device_mesh(device.type, (num_processes(),))
    for block in model.blocks:
        norms: list[nn.Module] = [block.attention_norm, block.feed_forward_norm]
        if policy is narrow:  # a LayerNorm of float32 takes no narrow weights
            fully_shard(norms, mesh=mesh, offload_policy=where)
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=where)
    root = fully_shard(model, mesh=mesh, offload_policy=where)
    if model.final_norm.weight.is_meta:
        model.to_empty(device="cpu" if config.cpu_offload else device)
        with torch.no_grad():
            for whole, parameter in zip(model.initial_weights(model.seed), model.parameters(), strict=True):
                if whole is not None:
                    copy_share(whole, parameter)
    if policy is narrow:  # whoever calls the model: narrow matrices take no wide inputs
        model.forward = torch.autocast(device.type, torch.bfloat16)(model.forward)  # type: ignore[method-assign]
    with torch.no_grad():  # its first pass makes buffers, which must not come from generating in inference mode
        model(torch.zeros(1, 1, dtype=torch.int64, device=device))
    root.reshard()  # what is outside of the blocks stays gathered after a forward pass
    return model


def as_shard(tensor: Tensor) -> "DTensor | None":
    """The tensor, if this process holds only a share of it."""
    if num_processes() == 1:
        return None  # and the import, of a second, is saved
    from torch.distributed.tensor import DTensor

    return tensor if isinstance(tensor, DTensor) else None


def copy_share(whole: Tensor, into: Tensor) -> None:
    """Write into a tensor of this process what it holds of a whole one."""
    shard = as_shard(into)
    if shard is None:
        into.copy_(whole)
        return
    held = shard.to_local()
    rows = -(-len(whole) // num_processes())  # as fully_shard divides them: the last processes may get fewer, or none
    start = min(rank() * rows, len(whole))
    held.copy_(whole[start : start + len(held)])


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor of which each process holds a share."""
    shard = as_shard(tensor)
    return tensor if shard is None else shard.full_tensor()


def apply_to_whole(function: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """A function that needs whole matrices, and keeps their shape, of those of which each process has a share.

    Each process gathers as many of the matrices as there are for every one, and works on these.

    Args:
        function: of (n, rows, columns), for any n.
        matrices: (N, rows, columns), all there or divided along rows or columns.

    Returns:
        the same shape, divided as before.
    """
    shards = as_shard(matrices)
    if shards is None:
        return function(matrices)
    from torch.distributed.tensor import DTensor, Shard

    by_matrix = shards.redistribute(placements=[Shard(0)])
    done = function(by_matrix.to_local())
    shape, stride = by_matrix.shape, by_matrix.stride()
    whole = DTensor.from_local(done, shards.device_mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
    return whole.redistribute(placements=shards.placements)


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


def check_processes(config: "TrainerConfig") -> None:
    """Refuse what the number of processes does not allow."""
    if config.batch_size % num_processes():
        raise InputError(
            f"a batch of {config.batch_size} windows cannot be divided among {num_processes()} processes; make "
            f"--batch-size a multiple of {num_processes()}"
        )
    if config.cpu_offload and config.parallel != "fsdp":
        raise InputError("--cpu-offload keeps the shards of --parallel fsdp in main memory; give both, or leave it out")
    if config.parallel == "fsdp" and num_processes() == 1:
        raise InputError(
            "--parallel fsdp divides a model among several processes, and there is only one; start more with "
            "--processes or torchrun, or leave it out"
        )


def on_the_first(act: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Do something in the first process while the others wait; all get its result, or fail as it failed.

    Args:
        act: its result, or the exception that it raises, has to be picklable.
        group: through which the processes talk; None: the usual one.
    """
    told: list[T | Exception | None] = [None]
    if rank() == 0:
        try:
            told = [act()]
        except Exception as error:
            told = [error]
    if num_processes() > 1:
        dist.broadcast_object_list(told, 0, group)
    if isinstance(told[0], Exception):
        raise told[0]
    return cast(T, told[0])


def first_then_others(act: Callable[[], T]) -> T:
    """Do something in the first process, and then in the others, which find on disk what that left there."""
    if num_processes() == 1:
        return act()
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))  # encoding a large text takes its time
    made: list[T] = []
    on_the_first(lambda: made.append(act()), patient)
    return made[0] if made else act()


def launch(processes: int, *command: str) -> int:
    """Run a Python program in several processes of this machine, as torchrun does; returns the exit code.

    SIGINT and SIGTERM are passed on, and the processes have ten minutes to save and end by themselves.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        1,
        1,
        processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=600,
    )
    logging.disable(logging.ERROR)  # the program itself says what is wrong
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it is for the processes; here it would end them without a word
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    finally:
        logging.disable(logging.NOTSET)
    return 0
