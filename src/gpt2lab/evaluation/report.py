"""The page that tells what a comparison found: one HTML file without any other, for screens and paper."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt2lab.evaluation.compare import BASELINE, MEASURES, contrast, word_of
from gpt2lab.plots import inline_svg, new_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cell = Mapping[str, Any]
Results = Mapping[str, Any]

WORDS = {"better": "Better", "worse": "Worse", "no difference shown": "No difference shown", None: "Undecided"}
ANSWERS = {"better": "Holds", "worse": "The opposite holds"}  # for a claim that expects less


def render(results: Results, other: Results | None = None) -> str:
    """The page, from what :func:`gpt2lab.evaluation.compare.collect` returned.

    Args:
        results: of the comparison.
        other: of an earlier one; then the page also tells what changed.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gpt2lab.evaluation", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = _Page(results)
    return environment.get_template("report.html").render(
        settings=results["settings"],
        verdicts=verdicts(results),
        disqualified=results["disqualified"],
        unfinished=results["unfinished"],
        quality=page.quality(),
        costs=page.costs(),
        plots=page.plots() if results["cells"] else {},
        samples=page.samples(),
        speed=results["speed"],
        exploratory=sum(c["claim"] is None and c["measure"] == "test_loss" for c in results["contrasts"]),
        changes=_changes(results, other) if other is not None else None,
        contexts=page.contexts,
        seeds=len({cell["seed"] for cell in results["cells"]}),
        arms=page.arms,
    )


def verdicts(results: Results) -> list[dict[str, str]]:
    """For every claim: what it says, the word that its interval allows, and a sentence with the figures."""
    told = []
    for number, claim in enumerate(results["claims"]):
        found = next((c for c in results["contrasts"] if c["claim"] == number), None)
        word = WORDS[found["verdict"]] if found else "Undecided"
        if found and found["verdict"] in ANSWERS:
            word = ANSWERS[found["verdict"] if claim["expects"] == "less" else _other(found["verdict"])]
        sentence = sentence_of(found, results["cells"]) if found else "What it asks for is not measured (yet)."
        told.append({"says": claim["says"], "word": word, "sentence": sentence})
    return told


def _other(verdict: str) -> str:
    return "worse" if verdict == "better" else "better"


def sentence_of(found: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    """A contrast in words and figures."""
    measure, arm, where = MEASURES[found["measure"]], found["arm"], f"At a context of {found['context']}, "
    kind = "rounds" if found["measure"].startswith("seconds") else "seeds"
    if found["missed"]:
        came = found["pairs"] - found["missed"]
        return (
            f"{where}{arm} came down to the original's final loss in {came} of {found['pairs']} trainings, so no ratio "
            f"can be given; it came later than the original, or never, in {found['later']} of them (sign test)."
        )
    if measure.relative:
        text = f"{where}{arm} {measure.verb}: {found['mean']:.3f} times the original's"
    else:
        mean, base = (_mean(cells, found["context"], name, found["measure"]) for name in (arm, BASELINE))
        text = (
            f"{where}{arm} {measure.verb} of {mean:.4f} nats per token, the original {base:.4f}: "
            f"{abs(found['mean']):.4f} {'lower' if found['mean'] < 0 else 'higher'}"
        )
    if found["low"] is None:
        return f"{text} (one pair says nothing of chance)."
    if found["low"] == found["high"]:
        return f"{text}."
    sign = "" if measure.relative else "+"
    effect = "" if found["effect_size"] is None else f"; effect size {found['effect_size']:.1f}"
    return (
        f"{text} ({found['confidence']:.4g} interval {found['low']:{sign}.4f} to {found['high']:{sign}.4f}; "
        f"{found['pairs']} {kind}{effect})."
    ).replace("0.95 interval", "95 % interval")


def _mean(cells: Iterable[Cell], context: int, arm: str, name: str) -> float:
    return float(statistics.mean(cell[name] for cell in cells if (cell["context"], cell["arm"]) == (context, arm)))


def _spread(rounds: Sequence[float]) -> dict[str, float] | None:
    return {"median": statistics.median(rounds), "low": min(rounds), "high": max(rounds)} if rounds else None


def _plot(xlabel: str, ylabel: str, **settings: Any) -> tuple["Figure", "Axes"]:
    """Small enough that its letters can be read on a phone."""
    return new_plot(xlabel, ylabel, (5.4, 3.6), **settings)


class _Page:
    """Tables and pictures of one comparison."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.groups: dict[tuple[int, str], list[Cell]] = {}
        for cell in results["cells"]:
            self.groups.setdefault((cell["context"], cell["arm"]), []).append(cell)
        self.contexts = list(dict.fromkeys(context for context, _ in self.groups))
        self.arms = list(dict.fromkeys(arm for _, arm in self.groups))
        self.found = {(c["context"], c["arm"], c["measure"]): c for c in results["contrasts"]}

    def seconds(self, context: int, arm: str, name: str) -> list[float]:
        """Timings of an arm, if there are any."""
        timed = self.results["speed"].get(str(context), {}).get("arms", {})
        return timed.get(arm, {}).get(name, [])  # type: ignore[no-any-return]

    def tokens_per_second(self, context: int, arm: str) -> dict[str, float] | None:
        """Of training, if it was timed: median, lowest and highest round."""
        cell = self.groups[context, arm][0]
        return _spread(
            [cell["tokens"] / cell["steps"] / seconds for seconds in self.seconds(context, arm, "seconds_per_step")]
        )

    def quality(self) -> list[dict[str, Any]]:
        """Rows of the table of arms: within a context by validation loss, so that who comes first was not chosen by
        the test loss beside it."""
        rows = []
        for (context, arm), cells in self.groups.items():
            losses = [cell["test_loss"] for cell in cells]
            mean, low, high, _ = contrast(losses, 0.95)
            found = self.found.get((context, arm, "test_loss"))
            rows.append(
                {
                    "context": context,
                    "arm": arm,
                    "validation_loss": statistics.mean(cell["validation_loss"] for cell in cells),
                    "loss": mean,
                    "spread": None if low is None or high is None else (high - low) / 2,
                    "bits_per_character": statistics.mean(cell["bits_per_character"] for cell in cells),
                    "bits_per_byte": statistics.mean(cell["bits_per_byte"] for cell in cells),
                    "parameters": cells[0]["parameters"],
                    "learning_rate": cells[0]["learning_rate"],
                    "rate_at_edge": cells[0]["rate_at_edge"],
                    "difference": found,
                    "word": WORDS[found["verdict"]] if found else "",
                    "primary": bool(found and found["claim"] is not None),
                }
            )
        return sorted(rows, key=lambda row: (row["context"], row["validation_loss"]))

    def costs(self) -> list[dict[str, Any]]:
        """Rows of the table of speed and memory."""
        rows = []
        for (context, arm), cells in self.groups.items():
            tokens = [cell["tokens_to_target"] for cell in cells]
            per_second = self.tokens_per_second(context, arm)
            reached = [t for t in tokens if t is not None]
            rows.append(
                {
                    "context": context,
                    "arm": arm,
                    "tokens_per_second": per_second,
                    "reached": len(reached),
                    "seeds": len(tokens),
                    "tokens_to_target": statistics.median(reached) if reached else None,
                    "seconds_to_target": (
                        statistics.median(reached) / per_second["median"] if reached and per_second else None
                    ),
                    "times": [
                        self._time(context, arm, name)
                        for name in (
                            "seconds_to_first_token",
                            "seconds_per_token",
                            "seconds_to_first_token_long",
                            "seconds_per_token_long",
                        )
                    ],
                    "peak_memory": statistics.median(cell["peak_memory"] for cell in cells) / 2**20,
                    "cache_bytes": cells[0]["cache_bytes"],
                    "reach": cells[0]["reach"],
                }
            )
        return rows

    def _time(self, context: int, arm: str, name: str) -> dict[str, float] | None:
        """Milliseconds: median, lowest and highest round."""
        return _spread([1000 * seconds for seconds in self.seconds(context, arm, name)])

    def samples(self) -> list[dict[str, Any]]:
        """What the first seed of each arm wrote."""
        return [
            {"context": context, "arm": arm, "text": cells[0]["sample"]}
            for (context, arm), cells in self.groups.items()
        ]

    def plots(self) -> dict[str, list[str]]:
        """Pictures by section, as SVG."""
        return {
            "convergence": [plot for c in self.contexts for plot in self._convergence(c)],
            "trade_off": [self._trade_off()],
            "position": [self._by_position(c) for c in self.contexts],
            "beyond": [self._beyond(c) for c in self.contexts],
            "attention": [self._attention(c) for c in self.contexts],
        }

    def _lines(self, axes: "Axes", context: int, line: Callable[[Sequence[Cell]], tuple[Any, Any]], title: str) -> None:
        for arm in self.arms:
            if (context, arm) in self.groups:
                x, y = line(self.groups[context, arm])
                if y:  # else a user's attention whose weights cannot be read
                    width = 2.2 if arm == BASELINE else 1.4
                    axes.plot(x, y, color=self._colour(arm), label=arm, lw=width, marker=".", ms=3)
        axes.set_title(title, fontsize="medium")
        axes.legend(frameon=False, fontsize="small")

    def _colour(self, arm: str) -> str:
        return f"C{self.arms.index(arm) % 10}"

    def _convergence(self, context: int) -> Iterable[str]:
        def curve(cells: Sequence[Cell]) -> tuple[list[float], list[float]]:
            points = list(zip(*(cell["curve"] for cell in cells), strict=False))
            return [p[0][0] for p in points], [statistics.mean(loss for _, loss in p) for p in points]

        figure, axes = _plot("tokens seen", "validation loss, nats per token")
        self._lines(axes, context, curve, f"context {context}, mean of seeds")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
        axes.set_xlim(left=0)
        yield inline_svg(figure)
        arms = [arm for at, arm in self.groups if at == context]
        speeds = {arm: speed["median"] for arm in arms if (speed := self.tokens_per_second(context, arm))}
        if len(speeds) == len(arms):
            figure, axes = _plot("seconds of training (at the speed that was timed)", "validation loss, nats per token")

            def clocked(cells: Sequence[Cell]) -> tuple[list[float], list[float]]:
                tokens, losses = curve(cells)
                return [t / speeds[cells[0]["arm"]] for t in tokens], losses

            self._lines(axes, context, clocked, f"context {context}, mean of seeds")
            axes.set_xlim(left=0)
            yield inline_svg(figure)

    def _trade_off(self) -> str:
        figure, axes = _plot("milliseconds per token written", "test loss, nats per token")
        for (context, arm), cells in self.groups.items():
            time = self._time(context, arm, "seconds_per_token")
            if self.results["speed"] and time is None:
                continue
            x = time["median"] if time else cells[0]["flops_per_token"] / 1e6
            y = statistics.mean(cell["test_loss"] for cell in cells)
            size = 20 + 160 * cells[0]["cache_bytes"] / max(c["cache_bytes"] for c in self.results["cells"])
            shape = "os^Dv"[self.contexts.index(context) % 5]
            label = arm if context == self.contexts[0] else None
            axes.scatter([x], [y], s=size, marker=shape, color=self._colour(arm), alpha=0.8, label=label)
        if not self.results["speed"]:
            axes.set_xlabel("MFLOP per token (nothing was timed)")
        shapes = ", ".join(f"{'●■▲◆▼'[i % 5]} context {c}" for i, c in enumerate(self.contexts))
        axes.set_title(f"{shapes}; area: bytes of a full cache", fontsize="medium")
        legend = axes.legend(frameon=False, fontsize="small")
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_sizes([40])  # type: ignore[attr-defined]
        return inline_svg(figure)

    def _by_position(self, context: int) -> str:
        def line(cells: Sequence[Cell]) -> tuple[range, list[float]]:
            rows = zip(*(cell["loss_by_position"] for cell in cells), strict=True)
            return range(1, context + 1), [statistics.mean(row) for row in rows]

        figure, axes = _plot("tokens of context", "test loss, nats per token", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        self._lines(axes, context, line, f"trained at a context of {context}")
        return inline_svg(figure)

    def _beyond(self, context: int) -> str:
        def line(cells: Sequence[Cell]) -> tuple[list[int], list[float]]:
            lengths = [length for length, _ in cells[0]["loss_by_context"]]
            rows = zip(*([loss for _, loss in cell["loss_by_context"]] for cell in cells), strict=True)
            return lengths, [statistics.mean(row) for row in rows]

        figure, axes = _plot("context when measured, tokens", "loss, nats per token (estimate)", xscale="log")
        self._lines(axes, context, line, f"trained at a context of {context}")
        lengths = sorted(
            {n for cell in self.results["cells"] if cell["context"] == context for n, _ in cell["loss_by_context"]}
        )
        axes.set_xticks(lengths, [str(n) for n in lengths], minor=False)
        axes.set_xticks([], minor=True)
        axes.axvline(context, color="grey", lw=0.8, ls=":")
        return inline_svg(figure)

    def _attention(self, context: int) -> str:
        def line(cells: Sequence[Cell]) -> tuple[range, list[float]]:
            layers = [layer for cell in cells for layer in cell["attention_by_distance"] or []]
            return range(context), [statistics.mean(row) for row in zip(*layers, strict=True)]

        figure, axes = _plot("tokens back", "mean attention weight", yscale="log")
        self._lines(axes, context, line, f"context {context}, mean of layers, heads and texts")
        axes.set_ylim(bottom=1e-5)
        return inline_svg(figure)


def _changes(results: Results, other: Results) -> dict[str, Any]:
    """What differs between two comparisons: settings, and test losses with Welch's interval."""
    from scipy import stats

    settings = [
        {"name": name, "old": other["settings"].get(name), "new": results["settings"].get(name)}
        for name in sorted({*results["settings"], *other["settings"]})
        if results["settings"].get(name) != other["settings"].get(name)
    ]
    old_page, new_page = _Page(other), _Page(results)
    rows = []
    for key, cells in new_page.groups.items():
        before = [cell["test_loss"] for cell in old_page.groups.get(key, [])]
        now = [cell["test_loss"] for cell in cells]
        if not before:
            continue
        difference = statistics.mean(now) - statistics.mean(before)
        low = high = math.nan
        if len(before) > 1 and len(now) > 1:
            interval = stats.ttest_ind(now, before, equal_var=False).confidence_interval(0.95)
            low, high = float(interval.low), float(interval.high)
        rows.append(
            {
                "context": key[0],
                "arm": key[1],
                "old": statistics.mean(before),
                "new": statistics.mean(now),
                "difference": difference,
                "low": low,
                "high": high,
                "word": "" if math.isnan(low) else word_of(low, high),
            }
        )
    return {"settings": settings, "rows": rows}
