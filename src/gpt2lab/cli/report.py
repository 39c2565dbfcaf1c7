"""``gpt2lab report``: what a comparison found, as a page, a table and data."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2lab.cli.screen import console, print_json
from gpt2lab.comparison.arms import typed_arms
from gpt2lab.comparison.settings import Options
from gpt2lab.errors import InputError

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
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
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
    json_output
        Print the verdicts as JSON.
    """
    from gpt2lab.comparison.run import report as make_report

    own = {name: _attention(name, options) for name, options in typed_arms(arm or ()).items()}
    found = make_report(folder, against=against, rounds=rounds, threads=threads, attentions=own)
    tell(found, json_output)
    return 0


def _attention(name: str, options: Options) -> str:
    if options.keys() != {"attention"}:
        raise InputError(f"--arm {name}: the folder knows its options; write name=file.py:ClassName alone")
    return str(options["attention"])


def tell(found: "Comparison", json_output: bool) -> None:
    """Print what was found: in a sentence for each arm, as a table, the claims, and where the files are."""
    from gpt2lab.comparison.report import answers

    if json_output:
        verdicts = [dataclasses.asdict(verdict) for verdict in found.verdicts]
        told = {"folder": str(found.folder), "verdicts": verdicts, "failed": dict(found.failed)}
        print_json(told | {"unfinished": found.results.unfinished})
        return
    about = f"test loss against {found.results.settings.baseline}, nats per token:"
    lines = ["", about, *(f"  {answer}" for answer in found.answers()), "", found.losses(), ""]
    lines += [f"{answer.says}\n  {answer.word}. {answer.sentence}" for answer in answers(found.results)]
    for what, name in (("report", "report.html"), ("table", "results.csv"), ("data", "results.json")):
        if (found.folder / name).exists():
            lines.append(f"{what:<6}  {found.folder / name}")
    console.print("\n".join(lines))
