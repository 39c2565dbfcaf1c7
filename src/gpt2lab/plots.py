"""Pictures in one style: SVG with quiet axes."""

import io
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gpt2lab.errors import printable
from gpt2lab.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
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


def name_in_plot(name: str) -> str:
    """A name of the user's as a label that shows it as it is: $ begins no formula, and a leading _ does not hide it."""
    return ("\N{THIN SPACE}" if name.startswith("_") else "") + printable(name).replace("$", r"\$")


def short_numbers(axis: "Axis") -> None:
    """Label an axis with 5 k and 1.5 M, so that neighbours do not touch, however short the run."""
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter())


def save_plot(figure: "Figure", path: Path) -> None:
    """Write a picture as an SVG file, replaced whole."""
    with atomic_write(path) as file:
        _draw(figure, file)


def inline_svg(figure: "Figure") -> str:
    """A picture as an element of an HTML page; its axes take the page's colour (its letters need CSS for that)."""
    text = io.StringIO()
    _draw(figure, text, transparent=True, metadata={"Date": None})
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :].replace(_INK, "currentColor")


def _draw(figure: "Figure", file: IO[Any], **options: Any) -> None:
    """Draw with letters that stay letters: whoever shows the picture has a font for a name in any script."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format="svg", **options)
