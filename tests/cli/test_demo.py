"""``gpt2lab demo``: it writes text early on, and ends with an answer that its own rules allow."""

import re
from pathlib import Path

import pytest

from tests.cli.conftest import program

pytestmark = pytest.mark.slow


def test_the_demo_writes_answers_and_is_not_done_twice(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = program("demo", "--max-steps", 12, "--out", out)
    assert (done.code, done.err) == (0, "")
    written = done.out.index("what the first modern model writes")
    assert done.out.index("of 6 trainings done") < written < done.out.index("6 of 6 trainings done")
    answer = done.out.split("which one predicts better?")[1]
    assert re.search(r"^  modern: (better|worse) by|^  modern: no difference shown", answer, re.MULTILINE)
    assert f"report  {out / 'report.html'}" in answer
    assert (out / "loss.svg").exists()
    assert program("generate", out / "context-64" / "modern" / "seed-1", "--tokens", 5).code == 0

    again = program("demo", "--max-steps", 12, "--out", out)
    assert (again.code, again.err) == (0, "")
    assert "trainings done" not in again.out
    assert again.out.split("which one predicts better?")[1] == answer
