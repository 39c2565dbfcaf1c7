"""Folders of Transformers: written by the class that computes the same, with tokenizer and model card."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2lab.data import END_OF_TEXT, Tokenizer
from gpt2lab.interchange.agreement import Agreement, compared
from gpt2lab.interchange.families import stock
from gpt2lab.interchange.settings import missing
from gpt2lab.interchange.sources import OURS
from gpt2lab.interchange.weights import spelled_out, theirs_from
from gpt2lab.model import GPT2
from gpt2lab.model.saving import CONFIG, TOKENIZER, WEIGHTS, save_tensors


def write(model: GPT2, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write a folder of Transformers; returns the name of its class.

    Args:
        model: what is written, in the precision that it has.
        tokenizer: comes along. ``<|endoftext|>`` gets an id if the model has none for it, and is never written then.
        folder: is there.

    Raises:
        InputError: no class of Transformers computes what this model does.
    """
    config = model.config
    family, wide = stock(replace(config, vocab_size=tokenizer.vocab_size if tokenizer else config.vocab_size))
    save_tensors(theirs_from(family, wide, spelled_out(config, model.weights(), wide)), folder / WEIGHTS)
    describe(model, tokenizer, folder, family.of(wide).described())
    return family.architecture


def describe(model: GPT2, tokenizer: Tokenizer | None, folder: Path, settings: Mapping[str, Any]) -> None:
    """Write everything but the weights: settings, with our own beside them, and the tokenizer."""
    config = model.config
    end = None if tokenizer is None else tokenizer.end_of_text
    ids: dict[str, Any] = {"bos_token_id": end, "eos_token_id": end}
    kept = {"dtype": str(model.dtype).removeprefix("torch."), OURS: config.to_dict()}
    write_json(folder / CONFIG, {**settings, **ids, **kept})
    if end is not None and end >= config.vocab_size:
        ids["suppress_tokens"] = [end]
    write_json(folder / "generation_config.json", ids)
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER)
        special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        reads = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_json(folder / "tokenizer_config.json", special | reads | {"model_max_length": config.max_seq_len})
        write_json(folder / "special_tokens_map.json", special)


def write_json(path: Path, values: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check(model: GPT2, folder: Path) -> Agreement:
    """Read a folder with Transformers, and compare it with the model that it was written from.

    Raises:
        InputError: Transformers is missing, or computes something else.
    """
    try:
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging
    except ImportError:
        raise missing("hf") from None
    with_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    if with_bar:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    theirs.eval()
    V = model.config.vocab_size
    suppressed = theirs.generation_config.suppress_tokens
    theirs.config.eos_token_id = None  # which would end the text
    theirs.generation_config = GenerationConfig(do_sample=False, suppress_tokens=suppressed)  # type: ignore[no-untyped-call]

    def greedy(prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        written = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens)
        return [int(id_) for id_ in written[0, len(prompt) :]]

    def log_probabilities(ids: Tensor) -> Tensor:
        logits: Tensor = theirs(ids).logits[0, :, :V]
        return logits.log_softmax(-1)

    name = f"transformers {importlib.metadata.version('transformers')}, {type(theirs).__name__}"
    return compared(model, name, greedy, log_probabilities)
