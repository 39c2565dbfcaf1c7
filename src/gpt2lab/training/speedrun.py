"""How soon this machine reaches the loss of a public recipe for CPUs. Rules and records: docs/speedrun.md."""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2lab.data.corpora import TINYSHAKESPEARE_SHA256, open_corpus
from gpt2lab.errors import InputError
from gpt2lab.training.metrics import exact_loss

TARGET = 1.88
# The record's recipe, beside what `gpt2lab train` does unless told otherwise.
RECIPE: Mapping[str, Any] = {
    "num_layers": 2,
    "window": 4,
    "activation": "relu",
    "schedule": "cosine",
    "learning_rate": 2e-2,
    "max_steps": 240,
}
# The last tenth of the text is measured once, at the end; the estimate before it, for the checkpoint, is a short one.
CONDITIONS: Mapping[str, Any] = {
    "validation_fraction": 0.1,
    "test_fraction": 0,
    "eval_every": 0,
    "eval_tokens": 1024,
    "checkpoint_every": 0,
    "device": "cpu",
}


@dataclass(frozen=True)
class Attempt:
    """One training from a cold process: seconds until its exact validation loss (nats per character) was known."""

    seed: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Speedrun:
    """Trainings with different seeds, and the loss that they were to reach."""

    attempts: list[Attempt]
    target: float = TARGET

    @property
    def median_seconds(self) -> float:
        """Half of the attempts took no longer."""
        return statistics.median(attempt.seconds for attempt in self.attempts)

    @property
    def reached(self) -> int:
        """How many came down to the target."""
        return sum(attempt.loss <= self.target for attempt in self.attempts)


def speedrun(
    text: str | Path | None = None, seeds: int = 5, progress: Callable[[Attempt], None] | None = None
) -> Speedrun:
    """Train to a validation loss of 1.88 nats per character on tinyshakespeare as soon as possible.

    Every seed is trained in a process of its own, with empty caches. The clock runs from the start of the process until
    the loss on the whole last tenth of the text is known.

    Args:
        text: where tinyshakespeare.txt is; None: it is downloaded once.
        seeds: trainings, with the seeds 1, 2, …
        progress: called after every one.

    Raises:
        InputError: another text, or no trainings.
    """
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}; it has to be 1 or more")
    corpus = open_corpus("tinyshakespeare") if text is None else open_corpus(text=str(text))
    if corpus.sha256 != TINYSHAKESPEARE_SHA256:
        raise InputError(
            f"{text} is not tinyshakespeare (its SHA-256 differs), and {TARGET} is a loss on that text; "
            "without --text it is downloaded"
        )
    attempts = []
    for seed in range(1, seeds + 1):
        attempts.append(train_cold(corpus.files[0], RECIPE, seed))
        if progress is not None:
            progress(attempts[-1])
    return Speedrun(attempts)


def train_cold(text: Path, recipe: Mapping[str, Any], seed: int) -> Attempt:
    """Train in a process of its own that finds nothing in any cache."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "GPT2LAB_CACHE": f"{folder}/cache", "COLUMNS": "200"}
        options = {"text": str(text), **CONDITIONS, **recipe, "seed": seed, "out": f"{folder}/run"}
        command = [sys.executable, "-u", "-m", "gpt2lab.training.run", json.dumps(options)]
        seconds, _ = seconds_until(r"^step +(\d+)/\1 .* val ", command, os.environ | caches)
        loss = exact_loss(Path(folder) / "run")
        assert loss is not None  # the recipe has a validation part
        return Attempt(seed, seconds, loss)


def seconds_until(
    pattern: str, command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> tuple[float, str]:
    """Seconds from a command's start until it prints a line with this pattern, and that line.

    Raises:
        InputError: the command ended without it.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder) as process:
        assert process.stdout is not None
        for output in process.stdout:
            if re.search(pattern, output):
                seconds = time.perf_counter() - start
                process.communicate()
                return seconds, output
    raise InputError(
        f"{' '.join(command)} ended with exit code {process.returncode} before it told its loss; what it printed last "
        "stands above"
    )
