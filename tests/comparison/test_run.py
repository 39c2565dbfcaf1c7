"""``gpt2lab.compare`` from Python: its arms, its result, going on, and whose code is run."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import gpt2lab
from gpt2lab.comparison.folder import read_results
from gpt2lab.comparison.outcome import Comparison
from gpt2lab.comparison.run import compare, report
from gpt2lab.errors import InputError
from gpt2lab.model import ScaledDotProductAttention
from gpt2lab.model.attention import describe_mechanism
from gpt2lab.runs.folder import load
from gpt2lab.runs.settings import RunSettings
from gpt2lab.training.run import train
from tests.conftest import MakeOnce
from tests.warm import warm_python

pytestmark = pytest.mark.xdist_group("comparison")
STEEP = 0.5
SIZES: dict[str, Any] = {"embed_dim": 16, "num_heads": 4, "num_layers": 1, "batch_size": 4, "eval_tokens": 256}


class Mine(ScaledDotProductAttention):
    """Looks at what is near."""

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return -STEEP * (q_pos[:, None, :, None] - k_pos[:, None, None, :]).abs()


class Ahead(ScaledDotProductAttention):
    """Reads the answer."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *positions: Tensor | None) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


ARMS: dict[str, dict[str, Any]] = {"original": {}, "rope": {"position": "rope"}, "mine": {"attention": Mine}}


@pytest.fixture(autouse=True)
def warm_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells start from a Python that is warm."""
    monkeypatch.setattr(sys, "executable", warm_python())


@pytest.fixture
def made(rhyme_file: Path, make_once: MakeOnce) -> Path:
    """The folder of a comparison that was made from Python."""

    def make(folder: Path) -> None:
        told: list[tuple[str, int, int]] = []
        result = compare(
            ARMS, text=rhyme_file, contexts=[8], seeds=2, steps=6, out=folder, workers=2, rounds=2, **SIZES,
            claims=[{"says": "Near is better.", "arm": "mine", "measure": "test_loss"}],
            progress=lambda *event: told.append(event),
        )  # fmt: skip
        assert dict(result.failed) == {}
        assert result.folder == folder
        assert [event for event in told if event[0] == "cells"] == [("cells", n, 6) for n in range(7)]
        assert ("timing at a context of 8", 9, 9) in told

    return make_once("compared-from-python", make)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_every_arm_is_compared_with_the_first_in_every_quantity(made: Path) -> None:
    result = gpt2lab.compare(made)
    quantities = ["test_loss", "tokens_to_target", "seconds_per_step", "seconds_per_token", "seconds_per_token_long"]
    quantities += ["seconds_to_first_token_long", "parameters"]
    expected = {(arm, 8, quantity) for arm in ("rope", "mine") for quantity in quantities}
    assert {(v.arm, v.context, v.quantity) for v in result.verdicts} == expected
    assert len(result.verdicts) == len(expected)
    assert (result.verdicts[0].arm, result.verdicts[0].quantity) == ("mine", "test_loss")  # what was claimed
    losses = {arm: [cell.test_loss for cell in result.results.cells if cell.arm == arm] for arm in ("original", "mine")}
    differences = [a - b for a, b in zip(losses["mine"], losses["original"], strict=True)]
    first = result.verdicts[0]
    assert first.difference == pytest.approx(sum(differences) / 2)
    assert first.verdict in ("better", "worse", "no difference shown")
    assert first.low is not None
    assert first.high is not None
    assert first.low <= sum(differences) / 2 <= first.high
    assert len(result.contrasts) == len(result.verdicts)


def test_it_shows_itself_as_text_as_a_table_and_as_a_report(made: Path, tmp_path: Path) -> None:
    result = compare(made)
    assert result.table().count("\n") == 2 + len(result.verdicts)
    assert result._repr_html_().count("<tr>") == 1 + len(result.verdicts)
    page = result.report(tmp_path / "page.html", against=result).read_text(encoding="utf-8")
    assert "Near is better." in page
    assert "What changed" in page


def test_a_complete_comparison_is_read_and_nothing_in_it_is_touched(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    result = compare(made)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert json.dumps(result.results.to_dict()) == (made / "results.json").read_text(encoding="utf-8")
    assert capsys.readouterr().out == ""


def test_results_without_run_folders_are_read_too(made: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes((made / "results.json").read_bytes())
    assert compare(tmp_path).results == compare(made).results
    found = report(tmp_path)
    assert (tmp_path / "report.html").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.html"}
    assert found.folder == tmp_path
    assert report(tmp_path / "results.json").folder == tmp_path
    with pytest.raises(InputError, match="no models that could be timed"):
        report(tmp_path, rounds=1)


def test_the_cells_of_a_class_from_python_are_runs_that_load_with_it(made: Path) -> None:
    cell = made / "context-8" / "mine" / "seed-1"
    model, _ = load(cell, attention=Mine)
    assert model.config.attention == describe_mechanism(Mine)
    assert RunSettings.read(cell / "config.yaml").model.attention == f"{made / 'attention' / 'mine.py'}:Mine"
    with pytest.raises(InputError, match="made with the attention Mine@"):
        load(cell, attention=Ahead)


def test_a_comparison_goes_on_where_it_was_and_ends_the_same(copy: Path, made: Path) -> None:
    for arm, seed in (("mine", 2), ("rope", 1)):
        cell = copy / "context-8" / arm / f"seed-{seed}"
        shutil.rmtree(cell / "checkpoints")
        (cell / "measurements.json").unlink()
    cell = copy / "context-8" / "original" / "seed-1"  # killed after its last checkpoint, before its exact loss
    (cell / "measurements.json").unlink()
    lines = (cell / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cell / "metrics.jsonl").write_text("".join(lines[:-1]))
    for path in (copy / "comparison.yaml", *copy.glob("context-8/*/seed-*/cell.yaml")):
        (path.parent / "manifest.json").unlink(missing_ok=True)  # that gpt2lab wrote none
        settings = yaml.safe_load(path.read_text())
        assert settings.pop("qk_norm") is False  # it was begun before there was such an option
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
    kept = {path: path.stat().st_mtime_ns for path in copy.glob("context-8/*/seed-*/measurements.json")}
    assert set(read_results(copy).unfinished) == {
        "context-8/rope/seed-1",
        "context-8/mine/seed-2",
        "context-8/original/seed-1",
    }
    with pytest.raises(InputError, match="the arm mine has an attention of its own, which is never run from a folder"):
        compare(copy)
    result = compare(copy, attentions={"mine": Mine}, rounds=0, progress=lambda *_: None)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    cells, whole = ([replace(c, peak_memory=0) for c in each.results.cells] for each in (result, compare(made)))
    assert cells == whole


def test_another_class_is_not_taken_for_the_one_that_was_compared(copy: Path) -> None:
    (copy / "context-8" / "mine" / "seed-2" / "measurements.json").unlink()

    class Other(ScaledDotProductAttention):
        """Not the one."""

        window = 2

    with pytest.raises(InputError, match=r"seed-1 cannot go on: this model was made with the attention Mine@.* Other@"):
        compare(copy, attentions={"mine": Other}, progress=lambda *_: None)


def test_an_attention_that_only_a_folder_names_is_never_executed(copy: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(
        "from pathlib import Path\nfrom gpt2lab import ScaledDotProductAttention\n"
        f"Path({str(tmp_path / 'executed')!r}).touch()\nclass Evil(ScaledDotProductAttention): pass\n"
    )
    for arm in ("rope", "mine"):
        for path in (*copy.glob(f"context-8/{arm}/seed-*/*.yaml"),):
            settings = yaml.safe_load(path.read_text()) | {"attention": f"{evil}:Evil"}
            path.write_text(yaml.safe_dump(settings))
            (path.parent / "manifest.json").unlink(missing_ok=True)
    asked = yaml.safe_load((copy / "comparison.yaml").read_text())
    asked["arms"]["rope"]["attention"] = f"{evil}:Evil"
    (copy / "comparison.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    (copy / "manifest.json").unlink()
    report(copy)
    (copy / "context-8" / "rope" / "seed-1" / "measurements.json").unlink()
    refused = "has an attention of its own, which is never run from a folder"
    with pytest.raises(InputError, match=refused):
        report(copy, rounds=1)
    for own in ({}, {"mine": Mine}):
        with pytest.raises(InputError, match=refused):
            compare(copy, attentions=own)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "line", ["processes: 2", "wandb: theirs", "tensorboard: true", "config: a.yaml", "resume: runs/a", "ray: there:1"]
)
def test_what_only_a_caller_may_ask_for_is_refused_from_a_folder(copy: Path, line: str) -> None:
    cell, name = copy / "context-8" / "rope" / "seed-1", line.partition(":")[0]
    (cell / "measurements.json").unlink()
    for folder, file in ((cell, "cell.yaml"), (cell, "config.yaml"), (copy, "comparison.yaml")):
        path, manifest = folder / file, folder / "manifest.json"
        was, listed = path.read_bytes(), manifest.read_bytes()
        path.write_bytes(was + f"{line}\n".encode())
        manifest.unlink()
        with pytest.raises(InputError, match=rf"{file}: there is no option '{name}'"):
            train(resume=cell) if file == "config.yaml" else compare(copy, attentions={"mine": Mine})
        path.write_bytes(was)
        manifest.write_bytes(listed)


def test_arms_are_timed_again_with_the_attention_that_the_caller_gives(copy: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = report(copy, rounds=1, attentions={"mine": Mine}, progress=lambda *event: told.append(event))
    assert told[-1] == ("timing at a context of 8", 6, 6)
    assert all(len(arm.seconds_per_step) == 1 for arm in found.results.speed[8].arms.values())


def test_the_first_arm_is_the_baseline_whatever_it_is_called(copy: Path) -> None:
    asked = yaml.safe_load((copy / "comparison.yaml").read_text()) | {"claims": []}
    asked["arms"] = {name: asked["arms"][name] for name in ("rope", "original", "mine")}
    (copy / "comparison.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    with pytest.raises(InputError, match=r"comparison\.yaml is damaged, or was edited"):
        read_results(copy)
    (copy / "manifest.json").unlink()
    result = Comparison(copy, read_results(copy))
    assert {v.arm for v in result.verdicts} == {"original", "mine"}
    first = next(v for v in result.verdicts if (v.arm, v.quantity) == ("original", "parameters"))
    assert first.verdict == "worse"  # it has learned positions besides
    assert "compared with rope" in result.title()


def test_the_grid_is_asked_for_in_one_comparison_only(copy: Path) -> None:
    del (arms := dict(ARMS))["original"]
    with pytest.raises(InputError, match="compares with original, not with rope"):
        compare(arms, text="nowhere.txt", contexts=[8], out=copy, claims=compare(copy).results.claims)


@pytest.mark.parametrize(
    ("arms", "options", "words"),
    [
        ({"original": {}}, {}, "two arms or more"),
        ({"original": {}, "rope": {"positon": "rope"}}, {}, "unknown option 'positon'; did you mean position"),
        ({"original": {}, "../rope": {"position": "rope"}}, {}, "letters, digits"),
        ({"original": {}, "..": {"position": "rope"}}, {}, "letters, digits"),
        ({"original": {}, "rope": 5}, {}, "the arm rope has to hold options"),
        ({"original": {}, "same": {"position": "learned"}}, {}, "very same model as original"),
        (ARMS, {"attentions": {"yours": Mine}}, "'yours' that is not there; known are mine, original, rope"),
        (ARMS, {"contexts": "8,x"}, "contexts is '8,x'"),
        (ARMS, {"contexts": []}, "contexts is"),
        (ARMS, {"sed": 5}, "there is no option 'sed'; did you mean seed"),
        (ARMS, {"seeds": 0}, "seeds is 0"),
        (ARMS, {"steps": 5, "tokens": 9}, "--steps and --tokens"),
        (ARMS, {"workers": 0}, "workers is 0"),
        (ARMS, {"variant": "rope"}, "--variants"),
        (ARMS, {"claims": [{"says": "x", "arm": "original", "measure": "test_loss"}]}, "about the arm 'original'"),
        ({"ahead": {"attention": Ahead}, "rope": {"position": "rope"}}, {}, "ahead reads the future"),
        ("nowhere", {}, "nowhere holds no comparison"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_trains(
    rhyme_file: Path, tmp_path: Path, arms: Any, options: dict[str, Any], words: str
) -> None:
    usual = {"text": rhyme_file, "contexts": [8], "out": tmp_path, "progress": lambda *_: None}
    with pytest.raises(InputError, match=words):
        compare(arms, **usual | SIZES | options)
    assert not list(tmp_path.glob("*/*/*/checkpoints"))


def test_a_file_of_arms_and_claims_is_asked_as_the_command_line_asks_it(copy: Path, tmp_path: Path) -> None:
    config = tmp_path / "grid.yaml"
    asked = yaml.safe_load((copy / "comparison.yaml").read_text())
    del asked["arms"]["original"]
    asked["arms"]["mine"]["attention"] = f"{copy / 'attention' / 'mine.py'}:Mine"
    config.write_text(yaml.safe_dump(asked, sort_keys=False))
    before = {path: path.stat().st_mtime_ns for path in copy.glob("context-8/*/seed-*/measurements.json")}
    result = compare(config, out=copy, rounds=0, progress=lambda *_: None)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(result.results.settings.arms) == ["original", "rope", "mine"]
    assert [v.verdict for v in result.verdicts] == [v.verdict for v in compare(copy).verdicts]


SCRIPT = """
import gpt2lab


class Mine(gpt2lab.ScaledDotProductAttention):
    def bias(self, q_pos, k_pos):
        return -SLOPE * (q_pos[:, None, :, None] - k_pos[:, None, None, :])


SLOPE = 0.3
result = gpt2lab.compare(
    {"original": {}, "mine": {"attention": Mine}}, text="novel.txt", contexts=[8], seeds=1, steps=2, rounds=0,
    embed_dim=16, num_layers=1, batch_size=2, out="runs/switches", workers=2)
assert not result.failed, result.failed
for v in result.verdicts:
    print(v.arm, v.context, v.quantity, v.difference, v.low, v.high, v.verdict)
"""


@pytest.mark.slow
def test_a_script_compares_a_class_of_its_own_without_a_guard(rhyme_file: Path, tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_bytes(rhyme_file.read_bytes())
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mine 8 test_loss" in done.stdout
    assert done.stdout.count("cells: 2 arms") == 1
