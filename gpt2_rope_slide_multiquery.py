"""The model that older users import: RoPE + multi-query + sliding window, sized for a context of 25 characters."""

from typing import Any

from gpt2lab import (
    GPT2,
    GPT2Embeddings,
    GroupQueryAttention,
    MultiHeadAttention,
    ScaledDotProductAttention,
    SlidingWindowAttention,
    TransformerBlock,
)

__all__ = [
    "GPT2",
    "Attention_rope_slide_group",
    "GPT2Embeddings",
    "GPT2_rope_slide_group",
    "GroupQueryAttention",
    "MultiHeadAttention",
    "ScaledDotProductAttention",
    "SlidingWindowAttention",
    "TransformerBlock",
]


def Attention_rope_slide_group(**changes: Any) -> GPT2:  # noqa: N802
    """The whole model, despite its name; every keyword of :class:`gpt2lab.GPT2` changes it.

    Its vocabulary, unless given, is settled by the data set that it is first trained on.
    """
    sizes = {
        "vocab_size": 0,
        "max_seq_len": 25,
        "embed_dim": 128,
        "num_heads": 4,
        "ff_hidden_dim": 512,
        "num_layers": 4,
    }
    return GPT2(**{**sizes, "position": "rope", "num_kv_heads": 1, "window": 7, **changes})


GPT2_rope_slide_group = Attention_rope_slide_group
