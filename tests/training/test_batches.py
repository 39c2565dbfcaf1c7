"""From data sets to batches on the device."""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from gpt2lab.data import StatelessSampler, TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.runs.settings import TrainerConfig
from gpt2lab.training import batches
from gpt2lab.training.batches import on_device, training_batches, validation_batches
from tests.training.conftest import CONTEXT, MakeTrainer, tiny_model

CPU = torch.device("cpu")


def pairs(number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches that tell their number, with as many targets as that."""
    for n in range(number):
        yield torch.full((2, 4), n), torch.full((2, 4), n).masked_fill(torch.arange(8).view(2, 4) >= n, -100)


def test_batches_are_those_of_the_sampler_from_the_step_on(train_data: TokenDataset) -> None:
    config = TrainerConfig(batch_size=3, accumulation_steps=2, seed=5)
    order = StatelessSampler(len(train_data), 3, seed=5)
    found = training_batches(train_data, config, CPU, 2, train_data.vocab_size)
    for number, batch in enumerate(islice(found, 6), start=4):
        x, y = (torch.stack(part) for part in zip(*map(train_data.__getitem__, order.batch(number)), strict=True))
        assert torch.equal(batch.x, x)
        assert torch.equal(batch.y, y)
        assert batch.targets == 3 * CONTEXT


def test_targets_are_counted() -> None:
    assert [batch.targets for batch in on_device(pairs(5), CPU, 5)] == [0, 1, 2, 3, 4]


@pytest.mark.cuda
def test_a_gpu_gets_all_batches_in_order_and_the_next_one_while_it_computes() -> None:
    taken = 0

    def watched() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal taken
        for pair in pairs(5):
            taken += 1
            yield pair

    for number, batch in enumerate(on_device(watched(), torch.device("cuda"), 5)):
        assert taken == min(5, number + 2)
        assert batch.x.is_cuda
        assert batch.x.eq(number).all()
        assert batch.targets == number


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_gpu_is_never_waited_for_in_a_step(
    make_trainer: MakeTrainer, train_data: TokenDataset, optimizer: str
) -> None:
    model = tiny_model(train_data.vocab_size, position="rope", dropout=0.1)
    trainer = make_trainer(model, device="cuda", optimizer=optimizer, accumulation_steps=2)
    batches = trainer.batches()
    trainer.update(batches)  # makes what the optimisers remember
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [trainer.update(batches)[0] for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(loss is not None and loss.isfinite() for loss in losses)


# Data sets that draw, and data sets that are wrong


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Every item is drawn, whatever its index; each generator makes a third of it."""

    vocab_size = 1000

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        drawn = torch.tensor([int(torch.randint(1000, ())), int(np.random.randint(1000)), random.randrange(1000)])
        return drawn, drawn


class CropsAtOnce(TokenDataset):
    """A TokenDataset that draws."""

    def __getitems__(self, indices: Any) -> tuple[Tensor, Tensor]:
        x, y = default_collate([Crops()[index] for index in indices])
        return x, y


def crops(number: int, *, done: int = 0, seed: int = 0, workers: int = 0, at_once: bool = False) -> list[Tensor]:
    config = TrainerConfig(batch_size=2, accumulation_steps=2, seed=seed, num_workers=workers)
    data = CropsAtOnce(np.zeros(64, np.uint16), 3, 1000) if at_once else Crops()
    return [batch.x for batch in islice(training_batches(data, config, CPU, done, 1000), number)]


def same(some: list[Tensor], others: list[Tensor]) -> list[bool]:
    """For each generator, whether all that it drew is equal."""
    return (torch.stack(some) == torch.stack(others)).flatten(0, 1).all(0).tolist()  # type: ignore[no-any-return]


def states() -> list[object]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[union-attr]


@pytest.mark.parametrize(("workers", "at_once"), [(0, False), (0, True), (2, False)])
def test_what_a_data_set_draws_follows_from_seed_and_step_alone(workers: int, at_once: bool) -> None:
    whole = crops(8, workers=workers, at_once=at_once)
    torch.rand(3), np.random.rand(3), random.random()  # what is drawn elsewhere does not matter
    assert same(crops(8), whole) == [True] * 3
    assert same(crops(4, done=2, workers=workers, at_once=at_once), whole[4:]) == [True] * 3
    assert same(crops(8, seed=1, workers=workers, at_once=at_once), whole) == [False] * 3
    for drawn in torch.stack(whole).flatten(0, 1).T:
        assert len(drawn.unique()) > 12  # of 16: no two batches, and no two workers, draw alike


def test_drawing_for_a_batch_changes_nothing_that_is_drawn_elsewhere() -> None:
    before = states()
    crops(3)
    assert states() == before


def test_every_process_draws_for_itself_and_all_measure_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainerConfig(batch_size=2)

    def found(process: int, of: int) -> tuple[list[Tensor], list[Tensor]]:
        monkeypatch.setattr(batches, "num_processes", lambda: of)
        monkeypatch.setattr(batches, "rank", lambda: process)
        trained = islice(training_batches(Crops(), config, CPU, 0, 1000), 4)
        return [batch.x for batch in trained], [
            batch.x for batch in validation_batches(Crops(), config, CPU, None, 1000)
        ]

    alone, (first, first_measured), (second, second_measured) = found(0, 1)[1], found(0, 2), found(1, 2)
    assert same(first, second) == [False] * 3
    both = [torch.cat(rows).tolist() for rows in zip(first_measured, second_measured, strict=True)]
    assert both == [rows.tolist() for rows in alone]


class Given(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


ROW = torch.arange(4)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([(ROW, ROW), (ROW[:3], ROW[:3])], "differ in length"),
        ([(ROW, ROW[:3])] * 2, "differ in length"),
        ([(ROW, ROW, ROW)] * 2, r"pair \(x, y\)"),
        ([(ROW, ROW - 1)] * 2, "has the target -1, but the model's ids are 0 to 4; .* does not count is -100"),
        ([(ROW, ROW + 2)] * 2, "has the target 5"),
        ([(ROW + 2, ROW)] * 2, "has the token 5, but the model's ids are 0 to 4$"),
        ([(ROW - 100, ROW)] * 2, "has the token -100"),
        ([(ROW, ROW / 2)] * 2, "whole numbers"),
    ],
    ids=["lengths", "y", "three", "-1", "5", "token", "-100", "floats"],
)
def test_items_that_cannot_be_learned_from_are_one_sentence(items: list[object], words: str) -> None:
    for workers in [0, 1] if words == "differ in length" else [0]:
        with pytest.raises(InputError, match=words) as found:
            next(training_batches(Given(*items), TrainerConfig(batch_size=2, num_workers=workers), CPU, 0, 5))
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("kind", [np.int32, np.uint16, np.int64, list])
def test_whole_numbers_of_any_kind_are_ids(kind: Any) -> None:
    row = [1, 2, 3] if kind is list else np.array([1, 2, 3], kind)
    batch = next(training_batches(Given((row, row)), TrainerConfig(batch_size=1), CPU, 0, 5))
    assert (batch.x.tolist(), batch.y.dtype, batch.targets) == ([[1, 2, 3]], torch.int64, 3)
