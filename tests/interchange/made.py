"""Models of other programs, made at odd shapes with weights drawn at random."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    PreTrainedModel,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()

V, CONTEXT, C, H, F, LAYERS = 23, 13, 24, 4, 40, 2
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
NO_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}

Model = TypeVar("Model", bound=torch.nn.Module)


@torch.no_grad()
def drawn(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """The model with every weight drawn at random, LayerNorms around 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.to(dtype).named_parameters():
        norm = ("ln_" in name or "norm" in name) and name.endswith("weight")
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.15 + norm)
    return model.eval()


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    sizes = {"vocab_size": V, "n_positions": CONTEXT, "n_embd": C, "n_layer": LAYERS, "n_head": H, "n_inner": F}
    return GPT2LMHeadModel(GPT2Config(**(sizes | NO_DROPOUT | NO_IDS | changes)))


def bigcode(**changes: Any) -> GPTBigCodeForCausalLM:
    sizes = {"vocab_size": V, "n_positions": CONTEXT, "n_embd": C, "n_layer": LAYERS, "n_head": H, "n_inner": F}
    return GPTBigCodeForCausalLM(GPTBigCodeConfig(**(sizes | NO_DROPOUT | NO_IDS | changes)))


def starcoder2(**changes: Any) -> Starcoder2ForCausalLM:
    sizes = {"vocab_size": V, "max_position_embeddings": CONTEXT, "hidden_size": C, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": H, "num_key_value_heads": 2, "intermediate_size": F}
    return Starcoder2ForCausalLM(Starcoder2Config(**(sizes | NO_IDS | changes)))


def random_text(vocab_size: int = V, length: int = CONTEXT, rows: int = 2) -> Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(theirs: PreTrainedModel, ids: Tensor) -> Tensor:
    found: Tensor = theirs(ids).logits
    return found


def as_nanogpt(theirs: GPT2LMHeadModel, biases: bool = True) -> dict[str, Tensor]:
    """The same weights under nanoGPT's names, with its matrices, which are (out, in)."""
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    found = {n: t.T.contiguous() if n.endswith(matrices) else t.clone() for n, t in theirs.state_dict().items()}
    return {n: t for n, t in found.items() if biases or not n.endswith(".bias")}


def save_weights(tensors: dict[str, Tensor], path: Path, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    return path
