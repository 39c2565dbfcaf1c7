"""Pictures show names as they are."""

import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gpt2lab.plots import inline_svg, name_in_plot, new_plot, save_plot

NAMES = ["plain", "_hidden", "$^$", "a$b", "[/a]", ":smile:", "模型", "Модель", "a & <b>"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_label_as_it_is(name: str, tmp_path: Path) -> None:
    figure, axes = new_plot("x", "y")
    axes.plot([1, 2], [3, 4], label=name_in_plot(name))
    axes.legend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_plot(figure, tmp_path / "plot.svg")
        drawings = [(tmp_path / "plot.svg").read_text(encoding="utf-8"), inline_svg(figure)]
    for drawing in drawings:
        texts = [
            "".join(element.itertext()).strip() for element in ET.fromstring(drawing).iter() if "text" in element.tag
        ]
        assert name in texts
