"""What a model makes of a text that is there already."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2lab.generation.sampling import log_probabilities, top_logprobs
from gpt2lab.model import GPT2, KeyValueCache

_CHUNK = 1024  # tokens that are read at once, so that memory does not grow with the text


class Scored(NamedTuple):
    """A token of a text.

    Attributes:
        id: the token.
        logprob: its logarithmic probability behind those before it; of the first one None.
        top: the tokens that were likeliest in its place, with theirs, the likeliest first.
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@torch.no_grad()
def scored(model: GPT2, ids: Tensor, top: int = 0) -> list[Scored]:
    """How likely each token of a text is, as if the model had just written it.

    A model that is not endless sees of a long text what it sees while it writes: when its context is full, the newest
    half.

    Args:
        model: on any device.
        ids: integers (T,).
        top: how many of the likeliest tokens are told for each place.
    """
    found = [Scored(int(ids[0]), None)] if len(ids) else []
    with model.evaluating():
        for logits in _logits(model, ids):  # (n, V), behind the n tokens before those that come
            told = log_probabilities(logits)
            coming = ids[len(found) : len(found) + len(logits)].to(logits.device)
            own = told.gather(1, coming[:, None])[:, 0].tolist()
            found += map(Scored, coming.tolist(), own, top_logprobs(told, top))
    return found


def _logits(model: GPT2, ids: Tensor) -> Iterator[Tensor]:
    """Logits behind every token but the last, in order, some at a time."""
    read = ids[:-1][None].to(model.device)  # (1, T - 1)
    if read.shape[1] == 0:
        return
    if model.endless:
        cache = KeyValueCache(model, 1)
        for chunk in torch.split(read, _CHUNK, dim=1):
            yield model(chunk, cache=cache)[0]
        return
    context, start, told = model.config.max_seq_len, 0, 0
    while told < read.shape[1]:
        logits = model(read[:, start : start + context])[0]
        yield logits[told - start :]
        told = start + len(logits)
        start = told + 1 - (context + 1) // 2  # of the text with the token that is written then
