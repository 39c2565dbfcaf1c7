"""A training from its settings to a finished run folder: :func:`train`, and the processes that share it."""

import datetime
import functools
import itertools
import json
import os
import re
import secrets
import shlex
import signal
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from gpt2lab.config import GPT2Config, random_architecture, variant_switches
from gpt2lab.data import Tokenizer, load_tokenizer
from gpt2lab.data.corpora import Split
from gpt2lab.data.text import Text
from gpt2lab.errors import InputError, TrainingError
from gpt2lab.files import atomic_write, locked_folder, sweep
from gpt2lab.generation import generate
from gpt2lab.generation.engine import common_step
from gpt2lab.manifests import replace_files
from gpt2lab.model import GPT2
from gpt2lab.model.attention import Mechanism
from gpt2lab.model.saving import TOKENIZER, read_config
from gpt2lab.options import given_options, taking
from gpt2lab.progress import plain_console, shown
from gpt2lab.runs.folder import WEIGHTS, checkpoints_of, find_checkpoint, load, open_text, read_state
from gpt2lab.runs.given import merged_with_file, refuse_another_model, refuse_another_tokenizer
from gpt2lab.runs.mechanisms import load_attention
from gpt2lab.runs.settings import DataSettings, ModelSettings, RunSettings, TrainerConfig, TrainOptions, spell_attention
from gpt2lab.training import processes
from gpt2lab.training.checkpoint import clear_remains
from gpt2lab.training.choices import choose_threads
from gpt2lab.training.metrics import exact_loss, plot_losses, read_metrics, tensorboard_sink, wandb_sink
from gpt2lab.training.signals import Signals
from gpt2lab.training.surroundings import LostFolderError
from gpt2lab.training.trainer import Trainer, TrainingResult

# Training work that two cores finish in a few minutes; a random architecture gets as many steps as fit.
RANDOM_CONFIG_FLOPS = 6e12

# What may differ between machines; the hash of the text tells whether it is the same.
OF_A_MACHINE = ("text", "init_from", "attention", "device", "threads")

# Where a run keeps what torchrun called the job that began it.
JOB = ".job"


@dataclass(frozen=True)
class Run:
    """A training that has ended, or was stopped.

    Attributes:
        folder: the run folder.
        model: as the last step left it, ready to evaluate or generate.
        tokenizer: the model's.
        loss: on the whole validation part, nats per token; None without such a part, or if the run was stopped.
        steps: optimiser steps in all.
        seconds: of training in all, measuring and saving left out.
        stopped_by: the signal that ended it early; None: it is complete.
    """

    folder: Path
    model: GPT2
    tokenizer: Tokenizer
    loss: float | None
    steps: int
    seconds: float
    stopped_by: signal.Signals | None = None


@taking(TrainOptions)
def train(**given: Any) -> Run:
    """Train a model and leave a run folder.

    With no option at all it trains the modern variant (RoPE + grouped queries + sliding window) on Shakespeare, and
    tells how it goes on standard output; Ctrl-C saves a checkpoint. The options are those of ``gpt2lab train``.

    Args:
        **given: fields of :class:`gpt2lab.runs.settings.TrainOptions`, such as ``text="novel.txt", max_steps=200``.
            ``progress`` is called with a :class:`gpt2lab.runs.records.TrainingProgress` whenever there is something to
            tell, and nothing is printed.

    Raises:
        InputError: options that cannot be used, a text that is too short, or a folder that holds a run already.
        TrainingError: the training diverged, or a process was lost.

    Examples:
        >>> run = gpt2lab.train(text="novel.txt", position="rope", window=16, max_steps=200, out="runs/novel")
        >>> run.loss
    """
    progress = given.pop("progress", None)
    options = given_options((TrainOptions,), given)
    if options.get("processes") is not None and "RANK" not in os.environ:
        if progress is not None:
            raise InputError("progress hears of a training in this process only; leave it out, or processes")
        return _launched(options)
    console = plain_console(quiet=progress is not None)
    merge = functools.cache(partial(merged_with_file, options))
    joining = options
    with suppress(InputError):  # which is told when all are there to hear it
        joining = merge()
    timeout = joining.get("timeout", TrainerConfig.timeout)
    with processes.joined_processes(joining.get("device", "auto"), timeout), ExitStack() as stack:
        first = processes.rank() == 0
        console.quiet |= not first
        merged = processes.in_all(merge)
        if merged.get("random_config") and "random_seed" not in merged:
            merged["random_seed"] = processes.on_the_first(lambda: secrets.randbelow(2**31))
        settings = processes.in_all(partial(RunSettings.of, merged))
        processes.check_alike({name: v for name, v in settings.to_dict().items() if name not in OF_A_MACHINE})
        if merged.get("attention") is not None and merged.get("init_from") is None:
            _tell_switches(settings.model, merged, console)
        run, checkpoint = _place(stack, settings, options.get("resume"))
        trainer, text, settings = _set_up(run, checkpoint, settings, options, console)
        trainer.progress = progress
        if options.get("tensorboard") and first:
            trainer.sinks.append(tensorboard_sink(run, trainer.state.step))
        if (project := options.get("wandb")) is not None and first:
            trainer.sinks.append(wandb_sink(project, run, settings.to_dict()))
        processes.on_the_first(partial(_begin, stack, run, settings, text.tokenizer))
        try:
            result = trainer.train()
        except LostFolderError:
            processes.on_the_first(partial(_describe, run, settings, text.tokenizer))
            raise
        except KeyboardInterrupt:  # a second Ctrl-C: the first one saves
            raise KeyboardInterrupt(_left(run, settings.model.attention)) from None
        samples = None if result.stopped_by else _samples(trainer, text.tokenizer)
        # The others wait, because torchrun ends all processes when one has ended.
        processes.on_the_first(partial(_finish, run, result, samples))
        seconds = trainer.state.seconds
        return Run(run, trainer.model, text.tokenizer, result.validation_loss, result.step, seconds, result.stopped_by)


def _tell_switches(model: ModelSettings, given: Mapping[str, Any], console: Console) -> None:
    """Say under which switches a mechanism of the user's own runs, if nothing that is given says so."""
    switches = variant_switches(model.variant, model.context_size, model.num_heads)
    if not {"variant", *switches} & {*given}:
        under = ", ".join(f"{switch} {value}" for switch, value in switches.items())
        name = re.split("[:.]", str(spell_attention(model.attention)))[-1]
        console.print(
            f"note: {name} runs with the switches of the variant "
            f"{model.variant} ({under}); --variant original turns them off, and each has a flag of its own"
        )


def launch(options: Mapping[str, Any]) -> int:
    """Train in several processes of this machine; returns the exit code."""
    if options["processes"] < 1:
        raise InputError(f"--processes is {options['processes']}; it has to be 1 or more")
    if isinstance(options.get("attention"), type):
        raise InputError('several processes load your attention from its file; give it as "file.py:ClassName"')
    told = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return processes.launch(options["processes"], "-m", "gpt2lab.worker", json.dumps(told))


def _launched(options: dict[str, Any]) -> Run:
    with ExitStack() as stack:
        if options.get("resume") is None and options.get("out") is None:
            options["out"] = _new_folder(stack, RunSettings.of(merged_with_file(options)).model)
        code = launch(options)
    stopped = signal.Signals(code - 128) if code - 128 in Signals.STOPPING else None
    if code != 0 and stopped is None:
        kind = InputError if code == 2 else TrainingError
        raise kind(f"the processes ended with exit code {code}; what they printed says why")
    folder = Path(options.get("resume") or options["out"])
    attention = load_attention(options.get("attention"))
    model, tokenizer = load(folder, attention=attention, checkpoint="last")
    state = read_state(find_checkpoint(folder, "last", WEIGHTS))
    loss = None if stopped else exact_loss(folder)
    return Run(folder, model, tokenizer, loss, state.step, state.seconds, stopped)


def _new_folder(stack: ExitStack, model: ModelSettings) -> Path:
    """A folder with a name that no other run has; made at once, and gone in the end if nothing is in it."""
    kind = "random" if model.random_config else model.variant
    name = f"runs/{kind}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        folder = Path(name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    stack.callback(_remove_if_empty, folder)
    return folder


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _place(stack: ExitStack, settings: RunSettings, resume: str | Path | None) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint that the training goes on from."""
    asked = resume or settings.training.out
    run = Path(asked or processes.on_the_first(partial(_new_folder, stack, settings.model)))

    def checkpoint() -> Path | None:
        if resume is not None or _is_of_this_job(run):
            # First, because another process that trains there would delete the checkpoint that is read here.
            stack.enter_context(locked_folder(run))
            return find_checkpoint(run, "last")
        if checkpoints_of(run):
            raise InputError(f"{run} already holds a run; go on with --resume {run}, or choose another --out")
        return None

    return run, processes.on_the_first(checkpoint)


def _is_of_this_job(run: Path) -> bool:
    """Whether torchrun began this run, lost a process, and has started all of them anew."""
    began = run / JOB
    return processes.job() != "" and began.exists() and began.read_text(encoding="utf-8") == processes.job()


class _Start(NamedTuple):
    """What a training begins with: the mechanism, the model, its tokenizer and sizes, as far as they are there already,
    and what it reads."""

    attention: Mechanism | None
    model: GPT2 | None
    tokenizer: Tokenizer | None
    config: GPT2Config | None
    data: DataSettings


def _start(run: Path, checkpoint: Path | None, settings: RunSettings, options: Mapping[str, Any]) -> _Start:
    """Look up what there is: nothing, a checkpoint, or the model of another run."""
    attention, data = load_attention(settings.model.attention), settings.data
    if checkpoint is not None:
        return _Start(attention, None, load_tokenizer(run / TOKENIZER), read_config(checkpoint), data)
    if settings.init_from is None:
        return _Start(attention, None, None, None, data)
    model, tokenizer = load(settings.init_from, attention=attention)
    refuse_another_model("--init-from", options, ModelSettings.describing(model.config, settings.model.attention))
    refuse_another_tokenizer("--init-from", options, tokenizer)
    if checkpoints_of(Path(settings.init_from)):  # else it is a saved model, which knows of no settings
        learned = RunSettings.read(Path(settings.init_from) / "config.yaml").data
        data = replace(data, tokenizer=learned.tokenizer, vocab_size=learned.vocab_size)
    return _Start(attention, model, tokenizer, model.config, data)


def _set_up(
    run: Path, checkpoint: Path | None, settings: RunSettings, options: Mapping[str, Any], console: Console
) -> tuple[Trainer, Text, RunSettings]:
    """Everything that a training needs, or one that goes on from a checkpoint; and the settings that repeat it."""
    model, training = settings.model, replace(settings.training, out=run)
    start = processes.in_all(partial(_start, run, checkpoint, settings, options))
    attention, network, tokenizer, config, data = start
    with console.status("reading the text"):
        text = processes.first_then_others(partial(open_text, data, tokenizer))
    processes.check_alike({"the SHA-256 of the text": text.corpus.sha256})
    console.print(text.describe())
    if config is None:
        config = model.config(text.tokenizer.vocab_size)
        if model.random_config:
            drawn = {name: getattr(config, name) for name in random_architecture(0, config.max_seq_len)}
            repeats = f"--random-seed {model.random_seed} repeats it"
            console.print(f"random configuration ({repeats}): {drawn}")
    described = ModelSettings.describing(config, model.attention, model.variant)
    if network is None:
        # Under FSDP a model gets its weights in shards, and never has to fit into one process.
        deferred = training.parallel == "fsdp" and attention is None and processes.num_processes() > 1
        with torch.device("meta") if deferred else nullcontext():
            network = GPT2.from_config(config, attention=attention, seed=training.seed)
    if model.random_config and training.max_steps is None and training.max_epochs is None:
        training = replace(training, max_steps=_affordable_steps(network, training))
    parts: list[Split] = ["train", "validation"] if data.validation_fraction > 0 else ["train"]
    context = config.max_seq_len
    with shown(plain_console(stderr=True, quiet=console.quiet)) as encoding:
        datasets = processes.first_then_others(lambda: {p: text.dataset(p, context, encoding) for p in parts})
    trainer = Trainer(network, datasets["train"], datasets.get("validation"), training, console=console)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        if (step := trainer.state.step) > trainer.steps:
            raise InputError(f"{run} is at step {step} already; --max-steps with a larger number goes on")
        if step == trainer.steps:
            console.print(
                f"{run} is at step {step} already: what follows the last step is done again (--max-steps with a larger "
                "number goes on)"
            )
    training = trainer.config = replace(training, threads=_threads(trainer, options, checkpoint is not None, console))
    # What "auto" came to here is part of the run, so that going on with it computes the same.
    precise, compiled = trainer.precision == torch.bfloat16, trainer.compiled
    training = replace(training, precision="bfloat16" if precise else "float32", compile="yes" if compiled else "no")
    data = replace(data, text_sha256=text.corpus.sha256, documents=text.documents)
    return trainer, text, RunSettings(data, described, training, settings.init_from)


def _threads(trainer: Trainer, options: Mapping[str, Any], goes_on: bool, console: Console) -> int | None:
    """CPU threads of a run: as asked; as it began; as OMP_NUM_THREADS says; or those that make its steps fastest.

    They are a part of the run, since sums are added up in another order by another number of them. Several processes
    get theirs from what starts them.
    """
    asked: int | None = options.get("threads")
    if asked is not None or trainer.device.type != "cpu" or processes.num_processes() > 1:
        return asked
    if trainer.config.threads is not None or goes_on:
        return trainer.config.threads
    if "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() == 1:
        return torch.get_num_threads()
    with console.status("measuring how many threads are worth it"):
        batch = next(trainer.batches())
        seconds = choose_threads(partial(trainer.rehearse, batch))
    chosen, *others = (f"{1000 * each:.0f} ms with {n}" for n, each in seconds.items())
    console.print(f"threads: a step takes {chosen}, {', '.join(others)} (--threads decides)")
    return next(iter(seconds))


def _affordable_steps(model: GPT2, training: TrainerConfig) -> int:
    windows = training.batch_size * training.accumulation_steps
    per_step = 3 * model.flops_per_token() * model.config.max_seq_len * windows
    return max(20, min(2000, int(RANDOM_CONFIG_FLOPS / per_step)))


def _begin(stack: ExitStack, run: Path, settings: RunSettings, tokenizer: Tokenizer) -> None:
    """Take the run folder, and write what repeats the run."""
    stack.enter_context(locked_folder(run))
    sweep(run)
    clear_remains(run)
    _describe(run, settings, tokenizer)
    if name := processes.job():
        (run / JOB).write_text(name, encoding="utf-8")


def _describe(run: Path, settings: RunSettings, tokenizer: Tokenizer) -> None:
    """Write what repeats the run."""
    replace_files(run, {"config.yaml": settings.to_yaml(), TOKENIZER: tokenizer.save})


def _samples(trainer: Trainer, tokenizer: Tokenizer) -> str:
    """Some text; every process has to take part."""
    first, _ = trainer.train_dataset[0]
    with warnings.catch_warnings(action="ignore"):  # that the context fills up is no news here
        step = common_step([trainer.model], compiling=False)
        ids = generate(trainer.model, first[None, :1], 500, step=step, temperature=0.8, seed=0)
    return tokenizer.decode(ids[0].tolist())


def _finish(run: Path, result: TrainingResult, samples: str | None) -> None:
    """Keep the samples, and draw the losses, which may fail: it is only a picture."""
    if samples is not None:
        with atomic_write(run / "samples.txt") as file:
            file.write(f"step {result.step}, temperature 0.8:\n{samples}\n".encode())
    try:
        plot_losses({run.name: read_metrics(run / "metrics.jsonl")}, run / "loss.svg")
    except Exception as error:  # of a library, and of any kind
        warnings.warn(f"{run / 'loss.svg'} could not be drawn ({error}); everything else is there", stacklevel=2)


def ended(run: Run, attention: str | type | None = None) -> str:
    """What is said of a training that has ended: where it is, and what to type next."""
    again = _again(run.folder, attention)
    if run.stopped_by is not None:
        saved = (
            f"saved; go on with: gpt2lab train --resume {again}" if run.steps else "before there was anything to save"
        )
        return f"stopped at step {run.steps}, {saved}"
    loss = "" if run.loss is None else f" · validation loss {run.loss:.4f} nats/token"
    return (
        f"done: {run.steps} steps in {run.seconds:.0f} s{loss}\n"
        f"  run folder  {run.folder}\n"
        f"  loss curve  {run.folder / 'loss.svg'}\n"
        f"  samples     {run.folder / 'samples.txt'}\n"
        f"next: gpt2lab evaluate {again} · gpt2lab generate {again}"
    )


def _left(run: Path, attention: str | type | None) -> str:
    """What a training leaves that is ended at once, and how it goes on."""
    if not (found := checkpoints_of(run)):
        return f"{run} has no checkpoint yet, so nothing can go on"
    return f"the last checkpoint is {found[-1]}; gpt2lab train --resume {_again(run, attention)} goes on from it"


def _again(run: Path, attention: str | type | None) -> str:
    """A run as commands have to name it."""
    spec = spell_attention(attention)
    return shlex.quote(str(run)) + ("" if spec is None else f" --attention {shlex.quote(spec)}")
