"""What the page tells of trainings: the runs of a folder, their numbers, and what their checkpoints write."""

import threading
import time
import warnings
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from gpt2lab.data import load_tokenizer
from gpt2lab.errors import InputError
from gpt2lab.generation import generate
from gpt2lab.generation.settings import TEMPERATURE
from gpt2lab.generation.text import usual_prompt
from gpt2lab.model import GPT2
from gpt2lab.model.saving import TOKENIZER
from gpt2lab.runs.folder import WEIGHTS, checkpoints_of, read_state, verify_checkpoint
from gpt2lab.runs.listing import RunSummary, runs_below, summary_of
from gpt2lab.runs.settings import RunSettings
from gpt2lab.training.metrics import exact_loss, read_metrics

REPORT = "report.html"
_SAMPLE = 300  # tokens
_LARGEST = 200_000_000  # bytes of a model that writes a sample while somebody waits
_RECENT = 60  # seconds
_POINTS = 2000  # of a curve


class RunFolder:
    """The runs below a folder. Requests name them by numbers, which stay the same.

    Args:
        folder: where to look.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers: dict[Path, int] = {}
        self._samples: dict[Path, str | None] = {}
        self._lock, self._writing = threading.Lock(), threading.Lock()

    def listed(self) -> dict[str, Any]:
        """All runs and reports, as :class:`gpt2lab.serving.requests.Runs` has them."""
        if not self._folder.is_dir():
            return {"runs": [], "reports": []}
        with warnings.catch_warnings(action="ignore"):
            found = [run for run in runs_below(self._folder) if not isinstance(run, InputError)]
            known = {run.folder for run in found}
            young = [_young(path) for path in self._folder.rglob("metrics.jsonl") if path.parent not in known]
        found += [run for run in young if run is not None]
        runs = [
            asdict(run)
            | {
                "id": self._number(run.folder),
                "name": self._name(run.folder),
                "switches": {name: str(value) for name, value in run.switches.items()},
                "validation_loss": _loss(run.folder, run.validation_loss, run.step, _last_record(run.folder)),
                "training": _is_training(run.folder),
            }
            for run in sorted(found, key=lambda run: run.folder)
        ]
        reports = sorted(self._folder.rglob(REPORT))
        names = [{"id": self._number(path), "name": self._name(path.parent)} for path in reports]
        return {"runs": runs, "reports": names}

    def _name(self, folder: Path) -> str:
        return folder.name if folder == self._folder else str(folder.relative_to(self._folder))

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
            with self._writing:  # one at a time
                if checkpoint not in self._samples:
                    self._samples[checkpoint] = _sample(run, checkpoint)
            text = self._samples[checkpoint]
            with suppress(InputError):  # a training has just deleted it
                samples += [] if text is None else [{"step": read_state(checkpoint).step, "text": text}]
        return {"records": [dict(shown[step]) for step in sorted(shown)], "samples": samples}


def _young(metrics: Path) -> RunSummary | None:
    """A run that has records and no checkpoint yet; None if it is none."""
    with suppress(InputError):
        settings, records = RunSettings.read(metrics.with_name("config.yaml")), read_metrics(metrics)
        return summary_of(metrics.parent, settings, step=records[-1]["step"] if records else 0)
    return None


@lru_cache(1024)
def _loss(folder: Path, estimate: float | None, *seen: float) -> float | None:
    """The loss that a finished training has measured exactly, or the estimate of its best checkpoint.

    All records are read for it, so that is done once for what was seen of a run: its last checkpoint and record.
    """
    with suppress(InputError):
        return exact_loss(folder)
    return estimate


def _last_record(run: Path) -> float:
    """When it was written, in seconds since 1970; 0 if there is none."""
    with suppress(OSError):
        return (run / "metrics.jsonl").stat().st_mtime
    return 0.0


def _sample(run: Path, checkpoint: Path) -> str | None:
    """What a checkpoint writes; None if it is damaged, too large to be waited for, or its attention is not ours."""
    try:
        if (checkpoint / "model.safetensors").stat().st_size > _LARGEST:
            return None
        verify_checkpoint(checkpoint, WEIGHTS)
        model, tokenizer = GPT2.load(checkpoint).eval(), load_tokenizer(run / TOKENIZER)
        prompt = torch.from_numpy(tokenizer.encode(usual_prompt(tokenizer)))
        with warnings.catch_warnings(action="ignore"):
            ids = generate(model, prompt[None], _SAMPLE, temperature=TEMPERATURE, seed=0)
    except (InputError, OSError):
        return None
    return tokenizer.decode(ids[0, len(prompt) :].tolist())


def _is_training(run: Path) -> bool:
    """Whether a process has the folder's lock, which is not touched; where the system does not tell that, whether there
    are new records.
    """
    locks = Path("/proc/locks")
    if not locks.exists():
        return time.time() - _last_record(run) < _RECENT
    with suppress(OSError):
        inode = (run / ".lock").stat().st_ino
        return any(f":{inode} " in line and "WRITE" in line for line in locks.read_text().splitlines())
    return False
