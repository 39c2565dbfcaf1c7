"""What a forward pass leaves in memory for the backward pass, tensor by tensor, in bytes.

The method is that of Korthikanti et al. 2022 (arXiv:2205.05198, section 4). Their 34 bytes for every token and unit of
width are not: those hold for half precision, dropout and attention that keeps its scores. What stands here is what
autograd keeps of this model, not compiled; ``torch.autograd.graph.saved_tensors_hooks`` shows the same, to the byte.
Which kernel attends, and whether the loss comes in pieces, the model itself is asked.

B rows, T tokens of a row, N = B·T, C width, H query heads, K key/value heads, D their width, F hidden width of the
feed-forward network, V vocabulary. The residual stream, and what LayerNorm reads and knows, have 4 bytes a value; what
goes into matrix products and comes out of them has 4, or 2 under autocast.
"""

import torch

from gpt2lab.config import GPT2Config
from gpt2lab.model.kernels import Kernel, band_blocks, chosen_kernel
from gpt2lab.model.loss import LOSS_PIECE, loss_in_pieces

FLOAT = 4  # bytes of a float32


def kept_of_input(config: GPT2Config, rows: int) -> dict[str, int]:
    """What stays of the model's input from the beginning of a step to its end."""
    T = config.max_seq_len
    kept = {"tokens and targets": 2 * 8 * rows * T, "positions": 8 * T}
    if config.rotates:
        kept["rotary tables"] = FLOAT * T * config.rotary_dim
    if config.dropout > 0:
        kept["mask of dropout"] = FLOAT * rows * T * config.embed_dim
    return kept


def kept_of_block(config: GPT2Config, layer: int, rows: int, width: int) -> dict[str, int]:
    """What one block keeps beside its input, which is all that stays with activation checkpointing.

    Args:
        config: the model.
        layer: which block, from 0: windows can differ.
        rows: B.
        width: bytes of a value in and out of a matrix product.
    """
    N, C, F = rows * config.max_seq_len, config.embed_dim, config.ff_hidden_dim
    kept = {
        "means and deviations of both LayerNorms": 4 * FLOAT * N,
        "normalised, into the projection": width * N * C,
        **_kept_of_attention(config, layer, rows, width),
        "stream after attention": FLOAT * N * C,
        "normalised, into the feed-forward network": width * N * C,
        "after the activation": width * N * F,
    }
    if config.activation != "relu":  # whose own result tells where it was 0
        kept["before the activation"] = width * N * F
    if config.dropout > 0:  # (a GPU's fused dropout keeps 1 byte a value)
        kept["masks of dropout"] = 2 * width * N * C
    return kept


def kept_of_output(config: GPT2Config, rows: int, width: int) -> dict[str, int]:
    """What the last LayerNorm and the output layer keep, beside the logits."""
    N, C = rows * config.max_seq_len, config.embed_dim
    kept = {
        "output of the blocks": FLOAT * N * C,
        "mean and deviation": 2 * FLOAT * N,
        "normalised, into the output layer": (FLOAT if in_pieces(config, rows) else width) * N * C,
    }
    if width < FLOAT and not in_pieces(config, rows):
        kept["narrow output layer"] = width * config.vocab_size * C
    return kept


def in_pieces(config: GPT2Config, rows: int) -> bool:
    """Whether the loss is made without ever holding all logits."""
    return loss_in_pieces(rows * config.max_seq_len, config.vocab_size)


def made_for_loss(config: GPT2Config, rows: int, width: int) -> dict[str, int]:
    """What the loss needs until it is there: all logits, or a piece of them and at once its gradients."""
    N, C, V = rows * config.max_seq_len, config.embed_dim, config.vocab_size
    made: dict[str, int]
    if in_pieces(config, rows):
        made = {
            "a piece of the logits": FLOAT * LOSS_PIECE * V,
            "their logarithmic softmax": FLOAT * LOSS_PIECE * V,
            "gradient of the hidden states": FLOAT * N * C,
            "gradient of the output layer": FLOAT * V * C,
        }
        if width < FLOAT:  # (A GPU multiplies narrow ones, and needs less.)
            made |= {"hidden states made narrow": FLOAT * N * C, "output layer made narrow": FLOAT * V * C}
        return made
    made = {"logits": FLOAT * N * V, "their logarithmic softmax": FLOAT * N * V}
    if width < FLOAT:
        made |= {"narrow logits": width * N * V, "hidden states before they were made narrow": FLOAT * N * C}
    return made


def made_for_gradient_of_loss(config: GPT2Config, rows: int) -> dict[str, int]:
    """What the backward pass of the loss needs at its worst, if all logits are there."""
    logits = rows * config.max_seq_len * config.vocab_size
    return {
        "logarithmic softmax": FLOAT * logits,
        "its gradient": FLOAT * logits,
        "gradient of the logits": FLOAT * logits,
    }


def _kept_of_attention(config: GPT2Config, layer: int, rows: int, width: int) -> dict[str, int]:
    """What the kernel of :func:`gpt2lab.model.attend` keeps that is chosen here; none of them keeps scores."""
    T, C, H, K, D = config.max_seq_len, config.embed_dim, config.num_heads, config.kv_heads, config.head_dim
    N, window = rows * T, config.layer_window(layer)
    kernel = _kernel(config, rows, T, window)
    sink = int(config.sinks)  # which is a key, and a dimension, more
    wide = D + sink
    kept: dict[str, int] = {}
    if config.qk_norm:  # (A GPU's fused norm keeps no more than its input and the roots.)
        kept["queries and keys, without their scale"] = FLOAT * N * (H + K) * D
        kept["roots of their mean squares"] = FLOAT * N * (H + K)
        if width < FLOAT:
            kept["queries and keys, in float32"] = FLOAT * N * (H + K) * D
    if kernel == "band" and window is not None:
        S, blocks, P = band_blocks(T, window)
        first = P * S  # tokens that are a text of their own
        keys = blocks * S  # of which stretches are views, but copies with a sink before them
        if sink:
            keys = first + 1 + (blocks - P) * ((P + 1) * S + 1)
        if config.qk_norm and width == FLOAT:
            kept["as they were projected"] = width * N * (H + 2 * K) * D
        masked = _kernel(config, rows, first, window) == "mask"
        return kept | {
            "queries, the first and those in blocks": width * rows * H * blocks * S * wide,
            "keys and values": 2 * width * rows * K * keys * wide,
            "mask of a block": width * (H // K) * S * ((P + 1) * S + sink),
            "mask of the first": width * first * (first + sink) if masked else 0,
            "attended, the first and in blocks": width * rows * H * blocks * S * wide,
            "logarithms of sums": FLOAT * rows * blocks * S * H,
            "attended, heads side by side": width * N * C,
        }
    queries = T + sink if kernel == "causal" else T
    kept |= {
        "queries, keys and values": width * rows * (H * queries + 2 * K * (T + sink)) * wide,
        "attended": width * rows * H * queries * wide,
        "logarithms of sums": FLOAT * rows * H * queries,
    }
    changed = config.layer_position(layer) == "rope" or config.qk_norm
    if changed or sink:  # what lies head by head, so that its result has to be copied
        kept["attended, heads side by side"] = width * N * C
    if changed and not sink:
        kept["queries and keys, turned or normalised"] = width * N * (H + K) * D
    if config.qk_norm and sink and width == FLOAT:
        kept["as they were projected"] = width * N * (H + 2 * K) * D
    if kernel == "mask":
        kept["mask"] = width * T * (T + sink)
    return kept


def _kernel(config: GPT2Config, rows: int, length: int, window: int | None) -> Kernel:
    """The kernel that is chosen for texts of that length."""
    heads, D = (config.num_heads, config.kv_heads), config.head_dim
    q, k = (torch.empty(rows, number, length, D, device="meta") for number in heads)
    return chosen_kernel(q, k, k, window=window)
