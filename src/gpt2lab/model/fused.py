"""The native training step: the blocks of a model, with what lies between their matrix products in C++.

On a CPU a small model spends more time between its products than in them: LayerNorm, activations, rotation and
attention are dozens of small operations, each of which reads and writes all tokens again. Here a block is four products
and four operations, forward and backward (``native/training.cpp``). The modules stay the reference: they say what the
operations have to compute, and compute it themselves in every other case.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpt2lab.config import GPT2Config
from gpt2lab.model.attention import MultiHeadAttention, Reading
from gpt2lab.model.block import TransformerBlock
from gpt2lab.model.embeddings import Rotary
from gpt2lab.native.calling import Double, Int, Pointer, address
from gpt2lab.native.library import library

ACTIVATIONS = ("gelu_tanh", "gelu", "relu")  # as vectors.h numbers them

# With a longer window in a longer text, torch's own kernels are faster (docs/performance.md).
LONGEST_WINDOW = 64
LONGEST_TEXT = 256


class _Shape(ctypes.Structure):
    _fields_ = [(n, Int) for n in ("batch", "length", "heads", "kv_heads", "head_dim", "window", "half_rotary")]


@cache
def _native() -> ctypes.CDLL:
    """The library, with the types of what is called here; it was built before."""
    loaded = library("training").wait()
    for name, types in {
        "activate": (*(Int,) * 4, *(Pointer,) * 3),
        "activate_backward": (*(Int,) * 4, *(Pointer,) * 5),
        "add_norm": (*(Int,) * 3, *(Pointer,) * 5, Double, *(Pointer,) * 4),
        "add_norm_backward": (*(Int,) * 3, *(Pointer,) * 8),
        "attend": (Int, _Shape, *(Pointer,) * 8),
        "attend_backward": (Int, _Shape, *(Pointer,) * 9),
    }.items():
        function = getattr(loaded, f"gpt2lab_{name}")
        function.argtypes, function.restype = types, None
    loaded.gpt2lab_lanes.restype = Int
    return loaded


def hidden(
    config: GPT2Config, blocks: Sequence[TransformerBlock], final_norm: nn.LayerNorm, x: Tensor, rotary: Rotary | None
) -> Tensor:
    """What the blocks and the last LayerNorm make of embedded tokens, as :meth:`GPT2.hidden` does.

    Args:
        config: of a model that trains, of which :func:`gpt2lab.model.arithmetic.foreign` says nothing.
        blocks: of that model.
        final_norm: likewise.
        x: embedded tokens, float32 (B, T, C).
        rotary: (cos, sin) of the positions 0 .. T-1, or None.

    Returns:
        float32 (B, T, C), differentiable once.
    """
    B, T, C = x.shape
    reading = Reading(rotary=rotary)
    tables = None if rotary is None else turned_tables(rotary)
    activation = ACTIVATIONS.index(config.activation)
    following = [*(block.attention_norm for block in blocks[1:]), final_norm]
    normed: Tensor = blocks[0].attention_norm(x).view(B * T, C)
    x = x.view(B * T, C)
    for block, next_norm in zip(blocks, following, strict=True):
        attention, feed_forward = block.attention, block.feed_forward
        if attends(config, attention.window, T):
            y = mix(attention, normed, tables, B)
        else:
            y = attention.mix(normed.view(B, T, C), reading).reshape(B * T, C)
        x, normed = _add_norm(x, y, attention.output, block.feed_forward_norm, config.dropout)
        expanded = F.linear(normed, feed_forward.expand.weight)  # (B·T, F)
        inner = _Activate.apply(expanded, feed_forward.expand.bias, activation)  # type: ignore[no-untyped-call]
        x, normed = _add_norm(x, inner, feed_forward.contract, next_norm, config.dropout)
    return normed.view(B, T, C)


def attends(config: GPT2Config, window: int | None, length: int) -> bool:
    """Whether the attention of a layer with that window is computed here, and not by torch, in texts of that length."""
    short = min(window or length, length) <= LONGEST_WINDOW or length <= LONGEST_TEXT
    return config.attention is None and short and not config.qk_norm


def mix(attention: MultiHeadAttention, x: Tensor, tables: Rotary | None, batch: int) -> Tensor:
    """What :meth:`MultiHeadAttention.mix` does with a built-in mechanism (but qk_norm): (N, C) to (N, C).

    Args:
        attention: the layer.
        x: the tokens of some texts, one text after the other, float32 (B·T, C).
        tables: of :func:`turned_tables`, or None.
        batch: how many texts, B.
    """
    T, projection = len(x) // batch, attention.query_key_value
    angles = tables if attention.rotates and tables is not None else (None, None)
    shape = (batch, T, attention.num_heads, attention.num_kv_heads, attention.head_dim, min(attention.window or T, T))
    projected = F.linear(x, projection.weight)  # (B·T, (H+2K)·D)
    return _Attend.apply(projected, projection.bias, attention.mechanism.sinks, *angles, shape)  # type: ignore[no-any-return, no-untyped-call]


def turned_tables(rotary: Rotary) -> Rotary:
    """The tables of positions 0 .. T-1, (1, 1, T, R/2), as :func:`mix` takes them: (R/2, T), up to full vectors."""
    cos, sin = (F.pad(table[0, 0].T, (0, -table.shape[2] % _native().gpt2lab_lanes())).contiguous() for table in rotary)
    return cos, sin


def _add_norm(x: Tensor, y: Tensor, layer: nn.Linear, norm: nn.LayerNorm, dropout: float) -> tuple[Tensor, Tensor]:
    """What a layer makes of y, with dropout, added to x, and the LayerNorm of that: (N, C) each."""
    if dropout > 0:  # which drops the bias, too
        product, bias = F.dropout(layer(y), dropout), None
    else:
        product, bias = F.linear(y, layer.weight), layer.bias
    return _AddNorm.apply(x, product, bias, norm.weight, norm.bias, norm.eps)  # type: ignore[no-any-return, no-untyped-call]


class _AddNorm(torch.autograd.Function):
    """x + y + y_bias, and its LayerNorm (Ba et al. 2016, arXiv:1607.06450, eq. 4)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, y_bias: Tensor | None, weight: Tensor, bias: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        N, C = x.shape
        added, normed, means, factors = torch.empty_like(x), torch.empty_like(x), x.new_empty(N), x.new_empty(N)
        given = map(address, (x, y, y_bias, weight, bias))
        made = map(address, (added, normed, means, factors))
        _native().gpt2lab_add_norm(torch.get_num_threads(), N, C, *given, epsilon, *made)
        ctx.save_for_backward(added, means, factors, weight)
        ctx.biases = y_bias is not None, bias is not None
        ctx.set_materialize_grads(False)
        return added, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_added: Tensor | None, of_normed: Tensor) -> tuple[Tensor | None, ...]:
        added, means, factors, weight = ctx.saved_tensors
        of_added, of_normed = None if of_added is None else of_added.contiguous(), of_normed.contiguous()
        of_x, of_parameters = torch.empty_like(added), added.new_empty(3, added.shape[1])
        tensors = (added, means, factors, weight, of_normed, of_added, of_x, of_parameters)
        _native().gpt2lab_add_norm_backward(torch.get_num_threads(), *added.shape, *map(address, tensors))
        of_weight, of_bias, of_y_bias = of_parameters
        has_y_bias, has_bias = ctx.biases
        return of_x, of_x, of_y_bias if has_y_bias else None, of_weight, of_bias if has_bias else None, None


class _Activate(torch.autograd.Function):
    """activation(x + bias)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, activation: int) -> Tensor:
        y = torch.empty_like(x)
        _native().gpt2lab_activate(torch.get_num_threads(), *x.shape, activation, *map(address, (x, bias, y)))
        ctx.save_for_backward(x, bias)
        ctx.activation = activation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        of_y, of_x, of_bias = of_y.contiguous(), torch.empty_like(x), None if bias is None else torch.empty_like(bias)
        tensors = map(address, (x, bias, of_y, of_x, of_bias))
        _native().gpt2lab_activate_backward(torch.get_num_threads(), *x.shape, ctx.activation, *tensors)
        return of_x, of_bias, None


class _Attend(torch.autograd.Function):
    """Attention of what was projected (and its bias): heads are cut out and rotated, and attend, with a window."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        bias: Tensor | None,
        sinks: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        shape: tuple[int, int, int, int, int, int],
    ) -> Tensor:
        B, T, H, K, D, _ = shape
        lanes = _native().gpt2lab_lanes()
        tokens = T + -T % lanes
        turned = projected.new_empty(B, H + 2 * K, D, tokens + 2 * lanes)
        denominators, y = projected.new_empty(B, H, tokens), projected.new_empty(B * T, H * D)
        ctx.shape = _Shape(*shape, 0 if cos is None else len(cos))
        tensors = (projected, bias, cos, sin, sinks, turned, denominators, y)
        _native().gpt2lab_attend(torch.get_num_threads(), ctx.shape, *map(address, tensors))
        ctx.save_for_backward(turned, denominators, cos, sin, sinks)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        sinks = ctx.saved_tensors[-1]
        s, of_y = ctx.shape, of_y.contiguous()
        of_projected = of_y.new_empty(s.batch * s.length, (s.heads + 2 * s.kv_heads) * s.head_dim)
        of_bias = of_y.new_empty(of_projected.shape[1]) if ctx.has_bias else None
        of_sinks = None if sinks is None else torch.empty_like(sinks)
        tensors = (*ctx.saved_tensors, of_y, of_projected, of_bias, of_sinks)
        _native().gpt2lab_attend_backward(torch.get_num_threads(), s, *map(address, tensors))
        return of_projected, of_bias, of_sinks, None, None, None
