"""``gpt2lab.train``: the main job, called from Python."""

import datetime
import inspect
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt2lab
from gpt2lab import GroupQueryAttention, InputError, ScaledDotProductAttention, SlidingWindowAttention
from gpt2lab.errors import TrainingError
from gpt2lab.options import options_of
from gpt2lab.runs.folder import load
from gpt2lab.runs.records import Record, TrainingProgress
from gpt2lab.runs.settings import TrainOptions
from gpt2lab.training.run import Run

SIZES: dict[str, Any] = {"context_size": 16, "embed_dim": 16, "num_heads": 2, "num_layers": 1, "batch_size": 4}


class Nearest(ScaledDotProductAttention):
    """A mechanism that is defined where it is used."""

    def bias(self, q_pos: torch.Tensor, k_pos: torch.Tensor) -> torch.Tensor:
        return -(q_pos[:, None, :, None] - k_pos[:, None, None, :]).abs().float()


@pytest.fixture(scope="module")
def trained(rhyme_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Record]]:
    told: list[TrainingProgress] = []
    out = tmp_path_factory.mktemp("runs") / "run"
    run = gpt2lab.train(
        text=str(rhyme_file), position="rope", window=4, max_steps=30, out=out, progress=told.append, **SIZES
    )
    return run, [progress.record for progress in told if progress.record is not None]


def test_a_training_is_a_function_that_returns_model_tokenizer_and_exact_loss(
    trained: tuple[Run, list[Record]], rhyme: str
) -> None:
    run, records = trained
    assert (run.steps, run.stopped_by) == (30, None)
    assert (run.model.config.position, run.model.config.window) == ("rope", 4)
    assert run.tokenizer.vocab_size == len(set(rhyme)) + 1
    assert run.loss == records[-1]["validation_loss"]
    assert run.loss == pytest.approx(gpt2lab.evaluate(run.folder, checkpoint="last").loss, rel=1e-6)
    stored, _ = load(run.folder, checkpoint="last")
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, stored.state_dict()[name]), name


def test_whoever_takes_the_progress_is_told_everything_and_nothing_is_printed(
    rhyme_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[TrainingProgress] = []
    gpt2lab.train(text=str(rhyme_file), max_steps=2, out=tmp_path / "run", progress=told.append, **SIZES)
    assert [(progress.step, progress.steps) for progress in told] == [(0, 2), (1, 2), (2, 2)]
    assert "parameters" in told[0].message
    assert told[2].record is not None
    assert told[2].record["step"] == 2
    assert capfd.readouterr() == ("", "")


def test_a_run_goes_on_from_python_and_keeps_its_settings(trained: tuple[Run, list[Record]], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(trained[0].folder, tmp_path / "run"))
    longer = gpt2lab.train(resume=folder, max_steps=33, progress=lambda told: None)
    assert (longer.steps, longer.model.config) == (33, trained[0].model.config)
    for changed, words in (({"num_layers": 2}, "leave out num_layers"), ({"batch_size": 5}, "batch_size 4, not 5")):
        with pytest.raises(InputError, match=words):
            gpt2lab.train(resume=folder, max_steps=40, **changed)  # type: ignore[arg-type]


def test_a_class_that_no_file_holds_can_be_trained_and_is_passed_again_to_load(
    rhyme_file: Path, tmp_path: Path
) -> None:
    options = {"variant": "original", "max_steps": 2, "progress": lambda told: None, **SIZES}
    run = gpt2lab.train(text=str(rhyme_file), attention=Nearest, out=tmp_path / "run", **options)
    assert isinstance(run.model.blocks[0].attention.mechanism, Nearest)
    with pytest.raises(InputError, match="pass it again"):
        gpt2lab.load(run.folder)
    again, _ = gpt2lab.load(run.folder, attention=Nearest)
    assert again.config == run.model.config
    assert gpt2lab.evaluate(run.folder, attention=Nearest).loss == pytest.approx(run.loss)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 3}, "there is no option 'steps'"),
        ({"max_step": 3}, r"did you mean max_steps \(--max-steps\)\?"),
        ({"seed": 1.5}, "seed is 1.5; it has to be a whole number"),
        ({"window": "wide"}, "window is 'wide'; give a number"),
        ({"max_steps": 0}, "max_steps is 0; it has to be a whole number, 1 or more"),
    ],
)
def test_options_go_through_the_same_checks_as_flags(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        gpt2lab.train(out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_an_editor_sees_every_option_with_its_type_and_default() -> None:
    signature = inspect.signature(gpt2lab.train)
    assert {*options_of(TrainOptions), "progress"} == set(signature.parameters)
    assert signature.parameters["batch_size"].default == 16
    assert signature.parameters["batch_size"].annotation is int
    assert signature.return_annotation is Run


def test_a_run_writes_and_is_measured_by_its_folder(trained: tuple[Run, list[Record]], rhyme: str) -> None:
    folder = trained[0].folder
    shown: list[str] = []
    written = gpt2lab.generate(folder, prompt="the king", tokens=20, num_samples=2, seed=3, show=shown.append)
    assert (written.prompt, written.tokens, len(written.texts)) == ("the king", 20, 2)
    assert "".join(shown) == "the king" + written.texts[0]
    assert set("".join(written.texts)) <= set(rhyme)
    measured = gpt2lab.evaluate(folder, split="test", contexts=[8])
    assert [one.context_size for one in measured.contexts] == [8, 16]
    assert measured.loss == measured.contexts[1].loss


def test_ctrl_c_returns_what_there_is(rhyme_file: Path, tmp_path: Path) -> None:
    def stop(told: TrainingProgress) -> None:
        signal.raise_signal(signal.SIGINT)

    run = gpt2lab.train(text=str(rhyme_file), max_steps=1000, out=tmp_path / "run", progress=stop, **SIZES)
    assert run.stopped_by == signal.SIGINT
    assert (run.loss, 0 < run.steps < 1000) == (None, True)
    assert gpt2lab.train(resume=tmp_path / "run", max_steps=run.steps + 1, progress=print).steps == run.steps + 1


def test_a_second_ctrl_c_ends_at_once_and_says_where_the_last_checkpoint_is(rhyme_file: Path, tmp_path: Path) -> None:
    def stop_twice(told: TrainingProgress) -> None:
        if told.step >= first:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    options = {"text": str(rhyme_file), "max_steps": 1000, "checkpoint_every": 2, **SIZES}
    first = 0
    with pytest.raises(KeyboardInterrupt, match=r"none has no checkpoint yet"):
        gpt2lab.train(out=tmp_path / "none", progress=stop_twice, **options)
    first = 3
    with pytest.raises(KeyboardInterrupt, match=r"run/checkpoints/step-\d+; gpt2lab train --resume .*run goes on"):
        gpt2lab.train(out=tmp_path / "run", progress=stop_twice, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [({}, True), ({"variant": "modern"}, False), ({"position": "none"}, False), ({"num_kv_heads": 1}, False)],
)
def test_a_mechanism_that_is_named_alone_is_told_the_switches_that_it_runs_with(
    rhyme_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], told: bool
) -> None:
    class Either(GroupQueryAttention, SlidingWindowAttention):
        pass

    run = gpt2lab.train(
        text=str(rhyme_file), attention=Either, max_steps=1, threads=1, out=tmp_path / "run", **(SIZES | options)
    )
    note = "note: Either runs with the switches of the variant modern (position rope, num_kv_heads 2, window 4); "
    assert (note in capsys.readouterr().out) is told
    gpt2lab.train(resume=run.folder, attention=Either, max_steps=2)
    assert "note: Either" not in capsys.readouterr().out


# The run folder


def test_trainings_that_begin_in_the_same_second_have_folders_of_their_own(
    rhyme_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datetime, "datetime", Clock)
    folders = [
        gpt2lab.train(text=str(rhyme_file), max_steps=1, progress=lambda _: None, **SIZES).folder for _ in range(3)
    ]
    names = ["modern-20260102-030405", "modern-20260102-030405-2", "modern-20260102-030405-3"]
    assert folders == [Path("runs") / name for name in names]
    with pytest.raises(InputError):
        gpt2lab.train(text="nothing.txt", **SIZES)
    assert sorted(path.name for path in Path("runs").iterdir()) == names


def test_samples_are_written_though_the_picture_cannot_be_drawn(rhyme_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "loss.svg").mkdir(parents=True)  # nothing can take its name
    with pytest.warns(UserWarning, match=r"loss\.svg could not be drawn"):
        run = gpt2lab.train(text=str(rhyme_file), max_steps=1, out=tmp_path / "run", progress=lambda _: None, **SIZES)
    assert (run.folder / "samples.txt").read_text(encoding="utf-8").startswith("step 1, temperature 0.8:\n")
    assert run.loss is not None


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_run_folder_that_is_lost_is_made_again_with_all_that_going_on_needs(
    rhyme_file: Path, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "run"

    def lose(told: TrainingProgress) -> None:
        if told.record is not None and told.step == 10 and how == "moved":
            folder.rename(tmp_path / "elsewhere")
        elif told.record is not None and told.step == 10:
            shutil.rmtree(folder)

    with pytest.raises(TrainingError, match="was deleted, moved or emptied"):
        gpt2lab.train(text=str(rhyme_file), max_steps=30, out=folder, progress=lose, **SIZES)
    assert {"config.yaml", "tokenizer.json", "manifest.json", "checkpoints"} <= {path.name for path in folder.iterdir()}
    assert gpt2lab.train(resume=folder, progress=lambda _: None).steps == 30


def test_going_on_from_an_earlier_checkpoint_keeps_it_until_there_is_another(rhyme_file: Path, tmp_path: Path) -> None:
    options = {"text": str(rhyme_file), "out": tmp_path / "run", "checkpoint_every": 5, "keep": 1, "eval_every": 0}
    gpt2lab.train(**options, max_steps=10, progress=lambda _: None, validation_fraction=0.0, **SIZES)
    gpt2lab.train(resume=tmp_path / "run", max_steps=15, keep=2, progress=lambda _: None)
    weights = tmp_path / "run" / "checkpoints" / "step-00000015" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])

    def stop(told: TrainingProgress) -> None:
        if told.message:
            raise RuntimeError("the machine goes away before the first step")

    with (
        pytest.warns(UserWarning, match="an earlier checkpoint is used"),
        pytest.raises(RuntimeError, match="goes away"),
    ):
        gpt2lab.train(resume=tmp_path / "run", keep=1, progress=stop)
    assert (tmp_path / "run" / "checkpoints" / "step-00000010").exists()
    with pytest.warns(UserWarning, match="an earlier checkpoint is used"):
        assert gpt2lab.train(resume=tmp_path / "run", progress=lambda _: None).steps == 15


# Documents


@pytest.fixture(scope="module")
def on_documents(rhyme: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on short documents, which knows where they end."""
    folder = tmp_path_factory.mktemp("documents")
    lines = rhyme.splitlines()[:120]
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    gpt2lab.pack(folder / "lines.jsonl", folder / "shards", "char")
    return gpt2lab.train(
        text=str(folder / "shards"), max_steps=60, out=folder / "run", position="rope", progress=lambda _: None, **SIZES
    )


def test_a_text_of_a_run_on_documents_begins_with_one_and_can_end_with_it(on_documents: Run) -> None:
    written = gpt2lab.generate(on_documents.folder, tokens=300, seed=1)
    model, tokenizer = load(on_documents.folder)
    end = tokenizer.end_of_text
    ids = gpt2lab.generate(model, torch.tensor([[end]]), 300, temperature=0.8, seed=1)[0, 1:].tolist()
    assert (written.prompt, written.texts) == ("", [tokenizer.decode(ids)])
    assert end in ids
    ended = gpt2lab.generate(on_documents.folder, tokens=300, seed=1, stop="<|endoftext|>")
    assert ended.texts == [tokenizer.decode(ids[: ids.index(end)])]
    assert ended.tokens == ids.index(end) + 1
    assert gpt2lab.generate(on_documents.folder, prompt="the ", tokens=5).prompt == "the "


def test_each_text_ends_at_its_own_stop(trained: tuple[Run, list[Record]]) -> None:
    folder = trained[0].folder
    options: dict[str, Any] = {"prompt": "the ", "tokens": 80, "num_samples": 4, "seed": 5}
    whole = gpt2lab.generate(folder, **options)
    stopped = gpt2lab.generate(folder, stop="e ", **options)
    assert stopped.texts == [text.partition("e ")[0] for text in whole.texts]
    assert len({len(text) for text in stopped.texts}) > 1
    assert stopped.tokens <= whole.tokens == 80
    with pytest.raises(InputError, match="--stop is empty"):
        gpt2lab.generate(folder, stop="")


def test_a_model_is_not_trained_further_with_another_tokenizer(
    trained: tuple[Run, list[Record]], rhyme_file: Path, tmp_path: Path
) -> None:
    further: dict[str, Any] = {"text": str(rhyme_file), "max_steps": 1, "init_from": trained[0].folder}
    for options, words in (
        ({"tokenizer": "gpt2"}, "tokenizer, which is char"),
        ({"tokenizer": "bpe"}, "tokenizer, which is char"),
        ({"vocab_size": 300}, "vocab_size, which is"),
    ):
        with pytest.raises(InputError, match=f"--init-from keeps the tokenizer of the model; leave out {words}"):
            gpt2lab.train(out=tmp_path / "run", **options, **further)
    assert not (tmp_path / "run").exists()
    gpt2lab.train(out=tmp_path / "run", tokenizer="char", progress=lambda _: None, **further)
