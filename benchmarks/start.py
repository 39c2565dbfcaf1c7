"""What it costs to begin: seconds of processor time until help is printed, and until a run has written one token.

    python benchmarks/start.py [RUN]

Each is the median of several fresh processes, the commands in turn. Without RUN a tiny one is trained first.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 7


def processor_seconds(*arguments: str) -> float:
    """User and system time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "80"}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Time and print."""
    with tempfile.TemporaryDirectory() as folder:
        run = sys.argv[1] if len(sys.argv) > 1 else f"{folder}/run"
        if len(sys.argv) == 1:
            text = Path(folder) / "text.txt"
            text.write_text("to be or not to be, that is the question\n" * 300, encoding="utf-8")
            sizes = "--context-size 16 --embed-dim 32 --max-steps 2 --num-layers 1".split()
            train = ["-m", "gpt2lab", "train", "--text", str(text), *sizes, "--out", run]
            subprocess.run([sys.executable, *train], check=True, stdout=subprocess.DEVNULL)
        commands = {
            "gpt2lab --help": ["-m", "gpt2lab", "--help"],
            "gpt2lab train --help": ["-m", "gpt2lab", "train", "--help"],
            "import torch": ["-c", "import torch"],
            "load a run, write one token": ["-c", f"import gpt2lab; gpt2lab.generate({run!r}, tokens=1)"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                times[name].append(processor_seconds(*command))
    print(f"{'seconds of processor time':30}  median   lowest to highest of {ROUNDS}")
    for name, found in times.items():
        print(f"{name:30}  {statistics.median(found):6.2f}   {min(found):.2f} to {max(found):.2f}")


if __name__ == "__main__":
    main()
