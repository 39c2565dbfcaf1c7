"""Whatever is wrong with what a user gives: one sentence, exit code 2, and nothing left behind."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gpt2lab.errors import LONGEST, InputError
from gpt2lab.model import GPT2
from gpt2lab.runs.folder import checkpoints_of, read_state
from gpt2lab.runs.settings import RunSettings
from gpt2lab.training import find_checkpoint, load
from tests.cli.conftest import TINY, Command, assert_one_sentence, program

SOLID = "of the king and the queen of night. " * 30


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SOLID, encoding="utf-8")
    return path


# Texts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"a", ["too short"]),
        (b"a few letters", ["context of 16", "--context-size"]),
        (b"fine so far \xff and on" * 20, ["not UTF-8", "byte 12", "0xff"]),
        ("naïve ".encode("latin-1") * 50, ["not UTF-8", "byte 2", "0xef"]),
        (b"\xe2\x82", ["not UTF-8"]),
    ],
    ids=["empty", "one character", "shorter than the context", "a wild byte", "latin-1", "half a character"],
)
def test_a_text_that_cannot_be_learned_from_is_refused(
    command: Command, tmp_path: Path, content: bytes, words: list[str]
) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    done = command("train", "--text", tmp_path / "bad.txt", *TINY, "--out", tmp_path / "run")
    assert_one_sentence(done, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--embed-dim", 10**9], "GB of memory; make it smaller"),
        (["--embed-dim", 10**9 + 7], "num_heads=4 does not divide embed_dim=1000000007; use one of 1"),
        (["--num-layers", 10**6], "at most 1,000"),
        (["--num-layers", 10**30], "at most 1,000"),
        (["--context-size", 10**9], "a context of 1000000000 needs at least"),
        (["--threads", 10**5], "at most 1,024"),
        (["--accumulation-steps", 10**12], "at most 1,000,000"),
        (["--batch-size", 10**13], "there is not enough memory"),
        (["--tokenizer", "bpe", "--vocab-size", 10**12], "at most 1,000,000"),
        (["--seed", 10**30], "seed is"),
    ],
)
def test_absurd_sizes_are_refused_before_they_fill_the_memory(
    command: Command, rhyme_file: Path, tmp_path: Path, options: list[object], words: str
) -> None:
    given = {flag: value for of in (TINY, options) for flag, value in zip(of[::2], of[1::2], strict=True)}
    flags = [word for pair in given.items() for word in pair]
    done = command("train", "--text", rhyme_file, *flags, "--max-steps", 1, "--out", tmp_path / "run")
    assert_one_sentence(done, words)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_pipe_and_a_device_are_refused_at_once(command: Command, modern: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        assert_one_sentence(command("train", "--text", path), str(path))
        assert_one_sentence(command("train", "--config", path), str(path))
        assert_one_sentence(command("data", "pack", path, "--out", tmp_path / "s"), str(path))
        assert_one_sentence(command("judge", path, "--baseline", "a"), "no regular file, but a pipe or a device")
        assert_one_sentence(command("evaluate", modern, "--text", path), str(path))
    assert_one_sentence(command("data", "pack", "", "--out", tmp_path / "s"), "one of the inputs is empty")


def test_a_text_that_is_nowhere_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("missing.txt", "folder", "*.nothing"):
        done = command("train", "--text", tmp_path / name, *TINY, "--out", tmp_path / "run")
        assert_one_sentence(done, name)
    assert_one_sentence(command("train", "--corpus", "bible", "--out", tmp_path / "run"), "bible", "shakespeare")
    assert not (tmp_path / "run").exists()


# Settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--context-size 0", ["--context-size is 0", "1 or more"]),
        ("--context-size -3", ["-3"]),
        ("--timeout 1e308", ["--timeout is 1e+308", "at most 1e+09"]),
        ("--context-size 99999", ["99999"]),
        ("--embed-dim 30 --num-heads 4", ["num_heads=4 does not divide embed_dim=30"]),
        ("--embed-dim 12 --num-heads 4 --position rope", ["head_dim=3", "odd"]),
        ("--num-kv-heads 3", ["num_kv_heads=3 does not divide num_heads=4"]),
        ("--num-kv-heads 0", ["num_kv_heads=0"]),
        ("--window 0", ["window is 0"]),
        ("--window -5", ["window is -5"]),
        ("--window abc", ["window is 'abc'", "full"]),
        ("--window 4,,8", ["window is '4,,8'"]),
        ("--embed-dim 0", ["--embed-dim is 0"]),
        ("--num-heads 0", ["--num-heads is 0"]),
        ("--num-layers 0", ["--num-layers is 0"]),
        ("--ff-hidden-dim 0", ["--ff-hidden-dim is 0"]),
        ("--num-layers -1", ["--num-layers is -1"]),
        ("--num-layers two", ["--num-layers", "two"]),
        ("--dropout 1", ["dropout is 1"]),
        ("--rope-theta 0", ["--rope-theta is 0"]),
        ("--position sideways", ["sideways", "rope"]),
        ("--variant moderm", ["moderm", "modern"]),
        ("--max-steps 0", ["--max-steps is 0"]),
        ("--batch-size 0", ["--batch-size is 0"]),
        ("--learning-rate 0", ["--learning-rate is 0"]),
        ("--learning-rate nan", ["--learning-rate is nan"]),
        ("--betas 1.5 0.9", ["betas", "1.5"]),
        ("--validation-fraction 0.9 --test-fraction 0.2", ["0.9", "0.2"]),
        ("--validation-fraction 0.001", ["validation", "too short"]),
        ("--tokenizer bpe --vocab-size 100", ["100", "257"]),
        ("--tokenizer letters", ["char", "bpe", "gpt2"]),
        ("--device abacus", ["abacus", "--device cpu"]),
        ("--device cuda:77", ["cuda:77", "--device cpu"]),
        ("--optimizer sgd", ["sgd", "muon"]),
        ("--attention nowhere.py:Mine", ["nowhere.py", "file.py:ClassName"]),
        ("--attention Mine", ["Mine", "file.py:ClassName"]),
        ("--config nowhere.yaml", ["nowhere.yaml"]),
        ("--init-from nowhere", ["nowhere", "does not exist"]),
        ("--wandb project", ["wandb", "pip install"]),
        ("extra", ["extra"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_cannot_be_are_refused(
    command: Command, text: Path, tmp_path: Path, options: str, words: list[str]
) -> None:
    if "--wandb" in options:
        try:
            import wandb  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("wandb is installed")
    given = options.split()
    sizes = [
        part for name, value in zip(TINY[::2], TINY[1::2], strict=True) if name not in given for part in (name, value)
    ]
    done = command("train", "--text", text, *sizes, *(["--max-steps", 1] if "--max-steps" not in given else []),
                   "--out", tmp_path / "run", *given)  # fmt: skip
    assert_one_sentence(done, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["a file", "inside a file", "/proc/nowhere"])
def test_a_run_folder_that_cannot_be_made_is_refused(command: Command, text: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    out = {"a file": tmp_path / "file", "inside a file": tmp_path / "file" / "run"}.get(where, Path(where))
    done = command("train", "--text", text, *TINY, "--max-steps", 1, "--out", out)
    assert_one_sentence(done, str(out))
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.yaml", "max_steps: [1"),
        ("s.yaml", "- 1\n- 2\n"),
        ("s.yaml", "max_steps: many\n"),
        ("s.toml", "max_steps = = 1\n"),
        ("s.toml", "max_steps = 'many'\n"),
        ("s.yaml", "\x00\x01"),
    ],
)
def test_a_file_of_settings_that_cannot_be_read_is_refused_by_its_name(
    command: Command, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    done = command("train", "--config", tmp_path / name, "--out", tmp_path / "run")
    assert_one_sentence(done, name)
    assert not (tmp_path / "run").exists()


# A user's own attention

NOT_CAUSAL = """
from torch.nn.functional import scaled_dot_product_attention
from gpt2lab import ScaledDotProductAttention
class Mine(ScaledDotProductAttention):
    def forward(self, q, k, v, q_pos=None, k_pos=None):
        return scaled_dot_product_attention(q, k, v)
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import a_package_that_is_nowhere\n", ["does not import", "a_package_that_is_nowhere"]),
        ("class Mine(:\n", ["does not import", "SyntaxError"]),
        ("1 / 0\n", ["does not import", "ZeroDivisionError"]),
        ("raise SystemExit(3)\n", ["does not import", "SystemExit"]),
        ("class Mine: pass\n", ["no class 'Mine'", "ScaledDotProductAttention"]),
        ("from gpt2lab import GroupQueryAttention\nclass Other(GroupQueryAttention): pass\n", ["it has Other"]),
        (NOT_CAUSAL, ["reads the future", "position 0 reads 1"]),
    ],
    ids=["import", "syntax", "error", "exit", "not an attention", "another name", "not causal"],
)
def test_an_attention_file_that_cannot_be_used_is_refused(
    command: Command, text: Path, tmp_path: Path, source: str, words: list[str]
) -> None:
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    options = ["--variant", "original", "--max-steps", 1, "--attention", f"{tmp_path / 'mine.py'}:Mine"]
    done = command("train", "--text", text, *TINY, *options, "--out", tmp_path / "run")
    assert_one_sentence(done, *words)
    assert not (tmp_path / "run").exists()


# Run folders


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path: Path) -> None:
    path.write_bytes(b"\xff\x00 not what it was")


def strangers(path: Path) -> None:
    safetensors.torch.save_file({"stranger": torch.zeros(2)}, path)


@pytest.mark.parametrize("name", ["evaluate", "generate", "train --resume", "train --init-from"])
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("", shutil.rmtree),
        ("checkpoints", shutil.rmtree),
        ("tokenizer.json", Path.unlink),
        ("tokenizer.json", truncate),
        ("config.yaml", Path.unlink),
        ("config.yaml", scribble),
        ("model.safetensors", Path.unlink),
        ("model.safetensors", truncate),
        ("model.safetensors", strangers),
        ("config.json", truncate),
        ("state.json", truncate),
    ],
)
def test_a_missing_or_damaged_run_folder_is_refused(
    command: Command, modern: Path, text: Path, tmp_path: Path, file: str, damage: Callable[[Path], None], name: str
) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(modern, run)
    path = find_checkpoint(run) / file
    damage(path if path.exists() and file else run / file)
    reads = {"config.yaml": ("evaluate", "train --resume", "train --init-from")}
    before = sorted(tmp_path.rglob("*"))
    options = {
        "evaluate": [],
        "generate": ["--tokens", 5],
        "train --resume": ["--max-steps", 61],
        "train --init-from": ["--text", text, "--max-steps", 1, "--out", tmp_path / "new"],
    }[name]
    done = command(*name.split(), run, *options)
    if name in reads.get(file, (name,)):
        assert_one_sentence(done, str(run))
        assert sorted(tmp_path.rglob("*")) == before
    else:
        assert done.code == 0  # it does not need that file


def test_a_folder_that_is_no_run_is_refused(command: Command, tmp_path: Path) -> None:
    for name in ("evaluate", "generate"):
        assert_one_sentence(command(name, tmp_path), str(tmp_path), "holds no checkpoint")
        assert_one_sentence(command(name), "requires an argument")


def test_a_folder_above_runs_and_a_file_are_told_from_a_run(command: Command, modern: Path, tmp_path: Path) -> None:
    shutil.copytree(modern, tmp_path / "runs" / "first")
    for name in ("evaluate", "generate", "train --resume"):
        done = command(*name.split(), tmp_path / "runs")
        assert_one_sentence(done, "is not the folder of a run, but these are", str(tmp_path / "runs" / "first"))
        assert_one_sentence(command(*name.split(), modern / "tokenizer.json"), "is a file, not the folder of a run")
        assert_one_sentence(command(*name.split(), tmp_path / "none"), "does not exist")


def test_an_argument_without_its_option_is_told_where_it_may_belong(command: Command, text: Path) -> None:
    assert_one_sentence(command("train", text), str(text), f"--text {text}", "--help")


def test_going_on_with_another_optimiser_is_refused_and_changes_nothing(
    command: Command, modern: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(modern, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = command("train", "--resume", run, "--max-steps", 70, "--optimizer", "adamw")
    assert_one_sentence(done, "optimi")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--learning-rate", 0.5], "learning_rate 0.008, not 0.5"),
        (["--batch-size", 8], "batch_size 4, not 8"),
        (["--seed", 7, "--schedule", "cosine"], "schedule wsd, not cosine, seed 0, not 7"),
        (["--corpus", "shakespeare"], "corpus None, not shakespeare"),
        (["--test-fraction", 0.2], "test_fraction 0.05, not 0.2"),
        (["--text-sha256", "abc"], ", not abc"),
    ],
)
def test_going_on_with_other_options_is_refused_with_what_differs(
    command: Command, modern: Path, options: list[object], words: str
) -> None:
    done = command("train", "--resume", modern, "--max-steps", 70, *options)
    assert_one_sentence(done, f"{modern} was begun with", words, f"--init-from {modern}")


def test_going_on_may_measure_save_and_keep_otherwise(command: Command, modern: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(modern, run)
    more = read_state(find_checkpoint(run, "last")).step + 4
    options = ["--max-steps", more, "--eval-every", 2, "--checkpoint-every", 1, "--keep", 3, "--async-checkpoints"]
    done = command("train", "--resume", run, *options)
    assert done.code == 0, done.err
    assert len(checkpoints_of(run)) in (3, 4)


def test_a_text_that_has_moved_is_named_anew_and_has_to_be_the_same(
    command: Command, modern: Path, rhyme: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(modern, run)
    more = ["--resume", run, "--max-steps", read_state(find_checkpoint(run, "last")).step + 4]
    (tmp_path / "other.txt").write_text(rhyme[::-1], encoding="utf-8")
    assert_one_sentence(command("train", *more, "--text", tmp_path / "other.txt"), "not the one that was trained on")
    (tmp_path / "moved.txt").write_text(rhyme, encoding="utf-8")
    done = command("train", *more, "--text", tmp_path / "moved.txt")
    assert done.code == 0, done.err
    assert RunSettings.read(run / "config.yaml").data.text == str(tmp_path / "moved.txt")  # for the next time
    config = run / "config.yaml"
    lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("text_sha256")), encoding="utf-8")
    assert_one_sentence(command("train", *more), "config.yaml is damaged, or was edited", "put back what it was")
    (run / "manifest.json").unlink()
    assert_one_sentence(command("train", *more, "--text", tmp_path / "other.txt"), "has no text_sha256")


def test_a_folder_of_a_saved_model_is_taken_where_a_run_is(
    command: Command, modern: Path, rhyme_file: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    model, tokenizer = load(modern, checkpoint="last")
    model.save(saved)
    assert_one_sentence(command("generate", saved), "tokenizer.json is missing", "model.save(")
    model.save(saved, tokenizer)
    writing = ["--tokens", 40, "--temperature", 0, "--checkpoint", "last"]
    assert command("generate", saved, *writing).out == command("generate", modern, *writing).out
    measuring = ["--json", "--text", rhyme_file, "--checkpoint", "last"]
    ours, theirs = (json.loads(command("evaluate", run, *measuring).out)[str(run)] for run in (saved, modern))
    assert ours == theirs
    assert_one_sentence(command("evaluate", saved), "does not say on which text", "--text")
    assert json.loads(command("plan", "--model", saved, "--json").out)["parameters"] == model.num_parameters()
    assert_one_sentence(command("train", "--resume", saved), f"--init-from {saved}")
    further = ["--max-steps", 2, "--batch-size", 4, "--text", rhyme_file, "--out", tmp_path / "further"]
    assert command("train", "--init-from", saved, *further).code == 0
    with pytest.raises(InputError, match=r"the folder of a run, which gpt2lab\.load reads"):
        GPT2.load(modern)


# As a program


def test_the_program_itself_ends_with_code_2_and_one_sentence(text: Path, tmp_path: Path) -> None:
    for arguments in (
        ["train", "--text", text, "--embed-dim", 30, "--num-heads", 4, "--out", tmp_path / "run"],
        ["trian"],
    ):
        assert_one_sentence(program(*arguments, python=sys.executable))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["9" * 5000, "a/" * 3000])
def test_a_name_that_is_far_too_long_is_shortened_in_the_sentence(command: Command, name: str) -> None:
    done = command("train", "--text", name)
    assert_one_sentence(done, " … ")
    assert len(done.err) < LONGEST + 50
