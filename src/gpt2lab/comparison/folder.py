"""The folder of a comparison, and what its cells say together.

runs/compare/
    comparison.yaml                    what was asked for
    context-64/rope/seed-1/            a cell: a run folder, and measurements.json
    context-64/rope/tune/rate-0.004/   a cell that only chose a learning rate
    context-64/mine/disqualified.json  what an arm read of the future
    attention/mine.py                  a class that came from Python, as the cells load it
    speed.json                         seconds, timed alternately
    report.html  results.csv  results.json
"""

import json
from pathlib import Path
from typing import NamedTuple

import yaml

from gpt2lab.comparison.contrasts import contrasts, tokens_to
from gpt2lab.comparison.measure import Measurements
from gpt2lab.comparison.results import CellResult, Disqualified, Results, Timing
from gpt2lab.comparison.settings import Design
from gpt2lab.errors import InputError
from gpt2lab.files import DAY, atomic_write, sweep
from gpt2lab.manifests import replace_files, verify_if_listed
from gpt2lab.reading import read_json, read_settings, typed
from gpt2lab.runs.folder import TrainingState, find_checkpoint, read_state
from gpt2lab.runs.records import Record
from gpt2lab.runs.settings import RunSettings
from gpt2lab.training.metrics import exact_loss, read_metrics

COMPARISON, CELL, MEASUREMENTS, DISQUALIFIED, SPEED, RESULTS = (
    "comparison.yaml",
    "cell.yaml",
    "measurements.json",
    "disqualified.json",
    "speed.json",
    "results.json",
)

Key = tuple[int, str]  # context and arm


def arm_folder(out: Path, key: Key) -> Path:
    """Where the cells of an arm at a context are."""
    return out / f"context-{key[0]}" / key[1]


def read_design(out: Path) -> Design:
    """The design of the comparison in a folder.

    Raises:
        InputError: it is no folder of a comparison, or ``comparison.yaml`` is damaged.
    """
    path = out / COMPARISON
    if not path.is_file():
        raise InputError(
            f"{out} holds no comparison ({COMPARISON} is missing); `gpt2lab compare --out {out}` makes one"
        )
    values = read_settings(path)
    verify_if_listed(path)
    return Design.of(values, str(path))


def save_design(out: Path, design: Design) -> None:
    """Write ``comparison.yaml``: ``gpt2lab compare --config …`` repeats it, if no arm has a class from Python."""
    replace_files(out, {COMPARISON: yaml.safe_dump(design.to_dict(), sort_keys=False, allow_unicode=True).encode()})


def read_speed(out: Path) -> dict[int, Timing]:
    """The times of a comparison, if there are any."""
    path = out / SPEED
    return read_json(dict[int, Timing], path) if path.exists() else {}


def read_results(path: Path) -> Results:
    """What a comparison has found: from its run folders, or from a ``results.json`` (or the folder that holds one).

    Raises:
        InputError: there is none of these, or something in it is damaged.
    """
    if path.is_file():
        return Results.read(path)
    if (path / RESULTS).exists() and not (path / COMPARISON).exists():
        return Results.read(path / RESULTS)
    return collect(path)


def collect(out: Path) -> Results:
    """Everything that the cells of a comparison have found so far.

    Raises:
        InputError: it is no folder of a comparison, or something in it is damaged.
    """
    design = read_design(out)
    order = {arm: number for number, arm in enumerate(design.arms)}
    contexts = design.grid.contexts
    planned = [cell.parent for cell in out.glob(f"context-*/*/seed-*/{CELL}")]
    planned = [cell for cell in planned if _place(cell)[0] in contexts and _place(cell)[1] in order]
    planned.sort(key=lambda cell: (_place(cell)[0], order[_place(cell)[1]], _place(cell)[2]))
    finished = [cell for cell in planned if (cell / MEASUREMENTS).exists()]
    told = {cell: _training(cell) for cell in finished}
    ends = {_place(cell): training.curve[-1][1] for cell, training in told.items() if training.curve}
    cells = [_result(cell, training, _target(ends, cell, design.baseline)) for cell, training in told.items()]
    speed = read_speed(out)
    return Results(
        settings=design,
        cells=cells,
        unfinished=["/".join(cell.parts[-3:]) for cell in planned if cell not in finished],
        disqualified=[_disqualified(path) for path in sorted(out.glob(f"context-*/*/{DISQUALIFIED}"))],
        speed=speed,
        contrasts=contrasts(cells, speed, design.claims, contexts, design.baseline),
    )


def _place(cell: Path) -> tuple[int, str, int]:
    """Context, arm and seed of a cell's folder."""
    context, arm, seed = cell.parts[-3:]
    try:
        return int(context.removeprefix("context-")), arm, int(seed.removeprefix("seed-"))
    except ValueError:
        raise InputError(f"{cell} is no cell of a comparison: it is named otherwise") from None


def _disqualified(path: Path) -> Disqualified:
    context, arm = path.parts[-3:-1]
    about = {"context": int(context.removeprefix("context-")), "arm": arm}
    return typed(Disqualified, read_json(dict[str, object], path) | about, str(path))


class _Training(NamedTuple):
    """What the training of a cell left: its last record, its state, and (tokens, estimated validation loss)."""

    last: Record | None
    state: TrainingState
    curve: list[tuple[int, float]]


def _training(cell: Path) -> _Training:
    records = read_metrics(cell / "metrics.jsonl")
    state = read_state(find_checkpoint(cell, "last", ("state.json",)))
    estimates = [record for record in records if record.get("validation_is_estimate")]
    curve = [(r["tokens"], loss) for r in estimates if (loss := r.get("validation_loss")) is not None]
    if state.validation_loss is not None:  # an estimate like those before it; the last record has the exact one
        curve.append((state.tokens, state.validation_loss))
    return _Training(records[-1] if records else None, state, curve)


def _target(ends: dict[tuple[int, str, int], float], cell: Path, baseline: str) -> float | None:
    """The loss that the baseline's training with the same seed came down to."""
    context, _, seed = _place(cell)
    return ends.get((context, baseline, seed))


def _result(cell: Path, training: _Training, target: float | None) -> CellResult:
    """One cell's row: its place in the grid, and what was measured."""
    context, arm, seed = _place(cell)
    last, state, curve = training
    measured = read_json(Measurements, cell / MEASUREMENTS)
    validation_loss = exact_loss(cell)
    if last is None or validation_loss is None or last["loss"] is None:
        raise InputError(f"{cell} has no finite loss of its training; delete it, and run the same command")
    settings = RunSettings.read(cell / CELL)
    rate, width = settings.training.learning_rate, settings.model.ff_hidden_dim
    rates = [float(tried.name.removeprefix("rate-")) for tried in (cell.parent / "tune").glob("rate-*")]
    by_distance = measured.attention_by_distance
    if by_distance is not None:  # the bulk of it all, and only drawn
        by_distance = [[round(weight, 6) for weight in layer] for layer in by_distance]
    return CellResult(
        context=context,
        arm=arm,
        seed=seed,
        learning_rate=rate,
        rate_at_edge=bool(rates) and not 1.001 * min(rates) < rate < 0.999 * max(rates),
        ff_hidden_dim=4 * settings.model.embed_dim if width is None else width,
        steps=state.step,
        tokens=state.tokens,
        test_loss=measured.test.loss,
        bits_per_character=measured.test.bits_per_character,
        bits_per_byte=measured.test.bits_per_byte,
        accuracy=measured.test.accuracy,
        loss_by_position=measured.test.loss_by_position,
        train_loss=last["loss"],
        validation_loss=validation_loss,
        peak_memory=last["peak_memory"],
        curve=curve,
        parameters=measured.parameters,
        flops_per_token=measured.flops_per_token,
        cache_bytes=measured.cache_bytes,
        reach=measured.reach,
        loss_by_context=measured.loss_by_context,
        attention_by_distance=by_distance,
        sample=measured.sample,
        tokens_to_target=None if target is None else tokens_to(target, curve),
    )


def write_results(out: Path, results: Results) -> None:
    """Write ``results.json`` and ``results.csv``."""
    sweep(out, unchanged=DAY)
    for name, content in {
        RESULTS: json.dumps(results.to_dict(), allow_nan=False),
        "results.csv": results.csv(),
    }.items():
        with atomic_write(out / name) as file:
            file.write(content.encode())
