"""GPT-2 whose attention can be swapped.

With every switch off it is GPT-2, number for number; switched on: rotary positions, grouped-query and multi-query
attention, sliding windows, or a mechanism of your own.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2lab.comparison.judge import judge as judge
    from gpt2lab.comparison.run import compare as compare
    from gpt2lab.comparison.run import report as report
    from gpt2lab.config import GPT2Config as GPT2Config
    from gpt2lab.data import CharDataset as CharDataset
    from gpt2lab.data import CharTokenizer as CharTokenizer
    from gpt2lab.data import TokenDataset as TokenDataset
    from gpt2lab.data.pack import pack as pack
    from gpt2lab.errors import InputError as InputError
    from gpt2lab.errors import TrainingError as TrainingError
    from gpt2lab.evaluation.evaluate import estimate_loss as estimate_loss
    from gpt2lab.evaluation.runs import evaluate as evaluate
    from gpt2lab.generation import Engine as Engine
    from gpt2lab.generation import Sampling as Sampling
    from gpt2lab.generation import sample as sample
    from gpt2lab.generation import stream as stream
    from gpt2lab.generation.runs import generate as generate
    from gpt2lab.model import GPT2 as GPT2
    from gpt2lab.model import AttentionSinks as AttentionSinks
    from gpt2lab.model import Cached as Cached
    from gpt2lab.model import CausalityError as CausalityError
    from gpt2lab.model import GPT2Embeddings as GPT2Embeddings
    from gpt2lab.model import GroupQueryAttention as GroupQueryAttention
    from gpt2lab.model import KeyValueCache as KeyValueCache
    from gpt2lab.model import MultiHeadAttention as MultiHeadAttention
    from gpt2lab.model import QueryKeyNorm as QueryKeyNorm
    from gpt2lab.model import ScaledDotProductAttention as ScaledDotProductAttention
    from gpt2lab.model import SlidingWindowAttention as SlidingWindowAttention
    from gpt2lab.model import TransformerBlock as TransformerBlock
    from gpt2lab.model import assert_causal as assert_causal
    from gpt2lab.model import attend as attend
    from gpt2lab.planning.ways import plan as plan
    from gpt2lab.runs.folder import load as load
    from gpt2lab.runs.settings import TrainerConfig as TrainerConfig
    from gpt2lab.training.run import train as train
    from gpt2lab.training.trainer import Trainer as Trainer

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
        "AttentionSinks",
        "Cached",
        "CausalityError",
        "GPT2Embeddings",
        "GroupQueryAttention",
        "KeyValueCache",
        "MultiHeadAttention",
        "QueryKeyNorm",
        "ScaledDotProductAttention",
        "SlidingWindowAttention",
        "TransformerBlock",
        "assert_causal",
        "attend",
    ],
    "gpt2lab.planning.ways": ["plan"],
    "gpt2lab.runs.folder": ["load"],
    "gpt2lab.runs.settings": ["TrainerConfig"],
    "gpt2lab.training.run": ["train"],
    "gpt2lab.training.trainer": ["Trainer"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 (type checkers read the imports above)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
