"""What is lost where matrices are stored in fewer bits."""

import copy

import torch
from torch import Tensor

from gpt2lab.model import GPT2
from gpt2lab.runs.settings import Weights


@torch.no_grad()
def rounded(model: GPT2, weights: Weights) -> GPT2:
    """A copy of a model whose matrices have the values with which the native step computes.

    Those of all linear layers and of the output layer are rounded, and with it the token embedding if it is the same;
    biases, norms, learned positions and an embedding of its own are not.
    """
    model = copy.deepcopy(model)
    matrices = [model.output_weight]
    for block in model.blocks:
        attention, feed_forward = block.attention, block.feed_forward
        layers = (attention.query_key_value, attention.output, feed_forward.expand, feed_forward.contract)
        matrices += [layer.weight for layer in layers]
    for matrix in matrices:
        matrix.copy_(_rounded(matrix, weights))
    return model


def _rounded(matrix: Tensor, weights: Weights) -> Tensor:
    """The matrix (out, in) as it is stored; int8: whole numbers of -127 .. 127, and a factor for each output."""
    if weights == "bfloat16":
        return matrix.to(torch.bfloat16)
    if weights == "int8":
        scale = matrix.abs().amax(1, keepdim=True) / 127
        return torch.where(scale > 0, (matrix / scale).round() * scale, matrix)
    return matrix
