"""Documents of text, JSONL and Parquet files, read in pieces of about 1 MiB."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2lab.data.corpora import BLOCK_BYTES, Corpus
from gpt2lab.data.paths import find_files
from gpt2lab.errors import InputError

# What is looked for in folders. A file that is named may be called anything; with another ending it is a text.
ENDINGS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


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


def find_documents(inputs: Iterable[str | Path]) -> tuple[Path, ...]:
    """The files that are meant by names of files, folders (every one of ``ENDINGS`` below them) and globs, in order.

    Raises:
        InputError: if one of them means no file.
    """
    files: list[Path] = []
    for name in inputs:
        found = find_files(name, ENDINGS)
        if not found:
            is_folder = Path(name).expanduser().is_dir()
            wrong = f"no {', '.join(ENDINGS)} is in the folder" if is_folder else "there is no file, folder or glob"
            raise InputError(f"{wrong} {name}; give the documents to be packed")
        files += found
    return tuple(files)


def read_pieces(path: Path, text_column: str = "text") -> Iterator[Piece]:
    """The documents of a file: each line of .jsonl (or .jsonl.gz), each row of .parquet, or the whole of a text file.

    Args:
        text_column: the field of JSON objects, or the column of Parquet files, that holds the text.

    Raises:
        InputError: while reading, for what is no UTF-8, no JSON, no Parquet or damaged, for a document without such a
            text, and if the package for Parquet is missing.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _together(_parquet_rows(path, text_column))
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _together(_json_lines(path, text_column))
    return _text_file(path)


def _text_file(path: Path) -> Iterator[Piece]:
    position = 0
    for text in Corpus(str(path), (path,)).chunks():
        continues, position = position > 0, position + len(text.encode())
        yield Piece([text], continues, position)


def _together(documents: Iterable[tuple[str, int]]) -> Iterator[Piece]:
    """Whole documents of about 1 MiB together. Each comes with the position in its file."""
    texts: list[str] = []
    size = 0
    for text, position in documents:
        texts.append(text)
        size += 1 + len(text)
        if size >= BLOCK_BYTES:
            yield Piece(texts, False, position)
            texts, size = [], 0
    if texts:
        yield Piece(texts, False, position)


def _json_lines(path: Path, text_column: str) -> Iterator[tuple[str, int]]:
    number = 0
    try:
        with path.open("rb") as file, gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield (
                        _text_of(_parsed(line, f"{path}, line {number}"), text_column, f"{path}, line {number}"),
                        file.tell(),
                    )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be unpacked after line {number} ({error}); copy or download it again"
        ) from None


def _parsed(line: bytes, place: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: it is not JSON ({error}); every line has to be one object, a document") from None


def _parquet_rows(path: Path, text_column: str) -> Iterator[tuple[str, int]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path} needs a package that is not installed; run: pip install pyarrow") from None
    size, row = path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path) as file:
            if text_column not in file.schema_arrow.names:
                raise _without_text(str(path), text_column, file.schema_arrow.names)
            for batch in file.iter_batches(256, columns=[text_column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    text = _text_of({text_column: value}, text_column, f"{path}, row {row}")
                    yield text, size * row // file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        wrong = " ".join(str(error).split())
        raise InputError(f"{path} is no Parquet file, or damaged after row {row} ({wrong}); get it again") from None


def _text_of(document: object, text_column: str, place: str) -> str:
    """The text of a document, if it has one, and one that UTF-8 can express."""
    if not isinstance(document, dict) or text_column not in document:
        raise _without_text(place, text_column, document if isinstance(document, dict) else ())
    text = document[text_column]
    if not isinstance(text, str):
        raise InputError(f"{place}: {text_column} is {str(text)[:40]!r}, which is no text; leave it out, or correct it")
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
