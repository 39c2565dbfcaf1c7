"""What the machine offers, and what of it a run uses: chosen at run time, by capability, and printed."""

import functools
import os
import platform
import re
import resource
import shutil
import sys
import sysconfig
import time
from pathlib import Path
from typing import Literal

import torch

from gpt2lab.errors import InputError

Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "yes", "no"]

# Seconds of a run at a GPU's peak from which it is compiled: a guess, not measured yet. On CPUs compiling gains nothing
# that we could measure (docs/recipe.md), so there it is only done when asked for.
COMPILE_PAYS_SECONDS = 100.0


def choose_device(name: str) -> torch.device:
    """``"auto"``: CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({first_line}); use --device cpu") from None
    return device


def choose_precision(name: Precision, device: torch.device, embed_dim: int) -> torch.dtype:
    """``"auto"``: bfloat16 where the hardware multiplies it faster and the matrices are wide enough to gain by it."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast and embed_dim >= 256 else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Matrix products in that precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


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


def compiler_available(device: torch.device) -> bool:
    """Whether torch.compile can build kernels for the device."""
    if device.type == "cpu":
        header = Path(sysconfig.get_path("include")) / "Python.h"
        return shutil.which(os.environ.get("CXX", "g++")) is not None and header.exists()
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    return False


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of this machine's own matrix product (the best of several)."""
    size, best = 64, 0.0
    while size < 1024 and best < 2e-3:  # long enough to be measured; bfloat16 takes seconds on a CPU that emulates it
        size, best = 2 * size, float("inf")
        a = torch.randn(size, size, device=device).to(dtype)
        for _ in range(8):
            synchronise(device)
            start = time.perf_counter()
            a @ a
            synchronise(device)
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process held at once: on the GPU, or else of main memory (libraries included)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started this process
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(found[1]) * 1024 if found else 0
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def describe_machine() -> str:
    """Processor (and GPU), number of cores, and versions, in a line."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    processor = named[1] if named else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = f"{os.cpu_count()} cores"
    return f"{processor}, {cores}{gpu}; torch {torch.__version__}, Python {platform.python_version()}"


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
