"""Where commands print."""

from rich.console import Console

console = Console(soft_wrap=True)  # a path or command that is printed can be copied
errors = Console(stderr=True)
