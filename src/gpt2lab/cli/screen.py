"""Where commands print."""

from gpt2lab.progress import plain_console

console = plain_console()
errors = plain_console(stderr=True)
