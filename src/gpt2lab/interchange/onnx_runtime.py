"""Models of ONNX Runtime: one file that reads tokens and what is remembered of earlier ones, and gives logits.

Every switch can be written so, and a mechanism of the user's that torch can trace. Inputs and outputs have the names
that Optimum and transformers.js use: ``input_ids`` and ``attention_mask`` (1 for what counts, with the past in front),
``past_key_values.N.key`` and ``.value`` (B, K, P, D); ``logits``, ``present.N.key`` and ``.value`` (B, K, P + T, D). A
window hides keys but does not shorten the past.
"""

import importlib.metadata
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2lab.data import Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.interchange.agreement import Agreement, compared
from gpt2lab.interchange.families import stock
from gpt2lab.interchange.huggingface import describe
from gpt2lab.interchange.settings import missing
from gpt2lab.model import GPT2
from gpt2lab.model.cache import Chunk

MODEL = "model.onnx"
LARGEST = 1_500_000_000  # bytes of weights that go into the file itself, which can have 2 GB


class _Layer:
    """A layer's past, in place of its ring: everything, in order."""

    ring = 0

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    def extend(self, k: Tensor, v: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Add the new keys and values behind the others."""
        self.k, self.v = torch.cat((self.k, k), dim=2), torch.cat((self.v, v), dim=2)
        return self.k, self.v


class _Past:
    """A whole model's past, in place of a KeyValueCache."""

    def __init__(self, mask: Tensor, tensors: list[Tensor]) -> None:
        self.layers = [_Layer(k, v) for k, v in zip(tensors[::2], tensors[1::2], strict=True)]
        self.positions = torch.where(mask > 0, mask.cumsum(1) - 1, -1)  # (B, P + T)

    def begin(self, ids: Tensor, positions: None) -> tuple[Tensor, dict[int, Chunk]]:
        """Positions of the new tokens, and how they meet the past."""
        q_pos = self.positions[:, -ids.shape[1] :]
        return q_pos, {0: Chunk("both", 0, (), q_pos, self.positions)}


class _Decoder(nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """Logits (B, T, V), then keys and values of every layer."""
        cache: Any = _Past(attention_mask, past)
        logits = self.model(input_ids, cache=cache)
        return (logits, *(tensor for layer in cache.layers for tensor in (layer.k, layer.v)))


def write(model: GPT2, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write ``model.onnx``, and beside it settings and tokenizer as Transformers has them; returns what it is.

    Raises:
        InputError: packages are missing, or torch cannot trace the model.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise missing("onnx") from None
    ids, mask = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    shapes = [shape for layer in model.cached for shape in (layer.keys, layer.values)]
    past = [torch.zeros(2, heads, 5, width, dtype=model.dtype) for heads, width in shapes]
    names = [f"{layer}.{part}" for layer in range(model.config.num_layers) for part in ("key", "value")]
    dynamic = ({0: "batch", 1: "tokens"}, {0: "batch", 1: "total"}, [{0: "batch", 2: "past"} for _ in past])
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                _Decoder(model),
                (ids, mask, past),
                folder / MODEL,
                input_names=["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in names)],
                output_names=["logits", *(f"present.{name}" for name in names)],
                dynamic_shapes=dynamic,
                dynamo=True,
                external_data=sum(tensor.nbytes for tensor in model.weights().values()) > LARGEST,
                verbose=False,
            )
    except Exception as error:  # of tracing, and of any kind
        if model.mechanism_class is None:
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"torch cannot trace {model.mechanism_class.__name__}: {first[:200]}") from None
    try:
        family, wide = stock(model.config)
        settings = family.of(wide).described()
    except InputError:
        settings = {"model_type": "gpt2lab"}
    describe(model, tokenizer, folder, settings)
    return MODEL


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of packages that it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def check(model: GPT2, folder: Path) -> Agreement:
    """Read a file with ONNX Runtime, and compare it with the model that it was written from.

    Raises:
        InputError: the package onnxruntime is missing, or it computes something else.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing("onnx") from None
    session = onnxruntime.InferenceSession(folder / MODEL, providers=["CPUExecutionProvider"])
    shapes = {i.name: i.shape for i in session.get_inputs()}
    past_names = [name for name in shapes if name.startswith("past")]

    def read(ids: Tensor, past: list[Any]) -> tuple[Tensor, list[Any]]:
        total = ids.shape[1] + past[0].shape[2]
        inputs = {"input_ids": ids.numpy(), "attention_mask": torch.ones(1, total, dtype=torch.int64).numpy()}
        logits, *present = session.run(None, inputs | dict(zip(past_names, past, strict=True)))
        return torch.from_numpy(logits), present

    layers = [shape for layer in model.cached for shape in (layer.keys, layer.values)]
    empty = [torch.zeros(1, heads, 0, width, dtype=model.dtype).numpy() for heads, width in layers]

    def greedy(prompt: list[int], tokens: int) -> list[int]:
        ids, past, written = torch.tensor([prompt]), empty, []
        for _ in range(tokens):
            logits, past = read(ids, past)
            written.append(int(logits[0, -1].argmax()))
            ids = torch.tensor([written[-1:]])
        return written

    def log_probabilities(ids: Tensor) -> Tensor:
        return read(ids, empty)[0][0].log_softmax(-1)

    name = f"ONNX Runtime {importlib.metadata.version('onnxruntime')}"
    return compared(model, name, greedy, log_probabilities)
