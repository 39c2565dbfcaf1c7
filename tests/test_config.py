import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.config import GPT2Config, parse_position, random_architecture, spell_position, variant_switches
from gpt2lab.errors import InputError
from tests.model.reference import configs

SIZES = {"vocab_size": 65, "max_seq_len": 16, "embed_dim": 24, "num_heads": 4, "ff_hidden_dim": 96, "num_layers": 2}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_heads": 5}, ["num_heads=5", "embed_dim=24", "1, 2, 3, 4, 6, 8, 12, 24"]),
        ({"num_heads": 48}, ["num_heads=48", "embed_dim=24"]),
        ({"num_heads": 0}, ["num_heads is 0", "1 or more"]),
        ({"max_seq_len": 0}, ["max_seq_len is 0", "1 or more"]),
        ({"max_seq_len": -3}, ["max_seq_len is -3"]),
        ({"embed_dim": 0}, ["embed_dim is 0"]),
        ({"embed_dim": 24.0}, ["embed_dim is 24.0"]),
        ({"embed_dim": "24"}, ["embed_dim is '24'"]),
        ({"ff_hidden_dim": 0}, ["ff_hidden_dim is 0"]),
        ({"num_layers": 0}, ["num_layers is 0"]),
        ({"num_layers": True}, ["num_layers is True"]),
        ({"vocab_size": -1}, ["vocab_size is -1"]),
        ({"num_kv_heads": 3}, ["num_kv_heads=3", "num_heads=4"]),
        ({"num_kv_heads": 8}, ["num_kv_heads=8", "num_heads=4"]),
        ({"num_kv_heads": 0}, ["num_kv_heads=0", "num_heads=4"]),
        ({"window": 0}, ["window is 0", "1 or more"]),
        ({"window": -1}, ["window is -1"]),
        ({"window": ()}, ["window is ()"]),
        ({"window": (4, 0)}, ["window is (4, 0)"]),
        ({"window": [4, None, 0]}, ["window is (4, None, 0)"]),
        ({"window": "full"}, ["window is 'full'"]),
        ({"window": 4.0}, ["window is 4.0"]),
        ({"position": "rotary"}, ["position is 'rotary'", "learned, rope, none"]),
        ({"position": ()}, ["position is ()", "for the layers in turn"]),
        ({"position": ("rope", "learned")}, ["position is ('rope', 'learned')", "several of the last two"]),
        ({"position": ["rope", 3]}, ["position is ('rope', 3)"]),
        ({"position": ("none", "rope"), "num_heads": 8}, ["head_dim=3", "odd"]),
        ({"activation": "swish"}, ["activation is 'swish'", "gelu_tanh, gelu, relu"]),
        ({"position": "rope", "num_heads": 8}, ["embed_dim=24", "num_heads=8", "head_dim=3", "odd"]),
        ({"position": "rope", "rope_fraction": 0.5}, ["rope_fraction=0.5", "head_dim=6", "is 3, which is odd"]),
        ({"position": "rope", "rope_fraction": 0.4}, ["rope_fraction=0.4", "head_dim=6", "is 2.4", "no whole number"]),
        ({"rope_fraction": 0.0}, ["rope_fraction is 0.0", "above 0 and at most 1"]),
        ({"rope_fraction": 1.5}, ["rope_fraction is 1.5"]),
        ({"rope_theta": 0.0}, ["rope_theta is 0.0"]),
        ({"rope_theta": math.nan}, ["rope_theta is nan"]),
        ({"dropout": 1.0}, ["dropout is 1.0", "below 1"]),
        ({"dropout": -0.1}, ["dropout is -0.1"]),
        ({"dropout": math.nan}, ["dropout is nan"]),
        ({"layer_norm_epsilon": 0.0}, ["layer_norm_epsilon is 0.0"]),
    ],
)
def test_sizes_and_switches_that_cannot_be_built_are_named_with_their_values(
    wrong: dict[str, Any], named: list[str]
) -> None:
    GPT2Config(**SIZES)
    with pytest.raises(InputError) as raised:
        GPT2Config(**(SIZES | wrong))
    message = str(raised.value)
    assert all(part in message for part in named), message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["rope_theta", "dropout", "layer_norm_epsilon"])
@pytest.mark.parametrize("value", ["0.5", None, [0.5]])
def test_a_number_that_is_no_number_is_an_input_error_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        GPT2Config(**(SIZES | {name: value}))


def test_an_input_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="num_heads"):
        GPT2Config(**(SIZES | {"num_heads": 7}))


def test_with_no_switch_given_the_configuration_is_gpt2() -> None:
    config = GPT2Config(**SIZES)
    switches = {name: value for name, value in config.to_dict().items() if name not in SIZES}
    assert switches == {
        "position": "learned",
        "rope_theta": 10_000.0,
        "rope_fraction": 1.0,
        "num_kv_heads": None,
        "window": None,
        "qk_norm": False,
        "sinks": False,
        "tie_embeddings": True,
        "bias": True,
        "dropout": 0.0,
        "layer_norm_epsilon": 1e-5,
        "activation": "gelu_tanh",
        "attention": None,
    }
    assert (config.head_dim, config.kv_heads, config.layer_window(0)) == (6, 4, None)


@given(configs())
def test_a_configuration_survives_json(config: GPT2Config) -> None:
    again = GPT2Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


@given(configs())
def test_values_that_are_written_are_plain(config: GPT2Config) -> None:
    assert set(config.to_dict()) == {field.name for field in dataclasses.fields(GPT2Config)}
    assert all(isinstance(value, int | float | str | list | None) for value in config.to_dict().values())


def test_unknown_and_missing_settings_are_named() -> None:
    with pytest.raises(InputError, match=r"unknown.*'n_head', 'windows'$"):
        GPT2Config.from_dict(SIZES | {"windows": 3, "n_head": 2})
    with pytest.raises(InputError, match=r"missing.*embed_dim, num_layers$"):
        GPT2Config.from_dict({name: SIZES[name] for name in SIZES if name not in ("num_layers", "embed_dim")})


def test_a_configuration_cannot_be_changed_behind_its_validation() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPT2Config(**SIZES).num_heads = 5  # type: ignore[misc]
    with pytest.raises(InputError, match="num_heads=5"):
        dataclasses.replace(GPT2Config(**SIZES), num_heads=5)


def test_a_tuple_of_windows_is_repeated_over_the_layers() -> None:
    config = GPT2Config(**(SIZES | {"num_layers": 5, "window": [3, None, 7]}))
    assert [config.layer_window(layer) for layer in range(5)] == [3, None, 7, 3, None]
    assert [GPT2Config(**(SIZES | {"window": 9})).layer_window(layer) for layer in range(2)] == [9, 9]


@pytest.mark.parametrize("given", ["rope,rope,none", " rope, rope ,none", ["rope", "rope", "none"]])
def test_positions_of_the_layers_are_written_with_commas(given: Any) -> None:
    position = parse_position(given)
    config = GPT2Config(**(SIZES | {"num_layers": 4, "position": position}))
    assert [config.layer_position(layer) for layer in range(4)] == ["rope", "rope", "none", "rope"]
    assert spell_position(config.position) == "rope,rope,none"
    assert [spell_position(parse_position(one)) for one in ("learned", "rope", "none")] == ["learned", "rope", "none"]


@pytest.mark.parametrize(
    ("heads", "shared"), [(1, 1), (2, 2), (3, 1), (4, 2), (6, 2), (7, 1), (8, 2), (12, 3), (16, 4), (25, 5), (64, 16)]
)
def test_gqa_shares_a_quarter_of_the_heads_but_two_where_it_can(heads: int, shared: int) -> None:
    assert variant_switches("gqa", 64, heads) == {"num_kv_heads": shared}


@pytest.mark.parametrize(("context", "window"), [(1, 1), (4, 1), (5, 2), (25, 7), (64, 16), (1023, 256)])
def test_swa_sees_a_quarter_of_the_context_rounded_up(context: int, window: int) -> None:
    assert variant_switches("swa", context, 4) == {"window": window}


def test_the_other_variants_are_as_the_design_says() -> None:
    assert variant_switches("original", 64, 8) == {}
    assert variant_switches("rope", 64, 8) == {"position": "rope"}
    assert variant_switches("mqa", 64, 8) == {"num_kv_heads": 1}
    assert variant_switches("modern", 64, 8) == {"position": "rope", "num_kv_heads": 2, "window": 16}


def test_an_unknown_variant_is_told_which_are_known() -> None:
    with pytest.raises(InputError, match=r"'modren'.*original, rope, gqa, mqa, swa, modern"):
        variant_switches("modren", 64, 8)  # type: ignore[arg-type]


@given(
    variant=st.sampled_from(["original", "rope", "gqa", "mqa", "swa", "modern"]),
    context=st.integers(1, 5000),
    heads=st.integers(1, 96),
)
def test_every_variant_is_valid_for_any_context_and_heads(variant: Any, context: int, heads: int) -> None:
    config = GPT2Config(65, context, 2 * heads, heads, 8, 1, **variant_switches(variant, context, heads))
    assert (config.position == "rope") == (variant in ("rope", "modern"))


@given(seed=st.integers(0, 2**63), context=st.integers(1, 2000))
def test_a_random_architecture_is_valid_and_within_the_documented_space(seed: int, context: int) -> None:
    drawn = random_architecture(seed, context)
    config = GPT2Config.from_dict({"vocab_size": 65, "max_seq_len": context, **drawn})
    assert config.num_heads in (2, 4, 8)
    assert config.head_dim in (16, 32, 64)
    assert config.embed_dim <= 256
    assert 2 <= config.num_layers <= 6
    assert config.ff_hidden_dim / config.embed_dim in (2, 3, 4)
    width = config.layer_window(0)
    assert width is None or math.ceil(context / 16) <= width <= math.ceil(context / 2)
    assert config.layer_window(1) in (None, width)


@given(seed=st.integers(0, 2**32), context=st.integers(1, 500))
def test_a_random_architecture_is_a_function_of_seed_and_context_alone(seed: int, context: int) -> None:
    np.random.seed(1)
    first, following = random_architecture(seed, context), np.random.rand()
    np.random.seed(1)
    assert np.random.rand() == following  # nothing was taken from the global generator
    assert random_architecture(seed, context) == first


def test_random_architectures_reach_the_whole_documented_space() -> None:
    drawn = [random_architecture(seed, 64) for seed in range(400)]
    assert {d["position"] for d in drawn} == {"learned", "rope", "none", ("rope", "none")}
    assert {d["num_layers"] for d in drawn} == {2, 3, 4, 5, 6}
    pairs = {(d["num_heads"], d["num_kv_heads"]) for d in drawn}
    assert pairs == {(heads, shared) for heads in (2, 4, 8) for shared in (1, 2, 4, 8) if shared <= heads}
    widths = {d["window"][0] if isinstance(d["window"], tuple) else d["window"] for d in drawn}
    assert widths == {None, 4, 8, 16, 32}
    assert {type(d["window"]) for d in drawn} == {int, tuple, type(None)}
    assert {(d["qk_norm"], d["sinks"]) for d in drawn} == set(itertools.product((False, True), repeat=2))
    assert {d["rope_fraction"] for d in drawn} == {1.0, 0.5, 0.25}
