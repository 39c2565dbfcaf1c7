"""The commands by name, and what the parser says of a line that it cannot read."""

from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownOptionError, UnusedCliTokensError

from gpt2lab.errors import InputError, tell
from gpt2lab.options import closest

app = App(
    name="gpt2lab",
    help="GPT-2 whose attention can be swapped: train it, measure it, write with it.",
    suppress_keyboard_interrupt=False,
    help_epilogue="Start with: gpt2lab demo (or: make demo)",
)
COMMANDS = "train evaluate generate compare report judge plan runs speedrun demo retrofit export serve"
for name in COMMANDS.split():
    app.command(f"gpt2lab.cli.{name}:{name}", name=name)  # imported when it is asked for
app.command("gpt2lab.cli.import_:import_", name="import")
app.register_install_completion_command(help="Let the Tab key complete commands and options, in this shell.")
data = App(name="data", help="Make token shards of large texts.")
data.command("gpt2lab.cli.pack:pack", name="pack")
app.command(data)


def run(typed: Sequence[str]) -> int:
    """Run the command that was typed, with hyphens in its flags; returns its exit code."""
    if not {*typed} - {"data", "--help", "-h"}:  # a list of commands, with the first line of each
        for commands in (app, data):
            _ = [commands[name] for name in commands]
    try:
        return int(app(typed, exit_on_error=False, print_error=False, result_action="return_value") or 0)
    except CycloptsError as error:
        return tell(_in_our_words(error))


def _in_our_words(error: CycloptsError) -> InputError:
    """What the parser of the command line finds wrong, as a sentence that says what to type."""
    if isinstance(error, UnusedCliTokensError):
        names = " ".join(map(str, error.unused_tokens or ()))
        return InputError(f"{names!r} has no option in front of it, such as --text {names}; see --help")
    if isinstance(error, UnknownOptionError):
        typed = (error.token.keyword or error.token.value).partition("=")[0]
        known = {name[2:].replace("-", "_"): name for of in error.argument_collection for name in of.names}
        close = closest(typed.lstrip("-").replace("-", "_"), known)
        hint = "see --help" if close is None else f"did you mean {known[close]}?"
        return InputError(f"there is no option {typed}; {hint}")
    return (
        error.__cause__ if isinstance(error.__cause__, InputError) else InputError(str(error))
    )  # from reading a value
