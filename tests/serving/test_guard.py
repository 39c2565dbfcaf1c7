"""Who may ask, how much, and what happens to those who leave: against a server that runs."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Command, assert_one_sentence
from tests.conftest import LONG
from tests.serving.conftest import Serving, serving

pytestmark = pytest.mark.xdist_group("serving")

SHORT = {"model": "letters", "prompt": "a", "max_tokens": 1}
LONG_TEXTS = {"model": "letters", "prompt": "a", "max_tokens": 12_000, "ignore_eos": True, "n": 16}


def status(server: Serving, **headers: str) -> tuple[int, str]:
    answer = server.ask(headers=headers, **SHORT)
    return answer.status_code, answer.json().get("error", {}).get("code")


def test_a_page_of_another_site_and_another_name_of_the_server_are_refused(server: Serving) -> None:
    ours = server.base.rstrip("/")
    port = ours.rpartition(":")[2]
    assert status(server) == (200, None)
    assert status(server, origin=ours) == (200, None)
    assert status(server, host=f"localhost:{port}", origin=f"http://localhost:{port}") == (200, None)
    assert status(server, origin="https://evil.example") == (403, "origin")
    assert status(server, origin="null") == (403, "origin")
    assert status(server, origin=f"{ours}0") == (403, "origin")
    assert status(server, host="evil.example") == (403, "host")
    assert status(server, host=f"127.0.0.1.evil.example:{port}") == (403, "host")
    assert status(server, host=f"evil.example:{port}", origin=f"http://evil.example:{port}") == (403, "host")
    assert server.get("", headers={"host": "evil.example"}).status_code == 403


def test_every_answer_has_the_headers_that_keep_a_browser_from_harm(server: Serving) -> None:
    for path in ("", "page/main.js", "v1/models", "nothing", "openapi.json"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
    assert "access-control-allow-origin" not in headers


def test_no_path_is_taken_from_a_request(server: Serving) -> None:
    host, _, port = server.base.removeprefix("http://").rstrip("/").partition(":")
    for path in ("/page/../api.py", "/page/%2e%2e/engine.c", "/page//etc/passwd", "/page/engine.c", "/runs/../health"):
        connection = http.client.HTTPConnection(host, int(port), timeout=LONG)
        connection.request("GET", path)  # as it stands; other clients tidy it up
        assert connection.getresponse().status in (404, 400), path
    assert server.get("runs/999").status_code == 404
    assert server.get("runs/abc").json()["error"]["param"] == "number"


def test_what_is_too_large_is_refused_before_it_is_read(server: Serving) -> None:
    answer = server.ask(prompt="a" * 1_100_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")

    def endless() -> Iterator[bytes]:
        while True:
            yield b"a" * 65536

    too_large = re.compile(r'gpt2lab_answers_total\{status="413"\} (\S+)')
    (before,) = too_large.findall(server.get("metrics").text)
    with suppress(httpx.WriteError):  # where the connection is closed before the answer is read
        httpx.post(f"{server.base}v1/completions", content=endless(), timeout=LONG)
    (after,) = too_large.findall(server.get("metrics").text)
    assert float(after) == float(before) + 1


def texts(server: Serving) -> int:
    health = server.get("health").json()
    return int(health["running"] + health["waiting"])


def until_there_are(server: Serving, number: int) -> None:
    end = time.monotonic() + LONG
    while texts(server) != number:
        assert time.monotonic() < end
        time.sleep(0.02)


def begun(server: Serving, **body: object) -> socket.socket:
    """A request whose answer has begun, on a connection that nobody reads any further."""
    host, _, port = server.base.removeprefix("http://").rstrip("/").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=LONG)
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    connection.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_places(folders: list[Path], stream: bool) -> None:
    with serving(folders[0], "--max-tokens", 100_000_000, "--step", "eager") as slow:
        for _ in range(3):
            with begun(slow, **LONG_TEXTS, stream=stream):
                until_there_are(slow, 16)
            until_there_are(slow, 0)


def test_more_than_may_wait_are_told_to_come_again(folders: list[Path]) -> None:
    with serving(
        folders[0], "--max-rows", 2, "--max-waiting", 3, "--max-tokens", 100_000_000, "--step", "eager"
    ) as small:
        body = {"model": "letters", "prompt": "a", "max_tokens": 100_000_000, "ignore_eos": True, "stream": True}
        connections = [begun(small, **body) for _ in range(5)]
        until_there_are(small, 5)
        answer = small.ask(**SHORT)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["type"] == "rate_limit_error"
        for connection in connections:
            connection.close()
        until_there_are(small, 0)
        assert small.ask(**SHORT).status_code == 200


def test_a_request_that_takes_too_long_is_ended_with_a_clear_last_event(folders: list[Path]) -> None:
    with serving(folders[0], "--max-seconds", 1, "--max-tokens", 100_000_000, "--step", "eager") as hasty:
        answer = hasty.ask(**SHORT | {"max_tokens": 100_000_000, "ignore_eos": True, "stream": True})
        *_, last, done, _ = answer.text.split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        assert done == "data: [DONE]"
        whole = hasty.ask(**SHORT | {"max_tokens": 200_000, "ignore_eos": True})
        assert (whole.status_code, whole.json()["error"]["code"]) == (503, "timeout")
        until_there_are(hasty, 0)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_ends_its_streams_clearly(folders: list[Path], how: int) -> None:
    with serving(folders[0], "--grace", 0.5, "--max-tokens", 100_000_000, "--step", "eager") as stopping:
        found: list[str] = []

        def read() -> None:
            body = SHORT | {"max_tokens": 100_000_000, "ignore_eos": True, "stream": True}
            found.append(stopping.ask(**body).text)

        reader = threading.Thread(target=read)
        reader.start()
        until_there_are(stopping, 1)
        stopping.process.send_signal(how)
        reader.join(LONG)
        *_, last, done, _ = found[0].split("\n\n")
        assert "the server has stopped" in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert done == "data: [DONE]"
        assert stopping.process.wait(LONG) == 0


def test_what_is_short_is_finished_before_the_server_stops(folders: list[Path]) -> None:
    with serving(folders[0], "--grace", 60, "--step", "eager") as stopping:
        found: list[httpx.Response] = []
        body = SHORT | {"max_tokens": 1500, "ignore_eos": True}
        reader = threading.Thread(target=lambda: found.append(stopping.ask(**body)))
        reader.start()
        until_there_are(stopping, 1)
        stopping.process.terminate()
        reader.join(LONG)
        assert found[0].json()["usage"]["completion_tokens"] == 1500


def test_where_other_machines_reach_it_a_server_asks_for_its_key(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("<p>better</p>", encoding="utf-8")
    with serving(folders[0], "--host", "0.0.0.0", "--runs", tmp_path) as public:
        key = public.address.partition("#key=")[2]
        assert len(key) >= 32
        assert status(public) == (401, "invalid_api_key")
        assert status(public, authorization="Bearer wrong") == (401, "invalid_api_key")
        assert status(public, authorization=f"Bearer {key}x") == (401, "invalid_api_key")
        assert status(public, authorization=f"Bearer {key}") == (200, None)
        assert status(public, authorization=f"Bearer {key}", host="evil.example") == (403, "host")
        for path in ("v1/models", "runs", "metrics", "openapi.json", "reports/0"):
            assert public.get(path).status_code == 401
        assert [public.get(path).status_code for path in ("", "page/main.js", "health")] == [200, 200, 200]
        assert [model.id for model in public.client.models.list()] == ["letters"]
        (report,) = public.get("runs", headers={"authorization": f"Bearer {key}"}).json()["reports"]
        assert public.get(report["address"].lstrip("/")).text == "<p>better</p>"  # a link sends no header
        assert public.get(report["address"].lstrip("/")[:-1] + "g").status_code == 401
        assert public.get(f"runs?{report['address'].partition('?')[2]}").status_code == 401


def test_a_server_behind_another_one_knows_its_name_and_asks_for_its_key(folders: list[Path]) -> None:
    with serving(folders[0], "--name", "models.example.org") as behind:
        key = behind.address.partition("#key=")[2]
        ours = {"authorization": f"Bearer {key}", "origin": "https://models.example.org"}
        assert status(behind, host="models.example.org", **ours) == (200, None)
        assert status(behind, **ours) == (200, None)  # where that server tells the address in place of the name
        assert status(behind, host="models.example.org") == (401, "invalid_api_key")
        assert status(behind, **ours | {"origin": "https://example.org"}) == (403, "origin")


def test_what_cannot_be_served_is_told_in_one_sentence(folders: list[Path], command: Command, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_sentence(command("serve", folders[0], "--port", port), f"127.0.0.1:{port}", "choose another --port")
    assert_one_sentence(command("serve", tmp_path / "nothing", "--port", 0), "does not exist")
    assert_one_sentence(command("serve", folders[0], folders[0], "--port", 0), "is given twice")
    assert_one_sentence(command("serve", folders[0], "--host", "no.such.host.example"), "cannot listen on")
    assert_one_sentence(command("serve", folders[0], "--key", " a b ", "--port", 0), "the key has to be")
    assert_one_sentence(command("serve", folders[0], "--max-rows", 0), "max-rows")
    for option in ("--grace", "--max-seconds"):
        assert_one_sentence(command("serve", folders[0], option, 1e308), option, "at most 1e+09")


def test_without_its_packages_the_server_says_what_to_install(folders: list[Path]) -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None; from gpt2lab.cli import main; "
        f"sys.exit(main(['serve', {str(folders[0])!r}, '--port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'gpt2lab[serve]'" in done.stderr
