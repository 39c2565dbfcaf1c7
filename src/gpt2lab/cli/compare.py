"""``gpt2lab compare``: the same training for several models, and what their differences are worth."""

import dataclasses
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from cyclopts import Group, Parameter, Token

from gpt2lab.cli.arms import read_arms, read_claims
from gpt2lab.cli.cells import is_finished, prepare, run_cells, time_arms
from gpt2lab.cli.grid import (
    Cell,
    Match,
    Options,
    arm_folder,
    best_rate,
    estimate_hours,
    plan,
    settle_steps,
    try_all,
    tuning_cells,
)
from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.report import write_report
from gpt2lab.cli.screen import check_counts, console, errors
from gpt2lab.config import Variant, variant_switches
from gpt2lab.data.text import Text
from gpt2lab.errors import InputError
from gpt2lab.evaluation.compare import BASELINE, CELL, COMPARISON
from gpt2lab.files import atomic_write
from gpt2lab.hardware import choose_device
from gpt2lab.options import declared, given_options, options_of
from gpt2lab.runs.settings import SETTINGS, DataSettings, ModelSettings, RunSettings, TrainerConfig, read_settings

# What cannot be shared by all arms.
ARM_CHOICES = {n for n, (_, of) in options_of(*SETTINGS).items() if declared(of).in_comparison in ("arm", "none")}

GRID = Group("Grid", sort_key=0)
RUNNING = Group("Running", sort_key=1)


def several(kind: Any, tokens: Sequence[Token]) -> list[Any]:
    """Values with commas between them."""
    (item,) = get_args(kind)
    return [item(part) for token in tokens for part in token.value.split(",") if part.strip()]


SEVERAL = Parameter(group=GRID, converter=several, negative=())


@with_flags({"Model": ModelSettings, "Text": DataSettings, "Training": TrainerConfig}, ARM_CHOICES)
def compare(  # noqa: PLR0915
    *,
    variants: Annotated[list[str] | None, SEVERAL] = None,
    arm: Annotated[list[str] | None, Parameter(group=GRID, negative=())] = None,
    contexts: Annotated[list[int] | None, SEVERAL] = None,
    seeds: Annotated[int | None, Parameter(group=GRID)] = None,
    steps: Annotated[int | None, Parameter(group=GRID)] = None,
    tokens: Annotated[int | None, Parameter(group=GRID)] = None,
    minutes: Annotated[float | None, Parameter(group=GRID)] = None,
    random: Annotated[int, Parameter(group=GRID)] = 0,
    match: Annotated[Match | None, Parameter(group=GRID)] = None,
    tune: Annotated[bool, Parameter(group=GRID, negative=())] = False,
    config: Annotated[Path | None, Parameter(group=RUNNING)] = None,
    threads: Annotated[int, Parameter(group=RUNNING)] = 1,
    shard: Annotated[str | None, Parameter(group=RUNNING)] = None,
    ray: Annotated[str | None, Parameter(group=RUNNING)] = None,
    rounds: Annotated[int, Parameter(group=RUNNING)] = 9,
    max_hours: Annotated[float, Parameter(group=RUNNING)] = 24.0,
    options: object = None,
) -> int:
    """Find out what a switch really does: train several variants alike, and measure them on text they have not seen.

    Every arm gets the same data in the same order, the same seeds and the same number of tokens, and differs from
    "original", which is always there, only in what it names. Each cell (arm, context, seed) is an ordinary run folder.
    Stopped, the same command goes on. Afterwards all arms are timed alternately, and a report is written: report.html,
    results.csv, results.json.

    A file (--config) can also hold "arms", each with any options of `gpt2lab train`, and "claims", each with an arm
    and a measure, which the report answers in a sentence. The other options below are shared by all arms.

    Parameters
    ----------
    variants
        Named variants, with commas; default: all of them, unless a file, --arm or --random names others.
    arm
        One more arm with your own attention: "name=file.py:ClassName". Can be repeated.
    contexts
        Context sizes, with commas; default: 64. The first one's batches have --batch-size windows, the others' as many
        tokens.
    seeds
        Trainings of every arm: with --seed S they are S+1, S+2, …
    steps
        Optimiser steps of every training (--max-steps is the same); default: 500.
    tokens
        Instead: tokens of every training.
    minutes
        Instead: as many steps as the original makes here in that many minutes.
    random
        Add that many random architectures, drawn with --seed, at one context.
    match
        Widen the feed-forward layers until every arm has as many "parameters" as the original, or costs as much
        "compute" per token.
    tune
        Choose every arm's learning rate by validation loss among 1/4, 1/2, 1 and 2 times the shared one, with seed S.
    config
        YAML or TOML file with any of these options; flags override it.
    threads
        Of each training, as many of which run at once as the cores allow (on a GPU: one), and of the timing afterwards.
    shard
        "2/8": only the second eighth of the cells, for job arrays. Copy all folders together and start once more
        without it, or run `gpt2lab report`.
    ray
        Address of a Ray cluster whose workers see the same folders ("auto", or "local" to start one here).
    rounds
        Of the timing afterwards; 0: none.
    max_hours
        A grid that is estimated to take longer is refused.
    """
    written = read_settings(config) if config is not None else {}
    own = ("arms", "claims", "settled_steps", "contexts", "seeds", "steps", "tokens", "minutes", "match", "tune")
    in_file = given_options(SETTINGS, {n: v for n, v in written.items() if n not in own}, str(config))
    typed = given(options)
    if "text" in typed or "corpus" in typed:
        in_file = {name: v for name, v in in_file.items() if name not in ("text", "corpus", "text_sha256")}
    shared = in_file | typed
    contexts = contexts or written.get("contexts")
    steps, tokens, minutes = (
        (steps, tokens, minutes)
        if any(size is not None for size in (steps, tokens, minutes, shared.get("max_steps")))
        else (written.get("steps"), written.get("tokens"), written.get("minutes"))
    )
    seeds = written.get("seeds", 3) if seeds is None else seeds
    match = written.get("match", "none") if match is None else match
    tune = tune or bool(written.get("tune"))
    data, training = (
        DataSettings(**{n: v for n, v in shared.items() if n in options_of(DataSettings)}),
        TrainerConfig(**{n: v for n, v in shared.items() if n in options_of(TrainerConfig)}),
    )
    out = Path(training.out or "runs/compare")
    contexts = contexts or [64]
    arms = read_arms(variants, arm, written.get("arms"), random, training.seed, contexts)
    claims = read_claims(written.get("claims"), arms, contexts)
    part, parts = _shard(shard)
    budget = _budget(steps=steps if steps is not None else training.max_steps, tokens=tokens, minutes=minutes)
    if "minutes" in budget and parts > 1:
        raise InputError("--minutes is measured on one machine, so shards would train for different steps; use --steps")
    before = _before(out, claims, contexts)
    check_counts(seeds=seeds, threads=threads, rounds=rounds)
    _check(shared, data, training)
    with console.status("reading the text"):
        text = Text.open(**dataclasses.asdict(data))
    console.print(text.describe(), highlight=False)
    base = shared | {"text_sha256": text.corpus.sha256}
    planned = plan(base, arms, contexts, text.tokenizer.vocab_size, match)
    grid = {"arms": arms, "claims": claims, "contexts": contexts, "seeds": seeds, "match": match, "tune": tune}
    step_seconds = try_all(planned, text, out, threads)
    settled = {c: settle_steps(budget, planned[c, BASELINE], step_seconds[c, BASELINE]) for c in contexts}
    if before.get("minutes") == minutes:  # the clock would give other numbers the second time
        settled |= before.get("settled_steps", {})
    runnable = {
        key: settings.trained_with(max_steps=settled[key[0]])
        for key, settings in planned.items()
        if key in step_seconds
    }
    tuning = {key: tuning_cells(out, key, settings) if tune else [] for key, settings in runnable.items()}
    cells = [
        Cell(key, arm_folder(out, key) / f"seed-{seed}", settings.trained_with(seed=seed))
        for seed in range(training.seed + 1, training.seed + seeds + 1)
        for key, settings in runnable.items()
    ]
    at_once = 1 if choose_device(training.device).type == "cuda" else max(1, (os.cpu_count() or 1) // threads)
    units = list(dict.fromkeys(cell.key if tune else cell.folder for cell in cells))
    of_this_shard = {unit for number, unit in enumerate(units) if number % parts == part - 1}
    cells = [cell for cell in cells if (cell.key if tune else cell.folder) in of_this_shard]
    mine = {cell.key for cell in cells}
    tries = [cell for key in tuning if key in mine for cell in tuning[key]]
    hours = estimate_hours([*tries, *cells], step_seconds, text, at_once)
    console.print(
        f"{len(cells)} cells: {len(arms)} arms × {len(contexts)} contexts × {seeds} seeds, {at_once} at once; "
        f"about {_duration(hours)} for those that are left",
        highlight=False,
    )
    if hours > max_hours:
        raise InputError(
            f"this would take about {hours:.1f} hours, more than --max-hours {max_hours:g}: make the grid smaller, "
            "share it out with --shard, or allow more"
        )
    for cell in tries or cells:
        prepare(cell.folder, cell.settings)
    _save(out, grid | budget | ({"settled_steps": settled} if minutes else {}), base)
    run = partial(run_cells, threads=threads, at_once=at_once, ray_address=ray)
    failed = run([cell.folder for cell in tries])
    if tune:
        rates = {key: best_rate(tuning[key]) for key in mine}
        cells = [
            dataclasses.replace(cell, settings=cell.settings.trained_with(learning_rate=rate))
            for cell in cells
            if (rate := rates[cell.key]) is not None
        ]
        for cell in cells:
            prepare(cell.folder, cell.settings)
    failed += run([cell.folder for cell in cells])
    if rounds and parts == 1 and all(is_finished(cell.folder) or cell.folder in failed for cell in cells):
        time_arms(out, rounds, threads)
    write_report(out)
    if failed:
        errors.print(f"{len(failed)} cells failed; the same command tries them again", highlight=False)
    return 1 if failed else 0


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours > 1.5 else f"{max(1, round(60 * hours))} minutes"


def _shard(shard: str | None) -> tuple[int, int]:
    if shard is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {shard}: write it as i/n, the first being 1/n")
    return int(found[1]), int(found[2])


def _budget(**sizes: float | None) -> dict[str, float]:
    """The one size of a training that is given, if any."""
    given = {name: value for name, value in sizes.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"{' and '.join(f'--{name}' for name in given)} are given; choose one of them")
    for name, value in given.items():
        if value <= 0:
            raise InputError(f"--{name} is {value}; it has to be positive")
    return given


def _check(shared: Options, data: DataSettings, training: TrainerConfig) -> None:
    if any(name in ARM_CHOICES for name in shared):
        raise InputError("in a comparison, use --variants, --arm name=file.py:ClassName, --random N and --contexts")
    if training.max_epochs is not None:
        raise InputError("a comparison counts --steps, --tokens or --minutes, not epochs")
    if data.validation_fraction == 0 or data.test_fraction == 0:
        raise InputError("a comparison needs a validation and a test part; leave their fractions above 0")


def _before(out: Path, claims: list[dict[str, Any]], contexts: list[int]) -> dict[str, Any]:
    """What ``comparison.yaml`` says already, if it is there; its claims are kept once anything has run."""
    path = out / COMPARISON
    if not path.exists():
        return {}
    before = read_settings(path)
    contrasts = [
        [(claim["arm"], claim["measure"], claim.get("context") or among[0]) for claim in each]
        for each, among in ((before.get("claims") or [], before["contexts"]), (claims, contexts))
    ]
    if contrasts[0] != contrasts[1] and any(out.glob(f"*/*/*/{CELL}")):
        raise InputError(
            f"the claims of {out} were declared before it ran, and these are others; choose another --out for them"
        )
    return before


def _save(out: Path, grid: Options, base: Options) -> None:
    """Write ``comparison.yaml``: ``gpt2lab compare --config …`` repeats the comparison."""
    path = out / COMPARISON
    of_variants = {switch for name in get_args(Variant) for switch in variant_switches(name, 64, 4)} - set(base)
    left_out = {*ARM_CHOICES, "max_steps", *of_variants}
    shared = {name: value for name, value in RunSettings.of(base).values().items() if name not in left_out}
    values = {name: value for name, value in grid.items() if value is not None} | shared
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
