"""What a busy machine costs: training, evaluation, writing and a comparison, quiet and beside busy processes.

    python benchmarks/busy.py [--rounds 3] [--busy 0 1 2 4] [--work training …]

Every measurement is a fresh process, and all of them are taken in turn, round by round. The busy processes are in
sessions of their own, as the programs of another terminal are: the kernel shares the processor by session. "training"
begins beside them and chooses its threads there; "training, busy later" has the threads that it chose on the quiet
machine; "training, spinning" is what torch does by itself: all threads, which spin while they wait.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gpt2lab
from gpt2lab.runs.settings import RunSettings

BUSY = "while True: pass"
STEPS = 40
SPINNING = {"GOMP_SPINCOUNT": "30000000000"}  # as good as for ever, GNU OpenMP's own default


def training(folder: Path, threads: int | None = None, steps: int = STEPS) -> float:
    """Seconds of a step of the default model."""
    with tempfile.TemporaryDirectory() as out:
        run = gpt2lab.train(
            max_steps=steps,
            eval_every=0,
            checkpoint_every=0,
            threads=threads,
            out=f"{out}/run",
            progress=lambda _: None,
        )
        return run.seconds / run.steps


def training_busy_later(folder: Path) -> float:
    """The same, with the threads that a quiet machine had."""
    return training(folder, json.loads((folder / "threads.json").read_text()))


def training_spinning(folder: Path) -> float:
    """The same, as torch does it by itself."""
    return training(folder, os.cpu_count(), 10)


def evaluation(folder: Path) -> float:
    """Seconds to measure the default model on the validation part of Shakespeare, at the context of its training."""
    start = time.perf_counter()
    gpt2lab.evaluate(folder / "run", contexts=[])
    return time.perf_counter() - start


def writing(folder: Path) -> float:
    """Seconds of a token."""
    written = gpt2lab.generate(folder / "run", tokens=1000)
    return written.seconds / written.tokens


def comparison(folder: Path) -> float:
    """Seconds of two arms with two seeds of 60 steps, two at a time."""
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        arms: dict[str, dict[str, object]] = {"original": {}, "rope": {"position": "rope"}}
        gpt2lab.compare(arms, seeds=2, steps=60, workers=2, rounds=0, out=f"{out}/compare", progress=lambda *_: None)
        return time.perf_counter() - start


WORK = {
    "training": training,
    "training, busy later": training_busy_later,
    "training, spinning": training_spinning,
    "evaluation": evaluation,
    "writing": writing,
    "comparison": comparison,
}


@contextmanager
def beside(number: int) -> Iterator[None]:
    """So many busy processes, each in a session of its own."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(number)]
    time.sleep(1)
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measured(work: str, folder: Path) -> float:
    """The work in a fresh process."""
    environment = os.environ | (SPINNING if work == "training, spinning" else {})
    command = [sys.executable, __file__, "--only", work, str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--work", nargs="+", choices=WORK, default=[*WORK])
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(WORK[options.only[0]](Path(options.only[1])))
        return
    found: dict[tuple[str, int], list[float]] = {(work, busy): [] for work in options.work for busy in options.busy}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        run = gpt2lab.train(max_steps=100, out=folder / "run", progress=lambda _: None)
        chosen = RunSettings.read(run.folder / "config.yaml").training.threads
        (folder / "threads.json").write_text(json.dumps(chosen))
        for _ in range(options.rounds):
            for (work, busy), seconds in found.items():
                with beside(busy):
                    seconds.append(measured(work, folder))
                print(f"{work}, {busy} busy: {seconds[-1]:.4g} s", file=sys.stderr)
    print(f"\n{chosen} threads were chosen while nothing else ran; {os.cpu_count()} cores; {options.rounds} rounds\n")
    print(f"{'seconds, median (lowest to highest)':36}" + "".join(f"{f'{busy} busy':>36}" for busy in options.busy))
    for work in options.work:
        quiet = statistics.median(found[work, options.busy[0]])
        cells = [
            f"{statistics.median(s):.3g} ({min(s):.3g} to {max(s):.3g}) {statistics.median(s) / quiet:.2f}"
            for s in (found[work, busy] for busy in options.busy)
        ]
        print(f"{work:36}" + "".join(f"{cell:>36}" for cell in cells))


if __name__ == "__main__":
    main()
