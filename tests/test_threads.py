"""How CPU threads wait: decided before torch is there, and never against the user."""

import os
import subprocess
import sys

import pytest

TELL = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torch's other builds use another OpenMP")


def run(code: str, **variables: str) -> tuple[str, str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


def test_waiting_threads_sleep_soon_and_whoever_imports_the_package_has_that() -> None:
    assert run(f"import gpt2lab; {TELL}") == ("1000", "")
    assert run(f"import gpt2lab.cli; {TELL}") == ("1000", "")


@pytest.mark.parametrize("variables", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}], ids=str)
def test_what_the_user_has_set_stays(variables: dict[str, str]) -> None:
    assert run(f"import gpt2lab; {TELL}", **variables) == (variables.get("GOMP_SPINCOUNT", "None"), "")


def test_where_torch_is_there_already_a_line_says_what_to_set() -> None:
    out, told = run(f"import torch, gpt2lab; {TELL}")
    assert out == "None"
    assert "import gpt2lab first, or set GOMP_SPINCOUNT=1000" in told
    assert run(f"import torch, gpt2lab; {TELL}", OMP_NUM_THREADS="1") == ("None", "")  # nobody waits
