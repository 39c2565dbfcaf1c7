"""``gpt2lab runs``: what there is, and how good it is."""

import json
import shutil
from pathlib import Path

from gpt2lab.runs.folder import best_of, checkpoints_of, read_state
from tests.cli.conftest import Command, assert_one_sentence


def test_runs_of_all_subfolders_are_listed_with_their_switches_and_losses(
    command: Command, modern: Path, original: Path, tmp_path: Path
) -> None:
    shutil.copytree(modern, tmp_path / "below" / "modern[1]")
    shutil.copytree(original, tmp_path / "original")
    (tmp_path / "no run").mkdir()
    listed = json.loads(command("runs", tmp_path, "--json").out)
    assert [Path(run["folder"]).name for run in listed] == ["modern[1]", "original"]
    best = read_state(best_of(checkpoints_of(modern)))
    assert (listed[0]["validation_loss"], listed[0]["best_step"]) == (best.validation_loss, best.step)
    assert (listed[0]["step"], listed[0]["context_size"]) == (60, 16)
    assert listed[0]["switches"] == {"position": "rope", "num_kv_heads": 2, "window": "4"}
    assert listed[1]["switches"] == {}
    told = command("runs", tmp_path).out
    assert f"{best.validation_loss:.4f}" in told
    assert "below/modern[1]" in told
    assert "rhyme.txt" in told


def test_a_damaged_run_is_named_and_the_others_are_listed(
    command: Command, modern: Path, original: Path, tmp_path: Path
) -> None:
    shutil.copytree(modern, tmp_path / "a")
    shutil.copytree(original, tmp_path / "b")
    (tmp_path / "a" / "config.yaml").write_text("context_size: wide", encoding="utf-8")
    done = command("runs", tmp_path)
    assert done.code == 0
    assert "left out: " in done.err
    assert (
        f"config.yaml is damaged, or was edited since it was written; put back what it was, or delete {tmp_path}"
        in (done.err)
    )
    (tmp_path / "a" / "manifest.json").unlink()
    assert "context_size is 'wide'" in command("runs", tmp_path).err
    assert "rhyme.txt" in done.out


def test_a_folder_without_runs_and_one_that_is_not_there_are_told(command: Command, tmp_path: Path) -> None:
    assert command("runs", tmp_path).out == f"{tmp_path} holds no runs\n"
    assert_one_sentence(command("runs", tmp_path / "none"), "there is no folder", "gpt2lab train")
