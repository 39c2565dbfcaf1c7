"""No token reads the future: shown by perturbation, and found by assert_causal in mechanisms that do."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model import GPT2, CausalityError, GroupQueryAttention, ScaledDotProductAttention, assert_causal
from gpt2lab.model.causality import CacheError, assert_cached, positions_to_probe, try_to_learn
from tests.model.reference import ALiBi, configs, random_ids, randomised, windows
from tests.training.mechanisms import Counting, Idle, SharedDistances

thorough = settings(max_examples=60, deadline=None)


@torch.no_grad()
def changed_logits(model: GPT2, ids: Tensor, j: int) -> list[int]:
    """Positions whose logits differ at all when token j is another one."""
    other = ids.clone()
    other[0, j] = (ids[0, j] + 1) % model.config.vocab_size
    return (model(other) - model(ids)).abs().amax(-1)[0].gt(1e-12).nonzero().flatten().tolist()


@thorough
@given(configs(), st.data())
def test_a_token_changes_no_logit_before_itself_and_does_change_its_own(
    config: GPT2Config, data: st.DataObject
) -> None:
    model = randomised(GPT2.from_config(config))
    j = data.draw(st.integers(0, config.max_seq_len - 1))
    assert min(changed_logits(model, random_ids(model, 1, config.max_seq_len), j)) == j


@thorough
@given(
    st.sampled_from(["learned", "rope", "none"]),
    st.sampled_from([None, 1, 2]),
    windows(6, endless=True),
    st.integers(1, 3),
    st.integers(0, 12),
)
def test_with_a_window_in_every_layer_a_token_reaches_layers_times_window_less_one_and_no_further(
    position: str, num_kv_heads: int | None, window: int | tuple[int, ...], layers: int, j: int
) -> None:
    switches = {"position": position, "num_kv_heads": num_kv_heads, "window": window}
    model = randomised(GPT2(11, 32, 16, 4, 20, layers, **switches))
    widths = [window[layer % len(window)] if isinstance(window, tuple) else window for layer in range(layers)]
    last = j + sum(width - 1 for width in widths)  # for one window W: j + layers · (W - 1)
    changed = changed_logits(model, random_ids(model, 1, 32), j)
    assert (changed[0], changed[-1]) == (j, min(last, 31))


@pytest.mark.parametrize(("window", "layers"), [(7, 2), (100, 1), (1, 2)])
def test_the_reach_is_the_same_in_texts_that_the_band_kernel_reads(window: int, layers: int) -> None:
    model = randomised(GPT2(11, 300, 8, 2, 10, layers, position="rope", num_kv_heads=1, window=window))
    ids = random_ids(model, 1, 300)
    for j in (0, 6, 7, 99, 150):
        assert changed_logits(model, ids, j) == list(range(j, j + layers * (window - 1) + 1))


def test_without_a_window_the_first_token_reaches_the_last() -> None:
    model = randomised(GPT2(11, 32, 16, 4, 20, 1, position="rope"))
    assert changed_logits(model, random_ids(model, 1, 32), 0) == list(range(32))


# ---- assert_causal -----------------------------------------------------------------------------------------------


class LooksABlockAhead(ScaledDotProductAttention):
    """Sees blocks of four whole, and the next one too: as the windowed attention of an ancestor did."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None = None, k_pos: Tensor | None = None
    ) -> Tensor:
        block = torch.arange(q.shape[2]) // 4
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=block[:, None] + 1 >= block)


def leaky(reader: int, read: int, in_layer: int = 0, gate: float | None = None) -> type[ScaledDotProductAttention]:
    """A mechanism that is right but for one position, which adds the value of a later one."""

    class Leaky(ScaledDotProductAttention):
        def __init__(self, config: GPT2Config, layer: int) -> None:
            super().__init__(config, layer)
            self.leaks = layer == in_layer
            if gate is not None:
                self.gate = nn.Parameter(torch.tensor(gate))

        def forward(
            self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None = None, k_pos: Tensor | None = None
        ) -> Tensor:
            y = super().forward(q, k, v, q_pos, k_pos).clone()
            if self.leaks and q.shape[2] > read:
                y[:, :, reader] += v[:, :, read] * (self.gate if gate is not None else 1)
            return y

    return Leaky


def tiny(
    T: int = 10, layers: int = 1, attention: type[ScaledDotProductAttention] | None = None, **switches: object
) -> GPT2:
    return GPT2(7, T, 8, 2, 12, layers, attention=attention, seed=0, **switches)


def leaks_of(model: GPT2, positions: list[int] | None = None) -> list[tuple[int, int]]:
    with pytest.raises(CausalityError) as raised:
        assert_causal(model, positions)
    return raised.value.leaks


def test_a_mechanism_that_looks_a_block_ahead_is_caught_at_every_position() -> None:
    expected = [(max(0, (j // 4 - 1) * 4), j) for j in range(1, 10)]
    model = tiny(attention=LooksABlockAhead)
    assert leaks_of(model) == expected
    with pytest.raises(CausalityError, match=r"reads the future: position 0 reads 1, 0 reads 2, .* \(and 4 more\)"):
        assert_causal(model)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("reader", [0, 8])
def test_a_leak_at_the_last_position_alone_is_caught(reader: int, layers: int) -> None:
    model = tiny(10, layers, leaky(reader, 9))
    assert leaks_of(model) == [(reader, 9)]
    with pytest.raises(InputError, match=rf"position {reader} reads 9, of 9 positions"):
        assert_causal(model)


@torch.no_grad()
def test_a_leak_behind_an_output_projection_that_is_zero_is_caught() -> None:
    model = tiny(attention=leaky(4, 5))
    model.blocks[0].attention.output.weight.zero_()
    assert min(changed_logits(model, random_ids(model, 1, 10), 5)) == 5, "the weights as they are hide the leak"
    assert leaks_of(model) == [(4, 5)]


def test_a_leak_behind_a_gate_that_is_closed_at_the_start_is_caught() -> None:
    model = tiny(attention=leaky(4, 5, gate=0.0))
    assert min(changed_logits(model.double(), random_ids(model, 1, 10), 5)) == 5, "the closed gate hides the leak"
    assert leaks_of(model) == [(4, 5)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 18), st.integers(1, 19), st.integers(0, 2), st.booleans())
def test_a_single_leak_anywhere_is_named_exactly(reader: int, ahead: int, layer: int, tied: bool) -> None:
    read = min(reader + ahead, 19)
    model = tiny(20, 3, leaky(reader, read, in_layer=layer), tie_embeddings=tied)
    # In the first layer a value is that of its token; further up it holds all the tokens before it, too.
    expected = [(reader, read)] if layer == 0 else [(reader, j) for j in range(reader + 1, read + 1)]
    assert leaks_of(model) == expected


def test_only_the_positions_that_were_asked_for_are_probed() -> None:
    model = tiny(attention=leaky(2, 9))
    assert_causal(model, positions=[0, 3, 8])
    assert leaks_of(model, [0, 9]) == [(2, 9)]


def test_a_context_longer_than_one_batch_of_probes_is_probed_to_its_end() -> None:
    assert leaks_of(tiny(150, 1, leaky(148, 149))) == [(148, 149)]
    assert leaks_of(tiny(150, 1, leaky(0, 149))) == [(0, 149)]


@thorough
@given(configs(), st.integers(0, 99))
def test_no_built_in_model_is_accused(config: GPT2Config, seed: int) -> None:
    assert_causal(GPT2.from_config(config), seed=seed)


@pytest.mark.parametrize("window", [None, 3])
def test_alibi_is_not_accused(window: int | None) -> None:
    assert_causal(tiny(12, 2, ALiBi, position="none", window=window))


def test_a_windowed_model_with_a_long_context_is_not_accused() -> None:
    assert_causal(tiny(280, 2, window=20, position="rope"), positions=[1, 19, 20, 21, 140, 279])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attention", [None, LooksABlockAhead])
def test_the_model_and_the_random_numbers_are_left_as_they_were(
    training: bool, attention: type[ScaledDotProductAttention] | None
) -> None:
    model = tiny(attention=attention, dropout=0.1).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    identity = [id(parameter) for parameter in model.parameters()]
    rng = torch.get_rng_state()
    try:
        assert_causal(model)
    except CausalityError:
        assert attention is LooksABlockAhead
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training == training
    assert [id(parameter) for parameter in model.parameters()] == identity
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    after = model.state_dict()
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_dropout_does_not_look_like_a_leak() -> None:
    assert_causal(tiny(dropout=0.5).train())


def test_a_context_of_one_token_has_nothing_to_leak() -> None:
    assert_causal(tiny(1, 1, LooksABlockAhead))


def test_a_model_without_a_vocabulary_is_told_so() -> None:
    with pytest.raises(InputError, match="vocabulary"):
        assert_causal(GPT2(0, 10, 8, 2, 12, 1))


def test_the_positions_probed_before_training_are_all_of_a_short_context_and_both_ends_of_a_long_one() -> None:
    assert positions_to_probe(64) == list(range(64))
    probed = positions_to_probe(512)
    assert probed[:16] == list(range(16))
    assert probed[-16:] == list(range(496, 512))
    assert len(probed) <= 64
    assert max(b - a for a, b in itertools.pairwise(probed)) < 25


@given(st.integers(512, 10**6))
def test_of_a_longer_context_so_few_positions_are_probed_that_it_takes_no_longer(length: int) -> None:
    probed = positions_to_probe(length)
    assert len(probed) * length**2 <= 64 * 512**2 or len(probed) <= 8
    assert {0, 1, length - 2, length - 1} <= {*probed}
    assert max(b - a for a, b in itertools.pairwise(probed)) <= length / 2.9


def faint(share: float) -> type[ScaledDotProductAttention]:
    """A mechanism that adds a little of the mean over all values, later ones, too."""

    class Faint(ScaledDotProductAttention):
        def forward(
            self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None = None, k_pos: Tensor | None = None
        ) -> Tensor:
            return super().forward(q, k, v, q_pos, k_pos) + share * v.mean(2, keepdim=True)

    return Faint


@pytest.mark.parametrize("share", [1e-3, 1e-5])
def test_a_faint_leak_is_caught_too(share: float) -> None:
    assert len(leaks_of(tiny(64, 2, faint(share)), positions=[1, 32, 63])) == 3


# ---- assert_cached -----------------------------------------------------------------------------------------------


class CountsItself(ScaledDotProductAttention):
    """Adds a bias by distance, as ALiBi does, but counts positions itself: right in training, wrong with a cache."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None = None, k_pos: Tensor | None = None
    ) -> Tensor:
        queries, keys = torch.arange(q.shape[2]), torch.arange(k.shape[2])
        distance = (queries[:, None] - keys).to(q)
        bias = (-0.5 * distance).masked_fill(distance < 0, float("-inf"))
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)


class InsistsOnFloat32(ALiBi):
    """Cannot compute in float64."""

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return (torch.eye(2) @ super().bias(q_pos, k_pos).new_zeros(2, 1)).sum() + super().bias(q_pos, k_pos)


class TakesKeysInOrder(ALiBi):
    """Takes the keys of a single query for the latest ones, in order, which they are until the ring begins anew."""

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        if q_pos.shape[1] < k_pos.shape[1]:
            k_pos = q_pos[:, -1:] - torch.arange(k_pos.shape[1] - 1, -1, -1)
        return super().bias(q_pos, k_pos)


def test_a_mechanism_that_counts_positions_itself_is_told_so_before_it_is_trained() -> None:
    model = tiny(12, 2, CountsItself, position="none")
    assert_causal(model)  # which it passes
    with pytest.raises(CacheError, match=r"read token by token, position \d has logits that differ .* q_pos and k_pos"):
        assert_cached(model)


def test_keys_that_are_taken_to_be_in_order_are_found_out_beyond_the_widest_window() -> None:
    model = tiny(64, 1, TakesKeysInOrder, position="none", window=40)
    assert_causal(model)
    with pytest.raises(CacheError, match=r"read in chunks, position 4\d") as raised:
        assert_cached(model)
    assert raised.value.position >= 40


@thorough
@given(configs(), st.integers(0, 99))
def test_no_built_in_model_is_accused_of_writing_otherwise(config: GPT2Config, seed: int) -> None:
    assert_cached(GPT2.from_config(config), seed=seed)


@pytest.mark.parametrize("window", [None, 3, 11])
def test_alibi_writes_as_it_learns(window: int | None) -> None:
    assert_cached(tiny(64, 2, ALiBi, position="none", window=window))


def test_a_mechanism_that_knows_float32_alone_is_looked_at_in_that() -> None:
    model = tiny(12, 2, InsistsOnFloat32, position="none")
    with pytest.raises(RuntimeError):
        model.double()(torch.zeros(1, 4, dtype=torch.int64))
    assert_causal(model)
    assert_cached(model)


# What else is tried before a training


def test_parameters_without_a_gradient_are_named_and_the_model_is_left_as_it_is() -> None:
    model = GPT2(11, 16, 16, 4, 20, 2, attention=Idle, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert try_to_learn(model) == [
        f"blocks.{layer}.attention.mechanism.{name}" for layer in (0, 1) for name in ("left_over", "matrix")
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    for mechanism in (None, SharedDistances, Counting, ALiBi):
        assert try_to_learn(GPT2(11, 16, 16, 4, 20, 2, position="none", attention=mechanism)) == []


class Growing(GroupQueryAttention):
    """Makes a buffer when it is first used."""

    def forward(self, *arguments: Tensor) -> Tensor:
        self.register_buffer("seen", torch.zeros(arguments[0].shape[2]))
        return super().forward(*arguments)


class Overlapping(GroupQueryAttention):
    """Two buffers that are views of the same memory."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        table = torch.arange(9.0)
        self.register_buffer("past", table[:5])
        self.register_buffer("future", table[4:])


@pytest.mark.parametrize(
    ("mechanism", "words"),
    [
        (Growing, r"blocks.0.attention.mechanism.seen gets its shape only while"),
        (Overlapping, "cannot be saved: .*past"),
    ],
)
def test_what_no_checkpoint_could_hold_is_refused_before_the_training(mechanism: type, words: str) -> None:
    with pytest.raises(InputError, match=words) as found:
        try_to_learn(GPT2(11, 16, 16, 4, 20, 2, attention=mechanism))
    assert "\n" not in str(found.value)
