"""What is read of text, JSONL and Parquet files, and what is refused."""

import bz2
import gzip
import json
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from gpt2lab.data import corpora, documents
from gpt2lab.data.documents import LeftOut, find_documents, read_pieces
from gpt2lab.errors import InputError
from tests.data.conftest import awkward_text

texts = st.lists(awkward_text, min_size=1, max_size=12)


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts), encoding="utf-8")


def write_gzipped(path: Path, texts: list[str]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n\n" for text in texts)  # and empty lines


def write_parquet(path: Path, texts: list[str]) -> None:
    table = pyarrow.table({"id": range(len(texts)), "text": pyarrow.array(texts, pyarrow.large_string())})
    parquet.write_table(table, path, row_group_size=3)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", write_jsonl), ("a.jsonl.gz", write_gzipped), ("a.parquet", write_parquet)],
)
@given(texts=texts, block=st.integers(1, 60))
def test_every_line_or_row_is_a_document_and_pieces_hold_whole_ones(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    write: Callable[[Path, list[str]], None],
    texts: list[str],
    block: int,
) -> None:
    path = tmp_path_factory.mktemp("documents") / name
    write(path, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK_BYTES", block)
        pieces = list(read_pieces(path))
    assert [text for piece in pieces for text in piece.texts] == texts
    assert not any(piece.continues for piece in pieces)
    assert all(sum(1 + len(text) for text in piece.texts[:-1]) < block for piece in pieces)
    positions = [piece.position for piece in pieces]
    assert positions == sorted(positions)
    assert positions[-1] <= path.stat().st_size


@given(text=awkward_text.filter(bool), block=st.integers(1, 60))
def test_a_text_file_is_one_document_in_pieces_that_continue(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int
) -> None:
    path = tmp_path_factory.mktemp("documents") / "text.md"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "BLOCK_BYTES", block)
        pieces = list(read_pieces(path))
    assert "".join(text for piece in pieces for text in piece.texts) == text
    assert [piece.continues for piece in pieces] == [False] + [True] * (len(pieces) - 1)
    assert pieces[-1].position == path.stat().st_size


def test_endings_in_capitals_tell_what_a_file_is(tmp_path: Path) -> None:
    for name, write in {"A.JSONL": write_jsonl, "A.JSONL.GZ": write_gzipped, "A.PARQUET": write_parquet}.items():
        write(tmp_path / name, ["one", "two"])
        assert [piece.texts for piece in read_pieces(tmp_path / name)] == [["one", "two"]]


TWO = b'{"text": "one"}\n{"text": "two"}\n'


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a", "a.data", "a.gz", "A.JSON.XZ", "a.jsonl.bz2"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_lines_of_json_are_documents_however_the_file_is_called_and_compressed(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(pack(TWO))
    assert [piece.texts for piece in read_pieces(tmp_path / name)] == [["one", "two"]]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md", "a"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_text_is_one_document_however_it_is_called_and_compressed(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    text = "{ it begins\n like an object\n" * 99_999
    (tmp_path / name).write_bytes(pack(text.encode()))
    pieces = list(read_pieces(tmp_path / name))
    assert "".join(text for piece in pieces for text in piece.texts) == text
    assert [piece.continues for piece in pieces] == [False] + [True] * (len(pieces) - 1)
    assert pieces[-1].position == (tmp_path / name).stat().st_size


def test_a_text_file_is_text_whatever_is_in_it_and_parquet_shows_in_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TWO)
    assert "".join(text for piece in read_pieces(tmp_path / "a.txt") for text in piece.texts) == TWO.decode()
    write_parquet(tmp_path / "b.txt", ["one", "two"])
    assert [piece.texts for piece in read_pieces(tmp_path / "b.txt")] == [["one", "two"]]


DAMAGED: dict[str, tuple[bytes, list[str], list[str]]] = {
    "a.jsonl": (
        b'{"text": "one"}\n{"text": null}\n{"body": "x"}\nno JSON\n{"text": " "}\n{"text": "two"}\n',
        ["one", "two"],
        ["line 2: text is", "line 3: there is no 'text'", "line 4: it is not JSON", "line 5: text is empty"],
    ),
    "b.jsonl.gz": (gzip.compress(TWO, mtime=0)[:-4], ["one", "two"], ["cannot be unpacked"]),
    "c.txt": (b"good until \xff", [], ["byte 11 is 0xff"]),
    "d.txt": (b" \n", [], ["d.txt is empty"]),
    "e.parquet": (b"PAR1", [], ["no Parquet file"]),
    "f.txt": (b"good", ["good"], []),
    "g.jsonl.zst": (b"\x28\xb5\x2f\xfd", [], ["zstd"]),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_cannot_be_read_is_left_out_on_request_and_named(tmp_path: Path, name: str) -> None:
    content, texts, words = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    left_out = LeftOut()
    pieces = list(read_pieces(tmp_path / name, left_out=left_out))
    assert [text for piece in pieces for text in piece.texts] == texts
    assert left_out.number == len(words)
    for sentence, word in zip(left_out.first, words[: documents.SHOWN], strict=True):
        assert str(tmp_path / name) in sentence
        assert word in sentence


def test_a_json_file_in_a_folder_counts_if_it_holds_documents(tmp_path: Path) -> None:
    (tmp_path / "documents.json").write_bytes(TWO)
    (tmp_path / "settings.json").write_text('{"version": 1}')
    (tmp_path / "pretty.json").write_text('{\n  "text": "one"\n}\n')
    assert [path.name for path in find_documents([tmp_path])] == ["documents.json"]
    with pytest.raises(InputError, match="line 1: there is no 'text'; it has version"):
        list(read_pieces(tmp_path / "settings.json"))


READ_IN_A_PROCESS = """
import sys
import pyarrow
from pathlib import Path
from gpt2lab.data.documents import read_pieces
assert sum(len(text) for piece in read_pieces(Path(sys.argv[1])) for text in piece.texts) == int(sys.argv[2])
print(pyarrow.default_memory_pool().max_memory())
"""


def test_of_a_parquet_file_only_a_part_is_in_memory(tmp_path: Path) -> None:
    letters = random.Random(0)
    row = "".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=20_000))
    table = pyarrow.table({"text": [row[i % 1000 :] + str(i) for i in range(4_000)], "id": range(4_000)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100, compression="none", use_dictionary=False)
    size = sum(len(text) for text in table["text"].to_pylist())
    command = [sys.executable, "-c", READ_IN_A_PROCESS, tmp_path / "a.parquet", str(size)]
    most = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (tmp_path / "a.parquet").stat().st_size > 70e6
    assert most < 40e6


def test_the_text_is_in_the_column_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "no", "body": "yes"}\n')
    parquet.write_table(pyarrow.table({"text": ["no"], "body": ["yes"]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert [piece.texts for piece in read_pieces(tmp_path / name, "body")] == [["yes"]]


def test_documents_are_found_in_folders_by_globs_and_by_name_in_this_order(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.txt", "a.parquet", "c.jsonl.gz", "below/d.jsonl", "notes.md", "x.bin"):
        (tmp_path / name).touch()
    found = find_documents([tmp_path / "notes.md", tmp_path, str(tmp_path / "*.txt")])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["notes.md", "a.parquet", "b.txt", "below/d.jsonl", "c.jsonl.gz", "b.txt"]
    (tmp_path / "empty").mkdir()
    for name, words in {
        "none.txt": "there is no file, folder or glob",
        "empty": "no .txt, .jsonl, .ndjson, .json, .parquet is in",
    }.items():
        with pytest.raises(InputError, match=f"{words}.*{name}"):
            find_documents([tmp_path / "b.txt", tmp_path / name])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', ["line 2", "not JSON"]),
        ("a.jsonl", b'{"text": "\xff"}\n', ["line 1", "not JSON", "0xff"]),
        ("a.jsonl", b'{"text": "a"}\n"text"\n', ["line 2", "no 'text'", "no object"]),
        ("a.jsonl", b'{"body": "a", "id": 1}\n', ["line 1", "no 'text'", "it has body, id", "--text-column"]),
        ("a.jsonl", b'{"text": null}\n', ["line 1", "text is 'None'", "no text"]),
        ("a.jsonl", b'{"text": "a\\ud800"}\n', ["line 1", "character 1", "half of a pair", "\\ud800"]),
        ("a.jsonl", b"[" * 100_000, ["line 1", "not JSON"]),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9, mtime=0)[:-10], ["cannot be unpacked", "again"]),
        ("a.jsonl.xz", lzma.compress(b'{"text": "a"}\n' * 9)[:-10], ["cannot be unpacked", "again"]),
        ("a.bz2", bz2.compress(b"a text" * 999)[:20], ["cannot be unpacked", "again"]),
        ("a.jsonl", b"\x28\xb5\x2f\xfd and more", ["compressed by zstd", "zstd -d"]),
        ("a.parquet", b"PAR1 is how it begins", ["no Parquet file"]),
        ("a.txt", b"fine so far \xff", ["not UTF-8", "byte 12"]),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(
    tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        list(read_pieces(tmp_path / name))
    for word in (str(tmp_path / name), *words):
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def test_parquet_without_the_column_or_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["a"], "id": [1]}), path)
    with pytest.raises(InputError, match=r"a\.parquet: there is no 'text'; it has body, id: say with --text-column"):
        list(read_pieces(path))
    with pytest.raises(InputError, match="row 1: id is '1', which is no text"):
        list(read_pieces(path, "id"))
    parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(InputError, match="row 2: text is 'None'"):
        list(read_pieces(path))


def test_a_line_that_is_too_long_is_refused_or_left_out_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2lab.data.documents.LONGEST_LINE", 1 << 20)
    lines = ['{"text": "a"}', '{"text": "' + "x" * (3 << 20) + '"}', '{"text": "b"}', '{"text": "c"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: it is longer than 1 MiB"):
        list(read_pieces(tmp_path / "a.jsonl"))
    left_out = LeftOut()
    found = [text for piece in read_pieces(tmp_path / "a.jsonl", left_out=left_out) for text in piece.texts]
    assert found == ["a", "b", "c"]
    assert left_out.number == 1


def test_parquet_that_is_damaged_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, ["something to compress " * 50] * 10)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196  # the first row group; the footer is whole
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet is no Parquet file, or damaged after row 0"):
        list(read_pieces(path))


def test_without_pyarrow_parquet_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"not installed; run: pip install pyarrow$"):
        list(read_pieces(tmp_path / "a.parquet"))
