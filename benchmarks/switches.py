"""What each switch does to quality, speed and memory, every variant trained alike.

    python benchmarks/switches.py [--text FILE] [--steps 500] [--seeds 3] [--context-size 64]

Loss is exact, on the test part that no training saw. Speeds are measured afterwards, the variants in turn, several
rounds, as ratios to the original in the same round: medians with the lowest and highest.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console

from gpt2lab import GPT2, Trainer, TrainerConfig, evaluate, generate
from gpt2lab.cli.settings import DataSettings, Text
from gpt2lab.config import GPT2Config, Variant, variant_switches

VARIANTS: tuple[Variant, ...] = ("original", "rope", "gqa", "mqa", "swa", "modern")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="file, folder or glob (default: Shakespeare's plays)")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--context-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    text = Text.open(DataSettings(text=options.text))
    T = options.context_size
    train, test = text.dataset("train", T), text.tokens("test")
    losses: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    trainers: dict[str, Trainer] = {}
    for seed in range(1, options.seeds + 1):
        for variant in VARIANTS:
            config = GPT2Config(text.tokenizer.vocab_size, T, 128, 4, 512, 3, **variant_switches(variant, T, 4))
            training = TrainerConfig(
                max_steps=options.steps, seed=seed, compile="no", precision="float32", device="cpu"
            )
            model = GPT2.from_config(config, seed=seed)
            trainers[variant] = Trainer(model, train, None, training, console=Console(quiet=True))
            trainers[variant].train()
            losses[variant].append(evaluate(model, test, text.tokenizer).loss)
            print(f"seed {seed} {variant:9} test loss {losses[variant][-1]:.4f}", flush=True)

    steps: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    tokens: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    batch = train.__getitems__(range(TrainerConfig().batch_size))
    prompt = torch.from_numpy(text.tokenizer.encode("\n"))[None]
    for _ in range(options.rounds):
        for variant, trainer in trainers.items():
            model = trainer.model.train()
            steps[variant].append(seconds(lambda m=model: [m(*batch).backward() for _ in range(5)]))  # type: ignore[misc]
            tokens[variant].append(seconds(lambda m=model: generate(m, prompt, T - 1, temperature=0)))  # type: ignore[misc]

    print(f"\n{text.describe()}; context {T}, {options.steps} steps, {options.seeds} seeds\n")
    print("| variant | parameters | test loss, mean (each seed) | forward+backward | ms/token written | cache/token |")
    print("|---|---|---|---|---|---|")
    for variant, trainer in trainers.items():
        ratios = [a / b for a, b in zip(steps[variant], steps["original"], strict=True)]
        speed = [a / b for a, b in zip(tokens[variant], tokens["original"], strict=True)]
        each = ", ".join(f"{loss:.3f}" for loss in losses[variant])
        print(
            f"| {variant} | {trainer.model.num_parameters():,} | {statistics.mean(losses[variant]):.4f} ({each})"
            f" | {statistics.median(ratios):.2f}× ({min(ratios):.2f} – {max(ratios):.2f})"
            f" | {statistics.median(speed):.2f}× ({min(speed):.2f} – {max(speed):.2f})"
            f" | {trainer.model.cache_bytes_per_token():,} B, at most {trainer.model.cache_bytes(T):,} B |"
        )
    ms = statistics.median(tokens["original"]) / (T - 1) * 1000
    step = statistics.median(steps["original"]) / 5 * 1000
    print(f"\noriginal: {step:.1f} ms for forward+backward of a batch, {ms:.2f} ms a token")


if __name__ == "__main__":
    main()
