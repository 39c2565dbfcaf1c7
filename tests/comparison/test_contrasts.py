"""Which runs are pairs, and the words that their differences allow: on data with a known answer."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gpt2lab.comparison.contrasts import contrasts, tokens_to
from gpt2lab.comparison.results import CellResult, Contrast, Seconds, Timing
from gpt2lab.comparison.settings import Claim
from tests.comparison.made import made_cell


def cell(arm: str, seed: int, loss: float, context: int = 25, **values: Any) -> CellResult:
    return made_cell(context, arm, seed, **{"test_loss": loss, "tokens_to_target": 1000, "parameters": 10} | values)


def grid(arms: dict[str, list[float]], context: int = 25) -> list[CellResult]:
    return [cell(arm, seed, loss, context) for arm, each in arms.items() for seed, loss in enumerate(each, 1)]


def of(found: list[Contrast], arm: str, measure: str = "test_loss", context: int = 25) -> Contrast:
    (only,) = [c for c in found if (c.arm, c.measure, c.context) == (arm, measure, context)]
    return only


def test_one_pair_allows_no_word() -> None:
    (found,) = [
        c
        for c in contrasts(grid({"original": [2.0], "rope": [1.0]}), {}, [], [25], "original")
        if c.measure == "test_loss"
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
    found = contrasts(grid(arms), {}, claims, [25], "original")
    assert of(found, "noisy").mean < 0
    assert [of(found, arm).verdict for arm in ("lower", "noisy", "higher")] == [
        "better",
        "no difference shown",
        "worse",
    ]


def test_pairs_are_made_by_seed_whatever_the_order_of_the_cells() -> None:
    cells = grid({"original": [1.0, 2.0, 3.0], "rope": [1.1, 2.1, 3.1]})
    found = of(contrasts(cells[::-1], {}, [], [25], "original"), "rope")
    assert (found.mean, found.pairs) == (pytest.approx(0.1), 3)
    assert found.low == pytest.approx(0.1, abs=1e-6)  # the seeds differ much, the pairs do not


def test_a_declared_claim_has_its_own_interval_and_the_others_of_a_measure_share_the_error() -> None:
    arms = {"original": [2.0, 2.1, 1.9], "a": [1.9, 2.1, 1.7], "b": [1.9, 2.1, 1.7], "c": [1.9, 2.1, 1.7]}
    found = contrasts(grid(arms), {}, [Claim("a is better", "a", "test_loss")], [25], "original")
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
        found = [c for c in contrasts(grid(arms), {}, [], [25], "original") if c.measure == "test_loss"]
        wrong += any(c.verdict != "no difference shown" for c in found)
    assert stats.binomtest(wrong, tries, 0.05, alternative="greater").pvalue > 0.001


def test_ratios_are_compared_as_logarithms_round_by_round() -> None:
    def times(*seconds: float) -> Seconds:
        return Seconds([], [], list(seconds), [], [])

    arms = {"original": times(1.0, 2.0, 4.0), "rope": times(1.1, 2.2, 4.4), "mqa": times(0.5, 4.0, 4.0)}
    speed = {25: Timing("a machine", 1, 0.0, arms)}
    cells = grid({"original": [1.0, 1.1], "rope": [1.0, 1.1], "mqa": [1.0, 1.1]})
    found = contrasts(cells, speed, [Claim("slower", "rope", "seconds_per_token", 25)], [25], "original")
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
    found = of(contrasts(cells, {}, [], [25], "original"), "rope", "tokens_to_target")
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
    found = of(contrasts(cells, {}, [claim], [25], "original"), "rope", "tokens_to_target")
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
    found = contrasts(cells, {}, claims, [25, 64], "original")
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


def test_the_baseline_is_any_arm() -> None:
    cells = grid({"rope": [1.0, 2.0, 3.1], "original": [1.1, 2.1, 3.1]})
    found = contrasts(cells, {}, [], [25], "rope")
    assert {c.arm for c in found} == {"original"}
    assert of(found, "original").mean == pytest.approx(0.2 / 3)


def test_a_verdict_tells_a_contrast_around_zero_whatever_it_measures() -> None:
    arms = {"original": [2.0, 2.1, 1.9], "mqa": [1.9, 2.02, 1.8]}
    cells = [
        cell(arm, seed, loss, parameters=10 if arm == "mqa" else 20, tokens_to_target=None if arm == "mqa" else 9)
        for arm, each in arms.items()
        for seed, loss in enumerate(each, 1)
    ]
    loss, tokens, parameters = (c.said() for c in contrasts(cells, {}, [], [25], "original"))
    assert (loss.arm, loss.context, loss.quantity, loss.verdict, loss.pairs) == ("mqa", 25, "test_loss", "better", 3)
    assert loss.difference is not None
    assert loss.low is not None
    assert loss.high is not None
    assert loss.low < loss.difference < loss.high < 0
    assert (parameters.difference, parameters.low, parameters.high, parameters.verdict) == (-0.5, -0.5, -0.5, "better")
    assert (tokens.difference, tokens.low, tokens.verdict) == (None, None, "no difference shown")  # 3 signs are few
    assert (loss.more_seeds, parameters.more_seeds, tokens.more_seeds) == (0, 0, None)
