"""attend(): whichever kernel it picks, it computes what the dense textbook formula computes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from gpt2lab.errors import InputError
from gpt2lab.model import attend, kernels
from tests.model.reference import dense_attention

LONG, BLOCK = kernels._SHORTEST_BAND, kernels._BLOCK
heads = st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (6, 2), (6, 3)])  # (H, K)
thorough = settings(max_examples=80, deadline=None)


def random_qkv(seed: int, B: int, HK: tuple[int, int], Tq: int, Tk: int, D: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, HK[0], Tq, D), (B, HK[1], Tk, D), (B, HK[1], Tk, D)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).mul(1.5).requires_grad_() for s in shapes]


def lookup(table: Tensor) -> kernels.Bias:
    """A bias that finds what it adds in a table: by positions (1, H or 1, T, T), or whatever these are."""

    def bias(q_pos: Tensor, k_pos: Tensor) -> Tensor:
        if table.shape[0] > 1 or table.shape[2] == 1 or table.shape[2] != table.shape[3]:
            return table
        assert max(q_pos.max(), k_pos.max()) < table.shape[2]  # no token is asked for that is not there
        return table[0][:, q_pos[:, :, None], k_pos[:, None, :]].transpose(0, 1)

    return bias


def assert_equals_dense(qkv: list[Tensor], **how: Any) -> None:
    """Output and gradients of q, k and v (and of a bias), in float64; what a padding query gets means nothing."""
    added, q_pos, real = how.get("bias"), how.get("q_pos"), torch.tensor([[True]])
    kernel = how.pop("kernel", None)
    y = attend(*qkv, **(how | ({} if added is None else {"bias": lookup(added)})), kernel=kernel)
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
    inputs = [*qkv, *(x for x in (added, how.get("sinks")) if x is not None)]
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


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(1, 2),
    st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]),
    st.integers(1, 5 * BLOCK),
    st.sampled_from([1, 2, 3, 7, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1]) | st.integers(1, 4 * BLOCK),
    st.sampled_from(["no bias", "a bias for all heads", "a bias for each"]),
)
def test_blocks_against_their_band_are_the_dense_window(
    seed: int, B: int, HK: tuple[int, int], more: int, W: int, biased: str
) -> None:
    size, _, earlier = kernels.band_blocks(1, W)
    T = max(W, earlier * size) + more  # a shorter text is no case for blocks
    heads = HK[0] if biased == "a bias for each" else 1
    bias = torch.randn(1, heads, T, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    how = {} if biased == "no bias" else {"bias": bias.requires_grad_()}
    assert_equals_dense(random_qkv(seed, B, HK, T, T, 3), window=W, kernel="band", **how)


def random_sinks(seed: int, H: int) -> Tensor:
    return torch.randn(H, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).requires_grad_()


@settings(max_examples=80)
@given(
    st.integers(0, 99),
    st.integers(1, 2),
    heads,
    st.sampled_from([("causal", None), ("mask", None), ("mask", 3), ("band", 3), ("band", BLOCK + 1)]),
    st.integers(1, 40),
    st.booleans(),
)
def test_sinks_join_the_denominator_in_every_kernel(
    seed: int, B: int, HK: tuple[int, int], by: tuple[kernels.Kernel, int | None], more: int, biased: bool
) -> None:
    kernel, W = by
    size, _, earlier = kernels.band_blocks(1, W or 1)
    T = more + (max(W or 1, earlier * size) if kernel == "band" else 0)
    how: dict[str, Any] = {"sinks": random_sinks(seed, HK[0]), "window": W}
    if biased and kernel != "causal":
        bias = torch.randn(1, HK[0], T, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        how["bias"] = bias.requires_grad_()
    assert_equals_dense(random_qkv(seed, B, HK, T, T, 3), kernel=kernel, **how)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("W", [1, 70])
def test_so_they_do_in_flexattention(W: int) -> None:
    qkv = [x.detach() for x in random_qkv(0, 2, (4, 2), 300, 300, 16)]
    sinks = random_sinks(0, 4).detach()
    y = attend(*qkv, window=W, sinks=sinks, kernel="flex")
    torch.testing.assert_close(y, dense_attention(*qkv, window=W, sinks=sinks), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "W"), [("causal", None), ("band", 70), ("mask", 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sinks_may_be_wider_than_queries(kernel: kernels.Kernel, W: int | None, dtype: torch.dtype) -> None:
    exact, sinks = [x.detach() for x in random_qkv(0, 2, (4, 2), 300, 300, 16)], random_sinks(0, 4).detach()
    y = attend(*(x.to(dtype) for x in exact), window=W, sinks=sinks.float(), kernel=kernel)
    assert y.dtype == dtype
    expected = dense_attention(*exact, window=W, sinks=sinks)
    torch.testing.assert_close(y.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_sink_that_outweighs_all_keys_leaves_nothing_and_one_that_weighs_nothing_changes_nothing() -> None:
    for T, W in ((20, None), (20, 7), (LONG + 50, 7)):
        qkv = random_qkv(0, 1, (2, 1), T, T, 3)
        everything, nothing = (attend(*qkv, window=W, sinks=torch.full((2,), by)) for by in (-1e4, 1e4))
        torch.testing.assert_close(everything, attend(*qkv, window=W), rtol=0, atol=1e-12)
        assert not nothing.any()


def test_values_can_have_another_width_than_keys_in_every_kernel() -> None:
    q, k, _ = random_qkv(0, 2, (4, 2), 300, 300, 3)
    wide = torch.randn(2, 2, 300, 5, dtype=torch.float64)
    for kernel, W in (("causal", None), ("band", 40), ("mask", 40)):
        y = attend(q, k, wide, window=W, kernel=kernel)
        torch.testing.assert_close(y, dense_attention(q, k, wide, window=W), rtol=0, atol=1e-12)


def test_a_bias_that_has_nothing_to_add_is_no_bias() -> None:
    for T, W in ((20, None), (20, 7), (LONG + 200, 7)):
        qkv = random_qkv(0, 1, (2, 1), T, T, 3)
        y = attend(*qkv, window=W, bias=lambda q_pos, k_pos: None)
        torch.testing.assert_close(y, dense_attention(*qkv, window=W), rtol=0, atol=1e-12)


@pytest.mark.parametrize("W", [1, BLOCK, 4 * BLOCK])
def test_a_text_of_whole_blocks_is_the_dense_one_for_views_that_are_not_contiguous(W: int) -> None:
    # The layout in which MultiHeadAttention hands them over: slices of one projection.
    T, (H, K), D = 8 * BLOCK, (4, 2), 3
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, T, H + 2 * K, D, generator=generator, dtype=torch.float64)
    qkv = [x.requires_grad_() for x in projected.transpose(1, 2).split((H, K, K), dim=1)]
    assert not qkv[0].is_contiguous()
    assert_equals_dense(qkv, window=W, kernel="band")


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("phase", ["training", "prefill"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("K", [4, 2, 1])
@pytest.mark.parametrize(
    ("kernel", "W"),
    [("causal", None), ("band", 70), ("band", 520), ("flex", 70), ("mask", 70), ("mask", 520), ("mask", None)],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_kernel_is_the_dense_one_in_every_precision(
    kernel: kernels.Kernel, W: int | None, K: int, dtype: torch.dtype, phase: str, device: str
) -> None:
    if kernel == "flex" and phase == "training" and device == "cpu":
        pytest.skip("FlexAttention has no backward on a CPU")
    if kernel == "flex" and dtype == torch.float64 and device == "cuda":
        pytest.skip("FlexAttention has no float64 on a GPU")
    exact = random_qkv(0, 2, (4, K), 600, 600, 16)  # (fewer than 512 keys: half precision trains in float32)
    qkv = [x.detach().to(device, dtype).requires_grad_(phase == "training") for x in exact]
    expected = dense_attention(*exact, window=W)
    y = attend(*qkv, window=W, kernel=kernel)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double().cpu(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    if phase == "training":
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        found = torch.autograd.grad(y, qkv, weights.to(y))
        for mine, dense in zip(found, torch.autograd.grad(expected, exact, weights), strict=True):
            atol = TOLERANCE[dtype] * dense.abs().max().item()
            torch.testing.assert_close(mine.double().cpu(), dense, rtol=TOLERANCE[dtype], atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("T", [256, 300])
def test_blocks_are_the_dense_window_when_they_are_compiled_too(T: int) -> None:
    qkv = [x.detach().float().requires_grad_() for x in random_qkv(0, 2, (4, 2), T, T, 16)]
    y = torch.compile(attend, dynamic=False)(*qkv, window=40, kernel="band")
    expected = dense_attention(*qkv, window=40)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    gradients = torch.autograd.grad(y, qkv, weights)
    for mine, dense in zip(gradients, torch.autograd.grad(expected, qkv, weights), strict=True):
        torch.testing.assert_close(mine, dense, rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(length=st.integers(1, 1100), window=st.integers(1, 1200))
def test_flexattentions_blocks_are_those_that_torch_finds_pair_by_pair(length: int, window: int) -> None:
    def seen(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (j > i - window)

    ours = kernels._flex_blocks(length, window, torch.device("cpu"))
    theirs = create_block_mask(seen, None, None, length, length, device="cpu")
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    assert ours.seq_lengths == theirs.seq_lengths
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.slow
def test_flexattention_as_it_is_compiled_is_the_dense_one() -> None:
    qkv = [x.detach().float() for x in random_qkv(0, 2, (4, 2), 300, 300, 16)]
    y = torch.compile(attend)(*qkv, window=70, kernel="flex")
    torch.testing.assert_close(y, dense_attention(*qkv, window=70), rtol=0, atol=1e-5)


@thorough
@given(
    seed=st.integers(0, 99), HK=heads, T=st.integers(1, 12), more=st.integers(1, 12), W=st.none() | st.integers(1, 30)
)
def test_fewer_queries_than_keys_are_the_newest_tokens(
    seed: int, HK: tuple[int, int], T: int, more: int, W: int | None
) -> None:
    qkv = random_qkv(seed, 2, HK, T, T + more, 4)
    sinks = None if seed % 2 else torch.linspace(-1, 1, HK[0], dtype=torch.float64)
    y = attend(*qkv, window=W, sinks=sinks)
    newest = torch.arange(more, T + more)[None]
    torch.testing.assert_close(y, dense_attention(*qkv, q_pos=newest, window=W, sinks=sinks), rtol=0, atol=1e-12)
    torch.testing.assert_close(y, attend(*qkv, window=W, sinks=sinks, kernel="mask"), rtol=0, atol=0)


def test_more_queries_than_keys_need_positions() -> None:
    with pytest.raises(InputError, match="5 queries and 3 keys; give it the positions"):
        attend(*random_qkv(0, 1, (2, 1), 5, 3, 4))


def test_a_window_that_covers_the_text_is_no_window_to_any_kernel() -> None:
    q, k, v = random_qkv(0, 1, (2, 1), 50, 50, 4)
    assert torch.equal(attend(q, k, v, window=50, kernel="causal"), attend(q, k, v))
    with pytest.raises(InputError, match=r"the kernel 'band' cannot compute this attention .*: causal, mask"):
        attend(q, k, v, window=50, kernel="band")


def test_a_kernel_that_is_named_is_never_replaced_by_another() -> None:
    q, k, v = random_qkv(0, 1, (2, 1), 50, 50, 4)
    at = torch.arange(50)[None]
    for how in (
        {"kernel": "causal", "window": 9},
        {"kernel": "causal", "bias": lambda q_pos, k_pos: torch.zeros(1, 1, 1, 1)},
        {"kernel": "band"},
        {"kernel": "band", "window": 40},  # too short a text
        {"kernel": "band", "window": 9, "q_pos": at, "k_pos": at},
        {"kernel": "flex", "window": 9},  # with gradients, on a CPU
        {"kernel": "flash"},
    ):
        with pytest.raises(InputError, match="cannot compute this attention"):
            attend(q, k, v, **how)


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
    assert_equals_dense(qkv, q_pos=q_pos, k_pos=k_pos, window=W, sinks=random_sinks(seed, HK[0]))


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
    assert_equals_dense(qkv, q_pos=q_pos, k_pos=k_pos, window=W, bias=bias, sinks=random_sinks(seed, HK[0]))


def test_a_window_of_one_returns_each_tokens_own_value() -> None:
    for T in (5, LONG + 3):
        q, k, v = random_qkv(1, 2, (4, 2), T, T, 3)
        torch.testing.assert_close(attend(q, k, v, window=1), v.repeat_interleave(2, dim=1), rtol=0, atol=1e-15)


def test_a_token_outside_every_window_changes_nothing_bit_for_bit() -> None:
    for T in (40, LONG + 40):
        q, k, v = (x.detach() for x in random_qkv(2, 1, (2, 1), T, T, 4))
        before = attend(q, k, v, window=8)
        k[:, :, 20], v[:, :, 20] = 50.0, -50.0
        changed = (attend(q, k, v, window=8) != before).any(-1).any(1)[0].nonzero().flatten().tolist()
        assert changed == list(range(20, 28))


@pytest.mark.parametrize(("T", "W"), [(40, None), (40, 9), (LONG + 10, 9), (1, 4)])
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


def test_a_bias_is_told_the_positions_of_the_tokens_that_it_gets() -> None:
    told: list[tuple[list[list[int]], list[list[int]]]] = []

    def bias(q_pos: Tensor, k_pos: Tensor) -> Tensor:
        told.append((q_pos.tolist(), k_pos.tolist()))
        return torch.zeros(1, 1, 1, 1)

    q, k, v = random_qkv(5, 1, (1, 1), 3, 3, 2)
    attend(q, k, v, bias=bias)
    assert told[-1] == ([[0, 1, 2]], [[0, 1, 2]])
    attend(q, k, v, torch.tensor([[7, 8, 9]]), torch.tensor([[9, -1, 7]]), bias=bias)
    assert told[-1] == ([[7, 8, 9]], [[9, -1, 7]])
    T = 2 * LONG + 1
    attend(*random_qkv(5, 1, (1, 1), T, T, 2), window=2, bias=bias)
    first, (q_pos, k_pos) = told[-2:]  # some at a time: the first block, and the others behind the one before
    assert first == ([list(range(BLOCK))], [list(range(BLOCK))])
    assert [i for block in q_pos for i in block][: T - BLOCK] == list(range(BLOCK, T))
    assert k_pos[0] == first[0][0] + q_pos[0]
    assert k_pos[1] == q_pos[0] + q_pos[1]
