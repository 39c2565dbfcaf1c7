"""Ctrl-C ends every command in one line, at any moment."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import environment
from tests.conftest import LONG

# Presses Ctrl-C when a library is about to load.
PRESSES = """
import os, signal, sys

class Pressed:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Pressed())
from gpt2lab.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("library", "command"),
    [
        ("cyclopts", ["--help"]),
        ("rich.console", ["--help"]),
        ("gpt2lab.cli.generate", ["--help"]),
        ("gpt2lab.training.run", ["train"]),
        ("torch", ["evaluate", "runs/none"]),
    ],
)
def test_while_libraries_load(library: str, command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRESSES, library, *command],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ngpt2lab: interrupted\n")
