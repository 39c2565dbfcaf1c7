"""The cells of a comparison: each an ordinary run folder, trained and measured in a process of its own.

``python -m gpt2lab.comparison.cells TASK``, with a :class:`Task` as JSON, does what the folder's ``cell.yaml`` asks
for, or the rest of it.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from gpt2lab.comparison.folder import CELL, MEASUREMENTS
from gpt2lab.comparison.measure import measure
from gpt2lab.errors import InputError, TrainingError, tell
from gpt2lab.files import atomic_write, locked_folder
from gpt2lab.model.attention import Mechanism, describe_mechanism
from gpt2lab.model.saving import read_config
from gpt2lab.progress import Progress
from gpt2lab.reading import loads, typed
from gpt2lab.runs.folder import WEIGHTS, checkpoints_of, find_checkpoint, load, open_text, read_state
from gpt2lab.runs.mechanisms import load_attention
from gpt2lab.runs.settings import RunSettings, read_recorded
from gpt2lab.training.metrics import read_metrics
from gpt2lab.training.run import train

LOG = "log.txt"


@dataclass(frozen=True)
class Task:
    """What a process is told.

    Attributes:
        folder: of the cell; its ``cell.yaml`` says what to train.
        attention: the arm's own mechanism, ``file.py:ClassName``: named by the caller, never by the folder.
        described: name and hash of that class, as the caller knows it.
        path: where the caller finds modules, for what that class imports.
    """

    folder: str
    attention: str | None = None
    described: str | None = None
    path: tuple[str, ...] = ()


def prepare(folder: Path, settings: RunSettings, attention: Mechanism | None) -> None:
    """Write down what a cell is to be.

    Raises:
        InputError: the folder holds a cell with other settings, or made with an attention that was edited since.
    """
    path = folder / CELL
    if not path.exists():
        settings.save(path)
        return
    old, new = RunSettings.read(path).to_dict(), settings.to_dict()  # what is new since has its default in both
    if attention is not None and "attention" in old:  # which is known by its hash, wherever it stands
        new["attention"] = old["attention"]
    if new["step"] == "auto":  # either is right, and a cell goes on with the one that it was begun with
        new["step"] = old["step"]
    changed = [f"{n} was {old.get(n)}, now {new.get(n)}" for n in {**old, **new} if old.get(n) != new.get(n)]
    if changed:
        raise InputError(
            f"{folder} was begun with other settings ({'; '.join(changed)}); choose another --out, or the same again"
        )
    if attention is not None and (begun := checkpoints_of(folder)):
        recorded, now = read_config(begun[-1]).attention, describe_mechanism(attention)
        if recorded != now:
            raise InputError(
                f"{folder} cannot go on: this model was made with the attention {recorded}, and {now} was given; "
                "choose another --out for a new one"
            )


def is_finished(folder: Path) -> bool:
    """Whether a cell is trained and measured; one that only tries a learning rate keeps away from the test part."""
    if only_tunes(folder):
        return _is_trained(folder) or has_diverged(folder)
    return (folder / MEASUREMENTS).exists()


def has_diverged(folder: Path) -> bool:
    """Whether a training ended because its loss was no number any more."""
    records = read_metrics(folder / "metrics.jsonl")
    return bool(records) and (records[-1]["loss"] is None or records[-1].get("validation_loss", 0.0) is None)


def only_tunes(folder: Path) -> bool:
    """Whether a cell is there to choose a learning rate."""
    return folder.parent.name == "tune"


def _is_trained(folder: Path) -> bool:
    if not checkpoints_of(folder):
        return False
    steps, records = RunSettings.read(folder / CELL).training.max_steps or 0, read_metrics(folder / "metrics.jsonl")
    known = bool(records) and records[-1]["step"] >= steps and not records[-1].get("validation_is_estimate")
    return known and read_state(find_checkpoint(folder, "last", WEIGHTS)).step >= steps


def run_cell(task: Task) -> int:
    """Train and measure one cell, or what is left of it; returns the exit code."""
    folder = Path(task.folder)
    with locked_folder(folder, wait=True):  # for another process, left over from a killed comparison
        if is_finished(folder):
            return 0
        sys.path.extend(place for place in task.path if place not in sys.path)
        attention = load_attention(task.attention)
        if attention is not None and describe_mechanism(attention) != task.described:
            raise InputError(f"{task.attention} was changed while the comparison ran; start it again")
        if not _is_trained(folder):
            status = _train(folder, task.attention)
            if only_tunes(folder):
                return 0 if is_finished(folder) else status
            if status != 0:
                return status
        model, tokenizer = load(folder, attention=attention, checkpoint="last")
        settings = RunSettings.read(folder / "config.yaml")
        text = open_text(settings.data, tokenizer)
        measured = measure(model, tokenizer, text.tokens("test"), seed=settings.training.seed)
        with atomic_write(folder / MEASUREMENTS) as file:
            file.write(json.dumps(dataclasses.asdict(measured), allow_nan=False).encode())
    return 0


def _train(folder: Path, attention: str | None) -> int:
    """Train a cell, or go on with it; returns the exit code."""
    try:
        if checkpoints_of(folder):
            trained = train(resume=folder, attention=attention)
        else:
            trained = train(**{**read_recorded(folder / CELL), "out": folder, "attention": attention})
    except TrainingError as error:
        return tell(error)
    return 0 if trained.stopped_by is None else 128 + trained.stopped_by


def run_cells(
    tasks: Sequence[Task],
    threads: int,
    workers: int,
    ray_address: str | None,
    console: Console,
    progress: Progress,
) -> dict[str, str]:
    """Run the unfinished ones of these cells, several at the same time, each with so many threads.

    Returns:
        the places of those that failed, and why.
    """
    tasks = [task for task in tasks if not is_finished(Path(task.folder))]
    if not tasks:
        return {}
    start: Callable[[Task, int], int] = _in_process
    if ray_address is not None:
        start, cpus = _on_ray(ray_address)
        workers = max(1, cpus // threads)
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        begun = time.monotonic()
        started = {pool.submit(start, task, threads): Path(task.folder) for task in tasks}
        progress("cells", 0, len(tasks))
        try:
            for number, done in enumerate(as_completed(started), 1):
                place = place_of(started[done])
                if done.exception() is None and done.result() == 0:
                    left = (time.monotonic() - begun) / number * (len(tasks) - number) / 60
                    told = f"done    {place} · {number}/{len(tasks)} · about {left:.0f} min left"
                else:
                    failed[place] = str(done.exception() or why_failed(started[done]))
                    told = f"failed  {place}: {failed[place]}"
                console.print(told)
                progress("cells", number, len(tasks))
        except KeyboardInterrupt:  # the cells got it, too, and save what they have
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def why_failed(folder: Path) -> str:
    """The last line that a cell printed."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it left no message")


def place_of(folder: Path) -> str:
    """Its place in the grid, such as context-64/rope/seed-1."""
    return "/".join(folder.parts[-4:] if only_tunes(folder) else folder.parts[-3:])


def _in_process(task: Task, threads: int) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "200"}
    with (Path(task.folder) / LOG).open("ab") as log:
        command = [sys.executable, "-m", __spec__.name, json.dumps(dataclasses.asdict(task))]
        return subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode


def _on_ray(address: str) -> tuple[Callable[[Task, int], int], int]:
    """The same on a worker of a Ray cluster, which has to see the same folders; and the CPUs of that cluster."""
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs a package that is not installed; run: pip install 'gpt2lab[ray]'") from None
    ray.init(address, ignore_reinit_error=True, log_to_driver=False)

    def start(task: Task, threads: int) -> int:
        at = dataclasses.replace(task, folder=str(Path(task.folder).resolve()))
        return int(ray.get(ray.remote(_in_process).options(num_cpus=threads, max_retries=0).remote(at, threads)))

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return start, int(resources.get("CPU", 1))


def _main() -> int:
    try:
        return run_cell(typed(Task, loads(sys.argv[1]), "the task"))
    except Exception as error:
        return tell(error)


if __name__ == "__main__":
    sys.exit(_main())
