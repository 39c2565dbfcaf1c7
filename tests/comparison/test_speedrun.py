"""Entries and records of the speedrun, and what the rules forbid."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2lab import InputError
from gpt2lab.comparison import speedrun
from gpt2lab.comparison.speedrun import RECORD, Attempt, Speedrun, check_record, read_entries
from gpt2lab.data.corpora import TINYSHAKESPEARE_SHA256

ENTRY = {"num_layers": 2, "window": 4, "learning_rate": 2e-2, "max_steps": 240}


def attempts(*losses: float) -> list[Attempt]:
    return [Attempt("mine", seed, 20.0, loss) for seed, loss in enumerate(losses, 1)]


@pytest.fixture
def any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text that is taken for tinyshakespeare where a record is read."""
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be\n" * 100)
    monkeypatch.setattr(speedrun, "_tinyshakespeare", Path)
    return text


def test_the_entry_that_holds_the_record_keeps_the_rules() -> None:
    assert "max_steps" in read_entries([RECORD])["record"]


def test_what_the_rules_settle_may_be_said() -> None:
    said = {"validation_fraction": 0.1, "test_fraction": 0, "tokenizer": "char", "device": "cpu"}
    assert speedrun.checked_entry(ENTRY | said, "mine.yaml") == ENTRY


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("validation_fraction: 0.2", "validation_fraction is 0.2, but every entry has validation_fraction: 0.1"),
        ("test_fraction: 0.05", "test_fraction is 0.05"),
        ("text: plays.txt", "text is given, but an entry learns the first nine tenths of tinyshakespeare"),
        ("corpus: shakespeare", "corpus is given"),
        ("init_from: runs/old", "init_from is given, but an entry starts from random weights"),
        ("eval_tokens: 512", "its loss is that on the whole last tenth"),
        ("tokenizer: bpe", "tokenizer is 'bpe'"),
        ("attention: file.py:Mine", "described by the switches alone"),
        ("seed: 7", "every seed is trained"),
        ("processes: 2", "there is no option 'processes'"),
        ("num_heads: 3", "num_heads=3 does not divide embed_dim=128"),
        ("learning_rate: fast", "learning_rate is 'fast'"),
    ],
)
def test_an_entry_that_breaks_the_rules_is_refused_in_a_sentence(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(line)
    with pytest.raises(InputError) as told:
        read_entries([path])
    assert str(told.value).startswith(f"{path}: ")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_two_entries_of_one_name_no_trainings_and_a_record_that_is_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two entries are called record"):
        speedrun.speedrun(config=[RECORD, RECORD])
    with pytest.raises(InputError, match="--seeds is 0"):
        speedrun.speedrun(seeds=0)
    with pytest.raises(InputError, match="is there already"):
        speedrun.speedrun(record=tmp_path)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = Speedrun(attempts(1.85, 1.89, 1.87), {"mine": ENTRY})
    record.save(tmp_path / "record.json")
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["summary"]["mine"] == {"median_seconds": 20.0, "mean_loss": pytest.approx(1.87), "reached": 2}
    assert speedrun.read_json(Speedrun, tmp_path / "record.json") == record


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (Speedrun(attempts(1.85, 1.86), {"mine": ENTRY}), "has 2 attempts of mine; 3 or more"),
        (Speedrun(attempts(1.8, 1.8, 1.8), {"other": ENTRY}), "are not those of its entries"),
        (Speedrun([], {}), "are not those of its entries"),
        (Speedrun(attempts(1.8, 1.8, 1.8), {"mine": ENTRY | {"corpus": "shakespeare"}}), "entry mine: corpus is given"),
        (Speedrun(attempts(1.8, 1.8, 1.8), {"mine": ENTRY}, text_sha256="0"), "on another text than tinyshakespeare"),
        (
            Speedrun([replace(one, validation_is_estimate=True) for one in attempts(1.8, 1.8, 1.8)], {"mine": ENTRY}),
            "seed 1 of mine has an estimate of the loss",
        ),
    ],
)
def test_a_record_that_breaks_the_rules_is_refused(
    tmp_path: Path, any_text: Path, record: Speedrun, words: str
) -> None:
    record.save(tmp_path / "record.json")
    with pytest.raises(InputError, match=words):
        check_record(tmp_path / "record.json", any_text)


def test_a_repeated_loss_fits_where_another_training_is_expected(
    tmp_path: Path, any_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Speedrun(attempts(1.85, 1.86, 1.87, 1.86, 1.86), {"mine": ENTRY})
    assert record.text_sha256 == TINYSHAKESPEARE_SHA256
    record.save(tmp_path / "record.json")
    # mean 1.86, standard deviation 0.00707; t of 4 degrees of freedom at 97.5 %: 2.776; sqrt(1 + 1/5) = 1.0954
    for loss, fits in ((1.8386, True), (1.8384, False), (1.8814, True), (1.8816, False)):
        monkeypatch.setattr(speedrun, "train_cold", lambda *_, loss=loss: Attempt("mine", 1, 30.0, loss))
        (check,) = check_record(tmp_path / "record.json", any_text)
        assert (check.fits, check.recorded.seed) == (fits, 1)
