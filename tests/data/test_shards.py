"""Token shards against the layout that llm.c's C code reads, and many of them against the one stream they hold."""

import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.data import (
    BPETokenizer,
    CharTokenizer,
    Shards,
    StatelessSampler,
    TokenDataset,
    find_shards,
    read_shard,
    write_shard,
)
from gpt2lab.errors import InputError


def by_hand(ids: Sequence[int], magic: int = 20240520, version: int = 1, count: int | None = None) -> bytes:
    """A shard as llm.c's dataloader.h reads it: int header[256], then uint16_t tokens[header[2]]."""
    header = struct.pack("<3i", magic, version, len(ids) if count is None else count)
    return header + bytes(4 * 253) + struct.pack(f"<{len(ids)}H", *ids)


def made_of(folder: Path, ids: npt.NDArray[np.integer], borders: Sequence[int]) -> Shards:
    """The ids as shards that end at these borders."""
    files = [folder / f"{number:03d}.bin" for number in range(len(borders) + 1)]
    for file, part in zip(files, np.split(ids, borders), strict=True):
        file.write_bytes(by_hand(part.tolist()))
    return Shards("made", files)


# One shard


@given(ids=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=50), cuts=st.lists(st.integers(0, 50), max_size=3))
def test_a_shard_is_written_as_llm_c_reads_it_however_the_ids_come(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("shard") / "one.bin"
    assert write_shard(path, np.split(np.array(ids), sorted(cuts))) == len(ids)
    assert path.read_bytes() == by_hand(ids)
    tokens = read_shard(path)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == ids


def test_a_shard_is_memory_mapped_and_cannot_be_changed_by_reading(tmp_path: Path) -> None:
    (tmp_path / "one.bin").write_bytes(by_hand([1, 2, 3]))
    tokens = read_shard(tmp_path / "one.bin")
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable


@pytest.mark.parametrize("ids", [[1, 65_536], [-1, 2]])
def test_ids_that_16_bits_cannot_hold_are_refused_and_leave_no_file(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(InputError, match=r"id (65536|-1) cannot be written.*at most 65,536 ids"):
        write_shard(tmp_path / "one.bin", [np.array([5]), np.array(ids)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["0 bytes", "1,024"]),
        (by_hand([])[:1000], ["1000 bytes", "1,024"]),
        (by_hand([1, 2], magic=20240801), ["begins with 20240801, not 20240520", "Llama 3", "nanoGPT", "data pack"]),
        (np.arange(1, 2000, dtype="<u2").tobytes(), ["not 20240520"]),  # nanoGPT's: ids and nothing else
        (by_hand([1, 2], version=2), ["version 2", "version 1"]),
        (by_hand([]), ["no tokens"]),
        (by_hand([1, 2], count=-5), ["no tokens", "-5"]),
        (by_hand([1, 2, 3])[:-2], ["1,028 bytes", "3 tokens", "1,030", "the last 2 are missing", "again"]),
        (by_hand([1, 2, 3])[:-1], ["the last 1 are missing"]),
        (by_hand([1, 2, 3]) + b"\0\0\0", ["1,033 bytes", "3 are too many"]),
    ],
    ids=["empty", "half a header", "Llama 3", "nanoGPT", "version", "none", "negative", "tail", "half an id", "more"],
)
def test_a_file_that_is_no_whole_shard_is_refused_with_what_differs(
    tmp_path: Path, content: bytes, words: list[str]
) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(content)
    for read in (read_shard, lambda path: find_shards(str(path))):
        with pytest.raises(InputError) as raised:
            read(path)
        assert str(path) in str(raised.value)
        for word in words:
            assert word in str(raised.value)


def test_a_shard_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.bin cannot be read \(No such file"):
        read_shard(tmp_path / "none.bin")


# Many shards


@given(data=st.data(), num_tokens=st.integers(2, 60))
def test_any_split_of_a_stream_into_shards_reads_as_the_unsplit_stream(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, num_tokens: int
) -> None:
    ids = np.random.default_rng(num_tokens).integers(0, 2**16, num_tokens).astype(np.uint16)
    borders = sorted(data.draw(st.sets(st.integers(1, num_tokens - 1), max_size=10)))
    shards = made_of(tmp_path_factory.mktemp("shards"), ids, borders)
    start = data.draw(st.integers(-num_tokens - 2, num_tokens + 2) | st.none())
    stop = data.draw(st.integers(-num_tokens - 2, num_tokens + 2) | st.none())
    for whole, stream in ((ids, shards), (ids[start:stop], shards[start:stop]), (ids[1:][:-1], shards[1:][:-1])):
        assert len(stream) == len(whole)
        assert stream[np.arange(len(whole))].tolist() == whole.tolist()
        if len(whole):
            index = data.draw(st.lists(st.integers(-len(whole), len(whole) - 1), min_size=4, max_size=4))
            found = stream[np.array(index).reshape(2, 2)]
            assert found.dtype == np.uint16
            assert np.array_equal(found, whole[np.array(index).reshape(2, 2)])
            assert int(stream[index[0]]) == whole[index[0]]
        for outside in (len(whole), -len(whole) - 1):
            with pytest.raises(IndexError, match=f"position {outside}"):
                stream[np.array([outside])]


@given(data=st.data(), context=st.integers(1, 8), seed=st.integers(0, 99))
def test_windows_batches_and_tiles_cross_the_borders_of_shards(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, context: int, seed: int
) -> None:
    ids = np.arange(40, dtype=np.uint16)
    borders = sorted(data.draw(st.sets(st.integers(1, 39), max_size=12)))
    shards = made_of(tmp_path_factory.mktemp("shards"), ids, borders)
    one, many = TokenDataset(ids, context, 40), TokenDataset(shards, context, 40)
    sampler = StatelessSampler(len(one), 6, seed)
    for step in range(3):
        indices = sampler.batch(step).tolist()
        for a, b in zip(one.__getitems__(indices), many.__getitems__(indices), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(one.tiles(), many.tiles(), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert torch.equal(one[-1][1], many[-1][1])


def test_shuffling_is_global_and_a_function_of_seed_and_step(tmp_path: Path) -> None:
    dataset = TokenDataset(made_of(tmp_path, np.arange(1000), [100, 350, 351, 900]), 4, 1000)
    sampler = StatelessSampler(len(dataset), 12, seed=3)
    steps = len(dataset) // 12
    epoch = torch.cat([dataset.__getitems__(sampler.batch(step).tolist())[0] for step in range(steps)])
    assert sorted(epoch[:, 0].tolist()) == list(range(996))  # every stretch once, those over borders too
    assert torch.equal(epoch, epoch[:, :1] + torch.arange(4))
    quarters = (epoch[:, 0] // 249).reshape(steps, 12)
    assert all(len(set(batch.tolist())) >= 2 for batch in quarters)  # a batch is from everywhere
    again = next(iter(StatelessSampler(len(dataset), 12, seed=3, start_step=57)))  # as a resumed training starts
    assert torch.equal(dataset.__getitems__(again)[0], epoch[57 * 12 : 58 * 12])


def test_more_shards_are_read_than_files_may_be_open(tmp_path: Path) -> None:
    shards = made_of(tmp_path, np.arange(1500), range(1, 1500))
    (tmp_path / "pickled").write_bytes(pickle.dumps(shards))  # as it comes to another process
    code = """
import pickle, resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
shards = pickle.load(open(sys.argv[1], "rb"))
assert shards[np.arange(1500)].tolist() == list(range(1500))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "pickled")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_shard_that_is_written_again_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    first = made_of(tmp_path, np.array([1, 2, 3]), [])
    assert first[np.arange(3)].tolist() == [1, 2, 3]
    (tmp_path / "000.bin").write_bytes(by_hand([7, 8, 9]))
    os.utime(tmp_path / "000.bin", ns=(0, 0))
    assert Shards("again", first.files)[np.arange(3)].tolist() == [7, 8, 9]


def test_a_view_with_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no view with a step"):
        made_of(tmp_path, np.arange(5), [])[::2]


# Vocabulary and tokenizer


def test_ids_outside_the_vocabulary_are_told_with_their_place(tmp_path: Path) -> None:
    ids = np.zeros(10_000, np.int64)
    ids[7_000] = 80
    shards = made_of(tmp_path, ids, [1_000])
    with pytest.raises(InputError, match=r"token 6,000 of .*001\.bin is 80, but the tokenizer has only 80 ids"):
        shards.of_vocabulary(80)[np.arange(6_990, 7_010)]  # far from any beginning: found when it is read
    assert shards.of_vocabulary(81)[np.array([7_000])].tolist() == [80]
    (tmp_path / "001.bin").write_bytes(by_hand([0, 0, 99]))
    with pytest.raises(InputError, match=r"token 2 of .*001\.bin is 99"):
        Shards("made", shards.files).of_vocabulary(80)  # at once


def test_the_tokenizer_is_the_one_beside_the_shards(tmp_path: Path) -> None:
    shards, letters = made_of(tmp_path, np.arange(3), []), CharTokenizer("abc")
    with pytest.raises(InputError, match=r"no tokenizer\.json is beside .* --tokenizer gpt2"):
        shards.tokenizer()
    assert shards.tokenizer(letters) is letters
    letters.save(tmp_path / "tokenizer.json")
    assert shards.tokenizer().fingerprint() == letters.fingerprint()
    assert shards.tokenizer(letters) is letters
    with pytest.raises(InputError, match=r"tokenizer\.json, which is another tokenizer"):
        shards.tokenizer(BPETokenizer.train(["abc"], 257))


def test_shards_of_two_tokenizers_are_not_one_stream(tmp_path: Path) -> None:
    for name in ("ab", "abc"):
        (tmp_path / name).mkdir()
        made_of(tmp_path / name, np.arange(2), [])
        CharTokenizer(name).save(tmp_path / name / "tokenizer.json")
    shards = find_shards(str(tmp_path / "*" / "*.bin"))
    assert shards is not None
    with pytest.raises(InputError, match="another tokenizer"):
        shards.tokenizer()


# Which files, which parts


def test_shards_are_found_as_file_folder_and_glob_in_the_order_of_their_names(tmp_path: Path) -> None:
    made_of(tmp_path, np.arange(30), [10, 20])
    (tmp_path / "tokenizer.json").write_text("{}")
    for text, stop in ((tmp_path, 30), (tmp_path / "*.bin", 30), (tmp_path / "00[01].bin", 20)):
        found = find_shards(str(text))
        assert found is not None
        assert found[np.arange(len(found))].tolist() == list(range(stop))
    one = find_shards(str(tmp_path / "001.bin"))
    assert one is not None
    assert one[np.arange(len(one))].tolist() == list(range(10, 20))
    (tmp_path / "text.md").write_text("text")
    for text in (tmp_path / "text.md", tmp_path / "*.md", tmp_path / "none.bin", tmp_path / "none"):
        assert find_shards(str(text)) is None


def test_shards_among_texts_are_refused(tmp_path: Path) -> None:
    made_of(tmp_path, np.arange(3), [])
    (tmp_path / "text.txt").write_text("text")
    for text in (tmp_path, tmp_path / "*"):
        with pytest.raises(InputError, match=r"token shards \(000\.bin\) and other files \(text\.txt\).*/\*\.bin"):
            find_shards(str(text))


def test_parts_are_cut_off_by_fractions(tmp_path: Path) -> None:
    shards = made_of(tmp_path, np.arange(101), [50])
    assert shards.split() == {"train": (0, 90), "validation": (90, 95), "test": (95, 101)}
    assert shards.split(0, 0)["train"] == (0, 101)
    with pytest.raises(InputError, match="cannot split"):
        shards.split(0.5, 0.5)


@pytest.mark.parametrize("pattern", ["fineweb_{}_000001.bin", "tiny_shakespeare_{}.bin", "{}_1.bin"])
def test_parts_are_the_shards_that_are_called_so(tmp_path: Path, pattern: str) -> None:
    for part, ids in {"val": [1, 2], "train": [3, 4, 5], "test": [6]}.items():
        (tmp_path / pattern.format(part)).write_bytes(by_hand(ids))
    shards = find_shards(str(tmp_path))
    assert shards is not None
    parts = shards.split(0.3, 0.3)
    read = {part: shards[start:stop][np.arange(stop - start)].tolist() for part, (start, stop) in parts.items()}
    assert read == {"train": [3, 4, 5], "validation": [1, 2], "test": [6]}
    (tmp_path / pattern.format("test")).unlink()
    shards = find_shards(str(tmp_path))
    assert shards is not None
    assert shards.split() == {"train": (0, 3), "validation": (3, 5), "test": (5, 5)}
    only = find_shards(str(tmp_path / pattern.format("train")))  # one part alone is cut like any other stream
    assert only is not None
    assert only.split(0.4, 0) == {"train": (0, 1), "validation": (1, 3), "test": (3, 3)}
    (tmp_path / "stranger.bin").write_bytes(by_hand([1]))
    with pytest.raises(InputError, match=re.escape("stranger.bin doesn't")):
        find_shards(str(tmp_path))


# Their hash


def test_the_hash_tells_other_shards_and_not_other_places(tmp_path: Path) -> None:
    ids = np.arange(20_000) % 60_000

    def hashed(name: str, ids: npt.NDArray[np.integer], borders: Sequence[int] = (10_000,)) -> str:
        (tmp_path / name).mkdir()
        return made_of(tmp_path / name, ids, borders).sha256

    first = hashed("first", ids)
    assert hashed("moved", ids) == first
    assert hashed("cut elsewhere", ids, [9_000]) != first
    assert hashed("one more", np.append(ids, 1)) != first
    for place in (0, 9_999, 10_000, 19_999):
        assert hashed(f"changed at {place}", np.where(np.arange(20_000) == place, 60_001, ids)) != first
