"""From data sets to batches on the device, for each process its rows."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gpt2lab.data import StatelessSampler, TokenDataset
from gpt2lab.runs.settings import TrainerConfig
from gpt2lab.training.processes import num_processes, rank

Pair = tuple[Tensor, Tensor]


class Batch(NamedTuple):
    """Rows of this process, on its device.

    Attributes:
        x: token ids, int64 (B / processes, T).
        y: the token that follows each, or -100 where it does not count; the same shape.
        targets: how many of them count.
    """

    x: Tensor
    y: Tensor
    targets: int


def training_batches(dataset: Dataset[Pair], config: TrainerConfig, device: torch.device, done: int) -> Iterator[Batch]:
    """``accumulation_steps`` batches for every step after ``done``, without end."""
    items = len(dataset)  # type: ignore[arg-type]
    every = StatelessSampler(items, config.batch_size, config.seed, start_step=done * config.accumulation_steps)
    mine = (indices[rank() :: num_processes()] for indices in every)
    if isinstance(dataset, TokenDataset):  # gathers a whole batch at once, faster than a worker could send it
        return on_device(map(dataset.__getitems__, mine), device)
    # With a generator of its own, or it would draw from the one that dropout uses.
    loader = DataLoader(dataset, batch_sampler=mine, num_workers=config.num_workers, generator=torch.Generator())
    return on_device(loader, device)


def validation_batches(
    dataset: Dataset[Pair], config: TrainerConfig, device: torch.device, max_tokens: int | None
) -> Iterator[Batch]:
    """A whole data set, or (of a TokenDataset) evenly spread windows with about so many tokens."""
    if isinstance(dataset, TokenDataset):
        pairs: Iterable[Pair] = dataset.tiles(max_tokens)
    else:
        pairs = DataLoader(dataset, config.batch_size, num_workers=config.num_workers, generator=torch.Generator())
    return on_device(itertools.starmap(own_rows, pairs), device)


def own_rows(x: Tensor, y: Tensor) -> Pair:
    """This process's rows of a batch that every process has; one row without targets where there are fewer than
    processes, since all of them have to compute together."""
    mine = slice(rank(), None, num_processes())
    return (x[mine], y[mine]) if rank() < len(x) else (x[:1], torch.full_like(y[:1], -100))


def on_device(pairs: Iterable[Pair], device: torch.device) -> Iterator[Batch]:
    """Batches on the device; a GPU is sent each of them while it still computes with the one before."""
    on_gpu = device.type == "cuda"

    def send(tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if on_gpu and tensor.device.type == "cpu" else tensor
        return pinned.to(device, non_blocking=True)

    sent: deque[Batch] = deque()
    for x, y in pairs:
        targets = int((y >= 0).sum())  # counted here, because there the host would have to wait for it
        sent.append(Batch(send(x), send(y), targets))
        if len(sent) > on_gpu:
            yield sent.popleft()
    yield from sent
