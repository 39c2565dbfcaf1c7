"""The classes of Transformers that compute what a GPT2 computes: their settings, and their names of our weights.

What each can say was checked against the classes themselves (tests/model/test_transformers_parity.py):

=====================================  ==========================================================
our switches                           class
=====================================  ==========================================================
none                                   GPT2LMHeadModel, whose matrices lie the other way round
``num_kv_heads``                       the same, with every key/value head repeated for its group
``num_kv_heads=1``                     GPTBigCodeForCausalLM
``position="rope"``, one window        Starcoder2ForCausalLM, with any number of key/value heads
=====================================  ==========================================================

``position="none"`` is learned positions that are all zero. nanoGPT and minGPT have GPT-2's names, and matrices that lie
as ours do.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from gpt2lab.config import Activation, GPT2Config
from gpt2lab.errors import InputError

# Which of our modules theirs are, "{}" for the layer; several are stacked, output after output.
Names = Mapping[str, tuple[str, ...]]

QUERY_KEY_VALUE = "blocks.{}.attention.query_key_value"
EXPAND = "blocks.{}.feed_forward.expand"

GPT2_NAMES: Names = {
    "embeddings.token": ("transformer.wte",),
    "embeddings.position": ("transformer.wpe",),
    "blocks.{}.attention_norm": ("transformer.h.{}.ln_1",),
    QUERY_KEY_VALUE: ("transformer.h.{}.attn.c_attn",),
    "blocks.{}.attention.output": ("transformer.h.{}.attn.c_proj",),
    "blocks.{}.feed_forward_norm": ("transformer.h.{}.ln_2",),
    EXPAND: ("transformer.h.{}.mlp.c_fc",),
    "blocks.{}.feed_forward.contract": ("transformer.h.{}.mlp.c_proj",),
    "final_norm": ("transformer.ln_f",),
    "lm_head": ("lm_head",),
}
STARCODER2_NAMES: Names = {
    "embeddings.token": ("model.embed_tokens",),
    "blocks.{}.attention_norm": ("model.layers.{}.input_layernorm",),
    QUERY_KEY_VALUE: tuple(f"model.layers.{{}}.self_attn.{x}_proj" for x in "qkv"),
    "blocks.{}.attention.output": ("model.layers.{}.self_attn.o_proj",),
    "blocks.{}.feed_forward_norm": ("model.layers.{}.post_attention_layernorm",),
    EXPAND: ("model.layers.{}.mlp.c_fc",),
    "blocks.{}.feed_forward.contract": ("model.layers.{}.mlp.c_proj",),
    "final_norm": ("model.norm",),
    "lm_head": ("lm_head",),
}

# What Transformers calls our activations; the first name is the one that we write.
ACTIVATIONS: Mapping[Activation, tuple[str, ...]] = {
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),
    "gelu": ("gelu",),
    "relu": ("relu",),
}


@dataclass(frozen=True)
class Family(ABC):
    """The settings of a class of Transformers, as its ``config.json`` has them, with the class's own defaults.

    Attributes:
        model_type, architecture: how files name the class.
        names: of its weights.
        prefix: of the names of all its weights but the output layer's; a model that was saved without one lacks it.
        transposed: whether its linear layers are (in, out); ours are (out, in).
    """

    model_type = ""
    architecture = ""
    names = GPT2_NAMES
    prefix = "transformer."
    transposed = False

    vocab_size: int = 50_257
    tie_word_embeddings: bool = True

    @abstractmethod
    def config(self) -> GPT2Config:
        """The configuration of the model that computes the same.

        Raises:
            InputError: there is none. The message goes on from the name of the source.
        """

    @classmethod
    @abstractmethod
    def of(cls, config: GPT2Config) -> Self:
        """The settings with which this class computes what a configuration does; it has to be able to."""

    def described(self) -> dict[str, Any]:
        """What a ``config.json`` says of the class and its settings."""
        return {"architectures": [self.architecture], "model_type": self.model_type, **asdict(self)}

    def query_factor(self, layer: int) -> float:
        """What scores are multiplied by beyond 1 / sqrt(head_dim), which is all that ours are."""
        return 1.0

    @property
    def has_biases(self) -> bool:
        """Whether all its layers have biases; otherwise LayerNorms alone do."""
        return True

    @property
    def interleaved(self) -> bool:
        """Whether query, key and value of each head lie together. (Ours: all queries, all keys, all values.)"""
        return False

    @property
    def dropouts(self) -> dict[str, float]:
        """Its shares of dropped values: that of the residual branches first."""
        return {}


@dataclass(frozen=True)
class GPT2Family(Family):
    """GPT2LMHeadModel (Radford et al. 2019)."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    transposed = True

    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False

    def config(self) -> GPT2Config:
        """As in :class:`Family`."""
        if self.add_cross_attention:
            raise InputError("attends to a second text (add_cross_attention), which gpt2lab's models do not")
        return GPT2Config(
            self.vocab_size,
            self.n_positions,
            self.n_embd,
            self.n_head,
            4 * self.n_embd if self.n_inner is None else self.n_inner,
            self.n_layer,
            num_kv_heads=self.num_kv_heads,
            tie_embeddings=self.tie_word_embeddings,
            dropout=self.resid_pdrop,
            layer_norm_epsilon=self.layer_norm_epsilon,
            activation=our_activation(self.activation_function),
        )

    @classmethod
    def of(cls, config: GPT2Config) -> Self:
        """As in :class:`Family`."""
        return cls(
            vocab_size=config.vocab_size,
            tie_word_embeddings=config.tie_embeddings,
            n_positions=config.max_seq_len,
            n_embd=config.embed_dim,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.ff_hidden_dim,
            activation_function=ACTIVATIONS[config.activation][0],
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=0.0,
            layer_norm_epsilon=config.layer_norm_epsilon,
        )

    @property
    def num_kv_heads(self) -> int | None:
        """Key/value heads, if they are fewer."""
        return None

    def query_factor(self, layer: int) -> float:
        """As in :class:`Family`."""
        factor = 1.0 if self.scale_attn_weights else (self.n_embd / self.n_head) ** 0.5
        return factor / (layer + 1) if self.scale_attn_by_inverse_layer_idx else factor

    @property
    def dropouts(self) -> dict[str, float]:
        """As in :class:`Family`."""
        return {"resid_pdrop": self.resid_pdrop, "embd_pdrop": self.embd_pdrop, "attn_pdrop": self.attn_pdrop}


@dataclass(frozen=True)
class NanoGPTFamily(GPT2Family):
    """The models of nanoGPT and minGPT, which are no class of Transformers: GPT-2's names, ordinary matrices."""

    model_type = "nanogpt"
    transposed = False


@dataclass(frozen=True)
class GPTBigCodeFamily(GPT2Family):
    """GPTBigCodeForCausalLM: GPT-2 with one key/value head (Ben Allal et al. 2023, arXiv:2301.03988)."""

    model_type = "gpt_bigcode"
    architecture = "GPTBigCodeForCausalLM"
    transposed = False

    activation_function: str = "gelu_pytorch_tanh"
    multi_query: bool = True

    @property
    def num_kv_heads(self) -> int | None:
        """As in :class:`GPT2Family`."""
        return 1 if self.multi_query else None

    @property
    def interleaved(self) -> bool:
        """As in :class:`Family`."""
        return not self.multi_query


@dataclass(frozen=True)
class Starcoder2Family(Family):
    """Starcoder2ForCausalLM: rotary positions, shared heads, one window (Lozhkov et al. 2024, arXiv:2402.19173)."""

    model_type = "starcoder2"
    architecture = "Starcoder2ForCausalLM"
    names = STARCODER2_NAMES
    prefix = "model."

    vocab_size: int = 49_152
    max_position_embeddings: int = 4096
    hidden_size: int = 3072
    intermediate_size: int = 12_288
    num_hidden_layers: int = 30
    num_attention_heads: int = 24
    num_key_value_heads: int = 2
    hidden_act: str = "gelu_pytorch_tanh"
    norm_epsilon: float = 1e-5
    sliding_window: int | None = None
    use_bias: bool = True
    residual_dropout: float = 0.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    rope_theta: float | None = None  # Transformers before 5 has it here, and the rest in rope_scaling
    rope_scaling: dict[str, object] | None = None
    rope_parameters: dict[str, object] | None = None

    def config(self) -> GPT2Config:
        """As in :class:`Family`."""
        rope: dict[str, Any] = {"rope_theta": self.rope_theta or 10_000.0, "rope_type": "default"}
        rope |= (self.rope_scaling or {}) | (self.rope_parameters or {})
        usual = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
        strange = {name: value for name, value in rope.items() if name != "rope_theta" and value != usual.get(name)}
        if strange:
            raise InputError(f"turns positions in a way that gpt2lab's models do not: {strange}")
        return GPT2Config(
            self.vocab_size,
            self.max_position_embeddings,
            self.hidden_size,
            self.num_attention_heads,
            self.intermediate_size,
            self.num_hidden_layers,
            position="rope",
            rope_theta=rope["rope_theta"],
            num_kv_heads=self.num_key_value_heads,
            window=self.sliding_window,
            tie_embeddings=self.tie_word_embeddings,
            dropout=self.residual_dropout,
            layer_norm_epsilon=self.norm_epsilon,
            activation=our_activation(self.hidden_act),
        )

    @classmethod
    def of(cls, config: GPT2Config) -> Self:
        """As in :class:`Family`."""
        return cls(
            vocab_size=config.vocab_size,
            tie_word_embeddings=config.tie_embeddings,
            max_position_embeddings=config.max_seq_len,
            hidden_size=config.embed_dim,
            intermediate_size=config.ff_hidden_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            hidden_act=ACTIVATIONS[config.activation][0],
            norm_epsilon=config.layer_norm_epsilon,
            sliding_window=config.layer_window(0),
            use_bias=config.bias,
            residual_dropout=config.dropout,
            embedding_dropout=config.dropout,
            rope_theta=config.rope_theta,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )

    @property
    def has_biases(self) -> bool:
        """As in :class:`Family`."""
        return self.use_bias

    @property
    def dropouts(self) -> dict[str, float]:
        """As in :class:`Family`."""
        names = ("residual_dropout", "embedding_dropout", "attention_dropout")
        return {name: getattr(self, name) for name in names}


FAMILIES: Mapping[str, type[Family]] = {
    family.model_type: family for family in (GPT2Family, GPTBigCodeFamily, Starcoder2Family)
}


def our_activation(theirs: str) -> Activation:
    """Our name of an activation of Transformers.

    Raises:
        InputError: the model has none like it.
    """
    for ours, names in ACTIVATIONS.items():
        if theirs in names:
            return ours
    known = ", ".join(name for names in ACTIVATIONS.values() for name in names)
    raise InputError(f"has the activation {theirs!r}, and gpt2lab's models have only {known}")


def stock(config: GPT2Config) -> tuple[type[Family], GPT2Config]:
    """The class that computes what a configuration does, and the configuration as it has to be spelled out for it.

    Raises:
        InputError: there is none; the message names the reason and the nearest thing that there is.
    """
    windows = {config.layer_window(layer) for layer in range(config.num_layers)}
    if config.position != "rope":  # which ends at the context
        windows = {None if window is None or window >= config.max_seq_len else window for window in windows}
    onnx = "; --format onnx writes it as it is"
    for wrong, reason in (
        (config.attention is not None, f"the attention {str(config.attention).split('@')[0]}, which is your own"),
        (config.qk_norm, "normalised queries and keys (qk_norm)"),
        (config.sinks, "sinks"),
        (config.rotates and config.position != "rope", "positions that differ by layer"),
        (config.rotates and config.rope_fraction != 1, f"a rope_fraction of {config.rope_fraction:g}"),
        (len(windows) > 1, "windows that differ by layer"),
    ):
        if wrong:
            raise InputError(f"no class of Transformers that gpt2lab writes has {reason}{onnx}")
    (window,) = windows
    if config.rotates:
        return Starcoder2Family, replace(config, num_kv_heads=config.kv_heads, window=window, bias=True)
    if window is not None:
        raise InputError(
            f'no class of Transformers has position="{config.position}" with a window ({window}), only position="rope" '
            f"has one{onnx}"
        )
    single = config.kv_heads == 1 < config.num_heads
    wide = replace(config, position="learned", num_kv_heads=1 if single else None, window=None, bias=True)
    return GPTBigCodeFamily if single else GPT2Family, wide
