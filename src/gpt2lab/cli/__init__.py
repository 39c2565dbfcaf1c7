"""The command line. Underscores work like hyphens in every option, as in older scripts."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnusedCliTokensError

from gpt2lab.config import InputError

app = App(
    name="gpt2lab",
    help="GPT-2 whose attention can be swapped: train it, measure it, write with it.",
    suppress_keyboard_interrupt=False,
    help_epilogue="Start with: gpt2lab demo (or: make demo)",
)
app.command("gpt2lab.cli.train:train", name="train", help="Train a model and leave a run folder.")
app.command("gpt2lab.cli.evaluate:evaluate_command", name="evaluate", help="Measure runs on a whole split.")
app.command("gpt2lab.cli.generate:generate_command", name="generate", help="Write text with a trained model.")
app.command("gpt2lab.cli.compare:compare", name="compare", help="Find out what a switch really does.")
app.command("gpt2lab.cli.report:report", name="report", help="Make a comparison's report again.")
app.command("gpt2lab.cli.plan:plan", name="plan", help="Tell what a training needs before it runs.")
app.command("gpt2lab.cli.speedrun:speedrun", name="speedrun", help="Reach a known loss as soon as possible.")
app.command("gpt2lab.cli.demo:demo", name="demo", help="Train two models on Shakespeare, compare them, and write text.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for wrong input, 130 when interrupted."""
    from gpt2lab.cli.plan import sizes_of_model
    from gpt2lab.cli.train import settings_file

    app.config = (settings_file, sizes_of_model)
    tokens = [_with_hyphens(token) for token in (sys.argv[1:] if arguments is None else arguments)]
    try:
        return int(app(tokens, exit_on_error=False, print_error=False, result_action="return_value") or 0)
    except UnusedCliTokensError as error:
        names = " ".join(map(str, error.unused_tokens or ()))
        print(f"gpt2lab: {names!r} has no option in front of it, such as --text {names}; see --help", file=sys.stderr)
        return 2
    except (InputError, CycloptsError) as error:
        print(f"gpt2lab: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"gpt2lab: {error.filename or 'a file'} cannot be used: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ngpt2lab: interrupted", file=sys.stderr)
        return 130


def _with_hyphens(token: str) -> str:
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value if token.startswith("--") else token
