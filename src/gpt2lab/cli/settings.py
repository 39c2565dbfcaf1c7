"""The settings that commands share, what they stand for, and how they are kept in a run folder."""

import importlib.util
import os
import secrets
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from cyclopts import Group, Parameter, Token
from rich.console import Console

from gpt2lab.config import GPT2Config, Variant, Window, random_architecture, variant_switches
from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write
from gpt2lab.model import ScaledDotProductAttention
from gpt2lab.model.attention import Mechanism, is_mechanism
from gpt2lab.training import TrainerConfig, distributed

TokenizerName = Literal["char", "bpe", "gpt2"]

console = Console(soft_wrap=True)  # a path or command that is printed can be copied
errors = Console(stderr=True)


def tokenizer_name(kind: object, tokens: Sequence[Token]) -> str:
    """The tokenizer that is meant by a name, those of older scripts included."""
    name = tokens[0].value.lower()
    name = {"shakespearean": "char", "shakesperean": "char"}.get(name, name)
    if name not in get_args(TokenizerName):
        raise ValueError(f"it has to be one of {', '.join(get_args(TokenizerName))}")
    return name


@Parameter(name="*", group=Group("Text", sort_key=2))
@dataclass(frozen=True)
class DataSettings:
    """What is read.

    Attributes:
        corpus: built-in text: "shakespeare" (all plays; the default) or "tinyshakespeare" (downloaded once).
        text: your own: a UTF-8 file, a folder of .txt files, or a glob in quotes; or .bin shards of tokens likewise.
        tokenizer: "char", "bpe" (byte-level, trained on the training part), or "gpt2". Older scripts call it
            --embedding-type, and "char" also "shakespearean" or "shakesperean". Shards have theirs beside them, in a
            tokenizer.json; those without one need "gpt2", and ids that are GPT-2's.
        vocab_size: ids of a "bpe" tokenizer.
        validation_fraction: share of the text, before the test part, that is measured while training.
        test_fraction: share at the end of the text that training never sees. (Shards whose names say train, val or test
            are these parts, whatever the fractions.)
        text_sha256: hash that the text has to have. A run folder records it, so that a text that was edited since is
            not taken for the one that was trained on. Of shards it is of their sizes, beginnings and ends.
    """

    corpus: str | None = None
    text: str | None = None
    tokenizer: Annotated[TokenizerName, Parameter(alias=["--embedding-type"], converter=tokenizer_name)] = "char"
    vocab_size: int = 1024
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    text_sha256: str | None = None


@Parameter(name="*", group=Group("Model", sort_key=1))
@dataclass(frozen=True)
class ModelSettings:
    """What is trained. A switch that is not given is the variant's.

    Attributes:
        variant: a named set of switches.
        context_size: longest context in training, in tokens; a limit for learned positions.
        embed_dim: width; default 128.
        num_heads: query heads; default 4.
        ff_hidden_dim: width of the feed-forward network; default 4 · embed_dim.
        num_layers: blocks; default 3.
        position: how order is told: "learned", "rope", "none".
        rope_theta: base of the rotary frequencies.
        num_kv_heads: key/value heads, shared by groups of query heads; 1 is multi-query.
        window: latest tokens that each token sees: a number, "full", or one per layer in turn, such as "32,32,full".
        tie_embeddings: the output layer is the token embedding.
        bias: biases in linear layers and LayerNorms.
        dropout: of embeddings and residual branches.
        layer_norm_epsilon: added to the variance.
        activation: of the feed-forward network.
        attention: your own mechanism, "file.py:ClassName".
        random_config: draw sizes and switches at random; flags that are given stay.
        random_seed: repeats a draw.
    """

    variant: Variant = "modern"
    context_size: Annotated[int, Parameter(alias=["--max-seq-len"])] = 64
    embed_dim: int | None = None
    num_heads: int | None = None
    ff_hidden_dim: int | None = None
    num_layers: int | None = None
    position: Literal["learned", "rope", "none"] | None = None
    rope_theta: float = 10_000.0
    num_kv_heads: int | None = None
    window: str | None = None
    tie_embeddings: bool = True
    bias: bool = True
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    activation: Literal["gelu_tanh", "gelu", "relu"] = "gelu_tanh"
    attention: str | None = None
    random_config: bool = False
    random_seed: int | None = None

    def config(self, vocab_size: int) -> GPT2Config:
        """The configuration that these settings ask for."""
        if self.context_size < 1:
            raise InputError(f"context_size is {self.context_size}; it has to be 1 or more")
        names = ("embed_dim", "num_heads", "ff_hidden_dim", "num_layers", "position", "num_kv_heads")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for name in given.keys() - {"position", "num_kv_heads"}:
            if given[name] < 1:
                raise InputError(f"{name} is {given[name]}; it has to be 1 or more")
        if self.window is not None:
            given["window"] = parse_window(self.window)
        if self.random_config:
            drawn = distributed.on_the_first(lambda: secrets.randbelow(2**31))
            seed = drawn if self.random_seed is None else self.random_seed
            shape = random_architecture(seed, self.context_size, **given)
            console.print(f"random configuration (--random-seed {seed} repeats it): {shape}", highlight=False)
        else:
            sizes = {"embed_dim": 128, "num_heads": 4, "num_layers": 3} | given
            switches = variant_switches(self.variant, self.context_size, sizes["num_heads"])
            shape = {"ff_hidden_dim": 4 * sizes["embed_dim"]} | switches | sizes
        return GPT2Config(
            vocab_size,
            self.context_size,
            rope_theta=self.rope_theta,
            tie_embeddings=self.tie_embeddings,
            bias=self.bias,
            dropout=self.dropout,
            layer_norm_epsilon=self.layer_norm_epsilon,
            activation=self.activation,
            **shape,
        )

    @classmethod
    def describing(cls, config: GPT2Config, attention: str | None, variant: Variant = "original") -> "ModelSettings":
        """The settings that ask for exactly this configuration, whatever the variants may become."""
        values = config.to_dict()
        values["context_size"] = values.pop("max_seq_len")
        values["window"] = format_window(config.window)
        values |= {"variant": variant, "attention": attention, "num_kv_heads": config.kv_heads}
        del values["vocab_size"]
        return cls(**values)


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run; ``config.yaml`` holds them flat, under the names of the flags."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainerConfig = field(default_factory=TrainerConfig)
    init_from: Path | None = None

    def trained_with(self, **options: Any) -> "RunSettings":
        """The same with other training options."""
        return replace(self, training=replace(self.training, **options))

    def values(self) -> dict[str, Any]:
        """The settings under the names of the flags, as YAML has them."""
        values = asdict(self.data) | asdict(self.model) | asdict(self.training)
        if values["text"] is not None:  # so that the run can be measured from any folder
            values["text"] = os.path.abspath(values["text"])  # noqa: PTH100 (a glob is no path)
        if self.init_from is not None:
            values["init_from"] = str(self.init_from.resolve())
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None and k != "out"}

    def save(self, path: Path) -> None:
        """Write them as YAML: ``gpt2lab train --config …`` repeats the run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(yaml.safe_dump(self.values(), sort_keys=False, allow_unicode=True).encode())


def read_settings(path: Path) -> dict[str, Any]:
    """Named values of a YAML or TOML file."""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} has to hold settings, one `name: value` a line")
    if isinstance(values.get("compile"), bool):  # YAML reads a bare yes or no so
        values["compile"] = "yes" if values["compile"] else "no"
    if isinstance(values.get("window"), list):
        values["window"] = ",".join("full" if w is None else str(w) for w in values["window"])
    return values


S = TypeVar("S", DataSettings, TrainerConfig)


def data_settings_of(run: Path) -> DataSettings:
    """What a run was trained on."""
    return _settings_of(run, DataSettings)


def training_settings_of(run: Path) -> TrainerConfig:
    """How a run was trained."""
    return _settings_of(run, TrainerConfig)


def _settings_of(run: Path, kind: type[S]) -> S:
    values = read_settings(run / "config.yaml")
    try:
        return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})
    except TypeError as error:
        raise InputError(f"{run / 'config.yaml'} is damaged: {error}") from None


def check_counts(**counts: int) -> None:
    """Refuse options that are below 1, or below 0 for ``rounds``, where none are meant by that."""
    for name, value in counts.items():
        least = 0 if name == "rounds" else 1
        if value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it has to be {least} or more")


def parse_window(text: str) -> Window:
    """``"full"``, ``"128"`` or ``"128,128,full"`` as the configuration has it."""
    try:
        windows = tuple(None if part.strip() == "full" else int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f'window is {text!r}; give a number, "full", or several with commas: 128,128,full') from None
    return windows[0] if len(windows) == 1 else windows


def format_window(window: Window) -> str:
    """The inverse of :func:`parse_window`."""
    windows = window if isinstance(window, tuple) else (window,)
    return ",".join("full" if w is None else str(w) for w in windows)


def load_attention(spec: str | None) -> Mechanism | None:
    """The class behind ``file.py:ClassName``. This runs the file, as the user asked.

    Raises:
        InputError: no such file or class, or the file fails when it is run.
    """
    if spec is None:
        return None
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not file:
        raise InputError(f"--attention {spec}: the class is missing; write it as file.py:ClassName")
    if not path.is_file():
        raise InputError(f"--attention {spec}: there is no file {file!r}; write it as file.py:ClassName")
    module_spec = importlib.util.spec_from_file_location(f"attention file {path.resolve()}", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"--attention {spec}: {file} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # where Python looks for a class's source
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"--attention {spec}: {file} does not import: {type(error).__name__}: {error}") from None
    found = getattr(module, name, None)
    if not is_mechanism(found):
        known = [n for n, v in vars(module).items() if is_mechanism(v) and v.__module__ == module.__name__]
        raise InputError(
            f"--attention {spec}: {file} has no class {name!r} that inherits from {ScaledDotProductAttention.__name__}"
            + (f"; it has {', '.join(known)}" if known else "")
        )
    return found
