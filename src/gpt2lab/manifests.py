"""Manifests: what the files of a folder have to be, so that what was damaged or exchanged is not computed with.

``manifest.json`` lies beside the files: ``{"format": 1, "files": {"config.json": {"bytes": 365, "sha256": "…"}}}``.
While files are replaced it also says what they are about to be, so that a crash at any moment leaves files that it
knows.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write, flush, unfinished
from gpt2lab.reading import read_json, regular_file, typed

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Described:
    """A file: its size, and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Described":
        """What a file is now.

        Raises:
            InputError: it is not there, or no regular file.
        """
        size = regular_file(path)
        with path.open("rb") as file:
            return cls(size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Manifest:
    """What a ``manifest.json`` says.

    Attributes:
        format: of manifest and folder; a higher one is of a later gpt2lab.
        files: by name.
        becoming: those that were being replaced: what they may be as well.
    """

    format: int = FORMAT
    files: dict[str, Described] = field(default_factory=dict)
    becoming: dict[str, Described] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The manifest of a folder, if it has one; other programs have files of that name, too.

        Raises:
            InputError: it is damaged, or of a later gpt2lab.
        """
        path = folder / MANIFEST
        if not path.exists():
            return None
        values = read_json(object, path)
        if not isinstance(values, dict) or not ({"format", "files"} <= values.keys() or _is_older(values)):
            return None  # of another program
        if "format" not in values:
            values = {"format": FORMAT, "files": values}
        if values["format"] != FORMAT:
            raise InputError(
                f"{path} has the format {str(values['format'])[:20]}, and this gpt2lab knows {FORMAT}: it is damaged, "
                "or a later gpt2lab wrote it, which can read it"
            )
        manifest = typed(cls, values, str(path))
        if strange := [name for name in {**manifest.files, **manifest.becoming} if Path(name).name != name]:
            raise InputError(f"{path} is damaged: {strange[0]!r} is no name of a file")
        return manifest

    def write(self, folder: Path) -> None:
        """Write it, replaced whole."""
        values = {name: value for name, value in asdict(self).items() if value or name == "files"}
        with atomic_write(folder / MANIFEST) as file:
            file.write((json.dumps(values, indent=2) + "\n").encode())

    def verify(self, folder: Path, names: Collection[str]) -> None:
        """Compare files of its folder with it.

        Raises:
            InputError: a file is missing, cut short or changed, or not listed.
        """
        fresh: set[bool] = set()  # of files that were being replaced: whether they are the new ones
        for name in sorted(names):
            path, known = folder / name, self.files.get(name)
            if known is None and name not in self.becoming:
                raise InputError(f"{path} is damaged: it is not among the files of {folder / MANIFEST}")
            if (now := Described.of(path)) not in (known, self.becoming.get(name)):
                raise InputError(f"{path} is damaged, or was edited since it was written")
            if name in self.becoming and known != self.becoming[name]:
                fresh.add(now != known)
        if len(fresh) > 1:
            raise InputError(
                f"{folder} was being written when that was interrupted, and half of it is new; write it again"
            )


def _is_older(values: dict[str, object]) -> bool:
    """Whether this is a manifest from before formats had numbers: files by name."""
    return bool(values) and all(isinstance(one, dict) and one.keys() == {"bytes", "sha256"} for one in values.values())


def list_all(folder: Path) -> None:
    """Write the manifest of all files that are in a folder."""
    Manifest(files={path.name: Described.of(path) for path in sorted(folder.iterdir())}).write(folder)


def replace_files(folder: Path, contents: Mapping[str, bytes | Callable[[Path], object]]) -> None:
    """Write files of a folder and list them in its manifest; a crash leaves each of them as it was, or as it is to be.

    Args:
        folder: is made if need be.
        contents: by name: the bytes, or what writes a file at the path that it is called with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = Manifest.read(folder)
    if before is None and (folder / MANIFEST).exists():
        raise InputError(f"{folder / MANIFEST} is of another program; choose another folder, or move it away")
    before = before or Manifest()
    written = {name: unfinished(folder / name) for name in contents}
    try:
        for name, path in written.items():
            content = contents[name]
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path)
            flush(path)
        new = {name: Described.of(path) for name, path in written.items()}
        old = {name: Described.of(folder / name) for name in contents if (folder / name).is_file()}
        if old:
            replace(before, files={**before.files, **old}, becoming={**before.becoming, **new}).write(folder)
        for name, path in written.items():
            path.replace(folder / name)
        left = {name: of for name, of in before.files.items() if (folder / name).exists()}
        becoming = {name: of for name, of in before.becoming.items() if name not in new}
        Manifest(files=dict(sorted({**left, **new}.items())), becoming=becoming).write(folder)
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)


def verify_if_listed(path: Path) -> None:
    """Compare a file with the manifest beside it, if there is one that lists it.

    Raises:
        InputError: the file is not what was written.
    """
    manifest = Manifest.read(path.parent)
    if manifest is not None and path.name in {*manifest.files, *manifest.becoming}:
        try:
            manifest.verify(path.parent, {path.name})
        except InputError as error:
            keep = f"put back what it was, or delete {path.parent / MANIFEST} if this is what you want"
            raise InputError(f"{error}; {keep}") from None


def verify_files(folder: Path, names: Collection[str] | None = None) -> bool:
    """Compare files of a folder with its manifest.

    Args:
        folder: where they are.
        names: of the files that are going to be read; None: all, and nothing else may be there.

    Returns:
        whether there is a manifest at all.

    Raises:
        InputError: a file is missing, cut short or changed, or there is one too many.
    """
    if (manifest := Manifest.read(folder)) is None:
        return False
    there = {*manifest.files, *(path.name for path in folder.iterdir())} - {MANIFEST} if names is None else names
    manifest.verify(folder, there)
    return True
