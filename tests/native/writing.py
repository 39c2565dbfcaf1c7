"""A small text, written with the step that is named; notes go to stderr."""

import sys
import warnings
from typing import Any

import torch

import gpt2lab


def note(message: Warning | str, *_: Any) -> None:
    print("note:", message, file=sys.stderr)


warnings.showwarning = note
model = gpt2lab.GPT2(11, 12, 16, 4, 20, 2, position="rope", window=4, seed=0)
print(gpt2lab.generate(model, torch.tensor([[1, 2]]), 30, step=sys.argv[1]).tolist())
