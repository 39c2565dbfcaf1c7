r"""Attention: the mechanisms that can be swapped, and the layer that they sit in.

    one query head per key/value head     groups share a key/value head     one for all
      MHA   q q q q                         GQA   q q q q                     MQA   q q q q
            | | | |                                \ /  \ /                          \ \ / /
            k k k k                                 k    k                              k

A mechanism decides *whose* keys a query head reads (``num_kv_heads``), *which* of them (``window``), and may change
queries, keys, values, scores and results. The built-in changes are independent, so a class that inherits from several
of them is all of them.
"""

import ast
import functools
import hashlib
import inspect
import linecache
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import TypeGuard

import torch
from torch import Tensor, nn

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model.cache import Cached, Chunk, LayerCache
from gpt2lab.model.embeddings import Rotary, rotate
from gpt2lab.model.kernels import attend


class ScaledDotProductAttention(nn.Module):
    """GPT-2's mechanism: every earlier token, one key/value head per query head (Vaswani et al. 2017, eq. 1).

    Also the base of a user's own mechanism, which may have parameters and overrides what differs. A layer calls, in
    this order: :meth:`before_rotation`, :meth:`after_rotation`, then it remembers keys and values (as :meth:`cached`
    says), :meth:`forward` (which asks for a :meth:`bias` of the scores), :meth:`after_attention`. The built-in
    mechanisms use nothing else. One object is made per layer.

    Attributes:
        num_kv_heads: sizes the key/value projections, K.
        window: how many latest tokens are seen; sizes the cache. None: all.
        head_dim: width of a head, D.
        qk_norm: whether queries and keys are normalised.
        sinks: a logit for each query head, (H,), that takes part in its softmax and reads nothing; None: none.
    """

    num_kv_heads: int
    window: int | None = None
    qk_norm = False
    sinks: nn.Parameter | None

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.num_kv_heads = config.num_heads
        self.head_dim = config.head_dim
        self.register_parameter("sinks", None)

    def before_rotation(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Change queries, keys and values as they were projected.

        Args:
            x: what they were projected from, (B, T, C).
            q: (B, H, T, D).
            k: (B, K, T, D).
            v: (B, K, T, D).

        Returns:
            the three, in the same shapes.
        """
        return q, k, v

    def after_rotation(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Change them behind the rotation; keys and values come back in the shapes that :meth:`cached` declares."""
        return q, k, v

    def cached(self) -> Cached:
        """What a layer remembers of each token: the shapes of its keys and values as they leave the rotation."""
        shape = (self.num_kv_heads, self.head_dim)
        return Cached(self.window, keys=shape, values=shape)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor | None:
        """What is added to the scores: None, or a tensor that broadcasts to (B, H, Tq, Tk).

        It is asked for all tokens at once, or for some at a time, so it has to follow from the positions.

        Args:
            q_pos: positions of the queries, int64 (B or 1, Tq).
            k_pos: positions of the keys, int64 (B or 1, Tk), in any order; -1 marks an empty slot.
        """
        return None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None = None, k_pos: Tensor | None = None
    ) -> Tensor:
        """Attend: q (B, H, Tq, D), k and v (B, K, Tk, D) to (B, H, Tq, D).

        Positions are (B or 1, T), -1 for an empty slot; None means 0 .. T-1 for both.
        """
        return self.attend(q, k, v, q_pos, k_pos)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None, k_pos: Tensor | None, seen: Tensor | None = None
    ) -> Tensor:
        """What :meth:`forward` does, if it is not overridden; then a layer may know already which keys each query
        sees, bool (B or 1, Tq, Tk), because all layers share the answer.
        """
        bias = self.bias if overrides(self, "bias") else None
        return attend(q, k, v, q_pos, k_pos, window=self.window, bias=bias, sinks=self.sinks, seen=seen)

    def after_attention(self, x: Tensor, y: Tensor) -> Tensor:
        """Change what was read, y (B, H, T, D), before the heads are put together, such as by a gate that x opens."""
        return y


def overrides(mechanism: ScaledDotProductAttention, method: str) -> bool:
    """Whether a mechanism has a method of its own in place of the base's."""
    return getattr(type(mechanism), method) is not getattr(ScaledDotProductAttention, method)


class GroupQueryAttention(ScaledDotProductAttention):
    """Groups of query heads share a key/value head (Ainslie et al. 2023, arXiv:2305.13245, section 2.2)."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.num_kv_heads = config.kv_heads


class SlidingWindowAttention(ScaledDotProductAttention):
    """Each token sees a fixed number of latest tokens, itself included (Beltagy et al. 2020, arXiv:2004.05150)."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.window = config.layer_window(layer)


class QueryKeyNorm(ScaledDotProductAttention):
    """Queries and keys of each head have a root mean square of 1, times a scale that is learned for each dimension.

    Henry et al. 2020 (arXiv:2010.04245, section 2) divide them by their lengths and learn one factor for all scores.
    This is the form in which it is used today (Qwen3, Yang et al. 2025, arXiv:2505.09388, section 2): a root mean
    square of 1 is a length of √D, and the scales, shared by the heads, take the factor's place.
    """

    qk_norm = True

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.query_norm = nn.RMSNorm(config.head_dim, eps=config.layer_norm_epsilon)
        self.key_norm = nn.RMSNorm(config.head_dim, eps=config.layer_norm_epsilon)

    def before_rotation(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise queries and keys, in the precision of the scales."""
        wide = self.query_norm.weight.dtype
        return self.query_norm(q.to(wide)).to(q.dtype), self.key_norm(k.to(wide)).to(k.dtype), v


class AttentionSinks(ScaledDotProductAttention):
    """Each query head has a learned logit more in its softmax, which reads nothing: a head that finds nothing need not
    look anywhere (gpt-oss: OpenAI 2025, arXiv:2508.10925, section 2; tokens that serve so: Xiao et al. 2023,
    arXiv:2309.17453). It begins as a key whose score is 0.
    """

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.sinks = nn.Parameter(torch.zeros(config.num_heads))


Mechanism = type[ScaledDotProductAttention]


def built_in_mechanism(config: GPT2Config, layer: int) -> Mechanism:
    """The mechanism that a layer's switches ask for: a class that inherits from those that change what they ask for."""
    changes: dict[Mechanism, bool] = {
        GroupQueryAttention: config.kv_heads != config.num_heads,
        SlidingWindowAttention: config.layer_window(layer) is not None,
        QueryKeyNorm: config.qk_norm,
        AttentionSinks: config.sinks,
    }
    return _all_of(tuple(change for change, asked in changes.items() if asked))


@functools.cache
def _all_of(changes: tuple[Mechanism, ...]) -> Mechanism:
    if len(changes) < 2:
        return changes[0] if changes else ScaledDotProductAttention
    return type("".join(change.__name__.removesuffix("Attention") for change in changes) + "Attention", changes, {})


def is_mechanism(value: object) -> TypeGuard[Mechanism]:
    """Whether a value can be given as ``attention=``."""
    return isinstance(value, type) and issubclass(value, ScaledDotProductAttention)


def source_of(code: type | FunctionType) -> str:
    """Source text of a user's class or function, or "" where Python cannot tell (typed into a bare prompt)."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return _source_in_cell(code) if isinstance(code, type) else ""


def _source_in_cell(mechanism: type) -> str:
    """The same for a class of a notebook's cell, which has no file: it is found around its methods."""
    for method in vars(mechanism).values():
        if isinstance(method, FunctionType):
            lines = linecache.getlines(method.__code__.co_filename)
            try:
                classes = [node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.ClassDef)]
            except SyntaxError:
                return ""
            for node in classes:
                around = node.lineno <= method.__code__.co_firstlineno <= (node.end_lineno or 0)
                if around and node.name == mechanism.__name__:
                    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                    return "".join(inspect.getblock(lines[first - 1 :]))
    return ""


def describe_mechanism(mechanism: Mechanism) -> str:
    """Name and hash by which a stored model remembers a user's class, such as ``ALiBi@3f2a…``."""
    return f"{mechanism.__name__}@{hashlib.sha256(source_of(mechanism).encode()).hexdigest()[:16]}"


def mechanism_of_layer(config: GPT2Config, layer: int, given: Mechanism | None) -> ScaledDotProductAttention:
    """The mechanism of a layer: the one that its switches ask for, or the given one, if that does what they ask for.

    Raises:
        InputError: it does not.
    """
    mechanism = (given or built_in_mechanism(config, layer))(config, layer)
    for name, value, wanted, default, change in (
        ("num_kv_heads", mechanism.num_kv_heads, config.kv_heads, config.num_heads, GroupQueryAttention),
        ("window", mechanism.window, config.layer_window(layer), None, SlidingWindowAttention),
        ("qk_norm", mechanism.qk_norm, config.qk_norm, False, QueryKeyNorm),
        ("sinks", mechanism.sinks is not None, config.sinks, False, AttentionSinks),
    ):
        if wanted not in (default, value):
            raise InputError(
                f"{type(mechanism).__name__} has {name}={value} in layer {layer}, not {name}={wanted} as was asked "
                f"for; let it inherit from {change.__name__}, too, or turn the switch off (--variant original turns "
                "off all)"
            )
    if config.num_heads % mechanism.num_kv_heads != 0:
        raise InputError(f"num_kv_heads={mechanism.num_kv_heads} does not divide num_heads={config.num_heads}")
    return mechanism


@dataclass(frozen=True)
class Reading:
    """What all layers share while a model reads a chunk of tokens.

    Attributes:
        positions: of the tokens, int64 (B or 1, T); None: 0 .. T-1.
        rotary: (cos, sin) of these positions, or None where nothing is rotated.
        chunks: by number of slots, how the chunk meets the rings of a cache.
    """

    positions: Tensor | None = None
    rotary: Rotary | None = None
    chunks: Mapping[int, Chunk] = field(default_factory=dict)


class MultiHeadAttention(nn.Module):
    """Projects to queries, keys and values, rotates, remembers, lets the mechanism attend, and projects back."""

    def __init__(self, config: GPT2Config, layer: int, mechanism: Mechanism | None = None) -> None:
        super().__init__()
        self.mechanism = mechanism_of_layer(config, layer, mechanism)
        self.rotates = config.layer_position(layer) == "rope"
        self.num_heads, self.num_kv_heads, self.head_dim = (
            config.num_heads,
            self.mechanism.num_kv_heads,
            config.head_dim,
        )
        projected = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.embed_dim, projected, bias=config.bias)
        self.output = nn.Linear(config.embed_dim, config.embed_dim, bias=config.bias)

    @property
    def window(self) -> int | None:
        """How many latest tokens this layer sees; None: all."""
        return self.mechanism.window

    def forward(self, x: Tensor, reading: Reading | None = None, cache: LayerCache | None = None) -> Tensor:
        """Mix tokens: (B, T, C) to (B, T, C).

        Args:
            x: normalised hidden states.
            reading: what the layers share; None: a text from its beginning, without rotation.
            cache: this layer's memory of earlier tokens; the new ones are added to it.
        """
        return self.output(self.mix(x, reading or Reading(), cache))  # type: ignore[no-any-return]

    def mix(self, x: Tensor, reading: Reading, cache: LayerCache | None = None) -> Tensor:
        """What the heads have read, side by side, before it is projected back: (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        H, K, D = self.num_heads, self.num_kv_heads, self.head_dim
        qk, v = self.query_key_value(x).view(B, T, H + 2 * K, D).transpose(1, 2).split((H + K, K), dim=1)
        if overrides(self.mechanism, "before_rotation"):
            q, k = qk.split((H, K), dim=1)
            q, k, v = self.mechanism.before_rotation(x, q, k, v)
            qk = torch.cat((q, k), dim=1)
        if self.rotates and reading.rotary is not None:
            qk = rotate(qk, *reading.rotary)
        q, k = qk.split((H, K), dim=1)  # (B, H, T, D), (B, K, T, D)
        q, k, v = self.mechanism.after_rotation(x, q, k, v)
        if cache is None:
            y = self.mechanism(q, k, v, reading.positions, reading.positions)  # (B, H, T, D)
        else:
            chunk = reading.chunks[cache.ring]
            k, v = cache.extend(k, v, chunk)
            if overrides(self.mechanism, "forward"):
                y = self.mechanism(q, k, v, chunk.q_pos, chunk.k_pos)
            else:
                y = self.mechanism.attend(q, k, v, chunk.q_pos, chunk.k_pos, chunk.seen(self.window))
        y = self.mechanism.after_attention(x, y)
        return y.transpose(1, 2).reshape(B, T, C)
