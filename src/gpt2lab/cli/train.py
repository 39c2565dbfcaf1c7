"""``gpt2lab train``."""

import os
from typing import Any

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console
from gpt2lab.config import variant_switches
from gpt2lab.native.library import prepare_training
from gpt2lab.runs.settings import DataSettings, ModelSettings, StartSettings, TrainerConfig

GROUPS = {"Run": StartSettings, "Model": ModelSettings, "Text": DataSettings, "Training": TrainerConfig}


@with_flags(GROUPS, defaults=dict.fromkeys(variant_switches("modern", 64, 4), "the variant's"))
def train(*, options: object = None) -> int:
    """Train a model and leave a run folder.

    With no option at all it trains the modern variant (RoPE + grouped queries + sliding window) on Shakespeare.
    Ctrl-C saves a checkpoint and says how to go on.
    """
    asked: dict[str, Any] = given(options)
    prepare_training(asked.get("step"))
    from gpt2lab.training.run import ended, launch
    from gpt2lab.training.run import train as train_model

    if "processes" in asked and "RANK" not in os.environ:
        return launch(asked)
    run = train_model(**asked)
    if os.environ.get("RANK", "0") == "0":
        console.print(ended(run, asked.get("attention")))
    return 0 if run.stopped_by is None else 128 + run.stopped_by
