"""Our model against the Transformers classes that compute the same function, with the same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from gpt2lab.config import GPT2Config as Config
from gpt2lab.model import GPT2, MultiHeadAttention
from gpt2lab.model.attention import Reading
from gpt2lab.model.embeddings import rotary_tables
from tests.model.reference import ALiBi, random_ids

V, CONTEXT, C, H, F, LAYERS = 23, 12, 24, 4, 40, 2

# Where each of our tensors stands in a Transformers model: the names to be stacked, "{}" for the layer.
Names = dict[str, list[str]]
GPT2_NAMES: Names = {
    "embeddings.token": ["transformer.wte"],
    "embeddings.position": ["transformer.wpe"],
    "blocks.{}.attention_norm": ["transformer.h.{}.ln_1"],
    "blocks.{}.attention.query_key_value": ["transformer.h.{}.attn.c_attn"],
    "blocks.{}.attention.output": ["transformer.h.{}.attn.c_proj"],
    "blocks.{}.feed_forward_norm": ["transformer.h.{}.ln_2"],
    "blocks.{}.feed_forward.expand": ["transformer.h.{}.mlp.c_fc"],
    "blocks.{}.feed_forward.contract": ["transformer.h.{}.mlp.c_proj"],
    "final_norm": ["transformer.ln_f"],
    "lm_head": ["lm_head"],
}
STARCODER2_NAMES: Names = {
    "embeddings.token": ["model.embed_tokens"],
    "blocks.{}.attention_norm": ["model.layers.{}.input_layernorm"],
    "blocks.{}.attention.query_key_value": [f"model.layers.{{}}.self_attn.{x}_proj" for x in "qkv"],
    "blocks.{}.attention.output": ["model.layers.{}.self_attn.o_proj"],
    "blocks.{}.feed_forward_norm": ["model.layers.{}.post_attention_layernorm"],
    "blocks.{}.feed_forward.expand": ["model.layers.{}.mlp.c_fc"],
    "blocks.{}.feed_forward.contract": ["model.layers.{}.mlp.c_proj"],
    "final_norm": ["model.norm"],
    "lm_head": ["lm_head"],
}
NEOX_NAMES: Names = {
    "embeddings.token": ["gpt_neox.embed_in"],
    "blocks.{}.attention_norm": ["gpt_neox.layers.{}.input_layernorm"],
    "blocks.{}.attention.query_key_value": ["gpt_neox.layers.{}.attention.query_key_value"],
    "blocks.{}.attention.output": ["gpt_neox.layers.{}.attention.dense"],
    "blocks.{}.feed_forward_norm": ["gpt_neox.layers.{}.post_attention_layernorm"],
    "blocks.{}.feed_forward.expand": ["gpt_neox.layers.{}.mlp.dense_h_to_4h"],
    "blocks.{}.feed_forward.contract": ["gpt_neox.layers.{}.mlp.dense_4h_to_h"],
    "final_norm": ["gpt_neox.final_layer_norm"],
    "lm_head": ["lm_head"],
}
MPT_NAMES: Names = {
    "embeddings.token": ["transformer.wte"],
    "blocks.{}.attention_norm": ["transformer.blocks.{}.norm_1"],
    "blocks.{}.attention.query_key_value": ["transformer.blocks.{}.attn.Wqkv"],
    "blocks.{}.attention.output": ["transformer.blocks.{}.attn.out_proj"],
    "blocks.{}.feed_forward_norm": ["transformer.blocks.{}.norm_2"],
    "blocks.{}.feed_forward.expand": ["transformer.blocks.{}.ffn.up_proj"],
    "blocks.{}.feed_forward.contract": ["transformer.blocks.{}.ffn.down_proj"],
    "final_norm": ["transformer.norm_f"],
}


def counterpart(theirs: PreTrainedModel, names: Names, ours: str, of: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """Their tensor for our parameter name, in our layout."""
    module, kind = ours.rsplit(".", 1)
    layer = module.split(".")[1] if module.startswith("blocks.") else ""
    key = module.replace(f".{layer}.", ".{}.", 1) if layer else module
    sources = [name.replace("{}", layer) for name in names[key]]
    transposed = kind == "weight" and type(theirs.get_submodule(sources[0])).__name__ == "Conv1D"
    tensor = torch.cat([of(theirs.get_parameter(f"{source}.{kind}")) for source in sources])
    if isinstance(theirs, GPTNeoXForCausalLM) and key.endswith("query_key_value"):  # there head by head
        tensor = tensor.unflatten(0, (H, 3, C // H)).transpose(0, 1).flatten(0, 2)
    return tensor.T if transposed else tensor


@torch.no_grad()
def share_random_weights(ours: GPT2, theirs: PreTrainedModel, names: Names, dtype: torch.dtype) -> None:
    """Draw weights in the Transformers model and copy them into ours; every one of ours is set."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.to(dtype).named_parameters():
        norm = ("ln_" in name or "norm" in name) and name.endswith("weight")
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.15 + norm)
        if name.endswith("norm.bias") and not ours.config.bias:
            parameter.zero_()
    ours.to(dtype)
    for name, parameter in ours.named_parameters():
        parameter.copy_(counterpart(theirs, names, name, lambda p: p))


def assert_equal_to(ours: GPT2, theirs: PreTrainedModel, names: Names, dtype: torch.dtype, tolerance: float) -> None:
    """Logits, loss and every parameter's gradient."""
    share_random_weights(ours, theirs, names, dtype)
    text = random_ids(ours, 3, CONTEXT + 1)
    ids, targets = text[:, :-1], text[:, 1:]
    ours.eval()
    theirs.eval()
    logits, expected_logits = ours(ids), theirs(ids).logits
    assert logits.std() > 0.3, "logits that hardly differ would show nothing"
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=tolerance)

    loss = ours(ids, targets)
    expected = -expected_logits.log_softmax(-1).gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=tolerance)
    own = theirs(text, labels=text).loss  # shifts by itself, and computes in float32
    torch.testing.assert_close(loss.float(), own.float(), rtol=0, atol=1e-5)
    loss.backward()
    expected.backward()
    for name, parameter in ours.named_parameters():
        gradient = counterpart(theirs, names, name, lambda p: p.grad)
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"]
)


def hugging_face_gpt2(**changes: Any) -> GPT2LMHeadModel:
    sizes = {"vocab_size": V, "n_positions": CONTEXT + 1, "n_embd": C, "n_layer": LAYERS, "n_head": H, "n_inner": F}
    return GPT2LMHeadModel(GPT2Config(**(sizes | changes)))


@PRECISIONS
def test_without_switches_the_model_is_gpt2(dtype: torch.dtype, tolerance: float) -> None:
    ours = GPT2(V, CONTEXT + 1, C, H, F, LAYERS)
    assert_equal_to(ours, hugging_face_gpt2(), GPT2_NAMES, dtype, tolerance)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_it_is_gpt2_whichever_attention_transformers_uses(implementation: str) -> None:
    ours = GPT2(V, CONTEXT + 1, C, H, F, LAYERS)
    theirs = hugging_face_gpt2(attn_implementation=implementation)
    assert_equal_to(ours, theirs, GPT2_NAMES, torch.float32, 1e-5)


@PRECISIONS
def test_with_an_output_layer_of_its_own_it_is_gpt2_untied(dtype: torch.dtype, tolerance: float) -> None:
    ours = GPT2(V, CONTEXT + 1, C, H, F, LAYERS, tie_embeddings=False)
    assert_equal_to(ours, hugging_face_gpt2(tie_word_embeddings=False), GPT2_NAMES, dtype, tolerance)


@pytest.mark.parametrize(("activation", "theirs"), [("gelu", "gelu"), ("relu", "relu")])
def test_other_activations_and_epsilons_are_those_of_transformers(activation: str, theirs: str) -> None:
    ours = GPT2(V, CONTEXT + 1, C, H, F, LAYERS, activation=activation, layer_norm_epsilon=0.1)
    other = hugging_face_gpt2(activation_function=theirs, layer_norm_epsilon=0.1)
    assert_equal_to(ours, other, GPT2_NAMES, torch.float64, 1e-10)


@PRECISIONS
def test_learned_positions_and_one_key_value_head_are_gpt_bigcode(dtype: torch.dtype, tolerance: float) -> None:
    ours = GPT2(V, CONTEXT + 1, C, H, F, LAYERS, num_kv_heads=1)
    sizes = {"vocab_size": V, "n_positions": CONTEXT + 1, "n_embd": C, "n_layer": LAYERS, "n_head": H, "n_inner": F}
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    theirs = GPTBigCodeForCausalLM(GPTBigCodeConfig(**sizes, **dropouts, attn_implementation="sdpa"))
    assert_equal_to(ours, theirs, GPT2_NAMES, dtype, tolerance)


def starcoder2(kv_heads: int, window: int | None, **changes: Any) -> Starcoder2ForCausalLM:
    return Starcoder2ForCausalLM(
        Starcoder2Config(
            vocab_size=V,
            hidden_size=C,
            intermediate_size=F,
            num_hidden_layers=LAYERS,
            num_attention_heads=H,
            num_key_value_heads=kv_heads,
            hidden_act="gelu_pytorch_tanh",
            max_position_embeddings=CONTEXT,
            sliding_window=window,
            use_bias=changes.pop("use_bias", True),
            bos_token_id=None,
            eos_token_id=None,
            **changes,
        )
    )


@pytest.mark.parametrize("window", [None, 1, 5, 11, 40])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rope_with_shared_heads_and_a_window_is_starcoder2(kv_heads: int, window: int | None) -> None:
    ours = GPT2(V, CONTEXT, C, H, F, LAYERS, position="rope", num_kv_heads=kv_heads, window=window)
    assert_equal_to(ours, starcoder2(kv_heads, window), STARCODER2_NAMES, torch.float32, 1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_it_is_starcoder2_whichever_attention_transformers_uses(implementation: str) -> None:
    ours = GPT2(V, CONTEXT, C, H, F, LAYERS, position="rope", num_kv_heads=2, window=5)
    theirs = starcoder2(2, 5, attn_implementation=implementation)
    assert_equal_to(ours, theirs, STARCODER2_NAMES, torch.float32, 1e-5)


def test_another_theta_no_biases_and_untied_weights_are_starcoder2_too() -> None:
    switches = {"rope_theta": 500.0, "bias": False, "tie_embeddings": False}
    ours = GPT2(V, CONTEXT, C, H, F, LAYERS, position="rope", num_kv_heads=2, window=4, **switches)
    rope = {"rope_type": "default", "rope_theta": 500.0}
    theirs = starcoder2(2, 4, rope_parameters=rope, use_bias=False, tie_word_embeddings=False)
    assert_equal_to(ours, theirs, STARCODER2_NAMES, torch.float32, 1e-5)


def test_a_window_in_a_text_long_enough_for_the_band_kernel_is_starcoder2() -> None:
    ours = GPT2(V, 300, C, H, F, LAYERS, position="rope", num_kv_heads=2, window=20)
    theirs = starcoder2(2, 20)
    share_random_weights(ours, theirs, STARCODER2_NAMES, torch.float32)
    ids = random_ids(ours, 2, 300)
    ours.eval()
    torch.testing.assert_close(ours(ids), theirs.eval()(ids).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("fraction", [1 / 3, 2 / 3, 1.0])
def test_rotating_a_part_of_each_head_is_gpt_neox(fraction: float) -> None:
    ours = GPT2(V, CONTEXT, C, H, F, LAYERS, position="rope", rope_fraction=fraction, tie_embeddings=False)
    config = GPTNeoXConfig(
        vocab_size=V, hidden_size=C, intermediate_size=F, num_hidden_layers=LAYERS, num_attention_heads=H,
        hidden_act="gelu_pytorch_tanh", use_parallel_residual=False, max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": fraction},
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    assert_equal_to(ours, GPTNeoXForCausalLM(config), NEOX_NAMES, torch.float32, 1e-5)


def test_a_users_alibi_is_mpt() -> None:
    ours = GPT2(V, CONTEXT, C, H, 4 * C, LAYERS, attention=ALiBi, position="none", bias=False, activation="gelu")
    config = MptConfig(
        d_model=C, n_heads=H, n_layers=LAYERS, expansion_ratio=4, max_seq_len=CONTEXT + 1, vocab_size=V, use_cache=False
    )
    assert_equal_to(ours, MptForCausalLM(config), MPT_NAMES, torch.float32, 1e-5)


def share_random_attention(ours: MultiHeadAttention, theirs: nn.Module) -> None:
    """Weights for one layer of attention, drawn in theirs and copied into ours."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
        for kind in ("weight", "bias") if ours.output.bias is not None else ("weight",):
            projections = [getattr(theirs.get_submodule(f"{x}_proj"), kind) for x in "qkvo"]
            getattr(ours.double().query_key_value, kind).copy_(torch.cat(projections[:3]))
            getattr(ours.output, kind).copy_(projections[3])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_normalised_queries_and_keys_are_qwen3s(kv_heads: int) -> None:
    switches = {"num_kv_heads": kv_heads, "position": "rope", "qk_norm": True, "bias": False}
    ours = MultiHeadAttention(Config(V, CONTEXT, C, H, F, LAYERS, layer_norm_epsilon=1e-3, **switches), 0)
    config = Qwen3Config(
        hidden_size=C, num_attention_heads=H, num_key_value_heads=kv_heads, head_dim=C // H, rms_norm_eps=1e-3,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = Qwen3Attention(config, 0)
    share_random_attention(ours, theirs)
    with torch.no_grad():
        ours.mechanism.query_norm.weight.copy_(theirs.q_norm.weight)
        ours.mechanism.key_norm.weight.copy_(theirs.k_norm.weight)
    assert_same_attention(ours, theirs)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_sinks_are_those_of_gpt_oss(kv_heads: int) -> None:
    switches = {"num_kv_heads": kv_heads, "position": "rope", "sinks": True}
    ours = MultiHeadAttention(Config(V, CONTEXT, C, H, F, LAYERS, **switches), 0)
    config = GptOssConfig(
        hidden_size=C, num_attention_heads=H, num_key_value_heads=kv_heads, head_dim=C // H, attention_bias=True,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = GptOssAttention(config, 0)
    share_random_attention(ours, theirs)
    with torch.no_grad():
        ours.mechanism.sinks.copy_(theirs.sinks)
    assert_same_attention(ours, theirs, doubled=False)


def assert_same_attention(ours: MultiHeadAttention, theirs: nn.Module, doubled: bool = True) -> None:
    """Output, and gradient of the input, of one layer with rotary positions."""
    x = torch.randn(2, CONTEXT, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    cos, sin = rotary_tables(torch.arange(CONTEXT)[None], C // H, 10_000.0, torch.float64)
    hidden = torch.full((CONTEXT, CONTEXT), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    twice = tuple(torch.cat((table, table) if doubled else (table,), dim=-1)[:, 0] for table in (cos, sin))
    expected = theirs(x, position_embeddings=twice, attention_mask=hidden)[0]
    y = ours(x, Reading(rotary=(cos, sin)))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)  # their norm computes in float32
    for mine, dense in zip(*(torch.autograd.grad(out.square().sum(), x) for out in (y, expected)), strict=True):
        torch.testing.assert_close(mine, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_as_transformers_counts_them(tied: bool) -> None:
    ours = GPT2(V, CONTEXT + 1, C, H, F, LAYERS, tie_embeddings=tied)
    assert ours.num_parameters() == hugging_face_gpt2(tie_word_embeddings=tied).num_parameters()
    ours = GPT2(V, CONTEXT, C, H, F, LAYERS, position="rope", num_kv_heads=2, tie_embeddings=tied)
    assert ours.num_parameters() == starcoder2(2, None, tie_word_embeddings=tied).num_parameters()


def test_gpt2_small_has_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        layer = GPT2(50257, 1024, 768, 12, 3072, 1, seed=0).num_parameters()
        two = GPT2(50257, 1024, 768, 12, 3072, 2, seed=0).num_parameters()
    assert layer + 11 * (two - layer) == 124_439_808
