"""The one place that computes attention: the fastest exact kernel for a shape.

All kernels compute softmax(q kᵀ / √D + bias) v over the keys that a query may see: none from the future, none further
back than the window (which counts the query itself), no empty slot of a cache. With sinks, each head has a logit more
in its softmax, which belongs to no key. They are:

    causal   torch's fused kernel for everything earlier: a window that covers the text is no window
    band     blocks of queries, each against the stretch of keys that its windows cover: cost and memory grow with T·W
    flex     FlexAttention, which skips the blocks of keys that no query sees; in a compiled model on CUDA
    mask     every score is computed and a mask hides some: short texts, a cache's keys in any order, a bias on all

None of them drops attention weights at random: where that happens differs from kernel to kernel, and a fused one does
not even offer it on a CPU. ``dropout`` is that of the embeddings and residual branches.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from gpt2lab.errors import InputError

Bias = Callable[[Tensor, Tensor], Tensor | None]
Kernel = Literal["causal", "band", "flex", "mask"]

# For fewer queries than this, or not many more than three windows, a mask is cheaper than cutting into blocks.
_SHORTEST_BAND = 256
# Blocks are half a window long, in whole multiples of this: odd sizes cost a kernel more than some empty rows.
_BLOCK = 32
# With fewer keys to see than this, a CPU's kernel needs longer for the backward in half the precision than in float32.
_FEW_KEYS = 512
# FlexAttention's own blocks.
_FLEX_BLOCK = 128


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_pos: Tensor | None = None,
    k_pos: Tensor | None = None,
    *,
    window: int | None = None,
    bias: Bias | None = None,
    sinks: Tensor | None = None,
    seen: Tensor | None = None,
    kernel: Kernel | None = None,
) -> Tensor:
    """Causal attention of queries over keys, whose heads may be shared and whose reach may be limited.

    Args:
        q: queries (B, H, Tq, D).
        k: keys (B, K, Tk, D); K divides H, and query head h reads key/value head h // (H / K).
        v: values (B, K, Tk, D), or of another width E.
        q_pos: positions of the queries, int64 (B or 1, Tq); -1 marks padding, whose output means nothing.
            None, the fast path: keys stand at 0 .. Tk-1, and queries at the last Tq of these places.
        k_pos: positions of the keys, int64 (B or 1, Tk), in any order; -1 marks an empty slot.
        window: how many latest positions a query sees, its own included; None: all.
        bias: called with positions (of all tokens, or of some at a time), returns what is added to the scores,
            broadcast to (B, H, Tq, Tk), or None for nothing.
        sinks: a logit for each query head, (H,), that joins the sum in the denominator of its softmax.
        seen: with positions, what :func:`visible` says of them, if that is known: bool (B or 1, Tq, Tk).
        kernel: to name one, as tests and benchmarks do; None: the fastest for this shape and device.

    Returns:
        (B, H, Tq, D), or of the width of the values.

    Raises:
        InputError: only one of q_pos and k_pos is given, there are more queries than keys and no positions, or the
            kernel that is named cannot compute this.
    """
    length, keys = q.shape[2], k.shape[2]
    if (q_pos is None) != (k_pos is None):
        raise InputError("attend() needs the positions of both queries and keys, or of neither")
    if q_pos is None and length > keys:
        raise InputError(f"attend() has {length} queries and {keys} keys; give it the positions of both")
    whole = q_pos is None and length == keys
    slow = q.device.type == "cpu" and q.requires_grad and q.dtype in (torch.bfloat16, torch.float16)
    if slow and min(keys, window or keys) < _FEW_KEYS:
        with torch.autocast("cpu", enabled=False):
            wide = q.float(), k.float(), v.float()
            y = attend(*wide, q_pos, k_pos, window=window, bias=bias, sinks=sinks, seen=seen, kernel=kernel)
        return y.to(q.dtype)
    if q_pos is None or k_pos is None:
        k_pos = torch.arange(keys, device=q.device)[None]
        q_pos = k_pos[:, keys - length :]
        if window is not None and window >= keys:
            window = None
    kernels = _able(q, k, v, whole, window, bias)
    if kernel is not None and kernel not in kernels:
        raise InputError(
            f"the kernel {kernel!r} cannot compute this attention ({'its own' if whole else 'given'} positions, "
            f"{length} queries, window={window}, {'no ' if bias is None else ''}bias, on {q.device.type}); "
            f"one of these can: {', '.join(kernels)}"
        )
    match kernel or kernels[0]:
        case "causal":
            return _attend_causal(q, k, v, sinks)
        case "band":
            assert window is not None
            return _attend_band(q, k, v, window, bias, sinks)
        case "flex":
            assert window is not None
            return _attend_flex(q, k, v, window, sinks)
        case "mask":
            mask = (visible(q_pos, k_pos, window) if seen is None else seen)[:, None]  # (B or 1, 1, Tq, Tk)
            return _attend_masked(q, k, v, _with_bias(mask, bias, q_pos, k_pos, q.dtype), sinks)


def _able(q: Tensor, k: Tensor, v: Tensor, whole: bool, window: int | None, bias: Bias | None) -> list[Kernel]:
    """The kernels that can compute this, the fastest first; ``window`` is None where it covers the text."""
    if not whole:
        return ["mask"]
    if window is None:
        return ["mask"] if bias is not None else ["causal", "mask"]
    B, _, T, _ = q.shape
    able: list[Kernel] = ["mask"]
    _, blocks, earlier = band_blocks(T, window)
    if blocks > earlier:
        pays = band_pays(T, window) and (bias is None or 2 * window * B <= T)  # a bias is copied for every text
        able.insert(0 if pays else 1, "band")
    if bias is None and q.is_cuda and min(q.shape[-1], v.shape[-1]) >= 16 and q.dtype != torch.float64:
        able.insert(0 if torch.compiler.is_compiling() else 2, "flex")
    if bias is None and not q.is_cuda and not any(x.requires_grad for x in (q, k, v)):  # it has no backward there
        able.append("flex")
    return able


def chosen_kernel(q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, bias: Bias | None = None) -> Kernel:
    """The kernel that :func:`attend` chooses for a whole text, whose tensors may be without values (``meta``)."""
    covers = window is not None and window >= q.shape[2]
    return _able(q, k, v, True, None if covers else window, bias)[0]


def band_pays(length: int, window: int) -> bool:
    """Whether cutting so long a text into blocks is cheaper than a mask."""
    return max(_SHORTEST_BAND, 3 * window + 2 * _BLOCK) <= length


def band_blocks(length: int, window: int) -> tuple[int, int, int]:
    """How a text is cut: tokens of a block, S; blocks, N; earlier blocks that a block sees (at least one), P."""
    size = _BLOCK * -(-window // (2 * _BLOCK))
    return size, -(-length // size), max(1, -(-(window - 1) // size))


def visible(q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
    """Which keys (B or 1, Tk) each query (B or 1, Tq) sees: bool (B or 1, Tq, Tk).

    Padding queries (position -1) see everything, because a softmax over nothing is NaN.
    """
    q_pos, k_pos = q_pos[:, :, None], k_pos[:, None, :]
    seen = (k_pos >= 0) & (k_pos <= q_pos)
    if window is not None:
        seen = seen & (k_pos > q_pos - window)
    return seen | (q_pos < 0)


def _with_bias(mask: Tensor, bias: Bias | None, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask (B or 1, 1, Tq, Tk), or with a bias what is added to the scores, -inf where the mask hides them."""
    added = bias(q_pos, k_pos) if bias is not None else None
    return mask if added is None else added.to(dtype).masked_fill(~mask, float("-inf"))


def _with_sink(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sink as a first key: one dimension more, in which it has 1 and the others 0, and queries have their sink.

    Its value is 0, so that it only adds to the denominator, and every kernel can compute it, gradients included. Scores
    are still to be divided by the √D of before, and what comes out to be cut to its width: values get a dimension more
    as well, since fused kernels want one width for all.

    Args:
        q: (…, rows, D).
        k: (…, keys, D).
        v: (…, keys, E).
        sinks: a logit for each row, broadcast to (…, rows, 1).
    """
    D = q.shape[-1]
    own = (sinks * D**0.5).to(q.dtype).expand(*q.shape[:-1], 1)
    k = F.pad(k, (0, 1, 1, 0))
    k[..., 0, -1] = 1
    return torch.cat((q, own), dim=-1), k, F.pad(v, (0, int(v.shape[-1] == D), 1, 0))


def _attend_causal(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
    shared, scale, E = k.shape[1] != q.shape[1], q.shape[-1] ** -0.5, v.shape[-1]
    if sinks is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
    q, k, v = _with_sink(q, k, v, sinks[:, None, None])
    q = F.pad(q, (0, 0, 1, 0))  # a query for the sink's place, so that all others see it, and what is before them
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared, scale=scale)[:, :, 1:, :E]


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor | None) -> Tensor:
    B, H, Tq, D = q.shape
    K, E, scale = k.shape[1], v.shape[-1], None
    if sinks is not None:
        scale = D**-0.5
        q, k, v = _with_sink(q, k, v, sinks[:, None, None])
        mask = F.pad(mask, (1, 0), value=mask.dtype == torch.bool)  # which is seen by all: True, or 0 is added
    if Tq == 1 and K != H:
        # One new token: the group becomes the query rows, (B, K, H/K, D) against (B, K, Tk, D), and no key is copied.
        rows = mask.reshape(-1, K, H // K, mask.shape[-1]) if mask.shape[1] == H else mask
        q = q.reshape(B, K, H // K, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=rows, scale=scale).reshape(B, H, 1, -1)[..., :E]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=K != H, scale=scale)[..., :E]


def _attend_band(q: Tensor, k: Tensor, v: Tensor, window: int, bias: Bias | None, sinks: Tensor | None) -> Tensor:
    """Windowed attention in blocks: S queries against the keys of their own block and of the P blocks before it.

        keys       0  1  2  3  4  5        one block of a window of 4: S = 2, P = 2
        query 4    .  x  x  x  x  .
        query 5    .  .  x  x  x  x

    Blocks become heads of one batched call, and a group of query heads the rows of one block. The first P blocks, whose
    windows reach beyond the beginning, are a short text of their own; all others have one mask, if there is no bias.
    """
    B, H, T, D = q.shape
    K, (S, N, P) = k.shape[1], band_blocks(T, window)
    G, begin = H // K, P * S  # query heads in a group; tokens of the first P blocks
    if N * S > T:  # what stands behind the text is in every query's future
        q, k, v = (F.pad(x, (0, 0, 0, N * S - T)) for x in (q, k, v))
    else:
        k, v = (_copied(x) for x in (k, v))
    q_first, q = q.split_with_sizes((begin, N * S - begin), dim=2)
    (k_first, k), (v_first, v) = (_stretches(x.view(B * K, N, S, x.shape[-1]), P) for x in (k, v))
    k_first, v_first = (x.view(B, K, begin, x.shape[-1]) for x in (k_first, v_first))
    first = attend(_copied(q_first), k_first, v_first, window=window, bias=bias, sinks=sinks)

    q = _copied(q.reshape(B, K, G, N - P, S, D).transpose(2, 3)).view(B * K, N - P, G * S, D)
    masks = 1 if bias is None else N - P
    starts = S * torch.arange(masks, device=q.device)[:, None]
    q_pos = starts + torch.arange(begin, begin + S, device=q.device)  # (masks, S)
    k_pos = starts + torch.arange(begin + S, device=q.device)  # (masks, (P+1)·S)
    mask = visible(q_pos, k_pos, window)[:, None]  # (masks, 1, S, (P+1)·S)
    mask = _with_bias(mask, bias, q_pos.clamp(max=T - 1), k_pos.clamp(max=T - 1), q.dtype)  # (masks, 1 or H, …)
    if mask.shape[1] == 1:
        mask = mask.repeat(1, 1, G, 1).transpose(0, 1)  # (1, masks, G·S, (P+1)·S)
    else:
        mask = mask.reshape(masks, K, G * S, -1).transpose(0, 1).repeat(B, 1, 1, 1)

    E, scale = v.shape[-1], None
    if sinks is not None:
        scale = D**-0.5
        of_rows = sinks.view(K, G).repeat_interleave(S, dim=1).repeat(B, 1)[:, None, :, None]  # (B·K, 1, G·S, 1)
        q, k, v = _with_sink(q, k, v, of_rows)
        mask = F.pad(mask, (1, 0), value=mask.dtype == torch.bool)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)  # (B·K, N-P, G·S, D)
    y = y.view(B, K, N - P, G, S, -1)[..., :E].transpose(2, 3).reshape(B, H, N * S - begin, E)
    return torch.cat((first, y[:, :, : T - begin]), dim=2)


def _copied(x: Tensor) -> Tensor:
    """A copy in memory of its own: of a view, autograd would keep the whole that it shows a part of."""
    return x.clone(memory_format=torch.contiguous_format)


def _stretches(blocks: Tensor, P: int) -> tuple[Tensor, Tensor]:
    """The first P blocks, and every later one behind the P before it.

    (B, N, S, D) → (B, P, S, D), (B, N-P, (P+1)·S, D).
    """
    return _Stretches.apply(blocks, P)  # type: ignore[no-any-return, no-untyped-call]


class _Stretches(torch.autograd.Function):
    """Stretches that overlap are views of one memory; the gradients of what they share are added block by block. (The
    backward of ``Tensor.unfold`` is correct, too, but adds element by element, which is slower.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, P: int) -> tuple[Tensor, Tensor]:
        S = x.shape[2]
        return x[:, :P], x.flatten(1, 2).unfold(1, (P + 1) * S, S).transpose(2, 3)

    @staticmethod
    def backward(ctx: Any, of_first: Tensor, of_stretches: Tensor) -> tuple[Tensor, None]:
        P, later = of_first.shape[1], of_stretches.shape[1]
        total = F.pad(of_first, (0, 0, 0, 0, 0, later))
        for back, part in enumerate(of_stretches.chunk(P + 1, dim=2)):
            total[:, back : back + later] += part
        return total, None


def _attend_flex(q: Tensor, k: Tensor, v: Tensor, window: int, sinks: Tensor | None) -> Tensor:
    blocks, shared = _flex_blocks(q.shape[2], window, q.device), k.shape[1] != q.shape[1]
    if sinks is None:
        return flex_attention(q, k, v, block_mask=blocks, enable_gqa=shared)
    asked = AuxRequest(lse=True)
    y, found = flex_attention(q, k, v, block_mask=blocks, enable_gqa=shared, return_aux=asked)
    assert found.lse is not None  # (B, H, T)
    share = (found.lse - sinks[:, None]).sigmoid()  # of the keys in the softmax: their sum, of itself and exp(sink)
    return (y * share[..., None]).to(q.dtype)


def _flex_blocks(length: int, window: int, device: torch.device) -> BlockMask:
    """What torch's `create_block_mask` finds by looking at every pair of tokens, here from the blocks alone: a compiled
    model keeps nothing from call to call, so every layer of every step asks for it.
    """

    def seen(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (j > i - window)

    def ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:  # (N, N) → how many of each row, and those first
        indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
        return blocks.sum(-1, dtype=torch.int32)[None, None], indices.int()[None, None]

    block = torch.arange(-(-length // _FLEX_BLOCK), device=device)
    back = _FLEX_BLOCK * (block[:, None] - block)  # tokens from a block of queries back to one of keys
    some = (back >= 0) & (back - _FLEX_BLOCK + 1 < window)
    whole = (back > 0) & (back + _FLEX_BLOCK - 1 < window) & (_FLEX_BLOCK * (block[:, None] + 1) <= length)
    return BlockMask.from_kv_blocks(
        *ordered(some & ~whole), *ordered(whole), BLOCK_SIZE=_FLEX_BLOCK, mask_mod=seen, seq_lengths=(length, length)
    )
