"""How many CPU threads there can be, and how they wait; decided before torch is imported, and so before all else."""

import os
import sys
import warnings

# How often a waiting thread of GNU OpenMP, which torch's builds for Linux use, looks before it sleeps. Its own default
# is for ever, or nearly; docs/performance.md tells what that costs beside a busy process.
SPINS = "1000"
DECIDE = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

MOST_THREADS = 1_024  # with a hundred times as many, libraries end the process


def available_cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sleep_when_waiting() -> None:
    """Let threads that wait sleep soon, so that they do not keep the processor from those that they wait for.

    What the user has set stays.

    Warns:
        UserWarning: torch is there already, with threads that spin.
    """
    if sys.platform != "linux" or any(name in os.environ for name in DECIDE):
        return
    if "torch" not in sys.modules:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    elif os.environ.get("OMP_NUM_THREADS") != "1":
        warnings.warn(
            "torch was imported before gpt2lab, so its threads spin while they wait, which makes them slow beside "
            f"other programs: import gpt2lab first, or set GOMP_SPINCOUNT={SPINS}",
            stacklevel=3,
        )
