"""What a token sees: the attention of every layer, read off the model itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gpt2lab.errors import InputError
from gpt2lab.model.attention import ScaledDotProductAttention
from gpt2lab.model.gpt2 import GPT2

Positions = Tensor | None
# From q (B, H, Tq, D), k (B, K, Tk, D) and the positions of both to the weights (B, H, Tq, Tk).
Weights = Callable[[Tensor, Tensor, Positions, Positions], Tensor]
Look = Callable[[ScaledDotProductAttention, Weights, Tensor, Tensor, Positions, Positions], None]


@contextmanager
def looking(model: GPT2, look: Look) -> Iterator[None]:
    """Have something called whenever a layer attends without a cache: with the mechanism, what tells its weights, and
    the queries, keys and positions that it was given.

    A mechanism mixes values; given one-hot values in their place it tells the weights that it mixes them with. So this
    holds for a mechanism of your own, too, as long as its result is a weighted sum of values.

    Raises:
        InputError: on the first weights, if a mechanism of your own takes no values of another width than its keys.
    """

    def looked_at(mechanism: ScaledDotProductAttention) -> Callable[..., Tensor]:
        forward = mechanism.forward

        def attend(q: Tensor, k: Tensor, v: Tensor, q_pos: Positions = None, k_pos: Positions = None) -> Tensor:
            def weights(q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions) -> Tensor:
                keys = k.shape[2]
                one_hot = torch.eye(keys, dtype=q.dtype, device=q.device).expand(*v.shape[:2], keys, keys)
                try:
                    return forward(q, k, one_hot, q_pos, k_pos)
                except Exception as e:  # a user's mechanism may raise anything when its values are wider than a head
                    if model.config.attention is None:
                        raise
                    raise InputError(
                        f"the attention {model.config.attention} does not tell its weights: it takes no values of "
                        f"another width than its keys ({type(e).__name__}: {e})"
                    ) from e

            look(mechanism, weights, q, k, q_pos, k_pos)
            return forward(q, k, v, q_pos, k_pos)

        return attend

    mechanisms = [block.attention.mechanism for block in model.blocks]
    try:
        for mechanism in mechanisms:  # not with hooks, after which a native step would be made anew
            vars(mechanism)["forward"] = looked_at(mechanism)
        yield
    finally:
        for mechanism in mechanisms:
            vars(mechanism).pop("forward", None)


@torch.no_grad()
def attention_weights(model: GPT2, ids: Tensor) -> list[Tensor]:
    """How the last token of a text attends, in every layer.

    Args:
        model: on any device.
        ids: a text, integers (T,), T at least 1; for a model that is not endless at most its context.

    Returns:
        for each layer float (H, n): weights of the latest n tokens, the last token's own last; n is T or the window,
        whichever is smaller. Query head h reads key/value head h // (H / K). A row sums to 1, or with sinks to less.

    Raises:
        InputError: no token, or more than the context; or a mechanism of your own does not tell its weights.

    Examples:
        >>> weights = attention_weights(model, torch.from_numpy(tokenizer.encode("ROMEO:")))
        >>> weights[0].shape  # 4 heads, 6 tokens
        torch.Size([4, 6])
    """
    if ids.dim() != 1 or len(ids) == 0:
        raise InputError(f"the text has the shape {tuple(ids.shape)}; it has to be (T,), with one token at least")
    found: list[Tensor] = []

    def look(
        mechanism: ScaledDotProductAttention, weights: Weights, q: Tensor, k: Tensor, _: Positions, k_pos: Positions
    ) -> None:
        T = k.shape[2]
        n = min(T, mechanism.window or T)
        at = torch.arange(T, device=q.device)[None] if k_pos is None else k_pos  # (1, T)
        found.append(weights(q[:, :, -1:], k[:, :, -n:], at[:, -1:], at[:, -n:])[0, :, 0])

    with looking(model, look), model.evaluating():
        model(ids[None].to(model.device), last_only=True)
    return found
