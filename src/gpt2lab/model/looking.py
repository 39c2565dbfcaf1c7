"""What a token sees: the attention of every layer, read off the model itself."""

from typing import Any

import torch
from torch import Tensor

from gpt2lab.errors import InputError
from gpt2lab.model.gpt2 import GPT2


@torch.no_grad()
def attention_weights(model: GPT2, ids: Tensor) -> list[Tensor]:
    """How the last token of a text attends, in every layer.

    A mechanism mixes values; given one-hot values in their place it tells the weights that it mixes them with. So this
    holds for a mechanism of your own, too, as long as its result is a weighted sum of values.

    Args:
        model: on any device.
        ids: a text, integers (T,), T at least 1; for a model that is not endless at most its context.

    Returns:
        for each layer float (H, n): weights of the latest n tokens, the last token's own last; n is T or the window,
        whichever is smaller. Query head h reads key/value head h // (H / K). A row sums to 1, or with sinks to less.

    Raises:
        InputError: no token, or more than the context.

    Examples:
        >>> weights = attention_weights(model, torch.from_numpy(tokenizer.encode("ROMEO:")))
        >>> weights[0].shape  # 4 heads, 6 tokens
        torch.Size([4, 6])
    """
    if ids.dim() != 1 or len(ids) == 0:
        raise InputError(f"the text has the shape {tuple(ids.shape)}; it has to be (T,), with one token at least")
    found: list[Tensor] = []

    def looked_at(forward: Any, mechanism: Any) -> Any:
        def read(q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None, k_pos: Tensor | None) -> Any:
            T = k.shape[2]
            n = min(T, mechanism.window or T)
            at = torch.arange(T, device=q.device)[None] if k_pos is None else k_pos  # (1, T)
            one_hot = torch.eye(n, dtype=q.dtype, device=q.device).expand(1, v.shape[1], n, n)
            told = forward(q[:, :, -1:], k[:, :, -n:], one_hot, at[:, -1:], at[:, -n:])  # (1, H, 1, n)
            found.append(told[0, :, 0])
            return forward(q, k, v, q_pos, k_pos)

        return read

    mechanisms = [block.attention.mechanism for block in model.blocks]
    try:
        for mechanism in mechanisms:
            vars(mechanism)["forward"] = looked_at(mechanism.forward, mechanism)
        with model.evaluating():
            model(ids[None].to(model.device), last_only=True)
    finally:
        for mechanism in mechanisms:
            vars(mechanism).pop("forward", None)
    return found
