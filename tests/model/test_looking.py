"""What a token sees is told as the textbook computes it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab import GPT2, InputError, ScaledDotProductAttention, attention_weights
from gpt2lab.config import GPT2Config
from tests.model.reference import ALiBi, alibi_bias, configs, dense_attention, dense_logits, random_ids, randomised


def mixed_by(model: GPT2, layer: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of a layer, (K, T, D), and what its last token read of them, (H, D)."""
    seen = {}

    def note(_: object, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen["values"], seen["read"] = inputs[2][0], output[0, :, -1]

    handle = model.blocks[layer].attention.mechanism.register_forward_hook(note)
    with torch.no_grad():
        model(ids[None])
    handle.remove()
    return seen["values"], seen["read"]


@given(configs(), st.integers(1, 40))
def test_the_weights_mix_the_values_to_what_every_head_read(config: GPT2Config, length: int) -> None:
    model = randomised(GPT2.from_config(config))
    ids = random_ids(model, min(length, config.max_seq_len))
    found = attention_weights(model, ids)
    for layer, weights in enumerate(found):
        n = min(len(ids), config.layer_window(layer) or len(ids))
        assert weights.shape == (config.num_heads, n)
        assert (weights >= 0).all()
        assert (weights.sum(1) < 1 if config.sinks else (weights.sum(1) - 1).abs() < 1e-9).all()
        values, read = mixed_by(model, layer, ids)
        shared = values.repeat_interleave(config.num_heads // len(values), dim=0)[:, -n:]  # (H, n, D)
        torch.testing.assert_close((weights[:, None] @ shared)[:, 0], read, rtol=0, atol=1e-9)


def test_an_attention_of_your_own_tells_its_weights_and_nothing_of_the_model_is_changed() -> None:
    model = randomised(GPT2(11, 12, 16, 4, 20, 1, attention=ALiBi, position="none"))
    ids = random_ids(model, 9)
    (weights,) = attention_weights(model, ids)
    with torch.no_grad():
        x = model.blocks[0].attention_norm(model.embeddings.token(ids[None]))
        q, k, _ = model.blocks[0].attention.query_key_value(x).view(1, 9, 12, 4).transpose(1, 2).split(4, dim=1)
        right = dense_attention(q, k, torch.eye(9, dtype=q.dtype).expand(1, 4, 9, 9), bias=alibi_bias(4, 9))
        torch.testing.assert_close(weights, right[0, :, -1], rtol=0, atol=1e-9)
        torch.testing.assert_close(model(ids[None])[0], dense_logits(model, ids, alibi_bias(4, 9)))
    assert "forward" not in vars(model.blocks[0].attention.mechanism)


def test_a_text_without_a_token_and_one_that_is_too_long_are_refused() -> None:
    model = randomised(GPT2(11, 12, 16, 4, 20, 1))
    with pytest.raises(InputError, match="one token at least"):
        attention_weights(model, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="has learned only 12 positions"):
        attention_weights(model, random_ids(model, 13))
    assert "forward" not in vars(model.blocks[0].attention.mechanism)


class Doubled(ScaledDotProductAttention):
    """Takes no values that are wider than a head."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *at: torch.Tensor | None) -> torch.Tensor:
        return super().forward(q, k, v * torch.full((4,), 2.0, dtype=v.dtype), *at)


def test_an_attention_of_your_own_that_does_not_tell_its_weights_is_named() -> None:
    model = randomised(GPT2(11, 12, 16, 4, 20, 1, attention=Doubled))
    with pytest.raises(InputError, match=r"Doubled@.* does not tell its weights"):
        attention_weights(model, random_ids(model, 9))
    assert "forward" not in vars(model.blocks[0].attention.mechanism)
