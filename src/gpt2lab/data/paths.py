"""Which files are meant by the name of a file, a folder or a glob."""

import glob
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpt2lab.errors import InputError


def find_files(name: str | Path, endings: tuple[str, ...], *, recursive: bool = True) -> tuple[Path, ...]:
    """The files that a name means, sorted; none if it means none.

    Hidden files and folders (``.ipynb_checkpoints``, ``._text.txt``) and ``__MACOSX``, which archives made on a Mac
    contain, hold copies and not texts. They are left out unless the name spells them.

    Args:
        name: a file, which may be called anything; a folder, which means the files in it with one of the endings; or a
            glob, which means every file that matches it (``**`` matches folders of any depth). ``~`` is the home
            folder.
        endings: of files in a folder, in lower case, such as ``.txt``; the files' own may be in any case.
        recursive: whether a folder means the files in its subfolders, too.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return (path,)
    found: Iterable[Path]
    if str(name) and path.is_dir():
        below = (file.relative_to(path) for file in path.glob("**/*" if recursive else "*"))
        found = (path / file for file in below if file.name.lower().endswith(endings) and not _is_hidden(file))
    else:
        # glob itself leaves hidden names out where the pattern does not spell the dot.
        matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
        found = (file for file in matches if "__MACOSX" in path.parts or "__MACOSX" not in file.parts)
    return tuple(sorted(file for file in found if file.is_file()))


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in file.parts)


def without(files: Sequence[Path], exclude: Sequence[str]) -> tuple[Path, ...]:
    """The files that no pattern names.

    Args:
        files: what was found.
        exclude: names and globs, matched from the right: ``notes.txt``, ``*.bak.txt``, ``drafts`` (a file, or a folder
            with all that is in it), ``drafts/1*``. One without a slash is not looked for above the folder that all
            files are in.

    Raises:
        InputError: a pattern names none of the files, or all are left out.
    """
    left = list(files)
    base = os.path.commonpath([file.absolute().parent for file in files]) if files and exclude else ""
    for pattern in exclude:
        glob_, kept = Path(pattern).expanduser(), []
        for file in left:
            whole = file.absolute()
            parts = whole if len(glob_.parts) > 1 else whole.relative_to(base)
            if not any(part.match(str(glob_)) for part in (parts, *parts.parents)):
                kept.append(file)
        if len(kept) == len(left):
            raise InputError(f"--exclude {pattern!r} names none of {len(left)} files, such as {left[0]}; correct it")
        left = kept
        if not left:
            raise InputError(f"--exclude {pattern!r} leaves no file of {len(files)}; name fewer")
    return tuple(left)


def equal_files(files: Sequence[Path]) -> list[str]:
    """A sentence about each file that holds the same as one before it, so that a text would count twice."""
    sizes: dict[int, list[Path]] = {}
    for file in files:
        sizes.setdefault(file.stat().st_size, []).append(file)
    found = []
    for size, alike in sizes.items():
        first: dict[bytes, Path] = {}
        for file in alike if size > 0 and len(alike) > 1 else ():
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").digest()
            if (other := first.setdefault(digest, file)) is not file:
                found.append(
                    f"{file} holds the same as {other}, so that its text counts twice; --exclude leaves one out"
                )
    return found
