"""Options of ``gpt2lab import`` and ``gpt2lab export``."""

from dataclasses import dataclass
from typing import Literal

from gpt2lab.config import Activation
from gpt2lab.errors import InputError
from gpt2lab.options import check, option
from gpt2lab.runs.settings import WhichModel

Format = Literal["hf", "gguf", "onnx", "html"]
Stored = Literal["f32", "f16", "q8_0"]


@dataclass(frozen=True)
class SourceSettings:
    """What the weights of nanoGPT and minGPT do not say by themselves."""

    num_heads: int | None = option(None, "query heads, if the source does not say it.", least=1)
    activation: Activation | None = option(
        None,
        "of the feed-forward network, if the source does not say it.",
        default="gelu for nanoGPT, gelu_tanh for minGPT",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ImportSettings(SourceSettings):
    """How a model is imported."""

    tokenizer: str | None = option(
        None, '"gpt2", or the path of a tokenizer.json, if the source has none.', default="the source's"
    )
    force: bool = option(False, "write into a folder that holds something already.")


@dataclass(frozen=True)
class ExportSettings(WhichModel):
    """How a model is exported."""

    format: Format = option(
        "hf",
        '"hf": a folder of Transformers, which vLLM reads, too; "gguf": a file of llama.cpp; "onnx": a folder of ONNX '
        'Runtime; "html": one file that writes in a browser, without a network.',
    )
    dtype: Stored | None = option(
        None, 'how "gguf" stores the matrices: "f32", "f16" or "q8_0" (8 bits).', default="f32"
    )
    cap_context: bool = option(
        False,
        'write "gguf" of a model with a window, which llama.cpp does not know, with a context of one window: within it '
        "every token sees all.",
    )
    force: bool = option(False, "write into a folder that holds something already, or over a file.")


def missing(format: Format) -> InputError:
    """What is said where the packages of a format are not installed."""
    return InputError(f"--format {format} needs packages that are not installed; run: pip install 'gpt2lab[{format}]'")
