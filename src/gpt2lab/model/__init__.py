"""The model, part by part: embeddings, attention, cache, block, and the whole GPT-2."""

from gpt2lab.model.attention import (
    AttentionSinks,
    GroupQueryAttention,
    MultiHeadAttention,
    QueryKeyNorm,
    ScaledDotProductAttention,
    SlidingWindowAttention,
)
from gpt2lab.model.block import FeedForward, TransformerBlock
from gpt2lab.model.cache import Cached, KeyValueCache
from gpt2lab.model.causality import CacheError, CausalityError, assert_cached, assert_causal
from gpt2lab.model.embeddings import GPT2Embeddings
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.model.kernels import attend
from gpt2lab.model.looking import attention_weights

__all__ = [
    "GPT2",
    "AttentionSinks",
    "CacheError",
    "Cached",
    "CausalityError",
    "FeedForward",
    "GPT2Embeddings",
    "GroupQueryAttention",
    "KeyValueCache",
    "MultiHeadAttention",
    "QueryKeyNorm",
    "ScaledDotProductAttention",
    "SlidingWindowAttention",
    "TransformerBlock",
    "assert_cached",
    "assert_causal",
    "attend",
    "attention_weights",
]
