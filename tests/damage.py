"""Ways to damage a file, drawn by Hypothesis, and one of each folder that this project writes."""

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from gpt2lab.data.pack import pack

OLD = Path(__file__).parent / "old_folders"
CELL = "comparison/context-8/modern/seed-1"
LAST = "run/checkpoints/step-00000020"

HOSTILE: list[Any] = [
    None, True, -1, 0, 2**31, 2**64, 10**400, 0x10**5000, 1e308, float("inf"), float("nan"), "", "x", "x" * 999,
    "a\0b", "\x1b[2J", "\ud800", "../../x", "[/red]", "$^$", "2001-99-99", "1e999", [], {}, [[]], [None], {"": None},
    [1] * 50,
]  # fmt: skip


def make_folders(here: Path) -> None:
    """One of each folder that this project writes, and files that it reads."""
    shutil.copytree(OLD, here, dirs_exist_ok=True)
    for path in here.rglob("*"):
        if path.suffix in (".yaml", ".json") and "HERE" in (content := path.read_text(encoding="utf-8")):
            path.write_text(content.replace("HERE", str(here)), encoding="utf-8")
    pack_shards(here)
    runs = [{"arm": arm, "seed": seed, "loss": 2.0 + seed} for arm in "ab" for seed in (1, 2)]
    (here / "runs.jsonl").write_text("\n".join(map(json.dumps, runs)))
    (here / "plan.toml").write_text('context_size = 8\nwindow = "4"\n')


def pack_shards(here: Path) -> None:
    pack(OLD / "rhyme.txt", here / "shards", "char", shard_tokens=100_000, processes=1)


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """A file of which one to three places are flipped, cut off, lost, or have something put in."""
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        if (kind := data.draw(st.sampled_from(["flip", "cut", "put", "drop"]))) == "flip" and content:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del content[place:]
        elif kind == "put":
            content[place:place] = data.draw(st.binary(max_size=9) | st.just(b"[" * 3000) | st.just(b"9" * 5000))
        else:
            del content[place : place + data.draw(st.integers(1, 99))]
    return bytes(content)


def with_hostile_values(data: st.DataObject, whole: bytes, suffix: str) -> bytes | None:
    """JSON, JSON lines or YAML in which one or two values are hostile, missing, or have another name.

    None if Python writes no such number.
    """
    load, dump = (yaml.safe_load, yaml.safe_dump) if suffix == ".yaml" else (json.loads, json.dumps)
    text = whole.decode("utf-8")
    values = [load(line) for line in (text.splitlines() if suffix == ".jsonl" else [text])]
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(list(_places(values))))
        at: Any = values
        for key in way:
            at = at[key]
        if isinstance(at, dict) and data.draw(st.booleans()):
            kept = at.pop(last)
            if data.draw(st.booleans()):
                at["another"] = kept
        else:
            at[last] = deepcopy(data.draw(st.sampled_from(HOSTILE)))
    try:
        return "\n".join(dump(value) for value in values).encode("utf-8", "surrogatepass")
    except ValueError:
        return None


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in nested lists and dicts."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))
