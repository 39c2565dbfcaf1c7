"""Whether another engine computes what a model computes: asked after every export, before it is called done."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2lab.errors import InputError
from gpt2lab.model import GPT2

PROMPT = 4  # ids that a greedy continuation starts from
BEYOND = 16  # tokens that it is longer than the longest window
USUAL = 64  # tokens where there is no window
NEAR_TIE = 1e-4  # nats within which two tokens are equally probable, as far as rounding goes


@dataclass(frozen=True)
class Agreement:
    """How closely another engine computes the same.

    Attributes:
        engine: its name and version.
        difference: the largest one between its log-probabilities and ours, in nats.
        tokens: of its greedy text, each of which is our most probable one, too (or equally so, within the difference).
    """

    engine: str
    difference: float
    tokens: int


@torch.no_grad()
def compared(
    model: GPT2,
    engine: str,
    greedy: Callable[[list[int], int], list[int]],
    log_probabilities: Callable[[Tensor], Tensor],
    tolerance: float = 1e-3,
) -> Agreement:
    """Compare another engine with our model, on its own greedy text and on ids drawn at random.

    Args:
        model: ours.
        engine: name and version of the other.
        greedy: continues a prompt by so many tokens.
        log_probabilities: of the next token at every place of ids (1, T), (T, V): NaN where it does not tell them.
        tolerance: the largest difference that may be, in nats.

    Raises:
        InputError: it computes something else.
    """
    V, T = model.config.vocab_size, model.config.max_seq_len
    prompt = torch.randint(V, (min(PROMPT, T),), generator=torch.Generator().manual_seed(0)).tolist()
    windows = [layer.slots for layer in model.cached]
    tokens = max(window or 0 for window in windows) + BEYOND if model.endless else min(T - len(prompt), USUAL)
    written = greedy(prompt, tokens)[:tokens] if tokens else []  # a context of one token leaves no room
    if len(written) < tokens or not all(0 <= id_ < V for id_ in written):
        raise InputError(f"{engine} writes {len(written)} ids of this vocabulary where {tokens} were asked for")
    text = torch.tensor([prompt + written])
    drawn = torch.randint(V, text.shape, generator=torch.Generator().manual_seed(1))
    differences = []
    for ids in (text, drawn):
        ours, theirs = model(ids)[0].log_softmax(-1), log_probabilities(ids)  # (T, V)
        if not ours.isfinite().all():
            raise InputError("the model's own logits are not finite numbers; there is nothing to export")
        differences.append((ours - theirs)[~theirs.isnan()].abs().max())
    difference = torch.stack(differences).max().item()
    ours = model(text)[0].log_softmax(-1)[len(prompt) - 1 : -1]
    choices = ours.max(-1).values - ours[range(tokens), written]  # 0 where theirs is ours as well
    behind = choices.max().item() if tokens else 0.0
    if not (difference <= tolerance and behind <= 2 * max(difference, NEAR_TIE)):
        raise InputError(
            f"{engine} computes something else: its log-probabilities differ by {difference:.2g} nats, and its greedy "
            f"text falls behind ours by {behind:.2g}"
        )
    return Agreement(engine, difference, tokens)
