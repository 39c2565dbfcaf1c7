"""The real corpus, through the program, with the options that nobody has to type; and compiled training."""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from gpt2lab.config import variant_switches
from gpt2lab.data import CharTokenizer, TokenDataset
from gpt2lab.model import GPT2
from gpt2lab.training import Trainer, TrainerConfig
from gpt2lab.training.metrics import Record, read_metrics
from tests.cli.conftest import program

pytestmark = pytest.mark.slow


def test_the_default_training_learns_shakespeare_and_writes_like_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = program("train", "--max-steps", 100, "--out", run)
    assert done.code == 0, done.err
    assert "shakespeare: " in done.out
    assert read_metrics(run / "metrics.jsonl")[-1]["validation_loss"] < 2.3
    measured = json.loads(program("evaluate", run, "--split", "test", "--json").out)[str(run)]
    assert measured["loss"] < 2.4
    assert measured["bits_per_character"] == pytest.approx(measured["bits_per_byte"])  # the plays are ASCII
    assert measured["tokens"] > 200_000
    written = program("generate", run, "--prompt", "ROMEO", "--tokens", 500)
    assert written.code == 0
    words = written.out.split()
    assert sum(word.strip(".,;:!?").lower() in {"the", "and", "to", "of", "i", "you", "a", "my"} for word in words) > 3


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler, which torch.compile needs")
@pytest.mark.parametrize("variant", ["original", "modern"])
def test_a_compiled_training_has_the_losses_of_an_eager_one(
    rhyme: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    tokenizer = CharTokenizer(rhyme)
    data = TokenDataset(tokenizer.encode(rhyme), 32, tokenizer.vocab_size)
    losses: dict[str, list[float]] = {}
    for choice in ("no", "yes"):
        records: list[Record] = []
        model = GPT2(tokenizer.vocab_size, 32, 32, 4, 64, 2, seed=0, **variant_switches(variant, 32, 4))  # type: ignore[arg-type]
        config = TrainerConfig(max_steps=40, batch_size=8, eval_every=10, eval_tokens=1024, compile=choice)  # type: ignore[arg-type]
        trainer = Trainer(model, data, data, config, [records.append], Console(quiet=True))
        assert trainer.compiled is (choice == "yes")
        trainer.train()
        losses[choice] = [record[name] for record in records for name in ("loss", "validation_loss")]
    assert losses["yes"] == pytest.approx(losses["no"], abs=1e-3)
    assert losses["no"][-1] < losses["no"][0] - 0.5
