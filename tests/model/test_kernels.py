"""attend(): whichever kernel it picks, it computes what the dense textbook formula computes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2lab.model import attend, kernels
from tests.model.reference import dense_attention

BAND = kernels._SHORTEST_BAND
heads = st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (6, 2), (6, 3)])  # (H, K)
thorough = settings(max_examples=80, deadline=None)


def random_qkv(seed: int, B: int, HK: tuple[int, int], Tq: int, Tk: int, D: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, HK[0], Tq, D), (B, HK[1], Tk, D), (B, HK[1], Tk, D)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).mul(1.5).requires_grad_() for s in shapes]


def assert_equals_dense(qkv: list[Tensor], **how: Any) -> None:
    """Output and gradients of q, k and v (and of a bias), in float64; what a padding query gets means nothing."""
    added, q_pos, real = how.get("bias"), how.get("q_pos"), torch.tensor([[True]])
    y = attend(*qkv, **(how | ({} if added is None else {"bias": lambda q_pos, k_pos: added})))
    assert y.isfinite().all()
    if q_pos is not None:
        real = q_pos >= 0
        how["q_pos"] = torch.where(real, q_pos, how["k_pos"].amax(1, keepdim=True))  # no softmax over nothing
    expected = dense_attention(*qkv, **how)
    assert y.shape == expected.shape
    assert y.dtype == torch.float64
    y, expected = (x * real[:, None, :, None] for x in (y, expected))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    inputs = qkv if added is None else [*qkv, added]
    gradients = torch.autograd.grad((y * weights).sum(), inputs)
    for mine, dense in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, dense, rtol=0, atol=1e-11)


@thorough
@given(st.integers(0, 99), st.integers(1, 3), heads, st.integers(1, 33), st.integers(1, 9))
def test_full_causal_attention_is_the_dense_one(seed: int, B: int, HK: tuple[int, int], T: int, D: int) -> None:
    assert_equals_dense(random_qkv(seed, B, HK, T, T, D))


@thorough
@given(st.integers(0, 99), st.integers(1, 3), heads, st.integers(1, 33), st.integers(1, 9), st.integers(1, 40))
def test_a_window_in_a_short_text_is_the_dense_one(
    seed: int, B: int, HK: tuple[int, int], T: int, D: int, W: int
) -> None:
    assert_equals_dense(random_qkv(seed, B, HK, T, T, D), window=W)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(1, 2),
    st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]),
    st.integers(BAND - 3, BAND + 90),
    st.sampled_from([1, 2, 3, 7, 16, 64, 100, BAND // 2, BAND // 2 + 1, BAND + 5]) | st.integers(1, BAND // 2),
)
def test_a_window_in_a_long_text_is_the_dense_one(seed: int, B: int, HK: tuple[int, int], T: int, W: int) -> None:
    assert_equals_dense(random_qkv(seed, B, HK, T, T, 3), window=W)


@pytest.mark.parametrize("W", [1, 32, 128])
def test_a_text_of_whole_blocks_is_the_dense_one_for_views_that_are_not_contiguous(W: int) -> None:
    # The layout in which MultiHeadAttention hands them over: slices of one projection.
    T, (H, K), D = BAND, (4, 2), 3
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, T, H + 2 * K, D, generator=generator, dtype=torch.float64)
    qkv = [x.requires_grad_() for x in projected.transpose(1, 2).split((H, K, K), dim=1)]
    assert not qkv[0].is_contiguous()
    assert_equals_dense(qkv, window=W)


@st.composite
def positions_of_a_cache(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Queries and keys as a ring cache hands them over: keys in any order, empty slots, rows of different lengths."""
    num_keys, num_queries = draw(st.integers(1, 14)), draw(st.integers(1, 4))
    num_queries = min(num_queries, num_keys)
    q_pos, k_pos = [], []
    for _ in range(draw(st.sampled_from([1, 1, 3]))):
        first, padding = draw(st.integers(0, 500)), draw(st.integers(0, num_keys - 1))
        row = [-1] * padding + list(range(first, first + num_keys - padding))
        q_pos.append(row[-num_queries:])
        k_pos.append(draw(st.permutations(row)))
    return torch.tensor(q_pos), torch.tensor(k_pos)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 99), heads, st.integers(1, 6), positions_of_a_cache(), st.integers(1, 16) | st.none())
def test_keys_from_a_cache_are_told_apart_by_their_positions(
    seed: int, HK: tuple[int, int], D: int, positions: tuple[Tensor, Tensor], W: int | None
) -> None:
    q_pos, k_pos = positions
    qkv = random_qkv(seed, 3, HK, q_pos.shape[1], k_pos.shape[1], D)
    assert_equals_dense(qkv, q_pos=q_pos, k_pos=k_pos, window=W)


@thorough
@given(
    st.integers(0, 99),
    st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4), (6, 2)]),
    st.integers(1, 20),
    st.integers(1, 24) | st.none(),
    st.sampled_from(["full", "over batch", "per head", "one for all"]),
)
def test_a_bias_is_added_to_the_scores(seed: int, HK: tuple[int, int], T: int, W: int | None, shape: str) -> None:
    B, H = 2, HK[0]
    shapes = {"full": (B, H, T, T), "over batch": (1, H, T, T), "per head": (1, H, 1, T), "one for all": (1, 1, T, T)}
    bias = torch.randn(shapes[shape], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert_equals_dense(random_qkv(seed, B, HK, T, T, 4), window=W, bias=bias.requires_grad_())


@thorough
@given(st.integers(0, 99), heads, st.integers(1, 12), st.integers(1, 14) | st.none(), st.booleans())
def test_one_new_token_reads_shared_keys_with_a_bias(
    seed: int, HK: tuple[int, int], keys: int, W: int | None, per_row: bool
) -> None:
    k_pos = torch.stack([torch.arange(keys) + 3, torch.arange(keys) + 40])
    q_pos = k_pos[:, -1:]
    bias = torch.randn(2 if per_row else 1, HK[0], 1, keys, generator=torch.Generator().manual_seed(seed)).double()
    qkv = random_qkv(seed, 2, HK, 1, keys, 4)
    assert_equals_dense(qkv, q_pos=q_pos, k_pos=k_pos, window=W, bias=bias.requires_grad_())
    assert_equals_dense(qkv, q_pos=q_pos, k_pos=k_pos, window=W)


def test_a_bias_in_a_long_windowed_text_is_not_lost() -> None:
    bias = torch.randn(1, 2, BAND + 9, BAND + 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_equals_dense(random_qkv(0, 1, (2, 1), BAND + 9, BAND + 9, 2), window=16, bias=bias.requires_grad_())


def test_a_window_of_one_returns_each_tokens_own_value() -> None:
    for T in (5, BAND + 3):
        q, k, v = random_qkv(1, 2, (4, 2), T, T, 3)
        torch.testing.assert_close(attend(q, k, v, window=1), v.repeat_interleave(2, dim=1), rtol=0, atol=1e-15)


def test_a_token_outside_every_window_changes_nothing_bit_for_bit() -> None:
    for T in (40, BAND + 40):
        q, k, v = (x.detach() for x in random_qkv(2, 1, (2, 1), T, T, 4))
        before = attend(q, k, v, window=8)
        k[:, :, 20], v[:, :, 20] = 50.0, -50.0
        changed = (attend(q, k, v, window=8) != before).any(-1).any(1)[0].nonzero().flatten().tolist()
        assert changed == list(range(20, 28))


@pytest.mark.parametrize(("T", "W"), [(40, None), (40, 9), (BAND + 10, 9), (1, 4)])
def test_bfloat16_gives_roughly_the_same(T: int, W: int | None) -> None:
    qkv = [x.detach().bfloat16() for x in random_qkv(3, 2, (4, 2), T, T, 8)]
    y = attend(*qkv, window=W)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), dense_attention(*(x.double() for x in qkv), window=W), rtol=0, atol=0.03)


def test_a_float32_bias_goes_with_bfloat16_queries() -> None:
    qkv = [x.detach().bfloat16() for x in random_qkv(4, 1, (2, 2), 12, 12, 8)]
    bias = torch.randn(1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    y = attend(*qkv, bias=lambda q_pos, k_pos: bias)
    assert y.dtype == torch.bfloat16
    expected = dense_attention(*(x.double() for x in qkv), bias=bias.double())
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=0.03)


def test_a_bias_is_told_the_positions_of_the_keys_it_gets() -> None:
    told = []
    q, k, v = random_qkv(5, 1, (1, 1), 3, 3, 2)
    attend(q, k, v, bias=lambda q_pos, k_pos: told.append((q_pos.tolist(), k_pos.tolist())))
    attend(q, k, v, torch.tensor([[7, 8, 9]]), torch.tensor([[9, -1, 7]]), bias=lambda *at: told.append(at))
    assert told[0] == ([[0, 1, 2]], [[0, 1, 2]])
    assert (told[1][0].tolist(), told[1][1].tolist()) == ([[7, 8, 9]], [[9, -1, 7]])
