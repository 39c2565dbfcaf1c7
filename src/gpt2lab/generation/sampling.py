"""From logits to a token: what may be chosen, and the choice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2lab.errors import InputError
from gpt2lab.options import check, option

if TYPE_CHECKING:
    import torch
    from torch import Tensor


NOT_NUMBERS = (
    "the model's logits are not numbers (nan or inf): its training diverged; go back to an earlier checkpoint, or "
    "train it anew"
)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: a penalty, the temperature, then the filters, each on what the ones before left.

    The methods import torch when they are called, so that a command can tell its options without it.
    """

    temperature: float = option(1.0, "divides the logits; 0 always takes the likeliest token.", least=0)
    top_k: int | None = option(None, "only the k likeliest (and those equal to the last of them).", least=1)
    top_p: float | None = option(
        None,
        "only the smallest set of likeliest tokens that holds at least this probability (Holtzman et al. 2020, "
        "arXiv:1904.09751, section 3.1).",
        above=0,
        most=1,
    )
    min_p: float | None = option(
        None,
        "only tokens at least this likely relative to the likeliest (Nguyen et al. 2024, arXiv:2407.01082).",
        least=0,
        most=1,
    )
    repetition_penalty: float = option(
        1.0,
        "logits of tokens that occurred already are divided by it if positive, else multiplied (Keskar et al. 2019, "
        "arXiv:1909.05858, section 4.1); 1 changes nothing.",
        above=0,
    )
    seed: int = option(
        0,
        "of the noise: row r of a batch has the seed + r, and one number per token, so that a text does not depend on "
        "what else is in the batch.",
        least=0,
        below=2**62,
    )

    def __post_init__(self) -> None:
        check(self)

    def generators(self, rows: int) -> list["torch.Generator"]:
        """The source of noise of each row of a batch."""
        import torch

        return [torch.Generator().manual_seed(self.seed + row) for row in range(rows)]

    def probabilities(self, logits: "Tensor", seen: "Tensor | None" = None) -> "Tensor":
        """Distribution of the next token.

        Args:
            logits: (B, V).
            seen: bool (B, V), the tokens that occurred in each row; needed for a repetition penalty.

        Returns:
            (B, V) float64; with temperature 0 the likeliest token has probability 1.

        Raises:
            InputError: the logits are not numbers.
        """
        import torch

        logits = self._scores(logits, seen)
        if self.greedy:
            return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = top_k_logits(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            probabilities, order = logits.softmax(1).sort(dim=1, descending=True)
            before = probabilities.cumsum(1) - probabilities  # what the likelier ones hold together
            dropped = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, order, before >= self.top_p)
            logits = logits.masked_fill(dropped, -math.inf)
        probabilities = logits.softmax(1)
        if self.min_p is not None:
            floor = self.min_p * probabilities.amax(1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
            probabilities = probabilities / probabilities.sum(1, keepdim=True)
        return probabilities

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken: at temperature 0, and at those that nothing can be divided by."""
        return self.temperature < 2.0**-126  # the smallest normal float32

    def _scores(self, logits: "Tensor", seen: "Tensor | None") -> "Tensor":
        """The logits in float64, penalised, and known to have a likeliest token."""
        import torch

        if not logits.amax(1).isfinite().all():
            raise InputError(NOT_NUMBERS)
        logits = (logits.cpu() if logits.device.type == "mps" else logits).double()  # MPS has no float64
        if self.repetition_penalty != 1 and seen is not None:
            penalised = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = torch.where(seen.to(logits.device), penalised, logits)
        return logits

    def choose(
        self, logits: "Tensor", generators: Sequence["torch.Generator"], seen: "Tensor | None" = None
    ) -> "Tensor":
        """Draw one token for each row: logits (B, V) to int64 (B,), by inverting the cumulative distribution."""
        import torch

        if self.greedy:
            return self._scores(logits, seen).argmax(1).to(logits.device)
        cumulative = self.probabilities(logits, seen).cumsum(1)
        noise = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])  # in [0, 1)
        threshold = noise.to(cumulative.device)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, threshold, right=True)[:, 0].to(logits.device)


def log_probabilities(logits: "Tensor") -> "Tensor":
    """The model's own, at temperature 1 and without filters: (B, V) to (B, V), in float32 at least."""
    import torch

    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def top_logprobs(logprobs: "Tensor", k: int) -> list[tuple[tuple[int, float], ...]]:
    """For each row of (B, V) the k likeliest tokens with their logarithmic probabilities, the likeliest first."""
    told = logprobs.topk(min(k, logprobs.shape[1]))
    rows = zip(told.indices.tolist(), told.values.tolist(), strict=True)
    return [tuple(zip(*row, strict=True)) for row in rows]


def top_k_logits(logits: "Tensor", k: int) -> "Tensor":
    """Everything below the k-th largest of each row becomes -inf (minGPT's function): (B, V) to (B, V)."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)
