"""``gpt2lab train``."""

import dataclasses
import datetime
import os
import shlex
import warnings
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, ArgumentCollection, Group, Parameter
from cyclopts.config import Dict

from gpt2lab.cli import typed
from gpt2lab.cli.settings import (
    DataSettings,
    ModelSettings,
    RunSettings,
    check_counts,
    console,
    data_settings_of,
    load_attention,
    read_settings,
    training_settings_of,
)
from gpt2lab.cli.text import Split, Text
from gpt2lab.config import GPT2Config
from gpt2lab.data import Tokenizer, load_tokenizer
from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write, locked_folder
from gpt2lab.generation import generate
from gpt2lab.model import GPT2
from gpt2lab.model.gpt2 import read_config
from gpt2lab.training import Trainer, TrainerConfig, TrainingResult, distributed, find_checkpoint, load
from gpt2lab.training.metrics import plot_losses, read_metrics, tensorboard_sink, wandb_sink
from gpt2lab.training.runs import checkpoints_of

# Training work that two cores finish in a few minutes; a random architecture gets as many steps as fit.
RANDOM_CONFIG_FLOPS = 6e12

# Where a run keeps what torchrun called the job that began it.
JOB = ".job"

RUN = Group("Run", sort_key=0)


def train(
    *,
    config: Annotated[Path | None, Parameter(group=RUN)] = None,
    resume: Annotated[Path | None, Parameter(group=RUN)] = None,
    init_from: Annotated[Path | None, Parameter(group=RUN)] = None,
    processes: Annotated[int | None, Parameter(group=RUN)] = None,
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
    processes
        Start so many processes on this machine, which share the work; torchrun starts them on many (docs/scaling.md).
    tensorboard
        Also write TensorBoard event files into the run folder.
    wandb
        Also report to this Weights & Biases project.
    """
    if processes is not None and "RANK" not in os.environ:
        check_counts(processes=processes)
        return distributed.launch(processes, "-m", "gpt2lab", *typed)
    if resume is not None and training.out is not None:
        raise InputError(f"--resume goes on in {resume} itself; leave out --out")
    with distributed.joined_processes(training.device, training.timeout), ExitStack() as stack:
        first = distributed.rank() == 0
        console.quiet = not first
        kind = "random" if model.random_config else model.variant
        new = distributed.on_the_first(lambda: f"runs/{kind}-{datetime.datetime.now():%Y%m%d-%H%M%S}")
        run = resume or Path(training.out or new)
        checkpoint: Path | None = None
        if resume is not None or _is_of_this_job(run):
            checkpoint = find_checkpoint(run, "last")
        elif checkpoints_of(run):
            raise InputError(f"{run} already holds a run; go on with --resume {run}, or choose another --out")
        if resume is not None and checkpoint is not None:
            _refuse_other_settings(run, data, training)
            settled = ModelSettings.describing(read_config(checkpoint), model.attention, model.variant)
            _refuse_changes("--resume", model, settled)
        training = dataclasses.replace(training, out=run)
        trainer, text, settings = _set_up(run, checkpoint, init_from, data, model, training)
        if tensorboard and first:
            trainer.sinks.append(tensorboard_sink(run))
        if wandb is not None and first:
            trainer.sinks.append(wandb_sink(wandb, run, settings.values()))
        distributed.on_the_first(partial(_begin, stack, run, settings, text.tokenizer))
        result = trainer.train()
        samples = None if result.stopped_by else _samples(trainer, text.tokenizer)
        # The others wait, because torchrun ends all processes when one has ended.
        distributed.on_the_first(partial(_finish, run, result, trainer.state.seconds, samples, model.attention))
        return 0 if result.stopped_by is None else 128 + result.stopped_by


def _begin(stack: ExitStack, run: Path, settings: RunSettings, tokenizer: Tokenizer) -> None:
    """Take the run folder, and write what repeats the run."""
    stack.enter_context(locked_folder(run))
    settings.save(run / "config.yaml")
    tokenizer.save(run / "tokenizer.json")
    if name := distributed.job():
        (run / JOB).write_text(name, encoding="utf-8")


def _is_of_this_job(run: Path) -> bool:
    """Whether torchrun began this run, lost a process, and has started all of them anew."""
    began = run / JOB
    return distributed.job() != "" and began.exists() and began.read_text(encoding="utf-8") == distributed.job()


def _set_up(
    run: Path,
    checkpoint: Path | None,
    init_from: Path | None,
    data: DataSettings,
    model: ModelSettings,
    training: TrainerConfig,
) -> tuple[Trainer, Text, RunSettings]:
    """Everything that a training needs, or one that goes on from a checkpoint; and the settings that repeat it."""
    attention = load_attention(model.attention)
    network: GPT2 | None = None
    tokenizer: Tokenizer | None = None
    config: GPT2Config | None = None
    if checkpoint is not None:
        config = read_config(checkpoint)
        tokenizer = load_tokenizer(run / "tokenizer.json")
    elif init_from is not None:
        network, tokenizer = load(init_from, attention=attention)
        config = network.config
        learned = data_settings_of(init_from)
        data = dataclasses.replace(data, tokenizer=learned.tokenizer, vocab_size=learned.vocab_size)
    with console.status("reading the text"):
        text = distributed.first_then_others(partial(Text.open, data, tokenizer))
    console.print(text.describe(), highlight=False)
    if config is None:
        config = model.config(text.tokenizer.vocab_size)
    described = ModelSettings.describing(config, model.attention, model.variant)
    if init_from is not None and network is not None:
        _refuse_changes("--init-from", model, described, ModelSettings(attention=model.attention))
    if network is None:
        # Under FSDP a model gets its weights in shards, and never has to fit into one process.
        deferred = training.parallel == "fsdp" and attention is None and distributed.num_processes() > 1
        with torch.device("meta") if deferred else nullcontext():
            network = GPT2.from_config(config, attention=attention, seed=training.seed)
    if model.random_config and training.max_steps is None and training.max_epochs is None:
        training.max_steps = _affordable_steps(network, training)
    parts: list[Split] = ["train", "validation"] if data.validation_fraction > 0 else ["train"]
    context = config.max_seq_len
    datasets = distributed.first_then_others(lambda: {part: text.dataset(part, context) for part in parts})
    trainer = Trainer(network, datasets["train"], datasets.get("validation"), training, console=console)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        if (step := trainer.state.step) >= trainer.steps:
            raise InputError(f"{run} is at step {step} already; --max-steps with a larger number goes on")
    # What "auto" came to here is part of the run, so that going on with it computes the same.
    training.precision = "bfloat16" if trainer.precision == torch.bfloat16 else "float32"
    training.compile = "yes" if trainer.compiled else "no"
    data = dataclasses.replace(data, text_sha256=text.corpus.sha256)
    return trainer, text, RunSettings(data, described, training, init_from)


def _affordable_steps(model: GPT2, training: TrainerConfig) -> int:
    windows = training.batch_size * training.accumulation_steps
    per_step = 3 * model.flops_per_token() * model.config.max_seq_len * windows
    return max(20, min(2000, int(RANDOM_CONFIG_FLOPS / per_step)))


def _finish(run: Path, result: TrainingResult, seconds: float, samples: str | None, attention: str | None) -> None:
    """Draw the losses, keep the samples, and say the last lines on screen."""
    plot_losses({run.name: read_metrics(run / "metrics.jsonl")}, run / "loss.svg")
    again = shlex.quote(str(run)) + (f" --attention {shlex.quote(attention)}" if attention else "")
    if samples is None:
        saved = (
            f"saved; go on with: gpt2lab train --resume {again}" if result.step else "before there was anything to save"
        )
        console.print(f"stopped at step {result.step}, {saved}", highlight=False)
        return
    with atomic_write(run / "samples.txt") as file:
        file.write(f"step {result.step}, temperature 0.8:\n{samples}\n".encode())
    loss = "" if result.validation_loss is None else f" · validation loss {result.validation_loss:.4f} nats/token"
    console.print(f"done: {result.step} steps in {seconds:.0f} s{loss}", highlight=False)
    console.print(f"  run folder  {run}\n  loss curve  {run / 'loss.svg'}\n  samples     {run / 'samples.txt'}")
    console.print(f"next: gpt2lab evaluate {again} · gpt2lab generate {again}", highlight=False)


def _refuse_changes(option: str, model: ModelSettings, *allowed: ModelSettings) -> None:
    names = [field.name for field in dataclasses.fields(model)]
    if changed := [n for n in names if all(getattr(model, n) != getattr(settings, n) for settings in allowed)]:
        raise InputError(f"{option} keeps the model as it is; leave out {', '.join(changed)}")


# What a run that goes on may have otherwise: how long, how often something is done, and on what. (The text's hash is
# compared when the text is opened.)
_MAY_CHANGE = set(
    "max_steps max_epochs eval_every eval_tokens checkpoint_every keep async_checkpoints max_skips compile device "
    "parallel activation_checkpointing cpu_offload timeout num_workers out text_sha256".split()
)


def _refuse_other_settings(run: Path, data: DataSettings, training: TrainerConfig) -> None:
    """Refuse options under which a run that goes on would be another one."""
    begun = RunSettings(data_settings_of(run), training=training_settings_of(run)).values()
    typed = RunSettings(data, training=training).values()
    names = [field.name for kind in (DataSettings, TrainerConfig) for field in dataclasses.fields(kind)]
    changed = [name for name in names if name not in _MAY_CHANGE and begun.get(name) != typed.get(name)]
    if changed:
        differing = ", ".join(f"{name} {begun.get(name)}, not {typed.get(name)}" for name in changed)
        raise InputError(
            f"{run} was begun with {differing}; leave that out to go on, or begin a new run from its model: "
            f"--init-from {run}"
        )


def settings_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill options that were not typed from --config, or from the run that --resume names."""
    for option in ("--config", "--resume"):
        given = arguments.get(option, default=None)
        if given is None or not given.tokens:
            continue
        path = Path(given.tokens[0].value)
        if option == "--resume":
            if not checkpoints_of(path):
                find_checkpoint(path, "last")  # tells that it is no run
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


def _samples(trainer: Trainer, tokenizer: Tokenizer) -> str:
    """Some text; every process has to take part."""
    first, _ = trainer.train_dataset[0]
    with warnings.catch_warnings(action="ignore"):  # that the context fills up is no news here
        ids = generate(trainer.model, first[None, :1], 500, temperature=0.8, seed=0)
    return tokenizer.decode(ids[0].tolist())
