"""Wall time to a validation loss of 1.88 nats/char on tinyshakespeare: our recipe against nanoGPT's CPU recipe.

    python benchmarks/time_to_loss.py path/to/tinyshakespeare.txt [--config entry.yaml …] [--nanogpt DIR]
        [--baseline]

Runs alternate, each in a fresh process with empty caches. The clock runs from the start of the process until the loss
on the whole validation split (the last 10 % of the text) is known.

* entries of ``gpt2lab speedrun``: the one that holds the record, or others (--config).
* nanogpt, with --nanogpt: its own ``train.py``, until its last step (its evaluations are few: 20 batches each).
* baseline, with --baseline: our ``original`` variant with the hyper-parameters of nanoGPT's README for CPUs, eager.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gpt2lab.comparison.speedrun import RECORD, TARGET, read_entries, seconds_until, train_cold

BASELINE = {
    "variant": "original",
    "context_size": 64,
    "num_layers": 4,
    "batch_size": 12,
    "max_steps": 2000,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "betas": (0.9, 0.99),
    "schedule": "cosine",
    "warmup_steps": 100,
    "compile": "no",
    "precision": "float32",
}
NANOGPT = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64"
    " --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()


def nanogpt(text: Path, checkout: Path, seed: int) -> tuple[float, float]:
    """Seconds and (estimated) validation loss of nanoGPT's own script, in a copy of the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
        data = copy / "data" / "shakespeare_char"
        shutil.copy(text, data / "input.txt")
        subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, stdout=subprocess.DEVNULL)
        script = copy / "train.py"
        script.write_text(script.read_text().replace("manual_seed(1337", f"manual_seed({seed}"))
        command = [sys.executable, "-u", "train.py", *NANOGPT]
        seconds, line = seconds_until(r"^step 2000: .* val loss", command, os.environ, copy)
        return seconds, float(line.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument(
        "--config", type=Path, nargs="+", default=[RECORD], help="entries (default: the one that holds the record)"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, timed too")
    parser.add_argument("--baseline", action="store_true", help="time our original variant with its recipe, too")
    options = parser.parse_args()
    entries = read_entries(options.config)
    asked = {"nanogpt": options.nanogpt is not None, "baseline": options.baseline}
    others = [name for name, wanted in asked.items() if wanted]
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in [*entries, *others]}
    for seed in range(1, options.seeds + 1):
        for name, results in rounds.items():
            if name == "nanogpt":
                results.append(nanogpt(options.text.resolve(), options.nanogpt, seed))
            else:
                attempt = train_cold(options.text.resolve(), entries.get(name, BASELINE), seed, name)
                results.append((attempt.seconds, attempt.loss))
            print(f"seed {seed} {name:9} {results[-1][0]:7.1f} s  loss {results[-1][1]:.4f}", flush=True)
    print("\n| recipe | seconds, median (min – max) | validation loss, each seed |\n|---|---|---|")
    for name, results in rounds.items():
        seconds = [s for s, _ in results]
        losses = ", ".join(f"{loss:.3f}" for _, loss in results)
        print(f"| {name} | {statistics.median(seconds):.1f} ({min(seconds):.1f} – {max(seconds):.1f}) | {losses} |")
    for name, other in [(name, other) for name in entries for other in others]:
        ratios = [a[0] / b[0] for a, b in zip(rounds[name], rounds[other], strict=True)]
        print(
            f"\n{name} / {other}, pair by pair: {statistics.median(ratios):.3f} ({min(ratios):.3f} – {max(ratios):.3f})"
        )
    for name in entries:
        reached = sum(loss <= TARGET for _, loss in rounds[name])
        print(f"{name} reached {TARGET} with {reached} of {options.seeds} seeds")


if __name__ == "__main__":
    main()
