"""What is said of an arm against the baseline, and the table that shows it in a terminal or a notebook."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2lab.comparison.statistics import Word
from gpt2lab.progress import counted


@dataclass(frozen=True)
class Verdict:
    """An arm against the baseline, in one quantity.

    Attributes:
        arm: who is compared.
        context: at which context, in tokens; None if there is none.
        quantity: in what, such as "test_loss".
        difference: mean of arm minus baseline, pair by pair; of a relative quantity (a time, a size) the mean ratio
            minus 1. None if it cannot be told: the arm never got there.
        low, high: the interval of the difference; None if there is none (one pair alone).
        verdict: the word that the interval allows; None if it allows no word.
        pairs: how many there were: seeds, or rounds of a timing.
        confidence: of the interval; above 0.95 where several contrasts share the error of 5 %.
        effect_size: mean difference over its standard deviation, corrected for few pairs (Hedges' g).
        more_seeds: how many more pairs would probably settle it (see :func:`gpt2lab.comparison.statistics.more_pairs`);
            0 if it is settled, None if no number can be told.
        relative: whether the difference is one of ratios.
    """

    arm: str
    context: int | None
    quantity: str
    difference: float | None
    low: float | None
    high: float | None
    verdict: Word | None
    pairs: int
    confidence: float
    effect_size: float | None
    more_seeds: int | None
    relative: bool = False


def _signed(verdict: Verdict, value: float) -> str:
    if not verdict.relative:
        return f"{value:+.4f}"
    return f"{100 * value:+.2f} %" if value < 10 else "> +1000 %"  # an interval of two rounds knows no bounds


def _difference(verdict: Verdict) -> str:
    return "–" if verdict.difference is None else _signed(verdict, verdict.difference)


def _interval(verdict: Verdict) -> str:
    if verdict.low is None or verdict.high is None:
        return "–"
    return f"{_signed(verdict, verdict.low)} to {_signed(verdict, verdict.high)}"


def _more(verdict: Verdict) -> str:
    return "?" if verdict.more_seeds is None else str(verdict.more_seeds or "–")


def difference_cells(verdict: Verdict) -> list[str]:
    """Difference, interval and word, as tables show them."""
    return [_difference(verdict), _interval(verdict), verdict.verdict or "undecided"]


_COLUMNS: dict[str, Callable[[Verdict], str]] = {
    "context": lambda one: str(one.context),
    "arm": lambda one: one.arm,
    "quantity": lambda one: one.quantity,
    "difference": _difference,
    "interval": _interval,
    "confidence": lambda one: f"{one.confidence:.4g}",
    "pairs": lambda one: str(one.pairs),
    "effect size": lambda one: "–" if one.effect_size is None else f"{one.effect_size:.2f}",
    "verdict": lambda one: one.verdict or "undecided",
    "more pairs": _more,
}


def _cells(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """The heading and a row for each verdict; without the contexts if there are none."""
    names = [name for name in _COLUMNS if name != "context" or any(one.context is not None for one in verdicts)]
    return [names, *([_COLUMNS[name](one) for name in names] for one in verdicts)]


def in_words(one: Verdict) -> str:
    """What is known of a loss, or of anything that is better if it is lower, in a sentence.

    ``rope: better by 0.0503 (0.0391 to 0.0614; 8 seeds)``
    """
    seeds = counted(one.pairs, "seed")
    if one.difference is None or one.low is None or one.high is None:
        return f"{one.arm}: {seeds} cannot tell a difference from chance; train two or more, better five"
    if one.verdict in ("better", "worse"):
        low, high = sorted((abs(one.low), abs(one.high)))
        return f"{one.arm}: {one.verdict} by {abs(one.difference):.4f} ({low:.4f} to {high:.4f}; {seeds})"
    settle = f"; about {one.more_seeds} more would settle it" if one.more_seeds else ""
    return (
        f"{one.arm}: no difference shown ({one.low:+.4f} to {one.high:+.4f}); {seeds} cannot show differences under "
        f"{(one.high - one.low) / 2:.2g} here{settle}"
    )


def sentences(verdicts: Sequence[Verdict], contexts: Sequence[int]) -> list[str]:
    """What is known of the test loss of each arm, in a sentence each."""
    losses = [one for context in contexts for one in verdicts if (one.context, one.quantity) == (context, "test_loss")]
    several = len(contexts) > 1
    return [f"context {one.context} · {in_words(one)}" if several else in_words(one) for one in losses]


def text_table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table of text, a line each."""
    return aligned(_cells(verdicts))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def html_table(verdicts: Sequence[Verdict], title: str) -> str:
    """The same as an HTML table with a caption, for a notebook."""
    heading, *rows = ([html.escape(cell) for cell in row] for row in _cells(verdicts))
    head = "".join(f"<th>{cell}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{html.escape(title)}</caption><tr>{head}</tr>{body}</table>"
