"""Finding what is wrong with a mechanism before it is trained: that it reads the future, the commonest mistake in
home-made attention and the most flattering; or that it writes with other numbers than it learned with."""

import copy
import itertools
from collections.abc import Iterable

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from gpt2lab.errors import InputError
from gpt2lab.model.cache import KeyValueCache
from gpt2lab.model.gpt2 import GPT2

# Sizes of one probing batch: enough to keep the processor busy, few enough to fit into memory.
_TOKENS_AT_ONCE = 8192
_SCORES_AT_ONCE = 2**26

# A change of a logit, relative to the largest, that is no rounding error.
_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}

# Tokens that are read one by one, and beyond the widest window in chunks, to be compared with reading all at once.
_ONE_BY_ONE, _BEYOND = 24, 24


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


class CacheError(InputError):
    """A model that reads a text piece by piece, as in writing, finds other logits than one that reads all at once.

    Attributes:
        position: the first whose logits differ.
    """

    def __init__(self, position: int, how: str, difference: float) -> None:
        self.position = position
        super().__init__(
            f"this attention writes with other numbers than it learns with: read {how}, position {position} has logits "
            f"that differ by {difference:.2g}. Usually it counts its queries and keys itself (torch.arange, masks of a "
            "fixed shape); q_pos and k_pos tell where they stand, since the cache holds keys in any order"
        )


@torch.no_grad()
def assert_causal(model: GPT2, positions: Iterable[int] | None = None, seed: int = 0) -> None:
    """Change each token of a full context in turn, and check that no earlier logit changes.

    The check runs on a copy whose parameters are random and non-zero, since weights that are zero at the start (a gate,
    an output projection) would hide a leak until training opens it; in float64 where the mechanism can compute in that,
    so that a faint leak is no rounding error. Of a large vocabulary it takes a small part, since attention never sees
    ids.

    Args:
        model: any GPT2; it is left as it is.
        positions: those to change; None: every one.
        seed: of the random parameters and tokens.

    Raises:
        CausalityError: naming the positions that read, and what they read.
    """
    if model.config.vocab_size == 0:
        raise InputError("the model has no vocabulary yet, so nothing can be fed to it: make it with vocab_size=…")
    generator = torch.Generator().manual_seed(seed)
    probe = _probe(model, generator)
    device, vocab_size, length = probe.device, probe.output_weight.shape[0], model.config.max_seq_len
    ids = torch.randint(vocab_size, (1, length), generator=generator)
    changed = (ids + 1) % vocab_size
    probed = [p for p in (range(length) if positions is None else positions) if p > 0]
    at_once = max(1, min(_TOKENS_AT_ONCE // length, _SCORES_AT_ONCE // (model.config.num_heads * length**2)))
    leaks = []
    unchanged = probe(ids.to(device))  # (1, T, V)
    for chunk in torch.split(torch.tensor(probed, dtype=torch.int64), at_once):
        rows = ids.repeat(len(chunk), 1)
        rows[torch.arange(len(chunk)), chunk] = changed[0, chunk]
        difference = (probe(rows.to(device)) - unchanged).abs().amax(-1)  # (rows, T)
        same = difference <= _TOLERANCE[probe.dtype] * unchanged.nan_to_num().abs().max()  # false for NaN, too
        moved = ~same.cpu() & (torch.arange(length) < chunk[:, None])
        leaks += [(int(moved[row].nonzero()[0]), int(chunk[row])) for row in moved.any(1).nonzero()[:, 0]]
    if leaks:
        raise CausalityError(leaks, len(probed))


@torch.no_grad()
def assert_cached(model: GPT2, seed: int = 0) -> None:
    """Read a text at once, token by token, and in chunks that go beyond the widest window: the logits have to agree.

    The check runs on a copy like that of :func:`assert_causal`. Where the mechanism keeps what it needs from a cache, a
    model writes as it has learned; where it does not, that shows in no loss.

    Args:
        model: any GPT2; it is left as it is.
        seed: of the random parameters and tokens.

    Raises:
        CacheError: naming the first position that differs, and how the text was read.
    """
    generator = torch.Generator().manual_seed(seed)
    probe, context = _probe(model, generator), model.config.max_seq_len
    widest = max(model.config.layer_window(layer) or 0 for layer in range(model.config.num_layers))
    length = min(context, widest + _BEYOND)
    ids = torch.randint(probe.output_weight.shape[0], (1, length), generator=generator).to(probe.device)
    whole = probe(ids)
    chunks = [min(7, length), *itertools.repeat(max(1, widest // 2 + 1), length)]
    for how, sizes in (("token by token", [1] * min(_ONE_BY_ONE, length)), ("in chunks", chunks)):
        cache, at = KeyValueCache(probe, 1), 0
        for size in sizes:
            if at == length:
                break
            logits = probe(ids[:, at : at + size], cache=cache)
            difference = (logits - whole[:, at : at + size]).abs().amax(-1)[0]
            same = difference <= 10 * _TOLERANCE[probe.dtype] * whole.nan_to_num().abs().max()
            if not same.all():
                first = int((~same).nonzero()[0])
                raise CacheError(at + first, how, float(difference[first]))
            at = min(length, at + size)


def try_to_learn(model: GPT2, seed: int = 0) -> list[str]:
    """Learn from a text and save, so that what a mechanism cannot do is told before it has cost hours.

    It is done on a copy like that of :func:`assert_causal`.

    Args:
        model: any GPT2; it is left as it is.
        seed: of the random parameters and tokens.

    Returns:
        names of the parameters that get no gradient.

    Raises:
        InputError: something in the model cannot be saved, or not be read again.
    """
    generator = torch.Generator().manual_seed(seed)
    probe = _probe(model, generator).train()
    before = {name: tensor.shape for name, tensor in probe.state_dict().items()}
    ids = torch.randint(len(probe.output_weight), (1, model.config.max_seq_len), generator=generator).to(probe.device)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        probe(ids, ids).backward()
    after = probe.weights()
    for name, tensor in after.items():
        if before.get(name) != tensor.shape:
            raise InputError(
                f"{name} gets its shape only while the model computes, so that no checkpoint could be read again; make "
                "it in the mechanism's constructor, or register it with persistent=False"
            )
    try:
        own = {name: tensor.contiguous() for name, tensor in model.weights().items() if ".mechanism." in name}
        safetensors.torch.save(own)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"the mechanism's parameters and buffers cannot be saved: {' '.join(str(error).split())}"
        ) from None
    return [name for name, parameter in probe.named_parameters() if parameter.grad is None]


@torch.no_grad()
def _probe(model: GPT2, generator: torch.Generator) -> GPT2:
    """A copy with a small vocabulary and random parameters, in float64 if its mechanism can compute in that."""
    probe = copy.deepcopy(model).eval()
    device, vocab_size = probe.device, min(model.config.vocab_size, 256)
    probe.embeddings.token.weight = nn.Parameter(torch.empty(vocab_size, model.config.embed_dim))
    if not model.config.tie_embeddings:
        probe.lm_head.weight = nn.Parameter(torch.empty(vocab_size, model.config.embed_dim))
    probe.to(device, torch.float32)
    for parameter in probe.parameters():
        # Away from zero, and small enough that no softmax saturates and swallows the change.
        values = torch.empty(parameter.shape).normal_(0.0, 0.2, generator=generator)
        parameter.copy_(values + 0.05 * values.sign())
    if device.type == "mps":  # which has no float64
        return probe
    try:
        probe.double()(torch.zeros(1, min(2, model.config.max_seq_len), dtype=torch.int64, device=device))
    except RuntimeError:  # something in it insists on float32
        probe.float()
    return probe


def positions_to_probe(length: int) -> list[int]:
    """Positions of a context whose change is tried before training: all, or both ends and an even spread between.

    They are 64 up to a context of 512. Attention costs the square of that, so of a longer one they are fewer, down to
    8: the check is to take seconds, and of the longest contexts no longer than a few steps.
    """
    most = max(8, min(64, 64 * 512**2 // length**2))
    if length <= most:
        return list(range(length))
    ends = most // 4
    spread = torch.linspace(ends, length - ends, most - 2 * ends).long().tolist()
    return sorted({*range(ends), *spread, *range(length - ends, length)})
