"""The pictures of a comparison's report, as SVG."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gpt2lab.comparison.grouped import Grouped, spread
from gpt2lab.comparison.results import CellResult
from gpt2lab.plots import inline_svg, name_in_plot, new_plot, short_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Callable[[Sequence[CellResult]], tuple[Any, Any]]  # what is drawn of an arm: x and y


def pictures(found: Grouped) -> dict[str, list[str]]:
    """The pictures by section of the page, as SVG."""
    return {
        "convergence": [plot for c in found.contexts for plot in _convergence(found, c)],
        "trade_off": [_trade_off(found)],
        "position": [_by_position(found, c) for c in found.contexts],
        "beyond": [_beyond(found, c) for c in found.contexts],
        "attention": [_attention(found, c) for c in found.contexts],
    }


def _lines(found: Grouped, axes: "Axes", context: int, line: Line, title: str) -> None:
    for arm in found.arms:
        if (context, arm) in found.groups:
            x, y = line(found.groups[context, arm])
            if y:  # else a user's attention whose weights cannot be read
                width = 2.2 if arm == found.baseline else 1.4
                axes.plot(x, y, color=_colour(found, arm), label=name_in_plot(arm), lw=width, marker=".", ms=3)
    axes.set_title(title, fontsize="medium")
    axes.legend(frameon=False, fontsize="small")


def _colour(found: Grouped, arm: str) -> str:
    return f"C{found.arms.index(arm) % 10}"


def _convergence(found: Grouped, context: int) -> Iterable[str]:
    def curve(cells: Sequence[CellResult]) -> tuple[list[float], list[float]]:
        points = list(zip(*(cell.curve for cell in cells), strict=False))
        return [p[0][0] for p in points], [statistics.mean(loss for _, loss in p) for p in points]

    figure, axes = _plot("tokens seen", "validation loss, nats per token")
    _lines(found, axes, context, curve, f"context {context}, mean of seeds")
    short_numbers(axes.xaxis)
    axes.set_xlim(left=0)
    yield inline_svg(figure)
    arms = [arm for at, arm in found.groups if at == context]
    speeds = {arm: speed.median for arm in arms if (speed := found.tokens_per_second(context, arm))}
    if len(speeds) == len(arms):
        figure, axes = _plot("seconds of training (at the speed that was timed)", "validation loss, nats per token")

        def clocked(cells: Sequence[CellResult]) -> tuple[list[float], list[float]]:
            tokens, losses = curve(cells)
            return [t / speeds[cells[0].arm] for t in tokens], losses

        _lines(found, axes, context, clocked, f"context {context}, mean of seeds")
        axes.set_xlim(left=0)
        yield inline_svg(figure)


def _trade_off(found: Grouped) -> str:
    figure, axes = _plot("milliseconds per token written", "test loss, nats per token")
    for (context, arm), cells in found.groups.items():
        timed = found.seconds(context, arm)
        if found.results.speed and timed is None:
            continue
        time = None if timed is None else spread(timed.seconds_per_token)
        x = 1000 * time.median if time else cells[0].flops_per_token / 1e6
        y = statistics.mean(cell.test_loss for cell in cells)
        size = 20 + 160 * cells[0].cache_bytes / max(c.cache_bytes for c in found.results.cells)
        shape = "os^Dv"[found.contexts.index(context) % 5]
        label = name_in_plot(arm) if context == found.contexts[0] else None
        axes.scatter([x], [y], s=size, marker=shape, color=_colour(found, arm), alpha=0.8, label=label)
    if not found.results.speed:
        axes.set_xlabel("MFLOP per token (nothing was timed)")
    shapes = ", ".join(f"{'●■▲◆▼'[i % 5]} context {c}" for i, c in enumerate(found.contexts))
    axes.set_title(f"{shapes}; area: bytes of a full cache", fontsize="medium")
    legend = axes.legend(frameon=False, fontsize="small")
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_sizes([40])  # type: ignore[attr-defined]
    return inline_svg(figure)


def _by_position(found: Grouped, context: int) -> str:
    def line(cells: Sequence[CellResult]) -> tuple[range, list[float]]:
        rows = zip(*(cell.loss_by_position for cell in cells), strict=True)
        return range(1, context + 1), [statistics.mean(row) for row in rows]

    figure, axes = _plot("tokens of context", "test loss, nats per token", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    _lines(found, axes, context, line, f"trained at a context of {context}")
    return inline_svg(figure)


def _beyond(found: Grouped, context: int) -> str:
    def line(cells: Sequence[CellResult]) -> tuple[list[int], list[float]]:
        lengths = [length for length, _ in cells[0].loss_by_context]
        rows = zip(*([loss for _, loss in cell.loss_by_context] for cell in cells), strict=True)
        return lengths, [statistics.mean(row) for row in rows]

    figure, axes = _plot("context when measured, tokens", "loss, nats per token (estimate)", xscale="log")
    _lines(found, axes, context, line, f"trained at a context of {context}")
    lengths = sorted({n for cell in found.results.cells if cell.context == context for n, _ in cell.loss_by_context})
    axes.set_xticks(lengths, [str(n) for n in lengths], minor=False)
    axes.set_xticks([], minor=True)
    axes.axvline(context, color="grey", lw=0.8, ls=":")
    return inline_svg(figure)


def _attention(found: Grouped, context: int) -> str:
    def line(cells: Sequence[CellResult]) -> tuple[range, list[float]]:
        layers = [layer for cell in cells for layer in cell.attention_by_distance or []]
        return range(context), [statistics.mean(row) for row in zip(*layers, strict=True)]

    figure, axes = _plot("tokens back", "mean attention weight")
    axes.set_yscale("log", nonpositive="mask")  # a line ends where a window hides what is farther back
    _lines(found, axes, context, line, f"context {context}, mean of layers, heads and texts")
    axes.set_ylim(bottom=1e-5)
    return inline_svg(figure)


def _plot(xlabel: str, ylabel: str, **settings: Any) -> tuple["Figure", "Axes"]:
    """Small enough that its letters can be read on a phone."""
    return new_plot(xlabel, ylabel, (5.4, 3.6), **settings)
