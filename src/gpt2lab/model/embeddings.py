"""Where tokens become vectors, and positions become either vectors (learned) or angles (rotary)."""

import torch
from torch import Tensor, nn

from gpt2lab.config import GPT2Config

Rotary = tuple[Tensor, Tensor]


class GPT2Embeddings(nn.Module):
    """Token embedding plus learned positions or, with RoPE, plus the rotary tables.

    The tables are made once per forward and shared by all layers.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.rotates = config.rotates
        self.token = nn.Embedding(config.vocab_size, config.embed_dim)
        if config.position == "learned":
            self.position = nn.Embedding(config.max_seq_len, config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Rotary | None]:
        """Embed token ids.

        Args:
            ids: token ids, int64 (B, T).
            positions: int64 (B or 1, T); -1 marks padding.

        Returns:
            hidden states (B, T, C), and (cos, sin) for :func:`rotate` with RoPE, else None.
        """
        hidden = self.token(ids)  # (B, T, C)
        if self.config.position == "learned":
            hidden = hidden + self.position(positions.clamp(min=0))
        rotary = None
        if self.rotates:
            rotary = rotary_tables(positions, self.config.rotary_dim, self.config.rope_theta, hidden.dtype)
        return self.dropout(hidden), rotary


def rotary_tables(positions: Tensor, rotary_dim: int, theta: float, dtype: torch.dtype = torch.float32) -> Rotary:
    """Cosine and sine of every rotary angle: angle = position · theta^(-2i / rotary_dim).

    Su et al. 2021 (arXiv:2104.09864), section 3.2.2. The angles are computed in float64 and rounded once, since at
    position 100,000 the rounding of float32 angles alone would move logits visibly; nor are the tables ever
    narrower than float32.

    Args:
        positions: int64 (B or 1, T).
        rotary_dim: how many dimensions of a head are turned, R, an even number.
        theta: base of the frequencies.
        dtype: of the model; the tables have it, or float32 if that is wider.

    Returns:
        (cos, sin), each (B or 1, 1, T, R/2).
    """
    device = positions.device
    exact = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    frequencies = theta ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=exact) / rotary_dim)  # (R/2,)
    angles = positions.to(exact, torch.float64)[:, None, :, None] * frequencies  # (B, 1, T, R/2)
    table_dtype = torch.promote_types(dtype, torch.float32)
    return angles.cos().to(device, table_dtype), angles.sin().to(device, table_dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of dimensions (d, d + R/2) by the angle of its position (GPT-NeoX's half-rotation layout).

    Args:
        x: queries or keys, (B, heads, T, D); what is beyond the first R dimensions stays as it is.
        cos: (B or 1, 1, T, R/2) from :func:`rotary_tables`.
        sin: likewise.

    Returns:
        (B, heads, T, D) in the dtype of ``x``.
    """
    half, rest = cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]
    first, second, *still = torch.split(x, [half, half, rest] if rest else half, dim=-1)  # (B, heads, T, R/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin, *still), dim=-1).to(x.dtype)
