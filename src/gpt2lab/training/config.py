"""How to train: the options and their checks."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from gpt2lab.errors import InputError
from gpt2lab.hardware import Compile, Precision
from gpt2lab.training.optimizers import OptimizerName, Schedule
from gpt2lab.training.sharding import Parallel


@dataclass
class TrainerConfig:
    """How to train. The defaults are what our own sweeps chose for two CPU cores (docs/recipe.md).

    Attributes:
        max_steps: optimiser steps; None: as many as max_epochs needs, or 2000.
        max_epochs: passes over all windows of the data (a window starts at every token), if max_steps is None.
        batch_size: windows per forward pass.
        accumulation_steps: forward passes per optimiser step.
        optimizer: "muon" for the matrices of the blocks (AdamW for the rest), or "adamw".
        learning_rate: the highest.
        schedule: "wsd" (constant, then straight down over the last half) or "cosine", both after a warm-up and to 10 %;
            or "constant", from the first step.
        warmup_steps: over which the learning rate rises.
        warmup_tokens: the same in tokens; if given, it counts instead of warmup_steps.
        final_tokens: where the schedule ends; None: with the run.
        weight_decay: of matrices only.
        betas: of AdamW.
        grad_norm_clip: longest gradient, all parameters together; 0: any.
        eval_every: steps between estimates of the validation loss; 0: only with checkpoints and at the end.
        eval_tokens: how many tokens of the validation data such an estimate reads (always the same ones); the last one
            of a run reads all.
        checkpoint_every: steps between checkpoints.
        keep: how many of the latest checkpoints stay; the best one always does.
        async_checkpoints: write them while training goes on.
        max_skips: a step whose gradients are not finite is skipped; after so many in a row the training gives up.
        precision: "float32", "bfloat16" (autocast), or "auto": bfloat16 where the hardware multiplies it faster.
        compile: "yes", "no", or "auto": on CUDA, when the run is long enough to earn back the compile time.
        device: "auto", "cpu", "cuda", "mps".
        parallel: what several processes do: "ddp" (each has the whole model) or "fsdp" (each keeps its share of the
            parameters, their gradients and what the optimiser remembers).
        activation_checkpointing: keep only the inputs of the blocks, and compute the rest again in the backward pass.
        cpu_offload: keep the shards of "fsdp" in main memory.
        timeout: seconds after which a process that does not answer is given up.
        num_workers: processes that load a data set which is not ours.
        seed: of the order of the data and of dropout.
        out: the run folder; None: nothing is written.
    """

    max_steps: int | None = None
    max_epochs: float | None = None
    batch_size: int = 16
    accumulation_steps: int = 1
    optimizer: OptimizerName = "muon"
    learning_rate: float = 8e-3
    schedule: Schedule = "wsd"
    warmup_steps: int = 10
    warmup_tokens: float | None = None
    final_tokens: float | None = None
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.8, 0.95)
    grad_norm_clip: float = 1.0
    eval_every: int = 250
    eval_tokens: int = 32_768
    checkpoint_every: int = 500
    keep: int = 2
    async_checkpoints: bool = False
    max_skips: int = 10
    precision: Precision = "auto"
    compile: Compile = "auto"
    device: str = "auto"
    parallel: Parallel = "ddp"
    activation_checkpointing: bool = False
    cpu_offload: bool = False
    timeout: float = 600.0
    num_workers: int = 0
    seed: int = 0
    out: str | Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**62:
            raise InputError(f"seed is {self.seed}; it has to be 0 or more and below 2^62")
        counts = {"batch_size": 1, "accumulation_steps": 1, "warmup_steps": 0, "eval_every": 0, "eval_tokens": 1}
        counts |= {"checkpoint_every": 0, "keep": 1, "max_skips": 1, "num_workers": 0}
        counts |= {} if self.max_steps is None else {"max_steps": 1}
        for name, least in counts.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)!r}; it has to be a whole number, {least} or more")
        for name in ("learning_rate", "max_epochs", "timeout"):
            if getattr(self, name) is not None and not (0 < getattr(self, name) < math.inf):
                raise InputError(f"{name} is {getattr(self, name)}; it has to be positive")
        for name in ("weight_decay", "grad_norm_clip", "warmup_tokens", "final_tokens"):
            if getattr(self, name) is not None and not (0 <= getattr(self, name) < math.inf):
                raise InputError(f"{name} is {getattr(self, name)}; it has to be 0 or more")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas is {self.betas}; it has to be two numbers of at least 0 and below 1")
        choices = {"optimizer": OptimizerName, "schedule": Schedule, "precision": Precision, "compile": Compile}
        choices["parallel"] = Parallel
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} is {getattr(self, name)!r}; it has to be one of {', '.join(get_args(kind))}")
