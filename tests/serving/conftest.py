"""A server in a process of its own, as users have it, and models for it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gpt2lab import GPT2, CharTokenizer
from gpt2lab.data import BPETokenizer, Tokenizer
from tests.cli.conftest import command, environment
from tests.conftest import LONG, MakeOnce
from tests.interchange.made import drawn
from tests.warm import warm_python

__all__ = ["command"]

WORDS = "The king's 12 queens, and  the night of Zoë's 中文 don't\n\n speak "
# What is served: an endless model of characters, and one of words that forgets.
MODELS: dict[str, tuple[Tokenizer, dict[str, Any]]] = {
    "letters": (CharTokenizer("abcdefghijklmnopqrstuvw\n "), {"position": "rope", "num_kv_heads": 2, "window": 5}),
    "words": (BPETokenizer.train([WORDS * 9], 320), {"window": (5, None), "sinks": True}),
}


def model_of(name: str) -> tuple[GPT2, Tokenizer]:
    tokenizer, switches = MODELS[name]
    return drawn(GPT2(tokenizer.vocab_size, 32, 24, 4, 40, 2, **switches)), tokenizer


@dataclass(frozen=True)
class Serving:
    """A server that runs."""

    address: str
    process: "subprocess.Popen[str]"

    @property
    def base(self) -> str:
        return self.address.partition("#")[0]

    @property
    def client(self) -> openai.OpenAI:
        key = self.address.partition("#key=")[2] or "none"
        return openai.OpenAI(base_url=f"{self.base}v1", api_key=key, max_retries=0, timeout=LONG)

    def ask(self, path: str = "v1/completions", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return httpx.post(self.base + path, json=body, headers=headers, timeout=LONG)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.base + path, timeout=LONG, **options)


@contextmanager
def serving(*arguments: object) -> Iterator[Serving]:
    """Start a server on a free port; it is told to stop at the end."""
    command = [warm_python(), "-m", "gpt2lab", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                pytest.fail(process.stderr.read() if process.stderr else "the server did not start")
            yield Serving(address, process)
        finally:
            process.terminate()
            process.communicate(timeout=LONG)


@pytest.fixture(scope="session")
def folders(make_once: MakeOnce) -> list[Path]:
    def make(folder: Path) -> None:
        for name in MODELS:
            model, tokenizer = model_of(name)
            model.save(folder / name, tokenizer)

    made = make_once("served", make)
    return [made / name for name in MODELS]


@pytest.fixture(scope="session")
def server(folders: list[Path]) -> Iterator[Serving]:
    with serving(*folders, "--runs", folders[0].parent) as running:
        yield running
