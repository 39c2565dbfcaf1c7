"""The cells of a comparison by context and arm, as tables and pictures need them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2lab.comparison.results import CellResult, Results, Seconds


@dataclass(frozen=True)
class Spread:
    """Of several rounds: the middle one, the lowest and the highest."""

    median: float
    low: float
    high: float


def spread(rounds: Sequence[float]) -> Spread | None:
    """Of these rounds; None if there are none."""
    return Spread(statistics.median(rounds), min(rounds), max(rounds)) if rounds else None


class Grouped:
    """What was found, by context and arm.

    Attributes:
        results: of the comparison.
        baseline: its first arm.
        groups: the cells of each arm at each context.
        contexts, arms: those of them that have a finished cell.
        losses: the contrast in test loss of each arm at each context.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.baseline = results.settings.baseline
        self.groups: dict[tuple[int, str], list[CellResult]] = {}
        for cell in results.cells:
            self.groups.setdefault((cell.context, cell.arm), []).append(cell)
        self.contexts = list(dict.fromkeys(context for context, _ in self.groups))
        self.arms = list(dict.fromkeys(arm for _, arm in self.groups))
        self.losses = {(c.context, c.arm): c for c in results.contrasts if c.measure == "test_loss"}

    def seconds(self, context: int, arm: str) -> Seconds | None:
        """Timings of an arm, if there are any."""
        timing = self.results.speed.get(context)
        return None if timing is None else timing.arms.get(arm)

    def tokens_per_second(self, context: int, arm: str) -> Spread | None:
        """Of training, if it was timed: median, lowest and highest round."""
        cell, timed = self.groups[context, arm][0], self.seconds(context, arm)
        if timed is None:
            return None
        return spread([cell.tokens / cell.steps / seconds for seconds in timed.seconds_per_step])
