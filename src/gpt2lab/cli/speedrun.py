"""``gpt2lab speedrun``: how soon this machine reaches the loss of a public recipe for CPUs."""

import dataclasses
import json as json_format
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2lab.cli.screen import check_counts, console
from gpt2lab.data.corpora import TINYSHAKESPEARE_SHA256, open_corpus
from gpt2lab.errors import InputError
from gpt2lab.hardware import describe_machine
from gpt2lab.training.metrics import read_metrics

TARGET = 1.88
# The record's recipe (docs/speedrun.md), beside what `gpt2lab train` does unless told otherwise.
RECIPE = tuple(
    "--num-layers 2 --window 4 --activation relu --schedule cosine --learning-rate 2e-2 --max-steps 240".split()
)
# The last tenth of the text is measured once, at the end; the estimate before it, for the checkpoint, is a short one.
CONDITIONS = tuple(
    "--validation-fraction 0.1 --test-fraction 0 --eval-every 0 --eval-tokens 1024 --checkpoint-every 0"
    " --device cpu".split()
)


@dataclass(frozen=True)
class Attempt:
    """One training from a cold process: seconds until its exact validation loss (nats per character) was known."""

    seed: int
    seconds: float
    loss: float


def speedrun(*, text: Path | None = None, seeds: int = 5, json: bool = False) -> int:
    """Reach a validation loss of 1.88 nats per character on tinyshakespeare as soon as possible.

    Every seed is trained in a process of its own, with empty caches. The clock runs from the start of the process until
    the loss on the whole last tenth of the text is known. Rules and records: docs/speedrun.md.

    Parameters
    ----------
    text
        Where tinyshakespeare.txt is; default: it is downloaded once.
    seeds
        Trainings: with the seeds 1, 2, …
    json
        Print one JSON object.
    """
    check_counts(seeds=seeds)
    corpus = open_corpus("tinyshakespeare") if text is None else open_corpus(text=str(text))
    if corpus.sha256 != TINYSHAKESPEARE_SHA256:
        raise InputError(
            f"{text} is not tinyshakespeare (its SHA-256 differs), and {TARGET} is a loss on that text; "
            "without --text it is downloaded"
        )
    attempts = []
    for seed in range(1, seeds + 1):
        with console.status(f"seed {seed} of {seeds}"):
            attempts.append(train_cold(corpus.files[0], RECIPE, seed))
        if not json:
            console.print(
                f"seed {seed}  {attempts[-1].seconds:6.1f} s  loss {attempts[-1].loss:.4f}"
                f"{'' if attempts[-1].loss <= TARGET else '  (missed)'}",
                highlight=False,
            )
    seconds = [attempt.seconds for attempt in attempts]
    reached = sum(attempt.loss <= TARGET for attempt in attempts)
    if json:
        found = {"target": TARGET, "median_seconds": statistics.median(seconds), "reached": reached}
        print(json_format.dumps(found | {"attempts": [dataclasses.asdict(attempt) for attempt in attempts]}))
        return 0
    console.print(
        f"median {statistics.median(seconds):.1f} s ({min(seconds):.1f} – {max(seconds):.1f}); "
        f"{reached} of {seeds} reached {TARGET}\n{describe_machine()}",
        highlight=False,
    )
    return 0


def train_cold(text: Path, recipe: Sequence[str], seed: int) -> Attempt:
    """Train in a process of its own that finds nothing in any cache."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "GPT2LAB_CACHE": f"{folder}/cache", "COLUMNS": "200"}
        command = [sys.executable, "-u", "-m", "gpt2lab", "train", "--text", str(text), *CONDITIONS, *recipe]
        command += ["--seed", str(seed), "--out", f"{folder}/run"]
        seconds, _ = seconds_until(r"^step +(\d+)/\1 .* val ", command, os.environ | caches)
        return Attempt(seed, seconds, read_metrics(Path(folder) / "run" / "metrics.jsonl")[-1]["validation_loss"])


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
