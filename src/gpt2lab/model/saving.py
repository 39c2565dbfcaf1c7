"""The files of a model: ``config.json``, ``model.safetensors`` and, for a user's mechanism, ``attention.py``.

What stands here knows configurations and tensors, not models: :meth:`gpt2lab.GPT2.save` and ``load`` put them together.
"""

import json
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.manifests import MANIFEST, verify_files
from gpt2lab.reading import read_json, regular_file

CONFIG, WEIGHTS, SOURCE, TOKENIZER = "config.json", "model.safetensors", "attention.py", "tokenizer.json"


class SavesItself(Protocol):
    """A tokenizer, as far as a model knows it."""

    def save(self, path: str | Path) -> None:
        """Write one file."""


def description(config: GPT2Config, source: str | None = None) -> dict[str, bytes]:
    """The files of a model but the weights, by name.

    Args:
        config: sizes and switches.
        source: text of the user's mechanism, if the model has one. It is kept for people; nothing ever runs it.
    """
    files = {CONFIG: (json.dumps(config.to_dict(), indent=2) + "\n").encode()}
    return files if source is None else {**files, SOURCE: source.encode()}


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors, by name, as a safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path.touch()
    rights = stat.S_IMODE(path.stat().st_mode)
    try:
        safetensors.torch.save_file(whole, path, metadata={"format": "pt"})
        path.chmod(rights)  # those of the umask; the library leaves the file to its owner alone
    except SafetensorError as error:  # which is how a full disk is told there
        raise OSError(str(error)) from None


def read_config(folder: Path) -> GPT2Config:
    """The configuration in a folder that :meth:`gpt2lab.GPT2.save` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / CONFIG
    if not path.exists():
        hint = "; it is the folder of a run, which gpt2lab.load reads" if (folder / "checkpoints").is_dir() else ""
        raise InputError(f"{folder} holds no model: {CONFIG} is missing{hint}")
    values = read_json(dict[str, object], path)
    try:
        return GPT2Config.from_dict(values)
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
    if not path.exists():
        raise InputError(f"{folder} holds no model: {WEIGHTS} is missing")
    regular_file(path)
    if not verify_files(folder, (CONFIG, WEIGHTS)):
        warnings.warn(
            f"{folder} has no {MANIFEST}, so that damage to its files would not be noticed; an older gpt2lab saved it "
            "(model.save writes one)",
            stacklevel=3,
        )
    try:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or cut short: {error}") from None
