"""What the page tells of trainings, against a folder that trainings wrote and one that is being trained."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from gpt2lab.training.metrics import exact_loss
from tests.cli.conftest import TINY, modern, original, start
from tests.conftest import LONG
from tests.serving.conftest import serving

__all__ = ["modern", "original"]

pytestmark = pytest.mark.xdist_group("serving")


def test_runs_are_listed_with_their_curves_and_a_text_of_each_checkpoint(
    modern: Path, original: Path, rhyme_file: Path, tmp_path: Path
) -> None:
    for run in (modern, original):
        shutil.copytree(run, tmp_path / "runs" / run.name)
    shutil.copytree(modern, tmp_path / "runs" / "torn")
    (tmp_path / "runs" / "torn" / "config.yaml").write_text("no settings", encoding="utf-8")
    (tmp_path / "runs" / "mine").mkdir()
    (tmp_path / "runs" / "mine" / "report.html").write_text("<p>better</p>", encoding="utf-8")
    with serving(tmp_path / "runs" / modern.name, "--runs", tmp_path / "runs") as server:
        found = server.get("runs").json()
        assert [run["name"] for run in found["runs"]] == ["modern", "original"]
        first = found["runs"][0]
        assert (first["step"], first["training"]) == (60, False)
        assert first["validation_loss"] == exact_loss(modern)
        assert first["switches"]["position"] == "rope"
        told = server.get(f"runs/{first['id']}").json()
        assert [record["step"] for record in told["records"]][-1] == 60
        assert [record["step"] for record in told["records"] if "validation_loss" in record] == [20, 40, 60]
        assert [len(sample["text"]) > 100 for sample in told["samples"]] == [True] * len(told["samples"]) != []
        assert server.get(f"runs/{first['id']}").json() == told
        (report,) = found["reports"]
        assert report["name"] == "mine"
        page = server.get(f"reports/{report['id']}")
        assert page.text == "<p>better</p>"
        assert "sandbox" in page.headers["content-security-policy"]
        assert server.get(f"reports/{first['id']}").status_code == 404
        assert server.get(f"runs/{report['id']}").status_code == 404

        options = ["--text", rhyme_file, *TINY, "--max-steps", 100_000, "--checkpoint-every", 20, "--eval-every", 20]
        (tmp_path / "runs" / "young").mkdir()  # it has not come to a checkpoint yet
        for name in ("config.yaml", "metrics.jsonl"):
            shutil.copy(modern / name, tmp_path / "runs" / "young" / name)
        young = next(run for run in server.get("runs").json()["runs"] if run["name"] == "young")
        assert (young["step"], young["validation_loss"], young["training"]) == (60, None, False)
        assert server.get(f"runs/{young['id']}").json()["samples"] == []
        training = start("train", *options, "--out", tmp_path / "runs" / "zlive")
        try:
            end = time.monotonic() + LONG
            while not (at_work := [run for run in server.get("runs").json()["runs"] if run["training"]]):
                assert time.monotonic() < end
                time.sleep(0.1)
            assert [run["name"] for run in at_work] == ["zlive"]
            live = at_work[0]["id"]
            before = len(server.get(f"runs/{live}").json()["records"])
            while len(server.get(f"runs/{live}").json()["records"]) <= before:
                assert time.monotonic() < end
                time.sleep(0.1)
        finally:
            training.send_signal(signal.SIGINT)
            training.communicate(timeout=LONG)
        assert not any(run["training"] for run in server.get("runs").json()["runs"])


def test_a_folder_without_runs_is_an_empty_list(folders: list[Path], tmp_path: Path) -> None:
    with serving(folders[0], "--runs", tmp_path / "none") as server:
        assert server.get("runs").json() == {"runs": [], "reports": []}
