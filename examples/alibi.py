"""An attention of one's own: ALiBi (Press et al. 2022, arXiv:2108.12409), on top of shared heads and windows.

gpt2lab train --attention examples/alibi.py:ALiBi --position none
"""

from gpt2lab import GPT2Config, GroupQueryAttention, SlidingWindowAttention

import torch
from torch import Tensor


class ALiBi(GroupQueryAttention, SlidingWindowAttention):
    """Scores fall with the distance between two tokens, in each head at another rate."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.slopes = 2.0 ** (-8 * torch.arange(1, config.num_heads + 1) / config.num_heads)  # (H,)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = q_pos[:, None, :, None] - k_pos[:, None, None, :]  # (B, 1, Tq, Tk)
        return -self.slopes.to(distance.device)[:, None, None] * distance  # (B, H, Tq, Tk)
