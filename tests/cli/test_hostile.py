"""Whatever a file or an option holds, a command does its work or refuses it in a sentence, in 120 s and 2 GB.

The slow tests try a few examples of each command; ``make test-long`` tries many (figures: docs/reliability.md).
"""

import collections
import functools
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gpt2lab.errors import LONGEST
from gpt2lab.manifests import list_all
from tests.cli.conftest import environment, program
from tests.damage import CELL, LAST, damaged, make_folders, with_hostile_values
from tests.warm import warm_python

GUARD = 120  # seconds, after which a command counts as hanging
MEMORY = 2 * 10**9  # bytes that a command may hold at most

MEASURED = """
import resource, sys
from pathlib import Path

from gpt2lab.cli import main

try:
    code = main(sys.argv[2:])
finally:
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    Path(sys.argv[1]).write_text(str(max(peaks) * 1024))
sys.exit(code)
"""

TINY = "--embed-dim 8 --num-heads 2 --num-layers 1 --context-size 8 --max-steps 2 --threads 1"
WEIGHTS = [f"{LAST}/{name}" for name in ("config.json", "model.safetensors", "manifest.json")]
RUN = [*WEIGHTS, f"{LAST}/state.json", "run/config.yaml", "run/tokenizer.json", "run/metrics.jsonl"]
STATE = [f"{LAST}/optimizer.safetensors", f"{LAST}/random.safetensors", "rhyme.txt"]
CELLS = [f"{CELL}/{name}" for name in ("cell.yaml", "config.yaml", "measurements.json", "metrics.jsonl")]
COMPARISON = [f"comparison/{name}" for name in ("comparison.yaml", "results.json", "speed.json")]
SHARDS = ["shards/pack.json", "shards/tokenizer.json", "shards/tokens_000000.bin", "shards/manifest.json"]

PACK = "data pack rhyme.txt --out shards --tokenizer char --shard-tokens 100000"

# Commands, typed in a folder that holds one of each kind, and the files that they read there.
COMMANDS = {
    f"train --text rhyme.txt {TINY} --out new": ["rhyme.txt"],
    f"train --config plan.toml --text rhyme.txt {TINY} --out new": ["plan.toml"],
    f"train --text shards/*.bin {TINY} --out new": SHARDS,
    "train --resume run --max-steps 22": RUN + STATE,
    "train --init-from run --text rhyme.txt --max-steps 2 --out new": RUN,
    "evaluate run --json": [*RUN, "rhyme.txt"],
    "generate run --tokens 5 --prompt the": RUN,
    "runs . --json": RUN,
    "compare --config comparison/comparison.yaml --rounds 1 --out comparison": CELLS + COMPARISON,
    "report comparison": CELLS + COMPARISON,
    "report comparison/results.json": ["comparison/results.json"],
    "judge runs.jsonl --baseline a --json": ["runs.jsonl"],
    "plan --tokens 1M": [],
    PACK: [*SHARDS, "rhyme.txt"],
    "export run --out page.html --format html": RUN,
    "import hf --out imported": ["hf/config.json", "hf/model.safetensors"],
    "retrofit run --window 4 --max-steps 2 --out converted": RUN,
    "serve run --port 0": RUN,
    "speedrun --config entry.yaml --text rhyme.txt": ["entry.yaml", "rhyme.txt"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undamaged folder. It was made where :func:`undamaged` puts it back, because some files name others."""
    base: Path = tmp_path_factory.mktemp("hostile")
    here = base / "a" / "here"
    here.mkdir(parents=True)
    make_folders(here)
    (here / "entry.yaml").write_text("embed_dim: 8\nnum_heads: 2\nmax_steps: 2\n")
    (here / "measured.py").write_text(MEASURED)
    shutil.rmtree(here / "shards")
    for command in (f"train --text rhyme.txt {TINY} --variant original --out run-0", "export run-0 --out hf", PACK):
        assert program(*command.split(), cwd=here).code == 0
    return Path(shutil.copytree(here, base / "whole"))


def undamaged(folders: Path) -> Path:
    here = folders.parent / "a" / "here"
    shutil.rmtree(folders.parent / "a")
    return Path(shutil.copytree(folders, here))


def tried(here: Path, *arguments: str) -> tuple[int, int]:
    """Run a command: it ends in time, holds little memory, and if it refuses something, it does so in a sentence.

    Returns:
        its exit code, and the most bytes that it held.
    """
    command = [warm_python(), "measured.py", "peak.txt", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=here,
        env=environment(),
    )
    guard = threading.Timer(GUARD, process.kill)
    guard.start()
    if arguments[0] == "serve":  # until it is told to stop
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
    out, err = process.communicate()
    guard.cancel()
    assert process.returncode != -signal.SIGKILL, f"it hangs: {command}"
    assert "Traceback" not in out + err, err
    assert process.returncode in (0, 1, 2, 3), (process.returncode, err)
    if process.returncode == 2:
        last = err.splitlines()[-1]
        assert last.startswith("gpt2lab: "), err
        assert 25 <= len(last) < LONGEST + 100, err
    peak = int((here / "peak.txt").read_text())
    assert peak < MEMORY, command
    return process.returncode, peak


NOT_ZERO = {"judge": 3, "speedrun": 2}  # two seeds decide nothing, and a rhyme is not tinyshakespeare


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_does_its_work_in_an_undamaged_folder(folders: Path, command: str) -> None:
    assert tried(undamaged(folders), *command.split())[0] == NOT_ZERO.get(command.split(maxsplit=1)[0], 0)


def damage_and_try(folders: Path, command: str, data: st.DataObject) -> tuple[int, int]:
    """Damage one of the files that a command reads, and run it; a damaged file is listed as what it is, or is not."""
    here = undamaged(folders)
    path = here / data.draw(st.sampled_from(COMMANDS[command]))
    whole, content = path.read_bytes(), None
    if path.suffix in (".json", ".jsonl", ".yaml") and data.draw(st.booleans()):
        content = with_hostile_values(data, whole, path.suffix)
    path.write_bytes(damaged(data, whole) if content is None else content)
    manifest = path.parent / "manifest.json"
    if path != manifest and manifest.exists() and data.draw(st.booleans()):
        manifest.unlink()
        list_all(path.parent)
    return tried(here, *command.split())


VALUES = ["", " ", "x", "-1", "0", "1", "1.5", "nan", "inf", "-inf", "1e999", "9" * 5000, str(2**31), str(2**64)]
VALUES += [
    "1e308",
    "None",
    "[]",
    "{}",
    ",,,",
    "1,x",
    "a=b",
    "../../x",
    "/",
    "/dev/null",
    "/dev/zero",
    "rhyme.txt",
    "run",
]
VALUES += ["\x1b[2J", "[/red]", "$^$", "\u202e", "😀", "\udcff", "2001-99-99", "x" * 5000, "'", "%s", "--", "-"]

# Commands that get hostile options: those above, and one more.
OPTIONS = [command for command in COMMANDS if not command.startswith("runs")]  # which has none that take a value
OPTIONS += ["compare --variants original,modern --seeds 2 --steps 2 --text rhyme.txt --rounds 1 --out new"]
FOR_EVER = {"--max-steps", "--max-epochs", "--tokens", "--steps", "--minutes", "--num-samples", "--rounds", "--seeds"}
ELSEWHERE = {"--ray", "--wandb"}  # they look for somebody in a network


@functools.cache
def options_of(*command: str) -> list[str]:
    """The options of a command that take a value."""
    helped = program(*command, "--help").out
    found = re.findall(r"^│[ *]+(--[a-z-]+)(?: --[a-z-]+)* (?:INT|FLOAT|STR|PATH|CHOICE)", helped, re.MULTILINE)
    return [option for option in found if option not in ELSEWHERE]


def misuse_and_try(folders: Path, command: str, data: st.DataObject) -> tuple[int, int]:
    """Give one or two options of a command a hostile value, and run it."""
    here = undamaged(folders)
    arguments = command.split()
    options = options_of(*arguments[: 2 if arguments[0] == "data" else 1])
    for option in data.draw(st.lists(st.sampled_from(options), min_size=1, max_size=2, unique=True)):
        value = data.draw(st.sampled_from(VALUES))
        if option in FOR_EVER and value.strip("0123456789.e") == "" and value != "1e999" and float(value or 0) > 9:
            continue
        if option in arguments:
            place = arguments.index(option)
            del arguments[place : place + 2]
        arguments.append(f"{option}={value}")
    return tried(here, *arguments)


def try_often(
    way: Callable[[Path, str, st.DataObject], tuple[int, int]], folders: Path, command: str, examples: int, fixed: bool
) -> None:
    """Try a way to spoil a command with so many examples: always the same ones, or new ones each time."""
    ends: list[tuple[int, int]] = []

    @settings(max_examples=examples, phases=[Phase.generate], derandomize=fixed)
    @given(st.data())
    def one(data: st.DataObject) -> None:
        ends.append(way(folders, command, data))

    one()
    codes = collections.Counter(code for code, _ in ends)
    print(f"{way.__name__}, {command}: exit codes {dict(codes)}, at most {max(peak for _, peak in ends) / 1e6:.0f} MB")


SPOILED = [(damage_and_try, command) for command, files in COMMANDS.items() if files]
SPOILED += [(misuse_and_try, command) for command in OPTIONS]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "command"), SPOILED)
def test_some_damaged_files_and_hostile_options_are_read_or_refused(folders: Path, way: Any, command: str) -> None:
    try_often(way, folders, command, 3, fixed=True)


@pytest.mark.long
@pytest.mark.parametrize(("way", "command"), SPOILED)
def test_many_damaged_files_and_hostile_options_are_read_or_refused(folders: Path, way: Any, command: str) -> None:
    try_often(way, folders, command, 100, fixed=False)
