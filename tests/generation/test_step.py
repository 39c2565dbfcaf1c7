"""The native step computes what the model does, for every switch, and draws what Sampling draws."""

import copy
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.generation import Engine, Sampling, generate
from gpt2lab.generation.step import EagerStep, NativeStep, Text, unable
from gpt2lab.generation.weights import rounded
from gpt2lab.hardware import torch_threads
from gpt2lab.model import GPT2, KeyValueCache, SlidingWindowAttention
from gpt2lab.native.library import library
from gpt2lab.runs.settings import Weights
from tests.generation.test_engine import WAYS, finish
from tests.generation.test_generate import SIZES, texts_and_models
from tests.model.reference import ALiBi, dense_logits, random_ids, randomised

pytestmark = pytest.mark.filterwarnings("ignore:the context of")


def native_step(model: GPT2, cache: KeyValueCache, weights: Weights = "float32") -> NativeStep:
    return NativeStep(model, cache, library("writing").wait(), weights)


def read(model: GPT2, step: EagerStep, text: Text) -> None:
    """Read a text's prompt, whose first token is drawn."""
    with torch.no_grad():
        (((id_, *_),),) = step.write([text])
    text.write(id_)


@settings(max_examples=60)
@given(texts_and_models(), st.integers(1, 30))
def test_logits_are_those_of_the_textbook_for_every_switch(text: tuple[GPT2, Tensor], n: int) -> None:
    """Prompts may be longer than the rings, which are gone round while it writes; the oracle computes in float64."""
    wide, ids = text
    model = copy.deepcopy(wide).float()
    context = model.config.max_seq_len
    if not model.endless:
        ids = ids[:context]
    cache = KeyValueCache(model, 1)
    written = Text(0, 0, ids, Sampling(seed=1), n + 1, [], model)
    native = native_step(model, cache)
    if len(ids) > 1:
        read(model, EagerStep(model, cache), written)
    history = ids if len(ids) == 1 else torch.cat((ids, torch.tensor(written.unread)))
    if not model.endless:
        n = min(n, context + 1 - len(history))
    for _ in range(n):
        (((id_, logprob, _),),) = native.write([written], 1)
        expected = dense_logits(wide, history)[-1]
        torch.testing.assert_close(native.logits[0].double(), expected, atol=1e-4, rtol=0)
        assert logprob == pytest.approx(expected.log_softmax(-1)[id_].item(), abs=1e-4)
        written.write(id_)
        history = torch.cat((history, torch.tensor([id_])))


@settings(max_examples=60)
@given(texts_and_models(), st.lists(WAYS, min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 99))
def test_tokens_are_those_that_sampling_draws_from_the_same_logits(
    text: tuple[GPT2, Tensor], ways: list[dict[str, Any]], n: int, seed: int
) -> None:
    model = text[0].float()
    n = n if model.endless else min(n, model.config.max_seq_len)
    texts = [
        Text(row, row, random_ids(model, 1, seed=row), Sampling(**way, seed=seed + row), n, [], model)
        for row, way in enumerate(ways)
    ]
    noise = [Sampling(seed=seed + row).generators(1) for row in range(len(ways))]
    native = native_step(model, KeyValueCache(model, len(ways)))
    for _ in range(n):
        seen = [None if each.seen is None else each.seen[None].clone() for each in texts]
        drawn = native.write(texts, 1)
        for row, each in enumerate(texts):
            expected = each.way.choose(native.logits[row : row + 1], noise[row], seen[row])
            ((id_, *_),) = drawn[row]
            assert id_ == expected.item()
            each.write(id_)


@settings(max_examples=20)
@given(texts_and_models(), st.integers(2, 9), st.integers(1, 3), st.integers(2, 24))
def test_a_text_is_the_same_to_the_last_bit_whatever_is_beside_it_and_on_any_number_of_threads(
    text: tuple[GPT2, Tensor], rows: int, threads: int, n: int
) -> None:
    model = text[0].float()
    n = n if model.endless else min(n, model.config.max_seq_len)  # beyond it, the model itself reads what is left

    def written(seeds: Sequence[int], most: int) -> dict[int, list[tuple[int, float]]]:
        engine = Engine(model, len(seeds), step="native")
        for seed in seeds:
            engine.add([seed % model.config.vocab_size], Sampling(seed=seed), max_tokens=n)
        tokens = [token for _ in iter(lambda: bool(engine.rows), False) for token in engine.step(most)]
        return {seed: [(t.id, t.logprob) for t in tokens if t.row == row] for row, seed in enumerate(seeds)}

    with torch_threads(threads):
        together = written(range(rows), n)
    assert {seed: written([seed], 1)[seed] for seed in range(rows)} == together


@settings(max_examples=40)
@given(texts_and_models(), WAYS, st.integers(1, 40), st.sampled_from([1, 3, 1000]))
def test_an_engine_writes_the_same_text_with_either_step(
    text: tuple[GPT2, Tensor], way: dict[str, Any], n: int, most: int
) -> None:
    """Past the context, too. What is drawn could differ where two tokens are as likely, which does not happen here."""
    wide, ids = text
    native = Engine(copy.deepcopy(wide).float(), 1, step="native")
    eager = Engine(wide, 1, step="eager")
    for engine in (native, eager):
        engine.add(ids, Sampling(**way, seed=3), max_tokens=n)
    got = [token for _ in iter(lambda: bool(native.rows), False) for token in native.step(most)]
    expected = finish(eager)
    assert [token.id for token in got] == [token.id for token in expected]
    assert [t.logprob for t in got] == pytest.approx([t.logprob for t in expected], abs=1e-4)


@settings(max_examples=30)
@given(texts_and_models(), st.sampled_from(["bfloat16", "int8"]), st.integers(1, 3), st.integers(1, 8))
def test_stored_in_fewer_bits_the_model_is_the_rounded_one(
    text: tuple[GPT2, Tensor], weights: Weights, rows: int, n: int
) -> None:
    model = text[0].float()
    n = n if model.endless else min(n, model.config.max_seq_len)
    texts = [Text(r, r, random_ids(model, 1, seed=r), Sampling(seed=r), n + 1, [], model) for r in range(rows)]
    histories = [each.unread.copy() for each in texts]
    native, expected = native_step(model, KeyValueCache(model, rows), weights), rounded(model, weights).double()
    for _ in range(n):
        drawn = native.write(texts, 1)
        for row, each in enumerate(texts):
            torch.testing.assert_close(
                native.logits[row].double(), dense_logits(expected, torch.tensor(histories[row]))[-1], atol=1e-4, rtol=0
            )
            each.write(drawn[row][0][0])
            histories[row] += each.unread


def test_rounding_to_int8_moves_a_weight_by_at_most_half_a_step() -> None:
    model = randomised(GPT2(*SIZES), dtype=torch.float32)
    before, after = model.blocks[0].attention.output.weight, rounded(model, "int8").blocks[0].attention.output.weight
    steps = before.abs().amax(1, keepdim=True) / 127
    assert ((after - before).abs() <= steps * 0.501).all()
    assert (after != before).any()
    assert torch.equal(rounded(model, "float32").output_weight, model.output_weight)


@pytest.mark.parametrize("name", ["embeddings.token.weight", "blocks.1.feed_forward.expand.bias", "final_norm.weight"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("way", [{"temperature": 0}, {"top_p": 0.9}])
def test_logits_that_are_not_numbers_are_told(name: str, weights: Weights, way: dict[str, Any]) -> None:
    model = randomised(GPT2(*SIZES), dtype=torch.float32)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = float("nan")
    engine = Engine(model, 1, step="native", weights=weights)
    engine.add([0], Sampling(**way), max_tokens=3)
    with pytest.raises(InputError, match="the model's logits are not numbers"):
        engine.step()
    assert engine.rows == []


def test_a_row_that_ended_in_numbers_that_are_none_is_clean_for_the_next_text() -> None:
    model = randomised(GPT2(*SIZES), dtype=torch.float32)
    sound = copy.deepcopy(model.state_dict())
    engine = Engine(model, 2, step="native")
    with torch.no_grad():
        model.blocks[0].attention.query_key_value.bias.fill_(math.nan)
    engine.add([0], max_tokens=3)
    engine.add([1], max_tokens=3)
    with pytest.raises(InputError):
        engine.step()
    model.load_state_dict(sound)
    expected = Engine(model, 2, step="eager")
    for each in (engine, expected):
        each.add([1, 2, 3, 4, 5], Sampling(seed=1), max_tokens=4)
        each.add([6, 7], Sampling(seed=2), max_tokens=4)
    assert [token.id for token in finish(engine)] == [token.id for token in finish(expected)]


def small(**switches: Any) -> GPT2:
    return randomised(GPT2(*SIZES, position="rope", window=4, **switches), dtype=torch.float32)


def test_a_change_of_the_weights_is_seen_by_the_next_step() -> None:
    model, other = small(), randomised(GPT2(*SIZES, position="rope", window=4), seed=9, dtype=torch.float32)
    engine, same = Engine(model, 1, step="native"), Engine(model, 1, step="eager")
    for each in (engine, same):
        each.add([1, 2], Sampling(seed=2), max_tokens=20)
        each.step()
        each.step()
    model.load_state_dict(other.state_dict())
    assert [token.id for token in finish(engine)] == [token.id for token in finish(same)]


def test_whatever_is_not_built_in_is_left_to_the_eager_step() -> None:
    calls: list[int] = []
    hooked = small()
    assert unable(hooked) is None
    hooked.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    replaced, half, own = small(), small().bfloat16(), randomised(GPT2(*SIZES, attention=ALiBi), dtype=torch.float32)
    replaced.blocks[0].attention.output = torch.nn.Sequential(replaced.blocks[0].attention.output)  # type: ignore
    for model, reason in (
        (hooked, "blocks.0 has a hook"),
        (replaced, "blocks.0.attention.output is a Sequential"),
        (half, "in bfloat16"),
        (own, "the attention ALiBi is not a built-in one"),
    ):
        with pytest.raises(InputError, match=f"the native step cannot be used: .*{reason}"):
            Engine(model, 1, step="native")
        with pytest.raises(InputError, match=f"the weights cannot be stored in int8: .*{reason}"):
            Engine(model, 1, weights="int8")
        ids = torch.tensor([[1, 2]])
        assert torch.equal(generate(model, ids, 6, seed=1), generate(model, ids, 6, step="eager", seed=1))
    assert len(calls) == 12  # one for each step of both


def test_weights_are_not_for_the_eager_step() -> None:
    with pytest.raises(InputError, match="weights='int8' are the native step's"):
        Engine(small(), 1, step="eager", weights="int8")


def test_under_autocast_the_eager_step_writes() -> None:
    model = small()
    engine, eager = Engine(model, 1, step="native"), Engine(model, 1, step="eager")
    for each in (engine, eager):
        each.add([1, 2], Sampling(seed=2), max_tokens=9)
    with torch.autocast("cpu", torch.bfloat16):
        assert finish(engine) == finish(eager)


def test_a_new_switch_has_to_be_known_to_the_native_step() -> None:
    """Whoever adds one teaches it to writing.cpp and fused.py, or lets foreign() refuse it, and adds its name here."""
    sizes = {"vocab_size", "max_seq_len", "embed_dim", "num_heads", "ff_hidden_dim", "num_layers"}
    position = {"position", "rope_theta", "rope_fraction"}
    attention = {"num_kv_heads", "window", "qk_norm", "sinks"}
    others = {"tie_embeddings", "bias", "dropout", "layer_norm_epsilon", "activation", "attention"}
    assert {field.name for field in fields(GPT2Config)} == sizes | position | attention | others


def test_a_mechanism_that_changes_something_else_is_not_taken_for_a_built_in_one() -> None:
    class Capped(SlidingWindowAttention):
        pass

    model = small()
    model.blocks[1].attention.mechanism.__class__ = Capped
    assert unable(model) == "blocks.1.attention.mechanism is a Capped, which only the eager step runs"
