"""``gpt2lab export``: a model for other engines, checked with the engine that reads it."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2lab.data import Tokenizer, load_tokenizer
from gpt2lab.errors import InputError
from gpt2lab.files import new_file, new_folder
from gpt2lab.interchange import card, html_page, huggingface, llama_cpp, onnx_runtime
from gpt2lab.interchange.agreement import Agreement
from gpt2lab.interchange.settings import ExportSettings, Format, Stored
from gpt2lab.model import GPT2
from gpt2lab.model.saving import TOKENIZER
from gpt2lab.options import given_options
from gpt2lab.runs.folder import WEIGHTS, find_checkpoint
from gpt2lab.runs.mechanisms import load_attention
from gpt2lab.runs.settings import Which

LARGE_PAGE = 1_500_000  # bytes of an HTML file, above which its size is told beforehand


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the folder or file.
        kind: the class or architecture that computes the model there.
        agreement: how closely the engine that reads it computes the same.
    """

    path: Path
    kind: str
    agreement: Agreement

    def __str__(self) -> str:
        found = self.agreement
        return (
            f"{self.path}: {self.kind}\n{found.engine} has read it: its log-probabilities differ by at most "
            f"{found.difference:.1g} nats, and {found.tokens} tokens of its greedy text are ours"
        )


def export(
    run_or_model: str | Path | GPT2,
    format: Format,
    out: str | Path,
    *,
    dtype: Stored | None = None,
    cap_context: bool = False,
    checkpoint: Which = "best",
    attention: str | type | None = None,
    tokenizer: Tokenizer | None = None,
    force: bool = False,
) -> Exported:
    """Write a model for another engine, read it with that engine, and compare; only then is it there.

    Args:
        run_or_model: run folder, a folder of ``model.save``, or a model.
        format: "hf" (Transformers), "gguf" (llama.cpp), "onnx" (ONNX Runtime) or "html" (one file for a browser).
        out: folder or file.
        dtype: how "gguf" stores the matrices: "f32", "f16" or "q8_0".
        cap_context: write "gguf" of a model with a window, with a context of one window.
        checkpoint: the best of a run, by validation loss, or the last.
        attention: your own mechanism, for a run that was trained with it.
        tokenizer: of a model that is given as such; a folder has its own.
        force: write over what is there.

    Raises:
        InputError: no such run; the engine cannot express the model, is not installed, or computes something else; or
            there is something already. Then nothing was written.

    Examples:
        >>> gpt2lab.export("runs/novel", "hf", "novel-hf")  # doctest: +SKIP
    """
    given = {"format": format, "dtype": dtype, "cap_context": cap_context, "checkpoint": checkpoint, "force": force}
    asked = ExportSettings(**given_options((ExportSettings,), given), attention=attention)
    if asked.dtype is not None and asked.format != "gguf":
        raise InputError(f"--dtype is an option of --format gguf; {asked.format} has the precision of the model")
    if asked.cap_context and asked.format != "gguf":
        raise InputError("--cap-context is an option of --format gguf; the other formats know windows")
    out, run = Path(out), None
    if isinstance(run_or_model, GPT2):
        model = run_or_model
        if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.float64):
            model = copy.deepcopy(model).cpu().float()
    else:
        run = Path(run_or_model)
        own = find_checkpoint(run, asked.checkpoint, WEIGHTS)
        model = GPT2.load(own, attention=load_attention(asked.attention))
        tokenizer = load_tokenizer(run / TOKENIZER) if (run / TOKENIZER).exists() else None
    if tokenizer is not None and not tokenizer.fits(V := model.config.vocab_size):
        raise InputError(f"the tokenizer has {tokenizer.vocab_size:,} ids, and the model {V:,}; give the right one")
    with model.evaluating():
        match asked.format:
            case "hf":
                with new_folder(out, force) as folder:
                    kind = huggingface.write(model, tokenizer, folder)
                    agreement = huggingface.check(model, folder)
                    found = None if run is None else card.measured(run, asked.checkpoint, asked.attention)
                    (folder / "README.md").write_text(card.model_card(model, kind, found), encoding="utf-8")
            case "onnx":
                with new_folder(out, force) as folder:
                    kind = onnx_runtime.write(model, tokenizer, folder)
                    agreement = onnx_runtime.check(model, folder)
            case "html" | "gguf" if tokenizer is None:
                raise InputError(f"a file of {asked.format} holds its tokenizer, and this model has none beside it")
            case "html":
                with new_file(out, force) as path:
                    kind, agreement = "one HTML file", _write_page(model, tokenizer, run, asked, path)
            case "gguf":
                model = llama_cpp.without_window(model, asked.cap_context)
                with new_file(out, force) as path:
                    kind = llama_cpp.write(model, tokenizer, path, asked.dtype or "f32")
                    agreement = llama_cpp.check(model, tokenizer, path, asked.dtype or "f32")
    return Exported(out, kind, agreement)


def _write_page(model: GPT2, tokenizer: Tokenizer, run: Path | None, asked: ExportSettings, path: Path) -> Agreement:
    """Write a model as one HTML file, with what rounding its weights costs, and compare the engine inside."""
    weights = html_page.packed(model)
    if (size := 4 * len(weights) // 3) > LARGE_PAGE:
        warnings.warn(f"the file will have about {size / 1e6:.0f} MB", stacklevel=3)
    agreement = html_page.check(model, weights)
    found = None if run is None else card.measured(run, asked.checkpoint, asked.attention, "int8")
    html_page.write(model, tokenizer, weights, path, "GPT-2" if run is None else run.resolve().name, found)
    return agreement
