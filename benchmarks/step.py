"""A whole training step, and how much of it is matrix products: ours against its peers, in one run.

    python benchmarks/step.py [--sizes 0.8M,10M,124M] [--precision float32,bfloat16] [--compile] [--profile]

Every contestant makes optimiser steps (AdamW, fused, gradients clipped) on the same random tokens, in turn, several
rounds. Peak: floating-point operations of the model's matrix products (counted once forward and twice backward) per
second, as a share of this machine's own 1024³ product in that precision, measured in the same round. Memory: what a
step held at once beyond weights, gradients and optimiser state.

* original: GPT-2 itself, of gpt2lab. modern: RoPE, shared key/value heads, a window. Both with the eager step, and, on
  a CPU without --compile, with the native one (in bfloat16 where there is AMX, and where its attention is its own).
* Transformers: GPT2LMHeadModel (SDPA) of the same shape. litgpt: its GPT of the same shape with LayerNorm, biases and
  GELU; its positions are rotary and its output layer is not tied. As far as these are installed.
"""

import argparse
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gpt2lab.config import GPT2Config, Variant, variant_switches
from gpt2lab.hardware import autocast, choose_device, describe_machine, peak_flops, products_in_bfloat16
from gpt2lab.model import GPT2
from gpt2lab.training.choices import why_not_bfloat16
from timing import extra_memory, seconds

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import profile

# vocabulary, context, width, heads, feed-forward width, layers; windows a step
SIZES = {
    "0.8M": ((65, 64, 128, 4, 512, 4), 12),
    "10M": ((65, 256, 384, 6, 1536, 6), 16),
    "124M": ((50304, 1024, 768, 12, 3072, 12), 1),
}


def ours(variant: Variant, native: bool = False) -> Callable[..., tuple[nn.Module, Callable[..., Tensor]]]:
    def make(V: int, T: int, C: int, H: int, F_: int, L: int) -> tuple[nn.Module, Callable[..., Tensor]]:
        model = GPT2.from_config(GPT2Config(V, T, C, H, F_, L, **variant_switches(variant, T, H)))
        model.native = native
        return model, lambda forward, x, y: forward(x, y)

    return make


def transformers(V: int, T: int, C: int, H: int, F_: int, L: int) -> tuple[nn.Module, Callable[..., Tensor]]:
    from transformers import GPT2Config as Config
    from transformers import GPT2LMHeadModel

    sizes: dict[str, Any] = {"vocab_size": V, "n_positions": T, "n_embd": C, "n_head": H, "n_inner": F_, "n_layer": L}
    sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    sizes |= {"use_cache": False, "attn_implementation": "sdpa"}
    model = GPT2LMHeadModel(Config(**sizes))
    return model, lambda forward, x, y: F.cross_entropy(forward(x).logits.flatten(0, 1), y.flatten())


def litgpt(V: int, T: int, C: int, H: int, F_: int, L: int) -> tuple[nn.Module, Callable[..., Tensor]]:
    from litgpt import GPT, Config

    sizes = {"padded_vocab_size": V, "block_size": T, "n_embd": C, "n_head": H, "intermediate_size": F_, "n_layer": L}
    model = GPT(Config(**sizes, parallel_residual=False, rotary_percentage=1.0, gelu_approximate="tanh"))
    return model, lambda forward, x, y: F.cross_entropy(forward(x).flatten(0, 1), y.flatten())


CONTESTANTS = {
    "original": ours("original"),
    "original, native": ours("original", native=True),
    "modern": ours("modern"),
    "modern, native": ours("modern", native=True),
    "Transformers": transformers,
    "litgpt": litgpt,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--precision", default="float32", help="float32, bfloat16, or both (default: float32)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print instead which operations a CPU's time goes to")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    device, precisions = choose_device(options.device), options.precision.split(",")
    torch.set_num_threads(options.threads)
    compiled = "compiled" if options.compile else "eager"
    print(f"{describe_machine()}; {device}, {options.threads} threads, {options.precision}, {compiled}\n")
    columns = ["size", "model", "parameters", "step, ms", "of peak", "times original", "extra MiB"]
    if options.profile:
        columns = ["size", "model", "where the time goes"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in options.sizes.split(","):
        sizes, batch_size = SIZES[name]
        ids = torch.randint(sizes[0], (batch_size, sizes[1] + 1), generator=torch.Generator().manual_seed(0)).to(device)
        x, y = ids[:, :-1], ids[:, 1:].contiguous()
        entrants = enter(sizes, x, y, precisions, options.compile)
        if options.profile:
            for label, entrant in entrants.items():
                print(f"| {name} | {label} | {operations(entrant.step, options.rounds)} |", flush=True)
        else:
            rounds = options.rounds if batch_size > 1 else max(3, options.rounds // 3)
            for row in race(entrants, rounds, device, y.numel()):
                print(f"| {name} | {row} |", flush=True)


@dataclass
class Entrant:
    model: nn.Module
    dtype: torch.dtype
    step: Callable[[], None]


def enter(sizes: tuple[int, ...], x: Tensor, y: Tensor, precisions: list[str], compiled: bool) -> dict[str, Entrant]:
    entrants = {}
    for precision, (contestant, make) in itertools.product(precisions, CONTESTANTS.items()):
        try:
            model, loss_of = make(*sizes)
        except ImportError:
            print(f"{contestant} is not installed, so it is left out")
            continue
        dtype = getattr(torch, precision)
        if isinstance(model, GPT2) and model.native:
            narrow = dtype == torch.bfloat16
            if compiled or x.device.type != "cpu" or (narrow and why_not_bfloat16(model.config)):
                continue
        step = step_of(model.to(x.device), loss_of, x, y, dtype, compiled)
        entrants[contestant if len(precisions) == 1 else f"{contestant}, {precision}"] = Entrant(model, dtype, step)
    return entrants


def race(entrants: dict[str, Entrant], rounds: int, device: torch.device, tokens: int) -> Iterator[str]:
    """Let all make steps in turn; the rows of the table."""
    times: dict[str, list[float]] = {label: [] for label in entrants}
    peaks: dict[torch.dtype, list[float]] = {entrant.dtype: [] for entrant in entrants.values()}
    memory = {}
    for label, entrant in entrants.items():
        entrant.step()  # compiles, and makes the optimiser's state
        memory[label] = extra_memory(entrant.step, device)
    for _ in range(rounds):
        for dtype, found in peaks.items():
            peak_flops.cache_clear()
            found.append(peak_flops(device, dtype))
        for label, entrant in entrants.items():
            times[label].append(seconds(entrant.step, device))
    original = next(iter(times.values()))
    for label, taken in times.items():
        model, share = entrants[label].model, "–"
        if isinstance(model, GPT2):
            work = 3 * model.flops_per_token() * tokens
            peak = peaks[entrants[label].dtype]
            share = f"{statistics.median(work / t / p for t, p in zip(taken, peak, strict=True)):.0%}"
        ratio = f"{statistics.median(t / o for t, o in zip(taken, original, strict=True)):.2f}"
        spread = f"{1e3 * statistics.median(taken):.1f} ({1e3 * min(taken):.1f} – {1e3 * max(taken):.1f})"
        count = sum(p.numel() for p in model.parameters())
        yield f"{label} | {count:,} | {spread} | {share} | {ratio} | {memory[label]:.0f}"


def operations(step: Callable[[], None], rounds: int) -> str:
    """The operations that take most of the time of several steps, each with its share; without what it calls."""
    step()
    with profile() as profiled:
        for _ in range(rounds):
            step()
    found: Counter[str] = Counter()
    for event in profiled.key_averages():
        name = "the compiler's kernels" if "CompiledFxGraph" in event.key else event.key.removeprefix("aten::")
        found[name] += event.self_cpu_time_total
    return ", ".join(f"{name} {time / found.total():.0%}" for name, time in found.most_common(10))


def step_of(
    model: nn.Module, loss_of: Callable[..., Tensor], x: Tensor, y: Tensor, dtype: torch.dtype, compiled: bool
) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if compiled else model
    native = isinstance(model, GPT2) and model.native

    def step() -> None:
        with products_in_bfloat16(native and dtype == torch.bfloat16):
            with autocast(x.device, torch.float32 if native else dtype):
                loss = loss_of(forward, x, y)
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
