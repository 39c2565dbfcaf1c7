"""``gpt2lab report``: what a comparison found, as a page, a table and data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2lab.cli.screen import console
from gpt2lab.comparison.arms import own_attention

if TYPE_CHECKING:
    from gpt2lab.comparison.outcome import Comparison


def report(
    folder: Path,
    /,
    *,
    against: Path | None = None,
    rounds: int = 0,
    threads: int = 1,
    arm: Annotated[list[str] | None, Parameter(negative=())] = None,
) -> int:
    """Make the report of a comparison again: from its run folders, or report.html from a results.json alone.

    Parameters
    ----------
    folder
        What `gpt2lab compare --out` named; or a results.json, or the folder of one.
    against
        Folder (or results.json) of another comparison: the report then also shows what changed since.
    rounds
        Time all arms again before, in that many rounds. Do it while the machine does nothing else.
    threads
        CPU threads of that timing.
    arm
        The attention of an arm that has its own, for that timing: "name=file.py:ClassName". Can be repeated.
    """
    from gpt2lab.comparison.run import report as make_report

    own = own_attention(arm or ())
    tell_answers(make_report(folder, against=against, rounds=rounds, threads=threads, attentions=own))
    return 0


def tell_answers(found: "Comparison") -> None:
    """Print what can be said of the claims, and where the files are."""
    from gpt2lab.comparison.report import answers

    for answer in answers(found.results):
        console.print(f"{answer.says}\n  {answer.word}. {answer.sentence}", highlight=False, markup=False)
    for what, name in (("report", "report.html"), ("table", "results.csv"), ("data", "results.json")):
        if (found.folder / name).exists():
            console.print(f"{what:<6}  {found.folder / name}", highlight=False, markup=False)
