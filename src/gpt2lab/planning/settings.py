"""What a plan is asked: the options of :func:`gpt2lab.planning.ways.plan`, and sizes as people write them."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from gpt2lab.errors import InputError
from gpt2lab.options import check, option
from gpt2lab.runs.settings import ModelSettings, OptimizerName

# GPT-2 as it was published (Radford et al. 2019, table 2; the heads as in the published weights).
SIZES = {
    "gpt2": {"num_layers": 12, "embed_dim": 768, "num_heads": 12},
    "gpt2-medium": {"num_layers": 24, "embed_dim": 1024, "num_heads": 16},
    "gpt2-large": {"num_layers": 36, "embed_dim": 1280, "num_heads": 20},
    "gpt2-xl": {"num_layers": 48, "embed_dim": 1600, "num_heads": 25},
}
GPT2_VOCABULARY = 50_257


def parse_memory(value: Any) -> int:
    """Bytes of ``"80GB"``, ``"80GiB"``, ``"16 GB"``, or a whole number of a million or more."""
    size = _parsed("memory", value, r"(?:([KMGT])(i)?B)?", '80GB, 80GiB or "16 GB"')
    if size < 10**6:  # no device has so little: the unit was forgotten
        raise InputError(f"--memory is {str(value)!r}, which is {size:,} bytes; write its unit, such as {value}GB")
    return size


def parse_tokens(value: Any) -> int | None:
    """A number of tokens such as ``"300B"``, ``"2.5B"``, ``"10M"`` or a whole number; None stays None."""
    return None if value is None else _parsed("tokens", value, r"([KMBT])?()", "300B, 2.5B, 10M or a whole number")


def _parsed(name: str, value: Any, units: str, example: str) -> int:
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) *{units}", str(value).strip().replace(",", ""), re.IGNORECASE)
    if found is None:
        raise InputError(f"--{name} is {str(value)!r}; write it as {example}")
    number, unit, binary = found.groups()
    power = 1 + "KMGT".index(unit.upper().replace("B", "G")) if unit else 0
    size = round(float(number) * float(1024 if binary else 1000) ** power)
    if size < 1:
        raise InputError(f"--{name} is {str(value)!r}; it has to be positive")
    return size


@dataclass(frozen=True)
class PlanSettings:
    """What is planned for."""

    model: str = option(
        "gpt2",
        "gpt2, gpt2-medium, gpt2-large, gpt2-xl (the originals, with a context of 1,024), or a run folder. Options of "
        "the model that are given change it.",
    )
    devices: int = option(1, "GPUs that train together.", least=1)
    memory: int = option(
        80 * 10**9, 'memory of each device, such as 80GB, 80GiB or "16 GB".', parse=parse_memory, default="80GB"
    )
    tokens: int | None = option(
        None,
        "tokens to train on, such as 300B, 2.5B or 10M.",
        parse=parse_tokens,
        default="20 for every parameter (Hoffmann et al. 2022)",
    )
    batch_size: int | None = option(
        None,
        "windows of a forward pass, over all devices.",
        least=1,
        default="for each way to train, the most that fit",
    )
    accumulation_steps: int = option(1, "forward passes per optimiser step.", least=1)
    optimizer: OptimizerName = option("muon", '"muon" or "adamw".')
    precision: Literal["float32", "bfloat16"] = option(
        "bfloat16", '"bfloat16" (autocast; weights in float32) or "float32".'
    )
    vocab_size: int | None = option(None, "number of token ids.", least=1, default="the model's")
    peak_tflops: float | None = option(
        None,
        "what a device computes at most, in 10^12 operations a second.",
        above=0,
        default="an NVIDIA H100 SXM by its data sheet: 989 in bfloat16, 67 in float32 (without tensor cores)",
    )
    peak_share: float = option(
        0.4,
        "share of the peak that all arithmetic reaches, recomputing included: an assumption. (PaLM reported 0.58, and "
        "0.46 without what was computed again: Chowdhery et al. 2022, arXiv:2204.02311.)",
        above=0,
    )
    bandwidth: float | None = option(
        None,
        "GB a second that each device sends while it receives as much; without it no time is told for the network.",
        above=0,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size is not None and self.batch_size % self.devices:
            raise InputError(
                f"a batch of {self.batch_size} windows cannot be divided among {self.devices} devices; make "
                f"--batch-size a multiple of {self.devices}"
            )


@dataclass(frozen=True)
class PlanOptions(ModelSettings, PlanSettings):
    """Every keyword of :func:`gpt2lab.plan`, under the names of the flags."""

    def __post_init__(self) -> None:
        PlanSettings.__post_init__(self)
        ModelSettings.__post_init__(self)
