"""Several processes that train one model together: how they start, find each other, and agree.

``torchrun`` (or ``gpt2lab train --processes N``) starts them; all of them run the same program, and each takes its rows
of every batch. What they tell each other here are small numbers and Python objects, from main memory to main memory: no
GPU is asked for anything. (:mod:`gpt2lab.training.sharding` divides tensors.) Alone, everything here does nothing.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from gpt2lab.errors import InputError, TrainingError
from gpt2lab.threads import available_cores
from gpt2lab.training.signals import Signals

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
        gpu = int(os.environ.get("LOCAL_RANK", "0"))
        if gpu >= torch.cuda.device_count():
            raise InputError(
                f"there are {torch.cuda.device_count()} GPUs for more processes; start as many as there are GPUs, or "
                "take --device cpu"
            )
        torch.cuda.set_device(gpu)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    patience = timedelta(seconds=timeout)
    try:
        store, mine, number = next(rendezvous("env://", timeout=patience))
    except (RuntimeError, ValueError, OSError) as error:
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise InputError(
            f"the processes cannot find each other at {where} ({' '.join(str(error).split())[:200]}); start them with "
            "torchrun, which names the same free port of the first machine to all of them"
        ) from None
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


def _end_with(launcher: int) -> None:
    """End this process, which saves first, when what started it is gone: nobody else would end it."""
    while os.getppid() == launcher:
        time.sleep(1)
    signal.raise_signal(signal.SIGTERM)


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
    """Scalars of this process's device, each averaged over all processes; the device is waited for once."""
    if not values:
        return []
    return [total / num_processes() for total in summed(*torch.stack(list(values)).tolist())]


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


def in_all(act: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Do something in every process; what one of them finds wrong ends all of them, before any waits for it.

    Raises:
        InputError: of this process, or naming the first one that raised it.
        OSError: likewise.
    """
    if num_processes() == 1:
        return act()
    made: list[T] = []
    wrong: InputError | OSError | None = None
    try:
        made.append(act())
    except (InputError, OSError) as error:
        wrong = error
    told: list[str | None] = [None] * num_processes()
    dist.all_gather_object(told, None if wrong is None else str(wrong), group)
    if wrong is not None:
        raise wrong
    for number, said in enumerate(told):
        if said is not None:
            raise InputError(f"process {number} cannot go on: {said}")
    return made[0]


def check_alike(options: Mapping[str, object]) -> None:
    """See to it that all processes were given the same.

    Raises:
        InputError: in all of them, naming what differs.
    """
    told: list[Mapping[str, object]] = [options] * num_processes()
    if num_processes() > 1:
        dist.all_gather_object(told, options)
    for number, others in enumerate(told):
        if name := next((n for n in {**told[0], **others} if told[0].get(n) != others.get(n)), None):
            raise InputError(
                f"the processes were not started alike: {name} is {told[0].get(name)!r} in process 0 and "
                f"{others.get(name)!r} in process {number}"
            )


def first_then_others(act: Callable[[], T]) -> T:
    """Do something in the first process, and then in the others, which find on disk what that left there."""
    if num_processes() == 1:
        return act()
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))  # encoding a large text takes its time
    made: list[T] = []
    on_the_first(lambda: made.append(act()), patient)
    return in_all(lambda: made[0] if made else act(), patient)


def launch(processes: int, *command: str) -> int:
    """Run a Python program in several processes of this machine, as torchrun does; returns the exit code.

    SIGINT and SIGTERM are passed on, and the processes have ten minutes to save and end by themselves.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads or str(max(1, available_cores() // processes))
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
    # SIGUSR1 is for the processes; here it would end them without a word. Windows has none.
    heeds = Signals.SAVING is not None and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN) if heeds else None
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    finally:
        logging.disable(logging.NOTSET)
        if heeds:
            signal.signal(signal.SIGUSR1, before)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
    return 0
