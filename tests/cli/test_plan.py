"""``gpt2lab plan``: what it tells is the library's plan, and the command that it prints trains."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from gpt2lab.config import GPT2Config
from gpt2lab.planning.ways import plan
from gpt2lab.training import load
from tests.cli.conftest import Command, assert_one_sentence


def planned(command: Command, *options: object) -> dict[str, Any]:
    done = command("plan", *options, "--json")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


def test_json_is_what_the_library_plans(command: Command, original: Path) -> None:
    options = "--devices 4 --memory 24GB --tokens 3B --bandwidth 50 --num-layers 2 --window 8,full".split()
    told = planned(command, "--model", original, *options)
    asked = {"devices": 4, "memory": "24GB", "tokens": 3 * 10**9, "bandwidth": 50, "num_layers": 2, "window": (8, None)}
    assert told == json.loads(json.dumps(plan(model=str(original), **asked).to_dict()))


def test_the_table_holds_what_json_holds(command: Command) -> None:
    options = ["--model", "gpt2", "--devices", 2, "--memory", "16GB", "--batch-size", 2]
    told = planned(command, *options)
    done = command("plan", *options)
    assert done.code == 0
    for way in told["ways"]:
        assert f"{way['memory']['total'] / 1e9:.3g}" in done.out
        assert way["memory"]["moment"] in done.out
    assert told["command"] in done.out


def test_what_fits_nowhere_is_said(command: Command) -> None:
    options = ["--model", "gpt2-xl", "--memory", "8GB"]
    for done in (command("plan", *options, "--json"), command("plan", *options)):
        assert done.code == 1
    assert "nothing fits" in done.out
    assert json.loads(command("plan", *options, "--json").out)["command"] is None


@pytest.mark.parametrize("model", ["", "--position rope --num-kv-heads 1 --window 8,full --no-bias --dropout 0.1"])
def test_the_command_that_it_prints_trains_that_model(
    command: Command, rhyme_file: Path, tmp_path: Path, model: str
) -> None:
    sizes = "--num-layers 2 --num-heads 2 --embed-dim 16 --context-size 16 --vocab-size 300".split()
    told = planned(command, *sizes, *model.split(), "--batch-size", 4, "--tokens", 100, "--optimizer", "adamw")
    program, *arguments = shlex.split(told["command"])
    assert program == "gpt2lab"
    arguments[arguments.index("YOUR_TEXT")] = str(rhyme_file)
    done = command(*arguments, "--device", "cpu", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert load(tmp_path / "run")[0].config == GPT2Config.from_dict(told["config"])
    assert re.search(r"done: 2 steps", done.out)  # of 64 tokens


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--memory 80", ["80 bytes", "80GB"]),
        ("--memory 80B", ["--memory", "80B", "80GB"]),
        ("--memory much", ["--memory", "much", "80GB"]),
        ("--memory 0GB", ["--memory", "0GB", "positive"]),
        ("--tokens 3GB", ["--tokens", "3GB", "300B"]),
        ("--tokens -1", ["--tokens", "-1"]),
        ("--devices 0", ["devices is 0", "1 or more"]),
        ("--devices 4 --batch-size 6", ["6", "4", "--batch-size"]),
        ("--batch-size 0", ["--batch-size is 0"]),
        ("--accumulation-steps 0", ["--accumulation-steps is 0"]),
        ("--vocab-size 0", ["--vocab-size is 0"]),
        ("--peak-share 0", ["--peak-share is 0"]),
        ("--peak-tflops nan", ["--peak-tflops is nan"]),
        ("--bandwidth -1", ["bandwidth is -1"]),
        ("--model gpt5", ["gpt5", "gpt2-xl", "run folder"]),
        ("--num-heads 7", ["num_heads=7 does not divide"]),
        ("--attention mine.py:Mine", ["--attention"]),
        ("--optimizer sgd", ["sgd"]),
    ],
)
def test_bad_input_is_told_in_a_sentence(command: Command, options: str, words: list[str]) -> None:
    assert_one_sentence(command("plan", *options.split()), *words)


def test_a_folder_that_is_no_run_is_refused(command: Command, tmp_path: Path) -> None:
    assert_one_sentence(command("plan", "--model", tmp_path), str(tmp_path), "holds no checkpoint")


def test_the_command_explains_itself(command: Command) -> None:
    helped = command("plan", "--help")
    assert (helped.code, helped.err) == (0, "")
    for option in "--model --devices --memory --tokens --batch-size --peak-tflops --num-kv-heads --json".split():
        assert option in helped.out
