"""The training loop."""

import dataclasses
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from gpt2lab.data import StatelessSampler, TokenDataset
from gpt2lab.errors import InputError, TrainingError
from gpt2lab.files import locked_folder
from gpt2lab.hardware import autocast, choose_device, peak_flops, peak_memory
from gpt2lab.model import GPT2, assert_causal
from gpt2lab.model.causality import positions_to_probe
from gpt2lab.runs.folder import TrainingState, checkpoints_of
from gpt2lab.runs.settings import TrainerConfig
from gpt2lab.training import distributed
from gpt2lab.training.checkpoint import CheckpointWriter, restore_training
from gpt2lab.training.choices import choose_compile, choose_precision
from gpt2lab.training.metrics import MetricsFile, ProgressDisplay, Record, Sink
from gpt2lab.training.optimizers import build_optimizers, learning_rate_scale
from gpt2lab.training.signals import Signals

Batch = tuple[Tensor, Tensor]

DEFAULT_STEPS = 2000


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended: steps done, the loss on the whole validation data (nats), the signal that stopped it."""

    step: int
    validation_loss: float | None
    stopped_by: signal.Signals | None = None


@dataclass
class Trainer:
    """Trains a model on windows of tokens; minGPT's trainer, grown up.

    Args:
        model: a GPT2; one without a vocabulary takes the data set's.
        train_dataset: items ``(x, y)``, two int64 tensors (T,), y shifted by one: TokenDataset, CharDataset, or others.
        test_dataset: measured every ``eval_every`` steps and at the end; or None.
        config: how to train.
        sinks: called with every record, for example a TensorBoard writer.
        console: where progress is shown.

    Raises:
        InputError: model and data do not fit each other.

    Example:
        >>> data = CharDataset("to be or not to be " * 50, block_size=25)
        >>> model = GPT2(data.vocab_size, 25, 64, 4, 256, 2)
        >>> Trainer(model, data, None, TrainerConfig(max_steps=100)).train()
    """

    model: GPT2
    train_dataset: Dataset[Batch]
    test_dataset: Dataset[Batch] | None = None
    config: TrainerConfig = field(default_factory=TrainerConfig)
    sinks: list[Sink] = field(default_factory=list)
    console: Console = field(default_factory=lambda: Console(soft_wrap=True))

    def __post_init__(self) -> None:
        model, config = self.model, self.config
        for dataset in (self.train_dataset, self.test_dataset):
            model.settle_vocabulary(getattr(dataset, "vocab_size", 0))
            context = getattr(dataset, "context_size", 0)
            if context > model.config.max_seq_len:
                raise InputError(
                    f"the data comes in windows of {context} tokens, but the model was made with "
                    f"max_seq_len={model.config.max_seq_len}; make both the same"
                )
        distributed.check_processes(config)
        self.device = choose_device(config.device)
        deferred = model.final_norm.weight.is_meta  # it gets its weights, and its room, in shards
        if not deferred:
            model.to(self.device)
            assert_causal(model, positions_to_probe(model.config.max_seq_len))
        self.steps = config.max_steps or DEFAULT_STEPS
        if config.max_steps is None and config.max_epochs is not None:
            windows = config.max_epochs * len(self.train_dataset)  # type: ignore[arg-type]
            self.steps = math.ceil(windows / (config.batch_size * config.accumulation_steps))
        self.state = TrainingState(step=0, tokens=0, seconds=0.0, validation_loss=None)
        self.precision = choose_precision(config.precision, self.device, model.config.embed_dim)
        (self.peak,) = distributed.summed(peak_flops(self.device, self.precision))
        windows = self.steps * config.batch_size * config.accumulation_steps
        work = 3 * model.flops_per_token() * model.config.max_seq_len * windows
        self.compiled, self.why_compiled = choose_compile(config.compile, self.device, work / self.peak)
        self.wrapped = distributed.wrap(model, config, self.device, self.precision)
        self.forward: Callable[[Tensor, Tensor], Tensor] = self.wrapped
        if self.compiled:
            self.forward = torch.compile(self.wrapped)
        self.optimizers = build_optimizers(
            model, config.optimizer, config.learning_rate, config.weight_decay, config.betas
        )
        self.writer = CheckpointWriter(model, config.keep, config.async_checkpoints, config.timeout)

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint folder: weights, optimisers, random generators and place in the data."""
        self.state = restore_training(checkpoint, self.model, self.optimizers)

    def describe(self) -> str:
        """One line on how it trains here."""
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        processes = f" · {n} processes, {self.config.parallel}" if (n := distributed.num_processes()) > 1 else ""
        return (
            f"{self.device}{threads}{processes} · {str(self.precision).removeprefix('torch.')} · "
            f"{'' if self.compiled else 'not '}compiled ({self.why_compiled}) · "
            f"{self.model.num_parameters():,} parameters"
        )

    def train(self) -> TrainingResult:
        """Run the remaining steps.

        The first Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and returns; SIGUSR1 saves one and goes on.

        Raises:
            InputError: the run folder holds a run already, or another process trains in it.
            TrainingError: too many steps in a row had gradients that are not finite, or a process was lost.
            OSError: the last checkpoint cannot be written.
        """
        config, run = self.config, Path(self.config.out) if self.config.out else None
        first = distributed.rank() == 0
        if self.state.step == 0:
            if run is not None and checkpoints_of(run):
                raise InputError(f"{run} already holds a run; restore() its last checkpoint, or choose another folder")
            torch.manual_seed(config.seed + distributed.rank())
        if first:
            self.console.print(self.describe(), highlight=False)
        sinks = [*self.sinks]
        batches = self.batches()
        self.losses = [torch.tensor(loss, device=self.device) for loss in self.state.losses]
        self.last_told = time.perf_counter(), self.state.tokens
        started = time.perf_counter() - self.state.seconds
        begun, stop, skips = self.state.step, 0, 0
        with ExitStack() as stack:
            if run is not None:
                distributed.on_the_first(partial(stack.enter_context, locked_folder(run)))
            stack.enter_context(distributed.naming_lost_processes())
            if first and run is not None:
                sinks.append(stack.enter_context(MetricsFile(run / "metrics.jsonl", self.state.step)))
            if first:
                sinks.append(stack.enter_context(ProgressDisplay(self.steps, self.state.step, self.console)))
            self.model.train()
            signals = stack.enter_context(Signals())
            while self.state.step < self.steps and not stop:
                skipped_before = self.state.skipped
                self._advance(batches, started)
                skips = skips + 1 if self.state.skipped > skipped_before else 0
                step, hopeless = self.state.step, skips == config.max_skips
                if step < self.steps and (hopeless or self.state.validation_loss is not None or step % 10 == 0):
                    self._tell(sinks)
                if hopeless:
                    raise TrainingError(_why_hopeless(skips, step, run))
                stop, save = distributed.highest(signals.stop, signals.save)
                signals.save = False
                if run is not None and (stop or save or self._is_due(step)):
                    self._save(run, last=stop > 0 or step == self.steps)
            signals.give_back(signal.SIGINT, signal.SIGTERM)  # all is saved, and what follows may be interrupted
            exact = None
            if begun < self.state.step == self.steps:
                exact = self._measured()
                self._tell(sinks, exact)
        self.model.eval()
        return TrainingResult(self.state.step, exact, signal.Signals(stop) if stop else None)

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint is written after that step."""
        return self.config.out is not None and (step == self.steps or at(self.config.checkpoint_every, step))

    def _advance(self, batches: Iterator[Batch], started: float) -> None:
        """One step, and what is measured after it."""
        loss, tokens = self.update(batches)
        if loss is not None:
            self.losses.append(loss)
        step, estimate = self.state.step + 1, None
        due = step == self.steps or self._is_due(step) or at(self.config.eval_every, step)
        if due:
            estimate = self._measured(self.config.eval_tokens)
        self.state = TrainingState(
            step=step,
            tokens=self.state.tokens + tokens,
            seconds=time.perf_counter() - started,
            validation_loss=estimate,
            skipped=self.state.skipped + (loss is None),
        )

    def _measured(self, max_tokens: int | None = None) -> float | None:
        """The validation loss, if there is any; this time is not that of training."""
        if self.test_dataset is None:
            return None
        begin = time.perf_counter()
        loss = self.validation_loss(max_tokens)
        since, tokens = self.last_told
        self.last_told = since + time.perf_counter() - begin, tokens
        return loss

    def _tell(self, sinks: list[Sink], exact: float | None = None) -> None:
        """Give the sinks a record of the steps since the last one."""
        since, tokens = self.last_told
        speed = (self.state.tokens - tokens) / (time.perf_counter() - since)
        record: Record = {
            "step": self.state.step,
            "tokens": self.state.tokens,
            "seconds": round(self.state.seconds, 3),
            "loss": fmean(distributed.averaged(self.losses)) if self.losses else math.nan,
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "tokens_per_second": speed,
            "peak_share": 3 * self.model.flops_per_token() * speed / self.peak,
            "peak_memory": peak_memory(self.device),
            "skipped": self.state.skipped,
        }
        if self.state.validation_loss is not None:
            record["validation_loss"] = self.state.validation_loss if exact is None else exact
            record["validation_is_estimate"] = exact is None
        for sink in sinks:
            sink(record)
        self.losses.clear()
        self.last_told = time.perf_counter(), self.state.tokens

    def _save(self, run: Path, last: bool) -> None:
        """Write a checkpoint; a failure is told, and ends the training only if there will be no other one."""
        state = dataclasses.replace(self.state, losses=distributed.averaged(self.losses))
        try:
            self.writer.wait()  # for the one before
        except OSError as error:
            self._tell_failure(error)
        try:
            self.writer.save(run, self.optimizers, state)
            if last:
                self.writer.wait()
        except OSError as error:
            if last:
                raise
            self._tell_failure(error)

    def _tell_failure(self, error: OSError) -> None:
        if distributed.rank() == 0:
            told = f"a checkpoint could not be written ({error}); the training goes on, and the next one is tried"
            self.console.print(told, highlight=False)

    def update(self, batches: Iterator[Batch]) -> tuple[Tensor | None, int]:
        """One optimiser step on the next batches.

        Returns:
            their mean loss, nats per token (a detached scalar; of several processes, the mean over them is meant), or
            None if the step was skipped because its gradients are not finite; and the number of tokens in all.
        """
        config = self.config
        parts = [next(batches) for _ in range(config.accumulation_steps)]  # (B / processes, T) each
        counted = [int((y >= 0).sum()) for _, y in parts]
        (counted_by_all,) = distributed.summed(sum(counted))
        total = torch.zeros((), device=self.device)
        for index, (x, y) in enumerate(parts):
            last = index + 1 == len(parts)  # only then do gradients travel
            ddp = self.wrapped if isinstance(self.wrapped, DistributedDataParallel) else None
            with nullcontext() if last or ddp is None else ddp.no_sync():
                with autocast(self.device, self.precision):
                    loss = self.forward(x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True))
                # Gradients get averaged over the processes, and tokens are what counts.
                loss = loss * (counted[index] * distributed.num_processes() / max(1, counted_by_all))
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        tokens = sum(y.numel() for _, y in parts) * distributed.num_processes()
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
        if not distributed.gathered(norm).isfinite():
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            return None, tokens
        if config.grad_norm_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.grad_norm_clip, norm)
        whole = self.steps * tokens
        scale = learning_rate_scale(
            config.schedule,
            self.state.tokens + tokens,
            config.warmup_steps * tokens if config.warmup_tokens is None else config.warmup_tokens,
            whole if config.final_tokens is None else config.final_tokens,
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * scale
            optimizer.step()
            optimizer.zero_grad()
        return total, tokens

    @torch.no_grad()
    def validation_loss(self, max_tokens: int | None = None) -> float:
        """Mean loss over the test data, each token predicted once, nats.

        Args:
            max_tokens: None: the whole data, else an estimate from that many tokens, spread evenly (but always the
                whole of a data set that is not a TokenDataset).
        """
        dataset = self.test_dataset
        if dataset is None:
            raise InputError("this trainer has no test data")
        if isinstance(dataset, TokenDataset):
            batches: Iterable[Batch] = dataset.tiles(max_tokens)
        else:
            batches = DataLoader(
                dataset,
                self.config.batch_size,
                num_workers=self.config.num_workers,
                generator=torch.Generator(),  # or it would draw from the one that dropout uses
            )
        training = self.model.training
        self.model.eval()
        total, counted = 0.0, 0
        for x, y in itertools.starmap(distributed.own_rows, batches):
            with autocast(self.device, self.precision):
                loss = self.model(x.to(self.device), y.to(self.device))
            if targets := int((y >= 0).sum()):
                total, counted = total + loss.item() * targets, counted + targets
        self.model.train(training)
        total, everything = distributed.summed(total, counted)
        return total / everything

    def batches(self) -> Iterator[Batch]:
        """Training batches from the current step on; of each, this process's rows."""
        config, dataset = self.config, self.train_dataset
        items = len(dataset)  # type: ignore[arg-type]
        first = self.state.step * config.accumulation_steps
        every = StatelessSampler(items, config.batch_size, config.seed, start_step=first)
        sampler = (indices[distributed.rank() :: distributed.num_processes()] for indices in every)
        if isinstance(dataset, TokenDataset):  # gathers a whole batch at once, faster than a worker could send it
            return map(dataset.__getitems__, sampler)
        return iter(
            DataLoader(dataset, batch_sampler=sampler, num_workers=config.num_workers, generator=torch.Generator())
        )


def at(every: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


def _why_hopeless(skips: int, step: int, run: Path | None) -> str:
    told = f"the gradients of the last {skips} steps, up to step {step}, were not finite; "
    if run is None or not checkpoints_of(run):
        return told + "lower the learning rate"
    return told + (
        f"the last good checkpoint is {checkpoints_of(run)[-1]}, and a lower rate goes on from the best one: "
        f"gpt2lab train --init-from {run} --learning-rate …"
    )
