"""Where models of other programs are found, and how they are read: Transformers' folders, the hub, nanoGPT, minGPT.

Nothing of a source is executed. Weights are read from safetensors, or from a file of torch's by
``torch.load(weights_only=True)``, which builds tensors and plain values and nothing else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt2lab.config import Activation, GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.interchange.families import ACTIVATIONS, EXPAND, FAMILIES, Family, NanoGPTFamily
from gpt2lab.interchange.settings import SourceSettings
from gpt2lab.model.saving import CONFIG, TOKENIZER, WEIGHTS
from gpt2lab.reading import read_json, regular_file, shortly, typed

# The files of a model on the hub that are fetched, and those of torch's that are read.
WANTED = ("config.json", "*.safetensors", "*.safetensors.index.json", TOKENIZER, "vocab.json", "merges.txt")
OF_TORCH = (".pt", ".pth", ".bin", ".ckpt")
INDEX = "model.safetensors.index.json"
OURS = "gpt2lab"  # where a config.json that we wrote for others keeps our own


@dataclass(frozen=True)
class Source:
    """A model of another program, as it was found.

    Attributes:
        name: how the user called it.
        place: its folder or file.
        family: its class, with its settings.
        tensors: its weights, by its own names.
        ours: the configuration that it was exported from, if gpt2lab wrote it.
        notes: what the user should know.
    """

    name: str
    place: Path
    family: Family
    tensors: dict[str, Tensor]
    ours: GPT2Config | None = None
    notes: tuple[str, ...] = ()


def read_source(name_or_dir: str | Path, asked: SourceSettings | None = None) -> Source:
    """Find a model of another program, and read its settings and its tensors.

    Raises:
        InputError: there is none, it is damaged, or of another kind.
    """
    asked = asked or SourceSettings()
    place = _find(name_or_dir)
    name = str(name_or_dir)
    if place.is_dir() and (place / CONFIG).exists():
        values = read_json(dict[str, object], place / CONFIG)
        if "model_type" in values or "architectures" in values:
            return _of_transformers(name, place, values, asked)
        if "embed_dim" in values:
            raise InputError(f"{name} is a model of gpt2lab; gpt2lab.load and every command read it as it is")
    elif place.is_dir() and (place / "checkpoints").is_dir():
        raise InputError(f"{name} is a run of gpt2lab; gpt2lab.load and every command read it as it is")
    return _of_nanogpt(name, place, asked)


def _find(name_or_dir: str | Path) -> Path:
    """Where a model is: on this machine, or brought from the hub."""
    place = Path(name_or_dir).expanduser()
    if place.exists():
        return place
    name = str(name_or_dir)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.endswith((*OF_TORCH, ".safetensors")):
        raise InputError(f"there is no {name}; give a folder, a file of weights, or a name on the hub such as gpt2")
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*WANTED]))
    except (RepositoryNotFoundError, HFValidationError):
        why = "the hub has no model of that name that you may read"
    except LocalEntryNotFoundError:
        why = "the Hugging Face hub cannot be reached, and the model was not downloaded before"
    except (HfHubHTTPError, OSError) as error:
        why = f"it cannot be fetched from the hub ({shortly(str(error).splitlines()[0])})"
    raise InputError(f"there is no folder {name} here, and {why}; give the path of a folder")


def _of_transformers(name: str, place: Path, values: Mapping[str, object], asked: SourceSettings) -> Source:
    kind = values.get("model_type")
    if kind not in FAMILIES:
        raise InputError(f"{name} is a model of the kind {shortly(kind)}; gpt2lab reads {', '.join(FAMILIES)}")
    for strange in ("quantization_config", "auto_map"):
        if strange in values:
            raise InputError(f"{name} has a {strange} in its config.json, which gpt2lab cannot follow")
    for option in fields(SourceSettings):
        if getattr(asked, option.name) is not None:
            raise InputError(
                f"{name} says itself what its {option.name} is; leave out --{option.name.replace('_', '-')}"
            )
    family = typed(FAMILIES[str(kind)], values, str(place / CONFIG))
    tensors = _named(_read_tensors(place), family)
    head, embedding = "lm_head.weight", family.names["embeddings.token"][0] + ".weight"
    if family.tie_word_embeddings and head in tensors:
        if embedding not in tensors or not torch.equal(tensors[head], tensors[embedding]):
            raise InputError(
                f"{name} has a {head} that differs from {embedding}, and its config.json says they are one"
            )
        del tensors[head]
    (residual, dropout), *others = family.dropouts.items()
    notes = []
    if left := [f"{other} {share:g}" for other, share in others if share != (0 if "att" in other else dropout)]:
        notes.append(
            f"{name}: dropout is its {residual}, {dropout:g}; there is no place for {' and '.join(left)}, which acts "
            "in training only"
        )
    written = values.get(OURS)
    ours = GPT2Config.from_dict(written) if isinstance(written, dict) else None
    return Source(name, place, family, tensors, ours, tuple(notes))


def _of_nanogpt(name: str, place: Path, asked: SourceSettings) -> Source:
    """A file of weights, alone or in a folder. Sizes are read off them, but for the number of heads."""
    if place.is_dir():
        files = sorted(path for path in place.iterdir() if path.suffix in (".safetensors", *OF_TORCH))
        if not files:
            raise InputError(f"{name} holds no model: there is neither a {CONFIG} with weights nor a file of weights")
        if len(files) > 1:
            raise InputError(f"{name} holds several files of weights; give one: {', '.join(map(str, files[:5]))}")
        (place,) = files
    tensors, said = _read_file(place)
    family = NanoGPTFamily()
    tensors = _named(tensors, family)
    beside = place.parent / CONFIG
    if beside.exists():
        values = read_json(dict[str, object], beside)
        model = values.get("model")
        said = {**(model if isinstance(model, dict) else values), **said}
    names = [family.names[module][0].format(0) for module in ("embeddings.token", "embeddings.position", EXPAND)]
    sizes = [tensors[f"{one}.weight"].shape for one in names if f"{one}.weight" in tensors]
    if len(sizes) < 3 or any(len(shape) != 2 for shape in sizes):
        raise InputError(f"{name} holds no GPT-2: its weights lack {', '.join(f'{one}.weight' for one in names)}")
    (vocab_size, embed_dim), (context, _), (hidden, _) = sizes
    heads = asked.num_heads or said.get("n_head")
    if type(heads) is not int:
        raise InputError(f"{name} does not say how many heads the model has; add --num-heads (in GPT-2: width / 64)")
    head, embedding = tensors.get("lm_head.weight"), tensors[f"{names[0]}.weight"]
    tied = head is None or torch.equal(head, embedding)
    if tied:
        tensors.pop("lm_head.weight", None)
    activation: Activation = asked.activation or ("gelu" if tied or "block_size" in said else "gelu_tanh")
    dropout = said.get("dropout", 0.0)
    notes = [
        f"{name} is read as a model of {'nanoGPT' if activation == 'gelu' else 'minGPT'}, with the activation "
        f"{activation}; --activation says otherwise"
    ]
    described = replace(
        family,
        vocab_size=vocab_size,
        tie_word_embeddings=tied,
        n_positions=context,
        n_embd=embed_dim,
        n_layer=len({n.split(".")[2] for n in tensors if n.startswith("transformer.h.")}),
        n_head=heads,
        n_inner=hidden,
        activation_function=ACTIVATIONS[activation][0],
        resid_pdrop=dropout if isinstance(dropout, float) else 0.0,
    )
    if tensors[f"{names[2]}.weight"].shape[1] != embed_dim:  # Transformers' own, without its config.json
        raise InputError(
            f"{name} holds matrices as Transformers has them; give the folder with its config.json, not weights alone"
        )
    return Source(name, place, described, tensors, notes=() if asked.activation else tuple(notes))


def _named(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Tensors under the full names of a class, without what compiling and wrapping put in front of them, and without
    the masks that older ones keep beside their weights."""
    found = {}
    for written, tensor in tensors.items():
        name = re.sub(r"^((_orig_mod|module)\.)*", "", written)
        if not re.search(r"\.attn\.(bias|masked_bias)$", name):
            found[name if name.startswith((family.prefix, "lm_head.")) else family.prefix + name] = tensor
    return found


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder of Transformers, from one file or several."""
    if (folder / WEIGHTS).exists():
        return _read_file(folder / WEIGHTS)[0]
    if (folder / INDEX).exists():
        index = read_json(dict[str, object], folder / INDEX)
        files = sorted(set(typed(dict[str, str], index.get("weight_map"), str(folder / INDEX)).values()))
        if strange := [file for file in files if Path(file).name != file]:
            raise InputError(f"{folder / INDEX} is damaged: {strange[0]!r} is no name of a file")
        return {name: tensor for file in files for name, tensor in _read_file(folder / file)[0].items()}
    if (folder / "pytorch_model.bin").exists():
        return _read_file(folder / "pytorch_model.bin")[0]
    raise InputError(f"{folder} has a {CONFIG}, but no weights: {WEIGHTS} is missing")


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a file by name, and what it says of the model beside them."""
    regular_file(path)
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, "pt") as file:
                said = {name: _plain(value) for name, value in (file.metadata() or {}).items()}
            return safetensors.torch.load_file(path), said
        except (safetensors.SafetensorError, ValueError) as error:
            raise InputError(f"{path} is damaged or cut short: {error}") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nothing more specific for what is damaged or no file of its own
        told = str(error)
        if "weights_only" in told or "Unsupported" in told:
            raise InputError(
                f"{path} holds more than tensors and plain values, and reading that could run any program; it was not "
                "read. Save model.state_dict() alone, or use safetensors"
            ) from None
        raise InputError(f"{path} is damaged, or no file of torch's: {' '.join(told.split())[:200]}") from None
    said = {}
    if isinstance(found, dict) and isinstance(found.get("model_args"), dict):
        said = found["model_args"]
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) and isinstance(n, str) for n, t in found.items()):
        raise InputError(f"{path} holds no weights by name (a state_dict)")
    return found, said


def _plain(value: str) -> int | str:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else value
