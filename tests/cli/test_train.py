"""``gpt2lab train``: the run folder, repeating it, going on, a user's own attention, files of settings."""

import json
import os
import random
import re
import shlex
import signal
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import safetensors.torch
import torch
import yaml

from gpt2lab.cli import main
from gpt2lab.config import variant_switches
from gpt2lab.model import GPT2
from gpt2lab.runs.settings import RunSettings
from gpt2lab.training import find_checkpoint, load
from gpt2lab.training.metrics import read_metrics
from tests.cli.conftest import TINY, Command, program, start
from tests.conftest import LONG
from tests.training.conftest import without_clock

ALIBI = """
import torch
from gpt2lab import GroupQueryAttention, SlidingWindowAttention

class ALiBi(GroupQueryAttention, SlidingWindowAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        slopes = 2.0 ** (-8 * torch.arange(1, config.num_heads + 1) / config.num_heads)
        self.register_buffer("slopes", slopes)

    def bias(self, q_pos, k_pos):
        return -self.slopes[:, None, None] * (q_pos[:, None, :, None] - k_pos[:, None, None, :])
"""


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(find_checkpoint(run, "last") / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    """Whether two runs computed the same, bit for bit."""
    a, b = weights(one), weights(other)
    records = [without_clock(read_metrics(run / "metrics.jsonl")) for run in (one, other)]
    return records[0] == records[1] and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def settings_of(run: Path) -> dict[str, object]:
    values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


# The run folder


def test_a_run_folder_holds_settings_tokenizer_metrics_plot_samples_and_checkpoints(modern: Path, rhyme: str) -> None:
    model, tokenizer = load(modern)
    config = model.config
    switches = variant_switches("modern", 16, 4)
    assert (config.position, config.num_kv_heads, config.window) == tuple(
        switches[name] for name in ("position", "num_kv_heads", "window")
    )
    assert (config.max_seq_len, config.embed_dim, config.num_heads, config.num_layers) == (16, 32, 4, 1)
    assert tokenizer.vocab_size == len(set(rhyme)) + 1
    records = read_metrics(modern / "metrics.jsonl")
    assert [record["step"] for record in records if "validation_loss" in record] == [20, 40, 60]
    assert records[-1]["validation_loss"] < records[0]["loss"] - 0.5
    assert ElementTree.parse(modern / "loss.svg").getroot().tag.endswith("svg")
    heading, samples = (modern / "samples.txt").read_text(encoding="utf-8").split("\n", 1)
    assert heading == "step 60, temperature 0.8:"
    assert 400 < len(samples) <= 502  # <|endoftext|>, which a young model still writes, is not shown
    assert set(samples) <= set(rhyme)
    assert find_checkpoint(modern, "last").name == "step-00000060"
    assert settings_of(modern)["max_steps"] == 60


def test_a_training_says_how_the_text_is_split_how_it_goes_and_what_to_type_next(modern: Path) -> None:
    printed = (modern / "printed.txt").read_text(encoding="utf-8")
    assert re.search(r"train [\d,]+ \(90%\) · validation [\d,]+ \(5%\) · test [\d,]+ \(5%\)", printed)
    assert re.search(r"cpu, 1 thread · float32 · not compiled .* · [\d,]+ parameters", printed)
    assert re.findall(r"step +(\d+)/60 · loss \d\.\d+ · val \d\.\d+ · [\d,]+ tok/s · \d+% of peak", printed) == [
        "20",
        "40",
        "60",
    ]
    loss = read_metrics(modern / "metrics.jsonl")[-1]["validation_loss"]
    assert f"validation loss {loss:.4f} nats/token" in printed
    for command in ("evaluate", "generate"):
        assert f"gpt2lab {command} {modern}" in printed


def test_the_stored_settings_repeat_the_run_bit_for_bit(modern: Path, command: Command, tmp_path: Path) -> None:
    assert command("train", "--config", modern / "config.yaml", "--out", tmp_path / "again").code == 0
    assert same(modern, tmp_path / "again")
    assert settings_of(modern) == settings_of(tmp_path / "again")


def test_a_tensorboard_flag_adds_its_files_to_the_run_folder(
    command: Command, rhyme_file: Path, tmp_path: Path
) -> None:
    assert command("train", "--text", rhyme_file, *TINY, "--max-steps", 2, "--tensorboard", "--out", tmp_path).code == 0
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(("tokenizer", "least"), [("bpe", 300), ("gpt2", 50257)])
def test_other_tokenizers_train_too(
    command: Command, rhyme_file: Path, tmp_path: Path, tokenizer: str, least: int
) -> None:
    out = tmp_path / "run"
    options = ["--tokenizer", tokenizer, "--vocab-size", 300, "--max-steps", 3, "--out", out]
    done = command("train", "--text", rhyme_file, *TINY, *options)
    assert done.code == 0, done.err
    model, found = load(out)
    assert model.config.vocab_size == found.vocab_size == least
    assert found.decode(found.encode("never seen: ß")) == "never seen: ß"


def test_without_a_validation_part_training_runs_and_measures_nothing(
    command: Command, rhyme_file: Path, tmp_path: Path
) -> None:
    options = ["--validation-fraction", 0, "--test-fraction", 0, "--max-steps", 3, "--out", tmp_path / "run"]
    done = command("train", "--text", rhyme_file, *TINY, *options)
    assert done.code == 0, done.err
    assert "validation loss" not in done.out
    assert command("generate", tmp_path / "run", "--tokens", 5).code == 0


# Files of settings, and how options are spelled


def test_a_file_of_settings_in_yaml_or_toml_is_the_same_as_flags_and_flags_override_it(
    command: Command, rhyme_file: Path, tmp_path: Path
) -> None:
    values = {"text": str(rhyme_file), "context_size": 8, "embed_dim": 16, "num_heads": 2, "num_layers": 1}
    values |= {"batch_size": 2, "window": "3,full", "num_kv_heads": 1, "tie_embeddings": False, "learning_rate": 0.002}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(values | {"max_steps": 9}), encoding="utf-8")
    toml = "".join(f"{name} = {json.dumps(value)}\n" for name, value in (values | {"max_steps": 9}).items())
    (tmp_path / "s.toml").write_text(toml, encoding="utf-8")
    flags = [f"--{name}={value}" for name, value in values.items() if name != "tie_embeddings"]
    for name, options in {
        "flags": [*flags, "--no-tie-embeddings"],
        "yaml": ["--config", tmp_path / "s.yaml"],
        "toml": ["--config", tmp_path / "s.toml"],
    }.items():
        done = command("train", *options, "--max-steps", 4, "--out", tmp_path / name)
        assert done.code == 0, done.err
        assert read_metrics(tmp_path / name / "metrics.jsonl")[-1]["step"] == 4
    assert same(tmp_path / "flags", tmp_path / "yaml")
    assert same(tmp_path / "flags", tmp_path / "toml")
    config = load(tmp_path / "toml")[0].config
    assert (config.window, config.num_kv_heads, config.tie_embeddings) == ((3, None), 1, False)


@pytest.mark.parametrize("name", ["s.yaml", "s.toml"])
def test_a_typo_in_a_file_of_settings_gets_a_suggestion(command: Command, tmp_path: Path, name: str) -> None:
    file, mark = tmp_path / name, ": " if name.endswith("yaml") else " = "
    file.write_text(f"learning_rat{mark}0.1\n", encoding="utf-8")
    done = command("train", "--config", file, "--out", tmp_path / "run")
    assert done.code == 2
    assert "learning_rat" in done.err
    assert str(file) in done.err
    assert "--learning-rate" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train --max-step 3", "--max-steps"),
        ("train --embed_dims 3", "--embed-dim"),
        ("train --learnin-rate=1", "--learning-rate"),
        ("train --lr 1", "--learning-rate"),  # and what other programs call it
        ("train --lr=1", "--learning-rate"),
        ("train --steps 3", "--max-steps"),
        ("train --context 8", "--context-size"),
        ("train --block_size=8", "--context-size"),
        ("train --n_layer 2", "--num-layers"),
        ("train --n_head 2", "--num-heads"),
        ("train --n_embd 2", "--embed-dim"),
        ("train --max_iters 2", "--max-steps"),
        ("compare --lr 1", "--learning-rate"),
        ("compare --context 8", "--contexts"),
        ("compare --context_size 8", "--contexts"),
        ("generate runs/x --max_new_tokens 8", "--tokens"),
        ("generate runs/x --top_kk 8", "--top-k"),
        ("plan --n_layer 8", "--num-layers"),
    ],
)
def test_a_flag_that_is_not_there_gets_the_one_that_was_meant(command: Command, typed: str, meant: str) -> None:
    done = command(*typed.split())
    assert done.code == 2
    name = typed.split("--")[1].split("=", maxsplit=1)[0].split(maxsplit=1)[0].replace("_", "-")
    assert done.err == f"gpt2lab: there is no option --{name}; did you mean {meant}?\n"


@pytest.mark.parametrize("name", ["[/a]", "[red]x", "$^$", "_x", ":smile:", "模型"])
def test_a_folder_may_have_any_name(command: Command, rhyme_file: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    done = command("train", "--text", rhyme_file, *TINY, "--max-steps", 2, "--out", run)
    assert done.code == 0, done.err
    assert done.out.count(str(run)) >= 4
    assert (run / "samples.txt").exists()
    assert f"{run.name}, training" in (run / "loss.svg").read_text(encoding="utf-8")
    done = command("evaluate", run, "--contexts", 16, "--plot", tmp_path / "plot.svg")
    assert done.code == 0, done.err
    assert f"{run}: " in done.out
    assert name in command("runs", tmp_path).out


def test_a_flag_like_no_other_points_to_the_help(command: Command) -> None:
    assert command("train", "--qqqq", "3").err == "gpt2lab: there is no option --qqqq; see --help\n"


def test_underscores_are_hyphens_and_older_names_of_options_work(
    command: Command, rhyme_file: Path, tmp_path: Path
) -> None:
    hyphens = ["--context-size", 8, "--num-layers=1", "--num-heads", 2, "--embed-dim", 16, "--tokenizer", "char"]
    underscores = ["--max_seq_len=8", "--num_layers=1", "--num_heads", 2, "--embed_dim", 16, "--embedding_type", "char"]
    for name, options in {"hyphens": hyphens, "underscores": underscores}.items():
        assert command("train", "--text", rhyme_file, *options, "--max_steps=3", "--out", tmp_path / name).code == 0
    assert same(tmp_path / "hyphens", tmp_path / "underscores")


# Random configurations


def test_a_random_configuration_is_printed_and_repeated_by_its_seed_and_flags_win(
    command: Command, rhyme_file: Path, tmp_path: Path
) -> None:
    fixed = ["--text", rhyme_file, "--context-size", 8, "--max-steps", 2, "--batch-size", 2, "--random-config"]
    first = command("train", *fixed, "--num-layers", 1, "--out", tmp_path / "first")
    assert first.code == 0, first.err
    seed = re.search(r"--random-seed (\d+) repeats it", first.out)
    assert seed is not None
    again = [*fixed, "--num-layers", 1, "--random-seed", seed[1], "--out", tmp_path / "again"]
    assert command("train", *again).code == 0
    assert same(tmp_path / "first", tmp_path / "again")
    assert load(tmp_path / "first")[0].config.num_layers == 1
    others = set()
    for number in range(2):
        done = command("train", *fixed, "--random-seed", number, "--num-layers", 1, "--out", tmp_path / f"{number}")
        assert done.code == 0, done.err
        others.add(load(tmp_path / f"{number}")[0].config)
    assert len(others) > 1


# Going on


def test_ctrl_c_saves_and_the_command_it_prints_goes_on(rhyme_file: Path, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    process = start("train", "--text", rhyme_file, *TINY, "--max-steps", 100_000, "--eval-every", 5, "--out", run)
    assert process.stdout is not None
    while "step " not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LONG)
    assert (process.returncode, err) == (130, "")
    saved = re.search(
        rf"stopped at step (\d+), saved; go on with: gpt2lab (train --resume {re.escape(str(run))})\n", out
    )
    assert saved is not None
    assert find_checkpoint(run, "last").name == f"step-{int(saved[1]):08d}"
    assert (run / "loss.svg").exists()
    more = int(saved[1]) + 3
    done = command(*saved[2].split(), "--max-steps", more)
    assert done.code == 0, done.err
    assert f"done: {more} steps" in done.out


def test_sigterm_saves_too_and_ends_with_its_own_exit_code(rhyme_file: Path, tmp_path: Path) -> None:
    process = start("train", "--text", rhyme_file, *TINY, "--max-steps", 100_000, "--eval-every", 5, "--out", tmp_path)
    assert process.stdout is not None
    while "step " not in process.stdout.readline():
        assert process.poll() is None
    process.terminate()
    out, _ = process.communicate(timeout=LONG)
    assert process.returncode == 143
    assert f"--resume {tmp_path}" in out
    assert find_checkpoint(tmp_path, "last").is_dir()


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_again_and_again_always_goes_on(
    rhyme_file: Path, tmp_path: Path, command: Command, times: int
) -> None:
    run, moments = tmp_path / "run", random.Random(0)
    options = ["--text", rhyme_file, *TINY, "--max-steps", 100_000, "--checkpoint-every", 1, "--eval-every", 1]
    arguments = [*options, "--eval-tokens", 16, "--out", run]
    last = 0
    for _ in range(times):
        process = start("train", *arguments)
        deadline = time.monotonic() + LONG
        while not (found := sorted(run.glob("checkpoints/step-*"))) or int(found[-1].name[5:]) < last + 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no checkpoint came"
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        last = int(find_checkpoint(run, "last").name[5:])
        load(run)
        arguments = ["--resume", run]
    done = command("train", "--resume", run, "--max-steps", last + 2)
    assert done.code == 0, done.err
    steps = [record["step"] for record in read_metrics(run / "metrics.jsonl")]
    assert steps == list(range(1, last + 3))


def test_a_resumed_run_ends_like_one_that_was_never_interrupted(
    command: Command, rhyme_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--text", rhyme_file, *TINY, "--max-steps", 8, "--eval-every", 4, "--dropout", 0.2, "--out"]
    assert command("train", *options, tmp_path / "whole").code == 0
    interrupted = GPT2.forward
    calls = 0

    def forward(*arguments: object, **keywords: object) -> torch.Tensor:  # Ctrl-C while step 4 is computed
        nonlocal calls
        if isinstance(arguments[0], GPT2) and arguments[0].training:
            calls += 1
            if calls == 4:
                os.kill(os.getpid(), signal.SIGINT)
        return interrupted(*arguments, **keywords)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(GPT2, "forward", forward)
        assert command("train", *options, tmp_path / "parts").code == 130
    assert find_checkpoint(tmp_path / "parts", "last").name == "step-00000004"
    assert command("train", "--resume", tmp_path / "parts").code == 0
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_finished_again_and_made_longer_on_request(
    command: Command, rhyme_file: Path, tmp_path: Path
) -> None:
    assert command("train", "--text", rhyme_file, *TINY, "--max-steps", 3, "--out", tmp_path).code == 0
    before = without_clock(read_metrics(tmp_path / "metrics.jsonl"))
    (tmp_path / "samples.txt").unlink()
    done = command("train", "--resume", tmp_path)
    assert done.code == 0, done.err
    assert "is at step 3 already: what follows the last step is done again (--max-steps" in done.out
    assert (tmp_path / "samples.txt").exists()
    assert without_clock(read_metrics(tmp_path / "metrics.jsonl")) == before
    done = command("train", "--resume", tmp_path, "--max-steps", 2)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "is at step 3 already; --max-steps with a larger number goes on" in done.err
    assert command("train", "--resume", tmp_path, "--max-steps", 5).code == 0
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_the_end_of_a_run_of_a_single_record_is_done_again(command: Command, rhyme_file: Path, tmp_path: Path) -> None:
    assert command("train", "--text", rhyme_file, *TINY, "--max-steps", 1, "--out", tmp_path).code == 0
    (before,) = read_metrics(tmp_path / "metrics.jsonl")
    done = command("train", "--resume", tmp_path)
    assert done.code == 0, done.err
    (after,) = read_metrics(tmp_path / "metrics.jsonl")
    assert without_clock([after]) == without_clock([before])
    assert after["tokens_per_second"] > 0


def test_an_existing_run_is_never_written_over(command: Command, rhyme_file: Path, original: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in original.rglob("*")}
    done = command("train", "--text", rhyme_file, *TINY, "--max-steps", 1, "--out", original)
    assert done.code == 2
    assert f"{original} already holds a run" in done.err
    assert "--resume" in done.err
    assert {path: path.stat().st_mtime_ns for path in original.rglob("*")} == before


def test_a_model_is_trained_further_on_another_text(
    command: Command, original: Path, rhyme: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("".join(reversed(rhyme)), encoding="utf-8")
    start_loss = json.loads(command("evaluate", original, "--text", other, "--json").out)[str(original)]["loss"]
    options = ["--init-from", original, "--text", other, "--max-steps", 40, "--batch-size=4", "--out", tmp_path / "run"]
    done = command("train", *options)
    assert done.code == 0, done.err
    model, tokenizer = load(tmp_path / "run")
    assert model.config == load(original)[0].config
    assert tokenizer.fingerprint() == load(original)[1].fingerprint()
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["validation_loss"] < start_loss - 0.3
    # config.yaml repeats the run, start and all.
    again = command("train", "--config", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    for name, tensor in model.state_dict().items():
        assert torch.equal(load(tmp_path / "again")[0].state_dict()[name], tensor), name


def test_a_text_that_changed_since_the_training_is_not_taken_for_the_same(
    command: Command, rhyme: str, tmp_path: Path
) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(rhyme, encoding="utf-8")
    small = "--context-size 8 --embed-dim 16 --num-heads 2 --num-layers 1 --batch-size 4 --max-steps 4".split()
    assert command("train", "--text", text, *small, "--out", run).code == 0
    text.write_text(rhyme + rhyme[-1], encoding="utf-8")
    for arguments in (["evaluate", run], ["train", "--resume", run, "--max-steps", 6]):
        refused = command(*arguments)
        assert refused.code == 2
        assert "not the one that was trained on" in refused.err
    # The settings still serve for another text that is named.
    other = command("train", "--config", run / "config.yaml", "--text", text, "--out", tmp_path / "other")
    assert other.code == 0, other.err


def test_a_part_that_was_not_split_off_is_named(command: Command, rhyme_file: Path, tmp_path: Path) -> None:
    small = "--context-size 8 --embed-dim 16 --num-heads 2 --num-layers 1 --batch-size 4 --max-steps 4".split()
    assert command("train", "--text", rhyme_file, *small, "--test-fraction", 0, "--out", tmp_path / "run").code == 0
    refused = command("evaluate", tmp_path / "run", "--split", "test")
    assert refused.code == 2
    assert "without a test part" in refused.err


def test_going_on_from_a_model_keeps_its_architecture_and_says_so(
    command: Command, original: Path, rhyme_file: Path, tmp_path: Path
) -> None:
    options = ["--init-from", original, "--text", rhyme_file, "--num-layers", 3, "--window", 4, "--out", tmp_path / "r"]
    done = command("train", *options)
    assert done.code == 2
    assert "leave out num_layers, window" in done.err


def test_the_settings_of_a_run_keep_the_name_of_its_variant(modern: Path) -> None:
    settings = yaml.safe_load((modern / "config.yaml").read_text(encoding="utf-8"))
    assert (settings["variant"], settings["position"], settings["window"]) == ("modern", "rope", "4")


# A user's own attention


def test_an_attention_of_ones_own_trains_evaluates_and_writes_and_is_asked_for_again(
    command: Command, rhyme_file: Path, tmp_path: Path
) -> None:
    file, run = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(ALIBI, encoding="utf-8")
    attention = ["--attention", f"{file}:ALiBi"]
    options = [*TINY, "--position", "none", "--window", 8, "--num-kv-heads", 2, "--max-steps", 5, "--out", run]
    done = command("train", "--text", rhyme_file, *options, *attention)
    assert done.code == 0, done.err
    for printed in re.findall(r"gpt2lab ((?:evaluate|generate) .+?)(?= ·|\n)", done.out):  # as it stands
        assert command(*shlex.split(printed)).code == 0
    stored = (find_checkpoint(run) / "attention.py").read_text(encoding="utf-8")
    assert stored.strip() == ALIBI[ALIBI.index("class ALiBi") :].strip()
    for use in (["evaluate", run, "--json"], ["generate", run, "--tokens", 30, "--prompt", "the "]):
        done = command(*use, *attention)
        assert (done.code, done.err) == (0, "")
        done = command(*use)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "'ALiBi'" in done.err
        assert "--attention" in done.err
    assert command("train", "--resume", run, "--max-steps", 7, *attention).code == 0
    file.write_text(ALIBI.replace("-8 *", "-4 *"), encoding="utf-8")
    done = command("evaluate", run, *attention)
    assert done.code == 2
    assert "its source differs" in done.err


def test_resuming_never_runs_a_file_that_only_the_run_folder_names(
    command: Command, rhyme_file: Path, tmp_path: Path
) -> None:
    file, run = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(ALIBI, encoding="utf-8")
    options = [*TINY, "--max-steps", 3, "--attention", f"{file}:ALiBi", "--out", run]
    assert command("train", "--text", rhyme_file, *options).code == 0
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{ALIBI}", encoding="utf-8")
    done = command("train", "--resume", run, "--max-steps", 5)
    assert not (tmp_path / "ran").exists()
    assert done.code == 2
    assert "--attention" in done.err


# As a program


def test_every_command_explains_its_options(command: Command) -> None:
    expected = {
        "train": "--out --text --corpus --tokenizer --context-size --batch-size --max-steps --learning-rate "
        "--checkpoint-every --resume --config --seed --num-layers --num-heads --embed-dim --num-kv-heads --window "
        "--position --init-from --attention --random-config --tensorboard --wandb --optimizer --schedule --dropout",
        "evaluate": "--split --text --contexts --checkpoint --attention --json --plot",
        "generate": "--prompt --tokens --temperature --top-k --top-p --min-p --repetition-penalty --seed --num-samples",
        "demo": "--out --max-steps",
    }
    listed = program("--help")
    assert (listed.code, listed.err) == (0, "")
    for name, options in expected.items():
        assert name in listed.out
        helped = command(name, "--help")
        assert (helped.code, helped.err) == (0, "")
        missing = [option for option in options.split() if not re.search(rf"{option}\b", helped.out)]
        assert missing == []


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.metadata

    assert main(["--version"]) == 0
    assert importlib.metadata.version("gpt2lab") in capsys.readouterr().out


@pytest.mark.parametrize("name", ["[/a]", "$^$", "\x1b[31mred", "{a}%s:smile:", "-x", "_"])
def test_a_name_is_shown_as_it_is_and_no_markup_or_formula(
    command: Command, rhyme_file: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / name
    done = command("train", "--text", rhyme_file, *TINY, "--max-steps", 2, f"--out={run}")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert f"run folder  {tmp_path}/{name}".replace("\x1b", r"\x1b") in done.out
    ElementTree.parse(run / "loss.svg")
    assert "could not be drawn" not in done.err
    listed = command("runs", tmp_path)
    assert "\x1b" not in listed.out
    refused = command("train", "--resume", run / "nowhere")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "\x1b" not in refused.err


def test_a_window_of_full_overrides_the_window_of_a_variant(rhyme_file: Path, command: Command, tmp_path: Path) -> None:
    """None is what "full" means, and is not taken for an option that was not typed."""
    options = ["--text", rhyme_file, *TINY, "--variant", "modern", "--max-steps", 1, "--window", "full"]
    assert command("train", *options, "--out", tmp_path / "run").code == 0
    assert RunSettings.read(tmp_path / "run" / "config.yaml").model.window is None


def test_a_window_that_changes_during_training_ends_as_the_models_own(
    rhyme_file: Path, command: Command, tmp_path: Path
) -> None:
    options = ["--text", rhyme_file, *TINY, "--max-steps", 20, "--start-window", 16]
    assert command("train", *options, "--out", tmp_path / "narrowed").code == 0
    assert command("train", *options[:-2], "--out", tmp_path / "usual").code == 0
    narrowed, usual = (load(tmp_path / name)[0] for name in ("narrowed", "usual"))
    assert narrowed.config == usual.config
    assert not torch.equal(narrowed.output_weight, usual.output_weight)
