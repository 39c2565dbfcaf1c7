"""Rotary and learned positions."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Starcoder2Config
from transformers.models.starcoder2.modeling_starcoder2 import Starcoder2RotaryEmbedding, apply_rotary_pos_emb

from gpt2lab.config import GPT2Config
from gpt2lab.model import GPT2, GPT2Embeddings
from gpt2lab.model.embeddings import rotary_tables, rotate
from tests.model.reference import random_ids, randomised

some = settings(max_examples=30, deadline=None)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@some
@given(
    st.integers(0, 99),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
    st.integers(0, 50_000),
    st.sampled_from([2, 4, 10, 64]),
)
def test_rotated_scores_depend_on_the_distance_alone(seed: int, i: int, j: int, shift: int, D: int) -> None:
    def score(at_query: int, at_key: int) -> torch.Tensor:
        tables = rotary_tables(torch.tensor([[at_query, at_key]]), D, 10_000.0, torch.float64)
        q, k = rotate(normal(1, 1, 2, D, seed=seed), *tables)[0, 0]
        return q @ k

    torch.testing.assert_close(score(i + shift, j + shift), score(i, j), rtol=0, atol=1e-8)


@pytest.mark.parametrize("position", [0, 1, 4095, 100_000, 1_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_are_exact_far_out(position: int, dtype: torch.dtype) -> None:
    D, theta = 32, 10_000
    cos, sin = rotary_tables(torch.tensor([[position]]), D, float(theta), dtype)
    # Half a unit in the last place of float32 at 1, plus what float64 angles of that size lose.
    bound = (2.0**-25 if dtype == torch.float32 else 0.0) + 1e-15 * max(position, 1)
    with mpmath.workdps(40):
        for pair in range(D // 2):
            angle = position * mpmath.mpf(theta) ** (-mpmath.mpf(2 * pair) / D)
            assert abs(mpmath.mpf(cos[0, 0, 0, pair].item()) - mpmath.cos(angle)) <= bound
            assert abs(mpmath.mpf(sin[0, 0, 0, pair].item()) - mpmath.sin(angle)) <= bound


def test_the_half_rotation_layout_is_that_of_transformers() -> None:
    H, K, T, D = 4, 2, 9, 12
    q, k = normal(2, H, T, D), normal(2, K, T, D, seed=1)
    cos, sin = rotary_tables(torch.arange(T)[None], D, 10_000.0, torch.float64)
    twice_cos, twice_sin = (torch.cat((table, table), -1)[:, 0] for table in (cos, sin))
    for ours, theirs in zip((q, k), apply_rotary_pos_emb(q, k, twice_cos, twice_sin), strict=True):
        torch.testing.assert_close(rotate(ours, cos, sin), theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("theta", [100.0, 10_000.0, 1_000_000.0])
def test_the_frequencies_are_those_of_transformers(theta: float) -> None:
    rope = {"rope_type": "default", "rope_theta": theta}
    config = Starcoder2Config(hidden_size=48, num_attention_heads=4, rope_parameters=rope)
    at = torch.arange(50)[None]
    their_cos, their_sin = Starcoder2RotaryEmbedding(config)(torch.zeros(1), at)
    cos, sin = rotary_tables(at, 12, theta)
    torch.testing.assert_close(torch.cat((cos, cos), -1)[:, 0], their_cos, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat((sin, sin), -1)[:, 0], their_sin, rtol=0, atol=1e-5)


@some
@given(st.integers(0, 99), st.integers(0, 200_000), st.sampled_from([2, 6, 16]))
def test_a_rotation_keeps_lengths_and_position_zero_turns_nothing(seed: int, position: int, D: int) -> None:
    x = normal(2, 3, 2, D, seed=seed)
    y = rotate(x, *rotary_tables(torch.tensor([[position, 0]]), D, 10_000.0, torch.float64))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(y[:, :, 1], x[:, :, 1])


def test_tables_are_never_narrower_than_float32_and_rotation_keeps_the_dtype() -> None:
    at = torch.tensor([[0, 1, 100_000]])
    exact = rotary_tables(at, 8, 10_000.0, torch.float64)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        tables = rotary_tables(at, 8, 10_000.0, dtype)
        assert {table.dtype for table in tables} == {torch.float32}
        x = normal(1, 2, 3, 8).to(dtype)
        y = rotate(x, *tables)
        assert y.dtype == dtype
        one_rounding = rotate(x.double(), *exact).to(dtype)
        torch.testing.assert_close(y, one_rounding, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_each_row_of_a_batch_may_stand_elsewhere() -> None:
    at = torch.tensor([[0, 1, 2], [7, 8, 9]])
    cos, sin = rotary_tables(at, 4, 10_000.0)
    assert cos.shape == sin.shape == (2, 1, 3, 2)
    alone = rotary_tables(at[1:], 4, 10_000.0)
    assert torch.equal(cos[1:], alone[0])
    assert torch.equal(sin[1:], alone[1])


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("shift", [1, 1000])
def test_a_rope_model_does_not_care_where_a_text_begins(kv_heads: int, shift: int) -> None:
    model = randomised(GPT2(11, 8, 16, 4, 20, 2, position="rope", num_kv_heads=kv_heads, window=3))
    ids, at = random_ids(model, 2, 8), torch.arange(8)[None]
    torch.testing.assert_close(model(ids, positions=at + shift), model(ids), rtol=0, atol=1e-9)
    assert (model(ids, positions=at * 2) - model(ids)).abs().max() > 1e-3


def test_positions_of_the_layers_in_turn_are_repeated_over_them() -> None:
    sizes = (11, 8, 16, 4, 20, 3)

    def logits(position: object) -> torch.Tensor:
        model = randomised(GPT2(*sizes, position=position))
        return model(random_ids(model, 1, 8))

    found = {p: logits(p) for p in ("rope", "none", ("rope",), ("none",), ("rope", "none"), ("rope", "none", "rope"))}
    assert torch.equal(found["rope"], found["rope",])
    assert torch.equal(found["none"], found["none",])
    assert torch.equal(found["rope", "none"], found["rope", "none", "rope"])
    assert (found["rope", "none"] - found["rope"]).abs().max() > 1e-3
    assert (found["rope", "none"] - found["none"]).abs().max() > 1e-3


def test_a_model_without_positions_sees_a_set_of_earlier_tokens() -> None:
    model = randomised(GPT2(11, 8, 16, 4, 20, 1, position="none"))
    ids = random_ids(model, 1, 8)
    shuffled = torch.cat((ids[:, torch.randperm(7)], ids[:, 7:]), dim=1)
    torch.testing.assert_close(model(shuffled)[:, -1], model(ids)[:, -1], rtol=0, atol=1e-12)
    learned = randomised(GPT2(11, 8, 16, 4, 20, 1))
    assert (learned(ids.flip(1).roll(-1, 1))[:, -1] - learned(ids)[:, -1]).abs().max() > 1e-3


def test_embeddings_work_on_their_own() -> None:
    ids, at = torch.tensor([[3, 1, 3], [0, 2, 4]]), torch.tensor([[0, 1, 2]])
    for position in ("learned", "rope", "none"):
        embeddings = GPT2Embeddings(GPT2Config(5, 4, 8, 2, 16, 1, position=position))
        hidden, rotary = embeddings(ids, at)
        expected = embeddings.token.weight[ids]
        if position == "learned":
            expected = expected + embeddings.position.weight[:3]
        assert torch.equal(hidden, expected)
        assert (rotary is not None) == (position == "rope")
        assert hasattr(embeddings, "position") == (position == "learned")


def test_dropout_of_the_embeddings_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    embeddings = GPT2Embeddings(GPT2Config(5, 500, 32, 2, 16, 1, dropout=0.25))
    ids, at = torch.randint(5, (1, 500)), torch.arange(500)[None]
    whole = embeddings.eval()(ids, at)[0]
    assert torch.equal(whole, embeddings.token.weight[ids] + embeddings.position.weight)
    thinned = embeddings.train()(ids, at)[0]
    kept = thinned != 0
    torch.testing.assert_close(thinned[kept], whole[kept] / 0.75)
    assert abs((~kept).double().mean().item() - 0.25) < 5 * (0.25 * 0.75 / whole.numel()) ** 0.5
