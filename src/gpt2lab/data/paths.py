"""Which files are meant by the name of a file, a folder or a glob."""

import glob
from collections.abc import Iterable
from pathlib import Path


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
