"""The field's own measurements: lm-evaluation-harness on a run, without a detour through another engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2lab.data import Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.evaluation.settings import HarnessSettings
from gpt2lab.generation.engine import Engine
from gpt2lab.generation.sampling import Sampling
from gpt2lab.generation.text import Decoder
from gpt2lab.hardware import choose_device
from gpt2lab.model import GPT2
from gpt2lab.options import given_options, method_taking
from gpt2lab.runs.folder import load
from gpt2lab.runs.mechanisms import load_attention

ROWS = 16  # texts that are read at once
USUAL_LENGTH = 256  # tokens of an answer, where a task says nothing else

Pair = tuple[list[int], list[int]]


@method_taking(HarnessSettings, first="run")
def harness(run: str | Path, **given: Any) -> dict[str, dict[str, Any]]:
    """Measure a run with tasks of EleutherAI's lm-evaluation-harness, as ``lm_eval --model hf`` measures its export.

    Args:
        run: run folder.
        **given: fields of :class:`gpt2lab.evaluation.settings.HarnessSettings`, such as ``tasks=["hellaswag"]``, or
            ``tasks=["mine.yaml"]`` for one of your own, which needs no network.

    Returns:
        what the harness reports: for each task its measures by name, such as ``"acc,none"``.

    Raises:
        InputError: no such run or task, the package lm-eval is missing, or the model has no id for ``<|endoftext|>``.
    """
    asked = HarnessSettings(**given_options((HarnessSettings,), given))
    model, tokenizer = load(run, attention=load_attention(asked.attention), checkpoint=asked.checkpoint)
    if not asked.tasks:
        raise InputError("--harness needs --tasks: names of the harness's tasks, or files of your own")
    if tokenizer.end_of_text >= model.config.vocab_size:
        raise InputError(f"{run} has no id for <|endoftext|>, with which the harness begins every text")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.config.evaluate_config import EvaluatorConfig
    except ImportError:
        message = "--harness needs a package that is not installed; run: pip install 'gpt2lab[harness]'"
        raise InputError(message) from None
    settings = EvaluatorConfig(tasks=",".join(asked.tasks), include_path=asked.task_folder)
    try:
        manager = settings.process_tasks()
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"the harness does not know the tasks {', '.join(asked.tasks)}: {error}") from None
    found = simple_evaluate(
        model=_reader(model.to(choose_device(asked.device)), tokenizer),
        tasks=settings.tasks,
        task_manager=manager,
        num_fewshot=asked.num_fewshot,
        limit=asked.limit,
        bootstrap_iters=1000,
    )
    return {str(task): dict(measures) for task, measures in found["results"].items()}


def _reader(model: GPT2, tokenizer: Tokenizer) -> Any:
    """The model as the harness knows one. (A function, because its base class is slow to import.)"""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    context_size = model.config.max_seq_len

    class Reader(TemplateLM):  # type: ignore[misc]
        """Log-likelihoods and answers, with the context of the training."""

        @property
        def eot_token_id(self) -> int:
            return tokenizer.end_of_text

        @property
        def tokenizer_name(self) -> str:
            return tokenizer.fingerprint()

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            ids: list[int] = tokenizer.encode(string).tolist()
            return ids

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            return log_likelihoods(model, [(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            found = []
            for request in requests:
                ids = self.tok_encode(request.args[0])
                windows = get_rolling_token_windows(
                    token_list=ids, prefix_token=tokenizer.end_of_text, max_seq_len=context_size, context_len=1
                )
                parts = log_likelihoods(model, [make_disjoint_window(window) for window in windows])
                found.append(sum(part for part, _ in parts))
            return found

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [answer(model, tokenizer, *request.args) for request in requests]

    return Reader()


@torch.no_grad()
def log_likelihoods(model: GPT2, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """For each context and continuation, as ids: the log-probability of the continuation in nats, and whether the model
    would write it greedily. What is too long loses its beginning.
    """
    context_size = model.config.max_seq_len
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        texts = [(pairs[i][0] + pairs[i][1])[-(context_size + 1) :] for i in rows]
        longest = max(map(len, texts)) - 1
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)  # what stands behind a text is never seen by it
        for row, text in enumerate(texts):
            ids[row, : len(text) - 1] = torch.tensor(text[:-1])
        with model.evaluating():
            logits: Tensor = model(ids.to(model.device)).float().log_softmax(-1).cpu()  # (rows, T, V)
        for row, (i, text) in enumerate(zip(rows, texts, strict=True)):
            count = len(pairs[i][1])
            told, targets = logits[row, len(text) - 1 - count : len(text) - 1], torch.tensor(text[len(text) - count :])
            chosen = told.gather(-1, targets[:, None])[:, 0]
            found[i] = chosen.sum().item(), bool((told.argmax(-1) == targets).all())
    return found


def answer(model: GPT2, tokenizer: Tokenizer, prompt: str, options: dict[str, Any]) -> str:
    """What the model writes behind a prompt, up to one of the texts that end it."""
    until = options.get("until") or []
    stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    length = int(options.get("max_gen_toks", USUAL_LENGTH))
    context_size = model.config.max_seq_len
    if length >= context_size:
        raise InputError(
            f"a task asks for answers of {length} tokens, and the context is {context_size}; set max_gen_toks there"
        )
    ids = torch.from_numpy(tokenizer.encode(prompt))[-(context_size - length) :]
    warm = bool(options.get("do_sample")) and float(options.get("temperature", 1.0)) > 0
    sampling = Sampling(temperature=float(options.get("temperature", 1.0)) if warm else 0)
    engine = Engine(model, max_rows=1)
    engine.add(ids.tolist(), sampling, max_tokens=length, stop=[[tokenizer.end_of_text]])
    decoder, text = Decoder(tokenizer, stops), ""
    while engine.rows and not decoder.ended:
        for token in engine.step():
            text += decoder.add(token.id)
    return text + decoder.end()
