"""lm-evaluation-harness on a run: the same numbers as its own adapter finds on the exported folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt2lab
from gpt2lab import GPT2, InputError
from gpt2lab.data.tokenizers import BPETokenizer
from gpt2lab.evaluation.harness import log_likelihoods
from tests.cli.conftest import LONG, Command, assert_one_sentence, command
from tests.model.reference import dense_logits

__all__ = ["command"]

TASKS = {
    "choices": """
task: choices
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{answers}}"
doc_to_target: right
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
task: rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "answers": """
task: answers
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["e"], do_sample: false, max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """Tasks that need no network."""
    words = ["the king ", "and the queen ", "of the night ", "speak ", "no more ", "than love "]
    lines = [
        {
            "question": "".join(words[: 1 + i % 5]),
            "answers": [words[(i + j) % 6] for j in range(3)],
            "right": i % 3,
            "text": "".join(words[i % 3 :] * 2),
            "answer": " th",
        }
        for i in range(12)
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name, text in TASKS.items():
        about = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (tmp_path / f"{name}.yaml").write_text(text + about, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A model that has learned nothing, with a tokenizer of words."""
    tokenizer = BPETokenizer.train(["the king and the queen of the night speak no more than love " * 9], 290)
    model = GPT2(tokenizer.vocab_size, 24, 32, 4, 64, 2, position="rope", window=6, seed=3)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "run", tokenizer)
    return tmp_path / "run"


def test_log_likelihoods_are_those_of_the_textbook() -> None:
    model = GPT2(23, 8, 24, 4, 40, 2, position="rope", num_kv_heads=2, window=5, seed=0)
    pairs = [([1, 2], [3]), ([4], [5, 6, 7]), ([1] * 12, [2, 3])]  # the last one is longer than the context
    for (context, continuation), (found, greedy) in zip(pairs, log_likelihoods(model, pairs), strict=True):
        text = torch.tensor((context + continuation)[-9:])
        told = dense_logits(model, text[:-1]).log_softmax(-1)[-len(continuation) :]
        expected = told[range(len(continuation)), continuation].sum().item()
        assert found == pytest.approx(expected, abs=1e-4)
        assert greedy == (told.argmax(-1).tolist() == continuation)


@pytest.mark.slow
def test_the_harness_finds_the_same_on_the_run_as_on_its_export(
    run: Path, task_folder: Path, command: Command, tmp_path: Path
) -> None:
    gpt2lab.export(run, "hf", tmp_path / "hf")
    names = [str(task_folder / f"{name}.yaml") for name in TASKS]
    arguments = ["--tasks", ",".join(names), "--output_path", str(tmp_path / "found"), "--device", "cpu"]
    model = ["--model", "hf", "--model_args", f"pretrained={tmp_path / 'hf'},dtype=float32"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *model, *arguments],
        capture_output=True, text=True, env=offline, timeout=LONG, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "found").rglob("results_*.json")
    theirs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"]
    told = command("evaluate", run, "--harness", "--tasks", ",".join(names), "--json")
    ours = json.loads(told.out[told.out.index("{") :])[str(run)]
    assert ours.keys() == theirs.keys() == TASKS.keys()
    for task, measures in theirs.items():
        for name, value in measures.items():
            if isinstance(value, float) and "stderr" not in name:
                assert ours[task][name] == pytest.approx(value, rel=1e-5), (task, name)


def test_what_the_harness_cannot_do_is_told(run: Path, command: Command, tmp_path: Path) -> None:
    assert_one_sentence(command("evaluate", run, "--harness"), "--harness needs --tasks")
    assert_one_sentence(command("evaluate", run, "--tasks", "x"), "--tasks is an option of --harness")
    assert_one_sentence(command("evaluate", run, "--harness", "--split", "test"), "--split does not go with --harness")
    characters = gpt2lab.CharTokenizer("abc")
    GPT2(3, 8, 24, 4, 40, 1).save(tmp_path / "bare", characters)
    with pytest.raises(InputError, match=r"has no id for <\|endoftext\|>"):
        gpt2lab.harness(tmp_path / "bare", tasks=["x"])
