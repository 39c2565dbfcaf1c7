r"""Attention: the mechanisms that can be swapped, and the layer that they sit in.

    one query head per key/value head     groups share a key/value head     one for all
      MHA   q q q q                         GQA   q q q q                     MQA   q q q q
            | | | |                                \ /  \ /                          \ \ / /
            k k k k                                 k    k                              k

A mechanism decides *whose* keys a query head reads (``num_kv_heads``), *which* of them (``window``), and may add a
bias to the scores. The two built-in changes are independent, so a class that inherits from both is both.
"""

import hashlib
import inspect
from typing import TypeGuard

from torch import Tensor, nn

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model.cache import LayerCache
from gpt2lab.model.embeddings import Rotary, rotate
from gpt2lab.model.kernels import attend


class ScaledDotProductAttention(nn.Module):
    """GPT-2's mechanism: every earlier token, one key/value head per query head (Vaswani et al. 2017, eq. 1).

    Also the base of a user's own mechanism, which overrides what differs: :meth:`bias` for a change of scores,
    :meth:`forward` for anything else. One object is made per layer.

    Attributes:
        num_kv_heads: sizes the key/value projections, K.
        window: how many latest tokens are seen; sizes the cache. None: all.
    """

    num_kv_heads: int
    window: int | None = None

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.num_kv_heads = config.num_heads

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
        biased = type(self).bias is not ScaledDotProductAttention.bias
        return attend(q, k, v, q_pos, k_pos, window=self.window, bias=self.bias if biased else None)


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


class GroupQuerySlidingWindowAttention(GroupQueryAttention, SlidingWindowAttention):
    """Both at once: they change different things."""


Mechanism = type[ScaledDotProductAttention]


def built_in_mechanism(config: GPT2Config, layer: int) -> Mechanism:
    """The mechanism that a layer's switches ask for."""
    windowed, grouped = config.layer_window(layer) is not None, config.kv_heads != config.num_heads
    if windowed and grouped:
        return GroupQuerySlidingWindowAttention
    if windowed:
        return SlidingWindowAttention
    return GroupQueryAttention if grouped else ScaledDotProductAttention


def is_mechanism(value: object) -> TypeGuard[Mechanism]:
    """Whether a value can be given as ``attention=``."""
    return isinstance(value, type) and issubclass(value, ScaledDotProductAttention)


def source_of(mechanism: Mechanism) -> str:
    """Source text of a user's class, or "" where Python cannot tell (typed into a bare prompt)."""
    try:
        return inspect.getsource(mechanism)
    except (OSError, TypeError):
        return ""


def describe_mechanism(mechanism: Mechanism) -> str:
    """Name and hash by which a stored model remembers a user's class, such as ``ALiBi@3f2a…``."""
    return f"{mechanism.__name__}@{hashlib.sha256(source_of(mechanism).encode()).hexdigest()[:16]}"


class MultiHeadAttention(nn.Module):
    """Projects to queries, keys and values, rotates, remembers, lets the mechanism attend, and projects back."""

    def __init__(self, config: GPT2Config, layer: int, mechanism: Mechanism | None = None) -> None:
        super().__init__()
        self.mechanism = (mechanism or built_in_mechanism(config, layer))(config, layer)
        asked = (config.kv_heads, config.layer_window(layer))
        for name, value, wanted, default in (
            ("num_kv_heads", self.mechanism.num_kv_heads, asked[0], config.num_heads),
            ("window", self.mechanism.window, asked[1], None),
        ):
            if wanted not in (default, value):
                raise InputError(
                    f"{type(self.mechanism).__name__} has {name}={value} in layer {layer}, not {name}={wanted} as was "
                    "asked for; let it inherit from GroupQueryAttention or SlidingWindowAttention (or both), or turn "
                    "the switch off (--variant original turns off all)"
                )
        self.num_heads, self.num_kv_heads, self.head_dim = (
            config.num_heads,
            self.mechanism.num_kv_heads,
            config.head_dim,
        )
        if config.num_heads % self.num_kv_heads != 0:
            raise InputError(f"num_kv_heads={self.num_kv_heads} does not divide num_heads={config.num_heads}")
        projected = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.embed_dim, projected, bias=config.bias)
        self.output = nn.Linear(config.embed_dim, config.embed_dim, bias=config.bias)

    @property
    def window(self) -> int | None:
        """How many latest tokens this layer needs to remember; None: all."""
        return self.mechanism.window

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Mix tokens: (B, T, C) to (B, T, C).

        Args:
            x: normalised hidden states.
            rotary: (cos, sin) of the tokens' positions, or None.
            positions: int64 (B or 1, T); None: 0 .. T-1.
            cache: this layer's memory of earlier tokens; the new ones are added to it.
        """
        B, T, C = x.shape
        H, K, D = self.num_heads, self.num_kv_heads, self.head_dim
        qk, v = self.query_key_value(x).view(B, T, H + 2 * K, D).transpose(1, 2).split((H + K, K), dim=1)
        if rotary is not None:
            qk = rotate(qk, *rotary)
        q, k = qk.split((H, K), dim=1)  # (B, H, T, D), (B, K, T, D)
        key_positions = positions
        if cache is not None:
            k, v, key_positions = cache.extend(k, v, positions)
        y = self.mechanism(q, k, v, positions, key_positions)  # (B, H, T, D)
        return self.output(y.transpose(1, 2).reshape(B, T, C))  # type: ignore[no-any-return]
