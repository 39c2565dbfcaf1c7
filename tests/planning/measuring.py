"""Measures what a training step really holds, and sends; with torchrun, in each of several processes.

Memory: torch's profiler records every allocation and every release of its allocator with the address, those inside of
kernels, too. Their highest sum is the peak; libraries and Python are not in it. Traffic: a dispatch mode sees every
collective operation with its tensors.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2lab.config import GPT2Config
from gpt2lab.model import GPT2
from gpt2lab.planning.memory import Way
from gpt2lab.training import TrainerConfig
from gpt2lab.training.optimizers import build_optimizers
from gpt2lab.training.sharding import wrap

MEASURED = "the step that is measured"

Step = Callable[[], object]


def most_held(prepare: Callable[[], Step]) -> tuple[int, Step]:
    """Most bytes that a step held at once, together with what was made for it before and is still there; the step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step = prepare()
        step()  # now the optimisers have their states
        step()  # and DDP has put its buckets in order
        with record_function(MEASURED):
            step()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    live: dict[int, int] = {}
    held = most = 0
    begun = False
    for event in sorted(
        events(recorded.profiler.kineto_results.experimental_event_tree()), key=lambda e: e.start_time_ns
    ):
        begun = begun or event.name == MEASURED
        if event.name != "[memory]":
            continue
        address, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        held -= live.pop(address, 0)  # released, or, by a thread of gloo and unseen, some time before
        if size > 0 and not inside_gloo(event):
            live[address] = size
            held += size
        if begun:
            most = max(most, held)
    return most, step


def events(nodes: list[Any]) -> Iterator[Any]:
    while nodes:
        yield from nodes
        nodes = list(itertools.chain.from_iterable(node.children for node in nodes))


def inside_gloo(event: Any) -> bool:
    """Whether the CPU's collectives made it for themselves; NCCL has buffers of its own."""
    while event is not None:
        if event.name.startswith("c10d::"):
            return True
        event = event.parent
    return False


def training(way: Way) -> Step:
    """One step of that training, as :class:`gpt2lab.training.Trainer` does it, on random tokens."""
    model = GPT2.from_config(way.config, seed=0)
    config = TrainerConfig(parallel=way.parallel, activation_checkpointing=way.activation_checkpointing)
    whole = wrap(model, config, torch.device("cpu"), torch.float32)  # (FSDP in bfloat16 is not measured: docs/plan.md)
    optimizers = build_optimizers(model, way.optimizer, 1e-3, 0.1, (0.8, 0.95))
    shape = (way.rows, way.config.max_seq_len)

    def step() -> None:
        for part in range(way.accumulation_steps):
            ids, targets = (torch.randint(way.config.vocab_size, shape) for _ in range(2))
            waits = part + 1 < way.accumulation_steps and isinstance(whole, DistributedDataParallel)
            with whole.no_sync() if waits else nullcontext():  # DDP's gradients travel once
                with torch.autocast("cpu", torch.bfloat16, enabled=way.precision == "bfloat16"):
                    loss = whole(ids, targets) / way.accumulation_steps
                loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


class Sent(TorchDispatchMode):
    """Adds up what each of n processes sends if collectives go around in rings."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        ring = (dist.get_world_size() - 1) / dist.get_world_size()
        match func.name():
            case "c10d::_allgather_base_":  # into, from
                self.size += ring * args[0].nbytes
            case "_c10d_functional::all_gather_into_tensor":  # from
                self.size += ring * dist.get_world_size() * args[0].nbytes
            case "c10d::_reduce_scatter_base_":
                self.size += ring * args[1].nbytes
            case "c10d::allreduce_":
                self.size += 2 * ring * sum(tensor.nbytes for tensor in args[0])
        return func(*args, **(kwargs or {}))


def sent(step: Step) -> float:
    """Bytes that a step sends."""
    with Sent() as found:
        step()
    return found.size


if __name__ == "__main__":  # one process of several: ways as JSON in; out, for each way, what all processes found
    dist.init_process_group("gloo")
    for values in json.loads(sys.argv[1]):
        way = Way(**values | {"config": GPT2Config.from_dict(values["config"])})
        found: list[Any] = [None] * dist.get_world_size()
        most, step = most_held(partial(training, way))
        dist.all_gather_object(found, {"peak": most, "sent": sent(step)})
        if dist.get_rank() == 0:
            print(json.dumps(found), flush=True)
    dist.destroy_process_group()
