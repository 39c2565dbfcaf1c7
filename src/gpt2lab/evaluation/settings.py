"""What a run is measured on: the options of ``gpt2lab evaluate``."""

from dataclasses import dataclass
from typing import Any

from gpt2lab.config import parse_contexts
from gpt2lab.data.corpora import Split
from gpt2lab.errors import InputError
from gpt2lab.options import option
from gpt2lab.progress import Progress
from gpt2lab.reading import shortly
from gpt2lab.runs.settings import LoadSettings, WhichModel


def parse_tasks(value: Any) -> tuple[str, ...]:
    """The tasks that are meant by ``"hellaswag,mine.yaml"`` or a list."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise InputError(f"tasks is {shortly(value)}; give names or files, several with commas: hellaswag,mine.yaml")
    return tuple(part.strip() for part in parts if part.strip())


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
class HarnessSettings(WhichModel):
    """What EleutherAI's lm-evaluation-harness measures."""

    tasks: tuple[str, ...] = option(
        (), "names of tasks, or YAML files of your own, with commas.", parse=parse_tasks, default="none"
    )
    task_folder: str | None = option(None, "folder with more tasks.")
    num_fewshot: int | None = option(None, "examples before each question.", least=0, default="the task's own")
    limit: int | None = option(None, "only so many questions of each task.", least=1, default="all")
    device: str = option("auto", '"auto", "cpu", "cuda" or "mps".')


@dataclass(frozen=True)
class EvaluateOptions(EvaluateSettings):
    """Every keyword of ``gpt2lab.evaluate`` with a run, under the names of the flags."""

    progress: Progress | None = None
