"""What a run is asked to write: the options of ``gpt2lab generate`` besides those of :class:`gpt2lab.Sampling`."""

from collections.abc import Callable
from dataclasses import dataclass

from gpt2lab.generation.sampling import Sampling
from gpt2lab.options import option
from gpt2lab.runs.settings import LoadSettings, Step

TEMPERATURE = 0.8  # of a run's texts; a model's own distribution, at 1, wanders more


@dataclass(frozen=True)
class StepSettings(LoadSettings):
    """Which model writes, and what computes its tokens."""

    step: Step = option(
        "auto",
        'what computes a token: "native" (the model in C++, which is compiled once for this machine), "eager" (the '
        'model itself, which runs everywhere and with your own mechanism), or "auto": native where it can be had, and '
        "eager until it is compiled.",
    )


@dataclass(frozen=True)
class GenerateSettings(StepSettings):
    """What is written."""

    prompt: str | None = option(
        None,
        "text to go on from.",
        default="the beginning of a document, if the model was trained on several, or a line break",
    )
    tokens: int = option(500, "how many tokens to write.", least=1)
    stop: str | None = option(
        None,
        "text at which the writing ends, and which is left out; <|endoftext|> is the end of a document.",
        default="none",
    )
    num_samples: int = option(1, "how many texts, all from the same prompt.", least=1, most=10_000)


@dataclass(frozen=True)
class GenerateOptions(GenerateSettings, Sampling):
    """Every keyword of ``gpt2lab.generate`` with a run, under the names of the flags."""

    temperature: float = TEMPERATURE
    show: Callable[[str], None] | None = None
