"""Run folders: complete or absent, going on bit for bit, and one sentence for everything that is damaged."""

import dataclasses
import errno
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console

from gpt2lab.data import CharTokenizer, TokenDataset
from gpt2lab.errors import InputError, TrainingError
from gpt2lab.hardware import compiler_available
from gpt2lab.manifests import replace_files
from gpt2lab.model import GPT2
from gpt2lab.runs.folder import TrainingState, Which, checkpoints_of, last_healthy, read_state, verify_checkpoint
from gpt2lab.runs.records import Record
from gpt2lab.training import Trainer, TrainerConfig, find_checkpoint, load
from gpt2lab.training.batches import Batch
from gpt2lab.training.checkpoint import Snapshot, optimizer_tensors, restore_training, save_checkpoint
from gpt2lab.training.metrics import MetricsFile, exact_loss, read_metrics
from gpt2lab.training.optimizers import build_optimizers
from gpt2lab.training.surroundings import LostFolderError
from tests.training.conftest import MakeTrainer, tiny_model, without_clock
from tests.training.test_trainer import Pairs, assert_same_weights
from tests.warm import warm_python

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(not compiler_available(torch.device("cpu")), reason="no compiler is here")

STATE = TrainingState(step=1, tokens=8, seconds=1.0, validation_loss=1.0)


def save(run: Path, model: GPT2, state: TrainingState, keep: int = 1) -> None:
    save_checkpoint(run, model, Snapshot.of(model, []), state, keep)


def printed(trainer: Trainer) -> str:
    assert isinstance(trainer.console.file, io.StringIO)
    return trainer.console.file.getvalue()


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


class CrashError(Exception):
    """The machine goes away."""


def crash_after(step: int) -> Callable[[Record], None]:
    def sink(record: Record) -> None:
        if record["step"] >= step:
            raise CrashError

    return sink


def interrupt_at(step: int, number: signal.Signals = signal.SIGINT) -> Callable[[Record], None]:
    def sink(record: Record) -> None:
        if record["step"] == step:
            signal.raise_signal(number)

    return sink


def interrupt_in(trainer: Trainer, step: int, number: signal.Signals = signal.SIGINT) -> None:
    """Let a signal come while that step is computed."""
    update = trainer.update

    def interrupted(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor | None, int]:
        if trainer.state.step == step - 1:
            signal.raise_signal(number)
        return update(batches)

    trainer.update = interrupted  # type: ignore[method-assign]


# Complete or absent


def test_a_crash_at_any_moment_of_saving_leaves_complete_checkpoints_only(tmp_path: Path) -> None:
    CharTokenizer("abcd").save(tmp_path / "tokenizer.json")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [warm_python(), Path(__file__).with_name("crashing.py"), tmp_path],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=True,
    )
    problems, count = done.stdout.splitlines()[:-1], int(done.stdout.splitlines()[-1].split()[0])
    assert problems == []
    assert count > 15  # as many crashes as files are made, renamed and deleted


def test_a_checkpoint_left_half_written_is_ignored_and_cleared_by_the_next_save(tmp_path: Path) -> None:
    model = tiny_model(5)
    save(tmp_path, model, STATE)
    half = tmp_path / "checkpoints" / ".step-00000002.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of")
    assert find_checkpoint(tmp_path, "last").name == "step-00000001"
    save(tmp_path, model, dataclasses.replace(STATE, step=2, validation_loss=0.5))
    assert names(tmp_path) == ["step-00000002"]


def test_only_the_last_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    model, kept = tiny_model(5), []
    for step, loss in enumerate([3.0, 2.0, 1.0, 2.0, None, 0.5], start=1):
        save(tmp_path, model, dataclasses.replace(STATE, step=step, validation_loss=loss))
        kept.append([int(name.removeprefix("step-")) for name in names(tmp_path)])
        assert find_checkpoint(tmp_path, "last").name == f"step-{step:08d}"
    assert kept == [[1], [2], [3], [3, 4], [3, 5], [6]]


def test_without_any_validation_loss_the_best_checkpoint_is_the_last(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, tiny_model(5), dataclasses.replace(STATE, step=step, validation_loss=None))
    assert names(tmp_path) == ["step-00000003"]
    assert find_checkpoint(tmp_path, "best") == find_checkpoint(tmp_path, "last")


def test_a_training_that_diverges_does_not_lose_its_best_checkpoint(tmp_path: Path) -> None:
    for step, loss in enumerate([2.0, 1.0, None, 1e9], start=1):
        save(tmp_path, tiny_model(5), dataclasses.replace(STATE, step=step, validation_loss=loss, healthy=step < 3))
    assert find_checkpoint(tmp_path, "best").name == "step-00000002"
    assert names(tmp_path) == ["step-00000002", "step-00000004"]


def test_the_last_healthy_checkpoint_stays_and_is_the_best_where_no_loss_was_measured(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(
            tmp_path,
            tiny_model(5),
            dataclasses.replace(STATE, step=step, validation_loss=None, healthy=step < 3),
            keep=2,
        )
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    assert find_checkpoint(tmp_path, "best").name == "step-00000002"
    assert last_healthy(checkpoints_of(tmp_path)) == tmp_path / "checkpoints" / "step-00000002"


@pytest.mark.parametrize(("keep", "left"), [(1, [2, 5]), (2, [2, 4, 5]), (3, [2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_as_many_of_the_latest_checkpoints_stay_as_was_asked_for_and_the_best_one(
    tmp_path: Path, keep: int, left: list[int]
) -> None:
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 2.0], start=1):
        save(tmp_path, tiny_model(5), dataclasses.replace(STATE, step=step, validation_loss=loss), keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in left]


def test_every_single_flipped_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    save(tmp_path, GPT2(2, 1, 2, 1, 1, 1), STATE)
    (folder,) = checkpoints_of(tmp_path)
    verify_checkpoint(folder)
    draw = random.Random(0)
    for path in folder.iterdir():
        content = path.read_bytes()
        bits = range(8 * len(content))
        for bit in bits if path.name == "manifest.json" else draw.sample(bits, 200):
            with path.open("r+b") as file:  # in place, or file systems wait for the disk each time
                file.seek(bit // 8)
                file.write(bytes([content[bit // 8] ^ 1 << bit % 8]))
                file.flush()
                with pytest.raises(InputError, match=re.escape(str(folder))):
                    verify_checkpoint(folder)
                file.seek(bit // 8)
                file.write(content[bit // 8 : bit // 8 + 1])
    verify_checkpoint(folder)


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_for_the_one_before(tmp_path: Path, which: Which) -> None:
    for step, loss in enumerate([3.0, 2.0, 1.0], start=1):
        save(tmp_path, tiny_model(5), dataclasses.replace(STATE, step=step, validation_loss=loss), keep=3)
    newest = checkpoints_of(tmp_path)[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-00000003/model.safetensors is damaged.*an earlier checkpoint"):
        assert find_checkpoint(tmp_path, which).name == "step-00000002"


def test_what_comes_after_a_checkpoint_that_was_gone_back_to_is_deleted_by_the_next_save(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, tiny_model(5), dataclasses.replace(STATE, step=step, validation_loss=9.0 - step), keep=9)
    save(tmp_path, tiny_model(5), dataclasses.replace(STATE, step=3, validation_loss=8.0))  # of a run back at step 2
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_a_checkpoint_without_its_manifest_is_refused(tmp_path: Path) -> None:
    save(tmp_path, tiny_model(5), STATE)
    (checkpoint,) = checkpoints_of(tmp_path)
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"step-00000001 has lost its manifest\.json"):
        find_checkpoint(tmp_path, "last")


def test_a_checkpoint_of_a_later_gpt2lab_is_told(tmp_path: Path) -> None:
    save(tmp_path, tiny_model(5), STATE)
    (checkpoint,) = checkpoints_of(tmp_path)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(InputError, match=r"has the format 2, and this gpt2lab knows 1"):
        find_checkpoint(tmp_path, "last")


def test_when_every_checkpoint_is_damaged_the_folder_is_refused(tmp_path: Path) -> None:
    save(tmp_path, tiny_model(5), STATE)
    (checkpoints_of(tmp_path)[0] / "state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"state\.json is damaged"):
        find_checkpoint(tmp_path, "last")


# A disk that is full


@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
def test_a_checkpoint_that_cannot_be_written_is_told_and_the_training_goes_on_and_tries_again(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """While the checkpoints of steps 4 and 6 are written, by whichever thread, files may not grow to what they need."""

    def write(run: Path, model: GPT2, snapshot: Snapshot, state: TrainingState, *others: Any) -> Path:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000 if state.step in (4, 6) else soft, hard))
        try:
            return save_checkpoint(run, model, snapshot, state, *others)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr("gpt2lab.training.checkpoint.save_checkpoint", write)
    trainer = make_trainer(
        eval_every=2, eval_tokens=64, checkpoint_every=2, async_checkpoints=background, keep=9, out=tmp_path
    )
    there: dict[int, list[Path]] = {}
    trainer.sinks.append(lambda record: there.update({record["step"]: checkpoints_of(tmp_path)}))
    trainer.train()
    assert printed(trainer).count("a checkpoint could not be written") == 2
    assert [folder.name for folder in there[8]] == ["step-00000002"]  # while the disk is full, the one before stays
    assert names(tmp_path) == [f"step-{step:08d}" for step in (2, 8, 10, 12)]
    find_checkpoint(tmp_path, "last")


def test_checkpoints_come_when_they_are_due_and_at_the_end(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=7, checkpoint_every=3, eval_every=1, eval_tokens=64, out=tmp_path)
    seen: list[list[str]] = []
    trainer.sinks.append(lambda _: seen.append(names(tmp_path) if (tmp_path / "checkpoints").exists() else []))
    trainer.train()
    third, sixth, last = ([f"step-{step:08d}"] for step in (3, 6, 7))
    assert [step[-1:] for step in seen] == [[]] * 3 + [third] * 3 + [last]  # the last record comes after the last save
    assert sixth[0] in names(tmp_path)
    assert names(tmp_path)[-1] == "step-00000007"


def test_the_validation_loss_of_a_checkpoint_is_that_of_its_own_weights(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=9, eval_every=4, checkpoint_every=6, out=tmp_path)
    trainer.sinks.append(crash_after(8))
    with pytest.raises(CrashError):
        trainer.train()
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()  # of step 6, which was never measured by itself
    stored = read_state(checkpoint).validation_loss
    trainer.model.load_state_dict(GPT2.load(checkpoint).state_dict())
    assert stored is None or stored == pytest.approx(trainer.validation_loss(), abs=1e-6)


def test_a_second_training_into_the_same_folder_never_passes_off_the_first_ones_model_as_its_own(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer(max_steps=8, out=tmp_path).train()
    again = make_trainer(max_steps=4, out=tmp_path, seed=1)
    try:
        again.train()
    except InputError:
        return  # refused, as the command line does
    assert_same_weights(GPT2.load(find_checkpoint(tmp_path, "last")), again.model)
    assert_same_weights(GPT2.load(find_checkpoint(tmp_path, "best")), again.model)


def test_nothing_in_a_run_folder_is_a_pickle(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(out=tmp_path).train()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]  # which is empty
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}
    for path in files:
        content = path.read_bytes()
        assert not content.startswith((b"PK", b"\x80")), path  # a zip as torch.save writes it; a pickle
        if path.suffix == ".safetensors":
            safetensors.torch.load_file(path)
        else:
            list(map(json.loads, content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]))


# What a training comes to grief by


def test_a_training_that_explodes_keeps_names_and_starts_from_its_last_healthy_checkpoint(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=40, checkpoint_every=5, keep=1, eval_every=0, out=tmp_path, validate=False)
    update = trainer.update

    def explode(batches: Iterator[Batch]) -> tuple[torch.Tensor | None, int]:
        with torch.no_grad():
            if trainer.state.step == 12:
                trainer.model.embeddings.token.weight.mul_(1e9)
            if trainer.state.step >= 20:
                trainer.model.embeddings.token.weight.fill_(math.nan)
        return update(batches)

    trainer.update = explode  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"the last good checkpoint is .*step-00000010, and a lower rate"):
        trainer.train()
    assert names(tmp_path)[0] == "step-00000010"
    healthy = {folder.name: read_state(folder).healthy for folder in checkpoints_of(tmp_path)}
    assert healthy.pop("step-00000010")
    assert healthy
    assert not any(healthy.values())
    assert find_checkpoint(tmp_path, "best").name == "step-00000010"
    for file in (tmp_path / "metrics.jsonl", checkpoints_of(tmp_path)[-1] / "state.json"):
        assert "NaN" not in file.read_text()


@pytest.mark.parametrize("how", ["deleted", "moved", "emptied"])
def test_a_run_folder_that_is_lost_ends_the_training_with_a_sentence_and_what_can_be_saved(
    make_trainer: MakeTrainer, tmp_path: Path, how: str
) -> None:
    run = tmp_path / "run"
    trainer = make_trainer(max_steps=30, checkpoint_every=0, eval_every=0, out=run)
    run.mkdir()
    (run / "config.yaml").touch()

    def lose(record: Record) -> None:
        if record["step"] == 10 and how == "moved":
            run.rename(tmp_path / "elsewhere")
        elif record["step"] == 10:
            shutil.rmtree(run)
            if how == "emptied":
                run.mkdir()

    trainer.sinks.append(lose)
    with pytest.raises(LostFolderError, match=r"run was deleted, moved or emptied .* of step 10 is saved .*--resume"):
        trainer.train()
    assert names(run) == ["step-00000010"]
    again = make_trainer(max_steps=30, out=run)
    again.restore(find_checkpoint(run, "last"))
    assert again.train().step == 30


@pytest.mark.parametrize("how", ["cut", "longer", "deleted"])
def test_data_that_another_program_changes_ends_the_training_with_a_sentence_and_a_checkpoint(
    make_trainer: MakeTrainer, train_data: TokenDataset, tmp_path: Path, how: str
) -> None:
    ids = tmp_path / "ids.npy"
    np.save(ids, train_data.tokens)
    mapped = np.load(ids, mmap_mode="r")
    options = {"max_steps": 40, "eval_every": 0, "checkpoint_every": 10, "out": tmp_path / "run"}
    trainer = make_trainer(tiny_model(train_data.vocab_size), **options)
    trainer.train_dataset = TokenDataset(mapped, train_data.context_size, train_data.vocab_size)

    def change(record: Record) -> None:
        if record["step"] == 10 and how == "deleted":
            ids.unlink()
        elif record["step"] == 10:
            os.truncate(ids, ids.stat().st_size + (4096 if how == "longer" else -1))  # what is read is there still

    trainer.sinks.append(change)
    if how == "deleted":  # what is open is there still
        assert trainer.train().step == 40
        return
    with pytest.raises(TrainingError, match=r"ids\.npy, which is trained on, had .* bytes .*step 10 is saved: gpt2lab"):
        trainer.train()
    assert names(tmp_path / "run") == ["step-00000010"]


# Going on


def test_a_training_that_was_made_longer_measures_its_end_again(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=4, out=tmp_path)
    first = trainer.train().validation_loss
    trainer.steps = 8
    second = trainer.train().validation_loss
    assert first is not None
    assert second is not None
    assert second != first
    assert exact_loss(tmp_path) == second


def test_a_loss_of_another_step_than_the_last_checkpoint_is_no_result(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer(max_steps=4, out=tmp_path).train()
    longer = make_trainer(max_steps=40, eval_every=0, checkpoint_every=6, out=tmp_path)
    longer.restore(find_checkpoint(tmp_path, "last"))
    longer.sinks.append(crash_after(10))
    with pytest.raises(CrashError):
        longer.train()
    with pytest.raises(InputError, match="has not measured the loss at its end"):
        exact_loss(tmp_path)


def test_the_end_is_done_again_where_no_folder_knows_what_was_told(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(max_steps=4, out=tmp_path).train()
    again = make_trainer(max_steps=4)
    again.restore(find_checkpoint(tmp_path, "last"))
    assert again.train().validation_loss == exact_loss(tmp_path)


def test_without_validation_data_there_is_no_loss(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(max_steps=4, validate=False, out=tmp_path).train()
    assert exact_loss(tmp_path) is None


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("data", "step", "compiled"),
    [
        ("ours", 4, False),
        ("ours", 7, False),
        ("a user's", 5, False),
        pytest.param("ours", 7, True, marks=[pytest.mark.slow, needs_compiler]),
    ],
)
def test_an_interrupted_training_goes_on_bit_for_bit(
    make_trainer: MakeTrainer,
    train_data: TokenDataset,
    tmp_path: Path,
    optimizer: str,
    data: str,
    step: int,
    compiled: bool,
) -> None:
    def make(run: str, seed: int) -> Trainer:
        model = tiny_model(train_data.vocab_size, dropout=0.2, seed=seed)
        compile_ = "yes" if compiled else "no"
        options = {"optimizer": optimizer, "compile": compile_, "accumulation_steps": 2, "num_workers": 2}
        trainer = make_trainer(model, **options, out=tmp_path / run)
        if data == "a user's":
            trainer.train_dataset = Pairs(train_data)
        return trainer

    whole = make("whole", seed=0)
    whole.train()
    first = make("parts", seed=0)
    interrupt_in(first, step)
    assert first.train().stopped_by == signal.SIGINT
    second = make("parts", seed=9)  # other weights, which the checkpoint replaces
    torch.rand(3)
    second.restore(find_checkpoint(tmp_path / "parts", "last"))
    assert second.state.step == step
    assert second.train().step == 12
    assert_same_weights(second.model, whole.model)
    remembered, expected = (optimizer_tensors(t.model, t.optimizers) for t in (second, whole))
    assert remembered.keys() == expected.keys()
    for name, tensor in remembered.items():
        assert torch.equal(tensor, expected[name]), name
    metrics = [without_clock(read_metrics(tmp_path / run / "metrics.jsonl")) for run in ("parts", "whole")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_was_restored_does_not_change_with_the_files_that_it_came_from(
    make_trainer: MakeTrainer, train_data: TokenDataset, tmp_path: Path, optimizer: str
) -> None:
    def make(run: str, steps: int = 12) -> Trainer:
        return make_trainer(
            tiny_model(train_data.vocab_size),
            optimizer=optimizer,
            max_steps=steps,
            schedule="constant",
            out=tmp_path / run,
        )

    whole = make("whole")
    whole.train()
    make("parts", steps=5).train()
    second = make("parts")
    checkpoint = find_checkpoint(tmp_path / "parts", "last")
    second.restore(checkpoint)
    files = sorted(checkpoint.glob("*.safetensors"))
    assert len(files) == 3
    remembered = {name: tensor.clone() for name, tensor in optimizer_tensors(second.model, second.optimizers).items()}
    assert {name.split("/")[0] for name in remembered} >= {"step", "exp_avg"}
    for file in files:
        with file.open("r+b") as there:  # in place: a mapped file shows it
            there.write(b"\xff" * file.stat().st_size)
    for name, tensor in optimizer_tensors(second.model, second.optimizers).items():
        assert torch.equal(tensor, remembered[name]), name
        assert tensor.data_ptr() % 64 == 0, name
    for file in files:
        os.truncate(file, 0)  # of a mapped file, reading would end the process now
    second.train()
    assert_same_weights(second.model, whole.model)


def test_going_on_after_a_crash_drops_the_records_after_the_checkpoint_and_ends_the_same(
    make_trainer: MakeTrainer, train_data: TokenDataset, tmp_path: Path
) -> None:
    def make(run: str) -> Trainer:
        return make_trainer(tiny_model(train_data.vocab_size), checkpoint_every=5, out=tmp_path / run)

    whole = make("whole")
    whole.train()
    crashing = make("parts")
    crashing.sinks.append(crash_after(10))
    with pytest.raises(CrashError):
        crashing.train()
    metrics = tmp_path / "parts" / "metrics.jsonl"
    assert [record["step"] for record in read_metrics(metrics)] == [4, 5, 8]
    again = make("parts")
    again.restore(find_checkpoint(tmp_path / "parts", "last"))
    assert again.state.step == 5
    again.train()
    assert_same_weights(again.model, whole.model)
    assert [record["step"] for record in read_metrics(metrics)] == [4, 5, 8, 10, 12]


def test_seconds_and_tokens_go_on_where_they_were(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    first = make_trainer(out=tmp_path)
    first.sinks.append(interrupt_at(8))
    first.train()
    second = make_trainer(out=tmp_path)
    second.restore(find_checkpoint(tmp_path, "last"))
    assert second.state == read_state(find_checkpoint(tmp_path, "last"))
    second.train()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["tokens"] for record in records] == [record["step"] * 32 for record in records]
    assert [record["seconds"] for record in records] == sorted(record["seconds"] for record in records)


def test_going_on_at_the_last_step_measures_and_tells_the_end_again(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=6, eval_every=4, eval_tokens=64, out=tmp_path)
    exact = trainer.train().validation_loss
    whole = without_clock(read_metrics(tmp_path / "metrics.jsonl"))
    assert whole[-1]["validation_is_estimate"] is False
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    for left in (lines[:-1], lines[:1], lines):  # killed before it was told; with a disk that was full; after all
        (tmp_path / "metrics.jsonl").write_text("".join(left))
        if len(left) < len(lines):
            with pytest.raises(InputError, match="has not measured the loss at its end"):
                exact_loss(tmp_path)
        again = make_trainer(max_steps=6, eval_every=4, eval_tokens=64, out=tmp_path)
        again.restore(find_checkpoint(tmp_path, "last"))
        assert again.train().validation_loss == exact
        assert exact_loss(tmp_path) == exact
        found = without_clock(read_metrics(tmp_path / "metrics.jsonl"))
        assert found[-1] == pytest.approx(whole[-1]) or len(left) == 1
        assert [record["step"] for record in found] == [record["step"] for record in whole]


def test_a_finished_training_does_nothing_when_it_is_asked_again(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=3)
    trainer.train()
    before = trainer.model.embeddings.token.weight.detach().clone()
    assert trainer.train().step == 3
    assert torch.equal(trainer.model.embeddings.token.weight, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_training_after_the_step_with_a_checkpoint_and_gives_the_handlers_back(
    make_trainer: MakeTrainer, tmp_path: Path, number: signal.Signals
) -> None:
    under_nohup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as the tests themselves may be
    try:
        handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        trainer = make_trainer(out=tmp_path, checkpoint_every=0)
        trainer.sinks.append(interrupt_at(4, number))
        result = trainer.train()
        assert (result.step, result.stopped_by) == (4, number)
        assert names(tmp_path) == ["step-00000004"]
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    finally:
        signal.signal(signal.SIGHUP, under_nohup)


def test_under_nohup_a_terminal_that_closes_does_not_end_the_training(make_trainer: MakeTrainer) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        trainer = make_trainer()
        trainer.sinks.append(interrupt_at(4, signal.SIGHUP))
        assert trainer.train().stopped_by is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("wrong", [errno.EACCES, errno.EINVAL, errno.ENOTSUP])
def test_a_system_that_cannot_flush_a_folder_saves_all_the_same(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(wrong, os.strerror(wrong))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    make_trainer(out=tmp_path, max_steps=2).train()
    verify_checkpoint(tmp_path / "checkpoints" / names(tmp_path)[-1])


def test_a_second_ctrl_c_does_not_wait_for_the_step(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()

    def impatient(record: Record) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer.sinks.append(impatient)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_sigusr1_saves_and_the_training_goes_on(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(out=tmp_path, checkpoint_every=0)
    interrupt_in(trainer, 5, signal.SIGUSR1)
    assert trainer.train().stopped_by is None
    assert names(tmp_path) == ["step-00000005", "step-00000012"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_checkpoints_written_in_the_background_are_those_that_were_asked_for(
    make_trainer: MakeTrainer, tmp_path: Path, optimizer: str
) -> None:
    for run, background in (("now", False), ("later", True)):
        options = {"optimizer": optimizer, "checkpoint_every": 1, "keep": 99, "eval_every": 0}
        make_trainer(**options, async_checkpoints=background, out=tmp_path / run).train()
    assert names(tmp_path / "now") == names(tmp_path / "later") == [f"step-{step:08d}" for step in range(1, 13)]
    for folder in checkpoints_of(tmp_path / "now"):
        for file in ("model.safetensors", "optimizer.safetensors", "random.safetensors"):
            other = tmp_path / "later" / "checkpoints" / folder.name / file
            assert (folder / file).read_bytes() == other.read_bytes()


def test_a_second_training_in_the_same_folder_is_refused_while_the_first_one_lives(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    hold = f"""
from gpt2lab.files import locked_folder
from pathlib import Path
with locked_folder(Path({str(tmp_path)!r})):
    print("locked", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=re.escape(f"another process writes into {tmp_path} now")):
            make_trainer(out=tmp_path).train()
    finally:
        other.kill()  # without a chance to give the lock back
        other.wait()
    assert make_trainer(out=tmp_path).train().step == 12


# Metrics


def test_a_line_that_a_crash_cut_short_is_dropped_with_all_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(recorded(step)) for step in (1, 2, 3, 4)]
    path.write_text("\n".join(lines)[:-9], encoding="utf-8")
    assert read_metrics(path) == [recorded(step) for step in (1, 2, 3)]
    MetricsFile(path, resumed_step=2)(recorded(3, loss=9.0))
    assert read_metrics(path) == [recorded(1), recorded(2), recorded(3, loss=9.0)]


def recorded(step: int, loss: float | None = 1.0) -> Record:
    return {
        "step": step,
        "tokens": 8 * step,
        "seconds": 1.0 * step,
        "loss": loss,
        "learning_rate": 0.1,
        "tokens_per_second": 8.0,
        "peak_memory": 9,
        "skipped": 0,
    }


@pytest.mark.parametrize(
    "line", ['{"step": 2', "[1]", '{"step": "2"}', "\x00\x00", "9" * 5000, "[" * 99_999, '{"step": 2}']
)
def test_a_damaged_line_is_left_out_with_a_warning_and_nothing_that_follows_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([json.dumps(recorded(1)), line, json.dumps(recorded(3)), ""]), encoding="utf-8")
    with pytest.warns(UserWarning, match="line 2 is damaged and left out"):
        assert [record["step"] for record in read_metrics(path)] == [1, 3]
    with pytest.warns(UserWarning, match="line 2"):
        MetricsFile(path, resumed_step=3)(recorded(4, loss=None))
    assert [record["step"] for record in read_metrics(path)] == [1, 3, 4]


def test_records_of_earlier_days_with_nan_are_read_as_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(recorded(1, loss=math.nan)) + "\n", encoding="utf-8")
    assert read_metrics(path) == [recorded(1, loss=None)]


# What is wrong with a folder


@pytest.fixture(scope="module")
def finished(
    rhyme: str, train_data: TokenDataset, test_data: TokenDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("finished")
    config = TrainerConfig(max_steps=3, batch_size=2, out=run, compile="no")
    Trainer(tiny_model(train_data.vocab_size), train_data, test_data, config, console=Console(quiet=True)).train()
    CharTokenizer(rhyme).save(run / "tokenizer.json")
    return run


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path: Path) -> None:
    path.write_bytes(b"\xff\x00 not what it was")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path) -> None:
    """A file of the right kind with the wrong content."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({"stranger": torch.zeros(2)}, path)
    else:
        path.write_text("[1, 2]", encoding="utf-8")


@pytest.mark.parametrize("damage", [Path.unlink, truncate, scribble, empty, swap])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "state.json", "optimizer.safetensors", "tokenizer.json"]
)
def test_a_damaged_file_is_one_sentence_that_names_it(
    finished: Path, tmp_path: Path, damage: Callable[[Path], None], file: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    checkpoint = find_checkpoint(run, "last")
    damage(run / file if file == "tokenizer.json" else checkpoint / file)
    model = tiny_model(GPT2.load(find_checkpoint(finished)).config.vocab_size)
    optimizers = build_optimizers(model, "muon", 1e-3, 0.1, (0.9, 0.95))
    with pytest.raises(InputError) as caught:  # noqa: PT012 - one of the two reads each file
        load(run)
        restore_training(checkpoint, model, optimizers)
    message = str(caught.value)
    assert file in message or str(checkpoint) in message
    assert "\n" not in message


def test_a_folder_without_checkpoints_says_how_one_is_made(tmp_path: Path) -> None:
    sentence = re.escape(f"{tmp_path} holds no checkpoint; `gpt2lab train --out {tmp_path}`")
    with pytest.raises(InputError, match=sentence):
        load(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_a_checkpoint_of_another_architecture_is_refused(finished: Path, train_data: TokenDataset) -> None:
    model = tiny_model(train_data.vocab_size, position="rope")
    with pytest.raises(InputError, match="another architecture"):
        restore_training(find_checkpoint(finished), model, [])


CHANGES: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], object], str]] = {
    "another shape that broadcasts": (
        "model",
        lambda t: t.update({"blocks.0.attention_norm.weight": torch.ones(1)}),
        r"attention_norm.weight is \(1,\) float32, not \(16,\) float32",
    ),
    "another precision": (
        "model",
        lambda t: t.update({"final_norm.bias": torch.zeros(16, dtype=torch.float64)}),
        r"final_norm.bias is \(16,\) float64, not \(16,\) float32",
    ),
    "a tensor too much": ("model", lambda t: t.update({"more": torch.ones(2)}), "more is in only one of both"),
    "a tensor too few": ("model", lambda t: t.pop("final_norm.bias"), "final_norm.bias is in only one of both"),
    "half an optimiser": (
        "optimizer",
        lambda t: [t.pop(name) for name in sorted(t)[::2]],
        "was not written by these optimisers",
    ),
    "a moment that broadcasts": (
        "optimizer",
        lambda t: t.update({"exp_avg/final_norm.bias": torch.ones(1)}),
        r"exp_avg/final_norm.bias is \(1,\) float32, not",
    ),
    "no count of steps": (
        "optimizer",
        lambda t: t.update({"step/final_norm.bias": torch.ones(3)}),
        "step/final_norm.bias is no count of steps",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_of_other_names_shapes_and_precisions_are_refused(
    finished: Path, make_trainer: MakeTrainer, tmp_path: Path, change: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    checkpoint, (name, make, words) = find_checkpoint(run, "last"), CHANGES[change]
    path = checkpoint / f"{name}.safetensors"
    tensors = {n: tensor.clone() for n, tensor in safetensors.torch.load_file(path).items()}
    make(tensors)
    replace_files(checkpoint, {path.name: safetensors.torch.save(tensors)})
    trainer = make_trainer(tiny_model(make_trainer().model.config.vocab_size))
    with pytest.raises(InputError, match=words):
        trainer.restore(find_checkpoint(run, "last"))


def test_a_checkpoint_of_another_optimiser_is_refused(finished: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(tiny_model(make_trainer().model.config.vocab_size), optimizer="adamw")  # it was Muon
    with pytest.raises(InputError, match=r"optimi[sz]er"):
        trainer.restore(find_checkpoint(finished))


def test_a_loaded_model_is_ready_to_use_and_predicts_as_when_it_was_saved(
    make_trainer: MakeTrainer, rhyme: str, tmp_path: Path
) -> None:
    trainer = make_trainer(out=tmp_path)
    trainer.train()
    CharTokenizer(rhyme).save(tmp_path / "tokenizer.json")
    model, tokenizer = load(tmp_path, checkpoint="last")
    assert not model.training
    assert tokenizer.decode(tokenizer.encode("the king")) == "the king"
    ids = torch.from_numpy(tokenizer.encode("the king"))[None]
    assert torch.equal(model(ids), trainer.model(ids))
