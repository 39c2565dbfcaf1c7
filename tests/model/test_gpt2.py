"""The whole model: its loss, its beginnings, its costs, and its files."""

import json
import math
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.hardware import compiler_available
from gpt2lab.manifests import replace_files
from gpt2lab.model import GPT2, GroupQueryAttention, ScaledDotProductAttention
from tests.model.reference import ALiBi, configs, random_ids, randomised
from tests.training.mechanisms import SharedDistances

SIZES = (11, 16, 16, 4, 20, 3)
in_a_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- logits and loss ---------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(configs())
@torch.no_grad()
def test_the_loss_is_the_mean_of_what_the_logits_say(config: GPT2Config) -> None:
    model = randomised(GPT2.from_config(config))
    ids, targets = random_ids(model, 3, config.max_seq_len), random_ids(model, 3, config.max_seq_len, seed=1)
    probabilities = model(ids).softmax(-1)
    surprise = [
        -math.log(p[t]) for row, ts in zip(probabilities, targets, strict=True) for p, t in zip(row, ts, strict=True)
    ]
    loss = model(ids, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(sum(surprise) / len(surprise), abs=1e-10)


def test_targets_of_minus_100_are_not_counted() -> None:
    model = randomised(GPT2(*SIZES))
    ids, targets = random_ids(model, 2, 8), random_ids(model, 2, 8, seed=1)
    targets[:, :5] = -100
    log_p = model(ids).log_softmax(-1)[:, 5:]
    expected = -log_p.gather(-1, targets[:, 5:, None]).mean()
    torch.testing.assert_close(model(ids, targets), expected, rtol=0, atol=1e-12)


def test_targets_are_not_shifted_again() -> None:
    # A model that always predicts the token it reads has a loss of zero on targets equal to its input.
    model = GPT2(7, 8, 8, 2, 8, 1, position="none", tie_embeddings=False)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.zero_()
        model.embeddings.token.weight.copy_(torch.eye(8)[:7])
        model.lm_head.weight.copy_(100 * torch.eye(8)[:7])
    ids = random_ids(model, 2, 8)
    assert model(ids, ids) < 1e-6
    assert model(ids, ids.roll(-1, 1)) > 1


def test_a_text_shorter_than_the_context_is_its_beginning() -> None:
    model = randomised(GPT2(*SIZES))
    ids = random_ids(model, 2, 16)
    for length in (1, 7, 15):
        torch.testing.assert_close(model(ids[:, :length]), model(ids)[:, :length], rtol=0, atol=1e-11)


def test_more_tokens_than_learned_positions_are_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"17 tokens .* 16 positions"):
        GPT2(*SIZES)(torch.zeros(1, 17, dtype=torch.int64))
    for position in ("rope", "none"):
        assert GPT2(*SIZES, position=position)(torch.zeros(1, 17, dtype=torch.int64)).shape == (1, 17, 11)


def test_an_unknown_switch_is_named_beside_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"windows.*position, rope_theta, rope_fraction, num_kv_heads, window"):
        GPT2(*SIZES, windows=3)
    with pytest.raises(InputError, match="num_heads=5"):
        GPT2(11, 16, 16, 5, 20, 3)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    model, without = GPT2(*SIZES, dropout=0.3, seed=1), GPT2(*SIZES, seed=1)
    ids = random_ids(model, 2, 16)
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), without.eval()(ids))


@pytest.mark.slow
@pytest.mark.skipif(not compiler_available(torch.device("cpu")), reason="no compiler is here")
def test_the_whole_model_compiles_into_one_graph_and_computes_the_same() -> None:
    several = {"position": ("rope", "none"), "rope_fraction": 0.5, "window": (5, None), "qk_norm": True, "sinks": True}
    model = randomised(GPT2(*SIZES[:-1], 2, **several), dtype=torch.float32)
    ids, targets = random_ids(model, 2, 16), random_ids(model, 2, 16, seed=1)
    loss, compiled = model(ids, targets), torch.compile(model, fullgraph=True)(ids, targets)
    torch.testing.assert_close(compiled, loss, rtol=1e-5, atol=1e-5)
    parameters = list(model.parameters())
    for mine, eager in zip(
        torch.autograd.grad(compiled, parameters), torch.autograd.grad(loss, parameters), strict=True
    ):
        torch.testing.assert_close(mine, eager, rtol=1e-4, atol=1e-5)


# ---- initial weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
def test_initial_weights_are_those_of_gpt2(layers: int) -> None:
    model = GPT2(500, 300, 128, 4, 512, layers, seed=0, tie_embeddings=False)
    kinds = {"residual": 0, "matrix": 0, "bias": 0, "scale": 0}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            residual = "attention.output" in name or "contract" in name
            std = 0.02 / math.sqrt(2 * layers) if residual else 0.02
            tolerance = 5 / math.sqrt(2 * parameter.numel())  # five standard errors of a standard deviation
            assert parameter.std().item() == pytest.approx(std, rel=tolerance), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name
            kinds["residual" if residual else "matrix"] += 1
        elif name.endswith("bias"):
            assert not parameter.any(), name
            kinds["bias"] += 1
        else:
            assert bool((parameter == 1).all()), name
            kinds["scale"] += 1
    assert kinds == {"residual": 2 * layers, "matrix": 3 + 2 * layers, "bias": 6 * layers + 1, "scale": 2 * layers + 1}


def test_an_untrained_model_is_about_as_good_as_guessing() -> None:
    model = GPT2(65, 32, 32, 4, 64, 2, seed=0)
    ids = random_ids(model, 8, 32)
    assert model(ids, ids.roll(3, 1)).item() == pytest.approx(math.log(65), abs=0.05)


def test_each_initial_tensor_is_a_function_of_the_seed_and_its_name() -> None:
    torch.manual_seed(1)
    model = GPT2(*SIZES, seed=5)
    torch.manual_seed(2)
    others = [
        GPT2(*SIZES, seed=5),
        GPT2(*SIZES, seed=5, position="rope", window=3),
        GPT2(*SIZES, seed=5, position="none", tie_embeddings=False, bias=False),
        GPT2(*SIZES, seed=5, num_kv_heads=1),
        GPT2(11, 40, 16, 4, 20, 3, seed=5),  # another context
        GPT2(99, 16, 16, 2, 64, 3, seed=5),  # another vocabulary, other heads, another feed-forward network
    ]
    weights = dict(model.named_parameters())
    for other in others:
        same = [n for n, p in other.named_parameters() if n in weights and p.shape == weights[n].shape]
        assert len(same) >= 10
        assert all(torch.equal(other.get_parameter(name), weights[name]) for name in same)


def test_tensors_of_different_names_and_seeds_differ() -> None:
    model, other = GPT2(*SIZES, seed=5), GPT2(*SIZES, seed=6)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    for p, q in zip(matrices, (p for p in other.parameters() if p.dim() == 2), strict=True):
        assert not torch.equal(p, q)
    of_layers = [block.feed_forward.expand.weight for block in model.blocks]
    assert not torch.equal(of_layers[0], of_layers[1])
    correlation = torch.corrcoef(torch.stack([w.flatten() for w in of_layers])) - torch.eye(3)
    assert correlation.abs().max() < 0.3


def test_without_a_seed_torchs_own_governs() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return GPT2(*SIZES).embeddings.token.weight

    assert torch.equal(weights(7), weights(7))
    assert not torch.equal(weights(7), weights(8))
    torch.manual_seed(9)
    assert torch.equal(GPT2(*SIZES, seed=7).embeddings.token.weight, weights(7))


# ---- costs -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(1, 30))
def test_parameters_and_flops_are_those_that_enumeration_finds(config: GPT2Config, context: int) -> None:
    c, model = config, GPT2.from_config(config)
    V, C, F, D = c.vocab_size, c.embed_dim, c.ff_hidden_dim, c.head_dim
    qkv = (c.num_heads + 2 * c.kv_heads) * D
    per_layer = C * qkv + C * C + 2 * C * F
    vectors = qkv + C + F + C + 2 * C if c.bias else 0
    vectors += (2 * D if c.qk_norm else 0) + (c.num_heads if c.sinks else 0)
    total = c.num_layers * (per_layer + vectors + 2 * C) + (2 * C if c.bias else C) + V * C
    total += (0 if c.tie_embeddings else V * C) + (c.max_seq_len * C if c.position == "learned" else 0)
    assert model.num_parameters() == total

    flops = 0
    for i in range(context):
        flops += 2 * V * C
        for layer in range(c.num_layers):
            window = c.window[layer % len(c.window)] if isinstance(c.window, tuple) else c.window
            keys = [j for j in range(i + 1) if window is None or i - j < window]
            flops += 2 * per_layer + len(keys) * c.num_heads * (2 * D + 2 * D)  # a score, and a share of a value
    assert model.flops_per_token(context) == pytest.approx(flops / context, rel=1e-12)
    assert model.flops_per_token() == pytest.approx(model.flops_per_token(c.max_seq_len), rel=0)


@pytest.mark.parametrize("tied", [True, False])
def test_the_flops_of_matrix_products_are_those_that_torch_counts(tied: bool) -> None:
    model = GPT2(*SIZES, num_kv_heads=2, position="rope", tie_embeddings=tied)
    with FlopCounterMode(display=False) as counter:
        model(random_ids(model, 3, 16))
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for operation, flops in counted.items() if str(operation) in ("aten.mm", "aten.addmm"))
    scores_and_values = 3 * 4 * 16 * (16 + 1) / 2  # layers, a multiply-add each for score and value, mean of 1 .. 16
    assert products / (3 * 16) == pytest.approx(model.flops_per_token() - scores_and_values)


def test_a_window_saves_flops_and_a_linear_layer_in_a_users_mechanism_costs_them() -> None:
    class Mixing(ScaledDotProductAttention):
        def __init__(self, config: GPT2Config, layer: int) -> None:
            super().__init__(config, layer)
            self.mix = nn.Linear(16, 16)

    plain = GPT2(*SIZES).flops_per_token()
    assert GPT2(*SIZES, window=1).flops_per_token() == plain - 3 * 4 * 16 * (17 / 2 - 1)
    assert GPT2(*SIZES, attention=Mixing).flops_per_token() == plain + 3 * 2 * 16 * 16


def test_cache_bytes_count_what_each_layer_keeps() -> None:
    model = GPT2(*SIZES, num_kv_heads=2, window=(5, None), position="rope")  # windows 5, None, 5; head_dim 4
    per_layer = 2 * 2 * 4  # keys and values, two heads, four wide
    assert model.cache_bytes_per_token() == 3 * per_layer * 4
    assert model.cache_bytes_per_token(torch.bfloat16) == 3 * per_layer * 2
    assert model.cache_bytes(12) == (5 + 12 + 5) * per_layer * 4
    assert model.cache_bytes(3, torch.float64) == 9 * per_layer * 8
    assert model.bfloat16().cache_bytes(12) == (5 + 12 + 5) * per_layer * 2
    endless = GPT2(*SIZES, window=5, position="rope")
    assert endless.cache_bytes(10**9) == endless.cache_bytes(5)


# ---- a vocabulary that comes later -------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("error")
def test_a_vocabulary_that_is_settled_later_makes_the_model_that_had_it_from_the_start(tied: bool) -> None:
    late = GPT2(0, *SIZES[1:], tie_embeddings=tied, seed=4)
    with pytest.raises(InputError, match="no vocabulary yet"):
        late(torch.zeros(1, 3, dtype=torch.int64))
    late.settle_vocabulary(11)
    early = GPT2(*SIZES, tie_embeddings=tied, seed=4)
    assert late.config == early.config
    assert late.state_dict().keys() == early.state_dict().keys()
    assert all(torch.equal(late.state_dict()[name], tensor) for name, tensor in early.state_dict().items())
    ids = random_ids(early, 2, 16)
    assert torch.equal(late(ids), early(ids))


def test_settling_keeps_a_users_mechanism_and_its_weights() -> None:
    late = randomised(GPT2(0, *SIZES[1:], attention=ALiBi, position="none"))
    block = {name: tensor.clone() for name, tensor in late.blocks.state_dict().items()}
    late.settle_vocabulary(11)
    assert all(torch.equal(late.blocks.state_dict()[name], tensor) for name, tensor in block.items())
    assert late.embeddings.token.weight.dtype == torch.float64
    assert late(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 11)


def test_a_vocabulary_that_is_large_enough_stays_and_one_that_is_too_small_is_refused() -> None:
    model = GPT2(*SIZES)
    before = model.embeddings.token.weight
    model.settle_vocabulary(9)
    model.settle_vocabulary(11)
    assert model.embeddings.token.weight is before
    with pytest.raises(InputError, match=r"12 distinct tokens.*vocab_size=11.*vocab_size=12"):
        model.settle_vocabulary(12)


# ---- files -------------------------------------------------------------------------------------------------------


@in_a_folder
@given(configs())
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, config: GPT2Config) -> None:
    model = randomised(GPT2.from_config(config), dtype=torch.float32)
    model.save(tmp_path / "deep" / "folder")
    again = GPT2.load(tmp_path / "deep" / "folder")
    assert again.config == config
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    ids = random_ids(model, 2, config.max_seq_len)
    assert torch.equal(again.eval()(ids), model(ids))
    tied = again.config.tie_embeddings
    assert tied != any("lm_head" in name for name in again.state_dict())


def test_a_loaded_model_owns_aligned_memory_that_no_change_of_the_file_reaches(tmp_path: Path) -> None:
    model = GPT2(100, 32, 64, 4, 256, 2, seed=0).eval()
    model.save(tmp_path)
    loaded = GPT2.load(tmp_path).eval()
    assert {parameter.data_ptr() % 64 for parameter in loaded.parameters()} == {0}
    file, ids = tmp_path / "model.safetensors", random_ids(model, 2, 32)
    with file.open("r+b") as opened:  # as someone who copies other weights over it
        half = file.stat().st_size // 2
        opened.seek(half)
        opened.write(bytes(half))
    assert torch.equal(loaded(ids), model(ids))
    os.truncate(file, 1000)  # of a mapped file, what is gone kills whoever reads it
    assert torch.equal(loaded(ids), model(ids))


def test_nothing_that_is_written_is_a_pickle(tmp_path: Path) -> None:
    GPT2(*SIZES).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "manifest.json"}
    json.loads((tmp_path / "config.json").read_text())
    raw = (tmp_path / "model.safetensors").read_bytes()
    (header_length,) = struct.unpack("<Q", raw[:8])  # the safetensors format, read by hand
    header = json.loads(raw[8 : 8 + header_length])
    weights = {name: entry for name, entry in header.items() if name != "__metadata__"}
    assert weights.keys() == GPT2(*SIZES).state_dict().keys()
    assert 8 + header_length + max(entry["data_offsets"][1] for entry in weights.values()) == len(raw)


class Mark:
    """Unpickling it leaves a mark."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_loading_unpickles_nothing(tmp_path: Path) -> None:
    GPT2(*SIZES).save(tmp_path)
    evil = pickle.dumps(Mark(tmp_path / "mark"))
    (tmp_path / "model.safetensors").write_bytes(evil)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        GPT2.load(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_loading_never_runs_the_source_that_lies_beside_the_weights(tmp_path: Path) -> None:
    model = randomised(GPT2(*SIZES, attention=ALiBi, position="none"), dtype=torch.float32)
    model.save(tmp_path)
    assert "class ALiBi" in (tmp_path / "attention.py").read_text()
    (tmp_path / "attention.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    with pytest.raises(InputError, match=r"'ALiBi'.*never run.*attention="):
        GPT2.load(tmp_path)
    again = GPT2.load(tmp_path, attention=ALiBi)
    ids = random_ids(model, 1, 16)
    assert torch.equal(again.eval()(ids), model(ids))
    assert not (tmp_path / "mark").exists()


def test_another_class_of_the_same_name_is_refused(tmp_path: Path) -> None:
    GPT2(*SIZES, attention=ALiBi, position="none").save(tmp_path)
    theirs = ALiBi

    def other() -> type[ScaledDotProductAttention]:
        class ALiBi(theirs):  # type: ignore[misc, valid-type]
            """Another source."""

        return ALiBi

    with pytest.raises(InputError, match=r"ALiBi@\w+, and ALiBi@\w+ was given"):
        GPT2.load(tmp_path, attention=other())
    with pytest.raises(InputError, match=r"ALiBi@\w+, and GroupQueryAttention@\w+ was given"):
        GPT2.load(tmp_path, attention=GroupQueryAttention)


def test_a_built_in_class_that_was_given_has_to_be_given_again(tmp_path: Path) -> None:
    model = GPT2(*SIZES, num_kv_heads=2, attention=GroupQueryAttention)
    model.save(tmp_path)
    assert GPT2.load(tmp_path, attention=GroupQueryAttention).config == model.config


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere holds no model: config\.json is missing"):
        GPT2.load(tmp_path / "nowhere")
    GPT2(*SIZES).save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        GPT2.load(tmp_path)


def test_a_file_in_place_of_the_folder_is_an_input_error(tmp_path: Path) -> None:
    GPT2(*SIZES).save(tmp_path)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        GPT2.load(tmp_path / "model.safetensors")


@in_a_folder
@given(st.floats(0, 1, exclude_max=True))
@example(0.0)
@example(0.99999)
def test_weights_that_were_cut_short_are_an_input_error(tmp_path: Path, share: float) -> None:
    GPT2(*SIZES).save(tmp_path)
    raw = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        GPT2.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "nonsense", "null", "3", "[]", "[1, 2]", '"text"', "{}", '{"vocab_size": 11}', b"\xff\xfe{}", "\0\0\0"],
)
def test_a_configuration_that_is_no_configuration_is_an_input_error(tmp_path: Path, text: str | bytes) -> None:
    GPT2(*SIZES).save(tmp_path)
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError):
        GPT2.load(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(in_a_folder, max_examples=150)
@given(st.sampled_from(sorted(GPT2Config(*SIZES).to_dict())), json_values)
@example("rope_theta", "x")
@example("dropout", None)
@example("num_layers", 2)
@example("embed_dim", 32)
def test_a_setting_that_was_tampered_with_either_loads_or_is_an_input_error(
    tmp_path: Path, name: str, value: Any
) -> None:
    model = GPT2(*SIZES)
    model.save(tmp_path)
    settings_ = model.config.to_dict() | {name: value}
    replace_files(tmp_path, {"config.json": json.dumps(settings_).encode()})
    try:
        again = GPT2.load(tmp_path)
    except InputError:
        return  # anything else is an error of this test
    assert again.state_dict().keys() == model.state_dict().keys()


def test_weights_that_do_not_fit_the_configuration_are_an_input_error(tmp_path: Path) -> None:
    GPT2(*SIZES).save(tmp_path / "a")
    GPT2(11, 16, 16, 4, 20, 2).save(tmp_path / "b")
    weights = (tmp_path / "b" / "model.safetensors").read_bytes()
    replace_files(tmp_path / "a", {"model.safetensors": weights})
    with pytest.raises(InputError, match=r"do not fit"):
        GPT2.load(tmp_path / "a")


def test_a_saved_model_that_was_changed_since_is_refused(tmp_path: Path) -> None:
    model = GPT2(*SIZES)
    model.save(tmp_path)
    for name in ("model.safetensors", "config.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b" ")
        with pytest.raises(InputError, match=f"{name} is damaged, or was edited"):
            GPT2.load(tmp_path)
        (tmp_path / name).write_bytes(content)
    model.save(tmp_path)  # over it
    assert_same(GPT2.load(tmp_path), model)


def test_a_model_that_an_older_gpt2lab_saved_is_loaded_with_a_warning(tmp_path: Path) -> None:
    model = GPT2(*SIZES)
    model.save(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.warns(UserWarning, match=r"has no manifest\.json, so that damage"):
        assert_same(GPT2.load(tmp_path), model)


def assert_same(model: GPT2, other: GPT2) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


class OneHead(GroupQueryAttention):
    """Keys and values are shared whatever the configuration says, so it has fewer parameters than that."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.num_kv_heads = 1


def test_a_mechanism_with_fewer_parameters_than_its_configuration_is_loaded(tmp_path: Path) -> None:
    model = GPT2(11, 16, 16, 4, 20, 2, attention=OneHead)
    model.save(tmp_path)
    assert_same(GPT2.load(tmp_path, attention=OneHead), model)


def test_a_parameter_that_layers_share_is_saved_once_and_shared_again(tmp_path: Path) -> None:
    model = randomised(GPT2(11, 16, 16, 4, 20, 3, position="none", attention=SharedDistances))
    model.save(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert [name for name in stored if name.endswith("table")] == ["blocks.0.attention.mechanism.table"]
    loaded = GPT2.load(tmp_path, attention=SharedDistances)
    tables = {id(block.attention.mechanism.table) for block in loaded.blocks}
    assert len(tables) == 1
    assert loaded.num_parameters() == model.num_parameters() == sum(tensor.numel() for tensor in stored.values())
    ids = random_ids(model, 2, 16)
    assert torch.equal(loaded(ids), model(ids))
