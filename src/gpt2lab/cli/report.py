"""``gpt2lab report``: what a comparison found, as a page, a table and data."""

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

from gpt2lab.cli.cells import time_arms
from gpt2lab.cli.screen import check_counts, console
from gpt2lab.errors import InputError
from gpt2lab.evaluation.compare import COMPARISON, collect
from gpt2lab.evaluation.report import render, verdicts
from gpt2lab.files import atomic_write


def report(folder: Path, /, *, against: Path | None = None, rounds: int = 0, threads: int = 1) -> int:
    """Make report.html, results.csv and results.json again from the run folders of a comparison.

    Parameters
    ----------
    folder
        What `gpt2lab compare --out` named.
    against
        Folder (or results.json) of another comparison: the report then also shows what changed since.
    rounds
        First time all arms again, in that many rounds: do it while the machine does nothing else.
    threads
        Of that timing.
    """
    check_counts(rounds=rounds, threads=threads)
    other = None if against is None else _read_results(against)
    if rounds:
        time_arms(folder, rounds, threads, again=True)
    write_report(folder, other)
    return 0


def write_report(folder: Path, other: dict[str, Any] | None = None) -> None:
    """Write the three files, and tell the verdicts."""
    results = collect(folder)
    files = {
        "results.json": json.dumps(results),
        "results.csv": _table(results),
        "report.html": render(results, other),
    }
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content.encode())
    for verdict in verdicts(results):
        console.print(f"{verdict['says']}\n  {verdict['word']}. {verdict['sentence']}", highlight=False, markup=False)
    console.print(f"report   {folder / 'report.html'}\nresults  {folder / 'results.csv'} and .json", highlight=False)


def _table(results: dict[str, Any]) -> str:
    """One line a cell, without curves and samples; the medians of its arm's times stand in every one."""
    rows = []
    for cell in results["cells"]:
        timed = results["speed"].get(str(cell["context"]), {}).get("arms", {}).get(cell["arm"], {})
        rows.append(cell | {speed: statistics.median(seconds) for speed, seconds in timed.items()})
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    long = {name for row in rows for name, value in row.items() if isinstance(value, list)} | {"sample"}
    writer = csv.DictWriter(text, [name for name in names if name not in long], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_results(path: Path) -> dict[str, Any]:
    if (path / COMPARISON).exists():
        return collect(path)
    file = path / "results.json" if path.is_dir() else path
    try:
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        results = {}
    if "cells" not in results:
        raise InputError(f"--against {path}: it is no comparison's folder or results.json")
    return results
