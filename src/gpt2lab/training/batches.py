"""From data sets to batches on the device, for each process its rows."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gpt2lab.data import StatelessSampler, TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.model.loss import NOT_COUNTED
from gpt2lab.runs.settings import TrainerConfig
from gpt2lab.training.processes import num_processes, rank
from gpt2lab.training.randomness import drawing

Pair = tuple[Tensor, Tensor]
Numbered = tuple[int, Sequence[int]]  # a batch's number, and the indices of its items


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


def training_batches(
    dataset: Dataset[Pair], config: TrainerConfig, device: torch.device, done: int, vocab_size: int
) -> Iterator[Batch]:
    """``accumulation_steps`` batches for every step after ``done``, without end.

    What the data set draws, with worker processes and without, follows from the seed, the process and the batch alone.
    """
    items, first = len(dataset), done * config.accumulation_steps  # type: ignore[arg-type]
    every = StatelessSampler(items, config.batch_size, config.seed, start_step=first)
    mine = ((n, indices[rank() :: num_processes()]) for n, indices in enumerate(every, first))
    return on_device(_pairs(_Drawn(dataset, config.seed, 1 + rank()), mine, config.num_workers), device, vocab_size)


def validation_batches(
    dataset: Dataset[Pair], config: TrainerConfig, device: torch.device, max_tokens: int | None, vocab_size: int
) -> Iterator[Batch]:
    """A whole data set, or (of a TokenDataset) evenly spread windows with about so many tokens; what the data set draws
    is the same every time."""
    if isinstance(dataset, TokenDataset):
        pairs: Iterable[Pair] = dataset.tiles(max_tokens)
    else:
        indices, size = range(len(dataset)), config.batch_size  # type: ignore[arg-type]
        batches = (indices[start : start + size] for start in range(0, len(indices), size))
        pairs = _pairs(_Drawn(dataset, config.seed, 0), enumerate(batches), config.num_workers)
    return on_device(itertools.starmap(own_rows, pairs), device, vocab_size)


def _pairs(dataset: "_Drawn", batches: Iterable[Numbered], num_workers: int) -> Iterator[Pair]:
    if isinstance(dataset.dataset, TokenDataset):  # gathers a whole batch at once, faster than a worker could send it
        yield from map(dataset.__getitems__, batches)
        return
    # With a generator of its own, or it would draw from the one that dropout uses.
    loader = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_stacked,
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    for pair in loader:
        if isinstance(pair, InputError):  # a worker's own errors arrive with all that it was doing
            raise pair
        yield pair


@dataclass
class _Drawn(Dataset[Pair]):
    """Batches of a data set; what it draws for one of them follows from seed, stream and the number of the batch."""

    dataset: Dataset[Pair]
    seed: int
    stream: int

    def __getitems__(self, batch: Numbered) -> Any:
        number, indices = batch
        gather = getattr(self.dataset, "__getitems__", None)
        draws = getattr(type(self.dataset), "__getitems__", None) is not TokenDataset.__getitems__
        with drawing(self.seed, self.stream, number) if draws else nullcontext():  # it takes a fifth of a millisecond
            return gather(indices) if gather is not None else [self.dataset[index] for index in indices]


def _stacked(items: Any) -> Pair | InputError:
    """A batch of items, or what is wrong with them."""
    if isinstance(items, tuple):  # a batch already, as a TokenDataset gathers it
        return items
    pairs = [tuple(map(torch.as_tensor, item)) for item in items]
    if any(len(pair) != 2 for pair in pairs):
        return InputError("every item of a data set has to be a pair (x, y): token ids, and the id that follows each")
    shapes = {tuple(tensor.shape) for pair in pairs for tensor in pair}
    if len(shapes) > 1 or len(shapes.pop()) != 1:
        return InputError(
            "the items of the data set differ in length: every x and every y has to be a tensor (T,) with the same T; "
            "fill up short ones, and give -100 as the target of what was filled up"
        )
    x, y = (torch.stack(part) for part in zip(*pairs, strict=True))
    return x, y


def own_rows(x: Tensor, y: Tensor) -> Pair:
    """This process's rows of a batch that every process has; one row without targets where there are fewer than
    processes, since all of them have to compute together."""
    mine = slice(rank(), None, num_processes())
    return (x[mine], y[mine]) if rank() < len(x) else (x[:1], torch.full_like(y[:1], NOT_COUNTED))


def on_device(pairs: Iterable[Pair], device: torch.device, vocab_size: int) -> Iterator[Batch]:
    """Batches on the device; a GPU is sent each of them while it still computes with the one before.

    Raises:
        InputError: something in them is no id of the vocabulary.
    """
    on_gpu = device.type == "cuda"

    def send(tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if on_gpu and tensor.device.type == "cpu" else tensor
        return pinned.to(device, non_blocking=True)

    sent: deque[Batch] = deque()
    for pair in pairs:
        x, y = map(_whole, pair)
        sent.append(Batch(send(x), send(y), _counted(x, y, vocab_size)))
        if len(sent) > on_gpu:
            yield sent.popleft()
    yield from sent


def _whole(ids: Tensor) -> Tensor:
    if ids.is_floating_point() or ids.is_complex():
        raise InputError(f"the data set gives {ids.dtype}; token ids and targets have to be whole numbers, int64")
    return ids.long()


def _counted(x: Tensor, y: Tensor, vocab_size: int) -> int:
    """How many targets count: found here, because on the device the host would have to wait for it."""
    counted = y != NOT_COUNTED
    for what, ids in (("token", x), ("target", y.where(counted, 0))):
        least, most = map(int, ids.aminmax())
        if least < 0 or most >= vocab_size:
            raise InputError(
                f"the data set has the {what} {least if least < 0 else most}, but the model's ids are 0 to "
                f"{vocab_size - 1}" + (f"; a target that does not count is {NOT_COUNTED}" if what == "target" else "")
            )
    return int(counted.sum())
