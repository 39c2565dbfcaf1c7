"""Texts that come and go in one engine are each written as if it were alone."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2lab import Engine
from gpt2lab.errors import InputError
from gpt2lab.generation import Sampling, Token, generate, sample, stream
from gpt2lab.model import GPT2, ScaledDotProductAttention
from tests.generation.test_generate import SIZES, texts_and_models, written_without_a_cache
from tests.model.reference import ALiBi, random_ids, randomised

pytestmark = pytest.mark.filterwarnings("ignore:the context of")

WAYS = st.sampled_from(
    [
        {"temperature": 0},
        {"temperature": 1.3, "top_k": 7},
        {"repetition_penalty": 1.4},
        {"temperature": 0.7, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1},
    ]
)


def finish(engine: Engine) -> list[Token]:
    """Everything that is still to be written."""
    return [token for _ in iter(lambda: bool(engine.rows), False) for token in engine.step()]


def ids_of(tokens: list[Token], row: int) -> list[int]:
    return [token.id for token in tokens if token.row == row]


@settings(max_examples=40)
@given(texts_and_models(), st.data())
def test_rows_that_come_and_go_are_each_written_as_if_alone(text: tuple[GPT2, Tensor], data: st.DataObject) -> None:
    model, _ = text
    engine = Engine(model, max_rows=data.draw(st.integers(1, 3)))
    wanted: dict[int, tuple[Tensor, Sampling, int]] = {}
    written: dict[int, list[int]] = {}
    removed: set[int] = set()
    to_come = data.draw(st.integers(1, 5))
    while to_come or engine.rows:
        while to_come and len(engine.rows) < engine.max_rows and (not engine.rows or data.draw(st.booleans())):
            to_come -= 1
            prompt = random_ids(model, data.draw(st.integers(1, 20)), seed=to_come)
            how = Sampling(**data.draw(WAYS), seed=data.draw(st.integers(0, 99)))
            n = data.draw(st.integers(1, 24))
            row = engine.add(prompt, how, max_tokens=n)
            wanted[row], written[row] = (prompt, how, n), []
        at_work = engine.rows
        tokens = engine.step()
        assert [token.row for token in tokens] == at_work
        for token in tokens:
            written[token.row].append(token.id)
            assert (token.finished == "length") == (len(written[token.row]) == wanted[token.row][2])
        if engine.rows and data.draw(st.integers(0, 9)) == 0:
            row = data.draw(st.sampled_from(engine.rows))
            engine.remove(row)
            removed.add(row)
    for row, (prompt, how, n) in wanted.items():
        expected = written_without_a_cache(model, prompt, n, how)
        assert written[row] == (expected[: len(written[row])] if row in removed else expected)
    assert engine.step() == []


@settings(max_examples=20)
@given(texts_and_models(), WAYS, st.integers(1, 20))
def test_a_tokens_logprob_is_the_models_own_whatever_the_filters(
    text: tuple[GPT2, Tensor], way: dict[str, Any], n: int
) -> None:
    model, prompt = text
    engine, context = Engine(model, 1), model.config.max_seq_len
    engine.add(prompt, Sampling(**way), max_tokens=n)
    history = prompt if model.endless else prompt[-context:]
    for token in finish(engine):
        with torch.no_grad():
            expected = model(history[None])[0, -1].log_softmax(-1)[token.id].item()
        assert token.logprob == pytest.approx(expected, abs=1e-9)
        history = torch.cat((history, torch.tensor([token.id])))
        if not model.endless and len(history) > context:
            history = history[-((context + 1) // 2) :]


@settings(max_examples=20)
@given(texts_and_models(), st.sampled_from(["eager", "auto"]), st.integers(1, 60))
def test_the_likeliest_tokens_are_told_with_each_to_the_texts_that_ask(
    text: tuple[GPT2, Tensor], step: Any, top: int
) -> None:
    model, prompt = text[0].float(), text[1]
    engine = Engine(model, 2, step=step)
    asking = engine.add(prompt, Sampling(seed=1), max_tokens=6, top=top)
    engine.add(prompt, Sampling(seed=2), max_tokens=9)
    history = prompt if model.endless else prompt[-model.config.max_seq_len :]
    while engine.rows:
        for token in engine.step(most=9):
            if token.row != asking:
                assert token.top == ()
                continue
            with torch.no_grad():
                logprobs = model(history[None])[0, -1].log_softmax(-1)
            if len(history) < model.config.max_seq_len:
                right = logprobs.topk(min(top, len(logprobs))).values.tolist()
                assert [logprob for _, logprob in token.top] == pytest.approx(right, abs=1e-5)
                assert [logprob for _, logprob in token.top] == pytest.approx(
                    logprobs[[id_ for id_, _ in token.top]].tolist(), abs=1e-5
                )
            history = torch.cat((history, torch.tensor([token.id])))[-model.config.max_seq_len :]


def some_text(n: int, **switches: Any) -> tuple[GPT2, Tensor, list[int]]:
    """A model, a prompt, and what the model writes behind it."""
    model = randomised(GPT2(*SIZES, position="rope", window=4, **switches))
    prompt = random_ids(model, 5)
    return model, prompt, written_without_a_cache(model, prompt, n, Sampling(seed=3))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_text_ends_with_the_token_that_completes_a_stop_sequence(length: int) -> None:
    model, prompt, text = some_text(30)
    stop = text[7 : 7 + length]
    end = next(i for i in range(30) if text[: i + 1][-length:] == stop)
    engine = Engine(model, 2)
    stopped = engine.add(prompt, Sampling(seed=3), max_tokens=30, stop=[[*stop, 0, 0, 0], stop])
    other = engine.add(prompt, Sampling(seed=3), max_tokens=30)
    tokens = finish(engine)
    assert ids_of(tokens, stopped) == text[: end + 1]
    assert ids_of(tokens, other) == text
    ends = {token.row: token.finished for token in tokens if token.finished}
    assert ends == {stopped: "stop", other: "length"}


def test_a_stop_sequence_counts_what_was_written_and_not_the_prompt() -> None:
    model, prompt, text = some_text(8)
    engine = Engine(model, 1)
    row = engine.add(prompt, Sampling(seed=3), max_tokens=8, stop=[[int(prompt[-1]), text[0]], prompt.tolist()])
    assert ids_of(finish(engine), row) == text


def test_a_stop_that_comes_with_the_last_token_is_a_stop() -> None:
    model, prompt, text = some_text(1)
    engine = Engine(model, 1)
    engine.add(prompt, Sampling(seed=3), max_tokens=1, stop=[text])
    assert [token.finished for token in finish(engine)] == ["stop"]


def reads(model: GPT2) -> list[tuple[int, ...]]:
    """Shapes of what the model reads from now on."""
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def test_a_row_that_fills_its_context_reads_again_alone() -> None:
    model = randomised(GPT2(*SIZES))  # a context of 12
    prompts = [random_ids(model, length, seed=length) for length in (3, 11, 5)]
    engine = Engine(model, 3)
    rows = [engine.add(prompt, Sampling(seed=1), max_tokens=9) for prompt in prompts]
    shapes = reads(model)
    tokens = engine.step()
    assert shapes == [(1, 3), (1, 11), (1, 5)]
    shapes.clear()
    tokens += engine.step()
    assert shapes == [(3, 1)]  # now the second one's context of 12 is full
    shapes.clear()
    tokens += engine.step()
    assert shapes == [(1, 1), (1, 6), (1, 1)]
    shapes.clear()
    tokens += engine.step()
    assert shapes == [(3, 1)]
    tokens += finish(engine)
    for row, prompt in zip(rows, prompts, strict=True):
        assert ids_of(tokens, row) == written_without_a_cache(model, prompt, 9, Sampling(seed=1))


def test_of_a_prompt_only_the_last_tokens_logits_are_made() -> None:
    model = randomised(GPT2(*SIZES))
    shapes: list[tuple[int, ...]] = []
    model.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
    generate(model, random_ids(model, 2, 9), 3)
    assert shapes == [(2, 1, 11)] * 3


def test_rows_that_read_as_much_are_read_at_once() -> None:
    model = randomised(GPT2(*SIZES, position="rope", window=4))
    engine, shapes = Engine(model, 4), reads(model)
    for seed, length in enumerate((7, 7, 2, 7)):
        engine.add(random_ids(model, length, seed=seed), max_tokens=2)
    finish(engine)
    assert shapes == [(2, 7), (1, 2), (1, 7), (4, 1)]


def test_an_engine_takes_its_memory_at_once_and_no_more() -> None:
    model = randomised(GPT2(*SIZES, position="rope", window=(4, 3)))
    engine = Engine(model, 3)

    def held() -> list[tuple[int, int]]:
        layers = engine._cache.layers
        return [
            (tensor.data_ptr(), tensor.untyped_storage().nbytes()) for layer in layers for tensor in (layer.k, layer.v)
        ]

    before = held()
    assert sum(size for _, size in before) == 3 * model.cache_bytes(100)
    for seed in range(7):
        engine.add(random_ids(model, 40, seed=seed), max_tokens=30 + seed)
        while len(engine.rows) == 3:
            engine.step()
    finish(engine)
    assert held() == before


def test_a_users_mechanism_writes_in_an_engine_too() -> None:
    model = randomised(GPT2(*SIZES, attention=ALiBi, position="none", num_kv_heads=2, window=5))
    engine, prompts = Engine(model, 2), [random_ids(model, length, seed=length) for length in (4, 9)]
    first = engine.add(prompts[0], Sampling(seed=1), max_tokens=20)
    tokens = engine.step() + engine.step()
    second = engine.add(prompts[1], Sampling(seed=2), max_tokens=20)
    tokens += finish(engine)
    assert ids_of(tokens, first) == written_without_a_cache(model, prompts[0], 20, Sampling(seed=1))
    assert ids_of(tokens, second) == written_without_a_cache(model, prompts[1], 20, Sampling(seed=2))


# ---- bad input, and what remains after it ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ids": []}, "a prompt is empty"),
        ({"ids": [[1, 2]]}, r"shape \(1, 2\); it has to be \(T,\)"),
        ({"ids": [1, 11]}, "the prompt has the id 11, but the model knows 0 to 10"),
        ({"stop": [[]]}, "a stop sequence is empty"),
        ({"stop": [[3], [4, 99]]}, "a stop sequence has the id 99, but the model knows 0 to 10"),
        ({"max_tokens": 0}, "max_tokens is 0; it has to be 1 or more"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_the_engine_as_it_was(wrong: dict[str, Any], said: str) -> None:
    engine = Engine(randomised(GPT2(*SIZES)), 1)
    with pytest.raises(InputError, match=said):
        engine.add(**({"ids": [1, 2], "max_tokens": 3} | wrong))
    assert engine.rows == []
    assert engine.add([1, 2], max_tokens=3) == 0
    assert len(finish(engine)) == 3


def test_more_rows_than_there_are_and_rows_that_never_were_are_refused() -> None:
    model = randomised(GPT2(*SIZES))
    engine = Engine(model, 1)
    row = engine.add([1], max_tokens=2)
    with pytest.raises(InputError, match="all 1 rows are taken"):
        engine.add([1], max_tokens=2)
    with pytest.raises(InputError, match="no row 1"):
        engine.remove(1)
    finish(engine)
    engine.remove(row)  # it has ended by itself
    assert engine.add([1], max_tokens=2) == 1
    with pytest.raises(InputError, match="max_rows is 0"):
        Engine(model, 0)
    with pytest.raises(InputError, match="no vocabulary"):
        Engine(GPT2(0, *SIZES[1:]))


NOT_NUMBERS = [math.nan, math.inf]


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize(
    "how", [{"temperature": 0}, {}, {"top_k": 3}, {"temperature": 0, "repetition_penalty": 2.0}, {"top_p": 0.5}]
)
def test_logits_that_are_not_numbers_are_an_input_error_in_every_way_of_writing(
    value: float, how: dict[str, Any]
) -> None:
    model = GPT2(*SIZES, seed=0).train()
    with torch.no_grad():
        model.final_norm.weight[3] = value
    ids = torch.tensor([[1, 2]])
    for write in (
        lambda: generate(model, ids, 6, **how),
        lambda: sample(model, ids, 6, **({k: v for k, v in how.items() if k in ("temperature", "top_k")})),
        lambda: sample(model, ids, 6, sample=True),
    ):
        model.train()
        with pytest.raises(InputError, match="logits are not numbers"):
            write()
    engine = Engine(model.train(), 1)
    engine.add([1, 2], Sampling(**how), max_tokens=3)
    with pytest.raises(InputError, match="logits are not numbers"):
        engine.step()
    assert model.training


class Fails(ScaledDotProductAttention):
    """A mechanism with a fault."""

    def forward(self, *inputs: Tensor | None, **more: Tensor | None) -> Tensor:
        raise RuntimeError("a fault")


def test_every_part_of_the_model_has_its_own_mode_again_when_an_exception_passes() -> None:
    model = GPT2(*SIZES, attention=Fails).train()
    model.blocks[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with pytest.raises(RuntimeError, match="a fault"):
        generate(model, torch.tensor([[1, 2]]), 3)
    with pytest.raises(RuntimeError, match="a fault"):
        next(stream(model, [torch.tensor([1, 2])], 3))
    engine = Engine(model, 1)
    engine.add([1], max_tokens=2)
    with pytest.raises(RuntimeError, match="a fault"):
        engine.step()
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_an_engine_says_once_that_the_oldest_half_is_dropped() -> None:
    engine = Engine(randomised(GPT2(*SIZES)), 2)
    for length in (3, 9):
        engine.add(range(length), max_tokens=40)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        finish(engine)
    assert ["context of 12 tokens is full" in str(warning.message) for warning in caught] == [True]
    assert caught[0].filename == __file__


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        yield
