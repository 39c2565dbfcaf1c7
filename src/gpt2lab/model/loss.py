"""The loss: cross-entropy of the output layer's logits, always a float32 scalar or a wider one."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# Above so many logits (128 MiB, and twice as much for their gradients) the loss is made, and its gradients with it, for
# 256 tokens after others.
MANY_LOGITS = 1 << 25
LOSS_PIECE = 256

NOT_COUNTED = -100


def loss_in_pieces(num_tokens: int, vocab_size: int) -> bool:
    """Whether the loss of so many tokens is made without ever holding all logits, where that can be done."""
    return num_tokens * vocab_size > MANY_LOGITS


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Cross-entropy of ``softmax(hidden @ head.T)``, in nats.

    Args:
        hidden: hidden states, (N, C).
        head: the output layer, (V, C).
        targets: the id that is right for each, int64 (N,); -100: not counted.
        reduction: the mean of what is counted (NaN of nothing), or the sum.

    Returns:
        a scalar, float32 or wider, in whatever precision the logits are made. Of many logits it is differentiable once.
    """
    if not loss_in_pieces(len(hidden), len(head)) or torch.compiler.is_compiling():
        logits = F.linear(hidden, head)  # (N, V)
        return F.cross_entropy(logits.to(_wide(logits.dtype)), targets, reduction=reduction)
    if not torch.is_grad_enabled():  # or gradients would be made all the same
        hidden, head = hidden.detach(), head.detach()
    total: Tensor = _InPieces.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
    return total if reduction == "sum" else total / (targets != NOT_COUNTED).sum()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _InPieces(torch.autograd.Function):
    """The sum over all targets. The gradients are made on the way, while a piece's probabilities are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wide = _wide(dtype)
        hidden, head = hidden.to(dtype), head.to(dtype)
        if kind == "cpu":  # most of them multiply narrow numbers forty times more slowly
            hidden, head = hidden.to(wide), head.to(wide)
        of_hidden, of_head, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        grad_head = torch.zeros_like(head, dtype=wide) if of_head else None
        total = hidden.new_zeros((), dtype=wide)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(hidden), LOSS_PIECE):
                piece = slice(start, start + LOSS_PIECE)
                into = None if grad_hidden is None else grad_hidden[piece]
                total += _add_piece(hidden[piece], head, targets[piece, None], into, grad_head)
        ctx.gradients = grad_hidden, grad_head
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the loss of many logits can be differentiated once; make it again")
        (grad_hidden, grad_head), ctx.gradients = ctx.gradients, None
        return (
            grad_hidden.mul_(scale) if grad_hidden is not None else None,
            grad_head.mul_(scale) if grad_head is not None else None,
            None,
        )


def _add_piece(
    hidden: Tensor, head: Tensor, targets: Tensor, grad_hidden: Tensor | None, grad_head: Tensor | None
) -> Tensor:
    """The sum for the targets (P, 1) of one piece, (P, C); its gradients are written to, and added to, the last two."""
    wide = _wide(head.dtype)
    counted = targets != NOT_COUNTED
    ids = targets.where(counted, 0)
    log_p = F.log_softmax(F.linear(hidden, head).to(wide), dim=1)  # (P, V)
    total = -(log_p.gather(1, ids) * counted).sum()
    if grad_hidden is None and grad_head is None:
        return total
    # d loss / d logit = probability − 1 where it is the right one (Bridle 1990, eq. 12)
    by_logits = log_p.exp_().scatter_add_(1, ids, torch.full_like(ids, -1, dtype=wide))
    by_logits = by_logits.mul_(counted).to(head.dtype)  # (P, V)
    if grad_hidden is not None:
        torch.mm(by_logits, head, out=grad_hidden)
    if grad_head is not None and head.dtype == wide:
        grad_head.addmm_(by_logits.T, hidden)
    elif grad_head is not None:
        grad_head += by_logits.T @ hidden
    return total
