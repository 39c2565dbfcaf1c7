import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st

from gpt2lab.data import Corpus

# Where tokenizers, regular expressions and UTF-8 decoders go wrong: runs of white space of every kind, contractions,
# accents that combine, characters of one to four bytes, control characters, the special token spelled out.
AWKWARD = [
    *" \n\t\r\v\f\x1c\x1f\x85\xa0\u2003\u2028\u3000\u200b\ufeff\0'",
    *"aZ0.-_éß中日🙂\U0010ffff\u0301\u200d",
    *["  ", "\r\n", "   \n\n  ", "'s", "'ll", " the", " of the King", "123", "--", "<|endoftext|>", "👩‍👩‍👧"],
]
awkward_text = st.lists(st.sampled_from(AWKWARD) | st.characters(exclude_categories=["Cs"]), max_size=60).map("".join)


@pytest.fixture(scope="session")
def make_corpus(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Corpus]:
    """Writes each text to a file of its own and opens them as one corpus."""
    folder, numbers = tmp_path_factory.mktemp("corpora"), itertools.count()

    def make(*texts: str | bytes) -> Corpus:
        files = []
        for text in texts:
            files.append(folder / f"{next(numbers)}.txt")
            files[-1].write_bytes(text if isinstance(text, bytes) else text.encode())
        return Corpus("made", tuple(files))

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tinyshakespeare() -> Path:
    path = os.environ.get("GPT2LAB_TINYSHAKESPEARE")
    if not path:
        pytest.skip("GPT2LAB_TINYSHAKESPEARE is not set to the path of tinyshakespeare's input.txt")
    return Path(path)


@pytest.fixture(scope="session")
def shakespeare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of the default corpus."""
    from gpt2lab.data import open_corpus

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("shakespeare")))
        return open_corpus("shakespeare").files[0].read_bytes().decode("ascii")
