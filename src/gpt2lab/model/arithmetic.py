"""Whether a model's arithmetic is the package's own, which is what the native steps compute."""

import torch
from torch import nn

from gpt2lab.model.attention import (
    AttentionSinks,
    GroupQueryAttention,
    MultiHeadAttention,
    QueryKeyNorm,
    ScaledDotProductAttention,
    SlidingWindowAttention,
    built_in_mechanism,
)
from gpt2lab.model.block import FeedForward, TransformerBlock
from gpt2lab.model.embeddings import GPT2Embeddings
from gpt2lab.model.fused import ACTIVATIONS
from gpt2lab.model.gpt2 import GPT2

# Modules whose arithmetic the native steps have, and what they know of mechanisms.
_OURS = (GPT2, GPT2Embeddings, TransformerBlock, MultiHeadAttention, FeedForward)
_TORCHS = (nn.Embedding, nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Dropout, nn.ModuleList)
_CHANGES: tuple[type, ...] = (GroupQueryAttention, SlidingWindowAttention, QueryKeyNorm, AttentionSinks)
_CHANGES += (ScaledDotProductAttention, nn.Module, object)


def foreign(model: GPT2) -> str | None:
    """Why the native steps cannot compute this model, or None; a mechanism of the user's own is not looked at."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu" or not parameter.is_contiguous():
            kept = f"in {str(parameter.dtype).removeprefix('torch.')} on {parameter.device.type}"
            return f"{name} is {kept}, and the native step takes float32 on the CPU: model.float().cpu()"
    if model.config.activation not in ACTIVATIONS:
        return f"it has no activation {model.config.activation!r}"
    mechanisms = {built_in_mechanism(model.config, layer) for layer in range(model.config.num_layers)}
    known = [one for one in mechanisms if {*one.__mro__[len(one.__bases__) > 1 :]} <= {*_CHANGES}]  # one, or several
    for name, module in model.named_modules():
        if model.mechanism_class is not None and ".mechanism" in name:
            continue
        if type(module) not in (*_OURS, *_TORCHS, *known):
            return f"{name or 'the model'} is a {type(module).__name__}, which only the eager step runs"
        hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
        if any(hooks) or "forward" in vars(module):
            return f"{name or 'the model'} has a hook, which only the eager step calls"
    return None
