"""Anyone's runs judged: against scipy's paired test, from every kind of file, and by simulation."""

import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

import gpt2lab
from gpt2lab.comparison.judge import judge
from gpt2lab.comparison.statistics import power
from gpt2lab.errors import InputError

TRIES = 2000


def rows_of(arms: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [{"arm": arm, "seed": seed, "loss": x} for arm, each in arms.items() for seed, x in enumerate(each, 1)]


NOISY = {
    "A": [2.00, 2.10, 1.95, 2.05],
    "lower": [1.90, 2.01, 1.84, 1.96],
    "noisy": [1.00, 2.60, 1.20, 2.60],  # a lower mean, and an interval around zero
    "higher": [2.10, 2.19, 2.06, 2.15],
}


@given(st.lists(st.tuples(st.floats(0.5, 5), st.floats(0.5, 5)), min_size=3, max_size=9), st.booleans())
def test_two_arms_are_judged_by_the_paired_t_test(pairs: list[tuple[float, float]], higher_is_better: bool) -> None:
    base, mine = ([pair[i] for pair in pairs] for i in (0, 1))
    assume(np.std(np.subtract(mine, base)) > 1e-6)
    found = judge(rows_of({"A": base, "B": mine}), baseline="A", higher_is_better=higher_is_better)
    (verdict,) = found.verdicts
    expected = stats.ttest_rel(mine, base)
    interval = expected.confidence_interval(0.95)
    assert (verdict.arm, verdict.context, verdict.quantity) == ("B", None, "loss")
    assert verdict.difference == pytest.approx(np.mean(mine) - np.mean(base), abs=1e-9)
    assert (verdict.low, verdict.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assume(abs(expected.pvalue - 0.05) > 1e-6)
    good = (verdict.difference < 0) != higher_is_better
    word = "no difference shown" if expected.pvalue > 0.05 else "better" if good else "worse"
    assert verdict.verdict == word
    assert found.exit_code == {"better": 0, "worse": 1}.get(word, 3)


def test_several_arms_share_the_error_and_are_told_apart() -> None:
    found = judge(rows_of(NOISY), baseline="A")
    assert {v.arm: v.verdict for v in found.verdicts} == {
        "lower": "better",
        "noisy": "no difference shown",
        "higher": "worse",
    }
    assert {v.confidence for v in found.verdicts} == {1 - 0.05 / 3}
    assert found.exit_code == 1
    by_name = {v.arm: v for v in found.verdicts}
    assert (by_name["lower"].more_seeds, by_name["higher"].more_seeds) == (0, 0)
    noisy = by_name["noisy"]
    assert noisy.effect_size is not None
    assert noisy.more_seeds is not None
    enough = noisy.pairs + noisy.more_seeds
    assert (
        power(noisy.effect_size, enough, noisy.confidence) >= 0.8 > power(noisy.effect_size, enough - 1, 1 - 0.05 / 3)
    )


def test_it_is_a_function_of_the_library_and_shows_itself_as_a_table() -> None:
    found = gpt2lab.judge(rows_of(NOISY | {"<b>": NOISY["lower"]}), baseline="A")
    assert "<table>" in found._repr_html_()
    assert "&lt;b&gt;" in found._repr_html_()
    assert found.table().count("\n") == 6
    assert "loss minus that of A (less is better), paired by seed" in found.table()


@pytest.mark.parametrize("kind", ["csv", "semicolons.csv", "tsv", "json", "jsonl", "results.json"])
def test_every_kind_of_file_is_read_alike(tmp_path: Path, kind: str) -> None:
    rows = rows_of(NOISY)
    file = tmp_path / f"runs.{kind}"
    if kind.endswith("sv"):
        delimiter = {"csv": ",", "semicolons.csv": ";", "tsv": "\t"}[kind]
        with file.open("w", newline="", encoding="utf-8-sig") as out:
            writer = csv.DictWriter(out, ["arm", "seed", "loss"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        file.write_text(json.dumps({"cells": rows} if kind == "results.json" else rows))
    assert judge(file, baseline="A") == judge(rows, baseline="A")


def test_two_files_are_two_arms_named_by_the_files_and_the_first_is_the_baseline(tmp_path: Path) -> None:
    for arm in ("A", "lower"):
        lines = [f"{seed},{loss}" for seed, loss in enumerate(NOISY[arm], 1)]
        (tmp_path / f"{arm}.csv").write_text("seed,loss\n" + "\n".join(lines))
    files = tmp_path / "A.csv", tmp_path / "lower.csv"
    expected = judge(rows_of({arm: NOISY[arm] for arm in ("A", "lower")}), baseline="A")
    assert judge(*files) == expected
    (verdict,) = judge(*files, baseline=str(files[1])).verdicts
    assert (verdict.arm, verdict.verdict) == ("A", "worse")


def test_files_that_name_their_arms_are_taken_together(tmp_path: Path) -> None:
    rows = rows_of(NOISY)
    for number in (0, 1):
        (tmp_path / f"{number}.json").write_text(json.dumps(rows[number::2]))
    assert judge(tmp_path / "0.json", tmp_path / "1.json", baseline="A") == judge(rows, baseline="A")


def test_names_of_columns_are_free_and_the_arm_may_stand_in_any() -> None:
    rows = [{"model": r["arm"], "fold": f"f{r['seed']}", "acc": 1 / r["loss"]} for r in rows_of(NOISY)]
    found = judge(rows, baseline="A", pair="fold", value="acc", arm="model", higher_is_better=True)
    assert [v.verdict for v in found.verdicts] == ["better", "no difference shown", "worse"]
    assert {v.quantity for v in found.verdicts} == {"acc"}


def test_contexts_are_judged_apart_where_the_results_have_them() -> None:
    rows = [r | {"context": 25} for r in rows_of(NOISY)] + [
        r | {"context": "64", "loss": -r["loss"]} for r in rows_of(NOISY)
    ]
    found = judge(rows, baseline="A")
    assert [(v.context, v.arm, v.verdict) for v in found.verdicts] == [
        (25, "lower", "better"),
        (25, "noisy", "no difference shown"),
        (25, "higher", "worse"),
        (64, "lower", "worse"),
        (64, "noisy", "no difference shown"),
        (64, "higher", "better"),
    ]
    assert {v.confidence for v in found.verdicts} == {1 - 0.05 / 6}


def test_arms_with_other_seeds_are_compared_by_the_common_ones_with_a_warning() -> None:
    rows = [*rows_of({"A": [2.0, 2.1, 1.9, 2.2]}), *rows_of({"B": [1.8, 1.95, 1.7]})]
    rows.append({"arm": "B", "seed": 9, "loss": 77.0})
    with pytest.warns(UserWarning, match="B and A differ in seed: 9 only in B; 4 only in A; the 3 that both have"):
        found = judge(rows, baseline="A")
    assert found.verdicts[0].pairs == 3
    assert found.verdicts[0].verdict == "better"
    assert len(found.warnings) == 1


def test_seeds_are_the_same_however_they_are_written() -> None:
    rows = [{"arm": "A", "seed": s, "loss": x} for s, x in ((1, 2.0), (2, 2.1), (3, 1.9))]
    rows += [{"arm": "B", "seed": s, "loss": x} for s, x in (("1", 1.8), ("2.0", 1.95), (3.0, 1.7))]
    with warnings.catch_warnings(action="error"):
        assert judge(rows, baseline="A").verdicts[0].pairs == 3


def test_differences_that_are_all_equal_are_told_of() -> None:
    with pytest.warns(UserWarning, match="all differences of B are equal"):
        found = judge(rows_of({"A": [2.0, 2.1, 1.9], "B": [1.9, 2.0, 1.8]}), baseline="A")
    assert found.verdicts[0].verdict == "better"
    with warnings.catch_warnings(action="error"):
        same = judge(rows_of({"A": [2.0, 2.1, 1.9], "B": [2.0, 2.1, 1.9]}), baseline="A")
    assert (same.verdicts[0].verdict, same.verdicts[0].more_seeds) == ("no difference shown", None)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (rows_of({"A": [1.0], "B": [2.0]}), {}, "only one seed in common .1., which says nothing of chance"),
        ([*rows_of({"A": [1.0, 2.0]}), {"arm": "B", "seed": 8, "loss": 1.0}], {}, "not paired: no seed is in both"),
        (rows_of({"A": [1.0, 2.0]}), {}, "only the arm 'A'"),
        (rows_of(NOISY), {"baseline": "B"}, "no arm 'B'"),
        (rows_of(NOISY), {"baseline": None}, "say which arm .* --baseline and one of A, lower, noisy, higher"),
        (rows_of(NOISY), {"value": "lost"}, "no column 'lost' .--value.; did you mean loss"),
        (rows_of(NOISY), {"pair": "run"}, "no column 'run' .--pair.; known are arm, loss, seed"),
        (rows_of(NOISY) + rows_of({"A": [1.0]}), {}, "row 17: the arm A has a second run with seed 1"),
        ([*rows_of(NOISY), {"arm": "A", "seed": 5, "loss": "low"}], {}, "row 17: loss is 'low'; it has to be a finite"),
        ([*rows_of(NOISY), {"arm": "A", "seed": 5, "loss": math.nan}], {}, "row 17: loss is nan"),
        ([*rows_of(NOISY), {"arm": "A", "seed": 5}], {}, "row 17: loss is missing"),
        ([*rows_of(NOISY), {"arm": "A", "seed": 5, "loss": 10**400}], {}, "row 17: loss is 1000"),
        ([*rows_of(NOISY), {"arm": "A", "loss": 1.0}], {}, "row 17: seed is missing"),
        (["A", "B"], {}, "results have to be a file, or rows"),
        ([], {}, "no runs"),
    ],
)
def test_what_cannot_be_judged_is_refused(rows: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        judge(rows, **{"baseline": "A"} | options)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("runs.csv", "", "holds no runs"),
        ("runs.csv", "arm,seed,loss\nA,1,2,3\n", "line 2: there are more values than columns"),
        ("runs.csv", "arm,seed,loss\nA,1,2\nB,1,\n", "line 3: loss is missing"),
        ("runs.json", "{", "cannot be read"),
        ("runs.json", "5", "has to hold a list of runs"),
        ("runs.json", "[5]", "run 1: a run has to be an object"),
        ("runs.json", "[" * 100_000, "cannot be read"),
        ("runs.jsonl", '{"arm": "A"}\n{', "cannot be read"),
        ("runs.csv", None, ""),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_place(
    tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}.*{words}"):
        judge(tmp_path / name, baseline="A")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no UTF-8 text"):
        judge(tmp_path / "runs.csv", baseline="A")


@given(st.binary(max_size=200), st.sampled_from(["csv", "json", "jsonl"]))
def test_whatever_a_file_holds_it_is_judged_or_refused_in_a_sentence(content: bytes, kind: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"runs.{kind}")
        file.write_bytes(content)
        with pytest.raises(InputError):
            judge(file, baseline="A")


def test_of_two_thousand_judgements_of_equals_at_most_five_percent_say_better_or_worse() -> None:
    draw = np.random.default_rng(1)
    wrong = 0
    for losses in draw.normal(2.0, 0.05, (TRIES, 3, 4)):  # two arms and the baseline, four seeds
        found = judge(rows_of(dict(zip("ABC", losses.tolist(), strict=True))), baseline="A")
        wrong += any(v.verdict != "no difference shown" for v in found.verdicts)
    assert wrong <= stats.binom.ppf(0.999, TRIES, 0.05)  # if the true share is 5 %, once in a thousand it is more


def test_the_seeds_that_are_told_to_settle_it_show_the_difference_in_four_of_five_judgements() -> None:
    draw = np.random.default_rng(2)
    base = draw.normal(2.0, 0.3, 8)
    noise = draw.normal(0, 1, 8)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    (first,) = judge(rows_of({"A": base.tolist(), "B": (base - 0.02 + 0.04 * noise).tolist()}), baseline="A").verdicts
    assert first.verdict == "no difference shown"
    assert first.effect_size is not None
    assert first.more_seeds is not None
    effect, seeds = first.effect_size, first.pairs + first.more_seeds  # the effect that the number was told for
    shown = 0
    for differences in draw.normal(0.04 * effect, 0.04, (TRIES, seeds)):
        a = draw.normal(2.0, 0.3, seeds)
        (again,) = judge(rows_of({"A": a.tolist(), "B": (a + differences).tolist()}), baseline="A").verdicts
        shown += again.verdict == "better"
    assert shown >= stats.binom.ppf(0.001, TRIES, 0.8)
