"""A trained model's weights in a model with other switches.

Shared key/value heads come from those of a group, as Ainslie et al. 2023 (arXiv:2305.13245, section 2.1) make them:
their mean, or the first of them. "aligned" turns the heads of a group towards each other before the mean is taken: a
head may turn its queries and keys together, and its values against the output, by any orthogonal matrix without
computing anything else, so each is turned to where it lies nearest to the group's first (orthogonal Procrustes:
Schönemann 1966; for heads: Jin et al. 2024, arXiv:2412.20677). Keys that rotary positions turn stay as they are.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gpt2lab.config import GPT2Config, Position, Window
from gpt2lab.errors import InputError
from gpt2lab.interchange.weights import empty_model, model_of
from gpt2lab.model import GPT2
from gpt2lab.retrofit.settings import Heads

KEEP: Any = object()  # None is a window: none


def converted(
    model: GPT2,
    *,
    num_kv_heads: int | None = None,
    position: Position | None = None,
    window: Window = KEEP,
    heads: Heads = "mean",
) -> GPT2:
    """The model with other switches, and with what fits of its weights. It has to be trained further.

    Args:
        model: a built-in one.
        num_kv_heads: fewer key/value heads, which divide those that it has; None: as they are.
        position: "rope" or "none" in place of learned positions, which are forgotten; None: as they are.
        window: another one; not given: as it is.
        heads: how the shared heads are made.

    Raises:
        InputError: it cannot be converted so.
    """
    old = model.config
    if old.attention is not None:
        raise InputError(f"the attention {old.attention.split('@')[0]} is your own, and has no switches")
    new = replace(
        old,
        num_kv_heads=old.num_kv_heads if num_kv_heads is None else num_kv_heads,
        position=old.position if position is None else position,
        window=old.window if window is KEEP else window,
    )
    if old.kv_heads % new.kv_heads:
        raise InputError(
            f"the model has {old.kv_heads} key/value heads, which {new.kv_heads} do not divide; each new one is made "
            "of an equal group of them"
        )
    if new.position == "learned" != old.position:
        raise InputError("learned positions cannot be made of others; choose rope or none")
    if new == old:
        raise InputError("nothing is to be changed; give --num-kv-heads, --position or --window")
    weights = {name: tensor.clone() for name, tensor in model.weights().items()}
    if new.kv_heads < old.kv_heads:
        for layer in range(old.num_layers):
            _share_heads(weights, old, new.kv_heads, f"blocks.{layer}.attention", heads)
    return model_of(new, {name: weights[name] for name, _ in empty_model(new).named_parameters()})


def _share_heads(weights: dict[str, Tensor], old: GPT2Config, kv_heads: int, attention: str, how: Heads) -> None:
    """Replace the keys and values of each group of heads of a layer by one head."""
    names = [f"{attention}.query_key_value.{part}" for part in ("weight", "bias")]
    sizes = [old.num_heads, old.kv_heads, old.kv_heads]
    width, groups = old.head_dim, old.kv_heads // kv_heads
    parts = [torch.split(_heads(weights[name], width), sizes) for name in names if name in weights]
    q, k, v = (torch.cat([part[i] for part in parts], dim=2) for i in range(3))  # the bias is one more input
    output = weights[f"{attention}.output.weight"]
    out = output.view(-1, old.num_heads, width).permute(1, 2, 0).clone()  # (H, D, C)
    if how == "aligned":
        queries = old.num_heads // old.kv_heads
        for head in range(old.kv_heads):
            first = head - head % groups
            own = slice(head * queries, (head + 1) * queries)
            if not old.rotates:
                turn = nearest_turn(k[head], k[first])
                k[head], q[own] = turn @ k[head], turn @ q[own]
            turn = nearest_turn(v[head], v[first])
            v[head], out[own] = turn @ v[head], turn @ out[own]
    shared = [(x[::groups] if how == "first" else x.view(kv_heads, groups, *x.shape[1:]).mean(1)) for x in (k, v)]
    whole = torch.cat((q, *shared)).flatten(0, 1)  # ((H + 2 K) · D, C and 1)
    weights[names[0]] = whole[:, : old.embed_dim].contiguous()
    if names[1] in weights:
        weights[names[1]] = whole[:, old.embed_dim].contiguous()
    weights[f"{attention}.output.weight"] = out.permute(2, 0, 1).reshape(output.shape).contiguous()


def _heads(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of a weight or a bias, by head: (heads, D, C or 1)."""
    return tensor.reshape(-1, head_dim, tensor.shape[1] if tensor.dim() == 2 else 1)


def nearest_turn(x: Tensor, to: Tensor) -> Tensor:
    """The orthogonal matrix R for which R x is nearest to another matrix: both (D, C), R (D, D)."""
    left, _, right = torch.linalg.svd((to @ x.T).double())
    turn: Tensor = left @ right
    return turn.to(x.dtype)
