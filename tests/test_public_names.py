"""The public names: each is there, and nothing is loaded before it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2lab


def test_what_type_checkers_see_is_what_there_is() -> None:
    tree = ast.parse(Path(gpt2lab.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == gpt2lab._HOME_OF
    assert gpt2lab.__all__ == sorted(seen)


@pytest.mark.parametrize("name", gpt2lab.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(gpt2lab, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        gpt2lab.trian  # noqa: B018


def test_importing_the_package_or_the_command_line_loads_no_torch() -> None:
    code = "import sys, gpt2lab, gpt2lab.cli, gpt2lab.runs.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
