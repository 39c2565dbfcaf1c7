"""What the page tells of trainings: the runs of a folder, their numbers, and what their checkpoints write."""

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import torch

from gpt2lab.data import load_tokenizer
from gpt2lab.errors import InputError
from gpt2lab.generation import generate
from gpt2lab.generation.settings import TEMPERATURE
from gpt2lab.generation.text import usual_prompt
from gpt2lab.model import GPT2
from gpt2lab.model.saving import TOKENIZER
from gpt2lab.runs.folder import WEIGHTS, checkpoints_of, read_state, verify_checkpoint
from gpt2lab.runs.listing import runs_below
from gpt2lab.training.metrics import read_metrics

REPORT = "report.html"
_SAMPLE = 300  # tokens
_LARGEST = 50_000_000  # parameters of a model that writes a sample while somebody waits
_POINTS = 2000  # of a curve


class RunFolder:
    """The runs below a folder. Requests name them by numbers, which stay the same.

    Args:
        folder: where to look.
        between_steps: calls something when nothing else uses the processor.
    """

    def __init__(self, folder: Path, between_steps: Callable[[Callable[[], Any]], Any]) -> None:
        self._folder, self._between_steps = folder, between_steps
        self._numbers: dict[Path, int] = {}
        self._samples: dict[Path, str] = {}
        self._lock = threading.Lock()

    def listed(self) -> dict[str, Any]:
        """All runs and reports, as :class:`gpt2lab.serving.requests.Runs` has them."""
        if not self._folder.is_dir():
            return {"runs": [], "reports": []}
        with warnings.catch_warnings(action="ignore"):
            found = [run for run in runs_below(self._folder) if not isinstance(run, InputError)]
        runs = [
            {
                "id": self._number(run.folder),
                "name": str(run.folder.relative_to(self._folder)) if run.folder != self._folder else run.folder.name,
                "switches": {name: str(value) for name, value in run.switches.items()},
                "context_size": run.context_size,
                "text": run.text,
                "step": run.step,
                "best_step": run.best_step,
                "validation_loss": run.validation_loss,
                "training": _is_training(run.folder),
            }
            for run in found
        ]
        reports = sorted(self._folder.rglob(REPORT))
        names = [{"id": self._number(path), "name": str(path.parent.relative_to(self._folder))} for path in reports]
        return {"runs": runs, "reports": names}

    def _number(self, path: Path) -> int:
        with self._lock:
            return self._numbers.setdefault(path, len(self._numbers))

    def _path(self, number: int) -> Path:
        """The path that has a number.

        Raises:
            KeyError: none has it.
        """
        with self._lock:
            return {given: path for path, given in self._numbers.items()}[number]

    def report(self, number: int) -> str:
        """A report.

        Raises:
            KeyError: no report has this number.
        """
        path = self._path(number)
        if path.name != REPORT or not path.is_file():
            raise KeyError(number)
        return path.read_text(encoding="utf-8")

    def run(self, number: int) -> dict[str, Any]:
        """Numbers and samples of a run, as :class:`gpt2lab.serving.requests.RunPage` has them.

        Raises:
            KeyError: no run has this number.
            InputError: its numbers cannot be read.
        """
        run = self._path(number)
        if not run.is_dir():
            raise KeyError(number)
        with warnings.catch_warnings(action="ignore"):
            records = read_metrics(run / "metrics.jsonl")
        thinned = records[:: max(1, len(records) // _POINTS)]
        measured = [record for record in records if "validation_loss" in record]
        shown = {record["step"]: record for record in (*thinned, *measured, *records[-1:])}
        samples = []
        for checkpoint in checkpoints_of(run):
            try:
                samples.append({"step": read_state(checkpoint).step, "text": self._sample(run, checkpoint)})
            except (InputError, OSError):  # it is damaged, a training has just deleted it, or its attention is not ours
                continue
        return {"records": [dict(shown[step]) for step in sorted(shown)], "samples": samples}

    def _sample(self, run: Path, checkpoint: Path) -> str:
        """What a checkpoint writes; written once."""
        if checkpoint not in self._samples:
            self._samples[checkpoint] = self._between_steps(lambda: _sample(run, checkpoint))
        return self._samples[checkpoint]


def _sample(run: Path, checkpoint: Path) -> str:
    verify_checkpoint(checkpoint, WEIGHTS)
    model, tokenizer = GPT2.load(checkpoint).eval(), load_tokenizer(run / TOKENIZER)
    if model.num_parameters() > _LARGEST:
        raise InputError("the model is too large to write while somebody waits")
    prompt = torch.from_numpy(tokenizer.encode(usual_prompt(tokenizer)))
    with warnings.catch_warnings(action="ignore"):
        ids = generate(model, prompt[None], _SAMPLE, temperature=TEMPERATURE, seed=0)
    return tokenizer.decode(ids[0, len(prompt) :].tolist())


def _is_training(run: Path) -> bool:
    """Whether another process has the folder's lock."""
    lock = run / ".lock"
    if not lock.exists():
        return False
    try:
        with filelock.FileLock(lock).acquire(blocking=False):
            return False
    except filelock.Timeout:
        return True
    except OSError:
        return False
