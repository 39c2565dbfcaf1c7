"""Reading with a cache is reading without one: chunk by chunk, for every switch, for ever where the model can."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model import GPT2, KeyValueCache, SlidingWindowAttention
from gpt2lab.model.cache import Cached, LayerCache
from tests.model.reference import ALiBi, alibi_bias, configs, dense_logits, positions, random_ids, randomised, windows

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
    return draw(configs(position=draw(positions(endless=True)), max_seq_len=11, window=draw(windows(10, endless=True))))


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


@pytest.mark.parametrize("position", ["learned", "rope", "none", ("rope", "none")])
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


@thorough
@given(configs(max_seq_len=14) | endless_configs(), st.integers(1, 4), st.data())
@torch.no_grad()
def test_rows_that_begin_and_end_apart_read_as_if_each_were_alone(
    config: GPT2Config, rows: int, data: st.DataObject
) -> None:
    model = randomised(GPT2.from_config(config))
    cache = KeyValueCache(model, rows)
    texts = [torch.empty(0, dtype=torch.int64)] * rows

    def read_more(first: int, last: int, length: int, seed: int) -> None:
        ids = random_ids(model, last - first, length, seed=seed)
        logits = model(ids, cache=cache[first:last])
        for row in range(first, last):
            texts[row] = torch.cat((texts[row], ids[row - first]))
            alone = model(texts[row][None])[0, -length:]
            torch.testing.assert_close(logits[row - first], alone, rtol=0, atol=1e-10)
            assert cache.lengths[row] == len(texts[row])

    for seed in range(data.draw(st.integers(1, 12))):
        first = data.draw(st.integers(0, rows - 1))
        last = data.draw(st.integers(first + 1, rows))
        match data.draw(st.sampled_from(["read", "read", "read", "clear", "copy"])):
            case "clear":
                cache.clear(first)
                texts[first] = texts[first][:0]
            case "copy":
                cache.copy(first, last - 1)
                texts[last - 1] = texts[first]
            case "read":
                room = 40 if model.endless else min(14 - len(text) for text in texts[first:last])
                if room > 0:
                    read_more(first, last, min(room, data.draw(st.sampled_from([1, 1, 1, 2, 5, 20]))), seed)


def test_a_cache_of_another_number_of_rows_is_refused() -> None:
    model = randomised(GPT2(11, 16, 8, 2, 10, 2))
    cache = KeyValueCache(model, 3)
    with pytest.raises(InputError, match=r"3 rows and was given 2; .* cache\[:2\]"):
        model(random_ids(model, 2, 4), cache=cache)
    assert model(random_ids(model, 2, 4), cache=cache[:2]).shape == (2, 4, 11)
    assert cache.lengths.tolist() == [4, 4, 0]


def test_what_was_not_a_number_in_a_row_is_gone_when_the_row_is_empty() -> None:
    model = randomised(GPT2(11, 16, 8, 2, 10, 1))
    cache, ids = KeyValueCache(model, 2), random_ids(model, 2, 6)
    model(ids, cache=cache)
    cache.layers[0].k[1] = cache.layers[0].v[1] = math.nan
    cache.clear(1)
    both = torch.stack((ids[0, :1], ids[1, :1]))
    torch.testing.assert_close(model(both, cache=cache)[1], model(ids[1:, :1])[0], rtol=0, atol=1e-12)


def test_reading_with_a_cache_leaves_no_graph() -> None:
    model = GPT2(11, 16, 8, 2, 10, 2)
    cache = KeyValueCache(model)
    assert not model(random_ids(model, 1, 4), cache=cache).requires_grad
    assert not any(tensor.requires_grad for tensor in tensors_of(cache))


class Latent(SlidingWindowAttention):
    """Keys and values of all heads are made of three numbers a token, which are all that is cached (as in multi-head
    latent attention, DeepSeek-AI 2024, arXiv:2405.04434, section 2.1).
    """

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.to_keys = nn.Parameter(torch.randn(config.num_heads, 3, config.head_dim))
        self.to_values = nn.Parameter(torch.randn(config.num_heads, 3, config.head_dim))

    def cached(self) -> Cached:
        return Cached(self.window, keys=(1, 3), values=(1, 0))

    def after_rotation(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, x[:, None, :, :3], x[:, None, :, :0]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, q_pos: Any = None, k_pos: Any = None) -> Tensor:
        return super().forward(q, k @ self.to_keys, k @ self.to_values, q_pos, k_pos)


@thorough
@given(windows(9), st.integers(1, 12), st.data())
@torch.no_grad()
def test_a_users_mechanism_says_what_is_cached_of_it(window: Any, length: int, data: st.DataObject) -> None:
    model = randomised(GPT2(11, 12, 8, 2, 10, 2, attention=Latent, window=window))
    ids, cache = random_ids(model, 2, length), KeyValueCache(model)
    torch.testing.assert_close(read(model, ids, data.draw(cuts(length)), cache), model(ids), rtol=0, atol=1e-10)
    for layer, slots in zip(cache.layers, [c.slots or 12 for c in model.cached], strict=True):
        assert (layer.k.shape, layer.v.shape) == ((2, 1, min(slots, 12), 3), (2, 1, min(slots, 12), 0))
    assert model.cache_bytes(1) == 2 * 3 * 8  # layers, numbers, bytes of each


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


@pytest.mark.parametrize("first", [True, False])
def test_a_cache_that_was_filled_in_another_precision_is_refused(first: bool) -> None:
    model = GPT2(11, 16, 16, 4, 20, 2, seed=0).eval()
    ids = torch.zeros(2, 3, dtype=torch.int64)
    cache = KeyValueCache(model, rows=2)
    with torch.autocast("cpu", torch.bfloat16, enabled=first):
        model(ids, cache=cache)
        model(ids, cache=cache[:2])
    words = "filled in bfloat16 and is read in float32" if first else "filled in float32 and is read in bfloat16"
    with torch.autocast("cpu", torch.bfloat16, enabled=not first), pytest.raises(InputError, match=words):
        model(ids, cache=cache[:2])
    for row in range(2):
        cache.clear(row)
    with torch.autocast("cpu", torch.bfloat16, enabled=not first):
        model(ids, cache=cache)  # of another text
