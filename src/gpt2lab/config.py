"""Sizes and switches of a model, their validation, and the named variants.

Everything that shapes a model stands here, and nothing that trains, stores or reads text: this file
imports nothing of the project but its errors, and how options are declared and shown.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from gpt2lab.errors import InputError
from gpt2lab.options import check, option, options_of, spelled
from gpt2lab.reading import MOST_WHOLE, shortly

Position = Literal["learned", "rope", "none"] | tuple[Literal["rope", "none"], ...]
Activation = Literal["gelu_tanh", "gelu", "relu"]
Window = int | tuple[int | None, ...] | None


def parse_window(value: Any) -> Window:
    """The window that is meant by ``128``, ``"full"``, ``"128,128,full"`` or a list such as ``[128, None]``.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        try:
            windows = tuple(None if part == "full" else int(part) for part in parts)
        except ValueError:
            raise InputError(
                f'window is {shortly(value)}; give a number, "full", or several with commas: 128,128,full'
            ) from None
        return windows[0] if len(windows) == 1 else windows
    return tuple(None if part == "full" else part for part in value) if isinstance(value, list | tuple) else value


def spell_window(window: Window) -> str:
    """A window as flags and files have it; the inverse of :func:`parse_window`."""
    windows = window if isinstance(window, tuple) else (window,)
    return ",".join("full" if w is None else str(w) for w in windows)


def parse_contexts(value: Any) -> tuple[int, ...]:
    """The contexts that are meant by ``64``, ``"25,64"`` or a list."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        contexts = tuple(int(part) for part in parts if not isinstance(part, str) or part.strip())
        exact = all(isinstance(part, str) or (type(part) is int) for part in parts)
    except (TypeError, ValueError, OverflowError):
        exact, contexts = False, ()
    if not exact or (isinstance(value, str) and not contexts):
        raise InputError(f"contexts is {shortly(value)}; give whole numbers, several with commas: 25,64")
    if contexts and min(contexts) < 1:
        raise InputError(f"context_size is {min(contexts)}; it has to be 1 or more")
    return tuple(dict.fromkeys(contexts))


def parse_position(value: Any) -> Any:
    """The position that is meant by ``"rope"``, ``"rope,rope,none"`` or a list such as ``["rope", "none"]``."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    found = tuple(parts) if isinstance(parts, list | tuple) else (parts,)
    known = ("rope", "none") if len(found) > 1 else ("learned", "rope", "none")
    if not found or not all(isinstance(one, str) and one in known for one in found):
        raise InputError(
            f"position is {shortly(value)}; it has to be one of learned, rope, none, or several of the last two, for "
            "the layers in turn"
        )
    return found[0] if isinstance(value, str) and len(found) == 1 else found if len(found) > 1 else value


def spell_position(position: Position) -> str:
    """A position as flags and files have it; the inverse of :func:`parse_position`."""
    return ",".join(position) if isinstance(position, tuple) else position


MOST_LAYERS = 1_000  # GPT-3 has 96


@dataclass(frozen=True)
class Sizes:
    """How large a GPT-2 is."""

    vocab_size: int = option(
        meaning='number of token ids, V. 0 means "not known yet": the first data set settles it.', least=0
    )
    max_seq_len: int = option(
        meaning="the context, T, in tokens: a limit for learned positions, the trained length for the others.", least=1
    )
    embed_dim: int = option(meaning="width of the residual stream, C.", least=1)
    num_heads: int = option(meaning="query heads, H; each is embed_dim / num_heads wide.", least=1)
    ff_hidden_dim: int = option(meaning="hidden width of the feed-forward network (GPT-2: 4 · embed_dim).", least=1)
    num_layers: int = option(meaning="transformer blocks.", least=1, most=MOST_LAYERS)


@dataclass(frozen=True, kw_only=True)
class Switches:
    """How a GPT-2 may differ from the original; with every default it does not."""

    position: Position = option(
        "learned",
        'how the model knows the order of tokens: "learned" (GPT-2), "rope" (rotary: Su et al. 2021, '
        'arXiv:2104.09864), "none", or one of the last two for each layer in turn, such as "rope,rope,none".',
        parse=parse_position,
        spell=spell_position,
    )
    rope_theta: float = option(10_000.0, "base of the rotary frequencies.", above=0)
    rope_fraction: float = option(
        1.0,
        "share of a head's dimensions that are rotated: the first rope_fraction · head_dim, an even number (GPT-NeoX: "
        "0.25; Black et al. 2022, arXiv:2204.06745).",
        above=0,
        most=1,
    )
    num_kv_heads: int | None = option(
        None,
        "key/value heads, K, shared by groups of query heads (GQA: Ainslie et al. 2023, arXiv:2305.13245); 1 is "
        "multi-query (Shazeer 2019, arXiv:1911.02150).",
        default="as many as query heads",
    )
    window: Window = option(
        None,
        'how many latest tokens each token sees, itself included: a number, "full" for all, or one for each layer in '
        'turn, such as "128,128,full".',
        parse=parse_window,
        spell=spell_window,
        default="full",
    )
    qk_norm: bool = option(
        False,
        "queries and keys of each head are normalised before they are rotated, so that scores cannot grow without "
        "limit (Henry et al. 2020, arXiv:2010.04245; by root mean square and a learned scale, as Qwen3 does it).",
    )
    sinks: bool = option(
        False,
        "each query head has a learned logit in the denominator of its softmax, so that it can look at nothing "
        "(gpt-oss: OpenAI 2025, arXiv:2508.10925).",
    )
    tie_embeddings: bool = option(True, "the output layer is the token embedding, as in GPT-2.")
    bias: bool = option(True, "biases in linear layers and LayerNorms.")
    dropout: float = option(
        0.0,
        "share dropped of the embeddings and of each residual branch in training. (Not of the attention weights: the "
        "fast kernels never hold those, and would not agree on it.)",
        least=0,
        below=1,
    )
    layer_norm_epsilon: float = option(1e-5, "added to the variance in a LayerNorm.", above=0)
    activation: Activation = option("gelu_tanh", "of the feed-forward network; GPT-2's GELU is the tanh approximation.")


@dataclass(frozen=True)
class GPT2Config(Switches, Sizes):
    """Sizes and switches of a GPT-2; with every switch at its default it is GPT-2 itself.

    The sizes come first: ``GPT2Config(vocab_size, max_seq_len, embed_dim, num_heads, ff_hidden_dim, num_layers)``.

    Attributes:
        attention: name and hash of a user's own mechanism, which has to be passed again on loading.

    Raises:
        InputError: for any combination that cannot be built, with the numbers that clash.
    """

    attention: str | None = None

    def __post_init__(self) -> None:
        check(self)
        for name in ("position", "window"):
            if isinstance(getattr(self, name), list):  # JSON and YAML know no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.embed_dim % self.num_heads:
            divisors = (n for n in range(1, min(self.embed_dim, 4096) + 1) if self.embed_dim % n == 0)
            raise InputError(
                f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}; "
                f"use one of {', '.join(map(str, itertools.islice(divisors, 12)))}"
            )
        _require(
            self.num_kv_heads is None or (self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads == 0),
            f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; each key/value head "
            "serves an equal group of query heads",
        )
        _require(
            self.attention is None or (isinstance(self.attention, str) and len(self.attention) < 300),
            f"attention is {shortly(self.attention)}; in a configuration it is the name and hash of a class, or None",
        )
        windows = self.window if isinstance(self.window, tuple) else (self.window,)
        _require(
            len(windows) > 0 and all(w is None or (type(w) is int and 1 <= w < MOST_WHOLE) for w in windows),
            f"window is {shortly(self.window)}; a window counts the token itself, so it is 1 or more (or None for all)",
        )
        in_turn = isinstance(self.position, tuple)
        _require(
            all(one in ("rope", "none") for one in self.position) and self.position != ()
            if in_turn
            else self.position in ("learned", "rope", "none"),
            f"position is {shortly(self.position)}; it has to be one of learned, rope, none, or several of the last "
            "two, for the layers in turn",
        )
        _require(
            not self.rotates or math.isclose(self.rope_fraction * self.head_dim, self.rotary_dim),
            f"RoPE turns pairs of dimensions, but rope_fraction={self.rope_fraction:g} of head_dim={self.head_dim} "
            f"(embed_dim={self.embed_dim} with num_heads={self.num_heads}) is "
            f"{self.rope_fraction * self.head_dim:g}, which is odd or no whole number",
        )

    @property
    def head_dim(self) -> int:
        """Width of one head, D."""
        return self.embed_dim // self.num_heads

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a head are rotated, an even number."""
        return 2 * round(self.rope_fraction * self.head_dim / 2)

    @property
    def matrix_parameters(self) -> int:
        """Values of the embeddings and of the matrices of all blocks; a user's mechanism may add more."""
        positions = self.max_seq_len if self.position == "learned" else 0
        output = 1 if self.tie_embeddings else 2
        block = 2 * self.embed_dim + 2 * self.kv_heads * self.head_dim + 2 * self.ff_hidden_dim
        return self.embed_dim * (output * self.vocab_size + positions + self.num_layers * block)

    @property
    def kv_heads(self) -> int:
        """Key/value heads, K, with None resolved."""
        return self.num_kv_heads or self.num_heads

    def layer_position(self, layer: int) -> str:
        """How one layer knows the order of tokens."""
        return self.position[layer % len(self.position)] if isinstance(self.position, tuple) else self.position

    @property
    def rotates(self) -> bool:
        """Whether there is a layer with rotary positions."""
        return any(self.layer_position(layer) == "rope" for layer in range(self.num_layers))

    def layer_window(self, layer: int) -> int | None:
        """Window of one layer (None: it sees every earlier token)."""
        return self.window[layer % len(self.window)] if isinstance(self.window, tuple) else self.window

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written to JSON and YAML."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPT2Config":
        """The inverse of :meth:`to_dict`; unknown or missing fields are an InputError that names them."""
        _require(isinstance(values, Mapping), f"model settings are named values, not {values!r}")
        known = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is dataclasses.MISSING}
        unknown = sorted(set(values) - known)
        _require(not unknown, f"unknown model settings: {', '.join(map(shortly, unknown[:9]))}")
        _require(required <= set(values), f"missing model settings: {', '.join(sorted(required - set(values)))}")
        return cls(**values)


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


def switches_on(model: Switches, num_heads: int) -> dict[str, Any]:
    """The switches that the original GPT-2, with so many heads, has not on, as flags have them."""
    usual, given = spelled(Switches()) | {"num_kv_heads": num_heads}, spelled(model)
    return {name: given[name] for name in options_of(Switches) if given[name] not in (None, usual[name])}


def random_architecture(seed: int, max_seq_len: int, **given: Any) -> dict[str, Any]:
    """Draw a valid architecture and its switches around those that are given; a pure function of the arguments.

    The space: head_dim 16, 32 or 64; 2, 4 or 8 heads; 2 to 6 layers, with embed_dim at most 256; feed-forward 2, 3 or
    4 times as wide; positions learned, RoPE (in all layers or every second one) or none; all, a half or a quarter of a
    head's dimensions rotated; any number of key/value heads that divides the heads; no window, one of a sixteenth to a
    half of the context, or that window in all layers but every second one; queries and keys
    normalised or not; sinks or none.
    Each choice is uniform over what remains valid.
    """
    if seed < 0:
        raise InputError(f"the seed of a random architecture is {seed}; it has to be 0 or more")
    import numpy as np

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
        "qk_norm": draw([False, True]),
        "rope_fraction": draw([part for part in (1.0, 0.5, 0.25) if part * width / num_heads % 2 == 0] or [1.0]),
    }
    drawn["sinks"] = draw([False, True])
    if drawn["position"] == "rope":
        drawn["position"] = draw(["rope", ("rope", "none")])
    return drawn | given
