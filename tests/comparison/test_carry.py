"""A user's class in another process: its source, what it uses, and the same hash."""

import linecache
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, exp
from torch.nn.functional import scaled_dot_product_attention as attend

from gpt2lab.comparison.carry import carry, program_of
from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model import GPT2, GroupQueryAttention, ScaledDotProductAttention
from gpt2lab.model.attention import describe_mechanism
from gpt2lab.runs.mechanisms import load_attention

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOPES = {"steep": [0.5, 1.0], "flat": (0.1,)}
LOCK = object()


def distance(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    return math.log(2) * (q_pos[:, None, :, None] - k_pos[:, None, None, :])


def make(base: type[ScaledDotProductAttention]) -> type[ScaledDotProductAttention]:
    strength = 0.25

    class Nested(base):  # type: ignore[misc, valid-type]
        "Knows what the function around it knew."

        def bias(self, q_pos: Tensor, k_pos: "Sequence[Any]") -> Tensor:
            far: Sequence[Any] = k_pos  # what only an annotation names is not needed
            LOCK = F.relu(torch.zeros(1)) * exp(torch.zeros(1))
            return -strength * SLOPES["steep"][0] * distance(q_pos, far) + LOCK

        def forward(self, q: Tensor, k: Tensor, v: Tensor, *positions: Tensor) -> Tensor:
            assert attend is not None
            return super().forward(q, k, v, *positions)

    return Nested


def logits(mechanism: type[ScaledDotProductAttention]) -> Tensor:
    config = GPT2Config(7, 8, 16, 4, 32, 2)
    return GPT2.from_config(config, attention=mechanism, seed=1)(torch.arange(7)[None])


@pytest.mark.parametrize("base", [ScaledDotProductAttention, GroupQueryAttention])
def test_a_class_of_a_function_is_carried_with_all_it_uses_and_computes_the_same(base: Any, tmp_path: Path) -> None:
    mechanism = make(base)
    spec = carry(mechanism, tmp_path / "mine.py")
    assert spec == f"{tmp_path / 'mine.py'}:Nested"
    again = load_attention(spec)
    assert again is not None
    assert again is not mechanism
    assert describe_mechanism(again) == describe_mechanism(mechanism)
    assert torch.equal(logits(again), logits(mechanism))
    assert not torch.equal(logits(again), logits(base))


def test_a_process_that_knows_nothing_of_this_one_loads_it(tmp_path: Path) -> None:
    spec = carry(make(ScaledDotProductAttention), tmp_path / "mine.py")
    program = "import sys; from gpt2lab.runs.mechanisms import load_attention; print(load_attention(sys.argv[1]))"
    finds = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}  # modules where this process finds them
    command = [sys.executable, "-c", program, spec]
    done = subprocess.run(command, cwd=tmp_path, env=finds, check=True, capture_output=True, text=True)
    assert "Nested" in done.stdout


def test_a_class_of_a_module_is_imported_from_it() -> None:
    assert program_of(GroupQueryAttention).splitlines()[-1] == (
        "from gpt2lab.model.attention import GroupQueryAttention as GroupQueryAttention"
    )


CELL = """\
import torch
from gpt2lab import ScaledDotProductAttention

STRENGTH = 3

def one():
    return torch.ones(1)

@(lambda decorated: decorated)
class Cell(ScaledDotProductAttention):
    # typed into a notebook
    def bias(self, q_pos, k_pos):
        return -STRENGTH * one() * (q_pos[:, None, :, None] - k_pos[:, None, None, :])

print("after it")
"""


def test_a_class_of_a_notebooks_cell_is_found_though_it_has_no_file(tmp_path: Path) -> None:
    name = str(tmp_path / "no-such-cell.py")
    linecache.cache[name] = (len(CELL), None, CELL.splitlines(keepends=True), name)  # as notebooks do
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL, name, "exec"), namespace)
    mechanism = namespace["Cell"]
    again = load_attention(carry(mechanism, tmp_path / "mine.py"))
    assert again is not None
    assert "typed into a notebook" in program_of(mechanism)
    assert "after it" not in program_of(mechanism)
    assert describe_mechanism(again) == describe_mechanism(mechanism)
    assert torch.equal(logits(again), logits(mechanism))


def test_what_cannot_be_written_down_is_told() -> None:
    class Locked(ScaledDotProductAttention):
        def bias(self, q_pos: Tensor, k_pos: Tensor) -> None:
            assert LOCK

    with pytest.raises(InputError, match=r"the class Locked cannot be carried .*: it uses LOCK, a object; put it into"):
        program_of(Locked)
    bare: dict[str, Any] = {"__name__": "__main__", "Base": ScaledDotProductAttention}
    exec("class Bare(Base): pass", bare)
    with pytest.raises(InputError, match="Python does not know the source of Bare"):
        program_of(bare["Bare"])
