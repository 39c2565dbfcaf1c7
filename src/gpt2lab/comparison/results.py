"""What a comparison has found, typed from the cells to the report; as JSON it is ``results.json``."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2lab.comparison.settings import Claim, Design, MeasureName
from gpt2lab.comparison.statistics import Estimate, Word, more_pairs, sign_test, word_of
from gpt2lab.comparison.verdicts import Verdict
from gpt2lab.errors import InputError
from gpt2lab.reading import loads, read_text, typed


@dataclass(frozen=True)
class Measure:
    """Something that is compared; less of it is better.

    Attributes:
        title: for tables.
        verb: for the sentence "at a context of 25, rope … less".
        relative: compared as a ratio to the baseline's, or else as a difference (of nats per token).
    """

    title: str
    verb: str
    relative: bool = True


MEASURES: dict[MeasureName, Measure] = {
    "test_loss": Measure("test loss", "has a test loss", relative=False),
    "tokens_to_target": Measure("tokens to {the}'s final loss", "reaches {the}'s final loss in tokens"),
    "seconds_per_step": Measure("training step", "takes time for a training step"),
    "seconds_per_token": Measure("writing a token", "takes time to write a token"),
    "seconds_per_token_long": Measure("writing a token, context full", "takes time to write a token past the context"),
    "seconds_to_first_token_long": Measure("first token, long prompt", "takes time until the first token"),
    "parameters": Measure("parameters", "has parameters"),
}


@dataclass(frozen=True)
class CellResult:
    """One training, measured on a text that it has not seen.

    Attributes:
        context, arm, seed: its place in the grid.
        learning_rate, ff_hidden_dim: the settings that a comparison may have chosen for it.
        rate_at_edge: whether that learning rate is the lowest or highest of those that were tried.
        steps, tokens: how long it was trained.
        test_loss, bits_per_character, bits_per_byte, accuracy, loss_by_position: on the whole test part; see
            :class:`gpt2lab.evaluation.Evaluation`.
        train_loss: of the last record, nats per token.
        validation_loss: on the whole validation part, nats per token.
        peak_memory: of the training process, bytes.
        curve: (tokens, estimated validation loss) on the way.
        parameters, flops_per_token, cache_bytes, reach, loss_by_context, attention_by_distance, sample: see
            :class:`gpt2lab.comparison.measure.Measurements`.
        tokens_to_target: after how many tokens it came down to the final loss of the baseline's training with the same
            seed; None: never, or there is no such training.
    """

    context: int
    arm: str
    seed: int
    learning_rate: float
    rate_at_edge: bool
    ff_hidden_dim: int
    steps: int
    tokens: int
    test_loss: float
    bits_per_character: float
    bits_per_byte: float
    accuracy: float
    loss_by_position: list[float]
    train_loss: float
    validation_loss: float
    peak_memory: int
    curve: list[tuple[int, float]]
    parameters: int
    flops_per_token: float
    cache_bytes: int
    reach: int
    loss_by_context: list[tuple[int, float]]
    attention_by_distance: list[list[float]] | None
    sample: str
    tokens_to_target: float | None


@dataclass(frozen=True)
class Seconds:
    """Times of one arm, one for each round; see :func:`gpt2lab.comparison.measure.measure_speed`."""

    seconds_per_step: list[float]
    seconds_to_first_token: list[float]
    seconds_per_token: list[float]
    seconds_to_first_token_long: list[float]
    seconds_per_token_long: list[float]


@dataclass(frozen=True)
class Timing:
    """All arms of a context, timed in turn.

    Attributes:
        machine: on which, and with which step of :class:`gpt2lab.Engine`.
        threads: of the CPU.
        load_before: the machine's load average when it began.
        arms: the times by arm.
    """

    machine: str
    threads: int
    load_before: float
    arms: dict[str, Seconds]


@dataclass(frozen=True)
class Disqualified:
    """An arm that reads the future, and so was not trained.

    Attributes:
        context, arm: which one.
        leaks: (position, later position that it reads).
        message: the same in words.
    """

    context: int
    arm: str
    leaks: list[tuple[int, int]]
    message: str


@dataclass(frozen=True)
class Contrast:
    """An arm against the baseline, pair by pair: same seed, same data, or same round of timing.

    Attributes:
        context, arm, measure: what is compared.
        pairs: number of pairs, n.
        mean: difference (arm minus baseline), or ratio (arm to baseline, geometric mean).
        low, high: the confidence interval of the mean.
        confidence: of that interval: 0.95, or for one of m exploratory contrasts in the same measure 1 - 0.05/m
            (Bonferroni).
        effect_size: mean difference over its standard deviation (logarithms for ratios), corrected for few pairs
            (Hedges' g for pairs); None for fewer than three pairs, or if all differences are equal.
        missed: pairs in which the arm never got there. Then there is no mean, and the word comes from a sign test.
        later: pairs in which the arm came later than the baseline or, never, later still.
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
    def verdict(self) -> Word | None:
        """The word that the interval alone allows; None where it allows none."""
        if self.missed:
            return sign_test(self.later, self.pairs, self.confidence)
        if self.low is None or self.high is None:
            return None
        return word_of(self.low, self.high, 1.0 if MEASURES[self.measure].relative else 0.0)

    def said(self) -> Verdict:
        """The same as a verdict."""
        relative = MEASURES[self.measure].relative
        values = [self.mean, self.low, self.high]
        difference, low, high = (v if v is None or not relative else v - 1 for v in values)
        more = None
        if self.mean is not None:  # differences of logarithms, for ratios
            mean = math.log(self.mean) if relative else self.mean
            interval = [v if v is None or not relative else math.log(v) for v in (self.low, self.high)]
            more = more_pairs(Estimate(self.pairs, mean, interval[0], interval[1], self.effect_size), self.confidence)
        elif self.verdict in ("better", "worse"):
            more = 0
        return Verdict(
            self.arm,
            self.context,
            self.measure,
            difference,
            low,
            high,
            self.verdict,
            self.pairs,
            self.confidence,
            self.effect_size,
            more,
            relative,
        )


@dataclass(frozen=True)
class Results:
    """Everything that a comparison has found so far.

    Attributes:
        settings: what it was asked.
        cells: the finished trainings, by context, arm and seed.
        unfinished: folders of the others, such as "context-25/rope/seed-1".
        disqualified: arms that read the future.
        speed: times by context.
        contrasts: every arm against the baseline in every measure; those of the claims first, in their order.
    """

    settings: Design
    cells: list[CellResult]
    unfinished: list[str]
    disqualified: list[Disqualified]
    speed: dict[int, Timing]
    contrasts: list[Contrast]

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What was declared before anything ran."""
        return self.settings.claims

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each arm, context and quantity, against the baseline."""
        return [one.said() for one in self.contrasts]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "settings": self.settings.to_dict(),
            "cells": [asdict(cell) for cell in self.cells],
            "unfinished": self.unfinished,
            "disqualified": [asdict(arm) for arm in self.disqualified],
            "speed": {str(context): asdict(timing) for context, timing in self.speed.items()},
            "claims": [asdict(claim) for claim in self.claims],
            "contrasts": [asdict(one) | {"verdict": one.verdict} for one in self.contrasts],
        }

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> "Results":
        """The inverse of :meth:`plain`."""
        rest = {field.name: values.get(field.name) for field in dataclasses.fields(cls)}
        settings = Design.of(typed(dict[str, object], rest.pop("settings"), where), where)
        return cls(
            settings,
            typed(list[CellResult], rest["cells"], where),
            typed(list[str], rest["unfinished"], where),
            typed(list[Disqualified], rest["disqualified"], where),
            typed(dict[int, Timing], rest["speed"], where),
            typed(list[Contrast], rest["contrasts"], where),
        )

    @classmethod
    def read(cls, file: Path) -> "Results":
        """What a ``results.json`` holds.

        Raises:
            InputError: it is missing, damaged, or something else.
        """
        try:
            values = loads(read_text(file))
        except ValueError as error:
            raise InputError(f"{file} holds no results of a comparison: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict) or "cells" not in values or "settings" not in values:
            raise InputError(f"{file} holds no results of a comparison")
        return cls.of(values, str(file))

    def csv(self) -> str:
        """A table with a line for each cell, without curves and samples; the medians of its arm's times stand in every
        one."""
        rows: list[dict[str, object]] = []
        for cell in self.cells:
            row = {n: v for n, v in asdict(cell).items() if not isinstance(v, list) and n not in _LONG}
            timing = self.speed.get(cell.context)
            if timing is not None and cell.arm in timing.arms:
                seconds: dict[str, list[float]] = asdict(timing.arms[cell.arm])
                row |= {name: statistics.median(each) for name, each in seconds.items()}
            rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


_LONG = ("attention_by_distance", "sample")  # besides what is a list
