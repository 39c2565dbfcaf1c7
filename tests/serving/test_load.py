"""A server under load, with a public tool that knows nothing of it: the figures go into docs/serving.md."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gpt2lab import GPT2, CharTokenizer
from tests.conftest import LONG
from tests.serving.conftest import Serving, serving
from tests.serving.test_guard import begun, until_there_are

pytestmark = pytest.mark.long


def number(server: Serving, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.get("metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


@pytest.mark.skipif(shutil.which("hey") is None, reason="hey is not installed (Debian: apt install hey)")
def test_64_clients_for_two_minutes_get_texts_or_are_told_to_come_again(tmp_path: Path) -> None:
    model = GPT2(65, 64, 128, 4, 512, 3, position="rope", num_kv_heads=2, window=16, seed=0)
    model.save(tmp_path / "model", CharTokenizer(map(chr, range(33, 97))))
    body = {"model": "model", "prompt": "A", "max_tokens": 200, "stream": True, "ignore_eos": True}
    with serving(tmp_path / "model") as server:
        memory = []

        def watch() -> None:
            for _ in range(2):
                time.sleep(59)
                memory.append(number(server, "process_resident_memory_bytes"))

        watching = threading.Thread(target=watch)
        watching.start()
        hey = ["hey", "-z", "120s", "-c", "64", "-t", "120", "-m", "POST", "-T", "application/json"]
        done = subprocess.run(
            [*hey, "-d", json.dumps(body), f"{server.base}v1/completions"],
            capture_output=True, text=True, timeout=LONG, check=True,
        )  # fmt: skip
        watching.join()
        codes = {int(code): int(count) for code, count in re.findall(r"\[(\d+)\]\t(\d+) responses", done.stdout)}
        print(done.stdout, memory, server.get("metrics").text)
        assert "Error distribution" not in done.stdout
        assert codes.keys() <= {200, 429}
        assert codes[200] > 64
        assert max(memory) / min(memory) < 1.05
        until_there_are(server, 0)


def test_a_thousand_clients_that_connect_and_vanish_leave_nothing_behind(folders: list[Path]) -> None:
    body = {"model": "letters", "prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with serving(folders[0]) as server:
        host, _, port = server.base.removeprefix("http://").rstrip("/").partition(":")

        def counts() -> tuple[float, float]:
            return number(server, "gpt2lab_threads"), number(server, "process_open_fds")

        for _ in range(20):  # whatever is made once is made now
            begun(server, **body).close()
        until_there_are(server, 0)
        before = counts()
        for client in range(1000):
            match client % 3:
                case 0:
                    socket.create_connection((host, int(port)), timeout=LONG).close()
                case 1:
                    begun(server, **body).close()
                case 2:
                    with socket.create_connection((host, int(port)), timeout=LONG) as half:
                        half.sendall(
                            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"
                        )
        until_there_are(server, 0)
        end = time.monotonic() + 60
        while (after := counts()) != before and time.monotonic() < end:
            time.sleep(0.5)
        assert after == before
        assert server.ask(model="letters", prompt="a", max_tokens=3).status_code == 200
