"""``gpt2lab speedrun``: a real cold training on the real text, and what is refused."""

import json
import os
import sys
from pathlib import Path

import pytest

from gpt2lab.errors import InputError
from gpt2lab.training.speedrun import seconds_until
from tests.cli.conftest import Command, assert_one_sentence, program


@pytest.mark.slow
def test_a_cold_process_reaches_the_loss_of_the_public_recipe() -> None:
    path = os.environ.get("GPT2LAB_TINYSHAKESPEARE")
    if path is None:
        pytest.skip("GPT2LAB_TINYSHAKESPEARE is not set to the path of tinyshakespeare's input.txt")
    done = program("speedrun", "--text", path, "--seeds", 1, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (attempt,) = found["attempts"]
    assert found["target"] == 1.88
    assert 1.7 < attempt["loss"] < 1.95  # one in five may miss
    assert found["reached"] == (attempt["loss"] <= 1.88)
    assert found["median_seconds"] == attempt["seconds"] > 5


def test_the_clock_stops_at_the_line_that_is_waited_for_and_not_at_the_end() -> None:
    script = "import time; print('step 1'); print('step 2/2 val 1.5', flush=True); time.sleep(1)"
    seconds, line = seconds_until(r"^step +(\d+)/\1 .*val", [sys.executable, "-c", script], os.environ)
    assert line == "step 2/2 val 1.5\n"
    assert 0 < seconds < 60
    with pytest.raises(InputError, match="ended with exit code 0 before it told its loss"):
        seconds_until("^never", [sys.executable, "-c", "print(1)"], os.environ)


def test_another_text_has_another_loss_and_is_refused(rhyme_file: Path, command: Command) -> None:
    assert_one_sentence(command("speedrun", "--text", rhyme_file), "is not tinyshakespeare", "SHA-256")


def test_no_trainings_are_refused(command: Command) -> None:
    assert_one_sentence(command("speedrun", "--seeds", 0), "--seeds is 0")
