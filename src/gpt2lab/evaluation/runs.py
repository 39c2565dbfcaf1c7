"""Measuring a run on a part of its text, at several contexts: what ``gpt2lab evaluate`` tells."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

from gpt2lab.data import Tokenizer
from gpt2lab.data.corpora import Split
from gpt2lab.data.datasets import Tokens
from gpt2lab.data.text import Text
from gpt2lab.errors import InputError
from gpt2lab.evaluation.evaluate import Evaluation, estimate_loss
from gpt2lab.evaluation.evaluate import evaluate as evaluate_model
from gpt2lab.evaluation.settings import EvaluateOptions, EvaluateSettings
from gpt2lab.generation.engine import check_step
from gpt2lab.generation.weights import rounded
from gpt2lab.hardware import choose_device
from gpt2lab.model import GPT2
from gpt2lab.options import given_options, method_taking
from gpt2lab.progress import Progress
from gpt2lab.runs.folder import load, open_text
from gpt2lab.runs.mechanisms import load_attention
from gpt2lab.runs.settings import RunSettings, Weights, Which


@dataclass(frozen=True)
class RunEvaluation:
    """What a run scores on a text.

    Attributes:
        text: what it was measured on.
        parameters: trained values of the model.
        trained: at the context of the training.
        estimated_loss: nanoGPT's protocol: the mean loss of 200 random batches, nats per token.
        contexts: at every context, the shortest first.
        rounding: what it costs to store the matrices as was asked for, nats per token of the trained context; None:
            they are as they are.
    """

    text: str
    parameters: int
    trained: Evaluation
    estimated_loss: float
    contexts: list[Evaluation]
    rounding: float | None = None

    @property
    def loss(self) -> float:
        """Mean nats per token at the context of the training."""
        return self.trained.loss

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        by_context = {}
        for one in self.contexts:
            scores = dataclasses.asdict(one)
            by_context[scores.pop("context_size")] = {n: v for n, v in scores.items() if n != "loss_by_position"}
        about = {"text": self.text, "parameters": self.parameters}
        estimated = {"estimated_loss": self.estimated_loss, "contexts": by_context}
        rounding = {} if self.rounding is None else {"rounding": self.rounding}
        return about | dataclasses.asdict(self.trained) | estimated | rounding


@method_taking(EvaluateOptions, first="run")
def evaluate_run(run: str | Path, **given: Any) -> RunEvaluation:
    """Measure a run on a whole split, as ``gpt2lab evaluate`` does.

    Args:
        run: run folder.
        **given: fields of :class:`gpt2lab.evaluation.settings.EvaluateOptions`, such as ``split="test"``. ``progress``
            hears of the bytes that are encoded, and of the tokens that are predicted.

    Raises:
        InputError: no such run or text, or a context that the model cannot read.
    """
    progress: Progress | None = given.pop("progress", None)
    asked = EvaluateSettings(**given_options((EvaluateSettings,), given))
    try:
        model, tokenizer = load(run, attention=load_attention(asked.attention), checkpoint=asked.checkpoint)
        check_step(model, "auto", asked.weights)
    except InputError as error:
        raise InputError(f"{run}: {error}") from None
    model.to(choose_device(asked.device))
    if asked.text is None:
        if not (path := Path(run) / "config.yaml").exists():
            raise InputError(f"{run} holds a model and does not say on which text it was trained; name one with --text")
        source = open_text(RunSettings.read(path).data, tokenizer)
        tokens, name = source.tokens(asked.split, progress), f"{source.corpus.name}, {asked.split} part"
    else:
        source = Text.open(text=asked.text, tokenizer=tokenizer)
        tokens, name = source.tokens(None, progress), source.corpus.name
    trained = model.config.max_seq_len
    contexts: Iterable[int] | None = asked.contexts
    if contexts is None:
        longest = trained if model.config.position == "learned" else len(tokens) - 1
        contexts = [c for c in (trained // 4, trained // 2, 2 * trained, 4 * trained) if 1 <= c <= longest]
    sizes = [trained, *(c for c in contexts if c != trained)]

    def measured(model: GPT2, size: int, what: str) -> Evaluation:
        told = None if progress is None else partial(_told, progress, f"{run}, {what}", len(tokens) - 1)
        return evaluate_model(model, tokens, tokenizer, size, told)

    exact = None
    if asked.weights is not None:
        exact = measured(model, trained, "weights as they are").loss
        model = rounded(model, asked.weights)
    found = [measured(model, size, f"context {size}") for size in sizes]
    return RunEvaluation(
        text=name,
        parameters=model.num_parameters(),
        trained=found[0],
        estimated_loss=estimate_loss(model, tokens),
        contexts=sorted(found, key=lambda one: one.context_size),
        rounding=None if exact is None else found[0].loss - exact,
    )


def _told(progress: Progress, what: str, total: int, done: int) -> None:
    progress(what, done, total)


@overload
def evaluate(
    model: GPT2,
    tokens: Tokens,
    tokenizer: Tokenizer,
    context_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation: ...
@overload
def evaluate(
    model: str | Path,
    *,
    split: Split = "validation",
    text: str | Path | None = None,
    contexts: Sequence[int] | None = None,
    checkpoint: Which = "best",
    attention: str | type | None = None,
    device: str = "auto",
    weights: Weights | None = None,
    progress: Progress | None = None,
) -> RunEvaluation: ...
def evaluate(model: GPT2 | str | Path, *arguments: Any, **options: Any) -> Evaluation | RunEvaluation:
    """Measure a model on tokens (:func:`gpt2lab.evaluation.evaluate.evaluate`), or a run's folder on a part of its text
    (:func:`evaluate_run`).
    """
    if isinstance(model, GPT2):
        return evaluate_model(model, *arguments, **options)
    return evaluate_run(model, *arguments, **options)
