"""The settings of a run: what is read, what is trained, and how. Pure data: nothing here prints or needs torch."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from gpt2lab.config import MOST_LAYERS, GPT2Config, Switches, Variant, random_architecture, variant_switches
from gpt2lab.data.settings import MOST_LEARNED, FileSettings
from gpt2lab.errors import InputError
from gpt2lab.manifests import replace_files, verify_if_listed
from gpt2lab.options import MOST_SECONDS, check, given_options, option, options_of, part, spelled
from gpt2lab.reading import read_settings
from gpt2lab.runs.records import TrainingProgress
from gpt2lab.threads import MOST_THREADS

TokenizerName = Literal["char", "bpe", "gpt2"]
CorpusName = Literal["shakespeare", "tinyshakespeare"]
OptimizerName = Literal["muon", "adamw"]
Schedule = Literal["cosine", "wsd", "constant"]
Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "yes", "no"]
Step = Literal["auto", "eager", "native"]
Parallel = Literal["ddp", "fsdp"]
Which = Literal["best", "last"]
Weights = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class DataSettings(FileSettings):
    """What is read."""

    corpus: CorpusName | None = option(
        None,
        'built-in text: "shakespeare" (all plays) or "tinyshakespeare" (downloaded once).',
        in_comparison="all",
        default="shakespeare",
    )
    text: str | None = option(
        None,
        "your own text: a UTF-8 file, a folder of .txt files, or a glob in quotes; or .bin shards of tokens likewise.",
        in_comparison="all",
        on_resume=True,  # where it has moved to; text_sha256 tells whether it is the same
    )
    tokenizer: TokenizerName = option(
        "char",
        '"char", "bpe" (byte-level, learned from the training part), or "gpt2". Shards have theirs beside them, in a '
        'tokenizer.json; shards without one need "gpt2", and ids that are GPT-2\'s.',
        in_comparison="all",
        older=("embedding_type",),
        spellings={"shakespearean": "char", "shakesperean": "char", "char": "char", "bpe": "bpe", "gpt2": "gpt2"},
    )
    vocab_size: int = option(
        1024, 'number of ids of a "bpe" tokenizer.', in_comparison="all", least=1, most=MOST_LEARNED
    )
    validation_fraction: float = option(
        0.05,
        "share of the text, before the test part, on which training measures itself.",
        in_comparison="all",
        least=0,
        below=1,
    )
    test_fraction: float = option(
        0.05,
        "share at the end of the text that training never sees. (Shards whose names say train, val or test are these "
        "parts, whatever the fractions.)",
        in_comparison="all",
        least=0,
        below=1,
    )
    text_sha256: str | None = option(
        None,
        "SHA-256 that the text has to have. A run folder records it, so that a text that was edited since is not taken "
        "for the one that was trained on. For shards it is made of their sizes, beginnings and ends.",
        in_comparison="all",
    )
    documents: bool | None = option(
        None,
        "whether the text has several documents, with <|endoftext|> between them. A run folder records it.",
        in_comparison="all",
        on_resume=True,
        flag=False,
    )

    def __post_init__(self) -> None:
        check(self)


def spell_attention(attention: str | type | None) -> str | None:
    """A user's mechanism as files name it."""
    return f"{attention.__module__}:{attention.__qualname__}" if isinstance(attention, type) else attention


@dataclass(frozen=True)
class ModelSettings(Switches):
    """What is trained. :meth:`of` gives a switch that is not given the variant's value."""

    variant: Variant = option(
        "modern",
        'a set of switches: "original" (none), "rope", "gqa", "mqa", "swa" (window), "modern" (rope, gqa and swa).',
        in_comparison="arm",
    )
    context_size: int = option(
        64,
        "longest context in training, in tokens; a limit for learned positions.",
        in_comparison="none",
        least=1,
        older=("max_seq_len",),
    )
    embed_dim: int = option(128, "width of the model.", least=1)
    num_heads: int = option(4, "query heads.", least=1)
    ff_hidden_dim: int | None = option(
        None, "hidden width of the feed-forward network.", least=1, default="4 · embed_dim"
    )
    num_layers: int = option(3, "transformer blocks.", least=1, most=MOST_LAYERS)
    attention: str | type | None = option(
        None,
        'your own mechanism: "file.py:ClassName" (in Python the class itself).',
        in_comparison="arm",
        spell=spell_attention,
    )
    random_config: bool = option(
        False, "draw sizes and switches at random; those that are given stay.", in_comparison="none"
    )
    random_seed: int | None = option(None, "repeats a random draw.", in_comparison="none", least=0)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The settings that these options ask for, a pure function of them.

        Args:
            given: options by name. A switch that is not among them is the variant's, or drawn with ``random_config``.
        """
        asked = cls(**given)
        if not asked.random_config:
            return cls(**{**variant_switches(asked.variant, asked.context_size, asked.num_heads), **given})
        if asked.random_seed is None:
            raise InputError("random_config draws an architecture from random_seed; give that, too")
        drawn = set(random_architecture(0, asked.context_size))
        stays = {name: value for name, value in given.items() if name in drawn}
        return replace(asked, **random_architecture(asked.random_seed, asked.context_size, **stays))

    def config(self, vocab_size: int) -> GPT2Config:
        """The configuration that these settings ask for."""
        return GPT2Config(
            vocab_size,
            self.context_size,
            self.embed_dim,
            self.num_heads,
            self.ff_hidden_dim or 4 * self.embed_dim,
            self.num_layers,
            **{switch.name: getattr(self, switch.name) for switch in fields(Switches)},
        )

    @classmethod
    def describing(cls, config: GPT2Config, attention: str | type | None, variant: Variant = "original") -> Self:
        """The settings that ask for exactly this configuration, whatever the variants may become."""
        values = {name: getattr(config, name) for name in options_of(cls) if hasattr(config, name)}
        values |= {"variant": variant, "attention": attention, "num_kv_heads": config.kv_heads}
        return cls(context_size=config.max_seq_len, **values)


@dataclass(frozen=True)
class TrainerConfig:
    """How to train. The defaults are what our own sweeps chose for two CPU cores (docs/recipe.md)."""

    max_steps: int | None = option(
        None,
        "optimiser steps.",
        least=1,
        on_resume=True,
        in_comparison="all",
        default="as many as max_epochs needs, or 2000",
    )
    max_epochs: float | None = option(
        None,
        "passes over all windows of the data (a window starts at every token), if max_steps is not given.",
        above=0,
        on_resume=True,
        in_comparison="all",
    )
    batch_size: int = option(16, "windows per forward pass.", least=1, in_comparison="all")
    accumulation_steps: int = option(
        1, "forward passes per optimiser step.", least=1, most=1_000_000, in_comparison="all"
    )
    optimizer: OptimizerName = option("muon", '"muon" for the matrices of the blocks (AdamW for the rest), or "adamw".')
    learning_rate: float = option(8e-3, "the highest learning rate.", above=0)
    schedule: Schedule = option(
        "wsd",
        '"wsd" (constant, then straight down over the last half) or "cosine", both after a warm-up and to 10 %; or '
        '"constant", from the first step.',
    )
    warmup_steps: int = option(10, "steps over which the learning rate rises.", least=0)
    warmup_tokens: float | None = option(
        None, "the same in tokens; if given, it counts instead of warmup_steps.", least=0
    )
    final_tokens: float | None = option(
        None, "tokens at which the schedule ends.", least=0, default="the end of the run"
    )
    start_window: int | None = option(
        None,
        "window of all layers in the first step; over the first half of the training it becomes the model's own, in "
        "eight stages. Measured is always the model with its own.",
        least=1,
        default="the model's own",
    )
    weight_decay: float = option(0.1, "weight decay, of matrices only.", least=0)
    betas: tuple[float, float] = option((0.8, 0.95), "AdamW's two betas.", least=0, below=1)
    grad_norm_clip: float = option(1.0, "the norm of all gradients is clipped to this; 0: no clipping.", least=0)
    eval_every: int | None = option(
        None,
        "steps between estimates of the validation loss; 0: only with checkpoints and at the end.",
        least=0,
        on_resume=True,
        in_comparison="all",
        default="about a twentieth of the run",
    )
    eval_tokens: int | None = option(
        None,
        "tokens of the validation data that such an estimate reads (always the same ones); the last one of a run reads "
        "all.",
        least=1,
        on_resume=True,
        in_comparison="all",
        default="32768, and fewer in a short run",
    )
    checkpoint_every: int = option(500, "steps between checkpoints.", least=0, on_resume=True, in_comparison="all")
    keep: int = option(2, "how many of the latest checkpoints stay; the best one always does.", least=1, on_resume=True)
    async_checkpoints: bool = option(False, "write checkpoints while training goes on.", on_resume=True)
    max_skips: int = option(
        10,
        "a step whose gradients are not finite is skipped; training stops after this many skipped steps in a row (it "
        "looks every ten steps).",
        least=1,
        on_resume=True,
    )
    precision: Precision = option(
        "auto",
        '"float32", "bfloat16" (autocast), or "auto": bfloat16 where the hardware multiplies it faster.',
        in_comparison="all",
    )
    compile: Compile = option(
        "auto",
        '"yes", "no", or "auto": on CUDA, when the run is long enough to earn back the compile time.',
        on_resume=True,
        in_comparison="all",
    )
    step: Step = option(
        "auto",
        'what computes a training step on a CPU: "native" (what lies between the matrix products is C++, which is '
        'compiled once for this machine), "eager" (torch alone), or "auto": native where it can be had.',
        on_resume=True,
        in_comparison="all",
    )
    device: str = option("auto", '"auto", "cpu", "cuda" or "mps".', on_resume=True, in_comparison="all")
    threads: int | None = option(
        None,
        "CPU threads.",
        least=1,
        most=MOST_THREADS,
        on_resume=True,
        in_comparison="none",
        default="OMP_NUM_THREADS, or the number that is found fastest at the start",
    )
    parallel: Parallel = option(
        "ddp",
        'what several processes do: "ddp" (each has the whole model) or "fsdp" (each keeps its share of the '
        "parameters, their gradients and what the optimiser remembers).",
        on_resume=True,
    )
    activation_checkpointing: bool = option(
        False,
        "keep only the inputs of the blocks, and compute the rest again in the backward pass.",
        on_resume=True,
    )
    cpu_offload: bool = option(False, 'keep the shards of "fsdp" in main memory.', on_resume=True)
    timeout: float = option(
        600.0,
        "seconds after which a process that does not answer is given up.",
        above=0,
        most=MOST_SECONDS,
        on_resume=True,
    )
    num_workers: int = option(
        0,
        "processes that load a data set which is not ours.",
        least=0,
        on_resume=True,
        in_comparison="all",
        flag=False,  # the command line trains on nothing else
    )
    seed: int = option(0, "seed of the order of the data and of dropout.", least=0, below=2**62, in_comparison="all")
    out: str | Path | None = option(
        None, "the run folder.", on_resume=True, in_comparison="all", default="runs/VARIANT-TIME"
    )

    def __post_init__(self) -> None:
        check(self)

    def estimates(self, steps: int, context_size: int) -> tuple[int, int]:
        """How often a run of so many steps estimates its validation loss (every so many steps; 0: never), and how many
        tokens that reads: by default about twenty times, which takes a tenth of the time of the training."""
        every = 10 * round(steps / 200) if steps >= 200 else max(1, round(steps / 20))
        tokens = steps * self.accumulation_steps * self.batch_size * context_size
        affordable = min(32_768, max(4_096, 3 * tokens // 200))  # reading takes a third of the time of training
        return (
            every if self.eval_every is None else self.eval_every,
            affordable if self.eval_tokens is None else self.eval_tokens,
        )


@dataclass(frozen=True)
class StartSettings:
    """Where a training starts from, and who hears of it; besides ``init_from`` a run does not keep these."""

    config: str | Path | None = option(
        None, "YAML or TOML file with any of these options; flags override the file.", in_comparison="none"
    )
    resume: str | Path | None = option(
        None, "run folder to go on with, under its own settings; --max-steps makes it longer.", in_comparison="none"
    )
    init_from: str | Path | None = option(
        None, "run folder whose best model is trained further, on another text.", in_comparison="none"
    )
    processes: int | None = option(
        None,
        "processes on this machine that share the work; torchrun starts them on many machines (docs/scaling.md).",
        least=1,
        most=MOST_THREADS,
        in_comparison="none",
    )
    tensorboard: bool = option(False, "also write TensorBoard event files into the run folder.", in_comparison="none")
    wandb: str | None = option(None, "also report to this Weights & Biases project.", in_comparison="none")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class WhichModel:
    """Which model of a run is meant."""

    checkpoint: Which = option("best", '"best" (lowest validation loss) or "last".')
    attention: str | type | None = option(
        None,
        'your own mechanism, for a run that was trained with it: "file.py:ClassName" (in Python the class itself).',
        spell=spell_attention,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class LoadSettings(WhichModel):
    """Which model of a run is loaded, and where."""

    device: str = option("auto", '"auto", "cpu", "cuda" or "mps".')
    weights: Weights | None = option(
        None,
        'precision in which the native step stores the matrices: "float32", "bfloat16", or "int8", with a factor for '
        "each output. A large model is written faster so, and a little worse: evaluate --weights tells by how much.",
        default="as they are",
    )


@dataclass(frozen=True)
class TrainOptions(TrainerConfig, ModelSettings, DataSettings, StartSettings):
    """Every keyword of :func:`gpt2lab.train`, under the names of the flags."""

    progress: Callable[[TrainingProgress], None] | None = None


SETTINGS = (DataSettings, ModelSettings, TrainerConfig)


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run; ``config.yaml`` holds them flat, under the names of the flags."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainerConfig = field(default_factory=TrainerConfig)
    init_from: str | Path | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The settings that these options ask for; names and types are right already (:func:`given_options`)."""
        data, model, training = (part(given, kind) for kind in SETTINGS)
        return cls(DataSettings(**data), ModelSettings.of(model), TrainerConfig(**training), given.get("init_from"))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The settings in the ``config.yaml`` of a run or the ``cell.yaml`` of a comparison.

        Raises:
            InputError: the file is missing or damaged.
        """
        return cls.of(read_recorded(path))

    def trained_with(self, **options: Any) -> Self:
        """The same with other training options."""
        return replace(self, training=replace(self.training, **options))

    def to_dict(self) -> dict[str, Any]:
        """The settings under the names of the flags, as YAML has them."""
        values = spelled(self.data) | spelled(self.model) | spelled(self.training)
        if self.data.text is not None:  # so that the run can be measured from any folder
            values["text"] = os.path.abspath(self.data.text)  # noqa: PTH100 (a glob is no path)
        if self.init_from is not None:
            values["init_from"] = str(Path(self.init_from).resolve())
        return {name: value for name, value in values.items() if value is not None and name != "out"}

    def save(self, path: Path) -> None:
        """Write them as YAML: ``gpt2lab train --config …`` repeats the run."""
        replace_files(path.parent, {path.name: self.to_yaml()})

    def to_yaml(self) -> bytes:
        """The same as the file holds it."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True).encode()


def read_recorded(path: Path) -> dict[str, Any]:
    """The options in a file that a run or a comparison wrote.

    They are those of a run alone, and of them all but its own place: who starts a training says where it goes, in how
    many processes, and who hears of it; and a user's own mechanism is only a name here, which nothing runs.

    Raises:
        InputError: the file is missing, damaged or edited, or has other options.
    """
    values = read_settings(path)
    verify_if_listed(path)
    found = given_options(SETTINGS, {name: v for name, v in values.items() if name != "init_from"}, str(path))
    found.pop("out", None)
    found.setdefault("step", "eager")  # recorded before there was another one
    return found | given_options((StartSettings,), {n: v for n, v in values.items() if n == "init_from"}, str(path))
