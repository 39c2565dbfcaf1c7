"""Several processes compute what one computes, and what they leave is what one leaves."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gpt2lab.files import locked_folder
from gpt2lab.model import GPT2
from gpt2lab.runs.folder import checkpoints_of, find_checkpoint, read_state, verify_checkpoint
from gpt2lab.training.metrics import read_metrics
from tests.conftest import LONG, MakeOnce
from tests.warm import warm_python

pytestmark = pytest.mark.xdist_group("distributed")

ROOT = Path(__file__).parents[2]
WAYS = ["ddp-adamw-1", "ddp-adamw-2", "ddp-muon-1", "ddp-muon-2"]
WAYS += [way.replace("ddp", "fsdp") for way in WAYS]
SEVERAL = [2, pytest.param(4, marks=pytest.mark.long)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "250"}


def torchrun(python: str, processes: int, *command: object) -> list[str]:
    launcher = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launcher, *map(str, command)]


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )


Together = Callable[[int], Path]


@pytest.fixture(scope="session")
def together(rhyme: str, make_once: MakeOnce) -> Together:
    """Folder that so many processes left: see together.py."""

    def trained(processes: int) -> Path:
        def make(folder: Path) -> None:
            folder.mkdir()
            (folder / "text.txt").write_text(rhyme, encoding="utf-8")
            done = run(*torchrun(warm_python(), processes, Path(__file__).with_name("together.py"), folder))
            assert done.returncode == 0, done.stderr

        return make_once(f"together-{processes}", make)

    return trained


def found(together: Together, processes: int, way: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((together(processes) / f"{way}.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("processes", SEVERAL)
@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_processes_has_the_losses_of_one(together: Together, processes: int, way: str) -> None:
    alone, here = found(together, 1, way.replace("fsdp", "ddp")), found(together, processes, way)
    assert here["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert here["validation"] == pytest.approx(alone["validation"], rel=1e-5)
    assert here["tokens"] == alone["tokens"]
    assert here["losses"][-1] < here["losses"][0] - 0.5


@pytest.mark.parametrize("processes", SEVERAL)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_rows_without_targets_count_nothing_whoever_has_them(together: Together, processes: int, parallel: str) -> None:
    alone, here = found(together, 1, "lacking")["ddp"], found(together, processes, "lacking")[parallel]
    assert [loss is None for loss in here] == [False] * 4 + [True] + [False] * 2
    assert [loss for loss in here if loss is not None] == pytest.approx(
        [loss for loss in alone if loss is not None], rel=1e-5
    )


def test_accumulating_changes_no_loss(together: Together) -> None:
    for optimizer in ("adamw", "muon"):
        once, twice = (found(together, 1, f"ddp-{optimizer}-{n}") for n in (1, 2))
        assert twice["losses"] == pytest.approx(once["losses"], rel=1e-5)


@pytest.mark.parametrize("processes", SEVERAL)
@pytest.mark.parametrize("way", WAYS)
def test_the_initial_weights_are_those_of_a_model_made_alone(together: Together, processes: int, way: str) -> None:
    assert found(together, processes, way)["initial_as_alone"]


@pytest.mark.parametrize("processes", SEVERAL)
@pytest.mark.parametrize("way", WAYS)
def test_a_sink_that_writes_text_gets_the_same_in_any_number_of_processes(
    together: Together, processes: int, way: str
) -> None:
    alone = found(together, 1, way.replace("fsdp", "ddp"))["written"]
    assert [len(text) for text in alone] == [4, 11]  # before the training, and in the midst of it
    assert found(together, processes, way)["written"] == alone


@pytest.mark.parametrize("processes", SEVERAL)
@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_look_as_if_one_process_had_written_them(together: Together, processes: int, way: str) -> None:
    trained, alone = together(processes) / way, together(1) / way.replace("fsdp", "ddp")
    assert [folder.name for folder in checkpoints_of(trained)] == ["step-00000012", "step-00000020"]
    for folder in checkpoints_of(trained):
        verify_checkpoint(folder)
        reference = alone / "checkpoints" / folder.name
        assert {path.name for path in folder.iterdir()} == {path.name for path in reference.iterdir()}
        for file in ("model.safetensors", "optimizer.safetensors"):
            ours, theirs = (safetensors.torch.load_file(where / file) for where in (folder, reference))
            assert ours.keys() == theirs.keys()
            for name, tensor in ours.items():
                if name.startswith("step/"):
                    continue
                found, expected = tensor, theirs[name]
                if file == "model.safetensors" and name.endswith("query_key_value.bias"):
                    # Attention hardly feels a bias of the keys: some entries of its gradient are rounding errors, which
                    # AdamW makes steps of usual length of. So that part is compared as a whole.
                    (query, keys, value), (query_, keys_, value_) = (t.split([28, 14, 14]) for t in (found, expected))
                    assert torch.linalg.norm(keys - keys_) <= 1e-3 * torch.linalg.norm(keys_), name
                    found, expected = torch.cat([query, value]), torch.cat([query_, value_])
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)
        steps = {float(t) for n, t in ours.items() if n.startswith("step/")}
        assert steps == {float(folder.name[5:])}
        GPT2.load(folder)


@pytest.mark.slow
def test_a_model_never_lies_whole_in_one_process_under_fsdp() -> None:
    command = torchrun(sys.executable, 2, Path(__file__).with_name("larger.py"))
    done = run(*command, MALLOC_MMAP_THRESHOLD_="65536")  # or the C library keeps what was freed
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.7  # half of it, and a tensor on its way


@pytest.mark.parametrize("processes", SEVERAL)
def test_in_bfloat16_the_blocks_weights_are_narrow_and_all_else_is_float32(together: Together, processes: int) -> None:
    wide, narrow = found(together, processes, "fsdp-muon-1"), found(together, processes, "fsdp-muon-1-bfloat16")
    assert narrow["dtypes"] == {"weight": "torch.bfloat16", "hidden": "torch.float32", "rotary": "torch.float32"}
    assert wide["dtypes"] == {"weight": "torch.float32", "hidden": "torch.float32", "rotary": "torch.float32"}
    assert narrow["initial_as_alone"]
    assert narrow["losses"] == pytest.approx(wide["losses"], rel=0.03)
    assert narrow["losses"] != wide["losses"]


# As users start it

TINY = "--context-size 16 --embed-dim 32 --num-heads 4 --num-layers 1 --batch-size 4 --compile no".split()


def train(*options: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(warm_python(), "-m", "gpt2lab", "train", *options, **variables)


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes_and_with_another_way_of_sharing(
    rhyme_file: Path, tmp_path: Path
) -> None:
    options = ["--text", rhyme_file, *TINY, "--eval-every", 5]
    whole = train("--processes", 1, *options, "--max-steps", 18, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    parts = tmp_path / "parts"
    # The learning rate falls over the whole run, so its length is told from the first part on.
    begun = train(
        "--processes", 2, *options, "--parallel", "fsdp", "--max-steps", 18, "--checkpoint-every", 6, "--out", parts
    )
    assert begun.returncode == 0, begun.stderr
    for later in checkpoints_of(parts)[1:]:
        for path in later.iterdir():
            path.unlink()
        later.rmdir()
    assert find_checkpoint(parts, "last").name == "step-00000012"
    goes_on = train("--processes", 1, "--resume", parts, "--parallel", "ddp")
    assert goes_on.returncode == 0, goes_on.stderr
    there, here = (read_metrics(run / "metrics.jsonl") for run in (tmp_path / "whole", parts))
    losses = [{r["step"]: r["loss"] for r in records} for records in (there, here)]
    assert losses[1][18] == pytest.approx(losses[0][18], rel=0.2)
    assert here[-1]["validation_loss"] == pytest.approx(there[-1]["validation_loss"], rel=1e-5)
    assert (parts / "samples.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("mechanism", "refused"),
    [
        ("SharedDistances", "divides no parameter that layers share, as blocks.1.attention.mechanism.table is"),
        ("Counting", "divides no parameter without a dimension, as blocks.0.attention.mechanism.gate is"),
        ("Idle", None),
    ],
)
def test_awkward_mechanisms_train_as_in_one_process_or_are_refused_before_the_first_step(
    rhyme_file: Path, tmp_path: Path, mechanism: str, refused: str | None, parallel: str
) -> None:
    attention = f"{Path(__file__).with_name('mechanisms.py')}:{mechanism}"
    two_layers = " ".join(TINY).replace("--num-layers 1", "--num-layers 2").split()
    options = ["--text", rhyme_file, *two_layers, "--max-steps", 4, "--attention", attention, "--variant", "original"]
    alone = train("--processes", 1, *options, "--out", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    both = train("--processes", 2, "--parallel", parallel, *options, "--out", tmp_path / "both")
    if parallel == "fsdp" and refused is not None:
        assert (both.returncode, both.stderr.count("\n")) == (2, 1), both.stderr
        assert refused in both.stderr
        return
    assert both.returncode == 0, both.stderr
    expected, found = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("alone", "both"))
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], rel=1e-5)


ENDLESS = ["--max-steps", 100_000, "--eval-every", 5, "--checkpoint-every", 5]


def start(processes: int, run: Path, text: Path, *options: object) -> subprocess.Popen[str]:
    arguments = ["train", "--processes", processes, "--text", text, *TINY, *ENDLESS, "--out", run, *options]
    command = [sys.executable, "-m", "gpt2lab", *arguments]
    return subprocess.Popen(
        list(map(str, command)),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str], after: int = 0) -> int:
    deadline = time.monotonic() + LONG
    while not (steps := [int(folder.name[5:]) for folder in checkpoints_of(run)]) or steps[-1] <= after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)
    return steps[-1]


def children(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks, in their order."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    environments = {int(pid): Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in pids}
    ranks = {
        next(int(entry[5:]) for entry in entries if entry.startswith(b"RANK=")): pid
        for pid, entries in environments.items()
        if any(entry.startswith(b"RANK=") for entry in entries)
    }
    return [pid for _, pid in sorted(ranks.items())]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_launcher_saves_and_ends_with_its_code(
    rhyme_file: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start(2, tmp_path / "run", rhyme_file)
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=LONG)
    assert (process.returncode, err) == (code, "")
    stopped = re.search(r"stopped at step (\d+), saved; go on with: gpt2lab train --resume", out)
    assert stopped is not None
    assert read_state(find_checkpoint(tmp_path / "run", "last")).step == int(stopped[1])


@pytest.mark.slow
def test_a_signal_to_one_process_is_a_signal_to_all(rhyme_file: Path, tmp_path: Path) -> None:
    process = start(2, tmp_path / "run", rhyme_file, "--parallel", "fsdp")
    wait_for_checkpoint(tmp_path / "run", process)
    os.kill(children(process)[1], signal.SIGTERM)
    out, _ = process.communicate(timeout=LONG)
    assert process.returncode == 143
    assert "saved; go on with" in out


@pytest.mark.slow
@pytest.mark.parametrize("hung", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_process_that_hangs_is_named(rhyme_file: Path, tmp_path: Path, hung: int) -> None:
    process = start(2, tmp_path / "run", rhyme_file, "--timeout", 20)
    wait_for_checkpoint(tmp_path / "run", process)
    pid = children(process)[hung]
    os.kill(pid, signal.SIGSTOP)
    assert process.stderr is not None
    err = next((line for line in process.stderr if line.startswith("gpt2lab: ")), "nothing")
    os.kill(pid, signal.SIGKILL)  # torchrun would wait for it for ten minutes
    process.communicate(timeout=LONG)
    assert re.search(rf"gpt2lab: another process hangs or is gone: .*\b{hung}\b", err), err
    find_checkpoint(tmp_path / "run", "last")


@pytest.mark.slow
def test_torchrun_starts_a_job_again_that_lost_a_process_and_it_goes_on_from_its_last_checkpoint(
    rhyme_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--text", rhyme_file, *TINY, *ENDLESS, "--out", run]
    command = torchrun(sys.executable, 2, "--max-restarts=1", "-m", "gpt2lab", "train", *options)
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    step = wait_for_checkpoint(run, process)
    os.kill(children(process)[1], signal.SIGKILL)
    later = wait_for_checkpoint(run, process, after=step + 20)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=LONG)
    assert "saved; go on with" in out
    records = read_metrics(run / "metrics.jsonl")
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))
    assert steps[-1] >= later
    assert out.count("2 processes, ddp") == 2  # it was started twice


def test_what_only_the_first_process_finds_wrong_is_one_sentence_for_all(rhyme_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    missing = train("--processes", 2, "--text", tmp_path / "nowhere.txt", *TINY, "--out", run)
    with locked_folder(run):
        locked = train("--processes", 2, "--text", rhyme_file, *TINY, "--max-steps", 2, "--out", run)
    for done, words in ((missing, "nowhere.txt"), (locked, f"another process writes into {run} now")):
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (
            "--learning-rate",
            "0.00{rank}",
            "the processes were not started alike: learning_rate is 0.001 in process 0 and",
        ),
        ("--text", "{folder}/{rank}.txt", "process 1 cannot go on: no such file, folder or glob: '{folder}/2.txt'"),
        ("--config", "{folder}/{rank}.yaml", "process 1 cannot go on: there is no file {folder}/2.yaml"),
    ],
)
def test_what_differs_between_processes_is_one_sentence_before_anything_waits(
    rhyme: str, tmp_path: Path, option: str, value: str, words: str
) -> None:
    (tmp_path / "1.txt").write_text(rhyme, encoding="utf-8")
    (tmp_path / "1.yaml").write_text("dropout: 0.1", encoding="utf-8")
    each = tmp_path / "each.py"
    each.write_text(
        "import os, sys\nfrom gpt2lab.cli import main\nrank = str(int(os.environ['RANK']) + 1)\n"
        "sys.exit(main([word.replace('{rank}', rank) for word in sys.argv[1:]]))\n"
    )
    options = {"--text": tmp_path / "1.txt", option: value.replace("{folder}", str(tmp_path))}
    words_given = [word for pair in options.items() for word in pair]
    done = run(*torchrun(warm_python(), 2, each, "train", *words_given, *TINY, "--out", tmp_path / "run"))
    assert done.returncode != 0
    assert f"gpt2lab: {words.replace('{folder}', str(tmp_path))}" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rank", "address"), [("0", "no.such.host.invalid"), ("1", "127.0.0.1"), ("0", "used"), ("x", "127.0.0.1")]
)
def test_processes_that_cannot_find_each_other_are_one_sentence(
    rhyme_file: Path, tmp_path: Path, rank: str, address: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if address == "used" else "1"
        names = {"MASTER_ADDR": "127.0.0.1" if address == "used" else address, "MASTER_PORT": str(port)}
        ranks = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        options = ["--text", rhyme_file, *TINY, "--timeout", 2, "--out", tmp_path / "run"]
        done = train(*options, **names, **ranks)
    sentence = [line for line in done.stderr.splitlines() if line.startswith("gpt2lab: ")]
    assert (done.returncode, len(sentence)) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "the processes cannot find each other at " in sentence[0]


@pytest.mark.slow
def test_when_the_launcher_is_killed_its_processes_save_and_end(rhyme_file: Path, tmp_path: Path) -> None:
    process = start(2, tmp_path / "run", rhyme_file)
    wait_for_checkpoint(tmp_path / "run", process)
    ranks = children(process)
    assert len(ranks) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + LONG
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < deadline, "they go on"
        time.sleep(0.1)
    find_checkpoint(tmp_path / "run", "last")
    with locked_folder(tmp_path / "run"):
        pass


def test_a_job_that_is_started_again_goes_on_with_its_own_run_only(rhyme_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--text", rhyme_file, *TINY, "--max-steps", 2, "--out", run]
    assert train(*options).returncode == 0
    done = train(*options, TORCHELASTIC_RESTART_COUNT="1", TORCHELASTIC_RUN_ID="another job")
    assert done.returncode == 2
    assert f"{run} already holds a run" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cpu-offload"], "--cpu-offload keeps the shards of --parallel fsdp"),
        (["--processes", 3], "a batch of 4 windows cannot be divided among 3 processes; make --batch-size a multiple"),
        (["--processes", 1, "--parallel", "fsdp"], "there is only one; start more with --processes or torchrun"),
        (["--parallel", "fsdp"], "there is only one; start more with --processes or torchrun"),
        (["--processes", 0], "--processes is 0"),
    ],
)
def test_what_the_number_of_processes_does_not_allow_is_one_sentence(
    rhyme_file: Path, tmp_path: Path, options: list[object], words: str
) -> None:
    done = train("--text", rhyme_file, *TINY, "--out", tmp_path / "run", *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
