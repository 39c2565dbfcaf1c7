"""The wheel, built and used outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with the wheel; its dependencies are those that are installed here."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    packages = run(
        folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    ).strip()
    # A line in a .pth file adds a folder without reading the .pth files in it: the editable install stays out.
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed",
        wheel, cwd=folder)  # fmt: skip
    return folder / "bin"


def test_the_wheel_holds_the_package_its_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "gpt2lab").rglob("*.py")}
    packaged = {name for name in names if ".dist-info/" not in name}
    assert sources <= packaged
    assert all(name.startswith("gpt2lab/") for name in packaged)
    assert any(name.endswith("LICENSE") for name in names)


def test_the_installed_program_trains_measures_and_writes_outside_the_checkout(
    installed: Path, rhyme_file: Path, tmp_path: Path
) -> None:
    where = run(installed / "python", "-c", "import gpt2lab; print(gpt2lab.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    program = installed / "gpt2lab"
    version = run(installed / "python", "-c", "from importlib.metadata import version; print(version('gpt2lab'))",
                  cwd=tmp_path)  # fmt: skip
    assert version.strip() in run(program, "--version", cwd=tmp_path)
    sizes = "--context-size 8 --embed-dim 16 --num-heads 2 --num-layers 1 --max-steps 5".split()
    run(program, "train", "--text", rhyme_file, *sizes, "--out", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "loss.svg").exists()
    assert "nats/token" in run(program, "evaluate", "run", cwd=tmp_path)
    assert run(program, "generate", "run", "--prompt", "the", "--tokens", 20, cwd=tmp_path).startswith("the")


def test_the_library_of_the_wheel_says_that_it_is_typed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert "gpt2lab/py.typed" in archive.namelist()
