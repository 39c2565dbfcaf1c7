"""Every arm against the baseline: which runs are pairs, and what their differences are."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from gpt2lab.comparison.results import MEASURES, CellResult, Contrast, Timing
from gpt2lab.comparison.settings import Claim, MeasureName
from gpt2lab.comparison.statistics import estimate, shared_confidence
from gpt2lab.errors import InputError

Pairs = list[tuple[float | None, float]]  # an arm's and the baseline's; None: it never got there


def contrasts(
    cells: Sequence[CellResult],
    speed: Mapping[int, Timing],
    claims: Sequence[Claim],
    contexts: Sequence[int],
    baseline: str,
) -> list[Contrast]:
    """Every arm against the baseline in every measure; the claims' contrasts first, in their order."""
    pairs: dict[tuple[int, str, MeasureName], Pairs] = {}
    for context, arm in dict.fromkeys((cell.context, cell.arm) for cell in cells if cell.arm != baseline):
        for measure in MEASURES:
            if measure.startswith("seconds"):
                found = _rounds(speed.get(context), arm, baseline, measure)
            else:
                found = _seeds(cells, context, arm, baseline, measure)
            if found:
                pairs[context, arm, measure] = found
    primary = {(claim.context or contexts[0], claim.arm, claim.measure): i for i, claim in enumerate(claims)}
    exploratory = Counter(measure for context, arm, measure in pairs if (context, arm, measure) not in primary)
    result = []
    for key, found in pairs.items():
        confidence = shared_confidence(1 if key in primary else exploratory[key[2]])
        result.append(_contrast(*key, found, confidence, primary.get(key)))
    return sorted(result, key=lambda c: (c.claim is None, c.claim or 0))


def _rounds(timing: Timing | None, arm: str, baseline: str, measure: MeasureName) -> Pairs:
    """Times of both in the same rounds."""
    if timing is None or arm not in timing.arms or baseline not in timing.arms:
        return []
    mine: list[float] = getattr(timing.arms[arm], measure)
    base: list[float] = getattr(timing.arms[baseline], measure)
    return list(zip(mine, base, strict=False))


def _seeds(cells: Sequence[CellResult], context: int, arm: str, baseline: str, measure: MeasureName) -> Pairs:
    """Values of both with the same seeds."""
    of = {(cell.arm, cell.seed): getattr(cell, measure) for cell in cells if cell.context == context}
    seeds = [cell.seed for cell in cells if (cell.context, cell.arm) == (context, arm)]
    return [(of[arm, seed], of[baseline, seed]) for seed in seeds if of.get((baseline, seed)) is not None]


def _contrast(
    context: int, arm: str, measure: MeasureName, pairs: Pairs, confidence: float, claim: int | None
) -> Contrast:
    relative = MEASURES[measure].relative
    missed = sum(mine is None for mine, _ in pairs)
    later = sum(mine is None or mine > base for mine, base in pairs)
    mean = low = high = effect = None
    if not missed:
        values = [(a, b) for a, b in pairs if a is not None]
        if relative and min(map(min, values)) <= 0:
            raise InputError(
                f"what was measured is damaged: {measure} of {arm} at a context of {context} is not above 0"
            )
        found = estimate([math.log(a / b) if relative else a - b for a, b in values], confidence)
        mean, low, high, effect = found.mean, found.low, found.high, found.effect_size
        if relative:
            mean, low, high = (value if value is None else math.exp(value) for value in (mean, low, high))
    return Contrast(context, arm, measure, len(pairs), mean, low, high, confidence, effect, missed, later, claim)


def tokens_to(target: float, curve: Sequence[tuple[int, float]]) -> float | None:
    """Tokens at which a curve of (tokens, loss) first comes down to a loss, on straight lines between its points."""
    before: tuple[int, float] | None = None
    for tokens, loss in curve:
        if loss <= target:
            if before is None:
                return tokens
            return before[0] + (tokens - before[0]) * (before[1] - target) / (before[1] - loss)
        before = (tokens, loss)
    return None
