"""The training loop."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gpt2lab.config import InputError
from gpt2lab.data import StatelessSampler, TokenDataset
from gpt2lab.model import GPT2, assert_causal
from gpt2lab.training.checkpoint import TrainingState, checkpoints_of, restore_training, save_checkpoint
from gpt2lab.training.config import TrainerConfig
from gpt2lab.training.hardware import (
    autocast,
    choose_compile,
    choose_device,
    choose_precision,
    peak_flops,
    peak_memory,
)
from gpt2lab.training.metrics import MetricsFile, ProgressDisplay, Record, Sink
from gpt2lab.training.optimizers import build_optimizers, learning_rate_scale

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
        self.device = choose_device(config.device)
        model.to(self.device)
        self.steps = config.max_steps or DEFAULT_STEPS
        if config.max_steps is None and config.max_epochs is not None:
            windows = config.max_epochs * len(self.train_dataset)  # type: ignore[arg-type]
            self.steps = math.ceil(windows / (config.batch_size * config.accumulation_steps))
        self.optimizers = build_optimizers(
            model, config.optimizer, config.learning_rate, config.weight_decay, config.betas
        )
        self.state = TrainingState(step=0, tokens=0, seconds=0.0, validation_loss=None)
        self.precision = choose_precision(config.precision, self.device, model.config.embed_dim)
        self.peak = peak_flops(self.device, self.precision)
        windows = self.steps * config.batch_size * config.accumulation_steps
        work = 3 * model.flops_per_token() * model.config.max_seq_len * windows
        self.compiled, self.why_compiled = choose_compile(config.compile, self.device, work / self.peak)
        self.forward: Callable[[Tensor, Tensor], Tensor] = torch.compile(model) if self.compiled else model
        assert_causal(model, positions_to_probe(model.config.max_seq_len))

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint folder: weights, optimisers, random generators and place in the data."""
        self.state = restore_training(checkpoint, self.model, self.optimizers)

    def describe(self) -> str:
        """One line on how it trains here."""
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return (
            f"{self.device}{threads} · {str(self.precision).removeprefix('torch.')} · "
            f"{'' if self.compiled else 'not '}compiled ({self.why_compiled}) · "
            f"{self.model.num_parameters():,} parameters"
        )

    def train(self) -> TrainingResult:
        """Run the remaining steps.

        The first Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and returns.
        """
        model, config, run = self.model, self.config, Path(self.config.out) if self.config.out else None
        if self.state.step == 0:
            if run is not None and checkpoints_of(run):
                raise InputError(f"{run} already holds a run; restore() its last checkpoint, or choose another folder")
            torch.manual_seed(config.seed)
        self.console.print(self.describe(), highlight=False)
        sinks = [*self.sinks]
        batches = self.batches()
        started = time.perf_counter() - self.state.seconds
        last_time, last_tokens = time.perf_counter(), self.state.tokens
        stop: list[signal.Signals] = []
        losses: list[Tensor] = []
        exact: float | None = None
        saved = self.state.step
        with ExitStack() as stack:
            stack.enter_context(catch_signals(stop))
            if run is not None:
                sinks.append(stack.enter_context(MetricsFile(run / "metrics.jsonl", self.state.step)))
            sinks.append(stack.enter_context(ProgressDisplay(self.steps, self.state.step, self.console)))
            model.train()
            while self.state.step < self.steps and not stop:
                loss, tokens = self.update(batches)
                losses.append(loss)
                step = self.state.step + 1
                done = step == self.steps
                due = run is not None and (done or at(config.checkpoint_every, step))
                estimate = None
                if self.test_dataset is not None and (done or due or at(config.eval_every, step)):
                    paused = time.perf_counter()
                    estimate = self.validation_loss(config.eval_tokens)
                    exact = self.validation_loss() if done else None
                    last_time += time.perf_counter() - paused  # the speed is that of training
                self.state = TrainingState(
                    step=step,
                    tokens=self.state.tokens + tokens,
                    seconds=time.perf_counter() - started,
                    validation_loss=estimate,
                )
                if done or estimate is not None or step % 10 == 0 or stop:
                    mean = torch.stack(losses).mean().item()
                    speed = (self.state.tokens - last_tokens) / (time.perf_counter() - last_time)
                    record = self._record(mean, speed, estimate, exact)
                    for sink in sinks:
                        sink(record)
                    if not math.isfinite(mean):
                        raise InputError(
                            f"training diverged: the loss is {mean} at step {step}; lower the learning rate"
                        )
                    losses.clear()
                    last_time, last_tokens = time.perf_counter(), self.state.tokens
                if run is not None and (due or stop):
                    save_checkpoint(run, model, self.optimizers, self.state)
                    saved = step
            if run is not None and saved < self.state.step:  # stopped after the last look at the signals
                save_checkpoint(run, model, self.optimizers, self.state)
        model.eval()
        return TrainingResult(self.state.step, exact, stop[0] if stop else None)

    def _record(self, loss: float, speed: float, estimate: float | None, exact: float | None) -> Record:
        """What is told of a step: loss in nats per token, speed in tokens per second, validation if measured."""
        record: Record = {
            "step": self.state.step,
            "tokens": self.state.tokens,
            "seconds": round(self.state.seconds, 3),
            "loss": loss,
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "tokens_per_second": speed,
            "peak_share": 3 * self.model.flops_per_token() * speed / self.peak,
            "peak_memory": peak_memory(self.device),
        }
        if estimate is not None:
            record["validation_loss"] = estimate if exact is None else exact
            record["validation_is_estimate"] = exact is None
        return record

    def update(self, batches: Iterator[Batch]) -> tuple[Tensor, int]:
        """One optimiser step on the next batches; returns their mean loss (a detached scalar) and number of tokens."""
        config = self.config
        total = torch.zeros((), device=self.device)
        tokens = 0
        for _ in range(config.accumulation_steps):
            x, y = (part.to(self.device, non_blocking=True) for part in next(batches))  # (B, T) each
            with autocast(self.device, self.precision):
                loss = self.forward(x, y) / config.accumulation_steps
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            tokens += y.numel()
        if config.grad_norm_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_norm_clip)
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
        for x, y in batches:
            with autocast(self.device, self.precision):
                loss = self.model(x.to(self.device), y.to(self.device))
            targets = int((y >= 0).sum())
            total, counted = total + loss.item() * targets, counted + targets
        self.model.train(training)
        return total / counted

    def batches(self) -> Iterator[Batch]:
        """Training batches from the current step on."""
        config, dataset = self.config, self.train_dataset
        items = len(dataset)  # type: ignore[arg-type]
        first = self.state.step * config.accumulation_steps
        sampler = StatelessSampler(items, config.batch_size, config.seed, start_step=first)
        if isinstance(dataset, TokenDataset):  # gathers a whole batch at once, faster than a worker could send it
            return map(dataset.__getitems__, sampler)
        return iter(
            DataLoader(dataset, batch_sampler=sampler, num_workers=config.num_workers, generator=torch.Generator())
        )


def at(every: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


def positions_to_probe(length: int, most: int = 64) -> list[int]:
    """Positions of a context whose change is tried before training: all, or both ends and an even spread between."""
    if length <= most:
        return list(range(length))
    ends = most // 4
    spread = torch.linspace(ends, length - ends, most - 2 * ends).long().tolist()
    return sorted({*range(ends), *spread, *range(length - ends, length)})


@contextmanager
def catch_signals(received: list[signal.Signals]) -> Iterator[None]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one has its usual effect."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        for caught, handler in previous.items():
            signal.signal(caught, handler)

    for number in previous:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
