"""Files that are whole or absent, and folders that one process has for itself."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpt2lab.errors import InputError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when it is complete and on disk; after an error it is gone."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
