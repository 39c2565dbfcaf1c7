"""Mechanisms, built-in and a user's own, and the layers that they sit in."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model import (
    GPT2,
    FeedForward,
    GroupQueryAttention,
    KeyValueCache,
    MultiHeadAttention,
    ScaledDotProductAttention,
    SlidingWindowAttention,
    TransformerBlock,
)
from gpt2lab.model.attention import AttentionSinks, QueryKeyNorm, Reading
from gpt2lab.model.embeddings import rotary_tables, rotate
from tests.model.reference import ALiBi, alibi_bias, configs, dense_attention, dense_logits, random_ids, randomised

SIZES = (11, 16, 16, 4, 20, 3)


class Both(GroupQueryAttention, SlidingWindowAttention):
    """As a user would write it."""


class OwnWindow(ScaledDotProductAttention):
    """A user's class that fixes its reach by itself."""

    window = 3


class OwnSharing(ScaledDotProductAttention):
    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.num_kv_heads = 3


class Gated(ScaledDotProductAttention):
    """A mechanism with weights of its own."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.gate = nn.Parameter(torch.full((config.num_heads, 1, 1), 0.25 + layer))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor | None = None, k_pos: Tensor | None = None
    ) -> Tensor:
        return self.gate * super().forward(q, k, v, q_pos, k_pos)


@settings(max_examples=80, deadline=None)
@given(configs())
@torch.no_grad()
def test_every_combination_of_switches_is_the_dense_model(config: GPT2Config) -> None:
    model = randomised(GPT2.from_config(config))
    ids = random_ids(model, 2, config.max_seq_len)
    logits = model(ids)
    for row in range(2):
        torch.testing.assert_close(logits[row], dense_logits(model, ids[row]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
def test_a_users_alibi_is_the_dense_model_with_that_bias(num_kv_heads: int | None, window: int | None) -> None:
    model = GPT2(*SIZES, attention=ALiBi, position="none", num_kv_heads=num_kv_heads, window=window)
    ids = random_ids(randomised(model), 16)
    logits = model(ids[None])[0]
    torch.testing.assert_close(logits, dense_logits(model, ids, alibi_bias(4, 16)), rtol=0, atol=1e-9)
    assert (logits - dense_logits(model, ids)).abs().max() > 1e-3, "the bias has to matter"


@pytest.mark.parametrize(
    ("attention", "switches"),
    [
        (ScaledDotProductAttention, {}),
        (GroupQueryAttention, {"num_kv_heads": 2}),
        (GroupQueryAttention, {}),
        (SlidingWindowAttention, {"window": 5}),
        (SlidingWindowAttention, {"window": (5, None, 2)}),
        (Both, {"num_kv_heads": 1, "window": 4}),
        (Both, {}),
    ],
)
def test_a_class_that_is_given_computes_what_its_switches_alone_compute(
    attention: type[ScaledDotProductAttention], switches: dict[str, object]
) -> None:
    given, chosen = (randomised(GPT2(*SIZES, **switches, attention=a)) for a in (attention, None))
    ids = random_ids(given, 2, 16)
    assert torch.equal(given(ids), chosen(ids))


@pytest.mark.parametrize(
    ("attention", "switches", "said"),
    [
        (
            ScaledDotProductAttention,
            {"window": 4},
            "ScaledDotProductAttention has window=None in layer 0, not window=4",
        ),
        (GroupQueryAttention, {"window": 4}, "GroupQueryAttention has window=None in layer 0, not window=4"),
        (GroupQueryAttention, {"window": (None, 4)}, "has window=None in layer 1, not window=4"),
        (SlidingWindowAttention, {"num_kv_heads": 2}, "has num_kv_heads=4 in layer 0, not num_kv_heads=2"),
        (Gated, {"num_kv_heads": 1}, "Gated has num_kv_heads=4 in layer 0, not num_kv_heads=1"),
        (
            GroupQueryAttention,
            {"qk_norm": True},
            "has qk_norm=False in layer 0, not qk_norm=True as was asked for; let it inherit from QueryKeyNorm, too",
        ),
        (GroupQueryAttention, {"sinks": True}, "has sinks=False in layer 0, not sinks=True"),
        (OwnWindow, {"window": 4}, "OwnWindow has window=3 in layer 0, not window=4"),
        (OwnSharing, {}, "num_kv_heads=3 does not divide num_heads=4"),
    ],
)
def test_a_class_that_does_not_do_what_was_asked_for_is_refused(
    attention: type[ScaledDotProductAttention], switches: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as raised:
        GPT2(*SIZES, **switches, attention=attention)
    assert said in str(raised.value)


@pytest.mark.parametrize("value", ["ALiBi", ALiBi(GPT2Config(*SIZES), 0), nn.Linear, int, ALiBi.forward, 3])
def test_what_is_no_mechanism_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="has to be a class that inherits from ScaledDotProductAttention"):
        GPT2(*SIZES, attention=value)  # type: ignore[arg-type]


def test_a_class_may_have_a_window_of_its_own() -> None:
    own, asked = randomised(GPT2(*SIZES, attention=OwnWindow)), randomised(GPT2(*SIZES, window=3))
    ids = random_ids(own, 1, 16)
    assert torch.equal(own(ids), asked(ids))
    assert own.cache_bytes(16) == asked.cache_bytes(16)
    assert own.flops_per_token() == asked.flops_per_token()


def test_weights_of_a_users_mechanism_are_trained_and_keep_what_their_constructor_made() -> None:
    model = GPT2(*SIZES, attention=Gated, seed=3)
    gates = [block.attention.mechanism.gate for block in model.blocks]
    assert [gate.unique().tolist() for gate in gates] == [[0.25], [1.25], [2.25]]
    assert model.num_parameters() == GPT2(*SIZES).num_parameters() + 3 * 4
    ids = random_ids(model, 2, 16)
    model(ids, ids).backward()
    assert all(gate.grad is not None and gate.grad.abs().max() > 0 for gate in gates)


def test_a_user_may_inherit_every_built_in_change() -> None:
    class All(GroupQueryAttention, SlidingWindowAttention, QueryKeyNorm, AttentionSinks):
        """As a user would write it."""

    switches = {"num_kv_heads": 2, "window": (5, None), "qk_norm": True, "sinks": True, "position": ("rope", "none")}
    given, chosen = (randomised(GPT2(*SIZES, **switches, attention=a)) for a in (All, None))
    ids = random_ids(given, 2, 16)
    assert torch.equal(given(ids), chosen(ids))


def test_scales_begin_at_one_and_sinks_at_zero_on_the_meta_device_too() -> None:
    model = GPT2(*SIZES, qk_norm=True, sinks=True, seed=1)
    with torch.device("meta"):
        shapes = GPT2(*SIZES, qk_norm=True, sinks=True, seed=1)
    for name, value in zip(dict(model.named_parameters()), shapes.initial_weights(1), strict=True):
        assert torch.equal(model.get_parameter(name), value)
    assert not model.blocks[0].attention.mechanism.sinks.any()
    assert bool((model.blocks[0].attention.mechanism.query_norm.weight == 1).all())


class Normalised(GroupQueryAttention, SlidingWindowAttention):
    """What a user may do: see x, have parameters, change queries, keys and values on both sides of the rotation, and
    what was read."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.scale = nn.Parameter(torch.ones(config.head_dim))
        self.gate = nn.Linear(config.embed_dim, config.num_heads)
        self.shift = nn.Parameter(torch.ones(self.num_kv_heads, 1, config.head_dim))

    def before_rotation(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q / q.norm(dim=-1, keepdim=True) * self.scale, k / k.norm(dim=-1, keepdim=True), v * x[:, None, :, 1:2]

    def after_rotation(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q * 1.5, k + self.shift, v - x[:, None, :, :1]

    def after_attention(self, x: Tensor, y: Tensor) -> Tensor:
        return y * self.gate(x).sigmoid().transpose(1, 2)[..., None]


@pytest.mark.parametrize(("num_kv_heads", "window"), [(None, None), (1, 5), (2, None)])
def test_a_users_mechanism_changes_queries_keys_values_and_results(
    num_kv_heads: int | None, window: int | None
) -> None:
    T, H, K, D = 9, 4, num_kv_heads or 4, 4
    config = GPT2Config(*SIZES, position="rope", num_kv_heads=num_kv_heads, window=window)
    layer = randomised_layer(MultiHeadAttention(config, 0, Normalised))
    x = torch.randn(2, T, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tables = rotary_tables(torch.arange(T)[None], D, 10_000.0, torch.float64)
    own, qkv = layer.mechanism, layer.query_key_value(x).unflatten(-1, (-1, D)).transpose(1, 2)
    q, k, v = qkv.split((H, K, K), dim=1)
    q, k = (part / (part**2).sum(-1, keepdim=True).sqrt() for part in (q, k))
    q, k = rotate(q * own.scale, *tables) * 1.5, rotate(k, *tables) + own.shift
    y = dense_attention(q, k, v * x[:, None, :, 1:2] - x[:, None, :, :1], window=window)
    y = y.transpose(1, 2) * (1 / (1 + (-own.gate(x)).exp()))[..., None]  # (B, T, H, D)
    torch.testing.assert_close(layer(x, Reading(rotary=tables)), layer.output(y.flatten(2)), rtol=0, atol=1e-12)


def randomised_layer(layer: MultiHeadAttention) -> MultiHeadAttention:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return layer


@pytest.mark.parametrize("position", ["rope", "none"])
def test_such_a_mechanism_trains_and_is_cached(position: str) -> None:
    model = randomised(GPT2(*SIZES, position=position, attention=Normalised, num_kv_heads=2, window=5))
    ids, cache = random_ids(model, 2, 16), KeyValueCache(model)
    pieces = [model(piece, cache=cache) for piece in ids.split([7, 1, 6, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=0, atol=1e-10)
    model(ids, ids).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.blocks[0].attention.mechanism.parameters())


@pytest.mark.parametrize(("num_kv_heads", "window"), [(None, None), (1, None), (2, 3)])
def test_a_layer_of_attention_works_on_its_own(num_kv_heads: int | None, window: int | None) -> None:
    config = GPT2Config(*SIZES, num_kv_heads=num_kv_heads, window=window)
    attention = MultiHeadAttention(config, 0).double()
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = attention(x)
    K = num_kv_heads or 4
    qkv = attention.query_key_value(x).split((16, 4 * K, 4 * K), dim=-1)
    q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in qkv)
    mixed = dense_attention(q, k, v, window=window).transpose(1, 2).flatten(2)
    torch.testing.assert_close(y, attention.output(mixed), rtol=0, atol=1e-12)
    assert attention.window == window
    parameters = 16 * (16 + 8 * K) + 16 + 8 * K + 16 * 16 + 16
    assert sum(parameter.numel() for parameter in attention.parameters()) == parameters


def test_a_layer_takes_the_window_of_its_number() -> None:
    config = GPT2Config(*SIZES, window=(3, None))
    assert [MultiHeadAttention(config, layer).window for layer in range(4)] == [3, None, 3, None]


def test_a_block_works_on_its_own_with_and_without_rotation() -> None:
    config = GPT2Config(*SIZES, position="rope", num_kv_heads=2)
    block = TransformerBlock(config, 0)
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    plain, turned = block(x), block(x, Reading(rotary=rotary_tables(torch.arange(9)[None], 4, 10_000.0)))
    assert plain.shape == turned.shape == x.shape
    assert not torch.allclose(plain, turned)
    torch.testing.assert_close(plain[:, 0], turned[:, 0])  # position 0 is not turned


def test_a_block_is_two_normalised_residual_branches() -> None:
    block = TransformerBlock(GPT2Config(*SIZES), 0)
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    middle = x + block.attention(block.attention_norm(x))
    torch.testing.assert_close(block(x), middle + block.feed_forward(block.feed_forward_norm(middle)))


def test_the_feed_forward_network_treats_every_token_alone() -> None:
    network = FeedForward(GPT2Config(*SIZES))
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x)[:, 4], network(x[:, 4:5])[:, 0])


def test_dropout_of_the_residual_branches_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(GPT2Config(*SIZES, dropout=0.5), 0)
    with torch.no_grad():
        for parameter in block.feed_forward.contract.parameters():
            parameter.zero_()  # leaves the attention's branch
    x = torch.randn(64, 9, 16)
    whole = block.eval()(x) - x
    assert torch.equal(block(x) - x, whole)
    thinned = block.train()(x) - x
    kept = (thinned - 2 * whole).abs() < 1e-5
    assert bool((kept | (thinned.abs() < 1e-5)).all()), "what is kept is scaled by 1 / (1 - dropout)"
    assert abs(kept.double().mean().item() - 0.5) < 0.03
