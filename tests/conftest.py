"""What every test shares: one thread a process, a cache of the session's own, and small models and texts."""

import os

# Before torch is imported: on a shared machine two OpenMP threads a process wait for each other most of the time.
os.environ["OMP_NUM_THREADS"] = "1"

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a job that a shell started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("no deadline", deadline=None)  # machines are shared, and stall
settings.load_profile("no deadline")


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
def rhyme_file(rhyme: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "rhyme.txt"
    path.write_text(rhyme, encoding="utf-8")
    return path
