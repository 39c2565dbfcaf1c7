"""The names that older users type, from the root of the checkout, exactly as they typed them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpt2_rope_slide_multiquery
import gpt2lab
import training_loop
from gpt2_rope_slide_multiquery import Attention_rope_slide_group, GPT2_rope_slide_group
from gpt2lab.training.metrics import Record, read_metrics
from tests.conftest import LONG
from tests.warm import warm_python
from training_loop import CharDataset, Trainer, TrainerConfig, sample, top_k_logits

ROOT = Path(__file__).parents[1]


def from_the_root(*arguments: object, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "250"}
    return subprocess.run(
        [python, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=LONG,
        check=False,
    )


# train.py


def test_the_old_command_trains_a_random_configuration_and_says_what_repeats_it(
    rhyme_file: Path, tmp_path: Path
) -> None:
    typed = "train.py --context_size 25 --embedding_type shakesperean --random_config --max_steps 5 --random_seed 3"
    done = from_the_root(*typed.split(), "--text", rhyme_file, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "--random-seed 3 repeats it" in done.stdout
    model, tokenizer = gpt2lab.load(tmp_path / "run")
    assert model.config.max_seq_len == 25
    assert isinstance(tokenizer, gpt2lab.CharTokenizer)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("shakesperean", "Char"), ("shakespearean", "Char"), ("char", "Char"), ("bpe", "BPE"), ("gpt2", "BPE")],
)
def test_every_old_embedding_type_chooses_its_tokenizer(rhyme_file: Path, tmp_path: Path, name: str, kind: str) -> None:
    sizes = "--context_size 8 --embed_dim 16 --num_heads 2 --num_layers 1 --max_steps 1 --batch_size 2"
    arguments = ["train", "--text", str(rhyme_file), "--embedding_type", name, *sizes.split(), "--out", str(tmp_path)]
    from gpt2lab.cli import main

    assert main(arguments) == 0
    tokenizer = gpt2lab.load(tmp_path)[1]
    assert type(tokenizer).__name__ == f"{kind}Tokenizer"
    assert (tokenizer.vocab_size == 50257) is (name == "gpt2")


def test_an_unknown_embedding_type_is_one_sentence(tmp_path: Path) -> None:
    options = ["--embedding_type", "klingon", "--out", tmp_path / "run"]
    done = from_the_root("train.py", *options, python=warm_python())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "char, bpe, gpt2" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_exactly_as_it_was_typed_trains_on_shakespeare_within_minutes() -> None:
    done = from_the_root("train.py", *"--context_size 25 --embedding_type shakesperean --random_config".split())
    assert done.returncode == 0, done.stderr
    folder = re.search(r"run folder +(runs/\S+)", done.stdout)
    assert folder is not None
    run = ROOT / folder[1]
    try:
        records = read_metrics(run / "metrics.jsonl")
        assert records[-1]["validation_loss"] < 3.0 < records[0]["loss"]
        assert gpt2lab.load(run)[0].config.max_seq_len == 25
    finally:
        shutil.rmtree(run)
        if not any(run.parent.iterdir()):
            run.parent.rmdir()


# The snippet

SNIPPET = """
from gpt2_rope_slide_multiquery import Attention_rope_slide_group
from training_loop import TrainerConfig, Trainer, CharDataset, top_k_logits, sample
import torch

model = Attention_rope_slide_group()
block_size = 25
text = open({text!r}).read()[:300]
train_dataset = CharDataset(text, block_size=block_size)
tconf = TrainerConfig(max_epochs=1, batch_size=8, learning_rate=6e-4, lr_decay=True, warmup_tokens=512,
                      final_tokens=2*len(train_dataset)*block_size, num_workers=4)
trainer = Trainer(model, train_dataset, None, tconf)
trainer.train()

context = "the king and queen may love the night"
x = torch.tensor([train_dataset.stoi[s] for s in context], dtype=torch.long)[None, ...].to(trainer.device)
y = sample(model, x, 200, temperature=1.0, sample=True, top_k=10)[0]
completion = "".join([train_dataset.itos[int(i)] for i in y])
assert completion.startswith(context) and len(completion) == len(context) + 200
print("steps", trainer.state.step, "of", len(train_dataset), "windows; characters", len(completion))
"""


def test_the_users_snippet_runs_from_the_root_of_the_checkout(rhyme_file: Path) -> None:
    done = from_the_root("-c", SNIPPET.format(text=str(rhyme_file)))
    assert done.returncode == 0, done.stderr
    assert "steps 35 of 275 windows; characters 237" in done.stdout  # 275 windows in batches of 8


def test_the_old_names_are_the_librarys_own_classes() -> None:
    assert GPT2_rope_slide_group is Attention_rope_slide_group
    for module in (gpt2_rope_slide_multiquery, training_loop):
        for name in module.__all__:
            if hasattr(gpt2lab, name) and name != "TrainerConfig":
                assert getattr(module, name) is getattr(gpt2lab, name), name
    assert issubclass(TrainerConfig, gpt2lab.TrainerConfig)


def test_without_arguments_the_model_is_rope_multi_query_and_windowed_for_a_context_of_25() -> None:
    model = Attention_rope_slide_group()
    assert isinstance(model, gpt2lab.GPT2)
    config = model.config
    assert (config.position, config.num_kv_heads, config.max_seq_len) == ("rope", 1, 25)
    assert isinstance(config.window, int)
    assert config.window < 25
    assert config.num_heads > 1


def test_keywords_change_the_whole_model_and_not_one_layer() -> None:
    model = Attention_rope_slide_group(
        vocab_size=9, max_seq_len=6, embed_dim=8, num_heads=2, ff_hidden_dim=10, num_layers=3, window=2, num_kv_heads=2
    )
    config = model.config
    assert (config.vocab_size, config.max_seq_len, config.embed_dim, config.num_layers) == (9, 6, 8, 3)
    assert [block.attention.window for block in model.blocks] == [2, 2, 2]
    assert [block.attention.num_kv_heads for block in model.blocks] == [2, 2, 2]
    assert Attention_rope_slide_group(position="learned").config.position == "learned"


@pytest.fixture
def data(rhyme: str) -> CharDataset:
    return CharDataset(rhyme[:400], block_size=25)


def test_the_data_settles_the_vocabulary_and_every_sampled_id_has_a_character(data: CharDataset) -> None:
    model = Attention_rope_slide_group(embed_dim=16, num_heads=2, ff_hidden_dim=16, num_layers=1)
    trainer = Trainer(model, data, None, TrainerConfig(max_epochs=1, batch_size=64))
    trainer.train()
    assert model.config.vocab_size == data.vocab_size == len(data.itos)
    x = torch.tensor([[data.stoi[character] for character in "the king"]]).to(trainer.device)
    for options in ({"sample": True}, {"sample": True, "top_k": 3}, {"sample": False}):
        ids = sample(model, x, 200, **options)[0].tolist()
        assert len(ids) == 208
        assert "".join(data.itos[i] for i in ids).startswith("the king")


def test_a_given_vocabulary_that_is_too_small_is_refused_with_what_to_pass(data: CharDataset) -> None:
    model = Attention_rope_slide_group(vocab_size=5)
    with pytest.raises(ValueError, match=rf"vocab_size=5; .*vocab_size={data.vocab_size}"):
        Trainer(model, data, None, TrainerConfig(max_epochs=1))


def test_items_are_a_window_and_the_same_window_one_character_on(rhyme: str, data: CharDataset) -> None:
    assert (len(data), data.vocab_size) == (375, len(set(rhyme[:400])))
    for index in (0, 1, 374):
        x, y = ("".join(data.itos[int(i)] for i in part) for part in data[index])
        assert (x, y) == (rhyme[index : index + 25], rhyme[index + 1 : index + 26])
    assert {data.itos[i]: i for i in data.itos} == data.stoi


# TrainerConfig


def test_the_defaults_are_mingpts() -> None:
    expected = {
        "max_epochs": 10,
        "batch_size": 8,
        "learning_rate": 3e-4,
        "betas": (0.9, 0.95),
        "grad_norm_clip": 1.0,
        "weight_decay": 0.1,
        "lr_decay": False,
        "ckpt_path": None,
        "num_workers": 0,
    }
    config = TrainerConfig()
    assert {name: getattr(config, name) for name in expected} == expected
    decaying = TrainerConfig(lr_decay=True)
    assert (decaying.warmup_tokens, decaying.final_tokens) == (375e6, 260e9)


def test_the_documented_defaults_of_tokens_are_there_without_decay_too() -> None:
    config = TrainerConfig()
    assert (config.warmup_tokens, config.final_tokens) == (375e6, 260e9)


def test_further_fields_are_kept_and_the_librarys_own_work() -> None:
    config = TrainerConfig(max_steps=3, favourite_play="Macbeth", seed=4)
    assert (config.favourite_play, config.max_steps, config.seed) == ("Macbeth", 3, 4)  # type: ignore[attr-defined]


def learning_rates(data: CharDataset, **settings: object) -> list[float]:
    model = Attention_rope_slide_group(embed_dim=8, num_heads=2, ff_hidden_dim=8, num_layers=1)
    records: list[Record] = []
    config = TrainerConfig(max_steps=40, batch_size=2, learning_rate=1.0, **settings)
    Trainer(model, data, None, config, sinks=[records.append]).train()
    return [record["learning_rate"] for record in records]  # at steps 10, 20, 30 and 40, of 50 tokens each


def test_the_learning_rate_warms_up_and_decays_by_tokens_as_mingpts_does(data: CharDataset) -> None:
    assert learning_rates(data) == [1.0] * 4
    rates = learning_rates(data, lr_decay=True, warmup_tokens=1000, final_tokens=2000)
    assert rates == pytest.approx([0.5, 1.0, 0.5, 0.1])
    assert learning_rates(data, lr_decay=True, warmup_tokens=4000)[:2] == pytest.approx([0.125, 0.25])


def test_a_checkpoint_path_is_a_run_folder(data: CharDataset, tmp_path: Path) -> None:
    model = Attention_rope_slide_group(embed_dim=8, num_heads=2, ff_hidden_dim=8, num_layers=1)
    Trainer(model, data, None, TrainerConfig(max_steps=2, ckpt_path=str(tmp_path / "run"))).train()
    loaded = gpt2lab.GPT2.load(next((tmp_path / "run" / "checkpoints").iterdir()))
    assert torch.equal(loaded.embeddings.token.weight, model.embeddings.token.weight)


def test_top_k_logits_leaves_the_k_largest_of_each_row() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0, 2.0], [4.0, -1.0, 0.0, 9.0]])
    nothing = float("-inf")
    expected = torch.tensor([[nothing, 5.0, 3.0, nothing], [4.0, nothing, nothing, 9.0]])
    assert torch.equal(top_k_logits(logits, 2), expected)
    assert torch.equal(top_k_logits(logits, 4), logits)
