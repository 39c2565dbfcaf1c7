"""What a comparison measures, against dense references and by changing tokens."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from gpt2lab.comparison.measure import SPEEDS, attention_by_distance, measure, measure_speed
from gpt2lab.config import GPT2Config
from gpt2lab.data import CharTokenizer, TokenDataset
from gpt2lab.evaluation import evaluate
from gpt2lab.model import GPT2, ScaledDotProductAttention
from gpt2lab.training import Trainer, TrainerConfig
from tests.model.reference import dense_attention, randomised

TEXT = "to be or not to be, that is the question; whether it is nobler in the mind to suffer\n" * 30
TOKENIZER = CharTokenizer(TEXT)


def model_of(context: int = 8, **switches: object) -> GPT2:
    return randomised(GPT2(TOKENIZER.vocab_size, context, 16, 4, 32, 2, **switches))


@given(
    num_kv_heads=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([None, 1, 3, (2, None)]),
    position=st.sampled_from(["learned", "rope", "none"]),
)
def test_attention_by_distance_is_that_of_a_dense_reference(
    num_kv_heads: int, window: int | None, position: str
) -> None:
    model = model_of(num_kv_heads=num_kv_heads, window=window, position=position)
    ids = torch.randint(TOKENIZER.vocab_size, (3, 8), generator=torch.Generator().manual_seed(0))
    asked: list[tuple[Tensor, Tensor, int | None]] = []
    for block in model.blocks:
        block.attention.mechanism.register_forward_hook(
            lambda mechanism, inputs, _: asked.append((inputs[0], inputs[1], mechanism.window))
        )
    shares = attention_by_distance(model, ids)
    for layer, (q, k, width) in enumerate(asked):
        identity = torch.eye(8, dtype=q.dtype).expand(3, k.shape[1], 8, 8)
        weights = dense_attention(q, k, identity, window=width)
        for d in range(8):
            expected = weights[:, :, torch.arange(d, 8), torch.arange(8 - d)].mean()
            assert shares[layer, d] == pytest.approx(expected.item(), abs=1e-5)


def test_attention_by_distance_holds_for_the_band_of_a_long_text_and_leaves_nothing_behind() -> None:
    model = model_of(512, position="rope", window=40)
    shares = attention_by_distance(model, torch.randint(TOKENIZER.vocab_size, (1, 512)))
    assert torch.all(shares[:, 40:] == 0)
    assert torch.all(shares[:, :40] > 0)
    assert not any("forward" in vars(block.attention.mechanism) for block in model.blocks)


@pytest.mark.parametrize("window", [None, 1, 3, (2, 5), (3, None)])
def test_reach_is_how_many_tokens_can_change_the_last_prediction(window: int | None) -> None:
    model = model_of(12, position="rope", window=window)
    tokens = TOKENIZER.encode(TEXT)
    found = measure(model, TOKENIZER, tokens).reach
    ids = torch.from_numpy(tokens[:12])[None]
    moved = []
    for place in range(12):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % TOKENIZER.vocab_size
        moved.append(not torch.equal(model(changed)[0, -1], model(ids)[0, -1]))
    assert moved == [place >= 12 - found for place in range(12)]


def test_a_model_is_measured_at_the_contexts_that_its_positions_allow() -> None:
    tokens = TOKENIZER.encode(TEXT)
    learned, rope = model_of(8), model_of(8, position="rope", window=3)
    assert [context for context, _ in measure(learned, TOKENIZER, tokens).loss_by_context] == [4, 8]
    found = measure(rope, TOKENIZER, tokens)
    assert [context for context, _ in found.loss_by_context] == [4, 8, 16, 32, 128]
    for context, loss in found.loss_by_context:
        assert loss == pytest.approx(evaluate(rope, tokens, TOKENIZER, context).loss, abs=1e-6)
    assert found.test == evaluate(rope, tokens, TOKENIZER)
    assert found.parameters == sum(p.numel() for p in rope.parameters())
    assert found.cache_bytes == 2 * 2 * 3 * 16 * 8  # layers, keys and values, window, width, float64
    assert 200 < len(found.sample) <= 301  # <|endoftext|> is left out
    assert measure(rope, TOKENIZER, tokens).sample == found.sample  # the noise is the seed's


class Doubled(ScaledDotProductAttention):
    """Weighs its values with numbers that it has for each dimension of a head."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.scale = nn.Parameter(torch.full((config.head_dim,), 2.0))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *positions: Tensor | None) -> Tensor:
        return super().forward(q, k, self.scale * v, *positions)


def test_a_mechanism_whose_weights_cannot_be_read_off_is_measured_in_all_else() -> None:
    model = randomised(GPT2(TOKENIZER.vocab_size, 8, 16, 4, 32, 2, attention=Doubled))
    found = measure(model, TOKENIZER, TOKENIZER.encode(TEXT))
    assert found.attention_by_distance is None
    assert found.test == evaluate(model, TOKENIZER.encode(TEXT), TOKENIZER)


def test_speeds_are_of_every_model_in_every_round_and_the_models_are_used_in_turn() -> None:
    tokens = TOKENIZER.encode(TEXT).astype(np.uint16)
    order: list[str] = []
    trainers = {}
    for name in ("original", "rope"):
        model = GPT2(TOKENIZER.vocab_size, 8, 16, 4, 32, 1, position="rope" if name == "rope" else "learned")
        config = TrainerConfig(max_steps=10, batch_size=2, device="cpu")
        trainers[name] = Trainer(
            model, TokenDataset(tokens, 8, TOKENIZER.vocab_size), None, config, console=Console(quiet=True)
        )
        model.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    with pytest.warns(UserWarning, match="oldest half"):  # the learned positions end
        found = measure_speed(trainers, rounds=3)
    times = {name: dataclasses.asdict(seconds) for name, seconds in found.items()}
    assert {name: set(each) for name, each in times.items()} == {name: set(SPEEDS) for name in trainers}
    assert all(
        len(each) == 3 and min(each) > 0 and math.isfinite(sum(each)) for t in times.values() for each in t.values()
    )
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == ["original", "rope", "original", "rope", "original"]  # each round begins with another one
    assert order.count("rope") > 3 * 33
