"""Measuring a trained model, and comparing several."""

from gpt2lab.evaluation.evaluate import Evaluation, estimate_loss, evaluate

__all__ = ["Evaluation", "estimate_loss", "evaluate"]
