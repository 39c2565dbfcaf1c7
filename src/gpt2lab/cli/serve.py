"""``gpt2lab serve``."""

import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console
from gpt2lab.serving.settings import Limits, ServeSettings


@with_flags({"Server": ServeSettings, "Limits": Limits})
def serve(
    run: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    open_page: Annotated[bool, Parameter(name="--open", negative=())] = False,
    options: object = None,
) -> int:
    """Serve models: a page on which one writes and sees what attention does, and an API that OpenAI's clients know.

    The address is printed. Ctrl-C stops the server; texts that are being written are finished first, for some seconds.

    Parameters
    ----------
    run
        Run folders, one or several.
    open_page
        Open the page in the browser, too.
    """
    from gpt2lab.serving.server import serve as serve_runs

    def started(address: str) -> None:
        console.print(address, markup=False, highlight=False, soft_wrap=True)
        console.print(f"{', '.join(folder.name for folder in run)}; Ctrl-C stops", style="dim", markup=False)
        if open_page:
            webbrowser.open(address)

    serve_runs(run, started=started, **given(options))
    return 0
