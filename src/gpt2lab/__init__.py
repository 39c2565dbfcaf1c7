"""GPT-2 whose attention can be swapped.

With every switch off it is GPT-2, number for number; switched on: rotary positions, grouped-query and multi-query
attention, sliding windows, or a mechanism of your own.
"""

from gpt2lab.config import GPT2Config
from gpt2lab.data import CharDataset, CharTokenizer, TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.evaluation import estimate_loss, evaluate
from gpt2lab.generation import Sampling, generate, sample, stream
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
from gpt2lab.training import Trainer, TrainerConfig, load

__all__ = [
    "GPT2",
    "CausalityError",
    "CharDataset",
    "CharTokenizer",
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
    "TransformerBlock",
    "assert_causal",
    "attend",
    "estimate_loss",
    "evaluate",
    "generate",
    "load",
    "sample",
    "stream",
]
