"""What many readers get from a server: tokens a second of 1 to 64 streams at once, and how long the first token takes.

``python benchmarks/serving.py`` serves a model of 10 M parameters (random weights, which cost as much as trained ones)
in a process of its own, and reads from it in this one: in turn with 1, 4, 16 and 64 streams, some rounds of it.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpt2lab import GPT2, CharTokenizer

import httpx

MODELS: dict[str, tuple[Any, ...]] = {
    "0.6 M, modern": (65, 64, 128, 4, 512, 3, {"position": "rope", "num_kv_heads": 2, "window": 16}),
    "10 M, modern": (65, 256, 384, 6, 1536, 6, {"position": "rope", "num_kv_heads": 2, "window": 64}),
    "10 M, original": (65, 256, 384, 6, 1536, 6, {}),
}
STREAMS = (1, 4, 16, 64)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=[*MODELS])
    asked = parser.parse_args()
    print("| model | streams | tokens/s | of one | spread | first token, median | 95 % | server's memory |")
    print("|---|---|---|---|---|---|---|---|")
    for name in asked.models:
        *sizes, switches = MODELS[name]
        folder = Path(tempfile.mkdtemp()) / "model"
        GPT2(*sizes, seed=0, **switches).save(folder, CharTokenizer(map(chr, range(33, 97))))
        command = [sys.executable, "-m", "gpt2lab", "serve", str(folder), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            asyncio.run(reading(address, 1, 3.0))  # the native step is compiled, and measured
            speeds: dict[int, list[float]] = {streams: [] for streams in STREAMS}
            firsts: dict[int, list[float]] = {streams: [] for streams in STREAMS}
            for _ in range(asked.rounds):
                for streams in STREAMS:
                    tokens, late = asyncio.run(reading(address, streams, asked.seconds))
                    speeds[streams].append(tokens)
                    firsts[streams] += late
            memory = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8"))
            assert memory is not None
            for streams in STREAMS:
                shares = [many / one for many, one in zip(speeds[streams], speeds[1], strict=True)]
                late = [1000 * seconds for seconds in firsts[streams]]
                speed, share = statistics.median(speeds[streams]), statistics.median(shares)
                columns = [
                    f"{name} | {streams} | {speed:,.0f} | {share:.1f}× | {min(shares):.1f} – {max(shares):.1f}",
                    f"{statistics.median(late):,.0f} ms | {statistics.quantiles(late, n=20)[-1]:,.0f} ms",
                    f"{int(memory[1]) / 1024:,.0f} MiB",
                ]
                print(f"| {' | '.join(columns)} |", flush=True)
            server.terminate()


async def reading(address: str, streams: int, seconds: float) -> tuple[float, list[float]]:
    """Tokens a second of so many readers together, and how long each of their first tokens took."""
    firsts: list[float] = []
    until = time.perf_counter() + seconds
    counts = [0] * streams

    async def reader(client: httpx.AsyncClient, number: int) -> None:
        while time.perf_counter() < until:
            asked = {"model": "model", "prompt": "A", "max_tokens": 500, "stream": True, "ignore_eos": True}
            started, first = time.perf_counter(), True
            async with client.stream("POST", f"{address}v1/completions", json=asked) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        if first:
                            firsts.append(time.perf_counter() - started)
                        first = False
                        counts[number] += len(json.loads(line[6:])["choices"][0]["text"])  # a token is a character
                        if time.perf_counter() > until:
                            return

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        begun = time.perf_counter()
        await asyncio.gather(*(reader(client, number) for number in range(streams)))
        return sum(counts) / (time.perf_counter() - begun), firsts


if __name__ == "__main__":
    main()
