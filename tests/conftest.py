"""What every test shares: one thread a process, folders that are made once, and small texts.

``pytest --order-seed 7`` runs the tests in another order. ``HYPOTHESIS_PROFILE=explore`` lets Hypothesis look for new
examples, other ones with every ``--hypothesis-seed``; without it the examples are always the same.
"""

import os

from gpt2lab.threads import SPINS

# Before torch is imported: on a shared machine two OpenMP threads a process wait for each other most of the time.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["GOMP_SPINCOUNT"] = SPINS  # for the tests that ask for more threads

import random
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import get_args

import filelock
import pytest
import torch
from hypothesis import register_random, settings

from gpt2lab.errors import InputError
from gpt2lab.native.library import Name, build, default_folder

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a job that a shell started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadlines: machines are shared, and stall. No database: what an earlier run found must not change this one.
settings.register_profile("repeat", max_examples=50, deadline=None, database=None, derandomize=True)
settings.register_profile("explore", deadline=None, database=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


class TorchRandom:
    """What torch draws without a generator: Hypothesis seeds it for every example, and puts it back."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


register_random(TorchRandom)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--order-seed", type=int, help="run the tests in an order that this number draws")


def pytest_configure(config: pytest.Config) -> None:
    """Compile the native step before the tests, so that none sees that happen but those that make it happen."""
    if not hasattr(config, "workerinput"):
        with suppress(InputError):  # without a compiler its own tests fail
            for name in get_args(Name):
                build(name, default_folder(name))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="there is no NVIDIA GPU"))
    seed = config.getoption("--order-seed")
    if seed is not None:
        random.Random(seed).shuffle(items)


LONG = 900  # seconds for what takes one: a test fails because something is wrong, never because a machine is busy

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Makes a folder, the first time that one of the workers of this test run asks for it, for all of them.

    Whoever uses such a folder copies it before changing anything in it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made, failed = (shared / f"{name}{ending}" for ending in ("", ".made", ".failed"))
        with filelock.FileLock(shared / f"{name}.lock"):
            if failed.exists():  # once is enough
                pytest.fail(failed.read_text(encoding="utf-8"))
            if not made.exists():
                try:
                    make(folder)
                except BaseException:
                    failed.write_text(traceback.format_exc(), encoding="utf-8")
                    raise
                made.touch()
        return folder

    return make_once


@pytest.fixture(autouse=True)
def as_if_it_were_the_first() -> None:
    """A test draws and adds up the same numbers, whatever tests ran before it in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encoded corpora go into a folder of this session, those of subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def rhyme() -> str:
    """A text of 13,000 characters that a tiny model learns something of in a few steps."""
    words = "the king and queen of night speak no more than love or sorrow may hear".split()
    draw = random.Random(1)
    return "".join(" ".join(draw.choices(words, k=7)) + ".\n" for _ in range(360))


@pytest.fixture(scope="session")
def rhyme_file(rhyme: str, make_once: MakeOnce) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "rhyme.txt").write_text(rhyme, encoding="utf-8")

    return make_once("texts", make) / "rhyme.txt"
