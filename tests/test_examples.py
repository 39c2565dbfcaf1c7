"""What people start from runs: the notebook from top to bottom, and the experiment that warns of looking ahead."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from gpt2lab.data.tokenizers import BPETokenizer
from tests.interchange.made import drawn, gpt2

ROOT = Path(__file__).parents[1]


def run_notebook(name: str) -> tuple[list[Any], str]:
    """Run every cell of an example: all outputs, and what was printed."""
    notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": ROOT}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return outputs, "".join(output["text"] for output in outputs if output["output_type"] == "stream")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_answers() -> None:
    outputs, printed = run_notebook("own_attention.ipynb")
    assert "this attention reads the future: position 0 reads 1" in printed
    assert "ALiBi is causal" in printed
    assert re.search(r"ALiBi minus original: [+-]0\.\d{4} nats .*: (better|worse|no difference shown)", printed)
    shown = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in data for data in shown) == 1
    (table,) = [html for data in shown if "<table>" in (html := data.get("text/html", ""))]
    assert "ALiBi</td><td>test_loss" in table


@pytest.mark.slow
def test_the_notebook_of_gpt2_runs_on_a_small_stand_in(
    tmp_path: Path, rhyme_file: Path, rhyme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = BPETokenizer.train([rhyme, "It was"], 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    drawn(gpt2(vocab_size=tokenizer.vocab_size, n_positions=64)).save_pretrained(tmp_path)
    for name, value in {"GPT2": tmp_path, "TEXT": rhyme_file, "STEPS": 3}.items():
        monkeypatch.setenv(name, str(value))
    _, printed = run_notebook("gpt2.ipynb")
    (difference,) = re.findall(r"largest difference of a logit: (\S+)", printed)
    assert float(difference) < 1e-5
    assert len(re.findall(r"right after, (num_kv_heads|position|together): \d\.\d{3}", printed)) == 3
    assert "Starcoder2ForCausalLM" in printed


@pytest.mark.slow
def test_looking_ahead_flatters_every_loss_but_the_honest_one(rhyme_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "experiments/looks_ahead.py", "--steps", "60", "--text", str(rhyme_file)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "blocks of 5, one ahead: this attention reads the future" in done.stdout
    rows = re.findall(r"\| (a causal|blocks).*\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", done.stdout)
    (_, *causal), (_, *ahead) = rows
    assert float(ahead[0]) < float(causal[0])  # in training,
    assert float(ahead[1]) < float(causal[1])  # and on held-out text that lies there whole, the cheat wins;
    assert float(ahead[2]) > float(causal[2]) + 0.3  # where there is nothing to look at, it has learned nothing
    assert causal[1] == causal[2]
