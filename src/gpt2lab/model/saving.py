"""The files of a model: ``config.json``, ``model.safetensors`` and, for a user's mechanism, ``attention.py``.

What stands here knows configurations and tensors, not models: :meth:`gpt2lab.GPT2.save` and ``load`` put them together.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write

CONFIG, WEIGHTS, SOURCE, TOKENIZER = "config.json", "model.safetensors", "attention.py", "tokenizer.json"


class SavesItself(Protocol):
    """A tokenizer, as far as a model knows it."""

    def save(self, path: str | Path) -> None:
        """Write one file."""


def save_description(folder: Path, config: GPT2Config, source: str | None = None) -> None:
    """Write everything but the weights.

    Args:
        folder: is made if it is not there.
        config: sizes and switches.
        source: text of the user's mechanism, if the model has one. It is kept for people; nothing ever runs it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / CONFIG) as file:
        file.write((json.dumps(config.to_dict(), indent=2) + "\n").encode())
    if source is not None:
        with atomic_write(folder / SOURCE) as file:
            file.write(source.encode())


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights, by name."""
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    with atomic_write(folder / WEIGHTS) as file:
        safetensors.torch.save_file(whole, file.name, metadata={"format": "pt"})


def read_config(folder: Path) -> GPT2Config:
    """The configuration in a folder that :meth:`gpt2lab.GPT2.save` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / CONFIG
    try:
        return GPT2Config.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        hint = "; it is the folder of a run, which gpt2lab.load reads" if (folder / "checkpoints").is_dir() else ""
        raise InputError(f"{folder} holds no model: {CONFIG} is missing{hint}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder that :meth:`gpt2lab.GPT2.save` wrote, by name, in the precision in which they were saved.

    Each is a copy in memory of its own. The reader's tensors are views of the file, which would change with it, and
    they lie at any address: vector instructions add up the numbers of an unaligned row in another order, so that a
    model of such weights would compute other last bits than the one that was saved.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{folder} holds no model: {WEIGHTS} is missing")
    try:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or cut short: {error}") from None
