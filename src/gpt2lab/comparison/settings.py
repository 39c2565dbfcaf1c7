"""The design of a comparison (its arms, its grid, the claims about it), and how it is run."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from gpt2lab.config import parse_contexts
from gpt2lab.errors import InputError
from gpt2lab.options import check, given_options, option, options_of, spelled
from gpt2lab.reading import typed
from gpt2lab.runs.settings import spell_attention
from gpt2lab.threads import MOST_THREADS

BASELINE = "original"  # of the command line; in Python it is the first arm that is given

Match = Literal["none", "parameters", "compute"]
Options = Mapping[str, object]  # of `gpt2lab train`, by name

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
class GridSettings:
    """Which trainings there are."""

    contexts: tuple[int, ...] = option(
        (64,),
        "context sizes, with commas. The batches of the first have --batch-size windows, those of the others as many "
        "tokens.",
        parse=parse_contexts,
        spell=list,
    )
    seeds: int = option(3, "trainings of every arm: with --seed S they are S+1, S+2, …", least=1, most=10_000)
    steps: int | None = option(
        None, "optimiser steps of every training (--max-steps is the same).", above=0, default="500"
    )
    tokens: int | None = option(None, "instead of steps: tokens of every training.", above=0)
    minutes: float | None = option(
        None, "instead of steps: as many steps as the baseline makes here in that many minutes.", above=0
    )
    match: Match = option(
        "none",
        'widen the feed-forward layers until every arm has as many "parameters" as the baseline, or costs as much '
        '"compute" per token.',
    )
    tune: bool = option(
        False,
        "choose every arm's learning rate among 1/4, 1/2, 1 and 2 times the shared one, by validation loss, with seed "
        "S.",
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.contexts:
            raise InputError("contexts is empty; give one whole number, or several with commas: 25,64")
        if len(self.budget) > 1:
            raise InputError(f"{' and '.join(f'--{name}' for name in self.budget)} are given; choose one of them")

    @property
    def budget(self) -> dict[str, float]:
        """The one size of a training that is given, if any."""
        sizes = {"steps": self.steps, "tokens": self.tokens, "minutes": self.minutes}
        return {name: value for name, value in sizes.items() if value is not None}


@dataclass(frozen=True)
class RunningSettings:
    """How the trainings of a comparison are run; it does not change what they find."""

    workers: int | None = option(
        None, "trainings that run at the same time.", least=1, most=MOST_THREADS, default="cores ÷ threads; on a GPU: 1"
    )
    threads: int = option(1, "CPU threads of each training, and of the timing afterwards.", least=1, most=MOST_THREADS)
    shard: str | None = option(
        None,
        '"2/8": only the second eighth of the cells, for job arrays. Copy all folders together and start once more '
        "without it, or run `gpt2lab report`.",
    )
    ray: str | None = option(
        None,
        'address of a Ray cluster whose workers see the same folders ("auto", or "local" to start one here).',
    )
    rounds: int = option(9, "rounds of timing all arms in turn, afterwards; 0: none.", least=0, most=10_000)
    max_hours: float = option(24.0, "refuse a grid that is estimated to take longer.", above=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Claim:
    """What is to be decided, declared before anything is trained: one primary contrast.

    Attributes:
        says: the claim in words.
        arm: who is compared with the baseline.
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
class Design:
    """What is compared, as ``comparison.yaml`` and ``results.json`` hold it: flat, under the names of the flags.

    Attributes:
        arms: options of each arm, the baseline first.
        claims: in the order in which they were declared.
        grid: which trainings there are.
        shared: options of all arms, plain.
        settled_steps: steps by context that the clock settled, where minutes were asked for.
    """

    arms: Mapping[str, Options]
    claims: tuple[Claim, ...] = ()
    grid: GridSettings = GridSettings()
    shared: Options = field(default_factory=dict)
    settled_steps: Mapping[int, int] | None = None

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with: the first."""
        return next(iter(self.arms))

    @property
    def options(self) -> dict[str, Any]:
        """Those of the grid and of all arms, under the names of the flags."""
        return self._grid | dict(self.shared)

    @property
    def _grid(self) -> dict[str, Any]:
        return {name: value for name, value in spelled(self.grid).items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """The same as YAML and JSON have it."""
        usual = {of.name: of.default for of in fields(Claim)}
        claims = [{n: v for n, v in asdict(claim).items() if v != usual[n]} for claim in self.claims]
        grid = self._grid
        budget = {name: grid.pop(name) for name in self.grid.budget}
        settled = {} if self.settled_steps is None else {"settled_steps": dict(self.settled_steps)}
        arms = {name: {n: plain(v) for n, v in options.items()} for name, options in self.arms.items()}
        return {"arms": arms, "claims": claims} | grid | budget | settled | dict(self.shared)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Self:
        """The inverse of :meth:`to_dict`; what shared options are worth is looked at when they are used.

        Raises:
            InputError: it is no comparison, or a damaged one.
        """
        try:
            json.dumps(values, allow_nan=False)
        except (TypeError, ValueError):  # YAML can
            raise InputError(f"{where} is damaged: it holds what JSON cannot, such as a date or an infinity") from None
        rest = dict(values)
        arms = typed(dict[str, dict[str, object]], rest.pop("arms", None), f"{where} (arms)")
        claims = typed(list[Claim], rest.pop("claims", None) or [], f"{where} (claims)")
        settled = rest.pop("settled_steps", None)
        if not arms:
            raise InputError(f"{where} is damaged: it names no arms")
        grid = {name: rest.pop(name) for name in options_of(GridSettings) if name in rest}
        return cls(
            arms,
            tuple(claims),
            GridSettings(**given_options((GridSettings,), grid, where)),
            rest,
            None if settled is None else typed(dict[int, int], {str(k): v for k, v in settled.items()}, where),
        )


def plain(value: object) -> object:
    """A value of an option as YAML has it."""
    if isinstance(value, type):
        return spell_attention(value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
