"""What the machine offers: found at run time, by capability or by a short measurement."""

import functools
import os
import platform
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpt2lab.errors import InputError
from gpt2lab.threads import available_cores

PROC = Path("/proc")  # what Linux tells of the machine and of this process


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


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Matrix products in that precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions that multiply matrices in bfloat16 (AMX)."""
    return bool(torch.cpu._is_amx_tile_supported())


@contextmanager
def products_in_bfloat16(enabled: bool) -> Iterator[None]:
    """Matrices in float32 are multiplied in bfloat16 on the CPU meanwhile; sums and results stay in float32.

    torch's own attention becomes many times slower by it, so it is for what has no such attention.
    """
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    products.fp32_precision = "bf16" if enabled else before
    try:
        yield
    finally:
        products.fp32_precision = before


def compiler_available(device: torch.device) -> bool:
    """Whether torch.compile can build kernels for the device."""
    if device.type == "cpu":
        header = Path(sysconfig.get_path("include")) / "Python.h"
        return shutil.which(os.environ.get("CXX", "g++")) is not None and header.exists()
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    return False


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """So many CPU threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    """Most bytes that this process held at once, on the GPU, or of main memory (libraries included); 0: not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = PROC / "self" / "status"
    if status.exists():  # getrusage would count what the parent held when it started this process
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(found[1]) * 1024 if found else 0
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def main_memory() -> int | None:
    """Bytes of main memory of this machine; None: not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def describe_machine() -> str:
    """Processor (and GPU), number of cores, and versions, in a line."""
    cpuinfo = PROC / "cpuinfo"
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    processor = named[1] if named else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = f"{available_cores()} cores"
    return f"{processor}, {cores}{gpu}; torch {torch.__version__}, Python {platform.python_version()}"


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
