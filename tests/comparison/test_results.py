"""Results as JSON: read back as they were written, those of earlier days too, and refused in a sentence if damaged."""

import contextlib
import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.comparison.contrasts import contrasts
from gpt2lab.comparison.folder import read_design
from gpt2lab.comparison.report import render
from gpt2lab.comparison.results import CellResult, Results
from gpt2lab.errors import InputError
from gpt2lab.reading import typed

STORED = sorted((Path(__file__).parents[2] / "experiments" / "results").glob("*/results.json"))
PLAIN: dict[str, Any] = json.loads(min(STORED, key=lambda path: path.stat().st_size).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_results_that_were_written_before_are_read_and_written_the_same_to_the_last_bit(path: Path) -> None:
    results = Results.read(path)
    assert json.dumps(results.to_dict()) == path.read_text(encoding="utf-8")
    with path.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        assert results.csv() == file.read()
    design = results.settings
    again = contrasts(results.cells, results.speed, results.claims, design.grid.contexts, design.baseline)
    assert again == results.contrasts


def test_a_report_is_made_from_the_json_alone() -> None:
    page = render(Results.of(PLAIN, "results.json"))
    for arm in PLAIN["settings"]["arms"]:
        assert arm in page
    assert page.count("<svg") >= 6


@given(st.data())
def test_damaged_results_are_read_or_refused_in_a_sentence(data: st.DataObject) -> None:
    damaged = copy.deepcopy(PLAIN)
    place: Any = damaged
    for _ in range(data.draw(st.integers(0, 3))):
        keys = list(place) if isinstance(place, dict) else range(len(place)) if isinstance(place, list) else []
        if not keys or not isinstance(inner := place[key := data.draw(st.sampled_from(keys))], dict | list):
            break
        place = inner
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if keys:
        key = data.draw(st.sampled_from(keys))
        place[key] = data.draw(st.sampled_from([None, "", "x", -1, 1.5, [], {}, [[]], {"a": 1}, True]))
    with contextlib.suppress(InputError):
        json.dumps(Results.of(damaged, "results.json").to_dict(), allow_nan=False)


@pytest.mark.parametrize("value", [".inf", ".nan", "2001-01-01", "!!set {a}", "!!binary aGk=", "{.inf: 1}", "9" * 5000])
def test_settings_that_no_json_can_hold_are_refused_before_anything_is_written(tmp_path: Path, value: str) -> None:
    usual = "arms: {a: {}, b: {}}\n"
    (tmp_path / "comparison.yaml").write_text(usual + "compile: auto\n")
    assert read_design(tmp_path).shared == {"compile": "auto"}
    for damaged in (f"compile: {value}\n", f"claims: [{value}]\n"):
        (tmp_path / "comparison.yaml").write_text(usual + damaged)
        with pytest.raises(InputError, match=r"comparison\.yaml"):
            read_design(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": "one"}, "'one' stands where a whole number has to be"),
        ({"test_loss": math.inf}, "inf stands where a number"),
        ({"curve": [[1]]}, "a list"),
        ({"sample": 5}, "text"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"results.json is damaged: .*{words}"):
        typed(CellResult, PLAIN["cells"][0] | change, "results.json")
    missing = {name: value for name, value in PLAIN["cells"][0].items() if name not in change}
    with pytest.raises(InputError, match=f"{next(iter(change))} is missing"):
        typed(CellResult, missing, "results.json")


def test_other_files_are_no_results(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", "5", '{"cells": 1, "settings": 2}', '{"cells": NaN}', "[" * 50_000):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(InputError, match="results"):
            Results.read(tmp_path / "results.json")
    with pytest.raises(InputError, match="results"):
        Results.read(tmp_path / "nowhere" / "results.json")
