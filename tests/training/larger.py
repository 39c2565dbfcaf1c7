"""A model under FSDP never lies whole in one process, for test_distributed.py: ``torchrun … larger.py``.

Prints, as the first process, by how much its memory grew while model and trainer were made, as a share of the model.
"""

import io

import numpy as np
import torch
from rich.console import Console

from gpt2lab.data import TokenDataset
from gpt2lab.hardware import peak_memory
from gpt2lab.model import GPT2
from gpt2lab.training import Trainer, TrainerConfig
from gpt2lab.training.processes import joined_processes, rank

if __name__ == "__main__":
    with joined_processes("cpu", 600):
        data = TokenDataset(np.zeros(1000, np.uint16), 8, 64)
        quiet = Console(file=io.StringIO())
        options = {"max_steps": 1, "batch_size": 2, "parallel": "fsdp", "device": "cpu", "compile": "no"}

        def make(layers: int) -> Trainer:
            with torch.device("meta"):
                model = GPT2(64, 8, 512, 4, 2048, layers, seed=0)
            return Trainer(model, data, None, TrainerConfig(**options), console=quiet)  # type: ignore[arg-type]

        make(1)  # what libraries need is there now
        before = peak_memory(torch.device("cpu"))
        trainer = make(12)  # 38 million parameters
        grown = peak_memory(torch.device("cpu")) - before
        if rank() == 0:
            print(grown / (4 * trainer.model.num_parameters()))
