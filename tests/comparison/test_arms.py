"""Arms: values of a file are those of a flag, and what no option can be is one sentence."""

from pathlib import Path

import pytest

from gpt2lab.comparison import grid
from gpt2lab.comparison.arms import check_arms, read_file, with_original
from gpt2lab.errors import InputError

FILE = """
arms:
  slow: {variant: rope, learning_rate: 1e-3, warmup_steps: "7", sinks: yes, window: 8}
contexts: [16]
learning_rate: 2e-3
rounds: 0
workers: 2
"""


def test_values_of_a_file_are_those_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "arms.yaml").write_text(FILE)
    arms, _, options = read_file(tmp_path / "arms.yaml")
    assert options == {"contexts": (16,), "learning_rate": 0.002, "rounds": 0, "workers": 2}
    slow = grid._settings({"learning_rate": 0.002}, check_arms(with_original(arms))["slow"], 16, 16)
    training, model = slow.training, slow.model
    assert (training.learning_rate, training.warmup_steps) == (0.001, 7)
    assert (model.sinks, model.window) == (True, 8)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("learning_rate: fast", "learning_rate is 'fast'; it has to be a number, above 0"),
        ("num_layers: 1.5", "num_layers is 1.5"),
        ("sinks: 3", "sinks is 3"),
        ("window: 8 often", "often"),
        ("position: [1]", "position"),
    ],
)
def test_what_no_value_of_an_option_is_names_file_arm_and_option(tmp_path: Path, written: str, words: str) -> None:
    (tmp_path / "arms.yaml").write_text(f"arms:\n  slow: {{{written}}}\n")
    with pytest.raises(InputError) as found:
        read_file(tmp_path / "arms.yaml")
    assert f"{tmp_path / 'arms.yaml'}: the arm slow: " in str(found.value)
    assert words in str(found.value)


def test_in_python_the_sentence_names_the_arm() -> None:
    with pytest.raises(InputError, match="the arm fast: learning_rate is 'x'"):
        check_arms({"original": {}, "fast": {"learning_rate": "x"}})
