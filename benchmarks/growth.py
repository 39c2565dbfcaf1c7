"""How time and memory of a training step grow: with parameters, context, vocabulary and processes.

    python benchmarks/growth.py [--series parameters context window vocabulary processes] [--plot growth.svg]

Every point is a training of its own in fresh processes, with the optimiser that ``gpt2lab train`` takes, in float32, on
random tokens; a process has one thread. Told are the median of its steps, and what the process holds at the worst
moment of a step beyond what it held after a tiny training. Beside both stands what ``gpt2lab plan`` forecasts, from
this machine's own 1024³ product and the usual share of such a peak. Exponents are slopes of a line through the
logarithms, of all points and of the last two.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2lab.config import GPT2Config
from gpt2lab.data import TokenDataset
from gpt2lab.hardware import describe_machine, peak_flops
from gpt2lab.model import GPT2
from gpt2lab.planning.memory import Way
from gpt2lab.planning.settings import PlanSettings
from gpt2lab.plots import new_plot, save_plot
from gpt2lab.runs.settings import TrainerConfig
from gpt2lab.training import Trainer, processes
from timing import extra_memory, resident, seconds

import numpy as np
import torch

CPU = torch.device("cpu")
SMALL = {"embed_dim": 128, "num_heads": 4, "num_layers": 4}
WIDE = {"embed_dim": 384, "num_heads": 6, "num_layers": 6}
# embed_dim, num_heads, num_layers: 0.1 to 121 million parameters
MODELS = [(64, 2, 2), (128, 4, 4), (256, 4, 4), (384, 6, 6), (512, 8, 8), (768, 12, 12), (768, 12, 17)]
CONTEXTS = [64, 256, 1024, 4096, 16384, 32768]
VOCABULARIES = [65, 512, 4096, 16384, 50257]
# A point: the model, windows of a step in all, and processes; by what grows.
SERIES: dict[str, list[dict[str, Any]]] = {
    "parameters": [
        {"embed_dim": C, "num_heads": H, "num_layers": L, "vocab_size": 65, "max_seq_len": 256, "rows": 4}
        for C, H, L in MODELS
    ],
    "context": [{**SMALL, "vocab_size": 65, "max_seq_len": T, "rows": CONTEXTS[-1] // T} for T in CONTEXTS],
    "window": [
        {**SMALL, "vocab_size": 65, "max_seq_len": T, "window": 64, "rows": CONTEXTS[-1] // T} for T in CONTEXTS
    ],
    "vocabulary": [{**SMALL, "vocab_size": V, "max_seq_len": 256, "rows": 4} for V in VOCABULARIES],
    "processes": [{**WIDE, "vocab_size": 65, "max_seq_len": 256, "rows": 8, "processes": n} for n in (1, 2)],
}
MEANING = {
    "parameters": "4 windows of 256 tokens, vocabulary 65",
    "context": "a model of 0.8 M parameters, 32,768 tokens a step in windows of the context",
    "window": "the same with a sliding window of 64 tokens, by context",
    "vocabulary": "a model of 0.8 M parameters and its embedding, 4 windows of 256 tokens",
    "processes": "a model of 10 M parameters, 8 windows of 256 tokens in all, DDP",
}


def config_of(point: dict[str, Any]) -> GPT2Config:
    sizes = {name: value for name, value in point.items() if name not in ("rows", "processes")}
    return GPT2Config(**sizes, ff_hidden_dim=4 * point["embed_dim"], position="rope")


def step_of(point: dict[str, Any]) -> Callable[[], object]:
    """The step of a training, which has made its first one."""
    config = config_of(point)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 40_000 + config.max_seq_len, np.uint16)
    how = TrainerConfig(batch_size=point["rows"], max_steps=100, device="cpu", precision="float32", compile="no")
    trainer = Trainer(GPT2.from_config(config), TokenDataset(ids, config.max_seq_len, config.vocab_size), None, how)
    batches = trainer.batches()
    trainer.model.train()
    trainer.update(batches)  # makes the optimiser's state
    return lambda: trainer.update(batches)


def measure(point: dict[str, Any], rounds: int) -> None:
    """One point, in each of its processes; the first one tells."""
    with processes.joined_processes("cpu", 600.0):
        torch.set_num_threads(1)
        step_of(
            {**SMALL, "vocab_size": 65, "max_seq_len": 64, "rows": processes.num_processes()}
        )  # wakes the libraries
        empty = resident()
        step = step_of(point)
        memory = resident() - empty
        memory += extra_memory(step, CPU)
        found = [seconds(step, CPU) for _ in range(rounds)]
        if processes.rank() == 0:
            print(json.dumps({"seconds": found, "memory": memory}), flush=True)


def measured(point: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The same from processes that are started for it."""
    number = point.get("processes", 1)
    script = [str(Path(__file__).resolve()), "--point", json.dumps(point), "--rounds", str(rounds)]
    starter = [] if number == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    done = subprocess.run(
        [sys.executable, *starter, *script],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def exponent(x: list[float], y: list[float]) -> str:
    """Slope of log y over log x, of all points and of the last two."""
    logs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)]
    return " and ".join(
        f"{statistics.linear_regression(*zip(*part, strict=True)).slope:.2f}" for part in (logs, logs[-2:])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="an SVG file")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point is not None:
        measure(options.point, options.rounds)
        return
    torch.set_num_threads(1)
    share = PlanSettings().peak_share
    print(f"{describe_machine()}; one thread a process, float32\n")
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for series in options.series:
        print(f"{series}: {MEANING[series]}\n")
        print(
            "| " + series + " | parameters | step, s | plan, s | memory, MiB | plan, MiB |\n|---|---|---|---|---|---|"
        )
        x: list[float] = []
        times: list[float] = []
        memories: list[float] = []
        for point in SERIES[series]:
            config, number = config_of(point), point.get("processes", 1)
            found = measured(point, options.rounds)
            way = Way(config, point["rows"] // number, devices=number, optimizer="muon", precision="float32")
            peak_flops.cache_clear()
            work = way.flops_per_token * way.tokens_per_step / number
            forecast = work / (share * peak_flops(CPU, torch.float32))
            parameters = way.model.num_parameters()
            value = {"parameters": parameters, "vocabulary": config.vocab_size, "processes": number}
            x.append(value.get(series, config.max_seq_len))
            times.append(statistics.median(found["seconds"]))
            memories.append(found["memory"])
            low, high = min(found["seconds"]), max(found["seconds"])
            print(
                f"| {x[-1]:,} | {parameters:,} | {times[-1]:.4g} ({low:.4g} – {high:.4g}) | {forecast:.4g} | "
                f"{memories[-1]:.0f} | {way.peak().total / 2**20:.0f} |",
                flush=True,
            )
        curves[series] = x, times
        print(
            f"\nexponent of all points and of the last two: time {exponent(x, times)}, memory {exponent(x, memories)}\n"
        )
    if options.plot is not None:
        figure, axes = new_plot("times as large as the first", "times as long as the first", xscale="log", yscale="log")
        for series, (x, times) in curves.items():
            axes.plot([a / x[0] for a in x], [t / times[0] for t in times], marker=".", label=series)
        limit = max(a / x[0] for x, _ in curves.values() for a in x)
        axes.plot([1, limit], [1, limit], linestyle=":", color="gray", label="in proportion")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(frameon=False)
        save_plot(figure, options.plot)


if __name__ == "__main__":
    main()
