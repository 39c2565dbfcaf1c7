"""Training: the loop, optimisers, checkpoints, and what is told on the way."""

from gpt2lab.runs.folder import find_checkpoint, load
from gpt2lab.runs.settings import TrainerConfig
from gpt2lab.training.optimizers import Muon
from gpt2lab.training.trainer import Trainer, TrainingResult

__all__ = ["Muon", "Trainer", "TrainerConfig", "TrainingResult", "find_checkpoint", "load"]
