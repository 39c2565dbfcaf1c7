"""What goes wrong with a name, and how it is told: one sentence, and an exit code."""

import os
import re
import sys

LONGEST = 2000

# What would move a cursor, ring a bell, or turn the direction of what follows; and halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Text that may hold anything, for a terminal, a sentence or a picture: what is no letter there is spelled out.

    Args:
        text: such as a name of a file.
        keep: characters that stay, such as line ends.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def _line(message: str) -> str:
    """A message in one line that can be read, without the middle of what is very long."""
    line = printable(message)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


class InputError(ValueError):
    """Something that a user gave is wrong; the message says what, where, and what to do about it, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(_line(message))


class TrainingError(RuntimeError):
    """A training cannot go on; the message says why, and what is left of it."""


def tell(error: Exception) -> int:
    """Print an error as one sentence on standard error; returns the exit code: 1 for a training, 2 for wrong input.

    An error that there is no sentence for is raised again.
    """
    if not (isinstance(error, InputError | TrainingError | OSError) or _of_memory(error)):
        raise error
    failed = isinstance(error, TrainingError)
    # Of a machine's processes, which all find the same input wrong, one is enough to say so.
    if failed or os.environ.get("LOCAL_RANK", "0") == "0":
        said = str(error)
        if _of_memory(error):
            why = said.partition("\n")[0] or "it is full"
            said = f"there is not enough memory ({why}); make the batch or the model smaller"
        elif isinstance(error, OSError):
            said = f"{error.filename or 'a file'} cannot be used: {error.strerror or error}"
        print(f"gpt2lab: {_line(said)}", file=sys.stderr)
    return 1 if failed else 2


def _of_memory(error: Exception) -> bool:
    """Whether an error says that there was not enough memory, of the machine or of a GPU."""
    said = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said)
    )
