"""What a change of the code must not change: losses of ten trainings, twenty texts, one comparison, as JSON.

Run it before and after, on one machine and with as many threads, and compare the files: every number has to be the
same to the last bit, or the difference has a reason that can be told.

    OMP_NUM_THREADS=1 python benchmarks/fingerprint.py before.json
    OMP_NUM_THREADS=1 python benchmarks/fingerprint.py after.json --against before.json
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gpt2lab

TINY = "--context-size 32 --embed-dim 32 --num-layers 2 --batch-size 8 --max-steps 30 --eval-every 10 --compile no"
TRAININGS = {
    "original": "--variant original",
    "rope": "--variant rope",
    "gqa": "--variant gqa",
    "mqa": "--variant mqa",
    "swa": "--variant swa",
    "modern": "--variant modern",
    "adamw": "--variant modern --optimizer adamw --schedule cosine",
    "dropout": "--variant original --dropout 0.2 --no-tie-embeddings --no-bias --activation relu",
    "accumulation": "--variant modern --window 8,full --accumulation-steps 3",
    "two processes": "--variant modern --processes 2",
}
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 1.2, "top_k": 7, "top_p": 0.9, "min_p": 0.05, "seed": 2},
    {"temperature": 0.7, "repetition_penalty": 1.3, "seed": 3},
)
# What depends on the clock, or on where a folder lies.
CLOCK = {"seconds", "tokens_per_second", "peak_share", "peak_memory", "seconds_to_target", "text", "speed"}


def gpt2lab_command(*arguments: object) -> None:
    """Run the program as users do."""
    subprocess.run([sys.executable, "-m", "gpt2lab", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def without_clock(value: Any) -> Any:
    """The same without what no two runs share."""
    if isinstance(value, dict):
        return {name: without_clock(inner) for name, inner in value.items() if name not in CLOCK}
    return [without_clock(inner) for inner in value] if isinstance(value, list) else value


def texts_of(run: Path) -> list[list[list[int]]]:
    """Five texts of a model: four ways to sample past the context, and three prompts of several lengths at once."""
    model, _ = gpt2lab.load(run)
    import torch

    ids = torch.arange(5)[None] + torch.arange(2)[:, None]  # (2, 5)
    written = [gpt2lab.generate(model, ids, 90, **sampling).tolist() for sampling in SAMPLINGS]
    prompts = [torch.arange(length) % 7 for length in (1, 9, 40)]
    together = list(gpt2lab.stream(model, prompts, 60, gpt2lab.Sampling(temperature=0.9, seed=5)))
    return [*written, torch.stack(together, dim=1).tolist()]


def main() -> None:
    """Measure, write, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"losses": {}, "texts": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = "the king and queen of night speak no more than love or sorrow may hear".split()
        draw = random.Random(1)
        text = folder / "rhyme.txt"
        text.write_text("".join(" ".join(draw.choices(words, k=7)) + ".\n" for _ in range(360)), encoding="utf-8")
        for training, flags in TRAININGS.items():
            run = folder / training.replace(" ", "-")
            gpt2lab_command("train", "--text", text, *TINY.split(), *flags.split(), "--out", run)
            lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            found["losses"][training] = [without_clock(json.loads(line)) for line in lines]
            print(training, found["losses"][training][-1]["loss"], flush=True)
        for training in ("original", "modern", "swa", "mqa"):
            found["texts"][training] = texts_of(folder / training)
        out = folder / "comparison"
        grid = "--variants rope,modern --contexts 16,32 --seeds 2 --steps 20 --rounds 0 --embed-dim 32 --num-layers 2"
        gpt2lab_command("compare", "--text", text, *grid.split(), "--batch-size", 8, "--out", out)
        found["comparison"] = without_clock(json.loads((out / "results.json").read_text(encoding="utf-8")))
    options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.against is not None:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        found = json.loads(json.dumps(found))
        different = [
            f"{kind}/{name}"
            for kind in found
            for name in {**found[kind], **before[kind]}
            if found[kind].get(name) != before[kind].get(name)
        ]
        print("the same to the last bit" if not different else f"different: {', '.join(different)}")
        sys.exit(bool(different))


if __name__ == "__main__":
    main()
