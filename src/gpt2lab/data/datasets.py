"""Ids on disk, and batches of them: a corpus is encoded once, and every batch is a pure function of (seed, step)."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from gpt2lab.data.corpora import Corpus, cache_dir
from gpt2lab.data.shards import Shards
from gpt2lab.data.tokenizers import CharTokenizer, Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.files import DAY, atomic_write, sweep

Tokens = npt.NDArray[np.integer[Any]] | Shards


def encode_corpus(
    corpus: Corpus,
    tokenizer: Tokenizer,
    start: int,
    stop: int,
    progress: Callable[[int], None] | None = None,
) -> Tokens:
    """Ids of the part [start, stop) of a corpus, with ``<|endoftext|>`` between files.

    They are kept in the cache folder, by the hash of the text and of the tokenizer, and encoded only if they are
    not there, or damaged. Neither text nor ids have to fit in memory.

    Args:
        progress: called after every piece that is encoded, with the bytes of text done so far.

    Returns:
        (N,) uint16, or uint32 for more than 65,536 ids; memory-mapped, read-only.
    """
    dtype = _token_dtype(tokenizer.vocab_size)
    digest = hashlib.sha256(tokenizer.fingerprint().encode())
    for document in corpus.documents(start, stop):
        digest.update(b"\xff")  # no byte of UTF-8, so texts that differ only in their files' boundaries differ
        for piece in document:
            digest.update(piece.encode())
    path = cache_dir() / "encoded" / f"{digest.hexdigest()[:32]}.npy"
    tokens = _cached(path)
    if tokens is None:
        path.parent.mkdir(exist_ok=True)
        sweep(path.parent, unchanged=DAY)
        done = 0
        with atomic_write(path) as file:
            # The header leaves room for any number, so it can be written again when the number is known.
            header = {"descr": dtype.str, "fortran_order": False, "shape": (0,)}
            np.lib.format.write_array_header_1_0(file, header)
            first_token = file.tell()
            written = hashlib.sha256()

            def write(ids: npt.NDArray[np.integer[Any]]) -> None:
                content = ids.astype(dtype).tobytes()
                file.write(content)
                written.update(content)

            for number, document in enumerate(corpus.documents(start, stop)):
                if number > 0:
                    write(np.array([tokenizer.end_of_text]))
                for piece in document:
                    try:
                        write(tokenizer.encode(piece))
                    except InputError as error:
                        raise InputError(f"in {corpus.name}, counted from byte {start + done}: {error}") from None
                    done += len(piece.encode())
                    if progress is not None:
                        progress(done)
            num_tokens = (file.tell() - first_token) // dtype.itemsize
            file.write(written.digest())  # behind the ids, where no reader of .npy files looks
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, header | {"shape": (num_tokens,)})
        tokens = _cached(path)
        assert tokens is not None
    return tokens


def _cached(path: Path) -> npt.NDArray[np.integer[Any]] | None:
    """The ids in a file of the cache; None if there is no such file, or if it is not as it was written."""
    digest = hashlib.sha256().digest_size
    try:
        with path.open("rb") as file:
            file.seek(-digest, os.SEEK_END)
            written = file.read()
        tokens: npt.NDArray[np.integer[Any]] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return tokens if hashlib.sha256(tokens.data).digest() == written else None


def _token_dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class TokenDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Every stretch of ``context_size`` tokens, T, of a text, each with the tokens that follow (stride 1).

    Item i is ``(x, y)``, two (T,) int64 tensors: tokens i .. i+T-1 and i+1 .. i+T.

    Attributes:
        tokens: (N,) ids, possibly memory-mapped, or shards of them.
        context_size: T.
        vocab_size: number of ids that may occur, V.

    Raises:
        InputError: if the text has no T + 1 tokens, or T is below 1.
    """

    def __init__(self, tokens: Tokens, context_size: int, vocab_size: int) -> None:
        if context_size < 1:
            raise InputError(f"context_size is {context_size}; it has to be 1 or more")
        if len(tokens) <= context_size:
            raise InputError(
                f"the text has {len(tokens)} tokens, but a context of {context_size} needs at least "
                f"{context_size + 1}; use a smaller context or more text"
            )
        self.tokens = tokens
        self.context_size = context_size
        self.vocab_size = vocab_size

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the ids are read from when they are needed; none if all of them are in memory."""
        if isinstance(self.tokens, Shards):
            return self.tokens.files
        return (Path(self.tokens.filename),) if isinstance(self.tokens, np.memmap) and self.tokens.filename else ()

    def __len__(self) -> int:
        return len(self.tokens) - self.context_size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.__getitems__([range(len(self))[index]])  # range: negative ones, and IndexError past the end
        return x[0], y[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch, two (B, T) int64 tensors, gathered in one go; a DataLoader calls this if it is there."""
        offsets = np.arange(self.context_size + 1)
        stretches = torch.from_numpy(self.tokens[np.asarray(indices)[:, None] + offsets].astype(np.int64))
        return stretches[:, :-1].contiguous(), stretches[:, 1:].contiguous()

    def tiles(
        self, max_tokens: int | None = None, batch_tokens: int | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The whole text for measuring, in batches (B, T) in which every token but the first is a target once.

        Windows follow each other without overlap. The last one reaches back, so that it is as long as the others; its
        targets that were counted before are -100.

        Args:
            max_tokens: None: everything; else evenly spread windows with about so many tokens, for an estimate.
            batch_tokens: how many tokens a batch has at most (but at least one window); None: 8,192, or fewer if the
                vocabulary is so large that their logits would fill the memory.
        """
        T = self.context_size  # noqa: N806
        starts = np.arange(0, len(self) + T - 1, T)
        starts[-1] = len(self) - 1
        seen = np.diff(starts, prepend=-T)  # how many targets are new: T, but for the last window
        every = 1 if max_tokens is None else max(1, len(starts) * T // max_tokens)
        starts, seen = starts[::every], seen[::every]
        size = max(1, (batch_tokens or min(8192, 2**26 // self.vocab_size)) // T)
        for first in range(0, len(starts), size):
            x, y = self.__getitems__(starts[first : first + size].tolist())
            counted = torch.arange(T) >= T - torch.from_numpy(seen[first : first + size])[:, None]
            yield x, y.masked_fill(~counted, -100)


class CharDataset(TokenDataset):
    """minGPT's data set: the characters of a text that fits in memory, and no other id.

    Attributes:
        stoi, itos: character to id and back.
        block_size: the context.

    Raises:
        InputError: for a text of fewer than two characters, or one not longer than ``block_size``.
    """

    def __init__(self, text: str, block_size: int) -> None:
        if len(text) < 2:
            raise InputError(f"the text has {len(text)} characters; a data set needs at least 2")
        tokenizer = CharTokenizer(text)
        self.stoi, self.itos = tokenizer.stoi, tokenizer.itos
        self.block_size = block_size
        vocab_size = len(self.stoi)
        super().__init__(tokenizer.encode(text).astype(_token_dtype(vocab_size)), block_size, vocab_size)


class StatelessSampler(Sampler[list[int]]):
    """Shuffled batches without any state: the indices of a step are a pure function of (seed, step).

    Draws are numbered throughout: draw ``step * batch_size + b`` is row b of a step. Draw g belongs to epoch
    ``g // num_items`` and is that epoch's permutation of ``g % num_items``, so every epoch visits every item once.
    The permutation is a Feistel network over the next power of two, applied again while its result is not an item
    (cycle walking: Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002), so that no array of
    ``num_items`` is needed, a run resumes anywhere at once, and any number of workers or processes agrees.

    Args:
        num_items: length of the data set.
        batch_size: indices per batch, B.
        seed: chooses the order.
        start_step: the first step that is yielded.
        num_steps: how many steps are yielded; None: without end.

    Raises:
        InputError: if ``num_items`` or ``batch_size`` is below 1.
    """

    rounds = 6

    def __init__(
        self, num_items: int, batch_size: int, seed: int = 0, start_step: int = 0, num_steps: int | None = None
    ) -> None:
        for name, value in (("num_items", num_items), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"{name} is {value}; it has to be 1 or more")
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.num_steps = num_steps

    def __iter__(self) -> Iterator[list[int]]:
        steps = itertools.count(self.start_step)
        for step in itertools.islice(steps, self.num_steps):
            yield self.batch(step).tolist()

    def __len__(self) -> int:
        if self.num_steps is None:
            raise TypeError("a sampler without num_steps has no length: it never ends")
        return self.num_steps

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """The indices of one step, (B,) int64."""
        draws = step * self.batch_size + np.arange(self.batch_size, dtype=np.uint64)
        epochs, items = np.divmod(draws, np.uint64(self.num_items))
        keys = _mix(_mix(np.array([self.seed % 2**64], np.uint64)) + epochs)
        items = self._permute(items, keys)
        while (outside := items >= self.num_items).any():
            items[outside] = self._permute(items[outside], keys[outside])
        return items.astype(np.int64)

    def _permute(self, items: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """A permutation of 0 .. 2^bits - 1 for each key: each half in turn is changed by a hash of the other one."""
        bits = max((self.num_items - 1).bit_length(), 6)  # with shorter halves some orders come up too often
        low_bits = np.uint64((bits + 1) // 2)
        low_mask, high_mask = np.uint64(2 ** ((bits + 1) // 2) - 1), np.uint64(2 ** (bits // 2) - 1)
        high, low = items >> low_bits, items & low_mask
        for _ in range(self.rounds // 2):
            keys = _mix(keys)
            high = high ^ (_mix(keys ^ low) & high_mask)
            keys = _mix(keys)
            low = low ^ (_mix(keys ^ high) & low_mask)
        return high << low_bits | low


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash of 64-bit numbers (SplitMix64: Steele, Lea & Flood 2014, after Stafford's mix 13)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
