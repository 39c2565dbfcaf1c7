"""``--help``: it teaches, and it is there at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpt2lab.cli.app import app
from tests.cli.conftest import Command, environment
from tests.conftest import LONG

COMMANDS = [
    "train",
    "evaluate",
    "generate",
    "compare",
    "report",
    "judge",
    "data pack",
    "plan",
    "runs",
    "speedrun",
    "demo",
]


def test_the_first_help_tells_in_a_sentence_what_each_command_does(command: Command) -> None:
    told = command("--help").out
    assert command().out == told
    assert "Find out what a switch really does" in told
    lines = [line.strip("│ ").split(maxsplit=1) for line in told.splitlines() if line.startswith("│")]
    assert {name for name, *words in lines if words} >= {name for name in app if not name.startswith("-")}
    assert "Encode documents into token shards" in command("data", "--help").out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_says_more(command: Command, name: str) -> None:
    told = command(*name.split(), "--help").out.split("╭")[0].splitlines()
    assert told[0].startswith(f"Usage: gpt2lab {name}")
    assert len(" ".join(told[1:]).split()) > 15


def test_no_help_loads_torch_or_what_draws() -> None:
    code = (
        "import sys; from gpt2lab.cli import main; "
        f"assert not any(main([*command.split(), '--help']) for command in {['', *COMMANDS]}); "
        "sys.exit(', '.join(sys.modules.keys() & {'torch', 'matplotlib', 'scipy'}) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_tab_completion_is_installed_for_the_shell(tmp_path: Path) -> None:
    home = environment() | {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
    subprocess.run([sys.executable, "-m", "gpt2lab", "--install-completion"], env=home, check=True, timeout=LONG)
    (script,) = (path for path in tmp_path.rglob("gpt2lab") if path.is_file())
    assert {"--context-size", "--num-kv-heads", "evaluate"} <= {*script.read_text().replace("'", " ").split()}
    assert str(script.name) in (tmp_path / ".bashrc").read_text()
