"""How long work tells how far it has come: by a callback, which a terminal, a notebook or a server shows in its way."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from gpt2lab.errors import printable

# What is done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def counted(number: int, thing: str) -> str:
    """A number of things in words: ``1 shard``, ``2,000 shards``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def plain_console(stderr: bool = False, quiet: bool = False) -> Console:
    """Where text is printed as it is: brackets and colons in a name are no markup, and a path can be copied.

    A character that the output's encoding has not becomes a question mark.
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="replace")
    return _PlainConsole(stderr=stderr, quiet=quiet, soft_wrap=True, markup=False, emoji=False, highlight=False)


class _PlainConsole(Console):
    """A console in which control characters of a name are spelled out, wherever text is shown."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, keep="\n\t"), **options)


@contextlib.contextmanager
def shown(console: Console) -> Iterator[Progress]:
    """A callback that draws a bar with the time that is left, which disappears in the end; nothing if no one looks."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        doing = ""

        def show(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing:  # what was done before this began says nothing about the time that is left
                bar.reset(task, description=what, completed=done, total=total)
                doing = what
            bar.update(task, completed=done)

        yield show
