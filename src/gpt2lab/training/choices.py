"""What a training uses of the machine: its precision, what computes a step, and whether that is compiled. Chosen once,
and printed."""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.hardware import compiler_available, multiplies_bfloat16, torch_threads
from gpt2lab.model import GPT2
from gpt2lab.model.arithmetic import foreign
from gpt2lab.model.fused import attends
from gpt2lab.native.library import TRAINS_ON, library
from gpt2lab.runs.settings import Compile, Precision, TrainerConfig

# Seconds of a run at a GPU's peak from which it is compiled: a guess, not measured yet. On CPUs compiling gains nothing
# that we could measure (docs/recipe.md), so there it is only done when asked for.
COMPILE_PAYS_SECONDS = 100.0

# A measurement of steps with several numbers of threads ends when three rounds alone would choose the same number, or
# after so many rounds or seconds.
AGREEING, ROUNDS, SECONDS = 3, 5, 3.0
WORTH = 0.9  # more threads have to save a tenth of the time


def choose_threads(step: Callable[[], object]) -> dict[int, float]:
    """Measure a step with all threads, with half of them, and with one, in turn.

    Args:
        step: does what the run's own steps do, and leaves no trace.

    Returns:
        Seconds of a step (their median) by number of threads: the one to choose first.
    """
    most = torch.get_num_threads()
    numbers = sorted({1, max(1, most // 2), most})
    rounds: list[dict[int, float]] = []
    begun = time.perf_counter()
    for number in range(1 + ROUNDS):
        taken = {}
        for threads in numbers:
            with torch_threads(threads):
                started = time.perf_counter()
                step()
                taken[threads] = time.perf_counter() - started
        if number == 0:  # it takes memory, and starts the threads
            continue
        rounds.append(taken)
        agreed = len(rounds) >= AGREEING and len({_worth_it(one) for one in rounds}) == 1
        if agreed or time.perf_counter() - begun > SECONDS:
            break
    medians = {threads: statistics.median(one[threads] for one in rounds) for threads in numbers}
    chosen = _worth_it(medians)
    return {chosen: medians[chosen]} | medians


def _worth_it(seconds: dict[int, float]) -> int:
    """The number of threads to take, from the seconds of a step with each."""
    chosen = 1
    for threads, taken in seconds.items():
        if taken < WORTH * seconds[chosen]:
            chosen = threads
    return chosen


def choose_precision(name: Precision, device: torch.device, embed_dim: int) -> torch.dtype:
    """``"auto"``: bfloat16 where the hardware multiplies it faster and the matrices are wide enough to gain by it."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = device.type == "cpu" and multiplies_bfloat16()
    return torch.bfloat16 if fast and embed_dim >= 256 else torch.float32


def choose_compile(name: Compile, device: torch.device, seconds_at_peak: float) -> tuple[bool, str]:
    """Whether to compile the model, and why (not).

    Args:
        name: "yes", "no", or "auto": on CUDA, if the run is long enough to earn back the compile time.
        device: where it runs.
        seconds_at_peak: the run's matrix products divided by the machine's peak.
    """
    if name == "no":
        return False, "as asked"
    if name == "auto" and device.type != "cuda":
        return False, f"on {device.type} it rarely pays; --compile yes tries"
    if name == "auto" and seconds_at_peak < COMPILE_PAYS_SECONDS:
        return False, "too short a run to earn it back"
    if not compiler_available(device):
        return False, "no compiler is there: g++ and Python's headers on a CPU, Triton on CUDA"
    return True, "as asked" if name == "yes" else "a long run"


def choose_step(config: TrainerConfig, model: GPT2, precision: torch.dtype, compiled: bool) -> tuple[bool, str]:
    """Whether the native step trains, and why (not). Its library is built first, if it is not there yet.

    Raises:
        InputError: ``step="native"``, and it cannot.
    """
    if config.step == "eager":
        return False, "as asked"
    why = _why_eager(config, model, precision, compiled)
    if why is None:
        try:
            library("training").wait()
        except InputError as error:
            why = str(error)
    if why is not None and config.step == "native":
        raise InputError(f"the native step cannot train here: {why}; --step auto takes the eager step then")
    return why is None, "as asked" if config.step == "native" else why or "faster"


def why_not_bfloat16(config: GPT2Config, start_window: int | None = None) -> str | None:
    """Why the native step does not train such a model in bfloat16, or None."""
    if not multiplies_bfloat16():
        return "in bfloat16 without AMX"
    windows = [config.layer_window(layer) for layer in range(config.num_layers)]
    if start_window is not None:
        windows.append(start_window)
    if not all(attends(config, window, config.max_seq_len) for window in windows):
        return "in bfloat16, with torch's own attention"
    return None


def _why_eager(config: TrainerConfig, model: GPT2, precision: torch.dtype, compiled: bool) -> str | None:
    if model.device.type != "cpu":
        return f"on {model.device.type}"
    if sys.platform != TRAINS_ON:
        return "the native one has only been tried on Linux"
    if precision == torch.bfloat16 and (why := why_not_bfloat16(model.config, config.start_window)):
        return why
    for what, asked in {
        "compiled": compiled,
        "fsdp": config.parallel == "fsdp",
        "activation checkpointing": config.activation_checkpointing,
    }.items():
        if asked:
            return what
    return foreign(model)
