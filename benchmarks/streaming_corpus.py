"""Encode a text larger than the memory allowed, and read batches from it.

    python benchmarks/streaming_corpus.py                                # 2 GB under 1 GB of memory, 2 to 3 minutes
    python benchmarks/streaming_corpus.py --size 0.05e9 --tokenizer bpe

Writes a UTF-8 file made of the Shakespeare corpus, repeated with variation, into a temporary folder. A child process
with limited memory makes the vocabulary, encodes the whole file into the memory-mapped cache, and reads random
batches. Two limits hold in the child: the kernel refuses it more than --memory of private writable memory
(RLIMIT_DATA: heap and anonymous mappings, where a text or an array of ids held in memory would be), and the benchmark
fails if its peak resident memory (ru_maxrss, which counts shared libraries too) is above the same number after
encoding. While batches are read, pages of the memory-mapped cache become resident as well; they belong to the system's
file cache and are given up as soon as anyone wants the memory, so for that phase the process's own memory (RssAnon) is
printed beside the resident peak.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpt2lab.data import (
    BPETokenizer,
    CharTokenizer,
    StatelessSampler,
    TokenDataset,
    encode_corpus,
    open_corpus,
    split,
)


def write_text(path: Path, size: int) -> None:
    """Shakespeare's paragraphs in an order that differs from copy to copy, some of them with other characters."""
    paragraphs = "".join(open_corpus("shakespeare").chunks()).split("\n\n")
    generator = random.Random(0)
    with path.open("wb") as file:
        while file.tell() < size:
            generator.shuffle(paragraphs)
            accent = generator.choice("éèêëąçžøπж中🙂")
            text = "\n\n".join(paragraphs).replace(generator.choice("aeiou") + " ", accent + " ")
            file.write(text.encode()[: size - file.tell()].decode(errors="ignore").encode())
            if size - file.tell() < 4:  # a character of several bytes did not fit
                file.write(b"." * (size - file.tell()))


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def own_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def measure(path: str, kind: str, batches: int, memory: int) -> dict[str, Any]:
    """In the child: limit memory, then do what training does before its first step."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    corpus = open_corpus(text=path)
    start = time.perf_counter()
    if kind == "char":
        tokenizer: CharTokenizer | BPETokenizer = CharTokenizer.from_corpus(corpus)
    else:
        tokenizer = BPETokenizer.train(corpus.chunks(0, min(split(corpus)["train"][1], 20_000_000)), 1024)
    fitted = time.perf_counter()
    tokens = encode_corpus(corpus, tokenizer, 0, corpus.size)
    encoded = time.perf_counter()
    peak_encoding = peak_rss()
    dataset = TokenDataset(tokens, 256, tokenizer.vocab_size)
    for indices in StatelessSampler(len(dataset), 64, num_steps=batches):
        dataset.__getitems__(indices)
    read = time.perf_counter()
    return {
        "tokenizer": f"{kind} ({tokenizer.vocab_size:,} ids)",
        "bytes": f"{corpus.size:,}",
        "tokens": f"{len(tokens):,}",
        "vocabulary s": f"{fitted - start:.1f}",
        "encoding s": f"{encoded - fitted:.1f}",
        "encoding MB/s": f"{corpus.size / (encoded - fitted) / 1e6:.1f}",
        "peak RSS while encoding, MB": f"{peak_encoding / 1e6:,.0f}",
        f"{batches:,} batches (64 × 256) s": f"{read - encoded:.2f}",
        "own memory after batches, MB": f"{own_memory() / 1e6:,.0f}",
        "peak RSS with mapped pages, MB": f"{peak_rss() / 1e6:,.0f}",
        "within the limit": "yes" if peak_encoding <= memory else "NO",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=2e9, help="bytes of text (default: %(default).0f)")
    parser.add_argument("--memory", type=float, default=1e9, help="bytes of memory allowed (default: %(default).0f)")
    parser.add_argument("--tokenizer", choices=["char", "bpe"], default="char")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--folder", help="where the temporary files go: 3 times --size (default: the system's)")
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)  # how the child is called
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.tokenizer, arguments.batches, int(arguments.memory))))
        return
    with tempfile.TemporaryDirectory(prefix="gpt2lab-", dir=arguments.folder) as folder:
        path = Path(folder) / "text.txt"
        write_text(path, int(arguments.size))
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(path)]
        environment = os.environ | {"GPT2LAB_CACHE": folder}
        row = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    print(f"memory allowed: {arguments.memory / 1e6:,.0f} MB")
    for name, value in row.items():
        print(f"{name:32} {value:>20}")
    if row["within the limit"] != "yes":
        sys.exit(1)


if __name__ == "__main__":
    main()
