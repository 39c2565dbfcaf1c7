"""What a window and shared heads cost or save on the clock: our attention against its peers, in one run.

    python benchmarks/attention.py [--lengths 256,1024,8192] [--windows 256] [--kv-heads 12,4,1] [--device cpu]

12 query heads of 64, batch 1, forward and forward + backward; every contestant in turn, several rounds. Our times are
medians with the lowest and highest round; the others' columns say how many times as long they took, median of the
ratios within a round. Extra memory is the most that a forward + backward held at once beyond its inputs.

* kernels: `attend` with a window, torch's SDPA with a dense T×T mask, torch's SDPA over everything earlier,
  FlexAttention (compiled; on a CPU it has no backward).
* layers, projections and RoPE included: `MultiHeadAttention` against itself with the native training step (float32 on a
  CPU), Starcoder2's and Mistral's of Transformers (their windows are masks), and x-transformers' (full: it has no
  window), as far as these are installed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from gpt2lab.config import GPT2Config
from gpt2lab.hardware import choose_device, describe_machine
from gpt2lab.model import attend, fused
from gpt2lab.model.attention import MultiHeadAttention, Reading
from gpt2lab.model.embeddings import rotary_tables
from timing import extra_memory, seconds

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, HEAD_DIM = 12, 64
WIDTH = HEADS * HEAD_DIM
PEERS_UP_TO = 8192
Contestant = Callable[..., Tensor]


def kernels(T: int, W: int, K: int, device: torch.device) -> dict[str, Contestant]:
    """Functions of q (1, H, T, D), k and v (1, K, T, D)."""
    ours: dict[str, Contestant] = {"ours": partial(attend, window=W)}
    if T > PEERS_UP_TO:
        return ours
    at = torch.arange(T, device=device)
    back = at[:, None] - at
    mask = (back >= 0) & (back < W)
    sdpa = partial(F.scaled_dot_product_attention, enable_gqa=K != HEADS)
    return ours | {
        "dense mask": partial(sdpa, attn_mask=mask),
        "full causal": partial(sdpa, is_causal=True),
        "FlexAttention": flex(T, W, K, device),
    }


def flex(T: int, W: int, K: int, device: torch.device) -> Contestant:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()  # or after eight shapes it is not compiled any more
    blocks = create_block_mask(lambda b, h, i, j: (j <= i) & (i - j < W), None, None, T, T, device=str(device))
    return partial(torch.compile(flex_attention, dynamic=False), block_mask=blocks, enable_gqa=K != HEADS)


def layers(T: int, W: int, K: int, device: torch.device, dtype: torch.dtype) -> dict[str, Contestant]:
    """Functions of hidden states (1, T, C)."""
    config = GPT2Config(1, T, WIDTH, HEADS, 1, 1, position="rope", num_kv_heads=K, window=W)
    reading = Reading(rotary=rotary_tables(torch.arange(T, device=device)[None], HEAD_DIM, 10_000.0, dtype))
    ours = MultiHeadAttention(config, 0).to(device, dtype)
    found: dict[str, Contestant] = {"ours": partial(ours, reading=reading)}
    if device.type == "cpu" and dtype == torch.float32:
        assert reading.rotary is not None
        turned = fused.turned_tables(reading.rotary)
        found["native"] = lambda x: ours.output(fused.mix(ours, x[0], turned, 1))[None]
    if T > PEERS_UP_TO:
        return found
    try:
        from transformers import MistralConfig, Starcoder2Config
        from transformers.models.mistral import modeling_mistral
        from transformers.models.starcoder2 import modeling_starcoder2

        sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": K}
        sizes |= {"sliding_window": W, "max_position_embeddings": T, "attn_implementation": "sdpa"}
        sizes |= {"bos_token_id": None, "eos_token_id": None}
        for name, module, settings in (
            ("Starcoder2", modeling_starcoder2, Starcoder2Config(**sizes)),
            ("Mistral", modeling_mistral, MistralConfig(**sizes)),
        ):
            layer = getattr(module, f"{name}Attention")(settings, 0).to(device, dtype)
            tables = getattr(module, f"{name}RotaryEmbedding")(settings).to(device)
            found[name] = partial(_transformers_layer, layer, tables, module, settings)
    except ImportError:
        print("Transformers is not installed, so its layers are left out")
    try:
        from x_transformers.x_transformers import Attention

        heads = {} if K == HEADS else {"kv_heads": K}
        found["x-transformers (full)"] = Attention(
            dim=WIDTH, heads=HEADS, dim_head=HEAD_DIM, causal=True, flash=True, **heads
        ).to(device, dtype)
    except ImportError:
        print("x-transformers is not installed, so its layer is left out")
    return found


def _transformers_layer(layer: nn.Module, tables: nn.Module, module: object, settings: object, x: Tensor) -> Tensor:
    at = torch.arange(x.shape[1], device=x.device)[None]
    mask = module.create_sliding_window_causal_mask(settings, x, None, None, at)  # type: ignore[attr-defined]
    return layer(x, tables(x, at), mask)[0]  # type: ignore[no-any-return]


def forward(run: Contestant, inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return run(*(x.detach() for x in inputs))


def both(run: Contestant, inputs: list[Tensor]) -> None:
    y = run(*inputs)
    y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
    for x in inputs:
        x.grad = None


def compare(
    title: str, contestants: dict[str, Contestant], inputs: list[Tensor], device: torch.device, budget: float
) -> str:
    """One row of a table: our times, our memory, and the others' ratios to us."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contestants}
    has_backward = {name: name != "FlexAttention" or device.type == "cuda" for name in contestants}
    both(contestants["ours"], inputs)
    memory = extra_memory(lambda: both(contestants["ours"], inputs), device)
    begun = time.perf_counter()
    number = 0
    while number < 4 or (number < 16 and time.perf_counter() - begun < budget):
        for name, run in contestants.items():
            ahead = seconds(lambda run=run: forward(run, inputs), device)  # type: ignore[misc]
            there_and_back = (
                seconds(lambda run=run: both(run, inputs), device)  # type: ignore[misc]
                if has_backward[name]
                else float("nan")
            )
            if number > 0:  # the first round does not count
                times[name][0].append(ahead)
                times[name][1].append(there_and_back)
        number += 1
    cells = [title]
    for found in times["ours"]:
        cells.append(f"{1e3 * statistics.median(found):.1f} ({1e3 * min(found):.1f} – {1e3 * max(found):.1f})")
    cells.append(f"{memory:.0f}")
    for name in list(contestants)[1:]:
        ratios = [
            statistics.median(theirs / mine for theirs, mine in zip(times[name][i], times["ours"][i], strict=True))
            for i in range(2)
        ]
        cells.append(f"{ratios[0]:.2f} · {ratios[1]:.2f}" if has_backward[name] else f"{ratios[0]:.2f} · –")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=numbers, default=[256, 1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--windows", type=numbers, default=[64, 256, 1024])
    parser.add_argument("--kv-heads", type=numbers, default=[12, 4, 1])
    parser.add_argument("--tables", default="kernels,layers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5, help="for a row's rounds (at least 3) (default: 5)")
    options = parser.parse_args()
    device, dtype = choose_device(options.device), getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    print(f"{describe_machine()}; {device}, {options.threads} threads, {options.dtype}")
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(device, dtype).requires_grad_()

    for table in options.tables.split(","):
        for W in options.windows:
            for K in options.kv_heads:
                print(f"\n{table}, window {W}, {K} key/value heads; the others: forward · forward + backward\n")
                header = None
                for T in options.lengths:
                    if table == "kernels":
                        contestants = kernels(T, W, K, device)
                        inputs = [random(1, h, T, HEAD_DIM) for h in (HEADS, K, K)]
                    else:
                        contestants, inputs = layers(T, W, K, device, dtype), [random(1, T, WIDTH)]
                    if header is None:
                        header = ["T", "ours: forward, ms", "forward + backward, ms", "extra MiB", *contestants]
                        header.remove("ours")
                        print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
                    row = compare(f"{T:,}", contestants, inputs, device, options.seconds)
                    print(row + " |" * (len(header) - row.count("|") + 1), flush=True)


if __name__ == "__main__":
    main()
