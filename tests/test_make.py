"""What ``make`` says where a machine lacks something, and that it runs the tests as it is meant to."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_without_virtual_environments_the_missing_package_is_named(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    command = ["make", "demo", "PYTHON=false"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot make a virtual environment here; on Debian and Ubuntu: apt install python3-venv" in done.stdout


@pytest.mark.xdist_group("one")
def test_tests_of_a_group_stay_in_one_worker(request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("all tests run in one process")
    assert request.node.nodeid.endswith("@one")  # which is what the tests are divided by
