"""How well a model predicts a text: exactly, over all of it, each token once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from gpt2lab.data import StatelessSampler, TokenDataset, Tokenizer
from gpt2lab.data.datasets import Tokens
from gpt2lab.errors import InputError
from gpt2lab.model import GPT2


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on a text.

    Attributes:
        context_size: longest context a prediction had, in tokens.
        tokens: how many were predicted: all but the first.
        loss: mean nats per token.
        perplexity: e to that.
        bits_per_character: total bits over the characters of the predicted tokens; comparable between tokenizers.
        bits_per_byte: likewise over bytes of UTF-8.
        accuracy: share of tokens that were the model's first guess.
        loss_by_position: (T,) mean nats of the tokens predicted with 1, 2, … T tokens of context.
    """

    context_size: int
    tokens: int
    loss: float
    perplexity: float
    bits_per_character: float
    bits_per_byte: float
    accuracy: float
    loss_by_position: list[float]


@torch.inference_mode()
def evaluate(
    model: GPT2,
    tokens: Tokens,
    tokenizer: Tokenizer,
    context_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure a model on a text, cut into consecutive windows, so that every token but the first is predicted once.

    Args:
        model: in any mode, on any device.
        tokens: ids of the text, (N,) integers.
        tokenizer: the model's, for characters and bytes.
        context_size: of the windows; None: the one that the model was trained with.
        progress: called with the number of tokens predicted so far.

    Raises:
        InputError: the text is not longer than the context, or the context is beyond the learned positions.
    """
    T = model.config.max_seq_len if context_size is None else context_size  # noqa: N806
    if model.config.position == "learned" and model.config.max_seq_len < T:
        raise InputError(
            f"a context of {T} needs more than the {model.config.max_seq_len} positions this model learned"
        )
    dataset = TokenDataset(tokens, T, model.config.vocab_size)
    device = model.device
    nats, counts = torch.zeros(T, dtype=torch.float64), torch.zeros(T, dtype=torch.int64)
    correct = characters = num_bytes = 0
    with model.evaluating():
        for x, y in dataset.tiles():
            logits = model(x.to(device))  # (B, T, V)
            losses = F.cross_entropy(logits.float().transpose(1, 2), y.to(device), reduction="none")  # (B, T)
            counted = y >= 0  # where it is not, the loss is 0
            nats += losses.cpu().double().sum(0)
            counts += counted.sum(0)
            correct += int((logits.argmax(-1).cpu() == y).sum())
            targets: npt.NDArray[np.int64] = y[counted].numpy()
            characters += int(tokenizer.character_lengths[targets].sum())
            num_bytes += int(tokenizer.byte_lengths[targets].sum())
            if progress is not None:
                progress(int(counts.sum()))
    total, predicted = nats.sum(), int(counts.sum())
    bits = total.item() / math.log(2)
    return Evaluation(
        context_size=T,
        tokens=predicted,
        loss=(total / predicted).item(),
        perplexity=(total / predicted).exp().item(),  # inf where math.exp would raise
        bits_per_character=bits / max(1, characters),
        bits_per_byte=bits / max(1, num_bytes),
        accuracy=correct / predicted,
        loss_by_position=(nats / counts).tolist(),
    )


@torch.inference_mode()
def estimate_loss(model: GPT2, tokens: Tokens, num_batches: int = 200, batch_size: int = 12, seed: int = 0) -> float:
    """nanoGPT's protocol, an estimate: mean loss of random batches of windows, in nats per token."""
    T = model.config.max_seq_len  # noqa: N806
    dataset = TokenDataset(tokens, T, model.config.vocab_size)
    sampler = StatelessSampler(len(dataset), batch_size, seed, num_steps=num_batches)
    device = model.device
    with model.evaluating():
        losses: list[float] = [model(x.to(device), y.to(device)).item() for x, y in map(dataset.__getitems__, sampler)]
    return sum(losses) / len(losses)
