"""What other systems lack, taken away: the commands work without it, and a terminal that closes loses nothing.

macOS and Windows themselves are left to the public CI (``.github/workflows/ci.yml``).
"""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2lab.data import load_tokenizer
from gpt2lab.runs.folder import checkpoints_of
from tests.cli.conftest import TINY, environment
from tests.conftest import LONG

# What Linux has, and Windows or macOS have not. It is hidden from all processes that a command starts.
HIDE = """
import multiprocessing, os, pathlib, signal, stat, sys

sys.modules["fcntl"] = None
sys.modules["resource"] = None
for name in ("SIGUSR1", "SIGHUP"):
    delattr(signal, name)
for name in ("sched_getaffinity", "fork"):
    delattr(os, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
opened, exists = os.open, pathlib.Path.exists

def no_folders(path, *arguments, **options):
    if not isinstance(path, int) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *arguments, **options)

os.open = no_folders
pathlib.Path.exists = lambda path, **options: not str(path).startswith("/proc") and exists(path, **options)
"""


@pytest.mark.slow
def test_commands_work_without_what_only_linux_has(rhyme_file: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE, encoding="utf-8")
    elsewhere = environment() | {"PYTHONPATH": str(tmp_path / "site")}

    def works(*arguments: object) -> str:
        command = [sys.executable, "-m", "gpt2lab", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=elsewhere, timeout=LONG, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    shards, run = tmp_path / "shards", tmp_path / "run"
    works("data", "pack", rhyme_file, "--tokenizer", "char", "--processes", 2, "--out", shards)
    assert load_tokenizer(shards / "tokenizer.json").vocab_size > 10
    works("train", "--text", shards, *TINY, "--max-steps", 12, "--checkpoint-every", 6, "--out", run)
    works("train", "--resume", run, "--max-steps", 16)
    assert json.loads(works("evaluate", run, "--contexts", 16, "--json"))
    works("generate", run, "--tokens", 5)
    few = ["--contexts", 16, "--seeds", 2, "--steps", 8, "--workers", 2]
    sizes = [option for option in TINY if option not in ("--context-size", "16")]
    works("compare", "--text", rhyme_file, *sizes, *few, "--variants", "original,rope", "--out", tmp_path / "compared")
    assert (tmp_path / "compared" / "results.json").exists()


def test_a_terminal_that_closes_leaves_a_checkpoint_and_a_picture(rhyme_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:  # a session of its own, on a terminal of its own
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        options = ["--text", rhyme_file, *TINY, "--max-steps", "1000000", "--threads", "1", "--out", run]
        os.execve(sys.executable, [sys.executable, "-m", "gpt2lab", "train", *map(str, options)], environment())
    end = time.monotonic() + LONG
    printed = b""
    while b"/1000000" not in printed or b"tok/s" not in printed:
        assert time.monotonic() < end
        printed += os.read(terminal, 1000)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert len(checkpoints_of(run)) == 1
    assert (run / "loss.svg").exists()
