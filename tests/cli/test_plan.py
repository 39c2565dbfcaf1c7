"""``gpt2lab plan``: what it tells follows from the library's plan, and the command that it prints trains."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.cli.plan import H100_TFLOPS, LEFT_FREE, parse_size
from gpt2lab.config import GPT2Config
from gpt2lab.training import load
from gpt2lab.training.plan import Plan
from tests.cli.conftest import Command, assert_one_sentence

XL = GPT2Config(50257, 1024, 1600, 25, 6400, 48)


def planned(command: Command, *options: object) -> dict[str, Any]:
    done = command("plan", *options, "--json")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


def test_the_plan_of_the_largest_gpt2_is_the_librarys(command: Command) -> None:
    options = "--model gpt2-xl --devices 64 --memory 80GB --tokens 300B --optimizer adamw --batch-size 512".split()
    told = planned(command, *options, "--bandwidth", 50)
    assert (told["parameters"], told["tokens"], told["memory"]) == (1_557_611_200, 300 * 10**9, 80 * 10**9)
    assert [way["name"] for way in told["ways"]] == ["DDP", "FSDP", "DDP, recomputing", "FSDP, recomputing"]
    for way in told["ways"]:
        parallel, again = way["parallel"], way["activation_checkpointing"]
        plan = Plan(XL, 8, 64, parallel, again, "adamw", "bfloat16")
        assert way["memory"]["total"] == plan.peak().total
        assert way["fits"] == (plan.peak().total <= round((1 - LEFT_FREE) * 80e9))
        assert way["steps"] == -(-300 * 10**9 // (512 * 1024))
        seconds = way["arithmetic_seconds"] * 64 * 0.4 * H100_TFLOPS["bfloat16"] * 1e12
        assert seconds == pytest.approx(300e9 * (plan.flops_per_token + plan.recomputed_per_token))
        assert way["network_seconds"] == pytest.approx(way["steps"] * sum(plan.traffic().values()) / 50e9)


def test_without_a_batch_it_takes_the_most_windows_that_fit(command: Command) -> None:
    for way in planned(command, "--model", "gpt2", "--devices", 4, "--memory", "24 GB")["ways"]:
        config = GPT2Config(50257, 1024, 768, 12, 3072, 12)
        plan = Plan(config, way["windows_per_device"], 4, way["parallel"], way["activation_checkpointing"])
        assert way["fits"]
        assert plan.peak().total <= (1 - LEFT_FREE) * 24e9 < replace(plan, rows=plan.rows + 1).peak().total


def test_the_most_windows_are_found_where_fewer_would_not_fit(command: Command) -> None:
    """With all logits three windows need five times what four need, whose loss comes in pieces."""
    sizes = "--vocab-size 20000 --context-size 430 --embed-dim 64 --num-heads 4 --num-layers 1".split()
    (most, _) = planned(command, *sizes, "--memory", "100MB")["ways"]
    assert most["fits"]
    assert most["windows_per_device"] >= 4


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
    assert planned(command, *options)["command"] is None
    assert "nothing fits" in command("plan", *options).out


def test_options_change_what_the_name_says(command: Command) -> None:
    changed = planned(command, "--model", "gpt2-medium", "--num-layers", 2, "--position", "rope", "--window", "64,full")
    assert GPT2Config.from_dict(changed["config"]) == GPT2Config(
        50257, 1024, 1024, 16, 4096, 2, position="rope", window=(64, None), num_kv_heads=None
    )


def test_a_run_folder_names_its_own_model(command: Command, original: Path) -> None:
    model, _ = load(original)
    told = planned(command, "--model", original)
    assert replace(GPT2Config.from_dict(told["config"]), num_kv_heads=None) == model.config
    assert told["parameters"] == model.num_parameters()


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


def test_many_devices_are_started_on_machines_of_eight(command: Command) -> None:
    start = planned(command, "--devices", 64, "--batch-size", 64)["command"]
    assert start.startswith("torchrun --nnodes 8 ")
    assert "--nproc-per-node 8 -m gpt2lab train --parallel ddp" in start
    start = planned(command, "--devices", 2, "--batch-size", 2)["command"]
    assert start.startswith("torchrun --standalone --nproc-per-node 2 -m gpt2lab train")
    tight = planned(command, "--model", "gpt2-xl", "--devices", 8, "--batch-size", 512, "--memory", "40GB")["command"]
    assert "--parallel fsdp" in tight
    assert "--activation-checkpointing" in tight


@pytest.mark.parametrize(
    ("option", "text", "size"),
    [
        ("memory", "80GB", 80 * 10**9),
        ("memory", "80GiB", 80 * 2**30),
        ("memory", "16 GB", 16 * 10**9),
        ("memory", "1.5tb", 1_500 * 10**9),
        ("memory", "1000", 1000),
        ("tokens", "300B", 300 * 10**9),
        ("tokens", "2.5B", 2_500 * 10**6),
        ("tokens", "10M", 10**7),
        ("tokens", "1T", 10**12),
        ("tokens", "1,000,000", 10**6),
    ],
)
def test_sizes_are_read_as_people_write_them(option: str, text: str, size: int) -> None:
    assert parse_size(option, text) == size


@given(st.integers(1, 10**15))
def test_a_whole_number_is_itself(number: int) -> None:
    assert parse_size("tokens", str(number)) == parse_size("memory", str(number)) == number


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--memory 80", None),
        ("--memory 80B", ["--memory", "80B", "80GB"]),
        ("--memory much", ["--memory", "much", "80GB"]),
        ("--memory 0GB", ["--memory", "0GB", "positive"]),
        ("--tokens 3GB", ["--tokens", "3GB", "300B"]),
        ("--tokens -1", ["--tokens", "-1"]),
        ("--devices 0", ["--devices is 0"]),
        ("--devices 4 --batch-size 6", ["6", "4", "--batch-size"]),
        ("--batch-size 0", ["0", "--batch-size"]),
        ("--accumulation-steps 0", ["--accumulation-steps is 0"]),
        ("--vocab-size 0", ["--vocab-size is 0"]),
        ("--peak-share 0", ["--peak-share"]),
        ("--peak-tflops nan", ["--peak-tflops"]),
        ("--bandwidth -1", ["--bandwidth"]),
        ("--model gpt5", ["gpt5", "gpt2-xl", "run folder"]),
        ("--num-heads 7", ["num_heads=7 does not divide"]),
        ("--attention mine.py:Mine", ["--attention"]),
        ("--optimizer sgd", ["sgd"]),
    ],
)
def test_bad_input_is_told_in_a_sentence(command: Command, options: str, words: list[str] | None) -> None:
    done = command("plan", *options.split())
    if words is None:
        assert done.code == 0
    else:
        assert_one_sentence(done, *words)


def test_a_folder_that_is_no_run_is_refused(command: Command, tmp_path: Path) -> None:
    assert_one_sentence(command("plan", "--model", tmp_path), str(tmp_path), "holds no checkpoint")


def test_the_command_explains_itself(command: Command) -> None:
    helped = command("plan", "--help")
    assert (helped.code, helped.err) == (0, "")
    for option in "--model --devices --memory --tokens --batch-size --peak-tflops --num-kv-heads --json".split():
        assert option in helped.out
