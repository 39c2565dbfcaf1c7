"""``gpt2lab compare`` and ``report`` as a program: real grids of tiny cells, killed, shared out, asked nonsense."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml

from gpt2lab.cli import main
from gpt2lab.comparison.arms import typed_arms
from gpt2lab.comparison.grid import plan
from gpt2lab.model import GPT2
from gpt2lab.runs.folder import read_state
from gpt2lab.training import find_checkpoint, load
from tests.cli.conftest import Command, Finished, assert_one_sentence, program, start
from tests.conftest import LONG, MakeOnce
from tests.warm import warm_python

MECHANISMS = """
import torch
from gpt2lab import ScaledDotProductAttention
from torch.nn.functional import scaled_dot_product_attention


class Ahead(ScaledDotProductAttention):
    "Sees blocks of two whole: the first token of each reads the second."

    def forward(self, q, k, v, q_pos=None, k_pos=None):
        block = torch.arange(q.shape[2]) // 2
        return scaled_dot_product_attention(q, k, v, attn_mask=block[:, None] >= block)


class Tired(ScaledDotProductAttention):
    "Works for a while."
    calls = 0

    def forward(self, q, k, v, q_pos=None, k_pos=None):
        Tired.calls += 1
        if Tired.calls > 25:
            raise RuntimeError("too tired to go on")
        return super().forward(q, k, v, q_pos, k_pos)
"""
SIZES = "--embed-dim 16 --num-heads 4 --num-layers 1 --batch-size 4 --steps 12 --eval-every 4 --eval-tokens 256".split()


pytestmark = pytest.mark.xdist_group("comparison")


@pytest.fixture(scope="session")
def grid(rhyme_file: Path, make_once: MakeOnce) -> tuple[Path, Finished]:
    """A comparison with everything in it: a claim, an arm that reads the future, and one that fails on the way."""
    folder = make_once("comparison", partial(make_grid, rhyme_file))
    return folder / "out", Finished(**json.loads((folder / "finished.json").read_text(encoding="utf-8")))


def make_grid(text: Path, folder: Path) -> None:
    folder.mkdir()
    mechanisms = folder / "mine.py"
    mechanisms.write_text(MECHANISMS, encoding="utf-8")
    config = folder / "grid.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "arms": {
                    "rope": {"variant": "rope"},
                    "narrow": {"window": [2], "ff_hidden_dim": 24},
                    "ahead": {"attention": f"{mechanisms}:Ahead"},
                    "tired": {"attention": f"{mechanisms}:Tired"},
                },
                "claims": [{"says": "RoPE learns more.", "arm": "rope", "measure": "test_loss"}],
                "contexts": [8],
                "seeds": 2,
            }
        ),
        encoding="utf-8",
    )
    done = program("compare", "--config", config, "--text", text, *SIZES, "--rounds", 2, "--out", folder / "out")
    (folder / "finished.json").write_text(json.dumps(asdict(done)), encoding="utf-8")


@pytest.fixture
def warm_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells start as warm as :func:`program` starts comparisons; without it they start as users' do."""
    monkeypatch.setattr(sys, "executable", warm_python())


def results_of(out: Path) -> dict:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


# What it leaves


def test_every_cell_is_an_ordinary_run_folder(grid: tuple[Path, Finished], command: Command) -> None:
    out, _ = grid
    for arm in ("original", "rope", "narrow"):
        for seed in (1, 2):
            cell = out / "context-8" / arm / f"seed-{seed}"
            assert read_state(find_checkpoint(cell, "last")).step == 12
            measured = command("evaluate", cell, "--split", "test", "--checkpoint", "last", "--json")
            loss = json.loads(measured.out)[str(cell)]["loss"]
            (row,) = [c for c in results_of(out)["cells"] if (c["arm"], c["seed"]) == (arm, seed)]
            assert row["test_loss"] == pytest.approx(loss, abs=1e-6)
    assert command("generate", out / "context-8" / "rope" / "seed-1", "--tokens", 5).code == 0


def test_arms_differ_in_what_they_name_and_in_nothing_else(grid: tuple[Path, Finished]) -> None:
    out, _ = grid
    settings = {
        arm: yaml.safe_load((out / "context-8" / arm / "seed-2" / "config.yaml").read_text())
        for arm in ("original", "rope", "narrow")
    }
    for arm, names in {"rope": {"position"}, "narrow": {"window", "ff_hidden_dim"}}.items():
        assert {n for n, v in settings[arm].items() if settings["original"].get(n) != v} == names
    assert settings["rope"]["seed"] == 2
    models = {arm: load(out / "context-8" / arm / "seed-1")[0] for arm in ("original", "rope")}
    begun = {arm: GPT2.from_config(model.config, seed=1) for arm, model in models.items()}
    same = "blocks.0.attention.query_key_value.weight"
    assert torch.equal(begun["original"].state_dict()[same], begun["rope"].state_dict()[same])  # paired, from the start


def test_an_arm_that_reads_the_future_is_disqualified_and_says_where(grid: tuple[Path, Finished]) -> None:
    out, done = grid
    assert "ahead at a context of 8 is disqualified" in done.out
    (found,) = results_of(out)["disqualified"]
    assert (found["arm"], found["context"]) == ("ahead", 8)
    assert [tuple(pair) for pair in found["leaks"]] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert not list((out / "context-8" / "ahead").glob("seed-*"))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Disqualified." in page
    assert "0 reads 1, 2 reads 3" in page


def test_a_cell_that_fails_is_reported_and_stops_no_other(grid: tuple[Path, Finished]) -> None:
    out, done = grid
    assert done.code == 1
    assert len(re.findall(r"failed  context-8/tired/seed-[12]: RuntimeError: too tired to go on", done.out)) == 2
    assert "2 cells failed; the same command tries them again" in done.err
    results = results_of(out)
    assert results["unfinished"] == ["context-8/tired/seed-1", "context-8/tired/seed-2"]
    assert {cell["arm"] for cell in results["cells"]} == {"original", "rope", "narrow"}


def test_the_files_agree_with_each_other(grid: tuple[Path, Finished]) -> None:
    out, done = grid
    results = results_of(out)
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"]) for row in rows] == [(c["arm"], str(c["seed"])) for c in results["cells"]]
    assert {"sample", "curve", "loss_by_position", "attention_by_distance"}.isdisjoint(rows[0])
    assert [float(row["test_loss"]) for row in rows] == [c["test_loss"] for c in results["cells"]]
    for row in rows:
        rounds = results["speed"]["8"]["arms"][row["arm"]]["seconds_per_token"]
        assert float(row["seconds_per_token"]) == pytest.approx(sum(rounds) / 2)
    (contrast,) = [c for c in results["contrasts"] if c["claim"] == 0]
    by_arm = {arm: [c["test_loss"] for c in results["cells"] if c["arm"] == arm] for arm in ("original", "rope")}
    differences = [a - b for a, b in zip(by_arm["rope"], by_arm["original"], strict=True)]
    assert contrast["mean"] == pytest.approx(sum(differences) / 2)
    assert re.search(r"^  rope: (better by|worse by|no difference shown)", done.out, re.MULTILINE)
    assert f"{sum(by_arm['original']) / 2:.4f}" in done.out.split("test loss  ")[1]
    assert "RoPE learns more." in done.out
    assert {"better": "Better", "worse": "Worse"}.get(contrast["verdict"], "No difference shown") in done.out


def test_curves_peak_memory_and_costs_are_there(grid: tuple[Path, Finished]) -> None:
    out, _ = grid
    for cell in results_of(out)["cells"]:
        assert [tokens for tokens, _ in cell["curve"]] == [4 * 32, 8 * 32, 12 * 32]
        assert 50 * 2**20 < cell["peak_memory"] < 8 * 2**30
        assert len(cell["loss_by_position"]) == 8
        expected = [4, 8] if cell["arm"] in ("original", "narrow") else [4, 8, 16, 32, 128]
        assert [context for context, _ in cell["loss_by_context"]] == expected
    original = [c for c in results_of(out)["cells"] if c["arm"] == "original"]
    assert all(c["tokens_to_target"] <= c["tokens"] for c in original)


@pytest.mark.slow
def test_arms_are_timed_though_a_cell_failed_and_again_only_if_asked(
    grid: tuple[Path, Finished], command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(grid[0], out)
    timed = json.loads((out / "speed.json").read_text())
    assert set(timed["8"]["arms"]) == {"original", "rope", "narrow"}
    for arm in timed["8"]["arms"].values():
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in arm.values())
    assert command("report", out).code == 0
    assert json.loads((out / "speed.json").read_text()) == timed
    assert command("report", out, "--rounds", 3).code == 0
    again = json.loads((out / "speed.json").read_text())
    assert all(len(seconds) == 3 for arm in again["8"]["arms"].values() for seconds in arm.values())


# Going on


def test_the_same_command_redoes_nothing_and_other_settings_are_refused(
    grid: tuple[Path, Finished], command: Command, rhyme_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(grid[0], out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("context-8/*/seed-*/measurements.json")}
    config = out / "comparison.yaml"
    settings = yaml.safe_load(config.read_text())
    del settings["arms"]["tired"], settings["arms"]["ahead"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(settings))
    again = command("compare", "--config", tmp_path / "again.yaml", "--rounds", 0, "--out", out)
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = command("compare", "--config", tmp_path / "again.yaml", "--learning-rate", 1e-3, "--out", out)
    assert other.code == 2
    assert "learning_rate was 0.008, now 0.001" in other.err
    settings["claims"] = []
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(settings))
    assert yaml.safe_load(config.read_text())["learning_rate"] == 0.008  # what was refused is not written down
    late = command("compare", "--config", tmp_path / "again.yaml", "--out", out)
    assert late.code == 2
    assert "declared before it ran" in late.err


@pytest.mark.slow
def test_an_attention_that_was_edited_since_is_not_taken_for_the_one_that_was_compared(
    rhyme_file: Path, command: Command, tmp_path: Path
) -> None:
    source = tmp_path / "mine.py"
    source.write_text(MECHANISMS.replace("> 25", "> 10**9"), encoding="utf-8")
    grid = ["compare", "--arm", f"mine={source}:Tired", "--contexts", 8, "--seeds", 1, "--text", rhyme_file, *SIZES]
    out = tmp_path / "out"
    assert command(*grid, "--rounds", 0, "--out", out).code == 0
    source.write_text(source.read_text().replace("Works for a while.", "Works, and is another."), encoding="utf-8")
    again = command(*grid, "--rounds", 0, "--out", out)
    assert again.code == 2
    assert "context-8/mine/seed-1 cannot go on: this model was made with the attention Tired@" in again.err
    assert "choose another --out" in again.err


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_comparison_that_is_stopped_goes_on_where_it_was(rhyme_file: Path, tmp_path: Path, sent: int) -> None:
    arguments = ["--variants", "original,rope", "--contexts", 8, "--seeds", 2, "--text", rhyme_file, *SIZES]
    arguments = ["compare", *arguments, "--rounds", 0, "--out", tmp_path / "out"]
    process = start(*arguments, python=sys.executable)
    deadline = time.monotonic() + LONG
    while not list(tmp_path.glob("out/context-8/*/seed-1/measurements.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)  # as a terminal does: the cells hear it, too
        assert process.wait(LONG) == 130
    else:
        process.kill()  # its cells are left behind, and finish on their own
        process.wait()
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/context-8/*/seed-*/measurements.json")}
    done = program(*arguments)
    assert done.code == 0, done.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(results_of(tmp_path / "out")["cells"]) == 4
    whole = program(*arguments[:-1], tmp_path / "whole")
    assert whole.code == 0
    losses = [[c["test_loss"] for c in results_of(tmp_path / name)["cells"]] for name in ("out", "whole")]
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("warm_cells")
@pytest.mark.slow
def test_shards_copied_together_are_the_whole(rhyme_file: Path, tmp_path: Path, command: Command) -> None:
    arguments = ["--variants", "original,rope", "--contexts", 8, "--seeds", 1, "--text", rhyme_file, *SIZES]
    arguments = ["compare", *arguments, "--rounds", 0]
    for shard in (1, 2):
        assert command(*arguments, "--shard", f"{shard}/2", "--out", tmp_path / str(shard)).code == 0
        assert len(results_of(tmp_path / str(shard))["cells"]) == 1
    for path in (tmp_path / "2").rglob("*"):
        if path.is_file():
            target = tmp_path / "1" / path.relative_to(tmp_path / "2")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    assert command("report", tmp_path / "1").code == 0
    merged = results_of(tmp_path / "1")
    assert [(c["arm"], c["seed"]) for c in merged["cells"]] == [("original", 1), ("rope", 1)]
    assert merged["unfinished"] == []
    assert all(contrast["verdict"] is None for contrast in merged["contrasts"] if contrast["measure"] != "parameters")


# Fairness


@pytest.mark.parametrize("match", ["parameters", "compute"])
def test_matched_arms_are_as_large_or_as_costly_as_the_original(match: Literal["parameters", "compute"]) -> None:
    base = {"embed_dim": 32, "num_heads": 4, "num_layers": 2}
    arms = {name: {"variant": name} for name in ("original", "mqa", "swa", "modern")}
    planned = plan(base, arms, [12], 14, match)
    models = {arm: GPT2.from_config(settings.model.config(14)) for (_, arm), settings in planned.items()}
    size = {"parameters": GPT2.num_parameters, "compute": GPT2.flops_per_token}[match]
    unit = {"parameters": 2 * 65, "compute": 2 * 4 * 32}[match]  # of one more hidden value in both layers
    for arm, model in models.items():
        assert abs(size(model) - size(models["original"])) <= unit / 2, arm
        as_it_was = {"parameters": {"original", "swa"}, "compute": {"original"}}[match]  # a window has no parameters
        assert (model.config.ff_hidden_dim > 128) == (arm not in as_it_was)
    unmatched = plan(base, arms, [12], 14, "none")
    assert {settings.model.ff_hidden_dim for settings in unmatched.values()} == {128}


@pytest.mark.slow
@pytest.mark.usefixtures("warm_cells")
def test_tuning_tries_the_same_rates_for_every_arm_and_never_reads_the_test_part(
    rhyme_file: Path, tmp_path: Path, command: Command
) -> None:
    grid = ["--tune", "--variants", "original,rope", "--contexts", 8, "--seeds", 1, "--rounds", 0]
    done = command("compare", *grid, "--text", rhyme_file, *SIZES, "--learning-rate", 0.004, "--out", tmp_path)
    assert done.code == 0, done.err + done.out
    for arm in ("original", "rope"):
        rates = {}
        for cell in tmp_path.glob(f"context-8/{arm}/tune/rate-*"):
            assert not (cell / "measurements.json").exists()
            records = [json.loads(line) for line in (cell / "metrics.jsonl").read_text().splitlines()]
            settings = yaml.safe_load((cell / "cell.yaml").read_text())
            assert settings["seed"] == 0
            rates[settings["learning_rate"]] = records[-1]["validation_loss"]
        assert sorted(rates) == [0.001, 0.002, 0.004, 0.008]
        (cell,) = [c for c in results_of(tmp_path)["cells"] if c["arm"] == arm]
        assert cell["learning_rate"] == min(rates, key=rates.__getitem__)
        assert cell["rate_at_edge"] == (cell["learning_rate"] in (0.001, 0.008))
        assert cell["seed"] == 1


def test_an_arm_of_the_command_line_has_options_of_its_own() -> None:
    alibi = "examples/alibi.py:ALiBi"
    assert typed_arms([f"mine={alibi}", f"bare={alibi},position=none"]) == {
        "mine": {"attention": alibi},
        "bare": {"attention": alibi, "position": "none"},
    }
    assert typed_arms(["narrow=swa,window=16,16,full,--learning-rate=1e-3", "free=num_kv_heads=1"]) == {
        "narrow": {"variant": "swa", "window": "16,16,full", "learning_rate": "1e-3"},
        "free": {"num_kv_heads": "1"},
    }


@pytest.mark.slow
@pytest.mark.usefixtures("warm_cells")
def test_random_architectures_are_drawn_again_by_their_seed_and_ranked(
    rhyme_file: Path, tmp_path: Path, command: Command
) -> None:
    grid = ["--random", 3, "--seed", 5, "--contexts", 8, "--seeds", 1, "--steps", 2, "--rounds", 0, "--batch-size", 2]
    for name, shard in (("a", "1/1"), ("b", "9/9")):
        done = command("compare", *grid, "--text", rhyme_file, "--shard", shard, "--out", tmp_path / name)
        assert done.code == 0, done.err
    arms = [yaml.safe_load((tmp_path / name / "comparison.yaml").read_text())["arms"] for name in "ab"]
    assert arms[0] == arms[1]
    assert list(arms[0]) == ["original", "random-1", "random-2", "random-3"]
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    ranked = sorted(results_of(tmp_path / "a")["cells"], key=lambda cell: cell["validation_loss"])
    arms_table = page.split('<table class="arms">')[1].split("</table>")[0]
    assert re.findall(r"<tr><td>([\w-]+)</td>", arms_table) == [cell["arm"] for cell in ranked]


@pytest.mark.long
def test_a_ray_cluster_gives_the_same_numbers(rhyme_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    arguments = ["--variants", "original,modern", "--contexts", 8, "--seeds", 2, "--text", rhyme_file, *SIZES]
    arguments = ["compare", *arguments, "--rounds", 0]
    here = program(*arguments, "--out", tmp_path / "here")
    assert here.code == 0, here.err
    ray = [Path(sys.executable).with_name("ray")]
    address = "127.0.0.1:6399"
    head = [
        *ray,
        "start",
        "--head",
        "--port=6399",
        "--num-cpus=1",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    try:
        subprocess.run(head, check=True, capture_output=True, timeout=120)
        subprocess.run(
            [*ray, "start", f"--address={address}", "--num-cpus=1"], check=True, capture_output=True, timeout=120
        )
        there = program(*arguments, "--ray", address, "--out", tmp_path / "there")
    finally:
        subprocess.run([*ray, "stop", "--force"], check=False, capture_output=True, timeout=120)
    assert there.code == 0, there.err + there.out
    cells = [results_of(tmp_path / name)["cells"] for name in ("here", "there")]
    for cell in (*cells[0], *cells[1]):
        del cell["peak_memory"]
    assert cells[0] == cells[1]


# What it tells


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--variants original,ropes", ["unknown arm 'ropes'", "did you mean rope?"]),
        ("--variants original,rope --arm mine", ["name=file.py:ClassName"]),
        ("--arm mine=nowhere", ["'nowhere' is not understood", "name=file.py:ClassName,position=none"]),
        ("--arm mine=rope,5", ["'5' is not understood"]),
        ("--arm mine=rope,window=8,window=9", ["'window=9' is not understood"]),
        ("--arm mine=rope,windw=8", ["the arm mine", "did you mean window?"]),
        ("--arm mine=rope,window=eight", ["the arm mine", "eight"]),
        ("--variants original,rope --position none", ["--position for all arms would change original"]),
        ("--variants original,rope --window 4,full", ["--window for all arms", "--arm mine=rope,window="]),
        ("--variants original,rope --no-bias", ["--bias for all arms"]),
        ("--arm mine=nowhere.py:Mine", ["the arm mine", "no file"]),
        ("--arm ../mine=nowhere.py:Mine", ["letters, digits"]),
        ("--variants swa --contexts 1", ["swa", "very same model as original", "leave it out"]),
        ("--variants original", ["nothing to compare original with"]),
        ("--arm original=nowhere.py:Mine", ["nothing to compare original with"]),
        ("--minutes 1 --shard 1/2", ["--steps"]),
        ("--variants gqa,mqa --num-heads 2", ["gqa", "very same model as original"]),
        ("--contexts 0", ["context_size is 0"]),
        ("--contexts 8,x", ["x"]),
        ("--contexts 5000", ["too short"]),
        ("--seeds 0", ["--seeds is 0"]),
        ("--steps 5 --tokens 100", ["--steps and --tokens", "choose one"]),
        ("--steps -5", ["--steps is -5"]),
        ("--minutes 0", ["--minutes is 0"]),
        ("--max-epochs 1", ["--steps, --tokens or --minutes"]),
        ("--test-fraction 0", ["validation and a test part"]),
        ("--max-hours 0.0001 --steps 1000", ["--max-hours", "would take about"]),
        ("--random 2 --contexts 8,16", ["one with --contexts"]),
        ("--shard 3/2", ["--shard 3/2", "i/n"]),
        ("--context-size 32", ["--contexts"]),
        ("--variant rope", ["--variants"]),
        ("--match sizes", ["match"]),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_before_anything_trains(
    command: Command, rhyme_file: Path, tmp_path: Path, arguments: str, words: list[str]
) -> None:
    settings = ["--text", rhyme_file, "--embed-dim", 16, "--out", tmp_path / "out"]
    given = arguments.split()
    if not {"--contexts", "--context-size"} & {*given}:
        given += ["--contexts", "8"]
    refused = command("compare", *settings, *given)
    assert_one_sentence(refused, *words)
    assert not list(tmp_path.glob("out/*/*/*/model.safetensors"))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("arms: [rope]", ["names with options"]),
        ("arms: {mine: 5}", ["the arm mine has to hold options"]),
        ("arms: {mine: {windw: 3}}", ["unknown option 'windw'", "did you mean window?"]),
        ("arms: {mine: {seed: 3}}", ["unknown option 'seed'"]),
        ("arms: {mine: {accumulation_steps: 3}}", ["unknown option 'accumulation_steps'"]),
        ("arms: {original: {window: 3}, mine: {variant: rope}}", ["the arm original is GPT-2 itself"]),
        ("arms: {mine: {variant: rope}}\nclaims: [{says: x, arm: [mine], measure: test_loss}]", ["['mine']"]),
        ("arms: {mine: {num_heads: 3}}", ["the arm mine", "does not divide"]),
        ("arms: {mine: {embed_dim: wide}}", ["the arm mine"]),
        ("arms: {mine: {learning_rate: -1}}", ["the arm mine", "learning_rate is -1"]),
        ("arms: {mine: {variant: rope}}\nclaims: [{says: x, arm: yours, measure: test_loss}]", ["'yours'"]),
        ("arms: {mine: {variant: rope}}\nclaims: [{says: x, arm: mine, measure: tast_loss}]", ["mean test_loss?"]),
        ("arms: {mine: {variant: rope}}\nclaims: [{arm: mine}]", ["needs says, arm and measure"]),
        ("arms: {mine: {variant: rope}}\nclaims: [{says: x, arm: mine, measure: test_loss, context: 9}]", ["of 9"]),
        ("arms: {mine: {variant: rope}}\ncontxts: 8", ["contxts"]),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(
    command: Command, rhyme_file: Path, tmp_path: Path, written: str, words: list[str]
) -> None:
    config = tmp_path / "grid.yaml"
    config.write_text(written, encoding="utf-8")
    refused = command("compare", "--config", config, "--text", rhyme_file, "--contexts", 8, "--out", tmp_path / "out")
    assert_one_sentence(refused, *words)
    assert not list(tmp_path.glob("out/*/*/*"))


# The report


def test_a_report_is_made_again_from_the_run_folders(
    grid: tuple[Path, Finished], command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(grid[0], out)
    names = ("report.html", "results.csv", "results.json")
    before = {name: (out / name).read_text(encoding="utf-8") for name in names}
    for name in names:
        (out / name).unlink()
    assert command("report", out).code == 0
    assert (out / "results.json").read_text(encoding="utf-8") == before["results.json"]
    assert (out / "results.csv").read_text(encoding="utf-8") == before["results.csv"]
    strip = re.compile(r"[a-z]?[0-9a-f]{10}|<dc:.*?>")  # matplotlib names its parts at random
    assert strip.sub("", (out / "report.html").read_text(encoding="utf-8")) == strip.sub("", before["report.html"])


def test_a_report_tells_what_changed_between_two_comparisons(
    grid: tuple[Path, Finished], command: Command, tmp_path: Path
) -> None:
    out, old = tmp_path / "out", tmp_path / "old.json"
    shutil.copytree(grid[0], out)
    results = results_of(out)
    for cell in results["cells"]:
        cell["test_loss"] += 1.0 if cell["arm"] == "rope" else 0.0
    results["settings"]["learning_rate"] = 0.5
    old.write_text(json.dumps(results), encoding="utf-8")
    assert command("report", out, "--against", old).code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    changed = page[page.index("What changed") : page.index("The arms")]
    assert re.search(r"learning_rate</td><td>0.5</td><td>0.008", changed)
    assert re.search(r"rope.*-1\.0000", changed)
    assert re.search(r"original.*\+0\.0000", changed)
    told = json.loads(command("report", out, "--json").out)
    assert {verdict["arm"] for verdict in told["verdicts"]} == {"narrow", "rope"}
    for wrong in (tmp_path, tmp_path / "nowhere"):
        refused = command("report", out, "--against", wrong)
        assert refused.code == 2
        assert "--against" in refused.err


def test_a_folder_without_a_comparison_has_no_report(command: Command, tmp_path: Path) -> None:
    refused = command("report", tmp_path)
    assert refused.code == 2
    assert "holds no comparison" in refused.err


def test_help_explains_the_grid(command: Command) -> None:
    told = command("compare", "--help").out
    for option in (
        "variants arm contexts seeds steps tokens minutes random match tune workers threads shard ray max-hours".split()
    ):
        assert f"--{option}" in told
    assert main(["report", "--help"]) == 0
