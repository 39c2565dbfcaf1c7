"""From data sets to batches on the device."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from gpt2lab.data import StatelessSampler, TokenDataset
from gpt2lab.runs.settings import TrainerConfig
from gpt2lab.training.batches import on_device, training_batches
from tests.training.conftest import CONTEXT, MakeTrainer, tiny_model

CPU = torch.device("cpu")


def pairs(number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches that tell their number, with as many targets as that."""
    for n in range(number):
        yield torch.full((2, 4), n), torch.full((2, 4), n).masked_fill(torch.arange(8).view(2, 4) >= n, -100)


def test_batches_are_those_of_the_sampler_from_the_step_on(train_data: TokenDataset) -> None:
    config = TrainerConfig(batch_size=3, accumulation_steps=2, seed=5)
    order = StatelessSampler(len(train_data), 3, seed=5)
    for number, batch in enumerate(islice(training_batches(train_data, config, CPU, done=2), 6), start=4):
        x, y = (torch.stack(part) for part in zip(*map(train_data.__getitem__, order.batch(number)), strict=True))
        assert torch.equal(batch.x, x)
        assert torch.equal(batch.y, y)
        assert batch.targets == 3 * CONTEXT


def test_targets_are_counted() -> None:
    assert [batch.targets for batch in on_device(pairs(5), CPU)] == [0, 1, 2, 3, 4]


@pytest.mark.cuda
def test_a_gpu_gets_all_batches_in_order_and_the_next_one_while_it_computes() -> None:
    taken = 0

    def watched() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal taken
        for pair in pairs(5):
            taken += 1
            yield pair

    for number, batch in enumerate(on_device(watched(), torch.device("cuda"))):
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
