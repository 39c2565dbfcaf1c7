"""``gpt2lab evaluate``: its numbers are the library's, as a table, as JSON and as a plot."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gpt2lab.data import encode_corpus, open_corpus, split
from gpt2lab.evaluation import estimate_loss, evaluate
from gpt2lab.generation.weights import rounded
from gpt2lab.runs.folder import open_text
from gpt2lab.runs.settings import RunSettings, Weights
from gpt2lab.training import load
from tests.cli.conftest import Command, program


@pytest.mark.parametrize("part", ["validation", "test", "train"])
def test_the_numbers_are_those_of_the_library_on_that_part(
    command: Command, modern: Path, rhyme_file: Path, part: str
) -> None:
    done = command("evaluate", modern, "--split", part, "--json")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)[str(modern)]
    model, tokenizer = load(modern)
    corpus = open_corpus(text=str(rhyme_file))
    tokens = encode_corpus(corpus, tokenizer, *split(corpus)[part])
    expected = asdict(evaluate(model, tokens, tokenizer))
    assert {name: result[name] for name in expected} == expected
    assert result["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert result["estimated_loss"] == estimate_loss(model, tokens)
    assert list(result["contexts"]) == ["4", "8", "16", "32", "64"]
    for context, scores in result["contexts"].items():
        assert scores["loss"] == evaluate(model, tokens, tokenizer, int(context)).loss


def test_learned_positions_are_measured_up_to_their_number(command: Command, original: Path) -> None:
    result = json.loads(command("evaluate", original, "--json").out)[str(original)]
    assert list(result["contexts"]) == ["4", "8", "16"]


def test_any_other_text_and_any_contexts_can_be_measured(command: Command, modern: Path, tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text("the queen may love the night. " * 9, encoding="utf-8")
    done = command("evaluate", modern, "--text", text, "--contexts", 3, 20, "--json")
    result = json.loads(done.out)[str(modern)]
    assert list(result["contexts"]) == ["3", "16", "20"]
    model, tokenizer = load(modern)
    assert result["loss"] == evaluate(model, tokenizer.encode(text.read_text("utf-8")), tokenizer).loss
    assert result["text"] == str(text)


def test_two_runs_stand_side_by_side_in_a_table_with_a_plot(modern: Path, original: Path, tmp_path: Path) -> None:
    plot = tmp_path / "positions.svg"
    done = program("evaluate", modern, original, "--plot", plot, python=sys.executable)
    assert (done.code, done.err) == (0, "")
    for run in (modern, original):
        scores = evaluate_validation(run)
        row = next(line for line in done.out.splitlines() if line.strip().startswith(run.name))
        assert row.split()[1:4] == ["16", f"{scores['loss']:.4f}", f"{scores['perplexity']:.3f}"]
    assert "estimate" in done.out
    for column in ("nats/token", "bits/char", "bits/byte", "accuracy"):
        assert column in done.out
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def evaluate_validation(run: Path) -> dict[str, float]:
    model, tokenizer = load(run)
    text = next(line for line in (run / "config.yaml").read_text("utf-8").splitlines() if line.startswith("text: "))
    corpus = open_corpus(text=text.removeprefix("text: "))
    tokens = encode_corpus(corpus, tokenizer, *split(corpus)["validation"])
    return asdict(evaluate(model, tokens, tokenizer))


def test_the_loss_at_the_end_of_training_is_found_again(command: Command, modern: Path) -> None:
    result = json.loads(command("evaluate", modern, "--checkpoint", "last", "--json").out)[str(modern)]
    last = json.loads((modern / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert result["loss"] == pytest.approx(last["validation_loss"], abs=1e-6)
    assert last["validation_is_estimate"] is False


@pytest.mark.parametrize("context", [0, -4])
def test_a_context_below_one_is_refused(command: Command, modern: Path, context: int) -> None:
    done = command("evaluate", modern, f"--contexts={context}")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("gpt2lab: ")


def test_a_context_that_learned_positions_do_not_allow_is_refused_when_it_was_asked_for(
    command: Command, original: Path
) -> None:
    done = command("evaluate", original, "--contexts", 32)
    assert done.code == 2
    assert "16 positions" in done.err


def test_a_plot_that_cannot_be_written_is_refused_before_anything_is_measured(
    command: Command, modern: Path, tmp_path: Path
) -> None:
    done = command("evaluate", modern, "--plot", tmp_path / "nowhere" / "plot.svg")
    assert (done.code, done.out) == (2, "")
    assert "there is no folder" in done.err


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_what_it_costs_to_store_weights_in_fewer_bits_is_told(command: Command, modern: Path, weights: Weights) -> None:
    asked = ["evaluate", modern, "--contexts", 16]
    exact, found = (
        json.loads(command(*asked, *more, "--json").out)[str(modern)] for more in ([], ["--weights", weights])
    )
    assert "rounding" not in exact
    assert found["rounding"] == found["loss"] - exact["loss"]
    assert 0 < abs(found["rounding"]) < 0.01
    model, tokenizer = load(modern)
    settings = RunSettings.read(modern / "config.yaml")
    tokens = open_text(settings.data, tokenizer).tokens("validation")
    assert found["loss"] == evaluate(rounded(model, weights), tokens, tokenizer).loss
    printed = command(*asked, "--weights", weights).out
    assert f"rounding the weights costs {found['rounding']:.4f} nats per token" in " ".join(printed.split())
