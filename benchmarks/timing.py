"""What the benchmarks share: clocks and memory."""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long it takes, a GPU's work included."""
    synchronise: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def resident() -> float:
    """MiB of main memory that this process holds."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, or it would be used again unseen
    return _kilobytes("VmRSS") / 2**10


def extra_memory(work: Callable[[], object], device: torch.device) -> float:
    """MiB that were held at the worst moment, beyond what was held before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - allocated) / 2**20
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    work()
    return _kilobytes("VmHWM") / 2**10 - before


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
