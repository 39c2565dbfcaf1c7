"""What goes wrong with a name, and how it is told: one sentence, and an exit code."""

import os
import sys


class InputError(ValueError):
    """Something that a user gave is wrong; the message says what, where, and what to do about it."""


class TrainingError(RuntimeError):
    """A training cannot go on; the message says why, and what is left of it."""


def tell(error: Exception) -> int:
    """Print an error as one sentence on standard error; returns the exit code: 1 for a training, 2 for wrong input."""
    failed = isinstance(error, TrainingError)
    # Of a machine's processes, which all find the same input wrong, one is enough to say so.
    if failed or os.environ.get("LOCAL_RANK", "0") == "0":
        said = str(error)
        if isinstance(error, OSError):
            said = f"{error.filename or 'a file'} cannot be used: {error.strerror or error}"
        print(f"gpt2lab: {said}", file=sys.stderr)
    return 1 if failed else 2
