"""What it costs to give a trained GPT-2 its switches afterwards: every switch alone and all together, several seeds.

``python experiments/retrofit.py --out runs/retrofit`` trains the original GPT-2 (1 M parameters, Shakespeare), converts
it, and trains every arm further for a tenth of its tokens, and the variants from scratch for as many tokens in all.
Started again, it goes on. It writes ``results.csv``, which ``gpt2lab judge`` reads:

    gpt2lab judge runs/retrofit/results.csv --baseline unconverted --pair seed --value after
"""

import argparse
import csv
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpt2lab
from gpt2lab.evaluation import evaluate
from gpt2lab.retrofit.convert import converted
from gpt2lab.runs.folder import open_text
from gpt2lab.runs.settings import RunSettings
from gpt2lab.training.metrics import exact_loss

import torch

STEPS, FURTHER = 2000, 200
MODEL: dict[str, Any] = {"variant": "original", "num_layers": 5, "num_heads": 8}
SHARED: dict[str, Any] = {"num_kv_heads": 2}
ROPE: dict[str, Any] = {"position": "rope"}
WINDOW: dict[str, Any] = {"window": 16}
ALL: dict[str, Any] = {**SHARED, **ROPE, **WINDOW}
# What is converted, and how it is trained further.
CONVERSIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unconverted": ({}, {}),
    "gqa, mean": ({**SHARED, "heads": "mean"}, {}),
    "gqa, first": ({**SHARED, "heads": "first"}, {}),
    "gqa, aligned": ({**SHARED, "heads": "aligned"}, {}),
    "rope": (ROPE, {}),
    "window": (WINDOW, {}),
    "all, mean": ({**ALL, "heads": "mean"}, {}),
    "all, first": ({**ALL, "heads": "first"}, {}),
    "all, aligned": ({**ALL, "heads": "aligned"}, {}),
    "all, aligned, narrowed": ({**ALL, "heads": "aligned"}, {"start_window": 64}),
}
SCRATCH: dict[str, dict[str, Any]] = {
    "scratch, all": ALL,
    "scratch, gqa": SHARED,
    "scratch, rope": ROPE,
    "scratch, window": WINDOW,
}


def train_one(out: Path, arm: str, seed: int) -> None:
    """Train one arm with one seed, and note its losses beside the run."""
    run, source = out / arm / f"seed-{seed}", out / "source" / f"seed-{seed}"
    usual: dict[str, Any] = {"threads": 1, "seed": seed, "out": run}
    damaged = ""
    if arm == "source":
        gpt2lab.train(**MODEL, max_steps=STEPS, **usual)
    elif arm in SCRATCH:
        gpt2lab.train(**MODEL, **SCRATCH[arm], max_steps=STEPS + FURTHER, **usual)
    else:
        switches, options = CONVERSIONS[arm]
        model, tokenizer = gpt2lab.load(source, checkpoint="last")
        if switches:
            model = converted(model, **switches)
            text = open_text(RunSettings.read(source / "config.yaml").data, tokenizer)
            damaged = f"{evaluate(model, text.tokens('validation'), tokenizer).loss:.6f}"
        model.save(run / "start", tokenizer)
        gpt2lab.train(init_from=run / "start", max_steps=FURTHER, **options, **usual)
    (run / "damaged.txt").write_text(damaged, encoding="utf-8")


def main() -> None:
    """Train what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/retrofit"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="trainings at once")
    parser.add_argument("--arms", nargs="*", default=[*CONVERSIONS, *SCRATCH])
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.one:
        train_one(asked.out, asked.one[0], int(asked.one[1]))
        return

    def start(cell: tuple[str, int]) -> None:
        arm, seed = cell
        if not (asked.out / arm / f"seed-{seed}" / "damaged.txt").exists():
            command = [sys.executable, __file__, "--out", str(asked.out), "--one", arm, str(seed)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            print(f"{arm}, seed {seed}: done", flush=True)

    seeds = range(1, asked.seeds + 1)
    for arms in (["source"], asked.arms):
        with ThreadPoolExecutor(asked.workers) as pool:
            list(pool.map(start, [(arm, seed) for arm in arms for seed in seeds]))
    with (asked.out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["arm", "seed", "before", "damaged", "after"])
        for arm in asked.arms:
            for seed in seeds:
                run = asked.out / arm / f"seed-{seed}"
                before = f"{exact_loss(asked.out / 'source' / f'seed-{seed}'):.6f}"
                damaged = (run / "damaged.txt").read_text(encoding="utf-8")
                table.writerow([arm, seed, "" if arm in SCRATCH else before, damaged, f"{exact_loss(run):.6f}"])


if __name__ == "__main__":
    main()
