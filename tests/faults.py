"""Every touch of the disk fails in turn: ``faults.py FOLDER SCENARIO HOW EVERY``.

A scenario (a training, one that goes on, the end of one, a packing, a report) is run once to count how often it opens a
file for writing, writes, flushes, renames, makes or deletes something. Then it is run again for each of these touches
(or every so many-th), in a process of its own, and that touch fails as on a full or broken disk ("fail": once; "full":
that and all that follow), or ends the process as ``kill -9`` does ("kill"). Afterwards a fresh process does what a
person would: the same command again, or ``--resume``. What is left must then be what an undisturbed run leaves.

Prints JSON: how many touches there are, how many were tried, how they ended, and every problem in a sentence.
(A program, so that only a process without threads forks.)
"""

import collections
import contextlib
import errno
import io
import json
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch

import gpt2lab.data.pack as pack_module
from gpt2lab.comparison.run import report
from gpt2lab.data.pack import pack
from gpt2lab.data.shards import find_shards
from gpt2lab.errors import InputError, TrainingError
from gpt2lab.runs.folder import checkpoints_of, find_checkpoint, load, verify_checkpoint
from gpt2lab.training.metrics import exact_loss, read_metrics
from gpt2lab.training.run import train

CLOCK = {"seconds", "tokens_per_second", "peak_share", "peak_memory"}
AUDITED = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate", "os.chmod"}
SIZES = {"embed_dim": 8, "num_heads": 2, "num_layers": 1, "context_size": 8, "batch_size": 4}
OPTIONS: dict[str, Any] = {**SIZES, "eval_every": 4, "eval_tokens": 64, "checkpoint_every": 4, "keep": 1, "threads": 1}
TOLD, TOLERATED, KILLED = 7, 0, 9


class Disk:
    """Counts the touches below a folder, and lets one of them fail.

    Args:
        folder: where they count.
        touch: which one fails, from 1; 0: none.
        how: "fail", "full" or "kill".
    """

    def __init__(self, folder: Path, touch: int, how: str) -> None:
        self.folder, self.at, self.how, self.count = str(folder), touch, how, 0
        sys.addaudithook(self._audited)
        self._open, self._save, self._fsync = io.open, safetensors.torch.save_file, os.fsync
        io.open = self._opened  # type: ignore[assignment]  # pathlib calls it by this name
        safetensors.torch.save_file = self._saved  # which opens its files itself
        os.fsync = self._flushed

    def touched(self, path: Any) -> None:
        """Count, and fail if it is time."""
        if not isinstance(path, str | os.PathLike) or not str(path).startswith(self.folder):
            return
        self.count += 1
        if self.at and (self.count == self.at or (self.how == "full" and self.count > self.at)):
            if self.how == "kill":
                os._exit(KILLED)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED:
            freeing = event in ("os.remove", "os.rmdir", "shutil.rmtree") and self.how == "full"
            if not freeing:  # a full disk lets go of what is deleted
                self.touched(arguments[0])

    def _opened(self, file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
        writes = isinstance(file, str | os.PathLike) and any(letter in mode for letter in "wax+")
        if writes:
            self.touched(file)
        opened = self._open(file, mode, *others, **named)
        every = named.get("buffering") == 0 or (others and others[0] == 0)
        return Written(opened, file, self, every) if writes and str(file).startswith(self.folder) else opened

    def _saved(self, tensors: Any, path: Any, *others: Any, **named: Any) -> None:
        self._save(tensors, path, *others, **named)
        try:
            self.touched(path)
        except OSError as error:  # half of it is there
            os.truncate(path, Path(path).stat().st_size // 2)
            raise safetensors.SafetensorError(f"I/O error: {error}") from None

    def _flushed(self, descriptor: int) -> None:
        self.touched(Path(f"/proc/self/fd/{descriptor}").readlink())
        self._fsync(descriptor)


class Written:
    """An open file whose writes count: every one, or the first of many that are gathered."""

    def __init__(self, file: Any, path: Any, disk: Disk, every: bool) -> None:
        self.__dict__.update(file=file, path=path, disk=disk, every=every, written=False)

    def write(self, content: Any) -> Any:
        """Write, if the disk lets it."""
        if self.every or not self.written:
            self.disk.touched(self.path)
            self.__dict__["written"] = True
        return self.file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Written":
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self.file.__exit__(*error)


# What is done: before the disturbance, disturbed, and afterwards; and what has to be there in the end.


def quietly(**options: Any) -> None:
    train(**options, progress=lambda _: None)


def training(here: Path, steps: int = 12) -> None:
    quietly(text=str(here / "text.txt"), out=here / "run", max_steps=steps, **OPTIONS)


def go_on(here: Path, **options: Any) -> None:
    if checkpoints_of(here / "run"):
        quietly(resume=here / "run", **options)
    else:
        training(here)


def longer(here: Path) -> None:
    go_on(here, max_steps=12)


def only_begun(here: Path) -> None:
    training(here, steps=5)


def ended_but_for_the_end(here: Path) -> None:
    training(here)
    for name in ("samples.txt", "loss.svg"):
        (here / "run" / name).unlink()
    metrics = here / "run" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))


def packing(here: Path) -> None:
    pack(here / "text.txt", here / "shards", "char", shard_tokens=6000)


def reporting(here: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        report(here / "comparison")


def of_a_run(here: Path) -> dict[str, Any]:
    run = here / "run"
    model, tokenizer = load(run, checkpoint="last")
    verify_checkpoint(find_checkpoint(run, "last"))
    records = [{n: v for n, v in record.items() if n not in CLOCK} for record in read_metrics(run / "metrics.jsonl")]
    return {
        "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "tokenizer": tokenizer.fingerprint(),
        "loss": exact_loss(run),
        "last record": records[-1],
        "steps": [record["step"] for record in records],
        "samples": (run / "samples.txt").read_text(),
        "files": sorted(path.name for path in run.iterdir() if path.name != "loss.svg"),  # a picture may be missing
        "last checkpoint": max(path.name for path in (run / "checkpoints").iterdir()),  # an older one may be left
        "remains": [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")],
    }


def of_shards(here: Path) -> dict[str, Any]:
    found = find_shards(str(here / "shards"))
    assert found is not None
    return {
        "ids": found[list(range(len(found)))].tolist(),
        "files": {path.name: path.read_bytes().hex() for path in sorted((here / "shards").glob("[tp]*"))},
    }


def of_a_report(here: Path) -> dict[str, Any]:
    out = here / "comparison"
    return {
        "results": json.loads((out / "results.json").read_text()),
        "files": sorted(path.name for path in out.iterdir() if path.suffix != ".tmp"),  # which are swept after a day
    }


Act = Callable[[Path], object]
SCENARIOS: dict[str, tuple[Act, Act, Act, Callable[[Path], dict[str, Any]]]] = {
    "train": (lambda here: None, training, go_on, of_a_run),
    "resume": (only_begun, longer, longer, of_a_run),
    "finish": (ended_but_for_the_end, go_on, go_on, of_a_run),
    "pack": (lambda here: None, packing, packing, of_shards),
    "report": (lambda here: None, reporting, reporting, of_a_report),
}


def forked(act: Callable[[], object]) -> tuple[int, str]:
    """Do something in a process of its own; its exit code, and what it had to say."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code, said = TOLERATED, ""
        try:
            with warnings.catch_warnings(action="ignore"):
                said = json.dumps(act())
        except (InputError, TrainingError, OSError) as error:
            code, said = TOLD, f"{type(error).__name__}: {error}"
        except BaseException:
            code, said = 1, traceback.format_exc()
        with os.fdopen(writing, "w") as pipe:
            pipe.write(said)
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def problems_of(scenario: str, here: Path, how: str, touch: int, whole: dict[str, Any]) -> Iterator[str]:
    """Run a scenario with one touch that fails, and what comes after it; what is wrong in the end."""
    _, disturbed, again, found_in = SCENARIOS[scenario]

    def disturb() -> None:
        Disk(here, touch, how)
        disturbed(here)

    code, said = forked(disturb)
    ending = {TOLD: "told", TOLERATED: "tolerated", KILLED: "killed"}.get(code, "other")
    ENDINGS[ending] += 1
    if code not in (TOLD, TOLERATED, KILLED):
        yield f"it ended with code {code}: {said[-700:]}"
    if how == "kill" or code == TOLD:
        code, said = forked(lambda: again(here) and None)
        if code != 0:
            yield f"going on ended with code {code}: {said[-700:]}"
            return
    code, said = forked(lambda: found_in(here))
    if code != 0:
        yield f"what is left cannot be read: {said[-700:]}"
        return
    left = json.loads(said)
    for name, value in whole.items():
        # What could not be deleted is deleted when the run goes on.
        if left[name] != value and not (name == "remains" and ending == "tolerated"):
            yield f"{name} differ: {str(left[name])[:150]}, not {str(value)[:150]}"


ENDINGS: collections.Counter[str] = collections.Counter()


def main(folder: Path, scenario: str, how: str, every: int) -> None:
    """Print the JSON."""
    if scenario == "pack":  # threads, because processes take a second to start
        pack_module.ProcessPoolExecutor = lambda number, *_: ThreadPoolExecutor(number)  # type: ignore[assignment,misc]
    prepare, disturbed, _, found_in = SCENARIOS[scenario]
    start = folder / "start"
    code, said = forked(lambda: prepare(start) and None)
    assert code == 0, said
    whole = folder / "here"
    shutil.copytree(start, whole)

    def counted() -> int:
        disk = Disk(whole, 0, how)
        disturbed(whole)
        return disk.count

    code, said = forked(counted)
    assert code == 0, said
    touches = int(said)
    code, said = forked(lambda: found_in(whole))
    assert code == 0, said
    expected, problems, tried = json.loads(said), [], range(1, touches + 1, every)
    for touch in tried:
        shutil.rmtree(whole)
        shutil.copytree(start, whole)
        problems += [f"touch {touch}: {one}" for one in problems_of(scenario, whole, how, touch, expected)]
    print(json.dumps({"touches": touches, "tried": len(tried), "endings": dict(ENDINGS), "problems": problems}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
