"""``gpt2lab judge`` as a program: exit codes by verdict, JSON, and bad input."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, assert_one_sentence

RUNS = {
    "A": [2.00, 2.10, 1.95, 2.05],
    "lower": [1.90, 2.01, 1.84, 1.96],
    "noisy": [1.00, 2.60, 1.20, 2.60],
    "higher": [2.10, 2.19, 2.06, 2.15],
}


def file_of(folder: Path, *arms: str) -> Path:
    file = folder / "results.csv"
    lines = [f"{arm},{seed},{loss}" for arm in arms for seed, loss in enumerate(RUNS[arm], 1)]
    file.write_text("arm,seed,loss\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("arms", "code"),
    [(("lower",), 0), (("higher",), 1), (("noisy",), 3), (("lower", "noisy"), 3), (("noisy", "higher"), 1)],
)
def test_the_exit_code_tells_the_verdict(command: Command, tmp_path: Path, arms: tuple[str, ...], code: int) -> None:
    file = file_of(tmp_path, "A", *arms)
    done = command("judge", file, "--baseline", "A", "--pair", "seed", "--value", "loss")
    assert (done.code, done.err) == (code, "")
    for arm in arms:
        assert arm in done.out
    turned = command("judge", file, "--baseline", "A", "--higher-is-better", "--json")
    told = json.loads(turned.out)
    opposite = {"lower": "worse", "higher": "better", "noisy": "no difference shown"}
    assert {v["arm"]: v["verdict"] for v in told["verdicts"]} == {arm: opposite[arm] for arm in arms}


def test_arms_with_other_seeds_are_warned_of_on_standard_error(command: Command, tmp_path: Path) -> None:
    file = file_of(tmp_path, "A", "lower")
    file.write_text(file.read_text() + "lower,5,1.9\n")
    done = command("judge", file, "--baseline", "A")
    assert done.code == 0
    assert "lower and A differ in seed: 5 only in lower" in done.err
    assert json.loads(command("judge", file, "--baseline", "A", "--json").out)["warnings"][0].startswith("lower and A")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--baseline B", ["no arm 'B'"]),
        ("", ["--baseline", "A, lower"]),
        ("--baseline A --value lost", ["--value", "did you mean loss"]),
        ("--baseline A --pair run", ["--pair"]),
        ("--baseline A --arm model", ["--arm"]),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_sentence(
    command: Command, tmp_path: Path, arguments: str, words: list[str]
) -> None:
    assert_one_sentence(command("judge", file_of(tmp_path, "A", "lower"), *arguments.split()), *words)


def test_one_seed_and_runs_without_pairs_are_refused(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text("arm,seed,loss\nA,1,2.0\nB,1,1.9\n")
    assert_one_sentence(command("judge", file, "--baseline", "A"), "only one seed in common")
    file.write_text("arm,seed,loss\nA,1,2.0\nA,2,2.1\nB,3,1.9\nB,4,1.8\n")
    assert_one_sentence(command("judge", file, "--baseline", "A"), "not paired", "1, 2", "3, 4")
