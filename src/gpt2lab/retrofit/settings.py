"""Options of ``gpt2lab retrofit``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gpt2lab.config import Window, parse_window, spell_window
from gpt2lab.options import check, option
from gpt2lab.runs.records import TrainingProgress
from gpt2lab.runs.settings import DataSettings, TrainerConfig

Heads = Literal["mean", "first", "aligned"]


@dataclass(frozen=True)
class RetrofitSettings:
    """What a model is converted to, and how long it is trained after that."""

    num_kv_heads: int | None = option(
        None, "key/value heads after it, fewer than before.", least=1, default="as they are"
    )
    position: Literal["rope", "none"] | None = option(
        None, '"rope" or "none" in place of learned positions.', default="as they are"
    )
    window: Window = option(
        None, "window after it, as in training.", parse=parse_window, spell=spell_window, default="as it is"
    )
    heads: Heads = option(
        "aligned",
        'how a shared key/value head is made of a group: "mean", "first", or "aligned": their mean after they were '
        "turned towards each other.",
    )
    share: float = option(
        0.1,
        "tokens of the further training, as a share of those that the run was trained with, unless max_steps is given.",
        above=0,
    )
    controls: bool = option(
        False,
        "also train the model further as it is, and one with the new switches from scratch with as many tokens in all.",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class RetrofitOptions(TrainerConfig, DataSettings, RetrofitSettings):
    """Every keyword of :func:`gpt2lab.retrofit`, under the names of the flags."""

    progress: Callable[[TrainingProgress], None] | None = None
