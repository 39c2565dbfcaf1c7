"""Timing the finished arms of a comparison, in turn."""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from gpt2lab.comparison.cells import is_finished
from gpt2lab.comparison.folder import SPEED, read_speed
from gpt2lab.comparison.measure import measure_speed
from gpt2lab.comparison.results import Timing
from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write
from gpt2lab.generation.engine import common_step
from gpt2lab.hardware import describe_machine, torch_threads
from gpt2lab.model.attention import Mechanism
from gpt2lab.progress import Progress, plain_console
from gpt2lab.runs.folder import load, open_text
from gpt2lab.runs.settings import RunSettings
from gpt2lab.training import Trainer


def time_arms(
    out: Path, rounds: int, threads: int, own: Mapping[str, Mechanism], progress: Progress, again: bool = False
) -> None:
    """Time all arms of a comparison in turn, and write ``speed.json``.

    Args:
        out: its folder.
        rounds: how often each arm is timed.
        threads: CPU threads.
        own: the arms' own attention, by arm: a file that only a folder names is never executed.
        progress: hears of the rounds.
        again: also where the folder holds the times of a context already.

    Raises:
        InputError: an arm has an attention of its own that is not in ``own``, or another one.
    """
    known = read_speed(out)
    arms: dict[int, dict[str, Path]] = {}
    for cell in sorted(out.glob("context-*/*/seed-*")):
        if is_finished(cell):
            arms.setdefault(int(cell.parts[-3].removeprefix("context-")), {}).setdefault(cell.parts[-2], cell)
    for context, folders in arms.items():
        if not again and context in known and set(known[context].arms) == set(folders):
            continue
        load_before = os.getloadavg()[0]
        done, total = 0, (rounds + 1) * len(folders)

        def count(what: str = f"timing at a context of {context}", total: int = total) -> None:
            nonlocal done
            done += 1
            progress(what, done, total)

        with torch_threads(threads), warnings.catch_warnings(action="ignore"):  # that a context is full is timed
            trainers = _trainers(folders, own)
            step = common_step([trainer.model for trainer in trainers.values()])
            found = measure_speed(trainers, rounds, count, step)
        known[context] = Timing(f"{describe_machine()}; {step} step", threads, load_before, found)
        plain = {str(context): dataclasses.asdict(timing) for context, timing in known.items()}
        with atomic_write(out / SPEED) as file:
            file.write(json.dumps(plain, indent=1).encode())


def _trainers(arms: Mapping[str, Path], own: Mapping[str, Mechanism]) -> dict[str, Trainer]:
    """Trainers that go on with a cell of each arm of a context, whose text they share."""
    settings = {arm: RunSettings.read(cell / "config.yaml") for arm, cell in arms.items()}
    for arm, about in settings.items():
        if about.model.attention is not None and arm not in own:
            raise InputError(
                f"the arm {arm} has an attention of its own, which is never run from a folder; name it again: "
                f"--arm {arm}=file.py:ClassName"
            )
    loaded = {arm: load(cell, attention=own.get(arm), checkpoint="last") for arm, cell in arms.items()}
    first, (model, tokenizer) = next(iter(loaded.items()))
    dataset = open_text(settings[first].data, tokenizer).dataset("train", model.config.max_seq_len)
    training = {arm: dataclasses.replace(about.training, out=None) for arm, about in settings.items()}
    return {
        arm: Trainer(model, dataset, None, training[arm], console=plain_console(quiet=True))
        for arm, (model, _) in loaded.items()
    }
