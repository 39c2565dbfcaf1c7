"""Results that were made up, with every field that a cell has."""

from typing import Any

from gpt2lab.comparison.results import CellResult


def made_cell(context: int, arm: str, seed: int, **values: Any) -> CellResult:
    """A cell of a comparison, with these values and usual ones besides."""
    usual: dict[str, Any] = {
        "learning_rate": 0.008,
        "rate_at_edge": False,
        "ff_hidden_dim": 64,
        "steps": 100,
        "tokens": 3200,
        "test_loss": 2.0,
        "bits_per_character": 2.9,
        "bits_per_byte": 2.9,
        "accuracy": 0.4,
        "loss_by_position": [2.0] * context,
        "train_loss": 2.0,
        "validation_loss": 2.0,
        "peak_memory": 400 << 20,
        "curve": [(800, 3.0), (1600, 2.3), (3200, 2.0)],
        "parameters": 1234,
        "flops_per_token": 4567.0,
        "cache_bytes": 256,
        "reach": context,
        "loss_by_context": [(context // 2, 2.1), (context, 2.0)],
        "attention_by_distance": [[1 / context] * context] * 2,
        "sample": "to be",
        "tokens_to_target": 3200.0,
    }
    return CellResult(context, arm, seed, **usual | values)
