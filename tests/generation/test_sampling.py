"""From logits to tokens: the same probabilities as Transformers' processors, and draws that follow them."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt2lab.errors import InputError
from gpt2lab.generation import Sampling, top_k_logits

thorough = settings(max_examples=150, deadline=None)
samplings = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0.05, 5.0),
        "top_k": st.integers(1, 40),
        "top_p": st.floats(0.01, 1.0),
        "min_p": st.floats(0.0, 1.0),
        "repetition_penalty": st.floats(0.3, 3.0),
    },
)


def random_logits(seed: int, rows: int, V: int, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen_in(ids: Tensor, V: int) -> Tensor:
    return torch.stack([torch.isin(torch.arange(V), row) for row in ids])


def as_transformers_would(logits: Tensor, ids: Tensor, how: dict[str, Any]) -> Tensor:
    processors = LogitsProcessorList()
    if "repetition_penalty" in how:
        processors.append(RepetitionPenaltyLogitsProcessor(how["repetition_penalty"]))
    if "temperature" in how:
        processors.append(TemperatureLogitsWarper(how["temperature"]))
    if "top_k" in how:
        processors.append(TopKLogitsWarper(how["top_k"]))
    if "top_p" in how:
        processors.append(TopPLogitsWarper(how["top_p"]))
    if "min_p" in how:
        processors.append(MinPLogitsWarper(how["min_p"]))
    return processors(ids, logits.clone()).softmax(-1)


def chi_square_p_value(counts: Tensor, probabilities: Tensor) -> float:
    """How likely counts at least this far from the expected ones are, if the probabilities are right."""
    expected = probabilities * counts.sum()
    assert expected.min() > 5, "the approximation needs more draws"
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()


@thorough
@given(st.integers(0, 999), st.integers(2, 30), samplings)
def test_probabilities_are_those_of_transformers_processors_in_the_documented_order(
    seed: int, V: int, how: dict[str, Any]
) -> None:
    logits = random_logits(seed, 3, V)
    ids = torch.randint(V, (3, 5), generator=torch.Generator().manual_seed(seed))
    ours = Sampling(**how).probabilities(logits, seen_in(ids, V))
    torch.testing.assert_close(ours, as_transformers_would(logits, ids, how), rtol=0, atol=1e-12)


@thorough
@given(st.integers(0, 999), st.integers(1, 30), samplings)
def test_probabilities_are_a_distribution_that_holds_the_likeliest_token(
    seed: int, V: int, how: dict[str, Any]
) -> None:
    logits = random_logits(seed, 4, V, spread=6.0)
    probabilities = Sampling(**(how | {"repetition_penalty": 1.0})).probabilities(logits)
    assert probabilities.dtype == torch.float64
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4, dtype=torch.float64))
    assert bool((probabilities >= 0).all())
    assert torch.equal(probabilities.argmax(1), logits.argmax(1))


def test_a_hand_computed_case() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]], dtype=torch.float64).log()
    for how, expected in (
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.7}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.8}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [1, 0, 0, 0]),  # 0.5 of 0.9 is enough
    ):
        torch.testing.assert_close(Sampling(**how).probabilities(logits)[0], torch.tensor(expected).double())


@pytest.mark.parametrize(
    "how",
    [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.5, "top_p": 0.95}],
)
def test_draws_follow_the_exact_probabilities(how: dict[str, Any]) -> None:
    V, draws = 7, 20_000
    logits = random_logits(3, 1, V, spread=1.0)
    ids = torch.tensor([[0, 3]])
    exact = as_transformers_would(logits, ids, how)[0]
    sampling, seen = Sampling(**how), seen_in(ids, V)
    # One text that is long, and many texts that begin: the noise of a generator, and across the seeds of a batch.
    one = torch.Generator().manual_seed(0)
    for generators in ([one] * draws, sampling.generators(draws)):
        chosen = sampling.choose(logits.expand(draws, -1), generators, seen.expand(draws, -1))
        counts = torch.bincount(chosen, minlength=V)
        assert not counts[exact == 0].any(), "what has no probability is never chosen"
        assert chi_square_p_value(counts[exact > 0].double(), exact[exact > 0]) > 1e-4


@thorough
@given(st.integers(0, 999), st.integers(1, 12), st.integers(0, 2**32))
def test_a_token_without_probability_is_never_chosen(seed: int, V: int, noise: int) -> None:
    logits = random_logits(seed, 200, V)
    possible = torch.rand(200, V, generator=torch.Generator().manual_seed(seed)) < 0.4
    possible[:, seed % V] = True
    chosen = Sampling(seed=noise).choose(logits.masked_fill(~possible, -math.inf), Sampling(seed=noise).generators(200))
    assert bool(possible[torch.arange(200), chosen].all())


@thorough
@given(st.integers(0, 999), samplings, st.integers(0, 99))
def test_a_draw_inverts_the_cumulative_distribution_with_one_number_for_each_row(
    seed: int, how: dict[str, Any], noise: int
) -> None:
    sampling, logits = Sampling(**how, seed=noise), random_logits(seed, 3, 9)
    seen = seen_in(torch.tensor([[0, 1], [2, 3], [8, 8]]), 9)
    generators = sampling.generators(3)
    chosen = [sampling.choose(logits, generators, seen).tolist() for _ in range(2)]
    exact = as_transformers_would(logits, torch.tensor([[0, 1], [2, 3], [8, 8]]), how)
    for row in range(3):
        alone = torch.Generator().manual_seed(noise + row)
        for step in range(2):
            u, total, expected = torch.rand(1, generator=alone, dtype=torch.float64).item(), 0.0, None
            for token, probability in enumerate(exact[row].tolist()):
                total += probability
                if expected is None and total > u:
                    expected = token
            assert chosen[step][row] == expected


@given(st.integers(0, 999), st.integers(1, 20))
@settings(deadline=None)
def test_temperature_zero_takes_the_likeliest(seed: int, V: int) -> None:
    sampling, logits = Sampling(temperature=0, top_k=3, top_p=0.2), random_logits(seed, 5, V)
    assert torch.equal(sampling.choose(logits, sampling.generators(5)), logits.argmax(1))


def test_temperature_zero_heeds_the_repetition_penalty() -> None:
    sampling = Sampling(temperature=0, repetition_penalty=2.0)
    logits = torch.tensor([[3.0, 2.0, -1.0], [-1.0, -1.5, -4.0], [3.0, 2.0, 1.0]])
    seen = torch.tensor([[True, False, False], [True, False, False], [False, True, True]])
    assert sampling.choose(logits, sampling.generators(3), seen).tolist() == [1, 1, 0]


def test_a_low_temperature_does_not_overflow() -> None:
    logits = torch.tensor([[80.0, 79.0, -300.0]])
    assert Sampling(temperature=1e-30).probabilities(logits).tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_logits_lose_nothing_more(dtype: torch.dtype) -> None:
    logits = random_logits(0, 2, 50).to(dtype)
    how = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    expected = as_transformers_would(logits.double(), torch.zeros(2, 1, dtype=torch.int64), how)
    torch.testing.assert_close(Sampling(**how).probabilities(logits), expected, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 15))
def test_top_k_leaves_the_k_likeliest_as_mingpts_function_does(seed: int, V: int, k: int) -> None:
    logits = random_logits(seed, 3, V)
    untouched = logits.clone()
    kept = top_k_logits(logits, k)
    for row, left in zip(logits, kept, strict=True):
        best = sorted(row.tolist(), reverse=True)[:k]
        assert [x if x in best else -math.inf for x in row.tolist()] == left.tolist()
    assert torch.equal(logits, untouched)


def test_equals_of_the_kth_are_kept() -> None:
    assert top_k_logits(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), 2).tolist() == [[1.0, 3.0, 1.0, -math.inf]]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, math.inf]),
        ("top_k", [0, -1]),
        ("top_p", [0.0, 1.1, -0.5, math.nan]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0.0, -1.0, math.nan]),
    ],
)
def test_settings_out_of_range_are_named_with_their_value(name: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(InputError, match=rf"^{name} is {value}; it has to be "):
            Sampling(**{name: value})
