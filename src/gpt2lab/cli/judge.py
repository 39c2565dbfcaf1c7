"""``gpt2lab judge``."""

import warnings
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2lab.cli.screen import console


def judge(
    results: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    baseline: str | None = None,
    pair: str = "seed",
    value: str = "loss",
    arm: str = "arm",
    higher_is_better: Annotated[bool, Parameter(negative=())] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Judge the results of any program: is an arm better or worse than the baseline, or is no difference shown?

    The word comes from the interval of the differences, pair by pair (Student's t), never from the mean alone. Several
    arms share an error of 5 %. Exit code 0: all is decided and no arm is worse; 1: an arm is worse; 3: something is
    undecided; 2: the input cannot be used.

    "more pairs" tells how many further seeds would settle what is undecided, with a probability of 80 %, if the true
    difference and spread are those found so far. Decide on a number before you look again.

    Parameters
    ----------
    results
        CSV, JSON or JSONL files with one run a row. Several files without a column for the arm are an arm each, the
        first one the baseline.
    baseline
        The arm that the others are compared with.
    pair
        Column that says which runs belong together.
    value
        Column that is compared.
    arm
        Column with the arm's name.
    higher_is_better
        More of it is better, as with an accuracy.
    json_output
        Print JSON instead of a table.
    """
    from gpt2lab.cli.screen import errors, print_json
    from gpt2lab.comparison.judge import judge as judge_results

    with warnings.catch_warnings(action="ignore"):  # they are printed below
        found = judge_results(
            *results, baseline=baseline, pair=pair, value=value, arm=arm, higher_is_better=higher_is_better
        )
    if json_output:
        print_json(found.to_dict())
    else:
        console.print(found.table())
        for message in found.warnings:
            errors.print(f"note: {message}")
    return found.exit_code
