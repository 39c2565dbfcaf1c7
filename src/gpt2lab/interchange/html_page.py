"""A model as one HTML file, which writes without a network and without a server.

The page (``page/``) is the server's page, too, which has another engine behind it. In the file it runs ``engine.wasm``,
made of ``engine.c`` by ``page/build.sh``. Matrices are stored with 8 bits: the numbers that ``generate --weights int8``
computes with.
"""

import base64
import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2lab.config import GPT2Config, switches_on
from gpt2lab.data import Tokenizer
from gpt2lab.data.tokenizers import byte_letters
from gpt2lab.errors import InputError
from gpt2lab.evaluation.runs import RunEvaluation
from gpt2lab.generation.text import usual_prompt
from gpt2lab.generation.weights import rounded
from gpt2lab.interchange.agreement import Agreement, compared
from gpt2lab.interchange.settings import missing
from gpt2lab.model import GPT2
from gpt2lab.model.embeddings import rotary_tables

PAGE = Path(__file__).parent / "page"
ACTIVATIONS = ("gelu_tanh", "gelu", "relu")  # by the numbers that engine.c knows them by
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+\.js)";\n', re.MULTILINE)


def settings_of(model: GPT2) -> list[int]:
    """What ``begin`` of the engine asks for, in its order."""
    c = model.config
    sizes = [c.vocab_size, c.max_seq_len, c.embed_dim, c.num_heads, c.kv_heads, c.head_dim, c.ff_hidden_dim]
    kinds = [c.num_layers, ACTIVATIONS.index(c.activation), c.position == "learned", c.tie_embeddings, c.rotary_dim]
    kinds += [c.qk_norm, c.sinks]
    layers = []
    for layer, slots in enumerate(_slots(c)):
        layers += [slots, c.layer_position(layer) == "rope"]
    return [int(value) for value in (*sizes, *kinds, *layers)]


def _slots(config: GPT2Config) -> list[int]:
    """Of how many tokens each layer keeps keys and values."""
    T = config.max_seq_len
    return [min(config.layer_window(layer) or T, T) for layer in range(config.num_layers)]


def packed(model: GPT2) -> bytes:
    """The weights in the order of ``begin``: matrices as a factor for each row and whole numbers, vectors as floats.

    Raises:
        InputError: the model has an attention of the user's own.
    """
    if model.mechanism_class is not None:
        own = model.mechanism_class.__name__
        raise InputError(f"the page's engine has no {own}, which is your own; --format onnx may have it")
    return b"".join(_packed(model))


def _packed(model: GPT2) -> Iterator[bytes]:
    c, weights = model.config, {name: tensor.float() for name, tensor in model.weights().items()}

    def vector(name: str, size: int = 0) -> bytes:
        values = weights[name] if name in weights else torch.zeros(size)  # without biases they are zero
        return values.contiguous().numpy().tobytes()

    def matrix(name: str) -> bytes:
        factors = weights[name].abs().amax(1, keepdim=True) / 127
        numbers = torch.where(factors > 0, (weights[name] / factors).round(), 0).to(torch.int8)
        return factors.numpy().tobytes() + numbers.numpy().tobytes() + bytes(-numbers.numel() % 4)

    def linear(name: str, rows: int) -> bytes:
        return matrix(f"{name}.weight") + vector(f"{name}.bias", rows)

    def norm(name: str) -> bytes:
        return vector(f"{name}.weight") + vector(f"{name}.bias", c.embed_dim)

    yield matrix("embeddings.token.weight" if c.tie_embeddings else "lm_head.weight")
    if not c.tie_embeddings:
        yield vector("embeddings.token.weight")
    if c.position == "learned":
        yield vector("embeddings.position.weight")
    for layer in range(c.num_layers):
        block = f"blocks.{layer}"
        yield norm(f"{block}.attention_norm")
        yield linear(f"{block}.attention.query_key_value", (c.num_heads + 2 * c.kv_heads) * c.head_dim)
        if c.qk_norm:
            yield vector(f"{block}.attention.mechanism.query_norm.weight")
            yield vector(f"{block}.attention.mechanism.key_norm.weight")
        if c.sinks:
            yield vector(f"{block}.attention.mechanism.sinks")
        yield linear(f"{block}.attention.output", c.embed_dim)
        yield norm(f"{block}.feed_forward_norm")
        yield linear(f"{block}.feed_forward.expand", c.ff_hidden_dim)
        yield linear(f"{block}.feed_forward.contract", c.embed_dim)
    yield norm("final_norm")


class Wasm:
    """The engine in a process of ours, with the weights of a page."""

    def __init__(self, model: GPT2, weights: bytes) -> None:
        try:
            import wasmtime
        except ImportError:
            raise missing("html") from None
        self.config = model.config
        self._store = wasmtime.Store()
        module = wasmtime.Module.from_file(self._store.engine, str(PAGE / "engine.wasm"))
        instance: Any = wasmtime.Instance(self._store, module, [])
        self._exports = instance.exports(self._store)
        settings = settings_of(model)
        numbers = self._put(struct.pack(f"<{len(settings)}i", *settings))
        place = self._put(weights)
        self._exports["begin"](self._store, numbers, model.config.layer_norm_epsilon, place)
        self._turn = self._put(bytes(4 * max(1, model.config.rotary_dim)))

    def _put(self, content: bytes) -> int:
        place: int = self._exports["room"](self._store, len(content))
        self._exports["memory"].write(self._store, content, place)
        return place

    def step(self, token: int, position: int) -> Tensor:
        """Logits (V,) behind a token."""
        c, self._position = self.config, position
        cos, sin = rotary_tables(torch.tensor([[position]]), c.rotary_dim, c.rope_theta)
        turn = torch.cat((cos.flatten(), sin.flatten())).numpy().tobytes()
        self._exports["memory"].write(self._store, turn, self._turn)
        place = self._exports["step"](self._store, token, position, self._turn)
        found = self._exports["memory"].read(self._store, place, place + 4 * c.vocab_size)
        return torch.frombuffer(bytearray(found), dtype=torch.float32)

    def attention(self) -> list[Tensor]:
        """How the token of the last step looked at those that it sees: for each layer (H, seen), itself last."""
        c, found = self.config, list[Tensor]()
        for layer, slots in enumerate(_slots(c)):
            seen = min(slots, self._position + 1)
            place = self._exports["attention"](self._store, layer)
            rows = self._exports["memory"].read(self._store, place, place + 4 * c.num_heads * seen)
            found.append(torch.frombuffer(bytearray(rows), dtype=torch.float32).view(c.num_heads, seen))
        return found

    def read(self, ids: list[int]) -> Tensor:
        """Logits (T, V) of a text from its beginning."""
        return torch.stack([self.step(id_, position) for position, id_ in enumerate(ids)])


def write(
    model: GPT2, tokenizer: Tokenizer, weights: bytes, path: Path, name: str, measured: RunEvaluation | None = None
) -> None:
    """Write the page.

    Args:
        model: whose settings it has.
        tokenizer: whose tokens it has.
        weights: from :func:`packed`.
        path: of the file.
        name: its title.
        measured: of the rounded model, with what rounding has cost.
    """
    from markupsafe import Markup

    c = model.config
    told = about(model, tokenizer, name)
    described = {
        "settings": settings_of(model),
        "epsilon": c.layer_norm_epsilon,
        "theta": c.rope_theta,
        "rotary": c.rotary_dim,
        "tokens": [byte_letters(spelled) for spelled in tokenizer.token_bytes],
        "merges": tokenizer.merges() or None,
        "about": told | {"facts": _facts(model) + _measured_facts(measured)},
    }
    style, script = (PAGE / "page.css").read_text(encoding="utf-8"), joined("file.js")
    page = _rendered(
        name=name,
        summary=f"{told['summary']}, in one file",
        views=("Write", "Look", "About"),
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        model=Markup(json.dumps(described).replace("<", "\\u003c")),
        engine=Markup(base64.b64encode((PAGE / "engine.wasm").read_bytes()).decode()),
        weights=Markup(base64.b64encode(weights).decode()),
    )
    path.write_text(page, encoding="utf-8")


def server_page() -> str:
    """The page of the server, which loads its modules and style from ``/page/`` and nothing from elsewhere."""
    summary = "GPT-2 whose attention can be swapped: write with your models, and look into them"
    return _rendered(name="gpt2lab", summary=summary, views=("Write", "Look", "Train", "About"))


def _rendered(**values: Any) -> str:
    from jinja2 import Environment

    template = (PAGE / "page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(template).render(values)


def joined(first: str) -> str:
    """A module of the page and all that it imports as one script, since a file cannot import another.

    Each stands behind those that it imports, in one scope: two modules never give the same name to different things.
    """
    parts: dict[str, str] = {}

    def take(name: str) -> None:
        content = (PAGE / name).read_text(encoding="utf-8")
        for imported in _IMPORT.findall(content):
            if imported not in parts:
                take(imported)
        parts[name] = re.sub("^export ", "", _IMPORT.sub("", content), flags=re.MULTILINE)

    take(first)
    return "".join(parts.values())


def about(model: GPT2, tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """What the page has to know of a model before it asks its engine; ``facts`` are rows of a label and a value."""
    c, T = model.config, model.config.max_seq_len
    windows = [layer.slots if (layer.slots or T) < T else None for layer in model.cached]
    return {
        "name": name,
        "summary": f"A GPT-2 of {model.num_parameters():,} parameters",
        "facts": _facts(model),
        "vocabulary": c.vocab_size,
        "context": T,
        "endless": model.endless,
        "heads": c.num_heads,
        "kv_heads": c.kv_heads,
        "windows": windows,
        "positions": [c.layer_position(layer) for layer in range(c.num_layers)],
        "sinks": c.sinks,
        "prompt": usual_prompt(tokenizer),
        "cache_bytes": model.cache_bytes(T, torch.float32),
        "looks": model.mechanism_class is None,
    }


def _hash(content: str) -> str:
    """How a content security policy names what it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _facts(model: GPT2) -> list[tuple[str, str]]:
    """What the page tells of every model, with labels."""
    c = model.config
    on = "; ".join(f"{name} {value}" for name, value in switches_on(c, c.num_heads).items())
    return [
        ("Size", f"{c.num_layers} layers, {c.embed_dim} wide, {c.num_heads} heads, {c.vocab_size:,} tokens"),
        ("Context", f"{c.max_seq_len:,} tokens" + (", and beyond it without end" if model.endless else "")),
        ("Switches", on or "none: it is the original GPT-2"),
    ]


def _measured_facts(measured: RunEvaluation | None) -> list[tuple[str, str]]:
    """What a file tells of what its rounded model scores."""
    if measured is None:
        return [("Rounding", "matrices have 8 bits here; what that costs was not measured")]
    return [
        ("Loss", f"{measured.loss:.4f} nats per token on {measured.text}"),
        ("Rounding", f"matrices have 8 bits here, which changes the loss by {measured.rounding:+.4f}"),
    ]


def check(model: GPT2, weights: bytes) -> Agreement:
    """Compare the engine with the model whose matrices are rounded as its weights are."""
    engine = Wasm(model, weights)

    def greedy(prompt: list[int], tokens: int) -> list[int]:
        logits, written = engine.read(prompt)[-1], list[int]()
        for _ in range(tokens):
            written.append(int(logits.argmax()))
            logits = engine.step(written[-1], len(prompt) + len(written) - 1)
        return written

    def log_probabilities(ids: Tensor) -> Tensor:
        return engine.read(ids[0].tolist()).log_softmax(-1)

    return compared(rounded(model, "int8"), "the page's engine", greedy, log_probabilities)
