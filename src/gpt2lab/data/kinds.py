"""What a file holds, found by looking into it: text, documents in lines of JSON or in Parquet, compressed or not."""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from gpt2lab.errors import InputError

Kind = Literal["text", "lines", "parquet"]

# The first bytes of a compressed file, and what unpacks it. Python cannot unpack zstd before 3.14.
UNPACKING: Mapping[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
ZSTD = b"\x28\xb5\x2f\xfd"

# Endings, in lower case, of files that hold documents or texts; each may be followed by one of the compressed ones.
LINES = (".jsonl", ".ndjson", ".json")
COMPRESSED = ("", ".gz", ".bz2", ".xz", ".zst")

FIRST_LINE = 1 << 20


def kind_of(path: Path) -> Kind:
    """What a file is: Parquet by its first bytes; text or lines by its ending, or else by its first line.

    Raises:
        InputError: it cannot be read or unpacked.
    """
    ending = ending_of(path)
    with unpacked(path) as (file, _):
        first = file.read(4)
        if first == b"PAR1" or ending == ".parquet":
            return "parquet"
        if ending in (".txt", ".jsonl", ".ndjson"):
            return "text" if ending == ".txt" else "lines"
        try:
            return "lines" if isinstance(json.loads(first + file.readline(FIRST_LINE)), dict) else "text"
        except (ValueError, RecursionError):
            return "text"


def ending_of(path: Path) -> str:
    """What a file's name ends in, in lower case, before the ending of a compressed one: ``.txt`` of ``A.TXT.gz``."""
    plain = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    return plain.suffix.lower()


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The bytes of a file, unpacked if it is compressed; and the file itself, whose position tells what has been read.

    Raises:
        InputError: it cannot be read, is damaged, or compressed in a way that cannot be unpacked here.
    """
    try:
        with path.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            if start.startswith(ZSTD):
                raise InputError(f"{path} is compressed by zstd; unpack it first: zstd -d {path}")
            unpack = next((unpack for magic, unpack in UNPACKING.items() if start.startswith(magic)), None)
            yield (file if unpack is None else unpack(file), file)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path} cannot be unpacked to its end ({error}); copy or download it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check it, or leave it out") from None
