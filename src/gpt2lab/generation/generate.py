"""Writing on from prompts."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2lab.errors import InputError
from gpt2lab.generation.engine import Engine
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model import GPT2
from gpt2lab.runs.settings import Step, Weights


def generate(
    model: GPT2, ids: Tensor, num_tokens: int, *, step: Step = "auto", weights: Weights | None = None, **sampling: Any
) -> Tensor:
    """Continue a batch of prompts.

    Args:
        model: on any device; it is switched to evaluation while it writes.
        ids: prompts, int64 (B, T), T at least 1.
        num_tokens: how many tokens to add, n.
        step: what computes a token; see :class:`Engine`.
        weights: precision in which it stores the matrices; see there.
        **sampling: fields of :class:`Sampling`, such as ``temperature=0.8, top_k=20, seed=1``.

    Returns:
        int64 (B, T + n): prompt and continuation.

    Raises:
        InputError: an empty prompt, ids that the model does not know, sampling settings out of range, or a model whose
            logits are not numbers.

    Examples:
        >>> prompt = torch.from_numpy(tokenizer.encode("ROMEO:"))[None]
        >>> print(tokenizer.decode(generate(model, prompt, 200, temperature=0.8)[0].tolist()))
    """
    if ids.dim() != 2:
        raise InputError(f"ids has the shape {tuple(ids.shape)}; it has to be (B, T), so ids[None] for one prompt")
    new = list(stream(model, list(ids), num_tokens, Sampling(**sampling), step=step, weights=weights))
    return torch.cat((ids, torch.stack(new, dim=1).to(ids.device)), dim=1) if new else ids


def stream(
    model: GPT2,
    prompts: Sequence[Tensor],
    num_tokens: int,
    sampling: Sampling | None = None,
    *,
    step: Step = "auto",
    weights: Weights | None = None,
) -> Iterator[Tensor]:
    """Like :func:`generate`, token by token, for prompts of any lengths.

    A model with a window in every layer and no learned positions goes on for ever in constant memory. Any other one,
    when a row's context is full, drops the oldest half of that row, reads the rest again, and warns once.

    Args:
        model: on any device.
        prompts: B tensors, int64 (T_b,).
        num_tokens: how many tokens to add.
        sampling: how they are drawn; None: from the model's own distribution. Row r has the seed ``sampling.seed + r``.
        step: what computes a token; see :class:`Engine`.
        weights: precision in which it stores the matrices; see there.

    Yields:
        int64 (B,): the next token of every row.

    Raises:
        InputError: an empty prompt, or ids that the model does not know.
    """
    engine = begin(model, prompts, max(1, num_tokens), sampling or Sampling(), step=step, weights=weights)
    with model.evaluating():
        while engine.rows and num_tokens > 0:
            ids = torch.tensor([token.id for token in engine.step(most=num_tokens)], device=model.device)
            yield from torch.split(ids, len(prompts))  # some tokens of every row


def begin(
    model: GPT2,
    prompts: Sequence[Tensor],
    max_tokens: int,
    sampling: Sampling,
    *,
    stop: Sequence[Sequence[int]] = (),
    step: Step = "auto",
    weights: Weights | None = None,
) -> Engine:
    """An engine that is about to write a text for each prompt; row r has the seed ``sampling.seed + r``.

    Raises:
        InputError: no prompt, or one that is refused (:meth:`Engine.add`).
    """
    if not prompts:
        raise InputError("there is no prompt; give at least one")
    engine = Engine(model, max_rows=len(prompts), step=step, weights=weights)
    for row, prompt in enumerate(prompts):
        own = dataclasses.replace(sampling, seed=sampling.seed + row)
        engine.add(prompt, own, max_tokens=max_tokens, stop=stop)
    return engine


@torch.no_grad()
def sample(
    model: GPT2, x: Tensor, steps: int, temperature: float = 1.0, sample: bool = False, top_k: int | None = None
) -> Tensor:
    """minGPT's function: at every step the last ``block_size`` tokens are read anew, without a cache.

    Args:
        model: a trained GPT2.
        x: prompt, int64 (B, T); longer than the context is fine.
        steps: tokens to add.
        temperature: divides the logits; 0 always takes the likeliest token.
        sample: draw from the distribution (with torch's global generator); False: take the likeliest.
        top_k: only the k likeliest.

    Returns:
        int64 (B, T + steps). The model stays in evaluation mode, as it did there.

    Raises:
        InputError: settings out of range, or logits that are not numbers.
    """
    how = Sampling(temperature=temperature, top_k=top_k)
    model.eval()
    for _ in range(steps):
        logits = model(x[:, -model.config.max_seq_len :], last_only=True)[:, -1]
        probabilities = how.probabilities(logits)
        if sample:  # in the precision of the logits, which decides on the random numbers
            chosen = torch.multinomial(probabilities.to(logits), 1)
        else:
            chosen = probabilities.argmax(-1, keepdim=True).to(x.device)
        x = torch.cat((x, chosen), dim=1)
    return x
