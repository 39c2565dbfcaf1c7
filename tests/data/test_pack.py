"""Documents into shards: against a loop over all documents, and against a packing that nothing interrupted."""

import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.data import BPETokenizer, CharTokenizer, Tokenizer, corpora, documents, load_tokenizer
from gpt2lab.data import pack as pack_module
from gpt2lab.data.pack import pack
from gpt2lab.errors import InputError
from tests.data.conftest import awkward_text
from tests.data.test_documents import write_jsonl
from tests.data.test_shards import by_hand


def shards_of(documents: Sequence[str], tokenizer: Tokenizer, length: int) -> list[bytes]:
    """What the shards have to be: an end of text before every document, cut into shards of this length."""
    ids = [i for document in documents for i in [tokenizer.end_of_text, *tokenizer.encode(document).tolist()]]
    return [by_hand(ids[first : first + length]) for first in range(0, len(ids), length)]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def shard_files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.bin"))]


@pytest.fixture(scope="module")
def small_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    BPETokenizer.train(["of the King's  men\n\n" * 50], 300).save(path)
    return path


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few words, so that a short text has many."""
    monkeypatch.setattr(documents, "BLOCK_BYTES", 40)
    monkeypatch.setattr(corpora, "BLOCK_BYTES", 40)


@settings(max_examples=12)
@given(
    lines=st.lists(awkward_text, min_size=1, max_size=8),
    text=awkward_text,
    length=st.integers(1, 50),
    processes=st.integers(1, 2),
    block=st.integers(1, 60),
)
def test_shards_hold_the_stream_of_documents_whatever_the_pieces_and_processes(
    tmp_path_factory: pytest.TempPathFactory,
    small_bpe: Path,
    lines: list[str],
    text: str,
    length: int,
    processes: int,
    block: int,
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    write_jsonl(folder / "lines.jsonl", lines)
    (folder / "text.txt").write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK_BYTES", block)
        patch.setattr(corpora, "BLOCK_BYTES", block)
        packed = pack([folder], folder / "out", str(small_bpe), shard_tokens=length, processes=processes)
    tokenizer = load_tokenizer(small_bpe)
    assert shard_files(folder / "out") == shards_of([*lines, *filter(None, [text])], tokenizer, length)
    assert packed.tokenizer().fingerprint() == tokenizer.fingerprint()
    assert tokenizer.decode(packed[np.arange(len(packed))]) == "".join(lines) + text


def test_a_tokenizer_is_learned_from_all_the_documents(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["banana", "žluťoučký"])
    (tmp_path / "b.txt").write_text("kůň", encoding="utf-8")
    pack([tmp_path], tmp_path / "char", "char")
    letters = CharTokenizer("bananažluťoučkýkůň")
    assert load_tokenizer(tmp_path / "char" / "tokenizer.json").fingerprint() == letters.fingerprint()
    assert shard_files(tmp_path / "char") == shards_of(["banana", "žluťoučký", "kůň"], letters, 99)
    pack([tmp_path], tmp_path / "bpe", "bpe", vocab_size=260)
    learned = BPETokenizer.train(["banana", "žluťoučký", "kůň"], 260)
    assert load_tokenizer(tmp_path / "bpe" / "tokenizer.json").fingerprint() == learned.fingerprint()


def test_gpt2s_own_ids_are_the_default(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Hello world")
    packed = pack([tmp_path / "a.txt"], tmp_path / "out")
    assert packed[np.arange(len(packed))].tolist() == [50256, 15496, 995]
    assert packed.tokenizer(BPETokenizer.gpt2()).vocab_size == 50257  # the one that --tokenizer gpt2 means


def test_a_plain_script_packs_though_it_protects_nothing_from_being_run_again(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 50)
    script = tmp_path / "script.py"
    script.write_text('import gpt2lab\nprint("here")\ngpt2lab.pack("text.txt", "out", "char", processes=2)\n')
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "")
    assert (tmp_path / "out" / "tokens_000000.bin").exists()


def test_progress_is_told_in_bytes_of_the_inputs(tmp_path: Path, small_pieces: None) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["some words"] * 20)
    (tmp_path / "b.txt").write_text("and others " * 20)
    told: list[tuple[str, int, int]] = []
    pack([tmp_path], tmp_path / "out", "char", progress=lambda *what: told.append(what))
    total = (tmp_path / "a.jsonl").stat().st_size + 220
    for what in ("learning the tokenizer", "packing"):
        done = [done for doing, done, of in told if doing == what and of == total]
        assert len(done) > 10
        assert done == sorted(done)
        assert done[-1] == total
    assert len(told) == sum(1 for what in told if what[2] == total)


def test_memory_does_not_grow_with_documents_or_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (documents, corpora):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 16)
    CharTokenizer("a word\n").save(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text("a word\n" * 600_000)
    write_jsonl(tmp_path / "b.jsonl", ["a word " * 100] * 6_000)
    tracemalloc.start()
    try:
        packed = pack([tmp_path], tmp_path / "out", str(tmp_path / "tokenizer.json"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(packed) == 8_400_000 + 6_000 + 1
    assert len(packed.files) == 1
    assert peak < 3_000_000


# Going on


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    draw = np.random.default_rng(1)
    words = "the king and queen of night speak no more than love".split()
    files = [tmp_path / "a.jsonl", tmp_path / "b.txt", tmp_path / "c.jsonl"]
    for file in files:
        lines = [" ".join(draw.choice(words, 1 + number % 9)) for number in range(40)]
        if file.suffix == ".txt":
            file.write_text("\n".join(lines))
        else:
            write_jsonl(file, lines)
    return files


@pytest.mark.usefixtures("small_pieces")
def test_an_interrupted_packing_goes_on_and_ends_with_the_same_files(
    tmp_path: Path, inputs: list[Path], small_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"tokenizer": str(small_bpe), "shard_tokens": 97}
    pack(inputs, tmp_path / "whole", **options)
    whole = files_in(tmp_path / "whole")
    assert len(whole) > 10
    write, begun = pack_module.replace_files, itertools.count()

    def interrupted(out: Path, contents: dict[str, Any]) -> None:
        (name,) = contents
        if name.endswith(".json"):
            return write(out, contents)
        if next(begun) % 4 == 3:  # before a shard, or when it is written, but not yet in the record
            if name[-5] in "02468":
                write(out, contents)
            (out / f"{name}.{'0' * 32}.tmp").write_bytes(b"half a sh")
            raise KeyboardInterrupt
        written.append(name)
        return write(out, contents)

    written: list[str] = []
    monkeypatch.setattr(pack_module, "replace_files", interrupted)
    for _ in range(len(whole)):
        try:
            pack(inputs, tmp_path / "parts", **options)
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "parts" / "tokens_000000.bin").exists() or written
    assert files_in(tmp_path / "parts") == whole
    assert len(written) == len(set(written)) == len(whole) - 3  # none that was complete was made again
    pack(inputs, tmp_path / "parts", **options)
    assert files_in(tmp_path / "parts") == whole
    assert len(written) == len(whole) - 3


@pytest.mark.usefixtures("small_pieces")
def test_a_shard_that_is_missing_or_damaged_is_made_again(tmp_path: Path, inputs: list[Path]) -> None:
    pack(inputs, tmp_path / "out", "char", shard_tokens=500)
    whole = files_in(tmp_path / "out")
    for name in ("tokens_000000.bin", "tokens_000003.bin", max(n for n in whole if n.endswith(".bin"))):
        (tmp_path / "out" / name).unlink()
        pack(inputs, tmp_path / "out", "char", shard_tokens=500)
        assert files_in(tmp_path / "out") == whole
        (tmp_path / "out" / name).write_bytes(whole[name][:-2])
        pack(inputs, tmp_path / "out", "char", shard_tokens=500)
        assert files_in(tmp_path / "out") == whole


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("number", [0, 1, 2])
def test_after_an_input_was_corrected_the_shards_before_it_are_kept(
    tmp_path: Path, inputs: list[Path], small_bpe: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"tokenizer": str(small_bpe), "shard_tokens": 97}
    right = inputs[number].read_bytes()
    inputs[number].write_bytes(right + b"\xff\n")
    with pytest.raises(InputError, match=inputs[number].name):
        pack(inputs, tmp_path / "out", **options)
    before = len(shard_files(tmp_path / "out"))
    assert before > 3
    inputs[number].write_bytes(right)
    os.utime(inputs[number], ns=(1, 1))
    pack(inputs, tmp_path / "fresh", **options)
    tokens_before = len(pack(inputs[:number], tmp_path / "first", **options)) if number else 0
    made: list[str] = []
    write = pack_module.write_shard
    monkeypatch.setattr(pack_module, "write_shard", lambda path, pieces: (made.append(path.name), write(path, pieces)))
    pack(inputs, tmp_path / "out", **options)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "fresh")
    assert len(shard_files(tmp_path / "out")) - len(made) == min(before, tokens_before // 97)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_a_flipped_bit_in_a_finished_shard_is_found_by_the_same_command_and_mended(
    tmp_path: Path, inputs: list[Path], place: float
) -> None:
    pack(inputs, tmp_path / "out", "char", shard_tokens=500)
    whole = files_in(tmp_path / "out")
    name = "tokens_000001.bin"
    content = bytearray(whole[name])
    content[1024 + int(place * (len(content) - 1024))] ^= 1
    (tmp_path / "out" / name).write_bytes(content)
    pack(inputs, tmp_path / "out", "char", shard_tokens=500)
    assert files_in(tmp_path / "out") == whole


def test_a_record_or_a_tokenizer_that_was_edited_is_refused(tmp_path: Path, inputs: list[Path]) -> None:
    out = tmp_path / "out"
    pack(inputs, out, "char", shard_tokens=500)
    record = out / "pack.json"
    record.write_text(record.read_text().replace("[1, 0, ", "[1, 0, 1", 1))  # a shard begins elsewhere
    with pytest.raises(InputError, match=r"pack\.json is damaged, or was edited since"):
        pack(inputs, out, "char", shard_tokens=500)
    CharTokenizer("other letters").save(tmp_path / "tokenizer.json")
    (out / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match=r"tokenizer\.json is damaged, or was edited since"):
        load_tokenizer(out / "tokenizer.json")


def test_shards_that_a_shorter_input_no_longer_fills_are_gone(
    tmp_path: Path, inputs: list[Path], small_bpe: Path
) -> None:
    options = {"tokenizer": str(small_bpe), "shard_tokens": 97}
    pack(inputs, tmp_path / "out", **options)
    (tmp_path / "out" / "notes.bin").write_bytes(b"the user's own")
    inputs[2].write_text('{"text": "a word"}\n')
    pack(inputs, tmp_path / "out", **options)
    pack(inputs, tmp_path / "fresh", **options)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "fresh") | {"notes.bin": b"the user's own"}


# What cannot be


def test_options_that_changed_are_refused_and_nothing_is_lost(
    tmp_path: Path, inputs: list[Path], small_bpe: Path
) -> None:
    pack(inputs, tmp_path / "out", "char", shard_tokens=1000)
    before = files_in(tmp_path / "out")

    def refused(words: str, inputs: Sequence[Path] = inputs, tokenizer: str = "char", **options: object) -> None:
        with pytest.raises(InputError, match=words) as raised:
            pack(inputs, tmp_path / "out", tokenizer, **({"shard_tokens": 1000} | options))  # type: ignore[arg-type]
        assert "choose another --out" in str(raised.value)
        assert files_in(tmp_path / "out") == before

    refused("was begun with shard_tokens=1000, not 999;", shard_tokens=999)
    refused("was begun with text_column='text', not 'body';", inputs[1:2], text_column="body")
    refused("was begun with tokenizer='char', not 'bpe';", tokenizer="bpe")
    refused("was begun with tokenizer='char', not ", tokenizer=str(small_bpe))
    refused("was begun with other inputs", inputs[:2])
    refused("was begun with other inputs, or in another order", inputs[::-1])
    os.utime(inputs[1], ns=(1, 1))
    refused(r"b\.txt changed since .*learned from that")
    (tmp_path / "out" / "pack.json").write_text("{}")
    before = files_in(tmp_path / "out")
    refused(r"pack\.json is damaged")


def test_a_folder_with_other_shards_is_left_alone(tmp_path: Path, inputs: list[Path]) -> None:
    (tmp_path / "fineweb_train_000001.bin").write_bytes(by_hand([1]))
    with pytest.raises(InputError, match=r"holds other \.bin files"):
        pack(inputs, tmp_path, "char")
    assert not (tmp_path / "pack.json").exists()


def test_what_cannot_be_packed_leaves_nothing_behind(tmp_path: Path, inputs: list[Path]) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    many = "".join(chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000)[: 2**16 + 5]
    (tmp_path / "many.txt").write_bytes(many.encode())
    (tmp_path / "bad.jsonl").write_text("{}")
    cases: list[tuple[str, list[Path], dict[str, object]]] = [
        (
            "shard_tokens is 0; it has to be a whole number, at least 1 and at most 2,147,483,647",
            inputs,
            {"shard_tokens": 0},
        ),
        ("shard_tokens is 2147483648", inputs, {"shard_tokens": 2**31}),
        ("there is no file", [tmp_path / "none.txt"], {}),
        ("there is no text in", [tmp_path / "empty.txt", tmp_path / "empty.jsonl"], {}),
        ("line 1: there is no 'text'", [tmp_path / "bad.jsonl"], {}),
        ("tokenizer char has 65,542 ids, but a shard has 16 bits", [tmp_path / "many.txt"], {"tokenizer": "char"}),
        ("tokenizer nowhere.json cannot be read", inputs, {"tokenizer": "nowhere.json"}),
        ("100 is too small", inputs, {"tokenizer": "bpe", "vocab_size": 100}),
    ]
    for words, files, options in cases:
        with pytest.raises(InputError, match=words):
            pack(files, tmp_path / "out", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()


def test_a_character_that_the_tokenizer_lacks_is_told_with_its_file(tmp_path: Path) -> None:
    CharTokenizer("abc").save(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "b.txt").write_text("abcX")
    with pytest.raises(InputError, match=r"b\.txt, before byte 4: .*do not include 'X' at position 3"):
        pack([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", str(tmp_path / "tokenizer.json"))


def test_the_record_says_where_every_shard_begins(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["abc", "ab"])
    (tmp_path / "b.txt").write_text("abcabc")
    pack([tmp_path], tmp_path / "out", "char", shard_tokens=4)
    record = json.loads((tmp_path / "out" / "pack.json").read_text())
    assert record["starts"] == [[0, 0, 0], [0, 0, 4], [1, 0, 1], [1, 0, 5], [1, 0, 7]]
    assert record["finished"] is True


def test_what_cannot_be_read_is_left_out_on_request_counted_and_named(tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "a.jsonl").write_text('{"text": "abc"}\n{"text": ""}\n{"text": null}\nnothing\n{"text": "bca"}\n')
    (inputs / "b.txt").write_bytes(b"\xff")
    (inputs / "c.txt").write_bytes(b"cab")
    with pytest.raises(InputError, match=r"a\.jsonl, line 3"):
        pack(inputs, tmp_path / "strict", "char")
    packed = pack(inputs, tmp_path / "out", "char", skip_unreadable=True, shard_tokens=5)
    letters = CharTokenizer("abc")
    assert shard_files(tmp_path / "out") == shards_of(["abc", "bca", "cab"], letters, 5)
    (note,) = packed.notes
    assert note.startswith("left out 4: ")
    assert note.endswith("; and 1 more")
    assert "line 2: text is empty" in note
    # Going on is with the same options, and finds the same.
    (tmp_path / "out" / "tokens_000001.bin").unlink()
    with pytest.raises(InputError, match="skip_unreadable=True, not"):
        pack(inputs, tmp_path / "out", "char", shard_tokens=5)
    pack(inputs, tmp_path / "out", "char", skip_unreadable=True, shard_tokens=5)
    assert shard_files(tmp_path / "out") == shards_of(["abc", "bca", "cab"], letters, 5)


def test_inputs_that_hold_the_same_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    packed = pack([tmp_path / "a.txt", tmp_path / "*.txt"], tmp_path / "out", "char")
    assert "holds the same as" in packed.notes[0]
    assert pack([tmp_path / "a.txt"], tmp_path / "once", "char").notes == ()
