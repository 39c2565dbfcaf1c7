"""Weights on their way between a GPT2 and a class of Transformers: names, layout, and what is spelled out for it."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.interchange.families import QUERY_KEY_VALUE, Family
from gpt2lab.model import GPT2

Weights = dict[str, Tensor]


def empty_model(config: GPT2Config) -> GPT2:
    """A model without room for its weights."""
    with torch.device("meta"):
        return GPT2.from_config(config, seed=0)


def model_of(config: GPT2Config, weights: Mapping[str, Tensor]) -> GPT2:
    """The model that has these weights, which become its own memory."""
    model = empty_model(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _places(config: GPT2Config, family: Family | type[Family]) -> Iterator[tuple[str, torch.Size, str, int, list[str]]]:
    """For each of our weights: name, shape, module ("{}" for the layer), layer, and their names of its parts."""
    for name, parameter in empty_model(config).named_parameters():
        module, _, kind = name.rpartition(".")
        layer = 0
        if module.startswith("blocks."):
            _, number, rest = module.split(".", 2)
            module, layer = f"blocks.{{}}.{rest}", int(number)
        theirs = [f"{part.format(layer)}.{kind}" for part in family.names[module]]
        yield name, parameter.shape, module, layer, theirs


def _outputs(config: GPT2Config, shape: torch.Size, parts: int) -> list[int]:
    """How many outputs each part of one of our weights has: all of them, or those of queries, keys and values."""
    keys = config.kv_heads * config.head_dim
    return [shape[0]] if parts == 1 else [config.embed_dim, keys, keys]


def is_turned(family: Family | type[Family], name: str) -> bool:
    """Whether that weight of ours is a matrix that the class has the other way round."""
    return family.transposed and name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name


def ours_from(family: Family, config: GPT2Config, tensors: dict[str, Tensor]) -> Weights:
    """Our weights, made of theirs: new memory, in the precision that they have, or float32 if that is narrower.

    Args:
        family: the class that they are of.
        config: of our model.
        tensors: by their names; those that were used are taken out.

    Raises:
        InputError: one is missing, or has another shape.
    """
    found: Weights = {}
    for name, shape, module, layer, names in _places(config, family):
        if not family.has_biases and name.endswith(".bias") and not any(one in tensors for one in names):
            found[name] = torch.zeros(shape, dtype=found["embeddings.token.weight"].dtype)
            continue
        stacked = []
        for theirs, size in zip(names, _outputs(config, shape, len(names)), strict=True):
            if theirs not in tensors:
                raise InputError(f"has no {theirs}, which a {family.architecture} of its settings has")
            tensor = tensors.pop(theirs)
            tensor = tensor.T if is_turned(family, name) and tensor.dim() == 2 else tensor
            if tensor.shape != (wanted := (size, *shape[1:])):
                raise InputError(
                    f"has {theirs} of shape {tuple(tensor.shape)} where its settings ask for {tuple(wanted)}"
                    + (" (both as outputs, inputs)" if is_turned(family, name) else "")
                )
            stacked.append(tensor)
        whole = torch.cat(stacked)  # a copy
        whole = whole.to(torch.promote_types(whole.dtype, torch.float32))
        if module == QUERY_KEY_VALUE:
            if family.interleaved:  # (H, 3, D, …)
                whole = whole.view(config.num_heads, 3, config.head_dim, -1).transpose(0, 1).reshape(shape)
            if (factor := family.query_factor(layer)) != 1:
                whole[: config.embed_dim] *= factor
        found[name] = whole
    return found


def theirs_from(family: type[Family], config: GPT2Config, weights: Mapping[str, Tensor]) -> Weights:
    """Their weights, made of ours; the inverse of :func:`ours_from` for the families that we write."""
    found: Weights = {}
    for name, shape, _, _, names in _places(config, family):
        parts = torch.split(weights[name], _outputs(config, shape, len(names)))
        for theirs, part in zip(names, parts, strict=True):
            found[theirs] = (part.T if is_turned(family, name) else part).contiguous()
    return found


def spelled_out(config: GPT2Config, weights: Mapping[str, Tensor], wanted: GPT2Config) -> Weights:
    """The weights of a model that computes the same and spells out what the first one does without.

    Args:
        config: of the first model.
        weights: its weights.
        wanted: the same configuration but for: a key/value head for each query head (they are repeated); learned
            positions where there were none, and biases (they are zero); more ids (which are never written); a shorter
            context.
    """
    found: Weights = {}
    groups = config.num_heads // config.kv_heads
    repeats = wanted.kv_heads != config.kv_heads
    for name, parameter in empty_model(wanted).named_parameters():
        if name not in weights:
            found[name] = torch.zeros(parameter.shape, dtype=weights["final_norm.weight"].dtype)
        elif repeats and ".query_key_value." in name:
            q, *kv = torch.split(weights[name], _outputs(config, parameter.shape, 3))
            heads = [one.view(config.kv_heads, config.head_dim, *one.shape[1:]) for one in kv]  # (K, D, …)
            found[name] = torch.cat((q, *(one.repeat_interleave(groups, 0).flatten(0, 1) for one in heads)))
        elif parameter.shape[0] > (rows := len(weights[name])):
            more = never_written(weights).expand(parameter.shape[0] - rows, -1)
            found[name] = torch.cat((weights[name], more))
        else:
            found[name] = weights[name][: parameter.shape[0]]
    return found


def never_written(weights: Mapping[str, Tensor]) -> Tensor:
    """A row (1, C) of the output layer that makes a logit of about -100 out of every hidden state.

    A LayerNorm's normalised values n add up to 0, so that against its output n · scale + bias the row α / scale has
    the product α · Σ bias / scale, whatever n is. Where that has no answer (no bias, or one that cancels out), the row
    is zero, which is a logit of 0.
    """
    scale, bias = weights["final_norm.weight"].double(), weights.get("final_norm.bias")
    total = 0.0 if bias is None else (bias.double() / scale).sum().item()
    if not 1e-2 < abs(total) < 1e6:  # a scale of 0 makes it infinite
        return torch.zeros(1, len(scale), dtype=weights["final_norm.weight"].dtype)
    return (-100 / total / scale)[None].to(weights["final_norm.weight"].dtype)


def shortened(config: GPT2Config, weights: Mapping[str, Tensor], wanted: GPT2Config) -> Weights | None:
    """The inverse of :func:`spelled_out`; None if these weights say more than a model of that configuration can."""
    groups = config.num_heads // wanted.kv_heads
    short: Weights = {}
    for name, parameter in empty_model(wanted).named_parameters():
        if name not in weights:
            return None
        whole = weights[name]
        if groups > 1 and config.kv_heads != wanted.kv_heads and ".query_key_value." in name:
            q, *kv = torch.split(whole, _outputs(config, whole.shape, 3))
            firsts = [
                one.view(wanted.kv_heads, groups, config.head_dim, *one.shape[1:])[:, 0].flatten(0, 1) for one in kv
            ]
            whole = torch.cat((q, *firsts))
        short[name] = whole[: parameter.shape[0]].clone()
    again = spelled_out(wanted, short, config)
    return short if all(torch.equal(again[name], whole) for name, whole in weights.items()) else None
