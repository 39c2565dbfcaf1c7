"""How soon this machine reaches the loss of a public recipe for CPUs. Rules and records: docs/records.md."""

import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt2lab.comparison.statistics import t_quantile
from gpt2lab.data.corpora import TINYSHAKESPEARE_SHA256, open_corpus
from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write
from gpt2lab.hardware import describe_machine
from gpt2lab.options import given_options
from gpt2lab.progress import counted
from gpt2lab.reading import read_json, read_settings, shortly
from gpt2lab.runs.settings import ModelSettings, RunSettings, TrainerConfig
from gpt2lab.training.metrics import exact_loss

TARGET = 1.88
RECORD = Path(__file__).with_name("record.yaml")  # the entry that holds the record
# What the rules settle. The last tenth of the text is measured once, at the end; the estimate before it, for the
# checkpoint, is a short one.
CONDITIONS: Mapping[str, Any] = {
    "tokenizer": "char",
    "validation_fraction": 0.1,
    "test_fraction": 0.0,
    "eval_every": 0,
    "eval_tokens": 1024,
    "checkpoint_every": 0,
    "device": "cpu",
}
FORBIDDEN: Mapping[str, str] = {
    **dict.fromkeys(("text", "corpus", "vocab_size"), "an entry learns the first nine tenths of tinyshakespeare"),
    **dict.fromkeys(("init_from", "resume"), "an entry starts from random weights, which have seen no text"),
    **dict.fromkeys(("attention", "random_config", "random_seed"), "an entry is described by the switches alone"),
    **dict.fromkeys(("seed", "out"), "every seed is trained in a folder of its own"),
}


@dataclass(frozen=True)
class Attempt:
    """One training from a cold process.

    Attributes:
        arm: name of the entry, that of its file.
        seed: of the training.
        seconds: until the loss was known.
        loss: on the whole last tenth of the text, nats per character.
        validation_is_estimate: never; a record says so as every training does.
    """

    arm: str
    seed: int
    seconds: float
    loss: float
    validation_is_estimate: bool = False


@dataclass(frozen=True)
class Speedrun:
    """Trainings of one or more entries with different seeds, and the loss that they were to reach.

    Attributes:
        attempts: in the order in which they were made: seed by seed, the entries in turn.
        entries: options of each entry, by name.
        target: nats per character.
        text_sha256: of the text.
        machine: where it was.
        version: of this program.
    """

    attempts: list[Attempt]
    entries: dict[str, dict[str, object]]
    target: float = TARGET
    text_sha256: str = TINYSHAKESPEARE_SHA256
    machine: str = ""
    version: str = ""

    def of(self, arm: str) -> list[Attempt]:
        """The attempts of an entry."""
        return [attempt for attempt in self.attempts if attempt.arm == arm]

    def median_seconds(self, arm: str) -> float:
        """Half of the attempts of an entry took no longer."""
        return statistics.median(attempt.seconds for attempt in self.of(arm))

    def mean_loss(self, arm: str) -> float:
        """Over the attempts of an entry, nats per character."""
        return statistics.fmean(attempt.loss for attempt in self.of(arm))

    def reached(self, arm: str) -> int:
        """How many attempts of an entry came down to the target."""
        return sum(attempt.loss <= self.target for attempt in self.of(arm))

    def expected(self, arm: str) -> tuple[float, float]:
        """Where the loss of a further training of an entry lies, in 95 of 100 cases: Student's prediction interval."""
        losses = [attempt.loss for attempt in self.of(arm)]
        width = t_quantile(0.95, len(losses) - 1) * statistics.stdev(losses) * math.sqrt(1 + 1 / len(losses))
        return self.mean_loss(arm) - width, self.mean_loss(arm) + width

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON has it, with a summary of every entry. ``gpt2lab judge`` reads the attempts."""
        summary = {
            arm: {
                "median_seconds": self.median_seconds(arm),
                "mean_loss": self.mean_loss(arm),
                "reached": self.reached(arm),
            }
            for arm in dict.fromkeys(attempt.arm for attempt in self.attempts)
        }
        return asdict(self) | {"summary": summary}

    def save(self, path: str | Path) -> None:
        """Write a record, as JSON."""
        with atomic_write(Path(path)) as file:
            file.write(json.dumps(self.to_dict(), indent=2).encode() + b"\n")


@dataclass(frozen=True)
class Check:
    """One attempt of a record, made again.

    Attributes:
        recorded: what the record says.
        repeated: what happened here.
        low, high: where the loss of a further training of the entry lies, in 95 of 100 cases.
    """

    recorded: Attempt
    repeated: Attempt
    low: float
    high: float

    @property
    def fits(self) -> bool:
        """Whether the loss is one that the record lets expect."""
        return self.low <= self.repeated.loss <= self.high


def read_entries(files: Sequence[str | Path]) -> dict[str, dict[str, object]]:
    """The options of entries, by the names of their files: those of a training, except for what the rules settle.

    Raises:
        InputError: a file cannot be used, or asks for what the rules forbid; or two have the same name.
    """
    entries: dict[str, dict[str, object]] = {}
    for file in map(Path, files):
        if file.stem in entries:
            raise InputError(f"two entries are called {file.stem}; rename one of the files")
        entries[file.stem] = checked_entry(read_settings(file), str(file))
    return entries


def checked_entry(values: Mapping[str, object], where: str) -> dict[str, object]:
    """The options of one entry, if they keep the rules; ``where`` they stand is for messages."""
    for name, why in FORBIDDEN.items():
        if name in values:
            raise InputError(f"{where}: {name} is given, but {why}; leave it out")
    for name, value in CONDITIONS.items():
        if values.get(name, value) != value:
            raise InputError(
                f"{where}: {name} is {shortly(values[name])}, but every entry has {name}: {value}, so that its loss is "
                "that on the whole last tenth of the text; leave it out"
            )
    entry = {name: value for name, value in values.items() if name not in CONDITIONS}
    given = given_options((ModelSettings, TrainerConfig), entry, where)
    try:
        RunSettings.of(given).model.config(vocab_size=1)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return entry


def speedrun(
    text: str | Path | None = None,
    seeds: int = 5,
    progress: Callable[[Attempt], None] | None = None,
    *,
    config: Sequence[str | Path] = (),
    record: str | Path | None = None,
) -> Speedrun:
    """Train to a validation loss of 1.88 nats per character on tinyshakespeare as soon as possible.

    Every seed is trained in a process of its own, with empty caches. The clock runs from the start of the process until
    the loss on the whole last tenth of the text is known.

    Args:
        text: where tinyshakespeare.txt is; None: it is downloaded once.
        seeds: trainings of every entry, with the seeds 1, 2, …
        progress: called after every one.
        config: files of entries, which are trained in turn; none: the entry that holds the record.
        record: file that is written after every attempt, as JSON.

    Raises:
        InputError: another text, no trainings, an entry that the rules forbid, or a record that is there already.
    """
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}; it has to be 1 or more")
    entries = read_entries(config or [RECORD])
    if record is not None and Path(record).exists():
        raise InputError(f"{record} is there already; give the record another name")
    corpus = _tinyshakespeare(text)
    found = Speedrun(
        [], entries, text_sha256=TINYSHAKESPEARE_SHA256, machine=describe_machine(), version=version("gpt2lab")
    )
    for seed in range(1, seeds + 1):
        for arm, entry in entries.items():
            found.attempts.append(train_cold(corpus, entry, seed, arm))
            if record is not None:
                found.save(record)
            if progress is not None:
                progress(found.attempts[-1])
    return found


def _tinyshakespeare(text: str | Path | None) -> Path:
    corpus = open_corpus("tinyshakespeare") if text is None else open_corpus(text=str(text))
    if corpus.sha256 != TINYSHAKESPEARE_SHA256:
        raise InputError(
            f"{text} is not tinyshakespeare (its SHA-256 differs), and {TARGET} is a loss on that text; "
            "without --text it is downloaded"
        )
    return corpus.files[0]


def check_record(path: str | Path, text: str | Path | None = None) -> list[Check]:
    """Repeat one seed of every entry of a record, the first that it has.

    The same machine with the same versions repeats the loss number for number. Another processor rounds otherwise, and
    a training then takes another way; so the loss is looked for where, by Student's t, a further training of the entry
    lies in 95 of 100 cases.

    Args:
        path: of the record that :meth:`Speedrun.save` wrote.
        text: as of :func:`speedrun`.

    Raises:
        InputError: the record is damaged, breaks the rules, or has fewer than three attempts of an entry.
    """
    record = read_json(Speedrun, Path(path))
    if record.text_sha256 != TINYSHAKESPEARE_SHA256:
        raise InputError(f"{path} was measured on another text than tinyshakespeare (its text_sha256 differs)")
    if not record.entries or {attempt.arm for attempt in record.attempts} != record.entries.keys():
        raise InputError(f"{path} is damaged: its attempts are not those of its entries")
    for attempt in record.attempts:
        if attempt.validation_is_estimate or not (math.isfinite(attempt.loss) and attempt.seconds > 0):
            raise InputError(
                f"{path}: seed {attempt.seed} of {attempt.arm} has an estimate of the loss, or none; a record has the "
                "loss on the whole last tenth of the text"
            )
    for arm in record.entries:
        if (count := len(record.of(arm))) < 3:
            raise InputError(
                f"{path} has {counted(count, 'attempt')} of {arm}; 3 or more tell what to expect of another"
            )
    entries = {arm: checked_entry(options, f"{path}, entry {arm}") for arm, options in record.entries.items()}
    corpus = _tinyshakespeare(text)
    checks = []
    for arm, entry in entries.items():
        recorded = record.of(arm)[0]
        checks.append(Check(recorded, train_cold(corpus, entry, recorded.seed, arm), *record.expected(arm)))
    return checks


def train_cold(text: Path, recipe: Mapping[str, Any], seed: int, arm: str) -> Attempt:
    """Train in a process of its own that finds nothing in any cache."""
    with tempfile.TemporaryDirectory() as folder:
        caches = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "GPT2LAB_CACHE", "XDG_CACHE_HOME"), f"{folder}/cache")
        options = {"text": str(text), **CONDITIONS, **recipe, "seed": seed, "out": f"{folder}/run"}
        command = [sys.executable, "-u", "-m", "gpt2lab.worker", json.dumps(options)]
        seconds, _ = seconds_until(r"^step +(\d+)/\1 .* val ", command, os.environ | caches | {"COLUMNS": "200"})
        loss = exact_loss(Path(folder) / "run")
        assert loss is not None  # the recipe has a validation part
        return Attempt(arm, seed, seconds, loss)


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
