"""Paired differences, their intervals and the words: against scipy's own tests, and on data with a known answer."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from gpt2lab.evaluation.compare import Claim, contrast, contrasts, tokens_to

losses = st.lists(st.floats(0.5, 5.0), min_size=3, max_size=12)


def cell(arm: str, seed: int, loss: float, context: int = 25, **values: Any) -> dict[str, Any]:
    measured = {"test_loss": loss, "tokens_to_target": 1000, "parameters": 10} | values
    return {"context": context, "arm": arm, "seed": seed} | measured


def grid(arms: dict[str, list[float]], context: int = 25) -> list[dict[str, Any]]:
    return [cell(arm, seed, loss, context) for arm, each in arms.items() for seed, loss in enumerate(each, 1)]


def of(found: list[Any], arm: str, measure: str = "test_loss", context: int = 25) -> Any:
    (only,) = [c for c in found if (c.arm, c.measure, c.context) == (arm, measure, context)]
    return only


@given(losses, st.data(), st.sampled_from([0.9, 0.95, 0.999]))
def test_the_interval_is_that_of_a_paired_t_test(a: list[float], data: st.DataObject, confidence: float) -> None:
    b = data.draw(st.lists(st.floats(0.5, 5.0), min_size=len(a), max_size=len(a)))
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assume(np.std(differences) > 1e-6)
    mean, low, high, effect = contrast(differences, confidence)
    expected = stats.ttest_rel(a, b).confidence_interval(confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)
    n = len(a)
    exact = math.exp(math.lgamma((n - 1) / 2) - math.lgamma((n - 2) / 2)) / math.sqrt((n - 1) / 2)  # Hedges 1981, eq. 6
    assert effect == pytest.approx(exact * mean / np.std(differences, ddof=1), rel=0.35 if n == 3 else 0.05)


def test_one_pair_allows_no_word() -> None:
    (found,) = [
        c for c in contrasts(grid({"original": [2.0], "rope": [1.0]}), {}, [], [25]) if c.measure == "test_loss"
    ]
    assert found.mean == pytest.approx(-1.0)
    assert found.verdict is None


def test_the_word_comes_from_the_interval_and_not_from_the_mean() -> None:
    arms = {
        "original": [2.00, 2.10, 1.95, 2.05],
        "lower": [1.90, 2.01, 1.84, 1.96],
        "noisy": [1.00, 2.60, 1.20, 2.60],  # a lower mean, and an interval around zero
        "higher": [2.10, 2.19, 2.06, 2.15],
    }
    claims = [Claim("it is", arm, "test_loss") for arm in arms if arm != "original"]
    found = contrasts(grid(arms), {}, claims, [25])
    assert of(found, "noisy").mean < 0
    assert [of(found, arm).verdict for arm in ("lower", "noisy", "higher")] == [
        "better",
        "no difference shown",
        "worse",
    ]


def test_pairs_are_made_by_seed_whatever_the_order_of_the_cells() -> None:
    cells = grid({"original": [1.0, 2.0, 3.0], "rope": [1.1, 2.1, 3.1]})
    found = of(contrasts(cells[::-1], {}, [], [25]), "rope")
    assert (found.mean, found.pairs) == (pytest.approx(0.1), 3)
    assert found.low == pytest.approx(0.1, abs=1e-6)  # the seeds differ much, the pairs do not


def test_a_declared_claim_has_its_own_interval_and_the_others_of_a_measure_share_the_error() -> None:
    arms = {"original": [2.0, 2.1, 1.9], "a": [1.9, 2.1, 1.7], "b": [1.9, 2.1, 1.7], "c": [1.9, 2.1, 1.7]}
    found = contrasts(grid(arms), {}, [Claim("a is better", "a", "test_loss")], [25])
    assert (of(found, "a").confidence, of(found, "a").claim) == (0.95, 0)
    exploratory = {(c.arm, c.measure): c.confidence for c in found if c.claim is None and c.measure != "parameters"}
    losses, tokens = dict.fromkeys("bc", 1 - 0.05 / 2), dict.fromkeys("abc", 1 - 0.05 / 3)
    assert exploratory == {(arm, "test_loss"): confidence for arm, confidence in losses.items()} | {
        (arm, "tokens_to_target"): confidence for arm, confidence in tokens.items()
    }
    assert of(found, "b").low < of(found, "a").low < of(found, "a").high < of(found, "b").high


def test_among_many_arms_that_change_nothing_a_word_is_said_in_about_one_of_twenty_comparisons() -> None:
    draw = np.random.default_rng(0)
    wrong, tries = 0, 300
    for _ in range(tries):
        arms = {name: draw.normal(2.0, 0.1, 5).tolist() for name in ("original", *"abcdefgh")}
        found = [c for c in contrasts(grid(arms), {}, [], [25]) if c.measure == "test_loss"]
        wrong += any(c.verdict != "no difference shown" for c in found)
    assert stats.binomtest(wrong, tries, 0.05, alternative="greater").pvalue > 0.001


def test_ratios_are_compared_as_logarithms_round_by_round() -> None:
    def times(*seconds: float) -> dict[str, list[float]]:
        return {"seconds_per_token": list(seconds)}

    speed = {"25": {"original": times(1.0, 2.0, 4.0), "rope": times(1.1, 2.2, 4.4), "mqa": times(0.5, 4.0, 4.0)}}
    cells = grid({"original": [1.0, 1.1], "rope": [1.0, 1.1], "mqa": [1.0, 1.1]})
    found = contrasts(cells, speed, [Claim("slower", "rope", "seconds_per_token", 25)], [25])
    slower = of(found, "rope", "seconds_per_token")
    assert (slower.mean, slower.low, slower.high) == pytest.approx((1.1, 1.1, 1.1))
    assert (slower.verdict, slower.pairs) == ("worse", 3)
    noisy = of(found, "mqa", "seconds_per_token")
    assert noisy.mean == pytest.approx(1.0)
    assert noisy.verdict == "no difference shown"


def test_an_arm_that_never_came_down_to_the_original_gets_no_ratio_and_no_word() -> None:
    cells = [
        *(cell("original", seed, 2.0) for seed in (1, 2, 3)),
        *(cell("rope", seed, 2.0, tokens_to_target=None if seed == 2 else 500) for seed in (1, 2, 3)),
    ]
    found = of(contrasts(cells, {}, [], [25]), "rope", "tokens_to_target")
    assert (found.missed, found.later, found.pairs, found.mean) == (1, 1, 3, None)
    assert found.verdict == "no difference shown"


@pytest.mark.parametrize(("missed", "word"), [(8, "worse"), (4, "no difference shown"), (1, "no difference shown")])
def test_arms_that_miss_the_target_are_judged_by_a_sign_test(missed: int, word: str) -> None:
    cells = [
        cell(
            arm,
            seed,
            2.0,
            tokens_to_target=None if arm == "rope" and seed <= missed else 900 if arm == "rope" else 1000,
        )
        for arm in ("original", "rope")
        for seed in range(1, 9)
    ]
    claim = Claim("sooner", "rope", "tokens_to_target")
    found = of(contrasts(cells, {}, [claim], [25]), "rope", "tokens_to_target")
    later_or_sooner = 2 * sum(math.comb(8, k) for k in range(9) if k >= max(missed, 8 - missed)) / 2**8
    assert (later_or_sooner < 0.05) == (word == "worse")
    assert found.verdict == word
    assert found.later == missed


def test_a_claim_is_about_its_own_context_or_the_first() -> None:
    cells = [
        *grid({"original": [2.0, 2.1], "rope": [1.9, 2.0]}),
        *grid({"original": [2.0, 2.1], "rope": [1.9, 2.0]}, 64),
    ]
    claims = [Claim("at 64", "rope", "test_loss", 64), Claim("at the first", "rope", "tokens_to_target")]
    found = contrasts(cells, {}, claims, [25, 64])
    assert [(c.claim, c.context, c.measure) for c in found[:2]] == [(0, 64, "test_loss"), (1, 25, "tokens_to_target")]
    assert all(c.claim is None for c in found[2:])


@given(st.lists(st.floats(1.0, 4.0), min_size=2, max_size=10), st.floats(1.0, 4.0))
def test_the_tokens_to_a_loss_are_read_off_the_curve(curve: list[float], target: float) -> None:
    points = [(100 * (i + 1), loss) for i, loss in enumerate(curve)]
    found = tokens_to(target, points)
    if found is None:
        assert min(curve) > target
    elif curve[0] <= target:
        assert found == 100
    else:
        tokens, values = zip(*points, strict=True)
        assert np.interp(found, tokens, values) == pytest.approx(target, abs=1e-6)
        assert all(loss > target for t, loss in points if t < found - 1e-6)  # it is the first time
