"""Options of ``gpt2lab import`` and ``gpt2lab export``."""

from dataclasses import dataclass

from gpt2lab.config import Activation
from gpt2lab.options import check, option


@dataclass(frozen=True)
class SourceSettings:
    """What the weights of nanoGPT and minGPT do not say by themselves."""

    num_heads: int | None = option(None, "query heads, if the source does not say it.", least=1)
    activation: Activation | None = option(
        None,
        "of the feed-forward network, if the source does not say it.",
        default="gelu for nanoGPT, gelu_tanh for minGPT",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ImportSettings(SourceSettings):
    """How a model is imported."""

    tokenizer: str | None = option(
        None, '"gpt2", or the path of a tokenizer.json, if the source has none.', default="the source's"
    )
    force: bool = option(False, "write into a folder that holds something already.")
