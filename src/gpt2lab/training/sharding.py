"""One model in several processes: each has all of it, or its share.

With DDP (Li et al. 2020, arXiv:2006.15704) every process has the whole model, and gradients are averaged. With FSDP
(FSDP2: Zhao et al. 2023, arXiv:2304.11277; ZeRO-3 of Rajbhandari et al. 2020, arXiv:1910.02054) each keeps its share of
the parameters, their gradients and what the optimisers remember. Alone, everything here does nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2lab.errors import InputError
from gpt2lab.model import GPT2
from gpt2lab.runs.settings import TrainerConfig
from gpt2lab.training.processes import num_processes, rank

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def check_processes(config: TrainerConfig, device: torch.device) -> None:
    """Refuse what the number of processes, or where they run, does not allow."""
    if config.batch_size % num_processes():
        raise InputError(
            f"a batch of {config.batch_size} windows cannot be divided among {num_processes()} processes; make "
            f"--batch-size a multiple of {num_processes()}"
        )
    if config.cpu_offload and config.parallel != "fsdp":
        raise InputError("--cpu-offload keeps the shards of --parallel fsdp in main memory; give both, or leave it out")
    if config.cpu_offload and device.type == "cpu":
        raise InputError(
            "--cpu-offload moves shards from a GPU to main memory, where a CPU has them anyway; leave it out"
        )
    if config.parallel == "fsdp" and num_processes() == 1:
        raise InputError(
            "--parallel fsdp divides a model among several processes, and there is only one; start more with "
            "--processes or torchrun, or leave it out"
        )


def _check_mechanism(model: GPT2) -> None:
    """Refuse a mechanism that FSDP cannot divide, or whose checkpoints it could not write.

    Raises:
        InputError: naming the parameter or buffer.
    """
    if model.mechanism_class is None:
        return
    otherwise = "; train it with --parallel ddp, or in one process"
    if model.final_norm.weight.is_meta:
        raise InputError("a model with an attention of its own has to be made with its weights, not on the meta device")
    weights = model.weights()
    if shared := model.state_dict().keys() - weights.keys():
        raise InputError(f"--parallel fsdp divides no parameter that layers share, as {min(shared)} is{otherwise}")
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise InputError(
                f"--parallel fsdp divides no parameter without a dimension, as {name} is; give it the shape (1,)"
            )
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise InputError(
                f"--parallel fsdp saves no whole numbers, as the buffer {name} ({tensor.dtype}) has; make it a float, "
                f"register it with persistent=False{otherwise}"
            )


def wrap(
    model: GPT2, config: TrainerConfig, device: torch.device, precision: torch.dtype, idle: bool = False
) -> nn.Module:
    """What computes the loss of a process's rows, such that ``backward`` leaves gradients averaged over all processes.

    Args:
        model: on the device, or on the meta device (FSDP): then it gets its initial weights here, the same as without.
            With FSDP its parameters become DTensors, in place.
        config: ``parallel``, ``activation_checkpointing`` and ``cpu_offload`` are read.
        device: where it runs.
        precision: of the matrix products; with FSDP and bfloat16 the blocks' matrices also travel in it, and their
            gradients are summed in float32. LayerNorms, what is outside of the blocks, and the rotary tables stay as
            they are.
        idle: some parameters get no gradient.
    """
    if config.activation_checkpointing:
        from torch.utils.checkpoint import checkpoint

        for block in model.blocks:  # inside of the module, where the compiler and FSDP's hooks let it be
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    if num_processes() == 1:
        return model
    if config.parallel == "ddp":
        return DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=idle)
    _check_mechanism(model)
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
