"""``gpt2lab.plan``: which ways there are, which of them fit, and what is told of them."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model import GPT2
from gpt2lab.options import options_of
from gpt2lab.planning.memory import Way
from gpt2lab.planning.settings import PlanOptions, parse_memory, parse_tokens
from gpt2lab.planning.ways import H100_TFLOPS, LEFT_FREE, Plan, plan
from gpt2lab.runs.folder import TrainingState
from gpt2lab.training.checkpoint import Snapshot, save_checkpoint

XL = GPT2Config(50257, 1024, 1600, 25, 6400, 48)


def test_the_plan_of_the_largest_gpt2_is_its_arithmetic() -> None:
    asked: dict[str, Any] = {"model": "gpt2-xl", "devices": 64, "memory": "80GB", "tokens": "300B", "bandwidth": 50}
    planned = plan(**asked, optimizer="adamw", batch_size=512)
    assert planned.config == XL
    assert (planned.parameters, planned.tokens, planned.memory) == (1_557_611_200, 300 * 10**9, 80 * 10**9)
    assert [found.name for found in planned.ways] == ["DDP", "FSDP", "DDP, recomputing", "FSDP, recomputing"]
    kinds = [("ddp", False), ("fsdp", False), ("ddp", True), ("fsdp", True)]
    for found, (parallel, again) in zip(planned.ways, kinds, strict=True):
        way = Way(XL, 8, 64, parallel, again, "adamw", "bfloat16")
        assert found.way == way
        assert found.memory == way.peak()
        assert found.fits == (way.peak().total <= round((1 - LEFT_FREE) * 80e9))
        assert found.steps == -(-300 * 10**9 // (512 * 1024))
        seconds = found.arithmetic_seconds * 64 * 0.4 * H100_TFLOPS["bfloat16"] * 1e12
        assert seconds == pytest.approx(300e9 * (way.flops_per_token + way.recomputed_per_token))
        assert found.network_seconds == pytest.approx(found.steps * sum(way.traffic().values()) / 50e9)


def test_without_a_batch_it_takes_the_most_windows_that_fit() -> None:
    for found in plan(model="gpt2", devices=4, memory="24 GB").ways:
        assert found.fits
        assert found.way.config == GPT2Config(50257, 1024, 768, 12, 3072, 12)
        more = replace(found.way, rows=found.way.rows + 1)
        assert found.memory.total <= (1 - LEFT_FREE) * 24e9 < more.peak().total


def test_the_most_windows_are_found_where_fewer_would_not_fit() -> None:
    """With all logits three windows need five times what four need, whose loss comes in pieces."""
    sizes = {"vocab_size": 20_000, "context_size": 430, "embed_dim": 64, "num_heads": 4, "num_layers": 1}
    most, _ = plan(**sizes, memory="100MB").ways
    assert most.fits
    assert most.way.rows >= 4


def test_what_fits_nowhere_has_no_command() -> None:
    planned = plan(model="gpt2-xl", memory="8GB")
    assert planned.command is None
    assert not any(found.fits for found in planned.ways)


def test_options_change_what_the_name_says() -> None:
    assert plan(model="gpt2-medium", num_layers=2, position="rope", window=(64, None)).config == GPT2Config(
        50257, 1024, 1024, 16, 4096, 2, position="rope", window=(64, None)
    )


def test_a_run_folder_names_its_own_model(tmp_path: Path) -> None:
    model = GPT2(300, 16, 32, 4, 48, 2, position="rope", window=(8, None), num_kv_heads=2, bias=False)
    state = TrainingState(step=1, tokens=1, seconds=1.0, validation_loss=None)
    save_checkpoint(tmp_path, model, Snapshot.of(model, []), state)
    planned = plan(model=str(tmp_path))
    assert planned.config == model.config
    assert planned.parameters == model.num_parameters()
    assert plan(model=str(tmp_path), num_layers=3, vocab_size=200).config == replace(
        model.config, num_layers=3, vocab_size=200
    )


def test_many_devices_are_started_on_machines_of_eight() -> None:
    start = plan(devices=64, batch_size=64).command
    assert start is not None
    assert start.startswith("torchrun --nnodes 8 ")
    assert "--nproc-per-node 8 -m gpt2lab train --parallel ddp" in start
    start = plan(devices=2, batch_size=2).command
    assert start is not None
    assert start.startswith("torchrun --standalone --nproc-per-node 2 -m gpt2lab train")
    tight = plan(model="gpt2-xl", devices=8, batch_size=512, memory="40GB").command
    assert tight is not None
    assert "--parallel fsdp" in tight
    assert "--activation-checkpointing" in tight


def test_an_editor_sees_every_option_with_its_type_and_default() -> None:
    signature = inspect.signature(plan)
    assert {*options_of(PlanOptions)} == set(signature.parameters)
    assert signature.parameters["devices"].default == 1
    assert signature.return_annotation is Plan


@pytest.mark.parametrize(
    ("read", "text", "size"),
    [
        (parse_memory, "80GB", 80 * 10**9),
        (parse_memory, "80GiB", 80 * 2**30),
        (parse_memory, "16 GB", 16 * 10**9),
        (parse_memory, "1.5tb", 1_500 * 10**9),
        (parse_memory, "4000000", 4_000_000),
        (parse_tokens, "300B", 300 * 10**9),
        (parse_tokens, "2.5B", 2_500 * 10**6),
        (parse_tokens, "10M", 10**7),
        (parse_tokens, "1T", 10**12),
        (parse_tokens, "1,000,000", 10**6),
    ],
)
def test_sizes_are_read_as_people_write_them(read: Any, text: str, size: int) -> None:
    assert read(text) == size


@given(st.integers(1, 10**15))
def test_a_whole_number_is_itself_but_memory_of_a_few_bytes_lacks_its_unit(number: int) -> None:
    for value in (number, str(number)):
        assert parse_tokens(value) == number
        if number >= 10**6:
            assert parse_memory(value) == number
        else:
            with pytest.raises(InputError, match=f"such as {number}GB"):
                parse_memory(value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": 0}, "--memory is '0'; it has to be positive"),
        ({"memory": "much"}, "80GB"),
        ({"devices": 1.5}, "devices is 1.5; it has to be a whole number"),
        ({"devices": 4, "batch_size": 6}, "6 windows cannot be divided among 4 devices"),
        ({"model": "gpt5"}, "gpt5 is neither a run folder nor one of gpt2, "),
        ({"num_head": 7}, r"did you mean num_heads \(--num-heads\)"),
        ({"num_heads": 7}, "num_heads=7 does not divide"),
        ({"attention": "mine.py:Mine"}, "leave out --attention"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(**options)
