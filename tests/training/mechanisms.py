"""Mechanisms that are awkward to train, save and divide."""

import numpy as np
import torch
from torch import Tensor, nn

from gpt2lab import GPT2Config, GroupQueryAttention


class SharedDistances(GroupQueryAttention):
    """A learned bias by distance (T5: Raffel et al. 2020, section 2.1), one table for all layers."""

    table_of_all: nn.Parameter

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        if layer == 0:
            SharedDistances.table_of_all = nn.Parameter(torch.linspace(-1, 1, 8).repeat(config.num_heads, 1))
        self.table = SharedDistances.table_of_all

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distances = (q_pos[:, :, None] - k_pos[:, None, :]).clamp(0, 7)  # (B, T, S)
        return self.table[:, distances].transpose(0, 1)  # (B, H, T, S)


class Counting(GroupQueryAttention):
    """A buffer of whole numbers that changes, a table that is not trained, and a parameter without a dimension."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, config.num_heads + 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.gate = nn.Parameter(torch.zeros(()))

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        self.calls += 1  # type: ignore[operator]
        distances = q_pos[:, None, :, None] - k_pos[:, None, None, :]
        return -self.gate.exp() * self.slopes[:, None, None] * distances  # type: ignore[index]


class Idle(GroupQueryAttention):
    """A learned scale, and parameters left over from an experiment: one is a matrix, which Muon would take."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.scale = nn.Parameter(torch.ones(1))
        self.left_over = nn.Parameter(torch.ones(1))
        self.matrix = nn.Parameter(torch.ones(4, 4))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None = None, k_pos: Tensor | None = None
    ) -> Tensor:
        return self.scale * super().forward(q, k, v, q_pos, k_pos)


class Forgetful(GroupQueryAttention):
    """Draws with numpy in its forward pass."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None = None, k_pos: Tensor | None = None
    ) -> Tensor:
        attended = super().forward(q, k, v, q_pos, k_pos)
        return attended * float(np.random.rand()) if self.training else attended
