"""``gpt2lab speedrun``: a real cold training on the real text, and what is refused."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpt2lab.comparison import speedrun
from gpt2lab.comparison.speedrun import seconds_until
from gpt2lab.errors import InputError
from tests.cli.conftest import Command, assert_one_sentence, program


@contextmanager
def open_to_other_texts(monkeypatch: pytest.MonkeyPatch, text: Path) -> Iterator[None]:
    """As if another text were tinyshakespeare, which these tests have not."""
    with monkeypatch.context() as patched:
        patched.setattr(speedrun, "TINYSHAKESPEARE_SHA256", hashlib.sha256(text.read_bytes()).hexdigest())
        yield


@pytest.mark.slow
def test_a_cold_process_reaches_the_loss_of_the_public_recipe() -> None:
    path = os.environ.get("GPT2LAB_TINYSHAKESPEARE")
    if path is None:
        pytest.skip("GPT2LAB_TINYSHAKESPEARE is not set to the path of tinyshakespeare's input.txt")
    done = program("speedrun", "--text", path, "--seeds", 1, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (attempt,), summary = found["attempts"], found["summary"]["record"]
    assert found["target"] == 1.88
    assert 1.7 < attempt["loss"] < 1.95  # one in five may miss
    assert summary["reached"] == (attempt["loss"] <= 1.88)
    assert summary["median_seconds"] == attempt["seconds"] > 5


def test_the_clock_stops_at_the_line_that_is_waited_for_and_not_at_the_end() -> None:
    script = "import time; print('step 1'); print('step 2/2 val 1.5', flush=True); time.sleep(1)"
    seconds, line = seconds_until(r"^step +(\d+)/\1 .*val", [sys.executable, "-c", script], os.environ)
    assert line == "step 2/2 val 1.5\n"
    assert 0 < seconds < 60
    with pytest.raises(InputError, match="ended with exit code 0 before it told its loss"):
        seconds_until("^never", [sys.executable, "-c", "print(1)"], os.environ)


def test_another_text_has_another_loss_and_is_refused(rhyme_file: Path, command: Command) -> None:
    assert_one_sentence(command("speedrun", "--text", rhyme_file), "is not tinyshakespeare", "SHA-256")


@pytest.mark.slow
def test_a_record_is_written_judged_and_repeated(
    tmp_path: Path, rhyme_file: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {"wide": "embed_dim: 64\n", "narrow": "embed_dim: 16\n"}
    for name, width in entries.items():
        (tmp_path / f"{name}.yaml").write_text(f"{width}context_size: 16\nnum_layers: 1\nmax_steps: 30\n")
    path = tmp_path / "record.json"
    asked = [path, "--text", rhyme_file, "--seeds", 3]
    asked += [part for name in entries for part in ("--config", tmp_path / f"{name}.yaml")]
    with open_to_other_texts(monkeypatch, rhyme_file):
        done = command("speedrun", *asked)
        assert done.code == 0, done.err
        record = json.loads(path.read_text())
        made = [(attempt["arm"], attempt["seed"]) for attempt in record["attempts"]]
        assert made == [(arm, seed) for seed in (1, 2, 3) for arm in entries]  # in turn
        judged = command("judge", path, "--baseline", "narrow", "--json")
        assert judged.code == 0, judged.err  # the wide one learns more
        assert json.loads(judged.out)["verdicts"][0]["verdict"] == "better"
        assert_one_sentence(command("speedrun", *asked), f"{path} is there already")

        checked = command("speedrun", "--check", path, "--text", rhyme_file, "--json")
        assert checked.code == 0, checked.err
        for check, attempt in zip(json.loads(checked.out), record["attempts"], strict=False):
            assert check["recorded"] == attempt
            assert check["repeated"]["loss"] == attempt["loss"]  # the same machine repeats it number for number
            assert check["fits"]
        for attempt in record["attempts"]:
            attempt["loss"] -= 0.5
        path.write_text(json.dumps(record))
        told = command("speedrun", "--check", path, "--text", rhyme_file)
        assert told.code == 1, told.err
        assert told.out.count("it does not fit") == 2


def test_no_trainings_are_refused(command: Command) -> None:
    assert_one_sentence(command("speedrun", "--seeds", 0), "--seeds is 0")
