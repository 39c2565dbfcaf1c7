"""What a comparison measures of a trained model: quality, reach, size, a sample, and speed."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from gpt2lab.comparison.results import Seconds
from gpt2lab.data import TokenDataset, Tokenizer
from gpt2lab.data.datasets import Tokens
from gpt2lab.errors import InputError
from gpt2lab.evaluation.evaluate import Evaluation, evaluate
from gpt2lab.generation import Sampling, generate
from gpt2lab.generation.engine import common_step
from gpt2lab.generation.generate import begin
from gpt2lab.hardware import synchronise
from gpt2lab.model import GPT2
from gpt2lab.model.looking import Weights, looking
from gpt2lab.runs.settings import Step
from gpt2lab.training import Trainer

# Beyond and below the trained context the loss is an estimate, from this many tokens at the start of the text.
CONTEXT_FACTORS = (0.5, 1, 2, 4, 16)
CONTEXT_TOKENS = 32_768

# What is timed of every model, in seconds; see :func:`measure_speed`.
SPEEDS = tuple(of.name for of in fields(Seconds))


@dataclass(frozen=True)
class Measurements:
    """One trained model, measured on a text that it has not seen.

    Attributes:
        parameters: trained values.
        flops_per_token: of a forward pass.
        cache_bytes: keys and values of a full context.
        reach: tokens of the context that can influence a prediction through all layers.
        test: on the whole text, at the trained context.
        loss_by_context: (context, nats per token) below and beyond the trained context, estimates.
        attention_by_distance: (layers, T), see :func:`attention_by_distance`; None if a user's mechanism does not take
            the values that it is read off with.
        sample: 300 tokens, temperature 0.8.
    """

    parameters: int
    flops_per_token: float
    cache_bytes: int
    reach: int
    test: Evaluation
    loss_by_context: list[tuple[int, float]]
    attention_by_distance: list[list[float]] | None
    sample: str


def measure(model: GPT2, tokenizer: Tokenizer, tokens: Tokens, seed: int = 0) -> Measurements:
    """Measure a model on the ids (N,) of a text; ``seed`` is the sample's."""
    context = model.config.max_seq_len
    few = tokens[: CONTEXT_TOKENS + 1]
    longest = context if model.config.position == "learned" else len(few) - 1
    contexts = sorted({math.ceil(factor * context) for factor in CONTEXT_FACTORS})
    windows = [block.attention.window or context for block in model.blocks]
    batch, _ = TokenDataset(few, context, model.config.vocab_size).__getitems__(range(0, len(few) - context, context))
    first = torch.tensor([[int(tokens[0])]])
    try:
        by_distance = attention_by_distance(model, batch[:16]).tolist()
    except InputError:  # a user's mechanism need not take the values that its weights are read off with
        by_distance = None
    with warnings.catch_warnings(action="ignore"):  # that the context fills up is no news here
        step = common_step([model], compiling=False)
        sample = generate(model, first, 300, step=step, temperature=0.8, seed=seed)[0]
    return Measurements(
        parameters=model.num_parameters(),
        flops_per_token=model.flops_per_token(),
        cache_bytes=model.cache_bytes(context),
        reach=min(context, 1 + sum(window - 1 for window in windows)),
        test=evaluate(model, tokens, tokenizer),
        loss_by_context=[(c, evaluate(model, few, tokenizer, c).loss) for c in contexts if c <= longest],
        attention_by_distance=by_distance,
        sample=tokenizer.decode(sample.tolist()),
    )


@torch.inference_mode()
def attention_by_distance(model: GPT2, ids: Tensor) -> Tensor:
    """How much attention falls on tokens 0, 1, 2 … back, in each layer.

    It is read off the mechanism itself, whatever it computes (:func:`gpt2lab.model.looking.looking`).

    Args:
        model: any; in evaluation mode.
        ids: int64 (B, T).

    Returns:
        (layers, T) float64: at distance d the mean weight, over texts, heads and the queries that have such a token.
    """
    shares: list[Tensor] = []

    def look(_: nn.Module, weights: Weights, *given: Any) -> None:
        found = weights(*given).double()  # (B, H, T, T)
        shares.append(torch.stack([found.diagonal(-d, -2, -1).mean() for d in range(ids.shape[1])]))

    with looking(model, look):
        model(ids.to(model.device))
    return torch.stack(shares).cpu()


def measure_speed(
    trainers: dict[str, Trainer], rounds: int, progress: Callable[[], None] | None = None, step: Step = "eager"
) -> dict[str, Seconds]:
    """Time several models alternately, so that whatever else the machine does falls on all of them alike.

    Args:
        trainers: by name, each with the model and the data that it trains on. The models are trained on a little.
        rounds: how often each is timed, after one round that does not count.
        progress: called after every model of every round.
        step: what writes: the same for all.

    Returns:
        For every name the seconds of each round, in the order of ``SPEEDS``: of an optimiser step, until the first
        token after a short prompt (an eighth of the context) and after a long one (the whole context), and for each of
        tokens that follow the second: up to 32 within the context, and past it as many as make whole cycles of dropping
        the older half and reading the rest again, which some models do.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in trainers}  # a row for each round
    batches = {name: trainer.batches() for name, trainer in trainers.items()}
    for number in range(rounds + 1):
        names = list(trainers)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:  # so that none always follows the same one
            trainer = trainers[name]
            model = trainer.model.train()
            context = model.config.max_seq_len
            started = time.perf_counter()
            for _ in range(5):
                trainer.update(batches[name])
            synchronise(trainer.device)
            found = [(time.perf_counter() - started) / 5]
            ids = trainer.train_dataset[0][0]
            short, cycle = max(1, context // 8), max(1, context // 2)
            for length, more in (
                (short, max(1, min(32, context - short - 1))),
                (context, cycle * math.ceil(32 / cycle)),
            ):
                engine = begin(model, [ids[:length]], more + 2, Sampling(temperature=0), step=step)
                clock = [time.perf_counter()]
                with model.evaluating():
                    for count in (1, 1, more):  # the prompt; a token at which the engine looks around; what is timed
                        written = 0
                        while written < count:
                            written += len(engine.step(most=count - written))
                        clock.append(time.perf_counter())
                found += [clock[1] - clock[0], (clock[3] - clock[2]) / more]
            if number > 0:
                times[name].append(found)
            if progress is not None:
                progress()
    return {name: Seconds(*map(list, zip(*each, strict=True))) for name, each in times.items()}
