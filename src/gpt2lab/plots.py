"""Pictures in one style: SVG with quiet axes."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2lab.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#222223"  # of letters and axes, and of nothing else


def new_plot(
    xlabel: str, ylabel: str, size: tuple[float, float] = (7, 4.2), **settings: Any
) -> tuple["Figure", "Axes"]:
    """An empty picture, its size in inches; settings are those of matplotlib's ``Axes.set``."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ink = {
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with mpl.rc_context(ink | {"grid.color": _INK}):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=xlabel, ylabel=ylabel, **settings)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_plot(figure: "Figure", path: Path) -> None:
    """Write a picture as an SVG file, replaced whole."""
    with atomic_write(path) as file:
        figure.savefig(file, format="svg")


def inline_svg(figure: "Figure") -> str:
    """A picture as an element of an HTML page; its axes take the page's colour (its letters need CSS for that)."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
