"""Measuring a trained model."""

from gpt2lab.evaluation.evaluate import Evaluation, estimate_loss, evaluate

__all__ = ["Evaluation", "estimate_loss", "evaluate"]
