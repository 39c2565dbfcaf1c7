"""Token shards: ids on disk in the format of llm.c and modded-nanogpt; many files are read as one stream.

A shard (written by ``write_datafile`` in llm.c's dev/data/data_common.py, read by its llmc/dataloader.h) begins with a
header of 256 little-endian int32: the magic number 20240520, the version 1, the number of tokens N, and zeros. Then
come the ids, N little-endian uint16. So a shard has exactly 1024 + 2·N bytes.
"""

import copy
import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from gpt2lab.data.corpora import cut
from gpt2lab.data.paths import find_files, without
from gpt2lab.data.settings import MOST_TOKENS
from gpt2lab.data.tokenizers import Tokenizer, load_tokenizer
from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
MOST_IDS = 1 << 16

# What is looked at of every shard before training: the wrong tokenizer shows in its first ids, another file in these.
GLANCE = 4096

# Words in the names of llm.c's shards, and of others', in the order that the parts have in a stream.
PARTS = ("train", "val", "test")


def write_shard(path: Path, pieces: Iterable[npt.NDArray[np.integer[Any]]]) -> int:
    """Write ids, given in pieces (N_i,), as one shard. The file gets its name only when it is complete.

    Returns:
        The number of tokens.

    Raises:
        InputError: for an id that 16 bits cannot hold, or more tokens than the header can tell. Nothing is written.
    """
    with atomic_write(path) as file:
        file.write(bytes(HEADER_BYTES))
        for piece in pieces:
            if len(piece) and not 0 <= int(piece.min()) <= int(piece.max()) < MOST_IDS:
                raise InputError(
                    f"id {piece.min() if piece.min() < 0 else piece.max()} cannot be written to {path}: a shard has "
                    f"16 bits for each; use a tokenizer of at most {MOST_IDS:,} ids"
                )
            file.write(piece.astype("<u2").tobytes())
        num_tokens = (file.tell() - HEADER_BYTES) // 2
        if num_tokens > MOST_TOKENS:
            raise InputError(f"{num_tokens:,} tokens are too many for one shard, which holds up to {MOST_TOKENS:,}")
        file.seek(0)
        file.write(np.array([MAGIC, VERSION, num_tokens], "<i4").tobytes())
    return num_tokens


def read_shard(path: Path) -> npt.NDArray[np.uint16]:
    """The ids of a shard, (N,) uint16; memory-mapped, read-only.

    Raises:
        InputError: if it cannot be read, if magic number or version differ, or if its size is not what its header says.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"the shard {path} cannot be read ({error.strerror}); check the path") from None
    again = "make it again with `gpt2lab data pack`, or download it again"
    if len(header) < HEADER_BYTES:
        raise InputError(f"{path} is no token shard: it has {size} bytes, and the header alone has 1,024; {again}")
    magic, version, num_tokens = np.frombuffer(header, "<i4", 3).tolist()
    if magic != MAGIC:
        raise InputError(
            f"{path} is no token shard of 16-bit ids: it begins with {magic}, not {MAGIC}, as llm.c's for GPT-2 do "
            "(those for Llama 3, and nanoGPT's .bin files, are other formats); make it again with `gpt2lab data pack`"
        )
    if version != VERSION:
        raise InputError(f"{path} is a token shard of version {version}; only version {VERSION} is known; {again}")
    if num_tokens < 1:
        raise InputError(f"{path} holds no tokens (its header says {num_tokens}); leave it out, or {again}")
    expected = HEADER_BYTES + 2 * num_tokens
    if size != expected:
        wrong = f"the last {expected - size:,} are missing" if size < expected else f"{size - expected:,} are too many"
        raise InputError(
            f"{path} has {size:,} bytes, but by its header, which says {num_tokens:,} tokens, it should have "
            f"{expected:,}: {wrong}; {again}"
        )
    return np.memmap(path, "<u2", "r", HEADER_BYTES)


@functools.lru_cache(maxsize=256)  # every map keeps its file open, and a system may allow no more than 1,024
def _mapped(path: Path, modified: int) -> npt.NDArray[np.uint16]:
    return read_shard(path)


class Shards:
    """Token shards, read as one stream in the order given: a window can begin in one shard and end in the next.

    They are indexed like an array (N,), as far as data sets and measurements need it: an array of positions of any
    shape gives uint16 ids of that shape; a slice without a step gives a view. Ids are read when they are needed.

    Attributes:
        name: what the user called them.
        files: the shards.
        vocab_size: an id that is not below this is refused when it is read; see :meth:`of_vocabulary`.
        notes: what there is to say about the texts that were packed, a sentence each.

    Raises:
        InputError: for a shard that is not whole (see :func:`read_shard`).
    """

    def __init__(self, name: str, files: Iterable[Path]) -> None:
        self.name, self.files = name, tuple(files)
        self.vocab_size = MOST_IDS
        self.notes: tuple[str, ...] = ()
        self._ends = np.cumsum([len(read_shard(path)) for path in self.files])
        self._modified = [path.stat().st_mtime_ns for path in self.files]
        self._start, self._stop = 0, int(self._ends[-1])

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, index: slice) -> "Shards": ...
    @overload
    def __getitem__(self, index: int) -> np.uint16: ...
    @overload
    def __getitem__(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint16]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"shards have no view with a step, which is {step} here; index them by an array")
            view = copy.copy(self)
            view._start, view._stop = self._start + start, self._start + max(start, stop)
            return view
        index = np.asarray(index)
        outside = (index < -len(self)) | (index >= len(self))
        if outside.any():
            raise IndexError(f"position {index[outside].flat[0]} is not among the {len(self)} tokens")
        positions = np.where(index < 0, self._stop, self._start) + index
        of = np.searchsorted(self._ends, positions, side="right")  # which shard, shaped as the index
        ids = np.empty(index.shape, np.uint16)
        for shard in np.flatnonzero(np.bincount(of.ravel())):
            tokens = _mapped(self.files[shard], self._modified[shard])
            here = of == shard
            within = positions[here] - (self._ends[shard] - len(tokens))
            ids[here] = self._known(tokens[within], within, int(shard))
        return ids[()]

    def _known(
        self, ids: npt.NDArray[np.uint16], positions: npt.NDArray[np.int64], shard: int
    ) -> npt.NDArray[np.uint16]:
        if len(ids) and ids.max() >= self.vocab_size:
            place = int(ids.argmax())
            raise InputError(
                f"token {positions[place]:,} of {self.files[shard]} is {ids[place]}, but the tokenizer has only "
                f"{self.vocab_size} ids; use the one that the shards were made with"
            )
        return ids

    def tokenizer(self, given: Tokenizer | None = None) -> Tokenizer:
        """The tokenizer that the shards were made with: ``tokenizer.json`` beside them, or else the given one.

        Raises:
            InputError: if neither is there, or both are and differ.
        """
        beside = [
            file for file in dict.fromkeys(path.with_name("tokenizer.json") for path in self.files) if file.is_file()
        ]
        found = [*([given] if given else []), *map(load_tokenizer, beside)]
        if not found:
            raise InputError(
                f"no tokenizer.json is beside the shards {self.name}; put the one there that they were made with, or "
                "say --tokenizer gpt2 if the ids are GPT-2's, as in llm.c's and modded-nanogpt's"
            )
        if len({tokenizer.fingerprint() for tokenizer in found}) > 1:
            raise InputError(
                f"the shards {self.name} were made with {beside[-1]}, which is another tokenizer than the one that is "
                "asked for; use that one, or pack the text again with this one (`gpt2lab data pack --tokenizer`)"
            )
        return found[0]

    def of_vocabulary(self, vocab_size: int) -> "Shards":
        """The same stream, of which every id that is read has to be below ``vocab_size``.

        Raises:
            InputError: at once, if one of the first 4,096 ids of any shard is not; for other ids when they are read,
                because reading all of them can take hours.
        """
        checked = copy.copy(self)
        checked.vocab_size = vocab_size
        for number, path in enumerate(self.files):
            first = _mapped(path, self._modified[number])[:GLANCE]
            checked._known(first, np.arange(len(first)), number)
        return checked

    @property
    def sha256(self) -> str:
        """A hash of these shards, in hexadecimal: of the size and the first and last ids of each.

        The hash of a text covers all bytes; here reading terabytes would take hours. So it does not notice a change
        of ids in the middle of a shard.
        """
        digest = hashlib.sha256()
        for path, modified in zip(self.files, self._modified, strict=True):
            tokens = _mapped(path, modified)
            digest.update(len(tokens).to_bytes(8, "little"))
            digest.update(tokens[:GLANCE].tobytes() + tokens[-GLANCE:].tobytes())
        return digest.hexdigest()

    def split(self, validation_fraction: float = 0.05, test_fraction: float = 0.05) -> dict[str, tuple[int, int]]:
        """The stream's train, validation and test parts, in this order; always the same ones.

        If some shards are called train and others val or test, as llm.c's are, these are the parts, whatever the
        fractions are. Otherwise the fractions cut the stream as they cut a text.

        Returns:
            ``{"train": (start, stop), "validation": ..., "test": ...}`` in tokens.

        Raises:
            InputError: as :func:`gpt2lab.data.split`.
        """
        first, second = cut(len(self), validation_fraction, test_fraction)
        if _are_named(self.files):
            sizes = np.diff(self._ends, prepend=0)
            of = [_part(path) for path in self.files]
            first, second = (int(sizes[[p in parts for p in of]].sum()) for parts in (("train",), ("train", "val")))
        return {"train": (0, first), "validation": (first, second), "test": (second, len(self))}


def find_shards(text: str, exclude: Sequence[str] = ()) -> Shards | None:
    """Open the shards that a path means: a .bin file, a folder of them, or a glob; None if it means no .bin file.

    Those that ``exclude`` names are left out. They are ordered by name; but if they are called train, val and test, the
    parts come in this order.

    Raises:
        InputError: the path means shards and other files; some shards are called train or val and others are not; or
            one of the shards is damaged.
    """
    found = find_files(text, (".bin", ".txt"), recursive=False)
    if any(map(_is_shard, found)):
        found = without(found, exclude)
    if not (files := [*filter(_is_shard, found)]):
        return None
    if others := [file for file in found if file not in files]:
        raise InputError(
            f"{text} means token shards ({files[0].name}) and other files ({others[0].name}); name only the ones to "
            f"learn from, for example with --text '{files[0].parent / '*.bin'}'"
        )
    if _are_named(files):
        if strangers := [file for file in files if _part(file) is None]:
            raise InputError(
                f"{files[0].name} tells the part that it belongs to, but {strangers[0].name} doesn't; name all shards "
                f"of {text} like …_train_….bin and …_val_….bin, or none"
            )
        files.sort(key=lambda file: PARTS.index(str(_part(file))))
    return Shards(text, files)


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() == ".bin"


def _part(path: Path) -> str | None:
    """``train``, ``val`` or ``test``, if the name has that word: fineweb_val_000000.bin, tiny_shakespeare_val.bin."""
    return next((part for part in PARTS if part in path.stem.split("_")), None)


def _are_named(files: Iterable[Path]) -> bool:
    parts = {_part(file) for file in files}
    return "train" in parts and len(parts - {None}) > 1
