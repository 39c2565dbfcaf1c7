"""Does a long training leak? Resident memory over many steps of the smallest model.

    python benchmarks/leak.py [--steps 20000]

Prints memory after the warm-up (a tenth of the run) and the most that it grew by afterwards. Checkpoints, in the
background too, and validation happen on the way, as in a real run.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Annotated

from gpt2lab import GPT2, TokenDataset, Trainer, TrainerConfig
from gpt2lab.hardware import describe_machine
from gpt2lab.runs.records import Record

import numpy as np
from cyclopts import Parameter, run
from rich.console import Console


def resident() -> float:
    """MiB of this process in memory now."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main(*, steps: Annotated[int, Parameter(help="how long to train")] = 20_000) -> None:
    """Train, and watch."""
    draw = np.random.default_rng(0)
    data = TokenDataset(draw.integers(0, 65, 100_000).astype(np.uint16), 8, 65)
    test = TokenDataset(draw.integers(0, 65, 5_000).astype(np.uint16), 8, 65)
    seen: dict[int, float] = {}

    def watch(record: Record) -> None:
        seen[record["step"]] = resident()

    with tempfile.TemporaryDirectory() as folder:
        config = TrainerConfig(
            max_steps=steps,
            batch_size=4,
            eval_every=steps // 100,
            checkpoint_every=steps // 100,
            async_checkpoints=True,
            compile="no",
            device="cpu",
            out=Path(folder) / "run",
        )
        model = GPT2(65, 8, 16, 2, 32, 1, seed=0, position="rope", num_kv_heads=1, window=4)
        Trainer(model, data, test, config, sinks=[watch], console=Console(quiet=True)).train()
    warm = min(step for step in seen if step >= steps // 10)
    later = {step: memory for step, memory in seen.items() if step >= warm}
    print(f"{describe_machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    print(f"{steps:,} steps; resident after {warm:,}: {later[warm]:.1f} MiB")
    for step in sorted(later)[:: max(1, len(later) // 10)]:
        print(f"  step {step:>7,}: {later[step] - later[warm]:+.1f} MiB")
    print(f"most since then: {max(later.values()) - later[warm]:+.1f} MiB")


if __name__ == "__main__":
    run(main)
