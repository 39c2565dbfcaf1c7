"""Writing on from a prompt, with a cache."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2lab.errors import InputError
from gpt2lab.generation.sampling import Sampling, top_k_logits
from gpt2lab.model import GPT2, KeyValueCache

# A prompt is read in chunks, so that memory does not grow with its length.
_PREFILL_CHUNK = 512


def generate(model: GPT2, ids: Tensor, num_tokens: int, **sampling: Any) -> Tensor:
    """Continue a batch of prompts.

    Args:
        model: on any device; it is switched to evaluation while it writes.
        ids: prompts, int64 (B, T), T at least 1.
        num_tokens: how many tokens to add, n.
        **sampling: fields of :class:`Sampling`, such as ``temperature=0.8, top_k=20, seed=1``.

    Returns:
        int64 (B, T + n): prompt and continuation.

    Raises:
        InputError: an empty prompt, or sampling settings out of range.

    Example:
        >>> prompt = torch.from_numpy(tokenizer.encode("ROMEO:"))[None]
        >>> print(tokenizer.decode(generate(model, prompt, 200, temperature=0.8)[0].tolist()))
    """
    if ids.dim() != 2:
        raise InputError(f"ids has the shape {tuple(ids.shape)}; it has to be (B, T), so ids[None] for one prompt")
    new = list(stream(model, list(ids), num_tokens, Sampling(**sampling)))
    return torch.cat((ids, torch.stack(new, dim=1).to(ids.device)), dim=1) if new else ids


@torch.inference_mode()
def stream(
    model: GPT2, prompts: Sequence[Tensor], num_tokens: int, sampling: Sampling | None = None
) -> Iterator[Tensor]:
    """Like :func:`generate`, token by token, for prompts of any lengths.

    A model with a window in every layer and no learned positions goes on for ever in constant memory. Any other one,
    when a row's context is full, drops the oldest half of that row, reads the rest again, and warns once.

    Args:
        model: on any device.
        prompts: B tensors, int64 (T_b,).
        num_tokens: how many tokens to add.
        sampling: how they are drawn; None: from the model's own distribution.

    Yields:
        int64 (B,): the next token of every row.
    """
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise InputError("a prompt is empty; give at least one token, such as a line break")
    vocab_size = model.config.vocab_size
    if vocab_size == 0:
        raise InputError("the model has no vocabulary yet: train it first, or make it with vocab_size=…")
    if strange := [int(i) for prompt in prompts for i in prompt[(prompt < 0) | (prompt >= vocab_size)]]:
        raise InputError(f"the prompt has the id {strange[0]}, but the model knows 0 to {vocab_size - 1}")
    sampling = sampling or Sampling()
    context = model.config.max_seq_len
    device = model.device
    was_training, dropped = model.training, False
    rows = [prompt.to(device) for prompt in prompts]  # what each row's logits depend on
    if not model.endless:
        rows = [row[-context:] for row in rows]
    generators = sampling.generators(len(rows))
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    for row, prompt in zip(seen, prompts, strict=True):
        row[prompt.to(device)] = True
    try:
        model.eval()
        logits, cache = _prefill(model, rows)
        for remaining in range(num_tokens, 0, -1):
            token = sampling.choose(logits.to(device), generators, seen)  # (B,)
            yield token
            if remaining == 1:
                break
            seen[torch.arange(len(rows), device=device), token] = True
            if model.endless:
                logits = model(token[:, None], cache=cache)[:, -1]
                continue
            rows = [torch.cat((row, new)) for row, new in zip(rows, token[:, None], strict=True)]
            if cache.length < context:
                logits = model(token[:, None], cache=cache)[:, -1]
            else:
                if not dropped:
                    warnings.warn(
                        f"the context of {context} tokens is full: the oldest half is dropped each time this happens "
                        "(a model with RoPE and a window in every layer would go on without)",
                        stacklevel=3,  # past torch's own frame
                    )
                dropped = True
                rows = [row[-((context + 1) // 2) :] if len(row) > context else row for row in rows]
                logits, cache = _prefill(model, rows)
    finally:
        model.train(was_training)


def _prefill(model: GPT2, rows: list[Tensor]) -> tuple[Tensor, KeyValueCache]:
    """Read texts of any lengths; returns the logits after the last token, (B, V), and the cache."""
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])  # (B, T)
    positions = None
    if any(len(row) < longest for row in rows):
        lengths = torch.tensor([[len(row)] for row in rows], device=ids.device)
        positions = (torch.arange(longest, device=ids.device) - longest + lengths).clamp(min=-1)
    cache = KeyValueCache(model)
    for start in range(0, longest, _PREFILL_CHUNK):
        part = slice(start, start + _PREFILL_CHUNK)
        logits = model(ids[:, part], positions=positions if positions is None else positions[:, part], cache=cache)
    return logits[:, -1], cache


@torch.no_grad()
def sample(
    model: GPT2, x: Tensor, steps: int, temperature: float = 1.0, sample: bool = False, top_k: int | None = None
) -> Tensor:
    """minGPT's function: at every step the last ``block_size`` tokens are read anew, without a cache.

    Args:
        model: a trained GPT2.
        x: prompt, int64 (B, T); longer than the context is fine.
        steps: tokens to add.
        temperature: divides the logits.
        sample: draw from the distribution (with torch's global generator); False: take the likeliest.
        top_k: only the k likeliest.

    Returns:
        int64 (B, T + steps). The model stays in evaluation mode, as it did there.
    """
    model.eval()
    for _ in range(steps):
        logits = model(x[:, -model.config.max_seq_len :])[:, -1] / temperature
        if top_k is not None:
            logits = top_k_logits(logits, top_k)
        chosen = torch.multinomial(logits.softmax(-1), 1) if sample else logits.argmax(-1, keepdim=True)
        x = torch.cat((x, chosen), dim=1)
    return x
