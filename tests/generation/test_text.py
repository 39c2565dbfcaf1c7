"""Ids that come one by one: what is shown piece by piece is what decoding all of them gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.data import BPETokenizer, CharTokenizer, Tokenizer
from gpt2lab.generation.text import Decoder

TEXT = "状态。中日 é ü 👍🏽 नमस्ते שלום and plain words\n" * 3


@pytest.fixture(scope="module", params=["characters", "bpe", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = {
        "characters": lambda: CharTokenizer(TEXT),
        "bpe": lambda: BPETokenizer.train([TEXT], 300),
        "gpt2": BPETokenizer.gpt2,
    }
    found: Tokenizer = made[request.param]()
    return found


def test_every_script_appears_whole_and_a_character_only_when_it_is_complete(tokenizer: Tokenizer) -> None:
    decoder = Decoder(tokenizer)
    pieces = [decoder.add(int(id_)) for id_ in tokenizer.encode(TEXT)]
    assert "".join(pieces) == TEXT
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert decoder.end() == ""


@given(data=st.data())
def test_any_ids_are_shown_as_decoding_all_of_them_shows_them(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also those that a young model writes: bytes that form no character, and characters that are never completed."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    decoder = Decoder(tokenizer)
    assert "".join([*map(decoder.add, ids), decoder.end()]) == tokenizer.decode(ids)


@given(
    text=st.text("ab\n", max_size=40), stops=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_a_text_ends_before_the_first_stop_and_nothing_of_that_is_shown_on_the_way(text: str, stops: list[str]) -> None:
    letters = CharTokenizer("ab\n")
    decoder = Decoder(letters, stops)
    read = next((n for n in range(1, len(text) + 1) if any(stop in text[:n] for stop in stops)), None)
    right = text if read is None else text[: min(text.index(stop) for stop in stops if stop in text[:read])]
    shown = ""
    for number, id_ in enumerate(letters.encode(text), 1):
        shown += decoder.add(int(id_))
        assert right.startswith(shown)
        assert decoder.ended == (read is not None and number >= read)
    assert shown + decoder.end() == right


def test_a_stop_that_several_ids_spell_is_found(tokenizer: Tokenizer) -> None:
    for stop in ("中日", "é ü", "नम", " plain"):
        decoder = Decoder(tokenizer, [stop])
        pieces = [decoder.add(int(id_)) for id_ in tokenizer.encode(TEXT)]
        assert "".join(pieces) == TEXT[: TEXT.index(stop)]


def test_a_text_goes_on_behind_the_half_of_a_character(tokenizer: Tokenizer) -> None:
    ids = [int(id_) for id_ in tokenizer.encode(TEXT)]
    for cut in range(1, 40):
        decoder = Decoder(tokenizer)
        decoder.follow(ids[:cut])
        before = Decoder(tokenizer)
        shown = "".join(before.add(id_) for id_ in ids[:cut])
        assert shown + "".join(map(decoder.add, ids[cut:])) == TEXT
