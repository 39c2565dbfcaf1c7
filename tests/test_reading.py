"""Whatever a file holds, it is read as a right value or refused in a sentence."""

import contextlib
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2lab.comparison.arms import read_file
from gpt2lab.comparison.folder import read_design, read_results, read_speed
from gpt2lab.comparison.judge import judge
from gpt2lab.comparison.measure import Measurements
from gpt2lab.data import load_tokenizer
from gpt2lab.data.shards import find_shards
from gpt2lab.errors import InputError
from gpt2lab.manifests import Manifest, list_all
from gpt2lab.model import GPT2
from gpt2lab.reading import read_json, read_settings, read_text
from gpt2lab.runs.folder import find_checkpoint, load, read_state
from gpt2lab.runs.listing import runs_below
from gpt2lab.runs.settings import RunSettings
from gpt2lab.training.checkpoint import restore_training
from gpt2lab.training.metrics import exact_loss, read_metrics
from gpt2lab.training.optimizers import build_optimizers
from tests.damage import CELL, LAST, OLD, damaged, make_folders, pack_shards, with_hostile_values

GUARD = 120  # seconds, after which reading a file counts as a hang


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def ring(*_: object) -> None:
        pytest.fail(f"it hangs: {GUARD} seconds are over")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(GUARD * 5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here: Path = tmp_path_factory.mktemp("folders")
    make_folders(here)
    return here


def _restore(folder: Path) -> None:
    model = GPT2.from_config(GPT2.load(OLD / "run" / "checkpoints" / "step-00000020").config, seed=0)
    restore_training(folder, model, build_optimizers(model, "muon", 1e-3, 0.1, (0.9, 0.95)))


def _comparison(of: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: of(next(parent for parent in path.parents if parent.name == "comparison"))


# What is read of each file.
READERS: dict[str, Callable[[Path], object]] = {
    "run/config.yaml": RunSettings.read,
    "run/metrics.jsonl": lambda path: (read_metrics(path), exact_loss(path.parent)),
    "run/tokenizer.json": load_tokenizer,
    f"{LAST}/config.json": lambda path: GPT2.load(path.parent),
    f"{LAST}/model.safetensors": lambda path: (GPT2.load(path.parent), _restore(path.parent)),
    f"{LAST}/optimizer.safetensors": lambda path: _restore(path.parent),
    f"{LAST}/random.safetensors": lambda path: _restore(path.parent),
    f"{LAST}/state.json": lambda path: (read_state(path.parent), [*runs_below(path.parents[2])]),
    f"{LAST}/manifest.json": lambda path: (Manifest.read(path.parent), load(path.parents[2])),
    "model/config.json": lambda path: GPT2.load(path.parent),
    "model/model.safetensors": lambda path: GPT2.load(path.parent),
    "comparison/comparison.yaml": lambda path: (read_design(path.parent), read_file(path)),
    "comparison/results.json": lambda path: (read_results(path), judge(path, baseline="original", value="test_loss")),
    "comparison/speed.json": lambda path: (read_speed(path.parent), read_results(path.parent)),
    f"{CELL}/cell.yaml": lambda path: (RunSettings.read(path), _comparison(read_results)(path)),
    f"{CELL}/measurements.json": lambda path: (read_json(Measurements, path), _comparison(read_results)(path)),
    f"{CELL}/metrics.jsonl": _comparison(read_results),
    "shards/pack.json": lambda path: pack_shards(path.parents[1]),
    "shards/tokenizer.json": load_tokenizer,
    "shards/tokens_000000.bin": lambda path: find_shards(str(path.parent)),
    "runs.jsonl": lambda path: judge(path, baseline="a"),
    "plan.toml": read_settings,
}


def reads_or_refuses(path: Path) -> None:
    """Read a file, which may hold anything now, in the folder that it belongs to."""
    name = next(name for name in READERS if path.as_posix().endswith(name))
    if path.parent.name.startswith("step-") and path.name != "manifest.json":
        (path.parent / "manifest.json").unlink(missing_ok=True)
        list_all(path.parent)
    with warnings.catch_warnings(action="ignore"):
        try:
            READERS[name](path)
        except InputError as error:
            said = str(error)
        else:
            said = ""
    assert "\n" not in said
    assert len(said) < 2100


@pytest.fixture
def copy(folders: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    shutil.copytree(folders, tmp_path / "here", dirs_exist_ok=True)
    path: Path = tmp_path / "here" / request.param
    if path.name != "manifest.json":
        (path.parent / "manifest.json").unlink(missing_ok=True)  # or nothing but this would be seen
    return path


every_file = pytest.mark.parametrize("copy", READERS, indirect=True)
in_a_copy = settings(
    max_examples=settings().max_examples // 5, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@every_file
def test_each_file_is_read_as_it_is(copy: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        READERS[next(name for name in READERS if copy.as_posix().endswith(name))](copy)


@every_file
@in_a_copy
@given(st.data())
def test_a_damaged_file_is_read_or_refused_in_a_sentence(copy: Path, data: st.DataObject) -> None:
    whole = copy.read_bytes()
    try:
        copy.write_bytes(damaged(data, whole))
        reads_or_refuses(copy)
    finally:
        copy.write_bytes(whole)


@pytest.mark.parametrize(
    "copy", [name for name in READERS if name.endswith((".json", ".jsonl", ".yaml"))], indirect=True
)
@in_a_copy
@given(st.data())
def test_a_hostile_value_anywhere_is_read_or_refused_in_a_sentence(copy: Path, data: st.DataObject) -> None:
    whole = copy.read_bytes()
    try:
        if (changed := with_hostile_values(data, whole, copy.suffix)) is not None:
            copy.write_bytes(changed)
            reads_or_refuses(copy)
    finally:
        copy.write_bytes(whole)


SCRIPTS = {
    "no date": "a: 2001-99-99\n",
    "digits": "a: " + "9" * 5000 + "\n",
    "hexadecimal digits": "a: 0x" + "f" * 5000 + "\n",
    "sexagesimal": "a: 1:99:" + "9:" * 3000 + "9\n",
    "deep": "[" * 20_000,
    "deep mappings": "a: " + "{a: " * 20_000,
    "laughs": "a: &a [x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{f'*{chr(97 + n)},' * 9}]\n" for n in range(20)),
    "itself": "a: &a [*a]\n",
    "a list as a name": "? [1, 2]\n: 3\n",
    "a number as a name": "1: 2\n",
    "a tag": "a: !!python/object/apply:os.system ['true']\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "binary": "a: !!binary x\n",
    "set": "!!set {a, b}\n",
    "tabs": "\ta: 1\n",
    "nothing": "",
    "float": "a: 1e99999\nb: .inf\nc: .nan\nd: -.inf\n",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_yaml_of_every_kind_is_read_or_refused(tmp_path: Path, script: str) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(SCRIPTS[script], encoding="utf-8")
    for read in (read_settings, RunSettings.read, read_file):
        with contextlib.suppress(InputError):
            read(path)


def test_anchors_that_repeat_little_are_read(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("base: &base {a: 1}\nother: {<<: *base, b: 2}\n", encoding="utf-8")
    assert read_settings(path) == {"base": {"a": 1}, "other": {"a": 1, "b": 2}}


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        for read in (read_settings, load_tokenizer, read_text, lambda path: read_json(dict[str, int], path)):
            with pytest.raises(InputError, match=r"no regular file, but a pipe or a device|is a folder"):
                read(path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.touch()
    os.truncate(path, 1 << 40)  # a file of one terabyte that holds nothing
    for read in (read_settings, load_tokenizer, read_text, read_metrics):
        with pytest.raises(InputError, match="too large for what it should be: 1,099,511,627,776 bytes"):
            read(path)


def test_a_run_whose_newest_checkpoint_is_an_empty_folder_falls_back_to_the_one_before(folders: Path) -> None:
    empty = folders / "run" / "checkpoints" / "step-00000099"
    empty.mkdir()
    try:
        assert find_checkpoint(folders / "run", "last").name == "step-00000020"
        (summary,) = [run for run in runs_below(folders / "run") if not isinstance(run, InputError)]
        assert summary.step == 20
    finally:
        empty.rmdir()
