"""What a token costs that is written: this project's steps, Transformers and llama.cpp, with the same weights.

    python benchmarks/decode.py [--sizes 0.8M 10M 124M] [--prompts 16 1000] [--rounds 5] [--threads 2]
    python benchmarks/decode.py --switches [--contexts 25 64 1024 8192] [--plot writing.svg]
    python benchmarks/decode.py --first-token
    python benchmarks/decode.py --endless

The first prints milliseconds for a token of GPT-2 in three sizes, written greedily behind a prompt; 16 texts at once,
too. Every program writes in turn, round by round: the median, and the lowest and highest round. "Bandwidth" is what
had to be read for a token (matrices and cache) over its time, as a share of the fastest reading that was measured here.
llama.cpp is asked with one thread and with all, and the faster one counts; it says itself how long a token took. Peers
that are not installed are left out: ``pip install transformers``, ``pip install xllamacpp gguf``.

``--switches`` compares this project's switches at several contexts, each from its middle on, ``--first-token`` a prompt
of 1,000 tokens with one forward over it, ``--endless`` the tokens around the 300th and the 100,000th of a model that
goes on for ever.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from gpt2lab.config import Variant, variant_switches
from gpt2lab.data import CharTokenizer
from gpt2lab.generation import Engine, Sampling
from gpt2lab.hardware import describe_machine, peak_memory
from gpt2lab.interchange.llama_cpp import write as write_gguf
from gpt2lab.interchange.settings import Stored
from gpt2lab.model import GPT2
from gpt2lab.plots import new_plot, save_plot

import torch  # behind gpt2lab, so that its threads sleep

CONTEXT = 1_088
SIZES: dict[str, dict[str, Any]] = {
    "0.8M": {"vocab_size": 65, "embed_dim": 128, "num_heads": 4, "ff_hidden_dim": 512, "num_layers": 4},
    "10M": {"vocab_size": 65, "embed_dim": 384, "num_heads": 6, "ff_hidden_dim": 1536, "num_layers": 6},
    "124M": {"vocab_size": 50_257, "embed_dim": 768, "num_heads": 12, "ff_hidden_dim": 3072, "num_layers": 12},
}
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
Write = Callable[[list[int], int, int], float]  # prompt, rows, tokens: seconds for a token of all rows


def bandwidth(threads: int) -> float:
    """Bytes per second that can be read: the sum of 256 MB, the best of several."""
    numbers, best = torch.ones(64 * 2**20), float("inf")
    for _ in range(10):
        start = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - start)
    return numbers.numel() * 4 / best


def timed(engine: Engine, skip: int, tokens: int) -> float:
    """Seconds for a token of all rows, when some have been written."""
    rows = len(engine.rows)
    written = 0
    while written < skip * rows:
        written += len(engine.step(most=skip - written // rows))
    start, written = time.perf_counter(), 0
    while written < tokens * rows:
        written += len(engine.step(most=tokens - written // rows))
    return (time.perf_counter() - start) / tokens


def ours(model: GPT2, **how: Any) -> Write:
    def write(prompt: list[int], rows: int, tokens: int) -> float:
        engine = Engine(model, rows, **how)
        for row in range(rows):
            engine.add(prompt, Sampling(temperature=0, seed=row), max_tokens=tokens + 4)
        return timed(engine, 4, tokens)

    return write


def transformers(model: GPT2) -> Write:
    from transformers import GPT2Config, GPT2LMHeadModel

    c = model.config
    config = GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.max_seq_len,
        n_embd=c.embed_dim,
        n_head=c.num_heads,
        n_layer=c.num_layers,
        n_inner=c.ff_hidden_dim,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    theirs: Any = GPT2LMHeadModel(config)
    theirs.eval()

    @torch.no_grad()
    def write(prompt: list[int], rows: int, tokens: int) -> float:
        ids, clock = torch.tensor([prompt] * rows), []
        for n in (1, tokens + 1):  # what the prompt costs is taken off
            start = time.perf_counter()
            theirs.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False
            )
            clock.append(time.perf_counter() - start)
        return (clock[1] - clock[0]) / tokens

    return write


def llama_cpp(model: GPT2, folder: Path, stored: Stored, threads: int, rows: int) -> Write:
    import xllamacpp

    path = folder / f"{id(model)}-{stored}.gguf"
    if not path.exists():
        letters = CharTokenizer(map(chr, range(0x21, 0x20 + model.config.vocab_size)))  # only ids are read and written
        write_gguf(model, letters, path, stored)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_ctx, params.n_parallel, params.verbosity = rows * CONTEXT, rows, -1
    params.cache_ram_mib = 0
    params.warmup = True
    server = xllamacpp.Server(params)

    def ask(prompt: list[int], tokens: int) -> float:
        about = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = server.handle_completions(about)
        return float(answer["timings"]["predicted_per_token_ms"]) / 1000

    def write(prompt: list[int], rows: int, tokens: int) -> float:
        with ThreadPoolExecutor(rows) as pool:
            return statistics.median(pool.map(lambda _: ask(prompt, tokens), range(rows)))

    return write


def in_turn(
    writers: dict[str, Write], prompt: list[int], rows: int, tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every round, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in writers}
    for number in range(rounds + 1):
        for name, write in writers.items():
            taken = write(prompt, rows, tokens)
            if number:
                times[name].append(taken)
    return times


def spread(times: list[float]) -> str:
    """In milliseconds."""
    median = 1000 * statistics.median(times)
    digits = 3 if median < 1 else 2 if median < 10 else 1
    return f"{median:.{digits}f} ({1000 * min(times):.{digits}f} to {1000 * max(times):.{digits}f})"


def random_model(sizes: dict[str, Any], context: int, **switches: Any) -> GPT2:
    """A model whose weights are as large as trained ones."""
    model = GPT2(max_seq_len=context, **sizes, **switches, seed=0)
    with torch.no_grad():
        for matrix in (parameter for parameter in model.parameters() if parameter.dim() == 2):
            matrix.mul_(3)
    return model.eval()


def matrices(model: GPT2) -> int:
    """Numbers that are multiplied with for each token: all matrices but that of learned positions."""
    names = (name for name in model.weights() if name != "embeddings.position.weight")
    return sum(model.get_parameter(name).numel() for name in names if model.get_parameter(name).dim() == 2)


def programs(asked: argparse.Namespace) -> None:
    """The first table."""
    fastest = bandwidth(asked.threads)
    print(f"reading: {fastest / 1e9:.1f} GB/s\n")
    print("| model | texts | prompt | program | ms for a token of all texts | against native float32 | bandwidth |")
    print("|---|---|---|---|---|---|---|")
    for size in asked.sizes:
        model = random_model(SIZES[size], CONTEXT)
        tokens = {"0.8M": 60, "10M": 40, "124M": 12}[size]
        for rows in asked.batches:
            with tempfile.TemporaryDirectory() as folder:
                writers: dict[str, Write] = {f"native {w}": ours(model, step="native", weights=w) for w in BYTES}
                writers["eager"] = ours(model, step="eager")
                if asked.peers:
                    writers["Transformers"] = transformers(model)
                    for stored in ("f32", "f16", "q8_0"):
                        for count in sorted({1, asked.threads}):
                            name = f"llama.cpp {stored}, {count} thread{'s' if count > 1 else ''}"
                            writers[name] = llama_cpp(model, Path(folder), stored, count, rows)
                for length in asked.prompts:
                    prompt = [1 + i % 60 for i in range(length)]
                    times = in_turn(writers, prompt, rows, tokens, asked.rounds)
                    base = statistics.median(times["native float32"])
                    for name, found in times.items():
                        median, share = statistics.median(found), ""
                        if name.startswith("native"):
                            weights = BYTES[name.removeprefix("native ")] * matrices(model)
                            cached = rows * model.cache_bytes(length + tokens // 2)
                            share = f"{(weights + cached) / median / fastest:.0%}"
                        cells = (size, rows, length, name, spread(found), f"{median / base:.2f}", share)
                        print("|", " | ".join(map(str, cells)), "|", flush=True)
                del writers


def switches(asked: argparse.Namespace) -> None:
    """The second table: the 0.6 M model of the claims, from the middle of its context to the end."""
    sizes = {"vocab_size": 90, "embed_dim": 128, "num_heads": 4, "ff_hidden_dim": 512, "num_layers": 3}
    print("| context | step | variant | ms a token | against the original | bytes read against the original |")
    print("|---|---|---|---|---|---|")
    curves: dict[str, list[float]] = {}
    for context in asked.contexts:
        variants = {name: variant_switches(name, context, 4) for name in get_args(Variant)}
        variants["combined"] = variants["swa"] | {"position": "rope", "num_kv_heads": 1}
        models = {}
        for name, switched in variants.items():
            window = {"window": min(256, switched["window"])} if "window" in switched else {}
            models[name] = random_model(sizes, context, **switched | window)
        for step in ("native", "eager") if context <= 1024 else ("native",):
            half = context // 2
            tokens = max(8, min(64, half - 6))
            writers = {name: ours(model, step=step) for name, model in models.items()}
            times = in_turn(writers, [1 + i % 60 for i in range(half)], 1, tokens, asked.rounds)
            base = statistics.median(times["original"])

            def read(model: GPT2, at: int = half + tokens // 2) -> int:
                return 4 * matrices(model) + model.cache_bytes(at)

            for name, found in times.items():
                if step == "native":
                    curves.setdefault(name, []).append(1000 * statistics.median(found))
                ratio = read(models[name]) / read(models["original"])
                print(
                    f"| {context} | {step} | {name} | {spread(found)} | {statistics.median(found) / base:.2f} | "
                    f"{ratio:.2f} |",
                    flush=True,
                )

    if asked.plot is not None:
        figure, axes = new_plot("context, tokens", "milliseconds a token", xscale="log", yscale="log")
        for name, medians in curves.items():
            axes.plot(asked.contexts, medians, label=name)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(frameon=False)
        save_plot(figure, asked.plot)


def first_token(asked: argparse.Namespace) -> None:
    """What a prompt costs, against one forward over it."""
    print("| model | prompt | forward | first token | ratio |\n|---|---|---|---|---|")
    for size in asked.sizes:
        for name, switched in (("", {}), (", RoPE, window 256", {"position": "rope", "window": 256})):
            model = random_model(SIZES[size], CONTEXT, **switched)
            ids = torch.arange(1000) % 60

            def forward(model: GPT2 = model, ids: torch.Tensor = ids) -> None:
                with torch.no_grad():
                    model.hidden(ids[None])

            def first(model: GPT2 = model, ids: torch.Tensor = ids) -> None:
                engine = Engine(model, 1)
                engine.add(ids, Sampling(), max_tokens=1)
                engine.step()

            clock: dict[str, list[float]] = {"forward": [], "first": []}
            for number in range(asked.rounds + 1):
                for what, work in (("forward", forward), ("first", first)):
                    start = time.perf_counter()
                    work()
                    if number:
                        clock[what].append(time.perf_counter() - start)
            ratio = statistics.median(clock["first"]) / statistics.median(clock["forward"])
            print(
                f"| {size}{name} | {len(ids)} | {spread(clock['forward'])} | {spread(clock['first'])} | {ratio:.2f} |",
                flush=True,
            )


def endless(asked: argparse.Namespace) -> None:
    """Early and late tokens of a text without an end."""
    model = random_model(SIZES["0.8M"], 512, position="rope", window=128)
    engine = Engine(model, 1, step="native")
    engine.add([1], Sampling(seed=1), max_tokens=200_000)
    early = [timed(engine, 0 if i else 300, 400) for i in range(asked.rounds)]
    before = peak_memory(torch.device("cpu"))
    timed(engine, 100_000 - 300 - 400 * asked.rounds, 1)
    late = [timed(engine, 0, 400) for _ in range(asked.rounds)]
    grown = (peak_memory(torch.device("cpu")) - before) / 2**20
    print(f"token 300: {spread(early)} ms; token 100,000: {spread(late)} ms; memory grew by {grown:.1f} MiB")


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--prompts", nargs="+", type=int, default=[16, 1000])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--contexts", nargs="+", type=int, default=[25, 64, 256, 1024, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--switches", action="store_true")
    parser.add_argument("--plot", type=Path, help="of --switches, an SVG file")
    parser.add_argument("--first-token", action="store_true")
    parser.add_argument("--endless", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    print(f"{describe_machine()}; {asked.threads} threads, {asked.rounds} rounds")
    modes = {switches: asked.switches, first_token: asked.first_token, endless: asked.endless}
    next((mode for mode, wanted in modes.items() if wanted), programs)(asked)


if __name__ == "__main__":
    main()
