"""Reading with a cache is reading without one: chunk by chunk, for every switch, for ever where the model can."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model import GPT2, KeyValueCache
from gpt2lab.model.cache import LayerCache
from tests.model.reference import ALiBi, alibi_bias, configs, dense_logits, random_ids, randomised, windows

thorough = settings(max_examples=40, deadline=None)


def read(model: GPT2, ids: Tensor, chunks: list[int], cache: KeyValueCache | None = None) -> Tensor:
    """Logits of a text that is read piece by piece."""
    cache = cache or KeyValueCache(model)
    assert sum(chunks) == ids.shape[1]
    return torch.cat([model(part, cache=cache) for part in ids.split(chunks, dim=1)], dim=1)


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[int]:
    """Sizes of chunks that make up a text: many single tokens, some longer ones."""
    sizes = []
    while sum(sizes) < length:
        sizes.append(min(draw(st.sampled_from([1, 1, 2, 3]) | st.integers(1, length)), length - sum(sizes)))
    return sizes


@st.composite
def endless_configs(draw: st.DrawFn) -> GPT2Config:
    position = draw(st.sampled_from(["rope", "none"]))
    return draw(configs(position=position, max_seq_len=11, window=draw(windows(10, endless=True))))


@thorough
@given(configs(), st.data())
@torch.no_grad()
def test_any_model_reads_its_context_in_chunks_as_at_once(config: GPT2Config, data: st.DataObject) -> None:
    model = randomised(GPT2.from_config(config))
    length = data.draw(st.integers(1, config.max_seq_len))
    ids = random_ids(model, 2, length)
    logits = read(model, ids, data.draw(cuts(length)))
    torch.testing.assert_close(logits, model(ids), rtol=0, atol=1e-10)
    torch.testing.assert_close(logits[1], dense_logits(model, ids[1]), rtol=0, atol=1e-9)


@thorough
@given(endless_configs(), st.integers(1, 40), st.data())
@torch.no_grad()
def test_an_endless_model_reads_beyond_its_context_as_one_forward_over_the_whole_history(
    config: GPT2Config, length: int, data: st.DataObject
) -> None:
    model = randomised(GPT2.from_config(config))
    ids = random_ids(model, 1, length)
    assert model.endless
    logits = read(model, ids, data.draw(cuts(length)))
    torch.testing.assert_close(logits, model(ids), rtol=0, atol=1e-10)
    torch.testing.assert_close(logits[0], dense_logits(model, ids[0]), rtol=0, atol=1e-9)


@thorough
@given(configs(max_seq_len=14) | endless_configs(), st.lists(st.integers(1, 9), min_size=2, max_size=4), st.data())
@torch.no_grad()
def test_rows_of_different_lengths_read_as_if_each_were_alone(
    config: GPT2Config, lengths: list[int], data: st.DataObject
) -> None:
    model = randomised(GPT2.from_config(config))
    longest = max(lengths)
    if not model.endless:
        longest = min(longest, config.max_seq_len)
        lengths = [min(n, longest) for n in lengths]
    further = data.draw(st.integers(0, 20 if model.endless else config.max_seq_len - longest))
    ids = random_ids(model, len(lengths), longest + further)
    positions = torch.stack([torch.arange(longest) - (longest - n) for n in lengths]).clamp(min=-1)
    cache = KeyValueCache(model)
    logits, done = [], 0
    for size in data.draw(cuts(longest)):  # the prompts, told where each begins
        part = slice(done, done + size)
        logits.append(model(ids[:, part], positions=positions[:, part], cache=cache))
        done += size
    if further:  # what is written, which goes on by itself
        logits.append(read(model, ids[:, longest:], data.draw(cuts(further)), cache))
    together = torch.cat(logits, dim=1)
    for row, n in enumerate(lengths):
        alone = model(ids[row : row + 1, longest - n :])[0]
        torch.testing.assert_close(together[row, longest - n :], alone, rtol=0, atol=1e-10)


@thorough
@given(st.integers(1, 24), st.sampled_from([None, 1, 2]), windows(8), st.data())
@torch.no_grad()
def test_a_users_mechanism_is_cached_like_the_built_in_ones(
    length: int, num_kv_heads: int | None, window: int | None, data: st.DataObject
) -> None:
    switches = {"position": "none", "num_kv_heads": num_kv_heads, "window": window}
    model = randomised(GPT2(11, 24, 8, 4, 10, 2, attention=ALiBi, **switches))
    ids = random_ids(model, 1, length)
    logits = read(model, ids, data.draw(cuts(length)))
    torch.testing.assert_close(logits, model(ids), rtol=0, atol=1e-10)
    torch.testing.assert_close(logits[0], dense_logits(model, ids[0], alibi_bias(4, length)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("position", ["learned", "rope", "none"])
@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
@pytest.mark.parametrize("window", [None, 1, 5, 40, (5, None), (None, 3), (2, 7)])
@torch.no_grad()
def test_every_combination_of_switches_agrees_in_float32_too(
    position: str, num_kv_heads: int | None, window: int | tuple[int | None, ...] | None
) -> None:
    switches = {"position": position, "num_kv_heads": num_kv_heads, "window": window}
    model = randomised(GPT2(11, 24, 16, 4, 20, 2, **switches), dtype=torch.float32)
    ids = random_ids(model, 2, 60 if model.endless else 24)
    length = ids.shape[1]
    for first, step in itertools.product((1, 3, 20), (1, 4)):
        rest = length - first
        chunks = [first, *[step] * (rest // step), *[1] * (rest % step)]
        torch.testing.assert_close(read(model, ids, chunks), model(ids), rtol=0, atol=1e-4)


def tensors_of(cache: KeyValueCache) -> list[Tensor]:
    """Every tensor that a cache holds, found without knowing its fields."""
    found, held = [], [cache]
    while held:
        match held.pop():
            case Tensor() as tensor:
                found.append(tensor)
            case dict() as values:
                held += values.values()
            case list() | tuple() as values:
                held += values
            case KeyValueCache() | LayerCache() as holder:
                held += vars(holder).values()
    return found


@settings(max_examples=25, deadline=None)
@given(endless_configs(), st.integers(1, 12), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@torch.no_grad()
def test_writing_without_end_takes_constant_memory(config: GPT2Config, prompt: int, dtype: torch.dtype) -> None:
    model = randomised(GPT2.from_config(config), dtype=dtype)
    ids, cache = random_ids(model, 1, prompt + 40), KeyValueCache(model)
    model(ids[:, :prompt], cache=cache)
    held = sum(tensor.nbytes for tensor in tensors_of(cache))
    for column in range(prompt, prompt + 40):
        model(ids[:, column : column + 1], cache=cache)
        assert sum(tensor.nbytes for tensor in tensors_of(cache)) == held
        assert sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(cache)) == held
    of_keys_and_values = sum(tensor.nbytes for tensor in tensors_of(cache) if tensor.is_floating_point())
    assert of_keys_and_values == model.cache_bytes(prompt + 40)


@settings(max_examples=40, deadline=None)
@given(configs(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@torch.no_grad()
def test_a_full_context_takes_the_bytes_that_the_model_says(config: GPT2Config, dtype: torch.dtype) -> None:
    model = randomised(GPT2.from_config(config), dtype=dtype)
    cache = KeyValueCache(model)
    model(random_ids(model, 1, config.max_seq_len), cache=cache)
    held = sum(tensor.nbytes for tensor in tensors_of(cache) if tensor.is_floating_point())
    assert held == model.cache_bytes(config.max_seq_len)


def test_a_batch_keeps_its_rows_apart() -> None:
    model = randomised(GPT2(11, 16, 8, 2, 10, 2, position="rope", window=4))
    ids = random_ids(model, 3, 12)
    together = read(model, ids, [5] + [1] * 7)
    for row in range(3):
        alone = read(model, ids[row : row + 1], [5] + [1] * 7)
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "switches", [{}, {"position": "rope"}, {"window": 3}, {"position": "rope", "window": (3, None)}]
)
def test_a_model_that_is_not_endless_refuses_more_than_its_context(switches: dict[str, object]) -> None:
    model = randomised(GPT2(11, 6, 8, 2, 10, 2, **switches))
    ids, cache = random_ids(model, 1, 7), KeyValueCache(model)
    with pytest.raises(InputError, match=r"context of 6 .* given 7"):
        model(ids, cache=KeyValueCache(model))
    model(ids[:, :6], cache=cache)
    with pytest.raises(InputError, match=r"context of 6 .* given 7"):
        model(ids[:, 6:], cache=cache)


def test_a_refused_chunk_leaves_the_cache_as_it_was() -> None:
    model = randomised(GPT2(11, 6, 8, 2, 10, 2))
    ids, cache = random_ids(model, 1, 6), KeyValueCache(model)
    model(ids[:, :4], cache=cache)
    with pytest.raises(InputError):
        model(ids[:, :3], cache=cache)
    torch.testing.assert_close(model(ids[:, 4:], cache=cache), model(ids)[:, 4:], rtol=0, atol=1e-12)


def test_models_know_whether_they_are_endless() -> None:
    sizes = (11, 6, 8, 2, 10, 2)
    assert GPT2(*sizes, position="rope", window=3).endless
    assert GPT2(*sizes, position="none", window=(3, 5)).endless
    assert not GPT2(*sizes, position="rope").endless
    assert not GPT2(*sizes, position="rope", window=(3, None)).endless
    assert not GPT2(*sizes, position="learned", window=3).endless
    for all_of_the_context in (6, 9):
        assert not GPT2(*sizes, position="rope", window=all_of_the_context).endless
        assert not GPT2(*sizes, position="none", window=(3, all_of_the_context)).endless
    assert GPT2(*sizes, position="rope", window=(3, 4, None)).endless  # two layers: the third window is never used
    assert GPT2(*sizes, position="none", window=3, attention=ALiBi).endless
