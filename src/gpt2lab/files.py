"""Files that are whole or absent, and folders that one process has for itself."""

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpt2lab.errors import InputError

DAY = 86_400.0  # seconds


def unfinished(path: Path) -> Path:
    """A name beside a file, for what will take its place."""
    return path.absolute().parent / f"{path.name}.{uuid.uuid4().hex}.tmp"


_REMAINS = re.compile(r"\.[0-9a-f]{32}\.tmp")  # the end of such a name


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when it is complete and on disk; after an error it is gone.

    A device or a pipe is written to as it is, and stays what it is.
    """
    if path.exists() and not path.is_file():  # a folder is told
        with path.open("wb") as file:
            yield file
        return
    temporary = unfinished(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path, force: bool = False) -> Iterator[Path]:
    """A folder to write into, whose files take their place in another one when all are written; after an error it is
    gone, and nothing was written.

    Args:
        folder: where the files are to be; made if need be.
        force: whether it may hold something already. Files of the same names are replaced, and the others stay.

    Raises:
        InputError: it holds something, or is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another --out")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something already; choose another --out, or write over it with --force")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(folder)
    try:
        temporary.mkdir()
        yield temporary
        if folder.is_dir() and any(folder.iterdir()):
            for path in sorted(temporary.iterdir()):
                path.replace(folder / path.name)
        else:
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: Path, force: bool = False) -> Iterator[Path]:
    """A path to write to, which takes the name of another one when it is written; after an error it is gone.

    Args:
        path: where the file is to be; its folder is made if need be.
        force: whether there may be a file already.

    Raises:
        InputError: there is one, or a folder, or a device.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; choose the name of a file as --out")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a device or a pipe, which a file cannot replace; choose another --out")
    if path.exists() and not force:
        raise InputError(f"{path} is there already; choose another --out, or write over it with --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, unchanged: float = 0.0) -> None:
    """Delete what writing left in a folder when it was killed.

    Args:
        folder: nobody else writes into it, or
        unchanged: only files are deleted that nobody has written to for so many seconds.
    """
    for path in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if _REMAINS.fullmatch(path.name[-37:]) and path.stat().st_mtime <= time.time() - unchanged:
                path.unlink()


def flush(path: Path) -> None:
    """See to it that a file, or the names in a folder, are on the disk, as far as the system can do that."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # Windows opens no folder, and some file systems cannot flush one
        if not is_folder or error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


@contextlib.contextmanager
def locked_folder(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing into a folder; the lock goes with the process, however that ends.

    Args:
        folder: made if need be.
        wait: until another process that has it is done.

    Raises:
        InputError: another process has it, and nobody wants to wait.
    """
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    try:
        # A singleton, so that one process may take it twice.
        with filelock.FileLock(folder / ".lock", is_singleton=True).acquire(blocking=wait):
            yield
    except filelock.Timeout:
        raise InputError(
            f"another process writes into {folder} now; wait until it ends, or choose another --out"
        ) from None
