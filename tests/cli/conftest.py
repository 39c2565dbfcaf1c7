import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpt2lab.cli import main
from tests.conftest import LONG, MakeOnce
from tests.warm import warm_python

# Sizes that train in a second; with four heads the modern variant shares two key/value heads.
TINY = "--context-size 16 --embed-dim 32 --num-heads 4 --num-layers 1 --batch-size 4 --compile no".split()


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Finished]


def assert_one_sentence(done: Finished, *words: str) -> None:
    """Bad input was told in one sentence on stderr that holds these words, and with exit code 2."""
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith("gpt2lab: ")
    assert "Traceback" not in done.err + done.out
    assert len(done.err) > 30
    for word in words:
        assert word in done.err


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "250"}


def program(*arguments: object, cwd: Path | None = None, python: str | None = None) -> Finished:
    """Run ``gpt2lab`` as users do; by a Python that is warm, if none is named."""
    done = subprocess.run(
        [python or warm_python(), "-m", "gpt2lab", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        timeout=LONG,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def start(*arguments: object, python: str | None = None) -> subprocess.Popen[str]:
    """Start ``gpt2lab`` and come back while it runs."""
    command = [python or warm_python(), "-m", "gpt2lab", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, which saves the seconds that importing torch takes."""
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments: object) -> Finished:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Finished(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def modern(rhyme_file: Path, make_once: MakeOnce) -> Path:
    """Run folder of the modern variant, trained a little by the program itself."""

    def make(run: Path) -> None:
        options = ["--text", rhyme_file, *TINY, "--max-steps", 60, "--eval-every", 20, "--out", run]
        done = program("train", *options, python=sys.executable)
        assert done.code == 0, done.err
        (run / "printed.txt").write_text(done.out, encoding="utf-8")

    return make_once("modern", make)


@pytest.fixture(scope="session")
def original(rhyme_file: Path, make_once: MakeOnce) -> Path:
    """The same for the original GPT-2, interrupted by nothing, with its learned positions."""

    def make(run: Path) -> None:
        settings = ["--text", str(rhyme_file), *TINY, "--variant", "original", "--max-steps", "20", "--out", str(run)]
        assert main(["train", *settings]) == 0

    return make_once("original", make)
