"""The training loop."""

import dataclasses
import math
import operator
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, IterableDataset

from gpt2lab.errors import InputError, TrainingError
from gpt2lab.files import locked_folder
from gpt2lab.hardware import autocast, choose_device, peak_flops, peak_memory, products_in_bfloat16, torch_threads
from gpt2lab.model import GPT2, assert_causal
from gpt2lab.model.causality import assert_cached, positions_to_probe, try_to_learn
from gpt2lab.progress import counted
from gpt2lab.runs.folder import TrainingState, checkpoints_of, last_healthy
from gpt2lab.runs.records import Record, TrainingProgress
from gpt2lab.runs.settings import TrainerConfig
from gpt2lab.training.batches import Batch, Pair, training_batches, validation_batches
from gpt2lab.training.checkpoint import CheckpointWriter, restore_training
from gpt2lab.training.choices import choose_compile, choose_precision, choose_step
from gpt2lab.training.metrics import MetricsFile, Sink
from gpt2lab.training.optimizers import build_optimizers, learning_rate_scale
from gpt2lab.training.processes import (
    averaged,
    highest,
    naming_lost_processes,
    num_processes,
    on_the_first,
    rank,
    summed,
)
from gpt2lab.training.randomness import drawing, seed_generators
from gpt2lab.training.sharding import as_shard, check_processes, gathered, wrap
from gpt2lab.training.signals import Signals
from gpt2lab.training.surroundings import Surroundings

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_STEPS = 2000
RECORD_EVERY = 10
EXPLODED = 3.0  # times the loss of guessing
WINDOW_STAGES = 8  # in which the window of a training becomes the model's own
PATIENCE = 3  # records of slow steps before it is told: one pause says nothing


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
        sinks: called with every record, in every process; for example a TensorBoard writer.
        console: the terminal; None: standard output.
        progress: called in the first process with all that there is to tell; None: it is shown in the terminal.

    Raises:
        InputError: model and data do not fit each other.

    Examples:
        >>> data = CharDataset("to be or not to be " * 50, block_size=25)
        >>> model = GPT2(data.vocab_size, 25, 64, 4, 256, 2)
        >>> Trainer(model, data, None, TrainerConfig(max_steps=100)).train()
    """

    model: GPT2
    train_dataset: Dataset[Pair]
    test_dataset: Dataset[Pair] | None = None
    config: TrainerConfig = field(default_factory=TrainerConfig)
    sinks: list[Sink] = field(default_factory=list)
    console: "Console | None" = None
    progress: Callable[[TrainingProgress], None] | None = None

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
        _check_trainable(model, self.train_dataset, self.test_dataset)
        if config.start_window is not None and model.mechanism_class is not None:
            raise InputError(
                "start_window changes the windows of built-in attention, and this model has one of your own"
            )
        self.device = choose_device(config.device)
        check_processes(config, self.device)
        self.idle: list[str] = []  # parameters that get no gradient
        deferred = model.final_norm.weight.is_meta  # it gets its weights, and its room, in shards
        if not deferred:
            model.to(self.device)
            assert_causal(model, positions_to_probe(model.config.max_seq_len))
            if model.mechanism_class is not None:
                assert_cached(model)
                self.idle = try_to_learn(model)
        self.steps = config.max_steps or DEFAULT_STEPS
        if config.max_steps is None and config.max_epochs is not None:
            windows = config.max_epochs * len(self.train_dataset)  # type: ignore[arg-type]
            self.steps = math.ceil(windows / (config.batch_size * config.accumulation_steps))
        self.precision = choose_precision(config.precision, self.device, model.config.embed_dim)
        (self.peak,) = summed(peak_flops(self.device, self.precision))
        windows = self.steps * config.batch_size * config.accumulation_steps
        work = 3 * model.flops_per_token() * model.config.max_seq_len * windows
        self.compiled, self.why_compiled = choose_compile(config.compile, self.device, work / self.peak)
        self._choose_step()
        self.wrapped = wrap(model, config, self.device, self.precision, idle=bool(self.idle))
        self.forward: Callable[..., Tensor] = torch.compile(self.wrapped) if self.compiled else self.wrapped
        if model.mechanism_class is not None and num_processes() > 1:  # the wrapper's backward pass, too
            ids = torch.zeros(1, model.config.max_seq_len, dtype=torch.int64, device=self.device)
            self.rehearse(Batch(ids, ids, ids.numel()))
        self.optimizers = build_optimizers(
            model, config.optimizer, config.learning_rate, config.weight_decay, config.betas
        )
        self.writer = CheckpointWriter(model, config.keep, config.async_checkpoints, config.timeout)
        self.state = TrainingState(step=0, tokens=0, seconds=0.0, validation_loss=None)
        self.unread: list[Tensor | None] = []  # what update() returned for the steps that nobody has looked at yet
        self.skips = 0  # steps in a row that were skipped up to the last look
        self.recent = 0.0  # the last loss that was seen, of the validation data or of the steps since the last look
        self.ended = False  # whether what follows the last step is done
        self.fastest, self.slow = math.inf, 0  # seconds of a step; how many records in a row were three times slower

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint folder: weights, optimisers, random generators and place in the data."""
        self.state = restore_training(checkpoint, self.model, self.optimizers)
        self.unread.clear()
        self.skips, self.ended = 0, False
        if step := self.state.step:
            tokens = self.state.tokens // step
            self._set_learning_rate(tokens, before=self.state.tokens - tokens)

    def describe(self) -> str:
        """One line on how it trains here."""
        threads = f", {counted(torch.get_num_threads(), 'thread')}" if self.device.type == "cpu" else ""
        processes = f" · {n} processes, {self.config.parallel}" if (n := num_processes()) > 1 else ""
        return (
            f"{self.device}{threads}{processes} · {str(self.precision).removeprefix('torch.')} · "
            f"{'' if self.compiled else 'not '}compiled ({self.why_compiled}) · "
            f"{'native' if self.native else 'eager'} step ({self.why_native}) · "
            f"{self.model.num_parameters():,} parameters"
        )

    def rehearse(self, batch: Batch) -> None:
        """Compute the gradients of a batch as a step does, and leave no trace of it."""
        before = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.model.train()
        with drawing(0), self._natively():
            with self._autocast():
                loss = self.wrapped(batch.x, batch.y, reduction="sum")
            loss.backward()
        self.model.zero_grad()
        for buffer, values in before:
            buffer.copy_(values)

    def train(self) -> TrainingResult:
        """Run the remaining steps.

        The first Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and returns; SIGUSR1 saves one and goes on.

        Raises:
            InputError: the run folder holds a run already, or another process trains in it.
            TrainingError: too many steps in a row had gradients that are not finite, or a process or the run folder was
                lost.
            OSError: the last checkpoint cannot be written.
        """
        config, run = self.config, Path(self.config.out) if self.config.out else None
        eval_every, eval_tokens = config.estimates(self.steps, self.model.config.max_seq_len)
        eval_every = 0 if self.test_dataset is None else eval_every
        stop = 0
        self._choose_step()  # the model may have got a hook since, which the native one would not call
        if self.state.step == 0:
            if run is not None and checkpoints_of(run):
                raise InputError(f"{run} already holds a run; restore() its last checkpoint, or choose another folder")
            seed_generators(config.seed + rank())
        with ExitStack() as stack:
            if config.threads is not None:
                stack.enter_context(torch_threads(config.threads))
            if run is not None:
                on_the_first(partial(stack.enter_context, locked_folder(run)))
            surroundings = Surroundings(run, self.train_dataset, self.test_dataset) if rank() == 0 else None
            stack.enter_context(naming_lost_processes())
            signals = stack.enter_context(Signals())
            self.started = time.perf_counter() - self.state.seconds
            self.last_told = time.perf_counter(), self.state.tokens
            sinks = self._listeners(stack, run)
            batches = self.batches()
            self.model.train()
            while self.state.step < self.steps and not stop:
                loss, tokens = self.update(batches)
                self.unread.append(loss)
                self.ended = False
                step, tokens = self.state.step + 1, self.state.tokens + tokens
                self.state = dataclasses.replace(self.state, step=step, tokens=tokens, validation_loss=None)
                saves = run is not None and (step == self.steps or at(config.checkpoint_every, step))
                measures = saves or step == self.steps or at(eval_every, step)
                looks = measures or at(RECORD_EVERY, step)
                wrong: list[TrainingError] = []
                if looks:
                    self._look(eval_tokens if measures else None)
                    self._report(sinks)
                    wrong = on_the_first(partial(surroundings.wrong, step, measures) if surroundings else list)
                stop, save = highest(signals.stop, signals.save)
                signals.save = False
                if run is not None and (stop or save or saves or wrong):
                    self._save(run, last=stop > 0 or bool(wrong) or step == self.steps)
                if wrong:
                    raise wrong[0]
            signals.give_back(*signals.STOPPING)  # all is saved, and what follows may be interrupted
            exact = None
            if self.state.step == self.steps and not self.ended:
                exact = self._measured()
                self._tell(sinks, exact)
                self.ended = True
        self.model.eval()
        return TrainingResult(self.state.step, exact, signal.Signals(stop) if stop else None)

    def _listeners(self, stack: ExitStack, run: Path | None) -> list[Sink]:
        """All that records go to, until the stack is left; the description is told first."""
        self.show: Callable[[TrainingProgress], None] = lambda progress: None
        if rank() > 0:
            return self.sinks
        if self.progress is not None:
            self.show = self.progress
        else:
            from gpt2lab.training.display import TerminalDisplay

            self.show = stack.enter_context(TerminalDisplay(self.console))
        self._say(self.describe())
        if self.precision == torch.bfloat16 and self.config.precision == "bfloat16" and num_processes() == 1:
            slower = peak_flops(self.device, torch.float32) / self.peak
            if slower > 2:
                self._say(
                    f"note: matrix products take {slower:.0f} times as long in bfloat16 as in float32 on this machine; "
                    "--precision float32 is faster"
                )
        if self.idle:
            more = f" and {len(self.idle) - 3} more" if len(self.idle) > 3 else ""
            self._say(f"note: {', '.join(self.idle[:3])}{more}: no gradient, so training leaves that as it is")
        files = []
        if run is not None:
            # The record of the last step is written again, since what it tells is measured again.
            kept = self.state.step - (self.state.step == self.steps and not self.ended)
            files = [stack.enter_context(MetricsFile(run / "metrics.jsonl", kept))]
            last = files[0].last  # without one, nothing was told since the beginning
            self.last_told = (self.started + last["seconds"], last["tokens"]) if last else (self.started, 0)
            if last and last["step"] == self.state.step:  # it has told these
                self.state = dataclasses.replace(self.state, losses=[])
        return [
            *self.sinks,
            *files,
            lambda record: self.show(TrainingProgress(self.state.step, self.steps, record=record)),
        ]

    def _report(self, sinks: list[Sink]) -> None:
        """Tell what the last look has seen, where that is due; and end a training that learns nothing any more."""
        step, hopeless = self.state.step, self.skips >= self.config.max_skips
        measured = self.state.validation_loss is not None
        if hopeless or (step < self.steps and (measured or at(RECORD_EVERY, step))):
            self._tell(sinks)
        if hopeless:
            raise TrainingError(_why_hopeless(self.skips, step, Path(self.config.out) if self.config.out else None))

    def _say(self, message: str) -> None:
        """Tell a sentence."""
        self.show(TrainingProgress(self.state.step, self.steps, message=message))

    def _look(self, eval_tokens: int | None = None) -> None:
        """See how the steps went since the last look, and what the model is worth now, if it is to be measured on so
        many tokens. The device is waited for."""
        losses = averaged([loss for loss in self.unread if loss is not None])
        if without := len(self.unread) - len(losses):
            self._say(
                f"up to step {self.state.step}, {without} of the last {len(self.unread)} steps had no targets: skipped"
            )
        for loss in losses:
            self.skips = self.skips + 1 if math.isnan(loss) else 0
        learned = [loss for loss in losses if not math.isnan(loss)]
        skipped = len(self.unread) - len(learned)
        self.unread.clear()
        measured = self._measured(eval_tokens) if eval_tokens else None
        if measured is not None:
            self.recent = measured
        elif learned:
            self.recent = fmean(learned)
        self.state = dataclasses.replace(
            self.state,
            losses=[*self.state.losses, *learned],
            skipped=self.state.skipped + skipped,
            validation_loss=self.state.validation_loss if measured is None else _finite(measured),
            seconds=time.perf_counter() - self.started,
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
        state = self.state
        since, tokens = self.last_told
        seconds = time.perf_counter() - since
        self._watch(seconds / max(1, len(state.losses)))
        speed = (state.tokens - tokens) / seconds
        record: Record = {
            "step": state.step,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 3),
            "loss": _finite(fmean(state.losses)) if state.losses else None,
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "tokens_per_second": speed,
            "peak_memory": peak_memory(self.device),
            "skipped": state.skipped,
        }
        reached = 3 * self.model.flops_per_token() * speed
        if reached > self.peak and num_processes() == 1:  # the machine was busy when its peak was measured
            peak_flops.cache_clear()
            self.peak = max(self.peak, peak_flops(self.device, self.precision))
        if reached <= self.peak:
            record["peak_share"] = reached / self.peak
        if exact is not None or state.validation_loss is not None:
            record["validation_loss"] = state.validation_loss if exact is None else _finite(exact)
            record["validation_is_estimate"] = exact is None
        for sink in sinks:
            sink(record)
        self.state = dataclasses.replace(state, losses=[])
        self.last_told = time.perf_counter(), state.tokens

    def _watch(self, seconds: float) -> None:
        """Tell once if steps, which take so many seconds each, have become much slower than they were."""
        if self.slow == PATIENCE:  # it was told
            return
        self.fastest = min(self.fastest, seconds)
        self.slow = self.slow + 1 if seconds > 3 * self.fastest else 0
        if self.slow == PATIENCE and self.device.type == "cpu":
            told = f"a step takes {seconds / self.fastest:.1f} times as long as at first: other programs are at work"
            if self.config.out and torch.get_num_threads() > 1:
                told += f"; Ctrl-C, and then gpt2lab train --resume {self.config.out} --threads 1, may be faster"
            self._say(told)

    def _save(self, run: Path, last: bool) -> None:
        """Write a checkpoint; a failure is told, and ends the training only if there will be no other one."""
        self._look()
        self.state = dataclasses.replace(self.state, healthy=self._is_healthy())
        try:
            self.writer.wait()  # for the one before
        except OSError as error:
            self._say_failure(error)
        try:
            self.writer.save(run, self.optimizers, self.state)
            if last:
                self.writer.wait()
        except OSError as error:
            if last:
                raise
            self._say_failure(error)

    def _is_healthy(self) -> bool:
        """Whether the weights are finite, and the loss is not far above that of guessing, ln V nats."""
        held = [
            tensor if (shard := as_shard(tensor)) is None else shard.to_local() for tensor in self.model.parameters()
        ]
        (infinite,) = highest(not all(bool(tensor.isfinite().all()) for tensor in held))
        return not infinite and self.recent <= EXPLODED * math.log(max(2, self.model.config.vocab_size))

    def _say_failure(self, error: OSError) -> None:
        self._say(f"a checkpoint could not be written ({error}); the training goes on, and the next one is tried")

    def update(self, batches: Iterator[Batch]) -> tuple[Tensor | None, int]:
        """One optimiser step on the next batches. The device is told what to do, and not waited for.

        Returns:
            their mean loss, nats per token (a detached scalar; of several processes, the mean over them is meant): NaN
            if the gradients are not finite, so that the step changes nothing; None if there are no targets at all, so
            that there is no step; and the number of tokens in all.
        """
        config = self.config
        parts = [next(batches) for _ in range(config.accumulation_steps)]
        tokens = sum(part.y.numel() for part in parts) * num_processes()
        (targets,) = summed(sum(part.targets for part in parts))
        if targets == 0:
            return None, tokens
        total = torch.zeros((), device=self.device)
        ddp = self.wrapped if isinstance(self.wrapped, DistributedDataParallel) else None
        with self._windows_of_step(), self._natively():
            for part in parts:
                with nullcontext() if ddp is None or part is parts[-1] else ddp.no_sync():  # gradients travel once
                    with self._autocast():
                        loss = self.forward(part.x, part.y, reduction="sum")
                    # A mean over all targets, of all parts and processes, whose gradients get averaged.
                    loss = loss / (targets / num_processes())
                    loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
        skip = ~gathered(norm).isfinite()
        if config.grad_norm_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.grad_norm_clip, norm)
        self._set_learning_rate(tokens, before=self.state.tokens)
        for optimizer in self.optimizers:
            optimizer.found_inf = skip.float()
            optimizer.step()
            optimizer.zero_grad()
        return total.masked_fill(skip.to(total.device), math.nan), tokens

    def _choose_step(self) -> None:
        self.native, self.why_native = choose_step(self.config, self.model, self.precision, self.compiled)

    @contextmanager
    def _natively(self) -> Iterator[None]:
        """The model trains with the native step meanwhile, if that was chosen; whoever else calls it finds it eager."""
        self.model.native = self.native
        try:
            with products_in_bfloat16(self.native and self.precision == torch.bfloat16):
                yield
        finally:
            self.model.native = False

    def _autocast(self) -> torch.autocast:
        """For the forward pass; the native step has its own way to bfloat16, in :meth:`_natively`."""
        return autocast(self.device, torch.float32 if self.native else self.precision)

    @contextmanager
    def _windows_of_step(self) -> Iterator[None]:
        """The windows of this step, on a geometric way from ``start_window`` to the model's own; then its own again."""
        start, context = self.config.start_window, self.model.config.max_seq_len
        stage = 2 * WINDOW_STAGES * self.state.step // self.steps / WINDOW_STAGES
        if start is None or stage >= 1:
            yield
            return
        mechanisms = [block.attention.mechanism for block in self.model.blocks]
        own = [mechanism.window for mechanism in mechanisms]
        try:
            for mechanism, window in zip(mechanisms, own, strict=True):
                mechanism.window = round(start ** (1 - stage) * (window or context) ** stage)
            yield
        finally:
            for mechanism, window in zip(mechanisms, own, strict=True):
                mechanism.window = window

    def _set_learning_rate(self, tokens: int, before: int) -> None:
        """Set the rate of the step that reads so many tokens, as every step does, after those before."""
        config = self.config
        warmup = config.warmup_steps * tokens if config.warmup_tokens is None else config.warmup_tokens
        final = self.steps * tokens if config.final_tokens is None else config.final_tokens
        rate = config.learning_rate * learning_rate_scale(config.schedule, before + tokens, warmup, final)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    @torch.no_grad()
    def validation_loss(self, max_tokens: int | None = None) -> float:
        """Mean loss over the test data, each token predicted once, nats.

        Args:
            max_tokens: None: the whole data, else an estimate from that many tokens, spread evenly (but always the
                whole of a data set that is not a TokenDataset).

        Raises:
            InputError: there is no test data, or nothing in it is a target.
        """
        dataset = self.test_dataset
        if dataset is None:
            raise InputError("this trainer has no test data")
        losses: list[Tensor] = []
        counts: list[int] = []
        with self.model.evaluating():
            vocab_size = self.model.config.vocab_size
            for x, y, targets in validation_batches(dataset, self.config, self.device, max_tokens, vocab_size):
                with autocast(self.device, self.precision):
                    loss = self.model(x, y)
                if targets:
                    losses.append(loss)
                    counts.append(targets)
        found = torch.stack(losses).tolist() if losses else []
        total, everything = summed(sum(map(operator.mul, found, counts)), sum(counts))
        if everything == 0:
            raise InputError("the test data has no targets: every y in it is -100; leave it out, or give it some")
        return total / everything

    def batches(self) -> Iterator[Batch]:
        """Training batches from the current step on, without end; of each, this process's rows."""
        return training_batches(
            self.train_dataset, self.config, self.device, self.state.step, self.model.config.vocab_size
        )


def _check_trainable(model: GPT2, *datasets: Dataset[Pair] | None) -> None:
    """Refuse what would be trained in vain, or not at all."""
    if any(isinstance(data, IterableDataset) or not hasattr(data, "__len__") for data in datasets if data is not None):
        raise InputError(
            "the data set has no length, so its items cannot be shuffled, and a run could not go on where it was; "
            "give one with __len__ and __getitem__ (list(dataset) is one)"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"the parameter {name} is {parameter.dtype}, too coarse for small steps, so that most of them would "
                'change nothing; call model.float() first (precision="bfloat16" computes in bfloat16 all the same)'
            )


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def at(every: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


def _why_hopeless(skips: int, step: int, run: Path | None) -> str:
    told = f"the gradients of the last {skips} steps, up to step {step}, were not finite; "
    good = None if run is None else last_healthy(checkpoints_of(run))
    if good is None:
        return told + "lower the learning rate"
    return told + (
        f"the last good checkpoint is {good}, and a lower rate goes on from the best one: "
        f"gpt2lab train --init-from {run} --learning-rate …"
    )
