"""What several test files share: attention and GPT-2 written densely, strategies for switches, a user's mechanism."""

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gpt2lab.config import GPT2Config
from gpt2lab.model import GPT2, GroupQueryAttention, SlidingWindowAttention


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_pos: Tensor | None = None,
    k_pos: Tensor | None = None,
    window: int | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The textbook: every score is computed, and those that must not be seen are thrown away."""
    B, H, Tq, D = q.shape
    k, v = (x.repeat_interleave(H // k.shape[1], dim=1) for x in (k, v))
    q_pos = torch.arange(Tq).expand(B, -1) if q_pos is None else q_pos.expand(B, -1)
    k_pos = torch.arange(k.shape[2]).expand(B, -1) if k_pos is None else k_pos.expand(B, -1)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(D) + (0 if bias is None else bias)
    back = q_pos[:, None, :, None] - k_pos[:, None, None, :]  # how many tokens back each key lies
    hidden = (back < 0) | (k_pos < 0)[:, None, None, :] | (back >= (window or math.inf))
    scores = scores.masked_fill(hidden, -math.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[None, :, None, None].expand(B, H, Tq, 1)), dim=-1)
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1)[..., : k.shape[2]], v)


def dense_logits(model: GPT2, ids: Tensor, bias: Tensor | None = None) -> Tensor:
    """Logits (T, V) of one text (T,) from a model's weights, with every switch read from its configuration."""
    c, w = model.config, model.state_dict()
    T, H, K, D = len(ids), c.num_heads, c.kv_heads, c.head_dim

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros((), dtype=x.dtype))

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + c.layer_norm_epsilon).sqrt()
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", torch.zeros((), dtype=x.dtype))

    def rms_norm(x: Tensor, name: str) -> Tensor:
        return x / ((x**2).mean(-1, keepdim=True) + c.layer_norm_epsilon).sqrt() * w[f"{name}.weight"]

    def turn(x: Tensor) -> Tensor:  # (1, heads, T, D), by complex numbers: dimension d is real, d + R/2 imaginary
        R = int(c.rope_fraction * D)
        frequency = c.rope_theta ** (-torch.arange(0, R, 2, dtype=torch.float64) / R)
        angle = torch.arange(T, dtype=torch.float64)[:, None] * frequency
        turned = torch.complex(*x[..., :R].double().chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag, x[..., R:]), -1).to(x.dtype)

    x = w["embeddings.token.weight"][ids]
    if c.position == "learned":
        x = x + w["embeddings.position.weight"][:T]
    for layer in range(c.num_layers):
        block = f"blocks.{layer}"
        y = linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.query_key_value")
        q, k, v = (part.view(1, T, -1, D).transpose(1, 2) for part in y.split((H * D, K * D, K * D), -1))
        if c.qk_norm:
            q, k = (
                rms_norm(q, f"{block}.attention.mechanism.query_norm"),
                rms_norm(k, f"{block}.attention.mechanism.key_norm"),
            )
        if (c.position[layer % len(c.position)] if isinstance(c.position, tuple) else c.position) == "rope":
            q, k = turn(q), turn(k)
        window = c.window[layer % len(c.window)] if isinstance(c.window, tuple) else c.window
        sinks = w.get(f"{block}.attention.mechanism.sinks")
        y = dense_attention(q, k, v, window=window, bias=bias, sinks=sinks)[0].transpose(0, 1).reshape(T, H * D)
        x = x + linear(y, f"{block}.attention.output")
        y = linear(norm(x, f"{block}.feed_forward_norm"), f"{block}.feed_forward.expand")
        gelu = 0.5 * y * (1 + (y / math.sqrt(2)).erf())
        tanh = 0.5 * y * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh())
        y = {"gelu": gelu, "gelu_tanh": tanh, "relu": F.relu(y)}[c.activation]
        x = x + linear(y, f"{block}.feed_forward.contract")
    return norm(x, "final_norm") @ w["embeddings.token.weight" if c.tie_embeddings else "lm_head.weight"].T


@torch.no_grad()
def randomised(model: GPT2, seed: int = 0, dtype: torch.dtype = torch.float64) -> GPT2:
    """The model with weights so far from zero that every key matters, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.to(dtype).named_parameters():
        scale = 0.3 if parameter.dim() < 2 else 1 / math.sqrt(parameter.shape[-1])
        noise = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(noise + (1.0 if "norm.weight" in name else 0.0))
    return model.eval()


def random_ids(model: GPT2, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def windows(draw: st.DrawFn, longest: int, endless: bool | None = None) -> Any:
    """Windows as they are given: none, one for all, or a tuple over the layers; endless: one in every layer."""
    width = st.integers(1, longest)
    optional = width if endless else width | st.none()
    return draw(optional | st.lists(optional, min_size=1, max_size=3).map(tuple))


def positions(endless: bool = False) -> st.SearchStrategy[Any]:
    """Positions as they are given: one for all layers, or a tuple over the layers; endless: no learned ones."""
    one = st.sampled_from(["rope", "none"])
    several = st.lists(one, min_size=1, max_size=3).map(tuple)
    return one | several if endless else st.just("learned") | one | several


@st.composite
def configs(draw: st.DrawFn, **fixed: Any) -> GPT2Config:
    """Small models with any switches."""
    num_heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    head_dim = draw(st.sampled_from([2, 4, 8]))
    max_seq_len = fixed.get("max_seq_len") or draw(st.integers(1, 20))
    drawn = {
        "vocab_size": 11,
        "max_seq_len": max_seq_len,
        "embed_dim": num_heads * head_dim,
        "num_heads": num_heads,
        "ff_hidden_dim": draw(st.integers(1, 24)),
        "num_layers": draw(st.integers(1, 3)),
        "position": draw(positions()),
        "rope_fraction": draw(st.sampled_from([part / head_dim for part in range(2, head_dim + 1, 2)])),
        "rope_theta": draw(st.sampled_from([100.0, 10_000.0])),
        "num_kv_heads": draw(st.sampled_from([None, *(k for k in range(1, 7) if num_heads % k == 0)])),
        "window": draw(windows(max_seq_len + 4)),
        "qk_norm": draw(st.booleans()),
        "sinks": draw(st.booleans()),
        "tie_embeddings": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "layer_norm_epsilon": draw(st.sampled_from([1e-5, 1e-2])),
        "activation": draw(st.sampled_from(["gelu_tanh", "gelu", "relu"])),
    }
    return GPT2Config(**(drawn | fixed))


class ALiBi(GroupQueryAttention, SlidingWindowAttention):
    """A user's mechanism (Press et al. 2021, arXiv:2108.12409): far keys score lower, steeper from head to head."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.register_buffer("slopes", 2.0 ** (-8 * torch.arange(1, config.num_heads + 1) / config.num_heads))

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return -self.slopes[:, None, None] * (q_pos[:, None, :, None] - k_pos[:, None, None, :])


def alibi_bias(num_heads: int, length: int) -> Tensor:
    """The same, entry by entry: (H, T, T)."""
    return torch.tensor(
        [
            [[-(2 ** (-8 * (head + 1) / num_heads)) * (i - j) for j in range(length)] for i in range(length)]
            for head in range(num_heads)
        ],
        dtype=torch.float64,
    )
