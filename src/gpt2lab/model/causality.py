"""Finding a mechanism that reads the future: the commonest mistake in home-made attention, and the most flattering."""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from gpt2lab.errors import InputError
from gpt2lab.model.gpt2 import GPT2

# Sizes of one probing batch: enough to keep the processor busy, few enough to fit into memory.
_TOKENS_AT_ONCE = 8192
_SCORES_AT_ONCE = 2**26

# A change of a logit, relative to the largest, that is no rounding error of float32.
_TOLERANCE = 2e-5


class CausalityError(InputError):
    """A model's logits depend on later tokens.

    Attributes:
        leaks: pairs (reader, read): the first position whose logits changed, and the later one that was changed.
    """

    def __init__(self, leaks: list[tuple[int, int]], probed: int) -> None:
        self.leaks = leaks
        shown = ", ".join(f"{reader} reads {read}" for reader, read in leaks[:5])
        more = f" (and {len(leaks) - 5} more)" if len(leaks) > 5 else ""
        super().__init__(
            f"this attention reads the future: position {shown}{more}, of {probed} positions probed; a position may "
            "only use keys whose k_pos is at most its q_pos"
        )


@torch.no_grad()
def assert_causal(model: GPT2, positions: Iterable[int] | None = None, seed: int = 0) -> None:
    """Change each token of a full context in turn, and check that no earlier logit changes.

    The check runs on a copy in float32 whose parameters are random and non-zero, since weights that are zero at the
    start (a gate, an output projection) would hide a leak until training opens it. Of a large vocabulary it takes a
    small part, since attention never sees ids.

    Args:
        model: any GPT2; it is left as it is.
        positions: those to change; None: every one.
        seed: of the random parameters and tokens.

    Raises:
        CausalityError: naming the positions that read, and what they read.
    """
    if model.config.vocab_size == 0:
        raise InputError("the model has no vocabulary yet, so nothing can be fed to it: make it with vocab_size=…")
    probe = copy.deepcopy(model).eval()
    device = probe.device
    vocab_size, length = min(model.config.vocab_size, 256), model.config.max_seq_len
    probe.embeddings.token.weight = nn.Parameter(torch.empty(vocab_size, model.config.embed_dim))
    if not model.config.tie_embeddings:
        probe.lm_head.weight = nn.Parameter(torch.empty(vocab_size, model.config.embed_dim))
    probe.to(device, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for parameter in probe.parameters():
        # Away from zero, and small enough that no softmax saturates and swallows the change.
        values = torch.empty(parameter.shape).normal_(0.0, 0.2, generator=generator)
        parameter.copy_(values + 0.05 * values.sign())
    ids = torch.randint(vocab_size, (1, length), generator=generator)
    changed = (ids + 1) % vocab_size
    probed = [p for p in (range(length) if positions is None else positions) if p > 0]
    at_once = max(1, min(_TOKENS_AT_ONCE // length, _SCORES_AT_ONCE // (model.config.num_heads * length**2)))
    leaks = []
    for chunk in torch.split(torch.tensor(probed, dtype=torch.int64), at_once):
        rows = ids.repeat(len(chunk) + 1, 1)  # the last row stays as it is
        rows[torch.arange(len(chunk)), chunk] = changed[0, chunk]
        logits = probe(rows.to(device))
        difference = (logits[:-1] - logits[-1:]).abs().amax(-1)  # (rows, T)
        same = difference <= _TOLERANCE * logits.nan_to_num().abs().max()  # false for NaN, too
        moved = ~same.cpu() & (torch.arange(length) < chunk[:, None])
        leaks += [(int(moved[row].nonzero()[0]), int(chunk[row])) for row in moved.any(1).nonzero()[:, 0]]
    if leaks:
        raise CausalityError(leaks, len(probed))


def positions_to_probe(length: int, most: int = 64) -> list[int]:
    """Positions of a context whose change is tried before training: all, or both ends and an even spread between."""
    if length <= most:
        return list(range(length))
    ends = most // 4
    spread = torch.linspace(ends, length - ends, most - 2 * ends).long().tolist()
    return sorted({*range(ends), *spread, *range(length - ends, length)})
