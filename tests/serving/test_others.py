"""Other programs against a server that runs: the field's harness, and requests that a fuzzer makes of the schema."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt2lab
from gpt2lab import GPT2
from gpt2lab.data import BPETokenizer
from tests.conftest import LONG
from tests.evaluation.test_harness import TASKS, task_folder
from tests.serving.conftest import Serving, serving

__all__ = ["task_folder"]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serving")]


def test_the_harness_finds_the_same_through_the_server_as_directly(task_folder: Path, tmp_path: Path) -> None:
    tokenizer = BPETokenizer.train(["the king and the queen of the night speak no more than love " * 9], 290)
    model = GPT2(tokenizer.vocab_size, 24, 32, 4, 64, 2, position="rope", window=6, seed=3)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "run", tokenizer)
    gpt2lab.export(tmp_path / "run", "hf", tmp_path / "hf")
    names = [str(task_folder / f"{name}.yaml") for name in ("choices", "rolling")]
    with serving(tmp_path / "run") as server:  # the adapter keeps one token of max_length for itself
        options = (
            f"model=run,base_url={server.base}v1/completions,tokenizer={tmp_path / 'hf'},tokenizer_backend=huggingface"
        )
        options += ",tokenized_requests=True,max_length=25,num_concurrent=4"
        model_arguments = ["--model", "local-completions", "--model_args", options]
        arguments = ["--tasks", ",".join(names), "--output_path", str(tmp_path / "found"), "--batch_size", "2"]
        done = subprocess.run(
            [sys.executable, "-m", "lm_eval", *model_arguments, *arguments],
            capture_output=True, text=True, timeout=LONG, check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "found").rglob("results_*.json")
    theirs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"]
    ours = gpt2lab.harness(tmp_path / "run", tasks=names)
    assert theirs.keys() == ours.keys() == TASKS.keys() - {"answers"}
    for task, measures in theirs.items():
        for name, value in measures.items():
            if isinstance(value, float) and "stderr" not in name:
                assert ours[task][name] == pytest.approx(value, rel=1e-5), (task, name)


def test_no_request_that_the_schema_allows_or_almost_allows_breaks_the_server(server: Serving) -> None:
    """Wrong ones are refused with the statuses, types and shapes that the schema tells."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    checks += ",negative_data_rejection,unsupported_method"
    options = ["--checks", checks, "--max-examples", "60", "--seed", "1", "--exclude-path-regex", "^/runs|^/reports"]
    command = [Path(sys.executable).parent / "schemathesis", "run", f"{server.base}openapi.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert server.get("health").json() == {"status": "ok", "waiting": 0, "running": 0}
