"""Options of training together: every pair of their values trains, with the losses of the plainest training."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_checkpoint import needs_compiler
from tests.training.test_distributed import run, torchrun
from tests.warm import warm_python

OPTIONS: dict[str, list[Any]] = {
    "compile": ["no", "yes"],
    "activation_checkpointing": [False, True],
    "precision": ["float32", "bfloat16"],
    "accumulation_steps": [1, 2],
    "optimizer": ["adamw", "muon"],
    "async_checkpoints": [False, True],
    "mechanism": [None, "SharedDistances", "Counting", "Idle"],
}
PLAIN = {name: values[0] for name, values in OPTIONS.items()} | {"sharing": "ddp"}

Pair = frozenset[tuple[str, Any]]


def pairs_of(row: dict[str, Any]) -> set[Pair]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def pairwise(options: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Few choices of a value for each option, in which every two values of two options meet."""
    left = {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(options, 2)
        for x, y in itertools.product(options[a], options[b])
    }
    rows = []
    while left:
        row = dict(min(left, key=lambda pair: sorted(map(str, pair))))
        for name, values in options.items():
            meeting = [len(pairs_of({**row, name: value}) & left) for value in values]
            row.setdefault(name, values[meeting.index(max(meeting))])
        left -= pairs_of(row)
        rows.append(row)
    return rows


def test_every_two_values_meet() -> None:
    rows = pairwise(OPTIONS)
    met = set().union(*map(pairs_of, rows))
    for a, b in itertools.combinations(OPTIONS, 2):
        for x, y in itertools.product(OPTIONS[a], OPTIONS[b]):
            assert frozenset([(a, x), (b, y)]) in met
    assert len(rows) < 14


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("processes", [1, 2])
def test_options_of_training_go_together(processes: int, tmp_path: Path) -> None:
    sharing = ["ddp"] if processes == 1 else ["ddp", "fsdp", "fsdp+offload"]
    ways = pairwise(OPTIONS | {"sharing": sharing})
    plain = [PLAIN | {name: way[name] for name in ("optimizer", "mechanism")} for way in ways]
    folders = {"plain": (1, plain), "ways": (processes, ways)}
    found: dict[str, list[Any]] = {}
    for name, (number, asked) in folders.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "ways.json").write_text(json.dumps(asked), encoding="utf-8")
        done = run(*torchrun(warm_python(), number, Path(__file__).with_name("pairwise.py"), folder))
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    for way, expected, losses in zip(ways, found["plain"], found["ways"], strict=True):
        if way["sharing"] == "fsdp+offload":  # this is a CPU
            assert losses.startswith("--cpu-offload moves shards from a GPU"), (way, losses)
        elif way["sharing"] == "fsdp" and way["mechanism"] in ("SharedDistances", "Counting"):
            assert losses.startswith("--parallel fsdp "), (way, losses)
        else:
            close = 1e-4 if way["precision"] == "float32" else 0.03
            assert losses == pytest.approx(expected, rel=close), way
