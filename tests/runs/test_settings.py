import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.config import GPT2Config, Switches, variant_switches
from gpt2lab.errors import InputError
from gpt2lab.options import given_options, options_of
from gpt2lab.runs.settings import SETTINGS, DataSettings, ModelSettings, RunSettings, TrainOptions
from tests.model.reference import configs

VARIANTS = st.sampled_from(["original", "rope", "gqa", "mqa", "swa", "modern"])


@given(VARIANTS, st.integers(1, 64))
def test_a_switch_that_is_not_given_is_the_variants_and_one_that_is_given_stays(variant: Any, context: int) -> None:
    usual = ModelSettings.of({"variant": variant, "context_size": context}).config(9)
    switches = variant_switches(variant, context, 4)
    for switch in dataclasses.fields(Switches):
        assert getattr(usual, switch.name) == switches.get(switch.name, switch.default), switch.name
    given = {"variant": variant, "context_size": context, "position": "learned", "window": None, "num_kv_heads": 4}
    config = ModelSettings.of(given).config(9)
    assert (config.position, config.window, config.num_kv_heads) == ("learned", None, 4)


@given(configs())
def test_the_settings_that_describe_a_model_ask_for_exactly_that_model_and_survive_a_file(config: GPT2Config) -> None:
    described = RunSettings(model=ModelSettings.describing(config, None, "modern"))
    written = yaml.safe_load(yaml.safe_dump(described.to_dict()))
    again = RunSettings.of(given_options(SETTINGS, written)).model.config(config.vocab_size)
    assert [again.layer_window(n) for n in range(again.num_layers)] == [
        config.layer_window(n) for n in range(config.num_layers)
    ]
    assert [again.layer_position(n) for n in range(again.num_layers)] == [
        config.layer_position(n) for n in range(config.num_layers)
    ]
    # (4,) is 4, and None as many as query heads
    same = {"num_kv_heads": config.kv_heads, "window": None, "position": "none"}
    assert dataclasses.replace(again, **same) == dataclasses.replace(config, **same)


def test_a_file_of_settings_is_read_back_and_a_wrong_value_in_it_is_told_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    settings = RunSettings(DataSettings(text="a.txt", tokenizer="bpe"), ModelSettings.of({"window": (4, None)}))
    settings.trained_with(betas=(0.7, 0.9), max_epochs=1.5).save(path)
    read = RunSettings.read(path)
    assert read.model == settings.model
    assert (read.data.tokenizer, read.training.betas, read.training.max_epochs) == ("bpe", (0.7, 0.9), 1.5)
    assert Path(str(read.data.text)).is_absolute()
    path.write_text(path.read_text().replace("num_layers: 3", "num_layers: 6"))
    with pytest.raises(InputError, match=f"{path} is damaged, or was edited since it was written"):
        RunSettings.read(path)
    (tmp_path / "manifest.json").unlink()  # as an older gpt2lab left it
    path.write_text(path.read_text().replace("num_layers: 6", "num_layers: six"))
    with pytest.raises(InputError, match=f"^{path}: num_layers is 'six'; it has to be a whole number, at least 1"):
        RunSettings.read(path)


@given(st.integers(0, 2**31), st.integers(2, 64))
def test_a_random_architecture_follows_from_its_seed_and_keeps_what_is_given(seed: int, context: int) -> None:
    asked = {"random_config": True, "random_seed": seed, "context_size": context, "num_layers": 1}
    settings = ModelSettings.of(asked)
    assert settings == ModelSettings.of(asked)
    assert settings.num_layers == 1
    settings.config(9)


def test_names_of_settings_do_not_clash_and_every_keyword_of_train_is_one_of_them() -> None:
    names = [name for kind in SETTINGS for name in options_of(kind)]
    assert len(names) == len(set(names))
    assert set(names) <= set(options_of(TrainOptions))


def test_what_a_comparison_decides_is_declared_with_the_option() -> None:
    who = {name: of.metadata["option"].in_comparison for name, (_, of) in options_of(*SETTINGS).items()}
    assert {name for name, by in who.items() if by == "arm"} == {"variant", "attention"}
    assert {name for name, by in who.items() if by == "none"} == {
        "context_size",
        "random_config",
        "random_seed",
        "threads",
    }
    by_all = {name for name, by in who.items() if by == "all"}
    assert {"max_steps", "batch_size", "seed", "device", "text", "tokenizer"} <= by_all
    assert {"position", "window", "learning_rate", "optimizer", "dropout"} <= who.keys() - by_all
