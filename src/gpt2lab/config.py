"""Sizes and switches of a model, their validation, and the named variants.

Everything that shapes a model stands here, and nothing that trains, stores or reads text: this file
imports nothing of the project but its errors.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from gpt2lab.errors import InputError

Position = Literal["learned", "rope", "none"]
Activation = Literal["gelu_tanh", "gelu", "relu"]
Window = int | tuple[int | None, ...] | None


@dataclass(frozen=True)
class GPT2Config:
    """Sizes and switches of a GPT-2; with every switch at its default it is GPT-2 itself.

    Sizes:
        vocab_size: number of token ids, V. 0 means "not known yet": the first data set settles it.
        max_seq_len: the context, T: a limit for learned positions, the trained length for the others.
        embed_dim: width of the residual stream, C.
        num_heads: query heads, H; each is ``head_dim = embed_dim / num_heads`` wide.
        ff_hidden_dim: hidden width of the feed-forward network (GPT-2: 4 · embed_dim).
        num_layers: transformer blocks.

    Switches:
        position: ``"learned"`` (GPT-2), ``"rope"`` (Su et al. 2021, arXiv:2104.09864) or ``"none"``.
        rope_theta: base of the rotary frequencies.
        num_kv_heads: key/value heads, K, shared by groups of query heads (GQA, Ainslie et al. 2023,
            arXiv:2305.13245); 1 is multi-query (Shazeer 2019, arXiv:1911.02150); None: as many as query heads.
        window: how many latest tokens each token sees, itself included; None: all; a tuple is repeated over
            the layers, so ``(128, 128, 128, None)`` leaves every fourth layer unwindowed.
        tie_embeddings: the output layer is the token embedding, as in GPT-2.
        bias: biases in linear layers and LayerNorms.
        dropout: share dropped of the embeddings and of each residual branch in training. (Not of the attention
            weights: the fast kernels never hold those, and would not agree on it.)
        layer_norm_epsilon: added to the variance.
        activation: of the feed-forward network; GPT-2's GELU is the tanh approximation.
        attention: name and hash of a user's own mechanism, which has to be passed again on loading.

    Raises:
        InputError: for any combination that cannot be built, with the numbers that clash.
    """

    vocab_size: int
    max_seq_len: int
    embed_dim: int
    num_heads: int
    ff_hidden_dim: int
    num_layers: int
    position: Position = "learned"
    rope_theta: float = 10_000.0
    num_kv_heads: int | None = None
    window: Window = None
    tie_embeddings: bool = True
    bias: bool = True
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    activation: Activation = "gelu_tanh"
    attention: str | None = None

    def __post_init__(self) -> None:
        for name in ("rope_theta", "dropout", "layer_norm_epsilon"):
            value = getattr(self, name)
            _require(isinstance(value, int | float), f"{name} is {value!r}; it has to be a number")
        if isinstance(self.window, list):  # JSON and YAML know no tuples
            object.__setattr__(self, "window", tuple(self.window))
        for name in ("max_seq_len", "embed_dim", "num_heads", "ff_hidden_dim", "num_layers"):
            _require(
                _is_count(getattr(self, name)),
                f"{name} is {getattr(self, name)!r}; it has to be a whole number, 1 or more",
            )
        _require(
            _is_count(self.vocab_size) or (type(self.vocab_size) is int and self.vocab_size == 0),
            f"vocab_size is {self.vocab_size!r}; it has to be 1 or more",
        )
        divisors = [n for n in range(1, self.embed_dim + 1) if self.embed_dim % n == 0]
        _require(
            self.embed_dim % self.num_heads == 0,
            f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}; "
            f"use one of {', '.join(map(str, divisors[:12]))}",
        )
        _require(
            self.num_kv_heads is None or (_is_count(self.num_kv_heads) and self.num_heads % self.num_kv_heads == 0),
            f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; each key/value head "
            "serves an equal group of query heads",
        )
        _require(
            self.attention is None or isinstance(self.attention, str),
            f"attention is {self.attention!r}; in a configuration it is the name and hash of a class, or None",
        )
        windows = self.window if isinstance(self.window, tuple) else (self.window,)
        _require(
            len(windows) > 0 and all(w is None or _is_count(w) for w in windows),
            f"window is {self.window!r}; a window counts the token itself, so it is 1 or more (or None for all)",
        )
        for name, allowed in (("position", get_args(Position)), ("activation", get_args(Activation))):
            value = getattr(self, name)
            _require(value in allowed, f"{name} is {value!r}; it has to be one of {', '.join(allowed)}")
        _require(
            self.position != "rope" or self.head_dim % 2 == 0,
            f"RoPE turns pairs of dimensions, but embed_dim={self.embed_dim} with num_heads={self.num_heads} "
            f"makes head_dim={self.head_dim}, which is odd",
        )
        _require(self.rope_theta > 0, f"rope_theta is {self.rope_theta}; it has to be positive")
        _require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it has to be at least 0 and below 1")
        _require(
            self.layer_norm_epsilon > 0,
            f"layer_norm_epsilon is {self.layer_norm_epsilon}; it has to be positive",
        )

    @property
    def head_dim(self) -> int:
        """Width of one head, D."""
        return self.embed_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads, K, with None resolved."""
        return self.num_kv_heads or self.num_heads

    def layer_window(self, layer: int) -> int | None:
        """Window of one layer (None: it sees every earlier token)."""
        return self.window[layer % len(self.window)] if isinstance(self.window, tuple) else self.window

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written to JSON and YAML."""
        values = dataclasses.asdict(self)
        return values | {"window": list(self.window) if isinstance(self.window, tuple) else self.window}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPT2Config":
        """The inverse of :meth:`to_dict`; unknown or missing fields are an InputError that names them."""
        _require(isinstance(values, Mapping), f"model settings are named values, not {values!r}")
        known = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is dataclasses.MISSING}
        _require(not set(values) - known, f"unknown model settings: {', '.join(sorted(set(values) - known))}")
        _require(required <= set(values), f"missing model settings: {', '.join(sorted(required - set(values)))}")
        return cls(**values)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


Variant = Literal["original", "rope", "gqa", "mqa", "swa", "modern"]


def variant_switches(variant: Variant, max_seq_len: int, num_heads: int) -> dict[str, Any]:
    """The switches that a named variant turns on, for a context and a number of heads.

    ``gqa`` shares a quarter as many key/value heads (at least 2), ``swa`` sees a quarter of the context, rounded
    up; ``modern`` is RoPE + GQA + SWA. The remaining switches keep GPT-2's defaults.
    """
    quarter = max(2, num_heads // 4)
    shared = next((k for k in range(min(quarter, num_heads), 0, -1) if num_heads % k == 0), 1)
    rope, gqa, swa = {"position": "rope"}, {"num_kv_heads": shared}, {"window": math.ceil(max_seq_len / 4)}
    switches: dict[Variant, dict[str, Any]] = {
        "original": {},
        "rope": rope,
        "gqa": gqa,
        "mqa": {"num_kv_heads": 1},
        "swa": swa,
        "modern": {**rope, **gqa, **swa},
    }
    if variant not in switches:
        raise InputError(f"unknown variant {variant!r}; known are {', '.join(switches)}")
    return switches[variant]


def random_architecture(seed: int, max_seq_len: int, **given: Any) -> dict[str, Any]:
    """Draw a valid architecture and its switches around those that are given; a pure function of the arguments.

    The space: head_dim 16, 32 or 64; 2, 4 or 8 heads; 2 to 6 layers, with embed_dim at most 256; feed-forward 2, 3 or
    4 times as wide; positions learned, RoPE or none; any number of key/value heads that divides the heads; no
    window, one of a sixteenth to a half of the context, or that window in all layers but every second one.
    Each choice is uniform over what remains valid.
    """
    if seed < 0:
        raise InputError(f"the seed of a random architecture is {seed}; it has to be 0 or more")
    rng = np.random.default_rng(seed)

    def draw(options: list[Any]) -> Any:
        return options[int(rng.integers(len(options)))]

    width = given.get("embed_dim", 0)
    num_heads = given.get("num_heads") or draw([heads for heads in (2, 4, 8) if width % heads == 0] or [1])
    width = width or num_heads * draw([dim for dim in (16, 32, 64) if dim * num_heads <= 256] or [16])
    positions = ["learned", "rope", "none"] if width % (2 * num_heads) == 0 else ["learned", "none"]
    window = draw([None, *sorted({math.ceil(max_seq_len / part) for part in (16, 8, 4, 2)})])
    drawn = {
        "embed_dim": width,
        "num_heads": num_heads,
        "num_layers": draw([2, 3, 4, 5, 6]),
        "ff_hidden_dim": width * draw([2, 3, 4]),
        "position": draw(positions),
        "num_kv_heads": draw([k for k in range(1, num_heads + 1) if num_heads % k == 0]),
        "window": draw([window, (window, None)]) if window else None,
    }
    return drawn | given
