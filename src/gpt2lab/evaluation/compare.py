"""What the cells of a comparison say together: paired differences, their intervals, and the words that these allow.

runs/compare/
    comparison.yaml                    what was asked for
    context-64/rope/seed-1/            a cell: a run folder, and measurements.json
    context-64/rope/tune/rate-0.004/   a cell that only chose a learning rate
    context-64/mine/disqualified.json  what an arm read of the future
    speed.json                         seconds, timed alternately
    report.html  results.csv  results.json
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from gpt2lab.errors import InputError
from gpt2lab.runs.folder import read_state
from gpt2lab.training import find_checkpoint
from gpt2lab.training.metrics import read_metrics

BASELINE = "original"
COMPARISON, CELL, MEASUREMENTS, DISQUALIFIED, SPEED = (
    "comparison.yaml",
    "cell.yaml",
    "measurements.json",
    "disqualified.json",
    "speed.json",
)

MeasureName = Literal[
    "test_loss",
    "tokens_to_target",
    "seconds_per_step",
    "seconds_per_token",
    "seconds_per_token_long",
    "seconds_to_first_token_long",
    "parameters",
]


@dataclass(frozen=True)
class Measure:
    """Something that is compared; less of it is better.

    Attributes:
        title: for tables.
        verb: for the sentence "at a context of 25, rope … less".
        relative: compared as a ratio to the original's, or else as a difference (of nats per token).
    """

    title: str
    verb: str
    relative: bool = True


MEASURES: dict[MeasureName, Measure] = {
    "test_loss": Measure("test loss", "has a test loss", relative=False),
    "tokens_to_target": Measure("tokens to the original's final loss", "reaches the original's final loss in tokens"),
    "seconds_per_step": Measure("training step", "takes time for a training step"),
    "seconds_per_token": Measure("writing a token", "takes time to write a token"),
    "seconds_per_token_long": Measure("writing a token, context full", "takes time to write a token past the context"),
    "seconds_to_first_token_long": Measure("first token, long prompt", "takes time until the first token"),
    "parameters": Measure("parameters", "has parameters"),
}


@dataclass(frozen=True)
class Claim:
    """What is to be decided, declared before anything is trained: one primary contrast.

    Attributes:
        says: the claim in words.
        arm: who is compared with the original.
        measure: in what.
        context: where; None: at the first of the comparison's.
        expects: whether the claim holds if the arm has less of it, or more.
    """

    says: str
    arm: str
    measure: MeasureName
    context: int | None = None
    expects: Literal["less", "more"] = "less"


@dataclass(frozen=True)
class Contrast:
    """An arm against the original, pair by pair: same seed, same data, or same round of timing.

    Attributes:
        context, arm, measure: what is compared.
        pairs: number of pairs, n.
        mean: difference (arm minus original), or ratio (arm to original, geometric mean).
        low, high: the confidence interval of the mean.
        confidence: of that interval: 0.95, or for one of m exploratory contrasts in the same measure 1 - 0.05/m
            (Bonferroni).
        effect_size: mean difference over its standard deviation (logarithms for ratios), corrected for few pairs
            (Hedges' g for pairs); None for fewer than three pairs, or if all differences are equal.
        missed: pairs in which the arm never got there. Then there is no mean, and the word comes from a sign test.
        later: pairs in which the arm came later than the original or, never, later still.
        claim: the number of the claim that this is the primary contrast of; None: exploratory.
    """

    context: int
    arm: str
    measure: MeasureName
    pairs: int
    mean: float | None
    low: float | None
    high: float | None
    confidence: float
    effect_size: float | None
    missed: int
    later: int
    claim: int | None

    @property
    def verdict(self) -> str | None:
        """ "better", "worse" or "no difference shown", from the interval alone; None where it allows no word."""
        if self.missed:
            from scipy import stats

            if stats.binomtest(self.later, self.pairs).pvalue > 1 - self.confidence:
                return "no difference shown"
            return "worse" if self.later > self.pairs / 2 else "better"
        if self.low is None or self.high is None:
            return None
        return word_of(self.low, self.high, 1.0 if MEASURES[self.measure].relative else 0.0)


def word_of(low: float, high: float, neutral: float = 0.0) -> str:
    """The word that an interval allows, for something of which less is better."""
    if high < neutral:
        return "better"
    return "worse" if low > neutral else "no difference shown"


def contrast(differences: Sequence[float], confidence: float) -> tuple[float, float | None, float | None, float | None]:
    """Mean of paired differences, its t interval (none for one pair), and the effect size (see Contrast)."""
    from scipy import stats

    n, mean = len(differences), statistics.mean(differences)
    if n < 2:
        return mean, None, None, None
    deviation = statistics.stdev(differences)
    if deviation == 0:
        return mean, mean, mean, None
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    correction = 1 - 3 / (4 * (n - 1) - 1)  # Hedges 1981, with n - 1 degrees of freedom; 0 for two pairs
    return mean, mean - reach, mean + reach, correction * mean / deviation if n > 2 else None


def contrasts(
    cells: Sequence[Mapping[str, Any]], speed: Mapping[str, Any], claims: Sequence[Claim], contexts: Sequence[int]
) -> list[Contrast]:
    """Every arm against the original in every measure; the claims' contrasts first, in their order."""
    pairs: dict[tuple[int, str, MeasureName], list[tuple[float | None, float]]] = {}
    seconds = {(int(c), arm): times for c, arms in speed.items() for arm, times in arms.items()}
    by_key = {(cell["context"], cell["arm"], cell["seed"]): cell for cell in cells}
    for context, arm in dict.fromkeys((cell["context"], cell["arm"]) for cell in cells if cell["arm"] != BASELINE):
        for measure in MEASURES:
            if measure.startswith("seconds"):
                mine = seconds.get((context, arm), {}).get(measure, [])
                found = list(zip(mine, seconds.get((context, BASELINE), {}).get(measure, []), strict=False))
            else:
                found = [
                    (cell[measure], by_key[context, BASELINE, cell["seed"]][measure])
                    for cell in cells
                    if (cell["context"], cell["arm"]) == (context, arm)
                    and (context, BASELINE, cell["seed"]) in by_key
                    and by_key[context, BASELINE, cell["seed"]][measure] is not None
                ]
            if found:
                pairs[context, arm, measure] = found
    primary = {(claim.context or contexts[0], claim.arm, claim.measure): i for i, claim in enumerate(claims)}
    exploratory = Counter(measure for context, arm, measure in pairs if (context, arm, measure) not in primary)
    result = []
    for key, found in pairs.items():
        context, arm, measure = key
        confidence = 0.95 if key in primary else 1 - 0.05 / exploratory[measure]
        relative = MEASURES[measure].relative
        missed = sum(mine is None for mine, _ in found)
        later = sum(mine is None or mine > base for mine, base in found)
        mean = low = high = effect = None
        if not missed:
            values = [(a, b) for a, b in found if a is not None]
            differences = [math.log(a / b) if relative else a - b for a, b in values]
            mean, low, high, effect = contrast(differences, confidence)
            if relative:
                mean, low, high = (value if value is None else math.exp(value) for value in (mean, low, high))
        result.append(
            Contrast(
                context, arm, measure, len(found), mean, low, high, confidence, effect, missed, later, primary.get(key)
            )
        )
    return sorted(result, key=lambda c: (c.claim is None, c.claim or 0))


def tokens_to(target: float, curve: Sequence[tuple[int, float]]) -> float | None:
    """Tokens at which a curve of (tokens, loss) first comes down to a loss, on straight lines between its points."""
    before: tuple[int, float] | None = None
    for tokens, loss in curve:
        if loss <= target:
            if before is None:
                return tokens
            return before[0] + (tokens - before[0]) * (before[1] - target) / (before[1] - loss)
        before = (tokens, loss)
    return None


def collect(folder: Path) -> dict[str, Any]:
    """Everything that a comparison has found so far, as plain values.

    Raises:
        InputError: it is no folder of a comparison.
    """
    try:
        settings = yaml.safe_load((folder / COMPARISON).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        raise InputError(
            f"{folder} holds no comparison ({COMPARISON} is missing or damaged); `gpt2lab compare --out {folder}` "
            "makes one"
        ) from None
    claims = [Claim(**claim) for claim in settings.get("claims") or []]
    arms, contexts = list(settings["arms"]), settings["contexts"]
    order = {arm: number for number, arm in enumerate(arms)}
    planned = [p.parent for p in folder.glob(f"context-*/*/seed-*/{CELL}")]
    planned = [p for p in planned if _key(p)[0] in contexts and _key(p)[1] in order]
    planned.sort(key=lambda p: (_key(p)[0], order[_key(p)[1]], _key(p)[2]))
    finished = [p for p in planned if (p / MEASUREMENTS).exists()]
    cells = [_cell(p) for p in finished]
    targets = {(c["context"], c["seed"]): c["curve"][-1][1] for c in cells if c["arm"] == BASELINE and c["curve"]}
    for cell in cells:
        target = targets.get((cell["context"], cell["seed"]))
        cell["tokens_to_target"] = None if target is None else tokens_to(target, cell["curve"])
    speed_file = folder / SPEED
    speed = json.loads(speed_file.read_text(encoding="utf-8")) if speed_file.exists() else {}
    disqualified = [
        {"context": int(p.parts[-3].removeprefix("context-")), "arm": p.parts[-2]} | json.loads(p.read_text())
        for p in sorted(folder.glob(f"context-*/*/{DISQUALIFIED}"))
    ]
    found = contrasts(cells, {context: timed["arms"] for context, timed in speed.items()}, claims, contexts)
    return {
        "settings": settings,
        "cells": cells,
        "unfinished": ["/".join(p.parts[-3:]) for p in planned if p not in finished],
        "disqualified": disqualified,
        "speed": speed,
        "claims": [asdict(claim) for claim in claims],
        "contrasts": [asdict(c) | {"verdict": c.verdict} for c in found],
    }


def _key(cell: Path) -> tuple[int, str, int]:
    context, arm, seed = cell.parts[-3:]
    return int(context.removeprefix("context-")), arm, int(seed.removeprefix("seed-"))


def _cell(folder: Path) -> dict[str, Any]:
    """One cell's row: its place in the grid, and what was measured."""
    context, arm, seed = _key(folder)
    measured = json.loads((folder / MEASUREMENTS).read_text(encoding="utf-8"))
    test = measured.pop("test")
    for layer in measured["attention_by_distance"] or []:
        layer[:] = [round(weight, 6) for weight in layer]  # the bulk of it all, and only drawn
    records = read_metrics(folder / "metrics.jsonl")
    curve = [[r["tokens"], r["validation_loss"]] for r in records if r.get("validation_is_estimate")]
    state = read_state(find_checkpoint(folder, "last"))
    if state.validation_loss is not None:  # an estimate like those before it; the last record has the exact one
        curve.append([state.tokens, state.validation_loss])
    settings = yaml.safe_load((folder / CELL).read_text(encoding="utf-8"))
    rates = [float(tried.name.removeprefix("rate-")) for tried in (folder.parent / "tune").glob("rate-*")]
    return {
        "context": context,
        "arm": arm,
        "seed": seed,
        "learning_rate": settings["learning_rate"],
        "rate_at_edge": bool(rates) and not 1.001 * min(rates) < settings["learning_rate"] < 0.999 * max(rates),
        "ff_hidden_dim": settings["ff_hidden_dim"],
        "steps": state.step,
        "tokens": state.tokens,
        "test_loss": test["loss"],
        **{name: test[name] for name in ("bits_per_character", "bits_per_byte", "accuracy", "loss_by_position")},
        "train_loss": records[-1]["loss"],
        "validation_loss": records[-1].get("validation_loss"),
        "peak_memory": records[-1]["peak_memory"],
        "curve": curve,
        **measured,
    }
