"""``gpt2lab export``."""

from pathlib import Path

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console
from gpt2lab.interchange.settings import ExportSettings


@with_flags({"Export": ExportSettings})
def export(run: Path, /, *, out: Path, options: object = None) -> int:
    """Write a model for another engine: Transformers and vLLM, llama.cpp, ONNX Runtime, or one HTML file for browsers.

    The engine reads what was written, and its log-probabilities and a greedy text are compared with the model's. Only
    then is it done; otherwise nothing is there. What an engine cannot compute is refused, with what it can.

    Parameters
    ----------
    run
        Run folder.
    out
        Folder or file that is written.
    """
    from gpt2lab.interchange.export import export as export_model

    asked = given(options)
    console.print(str(export_model(run, asked.pop("format", ExportSettings.format), out, **asked)))
    return 0
