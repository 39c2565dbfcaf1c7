"""``gpt2lab retrofit``: a run gets other switches, is trained further, and tells what that cost."""

import json
from pathlib import Path

import pytest

import gpt2lab
from gpt2lab import InputError
from gpt2lab.evaluation import evaluate
from gpt2lab.retrofit.convert import converted
from gpt2lab.runs.folder import open_text
from gpt2lab.runs.settings import RunSettings
from tests.cli.conftest import Command, assert_one_sentence, command, original

__all__ = ["command", "original"]


def test_a_run_gets_the_switches_and_tells_what_was_lost_and_regained(
    original: Path, command: Command, tmp_path: Path
) -> None:
    switches = ["--num-kv-heads", 2, "--position", "rope", "--window", 4]
    done = command("retrofit", original, *switches, "--share", 0.5, "--controls", "--out", tmp_path / "new")
    assert (done.code, done.err) == (0, "")
    told = json.loads((tmp_path / "new" / "retrofit.json").read_text(encoding="utf-8"))
    model, tokenizer = gpt2lab.load(original)
    tokens = open_text(RunSettings.read(original / "config.yaml").data, tokenizer).tokens("validation")
    wanted = {"num_kv_heads": 2, "position": "rope", "window": 4}
    assert told["before"] == pytest.approx(evaluate(model, tokens, tokenizer).loss)
    for name, value in wanted.items():
        alone = converted(model, **{name: value}, heads="aligned")  # type: ignore[arg-type]
        assert told["damaged"][name] == pytest.approx(evaluate(alone, tokens, tokenizer).loss)
    new, _ = gpt2lab.load(tmp_path / "new", checkpoint="last")
    assert (new.config.kv_heads, new.config.position, new.config.window) == (2, "rope", 4)
    assert told["after"] == pytest.approx(evaluate(new, tokens, tokenizer).loss)
    assert told["after"] < told["damaged"]["together"]
    scratch = RunSettings.read(tmp_path / "new" / "controls" / "scratch" / "config.yaml").training
    assert (scratch.max_steps, scratch.learning_rate) == (20 + 10, 8e-3)
    assert "right after: num-kv-heads" in done.out
    assert (tmp_path / "new" / "retrofit.svg").exists()
    assert command("evaluate", tmp_path / "new").code == 0
    again = command("retrofit", original, *switches, "--out", tmp_path / "new")
    assert_one_sentence(again, "holds something already")


def test_a_saved_model_needs_a_text_and_a_length(original: Path, rhyme_file: Path, tmp_path: Path) -> None:
    model, tokenizer = gpt2lab.load(original)
    model.save(tmp_path / "saved", tokenizer)
    with pytest.raises(InputError, match=r"nothing says how many tokens .* add --max-steps"):
        gpt2lab.retrofit(tmp_path / "saved", window=4, text=str(rhyme_file), out=tmp_path / "new")
    with pytest.raises(InputError, match="has no max_epochs; give share, or max_steps"):
        gpt2lab.retrofit(original, window=4, max_epochs=2, out=tmp_path / "new")
    with pytest.raises(InputError, match="--out is missing"):
        gpt2lab.retrofit(original, window=4)
    found = gpt2lab.retrofit(
        tmp_path / "saved", window=4, text=str(rhyme_file), max_steps=2, batch_size=2, out=tmp_path / "new",
        progress=lambda _: None,
    )  # fmt: skip
    assert found.after is not None
    assert found.unconverted is None
