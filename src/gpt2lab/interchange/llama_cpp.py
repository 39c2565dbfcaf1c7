"""Files of llama.cpp (GGUF): weights, settings and tokenizer in one."""

import importlib.metadata
import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2lab.data.tokenizers import END_OF_TEXT, Tokenizer, byte_letters
from gpt2lab.errors import InputError
from gpt2lab.interchange.agreement import Agreement, compared
from gpt2lab.interchange.families import Family, GPT2Family, GPTBigCodeFamily, NanoGPTFamily, Starcoder2Family, stock
from gpt2lab.interchange.settings import Stored, missing
from gpt2lab.interchange.weights import model_of, spelled_out, theirs_from
from gpt2lab.model import GPT2

# llama.cpp's names of the classes. Its GPT-2 has matrices that lie as ours do.
ARCHITECTURES: dict[type[Family], tuple[str, type[Family]]] = {
    GPT2Family: ("gpt2", NanoGPTFamily),
    GPTBigCodeFamily: ("starcoder", GPTBigCodeFamily),
    Starcoder2Family: ("starcoder2", Starcoder2Family),
}
# Its GELU reads a table of half precision, and its matrices have 8 or 16 bits if that is asked for.
TOLD = 100  # log-probabilities that it is asked for at every place
TOLERANCE: dict[Stored, float] = {"f32": 0.02, "f16": 0.05, "q8_0": 0.5}


def write(model: GPT2, tokenizer: Tokenizer, path: Path, dtype: Stored) -> str:
    """Write a file of llama.cpp; returns the name of its architecture.

    Args:
        model: what is written; it has no window.
        tokenizer: comes along.
        path: of the file.
        dtype: of the matrices. (Where 8 bits do not go into the width, which has to be a multiple of 32, it is f16.)

    Raises:
        InputError: llama.cpp does not compute what this model does, or the package gguf is missing.
    """
    try:
        import gguf
    except ImportError:
        raise missing("gguf") from None
    config = model.config
    if config.activation != "gelu_tanh":
        raise InputError(f"llama.cpp has no {config.activation} in these classes, only gelu_tanh; --format hf has it")
    family, wide = stock(replace(config, vocab_size=tokenizer.vocab_size))
    name, family = ARCHITECTURES[family]
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(wide.max_seq_len)
    writer.add_embedding_length(wide.embed_dim)
    writer.add_feed_forward_length(wide.ff_hidden_dim)
    writer.add_block_count(wide.num_layers)
    writer.add_head_count(wide.num_heads)
    writer.add_head_count_kv(wide.kv_heads)
    writer.add_layer_norm_eps(wide.layer_norm_epsilon)
    if wide.rotates:
        writer.add_rope_freq_base(wide.rope_theta)
        writer.add_rope_dimension_count(wide.head_dim)
    _add_vocabulary(writer, tokenizer)
    (kind,) = (kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = gguf.get_tensor_name_map(kind, wide.num_layers)
    stored = gguf.GGMLQuantizationType
    for theirs, tensor in theirs_from(family, wide, spelled_out(config, model.weights(), wide)).items():
        matrix = tensor.dim() == 2 and not theirs.endswith("wpe.weight")
        as_ = stored[dtype.upper()] if matrix else stored.F32
        if as_ == stored.Q8_0 and tensor.shape[1] % gguf.GGML_QUANT_SIZES[as_][0]:
            as_ = stored.F16
        values = gguf.quants.quantize(tensor.float().numpy(), as_)
        writer.add_tensor(str(names.get_name(theirs, (".weight", ".bias"))), values, raw_dtype=as_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return f"{name}, {dtype}"


def without_window(model: GPT2, cap_context: bool) -> GPT2:
    """The model as llama.cpp can have it, which ignores windows: with a context in which there is none.

    Raises:
        InputError: windows are shorter than the context, and nobody wants it capped.
    """
    c = model.config
    windows = [window for layer in range(c.num_layers) if (window := c.layer_window(layer)) is not None]
    least = min([*windows, c.max_seq_len])
    if least < c.max_seq_len and not cap_context:
        raise InputError(
            f"llama.cpp ignores windows in these classes ({least} tokens here), and would compute something else; "
            f"--cap-context writes the model with a context of {least}, in which every token sees all, and --format hf "
            "or onnx writes it as it is"
        )
    capped = replace(c, window=None, max_seq_len=least)
    return model if capped == c else model_of(capped, spelled_out(c, model.weights(), capped))


def _add_vocabulary(writer: Any, tokenizer: Tokenizer) -> None:
    """Add the tokens as byte-level BPE has them. A character of several bytes is merged from them, two at a time."""
    import gguf

    texts = [byte_letters(spelled) for spelled in tokenizer.token_bytes]
    of_characters = [f"{text[:n]} {text[n]}" for text in texts for n in range(1, len(text))]
    kinds = [gguf.TokenType.NORMAL if text else gguf.TokenType.CONTROL for text in texts]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    names = {id_: f"<|unused {id_}|>" for id_, text in enumerate(texts) if not text}
    names[tokenizer.end_of_text] = END_OF_TEXT
    writer.add_token_list([names.get(id_, text) for id_, text in enumerate(texts)])
    writer.add_token_types(kinds)
    writer.add_token_merges(tokenizer.merges() or of_characters or ["Ā Ā"])  # there has to be one
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(False)


def check(model: GPT2, tokenizer: Tokenizer, path: Path, dtype: Stored) -> Agreement:
    """Read a file with llama.cpp, and compare it with the model that it was written from.

    Raises:
        InputError: the package xllamacpp is missing, or llama.cpp computes something else.
    """
    try:
        import xllamacpp
    except ImportError:
        raise missing("gguf") from None
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.n_parallel, params.verbosity, params.cache_ram_mib = 1, -1, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    V = model.config.vocab_size
    # It tells nothing of a token that ends a text or is a part of a character, so it is made to take another one, which
    # does not change the log-probabilities that it tells.
    whole_text = next(id_ for id_, spelled in enumerate(tokenizer.token_bytes) if spelled.isascii() and spelled)

    def next_after(ids: list[int]) -> tuple[int, Tensor]:
        """The most probable next id, and log-probabilities (V,), NaN where they are not told."""
        asked = {"prompt": ids, "n_predict": 1, "n_probs": min(V + 1, TOLD), "logit_bias": [[whole_text, 1000.0]]}
        (told,) = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        found = torch.full((V,), torch.nan)
        for one in told["top_logprobs"]:
            if one["id"] < V:
                found[one["id"]] = one["logprob"]
        whole = not found.isnan().any()  # without an id that was added
        return told["top_logprobs"][0]["id"], found.log_softmax(-1) if whole else found

    def greedy(prompt: list[int], tokens: int) -> list[int]:
        ids = prompt.copy()
        for _ in range(tokens):
            ids.append(next_after(ids)[0])
        return ids[len(prompt) :]

    def log_probabilities(ids: Tensor) -> Tensor:
        text = ids[0].tolist()
        last = [torch.full((V,), torch.nan)]  # with a full context, there is no room for another token
        return torch.stack([next_after(text[:n])[1] for n in range(1, len(text))] + last)

    name = f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})"
    _check_vocabulary(tokenizer, server.listening_address, name)
    return compared(model, name, greedy, log_probabilities, TOLERANCE[dtype])


def _check_vocabulary(tokenizer: Tokenizer, address: str, name: str) -> None:
    """Compare what llama.cpp makes of a text and of ids with what the tokenizer does."""
    known = [spelled for spelled in tokenizer.token_bytes if spelled]
    drawn = torch.randint(len(known), (500,), generator=torch.Generator().manual_seed(0)).tolist()
    text = b"".join(known[id_] for id_ in drawn).decode(errors="ignore")
    ids = tokenizer.encode(text).tolist()

    def post(path: str, **values: object) -> dict[str, Any]:
        body = json.dumps(values).encode()
        request = urllib.request.Request(f"{address}/{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    if post("tokenize", content=text, parse_special=False)["tokens"] != ids:
        raise InputError(f"{name} makes other ids of a text than the tokenizer does")
    if post("detokenize", tokens=ids)["content"] != text:
        raise InputError(f"{name} makes another text of ids than the tokenizer does")
