"""Writing text with a trained model."""

from gpt2lab.generation.engine import Engine, Token
from gpt2lab.generation.generate import generate, sample, stream
from gpt2lab.generation.sampling import Sampling, top_k_logits

__all__ = ["Engine", "Sampling", "Token", "generate", "sample", "stream", "top_k_logits"]
