"""The statistics of a comparison for results that this program did not make."""

import csv
import io
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path

from gpt2lab.comparison.statistics import estimate, more_pairs, shared_confidence, word_of
from gpt2lab.comparison.verdicts import Verdict, html_table, text_table
from gpt2lab.errors import InputError
from gpt2lab.options import meant
from gpt2lab.reading import read_text

Row = Mapping[str, object]
Group = dict[str, dict[str | float, float]]  # of one context: value by pair by arm


@dataclass(frozen=True, repr=False)
class Judgement:
    """What somebody's runs show.

    Attributes:
        baseline: the arm that the others are compared with.
        quantity: name of the value that is compared.
        pair: name of the column that says which runs belong together.
        higher_is_better: whether more of the quantity is better; else less is.
        verdicts: one for each other arm (and each context, if the results have that column).
        warnings: what a reader has to know besides.
    """

    baseline: str
    quantity: str
    pair: str
    higher_is_better: bool
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: all is decided and no arm is worse; 1: one is worse; 3: something is undecided."""
        words = [one.verdict for one in self.verdicts]
        return 1 if "worse" in words else 3 if "no difference shown" in words else 0

    def title(self) -> str:
        """What is compared, in a line."""
        direction = "more is better" if self.higher_is_better else "less is better"
        return f"{self.quantity} minus that of {self.baseline} ({direction}), paired by {self.pair}"

    def table(self) -> str:
        """The verdicts as text."""
        return f"{self.title()}\n\n{text_table(self.verdicts)}"

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return html_table(self.verdicts, self.title())

    def to_dict(self) -> dict[str, object]:
        """The same as JSON has it."""
        return asdict(self)


def judge(
    results: str | Path | Iterable[Row],
    *more: str | Path,
    baseline: str | None = None,
    pair: str = "seed",
    value: str = "loss",
    arm: str = "arm",
    higher_is_better: bool = False,
) -> Judgement:
    """Compare arms with a baseline, pair by pair: "better", "worse" or "no difference shown", from intervals.

    The interval is Student's paired t. It is a 95 % interval for one arm; several arms (and contexts) share the error
    of 5 % (Bonferroni), so that at most one of twenty judgements of equals says "better" or "worse" of any.

    Args:
        results: a CSV, JSON or JSONL file with one run a row; or such rows themselves, as mappings.
        more: further files. Where the files have no column for the arm, each is an arm, named by its file, and the
            first is the baseline unless ``baseline`` names another.
        baseline: the arm that the others are compared with.
        pair: the column that says which runs belong together, such as the seed.
        value: the column that is compared.
        arm: the column with the arm's name. (If there is a column ``context`` with whole numbers, each context is
            judged apart.)
        higher_is_better: for accuracies and the like.

    Returns:
        the judgement; its ``verdicts`` are as those of :func:`gpt2lab.compare`.

    Raises:
        InputError: a file or column that is not there, a value that is no finite number, two runs of one arm with the
            same seed, runs that are not paired, or only one pair.

    Warns:
        UserWarning: an arm and the baseline have not the same seeds; those that both have are compared.
    """
    rows, arm, first = _read(results, more, arm)
    groups = _grouped(rows, arm, pair, value)
    arms = list(dict.fromkeys(name for group in groups.values() for name in group))
    baseline = _baseline(baseline if baseline is not None else first, arms, arm)
    if len(arms) < 2:
        raise InputError(f"there is only the arm {arms[0]!r}; a comparison needs two or more (--arm COLUMN names them)")
    others = [(context, name) for context, group in groups.items() for name in group if name != baseline]
    confidence = shared_confidence(len(others))
    told: list[str] = []
    verdicts = []
    for context, name in others:
        where = "" if context is None else f" at a context of {context}"
        mine, base = groups[context][name], groups[context].get(baseline, {})
        common = [key for key in base if key in mine]
        if len(common) < 2:
            raise InputError(_unpaired(name, baseline, pair, where, [*mine], [*base], [*common]))
        if mine.keys() != base.keys():
            told.append(_differing(name, baseline, pair, where, mine.keys(), base.keys()))
        differences = [mine[key] - base[key] for key in common]
        found = estimate(differences, confidence)
        assert found.low is not None
        assert found.high is not None
        if found.high - found.low <= 1e-9 * max(abs(base[key]) for key in common) and found.mean != 0:
            told.append(
                f"all differences of {name}{where} are equal, so the interval has no width: that is sure only if the "
                "values are exact, and not if they are rounded"
            )
        low, high = (-found.high, -found.low) if higher_is_better else (found.low, found.high)
        verdicts.append(
            Verdict(
                name,
                context,
                value,
                found.mean,
                found.low,
                found.high,
                word_of(low, high),
                found.pairs,
                confidence,
                found.effect_size,
                more_pairs(found, confidence),
            )
        )
    for message in told:
        warnings.warn(message, stacklevel=2)
    return Judgement(baseline, value, pair, higher_is_better, tuple(verdicts), tuple(told))


def _read(
    results: str | Path | Iterable[Row], more: Sequence[str | Path], arm: str
) -> tuple[list[tuple[str, Row]], str, str | None]:
    """All rows with where they stand, the column of the arm, and the baseline that the files themselves name."""
    if not isinstance(results, str | Path):
        if more:
            raise InputError("rows were given, and files too; give one of them")
        given = [*results]
        if not all(isinstance(row, Mapping) for row in given):
            raise InputError("results have to be a file, or rows such as {'arm': 'A', 'seed': 1, 'loss': 2.5}")
        return [(f"row {number}", row) for number, row in enumerate(given, 1)], arm, None
    files = [Path(file) for file in (results, *more)]
    rows = {file: _rows_of(file) for file in files}
    has_arms = [any(arm in row for _, row in found) for found in rows.values()]
    if len(files) == 1 or all(has_arms):
        return [row for found in rows.values() for row in found], arm, None
    if any(has_arms):
        raise InputError(f"some of the files have a column {arm!r} and others have not; name another one with --arm")
    names = [file.stem for file in files]
    if len({*names}) < len(files):
        names = [str(file) for file in files]
    named: list[tuple[str, Row]] = [
        (at, {**row, arm: n}) for n, found in zip(names, rows.values(), strict=True) for at, row in found
    ]
    return named, arm, names[0]


def _rows_of(file: Path) -> list[tuple[str, Row]]:
    """The rows of a file, each with where it stands."""
    try:
        text = read_text(file).removeprefix("\ufeff")
        if file.suffix.lower() == ".json":
            found = json.loads(text)
            if isinstance(found, dict):  # results.json of a comparison, or a speedrun's record
                found = found.get("cells", found.get("attempts"))
            if not isinstance(found, list):
                raise InputError(f"{file} has to hold a list of runs, each an object with named values")
            rows: list[tuple[str, object]] = [(f"{file}, run {n}", row) for n, row in enumerate(found, 1)]
        elif file.suffix.lower() in (".jsonl", ".ndjson"):
            lines = enumerate(text.splitlines(), 1)
            rows = [(f"{file}, line {n}", json.loads(line)) for n, line in lines if line.strip()]
        else:
            heading = text.partition("\n")[0]
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=heading.count))
            rows = [(f"{file}, line {reader.line_num}", row) for row in reader]
    except (ValueError, csv.Error, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not rows:
        raise InputError(f"{file} holds no runs")
    for at, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{at}: a run has to be an object with named values")
        if None in row:
            raise InputError(f"{at}: there are more values than columns")
    return [(at, row) for at, row in rows if isinstance(row, dict)]


def _grouped(rows: Sequence[tuple[str, Row]], arm: str, pair: str, value: str) -> dict[int | None, Group]:
    """The values by context, arm and pair."""
    if not rows:
        raise InputError("there are no runs to judge")
    columns = dict.fromkeys(name for _, row in rows for name in row)
    options = {"arm": arm, "pair": pair, "value": value}
    for option, name in options.items():
        if name not in columns:
            raise InputError(f"there is no column {name!r} (--{option}){meant(name, map(str, columns))}")
    contexts = [_key(row.get("context", "")) for _, row in rows]
    apart = "context" not in (arm, pair, value) and all(isinstance(c, float) and c.is_integer() for c in contexts)
    groups: dict[int | None, Group] = {}
    for context, (at, row) in zip(contexts, rows, strict=True):
        for name in (arm, pair):
            if row.get(name) is None or not str(row[name]).strip():
                raise InputError(f"{at}: {name} is missing")
        runs = groups.setdefault(int(context) if apart else None, {}).setdefault(str(row[arm]).strip(), {})
        key = _key(row[pair])
        if key in runs:
            raise InputError(
                f"{at}: the arm {row[arm]} has a second run with {pair} {row[pair]}; a pair needs one run of each arm, "
                "so name the column that tells them apart with --pair"
            )
        runs[key] = _number(at, value, row.get(value))
    return groups


def _key(value: object) -> str | float:
    """What a pair is known by: 1, 1.0 and "1" are the same seed."""
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _number(at: str, name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | Real) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        shown = "missing" if value in (None, "") else repr(value)
        raise InputError(f"{at}: {name} is {shown}; it has to be a finite number")
    return number


def _baseline(asked: str | None, arms: Sequence[str], column: str) -> str:
    known = ", ".join(arms[:10])
    if asked is None:
        raise InputError(f"say which arm the others are compared with: --baseline and one of {known}")
    for name in (asked, Path(asked).stem):  # of files, the name that was typed
        if name in arms:
            return name
    raise InputError(f"there is no arm {asked!r} in the column {column!r} (--baseline){meant(asked, arms)}")


def _listed(keys: Iterable[str | float]) -> str:
    names = [f"{key:g}" if isinstance(key, float) else key for key in keys]
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")


def _unpaired(
    name: str,
    baseline: str,
    pair: str,
    where: str,
    mine: Sequence[str | float],
    base: Sequence[str | float],
    common: Sequence[str | float],
) -> str:
    if common:
        return (
            f"{name} and {baseline} have only one {pair} in common{where} ({_listed(common)}), which says nothing of "
            "chance; train both with two or more"
        )
    return (
        f"{name} and {baseline} are not paired{where}: no {pair} is in both ({_listed(mine)} and "
        f"{_listed(base) or 'none'}); train both with the same ones"
    )


def _differing(
    name: str, baseline: str, pair: str, where: str, mine: Iterable[str | float], base: Iterable[str | float]
) -> str:
    mine, base = [*mine], [*base]
    alone = [
        f"{_listed(keys)} only in {who}"
        for who, keys in ((name, [k for k in mine if k not in base]), (baseline, [k for k in base if k not in mine]))
        if keys
    ]
    common = sum(key in base for key in mine)
    return (
        f"{name} and {baseline} differ in {pair}{where}: {'; '.join(alone)}; the {common} that both have are compared"
    )
