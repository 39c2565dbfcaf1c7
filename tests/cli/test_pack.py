"""``gpt2lab data pack``, and runs on the shards that it leaves or that come from elsewhere."""

import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import yaml
from pyarrow import parquet

from gpt2lab.data import BPETokenizer, CharTokenizer, load_tokenizer
from gpt2lab.training import load
from gpt2lab.training.metrics import read_metrics
from tests.cli.conftest import TINY, Command, Finished, assert_one_sentence, environment, program
from tests.cli.test_train import same, settings_of
from tests.conftest import LONG
from tests.data.test_pack import files_in
from tests.data.test_shards import by_hand, made_of
from tests.warm import warm_python


@pytest.fixture
def documents(rhyme: str, tmp_path: Path) -> list[Path]:
    """Two thirds of a megabyte in three kinds of files."""
    lines = rhyme.splitlines()
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(lines * 20), encoding="utf-8")
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines * 20), encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": lines * 10}), folder / "c.parquet")
    return sorted(path for path in folder.iterdir() if path.name != ".lock")


def test_documents_are_packed_and_what_is_printed_trains_measures_and_goes_on(
    documents: list[Path], tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "my shards"
    options = ["--out", out, "--tokenizer", "char", "--shard-tokens", 100_000]
    done = program("data", "pack", *documents, *options, python=sys.executable)
    assert (done.code, done.err) == (0, "")
    tokens = sum(len(path.read_bytes()) - 1024 for path in out.glob("*.bin")) // 2
    shards = -(-tokens // 100_000)
    told = f"done: {tokens:,} tokens in {shards} shards · train on them with: gpt2lab "
    assert done.out.startswith(told)
    small_parts = ["--validation-fraction", 0.01, "--test-fraction", 0.01]
    train = shlex.split(done.out.removeprefix(told))
    run = tmp_path / "run"
    done = command(*train, *TINY, "--max-steps", 20, *small_parts, "--out", run)
    assert done.code == 0, done.err
    assert f"my shards: {tokens:,} tokens in {shards} shards, in order: train" in done.out
    assert load(run)[1].fingerprint() == load_tokenizer(out / "tokenizer.json").fingerprint()
    done = command("train", "--resume", run, "--max-steps", 25)
    assert done.code == 0, done.err
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 25
    shutil.move(out, tmp_path / "moved")
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    settings["text"] = str(tmp_path / "moved")
    (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (run / "manifest.json").unlink()
    done = command("evaluate", run, "--split", "test", "--json", "--contexts", 16)
    assert done.code == 0, done.err
    scores = json.loads(done.out)[str(run)]
    assert scores["tokens"] == tokens - int(tokens * 0.99) - 1
    assert command("generate", run, "--tokens", 5).code == 0


def test_the_files_do_not_depend_on_the_number_of_processes(
    documents: list[Path], tmp_path: Path, command: Command
) -> None:
    options = ["--tokenizer", "bpe", "--vocab-size", 300, "--shard-tokens", 70_000]
    for processes in (1, 3):
        done = command(
            "data", "pack", documents[0].parent, *options, "--processes", processes, "--out", tmp_path / f"{processes}"
        )
        assert done.code == 0, done.err
    assert files_in(tmp_path / "1") == files_in(tmp_path / "3")


STOPPED = """
import os, signal, sys
from gpt2lab.cli import main

if __name__ == "__main__":  # and not in the processes that encode
    renamed = 0

    def hook(event, arguments):  # a file gets its name when it is complete
        global renamed
        if event == "os.rename":
            renamed += 1
            if renamed == int(sys.argv[1]):
                os.killpg(0, signal.SIGINT) if sys.argv[2] == "SIGINT" else os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    sys.exit(main(sys.argv[3:]))
"""


def stopped_packing(folder: Path, python: str, moment: int, number: signal.Signals, *arguments: object) -> Finished:
    """Let a packing be stopped just before it gives that many-th file its name: by kill -9, or as a terminal does with
    Ctrl-C, for all its processes."""
    program = folder / "stopped.py"
    program.write_text(STOPPED, encoding="utf-8")
    done = subprocess.run(
        [python, program, str(moment), number.name, "data", "pack", *map(str, arguments)],
        capture_output=True,  # ends only when nobody holds its output any more: no worker is left
        text=True,
        env=environment(),
        timeout=LONG,
        start_new_session=True,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_packing_that_is_killed_again_and_again_ends_with_the_same_files(
    documents: list[Path], tmp_path: Path, command: Command
) -> None:
    moments = random.Random(0)
    options = [*documents, "--shard-tokens", 2_000, "--processes", 2, "--out"]
    killed = tmp_path / "killed"
    seen = 0
    for _ in range(2):
        done = stopped_packing(tmp_path, warm_python(), moments.randint(8, 40), signal.SIGKILL, *options, killed)
        assert done.code == -signal.SIGKILL, done.err
        assert len(list(killed.glob("*.bin"))) > seen
        seen = len(list(killed.glob("*.bin")))
    assert command("data", "pack", *options, killed).code == 0
    assert command("data", "pack", *options, tmp_path / "whole").code == 0
    assert files_in(killed) == files_in(tmp_path / "whole")
    assert len(list(killed.glob("*.bin"))) > seen  # it was not through when it was killed the last time


def test_ctrl_c_says_that_the_same_command_goes_on(documents: list[Path], tmp_path: Path) -> None:
    options = [*documents, "--shard-tokens", 2_000, "--out", tmp_path / "out"]
    done = stopped_packing(
        tmp_path, sys.executable, 8, signal.SIGINT, *options
    )  # as a terminal does: all its processes get it
    assert (done.code, done.err) == (130, "")
    assert done.out == "stopped; complete shards are kept, and the same command goes on\n"
    assert list((tmp_path / "out").glob("*.bin"))


def test_training_on_shards_is_training_on_the_text_bit_for_bit(
    command: Command, rhyme: str, rhyme_file: Path, tmp_path: Path
) -> None:
    letters = CharTokenizer(rhyme)
    (packed := tmp_path / "packed").mkdir()
    made_of(packed, letters.encode(rhyme), [1, 4_000, 4_007, 9_000])
    letters.save(packed / "tokenizer.json")
    scores = []
    for name, text in {"text": rhyme_file, "shards": packed}.items():
        done = command("train", "--text", text, *TINY, "--max-steps", 12, "--eval-every", 6, "--out", tmp_path / name)
        assert done.code == 0, done.err
        (scored,) = json.loads(command("evaluate", tmp_path / name, "--split", "test", "--json").out).values()
        scores.append({key: value for key, value in scored.items() if key != "text"})
    assert same(tmp_path / "text", tmp_path / "shards")
    assert scores[0] == scores[1]  # bits per byte, too
    other = command("evaluate", tmp_path / "text", "--text", packed / "003.bin", "--json", "--contexts", 16)
    assert json.loads(other.out)[str(tmp_path / "text")]["tokens"] == 4_992


@pytest.mark.slow
def test_shards_named_as_llm_cs_are_the_parts_and_need_no_file_beside_them(command: Command, tmp_path: Path) -> None:
    ids = BPETokenizer.gpt2().encode("the king and the queen of night " * 30)
    for name, part in {
        "fineweb_train_000001": ids,
        "fineweb_train_000002": ids[:50],
        "fineweb_val_000000": ids[:40],
    }.items():
        (tmp_path / f"{name}.bin").write_bytes(by_hand(part.tolist()))
    run = tmp_path / "run"
    sizes = "--context-size 4 --embed-dim 16 --num-heads 2 --num-layers 1 --batch-size 4 --compile no".split()
    done = command("train", "--text", tmp_path, "--tokenizer", "gpt2", *sizes, "--max-steps", 2, "--out", run)
    assert done.code == 0, done.err
    assert (
        f"{len(ids) + 90:,} tokens in 3 shards, in order: train {len(ids) + 50:,} (87%) · validation 40 (13%)"
        in done.out
    )
    assert load(run)[0].config.vocab_size == 50257
    scores = json.loads(command("evaluate", run, "--json", "--contexts", 4).out)[str(run)]
    assert scores["tokens"] == 39
    assert_one_sentence(command("evaluate", run, "--split", "test"), "without a test part")


# Bad input


@pytest.fixture
def shards(rhyme: str, tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    made_of(folder, CharTokenizer(rhyme).encode(rhyme), [5_000, 10_000])
    CharTokenizer(rhyme).save(folder / "tokenizer.json")
    return folder


def test_shards_that_cannot_be_trained_on_are_refused(
    command: Command, shards: Path, rhyme: str, tmp_path: Path
) -> None:
    right = (shards / "001.bin").read_bytes()

    def refused(*words: str, options: tuple[object, ...] = ()) -> None:
        done = command("train", "--text", shards, *TINY, "--max-steps", 1, "--out", tmp_path / "run", *options)
        assert_one_sentence(done, *words)
        assert not (tmp_path / "run").exists()

    for content, words in (
        (right[:-100], ["001.bin", "by its header, which says 5,000 tokens", "the last 100 are missing"]),
        (right[:500], ["001.bin", "500 bytes", "1,024"]),
        (right[1024:], ["001.bin", "not 20240520", "nanoGPT"]),
        (by_hand([1], version=3), ["001.bin", "version 3"]),
        (by_hand([1, 2, 5_000]), ["token 2 of", "001.bin is 5000", f"only {len(set(rhyme)) + 1} ids"]),
    ):
        (shards / "001.bin").write_bytes(content)
        refused(*words)
    (shards / "001.bin").write_bytes(right)
    refused("another tokenizer", "tokenizer.json", options=("--tokenizer", "gpt2"))
    refused("shakespeare", "choose one", options=("--corpus", "shakespeare"))
    (shards / "notes.txt").write_text("notes")
    refused("token shards (000.bin) and other files (notes.txt)")
    (shards / "notes.txt").unlink()
    (shards / "tokenizer.json").unlink()
    refused("no tokenizer.json is beside the shards", "--tokenizer gpt2")
    for path in shards.glob("*.bin"):
        path.unlink()
    refused("no *.txt or *.bin file is in the folder")


def test_an_id_outside_the_vocabulary_deep_in_a_shard_is_told_when_training_comes_to_it(
    command: Command, shards: Path, tmp_path: Path
) -> None:
    ids = np.zeros(6_000, np.int64)
    ids[4_500:] = 500
    (shards / "000.bin").write_bytes(by_hand(ids.tolist()))
    done = command("train", "--text", shards, *TINY, "--max-steps", 50, "--out", tmp_path / "run")
    assert_one_sentence(done, "of", "000.bin is 500", "use the one that the shards were made with")


def test_shards_that_changed_since_the_training_are_not_taken_for_the_same(
    command: Command, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert command("train", "--text", shards / "*.bin", *TINY, "--max-steps", 2, "--out", run).code == 0
    assert str(settings_of(run)["text"]).endswith("shards/*.bin")
    content = bytearray((shards / "002.bin").read_bytes())
    content[-2:] = content[-4:-2]
    (shards / "002.bin").write_bytes(content)
    for arguments in (["evaluate", run], ["train", "--resume", run, "--max-steps", 4]):
        assert_one_sentence(command(*arguments), "not the one that was trained on")


def test_a_model_is_not_trained_further_on_shards_of_another_tokenizer(
    command: Command, original: Path, rhyme: str, tmp_path: Path
) -> None:
    made_of(tmp_path, np.arange(12).repeat(100), [600])
    CharTokenizer(rhyme + "#").save(tmp_path / "tokenizer.json")
    done = command("train", "--init-from", original, "--text", tmp_path, "--max-steps", 1, "--out", tmp_path / "run")
    assert_one_sentence(done, "another tokenizer", "data pack --tokenizer")
    assert_one_sentence(command("evaluate", original, "--text", tmp_path), "another tokenizer")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["none.txt"], ["none.txt"]),
        ([], ["INPUTS"]),
        (["{text}", "--shard-tokens", 0], ["--shard-tokens is 0", "at least 1 and at most 2,147,483,647"]),
        (["{text}", "--shard-tokens", 3_000_000_000], ["2,147,483,647"]),
        (["{text}", "--processes", 0], ["--processes is 0"]),
        (["{text}", "--tokenizer", "letters"], ["tokenizer letters cannot be read"]),
        (["{text}", "--tokenizer", "bpe", "--vocab-size", 20], ["20", "257"]),
        (["{text}", "--shard-token", 5], ["did you mean --shard-tokens"]),
        (["{text}", "--out", "{text}"], ["text.txt"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_packing_that_cannot_be_is_refused(
    command: Command, tmp_path: Path, options: list[object], words: list[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc", encoding="utf-8")
    given = [str(option).replace("{text}", str(text)) for option in options]
    done = command("data", "pack", *given, *([] if "--out" in given else ["--out", tmp_path / "out"]))
    assert_one_sentence(done, *words)
    assert sorted(tmp_path.iterdir()) == [text]
