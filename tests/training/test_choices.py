"""What a training uses of the machine: found by measuring, and then a part of the run."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import gpt2lab
from gpt2lab.data import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.model.attention import Mechanism
from gpt2lab.model.fused import LONGEST_TEXT, LONGEST_WINDOW
from gpt2lab.native.library import Library
from gpt2lab.runs.records import Record
from gpt2lab.runs.settings import RunSettings, TrainerConfig
from gpt2lab.training import Trainer, choices, run
from gpt2lab.training.choices import choose_threads
from gpt2lab.training.randomness import generator_states
from tests.training.conftest import MakeTrainer, tiny_model
from tests.training.mechanisms import Counting, Forgetful

SMALL = {"context_size": 8, "embed_dim": 16, "num_heads": 2, "num_layers": 1, "batch_size": 4, "max_steps": 4}


class Clock:
    """Steps take what ``seconds`` says for the threads there are, and nothing else takes any time."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now = seconds, 0.0

    def perf_counter(self) -> float:
        return self.now

    def step(self) -> None:
        self.now += self.seconds[torch.get_num_threads()]


@pytest.fixture
def four_threads() -> Iterator[None]:
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 2: 0.6, 4: 0.4}, 4),
        ({1: 1.0, 2: 0.6, 4: 0.58}, 2),  # a thirtieth is not worth two more
        ({1: 1.0, 2: 0.95, 4: 0.92}, 1),
        ({1: 0.2, 2: 0.3, 4: 2.4}, 1),  # beside others
        ({1: 1.0, 2: 1.5, 4: 0.5}, 4),
    ],
)
@pytest.mark.usefixtures("four_threads")
def test_more_threads_are_taken_only_where_they_save_a_tenth(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], chosen: int
) -> None:
    clock = Clock(seconds)
    monkeypatch.setattr(choices, "time", clock)
    found = choose_threads(clock.step)
    assert next(iter(found)) == chosen
    assert found == pytest.approx(seconds)
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_threads_are_measured_until_the_rounds_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first round, then three that agree, or five."""
    clock = Clock({1: 1.0, 2: 0.6, 4: 0.4})
    monkeypatch.setattr(choices, "time", clock)
    monkeypatch.setattr(choices, "SECONDS", 100.0)
    choose_threads(clock.step)
    assert clock.now == pytest.approx(4 * 2.0)
    clock = Clock({1: 1.0, 2: 0.6, 4: 0.4})
    monkeypatch.setattr(choices, "time", clock)

    def step() -> None:
        clock.step()
        if torch.get_num_threads() == 4 and clock.now > 6:  # from the third counted round on, others are at work
            clock.now += 2

    found = choose_threads(step)
    assert clock.now == pytest.approx(6 * 2.0 + 3 * 2)
    assert next(iter(found)) == 2


@pytest.mark.parametrize("attention", [None, Forgetful, Counting])
def test_a_rehearsed_step_leaves_no_trace(
    make_trainer: MakeTrainer, train_data: TokenDataset, attention: Mechanism | None
) -> None:
    trainer = make_trainer(tiny_model(train_data.vocab_size, dropout=0.1, attention=attention))
    before, drawn = copy.deepcopy(trainer.model.state_dict()), generator_states()
    trainer.rehearse(next(trainer.batches()))
    assert all(torch.equal(values, before[name]) for name, values in trainer.model.state_dict().items())
    assert all(torch.equal(state, drawn[name]) for name, state in generator_states().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_threads_of_a_run_are_told_and_recorded_and_it_goes_on_with_them(
    rhyme_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def recorded(run: Path) -> int | None:
        return RunSettings.read(run / "config.yaml").training.threads

    gpt2lab.train(text=str(rhyme_file), out=tmp_path / "fixed", **SMALL)
    assert recorded(tmp_path / "fixed") == int(os.environ["OMP_NUM_THREADS"])
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("gpt2lab.training.run.choose_threads", lambda step: {2: 0.03, 1: 0.05})
    torch.set_num_threads(2)
    try:
        measured = gpt2lab.train(text=str(rhyme_file), out=tmp_path / "measured", **SMALL)
        assert "threads: a step takes 30 ms with 2, 50 ms with 1" in capsys.readouterr().out
        assert recorded(measured.folder) == 2
        gpt2lab.train(text=str(rhyme_file), out=tmp_path / "asked", threads=1, **SMALL)
        assert recorded(tmp_path / "asked") == 1
        assert ", 1 thread " in capsys.readouterr().out
        gpt2lab.train(resume=measured.folder, max_steps=6)
        told = capsys.readouterr().out
        assert ", 2 threads " in told
        assert "a step takes" not in told
        assert torch.get_num_threads() == 2  # as it was
        gpt2lab.train(resume=measured.folder, max_steps=8, threads=1)
        assert recorded(measured.folder) == 1
    finally:
        torch.set_num_threads(1)


def test_several_processes_get_their_threads_from_what_starts_them_and_not_from_a_run_of_one(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, quiet: Console
) -> None:
    trainer = make_trainer(threads=2)
    assert run._threads(trainer, {}, True, quiet) == 2
    monkeypatch.setattr(run.processes, "num_processes", lambda: 2)
    assert run._threads(trainer, {}, True, quiet) is None
    assert run._threads(trainer, {"threads": 1}, True, quiet) == 1


@pytest.mark.parametrize("steps", [1, 7, 20, 60, 199, 200, 500, 2000, 10_000, 1_000_000])
def test_a_run_measures_itself_about_twenty_times_whatever_its_length(steps: int) -> None:
    every, tokens = TrainerConfig().estimates(steps, 64)
    assert min(steps, 15) <= steps // every <= 30
    assert 4_096 <= tokens <= 32_768
    assert TrainerConfig(eval_every=0, eval_tokens=5).estimates(steps, 64) == (0, 5)


def test_twenty_estimates_take_about_a_tenth_of_the_training_at_most() -> None:
    for steps in (1000, 2000, 50_000):
        every, tokens = TrainerConfig().estimates(steps, 64)
        assert steps // every * tokens / 3 <= 0.13 * steps * TrainerConfig.batch_size * 64


def test_slow_steps_are_told_once_with_what_to_do(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(out=tmp_path / "run")
    told: list[str] = []
    trainer.show = lambda progress: told.append(progress.message)
    torch.set_num_threads(2)
    try:
        for seconds in [1.0, 1.1, 5.0, 1.0, 5.0, 5.0, 4.0, 6.0, 1.0, 9.0, 9.0, 9.0]:  # one pause says nothing
            trainer._watch(seconds)
    finally:
        torch.set_num_threads(1)
    assert told == [
        "a step takes 4.0 times as long as at first: other programs are at work; Ctrl-C, and then "
        f"gpt2lab train --resume {tmp_path / 'run'} --threads 1, may be faster"
    ]


def test_a_share_of_the_peak_is_told_only_if_it_can_be_one(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was busy at the start seems slower than the training that follows."""

    def shares(peak: float) -> list[float | None]:
        trainer, records = make_trainer(max_steps=10), list[Record]()
        trainer.peak, trainer.sinks = peak, [records.append]
        trainer.train()
        return [record.get("peak_share") for record in records]

    assert all(share is not None and 0 < share <= 1 for share in shares(1.0))

    def slow_peak(device: torch.device, precision: torch.dtype) -> float:
        return 2.0

    slow_peak.cache_clear = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr("gpt2lab.training.trainer.peak_flops", slow_peak)
    assert set(shares(1.0)) == {None}


def native(trainer: Trainer) -> tuple[bool, str]:
    return trainer.native, trainer.why_native


def test_the_native_step_trains_where_it_can_and_says_why_not_elsewhere(
    make_trainer: MakeTrainer, train_data: TokenDataset
) -> None:
    def make(*, model: dict[str, Any] | None = None, **changes: object) -> Trainer:
        return make_trainer(tiny_model(train_data.vocab_size, **model or {}), **changes)

    assert native(make()) == (True, "faster")
    assert "native step (faster)" in make().describe()
    assert native(make(step="eager")) == (False, "as asked")
    assert native(make(model={"dropout": 0.1})) == (True, "faster")
    assert native(make(activation_checkpointing=True)) == (False, "activation checkpointing")
    told = "the native step cannot train here: activation checkpointing; --step auto takes the eager"
    with pytest.raises(InputError, match=told):
        make(step="native", activation_checkpointing=True)


@pytest.mark.parametrize("amx", [False, True])
def test_the_native_step_trains_in_bfloat16_where_it_is_fast_and_attends_itself(
    make_trainer: MakeTrainer, train_data: TokenDataset, monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    monkeypatch.setattr(choices, "multiplies_bfloat16", lambda: amx)

    def make(context: int = 16, **switches: Any) -> Trainer:
        model = tiny_model(train_data.vocab_size, max_seq_len=max(context, 16), **switches)
        return make_trainer(model, precision="bfloat16", start_window=start_window)

    start_window: int | None = None
    if not amx:
        assert native(make()) == (False, "in bfloat16 without AMX")
        return
    assert native(make()) == (True, "faster")
    assert native(make(LONGEST_TEXT)) == (True, "faster")
    assert native(make(LONGEST_TEXT + 1, window=LONGEST_WINDOW)) == (True, "faster")
    torchs = (False, "in bfloat16, with torch's own attention")
    assert native(make(LONGEST_TEXT + 1)) == torchs
    assert native(make(LONGEST_TEXT + 1, window=LONGEST_WINDOW + 1)) == torchs
    assert native(make(qk_norm=True)) == torchs
    start_window = LONGEST_WINDOW + 1
    assert native(make(LONGEST_TEXT + 1, window=LONGEST_WINDOW)) == torchs


def test_in_bfloat16_both_steps_train_alike(make_trainer: MakeTrainer, train_data: TokenDataset) -> None:
    """With products in bfloat16 where the processor has them, and with those of float32 elsewhere."""
    losses = {}
    for step in ("eager", "native"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choices, "multiplies_bfloat16", lambda: True)
            trainer = make_trainer(
                tiny_model(train_data.vocab_size), step=step, precision="bfloat16", max_steps=20, eval_every=0
            )
        assert trainer.native == (step == "native")
        losses[step] = trainer.train().validation_loss
        assert torch.backends.mkldnn.matmul.fp32_precision == "none"  # type: ignore[attr-defined]
    assert losses["native"] == pytest.approx(losses["eager"], abs=0.03)


def test_without_a_compiler_the_eager_step_trains(
    make_trainer: MakeTrainer, train_data: TokenDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(choices, "library", lambda name: Library(name, tmp_path / "native"))
    trainer = make_trainer(tiny_model(train_data.vocab_size))
    assert not trainer.native
    assert trainer.why_native.startswith("there is no C++ compiler 'no-such-compiler'")


def test_both_steps_train_alike_and_the_model_is_eager_again_afterwards(
    make_trainer: MakeTrainer, train_data: TokenDataset
) -> None:
    models = []
    for step in ("eager", "native"):
        trainer = make_trainer(tiny_model(train_data.vocab_size), step=step, max_steps=20)
        trainer.train()
        assert not trainer.model.native
        models.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
    torch.testing.assert_close(*models, rtol=1e-3, atol=1e-4)
    assert not torch.equal(*models)  # they round differently, so both were at work


def test_a_training_with_the_native_step_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = {**SMALL, "corpus": None, "text": tmp_path / "text.txt", "step": "native", "eval_every": 2}
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 90)
    gpt2lab.train(**options | {"max_steps": 2, "final_tokens": 4 * 8 * 4}, out=tmp_path / "half")
    straight = gpt2lab.train(**options | {"final_tokens": 4 * 8 * 4}, out=tmp_path / "straight")
    gone_on = gpt2lab.train(resume=tmp_path / "half", max_steps=4)
    assert gone_on.loss == straight.loss
    for (name, there), here in zip(straight.model.named_parameters(), gone_on.model.parameters(), strict=True):
        assert torch.equal(there, here), name
    assert RunSettings.read(tmp_path / "half" / "config.yaml").training.step == "native"


def test_what_was_recorded_before_there_was_a_native_step_goes_on_with_the_eager_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max_steps: 4\n")
    assert RunSettings.read(path).training.step == "eager"
