"""Writing with a cache is writing without one, for every switch, past the context, alone or in a batch."""

import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.generation import Sampling, generate, sample, stream
from gpt2lab.model import GPT2, GroupQueryAttention, ScaledDotProductAttention
from tests.generation.test_sampling import chi_square_p_value
from tests.model.reference import ALiBi, configs, positions, random_ids, randomised, windows

pytestmark = pytest.mark.filterwarnings("ignore:the context of")
thorough = settings(max_examples=40, deadline=None)
SIZES = (11, 12, 16, 4, 20, 2)


@torch.no_grad()
def written_without_a_cache(model: GPT2, prompt: Tensor, n: int, how: Sampling | None = None) -> list[int]:
    """One text, every token from a forward over all that it may depend on. Greedy, or as ``how`` says."""
    context, forgets = model.config.max_seq_len, not model.endless
    history = prompt[-context:] if forgets else prompt
    seen = torch.zeros(1, model.config.vocab_size, dtype=torch.bool)
    seen[0, prompt] = True
    noise = how.generators(1) if how else []
    new = []
    for _ in range(n):
        logits = model(history[None])[:, -1]
        token = how.choose(logits, noise, seen) if how else logits.argmax(1)
        new.append(token.item())
        seen[0, token] = True
        history = torch.cat((history, token))
        if forgets and len(history) > context:
            history = history[-((context + 1) // 2) :]  # the newest half, rounded up, the new token included
    return new


@st.composite
def texts_and_models(draw: st.DrawFn) -> tuple[GPT2, Tensor]:
    endless = st.builds(dict, position=positions(endless=True), window=windows(9, endless=True))
    config: GPT2Config = draw(configs() | endless.flatmap(lambda fixed: configs(max_seq_len=7, **fixed)))
    model = randomised(GPT2.from_config(config), seed=draw(st.integers(0, 9)))
    return model, random_ids(model, draw(st.integers(1, 24)), seed=draw(st.integers(0, 9)))


@thorough
@given(texts_and_models(), st.integers(0, 40))
def test_greedy_writing_is_the_naive_loop_for_every_switch(text: tuple[GPT2, Tensor], n: int) -> None:
    model, prompt = text
    expected = written_without_a_cache(model, prompt, n)
    assert generate(model, prompt[None], n, temperature=0)[0].tolist() == prompt.tolist() + expected


@thorough
@given(texts_and_models(), st.integers(1, 30), st.integers(0, 99))
def test_drawn_writing_is_the_naive_loop_with_the_same_noise(text: tuple[GPT2, Tensor], n: int, seed: int) -> None:
    model, prompt = text
    how = {"temperature": 1.3, "top_k": 7, "repetition_penalty": 1.2, "seed": seed}
    expected = written_without_a_cache(model, prompt, n, Sampling(**how))
    assert generate(model, prompt[None], n, **how)[0, len(prompt) :].tolist() == expected


@settings(max_examples=30, deadline=None)
@given(texts_and_models(), st.lists(st.integers(1, 16), min_size=2, max_size=3), st.integers(1, 20))
def test_rows_of_any_lengths_are_written_as_if_each_were_alone(
    text: tuple[GPT2, Tensor], lengths: list[int], n: int
) -> None:
    model, _ = text
    prompts = [random_ids(model, length, seed=row) for row, length in enumerate(lengths)]
    together = torch.stack(list(stream(model, prompts, n, Sampling(seed=5))), dim=1)
    assert together.shape == (len(prompts), n)
    for row, prompt in enumerate(prompts):
        assert together[row].tolist() == written_without_a_cache(model, prompt, n, Sampling(seed=5 + row))


@pytest.mark.parametrize("window", [None, 4])
def test_a_users_mechanism_writes_like_the_built_in_ones(window: int | None) -> None:
    model = randomised(GPT2(*SIZES, attention=ALiBi, position="none", num_kv_heads=2, window=window))
    prompt = random_ids(model, 5)
    expected = written_without_a_cache(model, prompt, 40, Sampling(seed=1))
    assert generate(model, prompt[None], 40, seed=1)[0, 5:].tolist() == expected


def test_a_prompt_longer_than_a_chunk_of_the_prefill_is_read_whole() -> None:
    for switches in ({"window": 5}, {"window": (700, 3)}):
        model = randomised(GPT2(*SIZES, position="rope", **switches))
        prompts = [random_ids(model, length, seed=length) for length in (1100, 3, 600)]
        new = torch.stack(list(stream(model, prompts, 6, Sampling(seed=2))), dim=1)
        for row, prompt in enumerate(prompts):
            assert new[row].tolist() == written_without_a_cache(model, prompt, 6, Sampling(seed=2 + row))


def test_generate_returns_the_prompts_and_what_stream_yields() -> None:
    model = randomised(GPT2(*SIZES, position="rope"))
    ids = random_ids(model, 3, 4)
    out = generate(model, ids, 6, seed=8, top_k=5)
    assert out.shape == (3, 10)
    assert out.dtype == torch.int64
    assert torch.equal(out[:, :4], ids)
    streamed = list(stream(model, list(ids), 6, Sampling(seed=8, top_k=5)))
    assert [token.shape for token in streamed] == [(3,)] * 6
    assert torch.equal(out[:, 4:], torch.stack(streamed, dim=1))
    assert torch.equal(generate(model, ids, 0), ids)


def test_stream_yields_each_token_before_it_computes_the_next() -> None:
    model = randomised(GPT2(*SIZES, position="rope", window=4))
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(None))
    tokens = stream(model, [random_ids(model, 3)], 10**9)
    for count in range(1, 6):
        next(tokens)
        assert len(forwards) == count
    tokens.close()


def test_the_same_seed_writes_the_same_text_and_another_one_another() -> None:
    model = randomised(GPT2(*SIZES, position="rope", window=4))
    ids = random_ids(model, 1, 4)
    torch.manual_seed(1)
    first = generate(model, ids, 40, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(generate(model, ids, 40, seed=3), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(generate(model, ids, 40, seed=4), first)


@torch.no_grad()
def test_pairs_of_tokens_are_as_frequent_as_the_model_says() -> None:
    model = randomised(GPT2(4, 12, 8, 2, 10, 2, position="rope", window=3))
    prompt, rows = random_ids(model, 3), 8000
    pairs = torch.stack([torch.cat((prompt, torch.tensor([a]))) for a in range(4)])
    first, second = ((model(ids)[:, -1] / 3).softmax(-1) for ids in (prompt[None], pairs))
    new = generate(model, prompt.repeat(rows, 1), 2, temperature=3.0)[:, 3:]
    counts = torch.bincount(4 * new[:, 0] + new[:, 1], minlength=16).double()
    assert chi_square_p_value(counts, (first.T * second).flatten()) > 1e-4


def test_the_same_token_is_not_written_again_under_a_great_repetition_penalty() -> None:
    model = randomised(GPT2(40, 12, 8, 2, 10, 1, position="rope", window=3))
    out = generate(model, torch.tensor([[3, 7]]), 30, temperature=0, repetition_penalty=1e9)[0].tolist()
    # A penalty divides positive logits to nothing and multiplies negative ones; some unseen token is above that.
    repeated = written_without_a_cache(model, torch.tensor([3, 7]), 30)
    assert len(set(out)) > len(set(repeated))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored_and_no_dropout_acts(training: bool) -> None:
    model = randomised(GPT2(*SIZES, position="rope", dropout=0.5)).train(training)
    plain = randomised(GPT2(*SIZES, position="rope"))
    ids = random_ids(model, 2, 4)
    assert torch.equal(generate(model, ids, 30), generate(plain, ids, 30))
    assert all(module.training == training for module in model.modules())
    tokens = stream(model, list(ids), 30)
    next(tokens)
    tokens.close()
    assert model.training == training


def test_a_token_that_the_model_does_not_know_leaves_its_mode_as_it_was() -> None:
    model = GPT2(*SIZES).train()
    with pytest.raises((InputError, IndexError)):
        generate(model, torch.tensor([[3, 11]]), 2)
    assert model.training


def test_a_token_that_the_model_does_not_know_is_an_input_error() -> None:
    for token in (11, -1):
        with pytest.raises(InputError, match=str(token)):
            generate(GPT2(*SIZES), torch.tensor([[3, token]]), 2)


@pytest.mark.parametrize("write", [generate, sample])
def test_what_was_written_can_be_trained_on(write: Any) -> None:
    model = GPT2(*SIZES, position="rope")
    text = write(model, random_ids(model, 2, 3), 8)
    model(text[:, :-1], text[:, 1:]).backward()
    assert model.embeddings.token.weight.grad is not None


def test_an_empty_prompt_is_an_input_error() -> None:
    model = GPT2(*SIZES)
    with pytest.raises(InputError, match="prompt is empty"):
        generate(model, torch.empty(2, 0, dtype=torch.int64), 3)
    with pytest.raises(InputError, match="prompt is empty"):
        next(stream(model, [torch.tensor([1]), torch.empty(0, dtype=torch.int64)], 3))
    with pytest.raises(InputError, match="top_k is 0"):
        generate(model, torch.tensor([[1]]), 3, top_k=0)


def test_a_model_without_a_vocabulary_says_so() -> None:
    with pytest.raises(InputError, match="vocabulary"):
        generate(GPT2(0, *SIZES[1:]), torch.tensor([[0]]), 3)


def said_while_writing(model: GPT2, n: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in stream(model, [random_ids(model, 4), random_ids(model, 2)], n):
            pass
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "switches", [{}, {"position": "rope"}, {"window": 3}, {"position": "rope", "window": (3, None)}]
)
def test_that_the_oldest_half_is_dropped_is_said_once(switches: dict[str, Any]) -> None:
    model = randomised(GPT2(*SIZES, **switches))
    (said,) = said_while_writing(model, 60)
    assert "context of 12 tokens is full" in said
    assert "oldest half is dropped" in said


def test_nothing_is_said_while_nothing_is_dropped() -> None:
    assert said_while_writing(randomised(GPT2(*SIZES)), 9) == []  # 4 + 9: the last token is never read
    assert said_while_writing(randomised(GPT2(*SIZES, position="rope", window=3)), 60) == []


def test_a_window_as_long_as_the_context_is_none_past_the_context_too() -> None:
    plain = randomised(GPT2(*SIZES, position="rope"))
    for window in (12, 4096, (12, 13)):
        windowed = randomised(GPT2(*SIZES, position="rope", window=window))
        prompt = random_ids(plain, 2, 5)
        assert torch.equal(generate(windowed, prompt, 40, seed=1), generate(plain, prompt, 40, seed=1))


class RootBias(GroupQueryAttention):
    """Scores fall with the root of the distance, which is no number for keys that stand behind their query."""

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return -(q_pos[:, None, :, None] - k_pos[:, None, None, :]).to(torch.float64).sqrt()


def test_a_bias_that_is_no_number_for_hidden_keys_spoils_no_row() -> None:
    model = randomised(GPT2(*SIZES, attention=RootBias))
    prompts = [random_ids(model, length, seed=length) for length in (6, 2)]
    for how in (Sampling(temperature=0), Sampling(seed=4)):
        together = torch.stack(list(stream(model, prompts, 5, how)), dim=1)
        for row, prompt in enumerate(prompts):
            alone = dataclasses.replace(how, seed=how.seed + row)
            assert together[row].tolist() == written_without_a_cache(model, prompt, 5, alone)


class KeepsATable(ScaledDotProductAttention):
    """Queries grow with the logarithm of the position; the table is made when it is first needed."""

    table: Tensor | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, q_pos: Any = None, k_pos: Any = None) -> Tensor:
        if self.table is None:
            self.table = torch.log(torch.arange(64, dtype=q.dtype) + 2.0)
        at = torch.arange(q.shape[2])[None] if q_pos is None else q_pos.clamp(min=0)
        return super().forward(q * self.table[at][:, None, :, None], k, v, q_pos, k_pos)


def test_what_a_mechanism_keeps_from_writing_can_be_trained_with() -> None:
    model = GPT2(*SIZES, attention=KeepsATable)
    ids = generate(model, torch.tensor([[1, 2]]), 3)
    model(ids, ids).backward()
    assert model.embeddings.token.weight.grad is not None


# ---- sample(): minGPT's function ---------------------------------------------------------------------------------


@torch.no_grad()
def mingpt_sample(
    model: GPT2, x: Tensor, steps: int, temperature: float = 1.0, sample: bool = False, top_k: int | None = None
) -> Tensor:
    block_size = model.config.max_seq_len
    for _ in range(steps):
        x_cond = x if x.size(1) <= block_size else x[:, -block_size:]
        logits = model(x_cond)[:, -1, :] / temperature
        if top_k is not None:
            v, _ = torch.topk(logits, top_k)
            logits[logits < v[:, [-1]]] = -float("Inf")
        probs = torch.softmax(logits, dim=-1)
        ix = torch.multinomial(probs, num_samples=1) if sample else torch.topk(probs, k=1, dim=-1)[1]
        x = torch.cat((x, ix), dim=1)
    return x


@settings(max_examples=30, deadline=None)
@given(texts_and_models(), st.integers(0, 30), st.floats(0.3, 3.0), st.booleans(), st.none() | st.integers(1, 11))
def test_sample_is_mingpts_loop(
    text: tuple[GPT2, Tensor], steps: int, temperature: float, draws: bool, top_k: int | None
) -> None:
    model, prompt = text
    x = torch.stack((prompt, prompt.flip(0)))
    torch.manual_seed(5)
    expected = mingpt_sample(model, x, steps, temperature, draws, top_k)
    torch.manual_seed(5)
    assert torch.equal(sample(model, x, steps, temperature=temperature, sample=draws, top_k=top_k), expected)


def test_sample_at_temperature_zero_is_greedy_and_checks_its_settings() -> None:
    model = randomised(GPT2(*SIZES, position="rope", window=4))
    x = random_ids(model, 2, 3)
    likeliest = generate(model, x, 8, temperature=0)
    for temperature in (0.0, 1e-45, 1e-300):
        assert torch.equal(generate(model, x, 8, temperature=temperature), likeliest)
        for draws in (True, False):
            assert torch.equal(sample(model, x, 8, temperature=temperature, sample=draws), likeliest)
    for wrong in (-1.0, math.nan):
        with pytest.raises(InputError, match="temperature is"):
            sample(model, x, 8, temperature=wrong)


def test_sample_writes_without_dropout() -> None:
    model = randomised(GPT2(*SIZES, dropout=0.5)).train()
    plain, x = randomised(GPT2(*SIZES)), torch.tensor([[1, 2, 3]])
    assert torch.equal(sample(model, x, 20), mingpt_sample(plain, x, 20))


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        yield
