"""GPT-2's pre-LayerNorm block."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from gpt2lab.config import GPT2Config
from gpt2lab.model.attention import Mechanism, MultiHeadAttention, Reading
from gpt2lab.model.cache import LayerCache

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
}


class FeedForward(nn.Module):
    """Two linear layers around a non-linearity, applied to every token alone: (B, T, C) to (B, T, C)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.expand = nn.Linear(config.embed_dim, config.ff_hidden_dim, bias=config.bias)
        self.contract = nn.Linear(config.ff_hidden_dim, config.embed_dim, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token."""
        return self.contract(self.activation(self.expand(x)))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward network, each normalised before and added to the residual stream."""

    def __init__(self, config: GPT2Config, layer: int, mechanism: Mechanism | None = None) -> None:
        super().__init__()
        self.attention_norm = layer_norm(config)
        self.attention = MultiHeadAttention(config, layer, mechanism)
        self.feed_forward_norm = layer_norm(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, reading: Reading | None = None, cache: LayerCache | None = None) -> Tensor:
        """One layer: (B, T, C) to (B, T, C); arguments as in :class:`MultiHeadAttention`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), reading, cache))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]


def layer_norm(config: GPT2Config) -> nn.LayerNorm:
    """LayerNorm as the configuration asks for it."""
    return nn.LayerNorm(config.embed_dim, eps=config.layer_norm_epsilon, bias=config.bias)
