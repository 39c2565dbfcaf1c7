import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gpt2lab.data import (
    BPETokenizer,
    CharDataset,
    CharTokenizer,
    Corpus,
    StatelessSampler,
    TokenDataset,
    corpora,
    encode_corpus,
)
from gpt2lab.errors import InputError
from tests.data.conftest import awkward_text

MakeCorpus = Callable[..., Corpus]


def as_it_is(batch: object) -> object:
    return batch


# Encoding a corpus


@pytest.fixture(scope="module")
def byte_level(make_corpus: MakeCorpus) -> BPETokenizer:
    corpus = make_corpus("of the King's  men\n\n" * 50)
    return BPETokenizer.train(corpus.chunks(), 300)


@given(texts=st.lists(awkward_text, min_size=1, max_size=3).filter(any), block=st.integers(1, 40))
def test_a_corpus_is_encoded_file_by_file_with_end_of_text_between(
    make_corpus: MakeCorpus,
    tmp_path_factory: pytest.TempPathFactory,
    byte_level: BPETokenizer,
    texts: list[str],
    block: int,
) -> None:
    corpus = make_corpus(*texts)
    for tokenizer in (CharTokenizer("".join(texts)), byte_level):
        expected: list[int] = []
        for text in filter(None, texts):
            expected += [*([tokenizer.end_of_text] if expected else []), *tokenizer.encode(text)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
            patch.setattr(corpora, "BLOCK_BYTES", block)
            tokens = encode_corpus(corpus, tokenizer, 0, corpus.size)
        assert tokens.tolist() == expected
        assert tokenizer.decode(tokens) == "".join(texts)


def test_a_part_of_a_corpus_is_encoded_by_itself(cache: Path, make_corpus: MakeCorpus) -> None:
    corpus = make_corpus("abcdef", "ghi")
    tokenizer = CharTokenizer.from_corpus(corpus)
    end = [tokenizer.end_of_text]
    assert encode_corpus(corpus, tokenizer, 2, 5).tolist() == [2, 3, 4]
    assert encode_corpus(corpus, tokenizer, 4, 8).tolist() == [4, 5, *end, 6, 7]
    assert encode_corpus(corpus, tokenizer, 6, 9).tolist() == [6, 7, 8]
    assert encode_corpus(corpus, tokenizer, 3, 3).tolist() == []
    assert len(list((cache / "encoded").iterdir())) == 4


def test_ids_are_memory_mapped_read_only_and_as_narrow_as_they_fit(cache: Path, make_corpus: MakeCorpus) -> None:
    corpus = make_corpus("hello")
    narrow = encode_corpus(corpus, CharTokenizer("helo"), 0, 5)
    assert isinstance(narrow, np.memmap)
    assert narrow.dtype == np.uint16
    assert not narrow.flags.writeable
    every = [chr(code) for code in range(2**16 + 0x800) if not 0xD800 <= code < 0xE000]
    assert encode_corpus(corpus, CharTokenizer(every[: 2**16 - 1]), 0, 5).dtype == np.uint16
    wide = encode_corpus(make_corpus(every[-1]), CharTokenizer(every), 0, 4)
    assert wide.dtype == np.uint32
    assert wide.tolist() == [2**16 - 1]
    for path in (cache / "encoded").iterdir():
        assert np.load(path).ndim == 1


@pytest.mark.usefixtures("cache")
def test_a_corpus_is_encoded_once_and_again_only_when_text_or_tokenizer_changed(make_corpus: MakeCorpus) -> None:
    calls: list[int] = []

    def encode(*texts: str, characters: str = "abc \n") -> int:
        calls.clear()
        corpus = make_corpus(*texts)
        encode_corpus(corpus, CharTokenizer(characters), 0, corpus.size, progress=calls.append)
        return len(calls)

    assert encode("abc abc") > 0
    assert calls[-1] == 7
    assert encode("abc abc") == 0  # another file with the same text
    assert encode("abc abd", characters="abcd ") > 0
    assert encode("abc abc", characters="abcd ") > 0
    assert encode("abc ", "abc") > 0  # the same bytes, but two files
    assert encode("abc", " abc") > 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:200],
        lambda content: b"",
        lambda content: b"other" * 100,
        lambda content: content[:-40] + bytes(4) + content[-36:],  # ids that are zeros
        lambda content: content[:-33] + bytes([content[-33] ^ 1]) + content[-32:],
        lambda content: content[:-32],  # as older versions wrote it
    ],
)
def test_a_damaged_file_of_the_cache_is_made_again(
    cache: Path, make_corpus: MakeCorpus, damage: Callable[[bytes], bytes]
) -> None:
    corpus, letters = make_corpus("abc abc bca " * 9), CharTokenizer("abc ")
    right = np.array(encode_corpus(corpus, letters, 0, corpus.size))
    (file,) = (cache / "encoded").iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert encode_corpus(corpus, letters, 0, corpus.size).tolist() == right.tolist()
    assert file.read_bytes() == content


def test_a_text_that_cannot_be_encoded_leaves_nothing_in_the_cache(cache: Path, make_corpus: MakeCorpus) -> None:
    corpus = make_corpus("abc " * 1_000_000 + "X")
    with pytest.raises(InputError, match="'X'"):
        encode_corpus(corpus, CharTokenizer("abc "), 0, corpus.size)
    assert list((cache / "encoded").iterdir()) == []


@pytest.mark.usefixtures("cache")
def test_neither_text_nor_ids_are_held_in_memory(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus("some words in a line, to be repeated\n" * 1_500_000)
    tracemalloc.start()
    try:
        tokenizer = CharTokenizer.from_corpus(corpus)
        tokens = encode_corpus(corpus, tokenizer, 0, corpus.size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(tokens) == corpus.size
    assert peak < corpus.size / 2


# Items and batches


@given(tokens=st.lists(st.integers(0, 99), min_size=2, max_size=40), data=st.data())
def test_an_item_is_a_stretch_of_tokens_and_the_tokens_that_follow(tokens: list[int], data: st.DataObject) -> None:
    context = data.draw(st.integers(1, len(tokens) - 1))
    dataset = TokenDataset(np.array(tokens, np.uint16), context, vocab_size=100)
    assert len(dataset) == len(tokens) - context
    for i, (x, y) in enumerate(dataset):  # ends, because IndexError is raised past the end
        assert x.dtype == y.dtype == torch.int64
        assert x.tolist() == tokens[i : i + context]
        assert y.tolist() == tokens[i + 1 : i + 1 + context]
    assert i == len(dataset) - 1
    assert dataset[-1][0].tolist() == dataset[len(dataset) - 1][0].tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.usefixtures("cache")
def test_a_loader_gives_the_same_batches_for_any_number_of_workers(make_corpus: MakeCorpus, num_workers: int) -> None:
    corpus = make_corpus("a quick brown fox jumps over the lazy dog")
    tokens = encode_corpus(corpus, CharTokenizer.from_corpus(corpus), 0, corpus.size)
    dataset = TokenDataset(tokens, 8, 30)
    sampler = StatelessSampler(len(dataset), 5, seed=3, start_step=7, num_steps=4)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=as_it_is, num_workers=num_workers)
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    for step, (x, y) in zip(range(7, 11), batches, strict=True):
        items = [dataset[int(i)] for i in sampler.batch(step)]
        assert torch.equal(x, torch.stack([item[0] for item in items]))
        assert torch.equal(y, torch.stack([item[1] for item in items]))


def test_a_loader_of_the_users_own_works_too() -> None:
    dataset = CharDataset("a quick brown fox", block_size=4)
    for start, (x, y) in enumerate(DataLoader(dataset, batch_size=3, drop_last=True)):
        assert x.shape == y.shape == (3, 4)
        for row in range(3):
            assert torch.equal(x[row], dataset[3 * start + row][0])
            assert torch.equal(y[row], dataset[3 * start + row][1])


def test_a_text_not_longer_than_the_context_is_refused() -> None:
    tokens = np.arange(10, dtype=np.uint16)
    assert len(TokenDataset(tokens, 9, 10)) == 1
    with pytest.raises(InputError, match=r"10 tokens, but a context of 10 needs at least 11; use a smaller context"):
        TokenDataset(tokens, 10, 10)
    with pytest.raises(InputError, match="context_size is 0"):
        TokenDataset(tokens, 0, 10)


def test_char_dataset_is_mingpts() -> None:
    text = "hello world"
    dataset = CharDataset(text, block_size=4)
    characters = sorted(set(text))
    assert dataset.stoi == {character: i for i, character in enumerate(characters)}
    assert dataset.itos == dict(enumerate(characters))
    assert (dataset.vocab_size, dataset.block_size, dataset.context_size) == (8, 4, 4)
    assert len(dataset) == 7
    x, y = dataset[2]
    assert "".join(dataset.itos[int(i)] for i in x) == "llo "
    assert "".join(dataset.itos[int(i)] for i in y) == "lo w"


@pytest.mark.parametrize(("text", "message"), [("", "0 characters"), ("a", "1 characters"), ("abcd", "4 tokens")])
def test_char_dataset_refuses_texts_that_are_too_short(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CharDataset(text, block_size=4)


# The sampler

seeds = st.integers(-(2**63), 2**65)


@given(num_items=st.integers(1, 150), batch_size=st.integers(1, 40), seed=seeds, epoch=st.integers(0, 10**9))
def test_every_epoch_visits_every_item_once(num_items: int, batch_size: int, seed: int, epoch: int) -> None:
    sampler = StatelessSampler(num_items, batch_size, seed)
    first, last = epoch * num_items, (epoch + 1) * num_items
    steps = range(first // batch_size, -(-last // batch_size))
    drawn = np.concatenate([sampler.batch(step) for step in steps])
    visited = drawn[first - steps[0] * batch_size :][:num_items]
    assert sorted(visited) == list(range(num_items))


def test_a_large_epoch_is_a_permutation_too() -> None:
    num_items = 1_000_003
    assert np.array_equal(np.sort(StatelessSampler(num_items, num_items).batch(5)), np.arange(num_items))


@given(num_items=st.integers(1, 2**40), batch_size=st.integers(1, 64), seed=seeds, step=st.integers(0, 10**6))
def test_a_batch_depends_on_seed_and_step_alone(num_items: int, batch_size: int, seed: int, step: int) -> None:
    sampler = StatelessSampler(num_items, batch_size, seed, start_step=step, num_steps=3)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 3
    resumed = StatelessSampler(num_items, batch_size, seed, start_step=step + 2)
    assert next(iter(resumed)) == batches[2] == pickle.loads(pickle.dumps(sampler)).batch(step + 2).tolist()
    assert all(0 <= i < num_items for batch in batches for i in batch)


def test_the_draws_do_not_depend_on_how_they_are_cut_into_batches() -> None:
    draws = [np.concatenate([StatelessSampler(77, size).batch(i) for i in range(240 // size)]) for size in (1, 8, 240)]
    assert draws[0].tolist() == draws[1].tolist() == draws[2].tolist()


def test_orders_of_different_seeds_and_epochs_are_unrelated() -> None:
    num_items = 10_000
    orders = [StatelessSampler(num_items, num_items, seed).batch(epoch) for seed in range(8) for epoch in range(8)]
    correlations = np.corrcoef(orders) - np.eye(len(orders))
    # Of 2,016 pairs of independent orders the largest correlation is about 0.036; 0.06 would be six deviations.
    assert np.abs(correlations).max() < 0.06
    equal = [(orders[i] == orders[j]).sum() for i in range(64) for j in range(i)]
    assert np.mean(equal) == pytest.approx(1, abs=0.15)  # as many fixed points as of random permutations
    steps = np.concatenate([np.diff(order) % num_items for order in orders])
    assert np.bincount(steps * 100 // num_items).std() / (len(steps) / 100) < 0.02  # neighbours are unrelated


@pytest.mark.parametrize("num_items", [2, 3, 7, 8, 16, 31])
def test_every_item_is_equally_likely_at_every_place(num_items: int) -> None:
    epochs = 10_000
    orders = StatelessSampler(num_items, num_items * epochs, seed=1).batch(0).reshape(epochs, num_items)
    counts = np.stack([np.bincount(column, minlength=num_items) for column in orders.T])  # (place, item)
    degrees = (num_items - 1) ** 2
    chi_squared = ((counts - epochs / num_items) ** 2).sum() * (num_items - 1) / epochs
    assert abs(chi_squared - degrees) < 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize(("num_items", "batch_size"), [(0, 1), (1, 0)])
def test_nothing_to_sample_is_refused(num_items: int, batch_size: int) -> None:
    with pytest.raises(InputError, match="1 or more"):
        StatelessSampler(num_items, batch_size)


def test_a_sampler_without_an_end_has_no_length() -> None:
    with pytest.raises(TypeError, match="never ends"):
        len(StatelessSampler(3, 1))
