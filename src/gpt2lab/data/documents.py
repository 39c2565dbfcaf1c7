"""Documents of text, JSON lines and Parquet files, compressed or not, read in pieces of about 1 MiB."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpt2lab.data.corpora import BLOCK_BYTES, pieces
from gpt2lab.data.kinds import COMPRESSED, LINES, ending_of, kind_of, unpacked
from gpt2lab.data.paths import find_files, without
from gpt2lab.errors import InputError

LONGEST_LINE = 64 << 20  # of JSON: a document is in memory as a whole
SHOWN = 3  # of what is left out

# What is looked for in folders. A file that is named may be called anything.
ENDINGS = (*(ending + more for ending in (".txt", *LINES) for more in COMPRESSED), ".parquet")


@dataclass
class LeftOut:
    """What is left out while files are read: how much, and the first of it in words."""

    number: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, error: InputError) -> None:
        """Count what cannot be read."""
        self.number += 1
        if self.number <= SHOWN:
            self.first.append(str(error).partition(";")[0])

    def notes(self) -> list[str]:
        """A sentence about it, if there is anything."""
        more = f"; and {self.number - SHOWN:,} more" if self.number > SHOWN else ""
        return [f"left out {self.number:,}: {'; '.join(self.first)}{more}"] if self.number else []


@dataclass(frozen=True)
class Piece:
    """Some documents that follow each other, or a part of a long one.

    Attributes:
        texts: of the documents.
        continues: the first text belongs to the last document of the piece before.
        position: bytes of the file that have been read up to its end.
    """

    texts: list[str]
    continues: bool
    position: int


def find_documents(
    inputs: Iterable[str | Path], exclude: Sequence[str] = (), text_column: str = "text"
) -> tuple[Path, ...]:
    """The files that are meant by names of files, folders (every one of ``ENDINGS`` below them) and globs, in order.

    A .json file in a folder can be anything. It counts if its first line is an object with a ``text_column``.

    Args:
        inputs: the names.
        exclude: names and globs of what is left out, see :func:`gpt2lab.data.paths.without`.
        text_column: the field that holds the text.

    Raises:
        InputError: if one of them means no file.
    """
    files: list[Path] = []
    for name in inputs:
        if not str(name):
            raise InputError("one of the inputs is empty (''); give the documents to be packed")
        found = find_files(name, ENDINGS)
        if is_folder := Path(name).expanduser().is_dir():
            found = tuple(file for file in found if ending_of(file) != ".json" or _has_text(file, text_column))
        if not found:
            wrong = f"no {', '.join(ENDINGS[:: len(COMPRESSED)])} is in the folder"
            wrong = wrong if is_folder else "there is no file, folder or glob"
            raise InputError(f"{wrong} {name}; give the documents to be packed")
        files += found
    return without(files, exclude)


def _has_text(path: Path, text_column: str) -> bool:
    try:
        return kind_of(path) == "lines" and any(_texts(_json_lines(path), text_column, None))
    except InputError:
        return False


def read_pieces(path: Path, text_column: str = "text", left_out: LeftOut | None = None) -> Iterator[Piece]:
    """The documents of a file: each line of JSON, each row of Parquet, or the whole of a text file.

    What a file is shows in its first bytes, and then in its ending (see :func:`gpt2lab.data.kinds.kind_of`).

    Args:
        text_column: the field of JSON objects, or the column of Parquet files, that holds the text.
        left_out: None: what cannot be read is an error; else it is left out, and so are documents without text, and
            this counts them.

    Raises:
        InputError: while reading, for what is no UTF-8, no JSON, no Parquet or damaged, for a document without such a
            text, and if the package for Parquet is missing.
    """
    try:
        kind = kind_of(path)
        if kind == "text":
            if left_out is not None and not sum(len(text.strip()) for one in _text_file(path) for text in one.texts):
                raise InputError(f"{path} is empty")
            yield from _text_file(path)
        else:
            documents = _parquet_rows(path, text_column) if kind == "parquet" else _json_lines(path)
            yield from _together(_texts(documents, text_column, left_out))
    except InputError as error:
        if left_out is None:
            raise
        left_out.add(error)


def _text_file(path: Path) -> Iterator[Piece]:
    with unpacked(path) as (file, packed):
        for number, text in enumerate(pieces(file, path)):
            yield Piece([text], number > 0, packed.tell())


def _together(documents: Iterable[tuple[str, int]]) -> Iterator[Piece]:
    """Whole documents of about 1 MiB together, also those before an error. Each comes with its position in the file."""
    texts: list[str] = []
    size = position = 0
    try:
        for text, position in documents:
            texts.append(text)
            size += 1 + len(text)
            if size >= BLOCK_BYTES:
                yield Piece(texts, False, position)
                texts, size = [], 0
    except InputError as error:
        if texts:
            yield Piece(texts, False, position)
        raise error from None
    if texts:
        yield Piece(texts, False, position)


def _json_lines(path: Path) -> Iterator[tuple[str, bytes | None, int]]:
    """Place, content (None: too long) and position of each document."""
    with unpacked(path) as (lines, packed):
        for number in itertools.count(1):
            line = lines.readline(LONGEST_LINE)
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := lines.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield f"{path}, line {number}", None, packed.tell()
            elif not line:
                break
            elif line.strip():
                yield f"{path}, line {number}", line, packed.tell()


def _parquet_rows(path: Path, text_column: str) -> Iterator[tuple[str, dict[str, object], int]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path} needs a package that is not installed; run: pip install pyarrow") from None
    size, row = path.stat().st_size, 0
    try:
        # Otherwise the column of the whole file is in memory before its first row is read.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=BLOCK_BYTES) as file:
            if text_column not in file.schema_arrow.names:
                raise _without_text(str(path), text_column, file.schema_arrow.names)
            for batch in file.iter_batches(256, columns=[text_column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield f"{path}, row {row}", {text_column: value}, size * row // file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        wrong = " ".join(str(error).split())
        raise InputError(f"{path} is no Parquet file, or damaged after row {row} ({wrong}); get it again") from None


def _texts(
    documents: Iterable[tuple[str, bytes | dict[str, object] | None, int]], text_column: str, left_out: LeftOut | None
) -> Iterator[tuple[str, int]]:
    """The text and the position of each document."""
    for place, document, position in documents:
        try:
            text = _text_of(document, text_column, place)
            if left_out is not None and not text.strip():
                raise InputError(f"{place}: {text_column} is empty")
        except InputError as error:
            if left_out is None:
                raise
            left_out.add(error)
        else:
            yield text, position


def _text_of(document: bytes | dict[str, object] | None, text_column: str, place: str) -> str:
    """The text of a document (in JSON, if it is bytes), if it has one, and one that UTF-8 can express."""
    if document is None:
        raise InputError(f"{place}: it is longer than {LONGEST_LINE >> 20} MiB; divide it")
    try:
        found = json.loads(document) if isinstance(document, bytes) else document
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: it is not JSON ({error}); every line has to be one object, a document") from None
    if not isinstance(found, dict) or text_column not in found:
        raise _without_text(place, text_column, found if isinstance(found, dict) else ())
    text = found[text_column]
    if not isinstance(text, str):
        raise InputError(
            f"{place}: {text_column} is {str(text)[:40]!r}, which is no text; correct it, or leave it out with "
            "--skip-unreadable"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: character {error.start} of {text_column} is half of a pair ({text[error.start]!a}), which UTF-8 "
            "cannot express; leave it out, or correct it"
        ) from None
    return text


def _without_text(place: str, text_column: str, names: Iterable[str]) -> InputError:
    has = f"it has {', '.join(map(str, names))}" if names else "it is no object with names"
    return InputError(f"{place}: there is no {text_column!r}; {has}: say with --text-column where the text is")
