"""The native step is compiled once for a machine; whatever goes wrong with that, the eager step writes, and says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2lab.errors import InputError
from gpt2lab.native import library
from tests.warm import warm_python

ROOT = Path(__file__).parents[2]


def write(step: str = "auto", **environment: str) -> tuple[str, list[str]]:
    """What a process of its own writes, and the notes that it makes."""
    command = [warm_python(), Path(__file__).with_name("writing.py"), step]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    return done.stdout or lines[-1], [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]


@pytest.fixture(scope="module")
def eager_text() -> str:
    return write("eager")[0]


def script(path: Path, lines: str) -> str:
    path.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_it_is_compiled_in_the_background_and_found_by_the_next_process(tmp_path: Path, eager_text: str) -> None:
    text, notes = write(XDG_CACHE_HOME=str(tmp_path))
    assert text == eager_text
    assert len(notes) == 1
    assert "compiles the native step for this machine, once" in notes[0]
    assert write("native", XDG_CACHE_HOME=str(tmp_path)) == (eager_text, [])  # it waits for the other process
    assert write(XDG_CACHE_HOME=str(tmp_path)) == (eager_text, [])
    (built,) = (tmp_path / "gpt2lab").iterdir()
    for path in (built, built / "native.so"):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["cut", "changed", "manifest"])
def test_a_damaged_library_is_built_again(tmp_path: Path, damage: str, eager_text: str) -> None:
    folder = tmp_path / "native"
    log = tmp_path / "log"
    built = library.default_folder("writing") / "native.so"
    copied = f'echo >> {log}; while [ "$1" != -o ]; do shift; done; cp {built} "$2"'
    library.library("writing").wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", script(tmp_path / "compiler", copied))
        library.build("writing", folder)
        library.build("writing", folder)
        assert len(log.read_text().splitlines()) == 1
        path = folder / ("manifest.json" if damage == "manifest" else "native.so")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-9] + b"x" + content[-8:])
        assert library.read(folder) is None
        library.build("writing", folder)
        assert len(log.read_text().splitlines()) == 2
        assert library.read(folder) is not None


def test_what_others_can_write_is_not_executed(tmp_path: Path) -> None:
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "native.so").write_bytes(b"")
    folder.chmod(0o777)
    with pytest.raises(InputError, match=r"others can write to .*native, so it is not executed"):
        library.read(folder)


def test_a_compiler_that_fails_shows_its_last_line_and_the_eager_step_writes(tmp_path: Path, eager_text: str) -> None:
    compiler = script(tmp_path / "compiler", "echo some lines >&2; echo error: no such flag >&2; exit 1")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": compiler}
    said, _ = write("native", **environment)
    assert said.endswith(f"InputError: {compiler} cannot compile it: error: no such flag\n".strip())
    broken = library.Library("writing", tmp_path / "native")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", compiler)
        with pytest.warns(UserWarning, match="compiles the native step"):
            assert broken.now() is None
        assert broken._building is not None
        broken._building.join()
        with pytest.warns(UserWarning, match=r"the eager step writes, .*: .* cannot compile it: error: no such flag"):
            assert broken.now() is None
        assert broken.now() is None  # and says no more


def test_without_a_compiler_the_eager_step_writes_and_says_what_is_missing(tmp_path: Path, eager_text: str) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "CXX": "no-such-compiler"}
    text, notes = write(**environment)
    assert text == eager_text
    assert len(notes) == 1
    assert "the eager step writes, which is slower: there is no C++ compiler 'no-such-compiler'" in notes[0]
    said, _ = write("native", **environment)
    assert "InputError: there is no C++ compiler 'no-such-compiler'; install one" in said


def test_where_the_cache_cannot_be_written_the_eager_step_writes(tmp_path: Path, eager_text: str) -> None:
    (tmp_path / "file").write_text("")
    said, _ = write("native", XDG_CACHE_HOME=str(tmp_path / "file"))
    assert "InputError: it cannot be built in " in said
    text, _ = write(XDG_CACHE_HOME=str(tmp_path / "file"))
    assert text == eager_text


def test_loading_it_changes_nothing_of_how_torch_computes() -> None:
    """A library that is linked with -ffast-math makes the thread that loads it flush small numbers to 0."""
    program = """
import torch
from gpt2lab.native.library import library
def looks():
    small = torch.tensor([1e-40, 3e-39]) / 3
    return small.tolist(), (torch.tensor([float("nan")]) == float("nan")).item(), torch.get_num_threads()
before = looks()
for name in ("writing", "training"):
    library(name).wait()
assert looks() == before and before[0][0] > 0, (before, looks())
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def sanitized(tmp_path: Path, *tests: str) -> None:
    """Run tests of the native step with a library that watches every access to memory and every calculation."""
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")  # the second is there for exceptions that torch throws
    ]
    environment = {
        "XDG_CACHE_HOME": str(tmp_path),
        "CXX": "g++ -g -fsanitize=address,undefined -fno-sanitize-recover=all",
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "2",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--capture=sys",
        *tests,
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert len(list(tmp_path.rglob("native.so"))) == 2


@pytest.mark.slow
def test_a_sample_of_the_steps_tests_passes_with_sanitizers(tmp_path: Path) -> None:
    tests = "tests/generation/test_step.py", "tests/model/test_fused.py"
    sanitized(tmp_path, *tests, "-k", "fewer_bits or last_bit or not_numbers or not_a_number or both_sides or float64")


@pytest.mark.long
def test_all_of_the_steps_tests_pass_with_sanitizers(tmp_path: Path) -> None:
    sanitized(tmp_path, "tests/generation/test_step.py")


def test_the_first_training_compiles_its_library_and_uses_it(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 60)
    sizes = ["--embed-dim", "16", "--num-heads", "2", "--num-layers", "1", "--context-size", "8", "--max-steps", "2"]
    command = [sys.executable, "-m", "gpt2lab", "train", "--text", str(text), "--out", str(tmp_path / "run"), *sizes]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "native step (faster)" in done.stdout
    assert len(list(tmp_path.glob("gpt2lab/native-training-*/native.so"))) == 1
