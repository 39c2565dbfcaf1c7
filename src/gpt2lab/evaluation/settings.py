"""What a run is measured on: the options of ``gpt2lab evaluate``."""

from dataclasses import dataclass

from gpt2lab.config import parse_contexts
from gpt2lab.data.corpora import Split
from gpt2lab.options import option
from gpt2lab.progress import Progress
from gpt2lab.runs.settings import LoadSettings


@dataclass(frozen=True)
class EvaluateSettings(LoadSettings):
    """What is measured."""

    split: Split = option("validation", 'part of the run\'s own text: "train", "validation" or "test".')
    text: str | None = option(None, "another text instead: a file, a folder or a glob, of text or of shards.")
    contexts: tuple[int, ...] | None = option(
        None,
        "context sizes to measure besides the trained one.",
        parse=lambda value: None if value is None else parse_contexts(value),
        default="1/4, 1/2, 2 and 4 times as long, where the positions allow it",
    )


@dataclass(frozen=True)
class EvaluateOptions(EvaluateSettings):
    """Every keyword of ``gpt2lab.evaluate`` with a run, under the names of the flags."""

    progress: Progress | None = None
