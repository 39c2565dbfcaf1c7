"""What a forward pass keeps: the formulas against what autograd says that it keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.config import GPT2Config
from gpt2lab.model import GPT2
from gpt2lab.planning.activations import kept_of_block, kept_of_input, kept_of_output
from tests.model.reference import positions


def kept_by_autograd(config: GPT2Config, rows: int, width: int) -> int:
    """Bytes of all memory behind the tensors that the graph of a loss keeps, parameters apart."""
    model = GPT2.from_config(config, seed=0)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # which holds it, so that no other gets its address
        return tensor

    ids = torch.randint(config.vocab_size, (rows, config.max_seq_len))
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=width == 2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), narrow:
        model(ids, torch.randint(config.vocab_size, ids.shape))
    return sum(storage.nbytes() for storage in kept.values())


@st.composite
def configs(draw: st.DrawFn, width: int) -> GPT2Config:
    heads, share = draw(st.sampled_from([(2, 1), (2, 2), (4, 2), (6, 3)]))  # of one head nothing has to be copied
    # A CPU attends to fewer than 512 keys in float32, even under autocast.
    context = draw(st.integers(4, 400)) if width == 4 else draw(st.integers(512, 560))
    narrowest = 1 if width == 4 else 512
    windows = st.one_of(st.none(), st.integers(narrowest, max(narrowest, context)))
    return GPT2Config(
        vocab_size=draw(st.integers(2, 300)),
        max_seq_len=context,
        embed_dim=heads * draw(st.sampled_from([8, 16, 32])),
        num_heads=heads,
        ff_hidden_dim=draw(st.integers(1, 130)),
        num_layers=draw(st.integers(1, 3)),
        position=draw(positions()),
        num_kv_heads=share,
        window=draw(st.tuples(windows, windows)),
        qk_norm=draw(st.booleans()),
        sinks=draw(st.booleans()),
        rope_fraction=draw(st.sampled_from([1.0, 0.5])),
        bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.1])),
        activation=draw(st.sampled_from(["gelu_tanh", "gelu", "relu"])),
    )


def assert_counted(config: GPT2Config, rows: int, width: int) -> None:
    N, V, L = rows * config.max_seq_len, config.vocab_size, config.num_layers
    tokens_twice = 2 * 8 * N  # ids and targets
    expected = sum(kept_of_input(config, rows).values()) + sum(kept_of_output(config, rows, width).values())
    for layer in range(L):
        expected += 4 * N * config.embed_dim + sum(kept_of_block(config, layer, rows, width).values())
    expected += 4 * N * V + 4  # logarithmic softmax, and how many targets there are
    model = GPT2.from_config(config, seed=0)
    if width == 2:
        expected += 2 * sum(p.numel() for block in model.blocks for p in block.parameters() if p.dim() == 2)
    kept = kept_by_autograd(config, rows, width)
    small = tokens_twice + 8 * config.max_seq_len  # which of those are in the graph depends on the switches
    assert abs(kept - expected) <= small, (kept - expected, config)


@settings(max_examples=60)
@given(data=st.data(), rows=st.integers(1, 3), width=st.sampled_from([4, 2]))
def test_autograd_keeps_what_the_formulas_say(data: st.DataObject, rows: int, width: int) -> None:
    assert_counted(data.draw(configs(width)), rows, width)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [40, 64, 70])  # the first blocks are longer than the first and the last of these
@pytest.mark.parametrize("context", [288, 300])  # of whole blocks, or not
@pytest.mark.parametrize("more", [(), ("qk_norm",), ("sinks",), ("qk_norm", "sinks")], ids="+".join)
def test_so_it_does_of_windows_in_blocks(
    context: int, window: int, num_kv_heads: int, rows: int, more: tuple[str, ...]
) -> None:
    switches = {"num_kv_heads": num_kv_heads, "window": window} | dict.fromkeys(more, True)
    assert_counted(GPT2Config(65, context, 64, 4, 256, 1, **switches), rows, 4)
