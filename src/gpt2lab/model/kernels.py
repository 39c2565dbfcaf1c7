"""The one place that computes attention: the fastest exact kernel for a shape.

All kernels compute softmax(q kᵀ / √D + bias) v over the keys that a query may see: none from the future, none further
back than the window (which counts the query itself), no empty slot of a cache.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2lab.config import InputError

Bias = Callable[[Tensor, Tensor], Tensor | None]

# For fewer queries than this, or than three windows, a mask is cheaper than cutting the sequence into blocks.
_SHORTEST_BAND = 256


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_pos: Tensor | None = None,
    k_pos: Tensor | None = None,
    *,
    window: int | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """Causal attention of queries over keys, whose heads may be shared and whose reach may be limited.

    Args:
        q: queries (B, H, Tq, D).
        k: keys (B, K, Tk, D); K divides H, and query head h reads key/value head h // (H / K).
        v: values (B, K, Tk, D), or of another width E.
        q_pos: positions of the queries, int64 (B or 1, Tq); -1 marks padding, whose output means nothing.
            None, the fast path: queries and keys both stand at 0 .. T-1.
        k_pos: positions of the keys, int64 (B or 1, Tk), in any order; -1 marks an empty slot.
        window: how many latest positions a query sees, its own included; None: all.
        bias: called with positions, returns what is added to the scores, broadcast to (B, H, Tq, Tk), or None.

    Returns:
        (B, H, Tq, D), or of the width of the values.

    Raises:
        InputError: only one of q_pos and k_pos is given.
    """
    length = q.shape[2]
    if (q_pos is None) != (k_pos is None):
        raise InputError("attend() needs the positions of both queries and keys, or of neither")
    if q_pos is None or k_pos is None:
        q_pos = k_pos = torch.arange(length, device=q.device)[None]
        added = bias(q_pos, k_pos) if bias is not None else None
        if added is None and (window is None or window >= length):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])
        if added is None and window is not None and length >= max(_SHORTEST_BAND, 3 * window):
            return _attend_band(q, k, v, window)
    else:
        added = bias(q_pos, k_pos) if bias is not None else None
    mask = visible(q_pos, k_pos, window)[:, None]  # (B or 1, 1, Tq, Tk)
    if added is not None:
        mask = added.to(q.dtype).masked_fill(~mask, float("-inf"))
    return _attend_masked(q, k, v, mask)


def visible(q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
    """Which keys (B or 1, Tk) each query (B or 1, Tq) sees: bool (B or 1, Tq, Tk).

    Padding queries (position -1) see everything, because a softmax over nothing is NaN.
    """
    q_pos, k_pos = q_pos[:, :, None], k_pos[:, None, :]
    seen = (k_pos >= 0) & (k_pos <= q_pos)
    if window is not None:
        seen = seen & (k_pos > q_pos - window)
    return seen | (q_pos < 0)


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    B, H, Tq, D = q.shape
    K = k.shape[1]
    if Tq == 1 and K != H:
        # One new token: the group becomes the query rows, (B, K, H/K, D) against (B, K, Tk, D), and no key is copied.
        rows = mask.reshape(-1, K, H // K, mask.shape[-1]) if mask.shape[1] == H else mask
        return F.scaled_dot_product_attention(q.reshape(B, K, H // K, D), k, v, attn_mask=rows).reshape(B, H, 1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=K != H)


def _attend_band(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Windowed attention in blocks: W queries against the 2W keys of their own block and the one before.

    Cost and memory grow with T·W instead of T². Blocks become heads of one batched call, and a group of query
    heads the rows of one block, so that shared keys are not copied.
    """
    B, H, T, D = q.shape
    K, S = k.shape[1], window
    N = -(-T // S)
    q, k, v = (F.pad(x, (0, 0, 0, N * S - T)) for x in (q, k, v))
    q = q.view(B, K, H // K, N, S, D).transpose(2, 3).reshape(B * K, N, H // K * S, D)
    k, v = (_with_previous_block(x.reshape(B * K, N, S, -1)) for x in (k, v))  # (B·K, N, 2S, D)
    blocks = S * torch.arange(N, device=q.device)[:, None]
    q_pos = blocks + torch.arange(S, device=q.device)  # (N, S)
    k_pos = blocks + torch.arange(-S, S, device=q.device)  # (N, 2S); negative before the first block
    mask = visible(q_pos, k_pos, window).repeat(1, H // K, 1)  # (N, H/K·S, 2S)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])  # (B·K, N, H/K·S, D)
    return y.view(B, K, N, H // K, S, -1).transpose(2, 3).reshape(B, H, N * S, -1)[:, :, :T]


def _with_previous_block(x: Tensor) -> Tensor:
    """(B, N, S, D) → (B, N, 2S, D): every block behind its predecessor, the first behind zeros."""
    previous = F.pad(x[:, :-1], (0, 0, 0, 0, 1, 0))
    return torch.cat((previous, x), dim=2)
