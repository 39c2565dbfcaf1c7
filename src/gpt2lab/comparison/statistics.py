"""The statistics of paired runs: intervals, effect sizes, words, and how many more pairs would settle a question.

A pair is two numbers that share everything but the arm: the seed and the data, or the round of a timing. All functions
are pure. Less is better; whoever has it the other way round turns the sign.
"""

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Word = Literal["better", "worse", "no difference shown"]

ALPHA = 0.05  # how often, at most, equals may be called "better" or "worse"
POWER = 0.8  # how often a true difference shall be shown, where numbers of pairs are planned
MOST_PAIRS = 1_000_000  # more than anyone will train; beyond it no number is told


@dataclass(frozen=True)
class Estimate:
    """A mean of paired differences, and how sure it is.

    Attributes:
        pairs: number of differences, n.
        mean: of the differences.
        low, high: the t interval of the mean; None for one pair, which says nothing of chance.
        effect_size: mean over standard deviation, corrected for few pairs (Hedges' g for pairs); None for fewer than
            three pairs, or if all differences are equal.
    """

    pairs: int
    mean: float
    low: float | None
    high: float | None
    effect_size: float | None


def estimate(differences: Sequence[float], confidence: float) -> Estimate:
    """The mean of paired differences with its interval at that confidence, by Student's paired t."""
    n, mean = len(differences), statistics.mean(differences)
    if n < 2:
        return Estimate(n, mean, None, None, None)
    deviation = statistics.stdev(differences)
    if deviation == 0:
        return Estimate(n, mean, mean, mean, None)
    reach = t_quantile(confidence, n - 1) * deviation / math.sqrt(n)
    correction = 1 - 3 / (4 * (n - 1) - 1)  # Hedges 1981, with n - 1 degrees of freedom; 0 for two pairs
    return Estimate(n, mean, mean - reach, mean + reach, correction * mean / deviation if n > 2 else None)


def t_quantile(confidence: float, degrees: int) -> float:
    """Half the width of a two-sided interval of Student's t, in standard errors."""
    from scipy import special

    return float(special.stdtrit(degrees, (1 + confidence) / 2))


def shared_confidence(contrasts: int) -> float:
    """The confidence of each of some intervals, so that all of them together err in at most 5 % of cases (Bonferroni).

    >>> shared_confidence(1)
    0.95
    """
    return 1 - ALPHA / contrasts


def word_of(low: float, high: float, neutral: float = 0.0) -> Word:
    """The word that an interval allows, for something of which less is better."""
    if high < neutral:
        return "better"
    return "worse" if low > neutral else "no difference shown"


def sign_test(later: int, pairs: int, confidence: float) -> Word:
    """The word that the signs alone allow: ``later`` of the pairs had more, the others less (two-sided, exact)."""
    tail = sum(math.comb(pairs, k) for k in range(max(later, pairs - later), pairs + 1)) / 2**pairs
    if min(1.0, 2 * tail) > 1 - confidence:
        return "no difference shown"
    return "worse" if later > pairs / 2 else "better"


def welch(now: Sequence[float], before: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of the difference of two means whose numbers are not paired (Welch 1947); None for fewer than two each.

    Returns:
        low and high of mean(now) - mean(before).
    """
    if len(now) < 2 or len(before) < 2:
        return None
    from scipy import stats

    interval = stats.ttest_ind(now, before, equal_var=False).confidence_interval(confidence)
    return float(interval.low), float(interval.high)


@functools.cache
def _legendre() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Nodes and weights of Gauss's quadrature on -1 .. 1."""
    return np.polynomial.legendre.leggauss(32)


def power(effect_size: float, pairs: int, confidence: float) -> float:
    """How likely a paired t interval lies wholly on the true side of zero.

    Args:
        effect_size: true mean of the differences over their true standard deviation.
        pairs: n, 2 or more.
        confidence: of the interval.

    For n normal differences with a standard deviation of 1 the interval is above zero if mean · √n > t · s. The mean is
    normal; s², independent of it, is chi-squared over its degrees of freedom, and integrated over by its quantiles.
    (scipy's noncentral t distribution, which is the same, returns NaN for large effects.)
    """
    from scipy import special

    degrees = pairs - 1
    nodes, weights = _legendre()
    spread = np.sqrt(2 * special.gammaincinv(degrees / 2, (nodes + 1) / 2) / degrees)
    reached = special.ndtr(abs(effect_size) * math.sqrt(pairs) - t_quantile(confidence, degrees) * spread)
    return float(weights @ reached) / 2


def pairs_for(effect_size: float, confidence: float, wanted: float = POWER) -> int | None:
    """The fewest pairs that show such an effect with the power that is wanted; None if no one will train so many."""
    from scipy import special

    if effect_size == 0:
        return None
    # If the standard deviation were known, these would do; as it is not, a few more are needed.
    least = ((float(special.ndtri((1 + confidence) / 2)) + float(special.ndtri(wanted))) / effect_size) ** 2
    if least > MOST_PAIRS:
        return None
    low = max(1, math.ceil(least) - 1)  # too few
    more = 1
    while power(effect_size, low + more, confidence) < wanted:
        more *= 2
    high = low + more  # enough: power grows with the number of pairs
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect_size, middle, confidence) >= wanted else (middle, high)
    return high


def more_pairs(found: Estimate, confidence: float) -> int | None:
    """How many more pairs would settle what this estimate leaves open, at that confidence.

    It assumes normal differences whose true mean and standard deviation are those that were found, and asks for enough
    pairs to show them with a probability of 80 %. From few pairs it is a rough guess.

    Returns:
        0 if the interval allows a word already; None if the differences say nothing of it: one pair alone, a mean of
        zero, or one so small that a million pairs would not do.
    """
    if found.low is None or found.high is None:
        return None
    if word_of(found.low, found.high) != "no difference shown":
        return 0
    if found.low == found.high or found.mean == 0:
        return None
    deviation = (found.high - found.low) / 2 * math.sqrt(found.pairs) / t_quantile(confidence, found.pairs - 1)
    effect = found.mean / deviation if found.effect_size is None else found.effect_size
    needed = pairs_for(effect, confidence)
    return None if needed is None else max(1, needed - found.pairs)
