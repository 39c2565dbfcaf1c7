"""Encode texts into token shards, with several processes; a packing that was killed continues where it stopped.

    out/
        tokenizer.json
        tokens_000000.bin        all of the same length but the last
        tokens_000001.bin
        pack.json                the options, and where in the inputs each shard begins

The ids of all documents form one stream, each document after an ``<|endoftext|>`` (as in llm.c's
dev/data/fineweb.py). The stream is cut into shards. The result depends on the inputs and options alone.
"""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2lab.data.documents import LeftOut, Piece, find_documents, read_pieces
from gpt2lab.data.paths import equal_files
from gpt2lab.data.settings import PackSettings
from gpt2lab.data.shards import MOST_IDS, Shards, read_shard, write_shard
from gpt2lab.data.tokenizers import BPETokenizer, CharTokenizer, Tokenizer, load_tokenizer
from gpt2lab.errors import InputError
from gpt2lab.files import locked_folder, sweep
from gpt2lab.manifests import replace_files, verify_if_listed
from gpt2lab.reading import read_json, shortly

RECORD = "pack.json"
MOST_RECORD = 1 << 30  # it names every input
LEARNED = ("char", "bpe")  # tokenizers that depend on the inputs

Progress = Callable[[str, int, int], None]
Ids = npt.NDArray[np.uint16]


class Place(NamedTuple):
    """Where a token of the stream is: number of the input, of the piece in it, and of the token in that piece."""

    input: int = 0
    piece: int = 0
    token: int = 0


def pack(
    inputs: str | Path | Iterable[str | Path],
    out: str | Path,
    tokenizer: str = PackSettings.tokenizer,
    *,
    vocab_size: int = PackSettings.vocab_size,
    shard_tokens: int = PackSettings.shard_tokens,
    text_column: str = PackSettings.text_column,
    processes: int = PackSettings.processes,
    exclude: Sequence[str] = (),
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> Shards:
    """Encode documents into shards, or go on with that.

    Complete shards are kept, unless the inputs that they are of have changed. Memory holds a few MiB a process, or a
    few documents if they are longer.

    Args:
        inputs: files, folders or globs, see :func:`gpt2lab.data.documents.find_documents`.
        out: folder for the shards.
        tokenizer: ``"gpt2"``, ``"char"`` or ``"bpe"`` (learned from all documents), or the path of a tokenizer.json.
        vocab_size: ids of ``"bpe"``.
        shard_tokens: N of every shard but the last.
        text_column: where JSON objects and Parquet files have the text.
        processes: how many encode.
        exclude: names and globs of files that are left out.
        skip_unreadable: leave out files that cannot be read, and documents that have no text or an empty one; the
            ``notes`` of the result count and name them.
        progress: called with what is being done, and bytes of the inputs done and in all.

    Raises:
        InputError: for inputs that cannot be read, options that cannot be or that differ from those of shards that are
            there, and more than 65,536 ids. Complete shards stay.
    """
    inputs, out = [inputs] if isinstance(inputs, str | Path) else inputs, Path(out)
    PackSettings(  # refuses what cannot be
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        shard_tokens=shard_tokens,
        text_column=text_column,
        processes=processes,
    )
    files = find_documents(inputs, exclude, text_column)
    read = partial(_pieces, files, text_column)
    tried, learned, left_out = ((LeftOut() if skip_unreadable else None) for _ in range(3))  # for each time of reading
    if next(read(tried), None) is None:
        wrong = "; ".join(
            (f"there is no text in {', '.join(map(str, files[:5]))}", *(tried.first[:1] if tried else ()))
        )
        raise InputError(f"{wrong}; give documents to be packed")
    given = None if tokenizer in ("gpt2", *LEARNED) else load_tokenizer(tokenizer)
    options = {
        "tokenizer": tokenizer if given is None else given.fingerprint(),
        "vocab_size": vocab_size if tokenizer == "bpe" else None,
        "shard_tokens": shard_tokens,
        "text_column": text_column,
        "inputs": [str(path.absolute()) for path in files],
        "skip_unreadable": skip_unreadable or None,  # older records have none
    }
    states = [[path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    record: dict[str, Any] = {"options": options, "states": states, "starts": [Place()], "finished": False}
    used: Tokenizer | None = None
    if (out / RECORD).exists():
        record |= _kept(out, options, states)
    else:
        if any(out.glob("*.bin")):
            raise InputError(f"{out} holds other .bin files already; choose another --out")
        used = given or _make_tokenizer(tokenizer, vocab_size, files, read(learned), progress)
        if used.vocab_size > MOST_IDS:
            raise InputError(
                f"the tokenizer {tokenizer} has {used.vocab_size:,} ids, but a shard has 16 bits for each; use one of "
                f"at most {MOST_IDS:,}"
            )
    starts: list[Place] = record["starts"]
    with locked_folder(out):
        if used is not None:
            replace_files(out, {"tokenizer.json": used.save})
            _save(out, record)
        sweep(out)
        for remains in set(out.glob("tokens_*.bin")) - set(_complete(out, starts)):
            remains.unlink()  # of a packing that was killed, or of inputs that changed
        if not record["finished"]:
            with contextlib.closing(
                _encoded(read(left_out, starts[-1]), files, out / "tokenizer.json", processes, progress)
            ) as encoded:
                stream = _Stream(encoded, starts[-1])
                while stream.more():
                    name, portion = _path(out, len(starts) - 1).name, stream.take(shard_tokens)
                    replace_files(out, {name: partial(write_shard, pieces=portion)})
                    starts.append(stream.place)
                    _save(out, record)
            record["finished"] = True
            _save(out, record)
    shards = Shards(str(out), _complete(out, starts))
    shards.notes = (*equal_files(files), *(left_out.notes() if left_out else ()))
    return shards


@dataclass(frozen=True)
class _Record:
    """What ``pack.json`` holds: the options, size and time of change of the inputs, and where shards begin in them."""

    options: dict[str, object]
    states: list[list[int]]
    starts: list[tuple[int, int, int]]
    finished: bool


class _Stream:
    """The ids of pieces, one after the other, to be taken in portions.

    Attributes:
        place: of the next token.
    """

    def __init__(self, encoded: Iterator[tuple[Place, Ids]], start: Place) -> None:
        """``encoded``: the pieces from that of ``start`` on, each with the place of its first token."""
        self.place = start
        self._encoded = encoded
        self._ids: Ids | None = None  # of the piece that the place is in

    def more(self) -> bool:
        """Whether there is a next token."""
        while self._ids is None or self.place.token == len(self._ids):
            found = next(self._encoded, None)
            if found is None:
                return False
            skipped = self.place.token if self._ids is None else 0
            self.place, self._ids = found[0]._replace(token=skipped), found[1]
        return True

    def take(self, count: int) -> Iterator[Ids]:
        """The next so many tokens, or those that are left, in portions (N_i,)."""
        while count > 0 and self.more():
            assert self._ids is not None
            portion = self._ids[self.place.token :][:count]
            self.place = self.place._replace(token=self.place.token + len(portion))
            count -= len(portion)
            yield portion


def _pieces(
    files: tuple[Path, ...],
    text_column: str,
    left_out: LeftOut | None,
    start: Place = Place(),  # noqa: B008
) -> Iterator[tuple[Place, Piece]]:
    for number, path in enumerate(files[start.input :], start.input):
        first = start.piece if number == start.input else 0
        for piece_number, piece in itertools.islice(enumerate(read_pieces(path, text_column, left_out)), first, None):
            yield Place(number, piece_number), piece


def _encoded(
    pieces: Iterator[tuple[Place, Piece]],
    files: tuple[Path, ...],
    tokenizer: Path,
    processes: int,
    progress: Progress | None,
) -> Generator[tuple[Place, Ids]]:
    """The pieces' ids in the pieces' order; only a few more than there are processes are under way at any time."""
    sizes = [path.stat().st_size for path in files]
    # Not forked, because this process may have threads (a progress bar's); and where that is possible, started from a
    # server that has imported everything, because that takes longer than to encode a small text.
    served = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if served else "spawn")
    if served:
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(processes, context, _start_worker)
    waiting: deque[tuple[Place, int, Future[Ids]]] = deque()

    def finished() -> tuple[Place, Ids]:
        place, position, ids = waiting.popleft()
        try:
            result = place, ids.result()
        except InputError as error:
            raise InputError(f"{files[place.input]}, before byte {position:,}: {error}") from None
        if progress is not None:
            progress("packing", sum(sizes[: place.input]) + position, sum(sizes))
        return result

    try:
        for place, piece in pieces:
            with _without_main():
                ids = pool.submit(_encode, tokenizer, piece.texts, piece.continues)
            waiting.append((place, piece.position, ids))
            if len(waiting) > 2 * processes:
                yield finished()
        while waiting:
            yield finished()
    except BrokenProcessPool:
        raise InputError(
            "a process that encodes died, perhaps for lack of memory; the same command goes on, with fewer --processes "
            "if need be"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Processes that start in here do not run the person's script again (it may lack ``if __name__ == "__main__"``)."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    """Leave Ctrl-C to the process that started this one, end when that one ends, and use one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


_tokenizer = functools.cache(load_tokenizer)


def _encode(tokenizer_file: Path, texts: list[str], continues: bool) -> Ids:
    tokenizer = _tokenizer(tokenizer_file)
    end_of_text = np.array([tokenizer.end_of_text])
    parts = [part for text in texts for part in (end_of_text, tokenizer.encode(text))]
    return np.concatenate(parts[1:] if continues else parts).astype(np.uint16)


def _make_tokenizer(
    name: str,
    vocab_size: int,
    files: tuple[Path, ...],
    pieces: Iterator[tuple[Place, Piece]],
    progress: Progress | None,
) -> Tokenizer:
    if name == "gpt2":
        return BPETokenizer.gpt2()
    sizes = [path.stat().st_size for path in files]

    def texts() -> Iterator[str]:
        for place, piece in pieces:
            yield from piece.texts
            if progress is not None:
                progress("learning the tokenizer", sum(sizes[: place.input]) + piece.position, sum(sizes))

    return (
        CharTokenizer(itertools.chain.from_iterable(texts()))
        if name == "char"
        else BPETokenizer.train(texts(), vocab_size)
    )


def _path(out: Path, number: int) -> Path:
    return out / f"tokens_{number:06d}.bin"


def _complete(out: Path, starts: list[Place]) -> list[Path]:
    return [_path(out, number) for number in range(len(starts) - 1)]


def _save(out: Path, record: dict[str, Any]) -> None:
    replace_files(out, {RECORD: json.dumps(record).encode()})


def _kept(out: Path, options: dict[str, Any], states: list[list[int]]) -> dict[str, Any]:
    """What of a packing that was begun still holds: where those shards begin of which nothing is damaged or changed."""
    try:
        verify_if_listed(out / RECORD)
        begun = read_json(_Record, out / RECORD, MOST_RECORD)
    except InputError as error:
        raise InputError(f"{error}; or choose another --out") from None
    starts, finished = [Place(*start) for start in begun.starts], begun.finished
    were, states_were = begun.options, begun.states
    for name, value in options.items():
        if were.get(name) != value:
            told = f"{name}={shortly(were.get(name))}, not {shortly(value)}"
            told = "other inputs, or in another order" if name == "inputs" else told
            raise InputError(f"{out} was begun with {told}; repeat what it was begun with, or choose another --out")
    changed = next((i for i, state in enumerate(states) if [state] != states_were[i : i + 1]), len(states))
    if changed < len(states) and options["tokenizer"] in LEARNED:
        raise InputError(
            f"{options['inputs'][changed]} changed since {out} was begun, and its tokenizer was learned from that; "
            "choose another --out"
        )
    kept = [Place()]
    for number, end in enumerate(starts[1:]):
        length = None if finished and end == starts[-1] else options["shard_tokens"]
        if end.input >= changed or not _is_whole(_path(out, number), length):
            break
        kept.append(end)
    return {"starts": kept, "finished": finished and kept == starts and changed == len(states)}


def _is_whole(path: Path, num_tokens: int | None) -> bool:
    """Whether a shard is there and undamaged, and as long as it should be (None: any length)."""
    try:
        verify_if_listed(path)
        return num_tokens in (None, len(read_shard(path)))
    except InputError:
        return False
