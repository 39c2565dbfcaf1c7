"""``gpt2lab generate``: text that goes on from the prompt, live, and the same again with the same seed."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2lab.generation import generate
from gpt2lab.training import load
from tests.cli.conftest import TINY, Command, assert_one_sentence, environment, program, start
from tests.conftest import LONG
from tests.warm import warm_python


def test_text_begins_with_the_prompt_and_is_what_the_library_writes(modern: Path, command: Command) -> None:
    options = ["--prompt", "the king ", "--tokens", 80, "--temperature", 0.7, "--top-k", 5, "--seed", 3]
    done = program("generate", modern, *options, python=sys.executable)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("the king ")
    model, tokenizer = load(modern)
    prompt = torch.from_numpy(tokenizer.encode("the king "))[None]
    ids = generate(model, prompt, 80, temperature=0.7, top_k=5, seed=3)
    assert done.out == tokenizer.decode(ids[0].tolist()) + "\n"
    assert command("generate", modern, *options).out == done.out
    assert command("generate", modern, *options[:-1], 4).out != done.out


@pytest.mark.parametrize("options", [["--step", "eager"], ["--step", "native"], ["--weights", "float32"]], ids="-".join)
def test_either_step_writes_the_same_text(command: Command, modern: Path, options: list[str]) -> None:
    asked = ["generate", modern, "--prompt", "the king ", "--tokens", 100, "--seed", 5]
    done = command(*asked, *options)
    assert (done.code, done.out, done.err) == (0, command(*asked).out, "")


def test_weights_of_fewer_bits_are_written_with_natively_or_not_at_all(command: Command, modern: Path) -> None:
    done = command("generate", modern, "--tokens", 50, "--weights", "int8")
    assert (done.code, done.err) == (0, "")
    assert len(done.out) > 50
    refused = command("generate", modern, "--weights", "int8", "--step", "eager")
    assert_one_sentence(refused, "weights='int8' are the native step's; leave out step='eager'")


def test_several_texts_are_written_from_one_prompt_and_differ(command: Command, modern: Path) -> None:
    options = ["--prompt", "love", "--tokens", 30, "--num-samples", 3, "--seed", 1]
    found = json.loads(command("generate", modern, *options, "--json").out)
    assert found["prompt"] == "love"
    assert all(20 < len(text) <= 30 for text in found["texts"])
    assert len(set(found["texts"])) == 3
    printed = command("generate", modern, *options).out
    for text in found["texts"]:
        assert "love" + text + "\n" in printed


def test_each_sampling_option_reaches_the_sampler(command: Command, modern: Path) -> None:
    def text(*options: object) -> str:
        return command("generate", modern, "--prompt", "night ", "--tokens", 60, *options).out

    greedy = text("--temperature", 0)
    for option in (["--top-k", 1], ["--top-p", 1e-9], ["--min-p", 1.0]):
        assert text(*option) == greedy  # each leaves only the likeliest token
    assert text("--temperature", 0, "--repetition-penalty", 50) != greedy
    assert text("--temperature", 1.5) != greedy


def test_unknown_characters_of_a_prompt_are_each_named_with_their_position(command: Command, modern: Path) -> None:
    done = command("generate", modern, "--prompt", "thé €uro")
    assert (done.code, done.out) == (2, "")
    assert "'é' at position 2, '€' at position 4" in done.err
    assert done.err.startswith("gpt2lab: ")
    assert done.err.count("\n") == 1


def test_text_is_shown_while_it_is_written_and_ctrl_c_keeps_it(modern: Path) -> None:
    process = start("generate", modern, "--prompt", "the ", "--tokens", 10_000_000)
    assert process.stdout is not None
    assert process.stdout.read(40).startswith("the ")
    assert process.poll() is None  # it goes on writing
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LONG)
    assert (process.returncode, err) == (130, "")


def test_a_reader_that_has_enough_ends_the_writing_without_a_traceback(modern: Path) -> None:
    process = start("generate", modern, "--tokens", 10_000_000)  # gpt2lab generate … | head -c 20
    assert process.stdout is not None
    assert process.stderr is not None
    assert len(process.stdout.read(20)) == 20
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=LONG)
    process.stderr.close()


def test_a_full_context_is_told_once_on_stderr_and_the_text_goes_on(original: Path) -> None:
    done = program("generate", original, "--prompt", "the ", "--tokens", 60)
    assert done.code == 0
    assert 40 < len(done.out.removesuffix("\n")) <= 64  # <|endoftext|>, which a young model still writes, is not shown
    assert done.err.startswith("note: the context of ")
    assert done.err.count("the oldest half is dropped") == 1


def test_a_note_stands_behind_the_text_where_both_go_to_one_screen(original: Path) -> None:
    command = [warm_python(), "-m", "gpt2lab", "generate", original, "--prompt", "the ", "--tokens", "60"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(), check=True)
    text, note = done.stdout.decode().split("note: ")
    assert text.endswith("\n")
    assert note.startswith("the context of ")


@pytest.mark.parametrize(
    "encoding", ["cp1252", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ascii", "latin-1"))]
)
def test_an_output_of_any_encoding_can_be_written_to(original: Path, encoding: str, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "日本")
    for options in ([], ["--json"]):
        command = [sys.executable, "-m", "gpt2lab", "runs", tmp_path, *options]
        coded = environment() | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        done = subprocess.run(command, capture_output=True, env=coded, check=True)
        assert done.stderr == b""
        if options:
            assert [Path(run["folder"]).name for run in json.loads(done.stdout)] == ["日本"]
        else:
            assert b"??" in done.stdout


def test_a_text_ends_at_the_stop(modern: Path, command: Command) -> None:
    options = ["--prompt", "the ", "--tokens", 100, "--seed", 3]
    whole = command("generate", modern, *options).out
    done = command("generate", modern, *options, "--stop", "e ")
    assert done.out == "the " + whole.removeprefix("the ").partition("e ")[0] + "\n"
    assert_one_sentence(command("generate", modern, "--stop", ""), "--stop is empty")


def test_without_a_prompt_a_text_without_line_breaks_can_be_gone_on_from(command: Command, tmp_path: Path) -> None:
    text = tmp_path / "one-line.txt"
    text.write_text("no line ends here; " * 60, encoding="utf-8")
    assert command("train", "--text", text, *TINY, "--max-steps", 2, "--out", tmp_path / "run").code == 0
    done = command("generate", tmp_path / "run", "--tokens", 5)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    "options",
    [
        ["--tokens", "0"],
        ["--num-samples", "0"],
        ["--prompt", ""],
        ["--temperature=-1"],
        ["--temperature", "nan"],
        ["--top-k", "0"],
        ["--top-p", "0"],
        ["--top-p", "1.5"],
        ["--min-p", "2"],
        ["--repetition-penalty", "0"],
        ["--device", "abacus"],
        ["--tokens", "many"],
        ["--checkpoint", "first"],
    ],
    ids=" ".join,
)
def test_a_setting_out_of_range_is_one_sentence(command: Command, modern: Path, options: list[str]) -> None:
    done = command("generate", modern, *options)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("gpt2lab: ")
    name = options[0].split("=")[0].removeprefix("--")
    assert name in done.err.replace("_", "-")
