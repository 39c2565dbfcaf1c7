"""Trainings in many ways, one after the other, for test_pairwise.py: ``torchrun … pairwise.py FOLDER``.

Reads the ways to train from ``FOLDER/ways.json``. Trains each for two steps, with a checkpoint, and leaves in
``FOLDER/found.json`` for each the losses, or the sentence that refused it.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from gpt2lab.data import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.model import GPT2
from gpt2lab.runs.records import Record
from gpt2lab.training import Trainer, TrainerConfig
from gpt2lab.training.processes import joined_processes, rank
from tests.training import mechanisms


def losses(out: Path, mechanism: str | None, sharing: str, accumulation_steps: int, **options: Any) -> list[float]:
    data = TokenDataset(np.arange(500, dtype=np.uint16) ** 2 % 11, 8, 11)
    attention = getattr(mechanisms, mechanism) if mechanism is not None else None
    model = GPT2(11, 8, 16, 2, 32, 2, seed=0, position="none" if attention else "rope", attention=attention)
    config = TrainerConfig(
        max_steps=2,
        eval_every=1,  # so that there is a record of each step
        batch_size=8 // accumulation_steps,
        accumulation_steps=accumulation_steps,
        parallel=sharing.split("+", maxsplit=1)[0],  # type: ignore[arg-type]
        cpu_offload="+" in sharing,
        device="cpu",
        out=out,
        **options,
    )
    records: list[Record] = []
    Trainer(model, data, data, config, sinks=[records.append], console=Console(file=io.StringIO())).train()
    return [*(record["loss"] for record in records), records[-1]["validation_loss"]]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: list[list[float] | str] = []
    for number, way in enumerate(json.loads((folder / "ways.json").read_text(encoding="utf-8"))):
        try:
            found.append(losses(folder / f"run-{number}", **way))
        except InputError as error:
            found.append(str(error))
        torch.compiler.reset()
    if rank() == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    with joined_processes("cpu", 600):
        main(Path(sys.argv[1]))
