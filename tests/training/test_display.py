"""How a terminal shows a training."""

import io
import re
import time

import pytest
from rich.console import Console

from gpt2lab.runs.records import Record, TrainingProgress
from gpt2lab.training.display import TerminalDisplay


def record(step: int, **measured: float) -> Record:
    return {
        "step": step,
        "tokens": 32 * step,
        "seconds": 1.0,
        "loss": 2.5,
        "learning_rate": 1e-3,
        "tokens_per_second": 1234.5,
        "peak_share": 0.07,
        "peak_memory": 1,
        "skipped": 0,
        **measured,  # type: ignore[typeddict-item]
    }


def shown(told: list[TrainingProgress], terminal: bool, width: int = 120) -> str:
    file = io.StringIO()
    with TerminalDisplay(Console(file=file, force_terminal=terminal, width=width)) as display:
        for progress in told:
            display(progress)
    return file.getvalue()


def test_a_terminal_has_a_live_line_above_which_messages_and_validations_stay() -> None:
    told = [
        TrainingProgress(0, 40, message="how it trains"),
        TrainingProgress(10, 40, record=record(10)),
        TrainingProgress(20, 40, record=record(20, validation_loss=2.25)),
    ]
    lines = shown(told, terminal=True)
    assert "\x1b" in lines
    assert "how it trains" in lines
    assert "step 20/40" in lines
    assert "step     20/40 · loss 2.500 · val 2.250 · 1,234 tok/s · 7% of peak" in lines
    assert "step     10/40" not in lines


def test_elsewhere_there_are_plain_lines_at_every_tenth_until_something_is_measured() -> None:
    steps = range(10, 310, 10)
    unmeasured = shown([TrainingProgress(step, 300, record=record(step)) for step in steps], terminal=False)
    assert [int(line.split("/")[0].split()[1]) for line in unmeasured.splitlines()] == [*range(30, 301, 30)]
    assert "\x1b" not in unmeasured
    measured = [
        TrainingProgress(step, 300, record=record(step, **({"validation_loss": 2.0} if step == 100 else {})))
        for step in steps
    ]
    lines = shown(measured, terminal=False).splitlines()
    assert [int(line.split("/")[0].split()[1]) for line in lines] == [30, 60, 90, 100, 300]
    assert "val 2.000" in lines[-1]


def test_a_printed_speed_is_the_mean_since_the_line_before_and_the_live_one_the_latest() -> None:
    """One pause of a busy machine must not look like the speed of the run."""

    def at(step: int, speed: float) -> TrainingProgress:
        measured = {"validation_loss": 2.0} if step % 50 == 0 else {}
        numbers = record(step, tokens_per_second=speed, peak_share=speed / 10_000, **measured)
        return TrainingProgress(step, 100, record=numbers)

    told = [at(step, 1000.0 if step <= 50 else 800.0 if step < 100 else 50.0) for step in range(10, 101, 10)]
    lines = [line for line in shown(told, terminal=False).splitlines() if "val 2.000" in line]
    assert "1,000 tok/s · 10% of peak" in lines[0]
    assert f"{5 * 320 / (4 * 320 / 800 + 320 / 50):,.0f} tok/s · 2% of peak" in lines[1]
    assert " 50 tok/s" in shown(told, terminal=True)


def test_the_time_that_is_left_can_be_read_at_80_columns() -> None:
    told = [TrainingProgress(step, 20_000, record=record(step)) for step in range(10, 12_350, 10)]
    seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(told, terminal=True, width=80))
    live = re.findall(r"step 12340/20000 (?:-|\d):(?:--|\d\d):(?:--|\d\d) left loss 2\.500 · val – · 1,234 tok/s", seen)
    assert live
    assert len(live[-1]) <= 80


def test_the_time_that_is_left_is_printed_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", iter(range(0, 10_000, 60)).__next__)  # a minute for each look at the clock
    told = [
        TrainingProgress(0, 300),
        *(TrainingProgress(step, 300, record=record(step)) for step in range(10, 301, 10)),
    ]
    lines = shown(told, terminal=False, width=80).splitlines()
    assert lines[0].startswith("step     30/300 · loss 2.500 · val – · 1,234 tok/s · 7% of peak · ")
    assert [line.partition(" of peak")[2] for line in lines[-2:]] == [" · 0:01:00 left", ""]
