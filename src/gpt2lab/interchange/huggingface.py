"""Folders of Transformers: written by the class that computes the same, with tokenizer and model card."""

import importlib.metadata
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2lab.data import END_OF_TEXT, Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.interchange.agreement import Agreement, compared
from gpt2lab.interchange.families import stock
from gpt2lab.interchange.sources import OURS
from gpt2lab.interchange.weights import spelled_out, theirs_from
from gpt2lab.model import GPT2
from gpt2lab.model.saving import CONFIG, TOKENIZER, WEIGHTS, save_tensors


def write(model: GPT2, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write a folder of Transformers; returns the name of its class.

    Args:
        model: what is written, in the precision that it has.
        tokenizer: comes along. ``<|endoftext|>`` gets an id if the model has none for it, and is never written then.
        folder: is there, and empty.

    Raises:
        InputError: no class of Transformers computes what this model does.
    """
    config = model.config
    vocab_size = config.vocab_size if tokenizer is None else tokenizer.vocab_size
    family, wide = stock(replace(config, vocab_size=vocab_size))
    weights = theirs_from(family, wide, spelled_out(config, model.weights(), wide))
    save_tensors(weights, folder / WEIGHTS)
    end = {} if tokenizer is None else {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    ids: dict[str, Any] = end or {"bos_token_id": None, "eos_token_id": None}
    about = {"architectures": [family.architecture], "model_type": family.model_type, **asdict(family.of(wide)), **ids}
    about |= {"dtype": str(model.dtype).removeprefix("torch."), OURS: config.to_dict()}
    write_json(folder / CONFIG, about)
    suppressed = {"suppress_tokens": [*range(config.vocab_size, vocab_size)]} if vocab_size > config.vocab_size else {}
    write_json(folder / "generation_config.json", ids | suppressed)
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER)
        special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        about_tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_seq_len}
        write_json(
            folder / "tokenizer_config.json", special | about_tokenizer | {"clean_up_tokenization_spaces": False}
        )
        write_json(folder / "special_tokens_map.json", special)
    return family.architecture


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
    except ImportError:
        raise InputError("--format hf needs a package that is not installed; run: pip install 'gpt2lab[hf]'") from None
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
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
