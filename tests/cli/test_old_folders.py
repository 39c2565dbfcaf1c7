"""What an earlier gpt2lab wrote is still read, measured, gone on with and reported on, with the numbers it had then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import gpt2lab
from gpt2lab.training.metrics import read_metrics
from tests.cli.conftest import Command

OLD = Path(__file__).parents[1] / "old_folders"
FOUND = json.loads((OLD / "found.json").read_text(encoding="utf-8"))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A copy, in which the folders name their own place as they did when they were written."""
    here = tmp_path / "here"
    shutil.copytree(OLD, here)
    for path in here.rglob("*"):
        if path.suffix in (".yaml", ".json") and "HERE" in (content := path.read_text(encoding="utf-8")):
            path.write_text(content.replace("HERE", str(here)), encoding="utf-8")
    return here


def test_a_run_is_measured_as_it_was(here: Path, command: Command) -> None:
    done = command("evaluate", here / "run", "--split", "test", "--json")
    assert (done.code, done.err) == (0, "")
    measured = json.loads(done.out)[str(here / "run")]
    assert {name: measured[name] for name in FOUND["evaluated"]} == {
        name: pytest.approx(value, rel=1e-5) for name, value in FOUND["evaluated"].items()
    }


@pytest.mark.filterwarnings("ignore:the context")
def test_a_run_writes_what_it_wrote(here: Path, command: Command) -> None:
    # With a seed, the program before forgot its default temperature of 0.8 and wrote at 1.
    options = ["--prompt", "the king", "--tokens", 40, "--seed", 3, "--temperature", 1, "--json"]
    done = command("generate", here / "run", *options)
    assert done.code == 0, done.err
    assert json.loads(done.out)["texts"] == [FOUND["generated"]]


def test_a_run_goes_on_as_it_went_on(here: Path, command: Command) -> None:
    done = command("train", "--resume", here / "run", "--max-steps", 30)
    assert done.code == 0, done.err
    records = read_metrics(here / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [10, 20, 30]
    # That gpt2lab counted the steps before the old end of the run twice in the mean of the next record.
    found = {name: value for name, value in FOUND["went_on"].items() if name != "loss"}
    assert {name: records[-1][name] for name in found} == {
        name: pytest.approx(value, rel=1e-5) for name, value in found.items()
    }


def test_a_saved_model_computes_what_it_computed(here: Path) -> None:
    model = gpt2lab.GPT2.load(here / "model")
    assert (model.config.position, model.config.window, model.config.tie_embeddings) == ("rope", (4, None), False)
    logits = model(torch.arange(8)[None])[0, -1]
    torch.testing.assert_close(logits, torch.tensor(FOUND["logits"]), rtol=1e-4, atol=1e-5)


def test_a_comparison_is_reported_on_with_the_same_verdicts(here: Path, command: Command) -> None:
    out = here / "comparison"
    old = json.loads((out / "results.json").read_text(encoding="utf-8"))
    (out / "results.json").unlink()
    done = command("report", out)
    assert done.code == 0, done.err
    assert (out / "report.html").exists()
    new = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert losses(new) == losses(old)
    found = [[row[name] for name in ("arm", "measure", "mean", "low", "high", "verdict")] for row in new["contrasts"]]
    assert [row for row in found if "second" not in row[1]] == [
        [*row[:2], *(pytest.approx(number, rel=1e-6) for number in row[2:5]), row[5]] for row in FOUND["verdicts"]
    ]


def test_a_comparison_that_is_asked_for_again_is_done_already(here: Path, command: Command, tmp_path: Path) -> None:
    out = here / "comparison"
    settings = tmp_path / "again.yaml"
    settings.write_text((out / "comparison.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in out.glob("context-8/*/seed-*/**/*")}
    done = command("compare", "--config", settings, "--rounds", 0, "--out", out)
    assert done.code == 0, done.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    arms = yaml.safe_load(settings.read_text(encoding="utf-8"))["arms"]
    assert list(arms) == ["original", "modern", "mine"]


def losses(results: dict[str, Any]) -> dict[tuple[str, int], float]:
    return {(cell["arm"], cell["seed"]): cell["test_loss"] for cell in results["cells"]}
