"""Crash at every touch of the file system while a checkpoint is saved, and see what is left: ``crashing.py FOLDER``.

Each crash is a process of its own that ends on the spot, as after kill -9. It prints what went wrong, a line each,
and at last how many crashes there were. (A program, so that only single-threaded processes fork.)
"""

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from gpt2lab.model import GPT2
from gpt2lab.runs.folder import TrainingState, find_checkpoint, load
from gpt2lab.training.checkpoint import Snapshot, restore_training, save_checkpoint
from gpt2lab.training.optimizers import build_optimizers

TOUCHES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def crash_at(touch: int, run: Path) -> None:
    """End this process just before it touches the run folder for that many-th time."""
    touches = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touches
        if event in TOUCHES:  # names inside a folder that is being deleted come without it
            touches += isinstance(arguments[0], str | os.PathLike)
            if touches == touch:
                os._exit(9)

    sys.addaudithook(hook)


def main(folder: Path) -> None:
    model = GPT2(5, 4, 8, 2, 8, 1, seed=0)
    optimizers = build_optimizers(model, "muon", 1e-3, 0.1, (0.9, 0.95))
    model(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)).backward()
    for optimizer in optimizers:
        optimizer.step()
    state = TrainingState(step=2, tokens=8, seconds=1.0, validation_loss=1.0)
    before, snapshot = folder / "before", Snapshot.of(model, optimizers)
    save_checkpoint(before, model, snapshot, state, keep=1)  # the best
    save_checkpoint(before, model, snapshot, dataclasses.replace(state, step=4, validation_loss=2.0), keep=1)
    shutil.copy(folder / "tokenizer.json", before)
    touch, code = 0, 9
    while code == 9:
        touch += 1
        run = folder / f"run-{touch}"
        shutil.copytree(before, run)
        child = os.fork()
        if child == 0:
            crash_at(touch, run)
            save_checkpoint(run, model, snapshot, dataclasses.replace(state, step=6, validation_loss=1.5), keep=1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            last, best = find_checkpoint(run, "last"), find_checkpoint(run, "best")
            fresh = GPT2(5, 4, 8, 2, 8, 1)
            restored = restore_training(last, fresh, build_optimizers(fresh, "muon", 1e-3, 0.1, (0.9, 0.95)))
            load(run)
            load(run, checkpoint="last")
            if (restored.step, best.name) not in {(4, "step-00000002"), (6, "step-00000002")}:
                print(f"crash {touch}: last {last.name}, best {best.name}")
            save_checkpoint(run, model, snapshot, dataclasses.replace(state, step=8, validation_loss=3.0), keep=1)
            left = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
            if left != ["step-00000002", "step-00000008"]:
                print(f"crash {touch}: afterwards {left}")
        except Exception as error:
            print(f"crash {touch}: {type(error).__name__}: {error}")
    print(f"{touch - 1} crashes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
