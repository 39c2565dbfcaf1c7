"""GPT-2 whose attention can be swapped.

With every switch off it is GPT-2, number for number; switched on: rotary positions, grouped-query and multi-query
attention, sliding windows, or a mechanism of your own.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2lab.comparison.judge import judge
    from gpt2lab.comparison.run import compare, report
    from gpt2lab.config import GPT2Config
    from gpt2lab.data import CharDataset, CharTokenizer, TokenDataset
    from gpt2lab.data.pack import pack
    from gpt2lab.errors import InputError, TrainingError
    from gpt2lab.evaluation.evaluate import estimate_loss
    from gpt2lab.evaluation.runs import evaluate
    from gpt2lab.generation import Engine, Sampling, sample, stream
    from gpt2lab.generation.runs import generate
    from gpt2lab.model import (
        GPT2,
        CausalityError,
        GPT2Embeddings,
        GroupQueryAttention,
        KeyValueCache,
        MultiHeadAttention,
        ScaledDotProductAttention,
        SlidingWindowAttention,
        TransformerBlock,
        assert_causal,
        attend,
    )
    from gpt2lab.runs.folder import load
    from gpt2lab.runs.settings import TrainerConfig
    from gpt2lab.training.run import train
    from gpt2lab.training.trainer import Trainer

# Where each public name comes from. It is imported when it is first used: writing text does not load what trains.
_HOMES = {
    "gpt2lab.comparison.judge": ["judge"],
    "gpt2lab.comparison.run": ["compare", "report"],
    "gpt2lab.config": ["GPT2Config"],
    "gpt2lab.data": ["CharDataset", "CharTokenizer", "TokenDataset"],
    "gpt2lab.data.pack": ["pack"],
    "gpt2lab.errors": ["InputError", "TrainingError"],
    "gpt2lab.evaluation.evaluate": ["estimate_loss"],
    "gpt2lab.evaluation.runs": ["evaluate"],
    "gpt2lab.generation": ["Engine", "Sampling", "sample", "stream"],
    "gpt2lab.generation.runs": ["generate"],
    "gpt2lab.model": [
        "GPT2",
        "CausalityError",
        "GPT2Embeddings",
        "GroupQueryAttention",
        "KeyValueCache",
        "MultiHeadAttention",
        "ScaledDotProductAttention",
        "SlidingWindowAttention",
        "TransformerBlock",
        "assert_causal",
        "attend",
    ],
    "gpt2lab.runs.folder": ["load"],
    "gpt2lab.runs.settings": ["TrainerConfig"],
    "gpt2lab.training.run": ["train"],
    "gpt2lab.training.trainer": ["Trainer"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "GPT2",
    "CausalityError",
    "CharDataset",
    "CharTokenizer",
    "Engine",
    "GPT2Config",
    "GPT2Embeddings",
    "GroupQueryAttention",
    "InputError",
    "KeyValueCache",
    "MultiHeadAttention",
    "Sampling",
    "ScaledDotProductAttention",
    "SlidingWindowAttention",
    "TokenDataset",
    "Trainer",
    "TrainerConfig",
    "TrainingError",
    "TransformerBlock",
    "assert_causal",
    "attend",
    "compare",
    "estimate_loss",
    "evaluate",
    "generate",
    "judge",
    "load",
    "pack",
    "report",
    "sample",
    "stream",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
