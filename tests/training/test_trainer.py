"""The training loop: what it computes, that it repeats, what it tells, and what it refuses."""

import copy
import io
import json
import math
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset

from gpt2lab.data import CharDataset, CharTokenizer, StatelessSampler, TokenDataset
from gpt2lab.errors import InputError, TrainingError
from gpt2lab.evaluation import evaluate
from gpt2lab.hardware import choose_device
from gpt2lab.model import GPT2, CausalityError, ScaledDotProductAttention
from gpt2lab.runs.records import Record, TrainingProgress
from gpt2lab.training import Trainer, TrainerConfig, find_checkpoint
from gpt2lab.training.choices import choose_compile, choose_precision
from gpt2lab.training.metrics import read_metrics, tensorboard_sink
from tests.model.reference import dense_logits, randomised
from tests.training.conftest import CONTEXT, MakeTrainer, tiny_model, without_clock
from tests.training.mechanisms import Counting, Forgetful, Idle, SharedDistances


def recorded(trainer: Trainer) -> list[Record]:
    """Train, and return every record."""
    records: list[Record] = []
    trainer.sinks.append(records.append)
    trainer.train()
    return records


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    weights = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def output(console: Console) -> str:
    """What was printed."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """A user's own data set: nothing but items."""

    def __init__(self, inner: TokenDataset, length: int | None = None) -> None:
        self.inner = inner
        self.length = length or len(inner)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.inner[index]


# What a training computes


def test_a_text_that_repeats_itself_is_learned_almost_completely(quiet: Console) -> None:
    data = CharDataset("abcdefgh" * 40, block_size=CONTEXT)
    model = tiny_model(data.vocab_size)
    config = TrainerConfig(max_steps=60, batch_size=8, learning_rate=3e-2, warmup_steps=5, compile="no")
    before = Trainer(model, data, data, config, console=quiet).validation_loss()
    result = Trainer(model, data, data, config, console=quiet).train()
    assert before == pytest.approx(math.log(8), abs=0.1)
    assert result.validation_loss is not None
    assert result.validation_loss < 0.2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_goes_on_falling_on_a_text_with_words(make_trainer: MakeTrainer, optimizer: str) -> None:
    records = recorded(make_trainer(max_steps=60, optimizer=optimizer))
    losses = [record["validation_loss"] for record in records if "validation_loss" in record]
    assert losses[-1] < losses[len(losses) // 2] < losses[0] < 3.3
    assert losses[-1] < losses[0] - 0.4


@pytest.mark.parametrize(
    ("schedule", "clip", "accumulation"), [("constant", 0.0, 1), ("cosine", 0.05, 1), ("wsd", 0.3, 3)]
)
def test_a_training_is_this_plain_loop(
    make_trainer: MakeTrainer, train_data: TokenDataset, schedule: str, clip: float, accumulation: int
) -> None:
    steps, batch, warmup, rate, decay = 7, 4, 2, 1e-2, 0.1
    trainer = make_trainer(
        tiny_model(train_data.vocab_size),
        max_steps=steps,
        batch_size=batch,
        accumulation_steps=accumulation,
        warmup_steps=warmup,
        learning_rate=rate,
        weight_decay=decay,
        optimizer="adamw",
        betas=(0.9, 0.95),
        schedule=schedule,
        grad_norm_clip=clip,
        seed=5,
    )
    model = copy.deepcopy(trainer.model)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    means: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in model.parameters()}
    squares: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in model.parameters()}
    sampler = StatelessSampler(len(train_data), batch * accumulation, seed=5)
    for step in range(1, steps + 1):
        x, y = (torch.stack(part) for part in zip(*map(train_data.__getitem__, sampler.batch(step - 1)), strict=True))
        logits = model(x)
        loss = -logits.log_softmax(-1).gather(-1, y[..., None]).mean()
        model.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
        shrink = min(1.0, clip / norm.item()) if clip else 1.0
        if step < warmup and schedule != "constant":
            scale = step / warmup
        else:
            done = (step - warmup) / (steps - warmup)
            cosine = max(0.1, 0.5 + 0.5 * math.cos(math.pi * done))
            scale = {"constant": 1.0, "cosine": cosine, "wsd": 0.1 + 0.9 * min(1.0, 2 - 2 * done)}[schedule]
        with torch.no_grad():
            for p in (*matrices, *vectors):
                assert p.grad is not None
                gradient = shrink * p.grad
                means[p] = 0.9 * means[p] + 0.1 * gradient
                squares[p] = 0.95 * squares[p] + 0.05 * gradient**2
                if p.dim() > 1:
                    p.mul_(1 - rate * scale * decay)
                direction = means[p] / (1 - 0.9**step) / ((squares[p] / (1 - 0.95**step)).sqrt() + 1e-8)
                p.sub_(rate * scale * direction)
    records = recorded(trainer)
    assert records[-1]["tokens"] == steps * batch * accumulation * CONTEXT
    logits = {name: m(train_data[0][0][None]) for name, m in (("ours", trainer.model), ("plain", model))}
    torch.testing.assert_close(logits["ours"], logits["plain"], atol=2e-4, rtol=0)


def test_accumulating_two_batches_is_one_batch_of_twice_the_size(
    make_trainer: MakeTrainer, train_data: TokenDataset
) -> None:
    trainers = [
        make_trainer(tiny_model(train_data.vocab_size).double(), batch_size=batch, accumulation_steps=accumulation)
        for batch, accumulation in ((8, 1), (4, 2), (2, 4))
    ]
    records = [recorded(trainer) for trainer in trainers]
    for trainer, record in zip(trainers[1:], records[1:], strict=True):
        assert [r["loss"] for r in record] == pytest.approx([r["loss"] for r in records[0]], abs=1e-5)
        for name, weight in trainer.model.state_dict().items():
            torch.testing.assert_close(weight, trainers[0].model.state_dict()[name], atol=1e-6, rtol=0, msg=name)


def test_a_gradient_clipped_to_almost_nothing_moves_almost_nothing(
    make_trainer: MakeTrainer, train_data: TokenDataset
) -> None:
    moved = []
    for clip in (1e-12, 1.0):
        trainer = make_trainer(
            tiny_model(train_data.vocab_size), max_steps=3, optimizer="adamw", weight_decay=0.0, grad_norm_clip=clip
        )
        before = trainer.model.embeddings.token.weight.detach().clone()
        trainer.train()
        moved.append((trainer.model.embeddings.token.weight - before).abs().max().item())
    assert moved[0] < 1e-4 < moved[1]


@pytest.mark.parametrize(
    ("epochs", "batch", "accumulation", "expected"),
    [(1, 4, 1, 3), (1, 5, 1, 3), (2, 4, 1, 6), (0.5, 4, 1, 2), (1, 4, 2, 2), (1, 100, 1, 1)],
)
def test_epochs_are_passes_over_all_windows(
    train_data: TokenDataset, quiet: Console, epochs: float, batch: int, accumulation: int, expected: int
) -> None:
    data = TokenDataset(train_data.tokens[: CONTEXT + 12], CONTEXT, train_data.vocab_size)  # 12 windows
    config = TrainerConfig(max_epochs=epochs, batch_size=batch, accumulation_steps=accumulation, compile="no")
    result = Trainer(tiny_model(data.vocab_size), data, None, config, console=quiet).train()
    assert result.step == expected


def test_steps_count_if_both_steps_and_epochs_are_given(make_trainer: MakeTrainer) -> None:
    assert make_trainer(max_steps=3, max_epochs=10).train().step == 3


def test_every_window_is_read_once_in_an_epoch(quiet: Console, train_data: TokenDataset) -> None:
    class Remembering(Pairs):
        seen: list[int] = []  # noqa: RUF012

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            self.seen.append(index)
            return super().__getitem__(index)

    data = Remembering(train_data, 20)
    config = TrainerConfig(max_epochs=1, batch_size=4, compile="no")
    Trainer(tiny_model(train_data.vocab_size), data, None, config, console=quiet).train()
    assert sorted(data.seen) == list(range(20))


def test_dropout_is_on_in_training_and_off_in_validation(make_trainer: MakeTrainer, train_data: TokenDataset) -> None:
    weights = {}
    for dropout in (0.0, 0.5):
        trainer = make_trainer(tiny_model(train_data.vocab_size, dropout=dropout), max_steps=2)
        assert trainer.validation_loss() == trainer.validation_loss()
        trainer.train()
        assert not trainer.model.training
        weights[dropout] = trainer.model.embeddings.token.weight
    assert not torch.equal(weights[0.0], weights[0.5])


@pytest.mark.parametrize(("asked", "slower"), [("bfloat16", 40), ("bfloat16", 1), ("float32", 40)])
def test_bfloat16_on_a_machine_that_emulates_it_is_told_before_the_first_step(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, asked: str, slower: int
) -> None:
    speeds = {torch.float32: 4e12, torch.bfloat16: 4e12 / slower}
    monkeypatch.setattr("gpt2lab.training.trainer.peak_flops", lambda device, dtype: speeds[dtype])
    trainer = make_trainer(precision=asked, max_steps=2)
    heard: list[tuple[int, str]] = []
    trainer.progress = lambda progress: heard.append((progress.step, progress.message))
    trainer.train()
    note = "note: matrix products take 40 times as long in bfloat16 as in float32 on this machine; --precision"
    told = [message for step, message in heard if step == 0 and message.startswith(note)]
    assert len(told) == (asked == "bfloat16" and slower == 40)


def test_bfloat16_trains_about_as_well_as_float32(make_trainer: MakeTrainer, train_data: TokenDataset) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(tiny_model(train_data.vocab_size), precision=precision, max_steps=20)
        losses[precision] = trainer.train().validation_loss
        assert trainer.model.embeddings.token.weight.dtype == torch.float32
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.05)


# That it repeats


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_same_seed_gives_the_same_losses_and_weights_bit_for_bit(make_trainer: MakeTrainer, optimizer: str) -> None:
    trainers, runs = [], []
    for seed in (3, 3, 4):
        trainers.append(make_trainer(optimizer=optimizer, seed=seed))
        runs.append(without_clock(recorded(trainers[-1])))
    first, again, other = runs
    assert first == again
    assert_same_weights(trainers[0].model, trainers[1].model)
    assert [record["loss"] for record in first] != [record["loss"] for record in other]


def test_random_numbers_drawn_between_making_and_training_change_nothing(make_trainer: MakeTrainer) -> None:
    runs = []
    for draws in (0, 7):
        trainer = make_trainer()
        torch.rand(draws)
        runs.append(without_clock(recorded(trainer)))
    assert runs[0] == runs[1]


def test_the_number_of_workers_changes_nothing(train_data: TokenDataset, quiet: Console) -> None:
    runs, models = [], []
    for data, workers in ((train_data, 0), (Pairs(train_data), 0), (Pairs(train_data), 2)):
        config = TrainerConfig(max_steps=6, batch_size=4, num_workers=workers, compile="no", warmup_steps=2)
        models.append(tiny_model(train_data.vocab_size))
        runs.append(without_clock(recorded(Trainer(models[-1], data, None, config, console=quiet))))
    assert runs[0] == runs[1] == runs[2]
    assert_same_weights(models[0], models[1])
    assert_same_weights(models[0], models[2])


class Drawn(Pairs):
    """Draws which of its windows it gives."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return super().__getitem__(random.randrange(len(self)))


def test_data_and_a_mechanism_that_draw_go_on_as_if_never_interrupted(
    train_data: TokenDataset, quiet: Console, tmp_path: Path
) -> None:
    def make(run: str) -> Trainer:
        options = {"max_steps": 8, "batch_size": 4, "compile": "no", "device": "cpu", "checkpoint_every": 5, "keep": 9}
        model = tiny_model(train_data.vocab_size, attention=Forgetful, dropout=0.1)
        return Trainer(model, Drawn(train_data), None, TrainerConfig(**options, out=tmp_path / run), console=quiet)

    whole = make("whole")
    whole.train()
    random.random(), np.random.rand()
    resumed = make("resumed")
    resumed.restore(tmp_path / "whole" / "checkpoints" / "step-00000005")
    resumed.train()
    assert_same_weights(resumed.model, whole.model)


@pytest.mark.parametrize("mechanism", [SharedDistances, Counting, Idle])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_awkward_mechanisms_train_save_and_go_on(
    make_trainer: MakeTrainer, train_data: TokenDataset, tmp_path: Path, mechanism: Any, optimizer: str, quiet: Console
) -> None:
    def make(run: str) -> Trainer:
        model = tiny_model(train_data.vocab_size, position="none", attention=mechanism)
        return make_trainer(model, optimizer=optimizer, checkpoint_every=5, keep=9, out=tmp_path / run)

    whole, resumed = make("whole"), make("resumed")
    whole.train()
    resumed.restore(tmp_path / "whole" / "checkpoints" / "step-00000005")
    resumed.train()
    assert_same_weights(resumed.model, whole.model)
    told = (
        "left_over, blocks.0.attention.mechanism.matrix, blocks.1.attention.mechanism.left_over and 1 more: no gradient"
    )
    assert (told in " ".join(output(quiet).split())) == (mechanism is Idle)


def test_what_would_be_trained_in_vain_is_refused_before_the_first_step(train_data: TokenDataset) -> None:
    narrow = tiny_model(train_data.vocab_size)
    narrow.blocks[1].bfloat16()
    with pytest.raises(InputError, match=r"blocks.1.attention_norm.weight is torch.bfloat16, .*model.float\(\) first"):
        Trainer(narrow, train_data)
    Trainer(tiny_model(train_data.vocab_size).double(), train_data)


def test_a_data_set_without_a_length_is_refused_in_a_sentence(train_data: TokenDataset) -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from map(train_data.__getitem__, range(9))

    model = tiny_model(train_data.vocab_size)
    for datasets in ((Stream(), None), (train_data, Stream())):
        with pytest.raises(InputError, match=r"has no length, .*list\(dataset\) is one"):
            Trainer(model, *datasets)
    Trainer(model, list(Stream()), list(Stream()), TrainerConfig(max_steps=2, batch_size=2)).train()  # type: ignore[arg-type]


# What is a target, and what is not


class Unmarked(Pairs):
    """Windows of which some have no targets, and all others lack a few."""

    def __init__(self, inner: TokenDataset, without: set[int], length: int = 16) -> None:
        super().__init__(inner, length)
        self.without = without

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        uncounted = CONTEXT if index in self.without else index % 4
        return x, y.masked_fill(torch.arange(CONTEXT) < uncounted, -100)


ORDER = [int(index) for index in StatelessSampler(16, 16, seed=0).batch(0)]  # the windows as the first steps read them


@pytest.mark.parametrize("pieces", [False, True], ids=["all logits", "in pieces"])
@pytest.mark.parametrize("batch", [8, 4, 2, 1])
def test_a_step_is_the_mean_over_its_targets_however_they_are_split(
    train_data: TokenDataset, quiet: Console, monkeypatch: pytest.MonkeyPatch, batch: int, pieces: bool
) -> None:
    if pieces:
        monkeypatch.setattr("gpt2lab.model.loss.MANY_LOGITS", 0)
    data = Unmarked(train_data, without={*ORDER[:3], ORDER[6]})
    model = tiny_model(train_data.vocab_size)
    x, y = (torch.stack(part) for part in zip(*map(data.__getitem__, ORDER[:8]), strict=True))
    expected = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    config = TrainerConfig(
        max_steps=1,
        batch_size=batch,
        accumulation_steps=8 // batch,
        optimizer="adamw",
        grad_norm_clip=0.0,
        schedule="constant",
        compile="no",
        device="cpu",
    )
    trainer = Trainer(model, data, None, config, console=quiet)
    found: list[Tensor] = []
    trainer.optimizers[0].register_step_pre_hook(lambda *_: found.extend(p.grad.clone() for p in model.parameters()))
    (record,) = recorded(trainer)
    assert record["loss"] == pytest.approx(expected.item(), abs=1e-6)
    for gradient, wanted in zip(found, gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-5)


def test_a_step_without_any_target_changes_nothing_and_is_told(train_data: TokenDataset, quiet: Console) -> None:
    data = Unmarked(train_data, without=set(ORDER[4:8]))  # what the second step reads
    config = TrainerConfig(
        max_steps=3, batch_size=2, accumulation_steps=2, max_skips=1, checkpoint_every=0, compile="no", device="cpu"
    )
    trainer = Trainer(tiny_model(train_data.vocab_size), data, None, config, console=quiet)
    batches = trainer.batches()
    trainer.update(batches)
    before = copy.deepcopy(trainer.model)
    loss, tokens = trainer.update(batches)
    assert (loss, tokens) == (None, 4 * CONTEXT)
    assert_same_weights(trainer.model, before)

    (record,) = recorded(Trainer(tiny_model(train_data.vocab_size), data, None, config, console=quiet))
    assert record["skipped"] == 1
    assert math.isfinite(record["loss"])
    assert "up to step 3, 1 of the last 3 steps had no targets: skipped" in output(quiet)


def test_windows_without_targets_count_nothing_in_a_validation_loss(train_data: TokenDataset, quiet: Console) -> None:
    data = Unmarked(train_data, without={0, 1, 2, 3, 9})  # the whole first batch
    config = TrainerConfig(batch_size=4, compile="no", device="cpu")
    trainer = Trainer(randomised(tiny_model(train_data.vocab_size)), train_data, data, config, console=quiet)
    x, y = (torch.stack(part) for part in zip(*map(data.__getitem__, range(16)), strict=True))
    expected = F.cross_entropy(trainer.model(x).flatten(0, 1), y.flatten()).item()
    assert trainer.validation_loss() == pytest.approx(expected, abs=1e-9)
    trainer.test_dataset = Unmarked(train_data, without=set(range(16)))
    with pytest.raises(InputError, match="no targets"):
        trainer.validation_loss()


# Validation


def test_validation_loss_predicts_every_token_of_the_whole_text_once(
    make_trainer: MakeTrainer, test_data: TokenDataset
) -> None:
    model = randomised(tiny_model(test_data.vocab_size, position="rope", window=3))
    tokens = torch.from_numpy(test_data.tokens.astype("int64"))
    losses = []
    for target in range(1, len(tokens)):
        start = (target - 1) // CONTEXT * CONTEXT  # windows follow each other
        start = min(start, len(tokens) - 1 - CONTEXT)  # the last one reaches back to be as long as the others
        logits = dense_logits(model, tokens[start:target])
        losses.append(F.cross_entropy(logits[-1], tokens[target]).item())
    expected = sum(losses) / len(losses)
    assert make_trainer(model).validation_loss() == pytest.approx(expected, abs=1e-9)


def test_the_last_validation_loss_is_what_evaluate_finds(
    make_trainer: MakeTrainer, test_data: TokenDataset, rhyme: str
) -> None:
    trainer = make_trainer()
    result = trainer.train()
    found = evaluate(trainer.model, test_data.tokens, CharTokenizer(rhyme))
    assert result.validation_loss == pytest.approx(found.loss, abs=1e-6)


def test_an_estimate_is_called_one_and_the_last_measurement_is_exact(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(eval_tokens=16)
    records = [record for record in recorded(trainer) if "validation_loss" in record]
    assert [(record["step"], record["validation_is_estimate"]) for record in records] == [
        (4, True),
        (8, True),
        (12, False),
    ]
    assert records[-1]["validation_loss"] == trainer.validation_loss()
    assert trainer.validation_loss(max_tokens=16) != trainer.validation_loss()


def test_an_estimate_is_the_mean_over_evenly_spread_windows(make_trainer: MakeTrainer, test_data: TokenDataset) -> None:
    trainer = make_trainer(randomised(tiny_model(test_data.vocab_size)))
    data = TokenDataset(test_data.tokens[: 32 * CONTEXT + 1], CONTEXT, test_data.vocab_size)
    trainer.test_dataset = data
    every_third = range(0, 32 * CONTEXT, 3 * CONTEXT)  # 11 of 32 windows
    x, y = (torch.stack(part) for part in zip(*map(data.__getitem__, every_third), strict=True))
    expected = F.cross_entropy(trainer.model(x).flatten(0, 1), y.flatten()).item()
    assert trainer.validation_loss(max_tokens=10 * CONTEXT) == pytest.approx(expected, abs=1e-9)


def test_a_users_data_set_is_validated_with_every_item_counted_alike(
    test_data: TokenDataset, train_data: TokenDataset, quiet: Console
) -> None:
    model, data = randomised(tiny_model(test_data.vocab_size)), Pairs(test_data, 10)
    config = TrainerConfig(batch_size=4, num_workers=2, compile="no")  # batches of 4, 4 and 2
    found = Trainer(model, train_data, data, config, console=quiet).validation_loss()
    losses = [F.cross_entropy(model(x[None])[0], y).item() for x, y in map(data.__getitem__, range(10))]
    assert found == pytest.approx(sum(losses) / 10, abs=1e-9)


def test_an_error_while_validating_leaves_every_mode_as_it_was(
    make_trainer: MakeTrainer, train_data: TokenDataset
) -> None:
    trainer = make_trainer(tiny_model(train_data.vocab_size, dropout=0.5))
    trainer.model.train().blocks[0].eval()
    before = [module.training for module in trainer.model.modules()]

    def interrupt(*_: object) -> None:
        assert not any(module.training for module in trainer.model.modules())
        raise KeyboardInterrupt

    trainer.model.final_norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.validation_loss()
    assert [module.training for module in trainer.model.modules()] == before


def test_without_test_data_nothing_is_validated(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(validate=False)
    assert not any("validation_loss" in record for record in recorded(trainer))
    with pytest.raises(InputError, match="no test data"):
        trainer.validation_loss()


# What it tells


def test_sinks_get_a_record_every_ten_steps_at_every_validation_and_at_the_end(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=23, eval_every=8)
    records = recorded(trainer)
    assert [record["step"] for record in records] == [8, 10, 16, 20, 23]
    for record in records:
        assert record["tokens"] == record["step"] * 4 * CONTEXT
        assert {"loss", "learning_rate", "seconds", "tokens_per_second", "peak_share"} <= set(record)
        assert record["tokens_per_second"] > 0
        assert 0 < record["peak_share"] < 1
    assert [record["seconds"] for record in records] == sorted(record["seconds"] for record in records)


def test_a_recorded_loss_is_the_mean_of_the_steps_since_the_record_before(make_trainer: MakeTrainer) -> None:
    single = [r["loss"] for r in recorded(make_trainer(validate=True, eval_every=1))]
    together = [r["loss"] for r in recorded(make_trainer(eval_every=4))]  # at 4, 8, 10 and 12
    parts = [single[0:4], single[4:8], single[8:10], single[10:12]]
    assert together == pytest.approx([sum(part) / len(part) for part in parts], abs=1e-6)


def test_metrics_are_one_line_of_json_a_record(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(out=tmp_path / "run")
    records = recorded(trainer)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


def test_tensorboard_reads_back_what_was_recorded(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer()
    trainer.sinks.append(tensorboard_sink(tmp_path))
    records = recorded(trainer)
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    for name in ("loss", "validation_loss"):
        expected = [(record["step"], record[name]) for record in records if name in record]
        scalars = [(event.step, event.value) for event in accumulator.Scalars(name)]
        assert [step for step, _ in scalars] == [step for step, _ in expected]
        assert [value for _, value in scalars] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_tensorboard_shows_each_step_once_where_a_crash_lost_some(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for last, steps in ((0, (10, 20, 30)), (20, (30, 40))):  # it crashed after 30, and the last checkpoint was at 20
        write = tensorboard_sink(tmp_path, last)
        for step in steps:
            write({"step": step, "loss": step + last})
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    shown = [(event.step, event.value) for event in accumulator.Scalars("loss")]
    assert shown == [(10, 10), (20, 20), (30, 50), (40, 60)]


def test_outside_a_terminal_a_plain_line_is_printed_at_every_validation(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.train()
    assert trainer.console is not None
    printed = output(trainer.console)
    assert re.findall(r"step +(\d+)/12 · loss \d\.\d+ · val \d\.\d+", printed) == ["4", "8", "12"]
    assert "not compiled" in printed
    assert "float32" in printed
    assert "\x1b" not in printed


def test_all_that_is_told_goes_to_a_callback_if_there_is_one(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(max_steps=23, eval_every=8)
    told: list[TrainingProgress] = []
    trainer.progress, trainer.console = told.append, None
    records = recorded(trainer)
    assert [(progress.step, progress.steps) for progress in told] == [(s, 23) for s in (0, 8, 10, 16, 20, 23)]
    assert [progress.message for progress in told] == [trainer.describe(), "", "", "", "", ""]
    assert [progress.record for progress in told] == [None, *records]
    assert capsys.readouterr() == ("", "")


def test_without_a_callback_and_a_console_it_is_printed(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer()
    trainer.console = None
    trainer.train()
    assert "step     12/12 · loss" in capsys.readouterr().out


def test_nothing_is_written_without_a_run_folder(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_trainer().train()
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_one_line_says_so_and_training_goes_on(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    trainer = make_trainer(compile="yes", max_steps=2)
    assert trainer.train().step == 2
    assert trainer.console is not None
    lines = [line for line in output(trainer.console).splitlines() if "compiler" in line]
    assert len(lines) == 1
    assert "not compiled (no compiler is there" in lines[0]


# What it refuses


def test_a_vocabulary_too_small_for_the_data_is_refused_before_the_first_step(
    train_data: TokenDataset, quiet: Console
) -> None:
    needed = train_data.vocab_size
    model = tiny_model(needed - 1)
    with pytest.raises(InputError, match=rf"vocab_size={needed - 1}; .* vocab_size={needed}$"):
        Trainer(model, train_data, None, TrainerConfig(max_steps=1), console=quiet)


def test_the_vocabulary_of_the_test_data_counts_too(train_data: TokenDataset, quiet: Console) -> None:
    larger = TokenDataset(train_data.tokens, CONTEXT, 500)
    with pytest.raises(InputError, match="vocab_size=500"):
        Trainer(tiny_model(train_data.vocab_size), train_data, larger, TrainerConfig(max_steps=1), console=quiet)


def test_a_model_without_a_vocabulary_takes_the_larger_one_of_its_two_data_sets(
    train_data: TokenDataset, quiet: Console
) -> None:
    larger = TokenDataset(train_data.tokens, CONTEXT, 500)
    model = tiny_model(0)
    trainer = Trainer(model, larger, train_data, TrainerConfig(max_steps=2, compile="no"), console=quiet)
    trainer.train()
    assert model.config.vocab_size == 500
    assert model(torch.zeros(1, CONTEXT, dtype=torch.int64)).shape == (1, CONTEXT, 500)


def test_windows_longer_than_the_context_are_refused(train_data: TokenDataset, quiet: Console) -> None:
    longer = TokenDataset(train_data.tokens, CONTEXT + 1, train_data.vocab_size)
    for datasets in ((longer, None), (train_data, longer)):
        with pytest.raises(InputError, match=f"windows of {CONTEXT + 1} tokens, .*max_seq_len={CONTEXT}"):
            Trainer(tiny_model(train_data.vocab_size), *datasets, TrainerConfig(max_steps=1), console=quiet)


class ReadsTheNextToken(ScaledDotProductAttention):
    """What people write when they forget the mask."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None = None, k_pos: Tensor | None = None
    ) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def test_an_attention_that_reads_the_future_is_refused_before_the_first_step(
    make_trainer: MakeTrainer, train_data: TokenDataset, tmp_path: Path
) -> None:
    model = tiny_model(train_data.vocab_size, attention=ReadsTheNextToken)
    before = copy.deepcopy(model)
    with pytest.raises(CausalityError, match="position 0 reads 1"):
        make_trainer(model, out=tmp_path / "run")
    assert_same_weights(model, before)
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_named_with_what_to_use_instead() -> None:
    for device in ("nonsense", "cuda:99", "mps"):
        if device == "mps" and torch.backends.mps.is_available():
            continue
        with pytest.raises(InputError, match=f"device '{device}' cannot be used here .*use --device cpu"):
            choose_device(device)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": 0},
        {"max_steps": -1},
        {"max_epochs": 0},
        {"max_epochs": -1.0},
        {"batch_size": 0},
        {"accumulation_steps": 0},
        {"warmup_steps": -1},
        {"eval_every": -1},
        {"eval_tokens": 0},
        {"checkpoint_every": -1},
        {"num_workers": -1},
        {"learning_rate": 0.0},
        {"learning_rate": -1e-3},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"weight_decay": -0.1},
        {"weight_decay": math.nan},
        {"grad_norm_clip": -1.0},
        {"betas": (1.5, 0.9)},
        {"warmup_tokens": -1.0},
        {"final_tokens": -1.0},
        {"optimizer": "sgd"},
        {"schedule": "linear"},
        {"precision": "float16"},
        {"compile": "maybe"},
    ],
    ids=lambda wrong: "-".join(map(str, *wrong.items())),
)
def test_a_setting_out_of_range_is_refused_by_its_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        TrainerConfig(**wrong)


def test_an_empty_data_set_is_refused_in_words(train_data: TokenDataset, quiet: Console) -> None:
    class Empty(Pairs):
        def __len__(self) -> int:
            return 0

    with pytest.raises(InputError):
        Trainer(
            tiny_model(train_data.vocab_size), Empty(train_data), None, TrainerConfig(max_steps=1), console=quiet
        ).train()


# Choices


# Gradients that are not finite


def poison(trainer: Trainer, steps: set[int]) -> None:
    """Make the loss of these steps infinite."""
    forward = trainer.forward

    def poisoned(x: Tensor, y: Tensor, **options: Any) -> Tensor:
        factor = math.inf if trainer.state.step + 1 in steps else 1.0
        return forward(x, y, **options) * factor

    trainer.forward = poisoned


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_whose_gradients_are_not_finite_changes_nothing_and_is_counted(
    make_trainer: MakeTrainer, optimizer: str, clip: float
) -> None:
    trainer = make_trainer(optimizer=optimizer, grad_norm_clip=clip, eval_every=1)
    poison(trainer, {3, 4, 7})
    weights: list[Tensor] = []
    records: list[Record] = []
    trainer.sinks += [
        records.append,
        lambda _: weights.append(trainer.model.blocks[0].feed_forward.expand.weight.clone()),
    ]
    assert trainer.train().step == 12
    unchanged = [step for step in range(2, 13) if torch.equal(weights[step - 1], weights[step - 2])]
    assert unchanged == [3, 4, 7]
    assert [record["skipped"] for record in records] == [0, 0, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3]
    assert all(math.isfinite(record["validation_loss"]) for record in records)


def test_too_many_such_steps_in_a_row_end_the_training_and_name_the_last_good_checkpoint(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(out=tmp_path, checkpoint_every=2, max_skips=3)
    poison(trainer, {3, 4, 6, 7, 8})
    good = tmp_path / "checkpoints" / "step-00000006"
    with pytest.raises(TrainingError, match=f"last 3 steps, up to step 8, were not finite.*{re.escape(str(good))}"):
        trainer.train()
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["skipped"] == 5
    model = GPT2.load(find_checkpoint(tmp_path, "last"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_precision_that_is_asked_for_is_used_and_small_models_keep_float32_on_the_cpu() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("bfloat16", cpu, 16) == torch.bfloat16
    assert choose_precision("float32", cpu, 4096) == torch.float32
    assert choose_precision("auto", cpu, 16) == torch.float32


def test_compiling_is_chosen_for_long_runs_on_a_gpu_only_unless_it_is_asked_for() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_compile("no", cuda, 1e9)[0] is False
    assert choose_compile("auto", cuda, 1.0) == (False, "too short a run to earn it back")
    assert choose_compile("auto", cpu, 1e9)[0] is False
    assert choose_compile("yes", cpu, 1.0)[0] is (shutil.which("g++") is not None)


@pytest.mark.parametrize(("start", "own", "expected"), [(CONTEXT, 2, [CONTEXT, 2]), (1, None, [1, None])])
def test_the_window_goes_from_where_it_starts_to_the_models_own_which_is_what_is_measured(
    start: int, own: int | None, expected: list[int | None], make_trainer: MakeTrainer, train_data: TokenDataset
) -> None:
    model = tiny_model(train_data.vocab_size, position="rope", window=own)
    trainer = make_trainer(model, start_window=start, max_steps=40, eval_every=10)
    seen: dict[bool, list[int | None]] = {True: [], False: []}  # in training, and in measuring
    mechanism = trainer.model.blocks[0].attention.mechanism
    trainer.model.blocks[0].register_forward_hook(lambda block, *_: seen[block.training].append(mechanism.window))
    trainer.train()
    assert [seen[True][0], seen[True][-1]] == expected
    assert seen[True][20:] == [own] * 20
    widths = [CONTEXT if window is None else window for window in seen[True]]
    assert widths in (sorted(widths), sorted(widths, reverse=True))
    assert len(set(widths)) > 3
    assert {*seen[False]} == {own}


def test_a_window_to_start_with_is_not_set_on_an_attention_of_your_own(
    make_trainer: MakeTrainer, train_data: TokenDataset
) -> None:
    with pytest.raises(InputError, match="start_window changes the windows of built-in attention"):
        make_trainer(tiny_model(train_data.vocab_size, attention=Forgetful), start_window=4)
