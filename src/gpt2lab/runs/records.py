"""What a training tells while it runs."""

from dataclasses import dataclass
from typing import NotRequired, TypedDict


class Record(TypedDict):
    """Numbers of the steps since the record before, as ``metrics.jsonl`` has them, a line each.

    ``step``, ``tokens`` and ``seconds`` count from the beginning of the run, ``skipped`` the steps that changed nothing
    (no finite gradients, or no targets). ``loss``: their mean, nats per token. ``peak_share``: what is reached of the
    arithmetic that the machine's own matrix product reaches, where that could be told.
    ``peak_memory``: bytes that this process ever held.
    ``validation_loss``: nats per token, where it was measured; over all of the data unless it is an estimate.
    A loss that is not finite, or of steps that were all skipped, is None.
    """

    step: int
    tokens: int
    seconds: float
    loss: float | None
    learning_rate: float
    tokens_per_second: float
    peak_memory: int
    skipped: int
    peak_share: NotRequired[float]
    validation_loss: NotRequired[float | None]
    validation_is_estimate: NotRequired[bool]


@dataclass(frozen=True)
class TrainingProgress:
    """What a training has to tell at one moment, for a terminal, a notebook or a server to show.

    Attributes:
        step: how far it is.
        steps: how far it goes.
        message: a sentence, such as how it trains here, or that a checkpoint could not be written; or "".
        record: numbers, or None.
    """

    step: int
    steps: int
    message: str = ""
    record: Record | None = None
