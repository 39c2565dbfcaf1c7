"""Paired differences, their intervals and the words: against scipy's own tests, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special, stats

from gpt2lab.comparison.statistics import (
    POWER,
    Estimate,
    estimate,
    more_pairs,
    pairs_for,
    power,
    shared_confidence,
    sign_test,
    welch,
    word_of,
)

losses = st.lists(st.floats(0.5, 5.0), min_size=3, max_size=12)
TRIES = 2000
UNDECIDED = "no difference shown"
# A share that is at most p in truth is found above this in one of a thousand simulations of so many tries.
BOUND = {p: stats.binom.ppf(0.999, TRIES, p) / TRIES for p in (0.05, 1 - POWER)}


@given(losses, st.data(), st.sampled_from([0.9, 0.95, 0.999]))
def test_the_interval_is_that_of_a_paired_t_test(a: list[float], data: st.DataObject, confidence: float) -> None:
    b = data.draw(st.lists(st.floats(0.5, 5.0), min_size=len(a), max_size=len(a)))
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assume(np.std(differences) > 1e-6)
    found = estimate(differences, confidence)
    expected = stats.ttest_rel(a, b).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)
    n = len(a)
    exact = math.exp(math.lgamma((n - 1) / 2) - math.lgamma((n - 2) / 2)) / math.sqrt((n - 1) / 2)  # Hedges 1981, eq. 6
    effect = exact * found.mean / np.std(differences, ddof=1)
    assert found.effect_size == pytest.approx(effect, rel=0.35 if n == 3 else 0.05)


def test_one_pair_has_a_mean_and_nothing_else_and_equal_differences_have_no_effect_size() -> None:
    assert estimate([0.5], 0.95) == Estimate(1, 0.5, None, None, None)
    assert estimate([0.5, 0.5, 0.5], 0.95) == Estimate(3, 0.5, 0.5, 0.5, None)


@given(st.integers(1, 40), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_sign_test_is_the_exact_binomial_test(pairs: int, data: st.DataObject, confidence: float) -> None:
    later = data.draw(st.integers(0, pairs))
    shown = stats.binomtest(later, pairs).pvalue <= 1 - confidence
    word = "no difference shown" if not shown else "worse" if later > pairs / 2 else "better"
    assert sign_test(later, pairs, confidence) == word


@given(losses, losses)
def test_numbers_without_pairs_are_compared_by_welchs_interval(a: list[float], b: list[float]) -> None:
    assume(min(np.std(a), np.std(b)) > 1e-3)
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    degrees = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))  # Welch 1947
    reach = stats.t.ppf(0.975, degrees) * math.sqrt(va + vb)
    difference = np.mean(a) - np.mean(b)
    assert welch(a, b) == pytest.approx((difference - reach, difference + reach))
    assert welch(a[:1], b) is None


@given(st.floats(0.05, 3), st.integers(2, 200), st.sampled_from([0.95, 0.99, shared_confidence(7)]))
def test_power_is_the_noncentral_t_distributions(effect: float, pairs: int, confidence: float) -> None:
    threshold = stats.t.ppf((1 + confidence) / 2, pairs - 1)
    expected = stats.nct.sf(threshold, pairs - 1, effect * math.sqrt(pairs))
    assume(not math.isnan(expected))
    assert power(effect, pairs, confidence) == pytest.approx(expected, abs=1e-3)
    assert power(-effect, pairs, confidence) == power(effect, pairs, confidence)


@given(st.floats(0.02, 4), st.sampled_from([0.95, 0.99]))
def test_the_pairs_for_an_effect_are_enough_and_one_fewer_is_not(effect: float, confidence: float) -> None:
    pairs = pairs_for(effect, confidence)
    assert pairs is not None
    assert power(effect, pairs, confidence) >= POWER
    assert pairs == 2 or power(effect, pairs - 1, confidence) < POWER


def test_no_number_of_pairs_is_told_where_there_is_nothing_to_show() -> None:
    assert pairs_for(0.0, 0.95) is None
    assert pairs_for(1e-5, 0.95) is None
    assert more_pairs(estimate([0.1], 0.95), 0.95) is None
    assert more_pairs(estimate([-0.1, 0.1, 0.2, -0.2], 0.95), 0.95) is None
    assert more_pairs(estimate([0.1, 0.11, 0.1, 0.12], 0.95), 0.95) == 0  # it is settled


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=9), st.sampled_from([0.95, 0.99]))
def test_more_pairs_than_there_are_would_show_the_effect_that_was_found(each: list[float], confidence: float) -> None:
    found = estimate(each, confidence)
    assume(found.effect_size is not None and abs(found.effect_size) > 0.01)
    more = more_pairs(found, confidence)
    assert more is not None
    assert (more > 0) == (word_of(found.low, found.high) == "no difference shown")
    if more > 1:
        assert power(found.effect_size, found.pairs + more, confidence) >= POWER


# By simulation: words for 2,000 comparisons, computed as `estimate` and `word_of` do, for all at once.


def words(differences: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Which of many rows of differences are called better, and which worse."""
    *_, n = differences.shape
    mean, deviation = differences.mean(-1), differences.std(-1, ddof=1)
    reach = special.stdtrit(n - 1, (1 + confidence) / 2) * deviation / math.sqrt(n)
    better, worse = mean + reach < 0, mean - reach > 0
    for row in np.ndindex(*mean.shape[:1]) if mean.ndim == 1 else ():  # the same as what the library says of each
        found = estimate(differences[row].tolist(), confidence)
        assert word_of(found.low, found.high) == ("better" if better[row] else "worse" if worse[row] else UNDECIDED)
    return better, worse


@pytest.mark.parametrize("pairs", [2, 3, 5, 10])
def test_of_two_thousand_comparisons_of_equals_at_most_five_percent_get_a_word(pairs: int) -> None:
    draw = np.random.default_rng(pairs)
    better, worse = words(draw.normal(0, 0.1, (TRIES, pairs)), 0.95)
    assert np.mean(better | worse) <= BOUND[0.05]
    assert np.mean(better | worse) > 0.03  # and it is not by never saying anything


def test_of_two_thousand_comparisons_with_eight_equal_arms_each_at_most_five_percent_get_a_word_for_any() -> None:
    draw = np.random.default_rng(0)
    losses = draw.normal(2, 0.1, (TRIES, 9, 5))  # comparisons, arms, seeds
    better, worse = words(losses[:, 1:] - losses[:, :1], shared_confidence(8))
    assert np.mean((better | worse).any(-1)) <= BOUND[0.05]


@pytest.mark.parametrize("effect", [0.4, 0.8, 1.5, 3.0])
def test_a_stated_power_is_reached_at_the_stated_effect(effect: float) -> None:
    pairs = pairs_for(effect, 0.95)
    assert pairs is not None
    draw = np.random.default_rng(int(10 * effect))
    better, worse = words(draw.normal(-effect, 1, (TRIES, pairs)), 0.95)
    assert np.mean(~better) <= BOUND[1 - POWER]
    assert np.mean(worse) < 0.005
