"""The cells of a comparison: each an ordinary run folder, trained and measured in a process of its own.

``python -m gpt2lab.cli.cells FOLDER`` does what the folder's ``cell.yaml`` asks for, or the rest of it.
"""

import dataclasses
import fcntl
import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpt2lab.cli.screen import console
from gpt2lab.data import Tokenizer
from gpt2lab.data.text import Text
from gpt2lab.errors import InputError, TrainingError, tell
from gpt2lab.evaluation.compare import CELL, MEASUREMENTS, SPEED
from gpt2lab.evaluation.measure import measure, measure_speed
from gpt2lab.files import atomic_write
from gpt2lab.hardware import describe_machine
from gpt2lab.model import GPT2
from gpt2lab.runs.folder import checkpoints_of, load, read_state
from gpt2lab.runs.mechanisms import load_attention
from gpt2lab.runs.settings import RunSettings, read_settings
from gpt2lab.training import Trainer
from gpt2lab.training.metrics import read_metrics

LOG = "log.txt"


def prepare(folder: Path, settings: RunSettings) -> None:
    """Write down what a cell is to be.

    Raises:
        InputError: the folder holds a cell with other settings, or made with an attention that was edited since.
    """
    path = folder / CELL
    if not path.exists():
        settings.save(path)
        return
    old, new = read_settings(path), settings.values()
    changed = [f"{n} was {old.get(n)}, now {new.get(n)}" for n in {**old, **new} if old.get(n) != new.get(n)]
    if changed:
        raise InputError(
            f"{folder} was begun with other settings ({'; '.join(changed)}); choose another --out, or the same again"
        )
    if settings.model.attention is not None and checkpoints_of(folder):
        try:
            _load(folder)
        except InputError as error:
            raise InputError(f"{folder} cannot go on: {error}; choose another --out for a new one") from None


def is_finished(folder: Path) -> bool:
    """Whether a cell is trained and measured; one that only tries a learning rate keeps away from the test part."""
    if _only_tunes(folder):
        return _is_trained(folder) or has_diverged(folder)
    return (folder / MEASUREMENTS).exists()


def has_diverged(folder: Path) -> bool:
    """Whether a training ended because its loss was no number any more."""
    records = read_metrics(folder / "metrics.jsonl")
    return bool(records) and not math.isfinite(records[-1]["loss"])


def _only_tunes(folder: Path) -> bool:
    return folder.parent.name == "tune"


def _is_trained(folder: Path) -> bool:
    if not checkpoints_of(folder):
        return False
    last = checkpoints_of(folder)[-1]  # that it is whole is seen when it is loaded
    return read_state(last).step >= int(read_settings(folder / CELL)["max_steps"])


def run_cell(folder: Path) -> int:
    """Train and measure one cell, or what is left of it; returns the exit code."""
    from gpt2lab.training.run import train

    with (folder / CELL).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until another process, left over from a killed comparison, is done
        if is_finished(folder):
            return 0
        settings = read_settings(folder / CELL)
        if not _is_trained(folder):
            spec = settings.get("attention")
            try:
                if checkpoints_of(folder):
                    trained = train(resume=folder, attention=spec)
                else:
                    trained = train(config=folder / CELL, out=folder, attention=spec)
            except TrainingError as error:
                status = tell(error)
            else:
                status = 0 if trained.stopped_by is None else 128 + trained.stopped_by
            if _only_tunes(folder):
                return 0 if is_finished(folder) else status
            if status != 0:
                return status
        model, tokenizer = _load(folder)
        data = RunSettings.read(folder / "config.yaml").data
        text = Text.open(**(dataclasses.asdict(data) | {"tokenizer": tokenizer}))
        measured = measure(model, tokenizer, text.tokens("test"), seed=settings["seed"])
        with atomic_write(folder / MEASUREMENTS) as file:
            file.write(json.dumps(dataclasses.asdict(measured)).encode())
    return 0


def run_cells(folders: Sequence[Path], threads: int, at_once: int, ray_address: str | None = None) -> list[Path]:
    """Run the unfinished ones of these cells, several at once, each with so many threads; returns those that failed."""
    folders = [folder for folder in folders if not is_finished(folder)]
    if not folders:
        return []
    start: Callable[[Path, int], int] = _in_process
    if ray_address is not None:
        start, cpus = _on_ray(ray_address)
        at_once = max(1, cpus // threads)
    failed: list[Path] = []
    columns = ("cells", BarColumn(bar_width=24), MofNCompleteColumn(), "{task.description}")
    clocks = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
    with (
        Progress(*columns, *clocks, console=console, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor(at_once) as pool,
    ):
        task = progress.add_task("starting", total=len(folders))
        begun = time.monotonic()
        started = {pool.submit(start, folder, threads): folder for folder in folders}
        try:
            for number, done in enumerate(as_completed(started), 1):
                folder = started[done]
                if done.exception() is None and done.result() == 0:
                    left = (time.monotonic() - begun) / number * (len(folders) - number) / 60
                    told = f"done    {_name(folder)} · {number}/{len(folders)} · about {left:.0f} min left"
                else:
                    failed.append(folder)
                    told = f"failed  {_name(folder)}: {done.exception() or why_failed(folder)}"
                console.print(told, highlight=False, markup=False)
                running = [_name(cell) for future, cell in started.items() if future.running()]
                progress.update(task, advance=1, description=", ".join(running))
        except KeyboardInterrupt:  # the cells got it, too, and save what they have
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def time_arms(out: Path, rounds: int, threads: int, again: bool = False) -> None:
    """Time all arms of a comparison alternately, and write ``speed.json``; a context that it holds is only timed again
    if that is asked for."""
    torch.set_num_threads(threads)
    path = out / SPEED
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    arms: dict[str, dict[str, Path]] = {}
    for cell in sorted(out.glob("context-*/*/seed-*")):
        if is_finished(cell):
            arms.setdefault(cell.parts[-3].removeprefix("context-"), {}).setdefault(cell.parts[-2], cell)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for context, folders in arms.items():
            before = known.get(context, {}).get("arms", {})
            if not again and set(before) == set(folders):
                continue
            load = os.getloadavg()[0]
            task = progress.add_task(f"timing at a context of {context}", total=(rounds + 1) * len(folders))
            trainers = _trainers(folders)
            with warnings.catch_warnings(action="ignore"):  # that a context is full is what is timed
                found = measure_speed(trainers, rounds, partial(progress.advance, task))
            about = {"machine": describe_machine(), "threads": torch.get_num_threads(), "load_before": load}
            known[context] = about | {"arms": found}
            with atomic_write(path) as file:
                file.write(json.dumps(known, indent=1).encode())


def _trainers(arms: dict[str, Path]) -> dict[str, Trainer]:
    """Trainers that go on with a cell of each arm of a context, whose text they share."""
    loaded = {arm: _load(cell) for arm, cell in arms.items()}
    first, (model, tokenizer) = next(iter(loaded.items()))
    settings = {arm: RunSettings.read(cell / "config.yaml") for arm, cell in arms.items()}
    text = Text.open(**(dataclasses.asdict(settings[first].data) | {"tokenizer": tokenizer}))
    dataset = text.dataset("train", model.config.max_seq_len)
    return {
        arm: Trainer(
            model,
            dataset,
            None,
            dataclasses.replace(settings[arm].training, out=None),
            console=Console(quiet=True),
        )
        for arm, (model, _) in loaded.items()
    }


def _load(cell: Path) -> tuple[GPT2, Tokenizer]:
    """The model as its training left it, and its tokenizer."""
    attention = load_attention(read_settings(cell / CELL).get("attention"))
    return load(cell, attention=attention, checkpoint="last")


def why_failed(folder: Path) -> str:
    """The last line that a cell printed."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it left no message")


def _name(folder: Path) -> str:
    """Its place in the grid, such as context-64/rope/seed-1."""
    return "/".join(folder.parts[-4:] if _only_tunes(folder) else folder.parts[-3:])


def _in_process(folder: Path, threads: int) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "200"}
    with (folder / LOG).open("ab") as log:
        command = [sys.executable, "-m", "gpt2lab.cli.cells", str(folder)]
        return subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode


def _on_ray(address: str) -> tuple[Callable[[Path, int], int], int]:
    """The same on a worker of a Ray cluster, which has to see the same folders; and the CPUs of that cluster."""
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs a package that is not installed; run: pip install 'gpt2lab[ray]'") from None
    ray.init(address, ignore_reinit_error=True, log_to_driver=False)

    def start(folder: Path, threads: int) -> int:
        task = ray.remote(_in_process).options(num_cpus=threads, max_retries=0)
        return int(ray.get(task.remote(folder.resolve(), threads)))

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return start, int(resources.get("CPU", 1))


if __name__ == "__main__":
    sys.exit(run_cell(Path(sys.argv[1])))
