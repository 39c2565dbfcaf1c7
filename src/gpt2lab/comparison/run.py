"""A comparison from its design to what it finds: :func:`compare`; and its report made again: :func:`report`."""

import dataclasses
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from gpt2lab.comparison.arms import ARM_CHOICES, check_arms
from gpt2lab.comparison.carry import carry
from gpt2lab.comparison.cells import Task, is_finished, place_of, prepare, run_cells
from gpt2lab.comparison.design import Claims, design_of, merged_options, named, with_own
from gpt2lab.comparison.folder import (
    CELL,
    COMPARISON,
    DISQUALIFIED,
    RESULTS,
    Key,
    arm_folder,
    collect,
    read_design,
    read_results,
    save_design,
    write_results,
)
from gpt2lab.comparison.grid import Cell, best_rate, estimate_hours, plan, settle_steps, try_all, tuning_cells
from gpt2lab.comparison.outcome import Comparison
from gpt2lab.comparison.settings import Design, GridSettings, Options, RunningSettings
from gpt2lab.comparison.speed import time_arms
from gpt2lab.config import Sizes, Variant, variant_switches
from gpt2lab.errors import InputError
from gpt2lab.hardware import choose_device
from gpt2lab.model.attention import Mechanism, describe_mechanism
from gpt2lab.options import given_options, method_taking, options_of, part
from gpt2lab.progress import Progress, counted, plain_console, shown
from gpt2lab.runs.folder import open_text
from gpt2lab.runs.mechanisms import load_attention
from gpt2lab.runs.settings import SETTINGS, DataSettings, ModelSettings, RunSettings, TrainerConfig
from gpt2lab.threads import available_cores

REPORT = "report.html"
FEW_SEEDS = 3  # with two, the interval is 13 standard errors wide on either side


@dataclass(frozen=True)
class CompareOptions(GridSettings, RunningSettings, TrainerConfig, ModelSettings, DataSettings):
    """Every keyword of :func:`compare`: of the grid, of running it, and the options that all arms share."""

    claims: Claims | None = None
    attentions: Mapping[str, str | type] | None = None
    progress: Progress | None = None


@method_taking(CompareOptions, first="arms")
def compare(arms: Mapping[str, Options] | str | Path, **given: Any) -> Comparison:
    """Train several models alike, and measure what their differences are worth.

    Every arm gets the same data in the same order, the same seeds and the same number of tokens. Each cell (arm,
    context, seed) is an ordinary run folder, trained in a process of its own. Afterwards all arms are timed in turn,
    and ``report.html``, ``results.csv`` and ``results.json`` are written. Stopped, the same call goes on.

    Args:
        arms: options of each arm by its name, such as ``{"original": {}, "rope": {"position": "rope"}, "mine":
            {"attention": MyAttention}}``. What an arm does not name is as in the original GPT-2. The first arm is the
            one that the others are compared with. Or the folder of a comparison, which goes on, or is read if it is
            complete; or a file such as those in ``experiments/``, to which the arm "original" is added.
        **given: fields of :class:`CompareOptions`, such as ``text="novel.txt", contexts=[25], seeds=5, steps=400``.
            ``claims`` are what the report answers in a sentence. ``attentions`` gives arms of a folder their own
            attention again, by arm, because what only a folder names is never executed. ``progress`` is called with
            what is done, how much of it, and of how much; then nothing is printed.

    Returns:
        the comparison. Cells that failed are in its ``failed``; the same call tries them again.

    Raises:
        InputError: arms or options that cannot be used or make no sense; this is told before anything is trained.

    Example:
        >>> result = gpt2lab.compare({"original": {}, "rope": {"position": "rope"}}, text="novel.txt", steps=400)
        >>> print(result.table())
    """
    progress: Progress | None = given.pop("progress", None)
    claims, own = given.pop("claims", None), given.pop("attentions", None) or {}
    options = given_options((GridSettings, RunningSettings, *SETTINGS), given)
    folder = None if isinstance(arms, Mapping) or Path(arms).is_file() else Path(arms)
    if folder is not None and not options.keys() - {"workers", "threads", "ray", "max_hours"} and _is_complete(folder):
        return Comparison(folder, read_results(folder))
    given_arms, declared, written = named(arms)
    options = merged_options(written, options)
    running = RunningSettings(**part(options, RunningSettings))
    checked = with_own(check_arms(given_arms), own, named_by_folder=folder is not None)
    design, out = design_of(checked, declared if claims is None else claims, options)
    with ExitStack() as stack:
        console = plain_console(quiet=progress is not None)
        told = progress or stack.enter_context(shown(console))
        return _run(design, running, folder or out, console, told)


def report(
    path: str | Path,
    *,
    against: str | Path | None = None,
    rounds: int = 0,
    threads: int = 1,
    attentions: Mapping[str, str | type] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Make the report of a comparison again: from its run folders, or from a ``results.json`` alone.

    Args:
        path: folder of the comparison, or a ``results.json``, or the folder that holds one. ``report.html`` is written
            there, and ``results.csv`` and ``results.json`` if there are run folders.
        against: another comparison, likewise; the report then also tells what changed since.
        rounds: time all arms again before, in that many rounds.
        threads: CPU threads of that timing.
        attentions: the arms' own attention, by arm, for that timing.
        progress: hears of the timing.

    Raises:
        InputError: there is no comparison, or it cannot be timed.
    """
    RunningSettings(rounds=rounds, threads=threads)  # refuses what cannot be
    path, earlier = Path(path), None
    if against is not None:
        try:
            earlier = Comparison(Path(against), read_results(Path(against)))
        except InputError as error:
            raise InputError(f"--against {against}: {error}") from None
    if rounds:
        if not (path / COMPARISON).exists():
            raise InputError(f"{path} holds no models that could be timed; leave out --rounds")
        own = {arm: load_attention(attention) for arm, attention in (attentions or {}).items()}
        with ExitStack() as stack:
            told = progress or stack.enter_context(shown(plain_console()))
            time_arms(path, rounds, threads, own, told, again=True)
    found = Comparison(path if path.is_dir() else path.parent, read_results(path))
    if (path / COMPARISON).exists():  # else the file that was read stays as it is
        write_results(found.folder, found.results)
    found.report(found.folder / REPORT, earlier)
    return found


def _is_complete(folder: Path) -> bool:
    """Whether a folder has nothing left to train, to time or to tell; one that holds results alone has not."""
    if not (folder / COMPARISON).exists():
        return True
    if not (folder / RESULTS).exists():  # they are written last
        return False
    design = read_design(folder)
    first = int(str(design.shared.get("seed", 0))) + 1
    arms = [arm_folder(folder, (context, arm)) for context in design.grid.contexts for arm in design.arms]
    seeds = range(first, first + design.grid.seeds)
    left = [arm for arm in arms if not (arm / DISQUALIFIED).exists()]
    return all(is_finished(arm / f"seed-{seed}") for arm in left for seed in seeds)


def _run(design: Design, running: RunningSettings, out: Path, console: Console, progress: Progress) -> Comparison:
    grid, training = design.grid, TrainerConfig(**part(design.shared, TrainerConfig))
    shard, shards = _shard(running.shard)
    if "minutes" in grid.budget and shards > 1:
        raise InputError("--minutes is measured on one machine, so shards would train for different steps; use --steps")
    before = _before(out, design)
    with console.status("reading the text"):
        text = open_text(DataSettings(**part(design.shared, DataSettings)))
    console.print(text.describe())
    shared = {**design.shared, "text_sha256": text.corpus.sha256}
    given = _own_attention(design.arms)
    own = _loaded(given)
    planned = plan(shared, design.arms, grid.contexts, text.tokenizer.vocab_size, grid.match, own)
    specs = {  # how the processes of the cells name them
        arm: spec if isinstance(spec, str) else carry(own[arm], out / "attention" / f"{arm}.py")
        for arm, spec in given.items()
    }
    step_seconds = try_all(planned, own, text, out, running.threads, console, progress)
    settled = _settle(grid, planned, step_seconds, design.baseline)
    if before is not None and before.grid.minutes == grid.minutes:  # the clock would give other numbers now
        settled |= before.settled_steps or {}
    cells, tries = _cells(grid, training.seed, out, planned, step_seconds, settled, shard, shards)
    on_gpu = choose_device(training.device).type == "cuda"
    workers = running.workers or (1 if on_gpu else max(1, available_cores() // running.threads))
    hours = estimate_hours([*tries, *cells], step_seconds, text, workers)
    console.print(
        f"{counted(len(cells), 'cell')}: {len(design.arms)} arms × {counted(len(grid.contexts), 'context')} × "
        f"{counted(grid.seeds, 'seed')}, {counted(workers, 'worker')}; about {_duration(hours)} to go",
    )
    if grid.seeds < FEW_SEEDS:
        console.print(
            f"note: {counted(grid.seeds, 'seed')} can tell only large differences from chance; {FEW_SEEDS} tell more",
        )
    if hours > running.max_hours:
        raise InputError(
            f"this would take about {hours:.1f} hours, more than --max-hours {running.max_hours:g}: make the grid "
            "smaller, share it out with --shard, or allow more"
        )
    for cell in tries or cells:
        prepare(cell.folder, cell.settings, own.get(cell.key[1]))
    written = dataclasses.replace(design, shared=_written(shared), settled_steps=settled if grid.minutes else None)
    save_design(out, written)

    def run(these: Sequence[Cell]) -> dict[str, str]:
        tasks = [_task(cell, own, specs) for cell in these]
        return run_cells(tasks, running.threads, workers, running.ray, console, progress)

    failed = run(tries)
    if grid.tune:
        rates = {key: best_rate([cell for cell in tries if cell.key == key]) for key in {cell.key for cell in cells}}
        cells = [
            dataclasses.replace(cell, settings=cell.settings.trained_with(learning_rate=rate))
            for cell in cells
            if (rate := rates[cell.key]) is not None
        ]
        for cell in cells:
            prepare(cell.folder, cell.settings, own.get(cell.key[1]))
    failed |= run(cells)
    if running.rounds and shards == 1 and all(is_finished(c.folder) or place_of(c.folder) in failed for c in cells):
        time_arms(out, running.rounds, running.threads, own, progress)
    found = Comparison(out, collect(out), failed)
    write_results(out, found.results)
    found.report(out / REPORT)
    return found


def _own_attention(arms: Mapping[str, Options]) -> dict[str, str | type]:
    """What the arms have as attention of their own: a class, or its file and name."""
    return {arm: spec for arm, options in arms.items() if isinstance(spec := options.get("attention"), str | type)}


def _loaded(given: Mapping[str, str | type]) -> dict[str, Mechanism]:
    """The classes of the arms."""
    found: dict[str, Mechanism] = {}
    for arm, spec in given.items():
        try:
            found[arm] = load_attention(spec)
        except InputError as error:
            raise InputError(f"the arm {arm} cannot be made: {error}") from None
    return found


def _task(cell: Cell, own: Mapping[str, Mechanism], specs: Mapping[str, str]) -> Task:
    """What the process of a cell is told."""
    if (mechanism := own.get(cell.key[1])) is None:
        return Task(str(cell.folder))
    paths = tuple(place for place in sys.path if place)
    return Task(str(cell.folder), specs[cell.key[1]], describe_mechanism(mechanism), paths)


def _settle(
    grid: GridSettings, planned: Mapping[Key, RunSettings], step_seconds: Mapping[Key, float], baseline: str
) -> dict[int, int]:
    """Steps of a training at each context."""
    for context in grid.contexts:
        if (context, baseline) not in step_seconds:
            raise InputError(f"{baseline} reads the future, so nothing can be compared with it; put another arm first")
    keys = {context: (context, baseline) for context in grid.contexts}
    return {c: settle_steps(grid.budget, planned[key], step_seconds[key]) for c, key in keys.items()}


def _cells(
    grid: GridSettings,
    seed: int,
    out: Path,
    planned: Mapping[Key, RunSettings],
    runnable: Collection[Key],
    steps: Mapping[int, int],
    shard: int,
    shards: int,
) -> tuple[list[Cell], list[Cell]]:
    """The trainings of this shard: those that are compared, and before them those that choose a learning rate."""
    settings = {key: planned[key].trained_with(max_steps=steps[key[0]]) for key in planned if key in runnable}
    cells = [
        Cell(key, arm_folder(out, key) / f"seed-{one}", of.trained_with(seed=one))
        for one in range(seed + 1, seed + grid.seeds + 1)
        for key, of in settings.items()
    ]
    units = list(dict.fromkeys(cell.key if grid.tune else cell.folder for cell in cells))
    mine = {unit for number, unit in enumerate(units) if number % shards == shard - 1}
    cells = [cell for cell in cells if (cell.key if grid.tune else cell.folder) in mine]
    keys = {cell.key for cell in cells} if grid.tune else set()
    return cells, [cell for key in settings if key in keys for cell in tuning_cells(out, key, settings[key])]


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours > 1.5 else counted(max(1, round(60 * hours)), "minute")


def _shard(shard: str | None) -> tuple[int, int]:
    if shard is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {shard}: write it as i/n, the first being 1/n")
    return int(found[1]), int(found[2])


def _before(out: Path, design: Design) -> Design | None:
    """The design that is in the folder already, if one is; its claims are kept once anything has run."""
    if not (out / COMPARISON).exists():
        return None
    before = read_design(out)
    declared, now = (
        [(claim.arm, claim.measure, claim.context or each.grid.contexts[0]) for claim in each.claims]
        for each in (before, design)
    )
    begun = any(out.glob(f"*/*/*/{CELL}"))
    if declared != now and begun:
        raise InputError(
            f"the claims of {out} were declared before it ran, and these are others; choose another --out for them"
        )
    if before.baseline != design.baseline and begun:
        raise InputError(
            f"{out} compares with {before.baseline}, not with {design.baseline}; choose another --out for that"
        )
    return before


def _written(shared: Options) -> dict[str, object]:
    """The options of all arms as ``comparison.yaml`` has them: all but what an arm or the grid decides, and sizes and
    switches of variants only if they were given."""
    of_variants = {switch for name in get_args(Variant) for switch in variant_switches(name, 64, 4)}
    sizes = {size.name for size in dataclasses.fields(Sizes)} & options_of(ModelSettings).keys()
    left_out = {*ARM_CHOICES, "max_steps", *((of_variants | sizes) - shared.keys())}
    return {name: value for name, value in RunSettings.of(shared).to_dict().items() if name not in left_out}
