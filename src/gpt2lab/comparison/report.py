"""The page that tells what a comparison found: one HTML file without any other, for screens and paper."""

import statistics
from dataclasses import dataclass

from gpt2lab.comparison.grouped import Grouped, Spread, spread
from gpt2lab.comparison.pictures import pictures
from gpt2lab.comparison.results import MEASURES, Contrast, Results, Seconds
from gpt2lab.comparison.settings import BASELINE, Design
from gpt2lab.comparison.statistics import Word, estimate, welch, word_of
from gpt2lab.comparison.verdicts import sentences

WORDS: dict[Word | None, str] = {
    "better": "Better",
    "worse": "Worse",
    "no difference shown": "No difference shown",
    None: "Undecided",
}


@dataclass(frozen=True)
class Answer:
    """What is said of a claim: the claim itself, the word that its interval allows, and a sentence with the figures."""

    says: str
    word: str
    sentence: str


@dataclass(frozen=True)
class QualityRow:
    """A line of the table of arms."""

    context: int
    arm: str
    validation_loss: float
    loss: float
    spread: float | None
    bits_per_character: float
    bits_per_byte: float
    parameters: int
    learning_rate: float
    rate_at_edge: bool
    difference: Contrast | None
    word: str
    primary: bool


@dataclass(frozen=True)
class CostRow:
    """A line of the table of speed and memory; times in milliseconds, peak memory in MiB."""

    context: int
    arm: str
    tokens_per_second: Spread | None
    reached: int
    seeds: int
    tokens_to_target: float | None
    seconds_to_target: float | None
    times: list[Spread | None]
    peak_memory: float
    cache_bytes: int
    reach: int


@dataclass(frozen=True)
class Sample:
    """What the first seed of an arm wrote."""

    context: int
    arm: str
    text: str


@dataclass(frozen=True)
class ChangedSetting:
    """A setting that differs between two comparisons."""

    name: str
    old: str
    new: str


@dataclass(frozen=True)
class ChangedLoss:
    """Test losses of an arm in two comparisons; the interval is Welch's."""

    context: int
    arm: str
    old: float
    new: float
    difference: float
    interval: tuple[float, float] | None
    word: str


@dataclass(frozen=True)
class Changes:
    """What differs between two comparisons."""

    settings: list[ChangedSetting]
    losses: list[ChangedLoss]


def render(results: Results, other: Results | None = None) -> str:
    """The page of a comparison.

    Args:
        results: of the comparison.
        other: of an earlier one; then the page also tells what changed.
    """
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gpt2lab.comparison", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    found, settings = Grouped(results), results.settings.to_dict()
    return environment.get_template("report.html").render(
        settings=settings,
        written=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        sentences=sentences(results.verdicts, results.settings.grid.contexts),
        verdicts=answers(results),
        disqualified=results.disqualified,
        unfinished=results.unfinished,
        quality=_quality(found),
        costs=_costs(found),
        plots=pictures(found) if results.cells else {},
        samples=_samples(found),
        speed=results.speed,
        exploratory=sum(c.claim is None and c.measure == "test_loss" for c in results.contrasts),
        changes=_changes(results, other) if other is not None else None,
        contexts=found.contexts,
        seeds=len({cell.seed for cell in results.cells}),
        arms=found.arms,
        baseline=results.settings.baseline,
        the=the(results.settings.baseline),
    )


def the(baseline: str) -> str:
    """The baseline as a sentence names it."""
    return f"the {baseline}" if baseline == BASELINE else baseline


def answers(results: Results) -> list[Answer]:
    """For every claim what can be said of it."""
    told = []
    for number, claim in enumerate(results.claims):
        found = next((c for c in results.contrasts if c.claim == number), None)
        if found is None:
            told.append(Answer(claim.says, WORDS[None], "What it asks for is not measured (yet)."))
            continue
        word = WORDS[found.verdict]
        if found.verdict in ("better", "worse"):
            word = "Holds" if (found.verdict == "better") == (claim.expects == "less") else "The opposite holds"
        told.append(Answer(claim.says, word, sentence_of(found, results)))
    return told


def sentence_of(found: Contrast, results: Results) -> str:
    """A contrast in words and figures."""
    measure, arm, where = MEASURES[found.measure], found.arm, f"At a context of {found.context}, "
    kind = "rounds" if found.measure.startswith("seconds") else "seeds"
    base = the(results.settings.baseline)
    verb = measure.verb.format(the=base)
    if found.mean is None:
        came = found.pairs - found.missed
        return (
            f"{where}{arm} came down to {base}'s final loss in {came} of {found.pairs} trainings, so no ratio can be "
            f"given; it came later than {base}, or never, in {found.later} of them (sign test)."
        )
    if measure.relative:
        text = f"{where}{arm} {verb}: {found.mean:.3f} times {base}'s"
    else:
        losses = {
            name: [cell.test_loss for cell in results.cells if (cell.context, cell.arm) == (found.context, name)]
            for name in (arm, results.settings.baseline)
        }
        mean, usual = (float(statistics.mean(each)) for each in losses.values())
        text = (
            f"{where}{arm} {verb} of {mean:.4f} nats per token, {base} {usual:.4f}: "
            f"{abs(found.mean):.4f} {'lower' if found.mean < 0 else 'higher'}"
        )
    if found.low is None or found.high is None:
        return f"{text} (one pair says nothing of chance)."
    if found.low == found.high:
        return f"{text}."
    sign = "" if measure.relative else "+"
    effect = "" if found.effect_size is None else f"; effect size {found.effect_size:.1f}"
    return (
        f"{text} ({found.confidence:.4g} interval {found.low:{sign}.4f} to {found.high:{sign}.4f}; "
        f"{found.pairs} {kind}{effect})."
    ).replace("0.95 interval", "95 % interval")


def _quality(found: Grouped) -> list[QualityRow]:
    """Rows of the table of arms: within a context by validation loss, so that who comes first was not chosen by
    the test loss beside it."""
    rows = []
    for (context, arm), cells in found.groups.items():
        loss = estimate([cell.test_loss for cell in cells], 0.95)
        difference = found.losses.get((context, arm))
        rows.append(
            QualityRow(
                context=context,
                arm=arm,
                validation_loss=statistics.mean(cell.validation_loss for cell in cells),
                loss=loss.mean,
                spread=None if loss.low is None or loss.high is None else (loss.high - loss.low) / 2,
                bits_per_character=statistics.mean(cell.bits_per_character for cell in cells),
                bits_per_byte=statistics.mean(cell.bits_per_byte for cell in cells),
                parameters=cells[0].parameters,
                learning_rate=cells[0].learning_rate,
                rate_at_edge=cells[0].rate_at_edge,
                difference=difference,
                word=WORDS[difference.verdict] if difference else "",
                primary=bool(difference and difference.claim is not None),
            )
        )
    return sorted(rows, key=lambda row: (row.context, row.validation_loss))


def _costs(found: Grouped) -> list[CostRow]:
    """Rows of the table of speed and memory."""
    rows = []
    for (context, arm), cells in found.groups.items():
        per_second, timed = found.tokens_per_second(context, arm), found.seconds(context, arm)
        reached = [cell.tokens_to_target for cell in cells if cell.tokens_to_target is not None]
        usual = statistics.median(reached) if reached else None
        rows.append(
            CostRow(
                context=context,
                arm=arm,
                tokens_per_second=per_second,
                reached=len(reached),
                seeds=len(cells),
                tokens_to_target=usual,
                seconds_to_target=usual / per_second.median if usual is not None and per_second else None,
                times=[None] * 4 if timed is None else _milliseconds(timed),
                peak_memory=statistics.median(cell.peak_memory for cell in cells) / 2**20,
                cache_bytes=cells[0].cache_bytes,
                reach=cells[0].reach,
            )
        )
    return rows


def _samples(found: Grouped) -> list[Sample]:
    """What the first seed of each arm wrote."""
    return [Sample(context, arm, cells[0].sample) for (context, arm), cells in found.groups.items()]


def _milliseconds(timed: Seconds) -> list[Spread | None]:
    """Of the first token and the next ones, after a short prompt and after a long one."""
    short, full = timed.seconds_to_first_token, timed.seconds_to_first_token_long
    each = short, timed.seconds_per_token, full, timed.seconds_per_token_long
    return [spread([1000 * seconds for seconds in rounds]) for rounds in each]


def _flat(design: Design) -> dict[str, str]:
    """The settings of a comparison, a line each: those of an arm and the words of a claim, too."""
    settings = design.to_dict()
    arms, claims = settings.pop("arms"), settings.pop("claims")
    found = {f"arm {arm}: {name}": value for arm, options in arms.items() for name, value in options.items()}
    found |= {f"arm {arm}": "as in GPT-2" for arm, options in arms.items() if not options}
    found |= {f"claim {number}": claim["says"] for number, claim in enumerate(claims, 1)}
    return {name: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in (found | settings).items()}


def _changes(results: Results, other: Results) -> Changes:
    """What differs between two comparisons: settings, and test losses with Welch's interval."""
    now, before = _flat(results.settings), _flat(other.settings)
    settings = [
        ChangedSetting(name, before.get(name, "–"), now.get(name, "–"))
        for name in sorted({*now, *before})
        if now.get(name) != before.get(name)
    ]
    old_groups = Grouped(other).groups
    losses = []
    for key, cells in Grouped(results).groups.items():
        old, new = [cell.test_loss for cell in old_groups.get(key, [])], [cell.test_loss for cell in cells]
        if old:
            interval = welch(new, old)
            mean = statistics.mean(new), statistics.mean(old)
            word = "" if interval is None else word_of(*interval)
            losses.append(ChangedLoss(*key, mean[1], mean[0], mean[0] - mean[1], interval, word))
    return Changes(settings, losses)
