"""The command line: each command parses, calls a function of the library, and prints. Underscores work like hyphens."""

import os
import sys
import warnings
from collections.abc import Sequence

from gpt2lab.errors import printable, tell


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit code: 0, 1 for a training that failed, 2 for wrong input, 130 when interrupted.
    """
    typed = [_with_hyphens(token) for token in (sys.argv[1:] if arguments is None else arguments)]
    try:
        from gpt2lab.cli.app import run  # here, where Ctrl-C is heard while libraries load

        with warnings.catch_warnings():
            warnings.showwarning = _tell_warning  # type: ignore[assignment]
            return run(typed)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as interrupted:
        print(
            printable(f"\ngpt2lab: interrupted{f'; {interrupted}' if interrupted.args else ''}", "\n"), file=sys.stderr
        )
        return 130
    except Exception as error:
        return tell(error)


def _tell_warning(message: Warning | str, *_: object) -> None:
    """What a library or our own code warns of, as a sentence."""
    print(f"gpt2lab: note: {printable(str(message))}", file=sys.stderr)


def _with_hyphens(token: str) -> str:
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value if token.startswith("--") else token
