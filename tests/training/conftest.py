import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gpt2lab.data import CharTokenizer, TokenDataset
from gpt2lab.model import GPT2
from gpt2lab.runs.records import Record
from gpt2lab.training import Trainer, TrainerConfig

CONTEXT = 8

# What depends on the clock, and not on the computation.
CLOCK = {"seconds", "tokens_per_second", "peak_share", "peak_memory"}

MakeTrainer = Callable[..., Trainer]


def tiny_model(vocab_size: int, **changes: Any) -> GPT2:
    sizes = {"max_seq_len": CONTEXT, "embed_dim": 16, "num_heads": 2, "ff_hidden_dim": 32, "num_layers": 2}
    return GPT2(vocab_size, **{**sizes, "seed": 0, **changes})


def without_clock(records: list[Record]) -> list[Record]:
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in records]


@pytest.fixture(scope="session")
def train_data(rhyme: str) -> TokenDataset:
    tokenizer = CharTokenizer(rhyme)
    return TokenDataset(tokenizer.encode(rhyme[:12_000]).astype(np.uint16), CONTEXT, tokenizer.vocab_size)


@pytest.fixture(scope="session")
def test_data(rhyme: str) -> TokenDataset:
    tokenizer = CharTokenizer(rhyme)
    return TokenDataset(tokenizer.encode(rhyme[12_000:]).astype(np.uint16), CONTEXT, tokenizer.vocab_size)


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), width=300)


@pytest.fixture
def make_trainer(train_data: TokenDataset, test_data: TokenDataset, quiet: Console) -> MakeTrainer:
    """A tiny model, twelve steps, no compiling; keywords change the configuration."""

    def make(model: GPT2 | None = None, validate: bool = True, **changes: Any) -> Trainer:
        defaults = {"max_steps": 12, "batch_size": 4, "eval_every": 4, "warmup_steps": 2, "compile": "no"}
        config = TrainerConfig(**{**defaults, "device": "cpu", "precision": "float32", **changes})
        model = tiny_model(train_data.vocab_size, dropout=0.1) if model is None else model
        return Trainer(model, train_data, test_data if validate else None, config, console=quiet)

    return make
