"""Where commands print, and the check of a count that is an option of one command alone."""

from rich.console import Console

from gpt2lab.errors import InputError

console = Console(soft_wrap=True)  # a path or command that is printed can be copied
errors = Console(stderr=True)


def check_counts(**counts: int) -> None:
    """Refuse options that are below 1, or below 0 for ``rounds``, where none are meant by that."""
    for name, value in counts.items():
        least = 0 if name == "rounds" else 1
        if value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it has to be {least} or more")
