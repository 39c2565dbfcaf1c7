"""``gpt2lab train``."""

import dataclasses
import datetime
import shlex
import warnings
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, ArgumentCollection, Group, Parameter
from cyclopts.config import Dict

from gpt2lab.cli.settings import (
    DataSettings,
    ModelSettings,
    RunSettings,
    Text,
    console,
    data_settings_of,
    load_attention,
    read_settings,
)
from gpt2lab.config import InputError
from gpt2lab.data import Tokenizer
from gpt2lab.files import atomic_write
from gpt2lab.generation import generate
from gpt2lab.model import GPT2
from gpt2lab.training import Trainer, TrainerConfig, TrainingResult, find_checkpoint, load
from gpt2lab.training.checkpoint import checkpoints_of
from gpt2lab.training.metrics import plot_losses, read_metrics, tensorboard_sink, wandb_sink

# Training work that two cores finish in a few minutes; a random architecture gets as many steps as fit.
RANDOM_CONFIG_FLOPS = 6e12

RUN = Group("Run", sort_key=0)


def train(
    *,
    config: Annotated[Path | None, Parameter(group=RUN)] = None,
    resume: Annotated[Path | None, Parameter(group=RUN)] = None,
    init_from: Annotated[Path | None, Parameter(group=RUN)] = None,
    tensorboard: Annotated[bool, Parameter(group=RUN)] = False,
    wandb: Annotated[str | None, Parameter(group=RUN)] = None,
    data: DataSettings = DataSettings(),  # noqa: B008
    model: ModelSettings = ModelSettings(),  # noqa: B008
    training: Annotated[TrainerConfig, Parameter(name="*", group=Group("Training", sort_key=3))] = TrainerConfig(),  # noqa: B008
) -> int:
    """Train a model and leave a run folder.

    With no option at all it trains the modern variant (RoPE + grouped queries + sliding window) on Shakespeare.
    Ctrl-C saves a checkpoint and says how to go on.

    Parameters
    ----------
    config
        YAML or TOML file with any of these options; flags override it.
    resume
        Run folder to go on with, under its own settings; --max-steps makes it longer.
    init_from
        Run folder whose best model is trained further, on another text.
    tensorboard
        Also write TensorBoard event files into the run folder.
    wandb
        Also report to this Weights & Biases project.
    """
    if resume is not None and training.out is not None:
        raise InputError(f"--resume goes on in {resume} itself; leave out --out")
    kind = "random" if model.random_config else model.variant
    run = resume or Path(training.out or f"runs/{kind}-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    training = dataclasses.replace(training, out=run)
    if resume is None and checkpoints_of(run):
        raise InputError(f"{run} already holds a run; go on with --resume {run}, or choose another --out")

    attention = load_attention(model.attention)
    start: GPT2 | None = None
    tokenizer: Tokenizer | None = None
    if resume is not None:
        start, tokenizer = load(run, attention=attention, checkpoint="last")
    elif init_from is not None:
        start, tokenizer = load(init_from, attention=attention)
        learned = data_settings_of(init_from)
        data = dataclasses.replace(data, tokenizer=learned.tokenizer, vocab_size=learned.vocab_size)
    with console.status("reading the text"):
        text = Text.open(data, tokenizer)
    console.print(text.describe(), highlight=False)
    settings = start.config if start is not None else model.config(text.tokenizer.vocab_size)
    network = start or GPT2.from_config(settings, attention=attention, seed=training.seed)
    if model.random_config and training.max_steps is None and training.max_epochs is None:
        training.max_steps = _affordable_steps(network, training)
    train_dataset = text.dataset("train", settings.max_seq_len)
    validation = text.dataset("validation", settings.max_seq_len) if data.validation_fraction > 0 else None

    described = ModelSettings.describing(settings, model.attention, model.variant)
    if resume is not None:
        _refuse_changes("--resume", model, described)
    elif init_from is not None:
        _refuse_changes("--init-from", model, described, ModelSettings(attention=model.attention))
    trainer = Trainer(network, train_dataset, validation, training, console=console)
    if resume is not None:
        trainer.restore(find_checkpoint(run, "last"))
        if (step := trainer.state.step) >= trainer.steps:
            raise InputError(f"{run} is at step {step} already; --max-steps with a larger number goes on")
    if tensorboard:
        trainer.sinks.append(tensorboard_sink(run))
    if wandb is not None:
        trainer.sinks.append(wandb_sink(wandb, run, dataclasses.asdict(described) | dataclasses.asdict(training)))
    # What "auto" came to here is part of the run, so that going on with it computes the same.
    training.precision = "bfloat16" if trainer.precision == torch.bfloat16 else "float32"
    training.compile = "yes" if trainer.compiled else "no"
    data = dataclasses.replace(data, text_sha256=text.corpus.sha256)
    RunSettings(data, described, training, init_from).save(run / "config.yaml")
    text.tokenizer.save(run / "tokenizer.json")
    result = trainer.train()

    plot_losses({run.name: read_metrics(run / "metrics.jsonl")}, run / "loss.svg")
    if result.stopped_by is None:
        _write_samples(network, int(train_dataset.tokens[0]), text.tokenizer, run, result.step)
    return _tell(run, result, trainer.state.seconds, model.attention)


def _affordable_steps(model: GPT2, training: TrainerConfig) -> int:
    windows = training.batch_size * training.accumulation_steps
    per_step = 3 * model.flops_per_token() * model.config.max_seq_len * windows
    return max(20, min(2000, int(RANDOM_CONFIG_FLOPS / per_step)))


def _tell(run: Path, result: TrainingResult, seconds: float, attention: str | None) -> int:
    """The last lines on screen, and the exit code."""
    again = shlex.quote(str(run)) + (f" --attention {shlex.quote(attention)}" if attention else "")
    if result.stopped_by is not None:
        saved = (
            f"saved; go on with: gpt2lab train --resume {again}" if result.step else "before there was anything to save"
        )
        console.print(f"stopped at step {result.step}, {saved}", highlight=False)
        return 128 + result.stopped_by
    loss = "" if result.validation_loss is None else f" · validation loss {result.validation_loss:.4f} nats/token"
    console.print(f"done: {result.step} steps in {seconds:.0f} s{loss}", highlight=False)
    console.print(f"  run folder  {run}\n  loss curve  {run / 'loss.svg'}\n  samples     {run / 'samples.txt'}")
    console.print(f"next: gpt2lab evaluate {again} · gpt2lab generate {again}", highlight=False)
    return 0


def _refuse_changes(option: str, model: ModelSettings, *allowed: ModelSettings) -> None:
    names = [field.name for field in dataclasses.fields(model)]
    if changed := [n for n in names if all(getattr(model, n) != getattr(settings, n) for settings in allowed)]:
        raise InputError(f"{option} keeps the model as it is; leave out {', '.join(changed)}")


def settings_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill options that were not typed from --config, or from the run that --resume names."""
    for option in ("--config", "--resume"):
        given = arguments.get(option, default=None)
        if given is None or not given.tokens:
            continue
        path = Path(given.tokens[0].value)
        if option == "--resume":
            find_checkpoint(path, "last")  # or this tells that it is no run
            path /= "config.yaml"
        values = read_settings(path)
        if commands[:1] == ("compare",):  # which reads these itself
            values = {name: value for name, value in values.items() if name not in ("arms", "claims", "settled_steps")}
        if option == "--resume":
            values.pop("attention", None)  # a file that only a run folder names is never executed
        elif any((typed := arguments.get(name)) and typed.tokens for name in ("--text", "--corpus")):
            for name in ("text", "corpus", "text_sha256"):  # another text than the file's
                values.pop(name, None)
        Dict(values, source=str(path), use_commands_as_keys=False)(app, commands, arguments)


def _write_samples(model: GPT2, first_token: int, tokenizer: Tokenizer, run: Path, step: int) -> None:
    first = torch.tensor([[first_token]])
    with warnings.catch_warnings(action="ignore"):  # that the context fills up is no news here
        ids = generate(model, first, 500, temperature=0.8, seed=0)
    with atomic_write(run / "samples.txt") as file:
        file.write(f"step {step}, temperature 0.8:\n{tokenizer.decode(ids[0].tolist())}\n".encode())
