"""Whatever touch of the disk fails, or is the last before the process dies: what is left can be gone on with, and ends
as it would have.

The slow tests try a sample; ``make test-long`` tries every touch (figures: docs/reliability.md).
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.warm import warm_python

ROOT = Path(__file__).parents[1]
TRIED = ["train", "resume", "finish", "pack", "report"]
HOW = ["fail", "full", "kill"]


def tried(folder: Path, rhyme_file: Path, scenario: str, how: str, every: int) -> dict[str, int]:
    start = folder / "start"
    shutil.copytree(ROOT / "tests" / "old_folders" / "comparison", start / "comparison")
    for path in start.rglob("*.*"):
        if path.suffix in (".yaml", ".json") and "HERE" in (content := path.read_text(encoding="utf-8")):
            path.write_text(content.replace("HERE", str(ROOT / "tests" / "old_folders")), encoding="utf-8")
    shutil.copy(rhyme_file, start / "text.txt")
    done = subprocess.run(
        [warm_python(), ROOT / "tests" / "faults.py", folder, scenario, how, str(every)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3600,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert found["touches"] > 10
    assert sum(found["endings"].values()) == found["tried"]
    if how == "kill":
        assert found["endings"] == {"killed": found["tried"]}
    return dict(found["endings"])


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("scenario", TRIED)
def test_a_sample_of_the_touches_of_the_disk_may_fail(
    tmp_path: Path, rhyme_file: Path, scenario: str, how: str
) -> None:
    tried(tmp_path, rhyme_file, scenario, how, every=29 if scenario == "pack" else 17)


@pytest.mark.long
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("scenario", TRIED)
def test_every_touch_of_the_disk_may_fail(tmp_path: Path, rhyme_file: Path, scenario: str, how: str) -> None:
    print(scenario, how, tried(tmp_path, rhyme_file, scenario, how, every=1))
