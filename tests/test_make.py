"""What ``make`` says where a machine lacks something."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_without_virtual_environments_the_missing_package_is_named(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    command = ["make", "demo", "PYTHON=false"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot make a virtual environment here; on Debian and Ubuntu: apt install python3-venv" in done.stdout
