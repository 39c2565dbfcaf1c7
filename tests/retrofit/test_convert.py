"""Weights of a trained model in one with other switches."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab import GPT2, InputError
from gpt2lab.retrofit.convert import converted, nearest_turn
from tests.model.reference import ALiBi, random_ids, randomised

V, CONTEXT, C, H, F, LAYERS = 23, 12, 24, 4, 40, 2


def model_with(**switches: Any) -> GPT2:
    return randomised(GPT2(V, CONTEXT, C, H, F, LAYERS, **switches)).eval()


def assert_same(one: GPT2, other: GPT2, tolerance: float = 1e-5) -> None:
    ids = random_ids(one, 2, CONTEXT)
    with torch.no_grad():
        torch.testing.assert_close(one(ids), other(ids), rtol=0, atol=tolerance)


def repeated(shared: GPT2) -> GPT2:
    """The same function with a key/value head for each query head, of a model with two."""
    whole = GPT2(V, CONTEXT, C, H, F, LAYERS, bias=shared.config.bias).double().eval()
    weights = shared.weights()
    for name in [name for name in weights if ".query_key_value." in name]:
        q, k, v = weights[name].split([C, C // 2, C // 2])
        k, v = (x.view(2, 6, -1).repeat_interleave(2, 0).reshape(C, *x.shape[1:]) for x in (k, v))
        weights[name] = torch.cat((q, k, v))
    whole.load_state_dict(weights)
    return whole


@pytest.mark.parametrize("heads", ["mean", "first", "aligned"])
@pytest.mark.parametrize("bias", [True, False])
def test_heads_that_are_alike_already_are_shared_without_loss(heads: Any, bias: bool) -> None:
    """What shared heads can say is said: repeated for each query head and shared again, they are the same model."""
    shared = model_with(num_kv_heads=2, bias=bias)
    whole = repeated(shared)
    assert_same(whole, shared)
    assert_same(converted(whole, num_kv_heads=2, heads=heads), shared)


def turned(model: GPT2, seed: int) -> GPT2:
    """The same function, with every key/value head in other coordinates."""
    weights, D = model.weights(), C // H
    generator = torch.Generator().manual_seed(seed)
    for layer in range(LAYERS):
        for head in range(H):
            turns = [torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0] for _ in range(2)]
            for part in ("weight", "bias"):
                rows = weights[f"blocks.{layer}.attention.query_key_value.{part}"].view(3, H, D, -1)
                rows[0, head], rows[1, head] = turns[0] @ rows[0, head], turns[0] @ rows[1, head]
                rows[2, head] = turns[1] @ rows[2, head]
            columns = weights[f"blocks.{layer}.attention.output.weight"].view(C, H, D)
            columns[:, head] = columns[:, head] @ turns[1].T
    return model


def test_aligned_heads_find_each_other_in_other_coordinates() -> None:
    shared = model_with(num_kv_heads=2)
    elsewhere = turned(repeated(shared), seed=1)
    assert_same(elsewhere, shared, 1e-4)
    assert_same(converted(elsewhere, num_kv_heads=2, heads="aligned"), shared, 1e-4)
    with pytest.raises(AssertionError):
        assert_same(converted(elsewhere, num_kv_heads=2, heads="mean"), shared, 0.1)


@settings(max_examples=20)
@given(
    old=st.sampled_from([1, 2, 4]),
    new=st.sampled_from([1, 2, 4]),
    heads=st.sampled_from(["mean", "first", "aligned"]),
    position=st.sampled_from(["learned", "rope", "none"]),
)
def test_every_conversion_is_a_model_that_computes_or_is_refused(old: int, new: int, heads: Any, position: Any) -> None:
    model = model_with(num_kv_heads=old, position=position)
    if old % new:
        with pytest.raises(InputError, match=f"has {old} key/value heads, which {new} do not divide"):
            converted(model, num_kv_heads=new, heads=heads, window=3)
        return
    other = converted(model, num_kv_heads=new, heads=heads, window=3)
    assert (other.config.kv_heads, other.config.window) == (new, 3)
    assert other(random_ids(other, 2, CONTEXT)).isfinite().all()
    for name, tensor in other.weights().items():
        if ".query_key_value." not in name and ".attention.output." not in name:
            assert torch.equal(tensor, model.weights()[name]), name


def test_the_model_that_is_converted_stays_as_it_was() -> None:
    model = model_with()
    before = {name: tensor.clone() for name, tensor in model.weights().items()}
    other = converted(model, num_kv_heads=2, position="rope", window=3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.weights().items())


def test_a_window_and_no_window_are_told_from_a_window_that_is_not_given() -> None:
    model = model_with(position="rope", window=4)
    assert converted(model, num_kv_heads=2).config.window == 4
    assert converted(model, window=None).config.window is None
    assert converted(model, window=(4, None)).config.window == (4, None)


def test_what_cannot_be_converted_is_told() -> None:
    with pytest.raises(InputError, match="nothing is to be changed"):
        converted(model_with(), position="learned")
    with pytest.raises(InputError, match="learned positions cannot be made of others"):
        converted(model_with(position="rope"), position="learned")
    with pytest.raises(InputError, match="the attention ALiBi is your own"):
        converted(model_with(attention=ALiBi, position="none"), window=3)


def test_the_nearest_turn_is_orthogonal_and_no_other_is_nearer() -> None:
    x, to = torch.randn(2, 6, 25, generator=torch.Generator().manual_seed(0)).unbind()
    turn = nearest_turn(x, to)
    torch.testing.assert_close(turn @ turn.T, torch.eye(6))
    distance = (turn @ x - to).norm()
    for seed in range(50):
        other = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)))[0]
        assert distance <= (other @ x - to).norm()
